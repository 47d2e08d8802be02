"""Flow in the pipeline: its windows, counters, clocks, calibrations, and the flow of a motion."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from event_binning_grad import pipeline_flow
from event_binning_grad.errors import ConfigError, PacketError
from event_binning_grad.estimation import Depth, EgomotionEstimate, Status, flow_search
from event_binning_grad.estimation.flow import FlowEstimator
from event_binning_grad.estimation.flow_estimate import FlowEstimate, FlowStatus
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.types import Events
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.depth import DepthImage, Plane
from event_binning_grad.geometry.motion_field import motion_field, undistorted_bearings
from event_binning_grad.pipeline import Pipeline, PipelineConfig
from event_binning_grad.pipeline_flow import FlowStage, field_stride
from event_binning_grad.pipeline_implied import ImpliedFlow, thinned

TRUTH = (1.0, -2.0, 3.0)
CONFIG = PipelineConfig(estimate="flow", flow_stride=4)
MODES = {
    "overlapping": CONFIG,
    "overlapping, whatever the motion": replace(CONFIG, flow_window_px=0.0, flow_window_ms=40.0),
    "leaving events out": replace(CONFIG, flow_window_ms=5.0),
    "one after the other": replace(CONFIG, flow_rate_hz=0.0, flow_window_ms=30.0),
}


@pytest.fixture(scope="module")
def stream(simulated) -> Events:
    return simulated(TRUTH, 0.15)


def run(stage: FlowStage, pieces: Iterable[Events]) -> list[FlowEstimate]:
    found = []
    for events in pieces:
        found += stage.push(events)
    return found + stage.flush()


def values(fields: list[FlowEstimate]) -> list[tuple]:
    return [
        (e.stamp_ns, e.events, e.window_start_ns, e.window_end_ns, e.status, e.flow.tobytes())
        for e in fields
    ]


def accounted(stage: FlowStage) -> int:
    c = stage.counters
    assert 0 <= c.used_events <= c.window_events
    assert c.windows == sum(c.estimates.values())
    binned = c.window_events + c.skipped_events + c.discarded_events + c.refused_events
    return binned + len(stage._buffer)


def error_px_s(estimate: FlowEstimate, true: np.ndarray) -> float:
    """Median over the samples whose flow is known."""
    distance = np.linalg.norm(estimate.flow - true[:: estimate.stride, :: estimate.stride], axis=2)
    return float(np.median(distance[(estimate.confidence > 0) & np.isfinite(distance)]))


# -------------------------------------------------------------------------------------------- stage


@pytest.mark.parametrize("config", MODES.values(), ids=MODES)
def test_pieces_of_any_size_give_the_same_fields(
    config: PipelineConfig, stream: Events, small_camera: Camera
):
    stage = FlowStage(config, small_camera)
    whole = run(stage, [stream])
    assert len(whole) >= 3
    assert accounted(stage) == len(stream)
    for step in (777, 12_345):
        other = FlowStage(config, small_camera)
        pieces = (stream[k : k + step] for k in range(0, len(stream), step))
        assert values(run(other, pieces)) == values(whole)
        assert other.counters == stage.counters


def test_fields_of_a_turning_camera(stream: Events, small_camera: Camera):
    stage = FlowStage(CONFIG, small_camera)
    fields = stage.push(stream)
    assert [e.status for e in fields] == [FlowStatus.OK] * 4
    true = motion_field(small_camera, TRUTH)
    speed = float(np.median(np.linalg.norm(true, axis=2)))
    for e in fields:
        assert e.flow.shape == (45, 60, 2)
        assert e.confidence.shape == e.normal_flow.shape == (45, 60)
        assert e.stride == stage.stride == 4
        assert error_px_s(e, true) < 0.2 * speed


def test_windows_come_at_the_rate_and_heed_the_displacement(stream: Events, small_camera: Camera):
    first_ns = int(stream.t[0])
    free = FlowStage(replace(CONFIG, flow_window_px=0.0), small_camera).push(stream)
    for k, e in enumerate(free, start=1):
        due_ns = first_ns + k * 1e9 / 30
        assert due_ns - 1e5 < e.window_end_ns < due_ns
    spans_ms = [(e.window_end_ns - e.window_start_ns) / 1e6 for e in free]
    assert spans_ms[0] < 34.0  # there was no more
    assert min(spans_ms[1:]) > 59.0
    bounded = FlowStage(replace(CONFIG, flow_window_px=10.0), small_camera).push(stream)
    assert [e.window_end_ns for e in bounded] == [e.window_end_ns for e in free]
    for before, e in pairwise(bounded):
        moved_px = before.speed_px_s * (e.window_end_ns - e.window_start_ns) * 1e-9
        assert 9.0 < moved_px <= 10.0


def test_displacement_leaves_windows_enough_events(stream: Events, small_camera: Camera):
    config = replace(CONFIG, flow_window_px=1.0, flow_min_events=3000)
    fields = FlowStage(config, small_camera).push(stream)
    assert {e.events for e in fields[1:]} == {6000}


def test_large_windows_use_a_part_of_their_events(stream: Events, small_camera: Camera):
    stage = FlowStage(replace(CONFIG, flow_max_events=5000), small_camera)
    fields = stage.push(stream)
    assert all(4500 < e.used_events <= 5000 for e in fields)  # less those of hot pixels
    assert stage.counters.used_events < stage.counters.window_events / 1.2
    assert accounted(stage) == len(stream)


def test_windows_left_out_are_counted(stream: Events, small_camera: Camera):
    for config in MODES.values():
        stage = FlowStage(config, small_camera)
        half = len(stream) // 2
        assert stage.push(stream[:half], estimate=False) == []
        assert stage.counters.windows == 0
        assert stage.counters.skipped_windows >= 1
        assert stage.push(stream[half:])
        assert accounted(stage) == len(stream)


def test_few_events_give_no_flow(stream: Events, small_camera: Camera):
    stage = FlowStage(CONFIG, small_camera)
    stage.push(stream[:500])
    (estimate,) = stage.flush()
    assert estimate.status is FlowStatus.TOO_FEW_EVENTS
    assert stage.counters.estimates[FlowStatus.TOO_FEW_EVENTS] == 1
    assert stage.flush() == []


@pytest.mark.parametrize("how", ["break", "skip"])
def test_no_window_reaches_over_a_gap(how: str, stream: Events, small_camera: Camera):
    stage = FlowStage(CONFIG, small_camera)
    gap_ns = int(stream.t[0]) + 80_000_000
    end, begin = np.searchsorted(stream.t, [gap_ns, gap_ns + 5_000_000])
    before = stage.push(stream[:end])
    if how == "break":
        stage.break_stream()
    else:
        stage.skip(int(begin - end))
    after = stage.push(stream[begin:])
    assert before
    assert after
    assert all(e.window_end_ns < gap_ns for e in before)
    assert all(e.window_start_ns >= gap_ns for e in after)
    assert accounted(stage) == len(stream) - (begin - end)
    # After a break the flow is sought anew; over a gap it goes on.
    cold = before[0].iterations
    assert (after[0].iterations == cold) == (how == "break")
    assert stage.counters.dropped_events == (begin - end if how == "skip" else 0)


def test_stamps_are_shifted_to_the_other_clock(stream: Events, small_camera: Camera):
    fields = run(FlowStage(CONFIG, small_camera), [stream])
    stage = FlowStage(CONFIG, small_camera)
    shifted = [*stage.push(stream, 10**15), *stage.flush()]
    for a, b in zip(fields, shifted, strict=True):
        assert b.stamp_ns - a.stamp_ns == 10**15
        assert b.window_start_ns - a.window_start_ns == 10**15
        assert b.window_end_ns - a.window_end_ns == 10**15
        np.testing.assert_array_equal(a.flow, b.flow)


def test_without_calibration_the_flow_is_on_raw_pixels(stream: Events, small_camera: Camera):
    known, learnt = FlowStage(CONFIG, (240, 180)), FlowStage(CONFIG)
    assert (known.stride, learnt.stride) == (4, 0)
    fields = known.push(stream)
    assert values(fields) == values(learnt.push(stream))
    assert known.camera is learnt.camera is None
    assert learnt.stride == 4
    raw = motion_field(small_camera, TRUTH, raw_pixels=True)
    speed = float(np.nanmedian(np.linalg.norm(raw, axis=2)))
    assert all(error_px_s(e, raw) < 0.2 * speed for e in fields)


def test_sensor_that_changes_size_without_calibration_starts_anew(stream: Events):
    stage = FlowStage(CONFIG)
    stage.push(stream[:1000])
    small = replace(stream, x=stream.x // 2, y=stream.y // 2, width=120, height=90)
    fields = stage.push(small)
    assert stage.counters.discarded_events == 1000
    assert {e.flow.shape for e in fields} == {(23, 30, 2)}
    assert accounted(stage) == len(stream) + 1000


def test_events_that_do_not_fit_the_calibration_are_refused(stream: Events, small_camera: Camera):
    stage = FlowStage(CONFIG, small_camera)
    with pytest.raises(PacketError, match="640x480 sensor, but the calibration is for 240x180"):
        stage.push(replace(stream[:100], width=640, height=480))
    assert stage.counters.refused_events == 100
    assert stage.push(stream)
    assert accounted(stage) == len(stream) + 100


def test_new_calibration_moves_the_flow_to_its_pixels(stream: Events, small_camera: Camera):
    stage = FlowStage(CONFIG)
    half = len(stream) // 2
    raw = stage.push(stream[:half])
    stage.set_camera(small_camera)
    assert stage.camera is small_camera
    undistorted = stage.push(stream[half:])
    assert raw
    assert undistorted
    assert stage.counters.discarded_events == 0  # the events are those of the same sensor
    assert accounted(stage) == len(stream)


@pytest.mark.parametrize(
    ("size", "stride"),
    [((240, 180), 1), ((346, 260), 2), ((640, 480), 3), ((1280, 720), 4), ((64, 48), 1)],
)
def test_stride_keeps_fields_small(size: tuple[int, int], stride: int):
    assert field_stride(PipelineConfig(), *size) == stride
    assert field_stride(PipelineConfig(flow_stride=7), *size) == 7
    samples = math.ceil(size[0] / stride) * math.ceil(size[1] / stride)
    assert 8 * samples < 500_000
    if stride > 1:
        assert 8 * math.ceil(size[0] / (stride - 1)) * math.ceil(size[1] / (stride - 1)) >= 500_000


# ----------------------------------------------------------------------------------------- pipeline


def test_both_are_what_each_is_alone(stream: Events, small_camera: Camera):
    both = Pipeline(replace(CONFIG, estimate="both"), small_camera)
    motions, fields = [], []
    for packet in packetize(stream, 2.0):
        motions += both.push(packet)
        fields += both.take_flow()
    motions, fields = motions + both.flush(), fields + both.take_flow()
    assert both.take_flow() == []
    alone = Pipeline(replace(CONFIG, estimate="egomotion"), small_camera)
    expected = [e for packet in packetize(stream, 2.0) for e in alone.push(packet)]
    expected += alone.flush()
    assert [tuple(e.angular_velocity) for e in motions] == [
        tuple(e.angular_velocity) for e in expected
    ]
    assert alone.flow_stage is None
    assert alone.take_flow() == []
    assert both.flow_stage is not None
    assert len(fields) == both.flow_stage.counters.windows == 5
    # On one clock: the stamps of both lie within the stream.
    assert motions[0].window_start_ns == fields[0].window_start_ns
    assert motions[-1].window_end_ns == fields[-1].window_end_ns


def test_flow_alone_needs_no_calibration_and_estimates_no_motion(stream: Events):
    pipeline = Pipeline(CONFIG)
    for packet in packetize(stream, 2.0):
        assert pipeline.push(packet) == []
    assert pipeline.flush() == []
    fields = pipeline.take_flow()
    assert len(fields) == 5
    assert all(e.status.ok for e in fields[:-1])
    c = pipeline.counters
    assert c.events == len(stream)
    assert c.windows == c.uncalibrated_events == 0
    assert pipeline.flow_stage is not None
    assert accounted(pipeline.flow_stage) == len(stream)


def test_flow_alone_takes_any_calibration(stream: Events, small_camera: Camera):
    pipeline = Pipeline(CONFIG, small_camera)
    assert pipeline.camera is small_camera
    assert pipeline.flow_stage is not None
    assert pipeline.flow_stage.camera is small_camera
    with pytest.raises(PacketError, match="80x60 sensor"):
        pipeline.push(replace(stream[:100], width=80, height=60))
    assert pipeline.counters.uncalibrated_events == 100
    pipeline.push(stream)
    direct = FlowStage(CONFIG, small_camera).push(stream)
    assert values(pipeline.take_flow()) == values(direct)


def test_lost_packet_breaks_the_flow(stream: Events, small_camera: Camera):
    packets = list(packetize(stream, 2.0))
    pipeline = Pipeline(CONFIG, small_camera)
    for packet in packets[:40] + packets[41:]:
        pipeline.push(packet)
    gap_ns = int(stream.t[0]) + 80_000_000
    fields = pipeline.take_flow()
    assert not any(e.window_start_ns < gap_ns < e.window_end_ns for e in fields)
    assert {e.window_end_ns < gap_ns for e in fields} == {True, False}


class Taker:
    """Notes what a pipeline hands over."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events = 0
        self.first_ns = 0

    def push(self, events: Events, clock_offset_ns: int = 0, estimate: bool = True) -> tuple[()]:
        self.calls.append("push")
        self.events += len(events)
        self.first_ns = self.first_ns or int(events.t[0]) + clock_offset_ns
        return ()

    def flush(self) -> tuple[()]:
        self.calls.append("flush")
        return ()

    def break_stream(self) -> None:
        self.calls.append("break")

    def set_camera(self, camera: Camera) -> None:
        self.calls.append("camera")

    def imply(self, motion: EgomotionEstimate, depth: Depth | None) -> None:
        self.calls.append("imply")


