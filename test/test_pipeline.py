"""The one path from packets to estimates: windows, counters, discontinuities, clocks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_binning_grad.errors import ConfigError, PacketError
from event_binning_grad.estimation import EgomotionEstimate, Status
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.types import EventPacket, Events, Header, Stamp
from event_binning_grad.geometry import Camera
from event_binning_grad.pipeline import Pipeline, PipelineConfig, warm_up

TRUTH = (2.0, -1.0, 3.0)
CONFIG = PipelineConfig(window_events=10_000, window_ms=0.0)


@pytest.fixture(scope="module")
def stream(simulated) -> Events:
    return simulated(TRUTH, 0.1)[:45_000]


def run(pipeline: Pipeline, packets) -> list[EgomotionEstimate]:
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


def accounted(pipeline: Pipeline) -> int:
    """Events in the one bin each that the counters promise; what is still held is added."""
    c = pipeline.counters
    return c.window_events + c.discarded_events + c.uncalibrated_events + len(pipeline._buffer)


def test_packets_and_events_give_the_same_estimates(stream: Events, small_camera: Camera):
    by_events = run(Pipeline(CONFIG, small_camera), [stream])
    by_packets = run(Pipeline(CONFIG, small_camera), packetize(stream, 2.0))
    assert [e.events for e in by_events] == [10_000] * 4 + [5000]
    assert [e.status for e in by_events] == [Status.OK] * 5
    assert values(by_packets) == values(by_events)
    for e in by_events:
        assert np.degrees(np.abs(e.angular_velocity - TRUTH)).max() < 6.0


def test_pieces_of_any_size_give_the_same_estimates(stream: Events, small_camera: Camera):
    whole = run(Pipeline(CONFIG, small_camera), [stream])
    for step in (777, 10_000, 12_345):
        pieces = (stream[k : k + step] for k in range(0, len(stream), step))
        assert values(run(Pipeline(CONFIG, small_camera), pieces)) == values(whole)


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


# What may happen to a stream: (what, size). Windows are far below min_events: nothing is solved.
happenings = st.lists(
    st.tuples(
        st.sampled_from(["events", "break", "flush", "foreign", "camera", "other camera"]),
        st.integers(0, 60),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(happenings, st.sampled_from([(25, 0.0), (0, 2.0), (40, 3.0)]), st.booleans())
def test_every_event_is_in_exactly_one_bin(
    happening: list[tuple[str, int]], limits: tuple[int, float], calibrated: bool
):
    k = np.array([[10.0, 0, 8], [0, 10.0, 8], [0, 0, 1]])
    camera, other = Camera(16, 16, k), Camera(20, 16, k)
    config = PipelineConfig(window_events=limits[0], window_ms=limits[1], min_events=20)
    pipeline = Pipeline(config, camera if calibrated else None)
    now, sent, given = 0, 0, 0
    for what, size in happening:
        if what == "camera":
            pipeline.set_camera(camera)
        elif what == "other camera":
            pipeline.set_camera(other)
        elif what == "break":
            pipeline.break_stream("said so")
        elif what == "flush":
            given += sum(e.events for e in pipeline.flush())
        else:
            width = 20 if what == "foreign" else 16
            t = now + np.arange(size, dtype=np.int64) * 150_000
            now += size * 150_000
            zeros = np.zeros(size, np.uint16)
            sent += size
            try:
                found = pipeline.push(Events(t, zeros, zeros, np.ones(size, np.uint8), width, 16))
                given += sum(e.events for e in found)
            except PacketError:
                pass
        assert accounted(pipeline) == pipeline.counters.events == sent
    assert pipeline.counters.window_events == given
    assert sum(pipeline.counters.estimates.values()) == pipeline.counters.windows


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
        ({"window_events": 500}, "window_events 500 is below min_events 1000"),
        ({"max_std_rad_s": 0.0}, "max_std_rad_s 0"),
        ({"max_std_rad_s": math.nan}, "max_std_rad_s nan"),
        ({"gradient": "biased"}, "gradient 'biased': expected one of unbiased, raw"),
        ({"device": "tpu"}, "device 'tpu': expected 'cpu' or 'cuda'"),
    ],
)
def test_bad_configuration_is_refused_in_one_line(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        PipelineConfig(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [CONFIG, PipelineConfig(window_events=0, window_ms=20.0)])
def test_warm_up_leaves_nothing_behind(
    config: PipelineConfig, small_camera: Camera, stream: Events
):
    before = values(run(Pipeline(config, small_camera), [stream]))
    warm_up(config, small_camera)
    assert values(run(Pipeline(config, small_camera), [stream])) == before


def test_time_going_back_between_events_breaks_the_stream(stream: Events, small_camera: Camera):
    pipeline = Pipeline(PipelineConfig(window_events=4000, window_ms=0.0), small_camera)
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
