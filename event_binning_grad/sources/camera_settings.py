"""Settings of a dv-processing camera by their names: thresholds, biases, filters, what it has."""

from __future__ import annotations

import re
from datetime import timedelta
from types import ModuleType
from typing import Any

from event_binning_grad.sources.source import SourceUnusableError

_WORD_BORDER = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_UNITS = {"us": "microseconds", "ms": "milliseconds", "s": "seconds"}


def apply_settings(camera: Any, dv: ModuleType, settings: str) -> None:
    """Sets what "name=value name=value ..." says, by the camera's own methods.

    contrast_threshold_on=9 calls setContrastThresholdOn(9). Several values are separated by
    commas: davis346_bias_coarse_fine=On,5,120. A value is an integer, true or false, a time
    (4ms, 250us, 1s), or the name of an enumeration's value (VARIABLE_5000).

    Raises:
        SourceUnusableError: the camera does not have a setting, or refuses a value.
    """
    known = setters(camera)
    for word in settings.split():
        name, equals, values = word.partition("=")
        if not equals or name not in known:
            raise SourceUnusableError(
                f"camera_settings {word!r}: expected name=value with a name of {', '.join(known)}"
            )
        method = getattr(camera, known[name])
        texts = values.split(",")
        kinds = _argument_types(method, dv) + [None] * len(texts)
        try:
            method(*(_value(text, kind) for text, kind in zip(texts, kinds, strict=False)))
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise SourceUnusableError(f"camera_settings {word!r} was refused: {reason}") from None


def setters(camera: Any) -> dict[str, str]:
    """The camera's methods that set something, by their settings' names: setIMUFlipX is
    imu_flip_x."""
    methods = [name for name in dir(camera) if re.match(r"set[A-Z]", name)]
    return {_WORD_BORDER.sub("_", name[3:]).lower(): name for name in methods}


def _argument_types(method: Any, dv: ModuleType) -> list[Any]:
    """Types of a method's arguments by its signature, which the bindings write as its text."""
    signature = (method.__doc__ or "").partition("\n")[0]
    kinds: list[Any] = []
    for path in re.findall(r"\w+: ([\w.]+)", signature)[1:]:
        kind: Any = dv
        for part in path.split(".")[1:]:
            kind = getattr(kind, part, None)
        kinds.append(kind)
    return kinds


def _value(text: str, kind: Any) -> Any:
    members = getattr(kind, "__members__", {})
    if text in members:
        return members[text]
    if members:
        raise ValueError(f"{text!r}, expected one of {', '.join(members)}")
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    if match := re.fullmatch(r"([\d.]+)(us|ms|s)", text):
        return timedelta(**{_UNITS[match[2]]: float(match[1])})
    raise ValueError(f"{text!r} is no integer, time, true or false")
