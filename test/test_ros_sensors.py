"""Readings of other sensors: from messages to values, and their way to the worker. No ROS."""

from __future__ import annotations

import array
import math
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from event_binning_grad.errors import ConfigError
from event_binning_grad.events.companions import (
    SensorError,
    to_angular_velocity,
    to_depth,
    to_range,
)
from event_binning_grad.pipeline import PipelineConfig, PipelineCounters
from event_binning_grad.ros import worker
from event_binning_grad.ros.packet_queue import PacketQueue
from event_binning_grad.ros.sensors import (
    Reading,
    ReadingQueue,
    Sensor,
    converters,
    needed_sensors,
    to_rotation,
)
from event_binning_grad.sources.source import Measurement

NAN = math.nan


def image(values: np.ndarray, encoding: str, padding: int = 0) -> SimpleNamespace:
    """A sensor_msgs/Image of a [H, W] array, its rows padded by so many bytes."""
    height, width = values.shape
    rows = np.frombuffer(values.tobytes(), np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    return SimpleNamespace(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(values.dtype.byteorder == ">"),
        step=rows.shape[1],
        data=array.array("B", rows.tobytes()),
    )


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_depth_in_millimetres(order: str, padding: int) -> None:
    values = np.array([[1500, 0, 65535], [1, 2000, 300]], np.dtype(f"{order}u2"))
    depth = to_depth(image(values, "16UC1", padding))
    assert depth.dtype == np.float32
    assert depth.dtype.isnative
    np.testing.assert_allclose(depth, [[1.5, NAN, 65.535], [0.001, 2.0, 0.3]], rtol=1e-6)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("order", ["<", ">"])
def test_depth_in_metres(order: str, padding: int) -> None:
    values = np.array([[1.5, NAN, math.inf], [-1.0, 0.0, 0.25]], np.dtype(f"{order}f4"))
    depth = to_depth(image(values, "32FC1", padding))
    assert depth.dtype == np.float32
    assert depth.dtype.isnative
    np.testing.assert_array_equal(depth, [[1.5, NAN, NAN], [NAN, NAN, 0.25]])


def test_depth_is_not_a_view_of_the_message() -> None:
    message = image(np.ones((2, 2), np.float32), "32FC1")
    depth = to_depth(message)
    np.frombuffer(message.data, np.uint8)[:] = 0
    assert (depth == 1).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoding": "mono8"}, ["'mono8'", "16UC1 (mm) or 32FC1 (m)"]),
        ({"encoding": "16UC1; jpeg compressed"}, ["16UC1 (mm) or 32FC1 (m)"]),
        ({"height": 0, "step": 0, "data": array.array("B")}, ["0 bytes", "4x0"]),
        ({"step": 15}, ["rows of 15 bytes"]),
        ({"height": 4}, ["48 bytes", "4x4"]),
        ({"data": array.array("B", bytes(47))}, ["47 bytes"]),
    ],
)
def test_bad_depth_is_refused_in_one_line(changes: dict[str, Any], words: list[str]) -> None:
    message = image(np.ones((3, 4), np.float32), "32FC1")
    vars(message).update(changes)
    with pytest.raises(SensorError) as refused:
        to_depth(message)
    assert all(word in str(refused.value) for word in words), refused.value
    assert "\n" not in str(refused.value)


def range_message(value: float, low: float = 0.2, high: float = 8.0) -> SimpleNamespace:
    return SimpleNamespace(range=value, min_range=low, max_range=high)


@pytest.mark.parametrize("value", [0.2, 1.5, 8.0])
def test_range_within_the_limits(value: float) -> None:
    assert to_range(range_message(value)) == value


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf, 0.19, 8.01, -1.0])
def test_range_without_a_measurement_is_refused(value: float) -> None:
    with pytest.raises(SensorError, match=r"0\.2 to 8 m"):
        to_range(range_message(value))


def test_range_zero_is_refused_whatever_the_limits() -> None:
    with pytest.raises(SensorError, match="range 0 m"):
        to_range(range_message(0.0, low=0.0))


def imu_message(x: float, y: float, z: float, covariance: float = 0.0) -> SimpleNamespace:
    angular_velocity = SimpleNamespace(x=x, y=y, z=z)
    return SimpleNamespace(
        angular_velocity=angular_velocity, angular_velocity_covariance=[covariance] + 8 * [0.0]
    )


# The camera looks along the IMU's x axis, the IMU's z axis is up.
CAMERA_FROM_IMU = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])


def test_angular_velocity_is_turned_into_the_camera_frame() -> None:
    convert = converters(CAMERA_FROM_IMU)[Sensor.IMU]
    np.testing.assert_array_equal(convert(imu_message(1.0, 2.0, 3.0)), [-2.0, -3.0, 1.0])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (imu_message(1.0, 2.0, 3.0, covariance=-1.0), "no angular velocity"),
        (imu_message(1.0, NAN, 3.0), "expected finite numbers"),
        (imu_message(math.inf, 0.0, 0.0), "expected finite numbers"),
    ],
)
def test_bad_imu_is_refused(message: SimpleNamespace, words: str) -> None:
    with pytest.raises(SensorError, match=words):
        to_angular_velocity(message)


