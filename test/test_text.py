"""The text reader against a plain one: every spelling, both layouts, cut and hostile bytes."""

from __future__ import annotations

import re
import tracemalloc
from decimal import (
    MAX_EMAX,
    MIN_EMIN,
    ROUND_DOWN,
    ROUND_HALF_UP,
    Context,
    Decimal,
    DecimalException,
)
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from event_binning_grad.errors import RecordingError
from event_binning_grad.events import text
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.types import Events

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no recordings in {DATA}")
CALIB = "199.1 198.8 132.2 110.7 -0.36 0.15 -0.0003 -0.0008 0.01\n240 180\n"
LAST_X, LAST_Y = 239, 179

Row = tuple[int, int, int, int]
EXACT = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN)
NUMBER = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
NO_NUMBER = re.compile(rb"[+-]?(nan|inf)", re.IGNORECASE)


class MalformedRowError(Exception):
    """A row that the plain reader refuses."""


def whole(word: bytes, unit: str, rounding: str) -> int:
    """The word in units, rounded; decimal's ROUND_HALF_UP is half away from zero."""
    if not NUMBER.fullmatch(word):
        raise MalformedRowError
    try:
        units = Decimal(word.decode()).quantize(Decimal(unit), rounding, EXACT)
        value = int(units.scaleb(9, EXACT)) if unit == "1e-9" else int(units)
    except DecimalException:  # more digits than EXACT holds
        raise MalformedRowError from None
    return value


def plain_pixel(word: bytes, deep: bool, last: int) -> int:
    down, nearest = whole(word, "1", ROUND_DOWN), whole(word, "1", ROUND_HALF_UP)
    if not deep and Decimal(word.decode()) != down:
        raise MalformedRowError
    pixel = nearest if down < last else down
    if not 0 <= pixel <= 65535 or nearest < 0:
        raise MalformedRowError
    return pixel


def plain_row(words: list[bytes], deep: bool) -> Row:
    if len(words) != (5 if deep else 4):
        raise MalformedRowError
    if abs(whole(words[0], "1e-9", ROUND_DOWN)) > 1 << 62:
        raise MalformedRowError
    if deep and not (NUMBER.fullmatch(words[3]) or NO_NUMBER.fullmatch(words[3])):
        raise MalformedRowError
    polarity = whole(words[-1], "1", ROUND_DOWN)
    if polarity not in (-1, 0, 1) or Decimal(words[-1].decode()) != polarity:
        raise MalformedRowError
    return (
        whole(words[0], "1e-9", ROUND_HALF_UP),
        plain_pixel(words[1], deep, LAST_X),
        plain_pixel(words[2], deep, LAST_Y),
        int(polarity == 1),
    )


def read_plainly(data: bytes) -> tuple[list[Row], int | None]:
    """The rows before the first malformed line, and that line's number."""
    rows: list[Row] = []
    columns = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        words = [word for word in re.split(rb"[ \t\r,]+", line) if word]
        if not words or words[0].startswith((b"#", b"%")):
            continue
        columns = columns or len(words)
        try:
            rows.append(plain_row(words, columns == 5))
        except MalformedRowError:
            return rows, number
    return rows, None


def parse(data: bytes) -> tuple[list[Row], int | None]:
    """The same by the kernels, the whole data in one block."""
    block = np.frombuffer(data + b"\n", np.uint8)
    size = len(block) // 8 + 1
    t, x, y = np.empty(size, np.int64), np.empty(size, np.uint16), np.empty(size, np.uint16)
    p = np.empty(size, np.uint8)
    deep = text.count_columns(block) == 5
    n, lines, bad = text.parse_events(block, t, x, y, p, deep, LAST_X, LAST_Y)
    if bad >= 0:
        assert bad == 0 or block[bad - 1] == ord("\n")
        assert lines == data[:bad].count(b"\n")
    columns = (column[:n].tolist() for column in (t, x, y, p))
    return list(zip(*columns, strict=True)), lines + 1 if bad >= 0 else None


def write(directory: Path, data: bytes) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "events.txt").write_bytes(data)
    (directory / "calib.txt").write_text(CALIB)
    return directory


def read(directory: Path) -> list[Row]:
    rows: list[Row] = []
    for chunk in open_recording(directory).packets():
        assert isinstance(chunk, Events)
        columns = (column.tolist() for column in (chunk.t, chunk.x, chunk.y, chunk.p))
        rows += zip(*columns, strict=True)
    return rows


