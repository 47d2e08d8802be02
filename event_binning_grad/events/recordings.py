"""Opening recordings: one function that looks at the path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.bags import STORAGE_SUFFIXES, BagRecording, write_bag
from event_binning_grad.events.dsec import DsecRecording, find_events
from event_binning_grad.events.flow_truth import FlowTruth, FlowTruths
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.hdf5 import open_hdf5
from event_binning_grad.events.mvsec import DATA_SUFFIX, MvsecRecording
from event_binning_grad.events.text import TextRecording
from event_binning_grad.events.types import EventPacket, Events

__all__ = [
    "BagRecording",
    "DsecRecording",
    "FlowTruth",
    "FlowTruths",
    "GroundTruth",
    "MvsecRecording",
    "Recording",
    "TextRecording",
    "open_recording",
    "write_bag",
]


class Recording(Protocol):
    """What every recording can do. packets() may be called again; it starts from the beginning."""

    path: Path

    @property
    def width(self) -> int | None: ...
    @property
    def height(self) -> int | None: ...
    @property
    def topic(self) -> str | None: ...
    def packets(self) -> Iterator[EventPacket] | Iterator[Events]: ...
    def raw_messages(self) -> Iterator[Any]: ...
    def unusable(self) -> dict[str, int]: ...
    def calibration(self) -> dict[str, Any] | None: ...
    def ground_truth(self) -> GroundTruth | None: ...
    def flow_truth(self) -> FlowTruths | None: ...


def open_recording(path: Path | str, topic: str | None = None) -> Recording:
    """The recording at a path, whatever its format.

    path: a directory with events.txt or such a file (event camera dataset), a rosbag2 directory,
        a bare .mcap or .db3, a ROS 1 .bag, a *_data.hdf5 (MVSEC), an events.h5 (DSEC), or the
        directory of such a sequence.
    topic: the events' topic, where a bag holds several; "left" (the default) or "right" camera of
        MVSEC and DSEC.
    Raises RecordingError if there is nothing that can be read.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise RecordingError(f"{path} does not exist: expected a recording")
    if (path / "events.txt").is_file() or path.suffix == ".txt":
        return TextRecording(path)
    if path.is_file() and path.suffix in (".bag", *STORAGE_SUFFIXES):
        return BagRecording(path, topic)
    if path.is_dir() and (
        (path / "metadata.yaml").is_file()
        or any(any(path.glob(f"*{suffix}")) for suffix in STORAGE_SUFFIXES)
    ):
        return BagRecording(path, topic)
    if (kind := _data_set(path)) is not None:
        if topic not in (None, "left", "right"):
            raise RecordingError(f"{path}: the camera is {topic}, expected left or right")
        return kind(path, topic or "left")
    raise RecordingError(
        f"{path} is no recording that is known here: expected a directory with events.txt, "
        "a rosbag2 directory, an MVSEC or DSEC sequence, or a .mcap, .db3, .bag, .hdf5, .h5 or "
        ".txt file"
    )


def _data_set(path: Path) -> type[MvsecRecording] | type[DsecRecording] | None:
    """Which data set a path is of: a directory by its files' names, a file by what it holds."""
    if path.is_dir():
        if any(path.glob(f"*{DATA_SUFFIX}")):
            return MvsecRecording
        found = find_events(path) or find_events(path, "right")
        return DsecRecording if found else None
    if path.suffix not in (".hdf5", ".h5"):
        return None
    with open_hdf5(path) as file:
        return MvsecRecording if "davis" in file else DsecRecording
