"""Other sensors of a recording: read, moved and handed to the pipeline in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from event_binning_grad.config import PipelineConfig
from event_binning_grad.errors import RecordingError
from event_binning_grad.evaluation.sensor_feed import (
    SensorFeed,
    depth_source,
    integrated_poses,
    moving_plane,
    open_feed,
    parts,
    plane_images,
)
from event_binning_grad.events.ground_truth import GroundTruth, PoseTrack, read_pose_track
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.types import Events
from event_binning_grad.geometry.depth import DepthImage, Plane
from event_binning_grad.pipeline import Pipeline
from event_binning_grad.simulate import Simulation, SimulationConfig, write_simulation

S = 1_000_000_000


class Recorder:
    """A pipeline that keeps what it is given."""

    def __init__(self) -> None:
        self.got: list[tuple[str, int]] = []

    def push_depth(self, stamp_ns: int, value: Any) -> None:
        self.got.append(("depth", stamp_ns))

    def push_imu(self, stamp_ns: int, value: Any) -> None:
        self.got.append(("imu", stamp_ns))


@pytest.fixture(scope="module")
def config() -> SimulationConfig:
    return SimulationConfig(
        0.3, 64, 48, scene="plane", normal=(0.3, -0.2, 1.0), peak_rad_s=(2.0, 2.0, 2.0),
        peak_m_s=(1.0, 1.0, 1.0), frequency_hz=(0.7, 2.0), depth_hz=50.0, imu_hz=200.0,
        range_hz=100.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bag(config: SimulationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("feed") / "bag"
    write_simulation(path, config)
    return path


def test_readings_come_merged_and_a_little_ahead_of_the_events():
    feed = SensorFeed(
        {
            "depth": iter([(0, "a"), (S, "b"), (3 * S, "c")]),
            "imu": iter([(S // 2, "d"), (S + S // 20, "e"), (2 * S, "f")]),
        }
    )
    recorder = Recorder()
    feed.push_until(cast(Pipeline, recorder), S)
    expected = [("depth", 0), ("imu", S // 2), ("depth", S), ("imu", S + S // 20)]
    assert recorder.got == expected
    feed.push_until(cast(Pipeline, recorder), 4 * S)
    assert recorder.got == [*expected, ("imu", 2 * S), ("depth", 3 * S)]


def test_blocks_of_events_are_cut_into_pieces_of_ten_milliseconds():
    t = np.array([0, 4, 9, 10, 30, 31, 65], np.int64) * 1_000_000
    none = np.zeros(len(t), np.uint16)
    events = Events(t, none, none, np.zeros(len(t), np.uint8), 4, 4)
    found = [(at_ns, part) for at_ns, part in parts(events) if isinstance(part, Events)]
    assert [at_ns // 1_000_000 for at_ns, _ in found] == [0, 10, 30, 65]
    assert np.array_equal(np.concatenate([part.t for _, part in found]), t)
    assert list(parts(Events.empty(4, 4))) == []


def test_a_plane_is_seen_as_the_true_depth(config: SimulationConfig):
    """The true velocities, integrated, move the plane; its images are those of the simulation."""
    simulation = Simulation(config)
    poses = integrated_poses(simulation.ground_truth())
    assert poses is not None
    plane = Plane(*simulation.plane(0.0))
    seen = list(plane_images(moving_plane(plane, poses, 0), simulation.camera, 0))
    assert [stamp_ns for stamp_ns, _ in seen][:3] == [0, S // 100, S // 50]
    for stamp_ns, image in seen[:30:10]:
        assert np.allclose(image, simulation.depth_image(stamp_ns / S), rtol=2e-3)


def test_without_linear_velocity_there_are_no_poses():
    t_ns = np.arange(5) * S
    assert integrated_poses(GroundTruth(t_ns, np.zeros((5, 3)), None, "test")) is None


def test_poses_must_cover_the_start():
    track = PoseTrack(np.array([S, 2 * S]), np.tile(np.eye(3), (2, 1, 1)), np.zeros((2, 3)))
    plane = Plane(np.array([0.0, 0.0, 1.0]), 2.0)
    assert moving_plane(plane, track, S - 50_000_000)(3 * S) is None
    with pytest.raises(RecordingError, match=r"poses cover 1.000 to 2.000 s, .* at 0.500 s"):
        moving_plane(plane, track, S // 2)


def test_a_pose_track_moves_points(tmp_path: Path):
    """The camera goes 1 m along the world's x and turns by 90 degrees about its z."""
    half = np.sqrt(0.5)
    rows = [
        [0, 0, 0, 0, 0, 0, 0, 1],
        [1, 1, 0, 0, 0, 0, half, half],
        *([t, 1, 0, 0, 0, 0, half, half] for t in (2, 3)),
    ]
    np.savetxt(tmp_path / "groundtruth.txt", rows)
    R, t = read_pose_track(tmp_path / "groundtruth.txt").relative(0, S)
    assert np.allclose(R @ np.array([1.0, 0.0, 5.0]) + t, [0.0, 0.0, 5.0])
    assert np.allclose(R @ np.array([1.0, 2.0, 5.0]) + t, [2.0, 0.0, 5.0])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("constant", float), ("plane", Plane), ("image", DepthImage), ("range", float)],
)
def test_depth_is_known_at_a_time(bag: Path, config: SimulationConfig, kind: str, expected: type):
    recording, simulation = open_recording(bag), Simulation(config)
    start_ns = config.start_s * S
    settings = PipelineConfig(
        motion_model="full", depth=kind, depth_m=1.0, depth_plane=(0.3, -0.2, 1.0, 1.0)
    )
    at = depth_source(recording, settings, simulation.camera, start_ns, recording.ground_truth())
    found = at(start_ns + S // 10)
    assert isinstance(found, expected)
    true = simulation.range_m(0.1)
    if isinstance(found, DepthImage):
        assert found.metres[24, 32] == pytest.approx(true, rel=0.02)
    elif isinstance(found, Plane):
        normal, distance_m = simulation.plane(0.1)
        assert np.allclose(found.normal, normal, atol=1e-3)
        assert found.distance_m == pytest.approx(distance_m, rel=1e-3)
    elif kind == "range":
        assert found == pytest.approx(true, rel=1e-3)


def test_nothing_is_fed_where_nothing_is_needed(bag: Path, config: SimulationConfig):
    recording, camera = open_recording(bag), config.camera()
    feeding = open_feed(recording, PipelineConfig(), camera, 0, None)
    assert feeding.feed is None
    assert feeding.config == PipelineConfig()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"motion_model": "full", "depth": "image"}, "no depth found"),
        ({"motion_model": "full", "depth": "range"}, "expected a topic of sensor_msgs/Range"),
        ({"imu": "prior"}, "no gyroscope found"),
    ],
)
def test_what_a_recording_lacks_is_said(settings: dict[str, str], message: str, tmp_path: Path):
    (tmp_path / "events.txt").write_text("0.0 1 1 1\n")
    recording = open_recording(tmp_path)
    with pytest.raises(RecordingError, match=message):
        open_feed(recording, PipelineConfig(**settings), SimulationConfig().camera(), 0, None)  # type: ignore[arg-type]
