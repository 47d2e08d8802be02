"""Angular velocity of an event camera, window by window, by contrast maximisation."""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import ConfigError
from event_binning_grad.estimation.contrast import (
    Contrast,
    ContrastPass,
    Float64,
    TorchContrast,
    WindowEvents,
)
from event_binning_grad.estimation.contrast_cpu import CpuContrast, look_up
from event_binning_grad.estimation.iwe_grid import IweGrid, iwe_grid, sensor_grid
from event_binning_grad.estimation.solver import Solution, maximise
from event_binning_grad.events.types import Events
from event_binning_grad.geometry import Camera

# Bins in pixels of the IWE. Lost, the estimator starts where 8-pixel bins catch displacements of
# tens of pixels; tracking, the prediction is within a bin or two of the answer.
_COARSE_TO_FINE = (8.0, 4.0, 2.0, 1.0)
_TRACKING = (2.0, 1.0)
_TOLERANCE_PX = 0.05
_MAX_STEPS = 12

# A finest-level step as long as this at the end means that there was no maximum to settle on.
_UNSETTLED_PX = 0.5
# A window whose solution lies farther from the prediction is solved again from coarse bins.
_SURPRISE_PX = 8.0
# After a silence of this long (s) the last motion says nothing; extrapolated, it would mislead.
_MEMORY_S = 0.1
# Events scattered at random have a structure of 1 (see `_structure`); below this the compensated
# image holds nothing to estimate from.
_MIN_STRUCTURE = 1.15
_STRUCTURE_CELL = 16
# The solution must not be less sharp than no motion at all. A camera at rest gains nothing, and
# its answer is valid; a little is left for what the value's roughness does.
_MIN_GAIN = 0.98

# Standard deviation of the angular acceleration (rad/s^2) taken for granted. Windows of some
# milliseconds cannot tell it, and without a prior they would follow their noise; a hand that shakes
# the camera reaches 250, so windows that can tell it are left alone.
_ACCELERATION_STD = 200.0

# The sandwich covariance is too small by about this factor, and the motion's jerk, which the model
# does not have, adds an error of about jerk T^2 / 40 (rad/s). Measured on 5,000 simulated windows
# of hand-like motion with peaks of 2 and 5 rad/s: the normalised squared error is then 2.6 in the
# mean (3 is ideal), and above the 95 % bound for 5 %.
_COVARIANCE_SCALE = 1.5
_JERK_STD = 60.0
_JERK_SHARE = 1 / 40
# Standard deviation that no estimate is better than (rad/s): calibration and model are not exact.
_MIN_STD = 1e-3
# Curvature, as a share of the greatest, that the worst observed direction is at least given. Its
# variance is then huge but finite.
_MIN_CURVATURE = 1e-6


class Status(enum.Enum):
    """Whether an estimate can be trusted, and if not, why."""

    OK = "ok"
    TOO_FEW_EVENTS = "too_few_events"
    NO_STRUCTURE = "no_structure"
    NO_CONTRAST_GAIN = "no_contrast_gain"
    NOT_CONVERGED = "not_converged"
    UNCERTAIN = "uncertain"

    @property
    def ok(self) -> bool:
        return self is Status.OK


@dataclass(frozen=True)
class EgomotionEstimate:
    """The camera's rotation over one window of events.

    Attributes:
        stamp_ns: reference time, the mean time of the window's events; the values hold there, where
            the angular velocity and acceleration are least correlated.
        window_start_ns, window_end_ns: times of the first and the last event.
        events: number of events in the window.
        angular_velocity: [3] rad/s, camera frame (z forward, x right, y down). NaN when there was
            nothing to estimate from.
        angular_acceleration: [3] rad/s^2, camera frame.
        covariance: [3, 3] of angular_velocity, rad^2/s^2; positive definite.
        iterations: passes over the events that the solver took.
        contrast_gain: variance of the compensated image over that of the uncompensated one.
        status: why not to trust the estimate, or Status.OK.
        solve_time_s: time that the estimation took.
        hot_pixel_events: events of the window that were left out, because their pixels fire all
            the time.
    """

    stamp_ns: int
    window_start_ns: int
    window_end_ns: int
    events: int
    angular_velocity: Float64
    angular_acceleration: Float64
    covariance: Float64
    iterations: int
    contrast_gain: float
    status: Status
    solve_time_s: float
    hot_pixel_events: int = 0


