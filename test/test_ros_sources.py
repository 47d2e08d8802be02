"""Where the node's events come from: topics of every type, streams, recordings; over real DDS."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
from rclpy.context import Context
from rclpy.serialization import deserialize_message, serialize_message
from ros_harness import EVENTS, START_S, Listener, Process, Ros, ros_session
from sensor_msgs.msg import Image, Imu, TimeReference

from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.event_arrays import event_array_packet
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.types import Stamp, stamp_to_ns
from event_binning_grad.geometry import Camera
from event_binning_grad.pipeline import Pipeline, PipelineConfig
from event_binning_grad.ros import bench_intake
from event_binning_grad.ros.event_topics import TYPES, type_named
from event_binning_grad.ros.message_types import message_class
from event_binning_grad.ros.messages import to_packet
from event_binning_grad.ros.qos import EVENTS_QOS
from event_binning_grad.simulate import SimulationConfig, write_simulation

SERVER = Path(__file__).with_name("dv_server.py")
PATIENT = ("-p", "queue_ms:=60000.0")
WIDTH, HEIGHT = 64, 48
START_NS = 1_700_000_000 * 10**9


@pytest.fixture
def ros(tmp_path: Path) -> Iterator[Ros]:
    with ros_session(tmp_path) as session:
        yield session


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.5 s of a small camera that turns at up to 3 rad/s, with an IMU."""
    path = tmp_path_factory.mktemp("simulated") / "bag"
    config = SimulationConfig(
        duration_s=1.5, width=160, height=120, peak_rad_s=(3.0, 3.0, 3.0), imu_hz=200.0
    )
    write_simulation(path, config)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def event_array(kind: str, number: int, count: int = 500) -> Any:
    """The message number `number` of events 1 us apart, 4 ms after the one before."""
    chosen = type_named(kind)
    message = message_class(chosen.type_name)(width=WIDTH, height=HEIGHT)
    module = importlib.import_module(f"{chosen.package}.msg")
    start_ns = START_NS + number * 4_000_000
    for k in range(count):
        stamp = Stamp.from_ns(start_ns + 1000 * k)
        event = module.Event(x=k % WIDTH, y=k % HEIGHT, polarity=bool(k % 2))
        event.ts.sec, event.ts.nanosec = stamp.sec, stamp.nanosec
        message.events.append(event)
    arrival = Stamp.from_ns(start_ns + 5_000_000)
    message.header.stamp.sec, message.header.stamp.nanosec = arrival.sec, arrival.nanosec
    message.header.frame_id = "camera"
    return message


@pytest.fixture
def elsewhere(ros: Ros) -> Iterator[Any]:
    """A node of another participant: one alone cannot have two types on a topic."""
    context = Context()
    rclpy.init(args=[], context=context)
    node = rclpy.create_node("elsewhere", context=context)
    yield node
    node.destroy_node()
    rclpy.try_shutdown(context=context)


def wait_for_subscriber(listener: Listener, publisher: Any) -> None:
    listener.wait_for(lambda: publisher.get_subscription_count() > 0, 30, "the subscription")
    listener.spin_for(0.5)


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_serialized_arrays_are_read_as_ros_wrote_them(count: int) -> None:
    """The first event lies otherwise than those behind it: ROS aligns numbers, not messages."""
    data = bytes(serialize_message(event_array("dvs", 3, count)))
    for padding in (b"", b"\xff\xff\xff"):  # DDS pads a message to whole words
        packet = event_array_packet(data + padding, 7)
        events = PacketDecoder().decode(packet).events
        assert (packet.seq, packet.width, packet.height) == (7, WIDTH, HEIGHT)
        assert packet.header.frame_id == "camera"
        assert len(events) == count
        k = np.arange(count)
        np.testing.assert_array_equal(events.x, k % WIDTH)
        np.testing.assert_array_equal(events.y, k % HEIGHT)
        np.testing.assert_array_equal(events.p, k % 2)
        np.testing.assert_array_equal(events.t, START_NS + 12_000_000 + 1000 * k)


