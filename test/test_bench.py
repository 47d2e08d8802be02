"""The benchmark: that what it compares computes the same thing, and what it counts and prints."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from event_binning_grad import bin_events, cli
from event_binning_grad.evaluation import array_baseline, bench
from event_binning_grad.evaluation import bench_operator as measuring
from event_binning_grad.evaluation.bench_operator import (
    PASSES,
    Case,
    DeviceFigures,
    OperatorFigures,
    Plan,
    Way,
    bytes_an_event,
    coordinates,
    copy_bandwidth,
    pass_figures,
    ratios,
    ways,
)
from event_binning_grad.evaluation.bench_operator_report import bench_operator, print_tables

TINY = Plan(
    shapes=((20, 30), (4, 20, 30)),
    events=(1_000, 2_000),
    main_shape=(20, 30),
    binnings=("rect", "gaussian"),
    reconstructions=(None, "linear"),
    kernel_events=1_000,
    compared_events=(2_000,),
    budget_s=0.0,
)


@pytest.fixture
def two_threads(torch_threads) -> Iterator[None]:
    """torch has two threads, however many cores there are."""
    with torch_threads(2):
        yield


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize(
    ("shape", "binning"),
    [
        ((40,), ("linear",)),
        ((18, 24), ("rect", "rect")),
        ((18, 24), ("linear", "linear")),
        ((5, 12, 9), ("linear", "rect", "rect")),
        ((5, 12, 9), ("linear", "linear", "linear")),
    ],
)
def test_array_formulation_equals_the_operator(
    shape: tuple[int, ...], binning: tuple[str, ...], weighted: bool
):
    """Forward and every first and second gradient, by name; some events lie outside."""
    generator = torch.Generator().manual_seed(3)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    uniform = torch.rand(400, len(shape), generator=generator, dtype=torch.float64)
    coords = (uniform * (torch.tensor(shape) + 6) - 3).requires_grad_()
    weights = normal(400).requires_grad_() if weighted else None
    cotangent = normal(*shape).requires_grad_()
    inputs = (coords,) if weights is None else (coords, weights)
    image = bin_events(coords, weights, shape=shape, binning=binning)
    gradients = torch.autograd.grad(image, inputs, cotangent, create_graph=True)
    tangents = [normal(*t.shape) for t in inputs]
    second = torch.autograd.grad(gradients, (*inputs, cotangent), tangents)
    names = ["coords", "weights"][: len(inputs)]
    found = {"image": image, **dict(zip(names, gradients, strict=True))}
    names = [*(f"{name} twice" for name in names), "cotangent"]
    found |= dict(zip(names, second, strict=True))

    x, c = coords.detach().numpy(), cotangent.detach().numpy()
    w = np.ones(400) if weights is None else weights.detach().numpy()
    by_coords, *by_weights = (t.numpy() for t in tangents)
    expected: dict[str, Any] = {"image": array_baseline.splat(x, w, shape, binning)}
    expected["coords"], expected["weights"] = array_baseline.pull_back(c, x, w, binning, weighted)
    expected["coords twice"], expected["weights twice"], expected["cotangent"] = (
        array_baseline.pull_back_twice(
            c, x, w, by_coords, by_weights[0] if weighted else None, binning
        )
    )
    expected = {name: value for name, value in expected.items() if value is not None}
    assert set(found) == set(expected)
    for name, value in found.items():
        assert np.abs(expected[name]).max() > 0, name
        np.testing.assert_allclose(
            value.detach().numpy(), expected[name], rtol=1e-12, atol=1e-12, err_msg=name
        )


def test_array_formulation_equals_the_operator_in_float32_as_it_is_timed():
    coords = coordinates((60, 80), 20_000, "edges")
    ones = np.ones(20_000, np.float32)
    for binning in ("rect", "linear"):
        expected = bin_events(torch.from_numpy(coords), shape=(60, 80), binning=binning)
        image = array_baseline.splat(coords, ones, (60, 80), (binning, binning))
        assert image.dtype == np.float32
        np.testing.assert_allclose(image, expected.numpy(), rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("along", ["uniform", "edges"])
@pytest.mark.parametrize("shape", [(60, 80), (5, 60, 80)])
def test_events_lie_where_they_are_said_to(shape: tuple[int, ...], along: str):
    coords = coordinates(shape, 50_000, along)
    assert coords.shape == (50_000, len(shape))
    assert coords.dtype == np.float32
    image = bin_events(torch.from_numpy(coords[:, -2:].copy()), shape=shape[-2:])
    assert image.sum() >= 0.98 * 50_000  # few of those about a line near the border fall outside
    brightest, _ = image.flatten().sort(descending=True)
    in_a_fifth = brightest[: image.numel() // 5].sum() / image.sum()
    assert in_a_fifth > 0.6 if along == "edges" else in_a_fifth < 0.35
    if len(shape) == 3:
        assert (np.diff(coords[:, 0]) >= 0).all() == (along == "edges")


def test_bytes_an_event_are_counted_by_hand():
    # rect with linear: 1 bin an event, 3 x 3 in the gradient; the image of 6 x 4 bins, 4 bytes
    # each, is shared by 12 events: 8 bytes an event.
    case = Case((6, 4), 12, ("rect", "rect"), ("linear", "linear"))
    assert bytes_an_event(case) == {
        "forward": (8 + 8, 2 * 4),  # y, x, image; one bin read and written
        "backward": (8 + 8 + 8, 9 * 4),  # y, x, cotangent, gradient; nine bins read
        "double_backward": (24 + 16, 9 * 4 + 9 * 8),  # and tangents; nine read, nine added to
    }
    weighted = Case((6, 4), 12, ("rect", "rect"), ("linear", "linear"), weighted=True)
    assert bytes_an_event(weighted) == {
        "forward": (12 + 8, 2 * 4),
        "backward": (12 + 8 + 12, (9 + 1) * 4),
        "double_backward": (36 + 16, (9 + 1) * 4 + (9 + 1) * 8),
    }


@pytest.mark.usefixtures("two_threads")
def test_every_table_is_measured_and_printed(capsys: pytest.CaptureFixture[str]):
    report = bench_operator(Console(width=100), TINY)
    assert torch.get_num_threads() == 2
    assert json.loads(json.dumps(report)).keys() == report.keys()

    figures = [row for row in report["figures"] if row["device"] == "cpu"]
    bandwidth = report["copy_bandwidth_bytes_per_second"]["cpu"]
    assert list(bandwidth) == ["1 thread", "2 threads"]
    assert all(math.isfinite(value) and value > 0 for value in bandwidth.values())
    assert {row["way"] for row in figures} == set(bandwidth)
    own = {row["back_end"] for row in figures if row["table"] == "size"}
    assert len(own) == 1
    cases = {"size": 8, "kernels": 4, "events": 8}
    for table, count in cases.items():
        rows = [row for row in figures if row["table"] == table]
        assert len(rows) == count * len(bandwidth), table
    compared = {row["back_end"] for row in figures if row["table"] == "back ends"}
    assert compared == own | {"reference", "arrays"}
    for row in figures:
        assert set(row["passes"]) == set(PASSES)
        for figure in row["passes"].values():
            assert figure["repetitions"] >= 3
            assert all(math.isfinite(v) and v > 0 for v in figure.values()), row
            assert figure["ns_an_event_fastest"] <= figure["ns_an_event"]
            assert figure["events_per_second"] == pytest.approx(1e9 / figure["ns_an_event"])
            assert figure["streamed_fraction"] < figure["total_fraction"]

    assert {ratio["way"] for ratio in report["ratios"]} == set(bandwidth)
    for ratio in report["ratios"]:
        by_name = {
            row["back_end"]: row["passes"]["backward"]["ns_an_event"]
            for row in figures
            if (row["table"], row["case"], row["way"]) == ("back ends", ratio["case"], ratio["way"])
        }
        expected = by_name[ratio["of"]] / by_name[ratio["to"]]
        assert ratio["backward"] == pytest.approx(expected)
    assert {ratio["of"] for ratio in report["ratios"]} == compared - own

    out = capsys.readouterr().out
    (name,) = own
    titles = (
        "rect binning", "linear binning", "kernels, 30x20", "kinds, 30x20",
        "back ends, linear", f"back ends: time divided by that of {name}",
    )  # fmt: skip
    for text in (*titles, "4x20x30", "10^3", "gaussian", "edges, weights", "arrays", "GB/s"):
        assert text in out, text
    assert "…" not in out  # nothing is cut


@pytest.mark.usefixtures("two_threads")
def test_copy_bandwidth_counts_what_is_read_and_written(monkeypatch: pytest.MonkeyPatch):
    """By the way's threads, which are put back, and by the fastest copy."""
    found: list[int] = []

    def repeated(run: Any, wait: Any, budget_s: float) -> list[float]:
        found.append(torch.get_num_threads())
        return [2.0, 0.5, 1.0]

    monkeypatch.setattr(measuring, "_COPY_BYTES", 1 << 12)
    monkeypatch.setattr(measuring, "_repeated", repeated)
    assert copy_bandwidth(Way("1 thread", "cpu", 1)) == 2 * (1 << 12) / 0.5
    assert found == [1]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_cpu_runs_by_one_thread_and_by_those_that_torch_has():
    for threads, names in ((1, ["1 thread"]), (2, ["1 thread", "2 threads"]),
                           (5, ["1 thread", "5 threads"])):  # fmt: skip
        torch.set_num_threads(threads)
        assert [way.name for way in ways("cpu")] == names
        assert ways("cpu")[-1].threads == threads


