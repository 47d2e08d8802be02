"""Encodings with eight bytes an event: `mono` and `libcaer`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_binning_grad.errors import PacketError
from event_binning_grad.events.time_rules import UNKNOWN_TIME, settle_times

BYTES_PER_EVENT = 8
# libcaer's clock counts us in 31 bits: it rolls over after 35.8 min.
LIBCAER_US_PER_WRAP = 1 << 31
# Beyond this int64 ns would overflow; 2^62 ns is the year 2116.
MAX_TIME_BASE_NS = 1 << 62


@dataclass(frozen=True, slots=True)
class FixedSizePart:
    """What one call of FixedSizeStream.decode found; the arrays are as in Events."""

    t: NDArray[np.int64]
    x: NDArray[np.uint16]
    y: NDArray[np.uint16]
    p: NDArray[np.uint8]
    discarded: int
    out_of_bounds: int
    invalid: int
    steps_back: int
    resets: int


class FixedSizeStream:
    """Decodes a stream of `mono` or `libcaer` packets; only the time is carried on."""

    def __init__(self, encoding: Literal["mono", "libcaer"]) -> None:
        self._unpack = _unpack_mono if encoding == "mono" else _unpack_libcaer
        self._word = np.uint64 if encoding == "mono" else np.uint32
        self.restart()

    def restart(self) -> None:
        """Forgets the time: another stream begins."""
        self._last = self._raw = UNKNOWN_TIME

    def decode(
        self, data: NDArray[np.uint8], width: int, height: int, time_base: int, big_endian: bool
    ) -> FixedSizePart:
        """Decodes a packet; t is time_base plus the event's own time, in ns, never decreasing.

        data: uint8 [bytes], read-only.
        """
        capacity = len(data) // BYTES_PER_EVENT
        t, x = np.empty(capacity, np.int64), np.empty(capacity, np.uint16)
        y, p = np.empty(capacity, np.uint16), np.empty(capacity, np.uint8)
        words = _native_words(data, big_endian, self._word)
        n, outside = self._unpack(words, width, height, time_base, t, x, y, p)
        first, back, resets, last, raw = settle_times(t[:n], self._last, self._raw)
        self._last, self._raw = int(last), int(raw)
        keep = slice(int(first), n)
        invalid = capacity - n - outside
        return FixedSizePart(
            t[keep], x[keep], y[keep], p[keep], int(first), outside, invalid, int(back), int(resets)
        )


def check_fixed_size(encoding: str, size: int, time_base: int) -> None:
    """Raises PacketError for a packet that cannot be a whole number of events."""
    if size % BYTES_PER_EVENT:
        raise PacketError(
            f"a {encoding} packet has {size} bytes, expected a multiple of {BYTES_PER_EVENT}: "
            "the packet is cut short or its encoding is another"
        )
    if not 0 <= time_base <= MAX_TIME_BASE_NS:
        raise PacketError(
            f"time_base of a {encoding} packet is {time_base}, expected 0 to 2^62 ns: "
            "the packet is damaged"
        )


def _native_words(
    data: NDArray[np.uint8], big_endian: bool, dtype: type[np.unsignedinteger[Any]]
) -> NDArray[np.unsignedinteger[Any]]:
    """The bytes as aligned words of this machine, without a copy where they lie so already."""
    words = data.view(dtype)
    if big_endian != (sys.byteorder == "big"):
        words = words.byteswap()
    elif not words.flags.aligned:
        words = words.copy()
    words.flags.writeable = False  # numba compiles once for all buffers
    return words


@njit(nogil=True, cache=True)
def _unpack_mono(words, width, height, time_base, t, x, y, p):
    """64-bit words: [63] polarity, [48-62] y, [32-47] x, [0-31] ns after time_base."""
    n, outside = 0, 0
    for i in range(len(words)):
        place = np.uint32(words[i] >> np.uint64(32))
        column, row = place & 0xFFFF, (place >> 16) & 0x7FFF
        if column < width and row < height:
            t[n] = time_base + np.int64(words[i] & np.uint64(0xFFFFFFFF))
            x[n], y[n], p[n] = column, row, place >> 31
            n += 1
        else:
            outside += 1
    return n, outside


@njit(nogil=True, cache=True)
def _unpack_libcaer(words, width, height, time_base, t, x, y, p):
    """32-bit place ([17-31] x, [2-16] y, [1] polarity, [0] valid), then 31 bits of us.

    time_base is the host's time at the start of the sensor's clock, in ns: it grows with the
    clock's rollovers from packet to packet; a rollover inside the packet is counted here.
    """
    n, outside = 0, 0
    before, wraps = np.int64(-1), np.int64(0)  # a packet of some ms holds one rollover at most
    for i in range(len(words) // 2):
        place = words[2 * i]
        if not place & 1:
            continue
        us = np.int64(words[2 * i + 1]) & (LIBCAER_US_PER_WRAP - 1)
        if before >= 0 and us - before < -(LIBCAER_US_PER_WRAP // 2):
            wraps = np.int64(1)
        elif us - before > LIBCAER_US_PER_WRAP // 2 and wraps == 1:
            wraps = np.int64(0)  # a little step back over the rollover
        before = us
        column, row = place >> 17, (place >> 2) & 0x7FFF
        if column < width and row < height:
            t[n] = time_base + (us + wraps * LIBCAER_US_PER_WRAP) * 1000
            x[n], y[n], p[n] = column, row, (place >> 1) & 1
            n += 1
        else:
            outside += 1
    return n, outside
