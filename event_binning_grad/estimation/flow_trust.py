"""Where a flow field is known, in which direction, and how well."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from event_binning_grad.estimation.flow_contrast import OWN_CURVATURE, FlowPass
from event_binning_grad.estimation.flow_grid import _FLAGS, NodeGrid, on_pixels

Float32 = npt.NDArray[np.float32]

# Standard deviation in px over the window at which the confidence is a half.
_HALF_STD_PX = 1.0
# Flow is unknown where even its best direction has a greater one.
_UNKNOWN_PX = 4.0
# Only the normal flow is known where the worse direction has a greater one, and one so many times
# that of the better.
_APERTURE_PX = 4.0
_APERTURE_RATIO = 8.0
# Errors on simulated planes and rotations are greater than the standard deviations by about this.
_STD_SCALE = 2.0
# As far as the smoothness carries it, what the neighbours know counts, too: by so many rounds of
# 1, 2, 1 along rows and columns, which are like a Gaussian over so many nodes.
_SPREADS = 8
_SPREAD_NODES = 25.0
# Beyond, the neighbours in so many rows and columns count with a share: the whole field is smooth.
_WIDE_NODES, _WIDE_SHARE = 8, 0.3
# So does the model of the whole field (see flow_grid.smooth_model), at nodes that follow it within
# about so many px over the window: with this share of what all of them know, as it has more terms
# than one, but no better than to so many px.
_MODEL_EDGE_PX, _MODEL_SHARE, _MODEL_STD_PX = 0.7, 0.1, 0.5
# Fewer events than this about a node, so counted: nothing was seen there.
_MIN_SUPPORT = 25.0


@dataclass(frozen=True)
class NodeTrust:
    """Of every node [rows, cols]: standard deviations in px over the window in the best and the
    worst direction, the best direction as a unit vector [.., 2], and whether anything was seen."""

    best_px: Float32
    worst_px: Float32
    direction: Float32
    seen: npt.NDArray[np.bool_]


def node_trust(last: FlowPass, bin_px: float, off_model: Float32) -> NodeTrust:
    """What the last pass, with bins of bin_px pixels, tells.

    off_model: [rows, cols, 2], the field less the model of all of it, px over the window.

    An estimate H^-1 g varies by H^-1 S H^-1, H the Hessian and S the sum of the outer products of
    the events' own gradients, here taken to be alike in all directions. Both are summed over as
    many neighbours as the smoothness makes one estimate of.
    """
    # The other half of what the events' own votes give to the Hessian, too: an event's is 2 s^2 of
    # it, and s^2 is 1 / 12 on average.
    own = np.float32(OWN_CURVATURE / (6 * bin_px**2)) * last.support
    sums = np.empty((2, 5, *last.support.shape), np.float32)
    sums[0, 0], sums[0, 1], sums[0, 2] = np.moveaxis(last.hessian, 2, 0)
    sums[0, 0] -= own
    sums[0, 2] -= own
    sums[0, 3], sums[0, 4] = last.noise, last.support
    wide = _box(sums[0], _WIDE_NODES)
    following = 1 / (1 + np.square(off_model).sum(axis=-1) / np.float32(_MODEL_EDGE_PX**2)) ** 2
    whole = (following * sums[0]).sum(axis=(1, 2), keepdims=True)
    for _ in range(_SPREADS):
        _spread(sums[0], sums[1])
        _spread_down(sums[1], sums[0])
    xx, xy, yy, noise, support = _SPREAD_NODES * sums[0]
    mean, half = -(xx + yy) / 2, (yy - xx) / 2
    radius = np.hypot(half, xy)
    angle = 0.5 * np.arctan2(-xy, half)
    x, y = np.cos(angle), np.sin(angle)
    direction = np.stack([x, y], -1)
    best = _information(mean + radius, noise)
    worst = _information(mean - radius, noise)
    worst += np.float32(_WIDE_SHARE) * _information(_across(wide, x, y), wide[3])
    model = np.float32(_MODEL_SHARE) * _information(_across(whole, x, y), whole[3])
    worst += following / (1 / model + np.float32(_MODEL_STD_PX**2))
    best = np.maximum(best, worst)
    scale = np.float32(_STD_SCALE)
    return NodeTrust(
        scale / np.sqrt(best), scale / np.sqrt(worst), direction, support >= _MIN_SUPPORT
    )


def _across(sums: Float32, x: Float32, y: Float32) -> Float32:
    """The curvature of sums (xx, xy, yy, ..) in the direction across the unit vector (x, y)."""
    return -(sums[0] * y * y - 2 * sums[1] * x * y + sums[2] * x * x)


def _information(curvature: Float32, noise: Float32) -> Float32:
    """1/px^2; some, however little, everywhere."""
    least = np.float32(1e-6)
    known = np.square(np.maximum(curvature, 0)) / np.maximum(noise / 2, least) + least
    return known.astype(np.float32)


def _box(field: Float32, radius: int) -> Float32:
    """Sums over the squares of nodes that are at most so many rows and columns away."""
    for axis in (1, 2):
        count = field.shape[axis]
        sums = np.insert(np.cumsum(field, axis=axis, dtype=np.float64), 0, 0.0, axis=axis)
        at = np.arange(count)
        high, low = np.minimum(at + radius + 1, count), np.maximum(at - radius, 0)
        field = (np.take(sums, high, axis) - np.take(sums, low, axis)).astype(np.float32)
    return field


@numba.njit(**_FLAGS)
def _spread(field, out):
    """Weighted with 1, 2, 1 (over 4) along rows; nothing beyond the ends."""
    channels, rows, cols = field.shape
    quarter, half = np.float32(0.25), np.float32(0.5)
    for c in range(channels):
        for j in range(rows):
            for i in range(cols):
                out[c, j, i] = half * field[c, j, i]
            for i in range(1, cols):
                out[c, j, i] += quarter * field[c, j, i - 1]
            for i in range(cols - 1):
                out[c, j, i] += quarter * field[c, j, i + 1]


@numba.njit(**_FLAGS)
def _spread_down(field, out):
    """The same along columns."""
    channels, rows, cols = field.shape
    quarter, half = np.float32(0.25), np.float32(0.5)
    for c in range(channels):
        for j in range(rows):
            for i in range(cols):
                out[c, j, i] = half * field[c, j, i]
            if j > 0:
                for i in range(cols):
                    out[c, j, i] += quarter * field[c, j - 1, i]
            if j + 1 < rows:
                for i in range(cols):
                    out[c, j, i] += quarter * field[c, j + 1, i]


def fields_of(
    nodes: NodeGrid,
    displacement: Float32,
    trust: NodeTrust,
    size: tuple[int, int],
    stride: int,
) -> tuple[Float32, Float32, npt.NDArray[np.bool_]]:
    """Displacement [H, W, 2], confidence [H, W] and normal_flow [H, W] at every stride-th pixel."""
    ratio = trust.worst_px / trust.best_px
    aperture = (trust.worst_px > _APERTURE_PX) & (ratio > _APERTURE_RATIO)
    known = trust.seen & (trust.best_px < _UNKNOWN_PX)
    std = np.where(aperture, trust.best_px, trust.worst_px)
    confidence = known / (1 + (std / _HALF_STD_PX) ** 2)
    projected = (displacement * trust.direction).sum(axis=-1, keepdims=True) * trust.direction
    nodal = np.where(aperture[..., None], projected, displacement)
    packed = np.concatenate(
        [nodal, confidence[..., None], (aperture & known)[..., None], known[..., None]], -1
    )
    dense = on_pixels(nodes, packed.astype(np.float32), size, stride)
    field, normal = np.ascontiguousarray(dense[..., :2]), dense[..., 3] > 0.5
    confident = np.ascontiguousarray(dense[..., 2])
    unknown = dense[..., 4] < 0.5
    field[unknown], confident[unknown], normal[unknown] = np.nan, 0, False
    return field, confident, normal
