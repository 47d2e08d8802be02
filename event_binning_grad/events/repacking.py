"""Events of any source as packets that a ROS driver could have sent, and a stretch of time of them.

Nothing is lost on the way: packets in an encoding of the ROS drivers stay as they are; all others,
and those that are cut, are encoded anew as "mono", which holds every time (ns) and place exactly,
with the edges of the trigger input as packets in encoding "trigger" between them.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from event_binning_grad.errors import ConfigError, PacketError, RecordingError
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.encoder import encode_mono
from event_binning_grad.events.time_rules import MAX_STEP_BACK_NS
from event_binning_grad.events.types import (
    NO_TRIGGERS,
    NS_PER_MS,
    NS_PER_S,
    EventPacket,
    Events,
    Header,
    Triggers,
    stamp_at,
    stamp_to_ns,
)
from event_binning_grad.events.windows import WindowBuffer

FRAME_ID = "event_camera"
ROS_ENCODINGS = ("evt3", "evt2", "evt21", "libcaer", "libcaer_cmp", "mono", "trigger")
PACKET_NS = 4 * NS_PER_MS
# Best-effort messages of 600 kB and more are almost all lost; an event has 8 bytes.
MAX_PACKET_EVENTS = 50_000
_MAX_PACKET_SPAN_NS = 4 * NS_PER_S  # mono has 32 bits of ns
_MAX_SIDE = 1 << 15  # and 15 bits of y


@dataclass(frozen=True)
class Stretch:
    """The part of a recording from start_s after its first event on, duration_s long.

    Raises:
        ConfigError: a value that is not allowed.
    """

    start_s: float = 0.0
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            raise ConfigError(f"start {self.start_s} s: expected 0 or more")
        if self.duration_s is not None and not (
            math.isfinite(self.duration_s) and self.duration_s > 0
        ):
            raise ConfigError(f"duration {self.duration_s} s: expected more than 0")

    @property
    def is_whole(self) -> bool:
        return self.start_s == 0 and self.duration_s is None

    @property
    def start_ns(self) -> int:
        return round(self.start_s * NS_PER_S)

    @property
    def end_ns(self) -> float:
        """Where it ends, after the first event."""
        if self.duration_s is None:
            return math.inf
        return self.start_ns + round(self.duration_s * NS_PER_S)


def nothing_there(path: Path, stretch: Stretch) -> RecordingError:
    """The error of a recording that has no events in a stretch."""
    end = " on" if stretch.duration_s is None else f" to {stretch.end_ns / NS_PER_S:g} s"
    return RecordingError(
        f"{path} holds no events from {stretch.start_s:g} s{end} after its first one: choose "
        "another --start or --duration; `event-binning-grad info` says how long it is"
    )


@dataclass
class Repacked:
    """What was handed on, and what was not.

    events, triggers: decoded from the packets handed on. left_out_triggers: edges that were left
    out where only events are handed on. rejected: packets that cannot be decoded, by reason; they
    are handed on as they are where packets are not encoded anew.
    """

    packets: int = 0
    events: int = 0
    triggers: int = 0
    left_out_triggers: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    encoding: str = ""

    def count(self, packet: EventPacket, events: int, triggers: int = 0) -> None:
        self.packets += 1
        self.events += events
        self.triggers += triggers
        if packet.encoding != "trigger":
            self.encoding = self.encoding or packet.encoding


def ros_packets(
    parts: Iterable[EventPacket | Events],
    stretch: Stretch | None = None,
    counts: Repacked | None = None,
) -> Iterator[tuple[int, EventPacket]]:
    """Packets in ROS_ENCODINGS, each with the robot's time at which a live robot would have got
    it: that of its last event, ns.

    parts: what Recording.packets() gives. Streamed; counts is filled in meanwhile.
    Raises RecordingError for events that "mono" cannot hold (before 0 s, or beyond 32767 pixels).
    """
    stretch, counts = stretch or Stretch(), counts if counts is not None else Repacked()
    parts = iter(parts)
    first = next(parts, None)
    if first is None:
        return
    rest: Any = chain([first], parts)
    if isinstance(first, Events):
        yield from _of_events(rest, stretch, counts)
        return
    repacker = PacketRepacker(stretch, counts)
    for packet in rest:
        yield from repacker.take(packet)
        if repacker.ended:
            return


class StretchCut:
    """Cuts a stream of events to a stretch, by the time since the first of them.

    Where the clock was set back, the time goes on from where it was.
    """

    def __init__(self, stretch: Stretch) -> None:
        self.stretch = stretch
        self.ended = False
        self._base_ns: int | None = None
        self._elapsed_ns = 0

    def slice_of(self, events: Events, reset: bool = False) -> slice:
        """Which of the events are in it."""
        t = events.t
        if not len(t):
            return slice(0, 0)
        first = int(t[0])
        if self._base_ns is None:
            self._base_ns = first
        elif reset or first - self._base_ns < self._elapsed_ns - MAX_STEP_BACK_NS:
            self._base_ns = first - self._elapsed_ns
        start = np.searchsorted(t, self._base_ns + self.stretch.start_ns)
        stop = len(t)
        if self.stretch.duration_s is not None:
            stop = np.searchsorted(t, self._base_ns + int(self.stretch.end_ns))
            self.ended = self.ended or int(stop) < len(t)
        self._elapsed_ns = max(self._elapsed_ns, int(t[-1]) - self._base_ns)
        return slice(int(start), int(stop))

    def slice_of_edges(self, edges: Triggers) -> Triggers:
        """Those of a packet's edges that are in it; its events go before, by slice_of."""
        if self.stretch.is_whole:
            return edges
        since = edges.t - self._base_ns if self._base_ns is not None else np.full(len(edges), -1)
        inside = (since >= self.stretch.start_ns) & (since < self.stretch.end_ns)
        return Triggers(edges.t[inside], edges.p[inside], edges.channel[inside])


