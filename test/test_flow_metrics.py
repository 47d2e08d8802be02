"""Figures, truths, files and colours of flow, against values worked out by hand."""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from event_binning_grad.errors import EventBinningError
from event_binning_grad.estimation.flow_estimate import FlowEstimate, FlowStatus
from event_binning_grad.evaluation import flow_displacement
from event_binning_grad.evaluation.flow_colours import colour_wheel, flow_to_rgb, typical_maximum
from event_binning_grad.evaluation.flow_displacement import (
    DisplacementScorer,
    displacement,
    truths_over,
)
from event_binning_grad.evaluation.flow_file import FlowFile
from event_binning_grad.evaluation.flow_metrics import (
    density,
    event_pixels,
    flow_at,
    flow_error,
    flow_warp_loss,
    pooled,
    vote,
    warped,
)
from event_binning_grad.evaluation.true_flow import RotationTruth, SampledTruth
from event_binning_grad.events.companions import SensorError, to_flow, to_mask
from event_binning_grad.events.flow_truth import FlowTruths
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.types import NS_PER_MS
from event_binning_grad.geometry import Camera

MS = NS_PER_MS


def uniform(u: float, v: float, height: int = 6, width: int = 8) -> np.ndarray:
    return np.tile(np.array([u, v], np.float32), (height, width, 1))


# ------------------------------------------------------------------------------------------ errors


def test_errors_of_four_pixels_by_hand():
    truth = np.array([[[100.0, 0.0], [0.0, 200.0]], [[300.0, 400.0], [50.0, 0.0]]])
    flow = np.array([[[100.0, 0.0], [0.0, 275.0]], [[0.0, 0.0], [np.nan, 0.0]]])
    span_s = 0.02  # displacements: 2 px, 4 px, 10 px; errors 0, 1.5 and 10 px
    error = flow_error(flow, truth, span_s)
    assert error is not None
    assert error.pixels == 3
    assert error.epe_px == pytest.approx(11.5 / 3)
    assert error.epe_px_s == pytest.approx((0 + 75 + 500) / 3)
    assert error.outliers_1px == pytest.approx(2 / 3)
    assert error.outliers_2px == pytest.approx(1 / 3)
    assert error.outliers_3px == pytest.approx(1 / 3)
    assert error.true_px == pytest.approx((2 + 4 + 10) / 3)
    second = math.acos((4 * 5.5 + 1) / math.sqrt((16 + 1) * (5.5**2 + 1)))
    third = math.acos(1 / math.sqrt(100 + 1))
    assert error.angular_deg == pytest.approx(math.degrees(second + third) / 3)


def test_an_error_of_exactly_the_limit_is_no_outlier():
    truth = np.zeros((1, 2, 2))
    error = flow_error(np.array([[[3.0, 0.0], [0.0, 1.0]]]), truth, 1.0)
    assert error is not None
    assert error.outliers_3px == 0.0
    assert error.outliers_1px == 0.5


def test_the_right_flow_has_no_error_and_the_opposite_one_much():
    truth = uniform(120.0, -40.0)
    right, wrong = flow_error(truth, truth, 0.03), flow_error(-truth, truth, 0.03)
    assert right is not None
    assert wrong is not None
    assert right.epe_px == right.outliers_1px == 0.0
    assert right.angular_deg == pytest.approx(0.0, abs=1e-6)
    assert wrong.epe_px == pytest.approx(2 * wrong.true_px)
    assert wrong.angular_deg > 90


def test_only_the_pixels_asked_for_are_compared():
    truth, flow = uniform(10.0, 0.0), uniform(10.0, 0.0)
    flow[0, 0] = 110.0, 0.0
    mask = np.zeros((6, 8), bool)
    mask[0, :4] = True
    error = flow_error(flow, truth, 0.1, mask)
    assert error is not None
    assert (error.pixels, error.epe_px) == (4, pytest.approx(2.5))
    assert flow_error(flow, truth, 0.1, np.zeros((6, 8), bool)) is None
    assert flow_error(np.full_like(flow, np.nan), truth, 0.1) is None


