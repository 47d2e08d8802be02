"""The perception node as a process, over real DDS."""

from __future__ import annotations

import array
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from event_camera_msgs.msg import EventPacket
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_harness import (
    CAMERA_INFO,
    DEPTH,
    EVENTS,
    IMU,
    RANGE,
    START_S,
    Listener,
    Ros,
    latencies_s,
    ros_session,
)
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, Imu, Range

from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.recordings import open_recording, write_bag
from event_binning_grad.events.types import Events, stamp_to_ns
from event_binning_grad.pipeline import Pipeline
from event_binning_grad.ros.messages import UNKNOWN_VARIANCE, to_camera_info, to_packet
from event_binning_grad.ros.qos import EVENTS_QOS
from event_binning_grad.simulate import SimulationConfig, write_simulation

CONFIG = Path(__file__).resolve().parents[1] / "config" / "default.yaml"
SIMULATION = SimulationConfig(duration_s=2.0, width=160, height=120, peak_rad_s=(3.0, 3.0, 3.0))
# Nothing is dropped, however slow the machine is.
PATIENT = ("-p", "queue_ms:=60000.0")
BEST_EFFORT = ReliabilityPolicy.BEST_EFFORT
SMALL_WINDOWS = ("-p", "window_events:=8000")
ON, OFF = 125_183, 218_291  # events of the sample recording test_events_1


@pytest.fixture
def ros(tmp_path: Path) -> Iterator[Ros]:
    with ros_session(tmp_path) as session:
        yield session


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s of a small camera that turns at up to 3 rad/s."""
    path = tmp_path_factory.mktemp("simulated") / "bag"
    write_simulation(path, SIMULATION)
    return path


@pytest.fixture(scope="module")
def events(recording: Path) -> Events:
    """The events of the recording on the robot's clock."""
    chunks: list[Events] = []

    class Gather(Pipeline):
        def _push_events(self, events: Events, estimate: bool) -> list:
            chunks.append(events.copy())
            return []

    pipeline = Gather()
    for packet in open_recording(recording).packets():
        pipeline.push(packet)
    merged = Events.concatenate(chunks)
    shift = SIMULATION.start_s * 10**9 - int(merged.t[0])
    return replace(merged, t=merged.t + shift)


def as_arguments(parameters: Iterable[str]) -> list[str]:
    return [word for parameter in parameters for word in ("-p", parameter)]


def test_from_bag_to_twist(ros: Ros, recording: Path, tmp_path: Path) -> None:
    log = tmp_path / "published.csv"
    parameters = (
        "--params-file",
        str(CONFIG),
        *PATIENT,
        *SMALL_WINDOWS,
        "-p",
        "use_sim_time:=true",
    )
    node, listener = ros.start_node(*parameters)
    assert "is not known here" not in node.output
    listener.listen_to_images()
    replay = ros.replay(recording, "--clock", "--publish-log", str(log))
    listener.wait_for(lambda: replay.popen.poll() is not None, 120, "the replay's end")
    assert replay.wait() == 0, replay.output
    listener.wait_until_idle()

    assert listener.figure("lost packets") == 0
    assert listener.figure("shed packets") == 0
    assert listener.figure("events") > 300_000
    assert listener.figure("estimates ok") == listener.figure("published") == len(listener.twists)
    assert len(listener.twists) >= 30
    truth = open_recording(recording).ground_truth()
    assert truth is not None
    stamps = [stamp_to_ns(twist.header.stamp) for twist in listener.twists]
    angular = [twist.twist.twist.angular for twist in listener.twists]
    error = np.array([[w.x, w.y, w.z] for w in angular]) - truth.at(np.array(stamps))
    assert np.degrees(np.sqrt(np.nanmean(error**2) * 3)) < 2.0

    for twist in listener.twists:
        covariance = np.array(twist.twist.covariance).reshape(6, 6)
        assert (np.linalg.eigvalsh(covariance) > 0).all()
        assert (np.diag(covariance)[:3] == UNKNOWN_VARIANCE).all()
        assert (covariance[3:, :3] == 0).all()
        linear = twist.twist.twist.linear
        assert (linear.x, linear.y, linear.z) == (0, 0, 0)
        assert twist.header.frame_id == "event_camera"
    assert [stamp_to_ns(window.header.stamp) for window in listener.windows] == stamps
    assert all(stamp_to_ns(w.time_ref) > stamp_to_ns(w.header.stamp) for w in listener.windows)
    assert all(latency > 0 for latency in latencies_s(listener, log))

    assert 0 < len(listener.images) <= len(listener.twists)
    for image in listener.images:
        assert (image.height, image.width, image.encoding, image.step) == (120, 160, "mono8", 160)
        assert stamp_to_ns(image.header.stamp) in stamps
        pixels = np.frombuffer(image.data, np.uint8)
        assert pixels.max() == 255
        assert pixels.min() == 0


