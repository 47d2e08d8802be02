"""AEDAT4, the files of iniVation's software: FlatBuffers, compressed packet by packet.

The reader is our own, for dv-processing's own one does not return from some damaged files; it
serves as a second opinion in the tests. Source: iniVation's documentation of AEDAT 4.0, and its
FlatBuffers schemas. A file is a version line, a header (compression, where the table of its
packets begins, and the streams as XML), and packets: stream and size (int32 each), and the
content, a FlatBuffer behind its size (uint32).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.compressed import (
    LZ4_MAGIC,
    MAX_BYTES,
    ZSTD_MAGIC,
    decompressed,
    library_missing,
)
from event_binning_grad.events.file_recording import FileRecording, open_file
from event_binning_grad.events.types import (
    NS_PER_US,
    EventPacket,
    Header,
    Stamp,
    Triggers,
)

MAGIC = b"#!AER-DAT4.0\r\n"
EVENT_BYTES = 16  # int64 us, int16 x, int16 y, uint8 polarity, as dv-processing has them in memory
FRAME_ID = "event_camera"
MAX_HEADER_BYTES = 1 << 24
MAX_CONTENT_BYTES = MAX_BYTES
MAX_ROWS = 1 << 20  # IMU samples or triggers of one packet, where real ones have a few
_EVENTS, _IMU, _TRIGGERS = "EVTS", "IMUS", "TRIG"
_RISING, _FALLING = (1, 4), (2, 5)  # of the input and of the generator
_PULSE = 3
_MAX_US = (1 << 62) // NS_PER_US
_GRAVITY = 9.80665  # m/s² of a g


class _DamagedError(Exception):
    """These bytes are no such FlatBuffer."""


@dataclass(frozen=True)
class _Stream:
    number: int
    kind: str
    source: str
    width: int
    height: int


class Aedat4Recording(FileRecording):
    """The events of one camera of an AEDAT4 file, with its IMU and trigger input.

    camera: its name, needed only where the file holds events of several.
    Times are in ns since 1970, as the file has them in us. Frames are not read. Counted by
    unusable() while its iterators run: unreadable_packets (damaged, skipped), unusable_readings
    (a gyroscope's, not finite), pulses (of the trigger input, which are no edges).
    """

    kind = "AEDAT4"
    encoding = "dv"

    def __init__(self, path: Path, camera: str | None = None) -> None:
        super().__init__(path)
        self._unreadable: dict[str, int] = dict.fromkeys((_EVENTS, _IMU, _TRIGGERS), 0)
        self._unusable_readings = self._pulses = 0
        self._data_start, self._data_end, self._was_closed, streams = _read_header(path)
        events = [stream for stream in streams if stream.kind == _EVENTS]
        if camera is not None:
            events = [stream for stream in events if stream.source == camera]
        if len({stream.source for stream in events}) != 1:
            found = ", ".join(f"{s.source or '(unnamed)'} {s.kind}" for s in streams) or "nothing"
            wanted = f" of {camera}" if camera is not None else ""
            wanted = " of one camera: choose it (--topic)" if len(events) > 1 else wanted
            raise RecordingError(f"{path} holds streams of {found}, expected events (EVTS){wanted}")
        self._events = events[0]
        own = [stream for stream in streams if stream.source == self._events.source]
        self._numbers = {
            kind: [stream.number for stream in own if stream.kind == kind]
            for kind in (_IMU, _TRIGGERS)
        } | {_EVENTS: [self._events.number]}
        self.width, self.height = self._events.width, self._events.height
        if not (0 < self.width <= 1 << 15 and 0 < self.height <= 1 << 15):
            raise RecordingError(
                f"{path} says that its sensor has {self.width} x {self.height} pixels, expected "
                f"1 to {1 << 15} a side: it is damaged"
            )

    def packets(self) -> Iterator[EventPacket]:
        """The file's own packets, in encoding "dv"; header.stamp is the first event's time (0 if
        that is damaged; the decoder counts such events)."""
        seq = 0
        for content in self._contents(_EVENTS):
            try:
                events = content.structs(EVENT_BYTES)
                if not len(events):
                    continue
            except _DamagedError:
                self._unreadable[_EVENTS] += 1
                continue
            first_us = int(events.view("<i8")[0])
            stamp_ns = first_us * NS_PER_US if 0 <= first_us <= _MAX_US else 0
            header = Header(Stamp.from_ns(stamp_ns), FRAME_ID)
            yield EventPacket(header, self.height, self.width, seq, 0, "dv", False, events)
            seq += 1

    def imu(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """stamp_ns and angular velocity [3] in rad/s, in the IMU's own frame; nothing if the file
        has no IMU."""
        for stamp_ns, motion in self._motions():
            yield stamp_ns, motion[:3]

    def inertial(self) -> Iterator[tuple[int, NDArray[np.float64]]] | None:
        """As imu(), with the acceleration in m/s² behind it: [6]; None if the file holds no
        samples."""
        motions = self._motions()
        first = next(motions, None)
        return None if first is None else chain([first], motions)

    def _motions(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        self._unusable_readings = 0
        if not self._numbers[_IMU]:
            return
        # Behind the time: temperature, acceleration (g), rate of turn (deg/s).
        for stamp_ns, row in self._rows(_IMU, *["<f"] * 7):
            values = np.array(row[1:], np.float64)
            if np.isfinite(values[3:]).all():
                yield stamp_ns, np.concatenate([np.deg2rad(values[3:]), values[:3] * _GRAVITY])
            else:
                self._unusable_readings += 1

    def triggers(self) -> Iterator[Triggers]:
        """Edges of the trigger input; the camera's own marks (reset, frames) are left out."""
        self._pulses = 0
        for stamp_ns, (kind,) in self._rows(_TRIGGERS, "<b"):
            if kind in _RISING + _FALLING:
                t, p = np.array([stamp_ns]), np.array([kind in _RISING], np.uint8)
                yield Triggers(t.astype(np.int64), p, np.zeros(1, np.uint8))
            elif kind == _PULSE:
                self._pulses += 1

    def warnings(self) -> list[str]:
        """What is wrong with the file, a line each; complete after packets() ran."""
        if self.cut_bytes or self._was_closed:
            return super().warnings()
        return [
            f"{self.path} was not closed, it has no table of its packets: all that it holds was "
            "read, but the recorder may have had more. Go on with what is there"
        ]

    def unusable(self) -> dict[str, int]:
        """What the iterators could not use when they ran last, by reason."""
        return {
            "unreadable_packets": sum(self._unreadable.values()),
            "unusable_readings": self._unusable_readings,
            "pulses": self._pulses,
            "cut_bytes": self.cut_bytes,
        }

    def _rows(self, kind: str, *fields: str) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Time in ns, and the fields behind it, of each table in the packets of these streams."""
        for content in self._contents(kind):
            try:
                rows = [(_time_ns(row[0]), row[1:]) for row in content.rows(("<q", *fields))]
            except _DamagedError:
                self._unreadable[kind] += 1
                continue
            yield from rows

    def _contents(self, kind: str) -> Iterator[_FlatBuffer]:
        """The packets of the camera's streams of a kind, one after the other."""
        self._unreadable[kind] = 0
        with open_file(self.path) as file:
            at = self._data_start
            while at < self._data_end:
                file.seek(at)
                head = file.read(8)
                number, size = struct.unpack("<ii", head) if len(head) == 8 else (0, -1)
                if not 0 <= size <= self._data_end - at - 8:
                    self.cut_bytes = self._data_end - at
                    return
                at += 8 + size
                if number not in self._numbers[kind]:
                    continue
                try:
                    content = _FlatBuffer(_decompressed(file.read(size)))
                except _DamagedError:
                    self._unreadable[kind] += 1
                    continue
                except ImportError as error:
                    raise library_missing(self.path, error) from None
                yield content


class _FlatBuffer:
    """A FlatBuffer behind its size, whose root table has a vector as its first field.

    Each access is checked: a place outside the bytes raises _DamagedError.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.root = 4 + self.number("<I", 4)

    def number(self, form: str, at: int) -> Any:
        try:
            return struct.unpack_from(form, self._data, at)[0] if at >= 0 else self._fail()
        except struct.error:
            return self._fail()

    def field(self, table: int, index: int) -> int | None:
        """Where a field of a table lies; None if it has the default."""
        layout = table - self.number("<i", table)
        if 4 + 2 * index >= self.number("<H", layout):
            return None
        offset = self.number("<H", layout + 4 + 2 * index)
        return table + offset if offset else None

    def vector(self, index: int = 0) -> tuple[int, int]:
        """Where the elements of a vector of the root table begin, and how many they are."""
        at = self.field(self.root, index)
        if at is None:
            return 0, 0
        at += self.number("<I", at)
        return at + 4, self.number("<I", at)

    def structs(self, size: int) -> NDArray[np.uint8]:
        """The bytes of a vector of structs."""
        at, count = self.vector()
        if at + size * count > len(self._data):
            self._fail()
        return np.frombuffer(self._data, np.uint8, size * count, at)

    def rows(self, fields: tuple[str, ...]) -> list[tuple[Any, ...]]:
        """The first fields of each table in a vector of tables, each by its struct format."""
        at, count = self.vector()
        if at + 4 * count > len(self._data) or count > MAX_ROWS:
            self._fail()
        rows = []
        for entry in range(at, at + 4 * count, 4):
            table = entry + self.number("<I", entry)
            places = [self.field(table, k) for k in range(len(fields))]
            rows.append(
                tuple(
                    0 if place is None else self.number(form, place)
                    for form, place in zip(fields, places, strict=True)
                )
            )
        return rows

    def _fail(self) -> Any:
        raise _DamagedError


def _time_ns(time_us: Any) -> int:
    if not 0 <= time_us <= _MAX_US:
        raise _DamagedError
    return int(time_us) * NS_PER_US


def _decompressed(data: bytes) -> bytes:
    """The content of a packet, by how it begins; never more than MAX_CONTENT_BYTES."""
    form = "lz4" if data.startswith(LZ4_MAGIC) else "zstd" if data.startswith(ZSTD_MAGIC) else ""
    try:
        content, whole = decompressed(data, form, MAX_CONTENT_BYTES)
    except ValueError as error:
        raise _DamagedError from error
    if not whole:
        raise _DamagedError
    return content


def _read_header(path: Path) -> tuple[int, int, bool, list[_Stream]]:
    """Where the packets begin and end, whether their table says so, and the streams."""
    with open_file(path) as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise RecordingError(f"{path} does not begin with '#!AER-DAT4.0', expected AEDAT4")
        size = file.read(4)
        length = struct.unpack("<I", size)[0] if len(size) == 4 else 0
        data = size + file.read(min(length, MAX_HEADER_BYTES))
        end = file.seek(0, 2)
    if not 0 < length == len(data) - 4:
        raise RecordingError(f"{path} has an AEDAT4 header that is cut short or damaged")
    try:
        header = _FlatBuffer(data)
        at = header.field(header.root, 1)
        table = -1 if at is None else header.number("<q", at)
        start, count = header.vector(2)
        streams = list(_streams(data[start : start + count]))
    except (_DamagedError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise RecordingError(
            f"{path} has an AEDAT4 header that is damaged: {str(error) or 'not a FlatBuffer'}"
        ) from None
    start = len(MAGIC) + len(data)
    was_closed = start <= table <= end
    return start, table if was_closed else end, was_closed, streams


def _streams(xml: bytes) -> Iterator[_Stream]:
    for node in ElementTree.fromstring(xml).iter("node"):
        attributes = {each.get("key"): each.text or "" for each in node.findall("attr")}
        kind = attributes.get("typeIdentifier")
        number = node.get("name", "")
        if kind is None or not number.isdecimal():
            continue
        info = {
            each.get("key"): each.text or "" for each in node.findall("node[@name='info']/attr")
        }
        sides = (int(info.get(name, "0")) for name in ("sizeX", "sizeY"))
        yield _Stream(int(number), kind, info.get("source", ""), *sides)
