"""Conversions to messages, parameters, and what the node does with an estimate."""

from __future__ import annotations

import array
import dataclasses
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
import yaml
from geometry_msgs.msg import Vector3Stamped
from ros_harness import ros_session
from sensor_msgs.msg import Image

from event_binning_grad.errors import ConfigError, PacketError
from event_binning_grad.estimation import EgomotionEstimate, Status
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.types import EventPacket, Events
from event_binning_grad.pipeline import PipelineConfig
from event_binning_grad.ros import messages
from event_binning_grad.ros.health import Level
from event_binning_grad.ros.parameters import NodeConfig, declare, field_descriptions
from event_binning_grad.ros.perception import PerceptionNode

CONFIG = Path(__file__).resolve().parents[1] / "config" / "default.yaml"
NOTHING = np.full(3, np.nan)
ESTIMATE = EgomotionEstimate(
    stamp_ns=12_345_678_901,
    window_start_ns=12_300_000_000,
    window_end_ns=12_400_000_002,
    events=20_000,
    angular_velocity=np.array([1.0, -2.0, 3.0]),
    angular_acceleration=np.zeros(3),
    covariance=np.array([[4.0, 1.0, 0.5], [1.0, 5.0, 0.25], [0.5, 0.25, 6.0]]),
    iterations=4,
    contrast_gain=2.0,
    status=Status.OK,
    solve_time_s=0.004,
    used_events=10_000,
    linear_velocity=NOTHING,
    linear_covariance=np.full((3, 3), np.nan),
    cross_covariance=np.full((3, 3), np.nan),
    plane_normal=NOTHING,
    velocity_over_distance=NOTHING,
)
# rows v, columns omega
CROSS = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]])
WITH_VELOCITY = dataclasses.replace(
    ESTIMATE,
    linear_velocity=np.array([0.5, -0.25, 2.0]),
    linear_covariance=np.diag([7.0, 8.0, 9.0]),
    cross_covariance=CROSS,
)
WITH_PLANE = dataclasses.replace(
    ESTIMATE,
    plane_normal=np.array([0.0, 0.6, 0.8]),
    velocity_over_distance=np.array([0.1, 0.2, -0.3]),
)


def test_twist() -> None:
    message = messages.to_twist(ESTIMATE, "camera")
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (12, 345_678_901)
    assert message.header.frame_id == "camera"
    angular, linear = message.twist.twist.angular, message.twist.twist.linear
    assert (angular.x, angular.y, angular.z) == (1.0, -2.0, 3.0)
    assert (linear.x, linear.y, linear.z) == (0.0, 0.0, 0.0)
    covariance = np.array(message.twist.covariance).reshape(6, 6)
    np.testing.assert_array_equal(covariance[3:, 3:], ESTIMATE.covariance)
    np.testing.assert_array_equal(np.diag(covariance)[:3], messages.UNKNOWN_VARIANCE)
    assert (covariance == covariance.T).all()


def test_twist_with_linear_velocity() -> None:
    message = messages.to_twist(WITH_VELOCITY, "camera")
    linear = message.twist.twist.linear
    assert (linear.x, linear.y, linear.z) == (0.5, -0.25, 2.0)
    covariance = np.array(message.twist.covariance).reshape(6, 6)
    np.testing.assert_array_equal(covariance[:3, :3], WITH_VELOCITY.linear_covariance)
    np.testing.assert_array_equal(covariance[:3, 3:], CROSS)
    np.testing.assert_array_equal(covariance[3:, :3], CROSS.T)
    np.testing.assert_array_equal(covariance[3:, 3:], ESTIMATE.covariance)


def test_linear_velocity_without_scale_is_unknown() -> None:
    message = messages.to_twist(WITH_PLANE, "camera")
    linear = message.twist.twist.linear
    assert (linear.x, linear.y, linear.z) == (0.0, 0.0, 0.0)
    covariance = np.array(message.twist.covariance).reshape(6, 6)
    np.testing.assert_array_equal(np.diag(covariance)[:3], messages.UNKNOWN_VARIANCE)
    assert np.isfinite(covariance).all()


def test_what_is_taken_from_elsewhere_has_no_covariance_of_its_own() -> None:
    """The translation model takes the angular velocity from the IMU."""
    nothing = np.full((3, 3), np.nan)
    message = messages.to_twist(
        dataclasses.replace(WITH_VELOCITY, covariance=nothing, cross_covariance=nothing), "camera"
    )
    covariance = np.array(message.twist.covariance).reshape(6, 6)
    np.testing.assert_array_equal(covariance[:3, :3], WITH_VELOCITY.linear_covariance)
    np.testing.assert_array_equal(covariance[3:, 3:], messages.UNKNOWN_VARIANCE * np.eye(3))
    assert (covariance[:3, 3:] == 0).all()
    assert message.twist.twist.angular.y == -2.0


def test_vector() -> None:
    message = messages.to_vector(np.array([1.0, 2.0, 3.0]), 12_345_678_901, "camera")
    assert (message.vector.x, message.vector.y, message.vector.z) == (1.0, 2.0, 3.0)
    assert message.header == messages.to_twist(ESTIMATE, "camera").header


