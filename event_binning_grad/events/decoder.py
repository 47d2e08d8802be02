"""From event packets to events: one stateful decoder a stream."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import PacketError
from event_binning_grad.events.evt2 import Evt2Stream
from event_binning_grad.events.evt3 import Evt3Stream
from event_binning_grad.events.fixed_size import (
    BYTES_PER_EVENT,
    FixedSizeStream,
    check_fixed_size,
    check_time_base,
)
from event_binning_grad.events.libcaer_cmp import WORD_BYTES, LibcaerCmpStream
from event_binning_grad.events.part import Part
from event_binning_grad.events.types import (
    NO_TRIGGERS,
    NS_PER_MS,
    NS_PER_S,
    NS_PER_US,
    Events,
    PacketLike,
    Triggers,
    stamp_to_ns,
)

# Words that build on the words of packets before.
WORD_STREAMS = ("evt3", "evt2", "evt21")
SUPPORTED_ENCODINGS = (
    *WORD_STREAMS,
    "libcaer",
    "libcaer_cmp",
    "mono",
    "trigger",
    "event_array",
    "event_array_ros1",
    "dv",
)
MAX_SENSOR_SIDE = 1 << 16  # x and y are uint16
MAX_SILENCE_NS = 3600 * NS_PER_S
# A seq that goes back by so much may be of a packet that was overtaken or came twice.
OVERTAKEN_PACKETS = 8
# A driver takes longer to restart.
OVERTAKEN_NS = 100 * NS_PER_MS


@dataclass(slots=True)
class DecoderCounters:
    """What a decoder did since it was made. Nothing is dropped without being counted here.

    Each encoded event is in exactly one of events, out_of_bounds_events, unsynchronised_events,
    discarded_events and invalid_events, unless its packet was lost, repeated, shed or rejected.
    """

    packets: int = 0
    """Packets decoded."""
    events: int = 0
    """Events handed on."""
    on_events: int = 0
    off_events: int = 0
    lost_packets: int = 0
    """Packets that never came, by the gaps in seq."""
    late_packets: int = 0
    """Packets that came after later ones, and were dropped."""
    repeated_packets: int = 0
    """Packets that came before with the same seq and stamp, and were dropped."""
    cut_packets: int = 0
    """EVT packets that ended inside a word whose rest never came."""
    rejected_packets: int = 0
    """Packets that could not be decoded."""
    shed_packets: int = 0
    """Packets that came and were skipped unread, see PacketDecoder.skip."""
    out_of_bounds_events: int = 0
    """Events dropped because they lie outside width x height."""
    unsynchronised_events: int = 0
    """Events dropped because their time or place was lost with earlier packets (EVT) or words."""
    discarded_events: int = 0
    """Events dropped because the clock was reset later in the same packet."""
    invalid_events: int = 0
    """Events dropped that the camera marked as invalid (libcaer) or that lie before 1970 or after
    2116 (event_array, dv)."""
    time_steps_back: int = 0
    """Steps back of the sensor's clock; within 10 ms the events keep the last time before."""
    clock_resets: int = 0
    """Larger steps back, and restarts of the stream (seq running backwards)."""
    clock_gaps: int = 0
    """Silences of more than 8 s, bridged by the header stamps (EVT)."""
    unknown_words: int = 0
    """Words that the format does not define, skipped (EVT, libcaer_cmp)."""
    ignored_words: int = 0
    """EVT words without events (OTHERS and CONTINUED), skipped."""
    trigger_events: int = 0
    """Edges of the external trigger input, handed on as DecodedPacket.triggers."""
    lost_triggers: int = 0
    """Edges dropped because their time was lost with earlier packets, or the clock was reset later
    in the same packet."""


@dataclass(frozen=True, slots=True)
class DecodedPacket:
    """The events of a packet.

    events: t is the unwrapped time of the sensor in ns, non-decreasing from packet to packet.
    discontinuity: None, or why these events do not follow the ones before, in one line: whoever
        gathers events over packets must drop what was gathered.
    clock_reset: True if the time goes on from another value: an offset to another clock that was
        learnt before is void.
    from_start: False if events before the first one were dropped, for want of time or row.
    triggers: edges of the external trigger input, in the clock of the events.
    """

    events: Events
    discontinuity: str | None = None
    clock_reset: bool = False
    from_start: bool = True
    triggers: Triggers = NO_TRIGGERS


