"""The sensor's clock against the robot's: simulated clocks and links, and a plain reference."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_binning_grad.errors import ConfigError
from event_binning_grad.events.clock import (
    EPOCH_ENCODINGS,
    MAX_SPREAD_NS,
    STEP_FORWARD_AFTER_NS,
    ClockCounters,
    StreamClock,
    _slope_below,
)

US, MS, S = 10**3, 10**6, 10**9
EPOCH = 1_700_000_000 * S
PERIOD = 4 * MS

Truth = Callable[[int], int]
Delays = Callable[[np.random.Generator, int], np.ndarray]


def exponential(mean_ms: float) -> Delays:
    return lambda rng, count: rng.exponential(mean_ms * MS, count)


def ticking(drift: float) -> Truth:
    """A robot's clock that goes faster than the sensor's by so much."""
    return lambda t: EPOCH + t + round(t * drift)


def follow(
    truth: Truth,
    delays: Delays,
    seconds: float = 40.0,
    period: int = PERIOD,
    clock: StreamClock | None = None,
) -> tuple[StreamClock, np.ndarray, np.ndarray]:
    """The clock, the sensor's times of the packets, s, and the errors of their robot times, us."""
    clock = clock or StreamClock()
    times = np.arange(0, round(seconds * S), period)
    late = delays(np.random.default_rng(3), len(times))
    errors = np.empty(len(times))
    for k, (t, delay) in enumerate(zip(times.tolist(), late.tolist(), strict=True)):
        clock.update(t, truth(t) + int(delay))
        errors[k] = (clock.to_robot(t) - truth(t)) / US
    return clock, times / S, errors


def test_identity_before_the_first_stamp():
    clock = StreamClock.for_encoding("evt3")
    assert clock.to_robot(5) == 5
    clock.update(3 * S, 0)  # a stamp of 0 is none
    assert clock.to_robot(5) == 5
    assert clock.offset_ns == 0
    assert not clock.counters.learnt


@pytest.mark.parametrize("encoding", sorted(EPOCH_ENCODINGS))
def test_times_that_are_the_hosts_are_taken_as_they_are(encoding: str):
    clock = StreamClock.for_encoding(encoding)
    for k in range(100):
        clock.update(EPOCH + k * PERIOD, EPOCH + k * PERIOD + 3 * MS)
        assert clock.to_robot(EPOCH + 4 * S) == EPOCH + 4 * S
    assert not clock.counters.learnt
    assert clock.counters.delay_ms(0.5) == 3.0
    learnt = StreamClock.for_encoding(encoding, "arrival")
    learnt.update(EPOCH, EPOCH + 3 * MS)
    assert learnt.to_robot(EPOCH) == EPOCH + 3 * MS


def test_epoch_times_of_another_clock_are_learnt_after_all():
    """A recording's own time, or that of a host whose clock was never set."""
    clock = StreamClock.for_encoding("event_array")
    for k in range(3):
        clock.update(k * PERIOD, EPOCH + k * PERIOD)
        assert clock.to_robot(k * PERIOD) == EPOCH + k * PERIOD
    assert clock.counters.learnt
    assert clock.counters.steps == 0
    sensor = StreamClock.for_encoding("event_array", "sensor")
    for k in range(10):
        sensor.update(k * PERIOD, EPOCH + k * PERIOD)
    assert sensor.to_robot(7) == 7


def test_epoch_times_whose_stamps_leave_them_are_learnt_from_then_on():
    clock = StreamClock.for_encoding("dv")
    clock.update(EPOCH, EPOCH + MS)
    for k in range(1, 6):  # one or two stamps may be wrong
        clock.update(EPOCH + k * PERIOD, EPOCH + k * PERIOD + 3600 * S)
        set_by = 3600 * S if k >= 3 else 0
        assert clock.to_robot(EPOCH + k * PERIOD) == EPOCH + k * PERIOD + set_by
    assert clock.counters.steps == 1


def test_a_rollover_of_32_bits_of_us_keeps_the_robots_time():
    """A driver that adds its start to a counter of the camera: 35.8 min back from there."""
    clock, rollover = StreamClock.for_encoding("event_array_ros1"), 2**31 * US
    for k in range(20):
        true = EPOCH + rollover - 10 * PERIOD + k * PERIOD
        t = true - (rollover if k >= 10 else 0)
        clock.update(t, true + MS)
        assert clock.to_robot(t) - true == (MS if k >= 10 else 0)
    assert (clock.counters.resets, clock.counters.steps) == (1, 0)


def test_an_unknown_clock_is_refused():
    with pytest.raises(ConfigError, match="clock 'ntp': expected one of auto, sensor, arrival"):
        StreamClock("ntp")


def test_the_first_packet_tells_the_offset():
    clock = StreamClock()
    clock.update(7 * S, EPOCH)
    assert clock.to_robot(7 * S + 5) == EPOCH + 5
    assert clock.offset_ns == EPOCH - 7 * S


