"""What recordings have in common that are one file of events and hold no ROS messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.flow_truth import FlowTruths
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.types import Events

KNOWN_SENSORS = ((240, 180), (304, 240), (320, 320), (346, 260), (640, 480), (1280, 720))


class FileRecording:
    """A recording in one file, without truth or messages; the base of such readers.

    encoding: that of its packets; "" where packets() yields Events. cut_bytes: at the file's end,
    which are no whole event or packet; known after packets() ran.
    """

    topic: str | None = None
    kind = "file"
    encoding = ""
    cut_bytes = 0

    def __init__(self, path: Path) -> None:
        self.path = path

    def raw_messages(self) -> Iterator[Any]:
        """There are no ROS messages: always raises RecordingError."""
        raise RecordingError(f"{self.path} is a recording without ROS messages: need a bag")

    def unusable(self) -> dict[str, int]:
        """What packets() could not use as it was, by reason, after it ran."""
        return {}

    def warnings(self) -> list[str]:
        """What is wrong with the file, a line each; complete after packets() ran."""
        return [cut_short(self.path, self.cut_bytes)] if self.cut_bytes else []

    def calibration(self) -> dict[str, Any] | None:
        """The format holds no calibration: None."""
        return None

    def ground_truth(self) -> GroundTruth | None:
        """The format holds no true motion: None."""
        return None

    def flow_truth(self) -> FlowTruths | None:
        """The format holds no optical flow: None."""
        return None


def cut_short(path: Path, lost_bytes: int) -> str:
    """The warning about a file that ends too early."""
    return (
        f"{path} is cut short: left out were the bytes at its end that are no whole event or "
        f"packet ({lost_bytes:,}), and what came behind them is missing. Copy the file again from "
        "where it was recorded, or go on with what is there"
    )


def smallest_sensor(max_x: int, max_y: int, path: Path, remedy: str) -> tuple[int, int]:
    """Width and height of the smallest known sensor that holds events up to these pixels.

    remedy: what to do where none does. Raises RecordingError then.
    """
    for width, height in KNOWN_SENSORS:
        if max_x < width and max_y < height:
            return width, height
    raise RecordingError(
        f"{path}: events reach x {max_x} and y {max_y}, outside every known sensor: {remedy}"
    )


def learnt_size(chunks: Iterable[Events], path: Path, remedy: str) -> tuple[int, int]:
    """The sensor's size by the events themselves, in one pass; see `smallest_sensor`."""
    reach = np.full(2, -1)
    for events in chunks:
        if len(events):
            reach = np.maximum(reach, (int(events.x.max()), int(events.y.max())))
    if reach[0] < 0:
        raise RecordingError(f"{path} holds no events")
    return smallest_sensor(int(reach[0]), int(reach[1]), path, remedy)


def open_file(path: Path) -> Any:
    """The file, open for reading bytes; RecordingError where it cannot be."""
    try:
        return path.open("rb")
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror}") from None
