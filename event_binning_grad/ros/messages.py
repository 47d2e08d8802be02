"""From the core's values to ROS messages. Pure functions, no node."""

from __future__ import annotations

import array
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import TwistStamped, TwistWithCovarianceStamped, Vector3Stamped
from sensor_msgs.msg import CameraInfo, Image, Imu, TimeReference
from std_msgs.msg import Header

from event_binning_grad.errors import PacketError
from event_binning_grad.events.types import NS_PER_S, PacketLike, stamp_to_ns

if TYPE_CHECKING:  # the replayer needs the conversions, but not the estimator
    from event_camera_msgs.msg import EventPacket

    from event_binning_grad.estimation import EgomotionEstimate
    from event_binning_grad.pipeline import Trigger
    from event_binning_grad.ros.health import Level
    from event_binning_grad.sources.source import Measurement

# A velocity that is not known is 0 with this variance, (m/s)^2 or (rad/s)^2. Whoever fuses the
# twist must leave these axes out by configuration (robot_localization: false in twist0_config); a
# large variance says the same to who looks, and a zero would claim a camera nailed to its place.
UNKNOWN_VARIANCE = 1e6

# White in the event image: this percentile of the pixels that hold events, but at least so many
# events, so that single noise events stay dark.
_WHITE_PERCENTILE = 99.0
_WHITE_MIN_EVENTS = 3.0

WINDOW_END = "window_end"
RISING, FALLING = "rising", "falling"


def to_time(time_ns: int) -> Time:
    """builtin_interfaces/Time of a time in ns.

    Raises:
        PacketError: the message cannot hold it; only a packet with a wild time leads there.
    """
    sec, nanosec = divmod(int(time_ns), NS_PER_S)
    if not -(2**31) <= sec < 2**31:
        raise PacketError(
            f"the packet's times lead to {sec} s, expected a time that a ROS stamp can hold: "
            "check the driver's stamps"
        )
    return Time(sec=sec, nanosec=nanosec)


def to_twist(estimate: EgomotionEstimate, frame_id: str) -> TwistWithCovarianceStamped:
    """Angular velocity in rad/s and linear velocity in m/s, with their joint covariance.

    A linear velocity that the estimate does not have, or has no scale for, is marked as unknown;
    so is the variance of an angular velocity that was taken from elsewhere.
    """
    message = TwistWithCovarianceStamped()
    message.header = to_header(estimate.stamp_ns, frame_id)
    angular = message.twist.twist.angular
    angular.x, angular.y, angular.z = (float(w) for w in estimate.angular_velocity)
    if np.isfinite(estimate.linear_velocity).all():
        linear = message.twist.twist.linear
        linear.x, linear.y, linear.z = (float(v) for v in estimate.linear_velocity)
    covariance = UNKNOWN_VARIANCE * np.eye(6)
    for block, values in (
        (np.s_[:3, :3], estimate.linear_covariance),
        (np.s_[:3, 3:], estimate.cross_covariance),
        (np.s_[3:, :3], estimate.cross_covariance.T),
        (np.s_[3:, 3:], estimate.covariance),
    ):
        if np.isfinite(values).all():
            covariance[block] = values
    message.twist.covariance = covariance.ravel()
    return message


def to_vector(values: npt.NDArray[np.float64], stamp_ns: int, frame_id: str) -> Vector3Stamped:
    """A vector [3] with the time and frame at which it holds."""
    message = Vector3Stamped(header=to_header(stamp_ns, frame_id))
    message.vector.x, message.vector.y, message.vector.z = (float(value) for value in values)
    return message


def to_window_reference(estimate: EgomotionEstimate, frame_id: str) -> TimeReference:
    """Which events a twist was made of: its stamp, and the time of the window's last event."""
    message = TimeReference()
    message.header = to_header(estimate.stamp_ns, frame_id)
    message.time_ref = to_time(estimate.window_end_ns)
    message.source = WINDOW_END
    return message


def to_trigger(trigger: Trigger, frame_id: str) -> TimeReference:
    """An edge of the camera's trigger input: header.stamp on the robot's clock, time_ref on the
    sensor's; source "rising" or "falling", with the channel's number unless it is 0."""
    source = RISING if trigger.p else FALLING
    return TimeReference(
        header=to_header(trigger.robot_ns, frame_id),
        time_ref=to_time(trigger.sensor_ns),
        source=f"{source} {trigger.channel}" if trigger.channel else source,
    )


