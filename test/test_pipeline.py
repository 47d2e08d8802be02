"""The one path from packets to estimates: windows, counters, discontinuities, clocks, aids."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import event_binning_grad.pipeline as pipeline_module
from event_binning_grad.errors import ConfigError, PacketError
from event_binning_grad.estimation import (
    Depth,
    EgomotionEstimate,
    EgomotionEstimator,
    MotionModel,
    Status,
)
from event_binning_grad.estimation.imu import GyroFit
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.types import EventPacket, Events, Header, Stamp, stamp_to_ns
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.depth import DepthImage, Plane, rigid_step
from event_binning_grad.pipeline import MAX_TRIGGERS, Pipeline, PipelineConfig, warm_up
from event_binning_grad.simulate import hand_motion

TRUTH = (2.0, -1.0, 3.0)
# Windows one after the other, each event in one of them, whatever the motion.
DISJOINT: dict[str, Any] = {"output_rate_hz": 0.0, "window_px": 0.0, "adaptive_windows": False}
CONFIG = PipelineConfig(window_events=10_000, window_ms=0.0, min_events=1000, **DISJOINT)
MODES = {
    "one after the other": CONFIG,
    "overlapping": PipelineConfig(),
    "overlapping, whatever the motion": PipelineConfig(window_px=0.0, adaptive_windows=False),
    "overlapping, leaving events out": PipelineConfig(output_rate_hz=40.0, window_events=4000),
    "bounded by the motion": replace(CONFIG, window_px=6.0, adaptive_windows=True),
}


@pytest.fixture(scope="module")
def stream(simulated) -> Events:
    return simulated(TRUTH, 0.1)[:45_000]


def run(pipeline: Pipeline, packets: Iterable) -> list[EgomotionEstimate]:
    found = []
    for packet in packets:
        found += pipeline.push(packet)
    return found + pipeline.flush()


def values(estimates: list[EgomotionEstimate]) -> list[tuple]:
    return [
        (
            *(e.events, e.window_end_ns - e.window_start_ns, e.iterations, e.status),
            *(*e.angular_velocity, *e.covariance.ravel()),
        )
        for e in estimates
    ]


def spans_ms(estimates: list[EgomotionEstimate]) -> np.ndarray:
    return np.array([e.window_end_ns - e.window_start_ns for e in estimates]) / 1e6


def accounted(pipeline: Pipeline) -> int:
    """Events in the one bin each that the counters promise; what is still held is added."""
    c = pipeline.counters
    assert 0 <= c.used_events <= c.window_events
    binned = c.window_events + c.skipped_events + c.discarded_events + c.uncalibrated_events
    return binned + len(pipeline._buffer) + c.load.left_out


def test_packets_and_events_give_the_same_estimates(stream: Events, small_camera: Camera):
    by_events = run(Pipeline(CONFIG, small_camera), [stream])
    by_packets = run(Pipeline(CONFIG, small_camera), packetize(stream, 2.0))
    assert [e.events for e in by_events] == [10_000] * 4 + [5000]
    assert [e.status for e in by_events] == [Status.OK] * 5
    assert values(by_packets) == values(by_events)
    for e in by_events:
        assert np.degrees(np.abs(e.angular_velocity - TRUTH)).max() < 6.0


@pytest.mark.parametrize("config", MODES.values(), ids=MODES)
def test_pieces_of_any_size_give_the_same_estimates(
    config: PipelineConfig, stream: Events, small_camera: Camera
):
    pipeline = Pipeline(config, small_camera)
    whole = run(pipeline, [stream])
    assert len(whole) >= 2
    for step in (777, 10_000, 12_345):
        pieces = (stream[k : k + step] for k in range(0, len(stream), step))
        other = Pipeline(config, small_camera)
        assert values(run(other, pieces)) == values(whole)
        assert other.counters == pipeline.counters
        assert accounted(other) == len(stream)


def test_windows_overlap_at_the_output_rate(stream: Events, small_camera: Camera):
    """By default an estimate comes each 10 ms, from windows of up to 70 ms."""
    config = PipelineConfig(window_events=30_000, window_px=0.0, adaptive_windows=False)
    pipeline = Pipeline(config, small_camera)
    estimates = pipeline.push(stream)
    first_ns = int(stream.t[0])
    due_ms = np.arange(1, len(estimates) + 1) * 10.0
    ends_ms = np.array([e.window_end_ns - first_ns for e in estimates]) / 1e6
    assert len(estimates) == (int(stream.t[-1]) - first_ns) // 10_000_000 > 5
    assert (due_ms - 0.1 < ends_ms).all()
    assert (ends_ms < due_ms).all()
    assert spans_ms(estimates).max() < 70.0
    assert max(e.events for e in estimates) == 30_000
    assert [e.searched for e in estimates] == [True] + [False] * (len(estimates) - 1)
    assert all(e.status.ok for e in estimates)
    # No event is looked at twice by the counters, and none is left out.
    c = pipeline.counters
    assert c.window_events == int(np.searchsorted(stream.t, first_ns + len(estimates) * 10**7))
    assert c.used_events == c.window_events < sum(e.events for e in estimates)
    assert (c.skipped_events, c.skipped_windows, c.searches) == (0, 0, 1)
    assert accounted(pipeline) == len(stream)


def test_events_too_many_for_the_output_rate_are_counted(stream: Events, small_camera: Camera):
    config = PipelineConfig(window_events=4000, output_rate_hz=50.0)
    pipeline = Pipeline(config, small_camera)
    estimates = pipeline.push(stream)
    assert [e.events for e in estimates] == [4000] * len(estimates)
    c = pipeline.counters
    assert c.window_events == 4000 * len(estimates)
    assert c.skipped_events + c.window_events + len(pipeline._buffer) == len(stream)
    assert c.skipped_events > len(stream) / 3
    assert c.skipped_windows == 0


def test_thinned_windows_say_how_many_events_they_used(stream: Events, small_camera: Camera):
    pipeline = Pipeline(replace(CONFIG, max_events=3000), small_camera)
    estimates = run(pipeline, [stream])
    assert [e.used_events for e in estimates] == [3000] * 5
    c = pipeline.counters
    assert (c.window_events, c.used_events) == (45_000, 15_000)
    # Of overlapping windows each event counts once, by the share that its first window used.
    overlapping = Pipeline(PipelineConfig(max_events=3000), small_camera)
    overlapping.push(stream)
    c = overlapping.counters
    assert c.window_events / 15 < c.used_events < c.window_events / 2


def test_windows_cut_off_by_the_deadline_are_counted(stream: Events, small_camera: Camera):
    pipeline = Pipeline(replace(CONFIG, deadline_ms=0.001), small_camera)
    assert not any(e.status.ok for e in pipeline.push(stream))
    assert pipeline.counters.estimates[Status.DEADLINE] == pipeline.counters.windows == 4


def test_window_px_bounds_how_far_events_move(stream: Events, small_camera: Camera):
    whole = Pipeline(PipelineConfig(window_px=0.0), small_camera).push(stream)
    for rate_hz in (100.0, 0.0):
        config = PipelineConfig(
            window_events=30_000, window_px=8.0, output_rate_hz=rate_hz, adaptive_windows=False
        )
        estimates = Pipeline(config, small_camera).push(stream)
        assert estimates[0].searched  # nothing was known of the motion
        assert len(estimates) > 2
        for before, e in pairwise(estimates):
            moved_px = before.speed_px_s * (e.window_end_ns - e.window_start_ns) * 1e-9
            assert moved_px <= 8.0
            assert moved_px > 7.0 or e.events <= config.wanted_events
        assert spans_ms(estimates[1:]).max() < spans_ms(whole[1:]).max() / 3


def test_window_px_leaves_windows_enough_events(stream: Events, small_camera: Camera):
    config = PipelineConfig(window_px=1.0, max_std_rad_s=10.0)
    estimates = Pipeline(config, small_camera).push(stream)
    assert {e.events for e in estimates[1:]} == {2 * config.min_events}
    assert config.wanted_events == 2 * config.min_events
    assert PipelineConfig(window_events=2000).wanted_events == 2000
    assert PipelineConfig(window_events=0).wanted_events == 3000


def test_adaptive_windows_follow_a_motion_that_changes_fast(simulated, small_camera: Camera):
    motion = hand_motion(0.8, (12.0, 12.0, 12.0), seed=3)
    events = simulated(motion, 0.18)
    rms, median_ms = {}, {}
    for adaptive in (True, False):
        config = PipelineConfig(adaptive_windows=adaptive, window_px=0.0, window_events=0)
        estimates = Pipeline(config, small_camera).push(events)
        t_s = np.array([e.stamp_ns for e in estimates]) * 1e-9
        omega = np.array([e.angular_velocity for e in estimates])
        rms[adaptive] = math.sqrt(((omega - motion.angular_velocity(t_s)) ** 2).mean())
        median_ms[adaptive] = float(np.median(spans_ms(estimates)))
    assert median_ms[True] < 0.8 * median_ms[False]
    assert rms[True] < 0.8 * rms[False]


@pytest.mark.parametrize("config", MODES.values(), ids=MODES)
def test_windows_left_out_are_counted_and_the_track_goes_on(
    config: PipelineConfig, stream: Events, small_camera: Camera
):
    """Who is behind pushes without estimating; the windows after go on from the last motion."""
    pieces = [stream[k : k + 3000] for k in range(0, len(stream), 3000)]
    before, after = pieces[:8], pieces[11:]
    pipeline, other = Pipeline(config, small_camera), Pipeline(config, small_camera)
    estimates = [e for piece in before for e in pipeline.push(piece)]
    assert values(estimates) == values([e for piece in before for e in other.push(piece)])
    for piece in pieces[8:11]:
        assert pipeline.push(piece, estimate=False) == []
        assert accounted(pipeline) == pipeline.counters.events
    skipped = pipeline.counters.skipped_windows
    later = run(pipeline, after)
    c = pipeline.counters
    assert c.skipped_windows == skipped >= 1
    assert c.skipped_events > 0
    assert c.discontinuities == c.discarded_events == 0
    assert accounted(pipeline) == c.events == len(stream)
    assert c.windows == len(estimates) + len(later) == sum(c.estimates.values())
    assert c.searches == 1
    if not config.adaptive_windows and not config.window_px:
        ends = [e.window_end_ns for e in run(Pipeline(config, small_camera), [stream])]
        assert [e.window_end_ns for e in later] == ends[-len(later) :]
    assert all(e.status.ok for e in later)
    assert not any(e.searched for e in later)
    for e in later[:-1]:  # the last one is what flush() found
        assert np.degrees(np.abs(e.angular_velocity - TRUTH)).max() < 8.0


def test_stream_that_is_never_estimated_is_counted_whole(stream: Events, small_camera: Camera):
    for config in MODES.values():
        pipeline = Pipeline(config, small_camera)
        for packet in packetize(stream, 2.0):
            assert pipeline.push(packet, estimate=False) == []
        c = pipeline.counters
        assert c.windows == c.window_events == c.used_events == 0
        assert c.skipped_windows >= 1
        assert accounted(pipeline) == c.events == len(stream)


def test_windows_end_at_whichever_limit_comes_first(stream: Events, small_camera: Camera):
    both = replace(CONFIG, window_ms=5.0)
    estimates = run(Pipeline(both, small_camera), [stream])
    assert len(estimates) > 5
    assert max(e.events for e in estimates) <= 10_000
    assert max(e.window_end_ns - e.window_start_ns for e in estimates) < 5_000_000
    by_time = run(Pipeline(replace(both, window_events=0), small_camera), [stream])
    assert sum(e.events for e in by_time) == len(stream)


def test_stamps_are_on_the_robots_clock(stream: Events, small_camera: Camera):
    """The sensor's own clock starts anywhere; stamps come back on the clock of the headers."""
    start_ns = 1_700_000_000_000_000_000
    shifted = replace(stream, t=stream.t + start_ns)
    estimates = run(Pipeline(CONFIG, small_camera), packetize(shifted, 2.0))
    direct = run(Pipeline(CONFIG, small_camera), [shifted])
    for a, b in zip(estimates, direct, strict=True):
        assert abs(a.stamp_ns - b.stamp_ns) <= 1000
        assert abs(a.window_start_ns - b.window_start_ns) <= 1000
        assert abs(a.window_end_ns - b.window_end_ns) <= 1000
        assert a.window_start_ns <= a.stamp_ns <= a.window_end_ns


