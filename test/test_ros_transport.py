"""The middleware's transport: large best-effort messages arrive, whoever else has which one."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ros_harness import Ros, ros_session

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
from sensor_msgs.msg import Image

from event_binning_grad.errors import ConfigError
from event_binning_grad.ros import transport
from event_binning_grad.ros.qos import EVENTS_QOS
from event_binning_grad.ros.transport import transport_environment

LARGE_DATA = {transport.PROFILE_VARIABLE: str(transport.PROFILE)}
OLD_LARGE_DATA = {transport.OLD_PROFILE_VARIABLE: str(transport.PROFILE)}
TOPIC = "/large_messages"
MESSAGES, MESSAGE_BYTES = 10, 4 << 20
# As the drivers do: best effort.
PUBLISH = f"""
import time
import rclpy
from sensor_msgs.msg import Image
from event_binning_grad.ros.qos import EVENTS_QOS
from event_binning_grad.ros.start import initialise

initialise([])
node = rclpy.create_node("sender")
publisher = node.create_publisher(Image, "{TOPIC}", EVENTS_QOS)
while not publisher.get_subscription_count():
    time.sleep(0.02)
time.sleep(0.7)
message = Image(height=1, width={MESSAGE_BYTES}, data=bytes({MESSAGE_BYTES}))
for number in range({MESSAGES}):
    message.step = number
    publisher.publish(message)
    time.sleep(0.1)
time.sleep(1)
rclpy.try_shutdown()
"""


@pytest.fixture
def ros(tmp_path: Path) -> Iterator[Ros]:
    with ros_session(tmp_path) as session:
        yield session


def test_large_messages_of_our_executables_arrive(ros: Ros) -> None:
    """At a receiver with the default transport: what counts is the sender's."""
    node, numbers = ros.new_node(), []
    node.create_subscription(Image, TOPIC, lambda message: numbers.append(message.step), EVENTS_QOS)
    sender = subprocess.Popen([sys.executable, "-c", PUBLISH])
    try:
        deadline_s = time.monotonic() + 60
        while sender.poll() is None and time.monotonic() < deadline_s:
            rclpy.spin_once(node, timeout_sec=0.05)
        assert sender.returncode == 0
    finally:
        sender.kill()
        sender.wait()
    assert numbers == list(range(MESSAGES))


@pytest.mark.parametrize(
    ("choice", "environment", "expected"),
    [
        ("large_data", {}, LARGE_DATA),
        ("large_data", {"ROS_DISTRO": "kilted"}, LARGE_DATA),
        ("large_data", {"ROS_DISTRO": "humble"}, OLD_LARGE_DATA),
        ("large_data", {"ROS_DISTRO": "humble", "ROS_LOCALHOST_ONLY": "1"}, {}),
        ("large_data", {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, {}),
        ("large_data", {transport.BUILTIN_VARIABLE: "UDPv4"}, {}),
        ("large_data", {transport.PROFILE_VARIABLE: "mine.xml"}, {}),
        ("large_data", {transport.BUILTIN_VARIABLE: ""}, LARGE_DATA),
        ("default", {}, {transport.BUILTIN_VARIABLE: "DEFAULT"}),
        ("default", {transport.BUILTIN_VARIABLE: "UDPv4"}, {}),
    ],
)
def test_what_the_user_has_chosen_stands(
    choice: str, environment: dict[str, str], expected: dict[str, str]
) -> None:
    assert transport_environment(choice, environment) == expected


def test_little_shared_memory_is_not_overdrawn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(transport, "_WANTED_BYTES", 1 << 60)
    assert transport_environment("large_data", {}) == {transport.BUILTIN_VARIABLE: "DEFAULT"}
    assert "MB free, expected at least" in caplog.text
    monkeypatch.setattr(transport, "_SHARED_MEMORY", tmp_path / "none")
    assert transport_environment("large_data", {}) == {}


def test_unknown_transport_is_one_line() -> None:
    with pytest.raises(ConfigError, match="transport 'udp': expected one of large_data, default"):
        transport_environment("udp", os.environ)
