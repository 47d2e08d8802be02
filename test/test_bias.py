"""The comparison of derivatives with finite differences: its losses, its protocol, its command."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from event_binning_grad import bin_events, cli
from event_binning_grad.binning.kernels import Kernel, kernel, synthesis
from event_binning_grad.binning.reference import Grid
from event_binning_grad.errors import ConfigError
from event_binning_grad.evaluation import bias_report
from event_binning_grad.evaluation.bias import (
    BINNINGS,
    LOSSES,
    RECONSTRUCTIONS,
    SHIFTED,
    SPACING,
    STEPS,
    Estimator,
    Line,
    Study,
    agreement,
    all_estimators,
    binnings_of,
    sample_line,
    sigmoid,
    straight_through,
)
from event_binning_grad.evaluation.bias_windows import rotation_lines, simulated_windows
from event_binning_grad.simulate import SimulationConfig, write_simulation

RAW_RECT, RAW_LINEAR = Estimator("raw", "rect", None), Estimator("raw", "linear", None)
RECT, LINEAR = Estimator("linear", "rect", "linear"), Estimator("linear", "linear", "linear")
FEW = (RAW_RECT, RECT, RAW_LINEAR, LINEAR)


@pytest.fixture(autouse=True)
def one_thread(torch_threads) -> Iterator[None]:
    """The problems are small: threads would only wait for one another."""
    with torch_threads(1):
        yield


# ---------------------------------------------------------------------------------- losses


def test_negative_binomial_is_that_of_scipy():
    counts = np.random.default_rng(0).integers(0, 30, (7, 9))
    expected = stats.nbinom.logpmf(counts, 0.1, 1.59 / 2.59).mean()
    value = LOSSES["negative binomial"](torch.tensor(counts, dtype=torch.float64))
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_variance_and_absolute_deviation_are_those_of_numpy():
    values = np.random.default_rng(1).gamma(1.0, size=(7, 9))
    image = torch.tensor(values)
    assert LOSSES["variance"](image).item() == pytest.approx(values.var(), rel=1e-12)
    deviation = np.abs(values - values.mean()).mean()
    assert LOSSES["absolute deviation"](image).item() == pytest.approx(deviation, rel=1e-12)


def test_gradient_magnitude_of_a_plane_is_its_squared_slope():
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    assert LOSSES["gradient magnitude"](3 * x - 2 * y + 5).item() == pytest.approx(9 + 4)


@pytest.mark.parametrize("name", LOSSES)
def test_derivative_of_the_loss_on_a_smooth_image(name: str):
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    image = 1.5 + torch.sin(0.7 * x.double()) * torch.cos(0.5 * y.double())
    assert torch.autograd.gradcheck(LOSSES[name], (image.requires_grad_(),))


# --------------------------------------------------------------------------------- figures


def test_figures_of_numbers_made_by_hand():
    f = np.array([1.0, -2.0, 2.0, 0.0])
    same, twice, nothing = (agreement(factor * f, f) for factor in (1, 2, 0))
    assert (same.relative_bias, same.error, same.sign_errors) == (0, 0, 0)
    assert same.correlation == pytest.approx(1)
    assert (twice.relative_bias, twice.error, twice.sign_errors) == (1, 1, 0)
    assert (nothing.relative_bias, nothing.error, nothing.sign_errors) == (-1, 1, 1)
    assert np.isnan(nothing.correlation)

    g = np.array([1.0, 2.0, 3.0, 7.0])
    mixed = agreement(g, f)
    # g f = 1, -4, 6, 0 and f^2 = 1, 4, 4, 0; where f is zero there is no sign to be wrong about.
    assert mixed.relative_bias == pytest.approx(3 / 9 - 1)
    assert mixed.error == pytest.approx(math.sqrt((0 + 16 + 1 + 49) / 9))
    assert mixed.sign_errors == pytest.approx(1 / 3)
    assert mixed.correlation == pytest.approx(np.corrcoef(g, f)[0, 1])


def test_nothing_to_compare_with_is_no_figure():
    found = agreement(np.ones(3), np.zeros(3))
    for values in (found.relative_bias, found.error, found.sign_errors, found.correlation):
        assert np.isnan(values)


# -------------------------------------------------------------------------------- protocol


SIGMA, EVENTS = 4.0, 5_000


def blob_line(points: int = 17) -> Line:
    """Events of a normal density that is moved; the loss below has a known derivative."""
    quantiles = (np.arange(EVENTS) + 0.5) / EVENTS
    at_rest = torch.tensor(stats.norm.ppf(quantiles, loc=40.0, scale=SIGMA))[:, None]
    return Line("blob", "x", lambda s: at_rest + s, Grid((81,), (0.0,), (1.0,)), -2.13, points)


def distance(image: Tensor) -> Tensor:
    """The squared distance from the blob's own histogram at rest."""
    centres = np.arange(81)
    steps = stats.norm.cdf(centres + 0.5, 40, SIGMA) - stats.norm.cdf(centres - 0.5, 40, SIGMA)
    return ((image / EVENTS - torch.tensor(steps)) ** 2).sum()