def test_lost_packet_drops_the_incomplete_window(stream: Events, small_camera: Camera):
    packets = list(packetize(stream, 2.0))
    lost = len(packets) // 2
    pipeline = Pipeline(CONFIG, small_camera)
    before: list[EgomotionEstimate] = []
    for packet in packets[:lost]:
        before += pipeline.push(packet)
    held = len(pipeline._buffer)
    assert held > 0
    after: list[EgomotionEstimate] = []
    for packet in packets[lost + 1 :]:
        after += pipeline.push(packet)
    after += pipeline.flush()
    counters = pipeline.counters
    assert counters.discontinuities == 1
    assert counters.discarded_events == held
    assert counters.decoder.lost_packets == 1
    assert "seq" in (pipeline.last_discontinuity or "")
    assert accounted(pipeline) == counters.events == counters.decoder.events
    # No window reaches over the gap, and the track comes back.
    assert before[-1].window_end_ns < after[0].window_start_ns
    assert {e.status.ok for e in after[:-1]} == {True}  # the last one is what flush() found


@pytest.mark.parametrize("config", MODES.values(), ids=MODES)
def test_no_window_reaches_over_a_gap(config: PipelineConfig, stream: Events, small_camera: Camera):
    packets = list(packetize(stream, 2.0))
    lost = len(packets) // 2
    pipeline = Pipeline(config, small_camera)
    found = run(pipeline, packets[:lost] + packets[lost + 1 :])
    gap_ns = int(stream.t[0]) + 2_000_000 * lost
    assert not any(e.window_start_ns < gap_ns < e.window_end_ns for e in found)
    assert {e.window_end_ns < gap_ns for e in found} == {True, False}
    c = pipeline.counters
    assert c.discontinuities == 1
    assert c.searches >= 2
    assert accounted(pipeline) == c.events == c.decoder.events