@pytest.mark.parametrize("kind", ["dvs", "prophesee", "dv"])
def test_event_arrays_arrive_whole(ros: Ros, kind: str) -> None:
    """Found by what the publisher says of its type; what is malformed is dropped and counted."""
    chosen = type_named(kind)
    node, listener = ros.start_node(*PATIENT)
    assert "as " not in node.output
    publisher = ros.new_node().create_publisher(message_class(chosen.type_name), EVENTS, EVENTS_QOS)
    wait_for_subscriber(listener, publisher)
    assert f"events: {EVENTS} as {chosen.type_name}" in node.output
    for k in range(10):
        publisher.publish(event_array(kind, k))
    bad = serialize_message(event_array(kind, 10))
    publisher.publish(bad[:-700])
    for k in range(11, 20):
        publisher.publish(event_array(kind, k))
    listener.wait_until_idle()
    assert listener.figure("packets") == 20
    assert listener.figure("decoded packets") == 19
    assert listener.figure("rejected packets") == 1
    assert listener.figure("events") == 19 * 500
    assert listener.figure("on events") == 19 * 250
    assert listener.figure("lost packets") == listener.figure("out of bounds events") == 0
    assert any("1 packet rejected: " in status.message for status in listener.diagnostics)
    assert node.popen.poll() is None


def test_second_publisher_on_the_topic_is_reported(
    ros: Ros, elsewhere: Any, recording: Path
) -> None:
    node, listener = ros.start_node(*PATIENT)
    sender = ros.new_node()
    recorded: Iterator[Any] = open_recording(recording).packets()
    packets = [to_packet(packet) for packet in recorded]
    publisher = sender.create_publisher(type(packets[0]), EVENTS, EVENTS_QOS)
    wait_for_subscriber(listener, publisher)
    other = elsewhere.create_publisher(
        message_class(type_named("dvs").type_name), EVENTS, EVENTS_QOS
    )
    also = f"{EVENTS} is also published as dvs_msgs/msg/EventArray, which is not taken"
    listener.wait_for(lambda: also in listener.summary, 30, "the report")
    assert also in node.output
    assert other.get_subscription_count() == 0
    for packet in packets[:20]:
        publisher.publish(packet)
    listener.wait_for(lambda: listener.figure("decoded packets") == 20, 30, "the packets")
    elsewhere.destroy_publisher(other)
    sender.create_publisher(type(packets[0]), EVENTS, EVENTS_QOS)
    two = f"{EVENTS} has 2 publishers: two cameras in one stream break every window"
    listener.wait_for(lambda: two in listener.summary, 30, "the report")


def test_topic_of_another_kind_is_reported(ros: Ros) -> None:
    _, listener = ros.start_node()
    sender = ros.new_node()
    sender.create_publisher(Image, EVENTS, EVENTS_QOS)
    line = f"{EVENTS} is published as sensor_msgs/msg/Image, expected one of"
    listener.wait_for(lambda: line in listener.summary, 30, "the report")
    assert all(kind.type_name in listener.summary for kind in TYPES)


