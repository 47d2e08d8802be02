"""Writes rosbag2 bags as a live robot would have recorded them, without ROS."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.events.bag_messages import (
    CAMERA_INFO_TOPIC,
    CAMERA_INFO_TYPE,
    DEPTH_TOPIC,
    EVENT_PACKET_TYPE,
    EVENTS_TOPIC,
    GROUND_TRUTH_TOPIC,
    IMAGE_TYPE,
    IMU_TOPIC,
    IMU_TYPE,
    MOVING_TOPIC,
    RANGE_TOPIC,
    RANGE_TYPE,
    TRUE_FLOW_TOPIC,
    TWIST_TYPE,
    depth_message,
    flow_message,
    imu_message,
    mask_message,
    range_message,
    to_header,
    to_message,
    typestore,
)
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.new_file import appearing
from event_binning_grad.events.types import (
    NS_PER_MS,
    NS_PER_S,
    Header,
    PacketLike,
    Stamp,
    stamp_to_ns,
)

CAMERA_INFO_PERIOD_NS = NS_PER_S // 10
# How far the ground truth reaches beyond the events.
MARGIN_NS = 100 * NS_PER_MS


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
        [H, W] m, NaN unknown) as 32FC1, (stamp_ns, m, NaN nothing met) and (stamp_ns, [3] rad/s,
        or [6] with the acceleration in m/s² behind it); to /event_camera/depth, range and imu,
        from 0.1 s before the events to 0.1 s after. Streamed like packets.
    flow, moving: the true flow (stamp_ns, float32 [H, W, 2] px/s, NaN unknown) as 32FC2 and the
        pixels of what moves by itself (stamp_ns, bool [H, W]) as 8UC1, 255 where so, in the same
        way; to /event_camera/ground_truth/flow and moving.
    The directory `path` appears only when it is complete. Raises RecordingError if it exists.
    """
    sensors = {
        DEPTH_TOPIC: depth_images,
        RANGE_TOPIC: ranges,
        IMU_TOPIC: imu,
        TRUE_FLOW_TOPIC: flow,
        MOVING_TOPIC: moving,
    }
    with appearing(Path(path)) as unfinished:
        return _write_bag(unfinished, packets, camera_info, ground_truth, sensors, frame_id)


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
            EVENTS_TOPIC, EVENT_PACKET_TYPE, typestore=store, offered_qos_profiles=[sensor_qos()]
        )
        companions: _Companions | None = None
        for packet, arrival_ns in _with_arrival(packets):
            if companions is None:
                start, frame = stamp_to_ns(packet.header.stamp), packet.header.frame_id
                frame = frame if frame_id is None else frame_id
                companions = _Companions(writer, camera_info, ground_truth, sensors, frame, start)
            time_ns = max(time_ns, arrival_ns)
            companions.write_until(time_ns)
            data = store.serialize_cdr(to_message(packet), EVENT_PACKET_TYPE)
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
        self._infos: CameraInfos | None = None
        if camera_info is not None:
            self._infos = CameraInfos(writer, camera_info, frame_id, start_ns)
        streams: list[Iterator[tuple[int, Any, Any]]] = []
        if ground_truth is not None:
            connection = writer.add_connection(
                GROUND_TRUTH_TOPIC, TWIST_TYPE, typestore=typestore()
            )
            streams.append(_twists(connection, ground_truth, frame_id, start_ns - MARGIN_NS))
        for topic, readings in sensors.items():
            if readings is not None:
                type_name, to_message = _SENSORS[topic]
                connection = writer.add_connection(topic, type_name, typestore=typestore())
                streams.append(
                    _sensor_messages(
                        connection, readings, to_message, frame_id, start_ns - MARGIN_NS
                    )
                )
        self._messages = heapq.merge(*streams, key=lambda message: message[0])
        self._next = next(self._messages, None)

    def write_until(self, time_ns: int) -> None:
        infos = () if self._infos is None else self._infos.due(time_ns)
        streams = infos, self._due(time_ns)
        for stamp, connection, message in heapq.merge(*streams, key=lambda message: message[0]):
            data = typestore().serialize_cdr(message, connection.msgtype)
            self._writer.write(connection, stamp, data)

    def _due(self, time_ns: int) -> Iterator[tuple[int, Any, Any]]:
        while self._next is not None and self._next[0] <= time_ns:
            yield self._next
            self._next = next(self._messages, None)


def _with_arrival(packets: Iterable[PacketLike]) -> Iterator[tuple[PacketLike, int]]:
    """Each packet with the robot's time of its last event, in ns."""
    decoder = PacketDecoder()
    for packet in packets:
        t = decoder.decode(packet).events.t
        yield packet, stamp_to_ns(packet.header.stamp) + (int(t[-1] - t[0]) if len(t) else 0)


class CameraInfos:
    """Messages of a calibration, each CAMERA_INFO_PERIOD_NS, on a topic of its own."""

    def __init__(self, writer: Any, info: Mapping[str, Any], frame_id: str, start_ns: int) -> None:
        self._connection = writer.add_connection(
            CAMERA_INFO_TOPIC, CAMERA_INFO_TYPE, typestore=typestore()
        )
        self._frame_id, self._next_ns = frame_id, start_ns
        k = np.asarray(info["k"], np.float64).reshape(9)
        self._fields = {
            "height": int(info["height"]),
            "width": int(info["width"]),
            "distortion_model": str(info["distortion_model"]),
            "d": np.asarray(info["d"], np.float64),
            "k": k,
            "r": np.eye(3).reshape(9),
            "p": np.insert(k, [3, 6, 9], 0.0),  # no rectification: K with a column of zeros
            "binning_x": 0,
            "binning_y": 0,
            "roi": typestore().types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
        }

    def due(self, time_ns: int) -> Iterator[tuple[int, Any, Any]]:
        """Time, connection and message of those until then. Where the clock stepped (by more than
        1 s since the last), they begin again at that time."""
        if abs(time_ns - self._next_ns) > NS_PER_S:
            self._next_ns = time_ns
        while self._next_ns <= time_ns:
            header = to_header(Header(Stamp.from_ns(self._next_ns), self._frame_id))
            message = typestore().types[CAMERA_INFO_TYPE](header=header, **self._fields)
            yield self._next_ns, self._connection, message
            self._next_ns += CAMERA_INFO_PERIOD_NS


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
            header=to_header(Header(Stamp.from_ns(time_ns), frame_id)),
            twist=twist(linear=vector(*map(float, linear)), angular=vector(*map(float, angular))),
        )
        yield time_ns, connection, message


def _sensor_messages(
    connection: Any,
    readings: Iterable[tuple[int, Any]],
    to_message: Callable[[Any, Any], Any],
    frame_id: str,
    start_ns: int,
) -> Iterator[tuple[int, Any, Any]]:
    for time_ns, value in readings:
        if time_ns < start_ns:
            continue
        header = to_header(Header(Stamp.from_ns(time_ns), frame_id))
        yield time_ns, connection, to_message(header, value)


# The message's type, and how it is made, by the topic.
_SENSORS: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    DEPTH_TOPIC: (IMAGE_TYPE, depth_message),
    RANGE_TOPIC: (RANGE_TYPE, range_message),
    IMU_TOPIC: (IMU_TYPE, imu_message),
    TRUE_FLOW_TOPIC: (IMAGE_TYPE, flow_message),
    MOVING_TOPIC: (IMAGE_TYPE, mask_message),
}


def sensor_qos() -> Any:
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
