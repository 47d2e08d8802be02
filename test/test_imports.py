"""What importing costs and pulls in: the core knows no ROS, and loads nothing heavy early."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import event_binning_grad

# What only a ROS installation brings; the core must run without any of it.
ROS = {"rclpy", "rcl_interfaces", "builtin_interfaces", "std_msgs", "sensor_msgs", "geometry_msgs"}
ROS |= {"diagnostic_msgs", "event_camera_msgs", "rosgraph_msgs", "launch", "launch_ros"}
ROS |= {
    "dvs_msgs",
    "prophesee_event_msgs",
    "dv_ros2_msgs",
    "ament_index_python",
    "rosidl_parser",
    "rpyutils",
}


def imported_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after the statement."""
    script = (
        f"import json, sys\n{statement}\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def core_modules() -> list[str]:
    found = pkgutil.walk_packages(event_binning_grad.__path__, "event_binning_grad.")
    names = [module.name for module in found]
    return [name for name in names if not f"{name}.".startswith("event_binning_grad.ros.")]


def test_core_is_complete():
    names = core_modules()
    for room in ("binning", "events", "geometry", "estimation", "pipeline", "simulate", "cli"):
        assert f"event_binning_grad.{room}" in names


def test_core_imports_no_ros():
    loaded = imported_after("\n".join(f"import {name}" for name in core_modules()))
    assert "torch" in loaded  # the imports did happen
    assert not loaded & ROS


def test_core_runs_where_ros_cannot_be_imported():
    """A finder that refuses every ROS package, as on a machine without them."""
    script = f"""
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {ROS!r}:
            raise ImportError('no ROS here: ' + name)
sys.meta_path.insert(0, Refuse())
{chr(10).join(f"import {name}" for name in core_modules())}
import event_binning_grad
assert event_binning_grad.Pipeline(event_binning_grad.PipelineConfig()).counters.events == 0
"""
    assert not imported_after(script) & ROS


def test_package_and_command_line_load_nothing_heavy():
    heavy = {"torch", "numba", "numpy", "scipy", "cv2", "rosbags", "matplotlib", "rich", "evt3"}
    heavy |= {"triton"}
    assert not imported_after("import event_binning_grad, event_binning_grad.cli") & heavy
    helped = imported_after(
        "from event_binning_grad.cli import main\n"
        "for arguments in (['--help'], ['evaluate', '--help'], ['demo', '--help']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as end: assert end.code == 0"
    )
    assert not helped & heavy


def test_binning_stands_alone():
    loaded = imported_after("import event_binning_grad.binning")
    assert "torch" in loaded
    assert not loaded & {"triton", "numba", "rosbags", "scipy", "cv2", "matplotlib", "rich", "evt3"}
    rooms = imported_after(
        "import event_binning_grad.binning\n"
        "sys.modules = {n.removeprefix('event_binning_grad.'): 0 for n in sys.modules"
        " if n.startswith('event_binning_grad.')}"
    )
    assert rooms == {"binning", "errors"}


@pytest.mark.parametrize("name", ["bin_events", "Pipeline", "PipelineConfig"])
def test_public_names_are_there_on_demand(name: str):
    assert getattr(event_binning_grad, name).__name__ == name
    assert name in event_binning_grad.__all__


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        event_binning_grad.nonsense  # noqa: B018
