"""Prophesee cameras by Metavision's or OpenEB's Python, where it is installed."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from event_binning_grad.events.types import NS_PER_US, EventPacket, Header, Stamp
from event_binning_grad.sources.source import (
    Item,
    Opened,
    SourceError,
    SourceUnusableError,
)

FRAME_ID = "event_camera"
PACKET_US = 4000
_POLARITY_SHIFT, _Y_SHIFT, _X_SHIFT = 63, 48, 32
_MAX_SIDE = 1 << 15  # y has 15 bits


@dataclass(frozen=True)
class Metavision:
    """A camera at USB; `metavision_core` reads and decodes.

    camera_name: its serial number; empty: the first one that is found.
    """

    camera_name: str = ""
    ends: bool = False

    @property
    def name(self) -> str:
        return f"the camera {self.camera_name}" if self.camera_name else "the camera"

    @property
    def sensors(self) -> frozenset[str]:
        return frozenset()

    def read(self) -> Generator[Item, None, None]:
        try:
            from metavision_core.event_io import (  # type: ignore[import-not-found]
                EventsIterator,
            )
        except ImportError as error:
            raise SourceUnusableError(
                f"metavision_core cannot be imported ({error}): install Metavision or OpenEB with "
                "its Python bindings, and put them on PYTHONPATH"
            ) from None
        try:
            batches = EventsIterator(input_path=self.camera_name, delta_t=PACKET_US)
            height, width = batches.get_size()
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise SourceError(
                f"{self.name} cannot be opened ({reason}): plug one in, and let this user open it "
                "(udev rules)"
            ) from None
        if max(height, width) > _MAX_SIDE:
            raise SourceUnusableError(f"a sensor of {width}x{height}, expected up to {_MAX_SIDE}")
        yield Opened(f"{self.name}: {width}x{height}")
        yield from packets(batches, width, height)


def packets(
    batches: Any, width: int, height: int, now_ns: Callable[[], int] = time.time_ns
) -> Iterator[EventPacket]:
    """Packets in encoding "mono" of batches of events: structured arrays of x, y, p and t (us of
    the sensor's clock).

    A header stamp says when a packet's first bytes came. A batch is read when it is complete, so
    its first event came as much earlier as the batch is long.
    """
    seq = 0
    for batch in batches:
        if not len(batch):
            continue
        first_ns, last_ns = (int(batch["t"][i]) * NS_PER_US for i in (0, -1))
        yield EventPacket(
            header=Header(Stamp.from_ns(now_ns() - (last_ns - first_ns)), FRAME_ID),
            height=height,
            width=width,
            seq=seq,
            time_base=first_ns,
            encoding="mono",
            is_bigendian=False,
            events=mono_words(batch).view(np.uint8),
        )
        seq += 1


def mono_words(batch: Any) -> Any:
    """uint64 [N] of a batch: polarity in bit 63, y in 62-48, x in 47-32, and in 31-0 the time
    after the first event, ns."""
    t = batch["t"].astype(np.int64)
    words = ((t - t[0]) * NS_PER_US).astype("<u8")
    words |= batch["x"].astype("<u8") << np.uint64(_X_SHIFT)
    words |= batch["y"].astype("<u8") << np.uint64(_Y_SHIFT)
    words |= (batch["p"] > 0).astype("<u8") << np.uint64(_POLARITY_SHIFT)
    return words
