"""Cameras and network streams by dv-processing: iniVation's cameras, DV's and its own servers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import Any

import numpy as np

from event_binning_grad.events.types import NS_PER_US
from event_binning_grad.sources.camera_settings import apply_settings
from event_binning_grad.sources.source import (
    Item,
    Measurement,
    Opened,
    SourceError,
    SourceUnusableError,
    TriggerEdge,
    Wait,
)

FRAME_ID = "event_camera"
# A server that does not answer within so long is not there, s.
_CONNECT_S = 2.0
# A camera hands its events over so often: less costs more packets, more is lag.
_BATCH = timedelta(milliseconds=4)


@dataclass(frozen=True)
class DvNetwork:
    """A stream that a dv-processing NetworkWriter or DV serves over TCP.

    Such a server has one stream a port. The streams' times are epoch us.

    address, port: of the event stream.
    imu_port: of the IMU's stream at the same address; 0: there is none.
    """

    address: str
    port: int
    imu_port: int = 0
    ends: bool = False

    @property
    def name(self) -> str:
        return f"the dv stream at {self.address}:{self.port}"

    @property
    def sensors(self) -> frozenset[str]:
        return frozenset({"imu"} if self.imu_port else ())

    def read(self) -> Generator[Item, None, None]:
        dv = import_dv()
        reader = self._connect(dv, self.port)
        if not reader.isEventStreamAvailable():
            raise SourceError(
                f"{self.name} has no events ({_served(reader)}), expected an event stream: "
                "give the port of the camera's events"
            )
        readers = [reader]
        if self.imu_port:
            readers.append(self._connect(dv, self.imu_port))
            if not readers[1].isImuStreamAvailable():
                raise SourceError(
                    f"the dv stream at {self.address}:{self.imu_port} has no IMU samples "
                    f"({_served(readers[1])}): give the port of the camera's IMU"
                )
        yield Opened(f"{self.name}: {_described(reader)}")
        yield from read_inputs(readers)

    def _connect(self, dv: ModuleType, port: int) -> Any:
        try:
            # dv-processing's own connecting cannot be given a time limit.
            socket.create_connection((self.address, port), _CONNECT_S).close()
            return dv.io.NetworkReader(self.address, port)
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).partition(" [system")[0].strip()
            raise SourceError(
                f"nobody serves a dv stream at {self.address}:{port} ({reason}): start the server, "
                "or give its address and port"
            ) from None


@dataclass(frozen=True)
class DvCamera:
    """An iniVation camera at USB.

    camera_name: its name or serial number, or a part; empty: the first one that is found.
    settings: "name=value ..." as apply_settings takes them.
    """

    camera_name: str = ""
    settings: str = ""
    ends: bool = False

    @property
    def name(self) -> str:
        return f"the camera {self.camera_name}" if self.camera_name else "the camera"

    @property
    def sensors(self) -> frozenset[str]:
        return frozenset({"imu"})

    def read(self) -> Generator[Item, None, None]:
        dv = import_dv()
        camera = self._open(dv)
        camera.setTimeInterval(_BATCH)
        apply_settings(camera, dv, self.settings)
        yield Opened(_described(camera))
        yield from read_inputs([camera])

    def _open(self, dv: ModuleType) -> Any:
        found = dv.io.camera.discover()
        names = [f"{device.cameraModel.name}_{device.serialNumber}" for device in found]
        for device, name in zip(found, names, strict=True):
            if self.camera_name.lower() in name.lower():
                try:
                    return dv.io.camera.open(device)
                except (RuntimeError, ValueError, OSError) as error:
                    reason = " ".join(str(error).split())
                    raise SourceError(
                        f"the camera {name} cannot be opened ({reason}): is another program using "
                        "it, and may this user (udev rules)?"
                    ) from None
        if self.camera_name:
            raise SourceError(
                f"no iniVation camera with {self.camera_name!r} in its name at USB, found "
                f"{', '.join(names) or 'none'}: plug it in, or give another camera_name"
            )
        raise SourceError(
            "no iniVation camera found at USB: plug one in, and let this user open it (udev rules)"
        )


def import_dv() -> ModuleType:
    """dv_processing.

    Raises:
        SourceUnusableError: it is not installed.
    """
    try:
        import dv_processing
    except ImportError as error:
        raise SourceUnusableError(
            f"dv_processing cannot be imported ({error}): pip install dv-processing"
        ) from None
    return dv_processing


def read_inputs(inputs: list[Any], now_ns: Callable[[], int] = time.time_ns) -> Iterator[Item]:
    """What dv inputs (of dv_processing.io, the first with events) give, until the first one ends.

    Packets are stamped with the time at which they were read; their events and the IMU samples
    have the times that the camera gave them.
    """
    from event_binning_grad.events.dv import dv_packet

    events = inputs[0]
    width, height = events.getEventResolution()
    with_imu = [source for source in inputs if source.isImuStreamAvailable()]
    with_triggers = [source for source in inputs if source.isTriggerStreamAvailable()]
    seq = 0
    running = True
    while running:
        # Asked first: what a stream gave before its end is read still.
        running = events.isRunning()
        idle = True
        for source in with_imu:
            batch = source.getNextImuBatch()
            if batch is not None:
                idle = False
                yield from map(_measurement, batch)
        for source in with_triggers:
            batch = source.getNextTriggerBatch()
            if batch is not None:
                idle = False
                yield from (edge for each in batch if (edge := _edge(each)) is not None)
        with suppress(StopIteration):
            store = events.getNextEventBatch()
            if store is not None:
                idle = False
                if not store.isEmpty():
                    yield dv_packet(store, width, height, seq, FRAME_ID, now_ns())
                    seq += 1
        if idle and running:
            yield Wait()


def _measurement(sample: Any) -> Measurement:
    # In rad/s and m/s^2; the fields themselves are in deg/s and g.
    omega = np.asarray(sample.getAngularVelocities(), np.float64).ravel()
    acceleration = np.asarray(sample.getAccelerations(), np.float64).ravel()
    return Measurement("imu", int(sample.timestamp) * NS_PER_US, omega, acceleration)


def _edge(trigger: Any) -> TriggerEdge | None:
    name = trigger.type.name
    if "RISING_EDGE" not in name and "FALLING_EDGE" not in name:
        return None  # the camera's own marks: reset, start and end of frames
    return TriggerEdge(int(trigger.timestamp) * NS_PER_US, "RISING_EDGE" in name)


def _served(reader: Any) -> str:
    kinds = {
        "frames": reader.isFrameStreamAvailable,
        "an IMU": reader.isImuStreamAvailable,
        "triggers": reader.isTriggerStreamAvailable,
        "events": reader.isEventStreamAvailable,
    }
    return ", ".join(kind for kind, there in kinds.items() if there()) or "nothing known"


def _described(source: Any) -> str:
    width, height = source.getEventResolution()
    return f"{source.getCameraName()}, {width}x{height}"
