"""The demo: a recording, the node and a listener, each a process of its own, over real DDS."""

from __future__ import annotations

import csv
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from event_binning_grad.cli import load_camera
from event_binning_grad.errors import EventBinningError
from event_binning_grad.estimation import Status
from event_binning_grad.evaluation.evaluate import Evaluation, evaluate, recorded_camera
from event_binning_grad.evaluation.machine import machine
from event_binning_grad.evaluation.metrics import AngularVelocityError, angular_velocity_error
from event_binning_grad.evaluation.plots import plot_angular_velocity, plot_event_images
from event_binning_grad.events.bag_messages import EVENTS_TOPIC
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.pipeline import PipelineConfig

MAX_RMS_DEG_S = 3.0
# Of the twists that the recording gives offline so many must arrive.
MIN_SHARE = 0.5

_READY_S = 180.0  # the first start compiles
# No twist for so long after the last packet: no more will come, and /diagnostics, which comes once
# a second, has said the last of it.
_SETTLE_S = 2.5
_STOP_S = 10.0


@dataclass
class Received:
    """What the listener got, in order.

    twists: dicts with stamp_ns, window_end_ns, received_ns, angular_velocity, covariance.
    diagnostics: the last message's values; empty before the first.
    messages: what the messages said, from the first twist on, each line once.
    """

    twists: list[dict[str, Any]] = field(default_factory=list)
    diagnostics: dict[str, Any] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def take(self, line: str) -> None:
        content = json.loads(line)
        if content.pop("type") == "twist":
            self.twists.append(content)
        else:
            self.diagnostics = content["values"]
            if self.twists and content["message"] not in self.messages:
                self.messages.append(content["message"])


def run_demo(out: Path, recording: Path | None, calibration: Path | None) -> bool:
    """Runs the demo and reports; True if twists arrived and, where the truth is known, are right.

    Args:
        out: where the report and the pictures go.
        recording: a recording, or None for the simulated one (made once, kept in `out`).
        calibration: camera_info YAML or calib.txt; None for what the recording holds.

    Raises:
        EventBinningError: the recording or the calibration cannot be used, or the node failed.
    """
    from rich.console import Console

    console = Console()
    path = simulated_recording(out, console) if recording is None else recording
    opened = open_recording(path)
    truth = opened.ground_truth()
    # Before anything is started: without a calibration nothing could be estimated.
    camera = load_camera(calibration, path) if calibration else recorded_camera(opened)
    log = out / "published.csv"
    console.print(f"replaying {path} in real time through the perception node ...")
    camera_file = out / "camera.yaml"
    camera.to_yaml(camera_file)
    received = _replay_through_node(path, camera_file, log, truth)
    console.print("evaluating the same recording offline ...")
    offline = evaluate(path, PipelineConfig(), camera, images=True)
    report = make_report(path, received, log, truth, offline)
    _write_pictures(out, received, truth, offline, report)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    _print_report(console, report, out)
    return bool(report["passed"])


def simulated_recording(out: Path, console: Any) -> Path:
    """The demo's own recording; made if it is not there yet."""
    from rich.progress import Progress

    from event_binning_grad.simulate import SimulationConfig, write_simulation

    config = SimulationConfig()
    # Another configuration is another recording.
    digest = sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:8]
    path = out / f"recording-{digest}"
    if path.exists():
        return path
    console.print(f"simulating a recording of {config.duration_s:g} s ...")
    with Progress(console=console) as bar:
        task = bar.add_task("simulating a recording", total=config.duration_s)
        write_simulation(path, config, progress=lambda s: bar.update(task, completed=s))
    return path


def make_report(
    path: Path, received: Received, log: Path, truth: GroundTruth | None, offline: Evaluation
) -> dict[str, Any]:
    """The demo's figures, ready for JSON."""
    error = received_error(received, truth)
    figures, summary = received.diagnostics, offline.summary()
    latency_ms = latencies_ms(received, log)
    expected = offline.counters.estimates[Status.OK]
    passed = len(received.twists) > MIN_SHARE * expected
    if truth is not None:  # twists that fit the truth nowhere in time are no success
        passed = passed and error is not None and error.rms_deg_s < MAX_RMS_DEG_S
    events = int(figures.get("events", 0))
    shed, lost = int(figures.get("shed packets", 0)), int(figures.get("lost packets", 0))
    return {
        "passed": passed,
        "recording": str(path),
        "ground_truth": truth and truth.source,
        "angular_velocity_rms_deg_s": error and error.rms_deg_s,
        "angular_velocity_rms_per_axis_deg_s": error and list(error.rms_per_axis_deg_s),
        "angular_velocity_median_deg_s": error and error.median_deg_s,
        "offline_rms_deg_s": offline.error and offline.error.rms_deg_s,
        "samples": samples(received, truth),
        "twists": len(received.twists),
        "twists_compared": error.compared if error else 0,
        "twists_offline": expected,
        "events": events,
        "recording_events": offline.events,
        "events_per_second": events / offline.duration_s if offline.duration_s else None,
        "windows": int(figures.get("windows", 0)),
        "skipped_windows": int(figures.get("skipped windows", 0)),
        "windows_not_trusted": {
            name.removeprefix("estimates "): int(count)
            for name, count in figures.items()
            if name.startswith("estimates ") and name != "estimates ok" and int(count)
        },
        "dropped_packets": shed + lost + int(figures.get("rejected packets", 0)),
        "shed_packets": shed,
        "lost_packets": lost,
        "latency_ms_p50": _percentile(latency_ms, 50),
        "latency_ms_p99": _percentile(latency_ms, 99),
        "solve_ms_p50": summary["window_ms_p50"],
        "solve_ms_p99": summary["window_ms_p99"],
        "diagnostics": figures,
        "diagnostics_messages": received.messages,
        "machine": machine(),
    }


