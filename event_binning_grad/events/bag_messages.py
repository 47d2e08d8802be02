"""The messages that bags hold: their types and topics, and how packets, images and the like become
messages of rosbags and come back."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.events.decoder import payload_bytes
from event_binning_grad.events.types import EventPacket, Header, HeaderLike, PacketLike, Stamp

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore

EVENT_PACKET_TYPE = "event_camera_msgs/msg/EventPacket"
# The name before 2023, with the same fields.
EVENT_ARRAY_TYPE = "event_array_msgs/msg/EventArray"
EVENT_TYPES = (EVENT_PACKET_TYPE, EVENT_ARRAY_TYPE)
# Messages of single events.
ARRAY_TYPES = (
    "dvs_msgs/msg/EventArray",
    "prophesee_event_msgs/msg/EventArray",
    "dv_ros2_msgs/msg/EventArray",
)
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
TWIST_TYPE = "geometry_msgs/msg/TwistStamped"
IMAGE_TYPE = "sensor_msgs/msg/Image"
RANGE_TYPE = "sensor_msgs/msg/Range"
IMU_TYPE = "sensor_msgs/msg/Imu"
EVENT_PACKET_DEFINITION = """\
std_msgs/Header header
uint32 height
uint32 width
uint64 seq
uint64 time_base
string encoding
bool is_bigendian
uint8[] events
"""

EVENTS_TOPIC = "/event_camera/events"
CAMERA_INFO_TOPIC = "/event_camera/camera_info"
GROUND_TRUTH_TOPIC = "/event_camera/ground_truth/twist"
TRUE_FLOW_TOPIC = "/event_camera/ground_truth/flow"
MOVING_TOPIC = "/event_camera/ground_truth/moving"
DEPTH_TOPIC = "/event_camera/depth"
RANGE_TOPIC = "/event_camera/range"
IMU_TOPIC = "/event_camera/imu"


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """Message types by our own definitions.

    The definitions in a bag are not used: some hold IDL that rosbags cannot parse, and the types
    needed here are known.
    """
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    for name in EVENT_TYPES:
        store.register(get_types_from_msg(EVENT_PACKET_DEFINITION, name))
    return store


def to_header(header: HeaderLike) -> Any:
    """std_msgs/Header, as rosbags has it."""
    types = typestore().types
    time = types["builtin_interfaces/msg/Time"](header.stamp.sec, header.stamp.nanosec)
    return types["std_msgs/msg/Header"](time, header.frame_id)


def to_message(packet: PacketLike) -> Any:
    """event_camera_msgs/EventPacket of a packet, as rosbags has it."""
    return typestore().types[EVENT_PACKET_TYPE](
        header=to_header(packet.header),
        height=packet.height,
        width=packet.width,
        seq=packet.seq,
        time_base=packet.time_base,
        encoding=packet.encoding,
        is_bigendian=packet.is_bigendian,
        events=payload_bytes(packet.events),
    )


def to_packet(message: Any) -> EventPacket:
    """The packet of an event_camera_msgs/EventPacket of any library; its bytes are not copied."""
    stamp = Stamp(message.header.stamp.sec, message.header.stamp.nanosec)
    return EventPacket(
        header=Header(stamp, message.header.frame_id),
        height=message.height,
        width=message.width,
        seq=message.seq,
        time_base=message.time_base,
        encoding=message.encoding,
        is_bigendian=message.is_bigendian,
        events=message.events,
    )


def image_message(header: Any, encoding: str, pixels: NDArray[Any]) -> Any:
    """sensor_msgs/Image of pixels [H, W] or [H, W, channels]."""
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)
    step = data.size // height
    return typestore().types[IMAGE_TYPE](header, height, width, encoding, 0, step, data)


def depth_message(header: Any, depth_m: NDArray[np.float32]) -> Any:
    """32FC1 of depth [H, W] in m."""
    return image_message(header, "32FC1", depth_m.astype("<f4", copy=False))


def flow_message(header: Any, flow_px_s: NDArray[np.float32]) -> Any:
    """32FC2 of flow [H, W, 2] in px/s."""
    return image_message(header, "32FC2", flow_px_s.astype("<f4", copy=False))


def mask_message(header: Any, mask: NDArray[np.bool_]) -> Any:
    """8UC1 of a mask [H, W], 255 where it is set."""
    return image_message(header, "8UC1", np.where(mask, np.uint8(255), np.uint8(0)))


def range_message(header: Any, range_m: float) -> Any:
    """sensor_msgs/Range; what is not finite says that nothing was met."""
    # Infinite says that nothing was met (REP 117).
    measured = float(range_m) if np.isfinite(range_m) else float("inf")
    infrared, narrow_rad = 1, 0.01
    return typestore().types[RANGE_TYPE](
        header, infrared, narrow_rad, 0.0, float(np.finfo(np.float32).max), measured
    )


def imu_message(header: Any, motion: NDArray[np.float64]) -> Any:
    """sensor_msgs/Imu of angular velocity (rad/s) [3], or with acceleration (m/s²) behind it [6];
    what is not known says so by a covariance of -1."""
    values = [float(value) for value in motion]
    known = len(values) == 6 and np.isfinite(motion).all()
    types = typestore().types
    vector, quaternion = types["geometry_msgs/msg/Vector3"], types["geometry_msgs/msg/Quaternion"]
    unknown, not_held = np.zeros(9), np.concatenate([[-1.0], np.zeros(8)])
    return types[IMU_TYPE](
        header=header,
        orientation=quaternion(0.0, 0.0, 0.0, 1.0),
        orientation_covariance=not_held,
        angular_velocity=vector(*values[:3]),
        angular_velocity_covariance=unknown,
        linear_acceleration=vector(*(values[3:] if known else [0.0] * 3)),
        linear_acceleration_covariance=unknown if known else not_held,
    )