def test_quadratic_loss_of_a_blob():
    """L(s) = 2 (R(0) - R(s)), R the autocorrelation of the blob binned: a normal density of
    variance 2 (sigma^2 + 1/12)."""
    steps = (0.5, 1.0)
    line = blob_line()
    samples = sample_line(line, FEW, {"distance": distance}, steps)
    s, spread = line.at(), 2 * (SIGMA**2 + 1 / 12)
    assert s == pytest.approx(-2.13 + SPACING * np.arange(17))

    def loss(x: np.ndarray) -> np.ndarray:
        return 2 * (1 - np.exp(-(x**2) / (2 * spread))) / math.sqrt(2 * math.pi * spread)

    assert samples.losses[0, 0] == pytest.approx(loss(s), rel=1e-3, abs=1e-5)
    for n, d in enumerate(steps):
        expected = (loss(s + d) - loss(s - d)) / (2 * d)
        assert samples.differences[0, 0, n] == pytest.approx(expected, abs=2e-5)
        assert samples.shifted.shape == samples.differences.shape
    slope = 2 * s / spread * np.exp(-(s**2) / (2 * spread)) / math.sqrt(2 * math.pi * spread)
    found = dict(zip(FEW, samples.derivatives[0], strict=True))
    assert found[RAW_LINEAR] == pytest.approx(slope, abs=0.03 * np.abs(slope).max())

    figures = {
        (row.binning, row.estimator, row.step_bins): row
        for row in Study("blob", [samples], FEW, ("distance",), steps).rows()
    }
    for d in steps:
        raw = figures["rect", "raw", d]
        assert (raw.relative_bias, raw.error, raw.sign_errors) == (-1, 1, 1)
        assert raw.correlation is None
        for binning in ("rect", "linear"):
            unbiased = figures[binning, "linear", d]
            assert unbiased.relative_bias == pytest.approx(0, abs=0.03)
            assert unbiased.sign_errors == 0
            assert unbiased.correlation == pytest.approx(1, abs=1e-3)
        assert figures["rect", SHIFTED, d].relative_bias is not None


@pytest.mark.parametrize("dimensions", [1, 2])
def test_one_event_moved_by_a_bin_is_straight_through(dimensions: int):
    """For one event and a quadratic loss the surrogate is the finite difference of one bin."""
    rng = np.random.default_rng(2)
    coords = torch.tensor(rng.uniform(12, 18, (60, dimensions)))
    direction = torch.zeros_like(coords)
    direction[0, -1] = 1.0
    grid = Grid((32,) * dimensions, (0.0,) * dimensions, (1.0,) * dimensions)
    line = Line("one", "x", lambda s: coords + s * direction, grid, -1.03, 9)
    surrogate = Estimator("straight-through", "rect", straight_through(), along=True)
    samples = sample_line(line, (surrogate,), {"squares": lambda h: (h**2).sum()}, (1.0,))
    assert np.abs(samples.differences).max() > 0
    assert samples.derivatives[0, 0] == pytest.approx(samples.differences[0, 0, 0], abs=1e-9)


def test_differences_are_divided_by_the_step_that_was_taken():
    """On a loss that is linear in s every step gives the slope, whatever number it is."""
    coords = torch.tensor(np.random.default_rng(6).uniform(12, 18, (60, 1)))
    line = Line("linear", "x", lambda s: coords + s, Grid((32,), (0.0,), (1.0,)), -1.03, 9)
    steps = (0.33, 0.01, 1 / 3, math.pi)
    moment = {"moment": lambda h: (h * torch.arange(32)).sum()}
    samples = sample_line(line, (RAW_LINEAR,), moment, steps)
    assert samples.derivatives == pytest.approx(60)
    for differences in (samples.differences, samples.shifted):
        assert differences.shape == (1, 1, len(steps), 9)
        assert differences == pytest.approx(60, rel=1e-6)


