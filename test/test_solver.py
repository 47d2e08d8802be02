"""The solver on hills with known tops, and what tells whether its answer can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from event_binning_grad.estimation.contrast import (
    TIME_PARTS,
    ContrastConfig,
    ContrastPass,
    WindowEvents,
)
from event_binning_grad.estimation.contrast_cpu import CpuContrast
from event_binning_grad.estimation.iwe_grid import iwe_grid
from event_binning_grad.estimation.look_up import normalised_table
from event_binning_grad.estimation.motion import PARAMETERS, MotionModel
from event_binning_grad.estimation.solver import (
    Evaluate,
    Level,
    Point,
    maximise,
    newton_step,
    noise_score,
    with_secant,
)
from event_binning_grad.estimation.trust import (
    Status,
    covariance_of,
    disagreement,
    lattice_std_px,
    structure,
)
from event_binning_grad.events.types import Events
from event_binning_grad.geometry import Camera

Float64 = np.ndarray


def bins(*sizes: float) -> list[Level]:
    """Levels of all events."""
    return [Level(size) for size in sizes]


def point_of(
    value: float, gradient: Float64, hessian: Float64, scatter: Float64 | None = None
) -> Point:
    """A point whose contrast is its own, with no prior; 10 events."""
    scatter = np.eye(len(gradient)) if scatter is None else scatter
    parts = np.tile(gradient / TIME_PARTS, (TIME_PARTS, 1))
    return Point(
        value, gradient, hessian, scatter, ContrastPass(value, parts, hessian, scatter, 10)
    )


def quadratic(top: Float64, hessian: Float64) -> tuple[Evaluate, list[tuple[Float64, float]]]:
    calls: list[tuple[Float64, float]] = []

    def evaluate(p: Float64, level: Level) -> Point:
        calls.append((np.array(p), level.bin_size))
        d = p - top
        return point_of(float(d @ hessian @ d / 2), hessian @ d, hessian)

    return evaluate, calls


def steep(size: int, seed: int = 0) -> Float64:
    """A negative definite Hessian."""
    root = np.random.default_rng(seed).standard_normal((size, size))
    return -(root @ root.T + np.eye(size))


# ------------------------------------------------------------------------------------------ solver


@pytest.mark.parametrize("size", [3, 6, 9, 11])
def test_solver_finds_the_top_of_a_hill_in_bounded_steps(size: int):
    top = np.random.default_rng(size).standard_normal(size) * 6
    evaluate, calls = quadratic(top, steep(size))
    found = maximise(evaluate, np.zeros(size), bins(4.0, 1.0), 1e-6, 50)
    assert found.parameters == pytest.approx(top, abs=1e-6)
    assert found.evaluations == len(calls)
    assert found.events == 10 * len(calls)
    assert found.last_step_px < 1e-6
    assert not found.late
    assert [size for _, size in calls] == sorted((size for _, size in calls), reverse=True)
    assert calls[-1][1] == 1.0
    places = [p for p, _ in calls]
    moves = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert moves.max() <= 1.5 * 4.0 + 1e-9


def test_last_pass_is_that_of_the_finest_level_one_step_before():
    evaluate, calls = quadratic(np.full(3, 2.0), steep(3))
    found = maximise(evaluate, np.zeros(3), bins(8.0, 2.0), 0.01, 20)
    before, bin_size = calls[-1]
    assert bin_size == 2.0
    assert found.last.value == evaluate(before, Level(2.0)).value
    assert np.linalg.norm(found.parameters - before) == pytest.approx(found.last_step_px)


def test_start_at_the_top_is_left_at_once_and_not_written_to():
    start = np.ones(6)
    evaluate, calls = quadratic(start.copy(), steep(6))
    found = maximise(evaluate, start, bins(1.0), 0.05, 12)
    assert len(calls) == found.evaluations == 1
    assert (found.parameters == start).all()
    evaluate, _ = quadratic(np.zeros(6), steep(6))
    maximise(evaluate, start, bins(1.0), 0.05, 12)
    assert (start == 1).all()


def test_solver_climbs_away_from_a_saddle_and_stands_still_on_flat_ground():
    top = np.ones(6)
    point = quadratic(top, np.diag([1.0, -1, -1, -1, -1, -1]))[0](np.zeros(6), Level(1.0))
    assert newton_step(point.gradient, point.hessian, 100.0) @ point.gradient > 0
    flat = point_of(0.0, np.zeros(6), np.zeros((6, 6)), np.zeros((6, 6)))
    assert (newton_step(flat.gradient, flat.hessian, 1.0) == 0).all()
    found = maximise(lambda p, b: flat, top, bins(2.0, 1.0), 0.1, 5)
    assert (found.parameters == top).all()
    assert found.evaluations == 2


def test_solver_stops_at_its_limit_of_steps():
    slope = point_of(0.0, np.ones(6), -1e-9 * np.eye(6))
    found = maximise(lambda p, b: slope, np.zeros(6), bins(2.0, 1.0), 0.1, 5)
    assert found.evaluations == 10
    assert found.last_step_px == pytest.approx(1.5)
    assert not found.late


def test_steps_settle_where_the_curvature_is_underestimated():
    """A Newton step too long by 2.5 leaps over the top, ever farther, unless it is made shorter."""
    top, hessian = np.full(3, 3.0), -np.eye(3)

    def evaluate(p: Float64, level: Level) -> Point:
        d = p - top
        return point_of(float(d @ hessian @ d / 2), hessian @ d, hessian / 2.5)

    found = maximise(evaluate, np.zeros(3), bins(4.0, 1.0), 0.01, 60)
    assert found.parameters == pytest.approx(top, abs=0.05)


def test_secant_is_met_where_it_can_be_believed():
    rng = np.random.default_rng(5)
    hessian, true = steep(5), steep(5, seed=1)
    met = 0
    for _ in range(50):
        step = rng.standard_normal(5)
        change = true @ step
        found = with_secant(hessian, step, change)
        assert np.linalg.eigvalsh(found)[-1] < 0  # a hill stays one
        assert found == pytest.approx(found.T)
        if not np.array_equal(found, hessian):
            assert found @ step == pytest.approx(change)
            met += 1
    assert met > 10
    # A gradient that grew along its own step, or hardly changed, or changed beyond belief.
    step = np.ones(5)
    along = hessian @ step
    for change in (-along, 1e-4 * along, 1e4 * along):
        assert np.array_equal(with_secant(hessian, step, change), hessian)


def test_gradient_of_chance_has_a_noise_score_of_one():
    rng = np.random.default_rng(6)
    mixing = rng.standard_normal((4, 4)) * [1, 10, 100, 0.1]
    squares = []
    for _ in range(200):
        gradients = rng.standard_normal((300, 4)) @ mixing
        point = point_of(0.0, gradients.sum(0), steep(4), gradients.T @ gradients)
        squares.append(noise_score(point.gradient, point.scatter) ** 2)
    assert np.mean(squares) == pytest.approx(1, abs=0.15)


def test_short_steps_go_on_where_the_events_tell_more():
    """A step within the tolerance ends the climb only where what is left of it is noise."""
    finals = []
    for scatter in (1e-12 * np.eye(3), 1e3 * np.eye(3)):
        # Every step goes nine tenths of the way.
        def evaluate(p: Float64, level: Level, scatter: Float64 = scatter) -> Point:
            d = p - np.ones(3)
            return point_of(0.0, -0.9 * d, -np.eye(3), scatter)

        finals.append(maximise(evaluate, np.zeros(3), bins(1.0), 0.3, 50))
    precise, noisy = finals
    assert precise.last_step_px < noisy.last_step_px < 0.3
    assert precise.evaluations > noisy.evaluations


def test_direction_that_the_data_say_nothing_about_gets_no_wild_step():
    hessian = np.diag([-1.0, -1.0, -1e-12])
    step = newton_step(np.array([0.1, 0.1, 1e-9]), hessian, 1.5)
    assert step[:2] == pytest.approx([0.1, 0.1], rel=1e-3)
    assert 0 <= step[2] < 1e-3


@pytest.mark.parametrize("allowed", [1, 2, 5])
def test_solver_stops_when_it_is_late_and_says_so(allowed: int):
    evaluate, calls = quadratic(np.full(6, 50.0), steep(6))
    found = maximise(
        evaluate, np.zeros(6), bins(8.0, 2.0, 1.0), 1e-9, 12, lambda: len(calls) >= allowed
    )
    assert found.late
    assert found.evaluations == len(calls) == allowed
    assert found.events == 10 * allowed
    assert np.isfinite(found.parameters).all()
    # The step that the last pass tells is still made: it costs nothing.
    assert not np.array_equal(found.parameters, calls[-1][0])


def test_late_at_a_coarse_level_does_not_begin_a_finer_one():
    evaluate, calls = quadratic(np.ones(6), steep(6))
    asked = iter([False, True])
    found = maximise(evaluate, np.zeros(6), bins(8.0, 2.0), 1e-9, 12, lambda: next(asked))
    assert found.late
    assert len(calls) == 2


def test_not_late_when_the_time_is_never_up():
    evaluate, calls = quadratic(np.ones(6), steep(6))
    asked: list[int] = []

    def is_late() -> bool:
        asked.append(len(calls))
        return False

    assert not maximise(evaluate, np.zeros(6), bins(4.0, 1.0), 0.01, 12, is_late).late
    assert asked == list(range(1, len(calls) + 1))  # after every pass


@pytest.mark.parametrize("spoiled", [1, 3])
def test_hessian_that_is_no_number_ends_the_climb(spoiled: int):
    """The parameters stay those that were finite, and the step says that nothing was reached."""
    smooth, calls = quadratic(np.full(4, 3.0), steep(4))

    def evaluate(p: Float64, level: Level) -> Point:
        point = smooth(p, level)
        nowhere = np.full((4, 4), np.nan)
        return replace(point, hessian=nowhere) if len(calls) >= spoiled else point

    found = maximise(evaluate, np.zeros(4), bins(1.0), 1e-6, 20)
    assert found.evaluations == len(calls) == spoiled
    assert found.last_step_px == np.inf
    assert np.array_equal(found.parameters, calls[-1][0])
    assert np.isfinite(found.parameters).all()
    assert np.isnan(covariance_of(found.last)).all()


def test_hessian_that_is_no_number_at_a_coarse_level_leaves_the_fine_ones_a_try():
    smooth, calls = quadratic(np.ones(4), steep(4))

    def evaluate(p: Float64, level: Level) -> Point:
        point = smooth(p, level)
        return replace(point, hessian=np.full((4, 4), np.inf)) if level.bin_size == 8.0 else point

    found = maximise(evaluate, np.zeros(4), bins(8.0, 1.0), 1e-6, 30)
    assert found.parameters == pytest.approx(np.ones(4), abs=1e-6)
    assert [size for _, size in calls].count(8.0) == 1
    assert found.evaluations == len(calls)


# -------------------------------------------------------------------------------------- covariance


@pytest.mark.parametrize("size", [3, 6, 11])
def test_covariance_is_the_sandwich_but_for_one_factor(size: int):
    factors = []
    for seed in range(3):
        hessian, scatter = steep(size, seed), -steep(size, seed + 9)
        found = covariance_of(point_of(0.0, np.zeros(size), hessian, scatter))
        assert np.array_equal(found, found.T)
        assert np.linalg.eigvalsh(found)[0] > 0
        inverse = np.linalg.inv(hessian)
        ratio = found / (inverse @ scatter @ inverse)
        factors += [ratio.min(), ratio.max()]
    assert min(factors) >= 1
    assert max(factors) == pytest.approx(min(factors), rel=1e-6)


def test_covariance_of_what_the_data_do_not_tell_is_great_but_finite():
    hessian = -np.diag([1.0, 1.0, 0.0])
    found = covariance_of(point_of(0.0, np.zeros(3), hessian))
    assert np.isfinite(found).all()
    assert found[2, 2] > 1e6 * found[0, 0] > 0
    saddle = covariance_of(point_of(0.0, np.zeros(3), np.diag([-1.0, -1.0, 0.5])))
    assert np.linalg.eigvalsh(saddle)[0] > 0


def test_no_hessian_no_covariance():
    for wrong in (np.nan, np.inf):
        hessian = steep(3)
        hessian[1, 1] = wrong
        assert np.isnan(covariance_of(point_of(0.0, np.zeros(3), hessian))).all()


def test_covariance_is_greater_where_the_parts_disagree():
    hessian, scatter = steep(4), -steep(4, seed=1)
    point = point_of(0.0, np.zeros(4), hessian, scatter)
    found = []
    for pull in (0.0, 0.5, 1.0, 3.0):
        parts = np.zeros((TIME_PARTS, 4))
        parts[0], parts[-1] = pull, -pull
        contrast = replace(point.contrast, gradients=parts)
        covariance = covariance_of(replace(point, contrast=contrast))
        assert np.linalg.eigvalsh(covariance)[0] > 0
        found.append(np.trace(covariance))
    assert found == sorted(found)
    assert found[-1] > 2 * found[0]


def test_covariance_of_no_events_is_finite():
    nothing = np.zeros((3, 3))
    assert np.isfinite(covariance_of(point_of(0.0, np.zeros(3), nothing, nothing))).all()


def test_lattice_matters_less_the_farther_the_events_move():
    found = [lattice_std_px(moved_px) for moved_px in (0.0, 0.5, 2.0, 20.0)]
    assert found == sorted(found, reverse=True)
    assert 0 < found[-1] < 0.01 < found[0] < 1


def test_ok_is_the_only_status_that_is_ok():
    assert [status for status in Status if status.ok] == [Status.OK]


# ----------------------------------------------------------------------------------- disagreement


def pass_of(parts: Float64, scatter: Float64) -> ContrastPass:
    return ContrastPass(0.0, parts, np.zeros_like(scatter), scatter, 10)


def test_parts_that_differ_by_chance_disagree_by_one_in_the_mean():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((5, 5))
    found = []
    for _ in range(300):
        gradients = rng.standard_normal((400, 5)) @ mixing
        parts = gradients.reshape(TIME_PARTS, -1, 5).sum(axis=1)
        found.append(disagreement(pass_of(parts, gradients.T @ gradients)))
    assert np.mean(found) == pytest.approx(1, abs=0.1)
    assert max(found) < 6


def test_disagreement_does_not_depend_on_units_that_turn_or_scale_all():
    rng = np.random.default_rng(1)
    parts, scatter = rng.standard_normal((TIME_PARTS, 4)), -steep(4)
    turn = np.linalg.qr(rng.standard_normal((4, 4)))[0] * 1e-3
    found = disagreement(pass_of(parts, scatter))
    turned = disagreement(pass_of(parts @ turn.T, turn @ scatter @ turn.T))
    assert turned == pytest.approx(found, rel=1e-6)
    # What all parts pull alike is for the solver to follow, and no disagreement.
    alike = np.tile(parts[0], (TIME_PARTS, 1))
    assert disagreement(pass_of(alike, scatter)) == pytest.approx(0, abs=1e-12)
    assert disagreement(pass_of(parts + parts[0], scatter)) == pytest.approx(found)


def test_parts_that_tell_nothing_do_not_agree():
    nothing = pass_of(np.zeros((TIME_PARTS, 3)), np.zeros((3, 3)))
    assert disagreement(nothing) == np.inf


@pytest.fixture(scope="module")
def disagreement_at(small_camera: Camera) -> Callable[[Events, tuple[float, float, float]], float]:
    """The disagreement of a window at an angular velocity."""
    contrast = CpuContrast(iwe_grid(small_camera), ContrastConfig())
    table = normalised_table(small_camera)

    def evaluate(events: Events, omega: tuple[float, float, float]) -> float:
        x, y = table[events.y, events.x].T.copy()
        tau = ((events.t - events.t.mean()) * 1e-9).astype(np.float32)
        contrast.load(
            WindowEvents(x, y, tau, np.ones_like(tau), 0.04), MotionModel.ROTATION.active(False)
        )
        parameters = np.zeros(PARAMETERS)
        parameters[:3] = omega
        return disagreement(contrast.evaluate(parameters, 1.0))

    return evaluate


def test_window_whose_halves_move_alike_agrees_and_one_that_jerks_does_not(
    disagreement_at, point_events
):
    middle = 1_000_000_000
    alike, jerks = [], []
    for seed in range(6):
        same = point_events((1.0, -2.0, 1.5), seed=seed)
        alike.append(disagreement_at(same, (1.0, -2.0, 1.5)))
        before = point_events((0.8, -2.0, 1.5), seed=seed)
        after = point_events((1.2, -2.0, 1.5), seed=seed)
        both = Events.concatenate([before[before.t < middle], after[after.t >= middle]])
        jerks.append(disagreement_at(both, (1.0, -2.0, 1.5)))
    assert np.mean(alike) < 3
    assert min(jerks) > 10 * max(alike)


# -------------------------------------------------------------------------------------- structure


def structure_of(image: Float64, cell: int = 16) -> float:
    """The figure by numpy: variation within cells over what single votes would give."""
    rows, cols = (size // cell * cell for size in image.shape)
    whole = image[:rows, :cols].astype(np.float64)
    cells = whole.reshape(rows // cell, cell, cols // cell, cell).swapaxes(1, 2)
    return float((cells.var(axis=(2, 3)) * cell**2).sum() / (whole.sum() * 4 / 9))


def votes(u: Float64, v: Float64, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear votes."""
    image = np.zeros((shape[0] + 1, shape[1] + 1))
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    for di, dj in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weights = (1 - abs(u - i - di)) * (1 - abs(v - j - dj))
        np.add.at(image, (j + dj, i + di), weights)
    return image[:-1, :-1].astype(np.float32)


