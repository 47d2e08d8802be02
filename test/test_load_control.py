"""What is left out before the windows: against a plain reference, dv-processing, and statistics."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_binning_grad import cli
from event_binning_grad.errors import ConfigError, PacketError
from event_binning_grad.events import load_control
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.hot_pixels import (
    JUDGED_EACH_NS,
    HotPixels,
    load_mask,
    save_mask,
)
from event_binning_grad.events.load_control import SLOT_NS, LoadConfig, LoadControl, warm_up
from event_binning_grad.events.recordings import open_recording
from event_binning_grad.events.types import Events

US, MS, S = 10**3, 10**6, 10**9
ALL: dict[str, Any] = {
    "max_events_per_s": 1e5, "roi": (1, 0, 9, 7), "hot_pixels": "learn", "refractory_us": 40.0,
    "background_us": 300.0, "keep_share": 0.8,
}  # fmt: skip
EACH: dict[str, dict[str, Any]] = {
    "nothing": {},
    **{name: {name: value} for name, value in ALL.items()},
    "all": ALL,
}


def make(
    count: int, rate: float, seed: int = 0, size: tuple[int, int] = (12, 8), start: int = 0
) -> Events:
    """Events anywhere on a sensor, `rate` a second, and a pixel that fires all the time."""
    rng = np.random.default_rng(seed)
    t = start + np.sort(rng.integers(0, max(1, round(count / rate * S)), count))
    x = rng.integers(0, size[0], count).astype(np.uint16)
    y = rng.integers(0, size[1], count).astype(np.uint16)
    hot = rng.random(count) < 0.2
    x[hot], y[hot] = 3, 5
    return Events(t, x, y, rng.integers(0, 2, count, dtype=np.uint8), *size)


def rows(events: Events) -> list[tuple[int, int, int, int]]:
    return list(zip(*(a.tolist() for a in (events.t, events.x, events.y, events.p)), strict=True))


def pieces(events: Events, cuts: list[int]) -> list[Events]:
    borders = [0, *sorted(cut % (len(events) + 1) for cut in cuts), len(events)]
    return [events[a:b] for a, b in pairwise(borders)]


def controlled(control: LoadControl, parts: list[Events]) -> list[tuple[int, int, int, int]]:
    found = []
    for part in parts:
        found += rows(control.apply(part))
    return found


def accounted(control: LoadControl) -> int:
    c = control.counters
    return (
        c.kept_events + c.outside_roi_events + c.masked_events + c.refractory_events
        + c.background_events + c.decimated_events + c.over_cap_events
    )  # fmt: skip


class PlainControl:
    """The same, event by event in plain Python."""

    def __init__(self, config: LoadConfig) -> None:
        self.config = config
        reasons: list[str] = ["roi", "hot", "soon", "alone", "share", "cap"]
        self.left_out = dict.fromkeys(reasons, 0)
        self.kept_at: dict[tuple[int, int], int] = {}
        self.seen_at: dict[tuple[int, int], int] = {}
        self.counts: dict[tuple[int, int], int] = {}
        self.score: dict[tuple[int, int], int] = {}
        self.hot: set[tuple[int, int]] = set()
        self.judge_at: int | None = None
        self.number = 0
        self.slot = self.seen = self.kept = self.before = self.debt = 0

    def reason(self, t: int, x: int, y: int, width: int, height: int) -> str | None:
        config = self.config
        if config.hot_pixels == "learn":
            if self.judge_at is None:
                self.judge_at = t + JUDGED_EACH_NS
            if t >= self.judge_at:
                self.judge(width, height)
                self.judge_at += ((t - self.judge_at) // JUDGED_EACH_NS + 1) * JUDGED_EACH_NS
        x0, y0, w, h = config.roi
        if w and not (x0 <= x < x0 + w and y0 <= y < y0 + h):
            return "roi"
        self.counts[x, y] = self.counts.get((x, y), 0) + 1
        if (x, y) in self.hot:
            return "hot"
        if config.refractory_us:
            if t - self.kept_at.get((x, y), -S) < config.refractory_us * US:
                return "soon"
            self.kept_at[x, y] = t
        if config.background_us:
            around = [(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
            latest = max(self.seen_at.get(place, -S) for place in around)
            self.seen_at[x, y] = t
            if t - latest >= config.background_us * US:
                return "alone"
        return self.thinned(t)

    def thinned(self, t: int) -> str | None:
        number, self.number = self.number, self.number + 1
        bits = mixed((number * 0x9E3779B97F4A7C15 + t) % 2**64)
        if bits >> 32 >= round(self.config.keep_share * 2**32):
            return "share"
        if self.config.max_events_per_s:
            budget = self.config.max_events_per_s * SLOT_NS / S
            slot = t // SLOT_NS
            if slot != self.slot:
                burst = self.kept if self.kept > 1.25 * budget else min(self.kept, budget)
                self.debt = max(0, int(self.debt + burst - budget * (slot - self.slot)))
                self.before = self.seen if slot == self.slot + 1 else 0
                self.slot, self.seen, self.kept = slot, 0, 0
            room = budget - min(self.debt, budget / 2)
            share = min(1.0, room / self.before) if self.before else 1.0
            over = self.kept / budget - 1.25
            if over >= 0:
                share /= 2 ** (1 + math.floor(over / 0.25))
            self.seen += 1
            if bits % 2**32 >= int(share * 2**32):
                return "cap"
            self.kept += 1
        return None

    def judge(self, width: int, height: int) -> None:
        for x in range(width):
            for y in range(height):
                around = [
                    self.counts.get((c, r), 0)
                    for c in range(max(0, x - 2), min(width, x + 3))
                    for r in range(max(0, y - 2), min(height, y + 3))
                    if (c, r) != (x, y)
                ]
                own = self.counts.get((x, y), 0)
                hot = own > 8 and own > 6 * sum(around) / len(around)
                score = self.score.get((x, y), 0)
                self.score[x, y] = score = min(score + 1, 10) if hot else max(score - 1, 0)
                if score >= 6:
                    self.hot.add((x, y))
                elif score < 2:
                    self.hot.discard((x, y))
        self.counts.clear()

    def apply(self, events: Events) -> list[tuple[int, int, int, int]]:
        found = []
        for t, x, y, p in rows(events):
            reason = self.reason(t, x, y, events.width, events.height)
            if reason is None:
                found.append((t, x, y, p))
            else:
                self.left_out[reason] += 1
        return found


def mixed(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("rate", [2e3, 4e5])
def test_same_as_the_plain_reference(name: str, rate: float):
    config = LoadConfig(**EACH[name])
    events = make(12_000, rate, start=1_700_000_000 * S)
    control, plain = LoadControl(config), PlainControl(config)
    assert controlled(control, pieces(events, [1000, 1001, 7000])) == plain.apply(events)
    c = control.counters
    assert list(plain.left_out.values()) == [
        c.outside_roi_events, c.masked_events, c.refractory_events, c.background_events,
        c.decimated_events, c.over_cap_events,
    ]  # fmt: skip
    assert accounted(control) == c.events == len(events)
    assert c.left_out == sum(plain.left_out.values())
    if name == "hot_pixels" and rate == 2e3:
        assert c.hot_pixels == 1
        assert c.masked_events > 0


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(list(EACH)),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from([1e3, 1e5, 1e6])), max_size=6),
    st.lists(st.integers(0, 2000), max_size=8),
    st.integers(0, 5),
)
def test_how_packets_are_cut_makes_no_difference(
    name: str, parts: list[tuple[int, float]], cuts: list[int], seed: int
):
    config, start, made = LoadConfig(**EACH[name]), 0, [make(0, 1.0)]
    for count, rate in parts:
        made.append(make(count, rate, seed, start=start))
        start += round(count / rate * S)
    events = Events.concatenate(made)
    whole, cut = LoadControl(config), LoadControl(config)
    found = controlled(whole, [events])
    assert controlled(cut, pieces(events, cuts)) == found
    assert cut.counters == whole.counters
    assert accounted(whole) == whole.counters.events == len(events)
    assert PlainControl(config).apply(events) == found


def test_nothing_asked_for_costs_no_copy():
    events = make(1000, 1e5)
    assert LoadControl().apply(events) is events
    below = LoadControl(LoadConfig(max_events_per_s=2e5))
    assert below.apply(events) is events
    inside = LoadControl(LoadConfig(roi=(0, 0, 12, 8))).apply(events)
    assert inside is events
    assert len(below.apply(events[:0])) == 0


def test_the_cap_is_kept_and_every_pixel_loses_the_same_share():
    """Rows come one after the other, as a sensor reads them out: each n-th would be a pattern."""
    count, side = 1_000_000, 16
    t = np.arange(count) * 100  # 10 Mev/s
    y = (np.arange(count) // side % side).astype(np.uint16)
    x = (np.arange(count) % side).astype(np.uint16)
    p = (np.arange(count) % 2).astype(np.uint8)
    control = LoadControl(LoadConfig(max_events_per_s=1e6))
    kept = control.apply(Events(t, x, y, p, side, side))
    assert len(kept) == pytest.approx(100_000, rel=0.02)
    # The first slot had to learn the rate, and the next ones pay that back.
    later = kept[int(np.searchsorted(kept.t, 5 * SLOT_NS)) :]
    per_slot = np.bincount(later.t // SLOT_NS)[5:]
    assert per_slot == pytest.approx(10_000, rel=0.05)
    per_pixel = np.bincount(later.y.astype(int) * side + later.x, minlength=side * side)
    mean = len(later) / side**2
    chi2 = ((per_pixel - mean) ** 2 / (mean * 0.9)).sum()
    assert abs(chi2 - side**2) < 5 * math.sqrt(2 * side**2)
    # Neighbours in the stream are chosen independently of each other.
    chosen = np.isin(t[t >= 5 * SLOT_NS], later.t)
    pairs = np.count_nonzero(chosen[1:] & chosen[:-1])
    expected = 0.01 * len(chosen)
    assert abs(pairs - expected) < 5 * math.sqrt(expected)


def test_a_burst_is_thinned_not_cut_off():
    """From nothing to 50 times the cap: the first slot goes a little over, and to its end; the next
    ones pay that back."""
    count = 3_000_000
    t = np.arange(count, dtype=np.int64) * 20 + 5 * SLOT_NS
    zeros = np.zeros(count, np.uint16)
    kept = LoadControl(LoadConfig(max_events_per_s=1e6)).apply(
        Events(t, zeros, zeros, np.ones(count, np.uint8), 4, 4)
    )
    first = kept.t[kept.t < 6 * SLOT_NS]
    assert len(first) < 3 * 10_000
    assert first[-1] > 6 * SLOT_NS - MS
    assert np.count_nonzero(kept.t // SLOT_NS == 6) == pytest.approx(5_000, rel=0.05)
    assert len(kept) == pytest.approx(60_000, rel=0.03)


def test_bursts_that_come_again_and_again_stay_below_the_cap_on_average():
    rng, control = np.random.default_rng(0), LoadControl(LoadConfig(max_events_per_s=1e6))
    for k in range(50):  # 12 ms of 20 Mev/s in each 28 ms
        t = k * 28 * MS + np.sort(rng.integers(0, 12 * MS, 240_000))
        zeros = np.zeros(len(t), np.uint16)
        control.apply(Events(t, zeros, zeros, zeros.astype(np.uint8), 4, 4))
    assert 0.8 < control.counters.kept_events / (50 * 28e3) < 1.03
    assert accounted(control) == 50 * 240_000


@pytest.mark.parametrize("share", [0.9, 0.5, 0.01])
def test_keep_share_keeps_that_share(share: float):
    events = make(200_000, 1e6)
    control = LoadControl(LoadConfig(keep_share=share))
    kept = len(control.apply(events))
    assert abs(kept - share * 200_000) < 5 * math.sqrt(200_000 * share * (1 - share))
    assert control.counters.decimated_events == 200_000 - kept


def test_background_activity_is_that_of_dv_processing():
    """dv.noise.BackgroundActivityNoiseFilter, which takes events one by one from Python."""
    dv = pytest.importorskip("dv_processing")
    from datetime import timedelta

    events = make(20_000, 1e5, size=(40, 30), start=S)
    events = replace(events, t=events.t // US * US)
    theirs = dv.noise.BackgroundActivityNoiseFilter((40, 30), timedelta(microseconds=2000))
    store = dv.EventStore()
    for t, x, y, p in rows(events):
        store.push_back(t // US, x, y, bool(p))
    theirs.accept(store)
    expected = [
        (int(e.timestamp()) * US, int(e.x()), int(e.y()), int(e.polarity()))
        for e in theirs.generateEvents()
    ]
    control = LoadControl(LoadConfig(background_us=2000.0))
    assert rows(control.apply(events)) == expected
    assert 2000 < control.counters.background_events < 18_000


def test_hot_pixels_are_learnt_freed_saved_and_read(tmp_path: Path):
    path = tmp_path / "hot.npz"
    config = LoadConfig(hot_pixels="learn", hot_pixels_file=str(path))
    control = LoadControl(config)
    control.apply(make(20_000, 4e3))  # 5 s
    assert control.counters.hot_pixels == 1
    assert 0.2 < control.counters.masked_events / 4000 < 0.6  # from 3 s on
    mask = load_mask(path)
    assert [tuple(place) for place in np.argwhere(mask)] == [(5, 3)]
    # The next time it is known from the start, and by "file" never learnt.
    for use in ("learn", "file"):
        again = LoadControl(replace(config, hot_pixels=use))
        events = make(2000, 4e3, seed=2)
        kept = again.apply(events)
        assert not np.any((kept.x == 3) & (kept.y == 5))
        assert again.counters.masked_events == len(events) - len(kept) > 300
    # It cools down: all pixels fire in turn.
    number = np.arange(60_000)
    x, y = (number % 12).astype(np.uint16), (number // 12 % 8).astype(np.uint16)
    calm = Events(5 * S + number * 150 * US, x, y, np.ones(60_000, np.uint8), 12, 8)
    control.apply(calm)
    assert control.counters.hot_pixels == 0
    assert not load_mask(path).any()


def test_a_moving_edge_is_no_hot_pixel():
    """A pixel column that fires at a time, each pixel often, one column after the other."""
    t = np.arange(200_000, dtype=np.int64) * 50 * US
    x = (t // (200 * MS) % 30).astype(np.uint16)
    y = (np.arange(len(t)) % 20).astype(np.uint16)
    control = LoadControl(LoadConfig(hot_pixels="learn"))
    control.apply(Events(t, x, y, np.ones(len(t), np.uint8), 30, 20))
    assert control.counters.hot_pixels == control.counters.masked_events == 0


@pytest.mark.parametrize("suffix", [".npz", ".png", ".yaml"])
@pytest.mark.parametrize("hot", [0, 7])
def test_masks_come_back_from_files(suffix: str, hot: int, tmp_path: Path):
    mask = np.zeros((6, 9), np.bool_)
    mask.ravel()[np.random.default_rng(0).choice(54, hot, replace=False)] = True
    path = tmp_path / f"mask{suffix}"
    save_mask(path, mask)
    assert np.array_equal(load_mask(path), mask)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_bad_mask_files_are_refused_in_one_line(tmp_path: Path):
    cases = {
        "mask.txt": ("", "expected a hot-pixel file ending in .npz"),
        "none.npz": (None, "no such hot-pixel file"),
        "odd.npz": ("not numpy", "not a hot-pixel file"),
        "odd.png": ("not a picture", "not a picture"),
        "odd.yaml": ("width: 3", "not a hot-pixel file"),
        "none.yaml": ("width: 0\nheight: 2\nhot_pixels: []", "a sensor of 0x2"),
        "out.yaml": ("width: 3\nheight: 2\nhot_pixels:\n- [3, 0]", "outside the sensor of 3x2"),
    }
    for name, (text, message) in cases.items():
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        config = LoadConfig(hot_pixels="file", hot_pixels_file=str(path))
        with pytest.raises(ConfigError, match=message) as caught:
            LoadControl(config)
        assert "\n" not in str(caught.value)
    for path in (tmp_path / "mask.gif", tmp_path / "nowhere" / "mask.npz"):
        with pytest.raises(ConfigError):
            LoadControl(LoadConfig(hot_pixels="learn", hot_pixels_file=str(path)))


def test_a_file_that_cannot_be_written_is_said_and_nothing_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: Path, mask: np.ndarray) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("event_binning_grad.events.load_control.save_mask", refuse)
    config = LoadConfig(hot_pixels="learn", hot_pixels_file=str(tmp_path / "a.png"))
    control = LoadControl(config)
    control.apply(make(20_000, 4e3))
    assert control.counters.hot_pixels_problem == "no space left"
    assert control.counters.hot_pixels == 1


def test_a_mask_of_another_sensor_is_refused(tmp_path: Path):
    path = tmp_path / "mask.npz"
    save_mask(path, np.zeros((6, 9), np.bool_))
    control = LoadControl(LoadConfig(hot_pixels="file", hot_pixels_file=str(path)))
    with pytest.raises(
        PacketError, match="sensor of 9x6 pixels, but the events are of one of 12x8"
    ):
        control.apply(make(10, 1e3))
    assert control.counters.events == 0
    assert len(control.apply(make(10, 1e3, size=(9, 6)))) == 10


def test_time_that_goes_back_is_another_clock():
    """What fired before must not silence what comes on a new clock."""
    events = make(500, 1e4)
    config = LoadConfig(refractory_us=1000.0, background_us=2000.0, max_events_per_s=5e3)
    control = LoadControl(config)
    control.apply(replace(events, t=events.t + 100 * S))
    first = control.apply(events)
    assert abs(len(first) - len(LoadControl(config).apply(events))) < 25  # another draw
    assert accounted(control) == 1000


def test_a_sensor_of_another_size_begins_anew():
    control = LoadControl(LoadConfig(**ALL))
    for size in ((12, 8), (20, 30), (9, 7)):
        events = make(3000, 1e5, size=size)
        kept = control.apply(events)
        assert (kept.width, kept.height) == size
        assert 0 < len(kept) < len(events)
    assert accounted(control) == control.counters.events == 9000


def test_judging_alone():
    hot = HotPixels(20, 10)
    hot.counts[4, 7] = 1000
    assert [hot.judge() or hot.counts.__setitem__((4, 7), 1000) for _ in range(5)] == [None] * 5
    assert hot.judge()
    assert hot.mask[4, 7]
    assert hot.mask.sum() == 1
    assert not hot.counts.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_events_per_s": -1.0}, "max_events_per_s -1.0: expected 1000 to 1e12, or 0"),
        ({"max_events_per_s": math.nan}, "max_events_per_s nan"),
        ({"roi": (0, 0, 5)}, "roi .*: expected x, y, width, height"),
        ({"roi": (0, 0, 5.5, 5)}, "roi"),
        ({"roi": (-1, 0, 5, 5)}, "roi"),
        ({"roi": (1, 0, 0, 5)}, "expected a width and height of 1"),
        ({"roi": (math.nan, 0, 5, 5)}, "roi"),
        ({"hot_pixels": "on"}, "hot_pixels 'on': expected one of off, file, learn"),
        ({"hot_pixels": "file"}, "needs hot_pixels_file"),
        ({"refractory_us": -1.0}, "refractory_us -1.0: expected 0"),
        ({"background_us": math.inf}, "background_us inf"),
        ({"keep_share": 0.0}, "keep_share 0.0: expected 1e-6 to 1"),
        ({"keep_share": math.nan}, "keep_share nan"),
    ],
)
def test_bad_values_are_refused_in_one_line(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        LoadConfig(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", EACH)
def test_warm_up_compiles_what_is_used_and_writes_nothing(name: str, tmp_path: Path):
    config, path = LoadConfig(**EACH[name]), tmp_path / "hot.yaml"
    if config.hot_pixels == "learn":
        config = replace(config, hot_pixels_file=str(path))
    warm_up(config)
    assert not path.exists()
    kernels = (load_control._is_below_cap, load_control._thin, load_control._filter)
    compiled = [len(kernel.signatures) for kernel in kernels]
    events = make(2000, 4e5)
    control = LoadControl(config)
    for part in (events[:1000], events[1000:]):
        control.apply(part)
    assert [len(kernel.signatures) for kernel in kernels] == compiled


def test_hot_pixels_of_a_real_camera_are_found(data_dir: Path):
    """A DVXplorer that looks at nothing much: half of the pixels fire once in 2 s, some 5000 times
    a second. The recording is played five times."""
    decoder = PacketDecoder()
    packets = open_recording(data_dir / "bags" / "test_data_libcaer_rollover").packets()
    parts = [decoder.decode(packet).events for packet in packets]  # pyright: ignore
    events = Events.concatenate(parts)
    control = LoadControl(LoadConfig(hot_pixels="learn"))
    for again in range(5):
        control.apply(replace(events, t=events.t + again * 2 * S))
    pixels = events.y.astype(np.int64) * events.width + events.x
    counts = np.bincount(pixels, minlength=events.width * events.height)
    later = control.apply(replace(events, t=events.t + 10 * S))
    left = np.bincount(later.y.astype(np.int64) * events.width + later.x, minlength=len(counts))
    masked = (left == 0) & (counts > 0)
    assert control.counters.hot_pixels == np.count_nonzero(masked)
    assert masked[np.argsort(counts)[-25:]].all()
    assert 100 < np.count_nonzero(masked) < 300
    assert counts[masked].min() > 15 * np.median(counts[counts > 0])


def test_the_benchmark_measures_what_the_documentation_states(tmp_path: Path):
    path = tmp_path / "figures.json"
    assert cli.main(["bench", "load", "--quick", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())["load"]
    filters = {row["filter"]: row for row in figures["filters"]}
    assert filters["background_us 2000"]["mev_s"] > 20
    assert filters["nothing"]["ns_per_event"] < 0.5
    assert filters["keep_share 0.5"]["kept_share"] == pytest.approx(0.5, abs=0.01)
    assert filters["max_events_per_s, half of them"]["kept_share"] == pytest.approx(0.5, abs=0.15)
    for row in figures["clock"]:
        assert row["steps"] == 0
        assert row["p99_us"] < 100
        assert abs(row["drift_ppm"]) < 10  # of 10 s only
    assert len(figures["pipeline"]) == 10
