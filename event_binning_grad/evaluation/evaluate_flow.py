"""Runs the pipeline's dense flow over a recording and reports what came out."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from event_binning_grad import pipeline_flow
from event_binning_grad.config import PipelineConfig
from event_binning_grad.errors import PacketError, RecordingError
from event_binning_grad.estimation import Depth, EgomotionEstimate
from event_binning_grad.estimation.flow_estimate import FlowEstimate
from event_binning_grad.evaluation.flow_displacement import DisplacementScorer
from event_binning_grad.evaluation.flow_file import FlowFile
from event_binning_grad.evaluation.flow_metrics import known, vote, warped
from event_binning_grad.evaluation.flow_report import FlowEvaluation, FlowPictures
from event_binning_grad.evaluation.flow_score import FlowScorer, FlowWindow
from event_binning_grad.evaluation.metrics import translation
from event_binning_grad.evaluation.sensor_feed import packets_of, parts
from event_binning_grad.evaluation.true_flow import (
    RotationTruth,
    TrueField,
    TrueFlow,
    open_true_flow,
    truth_hint,
)
from event_binning_grad.events import decoder
from event_binning_grad.events.flow_truth import FlowTruths
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.repacking import Stretch
from event_binning_grad.events.types import NS_PER_S, EventPacket, Events
from event_binning_grad.geometry import Camera
from event_binning_grad.pipeline import Pipeline
from event_binning_grad.pipeline_flow import FlowStage


def evaluate_flow(
    path: str | Path,
    config: PipelineConfig,
    camera: Camera | None = None,
    *,
    truth: str | TrueFlow = "recorded",
    truth_frames: int | None = None,
    raw_pixels: bool = False,
    flow_out: Path | None = None,
    pictures: bool = False,
    topic: str | None = None,
    stretch: Stretch | None = None,
    progress: Callable[[int], None] | None = None,
) -> FlowEvaluation:
    """Runs the pipeline's flow, and no egomotion, over a recording.

    Args:
        path: any recording that `open_recording` knows.
        config: the pipeline's parameters; the fields are made at full resolution.
        camera: the calibration; None takes the recording's. Where there is none the flow is on raw
            pixels.
        truth, truth_frames: what to compare with: see `open_true_flow`; or a truth of one's own.
        raw_pixels: estimate on raw pixels though there is a calibration.
        flow_out: keep every field in this .npz, see `FlowFile`; those without trust as NaN.
        pictures: keep what a picture shows of the window whose flow varies most over the image.
        topic: of the events, where a bag holds several.
        stretch: the part of the recording that is looked at; None: all of it.
        progress: called with the number of events since the last call.

    Raises:
        RecordingError: the recording cannot be read, holds no events, or none that a field could be
            estimated from, or lacks what the truth asked for is made of.
        ConfigError: there is no such truth, or flow_out is no name for an .npz.
        CalibrationError: the calibration is bad.
        EventBinningError: flow_out cannot be written.
    """
    config = replace(config, estimate="flow", flow_stride=1)
    with FlowFile(flow_out) if flow_out is not None else nullcontext() as file:
        recording = open_recording(path, topic)
        if camera is None:
            info = recording.calibration()
            camera = None if info is None else Camera.from_camera_info(info)
        of_pixels = None if raw_pixels else camera
        found = truth
        if isinstance(found, str):
            found = open_true_flow(found, recording, camera, of_pixels is None, truth_frames)
        hint = ""
        if truth == "recorded" and found is None:
            hint = truth_hint(recording, camera, of_pixels is None)
        decoder.warm_up()
        pipeline_flow.warm_up(config)
        tap = _Tap(FlowStage(config))
        pipeline = Pipeline(config, of_pixels, tap)
        rejections: Counter[str] = Counter()
        spent_s, reported = 0.0, 0
        notes = _Notes(of_pixels, found, file, _Gallery() if pictures else None)
        packets = packets_of(recording, stretch or Stretch(), rejections)
        for packet in _packets_and_end(packets):
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
        why = f": {next(iter(rejections))}" if rejections else ""
        if not pipeline.counters.events:  # and so there is no file either
            raise RecordingError(f"{path}: no events could be read, expected an event stream{why}")
        if not notes.windows and rejections:
            raise RecordingError(f"{path}: no packet could be used{why}")
        if not any(window.status == "ok" for window in notes.windows):
            raise RecordingError(f"{path}: {_no_field(notes.windows, config, pipeline)}")
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
        hint,
        pipeline.counters,
        tap.stage.counters,
        notes.gallery.pictures if notes.gallery else None,
        recording.unusable(),
        [*recording.warnings(), *notes.warnings(found)],
        rejections,
    )


def _no_field(windows: Sequence[FlowWindow], config: PipelineConfig, pipeline: Pipeline) -> str:
    """Why there is none, and what to do."""
    least, events = config.flow_min_events, pipeline.counters.load.kept_events
    if events < least:
        return f"no flow field from {events:,} events; expected at least {least:,} of them"
    by_status = Counter(window.status for window in windows)
    reasons = ", ".join(f"{n:,} {status.replace('_', ' ')}" for status, n in by_status.items())
    found = f"no flow field in {len(windows):,} windows ({reasons or 'none was complete'}): "
    most = max((window.used_events or window.events for window in windows), default=0)
    if most < least:
        return (
            f"{found}the fullest has {most:,} events, expected at least {least:,}: take longer "
            "windows (--window-ms)"
        )
    return f"{found}expected a moving camera or scene with texture, and this camera's calibration"


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
        if self.displacements is not None:
            self.displacements.take(estimate.stamp_ns, estimate.flow if ok else None)
        if self._file is not None:
            self._file.add(estimate)
        if self.gallery is not None and ok:
            self.gallery.look(scorer, events, estimate, offset_ns, window, truth)

    def warnings(self, truth: TrueFlow | FlowTruths | None) -> list[str]:
        """What is wrong with the truth for this recording, a line each."""
        if not isinstance(truth, RotationTruth):
            return []
        found = translation(truth.motion, [window.stamp_ns for window in self.windows])
        if not found:
            return []
        return [
            f"--flow-truth rotation: the camera {found}, so that its rotation does not imply the "
            "flow of anything near; the errors against it say little"
        ]

    def finish(self) -> None:
        if self.displacements is not None:
            self.displacements.finish()


def _packets_and_end(packets: Iterator[EventPacket | Events]) -> Iterator[Any]:
    for packet in packets:
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
