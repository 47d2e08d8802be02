"""From events to EVT 3.0 packets, as a camera driver would send them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.events.evt3 import (
    ADDR_X,
    ADDR_Y,
    COORDINATE_MASK,
    LOW_BITS,
    POLARITY_SHIFT,
    TIME_HIGH,
    TIME_LOW,
)
from event_binning_grad.events.types import (
    NS_PER_MS,
    NS_PER_S,
    NS_PER_US,
    EventPacket,
    Events,
    Header,
    stamp_at,
)
from event_binning_grad.events.windows import WindowBuffer

MAX_SILENCE_NS = 24 * 3600 * NS_PER_S
TIME_WORDS_PERIOD_NS = 4 * NS_PER_S
_WORDS_PER_EVENT = 4  # TIME_HIGH, TIME_LOW, ADDR_Y, ADDR_X
# In a silence TIME_HIGH words must come often enough to show every wrap of their 12 bits.
_MAX_HIGH_STEP = 1 << 10
_HIGH, _LOW, _ROW = range(3)


class Evt3Encoder:
    """Encodes one stream of events as EVT 3.0 words (without vectors).

    Times are cut to whole microseconds, and their 24 low bits are kept, as the format has them.
    """

    def __init__(self) -> None:
        self._state = np.full(3, -1, np.int64)
        self._last_ns: int | None = None

    def encode(self, events: Events, *, new_packet: bool = True) -> bytes:
        """The words of events that follow the ones before, little-endian.

        new_packet: begin with TIME_HIGH and ADDR_Y, as the packets of a camera do, so that a
        decoder finds its way again after a lost packet.
        Raises EventBinningError for events that EVT 3.0 cannot hold.
        """
        if not len(events):
            return b""
        self._check(events)
        t_us = events.t // NS_PER_US
        high = int(self._state[_HIGH]) if self._last_ns is not None else int(t_us[0]) >> LOW_BITS
        fillers = ((int(t_us[-1]) >> LOW_BITS) - high) // _MAX_HIGH_STEP
        words = np.empty(_WORDS_PER_EVENT * len(events) + fillers, "<u2")
        n = _encode(t_us, events.x, events.y, events.p, new_packet, self._state, words)
        self._last_ns = int(events.t[-1])
        return words[:n].tobytes()

    def time_words(self, t_ns: int) -> bytes:
        """Words that only say what time it is, as a camera sends while nothing moves."""
        t_us = int(t_ns) // NS_PER_US
        high, low = t_us >> LOW_BITS, t_us & 0xFFF
        self._state[_HIGH], self._state[_LOW], self._last_ns = high, low, int(t_ns)
        return np.array([TIME_HIGH << 12 | high & 0xFFF, TIME_LOW << 12 | low], "<u2").tobytes()

    def _check(self, events: Events) -> None:
        x, y = int(events.x.max()), int(events.y.max())
        if max(x, y) > COORDINATE_MASK:
            raise EventBinningError(
                f"events reach x {x} and y {y}: EVT 3.0 holds 0 to {COORDINATE_MASK}"
            )
        first = int(events.t[0])
        steps = np.diff(events.t, prepend=first if self._last_ns is None else self._last_ns)
        if first < 0 or int(steps.min()) < 0:
            raise EventBinningError(
                "event times are negative or run backwards: sort the events by time first"
            )
        _check_silence(int(steps.max()))


def _check_silence(gap_ns: int) -> None:
    if gap_ns > MAX_SILENCE_NS:
        raise EventBinningError(
            f"the events have a gap of {gap_ns / NS_PER_S:.0f} s: EVT 3.0 would need words every "
            "few seconds to bridge more than a day; split the recording"
        )


def encode_evt3(events: Events) -> bytes:
    """The EVT 3.0 words of one stretch of events, decodable alone."""
    return Evt3Encoder().encode(events)


def packetize(
    events: Events | Iterable[Events],
    packet_ms: float = 4.0,
    *,
    frame_id: str = "event_camera",
    first_seq: int = 0,
) -> Iterator[EventPacket]:
    """Packets of packet_ms each in encoding "evt3", as a camera driver would publish them.

    events: one stretch of events or an iterable of consecutive ones (streamed).
    header.stamp is the time of the packet's first event; seq counts from first_seq. The packets
    form one stateful stream: each builds on the ones before. Where there are no events there are
    no packets, but one of time words every 4 s, so that no wrap of the 24-bit clock goes unseen.
    """
    if not packet_ms > 0.0:
        raise ConfigError(f"packet_ms is {packet_ms}, expected more than 0")
    encoder, seq, last_ns = Evt3Encoder(), count(first_seq), None
    for slot in _slots(events, max(1, round(packet_ms * NS_PER_MS))):
        first_ns = int(slot.t[0])
        last_ns = first_ns if last_ns is None else last_ns
        _check_silence(first_ns - last_ns)
        while first_ns - last_ns > TIME_WORDS_PERIOD_NS:
            last_ns += TIME_WORDS_PERIOD_NS
            yield _packet(encoder.time_words(last_ns), last_ns, slot, next(seq), frame_id)
        yield _packet(encoder.encode(slot), first_ns, slot, next(seq), frame_id)
        last_ns = int(slot.t[-1])


def _slots(events: Events | Iterable[Events], slot_ns: int) -> Iterator[Events]:
    """The events cut into slots of time; each is valid until the next one is asked for."""
    slots = WindowBuffer(window_ns=slot_ns)
    for chunk in [events] if isinstance(events, Events) else events:
        yield from (slot.events for slot in slots.push(chunk))
    last = slots.flush()
    if last is not None:
        yield last.events


def _packet(words: bytes, first_ns: int, events: Events, seq: int, frame_id: str) -> EventPacket:
    # Cut to us like the events' own times, so that both clocks differ by a constant.
    stamp = stamp_at(first_ns // NS_PER_US * NS_PER_US)
    return EventPacket(
        header=Header(stamp, frame_id),
        height=events.height,
        width=events.width,
        seq=seq,
        time_base=0,
        encoding="evt3",
        is_bigendian=False,
        events=np.frombuffer(words, np.uint8),
    )


@njit(nogil=True, cache=True)
def _encode(t_us, x, y, p, new_packet, state, words):
    """Writes the words; returns how many. A word is repeated only where its value changes."""
    high, low, row = state[_HIGH], state[_LOW], state[_ROW]
    n = 0
    for i in range(len(t_us)):
        new_high = t_us[i] >> LOW_BITS
        if new_high != high or (new_packet and i == 0):
            if new_high != high:
                low = -1  # TIME_LOW counts from the TIME_HIGH before it
            while high >= 0 and new_high - high > _MAX_HIGH_STEP:
                high += _MAX_HIGH_STEP
                words[n] = (TIME_HIGH << 12) | (high & 0xFFF)
                n += 1
            high = new_high
            words[n] = (TIME_HIGH << 12) | (high & 0xFFF)
            n += 1
        if (t_us[i] & 0xFFF) != low:
            low = t_us[i] & 0xFFF
            words[n] = (TIME_LOW << 12) | low
            n += 1
        if y[i] != row or (new_packet and i == 0):
            row = np.int64(y[i])
            words[n] = (ADDR_Y << 12) | row
            n += 1
        words[n] = (ADDR_X << 12) | (np.int64(p[i]) << POLARITY_SHIFT) | np.int64(x[i])
        n += 1
    state[_HIGH], state[_LOW], state[_ROW] = high, low, row
    return n


def encode_evt2(events: Events) -> tuple[int, NDArray[np.uint8]]:
    """time_base and EVT 2.0 words of one stretch of events, decodable alone."""
    return 0, _evt2_words(events, np.ones(len(events), bool))[0].view(np.uint8)


def encode_evt21(events: Events) -> tuple[int, NDArray[np.uint8]]:
    """time_base and EVT 2.1 words (the whole 64 bits little-endian); decodable alone.

    Neighbours in the stream that share time, row, polarity and a block of 32 columns, with rising
    columns, form one word.
    """
    t_us, block, x = events.t // NS_PER_US, events.x >> 5, events.x
    begins = np.ones(len(events), bool)
    begins[1:] = (
        (np.diff(t_us) != 0)
        | (block[1:] != block[:-1])
        | (events.y[1:] != events.y[:-1])
        | (events.p[1:] != events.p[:-1])
        | (x[1:] <= x[:-1])
    )
    bits = np.left_shift(np.uint64(1), (x & 31).astype(np.uint64))
    at = np.flatnonzero(begins)
    masks = np.bitwise_or.reduceat(bits, at) if len(at) else bits
    aligned = Events(events.t, (block << 5).astype(np.uint16), events.y, events.p, 2048, 2048)
    upper, is_event = _evt2_words(aligned, begins)
    words = upper.astype("<u8") << np.uint64(32)
    words[is_event] |= masks
    return 0, words.view(np.uint8)


def _evt2_words(
    events: Events, begins: NDArray[np.bool_]
) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Words of the events where begins, with TIME_HIGH before each change of the high bits; and
    which of the words are events."""
    t_us = events.t[begins] // NS_PER_US
    high = t_us >> 6
    changes = np.ones(len(high), bool)
    changes[1:] = np.diff(high) != 0
    place = np.arange(len(high)) + np.cumsum(changes)
    words = np.empty(len(high) + int(changes.sum()), "<u4")
    words[place] = (
        (events.p[begins].astype(np.uint32) << 28)
        | ((t_us & 0x3F) << 22).astype(np.uint32)
        | (events.x[begins].astype(np.uint32) << 11)
        | events.y[begins]
    )
    words[place[changes] - 1] = (0x8 << 28 | (high[changes] & 0xFFFFFFF)).astype(np.uint32)
    is_event = np.zeros(len(words), bool)
    is_event[place] = True
    return words, is_event


