"""What the node says of its flow: measurements, and what they mean in one line."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from event_binning_grad.estimation.flow_estimate import FlowEstimate, FlowStatus
from event_binning_grad.pipeline_flow import FlowCounters
from event_binning_grad.ros.health import (
    MAX_SKIPPED_SHARE,
    SILENCE_S,
    Level,
    Problem,
    events_share,
    statistic,
)


@dataclass(frozen=True)
class FlowActivity:
    """What was measured over the fields of a period; empty where there was none.

    lag_ms: from the arrival of a window's last packet to the publication of its field.
    known_share: of the pixels whose flow is known.
    """

    lag_ms: Sequence[float] = ()
    solve_ms: Sequence[float] = ()
    iterations: Sequence[int] = ()
    contrast_gain: Sequence[float] = ()
    known_share: Sequence[float] = ()


class FlowMeasurements:
    """Gathers the measurements of a period; filled by one thread, taken by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: list[tuple[float, float, int, float, float]] = []

    def add(self, estimate: FlowEstimate, lag_s: float) -> None:
        row = (
            1e3 * lag_s,
            1e3 * estimate.solve_time_s,
            estimate.iterations,
            estimate.contrast_gain,
            np.count_nonzero(estimate.confidence) / max(1, estimate.confidence.size),
        )
        with self._lock:
            self._rows.append(row)

    def take(self) -> FlowActivity:
        with self._lock:
            rows, self._rows = self._rows, []
        return FlowActivity(*zip(*rows, strict=True)) if rows else FlowActivity()


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
    activity: FlowActivity = field(default_factory=FlowActivity)


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
    if skipped > MAX_SKIPPED_SHARE * (windows + skipped):
        yield (
            f"{skipped} of {windows + skipped} windows left out to keep up: lower flow_rate_hz or "
            "flow_max_events, or free the processor"
        )
    counts = {s: now.counters.estimates[s] - before.counters.estimates[s] for s in FlowStatus}
    untrusted = {status: n for status, n in counts.items() if n and not status.ok}
    if 2 * sum(untrusted.values()) > windows:
        reasons = ", ".join(f"{n} {status.value}" for status, n in untrusted.items())
        advice = _ADVICE[max(untrusted, key=lambda status: untrusted[status])]
        yield (
            f"{sum(untrusted.values())} of {windows} fields are not trusted and not published "
            f"({reasons}): {advice}"
        )
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
    counters, activity = now.counters, now.activity
    values: dict[str, Any] = {
        "windows": counters.windows,
        **{f"fields {status.value}": counters.estimates[status] for status in FlowStatus},
        "published": now.published,
        "published per s": f"{(now.published - before.published) / period_s:.1f}",
        "hot pixel events": counters.hot_pixel_events,
        "used events share": events_share(before.counters, counters),
        "lag ms p50": statistic(np.median, activity.lag_ms),
        "lag ms max": statistic(np.max, activity.lag_ms),
        "solve ms mean": statistic(np.mean, activity.solve_ms),
        "solve ms max": statistic(np.max, activity.solve_ms),
        "iterations mean": statistic(np.mean, activity.iterations),
        "contrast gain mean": statistic(np.mean, activity.contrast_gain),
        "known pixels share mean": statistic(np.mean, activity.known_share),
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
