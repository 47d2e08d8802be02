"""The Triton back end against the reference: in Triton's interpreter everywhere, on a GPU if any.

The interpreter is switched on for one copy of the module alone, while that is loaded, so that it
does not matter what else of this process has imported Triton or will. What it cannot show, that the
kernels compile, is shown for a GPU that need not be there.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget

from event_binning_grad.binning import autograd, bin_events, reference
from event_binning_grad.binning.operator import kernel_pairs
from event_binning_grad.binning.reference import Grid, Pairs

F32, F64 = torch.float32, torch.float64
GPU = torch.cuda.is_available()
DEVICES = ["interpreter", *(["cuda"] if GPU else [])]
SIZES = {1: (9,), 2: (5, 7), 3: (4, 3, 5)}
ROUNDING = {F64: 1e-12, F32: 3e-5}  # of the largest value: what rounding may change

needs_gpu = pytest.mark.skipif(not GPU, reason="no CUDA device")


@cache
def loaded(interpret: bool) -> ModuleType:
    """A copy of the back end, with its kernels interpreted or to be compiled."""
    found = importlib.util.find_spec("event_binning_grad.binning.cuda")
    assert found is not None
    assert found.origin is not None
    name = "binning_cuda_interpreted" if interpret else "binning_cuda_compiled"
    spec = importlib.util.spec_from_file_location(name, Path(found.origin))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with knobs.runtime.scope():
        knobs.runtime.interpret = interpret
        spec.loader.exec_module(module)
    return module


@pytest.fixture(params=DEVICES)
def cuda(request: pytest.FixtureRequest) -> OnDevice:
    return OnDevice(loaded(request.param == "interpreter"), request.param)


@dataclass(frozen=True)
class OnDevice:
    """The back end as a function of tensors on the CPU, wherever it computes."""

    module: ModuleType
    name: str

    @property
    def device(self) -> str:
        return "cpu" if self.name == "interpreter" else "cuda"

    def __call__(self, function: str, *args: Any) -> Any:
        moved = [arg.to(self.device) if isinstance(arg, Tensor) else arg for arg in args]
        results = getattr(self.module, function)(*moved)
        if isinstance(results, Tensor):
            return results.cpu()
        return tuple(None if result is None else result.cpu() for result in results)


@dataclass(frozen=True)
class Problem:
    """Inputs of all four functions."""

    grid: Grid
    pairs: Pairs
    coords: Tensor
    weights: Tensor
    cotangent: Tensor
    coords_tangent: Tensor
    weights_tangent: Tensor | None

    @property
    def events(self) -> tuple[Tensor, Tensor]:
        return self.coords, self.weights

    @property
    def tangents(self) -> tuple[Tensor, Tensor | None]:
        return self.coords_tangent, self.weights_tangent

    @property
    def how(self) -> tuple[Grid, Pairs]:
        return self.grid, self.pairs


def random_problem(
    binning: Sequence[str],
    reconstruction: Sequence[str | None],
    dtype: torch.dtype = F64,
    weights_gradient: Any = "exact",
    batch: int = 2,
    events: int = 40,
    seed: int = 3,
) -> Problem:
    """Events in, at and beyond the border of the bins, some on the kernels' seams, some lost."""
    rng = torch.Generator().manual_seed(seed)
    dimensions = len(binning)
    grid = Grid(SIZES[dimensions], (0.3, -0.25, 2.0)[-dimensions:], (0.7, 1.25, 0.1)[-dimensions:])
    unit = torch.rand(batch, events, dimensions, generator=rng, dtype=dtype)
    bins = torch.tensor(grid.shape, dtype=dtype)
    in_bins = unit * (bins + 7) - 4
    in_bins[:, ::5] = (in_bins[:, ::5] * 4).round() / 4
    coords = in_bins * torch.tensor(grid.bin_size, dtype=dtype)
    coords = coords + torch.tensor(grid.origin, dtype=dtype)
    for i, lost in enumerate((float("nan"), float("inf"), -float("inf"), 1e30, -1e30)):
        coords[:, 7 * i + 1 : 7 * i + 2, i % dimensions] = lost

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=dtype)

    return Problem(
        grid,
        kernel_pairs(tuple(binning), tuple(reconstruction), weights_gradient, dtype),
        coords,
        normal(batch, events),
        normal(batch, *grid.shape),
        normal(batch, events, dimensions),
        normal(batch, events),
    )