class RotationEstimator:
    """Estimates the camera's rotation window by window, each started where the last one points.

    Args:
        camera: the calibration.
        unbiased: the unbiased gradient; False takes the raw gradient of the bilinear vote, with
            everything else the same, for comparison.
        device: "cpu", or a torch device such as "cuda".
        fused: the fused numba pass where there is one (the CPU); False takes the torch operator
            there too, which gives the same answer.
        min_events: windows with fewer events are not estimated.
        max_std_rad_s: estimates with a greater standard deviation about any axis are flagged.

    Raises:
        ConfigError: the device is not there.
        CalibrationError: the camera does not look along its z axis.
    """

    def __init__(
        self,
        camera: Camera,
        *,
        unbiased: bool = True,
        device: str = "cpu",
        fused: bool = True,
        min_events: int = 1000,
        max_std_rad_s: float = 0.2,
    ) -> None:
        self._camera = camera
        self._min_events = min_events
        self._max_std = max_std_rad_s
        self._grid = iwe_grid(camera)
        self._make_contrast = lambda grid: _contrast(grid, unbiased, device, fused)
        self._contrast = self._make_contrast(self._grid)
        self._picture: Contrast | None = None
        self._storage = np.empty(0, np.float32)
        self._counts = np.zeros((camera.height, camera.width), np.int32)
        self._hot_pixel_events = 0
        self._window: WindowEvents | None = None
        self._parameters = np.zeros(6)
        self._last: EgomotionEstimate | None = None

    def reset(self) -> None:
        """Forgets the track: the next window starts from rest, coarse to fine."""
        self._last = None

    def estimate(self, events: Events) -> EgomotionEstimate:
        """The rotation over a window of events.

        Args:
            events: the window, times not decreasing, the camera's geometry.
        """
        began = time.perf_counter()
        start_ns, end_ns = (int(events.t[0]), int(events.t[-1])) if len(events) else (0, 0)
        stamp_ns = start_ns + (int((events.t - start_ns).mean()) if len(events) else 0)
        if len(events) < self._min_events or end_ns <= start_ns:
            # Events of one time show no motion, however many they are.
            few = len(events) < self._min_events
            status = Status.TOO_FEW_EVENTS if few else Status.NO_STRUCTURE
            self._window = None
            nothing = np.full(3, np.nan)
            return EgomotionEstimate(
                stamp_ns, start_ns, end_ns, len(events), nothing, nothing, np.full((3, 3), np.nan),
                0, np.nan, status, time.perf_counter() - began,
            )  # fmt: skip
        window = self._load(events, stamp_ns, (end_ns - start_ns) * 1e-9)
        at_rest = float(self._contrast.iwe(np.zeros(6), _TRACKING[-1]).var())
        solution = self._solve(stamp_ns, window.span_s)
        compensated = self._contrast.iwe(solution.parameters, _TRACKING[-1])
        gain = float(compensated.var()) / max(at_rest, 1e-12)
        covariance = _covariance(solution.last, window.span_s)
        status = _judge(solution, gain, _structure(compensated), covariance, self._max_std)
        self._parameters = solution.parameters
        estimate = EgomotionEstimate(
            stamp_ns,
            start_ns,
            end_ns,
            len(events),
            solution.parameters[:3],
            solution.parameters[3:] * (4 / window.span_s),
            covariance,
            solution.passes,
            gain,
            status,
            time.perf_counter() - began,
            self._hot_pixel_events,
        )
        self._last = estimate if status.ok else None
        return estimate

    def compensated_image(self) -> npt.NDArray[np.float32] | None:
        """[height, width] events a pixel of the last window, warped to its reference time.

        On the camera's undistorted pixels (same size, same K). None when there was no estimate.
        """
        return self._event_image(self._parameters)

    def uncompensated_image(self) -> npt.NDArray[np.float32] | None:
        """[height, width] events a pixel of the last window as they came, undistorted; or None."""
        return self._event_image(np.zeros(6))

    def _event_image(self, parameters: Float64) -> npt.NDArray[np.float32] | None:
        if self._window is None:
            return None
        if self._picture is None:
            self._picture = self._make_contrast(sensor_grid(self._camera))
        self._picture.load(self._window)
        return self._picture.iwe(parameters, 1.0).copy()

    def _load(self, events: Events, stamp_ns: int, span_s: float) -> WindowEvents:
        """Looks up the bearings, into storage that is kept from window to window."""
        count = len(events)
        if len(self._storage) < 4 * count:
            self._storage = np.empty(4 * count, np.float32)
        # Contiguous whatever the count: compiled loops over strided rows would not vectorise.
        bearings = self._storage[: 3 * count].reshape(3, count)
        tau = self._storage[3 * count : 4 * count]
        self._hot_pixel_events = look_up(
            events.t, events.x, events.y, stamp_ns, self._camera.bearings, self._counts,
            bearings, tau,
        )  # fmt: skip
        self._window = WindowEvents(bearings, tau, span_s)
        self._contrast.load(self._window)
        return self._window

    def _solve(self, stamp_ns: int, span_s: float) -> Solution:
        """Tracks from the prediction; lost or surprised, climbs from coarse bins."""
        since_s = (stamp_ns - self._last.stamp_ns) * 1e-9 if self._last is not None else math.inf
        if self._last is None or since_s - span_s > _MEMORY_S:
            return self._climb(np.zeros(6), _COARSE_TO_FINE, span_s)
        alpha = self._last.angular_acceleration
        predicted = np.append(self._last.angular_velocity + alpha * since_s, alpha * (span_s / 4))
        solution = self._climb(predicted, _TRACKING, span_s)
        moved_px = float(np.linalg.norm(solution.parameters - predicted)) * self._edge_px(span_s)
        if moved_px < _SURPRISE_PX and solution.last_step_px < _UNSETTLED_PX:
            return solution
        starts = (np.zeros(6), predicted)
        others = [self._climb(start, _COARSE_TO_FINE, span_s) for start in starts]
        best = max([solution, *others], key=lambda found: found.last.value)
        passes = solution.passes + sum(found.passes for found in others)
        return Solution(best.parameters, best.last, best.last_step_px, passes)

    def _climb(self, start: Float64, bin_sizes: Sequence[float], span_s: float) -> Solution:
        prior_std = _ACCELERATION_STD * span_s / 4

        def evaluate(parameters: Float64, bin_size: float) -> ContrastPass:
            return _with_prior(self._contrast.evaluate(parameters, bin_size), parameters, prior_std)

        return maximise(
            evaluate,
            start,
            bin_sizes,
            self._edge_px(span_s),
            _TOLERANCE_PX,
            _MAX_STEPS,
        )

    def _edge_px(self, span_s: float) -> float:
        """Displacement (px a rad/s) of an event at the window's ends and the image's corner."""
        return self._grid.radius_px * span_s / 2


