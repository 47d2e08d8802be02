"""The operator as whole arrays in numpy, the way it is written for an array library such as JAX.

What the operator is measured and tested against. It shares nothing with it: the kernels are closed
forms of their own, and every intermediate array holds all combinations of taps of all events,
[N, taps, ..., taps].

Notation as in `binning.reference`, with bins of size 1 and bin 0 centred at 0: an event at x is
u = x - j from bin j. Reconstruction is linear throughout, so that kappa is the quadratic B-spline
for rect binning and the cubic one for linear binning.

Source of the formulas: Chen et al., "Unbiased Gradient Estimation for Event Binning via Functional
Backpropagation", ICLR 2026; the B-splines are the textbook's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np


@dataclass(frozen=True)
class Taps:
    """A kernel at events' bins in one dimension; all [N, taps].

    `slopes` and `bends` are the first and second derivatives; a binning kernel has none here.
    """

    bins: np.ndarray
    values: np.ndarray
    slopes: np.ndarray | None = None
    bends: np.ndarray | None = None


def splat(
    coords: np.ndarray, weights: np.ndarray, shape: Sequence[int], binning: Sequence[str]
) -> np.ndarray:
    """h_j = sum_i w_i k(u_ij).

    Args:
        coords: [N, D], finite.
        weights: [N].
        shape: D numbers of bins.
        binning: "rect" or "linear" for every dimension.

    Returns:
        [*shape].
    """
    taps = _taps(coords, binning, BINNING)
    return _scatter(weights, [t.values for t in taps], taps, shape)


def pull_back(
    cotangent: np.ndarray,
    coords: np.ndarray,
    weights: np.ndarray,
    binning: Sequence[str],
    want_weights: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """dL/dx_id = w_i sum_j c_j kappa^d(u_ij) and dL/dw_i = sum_j c_j k(u_ij).

    Args:
        cotangent: c = dL/dh, [*shape].
        coords, weights, binning: as in `splat`.
        want_weights: whether to compute the second.

    Returns:
        [N, D] and [N] (None where not wanted).
    """
    kappa = _taps(coords, binning, SYNTHESIS)
    reached = _gather(cotangent, kappa)
    columns = [
        weights * _sum(reached * _product(_differentiated(kappa, d))) for d in range(len(kappa))
    ]
    to_weights = None
    if want_weights:
        k = _taps(coords, binning, BINNING)
        to_weights = _sum(_gather(cotangent, k) * _product([t.values for t in k]))
    return np.stack(columns, -1), to_weights


def pull_back_twice(
    cotangent: np.ndarray,
    coords: np.ndarray,
    weights: np.ndarray,
    coords_tangent: np.ndarray,
    weights_tangent: np.ndarray | None,
    binning: Sequence[str],
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """The gradient of <tangent, `pull_back`> by coords, weights and cotangent.

    to_coords_ie  = w_i sum_d dx_id sum_j c_j kappa^de(u_ij) + dw_i sum_j c_j kappa^e(u_ij)
    to_weights_i  = sum_d dx_id sum_j c_j kappa^d(u_ij)
    to_cotangent_j = sum_i [w_i sum_d dx_id kappa^d(u_ij) + dw_i k(u_ij)]

    Args:
        cotangent, coords, weights, binning: as in `pull_back`.
        coords_tangent: [N, D].
        weights_tangent: [N], or None where `pull_back` was not asked for weights.

    Returns:
        [N, D], [N] (None without a tangent of the weights) and [*shape].
    """
    dimensions = coords.shape[1]
    kappa = _taps(coords, binning, SYNTHESIS)
    reached = _gather(cotangent, kappa)
    to_coords = np.zeros_like(coords)
    to_weights = np.zeros_like(weights)
    to_cotangent = np.zeros_like(cotangent)
    for e in range(dimensions):
        slopes = _differentiated(kappa, e)
        slope = _sum(reached * _product(slopes))
        to_weights += coords_tangent[:, e] * slope
        to_cotangent += _scatter(weights * coords_tangent[:, e], slopes, kappa, cotangent.shape)
        for d in range(dimensions):
            bend = _sum(reached * _product(_differentiated(kappa, d, e)))
            to_coords[:, e] += weights * coords_tangent[:, d] * bend
        if weights_tangent is not None:
            to_coords[:, e] += weights_tangent * slope
    if weights_tangent is None:
        return to_coords, None, to_cotangent
    k = _taps(coords, binning, BINNING)
    to_cotangent += _scatter(weights_tangent, [t.values for t in k], k, cotangent.shape)
    return to_coords, to_weights, to_cotangent


def _rect(x: np.ndarray) -> Taps:
    return Taps(_bins(np.floor(x + 0.5), 0), np.ones_like(x)[:, None])


def _linear(x: np.ndarray) -> Taps:
    first = np.floor(x)
    r = x - first
    return Taps(_bins(first, 0, 1), np.stack([1 - r, r], -1))


def _quadratic(x: np.ndarray) -> Taps:
    middle = np.floor(x + 0.5)
    r = x + 0.5 - middle
    one = np.ones_like(r)
    return Taps(
        _bins(middle, -1, 0, 1),
        np.stack([(1 - r) ** 2 / 2, 0.5 + r - r**2, r**2 / 2], -1),
        np.stack([r - 1, 1 - 2 * r, r], -1),
        np.stack([one, -2 * one, one], -1),
    )


def _cubic(x: np.ndarray) -> Taps:
    first = np.floor(x)
    r = x - first
    return Taps(
        _bins(first, -1, 0, 1, 2),
        np.stack(
            [
                (1 - r) ** 3 / 6,
                (3 * r**3 - 6 * r**2 + 4) / 6,
                (-3 * r**3 + 3 * r**2 + 3 * r + 1) / 6,
                r**3 / 6,
            ],
            -1,
        ),
        np.stack(
            [-((1 - r) ** 2) / 2, (3 * r**2 - 4 * r) / 2, (-3 * r**2 + 2 * r + 1) / 2, r**2 / 2], -1
        ),
        np.stack([1 - r, 3 * r - 2, 1 - 3 * r, r], -1),
    )


BINNING: dict[str, Callable[[np.ndarray], Taps]] = {"rect": _rect, "linear": _linear}
SYNTHESIS: dict[str, Callable[[np.ndarray], Taps]] = {"rect": _quadratic, "linear": _cubic}


def _bins(first: np.ndarray, *offsets: int) -> np.ndarray:
    return first.astype(np.int64)[:, None] + np.array(offsets)


def _taps(
    coords: np.ndarray, binning: Sequence[str], kernels: dict[str, Callable[[np.ndarray], Taps]]
) -> list[Taps]:
    return [kernels[name](coords[:, d]) for d, name in enumerate(binning)]


def _differentiated(taps: Sequence[Taps], *dimensions: int) -> list[np.ndarray]:
    """The taps' values, differentiated once for every time that a dimension is named."""
    factors = []
    for d, t in enumerate(taps):
        factor = (t.values, t.slopes, t.bends)[dimensions.count(d)]
        assert factor is not None
        factors.append(factor)
    return factors