def assert_close(name: str, ours: Tensor | None, theirs: Tensor | None) -> None:
    if ours is None or theirs is None:
        assert ours is theirs, f"{name}: {ours} and {theirs}"
        return
    assert ours.shape == theirs.shape, name
    assert ours.dtype == theirs.dtype, name
    if ours.numel() == 0:
        return
    scale = max(1.0, float(theirs.abs().max()))
    worst = float((ours - theirs).abs().max())
    assert worst <= ROUNDING[ours.dtype] * scale, f"{name}: {worst} off, of {scale}"


def assert_agrees(cuda: OnDevice, problem: Problem) -> None:
    """Every result by its name, on the same inputs."""
    p = problem
    calls: dict[tuple[str, ...], tuple[str, tuple[Any, ...]]] = {
        ("image",): ("splat", p.events),
        ("gradient of coords", "gradient of weights"): ("pull_back", (p.cotangent, *p.events)),
        ("image's tangent",): ("splat_tangent", (*p.events, *p.tangents)),
        ("tangent of coords' gradient", "tangent of weights' gradient"): (
            "pull_back_tangent",
            (p.cotangent, *p.events, *p.tangents),
        ),
    }
    for names, (function, inputs) in calls.items():
        ours = cuda(function, *inputs, *p.how)
        theirs = getattr(reference, function)(*inputs, *p.how)
        if isinstance(ours, Tensor):
            ours, theirs = (ours,), (theirs,)
        for name, one, other in zip(names, ours, theirs, strict=True):
            assert_close(name, one, other)


# ------------------------------------------------------------------------- against the reference

LINES = [
    ("rect", None),
    ("rect", "linear"),
    ("linear", "linear"),
    ("quadratic", "cubic"),
    ("cubic", None),
    ("gaussian", "linear"),
    ("keys", "keys"),
    ("lanczos", "gaussian"),
]
PLANES = [
    (("rect", "rect"), ("linear", "linear")),
    (("linear", "linear"), ("linear", "linear")),
    (("linear", "linear"), (None, None)),
    (("rect", "gaussian"), ("lanczos", None)),
    (("keys", "quadratic"), ("linear", "linear")),
]
VOLUMES = [
    (("rect", "rect", "linear"), ("linear", "linear", "linear")),
    (("linear", "gaussian", "rect"), (None, "linear", "keys")),
]


@pytest.mark.parametrize(("binning", "reconstruction"), LINES)
def test_agrees_in_one_dimension(cuda: OnDevice, binning: str, reconstruction: str | None):
    assert_agrees(cuda, random_problem([binning], [reconstruction]))


@pytest.mark.parametrize(("binning", "reconstruction"), PLANES)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_agrees_in_two_dimensions(cuda: OnDevice, binning: Any, reconstruction: Any, dtype: Any):
    assert_agrees(cuda, random_problem(binning, reconstruction, dtype, batch=1))


@pytest.mark.parametrize(("binning", "reconstruction"), VOLUMES)
def test_agrees_in_three_dimensions(cuda: OnDevice, binning: Any, reconstruction: Any):
    assert_agrees(cuda, random_problem(binning, reconstruction, F32))


def test_agrees_over_several_programs_an_image(cuda: OnDevice):
    events = cuda.module.BLOCK + 30
    assert_agrees(cuda, random_problem(["linear"], ["linear"], batch=3, events=events))


@pytest.mark.parametrize("kernels", [("rect", "linear"), ("gaussian", "linear")])
def test_agrees_with_synthesised_gradient_of_the_weights(cuda: OnDevice, kernels: tuple[str, str]):
    binning, reconstruction = kernels
    problem = random_problem([binning] * 2, [reconstruction] * 2, F32, "synthesised")
    assert_agrees(cuda, problem)
    # It does differ from the exact one, which would agree with the reference, too.
    exact = random_problem([binning] * 2, [reconstruction] * 2, F32)
    inputs = (problem.cotangent, *problem.events, problem.grid)
    (_, ours), (_, other) = (cuda("pull_back", *inputs, p.pairs) for p in (problem, exact))
    assert not torch.allclose(ours, other, atol=1e-2)


