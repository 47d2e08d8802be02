"""Errors of angular and linear velocity, with units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from event_binning_grad.estimation import EgomotionEstimate
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.types import NS_PER_MS, NS_PER_S

Float64 = npt.NDArray[np.float64]

# An estimate farther from the truth than this is no estimate of the same motion.
OFF_TRACK_DEG_S = 30.0
# Slower than this, or than this share of the turning in rad/s, translation does not matter.
TRANSLATES_M_S = 0.05
TRANSLATES_SHARE = 0.1
HARDLY_TURNS_RAD_S = 0.01
# An estimate stands for at most this long before and after its stamp.
_STANDS_FOR_NS = 50 * NS_PER_MS


@dataclass(frozen=True)
class AngularVelocityError:
    """Errors of the estimates against the truth at their stamps.

    Attributes:
        compared: estimates that could be compared: those where the truth is known.
        rms_deg_s: root of the mean square over estimates and axes, deg/s.
        rms_per_axis_deg_s: about x, y, z, camera frame, deg/s.
        median_deg_s: median over estimates of the error vector's length, deg/s.
    """

    compared: int
    rms_deg_s: float
    rms_per_axis_deg_s: tuple[float, float, float]
    median_deg_s: float


@dataclass(frozen=True)
class LinearVelocityError:
    """Errors of the estimates against the truth at their stamps.

    Attributes:
        compared: estimates that have a linear velocity, where the truth is known.
        rms_m_s: root of the mean square over estimates and axes, m/s.
        rms_per_axis_m_s: along x, y, z, camera frame, m/s.
        true_rms_m_s: root mean square of the true velocity's length at the same stamps, m/s.
    """

    compared: int
    rms_m_s: float
    rms_per_axis_m_s: tuple[float, float, float]
    true_rms_m_s: float

    @property
    def percent(self) -> float | None:
        """rms_m_s relative to true_rms_m_s; None where the camera did not translate."""
        return 100 * self.rms_m_s / self.true_rms_m_s if self.true_rms_m_s > 0 else None


@dataclass(frozen=True)
class TrackLoss:
    """How long a track was lost.

    Attributes:
        off_share: share of the time for which there are estimates, in which these were off by more
            than OFF_TRACK_DEG_S.
        longest_off_s: longest run of estimates that were off, s.
        longest_silence_s: longest time without an estimate, the stream's ends included, s.
    """

    off_share: float
    longest_off_s: float
    longest_silence_s: float


def angular_velocity_error(
    stamps_ns: Sequence[int], angular_velocity: Float64, truth: GroundTruth
) -> AngularVelocityError | None:
    """Compares angular velocities [M, 3] rad/s at stamps with the truth; None if none can be."""
    if not len(stamps_ns):
        return None
    error = np.degrees(angular_velocity - truth.at(np.asarray(stamps_ns, np.int64)))
    error = error[np.isfinite(error).all(axis=1)]
    if not len(error):
        return None
    rms, per_axis = _rms(error)
    return AngularVelocityError(
        len(error), rms, per_axis, float(np.median(np.linalg.norm(error, axis=1)))
    )


def linear_velocity_error(
    stamps_ns: Sequence[int], linear_velocity: Float64, truth: GroundTruth
) -> LinearVelocityError | None:
    """Compares linear velocities [M, 3] m/s at stamps with the truth; None if none can be.

    Rows of NaN are estimates without a linear velocity.
    """
    known = truth.linear_at(np.asarray(stamps_ns, np.int64)) if len(stamps_ns) else None
    if known is None:
        return None
    error = linear_velocity - known
    compared = np.isfinite(error).all(axis=1)
    if not compared.any():
        return None
    rms, per_axis = _rms(error[compared])
    true_rms = float(np.sqrt((known[compared] ** 2).sum(axis=1).mean()))
    return LinearVelocityError(int(compared.sum()), rms, per_axis, true_rms)


def true_speeds(truth: GroundTruth, stamps_ns: Sequence[int]) -> tuple[float, float | None]:
    """Root mean squares of the true angular (rad/s) and linear velocity's lengths (m/s) at stamps;
    NaN where no stamp has a truth, and None where the linear velocity is not known."""
    at_ns = np.asarray(stamps_ns, np.int64)
    speeds = []
    for velocity in (truth.at(at_ns), truth.linear_at(at_ns)):
        squares = np.empty(0) if velocity is None else (velocity**2).sum(axis=-1)
        squares = squares[np.isfinite(squares)]
        speeds.append(float(np.sqrt(squares.mean())) if len(squares) else float("nan"))
    turn_rad_s, speed_m_s = speeds
    return turn_rad_s, None if math.isnan(speed_m_s) else speed_m_s


def translation(truth: GroundTruth, stamps_ns: Sequence[int]) -> str:
    """How a true motion is no rotation, in a few words; empty where it is one, for all that is
    known, or nearly.

    It is none where the speed matters beside the turning (TRANSLATES_M_S, and TRANSLATES_SHARE
    for a scene at 1 m), or where the camera hardly turns and its speed is not known.
    """
    turn_rad_s, speed_m_s = true_speeds(truth, stamps_ns)
    turns = f"turns at {np.degrees(turn_rad_s):.1f} deg/s (RMS)"
    if speed_m_s is None:
        return turns if turn_rad_s < HARDLY_TURNS_RAD_S else ""
    if speed_m_s > max(TRANSLATES_M_S, TRANSLATES_SHARE * turn_rad_s):
        return f"translates at {speed_m_s:.2f} m/s and {turns}"
    return ""


def model_hint(model: str, truth: GroundTruth | None, stamps_ns: Sequence[int]) -> str:
    """What to do where the model is a rotation, and the true motion is none; else empty."""
    if model != "rotation" or truth is None or not stamps_ns:
        return ""
    if true_speeds(truth, stamps_ns)[1] is None or not (found := translation(truth, stamps_ns)):
        return ""
    return (
        f"by the ground truth the camera {found}: --motion-model rotation is right only if the "
        "scene is far away; else take full with a --depth, or planar"
    )


def trusted(estimates: Sequence[EgomotionEstimate]) -> list[EgomotionEstimate]:
    """Those that the node would publish."""
    return [e for e in estimates if e.status.ok]


def estimates_error(
    estimates: Sequence[EgomotionEstimate], truth: GroundTruth | None
) -> AngularVelocityError | None:
    """The error of estimates' angular velocities."""
    if truth is None or not estimates:
        return None
    return angular_velocity_error(_stamps(estimates), _omega(estimates), truth)


