"""The benchmark of dense flow: its parts, what they count, and what they say of events."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from event_binning_grad import cli
from event_binning_grad.config import PipelineConfig
from event_binning_grad.evaluation import bench_flow_recorded
from event_binning_grad.evaluation.bench_flow_recorded import (
    BOXES,
    MULTICM_WINDOW_S,
    FlowBoxesRow,
    FlowRecordingRow,
)
from event_binning_grad.evaluation.bench_flow_simulated import (
    FlowRepeatRow,
    FlowSceneRow,
    FlowThroughputRow,
)
from event_binning_grad.evaluation.flow_runs import run_live, window_fields
from event_binning_grad.evaluation.scenarios import ideal_camera
from event_binning_grad.events.types import Events
from event_binning_grad.pipeline_flow import FlowStage


def flow_rows(part: str, row: type, path: Path, *arguments: str) -> list[dict[str, Any]]:
    """What the command writes of a part, measured quickly; every row with all its figures."""
    file = path / "figures.json"
    command = ["bench", "flow", "--quick", "--part", part, "--json", str(file)]
    assert cli.main([*command, *arguments]) == 0
    figures = json.loads(file.read_text())["flow"]
    assert list(figures) == [part]
    for found in figures[part]:
        assert list(found) == [field.name for field in fields(row)]
    return figures[part]


def test_throughput_counts_fields_and_what_they_take(tmp_path: Path):
    row, *others = flow_rows("throughput", FlowThroughputRow, tmp_path)
    assert all(other["back_end"] == "cuda" for other in others)
    assert all(value is not None for value in row.values())
    assert (row["sensor"], row["back_end"], row["stride"]) == ("346x260", "cpu", 2)
    assert 0.5e6 < row["events_per_second"] < 2e6
    assert row["fields"] >= 1  # on a busy machine the others are left out
    assert row["fields"] + row["skipped_windows"] >= 4
    assert 0 < row["field_ms_p50"] <= row["field_ms_p99"]
    assert row["possible_fields_per_second"] > 0
    assert row["cpu_ms_per_field"] > 0
    assert 0 < row["used_share"] <= 1
    assert 0 < row["window_used_share"] <= 1
    assert row["epe_px"] < 1


def test_scenes_compare_both_gradients_on_all_pixels_and_the_moving_ones(tmp_path: Path):
    (row,) = flow_rows("scenes", FlowSceneRow, tmp_path)
    assert all(value is not None for value in row.values())
    assert 1 <= row["fields"] <= row["windows"]
    assert 5 <= row["true_displacement_px"] <= 15
    assert row["raw_iterations_mean"] == pytest.approx(row["iterations_mean"], rel=0.5)
    assert row["raw_ratio"] == pytest.approx(row["raw_epe_px"] / row["epe_px"])
    assert row["epe_px"] < row["true_displacement_px"] / 2
    assert row["moving_epe_px"] < row["true_displacement_px"]
    assert 0 <= row["outliers_3px"] <= row["outliers_1px"] <= 1


def test_the_same_events_give_the_same_fields(tmp_path: Path):
    rows = flow_rows("determinism", FlowRepeatRow, tmp_path)
    assert len(rows) == 2
    assert all(row["fields"] >= 3 and row["identical"] == "yes" for row in rows)


def text_recording(path: Path, calibration: bool = True) -> Path:
    """A second of dots that drift to the right, as text."""
    path.mkdir(parents=True)
    events = drifting_dots(1.0)
    columns = np.stack([events.t * 1e-9, events.x, events.y, events.p], axis=1)
    np.savetxt(path / "events.txt", columns, fmt=["%.6f", "%d", "%d", "%d"])
    if calibration:
        (path / "calib.txt").write_text("80 80 60 45 0 0 0 0 0\n")
    return path


def drifting_dots(duration_s: float) -> Events:
    """Events of 60 dots on a sensor of 120x90 that move by 100 px/s to the right, and noise."""
    rng = np.random.default_rng(4)
    count = round(60_000 * duration_s)
    t_s = np.sort(rng.uniform(0, duration_s, count))
    dots = rng.uniform([-20, 0], [110, 90], (60, 2))
    x, y = (dots[rng.integers(0, len(dots), count)] + rng.normal(0, 0.5, (count, 2))).T
    x, y = np.rint((x + 100 * t_s) % 120).astype(int), np.rint(y).astype(int)
    inside = (x >= 0) & (x < 120) & (y >= 0) & (y < 90)
    t = np.floor(1e6 * t_s).astype(np.int64) * 1000
    x, y = x[inside].astype(np.uint16), y[inside].astype(np.uint16)
    return Events(t[inside], x, y, np.ones(len(x), np.uint8), 120, 90)


def test_recordings_are_found_read_and_set_beside_a_rotation(tmp_path: Path):
    folder = tmp_path / "recordings"
    text_recording(folder / "inner" / "calibrated")
    text_recording(folder / "uncalibrated", calibration=False)
    (folder / "notes.md").write_text("no recording\n")
    (row,) = flow_rows("real", FlowRecordingRow, tmp_path, "--data", str(folder))
    assert row["recording"] == "inner/calibrated"
    assert all(value is not None for value in row.values())
    assert row["pixels"] == "undistorted"
    assert row["windows"] >= 5
    assert row["flow_warp_loss_min"] <= row["flow_warp_loss_mean"]
    assert row["flow_warp_loss_mean"] > 1
    assert row["rotation_ratio"] > 0


def test_a_recording_without_calibration_has_no_rotation_beside_it(tmp_path: Path):
    folder = tmp_path / "recordings"
    text_recording(folder / "uncalibrated", calibration=False)
    (row,) = flow_rows("real", FlowRecordingRow, tmp_path, "--data", str(folder))
    assert row["pixels"] == "raw"
    assert row["rotation_flow_warp_loss_mean"] is None
    assert row["rotation_ratio"] is None
    assert row["flow_warp_loss_mean"] > 1


@pytest.mark.parametrize("part", ["real", "boxes"])
def test_without_recordings_a_part_is_left_out_in_one_line(
    part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(bench_flow_recorded, "RECORDINGS", tmp_path / "absent")
    assert flow_rows(part, FlowBoxesRow, tmp_path) == []
    assert "left out: no --data DIR, and no " in capsys.readouterr().out
    assert flow_rows(part, FlowBoxesRow, tmp_path, "--data", str(tmp_path)) == []
    what = "recording" if part == "real" else BOXES
    assert f"left out: {tmp_path} has no {what}" in capsys.readouterr().out


def test_an_absent_folder_and_a_part_of_another_section_are_refused(
    capsys: pytest.CaptureFixture[str],
):
    for arguments, message in (
        (["flow", "--data", "/absent"], "--data /absent: no such folder; expected one of"),
        (
            ["flow", "--part", "slow"],
            "part 'slow': expected one of throughput, cuda, scenes, real, ",
        ),
        (["operator", "--part", "real"], "part 'real': expected one of no part, or none"),
    ):
        assert cli.main(["bench", *arguments]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"event-binning-grad bench: {message}")
        assert err.count("\n") == 1


def test_boxes_rotation_on_both_kinds_of_pixels(data_dir: Path, tmp_path: Path):
    rows = flow_rows("boxes", FlowBoxesRow, tmp_path, "--data", str(data_dir))
    assert [(row["pixels"], row["gradient"]) for row in rows] == [
        ("undistorted", "unbiased"), ("undistorted", "raw"), ("raw", "unbiased"), ("raw", "raw"),
    ]  # fmt: skip
    for row in rows:
        assert row["events"] == 30_000
        assert row["times_faster"] == pytest.approx(1e3 * MULTICM_WINDOW_S / row["window_ms_p50"])
        assert math.isfinite(row["scale_error"])
    # The pixels' grid does not pull the flow to zero.
    assert rows[2]["epe_px"] < 1.0
    assert abs(rows[2]["scale_error"]) < 0.3


def test_a_pipeline_that_is_too_slow_leaves_windows_out(monkeypatch: pytest.MonkeyPatch):
    events, camera = drifting_dots(0.5), ideal_camera(120, 90)
    config = PipelineConfig(estimate="flow", flow_rate_hz=50.0)
    easy = run_live(events, camera, config)
    assert easy.skipped_windows == 0
    assert len(easy.fields) == len(easy.delays_s) >= 5
    # A clock that runs fast makes the pipeline slow.
    ticks = iter(0.3 * np.arange(1_000_000))
    monkeypatch.setattr("event_binning_grad.evaluation.flow_runs.time.perf_counter", ticks.__next__)
    slow = run_live(events, camera, config)
    assert slow.skipped_windows > 0
    assert len(slow.fields) + slow.skipped_windows == len(easy.fields)


def test_fields_come_with_the_events_of_their_windows():
    events = drifting_dots(0.3)
    found = list(window_fields(events, FlowStage(PipelineConfig(estimate="flow"), (120, 90))))
    assert len(found) >= 5
    for window, estimate in found:
        assert len(window) == estimate.events
        assert window.mean_time_ns == estimate.stamp_ns
    assert int(found[-1][0].t[-1]) == int(events.t[-1])
