"""From a window's pixels to the rays that the contrast warps."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from event_binning_grad.estimation.contrast import MIN_DEPTH
from event_binning_grad.geometry import Camera

# See `look_up`. An edge that passes makes a pixel fire a few times, ten in high contrast.
HOT_MIN = 16
HOT_RATIO = 10.0

_FLAGS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}


def normalised_table(camera: Camera) -> npt.NDArray[np.float32]:
    """[height, width, 2] X/Z and Y/Z of every pixel's bearing; NaN where there is none in front."""
    bearings = camera.bearings.astype(np.float64)
    depth = np.where(bearings[..., 2:] > MIN_DEPTH, bearings[..., 2:], np.nan)
    return np.ascontiguousarray((bearings[..., :2] / depth).astype(np.float32))


@numba.njit(**_FLAGS)
def look_up(t, x, y, stamp_ns, table, counts, columns):
    """Fills columns [3, M]: X/Z, Y/Z from the table [H, W, 2] and seconds from stamp_ns, of M of
    the N events, evenly spread.

    Events off the table get NaN, as those whose pixel has no bearing do: compiled code would read
    on beyond its end. So do events of hot pixels: a dot that fires all the time is sharpest when
    nothing is compensated, and would hide the motion. A pixel is hot if it fires HOT_MIN times and
    HOT_RATIO times as often as the mean of the pixels that fire.

    counts: [H, W] int32, zero; zero again afterwards. Returns the number of events of hot pixels.
    """
    total, taken = len(t), columns.shape[1]
    if taken < total:
        chosen = np.empty(taken, np.int64)
        for n in range(taken):
            chosen[n] = n * total // taken
        return _look_up(t[chosen], x[chosen], y[chosen], stamp_ns, table, counts, columns)
    return _look_up(t, x, y, stamp_ns, table, counts, columns)


@numba.njit(**_FLAGS)
def _look_up(t, x, y, stamp_ns, table, counts, columns):
    height, width, _ = table.shape
    active, seen, most = 0, 0, 0
    # One thing at a time: together these loops take three times as long.
    for n in range(len(t)):
        if y[n] < height and x[n] < width:
            count = counts[y[n], x[n]] + 1
            counts[y[n], x[n]] = count
            active += count == 1
            most = max(most, count)
            seen += 1
    nan = np.float32(np.nan)
    for n in range(len(t)):
        if y[n] < height and x[n] < width:
            columns[0, n], columns[1, n] = table[y[n], x[n], 0], table[y[n], x[n], 1]
        else:
            columns[0, n], columns[1, n] = nan, nan
    for n in range(len(t)):
        columns[2, n] = np.float32((t[n] - stamp_ns) * 1e-9)
    limit = max(HOT_MIN, HOT_RATIO * seen / max(active, 1))
    hot_events = 0
    if most > limit:
        for n in range(len(t)):
            if y[n] < height and x[n] < width and counts[y[n], x[n]] > limit:
                columns[0, n], columns[1, n] = nan, nan
                hot_events += 1
    if 4 * len(t) > height * width:
        counts[:] = 0
    else:
        for n in range(len(t)):
            if y[n] < height and x[n] < width:
                counts[y[n], x[n]] = 0
    return hot_events
