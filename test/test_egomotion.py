"""The estimator against exact truth: simulated rotations, and points under every motion model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from event_binning_grad.errors import CalibrationError, ConfigError
from event_binning_grad.estimation import (
    EgomotionConfig,
    EgomotionEstimate,
    EgomotionEstimator,
    MotionModel,
    Status,
)
from event_binning_grad.estimation.contrast import ContrastConfig
from event_binning_grad.estimation.imu import GyroFit
from event_binning_grad.events.types import Events
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.depth import DepthImage, Plane
from event_binning_grad.simulate import (
    ConstantMotion,
    Motion,
    SimulationConfig,
    hand_motion,
    make_scene,
    simulate_rotation,
)

Float64 = np.ndarray
WINDOW = 20_000
RAW = ContrastConfig(reconstruction=None)


def estimator_of(camera: Camera, **options) -> EgomotionEstimator:
    return EgomotionEstimator(camera, EgomotionConfig(**options))


def gyro_of(omega, alpha=(0.0, 0.0, 0.0), std_rad_s: float = 0.01) -> GyroFit:
    """What an inertial sensor says of the rotation at the window's reference time."""
    return GyroFit(np.array(omega), np.array(alpha), std_rad_s**2 * np.eye(3), 10)


def track(
    events: Events, camera: Camera, window: int = WINDOW, **options
) -> list[EgomotionEstimate]:
    estimator = estimator_of(camera, **options)
    stops = range(window, len(events) + 1, window)
    return [estimator.estimate(events[stop - window : stop]) for stop in stops]


def errors_deg_s(estimates: list[EgomotionEstimate], truth) -> Float64:
    omega = np.array([e.angular_velocity for e in estimates])
    if isinstance(truth, tuple):
        return np.degrees(omega - truth)
    t_s = np.array([e.stamp_ns for e in estimates]) * 1e-9
    return np.degrees(omega - truth.angular_velocity(t_s))


def rms(errors: Float64) -> float:
    return float(np.sqrt((errors**2).mean()))


@pytest.mark.parametrize("speed", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_constant_rotation(axis: int, speed: float, simulated, small_camera: Camera):
    truth: tuple[float, float, float] = tuple(-speed * np.eye(3)[axis])
    estimates = track(simulated(truth, 0.3 / speed), small_camera)
    assert len(estimates) >= 2
    assert all(e.status is Status.OK for e in estimates)
    assert rms(errors_deg_s(estimates, truth)) < 1.0
    assert all(e.contrast_gain > 1.5 for e in estimates)


def test_hand_motion_with_acceleration(simulated, small_camera: Camera):
    motion = hand_motion(0.8, (5.0, 5.0, 5.0), seed=3)
    estimates = track(simulated(motion, 0.75), small_camera)
    assert len(estimates) > 10
    assert np.mean([e.status.ok for e in estimates]) > 0.9
    trusted = [e for e in estimates if e.status.ok]
    assert rms(errors_deg_s(trusted, motion)) < 1.0
    # The angular acceleration is estimated as well: it follows the truth's.
    t_s = np.array([e.stamp_ns for e in trusted]) * 1e-9
    h = 1e-3
    true = (motion.angular_velocity(t_s + h) - motion.angular_velocity(t_s - h)) / (2 * h)
    found = np.array([e.angular_acceleration for e in trusted])
    assert rms(found - true) < 0.35 * rms(true)


def test_zero_is_no_attractor_for_slow_motion(simulated, small_camera: Camera):
    """0.3 rad/s on raw pixels: events sit on pixel centres, and must not be held there."""
    for axis in range(3):
        truth = tuple(0.3 * np.eye(3)[axis])
        estimates = track(simulated(truth, 0.25), small_camera, window=8000)
        assert len(estimates) >= 2
        along = np.mean([e.angular_velocity[axis] for e in estimates])
        assert along == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("direction", [(1.0, 1.0, -1.0), (-1.0, 1.0, 1.0)])
def test_motion_of_a_pixel_gains_as_much_contrast_as_rest_and_is_trusted(
    direction: tuple[float, float, float], simulated, small_camera: Camera
):
    """Bins of more than a pixel are compared with the unmoved events in bins of that size."""
    slow = tuple(0.2 * d for d in direction)
    events = simulated(slow, 0.25)
    windows = [events[n : n + 8000] for n in range(0, len(events) - 8000, 8000)]
    assert len(windows) > 1
    for window in windows:
        estimate = EgomotionEstimator(small_camera).estimate(window)
        assert 0.9 < estimate.contrast_gain < 1.5
        assert estimate.status.ok
        assert_near(estimate.angular_velocity, slow, 0.15)


def test_camera_at_rest_is_not_said_to_turn(small_camera: Camera, scene):
    """Hot pixels draw sharp dots that no motion explains better than rest."""
    chunks = simulate_rotation(
        small_camera, hand_motion(0.3, (0.0, 0.0, 0.0)), 0.3,
        scene=scene, noise_hz=1.0, hot_pixels=150, hot_pixel_hz=300.0,
    )  # fmt: skip
    events = Events.concatenate(list(chunks))
    estimates = track(events, small_camera, window=5000)
    assert len(estimates) >= 2
    for e in estimates:
        assert np.linalg.norm(e.angular_velocity) < 0.05


def noise(camera: Camera, count: int, span_s: float, seed: int) -> Events:
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, int(span_s * 1e9), count))
    x = rng.integers(0, camera.width, count, dtype=np.uint16)
    y = rng.integers(0, camera.height, count, dtype=np.uint16)
    p = rng.integers(0, 2, count, dtype=np.uint8)
    return Events(t, x, y, p, camera.width, camera.height)


@pytest.mark.parametrize("span_s", [0.03, 0.1])
@pytest.mark.parametrize("count", [1000, 5000, 20_000, 40_000, 100_000])
def test_noise_alone_is_never_trusted(count: int, span_s: float, small_camera: Camera):
    for seed in range(5):
        events = noise(small_camera, count, span_s, seed)
        estimate = EgomotionEstimator(small_camera).estimate(events)
        assert not estimate.status.ok, (seed, estimate)