def test_another_can_take_the_events(stream: Events, small_camera: Camera):
    taker = Taker()
    pipeline = Pipeline(replace(CONFIG, estimate="both"), small_camera, taker)
    assert pipeline.flow_stage is None
    start_ns = 1_700_000_000_000_000_000
    packets = list(packetize(replace(stream, t=stream.t + start_ns), 2.0))
    for packet in packets[:20] + packets[21:]:
        pipeline.push(packet)
    pipeline.flush()
    assert pipeline.take_flow() == []
    assert taker.calls[0] == "camera"
    assert taker.calls[-1] == "flush"
    assert taker.calls.count("push") == len(packets) - 1
    assert taker.calls.count("break") == 1
    assert taker.calls.count("imply") == pipeline.counters.windows
    assert taker.events == pipeline.counters.events
    # From the sensor's clock, which starts anywhere, to that of the headers.
    assert abs(taker.first_ns - start_ns - int(stream.t[0])) <= 1000
    unasked = Taker()
    Pipeline(PipelineConfig(), small_camera, unasked).push(stream)
    assert unasked.calls == []


# --------------------------------------------------------------------------------- flow of a motion

OMEGA, VELOCITY = np.array([0.3, -0.5, 0.8]), np.array([0.4, -0.2, 0.3])


