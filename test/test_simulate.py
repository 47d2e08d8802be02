"""The simulator against its own truth: geometry, photometry, noise, and repeatability."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from event_binning_grad.errors import ConfigError, RecordingError
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.types import EventPacket, Events
from event_binning_grad.geometry.camera import Camera
from event_binning_grad.simulate import (
    SCENES,
    ConstantMotion,
    Motion,
    Scene,
    SimulationConfig,
    SineMotion,
    TrackMotion,
    hand_motion,
    integrate_orientation,
    make_scene,
    sample_ground_truth,
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


def simulate(camera: Camera, motion: Motion, duration_s: float, **options) -> Events:
    return Events.concatenate(list(simulate_rotation(camera, motion, duration_s, **options)))


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
