"""The operator's CPU back end: one fused numba pass over the events in each direction.

Twin of `reference` for up to three dimensions. The result is the same bit for bit at any number of
threads (`torch.set_num_threads`): a scatter is cut into parts by the size of the problem alone,
every part has its own image, and the parts are added in order.

Events are taken in blocks that fit the first cache: first the bins and tap values of all of them,
in loops that the compiler vectorises, then each event's taps, added to the image or gathered from
it. An event near the border does the same on a small patch with the outside filled in.

The compiled functions are cached on disk. In the hot directions the common kernels have builds of
their own, where the numbers of taps and terms are part of the type (the lengths of tuples) so that
the loops over them unroll; everything else shares one build for each type of numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from numba.core.types import BaseTuple
from numba.extending import overload
from torch import Tensor

from event_binning_grad.binning.backend import MAX_DIMENSIONS
from event_binning_grad.binning.kernels import TapTable
from event_binning_grad.binning.reference import Grid, Pairs

# A part of a scatter must hold enough events to pay for zeroing and adding its own image.
_EVENTS_A_PART = 65536
_MAX_PARTS = 16

# Fewer events than this are not worth a thread's waking.
_EVENTS_A_THREAD = 8192

# So many bins are added in the time that an event takes.
_BINS_AN_EVENT = 16

# How many events are prepared at a time.
_BLOCK = 256

# Up to so many taps a kernel without segments gets a build of its own, in float32.
_MAX_UNROLLED = 4

# Python's threads run these functions, without the interpreter's lock. The numbers are rounded as
# written, but for a product and a sum taken in one step.
_FLAGS: dict[str, Any] = {
    "nogil": True, "error_model": "numpy", "cache": True, "fastmath": {"contract"},
}  # fmt: skip
_INNER: dict[str, Any] = {**_FLAGS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

# What is summed: values, first derivatives as well, second ones as well. The length is compiled in.
_VALUES, _SLOPES, _BENDS = (0,), (0, 1), (0, 1, 2)


def splat(coords: Tensor, weights: Tensor, grid: Grid, pairs: Pairs) -> Tensor:
    """See `reference.splat`."""
    return _scattered(_VALUES, coords, weights, None, grid, tuple(pair.binning for pair in pairs))


def pull_back(
    cotangent: Tensor,
    coords: Tensor,
    weights: Tensor,
    grid: Grid,
    pairs: Pairs,
    want_coords: bool = True,
    want_weights: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.pull_back`."""
    to_coords = to_weights = None
    if want_coords:
        synthesis = tuple(pair.synthesis for pair in pairs)
        to_coords, _ = _gathered(_SLOPES, cotangent, coords, weights, None, None, grid, synthesis)
    if want_weights:
        kernels = tuple(pair.weights for pair in pairs)
        _, to_weights = _gathered(_VALUES, cotangent, coords, weights, None, None, grid, kernels)
    return to_coords, to_weights


def splat_tangent(
    coords: Tensor,
    weights: Tensor,
    coords_tangent: Tensor,
    weights_tangent: Tensor | None,
    grid: Grid,
    pairs: Pairs,
) -> Tensor:
    """See `reference.splat_tangent`."""
    synthesis = tuple(pair.synthesis for pair in pairs)
    image = _scattered(_SLOPES, coords, weights, coords_tangent, grid, synthesis)
    if weights_tangent is not None:
        kernels = tuple(pair.weights for pair in pairs)
        image += _scattered(_VALUES, coords, weights_tangent, None, grid, kernels)
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
    """See `reference.pull_back_tangent`."""
    if weights_tangent is None:
        weights_tangent = weights.new_zeros(()).expand(weights.shape)
    synthesis = tuple(pair.synthesis for pair in pairs)
    return _gathered(
        _BENDS, cotangent, coords, weights, coords_tangent, weights_tangent, grid, synthesis
    )


# ------------------------------------------------------------------------ from torch to numba


