"""What became of a recording's stream before anything was estimated, for reports."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from event_binning_grad.events.types import NS_PER_S
from event_binning_grad.pipeline import PipelineCounters


def stream_figures(counters: PipelineCounters) -> dict[str, Any]:
    """Decoder, clock and load control as plain numbers, ready for JSON.

    Of load's events, those that the decoder handed on, each is kept or in one of the reasons.
    """
    clock, learnt = counters.clock, counters.clock.packets > 0
    return {
        "decoder": asdict(counters.decoder),
        "clock": {
            "learnt": clock.learnt,
            "offset_s": clock.offset_ns / NS_PER_S,
            "drift_ppm": clock.drift_ppm,
            "resets": clock.resets,
            "steps": clock.steps,
            "last_step_s": clock.last_step_ns / NS_PER_S,
            "ignored_stamps": clock.ignored_stamps,
            "packets": clock.packets,
            "delay_ms_p50": clock.delay_ms(0.5) if learnt else None,
            "delay_ms_p99": clock.delay_ms(0.99) if learnt else None,
        },
        "load": asdict(counters.load),
        "discontinuities": counters.discontinuities,
        "dropped_triggers": counters.dropped_triggers,
    }


def left_out(counters: PipelineCounters) -> dict[str, int]:
    """Events that load control left out, by the reason, where there are any."""
    load = counters.load
    reasons = {
        "outside the region of interest": load.outside_roi_events,
        "of masked pixels": load.masked_events,
        "by the refractory filter": load.refractory_events,
        "as background": load.background_events,
        "by keep_share": load.decimated_events,
        "over the cap of events a second": load.over_cap_events,
    }
    return {reason: count for reason, count in reasons.items() if count}
