"""Rows of figures as tables on a terminal: a frozen dataclass a row, its fields the JSON keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# A log has no width of its own; tables of many columns would be cut to rubble.
_LOG_WIDTH = 180


def report_console() -> Console:
    """Where tables go: as wide as the terminal, or wide enough."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_LOG_WIDTH)


def column(heading: str, digits: str = "", *, scale: float = 1.0) -> Any:
    """A field of a row that is shown: its heading, and how numbers are written (times `scale`)."""
    return field(metadata={"heading": heading, "digits": digits, "scale": scale})


def as_json(row: Any) -> dict[str, Any]:
    """A row's figures by name; NaN, which JSON has not, as null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(row).items()
    }


def print_rows(console: Console, title: str, rows: Sequence[Any], note: str = "") -> None:
    """One table of rows of the same dataclass; None and NaN are a dash."""
    from rich.table import Table

    if not rows:
        return
    shown = [f for f in fields(rows[0]) if "heading" in f.metadata]
    table = Table(title=title)
    for f in shown:
        text = isinstance(getattr(rows[0], f.name), str)
        table.add_column(f.metadata["heading"], justify="left" if text else "right")
    for row in rows:
        table.add_row(*(_cell(getattr(row, f.name), **_style(f.metadata)) for f in shown))
    console.print(table)
    if note:
        console.print(note, style="dim", highlight=False)


def _style(metadata: Any) -> dict[str, Any]:
    return {name: metadata[name] for name in ("digits", "scale")}


def _cell(value: Any, digits: str, scale: float) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return value if isinstance(value, str) else f"{value if scale == 1 else value * scale:{digits}}"
