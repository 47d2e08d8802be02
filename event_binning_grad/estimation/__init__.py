"""Motion estimation by maximising the contrast of the image of warped events."""

from event_binning_grad.estimation.egomotion import EgomotionEstimate, RotationEstimator, Status

__all__ = ["EgomotionEstimate", "RotationEstimator", "Status"]
