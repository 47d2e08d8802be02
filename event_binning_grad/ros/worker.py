"""The thread that owns the pipeline: from packets to estimates, off the executor's thread."""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import EventBinningError, PacketError
from event_binning_grad.estimation import EgomotionEstimate
from event_binning_grad.events.event_arrays import event_array_packet
from event_binning_grad.events.types import PacketLike, Triggers
from event_binning_grad.geometry import Camera
from event_binning_grad.pipeline import (
    Pipeline,
    PipelineConfig,
    PipelineCounters,
    Trigger,
    warm_up,
)
from event_binning_grad.ros.flow_worker import FlowWorker
from event_binning_grad.ros.health import Activity, Measurements
from event_binning_grad.ros.packet_queue import Arrival, PacketQueue, SerializedArray
from event_binning_grad.ros.sensors import Reading, ReadingQueue, Sensor
from event_binning_grad.sources.source import Measurement

CompensatedImage = Callable[[], "npt.NDArray[np.float32] | None"]

# Any camera serves to compile; the real one is often known only later.
_SOME_CAMERA = Camera(64, 48, np.array([[50.0, 0, 32], [0, 50.0, 24], [0, 0, 1]]))
_POLL_S = 0.1
# However far behind, a window is estimated so long after the last one, s. Otherwise a machine that
# can just decode what comes would publish nothing, for ever. By the time, not by a number of
# windows, so that it costs the same share of the machine whatever output_rate_hz is; and so short
# that the estimator still goes on from its last motion, where finding a new track costs more.
_LONGEST_GAP_S = 0.1


class Sink(Protocol):
    """Who takes what the worker makes; every method is called on the worker's thread."""

    def on_ready(self) -> None:
        """Everything is compiled: packets may come."""
        ...

    def on_estimate(
        self, estimate: EgomotionEstimate, frame_id: str, image: CompensatedImage
    ) -> None:
        """A window is done. `image` makes its compensated image."""
        ...

    def on_measurement(self, measurement: Measurement) -> Reading | None:
        """The source of the events measured something, its stamp on the robot's clock; the reading
        that it gives, if it is of use."""
        ...

    def on_trigger(self, trigger: Trigger, frame_id: str) -> None:
        """An edge came in on the camera's trigger input."""
        ...

    def on_rejected(self, reason: str) -> None:
        """A packet was dropped."""
        ...

    def on_refused_reading(self, sensor: Sensor, reason: str) -> None:
        """A reading does not suit the pipeline and was dropped."""
        ...

    def on_calibration(self, camera: Camera | None, error: EventBinningError | None) -> None:
        """A calibration is in use, or was refused; None: it makes no camera at all."""
        ...

    def on_failure(self, error: BaseException) -> None:
        """The worker has ended by an error that no input should cause."""
        ...