def test_break_said_from_outside(stream: Events, small_camera: Camera):
    pipeline = Pipeline(CONFIG, small_camera)
    pipeline.push(stream[:4000])
    pipeline.break_stream("the queue overflowed")
    assert pipeline.counters.discarded_events == 4000
    assert pipeline.last_discontinuity == "the queue overflowed"
    assert pipeline.flush() == []
    assert len(pipeline.push(stream[4000:14_000])) == 1


def test_packets_without_calibration_are_counted_not_estimated(
    stream: Events, small_camera: Camera
):
    pipeline = Pipeline(CONFIG)
    packets = list(packetize(stream, 2.0))
    half = len(packets) // 2
    for packet in packets[:half]:
        assert pipeline.push(packet) == []
    assert pipeline.compensated_image() is None
    assert pipeline.counters.uncalibrated_events == pipeline.counters.decoder.events > 0
    assert pipeline.flush() == []
    pipeline.set_camera(small_camera)
    assert pipeline.camera is small_camera
    estimates = run(pipeline, packets[half:])
    assert len(estimates) >= 2
    assert all(e.status.ok for e in estimates[:-1])
    assert accounted(pipeline) == pipeline.counters.events == len(stream)
    assert pipeline.compensated_image() is not None


def test_wrong_geometry_is_refused_and_the_stream_lives_on(stream: Events, small_camera: Camera):
    pipeline = Pipeline(CONFIG, small_camera)
    other = Events.empty(640, 480)
    big = Events(
        np.arange(100, dtype=np.int64), np.zeros(100, np.uint16), np.zeros(100, np.uint16),
        np.ones(100, np.uint8), 640, 480,
    )  # fmt: skip
    for events in (big, other):
        with pytest.raises(PacketError, match="640x480 sensor, but the calibration is for 240x180"):
            pipeline.push(events)
    assert pipeline.counters.uncalibrated_events == 100
    assert len(run(pipeline, [stream])) == 5
    assert accounted(pipeline) == len(stream) + 100


