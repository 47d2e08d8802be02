"""Pictures of dense flow; matplotlib is imported only where they are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from event_binning_grad.evaluation.flow_colours import colour_wheel, flow_to_rgb, typical_maximum
from event_binning_grad.evaluation.flow_report import FlowEvaluation, FlowPictures
from event_binning_grad.evaluation.plots import new_figure, save_figure


def plot_flow(result: FlowEvaluation, directory: Path) -> list[Path]:
    """Writes flow.png of the window whose flow varies most, if there is a trusted one."""
    if result.pictures is None:
        return []
    return [plot_flow_window(directory / "flow.png", result.pictures)]


def plot_flow_window(path: Path, pictures: FlowPictures) -> Path:
    """The events of a window as they came, its flow in the wheel's colours, the compensated events;
    and the true flow in the same colours, where it is known."""
    count = 3 if pictures.truth is None else 4
    height, width = pictures.raw.shape
    rows, columns = (1, 3) if count == 3 else (2, 2)
    figure, axes = new_figure(rows, columns, (3.6 * columns, 3.6 * rows * height / width + 0.5))
    compensated = pictures.compensated
    top = float(np.percentile(compensated[compensated > 0], 98)) if compensated.any() else 1.0
    rim_px_s = typical_maximum(pictures.flow if pictures.truth is None else pictures.truth)
    span_ms = 1e3 * pictures.window.span_s
    events = f"{pictures.window.events:,} events of {span_ms:.0f} ms"
    flow = f"flow, the wheel's rim {rim_px_s:.0f} px/s"
    shown = [(events, pictures.raw), (flow, flow_to_rgb(pictures.flow, rim_px_s))]
    shown += [("the same events, compensated", compensated)]
    if pictures.truth is not None:
        shown += [("true flow", flow_to_rgb(pictures.truth, rim_px_s))]
    for ax, (title, image) in zip(axes, shown, strict=True):
        ax.imshow(image, cmap="gray_r", vmin=0, vmax=top, interpolation="nearest")
        ax.set_title(title, fontsize=10)
        ax.set_xticks([])
        ax.set_yticks([])
    wheel = axes[1].inset_axes((0.0, 0.0, 0.18, 0.18 * width / height))
    wheel.imshow(_rgba(colour_wheel()))
    wheel.set_axis_off()
    return save_figure(figure, path)


def _rgba(wheel: np.ndarray) -> np.ndarray:
    """The wheel with nothing around it."""
    side = np.linspace(-1, 1, len(wheel))
    alpha = 255 * (np.hypot(*np.meshgrid(side, side)) <= 1)
    return np.dstack([wheel, alpha]).astype(np.uint8)