def test_window_reference() -> None:
    message = messages.to_window_reference(ESTIMATE, "camera")
    assert message.header.stamp == messages.to_twist(ESTIMATE, "camera").header.stamp
    assert (message.time_ref.sec, message.time_ref.nanosec) == (12, 400_000_002)
    assert message.source == "window_end"


@pytest.mark.parametrize("time_ns", [-(2**62), 2**62])
def test_wild_time_is_a_packet_error(time_ns: int) -> None:
    with pytest.raises(PacketError, match="driver's stamps"):
        messages.to_time(time_ns)


def test_time_before_the_epoch() -> None:
    stamp = messages.to_time(-1)
    assert (stamp.sec, stamp.nanosec) == (-1, 999_999_999)


def test_image_scale() -> None:
    counts = np.zeros((4, 5), np.float32)
    counts[0] = 1.0  # single events stay dark: 3 are white at least
    counts[1, 0] = 3.0
    message = Image()
    messages.write_image(message, counts, 5, "camera")
    assert isinstance(message.data, array.array)  # an ndarray would take rclpy 0.4 s
    pixels = np.frombuffer(message.data, np.uint8).reshape(4, 5)
    assert pixels[1, 0] == 255
    assert (pixels[0] == 85).all()
    assert (pixels[2:] == 0).all()
    buffer = message.data
    messages.write_image(message, 100 * counts, 6, "camera")
    assert message.data is buffer
    assert message.header.stamp.nanosec == 6
    assert np.frombuffer(message.data, np.uint8).max() == 255


def test_large_image_is_fast() -> None:
    counts = np.random.default_rng(0).poisson(1.0, (720, 1280)).astype(np.float32)
    message = Image()
    messages.write_image(message, counts, 0, "camera")
    began = time.process_time()
    messages.write_image(message, counts, 0, "camera")
    assert time.process_time() - began < 0.2


def test_diagnostics() -> None:
    stamp = messages.to_time(7)
    good = messages.to_status("other", Level.OK, "", {})
    bad = messages.to_status("n", Level.WARN, "text", {"events": "5"})
    message = messages.to_diagnostics(stamp, bad, good)
    status, other = message.status
    assert other.name == "other"
    assert (status.name, status.level, status.message) == ("n", b"\x01", "text")
    assert [(item.key, item.value) for item in status.values] == [("events", "5")]
    assert message.header.stamp.nanosec == 7


def test_packet_survives() -> None:
    t = np.arange(5) * 1000
    xy = np.arange(5, dtype=np.uint16)
    events = Events(t, xy, xy, np.ones(5, np.uint8), 32, 24)
    (packet,) = packetize(events, first_seq=2**40)
    message = messages.to_packet(packet)
    for field in dataclasses.fields(EventPacket):
        if field.name not in ("header", "events"):
            assert getattr(message, field.name) == getattr(packet, field.name)
    assert bytes(message.events) == bytes(packet.events)
    assert message.header.frame_id == packet.header.frame_id


def test_parameter_file_is_the_manual() -> None:
    """Every parameter stands in it, with its default and an explanation above; the pipeline's in
    the order of its fields."""
    (content,) = yaml.safe_load(CONFIG.read_text()).values()
    configs = dataclasses.asdict(PipelineConfig()) | dataclasses.asdict(NodeConfig())
    # YAML has lists, and so has ROS.
    defaults = {k: list(v) if isinstance(v, tuple) else v for k, v in configs.items()}
    assert content["ros__parameters"] == defaults
    assert {name: type(value) for name, value in content["ros__parameters"].items()} == {
        name: type(value) for name, value in defaults.items()
    }
    of_pipeline = [field.name for field in dataclasses.fields(PipelineConfig)]
    assert [name for name in content["ros__parameters"] if name in of_pipeline] == of_pipeline
    lines = [line.strip() for line in CONFIG.read_text().splitlines()]
    for name in defaults:
        (index,) = (k for k, line in enumerate(lines) if line.startswith(f"{name}:"))
        assert lines[index - 1].startswith("# "), f"{name} is not explained"


@pytest.mark.parametrize("kind", [PipelineConfig, NodeConfig])
def test_every_parameter_is_described(kind: type) -> None:
    descriptions = field_descriptions(kind)
    assert list(descriptions) == [field.name for field in dataclasses.fields(kind)]
    assert all(descriptions.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("queue_ms", 0.0),
        ("queue_ms", float("nan")),
        ("iwe_rate_hz", -1.0),
        ("flow_points", 0),
        ("imu_to_camera", (1.0, 2.0)),
        ("imu_to_camera", (1.0, 1.0, 1.0, 1.0)),
    ],
)
def test_bad_node_config_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(NodeConfig(), **{name: value})


@dataclasses.dataclass(frozen=True)
class EveryKind:
    flag: bool = True
    text: str = "some"
    count: int = 3
    length_m: float = 1.0
    plane: tuple[float, ...] = (0.0, 0.0)


