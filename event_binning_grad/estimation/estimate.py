"""What is estimated: the estimator's configuration, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from event_binning_grad.estimation.contrast import ContrastConfig, Float64
from event_binning_grad.estimation.motion import MotionModel
from event_binning_grad.estimation.trust import Status


@dataclass(frozen=True)
class EgomotionConfig:
    """What the estimator does.

    Attributes:
        model: which motion is estimated.
        angular_acceleration: estimate it too; else the angular velocity is constant in a window.
        contrast: what is maximised.
        device: "cpu", or a torch device such as "cuda".
        fused: the fused pass where there is one; False takes the torch operator there too.
        min_events: windows with fewer events are not estimated.
        max_events: of a window with more, so many are used, evenly spread.
        max_std_rad_s, max_std_m_s: estimates with a greater standard deviation about or along any
            axis are flagged.
        deadline_s: passes that begin later than this after the start are not begun; 0 for none.
        gyro_prior: take the gyroscope's rotation for a prior, not only for a start.
        gyro_needed: estimate nothing without it.
    """

    model: MotionModel = MotionModel.ROTATION
    angular_acceleration: bool = True
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    device: str = "cpu"
    fused: bool = True
    min_events: int = 1000
    max_events: int = 40_000
    max_std_rad_s: float = 0.2
    max_std_m_s: float = 0.2
    deadline_s: float = 0.0
    gyro_prior: bool = False
    gyro_needed: bool = False


@dataclass(frozen=True)
class EgomotionEstimate:
    """The camera's motion over one window of events.

    Attributes:
        stamp_ns: reference time, the mean time of the window's events; the values hold there, where
            velocity and acceleration are least correlated.
        window_start_ns, window_end_ns: times of the first and the last event.
        events: number of events in the window.
        angular_velocity: [3] rad/s, camera frame (z forward, x right, y down). NaN when there was
            nothing to estimate from.
        angular_acceleration: [3] rad/s^2, camera frame.
        covariance: [3, 3] of angular_velocity, rad^2/s^2; positive definite.
        iterations: passes that the solver took, those with coarse bins among them.
        contrast_gain: variance of the compensated image over that of the uncompensated one.
        status: why not to trust the estimate, or Status.OK.
        solve_time_s: time that the estimation took.
        hot_pixel_events: events of the window that were left out, because their pixels fire all
            the time.
        used_events: events that were looked at, after subsampling.
        full_passes: the work of all passes in passes over all events.
        linear_velocity: [3] m/s, camera frame; NaN when not estimated, or without scale.
        linear_covariance: [3, 3] of it, m^2/s^2.
        cross_covariance: [3, 3] of linear_velocity (rows) and angular_velocity (columns).
        velocity_over_distance: [3] 1/s, linear velocity over the plane's distance along the
            optical axis; NaN but for the planar model.
        plane_normal: [3] unit normal of the plane, camera frame, away from the camera; NaN but for
            the planar model, and where the camera translates too little to tell it.
        speed_px_s: how fast the motion moves the events that it moves fastest, px/s.
        disagreement: how differently the parts of the window pull; 0.5 where the motion model fits,
            more than 1 where the motion changed faster.
        searched: the track was lost, or not there yet, and several starts were tried.
        depthless_events: events of the window that were left out, because their depth, which the
            model needs, is not known.
    """

    stamp_ns: int
    window_start_ns: int
    window_end_ns: int
    events: int
    angular_velocity: Float64
    angular_acceleration: Float64
    covariance: Float64
    iterations: int
    contrast_gain: float
    status: Status
    solve_time_s: float
    hot_pixel_events: int = 0
    used_events: int = 0
    full_passes: float = 0.0
    linear_velocity: Float64 = field(default_factory=lambda: np.full(3, np.nan))
    linear_covariance: Float64 = field(default_factory=lambda: np.full((3, 3), np.nan))
    cross_covariance: Float64 = field(default_factory=lambda: np.full((3, 3), np.nan))
    velocity_over_distance: Float64 = field(default_factory=lambda: np.full(3, np.nan))
    plane_normal: Float64 = field(default_factory=lambda: np.full(3, np.nan))
    speed_px_s: float = np.nan
    disagreement: float = np.nan
    searched: bool = False
    depthless_events: int = 0

    @property
    def used_share(self) -> float:
        """The share of the window's events that were looked at."""
        return self.used_events / self.events if self.events else 0.0
