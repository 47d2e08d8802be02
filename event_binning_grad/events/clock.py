"""From the sensor's clock to the robot's clock: docs/time.md tells the model and its figures."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from event_binning_grad.errors import ConfigError
from event_binning_grad.events.types import NS_PER_MS, NS_PER_S

CLOCKS = ("auto", "sensor", "arrival")
# Encodings whose event times are the host's already (the driver adds its start time).
EPOCH_ENCODINGS = frozenset({"libcaer", "libcaer_cmp", "event_array", "event_array_ros1", "dv"})

# Such times that lie so far from the stamps are of another clock after all.
FOREIGN_NS = 5 * NS_PER_S
# NTP slews a host's clock by 500 ppm at most, and crystals differ by less than 100.
MAX_DRIFT = 600e-6
# The offset is the least one of so long: jitter is gone by then, and 100 ppm are 0.2 ms.
RECENT_NS = 2 * NS_PER_S
# The drift is fitted over so long, and not before the arrivals span so much of it.
MEMORY_NS = 16 * NS_PER_S
DRIFT_FROM_NS = 4 * NS_PER_S
# Packets that are rare are remembered longer, up to this.
_LONG_MEMORY_NS = 120 * NS_PER_S
_BUCKET_NS = NS_PER_S // 4
_FEW_BUCKETS = 8
# A delay is never negative, so arrivals before what was fitted mean that a clock was set back; but
# as long as little is known, that the packets before were late. One alone means nothing.
STEP_BACK_NS = 2 * NS_PER_MS
YOUNG_STEP_BACK_NS = 50 * NS_PER_MS
STEP_BACK_PACKETS = 3
_YOUNG_PACKETS = 200
# Later arrivals are a delay, unless they stay at least so late for so long and so many packets.
STEP_FORWARD_NS = 10 * NS_PER_MS
STEP_FORWARD_AFTER_NS = NS_PER_S
_STEP_FORWARD_PACKETS = 20
# A correction up to this is spread over the events that follow, at half their time; the robot's
# time never goes backwards by it. Beyond it the clock was set, and so are the times.
MAX_SPREAD_NS = 50 * NS_PER_MS
_SPREAD = 0.5
_CORRECTIONS = 512
_DELAYS = 256


@dataclass
class ClockCounters:
    """What is known of the clocks, and what happened to them since the stream's start."""

    learnt: bool = False
    """The robot's time comes from the arrivals; else the events bring it."""
    offset_ns: int = 0
    """Robot time minus sensor time."""
    drift_ppm: float = 0.0
    """How much faster than the sensor's clock the robot's goes, parts in a million."""
    resets: int = 0
    """How often all was forgotten, because the sensor's clock began anew."""
    steps: int = 0
    """How often the robot's clock was set, by the stamps."""
    last_step_ns: int = 0
    """By how much, the last time."""
    ignored_stamps: int = 0
    """Stamps too early to be a delay, and too few to be a clock that was set."""
    delays_ns: list[int] = field(default_factory=list)
    """How much later than the least delayed the last packets came, ns, in no order."""
    packets: int = 0
    """Packets whose delay was noted."""
    unstamped: int = 0
    """Packets with a stamp of 0, which is none, where it would have told something."""

    def note_delay(self, delay_ns: int) -> None:
        if len(self.delays_ns) < _DELAYS:
            self.delays_ns.append(delay_ns)
        else:  # a list of one length can be copied by another thread meanwhile
            self.delays_ns[self.packets % _DELAYS] = delay_ns
        self.packets += 1

    def delay_ms(self, quantile: float) -> float:
        """A quantile (0 to 1) of delays_ns in ms; NaN while there are none."""
        return float(np.quantile(self.delays_ns, quantile)) / 1e6 if self.delays_ns else np.nan


