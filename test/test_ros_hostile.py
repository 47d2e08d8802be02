"""Bad input over real DDS: the node lives, counts each by its reason, and says a line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from event_camera_msgs.msg import EventPacket
from rclpy.serialization import serialize_message
from ros_harness import CAMERA_INFO, EVENTS, Process, Ros, ros_session
from sensor_msgs.msg import CameraInfo, TimeReference

from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.types import Header, Stamp, stamp_to_ns
from event_binning_grad.ros.messages import to_camera_info, to_packet
from event_binning_grad.ros.qos import EVENTS_QOS
from event_binning_grad.simulate import SimulationConfig, write_simulation

PARAMETERS = ("queue_ms:=60000.0", "window_events:=8000", "diagnostics_period_s:=0.25")
LARGEST_S = 2**31 - 1


class Sender:
    """A camera's driver that is to be spoilt, and the node that listens to it.

    What it says of the node is of the time since begin().
    """

    def __init__(self, ros: Ros, recording: Path) -> None:
        self.packets: list[Any] = list(open_recording(recording).packets())
        info = open_recording(recording).calibration()
        assert info is not None
        self.info = dict(info)
        self.node, self.listener = ros.start_node(*(w for p in PARAMETERS for w in ("-p", p)))
        driver = ros.new_node()
        self.events = driver.create_publisher(EventPacket, EVENTS, EVENTS_QOS)
        self.camera_info = driver.create_publisher(CameraInfo, CAMERA_INFO, 1)
        publishers = (self.events, self.camera_info)
        self.listener.wait_for(
            lambda: all(each.get_subscription_count() for each in publishers), 30, "subscriptions"
        )
        self.listener.spin_for(0.5)

    def begin(self) -> None:
        self.listener.wait_until_idle()
        self._before = {item.key: item.value for item in self.listener.diagnostics[-1].values}
        self._statuses = len(self.listener.diagnostics)
        self._twists, self._output = len(self.listener.twists), len(self.node.output)

    @property
    def output(self) -> str:
        return self.node.output[self._output :]

    @property
    def stamps_s(self) -> list[float]:
        """Of the twists."""
        twists = self.listener.twists[self._twists :]
        return [stamp_to_ns(twist.header.stamp) * 1e-9 for twist in twists]

    def figure(self, name: str) -> int:
        return self.listener.figure(name) - int(self._before[name])

    def said(self, text: str) -> bool:
        return any(text in status.message for status in self.listener.diagnostics[self._statuses :])

    def calibrate(self, **changes: Any) -> None:
        self.camera_info.publish(to_camera_info(self.info | changes, 1, "event_camera"))

    def play(self, packets: list[Any]) -> None:
        for packet in packets:
            self.events.publish(to_packet(packet))
            time.sleep(0.001)
        self.listener.wait_until_idle()


def restamped(packets: list[Any], stamp: Stamp) -> list[Any]:
    return [replace(p, header=Header(stamp, p.header.frame_id)) for p in packets]


def memory_mb(process: Process) -> float:
    pages = int(Path(f"/proc/{process.popen.pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def mutated(packets: list[Any], count: int) -> list[bytes]:
    """Serialized packets with wrong fields and bytes."""
    rng = np.random.default_rng(0)
    encodings = ["evt2", "evt21", "libcaer", "libcaer_cmp", "mono", "trigger", "", "x" * 50]
    found = []
    for k in range(count):
        packet = packets[k % len(packets)]
        data = np.array(packet.events[:1200])
        data[rng.integers(0, len(data), len(data) // 20)] = rng.integers(0, 256, len(data) // 20)
        changes: dict[str, Any] = {"events": data[: rng.integers(0, len(data) + 1)]}
        wrong: dict[str, Any] = {
            "encoding": encodings[k % len(encodings)],
            "width": int(rng.integers(0, 1 << 32)),
            "seq": int(rng.integers(0, 1 << 63)),
            "time_base": int(rng.integers(0, 1 << 63)),
            "is_bigendian": True,
            "header": Header(Stamp(int(rng.integers(-LARGEST_S, LARGEST_S)), 0), "camera"),
        }
        changes |= {name: wrong[name] for name in wrong if rng.random() < 0.25}
        found.append(bytes(serialize_message(to_packet(replace(packet, **changes)))))
    return found


@pytest.fixture(scope="module")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sender]:
    """Of 0.6 s of a small camera that turns at up to 3 rad/s, EVT 3.0. One node takes it all."""
    folder = tmp_path_factory.mktemp("hostile")
    config = SimulationConfig(duration_s=0.6, width=160, height=120, peak_rad_s=(3.0, 3.0, 3.0))
    write_simulation(folder / "bag", config)
    with ros_session(folder) as ros:
        sender = Sender(ros, folder / "bag")
        yield sender
        assert sender.node.popen.poll() is None
        assert "Traceback" not in sender.node.output


def test_bad_calibrations(sender: Sender) -> None:
    """Said once each; a good one ends it, and is kept when a bad one comes after it."""
    sender.begin()
    listener, packets = sender.listener, sender.packets
    nan = "calibration: K or d holds NaN or infinity"
    for _ in range(20):
        sender.calibrate(k=np.full((3, 3), np.nan))
        listener.spin_for(0.01)
    listener.wait_for(lambda: nan in listener.summary, 30, "the report")
    assert sender.output.count(nan) == 1
    sender.play(packets[:20])
    assert sender.figure("uncalibrated events") == sender.figure("events") > 0

    sender.calibrate(width=320, height=240)
    listener.wait_for(lambda: "calibration: 320x240" in sender.output, 30, "the calibration")
    sender.play(packets[20:40])
    line = "events of a 160x120 sensor, but the calibration is for 320x240: use this camera's"
    assert sender.figure("rejected packets") == 20
    assert line in listener.text("last rejection")
    assert sender.said(line)
    assert not sender.said("no window fills")
    assert sender.output.count(line) == 1
    assert sender.figure("uncalibrated events") == sender.figure("events")
    assert not sender.stamps_s

    sender.calibrate()
    listener.spin_for(0.5)
    sender.calibrate(d=np.full(5, np.inf))
    kept = "the calibration before it stays in use"
    listener.wait_for(lambda: kept in listener.summary, 30, "the report")
    sender.play(packets[40:])
    assert len(sender.stamps_s) > 30


def test_a_stream_that_changes(sender: Sender) -> None:
    """Another sensor size in the middle, a driver that restarts, stamps of 0, a wild clock."""
    sender.calibrate()
    sender.begin()
    listener, packets = sender.listener, sender.packets
    sender.play(restamped(packets[:30], Stamp()))
    assert "seq went back from 299 to 0" in listener.text("last discontinuity")
    assert sender.figure("packets without stamp") == 30
    assert sender.said("header stamp of 0, which tells nothing of the robot's clock")

    sender.play(packets[30:130])
    sender.play([replace(p, width=320, height=240) for p in packets[130:140]])
    assert sender.figure("rejected packets") == 10
    assert "160, 120) to ('evt3', 320, 240)" in listener.text("last discontinuity")
    sender.play(packets[140:])
    assert sender.figure("rejected packets") == 10
    assert sender.figure("discontinuities") == sender.figure("sensor clock resets") == 3
    end_s = stamp_to_ns(packets[-1].header.stamp) * 1e-9
    assert sender.stamps_s[-1] == pytest.approx(end_s, abs=0.1)
    assert sender.figure("lost packets") == sender.figure("late packets") == 0

    # A host whose clock was never set is followed; times that ROS cannot write are refused.
    sender.play(restamped(packets, Stamp(10, 0)))
    assert 9.0 < sender.stamps_s[-1] < 11.0
    assert sender.figure("robot clock steps") > 0
    assert sender.said("the robot's clock was set by")
    heard: list[TimeReference] = []
    listener.node.create_subscription(
        TimeReference, f"/{listener.name}/trigger", heard.append, EVENTS_QOS
    )
    listener.spin_for(0.5)
    edges = np.array([0xA001, 0xA200], "<u2").view(np.uint8)
    wild = restamped(packets[:100], Stamp(LARGEST_S, 999_999_999))
    sender.play([replace(p, events=np.concatenate([p.events, edges])) for p in wild])
    assert sender.figure("rejected packets") > 10
    assert "expected a time that a ROS stamp can hold" in listener.text("last rejection")
    assert sender.figure("trigger events") == 200
    assert len(heard) < 200
    sender.begin()
    sender.play(packets)
    assert len(sender.stamps_s) > 30
    assert sender.stamps_s[-1] == pytest.approx(end_s, abs=0.1)


def test_a_flood_of_bad_packets(sender: Sender) -> None:
    """10,000 a second: more than rclpy can take, and each that comes is accounted for."""
    sender.calibrate()
    bad, held_mb = mutated(sender.packets, 400), memory_mb(sender.node)
    sender.begin()
    began_s, sent = time.monotonic(), 0
    while time.monotonic() < began_s + 2.0:
        sender.events.publish(bad[sent % len(bad)])
        sent += 1
        if (ahead_s := began_s + 1e-4 * sent - time.monotonic()) > 1e-3:
            time.sleep(ahead_s)
    assert sent > 15_000
    # A message that is cut short does not even come out of the middleware.
    sender.events.publish(bad[0][:60])
    sender.listener.wait_until_idle()
    came, rejected, *others = (
        sender.figure(f"{name}packets")
        for name in ("", "rejected ", "decoded ", "late ", "repeated ")
    )
    assert came > 500
    assert min(rejected, others[0]) > 200
    assert rejected + sum(others) >= came  # what was decoded may be rejected for its times
    assert 1 <= sender.output.count("packet dropped: ") <= 4
    assert memory_mb(sender.node) < held_mb + 100
    sender.begin()
    sender.play(sender.packets)
    assert len(sender.stamps_s) > 30
