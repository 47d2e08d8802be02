"""Blocks of events from files, put in order: one way for every reader of arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.time_rules import UNKNOWN_TIME, settle_times
from event_binning_grad.events.types import NS_PER_S, Events


@dataclass
class Unusable:
    """What could not be used as it was: events outside the sensor (left out), and times that ran
    back by at most 10 ms (those events get the last time before)."""

    out_of_bounds_events: int = 0
    time_steps_back: int = 0


def events_in_order(
    blocks: Iterator[tuple[NDArray[Any], ...]],
    width: int,
    height: int,
    file: Path,
    unusable: Unusable,
) -> Iterator[Events]:
    """The events of blocks of t (int64 ns, changed in place), x, y (uint16) and p (uint8).

    unusable is set to zero and counted. Raises RecordingError for a time that runs back by more
    than 10 ms.
    """
    last = raw = UNKNOWN_TIME
    unusable.out_of_bounds_events = unusable.time_steps_back = 0
    for t, x, y, p in blocks:
        _, back, resets, last, raw = settle_times(t, last, raw)
        if resets:
            raise RecordingError(
                f"{file}: time runs back by more than 10 ms before {raw / NS_PER_S:.6f} s, "
                "expected events in the order of time"
            )
        unusable.time_steps_back += int(back)
        inside = (x < width) & (y < height)
        outside = len(t) - int(np.count_nonzero(inside))
        unusable.out_of_bounds_events += outside
        chunk = Events(t, x, y, p, width, height)
        if outside:
            chunk = Events(t[inside], x[inside], y[inside], p[inside], width, height)
        if len(chunk):
            yield chunk