def motion(stamp_ns: int = 0, **changes: Any) -> EgomotionEstimate:
    nothing = np.full((3, 3), np.nan)
    estimate = EgomotionEstimate(
        stamp_ns, stamp_ns, stamp_ns, 1000, OMEGA, np.zeros(3), nothing, 3, 2.0, Status.OK, 0.001
    )
    return replace(estimate, **changes)


def implied(camera: Camera, *known: tuple[EgomotionEstimate, Depth | None]) -> ImpliedFlow:
    flow = ImpliedFlow(camera)
    for one in known:
        flow.take(*one)
    return flow


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_rotation_implies_flow_without_depth(small_camera: Camera, stride: int):
    found = implied(small_camera, (motion(), None)).at(0, stride)
    assert found is not None
    true = motion_field(small_camera, OMEGA)[::stride, ::stride]
    np.testing.assert_allclose(found, true, atol=1e-3)


def test_translation_implies_flow_by_the_depth(small_camera: Camera):
    moving = motion(linear_velocity=VELOCITY)
    rays = undistorted_bearings(small_camera)
    plane = Plane(np.array([0.0, 0.6, 0.8]), 2.0)
    inverse = plane.inverse_depth(rays[..., 0], rays[..., 1])
    raw = small_camera.bearings.astype(np.float64)
    raw /= raw[..., 2:]
    image = 1 / plane.inverse_depth(raw[..., 0], raw[..., 1])
    image[50:60, 100:120] = np.nan
    of_plane = motion_field(small_camera, OMEGA, VELOCITY, 1 / inverse)
    cases: list[tuple[Depth, np.ndarray, float]] = [
        (3.0, motion_field(small_camera, OMEGA, VELOCITY, np.full((180, 240), 3.0)), 1e-3),
        (plane, of_plane, 1e-3),
        (DepthImage(image.astype(np.float32), 0), of_plane, 1.0),
    ]
    for depth, true, tolerance in cases:
        found = implied(small_camera, (moving, depth)).at(0)
        assert found is not None
        known = np.isfinite(found).all(axis=2)
        assert known.mean() > 0.75
        np.testing.assert_allclose(found[known], true[known], atol=tolerance)
    assert implied(small_camera, (moving, None)).at(0) is None


