"""The contrast's CUDA path against its CPU twin: in Triton's interpreter, and on a GPU if any.

As in `test_binning_cuda`, the interpreter is switched on for one copy of the modules alone, and
what it cannot show, that the kernels compile, is shown for GPUs that need not be there.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
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

from event_binning_grad.errors import ConfigError
from event_binning_grad.estimation.contrast import ContrastConfig, TorchContrast, WindowEvents
from event_binning_grad.estimation.contrast_cpu import CpuContrast
from event_binning_grad.estimation.iwe_grid import IweGrid
from event_binning_grad.estimation.motion import MotionModel
from event_binning_grad.estimation.solver import Level, Point, Solution, maximise, newton_step
from event_binning_grad.estimation.trust import structure
from event_binning_grad.evaluation import bench_egomotion_cuda

Float64 = np.ndarray

GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason="no CUDA device")

GRID = IweGrid(np.array([[40.0, -3.0], [3.0, 40.0]]), np.array([45.0, 35.0]), 90, 70, 50.0)
ALL = np.arange(11)
TURN = np.array([1.0, -2.0, 3.0])
MOTION = np.array([1.0, -2.0, 3.0, 10.0, 5.0, -20.0, 0.3, -0.2, 0.4, 0.3, -0.2])
TOLERANCE_PX = 0.05


@cache
def loaded(interpret: bool) -> tuple[ModuleType, ModuleType]:
    """Copies of contrast_cuda and solver_cuda, with their kernels interpreted or to be compiled."""
    modules = []
    with mock.patch.dict(sys.modules), knobs.runtime.scope():
        knobs.runtime.interpret = interpret
        for name in ("solver_cuda", "image_cuda", "contrast_cuda"):  # the last imports the others
            found = importlib.util.find_spec(f"event_binning_grad.estimation.{name}")
            assert found is not None
            assert found.loader is not None
            module = sys.modules[found.name] = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
            modules.append(module)
    return modules[2], modules[0]


@dataclass(frozen=True)
class OnDevice:
    """The modules, and the device that they are to work on."""

    module: ModuleType
    solver: ModuleType
    device: str

    def contrast(self, window: WindowEvents, config: ContrastConfig, active: Any = ALL) -> Any:
        contrast = self.module.CudaContrast(GRID, config, self.device)
        contrast.load(window, active)
        return contrast


@pytest.fixture(params=["interpreter", *(["cuda"] if GPU else [])])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> OnDevice:
    if request.param == "cuda":
        return OnDevice(*loaded(interpret=False), "cuda")
    # The language's library was loaded to be compiled; these are what it calls.
    for name, combine in (("sum", "_sum_combine"), ("max", "_elementwise_max")):
        function = getattr(tl.standard, combine)
        monkeypatch.setattr(tl, name, lambda x, axis, f=function: tl.reduce(x, axis, f))
    module, solver = loaded(interpret=True)
    # It takes its time a program, also for passes without anything to do.
    monkeypatch.setattr(module, "GATHER", 256)
    monkeypatch.setattr(module, "PASSES", 3)
    return OnDevice(module, solver, "cpu")


def window_of(events: int, seed: int = 0) -> WindowEvents:
    """Points seen by a turning camera; some events have no bearing, or no depth."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-0.8, 0.8, (40, 2))[rng.integers(0, 40, events)]
    points += rng.normal(0, 0.005, points.shape)
    tau = np.sort(rng.uniform(-0.02, 0.02, events))
    theta, rays = -np.outer(tau, TURN), np.column_stack([points, np.ones(events)])
    once = np.cross(theta, rays)
    seen = rays + once + 0.5 * np.cross(theta, once)
    x, y = (seen[:, :2] / seen[:, 2:]).T
    x[::50] = np.nan
    inverse_depth = rng.uniform(0.3, 0.6, events)
    inverse_depth[7::60] = np.nan
    x, y, tau, inverse_depth = np.array([x, y, tau, inverse_depth], np.float32)
    return WindowEvents(x, y, tau, inverse_depth, 0.04)


