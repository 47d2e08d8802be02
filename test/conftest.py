"""What several test files share: recordings on disk, simulated cameras, threads, back ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from event_binning_grad.events.types import Events
from event_binning_grad.geometry import Camera
from event_binning_grad.simulate import ConstantMotion, Motion, Scene, make_scene, simulate_rotation

Simulator = Callable[..., Events]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public sample recordings beside the repository; skips where it is absent."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no sample recordings in {path}")
    return path


@pytest.fixture
def rng() -> torch.Generator:
    """torch's random numbers, the same ones for every test."""
    return torch.Generator().manual_seed(11)


@pytest.fixture(scope="session")
def small_camera() -> Camera:
    """A 240x180 camera with a lens like that of the event camera dataset."""
    focal = 0.7 * 240
    k = np.array([[focal, 0, 120.5], [0, focal, 88.0], [0, 0, 1]])
    return Camera(240, 180, k, "plumb_bob", np.array([-0.2, 0.06, 5e-4, -3e-4, 0.0]))


@pytest.fixture(scope="session")
def scene() -> Scene:
    return make_scene("texture", pixel_rad=1 / (0.7 * 240), seed=1)


@pytest.fixture(scope="session")
def simulated(small_camera: Camera, scene: Scene) -> Simulator:
    """simulated(motion, duration_s=0.1, seed=0, noise_hz=1.0) -> Events of the small camera.

    `motion` is a Motion or a constant angular velocity. The first 20 ms, in which the simulated
    pixels forget how they were started, are left out.
    """
    cache: dict[tuple, Events] = {}

    def simulate(
        motion: Motion | tuple[float, float, float],
        duration_s: float = 0.1,
        seed: int = 0,
        noise_hz: float = 1.0,
    ) -> Events:
        key = (motion if isinstance(motion, tuple) else id(motion), duration_s, seed, noise_hz)
        if key not in cache:
            turning = ConstantMotion(motion) if isinstance(motion, tuple) else motion
            chunks = simulate_rotation(
                small_camera, turning, duration_s + 0.02, scene=scene, seed=seed, noise_hz=noise_hz
            )
            events = Events.concatenate(list(chunks))
            started = events[int(np.searchsorted(events.t, 20_000_000)) :]
            if not isinstance(motion, tuple):
                return started  # an id may come again
            cache[key] = started
        return cache[key]

    return simulate


@pytest.fixture(scope="session")
def turning(simulated: Simulator) -> Events:
    """9000 events of a camera that turns at (1, -2, 3) rad/s."""
    return simulated((1.0, -2.0, 3.0), 0.1)[:9000]


PointEvents = Callable[..., Events]
InverseDepth = Callable[[np.ndarray, np.ndarray], np.ndarray]
Vector = tuple[float, float, float]


@pytest.fixture(scope="session")
def point_events(small_camera: Camera) -> PointEvents:
    """Events of bright points, on the pixels where the small camera sees them; exact truth.

    point_events(omega, alpha, v, inverse_depth, ...) -> Events whose mean time is about start_ns,
    the reference time: there the camera has angular velocity omega (rad/s) and linear velocity v
    (m/s), the points are at inverse_depth(X/Z, Y/Z) in 1/m, and from there its place goes by v t
    and its attitude by Exp(omega t + alpha t^2 / 2). A point is as likely to fire at any time.
    """

    def make(
        omega: Vector = (0.0, 0.0, 0.0),
        alpha: Vector = (0.0, 0.0, 0.0),
        v: Vector = (0.0, 0.0, 0.0),
        inverse_depth: InverseDepth = lambda x, y: 0 * x,
        *,
        events: int = 20_000,
        points: int = 500,
        span_s: float = 0.04,
        noise: float = 0.1,
        start_ns: int = 1_000_000_000,
        seed: int = 0,
    ) -> Events:
        rng = np.random.default_rng(seed)
        rays = np.ones((points, 3))
        rays[:, :2] = rng.uniform((-0.85, -0.65), (0.85, 0.65), (points, 2))
        rho = inverse_depth(rays[:, 0], rays[:, 1])
        which = rng.integers(0, points, events)
        tau = np.sort(rng.uniform(-span_s / 2, span_s / 2, events))[:, None]
        turned = Rotation.from_rotvec(np.array(omega) * tau + np.array(alpha) * tau**2 / 2)
        seen = turned.inv().apply(rays[which] - tau * rho[which, None] * np.array(v))
        pixels = np.rint(small_camera.project(seen)).astype(int)
        size = (small_camera.width, small_camera.height)
        stray = rng.random(events) < noise
        pixels[stray] = rng.integers(0, size, (stray.sum(), 2))
        inside = ((pixels >= 0) & (pixels < size)).all(axis=1) & (seen[:, 2] > 0)
        t = start_ns + np.rint(tau[inside, 0] * 1e9).astype(np.int64)
        x, y = pixels[inside].T.astype(np.uint16)
        p = rng.integers(0, 2, len(t), dtype=np.uint8)
        return Events(t, x, y, p, *size)

    return make


@contextmanager
def _threads(library: Any, count: int) -> Iterator[None]:
    before = library.get_num_threads()
    library.set_num_threads(count)
    try:
        yield
    finally:
        library.set_num_threads(before)


Threads = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def numba_threads() -> Threads:
    """`with numba_threads(1):` runs numba's parallel sections on that many threads."""
    if numba.config.NUMBA_NUM_THREADS < 2:  # type: ignore[attr-defined]
        pytest.skip("one core: numba has no second thread to compare with")
    return partial(_threads, numba)


@pytest.fixture
def torch_threads() -> Threads:
    """`with torch_threads(1):` runs torch, and the binning of events, on that many threads."""
    return partial(_threads, torch)


@pytest.fixture(params=["reference", "cpu"])
def back_end(request: pytest.FixtureRequest) -> ModuleType:
    """Every back end of the binning that runs on the CPU."""
    return import_module(f"event_binning_grad.binning.{request.param}")