def estimates_linear_error(
    estimates: Sequence[EgomotionEstimate], truth: GroundTruth | None
) -> LinearVelocityError | None:
    """The error of estimates' linear velocities."""
    if truth is None or not estimates:
        return None
    velocity = np.array([e.linear_velocity for e in estimates])
    return linear_velocity_error(_stamps(estimates), velocity, truth)


def normalised_squared_errors(
    estimates: Sequence[EgomotionEstimate], truth: GroundTruth | None
) -> Float64:
    """e^T C^-1 e of estimates' angular velocities, where the truth is known.

    The mean is 3 where the covariances C are right (the NEES of the filtering literature: Bar-
    Shalom, Li, Kirubarajan, Estimation with Applications to Tracking and Navigation, 5.4).
    """
    if truth is None or not estimates:
        return np.empty(0)
    error = _omega(estimates) - truth.at(np.asarray(_stamps(estimates), np.int64))
    return normalised_squares(error, np.array([e.covariance for e in estimates]))


def normalised_squared_linear_errors(
    estimates: Sequence[EgomotionEstimate], truth: GroundTruth | None
) -> Float64:
    """The same of the linear velocities."""
    if truth is None or not estimates:
        return np.empty(0)
    known = truth.linear_at(np.asarray(_stamps(estimates), np.int64))
    if known is None:
        return np.empty(0)
    error = np.array([e.linear_velocity for e in estimates]) - known
    return normalised_squares(error, np.array([e.linear_covariance for e in estimates]))


def normalised_squares(error: Float64, covariance: Float64) -> Float64:
    """[K] e^T C^-1 e of those errors [M, n] and covariances [M, n, n] that are known."""
    known = np.isfinite(error).all(axis=1) & np.isfinite(covariance).all(axis=(1, 2))
    error, covariance = error[known], covariance[known]
    return np.einsum("mi,mi->m", error, np.linalg.solve(covariance, error[..., None])[..., 0])


def track_loss(
    estimates: Sequence[EgomotionEstimate], truth: GroundTruth, start_ns: int, end_ns: int
) -> TrackLoss:
    """When estimates, sorted by stamp, were off within a stream of [start_ns, end_ns]."""
    estimates = [e for e in estimates if np.isfinite(e.angular_velocity).all()]
    if not estimates:
        return TrackLoss(float("nan"), float("nan"), (end_ns - start_ns) / NS_PER_S)
    stamps = np.array(_stamps(estimates), np.int64)
    error = np.linalg.norm(np.degrees(_omega(estimates) - truth.at(stamps)), axis=1)
    known, off = np.isfinite(error), error > OFF_TRACK_DEG_S
    gaps = np.diff(stamps)
    half = np.minimum(gaps / 2, _STANDS_FOR_NS)
    stands = np.concatenate([[0.0], half]) + np.concatenate([half, [0.0]])
    longest = run = 0.0
    for bad, span in zip(off, stands, strict=True):
        run = run + span if bad else 0.0
        longest = max(longest, run)
    silence = max(int(gaps.max(initial=0)), int(stamps[0]) - start_ns, end_ns - int(stamps[-1]))
    return TrackLoss(
        float(stands[off].sum() / max(stands[known].sum(), 1.0)),
        longest / NS_PER_S,
        silence / NS_PER_S,
    )


def _stamps(estimates: Sequence[EgomotionEstimate]) -> list[int]:
    return [e.stamp_ns for e in estimates]


def _omega(estimates: Sequence[EgomotionEstimate]) -> Float64:
    return np.array([e.angular_velocity for e in estimates])


def _rms(error: Float64) -> tuple[float, tuple[float, float, float]]:
    """Root mean square of errors [M, 3], over all and by axis."""
    x, y, z = np.sqrt((error**2).mean(axis=0))
    return float(np.sqrt((error**2).mean())), (float(x), float(y), float(z))


def scale_error(estimates: Float64, truth: Float64) -> float:
    """Slope of the regression of estimates [M, 3] on the truth, through zero, minus 1."""
    known = np.isfinite(estimates).all(axis=1)
    estimates, truth = estimates[known], truth[known]
    return float((estimates * truth).sum() / (truth * truth).sum() - 1) if len(truth) else np.nan
