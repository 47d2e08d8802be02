"""Prophesee's .raw files: what the camera sent, in EVT 2.0, 2.1 or 3.0, behind a header of text."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_binning_grad.errors import RecordingError
from event_binning_grad.events import evt2, evt3
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.file_recording import FileRecording, learnt_size, open_file
from event_binning_grad.events.part import native_words
from event_binning_grad.events.prophesee_header import PropheseeHeader, read_header
from event_binning_grad.events.types import NS_PER_US, EventPacket, Events, Header, stamp_at

FRAME_ID = "event_camera"
BLOCK_BYTES = 1 << 20
# What comes without any time is cut at the latest there.
MAX_PACKET_BYTES = 1 << 22
PACKET_US = 4096  # EVT 3.0 has a TIME_HIGH for it
_ANY_SIZE = 1 << 11

WORD_BYTES = {"evt2": 4, "evt21": 8, "evt3": 2}
_NAMES = {"evt2": "EVT 2.0", "evt21": "EVT 2.1", "evt3": "EVT 3.0"}
_ENCODINGS = {
    "2": "evt2", "2.0": "evt2", "2.1": "evt21", "3": "evt3", "3.0": "evt3",
    "EVT2": "evt2", "EVT21": "evt21", "EVT3": "evt3",
}  # fmt: skip

# Places in the state of a scan, all -1 while unknown: the unwrapped TIME_HIGH, the low bits (EVT
# 3.0), the TIME_HIGH with which the packet began, the time of its first event in us.
_HIGH, _LOW, _BEGAN, _FIRST_US = range(4)

# A file without a word about its format is taken for one if so much of it makes sense as such.
_SAMPLE_BYTES = 1 << 18
_DEFINED_SHARE, _ORDERED_SHARE = 0.98, 0.98
_EVT2_KINDS = (
    evt2.CD_OFF, evt2.CD_ON, evt2.TIME_HIGH, evt2.EXT_TRIGGER, evt2.OTHERS, evt2.CONTINUED,
)  # fmt: skip
_EVT3_KINDS = (
    evt3.ADDR_Y, evt3.ADDR_X, evt3.VECT_BASE_X, evt3.VECT_12, evt3.VECT_8, evt3.TIME_LOW,
    evt3.CONTINUED_4, evt3.TIME_HIGH, evt3.EXT_TRIGGER, evt3.OTHERS, evt3.CONTINUED_12,
)  # fmt: skip


class RawRecording(FileRecording):
    """A .raw file as packets of about 4 ms in the camera's own encoding.

    header.stamp is the time of the packet's first event on the sensor's clock, to which the
    header's date is added, where it has one. Counted while packets() runs: cut_bytes (the rest of
    a word at the end).
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        header = read_header(path)
        self._start = header.size
        self._date_ns = header.date_ns()
        with open_file(path) as file:
            file.seek(self._start)
            sample = file.read(_SAMPLE_BYTES)
        if not sample:
            raise RecordingError(f"{path} holds no events: nothing follows its header")
        self._big_endian = header.fields.get("endianness", "").lower() == "big"
        self.encoding = _encoding_of(header, sample, self._big_endian, path)
        self.kind = f"Prophesee raw {_NAMES[self.encoding]}"
        self._upper_first = self._big_endian or _upper_first(sample)
        self._header_size = header.sensor_size()
        self.cut_bytes = 0

    @property
    def width(self) -> int:
        """Columns of the sensor: by the header, else of the smallest known one that fits."""
        return self._size[0]

    @property
    def height(self) -> int:
        """Rows of the sensor."""
        return self._size[1]

    def packets(self) -> Iterator[EventPacket]:
        """The packets in the order of the file; each begins with a word that says the time."""
        return self._packets(*self._size)

    def unusable(self) -> dict[str, int]:
        """What packets() could not use, after it ran."""
        return {"cut_bytes": self.cut_bytes}

    @cached_property
    def _size(self) -> tuple[int, int]:
        if self._header_size is not None:
            return self._header_size
        remedy = "write a line '% geometry WIDTHxHEIGHT' in its header"
        return learnt_size(self._events(), self.path, remedy)

    def _events(self) -> Iterator[Events]:
        decoder = PacketDecoder()
        for packet in self._packets(_ANY_SIZE, _ANY_SIZE):
            yield decoder.decode(packet).events

    def _packets(self, width: int, height: int) -> Iterator[EventPacket]:
        stamp_ns = self._date_ns
        for seq, (data, first_us) in enumerate(self._pieces()):
            if first_us >= 0:
                stamp_ns = self._date_ns + first_us * NS_PER_US
            header = Header(stamp_at(stamp_ns), FRAME_ID)
            yield EventPacket(header, height, width, seq, 0, self.encoding, self._big_endian, data)

    def _pieces(self) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """The file cut into pieces of whole words, each with the time of its first event in us
        (without events: of its end), -1 if unknown."""
        size = WORD_BYTES[self.encoding]
        state = np.full(4, -1, np.int64)
        rest, scanned = b"", 0
        self.cut_bytes = 0
        with open_file(self.path) as file:
            file.seek(self._start)
            while block := file.read(BLOCK_BYTES):
                data = np.frombuffer(rest + block, np.uint8)
                whole = len(data) // size * size
                begin = 0
                while True:
                    cut = self._next_cut(data[begin:whole], scanned, state)
                    if cut < 0:
                        break
                    yield data[begin : begin + cut], _piece_time(state, self.encoding)
                    begin, scanned = begin + cut, 0
                    state[[_BEGAN, _FIRST_US]] = -1
                if whole - begin >= MAX_PACKET_BYTES:
                    yield data[begin:whole], _piece_time(state, self.encoding)
                    state[[_BEGAN, _FIRST_US]] = -1
                    begin = whole
                rest, scanned = data[begin:].tobytes(), whole - begin
        whole = len(rest) // size * size
        self.cut_bytes = len(rest) - whole
        if whole:
            yield np.frombuffer(rest, np.uint8, whole), _piece_time(state, self.encoding)

    def _next_cut(self, data: NDArray[np.uint8], scanned: int, state: NDArray[np.int64]) -> int:
        """Where the piece that begins at data[0] ends; -1 if that is not within data.

        scanned: bytes that are known to belong to it.
        """
        if self.encoding == "evt3":
            words = native_words(data[scanned:], self._big_endian, np.uint16)
            found = _scan_evt3(words, scanned == 0, state)
        else:
            words = native_words(data[scanned:], self._big_endian, np.uint32)
            if self.encoding == "evt21":
                words = words[0 if self._upper_first else 1 :: 2]
                words.flags.writeable = False
            found = _scan_evt2(words, scanned == 0, state)
        return -1 if found < 0 else scanned + found * WORD_BYTES[self.encoding]


