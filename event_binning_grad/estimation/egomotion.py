"""Egomotion of an event camera, window by window, by contrast maximisation."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from event_binning_grad.binning.backend import check_device, has_triton
from event_binning_grad.errors import ConfigError
from event_binning_grad.estimation.contrast import (
    Contrast,
    Float32,
    Float64,
    TorchContrast,
    WindowEvents,
)
from event_binning_grad.estimation.contrast_cpu import CpuContrast, is_fused
from event_binning_grad.estimation.depths import Depth, InverseDepths
from event_binning_grad.estimation.estimate import EgomotionConfig, EgomotionEstimate
from event_binning_grad.estimation.imu import GyroFit
from event_binning_grad.estimation.iwe_grid import IweGrid, iwe_grid, sensor_grid
from event_binning_grad.estimation.look_up import look_up, normalised_table
from event_binning_grad.estimation.motion import (
    ALPHA,
    OMEGA,
    PARAMETERS,
    SLOPE,
    MotionModel,
    V,
)
from event_binning_grad.estimation.problem import (
    COARSE,
    FINE,
    TOLERANCE_PX,
    Problem,
)
from event_binning_grad.estimation.solver import Level, Solution
from event_binning_grad.estimation.trust import Status, disagreement
from event_binning_grad.events.types import Events
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.depth import DepthImage, Plane

# A finest-level step as long as this at the end means that there was no maximum to settle on.
_UNSETTLED_PX = 0.5
# A window whose solution lies farther from the prediction is solved again from several starts.
_SURPRISE_PX = 8.0
# Events scattered at random have a structure of 1 (see `structure`), and by the border of the field
# of view more, the more of them there are; an image of less than this and so much more for every
# event a bin holds nothing to estimate from.
_MIN_STRUCTURE, _STRUCTURE_BY_DENSITY = 1.15, 0.25
# The solution must not be clearly less sharp than no motion at all. A camera at rest gains nothing,
# and its answer is valid; unmoved events lie on their pixels, which makes that image a little
# sharper than it deserves.
_MIN_GAIN = 0.9
# Another solution must be this much sharper to be preferred to one from a nearer start.
_CLEARLY = 1.15
# A track's first steps are by this share of the events: they say where to go almost as well.
_FIRST_SHARE = 1 / 4
# A plane's slope (tangents of its tilt) of a greater standard deviation is not told: while the
# camera hardly translates, it moves nothing.
_MAX_SLOPE_STD = 0.3
# A search begins with so many events.
_FIRST_EVENTS = 2500
# After a silence of this long (s) the last motion says nothing; extrapolated, it would mislead.
_MEMORY_S = 0.1


class EgomotionEstimator:
    """Estimates the camera's motion window by window, each started where the last one points.

    Args:
        camera: the calibration.
        config: what to do.

    Raises:
        ConfigError: the device is not there, or nothing that is configured fits.
        CalibrationError: the camera does not look along its z axis.
    """

    def __init__(self, camera: Camera, config: EgomotionConfig | None = None) -> None:
        self._camera = camera
        self.config = config or EgomotionConfig()
        self._active = self.config.model.active(self.config.angular_acceleration)
        self._grid = iwe_grid(camera)
        self._contrast = _contrast(self._grid, self.config)
        self._picture: Contrast | None = None
        self._inverse_depths = InverseDepths(camera)
        self._table = normalised_table(camera)
        self._storage = np.empty((4, 0), np.float32)
        self._counts = np.zeros((camera.height, camera.width), np.int32)
        self._hot_pixel_events = 0
        self._depthless_events = 0
        self._window: WindowEvents | None = None
        self._parameters = np.zeros(PARAMETERS)
        self._last: EgomotionEstimate | None = None

    def reset(self) -> None:
        """Forgets the track: the next window starts from rest, coarse to fine."""
        self._last = None

    def estimate(
        self, events: Events, depth: Depth | None = None, gyro: GyroFit | None = None
    ) -> EgomotionEstimate:
        """The motion over a window of events.

        Args:
            events: the window, times not decreasing, the camera's geometry.
            depth: of the scene; models that need it and do not get it estimate nothing. For the
                planar model the distance along the optical axis, in m, if known.
            gyro: the rotation to start from, and a prior if so configured. For the translation
                model the rotation itself (none: the camera does not turn).

        Raises:
            ConfigError: a distance that is not positive and finite.
        """
        began = time.perf_counter()
        depth = _checked(depth)
        start_ns, end_ns = (int(events.t[0]), int(events.t[-1])) if len(events) else (0, 0)
        stamp_ns = events.mean_time_ns
        times_ns, span_s = (stamp_ns, start_ns, end_ns), (end_ns - start_ns) * 1e-9
        status = self._refusal(events, depth, gyro, end_ns - start_ns)
        if status is not None:
            return self._refused(events, times_ns, status, began)
        predicted, tracking, leap = self._predict(stamp_ns, span_s, gyro)
        window = self._load(events, stamp_ns, depth, predicted)
        if len(window) - self._depthless_events < min(self.config.min_events, len(window)):
            return self._refused(events, times_ns, Status.NO_DEPTH, began)
        until_s = began + self.config.deadline_s if self.config.deadline_s else math.inf
        problem = Problem(self._contrast, self._grid, self.config, window, predicted, gyro, until_s)
        solution, searched = self._solve(problem, predicted, tracking, leap)
        gain, structure = self._contrast.gain_and_structure()
        self._parameters = problem.motion(solution.parameters)
        covariance = problem.covariance(solution)
        # The planar model has v over the distance, which is 1 unless it is known.
        planar = self.config.model is MotionModel.PLANAR
        distance_m = depth if planar and isinstance(depth, float) else 1.0
        status = self._judge(solution, gain, structure, covariance, distance_m)
        estimate = self._report(
            events, times_ns, problem, solution, covariance, gain, status,
            None if planar and depth is None else distance_m, searched,
            time.perf_counter() - began,
        )  # fmt: skip
        # An uncertain estimate is no reason to search anew.
        self._last = estimate if status in (Status.OK, Status.UNCERTAIN) else None
        return estimate

    def compensated_image(self) -> Float32 | None:
        """[height, width] events a pixel of the last window, warped to its reference time.

        On the camera's undistorted pixels (same size, same K). None when there was no estimate.
        """
        return self._event_image(self._parameters)

    def uncompensated_image(self) -> Float32 | None:
        """[height, width] events a pixel of the last window as they came, undistorted; or None."""
        return self._event_image(np.zeros(PARAMETERS))

    def _event_image(self, parameters: Float64) -> Float32 | None:
        if self._window is None:
            return None
        if self._picture is None:
            self._picture = _contrast(sensor_grid(self._camera), self.config)
        self._picture.load(self._window, self._active)
        return self._picture.iwe(parameters, 1.0).copy()

    def _refusal(
        self, events: Events, depth: Depth | None, gyro: GyroFit | None, span_ns: int
    ) -> Status | None:
        if len(events) < self.config.min_events:
            return Status.TOO_FEW_EVENTS
        if span_ns <= 0:  # events of one time show no motion, however many they are
            return Status.NO_STRUCTURE
        if self.config.model.needs_depth and depth is None:
            return Status.NO_DEPTH
        if self.config.gyro_needed and gyro is None:
            return Status.NO_ROTATION
        return None

    def _refused(
        self, events: Events, times_ns: tuple[int, int, int], status: Status, began: float
    ) -> EgomotionEstimate:
        """The estimate of a window that nothing is estimated from."""
        self._window = None
        nothing, nowhere = np.full(3, np.nan), np.full((3, 3), np.nan)
        return EgomotionEstimate(
            *times_ns, len(events), nothing, nothing, nowhere, 0, np.nan, status,
            time.perf_counter() - began,
            depthless_events=len(events) if status is Status.NO_DEPTH else 0,
        )  # fmt: skip

    def _predict(
        self, stamp_ns: int, span_s: float, gyro: GyroFit | None
    ) -> tuple[Float64, bool, bool]:
        """Where the last motion leads, whether there is one to go by, and whether it is far."""
        motion, tracking, leap = np.zeros(PARAMETERS), False, True
        if self._last is not None:
            since_s = (stamp_ns - self._last.stamp_ns) * 1e-9
            if since_s - span_s <= _MEMORY_S:
                motion, tracking = self._parameters.copy(), True
                leap = since_s > span_s / 2
                omega = motion[OMEGA] + motion[ALPHA] * (since_s / 2)
                motion[OMEGA] += motion[ALPHA] * since_s
                # The same velocity, in the frame of a camera that has turned.
                motion[V] -= np.cross(omega, motion[V]) * since_s
        if gyro is not None:
            motion[OMEGA], motion[ALPHA] = gyro.angular_velocity, gyro.angular_acceleration
        elif not self.config.model.rotates:
            motion[OMEGA] = motion[ALPHA] = 0
        if not self.config.angular_acceleration and self.config.model.rotates:
            motion[ALPHA] = 0
        return motion, tracking, leap

    def _load(
        self, events: Events, stamp_ns: int, depth: Depth | None, predicted: Float64
    ) -> WindowEvents:
        """Looks up the events' rays, into storage that is kept from window to window."""
        total = len(events)
        count = min(total, self.config.max_events)
        if self._storage.shape[1] < count:
            self._storage = np.empty((4, count), np.float32)
        # Contiguous whatever the count: compiled loops over strided rows would not vectorise.
        columns = self._storage.reshape(-1)[: 4 * count].reshape(4, count)
        hot_events = look_up(
            events.t, events.x, events.y, stamp_ns, self._table, self._counts, columns
        )
        self._hot_pixel_events = hot_events * total // count
        x, y, tau, inverse_depth = columns
        span_s = float(events.t[-1] - events.t[0]) * 1e-9
        self._window = WindowEvents(x, y, tau, inverse_depth, span_s)
        if self.config.model.needs_depth:
            assert depth is not None  # else refused
            chosen = np.arange(count) * total // count
            pixels = (events.x[chosen], events.y[chosen])
            self._inverse_depths.fill(
                inverse_depth, depth, self._window, pixels, stamp_ns, predicted
            )
            self._depthless_events = int(np.count_nonzero(np.isnan(inverse_depth)))
        else:
            inverse_depth[:] = 1.0
        self._contrast.load(self._window, self._active)
        return self._window

    def _solve(
        self, problem: Problem, predicted: Float64, tracking: bool, leap: bool
    ) -> tuple[Solution, bool]:
        """Tracks from the prediction; lost or surprised, searches from several starts."""
        found: list[Solution] = []
        if tracking:
            start = problem.scaled(predicted)
            finest = problem.finest(predicted)
            first = Level(FINE if leap else finest, _FIRST_SHARE)
            tracked = problem.climb(start, (first, Level(finest)))
            moved_px = float(np.linalg.norm(tracked.parameters - start))
            if (moved_px < _SURPRISE_PX and tracked.last_step_px < _UNSETTLED_PX) or tracked.late:
                return tracked, False
            found.append(tracked)
        rest = np.zeros(PARAMETERS)
        found.append(self._from_far(problem, rest, len(problem.window)))
        starts = [rest, predicted] if np.any(predicted) else [rest]
        found += [self._from_far(problem, start, _FIRST_EVENTS) for start in starts]
        problem.load()
        best = found[0]
        sharpness = problem.sharpness(best)
        for other in found[1:]:
            if (sharp := problem.sharpness(other)) > _CLEARLY * sharpness:
                best, sharpness = other, sharp
        # Once more, so that the contrast's last image is the solution's.
        finest = problem.finest(problem.motion(best.parameters))
        last = problem.climb(best.parameters, (Level(finest),))
        found.append(last)
        return replace(
            last,
            evaluations=sum(one.evaluations for one in found),
            events=sum(one.events for one in found),
        ), True

    def _from_far(self, problem: Problem, start: Float64, count: int) -> Solution:
        """Climbs coarse to fine, from `count` events about the reference time, where even a fast
        motion has moved little, to more and more of the window."""
        fine = Level(FINE, 1 / 2)
        levels = (*COARSE, fine)
        motion, evaluations, events = start, 0, 0
        while True:
            part = problem.part(count)
            part.load()
            for chosen in (levels, None):
                chosen = chosen or (Level(part.finest(motion)),)
                solution = part.climb(part.scaled(motion), chosen)
                motion = part.motion(solution.parameters)
                evaluations, events = evaluations + solution.evaluations, events + solution.events
            if count >= len(problem.window) or solution.late:
                break
            count, levels = 3 * count, (fine,)
        return replace(
            solution, parameters=problem.scaled(motion), evaluations=evaluations, events=events
        )

    def _judge(
        self,
        solution: Solution,
        gain: float,
        structure: float,
        covariance: Float64,
        distance_m: float,
    ) -> Status:
        bins = math.prod(self._grid.bins(solution.level.bin_size).shape)
        density = solution.last.contrast.events / bins
        if structure < _MIN_STRUCTURE + _STRUCTURE_BY_DENSITY * density:
            return Status.NO_STRUCTURE
        if solution.late and (solution.last_step_px > TOLERANCE_PX or solution.level.share < 1):
            return Status.DEADLINE
        if solution.last_step_px > _UNSETTLED_PX:
            return Status.NOT_CONVERGED
        if gain < _MIN_GAIN:
            return Status.NO_CONTRAST_GAIN
        if self._std(covariance, OMEGA) > self.config.max_std_rad_s:
            return Status.UNCERTAIN
        if self._std(covariance, V) * distance_m > self.config.max_std_m_s:
            return Status.UNCERTAIN
        return Status.OK

    def _std(self, covariance: Float64, part: slice) -> float:
        """About or along the worst axis; 0 if it is not estimated."""
        if part.start not in self._active:
            return 0.0
        block = covariance[part, part]
        if not np.isfinite(block).all():
            return np.inf
        return math.sqrt(max(float(np.linalg.eigvalsh(block)[-1]), 0.0))

    def _report(
        self,
        events: Events,
        times_ns: tuple[int, int, int],
        problem: Problem,
        solution: Solution,
        covariance: Float64,
        gain: float,
        status: Status,
        distance_m: float | None,
        searched: bool,
        solve_time_s: float,
    ) -> EgomotionEstimate:
        motion, window = self._parameters, problem.window
        nothing = np.full(3, np.nan)
        velocity = motion[V].copy() if self.config.model.translates else nothing
        planar = self.config.model is MotionModel.PLANAR
        normal = np.append(motion[SLOPE], 1.0) / math.hypot(*motion[SLOPE], 1.0)
        tilted = planar and self._std(covariance, SLOPE) < _MAX_SLOPE_STD
        scale = math.nan if distance_m is None else distance_m
        return EgomotionEstimate(
            *times_ns,
            len(events),
            motion[OMEGA].copy(),
            motion[ALPHA].copy(),
            covariance[OMEGA, OMEGA],
            solution.evaluations,
            gain,
            status,
            solve_time_s,
            self._hot_pixel_events,
            len(window),
            solution.events / len(window),
            velocity * scale,
            covariance[V, V] * scale**2,
            covariance[V, OMEGA] * scale,
            velocity if planar else nothing,
            normal if tilted else nothing,
            problem.speed_px_s(motion),
            disagreement(solution.last.contrast),
            searched,
            self._depthless_events * len(events) // len(window),
        )


def _checked(depth: Depth | None) -> Depth | None:
    if depth is None or isinstance(depth, (Plane, DepthImage)):
        return depth
    if not 0 < depth < math.inf:
        raise ConfigError(f"depth is {depth}: expected a distance in m, above 0")
    return float(depth)


def _contrast(grid: IweGrid, config: EgomotionConfig) -> Contrast:
    if config.fused and config.device == "cpu" and is_fused(config.contrast):
        return CpuContrast(grid, config.contrast)
    check_device(config.device)
    is_cuda = config.device.startswith("cuda") and has_triton()
    if config.fused and is_cuda and is_fused(config.contrast):
        from event_binning_grad.estimation.contrast_cuda import CudaContrast

        return CudaContrast(grid, config.contrast, config.device)
    return TorchContrast(grid, config.contrast, config.device)
