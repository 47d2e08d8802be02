"""The derivatives of binning: against their formulas and each other, under torch's transforms."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from binning_harness import (
    F32,
    F64,
    Names,
    Shift,
    binning_by,
    every,
    jvp,
    leaf,
    squares,
    uniform,
    vjp,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import functional, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.utils.checkpoint import checkpoint

from event_binning_grad.binning import autograd, bin_events, cpu, reference
from event_binning_grad.binning.kernels import (
    KernelPair,
    kernel,
    kernel_pair,
    keys,
    pair_of,
    synthesis,
)
from event_binning_grad.binning.operator import kernel_pairs
from event_binning_grad.binning.reference import Grid

KERNELS = ("rect", "linear", "quadratic", "cubic", "gaussian", "keys", "lanczos")
ALL_PAIRS: list[Names] = [(k, r) for k in KERNELS for r in (*KERNELS, None)]
PAIRS: list[Names] = [
    ("rect", "linear"),
    ("linear", "linear"),
    ("linear", None),
    ("gaussian", "linear"),
    ("rect", "keys"),
    ("quadratic", "lanczos"),
]
# Smooth between their breaks, so that without a reconstruction the gradient is the true one.
SLOPED = ("linear", "quadratic", "cubic", "gaussian", "keys", "lanczos")


def between_breaks(rng: torch.Generator, *size: int, low: int, high: int) -> Tensor:
    """Positions that are 0.08 bins and more from every whole, half and quarter number."""
    quarters = torch.randint(4 * low, 4 * high, size, generator=rng)
    return (quarters + uniform(rng, *size, low=0.35, high=0.65)) / 4


# ------------------------------------------------------------------ raw gradients: the true ones


@every("binning", SLOPED)
@every("dimensions", (1, 2))
def test_raw_derivatives_are_the_true_ones(
    back_end: ModuleType, binning: str, dimensions: int, rng: torch.Generator
):
    """First and second, in reverse and forward mode and one over the other."""
    shape = (3, 4)[:dimensions]
    coords = leaf(between_breaks(rng, 2, 3, dimensions, low=-1, high=5))
    weights = leaf(uniform(rng, 2, 3, low=-1))
    # Along one direction at random, where all of them would take long.
    options: dict[str, Any] = {"fast_mode": dimensions > 1}

    def binned(x: Tensor, w: Tensor) -> Tensor:
        return bin_events(x, w, shape=shape, binning=binning, reconstruction=None, bin_size=0.8)

    with binning_by(back_end):
        assert gradcheck(binned, (coords, weights), check_forward_ad=True, **options)
        assert gradgradcheck(binned, (coords, weights), check_fwd_over_rev=True, **options)


def test_raw_derivatives_are_the_true_ones_in_three_dimensions(
    back_end: ModuleType, rng: torch.Generator
):
    coords = leaf(between_breaks(rng, 3, 3, low=-1, high=4))
    weights = leaf(uniform(rng, 3, low=-1))

    def binned(x: Tensor, w: Tensor) -> Tensor:
        return bin_events(x, w, shape=(2, 3, 2), binning="linear", reconstruction=None)

    with binning_by(back_end):
        assert gradcheck(binned, (coords, weights), check_forward_ad=True, fast_mode=True)
        assert gradgradcheck(binned, (coords, weights), check_fwd_over_rev=True, fast_mode=True)


def test_rect_has_no_raw_gradient():
    coords = torch.rand(20, 2, requires_grad=True)
    image = bin_events(coords * 6, shape=(6, 6), reconstruction=None)
    (gradient,) = torch.autograd.grad((image**2).sum(), coords)
    assert (gradient == 0).all()


@every("names", ALL_PAIRS)
def test_weights_gradient_is_exact_for_every_pair(names: Names, rng: torch.Generator):
    coords = uniform(rng, 5, 2, low=-1.3, high=4.3)
    weights = leaf(uniform(rng, 5, low=-1))

    def binned(w: Tensor) -> Tensor:
        return bin_events(coords, w, shape=(3, 4), binning=names[0], reconstruction=names[1])

    assert gradcheck(binned, (weights,), check_forward_ad=True)


# ----------------------------------------------------------- synthesised gradients: those of kappa


def kappa_of(names: Names):
    reconstruction = None if names[1] is None else kernel(names[1])
    return synthesis(kernel(names[0]), reconstruction)


@every("names", ALL_PAIRS)
def test_synthesised_gradient_is_that_of_a_binning_by_kappa(
    back_end: ModuleType, names: Names, rng: torch.Generator
):
    """d/dx sum_j c_j kappa((x - j) / size), by central differences."""
    n, bins, size = 25, 7, 0.8
    coords = leaf(between_breaks(rng, n, 1, low=-3, high=10) * size)
    weights, cotangent = uniform(rng, n, low=-1), uniform(rng, bins, low=-1)
    with binning_by(back_end):
        bin_events(
            coords, weights, shape=(bins,), binning=names[0], reconstruction=names[1],
            bin_size=size,
        ).backward(cotangent)  # fmt: skip

    def smooth(x: np.ndarray) -> np.ndarray:
        return kappa_of(names)(x[:, None] / size - np.arange(bins)) @ cotangent.numpy()

    x, step = coords.detach()[:, 0].numpy(), 1e-5
    expected = weights.numpy() * (smooth(x + step) - smooth(x - step)) / (2 * step)
    assert coords.grad is not None
    np.testing.assert_allclose(coords.grad[:, 0].numpy(), expected, rtol=0, atol=2e-8)


def smoothed(names: Names) -> KernelPair:
    """A pair that bins by kappa, too, so that its derivatives are the true ones."""
    return pair_of(kappa_of(names), kappa_of(names))


@every("names", PAIRS)
def test_derivatives_with_fixed_cotangents_are_those_of_a_binning_by_kappa(
    names: Names, rng: torch.Generator
):
    """Of <c, h> by the coords, gradient and Hessian, in 2-D: there k itself plays no part."""
    grid, pairs = (
        Grid((5, 6), (0.0, 0.0), (1.0, 1.0)),
        kernel_pairs((names[0],) * 2, (names[1],) * 2, "exact", F64),
    )
    coords, weights = between_breaks(rng, 1, 4, 2, low=-2, high=8), uniform(rng, 1, 4)
    cotangent = uniform(rng, 1, 5, 6, low=-1)

    def loss(pairs, x: Tensor) -> Tensor:
        return (autograd.splat(x, weights, grid, pairs) * cotangent).sum()

    by_kappa = [smoothed(names)] * 2
    assert gradcheck(lambda x: loss(by_kappa, x), leaf(coords))
    for derivative in (grad, hessian):
        torch.testing.assert_close(
            derivative(lambda x: loss(pairs, x))(coords),
            derivative(lambda x: loss(by_kappa, x))(coords),
            atol=1e-12,
            rtol=0,
        )


@every("names", ALL_PAIRS)
def test_hessian_has_its_formula(names: Names, rng: torch.Generator):
    """sum_j c_j d2h_j + J^T L'' J, where J and d2h are taken by kappa for coords, k for weights."""
    n, bins, size = 5, 6, 0.75
    coords, weights = between_breaks(rng, n, low=-2, high=8) * size, uniform(rng, n)

    def loss(x: Tensor, w: Tensor) -> Tensor:
        image = bin_events(
            x[:, None], w, shape=(bins,), binning=names[0], reconstruction=names[1], bin_size=size
        )
        return (image**3).sum()

    u = coords.numpy()[:, None] / size - np.arange(bins)
    kappa = kappa_of(names)
    k = kernel(names[0])(u)
    slope = kappa.derivative()(u) / size
    bend = kappa.derivative().derivative()(u) / size**2
    w = weights.numpy()
    h = w @ k
    c, curvature = 3 * h**2, 6 * h
    by_x, by_w = w[:, None] * slope, k  # J [event, bin]
    expected = (
        (
            np.diag(w * (bend @ c)) + (by_x * curvature) @ by_x.T,
            np.diag(slope @ c) + (by_x * curvature) @ by_w.T,
        ),
        (
            np.diag(slope @ c) + (by_w * curvature) @ by_x.T,
            (by_w * curvature) @ by_w.T,
        ),
    )
    found: dict[str, Any] = {
        "torch.func": hessian(loss, (0, 1))(coords, weights),
        "torch.autograd.functional": functional.hessian(loss, (coords, weights)),
    }
    for name, blocks in found.items():
        for i, j in product((0, 1), repeat=2):
            np.testing.assert_allclose(
                blocks[i][j].numpy(), expected[i][j], rtol=0, atol=1e-10, err_msg=f"{name} {i}{j}"
            )


@every("names", PAIRS)
@every("outer", (jacfwd, jacrev))
@every("inner", (jacfwd, jacrev))
def test_all_ways_to_the_hessian_agree(
    back_end: ModuleType, names: Names, outer, inner, rng: torch.Generator
):
    coords, weights = uniform(rng, 2, 2, low=-1, high=7), uniform(rng, 2)
    with binning_by(back_end):
        found = outer(inner(squares(names), (0, 1)), (0, 1))(coords, weights)
        expected = functional.hessian(squares(names), (coords, weights))
    for i, j in product((0, 1), repeat=2):
        torch.testing.assert_close(found[i][j], expected[i][j], atol=1e-10, rtol=0)


@every("names", PAIRS)
@every("weights_gradient", ("exact", "synthesised"))
def test_forward_and_reverse_mode_are_transposes(
    back_end: ModuleType, names: Names, weights_gradient: Any, rng: torch.Generator
):
    """<c, J t> = <J^T c, t>, and the same for the second derivatives H = H^T."""
    coords, weights = uniform(rng, 2, 30, 2, low=-2, high=8), uniform(rng, 2, 30, low=-1)
    dx, dw = uniform(rng, 2, 30, 2, low=-1), uniform(rng, 2, 30, low=-1)
    dx2, dw2 = uniform(rng, 2, 30, 2, low=-1), uniform(rng, 2, 30, low=-1)
    cotangent = uniform(rng, 2, 6, 7, low=-1)

    def binned(x: Tensor, w: Tensor) -> Tensor:
        return bin_events(
            x, w, shape=(6, 7), binning=names[0], reconstruction=names[1],
            weights_gradient=weights_gradient,
        )  # fmt: skip

    def gradients(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return vjp(binned, x, w)[1](cotangent)

    with binning_by(back_end):
        _, change = jvp(binned, (coords, weights), (dx, dw))
        by_x, by_w = gradients(coords, weights)
        _, first = jvp(gradients, (coords, weights), (dx, dw))
        _, second = jvp(gradients, (coords, weights), (dx2, dw2))
    forward = float((cotangent * change).sum())
    assert forward == pytest.approx(float((by_x * dx).sum() + (by_w * dw).sum()), abs=1e-10)
    one = float((first[0] * dx2).sum() + (first[1] * dw2).sum())
    assert one == pytest.approx(float((second[0] * dx).sum() + (second[1] * dw).sum()), abs=1e-9)


@every("rows", PAIRS)
@every("columns", [("rect", "linear"), ("linear", None), ("keys", "quadratic")])
def test_dimensions_multiply(rows: Names, columns: Names, rng: torch.Generator):
    """One event in 2-D is the product of two in 1-D, and so are its gradient and its Hessian."""
    position = between_breaks(rng, 2, low=0, high=5)
    c = [uniform(rng, bins, low=-1) for bins in (5, 6)]
    sizes = (0.5, 1.25)

    def one(d: int, names: Names) -> Callable[[Tensor], Tensor]:
        def value(x: Tensor) -> Tensor:
            image = bin_events(
                x.view(1, 1), shape=(len(c[d]),), binning=names[0], reconstruction=names[1],
                bin_size=sizes[d],
            )  # fmt: skip
            return (image * c[d]).sum()

        return value

    def both(x: Tensor) -> Tensor:
        image = bin_events(
            x[None], shape=(5, 6), binning=(rows[0], columns[0]),
            reconstruction=(rows[1], columns[1]), bin_size=sizes,
        )  # fmt: skip
        return (image * c[0][:, None] * c[1]).sum()

    x = position * torch.tensor(sizes, dtype=F64)
    # Where a dimension is not differentiated it is sampled by kappa, in derivatives.
    plain = [one(0, rows)(x[0]), one(1, columns)(x[1])]
    smooth = [
        torch.tensor(kappa_of(names)(float(x[d]) / sizes[d] - np.arange(len(c[d]))) @ c[d].numpy())
        for d, names in enumerate((rows, columns))
    ]
    slope = [grad(one(0, rows))(x[0]), grad(one(1, columns))(x[1])]
    bend = [grad(grad(one(0, rows)))(x[0]), grad(grad(one(1, columns)))(x[1])]
    torch.testing.assert_close(both(x), plain[0] * plain[1], atol=1e-12, rtol=0)
    gradient = torch.stack([slope[0] * smooth[1], smooth[0] * slope[1]])
    torch.testing.assert_close(grad(both)(x), gradient, atol=1e-11, rtol=0)
    cross = slope[0] * slope[1]
    expected = torch.stack([bend[0] * smooth[1], cross, cross, smooth[0] * bend[1]]).view(2, 2)
    torch.testing.assert_close(hessian(both)(x), expected, atol=1e-10, rtol=0)


# Cotangents that are samples of a polynomial p which the reconstruction reproduces: c(u) = p(u), so
# that the gradient is the derivative of p convolved with k, exactly.
EXACT_TO = {"linear": 1, "quadratic": 1, "cubic": 1, "keys": 2}


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from((*KERNELS, "falling ramp")),
    st.sampled_from(sorted(EXACT_TO)),
    st.floats(8, 11),
    st.tuples(*(st.floats(-2, 2),) * 3),
    st.floats(0.3, 3),
    st.sampled_from([reference, cpu]),
)
def test_polynomials_are_differentiated_exactly(
    binning: str, reconstruction: str, u: float, coefficients, size: float, module: ModuleType
):
    """(p * k)(x) = sum_n p^(n)(x) (-1)^n m_n / n!, with m_n the moments of k.

    With p = a + b u + c u^2 in bins the derivative is (b + 2 c u) m_0 - 2 c m_1.
    """
    a, b, c = coefficients
    if EXACT_TO[reconstruction] < 2:
        c = 0.0
    shape = kernel(binning).shape
    nodes, weights = np.polynomial.legendre.leggauss(24)
    moments = [0.0, 0.0]
    for start, stop in zip(shape.breaks[:-1], shape.breaks[1:], strict=True):
        half = float(stop - start) / 2
        t = float(start) + half * (1 + nodes)
        for n in (0, 1):
            moments[n] += half * float(weights @ (shape(t) * t**n))
    bins = torch.arange(20, dtype=F64)
    x = torch.tensor([[u * size]], dtype=F64, requires_grad=True)
    with binning_by(module):
        image = bin_events(
            x, shape=(20,), binning=binning, reconstruction=reconstruction, bin_size=size
        )
        image.backward(a + b * bins + c * bins**2)
    assert x.grad is not None
    expected = ((b + 2 * c * u) * moments[0] - 2 * c * moments[1]) / size
    assert float(x.grad) == pytest.approx(expected, abs=1e-10 / size)


@every("binning", ["rect", "linear"])
@every("bin_size", [1.0, 0.05])
def test_gradient_is_unbiased_where_the_raw_one_is_not(binning: str, bin_size: float):
    """A blob of events slides over the bins: dL/dshift against differences over a whole bin.

    L is the squared distance of the image to a fixed target, a smooth loss whose cotangent field
    changes slowly between bins.
    """
    rng = np.random.default_rng(3)
    events = torch.tensor(rng.normal(0, 2.5, 4000) * bin_size)
    bins = torch.arange(64, dtype=F64)
    target = 4000 * torch.exp(-((bins - 36) ** 2) / (2 * 4.0**2)) / (4.0 * math.sqrt(2 * math.pi))

    def loss(shift: Tensor, reconstruction: str | None) -> Tensor:
        image = bin_events(
            (events + shift)[:, None], shape=(64,), binning=binning,
            reconstruction=reconstruction, bin_size=bin_size,
        )  # fmt: skip
        return ((image - target) ** 2).sum()

    errors: dict[str | None, list[float]] = {"linear": [], None: []}
    scale = []
    for centre in np.linspace(26, 33, 41) * bin_size:
        ends = [loss(torch.tensor(centre + s * bin_size / 2), None) for s in (-1, 1)]
        difference = float(ends[1] - ends[0]) / bin_size
        scale.append(difference)
        for reconstruction, found in errors.items():
            shift = torch.tensor(centre, requires_grad=True)
            (slope,) = torch.autograd.grad(loss(shift, reconstruction), shift)
            found.append(float(slope) - difference)
    rms = {name: float(np.sqrt(np.mean(np.square(e)))) for name, e in errors.items()}
    assert rms["linear"] < 0.05 * float(np.sqrt(np.mean(np.square(scale))))
    assert rms["linear"] < rms[None]
    if binning == "rect":
        assert rms[None] == pytest.approx(float(np.sqrt(np.mean(np.square(scale)))))


def test_gradient_has_the_unit_of_the_coords(rng: torch.Generator):
    """Coordinates and bins ten times as small: the slope is ten times as great."""
    pixels = leaf(uniform(rng, 30, 2, high=6))
    metres = leaf(pixels / 10)
    for coords, size in ((pixels, 1.0), (metres, 0.1)):
        (bin_events(coords, shape=(6, 6), bin_size=size) ** 2).sum().backward()
    assert metres.grad is not None
    assert pixels.grad is not None
    torch.testing.assert_close(metres.grad, pixels.grad * 10, rtol=1e-9, atol=1e-9)


def test_events_outside_have_a_gradient_only_within_reach_of_the_kernel(back_end: ModuleType):
    # The cubic B-spline reaches 2 bins: at -1.5 the first bin pulls, at -2.5 nothing does.
    x = torch.tensor([[-1.5], [-2.5], [4.5], [5.5]], dtype=F64, requires_grad=True)
    with binning_by(back_end):
        image = bin_events(x, shape=(4,), binning="linear")
        assert image.abs().sum() == 0
        image.backward(torch.ones(4, dtype=F64))
    assert x.grad is not None
    assert x.grad[:, 0].tolist() == [0.125, 0.0, -0.125, 0.0]


# --------------------------------------------------------------------------- what autograd asks for


def test_only_the_needed_gradients_reach_the_leaves():
    coords, weights = torch.rand(5, 2), torch.rand(5, requires_grad=True)
    bin_events(coords, weights, shape=(2, 2)).sum().backward()
    assert weights.grad is not None
    assert coords.grad is None
    assert not bin_events(coords, shape=(2, 2)).requires_grad


@every("of_coords", (False, True))
def test_only_the_needed_gradients_are_computed(of_coords: bool, rng: torch.Generator):
    coords, weights = uniform(rng, 5, 2, high=3), uniform(rng, 5)
    needed = (coords if of_coords else weights).requires_grad_()
    with (
        binning_by(reference),
        mock.patch.object(reference, "pull_back", wraps=reference.pull_back) as pull_back,
    ):
        (bin_events(coords, weights, shape=(3, 3)) ** 2).sum().backward()
    assert needed.grad is not None
    assert pull_back.call_args.args[-2:] == (of_coords, not of_coords)


def test_unused_second_derivatives_are_none_or_zero(rng: torch.Generator):
    """Weights enter linearly: their gradient does not depend on them under a linear loss."""
    coords, weights = leaf(uniform(rng, 5, 2, high=3)), leaf(uniform(rng, 5))
    (to_weights,) = torch.autograd.grad(
        bin_events(coords, weights, shape=(3, 3)).sum(), weights, create_graph=True
    )
    by_coords, by_weights = torch.autograd.grad(to_weights.sum(), (coords, weights))
    assert by_coords.abs().sum() > 0
    assert by_weights.abs().sum() == 0


@every("names", PAIRS)
def test_gradient_penalties_train(names: Names, rng: torch.Generator):
    """The gradient's own square as a loss: against differences of the gradient in float64."""
    coords, weights = leaf(between_breaks(rng, 4, 2, low=0, high=6)), leaf(uniform(rng, 4))

    def penalty(x: Tensor, w: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(squares(names)(x, w), x, create_graph=True)
        return (gradient**2).sum() + (gradient * x).sum()

    by_x, by_w = torch.autograd.grad(penalty(coords, weights), (coords, weights))
    hess = functional.hessian(squares(names), (coords, weights))
    (gradient,) = torch.autograd.grad(squares(names)(coords, weights), coords)
    along = 2 * gradient + coords.detach()
    torch.testing.assert_close(
        by_x, torch.einsum("ndme,me->nd", hess[0][0], along) + gradient, atol=1e-9, rtol=0
    )
    torch.testing.assert_close(
        by_w, torch.einsum("nme,me->n", hess[1][0], along), atol=1e-9, rtol=0
    )


def orders() -> list[tuple[Any, ...]]:
    return list(product((jacfwd, jacrev), repeat=3))


@every("order", orders())
def test_third_derivatives_are_refused_in_one_line(order, rng: torch.Generator):
    first, second, third = order
    coords, weights = uniform(rng, 2, 2, high=5), uniform(rng, 2)
    with pytest.raises(RuntimeError, match="bin_events has no third derivatives") as caught:
        first(second(third(squares(("linear", "linear")))))(coords, weights)
    assert "\n" not in str(caught.value)


def test_third_derivatives_are_refused_in_backward_and_where_coords_enter_twice(
    rng: torch.Generator,
):
    """Also where zero would pass for an answer, as the result depends on the coords directly."""
    coords, weights = leaf(uniform(rng, 3, 2, high=5)), uniform(rng, 3)
    loss = squares(("linear", "linear"))(coords, weights)
    (gradient,) = torch.autograd.grad(loss, coords, create_graph=True)
    (again,) = torch.autograd.grad((gradient**2).sum(), coords, create_graph=True)
    for last in (again.sum(), (again * coords).sum()):
        with pytest.raises(RuntimeError, match="no third derivatives"):
            last.backward(retain_graph=True)


def test_second_derivatives_are_differentiated_by_what_they_are_linear_in(rng: torch.Generator):
    """H t by t is H: what autograd.functional.hvp and implicit differentiation ask for."""
    loss = squares(("linear", "linear"))
    coords, weights = uniform(rng, 3, 2, high=5), uniform(rng, 3)
    dx, dw = uniform(rng, 3, 2, low=-1), uniform(rng, 3, low=-1)
    hess = functional.hessian(loss, (coords, weights))
    expected = [
        torch.einsum("ndme,me->nd", hess[0][0], dx) + torch.einsum("ndm,m->nd", hess[0][1], dw),
        torch.einsum("nme,me->n", hess[1][0], dx) + torch.einsum("nm,m->n", hess[1][1], dw),
    ]
    for product_of in (functional.hvp, functional.vhp):
        _, found = product_of(loss, (coords, weights), (dx, dw))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)

    def along(t: Tensor, v: Tensor) -> Tensor:
        return jvp(grad(loss), (coords, weights), (t, v))[1]

    def twice(t: Tensor, v: Tensor) -> Tensor:
        def once(x: Tensor, w: Tensor) -> Tensor:
            return jvp(loss, (x, w), (t, v))[1]

        return jvp(once, (coords, weights), (dx, dw))[1]

    for jacobian in (jacfwd, jacrev):
        by_t, by_v = jacobian(along, (0, 1))(dx, dw)
        torch.testing.assert_close(by_t, hess[0][0], atol=1e-10, rtol=0)
        torch.testing.assert_close(by_v, hess[0][1], atol=1e-10, rtol=0)
        by_t, by_v = jacobian(twice, (0, 1))(dx, dw)
        torch.testing.assert_close(by_t, expected[0], atol=1e-10, rtol=0)
        torch.testing.assert_close(by_v, expected[1], atol=1e-10, rtol=0)


