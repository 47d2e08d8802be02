"""Opening recordings: one function that looks at the path, and at what the file holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from event_binning_grad.errors import RecordingError
from event_binning_grad.events import aedat4
from event_binning_grad.events.aedat4 import Aedat4Recording
from event_binning_grad.events.bag_files import STORAGE_SUFFIXES
from event_binning_grad.events.bag_writer import write_bag
from event_binning_grad.events.bags import BagRecording
from event_binning_grad.events.dsec import DsecRecording, find_events
from event_binning_grad.events.file_recording import open_file
from event_binning_grad.events.flow_truth import FlowTruth, FlowTruths
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.hdf5 import open_hdf5
from event_binning_grad.events.mvsec import DATA_SUFFIX, MvsecRecording
from event_binning_grad.events.npz import NpzRecording, write_npz
from event_binning_grad.events.prophesee_dat import DatRecording
from event_binning_grad.events.prophesee_raw import RawRecording
from event_binning_grad.events.text import TextRecording
from event_binning_grad.events.types import EventPacket, Events

__all__ = [
    "Aedat4Recording",
    "BagRecording",
    "DatRecording",
    "DsecRecording",
    "FlowTruth",
    "FlowTruths",
    "GroundTruth",
    "MvsecRecording",
    "NpzRecording",
    "RawRecording",
    "Recording",
    "TextRecording",
    "open_recording",
    "write_bag",
    "write_npz",
]

_HEAD_BYTES = 512
_FILE_SUFFIXES = (".bag", ".aedat4", ".raw", ".dat", ".npz")
_SHOWN = 5
_OF_ONE_CAMERA = (TextRecording, NpzRecording, RawRecording, DatRecording)


class Recording(Protocol):
    """What every recording can do. packets() may be called again; it starts from the beginning.

    kind: its format, for people. encoding: that of its packets; "" where packets() yields Events.
    warnings(): what is wrong with the file as such, above all that it is cut short, a line each;
    complete after packets() ran.
    """

    path: Path

    @property
    def kind(self) -> str: ...
    @property
    def encoding(self) -> str: ...
    @property
    def width(self) -> int | None: ...
    @property
    def height(self) -> int | None: ...
    @property
    def topic(self) -> str | None: ...
    def packets(self) -> Iterator[EventPacket] | Iterator[Events]: ...
    def raw_messages(self) -> Iterator[Any]: ...
    def unusable(self) -> dict[str, int]: ...
    def warnings(self) -> list[str]: ...
    def calibration(self) -> dict[str, Any] | None: ...
    def ground_truth(self) -> GroundTruth | None: ...
    def flow_truth(self) -> FlowTruths | None: ...


def open_recording(path: Path | str, topic: str | None = None) -> Recording:
    """The recording at a path, whatever its format.

    path: a directory with events.txt, a rosbag2 directory, the directory of an MVSEC or DSEC
        sequence; or a file, which is known by how it begins rather than by its name: .mcap, .db3
        or ROS 1 .bag, AEDAT4, Prophesee .raw and .dat, *_data.hdf5 (MVSEC), events.h5 (DSEC), .npz,
        or text of a line for each event.
    topic: the events' topic, where a bag holds several; the camera, where an AEDAT4 file does;
        "left" (the default) or "right" camera of MVSEC and DSEC; None of all others.
    Raises RecordingError if there is nothing that can be read.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise RecordingError(f"{path} does not exist: expected a recording")
    recording = _open_directory(path, topic) if path.is_dir() else _open_file(path, topic)
    if topic is not None and isinstance(recording, _OF_ONE_CAMERA):
        raise RecordingError(
            f"{path} holds the events of one camera, found the topic {topic}: leave it out"
        )
    return recording


