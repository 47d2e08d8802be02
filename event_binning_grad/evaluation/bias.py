"""How far derivatives through event binning are from finite differences of the loss.

What "unbiased" claims (Chen et al., ICLR 2026): the synthesised derivative matches the long-range
finite difference (L(s + d) - L(s - d)) / 2d for steps d of about a bin. It is measured here where
an optimiser needs it, on the loss of a window of events as a function of the camera's motion:

- The events are warped by an angular velocity (exact rotation) to the window's mean time, onto an
  image plane that is turned against the sensor's pixels (see `iwe_grid`), and binned.
- A *line* goes through the true motion along one axis of the angular velocity. Its parameter s
  counts bins of displacement: from s to s + 1 the events move by one bin in the mean over the
  window's events (length of the displacement, at the truth). Events at the window's ends move
  about twice as far, those in its middle hardly.
- Points lie SPACING apart on both sides of the truth, from a random phase on. At each of them the
  derivative by s through `bin_events` and autograd meets the central finite difference of the very
  same loss. The forward pass is exact in both; all is in float64.

All events move at once, as in an estimation. Moving one event alone would beg the question: for
it the finite difference of step d is, to the first order, the derivative with a box of width 2d as
reconstruction kernel, whatever the data. At d = 1 that is the straight-through surrogate, which
would then be right by definition.

The figures of a line with derivatives g_k and finite differences f_k at its points k:

    relative bias  sum_k (g_k - f_k) f_k / sum_k f_k^2        the slope of g over f, minus one
    error          sqrt(sum_k (g_k - f_k)^2 / sum_k f_k^2)
    sign errors    the share of points with f_k != 0 where g_k f_k <= 0
    correlation    of g and f over the points (Pearson); none where one of them is constant

A derivative that is always zero has a relative bias of -1, an error of 1 and only sign errors. The
bias of a derivative that is too great here and too small there can cancel; the error does not.
What is reported is the mean over the lines, with the standard deviation of the relative bias.

A finite difference is rough itself, since single events jump over the borders of bins, the more
so the shorter the step. This chance share of f^2 lowers the relative bias and the correlation of
*every* derivative. How large it is shows in the row "grid shifted": the very same finite
difference of the same events on a grid shifted by half a bin. No derivative can be expected to
agree better with the one than the other does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from event_binning_grad.binning import Kernel, bin_events
from event_binning_grad.binning.piecewise import PiecewisePolynomial, fitted
from event_binning_grad.binning.reference import Grid
from event_binning_grad.errors import ConfigError
from event_binning_grad.estimation.objectives import (
    gradient_magnitude,
    negative_binomial,
    variance,
)

Float64 = npt.NDArray[np.float64]
Loss = Callable[[Tensor], Tensor]

BINNINGS = ("rect", "linear", "quadratic", "cubic", "gaussian")
RECONSTRUCTIONS = ("linear", "quadratic", "cubic", "keys", "lanczos")
RAW, ALONG, SHIFTED = "raw", "linear along", "grid shifted"
SIMULATED = "simulated"

SPACING = 0.5
# Places on a line that agree to so many decimals, in bins, are evaluated once. It is far below the
# least step, so that a difference is divided by the step that it was taken over.
_DECIMALS = 9
_LEAST_STEP = 1e-3
STEPS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0)
"""The finite differences' steps d, bins of displacement."""

# 4 is the default of SpikingJelly's sigmoid surrogate; the slope at the step is then 1.
SIGMOID_SHARPNESS = 4.0
STRAIGHT_THROUGH, SIGMOID = "straight-through", f"sigmoid {SIGMOID_SHARPNESS:g}"
_SIGMOID_RADIUS = 2.0  # bins; 0.03 % of the area lies beyond on each side


# ---------------------------------------------------------------------------------- losses


def mean_absolute_deviation(image: Tensor) -> Tensor:
    """The mean over the bins of |h - mean h|."""
    return (image - image.mean()).abs().mean()