@pytest.mark.parametrize(
    ("binning", "reconstruction"), [("rect", "linear"), ("quadratic", "linear")]
)
def test_noise_is_not_trusted_whatever_the_kernels(
    binning: str, reconstruction: str, small_camera: Camera
):
    """A histogram of scattered events varies more than their bilinear votes, by chance alone."""
    config = EgomotionConfig(contrast=ContrastConfig("variance", binning, reconstruction))
    for seed in range(2):
        estimate = EgomotionEstimator(small_camera, config).estimate(
            noise(small_camera, 4000, 0.03, seed)
        )
        assert estimate.status is Status.NO_STRUCTURE, (seed, estimate)


@pytest.mark.parametrize("count", [5000, 40_000])
def test_noise_gains_no_contrast_whatever_the_bins(count: int, small_camera: Camera):
    for seed in range(4):
        estimate = EgomotionEstimator(small_camera).estimate(noise(small_camera, count, 0.03, seed))
        assert 0 < estimate.contrast_gain < 1.3, seed


def test_noise_after_tracking_is_not_trusted_and_the_track_comes_back(
    simulated, small_camera: Camera
):
    events = simulated((2.0, 2.0, -2.0), 0.15)
    estimator = EgomotionEstimator(small_camera)
    assert estimator.estimate(events[:WINDOW]).status.ok
    alone = noise(small_camera, 8000, 0.02, 1)
    alone = replace(alone, t=alone.t + events.t[WINDOW])
    assert not estimator.estimate(alone).status.ok
    back = estimator.estimate(events[2 * WINDOW : 3 * WINDOW])
    assert back.status.ok
    assert rms(errors_deg_s([back], (2.0, 2.0, -2.0))) < 1.0


def test_too_few_events_and_single_time_stamps(small_camera: Camera, turning: Events):
    estimator = estimator_of(small_camera, min_events=1000)
    instant = replace(turning, t=np.full_like(turning.t, 7_000))
    for events in (turning[:999], turning[:0], turning[:1], instant):
        estimate = estimator.estimate(events)
        few = len(events) < 1000
        assert estimate.status is (Status.TOO_FEW_EVENTS if few else Status.NO_STRUCTURE)
        assert not estimate.status.ok
        assert estimate.events == len(events)
        assert np.isnan(estimate.angular_velocity).all()
        assert estimator.compensated_image() is None
    assert estimator.estimate(turning[:1000]).status is not Status.TOO_FEW_EVENTS


def test_stamps_are_those_of_the_window(small_camera: Camera, turning: Events):
    late = replace(turning, t=turning.t + 1_700_000_000_000_000_000)
    estimate = EgomotionEstimator(small_camera).estimate(late)
    assert estimate.window_start_ns == late.t[0]
    assert estimate.window_end_ns == late.t[-1]
    assert estimate.stamp_ns == pytest.approx(1_700_000_000_000_000_000 + turning.t.mean(), abs=1)
    # The epoch must not cost digits.
    early = EgomotionEstimator(small_camera).estimate(turning)
    assert np.array_equal(estimate.angular_velocity, early.angular_velocity)


def test_covariance_is_positive_definite_and_honest(simulated, small_camera: Camera):
    truth = (2.0, -2.0, 1.0)
    estimates = track(simulated(truth, 0.25, noise_hz=3.0), small_camera, window=10_000)
    assert len(estimates) >= 8
    squared = []
    for e in estimates:
        assert np.array_equal(e.covariance, e.covariance.T)
        assert np.linalg.eigvalsh(e.covariance)[0] >= 1e-6 * (1 - 1e-6)
        error = e.angular_velocity - truth
        squared.append(error @ np.linalg.solve(e.covariance, error))
    # Normalised squared errors of three components: 3 in the mean for a perfect covariance.
    assert 0.5 < np.mean(squared) < 12


def test_covariance_grows_as_events_get_fewer(simulated, small_camera: Camera):
    events = simulated((2.0, -2.0, 1.0), 0.25)
    few = EgomotionEstimator(small_camera).estimate(events[:3000])
    many = EgomotionEstimator(small_camera).estimate(events[:30_000])
    assert np.trace(few.covariance) > 3 * np.trace(many.covariance)


def test_blind_camera_gives_no_trusted_estimate(small_camera: Camera):
    """All events on pixels without a bearing: finite answers, and the status says no."""
    k = np.array([[20.0, 0, 120], [0, 20.0, 90], [0, 0, 1]])
    lens = Camera(240, 180, k, "plumb_bob", np.array([-0.5, 0, 0, 0, 0]))
    assert np.isnan(lens.bearings[:40, :40]).all()
    events = noise(small_camera, 3000, 0.02, 0)
    corner = replace(events, x=events.x % 40, y=events.y % 40)
    estimate = EgomotionEstimator(lens).estimate(corner)
    assert not estimate.status.ok
    assert np.isfinite(estimate.angular_velocity).all()
    assert np.linalg.eigvalsh(estimate.covariance)[0] > 0


def test_warm_start_saves_passes(simulated, small_camera: Camera):
    events = simulated((3.0, 3.0, -3.0), 0.1)
    warm = track(events, small_camera)
    estimator = EgomotionEstimator(small_camera)
    cold = []
    for stop in range(WINDOW, len(events) + 1, WINDOW):
        estimator.reset()
        cold.append(estimator.estimate(events[stop - WINDOW : stop]))
    assert len(warm) >= 3
    assert warm[0].iterations == cold[0].iterations
    assert max(e.iterations for e in warm[1:]) < min(e.iterations for e in cold)
    for a, b in zip(warm, cold, strict=True):
        assert np.degrees(np.abs(a.angular_velocity - b.angular_velocity)).max() < 0.3