def cpu_contrast(window: WindowEvents, config: ContrastConfig, active: Any = ALL) -> CpuContrast:
    contrast = CpuContrast(GRID, config)
    contrast.load(window, active)
    return contrast


def assert_close(name: str, ours: Any, theirs: Any, share: float = 3e-5) -> None:
    worst, scale = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    assert worst <= share * scale, f"{name}: {worst} off, of {scale}"


def assert_same_pass(ours: Any, theirs: Any, share: float = 3e-5) -> None:
    for name in ("value", "gradients", "hessian", "scatter"):
        assert_close(name, getattr(ours, name), getattr(theirs, name), share)
    assert ours.events == theirs.events


# ------------------------------------------------------------------------------------- one pass


@pytest.mark.parametrize("reconstruction", ["linear", None])
@pytest.mark.parametrize(
    "objective", ["variance", "mean_square", "gradient_magnitude", "likelihood"]
)
def test_a_pass_is_the_cpu_paths(cuda: OnDevice, objective: str, reconstruction: str | None):
    config = ContrastConfig(objective, reconstruction=reconstruction)
    window = window_of(300)
    ours, theirs = (make(window, config) for make in (cuda.contrast, cpu_contrast))
    assert_same_pass(ours.evaluate(MOTION, 1.5), theirs.evaluate(MOTION, 1.5))
    assert_close("image", ours.last_iwe(), theirs.last_iwe(), 1e-4)


@pytest.mark.parametrize(
    "motion",
    [np.zeros(11), MOTION * 15, MOTION + np.array([0.0] * 8 + [60.0, 0.0, 0.0])],
    ids=["rest", "far too fast", "behind the image plane"],
)
def test_a_pass_is_the_cpu_paths_wherever_the_events_end(cuda: OnDevice, motion: Float64):
    window, config = window_of(300), ContrastConfig()
    ours, theirs = (make(window, config) for make in (cuda.contrast, cpu_contrast))
    assert_same_pass(ours.evaluate(motion, 2.0), theirs.evaluate(motion, 2.0), 1e-4)


def test_a_pass_is_the_plain_torch_paths(cuda: OnDevice):
    active = MotionModel.PLANAR.active(angular_acceleration=False)
    window, config = window_of(300), ContrastConfig()
    plain = TorchContrast(GRID, config, "cpu")
    plain.load(window, active)
    ours = cuda.contrast(window, config, active).evaluate(MOTION, 1.0)
    assert ours.hessian.shape == (8, 8)
    assert_same_pass(ours, plain.evaluate(MOTION, 1.0), 1e-4)


def test_shares_are_the_same_part_of_the_events(cuda: OnDevice):
    window, config = window_of(4701), ContrastConfig()
    ours, theirs = (make(window, config) for make in (cuda.contrast, cpu_contrast))
    part = ours.evaluate(MOTION, 4.0, 0.9)
    assert part.events == 4231
    assert_same_pass(part, theirs.evaluate(MOTION, 4.0, 0.9), 1e-4)
    assert_close("image", ours.iwe(MOTION, 4.0), theirs.iwe(MOTION, 4.0))


def test_a_longer_window_and_a_shorter_one_take_the_place_of_the_last(cuda: OnDevice):
    config = ContrastConfig()
    contrast = cuda.contrast(window_of(300), config)
    for events in (4200, 60):
        window = window_of(events, seed=events)
        contrast.load(window, ALL)
        theirs = cpu_contrast(window, config).iwe(MOTION, 2.0)
        assert_close("image", contrast.iwe(MOTION, 2.0), theirs)


def test_an_empty_image_has_no_derivatives(cuda: OnDevice):
    nothing, zero = np.full(64, np.nan, np.float32), np.zeros(64, np.float32)
    nowhere = WindowEvents(nothing, nothing, zero, zero, 0.04)
    one = cuda.contrast(nowhere, ContrastConfig()).evaluate(np.zeros(11), 1.0)
    assert one.value == 0
    for name in ("gradients", "hessian", "scatter"):
        assert not getattr(one, name).any(), name


