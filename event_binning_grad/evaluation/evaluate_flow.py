"""Runs the pipeline's dense flow over a recording and reports what came out."""

from __future__ import annotations

import csv
import json
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from event_binning_grad import pipeline_flow
from event_binning_grad.config import PipelineConfig
from event_binning_grad.errors import PacketError, RecordingError
from event_binning_grad.estimation import Depth, EgomotionEstimate
from event_binning_grad.estimation.flow_estimate import FlowEstimate
from event_binning_grad.evaluation.flow_displacement import DisplacementScorer
from event_binning_grad.evaluation.flow_file import FlowFile
from event_binning_grad.evaluation.flow_metrics import (
    FlowError,
    density,
    event_pixels,
    flow_error,
    flow_warp_loss,
    known,
    pooled,
    vote,
    warped,
)
from event_binning_grad.evaluation.sensor_feed import parts
from event_binning_grad.evaluation.true_flow import TrueField, TrueFlow, open_true_flow
from event_binning_grad.events import decoder
from event_binning_grad.events.flow_truth import FlowTruths
from event_binning_grad.events.recordings import Recording, open_recording
from event_binning_grad.events.types import NS_PER_S, Events
from event_binning_grad.geometry import Camera
from event_binning_grad.pipeline import Pipeline
from event_binning_grad.pipeline_flow import FlowCounters, FlowStage

Float32 = npt.NDArray[np.float32]

# What the configuration says of flow, by its own names.
_SETTINGS = (
    "flow_rate_hz", "flow_window_ms", "flow_window_px", "flow_min_events", "flow_max_events",
    "gradient", "device",
)  # fmt: skip


@dataclass(frozen=True)
class FlowWindow:
    """The figures of one field.

    Attributes:
        stamp_ns, window_start_ns, window_end_ns: on the recording's clock.
        events, used_events: of the window, and those of them that were looked at.
        status: why the field is not to be trusted, or "ok"; without trust there are no figures.
        density: share of the pixels with events whose flow is known.
        normal_share: share of the pixels with known flow where it is only the part across the
            edges.
        flow_warp_loss: sharpness of the compensated events over that of the events as they came,
            see `flow_warp_loss`.
        true_flow_warp_loss: the same of the true flow; NaN without truth.
        error: against the truth over the pixels with events; None without truth.
        moving_error: the same over those of them where something moves by itself.
        full_error: the same over those of them where the whole flow is known, not the normal part.
        speed_px_s: that 95 % of the events do not exceed.
        iterations, full_passes, solve_time_s: what it took.
    """

    stamp_ns: int
    window_start_ns: int
    window_end_ns: int
    events: int
    used_events: int
    status: str
    density: float = math.nan
    normal_share: float = math.nan
    flow_warp_loss: float = math.nan
    true_flow_warp_loss: float = math.nan
    error: FlowError | None = None
    moving_error: FlowError | None = None
    full_error: FlowError | None = None
    speed_px_s: float = math.nan
    iterations: int = 0
    full_passes: float = 0.0
    solve_time_s: float = math.nan

    @property
    def span_s(self) -> float:
        """What the window spans, s."""
        return (self.window_end_ns - self.window_start_ns) / NS_PER_S


@dataclass(frozen=True, eq=False)
class FlowPictures:
    """One window: images [H, W] of its events as they came and compensated, its flow [H, W, 2] in
    px/s and the true one, if known."""

    raw: Float32
    compensated: Float32
    flow: Float32
    truth: Float32 | None
    window: FlowWindow


