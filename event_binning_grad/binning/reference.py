"""The plain torch reference of the operator: any device, any number of dimensions, no tricks.

`splat` and `pull_back` stand under the same names in `cpu`, which must agree with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from event_binning_grad.binning.kernels import KernelPair, PiecewisePolynomial


@dataclass(frozen=True)
class Grid:
    """Where the bins are: bin j of dimension d is centred at origin[d] + j * bin_size[d]."""

    shape: tuple[int, ...]
    origin: tuple[float, ...]
    bin_size: tuple[float, ...]


def splat(coords: Tensor, weights: Tensor, grid: Grid, kernels: KernelPair) -> Tensor:
    """Forward pass: h_j = sum_i w_i k((x_i - centre_j) / bin_size).

    Args:
        coords: [B, N, D].
        weights: [B, N].

    Returns:
        [B, *grid.shape].
    """
    batch, bins = coords.shape[0], math.prod(grid.shape)
    image = coords.new_zeros(batch * bins)
    kernel_of_dimension = [kernels.binning] * coords.shape[-1]
    for index, value, inside in _taps(coords, grid, kernel_of_dimension):
        row = torch.arange(batch, device=coords.device)[:, None] * bins
        image.index_add_(0, (row + index)[inside], (weights * value)[inside])
    return image.view(batch, *grid.shape)


def pull_back(
    cotangent: Tensor, coords: Tensor, weights: Tensor, grid: Grid, kernels: KernelPair
) -> tuple[Tensor, Tensor]:
    """Backward pass, from c_j = dL/dh_j to the events.

    dL/dx_i = w_i / bin_size * sum_j c_j kappa'((x_i - centre_j) / bin_size)
    dL/dw_i =                  sum_j c_j k((x_i - centre_j) / bin_size)      (h is linear in w)

    Args:
        cotangent: [B, *grid.shape].
        coords: [B, N, D].
        weights: [B, N].

    Returns:
        gradients of coords [B, N, D] and of weights [B, N].
    """
    dimensions = coords.shape[-1]
    columns = []
    for d in range(dimensions):
        kernel_of_dimension = [kernels.synthesis] * dimensions
        kernel_of_dimension[d] = kernels.synthesis.derivative()
        columns.append(
            weights / grid.bin_size[d] * sample(cotangent, coords, grid, kernel_of_dimension)
        )
    to_coords = torch.stack(columns, -1)
    return to_coords, sample(cotangent, coords, grid, [kernels.binning] * dimensions)


def sample(
    image: Tensor, coords: Tensor, grid: Grid, kernels: Sequence[PiecewisePolynomial]
) -> Tensor:
    """sum_j image_j prod_d kernels[d]((x_d - centre_jd) / bin_size_d) at every event.

    Args:
        image: [B, *grid.shape].
        coords: [B, N, D].
        kernels: D kernels, or derivatives of kernels, one a dimension.

    Returns:
        [B, N]; zero for events whose taps all lie outside, and for NaN coordinates.
    """
    flat = image.flatten(1)
    result = coords.new_zeros(coords.shape[:-1])
    for index, value, inside in _taps(coords, grid, kernels):
        gathered = flat.gather(1, torch.where(inside, index, 0))
        result = result + torch.where(inside, gathered * value, 0)
    return result


def _taps(coords: Tensor, grid: Grid, kernels: Sequence[PiecewisePolynomial]):
    """Yields for every combination of taps: flat bin [B, N], kernel value [B, N], inside [B, N]."""
    first_bins, values = [], []
    usable = torch.ones(coords.shape[:-1], dtype=torch.bool, device=coords.device)
    for d, kernel in enumerate(kernels):
        u = (coords[..., d] - grid.origin[d]) / grid.bin_size[d] - kernel.shift
        # NaN and whatever is too far out for an integer never reach the cast. The comparison is
        # false for NaN; one tap more on each side than the support needs costs nothing.
        usable &= (u >= -kernel.taps - 1) & (u < grid.shape[d] + 1)
        u = torch.where(usable, u, 0)
        first = u.floor()
        first_bins.append(first.long())
        r = u - first
        values.append([_polynomial(tap, r) for tap in kernel.coefficients])
    for tap in product(*(range(kernel.taps) for kernel in kernels)):
        inside = usable
        index = torch.zeros_like(first_bins[0])
        value = torch.ones_like(values[0][0])
        for d, m in enumerate(tap):
            j = first_bins[d] + m
            inside = inside & (j >= 0) & (j < grid.shape[d])
            index = index * grid.shape[d] + j
            value = value * values[d][m]
        yield index, value, inside


def _polynomial(coefficients: Sequence[float], r: Tensor) -> Tensor:
    value = torch.full_like(r, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * r + c
    return value
