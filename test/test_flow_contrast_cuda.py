"""The flow contrast's CUDA path against its plain reference: in Triton's interpreter, and on a GPU
if any; as in `test_contrast_cuda`, that the kernels compile is shown for GPUs that need not be
there."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from rich.console import Console
from triton import knobs
from triton.backends.compiler import GPUTarget

from event_binning_grad.estimation.flow import FlowEstimator, flow_iwe_grid
from event_binning_grad.estimation.flow_contrast import (
    REFERENCES,
    FlowContrast,
    FlowPass,
    TorchFlowContrast,
)
from event_binning_grad.estimation.flow_contrast_cpu import CpuFlowContrast
from event_binning_grad.estimation.flow_estimate import FlowConfig
from event_binning_grad.estimation.flow_grid import NodeGrid, node_grid
from event_binning_grad.estimation.iwe_grid import IweGrid
from event_binning_grad.evaluation import bench_flow, bench_flow_simulated
from event_binning_grad.evaluation.parts import Settings
from event_binning_grad.events.types import Events

Float32 = np.ndarray
Columns = tuple[Float32, Float32, Float32]

GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason="no CUDA device")

LOW, HIGH = np.zeros(2), np.array([52.0, 37.0])  # odd sizes, also of the image and its bins
GRID = flow_iwe_grid(LOW, HIGH)
NODES = node_grid(LOW, HIGH, 9.0)
FIELDS = ("gradient", "hessian", "noise", "support")


@cache
def loaded(interpret: bool) -> ModuleType:
    """A copy of flow_contrast_cuda, its kernels interpreted or to be compiled."""
    module = None
    with mock.patch.dict(sys.modules), knobs.runtime.scope():
        knobs.runtime.interpret = interpret
        for name in ("image_cuda", "flow_contrast_cuda"):  # the second imports the first
            found = importlib.util.find_spec(f"event_binning_grad.estimation.{name}")
            assert found is not None
            assert found.loader is not None
            module = sys.modules[found.name] = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
    assert module is not None
    return module


@pytest.fixture(params=["interpreter", *(["cuda"] if GPU else [])])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Makes the contrast of an image plane, for the unbiased gradient or not."""
    if request.param == "cuda":
        return partial(loaded(interpret=False).CudaFlowContrast, device="cuda")
    # The language's library was loaded to be compiled; this is what it calls.
    combine = tl.standard._sum_combine
    monkeypatch.setattr(tl, "sum", lambda x, axis: tl.reduce(x, axis, combine))
    module = loaded(interpret=True)
    monkeypatch.setattr(module, "GATHER", 256)  # it takes its time a program
    return partial(module.CudaFlowContrast, device="cpu")


def events(count: int = 900, seed: int = 0) -> Columns:
    """Points that move by about (6, -3) px over the window, and strays, also off the sensor; some
    are nowhere."""
    rng = np.random.default_rng(seed)
    s = np.sort(rng.uniform(-0.5, 0.5, count))
    x, y = (rng.uniform(0, 1, (20, 2)) * HIGH)[rng.integers(0, 20, count)].T
    x, y = x + 6 * s + rng.normal(0, 0.3, count), y - 3 * s + rng.normal(0, 0.3, count)
    strays = rng.random(count) < 0.2
    x[strays], y[strays] = rng.uniform(-30, 80, (2, strays.sum()))
    x[::97], y[1::97] = np.nan, np.nan
    return x.astype(np.float32), y.astype(np.float32), s.astype(np.float32)


def field(scale: float = 1.0, seed: int = 1) -> Float32:
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, scale, (NODES.rows, NODES.cols, 2))
    return (np.array([5.0, -2.0]) + noise).astype(np.float32)


def passes(
    contrast: FlowContrast, columns: Columns, displacement: Float32, bin_size: float = 1.0
) -> list[FlowPass]:
    """Two, the second with the places that the first leaves."""
    contrast.load(*columns)
    contrast.settle(NODES, displacement, bin_size)
    far = np.float32(1.1) * displacement
    return [contrast.evaluate(NODES, flow, bin_size) for flow in (displacement, far)]


