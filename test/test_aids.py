"""What other sensors and the last motion tell the estimator: depths of events, spans, readings."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.estimation import EgomotionEstimate, Status
from event_binning_grad.estimation.aids import TOLERANCE_NS, Aids, AidsConfig
from event_binning_grad.estimation.contrast import WindowEvents
from event_binning_grad.estimation.depths import Depth, InverseDepths, nearest_surfaces
from event_binning_grad.estimation.motion import ALPHA, OMEGA, PARAMETERS, V
from event_binning_grad.estimation.span import SpanControl
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.depth import DepthImage, Plane, rigid_step

Float64 = np.ndarray
MS = 1_000_000
REFERENCE_NS = 5_000_000_000

# --- Depths of events ---------------------------------------------------------------------------

MOTIONS: dict[str, tuple[Any, Any, Any]] = {  # rad/s, rad/s^2, m/s
    "at rest": ((0, 0, 0), (0, 0, 0), (0, 0, 0)),
    "turning": ((2.0, -1.5, 3.0), (0, 0, 0), (0, 0, 0)),
    "moving": ((0, 0, 0), (0, 0, 0), (0.8, -0.6, 1.0)),
    "both, faster and faster": ((1.5, -1.0, 2.0), (40.0, -60.0, 50.0), (0.8, 0.5, -1.0)),
}
NORMAL = np.array([0.4, -0.3, 1.0]) / np.linalg.norm([0.4, -0.3, 1.0])
PLANE = Plane(NORMAL, 1.5)


def parameters(omega: Any, alpha: Any = (0, 0, 0), v: Any = (0, 0, 0)) -> Float64:
    motion = np.zeros(PARAMETERS)
    motion[OMEGA], motion[ALPHA], motion[V] = omega, alpha, v
    return motion


def window_of(camera: Camera, pixels: np.ndarray, tau: np.ndarray) -> WindowEvents:
    """Events at pixels [N, 2], tau [N] s after the reference time."""
    bearings = camera.bearings[pixels[:, 1], pixels[:, 0]].astype(np.float64)
    x, y = (bearings[:, :2] / bearings[:, 2:]).T.astype(np.float32)
    return WindowEvents(x, y, tau.astype(np.float32), np.empty_like(x), float(np.ptp(tau)))


def some_events(camera: Camera, count: int, span_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and times all over the sensor and the window."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, (camera.width, camera.height), (count, 2))
    return pixels, np.sort(rng.uniform(-span_s / 2, span_s / 2, count))


def looked_up(
    camera: Camera, depth: Depth, pixels: np.ndarray, tau: np.ndarray, motion: Float64
) -> Float64:
    """[N] 1/m."""
    window = window_of(camera, pixels, tau)
    out = np.full(len(tau), -1.0, np.float32)
    x, y = pixels.T.astype(np.uint16)
    InverseDepths(camera).fill(out, depth, window, (x, y), REFERENCE_NS, motion)
    return out.astype(np.float64)


def attitude(omega: Any, alpha: Any, t: Float64) -> Rotation:
    """Of the camera t [N] s after the reference time, in its frame of that time."""
    t = np.asarray(t, np.float64)[..., None]
    return Rotation.from_rotvec(np.array(omega) * t + np.array(alpha) * t**2 / 2)


@pytest.mark.parametrize("motion", MOTIONS.values(), ids=MOTIONS)
def test_plane_is_met_by_the_ray_of_the_event(motion, small_camera: Camera):
    """Against the intersection of the event's ray, from the camera's place then, and the plane."""
    omega, alpha, v = motion
    pixels, tau = some_events(small_camera, 3000, 0.08)
    window = window_of(small_camera, pixels, tau)
    rays = attitude(omega, alpha, tau).apply(np.column_stack([window.x, window.y, np.ones(3000)]))
    place = tau[:, None] * np.array(v)
    metres = (PLANE.distance_m - place @ NORMAL) / (rays @ NORMAL)
    found = looked_up(small_camera, PLANE, pixels, tau, parameters(*motion))
    assert (metres > 0).all()
    assert found == pytest.approx(1 / metres, rel=1e-5)


def test_plane_under_a_steady_motion_errs_by_the_second_order(small_camera: Camera):
    """Omega and v in the turning camera's own frame bend its path, which is taken as straight."""
    omega, v = np.array([1.5, -2.0, 2.5]), np.array([0.8, -0.6, 1.0])
    errors = []
    for half_s in (0.04, 0.02):
        pixels = some_events(small_camera, 400, 1.0)[0]
        tau = np.full(400, half_s)
        window = window_of(small_camera, pixels, tau)
        seen = PLANE.moved(*rigid_step(omega, v, half_s))
        exact = seen.inverse_depth(window.x.astype(float), window.y.astype(float))
        found = looked_up(small_camera, PLANE, pixels, tau, parameters(omega, v=v))
        errors.append(np.abs(found / exact - 1).max())
        bend_m = np.linalg.norm(np.cross(omega, v)) * half_s**2 / 2
        assert errors[-1] < 1.2 * bend_m / seen.distance_m
    assert errors[1] < 0.3 * errors[0]