def test_agrees_without_a_tangent_of_the_weights(cuda: OnDevice):
    problem = random_problem(["rect", "linear"], ["linear", "linear"])
    without = Problem(**{**vars(problem), "weights_tangent": None})
    assert_agrees(cuda, without)


@pytest.mark.parametrize(("batch", "events"), [(2, 0), (0, 5), (0, 0)])
def test_agrees_on_nothing(cuda: OnDevice, batch: int, events: int):
    assert_agrees(cuda, random_problem(["linear"] * 2, ["linear"] * 2, batch=batch, events=events))


def test_agrees_on_strided_inputs(cuda: OnDevice):
    p = random_problem(["linear", "rect"], ["linear", "linear"], batch=3)

    def strided(tensor: Tensor) -> Tensor:
        padded = torch.stack((tensor, torch.full_like(tensor, float("nan"))), -1)
        view = padded.transpose(0, 1).contiguous().transpose(0, 1)[..., 0]
        assert not view.is_contiguous()
        return view

    tensors = {name: strided(value) for name, value in vars(p).items() if torch.is_tensor(value)}
    assert_agrees(cuda, Problem(**{**vars(p), **tensors}))


@pytest.mark.parametrize("weight", [1.0, -2.5])
def test_agrees_on_one_weight_for_all(cuda: OnDevice, weight: float):
    p = random_problem(["linear", "rect"], ["linear", "linear"])
    expanded = torch.tensor(weight, dtype=F64).expand(p.weights.shape)
    assert cuda.module._with_step(expanded)[0] is expanded  # not written out for every event
    assert_agrees(cuda, Problem(**{**vars(p), "weights": expanded}))


@pytest.mark.parametrize("want", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("reconstruction", ["linear", None])
def test_computes_what_is_wanted(
    cuda: OnDevice, want: tuple[bool, bool], reconstruction: str | None
):
    p = random_problem(["linear"] * 2, [reconstruction] * 2)
    ours = cuda("pull_back", p.cotangent, *p.events, *p.how, *want)
    theirs = reference.pull_back(p.cotangent, *p.events, *p.how)
    for name, wanted, one, other in zip(("coords", "weights"), want, ours, theirs, strict=True):
        assert_close(name, one, other if wanted else None)


# ------------------------------------------------------------------------------- what is promised


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 2.0**63])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_events_out_of_reach_leave_no_trace(cuda: OnDevice, value: float, dtype: torch.dtype):
    p = random_problem(["linear", "rect"], ["linear", "linear"], dtype, batch=1)
    coords = p.coords.clone()
    coords[..., 0] = value
    events = coords, p.weights
    assert not cuda("splat", *events, *p.how).any()
    assert not cuda("splat_tangent", *events, *p.tangents, *p.how).any()
    for function, more in (("pull_back", ()), ("pull_back_tangent", p.tangents)):
        for result in cuda(function, p.cotangent, *events, *more, *p.how):
            assert not result.any()


@pytest.mark.parametrize("bin_size", [0.1, 0.3, 1.0, 7.0])
def test_events_on_the_border_of_bins_fall_where_the_reference_puts_them(
    cuda: OnDevice, bin_size: float
):
    """A division that is not rounded to the nearest would put some into the bin beside."""
    grid = Grid((400,), (0.1,), (bin_size,))
    borders = 0.1 + (torch.arange(401, dtype=F64) - 0.5) * bin_size
    coords = borders.float()[None, :, None]
    coords = torch.cat((coords, coords.nextafter(coords + 1), coords.nextafter(coords - 1)), 1)
    weights = torch.ones(coords.shape[:-1])
    pairs = kernel_pairs(("rect",), ("linear",), "exact", F32)
    ours = cuda("splat", coords, weights, grid, pairs)
    assert torch.equal(ours, reference.splat(coords, weights, grid, pairs))


def test_origin_and_bin_size_keep_the_digits_of_float64(cuda: OnDevice):
    """Triton passes a number of Python's as float32 unless told otherwise."""
    grid = Grid((5,), (1e9 + 0.1,), (0.1 + 1e-12,))
    coords = 1e9 + 0.1 + torch.linspace(-0.1, 0.6, 57, dtype=F64)[None, :, None]
    weights = torch.ones(coords.shape[:-1], dtype=F64)
    pairs = kernel_pairs(("linear",), ("linear",), "exact", F64)
    ours = cuda("splat", coords, weights, grid, pairs)
    assert_close("image", ours, reference.splat(coords, weights, grid, pairs))
    assert float(ours.sum()) > 30


