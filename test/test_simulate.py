"""The simulator against its own truth: geometry, photometry, noise, and repeatability."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.spatial.transform import Rotation

from event_binning_grad.cli import main
from event_binning_grad.errors import ConfigError, RecordingError
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.recordings import BagRecording, open_recording
from event_binning_grad.events.types import EventPacket, Events
from event_binning_grad.geometry.camera import Camera
from event_binning_grad.simulate import (
    SCENES,
    ConstantMotion,
    LayeredScene,
    Motion,
    PoseTrackMotion,
    Scene,
    Simulation,
    SimulationConfig,
    SineMotion,
    TrackMotion,
    Trajectory,
    hand_motion,
    integrate_orientation,
    make_layers,
    make_scene,
    paint_scene,
    sample_ground_truth,
    simulate_camera,
    simulate_rotation,
    write_simulation,
)

QUIET = {"threshold_mismatch": 0.0, "refractory_s": 0.0, "noise_hz": 0.0}


def small_config(**changes: Any) -> SimulationConfig:
    return SimulationConfig(width=96, height=72, **changes)


@pytest.fixture(scope="module")
def camera() -> Camera:
    return small_config().camera()


@pytest.fixture(scope="module")
def texture() -> Scene:
    return make_scene("texture", pixel_rad=0.01, seed=3)


@pytest.fixture(scope="module")
def layers(camera: Camera) -> LayeredScene:
    """A slanted plane 1.2 m away with two layers in front of it."""
    depth: Any = {"distance_m": 1.2, "normal": (0.4, -0.2, 1.0), "front_shares": (0.7, 0.5)}
    scene = paint_scene("layers", camera, 3, **depth)
    assert isinstance(scene, LayeredScene)
    return scene


def simulate(camera: Camera, motion: Motion, duration_s: float, **options) -> Events:
    return Events.concatenate(list(simulate_rotation(camera, motion, duration_s, **options)))


def simulate_layers(camera: Camera, motion: Motion, duration_s: float, **options) -> Events:
    return Events.concatenate(list(simulate_camera(camera, motion, duration_s, **options)))


def hand_held(seed: int = 1, duration_s: float = 2.0) -> Motion:
    """Vigorous, with all six degrees of freedom."""
    options: Any = {"seed": seed, "frequency_hz": (0.8, 2.0)}
    return hand_motion(duration_s, (2.0, 2.0, 2.0), (0.6, 0.6, 0.6), **options)


def half_bright() -> Scene:
    """Log intensity rises over a few degrees from -1 to 1 towards +x, the camera's right."""
    nodes = 401
    scene = Scene("half", np.zeros((6, nodes, nodes), np.float32))
    u = np.linspace(-1.0, 1.0, nodes)
    profile = np.clip(np.arctan(u) / math.radians(4.0), -1.0, 1.0)
    scene.faces[4] = profile[None, :]  # +z: columns run along x
    scene.faces[0], scene.faces[1] = 1.0, -1.0
    scene.faces[2] = profile[:, None]  # +y: rows run along x
    scene.faces[3] = profile[:, None]
    return scene


# ------------------------------------------------------------------------------------------ motion


def test_hand_motion_reaches_its_peaks_on_every_axis():
    motion = hand_motion(10.0, (5.0, 3.0, 0.5), seed=4)
    omega = motion.angular_velocity(np.linspace(0.0, 10.0, 20001))
    assert np.abs(omega).max(axis=0) == pytest.approx((5.0, 3.0, 0.5), rel=1e-3)
    assert isinstance(motion, SineMotion)
    assert ((motion.frequency_hz >= 0.3) & (motion.frequency_hz <= 1.5)).all()


def test_orientation_solves_the_kinematic_equation():
    motion = hand_motion(2.0, (6.0, 6.0, 6.0), seed=1)
    t = np.linspace(0.0, 2.0, 401)

    def rate(time: float, flat: np.ndarray) -> np.ndarray:
        wx, wy, wz = motion.angular_velocity(np.array([time]))[0]
        skew = np.array([[0, -wz, wy], [wz, 0, -wx], [-wy, wx, 0]])
        return (flat.reshape(3, 3) @ skew).ravel()

    exact = solve_ivp(rate, (0.0, 2.0), np.eye(3).ravel(), t_eval=t, rtol=1e-11, atol=1e-12)
    turned = integrate_orientation(motion, t)
    assert np.abs(turned - exact.y.T.reshape(-1, 3, 3)).max() < 1e-6
    again = integrate_orientation(motion, t[200:], turned[200])
    assert np.allclose(again, turned[200:], atol=1e-12)


def test_constant_motion_turns_by_its_angle_and_zero_motion_not_at_all():
    turned = integrate_orientation(ConstantMotion((0.0, 2.0, 0.0)), np.linspace(0.0, 0.25, 6))[-1]
    # About y (down) the optical axis swings from z to x: the camera looks to its right.
    assert turned[:, 2] == pytest.approx([math.sin(0.5), 0.0, math.cos(0.5)], abs=1e-12)
    still = integrate_orientation(ConstantMotion((0.0, 0.0, 0.0)), np.linspace(0.0, 1.0, 4))
    assert (still == np.eye(3)).all()


def test_track_follows_its_samples_and_refuses_what_it_does_not_cover():
    t = np.linspace(0.0, 1.0, 201)
    omega = np.stack([np.sin(6.0 * t), np.cos(5.0 * t), t], axis=1)
    track = TrackMotion(t, omega)
    at = np.array([0.1234, 0.777])
    expected = np.stack([np.sin(6.0 * at), np.cos(5.0 * at), at], axis=1)
    assert np.allclose(track.angular_velocity(at), expected, atol=1e-7)
    with pytest.raises(ConfigError, match=r"covers 0\.000 to 1\.000 s"):
        track.angular_velocity(np.array([1.01]))
    with pytest.raises(ConfigError, match="times must increase"):
        TrackMotion(t[::-1], omega)
    with pytest.raises(ConfigError, match=r"expected \[M\] and \[M, 3\]"):
        TrackMotion(t, omega[:, :2])