def test_calibration_for_another_sensor_drops_what_is_held(stream: Events, small_camera: Camera):
    pipeline = Pipeline(CONFIG, small_camera)
    pipeline.push(stream[:3000])
    half = Camera(120, 90, small_camera.K / 2 + np.diag([0, 0, 0.5]), "plumb_bob", small_camera.d)
    pipeline.set_camera(half)
    assert pipeline.counters.discarded_events == 3000
    small = replace(stream, x=stream.x // 2, y=stream.y // 2, width=120, height=90)
    assert [e.events for e in run(pipeline, [small])] == [10_000] * 4 + [5000]
    assert accounted(pipeline) == len(stream) + 3000


def test_new_calibration_for_the_same_sensor_keeps_the_window(stream: Events, small_camera: Camera):
    pipeline = Pipeline(CONFIG, small_camera)
    pipeline.push(stream[:3000])
    pipeline.set_camera(Camera(240, 180, small_camera.K * [[1.0], [1.0], [1.0]]))
    assert len(pipeline.push(stream[3000:10_000])) == 1
    assert pipeline.counters.discarded_events == 0


def packet(
    encoding: str = "evt3", data: bytes = b"", seq: int = 0, width: int = 240
) -> EventPacket:
    events = np.frombuffer(data, np.uint8)
    return EventPacket(Header(Stamp(1, 0)), 180, width, seq, 0, encoding, False, events)


def test_bad_packets_are_refused_and_the_next_ones_taken(stream: Events, small_camera: Camera):
    pipeline = Pipeline(CONFIG, small_camera)
    with pytest.raises(PacketError, match="nonsense") as caught:
        pipeline.push(packet("nonsense"))
    assert "\n" not in str(caught.value)
    assert pipeline.counters.decoder.rejected_packets == 1
    assert pipeline.counters.events == 0
    estimates = run(pipeline, packetize(stream, 2.0))
    assert len(estimates) == 5
    assert pipeline.counters.events == len(stream)


def test_few_events_are_reported_not_estimated(stream: Events, small_camera: Camera):
    pipeline = Pipeline(CONFIG, small_camera)
    assert pipeline.flush() == []
    pipeline.push(stream[:0])
    pipeline.push(stream[:500])
    (estimate,) = pipeline.flush()
    assert estimate.status is Status.TOO_FEW_EVENTS
    assert estimate.events == 500
    assert pipeline.counters.estimates[Status.TOO_FEW_EVENTS] == 1
    assert pipeline.flush() == []


def test_counters_say_when_and_how_much(stream: Events, small_camera: Camera):
    pipeline = Pipeline(CONFIG, small_camera)
    estimates = run(pipeline, [stream[:0], stream[:30_000], stream[30_000:]])
    c = pipeline.counters
    assert c.events == len(stream)
    assert (c.first_event_ns, c.last_event_ns) == (int(stream.t[0]), int(stream.t[-1]))
    assert c.windows == len(estimates) == sum(c.estimates.values())
    assert c.window_events == sum(e.events for e in estimates)


LOAD = {
    "nothing": {},
    "cap": {"max_events_per_s": 2e5},
    "region": {"roi": (2.0, 3.0, 100.0, 90.0)},
    "all": {
        "max_events_per_s": 2e5, "roi": (2.0, 3.0, 180.0, 170.0), "hot_pixels": "learn",
        "refractory_us": 500.0, "background_us": 3000.0, "keep_share": 0.9,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LOAD)
def test_what_load_control_leaves_out_is_in_no_other_bin(
    name: str, stream: Events, small_camera: Camera
):
    pipeline = Pipeline(PipelineConfig(min_events=500, **LOAD[name]), small_camera)
    estimates = run(pipeline, packetize(stream, 2.0))
    c = pipeline.counters
    assert c.events == c.decoder.events == c.load.events == len(stream)
    assert accounted(pipeline) == len(stream)
    assert c.window_events + c.skipped_events == c.load.kept_events
    assert (c.load.left_out > 0) == (name != "nothing")
    if name in ("nothing", "cap"):
        trusted = [e for e in estimates if e.status.ok]
        assert len(trusted) > 5
        for e in trusted[3:]:  # in the first 10 ms the cap had to learn the rate
            assert np.degrees(np.abs(e.angular_velocity - TRUTH)).max() < 8.0


def test_windows_hold_what_load_control_keeps(stream: Events, small_camera: Camera, asked: list):
    config = replace(CONFIG, roi=(20.0, 30.0, 150.0, 100.0), keep_share=0.5, window_events=4000)
    Pipeline(config, small_camera).push(stream)
    assert len(asked) >= 2
    for events, _, _ in asked:
        assert (events.x.min(), events.x.max()) >= (20, 160)
        assert events.x.max() < 170
        assert events.y.min() >= 30
        assert events.y.max() < 130
        assert (events.width, events.height) == (240, 180)


def test_hot_pixels_of_another_sensor_are_refused(
    stream: Events, small_camera: Camera, tmp_path: Path
):
    path = tmp_path / "hot.yaml"
    path.write_text("width: 640\nheight: 480\nhot_pixels:\n- [1, 2]\n")
    config = replace(CONFIG, hot_pixels="file", hot_pixels_file=str(path))
    pipeline = Pipeline(config, small_camera)
    with pytest.raises(PacketError, match="640x480 pixels, but the events are of one of 240x180"):
        pipeline.push(stream)
    assert accounted(pipeline) == pipeline.counters.events == len(stream)


def test_clock_of_the_sensor_drifts_and_stamps_do_not(stream: Events, small_camera: Camera):
    """Packets that come late, from a clock that goes 100 ppm too slow, over 20 s."""
    rng, drift = np.random.default_rng(2), 100e-6
    repeated = [replace(stream[:9000], t=stream.t[:9000] + k * 10**9) for k in range(20)]
    pipeline, found = Pipeline(replace(CONFIG, window_events=3000), small_camera), []
    for packet in packetize(repeated, 4.0):
        sensor_ns = stamp_to_ns(packet.header.stamp)
        robot_ns = START_NS + round(sensor_ns * (1 + drift)) + int(rng.exponential(1e6))
        packet = replace(packet, header=Header(Stamp.from_ns(robot_ns)))
        found += [(e.stamp_ns, e.window_end_ns) for e in pipeline.push(packet)]
    direct = run(Pipeline(replace(CONFIG, window_events=3000), small_camera), repeated)
    late = [e for e in direct if e.stamp_ns > 6 * 10**9]
    assert len(late) > 30
    errors = [
        stamp - START_NS - e.stamp_ns * (1 + drift)
        for (stamp, _), e in zip(found[-len(late) :], late, strict=True)
    ]
    # Only some packets a second: their least delay is that of the offset.
    assert np.abs(errors).max() < 0.6e6
    assert pipeline.counters.clock.drift_ppm == pytest.approx(100, abs=30)
    assert pipeline.counters.clock.learnt
    as_sensor = Pipeline(replace(CONFIG, window_events=3000, clock="sensor"), small_camera)
    estimates = run(as_sensor, packetize(repeated[0], 4.0))
    assert abs(estimates[0].stamp_ns - direct[0].stamp_ns) < 2000  # EVT 3.0 has whole us


@pytest.mark.parametrize("rate_hz", [1e3, 5e3, 1e5])
def test_packets_that_begin_with_silence_do_not_set_the_clock_back(rate_hz: float):
    """Their first bytes only say the time: they came up to 4 ms before the first event was."""
    rng, count, late_ns = np.random.default_rng(1), round(4 * rate_hz), 300_000
    t = np.sort(rng.integers(0, 4 * 10**9, count))
    zeros = np.zeros(count, np.uint16)
    events = Events(t, zeros, zeros, np.ones(count, np.uint8), 240, 180)
    pipeline = Pipeline()
    for packet in packetize(events, 4.0):
        # The stream has no gaps, and neither have its packets: each begins where the last ended.
        since_ns = stamp_to_ns(packet.header.stamp) - int(t[0]) + 1000  # it is cut to us
        begin_ns = int(t[0]) + since_ns // 4_000_000 * 4_000_000
        stamp = Stamp.from_ns(START_NS + begin_ns + late_ns)
        pipeline.push(replace(packet, header=Header(stamp)))
    off_ns = pipeline.counters.clock.offset_ns - START_NS
    assert late_ns - 0.25e6 < off_ns < late_ns + 1e6


def test_a_camera_that_restarts_resets_the_clock(stream: Events, small_camera: Camera):
    pipeline = Pipeline(CONFIG, small_camera)
    for offset in (START_NS, START_NS + 10**11):
        for packet in packetize(stream[:12_000], 2.0):
            stamp = Stamp.from_ns(stamp_to_ns(packet.header.stamp) + offset)
            estimates = pipeline.push(replace(packet, header=Header(stamp)))
            for e in estimates:
                assert offset < e.stamp_ns < offset + 10**9
    c = pipeline.counters
    assert (c.clock.resets, c.clock.steps, c.discontinuities) == (1, 0, 1)


def trigger_packet(count: int, seq: int, start_us: int) -> EventPacket:
    """Edges on channel 3, one each us, and no event."""
    words = [0x8000 | start_us >> 12]
    for k in range(count):
        words += [0x6000 | start_us % 4096 + k, 0xA300 | k % 2]
    data = np.array(words, "<u2").view(np.uint8)
    stamp = Stamp.from_ns(START_NS + start_us * 1000)
    return EventPacket(Header(stamp), 180, 240, seq, 0, "evt3", False, data)


def test_triggers_are_handed_on_in_the_robots_time_though_no_event_comes(small_camera: Camera):
    pipeline = Pipeline(CONFIG, small_camera)
    pipeline.push(trigger_packet(3, 0, 5_000))
    assert pipeline.take_triggers() == [
        (START_NS + 5_000_000, 5_000_000, 0, 3),
        (START_NS + 5_001_000, 5_001_000, 1, 3),
        (START_NS + 5_002_000, 5_002_000, 0, 3),
    ]
    assert pipeline.take_triggers() == []
    for seq in range(1, 12):
        pipeline.push(trigger_packet(1000, seq, 4096 * (1 + seq)))
    kept = pipeline.take_triggers()
    assert len(kept) == MAX_TRIGGERS
    assert kept[0] == (START_NS + 12_288_000, 12_288_000, 0, 3)
    assert pipeline.counters.dropped_triggers == 1000


# What may happen to a stream: (what, size). Windows are tiny: hardly anything is solved.
happenings = st.lists(
    st.tuples(
        st.sampled_from(["events", "skip", "break", "flush", "foreign", "camera", "other camera"]),
        st.integers(0, 60),
    ),
    max_size=25,
)


@settings(max_examples=120, deadline=None)
@given(
    happenings,
    st.sampled_from([(25, 0.0), (0, 2.0), (40, 3.0)]),
    st.sampled_from([0.0, 100.0, 1000.0]),
    st.booleans(),
    st.sampled_from([{}, {"max_events_per_s": 2e3}, {"keep_share": 0.5, "refractory_us": 200.0}]),
)
def test_every_event_is_in_exactly_one_bin(
    happening: list[tuple[str, int]],
    limits: tuple[int, float],
    rate_hz: float,
    calibrated: bool,
    load: dict[str, Any],
):
    k = np.array([[10.0, 0, 8], [0, 10.0, 8], [0, 0, 1]])
    camera, other = Camera(16, 16, k), Camera(20, 16, k)
    config = PipelineConfig(
        window_events=limits[0], window_ms=limits[1], min_events=20, output_rate_hz=rate_hz,
        **load,
    )  # fmt: skip
    pipeline = Pipeline(config, camera if calibrated else None)
    now, sent, found = 0, 0, []
    for what, size in happening:
        if what == "camera":
            pipeline.set_camera(camera)
        elif what == "other camera":
            pipeline.set_camera(other)
        elif what == "break":
            pipeline.break_stream("said so")
        elif what == "flush":
            found += pipeline.flush()
        else:
            width = 20 if what == "foreign" else 16
            t = now + np.arange(size, dtype=np.int64) * 150_000
            now += size * 150_000
            zeros = np.zeros(size, np.uint16)
            sent += size
            events = Events(t, zeros, zeros, np.ones(size, np.uint8), width, 16)
            with suppress(PacketError):
                found += pipeline.push(events, estimate=what != "skip")
        assert accounted(pipeline) == pipeline.counters.events == sent
    c = pipeline.counters
    given_out = sum(e.events for e in found)
    assert c.window_events <= given_out if rate_hz else c.window_events == given_out
    assert sum(c.estimates.values()) == c.windows == len(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_events": -1}, "window_events -1"),
        ({"window_ms": -0.5}, "window_ms -0.5"),
        ({"window_ms": math.nan}, "window_ms nan"),
        ({"window_ms": math.inf}, "window_ms inf"),
        ({"window_events": 0, "window_ms": 0.0}, "both 0: a window needs a limit"),
        ({"window_events": 0, "window_ms": 1e-7}, "window_ms"),
        ({"min_events": 1}, "min_events 1: expected at least 10"),
        ({"window_events": 10**8}, "window_events 100000000: expected at most"),
        ({"window_events": 500}, "window_events 500 is below min_events 1500"),
        ({"window_px": -1.0}, "window_px -1.0: expected 1 to 10000, or 0 for no limit"),
        ({"window_px": 0.5}, "window_px 0.5"),
        ({"window_px": math.nan}, "window_px nan"),
        ({"output_rate_hz": -5.0}, "output_rate_hz -5.0: expected 0.1 to 10000, or 0 for windows"),
        ({"output_rate_hz": math.inf}, "output_rate_hz inf"),
        ({"output_rate_hz": math.nan}, "output_rate_hz nan"),
        ({"max_events": 1000}, "max_events 1000: expected at least min_events 1500"),
        ({"deadline_ms": -1.0}, "deadline_ms -1.0: expected 0"),
        ({"deadline_ms": math.nan}, "deadline_ms nan"),
        ({"max_std_rad_s": 0.0}, "max_std_rad_s 0"),
        ({"max_std_rad_s": math.nan}, "max_std_rad_s nan"),
        ({"max_std_m_s": -0.1}, "max_std_m_s -0.1: expected a positive number"),
        ({"max_std_m_s": math.nan}, "max_std_m_s nan"),
        ({"motion_model": "affine"}, "motion_model 'affine': expected one of rotation, full, pla"),
        ({"objective": "entropy"}, "objective 'entropy': expected one of variance"),
        ({"binning": "box"}, "'box'"),
        ({"reconstruction": "none"}, "'none'"),
        ({"gradient": "biased"}, "gradient 'biased': expected one of unbiased, raw"),
        ({"depth": "stereo"}, "depth 'stereo': expected one of none, constant, plane, image, ran"),
        ({"imu": "on"}, "imu 'on': expected one of off, start, prior, fixed"),
        ({"clock": "ntp"}, "clock 'ntp': expected one of auto, sensor, arrival"),
        ({"roi": (0.0, 0.0, 0.0, 5.0)}, "roi .*: expected a width and height of 1"),
        ({"device": "tpu"}, "device 'tpu': expected 'cpu' or 'cuda'"),
        ({"motion_model": "full"}, "motion_model 'full' needs depth: expected one of constant, pl"),
        ({"motion_model": "translation"}, "motion_model 'translation' needs depth"),
        ({"motion_model": "planar", "depth": "image"}, "'planar' with depth 'image': expected 'no"),
        ({"depth": "constant"}, "depth_m 0.0: expected a distance in m, above 0"),
        ({"depth": "constant", "depth_m": math.nan}, "depth_m nan"),
        ({"depth": "constant", "depth_m": math.inf}, "depth_m inf"),
        ({"depth": "plane"}, "plane 0 0 0 0: expected a normal"),
        ({"depth": "plane", "depth_plane": (0.0, 0.0, 1.0)}, "expected four finite numbers"),
        ({"depth": "plane", "depth_plane": (0.0, 0.0, 1.0, -1.0)}, "behind the camera"),
        ({"imu": "fixed"}, "imu 'fixed' with motion_model 'rotation': expected 'translation'"),
        (
            {"motion_model": "translation", "depth": "image", "imu": "prior"},
            "imu 'prior' with motion_model 'translation': expected 'fixed', or 'off'",
        ),
    ],
)
def test_bad_configuration_is_refused_in_one_line(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        PipelineConfig(**options)
    assert "\n" not in str(caught.value)


def test_configuration_reaches_the_estimator():
    config = PipelineConfig(
        motion_model="full", angular_acceleration=False, min_events=700, max_events=5000,
        deadline_ms=12.5, max_std_rad_s=0.3, max_std_m_s=0.4, objective="likelihood",
        binning="quadratic", reconstruction="cubic", depth="constant", depth_m=3.0, imu="prior",
    )  # fmt: skip
    egomotion = config.egomotion()
    assert egomotion.model is MotionModel.FULL
    assert not egomotion.angular_acceleration
    assert (egomotion.min_events, egomotion.max_events) == (700, 5000)
    assert egomotion.deadline_s == pytest.approx(0.0125)
    assert (egomotion.max_std_rad_s, egomotion.max_std_m_s) == (0.3, 0.4)
    contrast = egomotion.contrast
    assert (contrast.objective, contrast.binning) == ("likelihood", "quadratic")
    assert contrast.reconstruction == "cubic"
    assert replace(config, gradient="raw").egomotion().contrast.reconstruction is None
    assert (egomotion.gyro_prior, egomotion.gyro_needed) == (True, False)
    fixed = replace(config, motion_model="translation", imu="fixed").egomotion()
    assert (fixed.gyro_prior, fixed.gyro_needed) == (False, True)


@pytest.mark.parametrize("config", [CONFIG, PipelineConfig(window_events=0, window_ms=20.0)])
def test_warm_up_leaves_nothing_behind(
    config: PipelineConfig, small_camera: Camera, stream: Events
):
    before = values(run(Pipeline(config, small_camera), [stream]))
    warm_up(config, small_camera)
    assert values(run(Pipeline(config, small_camera), [stream])) == before


def test_time_going_back_between_events_breaks_the_stream(stream: Events, small_camera: Camera):
    pipeline = Pipeline(PipelineConfig(window_events=4000, window_ms=0.0, **DISJOINT), small_camera)
    pipeline.push(stream[:3000])
    pipeline.push(stream[1000:2000])
    assert pipeline.counters.discontinuities == 1
    assert pipeline.counters.discarded_events == 3000
    assert "time went back" in (pipeline.last_discontinuity or "")
    span = int(stream.t[2999] - stream.t[0] + stream.t[1999] - stream.t[1000])
    assert pipeline.counters.duration_ns == span


def test_events_out_of_order_are_refused(stream: Events, small_camera: Camera):
    pipeline = Pipeline(PipelineConfig(), small_camera)
    backwards = replace(stream[:100], t=stream.t[:100][::-1].copy())
    with pytest.raises(PacketError, match="out of order"):
        pipeline.push(backwards)
    assert pipeline.counters.events == 0


def test_warm_up_compiles_whatever_the_windows(small_camera: Camera):
    from event_binning_grad.estimation import contrast_cpu

    for config in (PipelineConfig(window_ms=0.5), PipelineConfig(window_events=0)):
        warm_up(config, small_camera)
        assert contrast_cpu._gather_serial.signatures
    assert contrast_cpu._gather.signatures


# A camera before a plane, on a clock of its own: what other sensors say must reach the estimator
# for the right time. Packets bring the robot's clock, on which the others' readings are stamped.
START_NS = 1_700_000_000_000_000_000
OMEGA, VELOCITY = np.array([0.3, -0.2, 0.6]), np.array([0.5, -0.3, 0.6])
NORMAL = np.array([0.2, -0.1, 1.0]) / np.linalg.norm([0.2, -0.1, 1.0])
PLANE = Plane(NORMAL, 2.0)
MOVING: dict[str, Any] = {
    "motion_model": "full", "window_px": 0.0, "adaptive_windows": False, "min_events": 500
}  # fmt: skip


def plane_at(seconds: float) -> Plane:
    """The plane as the camera sees it then, exactly."""
    return PLANE.moved(*rigid_step(OMEGA, VELOCITY, seconds))


def metres_at(seconds: float, camera: Camera) -> np.ndarray:
    bearings = camera.bearings.astype(np.float64)
    x, y = bearings[..., 0] / bearings[..., 2], bearings[..., 1] / bearings[..., 2]
    return (1 / plane_at(seconds).inverse_depth(x, y)).astype(np.float32)


@pytest.fixture(scope="module")
def plane_events(small_camera: Camera) -> Events:
    """0.2 s of bright points on the plane, more and more often; 10 % of the events are noise."""
    rng = np.random.default_rng(5)
    rays = np.ones((700, 3))
    rays[:, :2] = rng.uniform((-1.0, -0.8), (1.0, 0.8), (700, 2))
    points = rays / PLANE.inverse_depth(rays[:, 0], rays[:, 1])[:, None]
    seconds = np.arange(400) * 0.5e-3
    parts = []
    for k, s in enumerate(seconds):
        count = 80 + k // 2
        rotation, shift = rigid_step(OMEGA, VELOCITY, float(s))
        seen = points[rng.integers(0, len(points), count)] @ rotation.T + shift
        pixels = np.rint(small_camera.project(seen)).astype(int)
        stray = rng.random(count) < 0.1
        pixels[stray] = rng.integers(0, (240, 180), (stray.sum(), 2))
        inside = ((pixels >= 0) & (pixels < (240, 180))).all(axis=1)
        x, y = pixels[inside].T.astype(np.uint16)
        t = np.full(len(x), START_NS + round(s * 1e9), np.int64)
        parts.append(Events(t, x, y, np.ones(len(x), np.uint8), 240, 180))
    return Events.concatenate(parts)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Events, Depth | None, GyroFit | None]]:
    """What the estimator was asked to estimate from, window by window."""
    calls = []

    class Asked(EgomotionEstimator):
        def estimate(self, events: Events, depth=None, gyro=None) -> EgomotionEstimate:
            calls.append((events.copy(), depth, gyro))
            return super().estimate(events, depth, gyro)

    monkeypatch.setattr(pipeline_module, "EgomotionEstimator", Asked)
    return calls