def test_what_lies_behind_has_no_depth(small_camera: Camera):
    """A steep plane is seen in a part of the image only."""
    steep = Plane(np.array([1.0, 0.0, 0.2]) / math.hypot(1.0, 0.2), 0.5)
    pixels, tau = some_events(small_camera, 2000, 0.02)
    found = looked_up(small_camera, steep, pixels, tau, parameters((0, 0, 0)))
    x = window_of(small_camera, pixels, tau).x
    assert np.array_equal(np.isfinite(found), x + 0.2 > 0)
    assert 0.2 < np.isfinite(found).mean() < 0.9


def test_constant_depth_is_that_of_all_events(small_camera: Camera):
    pixels, tau = some_events(small_camera, 50, 0.02)
    found = looked_up(small_camera, 4.0, pixels, tau, parameters((1, 2, 3), v=(1, 1, 1)))
    assert (found == 0.25).all()


# A card before a wall, as seen at the reference time. Wall and card are slanted.
WALL = Plane(np.array([0.1, 0.15, 1.0]) / np.linalg.norm([0.1, 0.15, 1.0]), 3.0)
CARD = Plane(np.array([-0.2, 0.1, 1.0]) / np.linalg.norm([-0.2, 0.1, 1.0]), 1.0)
CARD_M = (-0.25, 0.2, -0.2, 0.25)  # its X and Y, from and to


def on_card(points: Float64) -> np.ndarray:
    """Whether points [..., 3] m of the card's plane are on the card."""
    x, y = points[..., 0], points[..., 1]
    return (x > CARD_M[0]) & (x < CARD_M[1]) & (y > CARD_M[2]) & (y < CARD_M[3])


def seen_from(turn: Rotation, place: Float64, rays: Float64) -> tuple[Float64, np.ndarray]:
    """Depth [N] m and whether it is the card's, along rays [N, 3] of the camera's frame with
    Z = 1; the camera is at `place` (reference frame, m), turned by `turn`."""
    directions = turn.apply(rays)
    wall, card = (
        (plane.distance_m - place @ plane.normal) / (directions @ plane.normal)
        for plane in (WALL, CARD)
    )
    hit = (card > 0) & on_card(place + card[:, None] * directions)
    return np.where(hit, card, wall), hit


def rendered(camera: Camera, motion: tuple, seconds: float) -> np.ndarray:
    """Depth image [H, W] m of the scene, seconds after the reference time."""
    omega, alpha, v = motion
    bearings = camera.bearings.astype(np.float64).reshape(-1, 3)
    turn = Rotation.from_rotvec(attitude(omega, alpha, np.array(seconds)).as_rotvec())
    metres, _ = seen_from(turn, seconds * np.array(v), bearings / bearings[:, 2:])
    return metres.reshape(camera.height, camera.width).astype(np.float32)


