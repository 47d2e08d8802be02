"""Flow fields kept in a file: one .npz, written field by field."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import EventBinningError
from event_binning_grad.events.types import NS_PER_S


class FlowFile:
    """Writes flow fields to an .npz, which np.load reads, without holding them.

    Arrays: stamp_s [T] float64, the fields' times in s on the recording's clock; window_start_s and
    window_end_s [T] float64, of the windows that they were made of; flow [T, H, W, 2] float32 px/s
    (x, y), NaN where unknown. Beside the file the disk needs room for a copy of it meanwhile. The
    file appears, or replaces one of its name, only when it is complete: at the end of `with`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.name}.")
        self._fields = (Path(self._folder.name) / "fields").open("wb+")
        self._times: list[tuple[int, int, int]] = []
        self._shape: tuple[int, ...] | None = None

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
                self._finish()
        finally:
            self._fields.close()
            self._folder.cleanup()

    def add(
        self, stamp_ns: int, start_ns: int, end_ns: int, flow: npt.NDArray[np.floating]
    ) -> None:
        """Appends a field [H, W, 2].

        Raises:
            EventBinningError: it has another size than those before.
        """
        if self._shape not in (None, flow.shape):
            raise EventBinningError(
                f"a flow field of {list(flow.shape)} after ones of {list(self._shape or ())}; "
                "expected one sensor size in a recording"
            )
        self._shape = flow.shape
        self._times.append((stamp_ns, start_ns, end_ns))
        self._fields.write(np.ascontiguousarray(flow, "<f4").data)

    def _finish(self) -> None:
        whole = Path(self._folder.name) / "whole"
        times = np.array(self._times, np.int64).reshape(-1, 3) / NS_PER_S
        header = {
            "descr": "<f4",
            "fortran_order": False,
            "shape": (len(times), *(self._shape or (0, 0, 2))),
        }
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, column in zip(
                ("stamp_s", "window_start_s", "window_end_s"), times.T, strict=True
            ):
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(column))
            with archive.open("flow.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                self._fields.seek(0)
                shutil.copyfileobj(self._fields, member, 1 << 20)
        os.replace(whole, self.path)