LOSSES: dict[str, Loss] = {
    "variance": variance,
    "negative binomial": negative_binomial,
    "gradient magnitude": gradient_magnitude,
    "absolute deviation": mean_absolute_deviation,
}


# ----------------------------------------------------------------------------- derivatives


@dataclass(frozen=True)
class Estimator:
    """One way to differentiate: a binning kernel and what reconstructs its cotangents.

    Attributes:
        name: for the report.
        binning, reconstruction: as `bin_events` takes them.
        along: reconstruct only along the dimension that is differentiated. Across it the cotangents
            are weighed by the binning kernel, as they were binned; the method, with kappa in all
            dimensions, smooths them there, too.
    """

    name: str
    binning: str
    reconstruction: str | Kernel | None
    along: bool = False


def straight_through() -> Kernel:
    """The straight-through surrogate of a histogram, written as a reconstruction kernel.

    A histogram is made of steps at the bins' borders. Straight-through, the derivative of the unit
    step is taken as 1/2 up to one bin on either side, half the 1 that is usual for the sign
    function (|u| <= 1; Courbariaux et al., "Binarized Neural Networks", 2016). It is the same to
    take d round(x) / dx = 1 and differentiate by the index of the event's bin:
    dL/dx = (c_(j+1) - c_(j-1)) / 2. Either puts a box of width 2 in the reconstruction's place,
    along the dimension that is differentiated.
    """
    box = PiecewisePolynomial((Fraction(-1), Fraction(1)), ((Fraction(1, 2),),))
    return Kernel(STRAIGHT_THROUGH, box)


def sigmoid() -> Kernel:
    """The sigmoid surrogate of a histogram, written as a reconstruction kernel.

    The steps at the bins' borders become 1 / (1 + exp(-SIGMOID_SHARPNESS u)), u in bins, in the
    backward pass alone: their derivative is the reconstruction kernel. Cut off and scaled to unit
    area.
    """

    def slope(u: np.ndarray) -> np.ndarray:
        return SIGMOID_SHARPNESS / 4 / np.cosh(SIGMOID_SHARPNESS * u / 2) ** 2

    shape = fitted(slope, (-_SIGMOID_RADIUS, 0.0, _SIGMOID_RADIUS))
    return Kernel(SIGMOID, shape.scaled(1 / shape.integral()))


def all_estimators() -> tuple[Estimator, ...]:
    """Every pair of kernels, and what they are compared with.

    That is each binning's raw derivative, the histogram's surrogates, and for the two common
    binnings the linear reconstruction along the differentiated dimension alone.
    """
    found = []
    for binning in BINNINGS:
        found.append(Estimator(RAW, binning, None))
        if binning == "rect":
            surrogates = (straight_through(), sigmoid())
            found += [Estimator(k.name, binning, k, along=True) for k in surrogates]
        found += [Estimator(name, binning, name) for name in RECONSTRUCTIONS]
        if binning in ("rect", "linear"):
            found.append(Estimator(ALONG, binning, "linear", along=True))
    return tuple(found)


# ----------------------------------------------------------------------------------- lines


@dataclass(frozen=True)
class Line:
    """A one-parameter family of coordinates to bin.

    Attributes:
        window, axis: what it is, for the report.
        coords_at: s [] float64 -> [N, D] coordinates, differentiable in forward mode; NaN for
            events that are not binned.
        grid: the bins.
        start: the first point, s in bins of displacement.
        points: number of points, SPACING apart.
    """

    window: str
    axis: str
    coords_at: Callable[[Tensor], Tensor]
    grid: Grid
    start: float
    points: int

    def at(self) -> Float64:
        """The points [P]."""
        return self.start + SPACING * np.arange(self.points, dtype=np.float64)


@dataclass(frozen=True)
class Samples:
    """What was found along a line; all derivatives by s, a bin of displacement.

    Attributes:
        line: the line.
        losses: [losses, binnings, P] values.
        differences: [losses, binnings, steps, P] finite differences.
        shifted: the same on the grid shifted by half a bin in every dimension.
        derivatives: [losses, estimators, P].
    """

    line: Line
    losses: Float64
    differences: Float64
    shifted: Float64
    derivatives: Float64


