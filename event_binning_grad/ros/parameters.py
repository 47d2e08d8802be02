"""The node's parameters: the fields of two dataclasses, so that a name stands once."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from dataclasses import dataclass
from typing import Any, TypeVar

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node

from event_binning_grad.errors import ConfigError
from event_binning_grad.ros.event_topics import EVENTS_TYPES
from event_binning_grad.ros.sensors import to_rotation

SOURCES = ("ros", "dv_camera", "dv_network", "metavision", "file")
RECORDING_ENDS = ("stop", "idle", "loop")

Config = TypeVar("Config")


@dataclass(frozen=True)
class NodeConfig:
    """What the node does besides estimating; config/default.yaml is the manual.

    Attributes:
        source: where the events come from: "ros" (~/events), "dv_camera" (an iniVation camera at
            USB), "dv_network" (a dv-processing stream over TCP), "metavision" (a Prophesee camera
            at USB) or "file" (a recording in real time).
        events_type: with source ros, the type of ~/events: "auto" (what its publishers say),
            "event_packet", "dvs", "prophesee" or "dv".
        address: with source dv_network, of the server.
        port: the same, of the events.
        imu_port: the same, of the IMU; 0 for none.
        trigger_port: the same, of the trigger input; 0 for none.
        camera_name: with source dv_camera and metavision, name or serial number; empty for the
            first camera that is found.
        camera_settings: with source dv_camera, "name=value name=value ...".
        recording: with source file, its path.
        recording_rate: its speed; 2 is twice as fast as it was.
        recording_end: what the node does at its end: "stop", "idle" or "loop".
        calibration_file: camera_info YAML or calib.txt; empty to take ~/camera_info.
        frame_id: frame of the published messages; empty for the one of the packets, which must
            be the camera's optical frame (z forward, x right, y down).
        queue_ms: how long a packet may wait to be worked on, ms; then all that wait but the
            newest are dropped.
        iwe_rate_hz: at most so many event images a second are made, and pictures of the flow, Hz.
        flow_points: at most so many points are in a message on ~/flow/points.
        diagnostics_period_s: time between two messages on /diagnostics, s.
        imu_to_camera: rotation from the IMU's frame into the camera's: a unit quaternion
            (x, y, z, w), or the 9 numbers of a matrix, row by row.

    Raises:
        ConfigError: a value that is not allowed.
    """

    source: str = "ros"
    events_type: str = "auto"
    address: str = "127.0.0.1"
    port: int = 7777
    imu_port: int = 0
    trigger_port: int = 0
    camera_name: str = ""
    camera_settings: str = ""
    recording: str = ""
    recording_rate: float = 1.0
    recording_end: str = "stop"
    calibration_file: str = ""
    frame_id: str = ""
    queue_ms: float = 200.0
    iwe_rate_hz: float = 30.0
    flow_points: int = 2000
    diagnostics_period_s: float = 1.0
    imu_to_camera: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("source", SOURCES),
            ("events_type", EVENTS_TYPES),
            ("recording_end", RECORDING_ENDS),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} {getattr(self, name)!r}: expected one of {', '.join(allowed)}"
                )
        if self.source == "file" and not self.recording:
            raise ConfigError("source 'file': expected the parameter recording, a path")
        if self.recording and self.source != "file":
            raise ConfigError(
                f"recording {self.recording!r}: it is read with source 'file', not {self.source!r}"
            )
        for name, lowest, highest in (
            ("port", 1, 65535),
            ("imu_port", 0, 65535),
            ("trigger_port", 0, 65535),
            ("recording_rate", 0.001, 1000.0),
            ("queue_ms", 1.0, 60_000.0),
            ("iwe_rate_hz", 0.1, 1000.0),
            ("flow_points", 1, 1_000_000),
            ("diagnostics_period_s", 0.1, 3600.0),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and lowest <= value <= highest):
                raise ConfigError(f"{name} {value}: expected {lowest:g} to {highest:g}")
        try:
            to_rotation(self.imu_to_camera)
        except ConfigError as error:
            raise ConfigError(f"imu_to_camera: {error}") from None


def declare(node: Node, kind: type[Config]) -> Config:
    """Declares a read-only parameter for every field of a dataclass; the dataclass of their values.

    Raises:
        ConfigError: a value of another type, or one that the dataclass refuses.
    """
    descriptions = field_descriptions(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        descriptor = ParameterDescriptor(
            description=descriptions.get(field.name, ""),
            read_only=True,
            dynamic_typing=True,  # an integer for a float is fine; `_typed` checks the rest
        )
        default: Any = field.default
        value = node.declare_parameter(field.name, default, descriptor).value
        values[field.name] = _typed(field.name, value, type(default))
    return kind(**values)


def unknown_parameters(node: Node) -> list[str]:
    """Names that were given to the node, in a file or on the command line, and mean nothing."""
    # There is no public way to ask for what was given and not declared.
    given = getattr(node, "_parameter_overrides", {})
    return sorted(
        name
        for name in given
        if not node.has_parameter(name) and not name.startswith("qos_overrides.")
    )


def field_descriptions(kind: type) -> dict[str, str]:
    """The text of each field, from the "Attributes:" of a dataclass's docstring, in one line."""
    _, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    attributes = attributes.partition("\n\n")[0]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is tuple:
        # rclpy gives a list or an array.array; an array of integers is as good.
        numbers = None if isinstance(value, (str, bytes)) else getattr(value, "__iter__", None)
        if numbers is None or any(type(number) not in (int, float) for number in value):
            raise ConfigError(f"{name} {value!r}: expected a list of numbers, [0.0, 1.0]")
        return tuple(float(number) for number in value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{name} {value!r} is {type(value).__name__}, expected {kind.__name__}")
    return value
