"""Replays a recording through the perception node, on the recording's time.

    ros2 launch event_binning_grad replay.launch.py recording:=/path/to/bag

Everything ends with the recording, or with the node. The recording's ground truth, if it has one,
is on /event_camera/ground_truth/twist, beside the node's /perception/twist.
"""

import os

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from event_binning_grad.errors import ConfigError
from event_binning_grad.ros.transport import transport_environment

PACKAGE = "event_binning_grad"
# The node compiles before it subscribes: minutes the first time on a small computer.
WAIT_S = "300"


def generate_launch_description() -> LaunchDescription:
    share = FindPackageShare(PACKAGE)
    # The parameters that perception.launch.py declares can be given here too. There, `recording`
    # is what the node reads itself, so the one of here ends where the group begins.
    perception = GroupAction(
        [
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(
                    PathJoinSubstitution([share, "launch", "perception.launch.py"])
                ),
                launch_arguments={"recording": ""}.items(),
            )
        ]
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("recording", description="any recording"),
            DeclareLaunchArgument(
                "topic", default_value="", description="of the events, where a bag holds several"
            ),
            DeclareLaunchArgument("rate", default_value="1.0", description="speed"),
            DeclareLaunchArgument("start", default_value="0", description="begin here, s"),
            DeclareLaunchArgument("duration", default_value="", description="s; empty: all"),
            DeclareLaunchArgument(
                "loop", default_value="false", description="begin again at the end: true or false"
            ),
            DeclareLaunchArgument(
                "pause",
                default_value="false",
                description="begin paused, until the service /replay/pause says otherwise",
            ),
            DeclareLaunchArgument(
                "transport", default_value="large_data", description="see perception.launch.py"
            ),
            DeclareLaunchArgument(
                "events", default_value="/event_camera/events", description="topic of the events"
            ),
            DeclareLaunchArgument(
                "use_sim_time",
                default_value="true",
                description="the node takes the time from /clock: true or false",
            ),
            perception,
            OpaqueFunction(function=_replay),
        ]
    )


def _replay(context: LaunchContext) -> list[Node | RegisterEventHandler]:
    transport = LaunchConfiguration("transport").perform(context)
    duration = LaunchConfiguration("duration").perform(context)
    topic = LaunchConfiguration("topic").perform(context)
    options = ["--duration", duration] if duration else []
    options += ["--topic", topic] if topic else []
    options += [f"--{name}" for name in ("loop", "pause") if _is_true(context, name)]
    replay = Node(
        package=PACKAGE,
        executable="replay",
        arguments=[
            LaunchConfiguration("recording"),
            "--rate", LaunchConfiguration("rate"),
            "--events-topic", LaunchConfiguration("events"),
            "--wait", WAIT_S,
            "--start", LaunchConfiguration("start"),
            "--clock",
            *options,
        ],
        additional_env=transport_environment(transport, os.environ),
        output="screen",
    )  # fmt: skip
    ended = OnProcessExit(
        target_action=_is_ours, on_exit=[Shutdown(reason="the recording or the node has ended")]
    )
    return [replay, RegisterEventHandler(ended)]


def _is_ours(action: object) -> bool:
    """Not what a larger launch starts besides."""
    return isinstance(action, Node) and action.node_package == PACKAGE


def _is_true(context: LaunchContext, name: str) -> bool:
    value = LaunchConfiguration(name).perform(context).lower()
    if value not in ("true", "false"):
        raise ConfigError(f"{name} {value!r}: expected true or false")
    return value == "true"
