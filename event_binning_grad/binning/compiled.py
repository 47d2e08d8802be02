"""The operator under torch.compile and torch.export: torch.library operators over the back ends.

Imported when the first function that calls `bin_events` is compiled, and not before: it loads the
compiler. An exported program that was saved needs this module imported before it is loaded.

Three layers see a call, each less of it than the one above:

- Dynamo, which reads the Python code, keeps `splat` as one node of its graph: it cannot read
  functions with a `jvp` of their own.
- AOTAutograd runs `splat`, hence the functions of `autograd`, on tensors without data. What it
  derives, in reverse or forward mode, with or without vmap, is thus what runs uncompiled, too.
- Below, the operators event_binning_grad::splat, pull_back, splat_tangent and pull_back_tangent
  stand in the graph for the back ends' functions. They take what a graph can hold: lists in place
  of a `Grid`, and the kernels by their names.

The operators have their derivatives and vmap by themselves, too, for graphs that are differentiated
after they were made, as exported programs are when they are trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from event_binning_grad.binning import autograd
from event_binning_grad.binning.autograd import Binning
from event_binning_grad.binning.backend import back_end
from event_binning_grad.binning.kernels import WeightsGradient
from event_binning_grad.binning.operator import kernel_pairs
from event_binning_grad.binning.reference import Grid, Pairs
from event_binning_grad.errors import ConfigError


@torch.compiler.allow_in_graph
def splat(
    coords: Tensor,
    weights: Tensor,
    shape: Sequence[int],
    origin: Sequence[float],
    bin_size: Sequence[float],
    kernels: str,
    weights_gradient: WeightsGradient,
) -> Tensor:
    """`autograd.splat` while compiling.

    Args:
        coords: [B, N, D].
        weights: [B, N].
        shape, origin, bin_size: see `Grid`.
        kernels: "binning;reconstruction" of every dimension, joined by "|", with nothing behind
            the semicolon for the raw gradient: "rect;linear|linear;".

    Returns:
        [B, *shape].

    Raises:
        ConfigError: unknown kernels.
    """
    how = _by_operators(coords, shape, origin, bin_size, kernels, weights_gradient)
    image: Any = autograd.Splat.apply(coords, weights, how)
    return image


@dataclass(frozen=True)
class _Operators:
    """The operators as a back end: with the signatures of `reference`."""

    kernels: str
    weights_gradient: WeightsGradient

    def splat(self, coords: Tensor, weights: Tensor, grid: Grid, pairs: Pairs) -> Tensor:
        return SPLAT(coords, weights, *self._listed(grid))

    def pull_back(
        self,
        cotangent: Tensor,
        coords: Tensor,
        weights: Tensor,
        grid: Grid,
        pairs: Pairs,
        want_coords: bool,
        want_weights: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        want = want_coords, want_weights
        gradients = PULL_BACK(cotangent, coords, weights, *want, *self._listed(grid))
        return (gradients[0] if want_coords else None, gradients[1] if want_weights else None)

    def splat_tangent(
        self,
        coords: Tensor,
        weights: Tensor,
        coords_tangent: Tensor,
        weights_tangent: Tensor | None,
        grid: Grid,
        pairs: Pairs,
    ) -> Tensor:
        return SPLAT_TANGENT(coords, weights, coords_tangent, weights_tangent, *self._listed(grid))

    def pull_back_tangent(
        self,
        cotangent: Tensor,
        coords: Tensor,
        weights: Tensor,
        coords_tangent: Tensor,
        weights_tangent: Tensor | None,
        grid: Grid,
        pairs: Pairs,
    ) -> tuple[Tensor, Tensor]:
        return PULL_BACK_TANGENT(
            cotangent, coords, weights, coords_tangent, weights_tangent, *self._listed(grid)
        )

    def _listed(self, grid: Grid) -> tuple[Any, ...]:
        return (
            list(grid.shape),
            list(grid.origin),
            list(grid.bin_size),
            self.kernels,
            self.weights_gradient,
        )


def _by_operators(
    coords: Tensor,
    shape: Sequence[int],
    origin: Sequence[float],
    bin_size: Sequence[float],
    kernels: str,
    weights_gradient: WeightsGradient,
) -> Binning:
    grid = Grid(tuple(shape), tuple(origin), tuple(bin_size))
    names = [pair.split(";") for pair in kernels.split("|")]
    if any(len(pair) != 2 for pair in names):
        raise ConfigError(f"kernels are {kernels!r}; expected names without ; and |")
    binning, reconstruction = zip(*names, strict=True)
    pairs = kernel_pairs(
        binning, tuple(name or None for name in reconstruction), weights_gradient, coords.dtype
    )
    return Binning(grid, pairs, _Operators(kernels, weights_gradient))


def _operator(name: str, function: type[autograd.Batched], arguments: str) -> Any:
    """The operator of one of `autograd`'s functions, with its shapes, derivatives and vmap.

    Its arguments are those of the function, but for the last: in place of a `Binning` it takes the
    bins and the kernels' names.
    """
    images = name.startswith("splat")
    coords_at = 0 if images else 1  # and the weights behind them

    def run(*args: Any) -> Any:
        coords = args[coords_at]
        how = _by_operators(coords, *args[-5:])
        results = function.forward(*args[:-5], Binning(how.grid, how.pairs, back_end(coords)))
        if images:
            return results.contiguous()
        # An operator cannot return None: a gradient that is not wanted has no elements.
        return tuple(
            coords.new_empty(len(coords), 0) if result is None else result.contiguous()
            for result in results
        )

    def shapes(*args: Any) -> Any:
        coords, weights, *_ = args[coords_at:]
        if images:
            return coords.new_empty(coords.shape[0], *args[-5])
        want = args[3:5] if function is autograd.PullBack else (True, True)
        return tuple(
            like.new_empty(like.shape if wanted else (like.shape[0], 0))
            for like, wanted in zip((coords, weights), want, strict=True)
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        how = _by_operators(inputs[coords_at], *inputs[-5:])
        function.setup_context(ctx, (*inputs[:-5], how), output)

    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        # A cotangent without elements is zero, or that of a gradient that was not wanted.
        given = (c if c is not None and c.numel() else None for c in cotangents)
        return (*function.backward(ctx, *given)[:-1], *(None,) * 5)

    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return autograd.batched(operator, info, in_dims, args)

    how = "SymInt[] shape, float[] origin, float[] bin_size, str kernels, str weights_gradient"
    returns = "Tensor" if images else "(Tensor, Tensor)"
    operator = torch.library.custom_op(
        f"event_binning_grad::{name}",
        run,
        mutates_args=(),
        schema=f"({arguments}, {how}) -> {returns}",
    )
    operator.register_fake(shapes)
    operator.register_autograd(backward, setup_context=setup_context)
    operator.register_vmap(vmap)
    return operator


_EVENTS = "Tensor coords, Tensor weights"
_TANGENT = "Tensor coords_tangent, Tensor? weights_tangent"
SPLAT = _operator("splat", autograd.Splat, _EVENTS)
PULL_BACK = _operator(
    "pull_back",
    autograd.PullBack,
    f"Tensor cotangent, {_EVENTS}, bool want_coords, bool want_weights",
)
SPLAT_TANGENT = _operator("splat_tangent", autograd.SplatTangent, f"{_EVENTS}, {_TANGENT}")
PULL_BACK_TANGENT = _operator(
    "pull_back_tangent", autograd.PullBackTangent, f"Tensor cotangent, {_EVENTS}, {_TANGENT}"
)