def test_quaternion_and_matrix_say_the_same() -> None:
    from scipy.spatial.transform import Rotation

    for rotation in Rotation.random(5, rng=np.random.default_rng(0)):
        np.testing.assert_allclose(to_rotation(rotation.as_quat()), rotation.as_matrix())
        matrix = rotation.as_matrix()
        np.testing.assert_array_equal(to_rotation(matrix.ravel().tolist()), matrix)
    np.testing.assert_array_equal(to_rotation([0.0, 0.0, 0.0, 1.0]), np.eye(3))
    np.testing.assert_allclose(to_rotation([0.5, -0.5, 0.5, 0.5]), CAMERA_FROM_IMU, atol=1e-12)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((), "0 numbers, expected 4"),
        ((1.0, 0.0, 0.0), "3 numbers, expected 4"),
        ((0.0, 0.0, 0.0, 0.0), "norm 0"),
        ((1.0, 1.0, 0.0, 0.0), "unit quaternion"),
        ((NAN, 0.0, 0.0, 1.0), "unit quaternion"),
        (tuple(2 * np.eye(3).ravel()), "no rotation"),
        (tuple(-np.eye(3).ravel()), "no rotation"),
        (tuple(np.full(9, NAN)), "no rotation"),
    ],
)
def test_what_is_no_rotation_is_refused(values: tuple[float, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        to_rotation(values)


def reading(stamp_ns: int, sensor: Sensor = Sensor.IMU) -> Reading:
    return Reading(sensor, stamp_ns, np.zeros(3))


def test_readings_keep_their_place_between_the_packets() -> None:
    queue = ReadingQueue()
    for stamp_ns, packets_before in ((10, 0), (11, 1), (12, 1), (13, 2)):
        queue.put(reading(stamp_ns), packets_before)
    assert [r.stamp_ns for r in queue.take(0)] == [10]  # before the first packet
    assert [r.stamp_ns for r in queue.take(1)] == [11, 12]
    assert queue.take(1) == []
    queue.put(reading(14), 9)
    assert [r.stamp_ns for r in queue.take()] == [13, 14]


def test_what_is_on_the_clock_of_the_events_waits_until_that_is_known() -> None:
    queue = ReadingQueue()
    queue.put(reading(1, Sensor.RANGE), 0)
    queue.put(Measurement("imu", 2, np.zeros(3), clock_of_events=True), 0)
    queue.put(Measurement("trigger", 3, True, clock_of_events=True), 1)
    queue.put(Measurement("depth", 4, None), 1)
    assert [each.stamp_ns for each in queue.take(5, clock_known=False)] == [4, 1]
    assert [each.stamp_ns for each in queue.take(0)] == [2]
    assert [each.stamp_ns for each in queue.take()] == [3]


def test_readings_that_nobody_takes_give_way_to_newer_ones_of_the_same_sensor() -> None:
    queue = ReadingQueue()
    queue.put(reading(-1, Sensor.RANGE), 0)
    for stamp_ns in range(40):
        queue.put(reading(stamp_ns, Sensor.DEPTH), 0)
    taken = queue.take()
    assert [r.stamp_ns for r in taken if r.sensor is Sensor.DEPTH] == list(range(8, 40))
    assert queue.dropped == dict.fromkeys(Sensor, 0) | {Sensor.DEPTH: 8}
    assert len(taken) == 33


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, {}),
        ({"motion_model": "full", "depth": "constant", "depth_m": 1.0}, {}),
        (
            {"motion_model": "full", "depth": "image"},
            {Sensor.DEPTH: "motion_model full with depth image"},
        ),
        (
            {"motion_model": "full", "depth": "range"},
            {Sensor.RANGE: "motion_model full with depth range"},
        ),
        ({"imu": "prior"}, {Sensor.IMU: "motion_model rotation with imu prior"}),
        (
            {"motion_model": "translation", "depth": "image", "imu": "fixed"},
            {
                Sensor.DEPTH: "motion_model translation with depth image",
                Sensor.IMU: "motion_model translation with imu fixed",
            },
        ),
    ],
)
def test_only_what_the_parameters_need_is_subscribed_to(
    changes: dict[str, Any], needed: dict[Sensor, str]
) -> None:
    assert needed_sensors(PipelineConfig(**changes)) == needed


