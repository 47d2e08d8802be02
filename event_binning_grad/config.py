"""The pipeline's parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

from event_binning_grad.errors import ConfigError
from event_binning_grad.estimation import EgomotionConfig, MotionModel
from event_binning_grad.estimation.aids import AidsConfig
from event_binning_grad.estimation.contrast import ContrastConfig
from event_binning_grad.estimation.flow_estimate import FlowConfig
from event_binning_grad.estimation.objectives import OBJECTIVES
from event_binning_grad.events.clock import CLOCKS
from event_binning_grad.events.load_control import LoadConfig
from event_binning_grad.geometry.depth import Plane

MAX_WINDOW_EVENTS = 10_000_000  # four windows are held at most: 520 MB
MAX_FLOW_STRIDE = 64
ESTIMATES = ("egomotion", "flow", "both")
GRADIENTS = ("unbiased", "raw")
DEPTHS = ("none", "constant", "plane", "image", "range")
IMU_USES = ("off", "start", "prior", "fixed")


@dataclass(frozen=True)
class PipelineConfig:
    """What the pipeline does; config/default.yaml says the same of the node's parameters.

    Attributes:
        estimate: what is estimated: "egomotion" (the camera's motion), "flow" (dense optical flow),
            or "both".
        motion_model: which motion is estimated: "rotation", "full" (rotation and translation, the
            depth known), "planar" (the same and a plane, depth not known) or "translation" (depth
            known, rotation known from the IMU, or none).
        angular_acceleration: estimate it too; else the angular velocity is constant in a window.
        window_events: events a window at most; 0 for no limit.
        window_ms: time that a window spans at most, ms; 0 for no limit.
        window_px: displacement of the events by the motion over a window, px, where it is largest;
            0 for no limit. A window ends at whichever limit comes first.
        adaptive_windows: make windows shorter while the motion changes faster than the model can
            follow, down to twice min_events, as window_px does.
        output_rate_hz: estimates a second, from windows that overlap, Hz; 0 for windows one after
            the other, each event in one of them.
        min_events: windows of fewer events are reported as too few, not estimated, and window_px
            does not make them smaller.
        max_events: of windows with more events so many are used, evenly spread.
        deadline_ms: a window's solution that takes longer is cut off and not trusted, ms; 0 for
            no limit.
        max_std_rad_s: estimates of a greater standard deviation about any axis are not trusted.
        max_std_m_s: the same of the linear velocity.
        objective: what is maximised over the image of warped events: "variance", "mean_square",
            "gradient_magnitude" or "likelihood" (negative binomial).
        binning: kernel that bins the events.
        reconstruction: kernel that makes the gradient of the binning unbiased.
        gradient: "unbiased", or "raw" for the binning's own slope, for comparison.
        depth: where the events' depth comes from: "none", "constant" (depth_m), "plane"
            (depth_plane), "image" or "range" (messages).
        depth_m: distance of the scene along the optical axis, m.
        depth_plane: nx, ny, nz, d of the plane n.P = d (m), camera frame at the start.
        imu: what the IMU's angular velocity is for: "off", "start" (where the solver starts),
            "prior", or "fixed" (the motion model "translation").
        flow_rate_hz: flow fields a second, from windows that overlap, Hz; 0 for windows one after
            the other.
        flow_window_ms: time that a window of the flow spans at most, ms.
        flow_window_px: how far the flow moves the events over its window at most, px, but for the
            fastest 5 % of them; 0 for no limit.
        flow_min_events: windows of fewer events give no flow, and flow_window_px does not make
            them smaller than twice this.
        flow_max_events: of windows with more events so many are used, evenly spread.
        flow_stride: the field has the flow of each so manieth pixel, across and down; 0 for the
            smallest with which a field is below 500 kB.
        flow_deadline_ms: a field that takes longer is cut off and not trusted, ms; 0 for no
            limit.
        clock: where the robot's time comes from: "auto", "sensor" (the events' times are the
            robot's) or "arrival" (learnt from the header stamps); docs/time.md.
        roi: x, y, width, height of the part of the sensor that is used, px; all 0 for all of it.
        hot_pixels: "off", "file" (leave out those of hot_pixels_file) or "learn" (those found, too,
            and write them to the file, if there is one).
        hot_pixels_file: .npz, .png or .yaml; docs/load.md.
        refractory_us: a pixel's events within so long after one that was used are left out, us; 0
            for none.
        background_us: events without one at the 8 pixels around within so long before them, us,
            are left out; 0 for none.
        keep_share: this share of the events is used, chosen by chance.
        max_events_per_s: of more events a second a part is used, chosen by chance; 0 for no limit.
        device: "cpu", or a torch device such as "cuda".

    Raises:
        ConfigError: a value that is not allowed.
    """

    estimate: str = "egomotion"
    motion_model: str = "rotation"
    angular_acceleration: bool = True
    window_events: int = 0
    window_ms: float = 70.0
    window_px: float = 30.0
    adaptive_windows: bool = True
    output_rate_hz: float = 100.0
    min_events: int = 1500
    max_events: int = 40_000
    deadline_ms: float = 0.0
    max_std_rad_s: float = 0.2
    max_std_m_s: float = 0.2
    objective: str = "variance"
    binning: str = "linear"
    reconstruction: str = "linear"
    gradient: str = "unbiased"
    depth: str = "none"
    depth_m: float = 0.0
    depth_plane: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    imu: str = "off"
    flow_rate_hz: float = 30.0
    flow_window_ms: float = 60.0
    flow_window_px: float = 8.0
    flow_min_events: int = 2000
    flow_max_events: int = 30_000
    flow_stride: int = 0
    flow_deadline_ms: float = 0.0
    clock: str = "auto"
    roi: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    hot_pixels: str = "off"
    hot_pixels_file: str = ""
    refractory_us: float = 0.0
    background_us: float = 0.0
    keep_share: float = 1.0
    max_events_per_s: float = 10e6
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.load()  # it checks its part
        self._check_windows()
        self._check_estimation()
        self._check_depth()
        self._check_flow()

    def _check_windows(self) -> None:
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
        if not (self.window_px == 0 or 1 <= self.window_px <= 1e4):
            raise ConfigError(f"window_px {self.window_px}: expected 1 to 10000, or 0 for no limit")
        if not (self.output_rate_hz == 0 or 0.1 <= self.output_rate_hz <= 1e4):
            raise ConfigError(
                f"output_rate_hz {self.output_rate_hz}: expected 0.1 to 10000, or 0 for windows "
                "one after the other"
            )
        if self.min_events < 10:
            raise ConfigError(f"min_events {self.min_events}: expected at least 10")
        if 0 < self.window_events < self.min_events:
            raise ConfigError(
                f"window_events {self.window_events} is below min_events {self.min_events}: "
                "no window could be estimated"
            )
        if self.max_events < self.min_events:
            raise ConfigError(
                f"max_events {self.max_events}: expected at least min_events {self.min_events}"
            )

    def _check_estimation(self) -> None:
        from event_binning_grad.binning.kernels import kernel

        for name in ("max_std_rad_s", "max_std_m_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} {getattr(self, name)}: expected a positive number")
        if not 0 <= self.deadline_ms < 1e6:
            raise ConfigError(f"deadline_ms {self.deadline_ms}: expected 0 (none) to 1e6")
        for name, allowed in (
            ("estimate", ESTIMATES),
            ("motion_model", [model.value for model in MotionModel]),
            ("objective", OBJECTIVES),
            ("gradient", GRADIENTS),
            ("depth", DEPTHS),
            ("imu", IMU_USES),
            ("clock", CLOCKS),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} {getattr(self, name)!r}: expected one of {', '.join(allowed)}"
                )
        for name in (self.binning, self.reconstruction):
            kernel(name)
        if not self.device == "cpu" and not self.device.startswith("cuda"):
            raise ConfigError(f"device {self.device!r}: expected 'cpu' or 'cuda'")

    def _check_depth(self) -> None:
        model = MotionModel(self.motion_model)
        if model.needs_depth and self.depth == "none":
            raise ConfigError(
                f"motion_model {self.motion_model!r} needs depth: expected one of constant, plane, "
                "image, range"
            )
        if model is MotionModel.PLANAR and self.depth not in ("none", "range"):
            raise ConfigError(
                f"motion_model 'planar' with depth {self.depth!r}: expected 'none', or 'range' "
                "for the scale; use 'full' where the depth is known"
            )
        if self.depth == "constant" and not 0 < self.depth_m < math.inf:
            raise ConfigError(f"depth_m {self.depth_m}: expected a distance in m, above 0")
        if self.depth == "plane":
            Plane.from_numbers(*self.depth_plane)
        if self.imu == "fixed" and model is not MotionModel.TRANSLATION:
            raise ConfigError(
                f"imu 'fixed' with motion_model {self.motion_model!r}: expected 'translation', or "
                "imu 'start' or 'prior'"
            )
        if model is MotionModel.TRANSLATION and self.imu not in ("off", "fixed"):
            raise ConfigError(
                f"imu {self.imu!r} with motion_model 'translation': expected 'fixed', or 'off' for "
                "a camera that does not turn"
            )

    def _check_flow(self) -> None:
        if not (self.flow_rate_hz == 0 or 0.1 <= self.flow_rate_hz <= 1e4):
            raise ConfigError(
                f"flow_rate_hz {self.flow_rate_hz}: expected 0.1 to 10000, or 0 for windows one "
                "after the other"
            )
        if not 1e-3 <= self.flow_window_ms < 1e6:
            raise ConfigError(f"flow_window_ms {self.flow_window_ms}: expected 0.001 to 1e6")
        if not (self.flow_window_px == 0 or 1 <= self.flow_window_px <= 1e4):
            raise ConfigError(
                f"flow_window_px {self.flow_window_px}: expected 1 to 10000, or 0 for no limit"
            )
        if self.flow_min_events < 10:
            raise ConfigError(f"flow_min_events {self.flow_min_events}: expected at least 10")
        if self.flow_max_events < self.flow_min_events:
            raise ConfigError(
                f"flow_max_events {self.flow_max_events}: expected at least flow_min_events "
                f"{self.flow_min_events}"
            )
        if not 0 <= self.flow_stride <= MAX_FLOW_STRIDE:
            raise ConfigError(
                f"flow_stride {self.flow_stride}: expected 1 to {MAX_FLOW_STRIDE}, or 0 for a "
                "field below 500 kB"
            )
        if not 0 <= self.flow_deadline_ms < 1e6:
            raise ConfigError(f"flow_deadline_ms {self.flow_deadline_ms}: expected 0 (none) to 1e6")

    @property
    def estimates_egomotion(self) -> bool:
        return self.estimate != "flow"

    @property
    def estimates_flow(self) -> bool:
        return self.estimate != "egomotion"

    @property
    def wanted_events(self) -> int:
        """What window_px does not make windows smaller than, and sparse streams wait for."""
        twice = 2 * self.min_events
        return min(twice, self.window_events) if self.window_events else twice

    def egomotion(self) -> EgomotionConfig:
        """The estimator's part."""
        return EgomotionConfig(
            model=MotionModel(self.motion_model),
            angular_acceleration=self.angular_acceleration,
            contrast=ContrastConfig(
                self.objective,
                self.binning,
                None if self.gradient == "raw" else self.reconstruction,
            ),
            device=self.device,
            min_events=self.min_events,
            max_events=self.max_events,
            max_std_rad_s=self.max_std_rad_s,
            max_std_m_s=self.max_std_m_s,
            deadline_s=self.deadline_ms / 1e3,
            gyro_prior=self.imu == "prior",
            gyro_needed=self.imu == "fixed",
        )

    def flow(self) -> FlowConfig:
        """The part of the flow's estimator."""
        return FlowConfig(
            device=self.device,
            gradient=self.gradient,
            min_events=self.flow_min_events,
            max_events=self.flow_max_events,
            deadline_s=self.flow_deadline_ms / 1e3,
        )

    def load(self) -> LoadConfig:
        """What is left out before the windows."""
        return LoadConfig(
            self.roi,
            self.hot_pixels,
            self.hot_pixels_file,
            self.refractory_us,
            self.background_us,
            self.keep_share,
            self.max_events_per_s,
        )

    def aids(self) -> AidsConfig:
        """What the other sensors are for."""
        # Between estimates the camera goes on; after a longer silence it is taken to stand still.
        carry_s = max(0.1, 2 / self.output_rate_hz if self.output_rate_hz else 0.0)
        return AidsConfig(
            self.depth, self.depth_m, self.depth_plane, self.imu != "off", round(carry_s * 1e9)
        )
