"""Fetching public sequences, from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from dataset_harness import write_calibration, write_dsec, write_dsec_flow

from event_binning_grad.cli import EXIT_BAD_INPUT, main
from event_binning_grad.errors import RecordingError
from event_binning_grad.events import catalogue, fetch
from event_binning_grad.events.catalogue import EVENT_CAMERA_DATASET, RemoteFile, Sequence
from event_binning_grad.events.fetch import Progress, fetch_sequence
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.types import Events

BODY = np.random.default_rng(0).bytes(1_000_000)


@dataclass
class Server:
    """What the server has and how it behaves; what it was asked."""

    port: int
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    versions: dict[str, str] = field(default_factory=dict)
    says_length: bool = True
    content_type: str = "application/octet-stream"
    breaks_after: int | None = None  # bytes sent by each connection
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"


class Handler(BaseHTTPRequestHandler):
    world: Server

    def do_GET(self) -> None:
        world, name = self.world, self.path.lstrip("/")
        asked = self.headers.get("Range")
        world.requests.append((name, asked))
        body = world.files.get(name)
        if body is None:
            self.send_error(404)
            return
        version = world.versions.get(name)
        start = 0
        if asked and world.ranges and self.headers.get("If-Range", version) == version:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", world.content_type)
        if world.says_length:
            self.send_header("Content-Length", str(len(body) - start))
        if version:
            self.send_header("ETag", version)
        self.end_headers()
        stop = len(body) if world.breaks_after is None else start + world.breaks_after
        self.wfile.write(body[start:stop])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    world = Server(httpd.server_address[1])
    httpd.RequestHandlerClass = type("Bound", (Handler,), {"world": world})
    httpd.handle_error = lambda request, client_address: None  # clients may hang up
    thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield world
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def sequence_of(*files: RemoteFile) -> Sequence:
    return Sequence("walk", EVENT_CAMERA_DATASET, "events", files)


@pytest.fixture
def plain(server: Server) -> Sequence:
    """A sequence of one file of a megabyte that is no archive."""
    server.files["walk.hdf5"] = BODY
    server.versions["walk.hdf5"] = '"v1"'
    return sequence_of(RemoteFile(server.url("walk.hdf5"), "walk_data.hdf5"))


def zipped(contents: Mapping[str, bytes | str]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return stream.getvalue()


def record_of(directory: Path, file: RemoteFile) -> dict[str, Any]:
    return json.loads((directory / "walk.json").read_text())[file.url]


def failed(call: Callable[[], Any], match: str) -> str:
    with pytest.raises(RecordingError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_arrives_with_its_checksum_and_progress(
    server: Server, plain: Sequence, tmp_path: Path
):
    steps: list[Progress] = []
    lines: list[str] = []
    place = fetch_sequence(plain, tmp_path, steps.append, lines.append)
    assert place == tmp_path / "walk"
    assert (place / "walk_data.hdf5").read_bytes() == BODY
    assert steps[0] == Progress("walk_data.hdf5", 0, len(BODY))
    assert steps[-1] == Progress("walk_data.hdf5", len(BODY), len(BODY))
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    record = record_of(tmp_path, plain.files[0])
    digest = hashlib.sha256(BODY).hexdigest()
    assert (record["bytes"], record["sha256"]) == (len(BODY), digest)
    assert digest in lines[0]
    assert sorted(path.name for path in place.iterdir()) == ["walk_data.hdf5"]
    assert server.requests == [("walk.hdf5", None)]

    fetch_sequence(plain, tmp_path, say=lines.append)  # nothing is asked for again
    assert lines[-1] == "walk_data.hdf5: there already"
    assert len(server.requests) == 1


def test_a_part_is_gone_on_with(server: Server, plain: Sequence, tmp_path: Path):
    (tmp_path / "walk").mkdir()
    (tmp_path / "walk/walk_data.hdf5.part").write_bytes(BODY[:300_000])
    steps: list[Progress] = []
    place = fetch_sequence(plain, tmp_path, steps.append)
    assert (place / "walk_data.hdf5").read_bytes() == BODY
    assert server.requests == [("walk.hdf5", "bytes=300000-")]
    assert steps[0].done == 300_000


def test_broken_connections_are_taken_up_again(server: Server, plain: Sequence, tmp_path: Path):
    server.breaks_after = 150_000
    place = fetch_sequence(plain, tmp_path)
    assert (place / "walk_data.hdf5").read_bytes() == BODY
    expected = [None] + [f"bytes={start}-" for start in range(150_000, 1_000_000, 150_000)]
    assert [asked for _, asked in server.requests] == expected


def test_a_server_without_ranges(server: Server, plain: Sequence, tmp_path: Path):
    server.ranges = False
    part = tmp_path / "walk/walk_data.hdf5.part"
    part.parent.mkdir()
    part.write_bytes(BODY[:300_000])
    lines: list[str] = []
    place = fetch_sequence(plain, tmp_path, say=lines.append)
    assert (place / "walk_data.hdf5").read_bytes() == BODY
    assert "the server starts anew" in lines[0]

    shutil.rmtree(place)
    server.breaks_after = 400_000
    message = failed(lambda: fetch_sequence(plain, tmp_path), "stuck after 400,000 bytes")
    assert "run it again" in message
    assert len(part.read_bytes()) == 400_000


def test_a_file_that_changed_meanwhile_is_begun_anew(
    server: Server, plain: Sequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetch, "TRIES", 1)
    server.breaks_after = 400_000
    server.files["walk.hdf5"] = BODY[:500_000] + bytes(500_000)

    def change(now: Progress) -> None:
        if now.done == 400_000:
            server.files["walk.hdf5"], server.versions["walk.hdf5"] = BODY, '"v2"'
            server.breaks_after = None

    place = fetch_sequence(plain, tmp_path, change)
    assert (place / "walk_data.hdf5").read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None, "bytes=400000-"]


def test_a_part_that_is_whole_and_one_that_is_too_long(
    server: Server, plain: Sequence, tmp_path: Path
):
    part = tmp_path / "walk/walk_data.hdf5.part"
    part.parent.mkdir()
    part.write_bytes(BODY)
    place = fetch_sequence(plain, tmp_path)
    assert (place / "walk_data.hdf5").read_bytes() == BODY
    assert server.requests == [("walk.hdf5", "bytes=1000000-")]
    shutil.rmtree(place)
    part.parent.mkdir()
    part.write_bytes(BODY + b"more")
    fetch_sequence(plain, tmp_path)
    assert (place / "walk_data.hdf5").read_bytes() == BODY


def test_a_server_that_says_no_length_is_not_believed(
    server: Server, plain: Sequence, tmp_path: Path
):
    """What it sends may have been cut short, and its checksum would be taken for the file's."""
    server.says_length = False
    failed(lambda: fetch_sequence(plain, tmp_path), "does not say how long the file is")
    assert not (tmp_path / "walk.json").exists()


