"""The true motion that came with a recording."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.types import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from scipy.interpolate import CubicSpline

MAX_GAP_NS = 100 * NS_PER_MS
MIN_SAMPLES = 4  # a cubic needs them
POSE_DIFFERENCE_S = 0.04


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Samples of the camera's true velocity, in the camera's own frame.

    t_ns: int64 [M], strictly rising, on the clock of the recording.
    angular_velocity: float64 [M, 3], rad/s; linear_velocity: float64 [M, 3], m/s, or None.
    source: the file or topic, and how it was had from there.
    """

    t_ns: NDArray[np.int64]
    angular_velocity: NDArray[np.float64]
    linear_velocity: NDArray[np.float64] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        rows = {
            "angular_velocity": self.angular_velocity,
            "linear_velocity": self.linear_velocity,
        }
        for name, values in rows.items():
            if values is not None and values.shape != (len(self.t_ns), 3):
                raise RecordingError(
                    f"{name} of {self.source or 'the ground truth'} has shape "
                    f"{list(values.shape)}, expected [{len(self.t_ns)}, 3]"
                )
        if len(self.t_ns) < MIN_SAMPLES or np.any(np.diff(self.t_ns) <= 0):
            raise RecordingError(
                f"{self.source or 'the ground truth'} has {len(self.t_ns)} samples, expected at "
                f"least {MIN_SAMPLES} of strictly rising time"
            )

    def at(self, t_ns: ArrayLike) -> NDArray[np.float64]:
        """Angular velocity in rad/s at times t_ns [...], as [..., 3].

        A cubic spline through the samples; NaN outside their span and in gaps above 100 ms.
        """
        return self._evaluate(self._angular_spline, np.asarray(t_ns, np.int64))

    def linear_at(self, t_ns: ArrayLike) -> NDArray[np.float64] | None:
        """Linear velocity in m/s at times t_ns, like `at`; None where it is not known."""
        spline = self._linear_spline
        return None if spline is None else self._evaluate(spline, np.asarray(t_ns, np.int64))

    @cached_property
    def _angular_spline(self) -> CubicSpline:
        return self._spline(self.angular_velocity)

    @cached_property
    def _linear_spline(self) -> CubicSpline | None:
        return None if self.linear_velocity is None else self._spline(self.linear_velocity)

    def _spline(self, values: NDArray[np.float64]) -> CubicSpline:
        from scipy.interpolate import CubicSpline

        return CubicSpline((self.t_ns - self.t_ns[0]) / NS_PER_S, values)

    def _evaluate(self, spline: CubicSpline, t_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        values = np.asarray(spline((t_ns - self.t_ns[0]) / NS_PER_S))
        after = np.clip(np.searchsorted(self.t_ns, t_ns, side="right"), 1, len(self.t_ns) - 1)
        gap = self.t_ns[after] - self.t_ns[after - 1] > MAX_GAP_NS
        outside = (t_ns < self.t_ns[0]) | (t_ns > self.t_ns[-1])
        values[outside | gap] = np.nan
        return values


def read_gyro(path: Path) -> GroundTruth:
    """Angular velocity of an imu.txt: t ax ay az gx gy gz (s, m/s^2, rad/s)."""
    rows = _load_rows(path, "t ax ay az gx gy gz")
    return GroundTruth(_to_ns(rows[:, 0]), rows[:, 4:7].copy(), None, f"{path} (gyroscope)")


def read_poses(path: Path) -> GroundTruth:
    """Velocities of a groundtruth.txt: t px py pz qx qy qz qw, the camera's pose in the world.

    Central differences over 40 ms, in the camera's frame: between neighbouring samples (5 ms), a
    motion-capture system's jitter of a tenth of a degree would make an error of 20 deg/s.
    """
    from scipy.spatial.transform import Rotation, Slerp

    rows = _load_rows(path, "t px py pz qx qy qz qw")
    seconds = rows[:, 0]
    half = POSE_DIFFERENCE_S / 2
    middle = (seconds - half >= seconds[0]) & (seconds + half <= seconds[-1])
    before, after = seconds[middle] - half, seconds[middle] + half
    try:
        world_from_camera = Slerp(seconds, Rotation.from_quat(rows[:, 4:8]))
    except ValueError as error:
        raise RecordingError(f"{path} holds no valid orientation track: {error}") from None
    start, now, end = (world_from_camera(t) for t in (before, seconds[middle], after))
    angular = (start.inv() * end).as_rotvec() / POSE_DIFFERENCE_S
    positions = [
        np.stack([np.interp(t, seconds, rows[:, axis]) for axis in (1, 2, 3)], axis=1)
        for t in (before, after)
    ]
    linear = now.inv().apply((positions[1] - positions[0]) / POSE_DIFFERENCE_S)
    source = f"{path} (poses, differentiated over {1e3 * POSE_DIFFERENCE_S:.0f} ms)"
    return GroundTruth(_to_ns(seconds[middle]), angular, linear, source)


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
