"""Packets of dv-processing's events, their bytes as they lie."""

from __future__ import annotations

from typing import Any

import numpy as np

from event_binning_grad.errors import PacketError
from event_binning_grad.events.fixed_size import BYTES_PER_EVENT
from event_binning_grad.events.types import EventPacket, Header, Stamp


def dv_packet(
    store: Any, width: int, height: int, seq: int, frame_id: str, stamp_ns: int
) -> EventPacket:
    """A packet of a dv_processing.EventStore, in encoding "dv"; stamp_ns: when it arrived.

    Raises PacketError where dv-processing lays its events out in another way.
    """
    rows = store.numpy()
    if rows.dtype.itemsize != BYTES_PER_EVENT["dv"]:
        raise PacketError(
            f"dv-processing's events have {rows.dtype.itemsize} bytes each, expected "
            f"{BYTES_PER_EVENT['dv']}: use another version of it"
        )
    # A copy: the store's memory is its own.
    data = np.frombuffer(rows.tobytes(), np.uint8)
    header = Header(Stamp.from_ns(stamp_ns), frame_id)
    return EventPacket(header, height, width, seq, 0, "dv", False, data)
