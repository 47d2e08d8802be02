"""Benchmark of egomotion's climb on CUDA: windows of many sizes, beside the fused CPU path."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from event_binning_grad.estimation.contrast import ContrastConfig, Float64, WindowEvents
from event_binning_grad.estimation.contrast_cpu import CpuContrast
from event_binning_grad.estimation.iwe_grid import IweGrid, iwe_grid
from event_binning_grad.estimation.look_up import look_up, normalised_table
from event_binning_grad.estimation.motion import OMEGA, PARAMETERS, MotionModel
from event_binning_grad.estimation.solver import Level, Point, Solution, maximise
from event_binning_grad.evaluation.metrics import angular_velocity_error
from event_binning_grad.evaluation.scenarios import Stream, hand_stream
from event_binning_grad.evaluation.tables import as_json, column, print_rows

if TYPE_CHECKING:
    from rich.console import Console

_SENSORS = ((346, 260), (1280, 720))
_SIZES = (10_000, 30_000, 100_000)
_LEVELS = (Level(2.0, 1 / 2), Level(1.0))
_TOLERANCE_PX, _MAX_STEPS = 0.05, 12
_START_OFF = 0.1  # of the true angular velocity: that of a track
_WARM_UP = 3  # windows: compiled code, then the captured graphs
_MOST_WINDOWS = 40

# Angular velocity and acceleration, infinitely far scene.
_ACTIVE = MotionModel.ROTATION.active(angular_acceleration=True)


@dataclass(frozen=True)
class ClimbRow:
    """Windows of one size, from the events' bearings to the solution."""

    sensor: str = column("sensor")
    events: int = column("events", ",d")
    back_end: str = column("back end")
    windows: int = column("windows", "d")
    window_ms_p50: float = column("ms p50", ".3f")
    window_ms_p99: float = column("ms p99", ".3f")
    events_per_second: float = column("Mev/s", ".1f", scale=1e-6)
    passes_mean: float = column("passes", ".1f")
    rms_deg_s: float = column("deg/s", ".2f")


@dataclass(frozen=True)
class Window:
    """A window's bearings, and where the climb starts.

    Attributes:
        events: at most as the contrast needs them.
        stamp_ns: reference time.
        start: [P] rad/s, rad/s^2.
    """

    events: WindowEvents
    stamp_ns: int
    start: Float64


Climb = Callable[[WindowEvents, Float64, Float64], Solution]
"""From a window, a start [P] and the scales [P] of its parameters, both by the solver."""


def bench_cuda(console: Console, quick: bool = False) -> list[dict[str, Any]]:
    """Measures, prints a table, and returns its rows; without a CUDA device a line, and none.

    Args:
        console: where to print.
        quick: measure less, to see that everything works.
    """
    import torch

    if not torch.cuda.is_available():
        console.print("egomotion, cuda: left out: no CUDA device", style="dim", highlight=False)
        return []
    rows = measure({"cpu": on_cpu, "cuda": on_cuda}, quick)
    print_rows(
        console,
        "one climb a window, simulated, bins of 2 and 1 pixels, from 10 % off",
        rows,
        "from the events' bearings in the host's memory to the solution there",
    )
    return [as_json(row) for row in rows]


def measure(back_ends: dict[str, Callable[[IweGrid], Climb]], quick: bool) -> list[ClimbRow]:
    """The rows of all sensors, sizes and back ends."""
    rows = []
    for width, height in _SENSORS[:1] if quick else _SENSORS:
        stream = hand_stream(width, height, 5.0, 0.06 if quick else 0.6)
        climbs = {name: make(iwe_grid(stream.camera)) for name, make in back_ends.items()}
        for size in _SIZES[:1] if quick else _SIZES:
            windows = list(_windows(stream, size))[: _WARM_UP + _MOST_WINDOWS]
            if len(windows) > _WARM_UP:
                rows += [_row(stream, name, size, climb, windows) for name, climb in climbs.items()]
    return rows


def _row(stream: Stream, name: str, size: int, climb: Climb, windows: Sequence[Window]) -> ClimbRow:
    radius, spent_s, passes, omega = iwe_grid(stream.camera).radius_px, [], [], []
    for window in windows:
        half_s = window.events.span_s / 2
        scales = np.repeat([radius * half_s, radius * half_s**2 / 2], 3)
        began = time.perf_counter()
        solution = climb(window.events, window.start * scales, scales)
        spent_s.append(time.perf_counter() - began)
        passes.append(solution.evaluations)
        omega.append((solution.parameters / scales)[OMEGA])
    spent_ms = 1e3 * np.array(spent_s[_WARM_UP:])
    stamps = [window.stamp_ns for window in windows]
    error = angular_velocity_error(stamps[_WARM_UP:], np.array(omega[_WARM_UP:]), stream.truth)
    return ClimbRow(
        f"{stream.camera.width}x{stream.camera.height}",
        size,
        name,
        len(spent_ms),
        float(np.percentile(spent_ms, 50)),
        float(np.percentile(spent_ms, 99)),
        1e3 * size / float(spent_ms.mean()),
        float(np.mean(passes[_WARM_UP:])),
        error.rms_deg_s if error else float("nan"),
    )


def _windows(stream: Stream, size: int) -> Iterator[Window]:
    """Windows of so many events, one after the other."""
    camera = stream.camera
    table = normalised_table(camera)
    counts = np.zeros((camera.height, camera.width), np.int32)
    for first in range(0, len(stream.events) - size + 1, size):
        events = stream.events[first : first + size]
        begin, end = int(events.t[0]), int(events.t[-1])
        stamp_ns = events.mean_time_ns
        columns = np.ones((4, size), np.float32)
        look_up(events.t, events.x, events.y, stamp_ns, table, counts, columns)
        span_s = (end - begin) * 1e-9
        x, y, tau, inverse_depth = columns
        (true,) = stream.truth.at(np.array([stamp_ns]))
        start = np.append((1 - _START_OFF) * true, np.zeros(3))
        yield Window(WindowEvents(x, y, tau, inverse_depth, span_s), stamp_ns, start)


def on_cpu(grid: IweGrid) -> Climb:
    """`CpuContrast`, its passes driven by the host."""
    contrast = CpuContrast(grid, ContrastConfig())

    def climb(window: WindowEvents, start: Float64, scales: Float64) -> Solution:
        contrast.load(window, _ACTIVE)
        motion, scale = np.zeros(PARAMETERS), 1 / scales

        def evaluate(parameters: Float64, level: Level) -> Point:
            motion[_ACTIVE] = parameters * scale
            one = contrast.evaluate(motion, *level)
            twice = np.outer(scale, scale)
            hessian, scatter = one.hessian * twice, one.scatter * twice
            return Point(one.value, one.gradient * scale, hessian, scatter, one)

        return maximise(evaluate, start, _LEVELS, _TOLERANCE_PX, _MAX_STEPS)

    return climb


def on_cuda(grid: IweGrid) -> Climb:
    """`CudaContrast.solve`."""
    from event_binning_grad.estimation.contrast_cuda import CudaContrast
    from event_binning_grad.estimation.solver import Scaling

    contrast = CudaContrast(grid, ContrastConfig())
    nothing = np.zeros(len(_ACTIVE))

    def climb(window: WindowEvents, start: Float64, scales: Float64) -> Solution:
        contrast.load(window, _ACTIVE)
        scaling = Scaling(_ACTIVE, scales, np.zeros(PARAMETERS), nothing, nothing)
        return contrast.solve(start, scaling, _LEVELS, _TOLERANCE_PX, _MAX_STEPS)

    return climb