def test_another_checksum_than_at_first_is_refused(server: Server, plain: Sequence, tmp_path: Path):
    place = fetch_sequence(plain, tmp_path)
    (place / "walk_data.hdf5").unlink()
    server.files["walk.hdf5"] = BODY[::-1]
    message = failed(lambda: fetch_sequence(plain, tmp_path), "expected .* when first fetched")
    assert hashlib.sha256(BODY).hexdigest() in message
    assert list(place.iterdir()) == []
    (tmp_path / "walk.json").unlink()  # as the message says
    fetch_sequence(plain, tmp_path)
    assert (place / "walk_data.hdf5").read_bytes() == BODY[::-1]


def test_a_file_that_was_damaged_here_is_noticed(plain: Sequence, tmp_path: Path):
    place = fetch_sequence(plain, tmp_path)
    (place / "walk_data.hdf5").write_bytes(BODY[:-1] + b"x")
    failed(lambda: fetch_sequence(plain, tmp_path), "delete it and fetch again")


def test_no_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nobody = sequence_of(RemoteFile(f"http://127.0.0.1:{port}/walk.zip", ""))
    message = failed(lambda: fetch_sequence(nobody, tmp_path), "cannot be reached .*refused")
    assert "is there a network?" in message
    assert EVENT_CAMERA_DATASET.homepage in message

    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    failed(
        lambda: fetch_sequence(nobody, tmp_path), "cannot be reached .*Name or service not known"
    )


