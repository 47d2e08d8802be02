"""The operator's CUDA back end: one Triton kernel over the events in each direction.

Twin of `reference` for up to three dimensions. The kernels see the image as [B, n0, n1, n2]; where
there are fewer dimensions, the leading ones have a single bin and a single tap of value 1. A
program takes BLOCK events of one image, one a thread. A thread keeps the tap values of the last
dimension in registers and walks over the rows of bins that its event reaches.

What goes into an image (`splat`, `splat_tangent`) is added by atomic operations in the image's own
type. The sum runs in no fixed order, so its last digits differ from run to run, and where many
events fall into one bin their additions wait for one another. `pull_back` and `pull_back_tangent`
only read the image and give the same result every time.

Nothing waits for the GPU. At the first call with given kernels, number of dimensions, type, sort of
weights (single or each its own) and wanted results, Triton compiles and the kernels' tables are
copied to the device; after one such call the functions can be captured in a CUDA graph, also with
other sizes. Triton 3.4 or newer is needed, which torch 2.8 and newer bring for CUDA.
"""

# Triton reads the kernels' source and makes its own of `tl.range`, tuples and annotations.
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from event_binning_grad.binning.kernels import KernelPair, TapTable
from event_binning_grad.binning.reference import Grid, Pairs

# One event a thread: its taps are loads that do not depend on one another, which hides their
# latency. With "linear" kernels in two dimensions and float32 none of the functions needs many more
# than 60 registers, and at 64 four programs of eight warps fit on a multiprocessor.
BLOCK = 256
WARPS = 8

# Up to so many taps the loops over the rows are unrolled; beyond, only the one over a row is.
_MAX_UNROLLED = 36


# Where a dimension's table is in the flat tensor, and what of it the compiler unrolls. An absent
# dimension has no terms.
_Layout = tuple[int, int, int, int, int, int]
_Layouts = tuple[_Layout, _Layout, _Layout]
_START, _TAPS, _TERMS, _SEGMENTS, _UNROLL_TAPS, _UNROLL_TERMS = map(tl.constexpr, range(6))


@dataclass(frozen=True)
class _Tables:
    """What the kernels read of the pairs: one flat tensor, and what is where in it."""

    values: Tensor
    binning: _Layouts
    synthesis: _Layouts
    weights: _Layouts
    shared: bool  # whether the gradient of the weights samples by the synthesis kernel, too


def splat(coords: Tensor, weights: Tensor, grid: Grid, pairs: Pairs) -> Tensor:
    """See `reference.splat`."""
    image = coords.new_zeros(coords.shape[0], *grid.shape)
    tables = _tables(tuple(pairs), coords.device, coords.dtype)
    weights, step = _with_step(weights)
    _launch(
        _splat_kernel, coords, image, coords.contiguous(), weights,
        tables.values, *_scalars(coords, grid),
        TABLES=tables.binning, WEIGHTS_STEP=step,
    )  # fmt: skip
    return image


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
    to_coords = coords.new_empty(coords.shape) if want_coords else None
    to_weights = coords.new_empty(weights.shape) if want_weights else None
    if not (want_coords or want_weights):
        return None, None
    tables = _tables(tuple(pairs), coords.device, coords.dtype)
    weights, step = _with_step(weights)
    _launch(
        _pull_back_kernel, coords, to_coords, to_weights,
        cotangent.contiguous(), coords.contiguous(), weights,
        tables.values, *_scalars(coords, grid),
        SLOPES=tables.synthesis, TABLES=tables.weights, SHARED=tables.shared, WEIGHTS_STEP=step,
    )  # fmt: skip
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
    image = coords.new_zeros(coords.shape[0], *grid.shape)
    tables = _tables(tuple(pairs), coords.device, coords.dtype)
    weights, step = _with_step(weights)
    _launch(
        _splat_tangent_kernel, coords, image, coords.contiguous(), weights,
        coords_tangent.contiguous(),
        None if weights_tangent is None else weights_tangent.contiguous(),
        tables.values, *_scalars(coords, grid),
        SLOPES=tables.synthesis, TABLES=tables.weights, SHARED=tables.shared, WEIGHTS_STEP=step,
    )  # fmt: skip
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
    to_coords, to_weights = coords.new_empty(coords.shape), coords.new_empty(weights.shape)
    tables = _tables(tuple(pairs), coords.device, coords.dtype)
    weights, step = _with_step(weights)
    _launch(
        _pull_back_tangent_kernel, coords, to_coords, to_weights,
        cotangent.contiguous(), coords.contiguous(), weights, coords_tangent.contiguous(),
        None if weights_tangent is None else weights_tangent.contiguous(),
        tables.values, *_scalars(coords, grid),
        SLOPES=tables.synthesis, WEIGHTS_STEP=step,
    )  # fmt: skip
    return to_coords, to_weights


