"""Benchmark of dense flow in simulation: speed under load, errors in scenes, repeatability."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from event_binning_grad.config import PipelineConfig
from event_binning_grad.estimation.flow import FlowEstimator
from event_binning_grad.estimation.flow_estimate import FlowEstimate
from event_binning_grad.evaluation.figures import mean
from event_binning_grad.evaluation.flow_metrics import FlowError, pooled
from event_binning_grad.evaluation.flow_runs import run_live, window_fields
from event_binning_grad.evaluation.flow_score import FlowScorer, FlowWindow
from event_binning_grad.evaluation.parts import Settings
from event_binning_grad.evaluation.scenarios import SETTLE_NS
from event_binning_grad.evaluation.tables import column
from event_binning_grad.evaluation.true_flow import SimulatedTruth
from event_binning_grad.events.types import NS_PER_S, Events
from event_binning_grad.pipeline_flow import FlowStage, field_stride
from event_binning_grad.simulate import Simulation, SimulationConfig

# Windows that are no part of what fields take: kernels are compiled, memory is found.
_WARM_UP = 3
# Windows whose true displacement is less, or more, are no part of the scenes' figures, px.
DISPLACEMENT_PX = (5.0, 15.0)
# Hand-held swings before a scene with depth: those of `simulate`, where the turning makes most of
# the flow; and slower turning, where the depth does.
_MOTIONS: dict[str, dict[str, Any]] = {
    "": {
        "peak_rad_s": (2.0, 2.0, 2.0),
        "peak_m_s": (0.5, 0.5, 0.5),
        "frequency_hz": (0.5, 1.5),
    },
    "slow turn": {
        "peak_rad_s": (1.0, 1.0, 1.0),
        "peak_m_s": (0.5, 0.5, 0.5),
        "frequency_hz": (0.7, 2.0),
    },
}


@dataclass(frozen=True)
class FlowThroughputRow:
    """From packets to fields, packets coming in time as from a camera."""

    sensor: str = column("sensor")
    back_end: str = column("back end")
    events_per_second: float = column("Mev/s", ".2f", scale=1e-6)
    rate_hz: float = column("Hz asked", "g")
    stride: int = column("stride", "d")
    fields: int = column("fields", "d")
    skipped_windows: int = column("lost", "d")
    fields_per_second: float = column("fields/s", ".1f")
    possible_fields_per_second: float = column("possible", ".0f")
    field_ms_p50: float = column("ms p50", ".1f")
    field_ms_p99: float = column("ms p99", ".1f")
    delay_ms_p99: float = column("delay p99", ".1f")
    iterations_mean: float = column("passes", ".1f")
    cpu_ms_per_field: float = column("CPU ms", ".1f")
    used_share: float = column("used", ".0%")
    window_used_share: float = column("window", ".0%")
    true_displacement_px: float | None = column("px moved", ".1f")
    epe_px: float | None = column("EPE px", ".2f")


@dataclass(frozen=True)
class FlowSceneRow:
    """Errors against the exact flow of a simulated scene, and those of the raw gradient."""

    scene: str = column("scene")
    sensor: str = column("sensor")
    windows: int = column("windows", "d")
    fields: int = column("compared", "d")
    window_ms_mean: float | None = column("ms", ".0f")
    true_displacement_px: float | None = column("px moved", ".1f")
    density: float | None = column("known", ".0%")
    epe_px: float | None = column("EPE px", ".3f")
    outliers_1px: float | None = column("> 1 px", ".1%")
    outliers_3px: float | None = column("> 3 px", ".1%")
    moving_epe_px: float | None = column("moving: EPE", ".3f")
    moving_outliers_3px: float | None = column("> 3 px", ".1%")
    iterations_mean: float | None = column("passes", ".1f")
    raw_epe_px: float | None = column("raw: EPE", ".3f")
    raw_outliers_3px: float | None = column("> 3 px", ".1%")
    raw_moving_epe_px: float | None = column("moving", ".3f")
    raw_iterations_mean: float | None = column("passes", ".1f")
    raw_ratio: float | None = column("raw / ours", ".2f")


@dataclass(frozen=True)
class FlowRepeatRow:
    """Whether the same events give the same fields, bit for bit."""

    sensor: str = column("sensor")
    compared: str = column("compared")
    fields: int = column("fields", "d")
    identical: str = column("identical")


@dataclass(frozen=True)
class FlowCudaRow:
    """One field after the other, from the events in the host's memory to the field there."""

    sensor: str = column("sensor")
    back_end: str = column("back end")
    events_per_second: float = column("Mev/s", ".2f", scale=1e-6)
    stride: int = column("stride", "d")
    fields: int = column("fields", "d")
    field_ms_mean: float = column("ms mean", ".2f")
    field_ms_p50: float = column("p50", ".2f")
    field_ms_p99: float = column("p99", ".2f")
    fields_per_second: float = column("fields/s", ".0f")
    iterations_mean: float = column("passes", ".1f")
    true_displacement_px: float | None = column("px moved", ".1f")
    epe_px: float | None = column("EPE px", ".2f")


