"""Errors of angular velocity, with units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from event_binning_grad.estimation import EgomotionEstimate
from event_binning_grad.events.ground_truth import GroundTruth

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AngularVelocityError:
    """Errors of the estimates against the truth at their stamps.

    Attributes:
        compared: estimates that could be compared: trusted ones where the truth is known.
        rms_deg_s: root of the mean square over estimates and axes, deg/s.
        rms_per_axis_deg_s: about x, y, z, camera frame, deg/s.
        median_deg_s: median over estimates of the error vector's length, deg/s.
    """

    compared: int
    rms_deg_s: float
    rms_per_axis_deg_s: tuple[float, float, float]
    median_deg_s: float


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
    x, y, z = np.sqrt((error**2).mean(axis=0))
    return AngularVelocityError(
        len(error),
        float(np.sqrt((error**2).mean())),
        (float(x), float(y), float(z)),
        float(np.median(np.linalg.norm(error, axis=1))),
    )


def estimates_error(
    estimates: Sequence[EgomotionEstimate], truth: GroundTruth | None
) -> AngularVelocityError | None:
    """The error of the trusted estimates (those that the node would publish)."""
    trusted = [e for e in estimates if e.status.ok]
    if truth is None or not trusted:
        return None
    omega = np.array([e.angular_velocity for e in trusted])
    return angular_velocity_error([e.stamp_ns for e in trusted], omega, truth)
