"""The true flow that came with a recording, or that its true motion implies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import ConfigError, EventBinningError, RecordingError
from event_binning_grad.evaluation.flow_displacement import truths_over
from event_binning_grad.evaluation.metrics import translation
from event_binning_grad.events.bags import BagRecording
from event_binning_grad.events.flow_truth import FlowTruths
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.mvsec import MvsecRecording
from event_binning_grad.events.recordings import Recording
from event_binning_grad.events.types import NS_PER_MS
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.motion_field import motion_field, undistorted_bearings
from event_binning_grad.simulate import Simulation

Float32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

TRUE_FLOWS = ("recorded", "depth", "rotation", "none")

# Two true fields that lie further apart say nothing of the time between them.
_MAX_GAP_NS = 110 * NS_PER_MS
# A depth image further away than this is not that of the field's time.
_DEPTH_TOLERANCE_NS = 20 * NS_PER_MS
# How often the place is corrected from which a pixel's flow is fetched.
_FOLLOWS = 4


@dataclass(frozen=True, eq=False)
class TrueField:
    """True flow [H, W, 2] in px/s, NaN unknown; and where something moves by itself, if known."""

    flow: Float32
    moving: Mask | None = None


class TrueFlow(Protocol):
    """True flow at times that are asked for in the order of time."""

    @property
    def source(self) -> str: ...
    def at(self, stamp_ns: int) -> TrueField | None: ...


def open_true_flow(
    kind: str,
    recording: Recording,
    camera: Camera | None,
    raw_pixels: bool = False,
    frames: int | None = None,
) -> TrueFlow | FlowTruths | None:
    """The truth of a recording.

    Args:
        kind: "recorded": the images of true flow in a bag (on undistorted pixels), or the
            displacements of a data set, or None where there is neither; "depth": what a bag's
            depth images and true velocities imply in a scene at rest; "rotation": what the true
            rotation implies, which is right where the camera only turns, or all is far away;
            "none".
        recording: where it comes from.
        camera: its calibration.
        raw_pixels: the flow is on the sensor's own pixels.
        frames: the recorded displacements of MVSEC over so many grey frames each; None: over the
            times between its depth images, for which they are given.

    Raises:
        RecordingError: the recording lacks what the truth is made of.
        ConfigError: the kind is unknown, or frames are less than 1 or for another truth.
    """
    if frames is not None and (kind != "recorded" or frames < 1):
        raise ConfigError(f"{kind} flow over {frames} frames; expected recorded, and 1 or more")
    if kind not in TRUE_FLOWS:
        raise ConfigError(f"true flow {kind!r}: expected one of {', '.join(TRUE_FLOWS)}")
    if kind == "none":
        return None
    if kind == "recorded":
        found = _recorded(recording, camera, raw_pixels)
        return found if frames is None else _over_frames(recording, found, frames)
    if camera is None:
        raise RecordingError(
            f"{recording.path}: no calibration, without which a motion implies no flow; expected "
            "one in the recording, or --calib FILE"
        )
    truth = recording.ground_truth()
    if truth is None:
        raise RecordingError(f"{recording.path}: no true motion; expected one that implies flow")
    if kind == "rotation":
        return RotationTruth(camera, truth, raw_pixels)
    return DepthTruth(recording, camera, truth, raw_pixels)


def _recorded(
    recording: Recording, camera: Camera | None, raw_pixels: bool
) -> TrueFlow | FlowTruths | None:
    """None too where it is on other pixels than the flow, and cannot be brought there."""
    displacements = recording.flow_truth()
    if displacements is not None:
        fits = not displacements.undistorted if raw_pixels else camera is not None
        return displacements if fits else None
    if raw_pixels or not isinstance(recording, BagRecording):
        return None
    if next(recording.true_flow(), None) is None:
        return None
    source = f"{recording.path} true flow"
    return SampledTruth(recording.true_flow(), recording.moving_masks(), source)


def _over_frames(
    recording: Recording, truth: TrueFlow | FlowTruths | None, frames: int
) -> FlowTruths:
    times_ns = recording.frame_times_ns() if isinstance(recording, MvsecRecording) else None
    if times_ns is None or not isinstance(truth, FlowTruths):
        raise RecordingError(
            f"{recording.path}: no true displacements, or no grey frames over which to take them; "
            "expected a sequence of MVSEC with its flow"
        )
    windows_ns = np.stack([times_ns[:-frames:frames], times_ns[frames::frames]], axis=1)
    return truths_over(truth, windows_ns)


def truth_hint(recording: Recording, camera: Camera | None, raw_pixels: bool) -> str:
    """What else the flow could be compared with where open_true_flow found nothing recorded, in one
    line; empty if there is nothing."""
    if raw_pixels and camera is not None and _recorded(recording, camera, False) is not None:
        return "the recording's true flow is on undistorted pixels: without --flow-raw"
    try:
        motion = recording.ground_truth()
    except EventBinningError:  # nobody asked for it
        return ""
    if motion is None:
        return ""
    found = translation(motion, motion.t_ns.tolist())
    if camera is None:
        implied = f"{motion.source} implies a flow, with --calib FILE --flow-truth rotation"
        return "" if found else implied
    hint = f"{motion.source} implies the flow of a camera that only turns: --flow-truth rotation"
    if found:
        hint = f"by {motion.source} the camera {found}, which implies no flow without depth"
    if (
        isinstance(recording, BagRecording)
        and motion.linear_velocity is not None
        and next(recording.depth_images(), None) is not None
    ):
        hint += "; its depth images imply that of all that rests: --flow-truth depth"
    return hint


class SimulatedTruth:
    """The exact flow of a simulation whose time 0 is start_ns."""

    def __init__(self, simulation: Simulation, start_ns: int = 0, raw_pixels: bool = False) -> None:
        self._simulation, self._start_ns, self._raw = simulation, start_ns, raw_pixels
        self.source = "simulation"

    def at(self, stamp_ns: int) -> TrueField | None:
        t_s = (stamp_ns - self._start_ns) * 1e-9
        if not 0 <= t_s <= self._simulation.config.duration_s:
            return None
        flow = self._simulation.flow_image(t_s, raw_pixels=self._raw)
        return TrueField(flow, self._simulation.moving_mask(t_s, raw_pixels=self._raw))


class RotationTruth:
    """The flow of a scene infinitely far away, or of a camera that only turns."""

    def __init__(self, camera: Camera, truth: GroundTruth, raw_pixels: bool = False) -> None:
        self.motion, self._camera, self._raw = truth, camera, raw_pixels
        self.source = f"the rotation of {truth.source}"

    def at(self, stamp_ns: int) -> TrueField | None:
        omega = self.motion.at(stamp_ns)
        if not np.isfinite(omega).all():
            return None
        return TrueField(motion_field(self._camera, omega, raw_pixels=self._raw))


class DepthTruth:
    """The flow of a scene at rest, by depth images and the camera's true velocities.

    The depth is that of the nearest image, not moved to the time asked for: with images at R Hz an
    edge is up to its motion in half of 1/R away from where it should be.
    """

    def __init__(
        self, recording: Recording, camera: Camera, truth: GroundTruth, raw_pixels: bool = False
    ) -> None:
        self._camera, self._truth, self._raw = camera, truth, raw_pixels
        self.source = f"the depth images and velocities of {truth.source}"
        if not isinstance(recording, BagRecording) or truth.linear_velocity is None:
            raise RecordingError(
                f"{recording.path}: no depth images or no true linear velocity; expected a bag "
                "with both"
            )
        self._images = _Nearest(recording.depth_images())
        if self._images.empty:
            raise RecordingError(
                f"{recording.path}: no depth images; expected a topic of sensor_msgs/Image"
            )
        self._fetch = None if raw_pixels else _raw_pixels_of(camera)

    def at(self, stamp_ns: int) -> TrueField | None:
        omega, velocity = self._truth.at(stamp_ns), self._truth.linear_at(stamp_ns)
        depth = self._images.at(stamp_ns, _DEPTH_TOLERANCE_NS)
        if depth is None or velocity is None or not np.isfinite([omega, velocity]).all():
            return None
        if depth.shape != (self._camera.height, self._camera.width):
            return None
        if self._fetch is not None:
            columns, rows, seen = self._fetch
            depth = np.where(seen, depth[rows, columns], np.nan)
        return TrueField(motion_field(self._camera, omega, velocity, depth, raw_pixels=self._raw))


def _raw_pixels_of(camera: Camera) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Mask]:
    """Column and row of the sensor's pixel nearest to each undistorted one, and where there is."""
    place = camera.project(undistorted_bearings(camera))
    nearest = np.rint(np.nan_to_num(place, nan=-1.0)).clip(-1, 1 << 20).astype(np.intp)
    columns, rows = nearest.transpose(2, 0, 1)
    seen = (columns >= 0) & (columns < camera.width) & (rows >= 0) & (rows < camera.height)
    return np.where(seen, columns, 0), np.where(seen, rows, 0), seen