def test_hand_motion_with_translation_reaches_all_its_peaks_and_comes_back():
    peak, speed = (2.0, 1.5, 1.0), (0.5, 0.3, 0.4)
    motion = hand_motion(60.0, peak, speed, seed=2, frequency_hz=(0.5, 1.5))
    t = np.linspace(0.0, 60.0, 60001)
    assert np.abs(motion.angular_velocity(t)).max(axis=0) == pytest.approx(peak, rel=0.01)
    assert np.abs(motion.linear_velocity(t)).max(axis=0) == pytest.approx(speed, rel=0.01)
    orientation, position = Trajectory(motion, 60.0).poses(t[::50])
    assert np.linalg.norm(position, axis=1).max() < 0.5  # however long it lasts
    assert (orientation[:, 2, 2] > math.cos(math.radians(60.0))).all()


def test_motions_without_translation_stay_where_they_are():
    t = np.linspace(0.0, 1.0, 9)
    track = TrackMotion(t, np.ones((9, 3)))
    for motion in (hand_motion(1.0), ConstantMotion((1.0, 2.0, 3.0)), track):
        assert motion.linear_velocity(t).shape == (9, 3)
        assert not motion.linear_velocity(t).any()
        assert not Trajectory(motion, 1.0).poses(t)[1].any()


@pytest.mark.parametrize("swing", [True, False])
def test_trajectory_solves_the_kinematic_equations(swing: bool):
    if swing:
        motion: Motion = hand_motion(1.0, (6.0, 6.0, 6.0), (2.0, 2.0, 2.0), seed=1)
    else:
        s = np.linspace(0.0, 1.0, 60)
        omega = np.stack([4.0 * np.sin(7.0 * s), 3.0 * np.cos(5.0 * s), s], axis=1)
        motion = TrackMotion(s, omega, np.stack([np.cos(6.0 * s), s, np.sin(9.0 * s)], axis=1))
    t = np.sort(np.random.default_rng(0).uniform(0.0, 1.0, 50))

    def rate(time: float, state: np.ndarray) -> np.ndarray:
        (wx, wy, wz) = motion.angular_velocity(np.array([time]))[0]
        skew = np.array([[0, -wz, wy], [wz, 0, -wx], [-wy, wx, 0]])
        turned = state[:9].reshape(3, 3)
        velocity = motion.linear_velocity(np.array([time]))[0]
        return np.concatenate([(turned @ skew).ravel(), turned @ velocity])

    start = np.concatenate([np.eye(3).ravel(), np.zeros(3)])
    exact = solve_ivp(rate, (0.0, 1.0), start, t_eval=t, rtol=1e-10, atol=1e-11, max_step=0.01).y.T
    path = Trajectory(motion, 1.0)
    orientation, position = path.poses(t)
    assert np.abs(orientation - exact[:, :9].reshape(-1, 3, 3)).max() < 1e-8
    assert np.abs(position - exact[:, 9:]).max() < 1e-8
    again = path.poses(t[30:31])  # a pose depends on its time alone
    assert (again[0][0] == orientation[30]).all()
    assert (again[1][0] == position[30]).all()
    with pytest.raises(ConfigError, match="expected 0 to 1 s"):
        path.poses(np.array([1.1]))


def test_constant_motion_is_a_screw():
    omega, velocity = np.array([0.3, -1.0, 0.8]), np.array([0.5, 0.2, -0.4])
    motion = ConstantMotion((0.3, -1.0, 0.8), (0.5, 0.2, -0.4))
    (orientation,), (position,) = Trajectory(motion, 0.7).poses(np.array([0.7]))
    from scipy.linalg import expm

    twist = np.zeros((4, 4))
    twist[:3, :3] = np.cross(np.eye(3), omega)
    twist[:3, 3] = velocity
    pose = expm(0.7 * twist)
    assert np.allclose(orientation, pose[:3, :3], atol=1e-11)
    assert np.allclose(position, pose[:3, 3], atol=1e-11)


def test_a_track_of_poses_has_the_velocities_that_led_to_them():
    motion = hand_held()
    t = np.linspace(0.0, 2.0, 1001)
    orientation, position = Trajectory(motion, 2.0).poses(t)
    world = Rotation.from_rotvec([0.5, 1.0, -2.0])  # any fixed frame
    quaternion = (world * Rotation.from_matrix(orientation)).as_quat()
    track = PoseTrackMotion(t, world.apply(position) + np.array([1.0, 2.0, 3.0]), quaternion)
    at = np.linspace(0.05, 1.95, 77)
    assert np.allclose(track.angular_velocity(at), motion.angular_velocity(at), atol=2e-3)
    assert np.allclose(track.linear_velocity(at), motion.linear_velocity(at), atol=1e-4)
    with pytest.raises(ConfigError, match=r"covers 0\.000 to 2\.000 s"):
        track.linear_velocity(np.array([2.5]))
    with pytest.raises(ConfigError, match=r"quaternions of shape \(1001, 3\)"):
        PoseTrackMotion(t, position, position)
    with pytest.raises(ConfigError, match="a quaternion of length zero"):
        PoseTrackMotion(t, position, 0.0 * quaternion)


def test_ground_truth_samples_the_motion():
    motion = hand_motion(1.0, seed=2)
    truth = sample_ground_truth(motion, 1.0, rate_hz=500.0, start_ns=7_000_000_000)
    assert len(truth.t_ns) == 501
    assert truth.t_ns[0] == 7_000_000_000
    assert truth.t_ns[-1] == 8_000_000_000
    t_s = np.arange(501) / 500.0
    assert (truth.angular_velocity == motion.angular_velocity(t_s)).all()
    middle = truth.at(np.array([7_501_000_000]))
    assert middle == pytest.approx(motion.angular_velocity(np.array([0.501])), abs=1e-5)


# ------------------------------------------------------------------------------------------- scene


@pytest.mark.parametrize("name", SCENES)
def test_scene_has_no_seams(name: str):
    scene = make_scene(name, pixel_rad=0.01, seed=1)
    rng = np.random.default_rng(0)
    along = rng.uniform(-1.0, 1.0, 4000)
    edges = [np.array([1, 1, 0]), np.array([1, -1, 0]), np.array([-1, 1, 0])]
    for edge in edges:
        for axes in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            points = np.outer(np.ones_like(along), edge).astype(float)
            points[:, 2] = along
            either = [points.copy(), points.copy()]
            either[0][:, 0] *= 1.0 + 1e-6
            either[1][:, 1] *= 1.0 + 1e-6
            a, b = (scene.log_intensity(side[:, axes]) for side in either)
            assert np.abs(a - b).max() < 1e-3


