"""The replayer: real topics, real time, and every kind of recording."""

from __future__ import annotations

import array
import csv
import os
import pty
import signal
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
from event_camera_msgs.msg import EventPacket
from geometry_msgs.msg import TwistStamped
from rclpy.serialization import serialize_message
from ros_harness import CAMERA_INFO, EVENTS, Ros, ros_session
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, Imu, Range

from event_binning_grad.errors import ConfigError, RecordingError
from event_binning_grad.events.bag_messages import (
    EVENT_PACKET_TYPE,
    GROUND_TRUTH_TOPIC,
    typestore,
)
from event_binning_grad.events.bags import BagRecording
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.event_arrays import event_array_packet
from event_binning_grad.events.types import stamp_to_ns
from event_binning_grad.ros.qos import EVENTS_QOS
from event_binning_grad.ros.replay import ReplayConfig, replay
from event_binning_grad.simulate import SimulationConfig, write_simulation


@pytest.fixture
def ros(tmp_path: Path) -> Iterator[Ros]:
    with ros_session(tmp_path) as session:
        yield session


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "bag"
    write_simulation(path, SimulationConfig(duration_s=1.0, width=64, height=48, packet_ms=4.0))
    return path


@pytest.fixture(scope="module")
def text_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.2 s of the event camera dataset's layout, an event each 100 us, turning about z."""
    path = tmp_path_factory.mktemp("text")
    lines = [f"{1 + k * 1e-4:.6f} {k % 30} {k % 20} {k % 2}" for k in range(12_000)]
    (path / "events.txt").write_text("\n".join(lines) + "\n")
    (path / "calib.txt").write_text("20 20 15 10 0 0 0 0 0\n32 24\n")
    imu = [f"{0.9 + k * 0.01:.3f} 0 0 9.8 0 0 {0.5:.1f}" for k in range(150)]
    (path / "imu.txt").write_text("\n".join(imu) + "\n")
    return path


class Audience:
    """Takes everything that a replay publishes."""

    def __init__(self, ros: Ros) -> None:
        self.node = ros.new_node()
        self.heard: list[tuple[str, Any]] = []
        for kind, topic, qos in (
            (EventPacket, EVENTS, EVENTS_QOS),
            (CameraInfo, CAMERA_INFO, 100),
            (TwistStamped, GROUND_TRUTH_TOPIC, 1000),
            (Clock, "/clock", 1000),
        ):
            self.hear(kind, topic, qos)

    def hear(self, kind: Any, topic: str, qos: Any = 1000) -> None:
        self.node.create_subscription(
            kind, topic, lambda message: self.heard.append((topic, message)), qos
        )

    def on(self, topic: str) -> list[Any]:
        return [message for heard, message in self.heard if heard == topic]

    def listen_until_end(self, process: Any) -> None:
        deadline = time.monotonic() + 90
        while process.popen.poll() is None and time.monotonic() < deadline:
            rclpy.spin_once(self.node, timeout_sec=0.05)
        for _ in range(500):
            rclpy.spin_once(self.node, timeout_sec=0.0)


def test_bag_is_published_as_it_is(ros: Ros, bag: Path, tmp_path: Path) -> None:
    audience, log = Audience(ros), tmp_path / "published.csv"
    process = ros.replay(bag, "--rate", "0.5", "--clock", "--publish-log", str(log))
    audience.listen_until_end(process)
    assert process.wait() == 0, process.output
    assert "packets," in process.output

    packets = audience.on(EVENTS)
    assert [packet.seq for packet in packets] == list(range(len(packets)))
    with log.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(packets) == 250
    for row, packet in zip(rows, packets, strict=True):
        assert int(row["seq"]) == packet.seq
        assert int(row["stamp_ns"]) == stamp_to_ns(packet.header.stamp) <= int(row["recorded_ns"])
    published = np.array([int(row["published_ns"]) for row in rows])
    recorded = np.array([int(row["recorded_ns"]) for row in rows])
    # Half the speed, and no drift: each packet has its own deadline.
    delay = (published - published[0]) - 2 * (recorded - recorded[0])
    assert np.median(delay) < 50e6
    assert delay.min() > -50e6

    # The calibration comes before everything that needs it, and again with the recording.
    topics = [topic for topic, _ in audience.heard]
    assert topics.index(CAMERA_INFO) < topics.index(EVENTS)
    infos = audience.on(CAMERA_INFO)
    assert len(infos) >= 10
    assert all((info.width, info.height) == (64, 48) for info in infos)
    assert len(audience.on(GROUND_TRUTH_TOPIC)) == 501

    clock = [stamp_to_ns(message.clock) for message in audience.on("/clock")]
    assert clock == sorted(clock)
    assert max(np.diff(clock)) == 5_000_000