def decoded_events(
    parts: Iterable[EventPacket | Events],
    stretch: Stretch | None = None,
    counts: Repacked | None = None,
) -> Iterator[Events]:
    """The events themselves, cut to a stretch, with the sensor's times; streamed."""
    counts = counts if counts is not None else Repacked()
    cut, decoder = StretchCut(stretch or Stretch()), PacketDecoder()
    for part in parts:
        events, reset, edges = part, False, NO_TRIGGERS
        if not isinstance(events, Events):
            if events.encoding != "trigger":
                counts.encoding = events.encoding
            try:
                decoded = decoder.decode(events)
            except PacketError as error:
                counts.rejected[str(error)] += 1
                continue
            events, reset, edges = decoded.events, decoded.clock_reset, decoded.triggers
        kept = events[cut.slice_of(events, reset)]
        counts.left_out_triggers += len(cut.slice_of_edges(edges))
        if len(kept):
            counts.events += len(kept)
            yield kept
        if cut.ended:
            return


def _of_events(
    chunks: Iterable[Events], stretch: Stretch, counts: Repacked
) -> Iterator[tuple[int, EventPacket]]:
    slots, cut = WindowBuffer(MAX_PACKET_EVENTS, PACKET_NS), StretchCut(stretch)
    seq = count()

    def made(events: Events) -> tuple[int, EventPacket]:
        header = Header(stamp_at(int(events.t[0])), FRAME_ID)
        packet = mono_packet(events, header, next(seq))
        counts.count(packet, len(events))
        return int(events.t[-1]), packet

    for chunk in chunks:
        for slot in slots.push(chunk[cut.slice_of(chunk)]):
            yield made(slot.events)
        if cut.ended:
            break
    last = slots.flush()
    if last is not None:
        yield made(last.events)


def mono_packet(events: Events, header: Header, seq: int) -> EventPacket:
    """Events in encoding "mono".

    Raises RecordingError for events that it cannot hold.
    """
    first, x, y = int(events.t[0]), int(events.x.max()), int(events.y.max())
    if first < 0 or x > 0xFFFF or y >= _MAX_SIDE:
        raise RecordingError(
            f"events at {first} ns reach x {x} and y {y}; expected times from 0 on, x to 65535 and "
            f"y to {_MAX_SIDE - 1}: no encoding of ROS holds others"
        )
    time_base, data = encode_mono(events)
    return EventPacket(header, events.height, events.width, seq, time_base, "mono", False, data)


