"""The one path from packets to estimates, used by the node, by replay and by evaluation.

    packet -> decode -> clock -> load control -> window -> warp, bin, solve -> estimate
                                              -> pipeline_flow, where dense flow is asked for

Nothing flows back but the previous estimate, the warm start.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from event_binning_grad.config import PipelineConfig
from event_binning_grad.errors import PacketError
from event_binning_grad.estimation import (
    Depth,
    EgomotionEstimate,
    EgomotionEstimator,
    Status,
    depths,
)
from event_binning_grad.estimation.aids import Aids
from event_binning_grad.estimation.contrast_cpu import PARALLEL_FROM
from event_binning_grad.estimation.span import SpanControl
from event_binning_grad.events import decoder, load_control
from event_binning_grad.events.clock import ClockCounters, StreamClock
from event_binning_grad.events.decoder import DecodedPacket, DecoderCounters, PacketDecoder
from event_binning_grad.events.load_control import LoadControl, LoadCounters
from event_binning_grad.events.types import (
    NS_PER_MS,
    Events,
    PacketLike,
    Triggers,
    stamp_to_ns,
)
from event_binning_grad.events.windows import Window, WindowBuffer
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.depth import DepthImage

if TYPE_CHECKING:  # who asks for no flow does not load it
    from event_binning_grad.estimation.flow_estimate import FlowEstimate
    from event_binning_grad.pipeline_flow import FlowStage, FlowTaker

# Encodings in which a sensor also says what time it is where it has no events.
SENSOR_STREAMS = frozenset({"evt2", "evt21", "evt3"})
_SILENCE_NS = NS_PER_MS // 5
# Edges of the trigger input that are kept until somebody takes them.
MAX_TRIGGERS = 10_000


class Trigger(NamedTuple):
    """An edge of the camera's trigger input.

    robot_ns, sensor_ns: its time on the robot's clock and on that of the events, ns.
    p: 1 for a rising edge, 0 for a falling one.
    channel: the camera's number of the input.
    """

    robot_ns: int
    sensor_ns: int
    p: int
    channel: int


@dataclass
class PipelineCounters:
    """What became of the stream: every event is in exactly one of load's reasons to leave it out,
    window_events, skipped_events, discarded_events, uncalibrated_events, or still in the buffer;
    where no egomotion is estimated, in load's, uncalibrated_events or with the flow, whose counters
    are FlowStage's."""

    decoder: DecoderCounters = field(default_factory=DecoderCounters)
    load: LoadCounters = field(default_factory=LoadCounters)
    """What was left out before the windows; of its events, kept_events reached them."""
    clock: ClockCounters = field(default_factory=ClockCounters)
    events: int = 0
    """Events that reached the pipeline, decoded by it or handed to it."""
    first_event_ns: int | None = None
    last_event_ns: int | None = None
    """Times of the first and the last event, on the stream's own clock."""
    duration_ns: int = 0
    """What the events span; where the clock was set back, the sum of the spans."""
    hot_pixel_events: int = 0
    """Events of window_events that were left out, because their pixels fire all the time."""
    depthless_events: int = 0
    """Events of window_events that were left out, because the motion model needs their depth, and
    it is not known."""
    unaided_windows: int = 0
    """Windows for which the IMU was to be used, and had no samples up to their ends: it is silent,
    or later than the events."""
    windows: int = 0
    window_events: int = 0
    skipped_events: int = 0
    """Events between two windows, too many for the output rate, or of windows left out."""
    skipped_windows: int = 0
    """Windows left out to catch up."""
    used_events: int = 0
    """Events of window_events that were looked at; of windows with too many, a part is."""
    searches: int = 0
    """Windows for which the track had to be found, at the start or when it was lost."""
    discarded_events: int = 0
    """Events of windows left incomplete by a discontinuity of the stream, or by a calibration for
    another sensor size."""
    uncalibrated_events: int = 0
    """Events that came before a calibration that the egomotion needs, or did not fit it."""
    discontinuities: int = 0
    triggers: int = 0
    """Edges of the trigger input."""
    dropped_triggers: int = 0
    """Edges of the trigger input that nobody took in time, see Pipeline.take_triggers."""
    estimates: dict[Status, int] = field(default_factory=lambda: dict.fromkeys(Status, 0))


