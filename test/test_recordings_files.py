"""Recordings that are one file: Prophesee's .raw and .dat, .npz; and how formats are told apart."""

from __future__ import annotations

import resource
import shutil
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_harness import assert_same
from recording_harness import decoded as decoded_parts

from event_binning_grad.errors import PacketError, RecordingError
from event_binning_grad.events import npz, prophesee_dat, prophesee_raw
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.encoder import encode_evt2, encode_evt3, encode_evt21
from event_binning_grad.events.new_file import appearing
from event_binning_grad.events.npz import write_npz
from event_binning_grad.events.recordings import (
    DatRecording,
    NpzRecording,
    RawRecording,
    open_recording,
)
from event_binning_grad.events.types import EventPacket, Events, stamp_to_ns

ENCODE: dict[str, Any] = {
    "evt2": lambda events: encode_evt2(events)[1].tobytes(),
    "evt21": lambda events: encode_evt21(events)[1].tobytes(),
    "evt3": encode_evt3,
}
NAMES = {"evt2": "2.0", "evt21": "2.1", "evt3": "3.0"}
WORD = {"evt2": 4, "evt21": 8, "evt3": 2}
DATE_NS = 1_600_074_205 * 10**9


def some_events(count: int = 3000, span_ns: int = 40_000_000, start_ns: int = 5_000_000) -> Events:
    rng = np.random.default_rng(count)
    t = start_ns + np.sort(rng.integers(0, span_ns // 1000, count)) * 1000
    x, y = rng.integers(0, 640, count), rng.integers(0, 480, count)
    p = rng.integers(0, 2, count)
    return Events(
        t.astype(np.int64), x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8), 640, 480
    )


def decoded(recording: Any) -> Events:
    return decoded_parts(recording.packets())


def write_raw(path: Path, body: bytes, *lines: str) -> Path:
    path.write_bytes("".join(f"% {line}\n" for line in lines).encode() + body)
    return path


@pytest.mark.parametrize(
    ("name", "kind", "encoding", "size", "count"),
    [
        ("aedat4/davis_320x240.aedat4", "AEDAT4", "dv", (320, 240), 111_954),
        ("bags/test_events_1", "rosbag2 sqlite3", "evt3", (640, 480), 125_183 + 218_291),
        ("bags/test_events_1.bag", "ROS 1 bag", "evt3", (640, 480), 125_183 + 218_291),
        ("bags/test_events_2", "rosbag2 mcap", "libcaer_cmp", (346, 260), 571_266),
        ("bags/test_data_libcaer_rollover", "rosbag2 sqlite3", "libcaer", (640, 480), 334_331),
        ("bags/test_data_mono_cd", "rosbag2 sqlite3", "mono", (640, 480), 100),
        ("ecd_boxes_rotation_window", "event camera dataset text", "", (240, 180), 30_000),
        ("ecd_poster_6dof_window", "event camera dataset text", "", (240, 180), 38_139),
        ("ecd_shapes_rotation", "event camera dataset text", "", (240, 180), 120_000),
        ("ecd_slider_depth", "event camera dataset text", "", (240, 180), 50_000),
        ("mvsec_indoor_flying1_window", "event camera dataset text", "", (346, 260), 37_187),
        (
            "prophesee_raw/evt2_640x480_gen3_50ms.raw",
            "Prophesee raw EVT 2.0", "evt2", (640, 480), 539_481,
        ),
        (
            "prophesee_raw/evt3_1280x720_gen41_8p8ms.raw",
            "Prophesee raw EVT 3.0", "evt3", (1280, 720), 219_596,
        ),
    ],
)  # fmt: skip
def test_golden_counts(
    data_dir: Path, name: str, kind: str, encoding: str, size: tuple[int, int], count: int
):
    recording = open_recording(data_dir / name)
    assert (recording.kind, recording.encoding) == (kind, encoding)
    assert (recording.width, recording.height) == size
    assert len(decoded(recording)) == count
    assert not any(recording.unusable().values())


@pytest.mark.parametrize("encoding", sorted(ENCODE))
def test_a_raw_file_is_read_as_it_was_written(tmp_path: Path, encoding: str):
    events = some_events()
    body = ENCODE[encoding](events)
    path = write_raw(
        tmp_path / "a.raw", body, "Date 2020-09-14 09:03:25", f"evt {NAMES[encoding]}",
        "plugin_name hal_plugin_gen31_fx3", "end",
    )  # fmt: skip
    recording = open_recording(path)
    assert isinstance(recording, RawRecording)
    assert recording.kind == f"Prophesee raw EVT {NAMES[encoding]}"
    assert_same(decoded(recording), events)
    packets = list(recording.packets())
    assert b"".join(bytes(packet.events) for packet in packets) == body
    assert [packet.seq for packet in packets] == list(range(len(packets)))
    decoder = PacketDecoder()
    for packet in packets:
        part = decoder.decode(packet).events
        assert int(part.t[-1] - part.t[0]) <= 4_160_000
        assert stamp_to_ns(packet.header.stamp) == DATE_NS + int(part.t[0])
    assert len(packets) >= 9
    with pytest.raises(RecordingError, match="without ROS messages"):
        recording.raw_messages()
    assert (recording.calibration(), recording.ground_truth(), recording.flow_truth()) == (
        None,
    ) * 3


@pytest.mark.parametrize("encoding", sorted(ENCODE))
def test_blocks_of_any_size_give_the_same_packets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
):
    path = write_raw(
        tmp_path / "a.raw", ENCODE[encoding](some_events(500)), f"evt {NAMES[encoding]}",
        "geometry 640x480",
    )  # fmt: skip

    def pieces() -> list[tuple[int, bytes]]:
        packets = list(RawRecording(path).packets())
        return [(stamp_to_ns(packet.header.stamp), bytes(packet.events)) for packet in packets]

    whole = pieces()
    for size in (1, 7, 64, 1001):
        monkeypatch.setattr(prophesee_raw, "BLOCK_BYTES", size)
        assert pieces() == whole