@pytest.mark.parametrize("name", SCENES)
def test_scene_repeats_by_seed_and_ignores_the_length_of_directions(name: str):
    scene = make_scene(name, pixel_rad=0.02, seed=5)
    assert (scene.faces == make_scene(name, pixel_rad=0.02, seed=5).faces).all()
    assert (scene.faces != make_scene(name, pixel_rad=0.02, seed=6).faces).any()
    d = np.random.default_rng(0).standard_normal((50, 4, 3))
    assert scene.log_intensity(d).shape == (50, 4)
    assert np.allclose(scene.log_intensity(d), scene.log_intensity(3.0 * d), atol=1e-4)
    spread = scene.log_intensity(d)
    assert np.isfinite(scene.faces).all()
    assert spread.std() > 0.05


def ray_cast(
    scene: LayeredScene, bearing: np.ndarray, orientation: np.ndarray, position: np.ndarray
) -> tuple[float, float]:
    """Log intensity and z-depth along one bearing, by hand, without any blur."""
    ray, hits = orientation @ bearing, []
    for layer in scene.layers:
        reach = layer.distance_m - layer.normal @ position
        if reach / (layer.normal @ ray) > 0.0:
            hits.append((reach / (layer.normal @ ray), layer))
    total, light, depth = 0.0, 1.0, math.nan
    for distance, layer in sorted(hits, key=lambda hit: hit[0]):
        painting = layer.paintings[0].astype(np.float64)
        place = layer.axes @ (position + distance * ray - layer.origin) / layer.texel_m
        (i, j), (a, b) = np.floor(place).astype(int), place - np.floor(place)
        value = np.zeros(2)
        for column, row, weight in (
            (i, j, (1 - a) * (1 - b)), (i + 1, j, a * (1 - b)),
            (i, j + 1, (1 - a) * b), (i + 1, j + 1, a * b),
        ):  # fmt: skip
            value += weight * painting[row % len(painting), column % len(painting)]
        total += light * value[0]
        light *= 1.0 - value[1]
        if math.isnan(depth) and value[1] >= 0.5:
            depth = distance * bearing[2]
    return total, depth


@pytest.mark.parametrize("at_s", [0.0, 1.3])
def test_layers_are_what_rays_cast_by_hand_meet(camera: Camera, layers: LayeredScene, at_s: float):
    unblurred = replace(layers, pixel_rad=1e-6)
    (orientation,), (position,) = Trajectory(hand_held(), 2.0).poses(np.array([at_s]))
    level = unblurred.log_intensity(camera.bearings, orientation, position)
    depth = layers.depth(camera.bearings, orientation, position)
    rng = np.random.default_rng(4)
    seen = set()
    for _ in range(300):
        y, x = rng.integers(0, camera.height), rng.integers(0, camera.width)
        bearing = camera.bearings[y, x].astype(np.float64)
        expected, far = ray_cast(layers, bearing, orientation, position)
        assert level[y, x] == pytest.approx(expected, abs=2e-3)
        assert depth[y, x] == pytest.approx(far, rel=1e-6)
        planes = [layers.plane(orientation, position, n) for n in range(3)]
        point = bearing / bearing[2] * far
        seen.add(int(np.argmin([abs(normal @ point - d) for normal, d in planes])))
    assert seen == {0, 1, 2}  # the plane, and both layers in front of it


@pytest.mark.parametrize("paint", ["texture", "shapes"])
def test_depth_of_a_slanted_plane_is_its_equations(camera: Camera, paint: str):
    depth: Any = {"distance_m": 2.0, "normal": (-0.6, 0.3, -1.2), "paint": paint}
    scene = paint_scene("plane", camera, 1, **depth)
    assert isinstance(scene, LayeredScene)
    (orientation,), (position,) = Trajectory(hand_held(), 2.0).poses(np.array([0.8]))
    normal, d = scene.plane(orientation, position)
    image = scene.depth(camera.bearings, orientation, position)
    rays = camera.bearings.astype(np.float64)
    rays /= rays[..., 2:]
    assert image.dtype == np.float32
    assert image == pytest.approx(d / (rays @ normal), rel=1e-6)
    # At the start the plane is 2 m ahead along the optical axis, and its normal the one given.
    first, d0 = scene.plane(np.eye(3), np.zeros(3))
    assert first == pytest.approx(np.array([0.6, -0.3, 1.2]) / np.linalg.norm([0.6, 0.3, 1.2]))
    assert d0 / first[2] == pytest.approx(2.0)


def test_beyond_the_horizon_there_is_no_depth(camera: Camera):
    scene = make_layers("plane", pixel_rad=0.015)
    sideways = Rotation.from_rotvec([0.0, math.radians(80.0), 0.0]).as_matrix()
    depth = scene.depth(camera.bearings, sideways, np.zeros(3))
    rays = camera.bearings.astype(np.float64) @ sideways.T
    assert (np.isnan(depth) == (rays[..., 2] <= 1e-6)).all()
    assert 0.1 < np.isnan(depth).mean() < 0.9
    level = scene.log_intensity(camera.bearings, sideways, np.zeros(3))
    assert np.isfinite(level).all()
    assert (level[np.isnan(depth)] == 0.0).all()


def away_from_jumps(depth: np.ndarray) -> np.ndarray:
    """True where the depth is smooth for two pixels around."""
    smooth = np.ones(depth.shape, bool)
    padded = np.pad(depth, 2, mode="edge")
    for dy in range(5):
        for dx in range(5):
            moved = padded[dy : dy + depth.shape[0], dx : dx + depth.shape[1]]
            smooth &= np.abs(moved / depth - 1.0) < 0.1
    return smooth


