"""Gradients, kernels and solvers on the same windows of a recording."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from event_binning_grad.config import PipelineConfig
from event_binning_grad.errors import ConfigError, RecordingError
from event_binning_grad.estimation import EgomotionEstimator, MotionModel
from event_binning_grad.estimation.contrast import (
    Contrast,
    ContrastConfig,
    ContrastPass,
    TorchContrast,
    WindowEvents,
)
from event_binning_grad.estimation.contrast_cpu import CpuContrast, is_fused
from event_binning_grad.estimation.depths import Depth, InverseDepths
from event_binning_grad.estimation.egomotion import EgomotionConfig
from event_binning_grad.estimation.iwe_grid import IweGrid, iwe_grid
from event_binning_grad.estimation.look_up import look_up, normalised_table
from event_binning_grad.estimation.motion import ALPHA, OMEGA, PARAMETERS, SLOPE, V
from event_binning_grad.estimation.problem import pixels_per_unit, typical_inverse_depth
from event_binning_grad.evaluation.baselines import METHODS, maximise
from event_binning_grad.evaluation.evaluate import recorded_camera
from event_binning_grad.evaluation.metrics import angular_velocity_error, linear_velocity_error
from event_binning_grad.evaluation.sensor_feed import depth_source
from event_binning_grad.evaluation.tables import column
from event_binning_grad.events.clock import StreamClock
from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.recordings import Recording, open_recording
from event_binning_grad.events.types import NS_PER_S, Events, stamp_to_ns
from event_binning_grad.events.windows import WindowBuffer
from event_binning_grad.geometry import Camera

Float64 = npt.NDArray[np.float64]

NEWTON = "newton"
PAIRS = ("rect+linear", "linear+linear")


@dataclass(frozen=True)
class ComparisonRow:
    """What one gradient, pair of kernels and solver made of the windows.

    RMS against the truth are over all windows that got an answer, trusted or not. The contrast
    gain is that of bilinear images without motion and with the answer, whatever was maximised.
    """

    gradient: str = column("gradient")
    kernels: str = column("kernels")
    solver: str = column("solver")
    windows: int = column("windows", "d")
    rms_deg_s: float | None = column("deg/s", ".2f")
    linear_velocity_rms_m_s: float | None = column("m/s", ".3f")
    contrast_gain: float = column("contrast gain", ".3f")
    evaluations_mean: float = column("evaluations", ".1f")
    window_ms_p50: float = column("ms a window", ".1f")


@dataclass(frozen=True, eq=False)
class Window:
    """A window that is solved by everyone: its events, on the robot's clock, and their depth."""

    events: Events
    stamp_ns: int
    depth: Depth | None


@dataclass(frozen=True, eq=False)
class Answer:
    """A window's motion parameters [11] (see estimation.motion), evaluations and time."""

    motion: Float64
    evaluations: int
    seconds: float


def compare(
    path: str | Path,
    config: PipelineConfig,
    camera: Camera | None = None,
    *,
    pairs: Sequence[str] = PAIRS,
    solvers: Sequence[str] = (NEWTON, *METHODS),
    windows: int = 10,
    depth_topic: str | None = None,
    topic: str | None = None,
    progress: Callable[[], None] | None = None,
) -> list[ComparisonRow]:
    """Solves windows one after the other, each started where the last one points.

    The first window, solved from rest by the configuration itself, is where all others start and
    does not count.

    Args:
        path: any recording that `open_recording` knows.
        config: motion model, window_events, objective and depth are taken from it.
        camera: the calibration; None takes the one that the recording holds.
        pairs: binning+reconstruction, by their names; the raw gradient has no reconstruction.
        solvers: NEWTON (the estimator's own) and METHODS of scipy on value and gradient.
        windows: how many windows are compared.
        depth_topic, topic: of depth images, and of the events, where a bag holds several.
        progress: called after every row.

    Raises:
        RecordingError: the recording cannot be read, or is too short for two windows.
        ConfigError: a kernel or solver that is not known, windows below 1.
    """
    if windows < 1:
        raise ConfigError(f"windows is {windows}, expected at least 1")
    cases = _cases(pairs, config)
    for solver in solvers:
        if solver not in (NEWTON, *METHODS):
            raise ConfigError(f"solver {solver!r}: expected one of {', '.join((NEWTON, *METHODS))}")
    recording = open_recording(path, topic)
    camera = camera or recorded_camera(recording)
    truth = recording.ground_truth()
    chosen = read_windows(recording, config, camera, windows + 1, truth, depth_topic)
    first = _by_newton(config.egomotion(), camera, chosen[:1])[0].motion
    judge = _Judge(camera, config.egomotion().model)
    rows = []
    for gradient, kernels, contrast in cases:
        estimator = replace(config.egomotion(), contrast=contrast, max_events=config.window_events)
        for solver in solvers:
            if solver == NEWTON:
                answers = _by_newton(estimator, camera, chosen)[1:]
            else:
                answers = _by_scipy(solver, estimator, camera, chosen, first)
            names = (gradient, kernels, solver)
            rows.append(_row(names, answers, chosen[1:], truth, judge, estimator.model))
            if progress is not None:
                progress()
    return rows


