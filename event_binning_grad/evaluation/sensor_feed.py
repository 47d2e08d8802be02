"""What other sensors said during a recording, handed to the pipeline in time for the events."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from event_binning_grad.config import PipelineConfig
from event_binning_grad.errors import RecordingError
from event_binning_grad.estimation.depths import Depth
from event_binning_grad.events.bags import BagRecording
from event_binning_grad.events.ground_truth import MAX_GAP_NS, GroundTruth, PoseTrack
from event_binning_grad.events.recordings import Recording
from event_binning_grad.events.repacking import (
    PacketRepacker,
    Repacked,
    Stretch,
    StretchCut,
    nothing_there,
)
from event_binning_grad.events.text import TextRecording
from event_binning_grad.events.types import NS_PER_MS, NS_PER_S, EventPacket, Events, stamp_to_ns
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.depth import DepthImages, Plane, RangeTrack
from event_binning_grad.pipeline import Pipeline

# Readings are handed over so long before the events that follow them: a window's middle lies
# between two of them.
_AHEAD_NS = 100 * NS_PER_MS
# Text recordings come in blocks of a second and more; they are cut so that readings fit between.
_PART_NS = 10 * NS_PER_MS
# A plane that is moved by known poses is seen anew so often.
_PLANE_PERIOD_NS = 10 * NS_PER_MS


class SensorFeed:
    """Readings of several sensors, merged by time.

    Args:
        sources: by "depth", "range" or "imu": stamp_ns and what Pipeline.push_depth, push_range or
            push_imu takes, each in the order of time.
    """

    def __init__(self, sources: Mapping[str, Iterator[tuple[int, Any]]]) -> None:
        named = [_named(name, source) for name, source in sources.items()]
        self._readings = heapq.merge(*named, key=lambda reading: reading[0])
        self._next = next(self._readings, None)

    def push_until(self, pipeline: Pipeline, stamp_ns: int) -> None:
        """Hands over all readings up to a time, and a little ahead of it."""
        while self._next is not None and self._next[0] <= stamp_ns + _AHEAD_NS:
            at_ns, name, value = self._next
            getattr(pipeline, f"push_{name}")(at_ns, value)
            self._next = next(self._readings, None)


@dataclass(frozen=True)
class Feeding:
    """How a recording's other sensors are used.

    Attributes:
        config: the pipeline's, with a plane that is moved by known poses turned into depth images.
        feed: None where no other sensor is needed.
    """

    config: PipelineConfig
    feed: SensorFeed | None


def open_feed(
    recording: Recording,
    config: PipelineConfig,
    camera: Camera,
    start_ns: int,
    truth: GroundTruth | None,
    depth_topic: str | None = None,
) -> Feeding:
    """What a recording offers of what the configuration needs.

    Args:
        recording: where the readings come from.
        config: what is needed.
        camera: whose pixels depth is for.
        start_ns: when the events begin; a plane is given there.
        truth: the true motion; where there are no poses, it moves the plane.
        depth_topic: of the depth images, where a bag holds several.

    Raises:
        RecordingError: something is needed that the recording does not hold.
    """
    sources: dict[str, Iterator[tuple[int, Any]]] = {}
    if config.depth == "plane":
        poses = _poses(recording, truth)
        if poses is not None:
            plane = Plane.from_numbers(*config.depth_plane)
            plane_at = moving_plane(plane, poses, start_ns)
            sources["depth"] = plane_images(plane_at, camera, start_ns)
            config = replace(config, depth="image")
    elif config.depth in ("image", "range"):
        name = "depth" if config.depth == "image" else "range"
        sources[name] = _of_a_bag(recording, config.depth, depth_topic)
    if config.imu != "off":
        sources["imu"] = _gyro(recording)
    return Feeding(config, SensorFeed(sources) if sources else None)


def parts(packet: EventPacket | Events) -> Iterator[tuple[int, EventPacket | Events]]:
    """A packet, or a block of events cut into pieces of 10 ms; each with its first time."""
    if isinstance(packet, EventPacket):
        yield stamp_to_ns(packet.header.stamp), packet
    elif len(packet):
        first_ns = int(packet.t[0])
        borders = np.arange(first_ns + _PART_NS, int(packet.t[-1]) + 1, _PART_NS)
        stops = [0, *np.searchsorted(packet.t, borders).tolist(), len(packet)]
        for start, stop in pairwise(stops):
            if start < stop:
                yield int(packet.t[start]), packet[start:stop]


def packets_of(
    recording: Recording, stretch: Stretch, rejections: Counter[str]
) -> Iterator[EventPacket | Events]:
    """The recording's packets, or what a stretch of it holds, as `convert` would write it.

    rejections: messages of packets of a stretch that cannot be decoded, counted.

    Raises:
        RecordingError: a stretch without events.
    """
    if stretch.is_whole:
        yield from recording.packets()
        return
    counts, cut, events = Repacked(), StretchCut(stretch), 0
    repacker = PacketRepacker(stretch, counts)
    for packet in recording.packets():
        if isinstance(packet, Events):
            packets = [packet[cut.slice_of(packet)]]
            events += len(packets[0])
        else:
            packets = [made for _, made in repacker.take(packet)]
        yield from packets
        if cut.ended or repacker.ended:
            break
    rejections.update(counts.rejected)
    if not events + counts.events:
        raise nothing_there(recording.path, stretch)


def depth_source(
    recording: Recording,
    config: PipelineConfig,
    camera: Camera,
    start_ns: int,
    truth: GroundTruth | None,
    depth_topic: str | None = None,
) -> Callable[[int], Depth | None]:
    """The depth of the scene at a time in ns, asked for in the order of time; arguments and errors
    as in `open_feed`."""
    if config.depth == "constant":
        return lambda stamp_ns: config.depth_m
    if config.depth == "plane":
        plane = Plane.from_numbers(*config.depth_plane)
        poses = _poses(recording, truth)
        if poses is None:
            return lambda stamp_ns: plane
        return moving_plane(plane, poses, start_ns)
    if config.depth == "none":
        return lambda stamp_ns: None
    track: DepthImages | RangeTrack = RangeTrack()
    if config.depth == "image":
        track = DepthImages(camera.width, camera.height)
    readings = _of_a_bag(recording, config.depth, depth_topic)
    return partial(_look_ahead, track, readings)


def _look_ahead(
    track: DepthImages | RangeTrack, readings: Iterator[tuple[int, Any]], stamp_ns: int
) -> Depth | None:
    for at_ns, value in readings:
        track.push(at_ns, value)
        if at_ns >= stamp_ns:
            break
    if isinstance(track, DepthImages):
        return track.nearest(stamp_ns, _AHEAD_NS)
    return track.at(stamp_ns, _AHEAD_NS)


def moving_plane(plane: Plane, poses: PoseTrack, start_ns: int) -> Callable[[int], Plane | None]:
    """A plane known at the start, in the camera's frame at another time.

    None outside the poses; up to 100 ms before and after them the nearest one holds.

    Raises:
        RecordingError: the poses do not cover the start.
    """
    first_ns, last_ns = int(poses.t_ns[0]), int(poses.t_ns[-1])

    def covered(stamp_ns: int) -> int | None:
        nearest_ns = min(max(stamp_ns, first_ns), last_ns)
        return nearest_ns if abs(nearest_ns - stamp_ns) <= MAX_GAP_NS else None

    from_ns = covered(start_ns)
    if from_ns is None:
        raise RecordingError(
            f"the poses cover {first_ns / NS_PER_S:.3f} to {last_ns / NS_PER_S:.3f} s, but the "
            f"events begin at {start_ns / NS_PER_S:.3f} s: expected poses from there on, to move "
            "the plane"
        )

    def at(stamp_ns: int) -> Plane | None:
        to_ns = covered(stamp_ns)
        return None if to_ns is None else plane.moved(*poses.relative(from_ns, to_ns))

    return at


def plane_images(
    plane_at: Callable[[int], Plane | None], camera: Camera, start_ns: int
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Depth images at 100 Hz of a plane, as long as it is known."""
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (camera.bearings[..., axis] / camera.bearings[..., 2] for axis in (0, 1))
    for stamp_ns in count(start_ns, _PLANE_PERIOD_NS):
        plane = plane_at(stamp_ns)
        if plane is None:
            return
        yield stamp_ns, (1 / plane.inverse_depth(x, y)).astype(np.float32)


