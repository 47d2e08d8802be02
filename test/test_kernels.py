"""The kernels and their convolutions: values by hand, closed forms, numerical integration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import erf, sici

from event_binning_grad.binning import kernels
from event_binning_grad.binning.kernels import (
    Kernel,
    TapTable,
    bspline,
    gaussian,
    kernel,
    kernel_pair,
    keys,
    lanczos,
    register_kernel,
    synthesis,
    tap_table,
)
from event_binning_grad.binning.piecewise import (
    PiecewisePolynomial,
    convolved,
    economised,
    fitted,
)
from event_binning_grad.errors import ConfigError

Function = Callable[[np.ndarray], np.ndarray]

NAMES = ("rect", "linear", "quadratic", "cubic", "gaussian", "keys", "lanczos")
PAIRS = [(binning, reconstruction) for binning in NAMES for reconstruction in NAMES]
# Of these the values at whole distances sum to one at every position.
UNITY = ("rect", "linear", "quadratic", "cubic", "keys")


# ------------------------------------------------------------------------------------ closed forms


def box(u: np.ndarray) -> np.ndarray:
    return np.where((u >= -0.5) & (u < 0.5), 1.0, 0.0)


def hat(u: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1 - np.abs(u))


def quadratic(u: np.ndarray) -> np.ndarray:
    u = np.abs(u)
    return np.where(u <= 0.5, 0.75 - u**2, np.where(u <= 1.5, (1.5 - u) ** 2 / 2, 0.0))


def cubic(u: np.ndarray) -> np.ndarray:
    u = np.abs(u)
    return np.where(u <= 1, 2 / 3 - u**2 + u**3 / 2, np.where(u <= 2, (2 - u) ** 3 / 6, 0.0))


def normal(u: np.ndarray) -> np.ndarray:
    """The normal density of standard deviation 1/2."""
    return np.exp(-2 * u**2) * math.sqrt(2 / math.pi)


def bell(u: np.ndarray) -> np.ndarray:
    """It, cut off at three standard deviations."""
    return np.where(np.abs(u) < 1.5, normal(u), 0.0)


def keys_form(u: np.ndarray) -> np.ndarray:
    u = np.abs(u)
    inner = 1.5 * u**3 - 2.5 * u**2 + 1
    outer = -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2
    return np.where(u <= 1, inner, np.where(u <= 2, outer, 0.0))


def sine_integrals(t: np.ndarray) -> np.ndarray:
    """The integral from 0 to t of sinc(s) sinc(s / 2).

    The product of the sines is a difference of cosines of b s with b = pi / 2 and 3 pi / 2, and
    (1 - cos(b s)) / s^2 has the antiderivative b Si(b s) - (1 - cos(b s)) / s.
    """
    t = np.where(t == 0, 1e-300, t)

    def part(b: float) -> np.ndarray:
        return b * sici(b * t)[0] - (1 - np.cos(b * t)) / t

    return (part(1.5 * np.pi) - part(0.5 * np.pi)) / np.pi**2


LANCZOS_AREA = 2 * float(sine_integrals(np.array(2.0)))


def lanczos_form(u: np.ndarray) -> np.ndarray:
    return np.where(np.abs(u) < 2, np.sinc(u) * np.sinc(u / 2), 0.0) / LANCZOS_AREA


FORMS: dict[
    str, tuple[Function, tuple[float, ...]]
] = {  # with the points where they are not smooth
    "rect": (box, (-0.5, 0.5)),
    "linear": (hat, (-1, 0, 1)),
    "quadratic": (quadratic, (-1.5, -0.5, 0.5, 1.5)),
    "cubic": (cubic, (-2, -1, 0, 1, 2)),
    "gaussian": (bell, (-1.5, 1.5)),
    "keys": (keys_form, (-2, -1, 0, 1, 2)),
    "lanczos": (lanczos_form, (-2, 2)),
}


def quartic(u: np.ndarray) -> np.ndarray:
    """rect * keys: the difference of Keys' antiderivative at the two ends of the box."""

    def antiderivative(t: np.ndarray) -> np.ndarray:
        s = np.minimum(np.abs(t), 2)
        inner = 3 / 8 * s**4 - 5 / 6 * s**3 + s
        outer = -1 / 8 * s**4 + 5 / 6 * s**3 - 2 * s**2 + 2 * s - 1 / 6
        return np.sign(t) * np.where(s <= 1, inner, outer)

    return antiderivative(u + 0.5) - antiderivative(u - 0.5)


