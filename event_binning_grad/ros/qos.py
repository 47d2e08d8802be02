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
# Of all that is published here but events: reliable, volatile, so many messages kept.
OUTPUT_DEPTH = 10
