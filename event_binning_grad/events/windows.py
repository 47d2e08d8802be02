"""Cutting a stream of events into windows, by count or by time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.events.types import Events

MAX_EVENTS_PER_TIME_WINDOW = 1 << 23
_FIRST_CAPACITY = 1 << 16

_Arrays = tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint8]]


class WindowBuffer:
    """Gathers events until a window is full; each event is in exactly one window.

    A window holds window_events events, or spans window_ns, or ends at whichever of both limits
    comes first. Windows by time are [t0 + k T, t0 + (k + 1) T) with T = window_ns and t0 the time
    of the first event, or of the first event after a window that its count ended; one is complete
    when an event after it comes, and empty ones are left out. Without a limit by count a window
    that reaches max_events ends there, so that memory stays bounded.

    Windows are views: of the buffer's own arrays or of the pushed events. They are valid until
    the next push(), flush() or clear(). Nothing is allocated per window.
    """

    def __init__(
        self,
        window_events: int | None = None,
        window_ns: int | None = None,
        *,
        max_events: int = MAX_EVENTS_PER_TIME_WINDOW,
    ) -> None:
        if window_events is None and window_ns is None:
            raise ConfigError("window_events and window_ns are both None: set one, or both")
        for name, value in (
            ("window_events", window_events),
            ("window_ns", window_ns),
            ("max_events", max_events),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")
        self._window_ns = window_ns
        self._max_events = max_events if window_events is None else window_events
        # A window that was handed out lies in one bank while the next one grows in the other.
        capacity = min(self._max_events, _FIRST_CAPACITY) if window_ns else self._max_events
        self._banks = [_Bank(capacity), _Bank(capacity)]
        self._held = 0
        self._size: tuple[int, int] | None = None
        self._origin_ns: int | None = None
        self._end_ns = 0

    def __len__(self) -> int:
        """Events held that are in no window yet."""
        return self._held

    def push(self, events: Events) -> list[Events]:
        """Takes events that follow the ones before; returns the windows that they complete."""
        size = (events.width, events.height)
        if self._held and size != self._size:
            raise EventBinningError(
                f"the sensor size changed from {self._size} to {size} inside a window: "
                "clear the buffer at a discontinuity"
            )
        self._size = size
        windows, start = [], 0
        while start < len(events):
            stop = self._window_stop(events.t, start)
            if stop is None:
                self._hold(events[start:])
                break
            windows.append(self._close(events[start:stop]))
            start = stop
        return windows

    def flush(self) -> Events | None:
        """The events of the last, incomplete window; None if there are none."""
        if not self._held or self._size is None:
            return None
        window = self._close(Events.empty(*self._size))
        self._origin_ns = None
        return window

    def clear(self) -> int:
        """Drops the events held, and returns how many they were."""
        dropped, self._held = self._held, 0
        self._origin_ns = None
        return dropped

    def _window_stop(self, t: NDArray[np.int64], start: int) -> int | None:
        """Where the window that goes on at t[start] ends; None if it needs more events."""
        full = start + self._max_events - self._held
        if self._window_ns is None:
            return full if full <= len(t) else None
        if not self._held:
            now = int(t[start])
            self._origin_ns = now if self._origin_ns is None else self._origin_ns
            index = (now - self._origin_ns) // self._window_ns
            self._end_ns = self._origin_ns + (index + 1) * self._window_ns
        stop = start + int(np.searchsorted(t[start:], self._end_ns, side="left"))
        if full <= min(stop, len(t)):
            self._origin_ns = None  # ended by its count: the next one's time starts anew
            return full
        return stop if stop < len(t) else None

    def _hold(self, events: Events) -> None:
        self._banks[0].write(self._held, events)
        self._held += len(events)

    def _close(self, events: Events) -> Events:
        """The window of the events held and these."""
        if not self._held:
            return events
        self._hold(events)
        window = self._banks[0].view(self._held, events.width, events.height)
        self._banks.reverse()
        self._held = 0
        return window


class _Bank:
    """Arrays for one window, grown by doubling."""

    def __init__(self, capacity: int) -> None:
        self._arrays = _new_arrays(capacity)

    def write(self, start: int, events: Events) -> None:
        stop = start + len(events)
        if stop > len(self._arrays[0]):
            before = self._arrays
            self._arrays = _new_arrays(max(stop, 2 * len(before[0])))
            for new, old in zip(self._arrays, before, strict=True):
                new[:start] = old[:start]
        t, x, y, p = self._arrays
        t[start:stop], x[start:stop] = events.t, events.x
        y[start:stop], p[start:stop] = events.y, events.p

    def view(self, count: int, width: int, height: int) -> Events:
        t, x, y, p = self._arrays
        return Events(t[:count], x[:count], y[:count], p[:count], width, height)


def _new_arrays(capacity: int) -> _Arrays:
    return (
        np.empty(capacity, np.int64),
        np.empty(capacity, np.uint16),
        np.empty(capacity, np.uint16),
        np.empty(capacity, np.uint8),
    )
