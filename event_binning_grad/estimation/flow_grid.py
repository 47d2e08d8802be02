"""Flow as a grid of nodes: where they are, how flow is looked up between them, and how they hold
together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_FLAGS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "cache": True,
}
# Of a step's conjugate gradients: rounds at most, and the residual at which they end.
_ITERATIONS, _TOLERANCE = 60, 0.02
# Of `steepened`, at most.
_STEEPEST = 5.0
# Of `smooth_model`: rounds, the scale of residuals in px in the first and the last of them.
_ROUNDS, _WIDE_PX, _NARROW_PX = 8, 4.0, 1.0


@dataclass(frozen=True)
class NodeGrid:
    """Nodes at origin + spacing * (column, row), in pixels; flow is bilinear between them, and that
    of the nearest place of the grid beyond.

    Attributes:
        origin: (x, y) of the first node.
        spacing_px: distance of neighbouring nodes.
        rows, cols: number of nodes, 2 or more each way.
    """

    origin: tuple[float, float]
    spacing_px: float
    rows: int
    cols: int


def node_grid(low: Float64, high: Float64, spacing_px: float) -> NodeGrid:
    """The grid of about this spacing over the box from low to high (x, y), centred on it."""
    cells = np.maximum(1, np.ceil((high - low) / spacing_px - 1e-6)).astype(int)
    origin = (low + high - spacing_px * cells) / 2
    return NodeGrid(
        (float(origin[0]), float(origin[1])), spacing_px, int(cells[1]) + 1, int(cells[0]) + 1
    )


def grid_levels(low: Float64, high: Float64, finest_px: float, max_nodes: int) -> list[NodeGrid]:
    """Grids from coarse (about 3 x 4 nodes) to fine, each of half the spacing of the last."""
    width, height = high - low
    least = math.sqrt(width * height / max_nodes)
    spacing = max(finest_px, least)
    grids = [node_grid(low, high, spacing)]
    while min(grids[0].rows, grids[0].cols) > 5:
        spacing *= 2
        grids.insert(0, node_grid(low, high, spacing))
    return grids


@numba.njit(**_FLAGS)
def _interpolate(flow, x0, y0, spacing, xs, ys, out):
    rows, cols, _ = flow.shape
    for n in range(len(xs)):
        u = min(max((xs[n] - x0) / spacing, np.float32(0)), np.float32(cols - 1))
        v = min(max((ys[n] - y0) / spacing, np.float32(0)), np.float32(rows - 1))
        i, j = min(int(u), cols - 2), min(int(v), rows - 2)
        fu, fv = u - np.float32(i), v - np.float32(j)
        for c in range(2):
            upper = (1 - fu) * flow[j, i, c] + fu * flow[j, i + 1, c]
            lower = (1 - fu) * flow[j + 1, i, c] + fu * flow[j + 1, i + 1, c]
            out[n, c] = (1 - fv) * upper + fv * lower


def interpolate(grid: NodeGrid, flow: Float32, xs: Float32, ys: Float32) -> Float32:
    """[N, 2] flow at places (x, y) [N] of a field [rows, cols, 2]; NaN places give NaN."""
    out = np.empty((len(xs), 2), np.float32)
    x0, y0 = np.float32(grid.origin[0]), np.float32(grid.origin[1])
    _interpolate(flow, x0, y0, np.float32(grid.spacing_px), xs, ys, out)
    return out


def nodes_of(grid: NodeGrid) -> tuple[Float32, Float32]:
    """x and y [rows * cols] of the nodes, row by row."""
    x = grid.origin[0] + grid.spacing_px * np.arange(grid.cols)
    y = grid.origin[1] + grid.spacing_px * np.arange(grid.rows)
    xs, ys = np.meshgrid(x, y)
    return xs.ravel().astype(np.float32), ys.ravel().astype(np.float32)


def resample(source: NodeGrid, flow: Float32, target: NodeGrid) -> Float32:
    """The flow at the nodes of another grid."""
    return interpolate(source, flow, *nodes_of(target)).reshape(target.rows, target.cols, 2)


def on_pixels(grid: NodeGrid, field: Float32, size: tuple[int, int], stride: int = 1) -> Float32:
    """[H, W, C] of a field [rows, cols, C] at every stride-th pixel of a sensor (width, height)."""
    (width, height), (x0, y0) = size, grid.origin
    across = _along(np.arange(0, width, stride), x0, grid.spacing_px, grid.cols)
    down = _along(np.arange(0, height, stride), y0, grid.spacing_px, grid.rows)
    dense = np.empty((len(down[0]), len(across[0]), field.shape[2]), np.float32)
    _interpolate_pixels(field, *across, *down, dense)
    return dense


def _along(
    pixels: npt.NDArray[np.int64], origin: float, spacing_px: float, count: int
) -> tuple[Float32, npt.NDArray[np.int64]]:
    at = np.clip((pixels - origin) / spacing_px, 0, count - 1)
    first = np.minimum(at.astype(np.int64), count - 2)
    return (at - first).astype(np.float32), first


@numba.njit(**_FLAGS)
def _interpolate_pixels(field, across, first, down, top, out):
    _, cols, channels = field.shape
    row = np.empty((cols, channels), np.float32)
    for j in range(len(top)):
        upper, lower, b = field[top[j]], field[top[j] + 1], down[j]
        for i in range(cols):
            for c in range(channels):
                row[i, c] = upper[i, c] + b * (lower[i, c] - upper[i, c])
        for i in range(len(first)):
            n, a = first[i], across[i]
            for c in range(channels):
                out[j, i, c] = row[n, c] + a * (row[n + 1, c] - row[n, c])


def sampled(grid: NodeGrid, field: Float32) -> Float32:
    """[rows, cols, 2] of a field [H, W, 2] on pixels, at the pixels nearest to the nodes."""
    height, width, _ = field.shape
    xs, ys = nodes_of(grid)
    columns = np.clip(np.rint(xs), 0, width - 1).astype(np.intp)
    rows = np.clip(np.rint(ys), 0, height - 1).astype(np.intp)
    return field[rows, columns].reshape(grid.rows, grid.cols, 2)


def carried(grid: NodeGrid, flow: Float32, shift: float) -> Float32:
    """The field after it moved along itself by `shift` times the flow."""
    xs, ys = nodes_of(grid)
    here, far = flow.reshape(-1, 2), np.float32(shift)
    for _ in range(2):
        here = interpolate(grid, flow, xs - far * here[:, 0], ys - far * here[:, 1])
    return here.reshape(flow.shape)


@numba.njit(**_FLAGS)
def _hold(field, first, second, edge_px, holds):
    """How strongly neighbours hold together, holds [4, rows, cols]: differences to the right and
    below, second differences across and down (0 where there is none). field: [2, rows, cols]."""
    _, rows, cols = field.shape
    scale, one, two = np.float32(1 / edge_px**2), np.float32(1), np.float32(2)
    first, second = np.float32(first), np.float32(second)
    holds[:] = 0
    for j in range(rows):
        for i in range(cols - 1):
            x = field[0, j, i] - field[0, j, i + 1]
            y = field[1, j, i] - field[1, j, i + 1]
            q = one + scale * (x * x + y * y)
            holds[0, j, i] = first / (q * q)
        for i in range(1, cols - 1):
            x = field[0, j, i - 1] - two * field[0, j, i] + field[0, j, i + 1]
            y = field[1, j, i - 1] - two * field[1, j, i] + field[1, j, i + 1]
            q = one + scale * (x * x + y * y)
            holds[2, j, i] = second / (q * q)
    for j in range(rows - 1):
        for i in range(cols):
            x = field[0, j, i] - field[0, j + 1, i]
            y = field[1, j, i] - field[1, j + 1, i]
            q = one + scale * (x * x + y * y)
            holds[1, j, i] = first / (q * q)
    for j in range(1, rows - 1):
        for i in range(cols):
            x = field[0, j - 1, i] - two * field[0, j, i] + field[0, j + 1, i]
            y = field[1, j - 1, i] - two * field[1, j, i] + field[1, j + 1, i]
            q = one + scale * (x * x + y * y)
            holds[3, j, i] = second / (q * q)


@numba.njit(**_FLAGS)
def _pull(holds, field, strain, out):
    """out -= what the holds pull at a field, both [2, rows, cols]; strain [4, rows, cols] is
    scratch."""
    _, rows, cols = field.shape
    two = np.float32(2)
    for c in range(2):
        strain[:] = 0
        for j in range(rows):
            for i in range(cols - 1):
                strain[0, j, i] = holds[0, j, i] * (field[c, j, i] - field[c, j, i + 1])
            for i in range(1, cols - 1):
                strain[2, j, i] = holds[2, j, i] * (
                    field[c, j, i - 1] - two * field[c, j, i] + field[c, j, i + 1]
                )
        for j in range(rows - 1):
            for i in range(cols):
                strain[1, j, i] = holds[1, j, i] * (field[c, j, i] - field[c, j + 1, i])
        for j in range(1, rows - 1):
            for i in range(cols):
                strain[3, j, i] = holds[3, j, i] * (
                    field[c, j - 1, i] - two * field[c, j, i] + field[c, j + 1, i]
                )
        for j in range(rows):
            for i in range(cols):
                out[c, j, i] += two * (strain[2, j, i] + strain[3, j, i])
            for i in range(cols):
                out[c, j, i] -= strain[0, j, i] + strain[1, j, i]
            for i in range(1, cols):
                out[c, j, i] += strain[0, j, i - 1] - strain[2, j, i - 1]
            for i in range(cols - 1):
                out[c, j, i] -= strain[2, j, i + 1]
        for j in range(1, rows):
            for i in range(cols):
                out[c, j, i] += strain[1, j - 1, i] - strain[3, j - 1, i]
        for j in range(rows - 1):
            for i in range(cols):
                out[c, j, i] -= strain[3, j + 1, i]


@numba.njit(**_FLAGS)
def _stiffness(holds, j, i):
    """The diagonal of the holds' matrix."""
    _, rows, cols = holds.shape
    total = holds[0, j, i] + holds[1, j, i] + np.float32(4) * (holds[2, j, i] + holds[3, j, i])
    if i > 0:
        total += holds[0, j, i - 1] + holds[2, j, i - 1]
    if j > 0:
        total += holds[1, j - 1, i] + holds[3, j - 1, i]
    if i + 1 < cols:
        total += holds[2, j, i + 1]
    if j + 1 < rows:
        total += holds[3, j + 1, i]
    return total


