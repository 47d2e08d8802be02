"""The thread that owns the flow: from the pipeline's decoded events to fields, beside the worker.

The worker hands over and goes on at once; whatever the flow costs, no twist waits for it.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from event_binning_grad.errors import EventBinningError, PacketError
from event_binning_grad.estimation import Depth, EgomotionEstimate
from event_binning_grad.estimation.flow_estimate import FlowEstimate
from event_binning_grad.events.types import Events
from event_binning_grad.geometry import Camera
from event_binning_grad.pipeline_flow import FlowCounters, FlowStage, PipelineConfig
from event_binning_grad.ros.health import Activity, Measurements

_POLL_S = 0.1
_WAKE_S = 0.005
# However far behind, a window is estimated so long after the last one, s (see the worker); and so
# long after where it is the egomotion that is behind.
_LONGEST_GAP_S = 0.25
_LONGEST_WAIT_S = 1.0
# Where the egomotion is estimated, too, it comes first: the flow's thread is that much nicer, and
# both hand Python's lock over after so long (s; by default 5 ms, ten times a window for a worker
# that only runs compiled code in between). Beside a flow that never rests, calls of 0.46 ms then
# took 0.55 ms instead of 0.95.
_NICE = 5
_SWITCH_INTERVAL_S = 5e-4


class FlowSink(Protocol):
    """Who takes what the flow's worker makes; every method is called on its thread."""

    def on_flow(self, estimate: FlowEstimate, stage: FlowStage, frame_id: str) -> None:
        """A window is done."""
        ...

    def on_rejected(self, reason: str) -> None:
        """A packet's events were dropped."""
        ...

    def on_calibration(self, camera: Camera, error: EventBinningError | None) -> None:
        """A calibration was refused."""
        ...

    def on_failure(self, error: BaseException) -> None:
        """The worker has ended by an error that no input should cause."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """The events of a packet on their way to the flow.

    clock_offset_ns: what to add to their times for the robot's clock.
    arrival_s: when the packet came, on the monotonic clock.
    frame_id: of the packet.
    follows: False if they do not follow the events before.
    """

    events: Events
    clock_offset_ns: int
    arrival_s: float
    frame_id: str
    follows: bool


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A chunk, how long it has waited, and what happened between the one before and it.

    dropped_events: events given up. follows: False if the stream broke.
    """

    chunk: Chunk
    waited_s: float
    dropped_events: int
    follows: bool


