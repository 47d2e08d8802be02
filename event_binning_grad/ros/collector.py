"""Writes what the perception node publishes as JSON lines on standard output.

A line a twist: {"type": "twist", "stamp_ns", "window_end_ns", "received_ns", "angular_velocity",
"covariance"}; received_ns is on the monotonic clock. A line a message on /diagnostics: {"type":
"diagnostics", "level", "message", "values"}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistWithCovarianceStamped
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import TimeReference

from event_binning_grad.events.types import stamp_to_ns
from event_binning_grad.ros.start import initialise

_DEPTH = 1000


class Collector(Node):
    """Listens to the node named `perception`; pairs its twists with the ends of their windows."""

    def __init__(self) -> None:
        super().__init__("collector")
        self._twists: dict[int, dict[str, Any]] = {}
        self.create_subscription(
            TwistWithCovarianceStamped, "perception/twist", self._on_twist, _DEPTH
        )
        self.create_subscription(TimeReference, "perception/window", self._on_window, _DEPTH)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, _DEPTH)

    def _on_twist(self, message: TwistWithCovarianceStamped) -> None:
        received_ns = time.monotonic_ns()
        angular = message.twist.twist.angular
        stamp_ns = stamp_to_ns(message.header.stamp)
        covariance = message.twist.covariance.reshape(6, 6)[3:, 3:]
        self._twists[stamp_ns] = {
            "type": "twist",
            "stamp_ns": stamp_ns,
            "received_ns": received_ns,
            "angular_velocity": [angular.x, angular.y, angular.z],
            "covariance": covariance.tolist(),
        }

    def _on_window(self, message: TimeReference) -> None:
        # The node publishes it right after the twist, and DDS may deliver it first only if the
        # twist was lost.
        twist = self._twists.pop(stamp_to_ns(message.header.stamp), None)
        if twist is not None:
            _write(twist | {"window_end_ns": stamp_to_ns(message.time_ref)})

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if not status.name.endswith(": egomotion"):
                continue
            _write(
                {
                    "type": "diagnostics",
                    "level": status.level[0] if isinstance(status.level, bytes) else status.level,
                    "message": status.message,
                    "values": {item.key: item.value for item in status.values},
                }
            )


def _write(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    initialise(arguments)
    try:
        rclpy.spin(Collector())
    except (KeyboardInterrupt, ExternalShutdownException, BrokenPipeError):
        pass
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