def test_a_silent_server_is_given_up(
    plain: Sequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetch, "TIMEOUT_S", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/walk.hdf5"
        mute = sequence_of(replace(plain.files[0], url=url))
        failed(lambda: fetch_sequence(mute, tmp_path), "cannot be reached .*timed out")


def test_a_file_that_is_not_there_is_one_line(server: Server, plain: Sequence, tmp_path: Path):
    server.files.clear()
    failed(lambda: fetch_sequence(plain, tmp_path), "the server says 404")


def test_a_web_page_is_no_file(server: Server, plain: Sequence, tmp_path: Path):
    server.content_type = "text/html; charset=utf-8"
    page = sequence_of(replace(plain.files[0], page="https://example.org/open?id=5"))
    message = failed(lambda: fetch_sequence(page, tmp_path), "a web page instead")
    assert "https://example.org/open?id=5" in message
    assert list((tmp_path / "walk").iterdir()) == []


def test_an_archive_is_unpacked_and_deleted(server: Server, tmp_path: Path):
    lines = "0.1 1 2 1\n0.2 3 4 0\n"
    server.files["walk.zip"] = zipped({"events.txt": lines, "images/1.png": b"png"})
    walk = sequence_of(RemoteFile(server.url("walk.zip"), ""))
    place = fetch_sequence(walk, tmp_path)
    assert sorted(path.name for path in place.iterdir()) == ["events.txt", "images"]
    (events,) = open_recording(place).packets()
    assert isinstance(events, Events)
    assert events.x.tolist() == [1, 3]
    fetch_sequence(walk, tmp_path)
    assert len(server.requests) == 1
    (place / "events.txt").unlink()
    fetch_sequence(walk, tmp_path)
    assert (place / "events.txt").read_text() == lines
    assert len(server.requests) == 2


def test_an_archive_brought_by_hand_is_taken(server: Server, tmp_path: Path):
    walk = sequence_of(RemoteFile(server.url("walk.zip"), "events"))
    (tmp_path / "walk").mkdir()
    (tmp_path / "walk/walk.zip").write_bytes(zipped({"events.txt": "0.1 1 2 1\n"}))
    place = fetch_sequence(walk, tmp_path)
    assert (place / "events/events.txt").is_file()
    assert server.requests == []


def test_a_damaged_archive_leaves_nothing(server: Server, tmp_path: Path):
    good = zipped({"events.txt": bytes(BODY[:5000]), "calib.txt": "1 2 3"})
    torn = bytearray(good)
    torn[1000:1100] = bytes(100)
    walk = sequence_of(RemoteFile(server.url("walk.zip"), ""))
    for body in (bytes(torn), good[: len(good) // 2], b"no archive at all"):
        server.files["walk.zip"] = body
        failed(lambda: fetch_sequence(walk, tmp_path), "no whole zip archive")
        assert list((tmp_path / "walk").iterdir()) == []
    server.files["walk.zip"] = good
    assert (fetch_sequence(walk, tmp_path) / "calib.txt").read_text() == "1 2 3"


def test_an_archive_lets_nothing_out_of_its_directory(server: Server, tmp_path: Path):
    server.files["walk.zip"] = zipped({"../../escaped.txt": "bad", "/tmp/c_escaped": "bad"})
    place = fetch_sequence(sequence_of(RemoteFile(server.url("walk.zip"), "")), tmp_path / "out")
    assert not (tmp_path / "escaped.txt").exists()
    assert all(place in path.parents for path in tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize("content", ["{", "[1, 2]", "5"])
def test_a_damaged_record_is_one_line(plain: Sequence, tmp_path: Path, content: str):
    (tmp_path / "walk.json").write_text(content)
    failed(lambda: fetch_sequence(plain, tmp_path), r"walk\.json cannot be read: .*: delete it")


def test_too_little_room_is_said_before(
    plain: Sequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9 - 10**8, 10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    failed(lambda: fetch_sequence(plain, tmp_path), "needs 0.0 GB, but 0.1 GB are free")


def test_a_sequence_of_several_archives_opens_as_a_recording(server: Server, tmp_path: Path):
    """DSEC as the catalogue lays it out."""
    source = write_dsec(tmp_path / "source")
    write_calibration(source, None)
    write_dsec_flow(source, 2)
    thun = catalogue.sequences()["thun_00_a"]
    assert len(thun.files) == 4
    files = []
    for file in thun.files:
        name, place = file.url.rpartition("/")[2], source / file.target
        if file.packed:
            contents = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
            server.files[name] = zipped(contents)
        else:
            server.files[name] = place.read_bytes()
        files.append(replace(file, url=server.url(name)))
    server.breaks_after = 3_000_000
    place = fetch_sequence(replace(thun, files=tuple(files)), tmp_path)
    recording = open_recording(place)
    assert sum(len(block) for block in recording.packets() if isinstance(block, Events)) == 5000
    assert recording.calibration() is not None
    truths = recording.flow_truth()
    assert truths is not None
    assert len(list(truths)) == 2


def test_the_catalogue_is_sound():
    known = catalogue.sequences()
    for name in (
        "shapes_rotation", "boxes_rotation", "poster_rotation", "dynamic_rotation", "shapes_6dof",
        "poster_6dof", "boxes_6dof", "dynamic_6dof", "slider_depth", "indoor_flying1",
        "indoor_flying2", "indoor_flying3", "outdoor_day1", "zurich_city_01_a", "interlaken_00_c",
        "interlaken_01_a", "thun_00_a",
    ):  # fmt: skip
        assert known[name].name == name
    assert len(known) == 26 + 4 + 41 + 12
    urls = [file.url for sequence in known.values() for file in sequence.files]
    shared = [url for url in urls if urls.count(url) > 1]
    assert all(url.endswith("_calib.zip") for url in shared)
    for sequence in known.values():
        targets = [(place.target, place.name) for place in sequence.files]
        assert len(set(targets)) == len(targets)
        for file in sequence.files:
            assert re.fullmatch(r"https?://[^\s]+", file.url)
            assert not file.target.startswith("/")
            assert ".." not in file.target


def test_the_command_fetches_and_lists(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert main(["fetch-dataset", "--list"]) == 0
    listed = capsys.readouterr().out
    assert "licence: CC BY-NC-SA 3.0" in listed
    for name in catalogue.sequences():
        assert f" {name} " in listed

    server.files["walk.zip"] = zipped({"events.txt": "0.1 1 2 1\n"})
    walk = sequence_of(RemoteFile(server.url("walk.zip"), ""))
    monkeypatch.setattr(catalogue, "sequences", lambda: {"walk": walk})
    assert main(["fetch-dataset", "walk", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert f"event-binning-grad evaluate {tmp_path / 'walk'}" in printed.out
    assert "CC BY-NC-SA 3.0" in printed.out
    assert "SHA-256" in printed.err

    server.files.clear()
    shutil.rmtree(tmp_path / "walk")
    assert main(["fetch-dataset", "walk", "--out", str(tmp_path)]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("event-binning-grad fetch-dataset: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", [[], ["nonsense"]])
def test_an_unknown_name_is_one_line(name: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["fetch-dataset", *name]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert "fetch-dataset --list" in error
    assert error.count("\n") == 1
