"""How the camera turns: angular velocity as a function of time, and the orientation it leads to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import ConfigError

Float64 = NDArray[np.float64]


class Motion(Protocol):
    """A rotation of the camera, known at every time."""

    def angular_velocity(self, t_s: Float64) -> Float64:
        """ω [M, 3] in rad/s, camera frame, at the times t_s [M] in seconds."""
        ...


@dataclass(frozen=True)
class ConstantMotion:
    """The same angular velocity (rad/s, camera frame) all the time."""

    omega_rad_s: tuple[float, float, float]

    def angular_velocity(self, t_s: Float64) -> Float64:
        return np.tile(np.asarray(self.omega_rad_s, np.float64), (len(t_s), 1))


@dataclass(frozen=True, eq=False)
class SineMotion:
    """ω_a(t) = Σ_k amplitude[a, k] sin(2π frequency[a, k] t + phase[a, k]), a = x, y, z.

    All three are [3, K]: rad/s, Hz, rad.
    """

    amplitude_rad_s: Float64
    frequency_hz: Float64
    phase_rad: Float64

    def angular_velocity(self, t_s: Float64) -> Float64:
        t = np.asarray(t_s, np.float64)[:, None, None]
        angle = 2.0 * np.pi * self.frequency_hz * t + self.phase_rad
        return (self.amplitude_rad_s * np.sin(angle)).sum(axis=-1)


@dataclass(frozen=True, eq=False)
class TrackMotion:
    """A measured track: samples (t_s [M] s, omega_rad_s [M, 3]) joined by a cubic spline."""

    t_s: Float64
    omega_rad_s: Float64

    def __post_init__(self) -> None:
        t, omega = np.asarray(self.t_s), np.asarray(self.omega_rad_s)
        if t.ndim != 1 or len(t) < 4 or omega.shape != (len(t), 3):
            raise ConfigError(
                f"motion track: times of shape {t.shape} with rates of shape {omega.shape};"
                " expected [M] and [M, 3] with M >= 4"
            )
        if not (np.isfinite(t).all() and np.isfinite(omega).all() and (np.diff(t) > 0.0).all()):
            raise ConfigError("motion track: times must increase and all values must be finite")

    @cached_property
    def _spline(self) -> Callable[[Float64], Float64]:
        from scipy.interpolate import CubicSpline

        return CubicSpline(self.t_s, self.omega_rad_s)

    def angular_velocity(self, t_s: Float64) -> Float64:
        first, last = float(self.t_s[0]), float(self.t_s[-1])
        slack = 1e-9  # rounding of step times, not extrapolation
        if len(t_s) and (np.min(t_s) < first - slack or np.max(t_s) > last + slack):
            raise ConfigError(
                f"motion track covers {first:.3f} to {last:.3f} s, asked for {np.min(t_s):.3f}"
                f" to {np.max(t_s):.3f} s: shorten the duration"
            )
        return self._spline(t_s)


def hand_motion(
    duration_s: float,
    peak_rad_s: tuple[float, float, float] = (5.0, 5.0, 5.0),
    *,
    seed: int = 0,
    frequency_hz: tuple[float, float] = (0.3, 1.5),
    terms: int = 4,
) -> SineMotion:
    """A random hand-like rotation whose |ω| reaches peak_rad_s on each axis within duration_s."""
    rng = np.random.default_rng([seed, 1])
    shape = (3, terms)
    lowest, highest = np.log(frequency_hz)
    frequency = np.exp(rng.uniform(lowest, highest, shape))
    motion = SineMotion(rng.uniform(0.3, 1.0, shape), frequency, rng.uniform(0.0, 2 * np.pi, shape))
    t = np.linspace(0.0, duration_s, max(2, math.ceil(duration_s * 1000.0)) + 1)
    scale = np.asarray(peak_rad_s) / np.abs(motion.angular_velocity(t)).max(axis=0)
    return SineMotion(motion.amplitude_rad_s * scale[:, None], frequency, motion.phase_rad)


def integrate_orientation(motion: Motion, t_s: Float64, start: Float64 | None = None) -> Float64:
    """R_world_from_camera [M, 3, 3] at the times t_s [M]; start (or the identity) is at t_s[0].

    Fourth-order Magnus: a step from two Gauss points, exact for ω linear in time up to h⁵.
    """
    from scipy.spatial.transform import Rotation

    t = np.asarray(t_s, np.float64)
    h = np.diff(t)[:, None]
    gauss = math.sqrt(3.0) / 6.0
    middle = t[:-1, None] + 0.5 * h
    first = motion.angular_velocity((middle - gauss * h)[:, 0])
    second = motion.angular_velocity((middle + gauss * h)[:, 0])
    # R' = R [ω]x: the commutator's sign is that of right multiplication.
    theta = 0.5 * h * (first + second) + (math.sqrt(3.0) / 12.0) * h * h * np.cross(first, second)
    steps = Rotation.from_rotvec(theta).as_matrix() if len(theta) else np.empty((0, 3, 3))
    orientation = np.empty((len(t), 3, 3))
    orientation[0] = np.eye(3) if start is None else start
    for k, step in enumerate(steps):
        orientation[k + 1] = orientation[k] @ step
    return orientation