def test_other_sensors_go_where_the_node_expects_them(ros: Ros, bag: Path, tmp_path: Path) -> None:
    """A robot's bag names its topics as it likes."""
    path = tmp_path / "robot"
    range_message, imu = Range(range=1.5, max_range=4.0), Imu()
    imu.angular_velocity.z = 0.5
    depth = Image(height=2, width=3, encoding="16UC1", step=6, data=array.array("B", bytes(12)))
    others = {
        "/front/depth/image_raw": ("sensor_msgs/msg/Image", depth),
        "/front/color/image_raw": ("sensor_msgs/msg/Image", depth),
        "/altimeter": ("sensor_msgs/msg/Range", range_message),
        "/base/imu": ("sensor_msgs/msg/Imu", Imu()),
        "/dvs/imu": ("sensor_msgs/msg/Imu", imu),  # the one beside the events
    }
    source = BagRecording(bag)
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        store = typestore()
        events = writer.add_connection("/dvs/events", EVENT_PACKET_TYPE, typestore=store)
        topics = {
            name: writer.add_connection(name, kind, typestore=store)
            for name, (kind, _) in others.items()
        }
        for k, raw in enumerate(source.raw_messages([EVENTS])):
            writer.write(events, raw.bag_time_ns, raw.data)
            if k % 10 == 0:
                for name, (_, message) in others.items():
                    message.header.stamp.nanosec = k
                    writer.write(topics[name], raw.bag_time_ns, serialize_message(message))
    audience = Audience(ros)
    audience.hear(Image, "/event_camera/depth")
    audience.hear(Image, "/front/color/image_raw")
    audience.hear(Range, "/event_camera/range")
    audience.hear(Imu, "/event_camera/imu")
    audience.hear(Imu, "/base/imu")
    process = ros.replay(path, "--rate", "4")
    audience.listen_until_end(process)
    assert process.wait() == 0, process.output

    stamps = [10 * k for k in range(25)]
    for topic in ("/event_camera/depth", "/event_camera/range", "/event_camera/imu"):
        assert [message.header.stamp.nanosec for message in audience.on(topic)] == stamps
    assert audience.on("/event_camera/depth")[0].encoding == "16UC1"
    assert audience.on("/event_camera/range")[0].range == 1.5
    assert all(imu.angular_velocity.z == 0.5 for imu in audience.on("/event_camera/imu"))
    assert len(audience.on("/front/color/image_raw")) == len(audience.on("/base/imu")) == 25
    # In the bag's order: a reading comes after the packet before it.
    topics_heard = [topic for topic, _ in audience.heard]
    assert topics_heard.index(EVENTS) < topics_heard.index("/event_camera/imu")


def test_text_recording_is_encoded(ros: Ros, text_recording: Path) -> None:
    audience = Audience(ros)
    process = ros.replay(text_recording)
    audience.listen_until_end(process)
    assert process.wait() == 0, process.output
    decoder = PacketDecoder()
    decoded = [decoder.decode(packet).events for packet in audience.on(EVENTS)]
    assert sum(len(events) for events in decoded) == 12_000
    assert decoder.counters.lost_packets == 0
    infos = audience.on(CAMERA_INFO)
    assert len(infos) >= 2  # at once, and each second
    assert all((info.width, info.height) == (32, 24) for info in infos)
    assert list(infos[0].k) == [20, 0, 15, 0, 20, 10, 0, 0, 1]
    twists = audience.on(GROUND_TRUTH_TOPIC)
    assert len(twists) > 100
    assert all(twist.twist.angular.z == pytest.approx(0.5) for twist in twists)