@pytest.mark.parametrize("taken_ms", [-30, -8, 0, 12, 30])
@pytest.mark.parametrize("motion", MOTIONS.values(), ids=MOTIONS)
def test_depth_image_of_another_time_is_seen_from_there(
    motion, taken_ms: int, small_camera: Camera
):
    """Events of a card before a wall have its depths at their own times, in their own frames."""
    omega, alpha, v = motion
    camera, count = small_camera, 4000
    pixels, tau = some_events(camera, count, 0.03)
    window = window_of(camera, pixels, tau)
    rays = np.column_stack([window.x, window.y, np.ones(count)]).astype(np.float64)
    turns = attitude(omega, alpha, tau)
    metres, card = np.empty(count), np.empty(count, bool)
    near = np.zeros(count, bool)  # the card is near, in pixels
    far = np.zeros(count, bool)  # the wall is
    for n in range(count):
        place = tau[n] * np.array(v)
        around = rays[n] + np.array([[i, j, 0] for i in (-6, 0, 6) for j in (-6, 0, 6)]) / 168
        depths, hits = seen_from(turns[n], place, np.vstack([rays[n], around]))
        metres[n], card[n] = depths[0], hits[0]
        near[n], far[n] = hits.any(), not hits.all()
    image = DepthImage(rendered(camera, motion, taken_ms * 1e-3), REFERENCE_NS + taken_ms * MS)
    found = looked_up(camera, image, pixels, tau, parameters(*motion)) * metres
    known = np.isfinite(found)
    # Only what was out of the image's sight then has no depth.
    lost = 0.25 if any(omega) or any(v) else 0.0
    assert known.mean() >= 1 - lost
    # The image's pixels, and the nearest surface within three of them, on slanted planes.
    inner = known & ~(near & far)
    assert inner.sum() > 1000
    assert np.abs(found[inner] - 1).max() < 0.04
    assert np.abs(found[inner] - 1).mean() < 0.012
    # At the outline the card's events are the card's; those of the wall may be taken for it.
    outline = known & card & far
    assert outline.sum() > 30
    right = np.abs(found[outline] - 1) < 0.015
    # The parallax may lead from the wall's depth past the card's.
    assert right.mean() >= (1.0 if abs(taken_ms) < 20 else 0.95)


def test_depth_image_taken_as_it_is_would_be_wrong(small_camera: Camera):
    """What the test above is good for: without the motion, events of the card get the wall's."""
    motion = MOTIONS["both, faster and faster"]
    pixels, tau = some_events(small_camera, 2000, 0.03)
    image = DepthImage(rendered(small_camera, motion, -0.03), REFERENCE_NS - 30 * MS)
    moved = looked_up(small_camera, image, pixels, tau, parameters(*motion))
    still = looked_up(small_camera, image, pixels, tau, parameters((0, 0, 0)))
    assert np.nanmean(np.abs(moved / still - 1) > 0.5) > 0.01


@pytest.mark.parametrize("unknown", [np.nan, 0.0, -1.0, np.inf])
def test_pixels_of_unknown_depth_give_none(unknown: float, small_camera: Camera):
    metres = np.full((180, 240), 2.0, np.float32)
    metres[:, 120:] = unknown
    pixels, tau = some_events(small_camera, 2000, 0.02)
    image = DepthImage(metres, REFERENCE_NS)
    found = looked_up(small_camera, image, pixels, tau, parameters((0, 0, 0)))
    # The nearest surface within three pixels counts.
    known = pixels[:, 0] < 123
    assert np.array_equal(np.isfinite(found), known)
    assert (found[known] == 0.5).all()


def test_what_the_image_did_not_see_has_no_depth(small_camera: Camera):
    image = DepthImage(np.full((180, 240), 2.0, np.float32), REFERENCE_NS - 100 * MS)
    pixels, tau = some_events(small_camera, 2000, 0.0)
    found = looked_up(small_camera, image, pixels, tau, parameters((0, 2.0, 0)))
    # 0.2 rad to the right since: what has come into sight there is not in the image.
    rays = small_camera.bearings[pixels[:, 1], pixels[:, 0]].astype(np.float64)
    before = small_camera.project(Rotation.from_rotvec((0, 0.2, 0)).apply(rays))
    outside = np.maximum(-before, before - (239, 179)).max(axis=1)
    assert np.isnan(found[outside > 15]).all()
    assert np.isfinite(found[outside < -15]).all()
    assert (outside > 15).sum() > 50
    behind = looked_up(small_camera, image, pixels, tau, parameters((0, 20.0, 0)))
    assert np.isnan(behind).all()  # 2 rad: looking back


