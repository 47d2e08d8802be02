"""Pictures of an evaluation; matplotlib is imported only here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import ConfigError
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.types import NS_PER_S

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from event_binning_grad.evaluation.evaluate import Evaluation

_AXES = "xyz"
_COLOURS = ("tab:red", "tab:green", "tab:blue")


def plot_evaluation(result: Evaluation, directory: Path) -> list[Path]:
    """Writes angular_velocity.png and, if a window was estimated, event_image.png."""
    trusted = [e for e in result.estimates if e.status.ok]
    written = [
        plot_angular_velocity(
            directory / "angular_velocity.png",
            [e.stamp_ns for e in trusted],
            np.array([e.angular_velocity for e in trusted]).reshape(-1, 3),
            result.truth,
            result.start_ns,
        )
    ]
    if result.images is not None:
        written.append(plot_event_images(directory / "event_image.png", *result.images))
    return written


def plot_angular_velocity(
    path: Path,
    stamps_ns: Sequence[int],
    angular_velocity: npt.NDArray[np.float64],
    truth: GroundTruth | None,
    start_ns: int,
) -> Path:
    """Curves of the angular velocity [M, 3] rad/s over the time since start_ns, with the truth
    where it is known."""
    figure, axes = new_figure(3, 1, (9.0, 5.5))
    t_ns = np.asarray(stamps_ns, np.int64)
    seconds = (t_ns - start_ns) * 1e-9
    dense_ns = t_ns
    if len(t_ns):
        dense_ns = t_ns[0] + np.linspace(0, int(t_ns[-1] - t_ns[0]), 4000).astype(np.int64)
    for k, ax in enumerate(axes):
        if truth is not None and len(t_ns):
            known = truth.at(dense_ns)[:, k]
            ax.plot((dense_ns - start_ns) * 1e-9, known, color="0.3", lw=2.5, alpha=0.45)
        ax.plot(seconds, angular_velocity[:, k], ".", ms=3, color=_COLOURS[k])
        ax.set_ylabel(f"ω{_AXES[k]} (rad/s)")
        ax.grid(alpha=0.3)
    labels = "estimated (dots)" + (", truth (line)" if truth is not None else "")
    axes[0].set_title(f"Angular velocity of the camera: {labels}")
    axes[-1].set_xlabel(
        f"time since the recording's start, stamp - {start_ns / NS_PER_S:.3f} s (s)"
    )
    return save_figure(figure, path)


def plot_event_images(
    path: Path, raw: npt.NDArray[np.float32], compensated: npt.NDArray[np.float32]
) -> Path:
    """The events of a window as they came, beside the same events motion-compensated."""
    figure, axes = new_figure(1, 2, (9.0, 3.7))
    top = float(np.percentile(compensated[compensated > 0], 98)) if compensated.any() else 1.0
    titles = ("events of one window", "the same events, motion-compensated")
    for ax, image, title in zip(axes, (raw, compensated), titles, strict=True):
        ax.imshow(image, cmap="gray_r", vmin=0, vmax=top, interpolation="nearest")
        ax.set_title(title)
        ax.set_xticks([])
        ax.set_yticks([])
    return save_figure(figure, path)


def require_matplotlib() -> None:
    """Raises ConfigError, one line, where matplotlib is not there."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ConfigError("matplotlib cannot be imported; pictures need it: pip install matplotlib")


def new_figure(rows: int, columns: int, size: tuple[float, float]):
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Axes] = list(figure.subplots(rows, columns, sharex=columns == 1).ravel())
    return figure, axes


def save_figure(figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
