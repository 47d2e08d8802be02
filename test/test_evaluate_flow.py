"""evaluate --flow, run as a user runs it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_harness import (
    EQUIDISTANT,
    START_S,
    T_OFFSET_US,
    write_calibration,
    write_camchain,
    write_dsec,
    write_flow_npz,
    write_frame_times,
    write_mvsec,
    write_png,
)
from scipy.spatial.transform import Rotation

from event_binning_grad import cli
from event_binning_grad.config import PipelineConfig
from event_binning_grad.errors import ConfigError, RecordingError
from event_binning_grad.evaluation.evaluate_flow import evaluate_flow
from event_binning_grad.evaluation.flow_metrics import event_pixels, flow_error, known, pooled
from event_binning_grad.evaluation.flow_score import FlowScorer
from event_binning_grad.evaluation.true_flow import SimulatedTruth, truth_hint
from event_binning_grad.events.bag_writer import write_bag
from event_binning_grad.events.bags import BagRecording
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.repacking import Stretch
from event_binning_grad.events.types import EventPacket, Events
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.motion_field import undistorted_bearings
from event_binning_grad.pipeline import Pipeline
from event_binning_grad.simulate import (
    ConstantMotion,
    Simulation,
    SimulationConfig,
    make_scene,
    simulate_rotation,
    write_simulation,
)

KEYS = {
    "recording", "events", "duration_s", "fields", "windows_by_status", "undistorted_pixels",
    "flow_truth", "epe_px", "epe_px_s", "angular_error_deg", "outliers_1px_percent",
    "outliers_3px_percent", "true_displacement_px", "pixels_compared", "moving_epe_px", "density",
    "normal_flow_share", "flow_warp_loss_mean", "flow_warp_loss_min", "true_flow_warp_loss_mean",
    "fields_per_second", "field_ms_p50", "field_ms_p99", "gradient", "flow_rate_hz",
    "outliers_2px_percent", "dense_epe_px", "load", "clock", "decoder", "unusable",
}  # fmt: skip

SIZE = {"width": 160, "height": 120, "duration_s": 0.3, "noise_hz": 2.0, "seed": 4}
ROTATION = SimulationConfig(
    **SIZE, peak_rad_s=(2.0, 2.0, 2.0), frequency_hz=(0.5, 1.0), flow_hz=50.0
)
OBJECTS = SimulationConfig(
    **SIZE, scene="objects", peak_rad_s=(1.0, 1.0, 1.0), peak_m_s=(0.3, 0.3, 0.3),
    frequency_hz=(0.8, 1.5), contrast_threshold=0.2, flow_hz=50.0, depth_hz=100.0,
)  # fmt: skip


def write(folder: Path, config: SimulationConfig) -> Path:
    write_simulation(folder / "bag", config)
    return folder / "bag"


@pytest.fixture(scope="module")
def rotation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rotation"), ROTATION)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("objects"), OBJECTS)


@pytest.fixture(scope="module")
def uncalibrated(rotation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("uncalibrated") / "bag"
    write_bag(path, BagRecording(rotation).packets())
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["evaluate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def files(rotation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run of the command wrote: figures, rows, fields and a picture."""
    folder = tmp_path_factory.mktemp("files")
    options = [f"--json={folder}/f.json", f"--csv={folder}/f.csv", f"--flow-out={folder}/f.npz"]
    assert cli.main(["evaluate", str(rotation), "--flow", *options, f"--flow-plot={folder}"]) == 0
    return folder


def test_figures_of_a_simulated_rotation(files: Path):
    figures = json.loads((files / "f.json").read_text())
    assert set(figures) >= KEYS
    assert figures["undistorted_pixels"] is True
    assert figures["fields"] >= 7
    assert figures["true_displacement_px"] > 2.0
    assert figures["epe_px"] < 0.5 * figures["true_displacement_px"]
    assert figures["epe_px_s"] > figures["epe_px"]
    assert figures["flow_warp_loss_mean"] > 1.2
    assert figures["true_flow_warp_loss_mean"] > 1.2
    assert 0.5 < figures["density"] <= 1.0
    percent = [figures[f"outliers_{px}px_percent"] for px in (1, 2, 3)]
    assert 100 >= percent[0] >= percent[1] >= percent[2] >= 0
    assert figures["moving_epe_px"] is None  # nothing does
    # Where there are no events, too: all pixels of all fields.
    assert figures["dense_pixels_compared"] > 2 * figures["pixels_compared"]
    assert figures["dense_pixels_compared"] <= figures["fields"] * 120 * 160
    assert figures["dense_epe_px"] < 0.5 * figures["dense_true_displacement_px"]


