"""Where the scene is: what is known of the depth of events.

Camera frame: z forward, x right, y down. A camera that moves with the angular velocity omega and
the linear velocity v, both in its own frame, sees the points move by X' = -omega x X - v.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.geometry.stamped import Stamped

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_DEPTH_IMAGES = 32  # a second of a usual depth camera
_RANGES = 2000
# Below this squared angle (rad^2) (a - sin a) / a^3 loses digits to cancellation, and its series is
# exact to float64.
_SERIES_BELOW = 0.01
_M_PER_MM = 1e-3


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane normal . P = distance_m of points P in a camera's frame.

    normal: [3] unit vector; distance_m: m, not negative: the normal points away from the camera.
    """

    normal: Float64
    distance_m: float

    @classmethod
    def from_numbers(cls, *numbers: float) -> Plane:
        """The plane nx X + ny Y + nz Z = d (m) of nx, ny, nz, d; the normal may have any length.

        Raises:
            ConfigError: not four finite numbers, or no plane that the camera can see.
        """
        found = f"plane {' '.join(f'{n:g}' for n in numbers)}"
        if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
            raise ConfigError(f"{found}: expected four finite numbers nx ny nz d with n . P = d")
        nx, ny, nz, d = numbers
        length = math.sqrt(nx * nx + ny * ny + nz * nz)
        if length < 1e-9:
            raise ConfigError(f"{found}: expected a normal nx ny nz that is not zero")
        if d == 0.0:
            raise ConfigError(f"{found} runs through the camera: expected a distance d, in m")
        normal, distance_m = np.array([nx, ny, nz]) / length, d / length
        if nx == ny == 0.0 and nz * d < 0.0:
            raise ConfigError(f"{found} is behind the camera: expected one in front of it (+z)")
        return _oriented(normal, distance_m)

    def moved(self, R_new_from_old: Float64, t_new_from_old: Float64) -> Plane:
        """The same plane in another frame, where the point P is at R P + t ([3, 3], [3] m)."""
        normal = R_new_from_old @ self.normal
        return _oriented(normal, self.distance_m + float(normal @ t_new_from_old))

    def inverse_depth(self, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.floating]:
        """1/Z in 1/m of the plane's points seen at normalised image coordinates.

        Args:
            x, y: [...] X/Z and Y/Z; both float32 give a float32 result.

        Returns:
            [...]; NaN where the plane is not seen: behind the camera, or through its centre.
        """
        x, y = np.asarray(x), np.asarray(y)
        with np.errstate(divide="ignore", invalid="ignore"):
            nx, ny, nz = (float(n) for n in self.normal / self.distance_m)
            inverse = nx * x + ny * y + nz
        return np.where((inverse > 0) & (inverse < np.inf), inverse, np.nan).astype(inverse.dtype)


def _oriented(normal: Float64, distance_m: float) -> Plane:
    return Plane(-normal, -distance_m) if distance_m < 0 else Plane(normal, distance_m)


def rigid_step(
    angular_velocity: Float64, linear_velocity: Float64, duration_s: float
) -> tuple[Float64, Float64]:
    """R_new_from_old [3, 3] and t_new_from_old [3] (m) of a camera's constant motion.

    The exact solution of X' = -omega x X - v: X(T) = Exp(-omega T) X(0) - T J(-omega T) v, with
    Rodrigues' formula and the left Jacobian J of SO(3) (Barfoot, State Estimation for Robotics,
    section 7.1).

    Args:
        angular_velocity: [3] rad/s; linear_velocity: [3] m/s; both in the camera's own frame.
        duration_s: s; a negative one goes back in time.
    """
    turn = -duration_s * np.asarray(angular_velocity, np.float64)
    cross = np.array([[0.0, -turn[2], turn[1]], [turn[2], 0.0, -turn[0]], [-turn[1], turn[0], 0.0]])
    square, identity = cross @ cross, np.eye(3)
    angle2 = float(turn @ turn)
    angle = math.sqrt(angle2)
    sine = float(np.sinc(angle / np.pi))  # sin a / a
    versine = 0.5 * float(np.sinc(angle / (2 * np.pi))) ** 2  # (1 - cos a) / a^2
    if angle2 < _SERIES_BELOW:
        third = (1 - angle2 / 20 * (1 - angle2 / 42 * (1 - angle2 / 72))) / 6
    else:
        third = (1 - sine) / angle2
    rotation = identity + sine * cross + versine * square
    jacobian = identity + versine * cross + third * square
    return rotation, -duration_s * jacobian @ np.asarray(linear_velocity, np.float64)


