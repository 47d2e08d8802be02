"""`bin_events`: bin events into an image, with the unbiased gradient, under torch's autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from event_binning_grad.binning import reference
from event_binning_grad.binning.kernels import KernelPair, kernel_pair
from event_binning_grad.binning.reference import Grid


def bin_events(
    coords: Tensor,
    weights: Tensor | None = None,
    *,
    shape: Sequence[int],
    binning: str = "rect",
    reconstruction: str | None = "linear",
    origin: float | Sequence[float] = 0.0,
    bin_size: float | Sequence[float] = 1.0,
) -> Tensor:
    """Bins events; the forward pass is the ordinary histogram or vote, the gradient is unbiased.

    Bin j is centred at origin + j * bin_size for every kernel. What falls outside the bins is
    dropped, and so are events with NaN or infinite coordinates (their gradients are zero).

        forward   h_j = sum_i w_i k((x_i - centre_j) / bin_size)
        backward  dL/dx_i = w_i / bin_size * sum_j c_j kappa'((x_i - centre_j) / bin_size)
                  dL/dw_i = sum_j c_j k((x_i - centre_j) / bin_size),       c = dL/dh

    with kappa = reconstruction * binning (convolved). An event up to half a synthesis kernel
    outside the bins has a gradient although it adds nothing: moving it inside would.

    Source: Chen et al., "Unbiased Gradient Estimation for Event Binning via Functional
    Backpropagation", ICLR 2026.

    Args:
        coords: [..., N, D] float32 or float64, any unit.
        weights: [..., N] of the same type, or None for ones.
        shape: the number of bins, a D-tuple in the order of the coords' last dimension. An image
            [H, W] from coords (y, x) has shape=(H, W).
        binning: "rect" (histogram) or "linear" (bilinear vote).
        reconstruction: "linear", or None for the raw gradient (zero for "rect").
        origin: centre of bin 0, in the unit of the coords, a number or D of them.
        bin_size: distance of the bins' centres, likewise.

    Returns:
        [..., *shape], same type and device as coords. On the CPU the same input gives the same
        result bit for bit at any number of threads. On CUDA the sums run in no fixed order.

    Raises:
        TypeError: coords or weights are not float32 or float64 tensors of one type.
        ValueError: shapes, sizes or kernel names that do not fit (ConfigError for the names).
    """
    kernels = kernel_pair(binning, reconstruction)
    if coords.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"coords are {coords.dtype}; expected float32 or float64")
    if coords.dim() < 2 or coords.shape[-1] == 0:
        raise ValueError(f"coords have shape {tuple(coords.shape)}; expected [..., N, D], D >= 1")
    if weights is None:
        weights = coords.new_ones(()).expand(coords.shape[:-1])
    if weights.dtype != coords.dtype:
        raise TypeError(f"weights are {weights.dtype}; expected {coords.dtype} as coords are")
    if weights.shape != coords.shape[:-1]:
        raise ValueError(
            f"weights have shape {tuple(weights.shape)}; expected {tuple(coords.shape[:-1])}"
        )
    grid = _grid(shape, origin, bin_size, coords.shape[-1])
    leading, events = coords.shape[:-2], coords.shape[-2]
    batch = math.prod(leading)
    image = _BinEvents.apply(
        coords.reshape(batch, events, coords.shape[-1]),
        weights.reshape(batch, events),
        grid,
        kernels,
    )
    assert isinstance(image, Tensor)
    return image.view(*leading, *grid.shape)


class _BinEvents(torch.autograd.Function):
    @staticmethod
    def forward(coords: Tensor, weights: Tensor, grid: Grid, kernels: KernelPair) -> Tensor:
        return _back_end(coords).splat(coords, weights, grid, kernels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        coords, weights, ctx.grid, ctx.kernels = inputs
        ctx.save_for_backward(coords, weights)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (cotangent,) = grad_outputs
        coords, weights = ctx.saved_tensors
        gradients: Any = _PullBack.apply(cotangent, coords, weights, ctx.grid, ctx.kernels)
        return (*gradients, None, None)


class _PullBack(torch.autograd.Function):
    """The backward pass, itself a node of the graph, so that whoever differentiates it is told.

    torch's once_differentiable is silent where the result depends on the coords in another way,
    too, as a gradient penalty's does: the second derivative would be taken for zero.
    """

    @staticmethod
    def forward(
        cotangent: Tensor, coords: Tensor, weights: Tensor, grid: Grid, kernels: KernelPair
    ) -> tuple[Tensor, Tensor]:
        return _back_end(coords).pull_back(cotangent, coords, weights, grid, kernels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "bin_events has no second derivatives: its gradient cannot be differentiated again; "
            "take the gradient without create_graph=True, or detach() it"
        )


def _back_end(coords: Tensor) -> ModuleType:
    """Where the work is done: numba on the CPU up to three dimensions, else plain torch."""
    if coords.device.type == "cpu" and coords.shape[-1] <= 3:
        from event_binning_grad.binning import cpu  # numba is imported when it is first needed

        return cpu
    return reference


def _grid(
    shape: Sequence[int],
    origin: float | Sequence[float],
    bin_size: float | Sequence[float],
    dimensions: int,
) -> Grid:
    def per_dimension(value: float | Sequence[float], name: str) -> tuple[float, ...]:
        try:
            values = np.broadcast_to(np.asarray(value, np.float64), dimensions)
        except (TypeError, ValueError):
            values = np.empty(0)
        if len(values) != dimensions or not np.isfinite(values).all():
            raise ValueError(
                f"{name} is {value}; expected a finite number, or {dimensions} of them"
            )
        return tuple(values.tolist())

    grid = Grid(
        tuple(int(n) for n in shape),
        per_dimension(origin, "origin"),
        per_dimension(bin_size, "bin_size"),
    )
    if len(grid.shape) != dimensions or any(n < 1 for n in grid.shape):
        raise ValueError(f"shape is {tuple(shape)}; expected {dimensions} positive numbers of bins")
    if any(size <= 0 for size in grid.bin_size):
        raise ValueError(f"bin_size is {bin_size}; expected positive numbers")
    return grid
