"""MVSEC and DSEC: small files in their layouts, read value by value."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from dataset_harness import (
    DSEC_SIZE,
    EQUIDISTANT,
    MVSEC_SIZE,
    START_S,
    T_OFFSET_US,
    cam_to_cam,
    flow_frames,
    rectify_map,
    some_events,
    write_calibration,
    write_camchain,
    write_dsec,
    write_dsec_flow,
    write_flow_npz,
    write_imu,
    write_mvsec,
)

from event_binning_grad.errors import CalibrationError, EventBinningError, RecordingError
from event_binning_grad.events import dsec, mvsec
from event_binning_grad.events.flow_truth import FlowTruth, FlowTruths, on_undistorted_pixels
from event_binning_grad.events.recordings import DsecRecording, MvsecRecording, open_recording
from event_binning_grad.events.types import Events
from event_binning_grad.geometry import Camera


def events_of(recording: Any) -> Events:
    return Events.concatenate(list(recording.packets()))


def sizes_of(recording: Any) -> list[int]:
    return [len(block) for block in recording.packets()]


def columns_of(events: Events) -> list[list[int]]:
    return [events.t.tolist(), events.x.tolist(), events.y.tolist(), events.p.tolist()]


def check_flow(truth: FlowTruth, frame: np.ndarray) -> None:
    """That a frame [2, H, W] was read as it is."""
    valid = np.isfinite(frame).all(axis=0) & (frame != 0).any(axis=0)
    assert np.array_equal(truth.valid, valid)
    assert truth.flow_px.dtype == np.float32
    assert np.array_equal(truth.flow_px[valid], frame.astype(np.float32)[:, valid].T)
    assert np.isnan(truth.flow_px[~valid]).all()


def test_mvsec_events_value_by_value(tmp_path: Path):
    rows = np.array([[0, 1, 0.25, 1], [345, 259, 0.250001, -1], [7, 8, 0.5, 1]])
    recording = open_recording(write_mvsec(tmp_path, rows))
    assert isinstance(recording, MvsecRecording)
    assert (recording.width, recording.height, recording.topic) == (346, 260, None)
    start_ns = int(START_S) * 10**9
    stored = np.float64(START_S + 0.250001) - np.float64(START_S)  # what a float64 keeps of it
    expected = [250_000_000, round(float(stored) * 1e9), 500_000_000]
    assert columns_of(events_of(recording)) == [
        [start_ns + t for t in expected],
        [0, 345, 7],
        [1, 259, 8],
        [1, 0, 1],
    ]
    assert recording.calibration() is None
    assert recording.ground_truth() is None
    assert recording.flow_truth() is None
    with pytest.raises(RecordingError, match="without ROS messages"):
        recording.raw_messages()


def test_mvsec_is_read_in_blocks_and_again_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_mvsec(tmp_path, some_events(1000))
    whole = columns_of(events_of(open_recording(path)))
    monkeypatch.setattr(mvsec, "BLOCK_EVENTS", 64)
    recording = open_recording(tmp_path)
    assert sizes_of(recording) == [64] * 15 + [40]
    assert columns_of(events_of(recording)) == whole


def test_mvsec_right_camera(tmp_path: Path):
    recording = open_recording(write_mvsec(tmp_path, some_events(10)), "right")
    assert events_of(recording).x.tolist() == [1]
    write_camchain(tmp_path / "camchain-imucam-indoor_flying.yaml")
    assert recording.calibration() is not None
    assert recording.ground_truth() is None
    assert recording.flow_truth() is None


def test_mvsec_counts_what_it_leaves_out(tmp_path: Path):
    rows = some_events(10)
    rows[2, 0], rows[3, 1], rows[4, 0], rows[5, 0] = 346, 260, -1, 1e9
    rows[7, 2] -= 1e-3
    recording = open_recording(write_mvsec(tmp_path, rows))
    assert len(events_of(recording)) == 6
    assert recording.unusable() == {"out_of_bounds_events": 4, "time_steps_back": 1}
    rows[7, 2] -= 1
    with pytest.raises(RecordingError, match="time runs back"):
        events_of(open_recording(write_mvsec(tmp_path / "jump", rows)))


@pytest.mark.parametrize("place", ["", "indoor_flying_calib"])
def test_mvsec_calibration(tmp_path: Path, place: str):
    path = write_mvsec(tmp_path, some_events(10))
    write_camchain(tmp_path / place / "camchain-imucam-indoor_flying.yaml")
    info = open_recording(path).calibration()
    assert info is not None
    camera = Camera.from_camera_info(info)
    assert (camera.width, camera.height, camera.distortion_model) == (346, 260, "equidistant")
    assert camera.K.tolist() == [[226.4, 0, 173.6], [0, 226.2, 133.7], [0, 0, 1]]
    assert camera.d.tolist() == EQUIDISTANT["distortion_coeffs"]


def test_mvsec_gyro_is_turned_into_the_cameras_frame(tmp_path: Path):
    path = write_mvsec(tmp_path, some_events(10))
    seconds = np.arange(0, 1, 0.001)
    rate = np.stack([np.sin(6 * seconds), np.cos(5 * seconds), seconds**2], axis=1)
    write_imu(path, seconds, rate)
    assert open_recording(path).ground_truth() is None  # its axes are not known
    write_camchain(tmp_path / "camchain-imucam-indoor_flying.yaml")
    truth = open_recording(path).ground_truth()
    assert truth is not None
    assert truth.linear_velocity is None
    t_ns = np.int64(START_S * 1e9) + 300_500_000
    expected = [np.sin(6 * 0.3005), np.cos(5 * 0.3005), 0.3005**2]
    assert np.allclose(truth.at(t_ns), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["odometry", "pose"])
def test_mvsec_poses_give_velocities_in_the_cameras_frame(tmp_path: Path, name: str):
    from scipy.spatial.transform import Rotation

    path = write_mvsec(tmp_path, some_events(10))
    seconds = np.arange(0, 2, 0.05)
    rate, velocity = np.array([0.5, -1.0, 2.0]), np.array([0.1, 0.2, -0.3])
    turned = Rotation.from_rotvec([0.7, -0.4, 1.1]) * Rotation.from_rotvec(seconds[:, None] * rate)
    poses = np.tile(np.eye(4), (len(seconds), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = turned.as_matrix(), seconds[:, None] * velocity
    with h5py.File(tmp_path / "indoor_flying1_gt.hdf5", "w") as file:
        # A repeated sample, as bags have them.
        file[f"davis/left/{name}"] = np.concatenate([poses[:1], poses])
        file[f"davis/left/{name}_ts"] = START_S + np.concatenate([seconds[:1], seconds])
    truth = open_recording(path).ground_truth()
    assert truth is not None
    t_ns = np.int64(START_S * 1e9) + (seconds[[10, 30]] * 1e9).astype(np.int64)
    assert np.allclose(truth.at(t_ns), rate, atol=1e-4)
    linear = truth.linear_at(t_ns)
    assert linear is not None
    assert np.allclose(linear, turned.inv().apply(velocity)[[10, 30]], atol=1e-3)
    write_imu(path, np.arange(0, 2, 0.001), np.tile(rate, (2000, 1)))
    write_camchain(tmp_path / "camchain-imucam-indoor_flying.yaml")
    both = open_recording(path).ground_truth()
    assert both is not None
    assert len(both.t_ns) == 2000
    again = both.linear_at(t_ns)
    assert again is not None
    assert np.allclose(again, linear)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("folder", ["hdf5", "gt_flow"])
def test_mvsec_flow_of_an_npz(tmp_path: Path, compressed: bool, folder: str):
    path = write_mvsec(tmp_path / "hdf5", some_events(10))
    times = START_S + np.array([0.0, 0.05, 0.1, 0.1, 0.16])  # one is there twice
    frames = flow_frames(5)
    npz = tmp_path / folder / "indoor_flying1_gt_flow_dist.npz"
    write_flow_npz(npz, times, frames, compressed)
    truths = open_recording(path).flow_truth()
    assert truths is not None
    assert (len(truths), truths.undistorted, truths.source) == (3, False, str(npz))
    start_ns = int(START_S) * 10**9
    for _ in range(2):  # it may be read again
        found = list(truths)
        assert [truth.start_ns - start_ns for truth in found] == [
            pytest.approx(t, abs=240) for t in (0, 50_000_000, 100_000_000)
        ]
        assert found[-1].end_ns - start_ns == pytest.approx(160_000_000, abs=240)
        for truth, k in zip(found, (0, 1, 3), strict=True):
            check_flow(truth, frames[k])


def test_mvsec_flow_of_the_truth_file(tmp_path: Path):
    path = write_mvsec(tmp_path, some_events(10))
    frames = flow_frames(3)
    with h5py.File(tmp_path / "indoor_flying1_gt.hdf5", "w") as file:
        file.create_dataset(
            "davis/left/flow_dist", data=frames, compression="lzf", chunks=(1, 2, *MVSEC_SIZE)
        )
        file["davis/left/flow_dist_ts"] = START_S + np.arange(3) * 0.05
    truths = open_recording(path).flow_truth()
    assert truths is not None
    found = list(truths)
    assert len(found) == 2
    for truth, frame in zip(found, frames, strict=False):
        check_flow(truth, frame)


def test_mvsec_flow_is_read_a_frame_at_a_time(tmp_path: Path):
    """Memory does not grow with the file: 60 frames are 86 MB."""
    import tracemalloc

    path = write_mvsec(tmp_path, some_events(10))
    frames = np.ones((60, 2, *MVSEC_SIZE))
    npz = tmp_path / "indoor_flying1_gt_flow_dist.npz"
    write_flow_npz(npz, START_S + np.arange(60) * 0.05, frames, False)
    del frames
    truths = open_recording(path).flow_truth()
    assert truths is not None
    tracemalloc.start()
    try:
        assert sum(int(truth.valid.sum()) for truth in truths) == 59 * 346 * 260
        assert tracemalloc.get_traced_memory()[1] < 15e6
    finally:
        tracemalloc.stop()


def test_dsec_events_value_by_value(tmp_path: Path):
    events = {
        "x": np.array([0, 639, 7], np.uint16),
        "y": np.array([479, 0, 8], np.uint16),
        "t": np.array([12, 12, 4_000_000_000], np.uint32),
        "p": np.array([1, 0, 1], np.uint8),
    }
    recording = open_recording(write_dsec(tmp_path, events))
    assert isinstance(recording, DsecRecording)
    assert (recording.width, recording.height, recording.topic) == (640, 480, None)
    expected = [(T_OFFSET_US + t) * 1000 for t in (12, 12, 4_000_000_000)]
    assert columns_of(events_of(recording)) == [expected, [0, 639, 7], [479, 0, 8], [1, 0, 1]]
    assert recording.calibration() is None
    assert recording.ground_truth() is None
    assert recording.flow_truth() is None
    assert recording.unusable() == {"out_of_bounds_events": 0, "time_steps_back": 0}
    with pytest.raises(RecordingError, match="without ROS messages"):
        recording.raw_messages()


def test_dsec_without_an_offset(tmp_path: Path):
    recording = open_recording(write_dsec(tmp_path, t_offset=None))
    assert events_of(recording).t[:3].tolist() == [0, 10_000, 20_000]


def test_dsec_is_read_in_blocks_and_again_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_dsec(tmp_path)
    whole = columns_of(events_of(open_recording(tmp_path)))
    monkeypatch.setattr(dsec, "BLOCK_EVENTS", 999)
    recording = open_recording(tmp_path / "events" / "left" / "events.h5")
    assert sizes_of(recording) == [999] * 5 + [5]
    assert columns_of(events_of(recording)) == whole


@pytest.mark.parametrize(
    "place", ["events/left", "events_left", "thun_00_a_events_left", "", "events/right"]
)
def test_dsec_layouts(tmp_path: Path, place: str):
    """As the large archives unpack, as those of a sequence do, and all in one directory."""
    write_dsec(tmp_path, place=place)
    prefix = "thun_00_a_" if place.startswith("thun") else ""
    if prefix:
        write_dsec_flow(
            tmp_path,
            2,
            f"{prefix}optical_flow_forward_event",
            f"{prefix}optical_flow_forward_timestamps.txt",
        )
        write_calibration(tmp_path, None, f"{prefix}calibration")
    else:
        write_dsec_flow(tmp_path, 2)
        write_calibration(tmp_path, None)
    side = "right" if place.endswith("right") else "left"
    for path in (tmp_path, tmp_path / place / "events.h5"):
        recording = open_recording(path, side)
        assert len(events_of(recording)) == 5000
        assert recording.calibration() is not None
        truths = recording.flow_truth()
        assert (truths is None) == (side == "right")
        assert truths is None or len(list(truths)) == 2


def test_dsec_flow_value_by_value(tmp_path: Path):
    images = write_dsec_flow(write_dsec(tmp_path), 3)
    truths = open_recording(tmp_path).flow_truth()
    assert truths is not None
    assert (len(truths), truths.undistorted) == (3, True)
    for _ in range(2):
        for k, (truth, image) in enumerate(zip(truths, images, strict=True)):
            assert truth.start_ns == (T_OFFSET_US + k * 100_000 + 523) * 1000
            assert truth.end_ns == (T_OFFSET_US + (k + 1) * 100_000 + 524) * 1000
            valid = image[..., 2] == 1
            assert np.array_equal(truth.valid, valid)
            expected = (image[..., :2].astype(np.float64) - 2**15) / 128
            assert truth.flow_px.dtype == np.float32
            assert np.array_equal(truth.flow_px[valid], expected[valid])
            assert np.isnan(truth.flow_px[~valid]).all()


@pytest.mark.parametrize("from_file", [True, False])
def test_dsec_undistorted_pixels_are_the_rectified_ones(tmp_path: Path, from_file: bool):
    """By the map, and where it is not there by the calibration's numbers."""
    table = rectify_map()
    write_calibration(write_dsec(tmp_path), table if from_file else None)
    info = open_recording(tmp_path).calibration()
    assert info is not None
    camera = Camera.from_camera_info(info)
    assert camera.K.tolist() == [[569.8, 0, 335.1], [0, 569.8, 221.2], [0, 0, 1]]
    assert np.abs(camera.undistorted_pixels - table).max() < 1e-3
    ahead = camera.bearings / camera.bearings[..., 2:]
    assert np.abs((ahead @ camera.K.T)[..., :2] - table).max() < 1e-3
    # Whoever knows no maps, as a ROS node, has the camera itself.
    plain = {name: info[name] for name in ("width", "height", "distortion_model", "d", "k")}
    turned = Camera.from_camera_info(plain).bearings @ np.reshape(info["r"], (3, 3)).T
    assert np.abs(turned - camera.bearings).max() < 1e-5


