"""`event-binning-grad convert`: what comes out is what went in."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_harness import some_events as mvsec_rows
from dataset_harness import (
    write_calibration,
    write_camchain,
    write_dsec,
    write_imu,
    write_mvsec,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_harness import Made, assert_same, decoded
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from event_binning_grad import cli
from event_binning_grad.errors import ConfigError, RecordingError
from event_binning_grad.events.bag_messages import (
    CAMERA_INFO_TOPIC,
    EVENT_PACKET_DEFINITION,
    EVENT_PACKET_TYPE,
    IMAGE_TYPE,
    IMU_TOPIC,
    depth_message,
    to_header,
    to_message,
    typestore,
)
from event_binning_grad.events.bag_writer import write_bag
from event_binning_grad.events.bags import BagRecording
from event_binning_grad.events.convert import camera_info, convert
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.encoder import ENCODERS, packetize
from event_binning_grad.events.npz import write_npz
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.repacking import (
    MAX_PACKET_EVENTS,
    ROS_ENCODINGS,
    Repacked,
    Stretch,
    decoded_events,
    ros_packets,
)
from event_binning_grad.events.types import EventPacket, Events, Header, Stamp, stamp_to_ns
from event_binning_grad.geometry import Camera

COLUMNS = ("t", "x", "y", "p")


def some_events(count: int = 3000, *, step_ns: int = 20_000, first_ns: int = 10**9) -> Events:
    rng = np.random.default_rng(count)
    t = first_ns + np.cumsum(rng.integers(0, 2 * step_ns // 1000, count)) * 1000
    x, y = rng.integers(0, 240, count), rng.integers(0, 180, count)
    p = rng.integers(0, 2, count)
    return Events(t, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8), 240, 180)


def encoded(events: Events, encoding: str, per_packet: int = 400) -> list[EventPacket]:
    """Packets that can be decoded alone, in any encoding."""
    packets = []
    for seq, k in enumerate(range(0, len(events), per_packet)):
        part = events[k : k + per_packet]
        time_base, data = ENCODERS[encoding](part)
        header = Header(Stamp.from_ns(int(part.t[0]) + 5_000), "camera")
        packets.append(EventPacket(header, 180, 240, seq, time_base, encoding, False, data))
    return packets


def edges_of(parts: Iterable[Any]) -> list[tuple[int, int, int]]:
    """Time (ns), direction and channel of all trigger edges; what holds events must be whole."""
    decoder, edges = PacketDecoder(), []
    for part in parts:
        if not isinstance(part, Events):
            found = decoder.decode(part).triggers
            edges += zip(found.t.tolist(), found.p.tolist(), found.channel.tolist(), strict=True)
    assert decoder.counters.clock_resets == decoder.counters.lost_packets == 0
    return edges


def in_chunks(events: Events, size: int = 700) -> list[Events]:
    return [events[k : k + size] for k in range(0, len(events), size)]


REAL = (
    "bags/test_events_1", "bags/test_events_1.bag", "bags/test_events_2/test_events_2_0.mcap",
    "bags/test_data_libcaer_rollover", "bags/test_data_mono_cd", "ecd_shapes_rotation",
    "ecd_slider_depth", "ecd_boxes_rotation_window",
)  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_recordings_lose_nothing(data_dir: Path, tmp_path: Path, name: str) -> None:
    source = open_recording(data_dir / name)
    expected = decoded(source.packets())
    done = convert(source, tmp_path / "bag")
    assert done.counts.events == len(expected)
    bag = open_recording(tmp_path / "bag")
    assert isinstance(bag, BagRecording)
    assert_same(decoded(bag.packets()), expected)
    # And on to arrays.
    convert(bag, tmp_path / "events.npz")
    arrays = np.load(tmp_path / "events.npz")
    for column in COLUMNS:
        np.testing.assert_array_equal(arrays[column], getattr(expected, column))
    assert (arrays["width"], arrays["height"]) == (expected.width, expected.height)


@pytest.mark.parametrize("name", REAL[:3])
def test_packets_of_a_bag_stay_as_they_are(data_dir: Path, tmp_path: Path, name: str) -> None:
    source = BagRecording(data_dir / name)
    convert(source, tmp_path / "bag")
    copy = BagRecording(tmp_path / "bag")
    assert copy.topic == source.topic
    pairs = list(zip(source.raw_messages(), copy.raw_messages(), strict=True))
    assert len(pairs) >= 100
    for before, after in pairs:
        assert (before.topic, before.bag_time_ns) == (after.topic, after.bag_time_ns)
        assert bytes(before.data) == bytes(after.data)


@pytest.mark.parametrize("name", ["bags/test_events_1", "ecd_shapes_rotation"])
def test_a_stretch_holds_exactly_its_events(data_dir: Path, tmp_path: Path, name: str) -> None:
    source = open_recording(data_dir / name)
    every = decoded(source.packets())
    done = convert(source, tmp_path / "bag", start_s=0.3, duration_s=0.25)
    since = every.t - every.t[0]
    inside = np.flatnonzero((since >= 300_000_000) & (since < 550_000_000))
    part = every[int(inside[0]) : int(inside[-1]) + 1]
    bag = BagRecording(tmp_path / "bag")
    assert_same(decoded(bag.packets()), part)
    assert done.counts.events == len(part)
    assert [packet.seq for packet in bag.packets()] == list(range(done.counts.packets))
    poses = ("the poses: a bag made here has no topic for them",)
    assert done.left_out == (poses if name.startswith("ecd") else ())
    assert edges_of(bag.packets()) == [
        edge
        for edge in edges_of(source.packets())
        if 300_000_000 <= edge[0] - int(every.t[0]) < 550_000_000
    ]
    assert done.counts.triggers == (500 if name == "bags/test_events_1" else 0)


@pytest.mark.parametrize("encoding", sorted(ENCODERS))
def test_packets_of_every_encoding_lose_nothing(tmp_path: Path, encoding: str) -> None:
    events = some_events()
    packets = encoded(events, encoding)
    expected = decoded(packets)
    done = convert(Made(*packets), tmp_path / "bag")
    copies = list(BagRecording(tmp_path / "bag").packets())
    assert_same(decoded(copies), expected)
    kept = encoding in ROS_ENCODINGS
    assert {copy.encoding for copy in copies} == {encoding if kept else "mono"}
    assert [copy.seq for copy in copies] == [packet.seq for packet in packets]
    stamps = [stamp_to_ns(packet.header.stamp) for packet in packets]
    assert [stamp_to_ns(copy.header.stamp) for copy in copies] == stamps
    assert done.counts.encoding == copies[0].encoding


def test_times_below_a_microsecond_are_kept(tmp_path: Path) -> None:
    events = some_events()
    events = Events(
        np.sort(events.t + np.arange(len(events.t)) % 997), events.x, events.y, events.p, 240, 180
    )
    convert(Made(*in_chunks(events)), tmp_path / "bag")
    bag = BagRecording(tmp_path / "bag")
    assert_same(decoded(bag.packets()), events)
    for packet in bag.packets():
        assert stamp_to_ns(packet.header.stamp) == packet.time_base


def test_gaps_in_seq_stay_gaps() -> None:
    packets = encoded(some_events(), "dv")
    del packets[3], packets[1]
    found = [packet.seq for _, packet in ros_packets(packets)]
    assert found == [0, 2, 4, 5, 6, 7]


def test_a_clock_that_was_set_back_stays_so() -> None:
    events = some_events(800)
    again = Events(events.t - 10**8, events.x, events.y, events.p, 240, 180)
    packets = encoded(events, "event_array", 400) + encoded(again, "event_array", 400)
    packets = [
        EventPacket(p.header, 180, 240, k, 0, p.encoding, False, p.events)
        for k, p in enumerate(packets)
    ]
    copies = [packet for _, packet in ros_packets(packets)]
    assert_same(decoded(copies), Events.concatenate([events, again]))


def test_what_cannot_be_decoded_is_counted() -> None:
    packets = encoded(some_events(), "dv")
    bad = packets[2]
    packets[2] = EventPacket(bad.header, 180, 240, 2, 0, "dv", False, bad.events[:-3])
    counts = Repacked()
    copies = list(ros_packets(packets, None, counts))
    assert counts.rejected.total() == 1
    assert counts.events == 2600
    assert len(copies) == 7


def test_large_packets_are_cut() -> None:
    events = some_events(120_000, step_ns=1000)
    (packet,) = encoded(events, "event_array", len(events))
    copies = [packet for _, packet in ros_packets([packet])]
    assert max(len(copy.events) // 8 for copy in copies) == MAX_PACKET_EVENTS
    assert_same(decoded(copies), events)
    few = events[:10]
    sparse = Events(np.arange(10) * 10**9, few.x, few.y, few.p, 240, 180)
    (packet,) = encoded(sparse, "event_array", 10)
    assert_same(decoded([copy for _, copy in ros_packets([packet])]), sparse)


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(st.integers(0, 30_000_000), min_size=1, max_size=80),
    size=st.integers(1, 80),
    start_ms=st.integers(0, 300),
    duration_ms=st.integers(1, 600),
    as_packets=st.booleans(),
)
def test_any_stretch_of_any_stream(
    steps: list[int], size: int, start_ms: int, duration_ms: int, as_packets: bool
) -> None:
    t = 10**9 + np.cumsum(np.array(steps, np.int64)) * 1000 // 1000
    n = np.arange(len(t))
    events = Events(
        t, (n % 240).astype(np.uint16), (n % 180).astype(np.uint16), (n % 2).astype(np.uint8),
        240, 180,
    )  # fmt: skip
    parts: list[Any] = (
        encoded(events, "event_array", size) if as_packets else in_chunks(events, size)
    )
    stretch = Stretch(start_ms / 1000, duration_ms / 1000)
    since = t - t[0]
    inside = (since >= start_ms * 10**6) & (since < (start_ms + duration_ms) * 10**6)
    for copies in (
        [packet for _, packet in ros_packets(parts, stretch)],
        [part.copy() for part in decoded_events(parts, stretch)],
    ):
        if not inside.any():
            assert copies == []
            continue
        found = decoded(copies)
        np.testing.assert_array_equal(found.t, t[inside])
        np.testing.assert_array_equal(found.x, events.x[inside])


def test_truth_calibration_and_gyroscope_come_along(data_dir: Path, tmp_path: Path) -> None:
    source = open_recording(data_dir / "ecd_shapes_rotation")
    convert(source, tmp_path / "bag")
    bag = BagRecording(tmp_path / "bag")
    before, after = source.calibration(), bag.calibration()
    assert before is not None
    assert after is not None
    assert after["k"] == before["k"]
    assert after["d"] == before["d"]
    truth, copy = source.ground_truth(), bag.ground_truth()
    assert truth is not None
    assert copy is not None
    times = np.linspace(0.1, 1.3, 50) * 1e9
    np.testing.assert_allclose(copy.at(times), truth.at(times), atol=1e-9)
    linear, expected = copy.linear_at(times), truth.linear_at(times)
    assert linear is not None
    assert expected is not None
    np.testing.assert_allclose(linear, expected, atol=2e-3)
    samples = dict(bag.imu())
    assert len(samples) > 1400
    gyro = source.gyro()  # type: ignore[attr-defined]
    for k in (200, 700, 1200):
        np.testing.assert_array_equal(samples[int(gyro.t_ns[k])], gyro.angular_velocity[k])


def motions(bag: BagRecording) -> list[list[float]]:
    """Rates and accelerations of a bag's IMU, as the messages have them."""
    store: Any = typestore()
    rows = []
    for raw in bag.raw_messages([IMU_TOPIC]):
        message = store.deserialize_cdr(raw.data, raw.type_name)
        assert message.linear_acceleration_covariance[0] == 0
        vectors = message.angular_velocity, message.linear_acceleration
        rows.append([value for v in vectors for value in (v.x, v.y, v.z)])
    return rows


