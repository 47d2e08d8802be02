"""The text layout of the Event Camera Dataset: events.txt beside calib.txt, imu.txt and others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.flow_truth import FlowTruths
from event_binning_grad.events.ground_truth import (
    GroundTruth,
    PoseTrack,
    read_constant,
    read_gyro,
    read_gyro_and_poses,
    read_pose_track,
    read_poses,
)
from event_binning_grad.events.in_order import Unusable, events_in_order
from event_binning_grad.events.types import Events
from event_binning_grad.geometry.camera import read_calib_txt

KNOWN_SENSORS = ((240, 180), (346, 260), (640, 480), (1280, 720))
BLOCK_BYTES = 1 << 20
_SHORTEST_LINE = 8  # bytes of "0 0 0 0\n"

_NEWLINE, _SPACE, _TAB, _RETURN, _COMMA, _HASH = (ord(c) for c in "\n \t\r,#")
_ZERO, _NINE, _DOT, _MINUS, _PLUS, _E, _CAPITAL_E = (ord(c) for c in "09.-+eE")
_MAX_MANTISSA = 9 * 10**17  # one more digit still fits int64
_MAX_EXPONENT = 999
_MAX_VALUE = 1 << 62
_MAX_COORDINATE = 65535
_NS_DIGITS = 9


class _Survey(NamedTuple):
    """What one pass over all events shows."""

    events: int
    max_x: int
    max_y: int
    first_ns: int
    last_ns: int


class TextRecording:
    """A recording of lines `t x y p` (s, pixels, polarity 0/1 or -1/1) in events.txt.

    path: the directory, or the events file itself; other files are looked for beside it.
    Counted while packets() runs: out_of_bounds_events (outside the size that calib.txt gives),
    time_steps_back.
    """

    topic: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events_file = path / "events.txt" if path.is_dir() else path
        self._directory = self._events_file.parent
        if not self._events_file.is_file():
            raise RecordingError(f"{self._events_file} does not exist: expected lines of t x y p")
        next(self._blocks(), None)  # whatever is no such text says so now, not later
        self._unusable = Unusable()

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

        Raises RecordingError for a line that is not `t x y p`, or a time that runs back by more
        than 10 ms.
        """
        return events_in_order(
            self._blocks(), *self._sensor_size, self._events_file, self._unusable
        )

    def raw_messages(self) -> Iterator[tuple[str, str, int, bytes]]:
        """A text recording holds no ROS messages: always raises RecordingError."""
        raise RecordingError(f"{self.path} is a text recording without ROS messages: need a bag")

    def unusable(self) -> dict[str, int]:
        """What packets() could not use as it was, by reason, after it ran."""
        return asdict(self._unusable)

    def calibration(self) -> dict[str, Any] | None:
        """calib.txt as fields of sensor_msgs/CameraInfo; None if there is no such file.

        Its numbers are fx fy cx cy k1 k2 p1 p2 k3; a second line may give the sensor's width and
        height. Without it the sensor is the smallest known one that holds all events.
        """
        if self._calib is None:
            return None
        fx, fy, cx, cy, *distortion = self._calib[0]
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
        survey = self._survey
        for width, height in KNOWN_SENSORS:
            if survey.max_x < width and survey.max_y < height:
                return width, height
        raise RecordingError(
            f"{self._events_file}: events reach x {survey.max_x} and y {survey.max_y}, outside "
            "every known sensor: write its width and height in a second line of calib.txt"
        )

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

    def _blocks(self) -> Iterator[tuple[NDArray[Any], ...]]:
        """Parsed t (ns), x, y, p of one block of bytes after the other; none is empty."""
        rest, line = b"", 1
        with self._events_file.open("rb") as file:
            while True:
                block = file.read(BLOCK_BYTES)
                text = rest + block if block else rest + b"\n"
                cut = text.rfind(b"\n") + 1
                rest, text = text[cut:], text[:cut]
                if len(rest) > BLOCK_BYTES:
                    raise RecordingError(f"{self._events_file} is no text file: it has no lines")
                arrays, line = self._parse(text, line)
                if len(arrays[0]):
                    yield arrays
                if not block:
                    return

    def _parse(self, text: bytes, first_line: int) -> tuple[tuple[NDArray[Any], ...], int]:
        capacity = len(text) // _SHORTEST_LINE + 1
        t, x = np.empty(capacity, np.int64), np.empty(capacity, np.uint16)
        y, p = np.empty(capacity, np.uint16), np.empty(capacity, np.uint8)
        n, lines, bad = parse_events(np.frombuffer(text, np.uint8), t, x, y, p)
        if bad >= 0:
            found = text[bad : text.index(b"\n", bad)][:60].decode(errors="replace")
            raise RecordingError(
                f"{self._events_file}, line {first_line + lines}: found {found!r}, "
                "expected t x y p: seconds, two pixel coordinates and a polarity"
            )
        return (t[:n], x[:n], y[:n], p[:n]), first_line + lines


