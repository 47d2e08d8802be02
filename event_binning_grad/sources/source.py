"""What a source gives, and the thread that reads it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import EventBinningError
from event_binning_grad.events.types import EventPacket

# A source that is not there, or has ended, is tried again so often, s.
RETRY_S = 1.0
# Between two batches, s: how much later a packet is read than it could be.
POLL_S = 0.001


class SourceError(EventBinningError):
    """A source is not there, or has failed; it is tried again."""


class SourceUnusableError(SourceError):
    """What a source needs is not installed: trying again would not help."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The source is there.

    text: what it is, in one line.
    calibration: fields of sensor_msgs/CameraInfo, where the source brings them.
    """

    text: str
    calibration: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to take for so long, s."""

    seconds: float = POLL_S


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """What a sensor beside the event camera's pixels measured.

    sensor: "imu", "depth", "range", or "trigger": the camera's trigger input.
    stamp_ns: on the robot's clock; with clock_of_events on that of the events in the packets.
    value: [3] angular velocity in rad/s, in the IMU's own frame | float32 [H, W] depth in m, NaN
        unknown | range in m | whether a trigger's edge rises.
    acceleration: of an IMU, [3] in m/s^2; None: not known.
    """

    sensor: str
    stamp_ns: int
    value: Any
    acceleration: npt.NDArray[np.float64] | None = None
    clock_of_events: bool = False


Item = EventPacket | Measurement | Opened | Wait


class Source(Protocol):
    """Somewhere that events come from."""

    @property
    def name(self) -> str:
        """What it is, for messages."""
        ...

    @property
    def sensors(self) -> frozenset[str]:
        """Which other sensors it may bring."""
        ...

    @property
    def ends(self) -> bool:
        """True: read() comes to an end. False: an end means that the source is gone."""
        ...

    def read(self) -> Generator[Item, None, None]:
        """Opens it and gives what comes, in the order of its coming; closes it when closed.

        Never blocks for longer than a moment: Wait says that nothing has come.

        Raises:
            SourceError: it is not there, or has failed.
        """
        ...


class SourceReader:
    """The thread that reads a source and reads it again when it is gone, until it is stopped.

    Args:
        source: what to read.
        take: gets every item but Wait, on this thread.
        report: gets one line when the source is not there or has ended, "" when it is back.
        ended: called once when a source that ends has ended.
        failed: called with what no source should raise; the thread has ended then.
    """

    def __init__(
        self,
        source: Source,
        take: Callable[[Any], None],
        report: Callable[[str], None],
        ended: Callable[[], None],
        failed: Callable[[BaseException], None],
        retry_s: float = RETRY_S,
    ) -> None:
        self._source = source
        self._take, self._report = take, report
        self._ended, self._failed = ended, failed
        self._retry_s = retry_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="source", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread; False if it is still busy after the time."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if self._read_once():
                    return
                self._stopping.wait(self._retry_s)
        except BaseException as error:
            if not self._stopping.is_set():
                self._failed(error)

    def _read_once(self) -> bool:
        """Reads until the source ends or fails; True if there is no more to come."""
        opened = False
        try:
            with closing(self._source.read()) as items:
                for item in items:
                    if self._stopping.is_set():
                        return True
                    if isinstance(item, Wait):
                        self._stopping.wait(item.seconds)
                        continue
                    if isinstance(item, Opened):
                        self._report("")
                        opened = True
                    self._take(item)
        except SourceUnusableError as error:
            self._report(str(error))
            if opened and self._source.ends:  # damaged in the middle: what came is all there is
                self._ended()
            return True
        except SourceError as error:
            self._report(f"{error}; trying again")
            return False
        if self._source.ends:
            self._ended()
            return True
        self._report(f"{self._source.name} has ended; trying again")
        return False
