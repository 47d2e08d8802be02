"""From a window's pixels to the rays that the contrast warps."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from event_binning_grad.estimation.contrast import MIN_DEPTH
from event_binning_grad.geometry import Camera

# See `look_up`. An edge that passes makes a pixel fire a few times, ten in high contrast.
HOT_MIN = 16
HOT_RATIO = 10.0


def normalised_table(camera: Camera) -> npt.NDArray[np.float32]:
    """[height, width, 2] X/Z and Y/Z of every pixel's bearing; NaN where there is none in front."""
    bearings = camera.bearings.astype(np.float64)
    depth = np.where(bearings[..., 2:] > MIN_DEPTH, bearings[..., 2:], np.nan)
    return np.ascontiguousarray((bearings[..., :2] / depth).astype(np.float32))


@numba.njit(nogil=True, cache=True)
def look_up(t, x, y, stamp_ns, table, counts, columns):
    """Fills columns [3, M]: X/Z, Y/Z from the table [H, W, 2] and seconds from stamp_ns, of M of
    the N events, evenly spread.

    Events off the table get NaN, as those whose pixel has no bearing do: compiled code would read
    on beyond its end. So do events of hot pixels: a dot that fires all the time is sharpest when
    nothing is compensated, and would hide the motion. A pixel is hot if it fires HOT_MIN times and
    HOT_RATIO times as often as the mean of the pixels that fire.

    counts: [H, W] int32, zero; zero again afterwards. Returns the number of events of hot pixels.
    """
    height, width, _ = table.shape
    active, seen = 0, 0
    total, taken = len(t), columns.shape[1]
    for n in range(taken):
        i = n if taken == total else n * total // taken
        if y[i] < height and x[i] < width:
            active += counts[y[i], x[i]] == 0
            counts[y[i], x[i]] += 1
            seen += 1
    limit = max(HOT_MIN, HOT_RATIO * seen / max(active, 1))
    hot_events = 0
    nan = np.float32(np.nan)
    for n in range(taken):
        i = n if taken == total else n * total // taken
        inside = y[i] < height and x[i] < width
        hot = inside and counts[y[i], x[i]] > limit
        hot_events += hot
        if inside and not hot:
            columns[0, n], columns[1, n] = table[y[i], x[i], 0], table[y[i], x[i], 1]
        else:
            columns[0, n], columns[1, n] = nan, nan
        columns[2, n] = np.float32((t[i] - stamp_ns) * 1e-9)
    for n in range(taken):
        i = n if taken == total else n * total // taken
        if y[i] < height and x[i] < width:
            counts[y[i], x[i]] = 0
    return hot_events