class _Nearest:
    """Of readings in the order of time, the one nearest to a time."""

    def __init__(self, readings: Iterator[tuple[int, Any]]) -> None:
        self._readings = readings
        self._last: tuple[int, Any] | None = None
        self._next = next(readings, None)
        self.empty = self._next is None

    def at(self, stamp_ns: int, tolerance_ns: int) -> Any:
        while self._next is not None and self._next[0] <= stamp_ns:
            self._last, self._next = self._next, next(self._readings, None)
        near = [reading for reading in (self._last, self._next) if reading is not None]
        if not near:
            return None
        at_ns, value = min(near, key=lambda reading: abs(reading[0] - stamp_ns))
        return value if abs(at_ns - stamp_ns) <= tolerance_ns else None


class _Sample(NamedTuple):
    stamp_ns: int
    flow: Float32
    moving: Mask | None


class SampledTruth:
    """True fields at some times, and between them.

    Between two fields a pixel's flow is that of the point which is there at that time: its flow in
    the one field, to where its own flow leads back from the pixel, and in the other, to where it
    leads on, joined linearly. Where the two do not belong together, since a point is hidden in one
    of the fields by something nearer, the flow is unknown.

    Args:
        fields: stamp_ns and flow [H, W, 2] in px/s, in the order of time.
        masks: stamp_ns and [H, W] where something moves by itself, of the same times.
    """

    def __init__(
        self,
        fields: Iterator[tuple[int, Float32]],
        masks: Iterator[tuple[int, Mask]] | None = None,
        source: str = "true flow",
    ) -> None:
        self.source = source
        self._fields, self._masks = fields, _Nearest(iter(()) if masks is None else masks)
        self._last: _Sample | None = None
        self._next = self._read()

    def at(self, stamp_ns: int) -> TrueField | None:
        while self._next is not None and self._next.stamp_ns <= stamp_ns:
            self._last, self._next = self._next, self._read()
        before, after = self._last, self._next
        if before is None:
            return None
        if stamp_ns == before.stamp_ns:
            return TrueField(before.flow, before.moving)
        if after is None or after.stamp_ns - before.stamp_ns > _MAX_GAP_NS:
            return None
        since_s, left_s = (stamp_ns - before.stamp_ns) * 1e-9, (after.stamp_ns - stamp_ns) * 1e-9
        flow = between(before.flow, after.flow, since_s, left_s)
        if before.moving is None or after.moving is None:
            return TrueField(flow)
        # What moves by itself does so in both fields, where it is on both.
        seen = [
            _fetch(before.moving.astype(np.float32), flow, -since_s),
            _fetch(after.moving.astype(np.float32), flow, left_s),
        ]
        moving = (seen[0] != 0) & (seen[1] != 0) & ~(np.isnan(seen[0]) & np.isnan(seen[1]))
        return TrueField(flow, moving)

    def _read(self) -> _Sample | None:
        found = next(self._fields, None)
        return None if found is None else _Sample(*found, self._masks.at(found[0], 0))


