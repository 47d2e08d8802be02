"""Newton steps on the unbiased gradient, coarse to fine, within a trust region.

The contrast's value is rough where its gradient is not, so no step is judged by the value: a line
search would stall. Steps are bounded in pixels of displacement instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from event_binning_grad.estimation.contrast import ContrastPass, Float64

# A step may move the events at the window's ends by this many bins: farther, the gradient, which
# sees about a bin around every event, says nothing.
MAX_STEP_BINS = 1.5
# A level coarser than the finest is left as soon as steps are below this share of its bin.
COARSE_TOLERANCE_BINS = 0.25
# Directions whose curvature is below this share of the greatest are taken to have that much: the
# data say little about them and a full Newton step would be noise.
MIN_CURVATURE = 1e-3
# A step at the finest level is the last one if the gradient that it follows is this share of its
# own noise, or if it is shorter than this.
MAX_SCORE = 1.0
NOTHING_PX = 0.003

# Compiled because they come with every pass, and numpy takes microseconds for an operation.
_FLAGS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}


@dataclass(frozen=True)
class Point:
    """One pass, in the solver's units: parameters [P] in pixels of displacement.

    Attributes:
        value: of the objective.
        gradient: [P].
        hessian: [P, P].
        scatter: [P, P] sum over the events of the outer products of their gradients.
        contrast: the pass that it came from, without what a prior adds, in its own units.
    """

    value: float
    gradient: Float64
    hessian: Float64
    scatter: Float64
    contrast: ContrastPass


@dataclass(frozen=True)
class Scaling:
    """Between the solver's parameters, in pixels of displacement, and the motion's; and a prior.

    Attributes:
        active: [P] indices of the motion parameters that are estimated.
        scales: [P] pixels a unit of each of them.
        fixed: [11] motion parameters, of which those that are not estimated stay.
        prior_mean: [P] pixels.
        prior_information: [P] 1/pixels^2.
    """

    active: npt.NDArray[np.int64]
    scales: Float64
    fixed: Float64
    prior_mean: Float64
    prior_information: Float64

    def scaled(self, motion: Float64) -> Float64:
        """[P] pixels of motion parameters [11]."""
        return motion[self.active] * self.scales

    def motion(self, scaled: Float64) -> Float64:
        """[11] motion parameters of [P] pixels."""
        motion = self.fixed.copy()
        motion[self.active] = scaled / self.scales
        return motion

    def point(self, contrast: ContrastPass, scaled: Float64) -> Point:
        """A pass at [P] pixels, as the solver sees it."""
        parts = _in_pixels(
            contrast.gradients, contrast.hessian, contrast.scatter, self.scales, self.prior_mean,
            self.prior_information, scaled,
        )  # fmt: skip
        return Point(contrast.value, *parts, contrast)


@numba.njit(**_FLAGS)
def _in_pixels(gradients, hessian, scatter, scales, prior_mean, prior_information, scaled):
    """Gradient, Hessian and scatter matrix by parameters in pixels, with a prior."""
    count = len(scales)
    gradient = np.zeros(count)
    hessian, scatter = hessian.copy(), scatter.copy()
    spread, bend = 0.0, 0.0
    for a in range(count):
        for part in range(len(gradients)):
            gradient[a] += gradients[part, a] / scales[a]
        for b in range(count):
            scale = 1 / (scales[a] * scales[b])
            hessian[a, b] *= scale
            scatter[a, b] *= scale
        spread += scatter[a, a]
        bend += abs(hessian[a, a])
    # The contrast is no log-likelihood. Were it one, its Hessian and its scatter matrix would
    # agree in size, so their ratio is the unit in which the prior's information counts.
    unit = spread / max(bend, 1e-30)
    for a in range(count):
        information = unit * prior_information[a]
        gradient[a] -= information * (scaled[a] - prior_mean[a])
        hessian[a, a] -= information
        # The prior's own gradient at the truth varies, too: by its information.
        scatter[a, a] += unit * information
    return gradient, hessian, scatter


class Level(NamedTuple):
    """What the passes of a climb look at.

    Attributes:
        bin_size: pixels.
        share: of the events.
    """

    bin_size: float
    share: float = 1.0


Evaluate = Callable[[Float64, Level], Point]


@dataclass(frozen=True)
class Solution:
    """Where the solver ended.

    Attributes:
        parameters: [P], pixels.
        last: the last pass, one step before `parameters`.
        level: of that pass, the finest one unless it was late.
        last_step_px: length of that step.
        evaluations: how many passes, at all levels together.
        events: how many events they took.
        late: the time was up before the end.
    """

    parameters: Float64
    last: Point
    level: Level
    last_step_px: float
    evaluations: int
    events: int
    late: bool = False


def maximise(
    evaluate: Evaluate,
    start: Float64,
    levels: Sequence[Level],
    tolerance_px: float,
    max_steps: int,
    is_late: Callable[[], bool] = lambda: False,
) -> Solution:
    """Climbs from `start` through levels of ever smaller bins, or of more events.

    Args:
        evaluate: one pass at parameters [P] and a level.
        start: [P], parameters scaled to pixels of displacement at the window's ends.
        levels: coarse to fine; at least one.
        tolerance_px: a finest-level step shorter than this ends the climb.
        max_steps: steps at most at every level.
        is_late: whether to stop now; asked after every pass.
    """
    *coarse, finest = levels
    evaluations, events = 0, 0
    found = None
    for level in coarse:
        tolerance = COARSE_TOLERANCE_BINS * level.bin_size
        found = _climb(evaluate, start, level, tolerance, max_steps, is_late)
        start = found.parameters
        evaluations, events = evaluations + found.evaluations, events + found.events
        if found.late:
            break
    if found is None or not found.late:
        found = _climb(evaluate, start, finest, tolerance_px, max_steps, is_late)
        evaluations, events = evaluations + found.evaluations, events + found.events
    return replace(found, evaluations=evaluations, events=events)


def _climb(
    evaluate: Evaluate,
    parameters: Float64,
    level: Level,
    tolerance_px: float,
    max_steps: int,
    is_late: Callable[[], bool],
) -> Solution:
    """Newton steps at one level, until one is shorter than the tolerance."""
    limit, previous = MAX_STEP_BINS * level.bin_size, np.zeros_like(parameters)
    before: Point | None = None
    evaluations, events = 0, 0
    while True:
        last = evaluate(parameters, level)
        evaluations, events = evaluations + 1, events + last.contrast.events
        if not np.isfinite(last.hessian).all():  # nowhere to go from here
            return Solution(parameters, last, level, np.inf, evaluations, events)
        hessian = last.hessian
        if before is not None:
            hessian = with_secant(hessian, previous, last.gradient - before.gradient)
        step = newton_step(last.gradient, hessian, limit)
        if step @ previous < 0:
            # Turned back: the top lies between. Half the region makes the steps settle.
            limit = min(limit, math.sqrt(step @ step)) / 2
            step = newton_step(last.gradient, hessian, limit)
        parameters, previous, before = parameters + step, step, last
        step_px = math.sqrt(step @ step)
        late = is_late()
        arrived = step_px < tolerance_px and (
            step_px < NOTHING_PX or noise_score(last.gradient, last.scatter) < MAX_SCORE
        )
        if arrived or evaluations == max_steps or late:
            return Solution(parameters, last, level, step_px, evaluations, events, late)


@numba.njit(**_FLAGS)
def with_secant(hessian: Float64, step: Float64, change: Float64) -> Float64:
    """The Hessian with the curvature along the last step that the gradient's change shows.

    The fixed-cotangent Hessian leaves a part out. Source of the update: Broyden, Fletcher,
    Goldfarb, Shanno (BFGS), here on a Hessian that is computed anew at every step.
    """
    along = hessian @ step
    expected, seen = step @ along, step @ change
    # Curvature of the wrong sign, or beyond belief, is not taken over.
    if not 0.2 * expected >= seen >= 5.0 * expected:
        return hessian
    return hessian - np.outer(along, along / expected) + np.outer(change, change / seen)


@numba.njit(**_FLAGS)
def noise_score(gradient: Float64, scatter: Float64) -> float:
    """Length of the gradient in units of its own noise: 1 where it is that of chance.

    The step that it leads to is then as far from the top as the estimate's standard deviation.
    """
    values, directions = np.linalg.eigh(scatter)
    along = directions.T @ gradient
    return math.sqrt((along**2 / np.maximum(values, 1e-9 * values[-1])).mean())


@numba.njit(**_FLAGS)
def newton_step(gradient: Float64, hessian: Float64, limit: float) -> Float64:
    """The Newton step towards a maximum, eigenvalues made negative, at most `limit` long."""
    curvatures, directions = np.linalg.eigh(hessian)
    strength = np.abs(curvatures)
    strength = np.maximum(strength, MIN_CURVATURE * strength.max())
    if not strength.max() > 0:
        return np.zeros_like(gradient)
    step = directions @ (directions.T @ gradient / strength)
    length = math.sqrt(step @ step)
    return step * min(1.0, limit / length) if length > 0 else step