def received_error(received: Received, truth: GroundTruth | None) -> AngularVelocityError | None:
    """The error of what arrived."""
    if truth is None or not received.twists:
        return None
    omega = np.array([twist["angular_velocity"] for twist in received.twists])
    return angular_velocity_error([t["stamp_ns"] for t in received.twists], omega, truth)


def samples(received: Received, truth: GroundTruth | None, count: int = 6) -> list[dict[str, Any]]:
    """Some of the twists, spread over the recording, beside the truth: rad/s, camera frame."""
    indices = np.linspace(0, len(received.twists) - 1, min(count, len(received.twists)))
    chosen = [received.twists[int(index)] for index in indices.round()]
    return [
        {
            "time_s": (twist["stamp_ns"] - received.twists[0]["stamp_ns"]) * 1e-9,
            "estimated_rad_s": twist["angular_velocity"],
            "true_rad_s": None if truth is None else truth.at(twist["stamp_ns"]).tolist(),
        }
        for twist in chosen
    ]


def latencies_ms(received: Received, log: Path) -> list[float]:
    """From the publication of a window's last packet to the receipt of its twist, ms.

    The last packet is the last one that began before the window's end. Both ends are measured in
    the processes that publish and receive, on the machine's monotonic clock.
    """
    with log.open() as file:
        rows = sorted((int(r["stamp_ns"]), int(r["published_ns"])) for r in csv.DictReader(file))
    if not rows:
        return []
    begins, published = np.array(rows, np.int64).T
    latencies = []
    for twist in received.twists:
        index = int(np.searchsorted(begins, twist["window_end_ns"], side="right")) - 1
        if index >= 0:
            latencies.append((twist["received_ns"] - int(published[index])) * 1e-6)
    return latencies