def test_brightness_of_a_point_stays_as_the_camera_moves(camera: Camera, layers: LayeredScene):
    unblurred = replace(layers, pixel_rad=1e-6)
    first, last = zip(*Trajectory(hand_held(), 2.0).poses(np.array([0.0, 0.02])), strict=True)
    rays = camera.bearings.astype(np.float64)
    depth = layers.depth(rays, *first)
    points = (rays / rays[..., 2:] * depth[..., None]) @ first[0].T + first[1]
    moved = (points - last[1]) @ last[0]
    bearings = moved / np.linalg.norm(moved, axis=2, keepdims=True)
    met = layers.depth(bearings, *last)
    before = unblurred.log_intensity(rays, *first)
    after = unblurred.log_intensity(bearings, *last)
    # Outlines are a pixel wide and let the layers behind, which move otherwise, shine through.
    seen = np.isclose(met, moved[..., 2], rtol=1e-5)
    whole = seen & away_from_jumps(depth) & away_from_jumps(met)
    assert 0.3 < whole.mean() < 0.95
    # But for the tips of stars, too faint to count in the depth.
    assert np.quantile(np.abs(before - after)[whole], 0.99) < 1e-3
    assert np.abs(before - after)[whole].max() < 0.1
    fixed = unblurred.log_intensity(rays, *last)
    assert np.abs(before - fixed)[whole].max() > 0.3


def test_a_painting_seen_from_far_fades_without_a_step():
    scene = make_layers("plane", pixel_rad=0.01, seed=2)
    axis = np.zeros((40, 40, 3))
    axis[..., 0], axis[..., 1] = np.meshgrid(*[np.linspace(-0.3, 0.3, 40)] * 2)
    axis[..., 2] = 1.0
    axis /= np.linalg.norm(axis, axis=2, keepdims=True)
    # Back from the plane by 3 % a time, the picture kept in place by its own zoom.
    images = []
    for back_m in 1.03 ** np.arange(200) - 1.0:
        zoomed = axis * [1.0 / (1.0 + back_m), 1.0 / (1.0 + back_m), 1.0]
        zoomed /= np.linalg.norm(zoomed, axis=2, keepdims=True)
        images.append(scene.log_intensity(zoomed, np.eye(3), np.array([0.0, 0.0, -back_m])))
    contrast = np.std(images, axis=(1, 2))
    assert np.abs(np.diff(contrast)).max() < 0.05 * contrast[0]
    assert contrast[0] > 0.1
    assert contrast[-1] < 0.05 * contrast[0]
    mean = scene.layers[0].paintings[0][..., 0].mean()
    assert images[-1] == pytest.approx(mean, abs=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance_m": 0.0}, "distance_m is 0.0; expected 0.001"),
        ({"distance_m": math.nan}, "distance_m is nan"),
        ({"normal": (0.0, 0.0, 0.0)}, "expected three numbers, not all 0"),
        ({"normal": (1.0, 0.0, 0.1)}, "at most 80 degrees off the optical axis"),
        ({"normal": (0.0, math.inf, 1.0)}, "expected three numbers"),
        ({"front_shares": ()}, "expected one to seven"),
        ({"front_shares": (0.5, 1.0)}, "expected one to seven of 0.05 to 0.95"),
        ({"coverage": 0.9}, "coverage is 0.9; expected 0.05 to 0.4"),
        ({"paint": "stripes"}, "paint 'stripes' is unknown; expected one of texture, shapes"),
    ],
)
def test_bad_layers_are_refused(change: dict, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        make_layers("layers", pixel_rad=0.01, **change)
    assert "\n" not in str(caught.value)


def test_scene_of_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="scene 'forest' is unknown; expected one of texture"):
        make_scene("forest", pixel_rad=0.01)


# ------------------------------------------------------------------------------------------ events


@pytest.mark.parametrize(
    ("omega", "polarity"),
    [((0.0, 1.0, 0.0), 1), ((0.0, -1.0, 0.0), 0), ((0.0, 0.0, 0.0), None), ((1.0, 0.0, 0.0), None)],
)
def test_polarity_at_a_moving_edge(camera: Camera, omega, polarity):
    # Turning about y (down) the camera looks further right, where it is bright: pixels brighten.
    # A nod moves along the edge: nothing changes but through the lens' distortion.
    events = simulate(camera, ConstantMotion(omega), 0.1, scene=half_bright(), **QUIET)
    if polarity is None:
        assert len(events) < 150
    else:
        assert len(events) > 1000
        assert (events.p == polarity).all()


def test_edge_arrives_when_the_rotation_says(camera: Camera):
    # The edge's middle, at log intensity 0 and azimuth 0 in the world, passes a pixel when the
    # camera has turned by minus the pixel's azimuth.
    omega = 2.0
    options = {**QUIET, "contrast_threshold": 0.02}
    events = simulate(
        camera, ConstantMotion((0.0, omega, 0.0)), 0.3, scene=half_bright(), **options
    )
    bearings = camera.bearings.astype(np.float64)
    azimuth = np.arctan2(bearings[..., 0], bearings[..., 2])
    row = camera.height // 2
    for column in (15, 25, 35):
        here = (events.x == column) & (events.y == row)
        level = -1.0 + 0.02 * (np.arange(here.sum()) + 0.5)  # the first phase is random: half of C
        middle_s = np.interp(0.0, level, events.t[here] / 1e9)
        # 0.02 of log intensity is 0.08 degrees of this ramp.
        assert middle_s == pytest.approx(
            -azimuth[row, column] / omega, abs=math.radians(0.1) / omega
        )


def test_polarities_add_up_to_the_change_of_log_intensity(camera: Camera, texture: Scene):
    motion, threshold = hand_motion(0.4, (4.0, 4.0, 4.0), seed=9), 0.03
    options = {**QUIET, "contrast_threshold": threshold}
    events = simulate(camera, motion, 0.4, scene=texture, **options)
    total = np.zeros((camera.height, camera.width))
    np.add.at(total, (events.y, events.x), threshold * (2.0 * events.p - 1.0))
    bearings = camera.bearings.astype(np.float64)
    last = integrate_orientation(motion, np.linspace(0.0, 0.4, 801))[-1]
    change = texture.log_intensity(bearings @ last.T) - texture.log_intensity(bearings)
    # At the start and at the end the reference lies within one threshold of the level.
    assert np.abs(total - change).max() < 2.0 * threshold + 1e-4
    assert np.abs(change).max() > 0.5


def test_thresholds_differ_between_pixels_by_the_mismatch(camera: Camera):
    options = {**QUIET, "contrast_threshold": 0.02, "threshold_mismatch": 0.05}
    motion = ConstantMotion((0.0, 2.0, 0.0))
    events = simulate(camera, motion, 0.3, scene=half_bright(), **options)
    counts = np.zeros((camera.height, camera.width))
    np.add.at(counts, (events.y, events.x), 1)
    whole = counts[26:46, 22:38]  # these pixels see the whole ramp, from -1 to 1
    assert whole.mean() == pytest.approx(2.0 / 0.02, rel=0.02)
    assert whole.std() / whole.mean() == pytest.approx(0.05, rel=0.25)


