"""Objectives: how sharp an image of events is. All are to be maximised."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Gu et al., "The Spatio-Temporal Poisson Point Process: A Simple Model for the Alignment of Event
# Camera Data", ICCV 2021: a gamma prior of this shape and rate on the events of a bin.
_GAMMA_SHAPE, _GAMMA_RATE = 0.1, 1.59


def variance(image: Tensor) -> Tensor:
    """The variance over the bins of the image."""
    return image.var(correction=0)


def mean_square(image: Tensor) -> Tensor:
    """The mean over the bins of the square."""
    return (image**2).mean()


def gradient_magnitude(image: Tensor) -> Tensor:
    """The mean square of the image's slope [H, W], all directions together, by Sobel's filter."""
    smooth_rows = (image[:-2] + 2 * image[1:-1] + image[2:]) / 4
    smooth_columns = (image[:, :-2] + 2 * image[:, 1:-1] + image[:, 2:]) / 4
    along_x = (smooth_rows[:, 2:] - smooth_rows[:, :-2]) / 2
    along_y = (smooth_columns[2:] - smooth_columns[:-2]) / 2
    return (along_x**2 + along_y**2).mean()


def negative_binomial(image: Tensor) -> Tensor:
    """The mean over the bins of log NB(h | r, p) with r = 0.1, p = 1.59 / 2.59, for h >= 0:

    log NB(h | r, p) = lgamma(h + r) - lgamma(r) - lgamma(h + 1) + r log p + h log(1 - p)

    It holds between whole numbers, too. Source of r and p: Gu et al., ICCV 2021.
    """
    r, log_p, log_q = _GAMMA_SHAPE, -math.log1p(1 / _GAMMA_RATE), -math.log1p(_GAMMA_RATE)
    ratio = torch.lgamma(image + r) - torch.lgamma(image + 1)
    return (ratio + image * log_q).mean() + r * log_p - math.lgamma(r)


OBJECTIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "variance": variance,
    "mean_square": mean_square,
    "gradient_magnitude": gradient_magnitude,
    "likelihood": negative_binomial,
}