def test_other_kernels_are_refused(cuda: OnDevice):
    with pytest.raises(ConfigError, match="fused pass has 'linear'"):
        cuda.module.CudaContrast(GRID, ContrastConfig(binning="rect"), cuda.device)


# ------------------------------------------------------------------------------------- one climb


@dataclass(frozen=True)
class Climb:
    """A window, where its solution is sought from, and what is known beforehand."""

    model: MotionModel
    objective: str = "variance"
    start: float = 1.0  # times the true rotation's guess
    levels: tuple[Level, ...] = (Level(2.0, 1 / 2), Level(1.0))
    max_steps: int = 12

    @property
    def active(self) -> Any:
        return self.model.active(True)

    @property
    def window(self) -> WindowEvents:
        return window_of(400)

    @property
    def fixed(self) -> Float64:
        return np.append([0.9, -1.8, 2.5], np.zeros(8))

    def scaling(self, solver: ModuleType) -> Any:
        ends_s, radius, focal = 0.02, GRID.radius_px, GRID.focal_px
        pixels = [radius * ends_s] * 3 + [radius * ends_s**2 / 2] * 3
        pixels += [focal * ends_s * 0.45] * 3 + [focal * ends_s * 0.25] * 2
        scales = np.array(pixels)[self.active]
        std = np.array([np.inf] * 3 + [200.0] * 3 + [5.0] * 3 + [0.5] * 2)[self.active]
        mean = np.linspace(-0.1, 0.1, len(scales)) * scales
        return solver.Scaling(self.active, scales, self.fixed, mean, (std * scales) ** -2)

    def by_cpu(self, solver: ModuleType) -> tuple[Solution, CpuContrast]:
        contrast = cpu_contrast(self.window, ContrastConfig(self.objective), self.active)
        scaling = self.scaling(solver)

        def evaluate(parameters: Float64, level: Level) -> Point:
            motion = self.fixed
            motion[self.active] = parameters / scaling.scales
            return scaling.point(contrast.evaluate(motion, *level), parameters)

        start = self.start * self.fixed[self.active] * scaling.scales
        return maximise(evaluate, start, self.levels, TOLERANCE_PX, self.max_steps), contrast

    def by_device(self, cuda: OnDevice, **more: Any) -> tuple[Solution, Any]:
        contrast = cuda.contrast(self.window, ContrastConfig(self.objective), self.active)
        return self.again(cuda, contrast, **more), contrast

    def again(self, cuda: OnDevice, contrast: Any, **more: Any) -> Solution:
        scaling = self.scaling(cuda.solver)
        start = self.start * self.fixed[self.active] * scaling.scales
        return contrast.solve(start, scaling, self.levels, TOLERANCE_PX, self.max_steps, **more)


def assert_same_solution(ours: Solution, theirs: Solution) -> None:
    assert np.abs(ours.parameters - theirs.parameters).max() < 1e-3  # pixels
    assert ours.last_step_px == pytest.approx(theirs.last_step_px, abs=1e-3)
    assert (ours.evaluations, ours.events) == (theirs.evaluations, theirs.events)
    for name in ("value", "gradient", "hessian", "scatter"):
        one, other = getattr(ours.last, name), getattr(theirs.last, name)
        assert np.abs(one - other).max() <= 1e-3 * max(
            np.abs(other).max(), np.abs(theirs.last.hessian).max()
        ), name
    assert_same_pass(ours.last.contrast, theirs.last.contrast, 2e-3)