def to_imu(measurement: Measurement, frame_id: str) -> Imu:
    """sensor_msgs/Imu: rad/s and m/s^2 in the IMU's frame, without orientation.

    What is not known says so by a covariance of -1; that of the others is not known, all 0.
    """
    message = Imu(header=to_header(measurement.stamp_ns, frame_id))
    message.orientation_covariance[0] = -1.0
    omega, acceleration = message.angular_velocity, message.linear_acceleration
    omega.x, omega.y, omega.z = (float(w) for w in measurement.value)
    if measurement.acceleration is None:
        message.linear_acceleration_covariance[0] = -1.0
    else:
        acceleration.x, acceleration.y, acceleration.z = (
            float(a) for a in measurement.acceleration
        )
    return message


def write_image(
    message: Image, counts: npt.NDArray[np.float32], stamp_ns: int, frame_id: str
) -> None:
    """Writes events a pixel [H, W] into a mono8 image, which keeps its buffer from call to call.

    0 is black; the 99th percentile of the pixels with events, at least 3 events, is white.
    """
    lit = counts[counts > 0.5]
    white = max(float(np.percentile(lit, _WHITE_PERCENTILE)) if len(lit) else 0, _WHITE_MIN_EVENTS)
    pixels = np.clip(counts * (255 / white), 0, 255).astype(np.uint8)
    write_pixels(message, pixels, "mono8", stamp_ns, frame_id)


def write_pixels(
    message: Image, pixels: npt.NDArray[Any], encoding: str, stamp_ns: int, frame_id: str
) -> None:
    """Writes an array into an image, which keeps its buffer from call to call.

    pixels: [H, W] or [H, W, C], of the type and the channels that the encoding says.
    """
    height, width = pixels.shape[:2]
    message.header = to_header(stamp_ns, frame_id)
    message.encoding = encoding
    message.is_bigendian = sys.byteorder == "big"
    message.height, message.width = height, width
    message.step = pixels.nbytes // height
    if len(message.data) != pixels.nbytes or not isinstance(message.data, array.array):
        # rclpy checks anything but an array.array byte by byte: 0.4 s for an ndarray of 2.4 MB.
        message.data = array.array("B", bytes(pixels.nbytes))
    np.frombuffer(message.data, pixels.dtype).reshape(pixels.shape)[...] = pixels


def to_diagnostics(stamp: Time, *statuses: DiagnosticStatus) -> DiagnosticArray:
    """A message for /diagnostics."""
    return DiagnosticArray(header=Header(stamp=stamp), status=list(statuses))


def to_status(name: str, level: Level, summary: str, values: Mapping[str, str]) -> DiagnosticStatus:
    """One status of such a message."""
    return DiagnosticStatus(
        name=name,
        level=bytes([level]),
        message=summary,
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )


def to_camera_info(info: Mapping[str, object], stamp_ns: int, frame_id: str) -> CameraInfo:
    """sensor_msgs/CameraInfo of a recording's calibration (width, height, model, d, k)."""
    k = np.asarray(info["k"], np.float64).ravel()
    return CameraInfo(
        header=to_header(stamp_ns, frame_id),
        width=int(info["width"]),  # type: ignore[arg-type]
        height=int(info["height"]),  # type: ignore[arg-type]
        distortion_model=str(info["distortion_model"]),
        d=np.asarray(info["d"], np.float64).ravel().tolist(),
        k=k,
        r=np.eye(3).ravel(),
        p=np.insert(k, [3, 6, 9], 0.0),  # no rectification: K with a column of zeros
    )


def to_true_twist(
    angular: npt.NDArray[np.float64],
    linear: npt.NDArray[np.float64] | None,
    stamp_ns: int,
    frame_id: str,
) -> TwistStamped:
    """A ground-truth twist: angular [3] in rad/s, linear [3] in m/s or unknown (then 0)."""
    message = TwistStamped(header=to_header(stamp_ns, frame_id))
    twist = message.twist
    twist.angular.x, twist.angular.y, twist.angular.z = (float(w) for w in angular)
    if linear is not None:
        twist.linear.x, twist.linear.y, twist.linear.z = (float(v) for v in linear)
    return message


def to_packet(packet: PacketLike) -> EventPacket:
    """event_camera_msgs/EventPacket of any packet with its fields."""
    from event_camera_msgs.msg import EventPacket  # whoever has no such packets has no such package

    return EventPacket(
        header=to_header(stamp_to_ns(packet.header.stamp), packet.header.frame_id),
        height=packet.height,
        width=packet.width,
        seq=packet.seq,
        time_base=packet.time_base,
        encoding=packet.encoding,
        is_bigendian=packet.is_bigendian,
        events=array.array("B", bytes(packet.events)),
    )


def to_header(stamp_ns: int, frame_id: str) -> Header:
    """std_msgs/Header of a time in ns."""
    return Header(stamp=to_time(stamp_ns), frame_id=frame_id)