def _scattered(
    order: tuple[int, ...],
    coords: Tensor,
    weights: Tensor,
    tangent: Tensor | None,
    grid: Grid,
    kernels: tuple[TapTable, ...],
) -> Tensor:
    batch, events, _ = coords.shape
    image = torch.empty((batch, *grid.shape), dtype=coords.dtype)
    bins = math.prod(grid.shape)
    images = image.view(batch, bins).numpy()
    x = _array(coords)
    arguments: list[Any] = [
        x, _weights(weights), x if tangent is None else _array(tangent),
        *_grid(grid, coords.dtype), *_kernels(kernels, coords.dtype, order == _VALUES),
    ]  # fmt: skip
    parts = max(1, min(_MAX_PARTS, events // max(_EVENTS_A_PART, bins)))
    if parts == 1:
        _run(
            lambda start, stop: _scatter(order, images, start, stop, 1, 0, *arguments),
            batch, batch * events,
        )  # fmt: skip
        return image
    partial = np.empty((parts, bins), images.dtype)
    for b in range(batch):
        _run(
            lambda start, stop, b=b: _scatter(order, partial, start, stop, parts, b, *arguments),
            parts, events,
        )  # fmt: skip
        _run(
            lambda start, stop, b=b: _add(partial, images[b], start, stop),
            bins, parts * bins // _BINS_AN_EVENT,
        )  # fmt: skip
    return image


def _gathered(
    order: tuple[int, ...],
    cotangent: Tensor,
    coords: Tensor,
    weights: Tensor,
    coords_tangent: Tensor | None,
    weights_tangent: Tensor | None,
    grid: Grid,
    kernels: tuple[TapTable, ...],
) -> tuple[Any, Any]:
    batch, events, dimensions = coords.shape
    # What is not asked for is an array of no events, which is not written to.
    to_coords = coords.new_empty((batch, 0 if order == _VALUES else events, dimensions))
    to_weights = coords.new_empty((batch, 0 if order == _SLOPES else events))
    x, w = _array(coords), _weights(weights)
    # The backward pass of images; that of voxel grids has so many taps that it makes no odds.
    hot = order == _SLOPES and dimensions == 2
    arguments: list[Any] = [
        _array(cotangent.reshape(batch, math.prod(grid.shape))), x, w,
        x if coords_tangent is None else _array(coords_tangent),
        w if weights_tangent is None else _weights(weights_tangent),
        to_coords.numpy(), to_weights.numpy(),
        *_grid(grid, coords.dtype), *_kernels(kernels, coords.dtype, hot),
    ]  # fmt: skip
    total = batch * events
    _run(lambda start, stop: _gather(order, start, stop, *arguments), total, total)
    return to_coords, to_weights


def _run(work: Callable[[int, int], None], jobs: int, events: int) -> None:
    """Does the jobs from 0 on, shared among torch's number of threads where that pays."""
    threads = max(1, min(torch.get_num_threads(), jobs, events // _EVENTS_A_THREAD))
    cuts = [jobs * t // threads for t in range(threads + 1)]
    others: list[Future[None]] = []
    try:
        for start, stop in pairwise(cuts[1:]):
            others.append(_pool().submit(work, start, stop))
    except RuntimeError:
        pass  # the interpreter is about to end and starts no more work on threads: do it all here
    try:
        work(cuts[0], cuts[1])
        for start, stop in pairwise(cuts[1 + len(others) :]):
            work(start, stop)
    finally:
        wait(others)  # they write to arrays that may be gone after this
    for other in others:
        other.result()


@lru_cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="bin_events")


# A forked process has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _weights(tensor: Tensor) -> np.ndarray:
    """[B, N], or [1, 1] for one weight that is expanded to all events, as of `weights=None`."""
    if tensor.numel() and not any(tensor.stride()):
        return tensor.detach()[:1, :1].contiguous().numpy()
    return _array(tensor)


@lru_cache(maxsize=1024)
def _grid(grid: Grid, dtype: torch.dtype) -> tuple[tuple[Any, ...], ...]:
    """Shape, origins and sizes of three dimensions; the absent ones come first, with one bin."""
    number = _number(dtype)
    missing = MAX_DIMENSIONS - len(grid.shape)
    return (
        (*(1,) * missing, *grid.shape),
        (*(number(0),) * missing, *(number(o) for o in grid.origin)),
        (*(number(1),) * missing, *(number(s) for s in grid.bin_size)),
    )


def _number(dtype: torch.dtype) -> Any:
    return np.float32 if dtype == torch.float32 else np.float64


@lru_cache(maxsize=1024)
def _kernels(
    kernels: tuple[TapTable, ...], dtype: torch.dtype, hot: bool
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The numbers of taps of three dimensions, and their tables; absent ones come first.

    A table has the kernel's shift, the starts of its segments after the first, and the coefficients
    [derivative, segment, tap, term] of it and its two derivatives. Where the build is to be for
    these numbers of taps alone they are tuples of that length.
    """
    number = _number(dtype)
    missing = MAX_DIMENSIONS - len(kernels)
    one_bin = number(0), np.empty(0, number), np.ones((3, 1, 1, 1), number)
    tables = [one_bin] * missing + [_table(kernel, number) for kernel in kernels]
    if hot and missing < 2 and dtype == torch.float32 and all(map(_can_unroll, kernels)):
        taps: list[Any] = [(0,)] * missing + [(0,) * kernel.taps for kernel in kernels]
    else:
        taps = [1] * missing + [kernel.taps for kernel in kernels]
    return tuple(taps), tuple(tables)


def _can_unroll(kernel: TapTable) -> bool:
    return kernel.segments == 1 and kernel.terms == kernel.taps <= _MAX_UNROLLED


def _table(kernel: TapTable, number: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    coefficients = np.zeros((3, kernel.segments, kernel.taps, kernel.terms), number)
    for n, derived in enumerate((kernel, kernel.derivative, kernel.derivative.derivative)):
        coefficients[n, :, :, : derived.terms] = derived.coefficients
    return number(kernel.shift), np.array(kernel.starts[1:], number), coefficients


# ------------------------------------------------------------------------ compiled


def _count(taps: Any) -> int:
    """A number of taps, compiled in where it comes as a tuple of that length."""
    return len(taps) if isinstance(taps, tuple) else taps


@overload(_count)
def _compile_count(taps):
    if isinstance(taps, BaseTuple):
        length = len(taps)  # type: ignore[arg-type]
        return lambda taps: length
    return lambda taps: taps


def _evaluate(order: tuple[int, ...], taps: Any, table: Any, r: np.ndarray, values: np.ndarray):
    """The taps' values [derivative, tap, event] of a block: the derivative of the order only."""
    raise NotImplementedError("compiled by numba only")


@overload(_evaluate)
def _compile_evaluate(order, taps, table, r, values):
    derivative = len(order) - 1
    highest = len(taps) - 1 if isinstance(taps, BaseTuple) else 0  # type: ignore[arg-type]
    highest = max(highest - derivative, 0)

    def unrolled(order, taps, table, r, values):
        coefficients, rows = table[2][derivative, 0], values[derivative]
        for i in range(len(r)):
            for m in range(_count(taps)):
                value = coefficients[m, highest]
                for n in range(highest - 1, -1, -1):
                    value = value * r[i] + coefficients[m, n]
                rows[m, i] = value

    def any_number(order, taps, table, r, values):
        starts, coefficients, rows = table[1], table[2][derivative], values[derivative]
        last = max(coefficients.shape[-1] - 1 - derivative, 0)
        if len(starts) == 0:
            # A pass over the block for every term: passes are what the compiler vectorises.
            for m in range(taps):
                row = rows[m]
                row[: len(r)] = coefficients[0, m, last]
                for n in range(last - 1, -1, -1):
                    term = coefficients[0, m, n]
                    for i in range(len(r)):
                        row[i] = row[i] * r[i] + term
            return
        for i in range(len(r)):
            segment, x = 0, r[i]
            for start in starts:
                if r[i] >= start:
                    segment += 1
                    x = r[i] - start
            for m in range(taps):
                value = coefficients[segment, m, last]
                for n in range(last - 1, -1, -1):
                    value = value * x + coefficients[segment, m, n]
                rows[m, i] = value

    return unrolled if isinstance(taps, BaseTuple) else any_number


@numba.njit(**_INNER)
def _locate(column, origin, bin_size, bins, taps, shift, r, first):
    """First bins and fractional positions of a block's events in one dimension.

    The first bin of an event that is out of reach, or NaN, is one whose taps all lie outside.
    """
    r[:] = column  # the compiler vectorises what lies side by side
    for i in range(len(r)):
        u = (r[i] - origin) / bin_size - shift
        floor = np.floor(u)
        near = (u >= -taps) & (u < bins)
        first[i] = np.int32(floor) if near else np.int32(-taps)
        r[i] = u - floor if near else r.dtype.type(0)


@numba.njit(**_INNER)
def _prepare_dimension(
    order, column, origin, bin_size, bins, taps, table, r, first, values
):  # fmt: skip
    _locate(column, origin, bin_size, bins, _count(taps), table[0], r, first)
    _evaluate(_VALUES, taps, table, r, values)
    if len(order) > 1:
        _evaluate(_SLOPES, taps, table, r, values)
    if len(order) > 2:
        _evaluate(_BENDS, taps, table, r, values)


@numba.njit(**_INNER)
def _prepare(order, x, shape, origin, bin_size, taps, tables, buffers):
    """All of a block's bins, tap values, and where in the flat image each event's taps begin.

    That is -1 for an event with a tap outside.
    """
    r, first, values, at, _ = buffers
    count, missing = len(x), 3 - x.shape[1]
    r = r[:count]
    if missing < 1:
        _prepare_dimension(
            order, x[:, 0], origin[0], bin_size[0], shape[0], taps[0], tables[0],
            r, first[0], values[0],
        )  # fmt: skip
    if missing < 2:
        _prepare_dimension(
            order, x[:, 1 - missing], origin[1], bin_size[1], shape[1], taps[1],
            tables[1], r, first[1], values[1],
        )  # fmt: skip
    _prepare_dimension(
        order, x[:, 2 - missing], origin[2], bin_size[2], shape[2], taps[2], tables[2],
        r, first[2], values[2],
    )  # fmt: skip
    counts = _count(taps[0]), _count(taps[1]), _count(taps[2])
    _begin(first[0, :count], first[1, :count], first[2, :count], shape, counts, at[:count])


@numba.njit(**_INNER)
def _begin(first0, first1, first2, shape, taps, at):
    n0, n1, n2 = shape
    last0, last1, last2 = n0 - taps[0], n1 - taps[1], n2 - taps[2]
    for i in range(len(at)):
        j0, j1, j2 = np.intp(first0[i]), np.intp(first1[i]), np.intp(first2[i])
        inside = (j0 >= 0) & (j0 <= last0) & (j1 >= 0) & (j1 <= last1) & (j2 >= 0) & (j2 <= last2)
        at[i] = (j0 * n1 + j1) * n2 + j2 if inside else -1


@numba.njit(**_INNER)
def _is_outside(first, shape, taps):
    """Whether all taps of an event are."""
    return (
        first[0] <= -taps[0] or first[0] >= shape[0]
        or first[1] <= -taps[1] or first[1] >= shape[1]
        or first[2] <= -taps[2] or first[2] >= shape[2]
    )  # fmt: skip


@numba.njit(**_INNER)
def _buffers(order, image, taps):
    """What a block needs; absent dimensions are at bin 0 with value 1 and derivatives 0."""
    r = np.empty(_BLOCK, image.dtype)
    first = np.zeros((3, _BLOCK), np.int32)
    values = np.zeros((3, len(order), _most(taps), _BLOCK), image.dtype)
    values[:, 0] = 1
    begin = np.empty(_BLOCK, np.intp)
    patch = np.empty(_count(taps[0]) * _count(taps[1]) * _count(taps[2]), image.dtype)
    return r, first, values, begin, patch


@numba.njit(inline="always")
def _most(taps):
    return max(_count(taps[0]), _count(taps[1]), _count(taps[2]))


@numba.njit(forceinline=True, **_INNER)
def _value(order, taps, values, d, n, m, i):
    """values[d, n, m, i] of the flat buffer: an address that is known but for i."""
    return values[np.uintp(((d * len(order) + n) * _most(taps) + m) * _BLOCK + i)]


@numba.njit(**_FLAGS)
def _scatter(
    order, images, first_job, last_job, parts, first_batch, coords, weights, tangents,
    shape, origin, bin_size, taps, tables,
):  # fmt: skip
    """Images [job, bin] of the batches from first_batch on, each in so many parts."""
    events, missing = coords.shape[1], 3 - coords.shape[2]
    step = min(weights.shape[1] - 1, 1)
    _, n1, n2 = shape
    size0, size1, size2 = bin_size
    counts = _count(taps[0]), _count(taps[1]), _count(taps[2])
    buffers = _buffers(order, images, taps)
    _, first, values, begin, patch = buffers
    flat, zero = values.reshape(-1), images.dtype.type(0)
    for job in range(first_job, last_job):
        b, p = first_batch + job // parts, job % parts
        image, x, t, w = images[job], coords[b], tangents[b], weights[b % len(weights)]
        image[:] = 0
        stop = events * (p + 1) // parts
        for block in range(events * p // parts, stop, _BLOCK):
            xs = x[block : min(block + _BLOCK, stop)]
            _prepare(order, xs, shape, origin, bin_size, taps, tables, buffers)
            for i in range(len(xs)):
                if begin[i] < 0 and _is_outside(first[:, i], shape, counts):
                    continue
                n = block + i
                weight = w[n * step]
                t0 = t1 = t2 = zero
                if len(order) > 1:
                    t0 = weight * t[n, 0] / size0 if missing < 1 else zero
                    t1 = weight * t[n, 1 - missing] / size1 if missing < 2 else zero
                    t2 = weight * t[n, 2 - missing] / size2
                tangent = t0, t1, t2
                if begin[i] >= 0:
                    _add_taps(order, image, begin[i], n1 * n2, n2, i, taps, flat, weight, tangent)
                else:
                    _add_near_border(
                        order, image, shape, first[:, i], i, counts, flat, weight, tangent, patch
                    )


@numba.njit(forceinline=True, **_INNER)
def _add_taps(order, image, begin, plane, row, i, taps, values, weight, tangent):
    t0, t1, t2 = tangent
    # Indices are made unsigned: numba would look for negative ones.
    for m0 in range(_count(taps[0])):
        v0 = _value(order, taps, values, 0, 0, m0, i)
        for m1 in range(_count(taps[1])):
            v1 = _value(order, taps, values, 1, 0, m1, i)
            at = begin + m0 * plane + m1 * row
            if len(order) > 1:
                s0 = _value(order, taps, values, 0, 1, m0, i)
                s1 = _value(order, taps, values, 1, 1, m1, i)
                by_value, by_slope = t0 * s0 * v1 + t1 * v0 * s1, t2 * v0 * v1
                for m2 in range(_count(taps[2])):
                    v2 = _value(order, taps, values, 2, 0, m2, i)
                    s2 = _value(order, taps, values, 2, 1, m2, i)
                    image[np.uintp(at + m2)] += by_value * v2 + by_slope * s2
            else:
                by_value = weight * v0 * v1
                for m2 in range(_count(taps[2])):
                    v2 = _value(order, taps, values, 2, 0, m2, i)
                    image[np.uintp(at + m2)] += by_value * v2


@numba.njit(**_INNER)
def _add_near_border(
    order, image, shape, first, i, taps, values, weight, tangent, patch
):  # fmt: skip
    taps0, taps1, taps2 = _count(taps[0]), _count(taps[1]), _count(taps[2])
    patch[:] = 0
    _add_taps(order, patch, 0, taps1 * taps2, taps2, i, taps, values, weight, tangent)
    for m0 in range(max(-first[0], 0), min(shape[0] - first[0], taps0)):
        for m1 in range(max(-first[1], 0), min(shape[1] - first[1], taps1)):
            at = ((first[0] + m0) * shape[1] + first[1] + m1) * shape[2] + first[2]
            for m2 in range(max(-first[2], 0), min(shape[2] - first[2], taps2)):
                image[at + m2] += patch[(m0 * taps1 + m1) * taps2 + m2]


@numba.njit(**_FLAGS)
def _add(partial, image, start, stop):
    """The sum of the parts, from bin start to stop."""
    image[start:stop] = partial[0, start:stop]
    for p in range(1, len(partial)):
        image[start:stop] += partial[p, start:stop]


@numba.njit(**_FLAGS)
def _gather(
    order, start, stop, images, coords, weights, coords_tangents, weights_tangents,
    to_coords, to_weights, shape, origin, bin_size, taps, tables,
):  # fmt: skip
    """The events from start to stop, counted through the batches.

    By order: values into to_weights; slopes into to_coords; bends along the tangents into both.
    """
    events, missing = coords.shape[1], 3 - coords.shape[2]
    step, tangent_step = min(weights.shape[1] - 1, 1), min(weights_tangents.shape[1] - 1, 1)
    _, n1, n2 = shape
    size0, size1, size2 = bin_size
    counts = _count(taps[0]), _count(taps[1]), _count(taps[2])
    buffers = _buffers(order, images, taps)
    _, first, values, begin, patch = buffers
    flat, zero = values.reshape(-1), images.dtype.type(0)
    nothing = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    while start < stop:  # a block of one batch at a time
        b, block = start // events, start % events
        image, w, t = images[b], weights[b % len(weights)], coords_tangents[b]
        dw, out = weights_tangents[b % len(weights_tangents)], to_coords[b]
        xs = coords[b, block : min(block + _BLOCK, events, block + stop - start)]
        start += len(xs)
        _prepare(order, xs, shape, origin, bin_size, taps, tables, buffers)
        for i in range(len(xs)):
            if begin[i] >= 0:
                sums = _sum_taps(order, image, begin[i], n1 * n2, n2, i, taps, flat)
            elif _is_outside(first[:, i], shape, counts):
                sums = nothing
            else:
                sums = _sum_near_border(order, image, shape, first[:, i], i, counts, flat, patch)
            f, f0, f1, f2, f00, f01, f02, f11, f12, f22 = sums
            n = block + i
            if len(order) == 1:
                to_weights[b, n] = f
                continue
            weight = w[n * step]
            if len(order) == 2:
                out[n, 2 - missing] = weight / size2 * f2
                if missing < 2:
                    out[n, 1 - missing] = weight / size1 * f1
                if missing < 1:
                    out[n, 0] = weight / size0 * f0
                continue
            t2 = t[n, 2 - missing] / size2
            t1 = t[n, 1 - missing] / size1 if missing < 2 else zero
            t0 = t[n, 0] / size0 if missing < 1 else zero
            more = dw[n * tangent_step]
            to_weights[b, n] = t0 * f0 + t1 * f1 + t2 * f2
            out[n, 2 - missing] = (weight * (t0 * f02 + t1 * f12 + t2 * f22) + more * f2) / size2
            if missing < 2:
                out[n, 1 - missing] = (
                    weight * (t0 * f01 + t1 * f11 + t2 * f12) + more * f1
                ) / size1
            if missing < 1:
                out[n, 0] = (weight * (t0 * f00 + t1 * f01 + t2 * f02) + more * f0) / size0


@numba.njit(forceinline=True, **_INNER)
def _sum_taps(order, image, begin, plane, row, i, taps, values):
    """The sampled function and its derivatives by the position in bins: f, f_d, f_de."""
    zero = image.dtype.type(0)
    f = f0 = f1 = f2 = f00 = f01 = f02 = f11 = f12 = f22 = zero
    for m0 in range(_count(taps[0])):
        g = g1 = g2 = g11 = g12 = g22 = s = zero
        for m1 in range(_count(taps[1])):
            h = h2 = h22 = s = zero
            at = begin + m0 * plane + m1 * row
            for m2 in range(_count(taps[2])):
                c = image[np.uintp(at + m2)]
                h += c * _value(order, taps, values, 2, 0, m2, i)
                if len(order) > 1:
                    h2 += c * _value(order, taps, values, 2, 1, m2, i)
                if len(order) > 2:
                    h22 += c * _value(order, taps, values, 2, 2, m2, i)
            v = _value(order, taps, values, 1, 0, m1, i)
            g += v * h
            if len(order) > 1:
                s = _value(order, taps, values, 1, 1, m1, i)
                g1 += s * h
                g2 += v * h2
            if len(order) > 2:
                g11 += _value(order, taps, values, 1, 2, m1, i) * h
                g12 += s * h2
                g22 += v * h22
        v = _value(order, taps, values, 0, 0, m0, i)
        f += v * g
        if len(order) > 1:
            s = _value(order, taps, values, 0, 1, m0, i)
            f0 += s * g
            f1 += v * g1
            f2 += v * g2
        if len(order) > 2:
            f00 += _value(order, taps, values, 0, 2, m0, i) * g
            f01 += s * g1
            f02 += s * g2
            f11 += v * g11
            f12 += v * g12
            f22 += v * g22
    return f, f0, f1, f2, f00, f01, f02, f11, f12, f22


@numba.njit(**_INNER)
def _sum_near_border(order, image, shape, first, i, taps, values, patch):
    taps0, taps1, taps2 = _count(taps[0]), _count(taps[1]), _count(taps[2])
    patch[:] = 0
    for m0 in range(max(-first[0], 0), min(shape[0] - first[0], taps0)):
        for m1 in range(max(-first[1], 0), min(shape[1] - first[1], taps1)):
            at = ((first[0] + m0) * shape[1] + first[1] + m1) * shape[2] + first[2]
            for m2 in range(max(-first[2], 0), min(shape[2] - first[2], taps2)):
                patch[(m0 * taps1 + m1) * taps2 + m2] = image[at + m2]
    return _sum_taps(order, patch, 0, taps1 * taps2, taps2, i, taps, values)
