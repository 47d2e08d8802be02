"""Bags that were never closed, or cut short: whatever lies before the cut.

Such a file lacks the index that readers begin with (mcap, ROS 1), or pages that its header counts
(sqlite3). It is read from its beginning, record by record, as far as the records are whole.
Sources: the MCAP specification, the documentation of the ROS 1 bag format 2.0, and that of
SQLite's file format.
"""

from __future__ import annotations

import sqlite3
import struct
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.compressed import MAX_BYTES, decompressed, library_missing
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


# Yields topics and messages in the order of the file; returns how many bytes belong to no whole
# record.
_Scan = Generator["Connection | _Message", None, int]


@dataclass(frozen=True)
class CutBag:
    """A reader of such a file. messages() may be called again, as that of rosbags' readers.

    message_count: of those that are whole. filled: the connections that have some.
    lost_bytes: of no whole message, at the end or in a damaged chunk (of one that gives nothing
        the compressed ones).
    """

    path: Path
    connections: list[Connection]
    message_count: int
    filled: frozenset[int]
    lost_bytes: int

    def messages(
        self, connections: Iterable[Connection]
    ) -> Iterator[tuple[Connection, int, bytes]]:
        wanted = {each.id: each for each in connections if each.id in self.filled}
        for item in _scan(self.path) if wanted else ():
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
    counts, scan = Counter[int](), _scan(path)
    while True:
        try:
            item = next(scan)
        except StopIteration as end:
            if found:
                connections = list(found.values())
                return CutBag(path, connections, counts.total(), frozenset(counts), end.value)
            if end.value:
                raise RecordingError(
                    f"{path} is cut short before its first whole message, so nothing can be read: "
                    "copy it again from where it was recorded"
                ) from None
            return None
        if isinstance(item, _Message):
            counts[item.connection] += 1
        else:
            found.setdefault(item.id, item)


def _scan(path: Path) -> _Scan:
    scan = {".mcap": _scan_mcap, ".db3": _scan_sqlite}.get(path.suffix, _scan_ros1)
    try:
        return (yield from scan(path))
    except ImportError as error:
        raise library_missing(path, error) from None


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
        lost = 0
        while True:
            at = file.tell()
            head = file.read(9)
            if len(head) < 9:
                return lost + size - at
            opcode, length = struct.unpack("<BQ", head)
            whole = length <= size - file.tell()
            if not whole and opcode != _CHUNK:
                return lost + size - at
            content = file.read(min(length, size - file.tell()))
            records, rest = [(opcode, content)], 0
            if opcode == _CHUNK:
                records, rest = _records_of_chunk(content)
            for kind, record in records:
                yield from _mcap_items(kind, record, schemas)
            lost += rest
            if not whole:
                return lost


def _records_of_chunk(content: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """The whole records of a chunk, which may be cut, and how many bytes are lost."""
    cursor = _Cursor(content)
    try:
        _, size, _ = cursor.numbers("<16sQI")  # times, size, and checksum
        form = cursor.text()
        cursor.take(8)
        compressed = content[cursor.at :]
        data, whole = decompressed(compressed, form, _most(size))
    except (_CutError, ValueError):
        return [], len(content)
    inner, records = _Cursor(data), []
    while True:
        at = inner.at
        try:
            opcode, length = inner.numbers("<BQ")
            records.append((opcode, inner.take(length)))
        except _CutError:
            return records, _lost(len(data) - at, len(compressed), whole or bool(records))


def _most(said: int) -> int:
    """How many bytes a chunk may have, which says that it has so many."""
    return max(MAX_BYTES, min(said, 1 << 34))


def _lost(rest: int, compressed: int, gave_some: bool) -> int:
    """Bytes lost of a chunk: what is left of it, or all where it gave nothing."""
    return rest if gave_some else max(rest, compressed)


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
        size, lost = path.stat().st_size, 0
        while True:
            at = file.tell()
            header = _ros1_fields(file, size)
            length = _number_of(file)
            if header is None or length is None:
                return lost + size - at
            data = file.read(min(length, size - file.tell()))
            whole, opcode = len(data) == length, header.get("op", b"")[:1]
            records, rest = [(header, data)] if whole else [], 0
            if opcode == _ROS1_CHUNK:
                records, rest = _records_of_ros1_chunk(header, data)
            for fields, content in records:
                yield from _ros1_items(fields, content)
            lost += rest
            if not whole:
                return lost if opcode == _ROS1_CHUNK else lost + size - at


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
    """As _records_of_chunk."""
    form = header.get("compression", b"").decode("ascii", "replace")
    size = int.from_bytes(header.get("size", b"")[:4], "little")
    try:
        content, whole = decompressed(data, form, _most(size))
    except ValueError:
        return [], len(data)
    file, records = BytesIO(content), []
    while True:
        at = file.tell()
        fields, length = _ros1_fields(file, len(content)), _number_of(file)
        if fields is None or length is None or length > len(content) - file.tell():
            return records, _lost(len(content) - at, len(data), whole or bool(records))
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
        file.seek(size - size % page_bytes)
        page = file.read()
    # A message with its end in this page is not whole. Pages are taken one after the other: those
    # behind it are small ones in a page that was begun before, which holds at most so many.
    held, most_held, lost = [], page_bytes // 16, pages * page_bytes - size
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
                message = _Message(number, time_ns, data)
                is_cut = _ends_behind(data, page, page_bytes)
                if is_cut or len(data) > page_bytes or len(held) > most_held:
                    yield from held
                    held = []
                if is_cut or held:
                    held.append(message)
                else:
                    yield message
    except (sqlite3.Error, ValueError, OverflowError):  # the first page that is not there
        pass
    yield from held[1:]
    return lost + sum(len(message.data.rstrip(b"\0")) for message in held[:1])


def _ends_behind(data: bytes, page: bytes, page_bytes: int) -> bool:
    """Whether a message may end behind what there is of the file's last page, where SQLite reads
    zeros."""
    if not page:
        return False
    missing = page_bytes - len(page)
    filled = data.rstrip(b"\0")
    # A small message lies in a page as a whole, and begins before the cut.
    at = page.rfind(filled)
    if at >= 0 and data.startswith(page[at:]) and 0 < len(data) - len(page) + at <= missing:
        return True
    # A large one goes on in pages of its own, behind the number of the next one.
    if len(data) <= page_bytes - 64:
        return False
    if len(page) < 4 and bytes(page_bytes - 4) in data:  # a number that is cut leads anywhere
        return True
    content = page[4:]
    there, zeros = content.rstrip(b"\0"), len(data) - len(filled)
    behind = zeros - (len(content) - len(there))
    return behind > 0 and (not there or (filled.endswith(there) and behind <= missing))


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