def test_dsec_right_camera_has_its_own_calibration(tmp_path: Path):
    write_dsec(tmp_path, place="events/right")
    write_calibration(tmp_path, None)
    info = open_recording(tmp_path, "right").calibration()
    assert info is not None
    assert info["k"][0] == 558.7
    assert np.allclose(np.reshape(info["r"], (3, 3)), cam_to_cam()["extrinsics"]["R_rect3"])


def test_a_rectification_map_is_inverted(tmp_path: Path):
    table = rectify_map()
    K = np.array([[569.8, 0, 335.1], [0, 569.8, 221.2], [0, 0, 1]])
    camera = Camera(640, 480, K, rectify_map=table)
    rng = np.random.default_rng(0)
    pixels = rng.uniform(1, [638, 478], (500, 2))
    assert np.abs(camera.distort(camera.undistort(pixels)) - pixels).max() < 1e-4
    bearings = camera.bearings[[10, 240, 470], [5, 320, 630]]
    assert np.abs(camera.project(bearings) - [[5, 10], [320, 240], [630, 470]]).max() < 1e-3
    assert np.isnan(camera.project(np.array([2.0, 0.0, 1.0]))).all()  # outside the sensor
    assert np.isnan(camera.undistort(np.array([[-0.1, 5.0], [5.0, 479.1]]))).all()
    with pytest.raises(CalibrationError, match="cannot be written"):
        camera.to_yaml(tmp_path / "camera.yaml")


