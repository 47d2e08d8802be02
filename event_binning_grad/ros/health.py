"""What the node says of itself: measurements, and what they mean in one line."""

from __future__ import annotations

import enum
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from event_binning_grad.estimation import EgomotionEstimate, Status
from event_binning_grad.events.load_control import LoadCounters
from event_binning_grad.pipeline import PipelineCounters

if TYPE_CHECKING:  # who asks for no flow does not load it
    from event_binning_grad.estimation.flow_estimate import FlowEstimate

# A stream or an output that is silent for so long is reported, s.
SILENCE_S = 2.0
# Stamps of a sensor so far from those of the events are reported, s: no delay explains them.
_MAX_STAMP_DIFFERENCE_S = 1.0
# Events' times of the host that differ so much from their packets' stamps are reported, ms.
_MAX_EVENT_DELAY_MS = 200.0
# A greater share of windows left out is reported: less is a hiccup of the machine.
_MAX_SKIPPED_SHARE = 0.1


class Level(enum.IntEnum):
    """The levels of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Activity:
    """What was measured over the windows of a period; empty where there was none.

    lag_ms: from the arrival of a window's last packet to the publication of its estimate.
    known_share: of the pixels of a flow field, those whose flow is known; NaN for a motion.
    """

    lag_ms: Sequence[float] = ()
    solve_ms: Sequence[float] = ()
    iterations: Sequence[int] = ()
    contrast_gain: Sequence[float] = ()
    known_share: Sequence[float] = ()


class Measurements:
    """Gathers the measurements of a period; filled by one thread, taken by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: list[tuple[float, float, int, float, float]] = []

    def add(
        self,
        estimate: EgomotionEstimate | FlowEstimate,
        lag_s: float,
        known_share: float = math.nan,
    ) -> None:
        row = (
            1e3 * lag_s,
            1e3 * estimate.solve_time_s,
            estimate.iterations,
            estimate.contrast_gain,
            known_share,
        )
        with self._lock:
            self._rows.append(row)

    def take(self) -> Activity:
        with self._lock:
            rows, self._rows = self._rows, []
        return Activity(*zip(*rows, strict=True)) if rows else Activity()


@dataclass(frozen=True)
class SensorReport:
    """The state of a sensor's topic. Counts are since the node's start.

    Attributes:
        name: "depth", "range" or "imu", which is the topic's name, too.
        needed_by: the parameters that make use of it.
        topic: where it comes from; "": from the source of the events.
        publishers: how many offer that topic.
        refused, last_refusal: messages that could not be used, and why the last one could not.
        dropped: readings given up because the worker was too slow to take them.
        last_arrival_s: of a message, on the monotonic clock; of the subscription, if none yet.
        behind_s: how far its last stamp lay before the end of the last window when that was
            complete; NaN: not known.
    """

    name: str
    needed_by: str
    topic: str
    publishers: int
    received: int
    refused: int
    dropped: int
    last_refusal: str
    last_arrival_s: float
    behind_s: float


@dataclass(frozen=True)
class Report:
    """The node's state at one moment. Counts are since its start, times on the monotonic clock.

    Attributes:
        time_s: now.
        events_topic: where the packets come from.
        source: what they come from instead; "" for the topic.
        events_problem: what is wrong with where they come from, and what to do; "" if nothing.
        publishers: how many offer that topic.
        ready: everything is compiled.
        calibration_problem: why there is no calibration and what to do; "" when there is one.
        last_arrival_s, last_published_s: of a packet and of an estimate; the start, if none yet.
        rejected_packets, last_rejection: packets dropped because of what is in them.
        dropped_readings: what other sensors and the trigger input gave, and was given up because
            the worker was too slow to take it.
        track_repairs: windows for which the track had to be found, and was.
        counters: of the pipeline.
        activity: measured since the report before.
        sensors: those that the parameters make use of, besides the event camera.
        egomotion: it is estimated; else the report is of the events alone.
    """

    time_s: float
    events_topic: str
    publishers: int
    ready: bool
    calibration_problem: str
    received_packets: int
    received_bytes: int
    queued_packets: int
    shed_packets: int
    shed_bytes: int
    rejected_packets: int
    last_rejection: str
    last_arrival_s: float
    published: int
    last_published_s: float
    dropped_readings: int
    track_repairs: int
    last_discontinuity: str
    device: str
    gradient: str
    motion_model: str
    counters: PipelineCounters = field(default_factory=PipelineCounters)
    activity: Activity = field(default_factory=Activity)
    sensors: tuple[SensorReport, ...] = ()
    egomotion: bool = True
    source: str = ""
    events_problem: str = ""


