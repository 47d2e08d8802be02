"""Benchmark of egomotion: speed and accuracy over simulated scenarios, beside simpler methods."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from event_binning_grad.config import PipelineConfig
from event_binning_grad.estimation import EgomotionConfig, EgomotionEstimate, EgomotionEstimator
from event_binning_grad.evaluation.baselines import maximise_contrast
from event_binning_grad.evaluation.methods import (
    WINDOW_EVENTS,
    Float64,
    ask,
    by_lbfgs,
    by_pipeline,
    constant_raw,
    one_window,
)
from event_binning_grad.evaluation.metrics import (
    angular_velocity_error,
    estimates_error,
    estimates_linear_error,
    normalised_squared_errors,
    normalised_squared_linear_errors,
    normalised_squares,
    track_loss,
    trusted,
)
from event_binning_grad.evaluation.parts import Part, run_parts
from event_binning_grad.evaluation.scenarios import (
    Packet,
    Stream,
    constant_rotation,
    distorted_camera,
    hand_held_stream,
    hand_stream,
    ideal_camera,
    moving_stream,
    packets,
    random_rotation,
    scene_for,
    with_noise,
)
from event_binning_grad.evaluation.tables import column
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.types import stamp_to_ns
from event_binning_grad.pipeline import Pipeline, PipelineCounters, warm_up

if TYPE_CHECKING:
    from rich.console import Console

MAX_EVENTS = 10_000_000
DEPTH_PERIOD_NS = 10_000_000
_SENSORS = ((240, 180), (346, 260))
_TORCH_WINDOWS = 8  # plain torch takes a second for some


@dataclass(frozen=True)
class Settings:
    """What the benchmark measures.

    Attributes:
        config: the pipeline's parameters.
        quick: measure less, in seconds, to see that everything works.
        poses: a measured hand-held track, groundtruth.txt of the event camera dataset; None:
            the part hand_held is left out.
        data: a folder of real recordings for the flow; None: the usual one, where there is one.
    """

    config: PipelineConfig = field(default_factory=PipelineConfig)
    quick: bool = False
    poses: Path | None = None
    data: Path | None = None


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
class PacketsRow:
    """Independent packets of constant angular velocity, and what other methods make of them."""

    rate_rad_s: float = column("rad/s", "g")
    events: int = column("events", ",d")
    start: str = column("start")
    packets: int = column("packets", "d")
    trusted_share: float = column("trusted", ".0%")
    rms_deg_s: float = column("deg/s", ".2f")
    iterations_mean: float = column("passes", ".1f")
    raw_rms_deg_s: float = column("raw, deg/s", ".2f")
    baseline_rms_deg_s: float = column("L-BFGS, deg/s", ".2f")
    baseline_evaluations_mean: float = column("evaluations", ".0f")
    baseline_window_ms_p50: float = column("L-BFGS ms", ".0f")


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
class ColdStartRow:
    """The first window of a stream, started at rest."""

    scene: str = column("scene")
    windows: int = column("windows", "d")
    within_5_deg_s: float = column("within 5 deg/s", ".0%")
    trusted_share: float = column("trusted", ".0%")
    trusted_within_5_deg_s: float | None = column("of these within", ".0%")
    median_deg_s: float = column("median, deg/s", ".2f")
    window_ms_p50: float = column("ms p50", ".1f")


@dataclass(frozen=True)
class SlowMotionRow:
    """Displacements of a pixel and less, where the pixels' own grid attracts."""

    camera: str = column("camera")
    rate_rad_s: float = column("rad/s", "g")
    windows: int = column("windows", "d")
    events_mean: float = column("events a window", ",.0f")
    scale_error: float = column("scale error", "+.1%")
    rms_deg_s: float = column("deg/s", ".2f")
    baseline_scale_error: float = column("L-BFGS: scale error", "+.1%")
    baseline_rms_deg_s: float = column("deg/s", ".2f")


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


@dataclass(frozen=True)
class NeesRow:
    """Whether the covariance says how far the estimate is off."""

    rate_rad_s: float = column("rad/s", "g")
    events: int = column("events", ",d")
    noise_share: float = column("noise", ".0%")
    packets: int = column("packets", "d")
    trusted_share: float = column("trusted", ".0%")
    nees_mean: float | None = column("NEES", ".2f")
    nees_median: float | None = column("median", ".2f")
    rms_deg_s: float | None = column("deg/s", ".2f")
    std_deg_s: float | None = column("said, deg/s", ".2f")
    all_nees_mean: float | None = column("all: NEES", ".2f")
    all_nees_median: float | None = column("median", ".2f")


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


