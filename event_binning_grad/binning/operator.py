"""`bin_events`: bin events into an image, with the unbiased gradient, under torch's autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, get_args

import torch
from torch import Tensor

from event_binning_grad.binning.autograd import splat
from event_binning_grad.binning.kernels import (
    KERNELS,
    Kernel,
    KernelPair,
    Precision,
    WeightsGradient,
    kernel,
    kernel_pair,
)
from event_binning_grad.binning.reference import Grid
from event_binning_grad.errors import ConfigError

KernelName = str | Kernel
_PRECISION: dict[torch.dtype, Precision] = {torch.float32: "float32", torch.float64: "float64"}


def bin_events(
    coords: Tensor,
    weights: Tensor | None = None,
    *,
    shape: Sequence[int],
    binning: KernelName | Sequence[KernelName] = "rect",
    reconstruction: KernelName | Sequence[KernelName | None] | None = "linear",
    origin: float | Sequence[float] = 0.0,
    bin_size: float | Sequence[float] = 1.0,
    weights_gradient: WeightsGradient = "exact",
) -> Tensor:
    """Bins events; the forward pass is the ordinary histogram or vote, the gradient is unbiased.

    Bin j is centred at origin + j * bin_size for every kernel. What falls outside the bins is
    dropped, and so are events with NaN or infinite coordinates (their gradients are zero, if their
    weights are finite).

        forward   h_j = sum_i w_i k((x_i - centre_j) / bin_size)
        backward  dL/dx_i = w_i / bin_size * sum_j c_j kappa'((x_i - centre_j) / bin_size)
                  dL/dw_i = sum_j c_j k((x_i - centre_j) / bin_size),       c = dL/dh

    with kappa = reconstruction * binning (convolved). Second derivatives, in reverse and forward
    mode, follow from kappa''; third ones are refused. An event up to half a synthesis kernel
    outside the bins has a gradient although it adds nothing: moving it inside would.

    torch.func's transforms apply, and torch.compile and torch.export take it without a graph break,
    with any number of events and with torch.func inside. A compiled function has first derivatives
    only when it is differentiated from outside; second ones are taken inside it. Kernels, origin
    and bin_size are constants of its graph: move the coords rather than the origin.

    Source: Chen et al., "Unbiased Gradient Estimation for Event Binning via Functional
    Backpropagation", ICLR 2026.

    Args:
        coords: [..., N, D] float32 or float64, any unit. Under autocast also half types, which
            are cast to float32.
        weights: [..., N] of the same type, or None for ones.
        shape: the numbers of bins, D of them in the order of the coords' last dimension. An image
            [H, W] from coords (y, x) has shape=(H, W).
        binning: "rect" (histogram), "linear" (bilinear vote), "quadratic", "cubic" (B-splines),
            "gaussian", "keys", "lanczos", a registered name or a kernel; or D of them.
        reconstruction: likewise, or None for the raw gradient (zero for "rect"); or D of them.
        origin: centre of bin 0, in the unit of the coords, a number or D of them.
        bin_size: distance of the bins' centres, likewise.
        weights_gradient: "exact", or "synthesised" to take kappa in place of k, as the paper's
            published code does.

    Returns:
        [..., *shape], same type and device as coords. On the CPU the same input gives the same
        result bit for bit at any number of threads. On CUDA the sums run in no fixed order, unless
        torch.use_deterministic_algorithms(True) is in force.

    Raises:
        TypeError: coords or weights are not float32 or float64 tensors of one type.
        ValueError: shapes, sizes or kernel names that do not fit (ConfigError for the names).
    """
    coords, weights = _as_one_type(coords, weights)
    dimensions = coords.shape[-1] if coords.dim() else 0
    if coords.dim() < 2 or dimensions == 0:
        raise ValueError(f"coords have shape {tuple(coords.shape)}; expected [..., N, D], D >= 1")
    if weights is None:
        weights = coords.new_ones(()).expand(coords.shape[:-1])
    if weights.shape != coords.shape[:-1]:
        raise ValueError(
            f"weights have shape {tuple(weights.shape)}; expected {tuple(coords.shape[:-1])}"
        )
    grid = _grid(shape, origin, bin_size, dimensions)
    names = (
        _kernel_names(binning, dimensions, "binning"),
        _kernel_names(reconstruction, dimensions, "reconstruction"),
    )
    leading, events = coords.shape[:-2], coords.shape[-2]
    batch = math.prod(leading)
    coords, weights = coords.reshape(batch, events, dimensions), weights.reshape(batch, events)
    # Also whoever records operations by a dispatch mode (make_fx, FakeTensorMode, linearize) must
    # see one: a back end that leaves torch would be recorded as the constant that it returned.
    if torch.compiler.is_compiling() or _is_recorded():
        from event_binning_grad.binning import compiled  # loads the compiler

        how = (grid.shape, grid.origin, grid.bin_size, _listed(*names), weights_gradient)
        image = compiled.splat(coords, weights, *how)
    else:
        image = splat(coords, weights, grid, kernel_pairs(*names, weights_gradient, coords.dtype))
    return image.view(*leading, *grid.shape)


@lru_cache(maxsize=1024)
def kernel_pairs(
    binning: tuple[KernelName, ...],
    reconstruction: tuple[KernelName | None, ...],
    weights_gradient: WeightsGradient,
    dtype: torch.dtype,
) -> tuple[KernelPair, ...]:
    """The kernels of the dimensions, in the precision of the coords.

    Raises:
        ConfigError: an unknown kernel or an unknown gradient of the weights.
    """
    if weights_gradient not in get_args(WeightsGradient):
        known = ", ".join(get_args(WeightsGradient))
        raise ConfigError(f"weights_gradient is {weights_gradient!r}; expected one of {known}")
    return tuple(
        kernel_pair(
            kernel(first),
            None if second is None else kernel(second),
            weights_gradient,
            _PRECISION[dtype],
        )
        for first, second in zip(binning, reconstruction, strict=True)
    )


def _as_one_type(coords: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if not isinstance(coords, Tensor):
        raise TypeError(f"coords are a {type(coords).__name__}; expected a torch tensor")
    # What a half-precision layer has computed is taken under autocast; positions need more digits.
    if coords.dtype in HALF and autocasting(coords):
        coords = coords.float()
    if weights is not None and not isinstance(weights, Tensor):
        raise TypeError(f"weights are a {type(weights).__name__}; expected a torch tensor or None")
    if weights is not None and weights.dtype in HALF and autocasting(coords):
        weights = weights.to(coords.dtype)
    if coords.dtype not in _PRECISION:
        raise TypeError(f"coords are {coords.dtype}; expected float32 or float64")
    if weights is not None and weights.dtype != coords.dtype:
        raise TypeError(f"weights are {weights.dtype}; expected {coords.dtype} as coords are")
    if weights is not None and weights.device != coords.device:
        raise ValueError(f"weights are on {weights.device}; expected {coords.device} as coords are")
    return coords, weights


HALF = (torch.float16, torch.bfloat16)


def autocasting(coords: Tensor) -> bool:
    """Whether autocast is in force where the coords are."""
    device = coords.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def per_dimension(value: Any, dimensions: int, name: str) -> tuple[Any, ...]:
    """One value for each dimension, from that or from one for all.

    Raises:
        ValueError: another number of them.
    """
    # What has no dimension of its own is one for all: also arrays' and tensors' scalars.
    if value is None or isinstance(value, _SINGLE) or getattr(value, "ndim", 1) == 0:
        return (value,) * dimensions
    values = tuple(value)
    if len(values) != dimensions:
        raise ValueError(f"{name} is {value}; expected one, or {dimensions} of them")
    return values


def _kernel_names(value: Any, dimensions: int, name: str) -> tuple[Any, ...]:
    names = per_dimension(value, dimensions, name)
    if not all(k is None or isinstance(k, (str, Kernel)) for k in names):
        raise TypeError(f"{name} is {value}; expected kernels or their names")
    return names


_SINGLE = (str, Kernel, int, float)


def _listed(binning: tuple[KernelName, ...], reconstruction: tuple[KernelName | None, ...]) -> str:
    """The kernels as one string: "rect;linear|linear;" for two dimensions, the second raw."""
    return "|".join(
        f"{_name(first)};{'' if second is None else _name(second)}"
        for first, second in zip(binning, reconstruction, strict=True)
    )


def _name(kernel: KernelName) -> str:
    if not isinstance(kernel, Kernel):
        return kernel
    if KERNELS.get(kernel.name) is not kernel:
        raise ConfigError(f"kernel {kernel.name!r} is unknown by its name: use register_kernel")
    return kernel.name


def _is_recorded() -> bool:
    # Private to torch: without it, recording by hand is what is lost.
    count = getattr(torch._C, "_len_torch_dispatch_stack", None)
    return count is not None and count() > 0


def _grid(
    shape: Sequence[int],
    origin: float | Sequence[float],
    bin_size: float | Sequence[float],
    dimensions: int,
) -> Grid:
    def numbers(value: float | Sequence[float], name: str) -> tuple[float, ...]:
        if isinstance(value, Tensor) and value.requires_grad:
            raise TypeError(f"{name} requires a gradient, and has none: move the coords instead")
        try:
            values = tuple(float(v) for v in per_dimension(value, dimensions, name))
        except (TypeError, ValueError):
            values = ()
        if not values or not all(abs(v) < math.inf for v in values):
            raise ValueError(
                f"{name} is {value}; expected a finite number, or {dimensions} of them"
            )
        return values

    bins = (shape,) if isinstance(shape, int) else tuple(shape)
    if len(bins) != dimensions or not all(1 <= n < math.inf and n == int(n) for n in bins):
        raise ValueError(f"shape is {bins}; expected {dimensions} positive numbers of bins")
    grid = Grid(
        tuple(int(n) for n in bins), numbers(origin, "origin"), numbers(bin_size, "bin_size")
    )
    if any(size <= 0 for size in grid.bin_size):
        raise ValueError(f"bin_size is {bin_size}; expected positive numbers")
    return grid
