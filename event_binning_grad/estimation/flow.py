"""Dense optical flow by maximising the contrast of the image of warped events.

Flow is a grid of nodes, coarse to fine. All nodes take Newton steps together, on the unbiased
gradient and the fixed-cotangent Hessian of their own events, held together by a smoothness of
second order that lets go at motion edges. Every window starts at the last one's flow, carried along
itself; a few passes at the two finest grids do then.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from event_binning_grad.binning.backend import check_device, has_triton
from event_binning_grad.errors import CalibrationError, ConfigError
from event_binning_grad.estimation.flow_contrast import (
    REFERENCES,
    FlowContrast,
    FlowPass,
    TorchFlowContrast,
)
from event_binning_grad.estimation.flow_contrast_cpu import CpuFlowContrast
from event_binning_grad.estimation.flow_estimate import FlowConfig, FlowEstimate, FlowStatus
from event_binning_grad.estimation.flow_grid import (
    NodeGrid,
    carried,
    grid_levels,
    interpolate,
    newton_step,
    resample,
    sampled,
    smooth_model,
    steepened,
)
from event_binning_grad.estimation.flow_search import searched
from event_binning_grad.estimation.flow_trust import fields_of, node_trust
from event_binning_grad.estimation.iwe_grid import MAX_PIXELS, SCALE, TURN_RAD, IweGrid
from event_binning_grad.estimation.look_up import look_up
from event_binning_grad.estimation.trust import structure
from event_binning_grad.events.types import Events
from event_binning_grad.geometry import Camera

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# Room around the image for events that the flow moves out of it, px.
_MARGIN_PX = 16.0
# Undistorted pixels so far beyond the sensor's are left out, as a share of its size.
_BEYOND = 0.15
# After a silence of this long (s) the last flow says nothing.
_MEMORY_S = 0.1

# Bins in pixels of the image, from the finest grid to coarser ones; the coarsest stands for all
# beyond.
_BINS = (1.0, 2.0, 4.0, 8.0)
# Windows that move by fewer pixels have these bins at the finest level. Pixels sample what they
# see, a pixel apart; over short motions finer bins show that lattice rather than the scene.
_SLOW_PX, _SLOW_BIN = 1.5, 1.5
# A node's step at most, in bins: it moves the events at the window's ends by half of it.
_MAX_STEP_BINS = 3.0
# Holds of first differences, and of the model of the whole field (see newton_step); first
# differences so that where nothing is seen the flow does not grow without bound.
_FIRST, _MODEL = 0.1, 0.3
# The same of the coarser grids, with that of second differences, which let go nowhere.
_COARSE, _COARSE_EDGE_PX = (0.01, 10.0, 0.0), 100.0
# Events scattered at random have a structure of 1 (see trust.structure), and a little more after
# they followed a flow that suits them.
_MIN_STRUCTURE = 1.2
# The flow must make the image so much sharper than no flow does: a field that follows the noise of
# a scene at rest gains up to 1 %. Rest, a flow of less than so many px, cannot; but that is hardly
# less sharp.
_MIN_GAIN, _REST_PX, _MIN_REST_GAIN = 1.02, 1.0, 0.95
# A tracked field whose gain falls below this share of the last one's is solved anew.
_LOST = 0.85
# Levels that a window with a flow to begin with goes through, and one that is given its flow.
_TRACKED, _GIVEN = 2, 1


class FlowEstimator:
    """Estimates dense flow window by window, each started where the last one leads.

    Args:
        size: width and height of the sensor in pixels.
        config: what to do.
        camera: its calibration; the flow is then on its undistorted pixels (same size, same K, no
            distortion), else on raw pixels.

    Raises:
        ConfigError: the device is not there, or the camera is of another size.
        CalibrationError: the camera's pixels have no places on an image.
    """

    def __init__(
        self, size: tuple[int, int], config: FlowConfig | None = None, camera: Camera | None = None
    ) -> None:
        self.config = config or FlowConfig()
        self._size = (int(size[0]), int(size[1]))
        self._table = _points(self._size, camera)
        seen = self._table[np.isfinite(self._table).all(axis=2)].astype(np.float64)
        low, high = (seen.min(axis=0), seen.max(axis=0)) if len(seen) else (np.zeros(2),) * 2
        if not (high - low >= 1).all():
            raise CalibrationError(
                "calibration: hardly a pixel has a place on the undistorted image; expected a "
                "camera that looks along its z axis: check K and the distortion"
            )
        self._levels = grid_levels(low, high, self.config.node_spacing_px, self.config.max_nodes)
        self._grid = flow_iwe_grid(low, high)
        self._contrast = _contrast(self._grid, self.config)
        self._counts = np.zeros((self._size[1], self._size[0]), np.int32)
        self._columns = np.empty((3, 0), np.float32)
        self._displacement: Float32 | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets the track: the next window starts from rest, coarse to fine."""
        self._last: tuple[int, Float32, float] | None = None

    def estimate(
        self, events: Events, start: npt.NDArray[np.floating] | None = None, stride: int = 1
    ) -> FlowEstimate:
        """The flow of a window of events, at their mean time.

        Args:
            events: the window, times not decreasing, the sensor's size.
            start: [H, W, 2] px/s, the flow to begin with at that time, such as egomotion and depth
                imply; NaN where unknown. Default: the last window's, carried along itself.
            stride: pixels from one sample of the result's fields to the next.
        """
        began = time.perf_counter()
        start_ns, end_ns = (int(events.t[0]), int(events.t[-1])) if len(events) else (0, 0)
        times_ns = (events.mean_time_ns, start_ns, end_ns)
        status = self._refusal(events, end_ns - start_ns)
        if status is not None:
            self._displacement = self._last = None
            return self._nothing(times_ns, events, status, stride, time.perf_counter() - began)
        span_s = (end_ns - start_ns) * 1e-9
        until_s = began + self.config.deadline_s if self.config.deadline_s else math.inf
        hot_events = self._load(events, times_ns[0], span_s)
        used = int(np.isfinite(self._columns[0]).sum())
        if used < min(self.config.min_events, self.config.max_events):
            self._displacement = self._last = None
            status = FlowStatus.TOO_FEW_EVENTS
            return self._nothing(times_ns, events, status, stride, time.perf_counter() - began)
        begin, levels = self._begin(times_ns[0], span_s, start)
        finest = self._levels[-1]
        solution = self._solve(begin, levels, until_s)
        still = np.zeros_like(solution.displacement)
        before = max(self._contrast.squares(finest, still, (0.0,))[0], 1e-12)
        sharp, structured = self._sharpness(solution.displacement)
        lost = self._last is not None and sharp < _LOST * self._last[2] * before
        if begin is not None and lost and time.perf_counter() < until_s:
            again = self._solve(None, 0, until_s)
            passes, taken = solution.passes + again.passes, solution.events + again.events
            other, other_structure = self._sharpness(again.displacement)
            if not again.late and other > sharp:
                solution, sharp, structured = again, other, other_structure
            solution = replace(solution, passes=passes, events=taken)
        gain = sharp / before
        flow = solution.displacement
        self._displacement = flow
        late = solution.late or time.perf_counter() > until_s
        moved_px = self._moved_px(flow)
        status = _judge(structured, late, gain, moved_px)
        velocity = np.divide(flow, span_s, dtype=np.float32)
        # What is late is not wrong.
        going = status.ok or status is FlowStatus.DEADLINE
        self._last = (times_ns[0], velocity, gain) if going else None
        off_model = flow - smooth_model(finest, flow, solution.last.hessian)
        trust = node_trust(solution.last, solution.bin_size / self._grid.focal_px, off_model)
        field, confidence, normal = fields_of(finest, flow, trust, self._size, stride)
        field /= np.float32(span_s)
        return FlowEstimate(
            *times_ns, len(events), used, field, confidence, normal, gain, solution.passes,
            solution.events / used, status, time.perf_counter() - began, stride,
            moved_px / span_s, hot_events,
        )  # fmt: skip

    def compensated_image(self) -> Float32 | None:
        """[height, width] events a pixel of the last window, warped to its reference time, on the
        pixels of the flow. None when there was no estimate."""
        return None if self._displacement is None else self._picture(self._displacement)

    def uncompensated_image(self) -> Float32 | None:
        """[height, width] events a pixel of the last window as they came; or None."""
        if self._displacement is None:
            return None
        return self._picture(np.zeros_like(self._displacement))

    def _picture(self, displacement: Float32) -> Float32:
        width, height = self._size
        pixels = IweGrid(np.eye(2), np.zeros(2), width, height, math.hypot(width, height) / 2)
        return self._contrast.picture(self._levels[-1], displacement, pixels)

    def _refusal(self, events: Events, span_ns: int) -> FlowStatus | None:
        if len(events) < self.config.min_events:
            return FlowStatus.TOO_FEW_EVENTS
        # Events of one time show no motion, however many they are.
        return FlowStatus.NO_STRUCTURE if span_ns <= 0 else None

    def _nothing(
        self,
        times_ns: tuple[int, int, int],
        events: Events,
        status: FlowStatus,
        stride: int,
        solve_time_s: float,
    ) -> FlowEstimate:
        shape = (-(-self._size[1] // stride), -(-self._size[0] // stride))
        return FlowEstimate(
            *times_ns, len(events), 0, np.full((*shape, 2), np.nan, np.float32),
            np.zeros(shape, np.float32), np.zeros(shape, bool), math.nan, 0, 0.0, status,
            solve_time_s, stride,
        )  # fmt: skip

    def _load(self, events: Events, stamp_ns: int, span_s: float) -> int:
        """Looks up the events' points, and hands them to the contrast; returns how many of the
        window's events are of hot pixels."""
        count = min(len(events), self.config.max_events)
        self._columns = np.empty((3, count), np.float32)
        hot_events = look_up(
            events.t, events.x, events.y, stamp_ns, self._table, self._counts, self._columns
        )
        x, y, tau = self._columns
        tau *= np.float32(1 / span_s)
        self._contrast.load(x, y, tau)
        return hot_events * len(events) // count

    def _begin(
        self, stamp_ns: int, span_s: float, start: npt.NDArray[np.floating] | None
    ) -> tuple[Float32 | None, int]:
        """The displacement to begin with on the finest grid, if there is one to go by, and how many
        of the last levels to go through from there."""
        finest, begin = self._levels[-1], None
        if self._last is not None:
            since_s = (stamp_ns - self._last[0]) * 1e-9
            if since_s - span_s <= _MEMORY_S:
                begin = carried(finest, self._last[1], since_s) * np.float32(span_s)
        if start is None:
            return begin, _TRACKED
        given = sampled(finest, np.asarray(start, np.float32) * np.float32(span_s))
        known = np.asarray(np.isfinite(given).all(axis=2))
        if not known.any():
            return begin, _TRACKED
        elsewhere = np.median(given[known], axis=0) if begin is None else begin
        return np.where(known[..., None], given, elsewhere).astype(np.float32), _GIVEN

    def _solve(self, begin: Float32 | None, levels: int, until_s: float) -> _Solution:
        """Coarse to fine from rest, or through the last levels from where to begin."""
        finest = self._levels[-1]
        bins = [_BINS[min(n, len(_BINS) - 1)] for n in range(len(self._levels))][::-1]
        plan = list(zip(self._levels, bins, strict=True))
        if begin is None:
            grid, count = self._levels[0], self.config.cold_passes
            flow = np.zeros((grid.rows, grid.cols, 2), np.float32)
        else:
            grid, flow, count = finest, begin, self.config.warm_passes
            plan = plan[-levels:]
        passes, events, last, bin_size = 0, 0, None, _BINS[0]
        for level, bin_size in plan:
            flow, grid = resample(grid, flow, level), level
            if level is finest:
                if self._is_slow(flow):
                    bin_size = _SLOW_BIN
                flow = searched(self._columns, grid, flow, 1 / self._grid.focal_px)
            self._contrast.settle(grid, flow, bin_size)
            before, step = None, np.zeros_like(flow)
            for _ in range(count):
                last = self._contrast.evaluate(grid, flow, bin_size)
                hessian = last.hessian
                if before is not None:
                    hessian = steepened(hessian, step, last.gradient - before)
                step, before = (
                    self._step(grid, flow, last.gradient, hessian, bin_size),
                    last.gradient,
                )
                flow = flow + step
                passes, events = passes + 1, events + last.events
                if time.perf_counter() > until_s:
                    # What there is, looked at once more on the finest grid.
                    flow = resample(grid, flow, finest)
                    bin_size = _BINS[0]
                    self._contrast.settle(finest, flow, bin_size)
                    last = self._contrast.evaluate(finest, flow, bin_size)
                    passes, events = passes + 1, events + last.events
                    return _Solution(flow, last, bin_size, passes, events, late=True)
        assert last is not None
        return _Solution(flow, last, bin_size, passes, events)

    def _is_slow(self, flow: Float32) -> bool:
        moved_px = float(np.median(np.hypot(flow[..., 0], flow[..., 1])))
        return moved_px * self._grid.focal_px < _SLOW_PX

    def _step(
        self, grid: NodeGrid, flow: Float32, gradient: Float32, hessian: Float32, bin_size: float
    ) -> Float32:
        limit_px = _MAX_STEP_BINS * bin_size / self._grid.focal_px
        holds, edge_px, model = _COARSE, _COARSE_EDGE_PX, flow
        if grid is self._levels[-1]:
            holds = (_FIRST, self.config.smoothness, _MODEL)
            edge_px, model = self.config.edge_px, smooth_model(grid, flow, hessian)
        return newton_step(flow, gradient, hessian, model, holds, edge_px, limit_px)

    def _sharpness(self, displacement: Float32) -> tuple[float, float]:
        """Sum of squares of the images at the window's start, middle and end, their mean: what
        gathers events by a flow that converges is sharp at one of them only. And the structure of
        the one at the middle."""
        squares = self._contrast.squares(self._levels[-1], displacement, REFERENCES)
        image = np.ascontiguousarray(self._contrast.last_image())
        return float(np.mean(squares)), float(structure(image))

    def _moved_px(self, flow: Float32) -> float:
        """The displacement that 95 % of the events do not exceed."""
        x, y, _ = self._columns[:, :: max(1, self._columns.shape[1] // 2000)]
        moved = interpolate(
            self._levels[-1], flow, np.ascontiguousarray(x), np.ascontiguousarray(y)
        )
        return float(np.nanpercentile(np.hypot(*moved.T), 95))


@dataclass(frozen=True)
class _Solution:
    """Where the solver ended.

    Attributes:
        displacement: on the finest grid, px over the window.
        last: the last pass there, at most one step before it; bin_size: its bins.
        passes: how many; events: how many events they took.
        late: the time was up before the end.
    """

    displacement: Float32
    last: FlowPass
    bin_size: float
    passes: int
    events: int
    late: bool = False


def _judge(structured: float, late: bool, gain: float, moved_px: float) -> FlowStatus:
    if structured < _MIN_STRUCTURE:
        return FlowStatus.NO_STRUCTURE
    if late:
        return FlowStatus.DEADLINE
    least = _MIN_GAIN if moved_px > _REST_PX else _MIN_REST_GAIN
    return FlowStatus.OK if gain >= least else FlowStatus.NO_CONTRAST_GAIN


def flow_iwe_grid(low: Float64, high: Float64) -> IweGrid:
    """The image plane for points (x, y) in pixels from `low` to `high`, and a margin: turned by 5
    degrees, at 0.97 of their scale, or that of VGA if they are more."""
    width, height = high - low
    scale = SCALE * min(1.0, math.sqrt(MAX_PIXELS / (width * height)))
    cos, sin = scale * math.cos(TURN_RAD), scale * math.sin(TURN_RAD)
    matrix = np.array([[cos, -sin], [sin, cos]])
    corners = np.array([(x, y) for x in (low[0], high[0]) for y in (low[1], high[1])]) @ matrix.T
    least, most = corners.min(axis=0) - _MARGIN_PX, corners.max(axis=0) + _MARGIN_PX
    size = np.ceil(most - least).astype(int) + 1
    return IweGrid(matrix, -least, int(size[0]), int(size[1]), math.hypot(width, height) / 2)


def _points(size: tuple[int, int], camera: Camera | None) -> Float32:
    """[height, width, 2] x and y of every pixel on the undistorted image; NaN where it has none."""
    width, height = size
    if camera is None:
        return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    if (camera.width, camera.height) != (width, height):
        raise ConfigError(
            f"the calibration is for {camera.width}x{camera.height}, the sensor has "
            f"{width}x{height} pixels: use this camera's calibration"
        )
    bearings = camera.bearings.astype(np.float64)
    depth = np.where(bearings[..., 2:] > 0.1, bearings[..., 2:], np.nan)
    points = bearings[..., :2] / depth @ camera.K[:2, :2].T + camera.K[:2, 2]
    room = _BEYOND * np.array([width, height])
    inside = ((points >= -room) & (points <= np.array([width, height]) - 1 + room)).all(axis=2)
    points[~inside] = np.nan
    return np.ascontiguousarray(points, dtype=np.float32)


def _contrast(grid: IweGrid, config: FlowConfig) -> FlowContrast:
    unbiased = config.gradient == "unbiased"
    if config.device == "cpu" and config.fused:
        return CpuFlowContrast(grid, unbiased)
    check_device(config.device)
    if config.fused and config.device.startswith("cuda") and has_triton():
        from event_binning_grad.estimation.flow_contrast_cuda import CudaFlowContrast

        return CudaFlowContrast(grid, unbiased, config.device)
    return TorchFlowContrast(grid, unbiased, config.device)
