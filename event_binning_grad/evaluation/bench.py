"""Benchmarks: what operator and pipeline take on this machine, and ratios within one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from event_binning_grad.errors import ConfigError
from event_binning_grad.evaluation.bench_decoding import bench_decoding
from event_binning_grad.evaluation.bench_egomotion import PARTS, bench_egomotion
from event_binning_grad.evaluation.bench_egomotion_cuda import bench_cuda
from event_binning_grad.evaluation.bench_flow import FLOW_PARTS, bench_flow
from event_binning_grad.evaluation.bench_load import bench_load
from event_binning_grad.evaluation.bench_operator import QUICK, Plan
from event_binning_grad.evaluation.bench_operator_report import bench_operator
from event_binning_grad.evaluation.machine import machine
from event_binning_grad.evaluation.parts import Settings
from event_binning_grad.evaluation.tables import report_console

if TYPE_CHECKING:
    from rich.console import Console


def run_bench(
    path: Path | None,
    sections: Sequence[str] = (),
    quick: bool = False,
    parts: Sequence[str] = (),
    poses: Path | None = None,
    data: Path | None = None,
) -> None:
    """Measures, prints tables, and writes JSON to `path` if given.

    Args:
        path: where the JSON goes.
        sections: names of SECTIONS; none for all of them.
        quick: measure less, to see that everything works.
        parts: of the egomotion and flow sections, names of SECTION_PARTS; none for all of them.
        poses, data: a measured hand-held track, and a folder of recordings, see
            parts.Settings.

    Raises:
        ConfigError: no such section, part of the sections, or folder.
    """
    for name in sections:
        if name not in SECTIONS:
            raise ConfigError(f"section {name!r}: expected one of {', '.join(SECTIONS)}, or none")
    of_sections = [part for name in sections or SECTIONS for part in SECTION_PARTS.get(name, ())]
    for name in parts:
        if name not in of_sections:
            known = ", ".join(dict.fromkeys(of_sections)) or "no part"
            raise ConfigError(f"part {name!r}: expected one of {known}, or none")
    if data is not None and not data.is_dir():
        raise ConfigError(f"--data {data}: no such folder; expected one of recordings")
    console = report_console()
    here = machine()
    figures: dict[str, Any] = {"machine": here}
    settings = Settings(quick=quick, poses=poses, data=data)
    for name, section in SECTIONS.items():
        if not sections or name in sections:
            figures[name] = section(console, settings, parts)
    console.print(", ".join(f"{name} {value}" for name, value in here.items() if value))
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")


def _operator(console: Console, settings: Settings, _parts: Sequence[str]) -> dict[str, Any]:
    return bench_operator(console, QUICK if settings.quick else Plan())


def _cuda(console: Console, settings: Settings, _parts: Sequence[str]) -> list[dict[str, Any]]:
    return bench_cuda(console, settings.quick)


def _intake(console: Console, settings: Settings, _parts: Sequence[str]) -> dict[str, Any]:
    try:
        from event_binning_grad.ros.bench_intake import bench_intake

        return bench_intake(console, settings.quick)
    except ConfigError as error:  # no ROS here, which all others do without
        console.print(f"intake: {error}")
        return {"missing": str(error)}


SECTIONS: dict[str, Callable[[Console, Settings, Sequence[str]], Any]] = {
    "operator": _operator,
    "egomotion": bench_egomotion,
    "cuda": _cuda,
    "flow": bench_flow,
    "decoding": bench_decoding,
    "load": bench_load,
    "intake": _intake,
}
SECTION_PARTS = {"egomotion": tuple(PARTS), "flow": tuple(FLOW_PARTS)}
