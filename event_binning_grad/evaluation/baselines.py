"""Contrast maximisation the plain way: a window's variance, its gradient by autograd, and an
optimiser of scipy on the value. What the estimator is measured against.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from event_binning_grad.binning import bin_events
from event_binning_grad.estimation.iwe_grid import iwe_grid
from event_binning_grad.events.types import NS_PER_S, Events
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.rotation import rotate

Float64 = npt.NDArray[np.float64]

# Points nearer to the image plane's horizon than this (z of a unit vector) are not projected.
_MIN_DEPTH = 0.1
METHODS = ("L-BFGS-B", "BFGS", "trust-exact")


class PlainContrast:
    """Variance of the image of warped events of one window under constant angular velocity.

    The image lies on the camera's undistorted pixels with a margin; the warp is the exact one, to
    the events' mean time.

    Args:
        camera: the calibration.
        events: the window.
        binning: kernel of the vote.
        reconstruction: kernel of the unbiased gradient; None: the raw gradient.
    """

    def __init__(
        self,
        camera: Camera,
        events: Events,
        *,
        binning: str = "linear",
        reconstruction: str | None = None,
    ) -> None:
        grid = iwe_grid(camera, turn_rad=0.0, scale=1.0)
        bearings = camera.bearings[events.y, events.x]
        seen = np.isfinite(bearings[:, 2])
        since = events.t - events.t[0]
        tau = ((since - since.mean()) / NS_PER_S).astype(np.float32)
        self._bearings = torch.from_numpy(bearings[seen])
        self._tau = torch.from_numpy(tau[seen])[:, None]
        self._matrix = torch.tensor(grid.matrix, dtype=torch.float32)
        self._offset = torch.tensor(grid.offset, dtype=torch.float32)
        self._shape = grid.bins(1.0).shape
        self._kernels: dict[str, Any] = {"binning": binning, "reconstruction": reconstruction}
        self.edge_px = grid.radius_px * float(since[-1]) / NS_PER_S / 2
        """Displacement (px a rad/s) of an event at the window's ends and the image's corner."""

    def variance(self, omega: Tensor) -> Tensor:
        """The image's variance at omega [3], differentiable."""
        points = rotate(self._tau * omega, self._bearings)
        depth = torch.where(points[:, 2:] > _MIN_DEPTH, points[:, 2:], torch.nan)
        coords = (points[:, :2] / depth @ self._matrix.T + self._offset).flip(1)
        return bin_events(coords, shape=self._shape, **self._kernels).var(correction=0)

    def value(self, omega: Float64) -> float:
        """Variance at omega [3]."""
        with torch.no_grad():
            return float(self.variance(torch.tensor(omega, dtype=torch.float32)))

    def value_and_gradient(self, omega: Float64) -> tuple[float, Float64]:
        """Variance at omega [3], and its gradient [3]."""
        parameters = torch.tensor(omega, dtype=torch.float32, requires_grad=True)
        value = self.variance(parameters)
        (gradient,) = torch.autograd.grad(value, parameters)
        return value.item(), gradient.double().numpy()

    def hessian(self, omega: Float64) -> Float64:
        """[3, 3] second derivatives at omega [3]."""
        parameters = torch.tensor(omega, dtype=torch.float32)
        second = torch.autograd.functional.hessian(self.variance, parameters)
        assert isinstance(second, Tensor)
        return second.double().numpy()


@dataclass(frozen=True)
class PlainSolution:
    """Where an optimiser ended.

    Attributes:
        angular_velocity: [3] rad/s.
        evaluations: of value and gradient, and of the Hessian where it asked for one.
        seconds: what it took, the window's preparation included.
    """

    angular_velocity: Float64
    evaluations: int
    seconds: float


def maximise_contrast(
    camera: Camera,
    events: Events,
    start: Float64,
    *,
    method: str = "L-BFGS-B",
    binning: str = "linear",
    reconstruction: str | None = None,
) -> PlainSolution:
    """Constant angular velocity of a window, by one of METHODS of scipy.optimize.

    Args:
        camera: the calibration.
        events: the window, times not decreasing.
        start: [3] rad/s.
        method: "L-BFGS-B" or "BFGS" on value and gradient, "trust-exact" with the Hessian, too.
        binning, reconstruction: as in `PlainContrast`.
    """
    began = time.perf_counter()
    contrast = PlainContrast(camera, events, binning=binning, reconstruction=reconstruction)
    start = np.asarray(start, np.float64)
    solution, evaluations = maximise(
        contrast.value_and_gradient, contrast.hessian, start, contrast.edge_px, method
    )
    return PlainSolution(solution, evaluations, time.perf_counter() - began)


def maximise(
    value_and_gradient: Callable[[Float64], tuple[float, Float64]],
    hessian: Callable[[Float64], Float64],
    start: Float64,
    pixels_per_unit: float | Float64,
    method: str,
) -> tuple[Float64, int]:
    """The maximum that a method of scipy.optimize finds, and its number of evaluations.

    Parameters are given to it in pixels of displacement and values relative to that at the start:
    first steps and tolerances then mean the same for every window.

    Args:
        value_and_gradient: at parameters [P].
        hessian: [P, P]; asked for by METHODS that use it.
        start: [P].
        pixels_per_unit: of every parameter, or [P].
        method: one of METHODS.
    """
    from scipy.optimize import minimize

    scale = np.broadcast_to(pixels_per_unit, np.shape(start))
    unit = max(abs(value_and_gradient(start)[0]), 1e-30)
    evaluations = 1

    def objective(pixels: Float64) -> tuple[float, Float64]:
        nonlocal evaluations
        evaluations += 1
        value, gradient = value_and_gradient(pixels / scale)
        return -value / unit, -gradient / (unit * scale)

    def curvature(pixels: Float64) -> Float64:
        nonlocal evaluations
        evaluations += 1
        return -hessian(pixels / scale) / (unit * np.outer(scale, scale))

    wants_hessian = {"hess": curvature} if method.startswith("trust") else {}
    found = minimize(objective, start * scale, jac=True, method=method, **wants_hessian)
    return found.x / scale, evaluations
