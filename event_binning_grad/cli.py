"""The command line `event-binning-grad`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from event_binning_grad.commands.bench import add_bench, add_bias
from event_binning_grad.commands.evaluate import add_compare, add_evaluate
from event_binning_grad.commands.recordings import (
    add_convert,
    add_info,
    add_play,
    add_replay_arguments,
)
from event_binning_grad.commands.shared import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    load_camera,
    require_ros,
)
from event_binning_grad.commands.simulate import add_simulate
from event_binning_grad.errors import EventBinningError
from event_binning_grad.fetch_dataset import add_fetch_dataset
from event_binning_grad.numba_threads import let_threads_sleep

__all__ = [
    "EXIT_BAD_INPUT",
    "EXIT_FAILED",
    "add_replay_arguments",
    "load_camera",
    "main",
    "require_ros",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code. Bad input is one line, never a traceback."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:  # argparse would not say of which command
        command = f"event-binning-grad {options.command}"
        print(f"{command}: unknown argument {' '.join(unknown)}; see --help", file=sys.stderr)
        return EXIT_BAD_INPUT
    let_threads_sleep()
    try:
        return options.run(options)
    except EventBinningError as error:
        print(f"event-binning-grad {options.command}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return 0
    except OSError as error:  # a report that cannot be written, a full disk
        why = f"{error.filename}: {error.strerror}" if error.filename else error
        print(f"event-binning-grad {options.command}: {why}", file=sys.stderr)
        return EXIT_BAD_INPUT


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all errors are said; the usage is what --help is for."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: {message}; see --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="event-binning-grad",
        description="Egomotion from event cameras through unbiased gradients of event binning.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    add_info(commands)
    add_convert(commands)
    add_play(commands)
    add_evaluate(commands)
    add_compare(commands)
    add_simulate(commands)
    add_bench(commands)
    add_bias(commands)
    add_fetch_dataset(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "demo",
        help="the whole path: simulate, replay over ROS through the node, compare (needs ROS 2)",
    )
    command.add_argument("--recording", type=Path, help="your recording instead of a simulated one")
    command.add_argument("--calib", type=Path, metavar="FILE", help="its calibration")
    command.add_argument("--out", type=Path, default=Path("out/demo"), help="default: %(default)s")
    command.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    require_ros()
    from event_binning_grad.ros.demo import run_demo

    passed = run_demo(options.out, options.recording, options.calib)
    return 0 if passed else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
