"""Pixels that fire whatever the scene does: learnt over time, kept in a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from event_binning_grad.errors import ConfigError
from event_binning_grad.events.types import NS_PER_S

Mask = npt.NDArray[np.bool_]

# A pixel is judged so often: hot, if it fired more than _FACTOR times as often as the 24 pixels
# around it on average, and more than _LEAST times.
JUDGED_EACH_NS = NS_PER_S // 2
_FACTOR = 6
_LEAST = 8
_REACH = 2
# It is masked from MASK_FROM such judgements on (those of the contrary subtract one), and again
# free below _FREE_BELOW. A moving edge lets a pixel fire for one or two.
MASK_FROM = 6
_FREE_BELOW = 2
_MOST = 10

SUFFIXES = (".npz", ".png", ".yaml")


class HotPixels:
    """The hot pixels of a sensor, judged by how often each pixel fires against those around it.

    Args:
        width, height: size of the sensor.
        mask: bool [height, width], the ones to begin with; None for none.

    Attributes:
        mask: bool [height, width], True where a pixel is hot.
        counts: int32 [height, width], events since the last judge(), masked ones too; whoever
            sees the events counts them here.
    """

    def __init__(self, width: int, height: int, mask: Mask | None = None) -> None:
        self.mask: Mask = np.zeros((height, width), np.bool_) if mask is None else mask.copy()
        self.counts = np.zeros((height, width), np.int32)
        self._score = np.where(self.mask, MASK_FROM, 0).astype(np.int8)

    def judge(self) -> bool:
        """Judges the pixels by their counts, and counts anew; returns whether the mask changed."""
        changed = _judge(self.counts, self._score, self.mask)
        self.counts[:] = 0
        return bool(changed)


@njit(nogil=True, cache=True)
def _judge(counts, score, mask):
    height, width = counts.shape
    changed = False
    for row in range(height):
        for column in range(width):
            own = counts[row, column]
            if own <= _LEAST and score[row, column] == 0:
                continue
            around, number = 0, 0
            for r in range(max(0, row - _REACH), min(height, row + _REACH + 1)):
                for c in range(max(0, column - _REACH), min(width, column + _REACH + 1)):
                    around += counts[r, c]
                    number += 1
            hot = own > _LEAST and own * (number - 1) > _FACTOR * (around - own)
            new = min(score[row, column] + 1, _MOST) if hot else max(score[row, column] - 1, 0)
            score[row, column] = new
            masked = new >= MASK_FROM or (mask[row, column] and new >= _FREE_BELOW)
            changed |= masked != mask[row, column]
            mask[row, column] = masked
    return changed


def check_mask_file(path: Path) -> None:
    """Raises ConfigError for a name that no mask can be saved under."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: expected a hot-pixel file ending in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist: make it first")


def save_mask(path: Path, mask: Mask) -> None:
    """Writes a mask to .npz (width, height, x, y), .png (255 where hot) or .yaml (width, height,
    hot_pixels: [[x, y], ...]). Whoever reads the file sees the old one or the new one, whole.

    Raises:
        ConfigError: another ending, or a folder that does not exist.
        OSError: it cannot be written.
    """
    check_mask_file(path)
    height, width = mask.shape
    y, x = np.nonzero(mask)
    handle, name = tempfile.mkstemp(path.suffix, ".hot_pixels_", path.parent)
    os.close(handle)
    try:
        if path.suffix == ".npz":
            places = x.astype(np.uint16), y.astype(np.uint16)
            np.savez(name, width=width, height=height, x=places[0], y=places[1])
        elif path.suffix == ".png":
            import cv2

            cv2.imwrite(name, mask.astype(np.uint8) * 255)
        else:
            pixels = "".join(f"- [{c}, {r}]\n" for c, r in zip(x, y, strict=True)) or "[]\n"
            text = f"width: {width}\nheight: {height}\nhot_pixels:"
            Path(name).write_text(text + (" " if not len(x) else "\n") + pixels)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_mask(path: Path) -> Mask:
    """Reads what save_mask wrote, or a picture made by hand (not 0: hot); bool [height, width].

    Raises:
        ConfigError: no such file, or another content.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: expected a hot-pixel file ending in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such hot-pixel file: hot_pixels 'learn' writes one")
    if path.suffix == ".png":
        import cv2

        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise ConfigError(f"{path}: not a picture, expected a PNG that is not 0 where hot")
        return picture > 0
    try:
        content = _numbers(path)
        width, height = int(content["width"]), int(content["height"])
        x, y = np.asarray(content["x"], np.int64), np.asarray(content["y"], np.int64)
    except Exception as error:
        raise ConfigError(
            f"{path}: not a hot-pixel file, expected width, height and the pixels: {error!r}"
        ) from None
    sizes = 0 < width <= 1 << 14 and 0 < height <= 1 << 14
    if not (sizes and x.shape == y.shape and x.ndim == 1):
        raise ConfigError(f"{path}: a sensor of {width}x{height} and {x.shape} pixels is none")
    if np.any((x < 0) | (x >= width) | (y < 0) | (y >= height)):
        raise ConfigError(f"{path}: hot pixels outside the sensor of {width}x{height} pixels")
    mask = np.zeros((height, width), np.bool_)
    mask[y, x] = True
    return mask


def _numbers(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: file[name] for name in ("width", "height", "x", "y")}
    import yaml

    content = yaml.safe_load(path.read_text())
    pixels = np.asarray(content["hot_pixels"] or np.empty((0, 2)), np.int64)
    return content | {"x": pixels[:, 0], "y": pixels[:, 1]}