def test_loop_until_signal(ros: Ros, bag: Path) -> None:
    audience = Audience(ros)
    process = ros.replay(bag, "--rate", "4", "--loop")
    deadline = time.monotonic() + 60
    while len(audience.on(EVENTS)) < 600 and time.monotonic() < deadline:
        rclpy.spin_once(audience.node, timeout_sec=0.05)
    process.send(signal.SIGINT)
    assert process.wait() == 0, process.output
    assert "Traceback" not in process.output
    seqs = [packet.seq for packet in audience.on(EVENTS)]
    assert sum(after < before for before, after in pairwise(seqs)) >= 2


@pytest.fixture(scope="module")
def event_array_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rosbag2 of dvs_msgs/EventArray, as its messages lie there: 50 of 100 events each 10 ms."""
    path = tmp_path_factory.mktemp("arrays") / "bag"
    store = get_typestore(Stores.ROS2_HUMBLE)
    event = "uint16 x\nuint16 y\nbuiltin_interfaces/Time ts\nbool polarity\n"
    store.register(get_types_from_msg(event, "dvs_msgs/msg/Event"))
    fields = "std_msgs/Header header\nuint32 height\nuint32 width\ndvs_msgs/Event[] events\n"
    store.register(get_types_from_msg(fields, "dvs_msgs/msg/EventArray"))
    types: Any = store.types
    stamp = types["builtin_interfaces/msg/Time"]
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        topic = writer.add_connection("/dvs/events", "dvs_msgs/msg/EventArray", typestore=store)
        for k in range(50):
            start_ns = 10**18 + k * 10**7
            events = [
                types["dvs_msgs/msg/Event"](
                    n, n // 2, stamp(*divmod(start_ns + n * 99_999, 10**9)), n % 2
                )
                for n in range(100)
            ]
            header = types["std_msgs/msg/Header"](stamp(*divmod(start_ns, 10**9)), "dvs")
            message = types["dvs_msgs/msg/EventArray"](header, 60, 120, events)
            data = store.serialize_cdr(message, "dvs_msgs/msg/EventArray")
            writer.write(topic, start_ns + 10**7, data)
    return path


def test_a_stretch_is_published(ros: Ros, bag: Path) -> None:
    audience = Audience(ros)
    process = ros.replay(bag, "--start", "0.4", "--duration", "0.3", "--clock")
    audience.listen_until_end(process)
    assert process.wait() == 0, process.output
    packets = audience.on(EVENTS)
    source = BagRecording(bag)
    times = [raw.bag_time_ns for raw in source.raw_messages([EVENTS])]
    inside = [k for k, time_ns in enumerate(times) if 0.4e9 <= time_ns - times[0] < 0.7e9]
    assert [packet.seq for packet in packets] == inside
    assert audience.on(CAMERA_INFO)
    clock = [stamp_to_ns(message.clock) for message in audience.on("/clock")]
    assert clock[0] - times[0] == pytest.approx(0.4e9, abs=11e6)
    assert clock[-1] - clock[0] == pytest.approx(0.3e9, abs=20e6)


def test_a_stretch_of_a_text_recording(ros: Ros, text_recording: Path) -> None:
    audience = Audience(ros)
    audience.hear(Imu, "/event_camera/imu")
    process = ros.replay(text_recording, "--start", "0.5", "--duration", "0.25")
    audience.listen_until_end(process)
    assert process.wait() == 0, process.output
    decoder = PacketDecoder()
    t = np.concatenate([decoder.decode(packet).events.t for packet in audience.on(EVENTS)])
    assert len(t) == 2500
    assert t[0] == 1_500_000_000  # exactly: the encoding keeps the recording's times
    stamps = [stamp_to_ns(imu.header.stamp) for imu in audience.on("/event_camera/imu")]
    assert stamps == list(range(1_500_000_000, 1_750_000_000, 10_000_000))


def test_messages_of_single_events_go_as_they_are(ros: Ros, event_array_bag: Path) -> None:
    pytest.importorskip("dvs_msgs", reason="dvs_msgs is not installed")
    from dvs_msgs.msg import EventArray

    node, heard = ros.new_node(), []
    node.create_subscription(EventArray, EVENTS, heard.append, EVENTS_QOS, raw=True)
    process = ros.replay(event_array_bag)
    listen(node, process)
    assert process.wait() == 0, process.output
    sent = list(BagRecording(event_array_bag).packets())
    assert len(heard) == len(sent) == 50
    for data, packet in zip(heard, sent, strict=True):  # data may be padded at its end
        copy = event_array_packet(data, packet.seq)
        assert copy.header == packet.header
        np.testing.assert_array_equal(copy.events, packet.events)


def test_messages_of_single_events_become_packets(
    ros: Ros, event_array_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where their type is not installed."""
    from event_binning_grad.ros import replayer

    installed = replayer.message_class

    def without_dvs(type_name: str) -> Any:
        if type_name.startswith("dvs_msgs"):
            raise ImportError(type_name)
        return installed(type_name)

    monkeypatch.setattr(replayer, "message_class", without_dvs)
    recording = BagRecording(event_array_bag)
    assert replayer.recorded_topics(recording, EVENTS) == {EVENTS: EVENT_PACKET_TYPE}
    messages = list(replayer.recorded_messages(recording, EVENTS))
    decoder = PacketDecoder()
    events = [decoder.decode(message.content).events for message in messages]
    assert len(messages) == 50
    assert all(isinstance(message.content, EventPacket) for message in messages)
    for k, part in enumerate(events):
        n = np.arange(100)
        np.testing.assert_array_equal(part.t, 10**18 + k * 10**7 + n * 99_999)
        np.testing.assert_array_equal(part.x, n)
        np.testing.assert_array_equal(part.p, n % 2)