def test_a_new_depth_image_is_looked_up_anew(small_camera: Camera):
    pixels, tau = some_events(small_camera, 100, 0.02)
    window = window_of(small_camera, pixels, tau)
    x, y = pixels.T.astype(np.uint16)
    depths, out = InverseDepths(small_camera), np.empty(100, np.float32)
    for metres in (2.0, 4.0, 5.0):
        image = DepthImage(np.full((180, 240), metres, np.float32), REFERENCE_NS)
        for _ in range(2):
            depths.fill(out, image, window, (x, y), REFERENCE_NS, parameters((0, 0, 0)))
            assert (out == np.float32(1 / metres)).all()


def test_nearest_surfaces_are_the_nearest_of_seven_by_seven_pixels():
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 5.0, (20, 31)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.6] = np.nan
    depth[2:14, 3:15] = np.nan
    depth[15:, 20:] = 0.0
    found = nearest_surfaces(depth)
    assert (found.dtype, found.shape) == (np.float32, depth.shape)
    unknown = 0
    for row in range(20):
        for column in range(31):
            part = depth[max(0, row - 3) : row + 4, max(0, column - 3) : column + 4]
            known = part[part > 0]
            nearest = 1 / known.min() if len(known) else 0.0
            unknown += not len(known)
            assert found[row, column] == pytest.approx(nearest, rel=1e-6)
    assert unknown > 10


# --- Spans --------------------------------------------------------------------------------------


def estimate_of(
    status: Status = Status.OK,
    speed_px_s: float = 600.0,
    disagreement: float = 1.2,
    span_ms: float = 50.0,
    omega: Any = (0, 0, 0),
    v: Any = (np.nan, np.nan, np.nan),
) -> EgomotionEstimate:
    return EgomotionEstimate(
        stamp_ns=0, window_start_ns=7 * MS, window_end_ns=7 * MS + round(span_ms * MS),
        events=20_000, angular_velocity=np.array(omega, float),
        angular_acceleration=np.zeros(3), covariance=np.eye(3), iterations=3, contrast_gain=2.0,
        status=status, solve_time_s=0.003, linear_velocity=np.array(v, float),
        speed_px_s=speed_px_s, disagreement=disagreement,
    )  # fmt: skip


def test_span_is_what_the_displacement_allows():
    span = SpanControl(30.0, adaptive=False)
    assert span.next_ns(estimate_of(speed_px_s=600.0)) == 50 * MS
    assert span.next_ns(estimate_of(speed_px_s=6000.0)) == 5 * MS
    # It is the speed that counts, not how well the model fits.
    assert span.next_ns(estimate_of(speed_px_s=600.0, disagreement=50.0)) == 50 * MS
    assert span.next_ns(estimate_of(speed_px_s=1e12)) == 1


def test_span_of_a_camera_at_rest_is_not_bounded():
    span = SpanControl(30.0, adaptive=True)
    assert span.next_ns(estimate_of(speed_px_s=0.0)) is None
    assert span.next_ns(estimate_of(speed_px_s=1e-5)) is None
    assert SpanControl(0.0, adaptive=False).next_ns(estimate_of(disagreement=50.0)) is None
    assert SpanControl(0.0, adaptive=True).next_ns(estimate_of()) is None


def test_an_uncertain_motion_bounds_windows_as_a_trusted_one_does():
    """It is often one that changes too fast; without a bound the next window would fit worse."""
    spans = [SpanControl(30.0, adaptive=True) for _ in range(2)]
    for disagreement in (9.0, 9.0, 0.5):
        trusted, uncertain = (
            span.next_ns(estimate_of(status, disagreement=disagreement))
            for span, status in zip(spans, (Status.OK, Status.UNCERTAIN), strict=True)
        )
        assert trusted == uncertain
        assert trusted is not None


@pytest.mark.parametrize(
    "status", [status for status in Status if status not in (Status.OK, Status.UNCERTAIN)]
)
def test_a_motion_that_says_nothing_bounds_nothing(status: Status):
    span = SpanControl(30.0, adaptive=True)
    assert span.next_ns(estimate_of(status, disagreement=9.0)) is None
    assert span.next_ns(estimate_of()) == 50 * MS  # and is not remembered