def test_second_derivatives_are_differentiated_by_the_cotangents(rng: torch.Generator):
    coords, weights = uniform(rng, 3, 2, high=5), uniform(rng, 3)
    dx, cotangent = uniform(rng, 3, 2, low=-1), uniform(rng, 4, 5)

    def bend(c: Tensor) -> Tensor:
        def gradient(x: Tensor) -> Tensor:
            return vjp(lambda x: bin_events(x, weights, shape=(4, 5), binning="linear"), x)[1](c)[0]

        return jvp(gradient, (coords,), (dx,))[1]

    expected = bend(cotangent)
    for jacobian in (jacfwd, jacrev):
        by_c = jacobian(bend)(cotangent)
        torch.testing.assert_close(
            torch.einsum("ndij,ij->nd", by_c, cotangent), expected, atol=1e-11, rtol=0
        )


@every("missing", ("coords", "weights"))
def test_forward_mode_takes_a_tangent_of_coords_or_weights_alone(
    back_end: ModuleType, missing: str, rng: torch.Generator
):
    coords, weights = uniform(rng, 9, 2, high=5), uniform(rng, 9)
    dx, dw = uniform(rng, 9, 2, low=-1), uniform(rng, 9, low=-1)

    def binned(x: Tensor, w: Tensor) -> Tensor:
        return bin_events(x, w, shape=(4, 5), binning="linear")

    zeros = torch.zeros_like
    with binning_by(back_end), torch.autograd.forward_ad.dual_level():
        make, unpack = torch.autograd.forward_ad.make_dual, torch.autograd.forward_ad.unpack_dual
        if missing == "coords":
            image, full = binned(coords, make(weights, dw)), (zeros(dx), dw)
        else:
            image, full = binned(make(coords, dx), weights), (dx, zeros(dw))
        change = unpack(image).tangent
    with binning_by(back_end):
        torch.testing.assert_close(change, jvp(binned, (coords, weights), full)[1])


