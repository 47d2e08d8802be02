"""The node's subscription to the events, of whatever type they are published."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rclpy.node import Node
from rclpy.subscription import Subscription

from event_binning_grad.errors import ConfigError
from event_binning_grad.events.types import NS_PER_S
from event_binning_grad.ros.message_types import message_class
from event_binning_grad.ros.packet_queue import SerializedArray
from event_binning_grad.ros.qos import EVENTS_QOS

if TYPE_CHECKING:
    from rclpy.subscription import MessageInfo  # not on Humble

AUTO = "auto"


@dataclass(frozen=True)
class EventsType:
    """A message type that events are published as.

    name: what the parameter events_type calls it.
    type_name: as ROS writes it.
    array: messages of single events, which are taken as bytes; else packets of encoded events.
    advice: where to get the package with its type support.
    """

    name: str
    type_name: str
    array: bool
    advice: str

    @property
    def package(self) -> str:
        return self.type_name.partition("/")[0]


_BUILD = "build {} in your workspace and source it ({})"
TYPES = (
    EventsType(
        "event_packet",
        "event_camera_msgs/msg/EventPacket",
        array=False,
        advice="apt install ros-{distribution}-event-camera-msgs",
    ),
    EventsType(
        "dvs",
        "dvs_msgs/msg/EventArray",
        array=True,
        advice=_BUILD.format("dvs_msgs", "it comes with the camera's driver, rpg_dvs_ros"),
    ),
    EventsType(
        "prophesee",
        "prophesee_event_msgs/msg/EventArray",
        array=True,
        advice=_BUILD.format(
            "prophesee_event_msgs", "it comes with the camera's driver, prophesee_ros_wrapper"
        ),
    ),
    EventsType(
        "dv",
        "dv_ros2_msgs/msg/EventArray",
        array=True,
        advice=_BUILD.format("dv_ros2_msgs", "it comes with the camera's driver, dv-ros2"),
    ),
)
EVENTS_TYPES = (AUTO, *(kind.name for kind in TYPES))


class EventTopic:
    """Subscribes to ~/events as the type asked for, or as what its publishers say it is.

    Args:
        node: whose subscription it is.
        events_type: one of EVENTS_TYPES.
        take: gets each message (a packet or a SerializedArray), how long it has waited in the
            middleware in s, and its size in bytes, on the executor's thread.
    """

    def __init__(
        self, node: Node, events_type: str, take: Callable[[Any, float, int], None]
    ) -> None:
        self._node, self._take = node, take
        self._topic = node.resolve_topic_name("~/events")
        self._wanted = None if events_type == AUTO else type_named(events_type)
        self._chosen: EventsType | None = None
        self._subscription: Subscription | None = None
        self._arrays = 0
        self.problem = ""
        """Why there is no subscription, or what else is on the topic; in one line."""

    def look(self) -> None:
        """Subscribes if it can be done now; to be called again and again."""
        problem = self._look()
        if problem and problem != self.problem:
            self._node.get_logger().warning(problem)
        self.problem = problem

    def _look(self) -> str:
        offers = self._node.get_publishers_info_by_topic(self._topic)
        offered = sorted({offer.topic_type for offer in offers})
        if self._chosen is not None:
            own = sum(offer.topic_type == self._chosen.type_name for offer in offers)
            if own < len(offers):
                others = [name for name in offered if name != self._chosen.type_name]
                return (
                    f"{self._topic} is also published as {', '.join(others)}, which is not taken: "
                    f"it is subscribed to as {self._chosen.type_name}"
                )
            if own > 1:
                return (
                    f"{self._topic} has {own} publishers: two cameras in one stream break every "
                    "window; give each a topic of its own"
                )
            return ""
        if self._wanted is not None:
            return self._subscribe([self._wanted])
        known = [kind for kind in TYPES if kind.type_name in offered]
        if offered and not known:
            return (
                f"{self._topic} is published as {', '.join(offered)}, expected one of "
                f"{', '.join(kind.type_name for kind in TYPES)}: remap ~/events to the event "
                "camera's topic"
            )
        return self._subscribe(known)

    def _subscribe(self, kinds: Sequence[EventsType]) -> str:
        """Subscribes to the first of these types that is installed."""
        problem = ""
        for kind in kinds:
            try:
                message = message_class(kind.type_name)
            except (ImportError, AttributeError) as error:
                problem = problem or missing_support(self._topic, kind, error)
                continue
            self._chosen = kind
            self._subscription = self._node.create_subscription(
                message, "~/events", self._callback(kind), EVENTS_QOS, raw=kind.array
            )
            self._node.get_logger().info(f"events: {self._topic} as {kind.type_name}")
            return ""
        return problem

    def _callback(self, kind: EventsType) -> Callable[..., None]:
        receive = self._on_array if kind.array else self._on_packet

        def with_info(message: Any, info: MessageInfo) -> None:
            received_ns = info["received_timestamp"]  # 0 where the middleware does not know
            now_ns = time.time_ns()
            receive(message, max(0, now_ns - received_ns) / NS_PER_S if received_ns else 0.0)

        def without_info(message: Any) -> None:
            receive(message, 0.0)

        # Not yet on Humble: how long a message has waited in the middleware is not known there.
        return with_info if hasattr(Subscription, "CallbackType") else without_info

    def _on_packet(self, packet: Any, waited_s: float) -> None:
        self._take(packet, waited_s, len(packet.events))

    def _on_array(self, data: bytes, waited_s: float) -> None:
        # Only counted here: this thread must keep up with all that comes.
        array = SerializedArray(data, self._arrays)
        self._arrays += 1
        self._take(array, waited_s, len(data))


def type_named(name: str) -> EventsType:
    """The type that the parameter events_type calls so.

    Raises:
        ConfigError: there is none.
    """
    for kind in TYPES:
        if kind.name == name:
            return kind
    raise ConfigError(f"events_type {name!r}: expected one of {', '.join(EVENTS_TYPES)}")


def missing_support(topic: str, kind: EventsType, error: Exception) -> str:
    """One line that says what is not installed and what to do."""
    distribution = os.environ.get("ROS_DISTRO") or "$ROS_DISTRO"
    return (
        f"{topic}: the type support of {kind.type_name} is not installed ({error}): "
        f"{kind.advice.format(distribution=distribution)}"
    )
