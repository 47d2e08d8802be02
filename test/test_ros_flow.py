"""Flow out of the node: real processes over real DDS, and the messages alone."""

from __future__ import annotations

import array
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from ros_harness import START_S, Listener, Ros, latencies_s, ros_session
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from event_binning_grad.errors import PacketError
from event_binning_grad.estimation.flow_estimate import FlowEstimate, FlowStatus
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.types import Events, stamp_to_ns
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.motion_field import motion_field
from event_binning_grad.pipeline_flow import FlowStage, PipelineConfig
from event_binning_grad.ros import flow_worker
from event_binning_grad.ros.flow_health import (
    FlowCounters,
    FlowReport,
    assess_flow,
    flow_figures,
)
from event_binning_grad.ros.flow_messages import (
    POINT_FIELDS,
    spread_samples,
    to_field_camera_info,
    write_points,
)
from event_binning_grad.ros.flow_worker import Chunk, ChunkQueue, FlowWorker
from event_binning_grad.ros.health import Activity, Level, Measurements
from event_binning_grad.ros.messages import write_pixels
from event_binning_grad.simulate import SimulationConfig, write_simulation

SIMULATION = SimulationConfig(duration_s=2.0, width=160, height=120, peak_rad_s=(3.0, 3.0, 3.0))
PATIENT = ("-p", "queue_ms:=60000.0")
BOTH = (*PATIENT, "-p", "estimate:=both", "-p", "window_events:=8000")


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


@dataclasses.dataclass
class FlowListener:
    """Hears all flow topics of a node."""

    listener: Listener
    heard: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {"/camera_info": CameraInfo, "/points": PointCloud2}
        topics = ("", "/camera_info", "/confidence", "/normal", "/residual", "/points", "/image")
        for topic in topics:
            heard = self.heard.setdefault(topic, [])
            self.listener.node.create_subscription(
                kinds.get(topic, Image), f"/{self.listener.name}/flow{topic}", heard.append, 1000
            )

    def stamps(self, topic: str) -> list[int]:
        return [stamp_to_ns(message.header.stamp) for message in self.heard[topic]]

    def arrays(self, topic: str) -> list[np.ndarray]:
        kinds = {"32FC1": (np.float32, 1), "32FC2": (np.float32, 2)}
        kinds |= {"mono8": (np.uint8, 1), "rgb8": (np.uint8, 3)}
        found = []
        for message in self.heard[topic]:
            kind, channels = kinds[message.encoding]
            pixels = np.frombuffer(message.data, kind)
            assert message.step == message.width * channels * pixels.itemsize
            found.append(pixels.reshape(message.height, message.width, channels))
        return found


def replay_all(ros: Ros, listener: Listener, recording: Path) -> None:
    replay = ros.replay(recording)
    listener.wait_for(lambda: replay.popen.poll() is not None, 120, "the replay's end")
    assert replay.wait() == 0, replay.output
    listener.wait_until_idle()


