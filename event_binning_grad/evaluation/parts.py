"""A section of the benchmark as parts, each of which is one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from event_binning_grad.config import PipelineConfig
from event_binning_grad.evaluation.tables import as_json, print_rows

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Settings:
    """What the benchmark measures.

    Attributes:
        config: the pipeline's parameters.
        quick: measure less, in seconds, to see that everything works.
        poses: a measured hand-held track, groundtruth.txt of the event camera dataset; None:
            the part hand_held is left out.
        data: a folder of real recordings for the flow; None: the usual one, where there is one.
    """

    config: PipelineConfig = field(default_factory=PipelineConfig)
    quick: bool = False
    poses: Path | None = None
    data: Path | None = None


@dataclass(frozen=True)
class Part:
    """A table of the benchmark: how its rows are measured, and what its columns mean."""

    measure: Callable[[Settings], Sequence[Any]]
    title: str
    note: str = ""


def run_parts(
    console: Console,
    section: str,
    parts: Mapping[str, Part],
    settings: Settings,
    wanted: Sequence[str],
    why_left_out: Callable[[Settings, str], str],
) -> dict[str, list[dict[str, Any]]]:
    """Measures, prints tables, and returns the rows of every part.

    Args:
        console: where to print.
        section: the parts' common name.
        parts: all of them, by name.
        settings: what to measure.
        wanted: names of parts; none for all of them.
        why_left_out: says of a part that gave no rows, by its name, what it lacks.
    """
    figures: dict[str, list[dict[str, Any]]] = {}
    for name, part in parts.items():
        if wanted and name not in wanted:
            continue
        console.print(f"{section}, {name} ...")
        began = time.perf_counter()
        rows = part.measure(settings)
        figures[name] = [as_json(row) for row in rows]
        print_rows(console, part.title, rows, part.note)
        spent = f"{time.perf_counter() - began:.0f} s"
        if not rows:
            spent = f"left out: {why_left_out(settings, name)}"
        console.print(f"{section}, {name}: {spent}", style="dim", highlight=False)
    return figures