# Name, delay of the arrivals, and the errors allowed, us: at the median and at the 99 % quantile of
# times after 5 s, and of the drift, ppm. docs/time.md states them.
LINKS = {
    "no delay": (lambda rng, count: np.zeros(count), 0.1, 0.1, 0.01),
    "jitter 1 ms": (exponential(1.0), 3.0, 20.0, 0.5),
    "jitter 5 ms": (exponential(5.0), 15.0, 80.0, 2.0),
    "batches of 8.5 ms": (lambda rng, n: -np.arange(n) * PERIOD % (17 * MS // 2), 1.0, 1.0, 0.1),
    "1 ms, 1 % stalls of 100 ms": (
        lambda rng, n: rng.exponential(MS, n) + 100 * MS * (rng.random(n) < 0.01),
        3.0,
        20.0,
        0.5,
    ),
    "1 ms, 1 % of the stamps far off": (
        lambda rng, n: rng.exponential(MS, n) + (rng.random(n) < 0.01) * rng.normal(0, 1e12, n),
        3.0,
        20.0,
        0.5,
    ),
}


@pytest.mark.parametrize("drift", [100e-6, -100e-6, 0.0])
@pytest.mark.parametrize("link", LINKS)
def test_offset_and_drift_are_found_under_jitter(link: str, drift: float):
    delays, median_us, most_us, ppm = LINKS[link]
    clock, seconds, errors = follow(ticking(drift), delays)
    assert np.abs(errors[seconds > 0.5]).max() < 300  # the drift is not known before 4 s
    late = np.abs(errors[seconds > 5])
    assert np.median(late) <= median_us
    assert np.quantile(late, 0.99) <= most_us
    assert clock.counters.drift_ppm == pytest.approx(1e6 * drift, abs=ppm)
    assert clock.counters.steps == 0


def test_delays_are_reported():
    clock, _, _ = follow(ticking(20e-6), exponential(2.0))
    assert clock.counters.delay_ms(0.5) == pytest.approx(2 * np.log(2), rel=0.3)
    assert clock.counters.delay_ms(0.99) == pytest.approx(2 * np.log(100), rel=0.5)
    assert np.isnan(ClockCounters().delay_ms(0.5))


def test_rare_packets_are_remembered_longer():
    clock, seconds, errors = follow(ticking(80e-6), exponential(1.0), 300.0, 500 * MS)
    assert np.quantile(np.abs(errors[seconds > 60]), 0.9) < 1500
    assert clock.counters.drift_ppm == pytest.approx(80, abs=30)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_clock_that_ntp_slews_is_followed(sign: int):
    """500 ppm for 20 s: 10 ms."""

    def truth(t: int) -> int:
        return EPOCH + t + sign * round(500e-6 * min(max(t - 20 * S, 0), 20 * S))

    clock, seconds, errors = follow(truth, exponential(1.0), 80.0)
    assert np.abs(errors[seconds > 1]).max() < 1500
    assert np.abs(errors[(seconds > 36) & (seconds < 40) | (seconds > 56)]).max() < 50
    assert clock.counters.steps == 0


@pytest.mark.parametrize("step_s", [0.03, 0.5, 3600.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_clock_that_was_set(step_s: float, sign: int):
    step = sign * round(step_s * S)
    clock, seconds, errors = follow(
        lambda t: EPOCH + t + (step if t >= 20 * S else 0), exponential(1.0)
    )
    assert clock.counters.steps == 1
    assert clock.counters.last_step_ns == pytest.approx(step, abs=2 * MS)
    # Back: after three packets; forward: it could be a delay, for a second. Little ones are spread.
    known = 20 + (0.02 if sign < 0 else 1.02) + (0.1 if step_s < 0.05 else 0.0)
    assert np.abs(errors[seconds > known + 0.3]).max() < 300
    assert np.abs(errors[seconds < 20]).max() < 3000


def test_a_backlog_that_is_worked_off_is_no_step():
    """1.5 s of packets arrive at once."""

    def delays(rng: np.random.Generator, count: int) -> np.ndarray:
        t = np.arange(count) * PERIOD
        return rng.exponential(MS, count) + np.where((t > 20 * S) & (t < 21.5 * S), 21.5 * S - t, 0)

    clock, seconds, errors = follow(ticking(50e-6), delays)
    assert clock.counters.steps == 0
    assert np.abs(errors[seconds > 5]).max() < 300


def test_a_late_start_is_caught_up_without_going_back():
    """The first packets waited 30 ms for the driver to start."""
    late = lambda rng, count: np.where(np.arange(count) < 3, 30.0 * MS, 0.0)  # noqa: E731
    clock, seconds, errors = follow(ticking(0.0), late, 1.0)
    assert np.abs(errors[seconds > 0.08]).max() == 0
    assert clock.counters.steps == 0


@pytest.mark.parametrize("backlog_s", [0.03, 0.5, 2.0])
def test_a_backlog_at_the_start_is_over_when_it_is_worked_off(backlog_s: float):
    """The first packets waited so long, and came all at once."""

    def delays(rng: np.random.Generator, count: int) -> np.ndarray:
        return np.maximum(rng.exponential(MS, count), backlog_s * S - np.arange(count) * PERIOD)

    _, seconds, errors = follow(ticking(50e-6), delays, 8.0)
    assert np.abs(errors[(seconds > 0.1 + backlog_s)]).max() < 300
    assert np.abs(errors).max() <= 1e6 * backlog_s + 300


def test_robot_times_of_events_never_go_back_and_never_change():
    """An event keeps the time that it was given, and the next one is not before it."""
    rng, clock = np.random.default_rng(4), StreamClock()
    given_times: list[tuple[int, int]] = []
    for k in range(4000):
        t = k * PERIOD
        late = 45 * MS * rng.random() ** 3 + (200 * MS if rng.random() < 0.01 else 0)
        clock.update(t, EPOCH + t + int(late))
        for event in (t, t + PERIOD // 2, t + PERIOD - 1):
            robot = clock.to_robot(event)
            assert not given_times or robot >= given_times[-1][1]
            given_times.append((event, robot))
        for event, robot in given_times[-60:]:
            assert clock.to_robot(event) == robot
    assert clock.counters.steps == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3 * S),  # time to the next packet
            st.integers(0, 400 * MS),  # its delay
            st.sampled_from([0] * 30 + [1, -1]) | st.integers(-3, 3),  # the host's clock is set
        ),
        max_size=120,
    ),
    st.integers(-100, 100),
)
def test_any_stream(packets: list[tuple[int, int, int]], ppm: int):
    """Bounded memory, no error, and times that go back at a step of the clock only."""
    clock, t, set_ns, last = StreamClock(), 0, 0, None
    for since, delay, step in packets:
        t += since
        set_ns += step * S
        steps = clock.counters.steps
        clock.update(t, EPOCH + t + round(t * ppm * 1e-6) + set_ns + delay)
        robot = clock.to_robot(t)
        stepped = clock.counters.steps > steps
        if not (stepped and abs(clock.counters.last_step_ns) > MAX_SPREAD_NS):
            assert last is None or robot >= last
        last = robot
        assert len(clock._points) <= 600
        assert len(clock._plans) <= 512
    again = StreamClock()
    t = set_ns = 0
    for since, delay, step in packets:
        t += since
        set_ns += step * S
        again.update(t, EPOCH + t + round(t * ppm * 1e-6) + set_ns + delay)
    assert again.to_robot(t) == clock.to_robot(t)
    assert again.counters == clock.counters


def plain_slope(points: list[tuple[int, int]]) -> float:
    """The line through two points, below all, with the least sum of distances: all pairs tried."""
    best, slope = np.inf, 0.0
    for i, (xa, ya) in enumerate(points):
        for xb, yb in points[i + 1 :]:
            b = (yb - ya) / (xb - xa)
            above = [y - ya - b * (x - xa) for x, y in points]
            if min(above) >= -1e-6 * max(1.0, abs(b)) and sum(above) < best - 1e-6:
                best, slope = sum(above), b
    return slope


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(-100, 100)), min_size=2, max_size=25),
    st.integers(0, 2**60),
)
def test_slope_is_that_of_the_best_line_below_all_points(steps: list[tuple[int, int]], base: int):
    t, points = 0, []
    for since, offset in steps:
        t += since
        points.append((t, offset))
    fast = _slope_below(deque((base + t, base + offset) for t, offset in points))
    slope = plain_slope(points)
    if abs(fast - slope) > 1e-9:  # two lines may be equally good, where the mean is a corner

        def cost(b: float) -> float:
            least = min(y - b * x for x, y in points)
            return sum(y - b * x - least for x, y in points)

        assert cost(fast) == pytest.approx(cost(slope), abs=1e-6)