@njit(nogil=True, cache=True)
def parse_events(text, t, x, y, p):
    """Parses whole lines `t x y p` of text (uint8 [bytes], ends with a newline).

    Blank lines and those that begin with # are skipped. Returns the number of events, of lines
    read, and where the first malformed line starts (-1 if none is).
    """
    n, lines, at = 0, 0, 0
    values = np.zeros(4, np.int64)
    while at < len(text):
        start = at
        at = _skip_blanks(text, at)
        if text[at] == _HASH:
            while text[at] != _NEWLINE:
                at += 1
        if text[at] != _NEWLINE:
            at = _parse_line(text, at, values)
            if at < 0 or text[at] != _NEWLINE:
                return n, lines, start
            t[n], x[n], y[n], p[n] = values[0], values[1], values[2], values[3] == 1
            n += 1
        at += 1
        lines += 1
    return n, lines, -1


@njit(nogil=True, cache=True)
def _parse_line(text, at, values):
    """Writes t in ns, x, y, p to values; returns where the line goes on, -1 if malformed."""
    for field in range(4):
        after = _skip_blanks(text, at)
        if field > 0 and after == at:
            return -1
        mantissa, exponent, at = _number(text, after)
        if at < 0:
            return -1
        ok, values[field] = _scaled(mantissa, exponent + (_NS_DIGITS if field == 0 else 0), field)
        if not ok:
            return -1
    if min(values[1], values[2]) < 0 or max(values[1], values[2]) > _MAX_COORDINATE:
        return -1
    if values[3] < -1 or values[3] > 1:
        return -1
    return _skip_blanks(text, at)


@njit(nogil=True, cache=True)
def _skip_blanks(text, at):
    while text[at] == _SPACE or text[at] == _TAB or text[at] == _COMMA or text[at] == _RETURN:
        at += 1
    return at


@njit(nogil=True, cache=True)
def _number(text, at):
    """Reads a decimal number as mantissa * 10^exponent; returns both and its end, -1 if none."""
    mantissa, exponent, digits = np.int64(0), np.int64(0), 0
    negative = text[at] == _MINUS
    if negative or text[at] == _PLUS:
        at += 1
    fraction = False
    while True:
        byte = text[at]
        if _ZERO <= byte <= _NINE:
            digits += 1
            if mantissa <= _MAX_MANTISSA:
                mantissa = 10 * mantissa + (np.int64(byte) - _ZERO)
                exponent -= fraction
            else:  # beyond any precision that matters
                exponent += not fraction
        elif byte == _DOT and not fraction:
            fraction = True
        else:
            break
        at += 1
    if digits == 0:
        return mantissa, exponent, -1
    if text[at] == _E or text[at] == _CAPITAL_E:
        at += 1
        down = text[at] == _MINUS
        if down or text[at] == _PLUS:
            at += 1
        power, digits = np.int64(0), 0
        while _ZERO <= text[at] <= _NINE:
            power = min(10 * power + (np.int64(text[at]) - _ZERO), _MAX_EXPONENT)
            digits += 1
            at += 1
        if digits == 0:
            return mantissa, exponent, -1
        exponent += -power if down else power
    return (-mantissa if negative else mantissa), exponent, at


@njit(nogil=True, cache=True)
def _scaled(mantissa, exponent, exact):
    """mantissa * 10^exponent as int64, rounded, or refused if `exact` and it is not whole."""
    value = abs(mantissa)
    while exponent > 0 and value != 0:
        if value > _MAX_VALUE // 10:
            return False, np.int64(0)
        value *= 10
        exponent -= 1
    while exponent < 0 and value != 0:
        if exact and value % 10 != 0:
            return False, np.int64(0)
        value = (value + (5 if exponent == -1 else 0)) // 10
        exponent += 1
    return value <= _MAX_VALUE, (-value if mantissa < 0 else value)