def test_flow_and_twist_from_a_bag(ros: Ros, recording: Path) -> None:
    _, listener = ros.start_node(*BOTH, "-p", "flow_stride:=2")
    flow = FlowListener(listener)
    listener.spin_for(0.5)
    replay_all(ros, listener, recording)
    listener.wait_for(lambda: flow.stamps("")[-1:] == flow.stamps("/residual")[-1:], 20, "fields")
    listener.hear_all()

    assert len(listener.twists) >= 100
    assert listener.figure("published") == len(listener.twists)
    fields, stamps = flow.arrays(""), flow.stamps("")
    assert len(fields) == listener.flow_figure("published") >= 40  # of 60
    assert listener.flow_figure("fields ok") == len(fields)
    assert listener.flow_text("pixels") == "undistorted"
    assert listener.flow_figure("dropped events") == 0
    period_ns = np.median(np.diff(stamps))
    assert period_ns == pytest.approx(1e9 / 30, rel=0.2)
    for message in flow.heard[""]:
        assert (message.height, message.width, message.encoding) == (60, 80, "32FC2")
        assert message.header.frame_id == "event_camera"

    # In the robot's clock, and the flow of the true rotation.
    truth = open_recording(recording).ground_truth()
    assert truth is not None
    camera = SIMULATION.camera()
    errors, speeds = [], []
    for stamp, field in zip(stamps, fields, strict=True):
        omega = truth.at(stamp)
        if np.isfinite(omega).all():
            true = motion_field(camera, omega)[::2, ::2]
            errors.append(np.nanmedian(np.linalg.norm(field - true, axis=-1)))
            speeds.append(np.nanmedian(np.linalg.norm(true, axis=-1)))
    assert len(errors) > 30
    assert np.median(errors) < 0.2 * np.median(speeds)
    # The camera's rotation explains all of it.
    residuals = [np.nanmedian(np.abs(residual)) for residual in flow.arrays("/residual")]
    assert len(residuals) > 30
    assert np.median(residuals) < 0.2 * np.median(speeds)

    for topic in ("/camera_info", "/confidence", "/normal", "/points"):
        assert set(flow.stamps(topic)) <= set(stamps)
        assert len(flow.stamps(topic)) >= len(stamps) - 2
    info = Camera.from_camera_info(flow.heard["/camera_info"][-1])
    assert (info.width, info.height) == (80, 60)
    assert info.K[:2].tolist() == (camera.K[:2] / 2).tolist()
    assert not info.d.any()
    for confidence, field in zip(flow.arrays("/confidence"), fields[-len(stamps) :], strict=False):
        assert confidence.shape == (60, 80, 1)
        assert 0 <= confidence.min() <= confidence.max() <= 1
        assert field.shape == (60, 80, 2)
    assert all(image.shape == (60, 80, 3) for image in flow.arrays("/image"))
    assert len(flow.heard["/image"]) > 10
    cloud = flow.heard["/points"][-1]
    assert [field.name for field in cloud.fields] == list(POINT_FIELDS)
    assert cloud.width > 50


def test_flow_without_calibration_is_on_raw_pixels(ros: Ros, data_dir: Path) -> None:
    _, listener = ros.start_node(*PATIENT, "-p", "estimate:=flow")
    flow = FlowListener(listener)
    listener.spin_for(0.5)
    replay_all(ros, listener, data_dir / "bags" / "test_events_1")
    assert flow.heard[""]
    assert not flow.heard["/camera_info"]
    assert listener.flow_text("pixels") == "raw"
    published = [s for s in listener.flow_diagnostics if s.message.startswith("publishing")]
    assert published
    assert "on raw pixels: no calibration yet" in published[-1].message
    assert published[-1].level == b"\x00"
    # There is no twist, nor a word of the egomotion.
    assert {status.name for status in listener.diagnostics} == {f"/{listener.name}: events"}
    assert not any("calibration" in status.message for status in listener.diagnostics)
    assert listener.figure("events") == 125_183 + 218_291
    topics = {name for name, _ in listener.node.get_topic_names_and_types()}
    assert f"/{listener.name}/flow" in topics


def test_flow_that_is_too_slow_does_not_hold_up_the_twist(
    ros: Ros, recording: Path, tmp_path: Path
) -> None:
    """Far more flow is asked for than any machine can give."""
    log = tmp_path / "published.csv"
    parameters = ("estimate:=both", "flow_rate_hz:=2000.0", "flow_window_px:=0.0", "flow_stride:=1")
    arguments = [word for parameter in parameters for word in ("-p", parameter)]
    _, listener = ros.start_node(*arguments)
    flow = FlowListener(listener)
    listener.spin_for(0.5)
    replay = ros.replay(recording, "--publish-log", str(log))
    listener.wait_for(lambda: replay.popen.poll() is not None, 120, "the replay's end")
    listener.wait_until_idle()

    assert listener.flow_figure("skipped windows") > listener.flow_figure("windows") > 1
    assert any("left out to keep up" in status.message for status in listener.flow_diagnostics)
    assert len(flow.heard[""]) > 1
    assert listener.figure("shed packets") == 0
    windows, skipped = listener.figure("windows"), listener.figure("skipped windows")
    assert windows > 2 * skipped
    assert len(listener.twists) > 100
    assert np.percentile(latencies_s(listener, log), 90) < 0.2


