"""Benchmark of egomotion in single windows: accuracy, cold start, slow motion, covariance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from event_binning_grad.config import PipelineConfig
from event_binning_grad.evaluation.figures import mean
from event_binning_grad.evaluation.methods import ask, by_lbfgs, by_pipeline, constant_raw
from event_binning_grad.evaluation.metrics import normalised_squares, scale_error
from event_binning_grad.evaluation.parts import Settings
from event_binning_grad.evaluation.scenarios import (
    Packet,
    constant_rotation,
    distorted_camera,
    ideal_camera,
    packets,
    random_rotation,
    scene_for,
    with_noise,
)
from event_binning_grad.evaluation.tables import column


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
        mean(squares),
        float(np.median(squares)) if len(squares) else None,
        float(np.degrees(np.sqrt((error**2).mean()))) if len(error) else None,
        float(np.degrees(np.sqrt(variance.mean()))) if len(error) else None,
        mean(everything),
        float(np.median(everything)) if len(everything) else None,
    )
