"""Windows partition the stream, whatever the chunks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.events.types import Events
from event_binning_grad.events.windows import WindowBuffer

NAMES = ("t", "x", "y", "p")


def events_at(times: list[int]) -> Events:
    """Events at these times, each with its number in x."""
    numbers = np.arange(len(times))
    t, x = np.array(times, np.int64), (numbers % 65536).astype(np.uint16)
    return Events(t, x, (x // 3).astype(np.uint16), (x % 2).astype(np.uint8), 640, 480)


def run(
    buffer: WindowBuffer, stream: Events, cuts: list[int]
) -> tuple[list[Events], Events | None]:
    """The complete windows and the rest, copied while they are valid."""
    windows: list[Events] = []
    borders = [0, *sorted(min(c, len(stream)) for c in cuts), len(stream)]
    for start, stop in pairwise(borders):
        chunk = stream[start:stop].copy()
        found = buffer.push(chunk)
        windows += [w.copy() for w in found]
        assert len(buffer) <= len(stream)
    rest = buffer.flush()
    assert len(buffer) == 0
    return windows, None if rest is None else rest.copy()


def assert_partition(stream: Events, windows: list[Events], rest: Events | None) -> None:
    parts = [*windows, *([rest] if rest is not None else []), stream[:0]]
    joined = Events.concatenate(parts)
    for name in NAMES:
        assert np.array_equal(getattr(joined, name), getattr(stream, name))
    assert all(len(w) for w in windows)


times_strategy = st.lists(st.integers(0, 3000), max_size=120).map(sorted)
cuts_strategy = st.lists(st.integers(0, 120), max_size=8)


@settings(max_examples=300, deadline=None)
@given(times_strategy, cuts_strategy, st.integers(1, 40))
def test_by_count(times: list[int], cuts: list[int], size: int):
    stream = events_at(times)
    windows, rest = run(WindowBuffer(window_events=size), stream, cuts)
    assert_partition(stream, windows, rest)
    assert all(len(w) == size for w in windows)
    assert (0 if rest is None else len(rest)) == len(stream) % size


@settings(max_examples=300, deadline=None)
@given(times_strategy, cuts_strategy, st.integers(1, 900))
def test_by_time(times: list[int], cuts: list[int], length: int):
    stream = events_at(times)
    windows, rest = run(WindowBuffer(window_ns=length), stream, cuts)
    assert_partition(stream, windows, rest)
    slots = [set((w.t - stream.t[0]) // length) for w in [*windows, *([rest] if rest else [])]]
    assert all(len(slot) == 1 for slot in slots)
    order = [slot.pop() for slot in slots]
    assert order == sorted(set(order))


@settings(max_examples=100, deadline=None)
@given(times_strategy, cuts_strategy, st.integers(1, 900), st.integers(1, 20))
def test_by_time_with_a_limit(times: list[int], cuts: list[int], length: int, limit: int):
    stream = events_at(times)
    windows, rest = run(WindowBuffer(window_ns=length, max_events=limit), stream, cuts)
    assert_partition(stream, windows, rest)
    assert all(len(w) <= limit for w in windows)


def test_windows_of_one_push_stay_valid_together():
    buffer = WindowBuffer(window_events=10)
    assert buffer.push(events_at(list(range(7)))) == []
    windows = buffer.push(events_at(list(range(7, 48))))
    assert [w.t.tolist() for w in windows] == [list(range(k, k + 10)) for k in (0, 10, 20, 30)]
    assert len(buffer) == 8


def test_windows_are_views_and_nothing_is_allocated_for_them():
    buffer = WindowBuffer(window_events=1000)
    chunk = events_at(list(range(700)))
    first = [w for _ in range(12) for w in buffer.push(chunk)]
    assert all(w.t.base is not None for w in first)
    assert len({w.t.__array_interface__["data"][0] for w in first}) == 2


def test_a_time_window_grows_and_a_long_silence_costs_nothing():
    buffer = WindowBuffer(window_ns=10**9)
    many = events_at([5] * 200_000)
    assert buffer.push(many) == []
    windows = buffer.push(events_at([2**61]))
    assert [len(w) for w in windows] == [200_000]
    assert np.array_equal(windows[0].x, many.x)


def test_clear_counts_what_it_drops():
    buffer = WindowBuffer(window_events=10)
    buffer.push(events_at(list(range(17))))
    assert len(buffer) == 7
    assert buffer.clear() == 7
    assert buffer.clear() == 0
    assert buffer.flush() is None


@settings(max_examples=300, deadline=None)
@given(times_strategy, cuts_strategy, st.integers(1, 40), st.integers(1, 700))
def test_by_count_or_time(times: list[int], cuts: list[int], size: int, span_ns: int):
    stream = events_at(times)
    windows, rest = run(WindowBuffer(size, span_ns), stream, cuts)
    assert_partition(stream, windows, rest)
    assert all(len(w) <= size and w.t[-1] - w.t[0] < span_ns for w in windows)
    whole, _ = run(WindowBuffer(size, span_ns), stream, [])
    assert [len(w) for w in whole] == [len(w) for w in windows]  # whatever the chunks


def test_a_window_ended_by_its_count_starts_the_time_anew():
    buffer = WindowBuffer(window_events=3, window_ns=100)
    windows = buffer.push(events_at([0, 10, 20, 90, 150, 191, 195]))
    assert [w.t.tolist() for w in windows] == [[0, 10, 20], [90, 150]]


def test_after_clear_the_time_windows_start_anew():
    buffer = WindowBuffer(window_ns=100)
    buffer.push(events_at([0, 50]))
    buffer.clear()
    windows = buffer.push(events_at([30, 125, 131]))
    assert [w.t.tolist() for w in windows] == [[30, 125]]


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="both None"):
        WindowBuffer()
    with pytest.raises(ConfigError, match="window_ns is 0"):
        WindowBuffer(window_ns=0)


def test_a_change_of_the_sensor_inside_a_window_is_refused():
    buffer = WindowBuffer(window_events=10)
    small = events_at([1, 2])
    buffer.push(small)
    with pytest.raises(EventBinningError, match="sensor size changed"):
        buffer.push(Events(small.t, small.x, small.y, small.p, 1280, 720))


def test_events_check_their_arrays():
    good = events_at([1, 2, 3])
    with pytest.raises(ValueError, match="expected uint16"):
        Events(good.t, good.t, good.y, good.p, 640, 480)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected uint8 \[3\]"):
        Events(good.t, good.x, good.y, good.p[:2], 640, 480)
    with pytest.raises(ValueError, match="sensor sizes"):
        Events.concatenate([good, Events.empty(3, 3)])
    assert np.shares_memory(good[1:].t, good.t)