@pytest.mark.parametrize("model", ["plumb_bob", "equidistant"])
def test_undistorting_between_the_pixels(model: str):
    K = np.array([[226.4, 0, 173.6], [0, 226.2, 133.7], [0, 0, 1]])
    d = [-0.36, 0.15, 0.0, 0.0] if model == "plumb_bob" else [-0.048, 0.011, -0.055, 0.02]
    camera = Camera(346, 260, K, model, np.array(d))
    pixels = np.random.default_rng(0).uniform(0, [345, 259], (500, 2))
    undistorted = camera.undistort(pixels)
    assert np.abs(camera.distort(undistorted) - pixels).max() < 0.01
    grid = np.stack(np.meshgrid(np.arange(346.0), np.arange(260.0)), axis=-1)
    assert np.abs(camera.distort(camera.undistorted_pixels) - grid).max() < 1e-3


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (np.zeros((480, 640)), r"\[480, 640\]; expected \[480, 640, 2\]"),
        (np.zeros((640, 480, 2)), "expected"),
        (np.full((480, 640, 2), np.nan), "no finite"),
    ],
)
def test_a_map_that_is_none_is_refused(table: np.ndarray, expected: str):
    with pytest.raises(CalibrationError, match=expected):
        Camera(640, 480, np.eye(3), rectify_map=table)


