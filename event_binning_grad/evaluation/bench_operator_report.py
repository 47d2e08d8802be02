"""The report of the binning operator's benchmark: tables for a terminal, figures for JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from event_binning_grad.evaluation.bench_operator import (
    MAIN_PAIRS,
    PASSES,
    Case,
    DeviceFigures,
    OperatorFigures,
    Plan,
    Ratio,
    bytes_an_event,
    measure,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_COLUMNS = ("forward", "backward", "double b.")


def bench_operator(console: Console, plan: Plan) -> dict[str, Any]:
    """Measures on the CPU and, where there is one, on the GPU; prints tables, returns all figures.

    Args:
        console: where to print.
        plan: what to measure.
    """
    measured: list[DeviceFigures] = []
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            console.print("operator: no CUDA device here")
            continue

        def progress(table: str, shape: tuple[int, ...], device: str = device) -> None:
            console.print(f"operator, {device}, by {table}: {_size(shape)} ...")

        measured.append(measure(device, plan, progress))
        print_tables(console, measured[-1])
    return {
        "copy_bandwidth_bytes_per_second": {m.device: m.copy_bandwidth for m in measured},
        # How OpenMP's threads, which are torch's, wait for work: to wake one that sleeps costs
        # some 50 us. None is the runtime's own choice.
        "waiting": {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")},
        "figures": [asdict(row) for m in measured for row in m.figures],
        "ratios": [asdict(ratio) for m in measured for ratio in m.ratios],
    }


def print_tables(console: Console, measured: DeviceFigures) -> None:
    """Prints a device's tables and what their columns mean."""
    device, rows, bandwidth = measured.device, measured.figures, measured.copy_bandwidth
    ways = " / ".join(bandwidth)
    unit = f"({device}, ns an event, {ways})"
    names = ("size", "kernels", "events", "back ends")
    tables = {name: [row for row in rows if row.table == name] for name in names}
    for k in MAIN_PAIRS:
        _print_table(
            console,
            f"{k} binning, linear reconstruction {unit}",
            ("bins", "events"),
            [row for row in tables["size"] if row.case.binning[-1] == k],
            lambda case: (_size(case.shape), _count(case.events)),
        )
    case = tables["kernels"][0].case
    where = f"{_size(case.shape)}, {_count(case.events)} events"
    _print_table(
        console,
        f"kernels, {where} {unit}",
        ("binning", "recon."),
        tables["kernels"],
        lambda case: (case.binning[0], case.reconstruction[0] or "none"),
    )
    _print_table(
        console,
        f"kinds, {where} {unit}",
        ("binning", "kind"),
        tables["events"],
        lambda case: (case.binning[0], case.along + (", weights" if case.weighted else "")),
        memory=False,
    )
    _print_back_ends(
        console,
        f"back ends, linear reconstruction {unit}",
        tables["back ends"],
        lambda row, name: _time(row, name),
    )
    if measured.ratios:
        _print_back_ends(
            console,
            f"back ends: time divided by that of {measured.ratios[0].to} ({device}, {ways})",
            measured.ratios,
            lambda ratio, name: _number(getattr(ratio, name), 10),
        )
    speeds = " / ".join(f"{value / 1e9:.1f}" for value in bandwidth.values())
    console.print(
        "Medians; double b.: double backward; -: too short to be told from noise. memory B: bytes "
        "an event that forward/backward move (inputs and outputs once, every tap's access to the "
        f"image); % of copy: what that makes ({[*bandwidth][-1]}) of the speed of a large copy, "
        f"{speeds} GB/s here (read and written; {ways}). 3-D bins are linear in time. A back end "
        "with one figure has only the first way.",
        style="dim",
        highlight=False,
    )


def _print_table(
    console: Console,
    title: str,
    columns: tuple[str, str],
    rows: Sequence[OperatorFigures],
    names: Callable[[Case], tuple[str, str]],
    memory: bool = True,
) -> None:
    table = _table(title, columns, (*_COLUMNS, *(["memory B"] if memory else []), "% of copy"))
    section = None
    for case, group in groupby(rows, key=lambda row: row.case):
        of_case = list(group)
        first, second = names(case)
        if section not in (None, first):
            table.add_section()
        cells = [" / ".join(_time(row, name) for row in of_case) for name in PASSES]
        last = [of_case[-1].passes[name] for name in PASSES[:2]]
        if memory:
            moved = bytes_an_event(case)
            cells.append("/".join(f"{sum(moved[name]):.0f}" for name in PASSES[:2]))
        shares = [p and 100 * p.total_fraction for p in last]
        cells.append("/".join("-" if share is None else f"{share:.1f}" for share in shares))
        table.add_row("" if section == first else first, second, *cells)
        section = first
    console.print(table)


def _print_back_ends(
    console: Console,
    title: str,
    rows: Sequence[Any],
    cell: Callable[[Any, str], str],
) -> None:
    """Of figures or of ratios, those of a back end's ways in one cell."""
    table = _table(title, ("binning", "events", "back end"), _COLUMNS)
    for case, of_case in groupby(rows, key=lambda row: row.case):
        left = (case.binning[-1], _count(case.events))
        for name, group in groupby(of_case, key=_back_end):
            ways = list(group)
            table.add_row(*left, name, *(" / ".join(cell(row, p) for row in ways) for p in PASSES))
            left = ("", "")
        table.add_section()
    console.print(table)


def _back_end(row: OperatorFigures | Ratio) -> str:
    return row.of if isinstance(row, Ratio) else row.back_end


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    # Close enough together for 80 columns; what is wider after all is folded, never cut.
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _time(row: OperatorFigures, name: str) -> str:
    figures = row.passes[name]
    return _number(figures and figures.ns_an_event)


def _number(value: float | None, whole: float = 100) -> str:
    """No digit after the point from `whole` on, below that one, below 1 two that count."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= whole else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _size(shape: Sequence[int]) -> str:
    """An image as its sensor is called, WxH; more dimensions in the order of the coordinates."""
    return "x".join(map(str, shape[::-1] if len(shape) == 2 else shape))


def _count(events: int) -> str:
    power = round(math.log10(events))
    return f"10^{power}" if 10**power == events else f"{events:,}"
