"""Messages of single events (EventArray of dvs_msgs, prophesee_event_msgs and dv_ros2_msgs) as
packets, without building an object for each event.

All three have the same fields: header, height, width and a sequence of events, each of x, y
(uint16), a time stamp and a polarity. The packet's events are a view of the message's bytes, in
encoding "event_array" (CDR, ROS 2) or "event_array_ros1".
"""

from __future__ import annotations

import struct
from typing import Any

from event_binning_grad.errors import PacketError
from event_binning_grad.events.decoder import MAX_SENSOR_SIDE, payload_bytes
from event_binning_grad.events.fixed_size import EVENT_ARRAY_ROS1_STRIDE, EVENT_ARRAY_STRIDE
from event_binning_grad.events.types import EventPacket, Header, Stamp

# The first two bytes of a ROS 2 message: plain CDR, version 1 or 2, big- or little-endian.
_BIG_ENDIAN = {b"\x00\x00": True, b"\x00\x01": False, b"\x00\x06": True, b"\x00\x07": False}
_ENCAPSULATION_BYTES = 4
_PADDING_BYTES = 3  # behind each event but the last


def event_array_packet(data: Any, seq: int, *, ros1: bool = False) -> EventPacket:
    """The packet of a whole serialised EventArray message.

    Args:
        data: the message's bytes (bytes, uint8 array, any buffer): CDR with its encapsulation
            header, in either byte order, or the serialisation of ROS 1 (ros1=True).
        seq: the packet's number: a ROS 2 message has none.

    Returns:
        A packet whose `events` is a view of `data`, with time_base 0.

    Raises:
        PacketError: the message is cut, or its numbers do not fit its bytes.
    """
    view = payload_bytes(data)
    order, at = ("<", 0) if ros1 else _byte_order(view)
    origin = at
    if ros1:  # the header's own seq comes first
        (_, sec, nanosec, length), at = _numbers(view, order + "IIII", at)
    else:
        (sec, nanosec, length), at = _numbers(view, order + "iII", at)
    if length > len(view) - at:
        raise PacketError(
            f"an EventArray message of {len(view)} bytes says that its frame_id has {length}: it "
            "is cut short, damaged, or of another type"
        )
    frame_id = view[at : at + length].tobytes().rstrip(b"\0").decode("utf-8", "replace")
    at += length
    if not ros1:
        at += -(at - origin) % 4
    (height, width, count), at = _numbers(view, order + "III", at)
    if not (0 < width <= MAX_SENSOR_SIDE and 0 < height <= MAX_SENSOR_SIDE):
        raise PacketError(
            f"the sensor size of an EventArray message is {width} x {height}, expected 1 to "
            f"{MAX_SENSOR_SIDE} pixels a side: the driver must fill width and height"
        )
    size = count * (EVENT_ARRAY_ROS1_STRIDE if ros1 else EVENT_ARRAY_STRIDE)
    if count and not ros1:
        size -= _PADDING_BYTES
    if size > len(view) - at:
        raise PacketError(
            f"an EventArray message says that it has {count} events in {size} bytes, found "
            f"{len(view) - at}: it is cut short or damaged"
        )
    return EventPacket(
        header=Header(Stamp(sec, nanosec), frame_id),
        height=height,
        width=width,
        seq=seq,
        time_base=0,
        encoding="event_array_ros1" if ros1 else "event_array",
        is_bigendian=order == ">",
        events=view[at : at + size],
    )


def _byte_order(view: Any) -> tuple[str, int]:
    """The byte order as struct writes it, and where the message begins."""
    kind = bytes(view[:2])
    if kind not in _BIG_ENDIAN:
        raise PacketError(
            f"an EventArray message begins with the bytes {kind.hex() or '(none)'}, expected the "
            "header of plain CDR (0000, 0001, 0006 or 0007): it is damaged or of ROS 1"
        )
    return (">" if _BIG_ENDIAN[kind] else "<"), _ENCAPSULATION_BYTES


def _numbers(view: Any, form: str, at: int) -> tuple[tuple[int, ...], int]:
    """The numbers at this place, and the place behind them."""
    size = struct.calcsize(form)
    if at + size > len(view):
        raise PacketError(
            f"an EventArray message has {len(view)} bytes, expected at least {at + size}: it is "
            "cut short"
        )
    return struct.unpack_from(form, view, at), at + size
