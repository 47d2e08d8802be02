"""Events as a file of numpy arrays: t (int64, ns), x, y (uint16), p (uint8), width and height.

Files of others are read too: times may be any integers, in the unit that a text `unit` says ("ns",
"us"; ns without it), polarities 0/1 or -1/1, and width and height may be absent. With k, d and
distortion_model the file holds the camera's calibration.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.file_recording import FileRecording, learnt_size
from event_binning_grad.events.in_order import Unusable, events_in_order
from event_binning_grad.events.new_file import appearing
from event_binning_grad.events.types import Events

COLUMNS = {"t": np.dtype("<i8"), "x": np.dtype("<u2"), "y": np.dtype("<u2"), "p": np.dtype("u1")}
CAMERA_ARRAYS = ("k", "d")
BLOCK_EVENTS = 1 << 16
_UNITS_NS = {"ns": 1, "us": 1000}
_MAX_TIME_NS = 1 << 62
_MAX_SIDE = 1 << 16
_MAX_VALUES = 1000  # of what is no column
_DAMAGED = (OSError, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError, zlib.error)


def write_npz(
    path: Path | str, chunks: Iterable[Events], camera_info: Mapping[str, Any] | None = None
) -> int:
    """Writes events to a new .npz, uncompressed; returns how many.

    chunks: of one sensor size, streamed: the columns grow in files of their own beside `path`,
        which appears only when it is complete.
    camera_info: fields of sensor_msgs/CameraInfo; its k, d and distortion_model are kept.
    Raises RecordingError for a path that exists or cannot be written, for no events at all, and
    for a sensor size that changes.
    """
    path = Path(path)
    with appearing(path) as unfinished:
        folder = unfinished.parent
        written, size = _write_columns(folder, chunks, path)
        scalars: dict[str, Any] = {"width": np.int64(size[0]), "height": np.int64(size[1])}
        if camera_info is not None:
            scalars |= {name: np.asarray(camera_info[name], float) for name in CAMERA_ARRAYS}
            scalars["distortion_model"] = np.array(str(camera_info["distortion_model"]))
        _pack(unfinished, folder, written, scalars)
    return written


def _write_columns(
    folder: Path, chunks: Iterable[Events], path: Path
) -> tuple[int, tuple[int, int]]:
    written, size = 0, None
    with ExitStack() as files:
        columns = {name: files.enter_context((folder / name).open("wb")) for name in COLUMNS}
        for events in chunks:
            size = size or (events.width, events.height)
            if size != (events.width, events.height):
                raise RecordingError(
                    f"the sensor size changes from {size} to {(events.width, events.height)}; "
                    f"expected one, as {path} holds one: convert a part (--start, --duration)"
                )
            for name, dtype in COLUMNS.items():
                columns[name].write(np.ascontiguousarray(getattr(events, name), dtype).data)
            written += len(events)
    if size is None or not written:
        raise RecordingError(f"no events to write to {path}")
    return written, size


def _pack(unfinished: Path, folder: Path, written: int, scalars: Mapping[str, Any]) -> None:
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, dtype in COLUMNS.items():
            header = {"descr": dtype.str, "fortran_order": False, "shape": (written,)}
            with (
                (folder / name).open("rb") as column,
                archive.open(f"{name}.npy", "w", force_zip64=True) as entry,
            ):
                np.lib.format.write_array_header_1_0(entry, header)
                shutil.copyfileobj(column, entry, 1 << 20)
        for name, value in scalars.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, np.asarray(value), allow_pickle=False)


class NpzRecording(FileRecording):
    """Events of an .npz, compressed or not, read in blocks. Counted: those of Unusable."""

    kind = "npz"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._unusable = Unusable()
        with self._archive() as archive:
            for name in COLUMNS:
                with archive.open(f"{name}.npy") as member:
                    shape, dtype = _array_header(member)
                if len(shape) != 1 or dtype.kind not in "iub":
                    raise ValueError(f"{name} is {dtype} {list(shape)}, expected integers [N]")
                if shape == (0,):
                    raise RecordingError(f"{path} holds no events")
            present = {name.removesuffix(".npy") for name in archive.namelist()}
            unit = str(self._value(archive, "unit")) if "unit" in present else "ns"
            if unit not in _UNITS_NS:
                raise ValueError(f"unit is {unit[:20]!r}, expected {' or '.join(_UNITS_NS)}")
            self._unit_ns = _UNITS_NS[unit]
            self._given_size: tuple[int, int] | None = None
            if {"width", "height"} <= present:
                width, height = (int(self._value(archive, name)) for name in ("width", "height"))
                if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
                    raise ValueError(f"the sensor size is {width} x {height}")
                self._given_size = width, height
            self._camera: dict[str, Any] | None = None
            if {*CAMERA_ARRAYS, "distortion_model"} <= present:
                self._camera = {
                    name: np.asarray(self._value(archive, name), float).ravel().tolist()
                    for name in CAMERA_ARRAYS
                }
                model = str(self._value(archive, "distortion_model"))
                self._camera["distortion_model"] = model

    @property
    def width(self) -> int:
        """Columns of the sensor: as the file says, else of the smallest known one that fits."""
        return self._size[0]

    @property
    def height(self) -> int:
        """Rows of the sensor."""
        return self._size[1]

    def packets(self) -> Iterator[Events]:
        """The events in blocks, in the order of time; see `events_in_order`."""
        return events_in_order(self._blocks(), *self._size, self.path, self._unusable)

    def unusable(self) -> dict[str, int]:
        """What packets() could not use as it was, by reason, after it ran."""
        return asdict(self._unusable)

    def warnings(self) -> list[str]:
        """What is wrong with the file, a line each."""
        if self._given_size is not None:
            return []
        return [
            f"{self.path} says no sensor size: taken for {self.width}x{self.height}, the smallest "
            "known one that holds its events; if it is another, write width and height to the file"
        ]

    def calibration(self) -> dict[str, Any] | None:
        """The camera as fields of sensor_msgs/CameraInfo; None if the file holds none."""
        if self._camera is None:
            return None
        return {"width": self.width, "height": self.height} | self._camera

    @cached_property
    def _size(self) -> tuple[int, int]:
        if self._given_size is not None:
            return self._given_size
        chunks = events_in_order(self._blocks(), _MAX_SIDE, _MAX_SIDE, self.path, Unusable())
        return learnt_size(chunks, self.path, "write width and height to the file")

    def _blocks(self) -> Iterator[tuple[NDArray[Any], ...]]:
        with self._archive() as archive, ExitStack() as members:
            columns = [members.enter_context(archive.open(f"{name}.npy")) for name in COLUMNS]
            headers = [_array_header(column) for column in columns]
            counts = {int(shape[0]) for shape, _ in headers}
            if len(counts) != 1:
                raise ValueError(f"its columns have {sorted(counts)} events, expected one number")
            left = counts.pop()
            while left:
                count = min(left, BLOCK_EVENTS)
                yield self._checked(
                    *(
                        _values(column, dtype, count)
                        for column, (_, dtype) in zip(columns, headers, strict=True)
                    )
                )
                left -= count
            for column in columns:
                column.read(1)  # at the end the checksum is compared

    def _checked(self, t: Any, x: Any, y: Any, p: Any) -> tuple[NDArray[Any], ...]:
        limit = _MAX_TIME_NS // self._unit_ns
        if int(t.max()) > limit or int(t.min()) < -limit:
            raise ValueError(f"times reach from {t.min()} to {t.max()}: the unit is another")
        # A coordinate that no sensor has is outside; in uint16 it would come back inside.
        x, y = (np.where((v >= 0) & (v < _MAX_SIDE), v, _MAX_SIDE - 1) for v in (x, y))
        return (
            t.astype(np.int64) * self._unit_ns, x.astype(np.uint16), y.astype(np.uint16),
            (p > 0).astype(np.uint8),
        )  # fmt: skip

    def _value(self, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
        with archive.open(f"{name}.npy") as member:
            shape, dtype = _array_header(member)
            if dtype.kind not in "iufU" or np.prod(shape, dtype=float) > _MAX_VALUES:
                raise ValueError(f"{name} is {dtype} {list(shape)}, expected a few values")
            return _values(member, dtype, int(np.prod(shape, dtype=int))).reshape(shape)

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        """The file, open; whatever is wrong with it, then or while reading, is one line."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except RecordingError:
            raise
        except (*_DAMAGED, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if not zipfile.is_zipfile(self.path):
                reason = "it is cut short, or no zip at all: copy it again"
            raise RecordingError(
                f"{self.path} cannot be read: {reason}; expected an .npz of "
                f"{', '.join(COLUMNS)}, width and height"
            ) from None


def _array_header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array of an .npz; its bytes come next."""
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(member)]
    shape, fortran_order, dtype = read_header(member)
    if dtype.hasobject or (fortran_order and len(shape) > 1) or min(shape, default=0) < 0:
        raise ValueError(f"found an array of {dtype}, expected numbers in C order")
    return shape, dtype


def _values(member: Any, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    data = member.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise EOFError("an array ends early")
    return np.frombuffer(data, dtype)
