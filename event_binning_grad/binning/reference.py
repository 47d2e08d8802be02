"""The plain torch reference of the operator: any device, any number of dimensions, no tricks.

`splat`, `pull_back`, `splat_tangent` and `pull_back_tangent` stand under the same names in `cpu`
(numba) and `cuda` (Triton), which must agree with them.

Notation: event i at x_i [D] with weight w_i, bin j centred at origin + j * bin_size,
u = (x_i - centre_j) / bin_size, k the binning kernel, kappa the synthesis kernel, products over the
dimensions; kappa^d is the product with the derivative kappa' in dimension d, kappa^de with the
derivatives in d and e (kappa'' where d = e).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from event_binning_grad.binning.kernels import KernelPair, TapTable


@dataclass(frozen=True)
class Grid:
    """Where the bins are: bin j of dimension d is centred at origin[d] + j * bin_size[d]."""

    shape: tuple[int, ...]
    origin: tuple[float, ...]
    bin_size: tuple[float, ...]


Pairs = Sequence[KernelPair]
"""The kernels of the dimensions, one pair for each."""


def splat(coords: Tensor, weights: Tensor, grid: Grid, pairs: Pairs) -> Tensor:
    """Forward pass: h_j = sum_i w_i k(u_ij).

    Args:
        coords: [B, N, D].
        weights: [B, N].

    Returns:
        [B, *grid.shape].
    """
    return scatter(coords, weights, grid, [pair.binning for pair in pairs])


def pull_back(
    cotangent: Tensor,
    coords: Tensor,
    weights: Tensor,
    grid: Grid,
    pairs: Pairs,
    want_coords: bool = True,
    want_weights: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Backward pass, from c_j = dL/dh_j to the events.

    dL/dx_id = w_i / bin_size_d * sum_j c_j kappa^d(u_ij)
    dL/dw_i  =                    sum_j c_j k(u_ij)                     (exact: h is linear in w)

    Args:
        cotangent: [B, *grid.shape].
        coords: [B, N, D].
        weights: [B, N].
        want_coords, want_weights: which of the two to compute.

    Returns:
        gradients of coords [B, N, D] and of weights [B, N], None where not wanted.
    """
    to_coords = to_weights = None
    if want_coords:
        columns = [
            weights / grid.bin_size[d] * sample(cotangent, coords, grid, _slopes(pairs, d))
            for d in range(len(pairs))
        ]
        to_coords = torch.stack(columns, -1)
    if want_weights:
        to_weights = sample(cotangent, coords, grid, [pair.weights for pair in pairs])
    return to_coords, to_weights


def splat_tangent(
    coords: Tensor,
    weights: Tensor,
    coords_tangent: Tensor,
    weights_tangent: Tensor | None,
    grid: Grid,
    pairs: Pairs,
) -> Tensor:
    """The image's change along a tangent (dx, dw): the transpose of `pull_back`.

    dh_j = sum_i [ w_i sum_d dx_id / bin_size_d kappa^d(u_ij) + dw_i k(u_ij) ]

    Args:
        coords, coords_tangent: [B, N, D].
        weights, weights_tangent: [B, N]; None for a tangent of zero.

    Returns:
        [B, *grid.shape].
    """
    image = coords.new_zeros(coords.shape[0], *grid.shape)
    for d, tangent in enumerate(coords_tangent.unbind(-1)):
        along = weights * tangent / grid.bin_size[d]
        image = image + scatter(coords, along, grid, _slopes(pairs, d))
    if weights_tangent is not None:
        image = image + scatter(coords, weights_tangent, grid, [pair.weights for pair in pairs])
    return image


def pull_back_tangent(
    cotangent: Tensor,
    coords: Tensor,
    weights: Tensor,
    coords_tangent: Tensor,
    weights_tangent: Tensor | None,
    grid: Grid,
    pairs: Pairs,
) -> tuple[Tensor, Tensor]:
    """The change of `pull_back`'s result along a tangent (dx, dw), with the cotangent held fixed.

    The product of a symmetric matrix with the tangent, hence its own transpose.

    ddx_ie = w_i sum_d dx_id / (bin_size_d bin_size_e) sum_j c_j kappa^de(u_ij)
             + dw_i / bin_size_e sum_j c_j kappa^e(u_ij)
    ddw_i  = sum_d dx_id / bin_size_d sum_j c_j kappa^d(u_ij)

    Args:
        cotangent: [B, *grid.shape].
        coords, coords_tangent: [B, N, D].
        weights, weights_tangent: [B, N]; None for a tangent of zero.

    Returns:
        [B, N, D] and [B, N].
    """
    dimensions = len(pairs)
    in_bins = [coords_tangent[..., d] / grid.bin_size[d] for d in range(dimensions)]
    to_weights = torch.zeros_like(weights)
    columns = []
    for e in range(dimensions):
        slope = sample(cotangent, coords, grid, _slopes(pairs, e))
        to_weights = to_weights + in_bins[e] * slope
        column = torch.zeros_like(weights)
        for d in range(dimensions):
            bend = sample(cotangent, coords, grid, _slopes(pairs, d, e))
            column = column + weights * in_bins[d] * bend
        if weights_tangent is not None:
            column = column + weights_tangent * slope
        columns.append(column / grid.bin_size[e])
    return torch.stack(columns, -1), to_weights