def sensed(
    config: PipelineConfig,
    camera: Camera,
    events: Events,
    push: Any = lambda pipeline, seconds: None,
    period_s: float = 0.01,
    late_s: float = 0.0,
) -> tuple[Pipeline, list[EgomotionEstimate]]:
    """Estimates from packets. push(pipeline, s) is called for readings of s = 0, period_s,
    2 period_s, ..., each late_s after the packets of its time."""
    pipeline, found, n = Pipeline(config, camera), [], 0
    for packet in packetize(events, 2.0):
        now_s = (stamp_to_ns(packet.header.stamp) - START_NS) * 1e-9
        while n * period_s + late_s <= now_s:
            push(pipeline, n * period_s)
            n += 1
        found += pipeline.push(packet)
    return pipeline, found


def stamp_s(estimate: EgomotionEstimate) -> float:
    """Its reference time, s since the start."""
    return (estimate.stamp_ns - START_NS) * 1e-9


def assert_true_motion(estimates: list[EgomotionEstimate], tolerance: float) -> None:
    assert len(estimates) >= 10
    assert np.mean([e.status.ok for e in estimates]) > 0.8
    v = np.array([e.linear_velocity for e in estimates if e.status.ok])
    omega = np.array([e.angular_velocity for e in estimates if e.status.ok])
    assert np.sqrt(((v - VELOCITY) ** 2).mean()) < tolerance
    assert np.sqrt(((omega - OMEGA) ** 2).mean()) < tolerance