def test_a_pass_that_seems_to_take_no_time_has_no_figures():
    """As a difference of two CUDA graphs' times can."""
    assert pass_figures([-3e-6, -1e-6, 2e-6], 10, 8.0, 4.0, 1e9) is None
    assert pass_figures([0.0, 0.0, 1e-6], 10, 8.0, 4.0, 1e9) is None
    found = pass_figures([-1e-6, 2e-6, 3e-6], 10, 8.0, 4.0, 1e9)
    assert found is not None
    assert found.ns_an_event == pytest.approx(200)
    assert found.ns_an_event_fastest is None
    assert found.events_per_second == pytest.approx(5e6)
    assert found.streamed_fraction == pytest.approx(8 / 200)
    assert found.total_fraction == pytest.approx(12 / 200)


def test_ratios_say_how_many_times_as_long_and_a_missing_pass_is_a_dash(
    capsys: pytest.CaptureFixture[str],
):
    case = Case((20, 30), 1_000, ("rect", "rect"), ("linear", "linear"))

    def row(table: str, name: str, *ns: float) -> OperatorFigures:
        each = (pass_figures([1e-6 * t], 1_000, 8.0, 4.0, 1e10) for t in ns)
        return OperatorFigures(
            table, "cpu", name, "1 thread", case, dict(zip(PASSES, each, strict=True))
        )

    rows = [
        *(row(table, "cpu", 10.0, 0.0, 20.0) for table in ("size", "kernels", "events")),
        row("back ends", "cpu", 10.0, 0.0, 20.0),
        row("back ends", "reference", 35.0, 40.0, 10.0),
    ]
    (ratio,) = ratios(rows)
    assert (ratio.of, ratio.to, ratio.way, ratio.case) == ("reference", "cpu", "1 thread", case)
    assert ratio.forward == pytest.approx(3.5)
    assert ratio.backward is None
    assert ratio.double_backward == pytest.approx(0.5)

    console = Console(width=100)
    print_tables(console, DeviceFigures("cpu", {"1 thread": 1e10}, rows, [ratio]))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["30x20", "10^3", "10.0", "-", "20.0", "18/54", "12.0/-"] in lines
    assert ["rect", "10^3", "cpu", "10.0", "-", "20.0"] in lines
    assert ["rect", "10^3", "reference", "3.5", "-", "0.5"] in lines


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], list(bench.SECTIONS)),
        (["egomotion", "--part", "slow", "--part", "changing"], ["egomotion"]),
        (["egomotion", "operator", "--quick"], ["operator", "egomotion"]),
    ],
)
def test_bench_runs_the_sections_that_are_named(
    arguments: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    ran: list[tuple[str, bool, int]] = []

    def section(name: str) -> Any:
        return lambda _, settings, parts: ran.append((name, settings.quick, len(parts))) or [name]

    monkeypatch.setattr(bench, "SECTIONS", {name: section(name) for name in bench.SECTIONS})
    path = tmp_path / "figures.json"
    assert cli.main(["bench", *arguments, "--json", str(path)]) == 0
    quick, parts = "--quick" in arguments, arguments.count("--part")
    assert ran == [(name, quick, parts) for name in expected]
    report = json.loads(path.read_text())
    assert list(report) == ["machine", *expected]
    assert report["machine"]["cores"] >= 1
    assert all(report[name] == [name] for name in expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["operator", "speed"],
            "section 'speed': expected one of operator, egomotion, cuda, flow, ",
        ),
        (["egomotion", "--part", "speed"], "part 'speed': expected one of throughput, overload, "),
        (["egomotion", "--part", "hand_held", "--poses", "/absent"], "/absent cannot be read as "),
    ],
)
def test_an_unknown_name_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["bench", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"event-binning-grad bench: {message}")
    assert err.count("\n") == 1


