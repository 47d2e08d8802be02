"""Camera calibration and the per-pixel table of bearings.

Camera frame: z forward, x right, y down (REP-103 optical frame). Pixel centres are at integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import CalibrationError

# Name of the model -> the numbers of coefficients that it may have. ROS calls the same fisheye
# model "equidistant" (ROS 1, kalibr) and "fisheye" (Humble's image_geometry).
DISTORTION_MODELS = {"plumb_bob": (0, 4, 5), "equidistant": (0, 4)}
# The "model" of a camera whose undistortion is a table, one entry a pixel.
RECTIFY_MAP = "rectify_map"
_MODEL_ALIASES = {"": "plumb_bob", "none": "plumb_bob", "radtan": "plumb_bob"}
_MODEL_ALIASES |= {"fisheye": "equidistant"}

# A pixel whose bearing, projected again, misses the pixel by more than this has no bearing: the
# distortion polynomial folds over there.
_ROUND_TRIP_TOLERANCE_PX = 0.1
# A rectification map is inverted by so many steps at most, until they are this small.
_MAP_STEPS = 30
_MAP_STEP_PX = 1e-6


@dataclass(frozen=True)
class Camera:
    """Intrinsic calibration of one event camera.

    Attributes:
        width, height: sensor size in pixels.
        K: [3, 3] intrinsic matrix in pixels, float64.
        distortion_model: "plumb_bob" (d = k1 k2 p1 p2 k3) or "equidistant" (d = k1 k2 k3 k4); with
            a rectify_map "rectify_map".
        d: distortion coefficients, float64; empty or zeros for an ideal pinhole.
        rectify_map: [height, width, 2] where every pixel lies (x, y) in an undistorted, perhaps
            turned image with the matrix K, float64; NaN: nowhere. It stands for model and d, and
            the camera frame is the one of that image. None: there is no such table.

    Raises:
        CalibrationError: sizes, coefficients or numbers that make no camera.
    """

    width: int
    height: int
    K: npt.NDArray[np.float64]
    distortion_model: str = "plumb_bob"
    d: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    rectify_map: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        model = _MODEL_ALIASES.get(self.distortion_model, self.distortion_model)
        object.__setattr__(self, "distortion_model", model)
        try:
            K = np.asarray(self.K, dtype=np.float64).reshape(3, 3)
            d = np.asarray(self.d, dtype=np.float64).ravel()
        except (TypeError, ValueError) as error:
            raise CalibrationError(
                f"calibration: K and d must be 9 numbers and a list of numbers ({error})"
            ) from None
        object.__setattr__(self, "K", K)
        object.__setattr__(self, "d", d)
        if self.rectify_map is not None:
            object.__setattr__(self, "distortion_model", RECTIFY_MAP)
            object.__setattr__(self, "rectify_map", np.asarray(self.rectify_map, np.float64))
        _check_camera(self)

    @staticmethod
    def from_camera_info(info: Any) -> Camera:
        """Camera of a sensor_msgs/CameraInfo, or of a mapping with its fields.

        Takes ROS 2's lower-case `k`, `d` and ROS 1's `K`, `D`; binning and regions of interest
        other than the whole sensor are refused, since events carry full-sensor coordinates.
        A mapping may hold a `rectify_map`; then K is the left part of its `p` [3, 4], the camera
        matrix of the rectified image.
        """

        def get(*names: str) -> Any:
            for name in names:
                if isinstance(info, Mapping):
                    if name in info:
                        return info[name]
                elif hasattr(info, name):
                    return getattr(info, name)
            raise CalibrationError(
                f"calibration: no field {names[0]!r} found; expected the fields of "
                "sensor_msgs/CameraInfo: width, height, distortion_model, d, k"
            )

        try:
            width, height = int(get("width")), int(get("height"))
        except (TypeError, ValueError, OverflowError) as error:
            raise CalibrationError(f"calibration: width and height: {error}") from None
        _check_whole_sensor(info, width, height)
        if isinstance(info, Mapping) and (table := info.get("rectify_map")) is not None:
            K = np.asarray(get("p", "P"), np.float64).reshape(3, 4)[:, :3]
            return Camera(width, height, K, rectify_map=table)
        return Camera(width, height, get("k", "K"), str(get("distortion_model")), get("d", "D"))

    @staticmethod
    def from_yaml(path: str | Path) -> Camera:
        """Camera of a camera_info YAML file as camera_calibration and camera_info_manager write it.

        Raises:
            CalibrationError: the file cannot be read or lacks a field.
        """
        data = load_yaml(path)
        names = ("image_width", "image_height", "camera_matrix", "distortion_coefficients")
        missing = [n for n in names if not isinstance(data, Mapping) or n not in data]
        if missing:
            raise CalibrationError(
                f"{path}: lacks {', '.join(missing)}; expected a ROS camera_info YAML "
                "with image_width, image_height, camera_matrix.data, distortion_model and "
                "distortion_coefficients.data"
            )

        def matrix(name: str) -> Sequence[float]:
            value = data[name]
            return value.get("data", []) if isinstance(value, Mapping) else value

        try:
            return Camera.from_camera_info(
                {
                    "width": data["image_width"],
                    "height": data["image_height"],
                    "distortion_model": data.get("distortion_model", "plumb_bob"),
                    "k": matrix("camera_matrix"),
                    "d": matrix("distortion_coefficients"),
                }
            )
        except CalibrationError as error:
            raise CalibrationError(f"{path}: {error}") from None

    @staticmethod
    def from_calib_txt(path: str | Path, size: tuple[int, int] | None = None) -> Camera:
        """Camera of the event camera dataset's calib.txt: fx fy cx cy k1 k2 p1 p2 k3.

        Args:
            path: the file; a second line may give the sensor's width and height.
            size: width and height for a file without that line.

        Raises:
            CalibrationError: the file cannot be read, or nobody gives the size.
        """
        numbers, own_size = read_calib_txt(path)
        if own_size is None and size is not None:
            _check_principal_point(path, numbers, size)
        size = own_size or size
        if size is None:
            raise CalibrationError(
                f"{path}: no sensor size; write width and height in a second line, such as 240 180"
            )
        fx, fy, cx, cy, *d = numbers
        K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        return Camera(*size, K, "plumb_bob", np.array(d))

    def to_yaml(self, path: str | Path) -> None:
        """Writes a camera_info YAML that `from_yaml` and ROS's camera_info_manager read.

        Raises:
            CalibrationError: the camera is a table, which such a file cannot hold.
        """
        import yaml

        if self.rectify_map is not None:
            raise CalibrationError(
                f"{path}: a rectification map cannot be written as camera_info; expected a camera "
                f"with one of {', '.join(DISTORTION_MODELS)}"
            )
        k, d = self.K.ravel().tolist(), self.d.tolist()
        content = {
            "image_width": self.width,
            "image_height": self.height,
            "camera_name": "event_camera",
            "camera_matrix": {"rows": 3, "cols": 3, "data": k},
            "distortion_model": self.distortion_model,
            "distortion_coefficients": {"rows": 1, "cols": len(d), "data": d},
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(yaml.safe_dump(content, sort_keys=False))

    @cached_property
    def bearings(self) -> npt.NDArray[np.float32]:
        """[height, width, 3] unit vector through every pixel's centre, camera frame; read-only.

        NaN where the distortion model cannot be inverted.
        """
        if self.rectify_map is not None:
            table = self._straight(self.rectify_map)
            table = (table / np.linalg.norm(table, axis=-1, keepdims=True)).astype(np.float32)
            table.setflags(write=False)
            return table
        import cv2

        cols, rows = np.meshgrid(np.arange(self.width), np.arange(self.height))
        pixels = np.stack([cols, rows], axis=-1).reshape(-1, 1, 2).astype(np.float64)
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-12)
        if self.distortion_model == "equidistant":
            bearings = _equidistant_bearings(pixels[:, 0], self.K, self.d)
        else:
            # By the inverse of K and not by OpenCV, which takes no notice of K's skew.
            normalised = (pixels - self.K[:2, 2]) @ np.linalg.inv(self.K[:2, :2]).T
            xy = cv2.undistortPoints(normalised, np.eye(3), self.d, None, None, None, criteria)
            bearings = np.concatenate([xy[:, 0], np.ones((len(xy), 1))], axis=1)
            bearings /= np.linalg.norm(bearings, axis=1, keepdims=True)
            miss = np.linalg.norm(self.project(bearings) - pixels[:, 0], axis=1)
            bearings[~(miss < _ROUND_TRIP_TOLERANCE_PX)] = np.nan
        table = bearings.reshape(self.height, self.width, 3).astype(np.float32)
        table.setflags(write=False)
        return table

    def project(self, bearings: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """[..., 3] bearings in front of the camera -> [..., 2] pixels (x, y), with distortion.

        With a rectify_map NaN outside the sensor, since nothing is known there.
        """
        b = np.asarray(bearings, dtype=np.float64)
        if self.rectify_map is not None:
            undistorted = b[..., :2] / b[..., 2:] @ self.K[:2, :2].T + self.K[:2, 2]
            return _inverse(self.rectify_map, undistorted)
        if self.distortion_model == "equidistant":
            radius = np.linalg.norm(b[..., :2], axis=-1)
            angle = np.arctan2(radius, b[..., 2])
            with np.errstate(invalid="ignore", divide="ignore"):
                scale = np.where(radius > 0, _equidistant_radius(angle, self.d) / radius, 1.0)
            xy = b[..., :2] * scale[..., None]
        else:
            xy = b[..., :2] / b[..., 2:]
            k1, k2, p1, p2, k3 = np.pad(self.d, (0, 5 - len(self.d)))
            x, y = xy[..., 0], xy[..., 1]
            r2 = x * x + y * y
            radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
            xy = np.stack(
                [
                    x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
                    y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
                ],
                axis=-1,
            )
        return xy @ self.K[:2, :2].T + self.K[:2, 2]

    @cached_property
    def undistorted_pixels(self) -> npt.NDArray[np.float64]:
        """[height, width, 2] where every pixel lies (x, y) in the undistorted image, the one that a
        camera with the same K and no lens would see; NaN where it sees no such direction."""
        if self.rectify_map is not None:
            return self.rectify_map
        b = self.bearings.astype(np.float64)
        ahead = np.where(b[..., 2:] > 0, b[..., 2:], np.nan)
        return b[..., :2] / ahead @ self.K[:2, :2].T + self.K[:2, 2]

    def undistort(self, pixels: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """[..., 2] pixels (x, y), also between the sensor's, to those of the undistorted image.

        Between four pixels it is interpolated; NaN outside the sensor.
        """
        return interpolate(self.undistorted_pixels, pixels)

    def distort(self, pixels: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """[..., 2] pixels (x, y) of the undistorted image to the sensor's own, see `project`."""
        return self.project(self._straight(pixels))

    def _straight(self, pixels: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """[..., 2] undistorted pixels -> [..., 3] K^-1 (x, y, 1)."""
        ones = np.ones((*pixels.shape[:-1], 1))
        return np.concatenate([pixels, ones], axis=-1) @ np.linalg.inv(self.K).T


def interpolate(
    table: npt.NDArray[np.floating], pixels: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """A table [H, W, C] bilinearly between its pixels: [..., 2] (x, y) -> [..., C].

    NaN outside the table, and where any of the four entries is.
    """
    height, width = table.shape[:2]
    last = np.array([width - 1, height - 1], np.float64)
    inside = np.all((pixels >= 0) & (pixels <= last), axis=-1)
    p = np.where(inside[..., None], pixels, 0.0)
    corner = np.minimum(p.astype(np.int64), np.maximum(last.astype(np.int64) - 1, 0))
    fx, fy = np.moveaxis(p - corner, -1, 0)[..., None]
    x, y = np.moveaxis(corner, -1, 0)
    right, below = np.minimum(x + 1, width - 1), np.minimum(y + 1, height - 1)
    above_row = table[y, x] * (1 - fx) + table[y, right] * fx
    below_row = table[below, x] * (1 - fx) + table[below, right] * fx
    values = above_row * (1 - fy) + below_row * fy
    values[~inside] = np.nan
    return values


def _inverse(
    table: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Where an interpolated map [H, W, 2] takes these values [..., 2]; NaN where nowhere.

    By p <- p + J^-1 (target - map(p)) with the map's mean slope J: lenses bend it only a little.
    """
    height, width = table.shape[:2]
    last = np.array([width - 1, height - 1], np.float64)
    slopes = [np.nanmean(np.diff(table, axis=axis), axis=(0, 1)) for axis in (1, 0)]
    inverse = np.linalg.inv(np.stack(slopes))  # of the transpose of J, for rows of pixels
    p = np.clip(targets, 0, last)
    for _ in range(_MAP_STEPS):
        step = (targets - interpolate(table, p)) @ inverse
        p = np.clip(p + step, 0, last)
        if not np.any(np.abs(step) > _MAP_STEP_PX):
            break
    miss = np.linalg.norm(targets - interpolate(table, p), axis=-1)
    return np.where((miss < _ROUND_TRIP_TOLERANCE_PX)[..., None], p, np.nan)


def load_yaml(path: str | Path) -> Any:
    """The content of a YAML file.

    Raises:
        CalibrationError: it cannot be read.
    """
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CalibrationError(f"{path}: cannot be read as YAML: {reason}") from None


def _check_principal_point(
    path: str | Path, numbers: Sequence[float], size: tuple[int, int]
) -> None:
    """A file without a size may be of another sensor; then its principal point is far off."""
    for centre, side in zip(numbers[2:4], size, strict=True):
        if not 0.25 < centre / side < 0.75:
            raise CalibrationError(
                f"{path}: the principal point ({numbers[2]:g}, {numbers[3]:g}) is far from the "
                f"middle of the {size[0]}x{size[1]} sensor; expected the calibration of this "
                "camera, or its size in a second line"
            )


def read_calib_txt(path: str | Path) -> tuple[list[float], tuple[int, int] | None]:
    """The numbers fx fy cx cy k1 k2 p1 p2 k3 of a calib.txt, and its width and height if given.

    Raises:
        CalibrationError: the file cannot be read or holds something else.
    """
    expected = "expected a line fx fy cx cy k1 k2 p1 p2 k3 and perhaps a line W H"
    try:
        lines = [line.split() for line in Path(path).read_text().splitlines() if line.split()]
        numbers = [float(word) for word in lines[0]]
        size = [int(word) for word in lines[1]] if len(lines) > 1 else None
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, IndexError) as error:
        raise CalibrationError(f"{path}: {error}; {expected}") from None
    if len(numbers) != 9 or (size is not None and (len(size) != 2 or min(size) < 1)):
        raise CalibrationError(f"{path}: {len(numbers)} numbers, size {size}; {expected}")
    return numbers, (size[0], size[1]) if size else None


def _check_whole_sensor(info: Any, width: int, height: int) -> None:
    """Refuses binning and regions of interest, in a CameraInfo or a mapping that has the fields."""

    def get(holder: Any, name: str) -> Any:
        if isinstance(holder, Mapping):
            return holder.get(name, 0)
        return getattr(holder, name, 0)

    binning = (get(info, "binning_x"), get(info, "binning_y"))
    if any(factor not in (0, 1) for factor in binning):
        raise CalibrationError(
            f"calibration: binning {binning[0]}x{binning[1]}; expected none, since events carry "
            "full-sensor coordinates"
        )
    roi = tuple(get(get(info, "roi"), n) for n in ("x_offset", "y_offset", "width", "height"))
    if roi not in ((0, 0, 0, 0), (0, 0, width, height)):
        raise CalibrationError(
            f"calibration: region of interest x {roi[0]}, y {roi[1]}, {roi[2]}x{roi[3]}; expected "
            "the whole sensor, since events carry full-sensor coordinates"
        )


def _check_camera(camera: Camera) -> None:
    if camera.width <= 0 or camera.height <= 0:
        raise CalibrationError(
            f"calibration: sensor size {camera.width}x{camera.height}; expected positive pixels"
        )
    allowed = DISTORTION_MODELS.get(camera.distortion_model)
    if camera.rectify_map is not None:
        _check_map(camera.rectify_map, camera.width, camera.height)
        allowed = (0,)
    if allowed is None:
        raise CalibrationError(
            f"calibration: distortion model {camera.distortion_model!r}; expected one of "
            f"{', '.join(DISTORTION_MODELS)}"
        )
    if len(camera.d) not in allowed:
        raise CalibrationError(
            f"calibration: {len(camera.d)} coefficients for {camera.distortion_model}; "
            f"expected {' or '.join(map(str, allowed))}"
        )
    if not (np.isfinite(camera.K).all() and np.isfinite(camera.d).all()):
        raise CalibrationError("calibration: K or d holds NaN or infinity; calibrate the camera")
    if camera.K[0, 0] <= 0 or camera.K[1, 1] <= 0:
        raise CalibrationError(
            f"calibration: focal lengths {camera.K[0, 0]:g}, {camera.K[1, 1]:g} px; expected "
            "positive numbers (all zero means that the camera was never calibrated)"
        )
    if not np.allclose(camera.K[2], [0, 0, 1]) or camera.K[1, 0] != 0:
        raise CalibrationError(
            "calibration: K is no intrinsic matrix; expected rows fx s cx / 0 fy cy / 0 0 1"
        )


def _check_map(table: npt.NDArray[np.float64], width: int, height: int) -> None:
    if table.shape != (height, width, 2):
        raise CalibrationError(
            f"calibration: the rectification map is {list(table.shape)}; expected "
            f"[{height}, {width}, 2], one pixel (x, y) for each of the sensor's"
        )
    if not np.isfinite(table).any():
        raise CalibrationError("calibration: the rectification map holds no finite number")


def _equidistant_radius(
    angle: npt.NDArray[np.float64], d: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Distorted radius of an incidence angle (Kannala-Brandt, as kalibr and OpenCV's fisheye)."""
    k1, k2, k3, k4 = np.pad(d, (0, 4 - len(d)))
    a2 = angle * angle
    return angle * (1 + a2 * (k1 + a2 * (k2 + a2 * (k3 + a2 * k4))))


def _equidistant_bearings(
    pixels: npt.NDArray[np.float64], K: npt.NDArray[np.float64], d: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """[N, 2] pixels -> [N, 3] unit bearings, by Newton's method on the radius.

    OpenCV's fisheye.undistortPoints gives x/z, which a field of view over 180 degrees has not.
    """
    xy = (pixels - K[:2, 2]) @ np.linalg.inv(K[:2, :2]).T
    radius = np.linalg.norm(xy, axis=1)
    k1, k2, k3, k4 = np.pad(d, (0, 4 - len(d)))
    angle = radius.copy()
    for _ in range(20):
        a2 = angle * angle
        slope = 1 + a2 * (3 * k1 + a2 * (5 * k2 + a2 * (7 * k3 + a2 * 9 * k4)))
        with np.errstate(divide="ignore", invalid="ignore"):
            angle = np.clip(angle - (_equidistant_radius(angle, d) - radius) / slope, 0, np.pi)
    focal = np.sqrt(K[0, 0] * K[1, 1])
    solved = np.abs(_equidistant_radius(angle, d) - radius) * focal < _ROUND_TRIP_TOLERANCE_PX
    with np.errstate(divide="ignore", invalid="ignore"):
        direction = np.where(radius[:, None] > 0, xy / radius[:, None], 0.0)
    bearings = np.concatenate([direction * np.sin(angle)[:, None], np.cos(angle)[:, None]], axis=1)
    bearings[~solved] = np.nan
    return bearings
