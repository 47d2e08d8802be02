"""The binning operator: golden values, the numba back end against the reference, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from event_binning_grad.binning import bin_events, cpu, operator, reference
from event_binning_grad.binning.kernels import bspline, kernel_pair
from event_binning_grad.binning.reference import Grid
from event_binning_grad.errors import ConfigError, EventBinningError

F64 = torch.float64
PAIRS = [("rect", "linear"), ("rect", None), ("linear", "linear"), ("linear", None)]
SIZES = {1: (9,), 2: (7, 9), 3: (5, 6, 7), 4: (3, 4, 3, 5)}


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def uniform(rng: torch.Generator, *size: int, low=0.0, high=1.0, dtype=F64) -> Tensor:
    return torch.rand(*size, generator=rng, dtype=dtype) * (high - low) + low


def scattered(
    rng: torch.Generator, batch: int, events: int, shape: tuple[int, ...], dtype
) -> Tensor:
    """Events in, at and well beyond the border of the bins."""
    columns = [uniform(rng, batch, events, low=-4.0, high=n + 3.0, dtype=dtype) for n in shape]
    return torch.stack(columns, -1)


def evaluate(polynomial, u: float) -> dict[int, float]:
    """The taps of an event at u, {bin: value}, straight from the definition of the class."""
    first = math.floor(u - polynomial.shift)
    r = u - polynomial.shift - first
    return {
        first + m: sum(c * r**n for n, c in enumerate(tap))
        for m, tap in enumerate(polynomial.coefficients)
    }


# Closed forms of the centred B-splines, written over the distance of the event from the bin.
def box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def hat(x: float) -> float:
    return max(0.0, 1 - abs(x))


def quadratic(x: float) -> float:
    x = abs(x)
    return 0.75 - x * x if x <= 0.5 else (1.5 - x) ** 2 / 2 if x <= 1.5 else 0.0


def cubic(x: float) -> float:
    x = abs(x)
    return 2 / 3 - x * x + x**3 / 2 if x <= 1 else (2 - x) ** 3 / 6 if x <= 2 else 0.0


# ----------------------------------------------------------------------------------------- kernels

# order: (taps at r = 0.25, their derivatives), by hand:
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
    kernel = bspline(order)
    values, slopes = GOLDEN_TAPS[order]
    u = 5 + kernel.shift + 0.25
    assert list(evaluate(kernel, u).values()) == pytest.approx(values, abs=1e-14)
    assert list(evaluate(kernel.derivative(), u).values()) == pytest.approx(slopes, abs=1e-14)
    assert kernel.taps == order + 1


@pytest.mark.parametrize(("order", "form"), [(0, box), (1, hat), (2, quadratic), (3, cubic)])
def test_kernels_are_centred_on_their_bin(order: int, form: Callable[[float], float]):
    for u in np.linspace(3.01, 4.99, 67):
        taps = evaluate(bspline(order), float(u))
        for j in range(10):
            assert taps.get(j, 0.0) == pytest.approx(form(float(u) - j), abs=1e-13)


@pytest.mark.parametrize("order", range(6))
def test_taps_sum_to_one_and_their_derivatives_to_zero(order: int):
    kernel = bspline(order)
    for r in np.linspace(0, 1, 23, endpoint=False):
        u = float(r) + kernel.shift
        assert sum(evaluate(kernel, u).values()) == pytest.approx(1.0, abs=1e-14)
        assert sum(evaluate(kernel.derivative(), u).values()) == pytest.approx(0.0, abs=1e-13)
        # B-splines reproduce straight lines: the mean bin is the event's position.
        if order >= 1:
            mean = sum(j * v for j, v in evaluate(kernel, u).items())
            assert mean == pytest.approx(u, abs=1e-13)


@pytest.mark.parametrize(("binning", "order"), [("rect", 0), ("linear", 1)])
def test_synthesis_kernel_is_the_convolution_of_binning_and_reconstruction(
    binning: str, order: int
):
    form = box if order == 0 else hat
    pair = kernel_pair(binning, "linear")
    grid = np.linspace(-1, 1, 20001)
    for u in (-1.7, -0.9, -0.31, 0.0, 0.48, 1.2):
        inside = [hat(float(t)) * form(u - float(t)) for t in grid]
        assert evaluate(pair.synthesis, u).get(0, 0.0) == pytest.approx(
            float(np.mean(inside) * 2), abs=2e-4
        )
    raw = kernel_pair(binning, None)
    assert raw.synthesis == raw.binning == bspline(order)


# ----------------------------------------------------------------------------------------- forward


def test_rect_golden_image():
    # Bin j holds [j - 1/2, j + 1/2): pixel centres at integers, floor and not truncation.
    x = [-0.51, -0.5, -0.49, 0.0, 0.499, 0.5, 1.49, 1.5, 2.49, 2.5, -1.2, 7.0]
    image = bin_events(torch.tensor(x, dtype=F64)[:, None], shape=(3,), binning="rect")
    assert image.tolist() == [4.0, 2.0, 2.0]


def test_linear_golden_image():
    x = [-1.0, -0.75, 0.0, 0.25, 1.5, 2.0, 2.25, 3.0]
    image = bin_events(torch.tensor(x, dtype=F64)[:, None], shape=(3,), binning="linear")
    # -0.75 leaves 0.25 to bin 0; 2.25 leaves 0.75 to bin 2; what belongs to bins -1 and 3 is lost.
    assert image.tolist() == [0.25 + 1.0 + 0.75, 0.25 + 0.5, 0.5 + 1.0 + 0.75]


def test_two_dimensional_golden_image_in_the_order_of_the_coords():
    coords = torch.tensor([[0.0, 2.0], [1.25, 0.5]])
    assert bin_events(coords, shape=(2, 3), binning="rect").tolist() == [[0, 0, 1], [0, 1, 0]]
    image = bin_events(coords, torch.tensor([2.0, -4.0]), shape=(2, 3), binning="linear")
    assert image.tolist() == [[0, 0, 2], [-1.5, -1.5, 0]]


@pytest.mark.parametrize("binning", ["rect", "linear"])
@pytest.mark.parametrize("dimensions", SIZES)
def test_an_event_on_a_centre_fills_that_bin_alone(binning: str, dimensions: int):
    shape = SIZES[dimensions]
    origin = [0.5 * d - 3.0 for d in range(dimensions)]
    bin_size = [0.25 * (d + 1) for d in range(dimensions)]
    for bins in product(*(range(n) for n in shape)):
        centre = [o + j * s for o, j, s in zip(origin, bins, bin_size, strict=True)]
        image = bin_events(
            torch.tensor([centre], dtype=F64),
            shape=shape, binning=binning, origin=origin, bin_size=bin_size,
        )  # fmt: skip
        assert image[bins] == 1.0
        assert image.sum() == 1.0


@pytest.mark.parametrize("dimensions", SIZES)
@pytest.mark.parametrize(("binning", "reconstruction"), PAIRS)
def test_forward_and_backward_are_the_kernel_sums_of_the_formula(
    dimensions: int, binning: str, reconstruction: str | None, rng: torch.Generator
):
    """Against dense sums over all bins with the closed forms of the kernels, D = 1 to 4."""
    forms = {0: box, 1: hat, 2: quadratic, 3: cubic}
    order = {"rect": 0, "linear": 1}[binning]
    shape, n = SIZES[dimensions], 12
    origin = [0.3 + d for d in range(dimensions)]
    size = [0.5 + 0.25 * d for d in range(dimensions)]
    units = scattered(rng, 1, n, shape, torch.float64)[0]
    coords = (units * torch.tensor(size) + torch.tensor(origin, dtype=F64)).requires_grad_()
    weights = uniform(rng, n, low=-1).requires_grad_()
    cotangent = uniform(rng, *shape, low=-1)
    image = bin_events(
        coords, weights, shape=shape, binning=binning, reconstruction=reconstruction,
        origin=origin, bin_size=size,
    )  # fmt: skip
    image.backward(cotangent)

    def table(order: int, slope: bool) -> list[Tensor]:
        """[N, bins] a dimension: the kernel or its slope at every event and bin."""

        def f(x: float) -> float:
            if not slope:
                return forms[order](x)
            if order == 1:
                return float(np.where(abs(x) < 1, -np.sign(x), 0.0))
            h = 1e-5
            return 0.0 if order == 0 else (forms[order](x + h) - forms[order](x - h)) / (2 * h)

        u = units.numpy()
        return [
            torch.tensor(
                [[f(float(u[i, d]) - j) for j in range(bins)] for i in range(n)], dtype=F64
            )
            for d, bins in enumerate(shape)
        ]

    def contract(tables: list[Tensor], image: Tensor) -> Tensor:
        letters = "abcd"[:dimensions]
        spec = ",".join(f"n{x}" for x in letters) + f",{letters}->n"
        return torch.einsum(spec, *tables, image)

    k = table(order, False)
    letters = "abcd"[:dimensions]
    expected = torch.einsum(
        "n," + ",".join(f"n{x}" for x in letters) + f"->{letters}",
        weights.detach(), *k,
    )  # fmt: skip
    torch.testing.assert_close(image.detach(), expected, atol=1e-12, rtol=0)
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad, contract(k, cotangent), atol=1e-12, rtol=0)

    synthesis = order if reconstruction is None else order + 2
    kappa, slopes = table(synthesis, False), table(synthesis, True)
    for d in range(dimensions):
        mixed = [slopes[e] if e == d else kappa[e] for e in range(dimensions)]
        expected = weights.detach() / size[d] * contract(mixed, cotangent)
        assert coords.grad is not None
        torch.testing.assert_close(coords.grad[:, d], expected, atol=1e-8, rtol=0)


# ------------------------------------------------------------------- numba back end and reference


@pytest.mark.parametrize(
    ("dimensions", "dtype"), [(1, F64), (2, F64), (2, torch.float32), (3, F64)]
)
@pytest.mark.parametrize(("binning", "reconstruction"), PAIRS)
@pytest.mark.parametrize(("batch", "events"), [(3, 400), (1, 40_000), (2, 0), (0, 5)])
def test_numba_back_end_agrees_with_the_reference(
    dimensions: int,
    dtype: torch.dtype,
    binning: str,
    reconstruction: str | None,
    batch: int,
    events: int,
    rng: torch.Generator,
):
    shape = SIZES[dimensions]
    grid = Grid(shape, (0.25, -1.0, 2.0)[:dimensions], (0.5, 1.0, 1.25)[:dimensions])
    kernels = kernel_pair(binning, reconstruction)
    coords = scattered(rng, batch, events, shape, dtype)
    coords = coords * torch.tensor(grid.bin_size, dtype=dtype) + torch.tensor(
        grid.origin, dtype=dtype
    )
    weights = uniform(rng, batch, events, low=-1, dtype=dtype)
    if events >= 10:
        special = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30], dtype=dtype)
        coords[:, :5, 0] = special
        coords[:, 5:10, dimensions - 1] = special
    cotangent = uniform(rng, batch, *shape, low=-1, dtype=dtype)
    tolerance: dict[str, Any] = {"atol": 1e-12 * max(1, events), "rtol": 1e-12}
    if dtype == torch.float32:
        tolerance: dict[str, Any] = {"atol": 1e-6 * max(10, math.sqrt(events) * 5), "rtol": 1e-4}

    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "image": tuple(b.splat(coords, weights, grid, kernels) for b in (cpu, reference))  # type: ignore[dict-item]
    }
    ours = cpu.pull_back(cotangent, coords, weights, grid, kernels)
    theirs = reference.pull_back(cotangent, coords, weights, grid, kernels)
    pairs["gradient of coords"] = (ours[0], theirs[0])
    pairs["gradient of weights"] = (ours[1], theirs[1])
    for name, (found, expected) in pairs.items():
        assert found.dtype == dtype, name
        torch.testing.assert_close(
            found, expected, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert torch.isfinite(found).all(), name


def test_back_end_is_chosen_by_device_and_dimensions():
    assert operator._back_end(torch.zeros(1, 1, 3)) is cpu
    assert operator._back_end(torch.zeros(1, 1, 4)) is reference
    assert operator._back_end(torch.zeros(1, 1, 2, device="meta")) is reference


@pytest.mark.parametrize("backend", [cpu, reference])
@pytest.mark.parametrize(("binning", "reconstruction"), PAIRS)
def test_nan_and_infinity_are_dropped_and_have_no_gradient(
    backend, binning: str, reconstruction: str | None
):
    bad = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e19]
    coords = torch.tensor([[[1.25, 1.75], *([b, 1.0] for b in bad), *([1.0, b] for b in bad)]])
    grid, kernels = Grid((4, 4), (0.0, 0.0), (1.0, 1.0)), kernel_pair(binning, reconstruction)
    weights = torch.ones(coords.shape[:-1])
    image = backend.splat(coords, weights, grid, kernels)
    assert torch.equal(image, backend.splat(coords[:, :1], weights[:, :1], grid, kernels))
    assert image.sum() == 1.0
    to_coords, to_weights = backend.pull_back(torch.randn(1, 4, 4), coords, weights, grid, kernels)
    assert (to_coords[:, 1:] == 0).all()
    assert (to_weights[:, 1:] == 0).all()


def test_events_outside_have_a_gradient_only_within_reach_of_the_kernel():
    # The cubic B-spline reaches 2 bins: at -1.5 the first bin pulls, at -2.5 nothing does.
    x = torch.tensor([[-1.5], [-2.5], [4.5], [5.5]], dtype=F64, requires_grad=True)
    image = bin_events(x, shape=(4,), binning="linear")
    assert image.abs().sum() == 0
    image.backward(torch.ones(4, dtype=F64))
    assert x.grad is not None
    assert x.grad[:, 0].tolist() == [0.125, 0.0, -0.125, 0.0]


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 0), (0,)])
def test_batch_dimensions(shape: tuple[int, ...], rng: torch.Generator):
    coords = uniform(rng, *shape, 11, 2, low=-1, high=5).requires_grad_()
    weights = uniform(rng, *shape, 11).requires_grad_()
    image = bin_events(coords, weights, shape=(4, 5), binning="linear")
    assert image.shape == (*shape, 4, 5)
    cotangent = uniform(rng, *shape, 4, 5)
    image.backward(cotangent)
    assert coords.grad is not None
    assert weights.grad is not None
    assert coords.grad.shape == coords.shape
    for index in product(*(range(n) for n in shape)):
        alone = coords[index].detach().requires_grad_()
        one = bin_events(alone, weights[index].detach(), shape=(4, 5), binning="linear")
        assert torch.equal(one, image[index])
        one.backward(cotangent[index])
        assert alone.grad is not None
        assert torch.equal(alone.grad, coords.grad[index])


@pytest.mark.parametrize("binning", ["rect", "linear"])
def test_no_events_give_an_empty_image_and_empty_gradients(binning: str):
    coords = torch.zeros(0, 2, requires_grad=True)
    image = bin_events(coords, shape=(3, 4), binning=binning)
    assert image.tolist() == [[0.0] * 4] * 3
    image.sum().backward()
    assert coords.grad is not None
    assert coords.grad.shape == (0, 2)


@pytest.mark.parametrize(("binning", "reconstruction"), PAIRS)
def test_non_contiguous_inputs_and_cotangents(
    binning: str, reconstruction: str | None, rng: torch.Generator
):
    def run(coords: Tensor, weights: Tensor, cotangent: Tensor) -> list[Tensor]:
        coords, weights = coords.detach().requires_grad_(), weights.detach().requires_grad_()
        image = bin_events(
            coords, weights, shape=(5, 6), binning=binning, reconstruction=reconstruction
        )
        image.backward(cotangent)
        assert coords.grad is not None
        assert weights.grad is not None
        return [image.detach(), coords.grad, weights.grad]

    coords = uniform(rng, 2, 3, 40, low=-1, high=7).permute(1, 2, 0)  # [3, 40, 2]
    weights = uniform(rng, 3, 80)[:, ::2]
    cotangent = uniform(rng, 6, 5, 3).permute(2, 1, 0)
    strided = run(coords, weights, cotangent)
    packed = run(coords.contiguous(), weights.contiguous(), cotangent.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(strided, packed, strict=True))
    # A cotangent without storage of its own, as image.sum() makes it.
    flat = run(coords, weights, torch.ones(1, dtype=F64).expand(3, 5, 6))
    assert torch.equal(flat[1], run(coords, weights, torch.ones(3, 5, 6, dtype=F64))[1])


def test_no_weights_are_ones(rng: torch.Generator):
    coords = uniform(rng, 50, 2, high=6).requires_grad_()
    counted = bin_events(coords, shape=(6, 6))
    weighted = bin_events(coords, torch.ones(50, dtype=F64), shape=(6, 6))
    assert torch.equal(counted, weighted)
    (by_none,) = torch.autograd.grad((counted**2).sum(), coords)
    (by_ones,) = torch.autograd.grad((weighted**2).sum(), coords)
    assert torch.equal(by_none, by_ones)


# ----------------------------------------------------------------------------------------- gradient


@pytest.mark.parametrize("backend", ["operator", "reference"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_raw_linear_gradient_is_the_true_one(
    backend: str, dimensions: int, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    if backend == "reference":
        monkeypatch.setattr(operator, "_back_end", lambda coords: reference)
    shape = SIZES[dimensions]
    # Away from the hat's kinks, which are at the bins' centres.
    whole = torch.randint(-2, max(shape) + 1, (2, 6, dimensions), generator=rng)
    coords = (whole + uniform(rng, 2, 6, dimensions, low=0.1, high=0.9)).requires_grad_()
    weights = uniform(rng, 2, 6, low=-1).requires_grad_()

    def binned(x: Tensor, w: Tensor) -> Tensor:
        return bin_events(x, w, shape=shape, binning="linear", reconstruction=None)

    assert torch.autograd.gradcheck(binned, (coords, weights))


@pytest.mark.parametrize("backend", ["operator", "reference"])
@pytest.mark.parametrize(("binning", "reconstruction"), PAIRS)
def test_weights_gradient_is_exact_for_every_pair(
    backend: str,
    binning: str,
    reconstruction: str | None,
    rng: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
):
    if backend == "reference":
        monkeypatch.setattr(operator, "_back_end", lambda coords: reference)
    coords = uniform(rng, 9, 2, low=-1.3, high=5.3)
    weights = uniform(rng, 9, low=-1).requires_grad_()

    def binned(w: Tensor) -> Tensor:
        return bin_events(coords, w, shape=(4, 5), binning=binning, reconstruction=reconstruction)

    assert torch.autograd.gradcheck(binned, (weights,))


@pytest.mark.parametrize(("binning", "form"), [("rect", quadratic), ("linear", cubic)])
def test_synthesised_gradient_is_that_of_a_binning_by_kappa(
    binning: str, form: Callable[[float], float], rng: torch.Generator
):
    """d/dx sum_j c_j kappa(x - j) by central differences in float64, kappa from its closed form."""
    shape, n = (5, 6), 30
    coords = uniform(rng, n, 2, low=-2, high=7).requires_grad_()
    weights, cotangent = uniform(rng, n, low=-1), uniform(rng, *shape, low=-1)
    bin_events(coords, weights, shape=shape, binning=binning).backward(cotangent)

    def smooth(i: int, y: float, x: float) -> float:
        ky = torch.tensor([form(y - j) for j in range(shape[0])], dtype=F64)
        kx = torch.tensor([form(x - j) for j in range(shape[1])], dtype=F64)
        return float(weights[i] * (ky @ cotangent @ kx))

    step = 1e-5
    assert coords.grad is not None
    for i in range(n):
        y, x = coords[i].tolist()
        dy = (smooth(i, y + step, x) - smooth(i, y - step, x)) / (2 * step)
        dx = (smooth(i, y, x + step) - smooth(i, y, x - step)) / (2 * step)
        assert coords.grad[i].tolist() == pytest.approx([dy, dx], abs=1e-8)


def test_rect_has_no_raw_gradient():
    coords = torch.rand(20, 2, requires_grad=True)
    image = bin_events(coords * 6, shape=(6, 6), reconstruction=None)
    (gradient,) = torch.autograd.grad((image**2).sum(), coords)
    assert (gradient == 0).all()


@pytest.mark.parametrize("binning", ["rect", "linear"])
@pytest.mark.parametrize("bin_size", [1.0, 0.05])
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
    pixels = uniform(rng, 30, 2, high=6).requires_grad_()
    metres = (pixels.detach() / 10).requires_grad_()
    for coords, size in ((pixels, 1.0), (metres, 0.1)):
        (bin_events(coords, shape=(6, 6), bin_size=size) ** 2).sum().backward()
    assert metres.grad is not None
    assert pixels.grad is not None
    torch.testing.assert_close(metres.grad, pixels.grad * 10, rtol=1e-9, atol=1e-9)


def test_only_the_needed_gradients_reach_the_leaves():
    coords, weights = torch.rand(5, 2), torch.rand(5, requires_grad=True)
    bin_events(coords, weights, shape=(2, 2)).sum().backward()
    assert weights.grad is not None
    assert coords.grad is None
    assert not bin_events(coords, shape=(2, 2)).requires_grad


@pytest.mark.parametrize("penalty", [False, True])
def test_double_backward_is_refused_clearly(penalty: bool):
    """Also where the coords enter in another way, too, and zero would pass for an answer."""
    coords = torch.rand(5, 2, requires_grad=True)
    loss = (bin_events(coords, shape=(2, 2), binning="linear") ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, coords, create_graph=True)
    twice = (gradient * coords).sum() if penalty else gradient.sum()
    with pytest.raises(RuntimeError, match="bin_events has no second derivatives"):
        torch.autograd.grad(twice, coords)


@pytest.mark.parametrize(("binning", "reconstruction"), PAIRS)
def test_same_bits_at_any_number_of_threads_and_in_every_run(
    binning: str, reconstruction: str | None, rng: torch.Generator, numba_threads
):
    coords = uniform(rng, 2, 60_000, 2, low=-2, high=52, dtype=torch.float32)
    weights = uniform(rng, 2, 60_000, low=-1, dtype=torch.float32)
    cotangent = uniform(rng, 2, 50, 51, low=-1, dtype=torch.float32)

    def run(threads: int) -> list[Tensor]:
        x, w = coords.clone().requires_grad_(), weights.clone().requires_grad_()
        with numba_threads(threads):
            image = bin_events(x, w, shape=(50, 51), binning=binning, reconstruction=reconstruction)
            image.backward(cotangent)
        assert x.grad is not None
        assert w.grad is not None
        return [image.detach(), x.grad, w.grad]

    first = run(1)
    for threads in (2, 2, 1):
        assert all(torch.equal(a, b) for a, b in zip(first, run(threads), strict=True))


# ----------------------------------------------------------------------------------------- errors

GOOD = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"coords": GOOD.long()}, TypeError, "coords are torch.int64; expected float32"),
        ({"coords": GOOD.half()}, TypeError, "coords are torch.float16"),
        (
            {"coords": torch.zeros(4)},
            ValueError,
            r"coords have shape \(4,\); expected \[",
        ),
        ({"coords": torch.zeros(4, 0)}, ValueError, "D >= 1"),
        ({"weights": torch.ones(4, dtype=F64)}, TypeError, "weights are torch.float64"),
        ({"weights": torch.ones(3)}, ValueError, r"weights have shape \(3,\); expected \(4,\)"),
        ({"weights": torch.ones(4, 1)}, ValueError, r"weights have shape \(4, 1\)"),
        ({"shape": (3,)}, ValueError, r"shape is \(3,\); expected 2 positive"),
        ({"shape": (3, 0)}, ValueError, "expected 2 positive"),
        ({"shape": (3, -2)}, ValueError, "expected 2 positive"),
        ({"bin_size": 0.0}, ValueError, "bin_size is 0.0; expected positive"),
        ({"bin_size": (1.0, -1.0)}, ValueError, "expected positive"),
        ({"bin_size": math.nan}, ValueError, "bin_size is nan; expected a finite number"),
        ({"bin_size": (1.0, 1.0, 1.0)}, ValueError, "or 2 of them"),
        ({"origin": (0.0, 0.0, 0.0)}, ValueError, "origin is"),
        ({"origin": "left"}, ValueError, "origin is left"),
        ({"origin": math.inf}, ValueError, "origin is inf"),
        ({"binning": "gauss"}, ConfigError, "binning 'gauss': expected one of rect, linear"),
        ({"reconstruction": "keys"}, ConfigError, "reconstruction 'keys': expected one of linear"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    arguments: dict[str, Any], error: type[Exception], message: str
):
    call = {"coords": GOOD, "shape": (3, 3), **arguments}
    with pytest.raises(error, match=message) as caught:
        bin_events(call.pop("coords"), call.pop("weights", None), **call)
    assert "\n" not in str(caught.value)
    if error is ConfigError:
        assert isinstance(caught.value, EventBinningError)


def test_origin_and_bin_size_may_be_arrays():
    coords = torch.tensor([[1.0, 10.0], [1.5, 12.0]])
    expected = bin_events(coords, shape=(3, 3), origin=(1.0, 10.0), bin_size=(0.5, 2.0))
    for make in (np.array, torch.tensor, list):
        origin: Any = make([1.0, 10.0])
        bin_size: Any = make([0.5, 2.0])
        assert torch.equal(
            bin_events(coords, shape=(3, 3), origin=origin, bin_size=bin_size), expected
        )
    assert expected.trace() == 2


# ------------------------------------------------------------------------------------- properties

# Positions on a fine dyadic raster are exact in float64, so whole-bin shifts change no rounding.
positions = st.integers(-40, 180).map(lambda n: n / 16)
clouds = st.lists(st.tuples(positions, positions), min_size=1, max_size=12)
pairs = st.sampled_from(PAIRS)


def image_and_gradient(coords: Tensor, cotangent: Tensor, pair, shape: tuple[int, ...]):
    x = coords.detach().requires_grad_()
    image = bin_events(x, shape=shape, binning=pair[0], reconstruction=pair[1])
    image.backward(cotangent)
    assert x.grad is not None
    return image.detach(), x.grad


@settings(max_examples=60, deadline=None)
@given(clouds, pairs, st.integers(-3, 3), st.integers(-3, 3))
def test_moving_by_whole_bins_moves_the_image(cloud, pair, down: int, right: int):
    coords = torch.tensor(cloud, dtype=F64)
    image = bin_events(coords, shape=(24, 24), binning=pair[0], origin=-7.0)
    moved = bin_events(
        coords + torch.tensor([down, right]), shape=(24, 24), binning=pair[0], origin=-7.0
    )
    rolled = image.roll((down, right), (0, 1))  # nothing lies near the border
    torch.testing.assert_close(moved, rolled, atol=1e-12, rtol=0)


@settings(max_examples=60, deadline=None)
@given(clouds, pairs, st.floats(-3, 3), st.floats(-3, 3))
def test_image_is_linear_in_the_weights(cloud, pair, a: float, b: float):
    coords = torch.tensor(cloud, dtype=F64)
    rng = torch.Generator().manual_seed(len(cloud))
    first, second = uniform(rng, len(cloud), low=-1), uniform(rng, len(cloud), low=-1)

    def binned(weights: Tensor) -> Tensor:
        return bin_events(coords, weights, shape=(9, 9), binning=pair[0])

    combined = binned(a * first + b * second)
    torch.testing.assert_close(
        combined, a * binned(first) + b * binned(second), atol=1e-12, rtol=1e-12
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-2.9, 9.9), min_size=1, max_size=12), pairs)
def test_reflection_reflects_image_and_gradient(xs: list[float], pair):
    # Half-open bins and one-sided kinks are not symmetric at their very edges.
    coords = torch.tensor(xs, dtype=F64)[:, None]
    coords = coords[((coords * 2 - (coords * 2).round()).abs() > 1e-3).squeeze(-1)]
    cotangent = torch.sin(torch.arange(8, dtype=F64))
    image, gradient = image_and_gradient(coords, cotangent, pair, (8,))
    mirrored, back = image_and_gradient(7 - coords, cotangent.flip(0), pair, (8,))
    torch.testing.assert_close(mirrored, image.flip(0), atol=1e-12, rtol=0)
    torch.testing.assert_close(back, -gradient, atol=1e-12, rtol=0)


@settings(max_examples=60, deadline=None)
@given(clouds, pairs)
def test_events_inside_keep_their_mass_and_swapping_axes_transposes(cloud, pair):
    coords = torch.tensor(cloud, dtype=F64)
    image = bin_events(coords, shape=(20, 21), binning=pair[0], origin=-5.0)
    assert float(image.sum()) == pytest.approx(len(cloud), abs=1e-12)
    swapped = bin_events(coords.flip(1), shape=(21, 20), binning=pair[0], origin=-5.0)
    torch.testing.assert_close(swapped, image.T, atol=1e-12, rtol=0)
