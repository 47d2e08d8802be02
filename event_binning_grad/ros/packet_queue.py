"""The queue between the thread that receives packets and the one that works on them."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

Packet = TypeVar("Packet")

# The receiving thread has caught up when packets come within this share of the longest wait.
_CAUGHT_UP = 0.25
# Late for longer than this many times the longest wait, a stream is not catching up: the delay is
# its own, and what comes late is better than nothing.
_CATCH_UP_WAITS = 3.0


@dataclass(frozen=True, slots=True)
class SerializedArray:
    """A message of single events as it came, to be parsed by who works on it.

    data: all of the message, as ROS serialises it. seq counts the messages.
    """

    data: bytes
    seq: int


@dataclass(frozen=True, slots=True)
class Arrival(Generic[Packet]):
    """A packet, and how it came.

    arrival_s: when it came, on the monotonic clock.
    number: how many packets had come with it, dropped ones included.
    shed_before: packets that were dropped between the one before and this one.
    """

    packet: Packet
    arrival_s: float
    number: int
    shed_before: int


class PacketQueue(Generic[Packet]):
    """First in, first out; when a packet has waited too long, all that wait are dropped.

    A stream that is faster than the work must lose packets. Dropping every second one would leave
    no stretch of the stream whole, so no window could be filled. So the oldest are dropped as one
    contiguous block, and what is left is long whole stretches with gaps between them. The block
    takes all that wait, but the newest where that is fresh: the fewer the gaps, the less often the
    estimator has to find its track again, and work goes on with the freshest data.

    A packet may have waited before it came here, in the middleware, when the thread that receives
    was too slow. Then the block goes on until packets come in time again, or have been late for so
    long that they always will be.

    max_wait_s: how long a packet may wait, which bounds both the lag and the memory.
    """

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._waiting: deque[tuple[Packet, float, int, int]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._catching_up = False
        self._late_since_s = 0.0
        self._shed_now = 0  # dropped since the last packet was taken out
        self.received_packets = 0
        self.received_bytes = 0
        self.shed_packets = 0
        self.shed_bytes = 0

    def __len__(self) -> int:
        """Packets that wait."""
        return len(self._waiting)

    def put(self, packet: Packet, arrival_s: float, size: int) -> None:
        """Takes the next packet; never blocks.

        arrival_s: when it reached this machine, on the monotonic clock. size: in bytes.
        """
        now_s = time.monotonic()
        with self._changed:
            self.received_packets += 1
            self.received_bytes += size
            self._waiting.append((packet, arrival_s, size, self.received_packets))
            age_s = now_s - arrival_s
            limit_s = self._max_wait_s * (_CAUGHT_UP if self._catching_up else 1)
            late = age_s > limit_s
            if late and not self._catching_up:
                self._late_since_s = now_s
            elif late and now_s - self._late_since_s > _CATCH_UP_WAITS * self._max_wait_s:
                late = False
            self._catching_up = late
            if late:
                self._shed(keep=0)
            elif self._oldest_age_s(now_s) > self._max_wait_s:
                self._shed(keep=1)
            self._changed.notify()

    def get(self, timeout_s: float) -> Arrival[Packet] | None:
        """The oldest packet that waits; None when none came in time, or the queue is closed."""
        with self._changed:
            if not self._waiting and not self._closed:
                self._changed.wait(timeout_s)
            if self._closed or not self._waiting:
                return None
            # put() alone would leave the last packets of a stream that has stopped.
            if self._oldest_age_s(time.monotonic()) > self._max_wait_s:
                self._shed(keep=1)
            packet, arrival_s, _, number = self._waiting.popleft()
            shed_before, self._shed_now = self._shed_now, 0
            return Arrival(packet, arrival_s, number, shed_before)

    def close(self) -> None:
        """Ends the queue: get() returns None from now on, at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _oldest_age_s(self, now_s: float) -> float:
        return now_s - self._waiting[0][1]

    def _shed(self, keep: int) -> None:
        """Drops the oldest packets, all but the newest `keep`."""
        dropped = [self._waiting.popleft() for _ in range(len(self._waiting) - keep)]
        self._shed_now += len(dropped)
        self.shed_packets += len(dropped)
        self.shed_bytes += sum(size for _, _, size, _ in dropped)