class PacketDecoder:
    """Decodes the packets of one camera, in the order of their arrival.

    Takes any object with the fields of event_camera_msgs/EventPacket, in the encodings of
    SUPPORTED_ENCODINGS, and keeps what must be carried from packet to packet.
    """

    def __init__(self) -> None:
        self.counters = DecoderCounters()
        self._word_streams: dict[str, Evt3Stream | Evt2Stream] = {
            "evt3": Evt3Stream(),
            "evt2": Evt2Stream(),
            "evt21": Evt2Stream(vectors=True),
        }
        self._packet_streams: dict[str, FixedSizeStream | LibcaerCmpStream] = {
            **{encoding: FixedSizeStream(encoding) for encoding in BYTES_PER_EVENT},
            "libcaer_cmp": LibcaerCmpStream(),
        }
        self._format: tuple[str, int, int, bool] | None = None
        self._seq: int | None = None
        self._first_seq = 0
        self._stamps: dict[int, int] = {}  # by seq, of the last OVERTAKEN_PACKETS
        self._repeats = 0  # repeated packets since the last good one
        self._rejected = 0  # packets since the last good one
        self._shed = 0  # packets since the last good one
        # Of the last packets of words: stamp in ns and sensor time in us.
        self._references: deque[tuple[int, int]] = deque(maxlen=2)

    def decode(self, packet: PacketLike) -> DecodedPacket:
        """The events of the next packet.

        Raises PacketError for a packet that cannot be decoded; it is counted, and the next good
        packet is decoded as after a lost one.
        """
        try:
            data = self._checked_payload(packet)
        except PacketError:
            self.counters.rejected_packets += 1
            self._rejected += 1
            raise
        if self._is_past(packet):
            return DecodedPacket(Events.empty(packet.width, packet.height))
        reasons: list[str] = []
        clock_reset = self._follow(packet, reasons)
        self.counters.packets += 1
        if packet.encoding in WORD_STREAMS:
            part = self._decode_words(packet, data, reasons)
        else:
            part = self._packet_streams[packet.encoding].decode(
                data,
                packet.width,
                packet.height,
                int(packet.time_base),
                bool(packet.is_bigendian),
            )
        return self._conclude(packet, part, reasons, clock_reset)

    def skip(self, packets: int) -> None:
        """Says that the receiver dropped so many packets, unread, before the next one.

        They count as shed, not as lost, and what follows is decoded as after a loss.
        """
        self.counters.shed_packets += packets
        self._shed += packets

    def _checked_payload(self, packet: PacketLike) -> NDArray[np.uint8]:
        if packet.encoding not in SUPPORTED_ENCODINGS:
            raise PacketError(
                f"the packet's encoding is {packet.encoding!r}, "
                f"expected one of {', '.join(SUPPORTED_ENCODINGS)}"
            )
        if not (0 < packet.width <= MAX_SENSOR_SIDE and 0 < packet.height <= MAX_SENSOR_SIDE):
            raise PacketError(
                f"the packet's sensor size is {packet.width} x {packet.height}, expected 1 to "
                f"{MAX_SENSOR_SIDE} pixels a side: the driver must fill width and height"
            )
        data = payload_bytes(packet.events)
        if packet.encoding in BYTES_PER_EVENT:
            check_fixed_size(packet.encoding, len(data), int(packet.time_base))
        elif packet.encoding == "libcaer_cmp":
            if len(data) % WORD_BYTES:
                raise PacketError(
                    f"a libcaer_cmp packet has {len(data)} bytes, expected a multiple of "
                    f"{WORD_BYTES}: the packet is cut short or its encoding is another"
                )
            check_time_base(packet.encoding, int(packet.time_base))
        return data

    def _is_past(self, packet: PacketLike) -> bool:
        """Whether the packet was overtaken or came twice; it is counted then.

        A camera that restarted gives later stamps, a bag that begins again its first seq, and who
        sends nothing but repeated packets does not count them.
        """
        seq, newest = int(packet.seq), self._seq
        if newest is None or not newest - OVERTAKEN_PACKETS <= seq <= newest:
            return False
        stamp, stamp_before = stamp_to_ns(packet.header.stamp), self._stamps.get(seq)
        if stamp_before is None:
            if stamp > self._stamps[newest] + OVERTAKEN_NS:
                return False
            self._stamps[seq] = stamp
            self.counters.late_packets += 1
            return True
        if stamp == 0 or stamp != stamp_before or self._first_seq == seq < newest:
            return False
        if self._repeats == OVERTAKEN_PACKETS:
            return False
        self._repeats += 1
        self.counters.repeated_packets += 1
        return True

    def _remember(self, seq: int, stamp_ns: int) -> None:
        """Takes the next packet's seq and stamp, for _is_past."""
        if self._seq is None or seq < self._seq:
            self._first_seq, self._stamps = seq, {}
        if seq != self._seq:
            self._repeats = 0
        oldest = seq - OVERTAKEN_PACKETS
        self._stamps = {s: stamp for s, stamp in self._stamps.items() if s >= oldest}
        self._stamps[seq], self._seq = stamp_ns, seq

    def _follow(self, packet: PacketLike, reasons: list[str]) -> bool:
        """Compares the packet with the one before it; True if the clock starts anew."""
        seq, before = int(packet.seq), self._seq
        form = (packet.encoding, packet.width, packet.height, bool(packet.is_bigendian))
        form_before, rejected, shed = self._format, self._rejected, self._shed
        are_edges = packet.encoding == "trigger"  # they may come between packets of events
        self._format = form_before if are_edges else form
        self._rejected = self._shed = 0
        self._remember(seq, stamp_to_ns(packet.header.stamp))
        missing = 0 if before is None else max(0, seq - before - 1 - rejected - shed)
        self.counters.lost_packets += missing
        if form_before is not None and form != form_before and not are_edges:
            reasons.append(f"the camera's format changed from {form_before[:3]} to {form[:3]}")
            self._restart()
            return True
        if before is not None and seq < before:
            reasons.append(f"seq went back from {before} to {seq}: the camera or bag restarted")
            self.counters.clock_resets += 1
            self._restart()
            return True
        if before is not None and missing:
            reasons.append(f"{missing} packets were lost before seq {seq}")
            self._lose()
        elif shed:
            reasons.append(f"{shed} packets were shed before seq {seq}")
            self._lose()
        elif rejected:
            reasons.append(f"{rejected} packets before seq {seq} were rejected")
            self._lose()
        return False

    def _lose(self) -> None:
        for stream in self._word_streams.values():
            stream.lose()

    def _restart(self) -> None:
        for stream in (*self._word_streams.values(), *self._packet_streams.values()):
            stream.restart()
        self._references.clear()

    def _decode_words(
        self, packet: PacketLike, data: NDArray[np.uint8], reasons: list[str]
    ) -> Part:
        stamp = stamp_to_ns(packet.header.stamp)
        stream = self._word_streams[packet.encoding]
        part = stream.decode(
            data, packet.width, packet.height, self._hint_us(stamp), bool(packet.is_bigendian)
        )
        if stream.last_us is not None:
            first_us = int(part.t[0]) // NS_PER_US if len(part.t) else stream.last_us
            self._references.append((stamp, first_us))
        if part.was_cut:
            self.counters.cut_packets += 1
            reasons.append("the packet before was cut short inside a word")
        if part.gaps:
            reasons.append("the stream was silent for longer than half a wrap of its clock")
        return part

    def _hint_us(self, stamp_ns: int) -> int | None:
        """About where the sensor's clock stands now, from how far the host's clock has gone since
        the two packets before, as one stamp may be wrong; None where that cannot be told."""
        hints = [
            time_us + (stamp_ns - stamp_before) // NS_PER_US
            for stamp_before, time_us in self._references
            # Not of a driver that does not stamp, nor where the host's clock was set.
            if stamp_before and stamp_ns and 0 <= stamp_ns - stamp_before <= MAX_SILENCE_NS
        ]
        return min(hints, default=None)

    def _conclude(
        self,
        packet: PacketLike,
        part: Part,
        reasons: list[str],
        clock_reset: bool,
    ) -> DecodedPacket:
        counters, on_events = self.counters, int(np.count_nonzero(part.p.view(np.bool_)))
        counters.events += len(part.t)
        counters.on_events += on_events
        counters.off_events += len(part.t) - on_events
        counters.out_of_bounds_events += part.out_of_bounds
        counters.unsynchronised_events += part.unsynchronised
        counters.discarded_events += part.discarded
        counters.invalid_events += part.invalid
        counters.unknown_words += part.unknown_words
        counters.ignored_words += part.ignored_words
        counters.trigger_events += len(part.triggers)
        counters.lost_triggers += part.lost_triggers
        counters.clock_gaps += part.gaps
        counters.time_steps_back += part.steps_back
        counters.clock_resets += part.resets
        if part.resets:
            reasons.append("the sensor's clock went back by more than 10 ms")
        events = Events(part.t, part.x, part.y, part.p, packet.width, packet.height)
        from_start = not (part.discarded or part.unsynchronised)
        reset = clock_reset or part.resets > 0
        return DecodedPacket(events, "; ".join(reasons) or None, reset, from_start, part.triggers)


