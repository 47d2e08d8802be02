"""What is computed for every pixel and step.

In one file, since numba's cache of compiled code notices changes of the function's own file only.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

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
