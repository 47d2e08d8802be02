"""The flow contrast's CPU path: value, gradients and Hessian blocks in one fused numba pass.

Twin of `flow_contrast.TorchFlowContrast`: one 4-tap scatter and one 16-tap gather over the events,
in their order and on the calling thread, so the result is the same bit for bit on any machine's
number of cores. Events go through in blocks, see `image_cpu`.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from event_binning_grad.estimation.flow_contrast import OWN_CURVATURE, FlowPass, part_taken
from event_binning_grad.estimation.flow_grid import NodeGrid
from event_binning_grad.estimation.image_cpu import (
    BEND,
    BLOCK,
    FLAGS,
    OWN,
    PAD,
    SEEN,
    SLOPE,
    U,
    V,
    add_votes,
    find_bins,
    raw_slopes,
    sum_columns,
    sum_rows,
)
from event_binning_grad.estimation.iwe_grid import IweGrid
from event_binning_grad.estimation.vectors import add_eight

Float32 = npt.NDArray[np.float32]

# Offsets in the scratch, behind those of image_cpu: times, places in cells of the nodes' grid and
# then their fractional parts, displacements.
_S, _A, _B, _FX, _FY = (OWN + n * BLOCK for n in range(5))
_SCRATCH = OWN + 5 * BLOCK
# Sums of a node: gradient (2), Hessian (3), noise, support; one vector register.
_SUMS = 8


class CpuFlowContrast:
    """`flow_contrast.FlowContrast` by the fused pass."""

    def __init__(self, grid: IweGrid, unbiased: bool) -> None:
        self._grid, self._unbiased = grid, unbiased
        # Kept from window to window: nothing large is allocated in the steady state.
        self._images: dict[tuple[int, int], Float32] = {}
        self._projections: dict[float, Float32] = {}
        self._places = np.empty((2, 0), np.float32)

    def load(self, x: Float32, y: Float32, s: Float32) -> None:
        # Strided columns would be compiled for anew.
        x, y, s = np.ascontiguousarray(x), np.ascontiguousarray(y), np.ascontiguousarray(s)
        self._all = (x, y, s)
        self._parts: dict[int, tuple[Float32, Float32, Float32]] = {}
        self._events = self._all

    def settle(self, nodes: NodeGrid, displacement: Float32, bin_size: float) -> None:
        x, y, s = self._all
        chosen = part_taken(len(x), bin_size)
        if isinstance(chosen, slice):
            self._events = self._all
        else:
            if len(chosen) not in self._parts:
                self._parts[len(chosen)] = (x[chosen], y[chosen], s[chosen])
            self._events = self._parts[len(chosen)]
        self._settle(nodes, displacement)

    def evaluate(self, nodes: NodeGrid, displacement: Float32, bin_size: float) -> FlowPass:
        image, projection = self._image(self._grid, bin_size), self._projection(bin_size)
        old, new = self._places
        where = _numbers(nodes)
        x, y, s = self._events
        value = _scatter(x, y, s, old, new, displacement, where, projection, image, 0.0)
        sums = np.zeros((nodes.rows, nodes.cols, _SUMS), np.float32)
        _gather(
            s, old, new, where, nodes.cols, nodes.rows, projection, image,
            self._unbiased, sums.reshape(-1),
        )  # fmt: skip
        self._places = self._places[::-1]
        return FlowPass(
            value, sums[..., :2], sums[..., 2:5], sums[..., 5], sums[..., 6], len(old) // 2
        )

    def squares(
        self, nodes: NodeGrid, displacement: Float32, references: tuple[float, ...]
    ) -> tuple[float, ...]:
        self._events = self._all
        self._settle(nodes, displacement)
        projection = self._projection(1.0)
        return tuple(
            self._render(nodes, displacement, projection, self._grid, reference)
            for reference in references
        )

    def last_image(self) -> Float32:
        return self._last[PAD:-PAD, PAD:-PAD]

    def picture(self, nodes: NodeGrid, displacement: Float32, grid: IweGrid) -> Float32:
        self._events = self._all
        self._settle(nodes, displacement)
        self._render(nodes, displacement, _rows(grid, 1.0), grid, 0.0)
        return self.last_image().copy()

    def _render(
        self,
        nodes: NodeGrid,
        displacement: Float32,
        projection: Float32,
        grid: IweGrid,
        reference: float,
    ) -> float:
        """The image of the events at a reference time; returns the sum of its squares."""
        (x, y, s), (old, new) = self._events, self._places
        self._last, where = self._image(grid, 1.0), _numbers(nodes)
        return _scatter(x, y, s, old, new, displacement, where, projection, self._last, reference)

    def _settle(self, nodes: NodeGrid, displacement: Float32) -> None:
        """The places that the events have at the reference time, by two rounds."""
        x, y, s = self._events
        if self._places.shape[1] != 2 * len(x):
            self._places = np.empty((2, 2 * len(x)), np.float32)
        old, new = self._places
        old[: len(x)], old[len(x) :] = x, y
        for _ in range(2):
            _move(x, y, s, old, new, displacement, _numbers(nodes))
            old, new = new, old

    def _image(self, grid: IweGrid, bin_size: float) -> Float32:
        rows, cols = grid.bins(bin_size).shape
        if (rows, cols) not in self._images:
            self._images[rows, cols] = np.empty((rows + 2 * PAD, cols + 2 * PAD), np.float32)
        return self._images[rows, cols]

    def _projection(self, bin_size: float) -> Float32:
        if bin_size not in self._projections:
            self._projections[bin_size] = _rows(self._grid, bin_size)
        return self._projections[bin_size]


def _rows(grid: IweGrid, bin_size: float) -> Float32:
    """Rows u, v in bins of the padded image: m0, m1, offset."""
    rows = np.column_stack([grid.matrix, grid.offset]) / bin_size
    rows[:, 2] += PAD
    return rows.astype(np.float32)


def _numbers(nodes: NodeGrid) -> Float32:
    """Origin (x, y) and density of the nodes."""
    return np.array([*nodes.origin, 1 / nodes.spacing_px], np.float32)


@numba.njit(**FLAGS)
def _find_cells(places, events, first, count, where, cols, rows, s, cells):
    """The first of each event's four nodes; (_A, _B) become the place between them. NaN: node 0."""
    x0, y0, density = where[0], where[1], where[2]
    zero, right, bottom = np.float32(0), np.float32(cols - 1), np.float32(rows - 1)
    for k in range(count):
        s[_A + k] = (places[first + k] - x0) * density
    for k in range(count):
        s[_B + k] = (places[events + first + k] - y0) * density
    for k in range(count):
        a, b = s[_A + k], s[_B + k]
        a = a if a > zero else zero
        b = b if b > zero else zero
        a = a if a < right else right
        b = b if b < bottom else bottom
        i, j = min(np.int32(a), np.int32(cols - 2)), min(np.int32(b), np.int32(rows - 2))
        cells[k] = j * np.int32(cols) + i
        s[_A + k], s[_B + k] = a - np.float32(i), b - np.float32(j)