class ChunkQueue:
    """First in, first out; chunks that have waited too long are dropped one by one.

    What is left is the newest of the stream, whole, and long enough for a window: the flow needs no
    older one.

    Who waits is woken so often at most: each time costs the thread that puts some of its time.

    max_wait_s: how long a chunk may wait, which bounds the memory.
    wake_s: time from one waking to the next at least.
    """

    def __init__(self, max_wait_s: float, wake_s: float = 0.0) -> None:
        self._max_wait_s, self._wake_s = max_wait_s, wake_s
        self._woken_s = -math.inf
        self._waiting: deque[tuple[Chunk, float]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._dropped_events = 0  # since the last chunk was taken out
        self._follows = True

    def __len__(self) -> int:
        """Chunks that wait."""
        return len(self._waiting)

    def put(self, chunk: Chunk) -> None:
        """Takes the next chunk; never blocks."""
        now_s = time.monotonic()
        with self._changed:
            self._waiting.append((chunk, now_s))
            self._drop(now_s)
            if now_s - self._woken_s >= self._wake_s:
                self._woken_s = now_s
                self._changed.notify()

    def get(self, timeout_s: float) -> Waiting | None:
        """The oldest chunk that waits; None when none came in time, or the queue is closed."""
        with self._changed:
            if not self._waiting and not self._closed:
                self._changed.wait(timeout_s)
            if self._closed or not self._waiting:
                return None
            now_s = time.monotonic()
            self._drop(now_s)
            chunk, put_s = self._waiting.popleft()
            waiting = Waiting(
                chunk, now_s - put_s, self._dropped_events, self._follows and chunk.follows
            )
            self._dropped_events, self._follows = 0, True
            return waiting

    def close(self) -> None:
        """Ends the queue: get() returns None from now on, at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _drop(self, now_s: float) -> None:
        while len(self._waiting) > 1 and now_s - self._waiting[0][1] > self._max_wait_s:
            chunk, _ = self._waiting.popleft()
            self._dropped_events += len(chunk.events)
            self._follows = self._follows and chunk.follows


class FlowWorker:
    """Takes the events of a Pipeline (it is the pipeline's FlowTaker) to a FlowStage of its own.

    When events have waited too long while others wait behind them, the windows that they complete
    are left out: the fields get fewer and stay fresh. So are they while the egomotion's packets
    wait, half as long as it takes for the egomotion to leave windows out itself.

    Args:
        config: of the pipeline.
        queue_s: how long events may wait, s; from a quarter of it on windows are left out.
        sink: takes the results.
    """

    def __init__(self, config: PipelineConfig, queue_s: float, sink: FlowSink) -> None:
        self._stage = FlowStage(config)
        self._queue = ChunkQueue(queue_s, _WAKE_S)
        self._behind_s = queue_s / 4
        self._sink = sink
        self._gives_way = config.estimates_egomotion
        self._switch_interval_s = sys.getswitchinterval()
        self._arrival_s, self._frame_id, self._follows = 0.0, "", True
        self._egomotion_late_s = 0.0
        self._last_chunk: Chunk | None = None
        self._ending, self._ended = threading.Event(), threading.Event()
        self._new_cameras: deque[Camera] = deque(maxlen=1)
        self._motions: deque[tuple[EgomotionEstimate, Depth | None]] = deque(maxlen=8)
        self._stopping = threading.Event()
        self._last_field_s = -math.inf  # on the monotonic clock
        self._measurements = Measurements()
        self._thread = threading.Thread(target=self._run, name="flow", daemon=True)

    @property
    def counters(self) -> FlowCounters:
        """Live counters; read them, do not write."""
        return self._stage.counters

    @property
    def camera(self) -> Camera | None:
        """The calibration in use; None: the flow is that of the raw pixels."""
        return self._stage.camera

    @property
    def stride(self) -> int:
        return self._stage.stride

    @property
    def has_ended(self) -> bool:
        """True: after flush(), all is done."""
        return self._ended.is_set()

    def start(self) -> None:
        if self._gives_way:
            sys.setswitchinterval(min(_SWITCH_INTERVAL_S, self._switch_interval_s))
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread; False if it is still busy after the time."""
        self._stopping.set()
        self._queue.close()
        sys.setswitchinterval(self._switch_interval_s)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def take_activity(self) -> Activity:
        """What was measured since the last call; from any thread."""
        return self._measurements.take()

    # Called on the pipeline's thread; nothing waits.

    def note_packet(self, arrival_s: float, frame_id: str) -> None:
        """Says which packet the next events are of."""
        self._arrival_s, self._frame_id = arrival_s, frame_id
        self._egomotion_late_s = time.monotonic() - arrival_s

    def push(
        self, events: Events, clock_offset_ns: int = 0, estimate: bool = True
    ) -> tuple[FlowEstimate, ...]:
        # The decoder gives each packet arrays of its own, so there is nothing to copy. Whether to
        # estimate is decided by how far the flow is behind, not the twist.
        if len(events):
            self._queue.put(
                Chunk(events, clock_offset_ns, self._arrival_s, self._frame_id, self._follows)
            )
            self._follows = True
        return ()

    def flush(self) -> tuple[FlowEstimate, ...]:
        self._ending.set()
        return ()

    def break_stream(self) -> None:
        self._follows = False

    def set_camera(self, camera: Camera) -> None:
        self._new_cameras.append(camera)

    def imply(self, motion: EgomotionEstimate, depth: Depth | None) -> None:
        self._motions.append((motion, depth))

    # On the thread of its own.

    def _run(self) -> None:
        try:
            if self._gives_way:
                _be_nice()
            while not self._stopping.is_set():
                ending = self._ending.is_set()  # asked first: what was put before it is got still
                waiting = self._queue.get(_POLL_S)
                self._take_camera()
                while self._motions:
                    self._stage.imply(*self._motions.popleft())
                if waiting is not None:
                    self._take(waiting)
                elif ending and not self._ended.is_set():
                    self._hand_over(self._stage.flush)
                    self._ended.set()
        except BaseException as error:
            if not self._stopping.is_set():
                self._sink.on_failure(error)

    def _take_camera(self) -> None:
        try:
            camera = self._new_cameras.pop()
        except IndexError:
            return
        try:
            self._stage.set_camera(camera)
        except EventBinningError as error:
            self._sink.on_calibration(camera, error)

    def _take(self, waiting: Waiting) -> None:
        chunk = waiting.chunk
        if not waiting.follows:
            self._stage.break_stream()
        if waiting.dropped_events:
            self._stage.skip(waiting.dropped_events)
        self._last_chunk = chunk
        estimate = not self._must_catch_up(waiting)
        self._hand_over(lambda: self._stage.push(chunk.events, chunk.clock_offset_ns, estimate))

    def _hand_over(self, make: Callable[[], list[FlowEstimate]]) -> None:
        chunk = self._last_chunk
        try:
            for estimate in make():
                assert chunk is not None  # a field is of events
                self._last_field_s = time.monotonic()
                self._sink.on_flow(estimate, self._stage, chunk.frame_id)
                known = np.count_nonzero(estimate.confidence) / max(1, estimate.confidence.size)
                self._measurements.add(estimate, time.monotonic() - chunk.arrival_s, known)
        except PacketError as error:
            self._sink.on_rejected(str(error))

    def _must_catch_up(self, waiting: Waiting) -> bool:
        since_s = time.monotonic() - self._last_field_s
        if self._gives_way and self._egomotion_late_s > self._behind_s / 2:
            return since_s < _LONGEST_WAIT_S
        late = waiting.waited_s > self._behind_s and len(self._queue) > 0
        return late and since_s < _LONGEST_GAP_S


def _be_nice() -> None:
    """Lowers this thread's priority, and with it that of the threads that it starts."""
    if hasattr(os, "setpriority"):
        # On Linux a thread has a priority of its own, by its own number.
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICE)