@numba.njit(**_FLAGS)
def _concave(hessian, curves):
    """curves [3, rows, cols]: minus the Hessian [rows, cols, 3], its eigenvalues at least 0;
    returns their mean over the nodes."""
    rows, cols, _ = hessian.shape
    zero, half_ = np.float32(0), np.float32(0.5)
    total = 0.0
    for j in range(rows):
        for i in range(cols):
            a, b, c = -hessian[j, i, 0], -hessian[j, i, 1], -hessian[j, i, 2]
            mean, half = half_ * (a + c), half_ * (a - c)
            radius = np.sqrt(half * half + b * b)
            high, low = max(mean + radius, zero), max(mean - radius, zero)
            middle = half_ * (high + low)
            turn = half_ * (high - low) / max(radius, np.float32(1e-30))
            curves[0, j, i], curves[1, j, i] = middle + turn * half, turn * b
            curves[2, j, i] = middle - turn * half
            total += middle
    return total / (rows * cols)


@numba.njit(**_FLAGS)
def newton_step(displacement, gradient, hessian, model, holds_at, edge_px, limit_px):
    """Newton step [rows, cols, 2] towards more contrast and a smoother field.

    Maximises over d, for all nodes together,

        g . d + d . H d / 2 - sum over the terms e of F + d of h(e) |e|^2 / 2

    where e are first differences F_a - F_b of neighbours, second ones F_a - 2 F_b + F_c along rows
    and columns, and differences F_a - M_a from a model of the whole field. h = hold / (1 + |e|^2 /
    edge_px^2)^2 is the weight of Geman and McClure's function at F: what differs by more is on
    either side of a motion edge, or moves by itself, and is let go. By conjugate gradients, the
    nodes' own 2 x 2 blocks as preconditioner.

    Args:
        displacement: [rows, cols, 2], F, px.
        gradient: [rows, cols, 2]; hessian: [rows, cols, 3] (xx, xy, yy), its eigenvalues are made
            negative or 0.
        model: [rows, cols, 2], M, px.
        holds_at: (first, second, model), the holds of the three kinds of terms as shares of the
            nodes' mean curvature.
        limit_px: length of a node's step at most.
    """
    rows, cols, _ = displacement.shape
    curves = np.empty((3, rows, cols), np.float32)
    unit = _concave(hessian, curves)
    step = np.zeros((rows, cols, 2), np.float32)
    if not unit > 0:  # nothing known, or NaN
        return step
    field, rest = np.empty((2, rows, cols), np.float32), np.empty((2, rows, cols), np.float32)
    for j in range(rows):
        for i in range(cols):
            for c in range(2):
                field[c, j, i], rest[c, j, i] = displacement[j, i, c], gradient[j, i, c]
    holds = np.empty((4, rows, cols), np.float32)
    strain = np.empty((4, rows, cols), np.float32)
    first, second, third = holds_at
    _hold(field, first * unit, second * unit, edge_px, holds)
    _pull(holds, field, strain, rest)
    scale, third = np.float32(1 / edge_px**2), np.float32(third * unit)
    for j in range(rows):
        for i in range(cols):
            x, y = field[0, j, i] - model[j, i, 0], field[1, j, i] - model[j, i, 1]
            q = np.float32(1) + scale * (x * x + y * y)
            hold = third / (q * q)
            rest[0, j, i] -= hold * x
            rest[1, j, i] -= hold * y
            curves[0, j, i] += hold
            curves[2, j, i] += hold
    inverse = np.empty((3, rows, cols), np.float32)
    for j in range(rows):
        for i in range(cols):
            stiffness = _stiffness(holds, j, i)
            a, b, c = curves[0, j, i] + stiffness, curves[1, j, i], curves[2, j, i] + stiffness
            scale = np.float32(1) / max(a * c - b * b, np.float32(1e-20))
            inverse[0, j, i], inverse[1, j, i], inverse[2, j, i] = c * scale, -b * scale, a * scale
    found, way = np.zeros_like(field), np.zeros_like(field)
    image, scaled = np.empty_like(field), np.empty_like(field)
    before, began = 1.0, 0.0
    for iteration in range(_ITERATIONS):
        square = 0.0
        for j in range(rows):
            part = np.float32(0)
            for i in range(cols):
                x, y = rest[0, j, i], rest[1, j, i]
                scaled[0, j, i] = inverse[0, j, i] * x + inverse[1, j, i] * y
                scaled[1, j, i] = inverse[1, j, i] * x + inverse[2, j, i] * y
                part += scaled[0, j, i] * x + scaled[1, j, i] * y
            square += part
        began = square if iteration == 0 else began
        if not square > _TOLERANCE * _TOLERANCE * began:
            break
        share = np.float32(square / before if iteration else 0.0)
        before = square
        for j in range(rows):
            for i in range(cols):
                way[0, j, i] = scaled[0, j, i] + share * way[0, j, i]
                way[1, j, i] = scaled[1, j, i] + share * way[1, j, i]
                x, y = way[0, j, i], way[1, j, i]
                image[0, j, i] = -curves[0, j, i] * x - curves[1, j, i] * y
                image[1, j, i] = -curves[1, j, i] * x - curves[2, j, i] * y
        _pull(holds, way, strain, image)
        along = 0.0
        for j in range(rows):
            part = np.float32(0)
            for i in range(cols):
                part += way[0, j, i] * image[0, j, i] + way[1, j, i] * image[1, j, i]
            along -= part
        length = np.float32(square / max(along, 1e-30))
        for j in range(rows):
            for i in range(cols):
                found[0, j, i] += length * way[0, j, i]
                found[1, j, i] += length * way[1, j, i]
                rest[0, j, i] += length * image[0, j, i]
                rest[1, j, i] += length * image[1, j, i]
    for j in range(rows):
        for i in range(cols):
            x, y = found[0, j, i], found[1, j, i]
            length = max(np.sqrt(x * x + y * y), np.float32(1e-9))
            shrink = min(np.float32(1), np.float32(limit_px) / length)
            step[j, i, 0], step[j, i, 1] = shrink * x, shrink * y
    return step