@numba.njit(**FLAGS)
def _look_up(flow, count, cols, s, cells):
    """The displacements of a block of events."""
    one, across, n1 = np.float32(1), np.uintp(2 * cols), np.uintp(1)
    n2, n3 = np.uintp(2), np.uintp(3)
    for k in range(count):
        upper = np.uintp(2) * np.uintp(cells[k])
        lower = upper + across
        a, b = s[_A + k], s[_B + k]
        c, d = one - a, one - b
        w00, w01, w10, w11 = c * d, a * d, c * b, a * b
        s[_FX + k] = (
            w00 * flow[upper] + w01 * flow[upper + n2] + w10 * flow[lower] + w11 * flow[lower + n2]
        )
        s[_FY + k] = (
            w00 * flow[upper + n1]
            + w01 * flow[upper + n3]
            + w10 * flow[lower + n1]
            + w11 * flow[lower + n3]
        )


@numba.njit(**FLAGS)
def _warp(x, y, times, old, new, flow, where, first, count, s, cells):
    """Moves a block of events to the reference time, by the flow at their old places."""
    events, (rows, cols, _) = len(x), flow.shape
    _find_cells(old, events, first, count, where, cols, rows, s, cells)
    _look_up(flow.reshape(-1), count, cols, s, cells)
    for k in range(count):
        s[_S + k] = times[first + k]
    for k in range(count):
        new[first + k] = x[first + k] - s[_S + k] * s[_FX + k]
    for k in range(count):
        new[events + first + k] = y[first + k] - s[_S + k] * s[_FY + k]


@numba.njit(**FLAGS)
def _move(x, y, times, old, new, flow, where):
    """Places [2 N] (all x, then all y) at the reference time, by the flow at the old ones."""
    s, cells = np.empty(_SCRATCH, np.float32), np.empty(BLOCK, np.int32)
    for first in range(0, len(x), BLOCK):
        count = min(BLOCK, len(x) - first)
        _warp(x, y, times, old, new, flow, where, first, count, s, cells)


