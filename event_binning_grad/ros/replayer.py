"""What a replay publishes, and when."""

from __future__ import annotations

import csv
import heapq
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import rclpy
from rclpy.exceptions import InvalidTopicNameException
from rclpy.executors import ExternalShutdownException
from rclpy.publisher import Publisher
from rosgraph_msgs.msg import Clock

from event_binning_grad.errors import ConfigError, RecordingError
from event_binning_grad.events.bag_files import is_ros1
from event_binning_grad.events.bag_messages import (
    CAMERA_INFO_TOPIC,
    CAMERA_INFO_TYPE,
    DEPTH_TOPIC,
    EVENT_PACKET_TYPE,
    EVENT_TYPES,
    GROUND_TRUTH_TOPIC,
    IMAGE_TYPE,
    IMU_TOPIC,
    IMU_TYPE,
    RANGE_TOPIC,
    RANGE_TYPE,
    TWIST_TYPE,
    typestore,
)
from event_binning_grad.events.bags import BagRecording
from event_binning_grad.events.convert import inertial, on_one_clock
from event_binning_grad.events.event_arrays import event_array_packet
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.recordings import Recording
from event_binning_grad.events.repacking import (
    FRAME_ID,
    Stretch,
    nothing_there,
    packets_and_edges,
    ros_packets,
)
from event_binning_grad.events.types import NS_PER_MS, NS_PER_S, stamp_to_ns
from event_binning_grad.ros.message_types import message_class
from event_binning_grad.ros.messages import (
    to_camera_info,
    to_imu,
    to_packet,
    to_time,
    to_true_twist,
)
from event_binning_grad.ros.pause import PauseControl
from event_binning_grad.ros.qos import EVENTS_QOS, OUTPUT_DEPTH
from event_binning_grad.ros.replay import ReplayConfig, ReplayCounters
from event_binning_grad.sources.source import Measurement

# Of what a recording without ROS messages is made into.
CAMERA_INFO_PERIOD_NS = NS_PER_S

# Where the node's launch file expects other sensors, and how a bag's topic for it is known: by its
# type, and a part of its name.
_SENSORS = {
    DEPTH_TOPIC: (IMAGE_TYPE, "depth"),
    RANGE_TOPIC: (RANGE_TYPE, ""),
    IMU_TOPIC: (IMU_TYPE, ""),
}
# Each message on /clock wakes every node on simulated time, so there is one each 5 ms and not one
# a packet: messages are ahead of the clock by less than that.
TICK_NS = 5 * NS_PER_MS
# A publisher knows of a subscriber before the subscriber knows of it, and until then the
# subscriber takes nothing from it. Nothing tells when it does: so long no other one may come.
_SETTLE_S = 1.0
# The last packets are still on their way; with this process they would be gone.
_LINGER_S = 0.5
_LATE_S = 0.5
_PROGRESS_PERIOD_S = 0.2
_PAUSED_TICK_S = 0.05


class Message(NamedTuple):
    """What is to be published: CDR bytes, or a message object, at a time of the recording."""

    time_ns: int
    topic: str
    type_name: str
    content: Any


