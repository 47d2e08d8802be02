"""The commands `evaluate` and `compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from event_binning_grad.commands.shared import (
    add_stretch,
    add_topic,
    check_places,
    event_bar,
    load_camera,
    on_a_terminal,
    print_warnings,
)
from event_binning_grad.errors import ConfigError

if TYPE_CHECKING:
    from event_binning_grad.config import PipelineConfig


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("evaluate", help="run the pipeline over a recording and score it")
    command.add_argument("recording", type=Path, metavar="RECORDING")
    add_topic(command)
    add_stretch(command)
    command.add_argument(
        "--calib", type=Path, metavar="FILE",
        help="camera_info YAML or calib.txt (default: what the recording holds)",
    )  # fmt: skip
    window = command.add_mutually_exclusive_group()
    window.add_argument("--window-events", type=int, metavar="N", help="windows of N events")
    window.add_argument("--window-ms", type=float, metavar="T", help="windows of T ms")
    command.add_argument(
        "--output-rate", type=float, metavar="HZ",
        help="estimates a second, from windows that overlap; 0: windows one after the other "
        "(default: with --window-events or --window-ms 0, else the node's)",
    )  # fmt: skip
    command.add_argument(
        "--window-px", type=float, metavar="PX", help="windows of at most this displacement"
    )
    _add_estimation(command)
    command.add_argument(
        "--imu", choices=("off", "start", "prior", "fixed"), default="off",
        help="what the recording's gyroscope is for (default: %(default)s); against a truth that "
        "is this gyroscope, prior and fixed prove nothing",
    )  # fmt: skip
    command.add_argument("--binning", metavar="KERNEL", help="kernel that bins the events")
    command.add_argument("--reconstruction", metavar="KERNEL", help="kernel of the gradient")
    command.add_argument("--gradient", choices=("unbiased", "raw"), default="unbiased")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    command.add_argument("--csv", type=Path, metavar="FILE", help="write a row a window")
    command.add_argument("--plot", type=Path, metavar="DIR", help="write pictures")
    flow = command.add_argument_group(
        "dense flow instead of the camera's motion",
        "Without a calibration the flow is on raw pixels. Windows are the node's flow windows; "
        "--window-ms, --window-px, --output-rate, --gradient, --device, --json and --csv hold for "
        "them too.",
    )
    flow.add_argument("--flow", action="store_true", help="estimate dense flow and score it")
    flow.add_argument(
        "--flow-truth", choices=("recorded", "depth", "rotation", "none"),
        help="what the flow is compared with: the true flow that a bag or data set holds, if any "
        "(recorded, the default); what a bag's depth images and true velocities imply; or what the "
        "true rotation implies, wrong where the camera translates near the scene",
    )  # fmt: skip
    flow.add_argument(
        "--flow-truth-frames", type=int, metavar="N",
        help="of MVSEC: displacements over N grey frames each, as the literature has them with 1 "
        "and 4 (default: between depth images, for which the data set gives them)",
    )  # fmt: skip
    flow.add_argument(
        "--flow-raw", action="store_true",
        help="estimate on raw pixels though there is a calibration, which then gives the truth",
    )  # fmt: skip
    flow.add_argument(
        "--flow-out", type=Path, metavar="FILE.npz",
        help="keep every field: stamp_s, window_start_s, window_end_s and status [T]; flow "
        "[T, H, W, 2] in px/s, confidence and normal_flow [T, H, W] (11 bytes a pixel and field)",
    )  # fmt: skip
    flow.add_argument("--flow-plot", type=Path, metavar="DIR", help="write pictures of the flow")
    command.set_defaults(run=_evaluate)


def _add_estimation(command: argparse.ArgumentParser) -> None:
    """What is estimated, and from which other knowledge."""
    command.add_argument(
        "--motion-model", choices=("rotation", "full", "planar", "translation"),
        default="rotation", help="default: %(default)s; full and translation need a depth",
    )  # fmt: skip
    command.add_argument(
        "--angular-acceleration", action=argparse.BooleanOptionalAction, default=True,
        help="estimate it too, or take the angular velocity as constant in a window",
    )  # fmt: skip
    command.add_argument("--objective", metavar="NAME", help="what is maximised")
    depth = command.add_mutually_exclusive_group()
    depth.add_argument(
        "--depth", type=float, metavar="M", help="all is so far along the optical axis, m"
    )
    depth.add_argument(
        "--depth-plane", metavar="NX,NY,NZ,D",
        help="the plane n.P = d (m) in the camera's frame at the recording's start, moved by its "
        "poses or true velocities; with a minus in front: --depth-plane=-0.1,0,1,2",
    )  # fmt: skip
    depth.add_argument(
        "--depth-topic", metavar="TOPIC", help="depth images (sensor_msgs/Image) of the bag"
    )
    depth.add_argument(
        "--depth-range", action="store_true",
        help="the bag's sensor_msgs/Range, along the optical axis",
    )  # fmt: skip


def add_compare(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "compare",
        help="gradients, kernels and solvers on the same windows of a recording",
        description="Solves the same windows by every combination of gradient (unbiased, raw), "
        "pair of kernels and solver: the pipeline's own (newton: steps on the gradient, coarse to "
        "fine) and methods of scipy on the objective's value with the same gradient. The raw "
        "gradient has no reconstruction kernel. Prints the errors against the truth, the contrast "
        "gain, evaluations and time a window.",
    )
    command.add_argument("recording", type=Path, metavar="RECORDING")
    add_topic(command)
    command.add_argument("--calib", type=Path, metavar="FILE", help="as of evaluate")
    command.add_argument(
        "--window-events", type=int, default=20_000, metavar="N", help="default: %(default)s"
    )
    command.add_argument(
        "--windows", type=int, default=10, metavar="K",
        help="how many, from the second one on (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--pairs", default="rect+linear,linear+linear", metavar="B+R,...",
        help="binning and reconstruction kernels, by name (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--solvers", default="newton,L-BFGS-B,BFGS,trust-exact", metavar="NAME,...",
        help="default: %(default)s",
    )  # fmt: skip
    _add_estimation(command)
    command.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    command.set_defaults(run=_compare)


def _evaluate(options: argparse.Namespace) -> int:
    from event_binning_grad.commands.evaluation_tables import print_evaluation
    from event_binning_grad.evaluation.evaluate import evaluate
    from event_binning_grad.events.repacking import Stretch

    check_places((options.json, options.csv), (options.plot, options.flow_plot))
    if options.plot or options.flow_plot:
        from event_binning_grad.evaluation.plots import require_matplotlib

        require_matplotlib()  # before the work, not after it
    if options.flow:
        return _evaluate_flow(options)
    for name in ("flow_truth", "flow_truth_frames", "flow_raw", "flow_out", "flow_plot"):
        if getattr(options, name) not in (None, False):
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} without --flow; expected --flow with it")
    camera = load_camera(options.calib, options.recording, options.topic) if options.calib else None
    with event_bar() as bar:
        task = bar.add_task("evaluating", total=None)
        result = evaluate(
            options.recording,
            _pipeline_config(options),
            camera,
            progress=lambda events: bar.advance(task, events),
            images=options.plot is not None,
            depth_topic=options.depth_topic,
            topic=options.topic,
            stretch=Stretch(options.start, options.duration),
        )
    print_evaluation(result)
    print_warnings(result.warnings, "evaluate")
    if options.json:
        result.write_json(options.json)
    if options.csv:
        result.write_csv(options.csv)
    if options.plot:
        from event_binning_grad.evaluation.plots import plot_evaluation

        plot_evaluation(result, options.plot)
    return 0


# Options that the flow does not know, and what they are where nobody gave them.
_OF_EGOMOTION_ALONE = {
    "motion_model": "rotation",
    "angular_acceleration": True,
    "objective": None,
    "depth": None,
    "depth_plane": None,
    "depth_topic": None,
    "depth_range": False,
    "imu": "off",
    "binning": None,
    "reconstruction": None,
}


def _evaluate_flow(options: argparse.Namespace) -> int:
    from event_binning_grad.commands.evaluation_tables import print_flow
    from event_binning_grad.config import PipelineConfig
    from event_binning_grad.evaluation.evaluate_flow import evaluate_flow
    from event_binning_grad.events.repacking import Stretch

    if options.window_events is not None:
        raise ConfigError("--window-events with --flow; expected --window-ms or --window-px")
    if options.plot:
        raise ConfigError("--plot with --flow; expected --flow-plot DIR for pictures of the flow")
    for name, default in _OF_EGOMOTION_ALONE.items():
        if getattr(options, name) != default:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} with --flow; expected it without --flow")
    asked = {
        "flow_window_ms": options.window_ms,
        "flow_window_px": options.window_px,
        "flow_rate_hz": options.output_rate,
        "gradient": options.gradient,
        "device": options.device,
    }
    settings = {name: value for name, value in asked.items() if value is not None}
    camera = load_camera(options.calib, options.recording, options.topic) if options.calib else None
    with event_bar() as bar:
        task = bar.add_task("evaluating", total=None)
        result = evaluate_flow(
            options.recording,
            PipelineConfig(estimate="flow", **settings),
            camera,
            truth=options.flow_truth or "recorded",
            truth_frames=options.flow_truth_frames,
            raw_pixels=options.flow_raw,
            flow_out=options.flow_out,
            pictures=options.flow_plot is not None,
            topic=options.topic,
            stretch=Stretch(options.start, options.duration),
            progress=lambda events: bar.advance(task, events),
        )
    print_flow(result)
    print_warnings(result.warnings, "evaluate")
    if options.json:
        result.write_json(options.json)
    if options.csv:
        result.write_csv(options.csv)
    if options.flow_plot:
        from event_binning_grad.evaluation.plots_flow import plot_flow

        for picture in plot_flow(result, options.flow_plot):
            print(picture)
    return 0


def _compare(options: argparse.Namespace) -> int:
    import json

    from rich.progress import Progress

    from event_binning_grad.config import PipelineConfig
    from event_binning_grad.evaluation.compare import compare, rows_of
    from event_binning_grad.evaluation.tables import as_json, print_rows, report_console

    check_places((options.json,))
    config = PipelineConfig(window_events=options.window_events, **_estimation(options))
    camera = load_camera(options.calib, options.recording, options.topic) if options.calib else None
    pairs, solvers = options.pairs.split(","), options.solvers.split(",")
    with Progress(**on_a_terminal()) as bar:
        task = bar.add_task("comparing", total=rows_of(pairs, solvers))
        rows = compare(
            options.recording, config, camera, pairs=pairs, solvers=solvers,
            windows=options.windows, depth_topic=options.depth_topic, topic=options.topic,
            progress=lambda: bar.advance(task),
        )  # fmt: skip
    print_rows(
        report_console(), f"{options.recording}, windows of {options.window_events:,} events", rows
    )
    if options.json:
        options.json.write_text(json.dumps([as_json(row) for row in rows], indent=2) + "\n")
    return 0


def _pipeline_config(options: argparse.Namespace) -> PipelineConfig:
    from event_binning_grad.config import PipelineConfig

    return PipelineConfig(**_windows(options), **_estimation(options))


def _windows(options: argparse.Namespace) -> dict[str, Any]:
    """Windows one after the other where a size is asked for and no rate; else the node's."""
    from event_binning_grad.config import PipelineConfig

    windows: dict[str, Any] = {}
    if options.window_events is not None:
        # Who asks for few events, or for many, means it.
        events, default = options.window_events, PipelineConfig()
        windows = {
            "window_events": events,
            "window_ms": 0.0,
            "min_events": min(default.min_events, max(events, 10)),
            "max_events": max(default.max_events, events),
        }
    elif options.window_ms is not None:
        windows = {"window_events": 0, "window_ms": options.window_ms}
    if windows:
        windows |= {"output_rate_hz": 0.0, "window_px": 0.0, "adaptive_windows": False}
    if options.output_rate is not None:
        windows["output_rate_hz"] = options.output_rate
    if options.window_px is not None:
        windows["window_px"] = options.window_px
    return windows


def _estimation(options: argparse.Namespace) -> dict[str, Any]:
    names = (
        "motion_model", "angular_acceleration", "objective", "binning", "reconstruction",
        "gradient", "imu", "device",
    )  # fmt: skip
    given = {name: getattr(options, name, None) for name in names}
    settings = {name: value for name, value in given.items() if value is not None}
    if options.depth is not None:
        settings |= {"depth": "constant", "depth_m": options.depth}
    elif options.depth_plane is not None:
        settings |= {"depth": "plane", "depth_plane": _plane(options.depth_plane)}
    elif options.depth_topic is not None:
        settings["depth"] = "image"
    elif options.depth_range:
        settings["depth"] = "range"
    return settings


def _plane(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 4:
        raise ConfigError(
            f"--depth-plane {text!r}: expected four numbers nx,ny,nz,d, such as 0,0,1,1.5"
        )
    return numbers
