"""The operator under torch's autograd and torch.func: its derivatives, and theirs.

With h = splat(x, w) and <c, h> = sum_j c_j h_j, all derivatives are of two kinds: the change of h
along tangents of (x, w), and the gradient of <c, h> with its changes along tangents.

    splat                  h
    splat_tangent          its change along (dx, dw)                transpose of pull_back
    splat_second_tangent   its change along (dx, dw), (dx2, dw2)
    pull_back              the gradient of <c, h> by (x, w)
    pull_back_tangent      its change along (dx, dw)                its own transpose: a Hessian

All five are linear in c and in the tangents, and their derivatives by those are again among the
five. The derivatives by (x, w) climb one step: from splat to the first, from the first to the
second. The events' coordinates are differentiated through kappa, kappa' and kappa'', so what is
first and second here are the synthesised derivatives throughout. Third ones are refused.

Every function takes one leading batch dimension B; vmap adds its own to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from event_binning_grad.binning import reference
from event_binning_grad.binning.backend import back_end
from event_binning_grad.binning.reference import Grid, Pairs


@dataclass(frozen=True, eq=False)
class Binning:
    """What to bin with: the bins, the kernels, and the back end that does the work.

    The back end has the functions splat, pull_back, splat_tangent and pull_back_tangent of
    `reference`: a module, as a rule.
    """

    grid: Grid
    pairs: Pairs
    back_end: Any


def splat(coords: Tensor, weights: Tensor, grid: Grid, pairs: Pairs) -> Tensor:
    """h_j = sum_i w_i k(u_ij), with all its derivatives.

    Args:
        coords: [B, N, D].
        weights: [B, N].

    Returns:
        [B, *grid.shape].
    """
    image: Any = Splat.apply(coords, weights, Binning(grid, pairs, back_end(coords)))
    return image


def batched(
    function: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]
) -> tuple[Any, Any]:
    """vmap's rule of a function whose tensors all have a leading batch dimension: one batch more.

    Args:
        function: of args, to one tensor, or a tuple of tensors and None.
        info: the size of the dimension that vmap adds, as `info.batch_size`.
        in_dims: where each of args has that dimension, None for what has it not.

    Returns:
        The results and where they have the dimension.
    """
    size, batch = info.batch_size, 0
    merged = []
    for value, dim in zip(args, in_dims, strict=True):
        if isinstance(value, Tensor):
            value = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            batch = value.shape[1]
            value = value.flatten(0, 1)
        merged.append(value)
    outputs = function(*merged)
    if isinstance(outputs, Tensor):
        return outputs.unflatten(0, (size, batch)), 0
    split = tuple(None if v is None else v.unflatten(0, (size, batch)) for v in outputs)
    return split, tuple(None if v is None else 0 for v in split)


class Batched(torch.autograd.Function):
    """What the functions have in common: their last argument is a `Binning`, contexts keep all
    arguments, and vmap. A missing tangent or cotangent is None and stands for zero."""

    def __init_subclass__(cls) -> None:
        # torch asks for it at every call, which without an answer at hand takes a third of it.
        cls.forward.__signature__ = signature(cls.forward)  # type: ignore[attr-defined]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        # Tensors must be saved as such; the others are kept as they are, each at its place.
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.others = [None if isinstance(value, Tensor) else (value,) for value in inputs]
        ctx.set_materialize_grads(False)

    @classmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, info: Any, in_dims: tuple[Any, ...], *args: Any
    ) -> tuple[Any, Any]:
        return batched(cls.apply, info, in_dims, args)


def _arguments(ctx: Any) -> list[Any]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if other is None else other[0] for other in ctx.others]


class Splat(Batched):
    """h of coords [B, N, D] and weights [B, N]: [B, *grid.shape]."""

    @staticmethod
    def forward(coords: Tensor, weights: Tensor, how: Binning) -> Tensor:
        return how.back_end.splat(coords, weights, how.grid, how.pairs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        coords, weights, how = _arguments(ctx)
        want = ctx.needs_input_grad[:2]
        return (*_pull_back(grad_outputs[0], coords, weights, want, how), None)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor | None) -> Tensor | None:
        coords, weights, how = _arguments(ctx)
        return _splat_tangent(coords, weights, grad_inputs[:2], how)


class PullBack(Batched):
    """The gradient of <cotangent, h> by coords and weights, None for what is not wanted."""

    @staticmethod
    def forward(
        cotangent: Tensor,
        coords: Tensor,
        weights: Tensor,
        want_coords: bool,
        want_weights: bool,
        how: Binning,
    ) -> tuple[Tensor | None, Tensor | None]:
        return how.back_end.pull_back(
            cotangent, coords, weights, how.grid, how.pairs, want_coords, want_weights
        )

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        cotangent, coords, weights, _, _, how = _arguments(ctx)
        to_cotangent, by_events = None, (None, None)
        if ctx.needs_input_grad[0]:
            to_cotangent = _splat_tangent(coords, weights, grad_outputs, how)
        if any(ctx.needs_input_grad[1:3]):
            by_events = _pull_back_tangent(cotangent, coords, weights, grad_outputs, how)
        return (to_cotangent, *by_events, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        cotangent, coords, weights, *want, how = _arguments(ctx)
        by_cotangent, tangents = grad_inputs[0], grad_inputs[1:3]
        change = _pull_back(by_cotangent, coords, weights, want, how)
        by_events = _pull_back_tangent(cotangent, coords, weights, tangents, how)
        return tuple(
            _sum(a, b) if wanted else None
            for wanted, a, b in zip(want, change, by_events, strict=True)
        )


class SplatTangent(Batched):
    """The change of h along (coords_tangent, weights_tangent or None)."""

    @staticmethod
    def forward(
        coords: Tensor,
        weights: Tensor,
        coords_tangent: Tensor,
        weights_tangent: Tensor | None,
        how: Binning,
    ) -> Tensor:
        return how.back_end.splat_tangent(
            coords, weights, coords_tangent, weights_tangent, how.grid, how.pairs
        )

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        (cotangent,) = grad_outputs
        coords, weights, *tangents, how = _arguments(ctx)
        by_events = (None, None)
        if any(ctx.needs_input_grad[:2]):
            by_events = _pull_back_tangent(cotangent, coords, weights, tangents, how)
        want = ctx.needs_input_grad[2:4]
        return (*by_events, *_pull_back(cotangent, coords, weights, want, how), None)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor | None) -> Tensor | None:
        coords, weights, *tangents, how = _arguments(ctx)
        by_events, by_tangents = grad_inputs[:2], grad_inputs[2:4]
        return _sum(
            _splat_tangent(coords, weights, by_tangents, how),
            _splat_second_tangent(coords, weights, tangents, by_events, how),
        )


class PullBackTangent(Batched):
    """The change of `PullBack` along (coords_tangent, weights_tangent or None)."""

    @staticmethod
    def forward(
        cotangent: Tensor,
        coords: Tensor,
        weights: Tensor,
        coords_tangent: Tensor,
        weights_tangent: Tensor | None,
        how: Binning,
    ) -> tuple[Tensor, Tensor]:
        return how.back_end.pull_back_tangent(
            cotangent, coords, weights, coords_tangent, weights_tangent, how.grid, how.pairs
        )

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        cotangent, coords, weights, *tangents, how = _arguments(ctx)
        to_cotangent, by_tangents = None, (None, None)
        if ctx.needs_input_grad[0]:
            to_cotangent = _splat_second_tangent(coords, weights, tangents, grad_outputs, how)
        if any(ctx.needs_input_grad[3:5]):
            by_tangents = _pull_back_tangent(cotangent, coords, weights, grad_outputs, how)
            if tangents[1] is None:
                by_tangents = by_tangents[0], None
        return (to_cotangent, None, None, *by_tangents, None)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        cotangent, coords, weights, *tangents, how = _arguments(ctx)
        by_cotangent, by_tangents = grad_inputs[0], grad_inputs[3:5]
        change = _pull_back_tangent(by_cotangent, coords, weights, tangents, how)
        more = _pull_back_tangent(cotangent, coords, weights, by_tangents, how)
        return tuple(_sum(a, b) for a, b in zip(change, more, strict=True))


class SplatSecondTangent(Batched):
    """The change of h along two tangents."""

    @staticmethod
    def forward(
        coords: Tensor,
        weights: Tensor,
        coords_first: Tensor,
        weights_first: Tensor,
        coords_second: Tensor,
        weights_second: Tensor,
        how: Binning,
    ) -> Tensor:
        first, second = (coords_first, weights_first), (coords_second, weights_second)
        return reference.splat_second_tangent(coords, weights, first, second, how.grid, how.pairs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        (cotangent,) = grad_outputs
        coords, weights, *tangents, how = _arguments(ctx)
        by_first = by_second = (None, None)
        if any(ctx.needs_input_grad[2:4]):
            by_first = _pull_back_tangent(cotangent, coords, weights, tangents[2:], how)
        if any(ctx.needs_input_grad[4:6]):
            by_second = _pull_back_tangent(cotangent, coords, weights, tangents[:2], how)
        return (None, None, *by_first, *by_second, None)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor | None) -> Tensor | None:
        coords, weights, *tangents, how = _arguments(ctx)
        first, second = tangents[:2], tangents[2:]
        return _sum(
            _splat_second_tangent(coords, weights, grad_inputs[2:4], second, how),
            _splat_second_tangent(coords, weights, first, grad_inputs[4:6], how),
        )


class _Twice(torch.autograd.Function):
    """The events as they enter a second derivative: by them it cannot be differentiated again.

    A node of its own, since autograd runs it only where that derivative is really asked for: the
    second derivative's other arguments, in which it is linear, go on having theirs.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(coords: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return coords.view_as(coords), weights.view_as(weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError(_NO_THIRD)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError(_NO_THIRD)