def encode_mono(events: Events) -> tuple[int, NDArray[np.uint8]]:
    """time_base and mono words of events that span less than 4.29 s."""
    base = int(events.t[0]) if len(events) else 0
    words = (events.t - base).astype("<u8")
    for values, shift in ((events.x, 32), (events.y, 48), (events.p, 63)):
        words |= values.astype("<u8") << np.uint64(shift)
    return base, words.view(np.uint8)


def encode_libcaer(events: Events) -> tuple[int, NDArray[np.uint8]]:
    """time_base and libcaer polarity events, of events that span less than 35 min."""
    base = int(events.t[0]) if len(events) else 0
    words = np.empty((len(events), 2), "<u4")
    words[:, 0] = events.x.astype(np.uint32) << 17 | events.y.astype(np.uint32) << 2
    words[:, 0] |= events.p.astype(np.uint32) << 1 | np.uint32(1)
    words[:, 1] = (events.t - base) // NS_PER_US
    return base, words.reshape(-1).view(np.uint8)


def encode_libcaer_cmp(events: Events) -> tuple[int, NDArray[np.uint8]]:
    """time_base and libcaer_cmp words, of events that span less than 65 ms."""
    base = int(events.t[0]) if len(events) else 0
    words = np.empty(4 * len(events), "<u2")
    t_us = (events.t - base) // NS_PER_US
    n = _encode_libcaer_cmp(t_us, events.x, events.y, events.p, words)
    return base, words[:n].view(np.uint8)


