"""Prophesee's .dat files: decoded events of 8 bytes behind a header of text.

Source: Prophesee's documentation of its DAT format; version 1 as in the recordings of the first
ATIS cameras.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.file_recording import FileRecording, learnt_size, open_file
from event_binning_grad.events.in_order import Unusable, events_in_order
from event_binning_grad.events.prophesee_header import read_header
from event_binning_grad.events.types import NS_PER_US, Events

BLOCK_EVENTS = 1 << 16
EVENT_BYTES = 8
_CD_TYPES = (0x00, 0x0C)
_ATIS_SIZE = (304, 240)
_ANY_SIZE = 1 << 14
# Bits of x and y in the word behind the time, and where the polarity stands, by the version.
_LAYOUTS = {1: (9, 8), 2: (14, 14)}


class DatRecording(FileRecording):
    """A .dat file of contrast detection events, version 1 or 2.

    The time is 32 bits of us; where it wraps (71.6 min) it goes on.
    Counted while packets() runs: cut_bytes (the rest of an event at the end), and those of
    Unusable.
    """

    kind = "Prophesee dat"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        header = read_header(path)
        if not header.fields:
            raise RecordingError(
                f"{path} does not begin with lines '% key value', expected the header of a .dat "
                "file: it is damaged or of another format"
            )
        version = header.fields.get("version", "1")
        if version not in ("1", "2"):
            raise RecordingError(f"{path} has version {version[:20]!r}, expected 1 or 2")
        self._layout = _LAYOUTS[int(version)]
        self._start = header.size + 2
        with open_file(path) as file:
            file.seek(header.size)
            kind = file.read(2)
        if len(kind) < 2 or kind[0] not in _CD_TYPES or kind[1] != EVENT_BYTES:
            raise RecordingError(
                f"{path} says that its events have type and size {list(kind)}, expected "
                f"{list(_CD_TYPES)} and {EVENT_BYTES}: contrast detection events"
            )
        self._header_size = header.sensor_size() or (_ATIS_SIZE if version == "1" else None)
        self._unusable = Unusable()
        self.cut_bytes = 0

    @property
    def width(self) -> int:
        """Columns of the sensor: by the header, else of the smallest known one that fits."""
        return self._size[0]

    @property
    def height(self) -> int:
        """Rows of the sensor."""
        return self._size[1]

    def packets(self) -> Iterator[Events]:
        """The events in blocks, in the order of time; see `events_in_order`."""
        return events_in_order(self._blocks(), *self._size, self.path, self._unusable)

    def unusable(self) -> dict[str, int]:
        """What packets() could not use as it was, by reason, after it ran."""
        return asdict(self._unusable) | {"cut_bytes": self.cut_bytes}

    @cached_property
    def _size(self) -> tuple[int, int]:
        if self._header_size is not None:
            return self._header_size
        chunks = events_in_order(self._blocks(), _ANY_SIZE, _ANY_SIZE, self.path, Unusable())
        remedy = "write lines '% Width W' and '% Height H' in its header"
        return learnt_size(chunks, self.path, remedy)

    def _blocks(self) -> Iterator[tuple[NDArray[Any], ...]]:
        x_bits, y_bits = self._layout
        wraps, before = 0, 0
        self.cut_bytes = 0
        with open_file(self.path) as file:
            file.seek(self._start)
            while data := file.read(BLOCK_EVENTS * EVENT_BYTES):
                whole = len(data) // EVENT_BYTES * EVENT_BYTES
                self.cut_bytes += len(data) - whole
                time_us, word = np.frombuffer(data[:whole], "<u4").reshape(-1, 2).T
                if not len(time_us):
                    return
                t = time_us.astype(np.int64)
                over = wraps + np.cumsum(np.diff(t, prepend=before) < -(1 << 31))
                wraps, before = int(over[-1]), int(t[-1])
                t = (t + (over << 32)) * NS_PER_US
                x = (word & ((1 << x_bits) - 1)).astype(np.uint16)
                y = (word >> x_bits & ((1 << y_bits) - 1)).astype(np.uint16)
                yield t, x, y, (word >> (x_bits + y_bits) & 1).astype(np.uint8)