def _product(factors: Sequence[np.ndarray]) -> np.ndarray:
    """[N, taps] for every dimension -> [N, taps, ..., taps]."""
    return reduce(lambda product, factor: product[..., None] * _beside(factor, product), factors)


def _beside(factor: np.ndarray, product: np.ndarray) -> np.ndarray:
    """[N, taps] as [N, 1, ..., 1, taps], with one dimension more than the product."""
    return factor.reshape(len(factor), *(1,) * (product.ndim - 1), -1)


def _places(taps: Sequence[Taps], shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Flat bins and whether they are inside, [N, taps, ..., taps]; the bin is 0 where not."""
    index = taps[0].bins
    inside = (index >= 0) & (index < shape[0])
    for t, size in zip(taps[1:], shape[1:], strict=True):
        bins = _beside(t.bins, index)
        inside = inside[..., None] & (bins >= 0) & (bins < size)
        index = index[..., None] * size + bins
    return np.where(inside, index, 0), inside


def _scatter(
    weights: np.ndarray, factors: Sequence[np.ndarray], taps: Sequence[Taps], shape: Sequence[int]
) -> np.ndarray:
    index, inside = _places(taps, shape)
    values = _product(factors)
    added = np.where(inside, weights.reshape(-1, *(1,) * (values.ndim - 1)) * values, 0)
    image = np.zeros(int(np.prod(shape)), weights.dtype)
    np.add.at(image, index.ravel(), added.ravel().astype(weights.dtype, copy=False))
    return image.reshape(tuple(shape))


def _gather(image: np.ndarray, taps: Sequence[Taps]) -> np.ndarray:
    index, inside = _places(taps, image.shape)
    return np.where(inside, image.ravel()[index], 0)


def _sum(values: np.ndarray) -> np.ndarray:
    """Over all taps: [N, taps, ..., taps] -> [N]."""
    return values.reshape(len(values), -1).sum(1)
