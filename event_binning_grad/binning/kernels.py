"""The kernels of event binning, and what the gradient makes of them: one place to extend.

A binning kernel k decides how an event is spread over bins. A reconstruction kernel l turns the
cotangents of the bins back into a function between them. The gradient with respect to an event's
position differentiates as if the event had been binned with the synthesis kernel kappa = l * k
(their convolution), while the forward pass keeps k. See Chen et al., "Unbiased Gradient Estimation
for Event Binning via Functional Backpropagation", ICLR 2026.

Every kernel serves in either role. All are piecewise polynomials: B-splines and Keys' exactly, the
others fitted to the accuracy of float64, so that kappa, kappa' and kappa'' follow from one exact
convolution, and every back end evaluates the same tables.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from event_binning_grad.binning.piecewise import (
    PiecewisePolynomial,
    convolved,
    economised,
    fitted,
)
from event_binning_grad.errors import ConfigError

Precision = Literal["float32", "float64"]
WeightsGradient = Literal["exact", "synthesised"]

# By how much a table may differ from its kernel, in value, first and second derivative, relative to
# the largest of each: well below the rounding of its type.
_TOLERANCE: dict[Precision, float] = {"float32": 2.0**-26, "float64": 2.0**-54}


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel by its name; made by `bspline`, `gaussian`, `keys`, `lanczos`, `register_kernel`.

    Calling it gives its values at u (any shape), in bins from the centre.
    """

    name: str
    shape: PiecewisePolynomial

    def __call__(self, u: np.ndarray) -> np.ndarray:
        return self.shape(u)

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class TapTable:
    """A kernel as the back ends evaluate it: one polynomial for every bin that an event reaches.

    For an event at position u (in bins; bin j is centred at j) the first bin is
    floor(u - shift). With r = u - shift - floor(u - shift) in [0, 1), s the last segment whose
    start is not above r, and x = r - starts[s], the value at the m-th bin from there is the sum
    over n of coefficients[s][m][n] * x**n.
    """

    shift: float
    starts: tuple[float, ...]
    coefficients: tuple[tuple[tuple[float, ...], ...], ...]

    @property
    def segments(self) -> int:
        """The number of parts that a bin is divided into; 1 for splines and Keys' kernel."""
        return len(self.coefficients)

    @property
    def taps(self) -> int:
        """The number of bins that an event reaches in one dimension."""
        return len(self.coefficients[0])

    @property
    def terms(self) -> int:
        """The number of coefficients of each polynomial."""
        return len(self.coefficients[0][0])

    @cached_property
    def derivative(self) -> TapTable:
        """The derivative with respect to u."""
        return TapTable(
            self.shift,
            self.starts,
            tuple(
                tuple(tuple(n * c for n, c in enumerate(tap))[1:] or (0.0,) for tap in segment)
                for segment in self.coefficients
            ),
        )


@dataclass(frozen=True, eq=False)
class KernelPair:
    """What bins in the forward pass, and what is differentiated in the backward pass.

    The synthesis kernel's derivatives are `synthesis.derivative` (kappa') and
    `synthesis.derivative.derivative` (kappa'').
    """

    binning: TapTable
    synthesis: TapTable
    weights: TapTable  # what the gradient with respect to the weights samples the cotangents by


def bspline(order: int) -> Kernel:
    """The centred cardinal B-spline: 0 the box ("rect"), 1 the hat ("linear"), 2, 3.

    Raises:
        ConfigError: another order.
    """
    if order not in range(len(_BSPLINES)):
        raise ConfigError(f"B-spline of order {order}: expected 0 to {len(_BSPLINES) - 1}")
    return KERNELS[_BSPLINES[int(order)]]


