"""What an image of events says where an event is: the inner loops that the fused CPU passes share.

Events go through in blocks whose intermediate values lie in one scratch array, at offsets that the
compiler knows. Only so can it tell that they do not overlap, and use vector instructions: with an
array for each value the same loops take five times as long.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from event_binning_grad.estimation.vectors import weigh_rows

FLAGS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    # Reassociation lets the sums vectorise. NaN keeps its meaning: it marks events to drop.
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "cache": True,
}
"""Of the compiled passes."""

PAD = 4
"""Empty bins around the image, so that the taps of an event at its border need no test."""

BLOCK = 256
"""Events in a block: the scratch stays in the L1 cache."""

U, V, SEEN = (n * BLOCK for n in range(3))
"""Offsets in the scratch: bins (u, v), then their fractional parts, and whether they are on the
image."""

SLOPE, BEND = 3 * BLOCK, 5 * BLOCK
"""Derivatives of the objective by (u, v): two slopes, and curvatures uu, uv, vv."""

OWN = 8 * BLOCK
"""From here on the scratch is the pass's own."""


@numba.njit(**FLAGS)
def add_votes(count, cols, rows, s, flat):
    """Adds the bilinear votes of a block of events at (u, v) to a padded image [rows * cols]."""
    one, next_, across = np.float32(1), np.uintp(1), np.uintp(cols)
    low = np.float32(PAD - 1)
    right, bottom = np.float32(cols - PAD), np.float32(rows - PAD)
    for k in range(count):
        u, v = s[U + k], s[V + k]
        if not (u >= low and u < right and v >= low and v < bottom):
            continue
        i, j = int(u), int(v)  # positive: truncation is floor
        fu, fv = u - np.float32(i), v - np.float32(j)
        gu, gv = one - fu, one - fv
        upper = np.uintp(j * cols + i)
        lower = upper + across
        flat[upper] += gv * gu
        flat[upper + next_] += gv * fu
        flat[lower] += fv * gu
        flat[lower + next_] += fv * fu


@numba.njit(inline="always")
def cubic_taps(r):
    """The cubic B-spline at its four taps, and its first and second derivatives."""
    one, two, three = np.float32(1), np.float32(2), np.float32(3)
    half, third, sixth = np.float32(0.5), np.float32(2 / 3), np.float32(1 / 6)
    q = one - r
    inner, inner_q = third - r * r * (one - half * r), third - q * q * (one - half * q)
    taps = (q * q * q * sixth, inner, inner_q, r * r * r * sixth)
    slope, slope_q = r * (half * three * r - two), q * (two - half * three * q)
    first = (-half * q * q, slope, slope_q, half * r * r)
    return taps, first, (q, three * r - two, three * q - two, r)


@numba.njit(**FLAGS)
def find_bins(count, rows, cols, s, corners):
    """The corner of each event's 4 x 4 bins; (u, v) become their fractional parts."""
    low = np.float32(PAD - 3)
    right, bottom = np.float32(cols - PAD + 2), np.float32(rows - PAD + 2)
    for k in range(count):
        u, v = s[U + k], s[V + k]
        seen = (u >= low) & (u < right) & (v >= low) & (v < bottom)
        u = u if seen else np.float32(PAD)
        v = v if seen else np.float32(PAD)
        i, j = np.int32(u), np.int32(v)
        corners[k] = (j - np.int32(1)) * np.int32(cols) + i - np.int32(1)
        s[U + k], s[V + k] = u - np.float32(i), v - np.float32(j)
        s[SEEN + k] = np.float32(1) if seen else np.float32(0)


@numba.njit(**FLAGS)
def sum_rows(count, image, corners, s, columns):
    """Sums of each event's four rows of bins, weighted by the kernel, its slope and curvature:
    columns [3, BLOCK, 4]."""
    flat, cols, apart = image.reshape(-1), np.uintp(image.shape[1]), np.uintp(4 * BLOCK)
    for k in range(count):
        weights = cubic_taps(s[V + k])
        corner, at = np.uintp(corners[k]), np.uintp(4 * k)
        weigh_rows(flat, corner, cols, weights, columns, at, apart)  # pyright: ignore # intrinsic


@numba.njit(**FLAGS)
def sum_columns(count, columns, s):
    """Slopes and curvatures of sum_j c_j kappa by (u, v), kappa the cubic B-spline (hat * hat)."""
    second, third = 4 * BLOCK, 8 * BLOCK
    for k in range(count):
        (k0, k1, k2, k3), (d0, d1, d2, d3), (e0, e1, e2, e3) = cubic_taps(s[U + k])
        n = 4 * k
        a0, a1, a2, a3 = columns[n], columns[n + 1], columns[n + 2], columns[n + 3]
        n = 4 * k + second
        b0, b1, b2, b3 = columns[n], columns[n + 1], columns[n + 2], columns[n + 3]
        n = 4 * k + third
        c0, c1, c2, c3 = columns[n], columns[n + 1], columns[n + 2], columns[n + 3]
        seen = s[SEEN + k]
        s[SLOPE + k] = seen * (a0 * d0 + a1 * d1 + a2 * d2 + a3 * d3)
        s[SLOPE + BLOCK + k] = seen * (b0 * k0 + b1 * k1 + b2 * k2 + b3 * k3)
        s[BEND + k] = seen * (a0 * e0 + a1 * e1 + a2 * e2 + a3 * e3)
        s[BEND + BLOCK + k] = seen * (b0 * d0 + b1 * d1 + b2 * d2 + b3 * d3)
        s[BEND + 2 * BLOCK + k] = seen * (c0 * k0 + c1 * k1 + c2 * k2 + c3 * k3)


@numba.njit(**FLAGS)
def raw_slopes(count, image, corners, s):
    """The slope of the bilinear vote itself."""
    flat = image.reshape(-1)
    cols = image.shape[1]
    for k in range(count):
        upper = corners[k] + cols + 1
        lower = upper + cols
        c00, c01, c10, c11 = flat[upper], flat[upper + 1], flat[lower], flat[lower + 1]
        twist = (c11 - c10) - (c01 - c00)
        s[SLOPE + k] = s[SEEN + k] * ((c01 - c00) + s[V + k] * twist)
        s[SLOPE + BLOCK + k] = s[SEEN + k] * ((c10 - c00) + s[U + k] * twist)