class Replayer:
    """One replay: its node, its pace and its log. A context manager.

    counters: filled in while it runs.
    """

    def __init__(
        self, recording: Recording, config: ReplayConfig, counters: ReplayCounters
    ) -> None:
        self._recording = recording
        self._config = config
        self._counters = counters
        self._node = rclpy.create_node("replay", start_parameter_services=False)
        self._warned = False
        self._publishers: dict[str, Publisher | None] = {}
        self._clock = self._node.create_publisher(Clock, "/clock", 10) if config.clock else None
        self._cleanup = ExitStack()
        self._cleanup.callback(self._node.destroy_node)
        self._control = PauseControl(self._node, config.pause)
        self._cleanup.callback(self._control.stop)
        self._log = self._open_log()
        self._progress = self._cleanup.enter_context(_Progress(config.progress))

    def __enter__(self) -> Replayer:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def run(self) -> None:
        """Publishes the recording, once or until interrupted.

        Raises:
            RecordingError: it cannot be read, or holds no events (in the stretch).
            ConfigError: the events' topic has a name that ROS does not allow.
            ExternalShutdownException: the node was told to end.
        """
        if self._recording.width is None:  # known by the first packet
            raise RecordingError(f"{self._recording.path} holds no event packets to publish")
        events_topic = self._config.events_topic
        try:
            events = self._publisher(events_topic, events_type(self._recording))
        except InvalidTopicNameException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"events topic {events_topic!r}: {reason}") from None
        assert events is not None  # its type is installed
        # All of them before anything is published, so that subscribers find them in time.
        for topic, type_name in recorded_topics(self._recording, events_topic).items():
            self._publisher(topic, type_name)
        calibration = first_camera_info(self._recording)
        self._wait_for_subscriber(events)
        self._control.start()
        while True:
            if calibration is not None:
                self._publish(calibration)
            self._play()
            self._warn()
            if not self._counters.packets:
                raise nothing_there(self._recording.path, self._config.stretch)
            if not self._config.loop:
                break
        if events.get_subscription_count():
            time.sleep(_LINGER_S)
        self._say_end()

    def _play(self) -> None:
        """Publishes the recording once."""
        pace: _Pace | None = None
        config = self._config
        for message in recorded_messages(self._recording, config.events_topic, config.stretch):
            pace = pace or _Pace(message.time_ns, config.rate, self._tick, self._control)
            late_s = pace.wait_until(message.time_ns)
            self._counters.largest_delay_s = max(self._counters.largest_delay_s, late_s)
            self._publish(message)
            self._progress.show((message.time_ns - pace.start_ns) / NS_PER_S, self._counters)

    def _tick(self, time_ns: int | None) -> None:
        if not self._node.context.ok():
            raise ExternalShutdownException
        if self._clock is not None and time_ns is not None:
            self._clock.publish(Clock(clock=to_time(time_ns)))

    def _publish(self, message: Message) -> None:
        publisher = self._publisher(message.topic, message.type_name)
        if publisher is None:
            return
        published_ns = time.monotonic_ns()
        publisher.publish(message.content)
        self._counters.messages += 1
        if message.topic == self._config.events_topic:
            content = message.content
            size = len(content) if isinstance(content, bytes) else len(content.events)
            self._counters.packets += 1
            self._counters.packet_bytes += size
            self._counters.unheard_packets += not publisher.get_subscription_count()
            if self._log is not None:
                self._log_packet(message, published_ns)

    def _publisher(self, topic: str, type_name: str) -> Publisher | None:
        """The publisher for a topic; None, and a line the first time, if its type is not there."""
        if topic not in self._publishers:
            self._publishers[topic] = self._make_publisher(topic, type_name)
        return self._publishers[topic]

    def _make_publisher(self, topic: str, type_name: str) -> Publisher | None:
        try:
            kind = message_class(type_name)
        except (ImportError, AttributeError):
            self._node.get_logger().warning(
                f"{topic} is left out: its type {type_name} is not installed here"
            )
            return None
        qos = EVENTS_QOS if topic == self._config.events_topic else OUTPUT_DEPTH
        return self._node.create_publisher(kind, topic, qos)

    def _wait_for_subscriber(self, events: Publisher) -> None:
        """Until somebody has subscribed, and nobody else has for a moment."""
        count, since_s = 0, time.monotonic()
        wait_s = self._config.wait_s
        while time.monotonic() - since_s < (_SETTLE_S if count else wait_s):
            if not self._node.context.ok():
                raise ExternalShutdownException
            time.sleep(0.02)
            before, count = count, events.get_subscription_count()
            if count != before:
                since_s = time.monotonic()
        if wait_s and not count:
            self._node.get_logger().warning(
                f"nobody has subscribed to {events.topic_name} within {wait_s:g} s: "
                "publishing all the same"
            )

    def _open_log(self) -> Any:
        path = self._config.publish_log
        if path is None:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = csv.writer(self._cleanup.enter_context(path.open("w", newline="")))
        rows.writerow(["seq", "published_ns", "stamp_ns", "recorded_ns"])
        return rows

    def _log_packet(self, message: Message, published_ns: int) -> None:
        packet: Any = message.content
        if isinstance(packet, bytes) and message.type_name != EVENT_PACKET_TYPE:
            packet = event_array_packet(packet, self._counters.packets - 1)
        elif isinstance(packet, bytes):
            packet = typestore().deserialize_cdr(packet, EVENT_PACKET_TYPE)
        stamp_ns = stamp_to_ns(packet.header.stamp)
        self._log.writerow([packet.seq, published_ns, stamp_ns, message.time_ns])

    def _warn(self) -> None:
        """Says once what is wrong with the recording."""
        for line in [] if self._warned else self._recording.warnings():
            self._node.get_logger().warning(line)
        self._warned = True

    def _say_end(self) -> None:
        counters = self._counters
        text = f"{counters.packets:,} packets, {counters.packet_bytes / 1e6:.1f} MB published"
        if counters.largest_delay_s > _LATE_S:
            text += f", at most {counters.largest_delay_s:.1f} s late: too fast for this machine"
        if counters.unheard_packets:
            topic = self._node.resolve_topic_name(self._config.events_topic)
            text += f"; {counters.unheard_packets:,} of them while nobody subscribed to {topic}"
        self._node.get_logger().info(text)