class Worker:
    """Takes packets from a queue, one thread, until it is stopped.

    A packet that has waited too long while others wait behind it is decoded and counted, but the
    windows that it completes are left out. So the stream stays whole and the track with it, the
    estimates get fewer and stay evenly spread, and the queue need not drop packets.

    Args:
        config: of the pipeline.
        queue: where packets come from.
        readings: where the readings of other sensors come from.
        sink: takes the results.
        behind_s: how long a packet waits before windows are left out, s.
        flow: the worker that the decoded events go on to, where flow is estimated.
    """

    def __init__(
        self,
        config: PipelineConfig,
        queue: PacketQueue[PacketLike | SerializedArray],
        readings: ReadingQueue,
        sink: Sink,
        behind_s: float,
        flow: FlowWorker | None = None,
    ) -> None:
        self._pipeline = Pipeline(config, flow=flow)
        self._flow = flow
        self._queue = queue
        self._behind_s = behind_s
        self._last_estimate_s = -math.inf  # on the monotonic clock
        self._readings = readings
        self._push_reading: dict[Sensor, Callable[[int, Any], None]] = {
            Sensor.DEPTH: self._pipeline.push_depth,
            Sensor.RANGE: self._pipeline.push_range,
            Sensor.IMU: self._pipeline.push_imu,
        }
        self._sink = sink
        self._new_cameras: deque[Camera] = deque(maxlen=1)
        self._make_camera: Callable[[tuple[int, int]], Camera] | None = None
        self._last_arrival_s, self._frame_id = 0.0, ""  # of the last packet
        self._ending, self._ended = threading.Event(), threading.Event()
        self._stopping = threading.Event()
        self._measurements = Measurements()
        # A daemon, so that a compiler run that nobody can interrupt does not keep the process.
        self._thread = threading.Thread(target=self._run, name="perception", daemon=True)

    @property
    def counters(self) -> PipelineCounters:
        """Live counters; read them, do not write."""
        return self._pipeline.counters

    @property
    def last_discontinuity(self) -> str | None:
        return self._pipeline.last_discontinuity

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread; False if it is still busy after the time."""
        self._stopping.set()
        self._queue.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def set_camera(self, camera: Camera) -> None:
        """The calibration to use from the next packet on; from any thread."""
        self._new_cameras.append(camera)

    def set_camera_by_size(self, make: Callable[[tuple[int, int]], Camera]) -> None:
        """The calibration for the width and height that the first packet says; before start()."""
        self._make_camera = make

    def end(self) -> None:
        """Says that no packet will come after those that wait: when they are worked off, the last
        window ends, shorter than others; from any thread."""
        self._ending.set()

    @property
    def has_ended(self) -> bool:
        """True: after end(), all is done."""
        return self._ended.is_set() and (self._flow is None or self._flow.has_ended)

    def take_activity(self) -> Activity:
        """What was measured since the last call; from any thread."""
        return self._measurements.take()

    def _run(self) -> None:
        try:
            warm_up(self._pipeline.config, _SOME_CAMERA)
            if not self._stopping.is_set():
                self._sink.on_ready()
            while not self._stopping.is_set():
                ending = self._ending.is_set()  # asked first: what was put before it is got still
                arrival = self._queue.get(_POLL_S)
                self._take_camera()  # that of a recording comes before its first packet
                before = arrival.number - 1 if arrival is not None else math.inf
                for reading in self._readings.take(before, self._pipeline.knows_clock):
                    self._take_reading(reading)
                if arrival is not None:
                    self._take_packet(arrival)
                elif ending and not self._ended.is_set():
                    self._hand_over(self._pipeline.flush)
                    self._ended.set()
        except BaseException as error:
            # Whatever it is, a node without a worker must not look alive.
            if not self._stopping.is_set():
                self._sink.on_failure(error)

    def _take_camera(self) -> None:
        try:
            camera = self._new_cameras.pop()  # atomic: a camera set meanwhile is not lost
        except IndexError:
            return
        try:
            self._pipeline.set_camera(camera)
            self._sink.on_calibration(camera, None)
        except EventBinningError as error:
            self._sink.on_calibration(camera, error)

    def _take_size(self, packet: PacketLike) -> None:
        make = self._make_camera
        if make is None or 0 in (size := (packet.width, packet.height)):
            return
        self._make_camera = None
        try:
            self.set_camera(make(size))
        except EventBinningError as error:
            self._sink.on_calibration(None, error)
        self._take_camera()

    def _take_reading(self, taken: Reading | Measurement) -> None:
        reading = self._read(taken) if isinstance(taken, Measurement) else taken
        if reading is None:
            return
        try:
            self._push_reading[reading.sensor](reading.stamp_ns, reading.value)
        except EventBinningError as error:
            self._sink.on_refused_reading(reading.sensor, str(error))

    def _read(self, measurement: Measurement) -> Reading | None:
        """The reading that the pipeline takes of it, if any; an edge goes on at once."""
        stamp_ns = measurement.stamp_ns
        if measurement.sensor == Sensor.TRIGGER.value:
            t, p = np.array([stamp_ns], np.int64), np.array([measurement.value], np.uint8)
            self._pipeline.push_triggers(Triggers(t, p, np.zeros(1, np.uint8)))
            self._hand_over_triggers()
            return None
        if measurement.clock_of_events:
            stamp_ns = self._pipeline.to_robot(stamp_ns)
            measurement = dataclasses.replace(measurement, stamp_ns=stamp_ns)
        try:
            return self._sink.on_measurement(measurement)
        except PacketError as error:
            self._sink.on_rejected(str(error))
            return None

    def _take_packet(self, arrival: Arrival[PacketLike | SerializedArray]) -> None:
        if arrival.shed_before:
            self._pipeline.skip_packets(arrival.shed_before)
        try:
            packet = _parsed(arrival.packet)
        except PacketError as error:
            # The decoder never sees it, and must not take it for lost on the way.
            self._pipeline.skip_packets(1)
            self._sink.on_rejected(str(error))
            return
        self._take_size(packet)
        self._last_arrival_s, self._frame_id = arrival.arrival_s, packet.header.frame_id
        if self._flow is not None:
            self._flow.note_packet(self._last_arrival_s, self._frame_id)
        self._hand_over(lambda: self._pipeline.push(packet, not self._must_catch_up(arrival)))
        self._hand_over_triggers()

    def _hand_over(self, make: Callable[[], list[EgomotionEstimate]]) -> None:
        try:
            estimates = make()
        except PacketError as error:
            self._sink.on_rejected(str(error))
            return
        if estimates:
            self._last_estimate_s = time.monotonic()
        for estimate in estimates:
            # The pipeline holds the last window only: the others have no image.
            last = estimate is estimates[-1]
            image = self._pipeline.compensated_image if last else _no_image
            self._publish(
                functools.partial(self._sink.on_estimate, estimate, self._frame_id, image)
            )
            self._measurements.add(estimate, time.monotonic() - self._last_arrival_s)

    def _hand_over_triggers(self) -> None:
        for trigger in self._pipeline.take_triggers():
            self._publish(functools.partial(self._sink.on_trigger, trigger, self._frame_id))

    def _publish(self, publish: Callable[[], None]) -> None:
        try:
            publish()
        except PacketError as error:  # a time that ROS cannot hold
            self._sink.on_rejected(str(error))

    def _must_catch_up(self, arrival: Arrival[PacketLike | SerializedArray]) -> bool:
        now_s = time.monotonic()
        if now_s - arrival.arrival_s <= self._behind_s:
            return False
        # With nothing behind it, the packet was late when it came: there is nothing to catch up.
        return len(self._queue) > 0 and now_s - self._last_estimate_s < _LONGEST_GAP_S


def _parsed(packet: PacketLike | SerializedArray) -> PacketLike:
    """Raises PacketError for a message that cannot be parsed."""
    if isinstance(packet, SerializedArray):
        return event_array_packet(packet.data, packet.seq)
    return packet


def _no_image() -> None:
    return None
