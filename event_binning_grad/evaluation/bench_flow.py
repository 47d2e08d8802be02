"""Benchmark of dense flow: speed under load, errors on simulated scenes, sharpness on real ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from event_binning_grad.config import PipelineConfig
from event_binning_grad.errors import EventBinningError
from event_binning_grad.estimation import EgomotionEstimator
from event_binning_grad.estimation.flow import FlowEstimator
from event_binning_grad.estimation.flow_estimate import FlowConfig, FlowEstimate
from event_binning_grad.evaluation.bench_egomotion import Settings, scale_error
from event_binning_grad.evaluation.evaluate_flow import FlowScorer, FlowWindow
from event_binning_grad.evaluation.flow_metrics import (
    FlowError,
    event_pixels,
    flow_warp_loss,
    known,
    pooled,
)
from event_binning_grad.evaluation.flow_runs import run_live, segments_of, window_fields
from event_binning_grad.evaluation.parts import Part, run_parts
from event_binning_grad.evaluation.scenarios import SETTLE_NS
from event_binning_grad.evaluation.tables import column
from event_binning_grad.evaluation.true_flow import RotationTruth, SimulatedTruth
from event_binning_grad.events.recordings import Recording, open_recording
from event_binning_grad.events.types import NS_PER_S, Events
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.motion_field import motion_field
from event_binning_grad.pipeline_flow import FlowStage, field_stride
from event_binning_grad.simulate import Simulation, SimulationConfig

if TYPE_CHECKING:
    from rich.console import Console

RECORDINGS = Path("../shared/data")
"""Where recordings are looked for if no folder is named: beside the checkout."""

BOXES = "ecd_boxes_rotation_window"
"""In that folder: 30,000 events of boxes_rotation with calib.txt, and ω in motion.txt."""

MULTICM_WINDOW_S = 80.0
"""What MultiCM (Shiba, Aoki, Gallego, Secrets of Event-Based Optical Flow, ECCV 2022) takes for
those 30,000 events, s: its published code and settings, 680 unknowns, by torch on two CPU cores,
on undistorted coordinates. It does not run here; the ratio to it holds for such a machine only."""

# Windows that are no part of what fields take: kernels are compiled, memory is found.
_WARM_UP = 3

# Windows whose true displacement is less, or more, are no part of the scenes' figures, px.
_DISPLACEMENT_PX = (5.0, 15.0)
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
class FlowRecordingRow:
    """How sharp the flow makes a real recording, and how sharp a rotation of the camera does."""

    recording: str = column("recording")
    sensor: str = column("sensor")
    pixels: str = column("pixels")
    events: int = column("events", ",d")
    windows: int = column("windows", "d")
    trusted_share: float = column("trusted", ".0%")
    window_ms_mean: float | None = column("ms", ".0f")
    field_ms_p50: float | None = column("ms a field", ".1f")
    density: float | None = column("density", ".0%")
    flow_warp_loss_mean: float | None = column("FWL", ".3f")
    flow_warp_loss_min: float | None = column("least", ".3f")
    rotation_flow_warp_loss_mean: float | None = column("rotation: FWL", ".3f")
    rotation_ratio: float | None = column("flow / rotation", ".3f")


@dataclass(frozen=True)
class FlowBoxesRow:
    """One window of 30,000 real events from rest, against the flow of the true rotation."""

    pixels: str = column("pixels")
    gradient: str = column("gradient")
    events: int = column("events", ",d")
    true_displacement_px: float | None = column("px moved", ".2f")
    epe_px: float | None = column("EPE px", ".2f")
    outliers_3px: float | None = column("> 3 px", ".1%")
    scale_error: float = column("scale error", "+.1%")
    density: float = column("density", ".0%")
    flow_warp_loss: float = column("FWL", ".3f")
    passes: int = column("passes", "d")
    window_ms_p50: float = column("ms p50", ".1f")
    times_faster: float = column("times as fast as MultiCM", ",.0f")


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
        _mean([1e3 * mine.span_s for mine, _ in both]),
        error and error.true_px,
        _mean([mine.density for mine, _ in both]),
        error and error.epe_px,
        error and error.outliers_1px,
        error and error.outliers_3px,
        moving and moving.epe_px,
        moving and moving.outliers_3px,
        _mean([mine.iterations for mine, _ in both]),
        raw_error and raw_error.epe_px,
        raw_error and raw_error.outliers_3px,
        raw_moving and raw_moving.epe_px,
        _mean([other.iterations for _, other in both]),
        raw_error.epe_px / error.epe_px if error and raw_error else None,
    )


def _in_range(error: FlowError | None) -> bool:
    least, most = _DISPLACEMENT_PX
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


def real(settings: Settings) -> list[FlowRecordingRow]:
    """Every recording of a folder, in the node's windows."""
    folder = recordings_folder(settings)
    if folder is None:
        return []
    found = list(_recordings(folder))
    if settings.quick:
        found = [min(found, key=lambda path: path[1].calibration() is None)] if found else []
    return [
        _recording_row(settings.config, str(path.relative_to(folder)), recording)
        for path, recording in found
    ]