@pytest.mark.parametrize("events_type", ["auto", "dvs"])
def test_missing_type_support_is_one_line(
    ros: Ros,
    elsewhere: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    events_type: str,
) -> None:
    """The node's process cannot import dvs_msgs; it says so, lives on, and takes other types."""
    hidden = tmp_path / "hidden" / "dvs_msgs"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('hidden')\n")
    monkeypatch.setenv("PYTHONPATH", str(hidden.parent))
    monkeypatch.setenv("ROS_DISTRO", "kilted")
    node, listener = ros.start_node("-p", f"events_type:={events_type}", *PATIENT)
    elsewhere.create_publisher(message_class(type_named("dvs").type_name), EVENTS, EVENTS_QOS)
    line = f"{EVENTS}: the type support of dvs_msgs/msg/EventArray is not installed (hidden): build"
    listener.wait_for(lambda: line in listener.summary, 30, "the report")
    assert node.output.count(line) == 1
    if events_type == "auto":
        publisher = ros.new_node().create_publisher(
            message_class(type_named("dv").type_name), EVENTS, EVENTS_QOS
        )
        wait_for_subscriber(listener, publisher)
        publisher.publish(event_array("dv", 0))
        listener.wait_for(lambda: listener.figure("events") == 500, 30, "the events")
    assert node.popen.poll() is None
    assert "Traceback" not in node.output


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    """Starts servers of dv streams, and ends them."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(port: int, kind: str, behind_s: float = 0.0) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(SERVER), str(port), kind, "60", str(behind_s)]
        processes.append(subprocess.Popen(command))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_dv_network_stream(ros: Ros, server: Any) -> None:
    pytest.importorskip("dv_processing")
    port, imu_port = free_port(), free_port()
    parameters = ("source:=dv_network", f"port:={port}", f"imu_port:={imu_port}", "imu:=start")
    # Turns the IMU's x axis into the camera's z axis.
    parameters += ("imu_to_camera:=[0.0, -0.7071068, 0.0, 0.7071068]",)
    node, listener = ros.start_node(*(w for p in parameters for w in ("-p", p)), *PATIENT)
    nobody = f"nobody serves a dv stream at 127.0.0.1:{port} ("
    listener.wait_for(lambda: nobody in listener.summary, 30, "the report")
    assert nobody in node.output
    assert listener.figure("packets") == 0

    samples: list[Imu] = []
    sender = ros.new_node()
    sender.create_subscription(Imu, f"/{listener.name}/imu_out", samples.append, EVENTS_QOS)
    imu_server = server(imu_port, "imu")
    first = server(port, "events")

    def enough() -> bool:
        rclpy.spin_once(sender, timeout_sec=0)
        return listener.figure("packets") > 100 and len(samples) > 20

    listener.wait_for(enough, 30, "the stream")
    assert f"events: the dv stream at 127.0.0.1:{port}: DVXPLORER_TEST0001, 64x48" in node.output
    for sample in samples:
        assert sample.angular_velocity.x == pytest.approx(np.pi, abs=1e-5)
        assert sample.linear_acceleration.z == pytest.approx(9.81, abs=0.01)
        assert sample.orientation_covariance[0] == -1
        assert abs(stamp_to_ns(sample.header.stamp) - time.time_ns()) < 60e9
    first.kill()
    first.wait()
    ended = "has ended; trying again"
    listener.wait_for(lambda: ended in node.output, 30, "the report of the end")
    listener.wait_for(lambda: listener.summary.count(f"127.0.0.1:{port}") > 0, 30, "the report")
    listener.wait_until_idle()
    assert listener.figure("events") == 1000 * listener.figure("packets")
    assert listener.figure("lost packets") == listener.figure("rejected packets") == 0
    assert listener.figure("imu messages") > 20
    assert listener.figure("imu refused") == 0
    assert abs(float(listener.text("imu behind events s") or 0)) < 1.0
    before = listener.figure("packets")
    server(port, "events")
    listener.wait_for(lambda: listener.figure("packets") > before + 50, 30, "the new server")
    assert imu_server.poll() is None
    assert node.popen.poll() is None


def test_imu_and_triggers_of_a_stream_are_stamped_by_the_clock_of_its_events(
    ros: Ros, server: Any
) -> None:
    """The camera's clock is an hour behind; the servers of IMU and triggers come first."""
    pytest.importorskip("dv_processing")
    names = {"events": "port", "imu": "imu_port", "triggers": "trigger_port"}
    ports = {kind: free_port() for kind in names}
    parameters = ["source:=dv_network", *(f"{names[kind]}:={ports[kind]}" for kind in names)]
    for kind in reversed(names):
        server(ports[kind], kind, 3600.0)
    node, listener = ros.start_node(*(w for p in parameters for w in ("-p", p)), *PATIENT)
    sender = ros.new_node()
    late_s: dict[str, list[float]] = {"imu_out": [], "trigger": []}
    sensor_s: list[float] = []

    def note(topic: str, message: Any) -> None:
        late_s[topic].append(time.time() - stamp_to_ns(message.header.stamp) * 1e-9)
        if topic == "trigger":
            stamps = message.header.stamp, message.time_ref
            sensor_s.append((stamp_to_ns(stamps[0]) - stamp_to_ns(stamps[1])) * 1e-9)
            assert message.source == "rising"

    for topic, kind in (("imu_out", Imu), ("trigger", TimeReference)):
        callback = functools.partial(note, topic)
        sender.create_subscription(kind, f"/{listener.name}/{topic}", callback, EVENTS_QOS)

    def enough() -> bool:
        for _ in range(200):
            rclpy.spin_once(sender, timeout_sec=0)
        return min(map(len, late_s.values())) > 100

    listener.wait_for(enough, 60, "IMU samples and edges")
    listener.wait_for(lambda: listener.text("clock") != "of the events", 30, "the clock")
    assert float(listener.text("clock offset s")) == pytest.approx(3600, abs=0.1)
    # Those that came before the events have the stamps of their own time, too.
    for late in late_s.values():
        assert -0.05 < np.median(late) < 0.5
        assert min(late) > -0.05
    assert sensor_s == pytest.approx([3600.0] * len(sensor_s), abs=0.1)
    listener.wait_for(lambda: listener.figure("trigger events") >= len(late_s["trigger"]), 30, "")
    assert listener.figure("dropped triggers") == listener.figure("dropped readings") == 0
    assert node.popen.poll() is None


