"""Scores of single flow fields: how sharp they make their events, and their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import RecordingError
from event_binning_grad.estimation.flow_estimate import FlowEstimate
from event_binning_grad.estimation.look_up import look_up
from event_binning_grad.evaluation.flow_metrics import (
    FlowError,
    density,
    event_pixels,
    flow_error,
    flow_warp_loss,
    known,
)
from event_binning_grad.evaluation.true_flow import TrueField, TrueFlow
from event_binning_grad.events.types import NS_PER_S, Events
from event_binning_grad.geometry import Camera

Float32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FlowWindow:
    """The figures of one field.

    Attributes:
        stamp_ns, window_start_ns, window_end_ns: on the recording's clock.
        events, used_events: of the window, and those of them that were looked at.
        status: why the field is not to be trusted, or "ok"; without trust there are no figures.
        density: share of the pixels with events whose flow is known.
        normal_share: share of the pixels with known flow where it is only the part across the
            edges.
        flow_warp_loss: sharpness of the compensated events over that of the events as they came,
            see `flow_warp_loss`; without those of hot pixels.
        true_flow_warp_loss: the same of the true flow; NaN without truth.
        error: against the truth over the pixels with events; None without truth.
        dense_error: the same over all pixels, with events or not.
        moving_error: the same over those with events where something moves by itself.
        full_error: the same over those with events where the whole flow is known, not the normal
            part.
        speed_px_s: that 95 % of the events do not exceed.
        iterations, full_passes, solve_time_s: what it took.
    """

    stamp_ns: int
    window_start_ns: int
    window_end_ns: int
    events: int
    used_events: int
    status: str
    density: float = math.nan
    normal_share: float = math.nan
    flow_warp_loss: float = math.nan
    true_flow_warp_loss: float = math.nan
    error: FlowError | None = None
    dense_error: FlowError | None = None
    moving_error: FlowError | None = None
    full_error: FlowError | None = None
    speed_px_s: float = math.nan
    iterations: int = 0
    full_passes: float = 0.0
    solve_time_s: float = math.nan

    @property
    def span_s(self) -> float:
        """What the window spans, s."""
        return (self.window_end_ns - self.window_start_ns) / NS_PER_S


class FlowScorer:
    """Scores fields of one sensor.

    Args:
        size: width and height of the sensor in pixels.
        camera: its calibration, if the fields are on its undistorted pixels; None: on raw ones.
        truth: what they are compared with.
    """

    def __init__(
        self, size: tuple[int, int], camera: Camera | None = None, truth: TrueFlow | None = None
    ) -> None:
        self.size, self._truth = size, truth
        columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
        self._table = np.stack([columns, rows], axis=-1).astype(np.float32)
        if camera is not None:
            self._table = camera.undistorted_pixels.astype(np.float32)
        self._counts = np.zeros((size[1], size[0]), np.int32)

    def coords(self, events: Events) -> Float32:
        """[N, 2] (x, y) of events on the pixels of the fields; NaN where they have no place."""
        return self._table[events.y, events.x]

    def scene_coords(self, events: Events) -> Float32:
        """The same, NaN for events of hot pixels too: a dot that fires all the time is no part of
        the scene, and it is sharpest where nothing is compensated."""
        columns = np.empty((3, len(events)), np.float32)
        look_up(events.t, events.x, events.y, 0, self._table, self._counts, columns)
        return columns[:2].T

    def score(
        self, events: Events, estimate: FlowEstimate, clock_offset_ns: int = 0
    ) -> tuple[FlowWindow, TrueField | None]:
        """The figures of a field of full resolution, with the truth that it was compared with.

        Args:
            events: those of its window.
            estimate: the field.
            clock_offset_ns: what to add to the events' times for that of the field.

        Raises:
            ValueError: the field is not of full resolution.
            RecordingError: the truth is of another size.
        """
        if estimate.flow.shape != (self.size[1], self.size[0], 2):
            found, expected = list(estimate.flow.shape), [self.size[1], self.size[0], 2]
            raise ValueError(f"flow is {found}, expected {expected}")
        window = FlowWindow(
            estimate.stamp_ns, estimate.window_start_ns, estimate.window_end_ns,
            estimate.events, estimate.used_events, estimate.status.value,
            iterations=estimate.iterations, full_passes=estimate.full_passes,
            solve_time_s=estimate.solve_time_s,
        )  # fmt: skip
        if not estimate.status.ok:
            return window, None
        flow, coords = estimate.flow, self.coords(events)
        scene_coords = self.scene_coords(events)
        offset_s = (events.t + (clock_offset_ns - estimate.stamp_ns)) / NS_PER_S
        where = event_pixels(coords, *self.size)
        settled = known(flow) & where
        truth = None if self._truth is None else self._truth.at(estimate.stamp_ns)
        if truth is not None and truth.flow.shape != flow.shape:
            raise RecordingError(
                f"true flow of {list(truth.flow.shape)}, expected {list(flow.shape)}: the sensor's"
            )
        window = replace(
            window,
            density=density(flow, where),
            normal_share=_share(estimate.normal_flow, settled),
            flow_warp_loss=flow_warp_loss(scene_coords, offset_s, flow),
            speed_px_s=estimate.speed_px_s,
        )
        if truth is None:
            return window, None
        true_flow = truth.flow

        def error(over: Mask | None) -> FlowError | None:
            return flow_error(flow, true_flow, window.span_s, over)

        window = replace(
            window,
            true_flow_warp_loss=flow_warp_loss(scene_coords, offset_s, true_flow),
            error=error(where),
            dense_error=error(None),
            moving_error=None if truth.moving is None else error(where & truth.moving),
            full_error=error(where & ~estimate.normal_flow),
        )
        return window, truth


def _share(mask: Mask, of: Mask) -> float:
    return float(mask[of].mean()) if of.any() else math.nan
