"""Decoders: against an independent reference, the evt3 package and golden counts."""

from __future__ import annotations

import array
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_binning_grad.errors import PacketError
from event_binning_grad.events.decoder import DecodedPacket, PacketDecoder, payload_bytes
from event_binning_grad.events.encoder import Evt3Encoder, encode_evt3, packetize
from event_binning_grad.events.evt3 import US_PER_WRAP, Evt3Stream
from event_binning_grad.events.part import Part
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.types import EventPacket, Events, Header, PacketLike, Stamp

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_bags = pytest.mark.skipif(
    not (DATA / "bags").is_dir(), reason=f"no recordings in {DATA / 'bags'}"
)
needs_raw = pytest.mark.skipif(
    not (DATA / "prophesee_raw").is_dir(), reason=f"no recordings in {DATA / 'prophesee_raw'}"
)

WIDTH, HEIGHT = 640, 480


def high(value: int) -> int:
    return 0x8000 | value


def low(value: int) -> int:
    return 0x6000 | value


def row(value: int) -> int:
    return value


def event(x: int, p: int) -> int:
    return 0x2000 | p << 11 | x


def base(x: int, p: int) -> int:
    return 0x3000 | p << 11 | x


def vect12(mask: int) -> int:
    return 0x4000 | mask


def vect8(mask: int) -> int:
    return 0x5000 | mask


def to_bytes(words: list[int]) -> bytes:
    return np.array(words, "<u2").tobytes()


def packet(
    payload: Any,
    seq: int = 0,
    *,
    encoding: str = "evt3",
    stamp_ns: int = 0,
    time_base: int = 0,
    width: int = WIDTH,
    height: int = HEIGHT,
    big_endian: bool = False,
) -> EventPacket:
    header = Header(Stamp.from_ns(stamp_ns), "camera")
    return EventPacket(header, height, width, seq, time_base, encoding, big_endian, payload)


def rows_of(part: Part | Events) -> list[tuple[int, ...]]:
    """Events as (t, x, y, p)."""
    columns = (part.t.tolist(), part.x.tolist(), part.y.tolist(), part.p.tolist())
    return list(zip(*columns, strict=True))


