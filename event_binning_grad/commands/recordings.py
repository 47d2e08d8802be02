"""The commands about recordings: `info`, `convert` and `play`."""

from __future__ import annotations

import argparse
import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from event_binning_grad.commands.shared import (
    add_stretch,
    add_topic,
    check_places,
    event_bar,
    print_warnings,
    require_ros,
)

if TYPE_CHECKING:
    from event_binning_grad.events.summary import Summary

# A replay waits so long for a subscriber, s.
WAIT_S = 10.0
_SPARKS = " ▁▂▃▄▅▆▇█"
_SPARK_COLUMNS = 40


def add_info(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "info",
        help="what a recording holds",
        description="Reads a recording once and says what it holds: sensor, encoding, events and "
        "their rate, jumps of the clock, what was lost or cannot be used, hot pixels, triggers, "
        "calibration and truth.",
    )
    command.add_argument("recording", type=Path, metavar="RECORDING")
    add_topic(command)
    command.add_argument("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=_info)


def add_convert(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "convert",
        help="write a recording in another format",
        description="Writes a recording as a rosbag2 directory (mcap) of EventPackets, with its "
        "calibration, truth and other sensors, or as .npz. Packets that a ROS driver could have "
        "sent are kept as they are; other events become packets that keep times (ns) and places "
        "exactly.",
    )
    command.add_argument("recording", type=Path, metavar="IN")
    command.add_argument("out", type=Path, metavar="OUT", help="a new directory, or FILE.npz")
    add_topic(command)
    command.add_argument("--calib", type=Path, metavar="FILE", help="a calibration to put in")
    add_stretch(command)
    command.set_defaults(run=_convert)


def add_play(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "play",
        aliases=["replay"],
        help="publish a recording over ROS in real time (needs ROS 2)",
    )
    add_replay_arguments(command)
    command.set_defaults(run=_play)


def add_replay_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a replay, for this command line and for the ROS executable."""
    parser.add_argument("recording", type=Path, metavar="RECORDING")
    add_topic(parser)
    parser.add_argument("--rate", type=float, default=1.0, help="speed (default: %(default)s)")
    parser.add_argument("--loop", action="store_true", help="begin again at the end")
    add_stretch(parser)
    parser.add_argument(
        "--pause", action="store_true",
        help="begin paused; the space key and the service ~/pause (std_srvs/SetBool) go on and "
        "pause again",
    )  # fmt: skip
    parser.add_argument("--clock", action="store_true", help="publish /clock (for use_sim_time)")
    parser.add_argument(
        "--wait", type=float, default=WAIT_S, metavar="S",
        help="wait for a subscriber to the events, at most this long, s; 0 publishes at once, and "
        "a node that runs already misses the beginning (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no line of progress")
    parser.add_argument(
        "--events-topic",
        metavar="TOPIC",
        help="where the events go (default: /event_camera/events)",
    )
    parser.add_argument(
        "--publish-log", type=Path, metavar="CSV", help="a row a packet: seq, times"
    )


def _info(options: argparse.Namespace) -> int:
    import json

    from event_binning_grad.events.recordings import open_recording
    from event_binning_grad.events.summary import summarise

    recording = open_recording(options.recording, options.topic)
    with event_bar() as bar:
        task = bar.add_task("reading", total=None)
        summary = summarise(recording, progress=lambda events: bar.advance(task, events))
    if options.json:
        print(_flat_lists(json.dumps(summary.figures(), indent=2)))
    else:
        print_warnings(summary.warnings, "info")
        _print_summary(summary)
    return 0


def _convert(options: argparse.Namespace) -> int:
    from event_binning_grad.commands.shared import load_camera
    from event_binning_grad.events.convert import convert
    from event_binning_grad.events.recordings import open_recording

    recording = open_recording(options.recording, options.topic)
    camera = load_camera(options.calib, options.recording, options.topic) if options.calib else None
    with event_bar() as bar:
        task = bar.add_task("converting", total=None)
        done = convert(
            recording, options.out, start_s=options.start, duration_s=options.duration,
            camera=camera, progress=lambda events: bar.advance(task, events),
        )  # fmt: skip
    print_warnings(done.warnings, "convert")
    print(f"{options.out}: {done.text}")
    for line in done.left_out:
        print(f"left out: {line}")
    return 0


def _play(options: argparse.Namespace) -> int:
    require_ros()
    from event_binning_grad.ros.replay import replay, replay_config

    check_places((options.publish_log,))
    replay(options.recording, replay_config(options))
    return 0


def _print_summary(summary: Summary) -> None:
    from rich.console import Console
    from rich.table import Table

    figures = summary.figures()
    table = Table(title=figures["recording"], show_header=False)

    def row(name: str, value: str) -> None:
        table.add_row(name, value)

    def counts(name: str, values: dict[str, int]) -> None:
        for reason, count in values.items():
            if count:
                row(f"{name}{reason.replace('_', ' ')}", f"{count:,}")

    row("format", figures["kind"])
    size = f"{figures['width']} x {figures['height']}" if figures["width"] else "unknown"
    row("sensor", size)
    row("encoding", figures["encoding"])
    row("events", f"{figures['events']:,}")
    row("  ON, OFF", f"{figures['on_events']:,}, {figures['off_events']:,}")
    if figures["packets"]:
        row("packets", f"{figures['packets']:,}")
    row("duration", f"{figures['duration_s']:.6f} s")
    if figures["first_event_ns"] is not None:
        times = (figures["first_event_ns"], figures["last_event_ns"])
        row("first, last event", ", ".join(map(_seconds, times)))
    if figures["first_stamp_ns"] is not None:
        times = (figures["first_stamp_ns"], figures["last_stamp_ns"])
        row("first, last stamp", ", ".join(map(_seconds, times)))
    row("mean rate", f"{figures['mean_rate_hz'] / 1e6:.3f} Mev/s")
    row("peak rate, over 10 ms", f"{figures['peak_rate_hz'] / 1e6:.3f} Mev/s")
    row("rate over time", _sparkline(figures["rate_events"]))
    row("longest silence", f"{figures['longest_silence_s']:.6f} s")
    counts("", {"triggers, rising": figures["triggers_rising"]})
    counts("", {"triggers, falling": figures["triggers_falling"]})
    counts("clock: ", figures["clock"])
    counts("packets, ", figures["packet_problems"])
    for reason, count in figures["rejected_packets"].items():
        row(f"packets refused: {reason}", f"{count:,}")
    counts("events, ", figures["event_problems"])
    counts("in the recording: ", figures["unusable"])
    for jump in figures["discontinuities"]:
        row(f"  after {jump['after_s']:.3f} s", jump["reason"])
    hot = figures["hot_pixels"]
    if hot is None:
        row("hot pixels", "not known: too short to learn them")
    else:
        share = 100 * figures["hot_pixel_events"] / max(1, figures["events"])
        row("hot pixels", f"{len(hot):,} with {share:.1f} % of the events" if hot else "none")
    row("calibration", figures["calibration"] or "none")
    row("ground truth", figures["ground_truth"] or "none")
    row("flow truth", figures["flow_truth"] or "none")
    row("other sensors", ", ".join(figures["companions"]) or "none")
    for topic, type_name in figures["topics"].items():
        row(f"topic {topic}", type_name)
    Console().print(table)


def _flat_lists(text: str) -> str:
    """JSON with every list of numbers on one line."""
    return re.sub(
        r"\[\n[\s\d.,eE+-]+\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text
    )


def _seconds(time_ns: int) -> str:
    """Exactly, which a float is not for times since 1970."""
    sign, size = ("-", -time_ns) if time_ns < 0 else ("", time_ns)
    return f"{sign}{size // 10**9}.{size % 10**9:09d} s"


def _sparkline(counts: list[int]) -> str:
    """The curve in one line of at most _SPARK_COLUMNS characters."""
    if not counts:
        return ""
    columns = min(len(counts), _SPARK_COLUMNS)
    edges = [len(counts) * k // columns for k in range(columns + 1)]
    means = [sum(counts[a:b]) / (b - a) for a, b in pairwise(edges)]
    most = max(means)
    steps = len(_SPARKS) - 1
    levels = [0 if not most or not mean else max(1, round(steps * mean / most)) for mean in means]
    return "".join(_SPARKS[level] for level in levels)