def test_file_source_ends_with_its_last_window(ros: Ros, recording: Path) -> None:
    """As the pipeline does that flushes; of the flow, too."""
    windows = {"estimate": "both", "window_events": 8000, "output_rate_hz": 0.0, "window_ms": 0.0}
    windows |= {"window_px": 0.0, "flow_window_px": 0.0}
    camera = Camera.from_camera_info(open_recording(recording).calibration() or {})
    pipeline = Pipeline(PipelineConfig(**windows), camera)  # type: ignore[arg-type]
    packets: Iterator[Any] = open_recording(recording).packets()
    estimates = [estimate for packet in packets for estimate in pipeline.push(packet)]
    full, last = len(pipeline.take_flow()), pipeline.flush()
    assert len(last) == 1
    assert 1500 < last[0].events < 8000
    fields = full + len(pipeline.take_flow())
    assert fields > full

    parameters = ["source:=file", f"recording:={recording}", "recording_end:=idle"]
    parameters += [f"{name}:={value}" for name, value in windows.items()]
    node, listener = ros.start_node(*(w for p in parameters for w in ("-p", p)), *PATIENT)
    line = f"the recording {recording} has ended: nothing more will come"
    listener.wait_for(lambda: line in listener.summary, 60, "the report of the end")
    assert node.output.count(line) == 1
    assert listener.level == 1
    listener.hear_all()
    expected = [estimate.stamp_ns for estimate in estimates + last if estimate.status.ok]
    # But for those from before the node's topic was known here.
    heard = [stamp_to_ns(twist.header.stamp) for twist in listener.twists]
    assert heard
    assert heard == expected[-len(heard) :]
    assert listener.figure("published") == len(expected)
    assert listener.figure("windows") == len(estimates) + 1
    assert 8000 * len(estimates) + last[0].events == listener.figure("events")
    assert listener.figure("discarded events") == listener.figure("skipped events") == 0
    assert listener.flow_figure("windows") == fields
    assert node.popen.poll() is None


def test_file_source_needs_no_topics_and_ends(ros: Ros, recording: Path) -> None:
    """The recording's calibration and IMU are used; the node ends when all is worked off."""
    parameters = ("source:=file", f"recording:={recording}", "imu:=start", "window_events:=8000")
    node, listener = ros.start_node(
        *(w for p in parameters for w in ("-p", p)), *PATIENT, ready=False
    )
    listener.wait_for(lambda: node.popen.poll() is not None, START_S, "the node's end")
    assert node.wait() == 0, node.output
    listener.hear_all()
    assert f"the recording {recording} has ended, and so does the node" in node.output
    assert "calibration: 160x120" in node.output
    packets = list(open_recording(recording).packets())
    assert listener.figure("packets") == listener.figure("decoded packets") == len(packets)
    assert listener.figure("imu messages") > 250
    assert listener.figure("windows without imu") < listener.figure("windows") / 2
    truth = open_recording(recording).ground_truth()
    assert truth is not None
    assert len(listener.twists) >= 30
    stamps = np.array([stamp_to_ns(twist.header.stamp) for twist in listener.twists])
    angular = [twist.twist.twist.angular for twist in listener.twists]
    error = np.array([[w.x, w.y, w.z] for w in angular]) - truth.at(stamps)
    assert np.degrees(np.sqrt(np.nanmean(error**2) * 3)) < 3.0


