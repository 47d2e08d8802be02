"""Small files in the layouts of MVSEC and DSEC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import h5py
import hdf5plugin
import numpy as np
import yaml

# 2017, as in the data set: a float64 of seconds is then good to 0.24 us.
START_S = 1_504_645_177.0
MVSEC_SIZE = (260, 346)
R_CAMERA_FROM_IMU = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
EQUIDISTANT = {
    "intrinsics": [226.4, 226.2, 173.6, 133.7],
    "distortion_coeffs": [-0.048, 0.0113, -0.0554, 0.0215],
    "distortion_model": "equidistant",
    "resolution": [346, 260],
}
T_OFFSET_US = 49_599_300_000
DSEC_SIZE = (480, 640)


def write_mvsec(directory: Path, events: np.ndarray, name: str = "indoor_flying1") -> Path:
    """NAME_data.hdf5 with these events (x, y, t after START_S, p) of the left camera."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = np.asarray(events, np.float64).copy()
    rows[:, 2] += START_S
    path = directory / f"{name}_data.hdf5"
    with h5py.File(path, "w") as file:
        file["davis/left/events"] = rows
        file["davis/right/events"] = rows[:1] + np.array([1, 0, 0, 0])
    return path


def some_events(count: int) -> np.ndarray:
    k = np.arange(count)
    return np.stack([k % 346, k % 260, k * 1e-5, np.where(k % 2, 1, -1)], axis=1)


def write_frame_times(path: Path, seconds: np.ndarray) -> None:
    """When the left camera took its grey frames, after START_S."""
    with h5py.File(path, "a") as file:
        file["davis/left/image_raw_ts"] = START_S + seconds


def write_imu(path: Path, seconds: np.ndarray, rate: np.ndarray) -> None:
    """The gyroscope's rows, of the rate in the camera's axes."""
    with h5py.File(path, "a") as file:
        acceleration = np.full_like(rate, 9.8)
        file["davis/left/imu"] = np.hstack([acceleration, rate @ R_CAMERA_FROM_IMU])
        file["davis/left/imu_ts"] = START_S + seconds


def write_camchain(path: Path, **changes: Any) -> None:
    T = np.eye(4)
    T[:3, :3] = R_CAMERA_FROM_IMU
    cam0 = EQUIDISTANT | {"T_cam_imu": T.tolist()} | changes
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({"cam0": cam0, "cam1": EQUIDISTANT}))


def flow_frames(count: int) -> np.ndarray:
    """[count, 2, H, W] px; the top rows are zero, and one pixel is not finite."""
    frames = np.random.default_rng(0).normal(0, 3, (count, 2, *MVSEC_SIZE))
    frames[:, :, :20] = 0
    frames[:, 0, 100, 50] = np.inf
    return frames


def write_flow_npz(path: Path, times: np.ndarray, frames: np.ndarray, compressed: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save = np.savez_compressed if compressed else np.savez
    save(path, timestamps=times, x_flow_dist=frames[:, 0], y_flow_dist=frames[:, 1])


def write_dsec(
    directory: Path,
    events: dict[str, Any] | None = None,
    place: str = "events/left",
    t_offset: int | None = T_OFFSET_US,
) -> Path:
    """The events of a sequence, compressed as the data set is."""
    folder = directory / place
    folder.mkdir(parents=True, exist_ok=True)
    k = np.arange(5000)
    columns = {
        "x": (k % 640).astype(np.uint16),
        "y": (k % 480).astype(np.uint16),
        "t": (k * 10).astype(np.uint32),
        "p": (k % 2).astype(np.uint8),
    } | (events or {})
    milliseconds = np.arange(int(columns["t"][-1]) // 1000 + 1 if len(columns["t"]) else 0)
    with h5py.File(folder / "events.h5", "w") as file:
        for name, values in columns.items():
            file.create_dataset(
                f"events/{name}",
                data=values,
                chunks=(1024,),
                maxshape=(None,),
                **hdf5plugin.Blosc(cname="zstd", clevel=1),
            )
        file["ms_to_idx"] = np.searchsorted(columns["t"], milliseconds * 1000)
        if t_offset is not None:
            file["t_offset"] = t_offset
    return directory


def cam_to_cam() -> dict[str, Any]:
    turn, _ = cv2.Rodrigues(np.array([0.01, -0.02, 0.005]))
    intrinsics: dict[str, Any] = {}
    for index in (0, 3):
        intrinsics[f"cam{index}"] = {
            "camera_matrix": [555.7 + index, 555.8, 342.6, 215.3],
            "distortion_coeffs": [-0.0909, 0.1834, -0.0007, 0.0004],
            "distortion_model": "radtan",
            "resolution": [640, 480],
        }
        intrinsics[f"camRect{index}"] = {
            "camera_matrix": [569.8, 569.8, 335.1, 221.2],
            "resolution": [640, 480],
        }
    rotations = {"R_rect0": turn.tolist(), "R_rect3": turn.T.tolist()}
    return {"intrinsics": intrinsics, "extrinsics": rotations}


def rectify_map() -> np.ndarray:
    """[480, 640, 2] as the data set's authors made theirs: OpenCV's undistortPoints."""
    content = cam_to_cam()
    matrices = []
    for name in ("cam0", "camRect0"):
        fx, fy, cx, cy = content["intrinsics"][name]["camera_matrix"]
        matrices.append(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]))
    pixels = np.stack(np.meshgrid(np.arange(640.0), np.arange(480.0)), axis=-1).reshape(-1, 1, 2)
    d = np.array(content["intrinsics"]["cam0"]["distortion_coeffs"])
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-12)
    turn = np.array(content["extrinsics"]["R_rect0"])
    rectified = cv2.undistortPoints(pixels, matrices[0], d, None, turn, matrices[1], criteria)
    return rectified.reshape(480, 640, 2).astype(np.float32)


def write_calibration(directory: Path, table: np.ndarray | None, place: str = "calibration"):
    (directory / place).mkdir(parents=True, exist_ok=True)
    (directory / place / "cam_to_cam.yaml").write_text(yaml.safe_dump(cam_to_cam()))
    if table is not None:
        with h5py.File(directory / "events/left/rectify_map.h5", "w") as file:
            file["rectify_map"] = table


def write_png(path: Path, image: np.ndarray) -> None:
    """An image [H, W, 3] of uint16, red first."""
    assert cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]))


def write_dsec_flow(
    directory: Path, count: int, folder: str = "flow/forward", times: str | None = None
) -> list[np.ndarray]:
    """16-bit images x, y, valid in red, green, blue; returns them."""
    rng = np.random.default_rng(1)
    (directory / folder).mkdir(parents=True, exist_ok=True)
    images = []
    for k in range(count):
        image = rng.integers(0, 1 << 16, (*DSEC_SIZE, 3)).astype(np.uint16)
        image[..., 2] = rng.random(DSEC_SIZE) < 0.3
        image[image[..., 2] == 0] = 0
        images.append(image)
        write_png(directory / folder / f"{2 + 2 * k:06d}.png", image)
    lines = ["# from_timestamp_us, to_timestamp_us"]
    lines += [
        f"{T_OFFSET_US + k * 100_000 + 523}, {T_OFFSET_US + (k + 1) * 100_000 + 524}"
        for k in range(count)
    ]
    path = directory / (times or "flow/forward_timestamps.txt")
    path.write_text("\n".join(lines) + "\n")
    return images
