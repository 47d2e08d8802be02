"""Inverse depths of a window's events, from what is known of the scene."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from event_binning_grad.estimation.contrast import Float32, Float64, WindowEvents
from event_binning_grad.estimation.motion import ALPHA, OMEGA, PARAMETERS, V
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.depth import DepthImage, Plane

# How far the scene is: metres along the optical axis, a plane in the camera's frame at the window's
# reference time, or a depth image on the clock of the events.
Depth = float | Plane | DepthImage

# How far an event may lie from the surface that made it, in the depth image.
_OUTLINE_PX = 7


class InverseDepths:
    """Looks up inverse depths; keeps what it has made of the last depth image.

    Args:
        camera: the event camera, whose pixels the depth images are of.
    """

    def __init__(self, camera: Camera) -> None:
        self._focal = camera.K[[0, 1], [0, 1]].astype(np.float32)
        self._image = self._table = np.empty((0, 0), np.float32)

    def fill(
        self,
        out: Float32,
        depth: Depth,
        window: WindowEvents,
        pixels: tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]],
        stamp_ns: int,
        motion: Float64,
    ) -> None:
        """Fills out [N], 1/m at the events' own times; NaN where not known. A distance is that of
        all events, whenever they came.

        pixels: x and y [N] of the events. stamp_ns: the window's reference time. motion: [11], the
        predicted one, which tells how the scene has moved against the camera meanwhile.
        """
        if isinstance(depth, DepthImage):
            if self._image is not depth.metres:
                self._image, self._table = depth.metres, nearest_surfaces(depth.metres)
            since_s = (stamp_ns - depth.stamp_ns) * 1e-9
            _of_image(
                window.x, window.y, window.tau, *pixels, since_s, motion, self._focal,
                self._table, out,
            )  # fmt: skip
        elif isinstance(depth, Plane):
            _of_plane(window.x, window.y, window.tau, motion, depth.normal, depth.distance_m, out)
        else:
            out[:] = 1 / depth


def warm_up() -> None:
    """Compiles what `InverseDepths` needs (seconds the first time, cached then)."""
    camera = Camera(2, 2, np.diag([1.0, 1.0, 1.0]))
    zeros, pixels = np.zeros(1, np.float32), np.zeros(1, np.uint16)
    window = WindowEvents(zeros, zeros, zeros, zeros.copy(), 1.0)
    for depth in (
        Plane(np.array([0.0, 0.0, 1.0]), 1.0),
        DepthImage(np.ones((2, 2), np.float32), 0),
    ):
        InverseDepths(camera).fill(
            window.inverse_depth, depth, window, (pixels, pixels), 0, np.zeros(PARAMETERS)
        )


def nearest_surfaces(depth: Float32) -> Float32:
    """[H, W] 1/m, the greatest in 7 x 7 pixels of a depth image [H, W] (m); 0 where unknown.

    An outline that passes is that of the nearer surface, and the event that it makes may lie a
    little outside.
    """
    import cv2

    with np.errstate(divide="ignore"):
        inverse = np.where(depth > 0, 1 / depth, 0).astype(np.float32)
    kernel = np.ones((_OUTLINE_PX, _OUTLINE_PX), np.uint8)
    return np.asarray(cv2.dilate(inverse, kernel), np.float32)


@numba.njit(inline="always")
def _turned(x, y, rx, ry, rz):
    """Exp((rx, ry, rz)) (x, y, 1), to the third order of the angle."""
    s = rx * rx + ry * ry + rz * rz
    a, b = 1 - s / 6, 0.5 - s / 24
    ox, oy, oz = ry - rz * y, rz * x - rx, rx * y - ry * x
    return (
        x + a * ox + b * (ry * oz - rz * oy),
        y + a * oy + b * (rz * ox - rx * oz),
        1 + a * oz + b * (rx * oy - ry * ox),
    )


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _of_plane(x, y, tau, motion, normal, distance_m, out):
    w, a, v = motion[OMEGA], motion[ALPHA], motion[V]
    speed = normal[0] * v[0] + normal[1] * v[1] + normal[2] * v[2]
    for i in range(len(tau)):
        t = float(tau[i])
        h = t * t / 2
        px, py, pz = _turned(
            x[i], y[i], w[0] * t + a[0] * h, w[1] * t + a[1] * h, w[2] * t + a[2] * h
        )
        # The ray in the frame of the reference time meets the plane as seen from the event's place.
        inverse = (normal[0] * px + normal[1] * py + normal[2] * pz) / (distance_m - t * speed)
        out[i] = inverse if inverse > 0 else np.nan


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _of_image(x, y, tau, px, py, since_s, motion, focal, table, out):
    height, width = table.shape
    w, a, v = motion[OMEGA], motion[ALPHA], motion[V]
    for i in range(len(tau)):
        # From the event's time to the image's, by the motion at the reference time.
        t, to_reference = float(tau[i]) + since_s, float(tau[i])
        h = (to_reference * to_reference - since_s * since_s) / 2
        qx, qy, qz = _turned(
            x[i], y[i], w[0] * t + a[0] * h, w[1] * t + a[1] * h, w[2] * t + a[2] * h
        )
        inverse = 0.0
        for _ in range(2):  # the depth found tells how far the translation moves it
            z = qz + t * inverse * v[2]
            if not z > 0:
                inverse = 0.0
                break
            column = int(px[i]) + focal[0] * ((qx + t * inverse * v[0]) / z - x[i])
            row = int(py[i]) + focal[1] * ((qy + t * inverse * v[1]) / z - y[i])
            if not (-0.5 <= column < width - 0.5 and -0.5 <= row < height - 0.5):
                inverse = 0.0
                break
            found = table[int(row + 0.5), int(column + 0.5)]
            # 1/Z in the image's frame; Z there is Z qz + t vz.
            inverse = qz * found / (1 - t * v[2] * found)
        out[i] = inverse if inverse > 0 else np.nan