@dataclass(frozen=True)
class FlowEvaluation:
    """What the pipeline's flow made of a recording.

    Attributes:
        recording: its path.
        config: the pipeline's parameters.
        undistorted: whether the flow is on undistorted pixels, or on the sensor's own.
        events: events decoded.
        duration_s: what the events span.
        pipeline_s: time spent in the pipeline, reading and scoring apart.
        windows: one a field.
        displacements: errors of the true displacements of a data set, over their own times; else
            empty, and the errors are the windows'.
        displacements_missed: true displacements without fields around them to compare.
        truth: what the flow is compared with, or None.
        counters: what became of the events.
        pictures: of the trusted window whose flow varies most over the image, if asked for.
        rejections: messages of packets that were dropped, with how often each came.
    """

    recording: str
    config: PipelineConfig
    undistorted: bool
    events: int
    duration_s: float
    pipeline_s: float
    windows: list[FlowWindow]
    displacements: list[FlowError]
    displacements_missed: int
    truth: str | None
    counters: FlowCounters
    pictures: FlowPictures | None
    rejections: Counter[str]

    @property
    def error(self) -> FlowError | None:
        """Over all trusted fields, or all true displacements; None without truth."""
        fields_errors = (w.error for w in self.windows if w.status == "ok")
        return pooled(self.displacements or fields_errors)

    def summary(self) -> dict[str, Any]:
        """The figures as plain numbers and strings, keys with units, ready for JSON."""
        good = [window for window in self.windows if window.status == "ok"]
        solve_ms = [1e3 * window.solve_time_s for window in good]
        warp_loss = _finite(window.flow_warp_loss for window in good)
        return {
            "recording": self.recording,
            "events": self.events,
            "duration_s": self.duration_s,
            "fields": len(good),
            "windows_by_status": dict(Counter(window.status for window in self.windows)),
            "undistorted_pixels": self.undistorted,
            "flow_truth": self.truth,
            "true_displacements_compared": len(self.displacements),
            "true_displacements_missed": self.displacements_missed,
            **_error_figures("", self.error),
            **_error_figures("moving_", pooled(window.moving_error for window in good)),
            **_error_figures("full_", pooled(window.full_error for window in good)),
            "density": _mean(window.density for window in good),
            "normal_flow_share": _mean(window.normal_share for window in good),
            "flow_warp_loss_mean": _mean(warp_loss),
            "flow_warp_loss_min": min(warp_loss, default=None),
            "true_flow_warp_loss_mean": _mean(window.true_flow_warp_loss for window in good),
            "window_ms_p50": _percentile([1e3 * window.span_s for window in good], 50),
            "speed_px_s_mean": _mean(window.speed_px_s for window in good),
            "events_per_second": self.events / self.pipeline_s,
            "fields_per_second": len(good) / self.pipeline_s,
            "field_ms_p50": _percentile(solve_ms, 50),
            "field_ms_p99": _percentile(solve_ms, 99),
            "full_passes_mean": _mean(window.full_passes for window in good),
            **{name: getattr(self.config, name) for name in _SETTINGS},
            "used_events_share": self.counters.used_events / max(1, self.events),
            "skipped_events": self.counters.skipped_events,
            "discarded_events": self.counters.discarded_events,
            "rejected_packets": dict(self.rejections),
        }

    def write_json(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.summary(), indent=2) + "\n")

    def write_csv(self, path: Path) -> None:
        """A row a window; cells of what is not known are empty."""
        path.parent.mkdir(parents=True, exist_ok=True)
        own = [f.name for f in fields(FlowWindow) if f.name not in _OF_ERRORS]
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            errors = [f"{prefix}{f.name}" for prefix in ("", "moving_") for f in fields(FlowError)]
            rows.writerow([*(name.replace("_ns", "_s") for name in own), *errors])
            for window in self.windows:
                cells = [_cell(name, getattr(window, name)) for name in own]
                for error in (window.error, window.moving_error):
                    cells += [
                        "" if error is None else _cell(f.name, getattr(error, f.name))
                        for f in fields(FlowError)
                    ]
                rows.writerow(cells)


_OF_ERRORS = ("error", "moving_error", "full_error")