def test_plane_is_carried_along_with_the_estimated_motion(
    plane_events: Events, small_camera: Camera, asked: list
):
    config = PipelineConfig(depth="plane", depth_plane=(*NORMAL, 2.0), **MOVING)
    _, estimates = sensed(config, small_camera, plane_events)
    assert_true_motion(estimates, 0.1)
    assert plane_at(stamp_s(estimates[-1])).distance_m < 1.95  # it has come nearer
    for (_, depth, _), estimate in zip(asked, estimates, strict=True):
        true = plane_at(stamp_s(estimate))
        assert depth.normal == pytest.approx(true.normal, abs=0.02)
        assert depth.distance_m == pytest.approx(true.distance_m, abs=0.02)


def test_constant_depth_is_that_along_the_optical_axis(point_events, small_camera: Camera):
    events = point_events((0, 0, 0.5), v=(0.5, -0.4, 0), inverse_depth=lambda x, y: 0 * x + 0.5)
    config = PipelineConfig(
        motion_model="full", depth="constant", depth_m=2.0, window_events=0, **DISJOINT
    )
    pipeline = Pipeline(config, small_camera)
    pipeline.push(events)
    (estimate,) = pipeline.flush()
    assert estimate.status.ok
    assert estimate.linear_velocity == pytest.approx((0.5, -0.4, 0), abs=0.1)


