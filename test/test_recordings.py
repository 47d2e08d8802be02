"""Recordings: text, bags, ground truth, writing."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_binning_grad.errors import CalibrationError, PacketError, RecordingError
from event_binning_grad.events import text
from event_binning_grad.events.bag_messages import (
    CAMERA_INFO_TOPIC,
    DEPTH_TOPIC,
    EVENT_PACKET_TYPE,
    EVENTS_TOPIC,
    GROUND_TRUTH_TOPIC,
    typestore,
)
from event_binning_grad.events.bag_writer import write_bag
from event_binning_grad.events.bags import BagRecording
from event_binning_grad.events.companions import (
    SensorError,
    to_angular_velocity,
    to_depth,
    to_range,
)
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.types import EventPacket, Events
from event_binning_grad.geometry import Camera

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no recordings in {DATA}")
CALIB = "199.1 198.8 132.2 110.7 -0.36 0.15 -0.0003 -0.0008 0.01\n"


def write_text(directory: Path, events: str, calib: str | None = CALIB) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "events.txt").write_text(events)
    if calib is not None:
        (directory / "calib.txt").write_text(calib)
    return directory


def events_of(path: Path) -> Events:
    chunks = [chunk for chunk in open_recording(path).packets() if isinstance(chunk, Events)]
    return Events.concatenate(chunks)


def rows_of(events: Events) -> list[tuple[int, ...]]:
    columns = (events.t.tolist(), events.x.tolist(), events.y.tolist(), events.p.tolist())
    return list(zip(*columns, strict=True))


def test_text_lines_of_every_spelling(tmp_path: Path):
    lines = "# t x y p\n0.000000 33 39 1\r\n\n  13.582595999\t190,82  0 \n"
    lines += "1.358259600000000051e+01 1.9e1 3.300000e+01 -1\n13.5825961 5 6 1"
    assert rows_of(events_of(write_text(tmp_path, lines))) == [
        (0, 33, 39, 1),
        (13_582_595_999, 190, 82, 0),
        (13_582_596_000, 19, 33, 0),
        (13_582_596_100, 5, 6, 1),
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2_000_000_000_999_999_999), min_size=1, max_size=30).map(sorted))
def test_text_times_are_exact(tmp_path_factory: pytest.TempPathFactory, times: list[int]):
    lines = "".join(f"{t // 10**9}.{t % 10**9:09d} {i} 0 1\n" for i, t in enumerate(times))
    directory = write_text(tmp_path_factory.mktemp("times"), lines)
    assert events_of(directory).t.tolist() == times


@settings(max_examples=100, deadline=None)
@given(st.floats(0.0, 1e6), st.sampled_from(["%.9f", "%.6f", "%.18e", "%.12g", "%r"]))
def test_text_times_are_rounded_like_floats(value: float, spelling: str):
    line = (repr(value) if spelling == "%r" else spelling % value) + " 1 2 0\n"
    t, x = np.empty(1, np.int64), np.empty(1, np.uint16)
    count, lines, bad = text.parse_events(
        np.frombuffer(line.encode(), np.uint8), t, x, x.copy(), np.empty(1, np.uint8)
    )
    assert (count, lines, bad) == (1, 1, -1)
    # A float64 below 1e6 is good to 0.12 ns; the rest is the half ns of the rounding.
    assert abs(int(t[0]) - float(line.split()[0]) * 1e9) <= 0.63


def test_text_is_read_in_blocks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = "".join(f"{k * 0.001:.6f} {k % 240} {k % 180} {k % 2}\n" for k in range(500))
    directory = write_text(tmp_path, lines)
    whole = rows_of(events_of(directory))
    assert len(whole) == 500
    for size in (30, 31, 57, 1000):
        monkeypatch.setattr(text, "BLOCK_BYTES", size)
        assert rows_of(events_of(directory)) == whole


@pytest.mark.parametrize(
    "bad",
    [
        "0.1 2 3",
        "0.1 2 3 1 7",
        "0.1 2 3 4",
        "0.1 -2 3 1",
        "0.1 2.5 3 1",
        "0.1 2 65536 1",
        "abc 2 3 1",
        "0.1 2 3 x",
        "nan 2 3 1",
        "1e 2 3 1",
        "1e300 2 3 1",
        ". 2 3 1",
        "1-2 3 4 1",
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, bad: str):
    write_text(tmp_path, f"0.0 1 1 1\n\n# comment\n0.05 1 1 1\n{bad}\n0.2 1 1 1\n")
    with pytest.raises(RecordingError, match="line 5: found") as caught:
        events_of(tmp_path)
    assert bad[:5] in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_hostile_text_is_survived(data: bytes):
    block = np.frombuffer(data + b"\n", np.uint8)
    size = len(block) // 8 + 1
    x = np.empty(size, np.uint16)
    count, lines, bad = text.parse_events(
        block, np.empty(size, np.int64), x, x.copy(), np.empty(size, np.uint8)
    )
    assert 0 <= count <= size
    assert lines <= len(block)
    assert -1 <= bad < len(block)


def test_text_steps_back(tmp_path: Path):
    recording = open_recording(write_text(tmp_path, "0.1 1 1 1\n0.095 2 1 1\n0.2 3 1 1\n"))
    (events,) = recording.packets()
    assert isinstance(events, Events)
    assert events.t.tolist() == [100_000_000, 100_000_000, 200_000_000]
    assert isinstance(recording, text.TextRecording)
    assert recording.time_steps_back == 1
    with pytest.raises(RecordingError, match="time runs back"):
        events_of(write_text(tmp_path, "0.1 1 1 1\n0.05 2 1 1\n"))


@pytest.mark.parametrize(
    ("x", "y", "size"),
    [
        (239, 179, (240, 180)),
        (240, 0, (304, 240)),
        (0, 240, (320, 320)),
        (320, 259, (346, 260)),
        (0, 320, (640, 480)),
        (640, 1, (1280, 720)),
    ],
)
def test_the_sensor_is_the_smallest_that_holds_the_events(
    tmp_path: Path, x: int, y: int, size: tuple[int, int]
):
    recording = open_recording(write_text(tmp_path, f"0 0 0 1\n0.1 {x} {y} 0\n"))
    assert (recording.width, recording.height) == size
    calibration = recording.calibration()
    assert calibration is not None
    assert (calibration["width"], calibration["height"]) == size
    assert calibration["k"] == [199.1, 0.0, 132.2, 0.0, 198.8, 110.7, 0.0, 0.0, 1.0]
    assert calibration["d"] == [-0.36, 0.15, -0.0003, -0.0008, 0.01]


def test_the_size_in_calib_txt_counts(tmp_path: Path):
    directory = write_text(tmp_path, "0 0 0 1\n0.1 300 9 0\n", CALIB + "240 180\n")
    recording = open_recording(directory)
    assert isinstance(recording, text.TextRecording)
    assert (recording.width, recording.height) == (240, 180)
    assert sum(len(e) for e in recording.packets()) == 1
    assert recording.out_of_bounds_events == 1


@pytest.mark.parametrize("calib", ["1 2 3\n", "a b\n", "", CALIB + "240\n", CALIB + "x y\n"])
def test_a_malformed_calib_txt_is_refused(tmp_path: Path, calib: str):
    recording = open_recording(write_text(tmp_path, "0 0 0 1\n", calib))
    with pytest.raises(CalibrationError, match=r"calib\.txt"):
        recording.calibration()


def test_text_without_companions(tmp_path: Path):
    recording = open_recording(write_text(tmp_path, "0 0 0 1\n", None) / "events.txt")
    assert recording.calibration() is None
    assert recording.ground_truth() is None
    with pytest.raises(RecordingError, match="without ROS messages"):
        recording.raw_messages()


def test_nothing_to_read_is_said_in_one_line(tmp_path: Path):
    for path, message in (
        (tmp_path / "absent", "does not exist"),
        (tmp_path, "no recording that is known"),
    ):
        with pytest.raises(RecordingError, match=message):
            open_recording(path)
    with pytest.raises(RecordingError, match="no events"):
        events_of(write_text(tmp_path / "empty", ""))
    for name in ("random.mcap", "random.db3", "random.bag"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 8)
        with pytest.raises(RecordingError, match="cannot be read as a bag") as caught:
            open_recording(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_gyro_is_preferred_and_splined(tmp_path: Path):
    write_text(tmp_path, "0 0 0 1\n")
    seconds = np.arange(0, 1, 0.001)
    gyro = np.stack([np.sin(6 * seconds), np.cos(5 * seconds), seconds**2], axis=1)
    rows = np.column_stack([seconds, np.zeros((1000, 3)), gyro])
    np.savetxt(tmp_path / "imu.txt", np.delete(rows, slice(400, 600), axis=0), fmt="%.9f")
    np.savetxt(tmp_path / "groundtruth.txt", np.ones((9, 8)))
    truth = open_recording(tmp_path).ground_truth()
    assert truth is not None
    assert "imu.txt" in truth.source
    t = np.array([300_500_000, 700_400_000], np.int64)
    expected = np.stack([np.sin(6 * t / 1e9), np.cos(5 * t / 1e9), (t / 1e9) ** 2], axis=1)
    assert np.allclose(truth.at(t), expected, atol=1e-6)
    assert np.isnan(truth.at([-1, 1_000_000_000, 500_000_000])).all()  # outside, and in the gap
    assert truth.at(t[0]).shape == (3,)
    assert truth.linear_at(t) is None


def test_poses_give_the_rate_in_the_cameras_frame(tmp_path: Path):
    from scipy.spatial.transform import Rotation

    write_text(tmp_path, "0 0 0 1\n")
    seconds = np.arange(0, 2, 0.005)
    rate = np.array([0.5, -1.0, 2.0])  # constant in the camera's own frame
    start = Rotation.from_rotvec([0.7, -0.4, 1.1])
    turned = start * Rotation.from_rotvec(seconds[:, None] * rate)
    quaternions = turned.as_quat() * np.where(np.arange(len(seconds)) % 2, 1, -1)[:, None]
    velocity = np.array([0.1, 0.2, -0.3])  # constant in the world
    rows = np.column_stack([seconds, seconds[:, None] * velocity, quaternions])
    np.savetxt(tmp_path / "groundtruth.txt", rows, fmt="%.12f")
    truth = open_recording(tmp_path).ground_truth()
    assert truth is not None
    assert np.allclose(truth.at(np.array([500_000_000, 1_234_000_000])), rate, atol=1e-4)
    linear = truth.linear_at((seconds[[50, 300]] * 1e9).astype(np.int64))
    assert linear is not None
    assert np.allclose(linear, turned.inv().apply(velocity)[[50, 300]], atol=1e-6)


def test_a_constant_motion_covers_the_events(tmp_path: Path):
    write_text(tmp_path, "1.0 0 0 1\n3.5 1 1 1\n")
    (tmp_path / "motion.txt").write_text("0.5 -1.0 0.1\n")
    truth = open_recording(tmp_path).ground_truth()
    assert truth is not None
    times = np.linspace(1.0e9, 3.5e9, 7).astype(np.int64)
    assert np.allclose(truth.at(times), [0.5, -1.0, 0.1])
    assert np.isnan(truth.at(3_600_000_000)).all()


@pytest.mark.parametrize("content", ["1 2 3\n", "", "0 0 0 0 x 0 0\n", "nan 0 0 0 0 0 0\n" * 5])
def test_malformed_ground_truth_is_refused(tmp_path: Path, content: str):
    write_text(tmp_path, "0 0 0 1\n")
    (tmp_path / "imu.txt").write_text(content)
    with pytest.raises(RecordingError, match=r"imu\.txt"):
        open_recording(tmp_path).ground_truth()


def made_events(count: int = 5000, start_ns: int = 1_700_000_000 * 10**9) -> Events:
    rng = np.random.default_rng(3)
    t = start_ns + np.sort(rng.integers(0, 10**6, count)) * 1000
    x, y = rng.integers(0, 346, count), rng.integers(0, 260, count)
    return Events(
        t.astype(np.int64),
        x.astype(np.uint16),
        y.astype(np.uint16),
        rng.integers(0, 2, count).astype(np.uint8),
        346,
        260,
    )


INFO = {
    "width": 346,
    "height": 260,
    "distortion_model": "plumb_bob",
    "d": [0.1, 0.2, 0.3, 0.4, 0.5],
    "k": [200.0, 0.0, 173.0, 0.0, 201.0, 130.0, 0.0, 0.0, 1.0],
}


def made_truth(events: Events, samples: int = 3000) -> GroundTruth:
    t_ns = int(events.t[0]) - 10**9 + 10**6 * np.arange(samples, dtype=np.int64)
    values = np.random.default_rng(4).normal(size=(2, samples, 3))
    return GroundTruth(t_ns, values[0], values[1], "made")


def test_a_written_bag_gives_back_everything(tmp_path: Path):
    events = made_events()
    truth, path = made_truth(events), tmp_path / "out" / "bag"
    sent = list(packetize(events, 4.0, frame_id="cam"))
    assert write_bag(path, sent, INFO, truth) == len(sent)
    assert [p.name for p in path.parent.iterdir()] == ["bag"]

    for opened in (path, next(path.glob("*.mcap"))):
        recording = open_recording(opened)
        assert (recording.width, recording.height) == (346, 260)
        assert recording.topic == EVENTS_TOPIC
        assert_calibration(recording.calibration())
        got = list(recording.packets())
        for a, b in zip(got, sent, strict=True):
            assert isinstance(a, EventPacket)
            assert (a.header, a.seq, a.encoding) == (b.header, b.seq, b.encoding)
            assert bytes(a.events) == bytes(b.events)
        decoder = PacketDecoder()
        again = Events.concatenate([decoder.decode(p).events for p in sent])
        assert np.array_equal(again.x, events.x)
        read = recording.ground_truth()
        assert read is not None
        assert read.t_ns[0] <= events.t[0]
        assert read.t_ns[-1] >= events.t[-1]
        inside = np.isin(truth.t_ns, read.t_ns)
        assert np.array_equal(read.angular_velocity, truth.angular_velocity[inside])
        assert read.linear_velocity is not None
        assert truth.linear_velocity is not None
        assert np.array_equal(read.linear_velocity, truth.linear_velocity[inside])


def test_a_written_bag_is_in_the_order_of_arrival(tmp_path: Path):
    events = made_events()
    sent = list(packetize(events, 4.0, frame_id="cam"))
    write_bag(tmp_path / "bag", sent, INFO, made_truth(events), frame_id="other")
    recording = BagRecording(tmp_path / "bag")
    messages = list(recording.raw_messages())
    times = [m.bag_time_ns for m in messages]
    assert times == sorted(times)
    arrivals = [m.bag_time_ns for m in messages if m.topic == EVENTS_TOPIC]
    lasts = [events.t[np.searchsorted(events.t, s.t[-1])] for s in slots(events)]
    assert arrivals == lasts
    infos = [m for m in messages if m.topic == CAMERA_INFO_TOPIC]
    assert 10 <= len(infos) <= 12
    info = typestore().deserialize_cdr(infos[1].data, infos[1].type_name)
    assert info.header.frame_id == "other"  # type: ignore[attr-defined]
    assert info.p.reshape(3, 4)[:, :3].ravel().tolist() == INFO["k"]  # type: ignore[attr-defined]
    twists = [m.bag_time_ns for m in messages if m.topic == GROUND_TRUTH_TOPIC]
    assert events.t[0] - 10**8 <= twists[0] <= events.t[0]
    assert events.t[-1] <= twists[-1] <= events.t[-1] + 10**8


def test_other_sensors_come_back_from_a_written_bag(tmp_path: Path):
    events = made_events()
    start, last = int(events.t[0]), int(events.t[-1])
    rng = np.random.default_rng(5)
    depth = rng.uniform(0.5, 3.0, (3, 4, 6)).astype(np.float32)
    depth[1, 2, 3] = np.nan
    stamps = [start + k * 300_000_000 for k in range(3)]
    rates = [(start + k * 10_000_000, rng.normal(size=3)) for k in range(200)]
    write_bag(
        tmp_path / "bag", packetize(events, 4.0), INFO,
        depth_images=zip(stamps, depth, strict=True),
        ranges=iter([(start, 1.5), (start + 10**8, np.nan), (start + 2 * 10**8, 0.25)]),
        imu=iter(rates),
    )  # fmt: skip
    recording = BagRecording(tmp_path / "bag")
    assert recording.topics[DEPTH_TOPIC] == "sensor_msgs/msg/Image"
    images = list(recording.depth_images())
    assert [stamp for stamp, _ in images] == stamps
    assert images[0][1].dtype == np.float32
    assert np.array_equal(np.stack([image for _, image in images]), depth, equal_nan=True)
    assert list(recording.ranges()) == [(start, 1.5), (start + 2 * 10**8, 0.25)]
    assert recording.unusable() == {"unreadable_messages": 0, "unusable_readings": 1}
    got = list(recording.imu())
    kept = [rate for rate in rates if rate[0] <= last + 10**8]  # no later than 0.1 s after
    assert 0 <= len(got) - len([rate for rate in rates if rate[0] <= last]) <= 10
    for (stamp, omega), (true_stamp, true_omega) in zip(got, kept, strict=True):
        assert stamp == true_stamp
        assert np.array_equal(omega, true_omega)
    times = [m.bag_time_ns for m in recording.raw_messages()]
    assert times == sorted(times)


def test_other_sensors_are_read_as_they_come(tmp_path: Path):
    events = made_events(100)
    write_bag(tmp_path / "bag", packetize(events, 4.0))
    recording = BagRecording(tmp_path / "bag")
    for readings in (recording.depth_images(), recording.ranges(), recording.imu()):
        assert list(readings) == []

    def pulled():
        for k in range(10**9):  # never held together: it would not end
            yield int(events.t[0]) + k * 10**6, np.zeros(3)

    write_bag(tmp_path / "endless", packetize(events, 4.0), imu=pulled())
    assert 900 < len(list(BagRecording(tmp_path / "endless").imu())) < 1200


def image(values: np.ndarray, encoding: str, padding: int = 0) -> SimpleNamespace:
    rows = values.reshape(len(values), -1)
    data = np.pad(rows.view(np.uint8), ((0, 0), (0, padding)), constant_values=255)
    return SimpleNamespace(
        height=values.shape[0],
        width=values.shape[1],
        encoding=encoding,
        is_bigendian=int(values.dtype.byteorder == ">"),
        step=data.shape[1],
        data=data.tobytes(),
    )


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<u2", ">u2"])
def test_depth_images_of_every_encoding(kind: str, padding: int):
    metres = np.array([[0.5, 1.25, 0.0], [3.0, 0.001, 60.0]])
    values = metres if "f" in kind else np.rint(metres * 1000)
    encoding = "32FC1" if "f" in kind else "16UC1"
    depth = to_depth(image(np.ascontiguousarray(values, kind), encoding, padding))
    assert depth.dtype == np.float32
    assert np.allclose(depth, np.where(metres > 0, metres, np.nan), equal_nan=True)
    odd = np.array([[np.nan, np.inf, -1.0, 2.0]], "<f4")
    assert np.array_equal(
        to_depth(image(odd, "32FC1")), [[np.nan, np.nan, np.nan, 2]], equal_nan=True
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": "mono8"}, "encoding 'mono8', expected 16UC1"),
        ({"step": 4}, "8 bytes for 2x1 pixels"),
        ({"data": b"123"}, "3 bytes for 2x1 pixels"),
        ({"height": 0}, "8 bytes for 2x0 pixels"),
    ],
)
def test_images_that_are_no_depth_are_refused(changes: dict, message: str):
    with pytest.raises(SensorError, match=message) as caught:
        to_depth(SimpleNamespace(**(vars(image(np.ones((1, 2), "<f4"), "32FC1")) | changes)))
    assert "\n" not in str(caught.value)


def test_a_sensor_that_measured_nothing_is_refused():
    for value in (np.nan, np.inf, 0.0, -1.0, 0.1, 5.0):
        with pytest.raises(SensorError, match=r"within the sensor's limits of 0\.2 to 4 m"):
            to_range(SimpleNamespace(range=value, min_range=0.2, max_range=4.0))
    assert to_range(SimpleNamespace(range=0.2, min_range=0.2, max_range=4.0)) == 0.2
    imu = SimpleNamespace(
        angular_velocity=SimpleNamespace(x=1.0, y=np.nan, z=0.0), angular_velocity_covariance=[0.0]
    )
    with pytest.raises(SensorError, match="expected finite numbers"):
        to_angular_velocity(imu)
    imu.angular_velocity.y, imu.angular_velocity_covariance = 2.0, [-1.0]
    with pytest.raises(SensorError, match="no angular velocity"):
        to_angular_velocity(imu)


def slots(events: Events) -> list[Events]:
    index = (events.t - events.t[0]) // 4_000_000
    borders = np.flatnonzero(np.diff(index, prepend=-1, append=index[-1] + 1))
    return [events[a:b] for a, b in pairwise(borders)]


def test_an_unfinished_bag_leaves_nothing_behind(tmp_path: Path):
    def failing():
        yield from packetize(made_events(100), 4.0)
        raise RuntimeError("the power failed")

    with pytest.raises(RuntimeError, match="the power failed"):
        write_bag(tmp_path / "bag", failing())
    assert list(tmp_path.iterdir()) == []
    write_bag(tmp_path / "bag", packetize(made_events(100), 4.0))
    with pytest.raises(RecordingError, match="exists already"):
        write_bag(tmp_path / "bag", packetize(made_events(100), 4.0))
    recording = open_recording(tmp_path / "bag")
    assert recording.calibration() is None
    assert recording.ground_truth() is None


def test_damaged_bags(tmp_path: Path):
    write_bag(tmp_path / "bag", packetize(made_events(), 4.0), INFO)
    whole = next((tmp_path / "bag").glob("*.mcap")).read_bytes()
    rng, messages = np.random.default_rng(0), []
    for k in range(40):
        data = bytearray(whole[: rng.integers(1, len(whole))] if k % 2 else whole)
        for at in rng.integers(0, len(data), 20):
            data[at] = rng.integers(0, 256)
        (tmp_path / f"damaged_{k}.mcap").write_bytes(data)
        messages += read_damaged(tmp_path / f"damaged_{k}.mcap")
    assert messages
    assert all("\n" not in message for message in messages)


def read_damaged(path: Path) -> list[str]:
    """The messages of all errors while a bag is read and decoded; any other exception escapes."""
    decoder, messages = PacketDecoder(), []
    try:
        packets = open_recording(path).packets()
        while (p := next(packets, None)) is not None:
            assert isinstance(p, EventPacket)
            try:
                decoder.decode(p)
            except PacketError as error:
                messages.append(str(error))
    except RecordingError as error:
        messages.append(str(error))
    return messages


def test_a_bag_that_lacks_a_file_is_refused(tmp_path: Path):
    write_bag(tmp_path / "bag", packetize(made_events(100), 4.0))
    next((tmp_path / "bag").glob("*.mcap")).unlink()
    with pytest.raises(RecordingError, match=r"lacks bag\.mcap"):
        open_recording(tmp_path / "bag")


def test_a_bag_without_usable_metadata_is_read(tmp_path: Path):
    sent = list(packetize(made_events(100), 4.0))
    write_bag(tmp_path / "bag", sent)
    for content in ("", "\x00", "rosbag2_bagfile_information:\n  storage_identifier: ''\n"):
        (tmp_path / "bag" / "metadata.yaml").write_text(content)
        assert len(list(open_recording(tmp_path / "bag").packets())) == len(sent)


@pytest.mark.parametrize("mode", ["NONE", "FILE", "MESSAGE", "STORAGE"])
@pytest.mark.parametrize("plugin", ["MCAP", "SQLITE3"])
def test_every_storage_and_compression(tmp_path: Path, plugin: str, mode: str):
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    if (plugin, mode) == ("SQLITE3", "STORAGE"):
        pytest.skip("sqlite3 bags know no compression inside the storage")
    write_bag(tmp_path / "plain", packetize(made_events(500), 4.0))
    messages = list(BagRecording(tmp_path / "plain").raw_messages())
    writer = Writer(tmp_path / "bag", version=8, storage_plugin=StoragePlugin[plugin])
    writer.set_compression(CompressionMode[mode], CompressionFormat.ZSTD)
    with writer:
        topic = writer.add_connection("/cam/events", EVENT_PACKET_TYPE, typestore=typestore())
        for message in messages:
            writer.write(topic, message.bag_time_ns, message.data)
    recording = open_recording(tmp_path / "bag")
    assert recording.topic == "/cam/events"
    assert [bytes(m.data) for m in recording.raw_messages()] == [bytes(m.data) for m in messages]


def test_a_split_bag_is_read_in_order(tmp_path: Path):
    sent = list(packetize(made_events(), 4.0))
    names = [f"bag_{k}.mcap" for k in (2, 10, 11)]
    (tmp_path / "bag").mkdir()
    for k, name in enumerate(names):
        part = tmp_path / f"part_{k}"
        write_bag(part, sent[k * 80 : (k + 1) * 80])
        shutil.copy(next(part.glob("*.mcap")), tmp_path / "bag" / name)
    recording = open_recording(tmp_path / "bag")  # without metadata.yaml
    seqs = [p.seq for p in recording.packets() if isinstance(p, EventPacket)]
    assert seqs == [p.seq for p in sent[:240]]


def test_two_cameras_in_one_bag_must_be_told_apart(tmp_path: Path):
    from rosbags.rosbag2 import StoragePlugin, Writer

    write_bag(tmp_path / "plain", packetize(made_events(500), 4.0), INFO)
    messages = list(BagRecording(tmp_path / "plain").raw_messages())
    with Writer(tmp_path / "bag", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        topics = {
            (side, m.topic): writer.add_connection(
                f"/{side}{m.topic}", m.type_name, typestore=typestore()
            )
            for side in ("left", "right")
            for m in {m.topic: m for m in messages}.values()
        }
        for message in messages:
            side = "right" if message.topic == CAMERA_INFO_TOPIC else "left"
            writer.write(topics[side, message.topic], message.bag_time_ns, message.data)
    with pytest.raises(RecordingError, match="/left/event_camera/events, /right/event_camera"):
        open_recording(tmp_path / "bag")
    left = open_recording(tmp_path / "bag", "/left/event_camera/events")
    right = open_recording(tmp_path / "bag", "/right/event_camera/events")
    assert left.width == 346
    assert left.calibration() is None
    assert right.width is None
    assert_calibration(right.calibration())


def assert_calibration(found: dict | None) -> None:
    assert found is not None
    assert {name: found[name] for name in INFO} == INFO
    assert (found["binning_x"], found["binning_y"], found["roi"].width) == (0, 0, 0)
    assert (Camera.from_camera_info(found).width, found["width"]) == (346, 346)


def test_the_event_packet_type_is_the_drivers():
    assert typestore().hash_rihs01(EVENT_PACKET_TYPE) == (
        "RIHS01_d6fa176260b1f37e5a40845305315e150a0f18191241eb64f407442aa29844aa"
    )


@needs_data
def test_bags_of_the_drivers():
    for name, size, count in (
        ("test_events_1", (640, 480), 517),
        ("test_events_1.bag", (640, 480), 517),
        ("test_events_2", (346, 260), 100),  # IDL definitions, empty storage id
        ("test_events_2/test_events_2_0.mcap", (346, 260), 100),
        ("test_data_mono_cd", (640, 480), 2),
    ):
        recording = BagRecording(DATA / "bags" / name)
        assert (recording.width, recording.height) == size
        assert len(list(recording.packets())) == count
        messages = list(recording.raw_messages())
        assert len(messages) == count
        assert recording.unreadable_messages == 0
        for message in messages:
            typestore().deserialize_cdr(message.data, message.type_name)


@needs_data
def test_a_ros1_bag_needs_no_ros2_storage(tmp_path: Path):
    shutil.copy(DATA / "bags" / "test_events_1.bag", tmp_path / "copy.bag")
    recording = BagRecording(tmp_path / "copy.bag")
    assert recording.unconvertible_topics == []
    with pytest.raises(RecordingError, match="choose /event_camera/events"):
        BagRecording(tmp_path / "copy.bag", "/another/topic")


@needs_data
@pytest.mark.parametrize(
    ("name", "count", "source"),
    [
        ("ecd_shapes_rotation", 120_000, "imu.txt"),
        ("ecd_boxes_rotation_window", 30_000, "motion.txt"),
        ("ecd_poster_6dof_window", 38_139, "groundtruth.txt"),
        ("ecd_slider_depth", 50_000, "groundtruth.txt"),
    ],
)
def test_event_camera_dataset(name: str, count: int, source: str):
    recording = open_recording(DATA / name)
    events = events_of(DATA / name)
    assert len(events) == count
    assert (events.width, events.height) == (240, 180)
    rows = np.loadtxt(DATA / name / "events.txt")
    assert np.array_equal(events.t, np.rint(rows[:, 0] * 1e9).astype(np.int64))
    assert np.array_equal(np.stack([events.x, events.y, events.p], 1), rows[:, 1:])
    truth = recording.ground_truth()
    assert truth is not None
    assert source in truth.source
    assert np.isfinite(truth.at(events.t[[len(events) // 2]])).all()


@needs_data
def test_gyro_and_mocap_of_one_recording_agree():
    from event_binning_grad.events.ground_truth import read_gyro, read_poses

    directory = DATA / "ecd_shapes_rotation"
    gyro, mocap = read_gyro(directory / "imu.txt"), read_poses(directory / "groundtruth.txt")
    t = np.arange(10 * 10**9, 50 * 10**9, 5 * 10**6)
    a, b = gyro.at(t), mocap.at(t)
    known = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    assert known.mean() > 0.9
    for axis in range(3):
        assert np.corrcoef(a[known, axis], b[known, axis])[0, 1] > 0.9