digits = st.text("0123456789", max_size=24)
numbers = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["", "", "", "-", "+"]),
    digits,
    st.sampled_from(["", "."]),
    digits,
    st.one_of(st.just(""), st.builds("{}{}".format, st.sampled_from("eE"), st.integers(-40, 40))),
)
times = st.one_of(
    st.decimals(0, 4_000_000_000, places=6).map(lambda value: f"{value:f}"),
    st.decimals(0, 4_000_000_000, places=9).map(lambda value: f"{value:f}"),
    st.decimals(-10, 10, places=12).map(lambda value: f"{value:f}"),
    st.floats(0, 1e7).map(lambda value: f"{value:.18e}"),
)
pixels = st.integers(0, 260).map(str)
parts_of_pixels = st.one_of(
    pixels,
    st.decimals(-1, 260, places=6).map(lambda value: f"{value:f}"),
    st.floats(0, 260).map(lambda value: f"{value:.18e}"),
)
depths = st.one_of(st.floats(0, 99).map(repr), st.sampled_from(["nan", "-inf", "Inf", "1e300"]))
polarities = st.sampled_from(["0", "1", "-1", "1.0", "+1", "00", "1e0"])
gaps = st.sampled_from([" ", "  ", "\t", ",", ", "])
ends = st.sampled_from(["\n", "\r\n", " \n", "\n\n", "\n# t x y p\n", "\n  \r\n"])


@st.composite
def texts(draw: st.DrawFn, *, wild: bool = False) -> bytes:
    """Rows of either layout in the order of time, each well spelled unless wild."""
    deep = draw(st.booleans())
    lines = ""
    for time in sorted(draw(st.lists(times, max_size=8)), key=Decimal):
        pixel = parts_of_pixels if deep else pixels
        fields = [st.just(time), pixel, pixel, *([depths] if deep else []), polarities]
        words = [draw(numbers if wild and draw(st.integers(0, 7)) == 0 else f) for f in fields]
        lines += draw(gaps).join(words) + draw(ends)
    return (lines if draw(st.booleans()) else lines.rstrip()).encode()


@settings(max_examples=300, deadline=None)
@given(texts(wild=True))
def test_the_kernel_reads_as_the_plain_reader(data: bytes):
    assert parse(data) == read_plainly(data)


@settings(max_examples=300, deadline=None)
@given(numbers)
@example("70368744177664e18")  # a multiple of 2^64
@example("9223372036854775808")
@example("9.223372036854775808e0")
@example("-9.9999999999999999995e-1")
def test_every_spelling_of_a_number_is_read_exactly(number: str):
    for row in (f"{number} 1 2 0", f"0 {number} 2 0", f"0 1 {number} 2.5 0", f"0 1 2 {number}"):
        assert parse(row.encode()) == read_plainly(row.encode())


@pytest.mark.parametrize(
    ("time", "ns"),
    [
        ("0.0000000005", 1),
        ("0.00000000049999999999999999999999", 0),
        ("-0.0000000005", -1),
        ("1.9999999995", 2_000_000_000),
        ("1504645177.123456789499999", 1_504_645_177_123_456_789),
        ("1504645177.1234567895", 1_504_645_177_123_456_790),
        ("1.5046451771234567895e9", 1_504_645_177_123_456_790),
        ("0000000000000000000000001.5", 1_500_000_000),
        ("4611686018.427387904", 1 << 62),
        ("5e-10", 1),
        ("1e-" + "9" * 30, 0),
    ],
)
def test_times_are_rounded_half_away_from_zero(time: str, ns: int):
    assert parse(f"{time} 3 4 1".encode()) == ([(ns, 3, 4, 1)], None)


@pytest.mark.parametrize(
    ("x", "pixel"),
    [
        ("0", 0),
        ("-0.4", 0),
        ("0.499999", 0),
        ("0.5", 1),
        ("238.5", 239),
        ("239.9", 239),
        ("240", 240),
        ("240.7", 240),
    ],
)
def test_fractions_belong_to_the_nearest_pixel(x: str, pixel: int):
    assert parse(f"0.5 {x} 4 1.25 1".encode()) == ([(500_000_000, pixel, 4, 1)], None)