def integrated_poses(truth: GroundTruth) -> PoseTrack | None:
    """The poses to which true velocities lead; None where the linear velocity is not known."""
    from event_binning_grad.simulate import TrackMotion, Trajectory

    v = truth.linear_at(truth.t_ns)
    if v is None or not np.isfinite(v).all():
        return None
    seconds = (truth.t_ns - truth.t_ns[0]) / NS_PER_S
    motion = TrackMotion(seconds, truth.angular_velocity, v)
    return PoseTrack(truth.t_ns, *Trajectory(motion, float(seconds[-1])).poses(seconds))


def _poses(recording: Recording, truth: GroundTruth | None) -> PoseTrack | None:
    poses = recording.poses() if isinstance(recording, TextRecording) else None
    if poses is None and truth is not None:
        poses = integrated_poses(truth)
    return poses


def _of_a_bag(recording: Recording, kind: str, topic: str | None) -> Iterator[tuple[int, Any]]:
    if isinstance(recording, BagRecording):
        readings = (
            recording.depth_images(topic or "depth") if kind == "image" else recording.ranges()
        )
        first = next(readings, None)
        if first is not None:
            return _chain(first, readings)
    expected = "sensor_msgs/Image (16UC1 or 32FC1)" if kind == "image" else "sensor_msgs/Range"
    raise RecordingError(
        f"{recording.path}: no depth found{f' on {topic}' if topic else ''}, expected a topic of "
        f"{expected}"
    )


def _gyro(recording: Recording) -> Iterator[tuple[int, Any]]:
    if isinstance(recording, BagRecording):
        readings = recording.imu()
        first = next(readings, None)
        if first is not None:
            return _chain(first, readings)
    elif isinstance(recording, TextRecording) and (gyro := recording.gyro()) is not None:
        return zip(gyro.t_ns.tolist(), gyro.angular_velocity, strict=True)
    raise RecordingError(
        f"{recording.path}: no gyroscope found, expected a topic of sensor_msgs/Imu, or imu.txt"
    )


def _named(name: str, source: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, str, Any]]:
    for stamp_ns, value in source:
        yield stamp_ns, name, value


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
