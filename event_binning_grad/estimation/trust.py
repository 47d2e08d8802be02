"""How far an estimate can be trusted: its covariance, and the signs that it is wrong."""

from __future__ import annotations

import enum

import numba
import numpy as np

from event_binning_grad.estimation.contrast import ContrastPass, Float64
from event_binning_grad.estimation.solver import Point

# Events scattered at random have a structure of 1 (see `structure`).
STRUCTURE_CELL = 16
# What a bilinear vote adds to an image's sum of squares in the mean: the square of the integral of
# the squared hat.
LINEAR_SQUARES = (2 / 3) ** 2

# The sandwich covariance is too small by about this factor where the motion model fits, and by
# more where it does not, as the parts' disagreement tells. Measured on simulated windows of
# constant and of hand-like rotation, see `bench egomotion`.
_FIT_SCALE = 3.3
_MISFIT_SCALE, _MISFIT_POWER, _MISFIT_FROM = 18.0, 1.6, 0.6
_MAX_SCALE = 500.0
# Pixels sample the scene a pixel apart. Where the motion over the window is no longer than that,
# the estimate errs by about this much at the window's ends, whatever the number of events.
_LATTICE_PX = 0.2
# Standard deviation that no estimate is better than (rad/s, m/s): calibration and model are not
# exact.
MIN_STD = 2e-3
# Curvature, as a share of the greatest, that the worst observed direction is at least given. Its
# variance is then huge but finite.
_MIN_CURVATURE = 1e-6


class Status(enum.Enum):
    """Whether an estimate can be trusted, and if not, why."""

    OK = "ok"
    TOO_FEW_EVENTS = "too_few_events"
    NO_DEPTH = "no_depth"
    NO_ROTATION = "no_rotation"
    NO_STRUCTURE = "no_structure"
    NO_CONTRAST_GAIN = "no_contrast_gain"
    NOT_CONVERGED = "not_converged"
    DEADLINE = "deadline"
    UNCERTAIN = "uncertain"

    @property
    def ok(self) -> bool:
        return self is Status.OK


def covariance_of(point: Point) -> Float64:
    """[P, P] of the solver's parameters: the sandwich A^-1 B A^-1 of an M-estimator.

    A is the fixed-cotangent Hessian, with what a prior adds; B the sum of the outer products of the
    events' gradients. NaN where there is no Hessian. `lattice_std_px` and `MIN_STD` are still to
    be added.
    """
    if not np.isfinite(point.hessian).all():
        return np.full_like(point.hessian, np.nan)
    misfit = max(0.0, disagreement(point.contrast) - _MISFIT_FROM)
    scale = min(_FIT_SCALE + _MISFIT_SCALE * misfit**_MISFIT_POWER, _MAX_SCALE)
    return scale * _sandwich(point.hessian, point.scatter)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _sandwich(hessian, scatter):
    curvatures, directions = np.linalg.eigh(hessian)
    strength = np.abs(curvatures)
    strength = np.maximum(strength, _MIN_CURVATURE * strength.max() + 1e-30)
    inverse = directions / strength @ directions.T
    covariance = inverse @ scatter @ inverse
    return (covariance + covariance.T) / 2


def lattice_std_px(moved_px: float) -> float:
    """Standard deviation, in pixels at the window's ends, of what the pixels' lattice does to the
    estimate of a motion of so many pixels over the window."""
    return _LATTICE_PX / (1 + moved_px**2)


def disagreement(point: ContrastPass) -> float:
    """How differently the parts of a window pull: 1 if by chance, more if the model does not fit.

    The normalised squares of the parts' gradients, over their expectation.
    """
    return _disagreement(point.gradients, point.scatter)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _disagreement(gradients, scatter):
    values, directions = np.linalg.eigh(scatter)
    mean = gradients.sum(axis=0) / len(gradients)
    along = (gradients - mean) @ directions
    total, kept = 0.0, 0
    for n in range(len(values)):
        if values[n] > 1e-6 * max(values[-1], 1e-300):
            total += (along[:, n] ** 2).sum() / values[n]
            kept += 1
    return total / ((1 - 1 / len(gradients)) * kept) if kept else np.inf


@numba.njit(nogil=True, cache=True, error_model="numpy")
def structure(image):
    """How much more an image varies within cells of 16 bins than randomly scattered events would.

    A bilinear vote adds sum_j k_j^2 to the sum of squares, LINEAR_SQUARES in the mean over
    positions in the bin. What the density of the events varies from cell to cell does not count.
    """
    cell = STRUCTURE_CELL
    squares, means, events = 0.0, 0.0, 0.0
    for top in range(0, image.shape[0] - cell + 1, cell):
        for left in range(0, image.shape[1] - cell + 1, cell):
            total, square = np.float32(0), np.float32(0)
            for i in range(top, top + cell):
                for j in range(left, left + cell):
                    total += image[i, j]
                    square += image[i, j] * image[i, j]
            squares += square
            means += total * total / cell**2
            events += total
    return (squares - means) / max(events * LINEAR_SQUARES, 1e-12)
