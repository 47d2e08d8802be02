"""The core knows no ROS, and what needs ROS says so where it is missing."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import event_binning_grad

CORE = [
    module.name
    for module in pkgutil.walk_packages(event_binning_grad.__path__, "event_binning_grad.")
    if not module.name.startswith("event_binning_grad.ros")
]

IMPORT_CORE = """
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
print([name for name in sys.modules if name.startswith(("rclpy", "rosidl", "rmw"))
       or name.partition(".")[0].endswith("_msgs")])
"""

# None in sys.modules makes a package look as if it was not installed.
WITHOUT_ROS = """
import sys
sys.modules.update({{name: None for name in ("rclpy", "event_camera_msgs")}})
from event_binning_grad.ros.{module} import main
sys.exit(main({arguments!r}))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_core_imports_no_ros() -> None:
    assert "event_binning_grad.pipeline" in CORE
    result = run(IMPORT_CORE.format(names=CORE))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(("module", "arguments"), [("node", []), ("replay", ["some.bag"])])
def test_missing_ros_is_one_line(module: str, arguments: list[str]) -> None:
    result = run(WITHOUT_ROS.format(module=module, arguments=arguments))
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert "rclpy and event_camera_msgs cannot be imported" in line