@pytest.mark.parametrize("kernels", [("rect", "linear"), ("gaussian", "cubic")])
def test_bin_events_has_the_same_derivatives_by_either_back_end(
    cuda: OnDevice, kernels: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    binning, reconstruction = kernels
    p = random_problem([binning] * 2, [reconstruction] * 2)
    how: dict[str, Any] = {
        "shape": p.grid.shape,
        "origin": p.grid.origin,
        "bin_size": p.grid.bin_size,
        "binning": binning,
        "reconstruction": reconstruction,
    }

    def derivatives(module: ModuleType, device: str) -> dict[str, Tensor]:
        monkeypatch.setattr(autograd, "back_end", lambda coords: module)
        # A leaf of its own for every input, on the device.
        coords, weights, cotangent, *direction = (
            value.detach().to(device).requires_grad_()
            for value in (*p.events, p.cotangent, p.coords_tangent, p.weights)
        )
        image = bin_events(coords, weights, **how)
        first = torch.autograd.grad(image, (coords, weights), cotangent, create_graph=True)
        along = (first[0] * direction[0]).sum() + (first[1] * direction[1]).sum()
        second = torch.autograd.grad(along, (coords, weights, cotangent))
        # A step along all inputs, in forward mode.
        pushed = torch.func.jvp(
            lambda x, w: bin_events(x, w, **how),
            (coords.detach(), weights.detach()),
            tuple(value.detach() for value in direction),
        )[1]
        names = ("image", "coords", "weights", "coords, twice", "weights, twice", "cotangent")
        results = (image, *first, *second)
        named = dict(zip(names, results, strict=True)) | {"forward mode": pushed}
        return {name: value.detach().cpu() for name, value in named.items()}

    ours = derivatives(cuda.module, cuda.device)
    theirs = derivatives(reference, "cpu")
    for name, value in ours.items():
        assert_close(name, value, theirs[name])


def test_gradient_is_that_of_the_image_where_the_kernel_is_smooth(
    monkeypatch: pytest.MonkeyPatch,
):
    """By finite differences, without the reference."""
    module = loaded(interpret=True)
    monkeypatch.setattr(autograd, "back_end", lambda coords: module)
    rng = torch.Generator().manual_seed(1)
    coords = (torch.rand(1, 2, 2, generator=rng, dtype=F64) * 2 + 1).requires_grad_()
    weights = torch.rand(1, 2, generator=rng, dtype=F64).requires_grad_()

    def image(x: Tensor, w: Tensor) -> Tensor:
        return bin_events(x, w, shape=(3, 4), binning="cubic", reconstruction=None)

    assert torch.autograd.gradcheck(image, (coords, weights))


# -------------------------------------------------------------------------- compiled for a GPU


class NoGpu:
    """What Triton asks of a GPU's driver in order to compile."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 80, 32)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """The back end's calls end in the compiler, whose kernels are gathered in this list."""
    kernels = []

    def compile_only(kernel: Any, coords: Tensor, *arguments: Any, **constants: Any) -> None:
        options = {"DIMENSIONS": coords.shape[-1], "BLOCK": module.BLOCK, "num_warps": module.WARPS}
        kernels.append(kernel.warmup(*arguments, **constants, **options, grid=(1,)))

    module = loaded(interpret=False)
    monkeypatch.setattr(module, "_launch", compile_only)
    monkeypatch.setattr(triton.runtime.driver, "_active", NoGpu())
    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path)
        yield kernels
    for kernel in vars(module).values():
        if isinstance(kernel, triton.JITFunction):
            kernel.device_caches.clear()  # what was made for no GPU


def call_all(module: ModuleType, p: Problem) -> None:
    module.splat(*p.events, *p.how)
    module.pull_back(p.cotangent, *p.events, *p.how)
    module.splat_tangent(*p.events, *p.tangents, *p.how)
    module.pull_back_tangent(p.cotangent, *p.events, *p.tangents, *p.how)