def rows_of(folder: Path, calibration: str | None = None) -> Path:
    """0.2 s of text, an event each 100 us; calibration: its calib.txt."""
    folder.mkdir()
    rows = [f"{k * 1e-4:.6f} {k % 64} {k % 48} {k % 2}" for k in range(2000)]
    (folder / "events.txt").write_text("\n".join(rows) + "\n")
    if calibration is not None:
        (folder / "calib.txt").write_text(calibration)
    return folder


def test_file_source_that_cannot_work_ends_at_once(ros: Ros, tmp_path: Path) -> None:
    """One line before everything else: a file does not come later, nor does its calibration."""
    bare = rows_of(tmp_path / "bare")
    for path, line in (
        (Path("/nowhere/bag"), "/nowhere/bag does not exist"),
        (bare, f"the recording {bare} holds no calibration, and a twist needs one: set the param"),
    ):
        arguments = ("-p", "source:=file", "-p", f"recording:={path}")
        node, _ = ros.start_node(*arguments, ready=False)
        assert node.wait(START_S) == 2
        (said,) = node.output.strip().splitlines()
        assert said.startswith(f"perception_node: {line}")


def test_file_source_without_calibration_makes_flow_and_says_so(ros: Ros, tmp_path: Path) -> None:
    bare = rows_of(tmp_path / "bare")
    parameters = ("source:=file", f"recording:={bare}", "estimate:=both", "recording_end:=idle")
    node, listener = ros.start_node(*(w for p in parameters for w in ("-p", p)))
    line = f"no calibration in the recording {bare}, so no twist is made: set the parameter calib"
    listener.wait_for(lambda: line in listener.summary, 30, "the report")
    assert node.output.count(line) == 1
    assert listener.level == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("50 50 32 24 0 0 0 0 0\n", "calibration: 64x48, plumb_bob, focal lengths 50.0 50.0 px"),
        ("900 900 800 700 0 0 0 0 0\n", "calib.txt: the principal point (800, 700) is far from"),
    ],
)
def test_calib_txt_takes_the_size_of_the_packets(
    ros: Ros, tmp_path: Path, given: str, said: str
) -> None:
    recording = rows_of(tmp_path / "recording", "50 50 32 24 0 0 0 0 0\n64 48\n")
    calibration = tmp_path / "calib.txt"
    calibration.write_text(given)
    parameters = ("source:=file", f"recording:={recording}", f"calibration_file:={calibration}")
    node, listener = ros.start_node(
        *(w for p in (*parameters, "recording_end:=idle") for w in ("-p", p)), *PATIENT
    )
    listener.wait_for(lambda: "has ended" in listener.summary, 60, "the end")
    assert said in node.output
    fits = "64x48" in said
    assert (listener.figure("uncalibrated events") == 0) is fits
    assert (said in listener.summary) is not fits


