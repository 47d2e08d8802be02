"""Readings of a slow sensor, kept in the order of their time."""

from __future__ import annotations

from bisect import bisect_left
from typing import Generic, TypeVar

from event_binning_grad.errors import ConfigError

T = TypeVar("T")

# A value so long before the last one is not late. The clock was set back, as when a recording is
# played again, and what is held is of another time.
SET_BACK_NS = 1_000_000_000


class Stamped(Generic[T]):
    """The latest values with their times, in the order of time whatever order they came in.

    Attributes:
        stamps_ns: times of the values held, ns, strictly rising.
        values: the values.
        out_of_order: how many came after a later one; they are held like the others.
        duplicates: how many had the time of one held already; the first one stays.
        too_late: how many were older than all held when no more could be.
    """

    def __init__(self, capacity: int) -> None:
        """capacity: values held at most; then the oldest one goes."""
        if capacity < 1:
            raise ConfigError(f"capacity is {capacity}, expected at least 1")
        self._capacity = capacity
        self.stamps_ns: list[int] = []
        self.values: list[T] = []
        self.out_of_order = self.duplicates = self.too_late = 0

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def put(self, stamp_ns: int, value: T) -> bool:
        """Takes a value; returns whether it is held."""
        if self.stamps_ns and stamp_ns < self.stamps_ns[-1] - SET_BACK_NS:
            self.clear()
        at = bisect_left(self.stamps_ns, stamp_ns)
        if at < len(self):
            self.out_of_order += 1
            if self.stamps_ns[at] == stamp_ns:
                self.duplicates += 1
                return False
        if len(self) == self._capacity:
            if at == 0:
                self.too_late += 1
                return False
            del self.stamps_ns[0], self.values[0]
            at -= 1
        self.stamps_ns.insert(at, stamp_ns)
        self.values.insert(at, value)
        return True

    def clear(self) -> None:
        """Forgets the values, not the counts."""
        self.stamps_ns.clear()
        self.values.clear()

    def neighbours(self, stamp_ns: int) -> tuple[int | None, int | None]:
        """Where the last value at or before a time and the first one at or after it lie."""
        at = bisect_left(self.stamps_ns, stamp_ns)
        after = at if at < len(self) else None
        if after is not None and self.stamps_ns[after] == stamp_ns:
            return after, after
        return at - 1 if at else None, after
