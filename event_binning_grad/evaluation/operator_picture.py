"""The picture of docs/operator.md: the kernels, and a loss with its slopes.

python -m event_binning_grad.evaluation.operator_picture [docs/operator.png]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from event_binning_grad.binning import image_of_warped_events, kernel
from event_binning_grad.binning.kernels import synthesis
from event_binning_grad.evaluation.plots import require_matplotlib

SIZE = (24, 24)
EVENTS = 60
EVENTS_OF_TARGET = 20_000


@dataclass(frozen=True)
class Slopes:
    """A loss over the shift of an event cloud, and three slopes of it; float64 [M] each."""

    shift_px: npt.NDArray[np.float64]
    loss: npt.NDArray[np.float64]
    raw: npt.NDArray[np.float64]
    synthesised: npt.NDArray[np.float64]
    long_range: npt.NDArray[np.float64]  # central difference


def slopes(binning: str, points: int = 161, step_px: float = 1.0) -> Slopes:
    """The squared distance of a cloud's image from that of many more events of its distribution.

    The events lie along a line across the pixels, half a pixel wide; the shift is along x.
    """
    generator = torch.Generator().manual_seed(0)
    coords, target_coords = (_cloud(n, generator) for n in (EVENTS, EVENTS_OF_TARGET))
    target = image_of_warped_events(target_coords, size=SIZE) * EVENTS / EVENTS_OF_TARGET

    def loss(shift: Tensor, reconstruction: str | None = None) -> Tensor:
        shifted = coords + torch.stack((torch.zeros_like(shift), shift))
        image = image_of_warped_events(
            shifted, size=SIZE, binning=binning, reconstruction=reconstruction
        )
        return (image - target).square().sum()

    def slope(shift: Tensor, reconstruction: str | None) -> Tensor:
        at = shift.clone().requires_grad_()
        return torch.autograd.grad(loss(at, reconstruction), at)[0]

    shifts = torch.linspace(-4, 4, points, dtype=torch.float64)
    columns = [
        (
            shift,
            loss(shift),
            slope(shift, None),
            slope(shift, "linear"),
            (loss(shift + step_px) - loss(shift - step_px)) / (2 * step_px),
        )
        for shift in shifts
    ]
    return Slopes(*torch.tensor(columns, dtype=torch.float64).T.numpy())


def plot_operator(path: Path) -> Path:
    """Writes the picture: a row each for "rect" and "linear", both reconstructed by "linear".

    Raises:
        ConfigError: matplotlib cannot be imported.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3, sharex="col")
    for (left, middle, right), binning in zip(axes, ("rect", "linear"), strict=True):
        _draw_kernels(left, binning)
        found = slopes(binning)
        middle.plot(found.shift_px, found.loss, color="0.2", lw=1)
        middle.set_title(f'loss, binned by "{binning}"')
        right.plot(found.shift_px, found.long_range, color="0.7", lw=4, label="over ±1 pixel")
        right.plot(found.shift_px, found.raw, color="tab:blue", lw=0.9, label="raw gradient")
        right.plot(found.shift_px, found.synthesised, color="tab:red", label="unbiased gradient")
        right.set_title("slope of the loss")
        right.legend(fontsize=7, loc="upper left")
    axes[1][0].set_xlabel("distance from the bin's centre (bins)")
    for ax in axes[1][1:]:
        ax.set_xlabel("shift of the events (pixels)")
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    return path


def _draw_kernels(ax, binning: str) -> None:
    u = np.linspace(-2.2, 2.2, 881)
    k, reconstruction = kernel(binning), kernel("linear")
    kappa = synthesis(k, reconstruction)
    ax.plot(u, k(u), color="0.2", lw=1, label=f'binning k: "{binning}"')
    ax.plot(
        u, reconstruction(u), "--", color="tab:orange", lw=1, label='reconstruction l: "linear"'
    )
    ax.plot(u, kappa(u), color="tab:red", lw=2, label="synthesis κ = l * k")
    ax.set_ylim(-0.05, 1.5)
    ax.set_title("kernels")
    ax.legend(fontsize=7, loc="upper left")


def _cloud(events: int, generator: torch.Generator) -> Tensor:
    """(y, x) [events, 2] in px."""
    along = torch.rand(events, 1, generator=generator, dtype=torch.float64)
    across = torch.randn(events, 2, generator=generator, dtype=torch.float64)
    line = torch.tensor([6.0, 8.0]) + along * torch.tensor([12.0, 8.0])
    return line + 0.5 * across


if __name__ == "__main__":
    print(plot_operator(Path(sys.argv[1] if sys.argv[1:] else "docs/operator.png")))
