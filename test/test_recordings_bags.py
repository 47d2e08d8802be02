"""Bags of messages of single events: dvs_msgs, prophesee_event_msgs and dv_ros2_msgs."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from event_binning_grad.errors import PacketError, RecordingError
from event_binning_grad.events.bag_messages import ARRAY_TYPES
from event_binning_grad.events.bags import BagRecording
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.types import EventPacket, Events

SIZE = (346, 260)
START_NS = 1_700_000_000 * 10**9


def some_events(count: int) -> Events:
    rng = np.random.default_rng(count)
    t = START_NS + np.sort(rng.integers(0, 10**9, count))
    x, y = rng.integers(0, SIZE[0], count), rng.integers(0, SIZE[1], count)
    p = rng.integers(0, 2, count)
    return Events(
        t.astype(np.int64), x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8), *SIZE
    )


def shifted(events: Events, by_ns: np.int64) -> Events:
    return Events(events.t + by_ns, events.x, events.y, events.p, *SIZE)


def message(events: Events, seq: int, ros1: bool) -> bytes:
    """An EventArray as it lies in a bag, written by hand."""
    stamp, frame = divmod(int(events.t[0]), 10**9), b"camera"
    # CDR aligns each number by itself: x and y of all but the first event stand 2 bytes earlier.
    stride, back = (13, 0) if ros1 else (16, 2)
    body = np.zeros(stride * len(events) + 3, np.uint8)
    columns = ((0, "<u2", events.x), (2, "<u2", events.y), (4, "<u4", events.t // 10**9))
    for offset, dtype, values in (
        *columns, (8, "<u4", events.t % 10**9), (12, "u1", events.p),
    ):  # fmt: skip
        pieces = values.astype(dtype).view(np.uint8).reshape(len(events), -1)
        at = offset + stride * np.arange(len(events))
        at[1:] -= back if offset < 4 else 0
        for k in range(pieces.shape[1]):
            body[at + k] = pieces[:, k]
    data = body[: max(0, stride * (len(events) - 1) + 13)].tobytes()
    if ros1:
        head = struct.pack("<IIII", seq, *stamp, len(frame)) + frame
    else:
        head = b"\0\1\0\0" + struct.pack("<iII", *stamp, len(frame) + 1) + frame + b"\0"
        head += b"\0" * (-(len(head) - 4) % 4)
    return head + struct.pack("<III", SIZE[1], SIZE[0], len(events)) + data


def store_of(type_name: str, ros1: bool) -> Any:
    store: Any = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_HUMBLE)
    event = type_name.replace("EventArray", "Event")
    fields = "uint16 x\nuint16 y\nbuiltin_interfaces/Time ts\nbool polarity\n"
    store.register(get_types_from_msg(fields, event))
    name = event.replace("/msg/", "/")
    fields = f"std_msgs/Header header\nuint32 height\nuint32 width\n{name}[] events\n"
    store.register(get_types_from_msg(fields, type_name))
    return store


def write(path: Path, type_name: str, form: str, messages: list[tuple[int, bytes]]) -> Path:
    """A bag of these messages; form: "ros1", or the storage and perhaps how it is compressed."""
    store = store_of(type_name, form == "ros1")
    if form == "ros1":
        path = path.with_suffix(".bag")
        writer: Any = Ros1Writer(path)
    else:
        storage, _, mode = form.partition(" ")
        writer = Writer(path, version=8, storage_plugin=StoragePlugin[storage])
        if mode:
            writer.set_compression(CompressionMode[mode], CompressionFormat.ZSTD)
    with writer:
        topic = writer.add_connection("/dvs/events", type_name, typestore=store)
        for time_ns, data in messages:
            writer.write(topic, time_ns, data)
    return path


FORMS = ("ros1", "MCAP", "SQLITE3", "MCAP FILE", "SQLITE3 FILE", "SQLITE3 MESSAGE")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("type_name", ARRAY_TYPES)
def test_event_arrays_of_every_type_in_every_bag(tmp_path: Path, type_name: str, form: str):
    events = some_events(1000)
    ros1 = form == "ros1"
    parts = [events[:400], events[400:401], events[401:]]
    messages = [(int(e.t[0]), message(e, k, ros1)) for k, e in enumerate(parts)]
    messages.append((int(events.t[-1]) + 1, message(events[-1:], 3, ros1)))
    recording = open_recording(write(tmp_path / "bag", type_name, form, messages))
    assert isinstance(recording, BagRecording)
    assert recording.kind == ("ROS 1 bag" if ros1 else f"rosbag2 {form.split()[0].lower()}")
    assert recording.encoding == ("event_array_ros1" if ros1 else "event_array")
    assert (recording.width, recording.height, recording.topic) == (*SIZE, "/dvs/events")
    packets = list(recording.packets())
    assert [packet.seq for packet in packets] == [0, 1, 2, 3]
    assert {packet.header.frame_id for packet in packets} == {"camera"}
    decoder = PacketDecoder()
    found = Events.concatenate([decoder.decode(packet).events for packet in packets])
    for name in ("t", "x", "y", "p"):
        expected = getattr(events, name)
        assert np.array_equal(getattr(found, name), np.append(expected, expected[-1:]))
    assert recording.unusable() == {"unreadable_messages": 0, "unusable_readings": 0}


@pytest.mark.parametrize("form", ["ros1", "MCAP"])
def test_our_messages_are_those_of_ros(form: str):
    ros1 = form == "ros1"
    name, events = ARRAY_TYPES[0], some_events(7)
    store = store_of(name, ros1)
    read = store.deserialize_ros1 if ros1 else store.deserialize_cdr
    content = read(message(events, 5, ros1), name)
    assert (content.width, content.height, content.header.frame_id) == (*SIZE, "camera")
    rows = [(e.ts.sec * 10**9 + e.ts.nanosec, e.x, e.y, e.polarity) for e in content.events]
    columns = (getattr(events, column).tolist() for column in ("t", "x", "y", "p"))
    assert rows == list(zip(*columns, strict=True))


@pytest.mark.parametrize("form", ["ros1", "MCAP"])
def test_damaged_messages_are_counted(tmp_path: Path, form: str):
    whole = message(some_events(100), 0, form == "ros1")
    bad = [whole[:50], b"", whole[:10], bytes(len(whole)), b"\xff" * 80]
    messages = [(START_NS + k, data) for k, data in enumerate([whole, *bad, whole])]
    recording = BagRecording(write(tmp_path / "bag", ARRAY_TYPES[0], form, messages))
    assert len(list(recording.packets())) == 2
    assert recording.unusable()["unreadable_messages"] == len(bad)


@pytest.mark.parametrize("form", ["ros1", "MCAP", "SQLITE3"])
def test_damaged_bags_give_one_line_or_the_rest(tmp_path: Path, form: str):
    events = some_events(600)
    messages = [
        (int(events.t[k]), message(events[k : k + 50], k, form == "ros1"))
        for k in range(0, 600, 50)
    ]
    path = write(tmp_path / "whole", ARRAY_TYPES[1], form, messages)
    if path.is_dir():
        path = next(path.glob("*.mcap" if form == "MCAP" else "*.db3"))
    whole, rng, read = path.read_bytes(), np.random.default_rng(1), 0
    refused: list[str] = []
    damaged = tmp_path / f"damaged{path.suffix}"
    for k in range(120):
        data = bytearray(whole[: rng.integers(0, len(whole))] if k % 3 == 0 else whole)
        for at in rng.integers(0, max(1, len(data)), rng.integers(1, 15)) if data else ():
            data[at] = rng.integers(0, 256)
        damaged.write_bytes(data)
        decoder = PacketDecoder()
        try:
            for packet in open_recording(damaged).packets():
                assert isinstance(packet, EventPacket)
                try:
                    read += len(decoder.decode(packet).events)
                except PacketError:
                    continue
        except RecordingError as error:
            refused.append(str(error))
    assert len(refused) > 10
    assert not any("\n" in line for line in refused)
    assert read > 1000


def test_a_compression_that_is_not_known_is_one_line(tmp_path: Path):
    messages = [(START_NS, message(some_events(10), 0, False))]
    path = write(tmp_path / "bag", ARRAY_TYPES[0], "MCAP FILE", messages)
    metadata = path / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("zstd", "lz4"))
    with pytest.raises(RecordingError, match="cannot be read as a bag") as caught:
        open_recording(path)
    assert "\n" not in str(caught.value)


def test_packets_of_a_camera_are_preferred_to_single_events(tmp_path: Path):
    events = some_events(10)
    path = write(tmp_path / "bag", ARRAY_TYPES[0], "MCAP", [(START_NS, message(events, 0, False))])
    with pytest.raises(RecordingError, match="/dvs/events"):
        open_recording(path, "/another")
    assert open_recording(path, "/dvs/events").width == SIZE[0]


@pytest.mark.parametrize("form", ["ros1", "MCAP"])
def test_event_arrays_are_read_fast(tmp_path: Path, form: str):
    """20 Mev/s is asked of the whole way from the file to arrays; a tenth of it must be there on
    any machine, where objects for each event reach 0.15."""
    events, step = some_events(20_000), np.int64(10**9)
    messages = [
        (START_NS + k * 10**9, message(shifted(events, k * step), k, form == "ros1"))
        for k in range(100)
    ]
    path = write(tmp_path / "bag", ARRAY_TYPES[0], form, messages)
    recording, decoder = open_recording(path), PacketDecoder()
    assert isinstance(recording, BagRecording)
    decoder.decode(next(recording.packets()))  # compiled
    before_s, count, decoder = time.process_time(), 0, PacketDecoder()
    for packet in recording.packets():
        assert isinstance(packet, EventPacket)
        count += len(decoder.decode(packet).events)
    rate = count / (time.process_time() - before_s)
    assert count == 2_000_000
    assert rate > 2e6
