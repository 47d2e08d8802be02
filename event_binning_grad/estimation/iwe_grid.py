"""The image plane on which events are compared: the grid of the image of warped events (IWE)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from event_binning_grad.binning.reference import Grid
from event_binning_grad.errors import CalibrationError
from event_binning_grad.geometry import Camera

# The grid is turned and scaled against the sensor's pixels. Unwarped events sit exactly on pixel
# centres; on a grid of the same centres bilinear voting rewards them for staying there and pulls
# slow motions toward zero. An incommensurate grid takes that reward away and costs nothing.
TURN_RAD = math.radians(5.0)
SCALE = 0.97

# Sensors of more pixels get an image of about this many: the events that are used of a window would
# be too few for more, and clearing and summing bins would cost more than the events.
MAX_PIXELS = 640 * 480

# Room around the field of view for events that the warp moves out of it, as a share of its size.
_MARGIN = 0.1

# A perspective image of wider angles stretches without bound; bearings beyond are left out.
_MAX_ANGLE_RAD = math.radians(65.0)


@dataclass(frozen=True)
class IweGrid:
    """A perspective image plane, x right and y down: (u, v) = matrix @ (X/Z, Y/Z) + offset.

    Attributes:
        matrix: [2, 2] pixels.
        offset: [2] pixels.
        width, height: size in pixels; u in [0, width - 1], v in [0, height - 1] are on the image.
        radius_px: greatest distance of a bearing's image from the optical axis, in pixels.
    """

    matrix: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    width: int
    height: int
    radius_px: float

    @property
    def focal_px(self) -> float:
        """Pixels a unit of X/Z or Y/Z, on average."""
        return math.sqrt(abs(float(np.linalg.det(self.matrix))))

    def bins(self, bin_size: float) -> Grid:
        """The grid of bins, rows first: an image [H, W] from coords (v, u)."""
        shape = (math.ceil(self.height / bin_size), math.ceil(self.width / bin_size))
        return Grid(shape, (0.0, 0.0), (bin_size, bin_size))


def iwe_grid(camera: Camera, turn_rad: float = TURN_RAD, scale: float = SCALE) -> IweGrid:
    """The grid of a camera: its undistorted field of view and a margin, at about its own scale, or
    that of VGA if the sensor has more pixels.

    Raises:
        CalibrationError: no pixel has a bearing within 65 degrees of the optical axis.
    """
    bearings = camera.bearings.reshape(-1, 3).astype(np.float64)
    seen = bearings[bearings[:, 2] > math.cos(_MAX_ANGLE_RAD)]  # false for NaN
    if not len(seen):
        raise CalibrationError(
            "calibration: no pixel looks within 65 degrees of the optical axis; expected a camera "
            "that looks along its z axis: check K and the distortion"
        )
    normalised = seen[:, :2] / seen[:, 2:]
    scale *= min(1.0, math.sqrt(MAX_PIXELS / (camera.width * camera.height)))
    focal = scale * math.sqrt(camera.K[0, 0] * camera.K[1, 1])
    cos, sin = focal * math.cos(turn_rad), focal * math.sin(turn_rad)
    matrix = np.array([[cos, -sin], [sin, cos]])
    image = normalised @ matrix.T
    low, high = image.min(axis=0), image.max(axis=0)
    margin = _MARGIN * (high - low)
    width, height = np.ceil(high - low + 2 * margin).astype(int) + 1
    radius = float(np.linalg.norm(image, axis=1).max())
    return IweGrid(matrix, margin - low, int(width), int(height), radius)


def sensor_grid(camera: Camera) -> IweGrid:
    """The camera's own undistorted pixels, for pictures: same size, same K, no distortion."""
    matrix, offset = camera.K[:2, :2].copy(), camera.K[:2, 2].copy()
    radius = math.hypot(camera.width, camera.height) / 2
    return IweGrid(matrix, offset, camera.width, camera.height, radius)
