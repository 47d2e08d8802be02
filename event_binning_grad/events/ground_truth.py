"""The true motion that came with a recording."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.types import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from scipy.interpolate import CubicSpline
    from scipy.spatial.transform import Slerp

MAX_GAP_NS = 100 * NS_PER_MS
MIN_SAMPLES = 4  # a cubic needs them
POSE_DIFFERENCE_S = 0.04
_POSE_COLUMNS = "t px py pz qx qy qz qw"


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Samples of the camera's true velocity, in the camera's own frame.

    t_ns: int64 [M], strictly rising, on the clock of the recording.
    angular_velocity: float64 [M, 3], rad/s.
    linear_velocity: float64 [M, 3], m/s, or None.
    source: the file or topic, and how it was had from there.
    linear_t_ns: int64 [L], strictly rising: the times of linear_velocity [L, 3], where they are
        not t_ns.
    """

    t_ns: NDArray[np.int64]
    angular_velocity: NDArray[np.float64]
    linear_velocity: NDArray[np.float64] | None = None
    source: str = ""
    linear_t_ns: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        rows = {
            "angular_velocity": (self.t_ns, self.angular_velocity),
            "linear_velocity": (self._linear_times, self.linear_velocity),
        }
        for name, (times, values) in rows.items():
            if values is not None and values.shape != (len(times), 3):
                raise RecordingError(
                    f"{name} of {self.source or 'the ground truth'} has shape "
                    f"{list(values.shape)}, expected [{len(times)}, 3]"
                )
            if len(times) < MIN_SAMPLES or np.any(np.diff(times) <= 0):
                raise RecordingError(
                    f"{self.source or 'the ground truth'} has {len(times)} samples, expected at "
                    f"least {MIN_SAMPLES} of strictly rising time"
                )

    def at(self, t_ns: ArrayLike) -> NDArray[np.float64]:
        """Angular velocity in rad/s at times t_ns [...], as [..., 3].

        A cubic spline through the samples; NaN outside their span and in gaps above 100 ms.
        """
        return _at(self._angular_spline, self.t_ns, np.asarray(t_ns, np.int64))

    def linear_at(self, t_ns: ArrayLike) -> NDArray[np.float64] | None:
        """Linear velocity in m/s at times t_ns, like `at`; None where it is not known."""
        spline = self._linear_spline
        if spline is None:
            return None
        return _at(spline, self._linear_times, np.asarray(t_ns, np.int64))

    @property
    def _linear_times(self) -> NDArray[np.int64]:
        return self.t_ns if self.linear_t_ns is None else self.linear_t_ns

    @cached_property
    def _angular_spline(self) -> CubicSpline:
        return _spline(self.t_ns, self.angular_velocity)

    @cached_property
    def _linear_spline(self) -> CubicSpline | None:
        if self.linear_velocity is None:
            return None
        return _spline(self._linear_times, self.linear_velocity)


def _spline(sampled_ns: NDArray[np.int64], values: NDArray[np.float64]) -> CubicSpline:
    from scipy.interpolate import CubicSpline

    return CubicSpline((sampled_ns - sampled_ns[0]) / NS_PER_S, values)


