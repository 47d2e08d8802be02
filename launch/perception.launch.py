"""Starts the perception node on a live camera.

    ros2 launch event_binning_grad perception.launch.py events:=/event_camera/events \
        calibration_file:=/path/to/camera.yaml
"""

import os

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from event_binning_grad.ros.transport import transport_environment

PACKAGE = "event_binning_grad"
DEFAULT_PARAMETERS = PathJoinSubstitution([FindPackageShare(PACKAGE), "config", "default.yaml"])

# Parameters that stand for those of the file where they are given.
TEXTS = (
    "estimate",
    "calibration_file",
    "source",
    "events_type",
    "address",
    "camera_name",
    "recording",
)
TOPICS = ("events", "camera_info", "depth", "range", "imu")


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            _argument("params_file", DEFAULT_PARAMETERS, "the node's parameters"),
            _argument("name", "perception", "name of the node"),
            _argument("namespace", "", "namespace of the node"),
            _argument("events", "/event_camera/events", "topic of the event packets"),
            _argument("camera_info", "/event_camera/camera_info", "topic of the calibration"),
            _argument("depth", "/event_camera/depth", "topic of the depth images"),
            _argument("range", "/event_camera/range", "topic of the range finder"),
            _argument("imu", "/event_camera/imu", "topic of the IMU"),
            _argument("estimate", "", "egomotion, flow or both, instead of what params_file says"),
            _argument("source", "", "ros, dv_camera, dv_network, metavision or file, likewise"),
            _argument("events_type", "", "type of the events' topic, likewise"),
            _argument("address", "", "of a dv_network source, likewise"),
            _argument("port", "", "of a dv_network source, likewise"),
            _argument("camera_name", "", "of a camera at USB, likewise"),
            _argument("recording", "", "path for the source file, likewise"),
            _argument("calibration_file", "", "calibration to use instead of that topic"),
            _argument("use_sim_time", "false", "take the time from /clock"),
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
    parameters: list[object] = [LaunchConfiguration("params_file")]
    use_sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    parameters.append({"use_sim_time": use_sim_time})
    given = {name: LaunchConfiguration(name).perform(context) for name in TEXTS}
    # An empty one would hide what the parameter file says.
    parameters += [
        {n: ParameterValue(value, value_type=str)} for n, value in given.items() if value
    ]
    port = LaunchConfiguration("port").perform(context)
    if port:
        parameters.append({"port": int(port)})
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


def _argument(name: str, default: object, description: str) -> DeclareLaunchArgument:
    return DeclareLaunchArgument(name, default_value=default, description=description)