def test_simulated_time_is_that_of_the_recording_and_may_go_back(ros: Ros, tmp_path: Path) -> None:
    """A bag in a loop, with /clock: nothing is stamped by the wall's clock, and where /clock goes
    back all begins anew, the IMU's history too."""
    write_simulation(tmp_path / "bag", replace(SIMULATION, duration_s=1.2, imu_hz=200.0))
    parameters = ("use_sim_time:=true", "imu:=start", "diagnostics_period_s:=0.25")
    node, listener = ros.start_node(*PATIENT, *SMALL_WINDOWS, *as_arguments(parameters))
    other = ros.new_node()
    clocks: list[int] = []
    heard: list[tuple[int, int]] = []  # of diagnostics: the stamp, and /clock as it was known here
    other.create_subscription(Clock, "/clock", lambda m: clocks.append(stamp_to_ns(m.clock)), 100)

    def note(message: DiagnosticArray) -> None:
        if any(status.name.startswith(f"/{listener.name}:") for status in message.status):
            heard.append((stamp_to_ns(message.header.stamp), clocks[-1] if clocks else 0))

    other.create_subscription(DiagnosticArray, "/diagnostics", note, 100)
    replay = ros.replay(tmp_path / "bag", "--clock", "--loop")

    def went_back() -> bool:
        for _ in range(50):
            rclpy.spin_once(other, timeout_sec=0)
        return bool((np.diff(clocks) < -(10**9)).any())

    listener.wait_for(went_back, 60, "/clock to go back")
    listener.wait_for(lambda: listener.figure("sensor clock resets") >= 1, 30, "the report")
    replay.send(signal.SIGINT)
    assert replay.wait() == 0
    listener.wait_until_idle()

    start_ns = SIMULATION.start_s * 10**9
    stamps = np.array([stamp_to_ns(twist.header.stamp) for twist in listener.twists])
    assert start_ns < stamps.min() < stamps.max() < start_ns + 1.2e9
    back = np.flatnonzero(np.diff(stamps) < 0)
    assert len(back) >= 1
    assert all(stamps[k] - stamps[k + 1] > 1e9 for k in back)
    with_clock = [(stamp, clock) for stamp, clock in heard if clock]
    assert len(with_clock) > 3
    assert all(start_ns <= stamp <= start_ns + 1.3e9 for stamp, _ in with_clock[1:])
    near = [abs(stamp - clock) < 0.5e9 for stamp, clock in with_clock]
    assert np.mean(near) > 0.5  # /clock may have gone back meanwhile
    begun = "camera's clock began anew: it restarted, or a recording began again"
    assert any(begun in status.message for status in listener.diagnostics)
    assert "seq went back" in listener.text("last discontinuity")
    assert listener.figure("lost packets") == listener.figure("rejected packets") == 0
    assert listener.figure("windows without imu") < listener.figure("windows") / 4
    assert node.popen.poll() is None


def test_linear_velocity_from_depth_images_in_a_bag(ros: Ros, tmp_path: Path) -> None:
    """Objects before a wall; the camera turns and moves, a depth camera and an IMU beside it."""
    config = replace(
        SIMULATION, duration_s=1.5, scene="layers", peak_rad_s=(1.0, 1.0, 1.0),
        peak_m_s=(0.6, 0.6, 0.6), depth_hz=30.0, imu_hz=200.0,
    )  # fmt: skip
    write_simulation(tmp_path / "bag", config)
    parameters = ("motion_model:=full", "depth:=image", "imu:=start")
    _, listener = ros.start_node(*PATIENT, *SMALL_WINDOWS, *as_arguments(parameters))
    replay = ros.replay(tmp_path / "bag")
    listener.wait_for(lambda: replay.popen.poll() is not None, 120, "the replay's end")
    assert replay.wait() == 0, replay.output
    listener.wait_until_idle()

    assert listener.figure("depth messages") >= 44  # of 46: the first may come too early
    assert listener.figure("imu messages") >= 290  # of 301
    assert listener.figure("depth refused") == listener.figure("imu refused") == 0
    assert abs(float(listener.text("depth behind events s"))) < 0.2
    assert abs(float(listener.text("imu behind events s"))) < 0.2
    assert not any("stamps on" in status.message for status in listener.diagnostics)

    truth = open_recording(tmp_path / "bag").ground_truth()
    assert truth is not None
    stamps = np.array([stamp_to_ns(twist.header.stamp) for twist in listener.twists])
    assert len(stamps) > 70  # of 150 that are due
    linear = [twist.twist.twist.linear for twist in listener.twists]
    true = truth.linear_at(stamps)
    assert true is not None
    error = np.array([[v.x, v.y, v.z] for v in linear]) - true
    assert np.sqrt(np.nanmean(error**2)) < 0.1
    assert np.sqrt(np.nanmean(error**2)) < np.sqrt(np.nanmean(true**2)) / 3
    for twist in listener.twists:
        covariance = np.array(twist.twist.covariance).reshape(6, 6)
        assert (np.linalg.eigvalsh(covariance) > 0).all()
        assert (np.diag(covariance) < 1).all()
        assert covariance[:3, 3:].any()


