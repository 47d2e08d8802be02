"""Newton steps on the unbiased gradient, coarse to fine, within a trust region.

The contrast's value is rough where its gradient is not, so no step is judged by the value: a line
search would stall. Steps are bounded in pixels of displacement instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from event_binning_grad.estimation.contrast import ContrastPass, Float64

# A step may move the events at the window's ends by this many bins: farther, the gradient, which
# sees about a bin around every event, says nothing.
_MAX_STEP_BINS = 1.5
# A level coarser than the finest is left as soon as steps are below this share of its bin.
_COARSE_TOLERANCE_BINS = 0.25
# Directions whose curvature is below this share of the greatest are taken to have that much: the
# data say little about them and a full Newton step would be noise.
_MIN_CURVATURE = 1e-3


@dataclass(frozen=True)
class Solution:
    """Where the solver ended.

    Attributes:
        parameters: [6].
        last: the last pass, at the finest level, one step before `parameters`.
        last_step_px: displacement of that step at the window's ends.
        passes: passes over the events, all levels together.
    """

    parameters: Float64
    last: ContrastPass
    last_step_px: float
    passes: int


def maximise(
    evaluate: Callable[[Float64, float], ContrastPass],
    start: Float64,
    bin_sizes: Sequence[float],
    pixels_per_unit: float,
    tolerance_px: float,
    max_steps: int,
) -> Solution:
    """Climbs from `start` through levels of ever smaller bins.

    Args:
        evaluate: one pass at parameters [6] and a bin size in pixels.
        start: [6] motion parameters.
        bin_sizes: pixels, coarse to fine; at least one.
        pixels_per_unit: displacement of an event at the window's end for a unit of a parameter.
        tolerance_px: a finest-level step of less displacement ends the climb.
        max_steps: steps at most at every level.
    """
    parameters, passes = np.array(start, dtype=np.float64), 0
    for bin_size in bin_sizes[:-1]:
        tolerance_px_here = _COARSE_TOLERANCE_BINS * bin_size
        level = _climb(
            evaluate, parameters, bin_size, pixels_per_unit, tolerance_px_here, max_steps
        )
        parameters, passes = level.parameters, passes + level.passes
    finest = _climb(evaluate, parameters, bin_sizes[-1], pixels_per_unit, tolerance_px, max_steps)
    return replace(finest, passes=passes + finest.passes)


def _climb(
    evaluate: Callable[[Float64, float], ContrastPass],
    parameters: Float64,
    bin_size: float,
    pixels_per_unit: float,
    tolerance_px: float,
    max_steps: int,
) -> Solution:
    """Newton steps at one bin size, until one is shorter than the tolerance."""
    limit, previous = _MAX_STEP_BINS * bin_size / pixels_per_unit, np.zeros_like(parameters)
    passes = 0
    while True:
        last = evaluate(parameters, bin_size)
        passes += 1
        if not np.isfinite(last.hessian).all():  # nowhere to go from here
            return Solution(parameters, last, np.inf, passes)
        step = newton_step(last, limit)
        if step @ previous < 0:
            # Turned back: the top lies between. Half the region makes the steps settle.
            limit = min(limit, float(np.linalg.norm(step))) / 2
            step = newton_step(last, limit)
        parameters, previous = parameters + step, step
        step_px = float(np.linalg.norm(step)) * pixels_per_unit
        if step_px < tolerance_px or passes == max_steps:
            return Solution(parameters, last, step_px, passes)


def newton_step(point: ContrastPass, limit: float) -> Float64:
    """The Newton step towards a maximum, eigenvalues made negative, at most `limit` long."""
    curvatures, directions = np.linalg.eigh(point.hessian)
    strength = np.abs(curvatures)
    strength = np.maximum(strength, _MIN_CURVATURE * strength.max())
    if not strength.max() > 0:
        return np.zeros_like(point.gradient)
    step = directions @ (directions.T @ point.gradient / strength)
    length = float(np.linalg.norm(step))
    return step * min(1.0, limit / length) if length > 0 else step
