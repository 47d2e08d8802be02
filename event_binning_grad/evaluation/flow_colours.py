"""Flow fields as pictures: the colour wheel of the Middlebury benchmark. Pure numpy."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

RgbImage = npt.NDArray[np.uint8]

# Where nothing is known of the flow, and how bright flows beyond the wheel's rim are.
UNKNOWN_RGB = (0, 0, 0)
_BEYOND = 0.75
# The wheel's six parts by the hue at their start, and how many steps each has: more where the eye
# tells more hues apart (Baker et al., A Database and Evaluation Methodology for Optical Flow,
# IJCV 2011; the angles of the benchmark's own pictures).
_HUES = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255))
_STEPS = (15, 6, 4, 11, 13, 6)
# The flow is looked up in a square of so many nodes from -1 to 1 of the greatest speed, and some
# beyond, where only the direction counts.
_NODES = 257
_REACH = 1.5


def flow_to_rgb(flow: npt.NDArray[np.floating], max_px_s: float | None = None) -> RgbImage:
    """A flow field as colours: the hue says where to, the saturation how fast.

    White is no motion, red to the right, yellow down, the wheel's rim max_px_s; faster flows are
    darker. Unknown flow is black. Colours are exact to a hundredth of max_px_s.

    Args:
        flow: [H, W, 2] x then y, in any unit of max_px_s (px/s as a rule); NaN where unknown.
        max_px_s: the speed at the wheel's rim; None: the 99th percentile of the known speeds.

    Returns:
        [H, W, 3] uint8, RGB.

    Raises:
        ValueError: flow is no [H, W, 2], or max_px_s is not above zero.
    """
    if flow.ndim != 3 or flow.shape[2] != 2:
        raise ValueError(f"flow is {list(flow.shape)}, expected [H, W, 2]")
    if max_px_s is None:
        max_px_s = typical_maximum(flow)
    if not 0 < max_px_s < np.inf:
        raise ValueError(f"max_px_s is {max_px_s}, expected a number above 0")
    middle = _NODES // 2
    scaled = np.asarray(flow, np.float32) * np.float32(middle / (_REACH * max_px_s))
    known = np.isfinite(scaled[..., 0]) & np.isfinite(scaled[..., 1])
    # A flow beyond the square is brought to its border, in its direction.
    length = np.maximum(np.abs(scaled[..., 0]), np.abs(scaled[..., 1]))
    with np.errstate(invalid="ignore"):
        scaled *= (middle / np.maximum(length, middle))[..., None]
    nodes = np.where(known[..., None], np.rint(scaled) + middle, 0).astype(np.intp)
    index = np.where(known, nodes[..., 1] * _NODES + nodes[..., 0], _NODES * _NODES)
    return _table()[index]


def typical_maximum(flow: npt.NDArray[np.floating]) -> float:
    """The 99th percentile of the known speeds of a flow field [H, W, 2]; 1 where all are zero."""
    speed = np.hypot(flow[..., 0], flow[..., 1])
    speed = speed[np.isfinite(speed)]
    greatest = float(np.percentile(speed, 99)) if len(speed) else 0.0
    return greatest if greatest > 0 else 1.0


def colour_wheel(size: int = 101) -> RgbImage:
    """The legend: [size, size, 3] uint8, the colours of flows from the middle to the rim."""
    ramp = np.linspace(-1, 1, size)
    flow = np.stack(np.meshgrid(ramp, ramp), axis=-1)
    flow[np.hypot(flow[..., 0], flow[..., 1]) > 1] = np.nan
    wheel = flow_to_rgb(flow, 1.0)
    wheel[np.isnan(flow[..., 0])] = 255
    return wheel


@lru_cache(maxsize=1)
def _table() -> RgbImage:
    """[nodes² + 1, 3]: the colour of every node of the square, and that of unknown flow."""
    ramp = np.linspace(-_REACH, _REACH, _NODES)
    x, y = np.meshgrid(ramp, ramp)
    speed = np.hypot(x, y)[..., None]
    rim = _rim_colours(np.arctan2(y, x))
    inside = 1 - speed * (1 - rim)
    colours = np.where(speed <= 1, inside, _BEYOND * rim)
    table = np.rint(255 * colours).astype(np.uint8).reshape(-1, 3)
    return np.concatenate([table, np.array([UNKNOWN_RGB], np.uint8)])


def _rim_colours(angle: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The wheel's colours [..., 3] in 0 to 1 at angles [...] in rad, x towards y."""
    place = angle / (2 * np.pi) % 1.0 * sum(_STEPS)
    stops = np.concatenate([[0], np.cumsum(_STEPS)])
    hues = np.array([*_HUES, _HUES[0]]) / 255
    return np.stack([np.interp(place, stops, hues[:, c]) for c in range(3)], axis=-1)