def test_every_event_is_counted_once(files: Path):
    figures = json.loads((files / "f.json").read_text())
    load = figures["load"]
    reasons = ("outside_roi", "masked", "refractory", "background", "decimated", "over_cap", "kept")
    assert load["events"] == sum(load[f"{reason}_events"] for reason in reasons)
    assert figures["events"] == load["events"] + figures["uncalibrated_events"]
    assert figures["events"] == figures["decoder"]["events"]
    ends = ("window_events", "skipped_events", "discarded_events", "refused_events")
    assert load["kept_events"] == sum(figures[name] for name in ends)
    assert 0 < figures["used_events"] <= figures["window_events"]
    clock = figures["clock"]
    assert clock["learnt"]
    assert 0 < clock["packets"] <= figures["decoder"]["packets"]
    assert (clock["resets"], clock["steps"]) == (0, 0)
    assert clock["offset_s"] == pytest.approx(ROTATION.start_s, abs=20)


def test_rows_and_fields_are_of_the_same_windows(files: Path):
    figures = json.loads((files / "f.json").read_text())
    rows = list(csv.DictReader((files / "f.csv").open()))
    content = np.load(files / "f.npz")
    assert len(rows) == len(content["stamp_s"]) == sum(figures["windows_by_status"].values())
    assert content["flow"].shape == (len(rows), 120, 160, 2)
    stamps = content["stamp_s"]
    assert stamps == pytest.approx([float(row["stamp_s"]) for row in rows], abs=1e-6, rel=0)
    assert (np.diff(stamps) > 0).all()
    # The recording's own clock, which is not the sensor's.
    assert (stamps >= ROTATION.start_s).all()
    assert (stamps <= ROTATION.start_s + ROTATION.duration_s).all()
    for start_s, stamp_s, end_s in zip(
        content["window_start_s"], stamps, content["window_end_s"], strict=True
    ):
        assert start_s < stamp_s < end_s
    assert content["status"].tolist() == [row["status"] for row in rows]
    for row, flow in zip(rows, content["flow"], strict=True):
        assert np.isfinite(flow).any() == (row["status"] == "ok")
    settled = np.isfinite(content["flow"][..., 0])
    assert (settled == (content["confidence"] > 0)).mean() > 0.999
    assert content["confidence"].max() <= 1
    assert not content["normal_flow"][~settled].any()
    shares = [float(row["normal_share"]) for row in rows if row["normal_share"]]
    assert content["normal_flow"].any() == any(shares)


def test_the_error_is_that_of_the_kept_fields_against_the_simulation(files: Path):
    """Truth, event pixels and errors once more, from the simulation itself."""
    content, simulation = np.load(files / "f.npz"), Simulation(ROTATION)
    events = Events.concatenate(list(simulation.events()))
    table = simulation.camera.undistorted_pixels
    errors = []
    for stamp_s, start_s, end_s, flow in zip(
        *(content[name] for name in ("stamp_s", "window_start_s", "window_end_s", "flow")),
        strict=True,
    ):
        first, last = (round((s - ROTATION.start_s) * 1e9) for s in (start_s, end_s))
        part = slice(*np.searchsorted(events.t, [first - 500, last + 500]))
        where = event_pixels(table[events.y[part], events.x[part]], 160, 120)
        truth = simulation.flow_image(stamp_s - ROTATION.start_s)
        errors.append(flow_error(flow, truth, end_s - start_s, where))
    error, figures = pooled(errors), json.loads((files / "f.json").read_text())
    assert error is not None
    assert figures["epe_px"] == pytest.approx(error.epe_px, abs=0.03)
    assert figures["true_displacement_px"] == pytest.approx(error.true_px, rel=0.02)
    assert figures["pixels_compared"] == pytest.approx(error.pixels, rel=0.01)


