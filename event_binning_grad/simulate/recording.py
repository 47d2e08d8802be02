"""Simulated recordings: configuration, ground truth, and the bag that holds both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import ConfigError
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.recordings import GroundTruth, write_bag
from event_binning_grad.events.types import NS_PER_S, Events
from event_binning_grad.geometry.camera import Camera
from event_binning_grad.geometry.motion_field import motion_field, undistorted_bearings
from event_binning_grad.simulate.layers import DEPTH_SCENES, LayeredScene, check_layers
from event_binning_grad.simulate.motion import Motion, Trajectory, hand_motion
from event_binning_grad.simulate.scene import SCENES, Scene
from event_binning_grad.simulate.sensor import (
    SENSOR_LIMITS,
    Progress,
    check_sensor,
    paint_scene,
    simulate_camera,
)

VIEW_DEG = 80.0  # further off its normal a plane is hardly seen

_Value = TypeVar("_Value")
_Readings: TypeAlias = Iterator[tuple[int, _Value]]


@dataclass(frozen=True)
class SimulationConfig:
    """A recording to be made; the defaults are the demo's: about 1 Mev/s with 10 % noise."""

    duration_s: float = 10.0
    width: int = 346  # px
    height: int = 260  # px
    focal_ratio: float = 0.7  # focal length over width
    distortion: tuple[float, ...] = (-0.2, 0.06, 5e-4, -3e-4, 0.0)  # plumb_bob k1 k2 p1 p2 k3
    scene: str = "texture"  # or "shapes", both infinitely far away; "plane", "layers" or "objects"
    peak_rad_s: tuple[float, float, float] = (5.0, 5.0, 5.0)  # largest |ω| about x, y, z
    peak_m_s: tuple[float, float, float] = (0.0, 0.0, 0.0)  # largest |v| along x, y, z
    frequency_hz: tuple[float, float] = (0.3, 1.5)  # of the motion's swings, lowest and highest
    # Of the scenes with depth (see make_layers): the plane's distance along the optical axis and
    # its normal in the camera's frame, both at the start; and the layers in front of it, which in
    # the scene "objects" move by themselves. None: what make_layers takes for the scene.
    distance_m: float = 1.0
    normal: tuple[float, float, float] = (0.0, 0.0, 1.0)
    front_shares: tuple[float, ...] | None = None  # their distances over distance_m
    front_coverage: float | None = None  # share of the view that each of them covers
    object_m_s: float = 0.5  # the objects' speed of their own
    paint: str = "texture"  # of the planes, or "shapes"
    contrast_threshold: float = 0.3  # log intensity
    threshold_mismatch: float = 0.03  # standard deviation between pixels, relative
    refractory_s: float = 1e-4
    noise_hz: float = 1.1  # background events a second and pixel
    noise_share: float = 0.0  # background events besides, over all events but hot pixels'
    hot_pixels: int = 0
    hot_pixel_hz: float = 200.0
    seed: int = 0
    packet_ms: float = 2.0  # time a packet spans
    ground_truth_hz: float = 500.0
    # Other sensors beside the events in a written recording; 0: none.
    depth_hz: float = 0.0  # exact depth images, of scenes with depth
    range_hz: float = 0.0  # exact distances along the optical axis, of scenes with depth
    flow_hz: float = 0.0  # exact flow on undistorted pixels; 8 bytes a pixel
    imu_hz: float = 0.0  # a gyroscope whose axes are the camera's
    imu_noise_rad_s: float = 0.0  # its white noise, standard deviation of a sample and axis
    imu_bias_rad_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    # The robot's clock at the start, s since the epoch; with this one the sensor's 24-bit clock
    # wraps in the middle of the recording, as it does every 17 s on a real camera.
    start_s: int = 1_700_000_010

    def __post_init__(self) -> None:
        for name in ("duration_s", "focal_ratio", "packet_ms"):
            _check_positive(name, getattr(self, name))
        if not 20.0 <= self.ground_truth_hz <= 10_000.0:
            raise ConfigError(f"ground_truth_hz is {self.ground_truth_hz}; expected 20 to 10000")
        for name in ("width", "height"):
            if not 2 <= getattr(self, name) <= 2048:  # x and y have 11 bits in EVT 3.0
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 2 to 2048 pixels")
        if self.scene not in (*SCENES, *DEPTH_SCENES):
            known = ", ".join((*SCENES, *DEPTH_SCENES))
            raise ConfigError(f"scene {self.scene!r} is unknown; expected one of {known}")
        if len(self.peak_rad_s) != 3 or not all(0.0 <= w < 100.0 for w in self.peak_rad_s):
            raise ConfigError(f"peak_rad_s is {self.peak_rad_s}; expected three rates in 0 to 100")
        if len(self.peak_m_s) != 3 or not all(0.0 <= v < 100.0 for v in self.peak_m_s):
            raise ConfigError(f"peak_m_s is {self.peak_m_s}; expected three speeds in 0 to 100")
        if any(self.peak_m_s) and self.scene not in DEPTH_SCENES:
            raise ConfigError(
                f"peak_m_s is {self.peak_m_s}, which the infinitely far scene {self.scene!r} does "
                f"not show; expected 0 0 0, or scene {' or '.join(DEPTH_SCENES)}"
            )
        low, high = self.frequency_hz if len(self.frequency_hz) == 2 else (math.nan, math.nan)
        if not 0.01 <= low <= high <= 50.0:
            raise ConfigError(
                f"frequency_hz is {self.frequency_hz}; expected lowest and highest, 0.01 to 50"
            )
        if self.scene in DEPTH_SCENES:
            check_layers(self.scene, **self.depth())
        limits = {"depth_hz": 1e3, "flow_hz": 1e3, "range_hz": 1e4, "imu_hz": 1e4}
        for name, most in limits.items():
            if not 0.0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 to {most:g}")
        if (self.depth_hz or self.range_hz) and self.scene not in DEPTH_SCENES:
            raise ConfigError(
                f"depth_hz and range_hz are {self.depth_hz:g} and {self.range_hz:g}, but the scene "
                f"{self.scene!r} is infinitely far away; expected 0, or scene "
                f"{' or '.join(DEPTH_SCENES)}"
            )
        if not 0.0 <= self.imu_noise_rad_s <= 10.0:
            raise ConfigError(f"imu_noise_rad_s is {self.imu_noise_rad_s}; expected 0 to 10")
        if len(self.imu_bias_rad_s) != 3 or not all(abs(b) <= 10.0 for b in self.imu_bias_rad_s):
            raise ConfigError(
                f"imu_bias_rad_s is {self.imu_bias_rad_s}; expected three rates in -10 to 10"
            )
        if self.seed < 0 or self.start_s < 0:
            raise ConfigError("seed and start_s must not be negative")
        check_sensor(**self.sensor())

    def sensor(self) -> dict[str, Any]:
        """The keyword arguments of simulate_camera that describe the sensor."""
        return {name: getattr(self, name) for name in SENSOR_LIMITS}

    def depth(self) -> dict[str, Any]:
        """The keyword arguments of make_layers that describe a scene with depth; else none."""
        if self.scene not in DEPTH_SCENES:
            return {}
        names = ("distance_m", "normal", "front_shares", "paint", "object_m_s")
        return {name: getattr(self, name) for name in names} | {"coverage": self.front_coverage}

    def camera(self) -> Camera:
        """The camera of the recording, its principal point near the middle of the sensor."""
        focal = self.focal_ratio * self.width
        k = [[focal, 0.0, 0.5 * self.width], [0.0, focal, 0.5 * self.height], [0.0, 0.0, 1.0]]
        return Camera(self.width, self.height, np.array(k), "plumb_bob", np.array(self.distortion))

    def motion(self) -> Motion:
        """The hand-like motion of the recording, turned to what it has in front of it."""
        return hand_motion(
            self.duration_s,
            self.peak_rad_s,
            self.peak_m_s,
            seed=self.seed,
            frequency_hz=self.frequency_hz,
            swing=self.scene in DEPTH_SCENES,
        )

    def paint_scene(self) -> Scene | LayeredScene:
        """The scene of the recording, painted for its camera."""
        return paint_scene(self.scene, self.camera(), self.seed, **self.depth())


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise ConfigError(f"{name} is {value}; expected a finite number above 0")


