"""Readings of other sensors on their way from a message to the pipeline. No node, no ROS."""

from __future__ import annotations

import enum
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import ConfigError
from event_binning_grad.events.companions import to_angular_velocity, to_depth, to_range
from event_binning_grad.sources.source import Measurement

if TYPE_CHECKING:
    from event_binning_grad.pipeline import PipelineConfig

# How far a rotation may be from one: parameters are written with a few digits.
_ROTATION_TOLERANCE = 1e-3


class Sensor(enum.Enum):
    """What the pipeline can take besides events. A topic of the node has the value's name, but for
    the camera's own trigger input."""

    DEPTH = "depth"
    RANGE = "range"
    IMU = "imu"
    TRIGGER = "trigger"


# How many readings of a sensor wait at most for the packet after them. At usual rates more than a
# packet can wait itself: what is dropped then was made useless by a worker that hangs.
_MAX_WAITING = {Sensor.DEPTH: 32, Sensor.RANGE: 2000, Sensor.IMU: 5000, Sensor.TRIGGER: 5000}


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What a sensor measured.

    stamp_ns: on the robot's clock.
    value: float32 [H, W] depth in m, NaN unknown | range in m | [3] angular velocity in rad/s,
        camera frame.
    """

    sensor: Sensor
    stamp_ns: int
    value: Any


class ReadingQueue:
    """Readings, and what the events' source measured, on their way to the worker, in order with
    the packets.

    dropped: those given up because too many waited, by sensor.
    """

    def __init__(self) -> None:
        self._waiting = {sensor: deque[tuple[int, Reading | Measurement]]() for sensor in Sensor}
        self._lock = threading.Lock()
        self.dropped = dict.fromkeys(Sensor, 0)

    def put(self, reading: Reading | Measurement, packets_before: int) -> None:
        """Takes what came after so many packets; never blocks."""
        sensor = Sensor(reading.sensor)
        with self._lock:
            waiting = self._waiting[sensor]
            waiting.append((packets_before, reading))
            if len(waiting) > _MAX_WAITING[sensor]:
                waiting.popleft()
                self.dropped[sensor] += 1

    def take(
        self, packets_before: float = math.inf, clock_known: bool = True
    ) -> list[Reading | Measurement]:
        """What came before the packet after so many packets; without it, all.

        clock_known: False: what is on the clock of the events stays here.
        """
        taken: list[Reading | Measurement] = []
        with self._lock:
            for waiting in self._waiting.values():
                while waiting and waiting[0][0] <= packets_before:
                    if not clock_known and getattr(waiting[0][1], "clock_of_events", False):
                        break
                    taken.append(waiting.popleft()[1])
        return taken


def needed_sensors(config: PipelineConfig) -> dict[Sensor, str]:
    """The sensors that a configuration makes use of, and which of its parameters need them."""
    if not config.estimates_egomotion:
        return {}
    model = f"motion_model {config.motion_model}"
    needed: dict[Sensor, str] = {}
    if config.depth == "image" and config.motion_model != "rotation":
        needed[Sensor.DEPTH] = f"{model} with depth image"
    if config.depth == "range" and config.motion_model != "rotation":
        needed[Sensor.RANGE] = f"{model} with depth range"
    if config.imu != "off":
        needed[Sensor.IMU] = f"{model} with imu {config.imu}"
    return needed


def to_rotation(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """[3, 3] rotation of a unit quaternion (x, y, z, w), or of a matrix's 9 numbers row by row.

    Raises:
        ConfigError: it is neither.
    """
    numbers = np.asarray(values, np.float64)
    text = f"rotation {[float(value) for value in numbers]}"
    if len(numbers) == 4:
        norm = float(np.linalg.norm(numbers))
        if not abs(norm - 1) < _ROTATION_TOLERANCE:
            raise ConfigError(f"{text} has norm {norm:g}, expected a unit quaternion (x, y, z, w)")
        x, y, z, w = numbers / norm
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        return np.eye(3) + 2 * w * cross + 2 * cross @ cross
    if len(numbers) != 9:
        raise ConfigError(
            f"{text} has {len(numbers)} numbers, expected 4 (quaternion x, y, z, w) or 9 (matrix, "
            "row by row)"
        )
    matrix = numbers.reshape(3, 3)
    error = float(np.abs(matrix @ matrix.T - np.eye(3)).max())
    if not error < _ROTATION_TOLERANCE or np.linalg.det(matrix) < 0:
        raise ConfigError(f"{text} is no rotation: expected orthonormal rows, right-handed")
    return matrix


def converters(R_camera_from_imu: npt.NDArray[np.float64]) -> dict[Sensor, Callable[[Any], Any]]:
    """From a sensor's message to the value of its reading; they raise SensorError."""
    return {
        Sensor.DEPTH: to_depth,
        Sensor.RANGE: to_range,
        Sensor.IMU: lambda imu: R_camera_from_imu @ to_angular_velocity(imu),
    }
