"""Downloads public sequences: resumed where they broke off, checked, and unpacked.

Publishers give no checksums. The first whole download of a file is taken as it is and its SHA-256
written down beside the sequence's directory; whatever is downloaded again must have the same.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.catalogue import RemoteFile, Sequence

TIMEOUT_S = 30.0
TRIES = 4  # without a byte in between
_BLOCK_BYTES = 1 << 18
_SPARE_BYTES = 100 * 10**6  # of the disk, left free


@dataclass(frozen=True)
class Progress:
    """How far a file is. total: its bytes, None if the server does not say."""

    file: str
    done: int
    total: int | None


def fetch_sequence(
    sequence: Sequence,
    directory: Path,
    progress: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Downloads a sequence into directory/NAME, which it returns; what is there already is kept.

    directory/NAME.json holds the size and SHA-256 of every file.

    Raises RecordingError, one line: no network, a file that is not (or no longer) there, a damaged
    one, or no room. What has come so far stays, and the next call goes on from there.
    """
    place = directory / sequence.name
    place.mkdir(parents=True, exist_ok=True)
    records = _Records(directory / f"{sequence.name}.json")
    for file in sequence.files:
        record = records.of(file.url)
        if _is_there(place, file, record):
            say(f"{file.name}: there already")
            continue
        part = _download(sequence, file, place, records, progress, say)
        digest, size = _sha256(part), part.stat().st_size
        known = record.get("sha256", digest)
        if digest != known:
            part.unlink()
            raise RecordingError(
                f"{file.url}: SHA-256 {digest}, expected {known} as it was when first fetched; "
                "deleted: fetch again, and if it stays so, the published file is another one now: "
                f"delete {records.path} to take it"
            )
        names = _unpack(part, place / file.target) if file.packed else _move(part, place, file)
        fetched = {"bytes": size, "sha256": digest, "unpacked": names}
        records.set(file.url, records.of(file.url) | fetched)
        say(f"{file.name}: {size:,} bytes, SHA-256 {digest}")
    return place