class FlowScorer:
    """Scores fields of one sensor.

    Args:
        size: width and height of the sensor in pixels.
        camera: its calibration, if the fields are on its undistorted pixels; None: on raw ones.
        truth: what they are compared with.
    """

    def __init__(
        self, size: tuple[int, int], camera: Camera | None = None, truth: TrueFlow | None = None
    ) -> None:
        self.size, self._truth = size, truth
        columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
        self._table = np.stack([columns, rows], axis=-1).astype(np.float32)
        if camera is not None:
            self._table = camera.undistorted_pixels.astype(np.float32)

    def coords(self, events: Events) -> Float32:
        """[N, 2] (x, y) of events on the pixels of the fields; NaN where they have no place."""
        return self._table[events.y, events.x]

    def score(
        self, events: Events, estimate: FlowEstimate, clock_offset_ns: int = 0
    ) -> tuple[FlowWindow, TrueField | None]:
        """The figures of a field of full resolution, with the truth that it was compared with.

        Args:
            events: those of its window.
            estimate: the field.
            clock_offset_ns: what to add to the events' times for that of the field.

        Raises:
            ValueError: the field is not of full resolution.
            RecordingError: the truth is of another size.
        """
        if estimate.flow.shape != (self.size[1], self.size[0], 2):
            found, expected = list(estimate.flow.shape), [self.size[1], self.size[0], 2]
            raise ValueError(f"flow is {found}, expected {expected}")
        window = FlowWindow(
            estimate.stamp_ns, estimate.window_start_ns, estimate.window_end_ns,
            estimate.events, estimate.used_events, estimate.status.value,
            iterations=estimate.iterations, full_passes=estimate.full_passes,
            solve_time_s=estimate.solve_time_s,
        )  # fmt: skip
        if not estimate.status.ok:
            return window, None
        flow, coords = estimate.flow, self.coords(events)
        offset_s = (events.t + (clock_offset_ns - estimate.stamp_ns)) / NS_PER_S
        where = event_pixels(coords, *self.size)
        settled = known(flow) & where
        truth = None if self._truth is None else self._truth.at(estimate.stamp_ns)
        if truth is not None and truth.flow.shape != flow.shape:
            raise RecordingError(
                f"true flow of {list(truth.flow.shape)}, expected {list(flow.shape)}: the sensor's"
            )
        window = replace(
            window,
            density=density(flow, where),
            normal_share=_share(estimate.normal_flow, settled),
            flow_warp_loss=flow_warp_loss(coords, offset_s, flow),
            speed_px_s=estimate.speed_px_s,
        )
        if truth is None:
            return window, None
        moving = None
        if truth.moving is not None:
            moving = flow_error(flow, truth.flow, window.span_s, where & truth.moving)
        window = replace(
            window,
            true_flow_warp_loss=flow_warp_loss(coords, offset_s, truth.flow),
            error=flow_error(flow, truth.flow, window.span_s, where),
            moving_error=moving,
            full_error=flow_error(flow, truth.flow, window.span_s, where & ~estimate.normal_flow),
        )
        return window, truth


def evaluate_flow(
    path: str | Path,
    config: PipelineConfig,
    camera: Camera | None = None,
    *,
    truth: str | TrueFlow = "recorded",
    raw_pixels: bool = False,
    flow_out: Path | None = None,
    pictures: bool = False,
    progress: Callable[[int], None] | None = None,
) -> FlowEvaluation:
    """Runs the pipeline's flow, and no egomotion, over a recording.

    Args:
        path: any recording that `open_recording` knows.
        config: the pipeline's parameters; the fields are made at full resolution.
        camera: the calibration; None takes the recording's. Where there is none the flow is on raw
            pixels.
        truth: what to compare with: see `open_true_flow`; or a truth of one's own.
        raw_pixels: estimate on raw pixels though there is a calibration.
        flow_out: keep every field in this .npz, see `FlowFile`; those without trust as NaN.
        pictures: keep what a picture shows of the window whose flow varies most over the image.
        progress: called with the number of events since the last call.

    Raises:
        RecordingError: the recording cannot be read, holds no events, or lacks what the truth asked
            for is made of.
        ConfigError: the truth is not to be had on raw pixels.
        CalibrationError: the calibration is bad.
    """
    recording = open_recording(path)
    if camera is None:
        info = recording.calibration()
        camera = None if info is None else Camera.from_camera_info(info)
    of_pixels = None if raw_pixels else camera
    found = truth
    if isinstance(found, str):
        found = open_true_flow(found, recording, camera, of_pixels is None)
    config = replace(config, estimate="flow", flow_stride=1)
    decoder.warm_up()
    pipeline_flow.warm_up(config)
    tap = _Tap(FlowStage(config))
    pipeline = Pipeline(config, of_pixels, tap)
    rejections: Counter[str] = Counter()
    spent_s, reported = 0.0, 0
    with FlowFile(flow_out) if flow_out is not None else nullcontext() as file:
        notes = _Notes(of_pixels, found, file, _Gallery() if pictures else None)
        for packet in _packets_and_end(recording):
            began = time.perf_counter()
            try:
                if packet is None:
                    pipeline.flush()
                else:
                    pipeline.push(packet)
            except PacketError as error:
                rejections[str(error)] += 1
            spent_s += time.perf_counter() - began
            notes.take(tap)
            if progress is not None:
                progress(pipeline.counters.events - reported)
                reported = pipeline.counters.events
        notes.finish()
        if not pipeline.counters.events:  # and so there is no file either
            why = f": {next(iter(rejections))}" if rejections else ""
            raise RecordingError(f"{path}: no events could be read, expected an event stream{why}")
    return FlowEvaluation(
        str(path),
        config,
        of_pixels is not None,
        pipeline.counters.events,
        pipeline.counters.duration_ns * 1e-9,
        spent_s,
        notes.windows,
        notes.displacements.errors if notes.displacements else [],
        notes.displacements.missed if notes.displacements else 0,
        found.source if found else None,
        tap.stage.counters,
        notes.gallery.pictures if notes.gallery else None,
        rejections,
    )


