"""From decoded events to dense optical flow: the stage beside the egomotion's.

    events -> window -> warp, bin, solve -> flow field

Node, replay and evaluation use this one; the node in a thread of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from event_binning_grad.config import MAX_FLOW_STRIDE, PipelineConfig
from event_binning_grad.errors import PacketError
from event_binning_grad.estimation import Depth, EgomotionEstimate, flow_search
from event_binning_grad.estimation.flow import FlowEstimator
from event_binning_grad.estimation.flow_estimate import FlowEstimate, FlowStatus
from event_binning_grad.events.types import Events
from event_binning_grad.events.windows import Window, WindowBuffer
from event_binning_grad.geometry import Camera
from event_binning_grad.pipeline_implied import ImpliedFlow

# Messages from 0.6 MB on are lost by ROS's default transport; a field has two float32 a pixel.
MAX_FIELD_BYTES = 500_000
_BYTES_PER_PIXEL = 8


class FlowTaker(Protocol):
    """What a pipeline hands its decoded events to, for flow: a FlowStage, or a way to one."""

    def push(
        self, events: Events, clock_offset_ns: int = 0, estimate: bool = True
    ) -> Iterable[FlowEstimate]:
        """Takes the next events; returns the fields that are ready, if they are made here."""
        ...

    def flush(self) -> Iterable[FlowEstimate]:
        """The stream has ended; the same of the last window."""
        ...

    def break_stream(self) -> None:
        """What comes next does not follow what came."""
        ...

    def set_camera(self, camera: Camera) -> None:
        """There is a calibration, or another one."""
        ...

    def imply(self, motion: EgomotionEstimate, depth: Depth | None) -> None:
        """A trusted motion of the camera, and the depth of the scene where that is known."""
        ...


@dataclass
class FlowCounters:
    """What became of the events: each is in exactly one of window_events, skipped_events,
    discarded_events, refused_events, dropped_events, in the buffer, or still on its way here."""

    windows: int = 0
    window_events: int = 0
    used_events: int = 0
    """Events of window_events that were looked at; of windows with too many, a part is."""
    hot_pixel_events: int = 0
    """Events of window_events that were left out, because their pixels fire all the time."""
    skipped_windows: int = 0
    """Windows left out to catch up."""
    skipped_events: int = 0
    """Events between two windows, or of windows left out."""
    discarded_events: int = 0
    """Events of windows left incomplete by a discontinuity, or by another sensor size."""
    refused_events: int = 0
    """Events that do not fit the calibration."""
    dropped_events: int = 0
    """Events given up before they came here, because too many waited."""
    estimates: dict[FlowStatus, int] = field(default_factory=lambda: dict.fromkeys(FlowStatus, 0))


class FlowStage:
    """Takes the events of one camera, returns the flow fields that they complete.

    Args:
        config: what to do.
        sensor: the calibration: the flow is then on its undistorted pixels. Or the sensor's width
            and height, or None to take those of the events: the flow is on raw pixels.
    """

    def __init__(
        self, config: PipelineConfig | None = None, sensor: Camera | tuple[int, int] | None = None
    ) -> None:
        self.config = config or PipelineConfig(estimate="flow")
        self.counters = FlowCounters()
        rate_hz = self.config.flow_rate_hz
        self._buffer = WindowBuffer(
            window_ns=round(self.config.flow_window_ms * 1e6),
            period_ns=round(1e9 / rate_hz) if rate_hz else None,
            min_events=2 * self.config.flow_min_events,
        )
        self._camera: Camera | None = None
        self._size: tuple[int, int] | None = None
        self._estimator: FlowEstimator | None = None
        self._implied: ImpliedFlow | None = None
        self._clock_offset_ns = 0
        if isinstance(sensor, Camera):
            self.set_camera(sensor)
        elif sensor is not None:
            self._set_size(sensor)

    @property
    def camera(self) -> Camera | None:
        """The calibration; None: the flow is on raw pixels."""
        return self._camera

    @property
    def stride(self) -> int:
        """Pixels from one sample of a field to the next; 0 while the sensor's size is unknown."""
        return 0 if self._size is None else field_stride(self.config, *self._size)

    def set_camera(self, camera: Camera) -> None:
        """Takes a calibration, or another one; the track starts anew.

        Raises:
            EventBinningError: the flow cannot be estimated with it.
        """
        size = (camera.width, camera.height)
        estimator = FlowEstimator(size, self.config.flow(), camera)
        if size != self._size:
            self.counters.discarded_events += self._buffer.clear()
        self._buffer.span_limit_ns = None
        self._estimator, self._camera, self._size = estimator, camera, size
        self._implied = ImpliedFlow(camera)

    def push(
        self, events: Events, clock_offset_ns: int = 0, estimate: bool = True
    ) -> list[FlowEstimate]:
        """Takes events that follow the ones before; returns the fields that are now complete.

        Args:
            events: what comes next, in the order of time.
            clock_offset_ns: what to add to their times for those of the fields.
            estimate: False: windows that are now complete are left out and counted.

        Raises:
            PacketError: the events do not fit the calibration; they are dropped and counted.
        """
        size = (events.width, events.height)
        if size != self._size:
            if self._camera is not None:
                self.counters.refused_events += len(events)
                camera = self._camera
                raise PacketError(
                    f"events of a {events.width}x{events.height} sensor, but the calibration is "
                    f"for {camera.width}x{camera.height}: use this camera's calibration"
                )
            self._set_size(size)
        self._clock_offset_ns = clock_offset_ns
        windows = self._buffer.push(events)
        if estimate:
            return [self._estimate(window) for window in windows]
        for window in windows:
            self.counters.skipped_windows += 1
            self.counters.skipped_events += window.fresh + window.skipped
        return []

    def flush(self) -> list[FlowEstimate]:
        """The field of the last, incomplete window, at the end of a stream."""
        window = self._buffer.flush()
        return [] if window is None else [self._estimate(window)]

    def break_stream(self) -> None:
        """Says that what comes next does not follow what came: the track starts anew."""
        self.counters.discarded_events += self._buffer.clear()
        self._buffer.span_limit_ns = None
        if self._estimator is not None:
            self._estimator.reset()
        if self._implied is not None:
            self._implied.forget()

    def skip(self, dropped_events: int) -> None:
        """Says that so many events are missing before the next ones: no window reaches over the
        gap, but the flow goes on from where it was."""
        self.counters.dropped_events += dropped_events
        self.counters.discarded_events += self._buffer.clear()

    def imply(self, motion: EgomotionEstimate, depth: Depth | None) -> None:
        """Takes the camera's motion, on the clock of the fields, and the depth of the scene.

        The flow that they imply is what `residual` compares with and, where the motion model has a
        translation, where the next windows start.
        """
        if self._implied is not None:
            self._implied.take(motion, depth)

    def residual(self, estimate: FlowEstimate) -> npt.NDArray[np.float32] | None:
        """[H, W, 2] px/s, a field less the flow that the camera's motion implies, as `imply` told.

        Where it is large something moves by itself. NaN where either is not known; None if no
        motion is known near the field's time.
        """
        if self._implied is None:
            return None
        implied = self._implied.at(estimate.stamp_ns, estimate.stride)
        return None if implied is None else estimate.flow - implied

    def _set_size(self, size: tuple[int, int]) -> None:
        self.counters.discarded_events += self._buffer.clear()
        self._buffer.span_limit_ns = None
        self._estimator, self._size = FlowEstimator(size, self.config.flow()), size

    def _estimate(self, window: Window) -> FlowEstimate:
        assert self._estimator is not None  # there are no windows before the sensor's size
        events, clock_offset_ns = window.events, self._clock_offset_ns
        start = None
        if self._implied is not None:
            start = self._implied.start(events.mean_time_ns + clock_offset_ns)
        estimate = self._estimator.estimate(events, start, self.stride)
        self._buffer.span_limit_ns = self._next_span_ns(estimate)
        self.counters.windows += 1
        self.counters.window_events += window.fresh
        self.counters.skipped_events += window.skipped
        self.counters.used_events += round(window.fresh * estimate.used_share)
        hot_share = estimate.hot_pixel_events / max(1, estimate.events)
        self.counters.hot_pixel_events += round(window.fresh * hot_share)
        self.counters.estimates[estimate.status] += 1
        return dataclasses.replace(
            estimate,
            stamp_ns=estimate.stamp_ns + clock_offset_ns,
            window_start_ns=estimate.window_start_ns + clock_offset_ns,
            window_end_ns=estimate.window_end_ns + clock_offset_ns,
        )

    def _next_span_ns(self, estimate: FlowEstimate) -> int | None:
        """How long the window after this one may be; None for as long as any."""
        speed_px_s = estimate.speed_px_s
        if not (self.config.flow_window_px and estimate.status.ok and speed_px_s > 0):
            return None
        return max(1, math.ceil(min(1e9 * self.config.flow_window_px / speed_px_s, 1e12)))