class _Records:
    """What is known of the files that were fetched, in a JSON file by their URLs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._all: dict[str, dict[str, Any]] = {}
        try:
            self._all.update(json.loads(path.read_text()))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError) as error:
            raise RecordingError(f"{path} cannot be read: {error}: delete it") from None

    def of(self, url: str) -> dict[str, Any]:
        return dict(self._all.get(url, {}))

    def set(self, url: str, record: dict[str, Any]) -> None:
        self._all[url] = record
        new = self.path.with_suffix(".json.new")
        new.write_text(json.dumps(self._all, indent=1) + "\n")
        new.replace(self.path)


def _is_there(place: Path, file: RemoteFile, record: dict[str, Any]) -> bool:
    """Whether a file was fetched and still lies there; a plain one is compared with its checksum.

    Raises RecordingError if it is another one.
    """
    target = place / file.target
    if file.packed:
        names = record.get("unpacked", [])
        return bool(names) and all((target / name).exists() for name in names)
    if not target.is_file():
        return False
    if "sha256" not in record:  # brought here by other means
        return True
    if (digest := _sha256(target)) != record["sha256"]:
        raise RecordingError(
            f"{target}: SHA-256 {digest}, expected {record['sha256']}: delete it and fetch again"
        )
    return True


def _download(
    sequence: Sequence,
    file: RemoteFile,
    place: Path,
    records: _Records,
    progress: Callable[[Progress], None],
    say: Callable[[str], None],
) -> Path:
    """The whole file as NAME.part; goes on with the one that is there."""
    part = place / f"{file.name}.part"
    if file.packed and (place / file.name).is_file():  # brought here by other means
        return (place / file.name).replace(part)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            whole = _receive(file, part, records, progress, say)
        except urllib.error.HTTPError as error:
            raise RecordingError(
                f"{file.url}: the server says {error.code} {error.reason}: "
                f"{_by_hand(sequence, file, place)}"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            whole, problem = False, " ".join(str(reason).split()) or type(error).__name__
        else:
            problem = "the connection ended early"
        if whole:
            return part
        now = part.stat().st_size if part.exists() else 0
        failures = 0 if now > before else failures + 1
        if failures and now == 0:
            raise RecordingError(
                f"{file.url} cannot be reached ({problem}): is there a network? Else "
                f"{_by_hand(sequence, file, place)}"
            )
        if failures == TRIES:
            raise RecordingError(
                f"{file.url}: stuck after {now:,} bytes ({problem}): run it again to go on from "
                f"there, or {_by_hand(sequence, file, place)}"
            )


def _by_hand(sequence: Sequence, file: RemoteFile, place: Path) -> str:
    target = place / (file.name if file.packed else file.target)
    page = file.page or sequence.data_set.homepage
    return f"get it from {page}, save it as {target} and run it again"


def _receive(
    file: RemoteFile,
    part: Path,
    records: _Records,
    progress: Callable[[Progress], None],
    say: Callable[[str], None],
) -> bool:
    """One connection: appends what comes to `part`; whether that is now the whole file."""
    have = part.stat().st_size if part.exists() else 0
    record = records.of(file.url)
    request = urllib.request.Request(file.url, headers={"User-Agent": "event-binning-grad"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if "version" in record:  # only if it is still the same file
            request.add_header("If-Range", record["version"])
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if total is not None and int(total[1]) == have:
            return True
        part.unlink()  # longer than the file: of another one
        return _receive(file, part, records, progress, say)
    with response:
        _refuse_web_page(file, response)
        start, total = _extent(response)
        if total is None and not response.chunked:
            raise RecordingError(
                f"{file.url}: the server does not say how long the file is, so whether it comes "
                "whole could not be told: fetch it with a browser"
            )
        if have and start != have:
            say(f"{file.name}: the server starts anew")
        if start not in (0, have):
            raise RecordingError(f"{file.url}: asked from byte {have}, got from {start}")
        _check_room(part, 0 if total is None else total - start)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/") and version != record.get("version"):
            records.set(file.url, record | {"version": version})
        done = start
        with part.open("ab" if start else "wb") as output:
            progress(Progress(file.name, done, total))
            while block := response.read(_BLOCK_BYTES):
                try:
                    output.write(block)
                    output.flush()
                except OSError as error:  # else it would pass for one of the network
                    raise RecordingError(f"{part} cannot be written: {error.strerror}") from None
                done += len(block)
                progress(Progress(file.name, done, total))
    return total is None or done == total


def _extent(response: Any) -> tuple[int, int | None]:
    """Where in the file a response begins, and the file's whole length (None: not said)."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None:
            raise http.client.HTTPException("a part without its place (Content-Range)")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length is not None else None


def _refuse_web_page(file: RemoteFile, response: Any) -> None:
    if response.headers.get_content_type() == "text/html":
        raise RecordingError(
            f"{urlsplit(file.url).hostname} sends a web page instead of {file.name} (too many "
            f"downloads, or a question to answer): open {file.page or file.url} in a browser"
        )


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed + _SPARE_BYTES > free:
        raise RecordingError(
            f"{path}: needs {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free: make room, or "
            "choose another --out"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _move(part: Path, place: Path, file: RemoteFile) -> list[str]:
    target = place / file.target
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
    return []


def _unpack(archive: Path, target: Path) -> list[str]:
    """Unpacks a zip whole or not at all, and deletes it; returns what lies at its top.

    Raises RecordingError if it is none or damaged; then it is deleted, too.
    """
    target.mkdir(parents=True, exist_ok=True)
    try:
        with (
            zipfile.ZipFile(archive) as content,
            TemporaryDirectory(dir=target, prefix=".unpacking.") as workplace,
        ):
            _check_room(target / "x", sum(member.file_size for member in content.infolist()))
            content.extractall(workplace)  # checks CRCs, and lets nothing out of the directory
            names = sorted(path.name for path in Path(workplace).iterdir())
            for name in names:
                _replace(Path(workplace) / name, target / name)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        archive.unlink()
        raise RecordingError(
            f"{archive.name.removesuffix('.part')} is no whole zip archive ({error}); deleted: "
            "fetch it again"
        ) from None
    archive.unlink()
    return names


def _replace(new: Path, old: Path) -> None:
    if old.is_dir() and new.is_dir():
        shutil.rmtree(old)
    new.replace(old)
