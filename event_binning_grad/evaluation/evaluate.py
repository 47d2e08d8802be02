"""Runs the pipeline over a recording and reports what came out."""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import PacketError, RecordingError
from event_binning_grad.estimation import EgomotionEstimate
from event_binning_grad.evaluation.metrics import AngularVelocityError, estimates_error
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.recordings import Recording, open_recording
from event_binning_grad.geometry import Camera
from event_binning_grad.pipeline import Pipeline, PipelineConfig, PipelineCounters, warm_up

EventImage = npt.NDArray[np.float32]

CSV_HEADER = [
    "stamp_s", "wx", "wy", "wz", "vx", "vy", "vz",
    *(f"c{row}{column}" for row in range(3) for column in range(3)),
    "events", "iterations", "status",
]  # fmt: skip


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
        error: against the truth; None without truth.
        truth: the recording's ground truth, or None.
        counters: what became of the stream.
        images: [height, width] event images of the fastest trusted window, as it came and
            motion-compensated; None unless asked for.
        unusable: what the reader could not use, by reason.
        rejections: messages of packets that were dropped, with how often each came.
    """

    recording: str
    config: PipelineConfig
    events: int
    duration_s: float
    pipeline_s: float
    estimates: list[EgomotionEstimate]
    error: AngularVelocityError | None
    truth: GroundTruth | None
    counters: PipelineCounters
    images: tuple[EventImage, EventImage] | None
    unusable: dict[str, int]
    rejections: Counter[str]

    def summary(self) -> dict[str, Any]:
        """The figures as plain numbers and strings, keys with units, ready for JSON."""
        window_ms = [1e3 * e.solve_time_s for e in self.estimates]
        iterations = [e.iterations for e in self.estimates if e.iterations]
        error = self.error
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
            "ground_truth": self.truth and self.truth.source,
            "events_per_second": self.events / self.pipeline_s,
            "window_ms_p50": _percentile(window_ms, 50),
            "window_ms_p99": _percentile(window_ms, 99),
            "iterations_mean": float(np.mean(iterations)) if iterations else None,
            "device": self.config.device,
            "gradient": self.config.gradient,
            "window_events": self.config.window_events,
            "window_ms": self.config.window_ms,
            "hot_pixel_events": self.counters.hot_pixel_events,
            "discarded_events": self.counters.discarded_events,
            "discontinuities": self.counters.discontinuities,
            "unusable": self.unusable,
            "rejected_packets": dict(self.rejections),
            "decoder": asdict(self.counters.decoder),
        }

    def write_json(self, path: Path) -> None:
        _parent(path).write_text(json.dumps(self.summary(), indent=2) + "\n")

    def write_csv(self, path: Path) -> None:
        """A row a window; rad/s in the camera frame, velocities empty where not estimated."""
        with _parent(path).open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(CSV_HEADER)
            for e in self.estimates:
                rows.writerow(
                    [
                        f"{e.stamp_ns // 10**9}.{e.stamp_ns % 10**9:09d}",
                        *(f"{w:.9g}" for w in e.angular_velocity),
                        *([""] * 3),
                        *(f"{c:.9g}" for c in e.covariance.ravel()),
                        e.events,
                        e.iterations,
                        e.status.value,
                    ]
                )


def evaluate(
    path: str | Path,
    config: PipelineConfig,
    camera: Camera | None = None,
    progress: Callable[[int], None] | None = None,
    images: bool = False,
) -> Evaluation:
    """Runs the pipeline over a recording.

    Args:
        path: any recording that `open_recording` knows.
        config: the pipeline's parameters.
        camera: the calibration; None takes the one that the recording holds.
        progress: called with the number of events since the last call.
        images: keep the event images of one window.

    Raises:
        RecordingError: the recording cannot be read, holds no events, or has no calibration.
        CalibrationError: the calibration is bad.
    """
    recording = open_recording(path)
    camera = camera or recorded_camera(recording)
    truth = recording.ground_truth()
    warm_up(config, camera)
    pipeline = Pipeline(config, camera)
    estimates: list[EgomotionEstimate] = []
    rejections: Counter[str] = Counter()
    counters, spent_s, reported = pipeline.counters, 0.0, 0
    gallery = _Gallery() if images else None
    for packet in recording.packets():
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
    if not counters.events:
        why = f": {next(iter(rejections))}" if rejections else ""
        raise RecordingError(f"{path}: no events could be read, expected an event stream{why}")
    return Evaluation(
        str(path),
        config,
        counters.events,
        counters.duration_ns * 1e-9,
        spent_s,
        estimates,
        estimates_error(estimates, truth),
        truth,
        counters,
        gallery.images if gallery else None,
        recording.unusable(),
        rejections,
    )


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


def _percentile(values: list[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
