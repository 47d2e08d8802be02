"""The executable `replay` (the command `play`): publishes a recording over ROS in real time."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from event_binning_grad.cli import EXIT_BAD_INPUT, add_replay_arguments, require_ros
from event_binning_grad.commands.recordings import WAIT_S
from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.events.bag_messages import EVENTS_TOPIC
from event_binning_grad.events.recordings import Recording, open_recording
from event_binning_grad.events.repacking import Stretch
from event_binning_grad.ros.signals import exit_at_once, leave_to_rclpy


@dataclass(frozen=True)
class ReplayConfig:
    """How a recording is published.

    Attributes:
        topic: of the events, where a bag holds several, see open_recording; None where it does not.
        rate: speed; 2 is twice as fast as it was.
        loop: begin again at the end, until interrupted; seq and stamps begin again, too, so that
            nodes see the clock go back, and reset.
        start_s, duration_s: only the part that begins so long after the first events, and lasts so
            long (None: to the end), s.
        pause: begin paused. The service ~/pause (std_srvs/SetBool, where it is installed) and, on
            a terminal, the space key pause and go on; while paused /clock stands still.
        clock: publish /clock, the recording's time, for nodes with use_sim_time.
        wait_s: wait for a subscriber to the events, at most this long, s; 0: publish at once, so
            that who has subscribed already misses what comes before both sides know of each other.
        events_topic: where the events go.
        progress: write a line of progress, where standard error is a terminal.
        publish_log: CSV with a row a packet: seq, when it was published (monotonic clock, ns), its
            header stamp and its time in the recording (that of its last event), ns.

    Raises:
        ConfigError: a value that is not allowed.
    """

    topic: str | None = None
    rate: float = 1.0
    loop: bool = False
    start_s: float = 0.0
    duration_s: float | None = None
    pause: bool = False
    clock: bool = False
    wait_s: float = WAIT_S
    events_topic: str = EVENTS_TOPIC
    progress: bool = True
    publish_log: Path | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ConfigError(f"rate {self.rate}: expected a number above 0, such as 0.5")
        if not (math.isfinite(self.wait_s) and self.wait_s >= 0):
            raise ConfigError(f"wait {self.wait_s} s: expected 0 or more")
        self.stretch  # noqa: B018 (checks it)

    @property
    def stretch(self) -> Stretch:
        """The part of the recording that is published."""
        return Stretch(self.start_s, self.duration_s)


@dataclass
class ReplayCounters:
    """What was published."""

    packets: int = 0
    packet_bytes: int = 0
    unheard_packets: int = 0
    """Published while nobody subscribed to them."""
    messages: int = 0
    """Packets and all others."""
    largest_delay_s: float = 0.0
    """How late a message was at most, against the recording's own pace."""


def replay(path: Path | str, config: ReplayConfig | None = None) -> ReplayCounters:
    """Publishes a recording until its end, or until SIGINT or SIGTERM.

    Bags are published as they are, byte by byte: the events on config.events_topic, camera info,
    ground truth, depth, range and IMU on the topics of /event_camera, all others on their own.
    Events in other files, or of a type that is not installed here, become event packets: in their
    own encoding where a ROS driver could have sent it, else as "mono".

    Raises:
        RecordingError: the recording cannot be read, or holds no events.
        ConfigError: ROS 2 or its message packages are not there.
    """
    require_ros()
    import rclpy

    from event_binning_grad.ros.start import initialise

    config = config or ReplayConfig()
    recording = open_recording(path, config.topic)
    own_context = not rclpy.ok()
    if own_context:
        initialise([])
    try:
        return _publish(recording, config)
    finally:
        if own_context:
            rclpy.try_shutdown()


def _publish(recording: Recording, config: ReplayConfig) -> ReplayCounters:
    """Publishes it, where ROS was initialised; ends at once where a signal ended ROS already."""
    import rclpy
    from rclpy.executors import ExternalShutdownException

    from event_binning_grad.ros.replayer import Replayer

    counters = ReplayCounters()
    try:
        with Replayer(recording, config, counters) as replayer:
            replayer.run()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        if rclpy.ok():  # else the signal came meanwhile
            raise
    return counters


def replay_config(options: argparse.Namespace) -> ReplayConfig:
    """The configuration that the options of `cli.add_replay_arguments` ask for."""
    return ReplayConfig(
        topic=options.topic,
        rate=options.rate,
        loop=options.loop,
        start_s=options.start,
        duration_s=options.duration,
        pause=options.pause,
        clock=options.clock,
        wait_s=options.wait,
        events_topic=options.events_topic or EVENTS_TOPIC,
        progress=not options.quiet,
        publish_log=options.publish_log,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a replay as a ROS node; returns the exit code. Bad input is one line."""
    exit_at_once()
    try:
        require_ros()
        import rclpy

        from event_binning_grad.ros.start import initialise

        leave_to_rclpy()
        parser = argparse.ArgumentParser(prog="replay", description=__doc__)
        add_replay_arguments(parser)
        options = parser.parse_args(initialise(arguments))
        try:
            config = replay_config(options)
            _publish(open_recording(options.recording, config.topic), config)
        finally:
            rclpy.try_shutdown()
    except EventBinningError as error:
        print(f"replay: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        print(f"replay: {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
