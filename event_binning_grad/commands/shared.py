"""What several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from event_binning_grad.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress

    from event_binning_grad.geometry import Camera

EXIT_FAILED = 1  # the command ran, and its result is not what it must be
EXIT_BAD_INPUT = 2


def load_camera(calibration: Path, recording: Path | None = None) -> Camera:
    """The camera of a camera_info YAML, or of a calib.txt with the sensor size of a recording.

    Raises:
        CalibrationError, RecordingError: the file cannot be read, or gives no sensor size.
    """
    from event_binning_grad.geometry import Camera

    if calibration.suffix.lower() in (".yaml", ".yml"):
        return Camera.from_yaml(calibration)
    size = None
    if recording is not None:
        from event_binning_grad.events.recordings import open_recording

        opened = open_recording(recording)
        if opened.width and opened.height:
            size = (opened.width, opened.height)
    return Camera.from_calib_txt(calibration, size)


def require_ros(packages: Sequence[str] = ("rclpy", "event_camera_msgs")) -> None:
    """Raises ConfigError, one line, where ROS 2 or these packages of it are not there."""
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} cannot be imported; this command needs ROS 2: run it from "
            "`make setup`'s .venv, or source your ROS 2 installation"
        )


def on_a_terminal() -> dict[str, Any]:
    """How to show progress: on a terminal, and nothing in a log or where an error is one line."""
    from rich.console import Console

    console = Console(stderr=True)
    return {"console": console, "transient": True, "disable": not console.is_terminal}


def event_bar() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} events"),
    )
    return Progress(*columns, TimeElapsedColumn(), **on_a_terminal())