class Pipeline:
    """Takes packets (or events) of one camera, returns the estimates that they complete.

    Args:
        config: what to do.
        camera: the calibration; without it events are decoded and counted, and no egomotion is
            estimated; flow is, on raw pixels.
        flow: where the configuration asks for flow, who takes the events for it; None: the
            pipeline itself, and take_flow() gives the fields.
    """

    def __init__(
        self,
        config: PipelineConfig | None = None,
        camera: Camera | None = None,
        flow: FlowTaker | None = None,
    ) -> None:
        self.config = config or PipelineConfig()
        self.counters = PipelineCounters()
        self.last_discontinuity: str | None = None
        self._decoder = PacketDecoder()
        self.counters.decoder = self._decoder.counters
        self._load = LoadControl(self.config.load())
        self.counters.load = self._load.counters
        self._clock: StreamClock | None = None
        self._encoding = ""
        self._last_decoded_ns: int | None = None  # of the last event or edge of the packet before
        self._triggers: deque[Trigger] = deque(maxlen=MAX_TRIGGERS)
        rate_hz = self.config.output_rate_hz
        self._buffer = WindowBuffer(
            window_events=self.config.window_events or None,
            window_ns=round(self.config.window_ms * 1e6) or None,
            period_ns=round(1e9 / rate_hz) if rate_hz else None,
            min_events=self.config.wanted_events,
        )
        self._span = SpanControl(self.config.window_px, self.config.adaptive_windows)
        self._aids = Aids(self.config.aids())
        self._camera: Camera | None = None
        self._estimator: EgomotionEstimator | None = None
        self.flow_stage: FlowStage | None = None
        """What estimates the flow, if the pipeline does so itself."""
        self._flow = flow if self.config.estimates_flow else None
        self._fields: list[FlowEstimate] = []
        if self.config.estimates_flow and flow is None:
            from event_binning_grad.pipeline_flow import FlowStage

            self._flow = self.flow_stage = FlowStage(self.config)
        if camera is not None:
            self.set_camera(camera)

    @property
    def camera(self) -> Camera | None:
        return self._camera

    def set_camera(self, camera: Camera) -> None:
        """Takes a calibration, or another one; the track starts anew.

        Raises:
            CalibrationError: the camera does not look along its z axis.
        """
        if self.config.estimates_egomotion:
            self._estimator = EgomotionEstimator(camera, self.config.egomotion())
        if self._flow is not None:
            self._flow.set_camera(camera)
        size = (camera.width, camera.height)
        if self._camera is not None and size != (self._camera.width, self._camera.height):
            # What is held came from the other sensor.
            self.counters.discarded_events += self._buffer.clear()
        self._buffer.span_limit_ns = None
        self._span.reset()
        if self._camera is None or size != (self._camera.width, self._camera.height):
            self._aids.set_size(*size)
        self._camera = camera

    def push(self, packet: PacketLike | Events, estimate: bool = True) -> list[EgomotionEstimate]:
        """Takes the next packet, or the next events; returns the estimates that are now complete.

        Args:
            packet: what comes next.
            estimate: False: windows that are now complete are left out and counted. Who has fallen
                behind catches up so, and the stream stays whole.

        Raises:
            PacketError: the packet cannot be decoded, or does not fit the calibration. It is
                dropped and counted; the next one is taken as usual.
        """
        if isinstance(packet, Events):
            self._check_order(packet)
            return self._push_events(packet, estimate)
        decoded = self._decoder.decode(packet)
        if decoded.discontinuity is not None:
            self.break_stream(decoded.discontinuity)
        clock = self._clock_of(packet, decoded)
        first_ns = self._first_bytes_ns(packet, decoded)
        if first_ns is not None:
            clock.update(
                first_ns, stamp_to_ns(packet.header.stamp), provisional=not decoded.from_start
            )
        self.push_triggers(decoded.triggers)
        return self._push_events(decoded.events, estimate)

    def flush(self) -> list[EgomotionEstimate]:
        """Estimates the last, incomplete window, at the end of a stream."""
        window = self._buffer.flush()
        estimates = [] if window is None else [self._estimate(window)]
        if self._flow is not None:
            self._fields += self._flow.flush()
        return estimates

    def take_flow(self) -> list[FlowEstimate]:
        """The flow fields since the last call, where the pipeline estimates the flow itself.

        They are kept until then, so whoever asks for flow calls this after each push.
        """
        fields, self._fields = self._fields, []
        return fields

    def push_triggers(self, edges: Triggers) -> None:
        """Takes edges of the trigger input that did not come in packets, in the clock of the
        events; to be taken by take_triggers()."""
        self.counters.triggers += len(edges)
        for sensor_ns, p, channel in zip(edges.t, edges.p, edges.channel, strict=True):
            self.counters.dropped_triggers += len(self._triggers) == MAX_TRIGGERS
            robot_ns = self.to_robot(int(sensor_ns))
            self._triggers.append(Trigger(robot_ns, int(sensor_ns), int(p), int(channel)))

    def take_triggers(self) -> list[Trigger]:
        """The edges of the trigger input since the last call, in the order of their coming.

        The last MAX_TRIGGERS are kept until then; older ones are counted as dropped_triggers.
        """
        triggers = list(self._triggers)
        self._triggers.clear()
        return triggers

    @property
    def knows_clock(self) -> bool:
        """A packet has come that says how the robot's clock and that of the events differ."""
        return self._clock is not None

    def to_robot(self, time_ns: int) -> int:
        """A time of the events' clock on the robot's; the same where packets brought no clock."""
        return time_ns if self._clock is None else self._clock.to_robot(time_ns)

    def break_stream(self, reason: str) -> None:
        """Says that what comes next does not follow what came: the incomplete window is dropped."""
        self.last_discontinuity = reason
        self.counters.discontinuities += 1
        self.counters.discarded_events += self._buffer.clear()
        self._buffer.span_limit_ns = None
        self._span.reset()
        if self._estimator is not None:
            self._estimator.reset()
        if self._flow is not None:
            self._flow.break_stream()

    def push_depth(self, stamp_ns: int, depth: npt.NDArray[np.generic]) -> None:
        """Takes a depth image [height, width] of the event camera's pixels.

        Args:
            stamp_ns: on the robot's clock.
            depth: float32 m, NaN or 0 where unknown, or uint16 mm, 0 where unknown.

        Raises:
            EventBinningError: a type that is no depth, or a size that does not fit the camera.
        """
        self._aids.push_depth(stamp_ns, depth)

    def push_range(self, stamp_ns: int, range_m: float) -> None:
        """Takes a distance along the optical axis, m, at a time of the robot's clock."""
        self._aids.ranges.push(stamp_ns, range_m)

    def push_imu(self, stamp_ns: int, angular_velocity: npt.ArrayLike) -> None:
        """Takes an angular velocity [3], rad/s, camera frame, at a time of the robot's clock."""
        self._aids.gyro.push(stamp_ns, angular_velocity)

    def skip_packets(self, packets: int) -> None:
        """Says that the receiver dropped so many packets, unread, before the next one."""
        self._decoder.skip(packets)

    def compensated_image(self) -> npt.NDArray[np.float32] | None:
        """[height, width] motion-compensated image of the last window's events, or None."""
        return None if self._estimator is None else self._estimator.compensated_image()

    def uncompensated_image(self) -> npt.NDArray[np.float32] | None:
        """[height, width] image of the last window's events as they came, or None."""
        return None if self._estimator is None else self._estimator.uncompensated_image()

    def _clock_of(self, packet: PacketLike, decoded: DecodedPacket) -> StreamClock:
        """The stream's clock; it begins anew where the sensor's does."""
        if self._clock is None or packet.encoding not in (self._encoding, "trigger"):
            counters = self.counters.clock
            self._clock = StreamClock.for_encoding(packet.encoding, self.config.clock, counters)
            self._encoding, self._last_decoded_ns = packet.encoding, None
        if decoded.clock_reset:
            self._clock.reset()
            self._last_decoded_ns = None
        return self._clock

    def _first_bytes_ns(self, packet: PacketLike, decoded: DecodedPacket) -> int | None:
        """About when the sensor made the packet's first bytes, on its clock, and not later; None
        where the packet does not tell.

        In a silence a sensor sends nothing but its time: bytes that come long before an event.
        """
        times = [part.t for part in (decoded.events, decoded.triggers) if len(part)]
        if not times or packet.encoding != self._encoding:
            return None
        first_ns, last_ns = min(int(t[0]) for t in times), self._last_decoded_ns
        self._last_decoded_ns = max(int(t[-1]) for t in times)
        if last_ns is None or packet.encoding not in SENSOR_STREAMS:
            return first_ns
        return first_ns if first_ns - last_ns < _SILENCE_NS else last_ns

    def _push_events(self, events: Events, estimate: bool) -> list[EgomotionEstimate]:
        self._count(events)
        camera = self._camera
        size = (events.width, events.height)
        if camera is not None and size != (camera.width, camera.height):
            self.counters.uncalibrated_events += len(events)
            raise PacketError(
                f"events of a {events.width}x{events.height} sensor, but the calibration is for "
                f"{camera.width}x{camera.height}: use this camera's calibration"
            )
        try:
            events = self._load.apply(events)
        except PacketError:
            self.counters.uncalibrated_events += len(events)
            raise
        estimates = self._push_to_egomotion(events, estimate)
        if self._flow is not None:  # last, so that nothing waits for it
            offset_ns = 0 if self._clock is None else self._clock.offset_ns
            self._fields += self._flow.push(events, offset_ns, estimate)
        return estimates

    def _push_to_egomotion(self, events: Events, estimate: bool) -> list[EgomotionEstimate]:
        if not self.config.estimates_egomotion:
            return []
        if self._estimator is None:
            self.counters.uncalibrated_events += len(events)
            return []
        windows = self._buffer.push(events)
        if estimate:
            return [self._estimate(window) for window in windows]
        for window in windows:
            self.counters.skipped_windows += 1
            self.counters.skipped_events += window.fresh + window.skipped
        return []

    def _check_order(self, events: Events) -> None:
        if np.any(np.diff(events.t) < 0):
            raise PacketError("events out of order; expected times that do not decrease: sort them")
        last = self.counters.last_event_ns
        if len(events) and last is not None and events.t[0] < last:
            step_s = (last - int(events.t[0])) * 1e-9
            self.break_stream(f"time went back by {step_s:.6f} s")

    def _count(self, events: Events) -> None:
        if not len(events):
            return
        self.counters.events += len(events)
        counters, start, end = self.counters, int(events.t[0]), int(events.t[-1])
        if counters.first_event_ns is None:
            counters.first_event_ns = start
        last = counters.last_event_ns
        counters.duration_ns += end - (last if last is not None and last <= start else start)
        counters.last_event_ns = end

    def _estimate(self, window: Window) -> EgomotionEstimate:
        assert self._estimator is not None  # windows are gathered only with a camera
        t = window.events.t
        start_ns, end_ns = self.to_robot(int(t[0])), self.to_robot(int(t[-1]))
        # Where the estimator will set its stamp: the mean, as events are not spread evenly.
        stamp_ns = start_ns + window.events.mean_time_ns - int(t[0])
        depth = self._depth_at(stamp_ns, int(t[0]) - start_ns)
        gyro = self._aids.rotation_over(stamp_ns, start_ns, end_ns)
        estimate = self._estimator.estimate(
            window.events,
            depth,
            gyro,
        )
        self._buffer.span_limit_ns = self._span.next_ns(estimate)
        self.counters.windows += 1
        self.counters.window_events += window.fresh
        self.counters.skipped_events += window.skipped
        self.counters.used_events += round(window.fresh * estimate.used_share)
        fresh_share = window.fresh / max(1, len(window.events))
        self.counters.hot_pixel_events += round(fresh_share * estimate.hot_pixel_events)
        self.counters.depthless_events += round(fresh_share * estimate.depthless_events)
        self.counters.unaided_windows += self.config.imu != "off" and gyro is None
        self.counters.searches += estimate.searched
        self.counters.estimates[estimate.status] += 1
        estimate = dataclasses.replace(
            estimate,
            stamp_ns=self.to_robot(estimate.stamp_ns),
            window_start_ns=start_ns,
            window_end_ns=end_ns,
        )
        self._aids.follow(estimate, estimate.stamp_ns)
        if self._flow is not None:
            self._flow.imply(estimate, depth)
        return estimate

    def _depth_at(self, robot_ns: int, stream_from_robot_ns: int) -> Depth | None:
        """The scene's depth at a time of the robot's clock, its stamp on the stream's."""
        depth = self._aids.depth_at(robot_ns)
        if isinstance(depth, DepthImage):
            return DepthImage(depth.metres, depth.stamp_ns + stream_from_robot_ns)
        return depth