def rows_of(pairs: Sequence[str], solvers: Sequence[str] = (NEWTON, *METHODS)) -> int:
    """How many rows `compare` makes."""
    binnings = {pair.partition("+")[0] for pair in pairs}
    return (len(pairs) + len(binnings)) * len(solvers)


def read_windows(
    recording: Recording,
    config: PipelineConfig,
    camera: Camera,
    count: int,
    truth: GroundTruth | None,
    depth_topic: str | None = None,
) -> list[Window]:
    """The first windows of a recording, up to `count`, of config.window_events events each.

    Raises:
        RecordingError: it holds less than two.
    """
    buffer, decoder = WindowBuffer(window_events=config.window_events), PacketDecoder()
    clock: StreamClock | None = None
    found: list[Events] = []
    for packet in recording.packets():
        if isinstance(packet, Events):
            events = packet
        else:
            decoded = decoder.decode(packet)
            if decoded.discontinuity is not None and found:
                break  # what comes next does not follow
            clock, events = clock or StreamClock.for_encoding(packet.encoding), decoded.events
            if len(events):
                arrival_ns = stamp_to_ns(packet.header.stamp)
                clock.update(int(events.t[0]), arrival_ns, provisional=not decoded.from_start)
        found += [window.events.copy() for window in buffer.push(events)]
        if len(found) >= count:
            break
    if len(found) < 2:
        raise RecordingError(
            f"{recording.path}: {len(found)} windows of {config.window_events} events, expected "
            "at least two: choose fewer events a window"
        )
    found = found[:count]
    offset_ns = 0 if clock is None else clock.to_robot(int(found[0].t[0])) - int(found[0].t[0])
    shifted = [replace(events, t=events.t + offset_ns) for events in found]
    depth = depth_source(recording, config, camera, int(shifted[0].t[0]), truth, depth_topic)
    stamps = [e.mean_time_ns for e in shifted]
    return [
        Window(events, stamp_ns, depth(stamp_ns))
        for events, stamp_ns in zip(shifted, stamps, strict=True)
    ]


def _cases(pairs: Sequence[str], config: PipelineConfig) -> list[tuple[str, str, ContrastConfig]]:
    """Gradient, kernels and what they mean, the raw gradient once for every binning kernel."""
    from event_binning_grad.binning.kernels import kernel

    cases, raw = [], {}
    for pair in pairs:
        binning, _, reconstruction = pair.partition("+")
        if not reconstruction:
            raise ConfigError(f"kernels {pair!r}: expected binning+reconstruction, as rect+linear")
        for name in (binning, reconstruction):
            kernel(name)  # refuses what it does not know
        cases.append(("unbiased", pair, ContrastConfig(config.objective, binning, reconstruction)))
        raw[binning] = ("raw", binning, ContrastConfig(config.objective, binning, None))
    return [*cases, *raw.values()]


def _by_newton(config: EgomotionConfig, camera: Camera, windows: Sequence[Window]) -> list[Answer]:
    """The estimator itself, window by window."""
    estimator = EgomotionEstimator(camera, config)
    answers = []
    for window in windows:
        e = estimator.estimate(window.events, window.depth)
        motion = np.zeros(PARAMETERS)
        motion[OMEGA], motion[ALPHA] = e.angular_velocity, e.angular_acceleration
        if config.model is MotionModel.PLANAR:
            motion[V] = e.velocity_over_distance
            motion[SLOPE] = e.plane_normal[:2] / e.plane_normal[2]
        elif config.model.translates:
            motion[V] = e.linear_velocity
        answers.append(Answer(motion, e.iterations, e.solve_time_s))
    return answers


