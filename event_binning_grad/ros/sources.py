"""The source that the node's parameters ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from event_binning_grad.sources.dv import DvCamera, DvNetwork
from event_binning_grad.sources.file import FileSource
from event_binning_grad.sources.metavision import Metavision

if TYPE_CHECKING:
    from event_binning_grad.ros.parameters import NodeConfig
    from event_binning_grad.sources.source import Source


def make_source(config: NodeConfig, wanted: frozenset[str]) -> Source | None:
    """The source of the events; None for ROS's topic.

    wanted: the other sensors that the parameters make use of.

    Raises:
        RecordingError: the recording is not there, cannot be read, or holds no events.
    """
    if config.source == "dv_camera":
        return DvCamera(config.camera_name, config.camera_settings)
    if config.source == "dv_network":
        return DvNetwork(config.address, config.port, config.imu_port, config.trigger_port)
    if config.source == "metavision":
        return Metavision(config.camera_name)
    if config.source == "file":
        path = Path(config.recording).expanduser()
        source = FileSource(path, config.recording_rate, config.recording_end == "loop", wanted)
        source.recording  # noqa: B018 (opens it: unlike a camera, a file does not come later)
        return source
    return None
