"""The operator's CPU back end: one fused numba pass over the events in each direction.

Twin of `reference` for up to three dimensions. The result is the same bit for bit at any number of
threads: the work is cut into parts by the size of the problem alone, every part has its own image,
and the parts are added in order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from event_binning_grad.binning.kernels import KernelPair, PiecewisePolynomial
from event_binning_grad.binning.reference import Grid
from event_binning_grad.numba_threads import parallel_section

MAX_DIMENSIONS = 3

# A part must hold enough events to pay for zeroing and adding its own image.
_EVENTS_A_PART = 16384
_MAX_PARTS = 16

# Events are gathered in blocks of this many, the unit of work for a thread.
_EVENTS_A_BLOCK = 4096


def splat(coords: Tensor, weights: Tensor, grid: Grid, kernels: KernelPair) -> Tensor:
    """See `reference.splat`."""
    batch, events, dimensions = coords.shape
    image = torch.empty((batch, *grid.shape), dtype=coords.dtype)
    parts = _parts(events, image[0].numel() if batch else 0)
    scatter = _compile_splat(dimensions, kernels.binning, _numpy_dtype(coords))
    with parallel_section():
        scatter(
            _array(coords), _array(weights), *_grid_arrays(grid, coords), parts,
            _padded_shape(image).numpy(),
        )  # fmt: skip
    return image


def pull_back(
    cotangent: Tensor, coords: Tensor, weights: Tensor, grid: Grid, kernels: KernelPair
) -> tuple[Tensor, Tensor]:
    """See `reference.pull_back`."""
    to_coords = torch.empty(coords.shape, dtype=coords.dtype)
    to_weights = torch.empty(weights.shape, dtype=coords.dtype)
    gather = _compile_pull_back(coords.shape[-1], kernels, _numpy_dtype(coords))
    with parallel_section():
        gather(
            _array(_padded_shape(cotangent)), _array(coords), _array(weights),
            *_grid_arrays(grid, coords), to_coords.numpy(), to_weights.numpy(),
        )  # fmt: skip
    return to_coords, to_weights


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _padded_shape(image: Tensor) -> Tensor:
    """[B, *shape] seen as [B, n0, n1, n2], leading dimensions of one bin."""
    missing = MAX_DIMENSIONS + 1 - image.dim()
    return image.reshape(image.shape[0], *(1,) * missing, *image.shape[1:])


def _numpy_dtype(tensor: Tensor) -> type:
    return np.float32 if tensor.dtype == torch.float32 else np.float64


def _grid_arrays(grid: Grid, coords: Tensor) -> tuple[np.ndarray, np.ndarray]:
    dtype = _numpy_dtype(coords)
    return np.array(grid.origin, dtype), np.array(grid.bin_size, dtype)


def _parts(events: int, bins: int) -> int:
    return max(1, min(_MAX_PARTS, events // max(_EVENTS_A_PART, bins // 4)))


@lru_cache
def _compile_taps(dimensions: int, kernel: PiecewisePolynomial, dtype: type) -> Any:
    """A function that writes an event's first bins and tap values, dimension by dimension.

    first[d] and values[d, m] are filled for the last `dimensions` of three dimensions; it returns
    False for an event out of reach (NaN too).
    """
    skipped = MAX_DIMENSIONS - dimensions
    shift = dtype(kernel.shift)
    taps = kernel.taps
    coefficients = np.array(kernel.coefficients, dtype)
    degree = coefficients.shape[1] - 1

    @numba.njit(inline="always", error_model="numpy")
    def fill(position, origin, bin_size, shape, first, values):
        for d in range(dimensions):
            u = (position[d] - origin[d]) / bin_size[d] - shift
            if not (u >= -taps - 1 and u < shape[skipped + d] + 1):
                return False
            j = np.floor(u)
            r = u - j
            first[skipped + d] = np.int64(j)
            for m in range(taps):
                value = coefficients[m, degree]
                for n in range(degree - 1, -1, -1):
                    value = value * r + coefficients[m, n]
                values[skipped + d, m] = value
        return True

    return fill


@lru_cache
def _compile_splat(dimensions: int, kernel: PiecewisePolynomial, dtype: type) -> Any:
    fill = _compile_taps(dimensions, kernel, dtype)
    taps = kernel.taps
    # How many taps each of the three dimensions has; an absent one has a single tap of value 1.
    taps0, taps1 = (taps if dimensions > 2 else 1), (taps if dimensions > 1 else 1)

    @numba.njit(nogil=True, error_model="numpy")
    def scatter_part(coords, weights, origin, bin_size, start, stop, image):
        n0, n1, n2 = image.shape
        first = np.zeros(3, np.int64)
        values = np.ones((3, taps), dtype)
        image[:] = 0
        for i in range(start, stop):
            if not fill(coords[i], origin, bin_size, image.shape, first, values):
                continue
            for m0 in range(taps0):
                j0 = first[0] + m0
                if j0 < 0 or j0 >= n0:
                    continue
                for m1 in range(taps1):
                    j1 = first[1] + m1
                    if j1 < 0 or j1 >= n1:
                        continue
                    outer = weights[i] * values[0, m0] * values[1, m1]
                    for m2 in range(taps):
                        j2 = first[2] + m2
                        if j2 >= 0 and j2 < n2:
                            image[j0, j1, j2] += outer * values[2, m2]

    @numba.njit(nogil=True, parallel=True, error_model="numpy")
    def scatter(coords, weights, origin, bin_size, parts, image):
        batch, events = weights.shape
        if parts == 1:
            for b in numba.prange(batch):
                scatter_part(coords[b], weights[b], origin, bin_size, 0, events, image[b])
            return
        n0, n1, n2 = image.shape[1:]
        partial = np.empty((parts, n0, n1, n2), dtype)
        for b in range(batch):
            for p in numba.prange(parts):
                start, stop = events * p // parts, events * (p + 1) // parts
                scatter_part(coords[b], weights[b], origin, bin_size, start, stop, partial[p])
            for row in numba.prange(n0 * n1):
                j0, j1 = row // n1, row % n1
                for j2 in range(n2):
                    total = partial[0, j0, j1, j2]
                    for p in range(1, parts):
                        total += partial[p, j0, j1, j2]
                    image[b, j0, j1, j2] = total

    return scatter


@lru_cache
def _compile_pull_back(dimensions: int, kernels: KernelPair, dtype: type) -> Any:
    fill_value = _compile_taps(dimensions, kernels.binning, dtype)
    fill_synthesis = _compile_taps(dimensions, kernels.synthesis, dtype)
    fill_slope = _compile_taps(dimensions, kernels.synthesis.derivative(), dtype)
    taps_k, taps_s = kernels.binning.taps, kernels.synthesis.taps
    skipped = MAX_DIMENSIONS - dimensions

    @numba.njit(inline="always", error_model="numpy")
    def dot(image, first, v0, v1, v2, taps):
        n0, n1, n2 = image.shape
        total = dtype(0)
        for m0 in range(taps if dimensions > 2 else 1):
            j0 = first[0] + m0
            if j0 < 0 or j0 >= n0:
                continue
            for m1 in range(taps if dimensions > 1 else 1):
                j1 = first[1] + m1
                if j1 < 0 or j1 >= n1:
                    continue
                inner = dtype(0)
                for m2 in range(taps):
                    j2 = first[2] + m2
                    if j2 >= 0 and j2 < n2:
                        inner += image[j0, j1, j2] * v2[m2]
                total += v0[m0] * v1[m1] * inner
        return total

    @numba.njit(nogil=True, error_model="numpy")
    def gather_part(image, coords, weights, origin, bin_size, start, stop, to_coords, to_weights):
        first = np.zeros(3, np.int64)
        values = np.ones((3, taps_k), dtype)
        synthesis, slopes = np.ones((3, taps_s), dtype), np.ones((3, taps_s), dtype)
        for i in range(start, stop):
            to_weights[i] = 0
            if fill_value(coords[i], origin, bin_size, image.shape, first, values):
                to_weights[i] = dot(image, first, values[0], values[1], values[2], taps_k)
            to_coords[i] = 0
            if not fill_synthesis(coords[i], origin, bin_size, image.shape, first, synthesis):
                continue
            fill_slope(coords[i], origin, bin_size, image.shape, first, slopes)
            for d in range(dimensions):
                v0 = slopes[0] if d + skipped == 0 else synthesis[0]
                v1 = slopes[1] if d + skipped == 1 else synthesis[1]
                v2 = slopes[2] if d + skipped == 2 else synthesis[2]
                slope = dot(image, first, v0, v1, v2, taps_s)
                to_coords[i, d] = weights[i] / bin_size[d] * slope

    @numba.njit(nogil=True, parallel=True, error_model="numpy")
    def gather(image, coords, weights, origin, bin_size, to_coords, to_weights):
        batch, events = weights.shape
        blocks = (events + _EVENTS_A_BLOCK - 1) // _EVENTS_A_BLOCK
        for job in numba.prange(batch * blocks):
            b, start = job // blocks, job % blocks * _EVENTS_A_BLOCK
            stop = min(start + _EVENTS_A_BLOCK, events)
            gather_part(
                image[b], coords[b], weights[b], origin, bin_size, start, stop,
                to_coords[b], to_weights[b],
            )  # fmt: skip

    return gather