class _Pace:
    """Turns times of the recording into absolute deadlines of the monotonic clock.

    tick: called with the recording's time each TICK_NS, before the messages of that time, and now
        and then while it is paused, with None.
    """

    def __init__(
        self, start_ns: int, rate: float, tick: Callable[[int | None], None], control: PauseControl
    ) -> None:
        self.start_ns = start_ns
        self._rate = rate
        self._tick = tick
        self._control = control
        self._next_tick_ns = start_ns
        self._began_s = time.monotonic()

    def wait_until(self, time_ns: int) -> float:
        """Sleeps until it is this time of the recording; returns how late it is already, s."""
        while self._next_tick_ns <= time_ns:
            self._sleep_until(self._next_tick_ns)
            self._tick(self._next_tick_ns)
            self._next_tick_ns += TICK_NS
        return self._sleep_until(time_ns)

    def _sleep_until(self, time_ns: int) -> float:
        since_s = (time_ns - self.start_ns) / NS_PER_S / self._rate
        while True:
            paused_at_s = time.monotonic()
            while self._control.is_paused:
                self._control.wait(_PAUSED_TICK_S)
                self._tick(None)
            # Deadlines move by the pause; what was late before it stays so.
            if (pause_s := time.monotonic() - paused_at_s) > 1e-3:
                self._began_s += pause_s
            ahead_s = self._began_s + since_s - time.monotonic()
            if ahead_s <= 0:
                return -ahead_s
            time.sleep(min(ahead_s, _PAUSED_TICK_S))
            if not self._control.is_paused and ahead_s <= _PAUSED_TICK_S:
                return 0.0


class _Progress:
    """A line on a terminal that is written again and again; nothing elsewhere."""

    def __init__(self, wanted: bool) -> None:
        self._terminal = wanted and sys.stderr.isatty()
        self._next_s = 0.0
        self._written = False

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._written:
            print(file=sys.stderr)

    def show(self, elapsed_s: float, counters: ReplayCounters) -> None:
        now_s = time.monotonic()
        if not self._terminal or now_s < self._next_s:
            return
        self._next_s, self._written = now_s + _PROGRESS_PERIOD_S, True
        text = f"{elapsed_s:8.1f} s {counters.packets:10,} packets"
        text += f" {counters.packet_bytes / 1e6:8.1f} MB"
        print(f"\r{text}", end="", file=sys.stderr, flush=True)