@every("shape", [(0, 4, 2), (3, 0, 2), (0, 2)])
def test_nothing_has_all_derivatives_of_nothing(shape: tuple[int, ...], rng: torch.Generator):
    coords, tangent = torch.zeros(shape, dtype=F64), torch.ones(shape, dtype=F64)

    def loss(x: Tensor) -> Tensor:
        return (bin_events(x, shape=(3, 4), binning="linear") ** 2).sum()

    value, slope = jvp(loss, (coords,), (tangent,))
    assert (float(value), float(slope)) == (0, 0)
    gradient, bend = jvp(grad(loss), (coords,), (tangent,))
    assert gradient.shape == bend.shape == shape


@every("names", PAIRS)
def test_nan_events_have_no_derivatives_and_spoil_none(names: Names, rng: torch.Generator):
    good, weights = uniform(rng, 5, 2, high=5), uniform(rng, 5)
    coords = good.clone()
    coords[1, 0], coords[3, 1] = math.nan, math.inf
    keep = torch.tensor([0, 2, 4])
    loss = squares(names)
    with torch.autograd.set_detect_anomaly(True):
        found = functional.hessian(loss, (coords, weights))
        expected = functional.hessian(loss, (good[keep], weights[keep]))
    for i, j in product((0, 1), repeat=2):
        block = found[i][j]
        assert torch.isfinite(block).all()
        inner = block[keep].index_select(2 - i, keep)
        torch.testing.assert_close(inner, expected[i][j], atol=1e-12, rtol=0)
        assert block[[1, 3]].abs().sum() == 0


