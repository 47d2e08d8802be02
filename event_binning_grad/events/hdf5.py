"""HDF5 files of data sets, read piece by piece; the libraries for it are optional."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import RecordingError


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """The file as an h5py.File.

    Raises RecordingError if it cannot be read, or h5py and hdf5plugin (the filters of compressed
    data sets) are not there.
    """
    try:
        import h5py
        import hdf5plugin  # noqa: F401 (importing it registers the filters)
    except ImportError as error:
        raise RecordingError(
            f"{path}: HDF5 files need h5py and hdf5plugin ({error}): pip install h5py hdf5plugin"
        ) from None
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise RecordingError(
            f"{path} cannot be read as HDF5: {_one_line(error)}; expected a whole file: fetch it "
            "again"
        ) from None
    with file:
        yield file


def dataset(file: Any, name: str, *shape: int | None) -> Any:
    """The data set of numbers of this name and shape, where None is any length."""
    found = file.get(name)
    path = file.filename
    if found is None or not hasattr(found, "shape"):
        raise RecordingError(
            f"{path} holds no /{name}, but {', '.join(sorted(file)) or 'nothing'} at its top: "
            "expected the layout of MVSEC or DSEC"
        )
    sizes = [wanted in (None, size) for wanted, size in zip(shape, found.shape, strict=False)]
    if len(found.shape) != len(shape) or not all(sizes) or found.dtype.kind not in "iuf":
        wanted = ", ".join("N" if size is None else str(size) for size in shape)
        raise RecordingError(
            f"{path}, /{name}: found {found.dtype} {list(found.shape)}, expected numbers [{wanted}]"
        )
    return found


def read(source: Any, part: Any = ...) -> NDArray[Any]:
    """A part of a data set; what is damaged there is one line."""
    try:
        return np.asarray(source[part])
    except (OSError, RuntimeError) as error:
        raise RecordingError(
            f"{source.file.filename}, {source.name}: cannot be read: {_one_line(error)}"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
