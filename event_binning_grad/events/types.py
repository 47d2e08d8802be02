"""What an event stream is made of: events as arrays, and packets of encoded events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

_DTYPES = (("t", np.int64), ("x", np.uint16), ("y", np.uint16), ("p", np.uint8))


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """Events of one camera as arrays of equal length N, in the order of time.

    t: int64 [N], ns; x: uint16 [N], column; y: uint16 [N], row; p: uint8 [N], 1 = ON, 0 = OFF.
    width, height: size of the sensor in pixels.
    """

    t: NDArray[np.int64]
    x: NDArray[np.uint16]
    y: NDArray[np.uint16]
    p: NDArray[np.uint8]
    width: int
    height: int

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES:
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != self.t.shape or array.ndim != 1:
                raise ValueError(
                    f"Events.{name} is {array.dtype} {list(array.shape)}, "
                    f"expected {np.dtype(dtype)} [{len(self.t)}]"
                )

    def __len__(self) -> int:
        return len(self.t)

    @property
    def mean_time_ns(self) -> int:
        """The mean time of the events, the reference time of a window; 0 for none."""
        return int(self.t[0]) + int((self.t - self.t[0]).mean()) if len(self.t) else 0

    def __getitem__(self, part: slice) -> Events:
        """The events of a slice, as views (nothing is copied)."""
        return Events(
            self.t[part], self.x[part], self.y[part], self.p[part], self.width, self.height
        )

    def copy(self) -> Events:
        """The same events in arrays of their own."""
        return Events(
            self.t.copy(), self.x.copy(), self.y.copy(), self.p.copy(), self.width, self.height
        )

    @classmethod
    def empty(cls, width: int, height: int) -> Events:
        """No events, of a sensor of this size."""
        none = np.empty(0, np.uint16)
        return cls(np.empty(0, np.int64), none, none, np.empty(0, np.uint8), width, height)

    @classmethod
    def concatenate(cls, parts: Sequence[Events]) -> Events:
        """One Events of several, in their order; they must come from one sensor size."""
        sizes = {(part.width, part.height) for part in parts}
        if len(sizes) != 1:
            raise ValueError(f"cannot concatenate events of sensor sizes {sorted(sizes)}: need one")
        width, height = sizes.pop()
        t, x, y, p = (np.concatenate([getattr(e, name) for e in parts]) for name, _ in _DTYPES)
        return cls(t, x, y, p, width, height)


@dataclass(frozen=True, slots=True, eq=False)
class Triggers:
    """Edges of a camera's external trigger input, in their order.

    t: int64 [K], ns, in the clock of the events; p: uint8 [K], 1 = rising, 0 = falling;
    channel: uint8 [K], the input's number.
    """

    t: NDArray[np.int64]
    p: NDArray[np.uint8]
    channel: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, part: slice) -> Triggers:
        """The edges of a slice, as views."""
        return Triggers(self.t[part], self.p[part], self.channel[part])


NO_TRIGGERS = Triggers(np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.uint8))


class StampLike(Protocol):
    """builtin_interfaces/Time, or anything with its fields."""

    @property
    def sec(self) -> int: ...
    @property
    def nanosec(self) -> int: ...


class HeaderLike(Protocol):
    """std_msgs/Header, or anything with its fields."""

    @property
    def stamp(self) -> StampLike: ...
    @property
    def frame_id(self) -> str: ...


@runtime_checkable
class PacketLike(Protocol):
    """event_camera_msgs/EventPacket, or anything with its fields.

    `events` is any buffer of bytes: bytes, array.array('B') (rclpy), a uint8 array (rosbags).
    """

    @property
    def header(self) -> HeaderLike: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def seq(self) -> int: ...
    @property
    def time_base(self) -> int: ...
    @property
    def encoding(self) -> str: ...
    @property
    def is_bigendian(self) -> bool: ...
    @property
    def events(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Stamp:
    """A point in time of the robot's clock, as ROS writes it."""

    sec: int = 0
    nanosec: int = 0

    @classmethod
    def from_ns(cls, time_ns: int) -> Stamp:
        return cls(*divmod(int(time_ns), NS_PER_S))


def stamp_at(time_ns: int) -> Stamp:
    """The stamp of a packet that comes at this time; at 0 it is 1 ns, since 0 means no stamp."""
    return Stamp.from_ns(time_ns or 1)


def stamp_to_ns(stamp: StampLike) -> int:
    """The time of a ROS stamp in ns."""
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


@dataclass(frozen=True, slots=True)
class Header:
    """std_msgs/Header: when the packet's first bytes reached the host, and the camera's frame."""

    stamp: Stamp = field(default_factory=Stamp)
    frame_id: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class EventPacket:
    """The fields of event_camera_msgs/EventPacket without ROS.

    seq counts packets from the camera's start; time_base is in ns and means what the encoding
    says; `events` holds the encoded bytes, uint8 [bytes].
    """

    header: Header
    height: int
    width: int
    seq: int
    time_base: int
    encoding: str
    is_bigendian: bool
    events: NDArray[np.uint8]