def listen(node: Any, process: Any, until: Any = lambda: False, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while process.popen.poll() is None and not until() and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.05)


def test_pause_and_go_on(ros: Ros, bag: Path) -> None:
    set_bool = pytest.importorskip("std_srvs.srv", reason="std_srvs is not installed").SetBool
    audience = Audience(ros)
    client = audience.node.create_client(set_bool, "/replay/pause")

    def ask(paused: bool) -> str:
        future = client.call_async(set_bool.Request(data=paused))
        rclpy.spin_until_future_complete(audience.node, future, timeout_sec=20)
        response = future.result()
        assert response.success
        return response.message

    def listen_for(seconds: float) -> None:
        listen(audience.node, process, timeout_s=seconds)

    process = ros.replay(bag, "--pause", "--clock")
    assert client.wait_for_service(60)
    listen_for(1.0)
    assert audience.on(EVENTS) == audience.on("/clock") == []
    assert ask(False) == "playing"
    listen(audience.node, process, lambda: len(audience.on(EVENTS)) > 50)
    assert ask(True) == "paused"
    listen_for(0.3)
    heard, clock = len(audience.on(EVENTS)), len(audience.on("/clock"))
    assert 50 < heard < 250
    listen_for(0.7)
    assert (len(audience.on(EVENTS)), len(audience.on("/clock"))) == (heard, clock)
    assert ask(False) == "playing"
    resumed_s = time.monotonic()
    audience.listen_until_end(process)
    # At its own pace: what the pause took is not caught up.
    assert time.monotonic() - resumed_s > 0.8 * (250 - heard) * 0.004
    assert process.wait() == 0, process.output
    assert [packet.seq for packet in audience.on(EVENTS)] == list(range(250))