def sine_integral_form(u: np.ndarray) -> np.ndarray:
    """rect * lanczos."""
    ends = [sine_integrals(np.clip(u + side, -2, 2)) for side in (0.5, -0.5)]
    return (ends[0] - ends[1]) / LANCZOS_AREA


def erf_form(u: np.ndarray, derivative: int = 0) -> np.ndarray:
    """gaussian * linear: the hat's second derivative is a stencil (1, -2, 1), so that kappa is that
    stencil over the bell's second antiderivative, and kappa'' over the bell itself."""
    radius, tail = 1.5, float(erf(3 / math.sqrt(2)))

    def first(t: np.ndarray) -> np.ndarray:
        return (erf(np.clip(t, -radius, radius) * math.sqrt(2)) + tail) / 2

    def second(t: np.ndarray) -> np.ndarray:
        inside = np.clip(t, -radius, radius)
        value = (inside * erf(inside * math.sqrt(2)) - radius * tail) / 2
        value += (normal(inside) - normal(np.array(radius))) / 4
        value += (inside + radius) * tail / 2
        return value + np.maximum(t - radius, 0) * tail

    f = (second, first, bell)[derivative]
    return f(u + 1) - 2 * f(u) + f(u - 1)


def box_slope(u: np.ndarray) -> np.ndarray:
    """quadratic B-spline's derivative: the difference of two hats."""
    return hat(u + 0.5) - hat(u - 0.5)


def hat_slope(u: np.ndarray) -> np.ndarray:
    """cubic B-spline's derivative."""
    return quadratic(u + 0.5) - quadratic(u - 0.5)


def taps(table: TapTable, u: float) -> dict[int, float]:
    """The taps of an event at u, {bin: value}, straight from the definition of the class."""
    first = math.floor(u - table.shift)
    r = u - table.shift - first
    s = max(s for s, start in enumerate(table.starts) if start <= r)
    x = r - table.starts[s]
    return {
        first + m: sum(c * x**n for n, c in enumerate(tap))
        for m, tap in enumerate(table.coefficients[s])
    }


def sampled(table: TapTable, u: np.ndarray) -> np.ndarray:
    """The kernel itself at the distances u, by its taps."""
    return np.array([taps(table, float(v)).get(0, 0.0) for v in u])


def positions(count: int, reach: float = 4.6, seed: int = 0) -> np.ndarray:
    """Positions at random, none of them a whole or a half number."""
    u = np.random.default_rng(seed).uniform(-reach, reach, count)
    return u + 1e-3 * (np.abs(2 * u - np.round(2 * u)) < 1e-3)


# ------------------------------------------------------------------------------------- tap tables

# B-spline order: (taps at r = 0.25, their derivatives), by hand:
#   quadratic (1-r)^2/2, 1/2+r-r^2, r^2/2;   derivative r-1, 1-2r, r
#   cubic (1-r)^3/6, (3r^3-6r^2+4)/6, (-3r^3+3r^2+3r+1)/6, r^3/6;
#         derivative -(1-r)^2/2, (3r^2-4r)/2, (-3r^2+2r+1)/2, r^2/2
GOLDEN_TAPS = {
    0: ([1.0], [0.0]),
    1: ([0.75, 0.25], [-1.0, 1.0]),
    2: ([0.28125, 0.6875, 0.03125], [-0.75, 0.5, 0.25]),
    3: (
        [0.0703125, 0.611979166666667, 0.315104166666667, 0.002604166666667],
        [-0.28125, -0.40625, 0.65625, 0.03125],
    ),
}


@pytest.mark.parametrize("order", GOLDEN_TAPS)
def test_taps_have_the_values_worked_out_by_hand(order: int):
    table = tap_table(bspline(order).shape)
    values, slopes = GOLDEN_TAPS[order]
    u = 5 + table.shift + 0.25
    assert list(taps(table, u).values()) == pytest.approx(values, abs=1e-14)
    assert list(taps(table.derivative, u).values()) == pytest.approx(slopes, abs=1e-14)
    assert (table.taps, table.segments, table.terms) == (order + 1, 1, order + 1)


