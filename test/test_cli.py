"""The command line, run as a user runs it."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from event_binning_grad import cli
from event_binning_grad.config import PipelineConfig
from event_binning_grad.evaluation import plots
from event_binning_grad.evaluation.evaluate import evaluate
from event_binning_grad.evaluation.metrics import angular_velocity_error, translation
from event_binning_grad.events.bag_writer import write_bag
from event_binning_grad.events.bags import BagRecording
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.repacking import Stretch
from event_binning_grad.events.types import Events, stamp_to_ns
from event_binning_grad.simulate import SimulationConfig, write_simulation

COMMANDS = (
    "demo", "info", "convert", "play", "replay", "evaluate", "compare", "simulate", "bias", "bench",
)  # fmt: skip

JSON_KEYS = {
    "recording", "events", "windows", "duration_s", "angular_velocity_rms_deg_s",
    "angular_velocity_rms_per_axis_deg_s", "events_per_second", "window_ms_p50", "window_ms_p99",
    "iterations_mean", "device", "gradient", "linear_velocity_rms_m_s",
    "linear_velocity_rms_per_axis_m_s", "linear_velocity_rms_percent", "nees_mean",
    "true_linear_velocity_rms_m_s", "used_events_share", "motion_model", "output_rate_hz",
    "load", "clock", "decoder",
}  # fmt: skip

CSV_HEADER = (
    "stamp_s,wx,wy,wz,vx,vy,vz,c00,c01,c02,c10,c11,c12,c20,c21,c22,events,iterations,status,"
    "cv00,cv01,cv02,cv10,cv11,cv12,cv20,cv21,cv22,used_events"
)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command, in this process."""
    try:
        code = cli.main([str(a) for a in arguments])
    except SystemExit as end:  # argparse
        code = end.code if isinstance(end.code, int) else 1
    out, err = capsys.readouterr()
    return code, out, err


def evaluate_in_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "event_binning_grad.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second of a small simulated camera, made by the command itself."""
    path = tmp_path_factory.mktemp("cli") / "bag"
    arguments = ["simulate", "--out", str(path), "--duration", "0.5", "--size", "240x180"]
    assert cli.main([*arguments, "--peak", "4", "4", "4", "--seed", "3"]) == 0
    return path


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)])
def test_help(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, *command, "--help")
    assert code == 0
    assert "usage: event-binning-grad" in out
    assert err == ""
    if not command:
        assert all(name in out for name in COMMANDS)