def test_spans_get_shorter_while_the_model_does_not_fit_and_longer_when_it_does():
    span = SpanControl(0.0, adaptive=True)
    assert span.next_ns(estimate_of(disagreement=0.5, span_ms=70.0)) is None
    shorter = span.next_ns(estimate_of(disagreement=3.0, span_ms=70.0))
    assert shorter == pytest.approx(0.8 * 70 * MS, abs=1)
    # From the window as it was, whatever bounded it.
    assert span.next_ns(estimate_of(disagreement=3.0, span_ms=40.0)) == 32 * MS
    assert span.next_ns(estimate_of(disagreement=1.2, span_ms=32.0)) == 32 * MS
    assert span.next_ns(estimate_of(disagreement=math.nan, span_ms=32.0)) == 32 * MS
    assert span.next_ns(estimate_of(disagreement=0.5, span_ms=32.0)) == pytest.approx(35.2 * MS)
    assert span.next_ns(estimate_of(disagreement=0.5, span_ms=35.2)) == pytest.approx(38.72 * MS)
    span.reset()
    assert span.next_ns(estimate_of()) is None


def test_the_shorter_of_both_bounds_counts():
    span = SpanControl(30.0, adaptive=True)
    assert span.next_ns(estimate_of(disagreement=3.0, span_ms=50.0)) == 40 * MS
    assert span.next_ns(estimate_of(speed_px_s=1200.0)) == 25 * MS
    assert span.next_ns(estimate_of(speed_px_s=300.0)) == 40 * MS


# --- Readings by time ---------------------------------------------------------------------------

NUMBERS = (*NORMAL, 1.5)


def test_depth_is_that_of_the_configuration_or_of_the_readings():
    aids = Aids(AidsConfig())
    aids.set_size(8, 6)
    aids.push_depth(0, np.ones((6, 8), np.float32))
    aids.ranges.push(0, 2.0)
    assert aids.depth_at(0) is None
    assert Aids(AidsConfig("constant", 2.5)).depth_at(123) == 2.5
    ranged = Aids(AidsConfig("range"))
    assert ranged.depth_at(0) is None
    ranged.ranges.push(200 * MS, 3.0)  # the order does not matter
    ranged.ranges.push(100 * MS, 2.0)
    assert ranged.depth_at(125 * MS) == pytest.approx(2.25)
    assert ranged.depth_at(200 * MS + TOLERANCE_NS) == 3.0
    assert ranged.depth_at(201 * MS + TOLERANCE_NS) is None
    assert ranged.depth_at(99 * MS - TOLERANCE_NS) is None


def test_depth_image_is_the_nearest_one_of_the_cameras_size():
    aids = Aids(AidsConfig("image"))
    assert not aids.push_depth(0, np.ones((6, 8), np.float32))  # of which camera?
    assert aids.depth_at(0) is None
    aids.set_size(8, 6)
    for stamp_ms, metres in ((100, 1.0), (140, 2.0), (120, 3.0)):
        assert aids.push_depth(stamp_ms * MS, np.full((6, 8), metres, np.float32))
    for asked_ms, stamp_ms, metres in (
        (0, 100, 1.0),
        (112, 120, 3.0),
        (129, 120, 3.0),
        (300, 140, 2.0),
    ):
        depth = aids.depth_at(asked_ms * MS)
        assert isinstance(depth, DepthImage)
        assert (depth.stamp_ns, depth.metres[0, 0]) == (stamp_ms * MS, metres)
    assert aids.depth_at(141 * MS + TOLERANCE_NS) is None
    with pytest.raises(EventBinningError, match="7x5"):
        aids.push_depth(0, np.ones((5, 7), np.float32))
    with pytest.raises(EventBinningError, match="int32"):
        aids.push_depth(0, np.ones((6, 8), np.int32))
    aids.set_size(16, 12)
    assert aids.depth_at(120 * MS) is None


