"""What the command `evaluate` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from event_binning_grad.evaluation.evaluate import Evaluation
from event_binning_grad.evaluation.flow_report import ERRORS, FlowEvaluation
from event_binning_grad.evaluation.stream_figures import left_out
from event_binning_grad.evaluation.tables import report_console
from event_binning_grad.pipeline import PipelineCounters

# Of the figures of an error, by the ends of their names: the column and how it is written.
_ERROR_COLUMNS = {
    "pixels_compared": ("count", ",d"),
    "true_displacement_px": ("true, px", ",.2f"),
    "epe_px": ("EPE, px", ",.3f"),
    "epe_px_s": ("EPE, px/s", ",.1f"),
    "angular_error_deg": ("AE, deg", ",.2f"),
    "outliers_1px_percent": ("> 1 px, %", ",.2f"),
    "outliers_2px_percent": ("> 2 px, %", ",.2f"),
    "outliers_3px_percent": ("> 3 px, %", ",.2f"),
}


class _Rows(Table):
    """A table of figures by name."""

    def __init__(self, title: str) -> None:
        super().__init__(title=title, show_header=False)

    def row(self, name: str, value: float | None, unit: str, digits: str = ",.2f") -> None:
        self.add_row(name, "-" if value is None else f"{value:{digits}} {unit}".rstrip())

    def counts(self, what: str, counts: Mapping[str, int]) -> None:
        """A row for each count that is not zero."""
        for reason, count in counts.items():
            if count:
                self.row(f"  {what}: {reason}", count, "", ",d")

    def losses(self, figures: Mapping[str, Any], stream: PipelineCounters) -> None:
        """What of the stream was not looked at, and why."""
        self.row("events used", 100 * figures["used_events_share"], "%", ",.1f")
        self.counts("events left out", left_out(stream))
        self.counts("packets dropped", figures["rejected_packets"])
        self.counts("in the recording", figures["unusable"])


def print_evaluation(result: Evaluation) -> None:
    """The figures of the camera's motion."""
    figures = result.summary()
    table = _Rows(figures["recording"])
    row = table.row
    row("events", figures["events"], "", ",d")
    row("duration", figures["duration_s"], "s")
    row("windows", figures["windows"], "", ",d")
    table.counts("not trusted", _untrusted(figures))
    table.losses(figures, result.counters)
    row("throughput", figures["events_per_second"] / 1e6, "Mev/s")
    row("time a window, p50", figures["window_ms_p50"], "ms")
    row("time a window, p99", figures["window_ms_p99"], "ms")
    row("passes over a window, mean", figures["iterations_mean"], "")
    table.add_row("ground truth", figures["ground_truth"] or "none")
    row("angular velocity RMS, an axis", figures["angular_velocity_rms_deg_s"], "deg/s")
    if figures["windows_compared"]:
        compared, windows = figures["windows_compared"], figures["windows"]
        table.add_row("  over", f"{compared:,} trusted windows of {windows:,}")
    per_axis = figures["angular_velocity_rms_per_axis_deg_s"]
    for axis, value in zip("xyz", per_axis or (), strict=False):
        row(f"  about {axis}", value, "deg/s")
    row("normalised squared error, 3 is ideal", figures["nees_mean"], "")
    if figures["linear_velocity_rms_m_s"] is not None:
        row("linear velocity RMS, an axis", figures["linear_velocity_rms_m_s"], "m/s", ",.3f")
        row("  of the true speed's", figures["linear_velocity_rms_percent"], "%", ",.1f")
        per_axis = figures["linear_velocity_rms_per_axis_m_s"]
        for axis, value in zip("xyz", per_axis, strict=True):
            row(f"  along {axis}", value, "m/s", ",.3f")
        row("  normalised squared error", figures["linear_nees_mean"], "")
    Console().print(table)
    if result.hint:
        print(result.hint)


def print_flow(result: FlowEvaluation) -> None:
    """The figures of dense flow; its errors in a table of their own."""
    figures = result.summary()
    table = _Rows(figures["recording"])
    row = table.row
    row("events", figures["events"], "", ",d")
    row("duration", figures["duration_s"], "s")
    table.add_row(
        "flow fields", f"{figures['fields']:,} of {len(result.windows):,} windows trusted"
    )
    table.counts("not trusted", _untrusted(figures))
    table.add_row("on", "undistorted pixels" if result.undistorted else "raw pixels")
    row("window, p50", figures["window_ms_p50"], "ms", ",.1f")
    row("fields a second of computing", figures["fields_per_second"], "", ",.1f")
    row("time a field, p50", figures["field_ms_p50"], "ms")
    row("time a field, p99", figures["field_ms_p99"], "ms")
    table.losses(figures, result.stream)
    row("density", _percent(figures["density"]), "% of the pixels with events", ",.1f")
    row("  only across the edges", _percent(figures["normal_flow_share"]), "% of these", ",.1f")
    row("flow warp loss, mean", figures["flow_warp_loss_mean"], "", ",.3f")
    row("  least", figures["flow_warp_loss_min"], "", ",.3f")
    table.add_row("compared with", figures["flow_truth"] or "nothing")
    if figures["true_flow_warp_loss_mean"] is not None:
        row("  its flow warp loss, mean", figures["true_flow_warp_loss_mean"], "", ",.3f")
    Console().print(table)
    if any(figures[f"{prefix}pixels_compared"] for prefix in ERRORS):
        report_console().print(_errors(figures))
    if figures["true_displacements_missed"]:
        missed = figures["true_displacements_missed"]
        print(f"{missed:,} true displacements have no flow fields around them to compare")
    if result.hint:
        print(f"compared with nothing; {result.hint}")
    if not result.undistorted:
        print("raw pixels: no calibration is used, so the lens' distortion is in the flow")


def _errors(figures: Mapping[str, Any]) -> Table:
    displacements = figures["true_displacements_compared"]
    over = f"over {displacements:,} true displacements" if displacements else "over the windows"
    table = Table(title=f"end-point (EPE) and angular (AE) errors {over}")
    table.add_column("over pixels")
    for heading, _ in _ERROR_COLUMNS.values():
        table.add_column(heading, justify="right")
    for prefix, pixels in ERRORS.items():
        if figures[f"{prefix}pixels_compared"]:
            values = [
                f"{figures[prefix + name]:{digits}}" for name, (_, digits) in _ERROR_COLUMNS.items()
            ]
            table.add_row(pixels, *values)
    return table


def _untrusted(figures: Mapping[str, Any]) -> dict[str, int]:
    return {status: n for status, n in figures["windows_by_status"].items() if status != "ok"}


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