@every("reentrant", (False, True))
def test_checkpointing_recomputes_the_same(reentrant: bool, rng: torch.Generator):
    coords, weights = leaf(uniform(rng, 9, 2, high=5)), leaf(uniform(rng, 9))
    loss = squares(("rect", "linear"))
    checkpoint(loss, coords, weights, use_reentrant=reentrant).backward()
    by_x, by_w = grad(loss, (0, 1))(coords.detach(), weights.detach())
    assert coords.grad is not None
    assert weights.grad is not None
    assert torch.equal(coords.grad, by_x)
    assert torch.equal(weights.grad, by_w)


def test_functional_call_differentiates_by_a_module_s_parameters(rng: torch.Generator):
    module, coords = Shift(), uniform(rng, 2, 9, 2, high=5)
    parameters = {name: value.detach() for name, value in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], coords: Tensor) -> Tensor:
        return (torch.func.functional_call(module, parameters, (coords,)) ** 2).sum()

    (module(coords) ** 2).sum().backward()
    found = grad(loss)(parameters, coords)
    each = vmap(grad(loss), (None, 0))(parameters, coords)
    for name, value in module.named_parameters():
        torch.testing.assert_close(found[name], value.grad)
        torch.testing.assert_close(each[name].sum(0), value.grad)


# --------------------------------------------------------------------------------------------- vmap


