"""Runs of the pipeline's flow over a stream of events: as a camera sends them, or for scores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from event_binning_grad.config import PipelineConfig
from event_binning_grad.estimation.flow_estimate import FlowEstimate
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.recordings import Recording
from event_binning_grad.events.types import NS_PER_MS, NS_PER_S, Events, stamp_to_ns
from event_binning_grad.geometry import Camera
from event_binning_grad.pipeline import Pipeline, warm_up
from event_binning_grad.pipeline_flow import FlowStage

_PACKET_MS = 2.0
# From so far behind on windows are left out, as the node does with its queue of 200 ms.
_BEHIND_S = 0.05
# Of a recording no more events than these are looked at.
_MOST_EVENTS = 2_000_000


@dataclass(frozen=True)
class LiveRun:
    """What came out of a stream whose packets come as from a camera.

    Attributes:
        fields: the estimates.
        delays_s: of each, from its window's last event until it was there.
        spent_s, cpu_s: time that the pipeline took, by the clock and of all cores.
        skipped_windows: left out to catch up.
        used_events: events that were looked at, each counted once.
    """

    fields: list[FlowEstimate]
    delays_s: list[float]
    spent_s: float
    cpu_s: float
    skipped_windows: int
    used_events: int


def run_live(events: Events, camera: Camera, config: PipelineConfig) -> LiveRun:
    """The events, as packets of 2 ms of EVT 3.0, through the pipeline's flow.

    A packet can be taken when it has come and the ones before are done, by the time that they took
    here; while it lies further behind than 50 ms the windows that it completes are left out, as in
    the node. Decoding and flow share one thread; the node has one for each.
    """
    warm_up(config, camera)
    pipeline = Pipeline(config, camera)
    fields: list[FlowEstimate] = []
    delays_s: list[float] = []
    spent_s = cpu_s = now_s = 0.0
    for packet in packetize(events, _PACKET_MS):
        arrival_s = stamp_to_ns(packet.header.stamp) / NS_PER_S + _PACKET_MS * 1e-3
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        pipeline.push(packet, estimate=now_s - arrival_s <= _BEHIND_S)
        found = pipeline.take_flow()
        took_s = time.perf_counter() - began_s
        spent_s, cpu_s = spent_s + took_s, cpu_s + time.process_time() - began_cpu_s
        now_s = max(now_s, arrival_s) + took_s
        fields += found
        delays_s += [now_s - estimate.window_end_ns / NS_PER_S for estimate in found]
    assert pipeline.flow_stage is not None  # the configuration asks for flow
    counters = pipeline.flow_stage.counters
    return LiveRun(fields, delays_s, spent_s, cpu_s, counters.skipped_windows, counters.used_events)


def segments_of(recording: Recording) -> list[Events]:
    """The recording's first events, cut where what comes does not follow what came.

    Raises:
        EventBinningError: it cannot be read or decoded.
    """
    decoder = PacketDecoder()
    parts: list[list[Events]] = [[]]
    count = 0
    for packet in recording.packets():
        if isinstance(packet, Events):
            events = packet
        else:
            decoded = decoder.decode(packet)
            events = decoded.events.copy()
            if decoded.discontinuity is not None:
                parts.append([])
        parts[-1].append(events)
        count += len(events)
        if count >= _MOST_EVENTS:
            break
    return [Events.concatenate(part) for part in parts if any(map(len, part))]


def window_fields(events: Events, stage: FlowStage) -> Iterator[tuple[Events, FlowEstimate]]:
    """A stage's fields of a stream, each with the events of its window."""
    packet_ns = round(_PACKET_MS * NS_PER_MS)
    borders = np.arange(int(events.t[0]), int(events.t[-1]) + packet_ns, packet_ns)
    cuts = [*np.searchsorted(events.t, borders), len(events)]
    for first, last in pairwise(map(int, cuts)):
        for estimate in stage.push(events[first:last]):
            yield _window(events, estimate), estimate
    for estimate in stage.flush():
        yield _window(events, estimate), estimate


def _window(events: Events, estimate: FlowEstimate) -> Events:
    ends = estimate.window_start_ns, estimate.window_end_ns + 1
    first, last = np.searchsorted(events.t, ends)
    return events[int(first) : int(last)]
