"""Dense flow: its accuracy on known motions, what it says of itself, and its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from event_binning_grad.errors import CalibrationError, ConfigError
from event_binning_grad.estimation.flow import FlowEstimator
from event_binning_grad.estimation.flow_estimate import FlowConfig, FlowEstimate, FlowStatus
from event_binning_grad.estimation.flow_grid import (
    NodeGrid,
    carried,
    grid_levels,
    interpolate,
    newton_step,
    node_grid,
    nodes_of,
    on_pixels,
    resample,
    sampled,
    smooth_model,
    steepened,
)
from event_binning_grad.estimation.flow_search import searched
from event_binning_grad.events.types import Events
from event_binning_grad.geometry import Camera

SIZE = (180, 140)
SPAN_S = 0.04
Place = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def dots(
    velocity: Place,
    count: int = 20_000,
    points: int = 700,
    noise: float = 0.1,
    seed: int = 0,
    span_s: float = SPAN_S,
    start_ns: int = 10**9,
    size: tuple[int, int] = SIZE,
) -> Events:
    """Events of dots that keep their velocity (x, y) px/s, which they have at the middle by where
    they are there; on pixels."""
    rng = np.random.default_rng(seed)
    width, height = size
    x, y = rng.uniform((-20, -20), (width + 20, height + 20), (points, 2)).T
    which = rng.integers(0, points, count)
    tau = np.sort(rng.uniform(-span_s / 2, span_s / 2, count))
    vx, vy = velocity(x, y)
    pixels = np.rint([x[which] + tau * vx[which], y[which] + tau * vy[which]]).astype(int).T
    stray = rng.random(count) < noise
    pixels[stray] = rng.integers(0, size, (stray.sum(), 2))
    inside = ((pixels >= 0) & (pixels < size)).all(axis=1)
    t = start_ns + np.rint((tau[inside] + span_s / 2) * 1e9).astype(np.int64)
    x, y = pixels[inside].T.astype(np.uint16)
    return Events(t, x, y, np.ones(len(t), np.uint8), *size)


def constant(vx: float, vy: float) -> Place:
    return lambda x, y: (np.full(x.shape, vx), np.full(y.shape, vy))


def turning(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """About a point off the middle, and a little zoom."""
    u, v = x - 60, y - 80
    return -2.5 * v + 0.8 * u, 2.5 * u + 0.8 * v


def with_object(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside = on_object(x, y)
    return np.where(inside, -90.0, 120.0), np.where(inside, 60.0, 30.0)


def on_object(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x - 90, y - 70) < 32


def pixels(size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return x.astype(np.float64), y.astype(np.float64)


def error_px(estimate: FlowEstimate, events: Events, velocity: Place) -> np.ndarray:
    """[H, W] end-point error in px over the window; NaN where there are no events."""
    span_s = (estimate.window_end_ns - estimate.window_start_ns) * 1e-9
    true = np.stack(velocity(*pixels(SIZE)), -1)
    error = np.linalg.norm(estimate.flow - true, axis=2) * span_s
    seen = np.zeros(error.shape, bool)
    seen[events.y, events.x] = True
    return np.where(seen, error, np.nan)


@pytest.mark.parametrize("gradient", ["unbiased", "raw"])
@pytest.mark.parametrize(
    ("velocity", "most_px"),
    [(constant(150, -100), 0.15), (constant(0, 0), 0.15), (turning, 0.2)],
    ids=["translation", "rest", "rotation and zoom"],
)
def test_flow_of_dots(velocity: Place, most_px: float, gradient: str):
    events = dots(velocity)
    estimate = FlowEstimator(SIZE, FlowConfig(gradient=gradient)).estimate(events)
    error = error_px(estimate, events, velocity)
    assert estimate.status is FlowStatus.OK
    assert np.nanmean(error) < most_px
    assert np.nanmean(error > 3) < 0.01
    assert estimate.stamp_ns == events.mean_time_ns
    assert (estimate.window_start_ns, estimate.window_end_ns) == (events.t[0], events.t[-1])
    assert estimate.flow.dtype == np.float32
    assert estimate.contrast_gain > 0.95


@pytest.mark.parametrize("displacement_px", [0.6, 1.0, 2.0])
@pytest.mark.parametrize("direction", [(1.0, 0.0), (0.0, 1.0), (0.8, -0.6)])
def test_zero_is_no_attractor_on_raw_pixels(displacement_px: float, direction):
    velocity = constant(*(displacement_px / SPAN_S * d for d in direction))
    estimate = FlowEstimator(SIZE).estimate(dots(velocity, 30_000))
    along = np.nanmean(estimate.flow @ np.array(direction)) * SPAN_S
    across = np.nanmean(estimate.flow @ np.array([-direction[1], direction[0]])) * SPAN_S
    assert along == pytest.approx(displacement_px, abs=0.2)
    assert along > 0.7 * displacement_px
    assert across == pytest.approx(0, abs=0.15)


def test_an_object_that_moves_by_itself_comes_out():
    events = dots(with_object, 30_000, points=1500)
    estimate = FlowEstimator(SIZE).estimate(events)
    error = error_px(estimate, events, with_object)
    moving = on_object(*pixels())
    well_inside = np.hypot(pixels()[0] - 90, pixels()[1] - 70) < 22
    assert np.nanmedian(error[moving]) < 0.5
    assert np.nanmean(error[well_inside]) < 0.4
    assert np.nanmean(error[~moving]) < 0.6


def test_tracking_takes_fewer_passes_and_stays_right():
    estimator = FlowEstimator(SIZE)
    found, errors = [], []
    for n in range(5):
        events = dots(turning, seed=n, start_ns=10**9 + n * 20_000_000)
        found.append(estimator.estimate(events))
        errors.append(np.nanmean(error_px(found[-1], events, turning)))
    assert found[0].iterations > found[1].iterations
    assert found[0].full_passes > found[1].full_passes > 1
    assert max(errors) < 0.25
    assert all(estimate.status.ok for estimate in found)


def test_a_jump_of_the_motion_is_caught_within_its_window():
    estimator = FlowEstimator(SIZE)
    estimator.estimate(dots(constant(500, 0)))
    events = dots(constant(-500, 200), start_ns=10**9 + 40_000_000)
    estimate = estimator.estimate(events)
    assert np.nanmean(error_px(estimate, events, constant(-500, 200))) < 0.5


def test_reset_and_long_silence_forget_the_track():
    events, later = dots(turning), dots(turning, start_ns=2 * 10**9)
    fresh = FlowEstimator(SIZE).estimate(events)
    estimator = FlowEstimator(SIZE)
    estimator.estimate(dots(constant(100, 0), start_ns=10**9 - 50_000_000))
    estimator.reset()
    np.testing.assert_array_equal(estimator.estimate(events).flow, fresh.flow)
    assert estimator.estimate(later).iterations == fresh.iterations


def test_a_given_start_is_taken_where_it_is_known():
    velocity = constant(900, 0)  # 36 px over the window: out of reach from rest
    events = dots(velocity, points=3000)
    start = np.full((SIZE[1], SIZE[0], 2), np.nan)
    start[:, :90] = (880, 10)
    estimate = FlowEstimator(SIZE).estimate(events, start=start)
    assert np.nanmean(error_px(estimate, events, velocity)) < 0.3
    nothing = FlowEstimator(SIZE).estimate(events, start=np.full_like(start, np.nan))
    fresh = FlowEstimator(SIZE).estimate(events)
    np.testing.assert_array_equal(nothing.flow, fresh.flow)


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_stride_samples_the_same_field(stride: int):
    events = dots(turning)
    full = FlowEstimator(SIZE).estimate(events)
    some = FlowEstimator(SIZE).estimate(events, stride=stride)
    assert some.stride == stride
    assert some.flow.shape == (-(-SIZE[1] // stride), -(-SIZE[0] // stride), 2)
    np.testing.assert_allclose(some.flow, full.flow[::stride, ::stride], rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(some.confidence, full.confidence[::stride, ::stride], atol=1e-5)
    assert (some.normal_flow == full.normal_flow[::stride, ::stride]).mean() > 0.99


@pytest.mark.parametrize("angle_deg", [0.0, 35.0, 90.0])
def test_of_a_straight_edge_only_the_normal_flow_is_known(angle_deg: float):
    normal = np.array([np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))])
    velocity = np.array([130.0, 90.0])
    rng = np.random.default_rng(0)
    count = 6000
    t = np.sort(rng.uniform(0, SPAN_S, count))
    along = rng.uniform(-60, 60, count)
    away = velocity @ normal * (t - SPAN_S / 2) + rng.normal(0, 0.3, count)
    place = np.array([90, 70]) + along[:, None] * np.array([-normal[1], normal[0]])
    place += away[:, None] * normal
    x, y = np.rint(place).astype(np.uint16).T
    events = Events((t * 1e9).astype(np.int64), x, y, np.ones(count, np.uint8), *SIZE)
    estimate = FlowEstimator(SIZE).estimate(events)
    px, py = pixels()
    near = (np.abs((px - 90) * normal[0] + (py - 70) * normal[1]) < 4) & (
        np.abs((py - 70) * normal[0] - (px - 90) * normal[1]) < 40
    )
    assert estimate.normal_flow[near].mean() > 0.8
    marked = estimate.flow[near & estimate.normal_flow]
    expected = velocity @ normal * normal
    assert np.linalg.norm(marked.mean(axis=0) - expected) * SPAN_S < 0.3
    assert estimate.confidence[near].mean() > 0.5


def test_flow_of_texture_is_no_normal_flow():
    estimate = FlowEstimator(SIZE).estimate(dots(turning))
    assert estimate.normal_flow.mean() < 0.05
    assert estimate.confidence.mean() > 0.8


def test_where_nothing_was_seen_nothing_is_known():
    events = dots(turning, noise=0.0)
    left = events.x < 60
    part = Events(events.t[left], events.x[left], events.y[left], events.p[left], *SIZE)
    estimate = FlowEstimator(SIZE).estimate(part)
    assert np.isfinite(estimate.flow[:, :55]).all()
    assert np.isnan(estimate.flow[:, 150:]).all()
    assert (estimate.confidence[:, 150:] == 0).all()
    assert not estimate.normal_flow[:, 150:].any()
    assert estimate.confidence[:, :55].mean() > 0.7


def test_confidence_is_lower_where_the_flow_is_wrong():
    events = dots(turning, 4000, points=120, noise=0.5)
    estimate = FlowEstimator(SIZE).estimate(events)
    error = error_px(estimate, events, turning)
    sure = estimate.confidence > np.median(estimate.confidence)
    assert np.nanmean(error[sure]) < np.nanmean(error[~sure])


@pytest.mark.parametrize("count", [2000, 10_000, 20_000])
def test_noise_has_no_structure(count: int):
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, 40_000_000, count)).astype(np.int64)
    x, y = (rng.integers(0, side, count).astype(np.uint16) for side in SIZE)
    events = Events(t, x, y, np.ones(count, np.uint8), *SIZE)
    assert FlowEstimator(SIZE).estimate(events).status is FlowStatus.NO_STRUCTURE


def test_windows_that_are_not_estimated():
    estimator = FlowEstimator(SIZE, FlowConfig(min_events=500))
    none = Events.empty(*SIZE)
    few = dots(turning, 300)
    at_once = dots(turning)
    at_once.t[:] = 5
    for events, status in (
        (none, FlowStatus.TOO_FEW_EVENTS),
        (few, FlowStatus.TOO_FEW_EVENTS),
        (at_once, FlowStatus.NO_STRUCTURE),
    ):
        estimate = estimator.estimate(events, stride=2)
        assert estimate.status is status
        assert not estimate.status.ok
        assert np.isnan(estimate.flow).all()
        assert estimate.flow.shape == (70, 90, 2)
        assert (estimate.confidence == 0).all()
        assert estimate.iterations == 0
        assert estimator.compensated_image() is None
        assert estimator.uncompensated_image() is None


def test_events_of_a_hot_pixel_are_counted_and_do_not_make_a_window():
    events = dots(constant(-500, 200))
    hot = replace(events, x=events.x.copy(), y=events.y.copy())
    hot.x[::10], hot.y[::10] = 20, 20
    estimate = FlowEstimator(SIZE).estimate(hot)
    assert estimate.status.ok
    assert estimate.hot_pixel_events >= len(hot.x[::10])
    assert estimate.used_events == len(events) - estimate.hot_pixel_events
    hot.x[200:], hot.y[200:] = 20, 20
    nothing = FlowEstimator(SIZE).estimate(hot)
    assert nothing.status is FlowStatus.TOO_FEW_EVENTS
    assert np.isnan(nothing.flow).all()


def test_a_camera_that_sees_nothing_is_refused():
    k = np.array([[300.0, 0, 5000], [0, 300, 130], [0, 0, 1]])
    camera = Camera(*SIZE, k, "plumb_bob", np.array([-0.3, 0, 0, 0, 0]))
    with pytest.raises(CalibrationError, match="hardly a pixel has a place"):
        FlowEstimator(SIZE, camera=camera)


def test_what_is_late_is_flagged_and_still_a_field():
    estimate = FlowEstimator(SIZE, FlowConfig(deadline_s=1e-6)).estimate(dots(turning))
    assert estimate.status is FlowStatus.DEADLINE
    assert estimate.iterations == 2  # the first, and one to see how good it is
    assert np.isfinite(estimate.flow).any()


def test_large_windows_are_subsampled():
    config = FlowConfig(max_events=8000)
    events = dots(turning, 30_000)
    estimate = FlowEstimator(SIZE, config).estimate(events)
    assert estimate.used_events == 8000
    assert estimate.used_share == pytest.approx(8000 / len(events))
    assert np.nanmean(error_px(estimate, events, turning)) < 0.3


def test_speed_is_that_of_the_fastest_events():
    estimate = FlowEstimator(SIZE).estimate(dots(constant(150, -100)))
    assert estimate.speed_px_s == pytest.approx(np.hypot(150, 100), rel=0.05)


def test_images_before_and_after():
    estimator = FlowEstimator(SIZE)
    assert estimator.compensated_image() is None
    events = dots(turning)
    estimator.estimate(events)
    before, after = estimator.uncompensated_image(), estimator.compensated_image()
    assert before is not None
    assert after is not None
    assert before.shape == after.shape == (SIZE[1], SIZE[0])
    counts = np.zeros_like(before)
    np.add.at(counts, (events.y, events.x), 1)
    np.testing.assert_allclose(before, counts, atol=1e-3)
    assert (after**2).sum() > 1.5 * (before**2).sum()


def test_flow_is_on_undistorted_pixels(small_camera: Camera, simulated):
    """Of a camera that turns: its lens is in the events, not in the flow."""
    omega = np.array([1.0, -2.0, 3.0])
    events = simulated(tuple(omega), 0.1)[:12_000]
    size = (small_camera.width, small_camera.height)
    K = small_camera.K
    x, y = pixels(size)
    ray = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], -1)
    moved = -np.cross(omega, ray)
    true = (moved[..., :2] - ray[..., :2] * moved[..., 2:]) * np.diag(K)[:2]
    seen = np.zeros(x.shape, bool)
    undistorted = small_camera.bearings[events.y, events.x]
    place = np.rint((undistorted / undistorted[:, 2:]) @ K.T)[:, :2].astype(int)
    place = place[((place >= 0) & (place < size)).all(axis=1)]
    seen[place[:, 1], place[:, 0]] = True
    span_s = float(events.t[-1] - events.t[0]) * 1e-9
    errors = {}
    for camera in (small_camera, None):
        flow = FlowEstimator(size, camera=camera).estimate(events).flow
        errors[camera is None] = np.nanmean(np.linalg.norm(flow - true, axis=2)[seen]) * span_s
    assert errors[False] < 0.45
    assert errors[False] < errors[True]


def test_events_off_the_sensor_are_left_out():
    events = dots(turning)
    wrong = Events(events.t, events.x.copy(), events.y, events.p, 65535, 65535)
    wrong.x[::10] = 60_000
    estimate = FlowEstimator(SIZE).estimate(wrong)
    assert estimate.status is FlowStatus.OK
    assert np.nanmean(error_px(estimate, events, turning)) < 0.25


def test_same_bits_every_time_and_at_any_number_of_threads(numba_threads):
    sequence = [dots(with_object, seed=n, start_ns=10**9 + n * 20_000_000) for n in range(3)]
    found = []
    for threads in (1, 2, 2):
        with numba_threads(threads):
            estimator = FlowEstimator(SIZE)
            found.append([estimator.estimate(events) for events in sequence])
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(one.flow, other.flow)
            np.testing.assert_array_equal(one.confidence, other.confidence)
            np.testing.assert_array_equal(one.normal_flow, other.normal_flow)


def test_plain_torch_gives_the_same_flow():
    events = dots(turning, 6000)
    config = FlowConfig(node_spacing_px=20.0)
    fused = FlowEstimator(SIZE, config).estimate(events)
    plain = FlowEstimator(SIZE, replace(config, fused=False)).estimate(events)
    off = np.linalg.norm(fused.flow - plain.flow, axis=2) * SPAN_S
    assert np.nanmean(off) < 0.02
    assert plain.iterations == fused.iterations


def test_a_large_sensor_has_no_more_nodes_and_bins():
    size = (1280, 720)
    events = dots(constant(300, 100), 60_000, points=3000, size=size)
    estimate = FlowEstimator(size).estimate(events, stride=4)
    assert estimate.used_events == FlowConfig().max_events
    assert estimate.flow.shape == (180, 320, 2)
    error = np.linalg.norm(estimate.flow - (300, 100), axis=2) * SPAN_S
    assert np.nanmean(error) < 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gradient": "smooth"}, "gradient 'smooth' is unknown"),
        ({"min_events": 0}, "min_events is 0"),
        ({"node_spacing_px": 0.0}, "node_spacing_px is 0.0"),
        ({"edge_px": float("nan")}, "edge_px is nan"),
        ({"smoothness": -1.0}, "smoothness is -1.0"),
        ({"warm_passes": 0}, "warm_passes is 0"),
        ({"deadline_s": -1.0}, "deadline_s is -1.0"),
    ],
)
def test_bad_values_are_refused(change: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        FlowConfig(**change)


def test_calibration_of_another_sensor_is_refused(small_camera: Camera):
    with pytest.raises(ConfigError, match="240x180"):
        FlowEstimator(SIZE, camera=small_camera)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_is_refused():
    with pytest.raises(ConfigError, match="no CUDA device"):
        FlowEstimator(SIZE, FlowConfig(device="cuda"))


# --- On a real recording ---


@pytest.mark.parametrize(("calibrated", "most_px"), [(True, 0.65), (False, 0.5)])
def test_flow_of_a_real_rotation(data_dir, calibrated: bool, most_px: float):
    """30 000 events of boxes_rotation against the flow of the reference angular velocity."""
    from event_binning_grad.events.recordings import open_recording

    folder = data_dir / "ecd_boxes_rotation_window"
    camera = Camera.from_calib_txt(folder / "calib.txt", (240, 180))
    events = Events.concatenate(list(open_recording(folder).packets()))  # type: ignore[arg-type]
    estimate = FlowEstimator((240, 180), camera=camera if calibrated else None).estimate(events)
    omega, K = np.loadtxt(folder / "motion.txt"), camera.K
    x, y = pixels((240, 180))
    ray = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], -1)
    moved = -np.cross(omega, ray)
    true = (moved[..., :2] - ray[..., :2] * moved[..., 2:]) * np.diag(K)[:2]
    span_s = (estimate.window_end_ns - estimate.window_start_ns) * 1e-9
    error = np.linalg.norm(estimate.flow - true, axis=2)[events.y, events.x] * span_s
    assert np.linalg.norm(true, axis=2).mean() * span_s > 3
    assert np.nanmean(error) < most_px
    assert np.isfinite(error).mean() > 0.95


# --- The grid of nodes ---

NODES = NodeGrid((-3.0, 2.0), 10.0, 8, 9)


def smooth_field(nodes: NodeGrid = NODES) -> np.ndarray:
    xs, ys = (values.reshape(nodes.rows, nodes.cols) for values in nodes_of(nodes))
    return np.stack([3 + 0.05 * xs - 0.02 * ys, -1 + 0.03 * xs], -1).astype(np.float32)


def test_interpolation_is_exact_for_linear_fields_and_holds_beyond():
    xs, ys = np.random.default_rng(0).uniform(-3, 70, (2, 200)).astype(np.float32)
    found = interpolate(NODES, smooth_field(), xs, ys)
    x, y = np.clip(xs, -3, 77), np.clip(ys, 2, 72)
    np.testing.assert_allclose(found[:, 0], 3 + 0.05 * x - 0.02 * y, atol=1e-5)
    np.testing.assert_allclose(found[:, 1], -1 + 0.03 * x, atol=1e-5)
    ones = interpolate(NODES, np.ones((8, 9, 2), np.float32), xs * 9 - 200, ys * 9 - 200)
    np.testing.assert_allclose(ones, 1, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 4])
def test_field_on_pixels_is_the_interpolated_one(stride: int):
    field = np.random.default_rng(1).normal(size=(8, 9, 2)).astype(np.float32)
    dense = on_pixels(NODES, field, (80, 60), stride)
    x, y = np.meshgrid(np.arange(0, 80, stride), np.arange(0, 60, stride))
    expected = interpolate(NODES, field, x.ravel().astype(np.float32), y.ravel().astype(np.float32))
    np.testing.assert_allclose(dense, expected.reshape(dense.shape), atol=1e-5)


def test_levels_halve_their_spacing():
    grids = grid_levels(np.zeros(2), np.array([345.0, 259.0]), 10.0, 1200)
    assert min(grids[0].rows, grids[0].cols) <= 5
    assert grids[-1].spacing_px == 10.0
    for coarse, fine in pairwise(grids):
        assert coarse.spacing_px == 2 * fine.spacing_px
    few = grid_levels(np.zeros(2), np.array([1279.0, 719.0]), 10.0, 1200)[-1]
    assert few.spacing_px > 20
    assert 900 < few.rows * few.cols < 1400


def test_resampling_keeps_smooth_fields():
    coarse = node_grid(np.zeros(2), np.array([79.0, 59.0]), 20.0)
    fine = node_grid(np.array([5.0, 5.0]), np.array([70.0, 50.0]), 7.0)
    np.testing.assert_allclose(
        resample(coarse, smooth_field(coarse), fine), smooth_field(fine), atol=1e-4
    )


def test_flow_is_carried_along_itself():
    """A flow that grows to the right: what is at x now was at x - shift * flow."""
    nodes = node_grid(np.zeros(2), np.array([200.0, 100.0]), 5.0)
    xs, _ = (values.reshape(nodes.rows, nodes.cols) for values in nodes_of(nodes))
    flow = np.zeros((nodes.rows, nodes.cols, 2), np.float32)
    flow[..., 0] = xs
    later = carried(nodes, flow, 0.1)
    inside = (xs > 20) & (xs < 180)
    np.testing.assert_allclose(later[inside][:, 0], xs[inside] / 1.1, rtol=0.02)
    np.testing.assert_array_equal(carried(nodes, flow, 0.0), flow)


def test_sampling_takes_the_nearest_pixels():
    field = np.random.default_rng(0).normal(size=(60, 80, 2)).astype(np.float32)
    found = sampled(NODES, field)
    assert found.shape == (8, 9, 2)
    np.testing.assert_array_equal(found[1, 2], field[12, 17])
    np.testing.assert_array_equal(found[7, 0], field[59, 0])  # beyond the image


def random_problem(rows: int = 6, cols: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    displacement = rng.normal(0, 1, (rows, cols, 2))
    gradient = rng.normal(0, 5, (rows, cols, 2))
    roots = rng.normal(0, 2, (rows, cols, 2, 2))
    blocks = -roots @ roots.swapaxes(2, 3)
    hessian = np.stack([blocks[..., 0, 0], blocks[..., 0, 1], blocks[..., 1, 1]], -1)
    model = rng.normal(0, 1, (rows, cols, 2))
    return [array.astype(np.float32) for array in (displacement, gradient, hessian, model)]


def dense_step(displacement, gradient, hessian, model, holds, edge_px) -> np.ndarray:
    """`newton_step` by a matrix of all nodes."""
    rows, cols, _ = displacement.shape
    unit = -(hessian[..., 0] + hessian[..., 2]).mean() / 2
    size = 2 * rows * cols
    matrix, right = np.zeros((size, size)), gradient.ravel().astype(np.float64)
    flat, wanted = displacement.reshape(-1, 2), model.reshape(-1, 2)
    for n, (xx, xy, yy) in enumerate(hessian.reshape(-1, 3)):
        matrix[2 * n : 2 * n + 2, 2 * n : 2 * n + 2] -= [[xx, xy], [xy, yy]]
    terms = [(((n, 1.0),), holds[2], wanted[n]) for n in range(rows * cols)]
    at = np.arange(rows * cols).reshape(rows, cols)
    for lines in (at, at.T):
        for line in lines:
            terms += [(((a, 1.0), (b, -1.0)), holds[0], np.zeros(2)) for a, b in pairwise(line)]
            terms += [
                (((a, 1.0), (b, -2.0), (c, 1.0)), holds[1], np.zeros(2))
                for a, b, c in zip(line, line[1:], line[2:], strict=False)
            ]
    for parts, hold, aim in terms:
        off = sum(share * flat[n] for n, share in parts) - aim
        weight = hold * unit / (1 + (off @ off) / edge_px**2) ** 2
        for n, share in parts:
            for c in range(2):
                right[2 * n + c] -= weight * share * off[c]
                for m, other in parts:
                    matrix[2 * n + c, 2 * m + c] += weight * share * other
    return np.linalg.solve(matrix, right).reshape(displacement.shape)


@pytest.mark.parametrize("edge_px", [0.7, 50.0])
@pytest.mark.parametrize("holds", [(0.1, 2.0, 0.3), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0)])
def test_newton_step_solves_its_equations(holds, edge_px: float):
    displacement, gradient, hessian, model = random_problem()
    found = newton_step(displacement, gradient, hessian, model, holds, edge_px, 1e9)
    expected = dense_step(displacement, gradient, hessian, model, holds, edge_px)
    # Conjugate gradients end early.
    assert np.linalg.norm(found - expected) < 0.15 * np.linalg.norm(expected)


def test_newton_step_is_limited_and_nothing_moves_without_events():
    displacement, gradient, hessian, model = random_problem()
    step = newton_step(displacement, gradient, hessian, model, (0.0, 0.0, 0.0), 1.0, 0.5)
    assert np.linalg.norm(step, axis=2).max() <= 0.5 + 1e-6
    nothing = np.zeros_like(gradient), np.zeros_like(hessian)
    still = newton_step(displacement, *nothing, model, (0.1, 2.0, 0.3), 1.0, 0.5)
    np.testing.assert_array_equal(still, 0)


def test_smoothness_lets_go_at_motion_edges():
    """A step in the flow stays; noise of the same curvature is smoothed."""
    rng = np.random.default_rng(0)
    truth = np.zeros((20, 20, 2), np.float32)
    truth[:, 10:] = (8.0, -4.0)
    flow = truth + rng.normal(0, 0.4, truth.shape).astype(np.float32)
    hessian = np.zeros((20, 20, 3), np.float32)
    hessian[..., 0] = hessian[..., 2] = -1
    noisy = flow.copy()
    for _ in range(5):
        pull = noisy - flow  # the data want the noisy flow
        flow = flow + newton_step(flow, pull, hessian, flow, (0.1, 5.0, 0.0), 1.0, 10.0)
    error = np.linalg.norm(flow - truth, axis=2)
    before = np.linalg.norm(noisy - truth, axis=2)
    assert error.mean() < 0.7 * before.mean()
    assert error[:, 8:12].mean() < before[:, 8:12].mean()


def test_model_is_the_quadratic_that_most_nodes_follow():
    rng = np.random.default_rng(2)
    nodes = NodeGrid((0.0, 0.0), 10.0, 20, 30)
    xs, ys = (values.reshape(20, 30) / 150 - 1 for values in nodes_of(nodes))
    truth = np.stack([5 + 3 * xs - 2 * ys + 2 * xs * ys, -4 + xs + ys**2 - xs**2], -1)
    flow = (truth + rng.normal(0, 0.1, truth.shape)).astype(np.float32)
    flow[4:12, 5:16] += (6.0, 3.0)  # an object
    hessian = np.zeros((20, 30, 3), np.float32)
    hessian[..., 0] = hessian[..., 2] = -rng.uniform(0.5, 2, (20, 30))
    model = smooth_model(nodes, flow, hessian)
    assert np.abs(model - truth).max() < 0.3
    assert np.isfinite(smooth_model(nodes, flow, 0 * hessian)).all()


def test_hessian_is_as_steep_as_the_gradient_shows():
    rng = np.random.default_rng(0)
    hessian = np.zeros((4, 5, 3), np.float32)
    hessian[..., 0] = hessian[..., 2] = -2.0
    step = rng.normal(size=(4, 5, 2)).astype(np.float32)
    np.testing.assert_allclose(steepened(hessian, step, -6 * step), 3 * hessian, rtol=1e-5)
    for change in (-1 * step, 2 * step, 0 * step):  # flatter, or turned round
        assert steepened(hessian, step, change) is hessian
    np.testing.assert_allclose(steepened(hessian, step, -600 * step), 5 * hessian, rtol=1e-5)


def test_search_finds_what_no_step_reaches_and_leaves_the_rest():
    events = dots(with_object, 30_000, points=1500)
    s = (events.t - events.mean_time_ns) / (SPAN_S * 1e9)
    columns = np.stack([events.x, events.y, s]).astype(np.float32)
    nodes = node_grid(np.zeros(2), np.array([179.0, 139.0]), 10.0)
    shape = (nodes.rows, nodes.cols, 2)
    background = np.zeros(shape, np.float32) + np.array([4.8, 1.2], np.float32)
    found = searched(columns, nodes, background, 1.0) - background
    xs, ys = (values.reshape(shape[:2]) for values in nodes_of(nodes))
    away = np.hypot(xs - 90, ys - 70)
    assert np.abs(found[away < 15] - (-8.4, 1.2)).max() < 2.6
    assert (found[away > 50] == 0).all()
    again = searched(columns, nodes, background, 1.0) - background
    np.testing.assert_array_equal(found, again)


def test_search_changes_nothing_where_the_flow_fits():
    events = dots(turning, 30_000)
    s = (events.t - events.mean_time_ns) / (SPAN_S * 1e9)
    columns = np.stack([events.x, events.y, s]).astype(np.float32)
    columns[0, ::50] = np.nan
    nodes = node_grid(np.zeros(2), np.array([179.0, 139.0]), 10.0)
    xs, ys = (values.reshape(nodes.rows, nodes.cols) for values in nodes_of(nodes))
    flow = (np.stack(turning(xs, ys), -1) * SPAN_S).astype(np.float32)
    np.testing.assert_array_equal(searched(columns, nodes, flow, 1.0), flow)
