"""EVT 2.0, EVT 2.1, libcaer_cmp, event arrays, dv and triggers: against plain references."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_binning_grad.errors import PacketError
from event_binning_grad.events.decoder import PacketDecoder, payload_bytes
from event_binning_grad.events.encoder import ENCODERS
from event_binning_grad.events.event_arrays import event_array_packet
from event_binning_grad.events.evt2 import Evt2Stream
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.types import EventPacket, Events, Header, Stamp

WIDTH, HEIGHT = 640, 480
Row = tuple[int, int, int, int]


def packet(payload: Any, encoding: str, seq: int = 0, **fields: Any) -> EventPacket:
    made = EventPacket(Header(Stamp(), ""), HEIGHT, WIDTH, seq, 0, encoding, False, payload)
    return replace(made, **fields)


def rows_of(part: Any) -> list[Row]:
    columns = (part.t.tolist(), part.x.tolist(), part.y.tolist(), part.p.tolist())
    return list(zip(*columns, strict=True))


@dataclass
class Settled:
    """The rules of time for any encoding, one event at a time."""

    found: list[Row] = field(default_factory=list)
    edges: list[tuple[int, int, int]] = field(default_factory=list)
    latest: int | None = None
    latest_raw: int | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def time(self, now: int) -> int:
        if self.latest_raw is not None and now < self.latest_raw:
            self.count("steps_back")
        self.latest_raw = now
        if self.latest is not None and self.latest - now > 10_000_000:
            self.count("resets")
            self.count("discarded", len(self.found))
            self.count("lost_triggers", len(self.edges))
            self.latest, self.found, self.edges = now, [], []
        self.latest = now if self.latest is None else max(now, self.latest)
        return self.latest

    def emit(self, now: int, x: int, y: int, p: int) -> None:
        if x < WIDTH and y < HEIGHT:
            at = self.time(now)
            self.found.append((at, x, y, p))
        else:
            self.count("out_of_bounds")


@dataclass
class SlowEvt2(Settled):
    """EVT 2.0 (word of 4 bytes) and 2.1 (8 bytes), by the letter."""

    size: int = 4
    left_over: bytes = b""
    high: int | None = None

    def feed(self, chunk: bytes) -> list[Row]:
        self.found, self.edges = [], []
        self.left_over += chunk
        while len(self.left_over) >= self.size:
            word = int.from_bytes(self.left_over[: self.size], "little")
            self.left_over = self.left_over[self.size :]
            mask = 1
            if self.size == 8:
                word, mask = word >> 32, word & 0xFFFFFFFF
            self.step(word, mask)
        return self.found

    def step(self, word: int, mask: int) -> None:
        bits = f"{word:032b}"
        kind, low = int(bits[:4], 2), int(bits[4:10], 2)
        if kind in (0, 1):
            for column in range(32):
                if mask >> column & 1:
                    if self.high is None:
                        self.count("unsynchronised")
                    else:
                        now = (self.high * 64 + low) * 1000
                        self.emit(now, int(bits[10:21], 2) + column, int(bits[21:], 2), kind)
        elif kind == 8:
            value = int(bits[4:], 2)
            if self.high is None:
                self.high = value
            else:
                self.high = self.follow(self.high, value)
        elif kind == 10:
            if self.high is None:
                self.count("lost_triggers")
            else:
                at = self.time((self.high * 64 + low) * 1000)
                self.edges.append((at, int(bits[31]), int(bits[19:24], 2)))
        else:
            self.count("ignored_words" if kind in (14, 15) else "unknown_words")

    @staticmethod
    def follow(high: int, value: int) -> int:
        turn = 1 << 28
        later = high + (value - high) % turn
        if later - high < turn // 8:
            return later
        return later - turn if later >= turn else value


COUNTED = (
    "discarded", "unknown_words", "ignored_words", "out_of_bounds", "unsynchronised", "steps_back",
    "resets", "lost_triggers",
)  # fmt: skip


def evt2_event(low: int, x: int, y: int, p: int) -> int:
    return p << 28 | low << 22 | x << 11 | y


upper_words = st.one_of(
    st.builds(
        evt2_event, st.integers(0, 63), st.integers(0, 660), st.integers(0, 490), st.integers(0, 1)
    ),
    st.builds(
        evt2_event, st.integers(0, 63), st.integers(0, 660), st.integers(0, 490), st.integers(0, 1)
    ),
    st.integers(0, 400).map(lambda high: 8 << 28 | high),
    st.integers(0, 300).map(lambda back: 8 << 28 | ((1 << 28) - 1 - back)),
    st.builds(
        lambda low, channel, p: 10 << 28 | low << 22 | channel << 8 | p,
        st.integers(0, 63), st.integers(0, 31), st.integers(0, 1),
    ),
    st.integers(0, (1 << 32) - 1),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([4, 8]),
    st.lists(st.tuples(upper_words, st.integers(0, (1 << 32) - 1)), max_size=60),
    st.lists(st.integers(0, 480), max_size=6),
    st.booleans(),
)
def test_evt2_and_evt21_equal_the_slow_reference_however_they_are_cut(
    size: int, words: list[tuple[int, int]], cuts: list[int], begins: bool
):
    if size == 8:
        # So that the order of the halves is known from the first packet on.
        words = [(8 << 28 | 300, 0)] + [(u, 0 if u >> 28 in (8, 10) else m) for u, m in words]
    elif begins:
        words = [(8 << 28 | 300, 0), *words]
    stream = b"".join((u << 32 | m if size == 8 else u).to_bytes(size, "little") for u, m in words)
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    fast, slow = Evt2Stream(vectors=size == 8), SlowEvt2(size=size)
    totals = dict.fromkeys(COUNTED, 0)
    for start, stop in pairwise(borders):
        part = fast.decode(payload_bytes(stream[start:stop]), WIDTH, HEIGHT)
        if part.was_cut:  # a wrong guess needs eight words of undefined kinds
            return
        assert rows_of(part) == slow.feed(stream[start:stop])
        edges = (part.triggers.t.tolist(), part.triggers.p.tolist(), part.triggers.channel.tolist())
        assert list(zip(*edges, strict=True)) == slow.edges
        for name in COUNTED:
            totals[name] += getattr(part, name)
    assert totals == {name: slow.counts.get(name, 0) for name in COUNTED}


def random_events(count: int, seed: int = 0, start_us: int = 5_000_000) -> Events:
    rng = np.random.default_rng(seed)
    t = (start_us + np.sort(rng.integers(0, 30_000, count))) * 1000
    x, y = rng.integers(0, (WIDTH, HEIGHT), (count, 2)).T.astype(np.uint16)
    return Events(t, x, y, rng.integers(0, 2, count, dtype=np.uint8), WIDTH, HEIGHT)


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_round_trip_in_packets(encoding: str, count: int):
    events, decoder, got = random_events(count), PacketDecoder(), []
    for seq, part in enumerate([events[: count // 2], events[count // 2 :]]):
        if len(part):
            base, data = ENCODERS[encoding](part)
            decoded = decoder.decode(packet(data, encoding, seq, time_base=base))
            assert decoded.discontinuity is None
            got.append(decoded.events)
    whole = Events.concatenate(got)
    assert rows_of(whole) == rows_of(events)
    assert decoder.counters.events == count


def test_evt21_in_the_legacy_order_of_its_halves():
    events = random_events(3000)
    _, data = ENCODERS["evt21"](events)
    legacy = data.view("<u4").reshape(-1, 2)[:, ::-1].tobytes()
    whole = np.frombuffer(data.tobytes(), "<u8").byteswap().tobytes()
    for payload, big in ((data, False), (legacy, False), (whole, True)):
        decoder = PacketDecoder()
        decoded = decoder.decode(packet(payload, "evt21", is_bigendian=big))
        assert rows_of(decoded.events) == rows_of(events)
        assert decoder.counters.unknown_words == 0


def test_evt2_clock_wraps_and_restarts():
    def words(us: int) -> bytes:
        high, low = us >> 6 & (1 << 28) - 1, us & 63
        return struct.pack("<II", 8 << 28 | high, evt2_event(low, 1, 2, 1))

    decoder, turn = PacketDecoder(), 1 << 34
    times = [turn - 1000, turn + 5, turn + 600_000_000]
    got = [decoder.decode(packet(words(us), "evt2", i)) for i, us in enumerate(times)]
    assert [int(d.events.t[0]) for d in got] == [us * 1000 for us in times]
    assert decoder.counters.clock_resets == 0
    again = decoder.decode(packet(words(100), "evt2", 3))
    assert again.clock_reset
    assert decoder.counters.clock_resets == 1


def test_evt2_waits_for_the_time_after_a_loss():
    event = struct.pack("<I", evt2_event(3, 1, 2, 1))
    high = struct.pack("<I", 8 << 28 | 77)
    decoder = PacketDecoder()
    assert len(decoder.decode(packet(high + event, "evt2", 0)).events) == 1
    after = decoder.decode(packet(event + high + event, "evt2", 5))
    assert len(after.events) == 1
    assert not after.from_start
    assert decoder.counters.unsynchronised_events == 1
    assert decoder.counters.lost_packets == 4


@dataclass
class SlowCmp(Settled):
    """libcaer_cmp by the letter."""

    def feed(self, payload: bytes, base: int) -> list[Row]:
        self.found = []
        x = y = None
        p = high = low = 0
        for (word,) in struct.iter_unpack("<H", payload):
            kind, value = word >> 12, word & 0xFFF
            at = base + (high * 4096 + low) * 1000
            if kind == 0:
                if value < 16 and high % 16 - value >= 8:
                    high = (high // 16 + 1) * 16 + value
                elif value < 16 <= high and value >= high % 16:
                    high = high // 16 * 16 + value
                else:
                    high = value
            elif kind == 1:
                low = value
            elif kind == 2:
                x = value & 0x7FF
            elif kind == 3:
                self.place(at, x, value & 0x7FF, value >> 11)
            elif kind == 4:
                y, p = value & 0x7FF, value >> 11
            elif kind == 5:
                for bit in range(8):
                    if value >> bit & 1:
                        self.place(at, x, None if y is None else y + bit, p)
                y = None if y is None else y + 8
            else:
                self.count("unknown_words")
        return self.found

    def place(self, at: int, x: int | None, y: int | None, p: int) -> None:
        if x is None or y is None:
            self.count("unsynchronised")
        else:
            self.emit(at, x, y, p)


cmp_words = st.one_of(
    st.integers(0, 20),
    st.integers(0, 4095).map(lambda low: 1 << 12 | low),
    st.integers(0, 650).map(lambda x: 2 << 12 | x),
    st.integers(0, 490).map(lambda y: 3 << 12 | y),
    st.integers(0, 490).map(lambda y: 3 << 12 | 1 << 11 | y),
    st.integers(0, 490).map(lambda y: 4 << 12 | 1 << 11 | y),
    st.integers(0, 4095).map(lambda mask: 5 << 12 | mask),
    st.integers(0, 0xFFFF),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.lists(cmp_words, max_size=60), st.integers(0, 40)), max_size=4))
def test_libcaer_cmp_equals_the_slow_reference(packets: list[tuple[list[int], int]]):
    decoder, slow = PacketDecoder(), SlowCmp()
    for seq, (words, ms) in enumerate(packets):
        payload = np.array(words, "<u2").tobytes()
        base = 10**18 + ms * 1_000_000
        decoded = decoder.decode(packet(payload, "libcaer_cmp", seq, time_base=base))
        assert rows_of(decoded.events) == slow.feed(payload, base)
    counters = decoder.counters
    assert counters.unknown_words == slow.counts.get("unknown_words", 0)
    assert counters.unsynchronised_events == slow.counts.get("unsynchronised", 0)
    assert counters.out_of_bounds_events == slow.counts.get("out_of_bounds", 0)
    assert counters.discarded_events == slow.counts.get("discarded", 0)
    assert counters.time_steps_back == slow.counts.get("steps_back", 0)
    assert counters.clock_resets == slow.counts.get("resets", 0)


def message(rows: list[Row], *, big: bool = False, ros1: bool = False, name: str = "cam") -> bytes:
    """A whole EventArray message, field by field."""
    order = ">" if big else "<"
    out = bytearray(b"" if ros1 else b"\0\0\0\0" if big else b"\0\1\0\0")
    start = len(out)

    def put(kind: str, value: int) -> None:
        if not ros1:
            out.extend(bytes(-(len(out) - start) % struct.calcsize(kind)))
        out.extend(struct.pack(order + kind, value))

    if ros1:
        put("I", 7)
    put("I", 12)
    put("I", 34)
    text = name.encode() + (b"" if ros1 else b"\0")
    put("I", len(text))
    out.extend(text)
    for value in (HEIGHT, WIDTH, len(rows)):
        put("I", value)
    for t, x, y, p in rows:
        put("H", x)
        put("H", y)
        put("I", t // 10**9)
        put("I", t % 10**9)
        put("B", p)
    return bytes(out)


array_rows = st.lists(
    st.tuples(
        st.integers(1_700_000_000 * 10**9, 1_700_000_000 * 10**9 + 30_000_000),
        st.integers(0, 660),
        st.integers(0, 500),
        st.integers(0, 1),
    ),
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(array_rows, st.sampled_from(["cdr", "big", "ros1"]), st.text("abc_/", max_size=9))
def test_event_arrays_equal_the_slow_reference(rows: list[Row], kind: str, name: str):
    data = message(rows, big=kind == "big", ros1=kind == "ros1", name=name)
    made = event_array_packet(data, 3, ros1=kind == "ros1")
    assert (made.seq, made.header.frame_id, made.header.stamp) == (3, name, Stamp(12, 34))
    decoder, slow = PacketDecoder(), Settled()
    for t, x, y, p in rows:
        slow.emit(t, x, y, p)
    assert rows_of(decoder.decode(made).events) == slow.found
    assert decoder.counters.out_of_bounds_events == slow.counts.get("out_of_bounds", 0)
    assert decoder.counters.discarded_events == slow.counts.get("discarded", 0)
    assert decoder.counters.time_steps_back == slow.counts.get("steps_back", 0)


def test_event_arrays_are_laid_out_as_rosbags_writes_them():
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    event = "uint16 x\nuint16 y\nbuiltin_interfaces/Time ts\nbool polarity\n"
    array = "std_msgs/Header header\nuint32 height\nuint32 width\ndvs_msgs/Event[] events\n"
    store.register(get_types_from_msg(event, "dvs_msgs/msg/Event"))
    store.register(get_types_from_msg(array, "dvs_msgs/msg/EventArray"))
    events, types = random_events(40), store.types
    time = types["builtin_interfaces/msg/Time"]
    made = types["dvs_msgs/msg/EventArray"](
        types["std_msgs/msg/Header"](time(1, 2), "a"),
        HEIGHT,
        WIDTH,
        [
            types["dvs_msgs/msg/Event"](x, y, time(*divmod(t, 10**9)), bool(p))
            for t, x, y, p in rows_of(events)
        ],
    )
    data = bytes(store.serialize_cdr(made, "dvs_msgs/msg/EventArray"))
    whole = event_array_packet(data, 0)
    assert rows_of(PacketDecoder().decode(whole).events) == rows_of(events)
    assert np.shares_memory(whole.events, np.frombuffer(data, np.uint8))
    shifted = np.frombuffer(b"_" + data, np.uint8)[1:]
    assert rows_of(PacketDecoder().decode(event_array_packet(shifted, 0)).events) == rows_of(events)


@pytest.mark.parametrize("ros1", [False, True])
def test_cut_event_arrays_are_refused(ros1: bool):
    data = message(rows_of(random_events(3)), ros1=ros1)
    for size in range(len(data)):
        with pytest.raises(PacketError) as caught:
            event_array_packet(data[:size], 0, ros1=ros1)
        assert "\n" not in str(caught.value)
    count_at = data.rindex(struct.pack("<II", HEIGHT, WIDTH)) + 8
    huge = data[:count_at] + b"\xff" * 4 + data[count_at + 4 :]
    with pytest.raises(PacketError, match="4294967295 events"):
        event_array_packet(huge, 0, ros1=ros1)
    sizeless = data.replace(struct.pack("<II", HEIGHT, WIDTH), bytes(8))
    with pytest.raises(PacketError, match="sensor size"):
        event_array_packet(sizeless, 0, ros1=ros1)


def test_dv_events_outside_and_before_1970_are_counted():
    rows = np.zeros(5, [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1"), ("_", "u1", 3)])
    rows["t"] = [10, -1, 20, 2**62, 30]
    rows["x"], rows["y"], rows["p"] = [-1, 1, 2, 3, 639], [0, 0, 0, 0, 479], [1, 1, 1, 1, 0]
    decoder = PacketDecoder()
    decoded = decoder.decode(packet(rows.view(np.uint8), "dv"))
    assert rows_of(decoded.events) == [(20_000, 2, 0, 1), (30_000, 639, 479, 0)]
    assert decoder.counters.out_of_bounds_events == 1
    assert decoder.counters.invalid_events == 2


def test_old_trigger_packets():
    words = [1 << 63 | 3 << 48 | 5, 2 << 48 | 900]
    decoder = PacketDecoder()
    decoded = decoder.decode(packet(struct.pack("<QQ", *words), "trigger", time_base=10**9))
    edges = decoded.triggers
    assert edges.t.tolist() == [10**9 + 5, 10**9 + 900]
    assert edges.p.tolist() == [1, 0]
    assert edges.channel.tolist() == [3, 2]
    assert len(decoded.events) == 0
    assert decoder.counters.trigger_events == 2


def test_golden_evt2_raw(data_dir: Path):
    data = (data_dir / "prophesee_raw" / "evt2_640x480_gen3_50ms.raw").read_bytes()
    while data.startswith(b"%"):
        data = data[data.index(b"\n") + 1 :]
    part = Evt2Stream().decode(payload_bytes(data), 640, 480)
    assert len(part.t) == 539_481
    assert part.steps_back == part.unsynchronised == part.out_of_bounds == part.unknown_words == 0
    assert abs(int(part.t[-1] - part.t[0]) - 50_000_000) < 10_000
    slow = SlowEvt2()
    few = data[:40_000]
    assert slow.feed(few) == rows_of(Evt2Stream().decode(payload_bytes(few), 640, 480))


def test_golden_libcaer_cmp(data_dir: Path):
    decoder, slow, spans = PacketDecoder(), SlowCmp(), []
    for number, found in enumerate(
        open_recording(data_dir / "bags" / "test_events_2" / "test_events_2_0.mcap").packets()
    ):
        assert isinstance(found, EventPacket)
        decoded = decoder.decode(found)
        assert decoded.discontinuity is None
        spans += decoded.events.t[[0, -1]].tolist()
        if number < 3:
            expected = slow.feed(bytes(found.events), found.time_base)
            assert rows_of(decoded.events) == expected
    assert decoder.counters.events == 571_266
    assert decoder.counters.time_steps_back == decoder.counters.unknown_words == 0
    assert decoder.counters.unsynchronised_events == decoder.counters.out_of_bounds_events == 0
    assert np.all(np.diff(spans) >= 0)
    assert abs(spans[-1] - spans[0] - 1_000_000_000) < 10_000_000


def test_golden_triggers(data_dir: Path):
    decoder, times, edges = PacketDecoder(), [], []
    for found in open_recording(data_dir / "bags" / "test_events_1").packets():
        assert isinstance(found, EventPacket)
        decoded = decoder.decode(found)
        times += decoded.triggers.t.tolist()
        edges += decoded.triggers.p.tolist()
    assert len(times) == 4_157
    assert set(np.diff(times).tolist()) == {500_000}  # a square wave of 1 kHz
    assert edges == [1, 0] * 2078 + [1]