def test_start_is_near_the_implied_flow(small_camera: Camera):
    plane = Plane(np.array([0.0, 0.6, 0.8]), 2.0)
    flow = implied(small_camera, (motion(linear_velocity=VELOCITY), plane))
    start, true = flow.start(0), flow.at(0)
    assert start is not None
    assert true is not None
    assert start.shape == true.shape == (180, 240, 2)
    speed = np.linalg.norm(true, axis=2)
    assert np.linalg.norm(start - true, axis=2).max() < 0.1 * speed.max()
    assert flow.start(10**9) is None
    # Without translation in the model the last flow knows more.
    assert implied(small_camera, (motion(), None)).start(0) is None


def test_windows_start_at_the_implied_flow(
    stream: Events, small_camera: Camera, monkeypatch: pytest.MonkeyPatch
):
    starts: list[np.ndarray | None] = []
    estimate = FlowEstimator.estimate

    def note(self: FlowEstimator, events: Events, start: Any = None, stride: int = 1) -> Any:
        starts.append(start)
        return estimate(self, events, start, stride)

    monkeypatch.setattr(FlowEstimator, "estimate", note)
    stage, offset_ns = FlowStage(CONFIG, small_camera), 10**12
    near_ns = int(stream.t[0]) + 15_000_000 + offset_ns
    still = motion(near_ns, angular_velocity=np.array(TRUTH), linear_velocity=np.zeros(3))
    stage.imply(still, 2.0)
    fields = stage.push(stream, offset_ns)
    assert [start is not None for start in starts] == [True, True, False, False]
    true = motion_field(small_camera, TRUTH)
    assert starts[0] is not None
    assert np.median(np.linalg.norm(starts[0] - true, axis=2)) < 20
    assert error_px_s(fields[0], true) < 0.2 * float(np.median(np.linalg.norm(true, axis=2)))
    cold = FlowStage(CONFIG, small_camera).push(stream)
    assert fields[0].iterations < cold[0].iterations


