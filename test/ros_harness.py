"""Real processes over real DDS: the node and the replayer, and a listener in the test's process."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")
pytest.importorskip("event_camera_msgs", reason="event_camera_msgs is not installed")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistWithCovarianceStamped
from sensor_msgs.msg import Image, TimeReference

from event_binning_grad.events.types import stamp_to_ns

EVENTS = "/event_camera/events"
CAMERA_INFO = "/event_camera/camera_info"
DEPTH, RANGE, IMU = "/event_camera/depth", "/event_camera/range", "/event_camera/imu"
# Generous: a test machine may be busy, and numba may have to compile.
START_S = 240.0
STOP_S = 10.0

_names = count()


def isolate_ros() -> None:
    """Nothing leaves this machine, and no other test process is heard."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)


class Process:
    """A process of this package, its output kept."""

    def __init__(self, log: Path, module: str, *arguments: str) -> None:
        self._log = log
        self._file = log.open("w")
        self.popen = subprocess.Popen(
            [sys.executable, "-m", f"event_binning_grad.ros.{module}", *arguments],
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait_until_it_handles(self, number: signal.Signals) -> None:
        """Until its main function has begun: nobody can end Python's own start cleanly."""
        status = Path(f"/proc/{self.popen.pid}/status")
        while True:
            assert self.popen.poll() is None, self.output
            caught = next(line for line in status.read_text().splitlines() if "SigCgt" in line)
            if int(caught.split()[1], 16) >> (number - 1) & 1:
                return
            time.sleep(0.01)

    def wait(self, timeout_s: float = STOP_S) -> int:
        return self.popen.wait(timeout_s)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        self._file.close()


@dataclass
class Listener:
    """Hears what one perception node publishes."""

    node: Any
    name: str
    twists: list[Any] = field(default_factory=list)
    received_s: list[float] = field(default_factory=list)
    windows: list[Any] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    diagnostics: list[Any] = field(default_factory=list)
    flow_diagnostics: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        subscribe = self.node.create_subscription
        subscribe(TwistWithCovarianceStamped, f"/{self.name}/twist", self._on_twist, 1000)
        subscribe(TimeReference, f"/{self.name}/window", self.windows.append, 1000)
        subscribe(DiagnosticArray, "/diagnostics", self._on_diagnostics, 100)

    def listen_to_images(self) -> None:
        self.node.create_subscription(Image, f"/{self.name}/iwe", self.images.append, 10)

    def _on_twist(self, message: Any) -> None:
        self.twists.append(message)
        self.received_s.append(time.monotonic())

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.name == f"/{self.name}: flow":
                self.flow_diagnostics.append(status)
            elif status.name.startswith(f"/{self.name}:"):
                self.diagnostics.append(status)

    @property
    def summary(self) -> str:
        return self.diagnostics[-1].message if self.diagnostics else ""

    @property
    def level(self) -> int:
        return self.diagnostics[-1].level[0]

    def figure(self, name: str) -> int:
        """A count of the last diagnostics."""
        values = {item.key: item.value for item in self.diagnostics[-1].values}
        return int(values[name])

    def text(self, name: str) -> str:
        return {item.key: item.value for item in self.diagnostics[-1].values}[name]

    @property
    def flow_summary(self) -> str:
        return self.flow_diagnostics[-1].message if self.flow_diagnostics else ""

    def flow_text(self, name: str) -> str:
        return {item.key: item.value for item in self.flow_diagnostics[-1].values}[name]

    def flow_figure(self, name: str) -> int:
        """A count of the last diagnostics of the flow."""
        return int(self.flow_text(name))

    def wait_for(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                pytest.fail(f"waited {timeout_s:g} s for {what}; the node says: {self.summary!r}")
            rclpy.spin_once(self.node, timeout_sec=0.1)

    def spin_for(self, seconds: float) -> None:
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            rclpy.spin_once(self.node, timeout_sec=0.05)

    def wait_until_idle(self) -> None:
        """Until all packets that came are worked off."""

        def idle() -> bool:
            if len(self.diagnostics) < 2 or self.figure("events per s"):
                return False
            before = {item.key: item.value for item in self.diagnostics[-2].values}
            return before["packets"] == self.text("packets") and not self.figure("queued packets")

        seen = len(self.diagnostics)
        self.wait_for(lambda: len(self.diagnostics) >= seen + 2 and idle(), 120, "the last window")
        self.hear_all()

    def hear_all(self) -> None:
        """Until nothing comes any more: spin_once takes one message a topic, so that of a topic
        with many of them some are still queued here when the node has long been idle."""
        quiet_s, waited_s = 0.2, 0.0
        while waited_s < quiet_s:
            started_s = time.monotonic()
            rclpy.spin_once(self.node, timeout_sec=quiet_s)
            waited_s = time.monotonic() - started_s


class Ros:
    """What a test starts, and all of it is ended after the test."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: list[Process] = []
        self._nodes: list[Any] = []

    def start(self, module: str, *arguments: str) -> Process:
        log = self._directory / f"{module}-{next(_names)}.log"
        process = Process(log, module, *arguments)
        self._processes.append(process)
        return process

    def start_node(self, *parameters: str, ready: bool = True) -> tuple[Process, Listener]:
        """A perception node with a name of its own; ready means that it has subscribed."""
        name = f"perception_{next(_names)}"
        topics = ("events", "camera_info", "depth", "range", "imu")
        remaps = [f"__node:={name}", *(f"~/{topic}:=/event_camera/{topic}" for topic in topics)]
        arguments = ["--ros-args", *(word for remap in remaps for word in ("-r", remap))]
        arguments += ["-p", "diagnostics_period_s:=0.5"]
        process = self.start("node", *arguments, *parameters)
        listener = Listener(self.new_node(), name)
        if ready:
            self.wait_until_ready(process, listener)
        return process, listener

    def wait_until_ready(self, process: Process, listener: Listener) -> None:
        def ready() -> bool:
            assert process.popen.poll() is None, process.output
            return ": ready: " in process.output and bool(listener.diagnostics)

        listener.wait_for(ready, START_S, "the node to be ready")

    def replay(self, path: Path, *options: str) -> Process:
        return self.start("replay", str(path), "--wait", "60", *options)

    def new_node(self) -> Any:
        node = rclpy.create_node(f"listener_{next(_names)}")
        self._nodes.append(node)
        return node

    def close(self) -> None:
        for process in self._processes:
            process.close()
        for node in self._nodes:
            node.destroy_node()


@contextmanager
def ros_session(directory: Path, *arguments: str) -> Iterator[Ros]:
    """arguments: of ROS, for the nodes in this process."""
    isolate_ros()
    own = not rclpy.ok()
    if own:
        rclpy.init(args=list(arguments))
    ros = Ros(directory)
    try:
        yield ros
    finally:
        ros.close()
        if own:
            rclpy.try_shutdown()


def latencies_s(listener: Listener, log: Path) -> list[float]:
    """From the publication of a window's last packet to the receipt of its twist."""
    with log.open() as file:
        rows = [(int(row["stamp_ns"]), int(row["published_ns"])) for row in csv.DictReader(file)]
    ends = {stamp_to_ns(w.header.stamp): stamp_to_ns(w.time_ref) for w in listener.windows}
    found = []
    for twist, received_s in zip(listener.twists, listener.received_s, strict=True):
        end = ends.get(stamp_to_ns(twist.header.stamp))
        if end is not None:
            published = [published for stamp, published in rows if stamp <= end]
            found.append(received_s - published[-1] * 1e-9)
    return found
