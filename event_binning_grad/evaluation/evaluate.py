"""Runs the pipeline over a recording and reports what came out."""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from event_binning_grad.config import PipelineConfig
from event_binning_grad.errors import PacketError, RecordingError
from event_binning_grad.estimation import EgomotionEstimate
from event_binning_grad.evaluation.figures import mean, percentile
from event_binning_grad.evaluation.metrics import (
    AngularVelocityError,
    Float64,
    LinearVelocityError,
    estimates_error,
    estimates_linear_error,
    model_hint,
    normalised_squared_errors,
    normalised_squared_linear_errors,
    trusted,
)
from event_binning_grad.evaluation.sensor_feed import SensorFeed, open_feed, packets_of, parts
from event_binning_grad.evaluation.stream_figures import stream_figures
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.recordings import Recording, open_recording
from event_binning_grad.events.repacking import Stretch
from event_binning_grad.events.types import NS_PER_S, EventPacket, Events
from event_binning_grad.geometry import Camera
from event_binning_grad.pipeline import Pipeline, PipelineCounters, warm_up

EventImage = npt.NDArray[np.float32]

CSV_HEADER = [
    "stamp_s", "wx", "wy", "wz", "vx", "vy", "vz",
    *(f"c{row}{column}" for row in range(3) for column in range(3)),
    "events", "iterations", "status",
    *(f"cv{row}{column}" for row in range(3) for column in range(3)),
    "used_events",
]  # fmt: skip

# What the configuration says of an evaluation, by its own names.
_SETTINGS = (
    "motion_model", "angular_acceleration", "window_events", "window_ms", "window_px",
    "adaptive_windows", "output_rate_hz", "max_events", "objective", "binning", "reconstruction",
    "gradient", "depth", "imu", "device",
)  # fmt: skip
# What the pipeline's counters say of windows, by their own names.
_COUNTERS = (
    "window_events", "used_events", "hot_pixel_events", "depthless_events", "skipped_events",
    "skipped_windows", "discarded_events", "uncalibrated_events", "unaided_windows", "searches",
)  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """What the pipeline made of a recording.

    Attributes:
        recording: its path.
        config: the pipeline's parameters.
        events: events decoded.
        duration_s: what the events span.
        pipeline_s: time spent in the pipeline, reading of the file apart.
        estimates: one a window.
        error: of the trusted angular velocities against the truth; None without truth, or where
            they are not estimated.
        linear_error: of the linear velocity; None without truth or without estimates of it.
        squares, linear_squares: normalised squared errors of both, see
            `normalised_squared_errors`; empty without truth.
        truth: the recording's ground truth, or None.
        start_ns: the recording's start, on the clock of the stamps.
        hint: why the motion model does not fit this recording, in one line; empty if nothing says
            so.
        counters: what became of the stream.
        images: [height, width] event images of the fastest trusted window, as it came and
            motion-compensated; None unless asked for.
        unusable: what the reader could not use, by reason.
        warnings: what is wrong with the recording as such, a line each.
        rejections: messages of packets that were dropped, with how often each came.
    """

    recording: str
    config: PipelineConfig
    events: int
    duration_s: float
    pipeline_s: float
    estimates: list[EgomotionEstimate]
    error: AngularVelocityError | None
    linear_error: LinearVelocityError | None
    squares: Float64
    linear_squares: Float64
    truth: GroundTruth | None
    start_ns: int
    hint: str
    counters: PipelineCounters
    images: tuple[EventImage, EventImage] | None
    unusable: dict[str, int]
    warnings: list[str]
    rejections: Counter[str]

    def summary(self) -> dict[str, Any]:
        """The figures as plain numbers and strings, keys with units, ready for JSON."""
        window_ms = [1e3 * e.solve_time_s for e in self.estimates]
        iterations = [e.iterations for e in self.estimates if e.iterations]
        error, linear = self.error, self.linear_error
        return {
            "recording": self.recording,
            "events": self.events,
            "windows": len(self.estimates),
            "windows_by_status": {s.value: n for s, n in self.counters.estimates.items()},
            "duration_s": self.duration_s,
            "angular_velocity_rms_deg_s": error and error.rms_deg_s,
            "angular_velocity_rms_per_axis_deg_s": error and list(error.rms_per_axis_deg_s),
            "angular_velocity_median_deg_s": error and error.median_deg_s,
            "windows_compared": error.compared if error else 0,
            "linear_velocity_rms_m_s": linear and linear.rms_m_s,
            "linear_velocity_rms_per_axis_m_s": linear and list(linear.rms_per_axis_m_s),
            "linear_velocity_rms_percent": linear and linear.percent,
            "true_linear_velocity_rms_m_s": linear and linear.true_rms_m_s,
            "linear_velocities_compared": linear.compared if linear else 0,
            "nees_mean": mean(self.squares),
            "linear_nees_mean": mean(self.linear_squares),
            "ground_truth": self.truth and self.truth.source,
            "recording_start_s": self.start_ns / NS_PER_S,
            "hint": self.hint,
            "events_per_second": self.events / self.pipeline_s,
            "window_ms_p50": percentile(window_ms, 50),
            "window_ms_p99": percentile(window_ms, 99),
            "iterations_mean": mean(iterations),
            **{name: getattr(self.config, name) for name in _SETTINGS},
            "used_events_share": self.counters.used_events / max(1, self.events),
            **{name: getattr(self.counters, name) for name in _COUNTERS},
            "unusable": self.unusable,
            "warnings": self.warnings,
            "rejected_packets": dict(self.rejections),
            **stream_figures(self.counters),
        }

    def write_json(self, path: Path) -> None:
        path.write_text(json.dumps(self.summary(), indent=2) + "\n")

    def write_csv(self, path: Path) -> None:
        """A row a window; rad/s in the camera frame, velocities empty where not estimated."""
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(CSV_HEADER)
            for e in self.estimates:
                rows.writerow(
                    [
                        f"{e.stamp_ns // 10**9}.{e.stamp_ns % 10**9:09d}",
                        *(f"{w:.9g}" for w in e.angular_velocity),
                        *map(_cell, e.linear_velocity),
                        *(f"{c:.9g}" for c in e.covariance.ravel()),
                        e.events,
                        e.iterations,
                        e.status.value,
                        *map(_cell, e.linear_covariance.ravel()),
                        e.used_events,
                    ]
                )


