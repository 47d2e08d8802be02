"""Which back end does the work: the one place where that is decided."""

from __future__ import annotations

import re
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from event_binning_grad.binning import reference
from event_binning_grad.errors import ConfigError

_TRITON = (3, 4)

MAX_DIMENSIONS = 3
"""The most dimensions that the compiled back ends have; beyond, the plain torch one works."""


def back_end(coords: Tensor) -> ModuleType:
    """numba on the CPU, Triton on CUDA, plain torch for the rest.

    The rest is more than three dimensions, other devices, CUDA without Triton (3.4 or later), and
    CUDA under `torch.use_deterministic_algorithms(True)`: Triton's sums run in no fixed order.
    """
    if coords.shape[-1] > MAX_DIMENSIONS:
        return reference
    # numba and triton are imported when they are first needed, not before.
    if coords.device.type == "cpu":
        from event_binning_grad.binning import cpu

        return cpu
    if coords.device.type == "cuda" and has_triton():
        if torch.are_deterministic_algorithms_enabled():
            return reference
        from event_binning_grad.binning import cuda

        return cuda
    return reference


@cache
def has_triton() -> bool:
    """Whether Triton is there, and new enough to compile the kernels."""
    try:
        import triton
    except ImportError:
        return False
    # Its own word: the distribution goes by several names.
    found = re.match(r"(\d+)\.(\d+)", triton.__version__)
    return found is not None and (int(found[1]), int(found[2])) >= _TRITON


def check_device(device: str) -> None:
    """Raises ConfigError where a CUDA device is asked for and there is none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"device {device!r}: torch finds no CUDA device; expected 'cpu', or 'cuda' on a "
            "machine with an NVIDIA GPU and a CUDA build of torch"
        )
