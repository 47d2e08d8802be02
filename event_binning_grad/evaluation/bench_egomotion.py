"""Benchmark of egomotion: speed and accuracy over simulated scenarios, beside simpler methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from event_binning_grad.evaluation.bench_egomotion_streams import (
    changing_rotation,
    hand_held,
    known_depth,
    overload,
    throughput,
)
from event_binning_grad.evaluation.bench_egomotion_windows import (
    cold_start,
    consistency,
    independent_packets,
    slow_motion,
)
from event_binning_grad.evaluation.parts import Part, Settings, run_parts

if TYPE_CHECKING:
    from rich.console import Console

PARTS = {
    "throughput": Part(
        throughput,
        "throughput, simulated, windows of 20,000 events one by one",
        "fused, cuda: the pipeline, from packets to estimates; torch: the estimator alone by plain "
        "torch on the CPU, some windows",
    ),
    "overload": Part(
        overload,
        "overload, simulated",
        "windows: by default settings, and of 20 ms whatever they hold; all events: in windows of "
        "10 ms, one after the other",
    ),
    "packets": Part(
        independent_packets,
        "independent packets, simulated 240x180, 10 to 30 % noise, constant angular velocity",
        "raw: the same solver with the raw gradient and constant angular velocity; L-BFGS: on the "
        "variance of the bilinear vote by its raw gradient, constant angular velocity, from the "
        "same start",
    ),
    "changing": Part(
        changing_rotation,
        "changing rotation, simulated, default settings",
        "off: share of time by more than 30 deg/s; silence: longest time without a trusted "
        "estimate; constant: angular velocity over windows of 20,000 events, by the raw gradient "
        "in the pipeline (all estimates, trusted or not), and by L-BFGS on some of these windows, "
        "each from the truth of the window before",
    ),
    "hand_held": Part(
        hand_held,
        "measured hand-held rotation, simulated sparse shapes at 240x180, default settings",
    ),
    "cold_start": Part(
        cold_start,
        "cold start: the first 20 ms from rest, |omega| up to 10 rad/s, simulated 240x180",
    ),
    "slow": Part(
        slow_motion,
        "slow motion, simulated 346x260, windows of 20 ms from rest, 10 % noise",
        "scale error: slope of the estimates on the truth, minus 1",
    ),
    "consistency": Part(
        consistency,
        "consistency of the covariance, simulated 346x260",
        "NEES: mean of the trusted estimates' errors squared, normalised by their covariance; 3 is "
        "ideal, and the median then 2.4; all: of all estimates, trusted or not",
    ),
    "depth": Part(
        known_depth,
        "rotation and translation with known depth, simulated, default windows",
        "m/s: root mean square over estimates and axes, and as a share of that of the true |v|; "
        "NEES: 3 is ideal; raw: all estimates, trusted or not, with the raw gradient",
    ),
}


def bench_egomotion(
    console: Console, settings: Settings, parts: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """Measures, prints tables, and returns the rows of every part.

    Args:
        console: where to print.
        settings: what to measure.
        parts: names of PARTS; none for all of them.
    """
    return run_parts(console, "egomotion", PARTS, settings, parts, lambda *_: "no --poses FILE")
