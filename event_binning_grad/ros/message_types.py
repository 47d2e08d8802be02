"""Message types by their names."""

from __future__ import annotations

import importlib
from typing import Any


def message_class(type_name: str) -> Any:
    """The class of a message type such as "sensor_msgs/msg/Image".

    Raises:
        ImportError, AttributeError: its type support is not installed.
    """
    package, _, name = type_name.rpartition("/")
    message = getattr(importlib.import_module(package.replace("/", ".")), name)
    support = type(message)
    support.__import_type_support__()  # the generated code is there, but its library?
    if support._TYPE_SUPPORT is None:
        raise ImportError(f"the library of {type_name.partition('/')[0]} cannot be loaded")
    return message
