"""How the camera moves: its velocities as functions of time, and the poses they lead to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import ConfigError

Float64 = NDArray[np.float64]

KNOT_S = 1e-3  # distance of the poses from which a trajectory starts its steps
_GAUSS = math.sqrt(3.0) / 6.0  # the two Gauss points of a step of length 1 lie this off its middle


class Motion(Protocol):
    """A motion of the camera, known at every time."""

    def angular_velocity(self, t_s: Float64) -> Float64:
        """ω [M, 3] in rad/s, camera frame, at the times t_s [M] in seconds."""
        ...

    def linear_velocity(self, t_s: Float64) -> Float64:
        """v [M, 3] in m/s, camera frame, at the times t_s [M] in seconds."""
        ...


@dataclass(frozen=True)
class ConstantMotion:
    """The same angular (rad/s) and linear velocity (m/s), in the camera frame, all the time."""

    omega_rad_s: tuple[float, float, float]
    velocity_m_s: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def angular_velocity(self, t_s: Float64) -> Float64:
        return np.tile(np.asarray(self.omega_rad_s, np.float64), (len(t_s), 1))

    def linear_velocity(self, t_s: Float64) -> Float64:
        return np.tile(np.asarray(self.velocity_m_s, np.float64), (len(t_s), 1))


@dataclass(frozen=True, eq=False)
class SineMotion:
    """ω_a(t) = Σ_k amplitude[a, k] sin(2π frequency[a, k] t + phase[a, k]), a = x, y, z.

    All three are [3, K]: rad/s, Hz, rad. The camera turns and stays where it is.
    """

    amplitude_rad_s: Float64
    frequency_hz: Float64
    phase_rad: Float64

    def angular_velocity(self, t_s: Float64) -> Float64:
        return Sines(self.amplitude_rad_s, self.frequency_hz, self.phase_rad)(t_s)

    def linear_velocity(self, t_s: Float64) -> Float64:
        return np.zeros((len(t_s), 3))


@dataclass(frozen=True, eq=False)
class Sines:
    """f_a(t) = Σ_k amplitude[a, k] sin(2π frequency_hz[a, k] t + phase_rad[a, k]), a = x, y, z.

    All three are [3, K]; called with times [M] in seconds it gives [M, 3].
    """

    amplitude: Float64
    frequency_hz: Float64
    phase_rad: Float64

    def __call__(self, t_s: Float64) -> Float64:
        t = np.asarray(t_s, np.float64)[:, None, None]
        angle = 2.0 * np.pi * self.frequency_hz * t + self.phase_rad
        return (self.amplitude * np.sin(angle)).sum(axis=-1)

    def derivative(self) -> Sines:
        """By time, a second."""
        rate = 2.0 * np.pi * self.frequency_hz
        return Sines(self.amplitude * rate, self.frequency_hz, self.phase_rad + 0.5 * np.pi)

    def scaled(self, scale: Float64) -> Sines:
        """Each axis times its scale [3]."""
        return Sines(self.amplitude * scale[:, None], self.frequency_hz, self.phase_rad)


@dataclass(frozen=True, eq=False)
class SwingMotion:
    """A camera that swings about a pose and comes back to it, however long it lasts.

    Its orientation is Exp(rotation(t)) in rad and its position translation(t) in m, in a fixed
    frame. So ω = J_r(r) r' and v = R⊤ p', with J_r the right Jacobian of SO(3) (Barfoot, State
    Estimation for Robotics, section 7.1).
    """

    rotation: Sines
    translation: Sines

    def angular_velocity(self, t_s: Float64) -> Float64:
        r, rate = self._rotation_vector(t_s), self.rotation.derivative()(t_s)
        angle = np.linalg.norm(r, axis=1, keepdims=True)
        versine = 0.5 * np.sinc(0.5 * angle / np.pi) ** 2  # (1 - cos a) / a²
        third = _third_coefficient(angle)
        once = np.cross(r, rate)
        return rate - versine * once + third * np.cross(r, once)

    def linear_velocity(self, t_s: Float64) -> Float64:
        from scipy.spatial.transform import Rotation

        turned = Rotation.from_rotvec(self._rotation_vector(t_s))
        return turned.inv().apply(self.translation.derivative()(t_s))

    def _rotation_vector(self, t_s: Float64) -> Float64:
        """From the orientation at time 0, about which the swing takes place."""
        return self.rotation(t_s) - self.rotation(np.zeros(1))


def _third_coefficient(angle: Float64) -> Float64:
    """(a - sin a) / a³; below 0.02 rad by its series, where the closed form cancels."""
    large = np.where(angle > 0.02, angle, 1.0)
    closed = (large - np.sin(large)) / large**3
    return np.where(angle > 0.02, closed, (1.0 - angle**2 / 20.0) / 6.0)


@dataclass(frozen=True, eq=False)
class TrackMotion:
    """A measured track: samples (t_s [M] s, omega_rad_s [M, 3]) joined by a cubic spline.

    velocity_m_s: [M, 3] in the camera frame; None: the camera stays where it is.
    """

    t_s: Float64
    omega_rad_s: Float64
    velocity_m_s: Float64 | None = None

    def __post_init__(self) -> None:
        _check_track(self.t_s, {"rates": (self.omega_rad_s, 3)})
        if self.velocity_m_s is not None:
            _check_track(self.t_s, {"velocities": (self.velocity_m_s, 3)})

    @cached_property
    def _splines(self) -> tuple[Callable[[Float64], Float64], ...]:
        from scipy.interpolate import CubicSpline

        values = (self.omega_rad_s, self.velocity_m_s)
        return tuple(CubicSpline(self.t_s, v) for v in values if v is not None)

    def angular_velocity(self, t_s: Float64) -> Float64:
        _check_covered(self.t_s, t_s)
        return self._splines[0](t_s)

    def linear_velocity(self, t_s: Float64) -> Float64:
        _check_covered(self.t_s, t_s)
        return np.zeros((len(t_s), 3)) if self.velocity_m_s is None else self._splines[1](t_s)


@dataclass(frozen=True, eq=False)
class PoseTrackMotion:
    """A track of poses: t_s [M] s, position_m [M, 3] and quaternion_xyzw [M, 4], world from camera.

    The world is any fixed frame. Positions are joined by a cubic spline, orientations by a spline
    of continuous angular acceleration; the velocities are their exact derivatives.
    """

    t_s: Float64
    position_m: Float64
    quaternion_xyzw: Float64

    def __post_init__(self) -> None:
        columns = {"positions": (self.position_m, 3), "quaternions": (self.quaternion_xyzw, 4)}
        _check_track(self.t_s, columns)
        if (np.linalg.norm(self.quaternion_xyzw, axis=1) < 1e-6).any():
            raise ConfigError("motion track: a quaternion of length zero; expected length 1")

    @cached_property
    def _orientation(self) -> Any:
        from scipy.spatial.transform import Rotation, RotationSpline

        return RotationSpline(self.t_s, Rotation.from_quat(self.quaternion_xyzw))

    @cached_property
    def _position(self) -> Any:
        from scipy.interpolate import CubicSpline

        return CubicSpline(self.t_s, self.position_m)

    def angular_velocity(self, t_s: Float64) -> Float64:
        _check_covered(self.t_s, t_s)
        return self._orientation(t_s, 1)

    def linear_velocity(self, t_s: Float64) -> Float64:
        _check_covered(self.t_s, t_s)
        return self._orientation(t_s).inv().apply(self._position(t_s, 1))


def _check_track(t_s: Float64, columns: dict[str, tuple[Float64, int]]) -> None:
    t = np.asarray(t_s)
    for name, (values, width) in columns.items():
        values = np.asarray(values)
        if t.ndim != 1 or len(t) < 4 or values.shape != (len(t), width):
            raise ConfigError(
                f"motion track: times of shape {t.shape} with {name} of shape {values.shape};"
                f" expected [M] and [M, {width}] with M >= 4"
            )
        if not (np.isfinite(t).all() and np.isfinite(values).all() and (np.diff(t) > 0.0).all()):
            raise ConfigError("motion track: times must increase and all values must be finite")


def _check_covered(track_s: Float64, t_s: Float64) -> None:
    first, last = float(track_s[0]), float(track_s[-1])
    slack = 1e-9  # rounding of step times, not extrapolation
    if len(t_s) and (np.min(t_s) < first - slack or np.max(t_s) > last + slack):
        raise ConfigError(
            f"motion track covers {first:.3f} to {last:.3f} s, asked for {np.min(t_s):.3f}"
            f" to {np.max(t_s):.3f} s: shorten the duration"
        )


def hand_motion(
    duration_s: float,
    peak_rad_s: tuple[float, float, float] = (5.0, 5.0, 5.0),
    peak_m_s: tuple[float, float, float] = (0.0, 0.0, 0.0),
    *,
    seed: int = 0,
    frequency_hz: tuple[float, float] = (0.3, 1.5),
    terms: int = 4,
    swing: bool = False,
) -> SineMotion | SwingMotion:
    """A random hand-like motion whose |ω| reaches peak_rad_s on each axis within duration_s.

    Where peak_m_s is not zero, or swing is asked for, the camera swings about its pose at the start
    and keeps turned to what is before it there; |v| reaches peak_m_s. Then the axes are coupled: a
    swing about two axes turns the camera a little about the third one too.
    """
    shape = (3, terms)
    if swing or any(peak_m_s):
        return _hand_swing(duration_s, peak_rad_s, peak_m_s, seed, frequency_hz, shape)
    rng = np.random.default_rng([seed, 1])
    lowest, highest = np.log(frequency_hz)
    frequency = np.exp(rng.uniform(lowest, highest, shape))
    motion = SineMotion(rng.uniform(0.3, 1.0, shape), frequency, rng.uniform(0.0, 2 * np.pi, shape))
    scale = np.asarray(peak_rad_s) / _peak(motion.angular_velocity(_dense_times(duration_s)))
    return SineMotion(motion.amplitude_rad_s * scale[:, None], frequency, motion.phase_rad)


def _hand_swing(
    duration_s: float,
    peak_rad_s: tuple[float, float, float],
    peak_m_s: tuple[float, float, float],
    seed: int,
    frequency_hz: tuple[float, float],
    shape: tuple[int, int],
) -> SwingMotion:
    rng = np.random.default_rng([seed, 5])
    lowest, highest = np.log(frequency_hz)

    def sines() -> Sines:
        frequency = np.exp(rng.uniform(lowest, highest, shape))
        speed = rng.uniform(0.3, 1.0, shape)
        # It begins in the middle of its swings, more or less, one way or the other.
        phase = rng.choice([0.0, np.pi], shape) + rng.uniform(-0.4, 0.4, shape)
        return Sines(speed / (2.0 * np.pi * frequency), frequency, phase)

    t = _dense_times(duration_s)
    rotation, translation = sines(), sines()
    rotation = rotation.scaled(np.asarray(peak_rad_s) / _peak(rotation.derivative()(t)))
    translation = translation.scaled(np.asarray(peak_m_s) / _peak(translation.derivative()(t)))
    for _ in range(10):  # the axes are coupled: each step comes nearer to the peaks on all of them
        motion = SwingMotion(rotation, translation)
        rotation = rotation.scaled(_towards(peak_rad_s, motion.angular_velocity(t)))
        translation = translation.scaled(_towards(peak_m_s, motion.linear_velocity(t)))
    return SwingMotion(rotation, translation)


def _dense_times(duration_s: float) -> Float64:
    return np.linspace(0.0, duration_s, max(2, math.ceil(duration_s * 1000.0)) + 1)


def _peak(values: Float64) -> Float64:
    """The largest absolute value [3] on each axis of [M, 3]."""
    return np.abs(values).max(axis=0)


def _towards(peak: tuple[float, float, float], values: Float64) -> Float64:
    """By what [3] to scale each axis of values [M, 3]; an axis that is to rest stays at rest."""
    return np.clip(np.asarray(peak) / np.maximum(_peak(values), 1e-12), 0.5, 2.0)


def integrate_orientation(motion: Motion, t_s: Float64, start: Float64 | None = None) -> Float64:
    """R_world_from_camera [M, 3, 3] at the times t_s [M]; start (or the identity) is at t_s[0].

    Fourth-order Magnus: a step from two Gauss points, exact for ω linear in time up to h⁵.
    """
    from scipy.spatial.transform import Rotation

    t = np.asarray(t_s, np.float64)
    theta = _rotation_vectors(motion, t[:-1], np.diff(t))
    steps = Rotation.from_rotvec(theta).as_matrix() if len(theta) else np.empty((0, 3, 3))
    orientation = np.empty((len(t), 3, 3))
    orientation[0] = np.eye(3) if start is None else start
    for k, step in enumerate(steps):
        orientation[k + 1] = orientation[k] @ step
    return orientation


def _rotation_vectors(motion: Motion, start_s: Float64, length_s: Float64) -> Float64:
    """The rotation vectors [M, 3] of steps of length_s [M] that begin at start_s [M]."""
    h = length_s[:, None]
    middle = start_s[:, None] + 0.5 * h
    first = motion.angular_velocity((middle - _GAUSS * h)[:, 0])
    second = motion.angular_velocity((middle + _GAUSS * h)[:, 0])
    # R' = R [ω]x: the commutator's sign is that of right multiplication.
    return 0.5 * h * (first + second) + (math.sqrt(3.0) / 12.0) * h * h * np.cross(first, second)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The camera's poses from time 0, where it is the world's origin, to duration_s.

    Integrated over steps of 1 ms once; any time in between is one shorter step from there, so a
    pose depends on its time alone.
    """

    motion: Motion
    duration_s: float

    def poses(self, t_s: Float64) -> tuple[Float64, Float64]:
        """R_world_from_camera [M, 3, 3] and positions [M, 3] in m at the times t_s [M]."""
        from scipy.spatial.transform import Rotation

        t = np.asarray(t_s, np.float64)
        if len(t) and not (np.min(t) >= 0.0 and np.max(t) <= self.duration_s + 1e-9):
            raise ConfigError(
                f"pose at {np.min(t):g} to {np.max(t):g} s; expected 0 to {self.duration_s:g} s,"
                " what the simulation spans"
            )
        knots, orientation, position = self._knots
        k = np.clip(np.searchsorted(knots, t, side="right") - 1, 0, len(knots) - 1)
        start, length = knots[k], np.maximum(t - knots[k], 0.0)
        turns = Rotation.from_rotvec(_rotation_vectors(self.motion, start, length)).as_matrix()
        moved = position[k] + _displacements(self.motion, start, length, orientation[k])
        return orientation[k] @ turns, moved

    @cached_property
    def _knots(self) -> tuple[Float64, Float64, Float64]:
        count = max(1, math.ceil(self.duration_s / KNOT_S - 1e-9))
        knots = np.minimum(KNOT_S * np.arange(count + 1), self.duration_s)
        orientation = integrate_orientation(self.motion, knots)
        steps = _displacements(self.motion, knots[:-1], np.diff(knots), orientation[:-1])
        position = np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])
        return knots, orientation, position


def _displacements(
    motion: Motion, start_s: Float64, length_s: Float64, orientation: Float64
) -> Float64:
    """How far [M, 3], in the world, steps go that begin with orientation [M, 3, 3]: ∫ R v dt."""
    from scipy.spatial.transform import Rotation

    h, total = length_s[:, None], np.zeros((len(start_s), 3))
    middle = start_s[:, None] + 0.5 * h
    for side in (-_GAUSS, _GAUSS):
        part = 0.5 + side  # the share of the step at which this Gauss point lies
        theta = _rotation_vectors(motion, start_s, part * length_s)
        turned = orientation @ Rotation.from_rotvec(theta).as_matrix()
        velocity = motion.linear_velocity((middle + side * h)[:, 0])
        total += 0.5 * h * np.einsum("mij,mj->mi", turned, velocity)
    return total
