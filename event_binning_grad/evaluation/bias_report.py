"""The report of a study of the derivatives' bias: table, JSON, CSV and pictures."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from event_binning_grad.errors import ConfigError
from event_binning_grad.evaluation.bias import (
    ALONG,
    RAW,
    SHIFTED,
    SIGMOID,
    SIMULATED,
    STRAIGHT_THROUGH,
    Float64,
    Row,
    Samples,
    Study,
    all_estimators,
    binnings_of,
    sample_line,
)
from event_binning_grad.evaluation.bias_windows import (
    Window,
    recorded_windows,
    rotation_lines,
    simulated_windows,
)
from event_binning_grad.evaluation.machine import machine
from event_binning_grad.evaluation.plots import new_figure, save_figure
from event_binning_grad.geometry import Camera

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

# What is printed: finite differences of this step, and of the kernels after the first these alone.
PRINTED_STEP = 1.0
_PRINTED = (RAW, "linear", ALONG, SHIFTED)

_SHORT = {
    "variance": "variance",
    "negative binomial": "neg. binomial",
    "gradient magnitude": "gradient",
    "absolute deviation": "abs. dev.",
}
_COLOURS = {
    RAW: "tab:red",
    STRAIGHT_THROUGH: "tab:orange",
    SIGMOID: "tab:olive",
    "linear": "tab:blue",
    ALONG: "tab:pink",
    "quadratic": "tab:cyan",
    "cubic": "tab:purple",
    "keys": "tab:green",
    "lanczos": "tab:brown",
    SHIFTED: "0.3",
}
_DRAWN_BINNINGS = ("rect", "linear")
_DRAWN_CURVES = (RAW, STRAIGHT_THROUGH, SIGMOID, "linear")


@dataclass(frozen=True)
class BiasConfig:
    """What is studied.

    Attributes:
        window_events: events a window.
        windows: windows of each source.
        points: points on each of a window's three lines.
        bin_size: of the image of warped events, px. 2 is the paper's: 0.01 in normalised
            coordinates of the Event Camera Dataset's camera.
        seed: of the simulation and of the points' phase.

    Raises:
        ConfigError: a value that is not allowed.
    """

    window_events: int = 20_000
    windows: int = 2
    points: int = 17
    bin_size: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("window_events", 100, 1_000_000), ("windows", 1, 1000), ("points", 2, 1000),
            ("seed", 0, 2**32),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; expected {least:,} to {most:,}"
                )
        if not 0.25 <= self.bin_size <= 16:
            raise ConfigError(f"bin_size is {self.bin_size:g} px; expected 0.25 to 16")


def run_bias(
    directory: Path,
    recording: Path | None = None,
    camera: Camera | None = None,
    config: BiasConfig | None = None,
    progress: Callable[[int], None] = lambda lines: None,
    pictures: bool = True,
    topic: str | None = None,
) -> list[Study]:
    """Studies simulated windows, and a recording's; writes bias.json, bias.csv and the pictures.

    Args:
        directory: where to; made if it is not there.
        recording: a recording to study besides; None for the simulation alone.
        camera: its calibration; None takes the one that it holds.
        config: how much to study.
        progress: called with the number of lines done since the last call.
        pictures: draw them; needs matplotlib.
        topic: of the recording's events, where it holds several.

    Raises:
        ConfigError: pictures without matplotlib.
        RecordingError, CalibrationError: the recording or its calibration cannot be used.
        OSError: the directory cannot be written.
    """
    config = config or BiasConfig()
    directory.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    amount = (config.windows, config.window_events)
    sources: list[tuple[str, Camera, list[Window]]] = []
    if recording is not None:  # first, because this is where something can be wrong
        its_camera, found = recorded_windows(recording, *amount, camera, topic)
        sources.append((str(recording.absolute()), its_camera, list(found)))
    its_camera, found = simulated_windows(*amount, config.seed)
    sources.insert(0, (SIMULATED, its_camera, list(found)))
    began = time.perf_counter()
    studies = [_study(*source, config, progress) for source in sources]
    report = {
        "config": asdict(config),
        "machine": machine(),
        "seconds": time.perf_counter() - began,
        "studies": [
            _as_json(study, windows)
            for study, (_, _, windows) in zip(studies, sources, strict=True)
        ],
    }
    text = json.dumps(report, indent=1, allow_nan=False)
    (directory / "bias.json").write_text(text + "\n")
    _write_csv(studies, directory / "bias.csv")
    if pictures:
        for study in studies:
            name = SIMULATED if study.source == SIMULATED else "recorded"
            plot_lines(study, directory / f"{name}_lines.png")
            plot_scatter(study, directory / f"{name}_scatter.png")
            plot_steps(study, directory / f"{name}_steps.png")
    return studies


def _study(
    source: str,
    camera: Camera,
    windows: list[Window],
    config: BiasConfig,
    progress: Callable[[int], None],
) -> Study:
    estimators = all_estimators()
    rng = np.random.default_rng(config.seed)
    samples = []
    for window in windows:
        for line in rotation_lines(window, camera, config.bin_size, config.points, rng):
            samples.append(sample_line(line, estimators))
            progress(1)
    return Study(source, samples, estimators)


def bias_table(study: Study, step: float = PRINTED_STEP) -> Table:
    """The table for a terminal: three figures of each loss, at one step and of some kernels."""
    from rich.table import Table

    name = SIMULATED if study.source == SIMULATED else f"recorded {Path(study.source).name}"
    table = Table(
        title=f"{name}: derivatives against finite differences of {step:g} bin",
        caption="Relative bias, error and correlation, all in %; sign errors are in bias.csv. "
        "Rows: binning and reconstruction, or a surrogate in its place; along: reconstruction "
        "along the differentiated dimension only; grid shifted: the finite difference itself, on a "
        "grid half a bin off: nothing can agree better than that.",
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for loss in study.losses:
        table.add_column(_SHORT[loss], justify="right", no_wrap=True)
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in study.rows():
        if row.step_bins == step:
            cells.setdefault((row.binning, row.estimator), {})[row.loss] = _cell(row)
    first = binnings_of(study.estimators)[0]
    for (binning, name), by_loss in cells.items():
        if binning == first or name in _PRINTED:
            style = "dim" if name == SHIFTED else None
            table.add_row(f"{binning} {name}", *by_loss.values(), style=style)
    return table


def _cell(row: Row) -> str:
    def percent(value: float | None, digits: str) -> str:
        return "-" if value is None else f"{100 * value:{digits}}"

    bias, error = percent(row.relative_bias, "+.0f"), percent(row.error, ".0f")
    return f"{bias:>5} {error:>3} {percent(row.correlation, '.0f'):>3}"


def _write_csv(studies: list[Study], path: Path) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["source", *(field.name for field in fields(Row))])
        for study in studies:
            for row in study.rows():
                rows.writerow([study.source, *astuple(row)])


def _as_json(study: Study, windows: list[Window]) -> dict[str, Any]:
    return {
        "source": study.source,
        "windows": [
            {
                "name": window.name,
                "events": len(window.tau_s),
                "span_s": float(np.ptp(window.tau_s)),
                "angular_velocity_rad_s": window.omega_rad_s.tolist(),
                "angular_acceleration_rad_s2": window.alpha_rad_s2.tolist(),
            }
            for window in windows
        ],
        "rows": [asdict(row) for row in study.rows()],
        "lines": [_line_as_json(study, samples) for samples in study.samples],
    }


def _line_as_json(study: Study, samples: Samples) -> dict[str, Any]:
    binnings = binnings_of(study.estimators)

    def differences(values: Float64, k: int, b: int) -> dict[str, list[float]]:
        return {f"{step:g}": _listed(values[k, b, n]) for n, step in enumerate(study.steps)}

    def by_binning(k: int, b: int, binning: str) -> dict[str, Any]:
        return {
            "loss": _listed(samples.losses[k, b]),
            "finite_differences": differences(samples.differences, k, b),
            "finite_differences_shifted": differences(samples.shifted, k, b),
            "derivatives": {
                estimator.name: _listed(samples.derivatives[k, e])
                for e, estimator in enumerate(study.estimators)
                if estimator.binning == binning
            },
        }

    return {
        "window": samples.line.window,
        "axis": samples.line.axis,
        "points_bins": _listed(samples.line.at()),
        "losses": {
            loss: {binning: by_binning(k, b, binning) for b, binning in enumerate(binnings)}
            for k, loss in enumerate(study.losses)
        },
    }


def _listed(values: Float64) -> list[float]:
    return [float(f"{value:.7g}") for value in values]


# ------------------------------------------------------------------------------- pictures


def plot_lines(study: Study, path: Path) -> Path:
    """The losses along the first line, and their derivatives over their finite differences."""
    samples = study.samples[0]
    points, losses = samples.line.at(), len(study.losses)
    step = study.steps.index(PRINTED_STEP)
    figure, axes = new_figure(3, losses, (4.0 * losses, 8.5))
    for k, loss in enumerate(study.losses):
        top = axes[k]
        for b, binning in _drawn_binnings(study):
            values = samples.losses[k, b]
            top.plot(points, (values - values.min()) / (np.ptp(values) or 1), ".-", label=binning)
            ax = axes[(1 + _DRAWN_BINNINGS.index(binning)) * losses + k]
            difference = samples.differences[k, b, step]
            label = f"finite difference, {PRINTED_STEP:g} bin"
            ax.plot(points, difference, color="0.3", lw=4, alpha=0.4, label=label)
            for e, name in _of_binning(study, binning):
                if name in _DRAWN_CURVES:
                    ax.plot(points, samples.derivatives[k, e], color=_COLOURS[name], label=name)
            ax.set_title(f"{binning}: derivative of the {loss}", fontsize=9)
        top.set_title(f"{loss}, from least to greatest", fontsize=9)
    figure.suptitle(f"window {samples.line.window}, rotation about {samples.line.axis}")
    _finish(axes, losses, "bins of displacement from the motion")
    return save_figure(figure, path)


def plot_scatter(study: Study, path: Path) -> Path:
    """Derivatives over finite differences of one bin; each line in units of its own."""
    losses, step = len(study.losses), study.steps.index(PRINTED_STEP)
    figure, axes = new_figure(len(_DRAWN_BINNINGS), losses, (4.0 * losses, 8.0))
    for k, loss in enumerate(study.losses):
        for b, binning in _drawn_binnings(study):
            ax = axes[_DRAWN_BINNINGS.index(binning) * losses + k]
            differences = np.stack([s.differences[k, b, step] for s in study.samples])
            unit = np.sqrt((differences**2).mean(-1, keepdims=True))
            unit = np.where(unit > 0, unit, 1.0)
            for e, name in _of_binning(study, binning):
                own = np.stack([s.derivatives[k, e] for s in study.samples])
                if name in (RAW, STRAIGHT_THROUGH, "linear"):
                    x, y = (values / unit for values in (differences, own))
                    ax.plot(x.ravel(), y.ravel(), ".", ms=3, color=_COLOURS[name], label=name)
            ax.axline((0, 0), slope=1, color="0.3", lw=1)
            ax.set_title(f"{binning}: {loss}", fontsize=9)
    _finish(axes, losses, f"finite difference of {PRINTED_STEP:g} bin (line's RMS is 1)")
    for ax in axes[::losses]:
        ax.set_ylabel("derivative")
    return save_figure(figure, path)


def plot_steps(study: Study, path: Path) -> Path:
    """The relative bias over the finite differences' step."""
    losses = len(study.losses)
    figure, axes = new_figure(len(_DRAWN_BINNINGS), losses, (4.0 * losses, 8.0))
    curves: dict[tuple[str, str, str], list[float]] = {}
    for row in study.rows():
        bias = math.nan if row.relative_bias is None else row.relative_bias
        curves.setdefault((row.loss, row.binning, row.estimator), []).append(100 * bias)
    for (loss, binning, name), values in curves.items():
        if binning not in _DRAWN_BINNINGS:
            continue
        ax = axes[_DRAWN_BINNINGS.index(binning) * losses + study.losses.index(loss)]
        style = "--" if name == SHIFTED else ".-"
        ax.semilogx(study.steps, values, style, color=_COLOURS[name], label=name)
        ax.set_title(f"{binning}: {loss}", fontsize=9)
        ax.axhline(0, color="0.3", lw=1)
    _finish(axes, losses, "step of the finite difference (bins)")
    for ax in axes[::losses]:
        ax.set_ylabel("relative bias (%)")
    return save_figure(figure, path)


def _drawn_binnings(study: Study) -> list[tuple[int, str]]:
    binnings = binnings_of(study.estimators)
    return [(b, name) for b, name in enumerate(binnings) if name in _DRAWN_BINNINGS]


def _of_binning(study: Study, binning: str) -> list[tuple[int, str]]:
    return [(e, est.name) for e, est in enumerate(study.estimators) if est.binning == binning]


def _finish(axes: list[Axes], columns: int, xlabel: str) -> None:
    for n, ax in enumerate(axes):
        ax.grid(alpha=0.3)
        if n % columns == 0:
            ax.legend(fontsize=7)
        if n >= len(axes) - columns:
            ax.set_xlabel(xlabel, fontsize=8)