Problem = tuple[Level, str]


class WindowCounts(Protocol):
    """Counters that say what became of the windows and their events."""

    windows: int
    skipped_windows: int
    window_events: int
    used_events: int
    skipped_events: int
    estimates: dict[Any, int]


def assess(before: Report, now: Report) -> Problem:
    """How the node is, from its state a period ago and now: a level, and one line why.

    The line says all that is wrong, the worst first, and what to do about it.
    """
    if not now.ready:
        return Level.WARN, "starting: compiling (seconds, only the first time)"
    silence_s = now.time_s - now.last_arrival_s
    found = list(_input_problems(before, now, silence_s))
    earlier = {sensor.name: sensor for sensor in before.sensors}
    for sensor in now.sensors:
        found += _sensor_problems(earlier.get(sensor.name, sensor), sensor, now.time_s)
    comes = now.received_packets and silence_s <= SILENCE_S
    if now.egomotion and comes and not now.calibration_problem:
        found += _output_problems(before, now)
    if not found:
        return Level.OK, "publishing" if now.egomotion else "receiving"
    found.sort(key=lambda problem: -problem[0])
    return found[0][0], "; ".join(text for _, text in found)


def _input_problems(before: Report, now: Report, silence_s: float) -> Iterator[Problem]:
    if now.events_problem:
        yield Level.WARN, now.events_problem
    if now.source:
        yield from _source_problems(now, silence_s)
    elif now.received_packets and silence_s > SILENCE_S:
        yield (
            Level.ERROR,
            f"no packets on {now.events_topic} for {silence_s:.0f} s: "
            "the camera or its driver has stopped",
        )
    elif not now.received_packets and not now.events_problem:
        offer = "it is offered, but nothing comes" if now.publishers else "nobody publishes it"
        yield (
            Level.WARN,
            f"no events yet on {now.events_topic} ({offer}): "
            "start the camera's driver, or remap ~/events to its topic",
        )
    if now.calibration_problem:
        yield Level.WARN, now.calibration_problem
    rejected = now.rejected_packets - before.rejected_packets
    if rejected:
        yield Level.WARN, f"{_many(rejected, 'packet')} rejected: {now.last_rejection}"
    yield from _time_and_load_problems(before.counters, now.counters)
    shed = now.shed_packets - before.shed_packets
    if shed:
        kilobytes = (now.shed_bytes - before.shed_bytes) / 1e3
        yield (
            Level.WARN,
            f"{_many(shed, 'packet')} ({kilobytes:.0f} kB) dropped: events come faster than they "
            "can be worked off; lower the camera's event rate, or free the processor",
        )
    lost = now.counters.decoder.lost_packets - before.counters.decoder.lost_packets
    if lost:
        yield (
            Level.WARN,
            f"{_many(lost, 'packet')} lost on the way here: raise the socket buffers "
            "(net.core.rmem_max), or free the processor",
        )


def _source_problems(now: Report, silence_s: float) -> Iterator[Problem]:
    if now.events_problem:  # that says why nothing comes
        return
    if not now.received_packets:
        yield Level.WARN, f"no events yet from {now.source}"
    elif silence_s > SILENCE_S:
        yield Level.ERROR, f"no events from {now.source} for {silence_s:.0f} s: has it stopped?"


