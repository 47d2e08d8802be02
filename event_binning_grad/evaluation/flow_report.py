"""What an evaluation of dense flow found: its figures, rows and pictures."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from event_binning_grad.config import PipelineConfig
from event_binning_grad.evaluation.figures import finite, mean, percentile
from event_binning_grad.evaluation.flow_displacement import DisplacementError
from event_binning_grad.evaluation.flow_metrics import FlowError, pooled
from event_binning_grad.evaluation.flow_score import FlowWindow
from event_binning_grad.evaluation.stream_figures import stream_figures
from event_binning_grad.events.types import NS_PER_S
from event_binning_grad.pipeline import PipelineCounters
from event_binning_grad.pipeline_flow import FlowCounters

Float32 = npt.NDArray[np.float32]

ERRORS = {
    "": "with events",
    "dense_": "all",
    "moving_": "moving by itself",
    "full_": "whole flow known",
}
"""Over which pixels errors are taken, by the prefix of their figures' names; the last two are of
those with events."""

# What the configuration says of flow, by its own names.
_SETTINGS = (
    "flow_rate_hz", "flow_window_ms", "flow_window_px", "flow_min_events", "flow_max_events",
    "gradient", "device",
)  # fmt: skip
# What the flow's counters say, by their own names.
_COUNTERS = (
    "window_events", "used_events", "hot_pixel_events", "skipped_events", "skipped_windows",
    "discarded_events", "refused_events",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class FlowPictures:
    """One window: images [H, W] of its events as they came and compensated, its flow [H, W, 2] in
    px/s and the true one, if known."""

    raw: Float32
    compensated: Float32
    flow: Float32
    truth: Float32 | None
    window: FlowWindow


@dataclass(frozen=True)
class FlowEvaluation:
    """What the pipeline's flow made of a recording.

    Attributes:
        recording: its path.
        config: the pipeline's parameters.
        undistorted: whether the flow is on undistorted pixels, or on the sensor's own.
        events: events decoded.
        duration_s: what the events span.
        pipeline_s: time spent in the pipeline, reading and scoring apart.
        windows: one a field.
        displacements: errors of the true displacements of a data set, over their own times; else
            empty, and the errors are the windows'.
        displacements_missed: true displacements without fields around them to compare.
        truth: what the flow is compared with, or None.
        hint: what to do for a truth where there is none, in one line; empty if nothing is known.
        stream: what became of the events before the flow.
        counters: what became of them there.
        pictures: of the trusted window whose flow varies most over the image, if asked for.
        unusable: what the reader could not use, by reason.
        warnings: what is wrong with the recording as such, a line each.
        rejections: messages of packets that were dropped, with how often each came.
    """

    recording: str
    config: PipelineConfig
    undistorted: bool
    events: int
    duration_s: float
    pipeline_s: float
    windows: list[FlowWindow]
    displacements: list[DisplacementError]
    displacements_missed: int
    truth: str | None
    hint: str
    stream: PipelineCounters
    counters: FlowCounters
    pictures: FlowPictures | None
    unusable: dict[str, int]
    warnings: list[str]
    rejections: Counter[str]

    @property
    def error(self) -> FlowError | None:
        """Over the pixels with events of all fields, or of all true displacements; None without
        truth."""
        return self.errors()[""]

    def errors(self) -> dict[str, FlowError | None]:
        """By the prefixes of ERRORS; None where there is nothing to compare."""
        scored = self.displacements or self.windows
        return {
            prefix: pooled(getattr(one, f"{prefix}error", None) for one in scored)
            for prefix in ERRORS
        }

    def summary(self) -> dict[str, Any]:
        """The figures as plain numbers and strings, keys with units, ready for JSON."""
        good = [window for window in self.windows if window.status == "ok"]
        solve_ms = [1e3 * window.solve_time_s for window in good]
        warp_loss = finite(window.flow_warp_loss for window in good)
        return {
            "recording": self.recording,
            "events": self.events,
            "duration_s": self.duration_s,
            "fields": len(good),
            "windows_by_status": dict(Counter(window.status for window in self.windows)),
            "undistorted_pixels": self.undistorted,
            "flow_truth": self.truth,
            "hint": self.hint,
            "true_displacements_compared": len(self.displacements),
            "true_displacements_missed": self.displacements_missed,
            **_error_figures(self.errors()),
            "density": mean(window.density for window in good),
            "normal_flow_share": mean(window.normal_share for window in good),
            "flow_warp_loss_mean": mean(warp_loss),
            "flow_warp_loss_min": min(warp_loss, default=None),
            "true_flow_warp_loss_mean": mean(window.true_flow_warp_loss for window in good),
            "window_ms_p50": percentile([1e3 * window.span_s for window in good], 50),
            "speed_px_s_mean": mean(window.speed_px_s for window in good),
            "events_per_second": self.events / self.pipeline_s,
            "fields_per_second": len(good) / self.pipeline_s,
            "field_ms_p50": percentile(solve_ms, 50),
            "field_ms_p99": percentile(solve_ms, 99),
            "full_passes_mean": mean(window.full_passes for window in good),
            **{name: getattr(self.config, name) for name in _SETTINGS},
            "used_events_share": self.counters.used_events / max(1, self.events),
            **{name: getattr(self.counters, name) for name in _COUNTERS},
            "uncalibrated_events": self.stream.uncalibrated_events,
            "unusable": self.unusable,
            "warnings": self.warnings,
            "rejected_packets": dict(self.rejections),
            **stream_figures(self.stream),
        }

    def write_json(self, path: Path) -> None:
        path.write_text(json.dumps(self.summary(), indent=2) + "\n")

    def write_csv(self, path: Path) -> None:
        """A row a window; cells of what is not known are empty."""
        own = [f.name for f in fields(FlowWindow) if not f.name.endswith("error")]
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            errors = [f"{prefix}{f.name}" for prefix in ERRORS for f in fields(FlowError)]
            rows.writerow([*(name.replace("_ns", "_s") for name in own), *errors])
            for window in self.windows:
                cells = [_cell(name, getattr(window, name)) for name in own]
                for prefix in ERRORS:
                    error = getattr(window, f"{prefix}error")
                    cells += [
                        "" if error is None else _cell(f.name, getattr(error, f.name))
                        for f in fields(FlowError)
                    ]
                rows.writerow(cells)


def _error_figures(errors: Mapping[str, FlowError | None]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for prefix, error in errors.items():
        figures |= {
            f"{prefix}epe_px": error and error.epe_px,
            f"{prefix}epe_px_s": error and error.epe_px_s,
            f"{prefix}angular_error_deg": error and error.angular_deg,
            f"{prefix}outliers_1px_percent": error and 100 * error.outliers_1px,
            f"{prefix}outliers_2px_percent": error and 100 * error.outliers_2px,
            f"{prefix}outliers_3px_percent": error and 100 * error.outliers_3px,
            f"{prefix}true_displacement_px": error and error.true_px,
            f"{prefix}pixels_compared": error.pixels if error else 0,
        }
    return figures


def _cell(name: str, value: Any) -> str:
    if name.endswith("_ns"):
        return f"{value // NS_PER_S}.{value % NS_PER_S:09d}"
    if isinstance(value, float):
        return f"{value:.9g}" if math.isfinite(value) else ""
    return str(value)