def test_the_space_key_pauses(ros: Ros, bag: Path, tmp_path: Path) -> None:
    """The replay as the foreground process of a terminal of its own."""
    heard: list[Any] = []
    node = ros.new_node()
    node.create_subscription(EventPacket, EVENTS, heard.append, EVENTS_QOS)
    command = ["-m", "event_binning_grad.cli", "play", str(bag), "--pause", "--wait", "60"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, *command])
    status: list[int] = []

    def ended() -> bool:
        if not status:
            done, code = os.waitpid(pid, os.WNOHANG)
            status.extend([code] if done else [])
        return bool(status)

    def listen_for(seconds: float, condition: Any = lambda: False) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and not ended() and time.monotonic() < deadline:
            rclpy.spin_once(node, timeout_sec=0.05)

    try:
        listen_for(30, lambda: node.count_publishers(EVENTS) > 0)
        listen_for(1.5)
        assert heard == []
        os.write(terminal, b" ")
        listen_for(20, lambda: len(heard) > 20)
        os.write(terminal, b"x ")
        listen_for(0.3)
        paused_at = len(heard)
        assert 20 < paused_at < 250
        listen_for(0.5)
        assert len(heard) == paused_at
        os.write(terminal, b" ")
        listen_for(20)
        assert ended()
        assert os.waitstatus_to_exitcode(status[0]) == 0
        assert len(heard) == 250
    finally:
        if not ended():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)


def test_a_paused_replay_ends_on_a_signal(ros: Ros, bag: Path) -> None:
    process = ros.start("replay", str(bag), "--pause")
    process.wait_until_it_handles(signal.SIGINT)
    time.sleep(1.5)
    process.send(signal.SIGINT)
    assert process.wait() == 0, process.output
    assert "Traceback" not in process.output


def test_signal_ends_the_wait(ros: Ros, bag: Path) -> None:
    process = ros.replay(bag)
    time.sleep(2.5)
    process.send(signal.SIGTERM)
    assert process.wait() == 0, process.output
    assert "Traceback" not in process.output


def test_nobody_listens(ros: Ros, bag: Path) -> None:
    process = ros.start("replay", str(bag), "--rate", "50", "--wait", "0.2")
    assert process.wait(60) == 0
    warning, end = [line for line in process.output.splitlines() if "nobody" in line]
    assert f"nobody has subscribed to {EVENTS} within 0.2 s: publishing all the same" in warning
    assert "]: 250 packets, " in end
    assert f"; 250 of them while nobody subscribed to {EVENTS}" in end


def test_a_node_that_runs_already_gets_every_event_of_every_play(ros: Ros, data_dir: Path) -> None:
    """By default: it subscribes only when it has seen the type, and knows of each player anew."""
    bag, events = data_dir / "bags" / "test_events_1.bag", 343_474
    _, listener = ros.start_node("-p", "queue_ms:=60000.0")
    for times in (1, 2):
        process = ros.start("replay", str(bag), "--rate", "2")
        ended = process.popen.poll
        listener.wait_for(lambda ended=ended: ended() is not None, 60, "the replay")
        assert process.wait() == 0
        assert "nobody" not in process.output
        listener.wait_until_idle()
        assert listener.figure("events") == times * events


def test_another_events_topic(ros: Ros, bag: Path) -> None:
    heard: list[Any] = []
    node = ros.new_node()
    node.create_subscription(EventPacket, "/other/events", heard.append, EVENTS_QOS)
    process = ros.replay(bag, "--events-topic", "/other/events", "--rate", "2")
    deadline = time.monotonic() + 60
    while process.popen.poll() is None and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.05)
    assert len(heard) == 250