def _recordings(folder: Path) -> Iterator[tuple[Path, Recording]]:
    """Those in a folder and the folders in it, by name; what is none is passed over."""
    for path in sorted(folder.iterdir()):
        try:
            yield path, open_recording(path)
        except EventBinningError:  # noqa: PERF203 - it is how a path is asked what it is
            if path.is_dir() and not (path / "events.txt").is_file():
                yield from _recordings(path)


def _recording_row(config: PipelineConfig, name: str, recording: Recording) -> FlowRecordingRow:
    try:
        segments = segments_of(recording)
        info = recording.calibration()
        camera = None if info is None else Camera.from_camera_info(info)
    except EventBinningError:
        return FlowRecordingRow(name, "cannot be decoded", "", 0, 0, 0.0, *[None] * 7)
    if not segments:
        return FlowRecordingRow(name, "no events", "", 0, 0, 0.0, *[None] * 7)
    size = (segments[0].width, segments[0].height)
    stage = FlowStage(replace(config, estimate="flow", flow_stride=1), camera or size)
    scorer = FlowScorer(size, camera)
    rotation = None if camera is None else EgomotionEstimator(camera, _rotation(config).egomotion())
    windows, turned = [], []
    for segment in segments:
        for events, estimate in window_fields(segment, stage):
            window, _ = scorer.score(events, estimate)
            windows.append(window)
            if camera is not None and rotation is not None:
                omega = rotation.estimate(events).angular_velocity
                flow = motion_field(camera, omega)
                offset_s = (events.t - estimate.stamp_ns) / NS_PER_S
                turned.append(flow_warp_loss(scorer.coords(events), offset_s, flow))
        stage.break_stream()
        if rotation is not None:
            rotation.reset()
    good = np.array([window.status == "ok" for window in windows], bool)
    losses = np.array([window.flow_warp_loss for window in windows])
    beside = np.array(turned or [np.nan] * len(windows))
    both = np.isfinite(losses) & np.isfinite(beside)
    own = _mean(losses[both])
    other = _mean(beside[both])
    trusted = [window for window in windows if window.status == "ok"]
    return FlowRecordingRow(
        name,
        f"{size[0]}x{size[1]}",
        "raw" if camera is None else "undistorted",
        sum(map(len, segments)),
        len(windows),
        float(good.mean()) if len(good) else 0.0,
        _mean([1e3 * window.span_s for window in trusted]),
        float(np.median([1e3 * window.solve_time_s for window in trusted])) if trusted else None,
        _mean([window.density for window in trusted]),
        _mean(losses),
        float(np.nanmin(losses)) if np.isfinite(losses).any() else None,
        other,
        own / other if own is not None and other is not None else None,
    )


def _rotation(config: PipelineConfig) -> PipelineConfig:
    """A constant angular velocity: a warp by one flow, as that beside which it stands."""
    return replace(
        config, motion_model="rotation", angular_acceleration=False, depth="none", imu="off"
    )


def boxes(settings: Settings) -> list[FlowBoxesRow]:
    """The window of boxes_rotation on which dense methods are compared, on both kinds of pixels."""
    folder = recordings_folder(settings)
    if folder is None or not (folder / BOXES).is_dir():
        return []
    recording = open_recording(folder / BOXES)
    info, truth = recording.calibration(), recording.ground_truth()
    if info is None or truth is None:
        return []
    camera = Camera.from_camera_info(info)
    events = Events.concatenate(segments_of(recording))
    rows = []
    for raw_pixels in (False, True):
        of_pixels = None if raw_pixels else camera
        size = (events.width, events.height)
        scorer = FlowScorer(size, of_pixels, RotationTruth(camera, truth, raw_pixels))
        for gradient in ("unbiased", "raw"):
            config = replace(settings.config, gradient=gradient, flow_max_events=len(events)).flow()
            repetitions = 2 if settings.quick else 15
            rows.append(_boxes_row(scorer, of_pixels, events, config, repetitions))
    return rows