def independent_packets(settings: Settings) -> list[PacketsRow]:
    """Packets of 5,000 to 30,000 events, 10, 20 and 30 % of them noise."""
    camera = distorted_camera(240, 180)
    rates, sizes, scenes = (1.0, 2.0, 4.0, 8.0), (5_000, 10_000, 20_000, 30_000), 4
    starts: tuple[tuple[str, float | None], ...] = (("30 % off", 0.3), ("rest", None))
    if settings.quick:
        rates, sizes, scenes, starts = (4.0,), (5_000,), 1, starts[:1]
    painted = [scene_for(camera, "texture", seed) for seed in range(scenes)]
    rows = []
    for rate in rates:
        for start, off in starts:
            cases = list(
                packets(camera, rate, sizes, (0.1, 0.2, 0.3), scenes=painted, start_off=off)
            )
            for size in sizes if off else sizes[-2:-1]:
                chosen = [packet for events, _, packet in cases if events == size]
                rows.append(_packets_row(settings.config, rate, size, start, chosen))
    return rows


def _packets_row(
    config: PipelineConfig, rate: float, size: int, start: str, chosen: Sequence[Packet]
) -> PacketsRow:
    ours = ask(by_pipeline(config), chosen)
    raw = ask(by_pipeline(constant_raw(config)), chosen)
    baseline = ask(by_lbfgs, chosen)
    return PacketsRow(
        rate,
        size,
        start,
        len(chosen),
        float(ours.trusted.mean()),
        ours.rms_deg_s,
        float(ours.evaluations.mean()),
        raw.rms_deg_s,
        baseline.rms_deg_s,
        float(baseline.evaluations.mean()),
        float(np.median(baseline.window_ms)),
    )


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
        _mean(normalised_squared_errors(trusted(ours), stream.truth)),
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


def cold_start(settings: Settings) -> list[ColdStartRow]:
    """The first 20 ms window from rest, |omega| uniform up to 10 rad/s, 5 % noise."""
    camera = distorted_camera(240, 180)
    rows = []
    for name in ("texture", "shapes"):
        chosen = []
        for seed in range(3 if settings.quick else 50):
            rng = np.random.default_rng([seed, 5])
            omega = random_rotation(rng, rng.uniform(0.0, 10.0))
            scene = scene_for(camera, name, seed)
            signal = constant_rotation(camera, omega, scene, duration_s=0.02, seed=seed)
            if len(signal):
                chosen.append(Packet(camera, with_noise(signal, 0.05, seed), omega))
        answers = ask(by_pipeline(settings.config), chosen)
        off = np.degrees(np.linalg.norm(answers.error, axis=1))
        close, trusted = np.nan_to_num(off, nan=np.inf) <= 5.0, answers.trusted
        rows.append(
            ColdStartRow(
                name,
                len(chosen),
                float(close.mean()),
                float(trusted.mean()),
                float(close[trusted].mean()) if trusted.any() else None,
                float(np.nanmedian(off)),
                float(np.median(answers.window_ms)),
            )
        )
    return rows


def slow_motion(settings: Settings) -> list[SlowMotionRow]:
    """Windows of 20 ms each from rest, at 346x260; a sensitive sensor, that there are events."""
    cameras = {"distorted": distorted_camera(346, 260), "ideal pinhole": ideal_camera(346, 260)}
    rates, turns, windows = (0.1, 0.2, 0.3, 0.5), 12, 5
    if settings.quick:
        rates, turns, windows = (0.3,), 1, 2
    rows = []
    for name, camera in cameras.items():
        scenes = [scene_for(camera, "texture", seed) for seed in range(min(turns, 3))]
        for rate in rates:
            chosen = []
            for turn in range(turns):
                omega = random_rotation(np.random.default_rng([turn, 6]), rate)
                signal = constant_rotation(
                    camera, omega, scenes[turn % len(scenes)],
                    duration_s=windows * 0.02, seed=turn, contrast_threshold=0.1,
                )  # fmt: skip
                stops = np.searchsorted(signal.t, 40_000_000 + 20_000_000 * np.arange(windows - 1))
                parts = np.split(np.arange(len(signal)), stops)
                chosen += [
                    Packet(camera, with_noise(signal[part[0] : part[-1] + 1], 0.1, turn), omega)
                    for part in parts
                    if len(part) > 1
                ]
            rows.append(_slow_row(settings.config, name, rate, chosen))
    return rows


def _slow_row(
    config: PipelineConfig, camera: str, rate: float, chosen: Sequence[Packet]
) -> SlowMotionRow:
    truth = np.array([packet.angular_velocity for packet in chosen])
    ours, baseline = ask(by_pipeline(config), chosen), ask(by_lbfgs, chosen)
    return SlowMotionRow(
        camera,
        rate,
        len(chosen),
        float(np.mean([len(packet.events) for packet in chosen])),
        scale_error(ours.error + truth, truth),
        ours.rms_deg_s,
        scale_error(baseline.error + truth, truth),
        baseline.rms_deg_s,
    )


def scale_error(estimates: Float64, truth: Float64) -> float:
    """Slope of the regression of estimates [M, 3] on the truth, through zero, minus 1."""
    known = np.isfinite(estimates).all(axis=1)
    estimates, truth = estimates[known], truth[known]
    return float((estimates * truth).sum() / (truth * truth).sum() - 1) if len(truth) else np.nan


