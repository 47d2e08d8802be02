"""What the node says of its flow: measurements, and what they mean in one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from event_binning_grad.estimation.flow_estimate import FlowStatus
from event_binning_grad.pipeline_flow import FlowCounters
from event_binning_grad.ros.health import (
    SILENCE_S,
    Activity,
    Level,
    Problem,
    activity_figures,
    events_share,
    left_out,
    not_trusted,
    statistic,
)


@dataclass(frozen=True)
class FlowReport:
    """The state of the flow at one moment. Counts are since the start, times monotonic.

    Attributes:
        time_s: now.
        ready: everything is compiled.
        last_arrival_s, last_published_s: of a packet and of a field; the start, if none yet.
        calibrated: the flow is that of the undistorted pixels, not of the raw ones.
        calibration_advice: how to give a calibration, or what is wrong with it.
        stride: of the fields; 0: not known yet.
        counters: of the flow's stage.
        activity: measured since the report before.
    """

    time_s: float
    ready: bool
    last_arrival_s: float
    last_published_s: float
    published: int
    calibrated: bool
    calibration_advice: str
    stride: int
    device: str
    gradient: str
    counters: FlowCounters = field(default_factory=FlowCounters)
    activity: Activity = field(default_factory=Activity)


def assess_flow(before: FlowReport, now: FlowReport) -> Problem:
    """How the flow is, from its state a period ago and now: a level, and one line why."""
    if not now.ready:
        return Level.WARN, "starting: compiling (seconds, only the first time)"
    if now.time_s - now.last_arrival_s > SILENCE_S:
        return Level.WARN, "no events come: see the status of the events"
    found = list(_problems(before, now))
    if found:
        return Level.WARN, "; ".join(found)
    if now.calibrated:
        return Level.OK, "publishing, on undistorted pixels"
    return Level.OK, f"publishing, on raw pixels: {now.calibration_advice}"


def _problems(before: FlowReport, now: FlowReport) -> Iterator[str]:
    dropped = now.counters.dropped_events - before.counters.dropped_events
    if dropped:
        yield (
            f"{dropped} events dropped: a field takes longer than queue_ms; lower "
            "flow_max_events, or free the processor"
        )
    windows = now.counters.windows - before.counters.windows
    skipped = now.counters.skipped_windows - before.counters.skipped_windows
    if text := left_out(before.counters, now.counters, "lower flow_rate_hz or flow_max_events"):
        yield text
    if text := not_trusted(before.counters, now.counters, _ADVICE):
        yield text
    elif not windows and not skipped and now.time_s - now.last_published_s > SILENCE_S:
        yield "packets come, but no window fills: hardly anything moves, or the processor is busy"


_ADVICE = {
    FlowStatus.TOO_FEW_EVENTS: "hardly anything moves; raise flow_window_ms, or lower "
    "flow_min_events",
    FlowStatus.NO_STRUCTURE: "the camera sees no texture, or only noise",
    FlowStatus.NO_CONTRAST_GAIN: "the flow does not make the events sharper: too much noise, or it "
    "changes too much within a window",
    FlowStatus.DEADLINE: "raise flow_deadline_ms, or lower flow_max_events or flow_rate_hz",
}


def flow_figures(before: FlowReport, now: FlowReport) -> dict[str, str]:
    """What /diagnostics lists: names with units, counts as plain integers."""
    period_s = max(now.time_s - before.time_s, 1e-9)
    counters = now.counters
    values: dict[str, Any] = {
        "windows": counters.windows,
        **{f"fields {status.value}": counters.estimates[status] for status in FlowStatus},
        "published": now.published,
        "published per s": f"{(now.published - before.published) / period_s:.1f}",
        "hot pixel events": counters.hot_pixel_events,
        "used events share": events_share(before.counters, counters),
        **activity_figures(now.activity),
        "known pixels share mean": statistic(np.mean, now.activity.known_share),
        "skipped windows": counters.skipped_windows,
        "skipped events": counters.skipped_events,
        "dropped events": counters.dropped_events,
        "discarded events": counters.discarded_events,
        "refused events": counters.refused_events,
        "stride": now.stride,
        "pixels": "undistorted" if now.calibrated else "raw",
        "device": now.device,
        "gradient": now.gradient,
    }
    return {name: str(value) for name, value in values.items()}
