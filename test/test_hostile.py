"""Damaged and hostile packets: no crash, no hang, no unbounded memory, every one counted."""

from __future__ import annotations

import tracemalloc
from dataclasses import asdict

import numpy as np
import pytest

from event_binning_grad.errors import PacketError
from event_binning_grad.events.decoder import SUPPORTED_ENCODINGS, PacketDecoder, warm_up
from event_binning_grad.events.encoder import ENCODERS
from event_binning_grad.events.event_arrays import event_array_packet
from event_binning_grad.events.types import EventPacket, Events, Header, Stamp

PACKETS = 10_000  # of each encoding
WIDTH, HEIGHT = 320, 240


def valid_payload(encoding: str, rng: np.random.Generator) -> bytes:
    count = int(rng.integers(1, 25))
    t = np.sort(rng.integers(0, 10**7, count)) // 1000 * 1000
    x, y = rng.integers(0, (WIDTH, HEIGHT), (count, 2)).T.astype(np.uint16)
    p = rng.integers(0, 2, count, dtype=np.uint8)
    encode = ENCODERS.get(encoding, ENCODERS["mono"])
    return encode(Events(t, x, y, p, WIDTH, HEIGHT))[1].tobytes()


def mutated(payload: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(payload)
    for _ in range(int(rng.integers(0, 6))):
        if data:
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
    kind = int(rng.integers(6))
    if kind == 0:
        return bytes(data[: int(rng.integers(len(data) + 1))])
    if kind == 1:
        at = int(rng.integers(len(data) + 1))
        return bytes(data[:at] + rng.bytes(int(rng.integers(20))) + data[at:])
    if kind == 2:
        return rng.bytes(int(rng.integers(200)) // 16 * 16)
    return bytes(data)


def countable(encoding: str, payload: bytes, big: bool) -> int | None:
    """The events in a packet where its bytes alone tell."""
    if encoding in ("mono", "libcaer"):
        return len(payload) // 8
    if encoding in ("event_array", "event_array_ros1", "dv"):
        return -(-len(payload) // (13 if encoding == "event_array_ros1" else 16))
    if encoding == "libcaer_cmp":
        words = np.frombuffer(payload, ">u2" if big else "<u2")
        ones = sum(int(word & 0xFF).bit_count() for word in words[words >> 12 == 5])
        return ones + int(np.count_nonzero(words >> 12 == 3))
    return None


@pytest.mark.parametrize("encoding", SUPPORTED_ENCODINGS)
def test_mutated_packets(encoding: str):
    warm_up()
    rng = np.random.default_rng(len(encoding))
    decoder, last, encoded = PacketDecoder(), None, 0
    payloads = [valid_payload(encoding, rng) for _ in range(50)]
    seq, lines = 0, {0}
    tracemalloc.start()
    for number in range(PACKETS):
        payload = mutated(payloads[number % 50], rng)
        jump = int(rng.integers(40))
        seq = max(0, seq + (-3 if jump == 0 else 4 if jump == 1 else 1))
        big = bool(rng.integers(10) == 0) and number > PACKETS // 2
        sent = EventPacket(
            Header(Stamp.from_ns(int(rng.integers(2**62)) if jump == 2 else number * 10**6), ""),
            HEIGHT,
            WIDTH,
            seq,
            int(rng.integers(2**63, dtype=np.uint64)) if jump == 3 else number * 10**6,
            encoding,
            big,
            np.frombuffer(payload, np.uint8),
        )
        decoded_before = decoder.counters.packets
        try:
            decoded = decoder.decode(sent)
        except PacketError as error:
            lines.add(str(error).count("\n"))
            continue
        if decoder.counters.packets > decoded_before:
            encoded += countable(encoding, payload, big) or 0
        t = decoded.events.t
        if decoded.clock_reset:
            last = None
        if len(t):
            assert t[0] <= t[-1]
            assert last is None or t[0] >= last
            assert decoded.events.x.max() < WIDTH
            assert decoded.events.y.max() < HEIGHT
            assert decoded.events.p.max() <= 1
            assert np.all(t[1:] >= t[:-1])
            last = t[-1]
        assert len(decoded.triggers) <= len(payload)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    assert lines == {0}
    c = decoder.counters
    assert c.packets + c.rejected_packets + c.late_packets + c.repeated_packets == PACKETS
    assert c.events == c.on_events + c.off_events
    assert all(isinstance(value, int) and value >= 0 for value in asdict(c).values())
    if encoding in ("mono", "libcaer", "libcaer_cmp", "event_array", "event_array_ros1", "dv"):
        assert encoded == (
            c.events
            + c.out_of_bounds_events
            + c.unsynchronised_events
            + c.discarded_events
            + c.invalid_events
        )


@pytest.mark.parametrize("ros1", [False, True])
def test_mutated_event_array_messages(ros1: bool):
    from test_decoders_encodings import message, random_events, rows_of

    rng, whole = np.random.default_rng(1), message(rows_of(random_events(6)), ros1=ros1)
    good, lines = 0, {0}
    for _ in range(PACKETS // 2):
        data = mutated(whole, rng)
        try:
            made = event_array_packet(data, 0, ros1=ros1)
        except PacketError as error:
            lines.add(str(error).count("\n"))
            continue
        decoded = PacketDecoder().decode(made)
        good += 1
        assert len(decoded.events) <= len(data)
    assert 0 < good < PACKETS // 2
    assert lines == {0}
