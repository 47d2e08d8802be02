"""Binning as part of recorded programs: fx, torch.compile, torch.export, autocast."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from binning_harness import (
    BF16,
    F32,
    F64,
    Shift,
    every,
    jvp,
    leaf,
    squares,
    uniform,
    vjp,
)
from torch import Tensor
from torch.autograd import functional
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from event_binning_grad.binning import bin_events
from event_binning_grad.binning.kernels import gaussian, keys

# ------------------------------------------------------------------------------- recorded programs


@every("transform", (lambda f: f, grad, lambda f: jacfwd(grad(f))))
def test_make_fx_records_the_operators_and_no_constants(transform, rng: torch.Generator):
    from torch.fx.experimental.proxy_tensor import make_fx

    f = transform(squares(("rect", "linear")))
    coords, weights = uniform(rng, 9, 2, high=6), uniform(rng, 9)
    recorded = make_fx(f)(coords, weights)
    targets = [str(node.target) for node in recorded.graph.nodes]
    assert any(target.startswith("event_binning_grad.splat") for target in targets)
    other = uniform(rng, 9, 2, high=6)
    torch.testing.assert_close(recorded(other, weights), f(other, weights))


def test_linearize_is_jvp(rng: torch.Generator):
    coords, weights = uniform(rng, 9, 2, high=6), uniform(rng, 9)
    loss = squares(("rect", "linear"))
    tangents = uniform(rng, 9, 2), uniform(rng, 9)
    value, along = torch.func.linearize(loss, coords, weights)
    expected = jvp(loss, (coords, weights), tangents)
    torch.testing.assert_close((value, along(*tangents)), expected)


def test_tensors_without_data_give_an_image_without_data():
    from torch._subclasses import FakeTensorMode

    assert bin_events(torch.zeros(5, 3, 2, device="meta"), shape=(3, 4)).shape == (5, 3, 4)
    with FakeTensorMode():
        coords = torch.rand(5, 3, 2, requires_grad=True)
        image = bin_events(coords, shape=(3, 4))
        (gradient,) = torch.autograd.grad(image.sum(), coords)
    assert (image.shape, gradient.shape) == ((5, 3, 4), (5, 3, 2))


# ------------------------------------------------------------------------------------ torch.compile


def compiled(function: Callable[..., Any], backend: Any = "aot_eager", **options: Any):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def check_compiled(backend: str, rng: torch.Generator) -> None:
    """Image and gradients in one graph, two kernels, float32."""

    def binned(x: Tensor, w: Tensor) -> Tensor:
        return bin_events(
            torch.sin(x) * 3 + 3, w * 2, shape=(6, 7), binning=("rect", "linear"),
            reconstruction=("linear", None), origin=(0.0, 0.25), bin_size=1.25,
        )  # fmt: skip

    fast = compiled(binned, backend)
    coords, weights = uniform(rng, 2, 40, 2, high=6, dtype=F32), uniform(rng, 2, 40, dtype=F32)
    cotangent = uniform(rng, 2, 6, 7, dtype=F32)
    results = []
    for function in (fast, binned):
        x, w = leaf(coords), leaf(weights)
        image = function(x, w)
        image.backward(cotangent)
        results.append((image.detach(), x.grad, w.grad))
    torch.testing.assert_close(*results)


@every("backend", ("eager", "aot_eager"))
def test_compiled_functions_are_one_graph_and_give_the_same(backend: str, rng: torch.Generator):
    check_compiled(backend, rng)


def test_inductor_compiles_forward_and_backward(rng: torch.Generator):
    check_compiled("inductor", rng)


def test_any_number_of_events_runs_without_compiling_again(rng: torch.Generator):
    from torch._dynamo.testing import CompileCounterWithBackend

    def loss(x: Tensor, image: Tensor) -> Tensor:
        return (bin_events(x, shape=image.shape, binning="linear") * image).sum()

    counter = CompileCounterWithBackend("aot_eager")
    fast = compiled(loss, counter)
    for events, rows in ((5, 6), (9, 7), (33, 5), (64, 6), (2, 9), (1000, 8)):
        image = uniform(rng, rows, 10)
        x = leaf(uniform(rng, events, 2, high=8))
        (found,) = torch.autograd.grad(fast(x, image), x)
        assert torch.equal(found, grad(loss)(x.detach(), image))
    assert counter.frame_count == 2  # once for these sizes, once for any


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: grad(f, (0, 1)),
        hessian,
        lambda f: jacrev(jacrev(f)),
        lambda f: lambda x, w: jvp(f, (x, w), (w[:, None] * x, x[:, 0])),
        lambda f: lambda x, w: jvp(grad(f), (x, w), (w[:, None] * x, x[:, 0])),
        lambda f: lambda x, w: vmap(grad(f), (0, None))(torch.stack([x, x + 0.3]), w),
    ],
    ids=["grad", "hessian", "reverse over reverse", "jvp", "forward over reverse", "vmap"],
)
def test_transforms_inside_a_compiled_function_are_part_of_its_graph(
    transform, rng: torch.Generator
):
    f = transform(squares(("linear", "linear")))
    coords, weights = uniform(rng, 9, 2, high=6), uniform(rng, 9)
    torch.testing.assert_close(compiled(f)(coords, weights), f(coords, weights))


def test_second_derivatives_of_a_compiled_function_belong_inside_it(rng: torch.Generator):
    """From outside AOTAutograd's graphs have first derivatives only. A gradient penalty is compiled
    as a whole; where Dynamo's own graph runs, outside works, too."""
    loss = squares(("linear", "linear"))
    coords, weights = leaf(uniform(rng, 9, 2, high=6)), uniform(rng, 9)

    def penalty(x: Tensor) -> Tensor:
        return (grad(loss)(x, weights) ** 2).sum()

    def from_outside(function) -> Tensor:
        (gradient,) = torch.autograd.grad(function(coords, weights), coords, create_graph=True)
        return (gradient**2).sum()

    (expected,) = torch.autograd.grad(from_outside(loss), coords)
    (inside,) = torch.autograd.grad(compiled(penalty)(coords), coords)
    torch.testing.assert_close(inside, expected)
    (outside,) = torch.autograd.grad(from_outside(compiled(loss, "eager")), coords)
    torch.testing.assert_close(outside, expected)