@pytest.mark.parametrize(
    ("binning", "dtype"), [(("linear",), F64), (("rect", "gaussian"), F32), (("linear",) * 3, F32)]
)
def test_kernels_compile_to_machine_code(compiled: list[Any], binning: Any, dtype: torch.dtype):
    call_all(loaded(interpret=False), random_problem(binning, ["linear"] * len(binning), dtype))
    assert len(compiled) == 4
    for kernel in compiled:
        assert kernel.asm["cubin"]
        # The grid's numbers are passed whole, but nothing is computed beyond the events' type.
        assert all(f"%{name}: f64" in kernel.asm["ttir"] for name in ("o0", "o2", "s0", "s2"))
        assert ("add.rn.f64" in kernel.asm["ptx"] or "fma.rn.f64" in kernel.asm["ptx"]) == (
            dtype == F64
        )
    splat, pull_back, *_ = compiled
    assert re.search(r"(atom|red)\.\S*relaxed\S*\.add", splat.asm["ptx"])
    assert not re.search(r"(atom|red)\.", pull_back.asm["ptx"])
    if dtype == F32:
        assert "div.rn.f32" in splat.asm["ptx"]
        assert "div.full.f32" not in splat.asm["ptx"]


def test_one_compiled_kernel_serves_all_sizes_and_addresses(compiled: list[Any]):
    module = loaded(interpret=False)
    p = random_problem(["linear"], ["linear"], F32)
    call_all(module, p)
    other = random_problem(["linear"], ["linear"], F32, batch=1, events=64)
    offset = {
        name: torch.cat((value.flatten()[:1], value.flatten()))[1:].view(value.shape)
        for name, value in vars(other).items()
        if torch.is_tensor(value)
    }
    assert offset["coords"].data_ptr() % 16
    resized = Grid((1,), (0.0,), (1.0,))
    offset["cotangent"] = torch.ones(1, 1)
    call_all(module, Problem(**{**vars(other), **offset, "grid": resized, "pairs": p.pairs}))
    assert all(first is second for first, second in zip(compiled[:4], compiled[4:], strict=True))


# -------------------------------------------------------------------------------------- on a GPU


@needs_gpu
@pytest.mark.parametrize("dtype", [F32, F64])
def test_bin_events_on_a_gpu_is_that_on_the_cpu(dtype: torch.dtype):
    p = random_problem(["linear"] * 2, ["linear"] * 2, dtype, events=5000)
    results = {}
    for device in ("cpu", "cuda"):
        coords, weights = (value.detach().to(device).requires_grad_() for value in p.events)
        image = bin_events(
            coords,
            weights,
            shape=p.grid.shape,
            origin=p.grid.origin,
            bin_size=p.grid.bin_size,
            binning="linear",
        )
        image.backward(p.cotangent.to(device))
        results[device] = (image.detach(), coords.grad, weights.grad)
    for name, ours, theirs in zip(
        ("image", "coords", "weights"), results["cuda"], results["cpu"], strict=True
    ):
        assert ours is not None
        assert_close(name, ours.cpu(), theirs)


@needs_gpu
def test_a_captured_graph_replays_on_new_events_without_waiting():
    p, new = (random_problem(["linear"] * 2, ["linear"] * 2, F32, seed=seed) for seed in (1, 2))
    coords, weights, cotangent = (v.cuda() for v in (*p.events, p.cotangent))
    module = loaded(interpret=False)

    def both() -> tuple[Tensor, Tensor, Tensor]:
        image = module.splat(coords, weights, *p.how)
        return image, *module.pull_back(cotangent, coords, weights, *p.how)

    both()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        both()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = both()
    for ours, theirs in zip(
        (coords, weights, cotangent), (*new.events, new.cotangent), strict=True
    ):
        ours.copy_(theirs)
    graph.replay()
    expected = (
        reference.splat(*new.events, *p.how),
        *reference.pull_back(new.cotangent, *new.events, *p.how),
    )
    for name, ours, theirs in zip(("image", "coords", "weights"), results, expected, strict=True):
        assert_close(name, ours.cpu(), theirs)


@needs_gpu
def test_deterministic_algorithms_give_the_same_bits_in_every_run():
    p = random_problem(["linear"] * 2, ["linear"] * 2, F32, events=20000)
    coords, weights = (value.cuda() for value in p.events)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        runs = [bin_events(coords, weights, shape=p.grid.shape, binning="linear") for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(torch.equal(runs[0], run) for run in runs[1:])
