"""Benchmarks: what operator and pipeline take on this machine, and ratios within one run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from event_binning_grad.errors import ConfigError
from event_binning_grad.estimation import EgomotionEstimate, RotationEstimator
from event_binning_grad.evaluation.bench_operator import QUICK, Plan
from event_binning_grad.evaluation.bench_operator_report import bench_operator
from event_binning_grad.evaluation.machine import machine
from event_binning_grad.evaluation.metrics import estimates_error
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.types import EventPacket, Events
from event_binning_grad.geometry import Camera
from event_binning_grad.pipeline import Pipeline, PipelineConfig, warm_up
from event_binning_grad.simulate import SimulationConfig, sample_ground_truth, simulate_rotation

if TYPE_CHECKING:
    from rich.console import Console

WINDOW_EVENTS = 20_000
_DURATION_S = 2.0
_TORCH_WINDOWS = 8  # plain torch takes a second for some
_SENSORS = ((240, 180), (346, 260))


@dataclass(frozen=True)
class EgomotionFigures:
    """One row: how one back end did on one sensor's packets of WINDOW_EVENTS events."""

    sensor: str
    back_end: str
    windows: int
    events_per_second: float
    window_ms_p50: float
    window_ms_p99: float
    iterations_mean: float
    rms_deg_s: float | None


def run_bench(path: Path | None, sections: Sequence[str] = (), quick: bool = False) -> None:
    """Measures, prints tables, and writes JSON to `path` if given.

    Args:
        path: where the JSON goes.
        sections: names of SECTIONS; none for all of them.
        quick: measure less, to see that everything works.

    Raises:
        ConfigError: no such section.
    """
    from rich.console import Console

    for name in sections:
        if name not in SECTIONS:
            raise ConfigError(f"section {name!r}: expected one of {', '.join(SECTIONS)}, or none")
    console = Console()
    here = machine()
    figures: dict[str, Any] = {"machine": here}
    for name, section in SECTIONS.items():
        if not sections or name in sections:
            figures[name] = section(console, quick)
    console.print(", ".join(f"{name} {value}" for name, value in here.items() if value))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")


def _operator(console: Console, quick: bool) -> dict[str, Any]:
    return bench_operator(console, QUICK if quick else Plan())


def _egomotion(console: Console, quick: bool) -> list[dict[str, Any]]:
    from rich.table import Table

    rows: list[EgomotionFigures] = []
    for width, height in _SENSORS[:1] if quick else _SENSORS:
        console.print(f"egomotion, {width}x{height} ...")
        rows += bench_egomotion(width, height, 1 if quick else _TORCH_WINDOWS)
    table = Table(title=f"egomotion, windows of {WINDOW_EVENTS:,} events, simulated")
    for name in ("sensor", "back end", "windows", "Mev/s", "ms p50", "ms p99", "passes", "deg/s"):
        table.add_column(name, justify="left" if name in ("sensor", "back end") else "right")
    for row in rows:
        table.add_row(
            row.sensor,
            row.back_end,
            str(row.windows),
            f"{row.events_per_second / 1e6:.2f}",
            f"{row.window_ms_p50:.2f}",
            f"{row.window_ms_p99:.2f}",
            f"{row.iterations_mean:.1f}",
            "-" if row.rms_deg_s is None else f"{row.rms_deg_s:.2f}",
        )
    console.print(table)
    console.print("fused: the pipeline, from packets to estimates; torch: the estimator alone")
    for sensor in dict.fromkeys(row.sensor for row in rows):
        rate = {row.back_end: row.events_per_second for row in rows if row.sensor == sensor}
        ratio = rate["fused"] / rate["torch"]
        console.print(f"{sensor}: the fused pass is {ratio:.0f} times as fast as plain torch")
    return [asdict(row) for row in rows]


SECTIONS: dict[str, Callable[[Console, bool], Any]] = {
    "operator": _operator,
    "egomotion": _egomotion,
}


def bench_egomotion(
    width: int, height: int, torch_windows: int = _TORCH_WINDOWS
) -> list[EgomotionFigures]:
    """Decoding to estimate by the fused pass; the estimator alone by plain torch."""
    simulation = SimulationConfig(duration_s=_DURATION_S, width=width, height=height)
    camera = simulation.camera()
    chunks = simulate_rotation(
        camera,
        simulation.motion(),
        _DURATION_S,
        scene=simulation.scene,
        seed=simulation.seed,
        **simulation.sensor(),
    )
    events = Events.concatenate(list(chunks))
    truth = sample_ground_truth(simulation.motion(), _DURATION_S)
    packets = list(packetize(events, simulation.packet_ms))
    sensor = f"{width}x{height}"
    return [
        _fused(sensor, packets, camera, truth),
        _plain_torch(sensor, events, camera, truth, torch_windows),
    ]


def _fused(
    sensor: str,
    packets: Sequence[EventPacket],
    camera: Camera,
    truth: GroundTruth,
) -> EgomotionFigures:
    """The pipeline, from the packets' bytes to the estimates."""
    config = PipelineConfig(window_events=WINDOW_EVENTS, window_ms=0.0)
    warm_up(config, camera)
    pipeline = Pipeline(config, camera)
    estimates: list[EgomotionEstimate] = []
    began = time.perf_counter()
    for packet in packets:
        estimates += pipeline.push(packet)
    spent_s = time.perf_counter() - began
    return _figures(sensor, "fused", pipeline.counters.events, spent_s, estimates, truth)


def _plain_torch(
    sensor: str, events: Events, camera: Camera, truth: GroundTruth, windows: int
) -> EgomotionFigures:
    """The same estimator through plain torch operations and the operator, on some windows."""
    estimator = RotationEstimator(camera, fused=False)
    estimator.estimate(events[:WINDOW_EVENTS])
    estimator.reset()
    count = min(windows, len(events) // WINDOW_EVENTS)
    began = time.perf_counter()
    estimates = [
        estimator.estimate(events[k * WINDOW_EVENTS : (k + 1) * WINDOW_EVENTS])
        for k in range(count)
    ]
    spent_s = time.perf_counter() - began
    return _figures(sensor, "torch", count * WINDOW_EVENTS, spent_s, estimates, truth)


def _figures(
    sensor: str,
    name: str,
    events: int,
    spent_s: float,
    estimates: Sequence[EgomotionEstimate],
    truth: GroundTruth,
) -> EgomotionFigures:
    window_ms = [1e3 * e.solve_time_s for e in estimates]
    error = estimates_error(estimates, truth)
    return EgomotionFigures(
        sensor,
        name,
        len(estimates),
        events / spent_s,
        float(np.percentile(window_ms, 50)),
        float(np.percentile(window_ms, 99)),
        float(np.mean([e.iterations for e in estimates])),
        error and error.rms_deg_s,
    )
