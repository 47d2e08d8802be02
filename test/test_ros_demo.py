"""The demo: three processes and a report, on a recording made for the test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from event_binning_grad.ros.demo import Received, latencies_ms, received_error
from event_binning_grad.simulate import SimulationConfig, write_simulation

SIMULATION = SimulationConfig(
    duration_s=2.0, width=160, height=120, peak_rad_s=(3.0, 3.0, 3.0), contrast_threshold=0.2
)


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "event_binning_grad.cli", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def test_demo_on_a_recording_of_ones_own(tmp_path: Path) -> None:
    recording, out = tmp_path / "bag", tmp_path / "out"
    summary = write_simulation(recording, SIMULATION)
    result = run_demo("--recording", str(recording), "--out", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["passed"]
    assert report["angular_velocity_rms_deg_s"] < 3.0
    assert len(report["angular_velocity_rms_per_axis_deg_s"]) == 3
    assert report["twists"] >= report["twists_compared"] > 3
    assert report["recording_events"] == summary.events
    assert 0 < report["latency_ms_p50"] <= report["latency_ms_p99"]
    for picture in report["pictures"]:
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert len(report["pictures"]) == 2
    for part in ("angular velocity RMS", "latency p99", "passed", "true"):
        assert part in result.stdout


def test_demo_without_calibration_says_so_before_it_starts(data_dir: Path) -> None:
    result = run_demo("--recording", str(data_dir / "bags" / "test_events_1"))
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert "no calibration" in line
    assert "--calib" in line


def test_latency_is_from_the_packet_that_holds_the_windows_end(tmp_path: Path) -> None:
    log = tmp_path / "published.csv"
    rows = ["seq,published_ns,stamp_ns,recorded_ns"]
    rows += [f"{k},{10_000_000 * k},{1000 * k},{1000 * k + 900}" for k in range(5)]
    log.write_text("\n".join(rows) + "\n")
    twist = {"stamp_ns": 2500, "window_end_ns": 3100, "received_ns": 37_000_000}
    assert latencies_ms(Received([twist]), log) == [7.0]


def test_no_twist_is_no_error_to_speak_of() -> None:
    assert received_error(Received(), None) is None
