"""What the tests of binning's derivatives share: inputs, a loss, a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from event_binning_grad.binning import autograd, bin_events
from event_binning_grad.binning.kernels import register_kernel

# What they return depends on their flags, which their annotations cannot say.
jvp: Any = torch.func.jvp
vjp: Any = torch.func.vjp

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
Names = tuple[str, str | None]

# A kernel of the tests' own, which jumps at one end.
ONE_SIDED = register_kernel("falling ramp", lambda u: 2 * (1 - u), breaks=(0, 1))


def label(value: Any) -> str:
    """What the name of a test calls its kernels."""
    if isinstance(value, (tuple, list)):
        return "-".join(map(label, value))
    return getattr(value, "__name__", str(value))


def every(names: str, values: Any) -> Any:
    return pytest.mark.parametrize(names, values, ids=label)


def uniform(rng: torch.Generator, *size: int, low=0.0, high=1.0, dtype=F64) -> Tensor:
    return torch.rand(*size, generator=rng, dtype=dtype) * (high - low) + low


@contextmanager
def binning_by(module: ModuleType) -> Iterator[None]:
    """Lets a back end do the work, whatever the device."""
    with mock.patch.object(autograd, "back_end", return_value=module):
        yield


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def squares(names: Names, shape: tuple[int, ...] = (6, 7)) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of coords and weights with second derivatives of all kinds."""

    def loss(coords: Tensor, weights: Tensor) -> Tensor:
        image = bin_events(coords, weights, shape=shape, binning=names[0], reconstruction=names[1])
        return (image**2).sum() + (image * torch.arange(shape[-1])).sum() / 10

    return loss


class Shift(torch.nn.Module):
    """Moves all events, and weighs them by a scale."""

    def __init__(self):
        super().__init__()
        self.offset = torch.nn.Parameter(torch.tensor([0.3, -0.2], dtype=F64))
        self.scale = torch.nn.Parameter(torch.tensor(1.5, dtype=F64))

    def forward(self, coords: Tensor) -> Tensor:
        weights = self.scale.expand(coords.shape[:-1])
        return bin_events(coords + self.offset, weights, shape=(6, 7), binning="linear")