def payload_bytes(events: Any) -> NDArray[np.uint8]:
    """A packet's payload as read-only uint8 [bytes], without a copy where it is a buffer."""
    try:
        if isinstance(events, (list, tuple)):
            view = np.array(events, np.uint8)
        else:
            buffer = memoryview(events)
            view = np.frombuffer(buffer, np.uint8) if buffer.nbytes else np.empty(0, np.uint8)
    except (TypeError, ValueError, OverflowError, BufferError) as error:
        raise PacketError(
            f"the packet's events are {type(events).__name__}, expected contiguous bytes: {error}"
        ) from None
    if view.ndim != 1:
        raise PacketError(f"the packet's events have shape {list(view.shape)}, expected [bytes]")
    view.flags.writeable = False  # numba compiles once for all buffers
    return view


def warm_up() -> None:
    """Compiles the decoders (seconds the first time, cached then), so that no packet waits."""
    # An event off the sensor, for the ways that are taken where not all is well, too; two words, as
    # an array of one counts as contiguous whatever its strides.
    words = payload_bytes(b"\xff" * 16)
    Evt3Stream().decode(words, 1, 1)
    for vectors in (False, True):
        Evt2Stream(vectors=vectors).decode(words, 1, 1)
    LibcaerCmpStream().decode(words, 1, 1, 0, False)
    for encoding, stride in BYTES_PER_EVENT.items():
        events = words[: 13 if encoding == "event_array" else stride]
        FixedSizeStream(encoding).decode(events, 1, 1, 0, False)