def test_sudden_change_of_the_motion_is_followed(simulated, small_camera: Camera):
    first, second = (3.0, -1.0, 0.0), (-4.0, 3.0, 4.0)
    before, after = simulated(first, 0.1)[:WINDOW], simulated(second, 0.1)[:WINDOW]
    after = replace(after, t=after.t - after.t[0] + before.t[-1])
    estimator = EgomotionEstimator(small_camera)
    assert estimator.estimate(before).status.ok
    estimate = estimator.estimate(after)
    assert estimate.status.ok
    assert rms(errors_deg_s([estimate], second)) < 1.0


def test_track_survives_a_long_silence(simulated, small_camera: Camera):
    """Extrapolating the acceleration over seconds predicts nonsense; it must not be believed."""
    motion: Motion = hand_motion(0.8, (5.0, 5.0, 5.0), seed=3)
    events = simulated(motion, 0.75)
    truth = (1.0, -2.0, 1.5)
    later = simulated(truth, 0.1)
    for gap_ns in (200_000_000, 2_000_000_000, 60_000_000_000):
        estimator = EgomotionEstimator(small_camera)
        first = estimator.estimate(events[-WINDOW:])
        assert first.status.ok
        shifted = replace(later, t=later.t - later.t[0] + events.t[-1] + gap_ns)
        estimates = [estimator.estimate(shifted[k : k + WINDOW]) for k in (0, WINDOW)]
        for e in estimates:
            if e.status.ok:
                assert rms(errors_deg_s([e], truth)) < 1.0
        assert estimates[-1].status.ok


@pytest.mark.parametrize("unbiased", [True, False], ids=["unbiased", "raw"])
def test_torch_path_gives_the_same_answers(
    unbiased: bool, simulated, small_camera: Camera, torch_threads
):
    events = simulated((3.0, -1.0, 2.0), 0.1)[:16_000]
    options = {"window": 8000, "contrast": ContrastConfig() if unbiased else RAW}
    with torch_threads(1):
        ours = track(events, small_camera, **options)
        theirs = track(events, small_camera, fused=False, **options)
    assert len(ours) == 2
    for a, b in zip(ours, theirs, strict=True):
        assert a.status is b.status
        if unbiased:
            assert a.iterations == b.iterations
            assert np.degrees(np.abs(a.angular_velocity - b.angular_velocity)).max() < 0.01
            assert a.covariance == pytest.approx(b.covariance, rel=1e-2)
            assert a.contrast_gain == pytest.approx(b.contrast_gain, rel=1e-3)
        else:  # a rough gradient amplifies rounding, and still both find the motion
            assert rms(errors_deg_s([a, b], (3.0, -1.0, 2.0))) < 6.0


@pytest.mark.parametrize("objective", ["mean_square", "gradient_magnitude", "likelihood"])
def test_other_objectives_find_the_motion_too(objective: str, simulated, small_camera: Camera):
    truth = (2.0, -2.0, 1.0)
    events = simulated(truth, 0.25)[:40_000]
    found = track(events, small_camera, contrast=ContrastConfig(objective))
    assert all(e.status.ok for e in found)
    assert rms(errors_deg_s(found, truth)) < 1.0


def test_unbiased_gradient_is_at_least_as_accurate_as_the_raw_one(simulated, small_camera: Camera):
    truth = (2.0, -2.0, 2.0)
    events = simulated(truth, 0.2)
    unbiased = errors_deg_s(track(events, small_camera, window=10_000), truth)
    raw = errors_deg_s(track(events, small_camera, window=10_000, contrast=RAW), truth)
    assert rms(unbiased) < rms(raw)


def test_estimates_are_repeatable_to_the_bit_at_any_number_of_threads(
    simulated, small_camera: Camera, numba_threads
):
    events = simulated((3.0, -1.0, 2.0), 0.1)[: 3 * WINDOW]

    def run(threads: int) -> list[bytes]:
        with numba_threads(threads):
            found = track(events, small_camera)
        return [a.tobytes() for e in found for a in (e.angular_velocity, e.covariance)]

    first = run(1)
    assert run(2) == first
    assert run(2) == first


def test_hot_pixels_do_not_hide_the_motion(simulated, small_camera: Camera):
    truth = np.array([1.0, -2.0, 3.0])
    events = simulated((1.0, -2.0, 3.0), 0.1)[:9000]
    start, end = int(events.t[0]), int(events.t[-1])
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, [240, 180], (5, 2))
    count = 600
    t = np.sort(rng.integers(start, end, (len(pixels), count)), axis=1)
    merged_t = np.concatenate([events.t, t.ravel()])
    order = np.argsort(merged_t, kind="stable")
    x = np.concatenate([events.x, np.repeat(pixels[:, 0], count)]).astype(np.uint16)
    y = np.concatenate([events.y, np.repeat(pixels[:, 1], count)]).astype(np.uint16)
    p = np.concatenate([events.p, np.ones(t.size)]).astype(np.uint8)
    noisy = Events(merged_t[order], x[order], y[order], p[order], 240, 180)
    estimate = EgomotionEstimator(small_camera).estimate(noisy)
    assert estimate.status.ok
    assert t.size <= estimate.hot_pixel_events < t.size + 100
    clean = EgomotionEstimator(small_camera).estimate(events)
    assert clean.hot_pixel_events == 0
    # As good as without them: within the estimate's own scatter.
    assert np.linalg.norm(estimate.angular_velocity - truth) < 0.1
    assert np.linalg.norm(estimate.angular_velocity - clean.angular_velocity) < 0.05


def test_simulated_recording_at_5_rad_s_is_within_1_deg_s():
    simulation = SimulationConfig(duration_s=0.3)  # 346x260, peaks of 5 rad/s
    motion = ConstantMotion((5.0, -5.0, 5.0))
    camera = simulation.camera()
    chunks = simulate_rotation(camera, motion, simulation.duration_s, **simulation.sensor())
    events = Events.concatenate(list(chunks))
    found = track(events, camera)
    assert len(found) > 20
    assert all(e.status.ok for e in found)
    error = np.degrees([e.angular_velocity - (5.0, -5.0, 5.0) for e in found])
    assert np.sqrt((error**2).mean()) < 1.0


