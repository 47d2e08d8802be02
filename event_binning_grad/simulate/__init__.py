"""Events of a moving event camera, with exact ground truth.

A scene is infinitely far away (the logarithm of the intensity over all directions, painted once
into a cube map), or it has depth (textured planes). The camera moves before it; every pixel follows
the log intensity that it sees over steps of at most half a pixel and fires an event at each
crossing of its contrast threshold, as the pixels of a real sensor do. The velocities are analytic
functions of time, so the truth is exact: ω, v, and the depth of every pixel at any time.

    simulation = Simulation(SimulationConfig(scene="plane", peak_rad_s=(2.0, 2.0, 2.0),
                                             peak_m_s=(0.5, 0.5, 0.5), frequency_hz=(0.5, 1.5)))
    for events in simulation.events():
        ...
    depth_m, (normal, distance_m) = simulation.depth_image(1.5), simulation.plane(1.5)

or, of a motion and a scene of one's own,

    for events in simulate_camera(camera, motion, 10.0, scene=scene):
        ...

Frames: the world is the camera's frame at time 0 (z forward, x right, y down). ω and v are the
camera's angular and linear velocity in its own frame in rad/s and m/s, so scene points move by
Ẋ = -ω x X - v. The same arguments give the same events, bit for bit, at any number of threads.
"""

from event_binning_grad.simulate.layers import DEPTH_SCENES, Layer, LayeredScene, make_layers
from event_binning_grad.simulate.motion import (
    ConstantMotion,
    Motion,
    PoseTrackMotion,
    SineMotion,
    Sines,
    SwingMotion,
    TrackMotion,
    Trajectory,
    hand_motion,
    integrate_orientation,
)
from event_binning_grad.simulate.recording import (
    Simulation,
    SimulationConfig,
    SimulationSummary,
    sample_ground_truth,
    write_simulation,
)
from event_binning_grad.simulate.scene import SCENES, Scene, make_scene
from event_binning_grad.simulate.sensor import paint_scene, simulate_camera, simulate_rotation

__all__ = [
    "DEPTH_SCENES",
    "SCENES",
    "ConstantMotion",
    "Layer",
    "LayeredScene",
    "Motion",
    "PoseTrackMotion",
    "Scene",
    "Simulation",
    "SimulationConfig",
    "SimulationSummary",
    "SineMotion",
    "Sines",
    "SwingMotion",
    "TrackMotion",
    "Trajectory",
    "hand_motion",
    "integrate_orientation",
    "make_layers",
    "make_scene",
    "paint_scene",
    "sample_ground_truth",
    "simulate_camera",
    "simulate_rotation",
    "write_simulation",
]
