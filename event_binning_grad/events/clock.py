"""From the sensor's clock to the robot's clock."""

from __future__ import annotations

from collections import deque

from event_binning_grad.events.types import NS_PER_S

# Encodings whose event times are the host's already (the driver adds its start time).
EPOCH_ENCODINGS = frozenset({"libcaer"})


class StreamClock:
    """Offset between a sensor's arbitrary clock and the robot's clock, learnt from arrivals.

    A packet's header stamp says when its first bytes reached the host: at or after the time of its
    first event, never before. So the smallest difference over the last memory_ns is the offset
    with the least delay in it, and it follows the drift of the two clocks against each other.
    A jump forward of the host's clock shows after memory_ns, one backward at once.
    """

    def __init__(self, *, identity: bool = False, memory_ns: int = 5 * NS_PER_S) -> None:
        """identity: the sensor time is the robot's time already, and update() does nothing."""
        self._identity = identity
        self._memory_ns = memory_ns
        # (sensor time, offset) with rising offsets: the first is the smallest in memory.
        self._minima: deque[tuple[int, int]] = deque()
        self._provisional_ns = 0
        self._now = 0

    @classmethod
    def for_encoding(cls, encoding: str) -> StreamClock:
        """The clock for a stream of packets in this encoding."""
        return cls(identity=encoding in EPOCH_ENCODINGS)

    @property
    def offset_ns(self) -> int:
        """Robot time minus sensor time; 0 as long as nothing is known."""
        return self._minima[0][1] if self._minima else self._provisional_ns

    def update(self, first_event_t_ns: int, stamp_ns: int, *, provisional: bool = False) -> None:
        """Learns from a packet: its first event's sensor time and its header stamp, both in ns.

        provisional: events before the first one are missing, so that it is later than the stamp
        means; taken only as long as nothing better is known. A stamp of 0 is none, and is ignored.
        """
        if self._identity or stamp_ns == 0:
            return
        now, offset = int(first_event_t_ns), int(stamp_ns) - int(first_event_t_ns)
        if provisional:
            self._provisional_ns = offset
            return
        if self._minima and now < self._now:
            self.reset()  # the sensor's clock went back: what was learnt is of another clock
        self._now = now
        while self._minima and self._minima[-1][1] >= offset:
            self._minima.pop()
        self._minima.append((now, offset))
        while self._minima[0][0] < now - self._memory_ns:
            self._minima.popleft()

    def to_robot(self, t_ns: int) -> int:
        """The robot's time in ns for a sensor time; the same number before the first update."""
        return int(t_ns) + self.offset_ns

    def reset(self) -> None:
        """Forgets the offset: to be called when the sensor's clock was reset."""
        self._minima.clear()
        self._provisional_ns = 0
