"""Benchmark of dense flow: speed under load, errors on simulated scenes, sharpness on real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from event_binning_grad.evaluation import bench_flow_recorded
from event_binning_grad.evaluation.bench_flow_recorded import (
    BOXES,
    MULTICM_WINDOW_S,
    boxes,
    real,
    recordings_folder,
)
from event_binning_grad.evaluation.bench_flow_simulated import (
    DISPLACEMENT_PX,
    cuda,
    determinism,
    scenes,
    throughput,
)
from event_binning_grad.evaluation.parts import Part, Settings, run_parts

if TYPE_CHECKING:
    from rich.console import Console

FLOW_PARTS = {
    "throughput": Part(
        throughput,
        "throughput, simulated rotation, packets of EVT 3.0 in time, the node's windows",
        "fields/s: those that came; lost: windows given up to catch up; possible: by what a "
        "field takes and what decoding leaves; ms: one field, by the clock; delay: from a window's "
        "last event until the field is there; CPU: of all cores, a field and what is decoded for "
        "it; used: share of all events, and of a window's; EPE: at full resolution, of all windows "
        "but the first",
    ),
    "cuda": Part(
        cuda,
        "CUDA beside the CPU, simulated rotation, one field after the other",
        "ms: one field, by the clock, from the events in the host's memory to the field there; "
        "fields/s: by their mean; EPE: at full resolution, of all windows but the first",
    ),
    "scenes": Part(
        scenes,
        "simulated scenes with depth, hand-held motion, the node's windows",
        "slow turn: half the turning, so that more of the flow is the depth's; known: share of the "
        f"pixels with events; compared: windows whose events move by {DISPLACEMENT_PX[0]:g} to "
        f"{DISPLACEMENT_PX[1]:g} px, by the true flow; EPE: over the pixels with events, px over "
        "the window; moving: the pixels of objects that move by themselves alone; raw: the same "
        "solver with the same windows and passes, by the bilinear vote's own slope",
    ),
    "real": Part(
        real,
        "real recordings, the node's windows",
        "FWL: flow warp loss, the variance of the image of warped events over that of the events "
        "as they came; rotation: the same of a constant angular velocity of the camera, estimated "
        "from the same events; flow / rotation: over the windows that have both",
    ),
    "boxes": Part(
        boxes,
        "boxes_rotation, one real window of 30,000 events from rest",
        "against the flow of motion.txt's rotation; scale error: slope of the flow on the true "
        f"one, minus 1; MultiCM: {MULTICM_WINDOW_S:g} s for this window",
    ),
    "determinism": Part(determinism, "run to run, simulated rotation, fields bit for bit"),
}


def bench_flow(
    console: Console, settings: Settings, parts: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """Measures, prints tables, and returns the rows of every part.

    Args:
        console: where to print.
        settings: what to measure.
        parts: names of FLOW_PARTS; none for all of them.
    """
    return run_parts(console, "flow", FLOW_PARTS, settings, parts, _why_left_out)


def _why_left_out(settings: Settings, name: str) -> str:
    if name == "cuda":
        return "no CUDA device"
    folder = recordings_folder(settings)
    if folder is None:
        return f"no --data DIR, and no {bench_flow_recorded.RECORDINGS}"
    return f"{folder} has no {BOXES if name == 'boxes' else 'recording'}"