def splat_second_tangent(
    coords: Tensor,
    weights: Tensor,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    grid: Grid,
    pairs: Pairs,
) -> Tensor:
    """The image's second change, along two tangents (dx, dw) [B, N, D] and [B, N].

    d2h_j = sum_i [ w_i sum_de dx_id dx2_ie / (bin_size_d bin_size_e) kappa^de(u_ij)
                    + sum_d (dw_i dx2_id + dw2_i dx_id) / bin_size_d kappa^d(u_ij) ]

    For forward mode over forward mode, which no estimator needs fast: it has no twins.
    """
    (dx, dw), (dx2, dw2) = first, second
    image = coords.new_zeros(coords.shape[0], *grid.shape)
    for d in range(len(pairs)):
        both = (dw * dx2[..., d] + dw2 * dx[..., d]) / grid.bin_size[d]
        image = image + scatter(coords, both, grid, _slopes(pairs, d))
        for e in range(len(pairs)):
            both = weights * dx[..., d] * dx2[..., e] / (grid.bin_size[d] * grid.bin_size[e])
            image = image + scatter(coords, both, grid, _slopes(pairs, d, e))
    return image


def scatter(coords: Tensor, weights: Tensor, grid: Grid, tables: Sequence[TapTable]) -> Tensor:
    """sum_i w_i prod_d tables[d](u_ijd) in every bin; an event with NaN coordinates adds nothing.

    Args:
        coords: [B, N, D].
        weights: [B, N].
        tables: D kernels, or derivatives of kernels, one a dimension.

    Returns:
        [B, *grid.shape].
    """
    batch, bins = coords.shape[0], math.prod(grid.shape)
    row = torch.arange(batch, device=coords.device)[:, None] * bins
    image = coords.new_zeros(batch * bins)
    for index, value, inside in _taps(coords, grid, tables):
        # No selection by a mask: its size would have to be known, which stops the GPU.
        added = torch.where(inside, weights * value, 0)
        image.index_add_(0, (row + index).flatten(), added.flatten())
    return image.view(batch, *grid.shape)


def sample(image: Tensor, coords: Tensor, grid: Grid, tables: Sequence[TapTable]) -> Tensor:
    """sum_j image_j prod_d tables[d](u_ijd) at every event: the transpose of `scatter`.

    Args:
        image: [B, *grid.shape].
        coords: [B, N, D].
        tables: D kernels, or derivatives of kernels, one a dimension.

    Returns:
        [B, N]; zero for events whose taps all lie outside, and for NaN coordinates.
    """
    flat = image.flatten(1)
    result = coords.new_zeros(coords.shape[:-1])
    for index, value, inside in _taps(coords, grid, tables):
        result = result + torch.where(inside, flat.gather(1, index) * value, 0)
    return result


def _slopes(pairs: Pairs, *dimensions: int) -> list[TapTable]:
    """The synthesis kernels, differentiated once for every time that a dimension is named."""
    tables = [pair.synthesis for pair in pairs]
    for d in dimensions:
        tables[d] = tables[d].derivative
    return tables


def _taps(
    coords: Tensor, grid: Grid, tables: Sequence[TapTable]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields for every combination of taps: flat bin, kernel value, inside; [B, N] each.

    The flat bin is 0 for what is not inside.
    """
    first_bins, values = [], []
    usable = torch.ones(coords.shape[:-1], dtype=torch.bool, device=coords.device)
    for d, table in enumerate(tables):
        # A tensor, since CUDA multiplies by the reciprocal of a number, and an event on a bin's
        # border must fall into the same bin everywhere.
        bin_size = coords.new_full((), grid.bin_size[d])
        u = (coords[..., d] - grid.origin[d]) / bin_size - table.shift
        # NaN and whatever is too far out for an integer never reach the cast. The comparison is
        # false for NaN; one tap more on each side than the support needs costs nothing.
        usable = usable & (u >= -table.taps - 1) & (u < grid.shape[d] + 1)
        u = torch.where(usable, u, 0)
        first = u.floor()
        first_bins.append(first.long())
        values.append(_values(u - first, table))
    for tap in product(*(range(table.taps) for table in tables)):
        inside = usable
        index = torch.zeros_like(first_bins[0])
        value = torch.ones_like(values[0][0])
        for d, m in enumerate(tap):
            j = first_bins[d] + m
            inside = inside & (j >= 0) & (j < grid.shape[d])
            index = index * grid.shape[d] + j
            value = value * values[d][m]
        yield torch.where(inside, index, 0), value, inside


def _values(r: Tensor, table: TapTable) -> list[Tensor]:
    """The taps' values at fractional positions r in [0, 1)."""
    # One segment after the other, the later ones over the earlier: no table on the device.
    values = [_polynomial(tap, r) for tap in table.coefficients[0]]
    for start, segment in zip(table.starts[1:], table.coefficients[1:], strict=True):
        x = r - start
        values = [
            torch.where(x >= 0, _polynomial(tap, x), value)
            for tap, value in zip(segment, values, strict=True)
        ]
    return values


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value