def sample_line(
    line: Line,
    estimators: Sequence[Estimator],
    losses: Mapping[str, Loss] = LOSSES,
    steps: Sequence[float] = STEPS,
) -> Samples:
    """Losses, their finite differences and their derivatives at a line's points.

    Args:
        line: where.
        estimators: which derivatives.
        losses: image [*grid.shape] -> value [].
        steps: of the finite differences, bins; 0.001 and more.

    Raises:
        ConfigError: a step that is too short.
    """
    for step in steps:
        if not step >= _LEAST_STEP:
            raise ConfigError(f"step of {step:g} bin; expected {_LEAST_STEP:g} or more")
    binnings = binnings_of(estimators)
    own = SPACING * np.arange(line.points)
    ahead = np.asarray(steps, np.float64)[:, None]
    places = np.round([own, *(own + ahead), *(own - ahead)], _DECIMALS)
    nodes, index = np.unique(places, return_inverse=True)
    at, high, low = np.split(index.reshape(places.shape), [1, 1 + len(steps)])

    half = [o - size / 2 for o, size in zip(line.grid.origin, line.grid.bin_size, strict=True)]
    grids = (line.grid, Grid(line.grid.shape, tuple(half), line.grid.bin_size))
    values = np.empty((len(grids), len(losses), len(binnings), len(nodes)))
    for n, node in enumerate(nodes):
        coords = line.coords_at(_scalar(line.start + node))
        for g, grid in enumerate(grids):
            for b, binning in enumerate(binnings):
                image = _binned(coords, grid, binning, None)
                values[g, :, b, n] = [loss(image).item() for loss in losses.values()]
    differences = (values[..., high] - values[..., low]) / (2 * ahead)
    derivatives = [_derivatives(line, s, estimators, losses) for s in line.at()]
    own_differences, shifted = differences
    return Samples(
        line, values[0][..., at[0]], own_differences, shifted, np.stack(derivatives, axis=-1)
    )


def binnings_of(estimators: Sequence[Estimator]) -> list[str]:
    """The binning kernels of the estimators, in their order."""
    return list(dict.fromkeys(estimator.binning for estimator in estimators))


def _derivatives(
    line: Line, s: float, estimators: Sequence[Estimator], losses: Mapping[str, Loss]
) -> Float64:
    """[losses, estimators] at one point.

    The chain is cut at the image, dL/ds = <dL/dh, dh/ds>, because all estimators of a binning
    kernel share the image and its cotangents.
    """
    one = torch.ones((), dtype=torch.float64)
    coords, velocity = torch.func.jvp(line.coords_at, (_scalar(s),), (one,))[:2]
    cotangents = {}
    for binning in binnings_of(estimators):
        image = _binned(coords.detach(), line.grid, binning, None).requires_grad_()
        cotangents[binning] = torch.stack(
            [torch.autograd.grad(loss(image), image)[0] for loss in losses.values()]
        )
    velocity = velocity.nan_to_num()  # events without coordinates are not binned
    # All losses in one batch.
    coords = coords.detach().expand(len(losses), *coords.shape).clone().requires_grad_()
    found = np.empty((len(losses), len(estimators)))
    for e, estimator in enumerate(estimators):
        slopes = _slopes(coords, line.grid, estimator, cotangents[estimator.binning])
        found[:, e] = (slopes * velocity).sum((1, 2)).numpy()
    return found


def _slopes(coords: Tensor, grid: Grid, estimator: Estimator, cotangents: Tensor) -> Tensor:
    """<cotangents [losses, *grid.shape], dh/dcoords [losses, N, D]>: [losses, N, D]."""
    dimensions = coords.shape[-1]

    def slopes(reconstruction: Any) -> Tensor:
        images = _binned(coords, grid, estimator.binning, reconstruction)
        return torch.autograd.grad(images, coords, cotangents)[0]

    if not estimator.along:
        return slopes(estimator.reconstruction)
    columns = []
    for d in range(dimensions):
        reconstructions = [estimator.reconstruction if e == d else None for e in range(dimensions)]
        columns.append(slopes(reconstructions)[..., d])
    return torch.stack(columns, -1)