def declared(tmp_path: Path, *parameters: str) -> EveryKind:
    arguments = ["--ros-args", *(word for text in parameters for word in ("-p", text))]
    with ros_session(tmp_path, *arguments) as ros:
        return declare(ros.new_node(), EveryKind)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ((), EveryKind()),
        (
            ("flag:=false", "text:=other", "count:=4", "length_m:=2", "plane:=[1.0, 2.5]"),
            EveryKind(False, "other", 4, 2.0, (1.0, 2.5)),
        ),
        (("plane:=[0, 0, 1, 2]",), EveryKind(plane=(0.0, 0.0, 1.0, 2.0))),
    ],
)
def test_parameters_of_every_kind(
    tmp_path: Path, parameters: tuple[str, ...], expected: EveryKind
) -> None:
    found = declared(tmp_path, *parameters)
    assert found == expected
    assert type(found.length_m) is float
    assert all(type(number) is float for number in found.plane)


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("plane:=5.0", "plane 5.0: expected a list of numbers"),
        ("plane:=[true, false]", "expected a list of numbers"),
        ("plane:=['a']", "expected a list of numbers"),
        ("plane:=abc", "plane 'abc': expected a list of numbers"),
        ("flag:=1", "flag 1 is int, expected bool"),
        ("length_m:=[1.0]", "is list, expected float"),
    ],
)
def test_parameter_of_another_kind_is_refused(tmp_path: Path, parameter: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        declared(tmp_path, parameter)


@pytest.fixture
def perception(tmp_path: Path) -> Iterator[tuple[PerceptionNode, list]]:
    """A node that was not started, and the images that somebody who has subscribed gets."""
    with ros_session(tmp_path):
        node = PerceptionNode()
        yield node, []
        node.stop(1.0)
        node.destroy_node()


def test_image_is_made_only_for_a_subscriber(perception: tuple[PerceptionNode, list]) -> None:
    node, images = perception
    made: list[float] = []

    def image() -> np.ndarray:
        made.append(time.monotonic())
        return np.ones((4, 5), np.float32)

    node.on_estimate(ESTIMATE, "camera", image)
    assert not made
    other = rclpy.create_node("viewer")
    other.create_subscription(Image, "/perception/iwe", images.append, 10)
    deadline = time.monotonic() + 20
    while not images and time.monotonic() < deadline:
        node.on_estimate(ESTIMATE, "camera", image)
        rclpy.spin_once(other, timeout_sec=0.005)
    assert images
    other.destroy_node()
    assert len(made) < 2 or np.diff(made).min() > 0.03  # not more than 30 a second


def test_plane_is_published_for_who_listens_with_the_planar_model(tmp_path: Path) -> None:
    topics = {"velocity_over_distance": [0.1, 0.2, -0.3], "plane": [0.0, 0.6, 0.8]}
    heard: dict[str, list] = {topic: [] for topic in topics}
    with ros_session(tmp_path, "--ros-args", "-p", "motion_model:=planar") as ros:
        node, other = PerceptionNode(), ros.new_node()
        for topic, messages_heard in heard.items():
            other.create_subscription(
                Vector3Stamped, f"/perception/{topic}", messages_heard.append, 100
            )
        deadline = time.monotonic() + 20
        while not all(heard.values()) and time.monotonic() < deadline:
            node.on_estimate(WITH_PLANE, "camera", lambda: None)
            rclpy.spin_once(other, timeout_sec=0.01)
        for topic, expected in topics.items():
            vector = heard[topic][0].vector
            assert [vector.x, vector.y, vector.z] == expected
            assert heard[topic][0].header == messages.to_twist(WITH_PLANE, "camera").header
        # With a known scale the velocity is on ~/twist.
        scaled = dataclasses.replace(WITH_VELOCITY, stamp_ns=1)
        for _ in range(20):
            node.on_estimate(scaled, "camera", lambda: None)
            rclpy.spin_once(other, timeout_sec=0.01)
        stamps = {message.header.stamp.sec for both in heard.values() for message in both}
        assert stamps == {12}
        node.stop(1.0)
        node.destroy_node()


def test_other_models_have_no_plane_topics(perception: tuple[PerceptionNode, list]) -> None:
    node, _ = perception
    published = {publisher.topic_name for publisher in node.publishers}
    assert "/perception/twist" in published
    assert not published & {"/perception/velocity_over_distance", "/perception/plane"}
    node.on_estimate(WITH_PLANE, "camera", lambda: None)


def test_untrusted_estimate_is_not_published(perception: tuple[PerceptionNode, list]) -> None:
    node, _ = perception
    published: list = []
    node._twist.publish = published.append  # type: ignore[method-assign]
    node.on_estimate(ESTIMATE, "camera", lambda: None)
    for status in Status:
        if not status.ok:
            node.on_estimate(dataclasses.replace(ESTIMATE, status=status), "camera", lambda: None)
    assert len(published) == 1


def test_worker_error_ends_the_node(perception: tuple[PerceptionNode, list]) -> None:
    node, _ = perception
    node.on_failure(RuntimeError("broken"))
    assert isinstance(node.failure, RuntimeError)
    assert not node.context.ok()