@pytest.mark.parametrize(
    "climb",
    [
        Climb(MotionModel.PLANAR, max_steps=1),
        Climb(MotionModel.TRANSLATION, "likelihood", levels=(Level(1.0),)),
        Climb(MotionModel.FULL, levels=(Level(2.0), Level(2.0)), max_steps=2),
    ],
    ids=["planar, two levels cut short", "translation, likelihood", "full, equal levels"],
)
def test_a_climb_ends_where_the_host_driven_one_does(cuda: OnDevice, climb: Climb):
    theirs, contrast = climb.by_cpu(cuda.solver)
    image = np.ascontiguousarray(contrast.last_iwe())
    ours, device_contrast = climb.by_device(cuda)
    assert not ours.late
    assert_same_solution(ours, theirs)
    assert_close("image", device_contrast.last_iwe(), image, 1e-3)
    at_rest = contrast.iwe(np.zeros(11), climb.levels[-1].bin_size)
    expected = float(image.var() / at_rest.var()), structure(image)
    assert device_contrast.gain_and_structure() == pytest.approx(expected, rel=2e-3)


def test_a_climb_that_is_late_ends_after_the_passes_that_are_queued(
    cuda: OnDevice, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cuda.module, "PASSES", 1)
    climb = Climb(MotionModel.TRANSLATION, start=0.0, levels=(Level(1.0),))
    ours, contrast = climb.by_device(cuda, is_late=lambda: True)
    assert ours.late
    assert ours.evaluations == 1
    assert np.isnan(contrast.gain_and_structure()).all()
    theirs, _ = Climb(**{**vars(climb), "max_steps": 1}).by_cpu(cuda.solver)
    assert_same_solution(ours, theirs)


def test_levels_beyond_the_room_for_them_are_refused(cuda: OnDevice):
    climb = Climb(MotionModel.ROTATION, levels=tuple(Level(size) for size in range(10, 1, -1)))
    with pytest.raises(ConfigError, match="9 levels: expected 1 to 8"):
        climb.by_device(cuda)


def symmetric(rng: np.random.Generator, eigenvalues: Any) -> Float64:
    directions = np.linalg.qr(rng.normal(size=(11, 11)))[0]
    return directions * np.asarray(eigenvalues) @ directions.T


@pytest.mark.parametrize(
    ("eigenvalues", "scale"),
    [
        (-np.geomspace(1.0, 3e-3, 11), 1.0),
        (np.linspace(-1.0, 0.5, 11), 1e-8),
        ([-1.0] * 5 + [-1e-5] * 6, 1e6),
        ([0.0] * 11, 1.0),
    ],
    ids=["maximum", "saddle", "flat directions", "nothing"],
)
def test_the_step_is_that_of_the_hosts_eigenvalues(cuda: OnDevice, eigenvalues: Any, scale: float):
    rng = np.random.default_rng(4)
    hessian, gradient = scale * symmetric(rng, eigenvalues), 0.3 * scale * rng.normal(size=11)
    gradient *= np.any(hessian)  # as it is where nothing was seen
    step = newton_step(gradient, hessian, 1.5)
    after = after_one_step(cuda, gradient, hessian)
    assert np.abs(after["parameters"][:11] - step).max() <= 1e-3 * np.abs(step).max()
    assert after["last_step"] == pytest.approx(np.linalg.norm(step), rel=1e-3)
    assert after["evaluations"] == 1


def after_one_step(cuda: OnDevice, gradient: Float64, hessian: Float64) -> Any:
    """The state after the step kernel alone, with bins of a pixel, from parameters of zero."""
    solver, nothing = cuda.solver, np.zeros(11)
    scaling = solver.Scaling(ALL, np.ones(11), nothing, nothing, nothing)
    state = solver.new_state(nothing, scaling, 100, (Level(1.0),), (0,), TOLERANCE_PX, 12)
    state["gradients"][1, :11], state["hessian"][:11, :11] = gradient, hessian
    memory = torch.from_numpy(np.frombuffer(state.tobytes(), np.float32).copy()).to(cuda.device)
    solver.step_kernel[(1,)](memory.view(torch.int32), memory, 0, 1.0, num_warps=1)
    return np.frombuffer(memory.cpu().numpy().tobytes(), solver.STATE)[0]


