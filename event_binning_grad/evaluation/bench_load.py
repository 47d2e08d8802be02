"""What time and load control cost: ns an event of each filter, and how well clocks are followed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from event_binning_grad.config import PipelineConfig
from event_binning_grad.evaluation.tables import as_json, column, print_rows
from event_binning_grad.events.clock import StreamClock
from event_binning_grad.events.load_control import LoadConfig, LoadControl, warm_up
from event_binning_grad.events.types import NS_PER_MS, NS_PER_S, Events

if TYPE_CHECKING:
    from rich.console import Console

    from event_binning_grad.evaluation.parts import Settings

_SIZE = (1280, 720)
_RATE = 10e6
_PACKET_NS = 4 * NS_PER_MS
_CAP = 5e6

FILTERS: dict[str, LoadConfig] = {
    "nothing": LoadConfig(),
    "the default, not reached": LoadConfig(max_events_per_s=2 * _RATE),
    "max_events_per_s, half of them": LoadConfig(max_events_per_s=_CAP),
    "keep_share 0.5": LoadConfig(keep_share=0.5),
    "roi, half of the sensor": LoadConfig(roi=(0, 0, _SIZE[0] // 2, _SIZE[1])),
    "hot_pixels learn": LoadConfig(hot_pixels="learn"),
    "refractory_us 1000": LoadConfig(refractory_us=1000.0),
    "background_us 2000": LoadConfig(background_us=2000.0),
    "all of them": LoadConfig(
        (0, 0, _SIZE[0] // 2, _SIZE[1]), "learn", "", 1000.0, 2000.0, 0.5, _CAP / 4
    ),
}


@dataclass(frozen=True)
class FilterCost:
    """One filter's throughput on one core, and what it kept."""

    filter: str = column("load control")
    ns_per_event: float = column("ns/event", ".1f")
    mev_s: float = column("Mev/s", ".0f")
    kept_share: float = column("kept", ".3f")


@dataclass(frozen=True)
class ClockError:
    """How far the learnt robot's time is off, from `after_s` on."""

    link: str = column("arrivals, 250 packets/s")
    first_s_us: float = column("first 4 s, us", ".0f")
    median_us: float = column("median, us", ".1f")
    p99_us: float = column("p99, us", ".1f")
    drift_ppm: float = column("drift off, ppm", ".2f")
    steps: int = column("steps", "d")
    us_per_packet: float = column("us/packet", ".1f")


@dataclass(frozen=True)
class PipelineCost:
    """Of one core, what the pipeline takes of events that are decoded already."""

    mev_s: float = column("Mev/s that come", ".0f")
    cap_mev_s: float = column("cap, Mev/s", ".0f")
    estimates_per_s: float = column("estimates/s", ".0f")
    cores: float = column("CPU s/s", ".2f")


def bench_load(console: Console, settings: Settings, _parts: Sequence[str]) -> dict[str, Any]:
    """Measures, prints tables, returns the figures."""
    filters = [_cost(name, config, settings.quick) for name, config in FILTERS.items()]
    print_rows(
        console,
        "Load control",
        filters,
        "Events of moving points and noise on 1280x720 pixels, 10 Mev/s, packets of 4 ms.",
    )
    clocks = [clock_error(name, delays, settings.quick) for name, delays in LINKS.items()]
    print_rows(
        console,
        "Clock",
        clocks,
        "Error of the robot's time of events; the robot's clock goes 100 ppm faster. After 5 s but "
        "for the first column, the largest error from 0.5 s to 4 s.",
    )
    pipelines = _pipeline_costs(settings.quick)
    print_rows(
        console,
        "Pipeline behind the decoder",
        pipelines,
        "Default parameters but for the cap, 0 for none: windows of 70 ms, 100 a second.",
    )
    rows = {"filters": filters, "clock": clocks, "pipeline": pipelines}
    return {name: [as_json(row) for row in found] for name, found in rows.items()}


def _scene(count: int, rate: float) -> Events:
    """Points that move over the sensor at 300 px/s, and 10 % noise."""
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, round(count / rate * NS_PER_S), count))
    points = rng.uniform((0, 0), _SIZE, (20_000, 2))[rng.integers(0, 20_000, count)]
    x, y = (points[:, 0] + 300e-9 * t) % _SIZE[0], points[:, 1]
    noise = rng.random(count) < 0.1
    x[noise], y[noise] = rng.uniform((0, 0), _SIZE, (noise.sum(), 2)).T
    p = rng.integers(0, 2, count, dtype=np.uint8)
    return Events(t, x.astype(np.uint16), y.astype(np.uint16), p, *_SIZE)


