"""ROS bags: rosbag2 in sqlite3 and mcap, and ROS 1, read without ROS."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import count, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import PacketError, RecordingError
from event_binning_grad.events.companions import (
    SensorError,
    to_angular_velocity,
    to_depth,
    to_flow,
    to_mask,
    to_range,
)
from event_binning_grad.events.decoder import PacketDecoder, payload_bytes
from event_binning_grad.events.event_arrays import event_array_packet
from event_binning_grad.events.flow_truth import FlowTruths
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.types import (
    NS_PER_MS,
    NS_PER_S,
    EventPacket,
    Header,
    HeaderLike,
    PacketLike,
    Stamp,
    stamp_to_ns,
)

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore

EVENT_PACKET_TYPE = "event_camera_msgs/msg/EventPacket"
# The name before 2023, with the same fields.
EVENT_ARRAY_TYPE = "event_array_msgs/msg/EventArray"
EVENT_TYPES = (EVENT_PACKET_TYPE, EVENT_ARRAY_TYPE)
# Messages of single events.
ARRAY_TYPES = (
    "dvs_msgs/msg/EventArray",
    "prophesee_event_msgs/msg/EventArray",
    "dv_ros2_msgs/msg/EventArray",
)
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
TWIST_TYPE = "geometry_msgs/msg/TwistStamped"
IMAGE_TYPE = "sensor_msgs/msg/Image"
DEPTH_TYPE = IMAGE_TYPE
RANGE_TYPE = "sensor_msgs/msg/Range"
IMU_TYPE = "sensor_msgs/msg/Imu"
EVENT_PACKET_DEFINITION = """\
std_msgs/Header header
uint32 height
uint32 width
uint64 seq
uint64 time_base
string encoding
bool is_bigendian
uint8[] events
"""

EVENTS_TOPIC = "/event_camera/events"
CAMERA_INFO_TOPIC = "/event_camera/camera_info"
GROUND_TRUTH_TOPIC = "/event_camera/ground_truth/twist"
TRUE_FLOW_TOPIC = "/event_camera/ground_truth/flow"
MOVING_TOPIC = "/event_camera/ground_truth/moving"
DEPTH_TOPIC = "/event_camera/depth"
RANGE_TOPIC = "/event_camera/range"
IMU_TOPIC = "/event_camera/imu"
CAMERA_INFO_PERIOD_NS = NS_PER_S // 10
# How far the ground truth reaches beyond the events.
MARGIN_NS = 100 * NS_PER_MS
STORAGE_SUFFIXES = (".mcap", ".db3")


class RawMessage(NamedTuple):
    """A message as it lies in a bag: CDR bytes, to be published or parsed as they are."""

    topic: str
    type_name: str
    bag_time_ns: int
    data: bytes | memoryview


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """Message types by our own definitions.

    The definitions in a bag are not used: some hold IDL that rosbags cannot parse, and the types
    needed here are known.
    """
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    for name in EVENT_TYPES:
        store.register(get_types_from_msg(EVENT_PACKET_DEFINITION, name))
    return store


class BagRecording:
    """A bag of event packets: a rosbag2 directory, a bare .mcap or .db3, or a ROS 1 .bag.

    topic: the events' topic. Counted while reading: unreadable_messages (damaged ones, skipped),
        unusable_readings (of other sensors: nothing measured, or in an encoding unknown here).
    """

    def __init__(self, path: Path, topic: str | None = None) -> None:
        """Opens the bag; topic is needed only where it holds several event topics.

        Raises RecordingError if the bag cannot be read or holds no event packets.
        """
        self.path = path
        self.unreadable_messages = 0
        self.unusable_readings = 0
        self._files = _bag_files(path)
        self._types = self._scan_topics()
        self.topic: str = self._choose_topic(topic)

    @property
    def kind(self) -> str:
        """What kind of bag it is."""
        if _is_ros1(self.path):
            return "ROS 1 bag"
        names = [file.name for file in self._files]
        if self._files == [self.path] and self.path.is_dir():  # compressed
            names = [file.name for file in self.path.iterdir()]
        return "rosbag2 mcap" if any(".mcap" in name for name in names) else "rosbag2 sqlite3"

    @property
    def encoding(self) -> str:
        """Of the first packet; "" in a bag without packets."""
        return self._first_packet.encoding if self._first_packet else ""

    @property
    def topics(self) -> dict[str, str]:
        """Type name by topic."""
        return dict(self._types)

    @property
    def width(self) -> int | None:
        """Columns of the sensor, by the first packet; None in a bag without packets."""
        return self._first_packet.width if self._first_packet else None

    @property
    def height(self) -> int | None:
        """Rows of the sensor, by the first packet; None in a bag without packets."""
        return self._first_packet.height if self._first_packet else None

    def packets(self) -> Iterator[EventPacket]:
        """The event packets in the order of the bag; of messages of single events a packet each,
        whose events are a view of the message's bytes."""
        if self._types[self.topic] in ARRAY_TYPES:
            yield from self._array_packets()
            return
        for message in self._messages([self.topic]):
            content = self._content(message)
            if content is not None:
                yield _to_packet(content)

    def raw_messages(self, topics: Iterable[str] | None = None) -> Iterator[RawMessage]:
        """All messages (or those of some topics) as CDR bytes, in the order of the bag.

        Messages of a ROS 1 bag are converted, where their type is one of ROS 2's own or an event
        packet; topics of other types are left out, see `unconvertible_topics`.
        """
        wanted = self._types if topics is None else topics
        left_out = self.unconvertible_topics
        return self._messages([topic for topic in wanted if topic not in left_out])

    @property
    def unconvertible_topics(self) -> list[str]:
        """Topics of a ROS 1 bag that cannot be read as CDR, since their type is unknown here."""
        if not _is_ros1(self.path):
            return []
        known = typestore().fielddefs
        return [topic for topic, type_name in self._types.items() if type_name not in known]

    def unusable(self) -> dict[str, int]:
        """What packets() and the other sensors' iterators could not use, by reason, so far."""
        return {
            "unreadable_messages": self.unreadable_messages,
            "unusable_readings": self.unusable_readings,
        }

    def depth_images(self, topic: str = "depth") -> Iterator[tuple[int, NDArray[np.float32]]]:
        """stamp_ns and float32 [H, W] in m (NaN unknown) of an Image topic with this in its name;
        nothing if there is none."""
        return self._readings(IMAGE_TYPE, topic, to_depth)

    def ranges(self) -> Iterator[tuple[int, float]]:
        """stamp_ns and metres of a Range topic; nothing if there is none."""
        return self._readings(RANGE_TYPE, "", to_range)

    def imu(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """stamp_ns and angular velocity [3] in rad/s, in the IMU's own frame, of an Imu topic;
        nothing if there is none."""
        return self._readings(IMU_TYPE, "", to_angular_velocity)

    def true_flow(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """stamp_ns and float32 [H, W, 2] in px/s (NaN unknown) of an Image topic (32FC2) with
        "ground_truth" and "flow" in its name; nothing if there is none."""
        return self._readings(IMAGE_TYPE, ("ground_truth", "flow"), to_flow)

    def moving_masks(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """stamp_ns and bool [H, W], the pixels of what moves by itself, of an Image topic (8UC1,
        not 0) with "ground_truth" and "moving" in its name; nothing if there is none."""
        return self._readings(IMAGE_TYPE, ("ground_truth", "moving"), to_mask)

    def calibration(self) -> dict[str, Any] | None:
        """The first camera_info as fields of sensor_msgs/CameraInfo; None if there is none."""
        topic = self.companion(CAMERA_INFO_TYPE)
        for message in self._messages([topic] if topic else []):
            info = self._content(message)
            if info is not None:
                return {
                    "width": int(info.width),
                    "height": int(info.height),
                    "distortion_model": info.distortion_model,
                    "d": [float(value) for value in info.d],
                    "k": [float(value) for value in info.k],
                    # With these the pixels are not the sensor's: whoever cannot use it must know.
                    "binning_x": int(info.binning_x),
                    "binning_y": int(info.binning_y),
                    "roi": info.roi,
                }
        return None

    def flow_truth(self) -> FlowTruths | None:
        """Displacements over windows, as data sets give them, have no message: None; the flow at
        single times is `true_flow`."""
        return None

    def ground_truth(self) -> GroundTruth | None:
        """From a TwistStamped topic with "ground_truth" in its name; None if there is none."""
        topic = self.companion(TWIST_TYPE, "ground_truth")
        if topic is None:
            return None
        rows: dict[int, tuple[float, ...]] = {}
        for message in self._messages([topic]):
            content = self._content(message)
            if content is not None:
                w, v = content.twist.angular, content.twist.linear
                rows[stamp_to_ns(content.header.stamp)] = (w.x, w.y, w.z, v.x, v.y, v.z)
        if not rows:
            return None
        t_ns = np.array(sorted(rows), np.int64)
        values = np.array([rows[t] for t in sorted(rows)], np.float64).reshape(-1, 6)
        return GroundTruth(t_ns, values[:, :3], values[:, 3:], f"{self.path} {topic}")

    def _array_packets(self) -> Iterator[EventPacket]:
        for seq, message in enumerate(self._messages([self.topic], as_they_lie=True)):
            packet = self._array_packet(message, seq)
            if packet is not None:
                yield packet

    def _array_packet(self, message: RawMessage, seq: int) -> EventPacket | None:
        try:
            return event_array_packet(message.data, seq, ros1=_is_ros1(self.path))
        except PacketError:
            self.unreadable_messages += 1
            return None

    @cached_property
    def _first_packet(self) -> EventPacket | None:
        return next(self.packets(), None)

    def _choose_topic(self, topic: str | None) -> str:
        found = [name for name, kind in self._types.items() if kind in EVENT_TYPES]
        arrays = [name for name, kind in self._types.items() if kind in ARRAY_TYPES]
        if topic in arrays:
            return topic
        found = found or arrays
        if topic in found:
            return topic
        if topic is None and len(found) == 1:
            return found[0]
        if topic is not None or found:
            raise RecordingError(
                f"{self.path}: the events' topic is {topic}, expected one of "
                f"{', '.join(found) or '(none found)'}: choose it"
            )
        holds = ", ".join(sorted(set(self._types.values()))) or "no messages at all"
        expected = " or ".join((EVENT_PACKET_TYPE, *ARRAY_TYPES))
        raise RecordingError(f"{self.path} holds {holds}, expected {expected}")

    def companion(self, type_name: str, *parts: str) -> str | None:
        """The topic of this type, with these parts in its name, that is nearest to the events'
        topic, or None. Nearest is the one that shares most of its path.
        """

        def shared(topic: str) -> int:
            pairs = zip(topic.split("/"), self.topic.split("/"), strict=False)
            return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

        found = [
            name
            for name, kind in self._types.items()
            if kind == type_name and all(part in name for part in parts)
        ]
        return max(found, key=shared, default=None)

    def _readings(
        self, type_name: str, parts: str | tuple[str, ...], convert: Callable[[Any], Any]
    ) -> Iterator[tuple[int, Any]]:
        topic = self.companion(type_name, *((parts,) if isinstance(parts, str) else parts))
        for message in self._messages([topic] if topic else []):
            content = self._content(message)
            if content is None:
                continue
            try:
                value = convert(content)
            except SensorError:
                self.unusable_readings += 1
                continue
            yield stamp_to_ns(content.header.stamp), value

    def _content(self, message: RawMessage) -> Any:
        """The message's fields; None (counted) if it is damaged."""
        try:
            return typestore().deserialize_cdr(message.data, message.type_name)
        except Exception:  # rosbags raises anything on damaged bytes
            self.unreadable_messages += 1
            return None

    def _scan_topics(self) -> dict[str, str]:
        types: dict[str, str] = {}
        for file in self._files:
            with _opened(file) as reader:
                types.update({c.topic: c.msgtype for c in reader.connections})
        return types

    def _messages(
        self, topics: Iterable[str], *, as_they_lie: bool = False
    ) -> Iterator[RawMessage]:
        wanted, convert = set(topics), None
        if _is_ros1(self.path) and not as_they_lie:
            convert = typestore().ros1_to_cdr
        for file in self._files:
            with _opened(file) as reader:
                connections = [c for c in reader.connections if c.topic in wanted]
                if not connections:
                    continue
                for connection, time_ns, data in _guarded(file, reader.messages(connections)):
                    if convert is not None:
                        try:
                            data = convert(data, connection.msgtype)
                        except Exception:  # rosbags raises anything on damaged bytes
                            self.unreadable_messages += 1
                            continue
                    yield RawMessage(connection.topic, connection.msgtype, time_ns, data)


def write_bag(
    path: Path | str,
    packets: Iterable[PacketLike],
    camera_info: Mapping[str, Any] | None = None,
    ground_truth: GroundTruth | None = None,
    *,
    frame_id: str | None = None,
    depth_images: Iterable[tuple[int, NDArray[np.float32]]] | None = None,
    flow: Iterable[tuple[int, NDArray[np.float32]]] | None = None,
    moving: Iterable[tuple[int, NDArray[np.bool_]]] | None = None,
    ranges: Iterable[tuple[int, float]] | None = None,
    imu: Iterable[tuple[int, NDArray[np.float64]]] | None = None,
) -> int:
    """Writes a rosbag2 (mcap) as a live robot would have recorded it; returns the packet count.

    packets: go to /event_camera/events, at the time at which a live robot would have got them:
        that of the packet's last event. They are streamed, and never held together.
    camera_info: fields of sensor_msgs/CameraInfo (width, height, distortion_model, d, k), to
        /event_camera/camera_info at 10 Hz.
    ground_truth: to /event_camera/ground_truth/twist, from 0.1 s before the events to 0.1 s after.
    frame_id: of everything but the packets; the packets' own if None.
    depth_images, ranges, imu: what other sensors say, in the order of stamp_ns: (stamp_ns, float32
        [H, W] m, NaN unknown) as 32FC1, (stamp_ns, m, NaN nothing met) and (stamp_ns, [3] rad/s);
        to /event_camera/depth, range and imu, up to 0.1 s after the events. Streamed like packets.
    flow, moving: the true flow (stamp_ns, float32 [H, W, 2] px/s, NaN unknown) as 32FC2 and the
        pixels of what moves by itself (stamp_ns, bool [H, W]) as 8UC1, 255 where so, in the same
        way; to /event_camera/ground_truth/flow and moving.
    The directory `path` appears only when it is complete. Raises RecordingError if it exists.
    """
    path = Path(path)
    if path.exists():
        raise RecordingError(f"{path} exists already: choose another path or delete it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as workplace:
            unfinished = Path(workplace) / path.name
            sensors = {
                DEPTH_TOPIC: depth_images,
                RANGE_TOPIC: ranges,
                IMU_TOPIC: imu,
                TRUE_FLOW_TOPIC: flow,
                MOVING_TOPIC: moving,
            }
            written = _write_bag(unfinished, packets, camera_info, ground_truth, sensors, frame_id)
            unfinished.rename(path)
    except OSError as error:
        raise RecordingError(f"{path} cannot be written: {error.strerror}") from None
    return written


def _write_bag(
    path: Path,
    packets: Iterable[PacketLike],
    camera_info: Mapping[str, Any] | None,
    ground_truth: GroundTruth | None,
    sensors: Mapping[str, Iterable[tuple[int, Any]] | None],
    frame_id: str | None,
) -> int:
    from rosbags.rosbag2 import StoragePlugin, Writer

    store, written, time_ns = typestore(), 0, 0
    # Version 8 of the metadata is read by every ROS 2 since Humble.
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        events = writer.add_connection(
            EVENTS_TOPIC, EVENT_PACKET_TYPE, typestore=store, offered_qos_profiles=[_sensor_qos()]
        )
        companions: _Companions | None = None
        for packet, arrival_ns in _with_arrival(packets):
            if companions is None:
                start, frame = stamp_to_ns(packet.header.stamp), packet.header.frame_id
                frame = frame if frame_id is None else frame_id
                companions = _Companions(writer, camera_info, ground_truth, sensors, frame, start)
            time_ns = max(time_ns, arrival_ns)
            companions.write_until(time_ns)
            data = store.serialize_cdr(_to_message(packet), EVENT_PACKET_TYPE)
            writer.write(events, time_ns, data)
            written += 1
        if companions is not None:
            companions.write_until(time_ns + MARGIN_NS)
    return written


class _Companions:
    """Writes what belongs to the packets between them, in the order of time."""

    def __init__(
        self,
        writer: Any,
        camera_info: Mapping[str, Any] | None,
        ground_truth: GroundTruth | None,
        sensors: Mapping[str, Iterable[tuple[int, Any]] | None],
        frame_id: str,
        start_ns: int,
    ) -> None:
        self._writer = writer
        streams: list[Iterator[tuple[int, Any, Any]]] = []
        if camera_info is not None:
            connection = writer.add_connection(
                CAMERA_INFO_TOPIC, CAMERA_INFO_TYPE, typestore=typestore()
            )
            streams.append(_camera_infos(connection, camera_info, frame_id, start_ns))
        if ground_truth is not None:
            connection = writer.add_connection(
                GROUND_TRUTH_TOPIC, TWIST_TYPE, typestore=typestore()
            )
            streams.append(_twists(connection, ground_truth, frame_id, start_ns - MARGIN_NS))
        for topic, readings in sensors.items():
            if readings is not None:
                type_name, to_message = _SENSORS[topic]
                connection = writer.add_connection(topic, type_name, typestore=typestore())
                streams.append(_sensor_messages(connection, readings, to_message, frame_id))
        self._messages = heapq.merge(*streams, key=lambda message: message[0])
        self._next = next(self._messages, None)

    def write_until(self, time_ns: int) -> None:
        while self._next is not None and self._next[0] <= time_ns:
            stamp, connection, message = self._next
            data = typestore().serialize_cdr(message, connection.msgtype)
            self._writer.write(connection, stamp, data)
            self._next = next(self._messages, None)


def _with_arrival(packets: Iterable[PacketLike]) -> Iterator[tuple[PacketLike, int]]:
    """Each packet with the robot's time of its last event, in ns."""
    decoder = PacketDecoder()
    for packet in packets:
        t = decoder.decode(packet).events.t
        yield packet, stamp_to_ns(packet.header.stamp) + (int(t[-1] - t[0]) if len(t) else 0)


def _camera_infos(
    connection: Any, info: Mapping[str, Any], frame_id: str, start_ns: int
) -> Iterator[tuple[int, Any, Any]]:
    types = typestore().types
    region = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    k = np.asarray(info["k"], np.float64).reshape(9)
    fields = {
        "height": int(info["height"]),
        "width": int(info["width"]),
        "distortion_model": str(info["distortion_model"]),
        "d": np.asarray(info["d"], np.float64),
        "k": k,
        "r": np.eye(3).reshape(9),
        "p": np.insert(k, [3, 6, 9], 0.0),  # no rectification: K with a column of zeros
        "binning_x": 0,
        "binning_y": 0,
        "roi": region,
    }
    for time_ns in count(start_ns, CAMERA_INFO_PERIOD_NS):
        header = _to_header(Header(Stamp.from_ns(time_ns), frame_id))
        yield time_ns, connection, types[CAMERA_INFO_TYPE](header=header, **fields)


def _twists(
    connection: Any, truth: GroundTruth, frame_id: str, start_ns: int
) -> Iterator[tuple[int, Any, Any]]:
    types = typestore().types
    vector, twist = types["geometry_msgs/msg/Vector3"], types["geometry_msgs/msg/Twist"]
    for i in range(int(np.searchsorted(truth.t_ns, start_ns)), len(truth.t_ns)):
        time_ns = int(truth.t_ns[i])
        if time_ns < 0:
            continue
        linear = np.zeros(3) if truth.linear_velocity is None else truth.linear_velocity[i]
        angular = truth.angular_velocity[i]
        message = types[TWIST_TYPE](
            header=_to_header(Header(Stamp.from_ns(time_ns), frame_id)),
            twist=twist(linear=vector(*map(float, linear)), angular=vector(*map(float, angular))),
        )
        yield time_ns, connection, message


def _sensor_messages(
    connection: Any,
    readings: Iterable[tuple[int, Any]],
    to_message: Callable[[Any, Any], Any],
    frame_id: str,
) -> Iterator[tuple[int, Any, Any]]:
    for time_ns, value in readings:
        header = _to_header(Header(Stamp.from_ns(time_ns), frame_id))
        yield time_ns, connection, to_message(header, value)


def _image_message(header: Any, encoding: str, pixels: NDArray[Any]) -> Any:
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)
    step = data.size // height
    return typestore().types[IMAGE_TYPE](header, height, width, encoding, 0, step, data)


def _depth_message(header: Any, depth_m: NDArray[np.float32]) -> Any:
    return _image_message(header, "32FC1", depth_m.astype("<f4", copy=False))


def _flow_message(header: Any, flow_px_s: NDArray[np.float32]) -> Any:
    return _image_message(header, "32FC2", flow_px_s.astype("<f4", copy=False))


def _mask_message(header: Any, mask: NDArray[np.bool_]) -> Any:
    return _image_message(header, "8UC1", np.where(mask, np.uint8(255), np.uint8(0)))


def _range_message(header: Any, range_m: float) -> Any:
    # Infinite says that nothing was met (REP 117).
    measured = float(range_m) if np.isfinite(range_m) else float("inf")
    infrared, narrow_rad = 1, 0.01
    return typestore().types[RANGE_TYPE](
        header, infrared, narrow_rad, 0.0, float(np.finfo(np.float32).max), measured
    )


def _imu_message(header: Any, angular_velocity: NDArray[np.float64]) -> Any:
    types = typestore().types
    vector, quaternion = types["geometry_msgs/msg/Vector3"], types["geometry_msgs/msg/Quaternion"]
    unknown, not_held = np.zeros(9), np.concatenate([[-1.0], np.zeros(8)])
    return types[IMU_TYPE](
        header=header,
        orientation=quaternion(0.0, 0.0, 0.0, 1.0),
        orientation_covariance=not_held,
        angular_velocity=vector(*map(float, angular_velocity)),
        angular_velocity_covariance=unknown,
        linear_acceleration=vector(0.0, 0.0, 0.0),
        linear_acceleration_covariance=not_held,
    )


# The message's type, and how it is made, by the topic.
_SENSORS: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    DEPTH_TOPIC: (IMAGE_TYPE, _depth_message),
    RANGE_TOPIC: (RANGE_TYPE, _range_message),
    IMU_TOPIC: (IMU_TYPE, _imu_message),
    TRUE_FLOW_TOPIC: (IMAGE_TYPE, _flow_message),
    MOVING_TOPIC: (IMAGE_TYPE, _mask_message),
}


def _sensor_qos() -> Any:
    """What the camera drivers offer: best effort, volatile, the last 1000 packets."""
    from rosbags.interfaces import (
        Qos,
        QosDurability,
        QosHistory,
        QosLiveliness,
        QosReliability,
        QosTime,
    )

    forever = QosTime(9223372036, 854775807)
    return Qos(
        QosHistory.KEEP_LAST,
        1000,
        QosReliability.BEST_EFFORT,
        QosDurability.VOLATILE,
        forever,
        forever,
        QosLiveliness.AUTOMATIC,
        forever,
        False,
    )


def _to_header(header: HeaderLike) -> Any:
    types = typestore().types
    time = types["builtin_interfaces/msg/Time"](header.stamp.sec, header.stamp.nanosec)
    return types["std_msgs/msg/Header"](time, header.frame_id)


def _to_message(packet: PacketLike) -> Any:
    return typestore().types[EVENT_PACKET_TYPE](
        header=_to_header(packet.header),
        height=packet.height,
        width=packet.width,
        seq=packet.seq,
        time_base=packet.time_base,
        encoding=packet.encoding,
        is_bigendian=packet.is_bigendian,
        events=payload_bytes(packet.events),
    )


def _to_packet(message: Any) -> EventPacket:
    stamp = Stamp(message.header.stamp.sec, message.header.stamp.nanosec)
    return EventPacket(
        header=Header(stamp, message.header.frame_id),
        height=message.height,
        width=message.width,
        seq=message.seq,
        time_base=message.time_base,
        encoding=message.encoding,
        is_bigendian=message.is_bigendian,
        events=message.events,
    )


def _is_ros1(path: Path) -> bool:
    if path.suffix in (".bag", *STORAGE_SUFFIXES) or not path.is_file():
        return path.suffix == ".bag" and path.is_file()
    with path.open("rb") as file:
        return file.read(7) == b"#ROSBAG"


def _bag_files(path: Path) -> list[Path]:
    """What rosbags is to open, in order: the storage files, or the directory if compressed.

    The storage files are read one by one where that is possible, because metadata.yaml is wrong
    or incomplete in bags that exist (no storage id, no list of topics).
    """
    if path.is_file():
        return [path]
    info = _metadata(path)
    if info.get("compression_mode"):
        return [path]
    names = info.get("relative_file_paths") or []
    # Bags before version 4 list paths relative to the directory above.
    listed = [path / Path(str(name)).name for name in names]
    missing = [file.name for file in listed if not file.is_file()]
    if missing:
        raise RecordingError(f"{path} lacks {', '.join(missing)}, which its metadata.yaml lists")
    found = listed or [file for suffix in STORAGE_SUFFIXES for file in path.glob(f"*{suffix}")]
    if not found:
        raise RecordingError(f"{path} holds no {' or '.join(STORAGE_SUFFIXES)} file: no rosbag2")
    return listed or sorted(found, key=_natural_order)


def _metadata(path: Path) -> dict[str, Any]:
    """rosbag2_bagfile_information of metadata.yaml; empty if that cannot be read."""
    import yaml

    try:
        content = yaml.safe_load((path / "metadata.yaml").read_text())
        info = content["rosbag2_bagfile_information"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return {}
    return info if isinstance(info, dict) else {}


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """bag_2 before bag_10."""
    return [(int(number or 0), text) for text, number in re.findall(r"(\D*)(\d*)", path.name)]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The reader of rosbags for a file or directory, open."""
    from rosbags import rosbag1, rosbag2

    try:
        reader = (rosbag1 if _is_ros1(path) else rosbag2).Reader(path)
        reader.open()
    except Exception as error:  # rosbags raises anything on damaged files
        raise RecordingError(_unreadable(path, error)) from error
    try:
        yield reader
    finally:
        reader.close()


def _guarded(path: Path, messages: Iterator[Any]) -> Iterator[Any]:
    """The same messages; whatever reading raises becomes a RecordingError."""
    while True:
        try:
            message = next(messages)
        except StopIteration:
            return
        except Exception as error:  # rosbags raises anything on damaged files
            raise RecordingError(_unreadable(path, error)) from error
        yield message


def _unreadable(path: Path, error: Exception) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return f"{path} cannot be read as a bag, it is damaged or of another format: {reason}"
