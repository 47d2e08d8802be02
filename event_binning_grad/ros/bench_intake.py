"""How many events a second the node takes in: a process that publishes them at a given rate over
DDS, and the node with its defaults in another one, faster and faster until it drops some.

    python -m event_binning_grad.ros.bench_intake --rate 15 --seconds 4     # publishes only
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.events.evt3 import TIME_HIGH
from event_binning_grad.events.types import NS_PER_S, NS_PER_US, Events, stamp_to_ns

if TYPE_CHECKING:
    from rich.console import Console

WIDTH, HEIGHT, FOCAL_PX = 1280, 720, 1000.0
TOPIC = "/bench_intake/events"
NODE = "bench_intake_perception"
FRAME_ID = "event_camera"
# TIME_HIGH counts 4096 us: packets of this length differ from round to round in that word alone.
PACKET_US = 4096
EDGE_PIXELS = 4000
# dvs_msgs/Event as ROS serialises it: each number aligned to its size. The first event begins 2
# bytes later, and has no gap before sec.
EVENT = np.dtype(
    {
        "names": ["x", "y", "sec", "nanosec", "polarity"],
        "formats": ["<u2", "<u2", "<i4", "<u4", "u1"],
        "offsets": [0, 2, 6, 10, 14],
        "itemsize": 16,
    }
)
# So many packets are made; in this time the scene has moved by the sensor's width.
_ROUND_PACKETS = 244
_STAMP_AT = 4  # in a serialized message that begins with a header
_MARK = 0x1122334455667788
RATES = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0)
QUICK_RATES = (5.0, 15.0)
SECONDS, QUICK_SECONDS = 4.0, 2.0
# A hiccup of the machine may cost a packet: a rate counts if one of so many tries drops nothing.
TRIES = 3
# A greater share of packets dropped is no hiccup, and it is not tried again, nor faster.
MAX_HICCUP = 0.05
TARGETS_MEV_S = {"evt3": 15.0, "event_array": 20.0}
_START_S = 240.0
_STOP_S = 10.0
_PERIOD_S = 0.25
_QUIET_MESSAGES = 4


def make_events(rate_ev_s: float, packets: int, seed: int = 0) -> Iterator[Events]:
    """Edges that move across the sensor once in all these packets, and so can begin again.

    Times are from the first packet's begin.
    """
    rng = np.random.default_rng(seed)
    count = round(rate_ev_s * PACKET_US * 1e-6)
    x0 = rng.integers(0, WIDTH, EDGE_PIXELS)
    y0 = rng.integers(0, HEIGHT, EDGE_PIXELS).astype(np.uint16)
    polarity = rng.integers(0, 2, EDGE_PIXELS).astype(np.uint8)
    speed = WIDTH / (packets * PACKET_US)  # px/us
    for k in range(packets):
        t = k * PACKET_US + np.sort(rng.integers(0, PACKET_US, count))
        edge = rng.integers(0, EDGE_PIXELS, count)
        x = (x0[edge] + np.floor(speed * t + rng.random(count)).astype(np.int64)) % WIDTH
        yield Events(t * NS_PER_US, x.astype(np.uint16), y0[edge], polarity[edge], WIDTH, HEIGHT)


class Evt3Messages:
    """Serialized EventPackets in encoding "evt3" that begin again with later times."""

    def __init__(self, rate_ev_s: float) -> None:
        import array

        from event_camera_msgs.msg import EventPacket
        from rclpy.serialization import serialize_message

        from event_binning_grad.events.encoder import Evt3Encoder
        from event_binning_grad.ros.messages import to_header

        self.kind = EventPacket
        self._messages = []
        # seq and the payload are found where a known content stands.
        message = EventPacket(header=to_header(0, FRAME_ID), seq=_MARK, encoding="evt3")
        self._seq_at = bytes(serialize_message(message)).index(_MARK.to_bytes(8, "little"))
        for events in make_events(rate_ev_s, _ROUND_PACKETS):
            words = Evt3Encoder().encode(events)
            message = EventPacket(
                header=to_header(0, FRAME_ID), height=HEIGHT, width=WIDTH, encoding="evt3"
            )
            message.events = array.array("B", words)
            data = np.frombuffer(bytearray(serialize_message(message)), np.uint8)
            at = bytes(data).index(words[:64])
            self._messages.append((data, at))

    def next(self, count: int, now_ns: int) -> bytes:
        """The message number `count`, stamped."""
        data, at = self._messages[count % len(self._messages)]
        data[_STAMP_AT : _STAMP_AT + 8].view("<u4")[:] = divmod(now_ns, NS_PER_S)
        data[self._seq_at : self._seq_at + 8].view("<u8")[0] = count
        # A payload begins with its TIME_HIGH, which is all that differs from round to round.
        data[at : at + 2] = np.array([TIME_HIGH << 12 | count & 0xFFF], "<u2").view(np.uint8)
        return data.tobytes()


class ArrayMessages:
    """Serialized dvs_msgs/EventArray that begin again with later times."""

    def __init__(self, rate_ev_s: float) -> None:
        from dvs_msgs.msg import EventArray  # type: ignore[import-not-found]
        from rclpy.serialization import serialize_message

        from event_binning_grad.ros.messages import to_header

        self.kind = EventArray
        message = EventArray(header=to_header(0, FRAME_ID), height=HEIGHT, width=WIDTH)
        head = bytes(serialize_message(message))[:-4]  # without the count, 0
        self._head = np.frombuffer(bytearray(head), np.uint8)
        self._messages = []
        for events in make_events(rate_ev_s, _ROUND_PACKETS):
            rows = np.zeros(len(events), EVENT)
            rows["x"], rows["y"], rows["polarity"] = events.x, events.y, events.p
            self._messages.append((rows, events.t - events.t[0]))

    def next(self, count: int, now_ns: int) -> bytes:
        """The message number `count`, stamped, its events spread over the time before."""
        rows, t_ns = self._messages[count % len(self._messages)]
        start_ns = now_ns
        rows["sec"], rows["nanosec"] = np.divmod(start_ns + t_ns, NS_PER_S)
        self._head[_STAMP_AT : _STAMP_AT + 8].view("<u4")[:] = divmod(now_ns, NS_PER_S)
        number = len(rows).to_bytes(4, "little")
        data = bytearray(rows.tobytes())
        data[2:6] = data[0:4]  # x and y of the first event
        return b"".join((self._head.tobytes(), number, data[2:-1]))


MESSAGES = {"evt3": Evt3Messages, "event_array": ArrayMessages}


def publish(kind: str, rate_mev_s: float, seconds: float) -> dict[str, float]:
    """Publishes for so long, in the pace of the events; what was published.

    Runs in a process of its own, so that the node has an interpreter for itself.
    """
    import rclpy

    from event_binning_grad.ros.qos import EVENTS_QOS

    messages = MESSAGES[kind](rate_mev_s * 1e6)
    packet_ns = PACKET_US * NS_PER_US
    rclpy.init(args=[])
    node = rclpy.create_node("bench_intake_publisher", start_parameter_services=False)
    publisher = node.create_publisher(messages.kind, TOPIC, EVENTS_QOS)
    deadline_s = time.monotonic() + 30.0
    while not publisher.get_subscription_count() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    time.sleep(0.7)  # the node must know of this publisher, too
    began_ns, late_s, count, size = time.monotonic_ns(), 0.0, 0, 0
    began_epoch_ns = time.time_ns()
    while count * packet_ns < seconds * NS_PER_S:
        # As a driver that hands a packet over when its last event has come.
        data = messages.next(count, began_epoch_ns + count * packet_ns)
        due_ns = began_ns + (count + 1) * packet_ns
        ahead_s = (due_ns - time.monotonic_ns()) / NS_PER_S
        if ahead_s > 0:
            time.sleep(ahead_s)
        late_s = max(late_s, -ahead_s)
        publisher.publish(data)
        count += 1
        size += len(data)
    took_s = (time.monotonic_ns() - began_ns) / NS_PER_S
    time.sleep(0.5)  # the last ones are still on their way
    rclpy.try_shutdown()
    return {
        "packets": count,
        "events": count * round(rate_mev_s * PACKET_US),
        "seconds": took_s,
        "late_s": late_s,
        "packet_bytes": size / count,
    }


def bench_intake(console: Console, quick: bool) -> dict[str, Any]:
    """Prints and returns the highest rates at which no event was dropped, and what came of each.

    Raises:
        ConfigError: ROS 2 or its message packages are not there.
    """
    from event_binning_grad.cli import require_ros

    require_ros(["rclpy", "event_camera_msgs", "dvs_msgs"])
    return {kind: _bench(console, kind, quick) for kind in MESSAGES}


def _bench(console: Console, kind: str, quick: bool) -> dict[str, Any]:
    from rich.table import Table

    rows: list[dict[str, float]] = []
    with TemporaryDirectory() as folder, _isolated(), _node(Path(folder)) as heard:
        for rate in QUICK_RATES if quick else RATES:
            for _ in range(TRIES):
                rows.append(_measure(kind, rate, heard, QUICK_SECONDS if quick else SECONDS))
                if not 0 < rows[-1]["dropped_packets"] <= MAX_HICCUP * rows[-1]["packets"]:
                    break
            if rows[-1]["dropped_packets"] > MAX_HICCUP * rows[-1]["packets"]:
                break
    whole = [row["published_mev_s"] for row in rows if not row["dropped_packets"]]
    best, most = max(whole, default=0.0), max(row["decoded_mev_s"] for row in rows)
    length_ms = PACKET_US / 1e3
    table = Table(title=f"Node intake over DDS: {kind}, messages of {length_ms:.1f} ms")
    for name in ("published Mev/s", "kB each", "decoded Mev/s", "dropped", "twists/s"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['published_mev_s']:.1f}", f"{row['packet_bytes'] / 1e3:.0f}",
            f"{row['decoded_mev_s']:.1f}", f"{row['dropped_packets']:.0f}",
            f"{row['twists_per_s']:.0f}",
        )  # fmt: skip
    console.print(table)
    target = TARGETS_MEV_S[kind]
    console.print(
        f"{kind}: {best:.1f} Mev/s without a drop in one of {TRIES} tries of "
        f"{QUICK_SECONDS if quick else SECONDS:g} s, {most:.1f} Mev/s with drops; wanted: at least "
        f"{target:g} Mev/s"
    )
    return {"intake_mev_s": best, "most_mev_s": most, "target_mev_s": target, "steps": rows}


def _measure(kind: str, rate: float, heard: _Diagnostics, seconds: float) -> dict[str, float]:
    before = heard.wait_until_idle()
    command = [sys.executable, "-m", "event_binning_grad.ros.bench_intake"]
    command += ["--kind", kind, "--rate", str(rate), "--seconds", str(seconds)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if run.returncode:
        raise EventBinningError(f"the publisher failed: {run.stderr.strip().splitlines()[-1:]}")
    published = json.loads(run.stdout.splitlines()[-1])
    after = heard.wait_until_idle()
    decoded = after["events"] - before["events"]
    packets = after["decoded packets"] - before["decoded packets"]
    return {
        "packets": published["packets"],
        "published_mev_s": published["events"] / published["seconds"] * 1e-6,
        "packet_bytes": published["packet_bytes"],
        "publisher_late_s": published["late_s"],
        "decoded_mev_s": decoded / published["seconds"] * 1e-6,
        "dropped_packets": published["packets"] - packets,
        "shed_packets": after["shed packets"] - before["shed packets"],
        "skipped_windows": after["skipped windows"] - before["skipped windows"],
        "twists_per_s": (after["published"] - before["published"]) / published["seconds"],
    }


class _Diagnostics:
    """The counts of the node's /diagnostics, listened to in this process."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray

        self._process, self._log = process, log
        self._node = rclpy.create_node("bench_intake", start_parameter_services=False)
        self._values: list[dict[str, int]] = []
        self._from_ns = 0
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._take, 100)

    def _take(self, message: Any) -> None:
        if stamp_to_ns(message.header.stamp) < self._from_ns:
            return
        for status in message.status:
            if status.name == f"/{NODE}: egomotion":
                counts = {v.key: int(v.value) for v in status.values if v.value.isdigit()}
                self._values.append(counts)

    def wait_until_ready(self) -> None:
        self._wait(lambda: ": ready: " in self._log.read_text(), "the node to be ready")

    def wait_until_idle(self) -> dict[str, int]:
        """The counts when no packets have come for a while, and all are worked off."""
        # What was said before is queued still, in the middleware.
        self._from_ns = time.time_ns()
        self._values.clear()

        def idle() -> bool:
            last = self._values[-_QUIET_MESSAGES:]
            same = {(values["packets"], values["decoded packets"]) for values in last}
            return len(last) == _QUIET_MESSAGES and len(same) == 1

        self._wait(idle, "the node to be idle")
        return self._values[-1]

    def _wait(self, condition: Any, what: str) -> None:
        import rclpy

        deadline_s = time.monotonic() + _START_S
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                text = self._log.read_text().strip().splitlines()[-3:]
                raise EventBinningError(f"waited in vain for {what}: {' '.join(text)}")
            rclpy.spin_once(self._node, timeout_sec=0.1)