class StreamClock:
    """The robot's time of a sensor's times: offset and drift, learnt from arrivals.

    A packet's header stamp says when its first bytes reached the host: at or after the time of its
    first event, never before. So stamp - sensor time lies on or above a line, and the packets with
    the least delay on it. Its slope is that of the lower convex hull's edge over the middle of the
    last MEMORY_NS (the line below all points with the least sum of distances: Moon, Skelly and
    Towsley, Estimation and removal of clock skew from network delay measurements, INFOCOM 1999);
    its height is the least one of the last RECENT_NS. Of each quarter of a second only the least
    delayed packet is kept, so the memory is bounded and a packet costs a few microseconds.

    What to_robot() says of a sensor time never changes by what is learnt later, and successive
    times never go backwards, except where a clock was set by more than MAX_SPREAD_NS.

    Args:
        clock: "auto": times that are the host's by their encoding are taken as they are, unless
            they are FOREIGN_NS from their stamps; all others are learnt. "sensor": the events'
            times are the robot's. "arrival": all are learnt.
        epoch: the encoding says that the times are the host's.
        counters: where to go on counting; None for new ones.
    """

    def __init__(
        self, clock: str = "auto", *, epoch: bool = False, counters: ClockCounters | None = None
    ) -> None:
        if clock not in CLOCKS:
            raise ConfigError(f"clock {clock!r}: expected one of {', '.join(CLOCKS)}")
        self._fixed = clock == "sensor"
        self._trusts_epoch = epoch and clock == "auto"
        self.counters = counters or ClockCounters()
        self._forget()

    @classmethod
    def for_encoding(
        cls, encoding: str, clock: str = "auto", counters: ClockCounters | None = None
    ) -> StreamClock:
        """The clock for a stream of packets in this encoding."""
        return cls(clock, epoch=encoding in EPOCH_ENCODINGS, counters=counters)

    @property
    def offset_ns(self) -> int:
        """Robot time minus sensor time at the last packet; 0 as long as nothing is known."""
        return self.to_robot(self._now) - self._now

    def update(self, first_event_t_ns: int, stamp_ns: int, *, provisional: bool = False) -> None:
        """Learns from a packet: its first event's sensor time and its header stamp, both in ns.

        provisional: events before the first one are missing, so that it is later than the stamp
        means; taken only as long as nothing better is known. A stamp of 0 is none, and is ignored.
        """
        if self._fixed:
            return
        if stamp_ns == 0:
            self.counters.unstamped += not self._is_epoch
            return
        now, offset = int(first_event_t_ns), int(stamp_ns) - int(first_event_t_ns)
        if provisional:
            if not self._plans and not self._is_epoch:
                self._provisional_ns = offset
            return
        if now < self._now:
            self.reset()  # the sensor's clock went back: what was learnt is of another clock
        self._now = now
        if self._is_epoch:
            self._watch_epoch(now, offset)
        else:
            self._learn(now, offset)
        self.counters.offset_ns = self.offset_ns
        self.counters.drift_ppm = 1e6 * self._drift
        self.counters.learnt = not self._is_epoch

    def to_robot(self, t_ns: int) -> int:
        """The robot's time in ns for a sensor time; the same number before the first update."""
        t_ns = int(t_ns)
        if not self._plans:
            return t_ns + self._provisional_ns
        for plan in reversed(self._plans):
            if t_ns >= plan.t_ns:
                return plan.to_robot(t_ns)
        return self._plans[0].before(t_ns)

    def reset(self) -> None:
        """Forgets what was learnt: to be called when the sensor's clock began anew."""
        self.counters.resets += 1
        self._forget()

    def _forget(self) -> None:
        self._is_epoch, self._is_first = self._trusts_epoch, True
        self._plans: deque[_Plan] = deque(maxlen=_CORRECTIONS)
        self._provisional_ns = 0
        self._now = -(1 << 62)
        self._drift = 0.0
        self._clear_points()

    def _clear_points(self) -> None:
        # (sensor time, offset) of the least delayed packet of each bucket
        self._points: deque[tuple[int, int]] = deque()
        self._bucket = self._seen = self._late_packets = 0
        self._line: tuple[int, float] | None = None  # a time and the offset there, see _refit
        self._early: list[tuple[int, int]] = []  # arrivals before what was fitted
        self._late: list[tuple[int, int]] = []  # the first of a run of late ones, and the least

    def _watch_epoch(self, now: int, offset: int) -> None:
        """The events' times are the host's, if the first stamp or several do not say otherwise."""
        if abs(offset) < FOREIGN_NS:
            self.counters.note_delay(offset)
            self._is_first = False
            self._early.clear()
        elif self._is_first:
            self._is_epoch = False
            self._learn(now, offset)
        else:
            self._take_foreign(now, offset)

    def _take_foreign(self, now: int, offset: int) -> None:
        self._early.append((now, offset))
        if len(self._early) == STEP_BACK_PACKETS:
            self._is_epoch = False
            self.counters.delays_ns = []
            self.counters.packets = 0
            self._set(list(self._early))

    def _learn(self, now: int, offset: int) -> None:
        if self._line is None:
            self._add(now, offset)
            self._follow(now)
            return
        late = offset - self._line_at(now)
        self._seen += 1
        young = now - self._points[0][0] < DRIFT_FROM_NS or self._seen < _YOUNG_PACKETS
        if late < -(YOUNG_STEP_BACK_NS if young else STEP_BACK_NS):
            self._take_early(now, offset)
        elif late > STEP_FORWARD_NS:
            self._early.clear()
            self._take_late(now, offset)
        else:
            self._early.clear()
            self._late.clear()
            if self.to_robot(now) - now - offset > MAX_SPREAD_NS:
                self._set([(now, offset)])  # a backlog from before the start, known by now as such
            elif self._add(now, offset):
                self._follow(now)
        self.counters.note_delay(max(0, round(offset - self._line_at(now))))

    def _take_early(self, now: int, offset: int) -> None:
        """Several that agree mean that the robot's clock was set back."""
        if self._early and not (
            -YOUNG_STEP_BACK_NS <= offset - self._early[0][1] <= STEP_FORWARD_AFTER_NS
        ):
            self._early.clear()
        self._early.append((now, offset))
        self.counters.ignored_stamps += 1
        if len(self._early) == STEP_BACK_PACKETS:
            self.counters.ignored_stamps -= STEP_BACK_PACKETS
            self._set(list(self._early))

    def _take_late(self, now: int, offset: int) -> None:
        """A run of late arrivals means that the robot's clock was set forward. While the delay
        falls, a backlog is being worked off."""
        if not self._late or offset < self._late[0][1] - STEP_FORWARD_NS:
            self._late, self._late_packets = [(now, offset), (now, offset)], 1
            return
        self._late_packets += 1
        if offset < self._late[1][1]:
            self._late[1] = (now, offset)
        long = now - self._late[0][0] >= STEP_FORWARD_AFTER_NS
        if long and self._late_packets >= _STEP_FORWARD_PACKETS:
            self._set([self._late[1], (now, offset)])

    def _set(self, points: list[tuple[int, int]]) -> None:
        """The clocks differ by something else now: begins again with these arrivals. The drift is
        the crystals', and stays."""
        now = points[-1][0]
        before = self.to_robot(now)
        self._clear_points()
        for point in points:
            self._add(*point)
        step_ns = round(self._line_at(now)) + now - before
        self.counters.steps += 1
        self.counters.last_step_ns = step_ns
        if abs(step_ns) > MAX_SPREAD_NS:
            self._plans.clear()
        self._follow(now)

    def _add(self, now: int, offset: int) -> bool:
        """Keeps the least delayed packet of the bucket; returns whether that is this one."""
        bucket = now // _BUCKET_NS
        if self._points and bucket == self._bucket:
            last_t, last_offset = self._points[-1]
            if offset - last_offset >= self._drift * (now - last_t):
                return False
            self._points[-1] = (now, offset)
        else:
            self._bucket = bucket
            self._points.append((now, offset))
            while self._is_old(now - self._points[0][0]):
                self._points.popleft()
        self._refit(now)
        return True

    def _is_old(self, age_ns: int) -> bool:
        enough = len(self._points) > MEMORY_NS // _BUCKET_NS // 2
        return age_ns > (MEMORY_NS if enough else _LONG_MEMORY_NS)

    def _refit(self, now: int) -> None:
        """The line: drift, and the offset at `now`."""
        if now - self._points[0][0] >= DRIFT_FROM_NS:
            self._drift = min(max(_slope_below(self._points), -MAX_DRIFT), MAX_DRIFT)
        base = self._points[-1][1]  # differences are exact as float64, times since 1970 are not
        least = np.inf
        for count, (t, offset) in enumerate(reversed(self._points)):
            if now - t > RECENT_NS and count >= _FEW_BUCKETS:
                break
            least = min(least, (offset - base) + self._drift * (now - t))
        self._line = (now, base + round(least))

    def _line_at(self, now: int) -> int:
        assert self._line is not None
        t, offset = self._line
        return int(offset) + round(self._drift * (now - t))

    def _follow(self, now: int) -> None:
        """From `now` on the robot's time goes to the line, and along it."""
        target = now + self._line_at(now)
        start = self.to_robot(now) if self._plans else target
        self._plans.append(_Plan(now, start, self._drift, target - start))