def test_plane_of_the_planar_model_needs_no_scale(small_camera: Camera):
    normal, distance_m = np.array([0.0, 0.6, 0.8]), 2.0
    along_axis_m = distance_m / normal[2]
    planar = motion(plane_normal=normal, velocity_over_distance=VELOCITY / along_axis_m)
    known = motion(linear_velocity=VELOCITY)
    found = implied(small_camera, (planar, None)).at(0)
    expected = implied(small_camera, (known, Plane(normal, distance_m))).at(0)
    assert found is not None
    assert expected is not None
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_nearest_motion_counts_and_an_old_one_does_not(small_camera: Camera):
    turning = motion(0, angular_acceleration=np.array([10.0, 0.0, 0.0]))
    other = motion(40_000_000, angular_velocity=np.zeros(3))
    flow = implied(small_camera, (turning, None), (other, None))
    near, far = flow.at(10_000_000), flow.at(35_000_000)
    assert near is not None
    assert far is not None
    expected = motion_field(small_camera, OMEGA + np.array([0.1, 0.0, 0.0]))
    np.testing.assert_allclose(near, expected, atol=1e-3)
    assert not far.any()
    assert flow.at(200_000_000) is None
    flow.forget()
    assert flow.at(0) is None
    untrusted = motion(status=Status.NO_STRUCTURE)
    assert implied(small_camera, (untrusted, None)).at(0) is None