def test_sample_bags_without_calibration(ros: Ros, data_dir: Path) -> None:
    """Every event arrives, from both kinds of bag, and the node says why there is no twist."""
    _, listener = ros.start_node(*PATIENT)
    for n, name in enumerate(("test_events_1", "test_events_1.bag"), start=1):
        replay = ros.replay(data_dir / "bags" / name)
        listener.wait_for(lambda replay=replay: replay.popen.poll() is not None, 60, "the replay")
        assert replay.wait() == 0, replay.output
        listener.wait_until_idle()
        assert listener.figure("lost packets") == 0
        assert listener.figure("on events") == n * ON
        assert listener.figure("off events") == n * OFF
        assert listener.figure("events") == n * (ON + OFF)
        assert listener.figure("steps back in time") == 0
    assert "restarted" in listener.text("last discontinuity")
    assert listener.figure("uncalibrated events") == 2 * (ON + OFF)
    assert any(status.level == b"\x01" for status in listener.diagnostics)
    assert "no calibration" in listener.summary
    assert "calibration_file" in listener.summary
    assert not listener.twists


def test_bad_packets_between_good_ones(ros: Ros, events: Events) -> None:
    node, listener = ros.start_node(*PATIENT, *SMALL_WINDOWS)
    sender = ros.new_node()
    publisher = sender.create_publisher(EventPacket, EVENTS, EVENTS_QOS)
    camera = sender.create_publisher(CameraInfo, CAMERA_INFO, 1)
    listener.wait_for(
        lambda: bool(publisher.get_subscription_count() and camera.get_subscription_count()),
        30,
        "the node's subscriptions",
    )
    listener.spin_for(0.5)
    config = SIMULATION.camera()
    info = {"width": config.width, "height": config.height}
    info |= {"distortion_model": config.distortion_model, "d": config.d, "k": config.K}
    camera.publish(to_camera_info(info, 1, "event_camera"))
    listener.wait_for(lambda: "calibration: 160x120" in node.output, 30, "the calibration")

    rng = np.random.default_rng(0)
    packets = [to_packet(packet) for packet in packetize(events, 4.0)]
    spoil = {
        100: {"encoding": "unheard_of"},
        150: {"width": 0},
        200: {"width": 320, "height": 240},
        250: {"encoding": "mono", "events": array.array("B", b"1234567")},
        300: {"events": array.array("B", rng.bytes(3000))},
    }
    for k, packet in enumerate(packets):
        for name, value in spoil.get(k, {}).items():
            setattr(packet, name, value)
        publisher.publish(packet)
        time.sleep(0.004)
    listener.wait_until_idle()

    assert listener.figure("lost packets") == 0
    assert listener.figure("rejected packets") == 4
    assert "packet dropped: " in node.output
    assert listener.figure("discontinuities") >= 4
    before_first, after_last = (stamp_to_ns(packets[k].header.stamp) for k in (100, 350))
    stamps = [stamp_to_ns(twist.header.stamp) for twist in listener.twists]
    assert min(stamps) < before_first
    assert max(stamps) > after_last
    assert node.popen.poll() is None


