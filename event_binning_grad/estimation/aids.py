"""What other sensors tell the estimator: the scene's depth, and the camera's rotation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from event_binning_grad.estimation.depths import Depth
from event_binning_grad.estimation.egomotion import EgomotionEstimate
from event_binning_grad.estimation.imu import GyroFit, GyroTrack
from event_binning_grad.events.types import NS_PER_MS
from event_binning_grad.geometry.depth import DepthImages, Plane, PlaneTrack, RangeTrack
from event_binning_grad.geometry.stamped import SET_BACK_NS

# A depth image or a range farther from a window's reference time than this says nothing of it.
TOLERANCE_NS = 200 * NS_PER_MS


@dataclass(frozen=True)
class AidsConfig:
    """Which aids are used.

    Attributes:
        depth: "none", "constant", "plane", "image" or "range".
        depth_m: metres along the optical axis, for "constant".
        depth_plane: nx, ny, nz, d of the plane n.P = d in the camera's frame at the start.
        gyro: whether the rotation is asked for.
        carry_ns: how long a plane is taken to move on after the last trusted motion.
    """

    depth: str = "none"
    depth_m: float = 0.0
    depth_plane: tuple[float, ...] = ()
    gyro: bool = False
    carry_ns: int = 100 * NS_PER_MS


class Aids:
    """Readings of depth, range and inertial sensors by time, and a plane that is followed.

    Times are those of the clock that the readings' stamps are on.

    Raises:
        ConfigError: a plane that is none.
    """

    def __init__(self, config: AidsConfig) -> None:
        self._config = config
        self._plane = Plane.from_numbers(*config.depth_plane) if config.depth == "plane" else None
        self._track: PlaneTrack | None = None
        self._images: DepthImages | None = None
        self.ranges = RangeTrack()
        self.gyro = GyroTrack()

    def set_size(self, width: int, height: int) -> None:
        """Says how many pixels the depth images are for; those of another size are forgotten."""
        self._images = DepthImages(width, height)

    def push_depth(self, stamp_ns: int, depth: npt.NDArray[np.generic]) -> bool:
        """Takes a depth image [H, W], float32 m or uint16 mm; whether it is held.

        Raises:
            EventBinningError: a size or type that does not fit.
        """
        return self._images is not None and self._images.push(stamp_ns, depth)

    def depth_at(self, stamp_ns: int) -> Depth | None:
        """The scene's depth at a time; None where it is not known."""
        config = self._config
        if config.depth == "constant":
            return config.depth_m
        if config.depth == "range":
            return self.ranges.at(stamp_ns, TOLERANCE_NS)
        if config.depth == "image":
            return self._images and self._images.nearest(stamp_ns, TOLERANCE_NS)
        if self._plane is not None:
            if self._track is None or stamp_ns < self._track.stamp_ns - SET_BACK_NS:
                self._track = PlaneTrack(self._plane, stamp_ns, config.carry_ns)
            return self._track.at(stamp_ns)
        return None

    def rotation_over(self, stamp_ns: int, start_ns: int, end_ns: int) -> GyroFit | None:
        """What the gyroscope says of a window; None where it is not asked, or says nothing."""
        return self.gyro.fit(stamp_ns, start_ns, end_ns) if self._config.gyro else None

    def follow(self, estimate: EgomotionEstimate, stamp_ns: int) -> None:
        """Moves the plane along with a trusted motion."""
        if self._track is not None and estimate.status.ok:
            self._track.update(stamp_ns, estimate.angular_velocity, estimate.linear_velocity)