def test_thinned_camera_sees_each_so_manieth_pixel(small_camera: Camera):
    thin = thinned(small_camera, 4)
    assert (thin.width, thin.height) == (60, 45)
    np.testing.assert_allclose(
        undistorted_bearings(thin), undistorted_bearings(small_camera)[::4, ::4], atol=1e-12
    )


def test_residual_is_what_the_motion_does_not_explain(stream: Events, small_camera: Camera):
    pipeline = Pipeline(replace(CONFIG, estimate="both"), small_camera)
    pipeline.push(stream)
    stage = pipeline.flow_stage
    assert stage is not None
    fields = pipeline.take_flow()
    residual = stage.residual(fields[-1])
    assert residual is not None
    assert residual.shape == fields[-1].flow.shape
    speed = np.nanmedian(np.linalg.norm(fields[-1].flow, axis=2))
    assert np.nanmedian(np.linalg.norm(residual, axis=2)) < 0.2 * speed
    assert FlowStage(CONFIG, small_camera).residual(fields[-1]) is None
    assert FlowStage(CONFIG).residual(fields[-1]) is None


# ------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimate": "all"}, "estimate 'all': expected one of egomotion, flow, both"),
        ({"flow_rate_hz": -1.0}, "flow_rate_hz -1.0: expected 0.1 to 10000, or 0 for windows one"),
        ({"flow_rate_hz": math.nan}, "flow_rate_hz nan"),
        ({"flow_window_ms": 0.0}, "flow_window_ms 0.0: expected 0.001 to 1e6"),
        ({"flow_window_ms": math.nan}, "flow_window_ms nan"),
        ({"flow_window_px": 0.5}, "flow_window_px 0.5: expected 1 to 10000, or 0 for no limit"),
        ({"flow_window_px": math.inf}, "flow_window_px inf"),
        ({"flow_min_events": 3}, "flow_min_events 3: expected at least 10"),
        ({"flow_max_events": 10}, "flow_max_events 10: expected at least flow_min_events 2000"),
        ({"flow_stride": -1}, "flow_stride -1: expected 1 to 64, or 0 for a field below 500 kB"),
        ({"flow_stride": 65}, "flow_stride 65"),
        ({"flow_deadline_ms": -1.0}, r"flow_deadline_ms -1.0: expected 0 \(none\) to 1e6"),
    ],
)
def test_bad_flow_configuration_is_refused_in_one_line(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        PipelineConfig(**options)
    assert "\n" not in str(caught.value)


def test_configuration_reaches_the_flow_estimator():
    flow = PipelineConfig(
        flow_min_events=700, flow_max_events=5000, flow_deadline_ms=12.5, gradient="raw"
    ).flow()
    assert (flow.min_events, flow.max_events, flow.gradient) == (700, 5000, "raw")
    assert flow.deadline_s == pytest.approx(0.0125)
    assert PipelineConfig().flow().deadline_s == 0.0


def test_warm_up_compiles_what_only_things_that_move_by_themselves_need() -> None:
    """Else the first of them would hold up a live stream by seconds."""
    pipeline_flow.warm_up(PipelineConfig(estimate="flow"))
    assert flow_search._hand_on.signatures