def _by_scipy(
    method: str,
    config: EgomotionConfig,
    camera: Camera,
    windows: Sequence[Window],
    first: Float64,
) -> list[Answer]:
    """A method of scipy on all windows but the first, at bins of a pixel."""
    grid = iwe_grid(camera)
    contrast = _contrast(grid, config.contrast)
    active = config.model.active(config.angular_acceleration)
    motion, answers = np.nan_to_num(first), []
    for before, window in pairwise(windows):
        began = time.perf_counter()
        start = motion.copy()
        start[OMEGA] += motion[ALPHA] * ((window.stamp_ns - before.stamp_ns) / NS_PER_S)
        events = as_contrast_needs_it(window, camera, start)
        contrast.load(events, active)
        objective = _Objective(contrast, active, start)
        found, evaluations = maximise(
            objective.value_and_gradient,
            objective.hessian,
            start[active],
            pixels_per_unit(events, grid, typical_inverse_depth(events, config.model), start)[
                active
            ],
            method,
        )
        motion = objective.motion(found)
        answers.append(Answer(motion, evaluations, time.perf_counter() - began))
    return answers


class _Objective:
    """The contrast as a function of the active parameters; the last pass is kept."""

    def __init__(self, contrast: Contrast, active: npt.NDArray[np.int64], start: Float64) -> None:
        self._contrast, self._active, self._start = contrast, active, start
        self._last: tuple[Float64, ContrastPass] | None = None

    def motion(self, values: Float64) -> Float64:
        """[11] with the active ones set."""
        motion = self._start.copy()
        motion[self._active] = values
        return motion

    def value_and_gradient(self, values: Float64) -> tuple[float, Float64]:
        one = self._at(values)
        return one.value, one.gradient

    def hessian(self, values: Float64) -> Float64:
        return self._at(values).hessian

    def _at(self, values: Float64) -> ContrastPass:
        if self._last is None or not np.array_equal(self._last[0], values):
            self._last = values.copy(), self._contrast.evaluate(self.motion(values), 1.0)
        return self._last[1]


def as_contrast_needs_it(window: Window, camera: Camera, motion: Float64) -> WindowEvents:
    """The window's rays, and their depths as seen by a camera of this motion [11]."""
    events = window.events
    columns = np.ones((4, len(events)), np.float32)
    counts = np.zeros((camera.height, camera.width), np.int32)
    table = normalised_table(camera)
    look_up(events.t, events.x, events.y, window.stamp_ns, table, counts, columns)
    span_s = float(events.t[-1] - events.t[0]) / NS_PER_S
    x, y, tau, inverse_depth = columns
    found = WindowEvents(x, y, tau, inverse_depth, span_s)
    if window.depth is not None:
        depths, pixels = InverseDepths(camera), (events.x, events.y)
        depths.fill(found.inverse_depth, window.depth, found, pixels, window.stamp_ns, motion)
    return found


class _Judge:
    """The contrast gain of answers, by bilinear images of pixel bins."""

    def __init__(self, camera: Camera, model: MotionModel) -> None:
        self._camera = camera
        self._active = model.active(True)
        self._contrast = _contrast(iwe_grid(camera), ContrastConfig())

    def gain(self, window: Window, motion: Float64) -> float:
        if not np.isfinite(motion).all():
            return np.nan
        self._contrast.load(as_contrast_needs_it(window, self._camera, motion), self._active)
        at_rest = float(self._contrast.iwe(np.zeros(PARAMETERS), 1.0).var())
        return float(self._contrast.iwe(motion, 1.0).var()) / max(at_rest, 1e-12)


def _contrast(grid: IweGrid, config: ContrastConfig) -> Contrast:
    if is_fused(config):
        return CpuContrast(grid, config)
    return TorchContrast(grid, config, "cpu")


def _row(
    names: tuple[str, str, str],
    answers: Sequence[Answer],
    windows: Sequence[Window],
    truth: GroundTruth | None,
    judge: _Judge,
    model: MotionModel,
) -> ComparisonRow:
    motions = np.array([answer.motion for answer in answers])
    stamps = [window.stamp_ns for window in windows]
    error = linear = None
    if truth is not None:
        error = angular_velocity_error(stamps, motions[:, OMEGA], truth)
        if model.needs_depth:  # else v has no scale, or is not estimated
            linear = linear_velocity_error(stamps, motions[:, V], truth)
    gains = [judge.gain(w, a.motion) for w, a in zip(windows, answers, strict=True)]
    return ComparisonRow(
        *names,
        len(answers),
        error and error.rms_deg_s,
        linear and linear.rms_m_s,
        float(np.nanmean(gains)) if np.isfinite(gains).any() else np.nan,
        float(np.mean([answer.evaluations for answer in answers])),
        float(np.median([1e3 * answer.seconds for answer in answers])),
    )
