"""The event sensor: pixels that follow the log intensity and fire at contrast thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import ConfigError
from event_binning_grad.events.types import Events
from event_binning_grad.geometry.camera import Camera
from event_binning_grad.numba_threads import parallel_section
from event_binning_grad.simulate.kernels import advance_rows, advance_rows_of_layers
from event_binning_grad.simulate.layers import DEPTH_SCENES, LayeredScene, make_layers
from event_binning_grad.simulate.motion import Motion, Trajectory, integrate_orientation
from event_binning_grad.simulate.scene import SCENES, Scene, make_scene

CHUNK_S = 0.05  # span of one yielded block of events
SPAN_S = 0.005  # the step length follows the speed once a span
STEP_PX = 0.5  # the largest displacement of a step

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Progress = Callable[[float], None]  # called with the seconds simulated so far

# Event columns before sorting: t_s, x, y, p.
Columns = tuple[Float64, NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint8]]

# The sensor's parameters and what is allowed for each, both ends included.
SENSOR_LIMITS = {
    "contrast_threshold": (0.01, 10.0),  # float32 levels resolve far less, but not nothing
    "threshold_mismatch": (0.0, 0.5),
    "refractory_s": (0.0, 1.0),
    "noise_hz": (0.0, 1e4),
    "noise_share": (0.0, 0.9),
    "hot_pixels": (0, 10_000),
    "hot_pixel_hz": (0.0, 1e5),
}


def check_sensor(**values: float) -> None:
    for name, value in values.items():
        low, high = SENSOR_LIMITS[name]
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value}; expected {low:g} to {high:g}")


def simulate_camera(
    camera: Camera,
    motion: Motion,
    duration_s: float,
    *,
    scene: str | Scene | LayeredScene = "texture",
    contrast_threshold: float = 0.3,
    threshold_mismatch: float = 0.03,
    refractory_s: float = 1e-4,
    noise_hz: float = 1.0,
    noise_share: float = 0.0,
    hot_pixels: int = 0,
    hot_pixel_hz: float = 200.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Events]:
    """Yield the events of duration_s seconds in blocks of 50 ms, sorted by time.

    scene: "texture" or "shapes" are infinitely far away, where only the rotation shows; "plane",
    "layers" and "objects" are 1 m away, facing the camera, and make_layers makes others.

    contrast_threshold is a step of log intensity; each pixel's ON and OFF thresholds differ from it
    by threshold_mismatch (standard deviation, relative). For refractory_s after an event a pixel is
    blind and then takes the level that it finds as its new reference. noise_hz background events
    a second and pixel come at random pixels, times and polarities, and as many more as make
    noise_share of each block's events (hot pixels aside); hot_pixels random pixels fire
    hot_pixel_hz more. Times are whole microseconds in [0, duration_s), as ns.
    """
    if not (math.isfinite(duration_s) and duration_s > 0.0):
        raise ConfigError(f"duration_s is {duration_s}; expected a finite number above 0")
    check_sensor(
        contrast_threshold=contrast_threshold,
        threshold_mismatch=threshold_mismatch,
        refractory_s=refractory_s,
        noise_hz=noise_hz,
        noise_share=noise_share,
        hot_pixels=hot_pixels,
        hot_pixel_hz=hot_pixel_hz,
    )
    step_rad = STEP_PX * pixel_angle(camera)
    if isinstance(scene, str):
        scene = paint_scene(scene, camera, seed)
    path = None
    if isinstance(scene, LayeredScene):
        path = Trajectory(motion, duration_s)
        scene.check_approach(path)
    pixels = _Pixels(camera, scene, contrast_threshold, threshold_mismatch, refractory_s, seed)
    noise = _Noise(camera, noise_hz, noise_share, hot_pixels, hot_pixel_hz, seed)
    return _stream(pixels, noise, motion, path, duration_s, step_rad, progress)


def simulate_rotation(
    camera: Camera,
    motion: Motion,
    duration_s: float,
    *,
    scene: str | Scene = "texture",
    **options: Any,
) -> Iterator[Events]:
    """simulate_camera, with its options, in a scene that is infinitely far away."""
    return simulate_camera(camera, motion, duration_s, scene=scene, **options)


def paint_scene(name: str, camera: Camera, seed: int = 0, **depth: Any) -> Scene | LayeredScene:
    """The scene called name for a camera; depth: keyword arguments of make_layers.

    Raises ConfigError where the name is unknown.
    """
    if name in DEPTH_SCENES:
        return make_layers(name, pixel_rad=typical_pixel_angle(camera), seed=seed, **depth)
    if name in SCENES:
        return make_scene(name, pixel_rad=pixel_angle(camera), seed=seed)
    known = ", ".join((*SCENES, *DEPTH_SCENES))
    raise ConfigError(f"scene {name!r} is unknown; expected one of {known}")


def _stream(
    pixels: _Pixels,
    noise: _Noise,
    motion: Motion,
    path: Trajectory | None,
    duration_s: float,
    step_rad: float,
    progress: Progress | None,
) -> Iterator[Events]:
    orientation = np.eye(3)
    chunks = math.ceil(duration_s / CHUNK_S - 1e-9)
    for chunk in range(chunks):
        start_s, stop_s = chunk * CHUNK_S, min((chunk + 1) * CHUNK_S, duration_s)
        t_s = _step_times(partial(pixels.speed, motion, path), start_s, stop_s, step_rad)
        if path is None:
            orientations = integrate_orientation(motion, t_s, orientation)
            orientation, positions = orientations[-1], np.zeros((len(t_s), 3))
        else:
            orientations, positions = path.poses(t_s)
        signal = pixels.advance(t_s, orientations, positions)
        background = noise.draw(start_s, stop_s, len(signal[0]))
        yield _sorted_events(pixels.shape, start_s, stop_s, [signal, background])
        if progress is not None:
            progress(stop_s)


class _Pixels:
    """What every pixel remembers: level, reference, thresholds and the end of its blindness."""

    def __init__(
        self,
        camera: Camera,
        scene: Scene | LayeredScene,
        contrast_threshold: float,
        threshold_mismatch: float,
        refractory_s: float,
        seed: int,
    ) -> None:
        rng = np.random.default_rng([seed, 3])
        self.shape = (camera.height, camera.width)
        self.scene = scene
        self.refractory_s = refractory_s
        # A pixel that the lens model cannot reach stays blind.
        seeing = np.isfinite(camera.bearings[..., 0])
        forward = np.array([0.0, 0.0, 1.0], np.float32)
        self.bearings = np.where(seeing[..., None], camera.bearings, forward)
        spread = np.exp(threshold_mismatch * rng.standard_normal((2, *self.shape)))
        thresholds = (contrast_threshold * spread).astype(np.float32)
        self.on, self.off = thresholds[0], thresholds[1]
        if isinstance(scene, LayeredScene):
            self.level = scene.log_intensity(self.bearings, np.eye(3), np.zeros(3))
        else:
            self.level = scene.log_intensity(self.bearings)
        # The last event of each pixel lies at some random point of the past.
        self.reference = self.level + rng.uniform(-self.on, self.off).astype(np.float32)
        self.blind_until_s = np.where(seeing, -1.0, np.inf)
        self.capacity = 1024  # events a row and chunk

    def speed(self, motion: Motion, path: Trajectory | None, t_s: Float64) -> Float64:
        """How fast [M], at most, directions move at times t_s [M], in rad/s."""
        speed = np.linalg.norm(motion.angular_velocity(t_s), axis=1)
        if isinstance(self.scene, LayeredScene) and path is not None:
            nearest_m = self.scene.nearest_m(path.poses(t_s)[1])
            fastest = np.linalg.norm(motion.linear_velocity(t_s), axis=1) + self.scene.fastest_m_s
            speed += fastest / nearest_m
        return speed

    def advance(self, t_s: Float64, orientations: Float64, positions: Float64) -> Columns:
        """Follow the log intensity through the step times t_s [S+1]; the events on the way."""
        if isinstance(self.scene, LayeredScene):
            maps = self.scene.maps(orientations[1:], positions[1:], t_s[1:])
            follow = partial(advance_rows_of_layers, *self.scene.tables, self.bearings, *maps)
        else:
            turns = orientations[1:].astype(np.float32)
            follow = partial(advance_rows, self.scene.faces, self.bearings, turns)
        height = self.shape[0]
        while True:
            capacity = self.capacity
            t = np.empty((height, capacity))
            x = np.empty((height, capacity), np.uint16)
            p = np.empty((height, capacity), np.uint8)
            counts = np.zeros(height, np.int64)
            level, reference = self.level.copy(), self.reference.copy()
            blind_until_s = self.blind_until_s.copy()
            with parallel_section():
                follow(
                    t_s, self.on, self.off, self.refractory_s,
                    level, reference, blind_until_s, t, x, p, counts,
                )  # fmt: skip
            if counts.max() <= capacity:
                break
            self.capacity = int(1.5 * counts.max())  # the count is right, the storage was short
        self.level, self.reference, self.blind_until_s = level, reference, blind_until_s
        used = np.arange(capacity) < counts[:, None]
        y = np.repeat(np.arange(height, dtype=np.uint16), counts)
        return t[used], x[used], y, p[used]


class _Noise:
    """Background activity and hot pixels: Poisson in time, with polarities at random."""

    def __init__(
        self,
        camera: Camera,
        noise_hz: float,
        noise_share: float,
        hot_pixels: int,
        hot_pixel_hz: float,
        seed: int,
    ) -> None:
        self._rng = np.random.default_rng([seed, 4])
        self._width, self._pixels = camera.width, camera.width * camera.height
        if hot_pixels > self._pixels:
            raise ConfigError(f"hot_pixels is {hot_pixels}, the sensor has {self._pixels} pixels")
        self._noise_hz, self._hot_pixel_hz = noise_hz, hot_pixel_hz
        self._noise_per_event = noise_share / (1.0 - noise_share)
        self._hot = self._rng.choice(self._pixels, hot_pixels, replace=False)

    def draw(self, start_s: float, stop_s: float, events: int) -> Columns:
        """The noise of a span in which the scene gave that many events."""
        rng, span = self._rng, stop_s - start_s
        expected = self._noise_hz * self._pixels * span + self._noise_per_event * events
        anywhere = rng.integers(0, self._pixels, rng.poisson(expected))
        hot = np.repeat(self._hot, rng.poisson(self._hot_pixel_hz * span, len(self._hot)))
        pixel = np.concatenate([anywhere, hot])
        t = rng.uniform(start_s, stop_s, len(pixel))
        p = rng.integers(0, 2, len(pixel), dtype=np.uint8)
        y, x = np.divmod(pixel, self._width)
        return t, x.astype(np.uint16), y.astype(np.uint16), p


def _sorted_events(
    shape: tuple[int, int], start_s: float, stop_s: float, sources: Iterable[Columns]
) -> Events:
    t_s, x, y, p = (np.concatenate(column) for column in zip(*sources, strict=True))
    # Truncated to microseconds like a sensor's clock; the chunk's end belongs to the next chunk.
    first_us, end_us = round(start_s * 1e6), round(stop_s * 1e6)
    t_us = np.clip(np.floor(t_s * 1e6).astype(np.int64), first_us, max(first_us, end_us - 1))
    order = np.argsort(t_us, kind="stable")
    height, width = shape
    return Events(
        t=t_us[order] * 1000, x=x[order], y=y[order], p=p[order], width=width, height=height
    )


def _step_times(
    speed_at: Callable[[Float64], Float64], start_s: float, stop_s: float, step_rad: float
) -> Float64:
    """Times from start_s to stop_s such that no direction moves by more than step_rad a step."""
    spans = max(1, math.ceil((stop_s - start_s) / SPAN_S - 1e-9))
    border = np.linspace(start_s, stop_s, spans + 1)
    length = (stop_s - start_s) / spans
    probe = np.linspace(start_s, stop_s, 4 * spans + 1)
    speed = speed_at(probe)
    times = [np.array([start_s])]
    for n in range(spans):
        fastest = speed[4 * n : 4 * n + 5].max()
        steps = max(1, math.ceil(fastest * length / step_rad))
        times.append(np.linspace(border[n], border[n + 1], steps + 1)[1:])
    return np.concatenate(times)


def pixel_angle(camera: Camera) -> float:
    """The smallest angle between neighbouring pixels in rad."""
    return float(np.nanmin(_gaps(camera)))


def typical_pixel_angle(camera: Camera) -> float:
    """The median angle between neighbouring pixels in rad."""
    return float(np.nanmedian(_gaps(camera)))


def _gaps(camera: Camera) -> Float64:
    b = np.asarray(camera.bearings, np.float64)
    gaps = [np.linalg.norm(np.diff(b, axis=axis), axis=2).ravel() for axis in (0, 1)]
    return np.concatenate(gaps)
