"""The kernels of event binning, as piecewise polynomials: one place to extend.

A binning kernel k decides how an event is spread over bins. A reconstruction kernel l turns the
cotangents of the bins back into a function between them. The gradient with respect to an event's
position differentiates as if the event had been binned with the synthesis kernel kappa = l * k
(their convolution), while the forward pass keeps k. See Chen et al., "Unbiased Gradient Estimation
for Event Binning via Functional Backpropagation", ICLR 2026.

The box ("rect") and the hat ("linear") are the B-splines of order 0 and 1. B-splines are closed
under convolution: orders p and q give order p + q + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from event_binning_grad.errors import ConfigError

BSPLINE_ORDERS = {"rect": 0, "linear": 1}
RECONSTRUCTIONS = ("linear",)


@dataclass(frozen=True)
class PiecewisePolynomial:
    """A kernel of compact support, one polynomial for every bin that an event reaches.

    For an event at position u (in bins; bin j is centred at j) the first bin is
    floor(u - shift), and with r = u - shift - floor(u - shift) in [0, 1) the value at the m-th
    bin from there is the sum over n of coefficients[m][n] * r**n.
    """

    shift: float
    coefficients: tuple[tuple[float, ...], ...]

    @property
    def taps(self) -> int:
        """The number of bins that an event reaches in one dimension."""
        return len(self.coefficients)

    def derivative(self) -> PiecewisePolynomial:
        """The derivative with respect to u."""
        return PiecewisePolynomial(
            self.shift,
            tuple(
                tuple(n * c for n, c in enumerate(tap))[1:] or (0.0,) for tap in self.coefficients
            ),
        )


@lru_cache
def bspline(order: int) -> PiecewisePolynomial:
    """The centred cardinal B-spline of an order, by the Cox-de Boor recursion in exact fractions.

    n B_n[m](r) = (r + n - m) B_{n-1}[m - 1](r) + (m + 1 - r) B_{n-1}[m](r)
    """
    taps: list[list[Fraction]] = [[Fraction(1)]]
    for n in range(1, order + 1):
        lower = [[Fraction(0)], *taps, [Fraction(0)]]
        taps = [
            _divided(_added(_times(lower[m], n - m, 1), _times(lower[m + 1], m + 1, -1)), n)
            for m in range(n + 1)
        ]
    return PiecewisePolynomial((order - 1) / 2, tuple(tuple(float(c) for c in tap) for tap in taps))


@dataclass(frozen=True)
class KernelPair:
    """What bins in the forward pass, and what is differentiated in the backward pass."""

    binning: PiecewisePolynomial
    synthesis: PiecewisePolynomial


@lru_cache
def kernel_pair(binning: str, reconstruction: str | None) -> KernelPair:
    """The kernels of a pair of names; reconstruction None gives the raw gradient (synthesis = k).

    Raises:
        ConfigError: an unknown name.
    """
    if binning not in BSPLINE_ORDERS:
        raise ConfigError(f"binning {binning!r}: expected one of {', '.join(BSPLINE_ORDERS)}")
    if reconstruction is not None and reconstruction not in RECONSTRUCTIONS:
        raise ConfigError(
            f"reconstruction {reconstruction!r}: expected one of {', '.join(RECONSTRUCTIONS)}, "
            "or None for the raw gradient"
        )
    order = BSPLINE_ORDERS[binning]
    if reconstruction is None:
        return KernelPair(bspline(order), bspline(order))
    return KernelPair(bspline(order), bspline(order + BSPLINE_ORDERS[reconstruction] + 1))


def _times(polynomial: list[Fraction], constant: int, slope: int) -> list[Fraction]:
    """polynomial(r) * (constant + slope * r), ascending coefficients."""
    return _added(
        [c * constant for c in polynomial], [Fraction(0), *(c * slope for c in polynomial)]
    )


def _added(a: list[Fraction], b: list[Fraction]) -> list[Fraction]:
    size = max(len(a), len(b))
    a, b = (p + [Fraction(0)] * (size - len(p)) for p in (a, b))
    return [x + y for x, y in zip(a, b, strict=True)]


def _divided(polynomial: list[Fraction], divisor: int) -> list[Fraction]:
    return [c / divisor for c in polynomial]
