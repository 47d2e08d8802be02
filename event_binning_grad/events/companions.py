"""What other sensors say beside the events: depth images, ranges, gyroscopes; and true flow.

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
FLOW_ENCODINGS = {"32FC2": np.dtype(("f4", 2))}
MASK_ENCODINGS = {"8UC1": np.dtype("u1"), "mono8": np.dtype("u1")}


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
    return depth_to_metres(_pixels(image, DEPTH_ENCODINGS[image.encoding]))


def to_flow(image: Any) -> NDArray[np.float32]:
    """float32 [H, W, 2] px/s (x, y) of a sensor_msgs/Image of encoding 32FC2, NaN where unknown.

    Raises:
        SensorError: another encoding, or a size that does not fit.
    """
    if image.encoding not in FLOW_ENCODINGS:
        raise SensorError(f"encoding {image.encoding!r}, expected 32FC2 (px/s, x and y)")
    return _pixels(image, FLOW_ENCODINGS[image.encoding])


def to_mask(image: Any) -> NDArray[np.bool_]:
    """bool [H, W]: where a sensor_msgs/Image of encoding 8UC1 or mono8 is not 0.

    Raises:
        SensorError: another encoding, or a size that does not fit.
    """
    if image.encoding not in MASK_ENCODINGS:
        raise SensorError(f"encoding {image.encoding!r}, expected 8UC1 or mono8")
    return _pixels(image, MASK_ENCODINGS[image.encoding]) != 0


def _pixels(image: Any, native: np.dtype[Any]) -> NDArray[Any]:
    """[H, W] or [H, W, channels]: the pixels of a sensor_msgs/Image, in this machine's order."""
    base, channels = native.base, native.shape
    dtype = base.newbyteorder(">" if image.is_bigendian else "<")
    height, width, step, size = image.height, image.width, image.step, len(image.data)
    if not height * width or step < width * native.itemsize or size != height * step:
        raise SensorError(
            f"{size} bytes for {width}x{height} pixels of {image.encoding} in rows of {step} "
            "bytes: expected whole rows of all pixels"
        )
    strides = (step, native.itemsize, base.itemsize)[: 2 + len(channels)]
    values: NDArray[Any] = np.ndarray(
        (height, width, *channels), dtype, np.frombuffer(image.data, np.uint8), strides=strides
    )
    return values.astype(base, copy=False)


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
