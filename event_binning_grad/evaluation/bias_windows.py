"""Windows of events, simulated and recorded, and the lines through the space of their motions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from event_binning_grad.errors import PacketError, RecordingError
from event_binning_grad.estimation import EgomotionConfig, EgomotionEstimator
from event_binning_grad.estimation.iwe_grid import iwe_grid
from event_binning_grad.estimation.look_up import look_up, normalised_table
from event_binning_grad.evaluation.bias import SPACING, Float64, Line
from event_binning_grad.evaluation.evaluate import recorded_camera
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.recordings import Recording, open_recording
from event_binning_grad.events.types import Events
from event_binning_grad.events.windows import WindowBuffer
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.rotation import rotate
from event_binning_grad.simulate import ConstantMotion, SimulationConfig, simulate_rotation

_SIMULATED_SPEED = 3.0  # rad/s
_MIN_DEPTH = 0.4  # z of a unit bearing; 66 degrees, a little more than iwe_grid's image holds


@dataclass(frozen=True)
class Window:
    """A window's events and the motion about which they are looked at.

    Attributes:
        name: where it comes from.
        bearings: [N, 3] X/Z, Y/Z and 1, camera frame.
        tau_s: [N] time from the window's mean time.
        omega_rad_s: [3] angular velocity at that time.
        alpha_rad_s2: [3] angular acceleration.
    """

    name: str
    bearings: Float64
    tau_s: Float64
    omega_rad_s: Float64
    alpha_rad_s2: Float64 = field(default_factory=lambda: np.zeros(3))


def simulated_windows(
    count: int, window_events: int, seed: int = 0
) -> tuple[Camera, Iterator[Window]]:
    """A simulated 240x180 camera, and windows of it that turns at a known constant rate.

    Every window has a scene, an axis of rotation and noise of its own.
    """
    config = SimulationConfig(width=240, height=180)
    camera = config.camera()

    def windows() -> Iterator[Window]:
        for k in range(count):
            axis = np.random.default_rng([seed, k]).standard_normal(3)
            omega = _SIMULATED_SPEED * axis / np.linalg.norm(axis)
            chunks = simulate_rotation(
                camera, ConstantMotion(tuple(omega)), 60.0,
                scene=config.scene, seed=seed + k, **config.sensor(),
            )  # fmt: skip
            next(chunks)  # the pixels forget how they were started
            buffer = WindowBuffer(window_events)
            events = next(found.events for chunk in chunks for found in buffer.push(chunk))
            yield _window(f"simulated {k}", camera, events, omega, np.zeros(3))

    return camera, windows()


def recorded_windows(
    path: Path,
    count: int,
    window_events: int,
    camera: Camera | None = None,
    topic: str | None = None,
) -> tuple[Camera, Iterator[Window]]:
    """The camera of a recording, and its first windows whose motion can be estimated.

    The motion is what `EgomotionEstimator` finds, with its acceleration: lines need to run through
    the peak of the contrast, and not every recording has a true motion. topic: of the events, where
    a bag holds several.

    Raises:
        RecordingError: no recording, no calibration, no window that can be estimated.
    """
    recording = open_recording(path, topic)
    camera = camera or recorded_camera(recording)

    def windows() -> Iterator[Window]:
        estimator = EgomotionEstimator(camera, EgomotionConfig(min_events=min(1000, window_events)))
        taken = seen = 0
        for events in _recorded_events(recording, camera, window_events):
            seen += 1
            estimate = estimator.estimate(events)
            if estimate.status.ok:
                omega, alpha = estimate.angular_velocity, estimate.angular_acceleration
                yield _window(f"{path.name} {seen - 1}", camera, events, omega, alpha)
                taken += 1
                if taken == count:
                    return
        if not taken:
            raise RecordingError(
                f"{path}: none of its {seen} windows of {window_events} events shows a rotation; "
                "expected one at least: choose other --window-events"
            )

    return camera, windows()


def _recorded_events(recording: Recording, camera: Camera, window_events: int) -> Iterator[Events]:
    buffer, decoder = WindowBuffer(window_events), PacketDecoder()
    for packet in recording.packets():
        if isinstance(packet, Events):
            events = packet
        else:
            try:
                decoded = decoder.decode(packet)
            except PacketError:
                continue
            if decoded.discontinuity is not None:
                buffer.clear()
            events = decoded.events
        if (events.width, events.height) != (camera.width, camera.height):
            raise RecordingError(
                f"{recording.path}: events of a {events.width}x{events.height} sensor, but the "
                f"calibration is for {camera.width}x{camera.height}: use this camera's calibration"
            )
        yield from (window.events for window in buffer.push(events))


def _window(name: str, camera: Camera, events: Events, omega: Float64, alpha: Float64) -> Window:
    stamp_ns = events.mean_time_ns
    columns = np.empty((3, len(events)), np.float32)
    counts = np.zeros((camera.height, camera.width), np.int32)
    table = normalised_table(camera)
    look_up(events.t, events.x, events.y, stamp_ns, table, counts, columns)
    x, y, tau = columns[:, np.isfinite(columns[0])].astype(np.float64)
    return Window(
        name,
        np.stack([x, y, np.ones_like(x)], axis=1),
        tau,
        np.asarray(omega, np.float64),
        np.asarray(alpha, np.float64),
    )


def rotation_lines(
    window: Window, camera: Camera, bin_size: float, points: int, rng: np.random.Generator
) -> list[Line]:
    """The lines about a window's motion along the axes of the angular velocity.

    Args:
        window: the events.
        camera: whose image plane to use.
        bin_size: pixels of that plane.
        points: on each line.
        rng: draws the lines' phases.
    """
    plane = iwe_grid(camera)
    matrix, offset = torch.from_numpy(plane.matrix), torch.from_numpy(plane.offset)
    bearings, tau = torch.from_numpy(window.bearings), torch.from_numpy(window.tau_s)[:, None]
    omega, alpha = torch.from_numpy(window.omega_rad_s), torch.from_numpy(window.alpha_rad_s2)

    def warped(change: Tensor) -> Tensor:
        """[N, 2] (v, u) at omega + change; NaN for what is far off the image."""
        seen = rotate(tau * (omega + change) + tau**2 * alpha / 2, bearings)
        depth = torch.where(seen[:, 2:] > _MIN_DEPTH, seen[:, 2:], torch.nan)
        return (seen[:, :2] / depth @ matrix.T + offset).flip(1)

    phases = rng.uniform(-0.5, 0.5, 3) * SPACING
    lines = []
    for axis, phase in zip(range(3), phases, strict=True):
        unit = torch.eye(3, dtype=torch.float64)[axis]
        moved = torch.func.jvp(warped, (torch.zeros_like(unit),), (unit,))[1]
        a_bin = unit * (bin_size / moved.norm(dim=1).nanmean())

        def coords_at(s: Tensor, a_bin: Tensor = a_bin) -> Tensor:
            return warped(s * a_bin)

        start = float(phase) - SPACING * (points - 1) / 2
        lines.append(Line(window.name, "xyz"[axis], coords_at, plane.bins(bin_size), start, points))
    return lines
