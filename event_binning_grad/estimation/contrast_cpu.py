"""The contrast's CPU path: value, gradient and Hessian in one fused numba pass.

Twin of `contrast.TorchContrast` for bilinear votes. One 4-tap scatter and one 16-tap gather over
the events, nothing allocated that grows with taps x events. The work is cut into parts by the size
of the problem alone and summed in order, so the result is the same bit for bit at any number of
threads.
Events go through in blocks, see `image_cpu`.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import ConfigError
from event_binning_grad.estimation.contrast import (
    MIN_DEPTH,
    TIME_PARTS,
    ContrastConfig,
    ContrastPass,
    Float32,
    Float64,
    HostContrast,
    WindowEvents,
    events_taken,
)
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
from event_binning_grad.estimation.motion import PARAMETERS
from event_binning_grad.estimation.trust import structure
from event_binning_grad.numba_threads import parallel_section

# Events a part, the unit of work of a thread, in the gather; the scatter's parts hold more,
# because each has an image of its own to clear and to add.
_PART = 2048
_MAX_IMAGES = 8
# Windows of fewer events are done by one thread. Waking the others a few times a pass takes as long
# as they would save, and a robot has other work for them.
PARALLEL_FROM = 50_000

# Offsets in the scratch, behind those of image_cpu: the events, ...
_X, _Y, _TAU, _RHO = (OWN + n * BLOCK for n in range(4))
# ... their rotation vectors, rotated bearings, images of the points (x, y, 1 / z), tau * rho, ...
_THETA, _ROTATED, _POINT, _SHIFT = (OWN + n * BLOCK for n in (4, 7, 10, 13))
# ... derivatives of u or v by the point, of u and of v by theta, of the objective by theta, and a
# row of the Hessian on its way.
_BY_POINT, _U_BY_THETA, _V_BY_THETA, _BY_THETA = (OWN + n * BLOCK for n in (14, 17, 20, 23))
_ROW_U, _ROW_V = (OWN + n * BLOCK for n in (26, 27))
_SCRATCH = OWN + 28 * BLOCK

# Objectives whose cotangent is the image itself but for a constant and a factor.
_NATIVE = ("variance", "mean_square")


def is_fused(config: ContrastConfig) -> bool:
    """Whether there is a fused pass for these kernels."""
    return config.binning == "linear" and config.reconstruction in ("linear", None)


class CpuContrast(HostContrast):
    """`contrast.Contrast` by the fused pass.

    Raises:
        ConfigError: there is none for these kernels.
    """

    def __init__(self, grid: IweGrid, config: ContrastConfig) -> None:
        if not is_fused(config):
            raise ConfigError(
                f"binning {config.binning!r} with reconstruction {config.reconstruction!r}: the "
                "fused pass has 'linear' with 'linear' or none"
            )
        self._grid = grid
        self._config = config
        self._unbiased = config.reconstruction is not None
        # Images by bin size, kept from window to window: nothing is allocated in the steady state.
        self._images: dict[float, Float32] = {}
        self._projections: dict[float, Float32] = {}
        self._cotangent = np.empty((0, 0), np.float32)

    def load(self, window: WindowEvents, active: npt.NDArray[np.int64]) -> None:
        self._window = window
        self._active = active
        self._parts: dict[int, tuple[Float32, ...]] = {}

    def iwe(self, parameters: Float64, bin_size: float) -> Float32:
        self._scatter(self._columns(len(self._window)), parameters, bin_size)
        return self.last_iwe()

    def last_iwe(self) -> Float32:
        return self._last[PAD:-PAD, PAD:-PAD]

    def evaluate(self, parameters: Float64, bin_size: float, share: float = 1.0) -> ContrastPass:
        taken = events_taken(len(self._window), share)
        columns = self._columns(taken)
        image, total, square = self._scatter(columns, parameters, bin_size)
        bins = (image.shape[0] - 2 * PAD) * (image.shape[1] - 2 * PAD)
        mean = total / bins
        value, cotangent, scale = square / bins - mean**2, image, 2 / bins
        if self._config.objective == "mean_square":
            value = square / bins
        elif self._config.objective not in _NATIVE:
            value, cotangent, scale = *self._by_torch(image), 1.0
        arguments: Any = (
            *columns, parameters.astype(np.float32), self._projection(bin_size), self._active,
            cotangent, self._unbiased,
        )  # fmt: skip
        if taken < PARALLEL_FROM:
            sums = _gather_serial(*arguments)
        else:
            with parallel_section():
                sums = _gather(*arguments)
        return ContrastPass(value, *_derivatives(sums, len(self._active), scale), taken)

    def gain_and_structure(self) -> tuple[float, float]:
        variance, structured = self._variance(), float(structure(self.last_iwe()))
        self.iwe(np.zeros(PARAMETERS), self._solved_bin_size)
        return variance / max(self._variance(), 1e-12), structured

    def _variance(self) -> float:
        """Of the last image."""
        bins = (self._last.shape[0] - 2 * PAD) * (self._last.shape[1] - 2 * PAD)
        total, square = self._sums
        return square / bins - (total / bins) ** 2

    def _columns(self, taken: int) -> tuple[Float32, ...]:
        """x, y, tau and inverse depth of so many events, evenly spread over the window."""
        window, total = self._window, len(self._window)
        columns = (window.x, window.y, window.tau, window.inverse_depth)
        if taken == total:
            return columns
        if taken not in self._parts:
            chosen = np.arange(taken) * total // taken
            self._parts[taken] = tuple(column[chosen] for column in columns)
        return self._parts[taken]

    def _scatter(
        self, columns: tuple[Float32, ...], parameters: Float64, bin_size: float
    ) -> tuple[Float32, float, float]:
        """The image of warped events; the sum and the sum of squares of its bins."""
        rows, cols = self._grid.bins(bin_size).shape
        events, parts = len(columns[0]), 1
        is_small = events < PARALLEL_FROM
        if not is_small:
            parts = max(1, min(_MAX_IMAGES, events // max(8192, rows * cols // 8)))
        images = self._images.get(bin_size)
        if images is None or len(images) < parts:
            images = np.empty((parts, rows + 2 * PAD, cols + 2 * PAD), np.float32)
            self._images[bin_size] = images
        self._last = images[0]
        # Beyond the border the image is as good as its mean: leaving it earns nothing.
        filled = self._config.objective == "variance"
        arguments: Any = (
            *columns, parameters.astype(np.float32), self._projection(bin_size), images[:parts],
            filled,
        )  # fmt: skip
        if is_small:
            self._sums = _scatter_serial(*arguments)
        else:
            with parallel_section():
                self._sums = _scatter(*arguments)
        return images[0], *self._sums

    def _by_torch(self, image: Float32) -> tuple[float, Float32]:
        """Value and cotangent image of the other objectives, by their reference."""
        import torch

        from event_binning_grad.estimation.objectives import OBJECTIVES

        inner = torch.from_numpy(image[PAD:-PAD, PAD:-PAD]).requires_grad_()
        value = OBJECTIVES[self._config.objective](inner)
        (cotangent,) = torch.autograd.grad(value, inner)
        if self._cotangent.shape != image.shape:
            self._cotangent = np.zeros_like(image)
        self._cotangent[PAD:-PAD, PAD:-PAD] = cotangent.numpy()
        return value.item(), self._cotangent

    def _projection(self, bin_size: float) -> Float32:
        """Rows u, v in bins of the padded image: m0, m1, offset."""
        if bin_size not in self._projections:
            rows = np.column_stack([self._grid.matrix, self._grid.offset]) / bin_size
            rows[:, 2] += PAD
            self._projections[bin_size] = rows.astype(np.float32)
        return self._projections[bin_size]


@numba.njit(inline="always")
def _so3_coefficients(s):
    """sin(a)/a, (1 - cos a)/a^2, (a - sin a)/a^3 of s = a^2: series, float32-exact up to a = pi."""
    f = np.float32
    a = f(1) - s * f(1 / 110) * (
        f(1) - s * f(1 / 156) * (f(1) - s * f(1 / 210) * (f(1) - s * f(1 / 272)))
    )
    a = f(1) - s * f(1 / 20) * (f(1) - s * f(1 / 42) * (f(1) - s * f(1 / 72) * a))
    b = f(1) - s * f(1 / 90) * (
        f(1) - s * f(1 / 132) * (f(1) - s * f(1 / 182) * (f(1) - s * f(1 / 240)))
    )
    b = f(0.5) * (f(1) - s * f(1 / 12) * (f(1) - s * f(1 / 30) * (f(1) - s * f(1 / 56) * b)))
    c = a * f(1 / 6)
    return f(1) - s * c, b, c


@numba.njit(**FLAGS)
def _warp(x, y, tau, rho, motion, projection, first, count, s):
    """Loads a block of events and warps them: theta, rotated, point, shift, and (u, v)."""
    w0, w1, w2, a0, a1, a2 = motion[0], motion[1], motion[2], motion[3], motion[4], motion[5]
    v0, v1, v2, g0, g1 = motion[6], motion[7], motion[8], motion[9], motion[10]
    p00, p01, p02 = projection[0, 0], projection[0, 1], projection[0, 2]
    p10, p11, p12 = projection[1, 0], projection[1, 1], projection[1, 2]
    one, near = np.float32(1), np.float32(MIN_DEPTH)
    for k in range(count):
        s[_X + k] = x[first + k]
    for k in range(count):
        s[_Y + k] = y[first + k]
    for k in range(count):
        s[_TAU + k] = tau[first + k]
    for k in range(count):
        s[_RHO + k] = rho[first + k]
    for k in range(count):
        t, bx, by = s[_TAU + k], s[_X + k], s[_Y + k]
        h = t * t * np.float32(0.5)
        rx, ry, rz = w0 * t + a0 * h, w1 * t + a1 * h, w2 * t + a2 * h
        squared = rx * rx + ry * ry + rz * rz
        a, b, _ = _so3_coefficients(squared)
        c = one - b * squared
        d = b * (rx * bx + ry * by + rz)
        qx = c * bx + a * (ry - rz * by) + d * rx
        qy = c * by + a * (rz * bx - rx) + d * ry
        qz = c + a * (rx * by - ry * bx) + d * rz
        shift = t * s[_RHO + k] * (one + g0 * bx + g1 * by)
        px, py, pz = qx + shift * v0, qy + shift * v1, qz + shift * v2
        inverse = one / max(pz, near)
        inverse = inverse if pz > near else np.float32(np.nan)
        px *= inverse
        py *= inverse
        s[_THETA + k], s[_THETA + BLOCK + k], s[_THETA + 2 * BLOCK + k] = rx, ry, rz
        s[_ROTATED + k], s[_ROTATED + BLOCK + k], s[_ROTATED + 2 * BLOCK + k] = qx, qy, qz
        s[_POINT + k], s[_POINT + BLOCK + k], s[_POINT + 2 * BLOCK + k] = px, py, inverse
        s[_SHIFT + k] = shift
        s[U + k] = p00 * px + p01 * py + p02
        s[V + k] = p10 * px + p11 * py + p12


@numba.njit(**FLAGS)
def _scatter_part(x, y, tau, rho, motion, projection, start, stop, image):
    rows, cols = image.shape
    image[:] = 0
    flat = image.reshape(-1)
    s = np.empty(_SCRATCH, np.float32)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        _warp(x, y, tau, rho, motion, projection, first, count, s)
        add_votes(count, cols, rows, s, flat)


@numba.njit(parallel=True, **FLAGS)
def _scatter(x, y, tau, rho, motion, projection, images, filled):
    """Bins the warped events; the sum of the parts' images ends in images[0], and its padding gets
    the image's mean if it is to be filled, else zero.

    Returns the image's sum and its sum of squares.
    """
    parts, rows, _ = images.shape
    events = len(tau)
    for p in numba.prange(parts):
        start, stop = events * p // parts, events * (p + 1) // parts
        _scatter_part(x, y, tau, rho, motion, projection, start, stop, images[p])
    sums = np.zeros((rows, 2))
    for j in numba.prange(PAD, rows - PAD):
        _add_row(images, j, sums[j])
    return _pad(images[0], sums, filled)


# A def of its own: numba's cache does not tell a parallel build of a function from a serial one.
@numba.njit(**FLAGS)
def _scatter_serial(x, y, tau, rho, motion, projection, images, filled):
    """`_scatter` on the calling thread, for images [1, rows, cols]."""
    rows = images.shape[1]
    _scatter_part(x, y, tau, rho, motion, projection, 0, len(tau), images[0])
    sums = np.zeros((rows, 2))
    for j in range(PAD, rows - PAD):
        _add_row(images, j, sums[j])
    return _pad(images[0], sums, filled)


# Not part of the parallel functions: numba would split the sums by threads.
@numba.njit(**FLAGS)
def _pad(image, sums, filled):
    """Fills the padding; returns the sum and the sum of squares of the rest."""
    rows, cols = image.shape
    total, square = sums[:, 0].sum(), sums[:, 1].sum()
    border = total / ((rows - 2 * PAD) * (cols - 2 * PAD)) if filled else 0.0
    image[:PAD], image[rows - PAD :] = border, border
    image[:, :PAD], image[:, cols - PAD :] = border, border
    return total, square


@numba.njit(**FLAGS)
def _add_row(images, j, sums):
    parts, _, cols = images.shape
    total, square = np.float32(0), np.float32(0)
    for p in range(1, parts):
        for i in range(PAD, cols - PAD):
            images[0, j, i] += images[p, j, i]
    for i in range(PAD, cols - PAD):
        total += images[0, j, i]
        square += images[0, j, i] * images[0, j, i]
    sums[0], sums[1] = total, square


@numba.njit(**FLAGS)
def _covectors(projection, axis, count, s):
    """d(u or v)/d point, and J_l(theta)^T (rotated x that), which is d(u or v)/d theta."""
    p0, p1 = projection[axis, 0], projection[axis, 1]
    by_theta = _V_BY_THETA if axis else _U_BY_THETA
    for k in range(count):
        # Not projected: 1 / z is NaN; the slope is zero then, and must not meet a NaN.
        seen = s[SEEN + k] > np.float32(0)
        inverse = s[_POINT + 2 * BLOCK + k]
        inverse = inverse if seen else np.float32(0)
        dx, dy = p0 * inverse, p1 * inverse
        dz = -(p0 * s[_POINT + k] + p1 * s[_POINT + BLOCK + k]) * inverse
        dz = dz if seen else np.float32(0)
        x, y, z = s[_ROTATED + k], s[_ROTATED + BLOCK + k], s[_ROTATED + 2 * BLOCK + k]
        a, b, c = y * dz - z * dy, z * dx - x * dz, x * dy - y * dx
        rx, ry, rz = s[_THETA + k], s[_THETA + BLOCK + k], s[_THETA + 2 * BLOCK + k]
        _, versine, third = _so3_coefficients(rx * rx + ry * ry + rz * rz)
        ox, oy, oz = ry * c - rz * b, rz * a - rx * c, rx * b - ry * a
        a += third * (ry * oz - rz * oy) - versine * ox
        b += third * (rz * ox - rx * oz) - versine * oy
        c += third * (rx * oy - ry * ox) - versine * oz
        a = a if seen else np.float32(0)
        b = b if seen else np.float32(0)
        c = c if seen else np.float32(0)
        s[_BY_POINT + k], s[_BY_POINT + BLOCK + k], s[_BY_POINT + 2 * BLOCK + k] = dx, dy, dz
        s[by_theta + k], s[by_theta + BLOCK + k], s[by_theta + 2 * BLOCK + k] = a, b, c


@numba.njit(**FLAGS)
def _jacobian(active, motion, by_theta, count, s, jacobian):
    """Fills jacobian [P, n]: d(u or v)/d parameters, from the covectors."""
    v0, v1, v2 = motion[6], motion[7], motion[8]
    half = np.float32(0.5)
    for n in range(len(active)):
        row, which = jacobian[n], active[n]
        if which < 3:
            of = by_theta + which * BLOCK
            for k in range(count):
                row[k] = s[_TAU + k] * s[of + k]
        elif which < 6:
            of = by_theta + (which - 3) * BLOCK
            for k in range(count):
                row[k] = half * s[_TAU + k] * s[_TAU + k] * s[of + k]
        elif which < 9:
            of = _BY_POINT + (which - 6) * BLOCK
            for k in range(count):
                row[k] = s[_SHIFT + k] * s[of + k]
        else:
            of = _X + (which - 9) * BLOCK
            for k in range(count):
                along_v = (
                    s[_BY_POINT + k] * v0
                    + s[_BY_POINT + BLOCK + k] * v1
                    + s[_BY_POINT + 2 * BLOCK + k] * v2
                )
                position = s[of + k] if s[SEEN + k] > np.float32(0) else np.float32(0)
                row[k] = s[_TAU + k] * s[_RHO + k] * position * along_v
        if which >= 6:  # an event of unknown depth has NaN for it, and is not seen
            for k in range(count):
                row[k] = row[k] if s[SEEN + k] > np.float32(0) else np.float32(0)


@numba.njit(**FLAGS)
def _accumulate(count, s, by_u, by_v, gradients, sums):
    """Adds the block's gradient (P), then its Hessian and its scatter matrix: their upper
    triangles, row by row, in turn."""
    size = len(by_u)
    n = 0
    for a in range(size):
        total, u, v, gradient = np.float32(0), by_u[a], by_v[a], gradients[a]
        for k in range(count):
            gradient[k] = u[k] * s[SLOPE + k] + v[k] * s[SLOPE + BLOCK + k]
            total += gradient[k]
        sums[n] += total
        n += 1
    for a in range(size):
        u, v, gradient = by_u[a], by_v[a], gradients[a]
        for k in range(count):
            mixed = s[BEND + BLOCK + k]
            s[_ROW_U + k] = u[k] * s[BEND + k] + v[k] * mixed
            s[_ROW_V + k] = u[k] * mixed + v[k] * s[BEND + 2 * BLOCK + k]
        for b in range(a, size):
            total, u, v = np.float32(0), by_u[b], by_v[b]
            for k in range(count):
                total += s[_ROW_U + k] * u[k] + s[_ROW_V + k] * v[k]
            sums[n] += total
            total, other = np.float32(0), gradients[b]
            for k in range(count):
                total += gradient[k] * other[k]
            sums[n + 1] += total
            n += 2


@numba.njit(**FLAGS)
def _rotates_only(active):
    """Whether the parameters are omega, or omega and alpha."""
    for n in range(len(active)):
        if active[n] != n or n > 5:
            return False
    return len(active) == 3 or len(active) == 6


@numba.njit(**FLAGS)
def _accumulate_rotation(count, s, size, sums):
    """`_accumulate` for omega (size 3), or omega and alpha (6).

    Both move an event along d(u, v)/d theta, by tau and by tau^2 / 2. So a pair of axes is done
    once, and its sums with the powers of tau are those of all its pairs of parameters.
    """
    half, quarter = np.float32(0.5), np.float32(0.25)
    for a in range(3):
        first, second = np.float32(0), np.float32(0)
        u, v, by_theta = _U_BY_THETA + a * BLOCK, _V_BY_THETA + a * BLOCK, _BY_THETA + a * BLOCK
        for k in range(count):
            t = s[_TAU + k]
            slope = s[u + k] * s[SLOPE + k] + s[v + k] * s[SLOPE + BLOCK + k]
            s[by_theta + k] = slope
            first += t * slope
            second += t * t * slope
        sums[a] += first
        if size == 6:
            sums[a + 3] += half * second
    for a in range(3):
        u, v, by_theta = _U_BY_THETA + a * BLOCK, _V_BY_THETA + a * BLOCK, _BY_THETA + a * BLOCK
        for k in range(count):
            squared, mixed = s[_TAU + k] * s[_TAU + k], s[BEND + BLOCK + k]
            s[_ROW_U + k] = squared * (s[u + k] * s[BEND + k] + s[v + k] * mixed)
            s[_ROW_V + k] = squared * (s[u + k] * mixed + s[v + k] * s[BEND + 2 * BLOCK + k])
        for b in range(a, 3):
            u, v, other = _U_BY_THETA + b * BLOCK, _V_BY_THETA + b * BLOCK, _BY_THETA + b * BLOCK
            bend2, bend3, bend4 = np.float32(0), np.float32(0), np.float32(0)
            scatter2, scatter3, scatter4 = np.float32(0), np.float32(0), np.float32(0)
            for k in range(count):
                t = s[_TAU + k]
                bend = s[_ROW_U + k] * s[u + k] + s[_ROW_V + k] * s[v + k]
                bend2 += bend
                bend *= t
                bend3 += bend
                bend4 += t * bend
                scatter = t * t * (s[by_theta + k] * s[other + k])
                scatter2 += scatter
                scatter *= t
                scatter3 += scatter
                scatter4 += t * scatter
            _add(sums, size, a, b, bend2, scatter2)
            if size == 6:
                _add(sums, size, a, b + 3, half * bend3, half * scatter3)
                if a != b:
                    _add(sums, size, b, a + 3, half * bend3, half * scatter3)
                _add(sums, size, a + 3, b + 3, quarter * bend4, quarter * scatter4)


@numba.njit(inline="always")
def _add(sums, size, a, b, bend, scatter):
    """Adds to the elements (a, b) of both upper triangles behind the gradient."""
    n = size + 2 * (a * size - a * (a - 1) // 2 + b - a)
    sums[n] += bend
    sums[n + 1] += scatter


@numba.njit(**FLAGS)
def _gather_part(
    x, y, tau, rho, motion, projection, active, cotangent, unbiased, start, stop, sums
):
    rows, cols = cotangent.shape
    s = np.empty(_SCRATCH, np.float32)
    corners, columns = np.empty(BLOCK, np.int32), np.empty(12 * BLOCK, np.float32)
    by_u = np.empty((len(active), BLOCK), np.float32)
    by_v, gradients = np.empty_like(by_u), np.empty_like(by_u)
    sums[:] = 0
    rotates_only = _rotates_only(active)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        _warp(x, y, tau, rho, motion, projection, first, count, s)
        find_bins(count, rows, cols, s, corners)
        sum_rows(count, cotangent, corners, s, columns)
        sum_columns(count, columns, s)
        if not unbiased:
            raw_slopes(count, cotangent, corners, s)
        _covectors(projection, 0, count, s)
        if rotates_only:
            _covectors(projection, 1, count, s)
            _accumulate_rotation(count, s, len(active), sums)
            continue
        _jacobian(active, motion, _U_BY_THETA, count, s, by_u)
        _covectors(projection, 1, count, s)
        _jacobian(active, motion, _V_BY_THETA, count, s, by_v)
        _accumulate(count, s, by_u, by_v, gradients, sums)


@numba.njit(parallel=True, **FLAGS)
def _gather(x, y, tau, rho, motion, projection, active, cotangent, unbiased):
    """[TIME_PARTS, ...] sums over the events of each part of the window, see `_accumulate`."""
    events, size = len(tau), len(active)
    parts = max(1, events // TIME_PARTS // _PART)
    sums = np.empty((TIME_PARTS, parts, size * (size + 2)))
    for p in numba.prange(TIME_PARTS * parts):
        start = events * p // (TIME_PARTS * parts)
        stop = events * (p + 1) // (TIME_PARTS * parts)
        _gather_part(
            x, y, tau, rho, motion, projection, active, cotangent, unbiased,
            start, stop, sums[p // parts, p % parts],
        )  # fmt: skip
    return _add_parts(sums)


@numba.njit(**FLAGS)
def _gather_serial(x, y, tau, rho, motion, projection, active, cotangent, unbiased):
    """`_gather` on the calling thread."""
    events, size = len(tau), len(active)
    sums = np.empty((TIME_PARTS, size * (size + 2)))
    for p in range(TIME_PARTS):
        start, stop = events * p // TIME_PARTS, events * (p + 1) // TIME_PARTS
        _gather_part(
            x, y, tau, rho, motion, projection, active, cotangent, unbiased,
            start, stop, sums[p],
        )  # fmt: skip
    return sums


@numba.njit(**FLAGS)
def _add_parts(sums):
    return sums.sum(axis=1)


@numba.njit(**FLAGS)
def _derivatives(sums, count, scale):
    """Gradients [TIME_PARTS, P], Hessian and scatter matrix [P, P] of the gather's sums, which were
    made with a cotangent image that lacks the factor `scale`."""
    gradients = scale * sums[:, :count]
    hessian, scatter = np.zeros((count, count)), np.zeros((count, count))
    for part in range(len(sums)):
        n = count
        for a in range(count):
            for b in range(a, count):
                hessian[a, b] += scale * sums[part, n]
                scatter[a, b] += scale**2 * sums[part, n + 1]
                n += 2
    for a in range(count):
        for b in range(a):
            hessian[a, b], scatter[a, b] = hessian[b, a], scatter[b, a]
    return gradients, hessian, scatter