@pytest.mark.parametrize("shape", [(180, 240), (64, 48), (33, 47)])
def test_structure_is_that_of_numpy(shape: tuple[int, int]):
    rng = np.random.default_rng(2)
    image = rng.gamma(0.7, size=shape).astype(np.float32)
    assert structure(image) == pytest.approx(structure_of(image), rel=1e-4)
    # A view of a larger image, as the passes give it.
    padded = np.pad(image, 4, constant_values=1e6)
    assert structure(padded[4:-4, 4:-4]) == structure(image)


def test_scattered_events_have_a_structure_of_one_whatever_their_density():
    rng = np.random.default_rng(3)
    for count in (1000, 20_000, 200_000):
        u, v = rng.uniform(0, 239, count), rng.uniform(0, 179, count)
        assert structure(votes(u, v, (180, 240))) == pytest.approx(1, abs=0.1)
    # Ten times as dense on one side.
    u = np.concatenate([rng.uniform(0, 239, 10_000), rng.uniform(0, 112, 50_000)])
    v = rng.uniform(0, 179, len(u))
    assert structure(votes(u, v, (180, 240))) == pytest.approx(1, abs=0.1)


def test_sharp_lines_have_much_structure_and_blurred_ones_less():
    rng = np.random.default_rng(4)
    centre = 10.0 * rng.integers(1, 23, 20_000)
    v = rng.uniform(0, 179, len(centre))
    found = [
        structure(votes(centre + width * rng.uniform(-0.5, 0.5, len(v)), v, (180, 240)))
        for width in (0.1, 3.0, 10.0)
    ]
    assert found[0] > 2 * found[1] > 2 * found[2]
    assert found[2] == pytest.approx(1, abs=0.2)


def test_image_of_nothing_has_no_structure():
    for shape in ((32, 32), (5, 7)):
        assert structure(np.zeros(shape, np.float32)) == 0