@numba.njit(**FLAGS)
def _project(places, events, first, count, projection, s):
    p00, p01, p02 = projection[0, 0], projection[0, 1], projection[0, 2]
    p10, p11, p12 = projection[1, 0], projection[1, 1], projection[1, 2]
    for k in range(count):
        x, y = places[first + k], places[events + first + k]
        s[U + k], s[V + k] = p00 * x + p01 * y + p02, p10 * x + p11 * y + p12


@numba.njit(**FLAGS)
def _scatter(x, y, times, old, new, flow, where, projection, image, reference):
    """The image of the events at a reference time, and their places there in `new`; returns the sum
    of the squares of its bins. The padding is zero."""
    rows, cols = image.shape
    image[:] = 0
    flat, events = image.reshape(-1), len(x)
    s, cells = np.empty(_SCRATCH, np.float32), np.empty(BLOCK, np.int32)
    later = np.float32(reference)
    for first in range(0, events, BLOCK):
        count = min(BLOCK, events - first)
        _warp(x, y, times, old, new, flow, where, first, count, s, cells)
        if reference != 0:
            for k in range(count):
                new[first + k] += later * s[_FX + k]
            for k in range(count):
                new[events + first + k] += later * s[_FY + k]
        _project(new, events, first, count, projection, s)
        add_votes(count, cols, rows, s, flat)
    # Votes beyond the border are no part of the image.
    image[:PAD], image[rows - PAD :] = 0, 0
    image[:, :PAD], image[:, cols - PAD :] = 0, 0
    total = 0.0
    for j in range(PAD, rows - PAD):
        part = np.float32(0)
        for i in range(PAD, cols - PAD):
            part += image[j, i] * image[j, i]
        total += part
    return total


@numba.njit(**FLAGS)
def _terms(count, projection, s, values):
    """The eight sums' terms of a block of events, an event after the other."""
    p00, p01, p10, p11 = projection[0, 0], projection[0, 1], projection[1, 0], projection[1, 1]
    two, own = np.float32(2), np.float32(OWN_CURVATURE)
    for k in range(count):
        seen, time = s[SEEN + k], -two * s[_S + k]
        su, sv = s[SLOPE + k], s[SLOPE + BLOCK + k]
        gx, gy = time * (p00 * su + p10 * sv), time * (p01 * su + p11 * sv)
        time *= -s[_S + k]
        uu, uv = s[BEND + k] - seen * own, s[BEND + BLOCK + k]
        vv = s[BEND + 2 * BLOCK + k] - seen * own
        au, av = p00 * uu + p10 * uv, p00 * uv + p10 * vv
        bu, bv = p01 * uu + p11 * uv, p01 * uv + p11 * vv
        values[8 * k], values[8 * k + 1] = gx, gy
        values[8 * k + 2] = time * (p00 * au + p10 * av)
        values[8 * k + 3] = time * (p01 * au + p11 * av)
        values[8 * k + 4] = time * (p01 * bu + p11 * bv)
        values[8 * k + 5] = gx * gx + gy * gy
        values[8 * k + 6], values[8 * k + 7] = seen, np.float32(0)


@numba.njit(**FLAGS)
def _gather(times, old, new, where, node_cols, node_rows, projection, image, unbiased, sums):
    """Adds every event's terms to its four nodes' sums [nodes * 8]."""
    rows, cols = image.shape
    events = len(times)
    s, cells = np.empty(_SCRATCH, np.float32), np.empty(BLOCK, np.int32)
    corners, columns = np.empty(BLOCK, np.int32), np.empty(12 * BLOCK, np.float32)
    values = np.empty(8 * BLOCK, np.float32)
    one, eight, across = np.float32(1), np.uintp(8), np.uintp(8 * node_cols)
    for first in range(0, events, BLOCK):
        count = min(BLOCK, events - first)
        _project(new, events, first, count, projection, s)
        find_bins(count, rows, cols, s, corners)
        sum_rows(count, image, corners, s, columns)
        sum_columns(count, columns, s)
        if not unbiased:
            raw_slopes(count, image, corners, s)
        for k in range(count):
            s[_S + k] = times[first + k]
        _terms(count, projection, s, values)
        _find_cells(old, events, first, count, where, node_cols, node_rows, s, cells)
        for k in range(count):
            a, b = s[_A + k], s[_B + k]
            c, d = one - a, one - b
            at, of = eight * np.uintp(cells[k]), eight * np.uintp(k)
            below = at + across
            add_eight(sums, at, c * d, values, of)  # pyright: ignore # intrinsic
            add_eight(sums, at + eight, a * d, values, of)  # pyright: ignore # intrinsic
            add_eight(sums, below, c * b, values, of)  # pyright: ignore # intrinsic
            add_eight(sums, below + eight, a * b, values, of)  # pyright: ignore # intrinsic