def test_one_of_two_cameras(ros: Ros, bag: Path, tmp_path: Path) -> None:
    """--topic chooses; the other one goes out on its own topic. Without it: one line."""
    two, source = tmp_path / "two", BagRecording(bag)
    with Writer(two, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        sides = [
            writer.add_connection(f"/{side}/events", EVENT_PACKET_TYPE, typestore=typestore())
            for side in ("left", "right")
        ]
        for k, raw in enumerate(source.raw_messages([EVENTS])):
            writer.write(sides[min(1, k % 5)], raw.bag_time_ns, raw.data)
    audience = Audience(ros)
    audience.hear(EventPacket, "/left/events", EVENTS_QOS)
    process = ros.replay(two, "--topic", "/right/events", "--rate", "2")
    audience.listen_until_end(process)
    assert process.wait() == 0, process.output
    assert [packet.seq for packet in audience.on(EVENTS)] == [k for k in range(250) if k % 5]
    assert [packet.seq for packet in audience.on("/left/events")] == list(range(0, 250, 5))
    process = ros.start("replay", str(two))
    assert process.wait(60) == 2
    (line,) = [line for line in process.output.splitlines() if line.startswith("replay: ")]
    assert "/left/events, /right/events: choose one of them (--topic)" in line


def test_a_cut_bag_is_published_with_a_warning(ros: Ros, bag: Path, tmp_path: Path) -> None:
    data = next(bag.glob("*.mcap")).read_bytes()
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(data[: len(data) // 2])
    audience = Audience(ros)
    process = ros.replay(cut)
    audience.listen_until_end(process)
    assert process.wait() == 0, process.output
    seqs = [packet.seq for packet in audience.on(EVENTS)]
    assert seqs == list(range(len(seqs)))
    assert 80 < len(seqs) < 170
    assert len([line for line in process.output.splitlines() if "is cut short" in line]) == 1


@pytest.mark.parametrize("name", ["mvsec", "dsec"])
def test_data_sets_are_published_whole(tmp_path: Path, name: str) -> None:
    """Small files in their layouts: events, calibration, IMU and truth."""
    from dataset_harness import (
        some_events,
        write_calibration,
        write_camchain,
        write_dsec,
        write_imu,
        write_mvsec,
    )

    from event_binning_grad.events.recordings import open_recording
    from event_binning_grad.ros.replayer import recorded_messages

    if name == "mvsec":
        path = write_mvsec(tmp_path, some_events(20_000))
        write_imu(path, np.arange(0.0, 0.2, 0.001), np.full((200, 3), 0.5))
        write_camchain(tmp_path / "camchain-imucam-indoor_flying.yaml")
    else:
        write_dsec(tmp_path)
        write_calibration(tmp_path, None)
    recording = open_recording(tmp_path)
    messages = list(recorded_messages(recording, EVENTS))
    times = [message.time_ns for message in messages]
    assert times == sorted(times)
    heard = {topic: [m.content for m in messages if m.topic == topic] for _, topic, *_ in messages}
    decoder = PacketDecoder()
    events = [decoder.decode(packet).events for packet in heard[EVENTS]]
    for column in ("t", "x", "y", "p"):
        expected: list[Any] = [getattr(part, column) for part in recording.packets()]
        found = np.concatenate([getattr(part, column) for part in events])
        np.testing.assert_array_equal(found, np.concatenate(expected))
    assert heard[CAMERA_INFO][0].width == recording.width
    if name == "mvsec":
        imu = heard["/event_camera/imu"]
        assert len(imu) == 200
        assert imu[7].linear_acceleration.y == 9.8
        assert imu[7].linear_acceleration_covariance[0] == 0
        assert len(heard[GROUND_TRUTH_TOPIC]) == 200
        assert heard[GROUND_TRUTH_TOPIC][7].twist.angular.x == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("/nowhere.bag",), "/nowhere.bag does not exist"),
        (("{bag}", "--topic", "/nowhere"), "no events on /nowhere: choose /event_camera/events"),
        (("{bag}", "--rate", "0"), "rate 0.0: expected a number above 0"),
        (("{bag}", "--start", "50", "--loop", "--wait", "0"), "holds no events from 50 s on"),
        (("{bag}", "--events-topic", "/a b!"), "events topic '/a b!': Invalid topic name"),
        (("{bag}", "--ros-args", "-r", "nonsense"), "ROS arguments: "),
    ],
)
def test_bad_input_is_one_line(ros: Ros, bag: Path, options: tuple[str, ...], message: str) -> None:
    process = ros.start("replay", *(option.format(bag=bag) for option in options))
    assert process.wait(60) == 2
    (line,) = [line for line in process.output.splitlines() if line.startswith("replay: ")]
    assert message in line
    assert "Traceback" not in process.output


def test_a_recording_without_events_is_refused(ros: Ros, tmp_path: Path) -> None:
    (tmp_path / "events.txt").write_text("")
    with pytest.raises(RecordingError):
        replay(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"rate": -1.0},
        {"rate": float("inf")},
        {"wait_s": -1.0},
        {"start_s": -1.0},
        {"duration_s": 0.0},
    ],
)
def test_bad_config_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        ReplayConfig(**values)  # type: ignore[arg-type]