def test_evaluate_a_simulated_recording(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    report, table = tmp_path / "report.json", tmp_path / "rows.csv"
    code, out, err = run(
        capsys, "evaluate", recording, "--window-events", 10_000, "--json", report, "--csv", table
    )
    assert (code, err) == (0, "")
    figures = json.loads(report.read_text())
    assert set(figures) >= JSON_KEYS
    assert figures["recording"] == str(recording)
    assert figures["angular_velocity_rms_deg_s"] < 1.5
    per_axis = figures["angular_velocity_rms_per_axis_deg_s"]
    mean_square = np.mean(np.square(per_axis))
    assert math.sqrt(mean_square) == pytest.approx(figures["angular_velocity_rms_deg_s"])
    assert figures["duration_s"] == pytest.approx(0.5, abs=0.01)
    assert figures["windows"] == math.ceil(figures["events"] / 10_000)
    assert figures["events_per_second"] > 0
    assert 0 < figures["window_ms_p50"] <= figures["window_ms_p99"]
    assert figures["iterations_mean"] >= 1
    assert (figures["device"], figures["gradient"]) == ("cpu", "unbiased")
    assert (figures["motion_model"], figures["output_rate_hz"]) == ("rotation", 0)
    assert figures["linear_velocity_rms_m_s"] is None
    assert figures["nees_mean"] > 0
    assert figures["used_events_share"] == pytest.approx(1, abs=0.02)
    assert sum(figures["windows_by_status"].values()) == figures["windows"]
    ends = ("window_events", "skipped_events", "discarded_events")
    assert figures["load"]["kept_events"] == sum(figures[name] for name in ends)
    assert figures["load"]["events"] == figures["decoder"]["events"] == figures["events"]
    assert figures["clock"]["learnt"]
    assert 0 < figures["clock"]["packets"] <= figures["decoder"]["packets"]
    assert f"{figures['events']:,}" in out

    lines = table.read_text().splitlines()
    assert lines[0] == CSV_HEADER
    assert len(lines) == 1 + figures["windows"]
    rows = list(csv.DictReader(lines))
    stamps = [float(row["stamp_s"]) for row in rows]
    assert stamps == sorted(stamps)
    assert sum(int(row["events"]) for row in rows) == figures["events"]
    for row in rows:
        assert row["vx"] == row["vy"] == row["vz"] == row["cv00"] == ""
        assert row["status"] == "too_few_events" or row["used_events"] == row["events"]
        covariance = np.array([[float(row[f"c{i}{j}"]) for j in range(3)] for i in range(3)])
        if row["status"] == "ok":
            assert np.linalg.eigvalsh(covariance)[0] > 0
            assert all(math.isfinite(float(row[f"w{a}"])) for a in "xyz")


def test_evaluate_by_time_with_the_raw_gradient(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    report = tmp_path / "report.json"
    code, _, _ = run(
        capsys, "evaluate", recording, "--window-ms", 25, "--gradient", "raw", "--json", report
    )
    assert code == 0
    figures = json.loads(report.read_text())
    assert figures["gradient"] == "raw"
    assert figures["windows"] == pytest.approx(20, abs=1)


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A camera before a plane, 1 m away at the start, with depth images, ranges and a gyroscope."""
    path = tmp_path_factory.mktemp("cli") / "moving"
    config = SimulationConfig(
        0.3, 240, 180, scene="plane", peak_rad_s=(2.0, 2.0, 2.0), peak_m_s=(1.5, 1.5, 1.5),
        frequency_hz=(0.7, 2.0), depth_hz=60.0, range_hz=100.0, imu_hz=200.0,
    )  # fmt: skip
    write_simulation(path, config)
    return path


@pytest.mark.parametrize(
    "depth",
    [
        ("--motion-model", "full", "--depth-plane", "0,0,1,1"),
        ("--motion-model", "full", "--depth-topic", "/event_camera/depth"),
        ("--motion-model", "full", "--depth-range", "--imu", "prior"),
        ("--motion-model", "translation", "--depth", "1", "--imu", "fixed"),
    ],
    ids=["plane", "depth images", "range and gyroscope prior", "distance and gyroscope"],
)
def test_linear_velocity_is_scored(
    moving: Path, depth: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    report, table = tmp_path / "report.json", tmp_path / "rows.csv"
    code, out, err = run(
        capsys, "evaluate", moving, *depth, "--output-rate", 50, "--json", report, "--csv", table
    )
    assert (code, err) == (0, "")
    figures = json.loads(report.read_text())
    assert figures["motion_model"] == depth[1]
    assert figures["output_rate_hz"] == 50
    rms, true = figures["linear_velocity_rms_m_s"], figures["true_linear_velocity_rms_m_s"]
    assert rms < 0.3 * true
    assert figures["linear_velocity_rms_percent"] == pytest.approx(100 * rms / true)
    per_axis = figures["linear_velocity_rms_per_axis_m_s"]
    assert math.sqrt(np.mean(np.square(per_axis))) == pytest.approx(rms)
    assert figures["linear_velocities_compared"] > 3
    assert figures["linear_nees_mean"] > 0
    assert "linear velocity RMS" in out
    rows = [row for row in csv.DictReader(table.read_text().splitlines()) if row["status"] == "ok"]
    for row in rows:
        covariance = np.array([[float(row[f"cv{i}{j}"]) for j in range(3)] for i in range(3)])
        assert np.linalg.eigvalsh(covariance)[0] > 0
        assert all(math.isfinite(float(row[f"v{a}"])) for a in "xyz")


def test_a_plane_is_moved_by_measured_poses(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path, report = data_dir / "ecd_poster_6dof_window", tmp_path / "report.json"
    plane = "0.252,-0.441,0.861,0.697"
    code, _, err = run(
        capsys, "evaluate", path, "--motion-model", "full", "--depth-plane", plane,
        "--window-events", 19_000, "--json", report,
    )  # fmt: skip
    assert (code, err) == (0, "")
    figures = json.loads(report.read_text())
    assert figures["linear_velocities_compared"] == 2
    assert figures["linear_velocity_rms_percent"] < 40


def test_the_kind_of_estimation_can_be_chosen(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    report = tmp_path / "report.json"
    options = [
        "--objective", "mean_square", "--no-angular-acceleration", "--window-px", 15,
        "--output-rate", 20, "--binning", "linear", "--reconstruction", "linear",
    ]  # fmt: skip
    code, _, err = run(capsys, "evaluate", recording, *options, "--json", report)
    assert (code, err) == (0, "")
    figures = json.loads(report.read_text())
    assert figures["objective"] == "mean_square"
    assert figures["angular_acceleration"] is False
    assert (figures["window_px"], figures["output_rate_hz"]) == (15, 20)
    assert figures["windows"] == pytest.approx(10, abs=1)


def test_published_shapes_rotation(data_dir: Path, tmp_path: Path):
    path = data_dir / "ecd_shapes_rotation"
    report, table = tmp_path / "report.json", tmp_path / "rows.csv"
    done = evaluate_in_a_process(
        "evaluate", path, "--window-events", 20_000, "--json", report, "--csv", table
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(report.read_text())
    assert set(figures) >= JSON_KEYS
    assert figures["angular_velocity_rms_deg_s"] <= 3.3
    lines = table.read_text().splitlines()
    assert lines[0] == CSV_HEADER
    assert len(lines) == 1 + figures["windows"]
    assert figures["windows"] == math.ceil(figures["events"] / 20_000)


def test_recording_without_truth_reports_null(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A bag whose truth is missing: the figures say null, not zero."""
    # The bag has no calibration: give one that fits its camera.
    calibration = tmp_path / "camera.yaml"
    calibration.write_text(
        "image_width: 640\nimage_height: 480\ndistortion_model: plumb_bob\n"
        "camera_matrix: {rows: 3, cols: 3, data: [500, 0, 320, 0, 500, 240, 0, 0, 1]}\n"
        "distortion_coefficients: {rows: 1, cols: 5, data: [0, 0, 0, 0, 0]}\n"
    )
    report = tmp_path / "report.json"
    bag = data_dir / "bags" / "test_events_1"
    code, out, err = run(capsys, "evaluate", bag, "--calib", calibration, "--json", report)
    assert (code, err) == (0, "")
    figures = json.loads(report.read_text())
    assert figures["angular_velocity_rms_deg_s"] is None
    assert figures["angular_velocity_rms_per_axis_deg_s"] is None
    assert (figures["decoder"]["on_events"], figures["decoder"]["off_events"]) == (125_183, 218_291)
    assert "none" in out


@pytest.mark.parametrize("flow", [[], ["--flow"]])
def test_a_recording_that_is_cut_short_is_said(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flow: list[str]
):
    whole = (data_dir / "aedat4" / "davis_320x240.aedat4").read_bytes()
    (tmp_path / "cut.aedat4").write_bytes(whole[:700_000])
    calibration = tmp_path / "camera.yaml"
    calibration.write_text(
        "image_width: 320\nimage_height: 240\ndistortion_model: plumb_bob\n"
        "camera_matrix: {rows: 3, cols: 3, data: [250, 0, 160, 0, 250, 120, 0, 0, 1]}\n"
        "distortion_coefficients: {rows: 1, cols: 5, data: [0, 0, 0, 0, 0]}\n"
    )
    options = [*flow, "--calib", calibration, "--json", tmp_path / "report.json"]
    code, _, err = run(capsys, "evaluate", tmp_path / "cut.aedat4", *options)
    assert code == 0
    assert err.startswith("event-binning-grad evaluate: warning: ")
    assert err.count("\n") == 1
    (warning,) = json.loads((tmp_path / "report.json").read_text())["warnings"]
    assert "is cut short" in warning
    assert warning in err


def test_calibration_of_another_sensor_is_refused_in_one_line(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    wrong = tmp_path / "camera.yaml"
    wrong.write_text(
        "image_width: 346\nimage_height: 260\ndistortion_model: plumb_bob\n"
        "camera_matrix: {rows: 3, cols: 3, data: [300, 0, 173, 0, 300, 130, 0, 0, 1]}\n"
        "distortion_coefficients: {rows: 1, cols: 5, data: [0, 0, 0, 0, 0]}\n"
    )
    for kind in ([], ["--flow"]):
        path = data_dir / "ecd_shapes_rotation"
        code, _, err = run(capsys, "evaluate", path, "--calib", wrong, *kind)
        assert code == 2
        assert "no packet could be used: events of a 240x180 sensor" in err
        assert err.count("\n") == 1


def shapes_bag(path: Path, events: bool = True, calibration: bool = True) -> Path:
    """A tiny bag, with or without what an evaluation needs."""
    count = 2000
    some = Events(
        np.arange(count, dtype=np.int64) * 1000 + 10**9, np.zeros(count, np.uint16),
        np.zeros(count, np.uint16), np.ones(count, np.uint8), 16, 16,
    )  # fmt: skip
    k = [10.0, 0, 8, 0, 10.0, 8, 0, 0, 1]
    info = {"width": 16, "height": 16, "distortion_model": "plumb_bob", "k": k, "d": [0.0] * 5}
    truth = GroundTruth(
        t_ns=10**9 + np.arange(5) * 10**6, angular_velocity=np.zeros((5, 3)), source="test"
    )
    packets = packetize(some) if events else iter(())
    write_bag(path, packets, info if calibration else None, truth)
    return path


def bad_inputs(tmp_path: Path) -> dict[str, list[object]]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "garbage.bag").write_bytes(b"#ROSBAG V2.0\n" + b"\x00\xff" * 100)
    (tmp_path / "garbage.mcap").write_bytes(b"nothing of the kind")
    (tmp_path / "calib.txt").write_text("1 2 3\n")
    (tmp_path / "camera.yaml").write_text("a: [1, 2")
    good = shapes_bag(tmp_path / "good")
    return {
        "missing path": ["evaluate", tmp_path / "absent"],
        "empty folder": ["evaluate", tmp_path / "empty"],
        "broken ROS 1 bag": ["evaluate", tmp_path / "garbage.bag"],
        "broken mcap": ["evaluate", tmp_path / "garbage.mcap"],
        "bag without events": ["evaluate", shapes_bag(tmp_path / "no_events", events=False)],
        "bag without calibration": [
            "evaluate", shapes_bag(tmp_path / "no_calibration", calibration=False)
        ],
        "bad calib.txt": ["evaluate", good, "--calib", tmp_path / "calib.txt"],
        "bad YAML": ["evaluate", good, "--calib", tmp_path / "camera.yaml"],
        "missing calibration": ["evaluate", good, "--calib", tmp_path / "absent.yaml"],
        "no window": ["evaluate", good, "--window-events", 0],
        "negative window": ["evaluate", good, "--window-ms", -1],
        "window not a number": ["evaluate", good, "--window-ms", "nan"],
        "window too small": ["evaluate", good, "--window-events", 5],
        "full without depth": ["evaluate", good, "--motion-model", "full"],
        "depth below zero": ["evaluate", good, "--motion-model", "full", "--depth", -1],
        "plane of three numbers": [
            "evaluate", good, "--motion-model", "full", "--depth-plane", "0,0,1"
        ],
        "plane of words": ["evaluate", good, "--motion-model", "full", "--depth-plane", "a,b,c,d"],
        "no depth topic": ["evaluate", good, "--motion-model", "full", "--depth-topic", "/depth"],
        "no ranges": ["evaluate", good, "--motion-model", "full", "--depth-range"],
        "no gyroscope": ["evaluate", good, "--imu", "start"],
        "unknown objective": ["evaluate", good, "--objective", "beauty"],
        "unknown kernel": ["evaluate", good, "--binning", "round"],
        "negative rate": ["evaluate", good, "--output-rate", -5],
        "report onto a folder": ["evaluate", good, "--json", tmp_path],
        "rows below a file": ["evaluate", good, "--csv", tmp_path / "calib.txt" / "rows.csv"],
        "pictures onto a file": ["evaluate", good, "--plot", tmp_path / "calib.txt"],
        "figures below a file": ["bench", "--json", tmp_path / "calib.txt" / "figures.json"],
        "study onto a file": ["bias", "--out", tmp_path / "calib.txt"],
        "no such topic": ["evaluate", good, "--topic", "/nonsense"],
        "no such topic of flow": ["evaluate", good, "--flow", "--topic", "/nonsense"],
        "no such topic to compare": ["compare", good, "--topic", "/nonsense"],
        "no such topic to study": ["bias", good, "--out", tmp_path / "b", "--topic", "/nonsense"],
        "info of nothing": ["info", tmp_path / "absent"],
        "info of a broken bag": ["info", tmp_path / "garbage.bag", "--json"],
        "info of an unknown topic": ["info", good, "--topic", "/nonsense"],
        "convert to an unknown format": ["convert", good, tmp_path / "out.avi"],
        "convert onto itself": ["convert", good, good],
        "convert below a file": ["convert", good, tmp_path / "calib.txt" / "bag"],
        "convert from before the start": ["convert", good, tmp_path / "bag2", "--start", -1],
        "convert nothing": ["convert", tmp_path / "no_events", tmp_path / "bag3"],
        "compare: unknown solver": ["compare", good, "--solvers", "magic"],
        "compare: too few events": ["compare", good],
        "part before the start": ["evaluate", good, "--start", -1],
        "part after the end": ["evaluate", good, "--start", 5],
        "part of nothing": ["evaluate", good, "--flow", "--duration", 0],
        "size": ["simulate", "--out", tmp_path / "s", "--size", "huge"],
        "size of one number": ["simulate", "--out", tmp_path / "s", "--size", "346"],
        "size that int() refuses": ["simulate", "--out", tmp_path / "s", "--size", "³x²"],
        "size of nothing": ["simulate", "--out", tmp_path / "s", "--size", "0x0"],
        "endless duration": ["simulate", "--out", tmp_path / "s", "--duration", "inf"],
        "negative seed": ["simulate", "--out", tmp_path / "s", "--seed", -1],
        "peak not a number": ["simulate", "--out", tmp_path / "s", "--peak", "nan", 1, 1],
        "out exists": ["simulate", "--out", tmp_path / "empty", "--duration", 0.1],
        "out in no folder": ["simulate", "--out", tmp_path / "a/b/c", "--duration", 0.1],
        "out where nothing can be": ["simulate", "--out", "/proc/x", "--duration", 0.1],
        "out below a file": ["simulate", "--out", tmp_path / "calib.txt" / "x", "--duration", 0.1],
    }  # fmt: skip


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong = []
    for name, arguments in bad_inputs(tmp_path).items():
        capsys.readouterr()
        try:
            code, _, err = run(capsys, *arguments)
        except Exception as error:  # what a user would see as a traceback
            wrong.append(f"{name}: {type(error).__name__}: {error}")
            continue
        if code != 2 or err.count("\n") != 1 or "event-binning-grad" not in err:
            wrong.append(f"{name}: exit code {code}, {err!r}")
    assert wrong == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("evaluate {good} --json /proc/x", "/proc/x: nothing can be written to /proc: choose"),
        (
            "evaluate {good} --json {tmp}/new/x",
            "/new/x: there is no folder {tmp}/new: make it first",
        ),
        (
            "evaluate {good} --csv {tmp}/new/x",
            "/new/x: there is no folder {tmp}/new: make it first",
        ),
        ("evaluate {good} --plot /proc/x", "/proc/x: nothing can be written to /proc: choose"),
        ("evaluate {good} --plot {tmp}/new/x", "there is no folder {tmp}/new: make it first"),
        ("evaluate {good} --flow --flow-plot /proc/x", "/proc/x: nothing can be written to /proc"),
        ("compare {good} --json {tmp}/new/x", "there is no folder {tmp}/new: make it first"),
        ("bias --out /proc/x", "/proc/x: nothing can be written to /proc: choose another place"),
        ("simulate --out /proc/x", "/proc: nothing can be written to /proc: choose another place"),
    ],
)
def test_places_are_looked_at_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    options: str, message: str,
):  # fmt: skip
    def work(*_: object, **__: object) -> None:
        raise AssertionError("too late")

    for reads in ("evaluate.open_recording", "evaluate_flow.open_recording",
                  "compare.open_recording", "bias_report.run_bias"):  # fmt: skip
        monkeypatch.setattr(f"event_binning_grad.evaluation.{reads}", work)
    monkeypatch.setattr("event_binning_grad.simulate.write_simulation", work)
    names = {"tmp": tmp_path, "good": tmp_path / "good"}
    code, out, err = run(capsys, *options.format(**names).split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message.format(**names) in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flow", [[], ["--flow"]])
def test_a_part_is_what_convert_writes_of_it(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flow: list[str]
):
    stretch = ["--start", 0.1, "--duration", 0.25]
    options = [*flow, "--window-ms", 40, "--json"]
    assert run(capsys, "evaluate", recording, *stretch, *options, tmp_path / "part")[0] == 0
    assert run(capsys, "convert", recording, tmp_path / "bag", *stretch)[0] == 0
    assert run(capsys, "evaluate", tmp_path / "bag", *options, tmp_path / "bag.json")[0] == 0
    part, bag = (json.loads((tmp_path / name).read_text()) for name in ("part", "bag.json"))
    assert part["duration_s"] == pytest.approx(0.25, abs=0.005)
    assert part["windows_by_status"] == bag["windows_by_status"]
    alike = ("events", "duration_s", *(("flow_warp_loss_mean",) if flow else
             ("angular_velocity_rms_deg_s", "windows_compared", "nees_mean")))  # fmt: skip
    for name in alike:
        assert part[name] == pytest.approx(bag[name], rel=1e-6)


def test_a_part_of_a_text_recording(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shapes, report = data_dir / "ecd_shapes_rotation", tmp_path / "report.json"
    stretch = ["--start", 0.2, "--duration", 0.3, "--json", report]
    code, out, err = run(capsys, "evaluate", shapes, *stretch)
    assert (code, err) == (0, "")
    parts: Any = open_recording(shapes).packets()
    t = np.concatenate([part.t for part in parts])
    since_s = (t - t[0]) / 1e9
    figures = json.loads(report.read_text())
    assert figures["events"] == ((since_s >= 0.2) & (since_s < 0.5)).sum()
    compared, windows = figures["windows_compared"], figures["windows"]
    assert 0 < compared < windows
    assert f"{compared} trusted windows of {windows}" in out


def test_a_model_that_does_not_fit_the_truth_is_named(
    data_dir: Path, moving: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    report = tmp_path / "report.json"
    lines = {}
    stretches = {
        data_dir / "ecd_slider_depth": 0.2,
        moving: 0.2,
        data_dir / "ecd_shapes_rotation": 9,
    }
    for path, duration_s in stretches.items():
        options = ["--duration", duration_s, "--json", report]
        code, out, _ = run(capsys, "evaluate", path, *options)
        assert code == 0
        lines[path.name] = [line for line in out.splitlines() if "--motion-model" in line]
        hint = json.loads(report.read_text())["hint"]
        assert lines[path.name] == ([hint] if hint else [])
    assert len(lines["moving"]) == 1
    assert lines["ecd_slider_depth"] == [
        "by the ground truth the camera translates at 0.31 m/s and turns at 0.0 deg/s (RMS): "
        "--motion-model rotation is right only if the scene is far away; else take full with a "
        "--depth, or planar"
    ]
    assert lines["ecd_shapes_rotation"] == []  # 0.046 m/s
    planar = ["--motion-model", "planar", "--duration", 0.2]
    assert "--motion-model" not in run(capsys, "evaluate", moving, *planar)[1]


def test_the_pictures_have_the_time_of_the_rows(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure) or path)
    result = evaluate(recording, PipelineConfig(), stretch=Stretch(0.2))
    plots.plot_evaluation(result, tmp_path)
    start_ns = stamp_to_ns(next(iter(BagRecording(recording).packets())).header.stamp)
    trusted = [e for e in result.estimates if e.status.ok]
    wanted_s = [(e.stamp_ns - start_ns) / 1e9 for e in trusted]
    assert 0.2 < wanted_s[0] < 0.35
    truth, dots = drawn[0].axes[0].lines
    assert dots.get_xdata() == pytest.approx(wanted_s)
    assert dots.get_ydata() == pytest.approx([e.angular_velocity[0] for e in trusted])
    assert truth.get_xdata()[[0, -1]] == pytest.approx([wanted_s[0], wanted_s[-1]])
    label = drawn[0].axes[-1].get_xlabel()
    assert label == f"time since the recording's start, stamp - {start_ns / 1e9:.3f} s (s)"
    assert result.summary()["recording_start_s"] == start_ns / 1e9


def test_figures_of_info_are_short(data_dir: Path, capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(capsys, "info", data_dir / "ecd_shapes_rotation", "--json")
    assert code == 0
    figures = json.loads(out)
    assert figures["encoding"] == "arrays"
    assert len(figures["rate_events"]) > 10
    (line,) = [line for line in out.splitlines() if '"rate_events"' in line]
    assert json.loads("{" + line.strip().rstrip(",") + "}")["rate_events"] == figures["rate_events"]
    assert len(out.splitlines()) < 100


def test_bad_input_prints_no_traceback(tmp_path: Path):
    done = evaluate_in_a_process("evaluate", tmp_path / "absent")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "absent") in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["evaluate"], ["evaluate", "x", "--gradient", "none"], ["simulate"],
     ["evaluate", "x", "--window-events", "5", "--window-ms", "5"],
     ["evaluate", "x", "--window-events", "many"],
     ["evaluate", "x", "--depth", "1", "--depth-range"],
     ["evaluate", "x", "--motion-model", "warp"], ["evaluate", "x", "--warp", "3"]],
)  # fmt: skip
def test_bad_options_are_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    known = arguments if arguments and arguments[0] in COMMANDS else []
    assert err.startswith(" ".join(["event-binning-grad", *known[:1]]) + ": ")
    assert err.endswith("; see --help\n")


