"""The topics that the flow is published on."""

from __future__ import annotations

import time

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from event_binning_grad.estimation.flow_estimate import FlowEstimate
from event_binning_grad.evaluation.flow_colours import flow_to_rgb, typical_maximum
from event_binning_grad.pipeline_flow import FlowStage
from event_binning_grad.ros.flow_messages import to_field_camera_info, write_points
from event_binning_grad.ros.messages import write_pixels
from event_binning_grad.ros.qos import OUTPUT_DEPTH

# How fast the colours' scale follows the flow, a picture: a scale of each its own would flicker.
_FOLLOW = 0.2


class FlowOutput:
    """Publishes trusted flow fields.

    ~/flow (Image, 32FC2, px/s, NaN unknown) and, with a calibration, ~/flow/camera_info; and while
    somebody listens ~/flow/confidence (32FC1), ~/flow/normal (mono8, 255 where only the normal flow
    is known), ~/flow/residual (32FC2, px/s, what the camera's motion does not explain),
    ~/flow/points (PointCloud2) and ~/flow/image (rgb8).

    Args:
        node: whose topics they are.
        points: points at most on ~/flow/points.
        image_rate_hz: pictures a second at most on ~/flow/image.
    """

    def __init__(self, node: Node, points: int, image_rate_hz: float) -> None:
        def publisher(kind: type, topic: str):
            return node.create_publisher(kind, topic, OUTPUT_DEPTH)

        self._points, self._image_period_s = points, 1 / image_rate_hz
        self._field = publisher(Image, "~/flow")
        self._camera_info = publisher(CameraInfo, "~/flow/camera_info")
        self._confidence = publisher(Image, "~/flow/confidence")
        self._normal = publisher(Image, "~/flow/normal")
        self._residual = publisher(Image, "~/flow/residual")
        self._cloud = publisher(PointCloud2, "~/flow/points")
        self._image = publisher(Image, "~/flow/image")
        self._message, self._picture, self._values, self._mask = Image(), Image(), Image(), Image()
        self._cloud_message = PointCloud2()
        self._next_image_s = 0.0
        self._rim_px_s = 0.0
        self.published, self.last_published_s = 0, time.monotonic()

    @property
    def topic(self) -> str:
        return self._field.topic_name

    def publish(self, estimate: FlowEstimate, stage: FlowStage, frame_id: str) -> None:
        """Publishes a field, if it is trusted."""
        if not estimate.status.ok:
            return
        stamp_ns = estimate.stamp_ns
        write_pixels(self._message, estimate.flow, "32FC2", stamp_ns, frame_id)
        self._field.publish(self._message)
        self.published += 1
        self.last_published_s = time.monotonic()
        if stage.camera is not None:
            self._camera_info.publish(
                to_field_camera_info(stage.camera, estimate.stride, stamp_ns, frame_id)
            )
        if self._confidence.get_subscription_count():
            write_pixels(self._values, estimate.confidence, "32FC1", stamp_ns, frame_id)
            self._confidence.publish(self._values)
        if self._normal.get_subscription_count():
            mask = estimate.normal_flow.astype("uint8") * 255
            write_pixels(self._mask, mask, "mono8", stamp_ns, frame_id)
            self._normal.publish(self._mask)
        if self._cloud.get_subscription_count():
            write_points(self._cloud_message, estimate, self._points, frame_id)
            self._cloud.publish(self._cloud_message)
        if self._residual.get_subscription_count():
            residual = stage.residual(estimate)
            if residual is not None:
                write_pixels(self._message, residual, "32FC2", stamp_ns, frame_id)
                self._residual.publish(self._message)
        if self.last_published_s >= self._next_image_s and self._image.get_subscription_count():
            self._next_image_s = self.last_published_s + self._image_period_s
            self._publish_image(estimate, frame_id)

    def _publish_image(self, estimate: FlowEstimate, frame_id: str) -> None:
        typical = typical_maximum(estimate.flow)
        self._rim_px_s += (typical - self._rim_px_s) * (_FOLLOW if self._rim_px_s else 1)
        colours = flow_to_rgb(estimate.flow, self._rim_px_s)
        write_pixels(self._picture, colours, "rgb8", estimate.stamp_ns, frame_id)
        self._image.publish(self._picture)
