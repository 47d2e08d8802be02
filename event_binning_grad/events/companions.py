"""What other sensors say beside the events: depth images, ranges, gyroscopes.

The conversions take any object with the fields of the ROS message, so that bags, replay and nodes
share them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import EventBinningError
from event_binning_grad.geometry.depth import depth_to_metres

# Type of the depth images' encodings, mm and m (REP 118).
DEPTH_ENCODINGS = {"16UC1": np.dtype("u2"), "32FC1": np.dtype("f4")}


class SensorError(EventBinningError):
    """A message of a sensor cannot be used; it is dropped, and the next one is taken as usual."""


def to_depth(image: Any) -> NDArray[np.float32]:
    """float32 [H, W] metres of a sensor_msgs/Image, NaN where unknown (0, negative, infinite).

    Raises:
        SensorError: an encoding other than 16UC1 (mm) and 32FC1 (m), or a size that does not fit.
    """
    if image.encoding not in DEPTH_ENCODINGS:
        raise SensorError(
            f"encoding {image.encoding!r}, expected 16UC1 (mm) or 32FC1 (m): publish the raw depth"
        )
    native = DEPTH_ENCODINGS[image.encoding]
    dtype = native.newbyteorder(">" if image.is_bigendian else "<")
    height, width, step, size = image.height, image.width, image.step, len(image.data)
    if not height * width or step < width * dtype.itemsize or size != height * step:
        raise SensorError(
            f"{size} bytes for {width}x{height} pixels of {image.encoding} in rows of {step} "
            "bytes: expected whole rows of all pixels"
        )
    values: NDArray[Any] = np.ndarray(
        (height, width), dtype, np.frombuffer(image.data, np.uint8), strides=(step, dtype.itemsize)
    )
    return depth_to_metres(values.astype(native, copy=False))


def to_range(message: Any) -> float:
    """Metres of a sensor_msgs/Range.

    Raises:
        SensorError: the sensor measured nothing: NaN, infinite, or outside its own limits.
    """
    value, low, high = message.range, message.min_range, message.max_range
    if not (math.isfinite(value) and value > 0 and low <= value <= high):
        raise SensorError(
            f"range {value:g} m, expected a positive one within the sensor's limits of {low:g} to "
            f"{high:g} m"
        )
    return float(value)


def to_angular_velocity(imu: Any) -> NDArray[np.float64]:
    """[3] rad/s of a sensor_msgs/Imu, in its own frame.

    Raises:
        SensorError: it holds no angular velocity (by its covariance, -1), or no finite one.
    """
    if imu.angular_velocity_covariance[0] == -1:
        raise SensorError(
            "the IMU says that it has no angular velocity (covariance -1): expected a gyroscope's "
            "data"
        )
    omega = np.array([imu.angular_velocity.x, imu.angular_velocity.y, imu.angular_velocity.z])
    if not np.isfinite(omega).all():
        raise SensorError(f"angular velocity {omega.tolist()} rad/s, expected finite numbers")
    return omega