@every("names", PAIRS)
def test_vmap_is_the_loop(back_end: ModuleType, names: Names, rng: torch.Generator):
    """Over coords, weights or both, wherever the dimension is: image, gradients, products."""
    coords, weights = uniform(rng, 3, 2, 9, 2, low=-1, high=7), uniform(rng, 3, 2, 9)
    loss = squares(names)

    def everything(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        image = bin_events(x, w, shape=(6, 7), binning=names[0], reconstruction=names[1])
        _, product_ = jvp(grad(loss, (0, 1)), (x, w), (torch.ones_like(x), torch.ones_like(w)))
        return image, *grad(loss, (0, 1))(x, w), *product_

    cases = [
        ((coords, weights), (0, 0)),
        ((coords, weights[0]), (0, None)),
        ((coords[0], weights), (None, 0)),
        ((coords.movedim(0, 2), weights.movedim(0, 1)), (2, 1)),
    ]
    with binning_by(back_end):
        for inputs, in_dims in cases:
            found = vmap(everything, in_dims)(*inputs)
            for i in range(3):
                alone = [
                    value if dim is None else value.select(dim, i)
                    for value, dim in zip(inputs, in_dims, strict=True)
                ]
                for ours, theirs in zip(found, everything(*alone), strict=True):
                    torch.testing.assert_close(ours[i], theirs, atol=1e-12, rtol=0)


def test_nested_vmap_is_the_nested_loop(rng: torch.Generator):
    coords, weights = uniform(rng, 3, 4, 9, 2, high=6), uniform(rng, 4, 9)
    loss = squares(("rect", "keys"))
    found = vmap(vmap(grad(loss, (0, 1))), (0, None))(coords, weights)
    for i, j in product(range(3), range(4)):
        for ours, theirs in zip(found, grad(loss, (0, 1))(coords[i, j], weights[j]), strict=True):
            torch.testing.assert_close(ours[i, j], theirs, atol=1e-12, rtol=0)


def test_batched_cotangents_are_pulled_back_together(rng: torch.Generator):
    coords, cotangents = uniform(rng, 9, 2, high=6), uniform(rng, 5, 6, 7)
    _, pull_back = vjp(lambda x: bin_events(x, shape=(6, 7)), coords)
    (together,) = vmap(pull_back)(cotangents)
    for ours, cotangent in zip(together, cotangents, strict=True):
        torch.testing.assert_close(ours, pull_back(cotangent)[0], atol=1e-12, rtol=0)


# -------------------------------------------------------------------------------------- determinism


@every("names", PAIRS[:4])
def test_same_bits_at_any_number_of_threads_and_in_every_run(
    names: Names, rng: torch.Generator, torch_threads
):
    """Image, gradients, the image's change along a tangent, and second derivatives."""
    # So many that an image is added up of several parts.
    coords = uniform(rng, 2, 140_000, 2, low=-2, high=52, dtype=F32)
    weights = uniform(rng, 2, 140_000, low=-1, dtype=F32)
    tangents = torch.cos(coords), torch.sin(weights)
    cotangent = uniform(rng, 2, 50, 51, low=-1, dtype=F32)

    def binned(x: Tensor, w: Tensor) -> Tensor:
        return bin_events(x, w, shape=(50, 51), binning=names[0], reconstruction=names[1])

    def gradients(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return vjp(binned, x, w)[1](cotangent)

    def run(threads: int) -> list[Tensor]:
        with torch_threads(threads):
            image, change = jvp(binned, (coords, weights), tangents)
            first, second = jvp(gradients, (coords, weights), tangents)
        return [image, change, *first, *second]

    once = run(1)
    for threads in (2, 3, 1):
        assert all(torch.equal(a, b) for a, b in zip(once, run(threads), strict=True))


def test_tables_of_both_precisions_come_from_one_kernel(rng: torch.Generator):
    """float32 in, the float64 result but for the rounding of float32."""
    coords, weights = uniform(rng, 50, 2, high=6, dtype=F32), uniform(rng, 50, dtype=F32)
    for names in PAIRS[3:]:
        loss = squares(names)
        for derivative in (lambda f: f, lambda f: grad(f, (0, 1)), lambda f: (hessian(f),)[0]):
            found = derivative(loss)(coords, weights)
            exact = derivative(loss)(coords.double(), weights.double())
            for ours, theirs in zip(
                found if isinstance(found, tuple) else (found,),
                exact if isinstance(exact, tuple) else (exact,),
                strict=True,
            ):
                scale = max(1.0, float(theirs.abs().max()))
                torch.testing.assert_close(ours.double(), theirs, atol=2e-5 * scale, rtol=0)
    assert kernel_pair(keys(), keys(), precision="float32").synthesis.taps == 8
