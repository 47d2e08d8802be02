"""What every executable does first."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import rclpy
from rclpy.utilities import remove_ros_args

from event_binning_grad.errors import ConfigError
from event_binning_grad.ros.transport import transport_environment


def initialise(arguments: Sequence[str] | None) -> list[str]:
    """rclpy.init, with its signal handlers: SIGINT and SIGTERM end a spin.

    Messages go by the transport large_data, unless the environment says another one.

    arguments: without the program's name; None for those of the process.
    Returns the arguments that are not ROS's own.

    Raises:
        ConfigError: --ros-args that ROS does not understand, such as a parameter file with errors.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    os.environ.update(transport_environment("large_data", os.environ))
    try:
        rclpy.init(args=arguments)
        return remove_ros_args(arguments)
    except Exception as error:  # rclpy raises RuntimeErrors of many kinds here
        reason = " ".join(str(error).split())
        raise ConfigError(f"ROS arguments: {reason}") from None