def assert_close(name: str, ours: Any, theirs: Any, share: float = 3e-4) -> None:
    assert np.shape(ours) == np.shape(theirs), name
    worst, scale = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    assert worst <= share * scale, f"{name}: {worst} off, of {scale}"


def assert_same(ours: list[FlowPass], theirs: list[FlowPass]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.events == other.events
        assert one.value == pytest.approx(other.value, rel=1e-5)
        for name in FIELDS:
            assert_close(name, getattr(one, name), getattr(other, name))


# ------------------------------------------------------------------------------------- one pass


@pytest.mark.parametrize("bin_size", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_a_pass_is_the_plain_torch_paths(cuda: Callable, bin_size: float, scale: float):
    columns, displacement = events(), field(scale)
    assert_same(
        passes(cuda(GRID, True), columns, displacement, bin_size),
        passes(TorchFlowContrast(GRID, True), columns, displacement, bin_size),
    )


@pytest.mark.parametrize("unbiased", [True, False], ids=["unbiased", "raw"])
def test_a_pass_is_the_cpu_paths(cuda: Callable, unbiased: bool):
    assert_same(
        passes(cuda(GRID, unbiased), events(seed=3), field()),
        passes(CpuFlowContrast(GRID, unbiased), events(seed=3), field()),
    )


def test_coarse_passes_take_the_same_part_of_the_events(cuda: Callable):
    columns = events(6301)
    ours = passes(cuda(GRID, True), columns, field(), 8.0)
    assert ours[0].events == 6000
    assert_same(ours, passes(TorchFlowContrast(GRID, True), columns, field(), 8.0))


@pytest.mark.parametrize("references", [(0.0,), REFERENCES, (0.2, -0.1)])
def test_images_at_reference_times_are_the_plain_torch_paths(cuda: Callable, references: Any):
    found = []
    for contrast in (cuda(GRID, True), TorchFlowContrast(GRID, True)):
        contrast.load(*events())
        squares = contrast.squares(NODES, field(), references)
        found.append((squares, contrast.last_image()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert_close("image", found[0][1], found[1][1], 1e-3)


def test_the_picture_is_the_plain_torch_paths(cuda: Callable):
    pixels = IweGrid(np.eye(2), np.zeros(2), 53, 38, 40.0)
    pictures = []
    for contrast in (cuda(GRID, True), TorchFlowContrast(GRID, True)):
        contrast.load(*events())
        pictures.append(contrast.picture(NODES, field(), pixels))
    assert pictures[0].shape == (38, 53)
    assert_close("picture", *pictures, share=1e-3)


def test_flow_that_is_not_a_number_takes_its_events_out(cuda: Callable):
    displacement = field()
    displacement[2, 3], displacement[0, 0, 1] = np.nan, np.inf
    ours = passes(cuda(GRID, True), events(), displacement)
    theirs = passes(TorchFlowContrast(GRID, True), events(), displacement)
    assert_same(ours, theirs)
    assert 0 < ours[0].support.sum() < passes(cuda(GRID, True), events(), field())[0].support.sum()


@pytest.mark.parametrize("shape", [(2, 2), (2, 5)])
def test_the_smallest_grids_of_nodes(cuda: Callable, shape: tuple[int, int]):
    nodes = NodeGrid((10.0, 8.0), 7.0, *shape)  # many events beyond it
    displacement = np.random.default_rng(2).normal(0, 3, (*shape, 2)).astype(np.float32)
    found = []
    for contrast in (cuda(GRID, True), TorchFlowContrast(GRID, True)):
        contrast.load(*events())
        contrast.settle(nodes, displacement, 2.0)
        found.append([contrast.evaluate(nodes, displacement, 2.0)])
    assert_same(*found)


def test_no_events(cuda: Callable):
    nothing = np.zeros(0, np.float32)
    contrast = cuda(GRID, True)
    for one in passes(contrast, (nothing, nothing, nothing), field()):
        assert (one.value, one.events) == (0, 0)
        for name in FIELDS:
            assert not getattr(one, name).any(), name
    assert contrast.squares(NODES, field(), REFERENCES) == (0, 0, 0)
    assert not contrast.last_image().any()


def test_events_off_the_image_or_nowhere_count_nothing(cuda: Callable):
    x = np.array([np.nan, 50.0, 1e4, -1e4, 50.0, np.nan, 3e38], np.float32)
    y = np.array([50.0, np.nan, 50.0, 50.0, -3e7, np.nan, np.inf], np.float32)
    for one in passes(cuda(GRID, True), (x, y, np.linspace(-0.5, 0.5, 7, dtype="f4")), field()):
        assert one.value == 0
        for name in FIELDS:
            assert not getattr(one, name).any(), name


def test_memory_is_kept_from_window_to_window(cuda: Callable):
    contrast = cuda(GRID, True)

    def addresses() -> list[int]:
        passes(contrast, events(600), field(), 2.0)
        contrast.squares(NODES, field(), REFERENCES)
        passes(contrast, events(600), field())
        memory = (contrast._memory, contrast._to_events._there, contrast._to_field._there)
        places = {contrast._old.data_ptr(), contrast._new.data_ptr()}
        return [*(part.data_ptr() for part in memory), *sorted(places)]

    before = addresses()
    assert addresses() == before
    # More events than there is room for, then fewer again.
    for count in (5000, 600):
        ours, theirs = (
            passes(one, events(count, seed=count), field())
            for one in (contrast, TorchFlowContrast(GRID, True))
        )
        assert_same(ours, theirs)


def test_columns_need_not_be_contiguous(cuda: Callable):
    table = np.stack(events(), 1)
    assert_same(
        passes(cuda(GRID, True), tuple(table.T), field()),
        passes(TorchFlowContrast(GRID, True), events(), field()),
    )


def test_the_estimators_flow_is_the_cpu_paths(cuda: Callable):
    """Whole windows: from rest, and tracked."""
    rng = np.random.default_rng(7)
    size, windows = (53, 38), []
    for start in (0, 20_000_000):
        t = np.sort(rng.integers(start, start + 20_000_000, 2500))
        x, y = (rng.uniform(0, 1, (25, 2)) * HIGH)[rng.integers(0, 25, 2500)].T
        x = np.clip(np.rint(x + 3e-7 * (t - start) + rng.normal(0, 0.3, 2500)), 0, 52)
        y = np.clip(np.rint(y + rng.normal(0, 0.3, 2500)), 0, 37)
        p = rng.integers(0, 2, 2500).astype(np.uint8)
        windows.append(Events(t, x.astype(np.uint16), y.astype(np.uint16), p, *size))
    ours, theirs = (FlowEstimator(size, FlowConfig(cold_passes=2)) for _ in range(2))
    ours._contrast = cuda(ours._grid, True)
    for window in windows:
        one, other = ours.estimate(window), theirs.estimate(window)
        assert one.status is other.status
        assert one.iterations == other.iterations
        assert one.contrast_gain == pytest.approx(other.contrast_gain, rel=1e-3)
        both = np.isfinite(one.flow) & np.isfinite(other.flow)
        assert both.mean() > 0.3
        moved = np.abs(other.flow[both]).max()
        assert np.abs(one.flow - other.flow)[both].max() < 0.01 * moved


# ------------------------------------------------------------------------------ the benchmark


@pytest.mark.skipif(GPU, reason="there is a CUDA device")
def test_the_benchmark_says_that_there_is_no_device(capsys: pytest.CaptureFixture[str]):
    figures = bench_flow.bench_flow(Console(), Settings(quick=True), ["cuda"])
    assert figures == {"cuda": []}
    assert capsys.readouterr().out == ("flow, cuda ...\nflow, cuda: left out: no CUDA device\n")


def test_the_benchmark_measures_fields_one_after_the_other():
    (row,) = bench_flow_simulated.cuda_rows(Settings(quick=True), ("cpu",))
    assert (row.sensor, row.back_end) == ("346x260", "cpu")
    assert row.fields > 0
    assert row.fields_per_second == pytest.approx(1e3 / row.field_ms_mean)
    assert 0 < row.field_ms_p50 <= row.field_ms_p99
    assert row.epe_px is not None
    assert row.epe_px < 1


# -------------------------------------------------------------------------- compiled for a GPU


class NoGpu:
    """What Triton asks of a GPU's driver in order to compile."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)


@pytest.fixture(params=[75, 80, 90, 120], ids="sm_{}".format)
def compiled(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[list[Any]]:
    """Launches end in the compiler, whose kernels are gathered in this list."""
    kernels = []

    def compile_only(kernel: Any, programs: Any, warps: int, *inputs: Any, **constants: Any):
        if all(programs):
            kernels.append(kernel.warmup(*inputs, **constants, num_warps=warps, grid=(1,)))

    module = loaded(interpret=False)
    monkeypatch.setattr(module, "_launch", compile_only)
    monkeypatch.setattr(triton.runtime.driver, "_active", NoGpu(request.param))
    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path)
        yield kernels
    for kernel in vars(module).values():
        if isinstance(kernel, triton.JITFunction):
            kernel.device_caches.clear()  # what was made for no GPU


def test_kernels_compile_to_machine_code_once_for_all_sizes(compiled: list[Any]):
    contrast = loaded(interpret=False).CudaFlowContrast(GRID, True, "cpu")
    passes(contrast, events(100), field())
    contrast.squares(NODES, field(), REFERENCES)
    first = set(map(id, compiled))
    # The scatter settles the places of the images that are not part of a pass.
    assert sorted(kernel.name for kernel in {id(k): k for k in compiled}.values()) == [
        "_gather_kernel", "_scatter_kernel", "_scatter_kernel", "_settle_kernel", "_square_kernel",
    ]  # fmt: skip
    for kernel in compiled:
        assert kernel.asm["cubin"]
        assert ".f64" not in kernel.asm["ptx"]  # which most GPUs hardly have
    # Other sizes of the image, of its bins, of the nodes and of the window: nothing to wait for.
    other = loaded(interpret=False).CudaFlowContrast(
        IweGrid(np.eye(2), np.zeros(2), 128, 64, 90.0), True, "cpu"
    )
    passes(other, events(4096), field(), 4.0)
    other.picture(NodeGrid((0.0, 0.0), 16.0, 16, 2), np.zeros((16, 2, 2), np.float32), GRID)
    assert set(map(id, compiled)) == first


def test_the_raw_gradients_kernel_compiles(compiled: list[Any]):
    passes(loaded(interpret=False).CudaFlowContrast(GRID, False, "cpu"), events(100), field())
    assert all(kernel.asm["cubin"] for kernel in compiled)


# -------------------------------------------------------------------------------------- on a GPU


@needs_gpu
def test_a_pass_waits_for_nothing_but_its_sums():
    contrast = loaded(interpret=False).CudaFlowContrast(GRID, True)
    expected = passes(contrast, events(), field())  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        contrast.load(*events())
        contrast.settle(NODES, field(), 1.0)
        sums, images = contrast._cleared(8 * NODES.rows * NODES.cols + 1, 1, GRID.bins(1.0).shape)
        projection = loaded(interpret=False)._projection(GRID, 1.0)
        contrast._scatter(NODES, field(), (0.0,), images, projection, contrast._taken, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sums.cpu().sum() == 0
    assert float((images**2).sum()) == pytest.approx(expected[0].value, rel=1e-4)


@needs_gpu
def test_the_estimator_takes_the_fused_path_on_cuda():
    estimator = FlowEstimator((53, 38), FlowConfig(device="cuda"))
    assert type(estimator._contrast).__name__ == "CudaFlowContrast"
