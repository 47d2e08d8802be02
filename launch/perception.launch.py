"""Starts the perception node on a live camera.

    ros2 launch event_binning_grad perception.launch.py events:=/event_camera/events \
        calibration_file:=/path/to/camera.yaml
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from event_binning_grad.errors import ConfigError
from event_binning_grad.ros.transport import transport_environment

PACKAGE = "event_binning_grad"
PARAMETERS = os.path.join(get_package_share_directory(PACKAGE), "config", "default.yaml")

# Parameters that stand for those of the file where they are given. Text is text, even if it looks
# like a number; for the others the node says what it expects.
TEXTS = {
    "estimate": "egomotion, flow or both",
    "source": "ros, dv_camera, dv_network, metavision or file",
    "events_type": "type of the topic of the events, with source ros",
    "address": "of the server, with source dv_network",
    "camera_name": "of the camera at USB, with source dv_camera or metavision",
    "recording": "path, with source file",
    "calibration_file": "the calibration, instead of the topic camera_info",
}
NUMBERS = {
    "port": "of the events, with source dv_network",
    "imu_port": "of the IMU, with source dv_network",
    "trigger_port": "of the trigger input, with source dv_network",
}
TOPICS = {
    "events": "the event packets",
    "camera_info": "the calibration",
    "depth": "the depth images",
    "range": "the range finder",
    "imu": "the IMU",
}


def generate_launch_description() -> LaunchDescription:
    given = {**TEXTS, **NUMBERS}.items()
    return LaunchDescription(
        [
            _argument("params_file", PARAMETERS, "the node's parameters"),
            *(_argument(name, "", f"{text}; empty: as params_file says") for name, text in given),
            *(
                _argument(name, f"/event_camera/{name}", f"topic of {text}")
                for name, text in TOPICS.items()
            ),
            _argument("name", "perception", "name of the node"),
            _argument("namespace", "", "namespace of the node"),
            _argument("use_sim_time", "false", "take the time from /clock: true or false"),
            _argument(
                "transport",
                "large_data",
                "that of Fast DDS: large_data, which large messages need, of who sends them; or "
                "default. FASTDDS_DEFAULT_PROFILES_FILE in the environment comes first",
            ),
            OpaqueFunction(function=_start),
        ]
    )


def _start(context: LaunchContext) -> list[Node]:
    params_file = LaunchConfiguration("params_file").perform(context)
    if not os.path.isfile(params_file):  # launch_ros goes on without it
        raise ConfigError(f"params_file {params_file!r}: expected a file of parameters")
    parameters: list[object] = [
        params_file,
        {"use_sim_time": LaunchConfiguration("use_sim_time")},
    ]
    # An empty one would hide what the parameter file says.
    given = [name for name in (*TEXTS, *NUMBERS) if LaunchConfiguration(name).perform(context)]
    for name in given:
        kind = str if name in TEXTS else None
        parameters.append({name: ParameterValue(LaunchConfiguration(name), value_type=kind)})
    transport = LaunchConfiguration("transport").perform(context)
    return [
        Node(
            package=PACKAGE,
            executable="perception_node",
            name=LaunchConfiguration("name"),
            namespace=LaunchConfiguration("namespace"),
            parameters=parameters,
            additional_env=transport_environment(transport, os.environ),
            remappings=[(f"~/{topic}", LaunchConfiguration(topic)) for topic in TOPICS],
            output="screen",
        )
    ]


def _argument(name: str, default: str, description: str) -> DeclareLaunchArgument:
    return DeclareLaunchArgument(name, default_value=default, description=description)
