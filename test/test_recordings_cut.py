"""Files cut short or never closed: what lies before the cut is read, and one line says so."""

from __future__ import annotations

import bz2
import json
import shutil
import sqlite3
import struct
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
from event_binning_grad.events.bag_messages import (
    EVENT_PACKET_DEFINITION,
    EVENT_PACKET_TYPE,
    to_message,
    typestore,
)
from event_binning_grad.events.bags import BagRecording
from event_binning_grad.events.convert import convert
from event_binning_grad.events.encoder import encode_evt2, encode_evt3, packetize
from event_binning_grad.events.npz import write_npz
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.types import EventPacket, Events, stamp_to_ns

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