def test_a_step_that_rounding_would_spoil_is_refused():
    for step in (0.0, -1.0, 1e-9, math.nan):
        with pytest.raises(ConfigError, match=r"step of .* bin; expected 0\.001 or more"):
            sample_line(blob_line(), FEW, {"distance": distance}, (1.0, step))


def test_straight_through_differentiates_by_the_bin_index():
    rng = np.random.default_rng(3)
    x = torch.tensor(rng.uniform(2, 17, (30, 1)), requires_grad=True)
    cotangent = torch.tensor(rng.standard_normal(20))
    image = bin_events(x, shape=(20,), binning="rect", reconstruction=straight_through())
    (slope,) = torch.autograd.grad(image, x, cotangent)
    j = x.detach()[:, 0].round().long()
    assert slope[:, 0].numpy() == pytest.approx(((cotangent[j + 1] - cotangent[j - 1]) / 2).numpy())


def test_sigmoid_replaces_the_steps_of_a_histogram():
    u = np.linspace(-2, 2, 401)
    expected = 1 / (1 + np.exp(-4 * (u + 0.5))) - 1 / (1 + np.exp(-4 * (u - 0.5)))
    assert synthesis(kernel("rect"), sigmoid())(u) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("surrogate", [straight_through(), sigmoid()], ids=str)
def test_surrogates_have_unit_area(surrogate: Kernel):
    assert float(surrogate.shape.integral()) == pytest.approx(1, abs=1e-12)


def test_every_pair_is_studied():
    names = {(e.binning, e.name) for e in all_estimators()}
    assert names >= {(b, r) for b in BINNINGS for r in ("raw", *RECONSTRUCTIONS)}
    assert names >= {("rect", "straight-through"), ("rect", "sigmoid 4")}
    assert len(names) == len(all_estimators())
    assert binnings_of(all_estimators()) == list(BINNINGS)


def test_along_is_exact_where_the_binning_is_smooth_across():
    """Reconstruction along one dimension leaves the other as it was binned: on an image that is
    constant across, it gives what the reconstruction in both gives."""
    rng = np.random.default_rng(4)
    columns = torch.tensor(rng.uniform(4, 12, (40, 1)))
    rows = torch.full_like(columns, 8.3)
    coords = torch.cat([rows, columns], 1)
    direction = torch.tensor([0.0, 1.0], dtype=torch.float64)
    grid = Grid((17, 17), (0.0, 0.0), (1.0, 1.0))
    line = Line("rows", "x", lambda s: coords + s * direction, grid, -0.5, 5)
    both, along = RECT, Estimator("along", "rect", "linear", along=True)

    def rows_alike(image: Tensor) -> Tensor:
        return (image.sum(0) ** 2).sum()

    samples = sample_line(line, (both, along), {"rows": rows_alike}, (1.0,))
    assert np.abs(samples.derivatives).max() > 0
    assert samples.derivatives[0, 1] == pytest.approx(samples.derivatives[0, 0], rel=1e-9)


def test_figures_are_means_over_the_lines():
    lines = [blob_line(9), Line("blob", "y", *_halved(blob_line(9)))]
    samples = [sample_line(line, FEW, {"distance": distance}, (1.0,)) for line in lines]
    rows = Study("blobs", samples, FEW, ("distance",), (1.0,)).rows()
    assert len(rows) == len(FEW) + 2  # two binning kernels' shifted grids
    each = [agreement(s.derivatives[0, 1], s.differences[0, 0, 0]) for s in samples]
    row = next(r for r in rows if (r.binning, r.estimator) == ("rect", "linear"))
    biases = [float(found.relative_bias) for found in each]
    assert row.lines == 2
    assert row.relative_bias == pytest.approx(np.mean(biases))
    assert row.relative_bias_std == pytest.approx(np.std(biases, ddof=1))


def _halved(line: Line):
    """The same line at half the speed."""
    return lambda s: line.coords_at(s / 2), line.grid, line.start, line.points


