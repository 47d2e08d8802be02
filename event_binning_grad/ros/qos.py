"""Quality of service of the topics."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

# As the camera drivers publish. A reliable subscriber would get nothing from them, and the depth
# lets short bursts pass: a packet comes each 1 to 4 ms.
EVENTS_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1000,
    reliability=ReliabilityPolicy.BEST_EFFORT,
    durability=DurabilityPolicy.VOLATILE,
)
# Best effort matches every publisher of camera_info; it is repeated, so a lost one does no harm.
CAMERA_INFO_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
# Range and IMU: best effort matches every publisher, and a second of an IMU may wait.
SENSOR_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
# Depth images: of messages above 0.6 MB hardly one arrives by best effort with ROS's defaults, so
# they are subscribed to reliably wherever they are published so.
DEPTH_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE_DEPTH_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
# Of all that is published here but events: reliable, volatile, so many messages kept.
OUTPUT_DEPTH = 10