def _binned(coords: Tensor, grid: Grid, binning: str, reconstruction: Any) -> Tensor:
    return bin_events(
        coords,
        shape=grid.shape,
        binning=binning,
        reconstruction=reconstruction,
        origin=grid.origin,
        bin_size=grid.bin_size,
    )


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# --------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class Agreement:
    """How derivatives agree with finite differences; arrays over whatever is left of the points.

    The formulas stand at the top of this module. NaN where there is nothing to compare.
    """

    relative_bias: Float64
    error: Float64
    sign_errors: Float64
    correlation: Float64


def agreement(derivatives: Float64, differences: Float64) -> Agreement:
    """The figures of derivatives [..., P] against finite differences [..., P]."""
    g, f = np.broadcast_arrays(derivatives, differences)
    with np.errstate(invalid="ignore", divide="ignore"):
        square = (f**2).sum(-1)
        square = np.where(square > 0, square, np.nan)
        wrong = ((g * f <= 0) & (f != 0)).sum(-1) / (f != 0).sum(-1)
        dg, df = (x - x.mean(-1, keepdims=True) for x in (g, f))
        spread = np.sqrt((dg**2).sum(-1) * (df**2).sum(-1))
        return Agreement(
            ((g - f) * f).sum(-1) / square,
            np.sqrt(((g - f) ** 2).sum(-1) / square),
            wrong,
            (dg * df).sum(-1) / np.where(spread > 0, spread, np.nan),
        )


@dataclass(frozen=True)
class Row:
    """One derivative against the finite differences of one step: means over the lines.

    None where no line has the figure, as the correlation of a derivative that is always zero.
    """

    loss: str
    binning: str
    estimator: str
    step_bins: float
    lines: int
    relative_bias: float | None
    relative_bias_std: float | None
    error: float | None
    sign_errors: float | None
    correlation: float | None


@dataclass(frozen=True)
class Study:
    """The lines of one source of events, and what was compared on them.

    Attributes:
        source: SIMULATED, or the recording's absolute path, which cannot be that.
        samples: one a line; at least one.
        estimators, losses, steps: what the samples' dimensions mean.
    """

    source: str
    samples: list[Samples]
    estimators: tuple[Estimator, ...]
    losses: tuple[str, ...] = tuple(LOSSES)
    steps: tuple[float, ...] = STEPS

    def rows(self) -> list[Row]:
        """Every loss, binning kernel, derivative and step; the shifted grid after each kernel's."""
        rows = []
        for k, loss in enumerate(self.losses):
            for b, binning in enumerate(binnings_of(self.estimators)):
                differences = np.stack([s.differences[k, b] for s in self.samples])
                for e, estimator in enumerate(self.estimators):
                    if estimator.binning == binning:
                        own = np.stack([s.derivatives[k, e] for s in self.samples])[:, None]
                        names = (loss, binning, estimator.name)
                        rows += self._rows(names, agreement(own, differences))
                shifted = np.stack([s.shifted[k, b] for s in self.samples])
                rows += self._rows((loss, binning, SHIFTED), agreement(shifted, differences))
        return rows

    def _rows(self, names: tuple[str, str, str], found: Agreement) -> list[Row]:
        """A row a step, of figures [lines, steps]."""
        return [
            Row(
                *names, step, len(self.samples), _mean(found.relative_bias[:, n]),
                _std(found.relative_bias[:, n]), _mean(found.error[:, n]),
                _mean(found.sign_errors[:, n]), _mean(found.correlation[:, n]),
            )
            for n, step in enumerate(self.steps)
        ]  # fmt: skip


def _mean(values: Float64) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _std(values: Float64) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.std(ddof=1)) if len(known) > 1 else None
