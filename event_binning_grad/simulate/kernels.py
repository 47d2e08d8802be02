"""What is computed for every pixel and step.

In one file, since numba's cache of compiled code notices changes of the function's own file only.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

FAINTEST = 1e-6  # 1/m: further than 1000 km there is nothing to be seen
SHARP = np.float32(1.4)  # up to this many times as wide a pixel takes a painting as it is

_FLAGS: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}


@numba.njit(parallel=True, **_FLAGS)
def advance_rows(
    faces,  # [6, N, N]
    bearings,  # [H, W, 3]
    turns,  # [S, 3, 3] R_world_from_camera at the end of each step
    t_s,  # [S+1]
    on,  # [H, W] thresholds
    off,
    refractory_s,
    level,  # [H, W] state, updated in place
    reference,
    blind_until_s,
    t_out,  # [H, capacity]
    x_out,
    p_out,
    counts,  # [H] events found; those beyond the capacity are counted only
):
    """Each row of pixels goes through all steps on its own, so threads never share a store."""
    for y in numba.prange(level.shape[0]):
        after = np.empty_like(level[y])
        found = 0
        for k in range(turns.shape[0]):
            _see_row(faces, bearings[y], turns[k], after)
            found = _advance_row(
                t_s[k], t_s[k + 1], after, on[y], off[y], refractory_s,
                level[y], reference[y], blind_until_s[y], t_out[y], x_out[y], p_out[y], found,
            )  # fmt: skip
        counts[y] = found


@numba.njit(parallel=True, **_FLAGS)
def advance_rows_of_layers(
    texels,  # [T, 2]
    first,  # [L, K]
    sides,  # [L, K]
    bearings,  # [H, W, 3]
    maps,  # [S, L, 3, 3]
    detail,  # [S, L]
    t_s,
    on,
    off,
    refractory_s,
    level,
    reference,
    blind_until_s,
    t_out,
    x_out,
    p_out,
    counts,
):
    """advance_rows for layers instead of a cube map; see LayeredScene.maps and .tables."""
    for y in numba.prange(level.shape[0]):
        after = np.empty_like(level[y])
        places = np.empty((maps.shape[1], 3, level.shape[1]), np.float32)
        found = 0
        for k in range(maps.shape[0]):
            _see_row_of_layers(texels, first, sides, bearings[y], maps[k], detail[k], places, after)
            found = _advance_row(
                t_s[k], t_s[k + 1], after, on[y], off[y], refractory_s,
                level[y], reference[y], blind_until_s[y], t_out[y], x_out[y], p_out[y], found,
            )  # fmt: skip
        counts[y] = found


@numba.njit(**_FLAGS)
def _see_row(faces, bearings, turn, after):
    """The log intensity [W] along bearings [W, 3] of a camera turned by R_world_from_camera."""
    (r00, r01, r02), (r10, r11, r12), (r20, r21, r22) = turn[0], turn[1], turn[2]
    for x in range(len(after)):
        bx, by, bz = bearings[x, 0], bearings[x, 1], bearings[x, 2]
        after[x] = _sample(
            faces,
            r00 * bx + r01 * by + r02 * bz,
            r10 * bx + r11 * by + r12 * bz,
            r20 * bx + r21 * by + r22 * bz,
        )


@numba.njit(**_FLAGS)
def _advance_row(
    start, stop, after, on, off, refractory_s, level, reference, blind_until_s,
    t_out, x_out, p_out, found,
):  # fmt: skip
    """One step of one row from level to after [W]: its events are appended; returns their count."""
    for x in range(len(after)):
        before, blind = level[x], blind_until_s[x]
        level[x] = after[x]
        change = after[x] - reference[x]
        if blind >= stop or (blind < start and -off[x] < change and change < on[x]):
            continue
        # The level is taken as linear in time within the step.
        slope = (after[x] - before) / (stop - start)
        if blind >= start:
            reference[x] = before + slope * (blind - start)
        while True:
            change = after[x] - reference[x]
            if change >= on[x]:
                crossing, polarity = reference[x] + on[x], 1
            elif change <= -off[x]:
                crossing, polarity = reference[x] - off[x], 0
            else:
                break
            t = min(stop, max(start, start + (crossing - before) / slope))
            if found < len(t_out):
                t_out[found], x_out[found], p_out[found] = t, x, polarity
            found += 1
            reference[x] = crossing
            if refractory_s > 0.0:
                blind_until_s[x] = t + refractory_s
                if t + refractory_s >= stop:
                    break
                reference[x] = before + slope * (t + refractory_s - start)
    return found


@numba.njit(inline="always", **_FLAGS)
def _sample(faces, x, y, z):
    """Bilinear log intensity along (x, y, z), which need not be of unit length."""
    ax, ay, az = abs(x), abs(y), abs(z)
    if az >= ax and az >= ay:
        face, scale, u, v = (4 if z > 0 else 5), az, x, y
    elif ax >= ay:
        face, scale, u, v = (0 if x > 0 else 1), ax, y, z
    else:
        face, scale, u, v = (2 if y > 0 else 3), ay, z, x
    last = faces.shape[1] - 1
    half = np.float32(0.5) * np.float32(last)
    gain = half / scale
    column, row = u * gain + half, v * gain + half
    # A direction on the very edge may round past the last node; none can be below zero by a texel.
    i, j = min(int(row), last - 1), min(int(column), last - 1)
    b, a = row - np.float32(i), column - np.float32(j)
    upper = faces[face, i, j] + a * (faces[face, i, j + 1] - faces[face, i, j])
    lower = faces[face, i + 1, j] + a * (faces[face, i + 1, j + 1] - faces[face, i + 1, j])
    return upper + b * (lower - upper)


@numba.njit(**_FLAGS)
def sample_all(faces, directions):
    out = np.empty(len(directions), np.float32)
    for n in range(len(directions)):
        out[n] = _sample(faces, directions[n, 0], directions[n, 1], directions[n, 2])
    return out


@numba.njit(parallel=True, **_FLAGS)
def see_layers(texels, first, sides, bearings, maps, detail, out):
    """The log intensity [H, W] along bearings [H, W, 3], as _see_row_of_layers."""
    for y in numba.prange(out.shape[0]):
        places = np.empty((maps.shape[0], 3, out.shape[1]), np.float32)
        _see_row_of_layers(texels, first, sides, bearings[y], maps, detail, places, out[y])


@numba.njit(**_FLAGS)
def _see_row_of_layers(texels, first, sides, bearings, maps, detail, places, after):
    """The log intensity [W] along bearings [W, 3]: the layers [L] blended from near to far.

    places: room [L, 3, W] for where each ray meets each layer: column, row and 1/distance.
    """
    one, count = np.float32(1.0), len(maps)
    for n in range(count):
        (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = maps[n, 0], maps[n, 1], maps[n, 2]
        columns, rows, inverses = places[n, 0], places[n, 1], places[n, 2]
        for x in range(len(after)):
            bx, by, bz = bearings[x, 0], bearings[x, 1], bearings[x, 2]
            inverse = m20 * bx + m21 * by + m22 * bz
            range_m = one / inverse
            columns[x] = (m00 * bx + m01 * by + m02 * bz) * range_m
            rows[x] = (m10 * bx + m11 * by + m12 * bz) * range_m
            inverses[x] = inverse
    for x in range(len(after)):
        total, light, limit = np.float32(0.0), one, np.float32(np.inf)
        for _ in range(count):
            found, largest = -1, np.float32(FAINTEST)
            for n in range(count):
                inverse = places[n, 2, x]
                if largest < inverse < limit:
                    found, largest = n, inverse
            if found < 0:
                break
            limit = largest
            blur = detail[found] / (largest * largest)
            value, covered = _sample_blurred(
                texels, first[found], sides[found], places[found, 0, x], places[found, 1, x], blur
            )
            total += light * value
            light *= one - covered
            if light < np.float32(1e-4):
                break
        after[x] = total


@numba.njit(inline="always", **_FLAGS)
def _sample_blurred(texels, first, sides, u, v, blur):
    """The painting as a pixel blur times as wide as planned sees it, between two halvings."""
    half, two = np.float32(0.5), np.float32(2.0)
    k, last = 0, len(sides) - 2
    while blur >= two and k < last:
        blur *= half
        u, v = (u - half) * half, (v - half) * half  # node 0 of the half lies between 0 and 1
        k += 1
    share = (min(blur, two) - SHARP) / (two - SHARP)
    value, covered = _sample_painting(texels, first[k], sides[k], u, v)
    if share <= np.float32(0.0):
        return value, covered
    u, v = (u - half) * half, (v - half) * half
    value_2, covered_2 = _sample_painting(texels, first[k + 1], sides[k + 1], u, v)
    return value + share * (value_2 - value), covered + share * (covered_2 - covered)


@numba.njit(inline="always", **_FLAGS)
def _sample_painting(texels, first, side, u, v):
    """Bilinear (log intensity times coverage, coverage) at column u and row v, which wrap."""
    columns, rows = np.floor(u), np.floor(v)
    a, b = u - columns, v - rows
    period = np.float32(side)
    j = int(columns - period * np.floor(columns / period))
    i = int(rows - period * np.floor(rows / period))
    # The quotient's rounding may leave a whole period, or take one too many.
    j, i = min(max(j, 0), side - 1), min(max(i, 0), side - 1)
    j_next = j + 1 if j + 1 < side else 0
    i_next = i + 1 if i + 1 < side else 0
    top, bottom = first + i * side, first + i_next * side
    upper = texels[top + j, 0] + a * (texels[top + j_next, 0] - texels[top + j, 0])
    lower = texels[bottom + j, 0] + a * (texels[bottom + j_next, 0] - texels[bottom + j, 0])
    value = upper + b * (lower - upper)
    upper = texels[top + j, 1] + a * (texels[top + j_next, 1] - texels[top + j, 1])
    lower = texels[bottom + j, 1] + a * (texels[bottom + j_next, 1] - texels[bottom + j, 1])
    return value, upper + b * (lower - upper)


@numba.njit(parallel=True, **_FLAGS)
def depth_rows(texels, first, sides, bearings, maps, out, layer):
    """z-depth [H, W] along float64 bearings [H, W, 3], and whose: the first layer that covers half;
    NaN and -1 where there is none."""
    for y in numba.prange(out.shape[0]):
        for x in range(out.shape[1]):
            bx, by, bz = bearings[y, x, 0], bearings[y, x, 1], bearings[y, x, 2]
            largest = FAINTEST
            out[y, x], layer[y, x] = np.nan, -1
            for n in range(len(maps)):
                inverse = maps[n, 2, 0] * bx + maps[n, 2, 1] * by + maps[n, 2, 2] * bz
                if not inverse > largest:
                    continue
                u = (maps[n, 0, 0] * bx + maps[n, 0, 1] * by + maps[n, 0, 2] * bz) / inverse
                v = (maps[n, 1, 0] * bx + maps[n, 1, 1] * by + maps[n, 1, 2] * bz) / inverse
                if _sample_painting(texels, first[n, 0], sides[n, 0], u, v)[1] >= 0.5:
                    largest = inverse
                    out[y, x], layer[y, x] = bz / inverse, n