def test_plane_starts_at_the_first_window_and_follows_trusted_motion():
    aids = Aids(AidsConfig("plane", depth_plane=NUMBERS))
    omega, v = np.array([0.5, -0.3, 1.0]), np.array([0.4, 0.2, 0.8])
    start_ns = 10**18

    def assert_at(seconds: float, moved_s: float) -> None:
        plane = aids.depth_at(start_ns + round(seconds * 1e9))
        true = PLANE.moved(*rigid_step(omega, v, moved_s))
        assert isinstance(plane, Plane)
        assert plane.normal == pytest.approx(true.normal, abs=1e-7)
        assert plane.distance_m == pytest.approx(true.distance_m, abs=1e-7)

    assert_at(0.0, 0.0)
    assert_at(0.1, 0.0)  # nothing is known of the motion yet
    steady = estimate_of(omega=omega, v=v)
    for step in range(1, 6):
        aids.follow(steady, start_ns + step * 10 * MS)
    assert_at(0.05, 0.05)
    assert_at(0.06, 0.06)
    # Neither one that is not trusted nor one without scale is followed.
    astray = estimate_of(omega=-omega, v=-v)
    aids.follow(replace(astray, status=Status.UNCERTAIN), start_ns + 60 * MS)
    aids.follow(estimate_of(omega=-omega), start_ns + 60 * MS)
    assert_at(0.08, 0.08)


def test_following_needs_no_plane():
    aids = Aids(AidsConfig("constant", 2.0))
    aids.follow(estimate_of(v=(1, 1, 1)), 10 * MS)
    assert aids.depth_at(20 * MS) == 2.0


@pytest.mark.parametrize("numbers", [(), (0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, math.nan)])
def test_what_is_no_plane_is_refused(numbers: tuple[float, ...]):
    with pytest.raises(ConfigError, match="plane"):
        Aids(AidsConfig("plane", depth_plane=numbers))
    assert Aids(AidsConfig("none", depth_plane=numbers)).depth_at(0) is None


@pytest.mark.parametrize("wanted", [True, False])
def test_rotation_is_that_of_the_gyroscope_where_it_is_wanted(wanted: bool):
    aids = Aids(AidsConfig(gyro=wanted))
    assert aids.rotation_over(5 * MS, 0, 10 * MS) is None
    for k in range(20):
        aids.gyro.push(k * MS, (0.1 * k, 2.0, -1.0))
    fit = aids.rotation_over(4 * MS, 0, 10 * MS)
    if not wanted:
        assert fit is None
        return
    assert fit is not None
    assert fit.angular_velocity == pytest.approx((0.4, 2.0, -1.0))
    assert fit.angular_acceleration == pytest.approx((100.0, 0.0, 0.0), abs=1e-6)
    assert aids.rotation_over(90 * MS, 80 * MS, 100 * MS) is None


@pytest.mark.parametrize("sensor", ["image", "range", "gyro", "plane"])
def test_a_recording_played_again_is_as_good_as_the_first_time(sensor: str):
    """The robot's clock goes back by a minute; what was told of that minute is of no use."""
    aids = Aids(AidsConfig(sensor, depth_plane=NUMBERS, gyro=True))
    aids.set_size(8, 6)
    found = []
    for _ in range(2):
        for k in range(600):
            stamp_ns = k * 100 * MS
            if sensor == "image":
                aids.push_depth(stamp_ns, np.full((6, 8), 1 + k / 100, np.float32))
            elif sensor == "range":
                for n in range(5):
                    aids.ranges.push(stamp_ns + n * 20 * MS, 1 + k / 100)
            elif sensor == "gyro":
                for n in range(10):
                    aids.gyro.push(stamp_ns + n * 10 * MS, (k / 100, 0, 0))
            if k == 100:
                depth = aids.depth_at(stamp_ns)
                fit = aids.rotation_over(stamp_ns, stamp_ns - 30 * MS, stamp_ns + 30 * MS)
                found.append(
                    {
                        "image": isinstance(depth, DepthImage) and float(depth.metres[0, 0]),
                        "range": depth,
                        "plane": isinstance(depth, Plane) and depth.distance_m,
                        "gyro": fit is not None and float(fit.angular_velocity[0]),
                    }[sensor]
                )
            if sensor == "plane":
                speed = 0.02 * math.sin(k * math.pi / 150)  # to and fro
                aids.depth_at(stamp_ns)
                aids.follow(estimate_of(v=(0, 0, speed + (k > 590))), stamp_ns)
    assert found[0]
    assert found[1] == pytest.approx(found[0], rel=1e-6)