def evaluate(
    path: str | Path,
    config: PipelineConfig,
    camera: Camera | None = None,
    progress: Callable[[int], None] | None = None,
    images: bool = False,
    depth_topic: str | None = None,
    topic: str | None = None,
    stretch: Stretch | None = None,
) -> Evaluation:
    """Runs the pipeline over a recording.

    Args:
        path: any recording that `open_recording` knows.
        config: the pipeline's parameters.
        camera: the calibration; None takes the one that the recording holds.
        progress: called with the number of events since the last call.
        images: keep the event images of one window.
        depth_topic, topic: of depth images, and of the events, where a bag holds several.
        stretch: the part of the recording that is looked at; None: all of it.

    A plane (config.depth "plane"), given at the recording's start, is moved by the recording's
    poses, or by its true velocities; only where there is neither by the estimates themselves.

    Raises:
        RecordingError: the recording cannot be read, holds no events, or lacks a calibration or a
            sensor that the configuration needs.
        CalibrationError: the calibration is bad.
    """
    recording = open_recording(path, topic)
    camera = camera or recorded_camera(recording)
    truth = recording.ground_truth()
    first_ns = _first_ns(recording)
    feeding = open_feed(recording, config, camera, first_ns, truth, depth_topic)
    warm_up(feeding.config, camera)
    pipeline = Pipeline(feeding.config, camera)
    estimates: list[EgomotionEstimate] = []
    rejections: Counter[str] = Counter()
    counters, spent_s, reported = pipeline.counters, 0.0, 0
    gallery = _Gallery() if images else None
    packets = packets_of(recording, stretch or Stretch(), rejections)
    for packet in _with_readings(packets, pipeline, feeding.feed):
        began = time.perf_counter()
        try:
            new = pipeline.push(packet)
        except PacketError as error:
            rejections[str(error)] += 1
            continue
        finally:
            spent_s += time.perf_counter() - began
        estimates += new
        if gallery is not None:
            gallery.look(pipeline, new)
        if progress is not None:
            progress(counters.events - reported)
            reported = counters.events
    began = time.perf_counter()
    estimates += pipeline.flush()
    spent_s += time.perf_counter() - began
    why = f": {next(iter(rejections))}" if rejections else ""
    if not counters.events:
        raise RecordingError(f"{path}: no events could be read, expected an event stream{why}")
    if not estimates and rejections:
        raise RecordingError(f"{path}: no packet could be used{why}")
    good = trusted(estimates)
    # Of the translation model the rotation is what it was told.
    rotates = feeding.config.egomotion().model.rotates
    return Evaluation(
        str(path),
        config,
        counters.events,
        counters.duration_ns * 1e-9,
        spent_s,
        estimates,
        estimates_error(good, truth) if rotates else None,
        estimates_linear_error(good, truth),
        normalised_squared_errors(good, truth) if rotates else np.empty(0),
        normalised_squared_linear_errors(good, truth),
        truth,
        first_ns,
        model_hint(config.motion_model, truth, [e.stamp_ns for e in estimates]),
        counters,
        gallery.images if gallery else None,
        recording.unusable(),
        recording.warnings(),
        rejections,
    )


def _first_ns(recording: Recording) -> int:
    """Time of the first packet; 0 without any."""
    packet = next(iter(recording.packets()), None)
    return next((at_ns for at_ns, _ in parts(packet)), 0) if packet is not None else 0


def _with_readings(
    packets: Iterator[EventPacket | Events], pipeline: Pipeline, feed: SensorFeed | None
) -> Iterator[EventPacket | Events]:
    """The packets, and before each what other sensors said by then goes to the pipeline."""
    if feed is None:
        yield from packets
        return
    for packet in packets:
        for at_ns, part in parts(packet):
            feed.push_until(pipeline, at_ns)
            yield part


class _Gallery:
    """Keeps the event images of the fastest trusted window."""

    def __init__(self) -> None:
        self.images: tuple[EventImage, EventImage] | None = None
        self._speed = 0.0

    def look(self, pipeline: Pipeline, new: list[EgomotionEstimate]) -> None:
        if not new or not new[-1].status.ok:  # the pipeline holds the last window only
            return
        speed = float(np.linalg.norm(new[-1].angular_velocity))
        if speed <= self._speed and self.images is not None:
            return
        raw, compensated = pipeline.uncompensated_image(), pipeline.compensated_image()
        if raw is not None and compensated is not None:
            self.images, self._speed = (raw, compensated), speed


def recorded_camera(recording: Recording) -> Camera:
    """The camera that a recording brings.

    Raises:
        RecordingError: it brings none.
    """
    info = recording.calibration()
    if info is None:
        raise RecordingError(
            f"{recording.path}: no calibration in the recording; expected a camera_info topic or "
            "calib.txt: give one with --calib FILE"
        )
    return Camera.from_camera_info(info)


def _cell(value: float) -> str:
    return f"{value:.9g}" if np.isfinite(value) else ""