def test_pooling_is_over_all_pixels_as_if_of_one_field():
    rng = np.random.default_rng(1)
    flow, truth = (rng.normal(size=(10, 8, 2)) * 100 for _ in range(2))
    parts = [flow_error(flow[:3], truth[:3], 0.02), flow_error(flow[3:], truth[3:], 0.02), None]
    whole, joined = flow_error(flow, truth, 0.02), pooled(parts)
    assert whole is not None
    assert joined is not None
    assert joined.pixels == whole.pixels
    for name in ("epe_px", "epe_px_s", "angular_deg", "outliers_1px", "outliers_3px", "true_px"):
        assert getattr(joined, name) == pytest.approx(getattr(whole, name))
    assert pooled([None]) is None


def test_density_is_the_share_of_event_pixels_with_flow():
    coords = np.array([[0.4, 0.0], [0.0, 0.3], [2.6, 1.0], [7.4, 5.4], [7.6, 0.0], [np.nan, 1.0]])
    mask = event_pixels(coords, 8, 6)
    assert np.argwhere(mask).tolist() == [[0, 0], [1, 3], [5, 7]]
    flow = uniform(1.0, 1.0)
    assert density(flow, mask) == 1.0
    flow[1, 3, 1] = np.nan
    assert density(flow, mask) == pytest.approx(2 / 3)
    assert math.isnan(density(flow, np.zeros((6, 8), bool)))


# -------------------------------------------------------------------------------------- warp, loss


def test_events_are_warped_by_the_flow_of_their_pixel():
    flow = uniform(0.0, 0.0)
    flow[2, 3] = 100.0, -50.0
    flow[4, 4] = np.nan
    coords = np.array([[3.2, 1.8], [0.0, 0.0], [4.0, 4.0]])
    moved = warped(coords, np.array([0.01, 0.01, 0.01]), flow)
    assert moved == pytest.approx(np.array([[2.2, 2.3], [0.0, 0.0], [4.0, 4.0]]))
    assert np.isnan(flow_at(flow, np.array([[-1.0, 0.0], [8.0, 2.0]]))).all()


def test_votes_are_shared_bilinearly():
    image = vote(np.array([[1.25, 2.5], [0.0, 0.0], [-0.25, 0.0], [50.0, 1.0], [np.nan, 1]]), 4, 5)
    assert image.shape == (5, 4)
    assert image[2, 1] == image[3, 1] == pytest.approx(0.75 * 0.5)
    assert image[2, 2] == image[3, 2] == pytest.approx(0.25 * 0.5)
    assert image[0, 0] == pytest.approx(1.0 + 0.75)
    assert image.sum() == pytest.approx(2.75)


