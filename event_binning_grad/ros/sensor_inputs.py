"""The node's subscriptions to sensors other than the event camera."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image, Imu, Range

from event_binning_grad.events.companions import SensorError
from event_binning_grad.events.types import NS_PER_S, stamp_to_ns
from event_binning_grad.ros.health import SensorReport
from event_binning_grad.ros.qos import DEPTH_QOS, RELIABLE_DEPTH_QOS, SENSOR_QOS
from event_binning_grad.ros.sensors import Reading, Sensor, converters
from event_binning_grad.sources.source import Measurement

_TYPES = {Sensor.DEPTH: Image, Sensor.RANGE: Range, Sensor.IMU: Imu}
_LOG_PERIOD_S = 5.0


@dataclass
class _Input:
    """One sensor's subscription and what came by it."""

    topic: str
    needed_by: str
    subscription: Subscription | None = None
    qos: QoSProfile | None = None
    received: int = 0
    refused: int = 0
    last_refusal: str = ""
    next_log_s: float = 0.0
    last_stamp_ns: int | None = None
    behind_s: float = math.nan
    last_arrival_s: float = field(default_factory=time.monotonic)


class SensorInputs:
    """Subscribes to what is needed, converts, counts, and hands the readings on.

    Args:
        node: whose subscriptions they are.
        needed: the sensors to subscribe to, and the parameters that need them.
        R_camera_from_imu: [3, 3], turns the IMU's angular velocity into the camera's frame.
        take: gets each reading, on the executor's thread.
        own: those of them that the source of the events brings, and no topic.
    """

    def __init__(
        self,
        node: Node,
        needed: Mapping[Sensor, str],
        R_camera_from_imu: npt.NDArray[np.float64],
        take: Callable[[Reading], None],
        own: Collection[Sensor] = (),
    ) -> None:
        self._node = node
        self._take = take
        self._lock = threading.Lock()
        self._converters = converters(R_camera_from_imu)
        self._R_camera_from_imu = R_camera_from_imu
        self._own = frozenset(own)
        self._inputs = {
            sensor: _Input(node.resolve_topic_name(f"~/{sensor.value}"), needed_by)
            for sensor, needed_by in needed.items()
        }

    def subscribe(self) -> None:
        """Begins to receive; again: takes over the reliability that the publishers now offer."""
        for sensor, entry in self._inputs.items():
            if sensor in self._own:
                continue
            qos = self._qos(sensor, entry.topic)
            if entry.subscription is not None and qos is entry.qos:
                continue
            if entry.subscription is not None:
                self._node.destroy_subscription(entry.subscription)
            else:
                entry.last_arrival_s = time.monotonic()  # silence counts from now on
            entry.qos = qos
            entry.subscription = self._node.create_subscription(
                _TYPES[sensor], f"~/{sensor.value}", self._callback(sensor), qos
            )

    def measured(self, measurement: Measurement) -> Reading | None:
        """The reading that what the source of the events brought gives, its stamp on the robot's
        clock; None if nobody asks for it, or it cannot be used. From the worker's thread."""
        sensor, value = Sensor(measurement.sensor), measurement.value
        entry = self._inputs.get(sensor)
        if entry is None:
            return None
        entry.received += 1
        entry.last_arrival_s = time.monotonic()
        if sensor is Sensor.IMU:
            value = self._R_camera_from_imu @ np.asarray(value, np.float64)
        if sensor is not Sensor.DEPTH and not np.isfinite(value).all():
            self.refuse(sensor, f"{value}, expected finite numbers")
            return None
        entry.last_stamp_ns = measurement.stamp_ns
        return Reading(sensor, measurement.stamp_ns, value)

    def refuse(self, sensor: Sensor, reason: str) -> None:
        """Counts a message that could not be used; from any thread."""
        entry = self._inputs[sensor]
        with self._lock:
            entry.refused += 1
            entry.last_refusal = reason
        now_s = time.monotonic()
        if now_s >= entry.next_log_s:  # the logger's own throttle lets one sensor silence others
            entry.next_log_s = now_s + _LOG_PERIOD_S
            self._node.get_logger().warning(f"message on {entry.topic} dropped: {reason}")

    def compare_stamps(self, window_end_ns: int) -> None:
        """Notes how far behind the window that is now complete (robot's clock) each sensor is."""
        for entry in self._inputs.values():
            if entry.last_stamp_ns is not None:
                entry.behind_s = (window_end_ns - entry.last_stamp_ns) / NS_PER_S

    def reports(self, dropped: Mapping[Sensor, int]) -> tuple[SensorReport, ...]:
        """The state of each input; dropped: readings given up on their way to the worker."""
        return tuple(
            SensorReport(
                name=sensor.value,
                needed_by=entry.needed_by,
                topic="" if sensor in self._own else entry.topic,
                publishers=self._node.count_publishers(entry.topic),
                received=entry.received,
                refused=entry.refused,
                dropped=dropped[sensor],
                last_refusal=entry.last_refusal,
                last_arrival_s=entry.last_arrival_s,
                behind_s=entry.behind_s,
            )
            for sensor, entry in self._inputs.items()
        )

    def _callback(self, sensor: Sensor) -> Callable[[Any], None]:
        return lambda message: self._receive(sensor, message)

    def _receive(self, sensor: Sensor, message: Any) -> None:
        entry = self._inputs[sensor]
        entry.received += 1
        entry.last_arrival_s = time.monotonic()
        try:
            value = self._converters[sensor](message)
        except SensorError as error:
            self.refuse(sensor, str(error))
            return
        entry.last_stamp_ns = stamp_to_ns(message.header.stamp)
        self._take(Reading(sensor, entry.last_stamp_ns, value))

    def _qos(self, sensor: Sensor, topic: str) -> QoSProfile:
        if sensor is not Sensor.DEPTH:
            return SENSOR_QOS
        offers = self._node.get_publishers_info_by_topic(topic)
        offered = {offer.qos_profile.reliability for offer in offers}
        return RELIABLE_DEPTH_QOS if offered == {ReliabilityPolicy.RELIABLE} else DEPTH_QOS
