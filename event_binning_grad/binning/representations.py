"""Event representations that are in common use, each one call of `bin_events`.

Coordinates are (y, x) in pixels, pixel centres at integers. All take any leading batch dimensions
and are differentiable by the coordinates and by weights and times, as `bin_events` is. At whole
pixel coordinates the binning "linear" counts exactly as "rect" does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from event_binning_grad.binning.operator import (
    HALF,
    KernelName,
    autocasting,
    bin_events,
    per_dimension,
)

Kernels = KernelName | Sequence[KernelName]
"""A binning kernel for y and x, or one for each."""
Reconstruction = KernelName | Sequence[KernelName | None] | None
"""A reconstruction kernel for y and x, or one for each; None is the raw gradient."""
TimeBinning = Literal["linear", "rect"]


def image_of_warped_events(
    coords: Tensor,
    *,
    size: Sequence[int],
    weights: Tensor | None = None,
    binning: Kernels = "linear",
    reconstruction: Reconstruction = "linear",
) -> Tensor:
    """The image of warped events: how many events, or how much weight, lies in every pixel.

    Args:
        coords: [..., N, 2] (y, x) in pixels, float32 or float64.
        size: (H, W).
        weights: [..., N], or None for ones. Signs +1 and -1 give the brightness increment image,
            exp((t - t_ref) / tau) an exponential time surface, summed over all events of a pixel
            (the classic one keeps the latest).
        binning, reconstruction: as in `bin_events`.

    Returns:
        [..., H, W].

    Raises:
        TypeError: a type that `bin_events` does not take.
        ValueError: shapes or kernels that do not fit.
    """
    _check_coords(coords)
    return bin_events(
        coords,
        weights,
        shape=_height_and_width(size),
        binning=binning,
        reconstruction=reconstruction,
    )


def polarity_image(
    coords: Tensor,
    polarity: Tensor,
    *,
    size: Sequence[int],
    weights: Tensor | None = None,
    binning: Kernels = "linear",
    reconstruction: Reconstruction = "linear",
) -> Tensor:
    """An image for each polarity, in one pass: OFF first, then ON.

    Args:
        coords: [..., N, 2] (y, x) in pixels, float32 or float64.
        polarity: [..., N] of any real type. Positive is ON; zero, negative and False are OFF: so
            booleans, 0 and 1, and -1 and 1 all mean what they say.
        size: (H, W).
        weights: [..., N], or None for ones.
        binning, reconstruction: as in `bin_events`.

    Returns:
        [..., 2, H, W].

    Raises:
        TypeError: a type that `bin_events` does not take.
        ValueError: shapes or kernels that do not fit.
    """
    _check_coords(coords)
    _check_per_event(polarity, coords, "polarity")
    # The polarity is a dimension of two bins. Its raw gradient by "rect" is zero: an event does not
    # leave its polarity.
    return bin_events(
        _stacked((polarity > 0).to(coords.dtype), coords),
        weights,
        shape=(2, *_height_and_width(size)),
        binning=("rect", *per_dimension(binning, 2, "binning")),
        reconstruction=(None, *per_dimension(reconstruction, 2, "reconstruction")),
    )


def voxel_grid(
    coords: Tensor,
    times: Tensor,
    *,
    bins: int,
    size: Sequence[int],
    span: tuple[float, float],
    weights: Tensor | None = None,
    time_binning: TimeBinning = "linear",
    time_reconstruction: KernelName | None = "linear",
    binning: Kernels = "linear",
    reconstruction: Reconstruction = "linear",
) -> Tensor:
    """A voxel grid: space and time binned together, differentiable by both.

    "linear" centres the first bin on the span's start and the last one on its end, as in Zhu et
    al., "Unsupervised Event-based Learning of Optical Flow, Depth, and Egomotion", CVPR 2019. An
    event up to a bin outside the span counts in part. "rect" divides the span into bins of equal
    width; the span's end itself belongs to what follows, and is dropped.

    Args:
        coords: [..., N, 2] (y, x) in pixels, float32 or float64.
        times: [..., N] of the same type, in any unit. float32 has 7 digits: count from the window's
            start. For windows of different lengths divide by the length and give span=(0, 1).
        bins: B, the number of bins in time; at least 2 if they are "linear".
        size: (H, W).
        span: the time at which the grid starts and ends.
        weights: [..., N], or None for ones; in Zhu et al. the polarity, +1 or -1.
        time_binning, time_reconstruction: the kernels of the time.
        binning, reconstruction: those of y and x, as in `bin_events`.

    Returns:
        [..., B, H, W].

    Raises:
        TypeError: times of another type than coords, or a type that `bin_events` does not take.
        ValueError: shapes, kernels, bins or a span that do not fit.
    """
    _check_coords(coords)
    _check_per_event(times, coords, "times")
    start, widths = _time_bins(bins, span, time_binning)
    # In bins from the span's start on: rounding moves neither end into another bin.
    since_start = (_same_type(times, coords, "times") - span[0]) / (span[1] - span[0])
    return bin_events(
        _stacked(since_start * widths, coords),
        weights,
        shape=(bins, *_height_and_width(size)),
        binning=(time_binning, *per_dimension(binning, 2, "binning")),
        reconstruction=(time_reconstruction, *per_dimension(reconstruction, 2, "reconstruction")),
        origin=(start, 0.0, 0.0),
    )


def average_timestamp_image(
    coords: Tensor,
    times: Tensor,
    *,
    size: Sequence[int],
    polarity: Tensor | None = None,
    prior_count: float = 0.0,
    binning: Kernels = "linear",
    reconstruction: Reconstruction = None,
) -> Tensor:
    """The mean time of the events of every pixel, 0 where there are none.

    Its squares, summed, are the loss of Zhu et al., "Unsupervised Event-based Learning of Optical
    Flow, Depth, and Egomotion", CVPR 2019. The gradient by the times is exact. A pixel's mean jumps
    when its first event arrives, which no gradient by the coordinates can see: as a loss of the
    coordinates, use prior_count=1, which makes it continuous.

    The gradient by the coordinates is the raw one unless a reconstruction is given. The
    synthesised gradient takes what is made of the image to be smooth over a bin, and a quotient by
    a small count is not. Kernels with negative lobes ("keys", "lanczos") give no mean.

    Args:
        coords: [..., N, 2] (y, x) in pixels, float32 or float64.
        times: [..., N] of the same type, in any unit; counted from the window's start.
        size: (H, W).
        polarity: [..., N] as in `polarity_image`, or None.
        prior_count: so many events at time 0 are added to every pixel.
        binning, reconstruction: as in `bin_events`.

    Returns:
        [..., H, W], or with polarities [..., 2, H, W], OFF first.

    Raises:
        TypeError: times of another type than coords, or a type that `bin_events` does not take.
        ValueError: shapes or kernels that do not fit, a negative prior_count.
    """
    _check_coords(coords)
    _check_per_event(times, coords, "times")
    times = _same_type(times, coords, "times")
    if not 0 <= prior_count < float("inf"):
        raise ValueError(f"prior_count is {prior_count}; expected a number of events, 0 or more")
    options: dict[str, Any] = {"size": size, "binning": binning, "reconstruction": reconstruction}

    def image(weights: Tensor | None) -> Tensor:
        if polarity is None:
            return image_of_warped_events(coords, weights=weights, **options)
        return polarity_image(coords, polarity, weights=weights, **options)

    count, total = image(None) + prior_count, image(times)
    # The inner choice keeps 0 / 0 out of the gradient, the outer one out of the result.
    mean = total / torch.where(count > 0, count, 1)
    return torch.where(count > 0, mean, 0)


def _time_bins(bins: int, span: tuple[float, float], binning: str) -> tuple[float, int]:
    """The centre of the first bin after the span's start, in bins, and how many fit the span."""
    if binning not in ("linear", "rect"):
        raise ValueError(f"time_binning is {binning!r}; expected 'linear' or 'rect'")
    fewest = 2 if binning == "linear" else 1
    if bins < fewest:
        raise ValueError(f"bins is {bins}; expected at least {fewest} with {binning!r} time bins")
    if not 0 < span[1] - span[0] < float("inf"):
        raise ValueError(f"span is {span}; expected a start before its end, both finite")
    return (0.0, bins - 1) if binning == "linear" else (0.5, bins)


