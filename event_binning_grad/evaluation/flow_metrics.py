"""Figures of dense optical flow: errors against a truth, density, and the flow warp loss.

Where nothing else is said they are over the pixels that have events in the window, as MVSEC's
benchmark has it: elsewhere nothing was seen, and a flow there is interpolation. DSEC's is over all
pixels whose truth is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from event_binning_grad.estimation.iwe_grid import SCALE, TURN_RAD

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Room for events that a flow moves out of the image.
_MARGIN_PX = 40.0


@dataclass(frozen=True)
class FlowError:
    """Errors of flow fields, pooled over the pixels compared of all of them.

    A pixel is compared where flow and truth are known; and, unless all pixels are asked for, where
    it has events in the window. The displacement is the flow times the window's span.

    Attributes:
        pixels: compared, of all fields together.
        epe_px: mean end-point error |u - u*| of the displacement, px over the window (Otte and
            Nagel 1994; Baker et al., A Database and Evaluation Methodology for Optical Flow, 2011).
        epe_px_s: mean end-point error of the flow, px/s.
        angular_deg: mean angle between (u, v, 1) and (u*, v*, 1) of the displacements in px, deg
            (Barron, Fleet, Beauchemin, Performance of Optical Flow Techniques, 1994).
        outliers_1px, outliers_2px, outliers_3px: share of pixels whose displacement is off by more
            than 1, 2 and 3 px (the 1PE, 2PE and 3PE of DSEC's benchmark, there in percent; the
            last one is MVSEC's outliers, too).
        true_px: mean length of the true displacement, px over the window.
    """

    pixels: int
    epe_px: float
    epe_px_s: float
    angular_deg: float
    outliers_1px: float
    outliers_2px: float
    outliers_3px: float
    true_px: float


def flow_error(
    flow: npt.NDArray[np.floating],
    truth: npt.NDArray[np.floating],
    span_s: float,
    where: Mask | None = None,
) -> FlowError | None:
    """The error of one field.

    Args:
        flow, truth: [H, W, 2] px/s, NaN where not known.
        span_s: of the window, s.
        where: [H, W], the pixels that count (those with events); None: all.

    Returns:
        None if there is no pixel to compare.
    """
    compared = known(flow) & known(truth)
    if where is not None:
        compared &= where
    if not compared.any():
        return None
    estimated = span_s * np.asarray(flow, np.float64)[compared]
    true = span_s * np.asarray(truth, np.float64)[compared]
    off = np.hypot(*(estimated - true).T)
    return FlowError(
        pixels=len(off),
        epe_px=float(off.mean()),
        epe_px_s=float(off.mean() / span_s),
        angular_deg=float(np.degrees(_angles(estimated, true)).mean()),
        outliers_1px=float((off > 1).mean()),
        outliers_2px=float((off > 2).mean()),
        outliers_3px=float((off > 3).mean()),
        true_px=float(np.hypot(*true.T).mean()),
    )


def pooled(errors: Iterable[FlowError | None]) -> FlowError | None:
    """The error of several fields: means over all their pixels, whichever field these are of."""
    some = [error for error in errors if error is not None]
    if not some:
        return None
    pixels = np.array([error.pixels for error in some], np.float64)

    def mean(name: str) -> float:
        values = np.array([getattr(error, name) for error in some])
        return float((pixels * values).sum() / pixels.sum())

    return FlowError(int(pixels.sum()), *(mean(f.name) for f in fields(FlowError)[1:]))


def _angles(estimated: Float64, true: Float64) -> Float64:
    """The angles [K] in rad between (u, v, 1) of displacements [K, 2].

    By the cross product too: near 0 the arc cosine alone loses half its digits.
    """
    dot = 1 + (estimated * true).sum(axis=1)
    cross = estimated[:, 0] * true[:, 1] - estimated[:, 1] * true[:, 0]
    length = np.sqrt(((estimated - true) ** 2).sum(axis=1) + cross**2)
    return np.arctan2(length, dot)


def known(flow: npt.NDArray[np.floating]) -> Mask:
    """[H, W]: where a flow [H, W, 2] is known."""
    return np.isfinite(flow[..., 0]) & np.isfinite(flow[..., 1])


def event_pixels(coords: npt.NDArray[np.floating], width: int, height: int) -> Mask:
    """[height, width]: the pixels nearest to events at coords [N, 2] (x, y).

    Events off the image, or at NaN, are on none.
    """
    columns, rows = _nearest(coords, width, height)
    mask = np.zeros((height, width), bool)
    mask[rows, columns] = True
    return mask


def density(flow: npt.NDArray[np.floating], where: Mask) -> float:
    """Share of the pixels with events, `where` [H, W], whose flow is known; NaN for no pixel."""
    return float(known(flow)[where].mean()) if where.any() else math.nan


def flow_at(flow: npt.NDArray[np.floating], coords: npt.NDArray[np.floating]) -> Float64:
    """The flow [N, 2] at the pixels nearest to coords [N, 2] (x, y); NaN off the image."""
    height, width = flow.shape[:2]
    values = np.full((len(coords), 2), np.nan)
    on = _on_image(coords, width, height)
    columns, rows = np.rint(coords[on]).astype(np.intp).T
    values[on] = flow[rows, columns]
    return values


def warped(
    coords: npt.NDArray[np.floating],
    offset_s: npt.NDArray[np.floating],
    flow: npt.NDArray[np.floating],
) -> Float64:
    """Events brought to the flow's reference time: x - flow(x) (t - t_ref), [N, 2] px.

    Args:
        coords: [N, 2] where the events are; the flow is that of the nearest pixel.
        offset_s: [N] their times from the reference time on, s.
        flow: [H, W, 2] px/s. Events where it is not known stay where they are.
    """
    return coords - np.nan_to_num(flow_at(flow, coords)) * offset_s[:, None]


def flow_warp_loss(
    coords: npt.NDArray[np.floating],
    offset_s: npt.NDArray[np.floating],
    flow: npt.NDArray[np.floating],
) -> float:
    """Variance of the image of warped events over that of the events as they came.

    The FWL of Stoffregen et al., Reducing the Sim-to-Real Gap for Event Cameras, ECCV 2020: above 1
    the flow makes the image sharper. All polarities count 1. The events are voted bilinearly into
    an image turned by 5 degrees and scaled by 0.97 against the pixels, so that events on pixel
    centres have no advantage, in both cases. Events whose flow is not known stay where they are in
    both images; so do not hide events to gain by it.

    Args:
        coords: [N, 2] px, undistorted where a calibration is known; NaN: left out.
        offset_s: [N] times from the flow's reference time on, s.
        flow: [H, W, 2] px/s.

    Returns:
        NaN where there is no event, or no contrast to begin with.
    """
    height, width = flow.shape[:2]
    room = 0.25 * max(width, height)
    low, high = np.array([-room, -room]), np.array([width - 1 + room, height - 1 + room])
    seen = ((coords >= low) & (coords <= high)).all(axis=1)  # false for NaN
    coords, offset_s = np.asarray(coords[seen], np.float64), offset_s[seen]
    if not len(coords):
        return math.nan
    low, high = coords.min(axis=0), coords.max(axis=0)
    before = _turned_variance(coords, low, high)
    after = _turned_variance(warped(coords, offset_s, flow), low, high)
    return after / before if before > 0 else math.nan


def vote(coords: npt.NDArray[np.floating], width: int, height: int) -> Float32:
    """Image [height, width] of events at coords [N, 2] (x, y), each shared bilinearly between the
    four nearest pixels; what falls off the image, or is NaN, is lost."""
    coords = np.asarray(coords, np.float64)
    corner = np.floor(coords)
    inside = ((corner >= -1) & (corner < [width, height])).all(axis=1)
    share = (coords - corner)[inside]
    first = corner[inside].astype(np.intp)
    # A frame of one pixel takes what is lost.
    image = np.zeros((height + 2) * (width + 2))
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - right - share[:, 0]) * np.abs(1 - down - share[:, 1])
            place = (first[:, 1] + 1 + down) * (width + 2) + first[:, 0] + 1 + right
            image += np.bincount(place, weight, len(image))
    return image.reshape(height + 2, width + 2)[1:-1, 1:-1].astype(np.float32)


def _turned_variance(coords: Float64, low: Float64, high: Float64) -> float:
    """Variance of the image of events over the turned box from low to high, and a margin."""
    # Events as they came sit on pixel centres. On a grid of these they fill one bin each,
    # and the uncompensated image looks sharper than it is: a flow that is wrong may win.
    cos, sin = SCALE * math.cos(TURN_RAD), SCALE * math.sin(TURN_RAD)
    matrix = np.array([[cos, -sin], [sin, cos]])
    x, y = zip(low, high, strict=True)
    corners = np.array([[a, b] for a in x for b in y]) @ matrix.T
    least = corners.min(axis=0) - _MARGIN_PX
    width, height = np.ceil(corners.max(axis=0) + _MARGIN_PX - least).astype(int) + 1
    return float(vote(coords @ matrix.T - least, int(width), int(height)).var(dtype=np.float64))


def _on_image(coords: npt.NDArray[np.floating], width: int, height: int) -> Mask:
    x, y = coords.T
    return (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)


def _nearest(
    coords: npt.NDArray[np.floating], width: int, height: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    columns, rows = np.rint(coords[_on_image(coords, width, height)]).astype(np.intp).T
    return columns, rows