def throughput(settings: Settings) -> list[FlowThroughputRow]:
    """Hand-like rotation at about 1 Mev/s (346x260) and 10 Mev/s (1280x720), packets in time."""
    import torch

    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    small = _rotation_at_1_mev_s(settings)
    cases = [(small, 30.0, 0)]
    if not settings.quick:
        cases += [(small, 60.0, 0), (_large(), 30.0, 4)]
    rows = []
    for simulated, rate_hz, stride in cases:
        for device in devices:
            config = replace(
                settings.config, estimate="flow", flow_rate_hz=rate_hz, flow_stride=stride,
                device=device,
            )  # fmt: skip
            rows.append(_throughput_row(simulated, config))
    return rows


def _rotation_at_1_mev_s(settings: Settings) -> SimulationConfig:
    return SimulationConfig(duration_s=0.25 if settings.quick else 2.0, peak_rad_s=(3.5, 3.5, 3.5))


def _large() -> SimulationConfig:
    return SimulationConfig(duration_s=0.5, width=1280, height=720, peak_rad_s=(3.0, 3.0, 3.0))


def _throughput_row(simulated: SimulationConfig, config: PipelineConfig) -> FlowThroughputRow:
    simulation, events = _simulated(simulated)
    duration_s = _duration_s(events)
    live = run_live(events, simulation.camera, config)
    solve_s = np.array([estimate.solve_time_s for estimate in live.fields])
    # What is left of a second when all else is done, by what a field takes.
    left = max(0.0, 1 - (live.spent_s - solve_s.sum()) / duration_s)
    # The first window, from rest, spans all that it may.
    error = pooled(window.error for window in _scored(simulation, events, config)[1:])
    width, height = events.width, events.height
    return FlowThroughputRow(
        _sensor(events),
        config.device,
        len(events) / duration_s,
        config.flow_rate_hz,
        field_stride(config, width, height),
        len(live.fields),
        live.skipped_windows,
        len(live.fields) / duration_s,
        float(left / solve_s.mean()),
        _percentile_ms(solve_s, 50),
        _percentile_ms(solve_s, 99),
        _percentile_ms(live.delays_s, 99),
        float(np.mean([estimate.iterations for estimate in live.fields])),
        1e3 * live.cpu_s / len(live.fields),
        live.used_events / len(events),
        float(np.mean([estimate.used_share for estimate in live.fields])),
        error and error.true_px,
        error and error.epe_px,
    )


def cuda(settings: Settings) -> list[FlowCudaRow]:
    """Fields one after the other on the CPU and on CUDA; nothing without a CUDA device."""
    import torch

    if not torch.cuda.is_available():
        return []
    return cuda_rows(settings, ("cpu", "cuda"))


def cuda_rows(settings: Settings, devices: Sequence[str]) -> list[FlowCudaRow]:
    """The rows of both sensors (the small one if quick) and these devices."""
    cases = [(_rotation_at_1_mev_s(settings), 0)]
    if not settings.quick:
        cases.append((_large(), 4))
    return [
        _cuda_row(simulated, replace(settings.config, device=device, flow_stride=stride))
        for simulated, stride in cases
        for device in devices
    ]


def _cuda_row(simulated: SimulationConfig, config: PipelineConfig) -> FlowCudaRow:
    simulation, events = _simulated(simulated)
    # So many windows are asked for; how long they are is up to the flow.
    config = replace(config, estimate="flow", flow_rate_hz=100.0)
    found = list(window_fields(events, FlowStage(config, simulation.camera)))
    estimates = [estimate for _, estimate in found[_WARM_UP:]]
    solve_s = np.array([estimate.solve_time_s for estimate in estimates])
    error = pooled(window.error for window in _scored(simulation, events, config)[1:])
    return FlowCudaRow(
        _sensor(events),
        config.device,
        len(events) / _duration_s(events),
        field_stride(config, events.width, events.height),
        len(estimates),
        1e3 * float(solve_s.mean()),
        _percentile_ms(solve_s, 50),
        _percentile_ms(solve_s, 99),
        float(1 / solve_s.mean()),
        float(np.mean([estimate.iterations for estimate in estimates])),
        error and error.true_px,
        error and error.epe_px,
    )


def scenes(settings: Settings) -> list[FlowSceneRow]:
    """A slanted plane, layers, and objects that move by themselves, in the node's windows."""
    if settings.quick:
        cases = [("objects", "", 160, 120, 0.25, 1)]
    else:
        cases = [
            ("plane", "", 346, 260, 0.4, 2),
            ("layers", "", 346, 260, 0.4, 2),
            ("layers", "slow turn", 346, 260, 0.4, 2),
            ("objects", "", 346, 260, 0.4, 2),
            ("objects", "slow turn", 346, 260, 0.4, 2),
            ("layers", "", 640, 480, 0.3, 1),
        ]
    return [_scene_row(settings.config, *case) for case in cases]


