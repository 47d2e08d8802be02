"""Event binning with the unbiased gradient; needs nothing else of this package."""

from event_binning_grad.binning.kernels import (
    Kernel,
    bspline,
    gaussian,
    kernel,
    keys,
    lanczos,
    register_kernel,
)
from event_binning_grad.binning.operator import bin_events
from event_binning_grad.binning.representations import (
    average_timestamp_image,
    image_of_warped_events,
    polarity_image,
    voxel_grid,
)

__all__ = [
    "Kernel",
    "average_timestamp_image",
    "bin_events",
    "bspline",
    "gaussian",
    "image_of_warped_events",
    "kernel",
    "keys",
    "lanczos",
    "polarity_image",
    "register_kernel",
    "voxel_grid",
]