def test_estimator_keeps_nothing_of_the_window_it_was_lent(simulated, small_camera: Camera):
    events = simulated((3.0, -1.0, 2.0), 0.1)
    lent = events[:WINDOW].copy()
    estimator = EgomotionEstimator(small_camera)
    estimator.estimate(lent)
    image = estimator.compensated_image()
    lent.t[:], lent.x[:], lent.y[:] = 0, 0, 0
    again = estimator.compensated_image()
    assert image is not None
    assert again is not None
    assert np.array_equal(image, again)


def test_compensated_image_is_sharp_and_on_the_sensors_pixels(simulated, small_camera: Camera):
    events = simulated((3.0, -1.0, 2.0), 0.1)[:WINDOW]
    estimator = EgomotionEstimator(small_camera)
    assert estimator.compensated_image() is None
    estimator.estimate(events)
    image = estimator.compensated_image()
    assert image is not None
    assert image.shape == (180, 240)
    assert image.dtype == np.float32
    # The undistorted view is wider than the sensor: what it cuts off is not in the picture.
    assert 0.75 * WINDOW < image.sum() < WINDOW
    raw = np.zeros((180, 240))
    np.add.at(raw, (events.y, events.x), 1)
    assert image.var() > 1.5 * raw.var()
    image[:] = 0  # the caller's own copy
    again = estimator.compensated_image()
    assert again is not None
    assert again.any()


def test_events_off_the_sensor_have_no_bearing(small_camera: Camera, turning: Events):
    """Coordinates beyond the camera's table must not be looked up beyond its end."""
    outside = replace(turning.copy(), x=turning.x + np.uint16(30_000))
    estimate = EgomotionEstimator(small_camera).estimate(outside)
    assert not estimate.status.ok
    below = replace(turning.copy(), y=turning.y + np.uint16(60_000))
    assert not EgomotionEstimator(small_camera).estimate(below).status.ok


def test_device_that_is_not_there_is_refused_in_one_line(small_camera: Camera):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match="torch finds no CUDA device; expected 'cpu'") as caught:
        estimator_of(small_camera, device="cuda")
    assert "\n" not in str(caught.value)


def test_camera_that_looks_aside_is_refused():
    k = np.array([[100.0, 0, -5000], [0, 100.0, 90], [0, 0, 1]])
    with pytest.raises(CalibrationError, match="no pixel looks within 65 degrees"):
        EgomotionEstimator(Camera(240, 180, k))


def test_scene_of_shapes_is_tracked_too(small_camera: Camera):
    shapes = make_scene("shapes", pixel_rad=1 / (0.7 * 240), seed=2)
    motion = hand_motion(0.5, (3.0, 3.0, 3.0), seed=5)
    chunks = simulate_rotation(small_camera, motion, 0.5, scene=shapes, seed=2)
    events = Events.concatenate(list(chunks))
    events = events[int(np.searchsorted(events.t, 20_000_000)) :]
    estimates = [e for e in track(events, small_camera, window=10_000) if e.status.ok]
    assert len(estimates) > 5
    assert rms(errors_deg_s(estimates, motion)) < 1.0


# ---------------------------------------------------------------------------------- motion models

OMEGA, ALPHA, VELOCITY = (1.0, -2.0, 1.5), (10.0, 20.0, -15.0), (0.6, -0.4, 0.3)
SPAN_S, REFERENCE_NS = 0.05, 1_000_000_000
NORMAL = np.array([0.3, -0.2, 1.0]) / np.linalg.norm([0.3, -0.2, 1.0])
PLANE = Plane(NORMAL, 2.0 * NORMAL[2])  # 2 m away along the optical axis


def on_plane(x: Float64, y: Float64) -> Float64:
    """1/m."""
    n = PLANE.normal
    return (n[0] * x + n[1] * y + n[2]) / PLANE.distance_m


def on_front(x: Float64, y: Float64) -> Float64:
    return np.full_like(x, 1 / 2.0)


def on_hills(x: Float64, y: Float64) -> Float64:
    return 0.5 + 0.3 * np.sin(3 * x) * np.cos(2 * y)


def metres_of(camera: Camera, inverse_depth) -> np.ndarray:
    """[H, W] of a scene seen at the reference time."""
    bearings = camera.bearings.astype(np.float64)
    x, y = bearings[..., 0] / bearings[..., 2], bearings[..., 1] / bearings[..., 2]
    return (1 / inverse_depth(x, y)).astype(np.float32)


def depth_image(camera: Camera, inverse_depth) -> DepthImage:
    return DepthImage(metres_of(camera, inverse_depth), REFERENCE_NS)


def assert_near(found: Float64, truth, tolerance: float) -> None:
    assert np.abs(found - np.array(truth)).max() < tolerance, found


@pytest.mark.parametrize("acceleration", [True, False])
def test_rotation_of_points(acceleration: bool, point_events, small_camera: Camera):
    events = point_events(OMEGA, ALPHA if acceleration else (0, 0, 0), span_s=SPAN_S)
    estimate = estimator_of(small_camera, angular_acceleration=acceleration).estimate(events)
    assert estimate.status.ok
    assert_near(estimate.angular_velocity, OMEGA, 0.02)
    if acceleration:
        assert_near(estimate.angular_acceleration, ALPHA, 3.0)
    else:
        assert not estimate.angular_acceleration.any()
    for of_translation in (
        estimate.linear_velocity,
        estimate.linear_covariance,
        estimate.cross_covariance,
        estimate.velocity_over_distance,
        estimate.plane_normal,
    ):
        assert np.isnan(of_translation).all()