def write_long(path: Path, events: Events, repeats: int) -> float:
    """A bag of the events several times one after the other; its length in s."""
    duration_ns = int(events.t[-1] - events.t[0]) + 1000
    stream = (replace(events, t=events.t + k * duration_ns) for k in range(repeats))
    config = SIMULATION.camera()
    info = {"width": config.width, "height": config.height}
    info |= {"distortion_model": config.distortion_model, "d": config.d, "k": config.K}
    write_bag(path, packetize(stream, 4.0), info)
    return repeats * duration_ns * 1e-9


def assert_estimates_stay_fresh(
    listener: Listener, log: Path, duration_s: float, longest_s: float
) -> None:
    # What the node dropped itself does not count as lost on the way, and the other way round.
    published = sum(1 for _ in log.open()) - 1
    packets = listener.figure("packets")
    assert listener.figure("decoded packets") + listener.figure("shed packets") == packets
    assert packets + listener.figure("lost packets") <= published
    # Without a bound the lag would grow to seconds.
    latency = np.array(latencies_s(listener, log))
    assert len(latency) > 20
    assert np.percentile(latency, 90) < longest_s
    # Estimates come from all of the recording, not only from its begin.
    first_s = stamp_to_ns(listener.twists[0].header.stamp) * 1e-9
    last_s = stamp_to_ns(listener.twists[-1].header.stamp) * 1e-9
    assert last_s - first_s > 0.8 * duration_s


def test_overload_leaves_windows_out_and_the_stream_whole(
    ros: Ros, events: Events, tmp_path: Path
) -> None:
    """More windows are due than the machine can estimate; it decodes what comes with ease."""
    path, log = tmp_path / "long", tmp_path / "published.csv"
    duration_s = write_long(path, events, 5)
    parameters = ("output_rate_hz:=1000.0", "max_std_rad_s:=100.0", "queue_ms:=2000.0")
    _, listener = ros.start_node(*as_arguments(parameters))
    replay = ros.replay(path, "--rate", "2", "--publish-log", str(log))
    listener.wait_for(lambda: replay.popen.poll() is not None, 120, "the replay's end")
    listener.wait_until_idle()

    # From half a second on it catches up, long before packets would be dropped.
    assert_estimates_stay_fresh(listener, log, duration_s, 0.5 + 0.7)
    windows, skipped = listener.figure("windows"), listener.figure("skipped windows")
    assert skipped > windows / 10
    assert windows > 20  # ten a second at least, but for hiccups
    assert listener.figure("skipped events") > 0
    assert any("windows left out to keep up" in s.message for s in listener.diagnostics)
    values = [{v.key: v.value for v in status.values} for status in listener.diagnostics]
    shares = [float(v["used events share"]) for v in values if v["used events share"]]
    assert 0 < min(shares) < 0.95
    assert listener.figure("shed packets") < listener.figure("packets") / 20


def test_overload_keeps_estimates_fresh(ros: Ros, events: Events, tmp_path: Path) -> None:
    """Packets may hardly wait, so that each window's estimation makes some wait too long."""
    path, log = tmp_path / "long", tmp_path / "published.csv"
    duration_s = write_long(path, events, 8)
    parameters = ("window_events:=1000", "output_rate_hz:=0.0", "min_events:=500")
    parameters += ("max_std_rad_s:=100.0", "queue_ms:=2.0")
    _, listener = ros.start_node(*as_arguments(parameters))
    replay = ros.replay(path, "--rate", "4", "--publish-log", str(log))
    listener.wait_for(lambda: replay.popen.poll() is not None, 120, "the replay's end")
    listener.wait_until_idle()

    assert_estimates_stay_fresh(listener, log, duration_s, 1.0)
    assert listener.figure("shed packets") > listener.figure("packets") / 20
    assert listener.figure("shed bytes") > 0
    assert listener.figure("discontinuities") > 0
    assert any("dropped: events come faster" in status.message for status in listener.diagnostics)