@njit(nogil=True, cache=True)
def _encode_libcaer_cmp(t_us, x, y, p, words):
    high, low, column, n = np.int64(0), np.int64(0), np.int64(-1), 0
    for i in range(len(t_us)):
        if t_us[i] >> 12 != high:
            high = t_us[i] >> 12
            words[n] = high & 0xFFF
            n += 1
        if t_us[i] & 0xFFF != low:
            low = t_us[i] & 0xFFF
            words[n] = 0x1 << 12 | low
            n += 1
        if x[i] != column:
            column = np.int64(x[i])
            words[n] = 0x2 << 12 | column
            n += 1
        words[n] = 0x3 << 12 | np.int64(p[i]) << 11 | np.int64(y[i])
        n += 1
    return n


def encode_event_array(events: Events) -> tuple[int, NDArray[np.uint8]]:
    """time_base (0) and the events of an EventArray as CDR lays them out (ROS 2)."""
    n = len(events)
    rows = np.zeros((n + 1, 8), "<u2")  # by the places of the second and later events
    place = rows.reshape(-1)
    rows[:n, 2:6].reshape(n, 4)[:] = _seconds(events).view("<u2").reshape(n, 4)
    rows[:n, 6] = events.p
    place[0:2] = (events.x[0], events.y[0]) if n else (0, 0)
    if n > 1:
        rows[: n - 1, 7] = events.x[1:]
        rows[1:n, 0] = events.y[1:]
    return 0, place.view(np.uint8)[: max(0, 16 * n - 3)]


def encode_event_array_ros1(events: Events) -> tuple[int, NDArray[np.uint8]]:
    """time_base (0) and the events of an EventArray as ROS 1 packs them."""
    rows = np.empty(len(events), [("x", "<u2"), ("y", "<u2"), ("t", "<u4", 2), ("p", "u1")])
    rows["x"], rows["y"], rows["p"] = events.x, events.y, events.p
    rows["t"] = _seconds(events).reshape(-1, 2)
    return 0, rows.view(np.uint8)


def encode_dv(events: Events) -> tuple[int, NDArray[np.uint8]]:
    """time_base (0) and the events as dv-processing keeps them."""
    fields = [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "i1"), ("padding", "V3")]
    rows = np.zeros(len(events), fields)
    rows["t"], rows["p"] = events.t // NS_PER_US, events.p
    rows["x"], rows["y"] = events.x, events.y
    return 0, rows.view(np.uint8)


def _seconds(events: Events) -> NDArray[np.uint32]:
    """Seconds and ns of each event, in turn."""
    return np.stack(np.divmod(events.t, NS_PER_S), axis=1).astype("<u4").reshape(-1)


def _evt3_alone(events: Events) -> tuple[int, NDArray[np.uint8]]:
    return 0, np.frombuffer(encode_evt3(events), np.uint8)


# By encoding: events to time_base and payload, each packet decodable alone.
ENCODERS: dict[str, Callable[[Events], tuple[int, NDArray[np.uint8]]]] = {
    "evt3": _evt3_alone,
    "evt2": encode_evt2,
    "evt21": encode_evt21,
    "libcaer": encode_libcaer,
    "libcaer_cmp": encode_libcaer_cmp,
    "mono": encode_mono,
    "event_array": encode_event_array,
    "event_array_ros1": encode_event_array_ros1,
    "dv": encode_dv,
}
