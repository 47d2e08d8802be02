"""The contrast against an independent computation, and the estimator against simulated truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from event_binning_grad.errors import CalibrationError, ConfigError
from event_binning_grad.estimation import EgomotionEstimate, RotationEstimator, Status
from event_binning_grad.estimation.contrast import (
    Contrast,
    ContrastPass,
    TorchContrast,
    WindowEvents,
)
from event_binning_grad.estimation.contrast_cpu import PARALLEL_FROM, CpuContrast
from event_binning_grad.estimation.iwe_grid import IweGrid, iwe_grid, sensor_grid
from event_binning_grad.estimation.solver import maximise, newton_step
from event_binning_grad.events.types import Events
from event_binning_grad.geometry import Camera
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


def window_of(events: Events, camera: Camera) -> WindowEvents:
    start, end = int(events.t[0]), int(events.t[-1])
    tau = (events.t - start - int((events.t - start).mean())) * 1e-9
    bearings = np.ascontiguousarray(camera.bearings[events.y, events.x].T)
    return WindowEvents(bearings, tau.astype(np.float32), (end - start) * 1e-9)


@pytest.fixture(scope="module")
def turning(simulated) -> Events:
    return simulated((1.0, -2.0, 3.0), 0.1)[:9000]


# Parameters in rad/s: the truth, off by several pixels, at rest, and far too fast.
PARAMETERS = [
    np.array([1.0, -2.0, 3.0, 0.0, 0.0, 0.0]),
    np.array([1.8, -1.0, 2.0, 0.5, -0.4, 0.3]),
    np.zeros(6),
    np.array([25.0, -30.0, 40.0, 4.0, 3.0, -5.0]),
]


# ------------------------------------------------------------------------------------ the contrast


class DenseContrast:
    """Value, gradient, Hessian and scatter in float64 from the formulas, numpy and scipy alone."""

    def __init__(self, grid: IweGrid, window: WindowEvents, bin_size: float) -> None:
        keep = np.isfinite(window.bearings[0])
        self.bearings = window.bearings[:, keep].T.astype(np.float64)
        self.tau = window.tau[keep].astype(np.float64)
        self.span_s = window.span_s
        self.grid, self.bin_size = grid, bin_size
        self.shape = (math.ceil(grid.height / bin_size), math.ceil(grid.width / bin_size))

    def image_points(self, parameters: Float64) -> Float64:
        """(v, u) in bins [N, 2]; NaN behind the image plane."""
        alpha = parameters[3:] * 4 / self.span_s
        theta = np.outer(self.tau, parameters[:3]) + np.outer(self.tau**2 / 2, alpha)
        y = Rotation.from_rotvec(theta).apply(self.bearings)
        y[y[:, 2] < 0.1] = np.nan
        return (y[:, :2] / y[:, 2:] @ self.grid.matrix.T + self.grid.offset)[
            :, ::-1
        ] / self.bin_size

    def gather(self, image: Float64, points: Float64, forms) -> Float64:
        """sum_j image_j f(v - j) g(u - j) for kernels (f, g) that reach two bins."""
        padded = np.pad(image, 4)
        total = np.zeros(len(points))
        usable = ((points > -3) & (points < np.array(self.shape) + 2)).all(axis=1)
        v, u = points[usable].T
        for dj in range(-1, 3):
            for di in range(-1, 3):
                j, i = np.floor(v).astype(int) + dj, np.floor(u).astype(int) + di
                total[usable] += padded[j + 4, i + 4] * forms[0](v - j) * forms[1](u - i)
        return total

    def image(self, points: Float64) -> Float64:
        padded = np.zeros((self.shape[0] + 8, self.shape[1] + 8))
        usable = ((points > -3) & (points < np.array(self.shape) + 2)).all(axis=1)
        v, u = points[usable].T
        for dj in range(2):
            for di in range(2):
                j, i = np.floor(v).astype(int) + dj, np.floor(u).astype(int) + di
                np.add.at(padded, (j + 4, i + 4), hat(v - j) * hat(u - i))
        return padded[4:-4, 4:-4]

    def evaluate(self, parameters: Float64, unbiased: bool) -> ContrastPass:
        points = self.image_points(parameters)
        image = self.image(points)
        cotangent = 2 / image.size * (image - image.mean())
        step = 1e-5
        jacobian = np.stack(
            [
                (
                    self.image_points(parameters + step * e)
                    - self.image_points(parameters - step * e)
                )
                / (2 * step)
                for e in np.eye(6)
            ],
            axis=-1,
        )  # [N, 2, 6]
        jacobian = np.nan_to_num(jacobian)
        kernel, slope = (cubic, cubic_slope) if unbiased else (hat, hat_slope)
        slopes = np.stack(
            [
                self.gather(cotangent, points, (slope, kernel)),
                self.gather(cotangent, points, (kernel, slope)),
            ],
            axis=-1,
        )
        gradients = np.einsum("ni,nip->np", slopes, jacobian)
        vv = self.gather(cotangent, points, (cubic_curve, cubic))
        uv = self.gather(cotangent, points, (cubic_slope, cubic_slope))
        uu = self.gather(cotangent, points, (cubic, cubic_curve))
        curvature = np.stack([vv, uv, uv, uu], axis=-1).reshape(-1, 2, 2)
        return ContrastPass(
            float(image.var()),
            gradients.sum(axis=0),
            np.einsum("nip,nij,njq->pq", jacobian, curvature, jacobian),
            gradients.T @ gradients,
        )


def hat(x: Float64) -> Float64:
    return np.maximum(0, 1 - np.abs(x))


def hat_slope(x: Float64) -> Float64:
    return np.where(np.abs(x) < 1, -np.sign(x), 0.0)


def cubic(x: Float64) -> Float64:
    x = np.abs(x)
    return np.where(x <= 1, 2 / 3 - x**2 + x**3 / 2, np.maximum(0, 2 - x) ** 3 / 6)


def cubic_slope(x: Float64) -> Float64:
    a = np.abs(x)
    return np.sign(x) * np.where(a <= 1, -2 * a + 1.5 * a**2, -(np.maximum(0, 2 - a) ** 2) / 2)


def cubic_curve(x: Float64) -> Float64:
    a = np.abs(x)
    return np.where(a <= 1, 3 * a - 2, np.maximum(0, 2 - a))


def assert_same_pass(found: ContrastPass, expected: ContrastPass, tolerance: float) -> None:
    assert found.value == pytest.approx(expected.value, rel=1e-5)
    for name in ("gradient", "hessian", "scatter"):
        a, b = getattr(found, name), getattr(expected, name)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), name


BACK_ENDS: dict[str, Callable[[IweGrid, bool], Contrast]] = {
    "fused": CpuContrast,
    "torch": lambda grid, unbiased: TorchContrast(grid, unbiased, "cpu"),
}


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("unbiased", [True, False], ids=["unbiased", "raw"])
@pytest.mark.parametrize("bin_size", [1.0, 2.0, 8.0])
def test_pass_is_what_the_formulas_say(
    back_end: str, unbiased: bool, bin_size: float, turning: Events, small_camera: Camera
):
    grid, window = iwe_grid(small_camera), window_of(turning, small_camera)
    contrast = BACK_ENDS[back_end](grid, unbiased)
    contrast.load(window)
    dense = DenseContrast(grid, window, bin_size)
    for parameters in PARAMETERS:
        found = contrast.evaluate(parameters, bin_size)
        # float32 puts a few events on the other side of a hat's kink; its slope jumps there.
        tolerance = 1e-3 if unbiased else 1e-2
        assert_same_pass(found, dense.evaluate(parameters, unbiased), tolerance)
        image = contrast.iwe(parameters, bin_size)
        expected = dense.image(dense.image_points(parameters))
        assert image.shape == expected.shape
        assert np.abs(image - expected).max() < 5e-3


@pytest.mark.parametrize("bin_size", [1.0, 4.0])
def test_gradient_is_the_slope_of_the_smooth_surrogate(
    bin_size: float, turning: Events, small_camera: Camera
):
    """d/dp of sum_i sum_j c_j kappa(x_i(p) - j), c held fixed, by finite differences."""
    grid, window = iwe_grid(small_camera), window_of(turning, small_camera)
    contrast = CpuContrast(grid, True)
    contrast.load(window)
    dense = DenseContrast(grid, window, bin_size)
    for parameters in PARAMETERS[:3]:
        image = dense.image(dense.image_points(parameters))
        cotangent = 2 / image.size * (image - image.mean())

        def surrogate(p: Float64, cotangent: Float64 = cotangent) -> float:
            return float(dense.gather(cotangent, dense.image_points(p), (cubic, cubic)).sum())

        step = 1e-4
        slopes = [
            (surrogate(parameters + step * e) - surrogate(parameters - step * e)) / (2 * step)
            for e in np.eye(6)
        ]
        found = contrast.evaluate(parameters, bin_size).gradient
        assert np.abs(found - slopes).max() < 2e-3 * np.abs(slopes).max()


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("unbiased", [True, False], ids=["unbiased", "raw"])
def test_events_without_bearing_or_behind_the_plane_count_for_nothing(
    back_end: str, unbiased: bool, turning: Events, small_camera: Camera
):
    contrast = BACK_ENDS[back_end](iwe_grid(small_camera), unbiased)
    window = window_of(turning[:3000], small_camera)
    contrast.load(window)
    expected = contrast.evaluate(PARAMETERS[1], 1.0)

    blind = np.full((3, 500), np.nan, np.float32)
    behind = np.tile(np.array([[0.3], [0.1], [-0.9]], np.float32), 500)
    sideways = np.tile(np.array([[1.0], [0.0], [0.0]], np.float32), 500)
    bearings = np.concatenate([window.bearings, blind, behind, sideways], axis=1)
    tau = np.concatenate([window.tau, np.linspace(-0.01, 0.01, 1500, dtype=np.float32)])
    contrast.load(WindowEvents(np.ascontiguousarray(bearings), tau, window.span_s))
    assert_same_pass(contrast.evaluate(PARAMETERS[1], 1.0), expected, 1e-5)

    contrast.load(WindowEvents(blind, tau[:500], 0.02))
    nothing = contrast.evaluate(PARAMETERS[1], 1.0)
    assert nothing.value == 0
    assert not nothing.gradient.any()
    assert not nothing.hessian.any()


def test_fused_pass_gives_the_same_bits_at_any_number_of_threads(
    simulated, small_camera: Camera, numba_threads
):
    window = window_of(simulated((1.0, -2.0, 3.0), 0.1), small_camera)
    copies = 1 + PARALLEL_FROM // len(window.tau)  # enough events for the parallel build
    window = replace(
        window, bearings=np.tile(window.bearings, copies), tau=np.tile(window.tau, copies)
    )

    def run(threads: int) -> list[bytes]:
        contrast = CpuContrast(iwe_grid(small_camera), True)
        contrast.load(window)
        with numba_threads(threads):
            results = [contrast.evaluate(PARAMETERS[1], size) for size in (8.0, 2.0, 1.0)]
        arrays = [a for r in results for a in (r.gradient, r.hessian, r.scatter)]
        return [a.tobytes() for a in arrays] + [np.float64(r.value).tobytes() for r in results]

    first = run(1)
    assert run(2) == first
    assert run(2) == first
    assert run(1) == first


def test_images_of_different_windows_do_not_leak_into_each_other(
    simulated, small_camera: Camera, turning: Events
):
    contrast = CpuContrast(iwe_grid(small_camera), True)
    small, large = window_of(turning[:2000], small_camera), None
    contrast.load(small)
    before = contrast.evaluate(PARAMETERS[1], 1.0)
    large = window_of(simulated((1.0, -2.0, 3.0), 0.1)[:60_000], small_camera)
    contrast.load(large)
    contrast.evaluate(PARAMETERS[0], 1.0)
    contrast.load(small)
    after = contrast.evaluate(PARAMETERS[1], 1.0)
    assert after.value == before.value
    assert np.array_equal(after.gradient, before.gradient)


# ------------------------------------------------------------------------------------- image grid


def test_every_bearing_lies_on_the_grid_with_room_around(small_camera: Camera):
    grid = iwe_grid(small_camera)
    b = small_camera.bearings.reshape(-1, 3).astype(np.float64)
    uv = b[:, :2] / b[:, 2:] @ grid.matrix.T + grid.offset
    assert (uv > 0.05 * np.array([grid.width, grid.height])).all()
    assert (uv < 0.95 * np.array([grid.width, grid.height])).all()
    centre = grid.offset
    assert grid.radius_px == pytest.approx(np.linalg.norm(uv - centre, axis=1).max(), rel=1e-6)
    assert grid.bins(8.0).shape == (math.ceil(grid.height / 8), math.ceil(grid.width / 8))


def test_sensor_grid_is_the_sensor(small_camera: Camera):
    ideal = Camera(240, 180, small_camera.K)
    b = ideal.bearings.reshape(-1, 3).astype(np.float64)
    grid = sensor_grid(ideal)
    uv = b[:, :2] / b[:, 2:] @ grid.matrix.T + grid.offset
    expected = np.stack(np.meshgrid(np.arange(240), np.arange(180)), -1).reshape(-1, 2)
    assert np.abs(uv - expected).max() < 1e-3
    assert (grid.width, grid.height) == (240, 180)


def test_camera_that_looks_aside_is_refused():
    k = np.array([[100.0, 0, -5000], [0, 100.0, 90], [0, 0, 1]])
    with pytest.raises(CalibrationError, match="no pixel looks within 65 degrees"):
        RotationEstimator(Camera(240, 180, k))


# ------------------------------------------------------------------------------------------ solver


def quadratic(top: Float64, hessian: Float64):
    calls: list[Float64] = []

    def evaluate(p: Float64, bin_size: float) -> ContrastPass:
        calls.append(np.array(p))
        d = p - top
        return ContrastPass(float(d @ hessian @ d / 2), hessian @ d, hessian, np.eye(6))

    return evaluate, calls


def test_solver_finds_the_top_of_a_hill_in_bounded_steps():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((6, 6))
    top = rng.standard_normal(6) * 3
    evaluate, calls = quadratic(top, -(root @ root.T + np.eye(6)))
    found = maximise(evaluate, np.zeros(6), (4.0, 1.0), 2.0, 1e-6, 50)
    assert found.parameters == pytest.approx(top, abs=1e-6)
    assert found.passes == len(calls)
    assert found.last_step_px < 1e-6
    moves = np.linalg.norm(np.diff(calls, axis=0), axis=1) * 2.0
    assert moves.max() <= 1.5 * 4.0 + 1e-9


def test_solver_climbs_away_from_a_saddle_and_stands_still_on_flat_ground():
    top = np.ones(6)
    point = quadratic(top, np.diag([1.0, -1, -1, -1, -1, -1]))[0](np.zeros(6), 1.0)
    assert newton_step(point, 100.0) @ point.gradient > 0
    flat = ContrastPass(0.0, np.zeros(6), np.zeros((6, 6)), np.zeros((6, 6)))
    assert (newton_step(flat, 1.0) == 0).all()
    found = maximise(lambda p, b: flat, top, (2.0, 1.0), 1.0, 0.1, 5)
    assert (found.parameters == top).all()
    assert found.passes == 2


def test_solver_stops_at_its_limit_of_steps():
    slope = ContrastPass(0.0, np.ones(6), -1e-9 * np.eye(6), np.eye(6))
    found = maximise(lambda p, b: slope, np.zeros(6), (2.0, 1.0), 1.0, 0.1, 5)
    assert found.passes == 10
    assert found.last_step_px == pytest.approx(1.5)


# --------------------------------------------------------------------------------------- estimator


def track(
    events: Events, camera: Camera, window: int = WINDOW, **options
) -> list[EgomotionEstimate]:
    estimator = RotationEstimator(camera, **options)
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


@pytest.mark.parametrize("count", [1000, 5000, 20_000, 100_000])
def test_noise_alone_is_never_trusted(count: int, small_camera: Camera):
    for seed in range(4):
        estimate = RotationEstimator(small_camera).estimate(noise(small_camera, count, 0.03, seed))
        assert not estimate.status.ok, (seed, estimate)


def test_noise_after_tracking_is_not_trusted_and_the_track_comes_back(
    simulated, small_camera: Camera
):
    events = simulated((2.0, 2.0, -2.0), 0.15)
    estimator = RotationEstimator(small_camera)
    assert estimator.estimate(events[:WINDOW]).status.ok
    alone = noise(small_camera, 8000, 0.02, 1)
    alone = replace(alone, t=alone.t + events.t[WINDOW])
    assert not estimator.estimate(alone).status.ok
    back = estimator.estimate(events[2 * WINDOW : 3 * WINDOW])
    assert back.status.ok
    assert rms(errors_deg_s([back], (2.0, 2.0, -2.0))) < 1.0


def test_too_few_events_and_single_time_stamps(small_camera: Camera, turning: Events):
    estimator = RotationEstimator(small_camera, min_events=1000)
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
    estimate = RotationEstimator(small_camera).estimate(late)
    assert estimate.window_start_ns == late.t[0]
    assert estimate.window_end_ns == late.t[-1]
    assert estimate.stamp_ns == pytest.approx(1_700_000_000_000_000_000 + turning.t.mean(), abs=1)
    # The epoch must not cost digits.
    early = RotationEstimator(small_camera).estimate(turning)
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
    few = RotationEstimator(small_camera).estimate(events[:3000])
    many = RotationEstimator(small_camera).estimate(events[:30_000])
    assert np.trace(few.covariance) > 3 * np.trace(many.covariance)


def test_blind_camera_gives_no_trusted_estimate(small_camera: Camera):
    """All events on pixels without a bearing: finite answers, and the status says no."""
    k = np.array([[20.0, 0, 120], [0, 20.0, 90], [0, 0, 1]])
    lens = Camera(240, 180, k, "plumb_bob", np.array([-0.5, 0, 0, 0, 0]))
    assert np.isnan(lens.bearings[:40, :40]).all()
    events = noise(small_camera, 3000, 0.02, 0)
    corner = replace(events, x=events.x % 40, y=events.y % 40)
    estimate = RotationEstimator(lens).estimate(corner)
    assert not estimate.status.ok
    assert np.isfinite(estimate.angular_velocity).all()
    assert np.linalg.eigvalsh(estimate.covariance)[0] > 0


def test_warm_start_saves_passes(simulated, small_camera: Camera):
    events = simulated((3.0, 3.0, -3.0), 0.1)
    warm = track(events, small_camera)
    estimator = RotationEstimator(small_camera)
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
    estimator = RotationEstimator(small_camera)
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
        estimator = RotationEstimator(small_camera)
        first = estimator.estimate(events[-WINDOW:])
        assert first.status.ok
        shifted = replace(later, t=later.t - later.t[0] + events.t[-1] + gap_ns)
        estimates = [estimator.estimate(shifted[k : k + WINDOW]) for k in (0, WINDOW)]
        for e in estimates:
            if e.status.ok:
                assert rms(errors_deg_s([e], truth)) < 1.0
        assert estimates[-1].status.ok


@pytest.mark.parametrize("unbiased", [True, False], ids=["unbiased", "raw"])
def test_torch_path_gives_the_same_answers(unbiased: bool, simulated, small_camera: Camera):
    events = simulated((3.0, -1.0, 2.0), 0.1)[: 2 * WINDOW]
    ours = track(events, small_camera, unbiased=unbiased)
    theirs = track(events, small_camera, unbiased=unbiased, fused=False)
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


def test_unbiased_gradient_is_at_least_as_accurate_as_the_raw_one(simulated, small_camera: Camera):
    truth = (2.0, -2.0, 2.0)
    events = simulated(truth, 0.2)
    unbiased = errors_deg_s(track(events, small_camera, window=10_000), truth)
    raw = errors_deg_s(track(events, small_camera, window=10_000, unbiased=False), truth)
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
    estimate = RotationEstimator(small_camera).estimate(noisy)
    assert estimate.status.ok
    assert t.size <= estimate.hot_pixel_events < t.size + 100
    clean = RotationEstimator(small_camera).estimate(events)
    assert clean.hot_pixel_events == 0
    # As good as without them: within the estimate's own scatter.
    assert np.linalg.norm(estimate.angular_velocity - truth) < 0.1
    assert np.linalg.norm(estimate.angular_velocity - clean.angular_velocity) < 0.05


def test_simulated_recording_at_5_rad_s_is_within_1_deg_s():
    simulation = SimulationConfig(duration_s=0.8)  # 346x260, peaks of 5 rad/s
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
    estimator = RotationEstimator(small_camera)
    estimator.estimate(lent)
    image = estimator.compensated_image()
    lent.t[:], lent.x[:], lent.y[:] = 0, 0, 0
    again = estimator.compensated_image()
    assert image is not None
    assert again is not None
    assert np.array_equal(image, again)


def test_compensated_image_is_sharp_and_on_the_sensors_pixels(simulated, small_camera: Camera):
    events = simulated((3.0, -1.0, 2.0), 0.1)[:WINDOW]
    estimator = RotationEstimator(small_camera)
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
    estimate = RotationEstimator(small_camera).estimate(outside)
    assert not estimate.status.ok
    below = replace(turning.copy(), y=turning.y + np.uint16(60_000))
    assert not RotationEstimator(small_camera).estimate(below).status.ok


def test_device_that_is_not_there_is_refused_in_one_line(small_camera: Camera):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match="torch finds no CUDA device; expected 'cpu'") as caught:
        RotationEstimator(small_camera, device="cuda")
    assert "\n" not in str(caught.value)


def test_scene_of_shapes_is_tracked_too(small_camera: Camera):
    shapes = make_scene("shapes", pixel_rad=1 / (0.7 * 240), seed=2)
    motion = hand_motion(0.5, (3.0, 3.0, 3.0), seed=5)
    chunks = simulate_rotation(small_camera, motion, 0.5, scene=shapes, seed=2)
    events = Events.concatenate(list(chunks))
    events = events[int(np.searchsorted(events.t, 20_000_000)) :]
    estimates = [e for e in track(events, small_camera, window=10_000) if e.status.ok]
    assert len(estimates) > 5
    assert rms(errors_deg_s(estimates, motion)) < 1.0
