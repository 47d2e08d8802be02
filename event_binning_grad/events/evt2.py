"""EVT 2.0 and EVT 2.1 of Prophesee's sensors: words of 32 and 64 bits.

The upper half of an EVT 2.1 word is laid out as a word of EVT 2.0: [28-31] kind, [22-27] the low
bits of the time in us, [11-21] x, [0-10] y; its lower half is a mask of 32 pixels from x on. A
TIME_HIGH word holds the 28 high bits of the time, which wraps after 4 h 46 min. Source:
Prophesee's documentation of its encoding formats.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_binning_grad.events.part import (
    GAPS,
    IGNORED,
    LAST,
    LOST_TRIGGERS,
    OUTSIDE,
    RAW,
    TALLY_PLACES,
    TRIGGERS,
    UNKNOWN,
    UNSYNCED,
    Part,
    WordCutter,
    event_arrays,
    native_words,
    settle_next,
    tallied_part,
    trigger_arrays,
)
from event_binning_grad.events.time_rules import UNKNOWN_TIME

CD_OFF = 0x0
CD_ON = 0x1
TIME_HIGH = 0x8
EXT_TRIGGER = 0xA
OTHERS = 0xE
CONTINUED = 0xF
LOW_BITS = 6
HIGHS_PER_WRAP = 1 << 28
COORDINATE_MASK = 0x7FF
X_SHIFT = 11
LOW_SHIFT = 22
KIND_SHIFT = 28
NO_HINT = -1
# A TIME_HIGH so far ahead (36 min) is no progress of the clock but another clock.
_MAX_AHEAD = HIGHS_PER_WRAP // 8

# Places in the state behind LAST and RAW: the unwrapped TIME_HIGH, whether it is of now.
_HIGH, _SYNC = range(2, 4)
_KINDS = (CD_OFF, CD_ON, TIME_HIGH, EXT_TRIGGER, OTHERS, CONTINUED)


class Evt2Stream:
    """Decodes one stream of EVT 2.0 words (vectors=False) or EVT 2.1 (True), cut at any byte.

    EVT 2.1 comes in two orders of its halves: a 64-bit word sent whole, lower half first
    (GenX320), or upper half first ("legacy", IMX636); which one it is shows in the words that
    have an empty lower half (TIME_HIGH, EXT_TRIGGER).
    """

    def __init__(self, *, vectors: bool = False) -> None:
        self._vectors = vectors
        self._cutter = WordCutter(8 if vectors else 4, _KINDS)
        self._state = np.zeros(4, np.int64)
        self.restart()

    def restart(self) -> None:
        """Forgets everything, the count of clock wraps too: another stream begins."""
        self._state[:] = UNKNOWN_TIME, UNKNOWN_TIME, -1, 0
        self._upper_first: bool | None = None
        self._cutter.type_at = 7 if self._vectors else 3
        self._cutter.lose()

    def lose(self) -> None:
        """Bytes are missing: no event until the next TIME_HIGH; counted wraps are kept."""
        self._state[_SYNC] = 0
        self._cutter.lose()

    @property
    def last_us(self) -> int | None:
        """Time of the last TIME_HIGH in us, wraps included; None as long as it is unknown."""
        return int(self._state[_HIGH]) << LOW_BITS if self._state[_SYNC] else None

    def decode(
        self,
        data: NDArray[np.uint8],
        width: int,
        height: int,
        hint_us: int | None = None,
        big_endian: bool = False,
    ) -> Part:
        """Decodes a chunk; t is the unwrapped sensor time in ns, never decreasing.

        data: uint8 [bytes], read-only. hint_us: about where the sensor's clock must stand at the
        chunk's first word; it settles how often the clock wrapped in silence.
        """
        data, was_cut = self._cutter.cut(data, big_endian)
        if was_cut:
            self.lose()
        if self._vectors:
            upper, masks = self._halves(data, big_endian)
            capacity = _count_bits(upper, masks)
        else:
            upper = native_words(data, big_endian, np.uint32)
            masks = np.empty(0, np.uint32)
            masks.flags.writeable = False
            capacity = len(upper)
        t, x, y, p = event_arrays(capacity)
        edges = trigger_arrays(_count_kind(upper, EXT_TRIGGER))
        tally = np.zeros(TALLY_PLACES, np.int64)
        hint = NO_HINT if hint_us is None else hint_us >> LOW_BITS
        kernel = _decode_vectors if self._vectors else _decode_single
        n = kernel(upper, masks, width, height, hint, self._state, tally, t, x, y, p, *edges)
        return tallied_part((t, x, y, p), n, edges, tally, was_cut)

    def _halves(
        self, data: NDArray[np.uint8], big_endian: bool
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """The upper and lower halves of 64-bit words, each uint32 [words]."""
        halves = native_words(data, big_endian, np.uint32)
        if self._upper_first is None:
            votes = _order_votes(halves)
            if votes:
                self._upper_first = votes > 0
        # A 64-bit word sent whole begins with its upper half in big-endian order.
        upper_first = big_endian if self._upper_first is None else self._upper_first
        lower_at = 1 if upper_first else 0
        self._cutter.type_at = 3 if upper_first and not big_endian else 7
        return halves[1 - lower_at :: 2], halves[lower_at::2]


@njit(nogil=True, cache=True)
def _order_votes(halves):
    """Words that show the upper half first, less those that show it last."""
    votes = 0
    for i in range(0, len(halves) - 1, 2):
        a, b = halves[i], halves[i + 1]
        votes += (b == 0 and a >> 28 in (TIME_HIGH, EXT_TRIGGER)) - (
            a == 0 and b >> 28 in (TIME_HIGH, EXT_TRIGGER)
        )
    return votes


@njit(nogil=True, cache=True)
def _count_kind(words, kind):
    count = 0
    for i in range(len(words)):
        count += np.int64(words[i] >> np.uint32(KIND_SHIFT)) == kind
    return count


@njit(nogil=True, cache=True)
def _bits(mask):
    """How many bits are set, in 32."""
    mask = mask - ((mask >> np.uint32(1)) & np.uint32(0x55555555))
    mask = (mask & np.uint32(0x33333333)) + ((mask >> np.uint32(2)) & np.uint32(0x33333333))
    mask = (mask + (mask >> np.uint32(4))) & np.uint32(0x0F0F0F0F)
    return np.int64((mask * np.uint32(0x01010101) & np.uint32(0xFFFFFFFF)) >> np.uint32(24))


@njit(nogil=True, cache=True)
def _count_bits(upper, masks):
    """How many events the vectors hold."""
    count = 0
    for i in range(len(upper)):
        if upper[i] >> np.uint32(KIND_SHIFT) <= CD_ON:
            count += _bits(masks[i])
    return count


@njit(nogil=True, cache=True)
def _unwrapped(reference, counter):
    """The unwrapped TIME_HIGH that shows this 28-bit counter, going on from the reference."""
    ahead = (counter - reference) & (HIGHS_PER_WRAP - 1)
    if ahead < _MAX_AHEAD:
        return reference + ahead
    back = reference + ahead - HIGHS_PER_WRAP
    return back if back >= 0 else counter


@njit(nogil=True, cache=True)
def _other_word(kind, word, hint, n, state, tally, edge_t, edge_p, edge_channel):
    """Takes a word that holds no event; returns the hint for the next TIME_HIGH."""
    if kind == TIME_HIGH:
        value = word & (HIGHS_PER_WRAP - 1)
        high = state[_HIGH]
        if hint != NO_HINT:
            new_high = _unwrapped(hint, value)
            if high >= 0 and state[_SYNC] and new_high != _unwrapped(high, value):
                tally[GAPS] += 1
        elif high >= 0:
            new_high = _unwrapped(high, value)
        else:
            new_high = value
        state[_HIGH], state[_SYNC] = new_high, 1
        return NO_HINT  # it speaks of the chunk's first word only
    if kind == EXT_TRIGGER:
        if state[_SYNC]:
            k = tally[TRIGGERS]
            low = (word >> LOW_SHIFT) & 0x3F
            now = ((state[_HIGH] << LOW_BITS) | low) * 1000
            edge_t[k] = settle_next(now, n, k, state, tally)
            edge_p[k], edge_channel[k] = word & 1, (word >> 8) & 0x1F
            tally[TRIGGERS] = k + 1
        else:
            tally[LOST_TRIGGERS] += 1
    elif kind in (OTHERS, CONTINUED):
        tally[IGNORED] += 1
    else:
        tally[UNKNOWN] += 1
    return hint


@njit(nogil=True, cache=True)
def _decode_single(
    words, _masks, width, height, hint, state, tally, t, x, y, p, edge_t, edge_p, edge_channel
):
    """Writes the events of EVT 2.0 to t, x, y, p; returns how many."""
    n = 0
    base, last, synced = state[_HIGH] << LOW_BITS, state[LAST], state[_SYNC] != 0
    outside, unsynced = 0, 0
    for i in range(len(words)):
        word = np.int64(words[i])
        kind = word >> KIND_SHIFT
        if kind <= CD_ON:
            column, row = (word >> X_SHIFT) & COORDINATE_MASK, word & COORDINATE_MASK
            if not synced:
                unsynced += 1
            elif column < width and row < height:
                now = (base | ((word >> LOW_SHIFT) & 0x3F)) * 1000
                if now < last:
                    state[LAST] = last
                    # Times that did not fall are settled below: the raw one is the last one then.
                    now = settle_next(now, n, tally[TRIGGERS], state, tally)
                    last = now
                else:
                    last = now
                    state[RAW] = now
                t[n], x[n], y[n], p[n] = now, column, row, kind
                n += 1
            else:
                outside += 1
        else:
            state[LAST] = last
            hint = _other_word(kind, word, hint, n, state, tally, edge_t, edge_p, edge_channel)
            base, last, synced = state[_HIGH] << LOW_BITS, state[LAST], state[_SYNC] != 0
    state[LAST] = last
    tally[OUTSIDE] += outside
    tally[UNSYNCED] += unsynced
    return n


@njit(nogil=True, cache=True)
def _decode_vectors(
    upper, masks, width, height, hint, state, tally, t, x, y, p, edge_t, edge_p, edge_channel
):
    """Writes the events of EVT 2.1 to t, x, y, p; returns how many."""
    n = 0
    for i in range(len(upper)):
        word = np.int64(upper[i])
        kind = word >> KIND_SHIFT
        if kind > CD_ON:
            hint = _other_word(kind, word, hint, n, state, tally, edge_t, edge_p, edge_channel)
            continue
        mask = masks[i]
        if not state[_SYNC]:
            tally[UNSYNCED] += _bits(mask)
            continue
        first, row = (word >> X_SHIFT) & COORDINATE_MASK, word & COORDINATE_MASK
        inside = mask
        if row >= height or first >= width:
            inside = np.uint32(0)
        elif first + 32 > width:
            inside = mask & np.uint32((1 << (width - first)) - 1)
        if inside != mask:
            tally[OUTSIDE] += _bits(mask ^ inside)
        if inside == 0:
            continue
        now = ((state[_HIGH] << LOW_BITS) | ((word >> LOW_SHIFT) & 0x3F)) * 1000
        now = settle_next(now, n, tally[TRIGGERS], state, tally)
        rest = np.int64(inside)
        column = first
        while rest:
            if rest & 1:
                t[n], x[n], y[n], p[n] = now, column, row, kind
                n += 1
            rest >>= 1
            column += 1
    return n
