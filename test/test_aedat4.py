"""AEDAT4 files: a real one, ones written by dv-processing, and damaged ones."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from event_binning_grad.errors import RecordingError
from event_binning_grad.events import aedat4
from event_binning_grad.events.aedat4 import Aedat4Recording
from event_binning_grad.events.convert import convert
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.repacking import packets_and_edges
from event_binning_grad.events.types import EventPacket, Events, stamp_to_ns
from event_binning_grad.pipeline import Pipeline

US = 1_000
START_US = 1_700_000_000_000_000
SIZE = (40, 30)
CAMERA = "DVXPLORER_TEST0001"
COMPRESSIONS = ("NONE", "LZ4", "LZ4_HIGH", "ZSTD", "ZSTD_HIGH")

Row = tuple[int, int, int, int]


@pytest.fixture
def dv() -> Any:
    return pytest.importorskip("dv_processing", reason="dv-processing is not installed")


@pytest.fixture
def davis(data_dir: Path) -> Path:
    path = data_dir / "aedat4" / "davis_320x240.aedat4"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


def made_rows(count: int, seed: int = 0) -> list[Row]:
    """Events t (us), x, y, p in the order of time, some at the same time."""
    rng = np.random.default_rng(seed)
    t = START_US + np.sort(rng.integers(0, 100 * count, count))
    x, y = rng.integers(0, SIZE[0], count), rng.integers(0, SIZE[1], count)
    columns = (t, x, y, rng.integers(0, 2, count))
    return list(zip(*(column.tolist() for column in columns), strict=True))


def write(
    dv: Any,
    path: Path,
    rows: list[Row],
    *,
    batch: int = 100,
    compression: str = "LZ4",
    more: Callable[[Any], None] | None = None,
) -> Path:
    """A file of these events, so many a packet; more(writer) writes what else is in it."""
    kind = getattr(dv.CompressionType, compression)
    writer = dv.io.MonoCameraWriter(str(path), dv.io.MonoCameraWriter.DVSConfig(CAMERA, SIZE, kind))
    for at in range(0, len(rows), batch):
        store = dv.EventStore()
        for t, x, y, p in rows[at : at + batch]:
            store.push_back(t, x, y, bool(p))
        writer.writeEvents(store)
    if more is not None:
        more(writer)
    del writer  # finishes the file
    return path


def write_stereo(dv: Any, path: Path) -> Path:
    configs = [dv.io.MonoCameraWriter.EventOnlyConfig(name, SIZE) for name in ("left", "right")]
    writer = dv.io.StereoCameraWriter(str(path), *configs)
    for k, side in enumerate(("left", "right")):
        store = dv.EventStore()
        for i in range(5 + k):
            store.push_back(START_US + i, i, k, True)
        getattr(writer, side).writeEvents(store)
    del writer
    return path


def decoded(recording: Aedat4Recording) -> tuple[Events, PacketDecoder]:
    decoder = PacketDecoder()
    parts = [Events.empty(recording.width, recording.height)]
    parts += [decoder.decode(packet).events.copy() for packet in recording.packets()]
    return Events.concatenate(parts), decoder


def edges_of(recording: Aedat4Recording) -> tuple[Events, list[tuple[int, int]]]:
    """Events, and edges t (ns), p of the trigger input, by one decoder, whose clock goes on."""
    decoder, events, edges = PacketDecoder(), [], []
    for packet in packets_and_edges(recording):
        assert isinstance(packet, EventPacket)
        part = decoder.decode(packet)
        events.append(part.events.copy())
        edges += zip(part.triggers.t.tolist(), part.triggers.p.tolist(), strict=True)
    counters = decoder.counters
    assert counters.clock_resets == counters.lost_packets == 0
    return Events.concatenate(events), edges


def time_bytes(time_us: int) -> bytes:
    return struct.pack("<q", time_us)


def rows_of(events: Events) -> list[Row]:
    columns = (events.t // US, events.x, events.y, events.p)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def what_happens(path: Path) -> str | tuple[int, int]:
    """Events and IMU samples of a file that may be damaged, or the one line of its error."""
    try:
        recording = Aedat4Recording(path)
        _, decoder = decoded(recording)
        return decoder.counters.events, sum(1 for _ in recording.imu())
    except RecordingError as error:
        message = str(error)
        assert message.startswith(str(path))
        assert "\n" not in message
        assert not message.rstrip().endswith(":")
        return message


def test_a_real_recording(davis: Path) -> None:
    """Counts: those of PROVENANCE.txt and of dv-processing."""
    recording = Aedat4Recording(davis)
    assert (recording.width, recording.height) == (320, 240)
    assert (recording.kind, recording.encoding, recording.topic) == ("AEDAT4", "dv", None)
    assert recording.calibration() is None
    assert recording.ground_truth() is None
    assert recording.flow_truth() is None
    events, decoder = decoded(recording)
    assert len(events) == decoder.counters.events == 111_954
    assert decoder.counters.packets == 59
    assert decoder.counters.lost_packets == decoder.counters.clock_resets == 0
    assert decoder.counters.out_of_bounds_events == decoder.counters.invalid_events == 0
    assert (np.diff(events.t) >= 0).all()
    assert events.t[0] == 1605537493718345 * US
    assert 0.58e9 < events.t[-1] - events.t[0] < 0.60e9
    assert int(events.x.max()) < 320
    assert int(events.y.max()) < 240
    assert not any(recording.unusable().values())
    assert recording.warnings() == []


def test_a_pipeline_takes_a_real_recording(davis: Path) -> None:
    pipeline = Pipeline()
    for packet in Aedat4Recording(davis).packets():
        pipeline.push(packet)
    counters = pipeline.counters
    assert counters.events == counters.decoder.events == 111_954
    assert counters.first_event_ns == 1605537493718345 * US
    assert pipeline.last_discontinuity is None


def test_packets_of_a_real_recording_are_counted_stamped_and_come_again(davis: Path) -> None:
    recording = Aedat4Recording(davis)
    packets = list(recording.packets())
    assert [packet.seq for packet in packets] == list(range(len(packets)))
    for packet in packets:
        assert isinstance(packet, EventPacket)
        assert (packet.encoding, packet.width, packet.height) == ("dv", 320, 240)
        first_us = int(packet.events[:8].copy().view("<i8")[0])
        assert stamp_to_ns(packet.header.stamp) == first_us * US
    again = recording.packets()
    for packet in packets:
        np.testing.assert_array_equal(next(again).events, packet.events)
    assert next(again, None) is None


def test_two_iterations_at_a_time_do_not_disturb_each_other(davis: Path) -> None:
    recording = Aedat4Recording(davis)
    both = zip(recording.packets(), recording.packets(), strict=True)
    assert sum(a.seq == b.seq and len(a.events) == len(b.events) for a, b in both) == 59


def test_gyroscope_of_a_real_recording(davis: Path) -> None:
    samples = list(Aedat4Recording(davis).imu())
    t = np.array([stamp for stamp, _ in samples])
    omega = np.array([value for _, value in samples])
    assert omega.shape == (475, 3)
    assert (np.diff(t) > 0).all()
    assert 700 < 1e9 * (len(t) - 1) / (t[-1] - t[0]) < 1000  # Hz
    # Almost still: in rad/s this is small, in deg/s it would not be.
    assert 0.001 < np.linalg.norm(omega, axis=1).mean() < 0.05
    np.testing.assert_allclose(omega[0], (0.00719053, 0.00133158, -0.00719053), atol=1e-8)


def test_a_real_recording_is_what_dv_processing_reads(dv: Any, davis: Path) -> None:
    reader, theirs = dv.io.MonoCameraRecording(str(davis)), []
    while (store := reader.getNextEventBatch()) is not None:
        theirs.append(store.numpy().copy())
    together = np.concatenate(theirs)
    expected = zip(
        *(together[name].tolist() for name in ("timestamp", "x", "y", "polarity")), strict=True
    )
    assert rows_of(decoded(Aedat4Recording(davis))[0]) == list(expected)
    samples = []
    while (batch := reader.getNextImuBatch()) is not None:
        samples += [(each.timestamp * US, each.getAngularVelocities().ravel()) for each in batch]
    ours = list(Aedat4Recording(davis).imu())
    assert [t for t, _ in ours] == [t for t, _ in samples]
    np.testing.assert_allclose([w for _, w in ours], [w for _, w in samples], rtol=1e-6)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_events_come_back_as_written(dv: Any, tmp_path: Path, compression: str) -> None:
    rows = made_rows(1050)
    recording = Aedat4Recording(write(dv, tmp_path / "made.aedat4", rows, compression=compression))
    events, decoder = decoded(recording)
    assert (recording.width, recording.height) == SIZE
    assert rows_of(events) == rows
    assert decoder.counters.packets == 11
    assert list(recording.imu()) == []
    assert not any(recording.unusable().values())


def test_edges_and_turning_come_back_as_written(dv: Any, tmp_path: Path) -> None:
    """Marks of the camera itself (frames, resets) and pulses are no edges."""
    kinds = ["EXTERNAL_SIGNAL_RISING_EDGE", "EXTERNAL_SIGNAL_FALLING_EDGE", "TIMESTAMP_RESET"]
    kinds += ["APS_FRAME_START", "EXTERNAL_SIGNAL_PULSE", "EXTERNAL_SIGNAL_RISING_EDGE"]

    def more(writer: Any) -> None:
        for k, kind in enumerate(kinds):
            writer.writeTrigger(dv.Trigger(START_US + 10 * k, getattr(dv.TriggerType, kind)))
        for k in range(3):
            temperature_and_acceleration = (25.0, 0.0, 0.0, 1.0)
            writer.writeImu(
                dv.IMU(START_US + k, *temperature_and_acceleration, 180.0 * k, 90.0, -45.0, 0, 0, 0)
            )

    path = write(dv, tmp_path / "made.aedat4", made_rows(50), more=more)
    recording = Aedat4Recording(path)
    events, edges = edges_of(recording)
    assert rows_of(events) == made_rows(50)
    assert edges == [
        (START_US * US, 1),
        ((START_US + 10) * US, 0),
        ((START_US + 50) * US, 1),
    ]
    assert recording.unusable()["pulses"] == 1
    samples = list(recording.imu())
    assert [t for t, _ in samples] == [(START_US + k) * US for k in range(3)]
    expected = [(np.pi * k, np.pi / 2, -np.pi / 4) for k in range(3)]
    np.testing.assert_allclose([w for _, w in samples], expected, rtol=1e-6, atol=1e-9)
    inertial = recording.inertial()
    assert inertial is not None
    motions = np.array([motion for _, motion in inertial])
    np.testing.assert_array_equal(motions[:, :3], [w for _, w in samples])
    np.testing.assert_allclose(motions[:, 3:], [(0.0, 0.0, 9.80665)] * 3)
    assert rows_of(decoded(recording)[0]) == made_rows(50)


def test_a_file_without_an_imu_claims_none(dv: Any, tmp_path: Path) -> None:
    """Neither where it has no such stream, nor where nothing is on it."""
    for path in (
        write(dv, tmp_path / "empty.aedat4", made_rows(50)),
        write_stereo(dv, tmp_path / "none.aedat4"),
    ):
        recording = Aedat4Recording(path, "left" if path.stem == "none" else None)
        assert recording.inertial() is None
        assert list(recording.imu()) == []
        done = convert(recording, path.with_suffix(".npz"))
        assert not any("IMU" in line for line in done.left_out)


def test_a_gyroscope_that_is_not_finite_is_counted(dv: Any, tmp_path: Path) -> None:
    def more(writer: Any) -> None:
        for k, rate in enumerate((0.0, float("nan"), float("inf"), 1.0)):
            writer.writeImu(dv.IMU(START_US + k, 0, 0, 0, 1, rate, 0, 0, 0, 0, 0))

    recording = Aedat4Recording(write(dv, tmp_path / "made.aedat4", made_rows(50), more=more))
    assert [t for t, _ in recording.imu()] == [START_US * US, (START_US + 3) * US]
    assert recording.unusable()["unusable_readings"] == 2


def test_without_the_compressions_library_it_says_so(
    dv: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(dv, tmp_path / "made.aedat4", made_rows(50))
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    with pytest.raises(RecordingError, match=r"made\.aedat4 is compressed.*pip install lz4"):
        next(Aedat4Recording(path).packets())


def test_events_outside_the_sensor_or_back_in_time_are_counted(dv: Any, tmp_path: Path) -> None:
    """A step back within 10 ms keeps the last time; outside and damaged events are dropped."""
    rows = made_rows(100)
    end = rows[-1][0]
    wild = [(end + 5, SIZE[0], 0, 1), (end + 6, 0, SIZE[1], 1), (end + 7, -1, 3, 1)]
    late = [(end + 8, 1, 1, 1), (end + 9, 2, 2, 0), (end + 10, 3, 3, 0)]
    path = write(dv, tmp_path / "made.aedat4", [*rows, *wild, *late], compression="NONE")
    # dv-processing writes nothing out of order.
    content = path.read_bytes()
    content = content.replace(time_bytes(end + 9), time_bytes(end + 2))
    path.write_bytes(content.replace(time_bytes(end + 10), time_bytes(-1)))
    events, decoder = decoded(Aedat4Recording(path))
    assert rows_of(events) == [*rows, late[0], (end + 8, 2, 2, 0)]
    assert decoder.counters.out_of_bounds_events == 3
    assert decoder.counters.invalid_events == 1
    assert decoder.counters.time_steps_back == 1
    assert decoder.counters.clock_resets == 0


@pytest.mark.parametrize("first_us", [-1, 1 << 62])
def test_a_damaged_first_time_costs_one_event(dv: Any, tmp_path: Path, first_us: int) -> None:
    rows = [(START_US + k, k % SIZE[0], 0, 1) for k in range(150)]
    path = write(dv, tmp_path / "made.aedat4", rows, compression="NONE")
    content = path.read_bytes()
    at = content.index(time_bytes(START_US) + bytes(4))  # x and y are 0
    path.write_bytes(content[:at] + time_bytes(first_us) + content[at + 8 :])
    recording = Aedat4Recording(path)
    assert [stamp_to_ns(packet.header.stamp) for packet in recording.packets()] == [
        0,
        (START_US + 100) * US,
    ]
    events, decoder = decoded(recording)
    assert rows_of(events) == rows[1:]
    assert decoder.counters.invalid_events == 1


def test_a_file_without_a_single_event(dv: Any, tmp_path: Path) -> None:
    recording = Aedat4Recording(write(dv, tmp_path / "made.aedat4", []))
    assert list(recording.packets()) == []
    assert (recording.width, recording.height) == SIZE


def test_a_file_of_frames_only_is_refused(dv: Any, tmp_path: Path) -> None:
    path = tmp_path / "frames.aedat4"
    config = dv.io.MonoCameraWriter.FrameOnlyConfig(CAMERA, SIZE)
    writer = dv.io.MonoCameraWriter(str(path), config)
    del writer
    with pytest.raises(RecordingError, match=r"FRME, expected events \(EVTS\)$"):
        Aedat4Recording(path)


def test_of_two_cameras_one_must_be_chosen(dv: Any, tmp_path: Path) -> None:
    path = write_stereo(dv, tmp_path / "stereo.aedat4")
    with pytest.raises(RecordingError, match=r"left EVTS.*right EVTS.*one camera"):
        Aedat4Recording(path)
    for camera, count in (("left", 5), ("right", 6)):
        assert len(decoded(Aedat4Recording(path, camera))[0]) == count
    with pytest.raises(RecordingError, match=r"expected events .* of middle$"):
        Aedat4Recording(path, "middle")


def test_a_file_has_no_ros_messages(davis: Path) -> None:
    with pytest.raises(RecordingError, match="without ROS messages"):
        next(Aedat4Recording(davis).raw_messages())


@pytest.mark.parametrize(
    "content",
    [b"", b"#", b"#!AER-DAT4.0", b"#!AER-DAT4.0\r\n", b"#!AER-DAT4.0\r\n\xff\xff\xff\xff", b"\0"],
)
def test_empty_and_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.aedat4"
    for rest in (b"", random.Random(0).randbytes(3000)):
        path.write_bytes(content + rest)
        assert isinstance(what_happens(path), str)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    assert isinstance(what_happens(tmp_path / "absent.aedat4"), str)
    assert isinstance(what_happens(tmp_path), str)


def test_cut_at_any_length_the_whole_packets_are_read(dv: Any, tmp_path: Path) -> None:
    rows = made_rows(300)
    content = write(dv, tmp_path / "made.aedat4", rows).read_bytes()
    path, counts = tmp_path / "cut.aedat4", []
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        try:
            recording = Aedat4Recording(path)
        except RecordingError:
            counts.append(-1)
            continue
        events, _ = decoded(recording)
        assert rows_of(events) == rows[: len(events)]
        assert recording.unusable()["cut_bytes"] >= 0
        if len(events) < len(rows):
            (line,) = recording.warnings()
            assert "cut short" in line or "was not closed" in line
        counts.append(len(events))
    assert counts == sorted(counts)
    assert set(counts) == {-1, 0, 100, 200, 300}


def test_the_bytes_of_a_cut_packet_are_counted(dv: Any, tmp_path: Path) -> None:
    path = write(dv, tmp_path / "made.aedat4", made_rows(300), compression="NONE")
    content = path.read_bytes()
    last = content.rindex(b"EVTS")  # in the last packet's identifier
    path.write_bytes(content[: last + 100])
    recording = Aedat4Recording(path)
    assert len(decoded(recording)[0]) == 200
    assert recording.unusable()["cut_bytes"] > 100


def test_a_damaged_packet_costs_itself_alone(dv: Any, tmp_path: Path) -> None:
    rows = made_rows(500)
    path = write(dv, tmp_path / "made.aedat4", rows)
    content = bytearray(path.read_bytes())
    packets = [at for at in range(len(content)) if content.startswith(b"\x04\x22\x4d\x18", at)]
    content[packets[2] + 4 : packets[2] + 40] = bytes(36)  # behind the frame's mark
    path.write_bytes(content)
    recording = Aedat4Recording(path)
    assert rows_of(decoded(recording)[0]) == rows[:200] + rows[300:]
    assert recording.unusable()["unreadable_packets"] == 1


@pytest.mark.parametrize("compression", ["LZ4", "ZSTD"])
def test_much_of_the_same_is_decompressed_wholly(dv: Any, tmp_path: Path, compression: str) -> None:
    rows = [(START_US, 0, 0, 0)] * 50_000
    path = write(dv, tmp_path / "made.aedat4", rows, batch=len(rows), compression=compression)
    assert path.stat().st_size < 16 * len(rows) // 50
    assert len(decoded(Aedat4Recording(path))[0]) == len(rows)


@pytest.mark.parametrize("compression", ["LZ4", "ZSTD"])
def test_a_packet_that_decompresses_without_end_is_skipped(
    dv: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    rows = [(START_US, 0, 0, 0)] * 500
    path = write(dv, tmp_path / "made.aedat4", rows, compression=compression)
    monkeypatch.setattr(aedat4, "MAX_CONTENT_BYTES", 1000)
    recording = Aedat4Recording(path)
    assert list(recording.packets()) == []
    assert recording.unusable()["unreadable_packets"] == 5


def test_damaged_bytes_give_an_error_or_the_rest(dv: Any, tmp_path: Path) -> None:
    """Anywhere, and above all in the header and the bodies of packets that are not compressed."""

    def more(writer: Any) -> None:
        for k in range(20):
            writer.writeTrigger(
                dv.Trigger(START_US + k, dv.TriggerType.EXTERNAL_SIGNAL_RISING_EDGE)
            )
            writer.writeImu(dv.IMU(START_US + k, *[0.0] * 10))

    rng, path = random.Random(3), tmp_path / "damaged.aedat4"
    outcomes = []
    for compression in ("NONE", "LZ4"):
        content = write(
            dv, tmp_path / "made.aedat4", made_rows(200), compression=compression, more=more
        ).read_bytes()
        for _ in range(150):
            damaged = bytearray(content)
            for _ in range(rng.choice((1, 2, 8))):
                damaged[rng.randrange(len(content))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            path.write_bytes(damaged)
            outcomes.append(what_happens(path))
    assert any(isinstance(outcome, str) for outcome in outcomes)
    assert all(outcome[0] <= 200 for outcome in outcomes if not isinstance(outcome, str))
    assert (200, 20) in outcomes


def test_only_reading_needs_no_dv_processing(davis: Path) -> None:
    code = (
        "import sys; sys.modules['dv_processing'] = None\n"
        "from pathlib import Path\n"
        "from event_binning_grad.events.aedat4 import Aedat4Recording\n"
        f"print(sum(len(p.events) // 16 for p in Aedat4Recording(Path({str(davis)!r})).packets()))"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert made.stdout.split() == ["111954"], made.stderr
