"""From any recording to a rosbag2 or an npz, without losing an event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.bag_messages import (
    CAMERA_INFO_TYPE,
    EVENT_PACKET_TYPE,
    EVENT_TYPES,
    to_message,
    to_packet,
    typestore,
)
from event_binning_grad.events.bag_writer import (
    CameraInfos,
    sensor_qos,
    write_bag,
)
from event_binning_grad.events.bags import BagRecording, RawMessage
from event_binning_grad.events.ground_truth import MIN_SAMPLES, GroundTruth
from event_binning_grad.events.new_file import appearing
from event_binning_grad.events.npz import write_npz
from event_binning_grad.events.recordings import Recording
from event_binning_grad.events.repacking import (
    FRAME_ID,
    PacketRepacker,
    Repacked,
    Stretch,
    decoded_events,
    nothing_there,
    packets_and_edges,
    ros_packets,
)
from event_binning_grad.events.types import EventPacket, Events, stamp_to_ns

if TYPE_CHECKING:
    from event_binning_grad.geometry import Camera

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Converted:
    """What was written, in one line, a line for everything that the new format cannot hold, and the
    source's warnings."""

    counts: Repacked
    text: str
    left_out: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def convert(
    recording: Recording,
    out: Path | str,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    camera: Camera | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Writes a recording, or a stretch of it, to a new rosbag2 directory or an .npz file.

    In a bag, packets of a ROS encoding stay as they are, and so do all other messages of a source
    that is a bag; of a stretch, and from other sources, events are encoded anew as "mono", with
    their times (ns) and places.

    start_s, duration_s: after the first event.
    camera: a calibration to write instead of the recording's own.
    progress: gets how many events came, now and then.

    Raises:
        RecordingError: the recording cannot be read, holds no events, or `out` exists already or
            cannot be written.
        ConfigError: start_s or duration_s is not allowed.
    """
    out, stretch, counts = Path(out), Stretch(start_s, duration_s), Repacked()
    if out.exists():
        raise RecordingError(f"{out} exists already: choose another path or delete it")
    if recording.width is None:
        raise RecordingError(f"{recording.path} holds no events to convert")
    left_out: list[str] = []
    if out.suffix == ".npz":
        left_out = _to_npz(recording, out, stretch, counts, camera, progress)
    elif out.suffix == "":
        if isinstance(recording, BagRecording):
            left_out = _bag_to_bag(recording, out, stretch, counts, camera, progress)
        else:
            left_out = _arrays_to_bag(recording, out, stretch, counts, camera, progress)
    else:
        raise RecordingError(
            f"{out}: cannot write a {out.suffix} file; expected the name of a rosbag2 directory "
            "(without a suffix), or FILE.npz"
        )
    if counts.left_out_triggers:
        left_out.append(f"{counts.left_out_triggers:,} trigger edges")
    for reason, number in counts.rejected.items():
        left_out.append(f"{number:,} packets: {reason}")
    text = f"{counts.events:,} events"
    if counts.triggers:
        text += f" and {counts.triggers:,} trigger edges"
    if counts.packets:
        text += f" in {counts.packets:,} packets, encoding {counts.encoding}"
    return Converted(counts, text, tuple(left_out), tuple(recording.warnings()))


def _to_npz(
    recording: Recording,
    out: Path,
    stretch: Stretch,
    counts: Repacked,
    camera: Camera | None,
    progress: Progress | None,
) -> list[str]:
    events = decoded_events(_watched(packets_and_edges(recording), progress), stretch, counts)
    events = _some(events, recording, stretch, counts)
    info = recording.calibration() if camera is None else camera_info(camera)
    write_npz(out, events, info)
    if isinstance(recording, BagRecording):
        kept = {recording.topic}
        if info is not None and camera is None:
            kept.add(recording.companion(CAMERA_INFO_TYPE) or "")
        return [f"topic {topic}" for topic in recording.topics if topic not in kept]
    only = "an .npz holds events and calibration"
    held = {
        "ground truth": recording.ground_truth(),
        "true flow": recording.flow_truth(),
        "the IMU": inertial(recording),
    }
    left_out = [f"{name}: {only}" for name, content in held.items() if content is not None]
    return left_out + [f"{name}: {only}" for name in _never_written(recording)]


def _never_written(recording: Any) -> list[str]:
    """What a recording that is no bag holds beside its events, and neither format has room for."""
    read, depths = getattr(recording, "poses", None), getattr(recording, "has_depth", False)
    poses = ["the poses"] if read is not None and read() is not None else []
    return poses + (["the events' depths, the fourth column of five"] if depths else [])


def _arrays_to_bag(
    recording: Recording,
    out: Path,
    stretch: Stretch,
    counts: Repacked,
    camera: Camera | None,
    progress: Progress | None,
) -> list[str]:
    """A bag of what lies in a file that is none."""
    left_out = []
    packets = ros_packets(_watched(packets_and_edges(recording), progress), stretch, counts)
    info = camera_info(camera) if camera is not None else recording.calibration()
    if info is not None and info.get("rectify_map") is not None:
        left_out.append("the rectify map: camera_info holds the lens' own coefficients only")
    truth = recording.ground_truth()
    if truth is not None:
        truth = on_one_clock(truth)
        if truth.linear_velocity is None:
            left_out.append("linear velocity of the truth: not known")
    if recording.flow_truth() is not None:
        left_out.append("true flow: it is displacement over windows, for which there is no message")
    left_out += [
        f"{name}: a bag made here has no topic for them" for name in _never_written(recording)
    ]
    stamped = _some((packet for _, packet in packets), recording, stretch, counts)
    write_bag(out, stamped, info, truth, imu=inertial(recording), frame_id=FRAME_ID)
    return left_out


def camera_info(camera: Camera) -> dict[str, Any]:
    """A calibration as fields of sensor_msgs/CameraInfo."""
    return {
        "width": camera.width,
        "height": camera.height,
        "distortion_model": camera.distortion_model,
        "d": camera.d.tolist(),
        "k": camera.K.ravel().tolist(),
    }


def on_one_clock(truth: GroundTruth) -> GroundTruth:
    """The truth with both velocities at the same times, as one message has them."""
    if truth.linear_t_ns is None or truth.linear_velocity is None:
        return truth
    linear = truth.linear_at(truth.t_ns)
    assert linear is not None
    known = np.isfinite(linear).all(axis=1)
    if np.count_nonzero(known) < MIN_SAMPLES:
        return GroundTruth(truth.t_ns, truth.angular_velocity, None, truth.source)
    return GroundTruth(
        truth.t_ns[known], truth.angular_velocity[known], linear[known], truth.source
    )


def inertial(recording: Any) -> Iterator[tuple[int, NDArray[np.float64]]] | None:
    """An IMU's samples, where a recording that is no bag holds them: stamp_ns, and angular velocity
    (rad/s) and acceleration (m/s²) [6]."""
    read = getattr(recording, "inertial", None)
    return None if read is None else read()


def _some(
    parts: Iterable[Any], recording: Recording, stretch: Stretch, counts: Repacked
) -> Iterator[Any]:
    """The same parts; RecordingError where a stretch has none."""
    yield from parts
    _refuse_nothing(recording, stretch, counts)


def _watched(parts: Iterable[Any], progress: Progress | None) -> Iterator[Any]:
    """The same parts; says how many events (of packets: about how many) went by."""
    for part in parts:
        if progress is not None:
            progress(len(part) if isinstance(part, Events) else len(part.events) // 4)
        yield part


def _bag_to_bag(
    recording: BagRecording,
    out: Path,
    stretch: Stretch,
    counts: Repacked,
    camera: Camera | None,
    progress: Progress | None,
) -> list[str]:
    with appearing(out) as unfinished:
        left_out = _BagCopy(recording, stretch, counts, camera, progress).write(unfinished)
        _refuse_nothing(recording, stretch, counts)
        return left_out


def _refuse_nothing(recording: Recording, stretch: Stretch, counts: Repacked) -> None:
    if not counts.events and not stretch.is_whole:
        raise nothing_there(recording.path, stretch)


class _BagCopy:
    """Copies a bag, message by message, with its events in a ROS encoding."""

    def __init__(
        self,
        recording: BagRecording,
        stretch: Stretch,
        counts: Repacked,
        camera: Camera | None,
        progress: Progress | None,
    ) -> None:
        self._recording = recording
        self._stretch, self._counts = stretch, counts
        self._info = None if camera is None else camera_info(camera)
        self._progress = progress or (lambda events: None)
        self._told = 0  # of the progress
        self._left_out: list[str] = []

    def write(self, path: Path) -> list[str]:
        """Writes the new bag; returns a line for all that it does not hold."""
        from rosbags.rosbag2 import StoragePlugin, Writer

        store, topic = typestore(), self._recording.topic
        with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
            events = writer.add_connection(
                topic, EVENT_PACKET_TYPE, typestore=store, offered_qos_profiles=[sensor_qos()]
            )
            others = self._other_connections(writer)
            infos = None
            for time_ns, name, content in self._items(list(others)):
                if isinstance(content, EventPacket):
                    content = store.serialize_cdr(to_message(content), EVENT_PACKET_TYPE)
                if name != topic:
                    writer.write(others[name], time_ns, content)
                    continue
                if self._info is not None:
                    infos = infos or CameraInfos(writer, self._info, FRAME_ID, time_ns)
                    for info_ns, connection, message in infos.due(time_ns):
                        data = store.serialize_cdr(message, CAMERA_INFO_TYPE)
                        writer.write(connection, info_ns, data)
                writer.write(events, time_ns, content)
        return self._left_out

    def _other_connections(self, writer: Any) -> dict[str, Any]:
        """The new bag's connection by topic, of everything but the events."""
        recording, made = self._recording, {}
        unconvertible, sources = recording.unconvertible_topics, recording.connections
        for topic, type_name in recording.topics.items():
            if topic == recording.topic:
                continue
            if self._info is not None and type_name == CAMERA_INFO_TYPE:
                self._left_out.append(f"{topic}: the given calibration is written instead")
                continue
            definition = _definition(type_name, sources.get(topic))
            if topic in unconvertible or definition is None:
                self._left_out.append(f"{topic}: its type {type_name} is not known here")
                continue
            qos = getattr(sources[topic].ext, "offered_qos_profiles", ())
            made[topic] = writer.add_connection(
                topic, type_name, offered_qos_profiles=list(qos), **definition
            )
        return made

    def _items(
        self, others: list[str]
    ) -> Iterator[tuple[int, str, bytes | memoryview | EventPacket]]:
        """Time in the bag, topic and content of all that is to be written, in order."""
        recording, stretch = self._recording, self._stretch
        repacker = PacketRepacker(stretch, self._counts)
        first_ns: int | None = None
        for time_ns, item in self._source(others):
            if isinstance(item, RawMessage):
                # Those before the first events belong to a stretch that begins with them.
                since_ns = 0 if first_ns is None else time_ns - first_ns
                if stretch.start_ns <= since_ns < stretch.end_ns:
                    yield time_ns, item.topic, item.data
                continue
            packet, data = item
            first_ns = time_ns if first_ns is None else first_ns
            for _, made in repacker.take(packet):
                yield time_ns, recording.topic, data if made is packet and data else made
            self._progress(self._counts.events - self._told)
            self._told = self._counts.events
            if repacker.ended:
                return

    def _source(
        self, others: list[str]
    ) -> Iterator[tuple[int, RawMessage | tuple[EventPacket, bytes | memoryview | None]]]:
        """The bag's messages in its order, those of events as packets, with their bytes where
        these can be written as they are."""
        recording = self._recording
        if recording.topics[recording.topic] in EVENT_TYPES:
            for raw in recording.raw_messages([recording.topic, *others]):
                if raw.topic != recording.topic:
                    yield raw.bag_time_ns, raw
                    continue
                packet = _packet_of(raw)
                if packet is None:
                    self._counts.rejected["the message is damaged"] += 1
                else:
                    yield raw.bag_time_ns, (packet, raw.data)
            return
        # Messages of single events; the packets do not say when the bag has them.
        messages = recording.raw_messages(others)
        upcoming = next(messages, None)
        for packet in recording.packets():
            time_ns = stamp_to_ns(packet.header.stamp)
            while upcoming is not None and upcoming.bag_time_ns <= time_ns:
                yield upcoming.bag_time_ns, upcoming
                upcoming = next(messages, None)
            yield time_ns, (packet, None)
        while upcoming is not None:
            yield upcoming.bag_time_ns, upcoming
            upcoming = next(messages, None)


def _packet_of(raw: RawMessage) -> EventPacket | None:
    try:
        return to_packet(typestore().deserialize_cdr(raw.data, raw.type_name))
    except Exception:  # rosbags raises anything on damaged bytes
        return None


def _definition(type_name: str, source: Any) -> dict[str, Any] | None:
    """How the writer learns a type: known here, or by the definition in the bag; None: neither."""
    if type_name in typestore().fielddefs:
        return {"typestore": typestore()}
    text = source.msgdef.data
    if not text:
        return None
    if source.digest:
        return {"msgdef": text, "rihs01": source.digest}
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    try:
        types = get_types_from_msg(text, type_name)
        store.register({name: kind for name, kind in types.items() if name not in store.fielddefs})
    except Exception:  # rosbags raises anything on a definition that it cannot parse
        return None
    return {"typestore": store}
