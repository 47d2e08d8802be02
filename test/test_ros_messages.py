"""Conversions to messages, parameters, and what the node does with an estimate."""

from __future__ import annotations

import array
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
import yaml
from ros_harness import ros_session
from sensor_msgs.msg import Image

from event_binning_grad.errors import ConfigError, PacketError
from event_binning_grad.estimation import EgomotionEstimate, Status
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.types import EventPacket, Events, Header
from event_binning_grad.pipeline import PipelineConfig
from event_binning_grad.ros import messages
from event_binning_grad.ros.health import Level
from event_binning_grad.ros.parameters import NodeConfig, field_descriptions
from event_binning_grad.ros.perception import PerceptionNode

CONFIG = Path(__file__).resolve().parents[1] / "config" / "default.yaml"
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
    np.testing.assert_array_equal(np.diag(covariance)[:3], messages.UNKNOWN_LINEAR_VARIANCE)
    assert (covariance == covariance.T).all()


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
    message = messages.to_diagnostics("n", stamp, Level.WARN, "text", {"events": "5"})
    (status,) = message.status
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
    """Every parameter stands in it, with its default and an explanation above."""
    (content,) = yaml.safe_load(CONFIG.read_text()).values()
    defaults = dataclasses.asdict(PipelineConfig()) | dataclasses.asdict(NodeConfig())
    assert content["ros__parameters"] == defaults
    assert {name: type(value) for name, value in content["ros__parameters"].items()} == {
        name: type(value) for name, value in defaults.items()
    }
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
    ("name", "value"), [("queue_ms", 0.0), ("queue_ms", float("nan")), ("iwe_rate_hz", -1.0)]
)
def test_bad_node_config_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(NodeConfig(), **{name: value})


@pytest.fixture
def perception(tmp_path: Path) -> Iterator[tuple[PerceptionNode, list]]:
    """A node that was not started, and the images that somebody who has subscribed gets."""
    with ros_session(tmp_path):
        node = PerceptionNode()
        yield node, []
        node.stop(1.0)
        node.destroy_node()


PACKET = EventPacket(Header(), 4, 5, 0, 0, "evt3", False, np.empty(0, np.uint8))


def test_image_is_made_only_for_a_subscriber(perception: tuple[PerceptionNode, list]) -> None:
    node, images = perception
    made: list[float] = []

    def image() -> np.ndarray:
        made.append(time.monotonic())
        return np.ones((4, 5), np.float32)

    node.on_estimate(ESTIMATE, PACKET, image)
    assert not made
    other = rclpy.create_node("viewer")
    other.create_subscription(Image, "/perception/iwe", images.append, 10)
    deadline = time.monotonic() + 20
    while not images and time.monotonic() < deadline:
        node.on_estimate(ESTIMATE, PACKET, image)
        rclpy.spin_once(other, timeout_sec=0.005)
    assert images
    other.destroy_node()
    assert len(made) < 2 or np.diff(made).min() > 0.03  # not more than 30 a second


def test_untrusted_estimate_is_not_published(perception: tuple[PerceptionNode, list]) -> None:
    node, _ = perception
    published: list = []
    node._twist.publish = published.append  # type: ignore[method-assign]
    node.on_estimate(ESTIMATE, PACKET, lambda: None)
    for status in Status:
        if not status.ok:
            node.on_estimate(dataclasses.replace(ESTIMATE, status=status), PACKET, lambda: None)
    assert len(published) == 1


def test_worker_error_ends_the_node(perception: tuple[PerceptionNode, list]) -> None:
    node, _ = perception
    node.on_failure(RuntimeError("broken"))
    assert isinstance(node.failure, RuntimeError)
    assert not node.context.ok()
