"""DSEC, a stereo event camera dataset of driving (Gehrig et al., RA-L 2021), and its optical flow
(E-RAFT, Gehrig et al., 3DV 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import CalibrationError, RecordingError
from event_binning_grad.events.flow_truth import FlowTruths
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.hdf5 import dataset, open_hdf5, read
from event_binning_grad.events.in_order import Unusable, events_in_order
from event_binning_grad.events.types import NS_PER_US, Events
from event_binning_grad.geometry.camera import Camera, load_yaml

WIDTH, HEIGHT = 640, 480
BLOCK_EVENTS = 1 << 17
# Where a sequence's files lie in its directory: as the large archives unpack, and as those of a
# single sequence do when each goes to a directory of its own name.
_EVENTS = ("events/{}/events.h5", "events_{}/events.h5", "*_events_{}/events.h5", "events.h5")
_FLOW = ("flow/forward", "*optical_flow_forward_event")
_FLOW_TIMES = ("flow/forward_timestamps.txt", "*optical_flow_forward_timestamps.txt")
_CALIBRATION = (
    "calibration/cam_to_cam.yaml", "*calibration/cam_to_cam.yaml", "cam_to_cam.yaml"
)  # fmt: skip
_CAMERAS = {"left": 0, "right": 3}
_FLOW_ZERO, _FLOW_STEPS = 1 << 15, 128  # a pixel of displacement has 128 steps


class DsecRecording:
    """A sequence: events.h5 with rectify_map.h5 beside it, cam_to_cam.yaml, and the flow.

    path: the sequence's directory, or its events.h5.
    side: "left" or "right" event camera; the flow is of the left one alone.
    Times are on the clock of the images and of the flow: t_offset is added.
    """

    topic: str | None = None
    kind, encoding = "DSEC", ""
    width, height = WIDTH, HEIGHT

    def __init__(self, path: Path, side: str = "left") -> None:
        self.path = path
        self.side = side
        file = find_events(path, side) if path.is_dir() else path
        if file is None:
            raise RecordingError(f"{path} holds no events.h5 of the {side} camera")
        self._file = file
        self._sequence = path if path.is_dir() else _sequence_of(path)
        self._unusable = Unusable()
        with open_hdf5(self._file) as content:
            if not len(_columns(content)[0]):
                raise RecordingError(f"{self._file} holds no events")

    def packets(self) -> Iterator[Events]:
        """The events in blocks, in the order of time; see `events_in_order`."""
        return events_in_order(self._blocks(), WIDTH, HEIGHT, self._file, self._unusable)

    def raw_messages(self) -> Iterator[Any]:
        """HDF5 holds no ROS messages: always raises RecordingError."""
        raise RecordingError(f"{self.path} is a DSEC recording without ROS messages: need a bag")

    def unusable(self) -> dict[str, int]:
        """What packets() could not use as it was, by reason, after it ran."""
        return asdict(self._unusable)

    def warnings(self) -> list[str]:
        """Nothing: HDF5 that is cut short cannot be opened at all."""
        return []

    def calibration(self) -> dict[str, Any] | None:
        """The camera; None if there is no cam_to_cam.yaml.

        k, d: of the camera itself. r, p, rectify_map: its rectification, as sensor_msgs/CameraInfo
        has it, and where every pixel lies in the rectified image. A Camera made of them has the
        rectified image as its undistorted one, which is where the flow is known, and the rectified
        camera's frame.
        """
        path = self._find(_CALIBRATION)
        if path is None:
            return None
        index, content = _CAMERAS[self.side], load_yaml(path)
        try:
            camera = content["intrinsics"][f"cam{index}"]
            rectified = content["intrinsics"][f"camRect{index}"]
            k, p = _matrix(camera["camera_matrix"]), _matrix(rectified["camera_matrix"])
            R = np.array(content["extrinsics"][f"R_rect{index}"], np.float64).reshape(3, 3)
            d = np.array(camera["distortion_coeffs"], np.float64).ravel()
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(
                f"{path}: found {error!r}; expected intrinsics cam{index} and camRect{index} with "
                f"camera_matrix and distortion_coeffs, and extrinsics R_rect{index}"
            ) from None
        file = self._file.with_name("rectify_map.h5")
        if file.is_file():
            with open_hdf5(file) as maps:
                table = read(dataset(maps, "rectify_map", HEIGHT, WIDTH, 2)).astype(np.float64)
        else:
            turned = Camera(WIDTH, HEIGHT, k, "plumb_bob", d).bearings @ R.T
            table = (turned / turned[..., 2:] @ p.T)[..., :2]
        return {
            "width": WIDTH,
            "height": HEIGHT,
            "distortion_model": "plumb_bob",
            "d": d.tolist(),
            "k": k.ravel().tolist(),
            "r": R.ravel().tolist(),
            "p": np.concatenate([p, np.zeros((3, 1))], axis=1).ravel().tolist(),
            "rectify_map": table,
        }

    def ground_truth(self) -> GroundTruth | None:
        """The data set gives no velocity: None."""
        return None

    def flow_truth(self) -> FlowTruths | None:
        """The flow of the left camera's rectified image, over 0.1 s each; None if there is none.

        Raises RecordingError if there are not as many images as times.
        """
        directory = self._find(_FLOW)
        if self.side != "left" or directory is None:
            return None
        files, times = sorted(directory.glob("*.png")), self._find(_FLOW_TIMES)
        if times is None:
            raise RecordingError(
                f"{directory}: no times of the flow found, expected {self._sequence}/"
                f"{_FLOW_TIMES[0]} (or {_FLOW_TIMES[1]}): fetch it"
            )
        windows = _read_windows(times)
        if len(files) != len(windows):
            raise RecordingError(
                f"{directory} holds {len(files)} images, expected {len(windows)}, one for each "
                f"line of {times}: unpack the archive again"
            )
        return FlowTruths(windows, True, str(directory), lambda: map(read_flow_png, files))

    @cached_property
    def _t_offset_us(self) -> int:
        with open_hdf5(self._file) as file:
            return int(read(dataset(file, "t_offset"), ())) if "t_offset" in file else 0

    def _blocks(self) -> Iterator[tuple[NDArray[Any], ...]]:
        with open_hdf5(self._file) as file:
            columns = _columns(file)
            for start in range(0, len(columns[0]), BLOCK_EVENTS):
                part = slice(start, start + BLOCK_EVENTS)
                t, x, y, p = (read(column, part) for column in columns)
                t_ns = (t.astype(np.int64) + self._t_offset_us) * NS_PER_US
                yield t_ns, x.astype(np.uint16), y.astype(np.uint16), (p > 0).astype(np.uint8)

    def _find(self, patterns: tuple[str, ...]) -> Path | None:
        return _first(self._sequence, patterns)


def find_events(directory: Path, side: str = "left") -> Path | None:
    """The events.h5 of a sequence's directory; None if there is none."""
    return _first(directory, tuple(pattern.format(side) for pattern in _EVENTS))