def _time_and_load_problems(before: PipelineCounters, now: PipelineCounters) -> Iterator[Problem]:
    if now.clock.steps > before.clock.steps:
        yield (
            Level.WARN,
            f"by the stamps of the packets the robot's clock was set by "
            f"{now.clock.last_step_ns * 1e-9:+.3f} s: keep it synchronised by slewing",
        )
    delay_ms = now.clock.delay_ms(0.5)
    if not now.clock.learnt and abs(delay_ms) > _MAX_EVENT_DELAY_MS:
        side = "after" if delay_ms > 0 else "before"
        yield (
            Level.WARN,
            f"the packets' stamps are {abs(delay_ms):.0f} ms {side} the times of their events, "
            "which are taken for the robot's: a clock has drifted or was set; set clock to "
            "'arrival'",
        )
    unstamped = now.clock.unstamped - before.clock.unstamped
    if unstamped:
        yield (
            Level.WARN,
            f"{_many(unstamped, 'packet')} came with a header stamp of 0, which tells nothing of "
            "the robot's clock: let the camera's driver stamp them",
        )
    if now.clock.resets > before.clock.resets:
        yield Level.WARN, "the camera's clock began anew: it restarted, or a recording began again"
    if now.load.hot_pixels_problem:
        yield Level.WARN, f"the hot pixels were not saved: {now.load.hot_pixels_problem}"
    came = now.load.events - before.load.events
    if came and now.load.kept_events == before.load.kept_events:
        yield (
            Level.WARN,
            f"all of {came} events are left out before the windows: see roi, hot_pixels, "
            "refractory_us, background_us, keep_share",
        )


def _sensor_problems(before: SensorReport, now: SensorReport, time_s: float) -> Iterator[Problem]:
    silence_s = time_s - now.last_arrival_s
    where = f"on {now.topic}" if now.topic else "from the events' source"
    if not now.received and now.topic:
        offer = "it is offered, but nothing comes" if now.publishers else "nobody publishes it"
        advice = f"start its driver, or remap ~/{now.name} to its topic"
        yield Level.WARN, f"{now.needed_by}: no {now.name} yet {where} ({offer}): {advice}"
    elif not now.received:
        yield Level.WARN, f"{now.needed_by}: no {now.name} yet {where}: does it have any?"
    elif silence_s > SILENCE_S:
        yield (
            Level.ERROR,
            f"{now.needed_by}: no {now.name} {where} for {silence_s:.0f} s: its driver has stopped",
        )
    refused = now.refused - before.refused
    if refused:
        yield Level.WARN, f"{_many(refused, 'message')} {where} refused: {now.last_refusal}"
    if abs(now.behind_s) > _MAX_STAMP_DIFFERENCE_S + max(silence_s, 0.0):
        side = "behind" if now.behind_s > 0 else "ahead of"
        yield (
            Level.WARN,
            f"the stamps {where} are {abs(now.behind_s):.1f} s {side} those of the events: "
            "let both drivers stamp by one clock",
        )


def _output_problems(before: Report, now: Report) -> Iterator[Problem]:
    """Problems of a stream that comes and is calibrated."""
    windows = now.counters.windows - before.counters.windows
    if text := left_out(before.counters, now.counters, "lower output_rate_hz or max_events"):
        yield Level.WARN, text
    unaided = now.counters.unaided_windows - before.counters.unaided_windows
    # While it is silent altogether that is said already.
    heard = any(s.name == "imu" and s.last_arrival_s > before.time_s for s in now.sensors)
    if heard and unaided > _MAX_SKIPPED_SHARE * windows:
        yield (
            Level.WARN,
            f"{unaided} of {windows} windows had no IMU samples up to their ends and did without: "
            "its messages come later than the events, or are stamped by another clock",
        )
    if text := not_trusted(before.counters, now.counters, _ADVICE):
        yield Level.WARN, text
    elif (
        not windows
        and now.received_packets > before.received_packets
        and now.rejected_packets == before.rejected_packets  # that says enough
        and now.time_s - now.last_published_s > SILENCE_S
    ):
        yield (
            Level.WARN,
            "packets come, but no window fills: hardly anything moves, or window_events is too "
            "high; window_ms limits a window's time",
        )


