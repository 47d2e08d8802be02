"""The exceptions of this package: one base, one line each.

Every message says what was found, what was expected and what to do, so that the command line can
print it as it is; a traceback is left for the unexpected.
"""

from __future__ import annotations


class EventBinningError(ValueError):
    """Base of every error that this package raises on bad input."""


class PacketError(EventBinningError):
    """An event packet cannot be decoded; the stream goes on with the next one."""


class RecordingError(EventBinningError):
    """A recording cannot be opened, or lacks what was asked of it."""


class CalibrationError(EventBinningError):
    """A camera calibration is missing, malformed or does not fit the events."""


class ConfigError(EventBinningError):
    """A parameter has a value that is not allowed."""