def test_a_sensor_clock_that_began_anew():
    clock = StreamClock()
    clock.update(100 * S, EPOCH)
    clock.update(1 * S, EPOCH + S)
    assert clock.to_robot(1 * S) == EPOCH + S
    assert clock.counters.resets == 1
    clock.reset()
    assert clock.to_robot(7) == 7
    clock.update(0, 2 * EPOCH)
    assert clock.to_robot(0) == 2 * EPOCH
    assert clock.counters.resets == 2


def test_a_packet_without_its_first_events_counts_only_as_long_as_nothing_is_better():
    clock = StreamClock()
    clock.update(1_000, 5_000, provisional=True)
    assert clock.to_robot(1_000) == 5_000
    clock.update(2_000, 6_500)
    assert clock.offset_ns == 4_500
    clock.update(9_000, 12_000, provisional=True)  # its first events, at 7 500, were dropped
    assert clock.to_robot(9_000) == 13_500


def test_reset_forgets_a_provisional_offset_too():
    clock = StreamClock()
    clock.update(1_000, 5_000, provisional=True)
    clock.reset()
    assert clock.to_robot(0) == 0


def test_a_step_forward_takes_a_second_to_believe():
    clock = StreamClock()
    for k in range(1000):
        t = k * PERIOD
        clock.update(t, EPOCH + t + (200 * MS if t >= 2 * S else 0))
        behind = clock.to_robot(t) - EPOCH - t
        assert behind == (200 * MS if t >= 2 * S + STEP_FORWARD_AFTER_NS else 0)
