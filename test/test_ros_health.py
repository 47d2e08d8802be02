"""What the node needs no ROS for: the queue that sheds, and the judgement of its state."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from event_binning_grad.estimation import Status
from event_binning_grad.events.clock import ClockCounters
from event_binning_grad.events.decoder import DecoderCounters
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.load_control import LoadCounters
from event_binning_grad.events.types import Events
from event_binning_grad.pipeline import Pipeline, PipelineCounters
from event_binning_grad.ros import health
from event_binning_grad.ros.health import (
    Activity,
    Level,
    Report,
    SensorReport,
    assess,
    figures,
)
from event_binning_grad.ros.packet_queue import PacketQueue

BEFORE = Report(
    time_s=100.0,
    events_topic="/camera/events",
    publishers=1,
    ready=True,
    calibration_problem="",
    received_packets=1000,
    received_bytes=10_000,
    queued_packets=0,
    shed_packets=0,
    shed_bytes=0,
    rejected_packets=0,
    last_rejection="",
    last_arrival_s=100.0,
    published=50,
    last_published_s=100.0,
    dropped_readings=0,
    track_repairs=0,
    last_discontinuity="",
    device="cpu",
    gradient="unbiased",
    motion_model="full",
)


def counters(ok: int = 0, lost: int = 0, **others: int) -> PipelineCounters:
    counts = dict.fromkeys(Status, 0) | {Status.OK: ok}
    counts |= {Status[name.upper()]: n for name, n in others.items()}
    decoder = DecoderCounters(lost_packets=lost)
    return PipelineCounters(decoder=decoder, windows=sum(counts.values()), estimates=counts)


# A good second after BEFORE.
NOW = replace(
    BEFORE,
    time_s=101.0,
    received_packets=1500,
    last_arrival_s=100.99,
    published=100,
    last_published_s=100.98,
    counters=counters(ok=50),
)


def test_a_good_second_is_ok() -> None:
    assert assess(BEFORE, NOW) == (Level.OK, "publishing")


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"ready": False}, Level.WARN, ["compiling"]),
        ({"received_packets": 0, "publishers": 0}, Level.WARN, ["/camera/events", "nobody"]),
        ({"received_packets": 0}, Level.WARN, ["no events yet", "nothing comes"]),
        ({"last_arrival_s": 95.0}, Level.ERROR, ["for 6 s", "stopped"]),
        ({"calibration_problem": "no calibration"}, Level.WARN, ["no calibration"]),
        ({"rejected_packets": 3, "last_rejection": "odd"}, Level.WARN, ["3 packets", "odd"]),
        ({"shed_packets": 7, "shed_bytes": 9000}, Level.WARN, ["7 packets (9 kB) dropped"]),
        ({"counters": counters(ok=50, lost=4)}, Level.WARN, ["4 packets lost", "rmem_max"]),
        (
            {"counters": counters(ok=2, no_structure=5, not_converged=1)},
            Level.WARN,
            ["6 of 8 windows", "5 no_structure", "1 not_converged", "no texture"],
        ),
        ({"counters": counters(), "last_published_s": 90.0}, Level.WARN, ["no window fills"]),
        (
            {"counters": replace(counters(ok=30), skipped_windows=20)},
            Level.WARN,
            ["20 of 50 windows left out", "lower output_rate_hz"],
        ),
    ],
)
def test_what_is_wrong_is_said(changes: dict, level: Level, words: list[str]) -> None:
    found, text = assess(BEFORE, replace(NOW, **changes))
    assert found == level
    assert all(word in text for word in words), text
    assert "\n" not in text


def test_what_load_control_leaves_out_is_listed_by_reason() -> None:
    load = LoadCounters(
        events=100, kept_events=40, outside_roi_events=10, masked_events=9, refractory_events=8,
        background_events=7, decimated_events=6, over_cap_events=20, hot_pixels=3,
    )  # fmt: skip
    later = replace(NOW, counters=replace(counters(ok=50), load=load))
    assert assess(BEFORE, later)[0] == Level.OK
    listed = figures(BEFORE, later)
    names = (
        "kept events", "events outside roi", "events of masked pixels", "refractory events",
        "background events", "decimated events", "events over cap",
    )  # fmt: skip
    assert [listed[name] for name in names] == ["40", "10", "9", "8", "7", "6", "20"]
    assert sum(int(listed[name]) for name in names) == 100
    assert (listed["kept events share"], listed["masked pixels"]) == ("0.400", "3")
    assert figures(NOW, NOW)["kept events share"] == ""


@pytest.mark.parametrize(
    ("load", "clock", "words"),
    [
        ({"events": 70, "outside_roi_events": 70}, {}, ["all of 70 events are left out", "roi"]),
        ({"hot_pixels_problem": "disk full"}, {}, ["hot pixels were not saved: disk full"]),
        ({}, {"steps": 1, "last_step_ns": -250_000_000}, ["robot's clock was set by -0.250 s"]),
        ({}, {"resets": 1}, ["camera's clock began anew"]),
        ({}, {"delays_ns": [510_000_000] * 9}, ["510 ms after the times of their events"]),
        ({}, {"unstamped": 9}, ["9 packets came with a header stamp of 0", "driver stamp them"]),
    ],
)
def test_trouble_with_time_or_load_is_said(load: dict, clock: dict, words: list[str]) -> None:
    counts = replace(counters(ok=50), load=LoadCounters(**load), clock=ClockCounters(**clock))
    level, text = assess(BEFORE, replace(NOW, counters=counts))
    assert level == Level.WARN
    assert all(word in text for word in words), text
    # It is said once: a period later it is history, but for what lasts.
    after = replace(NOW, counters=counts)
    lasts = "hot_pixels_problem" in load or "delays_ns" in clock
    assert (assess(after, after)[0] == Level.OK) != lasts


def test_the_clocks_are_listed() -> None:
    clock = ClockCounters(learnt=True, offset_ns=1_500_000_000, drift_ppm=-12.345, steps=2)
    clock.last_step_ns, clock.ignored_stamps = 3_000_000, 4
    for delay_ms in range(1, 102):
        clock.note_delay(delay_ms * 1_000_000)
    listed = figures(BEFORE, replace(NOW, counters=replace(counters(ok=50), clock=clock)))
    assert listed["clock"] == "learnt from the stamps"
    assert listed["clock offset s"] == "1.500000"
    assert listed["clock drift ppm"] == "-12.35"
    assert listed["packet delay ms p50"] == "51.000"
    assert listed["packet delay ms p99"] == "100.000"
    assert (listed["robot clock steps"], listed["robot clock last step s"]) == ("2", "0.003000")
    assert listed["ignored stamps"] == "4"
    none = figures(BEFORE, NOW)
    assert (none["clock"], none["packet delay ms p50"]) == ("of the events", "")


DEPTH = SensorReport(
    name="depth",
    needed_by="motion_model full with depth image",
    topic="/camera/depth",
    publishers=1,
    received=30,
    refused=0,
    dropped=0,
    last_refusal="",
    last_arrival_s=100.95,
    behind_s=0.02,
)


def test_an_imu_later_than_the_events_is_mentioned() -> None:
    imu = replace(DEPTH, name="imu", needed_by="imu prior", topic="/imu")
    late = replace(NOW, sensors=(imu,), counters=replace(counters(ok=50), unaided_windows=50))
    level, text = assess(BEFORE, late)
    assert level == Level.WARN
    assert "50 of 50 windows had no IMU samples up to their ends" in text
    assert figures(BEFORE, late)["windows without imu"] == "50"
    few = replace(late, counters=replace(counters(ok=50), unaided_windows=3))
    assert assess(BEFORE, few)[0] == Level.OK


def test_a_sensor_that_works_is_not_mentioned() -> None:
    assert assess(BEFORE, replace(NOW, sensors=(DEPTH,))) == (Level.OK, "publishing")


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        (
            {"received": 0, "publishers": 0, "behind_s": math.nan},
            Level.WARN,
            [
                "motion_model full with depth image: no depth yet on /camera/depth",
                "nobody publishes it",
                "remap ~/depth",
            ],
        ),
        ({"received": 0}, Level.WARN, ["no depth yet", "nothing comes"]),
        ({"last_arrival_s": 95.0}, Level.ERROR, ["no depth on /camera/depth for 6 s", "stopped"]),
        (
            {"refused": 3, "last_refusal": "encoding 'mono8'"},
            Level.WARN,
            ["3 messages on /camera/depth refused", "encoding 'mono8'"],
        ),
        ({"behind_s": 40.0}, Level.WARN, ["40.0 s behind those of the events", "one clock"]),
        ({"behind_s": -9.0}, Level.WARN, ["9.0 s ahead of those of the events", "one clock"]),
    ],
)
def test_what_is_wrong_with_a_sensor_is_said(changes: dict, level: Level, words: list[str]) -> None:
    now = replace(NOW, sensors=(replace(DEPTH, **changes),))
    found, text = assess(replace(BEFORE, sensors=(DEPTH,)), now)
    assert found == level
    assert all(word in text for word in words), text
    assert "\n" not in text


def test_refused_messages_of_before_are_not_said_again() -> None:
    refusing = (replace(DEPTH, refused=3, last_refusal="encoding 'mono8'"),)
    before, now = replace(BEFORE, sensors=refusing), replace(NOW, sensors=refusing)
    assert assess(before, now) == (Level.OK, "publishing")


def test_figures_of_a_sensor() -> None:
    values = figures(BEFORE, replace(NOW, sensors=(replace(DEPTH, refused=2, dropped=1),)))
    assert (values["depth messages"], values["depth refused"]) == ("30", "2")
    assert values["depth dropped"] == "1"
    assert values["depth age s"] == "0.050"
    assert values["depth behind events s"] == "0.020"
    never = replace(DEPTH, name="imu", received=0, behind_s=math.nan)
    values = figures(BEFORE, replace(NOW, sensors=(never,)))
    assert (values["imu age s"], values["imu behind events s"]) == ("", "")
    assert not any(name.startswith("depth") for name in values)


def test_the_worst_comes_first() -> None:
    level, text = assess(
        BEFORE, replace(NOW, calibration_problem="no calibration", last_arrival_s=90.0)
    )
    assert level == Level.ERROR
    assert text.startswith("no packets on")
    assert text.endswith("no calibration")


def test_a_hiccup_is_not_said() -> None:
    now = replace(NOW, counters=replace(counters(ok=48), skipped_windows=4))
    assert assess(BEFORE, now) == (Level.OK, "publishing")


@pytest.mark.parametrize("status", [status for status in Status if not status.ok])
def test_every_status_has_advice(status: Status) -> None:
    now = replace(NOW, counters=counters(**{status.name.lower(): 3}))
    found = assess(BEFORE, now)[1]
    assert f"(3 {status.value}): " in found
    assert not found.endswith(": ")


def test_figures_are_plain_text_and_counts_plain_integers() -> None:
    activity = Activity(
        [3.0, 5.0, 40.0],
        [2.0, 4.0, 6.0],
        [3, 3, 6],
        [1.5, math.nan, 2.5],
    )
    before = replace(BEFORE, counters=replace(counters(), window_events=5000, used_events=5000))
    since = replace(
        counters(), window_events=45_000, used_events=35_000, searches=3,
        skipped_windows=2, skipped_events=20_000,
    )  # fmt: skip
    now = replace(NOW, activity=activity, counters=since, track_repairs=2)
    values = figures(before, now)
    assert all(isinstance(value, str) for value in values.values())
    assert values["packets"] == "1500"
    assert values["published per s"] == "50.0"
    assert values["lag ms p50"] == "5.00"
    assert values["lag ms max"] == "40.00"
    assert values["solve ms mean"] == "4.00"
    assert values["iterations mean"] == "4.00"
    assert values["contrast gain mean"] == "2.00"
    assert values["used events share"] == "0.500"  # 30 of 60 thousand
    assert (values["skipped windows"], values["skipped events"]) == ("2", "20000")
    assert (values["track losses"], values["track repairs"]) == ("3", "2")
    assert values["motion model"] == "full"
    nothing = figures(BEFORE, NOW)
    assert nothing["lag ms p50"] == nothing["used events share"] == ""


def test_measurements_are_taken_once() -> None:
    measured = health.Measurements()
    estimate = SimpleNamespace(solve_time_s=0.002, iterations=4, contrast_gain=1.5)
    measured.add(estimate, 0.003)  # type: ignore[arg-type]
    measured.add(estimate, 0.004, 0.5)  # type: ignore[arg-type]
    taken = measured.take()
    assert (taken.lag_ms, taken.solve_ms) == ((3.0, 4.0), (2.0, 2.0))
    assert (taken.iterations, taken.contrast_gain) == ((4, 4), (1.5, 1.5))
    assert math.isnan(taken.known_share[0])
    assert taken.known_share[1] == 0.5
    assert measured.take() == Activity()


def put(queue: PacketQueue[int], packet: int, waited_s: float = 0.0) -> None:
    queue.put(packet, time.monotonic() - waited_s, 10)


def test_queue_keeps_the_order() -> None:
    queue: PacketQueue[int] = PacketQueue(10.0)
    for packet in range(3):
        put(queue, packet)
    taken = [queue.get(0.0) for _ in range(3)]
    assert [arrival and arrival.packet for arrival in taken] == [0, 1, 2]
    assert queue.get(0.0) is None
    assert (queue.received_packets, queue.received_bytes, queue.shed_packets) == (3, 30, 0)


def test_queue_drops_the_oldest_as_one_block() -> None:
    queue: PacketQueue[int] = PacketQueue(0.2)
    for packet in range(5):
        put(queue, packet)
    time.sleep(0.25)
    put(queue, 5)
    put(queue, 6)
    first, second = queue.get(0.0), queue.get(0.0)
    assert first is not None
    assert second is not None
    assert (first.packet, first.shed_before) == (5, 5)
    assert (second.packet, second.shed_before) == (6, 0)
    assert (queue.shed_packets, queue.shed_bytes) == (5, 50)


def test_queue_drops_what_a_stopped_stream_left() -> None:
    queue: PacketQueue[int] = PacketQueue(0.1)
    for packet in range(5):
        put(queue, packet)
    time.sleep(0.15)
    last = queue.get(0.0)
    assert last is not None
    assert (last.packet, last.shed_before) == (4, 4)
    assert len(queue) == 0


def test_queue_counts_the_wait_before_it() -> None:
    """Packets that were late already are dropped until they come in time again."""
    queue: PacketQueue[int] = PacketQueue(1.0)
    for packet, waited_s in enumerate((0.0, 0.9, 1.1, 0.9, 0.5, 0.3, 0.1, 0.3, 0.9)):
        put(queue, packet, waited_s)
    first = queue.get(0.0)
    assert first is not None
    assert (first.packet, first.shed_before) == (6, 6)
    assert len(queue) == 2


def test_queue_wakes_and_closes() -> None:
    queue: PacketQueue[int] = PacketQueue(1.0)
    threading.Timer(0.05, put, (queue, 1)).start()
    arrival = queue.get(5.0)
    assert arrival is not None
    threading.Timer(0.05, queue.close).start()
    began = time.monotonic()
    assert queue.get(5.0) is None
    assert time.monotonic() - began < 2
    put(queue, 2)
    assert queue.get(5.0) is None


def test_shed_packets_are_not_lost_ones() -> None:
    t = np.arange(3000) * 10_000
    x = np.zeros(3000, np.uint16)
    packets = list(packetize(Events(t, x, x, np.ones(3000, np.uint8), 32, 24), 1.0))
    pipeline = Pipeline()
    for packet in packets[:5]:
        pipeline.push(packet)
    pipeline.skip_packets(6)  # 5 to 10; 11 and 12 never came
    for packet in packets[13:]:
        pipeline.push(packet)
    decoder = pipeline.counters.decoder
    assert (decoder.shed_packets, decoder.lost_packets) == (6, 2)
    assert pipeline.counters.discontinuities == 1
    assert decoder.events == 100 * (len(packets) - 8)
    pipeline.skip_packets(1)
    pipeline.push(dataclasses.replace(packets[-1], seq=packets[-1].seq + 2))
    assert (decoder.shed_packets, decoder.lost_packets) == (7, 2)
    assert pipeline.last_discontinuity == f"1 packets were shed before seq {len(packets) + 1}"


def test_queue_lets_a_stream_through_that_is_always_a_little_late() -> None:
    queue: PacketQueue[int] = PacketQueue(0.5)
    put(queue, 0, waited_s=0.6)  # late: shed, and from now on only fresh ones are taken
    put(queue, 1, waited_s=0.3)
    assert len(queue) == 0
    time.sleep(1.6)  # three waits: this delay is the stream's own
    put(queue, 2, waited_s=0.3)
    put(queue, 3, waited_s=0.3)
    assert len(queue) == 2
    assert queue.shed_packets == 2