def test_a_flow_of_raw_pixels_on_undistorted_ones():
    """A turn about the optical axis: known on both kinds of pixels."""
    K = np.array([[226.4, 0, 173.6], [0, 226.2, 133.7], [0, 0, 1]])
    camera = Camera(346, 260, K, "plumb_bob", np.array([-0.36, 0.15, 0.0, 0.0]))
    angle = 0.03
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    grid = np.stack(np.meshgrid(np.arange(346.0), np.arange(260.0)), axis=-1)

    def turned(undistorted: np.ndarray) -> np.ndarray:
        xy = (undistorted - K[:2, 2]) / K[[0, 1], [0, 1]]
        return xy @ turn.T * K[[0, 1], [0, 1]] + K[:2, 2]

    raw = camera.distort(turned(camera.undistorted_pixels)) - grid
    valid = np.isfinite(raw[..., 0]) & np.isfinite(raw[..., 1])
    valid[50:60, 50:60] = False
    raw[~valid] = np.nan
    found = on_undistorted_pixels(FlowTruth(5, 9, raw.astype(np.float32), valid), camera)
    assert (found.start_ns, found.end_ns) == (5, 9)
    expected = turned(grid) - grid
    assert found.valid.mean() > 0.8
    assert np.abs(found.flow_px - expected)[found.valid].max() < 0.02
    assert np.linalg.norm(expected, axis=-1).max() > 5
    hole = camera.undistort(np.array([54.5, 54.5])).round().astype(int)
    assert not found.valid[hole[1], hole[0]]
    assert np.isnan(found.flow_px[hole[1], hole[0]]).all()


