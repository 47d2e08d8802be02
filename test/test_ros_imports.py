"""What needs ROS says so, in one line, where it is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

# None in sys.modules makes a package look as if it was not installed.
WITHOUT_ROS = """
import sys
sys.modules.update({{name: None for name in ("rclpy", "event_camera_msgs")}})
from event_binning_grad.{module} import main
sys.exit(main({arguments!r}))
"""


@pytest.mark.parametrize(
    ("module", "arguments", "missing"),
    [
        ("ros.node", [], "rclpy"),
        ("ros.replay", ["some.bag"], "rclpy and event_camera_msgs"),
        ("cli", ["demo"], "rclpy and event_camera_msgs"),
        ("cli", ["replay", "some.bag"], "rclpy and event_camera_msgs"),
    ],
)
def test_missing_ros_is_one_line(module: str, arguments: list[str], missing: str) -> None:
    code = WITHOUT_ROS.format(module=module, arguments=arguments)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert f": {missing} cannot be imported" in line
