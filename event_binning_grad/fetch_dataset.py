"""The command `event-binning-grad fetch-dataset`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from event_binning_grad.errors import ConfigError

if TYPE_CHECKING:
    from event_binning_grad.events.catalogue import Sequence


def add_fetch_dataset(commands: argparse._SubParsersAction) -> None:
    """Adds the command to those of the command line."""
    command = commands.add_parser(
        "fetch-dataset",
        help="download a public sequence",
        description="Downloads a public sequence from where its publisher offers it, goes on where "
        "it broke off, checks and unpacks it. Mind its licence (--list).",
    )
    command.add_argument("name", nargs="?", metavar="NAME", help="of the sequence")
    command.add_argument(
        "--out", type=Path, default=Path("out/datasets"), metavar="DIR",
        help="it goes to DIR/NAME (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--list", action="store_true", help="print what there is, with licences")
    command.set_defaults(run=_fetch_dataset)


def _fetch_dataset(options: argparse.Namespace) -> int:
    from event_binning_grad.events.catalogue import sequences
    from event_binning_grad.events.fetch import fetch_sequence

    known = sequences()
    if options.list:
        _print_list(list(known.values()))
        return 0
    if options.name not in known:
        found = "no NAME" if options.name is None else f"NAME {options.name!r}"
        raise ConfigError(f"{found}; expected one of `event-binning-grad fetch-dataset --list`")
    sequence = known[options.name]
    print(f"{sequence.data_set.title}, {sequence.data_set.homepage}")
    print(f"licence: {sequence.data_set.licence}")
    with _Bar() as bar:
        place = fetch_sequence(sequence, options.out, bar.show, bar.say)
    print(f"{place}: event-binning-grad evaluate {place}")
    return 0


class _Bar:
    """Progress in bytes, on a terminal; lines in any case."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, now: Any) -> None:
        if now.file not in self._tasks:
            self._tasks[now.file] = self._progress.add_task(now.file)
        self._progress.update(self._tasks[now.file], completed=now.done, total=now.total)

    def say(self, line: str) -> None:
        self._progress.console.print(line, soft_wrap=True, highlight=False, markup=False)


def _print_list(known: list[Sequence]) -> None:
    data_sets = list(dict.fromkeys(sequence.data_set for sequence in known))
    for data_set in data_sets:
        print(f"{data_set.title}\n  {data_set.homepage}\n  licence: {data_set.licence}")
        for sequence in known:
            if sequence.data_set == data_set:
                size = f"about {sequence.about_bytes / 1e9:.1f} GB" if sequence.about_bytes else ""
                print(f"    {sequence.name:20} {sequence.holds:26} {size}".rstrip())
