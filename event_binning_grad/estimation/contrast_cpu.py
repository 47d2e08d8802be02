"""The contrast's CPU path: value, gradient and Hessian in one fused, parallel numba pass.

Twin of `contrast.TorchContrast`. One 4-tap scatter and one 16-tap gather over the events, no image
of derivatives, nothing allocated that grows with taps x events. The work is cut into parts by the
size of the problem alone and summed in order, so the result is the same bit for bit at any number
of threads.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from event_binning_grad.estimation.contrast import (
    MIN_DEPTH,
    ContrastPass,
    Float64,
    WindowEvents,
)
from event_binning_grad.estimation.iwe_grid import IweGrid
from event_binning_grad.numba_threads import parallel_section

# Empty bins around the image, so that the taps of an event at its border need no test.
_PAD = 4
# Events handled at once by the vectorised loops: their scratch stays in the L1 cache.
_BLOCK = 256
# Events a part, the unit of work of a thread, in the gather; the scatter's parts hold more,
# because each has an image of its own to clear and to add.
_PART = 2048
_MAX_IMAGES = 8
# Windows of fewer events are done by one thread. Waking the others a few times a pass takes as long
# as they would save, and a robot has other work for them.
PARALLEL_FROM = 50_000
# See `look_up`. An edge that passes makes a pixel fire a few times, ten in high contrast.
HOT_MIN = 16
HOT_RATIO = 10.0
# Sums that a part returns: 6 of the gradient, 18 each of the Hessian and of the scatter matrix.
_SUMS = 42

_FLAGS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    # Reassociation lets the sums vectorise. NaN keeps its meaning: it marks events to drop.
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "cache": True,
}


class CpuContrast:
    """`contrast.Contrast` by the fused pass."""

    def __init__(self, grid: IweGrid, unbiased: bool) -> None:
        self._grid = grid
        self._unbiased = unbiased
        # Images by bin size, kept from window to window: nothing is allocated in the steady state.
        self._images: dict[float, npt.NDArray[np.float32]] = {}

    def load(self, window: WindowEvents) -> None:
        self._window = window

    def iwe(self, parameters: Float64, bin_size: float) -> npt.NDArray[np.float32]:
        return self._scatter(parameters, bin_size)[0][_PAD:-_PAD, _PAD:-_PAD]

    def evaluate(self, parameters: Float64, bin_size: float) -> ContrastPass:
        image, total, square = self._scatter(parameters, bin_size)
        bins = (image.shape[0] - 2 * _PAD) * (image.shape[1] - 2 * _PAD)
        mean = total / bins
        arguments = (
            self._window.bearings, self._window.tau, self._motion(parameters),
            self._projection(bin_size), image, self._unbiased,
        )  # fmt: skip
        if self._is_small:
            sums = _gather_serial(*arguments)
        else:
            with parallel_section():
                sums = _gather(*arguments)
        # dL/dh = 2 / bins * (h - mean). The slopes of kappa add up to zero over its taps, so the
        # mean plays no part but at the border, where the padding holds it.
        scale = 2 / bins
        return ContrastPass(
            square / bins - mean**2,
            scale * sums[:6],
            scale * _symmetric(sums[6:24]),
            scale**2 * _symmetric(sums[24:]),
        )

    def _scatter(
        self, parameters: Float64, bin_size: float
    ) -> tuple[npt.NDArray[np.float32], float, float]:
        """The image of warped events, its padding filled with its mean; its sum, sum of squares."""
        rows, cols = self._grid.bins(bin_size).shape
        parts = 1
        if not self._is_small:
            parts = len(self._window.tau) // max(8192, rows * cols // 8)
            parts = max(1, min(_MAX_IMAGES, parts))
        images = self._images.get(bin_size)
        if images is None or len(images) < parts:
            images = np.empty((parts, rows + 2 * _PAD, cols + 2 * _PAD), np.float32)
            self._images[bin_size] = images
        arguments = (
            self._window.bearings, self._window.tau, self._motion(parameters),
            self._projection(bin_size), images[:parts],
        )  # fmt: skip
        if self._is_small:
            return images[0], *_scatter_serial(*arguments)
        with parallel_section():
            return images[0], *_scatter(*arguments)

    @property
    def _is_small(self) -> bool:
        return len(self._window.tau) < PARALLEL_FROM

    def _motion(self, parameters: Float64) -> npt.NDArray[np.float32]:
        """omega, alpha T / 4, and 2 / T: theta = omega tau + (alpha T / 4) (2 / T) tau^2."""
        return np.append(parameters, 2 / self._window.span_s).astype(np.float32)

    def _projection(self, bin_size: float) -> npt.NDArray[np.float32]:
        """Rows u, v in bins of the padded image: m0, m1, offset."""
        rows = np.column_stack([self._grid.matrix, self._grid.offset]) / bin_size
        rows[:, 2] += _PAD
        return rows.astype(np.float32)


@numba.njit(nogil=True, cache=True)
def look_up(t, x, y, stamp_ns, table, counts, bearings, tau):
    """Fills bearings [3, N] from the table [H, W, 3], and tau [N] in seconds from stamp_ns.

    Events off the table get NaN, as those whose pixel has no bearing do: compiled code would read
    on beyond its end. So do events of hot pixels: a dot that fires all the time is sharpest when
    nothing is compensated, and would hide the motion. A pixel is hot if it fires HOT_MIN times and
    HOT_RATIO times as often as the mean of the pixels that fire.

    counts: [H, W] int32, zero; zero again afterwards. Returns the number of events of hot pixels.
    """
    height, width, _ = table.shape
    active, seen = 0, 0
    for i in range(len(t)):
        if y[i] < height and x[i] < width:
            active += counts[y[i], x[i]] == 0
            counts[y[i], x[i]] += 1
            seen += 1
    limit = max(HOT_MIN, HOT_RATIO * seen / max(active, 1))
    hot_events = 0
    for i in range(len(t)):
        inside = y[i] < height and x[i] < width
        hot = inside and counts[y[i], x[i]] > limit
        hot_events += hot
        for axis in range(3):
            known = inside and not hot
            bearings[axis, i] = table[y[i], x[i], axis] if known else np.float32(np.nan)
        tau[i] = np.float32((t[i] - stamp_ns) * 1e-9)
    for i in range(len(t)):
        if y[i] < height and x[i] < width:
            counts[y[i], x[i]] = 0
    return hot_events


def _symmetric(sums: Float64) -> Float64:
    """[6, 6] from its three symmetric 3 x 3 blocks omega-omega, omega-alpha, alpha-alpha."""
    upper = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])
    corner, side, other = (block[upper] for block in sums.reshape(3, 6))
    return np.block([[corner, side], [side, other]])


@numba.njit(inline="always")
def _so3_coefficients(s):
    """sin(a)/a, (1 - cos a)/a^2, (a - sin a)/a^3 of s = a^2: series, float32-exact up to a = pi."""
    f = np.float32
    a = f(1) - s / f(110) * (f(1) - s / f(156) * (f(1) - s / f(210) * (f(1) - s / f(272))))
    a = f(1) - s / f(20) * (f(1) - s / f(42) * (f(1) - s / f(72) * a))
    b = f(1) - s / f(90) * (f(1) - s / f(132) * (f(1) - s / f(182) * (f(1) - s / f(240))))
    b = f(0.5) * (f(1) - s / f(12) * (f(1) - s / f(30) * (f(1) - s / f(56) * b)))
    c = a / f(6)
    return f(1) - s * c, b, c


@numba.njit(**_FLAGS)
def _warp(bearings, tau, motion, projection, start, stop, theta, point, image):
    """Fills theta [3, n], the rotated bearings point [3, n] and their (u, v) image [2, n]."""
    m = motion
    p = projection
    for k in range(stop - start):
        t = tau[start + k]
        q = t * t * m[6]
        rx, ry, rz = m[0] * t + m[3] * q, m[1] * t + m[4] * q, m[2] * t + m[5] * q
        x, y, z = bearings[0, start + k], bearings[1, start + k], bearings[2, start + k]
        s = rx * rx + ry * ry + rz * rz
        a, b, _ = _so3_coefficients(s)
        c = np.float32(1) - b * s
        d = b * (rx * x + ry * y + rz * z)
        px = c * x + a * (ry * z - rz * y) + d * rx
        py = c * y + a * (rz * x - rx * z) + d * ry
        pz = c * z + a * (rx * y - ry * x) + d * rz
        inverse = np.float32(1) / pz if pz > np.float32(MIN_DEPTH) else np.float32(np.nan)
        theta[0, k], theta[1, k], theta[2, k] = rx, ry, rz
        point[0, k], point[1, k], point[2, k] = px, py, pz
        image[0, k] = (p[0, 0] * px + p[0, 1] * py) * inverse + p[0, 2]
        image[1, k] = (p[1, 0] * px + p[1, 1] * py) * inverse + p[1, 2]


@numba.njit(**_FLAGS)
def _scatter_part(bearings, tau, motion, projection, start, stop, image):
    rows, cols = image.shape
    image[:] = 0
    theta, point = np.empty((3, _BLOCK), np.float32), np.empty((3, _BLOCK), np.float32)
    uv = np.empty((2, _BLOCK), np.float32)
    low = np.float32(_PAD - 1)
    right, bottom = np.float32(cols - _PAD), np.float32(rows - _PAD)
    for first in range(start, stop, _BLOCK):
        last = min(first + _BLOCK, stop)
        _warp(bearings, tau, motion, projection, first, last, theta, point, uv)
        for k in range(last - first):
            u, v = uv[0, k], uv[1, k]
            if not (u >= low and u < right and v >= low and v < bottom):
                continue
            i, j = int(u), int(v)  # positive: truncation is floor
            fu, fv = u - np.float32(i), v - np.float32(j)
            gu, gv = np.float32(1) - fu, np.float32(1) - fv
            image[j, i] += gv * gu
            image[j, i + 1] += gv * fu
            image[j + 1, i] += fv * gu
            image[j + 1, i + 1] += fv * fu


@numba.njit(parallel=True, **_FLAGS)
def _scatter(bearings, tau, motion, projection, images):
    """Bins the warped events; the sum of the parts' images ends in images[0], padded by its mean.

    Returns the image's sum and its sum of squares.
    """
    parts, rows, _ = images.shape
    events = len(tau)
    for p in numba.prange(parts):
        start, stop = events * p // parts, events * (p + 1) // parts
        _scatter_part(bearings, tau, motion, projection, start, stop, images[p])
    sums = np.zeros((rows, 2))
    for j in numba.prange(_PAD, rows - _PAD):
        _add_row(images, j, sums[j])
    return _pad(images[0], sums)


# A def of its own: numba's cache does not tell a parallel build of a function from a serial one.
@numba.njit(**_FLAGS)
def _scatter_serial(bearings, tau, motion, projection, images):
    """`_scatter` on the calling thread, for images [1, rows, cols]."""
    rows = images.shape[1]
    _scatter_part(bearings, tau, motion, projection, 0, len(tau), images[0])
    sums = np.zeros((rows, 2))
    for j in range(_PAD, rows - _PAD):
        _add_row(images, j, sums[j])
    return _pad(images[0], sums)


# Not part of the parallel functions: numba would split the sums by threads.
@numba.njit(**_FLAGS)
def _pad(image, sums):
    """Fills the padding with the image's mean; returns its sum and its sum of squares."""
    rows, cols = image.shape
    total, square = sums[:, 0].sum(), sums[:, 1].sum()
    mean = total / ((rows - 2 * _PAD) * (cols - 2 * _PAD))
    image[:_PAD], image[rows - _PAD :] = mean, mean
    image[:, :_PAD], image[:, cols - _PAD :] = mean, mean
    return total, square