def smooth_model(grid: NodeGrid, displacement: Float32, hessian: Float32) -> Float32:
    """The quadratic field that most of a field [rows, cols, 2] follows, at the same nodes.

    The flow of a plane, or of a rotating camera, is quadratic in the pixels but for higher orders
    of the motion. A robust fit: weights by curvature, as far as nodes differ by little from the
    fit; Geman and McClure's function by reweighting, its scale from wide to narrow.
    """
    curvature = np.maximum(-(hessian[..., 0] + hessian[..., 2]).astype(np.float64), 0)
    most = np.minimum(curvature, np.percentile(curvature, 80)) + 1e-12
    fit = np.empty_like(displacement)
    _fit_quadratic(displacement, most, fit)
    return fit


@numba.njit(**_FLAGS)
def _fit_quadratic(field, most, fit):
    rows, cols, _ = field.shape
    half = max(rows, cols) / 2
    normal, right = np.empty((6, 6)), np.empty((6, 2))
    basis, terms = np.empty(6), np.zeros((6, 2))
    # What the nodes do not tell, a term of higher order least of all, stays near zero.
    ridge = most.sum() * np.array([1e-7, 3e-6, 3e-6, 3e-5, 3e-5, 3e-5])
    basis[0] = 1.0
    for n in range(_ROUNDS + 1):
        square = (_WIDE_PX * (_NARROW_PX / _WIDE_PX) ** ((n - 1) / (_ROUNDS - 1))) ** 2
        normal[:], right[:] = 0, 0
        for j in range(rows):
            for i in range(cols):
                u, v = (i - (cols - 1) / 2) / half, (j - (rows - 1) / 2) / half
                basis[1], basis[2], basis[3], basis[4], basis[5] = u, v, u * u, u * v, v * v
                x, y, weight = 0.0, 0.0, most[j, i]
                for a in range(6):
                    x += basis[a] * terms[a, 0]
                    y += basis[a] * terms[a, 1]
                if n == _ROUNDS:
                    fit[j, i, 0], fit[j, i, 1] = x, y
                    continue
                if n > 0:
                    off = (field[j, i, 0] - x) ** 2 + (field[j, i, 1] - y) ** 2
                    weight /= (1 + off / square) ** 2
                for a in range(6):
                    share = weight * basis[a]
                    right[a, 0] += share * field[j, i, 0]
                    right[a, 1] += share * field[j, i, 1]
                    for b in range(6):
                        normal[a, b] += share * basis[b]
        for a in range(6):
            normal[a, a] += ridge[a]
        terms = np.linalg.solve(normal, right)


def steepened(hessian: Float32, step: Float32, change: Float32) -> Float32:
    """The Hessian [rows, cols, 3] as steep as the gradient's change [rows, cols, 2] over the last
    step shows, if that is steeper: the fixed-cotangent Hessian leaves a part out, and steps that
    are too long would swing about the top."""
    x, y = step[..., 0], step[..., 1]
    along = hessian[..., 0] * x * x + 2 * hessian[..., 1] * x * y + hessian[..., 2] * y * y
    expected, seen = float(along.sum()), float((step * change).sum())
    if not (expected < 0 and seen < expected):
        return hessian
    return hessian * np.float32(min(seen / expected, _STEEPEST))
