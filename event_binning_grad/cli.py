"""The command line `event-binning-grad`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.fetch_dataset import add_fetch_dataset
from event_binning_grad.numba_threads import let_threads_sleep

if TYPE_CHECKING:
    from rich.progress import Progress

    from event_binning_grad.config import PipelineConfig
    from event_binning_grad.evaluation.evaluate import Evaluation
    from event_binning_grad.evaluation.evaluate_flow import FlowEvaluation
    from event_binning_grad.geometry import Camera

EXIT_FAILED = 1  # the command ran, and its result is not what it must be
EXIT_BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code. Bad input is one line, never a traceback."""
    options = _parser().parse_args(arguments)
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
        print(f"event-binning-grad {options.command}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="event-binning-grad",
        description="Egomotion from event cameras through unbiased gradients of event binning.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_replay(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    _add_simulate(commands)
    _add_bench(commands)
    _add_bias(commands)
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


def _add_replay(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "replay", help="publish a recording over ROS in real time (needs ROS 2)"
    )
    add_replay_arguments(command)
    command.set_defaults(run=_replay)


def add_replay_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a replay, for this command line and for the ROS executable."""
    parser.add_argument("recording", type=Path, metavar="BAG")
    parser.add_argument("--rate", type=float, default=1.0, help="speed (default: %(default)s)")
    parser.add_argument("--loop", action="store_true", help="begin again at the end")
    parser.add_argument("--clock", action="store_true", help="publish /clock (for use_sim_time)")
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="S",
        help="wait for a subscriber to the events, at most this long, s (default: %(default)s)",
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


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
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


def _add_compare(commands: argparse._SubParsersAction) -> None:
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


def _add_simulate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "simulate",
        help="make a recording with known motion, and depth",
        description="Simulates a hand-held event camera and writes a rosbag2 recording with exact "
        "ground truth. The scenes texture and shapes are infinitely far away; plane, layers "
        "(planes, the front ones with gaps) and objects (a plane, and blobs before it that move by "
        "themselves) have depth.",
    )
    command.add_argument(
        "--out", type=Path, required=True, metavar="PATH", help="rosbag2 directory"
    )
    command.add_argument("--duration", type=float, default=10.0, metavar="S")
    command.add_argument("--size", default="346x260", metavar="WxH", help="default: %(default)s")
    command.add_argument(
        "--scene", choices=("texture", "shapes", "plane", "layers", "objects"), default="texture"
    )
    three = ("X", "Y", "Z")
    command.add_argument(
        "--peak", type=float, nargs=3, metavar=three,
        help="largest angular velocity about each axis, rad/s (default: 5 5 5; with depth 2 2 2)",
    )  # fmt: skip
    command.add_argument(
        "--frequency", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="of the motion's swings, Hz (default: 0.3 1.5; with depth 0.5 1.5)",
    )  # fmt: skip
    depth = command.add_argument_group("of the scenes plane, layers and objects")
    depth.add_argument(
        "--speed", type=float, nargs=3, metavar=three,
        help="largest linear velocity along each axis, m/s (default: 0.5 0.5 0.5)",
    )  # fmt: skip
    depth.add_argument(
        "--distance", type=float, metavar="M",
        help="of the plane along the optical axis at the start, m (default: 1)",
    )  # fmt: skip
    depth.add_argument(
        "--normal", type=float, nargs=3, metavar=("NX", "NY", "NZ"),
        help="of the plane in the camera's frame at the start (default: 0 0 1)",
    )  # fmt: skip
    depth.add_argument(
        "--front", type=float, nargs="+", metavar="SHARE",
        help="distances of the front layers, or of groups of objects, over the plane's (default: "
        "0.5; of objects 0.7 0.5)",
    )  # fmt: skip
    depth.add_argument(
        "--coverage", type=float, metavar="SHARE",
        help="of the view, by each front layer (default: 0.3) or group of objects (0.1)",
    )  # fmt: skip
    depth.add_argument(
        "--object-speed", type=float, metavar="M_S",
        help="of the objects by themselves, m/s (default: 0.5)",
    )  # fmt: skip
    depth.add_argument("--paint", choices=("texture", "shapes"), help="(default: texture)")
    sensors = command.add_argument_group("other sensors, with their rates in Hz")
    for name, rate_hz, what in (
        ("depth", 30.0, "exact depth images, 32FC1"),
        ("flow", 50.0, "exact flow, 32FC2 on undistorted pixels (346x260: 0.7 MB each)"),
        ("range", 50.0, "the exact distance along the optical axis"),
        ("imu", 1000.0, "a gyroscope in the camera's axes"),
    ):
        place = "ground_truth/flow" if name == "flow" else name
        sensors.add_argument(
            f"--{name}-topic", type=float, nargs="?", const=rate_hz, default=0.0, metavar="HZ",
            help=f"{what}, to /event_camera/{place} (HZ: {rate_hz:g})",
        )  # fmt: skip
    sensors.add_argument(
        "--imu-noise", type=float, default=0.0, metavar="RAD_S",
        help="standard deviation of a sample (default: 0)",
    )  # fmt: skip
    sensors.add_argument(
        "--imu-bias", type=float, nargs=3, default=(0.0, 0.0, 0.0), metavar=three,
        help="rad/s (default: 0 0 0)",
    )  # fmt: skip
    command.add_argument("--noise", type=float, metavar="HZ", help="background events a pixel, Hz")
    command.add_argument(
        "--noise-share", type=float, default=0.0, metavar="SHARE",
        help="more background events: so many of all events (default: 0)",
    )  # fmt: skip
    command.add_argument("--hot-pixels", type=int, default=0, metavar="N", help="default: 0")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=_simulate)


def _add_bench(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("bench", help="measure throughput and window times here")
    command.add_argument(
        "sections", nargs="*", metavar="SECTION",
        help="operator, egomotion, cuda, flow (default: all)",
    )  # fmt: skip
    command.add_argument(
        "--part", action="append", default=[], metavar="NAME",
        help="of the egomotion section: throughput, overload, packets, changing, hand_held, "
        "cold_start, slow, consistency, depth; of the flow section: throughput, scenes, real, "
        "boxes, determinism; may come again (default: all)",
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


def _add_bias(commands: argparse._SubParsersAction) -> None:
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


def _demo(options: argparse.Namespace) -> int:
    require_ros()
    from event_binning_grad.ros.demo import run_demo

    passed = run_demo(options.out, options.recording, options.calib)
    return 0 if passed else EXIT_FAILED


def _replay(options: argparse.Namespace) -> int:
    require_ros()
    from event_binning_grad.ros.replay import replay, replay_config

    replay(options.recording, replay_config(options))
    return 0


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
    with _event_bar() as bar:
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


def _evaluate_flow(options: argparse.Namespace) -> int:
    from event_binning_grad.config import PipelineConfig
    from event_binning_grad.evaluation.evaluate_flow import evaluate_flow

    if options.window_events is not None:
        raise ConfigError("--window-events with --flow; expected --window-ms or --window-px")
    if options.plot:
        raise ConfigError("--plot with --flow; expected --flow-plot DIR for pictures of the flow")
    asked = {
        "flow_window_ms": options.window_ms,
        "flow_window_px": options.window_px,
        "flow_rate_hz": options.output_rate,
        "gradient": options.gradient,
        "device": options.device,
    }
    settings = {name: value for name, value in asked.items() if value is not None}
    camera = load_camera(options.calib, options.recording) if options.calib else None
    with _event_bar() as bar:
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


def _event_bar() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} events"),
    )
    return Progress(*columns, TimeElapsedColumn(), **_on_a_terminal())


def _compare(options: argparse.Namespace) -> int:
    import json

    from rich.progress import Progress

    from event_binning_grad.config import PipelineConfig
    from event_binning_grad.evaluation.compare import compare, rows_of
    from event_binning_grad.evaluation.tables import as_json, print_rows, report_console

    config = PipelineConfig(window_events=options.window_events, **_estimation(options))
    camera = load_camera(options.calib, options.recording) if options.calib else None
    pairs, solvers = options.pairs.split(","), options.solvers.split(",")
    with Progress(**_on_a_terminal()) as bar:
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


def _simulate(options: argparse.Namespace) -> int:
    from rich.progress import Progress

    from event_binning_grad.simulate import DEPTH_SCENES, SimulationConfig, write_simulation

    width, height = _size(options.size)
    deep = options.scene in DEPTH_SCENES
    # Before a plane the camera must not swing away from it.
    swing = {"peak_rad_s": (2.0,) * 3, "peak_m_s": (0.5,) * 3, "frequency_hz": (0.5, 1.5)}
    changes: dict[str, Any] = swing if deep else {}
    for name, field in (
        ("peak", "peak_rad_s"), ("frequency", "frequency_hz"), ("speed", "peak_m_s"),
        ("distance", "distance_m"), ("normal", "normal"), ("front", "front_shares"),
        ("coverage", "front_coverage"), ("object_speed", "object_m_s"), ("paint", "paint"),
        ("noise", "noise_hz"),
    ):  # fmt: skip
        value = getattr(options, name)
        if value is None:
            continue
        if not deep and name not in ("peak", "frequency", "speed", "noise"):
            option = name.replace("_", "-")
            raise ConfigError(
                f"--{option} is of scenes with depth, but the scene is {options.scene!r}; expected "
                f"--scene {' or '.join(DEPTH_SCENES)}"
            )
        if options.scene == "plane" and name in ("front", "coverage"):
            raise ConfigError(f"--{name} is of front layers; expected --scene layers with it")
        if options.scene != "objects" and name == "object_speed":
            raise ConfigError("--object-speed is of objects; expected --scene objects with it")
        changes[field] = tuple(value) if isinstance(value, list) else value
    config = SimulationConfig(
        duration_s=options.duration,
        width=width,
        height=height,
        scene=options.scene,
        depth_hz=options.depth_topic,
        flow_hz=options.flow_topic,
        range_hz=options.range_topic,
        imu_hz=options.imu_topic,
        imu_noise_rad_s=options.imu_noise,
        imu_bias_rad_s=tuple(options.imu_bias),
        noise_share=options.noise_share,
        hot_pixels=options.hot_pixels,
        seed=options.seed,
        **changes,
    )
    with Progress(**_on_a_terminal()) as bar:
        task = bar.add_task("simulating", total=options.duration)
        write_simulation(
            options.out, config, progress=lambda seconds: bar.update(task, completed=seconds)
        )
    print(f"{options.out}: {options.duration:g} s of a {width}x{height} event camera")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from event_binning_grad.evaluation.bench import run_bench

    run_bench(
        options.json, options.sections, options.quick, options.part, options.poses, options.data
    )
    return 0


def _bias(options: argparse.Namespace) -> int:
    from importlib.util import find_spec

    from rich.console import Console
    from rich.progress import Progress

    from event_binning_grad.evaluation.bias_report import BiasConfig, bias_table, run_bias

    names = ("window_events", "windows", "points", "bin_size", "seed")
    config = BiasConfig(**{name: getattr(options, name) for name in names})
    if options.calib and not options.recording:
        raise ConfigError("--calib without a RECORDING; expected the recording that it is for")
    camera = load_camera(options.calib, options.recording) if options.calib else None
    pictures = find_spec("matplotlib") is not None
    sources = 1 if options.recording is None else 2
    with Progress(**_on_a_terminal()) as bar:
        task = bar.add_task("comparing", total=3 * config.windows * sources)
        studies = run_bias(
            options.out, options.recording, camera, config,
            progress=lambda lines: bar.advance(task, lines), pictures=pictures,
        )  # fmt: skip
    console = Console()
    for study in studies:
        console.print(bias_table(study))
    print(f"{options.out}: bias.json, bias.csv" + (" and pictures" if pictures else ""))
    if not pictures:
        print("no pictures: matplotlib cannot be imported (pip install matplotlib)")
    return 0


def load_camera(calibration: Path, recording: Path | None = None) -> Camera:
    """The camera of a camera_info YAML, or of a calib.txt with the sensor size of a recording.

    Raises:
        CalibrationError, RecordingError: the file cannot be read, or gives no sensor size.
    """
    from event_binning_grad.geometry import Camera

    if calibration.suffix.lower() in (".yaml", ".yml"):
        return Camera.from_yaml(calibration)
    size = None
    if recording is not None:
        from event_binning_grad.events.recordings import open_recording

        opened = open_recording(recording)
        if opened.width and opened.height:
            size = (opened.width, opened.height)
    return Camera.from_calib_txt(calibration, size)


def require_ros() -> None:
    """Raises ConfigError, one line, where ROS 2 is not there."""
    from importlib.util import find_spec

    missing = [name for name in ("rclpy", "event_camera_msgs") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} cannot be imported; this command needs ROS 2: run it from "
            "`make setup`'s .venv, or source your ROS 2 installation"
        )


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


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ConfigError(f"--size {text!r}: expected WIDTHxHEIGHT in pixels, such as 346x260")
    return int(width), int(height)


def _on_a_terminal() -> dict[str, Any]:
    """How to show progress: on a terminal, and nothing in a log or where an error is one line."""
    from rich.console import Console

    console = Console(stderr=True)
    return {"console": console, "transient": True, "disable": not console.is_terminal}


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


if __name__ == "__main__":
    sys.exit(main())
