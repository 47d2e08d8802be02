"""True optical flow that came with a recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import RecordingError
from event_binning_grad.geometry.camera import Camera, interpolate


@dataclass(frozen=True, eq=False)
class FlowTruth:
    """How far what each pixel sees at start_ns moves until end_ns.

    start_ns, end_ns: on the clock of the recording's events.
    flow_px: float32 [H, W, 2], displacement (x, y) in pixels over that time; NaN where unknown.
    valid: bool [H, W], where it is known.
    """

    start_ns: int
    end_ns: int
    flow_px: NDArray[np.float32]
    valid: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class FlowTruths:
    """The true flows of a recording, in the order of time; iterating reads one after the other.

    windows_ns: int64 [M, 2], start and end of each.
    undistorted: whether their pixels are those of the undistorted image of the recording's
        calibration (same size, its K), or the sensor's own.
    source: the files.
    read: yields flow [H, W, 2] in px and where it is valid [H, W] for every window, in order.
    """

    windows_ns: NDArray[np.int64]
    undistorted: bool
    source: str
    read: Callable[[], Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]]

    def __post_init__(self) -> None:
        starts, ends = self.windows_ns[:, 0], self.windows_ns[:, 1]
        if np.any(ends <= starts) or np.any(np.diff(starts) <= 0):
            raise RecordingError(
                f"{self.source}: the windows of the flow are not in the order of time, expected "
                "each to end after it starts, and to start after the one before it"
            )

    def __len__(self) -> int:
        return len(self.windows_ns)

    def __iter__(self) -> Iterator[FlowTruth]:
        for (start_ns, end_ns), (flow, valid) in zip(
            self.windows_ns.tolist(), self.read(), strict=True
        ):
            flow[~valid] = np.nan
            yield FlowTruth(start_ns, end_ns, flow, valid)


def on_undistorted_pixels(truth: FlowTruth, camera: Camera) -> FlowTruth:
    """A flow on the sensor's own pixels as one on the pixels of the undistorted image.

    What an undistorted pixel sees is looked up where it lies on the sensor (between its four
    pixels, all of them valid), and both ends of its way are undistorted.
    """
    height, width = truth.valid.shape
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float64)
    start = camera.distort(grid)
    end = camera.undistort(start + interpolate(truth.flow_px, start))
    flow = (end - grid).astype(np.float32)
    valid = np.isfinite(flow[..., 0]) & np.isfinite(flow[..., 1])
    return FlowTruth(truth.start_ns, truth.end_ns, flow, valid)