def left_out(before: WindowCounts, now: WindowCounts, advice: str) -> str:
    """One line where many windows were left out since a period ago; "" else."""
    skipped = now.skipped_windows - before.skipped_windows
    due = now.windows - before.windows + skipped
    if skipped <= _MAX_SKIPPED_SHARE * due:
        return ""
    return f"{skipped} of {due} windows left out to keep up: {advice}, or free the processor"


def not_trusted(before: WindowCounts, now: WindowCounts, advice: Mapping[Any, str]) -> str:
    """One line where most estimates since a period ago are not trusted; "" else.

    advice: what to do, by the status.
    """
    windows = now.windows - before.windows
    counts = {status: n - before.estimates[status] for status, n in now.estimates.items()}
    refused = {status: n for status, n in counts.items() if n and not status.ok}
    if 2 * sum(refused.values()) <= windows:
        return ""
    reasons = ", ".join(f"{n} {status.value}" for status, n in refused.items())
    return (
        f"{sum(refused.values())} of {windows} windows are not trusted and not published "
        f"({reasons}): {advice[max(refused, key=lambda status: refused[status])]}"
    )


_ADVICE = {
    Status.TOO_FEW_EVENTS: "hardly anything moves, or window_ms is too short",
    Status.NO_STRUCTURE: "the camera sees no texture, or only noise",
    Status.NO_CONTRAST_GAIN: "check the calibration; the motion is perhaps not motion_model's",
    Status.UNCERTAIN: "too little texture to tell, or the motion changes too much within a window",
    Status.NOT_CONVERGED: "the motion changes too much within a window: lower window_ms",
    Status.NO_DEPTH: "the motion model needs the scene's depth: see the parameter depth",
    Status.NO_ROTATION: "the motion model needs the IMU's angular velocity: see the parameter imu",
    Status.DEADLINE: "raise deadline_ms, or lower max_events or output_rate_hz",
}


def figures(before: Report, now: Report) -> dict[str, str]:
    """What /diagnostics lists: names with units, counts as plain integers."""
    period_s = max(now.time_s - before.time_s, 1e-9)
    counters = now.counters
    decoder, events_before = counters.decoder, before.counters.decoder.events
    values: dict[str, Any] = {
        "events": decoder.events,
        "on events": decoder.on_events,
        "off events": decoder.off_events,
        "events per s": round((decoder.events - events_before) / period_s),
        "packets": now.received_packets,
        "bytes": now.received_bytes,
        "decoded packets": decoder.packets,
        "lost packets": decoder.lost_packets,
        "late packets": decoder.late_packets,
        "repeated packets": decoder.repeated_packets,
        "shed packets": now.shed_packets,
        "shed bytes": now.shed_bytes,
        "rejected packets": now.rejected_packets,
        "last rejection": now.last_rejection,
        "queued packets": now.queued_packets,
        "discontinuities": counters.discontinuities,
        "last discontinuity": now.last_discontinuity,
        "dropped readings": now.dropped_readings,
        "discarded events": counters.discarded_events + decoder.discarded_events,
        "uncalibrated events": counters.uncalibrated_events,
        "events without depth": counters.depthless_events,
        "windows without imu": counters.unaided_windows,
        "cut packets": decoder.cut_packets,
        "out of bounds events": decoder.out_of_bounds_events,
        "unsynchronised events": decoder.unsynchronised_events,
        "clock resets": decoder.clock_resets,
        "steps back in time": decoder.time_steps_back,
        "device": now.device,
        "gradient": now.gradient,
    }
    values |= _load_figures(before.counters.load, counters.load)
    values |= _clock_figures(counters)
    if now.egomotion:
        values |= _egomotion_figures(before, now, period_s)
    for sensor in now.sensors:
        age_s = now.time_s - sensor.last_arrival_s
        values |= {
            f"{sensor.name} messages": sensor.received,
            f"{sensor.name} refused": sensor.refused,
            f"{sensor.name} last refusal": sensor.last_refusal,
            f"{sensor.name} dropped": sensor.dropped,
            f"{sensor.name} age s": _number(age_s) if sensor.received else "",
            f"{sensor.name} behind events s": _number(sensor.behind_s) if sensor.received else "",
        }
    return {name: str(value) for name, value in values.items()}


