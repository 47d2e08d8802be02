"""Camera model, undistortion to bearings, rotations."""

from event_binning_grad.geometry.camera import Camera

__all__ = ["Camera"]