def test_depth_image_nearest_in_time_is_taken(
    plane_events: Events, small_camera: Camera, asked: list
):
    def push(pipeline: Pipeline, seconds: float) -> None:
        stamp_ns = START_NS + round(seconds * 1e9)
        pipeline.push_depth(stamp_ns, metres_at(seconds, small_camera))

    config = PipelineConfig(depth="image", **MOVING)
    pipeline, estimates = sensed(config, small_camera, plane_events, push, 0.033, late_s=0.015)
    assert estimates[0].status is Status.NO_DEPTH  # the first image came after that window
    assert pipeline.counters.estimates[Status.NO_DEPTH] == 1
    assert_true_motion(estimates, 0.1)
    for (events, depth, _), estimate in zip(asked[1:], estimates[1:], strict=True):
        assert isinstance(depth, DepthImage)
        # Its stamp came to be on the clock of the events.
        taken_s = (depth.stamp_ns - int(events.t[0]) + estimate.window_start_ns - START_NS) * 1e-9
        came_s = np.arange(0.0, (estimate.window_end_ns - START_NS) * 1e-9 - 0.015, 0.033)
        assert np.abs(came_s - taken_s).min() < 2e-6
        nearest_s = np.abs(came_s - stamp_s(estimate)).min()
        assert abs(taken_s - stamp_s(estimate)) < nearest_s + 3e-3
        assert depth.metres == pytest.approx(metres_at(taken_s, small_camera), abs=1e-5)


