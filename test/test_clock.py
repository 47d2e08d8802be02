"""The sensor's clock against the robot's."""

from __future__ import annotations

import numpy as np

from event_binning_grad.events.clock import StreamClock

S, MS = 10**9, 10**6


def test_identity_before_the_first_stamp_and_for_epoch_encodings():
    clock = StreamClock.for_encoding("evt3")
    assert clock.to_robot(5) == 5
    clock.update(3 * S, 0)  # a stamp of 0 is none
    assert clock.to_robot(5) == 5
    libcaer = StreamClock.for_encoding("libcaer")
    libcaer.update(3 * S, 1_700_000_000 * S)
    assert libcaer.to_robot(4 * S) == 4 * S


def test_the_least_delayed_packet_counts():
    rng, clock, offset = np.random.default_rng(1), StreamClock(), 1_700_000_000 * S
    for k in range(1000):
        late = 0 if k % 50 == 7 else int(rng.integers(0, 20 * MS))
        clock.update(k * 4 * MS, offset + k * 4 * MS + late)
        assert offset <= clock.to_robot(0)
        if k >= 7:
            assert clock.to_robot(10 * S) == offset + 10 * S


def test_drift_is_followed_within_the_memory():
    clock, drift = StreamClock(memory_ns=2 * S), 100e-6
    for k in range(20_000):
        t = k * 4 * MS
        clock.update(t, 50 * S + round(t * (1 + drift)))
        assert abs(clock.to_robot(t) - (50 * S + t * (1 + drift))) <= 2 * S * drift + 1


def test_jumps_of_the_hosts_clock():
    clock = StreamClock(memory_ns=S)
    clock.update(0, 100 * S)
    clock.update(4 * MS, 90 * S)  # set back: nothing arrives before it happened
    assert clock.to_robot(4 * MS) == 90 * S
    for k in range(2, 300):  # set forward: followed once the memory holds nothing else
        clock.update(k * 4 * MS, 200 * S + k * 4 * MS)
    assert clock.to_robot(0) == 200 * S


def test_reset_and_a_sensor_clock_that_goes_back():
    clock = StreamClock()
    clock.update(100 * S, 1000 * S)
    clock.update(1 * S, 1001 * S)
    assert clock.to_robot(1 * S) == 1001 * S
    clock.reset()
    assert clock.to_robot(7) == 7
    clock.update(0, 2000 * S)
    assert clock.to_robot(0) == 2000 * S


def test_a_packet_without_its_first_events_counts_only_as_long_as_nothing_is_better():
    clock = StreamClock()
    clock.update(1_000, 5_000, provisional=True)
    assert clock.to_robot(1_000) == 5_000
    clock.update(2_000, 6_500)
    assert clock.offset_ns == 4_500
    clock.update(9_000, 12_000, provisional=True)  # its first events, at 7 500, were dropped
    assert clock.offset_ns == 4_500


def test_reset_forgets_a_provisional_offset_too():
    clock = StreamClock()
    clock.update(1_000, 5_000, provisional=True)
    clock.reset()
    assert clock.offset_ns == 0
