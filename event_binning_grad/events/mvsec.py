"""MVSEC, the Multi Vehicle Stereo Event Camera Dataset (Zhu et al., RA-L 2018), in HDF5."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import CalibrationError, RecordingError
from event_binning_grad.events.flow_truth import FlowTruths
from event_binning_grad.events.ground_truth import GroundTruth, PoseTrack, velocities
from event_binning_grad.events.hdf5 import dataset, open_hdf5, read
from event_binning_grad.events.in_order import Unusable, events_in_order
from event_binning_grad.events.types import NS_PER_S, Events
from event_binning_grad.geometry.camera import load_yaml

WIDTH, HEIGHT = 346, 260  # both cameras are DAVIS 346B
DATA_SUFFIX = "_data.hdf5"
BLOCK_EVENTS = 1 << 16
_OUTSIDE = 65535  # a coordinate that no sensor has
_CAMERAS = {"left": "cam0", "right": "cam1"}


class MvsecRecording:
    """A sequence NAME_data.hdf5 with what lies beside it.

    Beside it: NAME_gt.hdf5 (poses, flow), NAME_gt_flow_dist.npz (flow; also in ../gt_flow), and
    camchain-imucam-SCENE.yaml (calibration; also in SCENE_calib), where SCENE is NAME without its
    number.

    path: that file, or a directory with one such file.
    side: "left" or "right" camera; the truth is of the left one alone.
    """

    topic: str | None = None
    kind, encoding = "MVSEC", ""
    width, height = WIDTH, HEIGHT

    def __init__(self, path: Path, side: str = "left") -> None:
        self.path = path
        self.side = side
        self._file = _data_file(path)
        self._name = self._file.name.removesuffix(DATA_SUFFIX).removesuffix(".hdf5")
        self._unusable = Unusable()
        with open_hdf5(self._file) as file:
            if not len(self._events(file)):
                raise RecordingError(f"{self._file} holds no events of the {side} camera")

    def packets(self) -> Iterator[Events]:
        """The events in blocks, in the order of time; see `events_in_order`."""
        return events_in_order(self._blocks(), WIDTH, HEIGHT, self._file, self._unusable)

    def raw_messages(self) -> Iterator[Any]:
        """HDF5 holds no ROS messages: always raises RecordingError."""
        raise RecordingError(f"{self.path} is an MVSEC recording without ROS messages: need a bag")

    def unusable(self) -> dict[str, int]:
        """What packets() could not use as it was, by reason, after it ran."""
        return asdict(self._unusable)

    def warnings(self) -> list[str]:
        """Nothing: HDF5 that is cut short cannot be opened at all."""
        return []

    def calibration(self) -> dict[str, Any] | None:
        """The camera as fields of sensor_msgs/CameraInfo; None if there is no calibration file."""
        path, camera = self._camera()
        if path is None:
            return None
        try:
            fx, fy, cx, cy = map(float, camera["intrinsics"])
            d = list(map(float, camera["distortion_coeffs"]))
            width, height = map(int, camera["resolution"])
            model = str(camera["distortion_model"])
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(
                f"{path}: found {error!r}; expected {_CAMERAS[self.side]} with intrinsics (fx fy "
                "cx cy), distortion_model, distortion_coeffs and resolution"
            ) from None
        return {
            "width": width,
            "height": height,
            "distortion_model": model,
            "d": d,
            "k": [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0],
        }

    def ground_truth(self) -> GroundTruth | None:
        """Angular velocity from the left camera's gyroscope, turned into its frame, where there is
        a calibration file, else from the poses of NAME_gt.hdf5; linear velocity from these."""
        if self.side != "left":
            return None
        turning, moving = self._gyro(), self._poses()
        if turning is None or moving is None:
            return turning or moving
        source = f"{turning.source}; linear velocity: {moving.source}"
        return GroundTruth(
            turning.t_ns, turning.angular_velocity, moving.linear_velocity, source, moving.t_ns
        )

    def inertial(self) -> Iterator[tuple[int, NDArray[np.float64]]] | None:
        """stamp_ns, and angular velocity (rad/s) and acceleration (m/s²) [6], in the IMU's own
        frame; None if the file holds no IMU."""
        samples = self._imu()
        return None if samples is None else zip(samples[0].tolist(), samples[1], strict=True)

    def flow_truth(self) -> FlowTruths | None:
        """The flow between the lidar's depth images (20 Hz), on the sensor's own pixels.

        The data set's authors call it the flow of the distorted (raw) image. A pixel without depth
        has flow zero there, so zeros are not valid.
        """
        if self.side != "left":
            return None
        name = f"{self._name}_gt_flow_dist.npz"
        for path in (self._file.with_name(name), self._file.parent.parent / "gt_flow" / name):
            if path.is_file():
                times, frames = _read_times(path), _NpzFrames(path)
                return _truths(times, frames.count, str(path), frames.read)
        path = self._gt_file
        if not path.is_file():
            return None
        with open_hdf5(path) as file:
            if "davis/left/flow_dist" not in file:
                return None
            count = len(dataset(file, "davis/left/flow_dist", None, 2, HEIGHT, WIDTH))
            times = read(dataset(file, "davis/left/flow_dist_ts", count))

        def frames_of_hdf5() -> Iterator[NDArray[Any]]:
            with open_hdf5(path) as file:
                flows = dataset(file, "davis/left/flow_dist", count, 2, HEIGHT, WIDTH)
                for k in range(count):
                    yield read(flows, k)

        return _truths(times, count, f"{path} (flow_dist)", frames_of_hdf5)

    def frame_times_ns(self) -> NDArray[np.int64] | None:
        """Times of the camera's grey frames, from one to the next of which (or to the fourth) flow
        is compared in the literature; None where the file has none."""
        name = f"davis/{self.side}/image_raw_ts"
        with open_hdf5(self._file) as file:
            if name not in file:
                return None
            t_ns = _to_ns(read(dataset(file, name, None)))
        return t_ns[_rising(t_ns)]

    @property
    def _gt_file(self) -> Path:
        return self._file.with_name(f"{self._name}_gt.hdf5")

    def _events(self, file: Any) -> Any:
        return dataset(file, f"davis/{self.side}/events", None, 4)

    def _blocks(self) -> Iterator[tuple[NDArray[Any], ...]]:
        with open_hdf5(self._file) as file:
            events = self._events(file)
            for start in range(0, len(events), BLOCK_EVENTS):
                rows = read(events, slice(start, start + BLOCK_EVENTS)).astype(np.float64)
                if not np.isfinite(rows).all():
                    raise RecordingError(
                        f"{self._file}: an event after number {start} holds a number that is not "
                        "finite, expected rows x y t p"
                    )
                pixels = rows[:, :2]
                pixels[(pixels < 0) | (pixels > _OUTSIDE)] = _OUTSIDE
                x, y = pixels.T.astype(np.uint16)
                yield _to_ns(rows[:, 2]), x, y, (rows[:, 3] > 0).astype(np.uint8)

    def _camera(self) -> tuple[Path | None, Mapping[str, Any]]:
        """The calibration file and what it says of the camera."""
        scene = self._name.rstrip("0123456789")
        name, directory = f"camchain-imucam-{scene}.yaml", self._file.parent
        for path in (directory / name, directory / f"{scene}_calib" / name):
            if path.is_file():
                content = load_yaml(path)
                camera = content.get(_CAMERAS[self.side]) if isinstance(content, Mapping) else None
                if not isinstance(camera, Mapping):
                    raise CalibrationError(f"{path}: holds no {_CAMERAS[self.side]}")
                return path, camera
        return None, {}

    def _gyro(self) -> GroundTruth | None:
        path, camera = self._camera()
        if path is None or "T_cam_imu" not in camera:
            return None
        try:
            R_camera_from_imu = np.array(camera["T_cam_imu"], np.float64).reshape(4, 4)[:3, :3]
        except (TypeError, ValueError):
            raise CalibrationError(f"{path}: T_cam_imu is no 4 x 4 matrix") from None
        samples = self._imu()
        if samples is None:
            return None
        t_ns, motion = samples
        omega = motion[:, :3] @ R_camera_from_imu.T
        return GroundTruth(t_ns, omega, None, f"{self._file} (gyroscope)")

    def _imu(self) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Times in ns, and angular velocity and acceleration [N, 6]; None if there is none."""
        name = f"davis/{self.side}/imu"
        with open_hdf5(self._file) as file:
            if name not in file:
                return None
            rows = read(dataset(file, name, None, 6))
            t_ns = _to_ns(read(dataset(file, f"{name}_ts", len(rows))))
        fresh = _rising(t_ns)
        if not fresh.any():
            return None
        return t_ns[fresh], rows[fresh][:, [3, 4, 5, 0, 1, 2]]  # rows are ax ay az gx gy gz

    def _poses(self) -> GroundTruth | None:
        if not self._gt_file.is_file():
            return None
        with open_hdf5(self._gt_file) as file:
            # The odometry is locally consistent; the poses are where loops were closed.
            name = next((n for n in ("odometry", "pose") if f"davis/left/{n}" in file), None)
            if name is None:
                return None
            poses = read(dataset(file, f"davis/left/{name}", None, 4, 4))
            t_ns = _to_ns(read(dataset(file, f"davis/left/{name}_ts", len(poses))))
        fresh = _rising(t_ns)
        if np.count_nonzero(fresh) < 2:
            return None
        track = PoseTrack(t_ns[fresh], poses[fresh, :3, :3], poses[fresh, :3, 3])
        return velocities(track, f"{self._gt_file} {name}")


