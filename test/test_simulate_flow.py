"""The simulator's exact flow, and objects that move by themselves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from event_binning_grad.cli import main
from event_binning_grad.errors import ConfigError
from event_binning_grad.evaluation.flow_metrics import flow_warp_loss
from event_binning_grad.evaluation.true_flow import between
from event_binning_grad.events.recordings import BagRecording, open_recording
from event_binning_grad.events.types import Events
from event_binning_grad.geometry.motion_field import motion_field, undistorted_bearings
from event_binning_grad.simulate import (
    ConstantMotion,
    LayeredScene,
    Simulation,
    SimulationConfig,
    write_simulation,
)

SCENES = ("texture", "plane", "layers", "objects")


def config_of(scene: str, **changes: Any) -> SimulationConfig:
    deep: dict[str, Any] = {}
    if scene != "texture":
        deep = {"peak_m_s": (0.5, 0.5, 0.5), "normal": (0.2, -0.1, 1.0)}
    settings = {
        "width": 96, "height": 72, "duration_s": 0.6, "peak_rad_s": (2.0, 2.0, 2.0),
        "frequency_hz": (0.6, 1.5), "seed": 2, **deep, **changes,
    }  # fmt: skip
    return SimulationConfig(scene=scene, **settings)


@pytest.fixture(scope="module")
def simulations() -> dict[str, Simulation]:
    return {scene: Simulation(config_of(scene)) for scene in SCENES}


def seen_at(simulation: Simulation, points: np.ndarray, t_s: float) -> np.ndarray:
    """Points [N, 3] of the world in the frame of the camera at a time."""
    orientations, positions = simulation.trajectory.poses(np.array([t_s]))
    return (points - positions[0]) @ orientations[0]


@pytest.mark.parametrize("raw_pixels", [False, True])
@pytest.mark.parametrize("scene", SCENES)
def test_flow_is_how_fast_the_points_that_are_seen_move(
    simulations: dict[str, Simulation], scene: str, raw_pixels: bool
):
    simulation, t_s, step_s = simulations[scene], 0.31, 1e-5
    camera = simulation.camera
    rays = undistorted_bearings(camera)
    if raw_pixels:
        rays = camera.bearings.astype(np.float64)
        rays = rays / rays[..., 2:]
    layer = np.zeros(rays.shape[:2], int)
    points = rays
    orientations, positions = simulation.trajectory.poses(np.array([t_s]))
    layers = ()
    if isinstance(simulation.scene, LayeredScene):
        layers = simulation.scene.layers
        depth, layer = simulation.scene.seen(rays, orientations[0], positions[0], t_s)
        points = rays * depth[..., None]
    world = points @ orientations[0].T + (positions[0] if layers else 0.0)
    places = []
    for time in (t_s - step_s, t_s + step_s):
        moved = world
        if layers:  # what an object is painted on has gone along
            own = [(it.offset(np.array([time])) - it.offset(np.array([t_s])))[0] for it in layers]
            moved = world + np.array(own)[layer]
            camera_frame = seen_at(simulation, moved, time)
        else:
            camera_frame = moved @ simulation.trajectory.poses(np.array([time]))[0][0]
        if raw_pixels:
            places.append(camera.project(camera_frame))
        else:
            straight = camera_frame @ camera.K.T
            places.append(straight[..., :2] / straight[..., 2:])
    expected = (places[1] - places[0]) / (2 * step_s)
    flow = simulation.flow_image(t_s, raw_pixels=raw_pixels)
    assert flow.dtype == np.float32
    assert flow.shape == (72, 96, 2)
    assert np.isfinite(flow).all()
    assert np.abs(flow - expected).max() < 2e-3
    assert np.abs(flow).max() > 50.0


def test_flow_of_a_turn_and_of_an_approach_by_hand(simulations: dict[str, Simulation]):
    """Seen from the camera's own axis, turning right moves the image left, and an approach moves
    it away from the middle."""
    camera = simulations["texture"].camera
    focal, (cx, cy) = camera.K[0, 0], camera.K[:2, 2]
    turning = motion_field(camera, (0.0, 1.5, 0.0))
    assert turning[int(cy), int(cx)] == pytest.approx((-1.5 * focal, 0.0), abs=1e-4)
    nearing = motion_field(camera, np.zeros(3), (0.0, 0.0, 0.8), np.full((72, 96), 2.0))
    assert nearing[int(cy), int(cx) + 20] == pytest.approx((20 * 0.8 / 2.0, 0.0), abs=1e-4)
    with pytest.raises(ValueError, match="depth none"):
        motion_field(camera, np.zeros(3), (0.0, 0.0, 0.8))


def test_raw_flow_is_the_undistorted_one_through_the_lens(simulations: dict[str, Simulation]):
    simulation = simulations["texture"]
    camera = simulation.camera
    raw, straight = (simulation.flow_image(0.2, raw_pixels=raw) for raw in (True, False))
    middle = (slice(34, 39), slice(46, 51))  # where the lens does next to nothing
    assert raw[middle] == pytest.approx(straight[middle], rel=0.02, abs=0.5)
    corner = camera.undistorted_pixels[2, 2]
    assert np.abs(corner - 2).max() > 3  # and where it does much
    assert np.linalg.norm(raw[2, 2] - straight[2, 2]) > 3


def test_only_objects_move_by_themselves(simulations: dict[str, Simulation]):
    for scene in ("texture", "plane", "layers"):
        assert not simulations[scene].moving_mask(0.1).any()
    simulation = simulations["objects"]
    mask = simulation.moving_mask(0.1)
    assert mask.shape == (72, 96)
    assert 0.05 < mask.mean() < 0.6
    # With the camera's motion and the depth alone the flow of the plane is explained, and of the
    # objects it is not.
    t_s = np.array([0.1])
    assert isinstance(simulation.scene, LayeredScene)
    orientation, position = (value[0] for value in simulation.trajectory.poses(t_s))
    rays = undistorted_bearings(simulation.camera)
    depth = simulation.scene.seen(rays, orientation, position, 0.1)[0]
    static = motion_field(
        simulation.camera,
        simulation.motion.angular_velocity(t_s)[0],
        simulation.motion.linear_velocity(t_s)[0],
        depth,
    )
    off = np.hypot(*(simulation.flow_image(0.1) - static).transpose(2, 0, 1))
    assert off[~mask].max() < 1e-3
    speed_m_s = off * depth / simulation.camera.K[0, 0]  # across the view, as a rule
    assert np.median(speed_m_s[mask]) == pytest.approx(0.5, rel=0.15)


def test_objects_go_in_circles_at_their_speed(simulations: dict[str, Simulation]):
    scene = simulations["objects"].scene
    assert isinstance(scene, LayeredScene)
    assert scene.layers[0].motion is None
    t_s, step_s = np.linspace(0.0, 3.0, 13), 1e-6
    courses = []
    for layer in scene.layers[1:]:
        velocity = layer.velocity(t_s)
        measured = (layer.offset(t_s + step_s) - layer.offset(t_s - step_s)) / (2 * step_s)
        assert velocity == pytest.approx(measured, abs=1e-6)
        assert np.linalg.norm(velocity, axis=1) == pytest.approx(0.5)
        assert velocity @ layer.normal == pytest.approx(0.0, abs=1e-12)
        assert layer.offset(np.zeros(1)) == pytest.approx(0.0, abs=1e-12)
        courses.append(velocity)
    assert np.abs(courses[0] - courses[1]).max() > 0.1  # each on its own


def test_the_brightness_of_a_point_stays_as_objects_move(simulations: dict[str, Simulation]):
    simulation = simulations["objects"]
    scene = simulation.scene
    assert isinstance(scene, LayeredScene)
    rays, t_s, step_s = undistorted_bearings(simulation.camera), 0.2, 2e-3
    moved = rays.copy()
    pixels = step_s * simulation.flow_image(t_s)
    moved[..., :2] += pixels @ np.linalg.inv(simulation.camera.K[:2, :2]).T
    times = np.array([t_s, t_s + step_s])
    (first, last), (start, end) = simulation.trajectory.poses(times)
    unit = [b / np.linalg.norm(b, axis=-1, keepdims=True) for b in (rays, moved)]
    before = scene.log_intensity(unit[0], first, start, t_s)
    after = scene.log_intensity(unit[1], last, end, t_s + step_s)
    still = scene.log_intensity(unit[0], last, end, t_s + step_s)
    mask = simulation.moving_mask(t_s)
    followed, fixed = np.abs(after - before)[mask], np.abs(still - before)[mask]
    assert np.quantile(followed, 0.9) < 0.2 * np.quantile(fixed, 0.9)


@pytest.fixture(scope="module")
def still_camera() -> Simulation:
    """Objects that move before a camera at rest, so that nothing else makes events."""
    config = config_of("objects", duration_s=0.25, noise_hz=0.0, width=160, height=120)
    return Simulation(config, ConstantMotion((0.0, 0.0, 0.0)))


def test_before_a_camera_at_rest_only_objects_make_events(still_camera: Simulation):
    events = Events.concatenate(list(still_camera.events()))
    assert len(events) > 2000
    near = np.zeros((120, 160), bool)  # where an object is at some time
    for t_s in np.linspace(0.0, 0.25, 26):
        near |= still_camera.moving_mask(t_s, raw_pixels=True)
    padded = np.pad(near, 2)
    near = np.any([padded[y : y + 120, x : x + 160] for y in range(5) for x in range(5)], axis=0)
    assert near.mean() < 0.9
    # But for the tips of stars, too faint to be seen as an object.
    assert near[events.y, events.x].mean() > 0.98


def test_the_true_flow_of_objects_makes_their_events_sharp(still_camera: Simulation):
    events = Events.concatenate(list(still_camera.events()))
    part = events[slice(*np.searchsorted(events.t, [100_000_000, 180_000_000]))]
    coords = np.stack([part.x, part.y], axis=1).astype(float)
    flow = still_camera.flow_image(part.mean_time_ns * 1e-9, raw_pixels=True)
    offset_s = (part.t - part.mean_time_ns) * 1e-9
    sharp = flow_warp_loss(coords, offset_s, flow)
    assert sharp > 1.5
    assert sharp > 1.3 * flow_warp_loss(coords, offset_s, -flow)
    assert sharp > 1.1 * flow_warp_loss(coords, offset_s, 0.5 * flow)


@pytest.mark.parametrize(
    ("scene", "rate_hz", "within_px"),
    [("plane", 20.0, 0.25), ("plane", 50.0, 0.05), ("objects", 50.0, 0.1)],
)
def test_between_samples_the_flow_is_known_well_enough(
    simulations: dict[str, Simulation], scene: str, rate_hz: float, within_px: float
):
    """Over a window of 30 ms; the flow at motion edges is that of the nearer side."""
    simulation, errors, unknown = simulations[scene], [], []
    for start_s in np.arange(0.05, 0.5, 0.1):
        stop_s = start_s + 1 / rate_hz
        first, last = simulation.flow_image(start_s), simulation.flow_image(stop_s)
        for share in (0.2, 0.5, 0.9):
            t_s = start_s + share / rate_hz
            flow = between(first, last, t_s - start_s, stop_s - t_s)
            off = np.hypot(*(flow - simulation.flow_image(t_s)).transpose(2, 0, 1))
            errors.append(0.03 * np.nanmean(off))
            unknown.append(np.isnan(off).mean())
    assert np.mean(errors) < within_px
    assert np.mean(unknown) < 0.02


def test_true_flow_and_moving_pixels_are_in_the_recording(tmp_path: Path):
    config = config_of("objects", duration_s=0.1, flow_hz=50.0)
    write_simulation(tmp_path / "sim", config)
    recording, simulation = open_recording(tmp_path / "sim"), Simulation(config)
    assert isinstance(recording, BagRecording)
    flows, masks = list(recording.true_flow()), list(recording.moving_masks())
    start_ns = config.start_s * 10**9
    assert [stamp - start_ns for stamp, _ in flows] == [k * 20_000_000 for k in range(6)]
    assert [stamp for stamp, _ in masks] == [stamp for stamp, _ in flows]
    for (stamp, flow), (_, mask) in zip(flows, masks, strict=True):
        t_s = (stamp - start_ns) / 1e9
        assert (flow == simulation.flow_image(t_s)).all()
        assert (mask == simulation.moving_mask(t_s)).all()
        assert mask.any()
    assert list(recording.depth_images()) == []


def test_without_being_asked_for_there_is_no_true_flow(tmp_path: Path):
    write_simulation(tmp_path / "sim", config_of("plane", duration_s=0.02))
    recording = open_recording(tmp_path / "sim")
    assert isinstance(recording, BagRecording)
    assert list(recording.true_flow()) == []
    assert list(recording.moving_masks()) == []


def test_the_command_line_makes_objects_with_true_flow(tmp_path: Path):
    options = "--scene objects --duration 0.05 --size 64x48 --object-speed 0.8 --front 0.6"
    assert main(["simulate", *options.split(), "--flow-topic", "--out", str(tmp_path / "s")]) == 0
    recording = open_recording(tmp_path / "s")
    assert isinstance(recording, BagRecording)
    stamps = [stamp for stamp, _ in recording.true_flow()]
    assert np.diff(stamps).tolist() == [20_000_000] * 2
    assert any(mask.any() for _, mask in recording.moving_masks())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scene": "objects", "object_m_s": -1.0}, "object_m_s is -1.0"),
        ({"scene": "objects", "object_m_s": math.nan}, "object_m_s is nan"),
        ({"scene": "objects", "front_shares": ()}, "expected one to seven"),
        ({"flow_hz": -1.0}, "flow_hz is -1.0"),
    ],
)
def test_bad_configurations_are_refused(change: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        SimulationConfig(**change)


def test_objects_that_rest_are_layers():
    scene = Simulation(config_of("objects", object_m_s=0.0)).scene
    assert isinstance(scene, LayeredScene)
    assert len(scene.layers) == 3
    assert all(layer.motion is None for layer in scene.layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--object-speed 1", "--object-speed is of scenes with depth"),
        ("--object-speed 1 --scene layers", "--object-speed is of objects"),
    ],
)
def test_the_command_line_refuses_in_one_line(tmp_path: Path, capsys, options: str, message: str):
    assert main(["simulate", "--out", str(tmp_path / "sim"), *options.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
