"""Motion estimation by maximising the contrast of the image of warped events."""

from event_binning_grad.estimation.depths import Depth
from event_binning_grad.estimation.egomotion import (
    EgomotionConfig,
    EgomotionEstimate,
    EgomotionEstimator,
)
from event_binning_grad.estimation.motion import MotionModel
from event_binning_grad.estimation.trust import Status

__all__ = [
    "Depth",
    "EgomotionConfig",
    "EgomotionEstimate",
    "EgomotionEstimator",
    "MotionModel",
    "Status",
]