def _launch(kernel: Any, coords: Tensor, *arguments: Any, **constants: Any) -> None:
    batch, events, dimensions = coords.shape
    programs = batch * -(-events // BLOCK)
    if programs == 0:
        return
    # Triton launches on the current device, wherever the tensors are.
    with torch.cuda.device(coords.device) if coords.is_cuda else nullcontext():
        kernel[(programs,)](
            *arguments, **constants, DIMENSIONS=dimensions, BLOCK=BLOCK,
            num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip


def _with_step(weights: Tensor) -> tuple[Tensor, int]:
    """The weights and their distance in memory: 0 for a single expanded number, not copied."""
    return (weights.contiguous(), 1) if any(weights.stride()) else (weights, 0)


def _scalars(coords: Tensor, grid: Grid) -> tuple[int | float, ...]:
    """The events of an image, then bins, origin and bin size of each of three dimensions."""
    absent = 3 - len(grid.shape)
    return (
        coords.shape[1],
        *(1,) * absent, *grid.shape,
        *(0.0,) * absent, *grid.origin,
        *(1.0,) * absent, *grid.bin_size,
    )  # fmt: skip


@cache
def _tables(pairs: tuple[KernelPair, ...], device: torch.device, dtype: torch.dtype) -> _Tables:
    # Never dropped: a CUDA graph that was captured goes on reading from the same address.
    flat: list[float] = []
    binning = _append(flat, [pair.binning for pair in pairs])
    synthesis = _append(flat, [pair.synthesis for pair in pairs])
    weights = _append(flat, [pair.weights for pair in pairs])
    shared = all(_equal(pair.synthesis, pair.weights) for pair in pairs)
    values = torch.tensor(flat, dtype=dtype, device=device)
    return _Tables(values, binning, synthesis, weights, shared)


def _append(flat: list[float], tables: Sequence[TapTable]) -> _Layouts:
    """Appends of each table its shift, starts [segments], coefficients [segments, taps, terms]."""
    layouts: list[_Layout] = [(0, 1, 0, 1, 1, 1)] * (3 - len(tables))
    for d, table in enumerate(tables):
        reached = math.prod(inner.taps for inner in tables[d:])
        unroll_taps = table.taps if reached <= _MAX_UNROLLED else 1
        # Where every event loads the coefficients of its own segment, it would take Triton minutes
        # to compile all those loads; its back end unrolls what is worth it.
        unroll_terms = table.terms if table.segments == 1 else 1
        layouts.append(
            (len(flat), table.taps, table.terms, table.segments, unroll_taps, unroll_terms)
        )
        flat += [table.shift, *table.starts]
        flat += [c for segment in table.coefficients for tap in segment for c in tap]
    first, second, third = layouts
    return first, second, third


def _equal(a: TapTable, b: TapTable) -> bool:
    return (a.shift, a.starts, a.coefficients) == (b.shift, b.starts, b.coefficients)


# ------------------------------------------------------------------------ the kernels' common parts
#
# Of an event: `at`, its place among all events of all images; `live`, false beyond the last one;
# for each of three dimensions j, the first bin that it reaches, r, its position within a segment,
# and `row`, the address of that segment's coefficients. One value a thread each. Only what the
# language has built in is called, no library function: it works in the interpreter, too, whenever
# that is switched on.


@triton.jit
def _block(events, BLOCK: tl.constexpr):
    """The image that a program works on, and `at` and `live` of its events."""
    blocks = (events - 1) // BLOCK + 1
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    i = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return b, b * events + i, i < events


@triton.jit
def _place(
    d: tl.constexpr, coords, at, live, bins, origin, bin_size, tables,
    TABLES: tl.constexpr, DIMENSIONS: tl.constexpr,
):  # fmt: skip
    """j, r and row in dimension d of three, and whether the event is anywhere near the bins."""
    dtype: tl.constexpr = coords.dtype.element_ty
    if TABLES[d][_TERMS] == 0:
        j = tl.full(at.shape, 0, tl.int64)
        r = tl.full(at.shape, 0, dtype)
        row = tables
        usable = live
    else:
        x = tl.load(coords + at * DIMENSIONS + (d - 3 + DIMENSIONS), mask=live, other=float("nan"))
        x = x - tl.full(at.shape, origin[d], dtype)
        size = tl.full(at.shape, bin_size[d], dtype)
        # Rounded as in the reference: a plain division of float32 would not be to the nearest.
        u = tl.div_rn(x, size) if dtype == tl.float32 else x / size
        u = u - tl.load(tables + TABLES[d][_START])
        # NaN and whatever is too far out for an integer never reach the cast.
        usable = (u >= -TABLES[d][_TAPS] - 1) & (u < (bins[d] + 1).to(dtype))
        u = tl.where(usable, u, 0)
        whole = tl.floor(u)
        j = whole.to(tl.int64)
        place = u - whole
        r = place
        row = tables + (TABLES[d][_START] + 1 + TABLES[d][_SEGMENTS])
        if TABLES[d][_SEGMENTS] > 1:
            segments: tl.constexpr = TABLES[d][_SEGMENTS]
            segment = tl.full(at.shape, 0, tl.int32)
            for s in tl.static_range(1, segments):
                start = tl.load(tables + (TABLES[d][_START] + 1 + s))
                segment = tl.where(place >= start, s, segment)
                r = tl.where(place >= start, place - start, r)
            row = row + segment * (TABLES[d][_TAPS] * TABLES[d][_TERMS])
    return j, r, row, usable


@triton.jit
def _reach(
    coords, at, live, bins, origin, bin_size, tables,
    TABLES: tl.constexpr, DIMENSIONS: tl.constexpr,
):  # fmt: skip
    """`_place` in all three dimensions."""
    j0, r0, row0, usable0 = _place(
        0, coords, at, live, bins, origin, bin_size, tables, TABLES, DIMENSIONS
    )
    j1, r1, row1, usable1 = _place(
        1, coords, at, live, bins, origin, bin_size, tables, TABLES, DIMENSIONS
    )
    j2, r2, row2, usable2 = _place(
        2, coords, at, live, bins, origin, bin_size, tables, TABLES, DIMENSIONS
    )
    return (j0, j1, j2), (r0, r1, r2), (row0, row1, row2), usable0 & usable1 & usable2


@triton.jit
def _tap(d: tl.constexpr, m, r, row, TABLES: tl.constexpr, ORDER: tl.constexpr):
    """Dimension d's m-th tap: its value and its derivatives up to ORDER, by Horner's scheme."""
    x = r[d]
    slope = tl.full(x.shape, 0, x.dtype)
    bend = slope
    if TABLES[d][_TERMS] == 0:
        value = tl.full(x.shape, 1, x.dtype)
    else:
        last = row[d] + ((m + 1) * TABLES[d][_TERMS] - 1)
        value = tl.broadcast_to(tl.load(last), x.shape)
        for n in tl.range(1, TABLES[d][_TERMS], loop_unroll_factor=TABLES[d][_UNROLL_TERMS]):
            if ORDER > 1:
                bend = bend * x + 2 * slope
            if ORDER > 0:
                slope = slope * x + value
            value = value * x + tl.load(last - n)
    return value, slope, bend


@triton.jit
def _last_taps(r, row, TABLES: tl.constexpr, ORDER: tl.constexpr):
    """`_tap` for every tap of the last dimension."""
    values = ()
    slopes = ()
    bends = ()
    taps: tl.constexpr = TABLES[2][_TAPS]
    for m in tl.static_range(taps):
        value, slope, bend = _tap(2, m, r, row, TABLES, ORDER)
        values += (value,)
        slopes += (slope,)
        bends += (bend,)
    return values, slopes, bends


@triton.jit
def _inside(j, bins):
    return (j >= 0) & (j < bins)


@triton.jit
def _add(image, at, added, inside):
    # Zero changes nothing, and at a bin's centre all taps of "linear" but one are zero.
    tl.atomic_add(image + at, added, mask=inside & (added != 0), sem="relaxed")


@triton.jit
def _scatter(
    image, coords, at, live, weight, bins, origin, bin_size, tables,
    TABLES: tl.constexpr, DIMENSIONS: tl.constexpr,
):  # fmt: skip
    """Adds weight times the product of the taps to every bin that an event reaches."""
    j, r, row, usable = _reach(coords, at, live, bins, origin, bin_size, tables, TABLES, DIMENSIONS)
    values = _last_taps(r, row, TABLES, 0)[0]
    taps: tl.constexpr = TABLES[2][_TAPS]
    for m0 in tl.range(0, TABLES[0][_TAPS], loop_unroll_factor=TABLES[0][_UNROLL_TAPS]):
        v0 = _tap(0, m0, r, row, TABLES, 0)[0]
        inside0 = usable & _inside(j[0] + m0, bins[0])
        for m1 in tl.range(0, TABLES[1][_TAPS], loop_unroll_factor=TABLES[1][_UNROLL_TAPS]):
            v1 = _tap(1, m1, r, row, TABLES, 0)[0]
            inside1 = inside0 & _inside(j[1] + m1, bins[1])
            along = weight * v0 * v1
            first = ((j[0] + m0) * bins[1] + j[1] + m1) * bins[2] + j[2]
            for m2 in tl.static_range(taps):
                inside2 = inside1 & _inside(j[2] + m2, bins[2])
                _add(image, first + m2, along * values[m2], inside2)


@triton.jit
def _sample(
    image, coords, at, live, bins, origin, bin_size, tables,
    TABLES: tl.constexpr, DIMENSIONS: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """The sum over the taps of image times their product.

    For ORDER 1 also the three sums with the derivative in the first, second and third dimension.
    """
    j, r, row, usable = _reach(coords, at, live, bins, origin, bin_size, tables, TABLES, DIMENSIONS)
    values, slopes, _bends = _last_taps(r, row, TABLES, ORDER)
    taps: tl.constexpr = TABLES[2][_TAPS]
    zero = tl.full(at.shape, 0, image.dtype.element_ty)
    total = zero
    g0 = zero
    g1 = zero
    g2 = zero
    for m0 in tl.range(0, TABLES[0][_TAPS], loop_unroll_factor=TABLES[0][_UNROLL_TAPS]):
        v0, d0, _e0 = _tap(0, m0, r, row, TABLES, ORDER)
        inside0 = usable & _inside(j[0] + m0, bins[0])
        for m1 in tl.range(0, TABLES[1][_TAPS], loop_unroll_factor=TABLES[1][_UNROLL_TAPS]):
            v1, d1, _e1 = _tap(1, m1, r, row, TABLES, ORDER)
            inside1 = inside0 & _inside(j[1] + m1, bins[1])
            first = ((j[0] + m0) * bins[1] + j[1] + m1) * bins[2] + j[2]
            value = zero
            slope = zero
            for m2 in tl.static_range(taps):
                inside2 = inside1 & _inside(j[2] + m2, bins[2])
                c = tl.load(image + first + m2, mask=inside2, other=0.0)
                value = value + c * values[m2]
                if ORDER > 0:
                    slope = slope + c * slopes[m2]
            total = total + v0 * v1 * value
            if ORDER > 0:
                g0 = g0 + d0 * v1 * value
                g1 = g1 + v0 * d1 * value
                g2 = g2 + v0 * v1 * slope
    return total, g0, g1, g2


@triton.jit
def _in_bins(d: tl.constexpr, tangent, at, live, bin_size, DIMENSIONS: tl.constexpr):
    """A tangent of the coordinates in dimension d of three, in bins."""
    dtype: tl.constexpr = tangent.dtype.element_ty
    if d < 3 - DIMENSIONS:
        moved = tl.full(at.shape, 0, dtype)
    else:
        moved = tl.load(tangent + at * DIMENSIONS + (d - 3 + DIMENSIONS), mask=live, other=0.0)
        moved = moved / tl.full(at.shape, bin_size[d], dtype)
    return moved


@triton.jit
def _store_columns(columns, at, live, per_bin, bin_size, DIMENSIONS: tl.constexpr):
    """Stores the gradient by position of those dimensions that there are."""
    dtype: tl.constexpr = columns.dtype.element_ty
    for d in tl.static_range(3):
        if d >= 3 - DIMENSIONS:
            value = per_bin[d] / tl.full(at.shape, bin_size[d], dtype)
            tl.store(columns + at * DIMENSIONS + (d - 3 + DIMENSIONS), value, mask=live)


# -------------------------------------------------------------------------------------- the kernels

# No variants for sizes that are 1 or divisible by 16, or addresses that are: the events' accesses
# are scattered anyway, and none must be compiled while a graph is captured. The annotated numbers
# are those that Triton would otherwise pass as float32.
_JIT: dict[str, Any] = {
    "do_not_specialize": ["events", "n0", "n1", "n2"],
    "do_not_specialize_on_alignment": [
        "image", "to_coords", "to_weights", "cotangent", "coords", "weights", "coords_tangent",
        "weights_tangent", "tables",
    ],
}  # fmt: skip


@triton.jit(**_JIT)
def _splat_kernel(
    image, coords, weights, tables, events, n0, n1, n2,
    o0: tl.float64, o1: tl.float64, o2: tl.float64, s0: tl.float64, s1: tl.float64, s2: tl.float64,
    TABLES: tl.constexpr, WEIGHTS_STEP: tl.constexpr, DIMENSIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, at, live = _block(events, BLOCK)
    bins = (n0.to(tl.int64), n1.to(tl.int64), n2.to(tl.int64))
    image += b * bins[0] * bins[1] * bins[2]
    weight = tl.load(weights + at * WEIGHTS_STEP, mask=live, other=0.0)
    _scatter(
        image, coords, at, live, weight, bins, (o0, o1, o2), (s0, s1, s2), tables,
        TABLES, DIMENSIONS,
    )  # fmt: skip


@triton.jit(**_JIT)
def _pull_back_kernel(
    to_coords, to_weights, cotangent, coords, weights, tables, events, n0, n1, n2,
    o0: tl.float64, o1: tl.float64, o2: tl.float64, s0: tl.float64, s1: tl.float64, s2: tl.float64,
    SLOPES: tl.constexpr, TABLES: tl.constexpr, SHARED: tl.constexpr, WEIGHTS_STEP: tl.constexpr,
    DIMENSIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, at, live = _block(events, BLOCK)
    bins = (n0.to(tl.int64), n1.to(tl.int64), n2.to(tl.int64))
    cotangent += b * bins[0] * bins[1] * bins[2]
    origin, bin_size = (o0, o1, o2), (s0, s1, s2)
    if to_coords is not None:
        total, g0, g1, g2 = _sample(
            cotangent, coords, at, live, bins, origin, bin_size, tables, SLOPES, DIMENSIONS, 1
        )
        w = tl.load(weights + at * WEIGHTS_STEP, mask=live, other=0.0)
        _store_columns(to_coords, at, live, (w * g0, w * g1, w * g2), bin_size, DIMENSIONS)
    if to_weights is not None:
        if to_coords is None or not SHARED:
            total = _sample(
                cotangent, coords, at, live, bins, origin, bin_size, tables, TABLES, DIMENSIONS, 0
            )[0]
        tl.store(to_weights + at, total, mask=live)


@triton.jit(**_JIT)
def _splat_tangent_kernel(
    image, coords, weights, coords_tangent, weights_tangent, tables, events, n0, n1, n2,
    o0: tl.float64, o1: tl.float64, o2: tl.float64, s0: tl.float64, s1: tl.float64, s2: tl.float64,
    SLOPES: tl.constexpr, TABLES: tl.constexpr, SHARED: tl.constexpr, WEIGHTS_STEP: tl.constexpr,
    DIMENSIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, at, live = _block(events, BLOCK)
    bins = (n0.to(tl.int64), n1.to(tl.int64), n2.to(tl.int64))
    image += b * bins[0] * bins[1] * bins[2]
    origin, bin_size = (o0, o1, o2), (s0, s1, s2)
    w = tl.load(weights + at * WEIGHTS_STEP, mask=live, other=0.0)
    t0 = w * _in_bins(0, coords_tangent, at, live, bin_size, DIMENSIONS)
    t1 = w * _in_bins(1, coords_tangent, at, live, bin_size, DIMENSIONS)
    t2 = w * _in_bins(2, coords_tangent, at, live, bin_size, DIMENSIONS)
    if weights_tangent is not None:
        dw = tl.load(weights_tangent + at, mask=live, other=0.0)
    j, r, row, usable = _reach(coords, at, live, bins, origin, bin_size, tables, SLOPES, DIMENSIONS)
    values, slopes, _bends = _last_taps(r, row, SLOPES, 1)
    taps: tl.constexpr = SLOPES[2][_TAPS]
    for m0 in tl.range(0, SLOPES[0][_TAPS], loop_unroll_factor=SLOPES[0][_UNROLL_TAPS]):
        v0, d0, _e0 = _tap(0, m0, r, row, SLOPES, 1)
        inside0 = usable & _inside(j[0] + m0, bins[0])
        for m1 in tl.range(0, SLOPES[1][_TAPS], loop_unroll_factor=SLOPES[1][_UNROLL_TAPS]):
            v1, d1, _e1 = _tap(1, m1, r, row, SLOPES, 1)
            inside1 = inside0 & _inside(j[1] + m1, bins[1])
            along = t0 * d0 * v1 + t1 * v0 * d1
            if SHARED and weights_tangent is not None:
                along += dw * v0 * v1
            across = t2 * v0 * v1
            first = ((j[0] + m0) * bins[1] + j[1] + m1) * bins[2] + j[2]
            for m2 in tl.static_range(taps):
                inside2 = inside1 & _inside(j[2] + m2, bins[2])
                _add(image, first + m2, along * values[m2] + across * slopes[m2], inside2)
    if not SHARED and weights_tangent is not None:
        _scatter(image, coords, at, live, dw, bins, origin, bin_size, tables, TABLES, DIMENSIONS)


@triton.jit(**_JIT)
def _pull_back_tangent_kernel(
    to_coords, to_weights, cotangent, coords, weights, coords_tangent, weights_tangent, tables,
    events, n0, n1, n2,
    o0: tl.float64, o1: tl.float64, o2: tl.float64, s0: tl.float64, s1: tl.float64, s2: tl.float64,
    SLOPES: tl.constexpr, WEIGHTS_STEP: tl.constexpr, DIMENSIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, at, live = _block(events, BLOCK)
    bins = (n0.to(tl.int64), n1.to(tl.int64), n2.to(tl.int64))
    cotangent += b * bins[0] * bins[1] * bins[2]
    origin, bin_size = (o0, o1, o2), (s0, s1, s2)
    t0 = _in_bins(0, coords_tangent, at, live, bin_size, DIMENSIONS)
    t1 = _in_bins(1, coords_tangent, at, live, bin_size, DIMENSIONS)
    t2 = _in_bins(2, coords_tangent, at, live, bin_size, DIMENSIONS)
    j, r, row, usable = _reach(coords, at, live, bins, origin, bin_size, tables, SLOPES, DIMENSIONS)
    values, slopes, bends = _last_taps(r, row, SLOPES, 2)
    taps: tl.constexpr = SLOPES[2][_TAPS]
    # In bins: g the gradient for a weight of one, h the Hessian (symmetric) times the tangent.
    zero = tl.full(at.shape, 0, coords.dtype.element_ty)
    g0 = zero
    g1 = zero
    g2 = zero
    h0 = zero
    h1 = zero
    h2 = zero
    for m0 in tl.range(0, SLOPES[0][_TAPS], loop_unroll_factor=SLOPES[0][_UNROLL_TAPS]):
        v0, d0, e0 = _tap(0, m0, r, row, SLOPES, 2)
        inside0 = usable & _inside(j[0] + m0, bins[0])
        for m1 in tl.range(0, SLOPES[1][_TAPS], loop_unroll_factor=SLOPES[1][_UNROLL_TAPS]):
            v1, d1, e1 = _tap(1, m1, r, row, SLOPES, 2)
            inside1 = inside0 & _inside(j[1] + m1, bins[1])
            first = ((j[0] + m0) * bins[1] + j[1] + m1) * bins[2] + j[2]
            value = zero
            slope = zero
            bend = zero
            for m2 in tl.static_range(taps):
                inside2 = inside1 & _inside(j[2] + m2, bins[2])
                c = tl.load(cotangent + first + m2, mask=inside2, other=0.0)
                value += c * values[m2]
                slope += c * slopes[m2]
                bend += c * bends[m2]
            g0 += d0 * v1 * value
            g1 += v0 * d1 * value
            g2 += v0 * v1 * slope
            h0 += (t0 * e0 * v1 + t1 * d0 * d1) * value + t2 * d0 * v1 * slope
            h1 += (t0 * d0 * d1 + t1 * v0 * e1) * value + t2 * v0 * d1 * slope
            h2 += (t0 * d0 * v1 + t1 * v0 * d1) * slope + t2 * v0 * v1 * bend
    w = tl.load(weights + at * WEIGHTS_STEP, mask=live, other=0.0)
    h0 = w * h0
    h1 = w * h1
    h2 = w * h2
    if weights_tangent is not None:
        dw = tl.load(weights_tangent + at, mask=live, other=0.0)
        h0 += dw * g0
        h1 += dw * g1
        h2 += dw * g2
    _store_columns(to_coords, at, live, (h0, h1, h2), bin_size, DIMENSIONS)
    tl.store(to_weights + at, t0 * g0 + t1 * g1 + t2 * g2, mask=live)