def _replay_through_node(
    path: Path, calibration: Path, log: Path, truth: GroundTruth | None
) -> Received:
    """Runs the three processes; returns what the listener received."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    parameters = ["--ros-args", "-r", f"/perception/events:={EVENTS_TOPIC}"]
    parameters += ["-p", f"calibration_file:={calibration}"]
    received = Received()
    with ExitStack() as stack:
        node = stack.enter_context(_process("node", *parameters))
        listener = stack.enter_context(_process("collector", stdout=subprocess.PIPE))
        lines = _lines(listener)
        # What the node says now can be heard: so will be its first twist.
        deadline_s = time.monotonic() + _READY_S
        while not received.diagnostics and time.monotonic() < deadline_s:
            _must_run(node=node, listener=listener)
            with suppress(queue.Empty):
                received.take(lines.get(timeout=0.1))
        replay = stack.enter_context(
            _process(
                "replay", str(path), "--quiet", "--wait", str(_READY_S), "--publish-log", str(log)
            )
        )
        progress = _Progress(truth)
        quiet_since_s = time.monotonic()
        while replay.poll() is None or time.monotonic() - quiet_since_s < _SETTLE_S:
            _must_run(node=node, listener=listener)
            twists = len(received.twists)
            with suppress(queue.Empty):
                received.take(lines.get(timeout=0.1))
            if replay.poll() is None or len(received.twists) > twists:
                quiet_since_s = time.monotonic()
            progress.show(received)
        progress.end()
        if replay.returncode:
            raise EventBinningError(
                f"the replay ended with exit code {replay.returncode}: its message stands above"
            )
    return received


def _must_run(**processes: Any) -> None:
    for name, process in processes.items():
        if process.poll() is not None:
            raise EventBinningError(
                f"the {name} ended before the replay did, with exit code {process.returncode}: its "
                "message stands above"
            )


@contextmanager
def _process(module: str, *arguments: str, stdout: int | None = None) -> Iterator[Any]:
    """A process of this package's ros modules; ended with SIGINT, as a user would."""
    environment = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"} | os.environ
    # A domain of its own, unless the user chose one: another demo or a robot must not be disturbed.
    environment.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    process = subprocess.Popen(
        [sys.executable, "-m", f"event_binning_grad.ros.{module}", *arguments],
        stdout=stdout,
        text=True,
        env=environment,
        start_new_session=True,  # a Ctrl-C is for the demo, which then ends them in order
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _lines(process: Any) -> queue.Queue[str]:
    """The lines of a process's output, read by a thread, so that nobody blocks on them."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in process.stdout:
            lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    return lines


class _Progress:
    """A line on a terminal that is written again and again; now and then a line elsewhere."""

    def __init__(self, truth: GroundTruth | None) -> None:
        self._truth = truth
        self._terminal = sys.stdout.isatty()
        self._period_s = 0.2 if self._terminal else 2.0
        self._next_s = 0.0

    def show(self, received: Received) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + self._period_s
        end = "" if self._terminal else "\n"
        print(f"{chr(13) if self._terminal else ''}{self._text(received)}", end=end, flush=True)

    def end(self) -> None:
        if self._terminal:
            print()

    def _text(self, received: Received) -> str:
        if not received.twists:
            return "waiting for the first twist (the node compiles when it first starts)"
        twist = received.twists[-1]
        omega = np.array(twist["angular_velocity"])
        text = f"{len(received.twists):6d} twists  ω {_vector(omega)} rad/s"
        if self._truth is not None:
            text += f"  true {_vector(self._truth.at(twist['stamp_ns']))}"
        rate = int(received.diagnostics.get("events per s") or 0)
        lag = received.diagnostics.get("lag ms p50") or "-"
        shed = received.diagnostics.get("shed packets", "0")
        return f"{text}  {rate / 1e6:.2f} Mev/s  lag {lag} ms  dropped {shed}"


def _vector(values: Any) -> str:
    return " ".join(f"{value:+6.2f}" for value in values)


def _percentile(values: list[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _write_pictures(
    out: Path,
    received: Received,
    truth: GroundTruth | None,
    offline: Evaluation,
    report: dict[str, Any],
) -> None:
    omega = np.array([t["angular_velocity"] for t in received.twists]).reshape(-1, 3)
    stamps = [t["stamp_ns"] for t in received.twists]
    pictures = [
        plot_angular_velocity(out / "angular_velocity.png", stamps, omega, truth, offline.start_ns)
    ]
    if offline.images is not None:
        pictures.append(plot_event_images(out / "event_image.png", *offline.images))
    report["pictures"] = [str(picture) for picture in pictures]


def _print_report(console: Any, report: dict[str, Any], out: Path) -> None:
    from rich.table import Table

    console.print(_samples_table(report["samples"]))
    table = Table(title="the perception node, live over DDS", show_header=False)

    def row(name: str, value: Any, unit: str = "", digits: str = "") -> None:
        text = "-" if value is None else f"{value:{digits}}"
        table.add_row(name, f"{text} {unit}".rstrip())

    row("recording", report["recording"])
    row("truth", report["ground_truth"])
    row("angular velocity RMS, an axis", report["angular_velocity_rms_deg_s"], "deg/s", ".2f")
    per_axis = report["angular_velocity_rms_per_axis_deg_s"] or (None, None, None)
    for axis, value in zip("xyz", per_axis, strict=True):
        row(f"  about {axis}", value, "deg/s", ".2f")
    row("  offline, same recording", report["offline_rms_deg_s"], "deg/s", ".2f")
    row("twists received", report["twists"], f"(offline {report['twists_offline']})")
    row("windows", report["windows"], f"({report['skipped_windows']} left out to keep up)")
    for status, count in report["windows_not_trusted"].items():
        row(f"  not trusted: {status}", count)
    row("events", report["events"], f"of {report['recording_events']:,}", ",d")
    row("events a second in", (report["events_per_second"] or 0) / 1e6, "Mev/s", ".2f")
    row("packets dropped", report["dropped_packets"])
    row("latency p50", report["latency_ms_p50"], "ms", ".1f")
    row("latency p99", report["latency_ms_p99"], "ms", ".1f")
    console.print(table)
    console.print("latency: publication of a window's last packet -> receipt of its twist")
    console.print(f"written: {out / 'report.json'}, {', '.join(report.get('pictures', []))}")
    verdict = "passed" if report["passed"] else "FAILED"
    limit = f"RMS below {MAX_RMS_DEG_S:g} deg/s" if report["ground_truth"] else "twists arrived"
    console.print(f"{verdict}: expected {limit}")


def _samples_table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="angular velocity, rad/s (x y z, camera frame)")
    for heading in ("time", "estimated", "true"):
        table.add_column(heading, justify="right")
    for row in rows:
        true = row["true_rad_s"]
        estimated = _vector(row["estimated_rad_s"])
        table.add_row(f"{row['time_s']:.2f} s", estimated, "-" if true is None else _vector(true))
    return table
