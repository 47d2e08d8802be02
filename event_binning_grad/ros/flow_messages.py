"""From flow fields to ROS messages. Pure functions, no node."""

from __future__ import annotations

import array
import math
import sys

import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo, PointCloud2, PointField

from event_binning_grad.estimation.flow_estimate import FlowEstimate
from event_binning_grad.geometry import Camera
from event_binning_grad.pipeline_implied import thinned
from event_binning_grad.ros.messages import to_camera_info, to_header

POINT_FIELDS = ("x", "y", "vx", "vy", "confidence")
_POINT_BYTES = 4 * len(POINT_FIELDS)


def to_field_camera_info(camera: Camera, stride: int, stamp_ns: int, frame_id: str) -> CameraInfo:
    """The calibration of a flow field on undistorted pixels, see `thinned`."""
    of_field = thinned(camera, stride)
    info = {
        "width": of_field.width,
        "height": of_field.height,
        "distortion_model": "plumb_bob",
        "d": np.zeros(5),
        "k": of_field.K,
    }
    return to_camera_info(info, stamp_ns, frame_id)


def write_points(message: PointCloud2, estimate: FlowEstimate, most: int, frame_id: str) -> None:
    """Writes the most confident flows, `most` at most and spread evenly, into a point cloud.

    Fields, float32: x and y, the pixel at full resolution; vx and vy, px/s; confidence, 0 to 1.
    Samples of which only the normal flow is known are left out.
    """
    rows, columns = spread_samples(
        np.where(estimate.normal_flow, np.float32(0), estimate.confidence), most
    )
    points = np.empty((len(rows), len(POINT_FIELDS)), np.float32)
    points[:, 0], points[:, 1] = columns * estimate.stride, rows * estimate.stride
    points[:, 2:4] = estimate.flow[rows, columns]
    points[:, 4] = estimate.confidence[rows, columns]
    points = points[np.isfinite(points[:, 2:4]).all(axis=1)]
    message.header = to_header(estimate.stamp_ns, frame_id)
    if not message.fields:
        message.fields = [
            PointField(name=name, offset=4 * k, datatype=PointField.FLOAT32, count=1)
            for k, name in enumerate(POINT_FIELDS)
        ]
    message.is_bigendian = sys.byteorder == "big"
    message.is_dense = True
    message.height, message.width = 1, len(points)
    message.point_step, message.row_step = _POINT_BYTES, _POINT_BYTES * len(points)
    message.data = array.array("B", points.tobytes())


def spread_samples(
    weight: npt.NDArray[np.float32], most: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows and columns of the greatest positive weight in each of so many square cells at most.

    Args:
        weight: [H, W], not negative.
        most: cells at most.
    """
    height, width = weight.shape
    side = max(1, math.isqrt(height * width // most))
    while -(-height // side) * -(-width // side) > most:
        side += 1
    down, across = -(-height // side), -(-width // side)
    padded = np.zeros((down * side, across * side), np.float32)
    padded[:height, :width] = weight
    cells = padded.reshape(down, side, across, side).swapaxes(1, 2).reshape(down, across, -1)
    best = cells.argmax(axis=2)
    cell_row, cell_column = np.nonzero(cells.max(axis=2) > 0)
    inside = best[cell_row, cell_column]
    return cell_row * side + inside // side, cell_column * side + inside % side