def _is_installed(type_name: str) -> bool:
    try:
        message_class(type_name)
    except (ImportError, AttributeError):
        return False
    return True


def events_type(recording: Recording) -> str:
    """The type that the events are published as: their own where it is installed, else packets.

    Messages of single events go as they are to nodes that know them.
    """
    if isinstance(recording, BagRecording) and not is_ros1(recording.path):
        own = _current_type(recording.topics[recording.topic])
        if _is_installed(own):
            return own
    return EVENT_PACKET_TYPE


def recorded_topics(recording: Recording, events_topic: str) -> dict[str, str]:
    """Type by topic of what recorded_messages gives."""
    if isinstance(recording, BagRecording):
        targets = _targets(recording, events_topic)
        left_out = recording.unconvertible_topics
        return {
            targets.get(topic, topic): _current_type(type_name)
            for topic, type_name in recording.topics.items()
            if topic not in left_out and topic != recording.topic
        } | {events_topic: events_type(recording)}
    topics = {events_topic: EVENT_PACKET_TYPE}
    if recording.calibration() is not None:
        topics[CAMERA_INFO_TOPIC] = CAMERA_INFO_TYPE
    if recording.ground_truth() is not None:
        topics[GROUND_TRUTH_TOPIC] = TWIST_TYPE
    if inertial(recording) is not None:
        topics[IMU_TOPIC] = IMU_TYPE
    return topics


def recorded_messages(
    recording: Recording, events_topic: str, stretch: Stretch | None = None
) -> Iterator[Message]:
    """The messages of a recording, or of a stretch of it, in the order of time, on the topics
    where they are to go."""
    stretch = stretch or Stretch()
    if not isinstance(recording, BagRecording):
        return _encoded_messages(recording, events_topic, stretch)
    if recording.topics[recording.topic] in EVENT_TYPES or (
        events_type(recording) == recording.topics[recording.topic]
    ):
        return _bag_messages(recording, events_topic, stretch)
    return _repacked_messages(recording, events_topic, stretch)


def _bag_messages(
    recording: BagRecording, events_topic: str, stretch: Stretch
) -> Iterator[Message]:
    """A bag's messages as they are; of a stretch by the times at which the bag has them."""
    targets, start_ns = _targets(recording, events_topic), None
    for raw in recording.raw_messages():
        if raw.topic == recording.topic and start_ns is None:
            start_ns = raw.bag_time_ns
        since_ns = 0 if start_ns is None else raw.bag_time_ns - start_ns
        if since_ns >= stretch.end_ns:
            return
        if since_ns >= stretch.start_ns:
            topic = targets.get(raw.topic, raw.topic)
            kind = _current_type(raw.type_name)
            yield Message(raw.bag_time_ns, topic, kind, bytes(raw.data))


def _repacked_messages(
    recording: BagRecording, events_topic: str, stretch: Stretch
) -> Iterator[Message]:
    """A bag's messages, those of single events as event packets."""
    targets = _targets(recording, events_topic)
    others = [topic for topic in recording.topics if topic != recording.topic]
    messages = recording.raw_messages(others)
    upcoming = next(messages, None)
    for time_ns, packet in ros_packets(recording.packets(), stretch):
        while upcoming is not None and upcoming.bag_time_ns <= time_ns:
            if upcoming.bag_time_ns >= stamp_to_ns(packet.header.stamp) or stretch.is_whole:
                topic = targets.get(upcoming.topic, upcoming.topic)
                kind = _current_type(upcoming.type_name)
                yield Message(upcoming.bag_time_ns, topic, kind, bytes(upcoming.data))
            upcoming = next(messages, None)
        yield Message(time_ns, events_topic, EVENT_PACKET_TYPE, to_packet(packet))


