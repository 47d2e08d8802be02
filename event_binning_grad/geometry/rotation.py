"""Rotations of bearings: the exact warp of a rotating camera, and its derivative.

Sources: Rodrigues' formula; the left Jacobian of SO(3) as in Barfoot, State Estimation for
Robotics, section 7.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Below this squared angle (rad^2) the closed forms lose digits to cancellation and the series,
# cut after s^4, is exact to float64: (0.01)^5 / 13! < 1e-19.
_SERIES_BELOW = 0.01


def so3_coefficients(squared_angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sin(a)/a, (1 - cos a)/a^2 and (a - sin a)/a^3 of s = a^2, smooth at zero.

    Args:
        squared_angle: [...] rad^2, not negative.

    Returns:
        three tensors of the same shape.
    """
    s = squared_angle
    small = s < _SERIES_BELOW
    # The closed form gets a harmless angle where the series is used: its derivative would be NaN
    # at zero, and NaN survives torch.where in a backward pass.
    safe = torch.where(small, torch.ones_like(s), s)
    angle = safe.sqrt()
    closed = (angle.sin() / angle, 2 * (angle / 2).sin() ** 2 / safe)
    closed += ((1 - closed[0]) / safe,)
    series = (
        1 - s / 6 * (1 - s / 20 * (1 - s / 42 * (1 - s / 72))),
        0.5 * (1 - s / 12 * (1 - s / 30 * (1 - s / 56 * (1 - s / 90)))),
        (1 - s / 20 * (1 - s / 42 * (1 - s / 72 * (1 - s / 110)))) / 6,
    )
    a, b, c = (torch.where(small, x, y) for x, y in zip(series, closed, strict=True))
    return a, b, c


def rotate(rotation_vector: Tensor, points: Tensor) -> Tensor:
    """Exp(rotation_vector) applied to points, exact and differentiable everywhere.

    Args:
        rotation_vector: [..., 3] rad.
        points: [..., 3].

    Returns:
        [..., 3] rotated points.
    """
    sine, versine, _ = so3_coefficients((rotation_vector**2).sum(-1, keepdim=True))
    rotation_vector, points = torch.broadcast_tensors(rotation_vector, points)
    once = torch.linalg.cross(rotation_vector, points)
    return points + sine * once + versine * torch.linalg.cross(rotation_vector, once)


def left_jacobian_transposed(rotation_vector: Tensor, vector: Tensor) -> Tensor:
    """J_l(rotation_vector)^T vector.

    With y = Exp(r) x, a change dr of the rotation vector moves y by (J_l(r) dr) x y. So for a
    covector q on y, the covector on r is J_l(r)^T (y x q).

    Args:
        rotation_vector: [..., 3] rad.
        vector: [..., 3].

    Returns:
        [..., 3].
    """
    _, versine, third = so3_coefficients((rotation_vector**2).sum(-1, keepdim=True))
    rotation_vector, vector = torch.broadcast_tensors(rotation_vector, vector)
    once = torch.linalg.cross(rotation_vector, vector)
    return vector - versine * once + third * torch.linalg.cross(rotation_vector, once)