def egomotion_rows(part: str, path: Path, *arguments: str) -> list[dict[str, Any]]:
    """What the command writes of a part, measured quickly."""
    file = path / "figures.json"
    command = ["bench", "egomotion", "--quick", "--part", part, "--json", str(file)]
    assert cli.main([*command, *arguments]) == 0
    figures = json.loads(file.read_text())["egomotion"]
    assert list(figures) == [part]
    return figures[part]


def test_throughput_is_that_of_the_pipeline_and_of_plain_torch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    rows = egomotion_rows("throughput", tmp_path)
    assert {("240x180", "fused"), ("240x180", "torch")} <= {
        (row["sensor"], row["back_end"]) for row in rows
    }
    for row in rows:
        assert row["windows"] >= 1
        assert row["events_per_second"] > 0
        assert 0 < row["window_ms_p50"] <= row["window_ms_p99"]
        assert row["iterations_mean"] >= 1
    assert rows[0]["rms_deg_s"] < 1.5
    assert "fused, cuda: the pipeline" in capsys.readouterr().out


def test_overload_says_what_was_left_out(tmp_path: Path):
    rows = egomotion_rows("overload", tmp_path)
    assert [row["windows"] for row in rows] == ["default", "20 ms"]
    for row in rows:
        assert 0 < row["used_share"] <= 1
        assert row["real_time_factor"] > 0
        assert row["rms_ratio"] == pytest.approx(row["rms_deg_s"] / row["all_events_rms_deg_s"])


