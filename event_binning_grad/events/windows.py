"""Cutting a stream of events into windows: one after another, or overlapping at a rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.events.types import Events

MAX_EVENTS_PER_TIME_WINDOW = 1 << 23
_FIRST_CAPACITY = 1 << 16

_Arrays = tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Events to estimate from, and what became of the events since the last window.

    events: views, in the order of time.
    fresh: how many of them (the last ones) are in no earlier window.
    skipped: events between the last window and this one; no window holds them.
    """

    events: Events
    fresh: int
    skipped: int


class WindowBuffer:
    """Gathers events and hands out windows of them, in one of two ways.

    One after another (period_ns is None): each event is in exactly one window. A window holds
    window_events events, or spans window_ns, or ends at whichever of both limits comes first.
    Windows by time are [t0 + k T, t0 + (k + 1) T) with T = window_ns and t0 the time of the first
    event, or of the first event after a window that another limit ended; one is complete when an
    event after it comes, and empty ones are left out.

    Overlapping (period_ns is set): a window is due at every multiple of period_ns since the first
    event, and handed out when an event at or after that time comes. It holds the latest events
    before the due time, window_events of them at most, and none more than window_ns older than
    the due time. A due window without a new event is left out. One of fewer than min_events waits
    for more, until its oldest new event would be out of reach of the window due next; so a sparse
    stream gives a window every window_ns, not one every period_ns.

    In both ways the attribute span_limit_ns bounds the windows' time further, but never to fewer
    than min_events events. The consumer may set it after each window, and the next one heeds it;
    clear() leaves it. Without window_events a window holds max_events at most.

    Every event is in exactly one of: a window's `fresh`, a window's `skipped`, `len(buffer)`, or
    what clear() returned. Memory: room for four times window_events (or max_events) at most.
    Nothing is allocated per window once the arrays have grown.

    Args:
        window_events: events a window at most; None for no limit.
        window_ns: time that a window spans at most, ns; None for no limit.
        period_ns: time from one due window to the next, ns; None: windows one after another.
        min_events: what span_limit_ns never goes below, and overlapping windows wait for.
        max_events: events a window at most where window_events is None.

    Raises:
        ConfigError: no limit at all, or one that is not positive or below min_events.
    """

    def __init__(
        self,
        window_events: int | None = None,
        window_ns: int | None = None,
        *,
        period_ns: int | None = None,
        min_events: int = 1,
        max_events: int = MAX_EVENTS_PER_TIME_WINDOW,
    ) -> None:
        if window_events is None and window_ns is None:
            raise ConfigError("window_events and window_ns are both None: set one, or both")
        for name, value in (
            ("window_events", window_events),
            ("window_ns", window_ns),
            ("period_ns", period_ns),
            ("min_events", min_events),
            ("max_events", max_events),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")
        self._limit = max_events if window_events is None else window_events
        if min_events > self._limit:
            raise ConfigError(
                f"min_events is {min_events}, expected at most the {self._limit} of a window"
            )
        self.span_limit_ns: int | None = None
        """Time that a window spans at most, ns, as the consumer says; None for no limit."""
        self._window_ns = window_ns
        self._period_ns = period_ns
        self._min_events = min_events
        self._history = _History(self._limit)
        self._ended = 0  # number of the event that follows the last window
        self._size: tuple[int, int] | None = None
        self._origin_ns: int | None = None
        self._end_ns = 0  # windows one after another: the end in time of the one that grows
        self._due_ns = 0  # overlapping windows: the next due time

    def __len__(self) -> int:
        """Events that came since the last window; known when push() has run to its end."""
        return max(0, self._history.stop - self._ended)

    def push(self, events: Events) -> Iterator[Window]:
        """Takes events that follow the ones before; yields the windows that they complete.

        The events are taken while the iterator runs: run it to its end. A window is valid until
        the next one is asked for, the last one until the next push(), flush() or clear(): it is a
        view, of the buffer's own arrays or of the pushed events.

        Raises:
            EventBinningError: the events come from a sensor of another size than those held.
        """
        size = (events.width, events.height)
        held = len(self) if self._period_ns is None else len(self._history.t)
        if held and size != self._size:
            raise EventBinningError(
                f"the sensor size changed from {self._size} to {size} inside a window: "
                "clear the buffer at a discontinuity"
            )
        self._size = size
        if not len(events):
            return iter(())
        return self._push(_Chunk(events, self._history.stop))

    def flush(self) -> Window | None:
        """The last window, of the events since the one before; None if none came.

        Overlapping windows reach back from the last event as from a due time, so fewer than
        min_events may be in it. The stream ends with it: the next event is a first one.
        """
        stop, window = self._history.stop, None
        if len(self) and self._size is not None:
            chunk = _Chunk(Events.empty(*self._size), stop)
            start = self._ended
            if self._period_ns is not None:
                due_ns = int(self._history.t[-1]) + 1
                start = self._bounded(chunk, self._reach(chunk, stop, due_ns), stop, due_ns)
            window = self._window(chunk, start, stop)
        self.clear()
        return window

    def clear(self) -> int:
        """Drops the events held; returns how many of them came since the last window."""
        dropped, self._ended = len(self), self._history.stop
        self._history.clear()
        self._origin_ns = None
        return dropped

    def _push(self, chunk: _Chunk) -> Iterator[Window]:
        yield from self._disjoint(chunk) if self._period_ns is None else self._overlapping(chunk)
        self._history.take(chunk, chunk.stop, self._needed_from(chunk, chunk.stop))

    def _disjoint(self, chunk: _Chunk) -> Iterator[Window]:
        while (stop := self._disjoint_stop(chunk)) is not None:
            yield self._window(chunk, self._ended, stop)

    def _disjoint_stop(self, chunk: _Chunk) -> int | None:
        """Number of the event that ends the window that grows; None if it needs more events."""
        start = self._ended
        if start == chunk.stop:
            return None
        by_count, by_time = start + self._limit, chunk.stop
        if self._window_ns is not None:
            if start >= chunk.start:  # it begins with these events
                now = self._time(chunk, start)
                self._origin_ns = now if self._origin_ns is None else self._origin_ns
                index = (now - self._origin_ns) // self._window_ns
                self._end_ns = self._origin_ns + (index + 1) * self._window_ns
            by_time = chunk.first_at(self._end_ns)
        by_span = by_count
        if self.span_limit_ns is not None:
            by_span = chunk.first_at(self._time(chunk, start) + self.span_limit_ns)
            by_span = max(by_span, start + self._min_events)
        stop = min(by_count, by_time, by_span)
        if stop == chunk.stop and stop != by_count:
            return None
        if stop in (by_count, by_span):
            self._origin_ns = None  # not ended by its time: the next one's starts anew
        return stop

    def _overlapping(self, chunk: _Chunk) -> Iterator[Window]:
        assert self._period_ns is not None
        if self._origin_ns is None:
            self._origin_ns = int(chunk.t[0])
            self._due_ns = self._origin_ns + self._period_ns
        last_ns = int(chunk.t[-1])
        while (due_ns := self._due_ns) <= last_ns:
            stop = chunk.first_at(due_ns)
            # Nothing new comes before the event at `stop`: one window at most is due until then.
            self._due_ns = self._first_due_after(self._time(chunk, stop))
            if stop == self._ended:
                continue
            start = self._reach(chunk, stop, due_ns)
            if stop - start < self._min_events:
                last_due_ns = self._waits_until(chunk)
                if last_due_ns is None or last_due_ns >= self._due_ns:
                    continue
                due_ns = max(due_ns, last_due_ns)
                start = self._reach(chunk, stop, due_ns)
            if start < stop:
                yield self._window(chunk, self._bounded(chunk, start, stop, due_ns), stop)

    def _waits_until(self, chunk: _Chunk) -> int | None:
        """The last due time at which a window still reaches its oldest new event; None: any."""
        assert self._period_ns is not None
        if self._window_ns is None:
            return None
        oldest_ns = self._time(chunk, max(self._ended, self._history.start))
        return self._first_due_after(oldest_ns + self._window_ns - self._period_ns)

    def _first_due_after(self, time_ns: int) -> int:
        assert self._origin_ns is not None
        assert self._period_ns is not None
        periods = (time_ns - self._origin_ns) // self._period_ns + 1
        return self._origin_ns + periods * self._period_ns

    def _reach(self, chunk: _Chunk, stop: int, due_ns: int) -> int:
        """Number of the first event that the window due then may hold."""
        start = max(stop - self._limit, self._history.start)
        if self._window_ns is not None:
            start = max(start, self._first_at(chunk, due_ns - self._window_ns))
        return start

    def _bounded(self, chunk: _Chunk, start: int, stop: int, due_ns: int) -> int:
        """The same, heeding span_limit_ns."""
        if self.span_limit_ns is None:
            return start
        by_span = self._first_at(chunk, due_ns - self.span_limit_ns)
        return max(start, min(by_span, stop - self._min_events))

    def _needed_from(self, chunk: _Chunk, stop: int) -> int:
        """Number of the first event that a window ending at `stop` or later may hold."""
        if self._period_ns is None:
            return self._ended
        return self._reach(chunk, stop, self._time(chunk, stop - 1) + 1)

    def _window(self, chunk: _Chunk, start: int, stop: int) -> Window:
        if start >= chunk.start:
            events = chunk.view(start, stop)
        else:
            self._history.take(chunk, stop, self._needed_from(chunk, stop))
            events = self._history.view(start, stop, chunk.events)
        new, self._ended = stop - self._ended, stop
        fresh = min(new, stop - start)
        return Window(events, fresh, new - fresh)

    def _first_at(self, chunk: _Chunk, time_ns: int) -> int:
        """Number of the first event at or after a time."""
        if len(chunk.t) and chunk.t[0] < time_ns:
            return chunk.first_at(time_ns)
        return self._history.start + int(np.searchsorted(self._history.t, time_ns))

    def _time(self, chunk: _Chunk, number: int) -> int:
        if number >= chunk.start:
            return int(chunk.t[number - chunk.start])
        return int(self._history.t[number - self._history.start])


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    """Pushed events; `start` is the number of the first one, counted from the stream's start."""

    events: Events
    start: int

    @property
    def t(self) -> NDArray[np.int64]:
        return self.events.t

    @property
    def stop(self) -> int:
        return self.start + len(self.events)

    def view(self, start: int, stop: int) -> Events:
        return self.events[start - self.start : stop - self.start]

    def first_at(self, time_ns: int) -> int:
        return self.start + int(np.searchsorted(self.events.t, time_ns))


class _History:
    """The events numbered [start, stop), in one piece.

    They lie in one of two banks. When it is full, those still needed move to the other one: so
    views of the last window stay as they are, and an event is copied twice on average at most.
    """

    def __init__(self, limit: int) -> None:
        self.start = self.stop = 0
        self._limit = limit  # more are never needed
        capacity = min(2 * limit, _FIRST_CAPACITY)
        self._banks = [_new_arrays(capacity), _new_arrays(capacity)]

    @property
    def t(self) -> NDArray[np.int64]:
        return self._banks[0][0][: self.stop - self.start]

    def view(self, start: int, stop: int, like: Events) -> Events:
        part = slice(start - self.start, stop - self.start)
        t, x, y, p = self._banks[0]
        return Events(t[part], x[part], y[part], p[part], like.width, like.height)

    def take(self, chunk: _Chunk, stop: int, needed_from: int) -> None:
        """Copies the chunk's events up to `stop`; events before needed_from may be dropped."""
        first = max(self.stop, needed_from)
        if stop - self.start > len(self._banks[0][0]) or first > self.stop:
            self._move(max(self.start, needed_from), stop)
        new, at = chunk.view(first, stop), first - self.start
        t, x, y, p = self._banks[0]
        part = slice(at, at + len(new))
        t[part], x[part], y[part], p[part] = new.t, new.x, new.y, new.p
        self.stop = stop

    def clear(self) -> None:
        self.start = self.stop

    def _move(self, start: int, stop: int) -> None:
        """Goes on in the other bank with the events from `start`, and room up to `stop`."""
        self._banks.reverse()
        if len(self._banks[0][0]) < 2 * (stop - start):
            grown = 1 << (2 * (stop - start) - 1).bit_length()
            self._banks[0] = _new_arrays(min(grown, 2 * self._limit))
        for new, old in zip(*self._banks, strict=True):
            kept = old[start - self.start : self.stop - self.start]
            new[: len(kept)] = kept
        self.start = start


def _new_arrays(capacity: int) -> _Arrays:
    return (
        np.empty(capacity, np.int64),
        np.empty(capacity, np.uint16),
        np.empty(capacity, np.uint16),
        np.empty(capacity, np.uint8),
    )
