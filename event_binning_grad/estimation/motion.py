"""Motion models: what is unknown about how the camera moved during a window.

All models share one vector of PARAMETERS numbers, of which each leaves some fixed:

    omega (3)  angular velocity at the reference time, rad/s, camera frame
    alpha (3)  angular acceleration, rad/s^2
    v     (3)  linear velocity, m/s, camera frame; times the inverse depth on the optical axis (1/s)
               where the depth is not known
    slope (2)  of the inverse depth over the image, relative: 1 + slope . (x, y)

An event at (x, y) = (X/Z, Y/Z) that came tau seconds after the reference time is seen from the
camera's place at the reference time at

    p = Exp(omega tau + alpha tau^2 / 2) (x, y, 1) + tau rho (1 + slope . (x, y)) v

up to scale, rho its inverse depth (1/m, or 1 where the depth is not known). The warp is exact for
the rotation; the camera's place changes along a straight line.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

PARAMETERS = 11
OMEGA, ALPHA, V, SLOPE = slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 11)


class MotionModel(enum.Enum):
    """Which parameters are estimated."""

    ROTATION = "rotation"
    FULL = "full"
    PLANAR = "planar"
    TRANSLATION = "translation"

    @property
    def needs_depth(self) -> bool:
        """Whether the events' depth must be known."""
        return self in (MotionModel.FULL, MotionModel.TRANSLATION)

    @property
    def translates(self) -> bool:
        return self is not MotionModel.ROTATION

    @property
    def rotates(self) -> bool:
        """Whether the angular velocity is estimated."""
        return self is not MotionModel.TRANSLATION

    def active(self, angular_acceleration: bool) -> npt.NDArray[np.int64]:
        """Indices of the parameters that are estimated."""
        parts = []
        if self.rotates:
            parts.append(OMEGA)
            if angular_acceleration:
                parts.append(ALPHA)
        if self.translates:
            parts.append(V)
        if self is MotionModel.PLANAR:
            parts.append(SLOPE)
        return np.concatenate([np.arange(PARAMETERS)[part] for part in parts])