def test_independent_packets_are_solved_by_all_methods(tmp_path: Path):
    (row,) = egomotion_rows("packets", tmp_path)
    assert (row["events"], row["rate_rad_s"], row["packets"]) == (5000, 4.0, 3)
    assert row["rms_deg_s"] < 10
    assert row["baseline_rms_deg_s"] < 10
    assert row["baseline_evaluations_mean"] > 1


def test_streams_say_when_the_track_was_lost(tmp_path: Path):
    (row,) = egomotion_rows("changing", tmp_path)
    assert row["rms_deg_s"] < 2
    assert row["off_share"] == 0
    assert row["longest_off_s"] == 0
    assert row["longest_silence_s"] < 0.2
    assert row["baseline_rms_deg_s"] < 5


def test_without_poses_the_hand_held_part_is_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert egomotion_rows("hand_held", tmp_path) == []
    assert "left out: no --poses FILE" in capsys.readouterr().out


def test_a_measured_track_is_simulated(data_dir: Path, tmp_path: Path):
    poses = data_dir / "ecd_shapes_rotation" / "groundtruth.txt"
    (row,) = egomotion_rows("hand_held", tmp_path, "--poses", str(poses))
    assert row["duration_s"] == pytest.approx(1.5, abs=0.05)
    assert row["rms_deg_s"] < 15


def test_cold_starts_are_counted_by_scene(tmp_path: Path):
    rows = egomotion_rows("cold_start", tmp_path)
    assert [row["scene"] for row in rows] == ["texture", "shapes"]
    assert all(row["windows"] == 3 and row["within_5_deg_s"] > 0.3 for row in rows)


def test_slow_motion_pulls_the_baseline_to_zero(tmp_path: Path):
    rows = egomotion_rows("slow", tmp_path)
    assert [row["camera"] for row in rows] == ["distorted", "ideal pinhole"]
    for row in rows:
        assert abs(row["scale_error"]) < abs(row["baseline_scale_error"])


def test_consistency_compares_the_error_with_what_is_said(tmp_path: Path):
    (row,) = egomotion_rows("consistency", tmp_path)
    assert row["nees_mean"] > 0
    assert 0.1 < row["rms_deg_s"] / row["std_deg_s"] < 10


def test_known_depth_gives_the_linear_velocity(tmp_path: Path):
    (row,) = egomotion_rows("depth", tmp_path)
    assert row["linear_velocity_rms_percent"] == pytest.approx(
        100 * row["linear_velocity_rms_m_s"] / row["true_linear_velocity_rms_m_s"]
    )
    assert row["linear_velocity_rms_percent"] < 40


# Peak memory of one backward pass. Large blocks must come from the system and go back to it, or
# what earlier passes have freed would hide them.
_PEAK = """
import sys
from pathlib import Path
import torch
from event_binning_grad import bin_events
from event_binning_grad.binning.backend import back_end

binning, reconstruction, events = sys.argv[1], sys.argv[2], int(sys.argv[3])


def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def pull_back(events):
    coords = (torch.rand(events, 2) * 100).requires_grad_()
    image = bin_events(coords, shape=(100, 100), binning=binning, reconstruction=reconstruction)
    cotangent = torch.rand_like(image)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    (gradient,) = torch.autograd.grad(image, coords, cotangent)
    peak = status("VmHWM")
    assert gradient.shape == coords.shape and gradient.any()
    return peak - before


pull_back(1000)  # compiles
print(back_end(torch.zeros(1, 2)).__name__.rpartition(".")[2], pull_back(events))
"""


@pytest.mark.parametrize(
    ("binning", "reconstruction"),  # 16, 49 taps an event
    [("linear", "linear"), ("gaussian", "lanczos")],
)
def test_backward_allocates_nothing_that_grows_with_taps_times_events(
    binning: str, reconstruction: str
):
    """Beyond its result it takes less than a byte an event, let alone one for each tap."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"the peak of a process's memory cannot be reset here: {error}")
    events = 2_000_000
    run = subprocess.run(
        [sys.executable, "-c", _PEAK, binning, reconstruction, str(events)],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    name, peak = run.stdout.split()
    assert name == "cpu"
    result = events * 2 * 4
    assert result / 2 < int(peak) < result + events
