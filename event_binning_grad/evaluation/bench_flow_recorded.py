"""Benchmark of dense flow on real recordings: sharpness, and errors on one well-known window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from event_binning_grad.config import PipelineConfig
from event_binning_grad.errors import EventBinningError
from event_binning_grad.estimation import EgomotionEstimator
from event_binning_grad.estimation.flow import FlowEstimator
from event_binning_grad.estimation.flow_estimate import FlowConfig
from event_binning_grad.evaluation.figures import mean
from event_binning_grad.evaluation.flow_metrics import event_pixels, flow_warp_loss, known
from event_binning_grad.evaluation.flow_runs import segments_of, window_fields
from event_binning_grad.evaluation.flow_score import FlowScorer
from event_binning_grad.evaluation.metrics import scale_error
from event_binning_grad.evaluation.parts import Settings
from event_binning_grad.evaluation.tables import column
from event_binning_grad.evaluation.true_flow import RotationTruth
from event_binning_grad.events.recordings import Recording, open_recording
from event_binning_grad.events.types import NS_PER_S, Events
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.motion_field import motion_field
from event_binning_grad.pipeline_flow import FlowStage

RECORDINGS = Path("../shared/data")
"""Where recordings are looked for if no folder is named: beside the checkout."""

BOXES = "ecd_boxes_rotation_window"
"""In that folder: 30,000 events of boxes_rotation with calib.txt, and ω in motion.txt."""

MULTICM_WINDOW_S = 80.0
"""What MultiCM (Shiba, Aoki, Gallego, Secrets of Event-Based Optical Flow, ECCV 2022) takes for
those 30,000 events, s: its published code and settings, 680 unknowns, by torch on two CPU cores,
on undistorted coordinates. It does not run here; the ratio to it holds for such a machine only."""


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


def recordings_folder(settings: Settings) -> Path | None:
    """The folder of recordings that is named, or the usual one where it is."""
    if settings.data is not None:
        return settings.data
    return RECORDINGS if RECORDINGS.is_dir() else None


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
                turned.append(flow_warp_loss(scorer.scene_coords(events), offset_s, flow))
        stage.break_stream()
        if rotation is not None:
            rotation.reset()
    good = np.array([window.status == "ok" for window in windows], bool)
    losses = np.array([window.flow_warp_loss for window in windows])
    beside = np.array(turned or [np.nan] * len(windows))
    both = np.isfinite(losses) & np.isfinite(beside)
    own = mean(losses[both])
    other = mean(beside[both])
    trusted = [window for window in windows if window.status == "ok"]
    return FlowRecordingRow(
        name,
        f"{size[0]}x{size[1]}",
        "raw" if camera is None else "undistorted",
        sum(map(len, segments)),
        len(windows),
        float(good.mean()) if len(good) else 0.0,
        mean([1e3 * window.span_s for window in trusted]),
        float(np.median([1e3 * window.solve_time_s for window in trusted])) if trusted else None,
        mean([window.density for window in trusted]),
        mean(losses),
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
