"""The one path from packets to estimates, used by the node, by replay and by evaluation.

    packet -> decode -> clock -> window -> warp, bin, solve -> estimate

Nothing flows back but the previous estimate, the warm start.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import ConfigError, PacketError
from event_binning_grad.estimation import EgomotionEstimate, RotationEstimator, Status
from event_binning_grad.estimation.contrast_cpu import PARALLEL_FROM
from event_binning_grad.events import decoder
from event_binning_grad.events.clock import StreamClock
from event_binning_grad.events.decoder import DecoderCounters, PacketDecoder
from event_binning_grad.events.types import Events, PacketLike, stamp_to_ns
from event_binning_grad.events.windows import WindowBuffer
from event_binning_grad.geometry import Camera

MAX_WINDOW_EVENTS = 10_000_000  # two windows are held: 260 MB
GRADIENTS = ("unbiased", "raw")


@dataclass(frozen=True)
class PipelineConfig:
    """What the pipeline does; config/default.yaml says the same of the node's parameters.

    Attributes:
        window_events: events a window at most; 0 for no limit.
        window_ms: time that a window spans at most, ms; 0 for no limit. A window ends at
            whichever limit comes first.
        min_events: windows of fewer events are reported as too few, not estimated.
        max_std_rad_s: estimates of a greater standard deviation about any axis are not trusted.
        gradient: "unbiased", or "raw" for the bilinear vote's own slope, for comparison.
        device: "cpu", or a torch device such as "cuda".

    Raises:
        ConfigError: a value that is not allowed.
    """

    window_events: int = 20_000
    window_ms: float = 100.0
    min_events: int = 1000
    max_std_rad_s: float = 0.2
    gradient: str = "unbiased"
    device: str = "cpu"

    def __post_init__(self) -> None:
        timed = 1e-3 <= self.window_ms < 1e6  # no event camera's clock is finer
        if self.window_events < 0 or not (timed or self.window_ms == 0):
            raise ConfigError(
                f"window_events {self.window_events}, window_ms {self.window_ms}: expected "
                "a positive number and 0.001 to 1e6 ms, or 0 for no limit"
            )
        if self.window_events == 0 and self.window_ms == 0:
            raise ConfigError("window_events and window_ms are both 0: a window needs a limit")
        if self.window_events > MAX_WINDOW_EVENTS:
            raise ConfigError(
                f"window_events {self.window_events}: expected at most {MAX_WINDOW_EVENTS}"
            )
        if self.min_events < 10:
            raise ConfigError(f"min_events {self.min_events}: expected at least 10")
        if not self.max_std_rad_s > 0:
            raise ConfigError(f"max_std_rad_s {self.max_std_rad_s}: expected a positive number")
        if 0 < self.window_events < self.min_events:
            raise ConfigError(
                f"window_events {self.window_events} is below min_events {self.min_events}: "
                "no window could be estimated"
            )
        if self.gradient not in GRADIENTS:
            raise ConfigError(f"gradient {self.gradient!r}: expected one of {', '.join(GRADIENTS)}")
        if not self.device == "cpu" and not self.device.startswith("cuda"):
            raise ConfigError(f"device {self.device!r}: expected 'cpu' or 'cuda'")


@dataclass
class PipelineCounters:
    """What became of the stream: every event is in exactly one of window_events,
    discarded_events, uncalibrated_events, or still in the buffer."""

    decoder: DecoderCounters = field(default_factory=DecoderCounters)
    events: int = 0
    """Events that reached the pipeline, decoded by it or handed to it."""
    first_event_ns: int | None = None
    last_event_ns: int | None = None
    """Times of the first and the last event, on the stream's own clock."""
    duration_ns: int = 0
    """What the events span; where the clock was set back, the sum of the spans."""
    hot_pixel_events: int = 0
    """Events of window_events that were left out, because their pixels fire all the time."""
    windows: int = 0
    window_events: int = 0
    discarded_events: int = 0
    """Events of windows left incomplete by a discontinuity of the stream, or by a calibration for
    another sensor size."""
    uncalibrated_events: int = 0
    """Events that came before a calibration, or did not fit it."""
    discontinuities: int = 0
    estimates: dict[Status, int] = field(default_factory=lambda: dict.fromkeys(Status, 0))