def test_windows_out_of_order_are_refused():
    for windows in ([[0, 5], [0, 6]], [[4, 4]], [[10, 20], [5, 9]]):
        with pytest.raises(RecordingError, match="not in the order of time"):
            FlowTruths(np.array(windows, np.int64), True, "here", lambda: iter(()))


def damage(path: Path) -> Path:
    """Cut in the middle, as a broken download leaves it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def one_line(error: EventBinningError, path: Path) -> None:
    assert "\n" not in str(error)
    assert str(path) in str(error)


@pytest.mark.parametrize("library", ["h5py", "hdf5plugin"])
def test_without_the_libraries_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
):
    paths = [write_mvsec(tmp_path / "a", some_events(9)), write_dsec(tmp_path / "b")]
    monkeypatch.setitem(sys.modules, library, None)
    for path in paths:
        with pytest.raises(RecordingError, match="pip install h5py hdf5plugin") as caught:
            open_recording(path)
        one_line(caught.value, path)


def test_damaged_files_are_one_line(tmp_path: Path):
    mvsec_file = damage(write_mvsec(tmp_path / "a", some_events(9)))
    with pytest.raises(RecordingError, match="cannot be read as HDF5") as caught:
        open_recording(mvsec_file)
    one_line(caught.value, mvsec_file)

    random = tmp_path / "random.h5"
    random.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(RecordingError, match="cannot be read as HDF5"):
        open_recording(random)

    dsec_file = write_dsec(tmp_path / "b") / "events/left/events.h5"
    with h5py.File(dsec_file) as file:
        chunk = file["events/x"].id.get_chunk_info(2)  # type: ignore[union-attr]
    data = bytearray(dsec_file.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    dsec_file.write_bytes(bytes(data))
    with pytest.raises(RecordingError, match="/events/x: cannot be read") as caught:
        events_of(open_recording(dsec_file))
    one_line(caught.value, dsec_file)


def test_damaged_flow_is_one_line(tmp_path: Path):
    path = write_mvsec(tmp_path, some_events(9))
    npz = tmp_path / "indoor_flying1_gt_flow_dist.npz"
    times = START_S + np.arange(3) * 0.05
    write_flow_npz(npz, times, flow_frames(3), True)
    data = bytearray(npz.read_bytes())
    part = slice(len(data) // 4, len(data) // 4 + 1000)
    data[part] = b"\x55" * 1000
    npz.write_bytes(bytes(data))
    truths = open_recording(path).flow_truth()
    assert truths is not None
    with pytest.raises(RecordingError, match="is damaged") as caught:
        list(truths)
    one_line(caught.value, npz)
    damage(npz)
    with pytest.raises(RecordingError, match="cannot be read") as caught:
        open_recording(path).flow_truth()
    one_line(caught.value, npz)
    write_flow_npz(npz, times[:2], flow_frames(3), True)
    with pytest.raises(RecordingError, match="one frame for each of the timestamps"):
        open_recording(path).flow_truth()

    sequence = write_dsec(tmp_path / "dsec")
    write_dsec_flow(sequence, 2)
    image = sequence / "flow/forward/000004.png"
    cv2.imwrite(str(image), np.zeros(DSEC_SIZE, np.uint8))
    truths = open_recording(sequence).flow_truth()
    assert truths is not None
    with pytest.raises(RecordingError, match=r"found uint8 \[480, 640\]") as caught:
        list(truths)
    one_line(caught.value, image)
    image.unlink()
    with pytest.raises(RecordingError, match="holds 1 images, expected 2"):
        open_recording(sequence).flow_truth()
    (sequence / "flow/forward_timestamps.txt").write_text("# from, to\nabc, def\n")
    with pytest.raises(RecordingError, match="from_timestamp_us"):
        open_recording(sequence).flow_truth()
    (sequence / "flow/forward_timestamps.txt").unlink()
    with pytest.raises(RecordingError, match="no times of the flow"):
        open_recording(sequence).flow_truth()


def test_other_contents_are_one_line(tmp_path: Path):
    def opened(name: str, **datasets: Any) -> RecordingError:
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            for key, value in datasets.items():
                file[key.replace("__", "/")] = value
        with pytest.raises(RecordingError) as caught:
            open_recording(path)
        one_line(caught.value, path)
        return caught.value

    assert "holds no /events/t, but depth at its top" in str(opened("a.h5", depth=[1.0]))
    wrong = opened("b_data.hdf5", davis__left__events=np.zeros((5, 3)))
    assert "found float64 [5, 3], expected numbers [N, 4]" in str(wrong)
    assert "no events" in str(opened("c_data.hdf5", davis__left__events=np.zeros((0, 4))))
    uneven = opened("d.h5", events__t=[1, 2], events__x=[1], events__y=[1, 1], events__p=[0, 1])
    assert "/events/x: found int64 [1], expected numbers [2]" in str(uneven)
    assert "holds no /davis/left/events" in str(opened("e_data.hdf5", davis__x=[1.0]))
    rows = some_events(9)
    rows[4, 0] = np.nan
    with pytest.raises(RecordingError, match="not finite"):
        events_of(open_recording(write_mvsec(tmp_path / "nan", rows)))
    write_mvsec(tmp_path / "two", some_events(9), "outdoor_day1")
    write_mvsec(tmp_path / "two", some_events(9), "outdoor_day2")
    with pytest.raises(RecordingError, match=r"outdoor_day1_data\.hdf5.*choose"):
        open_recording(tmp_path / "two")
    with pytest.raises(RecordingError, match="expected left or right"):
        open_recording(write_dsec(tmp_path / "dsec"), "/events")


@pytest.mark.parametrize("content", ["cam0: 5", "{", "cam0: {intrinsics: [1, 2]}", "5"])
def test_other_calibrations_are_one_line(tmp_path: Path, content: str):
    path = write_mvsec(tmp_path, some_events(9))
    camchain = tmp_path / "camchain-imucam-indoor_flying.yaml"
    camchain.write_text(content)
    with pytest.raises(CalibrationError) as caught:
        open_recording(path).calibration()
    one_line(caught.value, camchain)
    sequence = write_dsec(tmp_path / "dsec")
    write_calibration(sequence, None)
    (sequence / "calibration/cam_to_cam.yaml").write_text(content)
    with pytest.raises(CalibrationError) as caught:
        open_recording(sequence).calibration()
    one_line(caught.value, sequence / "calibration/cam_to_cam.yaml")