class _Sum(torch.autograd.Function):
    """a + b, for use in a `jvp`: there torch takes forward derivatives of functions only, and
    those of its own operations for zero, where forward mode is nested in forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a + b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        return grad_outputs[0], grad_outputs[0]

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor | None) -> Tensor | None:
        return _sum(*grad_inputs)


_NO_THIRD = (
    "bin_events has no third derivatives: its second derivative cannot be differentiated again; "
    "take it without create_graph=True, or detach() it"
)

# The same functions of arguments that may be missing: None stands for zero, also as a result.
_Tangents = Sequence[Tensor | None]  # of coords and weights


def _pull_back(
    cotangent: Tensor | None, coords: Tensor, weights: Tensor, want: Sequence[bool], how: Binning
) -> tuple[Tensor | None, Tensor | None]:
    if cotangent is None or not any(want):
        return None, None
    gradients: Any = PullBack.apply(cotangent, coords, weights, *want, how)
    return gradients


def _splat_tangent(
    coords: Tensor, weights: Tensor, tangents: _Tangents, how: Binning
) -> Tensor | None:
    along, weights_along = tangents
    if along is None:
        if weights_along is None:
            return None
        along = torch.zeros_like(coords)
    change: Any = SplatTangent.apply(coords, weights, along, weights_along, how)
    return change


def _pull_back_tangent(
    cotangent: Tensor | None, coords: Tensor, weights: Tensor, tangents: _Tangents, how: Binning
) -> tuple[Tensor | None, Tensor | None]:
    along, weights_along = tangents
    if cotangent is None or (along is None and weights_along is None):
        return None, None
    if along is None:
        along = torch.zeros_like(coords)
    coords, weights = _Twice.apply(coords, weights)  # type: ignore[misc]
    changes: Any = PullBackTangent.apply(cotangent, coords, weights, along, weights_along, how)
    return changes


def _splat_second_tangent(
    coords: Tensor, weights: Tensor, first: _Tangents, second: _Tangents, how: Binning
) -> Tensor | None:
    if all(tangent is None for tangent in first) or all(tangent is None for tangent in second):
        return None
    tangents = [
        torch.zeros_like(like) if tangent is None else tangent
        for tangent, like in zip((*first, *second), (coords, weights) * 2, strict=True)
    ]
    coords, weights = _Twice.apply(coords, weights)  # type: ignore[misc]
    change: Any = SplatSecondTangent.apply(coords, weights, *tangents, how)
    return change


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    total: Any = _Sum.apply(a, b)
    return total