class _Notes:
    """What is kept of the fields as they come."""

    def __init__(
        self,
        camera: Camera | None,
        truth: TrueFlow | FlowTruths | None,
        file: FlowFile | None,
        gallery: _Gallery | None,
    ) -> None:
        self.windows: list[FlowWindow] = []
        self.displacements: DisplacementScorer | None = None
        self.gallery = gallery
        self._camera, self._file = camera, file
        self._truth: TrueFlow | None = None
        if isinstance(truth, FlowTruths):
            self.displacements = DisplacementScorer(truth, camera)
        else:
            self._truth = truth
        self._scorer: FlowScorer | None = None

    def take(self, tap: _Tap) -> None:
        for events, offset_ns in tap.take_events():
            size = (events.width, events.height)
            if self._scorer is None or self._scorer.size != size:
                self._scorer = FlowScorer(size, self._camera, self._truth)
            if self.displacements is not None:
                coords = self._scorer.coords(events)
                self.displacements.see(events.t + offset_ns, coords, size)
        for events, estimate, offset_ns in tap.take_fields():
            assert self._scorer is not None  # there are no fields before events
            self._note(self._scorer, events, estimate, offset_ns)

    def _note(
        self, scorer: FlowScorer, events: Events, estimate: FlowEstimate, offset_ns: int
    ) -> None:
        window, truth = scorer.score(events, estimate, offset_ns)
        self.windows.append(window)
        ok = estimate.status.ok
        if self.displacements is not None and ok:
            self.displacements.take(estimate.stamp_ns, estimate.flow)
        if self._file is not None:
            flow = estimate.flow if ok else np.full_like(estimate.flow, np.nan)
            self._file.add(
                estimate.stamp_ns, estimate.window_start_ns, estimate.window_end_ns, flow
            )
        if self.gallery is not None and ok:
            self.gallery.look(scorer, events, estimate, offset_ns, window, truth)

    def finish(self) -> None:
        if self.displacements is not None:
            self.displacements.finish()


def _packets_and_end(recording: Recording) -> Iterator[Any]:
    for packet in recording.packets():
        for _, part in parts(packet):
            yield part
    yield None