def sample_ground_truth(
    motion: Motion, duration_s: float, *, rate_hz: float = 500.0, start_ns: int = 0
) -> GroundTruth:
    """The true ω and v every 1/rate_hz seconds over [0, duration_s], stamped from start_ns on."""
    t_s = np.arange(math.floor(duration_s * rate_hz) + 1) / rate_hz
    t_ns = start_ns + np.rint(t_s * 1e9).astype(np.int64)
    return GroundTruth(
        t_ns=t_ns,
        angular_velocity=motion.angular_velocity(t_s),
        linear_velocity=motion.linear_velocity(t_s),
        source="simulation",
    )


class Simulation:
    """A recording to be made, and everything that is true of it at any time of it.

    motion replaces config.motion(). Raises ConfigError where the camera would look past the plane
    of a scene with depth.

    Attributes:
        config, motion, camera: what is simulated.
    """

    def __init__(self, config: SimulationConfig | None = None, motion: Motion | None = None):
        self.config = config or SimulationConfig()
        self.motion = motion or self.config.motion()
        self.camera = self.config.camera()
        if self.config.scene in DEPTH_SCENES:
            self._check_view()

    @cached_property
    def scene(self) -> Scene | LayeredScene:
        """What the camera sees; painted on first use."""
        return self.config.paint_scene()

    @cached_property
    def trajectory(self) -> Trajectory:
        """The camera's poses; the world is its frame at time 0."""
        return Trajectory(self.motion, self.config.duration_s)

    def events(self, progress: Progress | None = None) -> Iterator[Events]:
        """The events, as simulate_camera yields them."""
        return simulate_camera(
            self.camera, self.motion, self.config.duration_s,
            scene=self.scene, seed=self.config.seed, progress=progress, **self.config.sensor(),
        )  # fmt: skip

    def ground_truth(self, start_ns: int = 0) -> GroundTruth:
        """ω and v, config.ground_truth_hz times a second."""
        return sample_ground_truth(
            self.motion,
            self.config.duration_s,
            rate_hz=self.config.ground_truth_hz,
            start_ns=start_ns,
        )

    def depth_image(self, t_s: float) -> NDArray[np.float32]:
        """z-depth [H, W] in m, along the optical axis, of what each pixel's centre sees at t_s.

        The lens' distortion is in the image as it is in the events. NaN: nothing there.
        """
        return self._layers().depth(self.camera.bearings, *self._pose(t_s), t_s)

    def range_m(self, t_s: float) -> float:
        """Distance in m along the optical axis to the nearest layer at t_s; NaN: nothing there."""
        axis = np.array([[[0.0, 0.0, 1.0]]])
        return float(self._layers().depth(axis, *self._pose(t_s), t_s)[0, 0])

    def flow_image(self, t_s: float, *, raw_pixels: bool = False) -> NDArray[np.float32]:
        """Flow [H, W, 2] in px/s (x, y) at t_s of what each pixel's centre sees, exact.

        On the pixels of the same camera without distortion (same size, same K), as flow is
        estimated with a calibration; raw_pixels: on the sensor's own, with the lens' distortion.
        NaN: nothing there.
        """
        omega = self.motion.angular_velocity(np.array([t_s]))[0]
        if not isinstance(self.scene, LayeredScene):
            return motion_field(self.camera, omega, raw_pixels=raw_pixels)
        depth, which = self._seen(t_s, raw_pixels)
        # Against the camera an object moves by the camera's velocity less its own.
        own = [layer.velocity(np.array([t_s]))[0] for layer in self.scene.layers]
        orientation = self._pose(t_s)[0]
        velocity = self.motion.linear_velocity(np.array([t_s])) - np.array(own) @ orientation
        return motion_field(self.camera, omega, velocity[which], depth, raw_pixels=raw_pixels)

    def moving_mask(self, t_s: float, *, raw_pixels: bool = False) -> NDArray[np.bool_]:
        """[H, W]: the pixels that see something that moves by itself at t_s, pixels as above."""
        if not isinstance(self.scene, LayeredScene):
            return np.zeros((self.camera.height, self.camera.width), bool)
        moves = np.array([layer.motion is not None for layer in self.scene.layers] + [False])
        return moves[self._seen(t_s, raw_pixels)[1]]

    def plane(self, t_s: float, layer: int = 0) -> tuple[NDArray[np.float64], float]:
        """normal [3] and distance d in m at t_s: normal . P = d in the camera's frame.

        layer: 0 is the plane itself, or the hindmost of the layers; the ones in front follow.
        """
        return self._layers().plane(*self._pose(t_s), layer)

    def _seen(self, t_s: float, raw_pixels: bool) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Depth [H, W] in m and layer [H, W] of what pixels see, as LayeredScene.seen."""
        bearings = self.camera.bearings if raw_pixels else undistorted_bearings(self.camera)
        return self._layers().seen(bearings, *self._pose(t_s), t_s)

    def _pose(self, t_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        orientations, positions = self.trajectory.poses(np.array([t_s]))
        return orientations[0], positions[0]

    def _layers(self) -> LayeredScene:
        if isinstance(self.scene, LayeredScene):
            return self.scene
        raise ConfigError(
            f"the scene {self.config.scene!r} is infinitely far away and has no depth; expected "
            f"scene {' or '.join(DEPTH_SCENES)}"
        )

    def _check_view(self) -> None:
        normal = check_layers(self.config.scene, **self.config.depth())
        t_s = np.linspace(0.0, self.config.duration_s, math.ceil(200 * self.config.duration_s) + 1)
        ahead = self.trajectory.poses(t_s)[0][:, :, 2] @ normal
        past = np.flatnonzero(ahead < math.cos(math.radians(VIEW_DEG)))
        if len(past):
            raise ConfigError(
                f"the camera looks past the plane after {t_s[past[0]]:.2f} s; expected its optical "
                f"axis within {VIEW_DEG:g} degrees of the plane's normal: choose a lower "
                "peak_rad_s, a higher frequency_hz or a normal nearer to 0 0 1"
            )


@dataclass(frozen=True)
class SimulationSummary:
    """What write_simulation wrote."""

    path: Path
    duration_s: float
    packets: int
    events: int

    @property
    def events_per_second(self) -> float:
        """Mean rate over the recording's own time."""
        return self.events / self.duration_s


