"""What an image of events says where an event is: device functions that the CUDA passes share.

Twin of `image_cpu`. Only what the language has built in is called, no library function: it works in
the interpreter, too, whenever that is switched on.
"""

# Triton reads the functions' source and makes its own of tuples.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def find_bin(u, seen):
    """The bin below, and the position between that and the next; of (u, v) that are seen."""
    u = tl.where(seen, u, 0.0)
    whole = tl.floor(u)
    return whole.to(tl.int32), u - whole


@triton.jit
def add_votes(image, rows, cols, u, v):
    """Adds the bilinear votes of events at (u, v) to an image [rows * cols]."""
    seen = (u >= -1) & (u < cols) & (v >= -1) & (v < rows)  # false for NaN
    i, fu = find_bin(u, seen)
    j, fv = find_bin(v, seen)
    corner = image + (j * cols + i)
    left, right = seen & (i >= 0), seen & (i + 1 < cols)
    upper, lower = j >= 0, j + 1 < rows
    gu, gv = 1 - fu, 1 - fv
    tl.atomic_add(corner, gv * gu, mask=upper & left, sem="relaxed")
    tl.atomic_add(corner + 1, gv * fu, mask=upper & right, sem="relaxed")
    tl.atomic_add(corner + cols, fv * gu, mask=lower & left, sem="relaxed")
    tl.atomic_add(corner + cols + 1, fv * fu, mask=lower & right, sem="relaxed")


@triton.jit
def cubic_taps(r):
    """The cubic B-spline at its four taps, and its first and second derivatives."""
    q = 1 - r
    inner, inner_q = 2 / 3 - r * r * (1 - 0.5 * r), 2 / 3 - q * q * (1 - 0.5 * q)
    values = (q * q * q * (1 / 6), inner, inner_q, r * r * r * (1 / 6))
    slopes = (-0.5 * q * q, r * (1.5 * r - 2), q * (2 - 1.5 * q), 0.5 * r * r)
    return values, slopes, (q, 3 * r - 2, 3 * q - 2, r)


@triton.jit
def derivatives(
    cotangent, rows, cols, u, v, seen, border,
    UNBIASED: tl.constexpr,
):  # fmt: skip
    """Slopes by (u, v) and curvatures uu, uv, vv of sum_j c_j kappa, kappa the cubic B-spline (hat
    * hat); for the raw gradient the slopes are those of the bilinear vote. c is `border` beyond the
    image."""
    i, fu = find_bin(u, seen)
    j, fv = find_bin(v, seen)
    ku, du, eu = cubic_taps(fu)
    kv, dv, ev = cubic_taps(fv)
    slope_u = tl.full(u.shape, 0, tl.float32)
    slope_v, uu, uv, vv = slope_u, slope_u, slope_u, slope_u
    for m in tl.static_range(4):
        row = j + (m - 1)
        inside = seen & (row >= 0) & (row < rows)
        value = tl.full(u.shape, 0, tl.float32)
        slope, bend = value, value
        hat, difference = value, value
        for n in tl.static_range(4):
            column = i + (n - 1)
            c = tl.load(
                cotangent + (row * cols + column),
                mask=inside & (column >= 0) & (column < cols),
                other=border,
            )
            value += c * ku[n]
            slope += c * du[n]
            bend += c * eu[n]
            if not UNBIASED:
                if n == 1:
                    hat += c * (1 - fu)
                    difference -= c
                if n == 2:
                    hat += c * fu
                    difference += c
        if UNBIASED:
            slope_u += kv[m] * slope
            slope_v += dv[m] * value
        elif m == 1:
            slope_u += difference * (1 - fv)
            slope_v -= hat
        elif m == 2:
            slope_u += difference * fv
            slope_v += hat
        uu += kv[m] * bend
        uv += dv[m] * slope
        vv += ev[m] * value
    return slope_u, slope_v, uu, uv, vv
