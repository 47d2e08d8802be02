"""SIGINT and SIGTERM: an executable ends with exit code 0, at whatever moment they come."""

from __future__ import annotations

import os
import signal
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM)


def exit_at_once() -> None:
    """For the start-up: there is nothing to clean up, and an exception would end up anywhere.

    An import of compiled code turns a KeyboardInterrupt into an ImportError.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    for number in _ENDING:
        signal.signal(number, leave)


def leave_to_rclpy() -> None:
    """For the time from rclpy.init on: its own handlers shut the context down, no more is needed.

    They also call Python's handlers, which would raise KeyboardInterrupt in the middle of things.
    """
    for number in _ENDING:
        signal.signal(number, lambda number, frame: None)