@numba.njit(**_FLAGS)
def _add_row(images, j, sums):
    parts, _, cols = images.shape
    total, square = np.float32(0), np.float32(0)
    for p in range(1, parts):
        for i in range(_PAD, cols - _PAD):
            images[0, j, i] += images[p, j, i]
    for i in range(_PAD, cols - _PAD):
        total += images[0, j, i]
        square += images[0, j, i] * images[0, j, i]
    sums[0], sums[1] = total, square


@numba.njit(inline="always")
def _cubic_taps(r):
    """The cubic B-spline at its four taps, and its first and second derivatives."""
    one, two, three = np.float32(1), np.float32(2), np.float32(3)
    half, third, sixth = np.float32(0.5), np.float32(2 / 3), np.float32(1 / 6)
    q = one - r
    inner, inner_q = third - r * r * (one - half * r), third - q * q * (one - half * q)
    taps = (q * q * q * sixth, inner, inner_q, r * r * r * sixth)
    slope, slope_q = r * (half * three * r - two), q * (two - half * three * q)
    first = (-half * q * q, slope, slope_q, half * r * r)
    return taps, first, (q, three * r - two, three * q - two, r)


@numba.njit(**_FLAGS)
def _gather_slopes(uv, count, image, unbiased, slope, curvature):
    """First and second derivatives of sum_j c_j kappa at (u, v): slope [2, n], curvature [3, n].

    kappa is the cubic B-spline (hat * hat); not unbiased, the slope is that of the hat itself.
    """
    rows, cols = image.shape
    low = np.float32(_PAD - 3)
    right, bottom = np.float32(cols - _PAD + 2), np.float32(rows - _PAD + 2)
    for k in range(count):
        u, v = uv[0, k], uv[1, k]
        slope[0, k] = slope[1, k] = np.float32(0)
        curvature[0, k] = curvature[1, k] = curvature[2, k] = np.float32(0)
        if not (u >= low and u < right and v >= low and v < bottom):
            continue
        i, j = int(u), int(v)
        r, s = u - np.float32(i), v - np.float32(j)
        ku, du, ddu = _cubic_taps(r)
        kv, dv, ddv = _cubic_taps(s)
        su = sv = suu = suv = svv = np.float32(0)
        for n in range(4):
            row = image[j + n - 1]
            c0, c1, c2, c3 = row[i - 1], row[i], row[i + 1], row[i + 2]
            value = c0 * ku[0] + c1 * ku[1] + c2 * ku[2] + c3 * ku[3]
            first = c0 * du[0] + c1 * du[1] + c2 * du[2] + c3 * du[3]
            second = c0 * ddu[0] + c1 * ddu[1] + c2 * ddu[2] + c3 * ddu[3]
            su += kv[n] * first
            sv += dv[n] * value
            suu += kv[n] * second
            suv += dv[n] * first
            svv += ddv[n] * value
        if not unbiased:
            c00, c01 = image[j, i], image[j, i + 1]
            c10, c11 = image[j + 1, i], image[j + 1, i + 1]
            su = (c01 - c00) + s * ((c11 - c10) - (c01 - c00))
            sv = (c10 - c00) + r * ((c11 - c01) - (c10 - c00))
        slope[0, k], slope[1, k] = su, sv
        curvature[0, k], curvature[1, k], curvature[2, k] = suu, suv, svv


