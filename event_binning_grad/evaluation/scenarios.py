"""Simulated scenarios for egomotion: packets of one motion each, and streams of changing motion."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import RecordingError
from event_binning_grad.events.ground_truth import GroundTruth, read_poses
from event_binning_grad.events.types import NS_PER_S, Events
from event_binning_grad.geometry import Camera
from event_binning_grad.simulate import (
    DEPTH_SCENES,
    ConstantMotion,
    Motion,
    Scene,
    Simulation,
    SimulationConfig,
    TrackMotion,
    make_scene,
    simulate_rotation,
)

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# Simulated pixels start at a random point between two events; they forget it in this time.
SETTLE_NS = 20_000_000


@dataclass(frozen=True, eq=False)
class Packet:
    """A window of events under constant angular velocity.

    Attributes:
        camera: what the events were seen by.
        events: in the order of time.
        angular_velocity: [3] rad/s, the truth.
        start: [3] rad/s, where a solver begins; None: at rest.
    """

    camera: Camera
    events: Events
    angular_velocity: Float64
    start: Float64 | None = None


@dataclass(frozen=True, eq=False)
class Stream:
    """Events of a moving camera, with the truth over time.

    Attributes:
        name: of the scenario.
        camera: what the events were seen by.
        events: in the order of time.
        truth: samples of the true velocities.
        depth: the true depth image, float32 [H, W] m along the optical axis, at a time in ns; None
            where the scene is infinitely far away.
    """

    name: str
    camera: Camera
    events: Events
    truth: GroundTruth
    depth: Callable[[int], Float32] | None = None

    @property
    def duration_s(self) -> float:
        """From the first to the last event."""
        return float(self.events.t[-1] - self.events.t[0]) / NS_PER_S


def ideal_camera(width: int, height: int) -> Camera:
    """A pinhole without distortion: every pixel is its own undistorted position."""
    return replace(SimulationConfig(width=width, height=height).camera(), d=np.zeros(5))


def distorted_camera(width: int, height: int) -> Camera:
    """The simulation's usual camera."""
    return SimulationConfig(width=width, height=height).camera()


def scene_for(camera: Camera, name: str, seed: int) -> Scene:
    """The scene called name, painted for a camera."""
    return make_scene(name, pixel_rad=1 / float(camera.K[0, 0]), seed=seed)


def random_rotation(rng: np.random.Generator, rate_rad_s: float) -> Float64:
    """[3] an angular velocity of this length, its direction uniform on the sphere."""
    direction = rng.standard_normal(3)
    return rate_rad_s * direction / np.linalg.norm(direction)


def constant_rotation(
    camera: Camera,
    angular_velocity: Float64,
    scene: Scene,
    *,
    events: int | None = None,
    duration_s: float | None = None,
    seed: int = 0,
    contrast_threshold: float = 0.3,
) -> Events:
    """Noise-free events under constant rotation, the first 20 ms left out.

    As many as `events` (fewer if the camera sees nothing for 20 s), or those of `duration_s`.
    """
    limit_s = SETTLE_NS / NS_PER_S + (20.0 if duration_s is None else duration_s)
    motion = ConstantMotion(tuple(angular_velocity))  # type: ignore[arg-type]
    chunks = simulate_rotation(
        camera, motion, limit_s,
        scene=scene, seed=seed, noise_hz=0.0, contrast_threshold=contrast_threshold,
    )  # fmt: skip
    kept, count = [], 0
    for chunk in chunks:
        kept.append(chunk[int(np.searchsorted(chunk.t, SETTLE_NS)) :])
        count += len(kept[-1])
        if events is not None and count >= events:
            break
    return Events.concatenate(kept)[:events]


def with_noise(signal: Events, share: float, seed: int) -> Events:
    """Events of which `share` are noise: uniform over the pixels and the signal's time span."""
    count = round(len(signal) * share / (1 - share))
    if not count:
        return signal
    rng = np.random.default_rng([seed, 17])
    t = rng.integers(signal.t[0], int(signal.t[-1]) + 1, count)
    noise = Events(
        t,
        rng.integers(0, signal.width, count, dtype=np.uint16),
        rng.integers(0, signal.height, count, dtype=np.uint16),
        rng.integers(0, 2, count, dtype=np.uint8),
        signal.width,
        signal.height,
    )
    both = Events.concatenate([signal, noise])
    order = np.argsort(both.t, kind="stable")
    t, x, y, p = (getattr(both, name)[order] for name in "txyp")
    return Events(t, x, y, p, signal.width, signal.height)


