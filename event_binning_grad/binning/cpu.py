"""The operator's CPU back end: one fused numba pass over the events in each direction.

Twin of `reference` for up to three dimensions. The result is the same bit for bit at any number of
threads: the work is cut into parts by the size of the problem alone, every part has its own image,
and the parts are added in order.

The compiled functions are cached on disk, one for each type of their arguments: kernels come as
flat tuples, so that their numbers of taps and coefficients are part of the type and the loops over
them unroll; so does the number of dimensions.
"""

from __future__ import annotations

import math
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


_FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "cache": True}


def splat(coords: Tensor, weights: Tensor, grid: Grid, kernels: KernelPair) -> Tensor:
    """See `reference.splat`."""
    batch, events, _ = coords.shape
    image = torch.empty((batch, *grid.shape), dtype=coords.dtype)
    images = _padded_shape(image).numpy()
    parts = _parts(events, math.prod(grid.shape))
    arguments: list[Any] = [
        _array(coords), _array(weights), *_grid_tuples(grid, coords),
        *_kernel_tuples(kernels.binning, _numpy_dtype(coords)),
    ]  # fmt: skip
    with parallel_section():
        if parts == 1:
            _scatter(images, 0, 1, *arguments)
            return image
        partial = np.empty((parts, *images.shape[1:]), images.dtype)
        for b in range(batch):
            _scatter(partial, b, parts, *arguments)
            _add_parts(partial, images[b])
    return image


def pull_back(
    cotangent: Tensor, coords: Tensor, weights: Tensor, grid: Grid, kernels: KernelPair
) -> tuple[Tensor, Tensor]:
    """See `reference.pull_back`."""
    to_coords = torch.empty(coords.shape, dtype=coords.dtype)
    to_weights = torch.empty(weights.shape, dtype=coords.dtype)
    dtype = _numpy_dtype(coords)
    arguments: list[Any] = [
        _array(_padded_shape(cotangent)), _array(coords), _array(weights),
        *_grid_tuples(grid, coords),
        *_kernel_tuples(kernels.binning, dtype),
        *_kernel_tuples(kernels.synthesis, dtype),
        _kernel_tuples(kernels.synthesis.derivative(), dtype)[1],  # its shift is kappa's
        to_coords.numpy(), to_weights.numpy(),
    ]  # fmt: skip
    with parallel_section():
        _gather(*arguments)
    return to_coords, to_weights


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _padded_shape(image: Tensor) -> Tensor:
    """[B, *shape] seen as [B, n0, n1, n2], leading dimensions of one bin."""
    missing = MAX_DIMENSIONS + 1 - image.dim()
    return image.reshape(image.shape[0], *(1,) * missing, *image.shape[1:])


def _numpy_dtype(tensor: Tensor) -> type:
    return np.float32 if tensor.dtype == torch.float32 else np.float64


def _grid_tuples(grid: Grid, coords: Tensor) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    dtype = _numpy_dtype(coords)
    return tuple(dtype(o) for o in grid.origin), tuple(dtype(s) for s in grid.bin_size)


@lru_cache
def _kernel_tuples(kernel: PiecewisePolynomial, dtype: type) -> tuple[tuple[Any, ...], ...]:
    """The kernel's shift once for every tap, and the taps' coefficients one after the other."""
    shifts = (dtype(kernel.shift),) * kernel.taps
    return shifts, tuple(dtype(c) for tap in kernel.coefficients for c in tap)