def _contrast(grid: IweGrid, unbiased: bool, device: str, fused: bool) -> Contrast:
    if fused and device == "cpu":
        return CpuContrast(grid, unbiased)
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"device {device!r}: torch finds no CUDA device; expected 'cpu', or 'cuda' on a "
            "machine with an NVIDIA GPU and a CUDA build of torch"
        )
    return TorchContrast(grid, unbiased, device)


def _with_prior(point: ContrastPass, parameters: Float64, std: float) -> ContrastPass:
    """The pass with a normal prior of mean zero on the last three parameters.

    The contrast is no log-likelihood. Were it one, its Hessian and its scatter matrix would agree
    in size, so their ratio is the unit in which the prior's information counts.
    """
    unit = float(np.trace(point.scatter[:3, :3])) / max(
        float(np.abs(np.diag(point.hessian)[:3]).sum()), 1e-30
    )
    information = np.append(np.zeros(3), np.full(3, unit / std**2))
    return replace(
        point,
        gradient=point.gradient - information * parameters,
        hessian=point.hessian - np.diag(information),
    )


def _judge(
    solution: Solution, gain: float, structure: float, covariance: Float64, max_std: float
) -> Status:
    if structure < _MIN_STRUCTURE:
        return Status.NO_STRUCTURE
    if solution.last_step_px > _UNSETTLED_PX:
        return Status.NOT_CONVERGED
    if gain < _MIN_GAIN:
        return Status.NO_CONTRAST_GAIN
    if np.linalg.eigvalsh(covariance)[-1] > max_std**2:
        return Status.UNCERTAIN
    return Status.OK


def _structure(iwe: npt.NDArray[np.float32]) -> float:
    """How much more an image varies within cells of 16 bins than randomly scattered events would.

    A bilinear vote adds sum_j k_j^2 to the sum of squares, (2/3)^2 in the mean over positions in
    the bin. What the density of the events varies from cell to cell does not count.
    """
    cell = _STRUCTURE_CELL
    rows, cols = iwe.shape[0] // cell, iwe.shape[1] // cell
    cells = iwe[: rows * cell, : cols * cell].reshape(rows, cell, cols, cell)
    means = cells.mean(axis=(1, 3), dtype=np.float64)
    squares = float((cells**2).sum(dtype=np.float64))
    events = float(means.sum()) * cell**2
    return (squares - cell**2 * float((means**2).sum())) / max(events * (4 / 9), 1e-12)


def _covariance(point: ContrastPass, span_s: float) -> Float64:
    """[3, 3] of omega: the sandwich A^-1 B A^-1 of an M-estimator, and what the model leaves out.

    A is the fixed-cotangent Hessian, B the sum of the outer products of the events' gradients.
    NaN where there is no Hessian.
    """
    if not np.isfinite(point.hessian).all():
        return np.full((3, 3), np.nan)
    curvatures, directions = np.linalg.eigh(point.hessian)
    strength = np.abs(curvatures)
    strength = np.maximum(strength, _MIN_CURVATURE * strength.max() + 1e-30)
    inverse = directions / strength @ directions.T
    covariance = (inverse @ point.scatter @ inverse)[:3, :3] * _COVARIANCE_SCALE
    left_out = _MIN_STD**2 + (_JERK_STD * span_s**2 * _JERK_SHARE) ** 2
    return (covariance + covariance.T) / 2 + np.eye(3) * left_out
