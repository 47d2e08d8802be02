"""The files of a bag, and rosbags' readers of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.cut_bags import open_cut

STORAGE_SUFFIXES = (".mcap", ".db3")


def is_ros1(path: Path) -> bool:
    """Whether it is a ROS 1 bag: by its suffix, else by how it begins."""
    if path.suffix in (".bag", *STORAGE_SUFFIXES) or not path.is_file():
        return path.suffix == ".bag" and path.is_file()
    with path.open("rb") as file:
        return file.read(7) == b"#ROSBAG"


def bag_files(path: Path) -> list[Path]:
    """What rosbags is to open, in order: the storage files, or the directory if compressed.

    The storage files are read one by one where that is possible, because metadata.yaml is wrong
    or incomplete in bags that exist (no storage id, no list of topics).
    """
    if path.is_file():
        return [path]
    info = _metadata(path)
    if info.get("compression_mode"):
        return [path]
    names = info.get("relative_file_paths") or []
    # Bags before version 4 list paths relative to the directory above.
    listed = [path / Path(str(name)).name for name in names]
    missing = [file.name for file in listed if not file.is_file()]
    if missing:
        raise RecordingError(f"{path} lacks {', '.join(missing)}, which its metadata.yaml lists")
    found = listed or [file for suffix in STORAGE_SUFFIXES for file in path.glob(f"*{suffix}")]
    if not found:
        raise RecordingError(f"{path} holds no {' or '.join(STORAGE_SUFFIXES)} file: no rosbag2")
    return listed or sorted(found, key=_natural_order)


def _metadata(path: Path) -> dict[str, Any]:
    """rosbag2_bagfile_information of metadata.yaml; empty if that cannot be read."""
    import yaml

    try:
        content = yaml.safe_load((path / "metadata.yaml").read_text())
        info = content["rosbag2_bagfile_information"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return {}
    return info if isinstance(info, dict) else {}


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """bag_2 before bag_10."""
    return [(int(number or 0), text) for text, number in re.findall(r"(\D*)(\d*)", path.name)]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The reader of rosbags for a file or directory, open; of a file that was cut, one of what
    lies before the cut."""
    from rosbags import rosbag1, rosbag2

    cut = open_cut(path) if path.suffix in STORAGE_SUFFIXES else None
    reader: Any = None
    if cut is None:
        try:
            reader = (rosbag1 if is_ros1(path) else rosbag2).Reader(path)
            reader.open()
        except Exception as error:  # rosbags raises anything on damaged files
            cut = open_cut(path) if is_ros1(path) else None
            if cut is None:
                raise RecordingError(_unreadable(path, error)) from error
    if cut is not None:
        yield cut
        return
    try:
        yield reader
    finally:
        reader.close()


def guarded(path: Path, messages: Iterator[Any]) -> Iterator[Any]:
    """The same messages; whatever reading raises becomes a RecordingError."""
    while True:
        try:
            message = next(messages)
        except StopIteration:
            return
        except Exception as error:  # rosbags raises anything on damaged files
            raise RecordingError(_unreadable(path, error)) from error
        yield message


def _unreadable(path: Path, error: Exception) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return f"{path} cannot be read as a bag, it is damaged or of another format: {reason}"
