"""Encodings with the same number of bytes for every event: those of drivers (`mono`, `libcaer`,
and `trigger` for edges) and of other sources (`event_array`, `event_array_ros1`, `dv`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_binning_grad.errors import PacketError
from event_binning_grad.events.part import Part, event_arrays, native_words
from event_binning_grad.events.time_rules import UNKNOWN_TIME, settle_times
from event_binning_grad.events.types import NS_PER_S, NS_PER_US, Triggers

# libcaer's clock counts us in 31 bits: it rolls over after 35.8 min.
LIBCAER_US_PER_WRAP = 1 << 31
# Beyond this int64 ns would overflow; 2^62 ns is the year 2116.
MAX_TIME_BASE_NS = 1 << 62
_MAX_US = MAX_TIME_BASE_NS // NS_PER_US
# The last event of a CDR sequence has no padding behind it.
EVENT_ARRAY_STRIDE, EVENT_ARRAY_ROS1_STRIDE = 16, 13
BYTES_PER_EVENT = {
    "mono": 8,
    "libcaer": 8,
    "trigger": 8,
    "event_array": EVENT_ARRAY_STRIDE,
    "event_array_ros1": EVENT_ARRAY_ROS1_STRIDE,
    "dv": 16,
}


class FixedSizeStream:
    """Decodes a stream of packets in one of the encodings; only the time is carried on."""

    def __init__(self, encoding: str) -> None:
        self._unpack = _UNPACK[encoding]
        self._stride = BYTES_PER_EVENT[encoding]
        self._is_trigger = encoding == "trigger"
        self.restart()

    def restart(self) -> None:
        """Forgets the time: another stream begins."""
        self._last = self._raw = UNKNOWN_TIME

    def decode(
        self, data: NDArray[np.uint8], width: int, height: int, time_base: int, big_endian: bool
    ) -> Part:
        """Decodes a packet; t is in ns, never decreasing.

        data: uint8 [bytes], read-only, see check_fixed_size.
        """
        capacity = -(-len(data) // self._stride)
        if self._is_trigger:
            return self._decode_triggers(data, time_base, big_endian)
        t, x, y, p = event_arrays(capacity)
        n, outside, rising = self._unpack(
            data, big_endian, capacity, width, height, time_base, t, x, y, p
        )
        n, outside = int(n), int(outside)
        first, back, resets = self._settle(t[:n], bool(rising))
        keep = slice(first, n)
        return Part(
            t[keep],
            x[keep],
            y[keep],
            p[keep],
            discarded=first,
            out_of_bounds=outside,
            invalid=capacity - n - outside,
            steps_back=back,
            resets=resets,
        )

    def _settle(self, t: NDArray[np.int64], rising: bool) -> tuple[int, int, int]:
        """Events discarded, steps back and resets; rising: t is known to be in order."""
        if rising and (not len(t) or t[0] >= self._last):
            if len(t):
                self._last = self._raw = int(t[-1])
            return 0, 0, 0
        first, back, resets, last, raw = settle_times(t, self._last, self._raw)
        self._last, self._raw = int(last), int(raw)
        return int(first), int(back), int(resets)

    def _decode_triggers(self, data: NDArray[np.uint8], time_base: int, big_endian: bool) -> Part:
        """64-bit words: [63] edge, [48-62] channel, [0-31] ns after time_base."""
        words = native_words(data, big_endian, np.uint64)
        t = (words & np.uint64(0xFFFFFFFF)).astype(np.int64) + time_base
        p = (words >> np.uint64(63)).astype(np.uint8)
        channel = ((words >> np.uint64(48)) & np.uint64(0xFF)).astype(np.uint8)
        first, back, resets = self._settle(t, rising=False)
        none = event_arrays(0)
        edges = Triggers(t[first:], p[first:], channel[first:])
        return Part(*none, edges, lost_triggers=first, steps_back=back, resets=resets)


def check_fixed_size(encoding: str, size: int, time_base: int) -> None:
    """Raises PacketError for a packet that cannot be a whole number of events."""
    stride = BYTES_PER_EVENT[encoding]
    whole = size == 0 or size % stride == (13 if encoding == "event_array" else 0)
    if not whole:
        raise PacketError(
            f"a {encoding} packet has {size} bytes, expected "
            + ("16 n - 3" if encoding == "event_array" else f"a multiple of {stride}")
            + ": the packet is cut short or its encoding is another"
        )
    check_time_base(encoding, time_base)


def check_time_base(encoding: str, time_base: int) -> None:
    """Raises PacketError for a time_base with which times would overflow."""
    if not 0 <= time_base <= MAX_TIME_BASE_NS:
        raise PacketError(
            f"time_base of a {encoding} packet is {time_base}, expected 0 to 2^62 ns: "
            "the packet is damaged"
        )


def _mono(data, big_endian, count, width, height, time_base, t, x, y, p) -> Any:
    words = native_words(data, big_endian, np.uint64)
    if _fast_mono(words, width, height, time_base, t, x, y, p):
        return count, 0, True
    return (*_unpack_mono(words, width, height, time_base, t, x, y, p), False)


def _libcaer(data, big_endian, count, width, height, time_base, t, x, y, p) -> Any:
    words = native_words(data, big_endian, np.uint32)
    if _fast_libcaer(words, width, height, time_base, t, x, y, p):
        return count, 0, True
    return (*_unpack_libcaer(words, width, height, time_base, t, x, y, p), False)


def _dv(data, _big_endian, count, width, height, time_base, t, x, y, p) -> Any:
    words = native_words(data, sys.byteorder == "big", np.uint64)
    # A negative coordinate is beyond the sensor, and signed ones end at 32767.
    return _unpack_dv(words, min(width, 1 << 15), min(height, 1 << 15), time_base, t, x, y, p)


def _event_array(data, big_endian, count, width, height, time_base, t, x, y, p) -> Any:
    return _unpack_event_array(
        data, count, EVENT_ARRAY_STRIDE, big_endian, width, height, time_base, t, x, y, p
    )


def _event_array_ros1(data, big_endian, count, width, height, time_base, t, x, y, p) -> Any:
    return _unpack_event_array(
        data, count, EVENT_ARRAY_ROS1_STRIDE, big_endian, width, height, time_base, t, x, y, p
    )


# By encoding: (data, big_endian, events, width, height, time_base, t, x, y, p) to the events
# written, those out of bounds, and whether the times are known to be in order.
_UNPACK: dict[str, Callable[..., Any]] = {
    "mono": _mono,
    "libcaer": _libcaer,
    "trigger": _mono,
    "dv": _dv,
    "event_array": _event_array,
    "event_array_ros1": _event_array_ros1,
}


@njit(nogil=True, cache=True)
def _fast_mono(words, width, height, time_base, t, x, y, p):
    """As _unpack_mono; False, with garbage written, unless all is inside and in order."""
    wrong, before = False, np.int64(0)
    for i in range(len(words)):
        place = np.uint32(words[i] >> np.uint64(32))
        ns = np.int64(words[i] & np.uint64(0xFFFFFFFF))
        column, row = place & np.uint32(0xFFFF), (place >> np.uint32(16)) & np.uint32(0x7FFF)
        wrong |= (column >= width) | (row >= height) | (ns < before)
        before = ns
        t[i] = time_base + ns
        x[i], y[i], p[i] = column, row, place >> np.uint32(31)
    return not wrong


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
def _fast_libcaer(words, width, height, time_base, t, x, y, p):
    """As _unpack_libcaer; False, with garbage written, unless all is valid, inside, in order."""
    wrong, before = False, np.int64(0)
    for i in range(len(words) // 2):
        place = words[2 * i]
        us = np.int64(words[2 * i + 1] & np.uint32(LIBCAER_US_PER_WRAP - 1))
        column, row = place >> np.uint32(17), (place >> np.uint32(2)) & np.uint32(0x7FFF)
        wrong |= (column >= width) | (row >= height) | (us < before) | (place & 1 == 0)
        before = us
        t[i] = time_base + us * 1000
        x[i], y[i], p[i] = column, row, (place >> np.uint32(1)) & np.uint32(1)
    return not wrong


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


@njit(nogil=True, cache=True)
def _unpack_dv(words, width, height, _time_base, t, x, y, p):
    """int64 us since 1970, int16 x, int16 y, uint8 polarity, 3 bytes of padding.

    Events at times that int64 ns cannot hold, or before 1970, are left out as invalid.
    """
    n, outside, rising, before = 0, 0, True, np.int64(0)
    for i in range(len(words) // 2):
        us, rest = np.int64(words[2 * i]), words[2 * i + 1]
        column = np.int64(rest & np.uint64(0xFFFF))
        row = np.int64((rest >> np.uint64(16)) & np.uint64(0xFFFF))
        if us < 0 or us > _MAX_US:
            continue
        if column < width and row < height:
            rising &= us >= before
            before = us
            t[n] = us * NS_PER_US
            x[n], y[n], p[n] = column, row, (rest & np.uint64(0xFF00000000)) != 0
            n += 1
        else:
            outside += 1
    return n, outside, rising


@njit(nogil=True, cache=True, inline="always")
def _u16(data, at, big):
    a, b = np.int64(data[at]), np.int64(data[at + 1])
    return (a << 8) | b if big else (b << 8) | a


@njit(nogil=True, cache=True, inline="always")
def _u32(data, at, big):
    a, b = np.int64(data[at]), np.int64(data[at + 1])
    c, d = np.int64(data[at + 2]), np.int64(data[at + 3])
    if big:
        return (a << 24) | (b << 16) | (c << 8) | d
    return (d << 24) | (c << 16) | (b << 8) | a


@njit(nogil=True, cache=True)
def _unpack_event_array(data, count, stride, big, width, height, _time_base, t, x, y, p):
    """x, y (uint16), seconds (int32) and ns (uint32) since 1970, polarity (bool).

    CDR aligns every field to its own size: sec at 4, ns at 8 and polarity at 12 of each 16 bytes,
    x and y at 0 and 2 of the first event and 2 bytes earlier, behind the polarity of the event
    before, of all others. ROS 1 packs them in 13 bytes.
    """
    n, outside, rising, before = 0, 0, True, np.int64(0)
    for i in range(count):
        at = i * stride
        place, time = at, at + 4
        if stride == EVENT_ARRAY_STRIDE and i > 0:
            place -= 2
        column, row = _u16(data, place, big), _u16(data, place + 2, big)
        sec = _u32(data, time, big)
        if sec >= 1 << 31:  # before 1970
            continue
        if column < width and row < height:
            now = sec * NS_PER_S + _u32(data, time + 4, big)
            rising &= now >= before
            before = now
            t[n] = now
            x[n], y[n], p[n] = column, row, data[time + 8] != 0
            n += 1
        else:
            outside += 1
    return n, outside, rising
