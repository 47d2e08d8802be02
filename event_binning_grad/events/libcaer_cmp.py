"""The compressed encoding of the libcaer driver: 16-bit words, each packet complete in itself.

The kind stands in the top four bits: TIME_HIGH and TIME_LOW (12 bits of us each, after the
packet's time_base, both 0 at its start), ADDR_X (the column of what follows), ADDR_Y (an event:
row in the low 11 bits, polarity in bit 11), VECT_BASE_Y (row and polarity of the next vector) and
VECT_8 (a mask of 8 rows from there on). Source: event_camera_codecs and libcaer_driver.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_binning_grad.events.part import (
    LAST,
    OUTSIDE,
    RAW,
    TALLY_PLACES,
    UNKNOWN,
    UNSYNCED,
    Part,
    event_arrays,
    native_words,
    settle_next,
    tallied_part,
    trigger_arrays,
)
from event_binning_grad.events.time_rules import UNKNOWN_TIME

TIME_HIGH = 0x0
TIME_LOW = 0x1
ADDR_X = 0x2
ADDR_Y = 0x3
VECT_BASE_Y = 0x4
VECT_8 = 0x5
WORD_BYTES = 2

_COORDINATE_MASK = 0x7FF
# The driver keeps but 4 bits of TIME_HIGH: it wraps after 65.5 ms in a packet that lasts so long.
_DRIVERS_HIGHS = 16


class LibcaerCmpStream:
    """Decodes a stream of libcaer_cmp packets; only the time is carried on."""

    def __init__(self) -> None:
        self._state = np.zeros(2, np.int64)
        self.restart()

    def restart(self) -> None:
        """Forgets the time: another stream begins."""
        self._state[:] = UNKNOWN_TIME

    def decode(
        self, data: NDArray[np.uint8], width: int, height: int, time_base: int, big_endian: bool
    ) -> Part:
        """Decodes a packet; t is time_base plus the event's own time, in ns, never decreasing.

        data: uint8 [bytes], read-only, a whole number of words.
        """
        words = native_words(data, big_endian, np.uint16)
        t, x, y, p = event_arrays(_capacity(words))
        tally = np.zeros(TALLY_PLACES, np.int64)
        n = _decode(words, width, height, time_base, self._state, tally, t, x, y, p)
        return tallied_part((t, x, y, p), n, trigger_arrays(0), tally, was_cut=False)


@njit(nogil=True, cache=True)
def _capacity(words):
    """How many events the words hold at most."""
    count = 0
    for i in range(len(words)):
        kind = words[i] >> 12
        count += (kind == ADDR_Y) + 8 * (kind == VECT_8)
    return count


@njit(nogil=True, cache=True)
def _decode(words, width, height, time_base, state, tally, t, x, y, p):
    """Writes the events to t, x, y, p; returns how many."""
    n, column, row, polarity = 0, np.int64(-1), np.int64(-1), np.int64(0)
    high, low, now = np.int64(0), np.int64(0), np.int64(time_base)
    for i in range(len(words)):
        word = np.int64(words[i])
        kind, value = word >> 12, word & 0xFFF
        if kind in (ADDR_Y, VECT_8):
            if kind == ADDR_Y:
                first, mask, on = value & _COORDINATE_MASK, np.int64(1), value >> 11
            else:
                first, mask, on = row, value & 0xFF, polarity
                if row >= 0:
                    row += 8
            at = first
            while mask:
                if mask & 1:
                    if column < 0 or first < 0:
                        tally[UNSYNCED] += 1
                    elif column < width and at < height:
                        settled = now == state[RAW]
                        t[n] = state[LAST] if settled else settle_next(now, n, 0, state, tally)
                        x[n], y[n], p[n] = column, at, on
                        n += 1
                    else:
                        tally[OUTSIDE] += 1
                mask >>= 1
                at += 1
        elif kind == ADDR_X:
            column = value & _COORDINATE_MASK
        elif kind == TIME_LOW:
            low = value
            now = time_base + ((high << 12) | low) * 1000
        elif kind == TIME_HIGH:
            before = high % _DRIVERS_HIGHS
            if value < _DRIVERS_HIGHS and value <= before - _DRIVERS_HIGHS // 2:
                high += _DRIVERS_HIGHS - before + value
            elif value < _DRIVERS_HIGHS and high >= _DRIVERS_HIGHS and value >= before:
                high += value - before
            else:
                high = value
            # The low bits follow only where they change, with the time of the event before.
            now = time_base + ((high << 12) | low) * 1000
        elif kind == VECT_BASE_Y:
            row, polarity = value & _COORDINATE_MASK, value >> 11
        else:
            tally[UNKNOWN] += 1
    return n