def _packets(events: Events, rate: float) -> list[Events]:
    size = round(rate * _PACKET_NS / NS_PER_S)
    return [events[k : k + size] for k in range(0, len(events), size)]


def _cost(name: str, config: LoadConfig, quick: bool) -> FilterCost:
    warm_up(config)
    packets = _packets(_scene(400_000 if quick else 4_000_000, _RATE), _RATE)
    best, control = np.inf, LoadControl(config)
    for _ in range(2 if quick else 5):
        control = LoadControl(config)
        start = time.thread_time()
        for packet in packets:
            control.apply(packet)
        best = min(best, time.thread_time() - start)
    ns = 1e9 * best / control.counters.events
    share = control.counters.kept_events / control.counters.events
    return FilterCost(name, ns, 1e3 / ns, share)


Delays = Callable[[np.random.Generator, int], "npt.NDArray[np.floating[Any]]"]

LINKS: dict[str, Delays] = {
    "no delay": lambda rng, n: np.zeros(n),
    "jitter of 1 ms (exponential)": lambda rng, n: rng.exponential(1e6, n),
    "jitter of 5 ms": lambda rng, n: rng.exponential(5e6, n),
    "batches each 8.5 ms": lambda rng, n: -np.arange(n) * 4e6 % 8.5e6,
    "1 ms, and 1 % are 100 ms late": lambda rng, n: (
        rng.exponential(1e6, n) + 1e8 * (rng.random(n) < 0.01)
    ),
    "1 ms, and 1 % of the stamps far off": lambda rng, n: (
        rng.exponential(1e6, n) + (rng.random(n) < 0.01) * rng.normal(0, 1e12, n)
    ),
}


def clock_error(link: str, delays: Delays, quick: bool = False) -> ClockError:
    """The clock's errors over a minute of simulated arrivals (10 s if quick)."""
    drift, epoch = 100e-6, 1_700_000_000 * NS_PER_S
    times = np.arange(0, (10 if quick else 60) * NS_PER_S, _PACKET_NS)
    late = delays(np.random.default_rng(1), len(times)).astype(np.int64)
    truth = epoch + times + np.rint(times * drift).astype(np.int64)
    clock, robot = StreamClock(), np.empty_like(times)
    start = time.thread_time()
    for k, (t, stamp) in enumerate(zip(times.tolist(), (truth + late).tolist(), strict=True)):
        clock.update(t, stamp)
        robot[k] = clock.to_robot(t)
    us_per_packet = 1e6 * (time.thread_time() - start) / len(times)
    errors = np.abs(robot - truth) / 1e3
    young = (times > NS_PER_S // 2) & (times < 4 * NS_PER_S)
    old = errors[times > 5 * NS_PER_S]
    return ClockError(
        link,
        float(errors[young].max()),
        float(np.median(old)),
        float(np.quantile(old, 0.99)),
        clock.counters.drift_ppm - 1e6 * drift,
        clock.counters.steps,
        us_per_packet,
    )


def _pipeline_costs(quick: bool) -> list[PipelineCost]:
    from event_binning_grad import pipeline
    from event_binning_grad.geometry import Camera

    camera = Camera(*_SIZE, np.array([[900.0, 0, 640], [0, 900.0, 360], [0, 0, 1]]))
    default, rows = PipelineConfig(), []
    pipeline.warm_up(default, camera)
    seconds = 0.15 if quick else 0.5
    for mev_s in (1, 5, 10, 20, 40):
        packets = _packets(_scene(round(mev_s * 1e6 * seconds), mev_s * 1e6), mev_s * 1e6)
        for cap in (0.0, default.max_events_per_s):
            runner = pipeline.Pipeline(PipelineConfig(max_events_per_s=cap), camera)
            start, estimates = time.process_time(), 0
            for packet in packets:
                estimates += len(runner.push(packet))
            cores = (time.process_time() - start) / seconds
            rows.append(PipelineCost(mev_s, cap / 1e6, estimates / seconds, cores))
    return rows