def _load_figures(before: LoadCounters, now: LoadCounters) -> dict[str, Any]:
    came = now.events - before.events
    return {
        "kept events": now.kept_events,
        "kept events share": f"{(now.kept_events - before.kept_events) / came:.3f}" if came else "",
        "events outside roi": now.outside_roi_events,
        "events of masked pixels": now.masked_events,
        "refractory events": now.refractory_events,
        "background events": now.background_events,
        "decimated events": now.decimated_events,
        "events over cap": now.over_cap_events,
        "masked pixels": now.hot_pixels,
        "masked pixels problem": now.hot_pixels_problem,
    }


def _clock_figures(counters: PipelineCounters) -> dict[str, Any]:
    clock = counters.clock
    return {
        "clock": "learnt from the stamps" if clock.learnt else "of the events",
        "clock offset s": f"{clock.offset_ns * 1e-9:.6f}",
        "clock drift ppm": f"{clock.drift_ppm:.2f}",
        "packet delay ms p50": _number(clock.delay_ms(0.5)),
        "packet delay ms p99": _number(clock.delay_ms(0.99)),
        "robot clock steps": clock.steps,
        "robot clock last step s": f"{clock.last_step_ns * 1e-9:.6f}" if clock.steps else "",
        "sensor clock resets": clock.resets,
        "ignored stamps": clock.ignored_stamps,
        "packets without stamp": clock.unstamped,
        "trigger events": counters.triggers,
        "dropped triggers": counters.dropped_triggers,
    }


def _egomotion_figures(before: Report, now: Report, period_s: float) -> dict[str, Any]:
    counters = now.counters
    return {
        "windows": counters.windows,
        **{f"estimates {status.value}": counters.estimates[status] for status in Status},
        "published": now.published,
        "published per s": f"{(now.published - before.published) / period_s:.1f}",
        "used events share": events_share(before.counters, counters),
        **activity_figures(now.activity),
        "skipped windows": counters.skipped_windows,
        "skipped events": counters.skipped_events,
        "track losses": counters.searches,
        "track repairs": now.track_repairs,
        "hot pixel events": counters.hot_pixel_events,
        "motion model": now.motion_model,
    }


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else ""


def events_share(before: WindowCounts, now: WindowCounts) -> str:
    """The share of events that were looked at: not those of windows left out, or between windows,
    and of large windows a part."""
    window_events = now.window_events - before.window_events
    events = window_events + now.skipped_events - before.skipped_events
    return f"{(now.used_events - before.used_events) / events:.3f}" if events else ""


def activity_figures(activity: Activity) -> dict[str, str]:
    """What /diagnostics lists of an activity, but for the known share."""
    return {
        "lag ms p50": statistic(np.median, activity.lag_ms),
        "lag ms max": statistic(np.max, activity.lag_ms),
        "solve ms mean": statistic(np.mean, activity.solve_ms),
        "solve ms max": statistic(np.max, activity.solve_ms),
        "iterations mean": statistic(np.mean, activity.iterations),
        "contrast gain mean": statistic(np.mean, activity.contrast_gain),
    }


def statistic(function: Any, values: Sequence[float]) -> str:
    """What the function makes of the finite values, with two digits; "" of none."""
    finite = [value for value in values if np.isfinite(value)]
    return f"{function(finite):.2f}" if finite else ""
