"""What several commands share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from event_binning_grad.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress

    from event_binning_grad.geometry import Camera

EXIT_FAILED = 1  # the command ran, and its result is not what it must be
EXIT_BAD_INPUT = 2


def add_topic(parser: argparse.ArgumentParser) -> None:
    """The option that chooses the events of a recording that holds several cameras."""
    parser.add_argument(
        "--topic", metavar="TOPIC",
        help="of the events, where a bag holds several; or the camera (AEDAT4: its name, MVSEC and "
        "DSEC: left or right)",
    )  # fmt: skip


def add_stretch(parser: argparse.ArgumentParser) -> None:
    """The options that choose a part of a recording, see `Stretch`."""
    parser.add_argument(
        "--start", type=float, default=0.0, metavar="S", help="leave out so much of the beginning"
    )
    parser.add_argument(
        "--duration", type=float, metavar="S", help="end so long after that (default: the end)"
    )


def print_warnings(warnings: Iterable[str], command: str) -> None:
    """A line each on standard error."""
    for warning in warnings:
        print(f"event-binning-grad {command}: warning: {warning}", file=sys.stderr)


def load_camera(
    calibration: Path, recording: Path | None = None, topic: str | None = None
) -> Camera:
    """The camera of a camera_info YAML, or of a calib.txt with the sensor size of a recording.

    topic: of the events, see open_recording.

    Raises:
        CalibrationError, RecordingError: the file cannot be read, or gives no sensor size.
    """
    from event_binning_grad.geometry import Camera

    if is_yaml(calibration):
        return Camera.from_yaml(calibration)
    size = None
    if recording is not None:
        from event_binning_grad.events.recordings import open_recording

        opened = open_recording(recording, topic)
        if opened.width and opened.height:
            size = (opened.width, opened.height)
    return Camera.from_calib_txt(calibration, size)


def is_yaml(calibration: Path) -> bool:
    """Whether a calibration is a camera_info YAML; else it is a calib.txt."""
    return calibration.suffix.lower() in (".yaml", ".yml")


def check_places(files: Iterable[Path | None], folders: Iterable[Path | None] = ()) -> None:
    """Raises ConfigError, one line, where a report could not be written: before the work, not after
    it. Folders that are not there will be made, but not the folders that they lie in."""
    for path in filter(None, files):
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; expected the name of a file")
        if path.exists():
            if not os.access(path, os.W_OK):
                raise ConfigError(f"{path} cannot be written: choose another place")
        else:
            _check_folder(path, path.absolute().parent)
    for path in filter(None, folders):
        _check_folder(path, path if path.exists() else path.absolute().parent)


def _check_folder(path: Path, folder: Path) -> None:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ConfigError(f"{path}: {there} is a file; expected a folder")
    if there != folder:
        raise ConfigError(f"{path}: there is no folder {folder}: make it first")
    try:  # permissions do not tell of places such as /proc
        TemporaryFile(dir=folder).close()
    except OSError:
        raise ConfigError(
            f"{path}: nothing can be written to {folder}: choose another place"
        ) from None


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
