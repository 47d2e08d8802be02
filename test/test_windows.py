"""Windows are the ones that a slow reference finds, whatever the chunks; no event is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.events.types import Events
from event_binning_grad.events.windows import WindowBuffer

NAMES = ("t", "x", "y", "p")

Span = tuple[int, int]
Limits = Sequence[int | None]


@dataclass
class Cut:
    """A window as the numbers of its events in the stream, and what was said of it."""

    events: Span
    fresh: int
    skipped: int


def events_at(times: list[int]) -> Events:
    """Events at these times, each with its number in x."""
    numbers = np.arange(len(times))
    t, x = np.array(times, np.int64), (numbers % 65536).astype(np.uint16)
    return Events(t, x, (x // 3).astype(np.uint16), (x % 2).astype(np.uint8), 640, 480)


def numbers(stream: Events, window: Events) -> Span:
    """Which of the stream's events the window holds; all their fields must be the stream's."""
    span = (int(window.x[0]), int(window.x[-1]) + 1)
    for name in NAMES:
        assert np.array_equal(getattr(window, name), getattr(stream[slice(*span)], name))
    return span


def run(
    buffer: WindowBuffer, stream: Events, cuts: Sequence[int] = (), limits: Limits = (None,)
) -> tuple[list[Cut], Cut | None]:
    """The windows and the rest. The span limit is set anew after each window, in turn."""
    found: list[Cut] = []
    buffer.span_limit_ns = limits[0]
    pushed = 0
    for start, stop in pairwise([0, *sorted(min(c, len(stream)) for c in cuts), len(stream)]):
        chunk = stream[start:stop].copy()
        windows = [None]
        for window in buffer.push(chunk):
            found.append(Cut(numbers(stream, window.events), window.fresh, window.skipped))
            buffer.span_limit_ns = limits[len(found) % len(limits)]
            windows = [window]
        if windows[0] is not None:  # still as it was, after the rest was taken in
            assert numbers(stream, windows[0].events) == found[-1].events
        pushed += len(chunk)
        assert pushed == sum(w.fresh + w.skipped for w in found) + len(buffer)
    rest = buffer.flush()
    assert len(buffer) == 0
    if rest is None:
        return found, None
    return found, Cut(numbers(stream, rest.events), rest.fresh, rest.skipped)


def assert_partition(stream: Events, windows: list[Cut], rest: Cut | None) -> None:
    parts = [*windows, *([rest] if rest is not None else [])]
    borders = [0, *(part.events[1] for part in parts)]
    assert [part.events for part in parts] == list(pairwise(borders))
    assert borders[-1] == len(stream)
    assert all(part.fresh == part.events[1] - part.events[0] > 0 for part in parts)
    assert not any(part.skipped for part in parts)


def disjoint_windows(
    times: list[int], count: int, span: int | None, min_events: int, limits: Limits
) -> list[Span]:
    """What windows one after another must be, without the incomplete one: event by event."""
    found: list[Span] = []
    start, origin = 0, None
    for stop in range(1, len(times) + 1):
        first, held = times[start], stop - start
        origin = first if origin is None else origin
        limit = limits[len(found) % len(limits)]
        next_ns = times[stop] if stop < len(times) else -1
        spanned = limit is not None and held >= min_events and next_ns >= first + limit
        if held == count or spanned:
            origin = None
        elif span is None or (next_ns - origin) // span <= (first - origin) // span:
            continue
        found.append((start, stop))
        start = stop
    return found


def due_windows(
    times: list[int],
    period: int,
    count: int,
    span: int | None,
    min_events: int,
    limits: Limits,
) -> tuple[list[Cut], Cut | None]:
    """What overlapping windows must be: every due time, every event, one by one."""
    found: list[Cut] = []
    ended = 0

    def window(due: int, waiting: bool) -> Cut | None:
        stop = sum(t < due for t in times)
        start = max(0, stop - count)
        while span is not None and start < stop and times[start] < due - span:
            start += 1
        if stop == ended or start == stop:
            return None
        lasting = span is None or times[ended] + span >= due + period
        if waiting and stop - start < min_events and lasting:
            return None
        limit = limits[len(found) % len(limits)]
        while limit is not None and stop - start > min_events and times[start] < due - limit:
            start += 1
        fresh = min(stop - start, stop - ended)
        return Cut((start, stop), fresh, stop - ended - fresh)

    if not times:
        return found, None
    for due in range(times[0] + period, times[-1] + 1, period):
        cut = window(due, waiting=True)
        if cut is not None:
            found.append(cut)
            ended = cut.events[1]
    return found, window(times[-1] + 1, waiting=False)


# Dense stretches with gaps between them, short and long streams alike.
gaps_strategy = st.lists(st.integers(0, 8) | st.integers(0, 300), max_size=100)
times_strategy = gaps_strategy.map(lambda gaps: [7 + sum(gaps[:k]) for k in range(len(gaps))])
cuts_strategy = st.lists(st.integers(0, 120), max_size=8)
limits_strategy = st.lists(st.none() | st.integers(1, 300), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(times_strategy, cuts_strategy, st.integers(1, 40))
def test_by_count(times: list[int], cuts: list[int], size: int):
    stream = events_at(times)
    windows, rest = run(WindowBuffer(window_events=size), stream, cuts)
    assert_partition(stream, windows, rest)
    assert all(w.fresh == size for w in windows)
    assert (0 if rest is None else rest.fresh) == len(stream) % size


@settings(max_examples=300, deadline=None)
@given(times_strategy, cuts_strategy, st.integers(1, 900))
def test_by_time(times: list[int], cuts: list[int], length: int):
    stream = events_at(times)
    windows, rest = run(WindowBuffer(window_ns=length), stream, cuts)
    assert_partition(stream, windows, rest)
    parts = [*windows, *([rest] if rest else [])]
    slots = [set((stream.t[slice(*w.events)] - stream.t[0]) // length) for w in parts]
    assert all(len(slot) == 1 for slot in slots)
    order = [slot.pop() for slot in slots]
    assert order == sorted(set(order))


@settings(max_examples=100, deadline=None)
@given(times_strategy, cuts_strategy, st.integers(1, 900), st.integers(1, 20))
def test_by_time_with_a_limit(times: list[int], cuts: list[int], length: int, limit: int):
    stream = events_at(times)
    windows, rest = run(WindowBuffer(window_ns=length, max_events=limit), stream, cuts)
    assert_partition(stream, windows, rest)
    assert all(w.fresh <= limit for w in windows)


@settings(max_examples=500, deadline=None)
@given(
    times_strategy,
    cuts_strategy,
    st.integers(1, 20),
    st.integers(1, 500) | st.none(),
    st.integers(1, 5),
    limits_strategy,
)
def test_windows_by_count_time_or_span_are_the_references(
    times: list[int],
    cuts: list[int],
    count: int,
    span: int | None,
    min_events: int,
    limits: list[int | None],
):
    count = max(count, min_events)
    stream = events_at(times)
    windows, rest = run(WindowBuffer(count, span, min_events=min_events), stream, cuts, limits)
    assert_partition(stream, windows, rest)
    expected = disjoint_windows(times, count, span, min_events, limits)
    assert [w.events for w in windows] == expected


@settings(max_examples=1000, deadline=None)
@given(
    times_strategy,
    cuts_strategy,
    st.integers(1, 900),
    st.integers(1, 40) | st.none(),
    st.integers(1, 900) | st.none(),
    st.integers(1, 12),
    limits_strategy,
)
def test_overlapping_windows_are_the_references(
    times: list[int],
    cuts: list[int],
    period: int,
    count: int | None,
    span: int | None,
    min_events: int,
    limits: list[int | None],
):
    if count is None and span is None:
        span = 500
    limit = max(count or 25, min_events)
    stream = events_at(times)
    buffer = WindowBuffer(
        None if count is None else limit,
        span,
        period_ns=period,
        min_events=min_events,
        max_events=limit,
    )
    expected = due_windows(times, period, limit, span, min_events, limits)
    assert run(buffer, stream, cuts, limits) == expected
    assert run(buffer, stream, cuts, limits) == expected  # flush() ended the stream before


def test_overlapping_windows_come_at_the_rate_and_hold_the_latest_events():
    stream = events_at(list(range(0, 1000, 2)))
    windows, rest = run(WindowBuffer(100, period_ns=50, min_events=50), stream, [7, 300])
    # 25 events a period: 50 are there at the second due time, 100 at the fourth.
    assert [w.events for w in windows[:4]] == [(0, 50), (0, 75), (0, 100), (25, 125)]
    assert [w.fresh for w in windows] == [50] + [25] * 17
    assert rest is not None
    assert rest.events == (400, 500)


def test_the_span_limit_counts_for_the_next_window_of_the_same_push():
    buffer = WindowBuffer(1000, period_ns=100, min_events=5)
    lengths = []
    for window in buffer.push(events_at(list(range(501)))):
        lengths.append(len(window.events))
        buffer.span_limit_ns = 300 - 100 * len(lengths)
    assert lengths == [100, 200, 100, 5, 5]


def test_events_between_windows_are_skipped_and_counted():
    windows, rest = run(WindowBuffer(10, period_ns=100), events_at(list(range(250))))
    assert [(w.events, w.fresh, w.skipped) for w in windows] == [
        ((90, 100), 10, 90),
        ((190, 200), 10, 90),
    ]
    assert rest is not None
    assert (rest.events, rest.skipped) == ((240, 250), 40)


def test_a_sparse_stream_waits_for_whole_windows():
    times = list(range(0, 2000, 10))  # five events a period, ten in reach of a window
    too_few, _ = run(WindowBuffer(50, 100, period_ns=50, min_events=20), events_at(times))
    assert {w.fresh for w in too_few} == {10}  # as long as it can, losing none
    assert not any(w.skipped for w in too_few)
    enough, _ = run(WindowBuffer(50, 100, period_ns=50, min_events=10), events_at(times))
    assert [w.events for w in enough[:2]] == [(0, 10), (5, 15)]
    patient, _ = run(WindowBuffer(50, period_ns=50, min_events=20), events_at(times))
    assert patient[0].events == (0, 20)
    assert patient[1].events == (0, 25)


def test_after_a_silence_nothing_is_due_but_what_came_before_it():
    buffer = WindowBuffer(20, 1000, period_ns=10, min_events=5)
    assert [len(w.events) for w in buffer.push(events_at(list(range(8))))] == []
    (window,) = [w.fresh for w in buffer.push(events_at([2**60]))]  # 1e17 periods later
    assert window == 8
    assert [w.fresh for w in buffer.push(events_at([2**60 + 5000]))] == [1]
    assert len(buffer) == 1


@pytest.mark.parametrize("period_ns", [None, 400])
def test_memory_is_bounded_and_nothing_is_allocated_for_a_window(period_ns: int | None):
    buffer = WindowBuffer(1000, 2000, period_ns=period_ns)
    arrays = set()
    for k in range(300):
        times = list(range(700 * k, 700 * (k + 1)))
        for window in buffer.push(events_at(times)):
            base = window.events.t.base
            assert base is not None
            if len(base) != 700:  # not a part of the chunk
                arrays.add((id(base), len(base)))
    assert len(arrays) == 2
    assert {size for _, size in arrays} == {2000}


def test_a_time_window_grows_and_a_long_silence_costs_nothing():
    buffer = WindowBuffer(window_ns=10**9)
    many = events_at([5] * 200_000)
    assert list(buffer.push(many)) == []
    windows = list(buffer.push(events_at([2**61])))
    assert [len(w.events) for w in windows] == [200_000]
    assert np.array_equal(windows[0].events.x, many.x)


@pytest.mark.parametrize("period_ns", [None, 400])
def test_clear_counts_what_it_drops(period_ns: int | None):
    buffer = WindowBuffer(window_events=10, period_ns=period_ns)
    assert len(list(buffer.push(events_at(list(range(17)))))) == (1 if period_ns is None else 0)
    held = len(buffer)
    assert held == (7 if period_ns is None else 17)
    assert buffer.clear() == held
    assert buffer.clear() == 0
    assert buffer.flush() is None


@pytest.mark.parametrize("limits", [[None], [1000], [30]])
def test_a_window_ended_by_its_count_or_span_starts_the_time_anew(limits: list[int | None]):
    stream = events_at([0, 10, 20, 90, 150, 191, 195])
    windows, _ = run(WindowBuffer(3, 100, min_events=2), stream, limits=limits)
    assert [w.events for w in windows] == [(0, 3), (3, 5)]


@pytest.mark.parametrize("period_ns", [None, 100])
def test_after_clear_the_time_windows_start_anew(period_ns: int | None):
    buffer = WindowBuffer(window_ns=100, period_ns=period_ns)
    assert list(buffer.push(events_at([0, 50]))) == []
    buffer.clear()
    windows = list(buffer.push(events_at([30, 125, 131])))
    assert [w.events.t.tolist() for w in windows] == [[30, 125]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "both None"),
        ({"window_ns": 0}, "window_ns is 0"),
        ({"window_ns": 5, "period_ns": 0}, "period_ns is 0"),
        ({"window_events": 5, "min_events": 6}, "min_events is 6, expected at most the 5"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message):
        WindowBuffer(**settings)


@pytest.mark.parametrize("period_ns", [None, 1])
def test_a_change_of_the_sensor_inside_a_window_is_refused(period_ns: int | None):
    buffer = WindowBuffer(window_events=10, period_ns=period_ns)
    small = events_at([1, 2])
    list(buffer.push(small))
    large = Events(small.t, small.x, small.y, small.p, 1280, 720)
    with pytest.raises(EventBinningError, match="sensor size changed"):
        buffer.push(large)
    buffer.clear()
    windows = list(buffer.push(large))
    assert [w.events.width for w in windows] == [1280] * (0 if period_ns is None else 1)


def test_events_check_their_arrays():
    good = events_at([1, 2, 3])
    with pytest.raises(ValueError, match="expected uint16"):
        Events(good.t, good.t, good.y, good.p, 640, 480)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected uint8 \[3\]"):
        Events(good.t, good.x, good.y, good.p[:2], 640, 480)
    with pytest.raises(ValueError, match="sensor sizes"):
        Events.concatenate([good, Events.empty(3, 3)])
    assert np.shares_memory(good[1:].t, good.t)
