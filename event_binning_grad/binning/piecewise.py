"""Piecewise polynomials in exact arithmetic: how kernels are represented, fitted and convolved.

Coefficients are fractions. A float is a fraction, too, so that a kernel fitted to a function goes
through the same exact convolution as a spline, and only the final tables are rounded.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from event_binning_grad.errors import ConfigError

Polynomial = tuple[Fraction, ...]  # ascending coefficients

# A fitted piece is a polynomial of at most this degree; where that is not enough it is halved.
_FIT_DEGREE = 14
_FIT_HALVINGS = 12

# T_n at the zeros of T_(degree + 1), where the T_n are orthogonal: [n, point]. Whole turns are
# taken off before the cosine, which would lose digits to them.
_POINTS = _FIT_DEGREE + 1
_COSINES = np.cos(
    np.outer(np.arange(_POINTS), 2 * np.arange(_POINTS) + 1) % (4 * _POINTS) * np.pi / (2 * _POINTS)
)


@dataclass(frozen=True, eq=False)
class PiecewisePolynomial:
    """A function of compact support.

    On [breaks[i], breaks[i + 1]) it is sum_n pieces[i][n] * (u - breaks[i]) ** n, elsewhere zero.
    """

    breaks: tuple[Fraction, ...]
    pieces: tuple[Polynomial, ...]

    def __call__(self, u: np.ndarray) -> np.ndarray:
        """The values at u (any shape, float64), zero outside the support."""
        u = np.asarray(u, np.float64)
        breaks = np.array([float(b) for b in self.breaks])
        piece = np.searchsorted(breaks, u, side="right") - 1
        terms = max(len(p) for p in self.pieces)
        table = np.zeros((len(self.pieces) + 1, terms))  # the last row: outside
        for i, polynomial in enumerate(self.pieces):
            table[i, : len(polynomial)] = [float(c) for c in polynomial]
        piece = np.where((piece < 0) | (piece >= len(self.pieces)), len(self.pieces), piece)
        x = u - breaks[piece]
        value = np.zeros_like(u)
        for n in reversed(range(terms)):
            value = value * x + table[piece, n]
        return value

    def derivative(self) -> PiecewisePolynomial:
        """The derivative between the breaks; jumps at them are not in it."""
        return PiecewisePolynomial(
            self.breaks,
            tuple(tuple(n * c for n, c in enumerate(p))[1:] or (Fraction(0),) for p in self.pieces),
        )

    def largest(self) -> float:
        """The largest absolute value, as far as 33 samples of every piece show."""
        along = np.linspace(0, 1 - 1e-12, 33)
        samples = [float(a) + along * float(b - a) for a, b in pairwise(self.breaks)]
        return float(np.abs(self(np.array(samples))).max())

    def integral(self) -> Fraction:
        """The integral over the whole support."""
        return sum(
            (
                c * (stop - start) ** (n + 1) / (n + 1)
                for p, (start, stop) in zip(self.pieces, pairwise(self.breaks), strict=True)
                for n, c in enumerate(p)
            ),
            Fraction(0),
        )

    def scaled(self, factor: Fraction) -> PiecewisePolynomial:
        """The function times a factor."""
        return PiecewisePolynomial(
            self.breaks, tuple(tuple(c * factor for c in p) for p in self.pieces)
        )

    def expanded_at(self, u: Fraction) -> Polynomial:
        """The polynomial that holds from u on, in powers of the distance from u."""
        if not self.breaks[0] <= u < self.breaks[-1]:
            return (Fraction(0),)
        i = bisect_right(self.breaks, u) - 1
        return _shifted(self.pieces[i], u - self.breaks[i])


def convolved(f: PiecewisePolynomial, g: PiecewisePolynomial) -> PiecewisePolynomial:
    """The convolution, exactly, by sums of truncated powers (x)_+^n = max(x, 0)^n:

    (u - a)_+^p * (u - b)_+^q = p! q! / (p + q + 1)! (u - a - b)_+^(p + q + 1)
    """
    powers: defaultdict[Fraction, defaultdict[int, Fraction]]
    powers = defaultdict(lambda: defaultdict(Fraction))
    for a, f_jumps in _jumps(f):
        for b, g_jumps in _jumps(g):
            at = powers[a + b]
            for p, f_jump in enumerate(f_jumps):
                for q, g_jump in enumerate(g_jumps):
                    # p! q! / (p + q + 1)! = 1 / ((p + q + 1) binomial(p + q, p))
                    n = p + q + 1
                    at[n] += f_jump * g_jump / (n * math.comb(p + q, p))
    breaks = tuple(sorted(powers))
    degree = max(n for at in powers.values() for n in at)
    pieces: list[Polynomial] = []
    running: Polynomial = (Fraction(0),)
    for i, b in enumerate(breaks[:-1]):
        if i:
            running = _shifted(running, b - breaks[i - 1])
        running = _added(running, tuple(powers[b][n] for n in range(degree + 1)))
        pieces.append(running)
    return PiecewisePolynomial(breaks, tuple(pieces))


def fitted(
    function: Callable[[np.ndarray], np.ndarray], breaks: Sequence[float]
) -> PiecewisePolynomial:
    """A function that is smooth between breaks, fitted to the accuracy of float64.

    Raises:
        ConfigError: breaks not ascending and finite, or a function that is not finite and smooth
            between them, as far as samples of it show.
    """
    if len(breaks) < 2 or not np.isfinite(breaks).all() or not (np.diff(breaks) > 0).all():
        raise ConfigError(f"breaks are {breaks}; expected two or more ascending finite numbers")
    pieces: list[tuple[Fraction, Polynomial]] = []
    scale = max(
        float(np.abs(_values(function, start, stop)).max()) for start, stop in pairwise(breaks)
    )
    for start, stop in pairwise(Fraction(float(b)) for b in breaks):
        # Cut at whole bins and then in halves, so that the pieces fall on few places of a bin.
        cuts = [start + n for n in range(math.ceil(stop - start))]
        for a, b in pairwise([*cuts, stop]):
            pieces += _fit(function, a, b, scale, _FIT_HALVINGS)
    return PiecewisePolynomial(
        (*(start for start, _ in pieces), Fraction(float(breaks[-1]))), tuple(p for _, p in pieces)
    )


def economised(polynomial: Polynomial, width: Fraction, tolerances: Sequence[float]) -> Polynomial:
    """A polynomial of less degree that differs little on [0, width].

    By dropping the last terms of its Chebyshev series: on [-1, 1] T_n is at most 1, its derivative
    n^2, and its second one n^2 (n^2 - 1) / 3.

    Args:
        polynomial: ascending coefficients.
        width: of the interval.
        tolerances: how much the value, the first and the second derivative may change; those that
            are not given may change by anything.
    """
    series = [c * width**n for n, c in enumerate(polynomial)]  # on [0, 1]
    # Peel the highest term off as long as what is dropped in all stays below the tolerances.
    left = [Fraction(tolerance) for tolerance in tolerances]
    while len(series) > 1:
        n = len(series) - 1
        highest = series[-1] / _shifted_chebyshev(n)[-1]
        bounds = (Fraction(1), Fraction(n**2), Fraction(n**2 * (n**2 - 1), 3))
        left = [
            tolerance - abs(highest) * bound * (2 / width) ** d
            for d, (tolerance, bound) in enumerate(zip(left, bounds, strict=False))
        ]
        if min(left) < 0:
            break
        series = [
            c - highest * t for c, t in zip(series[:-1], _shifted_chebyshev(n)[:-1], strict=True)
        ]
    return tuple(c / width**n for n, c in enumerate(series))


def _fit(
    function: Callable[[np.ndarray], np.ndarray],
    start: Fraction,
    stop: Fraction,
    scale: float,
    halvings: int,
) -> list[tuple[Fraction, Polynomial]]:
    values = _values(function, float(start), float(stop))
    series = _COSINES @ values * 2 / len(values)
    series[0] /= 2
    if np.abs(series[-3:]).max() <= 1e-15 * scale:
        coefficients = [Fraction(0)] * (_FIT_DEGREE + 1)
        for n, c in enumerate(series):
            for m, t in enumerate(_shifted_chebyshev(n)):
                coefficients[m] += Fraction(float(c)) * t
        width = stop - start
        piece = tuple(c / width**n for n, c in enumerate(coefficients))
        piece = economised(piece, width, (1e-17 * scale,))
        if _agrees(function, PiecewisePolynomial((start, stop), (piece,)), scale):
            return [(start, piece)]
    if halvings == 0:
        raise ConfigError(
            f"the kernel is not smooth between {float(start):g} and {float(stop):g}: name every "
            "point where it or a derivative of it jumps among its breaks"
        )
    middle = (start + stop) / 2
    return [
        *_fit(function, start, middle, scale, halvings - 1),
        *_fit(function, middle, stop, scale, halvings - 1),
    ]


def _agrees(
    function: Callable[[np.ndarray], np.ndarray], piece: PiecewisePolynomial, scale: float
) -> bool:
    """Whether a piece fits between the points that it was fitted to, too, and near its ends."""
    start, stop = map(float, piece.breaks)
    u = start + (stop - start) * np.array(
        [1e-9, 1e-4, 0.004, 0.07, 0.33, 0.61, 0.93, 0.996, 0.9999]
    )
    return bool(np.abs(_called(function, u) - piece(u)).max() <= 1e-13 * scale)


def _values(function: Callable[[np.ndarray], np.ndarray], start: float, stop: float) -> np.ndarray:
    return _called(function, start + (stop - start) * (_COSINES[1] + 1) / 2)


def _called(function: Callable[[np.ndarray], np.ndarray], u: np.ndarray) -> np.ndarray:
    values = np.asarray(function(u), np.float64)
    if values.shape != u.shape:
        raise ConfigError(
            f"the kernel's function gave shape {values.shape} for positions of shape {u.shape}; "
            "expected a value for each"
        )
    if not np.isfinite(values).all():
        bad = int(np.argmin(np.isfinite(values)))
        raise ConfigError(
            f"the kernel's function gave {values[bad]} at {u[bad]:g}; expected a finite value"
        )
    return values


def _jumps(f: PiecewisePolynomial) -> list[tuple[Fraction, Polynomial]]:
    """At every break, what is added there in powers of the distance from it."""
    found, before = [], (Fraction(0),)
    for i, b in enumerate(f.breaks):
        after = f.pieces[i] if i < len(f.pieces) else (Fraction(0),)
        found.append((b, _added(after, tuple(-c for c in before))))
        if i < len(f.pieces):
            before = _shifted(f.pieces[i], f.breaks[i + 1] - b)
    return found


def _shifted(polynomial: Polynomial, by: Fraction) -> Polynomial:
    """p(x + by), by Horner's scheme."""
    result: list[Fraction] = [Fraction(0)]
    for c in reversed(polynomial):
        product = [Fraction(0), *result]
        for n, r in enumerate(result):
            product[n] += r * by
        product[0] += c
        result = product
    return tuple(result[: len(polynomial)])


def _added(a: Polynomial, b: Polynomial) -> Polynomial:
    short, long = sorted((a, b), key=len)
    return tuple(c + (short[n] if n < len(short) else 0) for n, c in enumerate(long))


def _shifted_chebyshev(n: int) -> list[Fraction]:
    """The coefficients of T_n(2 x - 1)."""
    while len(_CHEBYSHEV) <= n:
        last, before = _CHEBYSHEV[-1], _CHEBYSHEV[-2]
        following = [Fraction(0)] * (len(last) + 1)
        for m, c in enumerate(last):  # T_n = 2 (2 x - 1) T_(n-1) - T_(n-2)
            following[m] -= 2 * c
            following[m + 1] += 4 * c
        for m, c in enumerate(before):
            following[m] -= c
        _CHEBYSHEV.append(following)
    return _CHEBYSHEV[n]


_CHEBYSHEV: list[list[Fraction]] = [[Fraction(1)], [Fraction(-1), Fraction(2)]]
