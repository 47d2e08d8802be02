"""When time runs backwards: one rule for every encoding.

A step back of at most MAX_STEP_BACK_NS is noise of the sensor or its link: the events get the last
time before it. A larger one is another clock (a restart, a jump of the host's time, a bag that
begins again).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from event_binning_grad.events.types import NS_PER_MS

MAX_STEP_BACK_NS = 10 * NS_PER_MS
UNKNOWN_TIME = -(1 << 62)  # earlier than any time, with room to subtract


@njit(nogil=True, cache=True)
def settle(now, last, raw):
    """The time that an event gets which comes at `now`, ns; whether that is a step back, and
    whether it is a clock reset.

    last, raw: time of the event before, after and before settling.
    """
    if now >= last:
        return now, now < raw, False
    if now < last - MAX_STEP_BACK_NS and last != UNKNOWN_TIME:
        return now, now < raw, True
    return last, now < raw, False


@njit(nogil=True, cache=True)
def settle_times(t, last, raw):
    """Makes t (int64 [N], ns) non-decreasing in place, going on from the times before it.

    last, raw: time of the event before t[0] after and before settling.
    Returns the first event that is on the present clock, the steps back, the clock resets, and
    the new last and raw.
    """
    first, steps_back, resets = 0, 0, 0
    for i in range(len(t)):
        now = t[i]
        last, is_back, is_reset = settle(now, last, raw)
        raw, t[i] = now, last
        steps_back += is_back
        if is_reset:
            first, resets = i, resets + 1
    return np.int64(first), np.int64(steps_back), np.int64(resets), np.int64(last), np.int64(raw)