class PlaneTrack:
    """A plane that is given at the start, and followed by the camera's estimated motion.

    Between two motions given the camera moves with their mean; after the last one it goes on, but
    not for longer than carry_ns: a camera that sees no events stands still. Errors of the motion
    add up: the distance drifts like the position that the motion leads to.

    Args:
        plane, stamp_ns: the plane in the camera's frame at that time.
        carry_ns: how long a motion is taken to go on.

    Attributes:
        plane, stamp_ns: the plane in the camera's frame at the time of the last motion.
    """

    def __init__(self, plane: Plane, stamp_ns: int, carry_ns: int = 100_000_000) -> None:
        self.plane, self.stamp_ns = plane, stamp_ns
        self._carry_ns = carry_ns
        self._motion: tuple[Float64, Float64] | None = None

    def update(
        self, stamp_ns: int, angular_velocity: npt.ArrayLike, linear_velocity: npt.ArrayLike
    ) -> bool:
        """Follows the camera to a time, at which it moves like this ([3] rad/s, [3] m/s).

        Returns whether the motion was taken: one that is not finite, or at a time before the last
        one, is not.
        """
        motion = (
            np.array(angular_velocity, np.float64),
            np.array(linear_velocity, np.float64),
        )
        if stamp_ns < self.stamp_ns or not np.isfinite(motion).all():
            return False
        before = self._motion or motion
        mean = ((before[0] + motion[0]) / 2, (before[1] + motion[1]) / 2)
        self.plane, self.stamp_ns = self._carried(stamp_ns, *mean), stamp_ns
        self._motion = motion
        return True

    def at(self, stamp_ns: int) -> Plane:
        """The plane in the camera's frame at a time, by the last motion given; before one, as is.

        Args:
            stamp_ns: a time near the last one; it may lie before it.
        """
        return self.plane if self._motion is None else self._carried(stamp_ns, *self._motion)

    def _carried(self, stamp_ns: int, angular_velocity: Float64, linear_velocity: Float64) -> Plane:
        duration_ns = stamp_ns - self.stamp_ns
        duration_s = max(-self._carry_ns, min(duration_ns, self._carry_ns)) * 1e-9
        return self.plane.moved(*rigid_step(angular_velocity, linear_velocity, duration_s))


def depth_to_metres(depth: npt.NDArray[np.generic]) -> Float32:
    """float32 [H, W] metres of a depth image, NaN where unknown.

    Args:
        depth: [H, W] uint16 in mm (16UC1; 0 is unknown), or floating in m (32FC1; what is not
            positive and finite is unknown).

    Raises:
        EventBinningError: another type or shape.
    """
    known_type = depth.dtype == np.uint16 or np.issubdtype(depth.dtype, np.floating)
    if depth.ndim != 2 or not known_type:
        raise EventBinningError(
            f"depth image is {depth.dtype} {list(depth.shape)}, expected uint16 (mm) or float32 "
            "(m) [H, W]"
        )
    metres = depth.astype(np.float32)
    if depth.dtype == np.uint16:
        metres *= np.float32(_M_PER_MM)
    metres[~((metres > 0) & (metres < np.inf))] = np.nan
    return metres