def _scene_row(
    config: PipelineConfig, scene: str, motion: str, width: int, height: int, duration_s: float,
    seeds: int,
) -> FlowSceneRow:  # fmt: skip
    ours: list[FlowWindow] = []
    raw: list[FlowWindow] = []
    for seed in range(seeds):
        simulation, events = _simulated(
            SimulationConfig(
                duration_s=duration_s,
                width=width,
                height=height,
                scene=scene,
                seed=seed,
                normal=(0.4, 0.2, 1.0) if scene == "plane" else (0.0, 0.0, 1.0),
                **_MOTIONS[motion],
            )
        )
        ours += _scored(simulation, events, config)
        raw += _scored(simulation, events, config, "raw")
    counted = [pair for pair in zip(ours, raw, strict=True) if _in_range(pair[0].error)]
    # Where the raw gradient's field is not trusted it is compared nowhere, which is to its favour.
    both = [(mine, other) for mine, other in counted if other.error is not None]
    error, raw_error = (pooled(pair[k].error for pair in both) for k in (0, 1))
    moving, raw_moving = (pooled(pair[k].moving_error for pair in both) for k in (0, 1))
    return FlowSceneRow(
        f"{scene}, {motion}" if motion else scene,
        f"{width}x{height}",
        len(ours),
        len(both),
        mean([1e3 * mine.span_s for mine, _ in both]),
        error and error.true_px,
        mean([mine.density for mine, _ in both]),
        error and error.epe_px,
        error and error.outliers_1px,
        error and error.outliers_3px,
        moving and moving.epe_px,
        moving and moving.outliers_3px,
        mean([mine.iterations for mine, _ in both]),
        raw_error and raw_error.epe_px,
        raw_error and raw_error.outliers_3px,
        raw_moving and raw_moving.epe_px,
        mean([other.iterations for _, other in both]),
        raw_error.epe_px / error.epe_px if error and raw_error else None,
    )


def _in_range(error: FlowError | None) -> bool:
    least, most = DISPLACEMENT_PX
    return error is not None and least <= error.true_px <= most


def _scored(
    simulation: Simulation, events: Events, config: PipelineConfig, gradient: str = "unbiased"
) -> list[FlowWindow]:
    """The figures of every window, its field at full resolution.

    The windows are those of the unbiased gradient; another gradient is asked about the same events
    in the same order, and has its own track.
    """
    config = replace(config, estimate="flow", flow_stride=1, gradient="unbiased")
    size, camera = (events.width, events.height), simulation.camera
    scorer = FlowScorer(size, camera, SimulatedTruth(simulation))
    other = None
    if gradient != "unbiased":
        other = FlowEstimator(size, replace(config, gradient=gradient).flow(), camera)
    windows = []
    for window, estimate in window_fields(events, FlowStage(config, camera)):
        asked = estimate if other is None else other.estimate(window)
        windows.append(scorer.score(window, asked)[0])
    return windows


def determinism(settings: Settings) -> list[FlowRepeatRow]:
    """The same events again, and with one thread."""
    simulation, events = _simulated(_rotation_at_1_mev_s(settings))
    config = replace(settings.config, estimate="flow")

    def fields() -> list[bytes]:
        stage = FlowStage(config, simulation.camera)
        return [_digest(estimate) for _, estimate in window_fields(events, stage)]

    threads = min(2, _most_threads())
    once = _with_threads(threads, fields)
    others = {
        "the same again": _with_threads(threads, fields),
        f"{threads} threads, and 1": _with_threads(1, fields),
    }
    return [
        FlowRepeatRow(_sensor(events), name, len(once), "yes" if once == other else "no")
        for name, other in others.items()
    ]


def _digest(estimate: FlowEstimate) -> bytes:
    found = hashlib.sha256(str((estimate.stamp_ns, estimate.status)).encode())
    for field in (estimate.flow, estimate.confidence, estimate.normal_flow):
        found.update(np.ascontiguousarray(field).tobytes())
    return found.digest()


def _most_threads() -> int:
    import numba

    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def _with_threads(count: int, run: Callable[[], list[bytes]]) -> list[bytes]:
    import numba
    import torch

    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(count)
    torch.set_num_threads(count)
    try:
        return run()
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])


@lru_cache(maxsize=8)
def _simulated(config: SimulationConfig) -> tuple[Simulation, Events]:
    """A simulation and its events, once the pixels have settled; kept for the parts that follow."""
    simulation = Simulation(config)
    events = Events.concatenate(list(simulation.events()))
    return simulation, events[int(np.searchsorted(events.t, SETTLE_NS)) :]


def _sensor(events: Events) -> str:
    return f"{events.width}x{events.height}"


def _duration_s(events: Events) -> float:
    return float(events.t[-1] - events.t[0]) / NS_PER_S


def _percentile_ms(times_s: Sequence[float] | npt.NDArray[np.float64], percent: float) -> float:
    return float(np.percentile(1e3 * np.asarray(times_s), percent))