def test_event_count_scales_with_speed_time_and_threshold(camera: Camera, texture: Scene):
    def count(speed: float, duration_s: float, threshold: float) -> int:
        motion = ConstantMotion((0.3 * speed, speed, 0.0))
        options = {**QUIET, "contrast_threshold": threshold}
        return len(simulate(camera, motion, duration_s, scene=texture, **options))

    base = count(2.0, 0.2, 0.1)
    assert base > 5000
    assert count(4.0, 0.1, 0.1) == pytest.approx(base, rel=0.02)  # the same path, twice as fast
    # More than twice: a dark spot narrower than its blur must fall and rise by a whole threshold.
    assert 2.0 * base < count(2.0, 0.2, 0.05) < 2.6 * base
    assert count(2.0, 0.2, 0.5) < 0.3 * base


def iwe_variance(camera: Camera, events: Events, orientation: np.ndarray) -> float:
    """Variance of the image of events, each turned by its own orientation [N, 3, 3]."""
    bearings = camera.bearings[events.y, events.x].astype(np.float64)
    turned = np.einsum("nij,nj->ni", orientation, bearings)
    pixels = np.rint(camera.project(turned)).astype(int)
    inside = ((pixels >= 0) & (pixels < [camera.width, camera.height])).all(axis=1)
    image = np.zeros((camera.height, camera.width))
    np.add.at(image, (pixels[inside, 1], pixels[inside, 0]), 1.0)
    return float(image.var())


