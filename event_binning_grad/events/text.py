"""The text layout of the Event Camera Dataset: events.txt beside calib.txt, imu.txt and others; and
the CSV of Metavision's tools.

A row is `t x y p`, or `t x y depth p`: the first row's number of columns says which. The depth (m)
is checked to be a number and not used. Rows of that kind come from undistorted recordings, where x
and y have a fraction: it is rounded to the nearest pixel.

A row of CSV is `x,y,p,t`, whole numbers, t in us. It is told from `t x y p` by a fourth number that
is no polarity, or by lines before it that begin with %.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.file_recording import cut_short, open_file, smallest_sensor
from event_binning_grad.events.flow_truth import FlowTruths
from event_binning_grad.events.ground_truth import (
    GroundTruth,
    PoseTrack,
    read_constant,
    read_gyro,
    read_gyro_and_poses,
    read_imu,
    read_pose_track,
    read_poses,
)
from event_binning_grad.events.in_order import Unusable, events_in_order
from event_binning_grad.events.part import event_arrays
from event_binning_grad.events.types import Events
from event_binning_grad.geometry.camera import read_calib_txt

BLOCK_BYTES = 1 << 20  # small enough to stay in the cache
_SHORTEST_LINE = 8  # bytes of "0 0 0 0\n"

_NEWLINE, _SPACE, _TAB, _RETURN, _COMMA, _HASH, _PERCENT = (ord(c) for c in "\n \t\r,#%")
_ZERO, _NINE, _DOT, _MINUS, _PLUS, _E = (ord(c) for c in "09.-+e")
_MAX_EXPONENT = 1 << 40  # beyond any line's length, whatever its digits
_MAX_VALUE = 1 << 62
_MAX_COORDINATE = 65535
_NS_DIGITS, _NS_DIGITS_OF_US = 9, 3
_MOST_DIGITS = 19  # of int64
_MOST_PLACES = 18  # the largest power of ten in int64
_POWERS = 10 ** np.arange(_MOST_PLACES + 1, dtype=np.int64)
_LARGEST = _MAX_VALUE // _POWERS
_LOWER = 32  # this bit makes a letter a small one
_NO_NUMBERS = (tuple(b"nan"), tuple(b"inf"))
_PLAIN_COLUMNS, _DEPTH_COLUMNS = 4, 5
_EXPECTED = {
    _PLAIN_COLUMNS: "t x y p: seconds, two pixel coordinates and a polarity",
    _DEPTH_COLUMNS: "t x y depth p as in the first row: seconds, two pixel coordinates, metres "
    "and a polarity",
}
_EXPECTED_CSV = "x,y,p,t as before: two pixel coordinates, a polarity and us"
_CSV_ROW = re.compile(rb"^[ \t]*\d+,[ \t]*\d+,[ \t]*-?[01],[ \t]*(\d+)[ \t\r]*$", re.MULTILINE)
_GEOMETRY = re.compile(rb"^%[ \t]*geometry[: \t]+(\d{1,5})[,x](\d{1,5})[ \t\r]*$", re.MULTILINE)


class _Survey(NamedTuple):
    """What one pass over all events shows."""

    events: int
    max_x: int
    max_y: int
    first_ns: int
    last_ns: int


class TextRecording:
    """A recording of lines `t x y p` (s, pixels, polarity 0/1 or -1/1) in events.txt.

    A time is read exactly and rounded to ns, half a ns away from zero. Lines `t x y depth p` and
    `x,y,p,t` are read as well, see the top of this file.

    path: the directory, or the events file itself; other files are looked for beside it.
    Counted while packets() runs: out_of_bounds_events (outside the size that calib.txt gives),
    time_steps_back, cut_bytes (of a last line that is not whole).
    """

    topic: str | None = None
    encoding = ""
    cut_bytes = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events_file = path / "events.txt" if path.is_dir() else path
        self._directory = self._events_file.parent
        if not self._events_file.is_file():
            raise RecordingError(f"{self._events_file} does not exist: expected lines of t x y p")
        next(self._blocks(), None)  # whatever is no such text says so now, not later
        self._unusable = Unusable()

    @property
    def kind(self) -> str:
        """Which of the layouts."""
        return "Metavision CSV" if self._is_csv else "event camera dataset text"

    @property
    def out_of_bounds_events(self) -> int:
        """Events outside the sensor, after packets() ran."""
        return self._unusable.out_of_bounds_events

    @property
    def time_steps_back(self) -> int:
        """Times that ran back by at most 10 ms, after packets() ran."""
        return self._unusable.time_steps_back

    @property
    def width(self) -> int:
        """Columns of the sensor, see `calibration`."""
        return self._sensor_size[0]

    @property
    def height(self) -> int:
        """Rows of the sensor."""
        return self._sensor_size[1]

    def packets(self) -> Iterator[Events]:
        """The events in chunks, in the order of time.

        Raises RecordingError for a line that is not `t x y p` (or `t x y depth p` if the first one
        is), or a time that runs back by more than 10 ms.
        """
        width, height = self._sensor_size
        blocks = self._blocks(width - 1, height - 1)
        return events_in_order(blocks, width, height, self._events_file, self._unusable)

    def raw_messages(self) -> Iterator[tuple[str, str, int, bytes]]:
        """A text recording holds no ROS messages: always raises RecordingError."""
        raise RecordingError(f"{self.path} is a text recording without ROS messages: need a bag")

    def unusable(self) -> dict[str, int]:
        """What packets() could not use as it was, by reason, after it ran."""
        return asdict(self._unusable)

    def warnings(self) -> list[str]:
        """What is wrong with the file, a line each; complete after packets() ran."""
        return [cut_short(self._events_file, self.cut_bytes)] if self.cut_bytes else []

    def calibration(self) -> dict[str, Any] | None:
        """calib.txt as fields of sensor_msgs/CameraInfo; None if there is no such file.

        Its numbers are fx fy cx cy k1 k2 p1 p2 k3; a second line may give the sensor's width and
        height. Without it the sensor is the smallest known one that holds all events. Rows with a
        depth have undistorted coordinates, so there the lens's distortion is left out.
        """
        if self._calib is None:
            return None
        fx, fy, cx, cy, *distortion = self._calib[0]
        if self.has_depth:
            distortion = [0.0] * len(distortion)
        width, height = self._sensor_size
        return {
            "width": width,
            "height": height,
            "distortion_model": "plumb_bob",
            "d": list(distortion),
            "k": [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0],
        }

    def ground_truth(self) -> GroundTruth | None:
        """From imu.txt (gyroscope), else groundtruth.txt (poses), else motion.txt (constant).

        Linear velocity comes from groundtruth.txt alone.
        """
        gyro, poses = self._directory / "imu.txt", self._directory / "groundtruth.txt"
        if gyro.is_file():
            return read_gyro_and_poses(gyro, poses) if poses.is_file() else read_gyro(gyro)
        if poses.is_file():
            return read_poses(poses)
        if (path := self._directory / "motion.txt").is_file():
            return read_constant(path, self._survey.first_ns, self._survey.last_ns)
        return None

    def flow_truth(self) -> FlowTruths | None:
        """This layout holds no optical flow: None."""
        return None

    def poses(self) -> PoseTrack | None:
        """The camera's poses of groundtruth.txt; None if there is no such file."""
        path = self._directory / "groundtruth.txt"
        return read_pose_track(path) if path.is_file() else None

    def gyro(self) -> GroundTruth | None:
        """Angular velocity of imu.txt; None if there is no such file."""
        path = self._directory / "imu.txt"
        return read_gyro(path) if path.is_file() else None

    def inertial(self) -> Iterator[tuple[int, NDArray[np.float64]]] | None:
        """stamp_ns, and angular velocity (rad/s) and acceleration (m/s²) [6], of imu.txt; None if
        there is no such file."""
        path = self._directory / "imu.txt"
        if not path.is_file():
            return None
        t_ns, motion = read_imu(path)
        return zip(t_ns.tolist(), motion, strict=True)

    @cached_property
    def has_depth(self) -> bool:
        """The lines are `t x y depth p`."""
        return count_columns(np.frombuffer(self._head + b"\n", np.uint8)) == _DEPTH_COLUMNS

    @property
    def _head(self) -> bytes:
        with open_file(self._events_file) as file:
            return file.read(BLOCK_BYTES)

    @cached_property
    def _is_csv(self) -> bool:
        return is_csv(self._head)

    @cached_property
    def _calib(self) -> tuple[list[float], tuple[int, int] | None] | None:
        path = self._directory / "calib.txt"
        if not path.is_file():
            return None
        return read_calib_txt(path)

    @cached_property
    def _sensor_size(self) -> tuple[int, int]:
        if self._calib is not None and self._calib[1] is not None:
            return self._calib[1]
        if self._is_csv and (found := _GEOMETRY.search(self._head)) is not None:
            return int(found[1]), int(found[2])
        remedy = "write its width and height in a second line of calib.txt"
        survey = self._survey
        return smallest_sensor(survey.max_x, survey.max_y, self._events_file, remedy)

    @cached_property
    def _survey(self) -> _Survey:
        count, max_x, max_y, first, last = 0, 0, 0, 0, 0
        for t, x, y, _ in self._blocks():
            first = int(t[0]) if not count else first
            count, last = count + len(t), int(t[-1])
            max_x, max_y = max(max_x, int(x.max())), max(max_y, int(y.max()))
        if not count:
            raise RecordingError(f"{self._events_file} holds no events, expected lines of t x y p")
        return _Survey(count, max_x, max_y, first, last)

    def _blocks(self, last_x: int = 0, last_y: int = 0) -> Iterator[tuple[NDArray[Any], ...]]:
        """Parsed t (ns), x, y, p of one block of bytes after the other; none is empty.

        last_x, last_y: the sensor's last column and row, see `parse_events`.
        """
        rest, line, columns, last_t = b"", 1, 0, -_MAX_VALUE
        self.cut_bytes = 0
        with open_file(self._events_file) as file:
            while True:
                block = file.read(BLOCK_BYTES)
                text = rest + block if block else rest + b"\n"
                cut = text.rfind(b"\n") + 1
                rest, text = text[cut:], text[:cut]
                if len(rest) > BLOCK_BYTES:
                    raise RecordingError(f"{self._events_file} is no text file: it has no lines")
                data = np.frombuffer(text, np.uint8)
                columns = columns or count_columns(data)
                t, x, y, p = event_arrays(len(text) // _SHORTEST_LINE + 1)
                deep = columns == _DEPTH_COLUMNS
                n, lines, bad = parse_events(data, t, x, y, p, deep, last_x, last_y, self._is_csv)
                if not block and n and self._is_csv and t[n - 1] < last_t:
                    n, bad = n - 1, 0  # digits of its time are missing
                if bad >= 0 and not block and last_t > -_MAX_VALUE:
                    self.cut_bytes = len(text) - 1
                elif bad >= 0:
                    raise self._malformed(text[bad : text.index(b"\n", bad)], line + lines, columns)
                line += lines
                if n:
                    last_t = int(t[n - 1])
                    yield t[:n], x[:n], y[:n], p[:n]
                if not block:
                    return

    def _malformed(self, found: bytes, line: int, columns: int) -> RecordingError:
        expected = _EXPECTED.get(columns, _EXPECTED[_PLAIN_COLUMNS])
        expected = _EXPECTED_CSV if self._is_csv else expected
        shown = found[:60].decode(errors="replace")
        return RecordingError(
            f"{self._events_file}, line {line}: found {shown!r}, expected {expected}"
        )


def is_csv(head: bytes) -> bool:
    """Whether a text that begins so has rows `x,y,p,t`."""
    times = _CSV_ROW.findall(head)
    return bool(times) and (head.startswith(b"%") or any(len(t) > 1 for t in times))


@njit(nogil=True, cache=True)
def count_columns(text):
    """Fields of the first row of text (uint8 [bytes], ends with a newline); 0 if it has none."""
    at = 0
    while at < len(text):
        at = _skip_blanks(text, at)
        if text[at] == _HASH or text[at] == _PERCENT:
            at = _line_end(text, at)
        columns = 0
        while text[at] != _NEWLINE:
            columns += 1
            while text[at] != _NEWLINE and not _is_blank(text, at):
                at += 1
            at = _skip_blanks(text, at)
        if columns > 0:
            return columns
        at += 1
    return 0


@njit(nogil=True, cache=True)
def parse_events(text, t, x, y, p, deep=False, last_x=0, last_y=0, csv=False):
    """Parses whole lines `t x y p` of text (uint8 [bytes], ends with a newline).

    deep: the lines are `t x y depth p`, and x and y may have a fraction: it is rounded to the
    nearest pixel, but down from last_x and last_y on, so that a sensor of W columns holds all x
    below W. csv: they are `x,y,p,t`, t in us. Blank lines and those that begin with # or % are
    skipped. Returns the number of events, of
    lines read, and where the first malformed line starts (-1 if none is).
    """
    n, lines, at = 0, 0, 0
    while at < len(text):
        start = at
        at = _skip_blanks(text, at)
        if text[at] == _HASH or text[at] == _PERCENT:
            at = _line_end(text, at)
        if text[at] != _NEWLINE:
            time = np.int64(0)
            if not csv:
                time, at = _time(text, at, _NS_DIGITS)
                at = _next_field(text, at)
            column, at = _pixel(text, at, deep, last_x)
            row, at = _pixel(text, _next_field(text, at), deep, last_y)
            if deep:
                at = _depth_end(text, _next_field(text, at))
            polarity, at = _polarity(text, _next_field(text, at))
            if csv:
                time, at = _time(text, _next_field(text, at), _NS_DIGITS_OF_US)
            if at >= 0:
                at = _skip_blanks(text, at)
            if at < 0 or text[at] != _NEWLINE:
                return n, lines, start
            t[n], x[n], y[n], p[n] = time, column, row, polarity
            n += 1
        at += 1
        lines += 1
    return n, lines, -1


# The readers of one field return its value and its end, which is -1 if the field is malformed, and
# take -1 for a place where there is none.


@njit(nogil=True, cache=True)
def _time(text, at, places):
    """A time in ns, half a ns rounded away from zero; places: digits from its unit to a ns."""
    if at < 0:
        return np.int64(0), -1
    value, step, _, fits, at = _number(text, at, places)
    return value + step, at if fits else -1


@njit(nogil=True, cache=True)
def _pixel(text, at, deep, last):
    """A coordinate; if deep, rounded to the nearest pixel, but down from the last one on."""
    if at < 0:
        return np.int64(0), -1
    value, step, exact, fits, at = _number(text, at, 0)
    if value < last:
        value += step
    ok = fits and (exact or deep) and step >= 0 and 0 <= value <= _MAX_COORDINATE
    return value, at if ok else -1


@njit(nogil=True, cache=True)
def _depth_end(text, at):
    """The end of any number, NaN and infinity too: where a depth is not known."""
    if at < 0:
        return -1
    end = _number(text, at, 0)[-1]
    if end >= 0:
        return end
    if text[at] == _MINUS or text[at] == _PLUS:
        at += 1
    for name in _NO_NUMBERS:
        same = 0
        while same < len(name) and text[at + same] | _LOWER == name[same]:
            same += 1
        if same == len(name):
            return at + same
    return -1


@njit(nogil=True, cache=True)
def _polarity(text, at):
    if at < 0:
        return False, -1
    value, _, exact, fits, at = _number(text, at, 0)
    if not fits or not exact or value < -1 or value > 1:
        return False, -1
    return value == 1, at


@njit(nogil=True, cache=True)
def _is_blank(text, at):
    return text[at] == _SPACE or text[at] == _TAB or text[at] == _COMMA or text[at] == _RETURN


@njit(nogil=True, cache=True)
def _skip_blanks(text, at):
    while _is_blank(text, at):
        at += 1
    return at


@njit(nogil=True, cache=True)
def _next_field(text, at):
    """Where the next field starts; -1 if none is set apart by blanks."""
    if at < 0:
        return -1
    after = _skip_blanks(text, at)
    return after if after > at else -1


@njit(nogil=True, cache=True)
def _line_end(text, at):
    while text[at] != _NEWLINE:
        at += 1
    return at


@njit(nogil=True, cache=True)
def _number(text, at, places):
    """Reads a decimal number in units of 10^-places, exactly.

    Returns it cut towards zero; the step to the nearest whole number of units (half a unit: away
    from zero); whether nothing was cut; whether it fits int64; and its end, -1 if there is none.
    """
    mantissa, digits, fraction, first = np.int64(0), 0, 0, at
    byte = text[at]
    while _ZERO <= byte <= _NINE:
        mantissa = 10 * mantissa + (np.int64(byte) - _ZERO)
        at += 1
        byte = text[at]
    digits = at - first
    if byte == _DOT:
        at += 1
        byte = text[at]
        while _ZERO <= byte <= _NINE:
            mantissa = 10 * mantissa + (np.int64(byte) - _ZERO)
            at += 1
            byte = text[at]
        fraction = at - first - digits - 1
        digits += fraction
    # Of 19 digits those that do not fit wrap round once, to a negative number.
    if digits == 0 or digits > _MOST_DIGITS or mantissa < 0:
        return _any_number(text, first, places)
    if byte | _LOWER == _E:
        power, at, whole = _short_power(text, at + 1)
        fraction -= power
        if not whole or abs(fraction - places) > _MOST_PLACES:
            return _any_number(text, first, places)
    return _scaled(mantissa, fraction - places, at)


@njit(nogil=True, cache=True)
def _scaled(mantissa, excess, end):
    """What `_number` returns, of mantissa * 10^-excess units; |excess| <= _MOST_PLACES."""
    if excess > 0:
        unit = _POWERS[excess]
        value = mantissa // unit
        cut = mantissa - value * unit
        return value, np.int64(2 * cut >= unit), cut == 0, True, end
    return mantissa * _POWERS[-excess], np.int64(0), True, mantissa <= _LARGEST[-excess], end


@njit(nogil=True, cache=True)
def _short_power(text, at):
    """An exponent of one to three digits; its end; whether it is one."""
    down = text[at] == _MINUS
    if down or text[at] == _PLUS:
        at += 1
    power, start = 0, at
    while _ZERO <= text[at] <= _NINE and at - start < 3:
        power = 10 * power + (np.int64(text[at]) - _ZERO)
        at += 1
    whole = at > start and not _ZERO <= text[at] <= _NINE
    return (-power if down else power), at, whole


@njit(nogil=True, cache=True)
def _any_number(text, at, places):
    """As `_number`, of any spelling and length."""
    negative = text[at] == _MINUS
    if negative or text[at] == _PLUS:
        at += 1
    first, digits, whole = at, 0, -1  # whole: digits before the point
    while _ZERO <= text[at] <= _NINE or (text[at] == _DOT and whole < 0):
        if text[at] == _DOT:
            whole = digits
        else:
            digits += 1
        at += 1
    if digits == 0:
        return np.int64(0), np.int64(0), False, False, -1
    last, power = at, np.int64(0)
    if text[at] | _LOWER == _E:
        at += 1
        down = text[at] == _MINUS
        if down or text[at] == _PLUS:
            at += 1
        start = at
        while _ZERO <= text[at] <= _NINE:
            power = min(10 * power + (np.int64(text[at]) - _ZERO), _MAX_EXPONENT)
            at += 1
        if at == start:
            return np.int64(0), np.int64(0), False, False, -1
        power = -power if down else power
    kept = (whole if whole >= 0 else digits) + power + places  # digits before the unit's point
    value, seen, step, exact = np.int64(0), 0, np.int64(0), True
    for k in range(first, last):
        if text[k] == _DOT:
            continue
        digit = np.int64(text[k]) - _ZERO
        if seen < kept:
            if value > _LARGEST[1]:
                return np.int64(0), np.int64(0), False, False, at
            value = 10 * value + digit
        else:
            step += seen == kept and digit >= 5
            exact &= digit == 0
        seen += 1
    while seen < kept and value != 0:
        if value > _LARGEST[1]:
            return np.int64(0), np.int64(0), False, False, at
        value *= 10
        seen += 1
    sign = -1 if negative else 1
    return sign * value, sign * step, exact, value <= _MAX_VALUE, at
