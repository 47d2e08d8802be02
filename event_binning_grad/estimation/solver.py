"""Newton steps on the unbiased gradient, coarse to fine, within a trust region.

The contrast's value is rough where its gradient is not, so no step is judged by the value: a line
search would stall. Steps are bounded in pixels of displacement instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
        scale = 1 / self.scales
        scales = scale[:, None] * scale
        scatter, hessian = contrast.scatter * scales, contrast.hessian * scales
        # The contrast is no log-likelihood. Were it one, its Hessian and its scatter matrix would
        # agree in size, so their ratio is the unit in which the prior's information counts.
        unit = float(scatter.trace()) / max(float(np.abs(hessian.diagonal()).sum()), 1e-30)
        information = unit * self.prior_information
        return Point(
            contrast.value,
            contrast.gradient * scale - information * (scaled - self.prior_mean),
            hessian - np.diag(information),
            # The prior's own gradient at the truth varies, too: by its information.
            scatter + unit * np.diag(information),
            contrast,
        )


Evaluate = Callable[[Float64, float], Point]


@dataclass(frozen=True)
class Solution:
    """Where the solver ended.

    Attributes:
        parameters: [P], pixels.
        last: the last pass, at the finest level, one step before `parameters`.
        last_step_px: length of that step.
        evaluations: how many passes, at all levels together.
        events: how many events they took.
        late: the time was up before the end.
    """

    parameters: Float64
    last: Point
    last_step_px: float
    evaluations: int
    events: int
    late: bool = False


def maximise(
    evaluate: Evaluate,
    start: Float64,
    bin_sizes: Sequence[float],
    tolerance_px: float,
    max_steps: int,
    is_late: Callable[[], bool] = lambda: False,
) -> Solution:
    """Climbs from `start` through levels of ever smaller bins.

    Args:
        evaluate: one pass at parameters [P] and a bin size in pixels.
        start: [P], parameters scaled to pixels of displacement at the window's ends.
        bin_sizes: pixels, coarse to fine; at least one.
        tolerance_px: a finest-level step shorter than this ends the climb.
        max_steps: steps at most at every level.
        is_late: whether to stop now; asked after every pass.
    """
    *coarse, finest = bin_sizes
    evaluations, events = 0, 0
    level = None
    for bin_size in coarse:
        tolerance = COARSE_TOLERANCE_BINS * bin_size
        level = _climb(evaluate, start, bin_size, tolerance, max_steps, is_late)
        start = level.parameters
        evaluations, events = evaluations + level.evaluations, events + level.events
        if level.late:
            break
    if level is None or not level.late:
        level = _climb(evaluate, start, finest, tolerance_px, max_steps, is_late)
        evaluations, events = evaluations + level.evaluations, events + level.events
    return replace(level, evaluations=evaluations, events=events)


def _climb(
    evaluate: Evaluate,
    parameters: Float64,
    bin_size: float,
    tolerance_px: float,
    max_steps: int,
    is_late: Callable[[], bool],
) -> Solution:
    """Newton steps at one bin size, until one is shorter than the tolerance."""
    limit, previous = MAX_STEP_BINS * bin_size, np.zeros_like(parameters)
    before: Point | None = None
    evaluations, events = 0, 0
    while True:
        last = evaluate(parameters, bin_size)
        evaluations, events = evaluations + 1, events + last.contrast.events
        if not np.isfinite(last.hessian).all():  # nowhere to go from here
            return Solution(parameters, last, np.inf, evaluations, events)
        hessian = last.hessian
        if before is not None:
            hessian = with_secant(hessian, previous, last.gradient - before.gradient)
        step = newton_step(last.gradient, hessian, limit)
        if step @ previous < 0:
            # Turned back: the top lies between. Half the region makes the steps settle.
            limit = min(limit, float(np.linalg.norm(step))) / 2
            step = newton_step(last.gradient, hessian, limit)
        parameters, previous, before = parameters + step, step, last
        step_px = float(np.linalg.norm(step))
        late = is_late()
        arrived = step_px < tolerance_px and (step_px < NOTHING_PX or noise_score(last) < MAX_SCORE)
        if arrived or evaluations == max_steps or late:
            return Solution(parameters, last, step_px, evaluations, events, late)


def with_secant(hessian: Float64, step: Float64, change: Float64) -> Float64:
    """The Hessian with the curvature along the last step that the gradient's change shows.

    The fixed-cotangent Hessian leaves a part out. Source of the update: Broyden, Fletcher,
    Goldfarb, Shanno (BFGS), here on a Hessian that is computed anew at every step.
    """
    along = hessian @ step
    expected, seen = float(step @ along), float(step @ change)
    # Curvature of the wrong sign, or beyond belief, is not taken over.
    if not 0.2 * expected >= seen >= 5.0 * expected:
        return hessian
    return hessian - along[:, None] * (along / expected) + change[:, None] * (change / seen)


def noise_score(point: Point) -> float:
    """Length of the gradient in units of its own noise: 1 where it is that of chance.

    The step that it leads to is then as far from the top as the estimate's standard deviation.
    """
    values, directions = np.linalg.eigh(point.scatter)
    along = directions.T @ point.gradient
    return math.sqrt(float((along**2 / np.maximum(values, 1e-9 * values[-1])).mean()))


def newton_step(gradient: Float64, hessian: Float64, limit: float) -> Float64:
    """The Newton step towards a maximum, eigenvalues made negative, at most `limit` long."""
    curvatures, directions = np.linalg.eigh(hessian)
    strength = np.abs(curvatures)
    strength = np.maximum(strength, MIN_CURVATURE * strength.max())
    if not strength.max() > 0:
        return np.zeros_like(gradient)
    step = directions @ (directions.T @ gradient / strength)
    length = float(np.linalg.norm(step))
    return step * min(1.0, limit / length) if length > 0 else step