def warm_up(config: PipelineConfig, camera: Camera) -> None:
    """Compiles what the pipeline needs (seconds the first time, cached then).

    A live stream must not wait for the compiler, and a measurement must not count it.
    """
    decoder.warm_up()
    load_control.warm_up(config.load())
    if config.estimates_flow:
        from event_binning_grad import pipeline_flow

        pipeline_flow.warm_up(config)
    if not config.estimates_egomotion:
        return
    if config.depth != "none":
        depths.warm_up()
    sizes = [1000]
    if config.window_events == 0 or config.window_events >= PARALLEL_FROM:
        sizes.append(PARALLEL_FROM)
    rng = np.random.default_rng(0)
    for size in sizes:
        events = Events(
            np.linspace(0, 1e7, size).astype(np.int64),
            rng.integers(0, camera.width, size, dtype=np.uint16),
            rng.integers(0, camera.height, size, dtype=np.uint16),
            np.ones(size, np.uint8),
            camera.width,
            camera.height,
        )
        one_window = dataclasses.replace(
            config, estimate="egomotion", motion_model="rotation", depth="none", imu="off",
            window_events=size, window_ms=0.0, min_events=10, output_rate_hz=0.0, max_events=size,
        )  # fmt: skip
        Pipeline(one_window, camera).push(events)