def test_the_picture_is_drawn(files: Path):
    import cv2

    picture = cv2.imread(str(files / "flow.png"))
    assert picture is not None
    assert picture.shape[0] > 300
    hue = picture.astype(int).max(axis=2) - picture.astype(int).min(axis=2)
    assert (hue > 40).mean() > 0.1  # flow and truth are in colour


def test_the_same_figures_every_time(rotation: Path, files: Path, tmp_path: Path):
    again = evaluate_flow(
        rotation, PipelineConfig(estimate="flow"), flow_out=tmp_path / "again.npz"
    )
    first, second = np.load(files / "f.npz"), np.load(tmp_path / "again.npz")
    np.testing.assert_array_equal(first["flow"], second["flow"])
    assert again.summary()["epe_px"] == json.loads((files / "f.json").read_text())["epe_px"]


def test_fields_are_those_of_the_pipeline(rotation: Path, files: Path):
    recording = BagRecording(rotation)
    info = recording.calibration()
    assert info is not None
    pipeline = Pipeline(PipelineConfig(estimate="flow", flow_stride=1), Simulation(ROTATION).camera)
    fields = []
    for packet in recording.packets():
        pipeline.push(packet)
        fields += pipeline.take_flow()
    pipeline.flush()
    fields += pipeline.take_flow()
    kept = np.load(files / "f.npz")["flow"]
    assert len(kept) == len(fields)
    for flow, field in zip(kept, fields, strict=True):
        np.testing.assert_array_equal(flow, field.flow if field.status.ok else np.nan)


def test_moving_objects_are_scored_on_their_own(objects: Path):
    result = evaluate_flow(objects, PipelineConfig(estimate="flow"))
    figures = result.summary()
    assert 0 < figures["moving_pixels_compared"] < figures["pixels_compared"]
    assert figures["moving_epe_px"] is not None
    # The rotation alone is no truth here, and the motion and depth of the scene only of what rests.
    turned = evaluate_flow(objects, PipelineConfig(estimate="flow"), truth="rotation")
    at_rest = evaluate_flow(objects, PipelineConfig(estimate="flow"), truth="depth")
    assert turned.error is not None
    assert at_rest.error is not None
    true_loss = [r.summary()["true_flow_warp_loss_mean"] for r in (result, at_rest, turned)]
    assert true_loss[0] > true_loss[1] > true_loss[2]


def test_a_scorer_takes_the_exact_truth_of_a_simulation():
    simulation = Simulation(OBJECTS)
    truth = SimulatedTruth(simulation, start_ns=1_000_000)
    field = truth.at(101_000_000)
    assert field is not None
    assert field.moving is not None
    assert (field.flow == simulation.flow_image(0.1)).all()
    assert (field.moving == simulation.moving_mask(0.1)).all()
    assert truth.at(0) is None
    assert truth.at(400_000_000) is None
    scorer = FlowScorer((160, 120), simulation.camera, truth)
    zero = np.zeros(1, np.uint16)
    corner = scorer.coords(Events(np.zeros(1, np.int64), zero, zero, np.ones(1, "u1"), 160, 120))
    assert corner[0] == pytest.approx(simulation.camera.undistorted_pixels[0, 0], abs=1e-3)


def test_without_a_calibration_the_flow_is_on_raw_pixels(
    uncalibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code, out, _ = run(capsys, uncalibrated, "--flow", "--json", tmp_path / "f.json")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("raw pixels: no calibration")]
    assert len(lines) == 1
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["undistorted_pixels"] is False
    assert figures["flow_truth"] is None
    assert figures["epe_px"] is None
    assert figures["flow_warp_loss_mean"] > 1.2


def test_raw_pixels_may_be_asked_for_and_have_a_truth_of_their_own(rotation: Path):
    result = evaluate_flow(
        rotation, PipelineConfig(estimate="flow"), truth="rotation", raw_pixels=True
    )
    assert not result.undistorted
    assert result.error is not None
    assert result.error.epe_px < 0.5 * result.error.true_px
    # On undistorted pixels alone the recorded truth holds.
    bare = evaluate_flow(rotation, PipelineConfig(estimate="flow"), raw_pixels=True)
    assert bare.error is None


