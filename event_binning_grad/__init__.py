"""Real-time event-camera egomotion through unbiased gradients of event binning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from event_binning_grad.binning import (
        average_timestamp_image,
        bin_events,
        gaussian,
        image_of_warped_events,
        lanczos,
        polarity_image,
        register_kernel,
        voxel_grid,
    )
    from event_binning_grad.pipeline import Pipeline, PipelineConfig

__version__ = "0.1.0"
__all__ = [
    "Pipeline",
    "PipelineConfig",
    "average_timestamp_image",
    "bin_events",
    "gaussian",
    "image_of_warped_events",
    "lanczos",
    "polarity_image",
    "register_kernel",
    "voxel_grid",
]

_HOME = {
    name: "pipeline" if name in ("Pipeline", "PipelineConfig") else "binning" for name in __all__
}


def __getattr__(name: str) -> Any:
    # Imported on first use: `event-binning-grad --help` must not wait for torch.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
