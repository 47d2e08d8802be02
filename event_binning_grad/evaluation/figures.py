"""Figures for reports: None where there is nothing to take them of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np


def finite(values: Iterable[float]) -> list[float]:
    """Those that are."""
    return [value for value in values if math.isfinite(value)]


def mean(values: Iterable[float]) -> float | None:
    """Of those that are finite."""
    some = finite(values)
    return float(np.mean(some)) if some else None


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Of all values."""
    return float(np.percentile(values, percent)) if len(values) else None
