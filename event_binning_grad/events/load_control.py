"""What is left out between the decoder and the windows, each event for one counted reason.

docs/load.md tells what each filter does, and what it costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_binning_grad.errors import ConfigError, PacketError
from event_binning_grad.events.hot_pixels import (
    JUDGED_EACH_NS,
    HotPixels,
    Mask,
    check_mask_file,
    load_mask,
    save_mask,
)
from event_binning_grad.events.time_rules import UNKNOWN_TIME
from event_binning_grad.events.types import NS_PER_MS, NS_PER_S, NS_PER_US, Events

HOT_PIXEL_USES = ("off", "file", "learn")
# The rate is measured, and the cap kept, over slots of so long.
SLOT_NS = 10 * NS_PER_MS
# A slot that brings more than the one before let expect: from this part of its budget on half of
# the events are kept, from _STEP later on a quarter, and so on.
_SOFT = 1.25
_STEP = 0.25
_MAX_SENSOR_SIDE = 1 << 16

_Arrays = tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint8]]


@dataclass(frozen=True)
class LoadConfig:
    """What LoadControl leaves out. The defaults leave out nothing.

    Attributes:
        roi: x, y, width, height of the part of the sensor that is used, px; all 0 for all of it.
        hot_pixels: "off", "file" (those of hot_pixels_file are left out) or "learn" (those that
            are found; they are written to hot_pixels_file, if there is one, and read from it).
        hot_pixels_file: .npz, .png or .yaml.
        refractory_us: a pixel's events that follow one that was kept within so long, us, are left
            out; 0 for none.
        background_us: events without one at the 8 pixels around within so long before them, us,
            are left out; 0 for none.
        keep_share: of the events that are left this share is kept, chosen by a hash.
        max_events_per_s: events a second at most; 0 for no limit.

    Raises:
        ConfigError: a value that is not allowed.
    """

    roi: tuple[float, ...] = (0, 0, 0, 0)
    hot_pixels: str = "off"
    hot_pixels_file: str = ""
    refractory_us: float = 0.0
    background_us: float = 0.0
    keep_share: float = 1.0
    max_events_per_s: float = 0.0

    def __post_init__(self) -> None:
        if not (self.max_events_per_s == 0 or 1e3 <= self.max_events_per_s <= 1e12):
            raise ConfigError(
                f"max_events_per_s {self.max_events_per_s}: expected 1000 to 1e12, or 0 for no "
                "limit"
            )
        for name in ("refractory_us", "background_us"):
            if not 0 <= getattr(self, name) <= 1e9:
                raise ConfigError(f"{name} {getattr(self, name)}: expected 0 (off) to 1e9")
        if not 1e-6 <= self.keep_share <= 1:
            raise ConfigError(f"keep_share {self.keep_share}: expected 1e-6 to 1")
        if self.hot_pixels not in HOT_PIXEL_USES:
            raise ConfigError(
                f"hot_pixels {self.hot_pixels!r}: expected one of {', '.join(HOT_PIXEL_USES)}"
            )
        if self.hot_pixels == "file" and not self.hot_pixels_file:
            raise ConfigError("hot_pixels 'file' needs hot_pixels_file, the file to read")
        self._check_roi()

    def _check_roi(self) -> None:
        whole = len(self.roi) == 4 and all(0 <= side < _MAX_SENSOR_SIDE for side in self.roi)
        if not (whole and all(side == int(side) for side in self.roi)):
            raise ConfigError(f"roi {list(self.roi)}: expected x, y, width, height in whole pixels")
        if any(self.roi) and not (self.roi[2] and self.roi[3]):
            raise ConfigError(f"roi {list(self.roi)}: expected a width and height of 1 at least")


@dataclass
class LoadCounters:
    """Each event that came is in exactly one of the others of these."""

    events: int = 0
    """Events that came."""
    kept_events: int = 0
    outside_roi_events: int = 0
    masked_events: int = 0
    """Events of hot pixels."""
    refractory_events: int = 0
    background_events: int = 0
    decimated_events: int = 0
    """Events left out by keep_share."""
    over_cap_events: int = 0
    """Events left out because more than max_events_per_s came."""
    hot_pixels: int = 0
    """Pixels masked now."""
    hot_pixels_problem: str = ""
    """Why the hot pixels could not be written the last time."""

    @property
    def left_out(self) -> int:
        return self.events - self.kept_events


# Places in the state of a stream, and in the tally of one call.
_SLOT, _SEEN, _KEPT, _SEEN_BEFORE, _DEBT, _NUMBER = range(6)
_ROI, _MASKED, _REFRACTORY, _BACKGROUND, _DECIMATED, _OVER = range(6)


class LoadControl:
    """Leaves events out: those outside a region, of hot pixels, too soon, alone, and too many.

    In this order; what one leaves out the next does not see. Which events are kept depends on the
    events alone, not on how they are cut into packets.

    Args:
        config: what to leave out.

    Raises:
        ConfigError: hot_pixels_file cannot be read.
    """

    def __init__(self, config: LoadConfig | None = None) -> None:
        self.config = config = config or LoadConfig()
        self.counters = LoadCounters()
        self._first_mask = self._read_mask()
        self._hot: HotPixels | None = None
        self._size: tuple[int, int] | None = None
        self._refractory_ns = round(config.refractory_us * NS_PER_US)
        self._background_ns = round(config.background_us * NS_PER_US)
        self._budget = config.max_events_per_s * SLOT_NS / NS_PER_S
        self._places = (
            any(config.roi)
            or config.hot_pixels != "off"
            or self._refractory_ns > 0
            or self._background_ns > 0
        )
        self._state = np.zeros(6, np.int64)
        self._mask: Mask = np.zeros((0, 0), np.bool_)
        self._counts = np.zeros((0, 0), np.int32)
        self._forget_time()

    def apply(self, events: Events) -> Events:
        """The events that are kept: the same arrays if all are, else new ones.

        Raises:
            PacketError: the sensor is not the one of hot_pixels_file. Nothing is counted.
        """
        count = len(events)
        if count:
            if self._size != (events.width, events.height):
                self._set_size(events.width, events.height)
            if events.t[0] < self._last_ns:
                self._forget_time()  # another clock
            self._last_ns = int(events.t[-1])
            if self._places or not self._keeps_all(events):
                return self._filter(events)
        self.counters.events += count
        self.counters.kept_events += count
        return events

    def _filter(self, events: Events) -> Events:
        config, counters, count = self.config, self.counters, len(events)
        out = (
            np.empty(count, np.int64),
            np.empty(count, np.uint16),
            np.empty(count, np.uint16),
            np.empty(count, np.uint8),
        )
        tally = np.zeros(6, np.int64)
        kept = 0
        if self._places:
            for part in self._between_judgements(events):
                kept = _filter(
                    part.t, part.x, part.y, part.p, self._roi(events), self._mask, self._counts,
                    self._refractory_ns, self._last_kept, self._background_ns, self._last_seen,
                    tally, *out, kept,
                )  # fmt: skip
            events = self._first(kept, out, events)
        # Without another filter these are the events that are too many, as was seen before.
        if not (self._places and self._keeps_all(events)):
            below = np.uint64(round(config.keep_share * 2**32))
            parts = (events.t, events.x, events.y, events.p)
            kept = _thin(*parts, below, self._budget, self._state, tally, *out, 0)
            events = self._first(kept, out, events)
        counters.events += count
        counters.kept_events += kept
        counters.outside_roi_events += int(tally[_ROI])
        counters.masked_events += int(tally[_MASKED])
        counters.refractory_events += int(tally[_REFRACTORY])
        counters.background_events += int(tally[_BACKGROUND])
        counters.decimated_events += int(tally[_DECIMATED])
        counters.over_cap_events += int(tally[_OVER])
        return events

    def _first(self, kept: int, out: _Arrays, events: Events) -> Events:
        """The events that were written: those that came, where all were kept."""
        if kept == len(events):
            return events
        t, x, y, p = out
        return Events(t[:kept], x[:kept], y[:kept], p[:kept], events.width, events.height)

    def _keeps_all(self, events: Events) -> bool:
        if self.config.keep_share < 1:
            return False
        return not self._budget or bool(_is_below_cap(events.t, self._budget, self._state))

    def _between_judgements(self, events: Events) -> Iterator[Events]:
        """The events, cut where the hot pixels are judged."""
        if self._hot is None or self.config.hot_pixels != "learn":
            yield events
            return
        start, last_ns = 0, int(events.t[-1])
        if self._judge_at_ns is None:
            self._judge_at_ns = int(events.t[0]) + JUDGED_EACH_NS
        while self._judge_at_ns <= last_ns:
            stop = int(np.searchsorted(events.t, self._judge_at_ns))
            yield events[start:stop]
            self._judge(self._hot)
            silences = max(0, int(events.t[stop]) - self._judge_at_ns) // JUDGED_EACH_NS
            self._judge_at_ns += (1 + silences) * JUDGED_EACH_NS
            start = stop
        yield events[start:]

    def _judge(self, hot: HotPixels) -> None:
        if not hot.judge():
            return
        self.counters.hot_pixels = int(np.count_nonzero(hot.mask))
        if self.config.hot_pixels_file:
            try:
                save_mask(Path(self.config.hot_pixels_file), hot.mask)
                self.counters.hot_pixels_problem = ""
            except (OSError, ConfigError) as error:
                self.counters.hot_pixels_problem = str(error)

    def _read_mask(self) -> Mask | None:
        path, use = Path(self.config.hot_pixels_file), self.config.hot_pixels
        if use == "off" or not self.config.hot_pixels_file:
            return None
        if use == "learn":
            check_mask_file(path)
            if not path.exists():
                return None
        return load_mask(path)

    def _set_size(self, width: int, height: int) -> None:
        mask = self._first_mask
        if mask is not None and mask.shape != (height, width):
            raise PacketError(
                f"{self.config.hot_pixels_file} is of a sensor of {mask.shape[1]}x{mask.shape[0]} "
                f"pixels, but the events are of one of {width}x{height}: use this camera's file"
            )
        self._size = (width, height)
        self._hot = None
        if self.config.hot_pixels != "off":
            self._hot = HotPixels(width, height, mask)
            self._mask = self._hot.mask
            self.counters.hot_pixels = int(np.count_nonzero(self._mask))
            if self.config.hot_pixels == "learn":
                self._counts = self._hot.counts
        self._forget_time()

    def _forget_time(self) -> None:
        self._state[[_SLOT, _SEEN, _KEPT, _SEEN_BEFORE, _DEBT]] = -2, 0, 0, 0, 0
        self._last_ns = UNKNOWN_TIME
        self._judge_at_ns: int | None = None
        width, height = self._size or (0, 0)
        # One pixel more on each side spares the question where the sensor ends.
        kept = (height, width) if self._refractory_ns else (0, 0)
        seen = (height + 2, width + 2) if self._background_ns else (0, 0)
        self._last_kept = np.full(kept, UNKNOWN_TIME, np.int64)
        self._last_seen = np.full(seen, UNKNOWN_TIME, np.int64)

    def _roi(self, events: Events) -> tuple[int, int, int, int]:
        x, y, width, height = (int(side) for side in self.config.roi)
        if not width:
            return 0, 0, events.width, events.height
        return x, y, x + width, y + height


def warm_up(config: LoadConfig) -> None:
    """Compiles what the filters need (seconds the first time, cached then)."""
    use = "learn" if config.hot_pixels == "learn" else "off"
    # A cap that so many events at once exceed.
    cap = 1e3 if config.max_events_per_s else 0.0
    config = replace(config, hot_pixels=use, hot_pixels_file="", max_events_per_s=cap)
    times, zeros = np.repeat([0, JUDGED_EACH_NS], 50), np.zeros(100, np.uint16)
    LoadControl(config).apply(Events(times, zeros, zeros, np.ones(100, np.uint8), 4, 4))


@njit(nogil=True, cache=True)
def _hash(number, time):
    """64 bits that look random, of an event's number in the stream and its time (the mixer of
    SplitMix64: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014)."""
    z = np.uint64(number) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(time)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(nogil=True, cache=True)
def _begin_slot(slot, budget, state):
    """What a burst brought too much is a debt, of which a slot pays back half its budget."""
    since = max(1, slot - state[_SLOT])
    kept = np.float64(state[_KEPT])
    if kept <= _SOFT * budget:
        kept = min(kept, budget)  # that is chance
    state[_DEBT] = np.int64(max(0.0, state[_DEBT] + kept - budget * since))
    state[_SEEN_BEFORE] = state[_SEEN] if since == 1 else 0
    state[_SLOT], state[_SEEN], state[_KEPT] = slot, 0, 0


@njit(nogil=True, cache=True)
def _room(budget, state):
    """How many events the slot shall keep."""
    return budget - min(np.float64(state[_DEBT]), budget / 2)


@njit(nogil=True, cache=True)
def _is_below_cap(t, budget, state):
    """Whether all events can be kept; then they are counted, else the state stays as it is."""
    now, start = state.copy(), 0
    while start < len(t):
        slot = t[start] // SLOT_NS
        if slot != now[_SLOT]:
            _begin_slot(slot, budget, now)
        stop = start + np.searchsorted(t[start:], (slot + 1) * SLOT_NS)
        now[_SEEN] += stop - start
        now[_KEPT] += stop - start
        if now[_SEEN_BEFORE] > _room(budget, now) or now[_KEPT] > _SOFT * budget:
            return False
        start = stop
    state[:] = now
    state[_NUMBER] += len(t)
    return True


@njit(nogil=True, cache=True)
def _thin(t, x, y, p, keep_below, budget, state, tally, t_out, x_out, y_out, p_out, n):
    """Writes a share of the events behind the first n; returns how many there are then.

    The outputs may be the inputs' own memory. What is not kept is written, too, and then written
    over: a branch that nobody can predict costs more.
    """
    i = 0
    while i < len(t):
        # A run of events with one share: of one slot, and until so many are kept.
        stop, share_below, kept_at_most = len(t), np.uint64(1 << 32), np.int64(len(t))
        seen_before, kept_before = state[_SEEN], state[_KEPT]
        if budget > 0:
            slot = t[i] // SLOT_NS
            if slot != state[_SLOT]:
                _begin_slot(slot, budget, state)
                seen_before = kept_before = 0
            stop = i + np.searchsorted(t[i:], (slot + 1) * SLOT_NS)
            share = 1.0
            if state[_SEEN_BEFORE] > _room(budget, state):
                share = _room(budget, state) / state[_SEEN_BEFORE]
            halvings = max(0.0, np.floor((kept_before / budget - _SOFT) / _STEP) + 1)
            share_below = np.uint64(share * 0.5**halvings * 4294967296.0)
            kept_at_most = np.int64(np.ceil((_SOFT + halvings * _STEP) * budget)) - kept_before
        first, chosen, number = n, 0, state[_NUMBER]
        begin = i
        while i < stop and n - first < kept_at_most:
            bits = _hash(number + (i - begin), t[i])
            t_out[n], x_out[n], y_out[n], p_out[n] = t[i], x[i], y[i], p[i]
            is_chosen = (bits >> np.uint64(32)) < keep_below
            chosen += is_chosen
            n += is_chosen & ((bits & np.uint64(0xFFFFFFFF)) < share_below)
            i += 1
        state[_NUMBER] += i - begin
        state[_SEEN], state[_KEPT] = seen_before + chosen, kept_before + n - first
        tally[_DECIMATED] += i - begin - chosen
        tally[_OVER] += chosen - (n - first)
    return n


@njit(nogil=True, cache=True)
def _has_company(last_seen, column, row, since):
    """Whether one of the 8 pixels around had an event after a time; the map has a margin."""
    for r in range(row, row + 3):
        for c in range(column, column + 3):
            if last_seen[r, c] > since and not (r == row + 1 and c == column + 1):
                return True
    return False


@njit(nogil=True, cache=True)
def _filter(
    t, x, y, p, roi, mask, counts, refractory_ns, last_kept, background_ns, last_seen, tally,
    t_out, x_out, y_out, p_out, n,
):  # fmt: skip
    """Writes the events that their place or time does not exclude behind the first n; returns how
    many there are then. Maps without pixels are not used."""
    x0, y0, x1, y1 = roi
    masks, learns = mask.size > 0, counts.size > 0
    for i in range(len(t)):
        now, column, row = t[i], np.int64(x[i]), np.int64(y[i])
        t_out[n], x_out[n], y_out[n], p_out[n] = now, column, row, p[i]
        if (column < x0) | (column >= x1) | (row < y0) | (row >= y1):
            tally[_ROI] += 1
            continue
        if learns:
            counts[row, column] += 1
        if masks and mask[row, column]:
            tally[_MASKED] += 1
            continue
        if refractory_ns > 0:
            if now - last_kept[row, column] < refractory_ns:
                tally[_REFRACTORY] += 1
                continue
            last_kept[row, column] = now
        if background_ns > 0:
            found = _has_company(last_seen, column, row, now - background_ns)
            last_seen[row + 1, column + 1] = now
            if not found:
                tally[_BACKGROUND] += 1
                continue
        n += 1
    return n
