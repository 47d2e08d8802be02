"""ROS bags: rosbag2 in sqlite3 and mcap, and ROS 1, read without ROS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import PacketError, RecordingError
from event_binning_grad.events.bag_files import (
    bag_files,
    guarded,
    is_ros1,
    opened,
)
from event_binning_grad.events.bag_messages import (
    ARRAY_TYPES,
    CAMERA_INFO_TYPE,
    EVENT_PACKET_TYPE,
    EVENT_TYPES,
    IMAGE_TYPE,
    IMU_TYPE,
    RANGE_TYPE,
    TWIST_TYPE,
    to_packet,
    typestore,
)
from event_binning_grad.events.companions import (
    SensorError,
    to_angular_velocity,
    to_depth,
    to_flow,
    to_mask,
    to_range,
)
from event_binning_grad.events.cut_bags import CutBag
from event_binning_grad.events.event_arrays import event_array_packet
from event_binning_grad.events.flow_truth import FlowTruths
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.types import EventPacket, stamp_to_ns


class RawMessage(NamedTuple):
    """A message as it lies in a bag: CDR bytes, to be published or parsed as they are."""

    topic: str
    type_name: str
    bag_time_ns: int
    data: bytes | memoryview


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
        self._files = bag_files(path)
        self._cut: dict[Path, CutBag] = {}
        self._left_out: dict[Path, str] = {}  # what is wrong with it, by file
        self._connections = self._scan_topics()
        self._types = {topic: each.msgtype for topic, each in self._connections.items()}
        self.topic: str = self._choose_topic(topic)

    @property
    def kind(self) -> str:
        """What kind of bag it is."""
        if self._is_ros1:
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
    def connections(self) -> dict[str, Any]:
        """What the bag says of each topic, as rosbags has it: msgdef, digest, ext."""
        return dict(self._connections)

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
                yield to_packet(content)

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
        if not self._is_ros1:
            return []
        known = typestore().fielddefs
        return [topic for topic, type_name in self._types.items() if type_name not in known]

    def unusable(self) -> dict[str, int]:
        """What packets() and the other sensors' iterators could not use, by reason, so far."""
        return {
            "unreadable_messages": self.unreadable_messages,
            "unusable_readings": self.unusable_readings,
        }

    def warnings(self) -> list[str]:
        """What is wrong with its files, a line each."""
        found = [f"{error}; the bag's other files are read" for error in self._left_out.values()]
        found += [cut.warning() for cut in self._cut.values()]
        for file in self._files:
            journal = file.with_name(f"{file.name}-wal")
            if journal.is_file() and journal.stat().st_size:
                found.append(
                    f"{journal} holds messages that were not written to {file.name}, and are not "
                    f"read: `sqlite3 {file.name} 'PRAGMA wal_checkpoint'` writes them"
                )
        return found

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
            return event_array_packet(message.data, seq, ros1=self._is_ros1)
        except PacketError:
            self.unreadable_messages += 1
            return None

    @cached_property
    def _is_ros1(self) -> bool:
        return is_ros1(self.path)

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
        if topic is None and found:
            raise RecordingError(
                f"{self.path} holds events on several topics, {', '.join(found)}: choose one of "
                "them (--topic)"
            )
        held = [f"{name} ({kind})" for name, kind in sorted(self._types.items())]
        holds = f"{self.path} holds {', '.join(held) or 'no messages at all'}"
        if topic is not None and found:
            raise RecordingError(
                f"{holds}, but no events on {topic}: choose {' or '.join(found)} (--topic)"
            )
        expected = " or ".join((EVENT_PACKET_TYPE, *ARRAY_TYPES))
        raise RecordingError(f"{holds}, expected a topic of {expected}")

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

    def _scan_topics(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for file in self._files:
            try:
                with opened(file) as reader:
                    found.update({each.topic: each for each in reader.connections})
            except RecordingError as error:
                # The last file of a robot that lost its power may hold nothing yet.
                self._left_out[file] = str(error)
                continue
            if isinstance(reader, CutBag):
                self._cut[file] = reader
        if self._left_out and not found:
            raise RecordingError(next(iter(self._left_out.values())))
        return found

    def _reader(self, file: Path) -> AbstractContextManager[Any]:
        # A file without an index is not searched for its topics again.
        return nullcontext(self._cut[file]) if file in self._cut else opened(file)

    def _messages(
        self, topics: Iterable[str], *, as_they_lie: bool = False
    ) -> Iterator[RawMessage]:
        wanted, convert = set(topics), None
        if self._is_ros1 and not as_they_lie:
            convert = typestore().ros1_to_cdr
        for file in self._files:
            if file in self._left_out:
                continue
            with self._reader(file) as reader:
                connections = [c for c in reader.connections if c.topic in wanted]
                if not connections:
                    continue
                for connection, time_ns, data in guarded(file, reader.messages(connections)):
                    if convert is not None:
                        try:
                            data = convert(data, connection.msgtype)
                        except Exception:  # rosbags raises anything on damaged bytes
                            self.unreadable_messages += 1
                            continue
                    yield RawMessage(connection.topic, connection.msgtype, time_ns, data)