def test_the_imu_keeps_its_acceleration(data_dir: Path, tmp_path: Path) -> None:
    source = open_recording(data_dir / "ecd_shapes_rotation")
    convert(source, tmp_path / "bag", start_s=0.5, duration_s=0.2)
    bag = BagRecording(tmp_path / "bag")
    events = decoded(bag.packets())
    rows = np.loadtxt(data_dir / "ecd_shapes_rotation" / "imu.txt", max_rows=2000)
    t_ns = np.rint(rows[:, 0] * 1e9).astype(np.int64)
    near = (t_ns >= events.t[0] - 10**8) & (t_ns <= events.t[-1] + 10**8)  # 0.1 s more each way
    assert [stamp for stamp, _ in bag.imu()] == t_ns[near].tolist()
    np.testing.assert_array_equal(motions(bag), rows[near][:, [4, 5, 6, 1, 2, 3]])
    assert np.count_nonzero(near) > 350


def test_edges_and_imu_of_an_aedat4_file_are_kept(tmp_path: Path) -> None:
    dv = pytest.importorskip("dv_processing", reason="dv-processing is not installed")
    path, start_us = tmp_path / "made.aedat4", 1_700_000_000_000_000
    kind = dv.io.MonoCameraWriter.DVSConfig("cam", (240, 180), dv.CompressionType.NONE)
    writer = dv.io.MonoCameraWriter(str(path), kind)
    rising, falling = (
        getattr(dv.TriggerType, f"EXTERNAL_SIGNAL_{way}_EDGE") for way in ("RISING", "FALLING")
    )
    for k in range(20):
        store = dv.EventStore()
        for i in range(100):
            store.push_back(start_us + 10_000 * k + 100 * i, i, k, True)
        writer.writeEvents(store)
        edge = dv.Trigger(start_us + 10_000 * k + 5_000, falling if k % 2 else rising)
        writer.writeTrigger(edge)
        writer.writeImu(dv.IMU(start_us + 10_000 * k, 25.0, 0.0, 1.0, 0.0, 180.0, 0.0, k, 0, 0, 0))
    del writer
    edges = [((start_us + 10_000 * k + 5_000) * 1000, 1 - k % 2, 0) for k in range(20)]
    for name, start_s, duration_s, kept in (
        ("whole", 0.0, None, edges), ("part", 0.05, 0.06, edges[5:11]),
    ):  # fmt: skip
        done = convert(
            open_recording(path), tmp_path / name, start_s=start_s, duration_s=duration_s
        )
        bag = BagRecording(tmp_path / name)
        assert done.left_out == ()
        assert done.counts.triggers == len(kept)
        assert done.counts.encoding == "mono"
        assert edges_of(bag.packets()) == kept
        packets = list(bag.packets())
        assert [packet.seq for packet in packets] == list(range(len(packets)))
        assert len(decoded(packets)) == 100 * len(kept)
        times = [raw.bag_time_ns for raw in bag.raw_messages()]
        assert times == sorted(times)
        for row in motions(bag):
            np.testing.assert_allclose(row[:2] + row[3:], [np.pi, 0.0, 0.0, 9.80665, 0.0])
    assert len(motions(BagRecording(tmp_path / "whole"))) == 20
    done = convert(open_recording(path), tmp_path / "arrays.npz")
    assert "20 trigger edges" in done.left_out


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    """And nothing else: the calibration is in the npz."""
    folder = tmp_path / "text"
    folder.mkdir()
    rows = "".join(f"{k * 1e-4:.4f} {k % 9} {k % 7} 1.5 {k % 2}\n" for k in range(100))
    (folder / "events.txt").write_text(rows)
    (folder / "calib.txt").write_text("50 50 32 24 0 0 0 0 0\n64 48\n")
    poses = "".join(f"{k * 1e-2:.2f} 0 0 0 0 0 0 1\n" for k in range(9))
    (folder / "groundtruth.txt").write_text(poses)
    never = ["the poses", "the events' depths, the fourth column of five"]
    done = convert(open_recording(folder), tmp_path / "bag")
    assert done.left_out == tuple(
        f"{name}: a bag made here has no topic for them" for name in never
    )
    # Its first packet has a stamp, though it begins at 0, and its events keep their times.
    bag = BagRecording(tmp_path / "bag")
    assert [stamp_to_ns(packet.header.stamp) for packet in bag.packets()][:2] == [1, 4_000_000]
    assert decoded(bag.packets()).t[0] == 0
    done = convert(open_recording(folder), tmp_path / "a.npz")
    only = "an .npz holds events and calibration"
    assert done.left_out == tuple(f"{name}: {only}" for name in ["ground truth", *never])
    done = convert(bag, tmp_path / "b.npz")
    assert done.left_out == ("topic /event_camera/ground_truth/twist",)
    assert (open_recording(tmp_path / "b.npz").calibration() or {})["k"][0] == 50