def test_sensors_are_subscribed_to_judged_and_counted(ros: Ros) -> None:
    parameters = ("motion_model:=full", "depth:=image", "imu:=prior")
    node, listener = ros.start_node(*as_arguments(parameters))
    model = "motion_model full with"
    listener.wait_for(lambda: "no depth yet" in listener.summary, 30, "the first judgement")
    assert f"{model} depth image: no depth yet on {DEPTH} (nobody publishes it)" in listener.summary
    assert f"{model} imu prior: no imu yet on {IMU} (nobody publishes it)" in listener.summary

    sender = ros.new_node()
    # Reliable, as most drivers of depth cameras publish: best effort loses images of this size.
    depth_publisher = sender.create_publisher(Image, DEPTH, 10)
    imu_publisher = sender.create_publisher(Imu, IMU, QoSProfile(depth=10, reliability=BEST_EFFORT))
    range_publisher = sender.create_publisher(Range, RANGE, 10)
    listener.wait_for(lambda: bool(depth_publisher.get_subscription_count()), 30, "subscriptions")
    listener.wait_for(lambda: bool(imu_publisher.get_subscription_count()), 30, "subscriptions")
    listener.spin_for(0.5)
    assert not range_publisher.get_subscription_count()
    depth = Image(height=480, width=640, encoding="32FC1", step=2560)
    depth.data = array.array("B", np.ones(480 * 640, np.float32).tobytes())
    imu = Imu()
    for k in range(20):
        depth.encoding = "32FC1" if k % 2 else "mono8"
        imu.angular_velocity.x = 0.5 if k % 4 else float("nan")
        depth.header.stamp.sec = imu.header.stamp.sec = SIMULATION.start_s + k
        depth_publisher.publish(depth)
        imu_publisher.publish(imu)
        listener.spin_for(0.05)
    listener.wait_for(lambda: listener.figure("depth messages") == 20, 30, "the last depth")
    listener.wait_for(lambda: listener.figure("imu messages") == 20, 30, "the last IMU data")

    assert (listener.figure("depth refused"), listener.figure("imu refused")) == (10, 5)
    assert "encoding 'mono8', expected 16UC1 (mm) or 32FC1 (m)" in listener.text(
        "depth last refusal"
    )
    assert "expected finite numbers" in listener.text("imu last refusal")
    assert float(listener.text("depth age s")) < 10
    assert any(f"messages on {DEPTH} refused" in s.message for s in listener.diagnostics)
    assert f"message on {DEPTH} dropped: encoding 'mono8'" in node.output
    listener.wait_for(lambda: f"no depth on {DEPTH} for" in listener.summary, 30, "silence")
    assert listener.level == 2
    assert node.popen.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_busy_node(ros: Ros, recording: Path, number: signal.Signals) -> None:
    parameters = ("window_events:=1000", "min_events:=1000", "output_rate_hz:=0.0")
    node, listener = ros.start_node(*as_arguments(parameters))
    ros.replay(recording, "--loop")
    listener.wait_for(lambda: bool(listener.twists), 60, "the first twist")
    node.send(number)
    assert node.wait() == 0
    assert "Traceback" not in node.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after_s", [0.0, 0.5, 2.0])
def test_signal_ends_a_starting_node(ros: Ros, number: signal.Signals, after_s: float) -> None:
    node, _ = ros.start_node(ready=False)
    node.wait_until_it_handles(signal.SIGTERM)
    time.sleep(after_s)
    node.send(number)
    assert node.wait() == 0, node.output
    assert "Traceback" not in node.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "gradient:=sideways"), "gradient 'sideways': expected one of unbiased, raw"),
        (("-p", "imu_to_camera:=[1, 0, 0]"), "imu_to_camera: rotation [1.0, 0.0, 0.0] has 3"),
        (("-p", "depth_plane:=1.0"), "depth_plane 1.0: expected a list of numbers"),
        (("-p", "queue_ms:=soon"), "queue_ms 'soon' is str, expected float"),
        (("-p", "use_sim_time:=maybe"), "'use_sim_time' to 'maybe' of type 'STRING', expecting"),
        (("-p", "calibration_file:=/nowhere/camera.yaml"), "/nowhere/camera.yaml"),
        (("--params-file", "/nowhere/params.yaml"), "/nowhere/params.yaml"),
        (("--", "window_events:=3"), "arguments window_events:=3: expected none but --ros-args"),
    ],
)
def test_bad_parameter_is_one_line(ros: Ros, arguments: tuple[str, ...], message: str) -> None:
    node, _ = ros.start_node(*arguments, ready=False)
    assert node.wait(START_S) == 2
    lines = node.output.strip().splitlines()
    assert len([line for line in lines if message in line]) == 1, node.output
    assert "Traceback" not in node.output


def test_missing_gpu_is_one_line(ros: Ros) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    node, _ = ros.start_node("-p", "device:=cuda", ready=False)
    assert node.wait(START_S) == 1
    assert "device 'cuda': torch finds no CUDA device" in node.output
    assert "Traceback" not in node.output


def test_unknown_parameter_is_reported(ros: Ros) -> None:
    node, _ = ros.start_node("-p", "window_event:=5000")
    assert "parameter window_event is not known here" in node.output
