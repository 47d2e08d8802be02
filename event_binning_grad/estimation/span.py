"""How long the next window may be."""

from __future__ import annotations

import math

from event_binning_grad.estimation.egomotion import EgomotionEstimate
from event_binning_grad.estimation.trust import Status

# A window whose parts disagree more than the first is followed by one shorter by the first factor;
# while they disagree less than the second, windows grow by the second factor.
_MISFIT, _FIT = 1.5, 1.0
_SHORTER, _LONGER = 0.8, 1.1
_FOREVER_NS = 10**12


class SpanControl:
    """Bounds windows by displacement, and by how long the motion model fits.

    Args:
        window_px: how far the events may move over a window, px; 0 for no bound.
        adaptive: make windows shorter while the motion changes faster than the model can follow.
    """

    def __init__(self, window_px: float, adaptive: bool) -> None:
        self._window_px = window_px
        self._adaptive = adaptive
        self._fitting_ns = math.inf

    def reset(self) -> None:
        """Forgets the motion."""
        self._fitting_ns = math.inf

    def next_ns(self, estimate: EgomotionEstimate) -> int | None:
        """How long the window after this one may span, ns; None for no bound."""
        # An uncertain motion is often one that changes too fast for its window: a longer one would
        # only fit worse.
        if estimate.status not in (Status.OK, Status.UNCERTAIN):
            return None
        limit_ns = math.inf
        if self._window_px:
            limit_ns = 1e9 * self._window_px / max(estimate.speed_px_s, 1e-3)
        if self._adaptive:
            if estimate.disagreement > _MISFIT:
                self._fitting_ns = _SHORTER * (estimate.window_end_ns - estimate.window_start_ns)
            elif estimate.disagreement < _FIT:
                self._fitting_ns *= _LONGER
            limit_ns = min(limit_ns, self._fitting_ns)
        return None if limit_ns > _FOREVER_NS else max(1, round(limit_ns))