def _open_file(path: Path, topic: str | None) -> Recording:
    if not path.is_file():
        raise RecordingError(f"{path} is neither a file nor a directory: expected a recording")
    with open_file(path) as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise RecordingError(f"{path} is empty, expected a recording: copy or record it again")
    if path.name == "metadata.yaml":
        raise RecordingError(f"{path} is part of a bag: open its folder {path.absolute().parent}")
    suffix = path.suffix.lower()
    if head.startswith(b"#ROSBAG") or suffix in (".bag", *STORAGE_SUFFIXES):
        return BagRecording(path, topic)
    if suffix == ".zstd" and path.with_suffix("").suffix in STORAGE_SUFFIXES:
        raise RecordingError(
            f"{path} is one file of a compressed bag: open the directory with its metadata.yaml"
        )
    if head.startswith(b"#!AER-DAT") or suffix == ".aedat4":
        if head.startswith(b"#!AER-DAT") and not head.startswith(aedat4.MAGIC):
            raise RecordingError(
                f"{path} begins with {head.split()[0].decode(errors='replace')!r}, expected "
                "AEDAT 4.0: convert it with iniVation's tools"
            )
        return Aedat4Recording(path, topic)
    if head.startswith(b"\x89HDF\r\n\x1a\n") or suffix in (".hdf5", ".h5"):
        return _open_data_set(path, topic)
    if head.startswith(b"PK\x03\x04") or suffix == ".npz":
        return NpzRecording(path)
    if suffix == ".csv":
        return TextRecording(path)
    if suffix == ".dat" or (head.startswith(b"% ") and b"Data file containing" in head):
        return DatRecording(path)
    if suffix == ".raw" or head.startswith(b"% "):
        return RawRecording(path)
    if suffix == ".txt" or _is_text(head):
        return TextRecording(path)
    for name, magic in ((".mcap", b"\x89MCAP0\r\n"), (".db3", b"SQLite format 3")):
        if head.startswith(magic):
            raise RecordingError(f"{path} is a rosbag2 file: give it a name that ends in {name}")
    raise _unknown(path)


def _open_directory(path: Path, topic: str | None) -> Recording:
    if (path / "events.txt").is_file():
        return TextRecording(path)
    if (path / "metadata.yaml").is_file() or any(
        any(path.glob(f"*{suffix}")) for suffix in STORAGE_SUFFIXES
    ):
        return BagRecording(path, topic)
    if any(path.glob(f"*{DATA_SUFFIX}")) or find_events(path) or find_events(path, "right"):
        return _open_data_set(path, topic)
    kinds = (*STORAGE_SUFFIXES, *_FILE_SUFFIXES)
    inside = sorted(
        each.name
        for each in path.iterdir()
        if each.suffix in kinds or (each / "metadata.yaml").is_file()
    )
    if inside:
        more = ", …" if len(inside) > _SHOWN else ""
        raise RecordingError(
            f"{path} is a folder of recordings: choose one of {', '.join(inside[:_SHOWN])}{more}"
        )
    raise _unknown(path)


def _open_data_set(path: Path, topic: str | None) -> MvsecRecording | DsecRecording:
    """MVSEC or DSEC: a directory by its files' names, a file by what it holds."""
    if topic not in (None, "left", "right"):
        raise RecordingError(f"{path}: the camera is {topic}, expected left or right")
    if path.is_dir():
        is_mvsec = any(path.glob(f"*{DATA_SUFFIX}"))
    else:
        with open_hdf5(path) as file:
            is_mvsec = "davis" in file
    return (MvsecRecording if is_mvsec else DsecRecording)(path, topic or "left")


def _is_text(head: bytes) -> bool:
    return bool(head) and all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head)


def _unknown(path: Path) -> RecordingError:
    return RecordingError(
        f"{path} is no recording that is known here: expected a directory with events.txt, a "
        "rosbag2 directory, an MVSEC or DSEC sequence, or a file in one of the formats mcap, db3, "
        "bag, aedat4, raw, dat, hdf5, npz, csv and text"
    )
