"""What an inertial sensor says of the camera's rotation over a window of events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.events.types import NS_PER_MS, NS_PER_S
from event_binning_grad.geometry.stamped import Stamped

Float64 = npt.NDArray[np.float64]

_SAMPLES = 5000  # five seconds at 1 kHz
# What the residuals do not show: the sensor's bias and its alignment to the camera.
FLOOR_STD_RAD_S = 0.02
# A few residuals say nothing of directions: the same scatter in all of them counts as this many.
_PRIOR_RESIDUALS = 4


@dataclass(frozen=True, eq=False)
class GyroFit:
    """The rotation at a time, as the samples around it have it; camera frame.

    angular_velocity: [3] rad/s; angular_acceleration: [3] rad/s^2.
    covariance: [3, 3] of angular_velocity, rad^2/s^2.
    samples: how many were fitted.
    """

    angular_velocity: Float64
    angular_acceleration: Float64
    covariance: Float64
    samples: int

    @property
    def std_rad_s(self) -> float:
        """Standard deviation of the angular velocity about the axis where it is largest."""
        return float(np.sqrt(np.linalg.eigvalsh(self.covariance)[-1]))


class GyroTrack:
    """The latest angular velocities of an IMU, in the camera's frame.

    Args:
        capacity: samples held at most.
        tolerance_ns: how far, in ns, a time of a window may be from the nearest sample.
        floor_std_rad_s: added, squared, to the variance that the residuals show.

    Attributes:
        samples: the angular velocities with their stamps, and how many came late or twice.
        refused: how many were not finite.

    Raises:
        ConfigError: a tolerance or floor that is not positive.
    """

    def __init__(
        self,
        *,
        capacity: int = _SAMPLES,
        tolerance_ns: int = 20 * NS_PER_MS,
        floor_std_rad_s: float = FLOOR_STD_RAD_S,
    ) -> None:
        for name, value in (("tolerance_ns", tolerance_ns), ("floor_std_rad_s", floor_std_rad_s)):
            if not value > 0:
                raise ConfigError(f"{name} is {value}, expected a positive number")
        self._tolerance_ns = tolerance_ns
        self._floor = floor_std_rad_s
        self.samples: Stamped[Float64] = Stamped(capacity)
        self.refused = 0

    def push(self, stamp_ns: int, angular_velocity: npt.ArrayLike) -> bool:
        """Takes a sample, [3] rad/s in the camera's frame; returns whether it is held.

        Raises:
            EventBinningError: not three numbers.
        """
        omega = np.array(angular_velocity, np.float64)
        if omega.shape != (3,):
            raise EventBinningError(
                f"angular velocity of shape {list(omega.shape)}, expected [3] rad/s"
            )
        if not np.isfinite(omega).all():
            self.refused += 1
            return False
        return self.samples.put(int(stamp_ns), omega)

    def fit(self, stamp_ns: int, start_ns: int, end_ns: int) -> GyroFit | None:
        """Angular velocity at a time, and acceleration, by least squares over a window.

        omega(t) = omega + alpha (t - stamp), through the samples in [start_ns, end_ns] and the
        ones next to it. The covariance is that of the residuals. They follow each other where
        the motion bends within the window, so it is raised by (1 + r) / (1 - r), r their
        correlation from one sample to the next, as for an autoregressive process of first order.

        None when some time of the window is farther than tolerance_ns from every sample, or only
        one sample is near it.
        """
        found = self._around(start_ns, end_ns)
        if found is None or len(found[0]) < 2:
            return None
        t_s, omega = found
        t_s = t_s - (stamp_ns - start_ns) / NS_PER_S
        middle = t_s.mean()
        spread = float(((t_s - middle) ** 2).sum())
        alpha = (t_s - middle) @ omega / spread
        at_stamp = omega.mean(0) - middle * alpha
        residuals = omega - (at_stamp + np.outer(t_s, alpha))
        count = len(t_s)
        share = 1 / count + middle**2 / spread  # variance of the line at the stamp, per sample
        follow = _correlation(residuals)
        share *= (1 + follow) / (1 - follow)
        covariance = share * _scatter(residuals) + self._floor**2 * np.eye(3)
        return GyroFit(at_stamp, alpha, covariance, count)

    def _around(self, start_ns: int, end_ns: int) -> tuple[Float64, Float64] | None:
        """Times since start_ns (s) and values [N, 3] of the samples that cover a time, or None.

        The ones next to it are among them where they are near enough.
        """
        if end_ns < start_ns:
            raise ValueError(f"a window from {start_ns} to {end_ns} ns, expected a rising time")
        stamps = self.samples.stamps_ns
        if not stamps:
            return None
        first, last = self.samples.neighbours(start_ns)[0], self.samples.neighbours(end_ns)[1]
        first = 0 if first is None else first
        last = len(stamps) - 1 if last is None else last
        # One outside may be too far to count; the ones within must then do.
        if first < last and stamps[first] < start_ns - self._tolerance_ns:
            first += 1
        if first < last and stamps[last] > end_ns + self._tolerance_ns:
            last -= 1
        t_ns = np.array(stamps[first : last + 1], np.int64)
        edges_ns = (int(t_ns[0]) - start_ns, end_ns - int(t_ns[-1]))
        gap_ns = int(np.diff(t_ns).max(initial=0))
        if max(edges_ns) > self._tolerance_ns or gap_ns > 2 * self._tolerance_ns:
            return None
        return (t_ns - start_ns) / NS_PER_S, np.stack(self.samples.values[first : last + 1])


def _scatter(residuals: Float64) -> Float64:
    """[3, 3] variance of residuals [N, 3] of a line; none where two samples are all."""
    squares, free = residuals.T @ residuals, len(residuals) - 2
    if free == 0:
        return np.zeros((3, 3))
    mean = float(np.trace(squares)) / (3 * free)
    return (squares + _PRIOR_RESIDUALS * mean * np.eye(3)) / (free + _PRIOR_RESIDUALS)


def _correlation(residuals: Float64) -> float:
    """How much residuals [N, 3] follow each other, 0 to 0.99."""
    power = float((residuals**2).sum())
    if power == 0.0:
        return 0.0
    return float(np.clip((residuals[1:] * residuals[:-1]).sum() / power, 0.0, 0.99))
