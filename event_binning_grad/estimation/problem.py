"""One window's estimation problem: its contrast, what is unknown, and what is known before."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from event_binning_grad.estimation.contrast import Contrast, Float64, WindowEvents
from event_binning_grad.estimation.estimate import EgomotionConfig
from event_binning_grad.estimation.imu import GyroFit
from event_binning_grad.estimation.iwe_grid import IweGrid
from event_binning_grad.estimation.motion import (
    ALPHA,
    OMEGA,
    PARAMETERS,
    SLOPE,
    MotionModel,
    V,
)
from event_binning_grad.estimation.solver import Level, Scaling, Solution
from event_binning_grad.estimation.trust import MIN_STD, covariance_of, lattice_std_px

# Bins in pixels of the IWE. Lost, the estimator starts where 8-pixel bins catch displacements of
# tens of pixels; tracking, the prediction is within a bin or two of the answer.
COARSE = (Level(8.0, 1 / 8), Level(4.0, 1 / 4))
FINE = 2.0
FINEST = 1.0
# Windows that move by fewer pixels than the first number have the second as their finest bins.
# Pixels sample what they see, a pixel apart; over motions of a pixel finer bins show that lattice
# rather than the scene, and draw the estimate toward motions that suit it.
_FINEST_BY_MOTION = ((0.6, 2.0), (1.5, 1.5))
_TYPICAL = 0.6  # displacement of most events, as a share of the greatest
TOLERANCE_PX = 0.05
_MAX_STEPS = 12

# Standard deviations of what is taken for granted. The angular acceleration (rad/s^2): windows of
# some milliseconds cannot tell it, and without a prior they would follow their noise; a hand that
# shakes the camera reaches 250, so windows that can tell it are left alone. The linear velocity
# (m/s, or 1/s times the distance) and the slope of a plane: only so that what the events do not
# tell stays finite.
_ACCELERATION_STD = 200.0
_VELOCITY_STD = 5.0
_SLOPE_STD = 0.5

# What a linear velocity of the same displacement is taken to be at least, for the scale of the
# slope, which moves nothing while the camera does not translate (1/s).
_MIN_TRANSLATION = 0.2


class Problem:
    """One window's contrast as the solver sees it: active parameters, in pixels, with a prior."""

    def __init__(
        self,
        contrast: Contrast,
        grid: IweGrid,
        config: EgomotionConfig,
        window: WindowEvents,
        predicted: Float64,
        gyro: GyroFit | None,
        until_s: float,
    ) -> None:
        self.window = window
        self._contrast, self._grid, self._config = contrast, grid, config
        self._predicted, self._gyro, self._until_s = predicted, gyro, until_s
        self._active = active = config.model.active(config.angular_acceleration)
        self._typical_inverse_depth = typical_inverse_depth(window, config.model)
        scales = pixels_per_unit(window, grid, self._typical_inverse_depth, predicted)[active]
        mean, std = np.zeros(PARAMETERS), np.full(PARAMETERS, np.inf)
        std[ALPHA], std[V], std[SLOPE] = _ACCELERATION_STD, _VELOCITY_STD, _SLOPE_STD
        if gyro is not None and config.gyro_prior:
            mean[OMEGA], std[OMEGA] = gyro.angular_velocity, gyro.std_rad_s
        information = (std[active] * scales) ** -2
        self._scaling = Scaling(active, scales, predicted, mean[active] * scales, information)

    def part(self, count: int) -> Problem:
        """The same about `count` events around the reference time."""
        if count >= len(self.window):
            return self
        middle = int(np.searchsorted(self.window.tau, 0.0))
        first = min(max(0, middle - count // 2), len(self.window) - count)
        return Problem(
            self._contrast, self._grid, self._config, self.window.part(first, first + count),
            self._predicted, self._gyro, self._until_s,
        )  # fmt: skip

    def finest(self, motion: Float64) -> float:
        """The finest bins, in pixels, that a window of this motion supports."""
        moved_px = self._moved_px(self.scaled(motion))
        for at_least_px, bin_size in _FINEST_BY_MOTION:
            if moved_px < at_least_px:
                return bin_size
        return FINEST

    def _moved_px(self, scaled: Float64) -> float:
        """How far most events move over the window, in pixels."""
        return 2 * _TYPICAL * float(np.linalg.norm(scaled))

    def speed_px_s(self, motion: Float64) -> float:
        """Displacement a second of the events that a motion moves farthest, px/s."""
        speed = self._grid.radius_px * float(np.linalg.norm(motion[OMEGA]))
        if self._config.model.translates:
            pixels_a_metre = self._grid.focal_px * self._typical_inverse_depth
            speed += pixels_a_metre * float(np.linalg.norm(motion[V]))
        return speed

    def sharpness(self, solution: Solution) -> float:
        """The variance of the image by which solutions are compared, whatever their bins."""
        return float(self._contrast.iwe(self.motion(solution.parameters), FINE).var())

    def load(self) -> None:
        """Makes this the window that the contrast is about."""
        self._contrast.load(self.window, self._active)

    def scaled(self, motion: Float64) -> Float64:
        """[P] pixels of the active ones of motion parameters [11]."""
        return self._scaling.scaled(motion)

    def motion(self, scaled: Float64) -> Float64:
        """[11] motion parameters, those that are not active as predicted."""
        return self._scaling.motion(scaled)

    def climb(self, start: Float64, levels: Sequence[Level]) -> Solution:
        """Climbs from [P] pixels through levels of ever smaller bins."""
        return self._contrast.solve(
            start, self._scaling, levels, TOLERANCE_PX, _MAX_STEPS,
            lambda: time.perf_counter() > self._until_s,
        )  # fmt: skip

    def covariance(self, solution: Solution) -> Float64:
        """[11, 11] of the motion parameters; NaN for those that are not active."""
        scale = 1 / self._scaling.scales
        full = np.full((PARAMETERS, PARAMETERS), np.nan)
        lattice = lattice_std_px(self._moved_px(solution.parameters)) ** 2
        inner = covariance_of(solution.last) + lattice * np.eye(len(scale))
        inner = inner * np.outer(scale, scale) + MIN_STD**2 * np.eye(len(scale))
        full[np.ix_(self._active, self._active)] = inner
        if self._gyro is not None and not self._config.model.rotates:
            # What the gyroscope errs by, v makes good: at the optical axis, at the scene's depth.
            depth = 1 / self._typical_inverse_depth
            by_omega = np.array([[0.0, -depth, 0.0], [depth, 0.0, 0.0], [0.0, 0.0, 0.0]])
            full[OMEGA, OMEGA] = self._gyro.covariance
            full[V, OMEGA] = by_omega @ self._gyro.covariance
            full[OMEGA, V] = full[V, OMEGA].T
            full[V, V] += by_omega @ self._gyro.covariance @ by_omega.T
        return full


def pixels_per_unit(
    window: WindowEvents, grid: IweGrid, inverse_depth: float, predicted: Float64
) -> Float64:
    """[11] displacement in pixels, at the window's ends, for a unit of each parameter."""
    half_s, radius = window.span_s / 2, grid.radius_px
    translation = grid.focal_px * half_s * inverse_depth
    scales = np.empty(PARAMETERS)
    scales[OMEGA], scales[ALPHA] = radius * half_s, radius * half_s**2 / 2
    scales[V] = translation
    speed = max(float(np.linalg.norm(predicted[V])), _MIN_TRANSLATION)
    scales[SLOPE] = translation * speed * radius / grid.focal_px
    return scales


def typical_inverse_depth(window: WindowEvents, model: MotionModel) -> float:
    """Median over the events, 1/m; 1 where depth is not known."""
    known = window.inverse_depth[window.inverse_depth > 0] if model.needs_depth else ()
    return max(float(np.median(known)), 1e-3) if len(known) else 1.0