def test_keys_taps_have_the_values_worked_out_by_hand():
    """At r = 1/2 the well-known -1/16, 9/16, 9/16, -1/16; the slopes from 1.5|u|^3 - 2.5 u^2 + 1
    and -0.5|u|^3 + 2.5 u^2 - 4|u| + 2 at |u| = 1/2 and 3/2."""
    table = tap_table(keys().shape)
    assert list(taps(table, 7.5).values()) == [-0.0625, 0.5625, 0.5625, -0.0625]
    assert list(taps(table, 7.5)) == [6, 7, 8, 9]
    assert list(taps(table.derivative, 7.5).values()) == [0.125, -1.375, 1.375, -0.125]
    assert list(taps(table, 7.0).values()) == [0.0, 1.0, 0.0, 0.0]  # it interpolates


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-14), ("float32", 1e-9)])
def test_kernels_are_their_closed_forms_centred_on_their_bin(name: str, precision, tolerance):
    form, _ = FORMS[name]
    table = tap_table(kernel(name).shape, precision)
    u = positions(300)
    np.testing.assert_allclose(kernel(name)(u), form(u), rtol=0, atol=1e-14)
    np.testing.assert_allclose(sampled(table, u), form(u), rtol=0, atol=tolerance)
    # At bin 7 as at bin 0, and nothing anywhere else.
    for v in u[:50]:
        at = taps(table, v + 7)
        for j in range(15):
            assert at.get(j, 0.0) == pytest.approx(float(form(v + 7 - j)), abs=10 * tolerance)