@dataclass
class SlowEvt3:
    """EVT 3.0 by the letter, one word at a time, in plain Python."""

    width: int = WIDTH
    height: int = HEIGHT
    left_over: bytes = b""
    t_high: int | None = None  # unwrapped
    t_low: int = 0
    know_high: bool = False
    know_low: bool = False
    y: int | None = None
    base_x: int | None = None
    base_p: int = 0
    latest: int | None = None
    latest_raw: int | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def feed(self, chunk: bytes) -> list[tuple[int, ...]]:
        self.left_over += chunk
        found: list[tuple[int, ...]] = []
        while len(self.left_over) >= 2:
            word = int.from_bytes(self.left_over[:2], "little")
            self.left_over = self.left_over[2:]
            found = self.step(word, found)
        return found

    def step(self, word: int, found: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        bits = f"{word:016b}"
        kind, value = bits[:4], int(bits[4:], 2)
        coordinate, polarity = int(bits[5:], 2), int(bits[4])
        if kind == "1000":
            self.time_high(value)
        elif kind == "0110":
            found = self.time_low(value, found)
        elif kind == "0000":
            self.y = coordinate
        elif kind == "0010":
            self.emit(coordinate, polarity, found)
        elif kind == "0011":
            self.base_x, self.base_p = coordinate, polarity
        elif kind in ("0100", "0101"):
            size = 12 if kind == "0100" else 8
            for place, bit in enumerate(reversed(bits[-size:])):
                if bit == "1":
                    at = None if self.base_x is None else self.base_x + place
                    self.emit(at, self.base_p, found)
            if self.base_x is not None:
                self.base_x += size
        elif kind == "1010":
            self.count("triggers")
        elif kind in ("0111", "1110", "1111"):
            self.count("ignored_words")
        else:
            self.count("unknown_words")
        return found

    def emit(self, x: int | None, p: int, found: list[tuple[int, ...]]) -> None:
        if x is None or self.y is None or not self.know_low or self.t_high is None:
            self.count("unsynchronised")
        elif x < self.width and self.y < self.height:
            now = (self.t_high * 4096 + self.t_low) * 1000
            self.latest = now if self.latest is None else max(self.latest, now)
            found.append((self.latest, x, self.y, p))
        else:
            self.count("out_of_bounds")

    def time_high(self, value: int) -> None:
        if self.t_high is None:
            self.t_high, self.t_low = value, 0
        else:
            turns = [self.t_high // 4096 + k for k in (-1, 0, 1)]
            near = [turn * 4096 + value for turn in turns]
            # Exactly half a turn away counts as back.
            best = min(near, key=lambda t: (abs(t - self.t_high), t))  # type: ignore[operator]
            if best > self.t_high:
                self.t_low = 0
            elif best < self.t_high:
                self.t_low = 4095
            self.t_high = best
        self.know_high = True

    def time_low(self, value: int, found: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        self.t_low = value
        if not self.know_high or self.t_high is None:
            return found
        self.know_low = True
        now = (self.t_high * 4096 + value) * 1000
        if self.latest_raw is not None and now < self.latest_raw:
            self.count("steps_back")
        self.latest_raw = now
        if self.latest is not None and self.latest - now > 10_000_000:
            self.count("resets")
            for _ in found:
                self.count("discarded")
            self.latest, found = now, []
        return found


COUNTED = (
    "discarded",
    "unknown_words",
    "ignored_words",
    "triggers",
    "out_of_bounds",
    "unsynchronised",
    "steps_back",
    "resets",
)

# Mostly words of a sane stream, so that a good part of the events is really decoded.
sane_words = st.one_of(
    st.integers(0, 3).map(high),
    st.integers(0, 4095).map(low),
    st.integers(0, 500).map(row),
    st.builds(event, st.integers(0, 650), st.integers(0, 1)),
    st.builds(base, st.integers(0, 650), st.integers(0, 1)),
    st.integers(0, 0xFFF).map(vect12),
    st.integers(0, 0xFFF).map(vect8),
)
any_words = st.one_of(sane_words, sane_words, sane_words, st.integers(0, 0xFFFF))


@settings(max_examples=300, deadline=None)
@given(st.lists(any_words, max_size=80), st.lists(st.integers(0, 160), max_size=6))
def test_evt3_equals_the_slow_reference_however_it_is_cut(words: list[int], cuts: list[int]):
    stream = to_bytes([high(1), low(7), row(3), *words])
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    fast, slow = Evt3Stream(), SlowEvt3()
    totals = dict.fromkeys(COUNTED, 0)
    for start, stop in pairwise(borders):
        part = fast.decode(payload_bytes(stream[start:stop]), WIDTH, HEIGHT)
        assert rows_of(part) == slow.feed(stream[start:stop])
        for name in COUNTED:
            found = getattr(part, name)
            totals[name] += len(found) if name == "triggers" else found
    assert totals == {name: slow.counts.get(name, 0) for name in COUNTED}


def test_evt3_cut_at_every_byte():
    words = [high(4095), low(4090), row(5), event(1, 1), base(620, 0), vect12(0xFFF), vect8(0xA5)]
    words += [high(0), event(2, 0), low(1), row(479), event(3, 1), 0xA001, 0xE123, 0x1FFF]
    stream = to_bytes(words * 2)
    whole = rows_of(Evt3Stream().decode(payload_bytes(stream), WIDTH, HEIGHT))
    assert whole == SlowEvt3().feed(stream)
    for cut in range(len(stream) + 1):
        decoder = Evt3Stream()
        parts = [
            decoder.decode(payload_bytes(b), WIDTH, HEIGHT) for b in (stream[:cut], stream[cut:])
        ]
        assert [r for part in parts for r in rows_of(part)] == whole
    decoder = Evt3Stream()
    ones = [decoder.decode(payload_bytes(bytes([b])), WIDTH, HEIGHT) for b in stream]
    assert [r for part in ones for r in rows_of(part)] == whole


def test_a_packet_cut_short_inside_a_word_does_not_shift_the_rest():
    events = stream_of(4000, step_us=7)
    packets = list(packetize(events, packet_ms=2.0))
    decoder = PacketDecoder()
    decoded = []
    for number, whole in enumerate(packets):
        cut = replace(whole, events=whole.events[:-7]) if number == 3 else whole
        decoded.append(decoder.decode(cut).events)
    for number, whole in enumerate(packets):
        if number != 3:
            alone = PacketDecoder().decode(whole).events
            assert rows_of(decoded[number])[0][1:] == rows_of(alone)[0][1:]
            assert len(decoded[number]) == len(alone)
    assert 0 < len(decoded[3]) < len(PacketDecoder().decode(packets[3]).events)
    assert decoder.counters.time_steps_back == decoder.counters.clock_resets == 0


def test_evt3_golden_words():
    words = [event(9, 1), high(2), event(9, 1), low(5), event(9, 1), row(7), event(10, 1)]
    words += [base(30, 1), vect12(0b1000_0000_0001), vect8(0b1000_0001), low(6), event(11, 0)]
    part = Evt3Stream().decode(payload_bytes(to_bytes(words)), WIDTH, HEIGHT)
    at = (2 * 4096 + 5) * 1000
    assert rows_of(part) == [
        (at, 10, 7, 1),
        (at, 30, 7, 1),
        (at, 41, 7, 1),
        (at, 42, 7, 1),
        (at, 49, 7, 1),
        (at + 1000, 11, 7, 0),
    ]
    assert part.unsynchronised == 3


def test_evt3_clock_wraps():
    decoder, last = PacketDecoder(), -1
    for seq in range(40):  # 4 s each: about ten wraps
        us = seq * 4_000_000 + 16_000_000
        words = [high((us >> 12) & 0xFFF), low(us & 0xFFF), row(1), event(seq, 1)]
        decoded = decoder.decode(packet(to_bytes(words), seq))
        assert decoded.discontinuity is None
        assert decoded.events.t.tolist() == [us * 1000]
        assert decoded.events.t[0] > last
        last = decoded.events.t[0]
    assert decoder.counters.clock_resets == decoder.counters.time_steps_back == 0


def test_small_steps_back_are_clamped_and_counted():
    words = [high(5), low(100), row(1), event(1, 1), low(90), event(2, 1), low(101), event(3, 1)]
    decoder = PacketDecoder()
    decoded = decoder.decode(packet(to_bytes(words)))
    at = (5 * 4096 + 100) * 1000
    assert decoded.events.t.tolist() == [at, at, at + 1000]
    assert decoder.counters.time_steps_back == 1
    assert decoded.discontinuity is None


def test_large_step_back_is_a_clock_reset():
    words = [high(500), low(0), row(1), event(1, 1), high(100), low(3), event(2, 1), event(3, 0)]
    decoder = PacketDecoder()
    decoded = decoder.decode(packet(to_bytes(words)))
    assert rows_of(decoded.events) == [
        ((100 * 4096 + 3) * 1000, 2, 1, 1),
        ((100 * 4096 + 3) * 1000, 3, 1, 0),
    ]
    assert decoded.clock_reset
    assert "went back" in str(decoded.discontinuity)
    assert decoder.counters.clock_resets == 1
    assert decoder.counters.discarded_events == 1


def stream_of(count: int, step_us: int = 1000, start_us: int = 0) -> Events:
    t = (start_us + step_us * np.arange(count, dtype=np.int64)) * 1000
    x = (np.arange(count) * 7 % WIDTH).astype(np.uint16)
    y = (np.arange(count) * 3 % HEIGHT).astype(np.uint16)
    return Events(t, x, y, (np.arange(count) % 2).astype(np.uint8), WIDTH, HEIGHT)


def test_a_lost_packet_is_reported_and_its_neighbours_keep_their_time():
    events = stream_of(20_000)  # 20 s: the clock wraps once
    packets = list(packetize(events, 4.0))
    decoder, parts = PacketDecoder(), []
    for p in packets:
        if not 4100 <= p.seq < 4300:  # the wrap itself is in what is lost
            decoded = decoder.decode(p)
            assert (decoded.discontinuity is not None) == (p.seq == 4300)
            parts.append(decoded.events)
    got = Events.concatenate(parts)
    kept = (events.t // 4_000_000 < 4100) | (events.t // 4_000_000 >= 4300)
    assert np.array_equal(got.t, events.t[kept])
    assert np.array_equal(got.y, events.y[kept])
    assert decoder.counters.lost_packets == 200
    assert decoder.counters.clock_resets == 0


def test_a_loss_longer_than_the_clock_is_settled_by_the_stamps():
    events = stream_of(60_000)
    packets = [p for p in packetize(events, 4.0) if p.seq < 100 or p.seq >= 10_000]
    decoder = PacketDecoder()
    got = Events.concatenate([decoder.decode(p).events for p in packets])
    assert got.t[-1] == events.t[-1]
    assert decoder.counters.clock_resets == decoder.counters.clock_gaps == 0


def test_a_silence_longer_than_the_clock_is_bridged_and_reported():
    words = to_bytes([high(10), low(1), row(1), event(1, 1)])
    decoder, second = PacketDecoder(), 10**9
    first = decoder.decode(packet(words, 0, stamp_ns=100 * second))
    again = decoder.decode(packet(words, 1, stamp_ns=100 * second + 3 * US_PER_WRAP * 1000))
    assert again.events.t[0] - first.events.t[0] == 3 * US_PER_WRAP * 1000
    assert "silent" in str(again.discontinuity)
    assert decoder.counters.clock_gaps == 1
    # The host's clock being set by years is no silence.
    later = decoder.decode(packet(words, 2, stamp_ns=1_700_000_000 * second))
    assert later.events.t[0] == again.events.t[0]


@pytest.mark.parametrize("seconds", [1, 4, 8, 9, 12, 15, 20, 25, 31])
def test_a_camera_that_restarts_under_a_driver_that_goes_on_is_noticed(seconds: int):
    """Its clock is at 0 again, wherever in its 16.8 s it was; seq goes on."""
    packets = list(packetize(stream_of(seconds * 250, step_us=4000), 4.0))
    again = [
        replace(p, seq=len(packets) + p.seq, header=Header(Stamp.from_ns(stamp_ns)))
        for p in packetize(stream_of(250, step_us=4000), 4.0)
        for stamp_ns in [(seconds * 1000 + 700 + 4 * p.seq) * 10**6]
    ]
    decoder = PacketDecoder()
    resets = [decoder.decode(p).clock_reset for p in [*packets, *again]]
    assert [k for k, reset in enumerate(resets) if reset] == [len(packets)]
    assert decoder.counters.clock_resets == 1
    assert decoder.counters.clock_gaps == 0


def test_a_late_packet_or_a_stamp_set_back_is_no_restart():
    """A stream of 40 s: stamps stall for 3 s, are 10 s ahead for a while, and behind, and one of
    them is far behind."""
    packets = list(packetize(stream_of(10_000, step_us=4000), 4.0))
    decoder = PacketDecoder()
    for p in packets:
        stamp_ns = 10**12 + p.seq * 4_000_000
        if 1000 <= p.seq < 1750:
            stamp_ns = 10**12 + 1750 * 4_000_000
        stamp_ns += 10**10 * ((3000 <= p.seq < 4000) - 2 * (p.seq >= 5000))
        stamp_ns -= 10**11 * (p.seq == 4500)
        decoded = decoder.decode(replace(p, header=Header(Stamp.from_ns(stamp_ns))))
        assert decoded.discontinuity is None
        assert decoded.events.t[0] == p.seq * 4_000_000


def test_after_a_loss_events_wait_for_time_and_row():
    decoder = PacketDecoder()
    decoder.decode(packet(to_bytes([high(1), low(1), row(1), base(4, 1)]), 0))
    lone = [event(1, 1), low(9), event(1, 1), high(1), row(2), event(1, 1), vect8(3), low(9)]
    decoded = decoder.decode(packet(to_bytes([*lone, vect8(3), event(8, 0)]), 2))
    assert rows_of(decoded.events) == [((4096 + 9) * 1000, 8, 2, 0)]
    assert decoder.counters.unsynchronised_events == 3 + 2 + 2
    assert decoder.counters.lost_packets == 1


def test_seq_running_back_is_a_restart():
    packets = list(packetize(stream_of(40), 4.0))
    decoder = PacketDecoder()
    for _ in range(2):
        decoded = [decoder.decode(p) for p in packets]
        assert (
            Events.concatenate([d.events for d in decoded]).t.tolist() == stream_of(40).t.tolist()
        )
    assert decoder.counters.clock_resets == 1
    assert decoder.counters.lost_packets == 0
    assert decoder.counters.events == 80


def test_a_late_packet_is_dropped_and_counted():
    packets = list(packetize(stream_of(40), 4.0))
    decoder = PacketDecoder()
    for seq in (0, 1, 3, 2, 4, 5):
        decoded = decoder.decode(packets[seq])
        assert len(decoded.events) == (0 if seq == 2 else 4)
        assert (decoded.discontinuity is not None) == (seq == 3)
    assert decoder.counters.late_packets == 1
    assert decoder.counters.clock_resets == 0


@pytest.mark.parametrize("encoding", ["evt3", "mono"])
def test_packets_overtaken_or_sent_twice_are_dropped_and_counted(encoding: str):
    """Each packet is up to 5 places too late, some are lost, and some come again."""
    rng, events = np.random.default_rng(0), stream_of(4000, start_us=1000)
    packets = [p for p in packetize(events, 4.0) if p.seq == 0 or rng.random() > 0.05]
    for k, p in enumerate(packets):
        stamp_ns = 10**9 + p.seq * 4_000_000 + int(rng.integers(20_000_000))
        packets[k] = replace(p, header=Header(Stamp.from_ns(stamp_ns)))
    if encoding == "mono":
        packets = [
            replace(p, encoding="mono", time_base=part[0] * 4_000_000, events=part[1])
            for p in packets
            for part in [(p.seq, mono_words([(1000, p.seq % 600, 2, 1)]))]
        ]
    arrivals = [p for p in packets for _ in range(1 + (p.seq > 0 and rng.random() < 0.05))]
    places = np.arange(len(arrivals)) + rng.uniform(0, 5, len(arrivals))
    places[0] = -1  # the first one shows where the stream begins
    decoder, last, newest = PacketDecoder(), 0, -1
    for k in np.argsort(places):
        decoded = decoder.decode(arrivals[k])
        assert (len(decoded.events) > 0) == (arrivals[k].seq > newest)
        assert not decoded.clock_reset
        newest = max(newest, arrivals[k].seq)
        if len(decoded.events):
            assert decoded.events.t[0] >= last
            last = decoded.events.t[-1]
    c = decoder.counters
    assert c.clock_resets == c.time_steps_back == 0
    assert c.late_packets > 50
    assert c.repeated_packets > 10
    assert c.packets + c.late_packets + c.repeated_packets == len(arrivals)
    assert c.packets + c.lost_packets == newest + 1
    assert c.packets + c.late_packets == len(packets)


def test_a_short_bag_that_begins_again_and_one_packet_sent_forever():
    packets = list(packetize(stream_of(12, start_us=1000), 4.0))
    decoder = PacketDecoder()
    for number in range(9):
        decoded = decoder.decode(packets[number % 3])
        assert len(decoded.events) == 4
        assert decoded.clock_reset == (number in (3, 6))
    decoder = PacketDecoder()
    got = [len(decoder.decode(packets[1]).events) for _ in range(30)]
    assert got == [4] + [0] * 8 + [4] * 21
    assert decoder.counters.repeated_packets == 8


def test_a_driver_that_restarts_early_begins_anew():
    packets = list(packetize(stream_of(40, start_us=1000), 4.0))
    decoder = PacketDecoder()
    for p in packets[:5]:
        decoder.decode(p)
    later = [replace(p, header=Header(Stamp.from_ns(10**9 + p.seq))) for p in packets]
    assert decoder.decode(later[2]).clock_reset
    assert not any(decoder.decode(p).clock_reset for p in later[3:])
    assert decoder.counters.late_packets == decoder.counters.repeated_packets == 0


def test_a_constant_seq_is_no_loss():
    decoder = PacketDecoder()
    for p in packetize(stream_of(40), 4.0):
        assert decoder.decode(replace(p, seq=0)).discontinuity is None
    assert decoder.counters.lost_packets == 0


def mono_words(rows: list[tuple[int, int, int, int]]) -> bytes:
    """(ns after time_base, x, y, p) as mono words."""
    return b"".join((p << 63 | y << 48 | x << 32 | t).to_bytes(8, "little") for t, x, y, p in rows)


def libcaer_words(rows: list[tuple[int, int, int, int]], valid: int = 1) -> bytes:
    """(us, x, y, p) as libcaer polarity events."""
    return b"".join(
        (x << 17 | y << 2 | p << 1 | valid).to_bytes(4, "little") + t.to_bytes(4, "little")
        for t, x, y, p in rows
    )


def test_mono_golden_words():
    rows = [(0, 1, 2, 1), (999_999_999, 639, 479, 0), (4_294_967_295, 5, 6, 1)]
    p = packet(mono_words(rows), encoding="mono", time_base=10**18)
    decoded = PacketDecoder().decode(p)
    assert rows_of(decoded.events) == [(10**18 + t, x, y, p) for t, x, y, p in rows]


def test_libcaer_golden_words_and_rollover():
    top = (1 << 31) - 2
    rows = [(top, 1, 2, 1), (top + 1, 639, 479, 0), (0, 5, 6, 1), (3, 7, 8, 0)]
    p = packet(libcaer_words(rows), encoding="libcaer", time_base=10**18)
    decoded = PacketDecoder().decode(p)
    us = [top, top + 1, top + 2, top + 5]
    expected = [(10**18 + u * 1000, *r[1:]) for u, r in zip(us, rows, strict=True)]
    assert rows_of(decoded.events) == expected


def test_libcaer_drops_invalid_and_outside_events_and_counts_them():
    payload = libcaer_words([(1, 1, 1, 1)], valid=0) + libcaer_words([(2, 640, 1, 1), (3, 1, 1, 0)])
    decoder = PacketDecoder()
    assert len(decoder.decode(packet(payload, encoding="libcaer")).events) == 1
    assert decoder.counters.invalid_events == decoder.counters.out_of_bounds_events == 1


@pytest.mark.parametrize(
    ("encoding", "payload", "word"),
    [
        ("mono", mono_words([(5, 1, 2, 1), (9, 3, 4, 0)]), 8),
        ("libcaer", libcaer_words([(5, 1, 2, 1), (9, 3, 4, 0)]), 4),
        ("evt3", to_bytes([high(1), low(2), row(3), event(4, 1), base(9, 0), vect12(0x801)]), 2),
    ],
)
def test_big_endian_words(encoding: str, payload: bytes, word: int):
    swapped = np.frombuffer(payload, np.uint8).reshape(-1, word)[:, ::-1].tobytes()
    little = PacketDecoder().decode(packet(payload, encoding=encoding))
    big = PacketDecoder().decode(packet(swapped, encoding=encoding, big_endian=True))
    assert len(little.events)
    assert rows_of(big.events) == rows_of(little.events)


@pytest.mark.parametrize("encoding", ["mono", "libcaer"])
def test_fixed_size_steps_back_across_packets(encoding: str):
    words = mono_words if encoding == "mono" else libcaer_words
    scale = 1 if encoding == "mono" else 1000
    decoder = PacketDecoder()

    def decode(seq: int, times_us: list[int]) -> DecodedPacket:
        payload = words([(t * 1000 // scale, 1, 1, 1) for t in times_us])
        return decoder.decode(packet(payload, seq, encoding=encoding))

    assert decode(0, [50_000, 60_000]).events.t.tolist() == [50_000_000, 60_000_000]
    assert decode(1, [55_000, 61_000]).events.t.tolist() == [60_000_000, 61_000_000]
    assert decoder.counters.time_steps_back == 1
    back = decode(2, [62_000, 10_000, 11_000])
    assert back.events.t.tolist() == [10_000_000, 11_000_000]
    assert back.clock_reset
    assert decoder.counters.discarded_events == 1


def test_payload_kinds():
    payload = to_bytes([high(1), low(2), row(3), event(4, 1)])
    shifted = np.frombuffer(b"_" + payload, np.uint8)[1:]  # at an odd address
    kinds = [payload, bytearray(payload), memoryview(payload), array.array("B", payload)]
    for kind in [*kinds, list(payload), np.frombuffer(payload, np.uint8), shifted]:
        assert len(PacketDecoder().decode(packet(kind)).events) == 1
    mono = np.frombuffer(b"___" + mono_words([(5, 1, 2, 1)]), np.uint8)[3:]
    assert len(PacketDecoder().decode(packet(mono, encoding="mono")).events) == 1
    view = payload_bytes(array.array("B", payload))
    assert not view.flags.owndata
    for bad in (np.frombuffer(payload, np.uint8)[::2], None, "text", [300], 7):
        with pytest.raises(PacketError, match="expected contiguous bytes"):
            PacketDecoder().decode(packet(bad))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (packet(b"", encoding="evt4"), "'evt4', expected one of evt3, evt2, evt21"),
        (packet(b"1234567", encoding="mono"), "7 bytes, expected a multiple of 8"),
        (packet(b"123456789", encoding="libcaer"), "9 bytes, expected a multiple of 8"),
        (packet(b"123", encoding="libcaer_cmp"), "3 bytes, expected a multiple of 2"),
        (packet(b"1" * 16, encoding="event_array"), "16 bytes, expected 16 n - 3"),
        (packet(b"1" * 14, encoding="event_array_ros1"), "14 bytes, expected a multiple of 13"),
        (packet(b"1" * 15, encoding="dv"), "15 bytes, expected a multiple of 16"),
        (packet(b"", encoding="mono", time_base=2**64 - 1), "time_base"),
        (packet(b"", encoding="libcaer_cmp", time_base=2**64 - 1), "time_base"),
        (packet(b"", width=0), "sensor size is 0 x 480"),
        (packet(b"", height=2**31), "sensor size"),
    ],
)
def test_bad_packets_are_refused_and_the_stream_goes_on(bad: EventPacket, message: str):
    good = list(packetize(stream_of(20), 4.0))
    decoder = PacketDecoder()
    assert len(decoder.decode(good[0]).events) == 4
    with pytest.raises(PacketError, match=message) as caught:
        decoder.decode(replace(bad, seq=1))
    assert "\n" not in str(caught.value)
    after = decoder.decode(good[2])
    assert "rejected" in str(after.discontinuity)
    assert rows_of(after.events) == rows_of(stream_of(20)[8:12])
    assert decoder.decode(good[3]).discontinuity is None
    assert decoder.counters.rejected_packets == 1
    assert decoder.counters.lost_packets == 0


def test_a_change_of_format_starts_anew():
    good = list(packetize(stream_of(20), 4.0))
    decoder = PacketDecoder()
    decoder.decode(good[0])
    decoded = decoder.decode(replace(good[2], width=320))
    assert "format changed" in str(decoded.discontinuity)
    assert decoded.events.width == 320
    assert decoder.counters.lost_packets == 1


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["evt3", "mono", "libcaer"]),
            st.one_of(st.binary(max_size=200), st.lists(any_words, max_size=60).map(to_bytes)),
            st.integers(0, 2**64 - 1),
            st.integers(0, 20),
            st.integers(0, 2**62),
        ),
        max_size=8,
    )
)
def test_hostile_packets_are_survived_and_counted(packets: list[tuple[str, bytes, int, int, int]]):
    decoder, last = PacketDecoder(), None
    for encoding, payload, time_base, seq, stamp in packets:
        sent = packet(
            payload, seq, encoding=encoding, time_base=time_base, stamp_ns=stamp, width=700
        )
        try:
            decoded = decoder.decode(sent)
        except PacketError:
            continue
        t = decoded.events.t
        if decoded.clock_reset:
            last = None
        if len(t):
            assert np.all(np.diff(t) >= 0)
            assert last is None or t[0] >= last
            assert decoded.events.x.max() < 700
            assert decoded.events.y.max() < HEIGHT
            last = t[-1]
    counters = decoder.counters
    assert counters.events == counters.on_events + counters.off_events
    past = counters.late_packets + counters.repeated_packets
    assert counters.packets + counters.rejected_packets + past == len(packets)
    assert all(isinstance(value, int) and value >= 0 for value in asdict(counters).values())


events_strategy = st.lists(
    st.tuples(
        st.integers(0, 30_000_000), st.integers(0, 639), st.integers(0, 479), st.integers(0, 1)
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(events_strategy, st.integers(0, 2**40))
def test_encoder_round_trip(rows: list[tuple[int, int, int, int]], start_us: int):
    rows = sorted(rows)
    columns = np.array(rows, np.int64).reshape(-1, 4)
    t = (columns[:, 0] + start_us) * 1000 + 123  # what is below 1 us is cut off
    x, y = columns[:, 1].astype(np.uint16), columns[:, 2].astype(np.uint16)
    events = Events(t, x, y, columns[:, 3].astype(np.uint8), WIDTH, HEIGHT)
    offset = start_us // US_PER_WRAP * US_PER_WRAP * 1000
    if len(events):
        offset = int(t[0]) // 1000 // US_PER_WRAP * US_PER_WRAP * 1000
    whole = Evt3Stream().decode(payload_bytes(encode_evt3(events)), WIDTH, HEIGHT)
    decoder = PacketDecoder()
    parts = [decoder.decode(p).events for p in packetize(events, 4.0)]
    assert decoder.counters.clock_resets == decoder.counters.lost_packets == 0
    for got in (whole, Events.concatenate([*parts, Events.empty(WIDTH, HEIGHT)])):
        assert np.array_equal(got.t + offset, t // 1000 * 1000)
        assert np.array_equal(got.x, x)
        assert np.array_equal(got.y, y)
        assert np.array_equal(got.p, events.p)


def test_packets_are_stamped_and_counted_like_a_drivers():
    events = stream_of(1000, start_us=5_000_000)
    packets = list(packetize([events[:17], events[17:600], events[600:]], 4.0, frame_id="cam"))
    assert [p.seq for p in packets] == list(range(250))
    words = [np.frombuffer(p.events, "<u2") for p in packets]
    assert all(w[0] >> 12 == 0x8 and 0x0 in (w[:3] >> 12) for w in words)
    stamps = [p.header.stamp.sec * 10**9 + p.header.stamp.nanosec for p in packets]
    assert stamps == events.t[::4].tolist()
    assert all(isinstance(p, PacketLike) and p.header.frame_id == "cam" for p in packets)


def test_a_silence_is_bridged_by_packets_of_time_words():
    events = Events.concatenate([stream_of(8), stream_of(8, start_us=40_000_000)])
    packets = list(packetize(events, 4.0))
    assert len(packets) == 2 + 9 + 2
    for stamped in (True, False):
        decoder = PacketDecoder()
        sent = packets if stamped else [replace(p, header=Header()) for p in packets]
        got = Events.concatenate([decoder.decode(p).events for p in sent])
        assert got.t.tolist() == events.t.tolist()
        assert decoder.counters.clock_gaps == decoder.counters.clock_resets == 0


def test_encoder_refuses_what_it_cannot_hold():
    encoder = Evt3Encoder()
    encoder.encode(stream_of(10))
    with pytest.raises(ValueError, match="run backwards"):
        encoder.encode(stream_of(10))
    huge = stream_of(2)
    wide = Events(huge.t, np.array([0, 2048], np.uint16), huge.y, huge.p, 4096, HEIGHT)
    with pytest.raises(ValueError, match="x 2048"):
        encode_evt3(wide)
    with pytest.raises(ValueError, match="gap of"):
        encode_evt3(stream_of(2, step_us=10**12))


def decode_all(path: Path) -> tuple[PacketDecoder, Events]:
    decoder = PacketDecoder()
    parts = []
    for p in open_recording(path).packets():
        assert isinstance(p, EventPacket)
        decoded = decoder.decode(p)
        assert decoded.discontinuity is None
        parts.append(decoded.events)
    return decoder, Events.concatenate(parts)


@needs_bags
def test_golden_evt3_bags():
    both = [decode_all(DATA / "bags" / name) for name in ("test_events_1", "test_events_1.bag")]
    for decoder, events in both:
        assert decoder.counters.on_events == 125_183
        assert decoder.counters.off_events == 218_291
        assert decoder.counters.trigger_events == 4_157
        assert decoder.counters.time_steps_back == decoder.counters.unknown_words == 0
        assert np.all(np.diff(events.t) >= 0)
    for name in ("t", "x", "y", "p"):
        assert np.array_equal(getattr(both[0][1], name), getattr(both[1][1], name))


@needs_bags
def test_golden_libcaer_rollover():
    decoder, events = decode_all(DATA / "bags" / "test_data_libcaer_rollover")
    assert decoder.counters.events == 334_331
    assert decoder.counters.time_steps_back == 0
    assert np.diff(events.t).max() < 10_000_000
    assert 1_702_309_120 < events.t[0] / 1e9 < 1_702_309_121


@needs_bags
def test_golden_mono():
    decoder, events = decode_all(DATA / "bags" / "test_data_mono_cd")
    assert decoder.counters.events == 100
    assert events.t.tolist() == list(range(0, 100_000, 1000))


def raw_words() -> bytes:
    data = (DATA / "prophesee_raw" / "evt3_1280x720_gen41_8p8ms.raw").read_bytes()
    while data.startswith(b"%"):
        data = data[data.index(b"\n") + 1 :]
    return data


@needs_raw
def test_golden_raw_words():
    part = Evt3Stream().decode(payload_bytes(raw_words()), 1280, 720)
    assert len(part.t) == 219_596
    assert part.steps_back == 9
    assert part.unsynchronised == part.out_of_bounds == part.resets == 0
    assert np.all(np.diff(part.t) >= 0)


@needs_raw
def test_second_opinion_of_the_evt3_package():
    evt3 = pytest.importorskip("evt3")
    data = raw_words()
    part = Evt3Stream().decode(payload_bytes(data), 1280, 720)
    other = evt3.Decoder(sensor_width=1280, sensor_height=720).feed(data)
    assert np.array_equal(part.x, other.x)
    assert np.array_equal(part.y, other.y)
    assert np.array_equal(part.p, other.p)
    assert np.array_equal(part.t // 1000, np.maximum.accumulate(other.t.astype(np.int64)))


def test_no_packet_waits_for_the_compiler() -> None:
    """In a process of its own: here all is compiled long since."""
    script = """
import numpy as np
from event_binning_grad.events import decoder, evt2, evt3, fixed_size, libcaer_cmp, part, time_rules
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.encoder import ENCODERS
from event_binning_grad.events.types import EventPacket, Events, Header, Stamp

def compiled():
    modules = evt2, evt3, fixed_size, libcaer_cmp, part, time_rules
    found = [vars(m)[name] for m in modules for name in vars(m)]
    return {(f.__name__, str(s)) for f in found if hasattr(f, "signatures") for s in f.signatures}

decoder.warm_up()
before = compiled()
rng = np.random.default_rng(0)
t = np.sort(rng.integers(0, 4_000_000, 500)) // 1000 * 1000
x, y, p = rng.integers(0, 64, 500), rng.integers(0, 48, 500), rng.integers(0, 2, 500)
events = Events(t, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8), 64, 48)
for encoding, encode in ENCODERS.items():
    for width in (64, 32):  # the half of them outside
        time_base, words = encode(events)
        packet = EventPacket(
            Header(Stamp(1, 0), "camera"), 48, width, 0, time_base, encoding, False, bytes(words)
        )
        PacketDecoder().decode(packet)
print(sorted(compiled() - before))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
