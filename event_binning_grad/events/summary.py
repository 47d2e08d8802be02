"""What a recording holds, by one pass over it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import EventBinningError, PacketError
from event_binning_grad.events.bag_messages import (
    IMAGE_TYPE,
    IMU_TYPE,
    RANGE_TYPE,
    TWIST_TYPE,
)
from event_binning_grad.events.bags import BagRecording
from event_binning_grad.events.decoder import DecoderCounters, PacketDecoder
from event_binning_grad.events.hot_pixels import JUDGED_EACH_NS, MASK_FROM, HotPixels
from event_binning_grad.events.recordings import Recording
from event_binning_grad.events.repacking import packets_and_edges
from event_binning_grad.events.time_rules import MAX_STEP_BACK_NS
from event_binning_grad.events.types import (
    NS_PER_MS,
    NS_PER_S,
    EventPacket,
    Events,
    Triggers,
    stamp_to_ns,
)

# The curve of the rate: its bins grow tenfold when there are too many of them, so that the memory
# is bounded; the peak is always that of PEAK_NS.
PEAK_NS = 10 * NS_PER_MS
MAX_BINS = 6000
# Packets are not delayed so much: the one clock or the other was set.
CLOCK_JUMP_NS = NS_PER_S // 2
MAX_DISCONTINUITIES = 20

_CLOCK_COUNTERS = ("clock_resets", "clock_gaps", "time_steps_back")
_PACKET_COUNTERS = ("lost_packets", "late_packets", "repeated_packets", "cut_packets")
_EVENT_COUNTERS = (
    "out_of_bounds_events", "unsynchronised_events", "discarded_events", "invalid_events",
    "unknown_words", "lost_triggers",
)  # fmt: skip


@dataclass
class Summary:
    """What `summarise` found. Times are in ns, on the clock of the events unless it says stamp.

    clock_jumps: how often sensor time and header stamps went apart by more than CLOCK_JUMP_NS from
        one packet to the next.
    sequence_gaps: how often seq went on by more than one; decoder.lost_packets is how many
        packets are missing there.
    duration_ns: what the events span; where the clock was set back, the sum of the spans.
    rate: events in each bin of rate_bin_ns, from the first event on, the spans one after another.
    discontinuities: (duration_ns so far, why), the first MAX_DISCONTINUITIES.
    warnings: what is wrong with the recording's files, a line each.
    hot_pixels: bool [H, W], by the rule of the pipeline's load control; None where the recording
        is too short to learn them. hot_pixel_events: events that these pixels ever fired.
    """

    recording: str
    kind: str
    width: int | None
    height: int | None
    encoding: str = ""
    packets: int = 0
    events: int = 0
    on_events: int = 0
    first_event_ns: int | None = None
    last_event_ns: int | None = None
    first_stamp_ns: int | None = None
    last_stamp_ns: int | None = None
    duration_ns: int = 0
    longest_silence_ns: int = 0
    peak_events: int = 0
    rate: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    rate_bin_ns: int = PEAK_NS
    clock_jumps: int = 0
    sequence_gaps: int = 0
    discontinuities: list[tuple[int, str]] = field(default_factory=list)
    decoder: DecoderCounters = field(default_factory=DecoderCounters)
    rejected: Counter[str] = field(default_factory=Counter)
    unusable: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    triggers_rising: int = 0
    triggers_falling: int = 0
    hot_pixels: NDArray[np.bool_] | None = None
    hot_pixel_events: int = 0
    calibration: str = ""
    ground_truth: str = ""
    flow_truth: str = ""
    companions: list[str] = field(default_factory=list)
    topics: dict[str, str] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """The same as what JSON can hold, with units in the names."""
        counted = asdict(self.decoder)
        seconds = self.duration_ns / NS_PER_S
        hot = None
        if self.hot_pixels is not None:
            rows, columns = np.nonzero(self.hot_pixels)
            hot = [[int(x), int(y)] for x, y in zip(columns, rows, strict=True)]
        clock = {name: counted[name] for name in _CLOCK_COUNTERS}
        clock["clock_jumps"] = self.clock_jumps
        packets = {name: counted[name] for name in _PACKET_COUNTERS}
        packets["sequence_gaps"] = self.sequence_gaps
        return {
            "recording": self.recording,
            "kind": self.kind,
            "width": self.width,
            "height": self.height,
            "encoding": self.encoding or "arrays",
            "packets": self.packets,
            "events": self.events,
            "on_events": self.on_events,
            "off_events": self.events - self.on_events,
            "duration_s": seconds,
            "first_event_ns": self.first_event_ns,
            "last_event_ns": self.last_event_ns,
            "first_stamp_ns": self.first_stamp_ns,
            "last_stamp_ns": self.last_stamp_ns,
            "mean_rate_hz": self.events / seconds if seconds else 0.0,
            "peak_rate_hz": self.peak_events * NS_PER_S / min(PEAK_NS, self.duration_ns or PEAK_NS),
            "rate_bin_ms": self.rate_bin_ns // NS_PER_MS,
            "rate_events": self.rate.tolist(),
            "longest_silence_s": self.longest_silence_ns / NS_PER_S,
            "clock": clock,
            "packet_problems": packets,
            "rejected_packets": dict(self.rejected),
            "event_problems": {name: counted[name] for name in _EVENT_COUNTERS},
            "unusable": self.unusable,
            "warnings": self.warnings,
            "discontinuities": [
                {"after_s": after_ns / NS_PER_S, "reason": reason}
                for after_ns, reason in self.discontinuities
            ],
            "triggers_rising": self.triggers_rising,
            "triggers_falling": self.triggers_falling,
            "hot_pixels": hot,
            "hot_pixel_events": self.hot_pixel_events,
            "calibration": self.calibration,
            "ground_truth": self.ground_truth,
            "flow_truth": self.flow_truth,
            "companions": self.companions,
            "topics": self.topics,
        }


def summarise(recording: Recording, progress: Callable[[int], None] | None = None) -> Summary:
    """Reads all events of a recording once, in bounded memory.

    progress: gets how many events came, now and then.
    Raises RecordingError if it cannot be read to its end.
    """
    summary = Summary(
        recording=str(recording.path),
        kind=recording_kind(recording),
        width=recording.width,
        height=recording.height,
        encoding=getattr(recording, "encoding", ""),
        topics=dict(getattr(recording, "topics", {})),
    )
    _Pass(summary).run(recording, progress or (lambda events: None))
    summary.unusable, summary.warnings = dict(recording.unusable()), list(recording.warnings())
    summary.calibration = _calibration(recording)
    summary.ground_truth, summary.flow_truth = _truth(recording)
    summary.companions = _companions(recording)
    return summary


def recording_kind(recording: Recording) -> str:
    """What format a recording is in, for people."""
    return getattr(recording, "kind", "") or type(recording).__name__.removesuffix("Recording")


class _Pass:
    """The pass over the events: one figure after another is brought up to date."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary
        self._decoder = PacketDecoder()
        summary.decoder = self._decoder.counters
        self._rate = _Rate()
        self._hot: _Hot | None = None
        self._seq: int | None = None
        self._offset_ns: int | None = None  # stamp less sensor time, of the packet before

    def run(self, recording: Recording, progress: Callable[[int], None]) -> None:
        summary = self._summary
        for part in packets_and_edges(recording):
            if isinstance(part, Events):
                self._take(part)
                progress(len(part))
            else:
                progress(self._take_packet(part))
        summary.rate, summary.rate_bin_ns = self._rate.curve()
        summary.peak_events = self._rate.peak
        if self._hot is not None and self._hot.judged >= MASK_FROM:
            summary.hot_pixels = self._hot.ever
            summary.hot_pixel_events = self._hot.events_of(self._hot.ever)

    def _take_packet(self, packet: EventPacket) -> int:
        summary = self._summary
        summary.packets += 1
        summary.encoding = summary.encoding or packet.encoding
        seq, before = int(packet.seq), self._seq
        summary.sequence_gaps += before is not None and seq > before + 1
        self._seq = seq
        stamp_ns = stamp_to_ns(packet.header.stamp)
        if stamp_ns:
            if summary.first_stamp_ns is None:
                summary.first_stamp_ns = stamp_ns
            summary.last_stamp_ns = stamp_ns
        try:
            decoded = self._decoder.decode(packet)
        except PacketError as error:
            summary.rejected[str(error)] += 1
            return 0
        if summary.width is None:
            summary.width, summary.height = packet.width, packet.height
        if decoded.discontinuity is not None:
            self._note(decoded.discontinuity)
        if decoded.clock_reset:
            self._offset_ns = None
        self._count_triggers(decoded.triggers)
        if len(decoded.events):
            self._compare_clocks(stamp_ns, int(decoded.events.t[0]))
            self._take(decoded.events, decoded.clock_reset)
        return len(decoded.events)

    def _count_triggers(self, triggers: Triggers) -> None:
        rising = int(np.count_nonzero(triggers.p))
        self._summary.triggers_rising += rising
        self._summary.triggers_falling += len(triggers) - rising

    def _compare_clocks(self, stamp_ns: int, first_ns: int) -> None:
        if not stamp_ns:
            return
        offset_ns, before = stamp_ns - first_ns, self._offset_ns
        self._offset_ns = offset_ns
        if before is not None and abs(offset_ns - before) > CLOCK_JUMP_NS:
            self._summary.clock_jumps += 1
            jump_s = (offset_ns - before) / NS_PER_S
            self._note(f"the stamps went {jump_s:+.3f} s against the sensor's clock")

    def _note(self, reason: str) -> None:
        found = self._summary.discontinuities
        if len(found) < MAX_DISCONTINUITIES:
            found.append((self._summary.duration_ns, reason))

    def _take(self, events: Events, reset: bool = False) -> None:
        summary = self._summary
        t, first, last = events.t, int(events.t[0]), int(events.t[-1])
        before = summary.last_event_ns
        if before is not None and first < before - MAX_STEP_BACK_NS and not reset:
            self._note(f"time went back by {(before - first) / NS_PER_S:.6f} s")
            reset = True
        if reset or before is None:
            before = first
        summary.longest_silence_ns = max(
            summary.longest_silence_ns, first - before, int(np.diff(t).max(initial=0))
        )
        # Elapsed time: spans one after another.
        elapsed = t - (before - summary.duration_ns)
        self._rate.add(elapsed)
        summary.duration_ns = max(summary.duration_ns, int(elapsed[-1]))
        if summary.first_event_ns is None:
            summary.first_event_ns = first
        summary.last_event_ns = last
        summary.events += len(events)
        summary.on_events += int(np.count_nonzero(events.p))
        size = (events.width, events.height)
        if self._hot is None or self._hot.size != size:
            self._hot = _Hot(*size)
        self._hot.add(events, elapsed)