def consistency(settings: Settings) -> list[NeesRow]:
    """Normalised squared errors over rates, sizes and noise; 3 is ideal."""
    camera = distorted_camera(346, 260)
    rates, sizes, shares, scenes = (
        (1.0, 2.0, 4.0, 8.0), (1_000, 10_000, 100_000), (0.0, 0.25, 0.5), 8
    )  # fmt: skip
    if settings.quick:
        rates, sizes, shares, scenes = (4.0,), (5_000,), (0.25,), 2
    painted = [scene_for(camera, "texture", seed) for seed in range(scenes)]
    rows = []
    for rate in rates:
        cases = list(
            packets(camera, rate, sizes, shares, scenes=painted, start_off=0.1, per_scene=3)
        )
        for size in sizes:
            for share in shares:
                chosen = [p for events, noise, p in cases if (events, noise) == (size, share)]
                rows.append(_nees_row(settings.config, rate, size, share, chosen))
    return rows


def _nees_row(
    config: PipelineConfig, rate: float, size: int, share: float, chosen: Sequence[Packet]
) -> NeesRow:
    answers = ask(by_pipeline(config), chosen)
    error, covariance = answers.error[answers.trusted], answers.covariance[answers.trusted]
    squares = normalised_squares(error, covariance)
    everything = normalised_squares(answers.error, answers.covariance)
    variance = np.trace(covariance, axis1=1, axis2=2) / 3
    return NeesRow(
        rate,
        size,
        share,
        len(chosen),
        float(answers.trusted.mean()),
        _mean(squares),
        float(np.median(squares)) if len(squares) else None,
        float(np.degrees(np.sqrt((error**2).mean()))) if len(error) else None,
        float(np.degrees(np.sqrt(variance.mean()))) if len(error) else None,
        _mean(everything),
        float(np.median(everything)) if len(everything) else None,
    )


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
        _mean(normalised_squared_errors(trusted(ours), stream.truth)),
        _mean(normalised_squared_linear_errors(trusted(ours), stream.truth)),
        raw_error and raw_error.rms_deg_s,
        raw_linear and raw_linear.rms_m_s,
    )


def trusted_share(estimates: Sequence[EgomotionEstimate]) -> float:
    return len(trusted(estimates)) / max(1, len(estimates))


def _mean(values: Float64) -> float | None:
    return float(values.mean()) if len(values) else None


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


PARTS = {
    "throughput": Part(
        throughput,
        "throughput, simulated, windows of 20,000 events one by one",
        "fused, cuda: the pipeline, from packets to estimates; torch: the estimator alone by plain "
        "torch on the CPU, some windows",
    ),
    "overload": Part(
        overload,
        "overload, simulated",
        "windows: by default settings, and of 20 ms whatever they hold; all events: in windows of "
        "10 ms, one after the other",
    ),
    "packets": Part(
        independent_packets,
        "independent packets, simulated 240x180, 10 to 30 % noise, constant angular velocity",
        "raw: the same solver with the raw gradient and constant angular velocity; L-BFGS: on the "
        "variance of the bilinear vote by its raw gradient, constant angular velocity, from the "
        "same start",
    ),
    "changing": Part(
        changing_rotation,
        "changing rotation, simulated, default settings",
        "off: share of time by more than 30 deg/s; silence: longest time without a trusted "
        "estimate; constant: angular velocity over windows of 20,000 events, by the raw gradient "
        "in the pipeline (all estimates, trusted or not), and by L-BFGS on some of these windows, "
        "each from the truth of the window before",
    ),
    "hand_held": Part(
        hand_held,
        "measured hand-held rotation, simulated sparse shapes at 240x180, default settings",
    ),
    "cold_start": Part(
        cold_start,
        "cold start: the first 20 ms from rest, |omega| up to 10 rad/s, simulated 240x180",
    ),
    "slow": Part(
        slow_motion,
        "slow motion, simulated 346x260, windows of 20 ms from rest, 10 % noise",
        "scale error: slope of the estimates on the truth, minus 1",
    ),
    "consistency": Part(
        consistency,
        "consistency of the covariance, simulated 346x260",
        "NEES: mean of the trusted estimates' errors squared, normalised by their covariance; 3 is "
        "ideal, and the median then 2.4; all: of all estimates, trusted or not",
    ),
    "depth": Part(
        known_depth,
        "rotation and translation with known depth, simulated, default windows",
        "m/s: root mean square over estimates and axes, and as a share of that of the true |v|; "
        "NEES: 3 is ideal; raw: all estimates, trusted or not, with the raw gradient",
    ),
}


def bench_egomotion(
    console: Console, settings: Settings, parts: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """Measures, prints tables, and returns the rows of every part.

    Args:
        console: where to print.
        settings: what to measure.
        parts: names of PARTS; none for all of them.
    """
    return run_parts(console, "egomotion", PARTS, settings, parts, lambda *_: "no --poses FILE")