def test_ros_commands_say_what_they_lack(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    for arguments in (["play", "x"], ["replay", "x"], ["demo"]):
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert err.count("\n") == 1
        assert "rclpy and event_camera_msgs cannot be imported" in err


def test_load_camera_takes_the_size_from_the_recording(tmp_path: Path):
    calibration = tmp_path / "calib.txt"
    calibration.write_text("10 11 8 7 0 0 0 0 0\n")
    camera = cli.load_camera(calibration, shapes_bag(tmp_path / "bag"))
    assert (camera.width, camera.height) == (16, 16)
    assert camera.K[1, 1] == 11


def test_error_metric_has_the_units_it_says():
    t_ns = np.arange(0, 10) * 10**8
    truth = GroundTruth(t_ns=t_ns, angular_velocity=np.zeros((10, 3)), source="test")
    stamps = [10**8, 2 * 10**8, 5 * 10**12]  # the last one has no truth
    omega = np.radians([[3.0, 0, 0], [0, 0, -3.0], [90.0, 90, 90]])
    error = angular_velocity_error(stamps, omega, truth)
    assert error is not None
    assert error.compared == 2
    assert error.rms_deg_s == pytest.approx(math.sqrt(2 * 9 / 6))
    assert error.rms_per_axis_deg_s == pytest.approx((3 / math.sqrt(2), 0, 3 / math.sqrt(2)))
    assert error.median_deg_s == pytest.approx(3.0)
    assert angular_velocity_error([], np.empty((0, 3)), truth) is None
    assert angular_velocity_error([5 * 10**12], omega[:1], truth) is None


def test_what_is_no_rotation_is_said_with_its_speeds():
    t_ns = np.arange(0, 10) * 10**8 // 2

    def motion(turn_rad_s: float, speed_m_s: float | None) -> str:
        angular, linear = np.zeros((2, 10, 3))
        angular[:, 1], linear[:, 0] = turn_rad_s, speed_m_s or 0
        truth = GroundTruth(t_ns, angular, None if speed_m_s is None else linear)
        return translation(truth, t_ns.tolist())

    assert motion(0.0, 0.3) == "translates at 0.30 m/s and turns at 0.0 deg/s (RMS)"
    assert motion(1.0, 0.3) == "translates at 0.30 m/s and turns at 57.3 deg/s (RMS)"
    assert motion(0.001, None) == "turns at 0.1 deg/s (RMS)"
    assert motion(5.0, 0.3) == motion(0.0, 0.04) == motion(1.0, None) == ""
