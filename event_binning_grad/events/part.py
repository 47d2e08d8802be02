"""What every decoder gives back for a packet, and the words that it is cut into."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_binning_grad.events.time_rules import settle
from event_binning_grad.events.types import NO_TRIGGERS, Triggers

# Of 128 shifted words many are undefined, of whole ones none but a vendor's padding.
_ALIGNMENT_WORDS = 128
_SHIFTED_WORDS = 8


# Places in the tally of one call of a decoder of words.
(
    FIRST, FIRST_TRIGGER, TRIGGERS, UNKNOWN, IGNORED, OUTSIDE, UNSYNCED, STEPS_BACK, RESETS, GAPS,
    LOST_TRIGGERS,
) = range(11)  # fmt: skip
TALLY_PLACES = 11
# First places in the state of a stream: time of the event before, ns, after settling and before.
LAST, RAW = range(2)


@dataclass(slots=True)
class Part:
    """Events of a packet, as in Events, its triggers, and what was not handed on."""

    t: NDArray[np.int64]
    x: NDArray[np.uint16]
    y: NDArray[np.uint16]
    p: NDArray[np.uint8]
    triggers: Triggers = field(default=NO_TRIGGERS)
    discarded: int = 0
    unknown_words: int = 0
    ignored_words: int = 0
    out_of_bounds: int = 0
    unsynchronised: int = 0
    invalid: int = 0
    steps_back: int = 0
    resets: int = 0
    gaps: int = 0
    lost_triggers: int = 0
    was_cut: bool = False


def event_arrays(
    capacity: int,
) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint8]]:
    """Arrays t, x, y, p for so many events; memory that stays unused is never touched."""
    return (
        np.empty(capacity, np.int64),
        np.empty(capacity, np.uint16),
        np.empty(capacity, np.uint16),
        np.empty(capacity, np.uint8),
    )


def trigger_arrays(
    capacity: int,
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]:
    """Arrays t, p, channel for so many triggers."""
    return np.empty(capacity, np.int64), np.empty(capacity, np.uint8), np.empty(capacity, np.uint8)


@njit(nogil=True, cache=True)
def settle_next(now, n, k, state, tally):
    """The time in ns that event n, or edge k, gets which comes at `now`, see time_rules."""
    at, is_back, is_reset = settle(now, state[LAST], state[RAW])
    tally[STEPS_BACK] += is_back
    if is_reset:
        tally[RESETS] += 1
        tally[FIRST], tally[FIRST_TRIGGER] = n, k
    state[LAST], state[RAW] = at, now
    return at


def tallied_part(
    arrays: tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]],
    n: int,
    edges: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    tally: NDArray[np.int64],
    was_cut: bool,
) -> Part:
    """What a call decoded: n events in arrays t, x, y, p, the triggers, and its tally."""
    t, x, y, p = arrays
    keep = slice(int(tally[FIRST]), n)
    kept = slice(int(tally[FIRST_TRIGGER]), int(tally[TRIGGERS]))
    return Part(
        t[keep],
        x[keep],
        y[keep],
        p[keep],
        Triggers(*edges)[kept],
        discarded=int(tally[FIRST]),
        unknown_words=int(tally[UNKNOWN]),
        ignored_words=int(tally[IGNORED]),
        out_of_bounds=int(tally[OUTSIDE]),
        unsynchronised=int(tally[UNSYNCED]),
        steps_back=int(tally[STEPS_BACK]),
        resets=int(tally[RESETS]),
        gaps=int(tally[GAPS]),
        lost_triggers=int(tally[LOST_TRIGGERS] + tally[FIRST_TRIGGER]),
        was_cut=was_cut,
    )


def native_words(
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


class WordCutter:
    """Cuts chunks of bytes into whole words, where a word may lie over two chunks.

    kinds: the values of the word's top four bits that the format defines.
    """

    def __init__(self, word_bytes: int, kinds: tuple[int, ...]) -> None:
        self._size = word_bytes
        self._kinds = kinds
        self.type_at = word_bytes - 1
        """The byte that holds the kind in little-endian words."""
        self._left: NDArray[np.uint8] | None = None

    def lose(self) -> None:
        """The next chunk is taken to begin with a whole word."""
        self._left = None

    def cut(self, data: NDArray[np.uint8], big_endian: bool) -> tuple[NDArray[np.uint8], bool]:
        """The bytes of whole words, and whether the chunk before was cut short inside a word.

        A chunk that lost its end leaves a part of a word for which the rest never comes: joined
        to the next chunk, it would shift every word from there on. Shifted words show many kinds
        that the format does not define.
        """
        left, was_cut = self._left, False
        if left is not None and len(data):
            joined = np.concatenate([left, data])
            with_rest, without = (
                self._undefined(joined, big_endian),
                self._undefined(data, big_endian),
            )
            was_cut = with_rest >= _SHIFTED_WORDS and with_rest > 4 * without
            data, self._left = data if was_cut else joined, None
        whole = len(data) // self._size * self._size
        if whole < len(data):
            self._left = data[whole:].copy()
        data = data[:whole]
        data.flags.writeable = False  # numba compiles once for all buffers
        return data, was_cut

    def _undefined(self, data: NDArray[np.uint8], big_endian: bool) -> int:
        at = self._size - 1 - self.type_at if big_endian else self.type_at
        whole = min(len(data) // self._size, _ALIGNMENT_WORDS) * self._size
        return int(np.count_nonzero(~np.isin(data[at : whole : self._size] >> 4, self._kinds)))
