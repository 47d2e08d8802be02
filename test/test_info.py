"""`event-binning-grad info`: what a recording holds, against what is known of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_harness import Made

from event_binning_grad import cli
from event_binning_grad.events.bag_writer import write_bag
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.repacking import mono_packet
from event_binning_grad.events.summary import MAX_BINS, PEAK_NS, summarise
from event_binning_grad.events.types import Events, Header, Stamp

CAMERA_INFO = {
    "width": 32, "height": 24, "distortion_model": "plumb_bob", "d": [0.0] * 5,
    "k": [20.0, 0, 15, 0, 20, 10, 0, 0, 1],
}  # fmt: skip


def made_events(t: np.ndarray, width: int = 32, height: int = 24) -> Events:
    n = np.arange(len(t))
    return Events(
        t.astype(np.int64), (7 * n % width).astype(np.uint16), (5 * n % height).astype(np.uint16),
        (n % 3 == 0).astype(np.uint8), width, height,
    )  # fmt: skip


def packet(t_ns: list[int], seq: int, stamp_ns: int) -> Any:
    return mono_packet(made_events(np.array(t_ns)), Header(Stamp.from_ns(stamp_ns)), seq)


def info(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert cli.main(["info", *map(str, arguments), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)  # nothing else is on standard output


@pytest.mark.parametrize(
    ("name", "events", "on", "encoding", "size", "triggers"),
    [
        ("test_events_1", 343_474, 125_183, "evt3", [640, 480], 4157),
        ("test_events_1.bag", 343_474, 125_183, "evt3", [640, 480], 4157),
        ("test_data_libcaer_rollover", 334_331, 181_908, "libcaer", [640, 480], 0),
        ("test_data_mono_cd", 100, 50, "mono", [640, 480], 0),
        ("test_events_2/test_events_2_0.mcap", 571_266, 211_043, "libcaer_cmp", [346, 260], 0),
    ],
)
def test_real_bags(
    data_dir: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    events: int,
    on: int,
    encoding: str,
    size: list[int],
    triggers: int,
) -> None:
    found = info(capsys, data_dir / "bags" / name)
    assert (found["events"], found["on_events"], found["encoding"]) == (events, on, encoding)
    assert found["off_events"] == events - on
    assert [found["width"], found["height"]] == size
    assert found["triggers_rising"] + found["triggers_falling"] == triggers
    assert sum(found["rate_events"]) == events
    assert found["mean_rate_hz"] == pytest.approx(events / found["duration_s"])
    assert found["topics"]
    assert not any(found["clock"].values())
    assert not any(found["packet_problems"].values())
    assert found["rejected_packets"] == {}
    assert found["hot_pixels"] is None  # too short


def test_real_text(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = info(capsys, data_dir / "ecd_shapes_rotation")
    assert found["events"] == 120_000
    assert found["duration_s"] == pytest.approx(1.428658)
    assert found["calibration"] == "plumb_bob"
    assert "imu.txt" in found["ground_truth"]
    assert found["companions"] == ["imu", "poses"]
    assert found["packets"] == 0


def test_a_bag_says_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = made_events(10**9 + np.arange(5000) * 100_000)
    t_ns = 10**9 + np.arange(6) * 10**8
    imu = [(int(t), np.array([0.0, 0.0, 1.0])) for t in t_ns]
    ranges = [(int(t), 1.5) for t in t_ns]
    truth = GroundTruth(t_ns, np.zeros((6, 3)), source="test")
    path = tmp_path / "bag"
    write_bag(path, packetize(events), CAMERA_INFO, truth, imu=imu, ranges=ranges)
    found = info(capsys, path)
    assert found["events"] == 5000
    assert found["first_stamp_ns"] == 10**9
    assert found["duration_s"] == pytest.approx(0.4999)
    assert found["calibration"] == "plumb_bob"
    assert found["ground_truth"] == "/event_camera/ground_truth/twist"
    assert found["companions"] == ["imu /event_camera/imu", "range /event_camera/range"]
    # For people: the same figures.
    assert cli.main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "5,000" in out
    assert "█" in out


def test_what_went_wrong_is_counted() -> None:
    damaged = packet([5], 3, 10**9)
    damaged = type(damaged)(
        damaged.header, 24, 32, 3, damaged.time_base, "mono", False, np.zeros(7, np.uint8)
    )
    unknown = type(damaged)(damaged.header, 24, 32, 4, 0, "morse", False, np.zeros(8, np.uint8))
    ms, s = 10**6, 10**9
    parts = [
        packet([0, ms], 0, 10 * s),
        packet([2 * ms, 3 * ms], 2, 10 * s + 2 * ms),  # one is missing
        damaged,
        unknown,
        packet([4 * ms, 6 * ms], 5, 17 * s),  # the host's clock was set
        packet([1 * s, 1 * s + ms], 0, 18 * s + ms),  # the camera began anew, and later
        packet([0, ms], 1, 19 * s),  # its clock was set back
    ]
    summary = summarise(Made(*parts))
    figures = summary.figures()
    assert figures["events"] == 10
    assert figures["packets"] == 7
    assert figures["packet_problems"] == {
        "lost_packets": 1, "late_packets": 0, "repeated_packets": 0, "cut_packets": 0,
        "sequence_gaps": 1,
    }  # fmt: skip
    assert figures["clock"]["clock_resets"] == 2
    assert figures["clock"]["clock_jumps"] == 1
    assert sum(figures["rejected_packets"].values()) == 2
    assert any("morse" in reason for reason in figures["rejected_packets"])
    reasons = [jump["reason"] for jump in figures["discontinuities"]]
    assert any("lost" in reason for reason in reasons)
    assert any("+6.996 s" in reason for reason in reasons)
    # Spans one after another: 6 ms, then 1 ms, then 1 ms.
    assert figures["duration_s"] == pytest.approx(0.008)


def test_hot_pixels_are_those_of_the_load_control() -> None:
    rng = np.random.default_rng(3)
    t = np.sort(rng.integers(0, 6 * 10**9, 40_000))
    x, y = rng.integers(0, 32, len(t)), rng.integers(0, 24, len(t))
    hot = rng.random(len(t)) < 0.1
    x[hot], y[hot] = 11, 7
    events = Events(t, x.astype(np.uint16), y.astype(np.uint16), np.ones(len(t), np.uint8), 32, 24)
    chunks = [events[k : k + 777] for k in range(0, len(t), 777)]
    figures = summarise(Made(*chunks)).figures()
    assert figures["hot_pixels"] == [[11, 7]]
    assert figures["hot_pixel_events"] == np.count_nonzero((x == 11) & (y == 7))


def test_memory_is_bounded_by_coarser_bins() -> None:
    day_ns = 24 * 3600 * 10**9
    chunks = [made_events(k * day_ns // 7 + np.arange(5) * 10**6) for k in range(8)]
    summary = summarise(Made(*chunks))
    assert len(summary.rate) <= MAX_BINS
    assert summary.rate.sum() == 40
    assert summary.peak_events == 5
    assert summary.longest_silence_ns == pytest.approx(day_ns / 7, rel=1e-6)
    assert summary.rate_bin_ns == 100_000_000_000


def test_peak_rate_of_a_short_recording_is_not_below_its_mean() -> None:
    figures = summarise(Made(made_events(np.arange(100) * 10_000))).figures()
    assert figures["peak_rate_hz"] == pytest.approx(figures["mean_rate_hz"])


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.integers(0, 40_000_000), min_size=1, max_size=60),
    cut=st.integers(1, 60),
)
def test_rate_does_not_depend_on_how_the_stream_is_cut(steps: list[int], cut: int) -> None:
    t = np.cumsum(np.array(steps, np.int64))
    events = made_events(t)
    chunks = [events[k : k + cut] for k in range(0, len(t), cut)]
    summary = summarise(Made(*chunks))
    bins = (t - t[0]) // PEAK_NS
    counts = np.bincount(bins)
    assert summary.rate.tolist() == counts.tolist()
    assert summary.peak_events == counts.max()
    assert summary.duration_ns == t[-1] - t[0]
    assert summary.longest_silence_ns == np.diff(t).max(initial=0)


def test_a_bag_without_packets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bag(tmp_path / "bag", iter(()), None)
    found = info(capsys, tmp_path / "bag")
    assert (found["events"], found["duration_s"], found["width"]) == (0, 0, None)
    assert found["mean_rate_hz"] == 0
    assert cli.main(["info", str(tmp_path / "bag")]) == 0


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(tmp_path / "absent"), "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def test_recording_is_read_once(data_dir: Path) -> None:
    recording = open_recording(data_dir / "bags" / "test_events_2" / "test_events_2_0.mcap")
    _ = recording.width  # the first packet is looked at beforehand
    read, passes = recording.packets, []
    recording.packets = lambda: passes.append(1) or read()  # type: ignore[method-assign,assignment]
    summarise(recording)
    assert len(passes) == 1
