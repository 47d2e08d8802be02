"""Files and directories that appear only when they are complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from event_binning_grad.errors import RecordingError


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A place beside `path`, in an empty folder, to write to; what is there at the end goes to
    `path`, and after an exception nothing is left.

    Raises RecordingError if `path` exists or cannot be written.
    """
    if path.exists():
        raise RecordingError(f"{path} exists already: choose another path or delete it")
    there = next(place for place in path.absolute().parents if place.exists())
    if not there.is_dir():
        raise RecordingError(f"{path} cannot be written: {there} is a file, expected a folder")
    begun = f".{path.name}."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=begun) as workplace:
            unfinished = Path(workplace) / path.name
            yield unfinished
            unfinished.rename(path)
    except OSError as error:
        reason = error.strerror or error
        if isinstance(error.filename, str):
            named = Path(error.filename).absolute()
            own = (path.absolute(), *path.absolute().parents)
            if named not in own and not str(named).startswith(str(own[1] / begun)):
                raise RecordingError(f"{error.filename}: {reason}") from None
        raise RecordingError(f"{path} cannot be written: {reason}") from None