def test_windows_are_what_the_options_say(rotation: Path, tmp_path: Path):
    options = "--window-ms 25 --window-px 0 --output-rate 0 --gradient raw --flow-truth none"
    command = ["evaluate", str(rotation), "--flow", *options.split()]
    assert cli.main([*command, "--csv", str(tmp_path / "f.csv"), "--json", f"{tmp_path}/f"]) == 0
    rows = list(csv.DictReader((tmp_path / "f.csv").open()))
    assert len(rows) == 12
    spans = [float(row["window_end_s"]) - float(row["window_start_s"]) for row in rows]
    assert max(spans) <= 0.0251
    figures = json.loads((tmp_path / "f").read_text())
    assert sum(int(row["events"]) for row in rows) == figures["events"]
    assert figures["gradient"] == "raw"
    assert figures["flow_truth"] is None


def test_a_rotation_on_disk_as_text_is_a_truth_where_asked_for(data_dir: Path, tmp_path: Path):
    """The window of boxes_rotation that dense methods are compared on: 30 000 events."""
    options = "--window-ms 1000 --window-px 0 --output-rate 0 --flow-truth rotation"
    window = data_dir / "ecd_boxes_rotation_window"
    command = ["evaluate", str(window), "--flow", *options.split(), "--json", f"{tmp_path}/f"]
    assert cli.main(command) == 0
    figures = json.loads((tmp_path / "f").read_text())
    assert figures["fields"] == 1
    assert figures["true_displacement_px"] == pytest.approx(3.43, abs=0.05)
    assert figures["epe_px"] < 0.7
    assert figures["flow_warp_loss_mean"] > 1.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--flow --window-events 9000", "--window-events with --flow"),
        ("--flow --plot {tmp}", "--plot with --flow"),
        ("--flow --binning rect", "--binning with --flow"),
        ("--flow --no-angular-acceleration", "--angular-acceleration with --flow"),
        ("--flow-out {tmp}/f.npz", "--flow-out without --flow"),
        ("--flow-truth none", "--flow-truth without --flow"),
        ("--flow --flow-truth depth", "no depth images"),
        ("--flow --flow-out {tmp}/f.txt", "f.txt: expected a name that ends in .npz"),
        ("--flow --flow-out {tmp}/absent/f.npz", "absent/f.npz: there is no folder "),
        ("--flow --flow-out /proc/f.npz", "evaluate: /proc/f.npz cannot be written: "),
        ("--flow --json {tmp}", " is a folder; expected the name of a file"),
        ("--flow --csv /proc/version/f.csv", "/proc/version is a file; expected a folder"),
        ("--flow --flow-plot /proc/version", "/proc/version is a file; expected a folder"),
        ("--flow --window-ms 1", "no flow field in "),
    ],
)
def test_what_does_not_fit_is_one_line(
    rotation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
):
    code, _, err = run(capsys, rotation, *options.format(tmp=tmp_path).split())
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_windows_without_a_field_say_what_they_lack(
    rotation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "f.npz"
    code, printed, err = run(capsys, rotation, "--flow", "--window-ms", 1, "--flow-out", out)
    assert (code, printed) == (2, "")
    assert re.search(
        r": no flow field in \d+ windows \(\d+ too few events\): the fullest has [1-9]\d* events, "
        r"expected at least 2,000: take longer windows \(--window-ms\)$",
        err,
    )
    assert not out.exists()


def test_places_are_looked_at_before_the_work(
    rotation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def work(*_: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr("event_binning_grad.pipeline_flow.warm_up", work)
    for options in (
        ["--flow-out", "/proc/f.npz"],
        ["--json", str(tmp_path)],
        ["--flow-plot", "/proc/version"],
    ):
        assert cli.main(["evaluate", str(rotation), "--flow", *options]) == 2


def test_a_truth_that_is_not_asked_for_is_named(
    uncalibrated: Path, objects: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
):
    def hint(*arguments: object) -> str:
        code, out, _ = run(capsys, *arguments, "--flow")
        assert code == 0
        lines = [line for line in out.splitlines() if line.startswith("compared with nothing; ")]
        return lines[0] if lines else ""

    boxes = data_dir / "ecd_boxes_rotation_window"
    assert hint(boxes).endswith(
        "motion.txt (constant) implies the flow of a camera that only turns: --flow-truth rotation"
    )
    assert hint(boxes, "--flow-truth", "none") == hint(boxes, "--flow-truth", "rotation") == ""
    assert hint(objects) == ""
    assert hint(objects, "--flow-raw").endswith("is on undistorted pixels: without --flow-raw")
    assert hint(uncalibrated) == ""  # it holds no motion either


def test_a_rotation_is_no_truth_of_a_camera_that_translates(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
):
    slider = [data_dir / "ecd_slider_depth", "--flow", "--duration", 0.1]
    code, out, err = run(capsys, *slider, "--flow-truth", "rotation")
    assert (code, err.count("\n")) == (0, 1)
    assert "warning: --flow-truth rotation: the camera translates at 0.28 m/s" in err
    code, out, err = run(capsys, *slider)
    assert (code, err) == (0, "")
    assert "--flow-truth rotation" not in out
    assert "which implies no flow without depth" in out


def test_displacements_outside_a_part_are_not_missed(data_set: Path):
    stretch = Stretch(0.05, 0.1)
    result = evaluate_flow(data_set, PipelineConfig(estimate="flow"), stretch=stretch)
    assert result.duration_s == pytest.approx(0.1, abs=0.005)
    assert len(result.displacements) + result.displacements_missed in (2, 3)
    assert result.displacements


@pytest.mark.parametrize("kind", ["rotation", "depth"])
def test_a_motion_implies_no_flow_without_a_calibration(uncalibrated: Path, kind: str):
    with pytest.raises(RecordingError, match="no calibration"):
        evaluate_flow(uncalibrated, PipelineConfig(estimate="flow"), truth=kind)


def test_unknown_truths_and_streams_without_events_are_refused(rotation: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="expected one of recorded, depth"):
        evaluate_flow(rotation, PipelineConfig(estimate="flow"), truth="nonsense")
    empty: Any = [EventPacket(p.header, 120, 160, p.seq, p.time_base, "evt3", False, p.events[:0])
                  for p in list(BagRecording(rotation).packets())[:2]]  # fmt: skip
    write_bag(tmp_path / "empty", empty)
    out = tmp_path / "none.npz"
    with pytest.raises(RecordingError, match="no events could be read"):
        evaluate_flow(tmp_path / "empty", PipelineConfig(estimate="flow"), flow_out=out)
    assert not out.exists()


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence in MVSEC's layout of a camera that turns, with its true displacements of 50 ms on
    raw pixels."""
    folder, omega = tmp_path_factory.mktemp("mvsec"), (0.4, 0.9, 0.5)
    fx, fy, cx, cy = EQUIDISTANT["intrinsics"]
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    camera = Camera(346, 260, K, "equidistant", np.array(EQUIDISTANT["distortion_coeffs"]))
    events = Events.concatenate(list(simulate_rotation(camera, ConstantMotion(omega), 0.25)))
    signs = np.where(events.p, 1, -1)
    data = write_mvsec(folder, np.stack([events.x, events.y, events.t / 1e9, signs], axis=1))
    write_frame_times(data, np.arange(8) / 30)
    write_camchain(folder / "camchain-imucam-indoor_flying.yaml")
    turn = Rotation.from_rotvec(0.05 * np.array(omega)).as_matrix()
    turned = camera.bearings.astype(np.float64) @ turn
    moved = camera.project(turned) - np.stack(np.meshgrid(np.arange(346), np.arange(260)), axis=-1)
    frames = np.tile(np.moveaxis(moved, -1, 0), (5, 1, 1, 1))
    times = START_S + 0.05 * np.arange(5)
    write_flow_npz(folder / "indoor_flying1_gt_flow_dist.npz", times, frames, False)
    return folder


@pytest.mark.parametrize("raw_pixels", [False, True])
def test_displacements_of_a_data_set_are_followed_through_the_fields(
    data_set: Path, raw_pixels: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    options = ["--flow", *(["--flow-raw"] if raw_pixels else []), "--json", tmp_path / "f"]
    code, out, _ = run(capsys, data_set, *options)
    assert code == 0
    assert "errors over 4 true displacements" in out
    figures = json.loads((tmp_path / "f").read_text())
    # The last frame has no end, and the others' events and fields are all there.
    assert figures["true_displacements_compared"] == 4
    assert figures["true_displacement_px"] == pytest.approx(11.5, abs=2.0)
    assert figures["epe_px"] < 0.5 * figures["true_displacement_px"]
    assert figures["epe_px_s"] == pytest.approx(20 * figures["epe_px"])
    assert figures["dense_pixels_compared"] > figures["pixels_compared"]
    assert figures["dense_epe_px"] < 0.5 * figures["dense_true_displacement_px"]


@pytest.fixture(scope="module")
def driving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence in DSEC's layout of a camera that turns: a true displacement over 100 ms on
    rectified pixels, valid on every fourth of them."""
    folder, omega = tmp_path_factory.mktemp("dsec"), (0.2, 0.5, 0.3)
    write_calibration(write_dsec(folder), None)
    info = open_recording(folder).calibration()
    assert info is not None
    camera = Camera.from_camera_info(info)
    scene = make_scene("texture", pixel_rad=1 / 200)  # coarse, and painted soon
    simulated = simulate_rotation(camera, ConstantMotion(omega), 0.11, scene=scene)
    events = Events.concatenate(list(simulated))
    write_dsec(folder, {"x": events.x, "y": events.y, "t": events.t // 1000, "p": events.p})
    turn = Rotation.from_rotvec(0.1 * np.array(omega)).as_matrix()
    end = camera.undistort(camera.project(undistorted_bearings(camera) @ turn))
    flow = end - np.stack(np.meshgrid(np.arange(640), np.arange(480)), axis=-1)
    valid = known(flow)
    valid[1::2] = valid[:, 1::2] = False
    image = np.dstack([flow * 128 + 32768, valid]).round()
    image = np.where(valid[..., None], image, 0).astype(np.uint16)
    (folder / "flow/forward").mkdir(parents=True)
    write_png(folder / "flow/forward/000000.png", image)
    times = folder / "flow/forward_timestamps.txt"
    times.write_text(f"{T_OFFSET_US}, {T_OFFSET_US + 100_000}\n")
    return folder


def test_displacements_of_rectified_pixels(driving: Path):
    result = evaluate_flow(driving, PipelineConfig(estimate="flow"))
    assert result.undistorted
    assert len(result.displacements) == 1
    sparse, dense = result.errors()[""], result.errors()["dense_"]
    assert sparse is not None
    assert dense is not None
    assert sparse.pixels < dense.pixels <= 640 * 480 / 4
    assert dense.pixels > 0.8 * 640 * 480 / 4
    for error in (sparse, dense):
        assert error.true_px == pytest.approx(32, abs=6)
        assert error.epe_px < 0.1 * error.true_px
        assert error.outliers_1px >= error.outliers_2px >= error.outliers_3px
    recording = open_recording(driving)
    info = recording.calibration()
    assert info is not None
    hint = truth_hint(recording, Camera.from_camera_info(info), raw_pixels=True)
    assert hint == "the recording's true flow is on undistorted pixels: without --flow-raw"


def test_displacements_over_grey_frames(data_set: Path):
    """Frames of 30 Hz: true displacements over one of them, and over four."""
    over = {
        frames: evaluate_flow(data_set, PipelineConfig(estimate="flow"), truth_frames=frames)
        for frames in (1, 4)
    }
    counts = {frames: len(result.displacements) for frames, result in over.items()}
    assert counts == {1: 6, 4: 1}  # until 0.2 s, where the last truth ends
    one, four = over[1].error, over[4].error
    assert one is not None
    assert four is not None
    assert one.true_px == pytest.approx(11.5 * 2 / 3, abs=1.5)
    assert four.true_px == pytest.approx(4 * one.true_px, rel=0.15)
    assert one.epe_px < 0.5 * one.true_px
    assert four.epe_px < 0.3 * four.true_px


def test_only_mvsec_has_grey_frames(rotation: Path, capsys: pytest.CaptureFixture[str]):
    code, _, err = run(capsys, rotation, "--flow", "--flow-truth-frames", 4)
    assert (code, err.count("\n")) == (2, 1)
    assert "expected a sequence of MVSEC with its flow" in err
    for frames, kind in ((0, "recorded"), (1, "rotation")):
        options = ["--flow", "--flow-truth-frames", frames, "--flow-truth", kind]
        code, _, err = run(capsys, rotation, *options)
        assert (code, err.count("\n")) == (2, 1)
        assert f"{kind} flow over {frames} frames; expected recorded, and 1 or more" in err