@pytest.mark.parametrize("scene", SCENES)
def test_true_rotation_sharpens_the_image_and_wrong_ones_less(scene: str):
    camera = SimulationConfig(width=240, height=180).camera()
    motion = hand_motion(2.0, seed=7)
    events = simulate(camera, motion, 0.08, scene=scene, noise_hz=1.0)
    t = np.unique(events.t) / 1e9

    def variance(bias=(0.0, 0.0, 0.0), sign: float = 1.0) -> float:
        offset = np.asarray(bias)
        wrong = TrackMotion(t, sign * motion.angular_velocity(t) + offset)
        orientation = integrate_orientation(wrong, t)
        index = np.searchsorted(t, events.t / 1e9)
        middle = orientation[len(t) // 2]
        return iwe_variance(camera, events, middle.T @ orientation[index])

    sharp = variance()
    raw = variance(sign=0.0)
    assert sharp > 2.0 * raw
    assert sharp > 1.5 * variance(sign=-1.0)
    for axis in range(3):
        for step in (-0.5, 0.5):
            assert sharp > 1.02 * variance(bias=step * np.eye(3)[axis])


@pytest.mark.parametrize("scene_name", ["plane", "layers"])
def test_polarities_before_a_plane_add_up_too(camera: Camera, scene_name: str):
    scene, motion, threshold = paint_scene(scene_name, camera, 5), hand_held(), 0.03
    assert isinstance(scene, LayeredScene)
    options = {**QUIET, "contrast_threshold": threshold, "scene": scene}
    events = simulate_layers(camera, motion, 0.2, **options)
    total = np.zeros((camera.height, camera.width))
    np.add.at(total, (events.y, events.x), threshold * (2.0 * events.p - 1.0))
    orientations, positions = Trajectory(motion, 0.2).poses(np.array([0.0, 0.2]))
    first, last = (
        scene.log_intensity(camera.bearings, *pose)
        for pose in zip(orientations, positions, strict=True)
    )
    assert np.abs(total - (last - first)).max() < 2.0 * threshold + 1e-4
    assert np.abs(last - first).max() > 0.5


@pytest.mark.parametrize("scene_name", ["plane", "layers"])
def test_true_depth_and_motion_sharpen_the_image_and_wrong_ones_less(scene_name: str):
    config = SimulationConfig(
        width=160, height=120, scene=scene_name, normal=(0.3, 0.2, 1.0), duration_s=0.3,
        peak_rad_s=(2.0, 2.0, 2.0), peak_m_s=(1.0, 1.0, 1.0), contrast_threshold=0.15,
    )  # fmt: skip
    simulation = Simulation(config)
    camera, start_s, stop_s = simulation.camera, 0.1, 0.16
    events = Events.concatenate(list(simulation.events()))
    first, last = np.searchsorted(events.t, [round(start_s * 1e9), round(stop_s * 1e9)])
    events = events[int(first) : int(last)]
    assert len(events) > 3000
    index = ((events.t / 1e9 - start_s) / 1e-3).astype(int)
    times = np.linspace(start_s + 0.5e-3, stop_s - 0.5e-3, 60)
    depth = np.stack([simulation.depth_image(t) for t in times.tolist()])[index, events.y, events.x]
    rays = camera.bearings[events.y, events.x].astype(np.float64)
    points = rays / rays[:, 2:] * depth[:, None]

    def variance(angular: float = 1.0, linear: float = 1.0, far: float = 1.0) -> float:
        omega = angular * simulation.motion.angular_velocity(times)
        velocity = linear * simulation.motion.linear_velocity(times)
        shifted = TrackMotion(times - times[0], omega, velocity)
        orientation, position = Trajectory(shifted, float(times[-1] - times[0])).poses(
            np.clip(events.t / 1e9 - times[0], 0.0, times[-1] - times[0])
        )
        world = np.einsum("nij,nj->ni", orientation, far * points) + position
        (turned,), (moved,) = Trajectory(shifted, 0.059).poses(np.array([0.03]))
        pixels = np.rint(camera.project((world - moved) @ turned)).astype(int)
        inside = ((pixels >= 0) & (pixels < [camera.width, camera.height])).all(axis=1)
        image = np.zeros((camera.height, camera.width))
        np.add.at(image, (pixels[inside, 1], pixels[inside, 0]), 1.0)
        return float(image.var())

    sharp = variance()
    assert sharp > 1.5 * variance(0.0, 0.0)
    for wrong in ((1.0, 0.0), (0.0, 1.0), (1.0, -1.0), (1.0, 1.0, 2.0), (1.0, 1.0, 0.5)):
        assert sharp > 1.1 * variance(*wrong)


def test_edges_on_a_plane_move_with_its_analytic_flow(camera: Camera):
    # One bright half of the plane, moving across the image by pure translation: the edge passes a
    # pixel when x = X/Z says so.
    scene = make_layers("plane", pixel_rad=0.015, distance_m=2.0)
    layer = scene.layers[0]
    half = np.zeros_like(layer.paintings[0])
    half[..., 1] = 1.0
    columns = np.arange(len(half))
    half[:, columns < len(half) // 2, 0] = 1.0  # columns from 0 on: to the right of the start
    halves = tuple(half[:: 2**k, :: 2**k].copy() for k in range(len(layer.paintings)))
    scene = LayeredScene("half", (replace(layer, paintings=halves),), 1e-6)
    speed, rise = 1.5, -0.8  # to the right and away from the plane
    motion = ConstantMotion((0.0, 0.0, 0.0), (speed, 0.0, rise))
    options = {**QUIET, "contrast_threshold": 0.05, "scene": scene}
    events = simulate_layers(camera, motion, 0.4, **options)
    edge_m = -0.5 * layer.texel_m  # between the last dark node and the first bright one
    bearings = camera.bearings.astype(np.float64)
    checked = 0
    for row in (20, 36, 60):
        for column in range(10, 46, 4):
            here = events.t[(events.x == column) & (events.y == row)] / 1e9
            slope = bearings[row, column, 0] / bearings[row, column, 2]
            # edge - speed t = slope (distance - rise t)
            expected = (edge_m - slope * 2.0) / (speed - slope * rise)
            if 0.02 < expected < 0.38:
                flow_px_s = camera.K[0, 0] * speed / 2.0
                assert 19 <= len(here) <= 21  # the edge is 1 high
                assert here.mean() == pytest.approx(expected, abs=0.3 / flow_px_s)
                checked += 1
    assert checked > 8


def test_steps_are_short_in_pixels_when_the_camera_translates_near_a_plane(camera: Camera):
    from event_binning_grad.simulate import sensor

    scene = paint_scene("plane", camera, 0, distance_m=0.4)
    assert isinstance(scene, LayeredScene)
    motion = ConstantMotion((0.5, 0.0, 1.0), (1.0, 0.5, 1.0))
    path = Trajectory(motion, 0.3)
    scene.check_approach(path)
    taken: list[np.ndarray] = []
    original = sensor._step_times
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensor, "_step_times", lambda *a: taken.append(original(*a)) or taken[-1])
        simulate_layers(camera, motion, 0.3, scene=scene, **QUIET)
    t = np.unique(np.concatenate(taken))
    orientations, positions = path.poses(t)
    longest = 0.0
    for k in range(len(t) - 1):
        depth = scene.depth(camera.bearings, orientations[k], positions[k])
        rays = camera.bearings.astype(np.float64)
        points = rays / rays[..., 2:] * depth[..., None] @ orientations[k].T + positions[k]
        moved = camera.project((points - positions[k + 1]) @ orientations[k + 1])
        start = np.stack(np.meshgrid(np.arange(camera.width), np.arange(camera.height)), axis=-1)
        longest = max(longest, float(np.linalg.norm(moved - start, axis=2).max()))
    assert 0.2 < longest < 0.6  # half of the narrowest pixel's angle; the others are wider


def test_a_camera_that_comes_too_near_is_refused(camera: Camera, layers: LayeredScene):
    motion = ConstantMotion((0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    with pytest.raises(ConfigError, match=r"of the plane at 0\.548 m after 0\.54") as caught:
        simulate_camera(camera, motion, 1.0, scene=layers)
    assert "\n" not in str(caught.value)


def test_layers_repeat_at_any_number_of_threads(camera: Camera, layers: LayeredScene):
    def run(threads: int) -> Events:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            return simulate_layers(camera, hand_held(), 0.1, scene=layers)
        finally:
            numba.set_num_threads(before)

    one, many = run(1), run(numba.get_num_threads())
    assert len(one) > 1000
    for name in ("t", "x", "y", "p"):
        assert (getattr(one, name) == getattr(many, name)).all()


def test_noise_may_be_a_share_of_all_events(camera: Camera, texture: Scene):
    options = {**QUIET, "contrast_threshold": 0.1, "scene": texture}
    clean = simulate(camera, ConstantMotion((0.0, 3.0, 0.0)), 0.2, **options)
    noisy = simulate(camera, ConstantMotion((0.0, 3.0, 0.0)), 0.2, noise_share=0.3, **options)
    assert (len(noisy) - len(clean)) / len(noisy) == pytest.approx(0.3, abs=0.02)


def test_refractory_period_keeps_events_of_a_pixel_apart(camera: Camera, texture: Scene):
    motion = ConstantMotion((0.0, 8.0, 2.0))
    options = {**QUIET, "contrast_threshold": 0.05, "refractory_s": 2e-3}
    blind = simulate(camera, motion, 0.1, scene=texture, **options)
    free = simulate(camera, motion, 0.1, scene=texture, **{**options, "refractory_s": 0.0})
    assert len(blind) < 0.7 * len(free)
    pixel = blind.y.astype(np.int64) * camera.width + blind.x
    order = np.lexsort((blind.t, pixel))
    gap = np.diff(blind.t[order])[np.diff(pixel[order]) == 0]
    assert gap.min() >= 2_000_000 - 1_000  # times are cut to microseconds


def test_events_lie_inside_and_in_order(camera: Camera, texture: Scene):
    last_ns, total = 0, 0
    options = {"noise_hz": 5.0, "hot_pixels": 3, "contrast_threshold": 0.1}
    for events in simulate_rotation(camera, hand_motion(1.0), 0.23, scene=texture, **options):
        assert (events.width, events.height) == (camera.width, camera.height)
        assert events.t[0] >= last_ns
        assert (np.diff(events.t) >= 0).all()
        assert (events.t % 1000 == 0).all()
        assert events.x.max() < camera.width
        assert events.y.max() < camera.height
        assert events.p.max() == 1
        last_ns, total = int(events.t[-1]), total + len(events)
    assert 225_000_000 < last_ns < 230_000_000
    assert total > 1000


def test_noise_has_its_rate_and_no_pattern(camera: Camera, texture: Scene):
    still = ConstantMotion((0.0, 0.0, 0.0))
    assert len(simulate(camera, still, 1.0, scene=texture, **QUIET)) == 0
    events = simulate(camera, still, 2.0, scene=texture, **{**QUIET, "noise_hz": 20.0})
    expected = 20.0 * 2.0 * camera.width * camera.height
    assert abs(len(events) - expected) < 5.0 * math.sqrt(expected)
    for values, size in ((events.x, camera.width), (events.y, camera.height), (events.p, 2)):
        counts = np.bincount(values, minlength=size)
        chi = ((counts - len(events) / size) ** 2 / (len(events) / size)).sum()
        assert chi < size + 5.0 * math.sqrt(2.0 * size)


def test_hot_pixels_fire_at_their_rate(camera: Camera, texture: Scene):
    options = {**QUIET, "hot_pixels": 5, "hot_pixel_hz": 300.0}
    events = simulate(camera, ConstantMotion((0.0, 0.0, 0.0)), 2.0, scene=texture, **options)
    counts = np.unique(events.y.astype(int) * camera.width + events.x, return_counts=True)[1]
    assert len(counts) == 5
    assert (np.abs(counts - 600) < 5.0 * math.sqrt(600)).all()


def test_same_seed_same_events_at_any_number_of_threads(camera: Camera):
    def run(threads: int, seed: int) -> Events:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            motion = hand_motion(1.0, seed=1)
            return simulate(camera, motion, 0.15, seed=seed, noise_hz=3.0)
        finally:
            numba.set_num_threads(before)

    one, other = run(1, 0), run(1, 1)
    many = run(numba.get_num_threads(), 0)
    assert len(one) > 500
    for name in ("t", "x", "y", "p"):
        assert (getattr(one, name) == getattr(many, name)).all()
    assert len(one) != len(other) or (one.t != other.t).any()


def test_storage_grows_without_losing_events(camera: Camera, texture: Scene, monkeypatch):
    from event_binning_grad.simulate import sensor

    motion, options = hand_motion(1.0), {**QUIET, "contrast_threshold": 0.02}
    ample = simulate(camera, motion, 0.1, scene=texture, **options)
    original = sensor._Pixels.__init__

    def cramped(self, *args) -> None:
        original(self, *args)
        self.capacity = 1

    monkeypatch.setattr(sensor._Pixels, "__init__", cramped)
    grown = simulate(camera, motion, 0.1, scene=texture, **options)
    assert (ample.t == grown.t).all()
    assert (ample.x == grown.x).all()


def test_pixels_beyond_the_lens_model_see_nothing(texture: Scene):
    k = np.array([[60.0, 0.0, 48.0], [0.0, 60.0, 36.0], [0.0, 0.0, 1.0]])
    folded = Camera(96, 72, k, "plumb_bob", np.array([-0.35, 0.0, 0.0, 0.0, 0.0]))
    unseen = np.isnan(folded.bearings[..., 0])
    assert unseen.any()
    assert not unseen.all()
    events = simulate(folded, ConstantMotion((1.0, 3.0, 0.0)), 0.1, scene=texture, **QUIET)
    assert len(events) > 500
    assert not unseen[events.y, events.x].any()


def test_progress_reports_the_time_simulated(camera: Camera, texture: Scene):
    seen: list[float] = []
    simulate(camera, ConstantMotion((0.0, 1.0, 0.0)), 0.12, scene=texture, progress=seen.append)
    assert seen == pytest.approx([0.05, 0.1, 0.12])


# ------------------------------------------------------------------------------------- recordings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration_s": 0.0}, "duration_s is 0.0; expected a finite number above 0"),
        ({"width": 4000}, "width is 4000; expected 2 to 2048 pixels"),
        ({"scene": "forest"}, "scene 'forest' is unknown"),
        ({"contrast_threshold": 0.0}, "contrast_threshold is 0.0; expected 0.01 to 10"),
        ({"noise_hz": math.nan}, "noise_hz is nan"),
        ({"peak_rad_s": (1.0, 2.0)}, "expected three rates"),
        ({"ground_truth_hz": 1.0}, "ground_truth_hz is 1.0; expected 20 to 10000"),
        ({"seed": -1}, "must not be negative"),
        ({"noise_share": 1.0}, "noise_share is 1.0; expected 0 to 0.9"),
        ({"peak_m_s": (1.0, 0.0, 0.0)}, "infinitely far scene 'texture' does not show"),
        ({"scene": "plane", "peak_m_s": (math.nan, 0.0, 0.0)}, "expected three speeds"),
        ({"scene": "plane", "distance_m": -1.0}, "distance_m is -1.0"),
        ({"scene": "layers", "front_shares": (1.5,)}, "front_shares is"),
        ({"frequency_hz": (2.0, 1.0)}, "expected lowest and highest"),
        ({"depth_hz": 30.0}, "'texture' is infinitely far away"),
        ({"imu_hz": -1.0}, "imu_hz is -1.0; expected 0 to 10000"),
        ({"imu_noise_rad_s": math.nan}, "imu_noise_rad_s is nan"),
        ({"imu_bias_rad_s": (0.0, 0.0, 11.0)}, "expected three rates in -10 to 10"),
    ],
)
def test_bad_configurations_are_refused(change: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        SimulationConfig(**change)


def test_bad_sensor_parameters_are_refused_before_the_first_event(camera: Camera):
    still = ConstantMotion((0.0, 0.0, 0.0))
    with pytest.raises(ConfigError, match="refractory_s is -1"):
        simulate_rotation(camera, still, 1.0, refractory_s=-1.0)
    with pytest.raises(ConfigError, match="duration_s is inf"):
        simulate_rotation(camera, still, math.inf)


def test_written_recording_reads_back_event_by_event(tmp_path: Path):
    config = small_config(duration_s=0.3, noise_hz=5.0, contrast_threshold=0.15)
    summary = write_simulation(tmp_path / "sim", config)
    recording = open_recording(tmp_path / "sim")
    decoder, parts, packets = PacketDecoder(), [], []
    for packet in recording.packets():
        assert isinstance(packet, EventPacket)
        packets.append(packet)
        decoded = decoder.decode(packet)
        assert decoded.discontinuity is None
        parts.append(decoded.events)
    events = Events.concatenate(parts)
    expected = simulate(
        config.camera(), config.motion(), config.duration_s,
        scene=config.scene, seed=config.seed, **config.sensor(),
    )  # fmt: skip
    assert summary.events == len(events) == len(expected)
    assert summary.packets == len(packets)
    assert (np.diff(events.t) == np.diff(expected.t)).all()
    for name in ("x", "y", "p"):
        assert (getattr(events, name) == getattr(expected, name)).all()
    assert [p.seq for p in packets] == list(range(len(packets)))
    start_ns = config.start_s * 10**9
    stamps = [p.header.stamp.sec * 10**9 + p.header.stamp.nanosec for p in packets]
    assert stamps[0] == start_ns + expected.t[0]
    assert np.diff(stamps).max() < 10_000_000


def test_written_recording_carries_calibration_and_truth(tmp_path: Path):
    config = small_config(duration_s=0.2)
    write_simulation(tmp_path / "sim", config)
    recording = open_recording(tmp_path / "sim")
    info = recording.calibration()
    assert info is not None
    read, made = Camera.from_camera_info(info), config.camera()
    assert (read.width, read.height, read.distortion_model) == (96, 72, "plumb_bob")
    assert np.allclose(read.K, made.K)
    assert np.allclose(read.d, made.d)
    truth = recording.ground_truth()
    assert truth is not None
    start_ns = config.start_s * 10**9
    assert abs(int(truth.t_ns[0]) - start_ns) <= 2_000_000
    t_s = (truth.t_ns - start_ns) / 1e9
    assert np.allclose(truth.angular_velocity, config.motion().angular_velocity(t_s), atol=1e-9)


def test_existing_path_is_not_overwritten_and_a_failed_one_is_removed(tmp_path: Path):
    (tmp_path / "here").mkdir()
    config = small_config(duration_s=0.2)
    with pytest.raises(RecordingError, match="exists already"):
        write_simulation(tmp_path / "here", config)

    def stop(seconds: float) -> None:
        if seconds > 0.1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_simulation(tmp_path / "new", config, progress=stop)
    assert not (tmp_path / "new").exists()


def test_another_motion_may_drive_the_recording(tmp_path: Path):
    still = SineMotion(np.zeros((3, 1)), np.ones((3, 1)), np.zeros((3, 1)))
    config = small_config(duration_s=0.1, noise_hz=10.0)
    summary = write_simulation(tmp_path / "still", config, motion=still)
    assert summary.events == pytest.approx(10.0 * 0.1 * 96 * 72, rel=0.1)
    assert summary.events_per_second == pytest.approx(summary.events / 0.1)


def test_a_simulation_that_would_look_past_the_plane_is_refused():
    config = small_config(scene="plane", peak_rad_s=(9.0, 9.0, 9.0))
    with pytest.raises(ConfigError, match=r"looks past the plane after .* s; expected") as caught:
        Simulation(config)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="'shapes' is infinitely far away and has no depth"):
        Simulation(small_config(scene="shapes")).depth_image(0.0)


def test_written_recording_holds_depth_range_and_gyroscope(tmp_path: Path):
    config = small_config(
        scene="layers", duration_s=0.3, peak_rad_s=(1.0, 1.0, 1.0), peak_m_s=(0.4, 0.4, 0.4),
        depth_hz=20.0, range_hz=100.0, imu_hz=500.0,
        imu_noise_rad_s=0.01, imu_bias_rad_s=(0.5, 0.0, -0.2),
    )  # fmt: skip
    write_simulation(tmp_path / "sim", config)
    simulation, recording = Simulation(config), open_recording(tmp_path / "sim")
    assert isinstance(recording, BagRecording)
    start_ns = config.start_s * 10**9
    truth = recording.ground_truth()
    assert truth is not None
    assert truth.linear_velocity is not None
    t_s = (truth.t_ns - start_ns) / 1e9
    assert np.allclose(truth.linear_velocity, simulation.motion.linear_velocity(t_s), atol=1e-9)
    images = list(recording.depth_images())
    assert [stamp - start_ns for stamp, _ in images] == [k * 50_000_000 for k in range(7)]
    for stamp, image in images:
        expected = simulation.depth_image((stamp - start_ns) / 1e9)
        assert (image == expected).all()
    assert images[0][1].max() > 1.9 * images[0][1].min()  # two layers
    ranges = list(recording.ranges())
    assert len(ranges) == 31
    for stamp, value in ranges:
        assert value == pytest.approx(simulation.range_m((stamp - start_ns) / 1e9), rel=1e-6)
    stamps, omega = zip(*recording.imu(), strict=True)
    assert len(stamps) == 151
    error = np.array(omega) - simulation.motion.angular_velocity(
        (np.array(stamps) - start_ns) / 1e9
    )
    assert error.mean(axis=0) == pytest.approx((0.5, 0.0, -0.2), abs=0.004)
    assert error.std(axis=0) == pytest.approx(0.01, rel=0.2)
    assert recording.unusable() == {"unreadable_messages": 0, "unusable_readings": 0}


def test_the_command_line_makes_a_scene_with_depth(tmp_path: Path, capsys):
    command = ["simulate", "--duration", "0.1", "--size", "64x48", "--scene", "plane"]
    options = (
        "--distance 0.8 --normal 0.2 0 1 --speed 0.3 0 0 --peak 0 0 1 --range-topic --hot-pixels 2"
    )
    assert main([*command, *options.split(), "--out", str(tmp_path / "sim")]) == 0
    recording = open_recording(tmp_path / "sim")
    assert isinstance(recording, BagRecording)
    assert next(recording.ranges())[1] == pytest.approx(0.8)
    assert list(recording.depth_images()) == []
    truth = recording.ground_truth()
    assert truth is not None
    assert truth.linear_velocity is not None
    assert 0.1 < np.abs(truth.linear_velocity[:, 0]).max() <= 0.3001


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--distance 2", "--distance is of scenes with depth, but the scene is 'texture'"),
        ("--scene plane --peak 9 9 9 --duration 3", "looks past the plane"),
        ("--depth-topic", "infinitely far away"),
        ("--scene plane --normal 1 0 0", "at most 80 degrees"),
    ],
)
def test_the_command_line_refuses_in_one_line(tmp_path: Path, capsys, options: str, message: str):
    assert main(["simulate", "--out", str(tmp_path / "sim"), *options.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "sim").exists()
