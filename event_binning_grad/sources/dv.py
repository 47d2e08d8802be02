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
    imu_port, trigger_port: of the camera's other streams at the same address; 0: there is none.
    """

    address: str
    port: int
    imu_port: int = 0
    trigger_port: int = 0
    ends: bool = False

    @property
    def name(self) -> str:
        return f"the dv stream at {self.address}:{self.port}"

    @property
    def sensors(self) -> frozenset[str]:
        return frozenset({"imu"} if self.imu_port else ())

    def read(self) -> Generator[Item, None, None]:
        dv = import_dv()
        ports = {"events": self.port, "IMU samples": self.imu_port, "triggers": self.trigger_port}
        readers = [self._connect(dv, port, kind) for kind, port in ports.items() if port]
        yield Opened(f"{self.name}: {_described(readers[0])}")
        yield from read_inputs(readers)

    def _connect(self, dv: ModuleType, port: int, kind: str) -> Any:
        try:
            # dv-processing's own connecting cannot be given a time limit.
            socket.create_connection((self.address, port), _CONNECT_S).close()
            reader = dv.io.NetworkReader(self.address, port)
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).partition(" [system")[0].strip()
            raise SourceError(
                f"nobody serves a dv stream at {self.address}:{port} ({reason}): start the server, "
                "or give its address and port"
            ) from None
        served = _served(reader)
        if kind not in served:
            raise SourceError(
                f"the dv stream at {self.address}:{port} has no {kind} "
                f"({', '.join(served) or 'nothing known'}): give the port of the camera's {kind}"
            )
        return reader


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

    Events, IMU samples and triggers have the times that the camera gave them. A header stamp says
    when a packet's first bytes came. A batch is there, whole, when it is asked for, so its first
    event came as much earlier as the batch is long.
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
                yield from map(_sample, batch)
        for source in with_triggers:
            batch = source.getNextTriggerBatch()
            if batch is not None:
                idle = False
                yield from (edge for each in batch if (edge := _edge(each)) is not None)
        with suppress(StopIteration):
            asked_ns = now_ns()
            store = events.getNextEventBatch()
            if store is not None:
                idle = False
                if not store.isEmpty():
                    length_ns = (store.getHighestTime() - store.getLowestTime()) * NS_PER_US
                    yield dv_packet(store, width, height, seq, FRAME_ID, asked_ns - length_ns)
                    seq += 1
        if idle and running:
            yield Wait()


def _sample(sample: Any) -> Measurement:
    # In rad/s and m/s^2; the fields themselves are in deg/s and g.
    omega = np.asarray(sample.getAngularVelocities(), np.float64).ravel()
    acceleration = np.asarray(sample.getAccelerations(), np.float64).ravel()
    stamp_ns = int(sample.timestamp) * NS_PER_US
    return Measurement("imu", stamp_ns, omega, acceleration, clock_of_events=True)


def _edge(trigger: Any) -> Measurement | None:
    name = trigger.type.name
    if "RISING_EDGE" not in name and "FALLING_EDGE" not in name:
        return None  # the camera's own marks: reset, start and end of frames
    stamp_ns = int(trigger.timestamp) * NS_PER_US
    return Measurement("trigger", stamp_ns, "RISING_EDGE" in name, clock_of_events=True)


def _served(reader: Any) -> list[str]:
    kinds = {
        "frames": reader.isFrameStreamAvailable,
        "IMU samples": reader.isImuStreamAvailable,
        "triggers": reader.isTriggerStreamAvailable,
        "events": reader.isEventStreamAvailable,
    }
    return [kind for kind, there in kinds.items() if there()]


def _described(source: Any) -> str:
    width, height = source.getEventResolution()
    return f"{source.getCameraName()}, {width}x{height}"