def trigger_packets(
    edges: Triggers, width: int, height: int, frame_id: str, seq: int, offset_ns: int = 0
) -> list[EventPacket]:
    """Edges in encoding "trigger", in as few packets as hold them; seq: of the first one.

    offset_ns: of the stamps against the edges' own clock.
    """
    packets, start = [], 0
    for stop in range(1, len(edges) + 1):
        part = edges[start : stop + 1]  # with the next one, if there is one
        if stop < len(edges) and int(np.ptp(part.t)) <= _MAX_PACKET_SPAN_NS:
            continue
        part = edges[start:stop]
        base = int(part.t.min())
        words = (part.t - base).astype("<u8") | part.p.astype("<u8") << np.uint64(63)
        words |= part.channel.astype("<u8") << np.uint64(48)
        header = Header(stamp_at(max(0, base + offset_ns)), frame_id)
        packets.append(
            EventPacket(
                header, height, width, seq + len(packets), base, "trigger", False,
                words.view(np.uint8),
            )
        )  # fmt: skip
        start = stop
    return packets


def packets_and_edges(recording: Any) -> Iterator[EventPacket] | Iterator[Events]:
    """What Recording.packets() gives, and between them, in the order of time, packets of the edges
    that a recording holds beside its packets."""
    read = getattr(recording, "triggers", None)
    return recording.packets() if read is None else _with_edges(recording, read())


def _with_edges(recording: Any, edges: Iterable[Triggers]) -> Iterator[EventPacket]:
    width, height = recording.width, recording.height
    between = (
        packet for part in edges for packet in trigger_packets(part, width, height, FRAME_ID, 0)
    )
    merged = heapq.merge(
        recording.packets(), between, key=lambda packet: stamp_to_ns(packet.header.stamp)
    )
    for seq, packet in enumerate(merged):
        yield replace(packet, seq=seq)


class PacketRepacker:
    """Takes the packets of one camera, gives packets in ROS_ENCODINGS, cut to a stretch."""

    def __init__(self, stretch: Stretch, counts: Repacked) -> None:
        self._cut, self._counts = StretchCut(stretch), counts
        self._decoder, self._seq = PacketDecoder(), -1
        self._renumbers = False  # packets were encoded anew
        self._offset_ns = 0  # of the stamps against the sensor's clock

    @property
    def ended(self) -> bool:
        """The stretch is over."""
        return self._cut.ended

    def take(self, packet: EventPacket) -> list[tuple[int, EventPacket]]:
        """What becomes of the next packet, each with the robot's time of its last event, ns."""
        counts, decoder = self._counts, self._decoder
        lost = decoder.counters.lost_packets
        stamp_ns = stamp_to_ns(packet.header.stamp)
        native = self._cut.stretch.is_whole and packet.encoding in ROS_ENCODINGS
        native &= packet.encoding != "trigger" or not self._renumbers
        try:
            decoded = decoder.decode(packet)
        except PacketError as error:
            counts.rejected[str(error)] += 1
            return [(stamp_ns, packet)] if native else []
        events = decoded.events
        if native:
            span_ns = int(events.t[-1] - events.t[0]) if len(events) else 0
            counts.count(packet, len(events), len(decoded.triggers))
            self._seq = int(packet.seq)
            return [(stamp_ns + span_ns, packet)]
        self._renumbers = True
        # Gaps stay gaps; what is left out here makes none.
        self._seq += decoder.counters.lost_packets - lost
        made = []
        if len(events):
            self._offset_ns = stamp_ns - int(events.t[0]) if stamp_ns else 0
        for piece in _pieces(events[self._cut.slice_of(events, decoded.clock_reset)]):
            self._seq += 1
            # A sensor's time and a stamp may be of two clocks: the step between them is kept.
            first_ns = int(piece.t[0])
            at_ns = first_ns + self._offset_ns
            header = Header(stamp_at(at_ns), packet.header.frame_id)
            arrival_ns = at_ns + int(piece.t[-1]) - first_ns
            made.append((arrival_ns, mono_packet(piece, header, self._seq)))
            counts.count(made[-1][1], len(piece))
        edges = self._cut.slice_of_edges(decoded.triggers)
        frame, offset_ns = packet.header.frame_id, self._offset_ns
        for item in trigger_packets(
            edges, packet.width, packet.height, frame, self._seq + 1, offset_ns
        ):
            self._seq += 1
            arrival_ns = stamp_to_ns(item.header.stamp)
            made.append((max(arrival_ns, made[-1][0]) if made else arrival_ns, item))
            counts.count(item, 0, len(item.events) // 8)
        return made


def _pieces(events: Events) -> Iterator[Events]:
    """Events cut into what one packet holds."""
    while len(events):
        stop = int(np.searchsorted(events.t, int(events.t[0]) + _MAX_PACKET_SPAN_NS))
        stop = min(stop, MAX_PACKET_EVENTS)
        yield events[:stop]
        events = events[stop:]