def test_file_source_begins_again(ros: Ros, recording: Path) -> None:
    parameters = ("source:=file", f"recording:={recording}", "recording_rate:=4.0")
    parameters += ("recording_end:=loop",)
    node, listener = ros.start_node(*(w for p in parameters for w in ("-p", p)), *PATIENT)
    again = f"the recording {recording} begins again"
    listener.wait_for(lambda: again in node.output, 60, "the second time")
    listener.wait_for(lambda: listener.figure("sensor clock resets") > 0, 30, "the report")
    assert any("a recording began again" in status.message for status in listener.diagnostics)
    assert node.popen.poll() is None


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        (("source:=dv_camera", "camera_name:=nobody"), "no iniVation camera with 'nobody' in its"),
        (("source:=metavision",), "metavision_core cannot be imported"),
    ],
)
def test_absent_source_is_one_line_and_the_node_lives(
    ros: Ros, parameters: tuple[str, ...], line: str
) -> None:
    if "metavision" in parameters[0] and importlib.util.find_spec("metavision_core"):
        pytest.skip("metavision_core is installed here")
    node, listener = ros.start_node(*(w for p in parameters for w in ("-p", p)))
    listener.wait_for(lambda: line in listener.summary, 30, "the report")
    assert "no events yet" not in listener.summary
    assert node.output.count(line) == 1
    assert node.popen.poll() is None
    assert "Traceback" not in node.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("source:=usb", "source 'usb': expected one of ros, dv_camera, dv_network, metavision"),
        ("events_type:=array", "events_type 'array': expected one of auto, event_packet, dvs"),
        ("source:=file", "source 'file': expected the parameter recording"),
        ("recording:=x.bag", "recording 'x.bag': it is read with source 'file', not 'ros'"),
        ("recording_end:=die", "recording_end 'die': expected one of stop, idle, loop"),
        ("port:=99999", "port 99999: expected 1 to 65535"),
    ],
)
def test_bad_source_parameter_is_one_line(arguments: str, message: str) -> None:
    """Without a process: the node's own main prints what this raises in one line."""
    from event_binning_grad.errors import ConfigError
    from event_binning_grad.ros.parameters import NodeConfig

    name, _, value = arguments.partition(":=")
    values: dict[str, Any] = {name: int(value) if value.isdigit() else value}
    with pytest.raises(ConfigError) as error:
        NodeConfig(**values)
    assert message in str(error.value)


def test_triggers_are_published(ros: Ros, recording: Path) -> None:
    node, listener = ros.start_node(*PATIENT)
    sender = ros.new_node()
    heard: list[TimeReference] = []
    sender.create_subscription(TimeReference, f"/{listener.name}/trigger", heard.append, EVENTS_QOS)
    packets: list[Any] = list(open_recording(recording).packets())[:40]
    publisher = sender.create_publisher(type(to_packet(packets[0])), EVENTS, EVENTS_QOS)
    wait_for_subscriber(listener, publisher)
    # EXT_TRIGGER words, type 0xA: rising on channel 0, falling on channel 2.
    words = np.array([0xA001, 0xA200], "<u2").view(np.uint8)
    for k, packet in enumerate(packets):
        data = packet.events
        if k % 10 == 5:
            packet = replace(packet, events=np.concatenate([data, words]))
        publisher.publish(to_packet(packet))

    def all_heard() -> bool:
        rclpy.spin_once(sender, timeout_sec=0)
        return len(heard) == 8

    listener.wait_for(all_heard, 30, "the edges")
    assert [edge.source for edge in heard] == ["rising", "falling 2"] * 4
    for k, edge in enumerate(heard):
        packet = packets[5 + 10 * (k // 2)]
        stamp_ns = stamp_to_ns(packet.header.stamp)
        assert 0 <= stamp_to_ns(edge.header.stamp) - stamp_ns < 10e6  # within its packet
        assert edge.header.frame_id == packet.header.frame_id
    assert isinstance(node, Process)


@pytest.mark.parametrize("kind", ["evt3", "event_array"])
def test_messages_of_the_intake_benchmark_are_a_stream(kind: str) -> None:
    """Over the place where they begin again, too: as many events as said, in the order of time."""
    messages = bench_intake.MESSAGES[kind](0.5e6)
    per_message = round(0.5 * bench_intake.PACKET_US)
    decoder, last_ns = PacketDecoder(), 0
    for number in [*range(3), *range(3 * 244 - 3, 3 * 244 + 3)]:
        data = messages.next(number, START_NS + number * bench_intake.PACKET_US * 1000)
        if kind == "evt3":
            packet = deserialize_message(data, messages.kind)
            assert packet.seq == number
        else:
            packet = event_array_packet(data, number)
        events = decoder.decode(packet).events
        assert len(events) == per_message
        assert events.t[0] >= last_ns
        assert events.t[-1] - events.t[0] <= bench_intake.PACKET_US * 1000
        last_ns = int(events.t[-1])
    assert decoder.counters.clock_resets == decoder.counters.time_steps_back == 0