def gaussian(sigma: float = 0.5, truncate: float = 3.0) -> Kernel:
    """The normal density of standard deviation sigma, in bins, cut off at truncate * sigma.

    It is not scaled up for what is cut off: an event adds erf(truncate / sqrt(2)) to the image in
    the mean over its positions, 0.9973 by default. Kernels are kept for good: do not make a new one
    at every step.

    Raises:
        ConfigError: a parameter that is not positive, or a support of more than 64 bins.
    """
    sigma, truncate = float(sigma), float(truncate)
    if not (sigma > 0 and truncate > 0 and 2 * sigma * truncate <= 64):
        raise ConfigError(
            f"gaussian with sigma {sigma:g} bins and truncate {truncate:g}: expected positive "
            "numbers and a support (2 sigma truncate) of at most 64 bins"
        )
    name = f"gaussian(sigma={sigma!r}, truncate={truncate!r})"
    radius = sigma * truncate

    def density(u: np.ndarray) -> np.ndarray:
        return np.exp(-((u / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))

    return KERNELS.get(name) or _registered(name, fitted(density, (-radius, radius)))


def keys() -> Kernel:
    """Keys' cubic convolution kernel with a = -1/2, which reproduces quadratic polynomials.

    Source: R. G. Keys, "Cubic convolution interpolation for digital image processing", 1981.
    """
    return KERNELS["keys"]


def lanczos(lobes: int = 2) -> Kernel:
    """sinc(u) sinc(u / lobes) for |u| < lobes, scaled to unit area.

    Raises:
        ConfigError: lobes not a whole number from 1 to 8.
    """
    if lobes not in range(1, 9):
        raise ConfigError(f"lanczos with {lobes} lobes: expected a whole number from 1 to 8")
    name = f"lanczos(lobes={int(lobes)})"

    def window(u: np.ndarray) -> np.ndarray:
        return np.sinc(u) * np.sinc(u / lobes)

    if name in KERNELS:
        return KERNELS[name]
    shape = fitted(window, range(-int(lobes), int(lobes) + 1))
    return _registered(name, shape.scaled(1 / shape.integral()))


def register_kernel(
    name: str, function: Callable[[np.ndarray], np.ndarray], breaks: Sequence[float]
) -> Kernel:
    """Makes a kernel of a function, for use by name or as it is, in either role.

    Args:
        name: without ";" and "|", and not that of another kernel.
        function: k(u), u float64 [n] in bins from the kernel's centre, within the breaks.
        breaks: ascending; from the first to the last is the kernel's support, at most 64 bins, and
            between two of them it is smooth.

    Raises:
        ConfigError: a name that is taken by another kernel, breaks that do not ascend, or a
            function that is not finite and smooth between them, as far as samples of it show.
    """
    breaks = [float(b) for b in breaks]
    span = breaks[-1] - breaks[0] if breaks else 0.0
    if 64 < span < math.inf:
        raise ConfigError(f"kernel {name!r} spans {span:g} bins; expected at most 64")
    reserved = not name or name in _SHORTHANDS or _WITH_PARAMETERS.fullmatch(name)
    shape, known = fitted(function, breaks), KERNELS.get(name)
    # The same kernel once more, as when a notebook's cell is run again, does no harm.
    if known and (known.shape.breaks, known.shape.pieces) == (shape.breaks, shape.pieces):
        return known
    if known or reserved or set(name) & set(";|"):
        raise ConfigError(f"kernel name {name!r}: expected one not taken, without ; and |")
    return _registered(name, shape)


def kernel(name: str | Kernel) -> Kernel:
    """The kernel of a name, or the kernel itself.

    Raises:
        ConfigError: an unknown name.
    """
    if isinstance(name, Kernel):
        return name
    if name in _SHORTHANDS:
        return _SHORTHANDS[name]()
    if name in KERNELS:
        return KERNELS[name]
    # As an exported program names it, in a process where it has not been made yet.
    if made := _WITH_PARAMETERS.fullmatch(str(name)):
        if made["lobes"]:
            return lanczos(int(made["lobes"]))
        return gaussian(float(made["sigma"]), float(made["truncate"]))
    known = ", ".join(dict.fromkeys((*_SHORTHANDS, *KERNELS)))
    raise ConfigError(f"kernel {name!r}: expected one of {known}")


@lru_cache(maxsize=256)
def synthesis(binning: Kernel, reconstruction: Kernel | None) -> PiecewisePolynomial:
    """kappa = reconstruction * binning, convolved; without a reconstruction the binning itself."""
    if reconstruction is None:
        return binning.shape
    return convolved(reconstruction.shape, binning.shape)


@lru_cache(maxsize=256)
def kernel_pair(
    binning: Kernel,
    reconstruction: Kernel | None,
    weights_gradient: WeightsGradient = "exact",
    precision: Precision = "float64",
) -> KernelPair:
    """The tables of a pair of kernels; reconstruction None gives the raw gradient."""
    return pair_of(binning.shape, synthesis(binning, reconstruction), weights_gradient, precision)


def pair_of(
    binning: PiecewisePolynomial,
    synthesis: PiecewisePolynomial,
    weights_gradient: WeightsGradient = "exact",
    precision: Precision = "float64",
) -> KernelPair:
    """The tables of a binning kernel and of any kernel to differentiate in its place."""
    k, kappa = (tap_table(shape, precision) for shape in (binning, synthesis))
    return KernelPair(k, kappa, k if weights_gradient == "exact" else kappa)


def tap_table(shape: PiecewisePolynomial, precision: Precision = "float64") -> TapTable:
    """A kernel cut at the bins' borders as they pass over it."""
    end = shape.breaks[-1]
    starts = sorted({(b - end) % 1 for b in shape.breaks})
    widths = [b - a for a, b in zip(starts, [*starts[1:], Fraction(1)], strict=True)]
    taps = math.ceil(end - shape.breaks[0])
    bends = shape.derivative().derivative()
    tolerances = [_TOLERANCE[precision] * f.largest() for f in (shape, shape.derivative(), bends)]
    table = [
        [economised(shape.expanded_at(start + end - 1 - m), width, tolerances) for m in range(taps)]
        for start, width in zip(starts, widths, strict=True)
    ]
    terms = max(len(polynomial) for segment in table for polynomial in segment)
    return TapTable(
        float(end - 1),
        tuple(map(float, starts)),
        tuple(
            tuple(
                (*map(float, polynomial), *(0.0,) * (terms - len(polynomial)))
                for polynomial in segment
            )
            for segment in table
        ),
    )


KERNELS: dict[str, Kernel] = {}

_NUMBER = r"[\d.e+-]+"
_WITH_PARAMETERS = re.compile(
    rf"gaussian\(sigma=(?P<sigma>{_NUMBER}), truncate=(?P<truncate>{_NUMBER})\)"
    r"|lanczos\(lobes=(?P<lobes>\d+)\)"
)


def _registered(name: str, shape: PiecewisePolynomial) -> Kernel:
    KERNELS[name] = Kernel(name, shape)
    return KERNELS[name]


def _register_exact() -> None:
    box = PiecewisePolynomial((Fraction(-1, 2), Fraction(1, 2)), ((Fraction(1),),))
    shape = box
    for name in _BSPLINES:
        _registered(name, shape)
        shape = convolved(shape, box)
    # In powers of the distance from each piece's start.
    pieces = ((0, 0, -1, 1), (0, 1, 4, -3), (2, 0, -5, 3), (0, -1, 2, -1))
    halves = tuple(tuple(Fraction(c, 2) for c in piece) for piece in pieces)
    _registered("keys", PiecewisePolynomial(tuple(map(Fraction, range(-2, 3))), halves))


_BSPLINES = ("rect", "linear", "quadratic", "cubic")
_SHORTHANDS: dict[str, Callable[[], Kernel]] = {"gaussian": gaussian, "lanczos": lanczos}
_register_exact()
