"""What dense flow is estimated with, and its result."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import ConfigError

GRADIENTS = ("unbiased", "raw")


class FlowStatus(enum.Enum):
    """Whether a flow field can be trusted, and if not, why."""

    OK = "ok"
    TOO_FEW_EVENTS = "too_few_events"
    NO_STRUCTURE = "no_structure"
    NO_CONTRAST_GAIN = "no_contrast_gain"
    DEADLINE = "deadline"

    @property
    def ok(self) -> bool:
        return self is FlowStatus.OK


@dataclass(frozen=True)
class FlowConfig:
    """What the flow estimator does.

    Attributes:
        device: "cpu", or a torch device such as "cuda".
        gradient: "unbiased", or "raw" for the slope of the bilinear votes themselves.
        fused: the fused pass where there is one; False takes plain torch operations there too.
        min_events: windows with fewer events are not estimated.
        max_events: of a window with more, so many are used, evenly spread.
        node_spacing_px: distance of the finest grid's nodes, in pixels; larger where max_nodes
            would be exceeded.
        max_nodes: nodes of the finest grid at most.
        smoothness: how strongly the flow's bending between neighbouring nodes is held down, in
            units of the mean curvature of the nodes' own contrast.
        edge_px: where the displacement over the window bends by more than about this many pixels
            from node to node there is taken to be a motion edge, and the two sides let go.
        cold_passes: passes at each level, coarse to fine, without a flow to begin with.
        warm_passes: passes at each of the last levels with a flow to begin with.
        deadline_s: passes that begin later than this after the start are not begun; 0 for none.

    Raises:
        ConfigError: a value that is not allowed.
    """

    device: str = "cpu"
    gradient: str = "unbiased"
    fused: bool = True
    min_events: int = 2000
    max_events: int = 30_000
    node_spacing_px: float = 10.0
    max_nodes: int = 1200
    smoothness: float = 2.0
    edge_px: float = 0.7
    cold_passes: int = 4
    warm_passes: int = 3
    deadline_s: float = 0.0

    def __post_init__(self) -> None:
        if self.gradient not in GRADIENTS:
            raise ConfigError(
                f"gradient {self.gradient!r} is unknown; expected one of {', '.join(GRADIENTS)}"
            )
        for name, least in (
            ("min_events", 1), ("max_events", 1), ("max_nodes", 16), ("cold_passes", 1),
            ("warm_passes", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {least} or more")
        for name in ("node_spacing_px", "edge_px"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; expected a finite number above 0"
                )
        for name in ("smoothness", "deadline_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; expected a finite number, 0 or more"
                )


@dataclass(frozen=True)
class FlowEstimate:
    """Dense optical flow of one window of events.

    Attributes:
        stamp_ns: reference time, the mean time of the window's events, at which the flow holds.
        window_start_ns, window_end_ns: times of the first and the last event.
        events: number of events in the window.
        used_events: events that were looked at, after subsampling, and without those of hot pixels
            and of pixels that have no place on the image.
        flow: [H, W, 2] float32 px/s, x then y, at pixels (0, stride, 2 stride, ...) each way; NaN
            where it is not known. On undistorted pixels if the estimator has a camera.
        confidence: [H, W] float32 0 to 1; 0 where the flow is not known. 1 / (1 + s^2), s the
            standard deviation of the displacement over the window in px in its worse direction
            (in its better one where only the normal flow is known).
        normal_flow: [H, W] bool, only the part of the flow across the local edges is known there
            (the aperture problem), and flow is that part.
        contrast_gain: mean square of the compensated image over that of the uncompensated one; of
            images compensated to the window's start, middle and end, the mean.
        iterations: passes that the solver took, those with coarse bins among them.
        full_passes: their work in passes over all events.
        status: why not to trust the field, or FlowStatus.OK.
        solve_time_s: time that the estimation took.
        stride: pixels from one sample of the fields to the next.
        hot_pixel_events: events of the window that were left out, because their pixels fire all
            the time.
        speed_px_s: the speed that 95 % of the events do not exceed, px/s; NaN where nothing was
            estimated.
    """

    stamp_ns: int
    window_start_ns: int
    window_end_ns: int
    events: int
    used_events: int
    flow: npt.NDArray[np.float32]
    confidence: npt.NDArray[np.float32]
    normal_flow: npt.NDArray[np.bool_]
    contrast_gain: float
    iterations: int
    full_passes: float
    status: FlowStatus
    solve_time_s: float
    stride: int = 1
    speed_px_s: float = math.nan
    hot_pixel_events: int = 0

    @property
    def used_share(self) -> float:
        """The share of the window's events that were looked at."""
        return self.used_events / self.events if self.events else 0.0