class RecordingPipeline:
    """Notes what reaches the pipeline, in order; refuses ranges. Each packet completes a window."""

    camera = None

    def __init__(self, config: PipelineConfig, flow: None = None) -> None:
        self.config = config
        self.counters = PipelineCounters()
        self.knows_clock = True
        self.taken: list[tuple[str, int]] = []
        self.estimated: list[bool] = []

    def push(self, packet: Any, estimate: bool) -> list[SimpleNamespace]:
        self.taken.append(("packet", int(packet.header.frame_id)))
        self.estimated.append(estimate)
        if estimate:
            return [SimpleNamespace(solve_time_s=0.001, iterations=3, contrast_gain=2.0)]
        self.counters.skipped_windows += 1
        return []

    def compensated_image(self) -> None:
        return None

    def take_triggers(self) -> list[Any]:
        return []

    def push_imu(self, stamp_ns: int, angular_velocity: np.ndarray) -> None:
        self.taken.append(("imu", stamp_ns))

    def push_range(self, stamp_ns: int, range_m: float) -> None:
        raise ConfigError("no range wanted")

    def push_depth(self, stamp_ns: int, depth_m: np.ndarray) -> None:
        self.taken.append(("depth", stamp_ns))


class Notes:
    """A worker's sink."""

    def __init__(self) -> None:
        self.refused: list[tuple[Sensor, str]] = []
        self.failures: list[BaseException] = []
        self.estimated: list[int] = []
        self.ready = threading.Event()

    def on_ready(self) -> None:
        self.ready.set()

    def on_estimate(self, estimate: Any, frame_id: str, image: Any) -> None:
        self.estimated.append(int(frame_id))

    def on_refused_reading(self, sensor: Sensor, reason: str) -> None:
        self.refused.append((sensor, reason))

    def on_failure(self, error: BaseException) -> None:
        self.failures.append(error)


def numbered(packet: int) -> SimpleNamespace:
    """A packet whose number is its frame."""
    return SimpleNamespace(header=SimpleNamespace(frame_id=str(packet)))


@pytest.fixture
def recording_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "Pipeline", RecordingPipeline)
    monkeypatch.setattr(worker, "warm_up", lambda config, camera: None)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("recording_pipeline")
def test_worker_hands_readings_on_in_order_with_the_packets() -> None:
    packets: PacketQueue[Any] = PacketQueue(10.0)
    readings, notes = ReadingQueue(), Notes()

    def put(*names: str) -> None:
        for name in names:
            if name.startswith("packet"):
                packets.put(numbered(int(name[6:])), time.monotonic(), 1)
            else:
                sensor = Sensor(name.rstrip("0123456789"))
                stamp_ns = int(name[len(sensor.value) :])
                readings.put(reading(stamp_ns, sensor), packets.received_packets)

    put("imu1", "packet1", "imu2", "range3", "packet2", "packet3", "depth4", "packet4")
    thread = worker.Worker(PipelineConfig(), packets, readings, notes, 5.0)  # type: ignore
    taken = thread._pipeline.taken  # type: ignore[attr-defined]
    thread.start()
    wait_for(lambda: len(taken) == 7)
    put("imu5")  # no packet comes any more
    wait_for(lambda: len(taken) == 8)
    assert thread.stop(5.0)
    assert [f"{kind}{number}" for kind, number in taken] == [
        "imu1", "packet1", "imu2", "packet2", "packet3", "depth4", "packet4", "imu5"
    ]  # fmt: skip
    assert notes.estimated == [1, 2, 3, 4]
    assert notes.refused == [(Sensor.RANGE, "no range wanted")]
    assert not notes.failures


@pytest.mark.usefixtures("recording_pipeline")
def test_worker_that_is_behind_leaves_windows_out_but_never_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tenth of a second after an estimate comes the next one, at the latest."""
    began_s = time.monotonic()
    packets: PacketQueue[Any] = PacketQueue(100.0)
    notes = Notes()
    for packet in range(28):
        packets.put(numbered(packet), began_s - 30.0, 1)  # waited for long
    thread = worker.Worker(PipelineConfig(), packets, ReadingQueue(), notes, 20.0)  # type: ignore
    taken = thread._pipeline.taken  # type: ignore[attr-defined]
    # Each packet takes 30 ms.
    clock = SimpleNamespace(monotonic=lambda: began_s + 0.03 * len(taken))
    monkeypatch.setattr(worker, "time", clock)
    thread.start()
    wait_for(lambda: len(taken) == 28)
    packets.put(numbered(28), began_s - 30.0, 1)  # late by itself, and alone
    wait_for(lambda: len(taken) == 29)
    assert thread.stop(5.0)
    assert [packet for _, packet in taken] == list(range(29))  # none is dropped
    # And the last one's: nothing waits behind it.
    assert notes.estimated == [0, 5, 10, 15, 20, 25, 27, 28]
    assert thread.counters.skipped_windows == 21
    assert not notes.failures


@pytest.mark.usefixtures("recording_pipeline")
def test_worker_that_keeps_up_estimates_everything() -> None:
    packets: PacketQueue[Any] = PacketQueue(100.0)
    notes = Notes()
    for packet in range(20):
        packets.put(numbered(packet), time.monotonic(), 1)
    thread = worker.Worker(PipelineConfig(), packets, ReadingQueue(), notes, 20.0)  # type: ignore
    thread.start()
    wait_for(lambda: len(notes.estimated) == 20)
    assert thread.stop(5.0)
    assert thread.counters.skipped_windows == 0
    assert not notes.failures
