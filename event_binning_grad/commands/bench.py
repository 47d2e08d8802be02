"""The commands `bench` and `bias`."""

from __future__ import annotations

import argparse
from pathlib import Path

from event_binning_grad.commands.shared import add_topic, check_places, load_camera, on_a_terminal
from event_binning_grad.errors import ConfigError


def add_bench(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("bench", help="measure throughput and window times here")
    command.add_argument(
        "sections", nargs="*", metavar="SECTION",
        help="operator, egomotion, cuda, flow, decoding, load, intake (default: all)",
    )  # fmt: skip
    command.add_argument(
        "--part", action="append", default=[], metavar="NAME",
        help="of the egomotion section: throughput, overload, packets, changing, hand_held, "
        "cold_start, slow, consistency, depth; of the flow section: throughput, cuda, scenes, "
        "real, boxes, determinism; may come again (default: all)",
    )  # fmt: skip
    command.add_argument(
        "--poses", type=Path, metavar="FILE",
        help="groundtruth.txt of a hand-held recording, whose rotation the part hand_held takes",
    )  # fmt: skip
    command.add_argument(
        "--data", type=Path, metavar="DIR",
        help="a folder of recordings for the flow's parts real and boxes (default: "
        "../shared/data, where it is)",
    )  # fmt: skip
    command.add_argument("--quick", action="store_true", help="measure less, in seconds")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    command.set_defaults(run=_bench)


def add_bias(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "bias",
        help="compare derivatives through binning with finite differences",
        description="Compares the derivatives of losses by the motion of a window of events, taken "
        "through their binning, with finite differences of the loss over 0.1 to 3 bins: for every "
        "kernel and reconstruction, beside the raw gradient (reconstruction none), the "
        "straight-through and the sigmoid surrogate. Writes a table, CSV, JSON and pictures.",
    )
    command.add_argument(
        "recording", type=Path, nargs="?", metavar="RECORDING",
        help="study this recording besides simulated events",
    )  # fmt: skip
    add_topic(command)
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the report")
    command.add_argument("--calib", type=Path, metavar="FILE", help="the recording's calibration")
    command.add_argument(
        "--window-events", type=int, default=20_000, metavar="N", help="default: %(default)s"
    )
    command.add_argument(
        "--windows", type=int, default=2, metavar="N", help="of each source (default: %(default)s)"
    )
    command.add_argument(
        "--points", type=int, default=17, metavar="N",
        help="on each of a window's three lines (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--bin-size",
        type=float,
        default=2.0,
        metavar="PX",
        help="of the image of warped events, in pixels (default: %(default)s)",
    )
    command.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the simulation and the points (default: %(default)s)",
    )
    command.set_defaults(run=_bias)


def _bench(options: argparse.Namespace) -> int:
    from event_binning_grad.evaluation.bench import run_bench

    check_places((options.json,))
    run_bench(
        options.json, options.sections, options.quick, options.part, options.poses, options.data
    )
    return 0


def _bias(options: argparse.Namespace) -> int:
    from importlib.util import find_spec

    from rich.console import Console
    from rich.progress import Progress

    from event_binning_grad.evaluation.bias_report import BiasConfig, bias_table, run_bias

    check_places((), (options.out,))
    names = ("window_events", "windows", "points", "bin_size", "seed")
    config = BiasConfig(**{name: getattr(options, name) for name in names})
    if options.calib and not options.recording:
        raise ConfigError("--calib without a RECORDING; expected the recording that it is for")
    camera = load_camera(options.calib, options.recording, options.topic) if options.calib else None
    pictures = find_spec("matplotlib") is not None
    sources = 1 if options.recording is None else 2
    with Progress(**on_a_terminal()) as bar:
        task = bar.add_task("comparing", total=3 * config.windows * sources)
        studies = run_bias(
            options.out, options.recording, camera, config,
            progress=lambda lines: bar.advance(task, lines), pictures=pictures,
            topic=options.topic,
        )  # fmt: skip
    console = Console()
    for study in studies:
        console.print(bias_table(study))
    print(f"{options.out}: bias.json, bias.csv" + (" and pictures" if pictures else ""))
    if not pictures:
        print("no pictures: matplotlib cannot be imported (pip install matplotlib)")
    return 0