def packets(
    camera: Camera,
    rate_rad_s: float,
    sizes: Sequence[int],
    noise_shares: Sequence[float],
    *,
    scenes: Sequence[Scene],
    start_off: float | None = None,
    per_scene: int = 1,
    seed: int = 0,
) -> Iterator[tuple[int, float, Packet]]:
    """Packets of every size and share of noise, from the same simulated turns.

    Args:
        camera: what sees them.
        rate_rad_s: |omega|; directions are random, one a scene.
        sizes: events a packet, noise included.
        noise_shares: shares of noise events.
        scenes: one turn of the camera in each.
        start_off: where solvers begin, relative to |omega| away from the truth in a random
            direction; None: at rest.
        per_scene: packets of a size and share from each turn, one after the other.
        seed: of directions and noise.

    Yields:
        size, share of noise, packet.
    """
    for index, scene in enumerate(scenes):
        rng = np.random.default_rng([seed, index, round(1000 * rate_rad_s)])
        omega = random_rotation(rng, rate_rad_s)
        start = None if start_off is None else omega + random_rotation(rng, start_off * rate_rad_s)
        signal = constant_rotation(
            camera, omega, scene, events=per_scene * max(sizes), seed=seed + index
        )
        for size in sizes:
            for share in noise_shares:
                count = size - round(size * share)
                for k in range(min(per_scene, len(signal) // count)):
                    part = signal[k * count : (k + 1) * count]
                    events = with_noise(part, share, seed + index + k)
                    yield size, share, Packet(camera, events, omega, start)


def hand_stream(
    width: int,
    height: int,
    peak_rad_s: float,
    duration_s: float,
    *,
    contrast_threshold: float = 0.3,
    seed: int = 0,
) -> Stream:
    """Hand-like rotation that reaches peak_rad_s about each axis, noise as in the demo."""
    config = SimulationConfig(
        duration_s=duration_s,
        width=width,
        height=height,
        peak_rad_s=(peak_rad_s, peak_rad_s, peak_rad_s),
        contrast_threshold=contrast_threshold,
        seed=seed,
    )
    return simulated_stream(f"{width}x{height}, peaks {peak_rad_s:g} rad/s", config)


def moving_stream(
    scene: str, width: int, height: int, peak_rad_s: float, peak_m_s: float, duration_s: float,
    *, seed: int = 0,
) -> Stream:  # fmt: skip
    """Hand-like rotation and translation before a slanted plane, or a plane and one before it.

    The scene is 1 m away; layers are half as far. It comes with the true depth.
    """
    config = SimulationConfig(
        duration_s=duration_s,
        width=width,
        height=height,
        scene=scene,
        normal=(0.4, 0.2, 1.0) if scene == "plane" else (0.0, 0.0, 1.0),
        peak_rad_s=(peak_rad_s, peak_rad_s, peak_rad_s),
        peak_m_s=(peak_m_s, peak_m_s, peak_m_s),
        frequency_hz=(0.7, 2.0),  # slower swings of this speed would reach the scene
        seed=seed,
    )
    return simulated_stream(f"{scene}, {width}x{height}", config)


def simulated_stream(name: str, config: SimulationConfig, motion: Motion | None = None) -> Stream:
    """What the configured camera sees under its motion, or another one."""
    simulation = Simulation(config, motion)
    events = Events.concatenate(list(simulation.events()))
    depth = None
    if config.scene in DEPTH_SCENES:
        depth = partial(_depth_image, simulation)
    return Stream(name, simulation.camera, events, simulation.ground_truth(), depth)


def _depth_image(simulation: Simulation, stamp_ns: int) -> Float32:
    return simulation.depth_image(stamp_ns / NS_PER_S)


def hand_held_stream(poses: Path, duration_s: float) -> Stream:
    """The rotation of a measured hand-held track, in a sparse scene of polygons, at 240x180.

    Args:
        poses: groundtruth.txt of the event camera dataset.
        duration_s: from the track's beginning; shortened to what the track covers.

    Raises:
        RecordingError: the track cannot be read.
    """
    track = read_poses(poses)
    t_s = (track.t_ns - track.t_ns[0]) / NS_PER_S
    duration_s = min(duration_s, math.floor(t_s[-1] * 100) / 100)
    if not duration_s > 0.1:
        raise RecordingError(f"{poses} covers {t_s[-1]:.3f} s; expected at least 0.1 s of poses")
    config = SimulationConfig(duration_s=duration_s, width=240, height=180, scene="shapes")
    motion = TrackMotion(t_s, track.angular_velocity)
    return simulated_stream("hand-held track, shapes", config, motion)