def moving_points(speed_px_s: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Events on whole pixels of points that move to the right; their times in -20 to 20 ms."""
    rng = np.random.default_rng(seed)
    points = rng.uniform((10, 5), (110, 85), (150, 2))
    which, t_s = rng.integers(0, len(points), 15_000), rng.uniform(-0.02, 0.02, 15_000)
    places = points[which]
    places[:, 0] += speed_px_s * t_s
    return np.rint(places), t_s


def test_flow_warp_loss_is_highest_at_the_true_flow():
    coords, t_s = moving_points(200.0)
    loss = {
        u: flow_warp_loss(coords, t_s, uniform(u, 0.0, 90, 120))
        for u in (-200.0, 0.0, 100.0, 200.0, 300.0)
    }
    assert loss[0.0] == 1.0
    assert max(loss, key=loss.__getitem__) == 200.0
    assert loss[200.0] > 2.0
    assert loss[-200.0] < 1.0 < loss[100.0] < loss[200.0]


def test_flow_warp_loss_of_slow_motion_does_not_prefer_to_stay_on_the_pixels():
    """A motion of 0.8 px: on the pixels' own grid the unwarped events would win."""
    coords, t_s = moving_points(20.0)
    own_grid = {
        u: vote(warped(coords, t_s, uniform(u, 0.0, 90, 120)), 120, 90).var() for u in (0.0, 20.0)
    }
    assert own_grid[0.0] > own_grid[20.0]
    assert flow_warp_loss(coords, t_s, uniform(20.0, 0.0, 90, 120)) > 1.0


def test_events_without_flow_do_not_help():
    coords, t_s = moving_points(200.0)
    right = uniform(200.0, 0.0, 90, 120)
    half = right.copy()
    half[:, :60] = np.nan
    nothing = np.full_like(right, np.nan)
    assert flow_warp_loss(coords, t_s, nothing) == 1.0
    assert 1.0 < flow_warp_loss(coords, t_s, half) < flow_warp_loss(coords, t_s, right)
    assert math.isnan(flow_warp_loss(coords[:0], t_s[:0], right))
    assert math.isnan(flow_warp_loss(np.full((3, 2), np.nan), t_s[:3], right))


# ------------------------------------------------------------------------------------------ truths


def test_the_flow_of_a_rotation_is_that_of_its_truth(small_camera: Camera):
    t_ns = np.arange(0, 500, 10, dtype=np.int64) * MS
    omega = t_ns[:, None] / 1e9 * np.array([0.0, 2.0, 0.0]) + np.array([0.0, 0.0, 1.0])
    truth = RotationTruth(small_camera, GroundTruth(t_ns, omega, None, "made up"))
    field = truth.at(250 * MS)
    assert field is not None
    assert field.moving is None
    focal, cx, cy = small_camera.K[0, 0], *small_camera.K[:2, 2]
    # About y at 0.5 rad/s: u = -f w (1 + x²); about z at 1 rad/s: (y, -x).
    column, row = 200, 88
    x, y = (column - cx) / focal, (row - cy) / focal
    expected = focal * np.array([-0.5 * (1 + x * x) + y, -0.5 * x * y - x])
    assert field.flow[row, column] == pytest.approx(expected, rel=1e-5)
    assert truth.at(10_000 * MS) is None
    assert "rotation" in truth.source


def test_sampled_flow_follows_what_moves():
    """A square that moves right at 300 px/s over a still background, sampled every 20 ms."""

    def field(left: int) -> tuple[np.ndarray, np.ndarray]:
        flow, mask = uniform(0.0, 0.0, 40, 60), np.zeros((40, 60), bool)
        mask[10:30, left : left + 20] = True
        flow[mask] = 300.0, 0.0
        return flow, mask

    first, last = field(10), field(16)
    truth = SampledTruth(
        iter([(0, first[0]), (20 * MS, last[0])]), iter([(0, first[1]), (20 * MS, last[1])])
    )
    start, middle = truth.at(0), truth.at(10 * MS)
    assert start is not None
    assert (start.flow == first[0]).all()
    assert middle is not None
    expected, mask = field(13)
    known = np.isfinite(middle.flow[..., 0])
    # What one field shows and the other hides, 3 px on either side, is not known.
    assert (~known).sum() <= 2 * 3 * 20
    assert middle.flow[known] == pytest.approx(expected[known])
    assert middle.moving is not None
    assert (middle.moving[known] == mask[known]).all()
    assert truth.at(21 * MS) is None


def test_sampled_flow_says_nothing_of_gaps_and_before_the_start():
    fields = [(100 * MS, uniform(1.0, 0.0)), (400 * MS, uniform(1.0, 0.0))]
    truth = SampledTruth(iter(fields))
    assert truth.at(50 * MS) is None
    assert truth.at(200 * MS) is None
    assert truth.at(400 * MS) is not None


def test_a_constant_flow_leads_as_far_as_its_time():
    fields = [(k * 30 * MS, uniform(100.0, -20.0, 40, 60)) for k in range(5)]
    moved = displacement(fields, 10 * MS, 110 * MS)
    assert moved is not None
    inside = np.isfinite(moved[..., 0])
    assert inside[10:35, 5:45].all()
    assert not inside[:, -5:].any()  # leads off the image
    assert moved[inside] == pytest.approx(np.tile([10.0, -2.0], (inside.sum(), 1)), abs=1e-4)


def test_displacements_follow_turning_flow():
    """Flow that turns about the image's middle at 2 rad/s, faster and faster."""
    x, y = np.meshgrid(np.arange(61) - 30.0, np.arange(61) - 30.0)
    spin = np.stack([-y, x], axis=-1)
    fields = [(t * MS, (2.0 + 0.01 * t) * spin.astype(np.float32)) for t in range(0, 101, 10)]
    moved = displacement(fields, 0, 100 * MS)
    assert moved is not None
    angle = 0.2 + 0.01 * 0.1 * 50
    turned = np.stack(
        [x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], axis=-1
    )
    near = np.hypot(x, y) < 25
    assert np.abs(moved - (turned - np.stack([x, y], axis=-1)))[near].max() < 0.02


@pytest.mark.parametrize("stamps_ms", [[], [0, 300], [100, 130, 160], [-300, -200]])
def test_displacements_need_fields_all_the_time(stamps_ms: list[int]):
    fields = [(t * MS, uniform(1.0, 0.0)) for t in stamps_ms]
    assert displacement(fields, 0, 250 * MS) is None


def test_true_displacements_are_scored_over_their_own_time():
    windows = np.array([[0, 100], [100, 200], [200, 300]], np.int64) * MS
    true = uniform(5.0, 0.0, 30, 40)
    valid = np.ones((30, 40), bool)
    valid[:10] = False

    def read():
        return iter([(true.copy(), valid)] * 3)

    scorer = DisplacementScorer(FlowTruths(windows, False, "made up", read))
    coords = np.stack(np.meshgrid(np.arange(8, 16), np.arange(30)), axis=-1).reshape(-1, 2)
    for start in range(0, 260, 20):
        times = np.linspace(start, start + 19, len(coords)).astype(np.int64) * MS
        scorer.see(times, coords.astype(np.float32), (40, 30))
        scorer.take((start + 10) * MS, uniform(62.0, 0.0, 30, 40))
    scorer.finish()
    assert len(scorer.errors) == 3  # the last field, at 250 ms, stands for 60 ms
    for both in scorer.errors:
        error, dense = both.error, both.dense_error
        assert error is not None
        assert error.pixels == 20 * 8  # valid, and with events
        assert error.epe_px == pytest.approx(1.2, abs=1e-4)
        assert error.epe_px_s == pytest.approx(12.0, abs=1e-3)
        assert error.true_px == pytest.approx(5.0)
        # Events or not: all but the columns from which the flow leads off the image, five or six.
        assert dense.pixels in (20 * 34, 20 * 35)
        assert dense.epe_px == pytest.approx(1.2, abs=1e-4)
    assert scorer.missed == 0


def test_true_displacements_over_other_times():
    """Of points that all turn about the image's middle, faster and faster: known exactly."""
    x, y = np.meshgrid(np.arange(81) - 40.0, np.arange(81) - 40.0)

    def turned(start_ms: float, end_ms: float) -> np.ndarray:
        angle = 1e-5 * (end_ms**2 - start_ms**2)
        cos, sin = math.cos(angle), math.sin(angle)
        return np.stack([x * cos - y * sin - x, x * sin + y * cos - y], axis=-1).astype(np.float32)

    times = [0, 40, 80, 120, 160, 210, 250]  # nothing is known of 160 to 170 ms
    windows = np.array([*pairwise(times)], np.int64)
    windows[4, 0] = 170

    def read():
        return ((turned(*window), np.hypot(x, y) < 38) for window in windows.tolist())

    truths = FlowTruths(windows * MS, False, "made up", read)
    wanted = np.array(
        [[-5, 20], [10, 25], [30, 110], [110, 160], [150, 180], [170, 250], [200, 260]]
    )
    over = truths_over(truths, wanted * MS)
    found = list(over)
    assert [(t.start_ns // MS, t.end_ns // MS) for t in found] == [
        (10, 25), (30, 110), (110, 160), (170, 250),
    ]  # fmt: skip
    assert (over.windows_ns == wanted[[1, 2, 3, 5]] * MS).all()
    near = np.hypot(x, y) < 34
    for truth in found:
        assert truth.valid[near].all()
        assert not truth.valid[np.hypot(x, y) > 39].any()
        expected = turned(truth.start_ns / MS, truth.end_ns / MS)
        # A way is taken as even within a truth, and at the nearest pixel.
        assert np.abs(truth.flow_px - expected)[near].max() < 0.35
        assert np.abs(truth.flow_px - expected)[near].mean() < 0.1


def test_without_truths_there_are_none_over_other_times():
    none = FlowTruths(np.empty((0, 2), np.int64), False, "made up", lambda: iter(()))
    assert len(truths_over(none, np.array([[0, 40], [40, 80]]) * MS)) == 0


def test_windows_that_are_over_get_no_mask_for_each_packet(monkeypatch: pytest.MonkeyPatch):
    """A truth that begins long before the fields keeps its windows open."""
    windows = np.array([[k * 50, k * 50 + 50] for k in range(100)], np.int64) * MS
    scorer = DisplacementScorer(FlowTruths(windows, False, "made up", lambda: iter(())))
    made = []
    monkeypatch.setattr(
        flow_displacement, "event_pixels", lambda *given: made.append(1) or event_pixels(*given)
    )
    for t_ms in range(6000, 6100):
        scorer.see(np.array([t_ms * MS]), np.full((1, 2), 15, np.float32), (40, 30))
    assert len(made) == 100  # one a window


def test_displacements_without_trusted_fields_are_missed_and_not_kept():
    windows = np.array([[k * 100, k * 100 + 100] for k in range(20)], np.int64) * MS
    true, valid = uniform(5.0, 0.0, 30, 40), np.ones((30, 40), bool)
    scorer = DisplacementScorer(
        FlowTruths(windows, False, "made up", lambda: iter([(true.copy(), valid)] * 20))
    )
    place = np.full((1, 2), 15, np.float32)
    for t_ms in range(0, 2000, 20):
        scorer.see(np.array([t_ms * MS]), place, (40, 30))
        scorer.take(t_ms * MS, None if t_ms > 500 else uniform(50.0, 0.0, 30, 40))
    assert len(scorer.errors) == 5
    assert scorer.missed >= 12  # those of the last 120 ms may still be waiting
    scorer.finish()
    assert len(scorer.errors) + scorer.missed == 20


# -------------------------------------------------------------------------------------- messages


def image_of(pixels: np.ndarray, encoding: str, **changes: Any) -> SimpleNamespace:
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).tobytes()
    fields = {"step": len(data) // height, "is_bigendian": 0, "data": data, **changes}
    return SimpleNamespace(height=height, width=width, encoding=encoding, **fields)


def test_flow_of_a_message_in_either_order_of_bytes_and_with_padded_rows():
    flow = np.random.default_rng(3).normal(size=(3, 4, 2)).astype(np.float32)
    flow[1, 2] = np.nan
    np.testing.assert_array_equal(to_flow(image_of(flow, "32FC2")), flow)
    other = image_of(flow.astype(">f4"), "32FC2", is_bigendian=1)
    np.testing.assert_array_equal(to_flow(other), flow)
    rows = np.zeros((3, 40), np.uint8)
    rows[:, :32] = flow.reshape(3, -1).view(np.uint8)
    padded = image_of(flow, "32FC2", step=40, data=rows.tobytes())
    np.testing.assert_array_equal(to_flow(padded), flow)
    assert to_flow(padded).dtype == np.float32


def test_a_mask_of_a_message_is_where_it_is_not_zero():
    pixels = np.array([[0, 1, 255], [0, 0, 7]], np.uint8)
    for encoding in ("8UC1", "mono8"):
        assert to_mask(image_of(pixels, encoding)).tolist() == (pixels > 0).tolist()


def test_images_that_hold_something_else_are_refused():
    flow = np.zeros((3, 4, 2), np.float32)
    with pytest.raises(SensorError, match="'32FC1', expected 32FC2"):
        to_flow(image_of(flow[..., 0], "32FC1"))
    with pytest.raises(SensorError, match="'mono16', expected 8UC1 or mono8"):
        to_mask(image_of(flow[..., 0], "mono16"))
    with pytest.raises(SensorError, match="expected whole rows"):
        to_flow(image_of(flow, "32FC2", data=bytes(90)))
    with pytest.raises(SensorError, match="expected whole rows"):
        to_flow(image_of(flow, "32FC2", step=16, data=bytes(48)))


# ------------------------------------------------------------------------------------ file, colour


def estimate_of(
    flow: np.ndarray, stamp_ns: int = 0, status: FlowStatus = FlowStatus.OK
) -> FlowEstimate:
    known = np.isfinite(flow[..., 0])
    confidence = np.where(known, 0.75, 0).astype(np.float32)
    return FlowEstimate(
        stamp_ns, stamp_ns - 10 * MS, stamp_ns + 20 * MS, 5000, 5000, flow, confidence,
        known & (flow[..., 0] > 1), 2.0, 4, 4.0, status, 0.01,
    )  # fmt: skip


def test_fields_come_back_from_the_file(tmp_path: Path):
    rng = np.random.default_rng(0)
    flows = rng.normal(size=(5, 6, 8, 2)).astype(np.float32)
    flows[2, 3:, :, :] = np.nan
    stamps = 1_700_000_000 * 10**9 + np.arange(5) * 33_000_001
    path = tmp_path / "flow.npz"
    with FlowFile(path) as file:
        for stamp_ns, flow in zip(stamps.tolist(), flows, strict=True):
            file.add(estimate_of(flow, stamp_ns))
        assert not path.exists()
    content = np.load(path)
    types = {"flow": "f4", "confidence": "f2", "normal_flow": "?"} | dict.fromkeys(
        ("stamp_s", "window_start_s", "window_end_s"), "f8"
    )
    types["status"] = "<U2"
    assert set(content["status"]) == {"ok"}
    assert {name: content[name].dtype for name in content} == types
    np.testing.assert_array_equal(content["flow"], flows)
    np.testing.assert_array_equal(content["confidence"], 0.75 * np.isfinite(flows[..., 0]))
    np.testing.assert_array_equal(content["normal_flow"], flows[..., 0] > 1)
    assert content["stamp_s"] == pytest.approx(stamps / 1e9, abs=1e-6, rel=0)
    assert content["window_end_s"] - content["window_start_s"] == pytest.approx(0.03, abs=1e-6)
    assert list(path.parent.iterdir()) == [path]


def test_a_field_without_trust_is_unknown_in_the_file(tmp_path: Path):
    with FlowFile(tmp_path / "flow.npz") as file:
        file.add(estimate_of(uniform(5.0, 0.0), status=FlowStatus.NO_STRUCTURE))
    content = np.load(tmp_path / "flow.npz")
    assert content["status"].tolist() == ["no_structure"]
    assert np.isnan(content["flow"]).all()
    assert not content["confidence"].any()
    assert not content["normal_flow"].any()


def test_a_file_of_no_fields_has_none(tmp_path: Path):
    with FlowFile(tmp_path / "flow.npz"):
        pass
    content = np.load(tmp_path / "flow.npz")
    assert len(content["stamp_s"]) == len(content["flow"]) == len(content["confidence"]) == 0


def test_what_is_broken_off_leaves_no_file(tmp_path: Path):
    def write() -> None:
        with FlowFile(tmp_path / "flow.npz") as file:
            file.add(estimate_of(uniform(0, 0)))
            file.add(estimate_of(uniform(0, 0, 4, 4)))

    with pytest.raises(EventBinningError, match=r"\[4, 4\] after ones of \[6, 8\]"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_fields_are_not_held_in_memory(tmp_path: Path):
    """40 fields of 1280x720 are 400 MB."""
    field = estimate_of(uniform(1.0, 2.0, 720, 1280))
    tracemalloc.start()
    try:
        with FlowFile(tmp_path / "flow.npz") as file:
            for _ in range(40):
                file.add(field)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "flow.npz").stat().st_size > 400e6
    assert peak < 30e6


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path):
    """The parts are opened on a device that is always full."""

    def write() -> None:
        with FlowFile(tmp_path / "flow.npz") as file, Path("/dev/full").open("wb+") as full:
            file._parts["flow"] = full
            for _ in range(3):
                file.add(estimate_of(uniform(1.0, 2.0, 60, 80)))

    with pytest.raises(EventBinningError, match=r"flow\.npz cannot be written: No space left"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_colours_say_where_to_and_how_fast():
    flow = np.array([[[10.0, 0.0], [0.0, 10.0], [5.0, 0.0], [0.0, 0.0], [np.nan, 0.0]]])
    colours = flow_to_rgb(flow, 10.0).astype(int)[0]
    assert np.abs(colours[0] - [255, 0, 0]).max() <= 3  # right: red
    assert colours[1][0] > 200 > colours[1][2]  # down: yellow
    assert colours[1][1] > 200
    assert np.abs(colours[2] - [255, 128, 128]).max() <= 3  # half as fast: half as red
    assert colours[3].tolist() == [255, 255, 255]
    assert colours[4].tolist() == [0, 0, 0]


def test_faster_than_the_rim_is_darker_in_the_same_hue():
    speeds = np.array([9.9, 11.0, 14.0, 100.0, 1e9])
    angle = 2.1
    flow = np.stack([speeds * math.cos(angle), speeds * math.sin(angle)], axis=-1)[None]
    colours = flow_to_rgb(flow, 10.0).astype(float)[0]
    assert np.abs(0.75 * colours[0] - colours[1:]).max() <= 4


def test_the_colour_scale_is_the_flows_own_unless_given():
    flow = uniform(3.0, 4.0, 20, 30)
    flow[0, 0] = np.nan
    assert typical_maximum(flow) == pytest.approx(5.0)
    assert (flow_to_rgb(flow) == flow_to_rgb(flow, 5.0)).all()
    assert (flow_to_rgb(np.full((2, 3, 2), np.nan)) == 0).all()
    assert (flow_to_rgb(np.zeros((2, 3, 2))) == 255).all()
    assert flow_to_rgb(np.zeros((0, 3, 2))).shape == (0, 3, 3)


@pytest.mark.parametrize("bad", [np.zeros((3, 4)), np.zeros((3, 4, 3))])
def test_what_is_no_flow_has_no_colours(bad: np.ndarray):
    with pytest.raises(ValueError, match="expected \\[H, W, 2\\]"):
        flow_to_rgb(bad)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_must_be_above_zero(scale: float):
    with pytest.raises(ValueError, match="expected a number above 0"):
        flow_to_rgb(np.zeros((2, 2, 2)), scale)


def test_the_wheel_is_round_and_white_in_the_middle():
    wheel = colour_wheel(101)
    assert wheel.shape == (101, 101, 3)
    assert wheel.dtype == np.uint8
    assert (wheel[50, 50] == 255).all()
    assert (wheel[0, 0] == 255).all()
    assert wheel[50, 99].tolist()[0] == 255
    assert wheel[50, 99].max() - int(wheel[50, 99].min()) > 230
