"""Simulated recordings: configuration, ground truth, and the bag that holds both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from event_binning_grad.errors import ConfigError
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.recordings import GroundTruth, write_bag
from event_binning_grad.events.types import NS_PER_S, Events
from event_binning_grad.geometry.camera import Camera
from event_binning_grad.simulate.motion import Motion, hand_motion
from event_binning_grad.simulate.scene import SCENES
from event_binning_grad.simulate.sensor import (
    SENSOR_LIMITS,
    Progress,
    check_sensor,
    simulate_rotation,
)


@dataclass(frozen=True)
class SimulationConfig:
    """A recording to be made; the defaults are the demo's: about 1 Mev/s with 10 % noise."""

    duration_s: float = 10.0
    width: int = 346  # px
    height: int = 260  # px
    focal_ratio: float = 0.7  # focal length over width
    distortion: tuple[float, ...] = (-0.2, 0.06, 5e-4, -3e-4, 0.0)  # plumb_bob k1 k2 p1 p2 k3
    scene: str = "texture"  # or "shapes"
    peak_rad_s: tuple[float, float, float] = (5.0, 5.0, 5.0)  # largest |ω| about x, y, z
    contrast_threshold: float = 0.3  # log intensity
    threshold_mismatch: float = 0.03  # standard deviation between pixels, relative
    refractory_s: float = 1e-4
    noise_hz: float = 1.1  # background events a second and pixel
    hot_pixels: int = 0
    hot_pixel_hz: float = 200.0
    seed: int = 0
    packet_ms: float = 2.0  # time a packet spans
    ground_truth_hz: float = 500.0
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
        if self.scene not in SCENES:
            raise ConfigError(
                f"scene {self.scene!r} is unknown; expected one of {', '.join(SCENES)}"
            )
        if len(self.peak_rad_s) != 3 or not all(0.0 <= w < 100.0 for w in self.peak_rad_s):
            raise ConfigError(f"peak_rad_s is {self.peak_rad_s}; expected three rates in 0 to 100")
        if self.seed < 0 or self.start_s < 0:
            raise ConfigError("seed and start_s must not be negative")
        check_sensor(**self.sensor())

    def sensor(self) -> dict[str, Any]:
        """The keyword arguments of simulate_rotation that describe the sensor."""
        return {name: getattr(self, name) for name in SENSOR_LIMITS}

    def camera(self) -> Camera:
        """The camera of the recording, its principal point near the middle of the sensor."""
        focal = self.focal_ratio * self.width
        k = [[focal, 0.0, 0.5 * self.width], [0.0, focal, 0.5 * self.height], [0.0, 0.0, 1.0]]
        return Camera(self.width, self.height, np.array(k), "plumb_bob", np.array(self.distortion))

    def motion(self) -> Motion:
        """The hand-like rotation of the recording."""
        return hand_motion(self.duration_s, self.peak_rad_s, seed=self.seed)


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise ConfigError(f"{name} is {value}; expected a finite number above 0")


def sample_ground_truth(
    motion: Motion, duration_s: float, *, rate_hz: float = 500.0, start_ns: int = 0
) -> GroundTruth:
    """The true ω every 1/rate_hz seconds over [0, duration_s], stamped from start_ns on."""
    t_s = np.arange(math.floor(duration_s * rate_hz) + 1) / rate_hz
    t_ns = start_ns + np.rint(t_s * 1e9).astype(np.int64)
    return GroundTruth(
        t_ns=t_ns, angular_velocity=motion.angular_velocity(t_s), source="simulation"
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
    3.0 encoding, the camera's calibration and the true twist, all on the robot's clock. It appears
    only when it is complete. Raises RecordingError where path exists already.
    """
    config = config or SimulationConfig()
    motion = motion or config.motion()
    camera, start_ns = config.camera(), config.start_s * NS_PER_S
    truth = sample_ground_truth(
        motion, config.duration_s, rate_hz=config.ground_truth_hz, start_ns=start_ns
    )
    chunks = simulate_rotation(
        camera, motion, config.duration_s,
        scene=config.scene, seed=config.seed, progress=progress, **config.sensor(),
    )  # fmt: skip
    events = 0

    def on_robots_clock() -> Iterator[Events]:
        nonlocal events
        for chunk in chunks:
            events += len(chunk)
            yield replace(chunk, t=chunk.t + start_ns)

    packets = packetize(on_robots_clock(), config.packet_ms)
    written = write_bag(path, packets, _camera_info(camera), truth)
    return SimulationSummary(Path(path), config.duration_s, written, events)


def _camera_info(camera: Camera) -> dict[str, Any]:
    return {
        "width": camera.width,
        "height": camera.height,
        "distortion_model": camera.distortion_model,
        "k": camera.K.ravel().tolist(),
        "d": camera.d.tolist(),
    }