def read_flow_png(path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Flow [H, W, 2] in px and where it is valid [H, W] of a 16-bit PNG.

    Its first two channels are 128 (x, y) + 2^15, the third is 1 where they are valid.
    """
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16 or image.shape != (HEIGHT, WIDTH, 3):
        found = "no image" if image is None else f"{image.dtype} {list(image.shape)}"
        raise RecordingError(f"{path}: found {found}, expected uint16 [{HEIGHT}, {WIDTH}, 3]")
    valid, flow = image[..., 0] != 0, image[..., :0:-1].astype(np.float32)  # OpenCV's order: BGR
    flow -= np.float32(_FLOW_ZERO)
    flow /= np.float32(_FLOW_STEPS)
    return flow, valid


def _columns(file: Any) -> tuple[Any, ...]:
    """t (us), x, y, p as they lie in the file."""
    t = dataset(file, "events/t", None)
    return t, *(dataset(file, f"events/{name}", len(t)) for name in "xyp")


def _matrix(numbers: Any) -> NDArray[np.float64]:
    fx, fy, cx, cy = map(float, numbers)
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def _read_windows(path: Path) -> NDArray[np.int64]:
    """Start and end in ns of lines `from, to` (us), perhaps with the image's number behind."""
    try:
        text = path.read_text().replace(",", " ").splitlines()
        lines = [line.split() for line in text if line.strip() and not line.startswith("#")]
        rows = [(int(line[0]), int(line[1])) for line in lines]
    except (OSError, ValueError, IndexError) as error:
        raise RecordingError(
            f"{path} cannot be read: {error}; expected lines from_timestamp_us, to_timestamp_us"
        ) from None
    return np.array(rows, np.int64).reshape(-1, 2) * NS_PER_US


def _sequence_of(events: Path) -> Path:
    """The directory of the sequence to which an events.h5 belongs."""
    directory = events.absolute().parent
    if directory.name in _CAMERAS and directory.parent.name == "events":
        return directory.parent.parent
    if directory.name.endswith(("events_left", "events_right")):
        return directory.parent
    return directory


def _first(directory: Path, patterns: tuple[str, ...]) -> Path | None:
    for pattern in patterns:
        if found := sorted(directory.glob(pattern)):
            return found[0]
    return None
