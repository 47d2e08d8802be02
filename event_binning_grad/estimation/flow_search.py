"""Motions that no Newton step reaches: a search for small things that move by themselves.

A thing that is smaller than the coarse grids' cells is not seen by them, and on the fine grid its
motion may be many bins away. So blocks of the image are searched for a displacement, beside that of
the field, at which their own events meet: first in steps of a few pixels, then finer.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from event_binning_grad.estimation.flow_grid import NodeGrid, interpolate, nodes_of

Float32 = npt.NDArray[np.float32]

_FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "cache": True}

# Events that are looked at, evenly spread: more would not find more.
_EVENTS = 32_000
# In units of px: side of a cell; a block is _BLOCK x _BLOCK cells about every second one.
_CELL_PX, _BLOCK = 12.0, 3
# Displacements tried: (2 n + 1)^2 in steps of so many pixels with bins of so many; then the same
# about the best.
_COARSE = (3, 5.0, 4.0)
_FINE = (1, 2.5, 2.0)
# The events of a block must meet so much better, in what is not by chance, and by so many standard
# deviations of what chance does.
_CLEARLY, _SIGNIFICANT = 1.15, 5.0
# A node takes over what a neighbour found if its own events meet by so much better, in bins of so
# many of its four cells' two sides; neighbours that differ by less (px) are alike. Rounds at most.
_BETTER, _NODE_BINS, _ALIKE_PX, _ROUNDS = 1.05, 10, 1.5, 6
# Blocks with fewer events are left alone.
_MIN_EVENTS = 30


def searched(columns: Float32, nodes: NodeGrid, displacement: Float32, scale: float) -> Float32:
    """The field [rows, cols, 2] with the nodes of blocks that found something moved there.

    Args:
        columns: [3, N] x, y in pixels and times in spans of the window from the reference time.
        scale: what the sizes here are multiplied with: pixels of the sensor to one of the image.
    """
    every = max(1, -(-columns.shape[1] // _EVENTS))
    x, y, s = np.ascontiguousarray(columns[:, ::every])
    place = np.stack([x, y], 1)
    for _ in range(2):
        at = interpolate(nodes, displacement, *np.ascontiguousarray(place.T))
        place = np.stack([x, y], 1) - s[:, None] * at
    side = np.float32(_CELL_PX * scale)
    (x0, y0), across = nodes.origin, nodes.spacing_px
    rows = int(np.ceil(nodes.rows * across / side)) + 1
    cols = int(np.ceil(nodes.cols * across / side)) + 1
    origin = np.array([x0 - across / 2, y0 - across / 2], np.float32)
    local = (place - origin) / side
    first, order = _sorted(local, rows, cols)
    found = np.zeros(((rows + 1) // 2, (cols + 1) // 2, 2), np.float32)
    _search(local, s, first, order, rows, cols, side, np.float32(scale), found)
    xs, ys = nodes_of(nodes)
    block_cols = np.minimum(((xs - origin[0]) / (2 * side)).astype(np.intp), found.shape[1] - 1)
    block_rows = np.minimum(((ys - origin[1]) / (2 * side)).astype(np.intp), found.shape[0] - 1)
    moved = np.ascontiguousarray(found[block_rows, block_cols].reshape(displacement.shape))
    if moved.any():
        local = (place - np.array(nodes.origin, np.float32)) / np.float32(across) + 1
        first, order = _sorted(local, nodes.rows + 1, nodes.cols + 1)
        _hand_on(local, s, first, order, np.float32(across), moved)
    return displacement + moved


def warm_up() -> None:
    """Compiles what is run only where something moves by itself (seconds the first time)."""
    place, time, moved = np.zeros((1, 2), np.float32), np.zeros(1, np.float32), np.zeros((1, 1, 2))
    first, order = _sorted(place, 2, 2)
    _hand_on(place, time, first, order, np.float32(1), moved.astype(np.float32))


@numba.njit(**_FLAGS)
def _sorted(local, rows, cols):
    """Events by cell, in their order: where each cell's begin [rows * cols + 1], and the events."""
    first, cells = np.zeros(rows * cols + 1, np.int64), np.empty(len(local), np.int64)
    for n in range(len(local)):
        u, v = local[n, 0], local[n, 1]
        inside = u >= 0 and v >= 0 and u < cols and v < rows  # false for NaN
        cells[n] = int(v) * cols + int(u) if inside else -1
        if inside:
            first[cells[n] + 1] += 1
    for c in range(rows * cols):
        first[c + 1] += first[c]
    order, fill = np.empty(first[-1], np.int64), first[:-1].copy()
    for n in range(len(local)):
        if cells[n] >= 0:
            order[fill[cells[n]]] = n
            fill[cells[n]] += 1
    return first, order


@numba.njit(**_FLAGS)
def _squares(u, v, s, count, fx, fy, size, image, at):
    """The sum of the squares of the bins of an image [size * size] of events moved on by f."""
    for n in range(size * size + 1):
        image[n] = 0
    limit, zero, wide = np.float32(size), np.float32(0), np.int32(size)
    # Off the image: into one more bin. No branch, so that the first loop takes many at a time.
    for n in range(count):
        a, b = u[n] - s[n] * fx, v[n] - s[n] * fy
        inside = (a >= zero) & (b >= zero) & (a < limit) & (b < limit)
        a, b = a if inside else zero, b if inside else limit
        at[n] = np.int32(b) * wide + np.int32(a)
    for n in range(count):
        image[np.uintp(at[n])] += np.int32(1)
    total = np.int32(0)
    for n in range(size * size):
        total += image[n] * image[n]
    return total