def test_scene_far_away_tells_the_rotation_and_says_that_it_tells_no_more(
    point_events, small_camera: Camera
):
    """Where nothing has parallax, what is taken for granted of the velocity is no knowledge."""
    v, far = (3.0, -2.0, 1.5), 1e6
    events = point_events(OMEGA, ALPHA, v, lambda x, y: 0 * x + 1 / far, span_s=SPAN_S)
    estimate = estimator_of(small_camera, model=MotionModel.FULL).estimate(events, depth=far)
    assert_near(estimate.angular_velocity, OMEGA, 0.02)
    error = estimate.linear_velocity - v
    assert error @ np.linalg.solve(estimate.linear_covariance, error) < 12
    assert estimate.status is Status.UNCERTAIN
    planar = estimator_of(small_camera, model=MotionModel.PLANAR).estimate(events)
    assert_near(planar.angular_velocity, OMEGA, 0.1)
    assert_near(planar.velocity_over_distance, (0, 0, 0), 0.1)


DEPTHS = {"constant": on_front, "plane": on_plane, "slanted image": on_plane, "image": on_hills}


@pytest.mark.parametrize("depth", DEPTHS)
def test_full_motion_with_known_depth(depth: str, point_events, small_camera: Camera):
    known = {"constant": 2.0, "plane": PLANE}.get(depth, depth_image(small_camera, DEPTHS[depth]))
    squared = []
    for seed in range(3):
        events = point_events(OMEGA, ALPHA, VELOCITY, DEPTHS[depth], span_s=SPAN_S, seed=seed)
        estimator = estimator_of(small_camera, model=MotionModel.FULL)
        cold = estimator.estimate(events, depth=known)
        warm = estimator.estimate(events, depth=known)
        for estimate in (cold, warm):
            assert estimate.status.ok
            # Of a plane the events hardly tell a turn from a shift along it.
            loose = 1 if depth == "image" else 3
            assert_near(estimate.angular_velocity, OMEGA, 0.025 * loose)
            assert_near(estimate.linear_velocity, VELOCITY, 0.05 * loose)
            assert np.isnan(estimate.velocity_over_distance).all()
            assert np.isnan(estimate.plane_normal).all()
        assert warm.iterations < cold.iterations
        joint = np.block(
            [
                [cold.covariance, cold.cross_covariance.T],
                [cold.cross_covariance, cold.linear_covariance],
            ]
        )
        assert joint == pytest.approx(joint.T)
        assert np.linalg.eigvalsh(joint)[0] > 0
        error = np.concatenate([cold.angular_velocity - OMEGA, cold.linear_velocity - VELOCITY])
        squared.append(error @ np.linalg.solve(joint, error))
    assert np.mean(squared) < 4 * 6  # 6 for a perfect covariance


def test_depth_image_of_another_time_is_taken_there_by_the_motion(
    point_events, small_camera: Camera
):
    """The plane as it was seen 60 ms before the window, from another place and attitude."""
    tau = -0.06
    turned = Rotation.from_rotvec(np.array(OMEGA) * tau)
    earlier = Plane(turned.inv().apply(NORMAL), PLANE.distance_m - tau * float(NORMAL @ VELOCITY))

    def on_earlier(x: Float64, y: Float64) -> Float64:
        n = earlier.normal
        return (n[0] * x + n[1] * y + n[2]) / earlier.distance_m

    events = point_events(OMEGA, v=VELOCITY, inverse_depth=on_plane, span_s=SPAN_S)
    metres = metres_of(small_camera, on_earlier)
    assert np.abs(metres / metres_of(small_camera, on_plane) - 1).max() > 0.1
    image = DepthImage(metres, REFERENCE_NS + int(tau * 1e9))
    estimator = estimator_of(small_camera, model=MotionModel.FULL)
    estimator.estimate(events, depth=image)  # does not know the motion beforehand
    estimate = estimator.estimate(events, depth=image)
    known = estimator.estimate(events, depth=PLANE)
    assert known.status.ok
    assert_near(estimate.angular_velocity, known.angular_velocity, 0.02)
    assert_near(estimate.linear_velocity, known.linear_velocity, 0.04)


def test_depth_in_other_units_scales_the_velocity(point_events, small_camera: Camera):
    events = point_events(OMEGA, v=VELOCITY, inverse_depth=on_hills, span_s=SPAN_S)
    metres = metres_of(small_camera, on_hills)
    one, ten = (
        estimator_of(small_camera, model=MotionModel.FULL, max_std_m_s=10.0).estimate(
            events, depth=DepthImage(np.float32(unit) * metres, REFERENCE_NS)
        )
        for unit in (1, 10)
    )
    assert_near(ten.linear_velocity / 10, one.linear_velocity, 0.05)
    assert_near(ten.angular_velocity, one.angular_velocity, 0.03)


@pytest.mark.parametrize("unknown", [np.nan, 0.0, np.inf])
def test_pixels_of_unknown_depth_are_left_out(unknown: float, point_events, small_camera: Camera):
    """Not a number, zero or infinite: sensors have many ways to say that they know nothing."""
    events = point_events(OMEGA, v=VELOCITY, inverse_depth=on_hills, span_s=SPAN_S)
    metres = metres_of(small_camera, on_hills)
    metres[:, 150:] = unknown
    image = DepthImage(metres, REFERENCE_NS)
    estimator = estimator_of(small_camera, model=MotionModel.FULL)
    estimate = estimator.estimate(events, depth=image)
    assert estimate.status.ok
    assert_near(estimate.angular_velocity, OMEGA, 0.06)
    assert_near(estimate.linear_velocity, VELOCITY, 0.12)
    assert np.linalg.eigvalsh(estimate.linear_covariance)[0] > 0
    seen = estimator.compensated_image()
    assert seen is not None
    share = (events.x < 150).mean()
    assert 0.8 * share < seen.sum() / len(events) < share + 0.1
    assert 1 - share - 0.1 < estimate.depthless_events / len(events) < 1 - share + 0.1
    blind = DepthImage(np.full_like(metres, unknown), REFERENCE_NS)
    nothing = estimator.estimate(events, depth=blind)
    assert nothing.status is Status.NO_DEPTH
    assert np.isnan(nothing.angular_velocity).all()
    assert nothing.depthless_events == len(events)
    # And the next window is estimated as if that one had not been.
    assert estimator.estimate(events, depth=image).status.ok