def _piece_time(state: NDArray[np.int64], encoding: str) -> int:
    first, high, low = (int(state[place]) for place in (_FIRST_US, _HIGH, _LOW))
    if first >= 0 or high < 0:
        return first
    return high << evt3.LOW_BITS | max(low, 0) if encoding == "evt3" else high << evt2.LOW_BITS


@njit(nogil=True, cache=True)
def _nearest(reference, counter, period):
    """The unwrapped count nearest to the reference that shows this counter."""
    nearest = reference + (counter - reference + period // 2) % period - period // 2
    return nearest if nearest >= 0 else nearest + period


@njit(nogil=True, cache=True)
def _scan_evt3(words, at_start, state):
    """The word before which the piece ends, a TIME_HIGH of another value; -1 if there is none."""
    high, low, began, first_us = state[_HIGH], state[_LOW], state[_BEGAN], state[_FIRST_US]
    cut = -1
    for k in range(len(words)):
        kind, value = words[k] >> 12, np.int64(words[k]) & 0xFFF
        if kind == evt3.TIME_HIGH:
            new_high = value if high < 0 else _nearest(high, value, evt3.HIGHS_PER_WRAP)
            if began >= 0 and new_high != began and not (at_start and k == 0):
                cut = k
                break
            if began < 0:
                began = new_high
            if new_high != high:
                low = 0 if new_high > high else 0xFFF
            high = new_high
        elif kind == evt3.TIME_LOW:
            low = value
        elif (
            first_us < 0
            and high >= 0
            and (
                kind == evt3.ADDR_X
                or ((kind == evt3.VECT_12 or kind == evt3.VECT_8) and value != 0)
            )
        ):
            first_us = high << evt3.LOW_BITS | low
    state[_HIGH], state[_LOW], state[_BEGAN], state[_FIRST_US] = high, low, began, first_us
    return cut


@njit(nogil=True, cache=True)
def _scan_evt2(words, at_start, state):
    """As _scan_evt3: the piece ends before the first TIME_HIGH that is PACKET_US later."""
    high, began, first_us = state[_HIGH], state[_BEGAN], state[_FIRST_US]
    cut = -1
    for k in range(len(words)):
        kind = words[k] >> evt2.KIND_SHIFT
        if kind == evt2.TIME_HIGH:
            value = np.int64(words[k]) & (evt2.HIGHS_PER_WRAP - 1)
            new_high = value if high < 0 else _nearest(high, value, evt2.HIGHS_PER_WRAP)
            far = abs(new_high - began) >= PACKET_US >> evt2.LOW_BITS
            if began >= 0 and far and not (at_start and k == 0):
                cut = k
                break
            if began < 0:
                began = new_high
            high = new_high
        elif first_us < 0 and high >= 0 and kind <= evt2.CD_ON:
            low = np.int64(words[k]) >> evt2.LOW_SHIFT & 0x3F
            first_us = high << evt2.LOW_BITS | low
    state[_HIGH], state[_BEGAN], state[_FIRST_US] = high, began, first_us
    return cut


def _encoding_of(header: PropheseeHeader, sample: bytes, big_endian: bool, path: Path) -> str:
    """By the header, else by the words."""
    for key in ("format", "evt"):
        if found := header.fields.get(key):
            if found.upper() in _ENCODINGS:
                return _ENCODINGS[found.upper()]
            raise RecordingError(
                f"{path} is in format {found[:40]!r}, expected EVT 2.0, 2.1 or 3.0: record it "
                "again, or convert it with the camera's own tools"
            )
    fitting = [name for name in WORD_BYTES if _makes_sense(name, sample, big_endian)]
    if len(fitting) != 1:
        raise RecordingError(
            f"{path} does not say its format, and its bytes look like "
            f"{' and '.join(_NAMES[name] for name in fitting) or 'none that is known'}: if it is a "
            "Prophesee recording, write a line such as '% evt 3.0' at its beginning"
        )
    return fitting[0]


def _makes_sense(encoding: str, sample: bytes, big_endian: bool) -> bool:
    """Whether nearly all words are defined, and nearly all TIME_HIGH follow each other."""
    data = np.frombuffer(sample, np.uint8, len(sample) // 8 * 8)
    if encoding == "evt3":
        words = native_words(data, big_endian, np.uint16)
        kinds, defined, period, step = words >> 12, _EVT3_KINDS, evt3.HIGHS_PER_WRAP, 1
        highs = words[kinds == evt3.TIME_HIGH].astype(np.int64) & 0xFFF
    else:
        words = native_words(data, big_endian, np.uint32)
        if encoding == "evt21":
            upper_at = 0 if big_endian or _upper_first(sample) else 1
            words, lower = words[upper_at::2], words[1 - upper_at :: 2]
            is_time = words >> evt2.KIND_SHIFT == evt2.TIME_HIGH
            if np.count_nonzero(lower[is_time]) > (1 - _ORDERED_SHARE) * is_time.sum():
                return False
        kinds, defined = words >> evt2.KIND_SHIFT, _EVT2_KINDS
        period, step = evt2.HIGHS_PER_WRAP, 1 << 14  # a second
        highs = words[kinds == evt2.TIME_HIGH].astype(np.int64) & (evt2.HIGHS_PER_WRAP - 1)
    if len(highs) < 2 or np.isin(kinds, defined).mean() < _DEFINED_SHARE:
        return False
    steps = np.diff(highs) % period
    return bool((steps <= step).mean() >= _ORDERED_SHARE and steps.any())


def _upper_first(sample: bytes) -> bool:
    """Whether the upper half of an EVT 2.1 word comes first ("legacy"): TIME_HIGH words, whose
    lower half is empty, show it."""
    halves = np.frombuffer(sample, "<u4", len(sample) // 8 * 2).reshape(-1, 2)
    is_time = halves >> evt2.KIND_SHIFT == evt2.TIME_HIGH
    first, second = (is_time & (halves[:, ::-1] == 0)).sum(axis=0)
    return bool(first > second)
