"""Benchmark of egomotion over streams: speed, overload, tracking, and known depth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from event_binning_grad.config import PipelineConfig
from event_binning_grad.estimation import EgomotionConfig, EgomotionEstimate, EgomotionEstimator
from event_binning_grad.evaluation.baselines import maximise_contrast
from event_binning_grad.evaluation.figures import mean
from event_binning_grad.evaluation.methods import WINDOW_EVENTS, constant_raw, one_window
from event_binning_grad.evaluation.metrics import (
    angular_velocity_error,
    estimates_error,
    estimates_linear_error,
    normalised_squared_errors,
    normalised_squared_linear_errors,
    track_loss,
    trusted,
)
from event_binning_grad.evaluation.parts import Settings
from event_binning_grad.evaluation.scenarios import (
    Stream,
    hand_held_stream,
    hand_stream,
    moving_stream,
)
from event_binning_grad.evaluation.tables import column
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.types import stamp_to_ns
from event_binning_grad.pipeline import Pipeline, PipelineCounters, warm_up

MAX_EVENTS = 10_000_000
DEPTH_PERIOD_NS = 10_000_000
_SENSORS = ((240, 180), (346, 260))
_TORCH_WINDOWS = 8  # plain torch takes a second for some


@dataclass(frozen=True)
class ThroughputRow:
    """From packets to estimates, or the estimator alone."""

    sensor: str = column("sensor")
    back_end: str = column("back end")
    windows: int = column("windows", "d")
    events_per_second: float = column("Mev/s", ".2f", scale=1e-6)
    window_ms_p50: float = column("ms p50", ".2f")
    window_ms_p99: float = column("ms p99", ".2f")
    iterations_mean: float = column("passes", ".1f")
    rms_deg_s: float | None = column("deg/s", ".2f")


@dataclass(frozen=True)
class OverloadRow:
    """More events than can be worked on: what is left out must not cost much."""

    stream: str = column("stream")
    windows: str = column("windows")
    stream_events_per_second: float = column("Mev/s", ".1f", scale=1e-6)
    real_time_factor: float = column("time / stream time", ".2f")
    used_share: float = column("events used", ".0%")
    estimates: int = column("estimates", "d")
    rms_deg_s: float | None = column("deg/s", ".2f")
    all_events_rms_deg_s: float | None = column("all events, deg/s", ".2f")
    rms_ratio: float | None = column("ratio", ".2f")


@dataclass(frozen=True)
class StreamRow:
    """Changing angular velocity, and what constant angular velocity makes of it."""

    stream: str = column("stream")
    duration_s: float = column("s", ".1f")
    stream_events_per_second: float = column("Mev/s", ".2f", scale=1e-6)
    estimates: int = column("estimates", "d")
    trusted_share: float = column("trusted", ".0%")
    rms_deg_s: float | None = column("deg/s", ".2f")
    nees_mean: float | None = column("NEES", ".2f")
    off_share: float = column("off", ".2%")
    longest_off_s: float = column("longest off, s", ".2f")
    longest_silence_s: float = column("silence, s", ".2f")
    constant_raw_rms_deg_s: float | None = column("constant, raw: deg/s", ".2f")
    constant_raw_off_share: float | None = column("off", ".2%")
    baseline_rms_deg_s: float | None = column("constant, L-BFGS: deg/s", ".2f")


@dataclass(frozen=True)
class DepthRow:
    """Rotation and translation in a scene of known depth."""

    stream: str = column("scene")
    stream_events_per_second: float = column("Mev/s", ".2f", scale=1e-6)
    estimates: int = column("estimates", "d")
    trusted_share: float = column("trusted", ".0%")
    rms_deg_s: float | None = column("deg/s", ".2f")
    linear_velocity_rms_m_s: float | None = column("m/s", ".3f")
    true_linear_velocity_rms_m_s: float | None = column("true |v|", ".2f")
    linear_velocity_rms_percent: float | None = column("% of it", ".1f")
    nees_mean: float | None = column("NEES", ".2f")
    linear_nees_mean: float | None = column("NEES of v", ".2f")
    raw_rms_deg_s: float | None = column("raw: deg/s", ".2f")
    raw_linear_velocity_rms_m_s: float | None = column("m/s", ".3f")


def throughput(settings: Settings) -> list[ThroughputRow]:
    """Simulated streams, from packets to estimates, in windows of 20,000 events one by one."""
    import torch

    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    rows = []
    for width, height in _SENSORS[:1] if settings.quick else _SENSORS:
        stream = hand_stream(width, height, 5.0, 0.5 if settings.quick else 2.0)
        single = one_window(settings.config, WINDOW_EVENTS)
        rows += [_pipeline_throughput(stream, replace(single, device=device)) for device in devices]
        if settings.quick:
            rows.append(_torch_throughput(stream, 1, WINDOW_EVENTS // 5))
        else:
            rows.append(_torch_throughput(stream, _TORCH_WINDOWS, WINDOW_EVENTS))
    return rows


def _pipeline_throughput(stream: Stream, config: PipelineConfig) -> ThroughputRow:
    run = run_pipeline(stream, config)
    name = "fused" if config.device == "cpu" else config.device
    return _throughput_row(stream, name, len(stream.events), run.pipeline_s, run.estimates)


def _torch_throughput(stream: Stream, windows: int, size: int) -> ThroughputRow:
    """The same estimator through plain torch operations and the operator, on some windows."""
    estimator = EgomotionEstimator(stream.camera, EgomotionConfig(fused=False))
    events = stream.events
    estimator.estimate(events[:2000])
    estimator.reset()
    count = min(windows, len(events) // size)
    began = time.perf_counter()
    estimates = [estimator.estimate(events[k * size : (k + 1) * size]) for k in range(count)]
    return _throughput_row(stream, "torch", count * size, time.perf_counter() - began, estimates)


def _throughput_row(
    stream: Stream, back_end: str, events: int, spent_s: float,
    estimates: Sequence[EgomotionEstimate],
) -> ThroughputRow:  # fmt: skip
    window_ms = [1e3 * e.solve_time_s for e in estimates]
    error = estimates_error(trusted(estimates), stream.truth)
    return ThroughputRow(
        f"{stream.camera.width}x{stream.camera.height}",
        back_end,
        len(estimates),
        events / spent_s,
        float(np.percentile(window_ms, 50)),
        float(np.percentile(window_ms, 99)),
        float(np.mean([e.iterations for e in estimates])),
        error and error.rms_deg_s,
    )


def overload(settings: Settings) -> list[OverloadRow]:
    """A 1280x720 stream of about 20 Mev/s, against windows of 10 ms of all its events."""
    if settings.quick:
        stream = hand_stream(346, 260, 4.0, 0.1, contrast_threshold=0.1)
    else:
        stream = hand_stream(1280, 720, 4.0, 0.5, contrast_threshold=0.2)
    everything = replace(
        settings.config, window_events=0, window_ms=10.0, window_px=0.0, adaptive_windows=False,
        output_rate_hz=0.0, max_events=MAX_EVENTS,
    )  # fmt: skip
    best = estimates_error(trusted(run_pipeline(stream, everything).estimates), stream.truth)
    rows = []
    for name, config in {
        "default": settings.config,
        "20 ms": replace(
            settings.config, window_events=0, window_ms=20.0, window_px=0.0, adaptive_windows=False
        ),
    }.items():
        run = run_pipeline(stream, config)
        error = estimates_error(trusted(run.estimates), stream.truth)
        rows.append(
            OverloadRow(
                stream.name,
                name,
                len(stream.events) / stream.duration_s,
                run.pipeline_s / stream.duration_s,
                run.counters.used_events / run.counters.events,
                len(run.estimates),
                error and error.rms_deg_s,
                best and best.rms_deg_s,
                error.rms_deg_s / best.rms_deg_s if error and best else None,
            )
        )
    return rows


def changing_rotation(settings: Settings) -> list[StreamRow]:
    """Hand-like rotation with peaks of 2, 5 and 8 rad/s, default settings."""
    if settings.quick:
        return [_stream_row(settings.config, hand_stream(240, 180, 5.0, 0.4), baseline_windows=1)]
    return [
        _stream_row(settings.config, hand_stream(width, height, peak, 4.0), baseline_windows=40)
        for width, height in _SENSORS
        for peak in (2.0, 5.0, 8.0)
    ]


def hand_held(settings: Settings) -> list[StreamRow]:
    """A measured hand-held track in a sparse scene, a minute long; nothing without a track."""
    if settings.poses is None:
        return []
    stream = hand_held_stream(settings.poses, 1.5 if settings.quick else 60.0)
    return [_stream_row(settings.config, stream)]


def _stream_row(config: PipelineConfig, stream: Stream, baseline_windows: int = 0) -> StreamRow:
    ours = run_pipeline(stream, config).estimates
    raw = run_pipeline(stream, constant_raw(config)).estimates
    span = (int(stream.events.t[0]), int(stream.events.t[-1]))
    loss = track_loss(trusted(ours), stream.truth, *span)
    raw_loss = track_loss(raw, stream.truth, *span)
    error, raw_error = (estimates_error(found, stream.truth) for found in (trusted(ours), raw))
    return StreamRow(
        stream.name,
        stream.duration_s,
        len(stream.events) / stream.duration_s,
        len(ours),
        trusted_share(ours),
        error and error.rms_deg_s,
        mean(normalised_squared_errors(trusted(ours), stream.truth)),
        loss.off_share,
        loss.longest_off_s,
        loss.longest_silence_s,
        raw_error and raw_error.rms_deg_s,
        raw_loss.off_share,
        _lbfgs_rms_deg_s(stream, baseline_windows),
    )


def _lbfgs_rms_deg_s(stream: Stream, windows: int) -> float | None:
    """Bilinear vote, raw gradient, L-BFGS from the truth of the window before: a perfect track."""
    count = len(stream.events) // WINDOW_EVENTS
    if not windows or count < 2:
        return None
    stamps, found = [], []
    for k in np.unique(np.linspace(1, count - 1, windows).astype(int)):
        window = stream.events[k * WINDOW_EVENTS : (k + 1) * WINDOW_EVENTS]
        stamps.append(window.mean_time_ns)
        before = stream.truth.at([stream.events.t[(k - 1) * WINDOW_EVENTS + WINDOW_EVENTS // 2]])
        start = np.nan_to_num(before[0])
        found.append(maximise_contrast(stream.camera, window, start).angular_velocity)
    error = angular_velocity_error(stamps, np.array(found), stream.truth)
    return error and error.rms_deg_s


def known_depth(settings: Settings) -> list[DepthRow]:
    """Rotation and translation, the true depth images given at 100 Hz."""
    if settings.quick:
        return [_depth_row(settings.config, moving_stream("layers", 240, 180, 2.0, 0.9, 0.2))]
    return [
        _depth_row(settings.config, moving_stream(scene, width, height, 2.0, 0.9, 2.0))
        for width, height in ((346, 260), (640, 480))
        for scene in ("plane", "layers")
    ]


def _depth_row(config: PipelineConfig, stream: Stream) -> DepthRow:
    config = replace(config, motion_model="full", depth="image")
    ours = run_pipeline(stream, config).estimates
    raw = run_pipeline(stream, replace(config, gradient="raw")).estimates
    both = (trusted(ours), raw)
    error, raw_error = (estimates_error(found, stream.truth) for found in both)
    linear, raw_linear = (estimates_linear_error(found, stream.truth) for found in both)
    return DepthRow(
        stream.name,
        len(stream.events) / stream.duration_s,
        len(ours),
        trusted_share(ours),
        error and error.rms_deg_s,
        linear and linear.rms_m_s,
        linear and linear.true_rms_m_s,
        linear and linear.percent,
        mean(normalised_squared_errors(trusted(ours), stream.truth)),
        mean(normalised_squared_linear_errors(trusted(ours), stream.truth)),
        raw_error and raw_error.rms_deg_s,
        raw_linear and raw_linear.rms_m_s,
    )


def trusted_share(estimates: Sequence[EgomotionEstimate]) -> float:
    return len(trusted(estimates)) / max(1, len(estimates))


@dataclass(frozen=True)
class PipelineRun:
    """What the pipeline made of a stream, and how long it worked."""

    estimates: list[EgomotionEstimate]
    pipeline_s: float
    counters: PipelineCounters


def run_pipeline(stream: Stream, config: PipelineConfig) -> PipelineRun:
    """The stream, as packets of 2 ms of encoded events, through the pipeline."""
    warm_up(config, stream.camera)
    pipeline = Pipeline(config, stream.camera)
    estimates: list[EgomotionEstimate] = []
    spent_s = 0.0
    depth_due_ns = 0
    for packet in packetize(stream.events, 2.0):
        if stream.depth is not None and stamp_to_ns(packet.header.stamp) >= depth_due_ns:
            pipeline.push_depth(depth_due_ns, stream.depth(depth_due_ns))
            depth_due_ns += DEPTH_PERIOD_NS
        began = time.perf_counter()
        estimates += pipeline.push(packet)
        spent_s += time.perf_counter() - began
    began = time.perf_counter()
    estimates += pipeline.flush()
    spent_s += time.perf_counter() - began
    return PipelineRun(estimates, spent_s, pipeline.counters)