@contextmanager
def _isolated() -> Iterator[None]:
    """Nothing leaves this machine, and nobody else is heard."""
    import rclpy

    from event_binning_grad.ros.transport import transport_environment

    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
    os.environ.update(transport_environment("large_data", os.environ))
    rclpy.init(args=[])
    try:
        yield
    finally:
        rclpy.try_shutdown()


@contextmanager
def _node(folder: Path) -> Iterator[_Diagnostics]:
    from event_binning_grad.geometry import Camera

    camera = Camera(
        WIDTH, HEIGHT, np.array([[FOCAL_PX, 0, WIDTH / 2], [0, FOCAL_PX, HEIGHT / 2], [0, 0, 1]])
    )
    camera.to_yaml(folder / "camera.yaml")
    log = folder / "node.log"
    command = [sys.executable, "-m", "event_binning_grad.ros.node", "--ros-args"]
    command += ["-r", f"__node:={NODE}", "-r", f"~/events:={TOPIC}"]
    command += ["-p", f"calibration_file:={folder / 'camera.yaml'}"]
    command += ["-p", f"diagnostics_period_s:={_PERIOD_S}"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        heard = _Diagnostics(process, log)
        heard.wait_until_ready()
        yield heard
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="publishes events for the intake benchmark")
    parser.add_argument("--kind", choices=list(MESSAGES), default="evt3")
    parser.add_argument("--rate", type=float, required=True, help="Mev/s")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args(arguments)
    if not 0 < options.rate <= 1000:
        raise ConfigError(f"rate {options.rate}: expected 0 to 1000 Mev/s")
    print(json.dumps(publish(options.kind, options.rate, options.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