class _Tap:
    """The pipeline's way to its flow stage, which keeps the events of each field."""

    def __init__(self, stage: FlowStage) -> None:
        self.stage = stage
        self._events: deque[Events] = deque()
        self._taken: list[tuple[Events, FlowEstimate, int]] = []
        self._fresh: list[tuple[Events, int]] = []
        self._offset_ns = 0

    def take_events(self) -> list[tuple[Events, int]]:
        """The events since the last call, and what to add to their times for the fields'."""
        taken, self._fresh = self._fresh, []
        return taken

    def take_fields(self) -> list[tuple[Events, FlowEstimate, int]]:
        """The fields since the last call, each with the events of its window and what to add to
        their times for the field's."""
        taken, self._taken = self._taken, []
        return taken

    def push(
        self, events: Events, clock_offset_ns: int = 0, estimate: bool = True
    ) -> list[FlowEstimate]:
        if len(events):
            events = events.copy()
            last = self._events[-1] if self._events else events
            if (events.width, events.height) != (last.width, last.height):
                self._events.clear()
            self._events.append(events)
            self._fresh.append((events, clock_offset_ns))
        self._offset_ns = clock_offset_ns
        return self._keep(self.stage.push(events, clock_offset_ns, estimate))

    def flush(self) -> list[FlowEstimate]:
        return self._keep(self.stage.flush())

    def break_stream(self) -> None:
        # Fields that are taken already have their events.
        self._events.clear()
        self.stage.break_stream()

    def set_camera(self, camera: Camera) -> None:
        self.stage.set_camera(camera)

    def imply(self, motion: EgomotionEstimate, depth: Depth | None) -> None:
        self.stage.imply(motion, depth)

    def _keep(self, estimates: Sequence[FlowEstimate]) -> list[FlowEstimate]:
        for estimate in estimates:
            start_ns = estimate.window_start_ns - self._offset_ns
            end_ns = estimate.window_end_ns - self._offset_ns
            # Later windows begin later.
            while len(self._events) > 1 and int(self._events[0].t[-1]) < start_ns:
                self._events.popleft()
            near = [part for part in self._events if int(part.t[0]) <= end_ns]
            held = Events.concatenate(near)
            first, last = np.searchsorted(held.t, [start_ns, end_ns + 1])
            self._taken.append((held[int(first) : int(last)], estimate, self._offset_ns))
        return []  # the evaluation takes them from here


class _Gallery:
    """Keeps the pictures of the window whose flow varies most over the image."""

    def __init__(self) -> None:
        self.pictures: FlowPictures | None = None
        self._spread_px_s = -1.0

    def look(
        self,
        scorer: FlowScorer,
        events: Events,
        estimate: FlowEstimate,
        clock_offset_ns: int,
        window: FlowWindow,
        truth: TrueField | None,
    ) -> None:
        spread_px_s = float(np.hypot(*estimate.flow[known(estimate.flow)].std(axis=0)))
        if not spread_px_s > self._spread_px_s:
            return
        self._spread_px_s = spread_px_s
        coords = scorer.coords(events)
        offset_s = (events.t + (clock_offset_ns - estimate.stamp_ns)) / NS_PER_S
        size = (events.width, events.height)
        seen = np.isfinite(coords).all(axis=1)
        coords, offset_s = coords[seen], offset_s[seen]
        self.pictures = FlowPictures(
            vote(coords, *size),
            vote(warped(coords, offset_s, estimate.flow), *size),
            estimate.flow,
            None if truth is None else truth.flow,
            window,
        )


def _error_figures(prefix: str, error: FlowError | None) -> dict[str, Any]:
    return {
        f"{prefix}epe_px": error and error.epe_px,
        f"{prefix}epe_px_s": error and error.epe_px_s,
        f"{prefix}angular_error_deg": error and error.angular_deg,
        f"{prefix}outliers_1px_percent": error and 100 * error.outliers_1px,
        f"{prefix}outliers_3px_percent": error and 100 * error.outliers_3px,
        f"{prefix}true_displacement_px": error and error.true_px,
        f"{prefix}pixels_compared": error.pixels if error else 0,
    }


def _cell(name: str, value: Any) -> str:
    if name.endswith("_ns"):
        return f"{value // NS_PER_S}.{value % NS_PER_S:09d}"
    if isinstance(value, float):
        return f"{value:.9g}" if math.isfinite(value) else ""
    return str(value)


def _share(mask: npt.NDArray[np.bool_], of: npt.NDArray[np.bool_]) -> float:
    return float(mask[of].mean()) if of.any() else math.nan


def _finite(values: Any) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _mean(values: Any) -> float | None:
    some = _finite(values)
    return float(np.mean(some)) if some else None


def _percentile(values: list[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None
