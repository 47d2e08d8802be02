"""The optical flow that the camera's estimated motion and a known depth imply."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from event_binning_grad.estimation import Depth, EgomotionEstimate
from event_binning_grad.events.types import NS_PER_MS
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.depth import Plane
from event_binning_grad.geometry.motion_field import motion_field, undistorted_bearings

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# A motion farther from a field's time than this says nothing of it.
_TOLERANCE_NS = 50 * NS_PER_MS
_MOTIONS = 32
# Pixels of a block of the flow to begin with.
_BLOCK = 8


class ImpliedFlow:
    """The flow of a static scene, by the camera's last motions.

    Args:
        camera: the calibration; the flow is on its undistorted pixels.
    """

    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        self._motions: deque[tuple[EgomotionEstimate, Depth | None]] = deque(maxlen=_MOTIONS)

    def take(self, motion: EgomotionEstimate, depth: Depth | None) -> None:
        """Takes the motion of a window, and the scene's depth at its time.

        Motions that are not trusted are left out, and those without a depth that they need.
        """
        if motion.status.ok and _scene(motion, depth) is not None:
            self._motions.append((motion, depth))

    def forget(self) -> None:
        """Says that what comes next does not follow what came."""
        self._motions.clear()

    def start(self, stamp_ns: int) -> Float32 | None:
        """[H, W, 2] px/s, the flow at a time, to begin an estimation with; None if not known.

        It is in blocks of pixels, much finer than what a solver's step reaches. Not known where the
        motion model leaves out the translation: the last flow knows more then.
        """
        near = self._nearest(stamp_ns)
        if near is None or near[1] is None:
            return None
        blocks = self.at(stamp_ns, _BLOCK)
        assert blocks is not None  # there is a motion
        rows, columns = (
            np.minimum((np.arange(side) + _BLOCK // 2) // _BLOCK, (side - 1) // _BLOCK)
            for side in (self._camera.height, self._camera.width)
        )
        return blocks[rows[:, None], columns]

    def at(self, stamp_ns: int, stride: int = 1) -> Float32 | None:
        """[ceil(H / stride), ceil(W / stride), 2] px/s, the flow at a time; None if not known."""
        near = self._nearest(stamp_ns)
        if near is None:
            return None
        motion, velocity, surface = near
        since_s = (stamp_ns - motion.stamp_ns) * 1e-9
        omega = motion.angular_velocity + since_s * motion.angular_acceleration
        camera = thinned(self._camera, stride)
        metres = None if surface is None else self._depth(surface, camera)
        return stride * motion_field(camera, omega, velocity, metres)

    def _nearest(
        self, stamp_ns: int
    ) -> tuple[EgomotionEstimate, Float64 | None, Depth | None] | None:
        """The motion nearest to a time, its linear velocity, and the depth that goes with it."""
        if not self._motions:
            return None
        motion, depth = min(self._motions, key=lambda known: abs(known[0].stamp_ns - stamp_ns))
        scene = _scene(motion, depth)
        if scene is None or abs(stamp_ns - motion.stamp_ns) > _TOLERANCE_NS:
            return None
        return motion, *scene

    def _depth(self, surface: Depth, pixels: Camera) -> npt.NDArray[np.floating]:
        """[H, W] m at the pixels of a camera without distortion; NaN where not known."""
        shape = (pixels.height, pixels.width)
        if isinstance(surface, (int, float)):
            return np.full(shape, surface)
        rays = undistorted_bearings(pixels)
        if isinstance(surface, Plane):
            return 1 / surface.inverse_depth(rays[..., 0], rays[..., 1])
        import cv2

        # The depth image is of the raw pixels: of those where the undistorted ones come from.
        raw = self._camera.project(rays).astype(np.float32)
        metres = cv2.remap(
            surface.metres, raw[..., 0].copy(), raw[..., 1].copy(), cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT, borderValue=[float("nan")],
        )  # fmt: skip
        return np.asarray(metres, np.float32)


def thinned(camera: Camera, stride: int) -> Camera:
    """The camera of a field: the undistorted pixels, one in `stride` across and down.

    Sample (0, 0) of the field is pixel (0, 0), and pixels have their centres at integers; so all of
    K is divided by the stride, the principal point like the focal lengths.
    """
    K = camera.K.copy()
    K[:2] /= stride
    return Camera(-(-camera.width // stride), -(-camera.height // stride), K)


def _scene(
    motion: EgomotionEstimate, depth: Depth | None
) -> tuple[Float64 | None, Depth | None] | None:
    """The linear velocity [3] and the depth that goes with it; None if that is not known.

    (None, None) for a motion model in which the camera only turns.
    """
    if np.isfinite(motion.plane_normal).all() and np.isfinite(motion.velocity_over_distance).all():
        # Both in distances along the optical axis: the plane goes through (0, 0, 1).
        plane = Plane(motion.plane_normal, float(motion.plane_normal[2]))
        return motion.velocity_over_distance, plane
    if not np.isfinite(motion.linear_velocity).all():
        return None, None
    return None if depth is None else (motion.linear_velocity, depth)