def _parts(events: int, bins: int) -> int:
    return max(1, min(_MAX_PARTS, events // max(_EVENTS_A_PART, bins // 4)))


@numba.njit(**_FLAGS)
def _fill(position, origin, bin_size, shape, shifts, coefficients, first, values):
    """Writes an event's first bins and tap values, dimension by dimension.

    first[d] and values[d, m] are filled for the last of three dimensions; it returns False for an
    event out of reach (NaN too).
    """
    taps = len(shifts)
    terms = len(coefficients) // taps
    skipped = MAX_DIMENSIONS - len(origin)
    for d in range(len(origin)):
        u = (position[d] - origin[d]) / bin_size[d] - shifts[0]
        if not (u >= -taps - 1 and u < shape[skipped + d] + 1):
            return False
        j = np.floor(u)
        r = u - j
        first[skipped + d] = np.int64(j)
        for m in range(taps):
            value = coefficients[m * terms + terms - 1]
            for n in range(terms - 2, -1, -1):
                value = value * r + coefficients[m * terms + n]
            values[skipped + d, m] = value
    return True


@numba.njit(**_FLAGS)
def _scatter_part(coords, weights, origin, bin_size, shifts, coefficients, start, stop, image):
    n0, n1, n2 = image.shape
    taps = len(shifts)
    # How many taps each of the three dimensions has; an absent one has a single tap of value 1.
    taps0, taps1 = (taps if len(origin) > 2 else 1), (taps if len(origin) > 1 else 1)
    first = np.zeros(3, np.int64)
    values = np.ones((3, taps), image.dtype)
    image[:] = 0
    for i in range(start, stop):
        if not _fill(coords[i], origin, bin_size, image.shape, shifts, coefficients, first, values):
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


@numba.njit(parallel=True, **_FLAGS)
def _scatter(images, first_batch, parts, coords, weights, origin, bin_size, shifts, coefficients):
    """Images [jobs, n0, n1, n2] of the batches from first_batch on, each in so many parts."""
    events = weights.shape[1]
    for job in numba.prange(len(images)):
        b, p = first_batch + job // parts, job % parts
        start, stop = events * p // parts, events * (p + 1) // parts
        _scatter_part(
            coords[b], weights[b], origin, bin_size, shifts, coefficients, start, stop, images[job]
        )


@numba.njit(parallel=True, **_FLAGS)
def _add_parts(partial, image):
    parts = len(partial)
    n0, n1, n2 = image.shape
    for row in numba.prange(n0 * n1):
        j0, j1 = row // n1, row % n1
        for j2 in range(n2):
            total = partial[0, j0, j1, j2]
            for p in range(1, parts):
                total += partial[p, j0, j1, j2]
            image[j0, j1, j2] = total


@numba.njit(**_FLAGS)
def _dot(image, first, v0, v1, v2, taps0, taps1, taps2):
    """The sum over the taps of image times v0 v1 v2."""
    n0, n1, n2 = image.shape
    total = image.dtype.type(0)
    for m0 in range(taps0):
        j0 = first[0] + m0
        if j0 < 0 or j0 >= n0:
            continue
        for m1 in range(taps1):
            j1 = first[1] + m1
            if j1 < 0 or j1 >= n1:
                continue
            inner = image.dtype.type(0)
            for m2 in range(taps2):
                j2 = first[2] + m2
                if j2 >= 0 and j2 < n2:
                    inner += image[j0, j1, j2] * v2[m2]
            total += v0[m0] * v1[m1] * inner
    return total


@numba.njit(**_FLAGS)
def _gather_part(
    image, coords, weights, origin, bin_size, shifts_k, binning, shifts_s, synthesis, slope,
    start, stop, to_coords, to_weights,
):  # fmt: skip
    dimensions = len(origin)
    skipped = MAX_DIMENSIONS - dimensions
    n, s = len(shifts_k), len(shifts_s)
    n0, n1 = (n if dimensions > 2 else 1), (n if dimensions > 1 else 1)
    s0, s1 = (s if dimensions > 2 else 1), (s if dimensions > 1 else 1)
    first = np.zeros(3, np.int64)
    values = np.ones((3, n), image.dtype)
    smooth, slopes = np.ones((3, s), image.dtype), np.ones((3, s), image.dtype)
    for i in range(start, stop):
        to_weights[i] = 0
        if _fill(coords[i], origin, bin_size, image.shape, shifts_k, binning, first, values):
            to_weights[i] = _dot(image, first, values[0], values[1], values[2], n0, n1, n)
        to_coords[i] = 0
        if not _fill(coords[i], origin, bin_size, image.shape, shifts_s, synthesis, first, smooth):
            continue
        _fill(coords[i], origin, bin_size, image.shape, shifts_s, slope, first, slopes)
        for d in range(dimensions):
            v0 = slopes[0] if d + skipped == 0 else smooth[0]
            v1 = slopes[1] if d + skipped == 1 else smooth[1]
            v2 = slopes[2] if d + skipped == 2 else smooth[2]
            to_coords[i, d] = weights[i] / bin_size[d] * _dot(image, first, v0, v1, v2, s0, s1, s)


@numba.njit(parallel=True, **_FLAGS)
def _gather(
    image, coords, weights, origin, bin_size, shifts_k, binning, shifts_s, synthesis, slope,
    to_coords, to_weights,
):  # fmt: skip
    batch, events = weights.shape
    blocks = (events + _EVENTS_A_BLOCK - 1) // _EVENTS_A_BLOCK
    for job in numba.prange(batch * blocks):
        b, start = job // blocks, job % blocks * _EVENTS_A_BLOCK
        stop = min(start + _EVENTS_A_BLOCK, events)
        _gather_part(
            image[b], coords[b], weights[b], origin, bin_size, shifts_k, binning, shifts_s,
            synthesis, slope, start, stop, to_coords[b], to_weights[b],
        )  # fmt: skip