def _stacked(first: Tensor, coords: Tensor) -> Tensor:
    return torch.cat((first.unsqueeze(-1), coords), -1)


def _height_and_width(size: Sequence[int]) -> Sequence[int]:
    if isinstance(size, int) or len(size) != 2:
        raise ValueError(f"size is {size}; expected (H, W)")
    return size


def _check_coords(coords: Tensor) -> None:
    if not isinstance(coords, Tensor):
        raise TypeError(f"coords are a {type(coords).__name__}; expected a torch tensor")
    if coords.dim() < 2 or coords.shape[-1] != 2:
        raise ValueError(f"coords have shape {tuple(coords.shape)}; expected [..., N, 2], (y, x)")


def _check_per_event(values: Tensor, coords: Tensor, name: str) -> None:
    if values.shape != coords.shape[:-1]:
        expected = tuple(coords.shape[:-1])
        raise ValueError(f"{name} have shape {tuple(values.shape)}; expected {expected} as coords")


def _same_type(times: Tensor, coords: Tensor, name: str) -> Tensor:
    if autocasting(coords):
        # bin_events makes one type of them; half a precision is too little to subtract in.
        return times.float() if times.dtype in HALF else times
    if times.dtype != coords.dtype:
        raise TypeError(f"{name} are {times.dtype}; expected {coords.dtype} as coords are")
    return times