def test_kernels_of_all_kinds_compile(rng: torch.Generator):
    narrow, coords = gaussian(0.4), uniform(rng, 9, 2, high=6)

    def images(x: Tensor) -> list[Tensor]:
        return [
            bin_events(x, shape=(6, 7), binning=(narrow, "lanczos"), reconstruction=("keys", None)),
            bin_events(x, shape=(6, 7), binning="falling ramp", reconstruction=keys()),
            bin_events(x, x[:, 0], shape=(6, 7), weights_gradient="synthesised"),
            bin_events(x.repeat(1, 2), shape=(3, 2, 3, 2), origin=[0, 1, 2, 3], bin_size=2),
            bin_events(x[:0], shape=(6, 7)),
        ]

    def gradient(x: Tensor) -> Tensor:
        return grad(lambda x: sum((image**2).sum() for image in images(x)))(x)

    for ours, theirs in zip(compiled(images)(coords), images(coords), strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(compiled(gradient)(coords), gradient(coords))


def test_errors_while_compiling_name_their_cause():
    def binned(x: Tensor, binning: str, shape: tuple[int, ...]) -> Tensor:
        return bin_events(x, shape=shape, binning=binning)

    coords = torch.zeros(4, 2)
    for name in ("gauss", "rect;linear"):
        with pytest.raises(RuntimeError, match=r"ConfigError\(.kernel.*expected"):
            compiled(binned)(coords, name, (3, 3))
    torch._dynamo.reset()
    with pytest.raises(ValueError, match=r"shape is \(3, 0\); expected 2 positive"):
        torch.compile(binned, backend="eager")(coords, "rect", (3, 0))


@every("strict", (False, True))
def test_an_exported_module_takes_any_number_of_events_trains_and_saves(
    strict: bool, rng: torch.Generator
):
    module = Shift()
    events = torch.export.Dim("events")
    program = torch.export.export(
        module, (uniform(rng, 20, 2, high=6),), dynamic_shapes=({0: events},), strict=strict
    )
    coords = uniform(rng, 31, 2, high=6)
    trained = program.module()
    (trained(coords) ** 2).sum().backward()
    (module(coords) ** 2).sum().backward()
    for name, value in trained.named_parameters():
        torch.testing.assert_close(value.grad, module.get_parameter(name).grad)
    with io.BytesIO() as file:
        torch.export.save(program, file)
        file.seek(0)
        assert torch.equal(torch.export.load(file).module()(coords), module(coords))


def operators() -> list[str]:
    return ["splat", "pull_back", "splat_tangent", "pull_back_tangent"]


@every("name", operators())
def test_operators_are_registered_as_torch_wants_them(name: str, rng: torch.Generator):
    """torch.library.opcheck: schema, shapes, autograd, and all of them compiled."""
    import event_binning_grad.binning.compiled  # noqa: F401  registers them

    batch, n, shape = 2, 7, [4, 5]

    def some(*size: int) -> Tensor:
        return uniform(rng, *size, high=4, dtype=F32).requires_grad_()

    coords, weights, cotangent = some(batch, n, 2), some(batch, n), some(batch, *shape)
    strided = some(2, batch, n).permute(1, 2, 0)
    how = (shape, [0.0, 0.5], [1.0, 0.75], "rect;rect|linear;", "exact")
    tangents = [(some(batch, n, 2), some(batch, n)), (some(batch, n, 2), None)]
    cases = {
        "splat": [(coords, weights), (strided, weights), (coords[:, :0], weights[:, :0])],
        "pull_back": [(cotangent, coords, weights, *want) for want in ((True, True), (False, True))]
        + [(cotangent, strided, weights, True, False)],
        "splat_tangent": [(coords, weights, *tangent) for tangent in tangents],
        "pull_back_tangent": [(cotangent, strided, weights, *tangent) for tangent in tangents],
    }
    operator = getattr(torch.ops.event_binning_grad, name).default
    for case in cases[name]:
        torch.library.opcheck(operator, (*case, *how))


def test_operators_have_derivatives_and_vmap_by_themselves(rng: torch.Generator):
    """As a graph's nodes need them that are differentiated after they were recorded."""
    import event_binning_grad.binning.compiled  # noqa: F401  registers them

    how = ([4, 5], [0.0, 0.5], [1.0, 0.75], "linear;linear|rect;keys", "exact")
    coords, weights = leaf(uniform(rng, 2, 3, 2, high=4)), leaf(uniform(rng, 2, 3))

    def by_operator(x: Tensor, w: Tensor) -> Tensor:
        return torch.ops.event_binning_grad.splat(x, w, *how)

    def expected(x: Tensor, w: Tensor) -> Tensor:
        return bin_events(
            x, w, shape=(4, 5), binning=("linear", "rect"), reconstruction=("linear", "keys"),
            origin=(0.0, 0.5), bin_size=(1.0, 0.75),
        )  # fmt: skip

    def hess(f):
        return functional.hessian(lambda x, w: (f(x, w) ** 2).sum(), (coords, weights))

    for i, j in product((0, 1), repeat=2):
        torch.testing.assert_close(hess(by_operator)[i][j], hess(expected)[i][j])
    x, w = coords.detach(), weights.detach()
    stacked = torch.stack([x, x + 0.2])
    torch.testing.assert_close(
        vmap(by_operator, (0, None))(stacked, w), vmap(expected, (0, None))(stacked, w)
    )
    cotangents = uniform(rng, 3, 2, 4, 5)

    def pulled_back(c: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.event_binning_grad.pull_back(c, x, w, True, False, *how)

    to_coords, nothing = vmap(pulled_back)(cotangents)
    assert nothing.numel() == 0
    torch.testing.assert_close(to_coords, vmap(lambda c: vjp(expected, x, w)[1](c)[0])(cotangents))


def test_importing_the_binning_loads_neither_compiler_nor_back_ends():
    script = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import event_binning_grad.binning\n"
        "heavy = {'numba', 'triton', 'torch._dynamo', 'scipy'}\n"
        "print(sorted((set(sys.modules) - before) & heavy))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------------- autocast


def test_autocast_bins_half_types_in_float32(rng: torch.Generator):
    """Gradients arrive in the types of the inputs, also where the backward pass runs inside."""
    coords = leaf(uniform(rng, 9, 2, high=6).to(BF16))
    weights = leaf(uniform(rng, 9).to(torch.float16))
    with torch.autocast("cpu", BF16):
        image = bin_events(coords, weights, shape=(6, 7), binning="linear")
        (image**2).sum().backward()
    assert image.dtype == F32
    assert coords.grad is not None
    assert weights.grad is not None
    assert (coords.grad.dtype, weights.grad.dtype) == (BF16, torch.float16)
    exact = [leaf(coords.float()), leaf(weights.float())]
    expected = bin_events(*exact, shape=(6, 7), binning="linear")
    (expected**2).sum().backward()
    assert torch.equal(image, expected)
    for found, value in zip((coords, weights), exact, strict=True):
        assert found.grad is not None
        assert value.grad is not None
        assert torch.equal(found.grad, value.grad.to(found.dtype))


@every("dtype", (F32, F64))
def test_autocast_leaves_float32_and_float64_as_they_are(dtype, rng: torch.Generator):
    coords, weights = uniform(rng, 9, 2, high=6, dtype=dtype), uniform(rng, 9, dtype=dtype)
    loss = squares(("linear", "linear"))
    with torch.autocast("cpu", BF16):
        image = bin_events(coords, weights, shape=(6, 7))
        second = hessian(loss)(coords, weights)
    assert image.dtype == dtype
    assert torch.equal(image, bin_events(coords, weights, shape=(6, 7)))
    assert second.dtype == dtype
    torch.testing.assert_close(second, hessian(loss)(coords, weights))


def test_double_backward_inside_autocast(rng: torch.Generator):
    coords, weights = uniform(rng, 9, 2, high=6).to(BF16), uniform(rng, 9)

    def penalty(x: Tensor) -> Tensor:
        image = bin_events(x, weights.to(x.dtype), shape=(6, 7), binning="linear")
        (gradient,) = torch.autograd.grad((image**2).sum(), x, create_graph=True)
        return (gradient.float() ** 2).sum()

    x = leaf(coords)
    with torch.autocast("cpu", BF16):
        (found,) = torch.autograd.grad(penalty(x), x)
    assert found.dtype == BF16
    y = leaf(coords.float())
    weights = weights.to(BF16)
    (expected,) = torch.autograd.grad(penalty(y), y)
    # The first gradient was rounded to bfloat16, which has 8 bits.
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.float(), expected, atol=2**-6 * scale, rtol=0)


def test_autocast_in_a_compiled_function(rng: torch.Generator):
    def loss(x: Tensor) -> Tensor:
        with torch.autocast("cpu", BF16):
            return (bin_events(x, shape=(6, 7), binning="linear") ** 2).sum()

    x = leaf(uniform(rng, 9, 2, high=6).to(BF16))
    (found,) = torch.autograd.grad(compiled(loss)(x), x)
    (expected,) = torch.autograd.grad(loss(x), x)
    assert found.dtype == BF16
    assert torch.equal(found, expected)


def test_half_types_are_refused_outside_autocast():
    with pytest.raises(TypeError, match=r"coords are torch.bfloat16; expected float32 or float64"):
        bin_events(torch.zeros(4, 2, dtype=BF16), shape=(3, 3))
