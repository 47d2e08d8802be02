"""Flow fields kept in a file: one .npz, written field by field."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import numpy as np

from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.estimation.flow_estimate import FlowEstimate
from event_binning_grad.events.types import NS_PER_S

# Of each array [T, H, W, ...]: what a pixel holds.
_OF_PIXELS = {"flow": ("<f4", (2,)), "confidence": ("<f2", ()), "normal_flow": ("|b1", ())}
_OF_FIELDS = ("stamp_s", "window_start_s", "window_end_s")


class FlowFile:
    """Writes flow fields to an .npz, which np.load reads, without holding them.

    Arrays: stamp_s [T] float64, the fields' times in s on the recording's clock; window_start_s and
    window_end_s [T] float64, of the windows that they were made of; status [T], "ok" or why the
    field is not trusted (FlowStatus); flow [T, H, W, 2] float32 px/s (x, y), NaN where unknown;
    confidence [T, H, W] float16, 0 to 1, and 0 where unknown; normal_flow [T, H, W] bool, where
    only the part across the edges is known, and flow is that part. A field without trust is unknown
    everywhere.

    Beside the file the disk needs room for a copy of it meanwhile. The file appears, or replaces
    one of its name, only when it is complete: at the end of `with`.

    Raises:
        ConfigError: the name does not end in .npz, or its folder is not there.
        EventBinningError: the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".npz":
            raise ConfigError(f"{self.path}: expected a name that ends in .npz")
        if not self.path.parent.is_dir():
            raise ConfigError(f"{self.path}: there is no folder {self.path.parent}: make it first")
        if self.path.is_dir():
            raise ConfigError(f"{self.path} is a folder; expected the name of a file")
        with self._writing():
            self._folder = TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.name}.")
            self._parts = {
                name: (Path(self._folder.name) / name).open("wb+") for name in _OF_PIXELS
            }
        self._times: list[tuple[int, int, int]] = []
        self._statuses: list[str] = []
        self._size: tuple[int, ...] | None = None

    def __enter__(self) -> FlowFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with self._writing():
                    self._finish()
        finally:
            for part in self._parts.values():
                # What a full disk did not take would be written, and fail, once more.
                with suppress(OSError):
                    part.close()
            self._folder.cleanup()

    def add(self, estimate: FlowEstimate) -> None:
        """Appends a field of full resolution.

        Raises:
            EventBinningError: it has another size than those before, or the disk is full.
        """
        size = estimate.normal_flow.shape
        if self._size not in (None, size):
            raise EventBinningError(
                f"a flow field of {list(size)} after ones of {list(self._size or ())}; "
                "expected one sensor size in a recording"
            )
        self._size = size
        self._times.append((estimate.stamp_ns, estimate.window_start_ns, estimate.window_end_ns))
        self._statuses.append(estimate.status.value)
        unknown = not estimate.status.ok
        with self._writing():
            for name, (dtype, _) in _OF_PIXELS.items():
                values = np.ascontiguousarray(getattr(estimate, name), dtype)
                if unknown:
                    values = np.full_like(values, np.nan if name == "flow" else 0)
                self._parts[name].write(values.data)

    def _finish(self) -> None:
        whole = Path(self._folder.name) / "whole"
        times = np.array(self._times, np.int64).reshape(-1, 3) / NS_PER_S
        shape = (len(times), *(self._size or (0, 0)))
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            columns: dict[str, np.ndarray] = dict(zip(_OF_FIELDS, times.T, strict=True))
            columns["status"] = np.array(self._statuses, np.str_)
            for name, column in columns.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(column))
            for name, (dtype, of_pixel) in _OF_PIXELS.items():
                header = {"descr": dtype, "fortran_order": False, "shape": shape + of_pixel}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    self._parts[name].seek(0)
                    shutil.copyfileobj(self._parts[name], member, 1 << 20)
                self._parts[name].truncate(0)
        os.replace(whole, self.path)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Errors of the disk name the file, not what lies beside it meanwhile."""
        try:
            yield
        except OSError as error:
            raise EventBinningError(
                f"{self.path} cannot be written: {error.strerror or error}"
            ) from None