def test_egomotion_alone_has_no_flow_topics(ros: Ros) -> None:
    _, listener = ros.start_node()
    listener.spin_for(1.0)
    topics = {name for name, _ in listener.node.get_topic_names_and_types()}
    assert f"/{listener.name}/iwe" in topics
    assert not any(name.startswith(f"/{listener.name}/flow") for name in topics)
    assert not listener.flow_diagnostics


def test_bad_flow_parameter_is_one_line(ros: Ros) -> None:
    node, _ = ros.start_node("-p", "estimate:=all", ready=False)
    assert node.wait(START_S) == 2
    message = "estimate 'all': expected one of egomotion, flow, both"
    lines = node.output.strip().splitlines()
    assert len([line for line in lines if message in line]) == 1, node.output
    assert "Traceback" not in node.output


# --------------------------------------------------------------------------------- beside the twist


def events_of(chunks: int, size: int = 500, period_ns: int = 2_000_000, start: int = 0) -> list:
    """Chunks of random events, one each 2 ms."""
    rng = np.random.default_rng(start)
    found = []
    for k in range(start, start + chunks):
        t = k * period_ns + np.sort(rng.integers(0, period_ns, size))
        x, y = (rng.integers(0, side, size, dtype=np.uint16) for side in (64, 48))
        found.append(Events(t, x, y, np.ones(size, np.uint8), 64, 48))
    return found


def field(stamp_ns: int = 5, stride: int = 2, status: FlowStatus = FlowStatus.OK) -> FlowEstimate:
    """A field of 24 x 32 samples; the flow tells where it is, one sample is unknown, and one
    column normal."""
    rows, columns = np.mgrid[:24, :32].astype(np.float32)
    flow = np.stack([columns, rows], axis=-1)
    confidence = np.full((24, 32), 0.5, np.float32)
    flow[0, 0], confidence[0, 0] = np.nan, 0.0
    normal = np.zeros((24, 32), bool)
    normal[:, 7] = True
    return FlowEstimate(
        stamp_ns, 0, 10, 1000, 500, flow, confidence, normal, 1.5, 4, 3.0, status, 0.004,
        stride, 100.0,
    )  # fmt: skip


class Notes:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.fields: list[FlowEstimate] = []
        self.frames: list[str] = []
        self.threads: set[str] = set()
        self.refused: list[str] = []
        self.failures: list[BaseException] = []

    def on_flow(self, estimate: FlowEstimate, stage: FlowStage, frame_id: str) -> None:
        self.fields.append(estimate)
        self.frames.append(frame_id)
        self.threads.add(threading.current_thread().name)

    def on_rejected(self, reason: str) -> None:
        self.refused.append(reason)

    def on_calibration(self, camera: Camera, error: Exception | None) -> None:
        self.refused.append(str(error))

    def on_failure(self, error: BaseException) -> None:
        self.failures.append(error)