@pytest.fixture(scope="module")
def window_lines() -> list[Line]:
    camera, windows = simulated_windows(1, 4000, seed=3)
    (window,) = windows
    assert np.linalg.norm(window.omega_rad_s) == pytest.approx(3)
    assert abs(window.tau_s.mean()) < 1e-3
    return rotation_lines(window, camera, 2.0, 5, np.random.default_rng(0))


def test_lines_count_bins_of_displacement(window_lines: list[Line]):
    assert [line.axis for line in window_lines] == ["x", "y", "z"]
    for line in window_lines:
        here, there = (line.coords_at(torch.tensor(s, dtype=torch.float64)) for s in (-0.5, 0.5))
        bins = (there - here).norm(dim=1).mean().item() / line.grid.bin_size[0]
        assert bins == pytest.approx(1, abs=0.01)
        assert abs(line.at().mean()) <= SPACING / 2


def test_smooth_binning_agrees_with_short_steps(window_lines: list[Line]):
    """The derivative along a line is that of the loss: warp, scale and binning are in it."""
    smooth = (Estimator("raw", "cubic", None),)
    losses = {name: LOSSES[name] for name in ("variance", "gradient magnitude")}
    samples = [sample_line(line, smooth, losses, (0.05,)) for line in window_lines[::2]]
    for row in Study("simulated", samples, smooth, tuple(losses), (0.05,)).rows():
        if row.estimator == "raw":
            assert row.relative_bias == pytest.approx(0, abs=0.01)
            assert row.error == pytest.approx(0, abs=0.02)
            assert row.correlation == pytest.approx(1, abs=0.01)


def test_true_motion_is_where_the_contrast_is_greatest(window_lines: list[Line]):
    line = window_lines[0]
    losses = {"variance": LOSSES["variance"]}
    away = Line("far", line.axis, line.coords_at, line.grid, -5.0, 21)
    values = sample_line(away, (RAW_LINEAR,), losses, (0.25,)).losses[0, 0]
    assert abs(away.at()[values.argmax()]) <= 0.5


# --------------------------------------------------------------------------------- command