def test_a_hessian_that_is_not_finite_ends_the_level(cuda: OnDevice):
    hessian = -np.eye(11)
    hessian[3, 3] = np.nan
    after = after_one_step(cuda, np.ones(11), hessian)
    assert after["plane"] == cuda.solver.NO_PLANE
    assert np.isinf(after["last_step"])
    assert not after["parameters"].any()


@pytest.mark.skipif(GPU, reason="there is a CUDA device")
def test_the_benchmark_says_that_there_is_no_device_and_runs_without_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bench_egomotion_cuda, "_SENSORS", ((120, 90),))
    monkeypatch.setattr(bench_egomotion_cuda, "_SIZES", (2000,))
    assert bench_egomotion_cuda.bench_cuda(Console()) == []
    assert capsys.readouterr().out == "egomotion, cuda: left out: no CUDA device\n"
    (row,) = bench_egomotion_cuda.measure({"cpu": bench_egomotion_cuda.on_cpu}, quick=True)
    assert (row.back_end, row.events) == ("cpu", 2000)
    assert row.windows > 0
    assert row.rms_deg_s < 5


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


@pytest.fixture(params=[75, 120], ids="sm_{}".format)
def compiled(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[list[Any]]:
    """Launches end in the compiler, whose kernels are gathered in this list."""
    kernels = []

    def compile_only(kernel: Any, programs: Any, warps: int, *inputs: Any, **constants: Any):
        kernels.append(kernel.warmup(*inputs, **constants, num_warps=warps, grid=(1,)))

    module, solver = loaded(interpret=False)
    monkeypatch.setattr(module, "_launch", compile_only)
    monkeypatch.setattr(triton.runtime.driver, "_active", NoGpu(request.param))
    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path)
        yield kernels
    for kernel in (*vars(module).values(), *vars(solver).values()):
        if isinstance(kernel, triton.JITFunction):
            kernel.device_caches.clear()  # what was made for no GPU


def test_kernels_compile_to_machine_code_once_for_all_sizes(compiled: list[Any]):
    module, _ = loaded(interpret=False)
    contrast = module.CudaContrast(GRID, ContrastConfig(), "cpu")
    contrast.load(window_of(100), ALL)
    contrast._run([contrast._plane(2.0)])
    first = set(map(id, compiled))
    assert {kernel.name for kernel in compiled} == {
        "_clear_kernel", "_scatter_kernel", "_reduce_kernel", "_gather_kernel", "step_kernel",
        "_structure_kernel",
    }  # fmt: skip
    for kernel in compiled:
        assert kernel.asm["cubin"]
        assert ".f64" not in kernel.asm["ptx"]  # which most GPUs hardly have
    # Other sizes of the image, of its bins and of the window: nothing is left for a capture.
    other = module.CudaContrast(
        IweGrid(np.eye(2), np.zeros(2), 128, 64, 90.0), ContrastConfig(), "cpu"
    )
    other.load(window_of(5000), ALL)
    other._run([other._plane(4.0), other._plane(1.0)])
    assert set(map(id, compiled)) == first


# -------------------------------------------------------------------------------------- on a GPU


@needs_gpu
def test_a_captured_climb_replays_on_new_windows_without_waiting():
    cuda = OnDevice(*loaded(interpret=False), "cuda")
    climb = Climb(MotionModel.ROTATION, start=0.0)
    first, contrast = climb.by_device(cuda)  # queued one by one, and captured
    graphs = dict(contrast._graphs)
    assert len(graphs) == 3  # two sizes of bins, and the image's sharpness
    contrast.load(window_of(300, seed=5), climb.active)
    climb.again(cuda, contrast)
    contrast.load(climb.window, climb.active)
    torch.cuda.set_sync_debug_mode("error")
    try:
        contrast._run([contrast._plane(level.bin_size) for level in climb.levels])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same_solution(climb.again(cuda, contrast), first)
    assert contrast._graphs == graphs
