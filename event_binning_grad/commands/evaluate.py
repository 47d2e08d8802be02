"""The commands `evaluate` and `compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from event_binning_grad.commands.shared import event_bar, load_camera, on_a_terminal
from event_binning_grad.errors import ConfigError

if TYPE_CHECKING:
    from event_binning_grad.config import PipelineConfig
    from event_binning_grad.evaluation.evaluate import Evaluation
    from event_binning_grad.evaluation.evaluate_flow import FlowEvaluation


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("evaluate", help="run the pipeline over a recording and score it")
    command.add_argument("recording", type=Path, metavar="RECORDING")
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
        "--flow-raw", action="store_true",
        help="estimate on raw pixels though there is a calibration, which then gives the truth",
    )  # fmt: skip
    flow.add_argument(
        "--flow-out", type=Path, metavar="FILE.npz",
        help="keep every field: stamp_s [T], flow [T, H, W, 2] in px/s (8 bytes a pixel and field)",
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
        help="the plane n.P = d (m) in the camera's frame at the start, moved by the recording's "
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
    from event_binning_grad.evaluation.evaluate import evaluate

    if options.plot or options.flow_plot:
        from event_binning_grad.evaluation.plots import require_matplotlib

        require_matplotlib()  # before the work, not after it
    if options.flow:
        return _evaluate_flow(options)
    for name in ("flow_truth", "flow_raw", "flow_out", "flow_plot"):
        if getattr(options, name):
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} without --flow; expected --flow with it")
    camera = load_camera(options.calib, options.recording) if options.calib else None
    with event_bar() as bar:
        task = bar.add_task("evaluating", total=None)
        result = evaluate(
            options.recording,
            _pipeline_config(options),
            camera,
            progress=lambda events: bar.advance(task, events),
            images=options.plot is not None,
            depth_topic=options.depth_topic,
        )
    _print_evaluation(result)
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
    from event_binning_grad.config import PipelineConfig
    from event_binning_grad.evaluation.evaluate_flow import evaluate_flow

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
    camera = load_camera(options.calib, options.recording) if options.calib else None
    with event_bar() as bar:
        task = bar.add_task("evaluating", total=None)
        result = evaluate_flow(
            options.recording,
            PipelineConfig(estimate="flow", **settings),
            camera,
            truth=options.flow_truth or "recorded",
            raw_pixels=options.flow_raw,
            flow_out=options.flow_out,
            pictures=options.flow_plot is not None,
            progress=lambda events: bar.advance(task, events),
        )
    _print_flow(result)
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

    config = PipelineConfig(window_events=options.window_events, **_estimation(options))
    camera = load_camera(options.calib, options.recording) if options.calib else None
    pairs, solvers = options.pairs.split(","), options.solvers.split(",")
    with Progress(**on_a_terminal()) as bar:
        task = bar.add_task("comparing", total=rows_of(pairs, solvers))
        rows = compare(
            options.recording, config, camera, pairs=pairs, solvers=solvers,
            windows=options.windows, depth_topic=options.depth_topic,
            progress=lambda: bar.advance(task),
        )  # fmt: skip
    print_rows(
        report_console(), f"{options.recording}, windows of {options.window_events:,} events", rows
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
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


def _print_evaluation(result: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    figures = result.summary()
    table = Table(title=figures["recording"], show_header=False)

    def row(name: str, value: float | None, unit: str, digits: str = ",.2f") -> None:
        table.add_row(name, "-" if value is None else f"{value:{digits}} {unit}".rstrip())

    row("events", figures["events"], "", ",d")
    row("duration", figures["duration_s"], "s")
    row("windows", figures["windows"], "", ",d")
    for status, count in figures["windows_by_status"].items():
        if count and status != "ok":
            row(f"  not trusted: {status}", count, "", ",d")
    row("events used", 100 * figures["used_events_share"], "%", ",.1f")
    for reason, count in figures["rejected_packets"].items():
        row(f"  packets dropped: {reason}", count, "", ",d")
    for reason, count in figures["unusable"].items():
        if count:
            row(f"  in the recording: {reason}", count, "", ",d")
    row("throughput", figures["events_per_second"] / 1e6, "Mev/s")
    row("time a window, p50", figures["window_ms_p50"], "ms")
    row("time a window, p99", figures["window_ms_p99"], "ms")
    row("passes over a window, mean", figures["iterations_mean"], "")
    table.add_row("ground truth", figures["ground_truth"] or "none")
    row("angular velocity RMS, an axis", figures["angular_velocity_rms_deg_s"], "deg/s")
    per_axis = figures["angular_velocity_rms_per_axis_deg_s"]
    for axis, value in zip("xyz", per_axis or (), strict=False):
        row(f"  about {axis}", value, "deg/s")
    row("normalised squared error, 3 is ideal", figures["nees_mean"], "")
    if figures["linear_velocity_rms_m_s"] is not None:
        row("linear velocity RMS, an axis", figures["linear_velocity_rms_m_s"], "m/s", ",.3f")
        row("  of the true speed's", figures["linear_velocity_rms_percent"], "%", ",.1f")
        per_axis = figures["linear_velocity_rms_per_axis_m_s"]
        for axis, value in zip("xyz", per_axis, strict=True):
            row(f"  along {axis}", value, "m/s", ",.3f")
        row("  normalised squared error", figures["linear_nees_mean"], "")
    Console().print(table)


def _print_flow(result: FlowEvaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    figures = result.summary()
    table = Table(title=figures["recording"], show_header=False)

    def row(name: str, value: float | None, unit: str, digits: str = ",.2f") -> None:
        table.add_row(name, "-" if value is None else f"{value:{digits}} {unit}".rstrip())

    def errors(prefix: str) -> None:
        row("  end-point error", figures[f"{prefix}epe_px"], "px over the window", ",.3f")
        row("  of a true displacement of", figures[f"{prefix}true_displacement_px"], "px")
        row("  end-point error", figures[f"{prefix}epe_px_s"], "px/s", ",.1f")
        row("  angular error", figures[f"{prefix}angular_error_deg"], "deg")
        row("  off by more than 1 px", figures[f"{prefix}outliers_1px_percent"], "%")
        row("  off by more than 3 px", figures[f"{prefix}outliers_3px_percent"], "%")

    row("events", figures["events"], "", ",d")
    row("duration", figures["duration_s"], "s")
    row("flow fields", figures["fields"], "", ",d")
    for status, count in figures["windows_by_status"].items():
        if status != "ok":
            row(f"  not trusted: {status}", count, "", ",d")
    table.add_row("on", "undistorted pixels" if result.undistorted else "raw pixels")
    row("window, p50", figures["window_ms_p50"], "ms", ",.1f")
    row("fields a second of computing", figures["fields_per_second"], "", ",.1f")
    row("time a field, p50", figures["field_ms_p50"], "ms")
    row("time a field, p99", figures["field_ms_p99"], "ms")
    row("events used", 100 * figures["used_events_share"], "%", ",.1f")
    for reason, count in figures["rejected_packets"].items():
        row(f"  packets dropped: {reason}", count, "", ",d")
    row("density", _percent(figures["density"]), "% of the pixels with events", ",.1f")
    row("  only across the edges", _percent(figures["normal_flow_share"]), "% of these", ",.1f")
    row("flow warp loss, mean", figures["flow_warp_loss_mean"], "", ",.3f")
    row("  least", figures["flow_warp_loss_min"], "", ",.3f")
    table.add_row("compared with", figures["flow_truth"] or "nothing")
    if result.error is not None:
        if figures["true_displacements_compared"]:
            row("true displacements", figures["true_displacements_compared"], "", ",d")
        row("pixels with events", figures["pixels_compared"], "", ",d")
        errors("")
        if figures["true_flow_warp_loss_mean"] is not None:
            row("  flow warp loss of the truth", figures["true_flow_warp_loss_mean"], "", ",.3f")
        if figures["moving_pixels_compared"]:
            row("of what moves by itself", figures["moving_pixels_compared"], "pixels", ",d")
            errors("moving_")
        if figures["normal_flow_share"] and figures["full_pixels_compared"]:
            row("where the whole flow is known", figures["full_pixels_compared"], "pixels", ",d")
            errors("full_")
    Console().print(table)
    if not result.undistorted:
        print("raw pixels: no calibration is used, so the lens' distortion is in the flow")


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
