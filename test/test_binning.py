"""Binning: golden images, the back ends against the formulas and each other, errors."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from binning_harness import F32, F64, Names, binning_by, uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from event_binning_grad.binning import backend, bin_events, cpu, reference
from event_binning_grad.binning.kernels import (
    bspline,
    gaussian,
    kernel,
    kernel_pair,
    keys,
    register_kernel,
    synthesis,
)
from event_binning_grad.binning.operator import kernel_pairs
from event_binning_grad.binning.piecewise import PiecewisePolynomial
from event_binning_grad.binning.reference import Grid, Pairs
from event_binning_grad.errors import ConfigError, EventBinningError

KERNELS = ("rect", "linear", "quadratic", "cubic", "gaussian", "keys", "lanczos")
# Every kernel in both roles, among them those of the paper; all others are covered in 1-D.
PAIRS: list[Names] = [
    ("rect", "linear"),
    ("rect", None),
    ("linear", "linear"),
    ("linear", None),
    ("quadratic", "cubic"),
    ("cubic", "rect"),
    ("gaussian", "linear"),
    ("keys", "gaussian"),
    ("rect", "keys"),
    ("lanczos", "quadratic"),
    ("rect", "lanczos"),
]
ALL_PAIRS: list[Names] = [(k, r) for k in KERNELS for r in (*KERNELS, None)]
# Numbers of taps that are compiled in, and numbers that are not; kernels with and without segments.
IN_FLOAT32 = [*PAIRS[:4], ("quadratic", "cubic"), ("gaussian", "linear")]
SIZES = {1: (9,), 2: (7, 9), 3: (5, 6, 7), 4: (3, 4, 3, 5)}


def label(value: Any) -> str:
    """What the name of a test calls its kernels and its type."""
    if isinstance(value, (tuple, list)):
        return "-".join(map(label, value))
    return str(value).removeprefix("torch.")


def scattered(
    rng: torch.Generator, batch: int, events: int, shape: tuple[int, ...], dtype
) -> Tensor:
    """Events in, at and well beyond the border of the bins."""
    columns = [uniform(rng, batch, events, low=-4.0, high=n + 3.0, dtype=dtype) for n in shape]
    return torch.stack(columns, -1)


def pairs_of(names: Names, dimensions: int, dtype=F64, weights_gradient: Any = "exact") -> Pairs:
    return kernel_pairs((names[0],) * dimensions, (names[1],) * dimensions, weights_gradient, dtype)


# ----------------------------------------------------------------------------------------- forward


def test_rect_golden_image(back_end: ModuleType):
    # Bin j holds [j - 1/2, j + 1/2): pixel centres at integers, floor and not truncation.
    x = [-0.51, -0.5, -0.49, 0.0, 0.499, 0.5, 1.49, 1.5, 2.49, 2.5, -1.2, 7.0]
    with binning_by(back_end):
        image = bin_events(torch.tensor(x, dtype=F64)[:, None], shape=(3,), binning="rect")
    assert image.tolist() == [4.0, 2.0, 2.0]


def test_linear_golden_image(back_end: ModuleType):
    x = [-1.0, -0.75, 0.0, 0.25, 1.5, 2.0, 2.25, 3.0]
    with binning_by(back_end):
        image = bin_events(torch.tensor(x, dtype=F64)[:, None], shape=(3,), binning="linear")
    # -0.75 leaves 0.25 to bin 0; 2.25 leaves 0.75 to bin 2; what belongs to bins -1 and 3 is lost.
    assert image.tolist() == [0.25 + 1.0 + 0.75, 0.25 + 0.5, 0.5 + 1.0 + 0.75]


def test_quadratic_cubic_and_keys_golden_images(back_end: ModuleType):
    """One event at 2.5, half-way between two bins, by hand."""
    golden = {
        "quadratic": [0, 0, 1 / 2, 1 / 2, 0, 0],
        "cubic": [0, 1 / 48, 23 / 48, 23 / 48, 1 / 48, 0],
        "keys": [0, -1 / 16, 9 / 16, 9 / 16, -1 / 16, 0],
    }
    for binning, expected in golden.items():
        with binning_by(back_end):
            image = bin_events(torch.tensor([[2.5]], dtype=F64), shape=(6,), binning=binning)
        assert image.tolist() == pytest.approx(expected, abs=1e-15)


def test_two_dimensional_golden_image_in_the_order_of_the_coords(back_end: ModuleType):
    coords = torch.tensor([[0.0, 2.0], [1.25, 0.5]])
    with binning_by(back_end):
        counted = bin_events(coords, shape=(2, 3), binning="rect")
        voted = bin_events(coords, torch.tensor([2.0, -4.0]), shape=(2, 3), binning="linear")
        mixed = bin_events(coords, shape=(2, 3), binning=("rect", "linear"))
    assert counted.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert voted.tolist() == [[0, 0, 2], [-1.5, -1.5, 0]]
    assert mixed.tolist() == [[0, 0, 1], [0.5, 0.5, 0]]


@pytest.mark.parametrize(
    ("binning", "dimensions"),
    [*product(("rect", "linear"), SIZES), *(("keys", d) for d in (1, 2))],
)
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


ONE_SIDED = register_kernel("one-sided ramp", lambda u: 2 * (1 - u), breaks=(0, 1))


def test_a_one_sided_kernel_votes_for_the_bin_behind_the_event(back_end: ModuleType):
    """k(u) with u = x - centre: what lives on u > 0 reaches bins below the event."""
    with binning_by(back_end):
        image = bin_events(torch.tensor([[2.25]], dtype=F64), shape=(5,), binning=ONE_SIDED)
        named = bin_events(torch.tensor([[2.25]], dtype=F64), shape=(5,), binning="one-sided ramp")
    assert image.tolist() == pytest.approx([0, 0, 1.5, 0, 0], abs=1e-14)
    assert torch.equal(image, named)


# --------------------------------------------------------------------- back ends and their formulas


class Formula:
    """The four functions as dense sums over all bins and events, in float64."""

    def __init__(self, coords: Tensor, grid: Grid, kernels: list[Names]):
        self.size = grid.bin_size
        self.letters = "xyzt"[: len(grid.shape)]
        pairs = [
            (
                kernel(k).shape,
                synthesis(kernel(k), None if r is None else kernel(r)),
            )
            for k, r in kernels
        ]
        self.tables: list[dict[str, Tensor]] = []
        for d, (k, kappa) in enumerate(pairs):
            centres = grid.origin[d] + np.arange(grid.shape[d]) * grid.bin_size[d]
            u = (coords[..., d, None].double().numpy() - centres) / grid.bin_size[d]  # [B, N, bins]
            slope = kappa.derivative()
            shapes: dict[str, PiecewisePolynomial] = {
                "k": k, "kappa": kappa, "kappa'": slope, "kappa''": slope.derivative()
            }  # fmt: skip
            self.tables.append({n: torch.tensor(shape(u)) for n, shape in shapes.items()})

    def factors(self, binning: bool, *derived: int) -> list[Tensor]:
        """[B, N, bins] a dimension: k, or kappa differentiated once wherever it is named."""
        if binning:
            return [table["k"] for table in self.tables]
        return [
            table["kappa" + "'" * derived.count(d)] / self.size[d] ** derived.count(d)
            for d, table in enumerate(self.tables)
        ]

    def scatter(self, weights: Tensor, binning: bool, *derived: int) -> Tensor:
        inputs = ",".join(f"bn{x}" for x in self.letters)
        return torch.einsum(
            f"bn,{inputs}->b{self.letters}", weights, *self.factors(binning, *derived)
        )

    def sample(self, image: Tensor, binning: bool, *derived: int) -> Tensor:
        inputs = ",".join(f"bn{x}" for x in self.letters)
        return torch.einsum(
            f"b{self.letters},{inputs}->bn", image, *self.factors(binning, *derived)
        )


@pytest.mark.parametrize(
    ("dimensions", "names", "dtype"),
    [
        *((1, names, F64) for names in ALL_PAIRS),
        *((1, ("one-sided ramp", r), F64) for r in ("linear", "keys", "one-sided ramp")),
        *((2, names, F64) for names in PAIRS),
        *((2, names, F32) for names in IN_FLOAT32),
        *((3, names, F64) for names in PAIRS[:4]),
        (3, ("linear", "linear"), F32),
    ],
    ids=label,
)
def test_functions_are_the_sums_of_their_formulas(
    back_end: ModuleType, dimensions: int, names: Names, dtype, rng: torch.Generator
):
    """Every function, every kernel, at events inside, on the border and outside."""
    check_formulas(back_end, dimensions, [names] * dimensions, dtype, rng)


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        ([("rect", "linear"), ("linear", None)], F32),
        ([("rect", "linear"), ("linear", None)], F64),
        ([("gaussian", "keys"), ("rect", "linear"), ("linear", "linear")], F32),
        ([("linear", "linear"), ("lanczos", "rect"), ("quadratic", None)], F64),
    ],
    ids=label,
)
def test_each_dimension_has_its_own_kernels(
    back_end: ModuleType, names: list[Names], dtype, rng: torch.Generator
):
    check_formulas(back_end, len(names), names, dtype, rng)


@pytest.mark.parametrize("names", PAIRS[:4], ids=label)
def test_the_reference_takes_any_number_of_dimensions(names: Names, rng: torch.Generator):
    check_formulas(reference, 4, [names] * 4, F64, rng)


def check_formulas(
    module: ModuleType, dimensions: int, names: list[Names], dtype, rng: torch.Generator
):
    batch, n, shape = 2, 10, SIZES[dimensions]
    grid = Grid(shape, (0.25, -1.0, 2.0, 0.0)[:dimensions], (0.5, 1.0, 2.0, 0.25)[:dimensions])
    binnings, reconstructions = zip(*names, strict=True)
    pairs = kernel_pairs(binnings, reconstructions, "exact", dtype)
    # Odd multiples of 1/128 of a bin: exact in float32, and on no edge of a kernel.
    units = torch.stack(
        [torch.randint(-4 * 64, (s + 3) * 64, (batch, n), generator=rng) for s in shape], -1
    )
    coords = (2 * units + 1) / 128 * torch.tensor(grid.bin_size) + torch.tensor(grid.origin)
    coords = coords.to(dtype)
    weights, dw = (uniform(rng, batch, n, low=-1, dtype=dtype) for _ in range(2))
    dx = uniform(rng, batch, n, dimensions, low=-1, dtype=dtype)
    c = uniform(rng, batch, *shape, low=-1, dtype=dtype)
    exact = Formula(coords, grid, names)
    each, w, v, t, cot = range(dimensions), *(a.double() for a in (weights, dw, dx, c))

    found: dict[str, Tensor | None] = {"image": module.splat(coords, weights, grid, pairs)}
    expected = {"image": exact.scatter(w, True)}
    found["dx"], found["dw"] = module.pull_back(c, coords, weights, grid, pairs)
    expected["dx"] = torch.stack([w * exact.sample(cot, False, d) for d in each], -1)
    expected["dw"] = exact.sample(cot, True)
    found["change"] = module.splat_tangent(coords, weights, dx, dw, grid, pairs)
    along = torch.stack([exact.scatter(w * t[..., d], False, d) for d in each]).sum(0)
    expected["change"] = along + exact.scatter(v, True)
    found["change by dx"] = module.splat_tangent(coords, weights, dx, None, grid, pairs)
    expected["change by dx"] = along
    bends = torch.stack(
        [sum(t[..., d] * exact.sample(cot, False, d, e) for d in each) for e in each],  # type: ignore[arg-type]
        -1,
    )
    slopes = torch.stack([exact.sample(cot, False, d) for d in each], -1)
    found["ddx"], found["ddw"] = module.pull_back_tangent(c, coords, weights, dx, dw, grid, pairs)
    expected["ddx"] = w[..., None] * bends + v[..., None] * slopes
    expected["ddw"] = (t * slopes).sum(-1)
    found["ddx by dx"], found["ddw by dx"] = module.pull_back_tangent(
        c, coords, weights, dx, None, grid, pairs
    )
    expected["ddx by dx"], expected["ddw by dx"] = w[..., None] * bends, expected["ddw"]

    tolerance = 1e-11 if dtype == F64 else 3e-5
    for name, value in expected.items():
        result = found[name]
        assert result is not None, name
        assert result.dtype == dtype, name
        torch.testing.assert_close(
            result.double(),
            value,
            atol=tolerance * max(1.0, float(value.abs().max())),
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_synthesised_weights_gradient_samples_by_kappa(back_end: ModuleType, rng: torch.Generator):
    grid, shape = Grid((7, 9), (0.0, 0.0), (1.0, 1.0)), (7, 9)
    coords = scattered(rng, 1, 12, shape, F64)
    weights, c = uniform(rng, 1, 12), uniform(rng, 1, *shape)
    pairs = pairs_of(("rect", "linear"), 2, F64, "synthesised")
    exact = Formula(coords, grid, [("rect", "linear")] * 2)
    _, to_weights = back_end.pull_back(c, coords, weights, grid, pairs)
    torch.testing.assert_close(to_weights, exact.sample(c, False), atol=1e-12, rtol=0)
    change = back_end.splat_tangent(coords, weights, torch.zeros_like(coords), weights, grid, pairs)
    torch.testing.assert_close(change, exact.scatter(weights, False), atol=1e-12, rtol=0)
    image = back_end.splat(coords, weights, grid, pairs)
    torch.testing.assert_close(image, exact.scatter(weights, True), atol=1e-12, rtol=0)


def test_only_what_is_wanted_is_computed(back_end: ModuleType, rng: torch.Generator):
    grid, pairs = Grid((7, 9), (0.0, 0.0), (1.0, 1.0)), pairs_of(("linear", "linear"), 2)
    coords, weights = scattered(rng, 2, 12, (7, 9), F64), uniform(rng, 2, 12)
    arguments = (uniform(rng, 2, 7, 9), coords, weights, grid, pairs)
    both = back_end.pull_back(*arguments)
    for want in product((False, True), repeat=2):
        for wanted, result, expected in zip(
            want, back_end.pull_back(*arguments, *want), both, strict=True
        ):
            assert torch.equal(result, expected) if wanted else result is None


CASES = [
    *((2, F32, names) for names in IN_FLOAT32),
    *((2, F64, names) for names in PAIRS[:4]),
    (1, F32, ("rect", "linear")),
    (1, F64, ("gaussian", "linear")),
    (3, F32, ("linear", "linear")),
    (3, F64, ("rect", "keys")),
]
# So many that the scatter is cut into parts.
MANY = [
    (2, F32, ("rect", "linear")),
    (2, F32, ("linear", "linear")),
    (2, F64, ("linear", None)),
    (1, F64, ("gaussian", "linear")),
]


@pytest.mark.parametrize(
    ("dimensions", "dtype", "names", "batch", "events"),
    [
        *((*case, *size) for case in CASES for size in ((3, 400), (2, 0), (0, 5))),
        *((*case, 1, 70_000) for case in MANY),
    ],
    ids=label,
)
def test_numba_back_end_agrees_with_the_reference(
    dimensions: int, dtype, names: Names, batch: int, events: int, rng: torch.Generator
):
    """At any number of events, parallel or not, with NaN and far-out ones among them."""
    shape = SIZES[dimensions]
    grid = Grid(shape, (0.25, -1.0, 2.0)[:dimensions], (0.5, 1.0, 1.25)[:dimensions])
    pairs = pairs_of(names, dimensions, dtype)
    coords = scattered(rng, batch, events, shape, dtype)
    coords = coords * torch.tensor(grid.bin_size, dtype=dtype) + torch.tensor(
        grid.origin, dtype=dtype
    )
    weights, dw = (uniform(rng, batch, events, low=-1, dtype=dtype) for _ in range(2))
    dx = uniform(rng, batch, events, dimensions, low=-1, dtype=dtype)
    if events >= 10:
        special = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30], dtype=dtype)
        coords[:, :5, 0] = special
        coords[:, 5:10, dimensions - 1] = special
    cotangent = uniform(rng, batch, *shape, low=-1, dtype=dtype)
    tolerance: dict[str, Any] = {"atol": 1e-12 * max(10, events), "rtol": 1e-12}
    if dtype == F32:
        tolerance = {"atol": 1e-6 * max(20, math.sqrt(events) * 5), "rtol": 1e-4}

    def results(module: ModuleType) -> dict[str, Tensor]:
        found = {"image": module.splat(coords, weights, grid, pairs)}
        found["dx"], found["dw"] = module.pull_back(cotangent, coords, weights, grid, pairs)
        found["change"] = module.splat_tangent(coords, weights, dx, dw, grid, pairs)
        found["ddx"], found["ddw"] = module.pull_back_tangent(
            cotangent, coords, weights, dx, dw, grid, pairs
        )
        return found

    expected = results(reference)
    for name, found in results(cpu).items():
        assert found.dtype == dtype, name
        torch.testing.assert_close(
            found, expected[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert torch.isfinite(found).all(), name


def test_back_end_is_chosen_by_device_and_dimensions(monkeypatch: pytest.MonkeyPatch):
    assert backend.back_end(torch.zeros(1, 1, 3)) is cpu
    assert backend.back_end(torch.zeros(1, 1, 4)) is reference
    assert backend.back_end(torch.zeros(1, 1, 2, device="meta")) is reference
    on_gpu: Any = SimpleNamespace(shape=(1, 1, 2), device=torch.device("cuda"))
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    assert backend.back_end(on_gpu) is reference


@pytest.mark.parametrize("names", PAIRS, ids=label)
def test_nan_and_infinity_are_dropped_and_have_no_gradient(back_end: ModuleType, names: Names):
    bad = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e19]
    coords = torch.tensor([[[1.25, 1.75], *([b, 1.0] for b in bad), *([1.0, b] for b in bad)]])
    grid, pairs = Grid((4, 4), (0.0, 0.0), (1.0, 1.0)), pairs_of(names, 2, F32)
    weights = torch.ones(coords.shape[:-1])
    image = back_end.splat(coords, weights, grid, pairs)
    alone = coords[:, :1], weights[:, :1]
    assert torch.equal(image, back_end.splat(*alone, grid, pairs))
    tangent = torch.ones_like(coords), torch.ones_like(weights)
    change = back_end.splat_tangent(coords, weights, *tangent, grid, pairs)
    assert torch.equal(
        change,
        back_end.splat_tangent(*alone, tangent[0][:, :1], tangent[1][:, :1], grid, pairs),
    )
    cotangent = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    for result in (
        *back_end.pull_back(cotangent, coords, weights, grid, pairs),
        *back_end.pull_back_tangent(cotangent, coords, weights, *tangent, grid, pairs),
    ):
        assert (result[:, 1:] == 0).all()


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


@pytest.mark.parametrize("binning", KERNELS)
def test_no_events_give_an_empty_image_and_empty_gradients(binning: str, back_end: ModuleType):
    coords = torch.zeros(0, 2, requires_grad=True)
    with binning_by(back_end):
        image = bin_events(coords, shape=(3, 4), binning=binning)
        image.sum().backward()
    assert image.tolist() == [[0.0] * 4] * 3
    assert coords.grad is not None
    assert coords.grad.shape == (0, 2)


@pytest.mark.parametrize("names", PAIRS, ids=label)
def test_non_contiguous_inputs_and_cotangents(
    back_end: ModuleType, names: Names, rng: torch.Generator
):
    def run(coords: Tensor, weights: Tensor, cotangent: Tensor) -> list[Tensor]:
        coords, weights = coords.detach().requires_grad_(), weights.detach().requires_grad_()
        with binning_by(back_end):
            image = bin_events(
                coords, weights, shape=(5, 6), binning=names[0], reconstruction=names[1]
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


def test_no_weights_are_ones(back_end: ModuleType, rng: torch.Generator):
    coords = uniform(rng, 50, 2, high=6).requires_grad_()
    with binning_by(back_end):
        counted = bin_events(coords, shape=(6, 6))
        weighted = bin_events(coords, torch.ones(50, dtype=F64), shape=(6, 6))
        (by_none,) = torch.autograd.grad((counted**2).sum(), coords)
        (by_ones,) = torch.autograd.grad((weighted**2).sum(), coords)
    assert torch.equal(counted, weighted)
    assert torch.equal(by_none, by_ones)


def test_every_leading_dimension_may_share_the_events(rng: torch.Generator):
    """Expanded inputs, whose elements share storage."""
    coords, weights = uniform(rng, 20, 2, high=6), uniform(rng, 20)
    image = bin_events(coords.expand(3, 20, 2), weights.expand(3, 20), shape=(6, 6))
    assert torch.equal(image, bin_events(coords, weights, shape=(6, 6)).expand(3, 6, 6))


# ----------------------------------------------------------------------------------------- errors

GOOD = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"coords": GOOD.numpy()}, TypeError, "coords are a ndarray; expected a torch tensor"),
        ({"coords": GOOD.long()}, TypeError, "coords are torch.int64; expected float32"),
        ({"coords": GOOD.half()}, TypeError, "coords are torch.float16"),
        (
            {"coords": torch.zeros(4)},
            ValueError,
            r"coords have shape \(4,\); expected \[",
        ),
        ({"coords": torch.zeros(())}, ValueError, r"coords have shape \(\); expected \["),
        ({"coords": torch.zeros(4, 0)}, ValueError, "D >= 1"),
        ({"weights": torch.ones(4, dtype=F64)}, TypeError, "weights are torch.float64"),
        ({"weights": 1.0}, TypeError, "weights are a float; expected a torch tensor or None"),
        (
            {"weights": torch.ones(4, device="meta")},
            ValueError,
            "weights are on meta; expected cpu as coords are",
        ),
        ({"weights": torch.ones(4).half()}, TypeError, "weights are torch.float16"),
        ({"weights": torch.ones(3)}, ValueError, r"weights have shape \(3,\); expected \(4,\)"),
        ({"weights": torch.ones(4, 1)}, ValueError, r"weights have shape \(4, 1\)"),
        ({"shape": (3,)}, ValueError, r"shape is \(3,\); expected 2 positive"),
        ({"shape": (3, 0)}, ValueError, "expected 2 positive"),
        ({"shape": (3, -2)}, ValueError, "expected 2 positive"),
        ({"shape": (3, math.inf)}, ValueError, "expected 2 positive"),
        ({"shape": 3}, ValueError, r"shape is \(3,\); expected 2 positive"),
        ({"shape": (3, 2.5)}, ValueError, r"shape is \(3, 2.5\); expected 2 positive"),
        ({"bin_size": 0.0}, ValueError, "bin_size is 0.0; expected positive"),
        ({"bin_size": (1.0, -1.0)}, ValueError, "expected positive"),
        ({"bin_size": math.nan}, ValueError, "bin_size is nan; expected a finite number"),
        ({"bin_size": (1.0, 1.0, 1.0)}, ValueError, "or 2 of them"),
        ({"origin": (0.0, 0.0, 0.0)}, ValueError, "origin is"),
        ({"origin": "left"}, ValueError, "origin is left"),
        (
            {"origin": torch.zeros(2, requires_grad=True)},
            TypeError,
            "origin requires a gradient, and has none: move the coords",
        ),
        ({"origin": math.inf}, ValueError, "origin is inf"),
        ({"binning": "gauss"}, ConfigError, "kernel 'gauss': expected one of gaussian, lanczos"),
        ({"binning": "rect;linear"}, ConfigError, "kernel 'rect;linear': expected one of"),
        ({"binning": ("rect", "rect", "rect")}, ValueError, "binning is .*; expected one, or 2"),
        ({"reconstruction": "hat"}, ConfigError, "kernel 'hat': expected one of gaussian"),
        ({"reconstruction": (None, "hat")}, ConfigError, "kernel 'hat'"),
        ({"reconstruction": (None,)}, ValueError, "reconstruction is .*; expected one, or 2"),
        ({"binning": [["rect"], "rect"]}, TypeError, "binning is .*; expected kernels or their"),
        ({"binning": None}, ConfigError, "kernel None: expected one of"),
        (
            {"weights_gradient": "raw"},
            ConfigError,
            "weights_gradient is 'raw'; expected one of exact, synthesised",
        ),
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


def test_a_threads_failure_is_raised_and_waits_for_the_others(torch_threads):
    done = []

    def work(start: int, stop: int) -> None:
        if start == 0:
            raise MemoryError("too little")
        time.sleep(0.05)
        done.append(start)

    with torch_threads(3), pytest.raises(MemoryError, match="too little"):
        cpu._run(work, 3, 10**6)
    assert sorted(done) == [1, 2]


def test_the_work_is_done_where_no_more_threads_can_be_started(
    monkeypatch: pytest.MonkeyPatch, torch_threads
):
    """As in a thread that still runs while the interpreter ends."""
    ended = ThreadPoolExecutor(1)
    ended.shutdown()
    monkeypatch.setattr(cpu, "_pool", lambda: ended)
    shares: list[tuple[int, int]] = []
    with torch_threads(3):
        cpu._run(lambda start, stop: shares.append((start, stop)), 9, 10**6)
    assert shares == [(0, 3), (3, 6), (6, 9)]


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


def test_one_number_is_for_all_dimensions_whatever_its_type():
    coords = torch.tensor([[1.0, 2.0], [1.5, 3.0]])
    expected = bin_events(coords, shape=(3, 3), origin=(0.5, 0.5), bin_size=(2.0, 2.0))
    for make in (float, np.float32, np.array, torch.tensor):
        origin: Any = make(0.5)
        bin_size: Any = make(2)
        size: Any = np.array([3, 3])
        assert torch.equal(
            bin_events(coords, shape=size, origin=origin, bin_size=bin_size), expected
        )


def test_kernels_may_be_given_by_name_as_they_are_or_one_a_dimension(rng: torch.Generator):
    coords = uniform(rng, 30, 2, high=6)
    expected = bin_events(coords, shape=(6, 6), binning="gaussian", reconstruction="keys")
    for binning, reconstruction in (
        (gaussian(), keys()),
        (("gaussian", gaussian()), [keys(), "keys"]),
        ("gaussian(sigma=0.5, truncate=3.0)", keys()),
    ):
        image = bin_events(coords, shape=(6, 6), binning=binning, reconstruction=reconstruction)
        assert torch.equal(image, expected)
    assert not torch.equal(expected, bin_events(coords, shape=(6, 6), binning=gaussian(0.7)))


# ------------------------------------------------------------------------------------- properties

# Positions on a fine dyadic raster are exact in float64, so whole-bin shifts change no rounding.
positions = st.integers(-40, 180).map(lambda n: n / 16)
clouds = st.lists(st.tuples(positions, positions), min_size=1, max_size=12)
kernel_names = st.sampled_from(KERNELS)
name_pairs = st.sampled_from(ALL_PAIRS)
modules = st.sampled_from([reference, cpu])


@settings(max_examples=60, deadline=None)
@given(clouds, kernel_names, st.integers(-3, 3), st.integers(-3, 3), modules)
def test_moving_by_whole_bins_moves_the_image(cloud, binning: str, down: int, right: int, module):
    coords = torch.tensor(cloud, dtype=F64)
    with binning_by(module):
        image = bin_events(coords, shape=(24, 24), binning=binning, origin=-7.0)
        moved = bin_events(
            coords + torch.tensor([down, right]), shape=(24, 24), binning=binning, origin=-7.0
        )
    rolled = image.roll((down, right), (0, 1))  # nothing lies near the border
    torch.testing.assert_close(moved, rolled, atol=1e-12, rtol=0)


@settings(max_examples=60, deadline=None)
@given(clouds, kernel_names, st.floats(-3, 3), st.floats(-3, 3), modules)
def test_image_is_linear_in_the_weights(cloud, binning: str, a: float, b: float, module):
    coords = torch.tensor(cloud, dtype=F64)
    rng = torch.Generator().manual_seed(len(cloud))
    first, second = uniform(rng, len(cloud), low=-1), uniform(rng, len(cloud), low=-1)

    def binned(weights: Tensor) -> Tensor:
        with binning_by(module):
            return bin_events(coords, weights, shape=(9, 9), binning=binning)

    combined = binned(a * first + b * second)
    torch.testing.assert_close(
        combined, a * binned(first) + b * binned(second), atol=1e-12, rtol=1e-12
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-2.9, 9.9), min_size=1, max_size=12), name_pairs, modules)
def test_reflection_reflects_image_and_gradient(xs: list[float], names: Names, module):
    # Half-open bins and one-sided kinks are not symmetric at their very edges.
    coords = torch.tensor(xs, dtype=F64)[:, None]
    coords = coords[((coords * 2 - (coords * 2).round()).abs() > 1e-3).squeeze(-1)]
    cotangent = torch.sin(torch.arange(8, dtype=F64))

    def image_and_gradient(coords: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        x = coords.detach().requires_grad_()
        with binning_by(module):
            image = bin_events(x, shape=(8,), binning=names[0], reconstruction=names[1])
            image.backward(cotangent)
        assert x.grad is not None
        return image.detach(), x.grad

    image, gradient = image_and_gradient(coords, cotangent)
    mirrored, back = image_and_gradient(7 - coords, cotangent.flip(0))
    torch.testing.assert_close(mirrored, image.flip(0), atol=1e-12, rtol=0)
    torch.testing.assert_close(back, -gradient, atol=1e-12, rtol=0)


@settings(max_examples=60, deadline=None)
@given(clouds, kernel_names, modules)
def test_events_inside_keep_their_mass_and_swapping_axes_transposes(cloud, binning: str, module):
    """The mass of Gaussian and Lanczos, which depends on the position, is that of their taps."""
    coords = torch.tensor(cloud, dtype=F64)
    with binning_by(module):
        image = bin_events(coords, shape=(22, 23), binning=binning, origin=-6.0)
        swapped = bin_events(coords.flip(1), shape=(23, 22), binning=binning, origin=-6.0)
    bins = np.arange(-12, 24)
    taps = kernel(binning)(coords.numpy()[..., None] - bins).sum(-1)  # [N, D]
    if binning not in ("gaussian", "lanczos"):
        np.testing.assert_allclose(taps, 1, rtol=0, atol=1e-14)
    assert float(image.sum()) == pytest.approx(float(taps.prod(-1).sum()), abs=1e-11)
    torch.testing.assert_close(swapped, image.T, atol=1e-12, rtol=0)


@settings(max_examples=30, deadline=None)
@given(clouds, st.sampled_from(PAIRS), st.sampled_from(PAIRS[:4]), st.booleans())
def test_back_ends_agree(cloud, rows: Names, columns: Names, swap: bool):
    coords = torch.tensor(cloud, dtype=F64)[None] + 1 / 64
    rng = torch.Generator().manual_seed(len(cloud))
    grid = Grid((9, 8), (0.0, 1.0), (1.0, 1.25))
    binnings, reconstructions = zip(*((columns, rows) if swap else (rows, columns)), strict=True)
    pairs = kernel_pairs(binnings, reconstructions, "exact", F64)
    weights = uniform(rng, 1, len(cloud), low=-1)
    cotangent = uniform(rng, 1, 9, 8, low=-1)
    tangents = torch.sin(coords), torch.cos(weights)
    found, expected = (
        (
            module.splat(coords, weights, grid, pairs),
            *module.pull_back(cotangent, coords, weights, grid, pairs),
            module.splat_tangent(coords, weights, *tangents, grid, pairs),
            *module.pull_back_tangent(cotangent, coords, weights, *tangents, grid, pairs),
        )
        for module in (cpu, reference)
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_tables_are_made_once():
    assert kernel_pair(bspline(0), bspline(1)) is kernel_pair(kernel("rect"), kernel("linear"))
    once = kernel_pairs(("rect",), ("linear",), "exact", F32)
    assert kernel_pairs(("rect",), ("linear",), "exact", F32) is once
