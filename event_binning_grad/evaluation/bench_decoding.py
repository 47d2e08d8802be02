"""How many events a second each decoder takes on one core, from packet bytes to Events."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.encoder import ENCODERS
from event_binning_grad.events.types import NS_PER_MS, EventPacket, Events, Header, Stamp

if TYPE_CHECKING:
    from rich.console import Console

    from event_binning_grad.evaluation.parts import Settings

WIDTH, HEIGHT = 1280, 720
MEV_S = 50.0  # the most that a Prophesee HD sensor was seen to send
PACKETS_MS = (1.0, 4.0)
STREAM_MS = 40.0
REPETITIONS, QUICK_REPETITIONS = 9, 2


def bench_decoding(
    console: Console, settings: Settings, _parts: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Prints and returns Mev/s of thread time, by encoding and packet length in ms.

    The stream has 50 Mev/s on 1280 x 720 pixels, in rows: on each, runs of pixels fire together
    as they do at edges. The best of some repetitions over 40 ms of it is taken: others' load on
    the machine only slows.
    """
    from rich.table import Table

    from event_binning_grad.events.decoder import warm_up

    warm_up()
    repetitions = QUICK_REPETITIONS if settings.quick else REPETITIONS
    events = dense_events(STREAM_MS)
    figures: dict[str, dict[str, float]] = {}
    table = Table(title="Decoders, Mev/s of one core")
    for column in ("encoding", "bytes an event", *(f"packets of {ms:g} ms" for ms in PACKETS_MS)):
        table.add_column(column)
    for encoding, encode in ENCODERS.items():
        figures[encoding], size = {}, 0.0
        for packet_ms in PACKETS_MS:
            packets = packets_of(events, encoding, encode, packet_ms)
            figures[encoding][f"{packet_ms:g}_ms"] = max(
                _mev_s(packets) for _ in range(repetitions)
            )
            size = sum(len(packet.events) for packet in packets) / len(events)
            figures[encoding]["bytes_an_event"] = size
        rates = (figures[encoding][f"{ms:g}_ms"] for ms in PACKETS_MS)
        table.add_row(encoding, f"{size:.1f}", *(f"{rate:.0f}" for rate in rates))
    console.print(table)
    return figures


def dense_events(duration_ms: float, seed: int = 0) -> Events:
    """A dense stream: every microsecond one row fires, in runs of pixels of one polarity."""
    rng = np.random.default_rng(seed)
    total, runs = round(MEV_S * 1e3 * duration_ms), []
    length = rng.integers(1, 24, total // 8)
    length = length[: int(np.searchsorted(np.cumsum(length), total))]
    n = int(length.sum())
    start = np.repeat(np.cumsum(length) - length, length)
    runs = [np.repeat(rng.integers(0, high, len(length)), length) for high in (WIDTH - 24, HEIGHT)]
    x = runs[0] + np.arange(n) - start
    p = np.repeat(rng.integers(0, 2, len(length)), length)
    first_us = np.linspace(0, duration_ms * 1e3, len(length), endpoint=False).astype(np.int64)
    t = (1_000_000 + np.repeat(first_us, length)) * 1000
    return Events(
        t, x.astype(np.uint16), runs[1].astype(np.uint16), p.astype(np.uint8), WIDTH, HEIGHT
    )


def packets_of(
    events: Events,
    encoding: str,
    encode: Callable[[Events], tuple[int, NDArray[np.uint8]]],
    packet_ms: float,
) -> list[EventPacket]:
    """The events in packets of this length."""
    slots = (events.t - events.t[0]) // round(packet_ms * NS_PER_MS)
    borders = [*np.searchsorted(slots, np.arange(int(slots[-1]) + 1)).tolist(), len(events)]
    packets = []
    for seq, (start, stop) in enumerate(pairwise(borders)):
        part = events[start:stop]
        time_base, data = encode(part)
        header = Header(Stamp.from_ns(int(part.t[0])), "")
        packets.append(EventPacket(header, HEIGHT, WIDTH, seq, time_base, encoding, False, data))
    return packets


def _mev_s(packets: Sequence[EventPacket]) -> float:
    decoder: Any = PacketDecoder()
    start = time.thread_time()
    for packet in packets:
        decoder.decode(packet)
    return decoder.counters.events / (time.thread_time() - start) * 1e-6
