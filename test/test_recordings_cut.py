"""Files cut short or never closed: what lies before the cut is read, and one line says so."""

from __future__ import annotations

import bz2
import json
import shutil
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import pytest
from dataset_harness import some_events as mvsec_rows
from dataset_harness import write_dsec, write_mvsec
from recording_harness import assert_same, decoded
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from event_binning_grad import cli
from event_binning_grad.errors import RecordingError
from event_binning_grad.events import cut_bags
from event_binning_grad.events.bag_messages import (
    EVENT_PACKET_DEFINITION,
    EVENT_PACKET_TYPE,
    IMU_TYPE,
    imu_message,
    to_header,
    to_message,
    typestore,
)
from event_binning_grad.events.bags import BagRecording
from event_binning_grad.events.compressed import decompressed
from event_binning_grad.events.convert import convert
from event_binning_grad.events.cut_bags import open_cut
from event_binning_grad.events.encoder import encode_evt2, encode_evt3, packetize
from event_binning_grad.events.npz import write_npz
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.types import EventPacket, Events, Header, Stamp, stamp_to_ns

SIZE = (240, 180)
MCAP_MAGIC = b"\x89MCAP0\r\n"


def some_events(count: int = 20_000) -> Events:
    rng = np.random.default_rng(count)
    t = 10**9 + np.sort(rng.integers(0, 10**6, count)) * 1000
    x, y = rng.integers(0, SIZE[0], count), rng.integers(0, SIZE[1], count)
    p = rng.integers(0, 2, count)
    return Events(
        t.astype(np.int64), x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8), *SIZE
    )


def bag(folder: Path, suffix: str) -> Path:
    """One file of a bag of these events; suffix: "bag", "db3" or "mcap"."""
    packets = packetize(some_events())
    if suffix == "bag":
        store: Any = get_typestore(Stores.ROS1_NOETIC)
        store.register(get_types_from_msg(EVENT_PACKET_DEFINITION, EVENT_PACKET_TYPE))
        with Ros1Writer(folder / "whole.bag") as writer:
            topic = writer.add_connection("/events", EVENT_PACKET_TYPE, typestore=store)
            for packet in packets:
                data = typestore().serialize_cdr(to_message(packet), EVENT_PACKET_TYPE)
                data = typestore().cdr_to_ros1(data, EVENT_PACKET_TYPE)
                writer.write(topic, stamp_to_ns(packet.header.stamp), data)
        return folder / "whole.bag"
    plugin = StoragePlugin.SQLITE3 if suffix == "db3" else StoragePlugin.MCAP
    with Writer(folder / "whole", version=8, storage_plugin=plugin) as writer:
        topic = writer.add_connection("/events", EVENT_PACKET_TYPE, typestore=typestore())
        for packet in packets:
            data = typestore().serialize_cdr(to_message(packet), EVENT_PACKET_TYPE)
            writer.write(topic, stamp_to_ns(packet.header.stamp), data)
    return next((folder / "whole").glob(f"*.{suffix}"))


def warnings_after(recording: Any) -> tuple[Events, list[str]]:
    events = decoded(recording.packets())
    return events, recording.warnings()


def assert_one_warning(warnings: list[str], path: Path) -> None:
    (line,) = warnings
    assert line.startswith(str(path))
    assert "cut short" in line
    assert "\n" not in line


def assert_some_of(cut: Any, whole: Path) -> None:
    """Each packet is as it was; in sqlite3 a lost page may hold messages of the middle."""
    expected = {packet.seq: packet for packet in BagRecording(whole).packets()}
    found = list(cut.packets())
    assert len(found) > 0
    for packet in found:
        assert bytes(packet.events) == bytes(expected[packet.seq].events)
    if whole.suffix != ".db3":
        assert [packet.seq for packet in found] == list(range(len(found)))