def between(before: Float32, after: Float32, since_s: float, left_s: float) -> Float32:
    """The flow [H, W, 2] px/s at a time since_s after one true field and left_s before the next.

    As SampledTruth says. A pixel's point may be that of either field's flow there; of both guesses
    the one counts whose flows in the two fields are most alike. They belong together if they differ
    by no more than half a pixel over the time between the fields, and three times what is usual.
    """
    share = np.float32(since_s / (since_s + left_s))
    best, least = np.full_like(before, np.nan), np.full(before.shape[:2], np.inf, np.float32)
    for guess in (before, after):
        back, on = guess, guess
        for _ in range(_FOLLOWS):
            back, on = _fetch(before, back, -since_s), _fetch(after, on, left_s)
        apart = np.hypot(*(back - on).transpose(2, 0, 1))
        nearer = apart < least  # false for NaN
        best[nearer] = (back + share * (on - back))[nearer]
        least[nearer] = apart[nearer]
    # A point that is off the image in one of the fields: the same pixel in both has to do.
    off, apart = np.isinf(least), np.hypot(*(before - after).transpose(2, 0, 1))
    best[off], least[off] = (before + share * (after - before))[off], apart[off]
    together = np.isfinite(least)
    if together.any():
        usual = float(np.median(least[together]))
        together &= least <= 3 * usual + 0.5 / (since_s + left_s)
    best[~together] = np.nan
    return best


def _fetch(field: npt.NDArray[Any], flow: Float32, ahead_s: float) -> npt.NDArray[Any]:
    """The field [H, W, ...] at the pixels nearest to where the flow leads in ahead_s; NaN off the
    image, and where the flow is unknown."""
    height, width = field.shape[:2]
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    moved = np.stack([columns, rows], axis=-1) + np.float32(ahead_s) * flow
    inside = ((moved >= -0.5) & (moved < [width - 0.5, height - 0.5])).all(axis=-1)
    nearest = np.rint(np.where(inside[..., None], moved, 0)).astype(np.intp)
    found = field[nearest[..., 1], nearest[..., 0]]
    found[~inside] = np.nan
    return found
