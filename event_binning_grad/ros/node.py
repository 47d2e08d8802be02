"""The executable `perception_node`: starts the node, and ends it as it should end."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from event_binning_grad.cli import EXIT_BAD_INPUT, EXIT_FAILED, require_ros
from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.numba_threads import let_threads_sleep
from event_binning_grad.ros.allocator import keep_freed_memory
from event_binning_grad.ros.signals import exit_at_once, leave_to_rclpy

# A worker that runs numba's compiler cannot be interrupted: it is given so long, s.
_STOP_TIMEOUT_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM; returns the exit code.

    0 after a signal, 1 after an error of the node itself, 2 for bad parameters (one line, no
    traceback).
    """
    exit_at_once()
    let_threads_sleep()
    keep_freed_memory()
    try:
        require_ros(["rclpy"])  # of the message packages of event cameras, any will do, or none
        return _run(arguments)
    except EventBinningError as error:
        print(f"perception_node: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _run(arguments: Sequence[str] | None) -> int:
    # Only here: without ROS the line of require_ros must come first.
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    from event_binning_grad.ros.perception import PerceptionNode
    from event_binning_grad.ros.start import initialise

    leave_to_rclpy()
    others = initialise(arguments)
    if others:
        raise ConfigError(
            f"arguments {' '.join(others)}: expected none but --ros-args, such as "
            "--ros-args -p window_events:=20000"
        )
    node = None
    try:
        node = PerceptionNode()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        node.start(executor)
        executor.spin()
    except ExternalShutdownException:
        pass
    except Exception:
        if rclpy.ok():  # else the signal came while the node was being made
            raise
    finally:
        stopped = node is None or node.stop(_STOP_TIMEOUT_S)
        if node is not None and stopped:
            node.destroy_node()
        rclpy.try_shutdown()
    code = EXIT_FAILED if node is not None and node.failure else 0
    if not stopped:
        # Python would end under the feet of a thread inside the compiler, and crash.
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
