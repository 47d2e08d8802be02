"""Angular velocity of an IMU over a window, and how sure it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.estimation.imu import GyroTrack

MS = 1_000_000
OMEGA, ALPHA = np.array([0.4, -1.5, 2.0]), np.array([30.0, 5.0, -12.0])


def line_at(t_ns: float) -> np.ndarray:
    return OMEGA + ALPHA * (t_ns * 1e-9)


def track_of(t_ns: Any, omega: Any, **options: Any) -> GyroTrack:
    track = GyroTrack(**options)
    for stamp, value in zip(t_ns, omega, strict=True):
        track.push(int(stamp), value)
    return track


def on_the_line(t_ns: Any, **options: Any) -> GyroTrack:
    return track_of(t_ns, [line_at(t) for t in t_ns], **options)


UNEVEN_NS = np.cumsum(np.random.default_rng(1).integers(1 * MS, 8 * MS, 60)).tolist()
COVERED = [(20 * MS, 90 * MS), (31 * MS, 32 * MS), (100 * MS, 100 * MS)]


@pytest.mark.parametrize("window", COVERED)
@pytest.mark.parametrize("stamp_ns", [20 * MS, 57 * MS])
def test_a_steady_acceleration_is_fitted_exactly(window: tuple[int, int], stamp_ns: int):
    fit = on_the_line(UNEVEN_NS, floor_std_rad_s=0.03).fit(stamp_ns, *window)
    assert fit is not None
    assert fit.angular_velocity == pytest.approx(line_at(stamp_ns), abs=1e-9)
    assert fit.angular_acceleration == pytest.approx(ALPHA, abs=1e-6)
    assert fit.covariance == pytest.approx(0.03**2 * np.eye(3), abs=1e-12)
    assert fit.std_rad_s == pytest.approx(0.03)
    assert fit.samples >= 2


def test_the_order_of_arrival_does_not_matter():
    t_ns = list(range(0, 100 * MS, 5 * MS))
    shuffled = [*t_ns[1::2], *t_ns[::2], t_ns[3]]
    sorted_track, shuffled_track = on_the_line(t_ns), on_the_line(shuffled)
    window = (12 * MS, 71 * MS)
    first, second = (track.fit(40 * MS, *window) for track in (sorted_track, shuffled_track))
    assert first is not None
    assert second is not None
    assert np.array_equal(first.angular_velocity, second.angular_velocity)
    assert shuffled_track.samples.duplicates == 1
    assert shuffled_track.samples.out_of_order == 11
    assert len(shuffled_track.samples) == len(t_ns)


@pytest.mark.parametrize(
    ("t_ms", "covered"),
    [
        ([], False),
        ([100, 105, 195, 200], False),  # a gap
        ([100, 120, 140, 160, 180, 200], True),
        ([110, 120, 140, 160, 180, 190], True),  # starts late and ends early, but not much
        ([111, 120, 140, 160, 180, 200], False),
        ([100, 120, 140, 160, 180, 189], False),
        ([10, 20, 30], False),
        ([300, 310], False),
        ([80, 105, 120, 140, 160, 180, 195, 230], True),  # its neighbours are too far to count
    ],
)
def test_a_window_without_samples_near_it_gives_nothing(t_ms: list[int], covered: bool):
    track = on_the_line([t * MS for t in t_ms], tolerance_ns=10 * MS)
    fit = track.fit(150 * MS, 100 * MS, 200 * MS)
    assert (fit is not None) == covered


def test_one_sample_gives_no_fit():
    track = on_the_line([100 * MS])
    assert track.fit(100 * MS, 95 * MS, 105 * MS) is None


@pytest.mark.parametrize(
    ("step_ms", "spread", "most"),
    [(2, [0.05, 0.1, 0.2], 3.6), (2, [0.1] * 3, 3.6), (16, [0.1] * 3, 7.0)],
)
def test_the_covariance_is_that_of_noisy_samples(step_ms: int, spread: list[float], most: float):
    rng = np.random.default_rng(5)
    t_ns = range(0, 100 * MS, step_ms * MS)
    nees = []
    for _ in range(400):
        values = [line_at(t) + spread * rng.standard_normal(3) for t in t_ns]
        track = track_of(t_ns, values, floor_std_rad_s=1e-6)
        fit = track.fit(70 * MS, 0, t_ns[-1])
        assert fit is not None
        error = fit.angular_velocity - line_at(70 * MS)
        nees.append(error @ np.linalg.solve(fit.covariance, error))
    assert 2.2 < np.mean(nees) < most  # 3 for three numbers; few samples know less


def test_a_motion_that_bends_is_less_certain():
    """A line misses a motion that shakes within the window; the covariance must say so."""
    t_ns = range(0, 100 * MS, MS)
    nees, stds = [], []
    for phase in np.linspace(0, 2 * math.pi, 24, endpoint=False):
        angle = 2 * math.pi * 12 * np.array(t_ns) * 1e-9 + phase
        values = np.stack([np.sin(angle), np.cos(angle), np.sin(angle + 1)], 1)
        fit = track_of(t_ns, values, floor_std_rad_s=0.01).fit(50 * MS, 0, 99 * MS)
        assert fit is not None
        error = fit.angular_velocity - values[50]
        nees.append(error @ np.linalg.solve(fit.covariance, error) / 3)
        stds.append(fit.std_rad_s)
    assert min(stds) > 0.1
    assert np.mean(nees) < 6.0


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_refused_and_counted(odd: float):
    track = on_the_line([0, MS])
    assert not track.push(2 * MS, [0.0, odd, 0.0])
    assert track.refused == 1
    assert len(track.samples) == 2
    with pytest.raises(EventBinningError, match=r"shape \[2\], expected \[3\]"):
        track.push(3 * MS, [0.0, 1.0])


def test_samples_held_are_bounded():
    track = on_the_line(range(0, 100 * MS, MS), capacity=20)
    assert len(track.samples) == 20
    assert track.fit(15 * MS, 10 * MS, 20 * MS) is None
    fit = track.fit(90 * MS, 85 * MS, 95 * MS)
    assert fit is not None
    assert fit.angular_velocity == pytest.approx(line_at(90 * MS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance_ns": 0}, "tolerance_ns is 0"),
        ({"floor_std_rad_s": -1.0}, "floor_std_rad_s is -1"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        GyroTrack(**options)