def _at(
    spline: CubicSpline, sampled_ns: NDArray[np.int64], t_ns: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The spline's values at times; NaN where there are no samples near."""
    values = np.asarray(spline((t_ns - sampled_ns[0]) / NS_PER_S))
    after = np.clip(np.searchsorted(sampled_ns, t_ns, side="right"), 1, len(sampled_ns) - 1)
    gap = sampled_ns[after] - sampled_ns[after - 1] > MAX_GAP_NS
    outside = (t_ns < sampled_ns[0]) | (t_ns > sampled_ns[-1])
    values[outside | gap] = np.nan
    return values


@dataclass(frozen=True, eq=False)
class PoseTrack:
    """The camera's measured poses in a world.

    t_ns: int64 [M], strictly rising; R_world_from_camera: [M, 3, 3]; position: [M, 3] in m.
    """

    t_ns: NDArray[np.int64]
    R_world_from_camera: NDArray[np.float64]
    position: NDArray[np.float64]

    def relative(self, from_ns: int, to_ns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """R [3, 3] and t [3] (m): what is at P in the camera's frame at from_ns is at R P + t at
        to_ns. Both times within the track."""
        seconds = (np.array([from_ns, to_ns]) - self.t_ns[0]) / NS_PER_S
        start, end = self._orientation(seconds).as_matrix()
        moved = [np.interp(seconds, self._seconds, self.position[:, axis]) for axis in range(3)]
        first, last = np.stack(moved, axis=1)
        return end.T @ start, end.T @ (first - last)

    @cached_property
    def _seconds(self) -> NDArray[np.float64]:
        return (self.t_ns - self.t_ns[0]) / NS_PER_S

    @cached_property
    def _orientation(self) -> Slerp:
        from scipy.spatial.transform import Rotation, Slerp

        return Slerp(self._seconds, Rotation.from_matrix(self.R_world_from_camera))


def read_pose_track(path: Path) -> PoseTrack:
    """The poses of a groundtruth.txt: t px py pz qx qy qz qw."""
    from scipy.spatial.transform import Rotation

    rows = _load_rows(path, _POSE_COLUMNS)
    try:
        orientation = Rotation.from_quat(rows[:, 4:8]).as_matrix()
    except ValueError as error:
        raise RecordingError(f"{path} holds no valid orientation track: {error}") from None
    return PoseTrack(_to_ns(rows[:, 0]), orientation, rows[:, 1:4].copy())


def read_gyro(path: Path) -> GroundTruth:
    """Angular velocity of an imu.txt, see read_imu."""
    t_ns, motion = read_imu(path)
    return GroundTruth(t_ns, motion[:, :3].copy(), None, f"{path} (gyroscope)")


def read_imu(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Times in ns, and angular velocity (rad/s) and acceleration (m/s^2) [N, 6], of an imu.txt:
    t ax ay az gx gy gz (s, m/s^2, rad/s)."""
    rows = _load_rows(path, "t ax ay az gx gy gz")
    return _to_ns(rows[:, 0]), rows[:, [4, 5, 6, 1, 2, 3]]


def read_poses(path: Path) -> GroundTruth:
    """Velocities of a groundtruth.txt: t px py pz qx qy qz qw, the camera's pose in the world."""
    return velocities(read_pose_track(path), str(path))


def velocities(poses: PoseTrack, name: str) -> GroundTruth:
    """Velocities of measured poses; name: where they are from.

    Central differences over 40 ms, in the camera's frame: between neighbouring samples (5 ms), a
    motion-capture system's jitter of a tenth of a degree would make an error of 20 deg/s.
    """
    from scipy.spatial.transform import Rotation, Slerp

    seconds = (poses.t_ns - poses.t_ns[0]) / NS_PER_S
    half = POSE_DIFFERENCE_S / 2
    middle = (seconds - half >= seconds[0]) & (seconds + half <= seconds[-1])
    before, after = seconds[middle] - half, seconds[middle] + half
    try:
        world_from_camera = Slerp(seconds, Rotation.from_matrix(poses.R_world_from_camera))
    except ValueError as error:
        raise RecordingError(f"{name} holds no valid orientation track: {error}") from None
    start, now, end = (world_from_camera(t) for t in (before, seconds[middle], after))
    angular = (start.inv() * end).as_rotvec() / POSE_DIFFERENCE_S
    positions = [
        np.stack([np.interp(t, seconds, poses.position[:, axis]) for axis in range(3)], axis=1)
        for t in (before, after)
    ]
    linear = now.inv().apply((positions[1] - positions[0]) / POSE_DIFFERENCE_S)
    source = f"{name} (poses, differentiated over {1e3 * POSE_DIFFERENCE_S:.0f} ms)"
    return GroundTruth(poses.t_ns[middle], angular, linear, source)


def read_gyro_and_poses(gyro: Path, poses: Path) -> GroundTruth:
    """Angular velocity of an imu.txt, linear velocity of a groundtruth.txt beside it.

    Poses that cannot be read leave the linear velocity unknown, and `source` says why.
    """
    turning = read_gyro(gyro)
    try:
        moving = read_poses(poses)
    except RecordingError as error:
        return replace(turning, source=f"{turning.source}, no linear velocity: {error}")
    source = f"{turning.source}; linear velocity: {moving.source}"
    return GroundTruth(
        turning.t_ns, turning.angular_velocity, moving.linear_velocity, source, moving.t_ns
    )


def read_constant(path: Path, first_ns: int, last_ns: int) -> GroundTruth:
    """The one angular velocity of a motion.txt (wx wy wz, rad/s), over the events' time span."""
    rows = np.atleast_2d(_load(path, "wx wy wz"))
    if rows.shape != (1, 3):
        raise RecordingError(f"{path} holds {rows.size} numbers, expected 3: wx wy wz in rad/s")
    count = max(MIN_SAMPLES, (last_ns - first_ns) // (MAX_GAP_NS // 2) + 2)
    last_ns = max(last_ns, first_ns + MIN_SAMPLES)
    t_ns = np.unique(np.linspace(first_ns, last_ns, count).round().astype(np.int64))
    return GroundTruth(t_ns, np.repeat(rows, len(t_ns), axis=0), None, f"{path} (constant)")


def _to_ns(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(seconds * NS_PER_S).astype(np.int64)


def _load_rows(path: Path, columns: str) -> NDArray[np.float64]:
    """The rows with these columns, those with a repeated time left out."""
    rows = np.atleast_2d(_load(path, columns))
    if rows.shape[1] != len(columns.split()) or len(rows) < MIN_SAMPLES:
        raise RecordingError(
            f"{path} has {len(rows)} rows of {rows.shape[1]} columns, "
            f"expected at least {MIN_SAMPLES} of: {columns}"
        )
    fresh = np.diff(_to_ns(rows[:, 0]), prepend=-(1 << 62)) > 0
    return rows[fresh]


def _load(path: Path, columns: str) -> NDArray[np.float64]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty file is refused by whoever counts the rows
            values = np.loadtxt(path, dtype=np.float64, comments="#")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RecordingError(f"{path} cannot be read as rows of {columns}: {reason}") from None
    if not np.isfinite(values).all():
        raise RecordingError(f"{path} holds a number that is not finite, expected {columns}")
    return values
