"""A recording as if it was live: read in real time, without ROS between the file and the work."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.types import NS_PER_S, EventPacket, Events, stamp_to_ns
from event_binning_grad.sources.source import (
    Item,
    Measurement,
    Opened,
    SourceUnusableError,
    Wait,
)

if TYPE_CHECKING:
    from event_binning_grad.events.recordings import Recording

FRAME_ID = "event_camera"
PACKET_MS = 4.0
# A step back of the stamps, or one forward by more than this, is a clock that was set or another
# recording: nobody wants to wait for it, s.
_LONGEST_PAUSE_S = 60.0
# Waiting is cut into pieces, so that it can be ended, s.
_PATIENCE_S = 0.1
_READINGS = {"imu": ("inertial", "imu", "gyro"), "depth": ("depth_images",), "range": ("ranges",)}


@dataclass(frozen=True)
class FileSource:
    """Any recording that open_recording knows, with the edges of its trigger input.

    rate: speed; 2 is twice as fast as it was.
    loop: begin again at the end.
    wanted: the other sensors to read, "imu", "depth" and "range", where the recording holds them.
    """

    path: Path
    rate: float = 1.0
    loop: bool = False
    wanted: frozenset[str] = frozenset()
    clock: Callable[[], float] = time.monotonic
    ends: bool = True

    @property
    def name(self) -> str:
        return f"the recording {self.path}"

    @cached_property
    def recording(self) -> Recording:
        """It, opened.

        Raises:
            RecordingError: it is not there, cannot be read, or holds no events.
        """
        from event_binning_grad.events.recordings import open_recording

        recording = open_recording(self.path)
        if recording.width is None:
            raise RecordingError(f"{self.path} holds no events")
        return recording

    @property
    def sensors(self) -> frozenset[str]:
        return self.wanted

    def read(self) -> Generator[Item, None, None]:
        try:
            yield from self._read()
        except RecordingError as error:
            raise SourceUnusableError(str(error)) from None

    def _read(self) -> Iterator[Item]:
        recording = self.recording
        text = f"{self.name}: {recording.width}x{recording.height}"
        yield Opened(text, recording.calibration())
        seq = 0
        while True:
            if seq:
                yield Opened(f"{self.name} begins again")
            first_seq = seq
            pace = Pace(self.rate, self.clock)
            for time_ns, item in timed_items(recording, self.wanted, first_seq):
                while (wait_s := pace.wait_s(time_ns)) > 0:
                    yield Wait(min(wait_s, _PATIENCE_S))
                yield item
                if isinstance(item, EventPacket):
                    seq = item.seq + 1
            if not self.loop:
                return


class Pace:
    """Turns times of a recording into times to wait."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._start: tuple[int, float] | None = None
        self._latest_ns = 0

    def wait_s(self, time_ns: int) -> float:
        """How long until it is this time of the recording, s; 0 if it is or was already."""
        now_s = self._clock()
        step_s = (time_ns - self._latest_ns) / NS_PER_S
        if self._start is None or not -1.0 <= step_s <= _LONGEST_PAUSE_S:
            self._start = time_ns, now_s
        self._latest_ns = time_ns
        start_ns, start_s = self._start
        return max(0.0, start_s + (time_ns - start_ns) / NS_PER_S / self._rate - now_s)


def timed_items(
    recording: Any, wanted: Iterable[str], first_seq: int = 0
) -> Iterator[tuple[int, Item]]:
    """The packets of a recording with the edges of its trigger input and its other sensors'
    measurements, in the order of time."""
    streams = [_packets(recording, first_seq), _edges(recording)]
    streams += [_measurements(recording, sensor) for sensor in wanted]
    return heapq.merge(*streams, key=lambda timed: timed[0])


def _packets(recording: Any, first_seq: int) -> Iterator[tuple[int, Item]]:
    contents = iter(recording.packets())
    first = next(contents, None)
    if first is None:
        return
    contents = chain([first], contents)
    if isinstance(first, Events):
        from event_binning_grad.events.encoder import packetize

        contents = packetize(contents, PACKET_MS, frame_id=FRAME_ID, first_seq=first_seq)
    for packet in contents:
        yield stamp_to_ns(packet.header.stamp), packet


def _measurements(recording: Any, sensor: str) -> Iterator[tuple[int, Item]]:
    for name in _READINGS[sensor]:
        read = getattr(recording, name, None)
        readings = None if read is None else read()
        if readings is None:
            continue
        if hasattr(readings, "t_ns"):  # a track
            readings = zip(readings.t_ns.tolist(), readings.angular_velocity, strict=True)
        for stamp_ns, value in readings:
            acceleration = None
            if name == "inertial":
                value, acceleration = value[:3], value[3:]
            yield int(stamp_ns), Measurement(sensor, int(stamp_ns), value, acceleration)
        return


def _edges(recording: Any) -> Iterator[tuple[int, Item]]:
    """Those that a recording holds beside its packets."""
    read = getattr(recording, "triggers", None)
    for edges in () if read is None else read():
        for stamp_ns, p in zip(edges.t.tolist(), edges.p.tolist(), strict=True):
            yield stamp_ns, Measurement("trigger", stamp_ns, bool(p))