@dataclass(frozen=True, slots=True)
class _Plan:
    """From sensor time t_ns on, robot_ns there: goes by `drift` faster, and by `missing_ns` until
    that is made up for."""

    t_ns: int
    robot_ns: int
    drift: float
    missing_ns: int

    def to_robot(self, t_ns: int) -> int:
        since = t_ns - self.t_ns
        made_up = min(abs(self.missing_ns), int(_SPREAD * since))
        return self.before(t_ns) + (made_up if self.missing_ns > 0 else -made_up)

    def before(self, t_ns: int) -> int:
        since = t_ns - self.t_ns
        return self.robot_ns + since + round(self.drift * since)


def _slope_below(points: deque[tuple[int, int]]) -> float:
    """Slope of the line below all points (t rising, offset) with the least sum of distances.

    It is that of the edge of the lower convex hull over the mean of t.
    """
    t0, offset0 = points[0]
    hull: list[tuple[int, int]] = []
    for t, offset in points:
        x, y = t - t0, offset - offset0
        while len(hull) > 1:
            (xa, ya), (xb, yb) = hull[-2], hull[-1]
            if (yb - ya) * (x - xa) < (y - ya) * (xb - xa):
                break
            hull.pop()  # it lies on or above the line from the one before it to this one
        hull.append((x, y))
    mean = sum(t - t0 for t, _ in points) / len(points)
    for (xa, ya), (xb, yb) in pairwise(hull):
        if xb >= mean:
            return (yb - ya) / (xb - xa)
    return 0.0
