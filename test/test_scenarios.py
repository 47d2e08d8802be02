"""What egomotion is measured on and by: scenarios, baselines, metrics and tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from rich.console import Console

from event_binning_grad.config import PipelineConfig
from event_binning_grad.estimation import EgomotionEstimate, Status
from event_binning_grad.evaluation import baselines, scenarios
from event_binning_grad.evaluation.methods import ask, by_lbfgs, by_pipeline
from event_binning_grad.evaluation.metrics import (
    linear_velocity_error,
    normalised_squared_errors,
    normalised_squares,
    scale_error,
    track_loss,
)
from event_binning_grad.evaluation.tables import as_json, column, print_rows
from event_binning_grad.events.ground_truth import GroundTruth
from event_binning_grad.events.types import Events
from event_binning_grad.geometry import Camera

OMEGA = (1.0, -2.0, 3.0)


@pytest.fixture(scope="module")
def packet(simulated, small_camera: Camera) -> scenarios.Packet:
    """9000 events of a camera that turns at OMEGA."""
    omega = np.array(OMEGA)
    return scenarios.Packet(small_camera, simulated(OMEGA, 0.1)[:9000], omega, 0.8 * omega)


def still(seconds: float = 2.0) -> GroundTruth:
    """The truth of a camera that does not move."""
    t_ns = np.arange(0, round(seconds * 1e9) + 1, 10_000_000)
    return GroundTruth(t_ns, np.zeros((len(t_ns), 3)), np.zeros((len(t_ns), 3)), "test")


def estimate(stamp_s: float, omega: float, std: float = 1.0) -> EgomotionEstimate:
    """A trusted estimate of omega rad/s about x."""
    stamp_ns = round(stamp_s * 1e9)
    values = np.array([omega, 0.0, 0.0])
    return EgomotionEstimate(
        stamp_ns, stamp_ns, stamp_ns, 1000, values, np.zeros(3), std**2 * np.eye(3), 3, 2.0,
        Status.OK, 0.01,
    )  # fmt: skip


def test_noise_is_the_share_that_is_asked_for(simulated):
    signal = simulated(OMEGA, 0.1)[:6000]
    mixed = scenarios.with_noise(signal, 0.25, seed=1)
    assert len(mixed) == 8000
    assert np.all(np.diff(mixed.t) >= 0)
    assert (mixed.t[0], mixed.t[-1]) == (signal.t[0], signal.t[-1])
    assert scenarios.with_noise(signal, 0.0, seed=1) is signal


def test_packets_have_their_size_noise_and_start():
    camera = scenarios.distorted_camera(120, 90)
    scenes = [scenarios.scene_for(camera, "texture", 0)]
    found = list(
        scenarios.packets(
            camera, 4.0, (1000, 2000), (0.0, 0.5), scenes=scenes, start_off=0.3, per_scene=2
        )
    )
    assert [(size, share) for size, share, _ in found] == [
        (size, share) for size in (1000, 2000) for share in (0.0, 0.5) for _ in range(2)
    ]
    for size, _, packet in found:
        assert len(packet.events) == size
        assert np.linalg.norm(packet.angular_velocity) == pytest.approx(4.0)
        assert packet.start is not None
        assert np.linalg.norm(packet.start - packet.angular_velocity) == pytest.approx(1.2)
        assert packet.events.t[0] >= scenarios.SETTLE_NS


def test_moving_streams_come_with_their_depth():
    stream = scenarios.moving_stream("plane", 64, 48, 1.0, 0.3, 0.1)
    assert stream.depth is not None
    image = stream.depth(0)
    assert image.shape == (48, 64)
    assert image[24, 32] == pytest.approx(1.0, abs=0.05)
    assert stream.truth.linear_at(0) is not None
    assert scenarios.hand_stream(64, 48, 1.0, 0.05).depth is None


def test_ideal_pinholes_have_no_distortion():
    camera = scenarios.ideal_camera(64, 48)
    x = camera.bearings[..., 0] / camera.bearings[..., 2]
    columns = (np.arange(64) - camera.K[0, 2]) / camera.K[0, 0]
    assert np.allclose(x, columns, atol=1e-6)


@pytest.mark.parametrize("method", baselines.METHODS)
def test_optimisers_find_the_rotation(method: str, packet: scenarios.Packet):
    start = np.array(packet.start)
    found = baselines.maximise_contrast(
        packet.camera, packet.events, start, method=method, reconstruction="linear"
    )
    off = np.degrees(np.linalg.norm(found.angular_velocity - packet.angular_velocity))
    assert off < 0.2 * np.degrees(np.linalg.norm(packet.angular_velocity - start))
    assert found.evaluations > 1


def test_the_plain_objective_has_the_gradient_of_its_hessian(packet: scenarios.Packet):
    """Of the unbiased gradient by autograd, by differences of it over a small step."""
    contrast = baselines.PlainContrast(packet.camera, packet.events, reconstruction="linear")
    hessian = contrast.hessian(packet.angular_velocity)
    step = 0.1 / contrast.edge_px
    for axis in range(3):
        moved = step * np.eye(3)[axis]
        ends = [
            contrast.value_and_gradient(packet.angular_velocity + sign * moved)[1]
            for sign in (1, -1)
        ]
        assert np.allclose((ends[0] - ends[1]) / (2 * step), hessian[axis], rtol=0.1, atol=0.02)


def test_methods_answer_the_same_packets(packet: scenarios.Packet):
    for method in (by_pipeline(PipelineConfig()), by_lbfgs):
        answers = ask(method, [packet, packet])
        assert answers.rms_deg_s < 3
        assert np.allclose(answers.error[0], answers.error[1])
        assert (answers.evaluations > 0).all()
        assert (answers.window_ms > 0).all()


def test_a_method_without_an_answer_has_no_rms(packet: scenarios.Packet):
    nothing = scenarios.Packet(packet.camera, packet.events[:20], packet.angular_velocity)
    at_once = Events(
        np.zeros(20, np.int64), nothing.events.x, nothing.events.y, nothing.events.p,
        nothing.events.width, nothing.events.height,
    )  # fmt: skip
    packets = [scenarios.Packet(packet.camera, at_once, packet.angular_velocity)]
    answers = ask(by_pipeline(PipelineConfig()), packets)
    assert math.isnan(answers.rms_deg_s)
    assert not answers.trusted.any()


def test_scale_error_is_the_slope_minus_one(rng):
    truth = np.random.default_rng(0).standard_normal((50, 3))
    assert scale_error(0.8 * truth, truth) == pytest.approx(-0.2)
    with_gaps = np.where(np.arange(50)[:, None] % 5 == 0, np.nan, 1.1 * truth)
    assert scale_error(with_gaps, truth) == pytest.approx(0.1)


def test_track_loss_counts_time_not_estimates():
    fine = [estimate(t, 0.0) for t in np.arange(0.0, 1.0, 0.01)]
    lost = [estimate(t, 1.0) for t in np.arange(1.0, 1.25, 0.01)]  # 57 deg/s
    again = [estimate(t, 0.0) for t in np.arange(1.25, 1.8, 0.01)]
    loss = track_loss([*fine, *lost, *again], still(), 0, 2_000_000_000)
    assert loss.off_share == pytest.approx(0.25 / 1.79, rel=0.02)
    assert loss.longest_off_s == pytest.approx(0.25, abs=0.01)
    assert loss.longest_silence_s == pytest.approx(0.21, abs=0.005)
    nothing = track_loss([], still(), 0, 2_000_000_000)
    assert nothing.longest_silence_s == 2.0
    assert math.isnan(nothing.off_share)


def test_normalised_squares_are_three_where_the_covariance_is_right():
    rng = np.random.default_rng(1)
    factor = rng.standard_normal((3, 3))
    covariance = np.tile(factor @ factor.T, (4000, 1, 1))
    error = rng.standard_normal((4000, 3)) @ factor.T
    assert normalised_squares(error, covariance).mean() == pytest.approx(3.0, rel=0.05)
    error[:100], covariance[100:200] = np.nan, np.nan
    assert len(normalised_squares(error, covariance)) == 3800
    squares = normalised_squared_errors([estimate(0.5, 2.0, std=0.5)], still())
    assert squares == pytest.approx([16.0])


def test_linear_velocity_errors_have_the_units_they_say():
    t_ns = np.arange(0, 10) * 10**8
    v = np.tile([3.0, 0.0, 4.0], (10, 1))
    truth = GroundTruth(t_ns, np.zeros((10, 3)), v, "test")
    found = v[:3] + np.array([[0.3, 0, 0], [0, 0, -0.3], [np.nan] * 3])
    error = linear_velocity_error([10**8, 2 * 10**8, 3 * 10**8], found, truth)
    assert error is not None
    assert error.compared == 2
    assert error.rms_m_s == pytest.approx(math.sqrt(2 * 0.09 / 6))
    assert error.rms_per_axis_m_s == pytest.approx((0.3 / math.sqrt(2), 0, 0.3 / math.sqrt(2)))
    assert error.true_rms_m_s == pytest.approx(5.0)
    assert error.percent == pytest.approx(100 * error.rms_m_s / 5)
    unknown = GroundTruth(t_ns, np.zeros((10, 3)), None, "test")
    assert linear_velocity_error([10**8], found[:1], unknown) is None
    assert linear_velocity_error([10**8], found[2:], truth) is None


def test_rows_are_tables_and_json(capsys: pytest.CaptureFixture[str]):
    @dataclass(frozen=True)
    class Row:
        name: str = column("what")
        rate: float = column("Mev/s", ".1f", scale=1e-6)
        share: float | None = column("share", ".0%")
        hidden: float = math.nan

    print_rows(Console(), "title", [Row("a", 2e6, 0.5), Row("b", math.nan, None)], "a note")
    out = capsys.readouterr().out
    for text in ("title", "what", "Mev/s", "2.0", "50%", "-", "a note"):
        assert text in out
    assert "hidden" not in out
    assert as_json(Row("b", math.nan, None)) == {
        "name": "b", "rate": None, "share": None, "hidden": None
    }  # fmt: skip
    print_rows(Console(), "nothing", [])
    assert capsys.readouterr().out == ""