def test_kernels_hold_what_belongs_to_the_next_bin_at_their_upper_edge_only():
    """Half-open, as the bins of a histogram are: a position on an edge has one bin."""
    assert taps(tap_table(bspline(0).shape), 0.5) == {1: 1.0}
    assert taps(tap_table(bspline(0).shape), -0.5) == {0: 1.0}
    assert bspline(0)(np.array([-0.5, 0.5])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(("binning", "reconstruction"), PAIRS)
def test_float32_tables_differ_from_float64_ones_by_less_than_float32_rounds(
    binning: str, reconstruction: str
):
    pair = [kernel(name) for name in (binning, reconstruction)]
    assert_float32_tables_are_good(*pair)


@pytest.mark.parametrize("made", [gaussian(5.0), gaussian(0.2), lanczos(8)])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_float32_tables_are_good_for_kernels_of_any_width_and_height(made: Kernel, scale: float):
    scaled = Kernel("scaled", made.shape.scaled(Fraction(scale)))
    assert_float32_tables_are_good(scaled, bspline(1))


def assert_float32_tables_are_good(binning: Kernel, reconstruction: Kernel):
    coarse = kernel_pair(binning, reconstruction, precision="float32").synthesis
    fine = kernel_pair(binning, reconstruction, precision="float64").synthesis
    assert coarse.terms <= fine.terms
    u = positions(200, reach=fine.taps)
    for _ in range(3):  # kappa, kappa', kappa''
        expected = sampled(fine, u)
        error = np.abs(sampled(coarse, u) - expected).max()
        assert error <= 2.0**-25 * np.abs(expected).max()
        coarse, fine = coarse.derivative, fine.derivative


# --------------------------------------------------------------------------------------- synthesis


@pytest.mark.parametrize(
    ("binning", "reconstruction", "forms"),
    [
        ("rect", "linear", [quadratic, box_slope]),
        ("linear", "rect", [quadratic, box_slope]),
        ("linear", "linear", [cubic, hat_slope]),
        ("quadratic", "rect", [cubic, hat_slope]),
        ("gaussian", "linear", [lambda u, d=d: erf_form(u, d) for d in range(3)]),
        ("linear", "gaussian", [lambda u, d=d: erf_form(u, d) for d in range(3)]),
        ("rect", "keys", [quartic, lambda u: keys_form(u + 0.5) - keys_form(u - 0.5)]),
        (
            "rect",
            "lanczos",
            [sine_integral_form, lambda u: lanczos_form(u + 0.5) - lanczos_form(u - 0.5)],
        ),
    ],
)
def test_synthesis_kernel_has_its_closed_form(
    binning: str, reconstruction: str, forms: Sequence[Function]
):
    """kappa and, where they are listed, kappa' and kappa''."""
    u = positions(400)
    shape = synthesis(kernel(binning), kernel(reconstruction))
    table = kernel_pair(kernel(binning), kernel(reconstruction)).synthesis
    for form in forms:
        np.testing.assert_allclose(shape(u), form(u), rtol=0, atol=1e-13)
        np.testing.assert_allclose(sampled(table, u), form(u), rtol=0, atol=1e-13)
        shape, table = shape.derivative(), table.derivative


def breaks_of_the_product(u: float, binning: str, reconstruction: str) -> list[float]:
    """Where l(u - t) k(t) is not smooth in t, within the support of k."""
    own = FORMS[binning][1]
    mirrored = [u - b for b in FORMS[reconstruction][1]]
    return [own[0], *sorted(b for b in (*own[1:-1], *mirrored) if own[0] < b < own[-1]), own[-1]]


@pytest.mark.parametrize(("binning", "reconstruction"), PAIRS)
def test_synthesis_kernel_is_the_integral_of_the_product(binning: str, reconstruction: str):
    k, l = FORMS[binning][0], FORMS[reconstruction][0]  # noqa: E741
    shape = synthesis(kernel(binning), kernel(reconstruction))
    for u in positions(6, reach=2.5, seed=1):
        ends = breaks_of_the_product(u, binning, reconstruction)
        total = math.fsum(
            quad(lambda t, u=u: float(l(u - t) * k(t)), a, b, epsabs=1e-13)[0]
            for a, b in pairwise(ends)
        )
        assert float(shape(np.array(u))) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(("binning", "reconstruction"), [*PAIRS, *((n, None) for n in NAMES)])
def test_derivatives_are_derivatives_of_one_another(binning: str, reconstruction: str | None):
    """Between the breaks the integral of kappa' is the rise of kappa, and likewise kappa''."""
    l = None if reconstruction is None else kernel(reconstruction)  # noqa: E741
    table = kernel_pair(kernel(binning), l).synthesis
    breaks = np.array([float(b) for b in synthesis(kernel(binning), l).breaks])
    nodes, weights = np.polynomial.legendre.leggauss(12)
    for upper in (table, table.derivative):
        for a, b in pairwise(breaks):
            a, b = a + 0.1 * (b - a), b - 0.1 * (b - a)
            inside = (a + b) / 2 + (b - a) / 2 * nodes
            integral = (b - a) / 2 * float(weights @ sampled(upper.derivative, inside))
            rise = float(np.diff(sampled(upper, np.array([a, b])))[0])
            assert integral == pytest.approx(rise, abs=1e-12)


def sum_of_taps(name: str, u: np.ndarray) -> np.ndarray:
    """s(u) = sum_j k(u - j), from the closed form."""
    return np.sum([FORMS[name][0](u - j) for j in range(-5, 6)], axis=0)


@pytest.mark.parametrize(("binning", "reconstruction"), PAIRS)
def test_taps_sum_to_one_where_either_kernel_does(binning: str, reconstruction: str):
    """To the product of the areas, to be exact, which is one but for the truncated Gaussian; the
    derivatives sum to zero. Neither Gaussian nor Lanczos sum to the same at every position. With
    each other the mean is right and the sum is the periodic convolution of the two sums."""
    area = math.prod(
        0.9973002039367398 if n == "gaussian" else 1 for n in (binning, reconstruction)
    )
    exact = synthesis(kernel(binning), kernel(reconstruction)).integral()
    assert float(exact) == pytest.approx(area, abs=1e-14)
    table = kernel_pair(kernel(binning), kernel(reconstruction)).synthesis
    if binning in UNITY or reconstruction in UNITY:
        r = np.arange(48) / 48 + 1e-3
        sums = [sum(taps(table, float(u)).values()) for u in r]
        assert sums == pytest.approx([area] * len(r), abs=1e-13)
        slopes = [sum(taps(table.derivative, float(u)).values()) for u in r]
        assert slopes == pytest.approx([0.0] * len(r), abs=1e-12)
        return
    for u in (0.1, 0.35, 0.7):
        points = [0, *sorted({0.5, u, (u + 0.5) % 1}), 1]  # where a bell ends
        convolution = math.fsum(
            quad(
                lambda t, u=u: float(sum_of_taps(binning, t) * sum_of_taps(reconstruction, u - t)),
                a,
                b,
                epsabs=1e-13,
            )[0]
            for a, b in pairwise(points)
        )
        assert sum(taps(table, u).values()) == pytest.approx(convolution, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_have_the_areas_and_sums_that_are_stated(name: str):
    area = kernel(name).shape.integral()
    r = np.arange(64) / 64 + 1e-3
    sums = np.array([sum(taps(tap_table(kernel(name).shape), float(u)).values()) for u in r])
    if name == "gaussian":
        assert float(area) == pytest.approx(math.erf(3 / math.sqrt(2)), abs=1e-14)
        assert 0.03 < np.ptp(sums) < 0.04
    elif name == "lanczos":
        assert float(area) == pytest.approx(1, abs=1e-15)
        assert 0.001 < np.ptp(sums) < 0.03
    else:
        assert area == 1
        assert sums == pytest.approx(np.ones(64), abs=1e-14)
    assert sums.mean() == pytest.approx(float(area), abs=1e-3)


@pytest.mark.parametrize("order", range(1, 4))
def test_splines_reproduce_straight_lines(order: int):
    """The mean bin is the event's position."""
    table = tap_table(bspline(order).shape)
    for u in positions(20):
        assert sum(j * v for j, v in taps(table, u).items()) == pytest.approx(u, abs=1e-13)


def test_keys_reproduces_parabolas():
    table = tap_table(keys().shape)
    for u in positions(20):
        assert sum(j * j * v for j, v in taps(table, u).items()) == pytest.approx(u * u, abs=1e-13)


@pytest.mark.parametrize(("binning", "reconstruction"), PAIRS)
def test_synthesis_kernel_is_even_its_slope_odd_its_curvature_even(
    binning: str, reconstruction: str
):
    table = kernel_pair(kernel(binning), kernel(reconstruction)).synthesis
    u = positions(40)
    for sign in (1, -1, 1):
        np.testing.assert_allclose(sampled(table, -u), sign * sampled(table, u), rtol=0, atol=1e-12)
        table = table.derivative


def test_no_reconstruction_leaves_the_binning_kernel():
    for name in NAMES:
        pair = kernel_pair(kernel(name), None)
        assert pair.synthesis.coefficients == pair.binning.coefficients
        assert pair.weights is pair.binning


def test_weights_are_pulled_back_by_the_binning_kernel_or_by_kappa():
    pair = kernel_pair(bspline(0), bspline(1))
    assert pair.weights is pair.binning
    assert pair.weights.taps == 1
    pair = kernel_pair(bspline(0), bspline(1), "synthesised")
    assert pair.weights is pair.synthesis
    assert pair.weights.taps == 3


# ---------------------------------------------------------------------------------- making kernels


def test_a_kernel_is_made_once():
    assert gaussian() is kernel("gaussian")
    assert gaussian(0.5, 3) is gaussian()
    assert kernel("gaussian(sigma=0.5, truncate=3.0)") is gaussian()
    assert lanczos() is kernel("lanczos") is lanczos(2)
    assert lanczos(3) is not lanczos(2)
    assert bspline(0) is kernel("rect")
    assert kernel(keys()) is keys()
    assert str([keys(), lanczos(3)]) == "[keys, lanczos(lobes=3)]"


@pytest.mark.parametrize(("sigma", "truncate"), [(0.5, 2.0), (0.3, 4.0), (1.7, 3.0)])
def test_gaussian_of_any_width(sigma: float, truncate: float):
    k = gaussian(sigma, truncate)
    u = positions(200, reach=6)
    density = np.exp(-((u / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
    expected = np.where(np.abs(u) < sigma * truncate, density, 0.0)
    np.testing.assert_allclose(k(u), expected, rtol=0, atol=1e-14)
    assert float(k.shape.integral()) == pytest.approx(math.erf(truncate / math.sqrt(2)), abs=1e-14)


@pytest.mark.parametrize("lobes", [1, 3, 5])
def test_lanczos_of_any_width(lobes: int):
    k = lanczos(lobes)
    u = positions(200, reach=6)
    window = np.where(np.abs(u) < lobes, np.sinc(u) * np.sinc(u / lobes), 0.0)
    ratio = k(u)[window != 0] / window[window != 0]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)
    assert k.shape.integral() == 1


RAISED_COSINE = register_kernel(
    "raised cosine", lambda u: (1 + np.cos(np.pi * u)) / 2, breaks=(-1, 1)
)
TRIANGLE = register_kernel("triangle", lambda u: 1 - np.abs(u), breaks=(-1, 0, 1))
# Leans to one side: what an event does to the bins before it and behind it differs.
DECAY = register_kernel("decay", lambda u: np.exp(-u) / (1 - math.exp(-3)), breaks=(0, 3))


def test_a_registered_kernel_serves_by_name_and_as_it_is():
    assert kernel("raised cosine") is RAISED_COSINE
    u = positions(200)
    inside = np.abs(u) < 1
    expected = np.where(inside, (1 + np.cos(np.pi * u)) / 2, 0.0)
    np.testing.assert_allclose(RAISED_COSINE(u), expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(TRIANGLE(u), hat(u), rtol=0, atol=1e-15)


def raised_cosine_and_hat(u: np.ndarray, derivative: int) -> np.ndarray:
    """The hat's stencil (1, -2, 1) over the antiderivatives of (1 + cos(pi u)) / 2."""

    def first(t: np.ndarray) -> np.ndarray:
        t = np.clip(t, -1, 1)
        return (t + 1 + np.sin(np.pi * t) / np.pi) / 2

    def second(t: np.ndarray) -> np.ndarray:
        inside = np.clip(t, -1, 1)
        value = ((inside + 1) ** 2 / 2 - (np.cos(np.pi * inside) + 1) / np.pi**2) / 2
        return value + np.maximum(t - 1, 0)

    def zeroth(t: np.ndarray) -> np.ndarray:
        return np.where(np.abs(t) < 1, (1 + np.cos(np.pi * t)) / 2, 0.0)

    f = (second, first, zeroth)[derivative]
    return f(u + 1) - 2 * f(u) + f(u - 1)


def decay_and_box(u: np.ndarray, derivative: int) -> np.ndarray:
    def first(t: np.ndarray) -> np.ndarray:
        return (1 - np.exp(-np.clip(t, 0, 3))) / (1 - math.exp(-3))

    def zeroth(t: np.ndarray) -> np.ndarray:
        return np.where((t > 0) & (t < 3), np.exp(-t) / (1 - math.exp(-3)), 0.0)

    f = (first, zeroth)[derivative]
    return f(u + 0.5) - f(u - 0.5)


@pytest.mark.parametrize(
    ("binning", "reconstruction", "form", "derivatives"),
    [
        ("raised cosine", "linear", raised_cosine_and_hat, 3),
        ("linear", "raised cosine", raised_cosine_and_hat, 3),
        ("raised cosine", "triangle", raised_cosine_and_hat, 3),
        ("decay", "rect", decay_and_box, 2),
        ("rect", "decay", decay_and_box, 2),
        ("triangle", "triangle", lambda u, d: (cubic, hat_slope)[d](u), 2),
    ],
)
def test_synthesis_of_registered_kernels_is_as_good_as_a_closed_form(
    binning: str, reconstruction: str, form, derivatives: int
):
    u = positions(400)
    table = kernel_pair(kernel(binning), kernel(reconstruction)).synthesis
    for d in range(derivatives):
        np.testing.assert_allclose(sampled(table, u), form(u, d), rtol=0, atol=1e-13)
        table = table.derivative


@pytest.mark.parametrize(
    ("name", "function", "breaks", "message"),
    [
        ("rect", hat, (-1, 0, 1), "kernel name 'rect': expected one not taken"),
        ("gaussian", hat, (-1, 0, 1), "not taken"),
        ("raised cosine", hat, (-1, 0, 1), "not taken"),
        ("", hat, (-1, 0, 1), "not taken"),
        ("gaussian(sigma=0.9, truncate=3.0)", hat, (-1, 0, 1), "not taken"),
        ("lanczos(lobes=3)", hat, (-1, 0, 1), "not taken"),
        # What a fit at few points would not see.
        ("new", lambda u: np.where(u < 0.9991, 1.0, 0.0), (-1, 1), "not smooth between"),
        ("a;b", hat, (-1, 0, 1), "without ; and |"),
        ("a|b", hat, (-1, 0, 1), "without ; and |"),
        ("new", hat, (), r"breaks are \[\]; expected two or more ascending"),
        ("new", hat, (1,), "expected two or more ascending"),
        ("new", hat, (1, 0, -1), "expected two or more ascending"),
        ("new", hat, (-1, 0, 0, 1), "expected two or more ascending"),
        ("new", hat, (-1, math.nan, 1), "expected two or more ascending finite"),
        ("new", hat, (-math.inf, 1), "finite"),
        ("new", hat, (-40, 40), "kernel 'new' spans 80 bins; expected at most 64"),
        ("new", lambda u: hat(u - 0.3), (-1, 1.3), "not smooth between .*: name every point"),
        ("new", np.sqrt, (0, 1), "not smooth between"),
        (
            "new",
            lambda u: np.where(u < 0.3, u, np.nan),
            (0, 1),
            "gave nan at .*; expected a finite",
        ),
        ("new", lambda u: u[:-1], (0, 1), r"gave shape \(14,\) for positions of shape \(15,\)"),
        ("new", lambda u: 1.0, (0, 1), r"gave shape \(\) for positions of shape \(15,\)"),
    ],
)
def test_a_bad_kernel_is_refused_in_one_line_and_not_registered(
    name: str, function, breaks, message: str
):
    known = dict(kernels.KERNELS)
    with pytest.raises(ConfigError, match=message) as caught:
        register_kernel(name, function, breaks)
    assert "\n" not in str(caught.value)
    assert known == kernels.KERNELS


def test_the_same_kernel_may_be_registered_again():
    """As when a notebook's cell is run once more."""
    again = register_kernel(
        "raised cosine",
        lambda u: (1 + np.cos(np.pi * u)) / 2,
        breaks=np.array([-1, 1], np.float32).tolist(),
    )
    assert again is RAISED_COSINE


def test_kernels_are_made_by_the_names_that_they_have():
    """So that a program which was saved finds them in a process that has not made them."""
    for made in (gaussian(0.7, 2.5), gaussian(1e-2), lanczos(3)):
        del kernels.KERNELS[made.name]
        again = kernel(made.name)
        assert (again.name, again.shape.pieces) == (made.name, made.shape.pieces)
    assert bspline(1.0) is bspline(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bspline(4), "B-spline of order 4: expected 0 to 3"),
        (lambda: bspline(-1), "B-spline of order -1"),
        (lambda: gaussian(0.0), "gaussian with sigma 0 bins and truncate 3: expected positive"),
        (lambda: gaussian(0.5, -1), "expected positive numbers"),
        (lambda: gaussian(math.nan), "expected positive numbers"),
        (lambda: gaussian(math.inf), "at most 64 bins"),
        (lambda: gaussian(20.0), "a support .* of at most 64 bins"),
        (lambda: lanczos(0), "lanczos with 0 lobes: expected a whole number from 1 to 8"),
        (lambda: lanczos(9), "lanczos with 9 lobes"),
        (lambda: lanczos(1.5), "lanczos with 1.5 lobes"),  # type: ignore[arg-type]
        (lambda: kernel("gauss"), "kernel 'gauss': expected one of gaussian, lanczos, rect"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(make: Callable[[], Kernel], message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------- piecewise polynomials

coefficients = st.lists(st.integers(-8, 8), min_size=1, max_size=5)


@st.composite
def piecewise_polynomials(draw) -> PiecewisePolynomial:
    cuts = sorted(draw(st.sets(st.integers(-24, 24), min_size=2, max_size=5)))
    pieces = tuple(tuple(Fraction(c, 4) for c in draw(coefficients)) for _ in range(len(cuts) - 1))
    return PiecewisePolynomial(tuple(Fraction(c, 8) for c in cuts), pieces)


def integrated(f: PiecewisePolynomial, g: PiecewisePolynomial, u: float) -> float:
    """The convolution at u by Gauss-Legendre between all breaks, exact for polynomials."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    cuts = {float(b) for b in f.breaks} | {u - float(b) for b in g.breaks}
    total = 0.0
    for a, b in pairwise(sorted(cuts)):
        t = (a + b) / 2 + (b - a) / 2 * nodes
        total += (b - a) / 2 * float(weights @ (f(t) * g(u - t)))
    return total


@settings(max_examples=60, deadline=None)
@given(piecewise_polynomials(), piecewise_polynomials(), st.floats(-6, 6))
def test_convolution_is_the_integral_of_the_product(f, g, u: float):
    found = convolved(f, g)
    scale = 1 + sum(abs(float(c)) for p in (*f.pieces, *g.pieces) for c in p) ** 2 * 1e3
    assert float(found(np.array(u))) == pytest.approx(integrated(f, g, u), abs=1e-12 * scale)
    assert found.integral() == f.integral() * g.integral()
    swapped = convolved(g, f)
    assert (swapped.breaks, swapped.pieces) == (found.breaks, found.pieces)


@settings(max_examples=60, deadline=None)
@given(piecewise_polynomials(), st.fractions(-4, 4, max_denominator=8))
def test_a_piecewise_polynomial_goes_on_as_it_is_expanded(f: PiecewisePolynomial, at: Fraction):
    polynomial = f.expanded_at(at)
    step = Fraction(1, 64)  # breaks are at eighths
    value = sum(c * step**n for n, c in enumerate(polynomial))
    assert float(f(np.array(float(at + step)))) == pytest.approx(float(value), abs=1e-6)
    slope = sum(n * c * step ** (n - 1) for n, c in enumerate(polynomial) if n)
    assert float(f.derivative()(np.array(float(at + step)))) == pytest.approx(
        float(slope), abs=1e-6
    )
    doubled = f.scaled(Fraction(2))
    assert doubled.integral() == 2 * f.integral()


@settings(max_examples=60, deadline=None)
@given(coefficients, st.sampled_from([0.0, 2.0**-34, 1e-3, 10.0]), st.integers(1, 8))
def test_economised_polynomials_stay_within_the_tolerance(
    values: list[int], tolerance: float, eighths: int
):
    polynomial, width = tuple(map(Fraction, values)), Fraction(eighths, 8)
    tolerances = tolerance, 3 * tolerance, 20 * tolerance
    shorter = economised(polynomial, width, tolerances)
    assert len(shorter) <= len(polynomial)
    difference = [c - (shorter[n] if n < len(shorter) else 0) for n, c in enumerate(polynomial)]
    for allowed in tolerances:
        for x in (width * n / 16 for n in range(17)):
            assert abs(sum(c * x**n for n, c in enumerate(difference))) <= allowed
        difference = [n * c for n, c in enumerate(difference)][1:]


@pytest.mark.parametrize(
    ("function", "breaks"),
    [
        (np.exp, (-3, 2)),
        (lambda u: np.cos(9 * u), (-1.25, 0.5, 1)),
        (lambda u: 1 / (1 + 25 * u**2), (-1, 1)),
        (lambda u: np.zeros_like(u), (-1, 1)),
        (lambda u: np.where(u < 0.3, u, 1 - u), (-1, 0.3, 1)),
    ],
)
def test_fits_are_as_good_as_float64(function: Function, breaks: tuple[float, ...]):
    shape = fitted(function, breaks)
    u = np.linspace(breaks[0], breaks[-1], 2001, endpoint=False) + 1e-9
    scale = np.abs(function(u)).max()
    np.testing.assert_allclose(shape(u), function(u), rtol=0, atol=4e-15 * max(scale, 1e-300))
    assert shape(np.array([breaks[0] - 0.1, breaks[-1], breaks[-1] + 2])).tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------- properties

names = st.sampled_from(NAMES)


@settings(max_examples=80, deadline=None)
@given(names, names, st.integers(-50, 50), st.integers(0, 3), st.floats(0.01, 0.99))
def test_kappa_s_derivative_is_its_slope(
    binning: str, reconstruction: str, j: int, segment: int, part: float
):
    """By central differences inside a segment: between them the slope itself may jump."""
    table = kernel_pair(kernel(binning), kernel(reconstruction)).synthesis
    start, stop = [*pairwise((*table.starts, 1.0))][segment % table.segments]
    u, step = j + table.shift + start + part * (stop - start), 1e-5
    here, ahead, behind = (
        taps(t, v) for t, v in ((table.derivative, u), (table, u + step), (table, u - step))
    )
    for j, slope in here.items():
        assert (ahead[j] - behind[j]) / (2 * step) == pytest.approx(slope, abs=1e-8)


@settings(max_examples=80, deadline=None)
@given(names, names, st.integers(-1000, 1000), st.integers(-3, 3))
def test_moving_by_whole_bins_moves_the_taps(binning: str, reconstruction: str, n: int, bins: int):
    """Positions on a raster of 1/256, where the sums are exact."""
    table = kernel_pair(kernel(binning), kernel(reconstruction)).synthesis
    u = n / 256
    moved = taps(table, u + bins)
    assert {j - bins: v for j, v in moved.items()} == taps(table, u)


splines_and_keys = st.sampled_from(UNITY)


@settings(max_examples=40, deadline=None)
@given(splines_and_keys, splines_and_keys, splines_and_keys, st.floats(-4, 4))
def test_convolution_is_exactly_associative(first: str, second: str, third: str, u: float):
    a, b, c = (kernel(name).shape for name in (first, second, third))
    left, right = convolved(convolved(a, b), c), convolved(a, convolved(b, c))
    assert (left.breaks, left.pieces) == (right.breaks, right.pieces)
    assert left.integral() == 1
    assert float(left(np.array(u))) == pytest.approx(float(right(np.array(-u))), abs=1e-12)
