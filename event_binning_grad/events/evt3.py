"""EVT 3.0 of Prophesee's sensors: 16-bit words that make sense only after the words before them.

The `evt3` package decodes the same words, but it neither counts what it skips (unknown words,
triggers, pixels outside the sensor) nor keeps its count of clock wraps over `reset()`, so after a
lost packet either events get the row and time of other events or the clock jumps by 16.8 s. Hence
this decoder; the package serves as a second opinion in the tests.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_binning_grad.events.part import (
    FIRST,
    FIRST_TRIGGER,
    GAPS,
    IGNORED,
    LOST_TRIGGERS,
    OUTSIDE,
    RESETS,
    STEPS_BACK,
    TALLY_PLACES,
    TRIGGERS,
    UNKNOWN,
    UNSYNCED,
    Part,
    WordCutter,
    event_arrays,
    tallied_part,
    trigger_arrays,
)
from event_binning_grad.events.time_rules import UNKNOWN_TIME, settle

# The type of a word stands in its top four bits.
ADDR_Y = 0x0
ADDR_X = 0x2
VECT_BASE_X = 0x3
VECT_12 = 0x4
VECT_8 = 0x5
TIME_LOW = 0x6
CONTINUED_4 = 0x7
TIME_HIGH = 0x8
EXT_TRIGGER = 0xA
OTHERS = 0xE
CONTINUED_12 = 0xF

COORDINATE_MASK = 0x7FF
POLARITY_SHIFT = 11
LOW_BITS = 12
HIGHS_PER_WRAP = 1 << 12  # TIME_HIGH counts 4.096 ms and wraps after 16.777 s
US_PER_WRAP = 1 << 24
NO_HINT = -1
# A sensor's clock that is further ahead of the host's than this (1 s) began anew: arrivals are
# late, never early.
_MAX_AHEAD = 1 << 8

_DEFINED_WORDS = (
    ADDR_Y, ADDR_X, VECT_BASE_X, VECT_12, VECT_8, TIME_LOW, CONTINUED_4, TIME_HIGH, EXT_TRIGGER,
    OTHERS, CONTINUED_12,
)  # fmt: skip
# What is known of the time: nothing, the TIME_HIGH only, or all of it.
_TIME_UNKNOWN, _HIGH_KNOWN, _TIME_KNOWN = 0, 1, 2

# Places in the state, which numba wants as one array: _LAST is the time of the last event, _RAW
# that of the last TIME_LOW, both in ns.
_HIGH, _LOW, _SYNC, _ROW, _BASE, _BASE_P, _LAST, _RAW = range(8)


class Evt3Stream:
    """Decodes one stream of EVT 3.0 words, cut into chunks at any byte."""

    def __init__(self) -> None:
        self._state = np.zeros(8, np.int64)
        self._cutter = WordCutter(2, _DEFINED_WORDS)
        self.restart()

    def restart(self) -> None:
        """Forgets everything, the count of clock wraps too: another stream begins."""
        self._state[[_HIGH, _LAST, _RAW]] = -1, UNKNOWN_TIME, UNKNOWN_TIME
        self.lose()

    def lose(self) -> None:
        """Bytes are missing: no event until time and row are known again.

        The wraps counted so far are kept. The next chunk is taken to begin with a whole word.
        """
        self._state[[_SYNC, _ROW, _BASE]] = _TIME_UNKNOWN, -1, -1
        self._cutter.lose()

    @property
    def last_us(self) -> int | None:
        """Time of the last TIME_LOW in us, wraps included; None as long as it is unknown."""
        return int(self._state[_RAW]) // 1000 if self._state[_SYNC] == _TIME_KNOWN else None

    def decode(
        self,
        data: NDArray[np.uint8],
        width: int,
        height: int,
        hint_us: int | None = None,
        big_endian: bool = False,
    ) -> Part:
        """Decodes a chunk; t is the unwrapped sensor time in ns, never decreasing.

        data: uint8 [bytes], read-only. hint_us: where the sensor's clock stands at the chunk's
        first word, by the host's: up to 15 s ahead of it, as arrivals are late, but not 1 s behind.
        It settles how often the clock wrapped in silence, and whether it began anew.
        """
        high_byte = 0 if big_endian else 1
        data, was_cut = self._cutter.cut(data, big_endian)
        if was_cut:
            self._state[[_SYNC, _ROW, _BASE]] = _TIME_UNKNOWN, -1, -1
        capacity, edges_at_most = _capacity(data, high_byte)
        t, x, y, p = event_arrays(capacity)
        edges = trigger_arrays(edges_at_most)
        hint = NO_HINT if hint_us is None else hint_us >> LOW_BITS
        tally = np.zeros(TALLY_PLACES, np.int64)
        n = _decode(data, high_byte, width, height, hint, self._state, tally, t, x, y, p, *edges)
        return tallied_part((t, x, y, p), n, edges, tally, was_cut)


@njit(nogil=True, cache=True)
def _capacity(data, high_byte):
    """How many events and triggers the words hold at most."""
    count, edges = 0, 0
    for k in range(len(data) // 2):
        kind = data[2 * k + high_byte] >> 4
        count += (kind == ADDR_X) + 12 * (kind == VECT_12) + 8 * (kind == VECT_8)
        edges += kind == EXT_TRIGGER
    return count, edges


@njit(nogil=True, cache=True)
def _nearest_high(reference, counter):
    """The unwrapped TIME_HIGH nearest to the reference that shows this 12-bit counter."""
    ahead = (counter - reference + HIGHS_PER_WRAP // 2) & (HIGHS_PER_WRAP - 1)
    return reference + ahead - HIGHS_PER_WRAP // 2


@njit(nogil=True, cache=True)
def _hinted_high(hint, counter):
    """The last unwrapped TIME_HIGH up to the hint that shows this 12-bit counter."""
    new_high = hint + ((counter - hint) & (HIGHS_PER_WRAP - 1))
    if new_high > hint + _MAX_AHEAD and new_high >= HIGHS_PER_WRAP:
        new_high -= HIGHS_PER_WRAP
    return new_high


@njit(nogil=True, cache=True)
def _decode(
    data, high_byte, width, height, hint, state, tally, t, x, y, p, edge_t, edge_p, edge_channel
):
    """Writes the events to t, x, y, p; returns how many. See the module for the words."""
    high, low, sync, row = state[_HIGH], state[_LOW], state[_SYNC], state[_ROW]
    base, base_p, last, raw = state[_BASE], state[_BASE_P], state[_LAST], state[_RAW]
    now = ((high << LOW_BITS) | low) * 1000
    n = 0
    for k in range(len(data) // 2):
        upper = np.int64(data[2 * k + high_byte])
        value = ((upper & 0xF) << 8) | np.int64(data[2 * k + 1 - high_byte])
        kind = upper >> 4
        if kind == ADDR_X:
            column = value & COORDINATE_MASK
            if sync != _TIME_KNOWN or row < 0:
                tally[UNSYNCED] += 1
            elif column < width and row < height:
                last = max(last, now)
                t[n], x[n], y[n], p[n] = last, column, row, value >> POLARITY_SHIFT
                n += 1
            else:
                tally[OUTSIDE] += 1
        elif kind == ADDR_Y:
            row = value & COORDINATE_MASK
        elif kind == TIME_LOW:
            low = value
            now = ((high << LOW_BITS) | low) * 1000
            if sync != _TIME_UNKNOWN:
                sync = _TIME_KNOWN
                _, is_back, is_reset = settle(now, last, raw)
                tally[STEPS_BACK] += is_back
                raw = now
                if is_reset:
                    # Another clock: time goes on from here, and what came before in this chunk
                    # cannot stand in one ordered array with what follows.
                    tally[RESETS] += 1
                    tally[FIRST], tally[FIRST_TRIGGER] = n, tally[TRIGGERS]
                    last = now
        elif kind in (VECT_12, VECT_8):
            length = 12 if kind == VECT_12 else 8
            for bit in range(length):
                if (value >> bit) & 1:
                    column = base + bit
                    if sync != _TIME_KNOWN or row < 0 or base < 0:
                        tally[UNSYNCED] += 1
                    elif column < width and row < height:
                        last = max(last, now)
                        t[n], x[n], y[n], p[n] = last, column, row, base_p
                        n += 1
                    else:
                        tally[OUTSIDE] += 1
            if base >= 0:
                base += length
        elif kind == VECT_BASE_X:
            base, base_p = value & COORDINATE_MASK, value >> POLARITY_SHIFT
        elif kind == TIME_HIGH:
            if high < 0 and hint == NO_HINT:
                new_high = value
            elif hint != NO_HINT:
                # Behind an event it may come late in the chunk, and no word tells how late.
                new_high = _hinted_high(hint, value) if n == 0 else _nearest_high(hint, value)
                if sync == _TIME_KNOWN and new_high > max(high, _nearest_high(high, value)):
                    tally[GAPS] += 1
            else:
                new_high = _nearest_high(high, value)
            hint = NO_HINT  # it speaks of the chunk's first word only
            # Until the next TIME_LOW the low bits are the ones nearest to the last time, so that
            # an event in between is off by as little as can be.
            if new_high != high:
                low = 0 if new_high > high else (1 << LOW_BITS) - 1
            high = new_high
            now = ((high << LOW_BITS) | low) * 1000
            if sync == _TIME_UNKNOWN:
                sync = _HIGH_KNOWN
        elif kind == EXT_TRIGGER:
            if sync == _TIME_KNOWN:
                k = tally[TRIGGERS]
                last = max(last, now)
                edge_t[k], edge_p[k], edge_channel[k] = last, value & 1, value >> 8
                tally[TRIGGERS] = k + 1
            else:
                tally[LOST_TRIGGERS] += 1
        elif kind in (OTHERS, CONTINUED_4, CONTINUED_12):
            tally[IGNORED] += 1
        else:
            tally[UNKNOWN] += 1
    state[_HIGH], state[_LOW], state[_SYNC], state[_ROW] = high, low, sync, row
    state[_BASE], state[_BASE_P], state[_LAST], state[_RAW] = base, base_p, last, raw
    return n