def test_both_layouts(tmp_path: Path):
    plain = b"# t x y p\n\n0.1 3 4 1\r\n0.2 5,6 -1\n0.3\t239 179 0"
    rows = [(100_000_000, 3, 4, 1), (200_000_000, 5, 6, 0), (300_000_000, 239, 179, 0)]
    assert read(write(tmp_path, plain)) == rows
    deep = b"# t x y depth p\n\n0.1 3.2 3.6 1.5 1\r\n0.2 5,6 nan -1\n0.3\t239.8 179.9 inf 0"
    assert read(write(tmp_path, deep)) == rows


@pytest.mark.parametrize(
    ("first", "bad", "expected"),
    [
        ("0 1 1 1", "0.1 2 3 1.5 1", "expected t x y p:"),
        ("0 1 1 1", "0.1 2.5 3 1", "expected t x y p:"),
        ("0 1 1 2.0 1", "0.1 2 3 1", "expected t x y depth p as in the first row:"),
        ("0 1 1 2.0 1", "0.1 2 3 x 1", "expected t x y depth p"),
        ("0 1 1 2.0 1", "0.1 2 3 nano 1", "expected t x y depth p"),
        ("0 1 1 2.0 1", "0.1 -0.5 3 1 1", "expected t x y depth p"),
        ("0 1 1 2.0 1", "0.1 1e300 3 1 1", "expected t x y depth p"),
        ("0 1 1 2.0 1", "0.1 2 3 1 1 1", "expected t x y depth p"),
        ("0 1 1", "", "line 3: found '0 1 1', expected t x y p:"),
        ("0 1 1 1 1 1", "", "line 3: found '0 1 1 1 1 1', expected t x y p:"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, first: str, bad: str, expected: str):
    write(tmp_path, f"# rows\n\n{first}\n{bad}\n".encode())
    with pytest.raises(RecordingError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert expected in message
    assert f"line {4 if bad else 3}: found {bad or first!r}, " in message
    assert "\n" not in message


def test_lines_are_counted_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [f"{k * 0.001:.6f} {k % 240} {k % 180} {k % 2}" for k in range(300)]
    lines[250] = "0.25 1 2 3"
    write(tmp_path, "\r\n".join(lines).encode())
    for size in (21, 64, 1000, 1 << 20):
        monkeypatch.setattr(text, "BLOCK_BYTES", size)
        with pytest.raises(RecordingError, match=r"line 251: found '0\.25 1 2 3"):
            read(tmp_path)


def test_every_line_may_be_cut_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [f"{k * 0.001:.9f} {k % 7 * 31} {k % 5 * 40} 1" for k in range(40)]
    write(tmp_path, "\r\n".join(["# rows", "", *lines]).encode())
    rows = read(tmp_path)
    assert len(rows) == 40
    for size in range(25, 80):
        monkeypatch.setattr(text, "BLOCK_BYTES", size)
        assert read(tmp_path) == rows


@settings(max_examples=60, deadline=None)
@given(data=texts(), size=st.integers(120, 400))
def test_blocks_may_end_anywhere(tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int):
    directory = write(tmp_path_factory.mktemp("blocks"), data)
    with pytest.MonkeyPatch.context() as patch:
        whole_outcome = outcome(directory)
        patch.setattr(text, "BLOCK_BYTES", size)
        assert outcome(directory) == whole_outcome


def outcome(directory: Path) -> list[Row] | str:
    try:
        return read(directory)
    except RecordingError as error:
        return str(error)


@settings(max_examples=200, deadline=None)
@given(data=texts(), changes=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3))))
def test_mutated_bytes_give_events_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, changes: list[tuple[int, bytes]]
):
    for place, new in changes:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + 1 :]
    assert parse(data) == read_plainly(data)
    directory = write(tmp_path_factory.mktemp("mutated"), data)
    assume(not text.is_csv(data))
    result = outcome(directory)
    rows, bad_line = read_plainly(data)
    if isinstance(result, str):
        assert "\n" not in result
        assert bad_line is None or f"line {bad_line}: " in result or "runs back" in result
    else:
        # A last line that does not end is taken for one that was cut.
        assert bad_line in (None, data.count(b"\n") + 1 if rows else None)
        assert len(result) == sum(x < 240 and y < 180 for _, x, y, _ in rows)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_refused_in_one_line(tmp_path: Path, seed: int):
    data = np.random.default_rng(seed).integers(0, 256, 5000).astype(np.uint8).tobytes()
    write(tmp_path, data)
    with pytest.raises(RecordingError, match=r"line .*: found") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_without_lines_is_refused(tmp_path: Path):
    write(tmp_path, b"1" * (3 * text.BLOCK_BYTES))
    with pytest.raises(RecordingError, match="no text file: it has no lines"):
        read(tmp_path)