def field_stride(config: PipelineConfig, width: int, height: int) -> int:
    """The stride of fields of a sensor: flow_stride, or the smallest with which the flow is less
    than MAX_FIELD_BYTES."""
    if config.flow_stride:
        return config.flow_stride
    for stride in range(1, MAX_FLOW_STRIDE):
        columns, rows = -(-width // stride), -(-height // stride)
        if _BYTES_PER_PIXEL * columns * rows < MAX_FIELD_BYTES:
            return stride
    return MAX_FLOW_STRIDE


def warm_up(config: PipelineConfig) -> None:
    """Compiles what the flow needs (seconds the first time, cached then)."""
    rng, count = np.random.default_rng(0), 2 * config.flow_min_events
    events = Events(
        np.linspace(0, 1e7, count).astype(np.int64),
        rng.integers(0, 64, count, dtype=np.uint16),
        rng.integers(0, 48, count, dtype=np.uint16),
        np.ones(count, np.uint8),
        64,
        48,
    )
    flow_search.warm_up()
    estimator = FlowEstimator((64, 48), dataclasses.replace(config.flow(), deadline_s=0.0))
    for _ in range(2):  # cold, and from the last flow
        estimator.estimate(events)
    estimator.estimate(events, np.zeros((48, 64, 2), np.float32))
