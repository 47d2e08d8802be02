"""What several tests of recordings share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.types import Events


class Made:
    """A recording in memory, of a kind that is no bag: packets or events as they are given."""

    path, kind, encoding = Path("made"), "made here", ""
    topic: str | None = None

    def __init__(self, *parts: Any) -> None:
        self._parts = parts
        self.width: int | None = parts[0].width if parts else None
        self.height: int | None = parts[0].height if parts else None

    def packets(self) -> Iterator[Any]:
        return iter(self._parts)

    def raw_messages(self) -> Iterator[Any]:
        return iter(())

    def unusable(self) -> dict[str, int]:
        return {}

    def warnings(self) -> list[str]:
        return []

    def calibration(self) -> None:
        return None

    ground_truth = flow_truth = calibration


def decoded(parts: Iterable[Any]) -> Events:
    """All events of packets or chunks, joined by the decoder alone."""
    decoder = PacketDecoder()
    return Events.concatenate(
        [part.copy() if isinstance(part, Events) else decoder.decode(part).events for part in parts]
    )


def assert_same(found: Events, expected: Events) -> None:
    for name in ("t", "x", "y", "p"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    assert (found.width, found.height) == (expected.width, expected.height)
