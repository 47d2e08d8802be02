"""Replays a recording through the perception node, on the recording's time.

    ros2 launch event_binning_grad replay.launch.py recording:=/path/to/bag

Everything ends with the recording. The recording's ground truth, if it has one, is on
/event_camera/ground_truth/twist, beside the node's /perception/twist.
"""

import os

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
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

from event_binning_grad.ros.transport import transport_environment

PACKAGE = "event_binning_grad"
EVENTS = "/event_camera/events"
# The node compiles before it subscribes: minutes the first time on a small computer.
WAIT_S = "300"


def generate_launch_description() -> LaunchDescription:
    share = FindPackageShare(PACKAGE)
    # The parameters that perception.launch.py declares can be given here too.
    perception = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            PathJoinSubstitution([share, "launch", "perception.launch.py"])
        ),
        launch_arguments={"events": EVENTS, "use_sim_time": "true"}.items(),
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("recording", description="any recording"),
            DeclareLaunchArgument("rate", default_value="1.0", description="speed"),
            DeclareLaunchArgument("start", default_value="0", description="begin here, s"),
            DeclareLaunchArgument("duration", default_value="", description="s; empty: all"),
            DeclareLaunchArgument(
                "loop", default_value="false", description="begin again at the end"
            ),
            DeclareLaunchArgument(
                "pause",
                default_value="false",
                description="begin paused, until the service /replay/pause says otherwise",
            ),
            DeclareLaunchArgument(
                "transport", default_value="large_data", description="see perception.launch.py"
            ),
            perception,
            OpaqueFunction(function=_replay),
        ]
    )


def _replay(context: LaunchContext) -> list[Node | RegisterEventHandler]:
    transport = LaunchConfiguration("transport").perform(context)
    duration = LaunchConfiguration("duration").perform(context)
    options = ["--duration", duration] if duration else []
    options += [
        f"--{name}"
        for name in ("loop", "pause")
        if LaunchConfiguration(name).perform(context).lower() in ("true", "1")
    ]
    replay = Node(
        package=PACKAGE,
        executable="replay",
        arguments=[
            LaunchConfiguration("recording"),
            "--rate", LaunchConfiguration("rate"),
            "--events-topic", EVENTS,
            "--wait", WAIT_S,
            "--start", LaunchConfiguration("start"),
            "--clock",
            *options,
        ],
        additional_env=transport_environment(transport, os.environ),
        output="screen",
    )  # fmt: skip
    ended = OnProcessExit(target_action=replay, on_exit=[Shutdown(reason="the recording ended")])
    return [replay, RegisterEventHandler(ended)]
