"""Contrast of the image of warped events (IWE) under a rotating camera, with its derivatives.

The camera turns by theta(tau) = omega tau + alpha tau^2 / 2 between the reference time (the events'
mean time, tau = 0) and an event. The event's bearing b, seen from the reference time, is
Exp(theta(tau)) b; its image on the IWE is binned by a bilinear vote; the contrast is the image's
variance. The gradient is the unbiased one of the binning operator.

The Hessian is the fixed-cotangent one: with c_j = dL/dh_j held fixed, sum_i J_i^T [sum_j c_j
kappa''] J_i. The term left out nearly cancels because the reference time is amid the events:
those before and after it pull a pixel opposite ways.

This module is the plain torch path, on any device, through `bin_events`. `contrast_cpu` is its
fused twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from event_binning_grad.binning import bin_events
from event_binning_grad.binning.kernels import bspline, kernel_pair
from event_binning_grad.binning.reference import sample
from event_binning_grad.estimation.iwe_grid import IweGrid
from event_binning_grad.geometry.rotation import left_jacobian_transposed, rotate

Float64 = npt.NDArray[np.float64]

# Points nearer to the image plane's horizon than this (z of a unit vector) are not projected.
MIN_DEPTH = 0.1


@dataclass(frozen=True)
class ContrastPass:
    """What one pass over the events tells of the contrast at some motion parameters.

    The six parameters are omega (rad/s) and alpha T / 4 (rad/s), T the window's span: scaled so,
    equal parts move the events at the window's ends by equal amounts.

    Attributes:
        value: variance of the IWE (events^2 a bin).
        gradient: [6].
        hessian: [6, 6] fixed-cotangent Hessian.
        scatter: [6, 6] sum over the events of the outer products of their gradients.
    """

    value: float
    gradient: Float64
    hessian: Float64
    scatter: Float64


@dataclass(frozen=True)
class WindowEvents:
    """A window's events as the contrast needs them.

    Attributes:
        bearings: [3, N] float32 unit vectors, camera frame, NaN where the pixel has none.
        tau: [N] float32 seconds from the reference time.
        span_s: the window's duration T.
    """

    bearings: npt.NDArray[np.float32]
    tau: npt.NDArray[np.float32]
    span_s: float


class Contrast(Protocol):
    """The contrast of one window of events at a time, on some back end."""

    def load(self, window: WindowEvents) -> None:
        """Takes the window that the other methods are about; its arrays are not copied."""
        ...

    def evaluate(self, parameters: Float64, bin_size: float) -> ContrastPass:
        """One pass at motion parameters [6], with bins of bin_size pixels."""
        ...

    def iwe(self, parameters: Float64, bin_size: float) -> npt.NDArray[np.float32]:
        """[H, W] image of warped events at motion parameters [6]; valid until the next call."""
        ...


class TorchContrast:
    """`Contrast` by plain torch operations, on any device."""

    def __init__(self, grid: IweGrid, unbiased: bool, device: str) -> None:
        self._grid = grid
        self._reconstruction = "linear" if unbiased else None
        self._matrix = torch.tensor(grid.matrix, dtype=torch.float32, device=device)
        self._offset = torch.tensor(grid.offset, dtype=torch.float32, device=device)

    def load(self, window: WindowEvents) -> None:
        device = self._matrix.device
        self._bearings = torch.from_numpy(window.bearings).T.to(device)
        self._tau = torch.from_numpy(window.tau).to(device)[:, None]
        self._span_s = window.span_s

    def iwe(self, parameters: Float64, bin_size: float) -> npt.NDArray[np.float32]:
        theta, _ = self._rotation_vectors(parameters)
        return self._bin(self._image(rotate(theta, self._bearings)), bin_size).cpu().numpy()

    def evaluate(self, parameters: Float64, bin_size: float) -> ContrastPass:
        theta, columns = self._rotation_vectors(parameters)
        warped = rotate(theta, self._bearings)
        coords = self._image(warped).requires_grad_()
        image = self._bin(coords, bin_size)
        value = image.var(correction=0)
        cotangent, slope = torch.autograd.grad(value, (image, coords))

        # Covectors on theta of the image coordinates (v, u): [N, 2, 3].
        covectors = left_jacobian_transposed(theta[:, None], self._covectors(warped))
        # Events that are not projected have no slope; their covectors must not be NaN.
        covectors = torch.where(warped[:, 2:, None] > MIN_DEPTH, covectors, 0)
        # d theta / d parameters is (tau I, 2 tau^2 / T I), so an event's Jacobian is the Kronecker
        # product of these two columns with its covectors.
        jacobian = torch.einsum("nk,nij->nikj", columns, covectors).flatten(2)
        gradients = torch.einsum("ni,nip->np", slope, jacobian)
        curvature = self._curvature(cotangent, coords.detach(), bin_size)
        hessian = torch.einsum("nip,nij,njq->pq", jacobian, curvature, jacobian)
        return ContrastPass(
            value.item(),
            _float64(gradients.sum(0)),
            _float64(hessian),
            _float64(gradients.T @ gradients),
        )

    def _rotation_vectors(self, parameters: Float64) -> tuple[Tensor, Tensor]:
        """theta [N, 3] and the two columns (tau, 2 tau^2 / T) [N, 2]."""
        omega, scaled_alpha = self._bearings.new_tensor(parameters).view(2, 3)
        columns = torch.cat([self._tau, self._tau**2 * (2 / self._span_s)], 1)
        return columns[:, :1] * omega + columns[:, 1:] * scaled_alpha, columns

    def _image(self, points: Tensor) -> Tensor:
        """Points [N, 3] in front of the camera -> (v, u) [N, 2]; NaN for those behind."""
        depth = torch.where(points[:, 2:] > MIN_DEPTH, points[:, 2:], torch.nan)
        return (points[:, :2] / depth @ self._matrix.T + self._offset).flip(1)

    def _covectors(self, points: Tensor) -> Tensor:
        """y x dv/dy and y x du/dy for points y [N, 3]: [N, 2, 3]."""
        depth = points[:, 2:, None]
        normalised = points[:, None, :2] / depth
        rows = self._matrix.flip(0).expand(len(points), 2, 2)
        last = -(rows * normalised).sum(-1, keepdim=True)
        return torch.linalg.cross(points[:, None, :], torch.cat([rows, last], -1) / depth)

    def _bin(self, coords: Tensor, bin_size: float) -> Tensor:
        return bin_events(
            coords,
            shape=self._grid.bins(bin_size).shape,
            binning="linear",
            reconstruction=self._reconstruction,
            bin_size=bin_size,
        )

    def _curvature(self, cotangent: Tensor, coords: Tensor, bin_size: float) -> Tensor:
        """[N, 2, 2] second derivatives by kappa''. The raw gradient has none of its own (a hat is
        straight), so it is given the same curvature and differs in the gradient alone."""
        kappa = kernel_pair(bspline(1), bspline(1), precision="float32").synthesis
        first, second = kappa.derivative, kappa.derivative.derivative
        grid = self._grid.bins(bin_size)

        def term(*kernels):
            return sample(cotangent[None], coords[None], grid, kernels)[0] / bin_size**2

        mixed = term(first, first)
        rows = [term(second, kappa), mixed, mixed, term(kappa, second)]
        return torch.stack(rows, -1).view(-1, 2, 2)


def _float64(tensor: Tensor) -> Float64:
    return tensor.detach().double().cpu().numpy()