def write_simulation(
    path: str | Path,
    config: SimulationConfig | None = None,
    *,
    motion: Motion | None = None,
    progress: Progress | None = None,
) -> SimulationSummary:
    """Simulate config (or the defaults) and write it as the rosbag2 mcap recording `path`.

    motion replaces config.motion(). The recording holds the events as EventPacket messages in EVT
    3.0 encoding, the camera's calibration, the true twist and the other sensors and true flow that
    config asks for (with the flow of objects, which pixels see one), all on the robot's clock. It
    appears only when it is complete. Raises RecordingError where path exists already.
    """
    simulation = Simulation(config, motion)
    config, start_ns = simulation.config, simulation.config.start_s * NS_PER_S
    chunks, events = simulation.events(progress), 0

    def on_robots_clock() -> Iterator[Events]:
        nonlocal events
        for chunk in chunks:
            events += len(chunk)
            yield replace(chunk, t=chunk.t + start_ns)

    def sampled(rate_hz: float, value: Callable[[float], _Value]) -> _Readings[_Value] | None:
        if not rate_hz:
            return None
        t_s = np.arange(math.floor(config.duration_s * rate_hz) + 1) / rate_hz
        return ((start_ns + round(t * 1e9), value(t)) for t in t_s.tolist())

    objects = config.scene == "objects"
    written = write_bag(
        path,
        packetize(on_robots_clock(), config.packet_ms),
        _camera_info(simulation.camera),
        simulation.ground_truth(start_ns),
        depth_images=sampled(config.depth_hz, simulation.depth_image),
        flow=sampled(config.flow_hz, simulation.flow_image),
        moving=sampled(config.flow_hz if objects else 0.0, simulation.moving_mask),
        ranges=sampled(config.range_hz, simulation.range_m),
        imu=sampled(config.imu_hz, _gyroscope(simulation)),
    )
    return SimulationSummary(Path(path), config.duration_s, written, events)


def _gyroscope(simulation: Simulation) -> Callable[[float], NDArray[np.float64]]:
    """What a gyroscope in the camera's axes says at a time, asked in the order of time."""
    config = simulation.config
    rng, bias = np.random.default_rng([config.seed, 8]), np.asarray(config.imu_bias_rad_s)

    def angular_velocity(t_s: float) -> NDArray[np.float64]:
        noise = config.imu_noise_rad_s * rng.standard_normal(3)
        return simulation.motion.angular_velocity(np.array([t_s]))[0] + bias + noise

    return angular_velocity


def _camera_info(camera: Camera) -> dict[str, Any]:
    return {
        "width": camera.width,
        "height": camera.height,
        "distortion_model": camera.distortion_model,
        "k": camera.K.ravel().tolist(),
        "d": camera.d.tolist(),
    }
