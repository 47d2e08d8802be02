"""Real-time event-camera egomotion through unbiased gradients of event binning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from event_binning_grad.binning import bin_events
    from event_binning_grad.pipeline import Pipeline, PipelineConfig

__version__ = "0.1.0"
__all__ = ["Pipeline", "PipelineConfig", "bin_events"]

_HOME = {
    "bin_events": "event_binning_grad.binning",
    "Pipeline": "event_binning_grad.pipeline",
    "PipelineConfig": "event_binning_grad.pipeline",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: `event-binning-grad --help` must not wait for torch.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