class _Rate:
    """Events per bin of elapsed time, and the most in PEAK_NS."""

    def __init__(self) -> None:
        self.peak = 0
        self._bins = np.zeros(64, np.int64)
        self._used = 0
        self._bin_ns = PEAK_NS
        self._open = (-1, 0)  # the last bin of PEAK_NS, and the events in it

    def add(self, elapsed: NDArray[np.int64]) -> None:
        elapsed = np.maximum(elapsed, 0)
        last = int(elapsed[-1])
        self._peak(elapsed // PEAK_NS)
        while last // self._bin_ns >= MAX_BINS:
            self._coarsen()
        used = last // self._bin_ns + 1
        if used > len(self._bins):
            grown = np.zeros(min(MAX_BINS, max(used, 2 * len(self._bins))), np.int64)
            grown[: len(self._bins)] = self._bins
            self._bins = grown
        index = elapsed // self._bin_ns
        first = int(index[0])
        counts = np.bincount(index - first)
        self._bins[first : first + len(counts)] += counts
        self._used = max(self._used, used)

    def curve(self) -> tuple[NDArray[np.int64], int]:
        return self._bins[: self._used].copy(), self._bin_ns

    def _peak(self, index: NDArray[np.int64]) -> None:
        starts = np.concatenate([[0], np.flatnonzero(np.diff(index)) + 1, [len(index)]])
        counts = np.diff(starts)
        if int(index[0]) == self._open[0]:
            counts[0] += self._open[1]
        self.peak = max(self.peak, int(counts.max()))
        self._open = (int(index[-1]), int(counts[-1]))

    def _coarsen(self) -> None:
        whole = -(-self._used // 10) * 10
        bins = np.zeros(whole, np.int64)
        bins[: self._used] = self._bins[: self._used]
        self._used = whole // 10
        self._bins[:] = 0
        self._bins[: self._used] = bins.reshape(-1, 10).sum(axis=1)
        self._bin_ns *= 10


class _Hot:
    """The pixels that the pipeline's load control would learn as hot."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.judged = 0
        self.total = np.zeros((height, width), np.int64)
        self.ever = np.zeros((height, width), np.bool_)
        self._pixels = HotPixels(width, height)
        self._due_ns = JUDGED_EACH_NS

    def add(self, events: Events, elapsed: NDArray[np.int64]) -> None:
        while len(events):
            stop = int(np.searchsorted(elapsed, self._due_ns))
            self._count(events[:stop])
            if stop == len(events):
                return
            self.total += self._pixels.counts
            self._pixels.judge()
            self.judged += 1
            self.ever |= self._pixels.mask
            # Periods without events are not judged.
            self._due_ns = (int(elapsed[stop]) // JUDGED_EACH_NS + 1) * JUDGED_EACH_NS
            events, elapsed = events[stop:], elapsed[stop:]

    def _count(self, events: Events) -> None:
        index = events.y.astype(np.int64) * self.size[0] + events.x
        np.add.at(self._pixels.counts.reshape(-1), index, 1)

    def events_of(self, mask: NDArray[np.bool_]) -> int:
        """How many events the pixels of a mask fired."""
        return int((self.total + self._pixels.counts)[mask].sum())


def _calibration(recording: Recording) -> str:
    try:
        info = recording.calibration()
    except EventBinningError as error:
        return f"cannot be used: {error}"
    return "" if info is None else f"{info['distortion_model'] or 'pinhole'}"


def _truth(recording: Recording) -> tuple[str, str]:
    """Where true velocities and true flow are from."""
    if isinstance(recording, BagRecording):
        velocity = recording.companion(TWIST_TYPE, "ground_truth")
        flow = recording.companion(IMAGE_TYPE, "ground_truth", "flow")
        return velocity or "", flow or ""
    return _source(recording.ground_truth), _source(recording.flow_truth)


def _source(read: Callable[[], Any]) -> str:
    try:
        truth = read()
    except EventBinningError as error:
        return f"cannot be used: {error}"
    return "" if truth is None else truth.source


def _companions(recording: Recording) -> list[str]:
    """What other sensors a recording holds."""
    return list(_companion_names(recording))


def _companion_names(recording: Recording) -> Iterator[str]:
    if isinstance(recording, BagRecording):
        for name, type_name, part in (
            ("imu", IMU_TYPE, ""), ("depth", IMAGE_TYPE, "depth"), ("range", RANGE_TYPE, ""),
            ("moving", IMAGE_TYPE, "moving"),
        ):  # fmt: skip
            topic = recording.companion(type_name, part)
            if topic is not None:
                yield f"{name} {topic}"
        return
    for name, reader in (
        ("imu", "inertial"), ("depth", "depth_images"), ("range", "ranges"),
        ("poses", "poses"),
    ):  # fmt: skip
        read = getattr(recording, reader, None)
        if read is None:
            continue
        try:
            content = read()
        except EventBinningError as error:
            yield f"{name} (cannot be used: {error})"
            continue
        if content is None or (isinstance(content, Iterator) and next(content, None) is None):
            continue
        yield name