def test_events_off_the_sensor_have_no_depth(point_events, small_camera: Camera):
    events = point_events(OMEGA, v=VELOCITY, inverse_depth=on_hills, span_s=SPAN_S)
    events.x[::50] += np.uint16(240)
    image = depth_image(small_camera, on_hills)
    estimate = estimator_of(small_camera, model=MotionModel.FULL).estimate(events, depth=image)
    assert_near(estimate.angular_velocity, OMEGA, 0.03)
    assert_near(estimate.linear_velocity, VELOCITY, 0.06)


@pytest.mark.parametrize("model", [MotionModel.FULL, MotionModel.TRANSLATION])
def test_without_depth_nothing_is_estimated(model: MotionModel, point_events, small_camera: Camera):
    events = point_events(OMEGA, v=VELOCITY, inverse_depth=on_front)
    estimator = estimator_of(small_camera, model=model)
    estimate = estimator.estimate(events)
    assert estimate.status is Status.NO_DEPTH
    assert estimate.iterations == 0
    assert np.isnan(estimate.angular_velocity).all()
    assert np.isnan(estimate.linear_velocity).all()
    assert np.isnan(estimate.covariance).all()
    assert estimator.compensated_image() is None
    # Too few events are too few with and without a depth.
    assert estimator.estimate(events[:10]).status is Status.TOO_FEW_EVENTS


@pytest.mark.parametrize("model", list(MotionModel), ids=lambda m: m.value)
def test_without_a_gyro_that_is_needed_nothing_is_estimated(
    model: MotionModel, point_events, small_camera: Camera
):
    events = point_events(OMEGA, v=VELOCITY, inverse_depth=on_front)
    estimator = estimator_of(small_camera, model=model, gyro_needed=True)
    estimate = estimator.estimate(events, depth=2.0)
    assert estimate.status is Status.NO_ROTATION
    assert np.isnan(estimate.angular_velocity).all()
    assert np.isnan(estimate.linear_velocity).all()
    told = estimator.estimate(events, depth=2.0, gyro=gyro_of(OMEGA))
    assert told.status is not Status.NO_ROTATION
    assert np.isfinite(told.angular_velocity).all()


def flow_matrix(omega: Float64, v: Float64, normal: Float64) -> Float64:
    """[omega]x + v n^T but for its trace: all that a plane's image tells of the motion."""
    x, y, z = omega
    matrix = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) + np.outer(v, normal)
    return matrix - np.eye(3) * np.trace(matrix) / 3


@pytest.mark.parametrize(
    "v", [(2.0, -1.0, 0.3), (-0.4, 1.6, -0.2), (0.3, 0.5, 2.0)], ids=["along x", "along y", "ahead"]
)
def test_planar_motion_and_normal_from_events_alone(v, point_events, small_camera: Camera):
    axis = PLANE.distance_m / NORMAL[2]  # the plane's distance along the optical axis
    truth = np.array(v) / axis
    slant = NORMAL / NORMAL[2]
    estimator = estimator_of(small_camera, model=MotionModel.PLANAR)
    for seed in range(2):
        events = point_events(OMEGA, ALPHA, v, on_plane, span_s=SPAN_S, seed=seed)
        estimate = estimator.estimate(events)
        assert estimate.status.ok
        found = estimate.velocity_over_distance
        assert np.linalg.norm(estimate.plane_normal) == pytest.approx(1)
        assert estimate.plane_normal[2] > 0
        found_slant = estimate.plane_normal / estimate.plane_normal[2]
        assert_near(
            flow_matrix(estimate.angular_velocity, found, found_slant),
            flow_matrix(np.array(OMEGA), truth, slant),
            0.05,
        )
        # A second plane with another motion looks alike: the normal and the velocity's direction
        # change places. It can be in view only for velocities ahead.
        if abs(v[2]) < 1:
            assert_near(estimate.angular_velocity, OMEGA, 0.05)
            assert_near(found, truth, 0.08)
            assert_near(estimate.plane_normal, NORMAL, 0.08)
        else:
            swapped = truth / np.linalg.norm(truth)
            angles = [abs(estimate.plane_normal @ n) for n in (NORMAL, swapped)]
            assert max(angles) > 0.99
        for scaled in (estimate.linear_velocity, estimate.linear_covariance):
            assert np.isnan(scaled).all()  # there is no scale


def test_range_gives_the_planar_motion_its_scale(point_events, small_camera: Camera):
    v, axis_m = (2.0, -1.0, 0.3), 2.0
    events = point_events(OMEGA, ALPHA, v, on_plane, span_s=SPAN_S)
    estimator = estimator_of(small_camera, model=MotionModel.PLANAR)
    plain = estimator.estimate(events)
    estimator.reset()
    ranged = estimator.estimate(events, depth=axis_m)
    assert ranged.status.ok
    assert_near(ranged.velocity_over_distance, np.array(v) / axis_m, 0.08)
    assert_near(ranged.linear_velocity, v, 0.16)
    assert_near(ranged.angular_velocity, plain.angular_velocity, 0.02)
    assert_near(ranged.plane_normal, plain.plane_normal, 0.02)
    assert np.linalg.eigvalsh(ranged.linear_covariance)[0] > 0


def test_translation_with_the_rotation_known(point_events, small_camera: Camera):
    events = point_events(OMEGA, ALPHA, VELOCITY, on_hills, span_s=SPAN_S)
    image = depth_image(small_camera, on_hills)
    full = estimator_of(small_camera, model=MotionModel.FULL).estimate(events, depth=image)
    for prior in (False, True):  # the rotation is what the gyro says, either way
        options = {"model": MotionModel.TRANSLATION, "gyro_prior": prior}
        estimate = estimator_of(small_camera, **options).estimate(
            events, depth=image, gyro=gyro_of(OMEGA, ALPHA, std_rad_s=0.001)
        )
        assert estimate.status.ok
        assert_near(estimate.linear_velocity, VELOCITY, 0.04)
        assert np.array_equal(estimate.angular_velocity, OMEGA)
        assert np.array_equal(estimate.angular_acceleration, ALPHA)
        assert np.linalg.eigvalsh(estimate.linear_covariance)[0] > 0
        # What is known beforehand need not be told by the events.
        assert np.trace(estimate.linear_covariance) < np.trace(full.linear_covariance)