def _data_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{DATA_SUFFIX}"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise RecordingError(f"{path} holds {names}: expected one *{DATA_SUFFIX}: choose the file")
    return found[0]


def _to_ns(seconds: NDArray[Any]) -> NDArray[np.int64]:
    """Seconds since 1970 as ns, exactly rounded: times 1e9 they no longer fit a float64."""
    whole = np.floor(seconds)
    return whole.astype(np.int64) * NS_PER_S + np.rint((seconds - whole) * NS_PER_S).astype(
        np.int64
    )


def _rising(t_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a time is later than all before it."""
    before = np.maximum.accumulate(t_ns)
    return np.concatenate([[True], t_ns[1:] > before[:-1]])[: len(t_ns)]


def _truths(times: NDArray[Any], count: int, source: str, read_frames: Any) -> FlowTruths:
    """Frame k is the flow from the k-th time to the next; the last one has no end.

    times: float64 [count], s; read_frames: yields [2, H, W] px.
    """
    if not np.isfinite(times).all():
        raise RecordingError(f"{source}: a time is not finite")
    t_ns = _to_ns(times)
    windows = np.stack([t_ns[:-1], t_ns[1:]], axis=1)
    lasting = windows[:, 1] > windows[:, 0]

    def fields() -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        # All are read to the end: only there is a damaged archive seen.
        for lasts, frame in zip([*lasting, False], read_frames(), strict=True):
            if lasts:
                with np.errstate(over="ignore", invalid="ignore"):  # such are not valid
                    flow = np.ascontiguousarray(np.moveaxis(frame, 0, -1), np.float32)
                yield flow, np.isfinite(flow).all(axis=-1) & (flow != 0).any(axis=-1)

    return FlowTruths(windows[lasting], False, source, fields)


def _read_times(path: Path) -> NDArray[np.float64]:
    with _npz_member(path, "timestamps") as (member, shape, dtype):
        if len(shape) != 1:
            raise RecordingError(f"{path}: timestamps are {list(shape)}, expected [N]")
        return np.frombuffer(member.read(), dtype).astype(np.float64)


class _NpzFrames:
    """x_flow_dist and y_flow_dist of an npz, a frame at a time: whole they are gigabytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = len(_read_times(path))
        for name in ("x_flow_dist", "y_flow_dist"):
            with _npz_member(path, name) as (_, shape, _):
                if shape != (self.count, HEIGHT, WIDTH):
                    raise RecordingError(
                        f"{path}: {name} is {list(shape)}, expected "
                        f"{[self.count, HEIGHT, WIDTH]}, one frame for each of the timestamps"
                    )

    def read(self) -> Iterator[NDArray[Any]]:
        with (
            _npz_member(self._path, "x_flow_dist") as (x, _, x_type),
            _npz_member(self._path, "y_flow_dist") as (y, _, y_type),
        ):
            for _ in range(self.count):
                yield np.stack([self._frame(x, x_type), self._frame(y, y_type)])
            for member in (x, y):
                self._bytes(member, 1)  # at the end the checksum is compared

    def _frame(self, member: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
        data = self._bytes(member, HEIGHT * WIDTH * dtype.itemsize)
        if len(data) != HEIGHT * WIDTH * dtype.itemsize:
            raise RecordingError(f"{self._path} is damaged: a frame ends early: fetch it again")
        return np.frombuffer(data, dtype).reshape(HEIGHT, WIDTH)

    def _bytes(self, member: Any, count: int) -> bytes:
        try:
            return member.read(count)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise RecordingError(f"{self._path} is damaged: {error}: fetch it again") from None


@contextmanager
def _npz_member(path: Path, name: str) -> Iterator[tuple[Any, tuple[int, ...], np.dtype[Any]]]:
    """An array of an npz as its bytes (behind the header), shape and type."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran_order, dtype = header(member)
            if fortran_order or dtype.kind not in "iuf":
                raise ValueError(f"{name} holds {dtype}, expected numbers in C order")
            yield member, shape, dtype
    except RecordingError:
        raise
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RecordingError(
            f"{path} cannot be read: {error}; expected an npz with timestamps, x_flow_dist and "
            "y_flow_dist"
        ) from None
