"""Methods of angular velocity, asked about the same packets of events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from event_binning_grad.config import PipelineConfig
from event_binning_grad.evaluation.baselines import maximise_contrast
from event_binning_grad.evaluation.scenarios import Packet
from event_binning_grad.pipeline import Pipeline

Float64 = npt.NDArray[np.float64]

WINDOW_EVENTS = 20_000
_IMU_PERIOD_NS = 5_000_000


@dataclass(frozen=True, eq=False)
class Answers:
    """What a method made of packets: one row each.

    Attributes:
        error: [M, 3] rad/s, estimate minus truth; NaN where there was no estimate.
        covariance: [M, 3, 3], NaN where unknown.
        trusted: [M].
        evaluations: [M] passes over the events.
        window_ms: [M].
    """

    error: Float64
    covariance: Float64
    trusted: npt.NDArray[np.bool_]
    evaluations: Float64
    window_ms: Float64

    @property
    def rms_deg_s(self) -> float:
        """Over all packets that got an estimate, trusted or not; NaN without any."""
        known = self.error[np.isfinite(self.error).all(axis=1)]
        return float(np.degrees(np.sqrt((known**2).mean()))) if len(known) else float("nan")


Method = Callable[[Packet], tuple[Float64, Float64, bool, int, float]]
"""A packet's angular velocity [3], its covariance [3, 3], trusted?, evaluations, seconds."""


def ask(method: Method, packets: Sequence[Packet]) -> Answers:
    """A method's answers to packets."""
    rows = [method(packet) for packet in packets]
    truth = np.array([packet.angular_velocity for packet in packets]).reshape(-1, 3)
    omega, covariance, trusted, evaluations, seconds = zip(*rows, strict=True)
    return Answers(
        np.array(omega) - truth,
        np.array(covariance),
        np.array(trusted, bool),
        np.array(evaluations, float),
        1e3 * np.array(seconds),
    )


def by_pipeline(config: PipelineConfig) -> Method:
    """The pipeline on each packet as one window of its own.

    Where a packet has a start, it is what an inertial sensor would have said.
    """

    def estimate(packet: Packet) -> tuple[Float64, Float64, bool, int, float]:
        started = packet.start is not None
        single = replace(one_window(config, len(packet.events)), imu="start" if started else "off")
        pipeline = Pipeline(single, packet.camera)
        first_ns, last_ns = int(packet.events.t[0]), int(packet.events.t[-1])
        if packet.start is not None:
            for stamp_ns in range(
                first_ns - _IMU_PERIOD_NS, last_ns + _IMU_PERIOD_NS, _IMU_PERIOD_NS
            ):
                pipeline.push_imu(stamp_ns, packet.start)
        e = [*pipeline.push(packet.events), *pipeline.flush()][0]
        return e.angular_velocity, e.covariance, e.status.ok, e.iterations, e.solve_time_s

    return estimate


def by_lbfgs(packet: Packet) -> tuple[Float64, Float64, bool, int, float]:
    """Bilinear vote, raw gradient, L-BFGS, constant angular velocity."""
    start = np.zeros(3) if packet.start is None else packet.start
    found = maximise_contrast(packet.camera, packet.events, start)
    nothing = np.full((3, 3), np.nan)
    return found.angular_velocity, nothing, True, found.evaluations, found.seconds


def one_window(config: PipelineConfig, events: int) -> PipelineConfig:
    """The same estimation of disjoint windows of so many events, whatever they show."""
    few = max(10, events)  # what a configuration allows
    return replace(
        config,
        window_events=few,
        window_ms=0.0,
        window_px=0.0,
        adaptive_windows=False,
        output_rate_hz=0.0,
        min_events=min(config.min_events, few),
        max_events=max(config.max_events, few),
    )


def constant_raw(config: PipelineConfig) -> PipelineConfig:
    """Windows of 20,000 events, the raw gradient, constant angular velocity."""
    return replace(one_window(config, WINDOW_EVENTS), gradient="raw", angular_acceleration=False)