@numba.njit(**_FLAGS)
def _search(local, s, first, order, rows, cols, side, scale, found):
    most = 0
    for c in range(rows * cols):
        most = max(most, first[c + 1] - first[c])
    room = _BLOCK * _BLOCK * most + 1
    u, v, time = np.empty(room, np.float32), np.empty(room, np.float32), np.empty(room, np.float32)
    fine_u, fine_v = np.empty(room, np.float32), np.empty(room, np.float32)
    steps, step, bin_px = _COARSE
    fine_steps, fine_step, fine_px = _FINE
    # Room around the block for what the displacements move out of it.
    reach = steps * step / 2 + fine_step
    size = int(np.ceil((_BLOCK * _CELL_PX + 2 * reach) / bin_px)) + 1
    fine_size = int(np.ceil((_BLOCK * _CELL_PX + 2 * reach) / fine_px)) + 1
    image = np.empty(max(size, fine_size) ** 2 + 1, np.int32)
    at = np.empty(room, np.int32)
    for block_row in range(found.shape[0]):
        for block_col in range(found.shape[1]):
            # The cells about the middle of the block's two by two; a block is three by three.
            top, left = max(0, 2 * block_row - 1), max(0, 2 * block_col - 1)
            count = 0
            for j in range(top, min(top + _BLOCK, rows)):
                for i in range(left, min(left + _BLOCK, cols)):
                    for k in range(first[j * cols + i], first[j * cols + i + 1]):
                        n = order[k]
                        x = (local[n, 0] - left) * np.float32(_CELL_PX) + np.float32(reach)
                        y = (local[n, 1] - top) * np.float32(_CELL_PX) + np.float32(reach)
                        u[count], v[count] = x / np.float32(bin_px), y / np.float32(bin_px)
                        fine_u[count] = x / np.float32(fine_px)
                        fine_v[count] = y / np.float32(fine_px)
                        time[count] = s[n]
                        count += 1
            if count < _MIN_EVENTS:
                continue
            best, di, dj = -1, 0, 0
            for j in range(-steps, steps + 1):
                for i in range(-steps, steps + 1):
                    fx = np.float32(i * step / bin_px)
                    fy = np.float32(j * step / bin_px)
                    value = _squares(u, v, time, count, fx, fy, size, image, at)
                    if value > best:
                        best, di, dj = value, i, j
            if di == 0 and dj == 0:
                continue
            here, there, ex, ey = -1, -1, 0.0, 0.0
            for j in range(-fine_steps, fine_steps + 1):
                for i in range(-fine_steps, fine_steps + 1):
                    x, y = i * fine_step, j * fine_step
                    fx, fy = np.float32(x / fine_px), np.float32(y / fine_px)
                    value = _squares(fine_u, fine_v, time, count, fx, fy, fine_size, image, at)
                    here = max(here, value)
                    x, y = di * step + x, dj * step + y
                    fx, fy = np.float32(x / fine_px), np.float32(y / fine_px)
                    value = _squares(fine_u, fine_v, time, count, fx, fy, fine_size, image, at)
                    if value > there:
                        there, ex, ey = value, x, y
            bins = (_BLOCK * _CELL_PX / fine_px) ** 2
            mean = count / bins
            chance = count + count * mean
            deviation = np.sqrt(bins * (2 * mean * mean + mean))
            if (
                there - chance > _CLEARLY * (here - chance)
                and there - here > _SIGNIFICANT * deviation
            ):
                found[block_row, block_col, 0] = scale * np.float32(ex)
                found[block_row, block_col, 1] = scale * np.float32(ey)


@numba.njit(**_FLAGS)
def _hand_on(local, s, first, order, across, moved):
    """Spreads what blocks found from node to node, and takes it back, as the nodes' own events say.

    local: [N, 2] places in cells, of which the four about node (j, i) are those from (j, i) on.
    """
    rows, cols, _ = moved.shape
    most = 0
    for c in range(len(first) - 1):
        most = max(most, first[c + 1] - first[c])
    room = 4 * most + 1
    u, v, time = np.empty(room, np.float32), np.empty(room, np.float32), np.empty(room, np.float32)
    margin = 4
    size = _NODE_BINS + 2 * margin
    image, at = np.empty(size * size + 1, np.int32), np.empty(room, np.int32)
    bins = np.float32(_NODE_BINS / 2)
    for turn in range(_ROUNDS):
        changed = 0
        for n in range(rows * cols):
            k = n if turn % 2 == 0 else rows * cols - 1 - n
            j, i = k // cols, k % cols
            count, own = -1, 0.0
            for dj in range(-1, 2):
                for di in range(-1, 2):
                    b, a = j + dj, i + di
                    if b < 0 or a < 0 or b >= rows or a >= cols:
                        continue
                    fx, fy = moved[b, a, 0], moved[b, a, 1]
                    x, y = fx - moved[j, i, 0], fy - moved[j, i, 1]
                    if x * x + y * y < _ALIKE_PX * _ALIKE_PX:
                        continue
                    if count < 0:
                        count = 0
                        for cell_row in range(j, j + 2):
                            for cell_col in range(i, i + 2):
                                cell = cell_row * (cols + 1) + cell_col
                                for m in range(first[cell], first[cell + 1]):
                                    e = order[m]
                                    u[count] = (local[e, 0] - i) * bins + margin
                                    v[count] = (local[e, 1] - j) * bins + margin
                                    time[count] = s[e] * bins / across
                                    count += 1
                        own = _BETTER * _squares(
                            u, v, time, count, moved[j, i, 0], moved[j, i, 1], size, image, at
                        )
                    value = _squares(u, v, time, count, fx, fy, size, image, at)
                    if value > own:
                        own = _BETTER * value
                        moved[j, i, 0], moved[j, i, 1] = fx, fy
                        changed += 1
        if changed == 0:
            break
