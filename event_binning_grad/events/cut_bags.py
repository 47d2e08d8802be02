"""Bags that were never closed, or cut short: whatever lies before the cut.

Such a file lacks the index that readers begin with (mcap, ROS 1), or pages that its header counts
(sqlite3). It is read from its beginning, record by record, as far as the records are whole.
Sources: the MCAP specification, the documentation of the ROS 1 bag format 2.0, and that of
SQLite's file format.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.compressed import decompressed
from event_binning_grad.events.file_recording import open_file

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

_MCAP_MAGIC, _ROS1_MAGIC = b"\x89MCAP0\r\n", b"#ROSBAG V2.0\n"
_SQLITE_MAGIC = b"SQLite format 3\0"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = 3, 4, 5, 6  # opcodes of mcap
_ROS1_MESSAGE, _ROS1_CHUNK, _ROS1_CONNECTION = b"\x02", b"\x05", b"\x07"


class _Message(NamedTuple):
    connection: int
    time_ns: int
    data: bytes


# Yields topics and messages in the order of the file; returns how many bytes at its end are no
# whole record.
_Scan = Generator["Connection | _Message", None, int]


@dataclass(frozen=True)
class CutBag:
    """A reader of such a file. messages() may be called again, as that of rosbags' readers.

    message_count: of those that are whole. lost_bytes: at the end, of no whole message.
    """

    path: Path
    connections: list[Connection]
    message_count: int
    lost_bytes: int

    def messages(
        self, connections: Iterable[Connection]
    ) -> Iterator[tuple[Connection, int, bytes]]:
        wanted = {each.id: each for each in connections}
        for item in _scan_of(self.path)(self.path):
            if isinstance(item, _Message) and item.connection in wanted:
                yield wanted[item.connection], item.time_ns, item.data

    def warning(self) -> str:
        """What is wrong with the file, and what to do, in one line."""
        return (
            f"{self.path} was not closed or is cut short: read were the {self.message_count:,} "
            f"messages before the cut, {self.lost_bytes:,} bytes of no whole message are lost. "
            "`event-binning-grad convert` makes a whole bag of what is there"
        )


def open_cut(path: Path) -> CutBag | None:
    """The reader of a .mcap or .db3 that is cut, or of a ROS 1 bag that rosbags cannot open; None
    where it is whole, or none of these.

    Raises RecordingError if nothing whole lies before the cut.
    """
    found: dict[int, Connection] = {}
    count, scan = 0, _scan_of(path)(path)
    while True:
        try:
            item = next(scan)
        except StopIteration as end:
            if found:
                return CutBag(path, list(found.values()), count, end.value)
            if end.value:
                raise RecordingError(
                    f"{path} is cut short before its first whole message, so nothing can be read: "
                    "copy it again from where it was recorded"
                ) from None
            return None
        if isinstance(item, _Message):
            count += 1
        else:
            found.setdefault(item.id, item)


def _scan_of(path: Path) -> Callable[[Path], _Scan]:
    return {".mcap": _scan_mcap, ".db3": _scan_sqlite}.get(path.suffix, _scan_ros1)


def _connection(
    number: int, topic: str, type_name: str, definition: str, form: str = ""
) -> Connection:
    from rosbags.interfaces import Connection, MessageDefinition, MessageDefinitionFormat

    kinds = {"ros1msg": "MSG", "ros2msg": "MSG", "ros2idl": "IDL"}
    kind = MessageDefinitionFormat[kinds.get(form, "NONE")]
    ext: Any = None
    return Connection(
        number, topic, type_name, MessageDefinition(kind, definition), "", 0, ext, None
    )


def _scan_mcap(path: Path) -> _Scan:
    with open_file(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(_MCAP_MAGIC)))
        was_closed = file.read() == _MCAP_MAGIC
        file.seek(0)
        if file.read(len(_MCAP_MAGIC)) != _MCAP_MAGIC or was_closed:
            return 0
        schemas: dict[int, tuple[str, str, str]] = {}
        while True:
            at = file.tell()
            head = file.read(9)
            if len(head) < 9:
                return size - at
            opcode, length = struct.unpack("<BQ", head)
            whole = length <= size - file.tell()
            if not whole and opcode != _CHUNK:
                return size - at
            content = file.read(min(length, size - file.tell()))
            records, rest = [(opcode, content)], 0
            if opcode == _CHUNK:
                records, rest = _records_of_chunk(content)
            for kind, record in records:
                yield from _mcap_items(kind, record, schemas)
            if not whole:
                return rest


def _records_of_chunk(content: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """The whole records of a chunk, which may be cut, and the bytes that are left."""
    cursor = _Cursor(content)
    try:
        cursor.take(28)  # times, size and checksum
        form = cursor.text()
        cursor.take(8)
        inner = _Cursor(decompressed(content[cursor.at :], form)[0])
    except (_CutError, ValueError, ImportError):
        return [], len(content)
    records: list[tuple[int, bytes]] = []
    while True:
        at = inner.at
        try:
            opcode, length = inner.numbers("<BQ")
            records.append((opcode, inner.take(length)))
        except _CutError:
            return records, len(inner.data) - at


def _mcap_items(
    opcode: int, record: bytes, schemas: dict[int, tuple[str, str, str]]
) -> Iterator[Connection | _Message]:
    """The topic or the message of a record, if it is one; schemas: of the records before."""
    cursor = _Cursor(record)
    try:
        if opcode == _SCHEMA:
            (number,) = cursor.numbers("<H")
            schemas[number] = (cursor.text(), cursor.text(), cursor.text())
        elif opcode == _CHANNEL:
            number, schema = cursor.numbers("<HH")
            name, form, definition = schemas.get(schema, ("", "", ""))
            yield _connection(number, cursor.text(), name, definition, form)
        elif opcode == _MESSAGE:
            number, _, time_ns, _ = cursor.numbers("<HIQQ")
            yield _Message(number, time_ns, record[cursor.at :])
    except _CutError:
        return


def _scan_ros1(path: Path) -> _Scan:
    with open_file(path) as file:
        if file.read(len(_ROS1_MAGIC)) != _ROS1_MAGIC:
            return 0
        size = path.stat().st_size
        while True:
            at = file.tell()
            header = _ros1_fields(file, size)
            length = _number_of(file)
            if header is None or length is None:
                return size - at
            data = file.read(min(length, size - file.tell()))
            whole, opcode = len(data) == length, header.get("op", b"")[:1]
            records, rest = [(header, data)] if whole else [], 0
            if opcode == _ROS1_CHUNK:
                records, rest = _records_of_ros1_chunk(header, data)
            for fields, content in records:
                yield from _ros1_items(fields, content)
            if not whole:
                return rest if opcode == _ROS1_CHUNK else size - at


def _number_of(file: Any) -> int | None:
    data = file.read(4)
    return struct.unpack("<I", data)[0] if len(data) == 4 else None


def _ros1_fields(file: Any, size: int) -> dict[str, bytes] | None:
    """The header of the next record; None where none is whole."""
    length = _number_of(file)
    if length is None or length > size - file.tell():
        return None
    cursor, fields = _Cursor(file.read(length)), {}
    try:
        while cursor.at < length:
            name, _, value = cursor.take(*cursor.numbers("<I")).partition(b"=")
            fields[name.decode("ascii", "replace")] = value
    except _CutError:
        return None
    return fields


def _records_of_ros1_chunk(
    header: dict[str, bytes], data: bytes
) -> tuple[list[tuple[dict[str, bytes], bytes]], int]:
    form = header.get("compression", b"").decode("ascii", "replace")
    try:
        content = decompressed(data, form)[0]
    except (ValueError, ImportError):
        return [], len(data)
    file, records = BytesIO(content), []
    while True:
        at = file.tell()
        fields, length = _ros1_fields(file, len(content)), _number_of(file)
        if fields is None or length is None or length > len(content) - file.tell():
            return records, len(content) - at
        records.append((fields, file.read(length)))


def _ros1_items(fields: dict[str, bytes], data: bytes) -> Iterator[Connection | _Message]:
    """The topic or the message of a record, if it is one."""
    opcode, number = fields.get("op", b"")[:1], fields.get("conn", b"")
    if len(number) != 4:
        return
    number = struct.unpack("<I", number)[0]
    if opcode == _ROS1_MESSAGE and len(time := fields.get("time", b"")) == 8:
        seconds, ns = struct.unpack("<II", time)
        yield _Message(number, seconds * 10**9 + ns, data)
    if opcode != _ROS1_CONNECTION:
        return
    inner = _ros1_fields(BytesIO(struct.pack("<I", len(data)) + data), len(data) + 4) or {}
    topic, kind, definition = (
        inner.get(name, fields.get(name, b"")).decode("utf-8", "replace")
        for name in ("topic", "type", "message_definition")
    )
    kind = kind if "/msg/" in kind else kind.replace("/", "/msg/")
    yield _connection(number, topic, kind, definition, "ros1msg")


def _scan_sqlite(path: Path) -> _Scan:
    with open_file(path) as file:
        head, size = file.read(32), file.seek(0, 2)
        page_bytes, pages = struct.unpack(">16xH10xI", head) if len(head) == 32 else (0, 0)
        page_bytes = 1 << 16 if page_bytes == 1 else page_bytes
        if not head.startswith(_SQLITE_MAGIC) or pages * page_bytes <= size:
            return 0
        # SQLite reads zeros for the rest of a page: a message with the last bytes of the file and
        # zeros behind them is not whole.
        file.seek(max(size - size % page_bytes + 4, size - 32))
        last = file.read()
    address = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as database:
            # Without it SQLite opens no file with fewer pages than its header says.
            database.execute("PRAGMA writable_schema=ON")
            for number, topic, kind in database.execute("SELECT id, name, type FROM topics"):
                yield _connection(int(number), str(topic), str(kind), "")
            rows = database.execute("SELECT topic_id, timestamp, data FROM messages ORDER BY id")
            for number, time_ns, data in rows:
                if not isinstance(time_ns, int) or not isinstance(data, bytes):
                    continue
                behind = data.partition(last)[2][:8] if last else b""
                if not behind or any(behind):
                    yield _Message(number, time_ns, data)
    except (sqlite3.Error, ValueError, OverflowError):  # the first page that is not there
        pass
    return pages * page_bytes - size


class _CutError(Exception):
    """The bytes end within a record."""


class _Cursor:
    """Takes bytes off a record, in their order."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise _CutError
        self.at += count
        return self.data[self.at - count : self.at]

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def text(self) -> str:
        return self.take(*self.numbers("<I")).decode("utf-8", "replace")