def slow_pieces(words: list[int], encoding: str) -> list[tuple[int, int]]:
    """Words of each packet, and its stamp in us, word by word in plain Python."""
    bits, period = (12, 1 << 12) if encoding == "evt3" else (6, 1 << 28)
    high: int | None = None
    low = last = 0
    found: list[tuple[int, int]] = []
    began: int | None = None
    first: int | None = None
    count = 0

    def end() -> None:
        nonlocal last
        if first is not None:
            last = first
        elif high is not None:
            last = high << bits | (low if encoding == "evt3" else 0)
        found.append((count, last))

    for word in words:
        if encoding == "evt3":
            kind, value = word >> 12, word & 0xFFF
        else:
            kind, value = word >> 28, word & 0xFFFFFFF
        if kind == 8:
            new = value
            if high is not None:
                options = [value + k * period for k in range(high // period + 2)]
                before = high
                new = min(options, key=lambda option: (abs(option - before), option))
            far = began is not None and (
                new != began if encoding == "evt3" else abs(new - began) >= 64
            )
            if far:
                end()
                count, began, first = 0, None, None
            if began is None:
                began = new
            if high is None or new != high:
                low = 0 if high is None or new > high else 0xFFF
            high = new
        elif encoding == "evt3" and kind == 6:
            low = value
        elif first is None and high is not None:
            if encoding == "evt2" and kind <= 1:
                first = high << 6 | (word >> 22 & 0x3F)
            elif encoding == "evt3" and (kind == 2 or (kind in (4, 5) and value)):
                first = high << 12 | low
        count += 1
    if count:
        end()
    return found


def hostile_words(encoding: str) -> st.SearchStrategy[list[int]]:
    top = 12 if encoding == "evt3" else 28
    near = st.integers(0, 300)
    value = st.one_of(near, st.integers(0, (1 << top) - 1), near.map(lambda v: (1 << top) - 1 - v))
    kind = st.sampled_from([8, 8, 6, 2, 0, 1, 3, 4, 5, 0xA, 0xE, 0xF, 9])
    return st.lists(st.builds(lambda k, v: k << top | v, kind, value), min_size=1, max_size=80)


@pytest.mark.parametrize("encoding", ["evt2", "evt3"])
@pytest.mark.parametrize("big", [False, True])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_packets_are_those_of_a_slow_reference(
    tmp_path_factory: pytest.TempPathFactory, encoding: str, big: bool, data: st.DataObject
):
    words = data.draw(hostile_words(encoding))
    dtype = f"{'>' if big else '<'}u{WORD[encoding]}"
    rest = data.draw(st.binary(max_size=WORD[encoding] - 1))
    body = np.array(words, dtype).tobytes() + rest
    path = write_raw(
        tmp_path_factory.mktemp("words") / "a.raw", body, f"evt {NAMES[encoding]}",
        "geometry 640x480", f"endianness {'big' if big else 'little'}", "end",
    )  # fmt: skip
    recording = RawRecording(path)
    packets = list(recording.packets())
    found = [
        (len(p.events) // WORD[encoding], stamp_to_ns(p.header.stamp) // 1000) for p in packets
    ]
    assert found == slow_pieces(words, encoding)
    assert b"".join(bytes(packet.events) for packet in packets) + rest == body
    assert recording.unusable() == {"cut_bytes": len(rest)}
    decoder = PacketDecoder()
    for packet in packets:
        assert packet.is_bigendian == big
        decoder.decode(packet)


def test_evt21_with_its_upper_half_first(tmp_path: Path):
    events = some_events()
    halves = np.frombuffer(ENCODE["evt21"](events), "<u4").reshape(-1, 2)
    body = np.ascontiguousarray(halves[:, ::-1]).tobytes()
    header = "format EVT21;height=480;width=640;endianness=legacy"
    recording = open_recording(write_raw(tmp_path / "a.raw", body, header, "end"))
    assert_same(decoded(recording), events)
    assert len(list(recording.packets())) >= 9


def test_a_piece_without_any_time_is_cut_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prophesee_raw, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(prophesee_raw, "MAX_PACKET_BYTES", 4000)
    body = np.full(10_000, 0x2005, "<u2").tobytes()
    path = write_raw(tmp_path / "a.raw", body, "evt 3.0", "geometry 640x480")
    sizes = [len(packet.events) for packet in RawRecording(path).packets()]
    assert sizes == [4000] * 5


@pytest.mark.parametrize(
    ("lines", "encoding", "size"),
    [
        (["evt 3.0", "geometry 1280x720"], "evt3", (1280, 720)),
        (["format EVT3;height=320;width=320"], "evt3", (320, 320)),
        (["format EVT2", "geometry 346x260"], "evt2", (346, 260)),
        (["evt 2.1", "width 640", "height 480"], "evt21", (640, 480)),
        (["evt 2.0", "plugin_name hal_plugin_gen3_fx3"], "evt2", (640, 480)),
        (["evt 3.0", "plugin_name hal_plugin_imx636_evk4"], "evt3", (1280, 720)),
        (["evt 3.0", "sensor_name GenX320"], "evt3", (320, 320)),
        (["evt 3.0", "generation 4.2"], "evt3", (1280, 720)),
        (["evt 2.0", "system_ID 40"], "evt2", (640, 480)),
        (["evt 2.0", "system_ID 48", "geometry 100x100"], "evt2", (100, 100)),
        (["evt 2.0", "geometry 0x100", "system_ID 48"], "evt2", (1280, 720)),
    ],
)
def test_what_headers_say(tmp_path: Path, lines: list[str], encoding: str, size: tuple[int, int]):
    body = ENCODE[encoding](some_events(50))
    for end in ([], ["end"]):
        recording = open_recording(write_raw(tmp_path / "a.raw", body, *lines, *end))
        assert recording.encoding == encoding
        assert (recording.width, recording.height) == size
        assert b"".join(bytes(p.events) for p in RawRecording(tmp_path / "a.raw").packets()) == body


@pytest.mark.parametrize("encoding", sorted(ENCODE))
@pytest.mark.parametrize("lines", [[], ["system_ID 40", "serial_number 7"]])
def test_a_raw_file_that_does_not_say_its_format(tmp_path: Path, encoding: str, lines: list[str]):
    events = some_events()
    recording = open_recording(write_raw(tmp_path / "a.raw", ENCODE[encoding](events), *lines))
    assert recording.encoding == encoding
    assert_same(decoded(recording), events)  # without geometry the size is learnt


def test_the_size_of_a_raw_file_is_learnt(tmp_path: Path):
    events = some_events()
    small = Events(events.t, events.x // 4, events.y // 4, events.p, 240, 180)
    recording = open_recording(write_raw(tmp_path / "a.raw", encode_evt3(small), "evt 3.0"))
    assert (recording.width, recording.height) == (240, 180)
    large = Events(events.t, events.x * 3, events.y, events.p, 2048, 480)
    recording = open_recording(write_raw(tmp_path / "b.raw", encode_evt3(large), "evt 3.0"))
    with pytest.raises(RecordingError, match="outside every known sensor: write a line '% geom"):
        _ = recording.width


def test_raw_files_that_are_none(tmp_path: Path):
    rng = np.random.default_rng(0)
    cases = {
        b"": "is empty",
        b"% evt 3.0\n% end\n": "holds no events",
        rng.bytes(100_000): "look like none that is known",
        b"\0" * 10_000: "look like none that is known",
        b"% evt 4.0\n% end\nabcd": "in format '4.0', expected EVT 2.0, 2.1 or 3.0",
        b"% format HISTO3D;width=3\n% end\nabcd": "in format 'HISTO3D'",
    }
    for content, message in cases.items():
        (tmp_path / "a.raw").write_bytes(content)
        with pytest.raises(RecordingError, match=message) as caught:
            open_recording(tmp_path / "a.raw")
        assert "\n" not in str(caught.value)


def dat_bytes(events: Events, version: int = 2, size: bool = True) -> bytes:
    lines = ["Data file containing CD events", f"Version {version}", "Date 2020-09-14 14:18:29"]
    lines += [f"Width {events.width}", f"Height {events.height}"] if size else []
    bits = {1: (9, 17), 2: (14, 28)}[version]
    t = (events.t // 1000).astype(np.uint64).astype(np.uint32)
    word = events.x.astype(np.uint32) | events.y.astype(np.uint32) << bits[0]
    word |= events.p.astype(np.uint32) << bits[1]
    head = "".join(f"% {line}\n" for line in lines).encode()
    return head + bytes([0x0C, 8]) + np.column_stack([t, word]).astype("<u4").tobytes()


@pytest.mark.parametrize("version", [1, 2])
def test_dat_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int):
    events = some_events()
    if version == 1:
        events = Events(events.t, events.x % 304, events.y % 240, events.p, 304, 240)
    path = tmp_path / "a.dat"
    path.write_bytes(dat_bytes(events, version) + b"\1\2\3")
    monkeypatch.setattr(prophesee_dat, "BLOCK_EVENTS", 1000)
    recording = open_recording(path)
    assert isinstance(recording, DatRecording)
    assert_same(decoded(recording), events)
    assert recording.unusable() == {
        "out_of_bounds_events": 0, "time_steps_back": 0, "cut_bytes": 3,
    }  # fmt: skip
    path.write_bytes(dat_bytes(events, version, size=False))
    assert_same(decoded(open_recording(path)), events)


def test_the_clock_of_a_dat_file_wraps(tmp_path: Path):
    events = some_events(span_ns=3 * (1 << 32) * 1000)
    (tmp_path / "a.dat").write_bytes(dat_bytes(events))
    assert_same(decoded(open_recording(tmp_path / "a.dat")), events)


def test_dat_files_that_are_none(tmp_path: Path):
    whole = dat_bytes(some_events(10))
    cases = {
        b"": "is empty",
        b"\0\1" * 50: "does not begin with lines",
        whole.replace(b"Version 2", b"Version 7"): "has version '7', expected 1 or 2",
        whole.replace(bytes([0x0C, 8]), bytes([0x0E, 8])): "type and size",
        whole[: whole.index(bytes([0x0C, 8])) + 1]: "type and size",
    }
    for content, message in cases.items():
        (tmp_path / "a.dat").write_bytes(content)
        with pytest.raises(RecordingError, match=message):
            open_recording(tmp_path / "a.dat")


CAMERA = {"k": [200.0, 0, 320, 0, 201, 240, 0, 0, 1], "d": [0.1] * 5, "distortion_model": "fisheye"}


def test_npz_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events = some_events()
    odd = Events(events.t + 123, events.x, events.y, events.p, 700, 500)
    chunks = iter([odd[:1000], odd[1000:1001], odd[1001:]])
    assert write_npz(tmp_path / "a.npz", chunks, CAMERA) == len(odd)
    monkeypatch.setattr(npz, "BLOCK_EVENTS", 700)
    recording = open_recording(tmp_path / "a.npz")
    assert isinstance(recording, NpzRecording)
    assert_same(decoded(recording), odd)
    assert [len(part) for part in recording.packets()] == [700] * 4 + [200]
    assert recording.calibration() == {"width": 700, "height": 500} | CAMERA
    assert (recording.kind, recording.encoding) == ("npz", "")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_of_others(tmp_path: Path, save: Any):
    events = some_events()
    signed = events.p.astype(np.int8) * 2 - 1
    columns = {"x": events.x.astype(np.int64), "y": events.y.astype(np.float32).astype("<i2")}
    save(tmp_path / "a.npz", t=events.t // 1000, p=signed, unit=np.array("us"), **columns)
    recording = open_recording(tmp_path / "a.npz")
    assert_same(decoded(recording), events)  # the size is learnt
    (warning,) = recording.warnings()
    assert "says no sensor size: taken for 640x480" in warning
    assert recording.calibration() is None
    columns["x"][7] = 65536 + 5  # must not come back as 5
    save(tmp_path / "b.npz", t=events.t, p=events.p == 1, width=640, height=480, **columns)
    recording = open_recording(tmp_path / "b.npz")
    assert len(decoded(recording)) == len(events) - 1
    assert recording.unusable()["out_of_bounds_events"] == 1
    assert recording.warnings() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t": None}, "no item named 't.npy'"),
        ({"t": np.zeros(3)}, "t is float64"),
        ({"x": np.zeros((3, 1), int)}, "x is int64"),
        ({"p": np.zeros(2, int)}, "expected one number"),
        (dict.fromkeys("txyp", np.zeros(0, int)), "a.npz holds no events"),
        ({"unit": np.array("days")}, "unit is 'days', expected ns or us"),
        ({"width": np.array(0)}, "sensor size is 0 x 480"),
        ({"t": np.full(3, 1 << 62), "unit": np.array("us")}, "the unit is another"),
        ({"y": np.array([1, None, 2])}, "expected numbers"),
    ],
)
def test_npz_files_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str):
    columns: dict[str, Any] = {name: np.zeros(3, int) for name in "txyp"}
    columns |= {"width": 640, "height": 480} | changes
    np.savez(tmp_path / "a.npz", **{k: v for k, v in columns.items() if v is not None})
    with pytest.raises(RecordingError, match=message) as caught:
        decoded(open_recording(tmp_path / "a.npz"))
    assert "\n" not in str(caught.value)


def test_an_npz_that_says_more_than_it_holds(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in "txyp":
            with archive.open(f"{name}.npy", "w") as member:
                header = {"descr": "<i8", "fortran_order": False, "shape": (10**15,)}
                np.lib.format.write_array_header_1_0(member, header)
        for name in ("width", "height"):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.array(100))
    with pytest.raises(RecordingError, match="ends early"):
        decoded(open_recording(tmp_path / "a.npz"))


def test_files_are_known_by_how_they_begin(tmp_path: Path, data_dir: Path):
    events = some_events()
    contents = {
        "raw": b"% evt 3.0\n% end\n" + encode_evt3(events),
        "dat": dat_bytes(events),
        "text": b"0.1 2 3 1\n0.2 3 4 0\n",
        "bag": (data_dir / "bags" / "test_events_1.bag").read_bytes(),
        "aedat4": (data_dir / "aedat4" / "davis_320x240.aedat4").read_bytes(),
    }
    write_npz(tmp_path / "made.npz", [events])
    contents["npz"] = (tmp_path / "made.npz").read_bytes()
    kinds = {
        "raw": "Prophesee raw EVT 3.0", "dat": "Prophesee dat", "bag": "ROS 1 bag",
        "text": "event camera dataset text", "aedat4": "AEDAT4", "npz": "npz",
    }  # fmt: skip
    for name, content in contents.items():
        for odd in ("recording", "recording.bin"):
            (tmp_path / odd).write_bytes(content)
            recording = open_recording(tmp_path / odd)
            assert recording.kind == kinds[name]
            assert len(decoded(recording)) > 0


def test_what_is_nearly_a_recording_is_named(tmp_path: Path, data_dir: Path):
    bags = data_dir / "bags"
    shutil.copy(bags / "test_events_2" / "test_events_2_0.mcap", tmp_path / "a")
    shutil.copy(bags / "test_data_mono_cd" / "test_data_mono_cd_0.db3", tmp_path / "b")
    (tmp_path / "c").write_bytes(b"#!AER-DAT2.0\r\n# old\r\n")
    (tmp_path / "d.mcap.zstd").write_bytes(b"x")
    (tmp_path / "e").write_bytes(b"\xff\xfe\0")
    (tmp_path / "f").write_bytes(b"")
    (tmp_path / "metadata.yaml").write_text("rosbag2_bagfile_information:\n")
    (tmp_path / "folder").mkdir()
    for name in ("b.raw", "a.bag", "notes.md"):
        (tmp_path / "folder" / name).write_bytes(b"")
    for name, message in (
        ("a", "ends in .mcap"), ("b", "ends in .db3"), ("c", "expected AEDAT 4.0"),
        ("d.mcap.zstd", "open the directory"), ("e", "no recording that is known"),
        ("f", "is empty"), ("metadata.yaml", "part of a bag: open its folder"),
        ("folder", r"a folder of recordings: choose one of a\.bag, b\.raw$"),
    ):  # fmt: skip
        with pytest.raises(RecordingError, match=message) as caught:
            open_recording(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(RecordingError, match="found the topic /left: leave it out"):
        open_recording(data_dir / "ecd_slider_depth", "/left")


def small_files(folder: Path) -> dict[str, bytes]:
    events = some_events(300)
    write_npz(folder / "a.npz", [events], CAMERA)
    np.savez_compressed(folder / "b.npz", **{n: getattr(events, n) for n in "txyp"})
    rows = zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True)
    return {
        "evt2.raw": b"% evt 2.0\n" + ENCODE["evt2"](events),
        "evt21.raw": b"% format EVT21;width=640;height=480\n% end\n" + ENCODE["evt21"](events),
        "evt3.raw": b"% evt 3.0\n% geometry 640x480\n" + ENCODE["evt3"](events),
        "old.raw": ENCODE["evt3"](events),
        "a.dat": dat_bytes(events),
        "old.dat": dat_bytes(events, 2, size=False),
        "a.npz": (folder / "a.npz").read_bytes(),
        "b.npz": (folder / "b.npz").read_bytes(),
        "a.txt": "".join(f"{t / 1e9:.9f} {x} {y} {p}\n" for t, x, y, p in rows).encode(),
    }


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    if rng.random() < 0.4:
        data = data[: rng.integers(0, len(data))]
    if rng.random() < 0.2:
        at, count = (int(v) for v in rng.integers(0, (len(data) + 1, 20)))
        data[at:at] = rng.bytes(count)
    ends = (len(data), min(len(data), 200))
    for _ in range(rng.integers(0, 12)):
        if data:
            data[rng.integers(0, ends[rng.integers(0, 2)])] = rng.integers(0, 256)
    return bytes(data)


def test_damaged_files_give_one_line_or_the_rest(tmp_path: Path):
    rng = np.random.default_rng(7)
    refused: list[str] = []
    read = 0
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, content in small_files(tmp_path).items():
        path = tmp_path / f"damaged_{name}"
        for _ in range(300):
            path.write_bytes(mutated(content, rng))
            try:
                read += read_all(path) > 0
            except RecordingError as error:
                refused.append(str(error))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000
    assert len(refused) > 200
    assert not any("\n" in line or len(line) > 600 for line in refused)
    assert read > 800


def read_all(path: Path) -> int:
    """The events of a recording; any other exception than RecordingError escapes."""
    recording, decoder, count = open_recording(path), PacketDecoder(), 0
    recording.calibration()
    for part in recording.packets():
        if isinstance(part, EventPacket):
            try:
                count += len(decoder.decode(part).events)
            except PacketError:
                continue
        else:
            count += len(part)
    return count


@pytest.mark.parametrize("name", ["a.raw", "a.dat", "a.npz", "a.txt"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str):
    """Files of 40 MB and more are read within 20 MB, besides what the decoder itself needs."""
    path = tmp_path / name
    events = some_events(200_000, 400_000_000)
    later = np.int64(400_000_000)
    count = {"a.raw": 50, "a.dat": 25, "a.npz": 16, "a.txt": 10}[name]
    parts = [
        Events(events.t + k * later, events.x, events.y, events.p, 640, 480) for k in range(count)
    ]
    if name == "a.npz":
        write_npz(path, parts)
    else:
        with path.open("wb") as file:
            for k, part in enumerate(parts):
                file.write(big_content(name, part, first=k == 0))
    assert path.stat().st_size > 39e6
    recording = open_recording(path)
    tracemalloc.start()
    try:
        seen = sum(len(part.events if isinstance(part, EventPacket) else part)
                   for part in recording.packets())  # fmt: skip
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert seen >= 200_000 * count


def big_content(name: str, part: Events, first: bool) -> bytes:
    if name == "a.raw":
        return (b"% evt 2.0\n% geometry 640x480\n" if first else b"") + ENCODE["evt2"](part)
    if name == "a.dat":
        whole = dat_bytes(part)
        return whole if first else whole[whole.index(bytes([0x0C, 8])) + 2 :]
    rows = zip(*(getattr(part, column).tolist() for column in "txyp"), strict=True)
    return "".join(f"{t / 1e9:.9f} {x} {y} {p}\n" for t, x, y, p in rows).encode()


def test_a_source_that_is_not_there_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    source, out = tmp_path / "source.raw", tmp_path / "deep" / "out"
    with pytest.raises(RecordingError) as caught, appearing(out):
        source.read_bytes()
    assert str(caught.value) == f"{source}: No such file or directory"
    with pytest.raises(RecordingError) as caught, appearing(out) as unfinished:
        unfinished.rmdir()
    assert str(caught.value) == f"{out} cannot be written: No such file or directory"
    assert list(out.parent.iterdir()) == []