def test_range_is_interpolated_to_the_windows_time(
    plane_events: Events, small_camera: Camera, asked: list
):
    """Along the optical axis: right for a plane in front, and near enough for this one."""

    def distance_m(seconds: float) -> float:
        return float(1 / plane_at(seconds).inverse_depth(0.0, 0.0))

    def push(pipeline: Pipeline, seconds: float) -> None:
        pipeline.push_range(START_NS + round(seconds * 1e9), distance_m(seconds))

    config = PipelineConfig(depth="range", **MOVING)
    _, estimates = sensed(config, small_camera, plane_events, push, 0.02)
    assert len(estimates) > 10
    assert distance_m(0.2) < 0.96 * distance_m(0.0)
    for (_, depth, _), estimate in zip(asked[2:], estimates[2:], strict=True):
        assert depth == pytest.approx(distance_m(stamp_s(estimate)), abs=3e-3)
    planar = replace(config, motion_model="planar")
    _, scaled = sensed(planar, small_camera, plane_events, push, 0.02)
    for estimate in scaled[5:]:
        assert estimate.linear_velocity == pytest.approx(
            estimate.velocity_over_distance * distance_m(stamp_s(estimate)), rel=3e-3
        )


@pytest.mark.parametrize("late_s", [0.0, 0.015])
def test_imu_is_fitted_to_the_estimates_time(
    late_s: float, plane_events: Events, small_camera: Camera, asked: list
):
    """An angular velocity that rises by the second is that of the estimate's stamp."""
    rising = np.array([5.0, -8.0, 20.0])

    def push(pipeline: Pipeline, seconds: float) -> None:
        pipeline.push_imu(START_NS + round(seconds * 1e9), OMEGA + rising * seconds)

    config = PipelineConfig(imu="start")
    _, estimates = sensed(config, small_camera, plane_events, push, 0.002, late_s)
    assert len(estimates) > 10
    for (_, _, gyro), estimate in zip(asked[2:], estimates[2:], strict=True):
        assert gyro.angular_velocity == pytest.approx(OMEGA + rising * stamp_s(estimate), abs=1e-3)
        assert gyro.angular_acceleration == pytest.approx(rising, abs=1e-2)
    asked.clear()
    sensed(PipelineConfig(), small_camera, plane_events, push, 0.002)
    assert all(gyro is None for _, _, gyro in asked)  # nobody wants it


def test_imu_gives_the_rotation_of_the_translation_model(
    plane_events: Events, small_camera: Camera
):
    def push(pipeline: Pipeline, seconds: float) -> None:
        if seconds < 0.101:
            pipeline.push_imu(START_NS + round(seconds * 1e9), OMEGA)

    config = replace(
        PipelineConfig(depth="plane", depth_plane=(*NORMAL, 2.0), **MOVING),
        motion_model="translation", imu="fixed",
    )  # fmt: skip
    pipeline, estimates = sensed(config, small_camera, plane_events, push, 0.002)
    trusted = [e for e in estimates if e.status is not Status.NO_ROTATION]
    assert_true_motion(trusted, 0.05)
    assert all(e.angular_velocity == pytest.approx(OMEGA) for e in trusted)
    # The IMU fell silent: nothing is estimated from 20 ms after its last sample on.
    silent = [e for e in estimates if e.window_end_ns > START_NS + 120_000_000]
    assert {e.status for e in silent} == {Status.NO_ROTATION}
    assert pipeline.counters.estimates[Status.NO_ROTATION] == len(silent) > 5


def test_depth_that_does_not_come_is_said(plane_events: Events, small_camera: Camera):
    pipeline = Pipeline(PipelineConfig(depth="image", **MOVING), small_camera)
    estimates = pipeline.push(plane_events)
    assert {e.status for e in estimates} == {Status.NO_DEPTH}
    c = pipeline.counters
    assert c.estimates[Status.NO_DEPTH] == c.windows == len(estimates) > 10
    assert c.window_events > 0
    assert c.used_events == 0
    assert accounted(pipeline) == len(plane_events)
