"""The command `simulate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from event_binning_grad.commands.shared import check_places, on_a_terminal
from event_binning_grad.errors import ConfigError


def add_simulate(commands: argparse._SubParsersAction) -> None:
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


def _simulate(options: argparse.Namespace) -> int:
    from rich.progress import Progress

    from event_binning_grad.simulate import DEPTH_SCENES, SimulationConfig, write_simulation

    check_places((), (options.out.parent,))
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
    with Progress(**on_a_terminal()) as bar:
        task = bar.add_task("simulating", total=options.duration)
        write_simulation(
            options.out, config, progress=lambda seconds: bar.update(task, completed=seconds)
        )
    print(f"{options.out}: {options.duration:g} s of a {width}x{height} event camera")
    return 0


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ConfigError(f"--size {text!r}: expected WIDTHxHEIGHT in pixels, such as 346x260")
    return int(width), int(height)
