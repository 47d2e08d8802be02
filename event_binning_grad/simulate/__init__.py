"""Events of a rotating event camera, with exact ground truth.

A scene is the logarithm of the intensity on the unit sphere around the camera, painted once into a
cube map. The camera turns inside it; every pixel follows the log intensity that it sees over steps
of at most half a pixel and fires an event at each crossing of its contrast threshold, as the pixels
of a real sensor do. The angular velocity is an analytic function of time, so the truth is exact.

    camera = SimulationConfig().camera()
    motion = hand_motion(duration_s=10.0, peak_rad_s=(5.0, 5.0, 5.0), seed=0)
    for events in simulate_rotation(camera, motion, 10.0, scene="texture"):
        ...

Frames: the world is the camera's frame at time 0 (z forward, x right, y down). ω is the camera's
angular velocity in its own frame in rad/s, so scene points move by Ẋ = -ω x X.
The same arguments give the same events, bit for bit, at any number of threads.
"""

from event_binning_grad.simulate.motion import (
    ConstantMotion,
    Motion,
    SineMotion,
    TrackMotion,
    hand_motion,
    integrate_orientation,
)
from event_binning_grad.simulate.recording import (
    SimulationConfig,
    SimulationSummary,
    sample_ground_truth,
    write_simulation,
)
from event_binning_grad.simulate.scene import SCENES, Scene, make_scene
from event_binning_grad.simulate.sensor import simulate_rotation

__all__ = [
    "SCENES",
    "ConstantMotion",
    "Motion",
    "Scene",
    "SimulationConfig",
    "SimulationSummary",
    "SineMotion",
    "TrackMotion",
    "hand_motion",
    "integrate_orientation",
    "make_scene",
    "sample_ground_truth",
    "simulate_rotation",
    "write_simulation",
]