def test_errors_of_the_gyro_are_errors_of_the_translation(point_events, small_camera: Camera):
    """A rotation that is told wrongly is made good by a translation: dv = -domega x (0, 0, Z)."""
    events = point_events(v=VELOCITY, inverse_depth=on_front, span_s=SPAN_S)
    std_rad_s, depth_m, squared = 0.03, 2.0, []
    for seed in range(12):
        told = std_rad_s * np.random.default_rng(seed).standard_normal(3)
        estimate = estimator_of(small_camera, model=MotionModel.TRANSLATION).estimate(
            events, depth=depth_m, gyro=gyro_of(told, std_rad_s=std_rad_s)
        )
        error = estimate.linear_velocity - VELOCITY
        expected = np.cross((0.0, 0.0, depth_m), told)
        assert error[:2] == pytest.approx(expected[:2], abs=0.05)
        squared.append(error @ np.linalg.solve(estimate.linear_covariance, error))
        cross = np.diag([std_rad_s**2] * 2) * depth_m
        assert estimate.cross_covariance[:2, :2] == pytest.approx(cross @ [[0, -1], [1, 0]])
    assert 0.3 < np.mean(squared) < 6  # 3 for three numbers


def test_translation_without_a_gyro_does_not_turn(point_events, small_camera: Camera):
    image = depth_image(small_camera, on_hills)
    estimator = estimator_of(small_camera, model=MotionModel.TRANSLATION)
    turning = point_events(OMEGA, v=VELOCITY, inverse_depth=on_hills, span_s=SPAN_S)
    gyro = gyro_of(OMEGA)
    assert estimator.estimate(turning, depth=image, gyro=gyro).status.ok
    straight = point_events(
        v=VELOCITY, inverse_depth=on_hills, span_s=SPAN_S, start_ns=1_050_000_000
    )
    for _ in range(2):  # on its own, and after a window with a gyro
        estimate = estimator.estimate(straight, depth=image)
        assert estimate.status.ok
        assert not estimate.angular_velocity.any()
        assert_near(estimate.linear_velocity, VELOCITY, 0.04)
        estimator.reset()


# ----------------------------------------------------------------------------------------- gyro


def test_gyro_is_where_a_tracked_window_starts(point_events, small_camera: Camera):
    """A jerk between two windows is searched for, or not believed, unless the gyro tells of it."""
    before = point_events((3.0, -8.0, 1.0))
    omega = np.array([-6.0, 9.0, -8.0])
    after = point_events(tuple(omega), start_ns=1_040_000_000)
    found = []
    for gyro in (None, gyro_of(omega + 0.1)):
        estimator = estimator_of(small_camera)
        assert estimator.estimate(before).status.ok
        found.append(estimator.estimate(after, gyro=gyro))
    alone, told = found
    assert told.status.ok
    assert not told.searched
    assert_near(told.angular_velocity, omega, 0.03)
    if alone.status.ok:
        assert alone.searched
        assert told.iterations < alone.iterations
        assert_near(alone.angular_velocity, omega, 0.03)


def test_wrong_gyro_as_a_start_does_not_bend_the_answer(point_events, small_camera: Camera):
    events = point_events(OMEGA)
    for off in ((3.0, 0.0, 0.0), (-8.0, 5.0, 10.0)):
        gyro = gyro_of(np.array(OMEGA) + off)
        estimate = estimator_of(small_camera).estimate(events, gyro=gyro)
        assert estimate.status.ok
        assert_near(estimate.angular_velocity, OMEGA, 0.02)


def test_gyro_as_a_prior_counts_as_much_as_it_is_certain(point_events, small_camera: Camera):
    events = point_events(OMEGA)
    said = np.array([OMEGA[0] + 0.4, *OMEGA[1:]])
    pulls = []
    for std in (100.0, 0.1, 0.01, 1e-5):
        estimator = estimator_of(small_camera, gyro_prior=True)
        estimate = estimator.estimate(events, gyro=gyro_of(said, std_rad_s=std))
        pulls.append((estimate.angular_velocity[0] - OMEGA[0]) / 0.4)
        assert_near(estimate.angular_velocity[1:], OMEGA[1:], 0.03)
        assert np.linalg.eigvalsh(estimate.covariance)[0] > 0
    assert pulls == sorted(pulls)
    assert abs(pulls[0]) < 0.03
    assert pulls[2] > pulls[0]
    assert pulls[3] == pytest.approx(1, abs=0.01)


def test_prior_helps_where_the_events_tell_little(point_events, small_camera: Camera):
    """Turning from a shift along a plane in front, seen for 15 ms."""
    errors: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(4):
        events = point_events(
            OMEGA, v=VELOCITY, inverse_depth=on_front, span_s=0.015, events=4000, seed=seed
        )
        for prior, found in errors.items():
            estimator = estimator_of(small_camera, model=MotionModel.FULL, gyro_prior=prior)
            estimate = estimator.estimate(events, depth=2.0, gyro=gyro_of(OMEGA, std_rad_s=0.02))
            found.append(float(np.linalg.norm(estimate.linear_velocity - VELOCITY)))
    assert np.mean(errors[True]) < 0.6 * np.mean(errors[False])


# ------------------------------------------------------------------------- subsampling, deadline


