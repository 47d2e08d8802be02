"""The motion field: how fast the image of the scene moves at every pixel, of known motion."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from event_binning_grad.geometry.camera import Camera

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# Half the step, in s, of the difference that takes a velocity through the lens: it moves a bearing
# by about this many radians, where the error of its third order is below 1e-9 of the velocity.
_STEP_S = 1e-5


def undistorted_bearings(camera: Camera) -> Float64:
    """[H, W, 3] (X/Z, Y/Z, 1) of the pixels of the camera without its lens: same size, same K."""
    columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1).astype(np.float64)
    return pixels @ np.linalg.inv(camera.K).T


def motion_field(
    camera: Camera,
    angular_velocity: npt.ArrayLike,
    linear_velocity: npt.ArrayLike | None = None,
    depth_m: npt.NDArray[np.floating] | None = None,
    *,
    raw_pixels: bool = False,
) -> Float32:
    """Flow [H, W, 2] in px/s (x, y) of a scene before a camera that moves.

    A point at P = Z (x, y, 1) moves by P' = -omega x P - v, so that x' = (P'_x - x P'_z) / Z and
    y' = (P'_y - y P'_z) / Z (Longuet-Higgins and Prazdny, The Interpretation of a Moving Retinal
    Image, 1980), and its pixel by K times that; on raw pixels by the lens' own derivative.

    Args:
        camera: whose pixels.
        angular_velocity: [3] rad/s, camera frame.
        linear_velocity: [3] or [H, W, 3] m/s, camera frame: of the camera against what each pixel
            sees; None: it only turns.
        depth_m: [H, W] m along the optical axis of what each pixel sees, NaN or infinite: nothing;
            needed where there is a linear velocity.
        raw_pixels: on the sensor's own pixels, distorted; else on those of the same camera without
            distortion, as the flow of a calibrated camera is estimated.

    Returns:
        float32; NaN where nothing is seen (depth NaN), or raw pixels have no bearing.

    Raises:
        ValueError: a linear velocity without depth, or a depth of another size.
    """
    bearings = _raw_bearings(camera) if raw_pixels else undistorted_bearings(camera)
    omega = np.asarray(angular_velocity, np.float64)
    moving = np.cross(bearings, omega)  # -omega x P / Z
    if linear_velocity is not None:
        if depth_m is None or depth_m.shape != bearings.shape[:2]:
            found = "none" if depth_m is None else list(depth_m.shape)
            raise ValueError(f"depth {found}, expected {list(bearings.shape[:2])}")
        moving -= np.asarray(linear_velocity, np.float64) / np.asarray(depth_m, float)[..., None]
    rate = moving[..., :2] - bearings[..., :2] * moving[..., 2:]
    if not raw_pixels:
        return (rate @ camera.K[:2, :2].T).astype(np.float32)
    rate = np.concatenate([rate, np.zeros_like(rate[..., :1])], axis=-1)
    after, before = (camera.project(bearings + step * rate) for step in (_STEP_S, -_STEP_S))
    return ((after - before) / (2 * _STEP_S)).astype(np.float32)


def _raw_bearings(camera: Camera) -> Float64:
    """[H, W, 3] (X/Z, Y/Z, 1) of the sensor's own pixels; NaN where they do not look ahead."""
    bearings = camera.bearings.astype(np.float64)
    ahead = np.where(bearings[..., 2:] > 0, bearings[..., 2:], np.nan)
    return bearings / ahead