def test_memory_is_bounded_by_the_block(tmp_path: Path):
    count = 600_000
    write(tmp_path, b"0.123456789 120 90 1\n" * count)
    recording = open_recording(tmp_path)
    tracemalloc.start()
    try:
        read_events = sum(len(e) for e in recording.packets() if isinstance(e, Events))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read_events == count
    assert peak < 8 * text.BLOCK_BYTES < (tmp_path / "events.txt").stat().st_size


def test_the_sensor_of_fractions_is_the_smallest_that_holds_them(tmp_path: Path):
    write(tmp_path, b"0 0.2 0.3 1.0 1\n0.1 345.9 259.9 1.0 0\n")
    (tmp_path / "calib.txt").unlink()
    recording = open_recording(tmp_path)
    assert (recording.width, recording.height) == (346, 260)
    assert read(tmp_path) == [(0, 0, 0, 1), (100_000_000, 345, 259, 0)]


CSV = b"3,4,1,999998\n5,6,0,999999\r\n\n7, 8, -1, 1000001\n239,179,1,1000001\n"
CSV_ROWS = [
    (999_998_000, 3, 4, 1), (999_999_000, 5, 6, 0), (1_000_001_000, 7, 8, 0),
    (1_000_001_000, 239, 179, 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "head", "size"),
    [
        ("events.csv", b"", (240, 180)),
        ("events.txt", b"", (240, 180)),
        ("events", b"%geometry:320,320\n", (320, 320)),
        ("events.csv", b"% geometry 1280x720\n%evt 3.0\n", (1280, 720)),
    ],
)
def test_csv_of_metavision(tmp_path: Path, name: str, head: bytes, size: tuple[int, int]):
    (tmp_path / name).write_bytes(head + CSV)
    recording = open_recording(tmp_path / name)
    assert recording.kind == "Metavision CSV"
    assert (recording.width, recording.height) == size
    (events,) = recording.packets()
    assert isinstance(events, Events)
    columns = (events.t, events.x, events.y, events.p)
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == CSV_ROWS
    assert recording.warnings() == []


@pytest.mark.parametrize(
    "bad", [b"1,2,3,1000002", b"1,2,1", b"1,2,1,5.5x", b"x,y,p,t", b"-1,2,1,9"]
)
def test_malformed_csv_is_named(tmp_path: Path, bad: bytes):
    (tmp_path / "a.csv").write_bytes(CSV + bad + b"\n1,2,1,1000009\n")
    with pytest.raises(RecordingError, match=r"line 6: found .*, expected x,y,p,t") as caught:
        list(open_recording(tmp_path / "a.csv").packets())
    assert "\n" not in str(caught.value)


def test_rows_of_the_other_layout_are_no_csv(tmp_path: Path):
    """Whole numbers with commas, but a fourth one that is a polarity."""
    write(tmp_path, b"0,1,1,1\n1,2,1,0\n2,3,0,1\n")
    assert read(tmp_path) == [(0, 1, 1, 1), (10**9, 2, 1, 0), (2 * 10**9, 3, 0, 1)]


@needs_data
def test_mvsec_rows_with_depth():
    directory = DATA / "mvsec_indoor_flying1_window"
    recording = open_recording(directory)
    assert (recording.width, recording.height) == (346, 260)
    rows = np.array(read(directory))
    assert len(rows) == 37_187
    assert recording.unusable() == {"out_of_bounds_events": 0, "time_steps_back": 0}
    source = np.loadtxt(directory / "events.txt")
    expected = np.floor(source[:, 1:3] + 0.5).clip(max=[345, 259])
    assert np.array_equal(rows[:, 0], np.rint(source[:, 0] * 1e9))
    assert np.array_equal(rows[:, 1:3], expected)
    assert np.array_equal(rows[:, 3], source[:, 4])
    info = recording.calibration()
    assert info is not None
    assert info["k"][0] > 200
    assert not any(info["d"])  # the coordinates are undistorted