def _boxes_row(
    scorer: FlowScorer, camera: Camera | None, events: Events, config: FlowConfig, repetitions: int
) -> FlowBoxesRow:
    estimator = FlowEstimator(scorer.size, config, camera)
    estimator.estimate(events)  # compiles
    took_s = []
    for _ in range(repetitions):
        estimator.reset()
        took_s.append(estimator.estimate(events).solve_time_s)
    estimator.reset()
    estimate = estimator.estimate(events)
    window, true = scorer.score(events, estimate)
    scale = np.nan
    if true is not None:
        where = event_pixels(scorer.coords(events), *scorer.size)
        where &= known(estimate.flow) & known(true.flow)
        scale = scale_error(estimate.flow[where].astype(float), true.flow[where].astype(float))
    error, median_s = window.error, float(np.median(took_s))
    return FlowBoxesRow(
        "raw" if camera is None else "undistorted",
        config.gradient,
        len(events),
        error and error.true_px,
        error and error.epe_px,
        error and error.outliers_3px,
        float(scale),
        window.density,
        window.flow_warp_loss,
        window.iterations,
        1e3 * median_s,
        MULTICM_WINDOW_S / median_s,
    )


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


def _mean(values: Sequence[float] | npt.NDArray[np.float64]) -> float | None:
    """Of those that are finite; None without any."""
    some = np.asarray(values, float)
    some = some[np.isfinite(some)]
    return float(some.mean()) if len(some) else None


def recordings_folder(settings: Settings) -> Path | None:
    """The folder of recordings that is named, or the usual one where it is."""
    if settings.data is not None:
        return settings.data
    return RECORDINGS if RECORDINGS.is_dir() else None


FLOW_PARTS = {
    "throughput": Part(
        throughput,
        "throughput, simulated rotation, packets of EVT 3.0 in time, the node's windows",
        "fields/s: those that came; lost: windows given up to catch up; possible: by what a "
        "field takes and what decoding leaves; ms: one field, by the clock; delay: from a window's "
        "last event until the field is there; CPU: of all cores, a field and what is decoded for "
        "it; used: share of all events, and of a window's; EPE: at full resolution, of all windows "
        "but the first",
    ),
    "cuda": Part(
        cuda,
        "CUDA beside the CPU, simulated rotation, one field after the other",
        "ms: one field, by the clock, from the events in the host's memory to the field there; "
        "fields/s: by their mean; EPE: at full resolution, of all windows but the first",
    ),
    "scenes": Part(
        scenes,
        "simulated scenes with depth, hand-held motion, the node's windows",
        "slow turn: half the turning, so that more of the flow is the depth's; known: share of the "
        f"pixels with events; compared: windows whose events move by {_DISPLACEMENT_PX[0]:g} to "
        f"{_DISPLACEMENT_PX[1]:g} px, by the true flow; EPE: over the pixels with events, px over "
        "the window; moving: the pixels of objects that move by themselves alone; raw: the same "
        "solver with the same windows and passes, by the bilinear vote's own slope",
    ),
    "real": Part(
        real,
        "real recordings, the node's windows",
        "FWL: flow warp loss, the variance of the image of warped events over that of the events "
        "as they came; rotation: the same of a constant angular velocity of the camera, estimated "
        "from the same events; flow / rotation: over the windows that have both",
    ),
    "boxes": Part(
        boxes,
        "boxes_rotation, one real window of 30,000 events from rest",
        "against the flow of motion.txt's rotation; scale error: slope of the flow on the true "
        f"one, minus 1; MultiCM: {MULTICM_WINDOW_S:g} s for this window",
    ),
    "determinism": Part(determinism, "run to run, simulated rotation, fields bit for bit"),
}


def bench_flow(
    console: Console, settings: Settings, parts: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """Measures, prints tables, and returns the rows of every part.

    Args:
        console: where to print.
        settings: what to measure.
        parts: names of FLOW_PARTS; none for all of them.
    """
    return run_parts(console, "flow", FLOW_PARTS, settings, parts, _why_left_out)


def _why_left_out(settings: Settings, name: str) -> str:
    if name == "cuda":
        return "no CUDA device"
    folder = recordings_folder(settings)
    if folder is None:
        return f"no --data DIR, and no {RECORDINGS}"
    return f"{folder} has no {BOXES if name == 'boxes' else 'recording'}"