def wait_for(condition: Any, timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


CONFIG = PipelineConfig(estimate="both", flow_min_events=500, flow_window_px=0.0)


class SlowStage(FlowStage):
    """Takes its time for a window, and estimates nothing."""

    seconds = 0.25

    def _estimate(self, window: Any) -> FlowEstimate:
        time.sleep(self.seconds)
        self.counters.windows += 1
        self.counters.window_events += window.fresh
        self.counters.skipped_events += window.skipped
        return field(int(window.events.t[-1]))


def test_worker_gives_fields_in_the_robots_clock() -> None:
    notes = Notes()
    worker = FlowWorker(CONFIG, 60.0, notes)
    worker.start()
    for k, events in enumerate(events_of(100)):
        worker.note_packet(time.monotonic(), f"frame_{k}")
        assert worker.push(events, 10**12) == ()
    wait_for(lambda: len(notes.fields) == 5 and not len(worker._queue))
    assert worker.stop(5.0)
    assert not notes.failures
    assert not notes.refused
    assert notes.threads == {"flow"}
    # The packet that completed the window, 33.3 ms long.
    assert notes.frames == [f"frame_{k}" for k in (16, 33, 50, 66, 83)]
    for k, estimate in enumerate(notes.fields, start=1):
        # The windows end at multiples of the period since the first event.
        end_ms = (estimate.window_end_ns - 10**12) / 1e6
        assert 100 * k / 3 - 0.1 < end_ms < 100 * k / 3 + 0.1
        assert estimate.window_start_ns < estimate.stamp_ns < estimate.window_end_ns
    counters = worker.counters
    held = len(worker._stage._buffer)
    assert counters.window_events + counters.skipped_events + held == 50_000
    activity = worker.take_activity()
    assert len(activity.lag_ms) == 5
    assert all(0 < share <= 1 for share in activity.known_share)
    assert worker.take_activity() == Activity()


@pytest.mark.parametrize(("estimate", "nice"), [("both", 5), ("flow", 0)])
def test_flow_gives_way_to_the_twist(estimate: str, nice: int) -> None:
    if not hasattr(os, "getpriority") or not Path("/proc/self/task").exists():
        pytest.skip("threads have no priority of their own here")
    found: list[int] = []

    class Look(Notes):
        def on_flow(self, estimate: FlowEstimate, stage: FlowStage, frame_id: str) -> None:
            found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before, interval_s = os.getpriority(os.PRIO_PROCESS, 0), sys.getswitchinterval()
    worker = FlowWorker(dataclasses.replace(CONFIG, estimate=estimate), 60.0, Look())
    worker.start()
    assert sys.getswitchinterval() <= (0.001 if nice else interval_s)
    for events in events_of(20):
        worker.push(events)
    wait_for(lambda: bool(found))
    assert worker.stop(5.0)
    assert found[0] == min(19, before + nice)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    assert sys.getswitchinterval() == interval_s


def test_worker_that_is_slow_blocks_nobody_and_accounts_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A field takes as long as 7 windows are apart; packets come in real time."""
    monkeypatch.setattr(flow_worker, "FlowStage", SlowStage)
    notes = Notes()
    worker = FlowWorker(CONFIG, 0.2, notes)
    worker.start()
    chunks, slowest_s, began_s = events_of(600), 0.0, time.monotonic()
    for k, events in enumerate(chunks):
        time.sleep(max(0.0, began_s + 0.002 * k - time.monotonic()))
        before_s = time.thread_time()
        worker.push(events)
        slowest_s = max(slowest_s, time.thread_time() - before_s)
    wait_for(lambda: len(worker._queue) == 0)
    assert worker.stop(5.0)
    assert slowest_s < 0.01
    counters = worker.counters
    assert 3 <= len(notes.fields) == counters.windows <= 8
    assert counters.skipped_windows > counters.windows
    binned = counters.window_events + counters.skipped_events + counters.discarded_events
    binned += counters.dropped_events + len(worker._stage._buffer)
    assert binned == 600 * 500
    # What is estimated is fresh.
    stamps = [estimate.stamp_ns for estimate in notes.fields]
    assert stamps == sorted(stamps)
    assert stamps[-1] > 800_000_000


@pytest.mark.parametrize(("estimate", "fields"), [("both", 1), ("flow", 5)])
def test_flow_waits_for_an_egomotion_that_is_behind(estimate: str, fields: int) -> None:
    """But for a field now and then, which is more than nothing."""
    notes = Notes()
    worker = FlowWorker(dataclasses.replace(CONFIG, estimate=estimate), 1.0, notes)
    worker.start()
    for events in events_of(100):
        worker.note_packet(time.monotonic() - 0.2, "")
        worker.push(events)
    wait_for(lambda: not len(worker._queue))
    assert worker.stop(5.0)
    assert len(notes.fields) == worker.counters.windows == fields
    assert worker.counters.skipped_windows == 5 - fields


def test_failure_of_the_flow_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(FlowStage, "push", fail)
    notes = Notes()
    worker = FlowWorker(CONFIG, 0.2, notes)
    worker.start()
    worker.push(events_of(1)[0])
    wait_for(lambda: bool(notes.failures))
    assert str(notes.failures[0]) == "broken"


def test_packet_that_cannot_be_published_is_rejected() -> None:
    class Refusing(Notes):
        def on_flow(self, estimate: FlowEstimate, stage: FlowStage, frame_id: str) -> None:
            raise PacketError("a wild time")

    notes = Refusing()
    worker = FlowWorker(CONFIG, 60.0, notes)
    worker.start()
    for events in events_of(40):
        worker.push(events)
    wait_for(lambda: len(notes.refused) == 2)
    assert worker.stop(5.0)
    assert notes.refused == ["a wild time"] * 2
    assert not notes.failures


def test_camera_of_another_size_is_used_from_the_next_events_on() -> None:
    notes = Notes()
    worker = FlowWorker(CONFIG, 60.0, notes)
    worker.start()
    camera = Camera(64, 48, np.array([[50.0, 0, 32], [0, 50.0, 24], [0, 0, 1]]))
    for events in events_of(20):
        worker.push(events)
    wait_for(lambda: len(notes.fields) == 1)
    assert worker.camera is None
    worker.set_camera(camera)
    worker.push(events_of(1, start=20)[0])
    wait_for(lambda: worker.camera is camera)
    small = events_of(1, start=21)[0]
    worker.push(dataclasses.replace(small, width=80))
    wait_for(lambda: bool(notes.refused))
    assert worker.stop(5.0)
    assert "events of a 80x48 sensor, but the calibration is for 64x48" in notes.refused[0]
    assert worker.counters.refused_events == 500


def chunk(events: int, follows: bool = True) -> Chunk:
    (some,) = events_of(1, size=events)
    return Chunk(some, 0, 0.0, "", follows)


def test_queue_drops_the_oldest_one_by_one() -> None:
    queue = ChunkQueue(0.3)
    queue.put(chunk(10, follows=False))
    queue.put(chunk(20))
    time.sleep(0.2)
    queue.put(chunk(30))
    time.sleep(0.15)
    queue.put(chunk(40))
    first, second = queue.get(0.0), queue.get(0.0)
    assert first is not None
    assert second is not None
    assert (len(first.chunk.events), first.dropped_events, first.follows) == (30, 30, False)
    assert 0.1 < first.waited_s < 0.3
    assert (len(second.chunk.events), second.dropped_events, second.follows) == (40, 0, True)
    assert queue.get(0.0) is None


def test_queue_keeps_the_last_chunk_of_a_stream_that_stopped() -> None:
    queue = ChunkQueue(0.05)
    queue.put(chunk(10))
    time.sleep(0.1)
    last = queue.get(0.0)
    assert last is not None
    assert (len(last.chunk.events), last.dropped_events) == (10, 0)


def test_queue_that_is_closed_gives_nothing() -> None:
    queue = ChunkQueue(0.3)
    queue.put(chunk(10))
    threading.Timer(0.05, queue.close).start()
    wait_for(lambda: queue.get(5.0) is None)


# ----------------------------------------------------------------------------------------- messages


def test_pixels_keep_their_buffer() -> None:
    estimate, message = field(), Image()
    write_pixels(message, estimate.flow, "32FC2", 12_345_678_901, "camera")
    assert isinstance(message.data, array.array)  # an ndarray would take rclpy very long
    assert (message.height, message.width, message.step) == (24, 32, 256)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (12, 345_678_901)
    assert message.header.frame_id == "camera"
    pixels = np.frombuffer(message.data, np.float32).reshape(24, 32, 2)
    np.testing.assert_array_equal(pixels, estimate.flow)
    buffer = message.data
    write_pixels(message, estimate.flow[:, ::-1], "32FC2", 6, "camera")
    assert message.data is buffer
    np.testing.assert_array_equal(pixels, estimate.flow[:, ::-1])
    write_pixels(message, estimate.confidence[::2], "32FC1", 6, "camera")
    assert (message.height, message.width, message.step, message.encoding) == (12, 32, 128, "32FC1")


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_camera_info_projects_to_the_samples(stride: int) -> None:
    K = np.array([[200.0, 0.3, 120.5], [0, 210.0, 88.0], [0, 0, 1]])
    camera = Camera(241, 181, K, "plumb_bob", np.array([-0.2, 0.06, 5e-4, -3e-4, 0.0]))
    info = to_field_camera_info(camera, stride, 5, "camera")
    assert (info.width, info.height) == (-(-241 // stride), -(-181 // stride))
    assert info.distortion_model == "plumb_bob"
    assert not any(info.d)
    ray = np.array([0.2, -0.1, 1.0])
    at_full = (camera.K @ ray)[:2]
    at_field = (np.array(info.k).reshape(3, 3) @ ray)[:2]
    np.testing.assert_allclose(at_full, stride * at_field)
    np.testing.assert_array_equal(np.array(info.p).reshape(3, 4)[:, :3].ravel(), info.k)
    assert info.header.stamp.nanosec == 5


def test_points_are_the_most_confident_and_spread() -> None:
    estimate, message = field(stride=2), PointCloud2()
    estimate.confidence[5, 9] = estimate.confidence[20, 30] = 1.0
    write_points(message, estimate, 12, "camera")
    points = np.frombuffer(message.data, np.float32).reshape(message.width, len(POINT_FIELDS))
    assert (message.height, message.point_step, message.row_step) == (1, 20, 20 * message.width)
    assert [(f.name, f.offset, f.datatype) for f in message.fields] == [
        (name, 4 * k, 7) for k, name in enumerate(POINT_FIELDS)
    ]
    assert 6 <= len(points) <= 12
    x, y, vx, vy, confidence = points.T
    np.testing.assert_array_equal(vx, x / 2)  # the flow tells where the sample is
    np.testing.assert_array_equal(vy, y / 2)
    assert {(18, 10), (60, 40)} <= {(x, y) for x, y, *_, c in points if c == 1.0}
    assert confidence.min() == 0.5
    write_points(message, estimate, 10_000, "camera")
    points = np.frombuffer(message.data, np.float32).reshape(message.width, len(POINT_FIELDS))
    assert len(points) == 24 * 31 - 1  # all but the normal column and the unknown one
    assert 14.0 not in points[:, 0]


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (130, 173), (180, 320)])
@pytest.mark.parametrize("most", [1, 10, 2000])
def test_samples_are_spread(shape: tuple[int, int], most: int) -> None:
    weight = np.random.default_rng(0).random(shape, np.float32) + 0.1
    rows, columns = spread_samples(weight, most)
    assert 1 <= len(rows) <= most
    assert len(rows) >= min(most, weight.size) / 4
    assert rows.max() < shape[0]
    assert columns.max() < shape[1]
    assert len({*zip(rows, columns, strict=True)}) == len(rows)
    best = np.unravel_index(weight.argmax(), shape)
    assert best in {*zip(rows, columns, strict=True)}
    nothing = spread_samples(np.zeros(shape, np.float32), most)
    assert len(nothing[0]) == len(nothing[1]) == 0


# ------------------------------------------------------------------------------------------- health

BEFORE = FlowReport(
    time_s=100.0,
    ready=True,
    last_arrival_s=100.0,
    last_published_s=100.0,
    published=50,
    calibrated=True,
    calibration_advice="",
    stride=2,
    device="cpu",
    gradient="unbiased",
)


def counts(ok: int = 0, **others: int) -> FlowCounters:
    estimates = dict.fromkeys(FlowStatus, 0) | {FlowStatus.OK: ok}
    estimates |= {FlowStatus[name.upper()]: n for name, n in others.items()}
    return FlowCounters(windows=sum(estimates.values()), estimates=estimates)


NOW = dataclasses.replace(
    BEFORE, time_s=101.0, last_arrival_s=100.99, last_published_s=100.98, published=80,
    counters=counts(ok=30),
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, Level.OK, ["publishing, on undistorted pixels"]),
        (
            {"calibrated": False, "calibration_advice": "no calibration yet: do this"},
            Level.OK,
            ["publishing, on raw pixels: no calibration yet: do this"],
        ),
        ({"ready": False}, Level.WARN, ["compiling"]),
        ({"last_arrival_s": 90.0}, Level.WARN, ["no events come"]),
        (
            {"counters": dataclasses.replace(counts(ok=30), dropped_events=900)},
            Level.WARN,
            ["900 events dropped", "flow_max_events"],
        ),
        (
            {"counters": dataclasses.replace(counts(ok=20), skipped_windows=10)},
            Level.WARN,
            ["10 of 30 windows left out to keep up", "flow_rate_hz"],
        ),
        (
            {"counters": dataclasses.replace(counts(ok=29), skipped_windows=1)},
            Level.OK,
            ["publishing"],
        ),
        (
            {"counters": counts(ok=2, no_contrast_gain=8)},
            Level.WARN,
            ["8 of 10 windows are not trusted", "8 no_contrast_gain", "sharper"],
        ),
        ({"counters": counts(), "last_published_s": 90.0}, Level.WARN, ["no window fills"]),
    ],
)
def test_what_is_wrong_with_the_flow_is_said(changes: dict, level: Level, words: list[str]) -> None:
    found, text = assess_flow(BEFORE, dataclasses.replace(NOW, **changes))
    assert found == level
    assert all(word in text for word in words), text
    assert "\n" not in text


@pytest.mark.parametrize("status", [status for status in FlowStatus if not status.ok])
def test_every_flow_status_has_advice(status: FlowStatus) -> None:
    now = dataclasses.replace(NOW, counters=counts(**{status.name.lower(): 3}))
    found = assess_flow(BEFORE, now)[1]
    assert f"(3 {status.value}): " in found
    assert not found.endswith(": ")


def test_flow_figures_are_plain_text() -> None:
    measured = Measurements()
    measured.add(field(), 0.012, 0.75)
    measured.add(field(), 0.020, 0.5)
    counters = dataclasses.replace(
        counts(ok=30), window_events=9000, used_events=4000, skipped_events=1000, skipped_windows=2
    )
    now = dataclasses.replace(NOW, activity=measured.take(), counters=counters)
    values = flow_figures(BEFORE, now)
    assert all(isinstance(value, str) for value in values.values())
    assert values["windows"] == values["fields ok"] == "30"
    assert values["published per s"] == "30.0"
    assert values["used events share"] == "0.400"
    assert (values["lag ms p50"], values["lag ms max"]) == ("16.00", "20.00")
    assert values["solve ms mean"] == "4.00"
    assert values["known pixels share mean"] == "0.62"
    assert (values["stride"], values["pixels"]) == ("2", "undistorted")
    assert flow_figures(BEFORE, NOW)["lag ms p50"] == ""