class Pipeline:
    """Takes packets (or events) of one camera, returns the estimates that they complete.

    Args:
        config: what to do.
        camera: the calibration; without it events are decoded and counted, not estimated.
    """

    def __init__(self, config: PipelineConfig | None = None, camera: Camera | None = None) -> None:
        self.config = config or PipelineConfig()
        self.counters = PipelineCounters()
        self.last_discontinuity: str | None = None
        self._decoder = PacketDecoder()
        self.counters.decoder = self._decoder.counters
        self._clock: StreamClock | None = None
        self._buffer = WindowBuffer(
            window_events=self.config.window_events or None,
            window_ns=round(self.config.window_ms * 1e6) or None,
        )
        self._camera: Camera | None = None
        self._estimator: RotationEstimator | None = None
        if camera is not None:
            self.set_camera(camera)

    @property
    def camera(self) -> Camera | None:
        return self._camera

    def set_camera(self, camera: Camera) -> None:
        """Takes a calibration, or another one; the track starts anew.

        Raises:
            CalibrationError: the camera does not look along its z axis.
        """
        self._estimator = RotationEstimator(
            camera,
            unbiased=self.config.gradient == "unbiased",
            device=self.config.device,
            min_events=self.config.min_events,
            max_std_rad_s=self.config.max_std_rad_s,
        )
        size = (camera.width, camera.height)
        if self._camera is not None and size != (self._camera.width, self._camera.height):
            # What is held came from the other sensor.
            self.counters.discarded_events += self._buffer.clear()
        self._camera = camera

    def push(self, packet: PacketLike | Events) -> list[EgomotionEstimate]:
        """Takes the next packet, or the next events; returns the estimates that are now complete.

        Raises:
            PacketError: the packet cannot be decoded, or does not fit the calibration. It is
                dropped and counted; the next one is taken as usual.
        """
        if isinstance(packet, Events):
            self._check_order(packet)
            return self._push_events(packet)
        decoded = self._decoder.decode(packet)
        if self._clock is None or decoded.clock_reset:
            self._clock = StreamClock.for_encoding(packet.encoding)
        if decoded.discontinuity is not None:
            self.break_stream(decoded.discontinuity)
        if len(decoded.events):
            self._clock.update(
                int(decoded.events.t[0]),
                stamp_to_ns(packet.header.stamp),
                provisional=not decoded.from_start,
            )
        return self._push_events(decoded.events)

    def flush(self) -> list[EgomotionEstimate]:
        """Estimates the last, incomplete window, at the end of a stream."""
        window = self._buffer.flush()
        return [] if window is None else [self._estimate(window)]

    def break_stream(self, reason: str) -> None:
        """Says that what comes next does not follow what came: the incomplete window is dropped."""
        self.last_discontinuity = reason
        self.counters.discontinuities += 1
        self.counters.discarded_events += self._buffer.clear()
        if self._estimator is not None:
            self._estimator.reset()

    def skip_packets(self, packets: int) -> None:
        """Says that the receiver dropped so many packets, unread, before the next one."""
        self._decoder.skip(packets)

    def compensated_image(self) -> npt.NDArray[np.float32] | None:
        """[height, width] motion-compensated image of the last window's events, or None."""
        return None if self._estimator is None else self._estimator.compensated_image()

    def uncompensated_image(self) -> npt.NDArray[np.float32] | None:
        """[height, width] image of the last window's events as they came, or None."""
        return None if self._estimator is None else self._estimator.uncompensated_image()

    def _push_events(self, events: Events) -> list[EgomotionEstimate]:
        self._count(events)
        camera = self._camera
        if camera is None:
            self.counters.uncalibrated_events += len(events)
            return []
        if (events.width, events.height) != (camera.width, camera.height):
            self.counters.uncalibrated_events += len(events)
            raise PacketError(
                f"events of a {events.width}x{events.height} sensor, but the calibration is for "
                f"{camera.width}x{camera.height}: use this camera's calibration"
            )
        return [self._estimate(window) for window in self._buffer.push(events)]

    def _check_order(self, events: Events) -> None:
        if np.any(np.diff(events.t) < 0):
            raise PacketError("events out of order; expected times that do not decrease: sort them")
        last = self.counters.last_event_ns
        if len(events) and last is not None and events.t[0] < last:
            step_s = (last - int(events.t[0])) * 1e-9
            self.break_stream(f"time went back by {step_s:.6f} s")

    def _count(self, events: Events) -> None:
        if not len(events):
            return
        self.counters.events += len(events)
        counters, start, end = self.counters, int(events.t[0]), int(events.t[-1])
        if counters.first_event_ns is None:
            counters.first_event_ns = start
        last = counters.last_event_ns
        counters.duration_ns += end - (last if last is not None and last <= start else start)
        counters.last_event_ns = end

    def _estimate(self, window: Events) -> EgomotionEstimate:
        assert self._estimator is not None  # windows are gathered only with a camera
        estimate = self._estimator.estimate(window)
        self.counters.windows += 1
        self.counters.window_events += len(window)
        self.counters.hot_pixel_events += estimate.hot_pixel_events
        self.counters.estimates[estimate.status] += 1
        if self._clock is None:
            return estimate
        to_robot = self._clock.to_robot
        return dataclasses.replace(
            estimate,
            stamp_ns=to_robot(estimate.stamp_ns),
            window_start_ns=to_robot(estimate.window_start_ns),
            window_end_ns=to_robot(estimate.window_end_ns),
        )


def warm_up(config: PipelineConfig, camera: Camera) -> None:
    """Compiles what the pipeline needs (seconds the first time, cached then).

    A live stream must not wait for the compiler, and a measurement must not count it.
    """
    decoder.warm_up()
    sizes = [1000]
    if config.window_events == 0 or config.window_events >= PARALLEL_FROM:
        sizes.append(PARALLEL_FROM)
    rng = np.random.default_rng(0)
    for size in sizes:
        events = Events(
            np.linspace(0, 1e7, size).astype(np.int64),
            rng.integers(0, camera.width, size, dtype=np.uint16),
            rng.integers(0, camera.height, size, dtype=np.uint16),
            np.ones(size, np.uint8),
            camera.width,
            camera.height,
        )
        one_window = dataclasses.replace(config, window_events=size, window_ms=0.0, min_events=10)
        Pipeline(one_window, camera).push(events)