def first_camera_info(recording: Recording) -> Message | None:
    """The calibration, to be published before everything else; None if there is none."""
    if isinstance(recording, BagRecording):
        topic = recording.companion(CAMERA_INFO_TYPE)
        for raw in recording.raw_messages([topic] if topic else []):
            return Message(raw.bag_time_ns, CAMERA_INFO_TOPIC, CAMERA_INFO_TYPE, bytes(raw.data))
        return None
    info = recording.calibration()
    if info is None:
        return None
    return Message(0, CAMERA_INFO_TOPIC, CAMERA_INFO_TYPE, to_camera_info(info, 0, FRAME_ID))


def _current_type(type_name: str) -> str:
    """The type to publish: the old name of the event packets had the same fields."""
    return EVENT_PACKET_TYPE if type_name in EVENT_TYPES else type_name


def _targets(recording: BagRecording, events_topic: str) -> dict[str, str]:
    """Where the events go, and what belongs to them: calibration, ground truth, other sensors."""
    targets = {recording.topic: events_topic}
    info = recording.companion(CAMERA_INFO_TYPE)
    truth = recording.companion(TWIST_TYPE, "ground_truth")
    targets |= {info: CAMERA_INFO_TOPIC} if info else {}
    targets |= {truth: GROUND_TRUTH_TOPIC} if truth else {}
    for target, (type_name, part) in _SENSORS.items():
        topic = recording.companion(type_name, part)
        targets |= {topic: target} if topic else {}
    return targets


def _encoded_messages(
    recording: Recording, events_topic: str, stretch: Stretch
) -> Iterator[Message]:
    """Packets, camera infos, true twists and IMU of a recording without ROS messages."""
    info, truth = recording.calibration(), recording.ground_truth()
    truth = None if truth is None else on_one_clock(truth)
    others: Iterator[Message] | None = None
    upcoming: Message | None = None
    for time_ns, packet in ros_packets(packets_and_edges(recording), stretch):
        if others is None:
            first_ns = stamp_to_ns(packet.header.stamp)
            streams = (
                _camera_infos(info, first_ns),
                _twists(truth, first_ns),
                _imu(inertial(recording), first_ns),
            )
            others = heapq.merge(*streams, key=lambda message: message.time_ns)
            upcoming = next(others, None)
        while upcoming is not None and upcoming.time_ns <= time_ns:
            yield upcoming
            upcoming = next(others, None)
        yield Message(time_ns, events_topic, EVENT_PACKET_TYPE, to_packet(packet))


def _imu(samples: Iterable[tuple[int, Any]] | None, start_ns: int) -> Iterator[Message]:
    for time_ns, motion in samples or ():
        if time_ns >= start_ns:
            acceleration = motion[3:] if np.isfinite(motion[3:]).all() else None
            content = to_imu(Measurement("imu", time_ns, motion[:3], acceleration), FRAME_ID)
            yield Message(time_ns, IMU_TOPIC, IMU_TYPE, content)


def _camera_infos(info: Any, start_ns: int) -> Iterator[Message]:
    time_ns = start_ns
    while info is not None:
        content = to_camera_info(info, time_ns, FRAME_ID)
        yield Message(time_ns, CAMERA_INFO_TOPIC, CAMERA_INFO_TYPE, content)
        time_ns += CAMERA_INFO_PERIOD_NS


def _twists(truth: GroundTruth | None, start_ns: int) -> Iterator[Message]:
    if truth is None:
        return
    for i in range(int(np.searchsorted(truth.t_ns, start_ns)), len(truth.t_ns)):
        time_ns = int(truth.t_ns[i])
        linear = None if truth.linear_velocity is None else truth.linear_velocity[i]
        content = to_true_twist(truth.angular_velocity[i], linear, time_ns, FRAME_ID)
        yield Message(time_ns, GROUND_TRUTH_TOPIC, TWIST_TYPE, content)
