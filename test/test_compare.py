"""Gradients, kernels and solvers on the same windows."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from event_binning_grad import cli
from event_binning_grad.config import PipelineConfig
from event_binning_grad.errors import ConfigError, RecordingError
from event_binning_grad.evaluation.compare import (
    NEWTON,
    ComparisonRow,
    compare,
    read_windows,
    rows_of,
)
from event_binning_grad.evaluation.evaluate import recorded_camera
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.simulate import SimulationConfig, write_simulation

EVENTS = 4000


@pytest.fixture(scope="module")
def rotating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "rotating"
    write_simulation(path, SimulationConfig(0.15, 120, 90, peak_rad_s=(6.0, 6.0, 6.0)))
    return path


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Before a plane that faces the camera, 1 m away at the start."""
    path = tmp_path_factory.mktemp("compare") / "moving"
    config = SimulationConfig(
        0.15, 120, 90, scene="plane", peak_rad_s=(2.0, 2.0, 2.0), peak_m_s=(2.0, 2.0, 2.0),
        frequency_hz=(1.0, 2.0), depth_hz=100.0,
    )  # fmt: skip
    write_simulation(path, config)
    return path


def by_name(rows: list[ComparisonRow]) -> dict[tuple[str, str, str], ComparisonRow]:
    return {(row.gradient, row.kernels, row.solver): row for row in rows}


def test_every_combination_is_a_row(rotating: Path):
    solvers = (NEWTON, "L-BFGS-B")
    ticks: list[None] = []
    rows = by_name(
        compare(
            rotating, PipelineConfig(window_events=EVENTS), pairs=("linear+linear",),
            solvers=solvers, windows=2, progress=lambda: ticks.append(None),
        )
    )  # fmt: skip
    assert len(ticks) == len(rows) == rows_of(("linear+linear",), solvers) == 4
    for row in rows.values():
        assert row.windows == 2
        assert row.rms_deg_s is not None
        assert row.rms_deg_s < 10
        assert row.contrast_gain > 1
        assert row.evaluations_mean >= 1
        assert row.window_ms_p50 > 0
        assert row.linear_velocity_rms_m_s is None


def test_a_histograms_own_gradient_moves_nothing(rotating: Path):
    config = PipelineConfig(window_events=EVENTS)
    rows = by_name(compare(rotating, config, pairs=("rect+linear",), solvers=("BFGS",), windows=1))
    unbiased, raw = rows["unbiased", "rect+linear", "BFGS"], rows["raw", "rect", "BFGS"]
    assert raw.evaluations_mean <= 2
    assert unbiased.evaluations_mean > raw.evaluations_mean


@pytest.mark.parametrize("depth", ["plane", "image"])
def test_the_linear_velocity_is_compared_where_the_depth_is_known(moving: Path, depth: str):
    config = PipelineConfig(
        motion_model="full", depth=depth, depth_plane=(0, 0, 1, 1), window_events=EVENTS
    )
    rows = compare(moving, config, pairs=("linear+linear",), solvers=("BFGS",), windows=1)
    for row in rows:
        assert row.linear_velocity_rms_m_s is not None
        assert row.linear_velocity_rms_m_s < 1.0
        assert row.rms_deg_s is not None


def test_without_truth_there_is_the_contrast_gain(data_dir: Path):
    path = data_dir / "ecd_slider_depth"
    config = PipelineConfig(window_events=5000)
    rows = compare(path, config, pairs=("linear+linear",), solvers=(NEWTON,), windows=1)
    assert all(row.contrast_gain > 1 for row in rows)


def test_windows_are_disjoint_and_on_the_clock_of_the_truth(rotating: Path):
    recording = open_recording(rotating)
    config = PipelineConfig(window_events=EVENTS)
    truth = recording.ground_truth()
    windows = read_windows(recording, config, recorded_camera(recording), 3, truth)
    assert [len(window.events) for window in windows] == [EVENTS] * 3
    assert truth is not None
    assert np.isfinite(truth.at([window.stamp_ns for window in windows])).all()
    for before, after in pairwise(windows):
        assert before.events.t[-1] <= after.events.t[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pairs": ("linear",)}, ConfigError, "expected binning"),
        ({"pairs": ("linear+nothing",)}, ConfigError, "nothing"),
        ({"solvers": ("magic",)}, ConfigError, "solver 'magic'"),
        ({"windows": 0}, ConfigError, "at least 1"),
    ],
)
def test_bad_arguments_are_refused(rotating: Path, options, error, message: str):
    with pytest.raises(error, match=message):
        compare(rotating, PipelineConfig(window_events=EVENTS), **options)


def test_a_recording_too_short_is_refused(rotating: Path):
    with pytest.raises(RecordingError, match="expected at least two"):
        compare(rotating, PipelineConfig(window_events=1_000_000))


def test_the_command_prints_and_writes_the_rows(
    rotating: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    report = tmp_path / "rows.json"
    arguments = ["--window-events", str(EVENTS), "--windows", "1", "--solvers", "newton"]
    arguments += ["--pairs", "linear+linear", "--no-angular-acceleration", "--json", str(report)]
    assert cli.main(["compare", str(rotating), *arguments]) == 0
    rows = json.loads(report.read_text())
    assert [(row["gradient"], row["kernels"]) for row in rows] == [
        ("unbiased", "linear+linear"), ("raw", "linear")
    ]  # fmt: skip
    out = capsys.readouterr().out
    for text in ("newton", "contrast gain", "deg/s", "evaluations"):
        assert text in out
