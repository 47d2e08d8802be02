"""Depth of the scene: planes that are followed, images and ranges that come when they come."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.geometry.depth import (
    DepthImages,
    Plane,
    PlaneTrack,
    RangeTrack,
    depth_to_metres,
    resize_by_integer,
    rigid_step,
)
from event_binning_grad.geometry.stamped import Stamped

MS = 1_000_000
OMEGA, V = np.array([0.7, -1.9, 2.3]), np.array([0.4, 0.9, -0.6])
SLANTED = Plane.from_numbers(0.3, -0.2, 1.0, 2.0)


def pose_after(omega: Any, v: Any, seconds: float) -> np.ndarray:
    """[4, 4] that moves the scene's points, by the matrix exponential of X' = -omega x X - v."""
    twist = np.zeros((4, 4))
    for column, axis in enumerate(np.eye(3)):
        twist[:3, column] = -np.cross(omega, axis)
    twist[:3, 3] = -np.asarray(v)
    return expm(twist * seconds)


def points_on(plane: Plane, count: int = 20) -> np.ndarray:
    """[N, 3] points, all around."""
    points = np.random.default_rng(3).normal(0, 2, (count, 3))
    return points + np.outer(plane.distance_m - points @ plane.normal, plane.normal)


def assert_same_plane(plane: Plane, expected: Plane, tolerance: float = 1e-9) -> None:
    assert plane.normal == pytest.approx(expected.normal, abs=tolerance)
    assert plane.distance_m == pytest.approx(expected.distance_m, abs=tolerance)


def test_a_planes_numbers_are_normalised():
    plane = Plane.from_numbers(0.0, -3.0, 4.0, 10.0)
    assert plane.normal == pytest.approx([0.0, -0.6, 0.8])
    assert plane.distance_m == pytest.approx(2.0)
    assert_same_plane(Plane.from_numbers(0.0, 3.0, -4.0, -10.0), plane)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 0, 0, 1), "normal nx ny nz that is not zero"),
        ((0, 0, 1, 0), "runs through the camera"),
        ((0, 0, -1, 2), "is behind the camera"),
        ((0, math.nan, 1, 1), "four finite numbers"),
        ((0, 0, 1, math.inf), "four finite numbers"),
        ((0, 0, 1), "four finite numbers"),
    ],
)
def test_numbers_that_make_no_plane_are_refused_in_one_line(numbers: tuple, message: str):
    with pytest.raises(ConfigError, match=message) as refusal:
        Plane.from_numbers(*numbers)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inverse_depth_is_where_the_ray_meets_the_plane(dtype: type):
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 4, 5)).astype(dtype)
    inverse = SLANTED.inverse_depth(x, y)
    assert inverse.dtype == dtype
    points = np.stack([x, y, np.ones_like(x)], -1) / inverse[..., None]
    assert points @ SLANTED.normal == pytest.approx(np.full((4, 5), SLANTED.distance_m), rel=1e-5)


def test_where_a_plane_is_not_seen_its_inverse_depth_is_nan():
    floor = Plane.from_numbers(0, 1, 0, 1.5)
    assert floor.inverse_depth([0, 0, 0], [0.5, 0.0, -0.5]) == pytest.approx(
        [1 / 3, np.nan, np.nan], nan_ok=True
    )
    through_the_camera = Plane(np.array([0.0, 0.0, 1.0]), 0.0)
    assert np.isnan(through_the_camera.inverse_depth([0.0, 1.0], [0.0, 1.0])).all()


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 0.01, 0.05, 0.5, 2.0, -0.3])
def test_a_step_is_the_exponential_of_the_motion(seconds: float):
    rotation, shift = rigid_step(OMEGA, V, seconds)
    expected = pose_after(OMEGA, V, seconds)
    assert rotation == pytest.approx(expected[:3, :3], abs=1e-12)
    assert shift == pytest.approx(expected[:3, 3], abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=6, max_size=6),
    st.floats(0.1, 10.0),
    st.floats(-1.0, 1.0),
)
def test_the_points_of_a_plane_stay_on_it(twist: list[float], distance_m: float, seconds: float):
    plane = Plane.from_numbers(0.2, 0.5, 1.0, distance_m)
    rotation, shift = rigid_step(np.array(twist[:3]), np.array(twist[3:]), seconds)
    moved = plane.moved(rotation, shift)
    assert np.linalg.norm(moved.normal) == pytest.approx(1.0)
    assert moved.distance_m >= 0.0
    seen = points_on(plane) @ rotation.T + shift
    assert seen @ moved.normal == pytest.approx(np.full(len(seen), moved.distance_m), abs=1e-9)


@pytest.mark.parametrize("steps", [1, 7])
def test_a_constant_motion_is_followed_exactly(steps: int):
    track = PlaneTrack(SLANTED, 5 * MS, carry_ns=400 * MS)
    assert track.at(9 * MS) is SLANTED  # no motion is known yet
    for stamp_ns in np.linspace(5 * MS, 405 * MS, steps + 1)[1:].astype(int).tolist():
        assert track.update(stamp_ns, OMEGA, V)
    for ms in (405, 355, 455):
        pose = pose_after(OMEGA, V, (ms - 5) * 1e-3)
        assert_same_plane(track.at(ms * MS), SLANTED.moved(pose[:3, :3], pose[:3, 3]), 1e-7)


def test_a_changing_motion_is_followed_to_second_order():
    def error(steps: int) -> float:
        times = np.linspace(0.0, 1.0, steps + 1)
        track = PlaneTrack(SLANTED, 0)
        for t in times:
            track.update(round(t * 1e9), OMEGA * math.sin(6 * t), V * math.cos(5 * t))
        return abs(track.plane.distance_m - expected.distance_m)

    expected = SLANTED
    for t in (np.arange(4000) + 0.5) / 4000:
        step = rigid_step(OMEGA * math.sin(6 * t), V * math.cos(5 * t), 1 / 4000)
        expected = expected.moved(*step)
    assert error(100) < 1e-3
    assert error(200) < error(100) / 3.5


@pytest.mark.parametrize(
    ("stamp_ns", "omega", "v"),
    [
        (20 * MS, [0, np.nan, 0], [0, 0, 0]),
        (20 * MS, [0, 0, 0], [0, 0, np.inf]),
        (9 * MS, [0, 0, 0], [0, 0, 0]),
    ],
)
def test_a_motion_that_says_nothing_is_not_followed(stamp_ns: int, omega: list, v: list):
    track = PlaneTrack(SLANTED, 0)
    track.update(10 * MS, OMEGA, V)
    before = track.at(20 * MS)
    assert not track.update(stamp_ns, omega, v)
    assert track.stamp_ns == 10 * MS
    assert_same_plane(track.at(20 * MS), before)


def test_a_camera_that_sees_nothing_is_taken_to_stand_still():
    track = PlaneTrack(SLANTED, 0, carry_ns=100 * MS)
    track.update(10 * MS, OMEGA, V)
    held = track.at(110 * MS)
    assert_same_plane(track.at(5000 * MS), held)
    assert_same_plane(track.at(-5000 * MS), track.at(-90 * MS))
    # The motion that is next seen has not been going on all the while, either.
    track.update(5000 * MS, OMEGA, V)
    assert_same_plane(track.at(5000 * MS), held)


def test_depth_is_in_metres_and_nan_where_unknown():
    millimetres = np.array([[0, 1500], [1, 65535]], np.uint16)
    metres = depth_to_metres(millimetres)
    assert metres.dtype == np.float32
    assert metres == pytest.approx(np.array([[np.nan, 1.5], [0.001, 65.535]]), nan_ok=True)
    odd = np.array([[0.0, -1.0], [np.inf, 2.5]], np.float32)
    assert np.array_equal(np.isnan(depth_to_metres(odd)), [[True, True], [True, False]])
    assert odd[0, 0] == 0.0  # it was copied


@pytest.mark.parametrize("wrong", [np.ones((2, 2), np.uint8), np.ones((2, 2, 1), np.float32)])
def test_what_is_no_depth_image_is_refused(wrong: np.ndarray):
    with pytest.raises(EventBinningError, match="expected uint16"):
        depth_to_metres(wrong)


def test_depth_images_of_a_whole_multiple_are_resized():
    small = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    large = resize_by_integer(small, 9, 6)
    assert large.shape == (6, 9)
    assert all(large[r, c] == small[r // 3, c // 3] for r in range(6) for c in range(9))
    assert np.array_equal(resize_by_integer(large, 3, 2), small)
    assert resize_by_integer(small, 3, 2) is small


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (6, 12), (4, 6), (0, 0), (13, 18)])
def test_depth_images_of_other_sizes_are_refused_in_one_line(shape: tuple[int, int]):
    images = DepthImages(9, 6)
    with pytest.raises(EventBinningError, match="the event camera has 9x6") as refusal:
        images.push(0, np.ones(shape, np.float32))
    assert "\n" not in str(refusal.value)
    assert len(images.images) == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=20), st.integers(-10, 70), st.integers(0, 20))
def test_the_nearest_depth_image_is_found(stamps: list[int], now: int, tolerance: int):
    images = DepthImages(2, 1, capacity=8)
    for stamp in stamps:
        images.push(stamp, np.full((1, 2), 1.0 + stamp, np.float32))
    held = sorted(set(stamps))[-8:]
    near = [s for s in held if abs(s - now) <= tolerance]
    found = images.nearest(now, tolerance)
    if not near:
        assert found is None
        return
    assert found is not None
    best = min(near, key=lambda s: (abs(s - now), s))
    assert (found.stamp_ns, found.metres[0, 0]) == (best, 1.0 + best)
    assert not found.metres.flags.writeable


def test_a_depth_image_is_the_buffers_own():
    images, mine = DepthImages(2, 1), np.ones((1, 2), np.float32)
    images.push(0, mine)
    mine[:] = 7.0
    held = images.nearest(0, 0)
    assert held is not None
    assert held.metres.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("order", [(0, 100, 200), (200, 0, 100)])
def test_a_range_is_interpolated_between_its_neighbours(order: tuple[int, ...]):
    track = RangeTrack()
    assert all(track.push(t, 1.0 + t / 100) for t in order)
    assert track.at(150, 60) == pytest.approx(2.5)
    assert track.at(100, 0) == 2.0
    assert track.at(120, 30) == 2.0  # the later one is too far to count
    assert track.at(250, 60) == 3.0
    assert track.at(261, 60) is None
    assert track.readings.out_of_order == (0 if order[0] == 0 else 2)


def test_what_is_no_range_is_refused_and_counted():
    track = RangeTrack(capacity=2)
    odd = [math.nan, math.inf, -math.inf, -1.0, 0.0]
    assert not any(track.push(k, value) for k, value in enumerate(odd))
    assert track.refused == len(odd)
    assert track.at(0, 100) is None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(-40, 40), max_size=40), st.integers(1, 12))
def test_stamped_values_are_the_latest_in_order(stamps: list[int], capacity: int):
    held: Stamped[str] = Stamped(capacity)
    taken = sum(held.put(stamp, str(stamp)) for stamp in stamps)
    assert held.stamps_ns == sorted(set(stamps))[-capacity:]
    assert held.values == [str(s) for s in held.stamps_ns]
    assert taken == len(stamps) - held.duplicates - held.too_late
    for stamp in range(-42, 43):
        before, after = held.neighbours(stamp)
        earlier = [k for k, s in enumerate(held.stamps_ns) if s <= stamp]
        later = [k for k, s in enumerate(held.stamps_ns) if s >= stamp]
        assert before == (earlier[-1] if earlier else None)
        assert after == (later[0] if later else None)


def test_stamped_values_count_what_came_late_or_twice():
    held: Stamped[float] = Stamped(3)
    for stamp in (10, 30, 20, 30, 40, 5):
        held.put(stamp, 0.0)
    assert (held.out_of_order, held.duplicates, held.too_late) == (3, 1, 1)
    with pytest.raises(ConfigError, match="capacity is 0"):
        Stamped(0)