@pytest.mark.parametrize("form", ["bag", "db3", "mcap"])
@pytest.mark.parametrize("share", [0.3, 0.75, 0.999])
def test_a_cut_bag_is_read_up_to_the_cut(tmp_path: Path, form: str, share: float) -> None:
    whole = bag(tmp_path, form)
    events, warnings = warnings_after(open_recording(whole))
    assert_same(events, some_events())
    assert warnings == []
    cut = tmp_path / f"cut{whole.suffix}"
    data = whole.read_bytes()
    cut.write_bytes(data[: int(share * len(data))])
    recording = open_recording(cut)
    part, warnings = warnings_after(recording)
    assert_one_warning(warnings, cut)
    assert_some_of(recording, whole)
    assert (share - 0.15) * len(events) <= len(part) <= len(events)
    assert f" {len(list(recording.packets())):,} messages before the cut" in warnings[0]
    # And what was rescued makes a whole bag.
    done = convert(recording, tmp_path / "rescued")
    assert list(done.warnings) == warnings
    again, warnings = warnings_after(open_recording(tmp_path / "rescued"))
    assert_same(again, part)
    assert warnings == []


@pytest.mark.parametrize("form", ["bag", "db3", "mcap"])
def test_a_bag_cut_anywhere_gives_its_first_events_or_one_line(tmp_path: Path, form: str) -> None:
    whole = bag(tmp_path, form)
    data = whole.read_bytes()
    cut, counts, refused = tmp_path / f"cut{whole.suffix}", [], []
    for length in range(1, len(data), len(data) // 30):
        cut.write_bytes(data[:length])
        try:
            part, warnings = warnings_after(open_recording(cut))
        except (RecordingError, ValueError) as error:  # not even one packet
            refused.append(str(error))
            continue
        assert_one_warning(warnings, cut)
        assert_some_of(open_recording(cut), whole)
        counts.append(len(part))
    assert not any("\n" in line for line in refused)
    assert len(set(counts)) > 20
    assert max(counts) > 0.9 * len(some_events())


def test_damage_in_a_cut_bag_is_survived(tmp_path: Path) -> None:
    rng, refused = np.random.default_rng(5), []
    for form in ("bag", "db3", "mcap"):
        folder = tmp_path / form
        folder.mkdir()
        whole = bag(folder, form)
        data = whole.read_bytes()
        damaged = tmp_path / f"damaged{whole.suffix}"
        for _ in range(40):
            content = bytearray(data[: rng.integers(100, len(data))])
            for _ in range(rng.integers(1, 20)):
                content[rng.integers(0, min(len(content), 2000))] = rng.integers(0, 256)
            damaged.write_bytes(content)
            try:
                recording = open_recording(damaged)
                assert all(isinstance(packet, EventPacket) for packet in recording.packets())
            except RecordingError as error:
                refused.append(str(error))
    assert not any("\n" in line for line in refused)


def test_a_bag_that_ros1_was_still_writing(tmp_path: Path) -> None:
    """Its last chunk says that it is empty, and its header that there is no index."""
    whole = bag(tmp_path, "bag")
    data = bytearray(whole.read_bytes())
    at = data.index(b"op=\x05")
    size = data.index(b"size=", at) + len(b"size=")
    chunk = data.index(b"op=\x07") - 8  # within the chunk, behind the lengths of the record
    length_at = data.index(struct.pack("<I", struct.unpack_from("<I", data, size)[0]), size + 4)
    data[size : size + 4] = data[length_at : length_at + 4] = bytes(4)
    index = data.index(b"index_pos=") + len(b"index_pos=")
    end = struct.unpack_from("<Q", data, index)[0]
    data[index : index + 8] = bytes(8)
    assert chunk > length_at
    active = tmp_path / "robot.bag.active"
    active.write_bytes(data[: end - 1000])
    part, warnings = warnings_after(open_recording(active))
    assert_one_warning(warnings, active)
    assert_same(part, some_events()[: len(part)])
    assert len(part) > 15_000


def mcap_records(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = len(MCAP_MAGIC)
    while at < len(data) - len(MCAP_MAGIC):
        opcode, size = struct.unpack_from("<BQ", data, at)
        yield opcode, data[at + 9 : at + 9 + size]
        at += 9 + size


def test_mcap_with_lz4_inside(tmp_path: Path) -> None:
    """As the mcap tools write it with --compression lz4; whole, and cut within a chunk."""
    made = MCAP_MAGIC
    records = list(mcap_records(bag(tmp_path, "mcap").read_bytes()))
    for opcode, content in records:
        if opcode == 6:
            assert content[28:32] == bytes(4)  # not compressed
            inner = content[40:]
            compressed = lz4.frame.compress(inner, block_size=lz4.frame.BLOCKSIZE_MAX64KB)
            size = struct.pack("<Q", len(compressed))
            content = content[:28] + struct.pack("<I", 3) + b"lz4" + size + compressed
        if opcode in (1, 6):
            made += struct.pack("<BQ", opcode, len(content)) + content
    path = tmp_path / "lz4.mcap"
    path.write_bytes(made + struct.pack("<BQQQI", 2, 20, 0, 0, 0) + MCAP_MAGIC)
    events, warnings = warnings_after(open_recording(path))
    assert_same(events, some_events())
    assert warnings == []
    path.write_bytes(made[: len(made) * 2 // 3])
    part, warnings = warnings_after(open_recording(path))
    assert_one_warning(warnings, path)
    assert_same(part, events[: len(part)])
    assert len(part) > 8_000


def chunked(folder: Path, spoil: Callable[[bytes], bytes]) -> tuple[Path, int, int]:
    """An mcap without an end, of three compressed chunks with the whole bag's topic and a third of
    its messages, four times, each; of the second the compressed bytes are spoilt. And how many
    bytes these are, and the count of messages."""
    (chunk,) = (c for opcode, c in mcap_records(bag(folder, "mcap").read_bytes()) if opcode == 6)
    inner = list(mcap_records(MCAP_MAGIC + chunk[40:] + MCAP_MAGIC))
    topic = [record for record in inner if record[0] != 5]
    messages = [record for record in inner if record[0] == 5]
    made, third, spoilt = MCAP_MAGIC, len(messages) // 3, b""
    for k in range(3):
        records = topic + 4 * messages[k * third : (k + 1) * third]
        plain = b"".join(struct.pack("<BQ", op, len(data)) + data for op, data in records)
        packed = lz4.frame.compress(plain)
        if k == 1:
            packed = spoilt = spoil(packed)
        head = (
            struct.pack("<QQQII", 0, 0, len(plain), 0, 3) + b"lz4" + struct.pack("<Q", len(packed))
        )
        made += struct.pack("<BQ", 6, len(head + packed)) + head + packed
    path = folder / "chunks.mcap"
    path.write_bytes(made)
    return path, len(spoilt), 12 * third


def test_a_chunk_that_gives_nothing_is_counted(tmp_path: Path) -> None:
    path, size, count = chunked(tmp_path, lambda data: b"\0" * len(data))
    cut = open_cut(path)
    assert cut is not None
    assert cut.message_count == count * 2 // 3
    assert cut.lost_bytes > size


def test_a_chunk_that_ends_early_is_counted(tmp_path: Path) -> None:
    path, _, count = chunked(tmp_path, lambda data: data[: len(data) * 2 // 3])
    cut = open_cut(path)
    assert cut is not None
    assert count * 2 // 3 < cut.message_count < count
    assert cut.lost_bytes > 0


def test_without_the_chunks_library_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, _ = chunked(tmp_path, lambda data: data)
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    with pytest.raises(RecordingError, match=r"chunks\.mcap is compressed.*pip install lz4"):
        open_recording(path)


@pytest.mark.parametrize("form", ["lz4", "bz2"])
def test_more_than_is_allowed_is_not_cut_silently(form: str) -> None:
    packed = (lz4.frame if form == "lz4" else bz2).compress(bytes(10_000))
    assert decompressed(packed, form, 10_000) == (bytes(10_000), True)
    with pytest.raises(ValueError, match=r"more than 9,999 bytes"):
        decompressed(packed, form, 9_999)


@pytest.mark.parametrize(("form", "share"), [("lz4", 0.9), ("bz2", 1.0)])
def test_compressed_chunks_of_ros1(tmp_path: Path, form: str, share: float) -> None:
    """Of one that is cut, too, as far as whole blocks of LZ4 reach; those of bzip2 are large."""
    whole = bag(tmp_path, "bag")
    data = whole.read_bytes()
    at = data.index(b"op=\x07") - 8
    length = struct.unpack_from("<I", data, at - 4)[0]
    # The record of the chunk, made anew: its header, and the compressed bytes.
    fields = [b"op=\x05", b"compression=" + form.encode(), b"size=" + struct.pack("<I", length)]
    header = b"".join(struct.pack("<I", len(field)) + field for field in fields)
    pack = lz4.frame.compress if form == "lz4" else bz2.compress
    content = pack(data[at : at + length])
    path = tmp_path / "packed.bag"
    record = struct.pack("<I", len(header)) + header + struct.pack("<I", len(content)) + content
    path.write_bytes(data[:13] + ros1_header() + record[: round(share * len(record))])
    part, warnings = warnings_after(open_recording(path))
    assert_one_warning(warnings, path)
    assert_same(part, some_events()[: len(part)])
    assert len(part) > 10_000


def ros1_header() -> bytes:
    fields = [b"op=\x03", b"index_pos=" + bytes(8), b"conn_count=" + bytes(4)]
    fields.append(b"chunk_count=" + bytes(4))
    header = b"".join(struct.pack("<I", len(field)) + field for field in fields)
    return struct.pack("<I", len(header)) + header + struct.pack("<I", 20) + b" " * 20


def test_the_last_file_of_a_split_bag_may_be_cut(tmp_path: Path) -> None:
    whole = bag(tmp_path, "mcap")
    folder = tmp_path / "split"
    folder.mkdir()
    shutil.copy(whole, folder / "split_0.mcap")
    data = whole.read_bytes()
    (folder / "split_1.mcap").write_bytes(data[: len(data) // 2])
    recording = open_recording(folder)
    count = len(list(recording.packets()))
    packets = len(list(BagRecording(whole).packets()))
    assert packets < count < 2 * packets
    assert_one_warning(recording.warnings(), folder / "split_1.mcap")


@pytest.mark.parametrize("form", ["db3", "mcap"])
@pytest.mark.parametrize("length", [0, 8, 40, 400])
def test_a_split_bag_whose_last_file_was_only_begun(tmp_path: Path, form: str, length: int) -> None:
    whole = bag(tmp_path, form)
    folder = tmp_path / "split"
    folder.mkdir()
    shutil.copy(whole, folder / f"split_0.{form}")
    (folder / f"split_1.{form}").write_bytes(whole.read_bytes()[:length])
    events, warnings = warnings_after(open_recording(folder))
    assert_same(events, some_events())
    (line,) = warnings
    assert line.startswith(str(folder / f"split_1.{form}"))
    assert line.endswith("the bag's other files are read")
    assert "\n" not in line
    (folder / f"split_0.{form}").write_bytes(b"")
    with pytest.raises(RecordingError, match=r"split_0.* cannot be read"):
        open_recording(folder)


def with_imu(folder: Path, packet_bytes: int) -> tuple[Path, dict[int, bytes]]:
    """A .db3 of packets and IMU samples, and its messages by time; some packets end in zeros."""
    rng, written = np.random.default_rng(packet_bytes), {}
    with Writer(folder / "imu", version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        topics = [
            writer.add_connection(name, kind, typestore=typestore())
            for name, kind in (("/events", EVENT_PACKET_TYPE), ("/imu", IMU_TYPE))
        ]
        for k in range(300):
            header = Header(Stamp.from_ns(10**9 + k * 10**6), "camera")
            message, is_imu = imu_message(to_header(header), np.arange(6.0)), k % 3 > 0
            if not is_imu:
                content = rng.integers(1, 256, rng.integers(8, packet_bytes), np.uint8)
                content[-int(rng.integers(1, 8)) :] *= k % 2
                message = to_message(EventPacket(header, 180, 240, k, 0, "evt3", False, content))
            kind = topics[is_imu].msgtype
            written[10**9 + k] = bytes(typestore().serialize_cdr(message, kind))
            writer.write(topics[is_imu], 10**9 + k, written[10**9 + k])
    return next((folder / "imu").glob("*.db3")), written


@pytest.mark.parametrize("packet_bytes", [500, 5_000, 20_000])
def test_of_a_cut_database_at_most_one_readable_message_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packet_bytes: int
) -> None:
    """Messages of an IMU are full of zeros, as what SQLite reads behind the cut is. None that is
    not whole is read; a whole one is dropped only if its end might be such zeros."""
    path, written = with_imu(tmp_path, packet_bytes)
    data, cut, dropped = path.read_bytes(), tmp_path / "cut.db3", 0
    rng = np.random.default_rng(1)
    lengths = rng.integers(len(data) // 3, len(data), 80).tolist()
    lengths += [
        4096 * page + k for page in range(len(data) // 8192, len(data) // 6000) for k in (0, 2, 7)
    ]
    for length in lengths:
        cut.write_bytes(data[:length])
        found = {message.bag_time_ns: bytes(message.data) for message in _raw(cut)}
        assert found.items() <= written.items()
        with monkeypatch.context() as patch:
            patch.setattr(cut_bags, "_ends_behind", lambda *_: False)
            readable = {message.bag_time_ns: bytes(message.data) for message in _raw(cut)}
        assert list(found) == [time_ns for time_ns in readable if time_ns in found]
        assert len(readable) - len(found) in (0, 1)
        dropped += len(readable) - len(found)
        for time_ns in readable.keys() - found.keys():
            data_read, whole = readable[time_ns], written[time_ns]
            assert data_read != whole or whole.endswith(b"\0")
    assert dropped > 10


def _raw(path: Path) -> list[Any]:
    return list(BagRecording(path).raw_messages())


def test_what_a_cut_database_drops_is_counted(tmp_path: Path) -> None:
    path, written = with_imu(tmp_path, 500)
    data = path.read_bytes()
    last = max(written)
    middle = data.rindex(written[last]) + len(written[last]) // 2
    (tmp_path / "cut.db3").write_bytes(data[:middle])
    cut = open_cut(tmp_path / "cut.db3")
    assert cut is not None
    assert len(written) - cut.message_count < 20
    assert cut.lost_bytes > len(data) - middle
    assert f"{cut.lost_bytes:,} bytes of no whole message" in cut.warning()


def test_topics_of_a_cut_bag_without_messages_cost_no_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packets = packetize(some_events())
    with Writer(tmp_path / "a", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        topic = writer.add_connection("/events", EVENT_PACKET_TYPE, typestore=typestore())
        writer.add_connection("/imu", IMU_TYPE, typestore=typestore())
        for packet in packets:
            data = typestore().serialize_cdr(to_message(packet), EVENT_PACKET_TYPE)
            writer.write(topic, stamp_to_ns(packet.header.stamp), data)
    path = next((tmp_path / "a").glob("*.mcap"))
    path.write_bytes(path.read_bytes()[:-5000])
    recording = BagRecording(path)
    assert "/imu" in recording.topics
    scans, scan = [], cut_bags._scan
    monkeypatch.setattr(cut_bags, "_scan", lambda path: scans.append(path) or scan(path))
    assert list(recording.imu()) == []
    assert scans == []
    assert len(list(recording.packets())) > 0
    assert scans == [path]


def test_a_database_with_a_journal_beside_it(tmp_path: Path) -> None:
    whole = bag(tmp_path, "db3")
    database = sqlite3.connect(whole)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("DELETE FROM messages WHERE id > 100")
    database.commit()  # and the recorder died here
    copy = tmp_path / "copy.db3"
    for suffix in ("", "-wal"):
        shutil.copy(f"{whole}{suffix}", f"{copy}{suffix}")
    database.close()
    recording = open_recording(copy)
    list(recording.packets())
    (line,) = recording.warnings()
    assert line.startswith(f"{copy}-wal holds messages")
    assert "wal_checkpoint" in line


def raw(events: Events) -> bytes:
    return b"% evt 3.0\n% geometry 240x180\n% end\n" + encode_evt3(events)


def raw2(events: Events) -> bytes:
    return b"% evt 2.0\n% geometry 240x180\n% end\n" + encode_evt2(events)[1].tobytes()


def dat(events: Events) -> bytes:
    word = events.x.astype(np.uint32) | events.y.astype(np.uint32) << 14
    word |= events.p.astype(np.uint32) << 28
    head = b"% Version 2\n% Width 240\n% Height 180\n" + bytes([0x0C, 8])
    rows = np.column_stack([(events.t // 1000).astype(np.uint32), word])
    return head + rows.astype("<u4").tobytes()


def txyp(events: Events) -> bytes:
    rows = zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True)
    return "".join(f"{t / 1e9:.9f} {x} {y} {p}\n" for t, x, y, p in rows).encode()


def csv(events: Events) -> bytes:
    rows = zip(*(getattr(events, name).tolist() for name in "xypt"), strict=True)
    lines = (f"{x},{y},{p},{t // 1000}\n" for x, y, p, t in rows)
    return b"%geometry:240,180\n" + "".join(lines).encode()


@pytest.mark.parametrize(
    ("name", "write", "cut_bytes"),
    [
        ("a.raw", raw, 1), ("b.raw", raw2, 3), ("a.dat", dat, 5), ("a.txt", txyp, 3),
        ("a.csv", csv, 2), ("b.csv", csv, 8),
    ],
)  # fmt: skip
def test_a_file_cut_within_an_event(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    write: Callable[[Events], bytes],
    cut_bytes: int,
) -> None:
    path, events = tmp_path / name, some_events(5000)
    path.write_bytes(write(events))
    whole, warnings = warnings_after(open_recording(path))
    assert_same(whole, events)
    assert warnings == []
    path.write_bytes(write(events)[:-cut_bytes])
    part, warnings = warnings_after(open_recording(path))
    assert_same(part, events[:4999])
    assert_one_warning(warnings, path)
    # The same at the command line: for people, and for programs.
    assert cli.main(["info", str(path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"event-binning-grad info: warning: {warnings[0]}"
    assert cli.main(["info", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert (found["events"], found["warnings"]) == (4999, warnings)
    assert cli.main(["convert", str(path), str(tmp_path / "bag")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"event-binning-grad convert: warning: {warnings[0]}"


def test_a_last_line_without_its_end_is_whole(tmp_path: Path) -> None:
    for name, write in (("a.txt", txyp), ("a.csv", csv)):
        (tmp_path / name).write_bytes(write(some_events(100))[:-1])
        events, warnings = warnings_after(open_recording(tmp_path / name))
        assert_same(events, some_events(100))
        assert warnings == []


def npz(folder: Path) -> Path:
    write_npz(folder / "a.npz", [some_events()])
    return folder / "a.npz"


def mvsec(folder: Path) -> Path:
    return write_mvsec(folder / "mvsec", mvsec_rows(2000))


def dsec(folder: Path) -> Path:
    return write_dsec(folder / "dsec") / "events" / "left" / "events.h5"


@pytest.mark.parametrize("write", [npz, mvsec, dsec])
@pytest.mark.parametrize("share", [0.02, 0.6, 0.999])
def test_what_cannot_be_read_without_its_end_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[[Path], Path], share: float
) -> None:
    path = write(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert cli.main(["info", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert "cut short" in line or "truncated" in line
    assert "again" in line