@pytest.mark.parametrize("step", [2, 3, 7])
def test_too_many_events_are_thinned_evenly_and_it_is_said(
    step: int, point_events, small_camera: Camera
):
    events = point_events(OMEGA, ALPHA, events=70_000, span_s=SPAN_S)
    limit = -(-len(events) // step)
    thinned = estimator_of(small_camera, max_events=limit).estimate(events)
    assert thinned.status.ok
    assert thinned.events == len(events)
    assert thinned.used_events == limit
    assert_near(thinned.angular_velocity, OMEGA, 0.03)
    # Evenly spread from the first on; the stamp is that of all events, the picture of the part.
    chosen = np.arange(limit) * len(events) // limit
    part = replace(events, **{name: getattr(events, name)[chosen] for name in ("t", "x", "y", "p")})
    alone = estimator_of(small_camera).estimate(part)
    assert alone.events == alone.used_events == limit
    assert_near(thinned.angular_velocity, alone.angular_velocity, 2e-3)
    assert thinned.stamp_ns == pytest.approx(events.t.mean(), abs=1)
    picture = estimator_of(small_camera, max_events=limit)
    picture.estimate(events)
    image = picture.uncompensated_image()
    assert image is not None
    assert 0.7 * limit < image.sum() <= limit * (1 + 1e-6)


def test_thinning_takes_the_depth_of_the_same_events(point_events, small_camera: Camera):
    events = point_events(OMEGA, v=VELOCITY, inverse_depth=on_hills, events=60_000, span_s=SPAN_S)
    options = {"model": MotionModel.FULL, "max_events": 20_000}
    estimate = estimator_of(small_camera, **options).estimate(
        events, depth=depth_image(small_camera, on_hills)
    )
    assert estimate.status.ok
    assert estimate.used_events == 20_000 < len(events)
    assert_near(estimate.angular_velocity, OMEGA, 0.03)
    assert_near(estimate.linear_velocity, VELOCITY, 0.06)


def test_all_events_are_used_where_they_are_few_enough(point_events, small_camera: Camera):
    events = point_events(OMEGA)
    estimate = estimator_of(small_camera, max_events=len(events)).estimate(events)
    assert estimate.used_events == estimate.events == len(events)
    assert estimate.full_passes > 0


@pytest.mark.parametrize("model", list(MotionModel), ids=lambda m: m.value)
def test_answer_cut_short_by_the_deadline_is_never_trusted(
    model: MotionModel, point_events, small_camera: Camera
):
    v = (0.0, 0.0, 0.0) if model is MotionModel.ROTATION else VELOCITY
    omega = (0.0, 0.0, 0.0) if model is MotionModel.TRANSLATION else OMEGA
    events = point_events(omega, v=v, inverse_depth=on_front, span_s=SPAN_S)
    hasty = estimator_of(small_camera, model=model, deadline_s=1e-9)
    patient = estimator_of(small_camera, model=model, deadline_s=1000.0)
    enough = patient.estimate(events, depth=2.0)
    assert enough.status.ok
    for _ in range(3):  # the next windows have nothing to track
        estimate = hasty.estimate(events, depth=2.0)
        assert estimate.iterations < enough.iterations
        assert np.isfinite(estimate.angular_velocity).all()
        if model is MotionModel.TRANSLATION and estimate.status.ok:
            # So easy that it was there before the time was up.
            assert_near(estimate.linear_velocity, enough.linear_velocity, 0.02)
        else:
            assert estimate.status is Status.DEADLINE
    unlimited = estimator_of(small_camera, model=model).estimate(events, depth=2.0)
    again = estimator_of(small_camera, model=model, deadline_s=1000.0).estimate(events, depth=2.0)
    assert np.array_equal(unlimited.angular_velocity, again.angular_velocity)


def test_deadline_while_tracking_is_said_too(point_events, small_camera: Camera, monkeypatch):
    """The same estimator, on time at first; then a motion that the track does not lead to."""
    before, after = point_events(OMEGA), point_events((4.0, 3.0, -2.0), start_ns=1_040_000_000)
    estimator = estimator_of(small_camera, deadline_s=1000.0)
    assert estimator.estimate(before).status.ok
    monkeypatch.setattr(estimator, "config", replace(estimator.config, deadline_s=1e-9))
    assert estimator.estimate(after).status is Status.DEADLINE


# --------------------------------------------------------------------------- all models together


@pytest.mark.parametrize("model", list(MotionModel), ids=lambda m: m.value)
def test_every_model_gives_the_same_bits_at_any_number_of_threads(
    model: MotionModel, point_events, small_camera: Camera, numba_threads
):
    events = point_events(OMEGA, v=VELOCITY, inverse_depth=on_front, events=70_000, span_s=SPAN_S)
    gyro = gyro_of(OMEGA)

    def run(threads: int) -> list[bytes]:
        estimator = estimator_of(small_camera, model=model, max_events=100_000)
        with numba_threads(threads):
            found = [estimator.estimate(events, depth=2.0, gyro=gyro) for _ in range(2)]
        names = ("angular_velocity", "linear_velocity", "covariance", "linear_covariance")
        return [getattr(e, name).tobytes() for e in found for name in names]

    first = run(1)
    assert run(2) == first


@pytest.mark.parametrize("model", list(MotionModel), ids=lambda m: m.value)
def test_torch_path_of_every_model_gives_the_same_answers(
    model: MotionModel, point_events, small_camera: Camera, torch_threads
):
    events = point_events(
        OMEGA, v=VELOCITY, inverse_depth=on_hills, events=4000, points=200, span_s=SPAN_S
    )
    depth, gyro = depth_image(small_camera, on_hills), gyro_of(OMEGA)
    with torch_threads(1):
        ours, theirs = (
            estimator_of(small_camera, model=model, fused=fused).estimate(events, depth, gyro)
            for fused in (True, False)
        )
    assert ours.status is theirs.status
    for name in ("angular_velocity", "linear_velocity", "plane_normal"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert np.allclose(a, b, atol=5e-3, equal_nan=True), name


@pytest.mark.parametrize("model", list(MotionModel), ids=lambda m: m.value)
def test_noise_is_trusted_by_no_model(model: MotionModel, small_camera: Camera):
    for seed, count in enumerate((5000, 20_000)):
        events = noise(small_camera, count, 0.03, seed)
        estimate = estimator_of(small_camera, model=model).estimate(events, depth=2.0)
        assert not estimate.status.ok, (seed, estimate)