def resize_by_integer(depth: Float32, width: int, height: int) -> Float32:
    """[height, width] of a depth image whose size is a whole multiple or part of it, by nearest.

    Interpolation would invent depths at the edges of objects. A smaller image takes each block's
    middle pixel.

    Raises:
        EventBinningError: the sizes are not whole multiples, with one factor for both axes.
    """
    rows, columns = depth.shape
    if (columns, rows) == (width, height):
        return depth
    if columns and (width, height) == (columns * (width // columns), rows * (width // columns)):
        factor = width // columns
        return depth.repeat(factor, axis=0).repeat(factor, axis=1)
    factor = columns // width
    if factor and (columns, rows) == (width * factor, height * factor):
        return depth[factor // 2 :: factor, factor // 2 :: factor]
    raise EventBinningError(
        f"depth image of {columns}x{rows} pixels, but the event camera has {width}x{height}: "
        "register it to the event camera, in its size or a whole multiple or part of it"
    )


@dataclass(frozen=True, eq=False)
class DepthImage:
    """A depth image and its time: metres [H, W] float32, NaN unknown; stamp_ns."""

    metres: Float32
    stamp_ns: int


class DepthImages:
    """The latest depth images of one camera's pixels.

    Args:
        width, height: size of the event camera in pixels; the images must see what it sees, pixel
            by pixel, its distortion with it.
        capacity: images held at most.

    Attributes:
        images: the images with their stamps, and how many came late or twice.
    """

    def __init__(self, width: int, height: int, capacity: int = _DEPTH_IMAGES) -> None:
        self._size = (width, height)
        self.images: Stamped[Float32] = Stamped(capacity)

    def push(self, stamp_ns: int, depth: npt.NDArray[np.generic]) -> bool:
        """Takes a copy of an image as `depth_to_metres` does; returns whether it is held.

        Raises:
            EventBinningError: a type that is no depth, or a size that does not fit the camera.
        """
        image = np.ascontiguousarray(resize_by_integer(depth_to_metres(depth), *self._size))
        image.flags.writeable = False
        return self.images.put(int(stamp_ns), image)

    def nearest(self, stamp_ns: int, tolerance_ns: int) -> DepthImage | None:
        """The image [height, width] nearest to a time, read-only.

        None when none is within tolerance_ns; of two equally near the earlier one.
        """
        stamps = self.images.stamps_ns
        near = [k for k in self.images.neighbours(stamp_ns) if k is not None]
        best = min(near, key=lambda k: abs(stamps[k] - stamp_ns), default=None)
        if best is None or abs(stamps[best] - stamp_ns) > tolerance_ns:
            return None
        return DepthImage(self.images.values[best], stamps[best])


class RangeTrack:
    """The latest readings of a range sensor that looks along the optical axis.

    Attributes:
        readings: the ranges in m with their stamps, and how many came late or twice.
        refused: how many were no distance: NaN, infinite, zero or negative.
    """

    def __init__(self, capacity: int = _RANGES) -> None:
        self.readings: Stamped[float] = Stamped(capacity)
        self.refused = 0

    def push(self, stamp_ns: int, range_m: float) -> bool:
        """Takes a reading in m; returns whether it is held."""
        if not 0.0 < range_m < math.inf:
            self.refused += 1
            return False
        return self.readings.put(int(stamp_ns), float(range_m))

    def at(self, stamp_ns: int, tolerance_ns: int) -> float | None:
        """The range in m at a time: interpolated between the readings before and after it.

        Where only one of them is within tolerance_ns it is taken as it is; None where none is.
        """
        stamps, values = self.readings.stamps_ns, self.readings.values
        near = [
            k
            for k in self.readings.neighbours(stamp_ns)
            if k is not None and abs(stamps[k] - stamp_ns) <= tolerance_ns
        ]
        if not near:
            return None
        first, last = near[0], near[-1]
        if first == last:
            return values[first]
        share = (stamp_ns - stamps[first]) / (stamps[last] - stamps[first])
        return values[first] + share * (values[last] - values[first])