@numba.njit(**_FLAGS)
def _covectors(theta, point, uv, projection, axis, count, out):
    """J_l(theta)^T (y x d(u or v)/dy) [3, n]: how theta moves the image coordinate."""
    p0, p1, offset = projection[axis, 0], projection[axis, 1], projection[axis, 2]
    for k in range(count):
        x, y, z = point[0, k], point[1, k], point[2, k]
        inverse = np.float32(1) / z
        dx, dy = p0 * inverse, p1 * inverse
        dz = (offset - uv[axis, k]) * inverse
        a, b, c = y * dz - z * dy, z * dx - x * dz, x * dy - y * dx
        rx, ry, rz = theta[0, k], theta[1, k], theta[2, k]
        _, versine, third = _so3_coefficients(rx * rx + ry * ry + rz * rz)
        ox, oy, oz = ry * c - rz * b, rz * a - rx * c, rx * b - ry * a
        out[0, k] = a - versine * ox + third * (ry * oz - rz * oy)
        out[1, k] = b - versine * oy + third * (rz * ox - rx * oz)
        out[2, k] = c - versine * oz + third * (rx * oy - ry * ox)


@numba.njit(**_FLAGS)
def _gather_part(bearings, tau, motion, projection, image, unbiased, start, stop, sums):
    theta, point = np.empty((3, _BLOCK), np.float32), np.empty((3, _BLOCK), np.float32)
    uv, slope = np.empty((2, _BLOCK), np.float32), np.empty((2, _BLOCK), np.float32)
    curvature = np.empty((3, _BLOCK), np.float32)
    du, dv = np.empty((3, _BLOCK), np.float32), np.empty((3, _BLOCK), np.float32)
    weights = np.empty((5, _BLOCK), np.float32)
    terms = np.empty((15, _BLOCK), np.float32)
    sums[:] = 0
    for first in range(start, stop, _BLOCK):
        count = min(first + _BLOCK, stop) - first
        _warp(bearings, tau, motion, projection, first, first + count, theta, point, uv)
        _gather_slopes(uv, count, image, unbiased, slope, curvature)
        _covectors(theta, point, uv, projection, 0, count, du)
        _covectors(theta, point, uv, projection, 1, count, dv)
        for k in range(count):
            t = tau[first + k]
            q = t * t * motion[6]
            weights[0, k], weights[1, k] = t, q
            weights[2, k], weights[3, k], weights[4, k] = t * t, t * q, q * q
            if not (point[2, k] > np.float32(MIN_DEPTH)):
                # Not projected: its slope is zero, its covectors are NaN or infinite.
                for n in range(3):
                    du[n, k] = dv[n, k] = np.float32(0)
        for a in range(3):
            for k in range(count):
                terms[a, k] = du[a, k] * slope[0, k] + dv[a, k] * slope[1, k]
        n = 3
        for a in range(3):
            for b in range(a, 3):
                for k in range(count):
                    terms[n, k] = (
                        du[a, k] * du[b, k] * curvature[0, k]
                        + (du[a, k] * dv[b, k] + dv[a, k] * du[b, k]) * curvature[1, k]
                        + dv[a, k] * dv[b, k] * curvature[2, k]
                    )
                    terms[n + 6, k] = terms[a, k] * terms[b, k]
                n += 1
        # gradient: weights tau, q; Hessian and scatter blocks: tau^2, tau q, q^2.
        n = 0
        for w in range(2):
            for a in range(3):
                total = np.float32(0)
                for k in range(count):
                    total += weights[w, k] * terms[a, k]
                sums[n] += total
                n += 1
        for group in range(2):
            for w in range(2, 5):
                for a in range(6):
                    total = np.float32(0)
                    for k in range(count):
                        total += weights[w, k] * terms[3 + 6 * group + a, k]
                    sums[n] += total
                    n += 1


@numba.njit(parallel=True, **_FLAGS)
def _gather(bearings, tau, motion, projection, image, unbiased):
    """The sums of all events: gradient (6), Hessian (18), scatter matrix (18)."""
    events = len(tau)
    parts = max(1, (events + _PART - 1) // _PART)
    sums = np.empty((parts, _SUMS))
    for p in numba.prange(parts):
        start, stop = p * _PART, min((p + 1) * _PART, events)
        _gather_part(bearings, tau, motion, projection, image, unbiased, start, stop, sums[p])
    return _sum_rows(sums)


@numba.njit(**_FLAGS)
def _gather_serial(bearings, tau, motion, projection, image, unbiased):
    """`_gather` on the calling thread."""
    sums = np.empty((1, _SUMS))
    _gather_part(bearings, tau, motion, projection, image, unbiased, 0, len(tau), sums[0])
    return _sum_rows(sums)


@numba.njit(**_FLAGS)
def _sum_rows(sums):
    return sums.sum(axis=0)