TINY = ("--windows", 1, "--points", 2, "--window-events", 1000)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["bias", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer kernels, where it is not them that is tested."""
    monkeypatch.setattr(bias_report, "all_estimators", lambda: FEW)


def test_command_on_simulated_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "bias"
    code, text, err = run(capsys, "--out", out, *TINY)
    assert (code, err) == (0, "")
    assert "simulated: derivatives against finite differences of 1 bin" in text
    assert all(name in text for name in ("rect straight-through", "rect sigmoid 4", "linear raw"))
    assert max(map(len, text.splitlines()[:-1])) <= 80  # the last one names the folder
    report = json.loads((out / "bias.json").read_text())
    assert set(report) == {"config", "machine", "seconds", "studies"}
    assert report["config"] == {
        "window_events": 1000, "windows": 1, "points": 2, "bin_size": 2.0, "seed": 0
    }  # fmt: skip
    (study,) = report["studies"]
    assert set(study) == {"source", "windows", "rows", "lines"}
    assert study["source"] == "simulated"
    assert study["windows"][0]["events"] <= 1000
    estimators = all_estimators()
    assert len(study["rows"]) == len(LOSSES) * (len(estimators) + len(BINNINGS)) * len(STEPS)
    assert set(study["rows"][0]) == {
        "loss", "binning", "estimator", "step_bins", "lines", "relative_bias",
        "relative_bias_std", "error", "sign_errors", "correlation",
    }  # fmt: skip
    assert [line["axis"] for line in study["lines"]] == ["x", "y", "z"]
    for line in study["lines"]:
        assert len(line["points_bins"]) == 2
        assert set(line["losses"]) == set(LOSSES)
        for by_binning in line["losses"].values():
            assert list(by_binning) == list(BINNINGS)
            found = by_binning["rect"]
            assert len(found["loss"]) == 2
            for key in ("finite_differences", "finite_differences_shifted"):
                assert [float(step) for step in found[key]] == list(STEPS)
            assert set(found["derivatives"]) == {e.name for e in estimators if e.binning == "rect"}
            assert found["derivatives"]["raw"] == [0.0, 0.0]
    with (out / "bias.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(study["rows"])
    for row, same in zip(rows, study["rows"], strict=True):
        bias = same["relative_bias"]
        assert row["relative_bias"] == ("" if bias is None else str(bias))
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {f"simulated_{name}.png" for name in ("lines", "scatter", "steps")}


@pytest.mark.usefixtures("few")
def test_a_recording_called_simulated_is_told_from_the_simulation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_simulation(Path("simulated"), SimulationConfig(duration_s=0.2, width=240, height=180))
    code, text, err = run(capsys, "simulated", "--out", "out", *TINY, "--window-events", 5000)
    assert (code, err) == (0, "")
    assert [line.partition(":")[0].strip() for line in text.splitlines() if "deriv" in line] == [
        "simulated", "recorded simulated",
    ]  # fmt: skip
    sources = ["simulated", str(tmp_path / "simulated")]
    studies = json.loads(Path("out/bias.json").read_text())["studies"]
    assert [study["source"] for study in studies] == sources
    with Path("out/bias.csv").open() as file:
        assert {row["source"] for row in csv.DictReader(file)} == set(sources)
    assert {path.name for path in Path("out").glob("*.png")} == {
        f"{kind}_{name}.png"
        for kind in ("simulated", "recorded")
        for name in ("lines", "scatter", "steps")
    }


def test_same_seed_same_windows():
    windows = [next(simulated_windows(1, 1000, seed)[1]) for seed in (5, 5, 6)]
    same, again, other = (window.bearings for window in windows)
    assert np.array_equal(same, again)
    assert not np.array_equal(same, other)


@pytest.mark.usefixtures("few")
def test_without_matplotlib_there_is_everything_but_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    code, text, err = run(capsys, "--out", tmp_path, *TINY)
    assert (code, err) == (0, "")
    assert "matplotlib cannot be imported" in text
    assert {path.name for path in tmp_path.iterdir()} == {"bias.json", "bias.csv"}


@pytest.mark.usefixtures("few")
def test_command_on_a_real_recording(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recording = data_dir / "ecd_shapes_rotation"
    arguments = ("--windows", 1, "--points", 7, "--window-events", 5_000)
    code, text, err = run(capsys, recording, "--out", tmp_path, *arguments)
    assert (code, err) == (0, "")
    assert "recorded ecd_shapes_rotation: derivatives against" in text
    studies = json.loads((tmp_path / "bias.json").read_text())["studies"]
    assert [study["source"] for study in studies] == ["simulated", str(recording)]
    assert (tmp_path / "recorded_steps.png").is_file()
    figures = {
        (row["loss"], row["binning"], row["estimator"]): row["relative_bias"]
        for row in studies[1]["rows"]
        if row["step_bins"] == 0.5
    }
    # The histogram's derivative is there at all only by synthesis, and of about the right size.
    assert figures["variance", "rect", "raw"] == -1
    assert -0.3 < figures["variance", "rect", "linear"] < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RECORDING", "--out", "OUT"], "does not exist: expected a recording"),
        (["EMPTY", "--out", "OUT"], "is no recording"),
        (["FILE", "--out", "OUT"], "expected t x y p"),
        (["--out", "FILE/below"], "FILE"),
        (["--out", "FILE"], "FILE"),
        (["--out", "OUT", "--calib", "FILE"], "--calib without a RECORDING"),
        (["--out", "OUT", "--points", "1"], "points is 1; expected 2 to 1,000"),
        (["--out", "OUT", "--windows", "0"], "windows is 0"),
        (["--out", "OUT", "--window-events", "7"], "window_events is 7"),
        (["--out", "OUT", "--bin-size", "nan"], "bin_size is nan px; expected 0.25 to 16"),
        (["--out", "OUT", "--seed", "-1"], "seed is -1"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE").write_text("nothing")
    names = ("RECORDING", "EMPTY", "FILE", "OUT", "FILE/below")
    code, out, err = run(capsys, *(str(tmp_path / a) if a in names else a for a in arguments))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("event-binning-grad bias: ")
    assert message in err


def test_recording_without_a_rotation_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Too few events for a window; the events' file is the layout of the Event Camera Dataset."""
    (tmp_path / "events.txt").write_text("".join(f"{n / 1e3:.6f} 5 7 1\n" for n in range(300)))
    (tmp_path / "calib.txt").write_text("200 200 120 90 0 0 0 0 0\n240 180\n")
    code, _, err = run(capsys, tmp_path, "--out", tmp_path / "out", "--window-events", 1000)
    assert code == 2
    assert err.count("\n") == 1
    assert "none of its 0 windows of 1000 events shows a rotation" in err