def test_events_of_one_of_two_topics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are chosen by --topic; else one line says which there are."""
    path = tmp_path / "two"
    events = {"/left/events": some_events(2000), "/right/events": some_events(3000)}
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic, part in events.items():
            connection = writer.add_connection(topic, EVENT_PACKET_TYPE, typestore=typestore())
            for packet in packetize(part):
                data = typestore().serialize_cdr(to_message(packet), EVENT_PACKET_TYPE)
                writer.write(connection, stamp_to_ns(packet.header.stamp), data)
    calibration = tmp_path / "calib.txt"
    calibration.write_text("200 200 120 90 0 0 0 0 0\n")
    for command in (["info"], ["convert", tmp_path / "none"]):
        arguments = [str(a) for a in (command[0], path, *command[1:])]
        assert cli.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "/left/events, /right/events: choose one of them (--topic)" in line
        assert cli.main([*arguments, "--topic", "/middle"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"/left/events ({EVENT_PACKET_TYPE}), /right/events" in line
        assert "no events on /middle: choose /left/events or /right/events" in line
    for topic, part in events.items():
        assert cli.main(["info", str(path), "--topic", topic, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["events"] == len(part)
        out = tmp_path / topic.split("/")[1]
        arguments = ["convert", path, out, "--topic", topic, "--calib", calibration]
        assert cli.main([str(a) for a in arguments]) == 0
        bag = BagRecording(out, topic)
        assert_same(decoded(bag.packets()), part)
        assert set(bag.topics) == {*events, CAMERA_INFO_TOPIC}  # the other one is kept
        capsys.readouterr()


def mvsec(folder: Path) -> Path:
    path = write_mvsec(folder, mvsec_rows(20_000))
    seconds = np.arange(0.0, 0.2, 0.001)
    rate = np.stack([np.sin(seconds), np.cos(seconds), seconds], axis=1)
    write_imu(path, seconds, rate)
    write_camchain(folder / "camchain-imucam-indoor_flying.yaml")
    return folder


def dsec(folder: Path) -> Path:
    write_dsec(folder)
    write_calibration(folder, None)
    return folder


@pytest.mark.parametrize("write", [mvsec, dsec])
def test_data_sets_lose_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[[Path], Path]
) -> None:
    """From HDF5 to a bag and to arrays, and from these to a bag again."""
    source = write(tmp_path / "sequence")
    events = decoded(open_recording(source).packets())
    assert len(events) == (20_000 if write is mvsec else 5_000)
    places = [source, tmp_path / "bag", tmp_path / "a.npz", tmp_path / "again"]
    for before, after in pairwise(places):
        assert cli.main(["convert", str(before), str(after)]) == 0
    capsys.readouterr()
    summaries = []
    for place in places:
        assert_same(decoded(open_recording(place).packets()), events)
        assert cli.main(["info", str(place), "--json"]) == 0
        summaries.append(json.loads(capsys.readouterr().out))
    info = open_recording(source).calibration()
    assert info is not None
    for place, found in zip(places, summaries, strict=True):
        for name in ("events", "on_events", "duration_s", "first_event_ns", "last_event_ns"):
            assert found[name] == summaries[0][name], name
        copy = open_recording(place).calibration()
        assert copy is not None
        for name in ("width", "height", "distortion_model", "k", "d"):
            assert copy[name] == info[name], name


def test_mvsec_keeps_its_imu_and_its_truth(tmp_path: Path) -> None:
    source: Any = open_recording(mvsec(tmp_path / "sequence"))
    convert(source, tmp_path / "bag")
    bag = BagRecording(tmp_path / "bag")
    t_ns, motion = zip(*source.inertial(), strict=True)
    assert [stamp for stamp, _ in bag.imu()] == list(t_ns)
    np.testing.assert_array_equal(motions(bag), motion)
    assert motion[0][3] == 9.8
    truth, copy = source.ground_truth(), bag.ground_truth()
    assert copy is not None
    np.testing.assert_array_equal(copy.t_ns, truth.t_ns)
    np.testing.assert_array_equal(copy.angular_velocity, truth.angular_velocity)


@pytest.fixture
def ros1_bag(tmp_path: Path) -> Path:
    """Events and what a robot of old recorded beside them, one type unknown here."""
    path = tmp_path / "robot.bag"
    store: Any = get_typestore(Stores.ROS1_NOETIC)
    store.register(get_types_from_msg(EVENT_PACKET_DEFINITION, EVENT_PACKET_TYPE))
    store.register(get_types_from_msg("float64 volts\n", "robot_msgs/msg/Battery"))
    types = store.types
    time, header = types["builtin_interfaces/msg/Time"], types["std_msgs/msg/Header"]
    with Ros1Writer(path) as writer:
        names = {
            "/camera/events": EVENT_PACKET_TYPE,
            "/chatter": "std_msgs/msg/String",
            "/battery": "robot_msgs/msg/Battery",
        }
        made = {
            topic: writer.add_connection(topic, name, typestore=store)
            for topic, name in names.items()
        }
        for k, packet in enumerate(packetize(some_events())):
            stamp = packet.header.stamp
            message = types[EVENT_PACKET_TYPE](
                header(k, time(stamp.sec, stamp.nanosec), "camera"), 180, 240, packet.seq, 0,
                "evt3", False, packet.events,
            )  # fmt: skip
            other = types["std_msgs/msg/String"](f"line {k}")
            battery = types["robot_msgs/msg/Battery"](12.0)
            at_ns = stamp_to_ns(stamp)
            for topic, content in zip(names, (message, other, battery), strict=True):
                data = store.serialize_ros1(content, names[topic])
                writer.write(made[topic], at_ns, data)
    return path


def test_ros1_becomes_ros2_with_its_other_topics(ros1_bag: Path, tmp_path: Path) -> None:
    source = BagRecording(ros1_bag)
    done = convert(source, tmp_path / "bag")
    bag = BagRecording(tmp_path / "bag")
    assert bag.topics == {"/camera/events": EVENT_PACKET_TYPE, "/chatter": "std_msgs/msg/String"}
    assert done.left_out == ("/battery: its type robot_msgs/msg/Battery is not known here",)
    assert_same(decoded(bag.packets()), decoded(source.packets()))
    store: Any = typestore()
    lines = [
        store.deserialize_cdr(raw.data, raw.type_name).data
        for raw in bag.raw_messages(["/chatter"])
    ]
    assert lines == [f"line {k}" for k in range(done.counts.packets)]


def test_single_events_of_ros1_become_packets(tmp_path: Path) -> None:
    """dvs_msgs/EventArray of a ROS 1 bag, with what was recorded beside it."""
    store: Any = get_typestore(Stores.ROS1_NOETIC)
    event = "uint16 x\nuint16 y\nbuiltin_interfaces/Time ts\nbool polarity\n"
    store.register(get_types_from_msg(event, "dvs_msgs/msg/Event"))
    fields = "std_msgs/Header header\nuint32 height\nuint32 width\ndvs_msgs/Event[] events\n"
    store.register(get_types_from_msg(fields, "dvs_msgs/msg/EventArray"))
    types, events = store.types, some_events(2000, first_ns=10**18)
    time = types["builtin_interfaces/msg/Time"]
    with Ros1Writer(tmp_path / "old.bag") as writer:
        dvs = writer.add_connection("/dvs/events", "dvs_msgs/msg/EventArray", typestore=store)
        chat = writer.add_connection("/chatter", "std_msgs/msg/String", typestore=store)
        for k, part in enumerate(in_chunks(events, 250)):
            columns = (getattr(part, name).tolist() for name in ("t", "x", "y", "p"))
            items = [
                types["dvs_msgs/msg/Event"](x, y, time(*divmod(t, 10**9)), bool(p))
                for t, x, y, p in zip(*columns, strict=True)
            ]
            at_ns = int(part.t[0])
            header = types["std_msgs/msg/Header"](k, time(*divmod(at_ns, 10**9)), "dvs")
            message = types["dvs_msgs/msg/EventArray"](header, 180, 240, items)
            data = store.serialize_ros1(message, "dvs_msgs/msg/EventArray")
            writer.write(dvs, at_ns, data)
            text = types["std_msgs/msg/String"](f"line {k}")
            writer.write(chat, at_ns, store.serialize_ros1(text, "std_msgs/msg/String"))
    done = convert(open_recording(tmp_path / "old.bag"), tmp_path / "bag")
    bag = BagRecording(tmp_path / "bag")
    assert done.left_out == ()
    assert bag.topics == {"/dvs/events": EVENT_PACKET_TYPE, "/chatter": "std_msgs/msg/String"}
    assert_same(decoded(bag.packets()), events)
    assert len(list(bag.raw_messages(["/chatter"]))) == 8
    assert [packet.header.frame_id for packet in bag.packets()] == ["dvs"] * 8


def test_types_that_the_bag_defines_itself_are_kept(tmp_path: Path) -> None:
    store: Any = get_typestore(Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg(EVENT_PACKET_DEFINITION, EVENT_PACKET_TYPE))
    store.register(get_types_from_msg("float64 volts\n", "robot_msgs/msg/Battery"))
    packets = list(packetize(some_events()))
    with Writer(tmp_path / "a", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        battery = writer.add_connection("/battery", "robot_msgs/msg/Battery", typestore=store)
        events = writer.add_connection("/events", EVENT_PACKET_TYPE, typestore=store)
        types = store.types
        for packet in packets:
            at_ns = stamp_to_ns(packet.header.stamp)
            time = types["builtin_interfaces/msg/Time"](*divmod(at_ns, 10**9))
            message = types[EVENT_PACKET_TYPE](
                types["std_msgs/msg/Header"](time, "c"), 180, 240, packet.seq, 0, "evt3", False,
                packet.events,
            )  # fmt: skip
            writer.write(events, at_ns, store.serialize_cdr(message, EVENT_PACKET_TYPE))
            volts = types["robot_msgs/msg/Battery"](at_ns / 1e9)
            writer.write(battery, at_ns, store.serialize_cdr(volts, "robot_msgs/msg/Battery"))
    cut: dict[str, Any] = {"start_s": 0.02, "duration_s": 0.02}
    for options in ({}, cut):
        name = f"b{len(options)}"
        done = convert(BagRecording(tmp_path / "a"), tmp_path / name, **options)
        assert done.left_out == ()
        bag = BagRecording(tmp_path / name)
        found = [
            store.deserialize_cdr(raw.data, raw.type_name).volts
            for raw in bag.raw_messages(["/battery"])
        ]
        expected = [stamp_to_ns(packet.header.stamp) / 1e9 for packet in packets]
        if options:
            expected = [s for s in expected if 0.02 <= s - expected[0] < 0.04]
        assert found == expected


def test_a_given_calibration_replaces_the_recorded_one(tmp_path: Path) -> None:
    events = some_events(20_000)
    convert(Made(*in_chunks(events)), tmp_path / "plain")
    calibration = tmp_path / "camera.yaml"
    calibration.write_text(
        "image_width: 240\nimage_height: 180\ndistortion_model: plumb_bob\n"
        "camera_matrix: {rows: 3, cols: 3, data: [200, 0, 120, 0, 201, 90, 0, 0, 1]}\n"
        "distortion_coefficients: {rows: 1, cols: 5, data: [0.1, 0, 0, 0, 0]}\n"
    )
    for source, out in (("plain", "once"), ("once", "twice")):
        arguments = ["convert", tmp_path / source, tmp_path / out, "--calib", calibration]
        assert cli.main([str(a) for a in arguments]) == 0
        bag = BagRecording(tmp_path / out)
        info = bag.calibration()
        assert info is not None
        assert info["k"][4] == 201
        assert info["d"][0] == 0.1
        assert len(list(bag.raw_messages(["/event_camera/camera_info"]))) >= 4


def test_a_step_of_the_clock_brings_no_flood_of_calibrations(tmp_path: Path) -> None:
    """Neither from a bag nor from what is none; a day has 864,000 times 0.1 s."""
    camera = Camera(240, 180, np.array([[200.0, 0, 120], [0, 200, 90], [0, 0, 1]]))
    packets = encoded(some_events(400), "mono") + encoded(
        some_events(400, first_ns=86_400 * 10**9), "mono"
    )
    write_bag(tmp_path / "written", packets, camera_info(camera))
    convert(BagRecording(tmp_path / "written"), tmp_path / "copied", camera=camera)
    days = []
    for name in ("written", "copied"):
        infos = list(BagRecording(tmp_path / name).raw_messages(["/event_camera/camera_info"]))
        assert 2 <= len(infos) <= 5
        days.append({info.bag_time_ns // (86_400 * 10**9 - 10**9) for info in infos})
    assert days == [{0, 1}, {0, 1}]


@pytest.mark.parametrize(("start_s", "count"), [(0.0, 300), (0.001, 0)])
def test_what_comes_before_the_first_events_is_not_held(
    tmp_path: Path, start_s: float, count: int
) -> None:
    with Writer(tmp_path / "late", version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        events, images = (
            writer.add_connection(topic, kind, typestore=typestore())
            for topic, kind in (("/events", EVENT_PACKET_TYPE), ("/depth", IMAGE_TYPE))
        )
        header = to_header(Header(Stamp(1, 0), "camera"))
        image = depth_message(header, np.ones((200, 200), np.float32))
        data = typestore().serialize_cdr(image, IMAGE_TYPE)
        for k in range(300):
            writer.write(images, 10**9 + k, data)
        for packet in encoded(some_events(first_ns=2 * 10**9), "mono"):
            data = typestore().serialize_cdr(to_message(packet), EVENT_PACKET_TYPE)
            writer.write(events, stamp_to_ns(packet.header.stamp), data)
    recording = BagRecording(tmp_path / "late")
    tracemalloc.start()
    convert(recording, tmp_path / "out", start_s=start_s)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6  # 300 images are 48 MB
    copy = BagRecording(tmp_path / "out")
    assert len(list(copy.raw_messages(["/depth"]))) == count


@pytest.mark.parametrize("name", ["out.avi", "out.hdf5"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecordingError, match="cannot write a"):
        convert(Made(some_events()), tmp_path / name)


def test_nothing_is_overwritten_or_left_behind(tmp_path: Path) -> None:
    early = Events(
        np.array([-5, 3]), np.zeros(2, np.uint16), np.zeros(2, np.uint16), np.zeros(2, np.uint8),
        240, 180,
    )  # fmt: skip
    with pytest.raises(RecordingError, match="expected times from 0 on"):
        convert(Made(early), tmp_path / "bag")
    sizes = (some_events(10), Events.empty(5, 5))
    with pytest.raises(RecordingError, match="sensor size changes"):
        write_npz(tmp_path / "x.npz", iter(sizes))
    with pytest.raises(RecordingError, match="no events to write"):
        write_npz(tmp_path / "x.npz", [Events.empty(5, 5)])
    assert list(tmp_path.iterdir()) == []
    convert(Made(some_events()), tmp_path / "bag")
    with pytest.raises(RecordingError, match="exists already"):
        convert(Made(some_events()), tmp_path / "bag")
    with pytest.raises(RecordingError, match="is a file, expected a folder"):
        convert(Made(some_events()), tmp_path / "bag" / "metadata.yaml" / "c")
    for out in ("c", "c.npz"):
        for source in (Made(some_events()), open_recording(tmp_path / "bag")):
            with pytest.raises(RecordingError, match=r"no events from 99 s on .*--start"):
                convert(source, tmp_path / out, start_s=99.0)
    with pytest.raises(RecordingError, match=r"no events from 99 s to 99\.5 s"):
        convert(Made(some_events()), tmp_path / "c", start_s=99.0, duration_s=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]
    with pytest.raises(ConfigError, match="start -1"):
        convert(Made(some_events()), tmp_path / "c", start_s=-1)
    with pytest.raises(ConfigError, match="duration 0"):
        convert(Made(some_events()), tmp_path / "c", duration_s=0.0)


def test_command_line(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = data_dir / "ecd_shapes_rotation", tmp_path / "new" / "bag"
    assert cli.main(["convert", str(source), str(out), "--duration", "0.5"]) == 0
    text, err = capsys.readouterr()
    assert err == ""
    assert "encoding mono" in text
    assert cli.main(["convert", str(source), str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "encoding", "count"),
    [
        ("prophesee_raw/evt3_1280x720_gen41_8p8ms.raw", "evt3", 219_596),
        ("prophesee_raw/evt2_640x480_gen3_50ms.raw", "evt2", 539_481),
    ],
)
def test_words_of_a_camera_stay_as_they_are(
    data_dir: Path, tmp_path: Path, name: str, encoding: str, count: int
) -> None:
    """Words of a camera's own file, cut anywhere into packets, go into the bag untouched."""
    data = (data_dir / name).read_bytes()
    while data.startswith(b"%"):  # the header's lines
        data = data[data.index(b"\n") + 1 :]
    words = np.frombuffer(data, np.uint8)
    width, height = (1280, 720) if encoding == "evt3" else (640, 480)
    packets = [
        EventPacket(Header(), height, width, k, 0, encoding, False, words[at : at + 40_000])
        for k, at in enumerate(range(0, len(words), 40_000))
    ]
    done = convert(Made(*packets), tmp_path / "bag")
    assert done.counts.events == count
    copies = list(BagRecording(tmp_path / "bag").packets())
    np.testing.assert_array_equal(np.concatenate([copy.events for copy in copies]), words)
    assert_same(decoded(copies), decoded(packets))


def test_events_of_a_dv_file(data_dir: Path, tmp_path: Path) -> None:
    """A real AEDAT4 file, whose events come as dv-processing's arrays."""
    dv = pytest.importorskip("dv_processing", reason="dv-processing is not installed")
    from event_binning_grad.events.dv import dv_packet

    reader = dv.io.MonoCameraRecording(str(data_dir / "aedat4" / "davis_320x240.aedat4"))
    (width, height), packets = reader.getEventResolution(), []
    while (store := reader.getNextEventBatch()) is not None:
        stamp_ns = int(store.getLowestTime()) * 1000
        packets.append(dv_packet(store, width, height, len(packets), "dvs", stamp_ns))
    done = convert(Made(*packets), tmp_path / "bag")
    assert done.counts.events == 111_954
    assert done.counts.encoding == "mono"
    assert_same(decoded(BagRecording(tmp_path / "bag").packets()), decoded(packets))
