"""The flow contrast's fused pass against its plain reference, and what both must hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from event_binning_grad.estimation.flow import flow_iwe_grid
from event_binning_grad.estimation.flow_contrast import (
    REFERENCES,
    FlowContrast,
    FlowPass,
    TorchFlowContrast,
    part_taken,
)
from event_binning_grad.estimation.flow_contrast_cpu import CpuFlowContrast
from event_binning_grad.estimation.flow_grid import NodeGrid, interpolate, node_grid, nodes_of

Float32 = np.ndarray
LOW, HIGH = np.zeros(2), np.array([119.0, 89.0])
GRID = flow_iwe_grid(LOW, HIGH)
NODES = node_grid(LOW, HIGH, 12.0)
FIELDS = ("gradient", "hessian", "noise", "support")

each_contrast = pytest.mark.parametrize("contrast", [CpuFlowContrast, TorchFlowContrast])
each_gradient = pytest.mark.parametrize("unbiased", [True, False], ids=["unbiased", "raw"])


def events(count: int = 4000, seed: int = 0) -> tuple[Float32, Float32, Float32]:
    """Points that move by about (6, -3) px over the window, and strays, also off the sensor."""
    rng = np.random.default_rng(seed)
    s = np.sort(rng.uniform(-0.5, 0.5, count))
    x, y = rng.uniform(0, 120, (2, 60))[:, rng.integers(0, 60, count)]
    x, y = x + 6 * s + rng.normal(0, 0.3, count), y - 3 * s + rng.normal(0, 0.3, count)
    strays = rng.random(count) < 0.2
    x[strays], y[strays] = rng.uniform(-30, 150, (2, strays.sum()))
    x[::97], y[1::97] = np.nan, np.nan
    return x.astype(np.float32), y.astype(np.float32), s.astype(np.float32)


def field(scale: float = 1.0, seed: int = 1) -> Float32:
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, scale, (NODES.rows, NODES.cols, 2))
    return (np.array([5.0, -2.0]) + noise).astype(np.float32)


def passes(
    contrast: FlowContrast,
    columns: tuple[Float32, Float32, Float32],
    displacement: Float32,
    bin_size: float = 1.0,
    count: int = 2,
) -> list[FlowPass]:
    contrast.load(*columns)
    contrast.settle(NODES, displacement, bin_size)
    return [contrast.evaluate(NODES, displacement, bin_size) for _ in range(count)]


@pytest.mark.parametrize("bin_size", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_fused_pass_agrees_with_the_reference(bin_size: float, scale: float):
    columns, displacement = events(9000), field(scale)
    fused = passes(CpuFlowContrast(GRID, True), columns, displacement, bin_size)
    plain = passes(TorchFlowContrast(GRID, True), columns, displacement, bin_size)
    for one, other in zip(fused, plain, strict=True):
        assert one.events == other.events
        assert one.value == pytest.approx(other.value, rel=1e-5)
        for name in FIELDS:
            expected = getattr(other, name)
            np.testing.assert_allclose(
                getattr(one, name), expected, atol=3e-4 * np.abs(expected).max(), err_msg=name
            )


def test_raw_gradient_agrees_with_the_reference():
    columns, displacement = events(9000), field()
    (fused,) = passes(CpuFlowContrast(GRID, False), columns, displacement, count=1)
    (plain,) = passes(TorchFlowContrast(GRID, False), columns, displacement, count=1)
    # The slope of a bilinear vote jumps from bin to bin: an event that rounding puts into the next
    # one changes the nodes around it.
    off = np.abs(fused.gradient - plain.gradient).max(axis=2)
    assert (off > 3e-4 * np.abs(plain.gradient).max()).mean() < 0.1
    np.testing.assert_allclose(
        fused.hessian, plain.hessian, atol=1e-3 * np.abs(plain.hessian).max()
    )


@each_contrast
@pytest.mark.parametrize("references", [(0.0,), REFERENCES])
def test_squares_and_picture_are_those_of_warped_events(contrast: Callable, references):
    columns, displacement = events(), field()
    one = contrast(GRID, True)
    one.load(*columns)
    found = one.squares(NODES, displacement, references)
    x, y, s = columns
    place, at = np.stack([x, y], 1), np.zeros((len(x), 2), np.float32)
    for _ in range(3):
        at = interpolate(NODES, displacement, *np.ascontiguousarray(place.T))
        place = np.stack([x, y], 1) - s[:, None] * at
    for reference, value in zip(references, found, strict=True):
        assert value == pytest.approx((votes(place + reference * at) ** 2).sum(), rel=1e-4)
    np.testing.assert_allclose(one.last_image(), votes(place), atol=2e-3)
    picture = one.picture(NODES, displacement, GRID)
    np.testing.assert_allclose(picture, votes(place), atol=2e-3)


def votes(points: np.ndarray) -> np.ndarray:
    """The image of points (x, y) by bilinear votes, one after the other."""
    image = np.zeros((GRID.height, GRID.width))
    for u, v in points.astype(np.float64) @ GRID.matrix.T + GRID.offset:
        if not np.isfinite(u + v):
            continue
        for j in (int(np.floor(v)), int(np.floor(v)) + 1):
            for i in (int(np.floor(u)), int(np.floor(u)) + 1):
                if 0 <= j < GRID.height and 0 <= i < GRID.width:
                    image[j, i] += (1 - abs(u - i)) * (1 - abs(v - j))
    return image


@each_contrast
def test_raw_gradient_is_the_slope_of_the_value(contrast: Callable):
    columns = events(3000)
    displacement, direction = field(0.3), field(1.0, seed=5) - field(0.0)
    columns[0][:] = np.where(np.abs(columns[0] - 60) < 70, columns[0], np.nan)

    def value(step: float) -> FlowPass:
        one = contrast(GRID, False)
        one.load(*columns)
        one.settle(NODES, displacement, 2.0)
        return one.evaluate(NODES, displacement + np.float32(step) * direction, 2.0)

    slope = (value(4e-3).value - value(-4e-3).value) / 8e-3
    assert (value(0.0).gradient * direction).sum() == pytest.approx(slope, rel=0.02)


@each_contrast
def test_unbiased_gradient_is_the_slope_over_about_a_bin(contrast: Callable):
    """Over a shift of all nodes together, where the value itself is rough in between."""
    columns, still = events(), field(0.0)
    errors = {}
    for unbiased in (True, False):
        found, slopes = [], []
        for offset in np.linspace(-4, 4, 9):
            at = [still + np.array([offset + step, 0], np.float32) for step in (-2.0, 0.0, 2.0)]
            low, here, high = (
                passes(contrast(GRID, unbiased), columns, displacement, count=1)[0]
                for displacement in at
            )
            found.append(here.gradient[..., 0].sum())
            slopes.append((high.value - low.value) / 4)
        errors[unbiased] = np.abs(np.array(found) - slopes).mean() / np.abs(slopes).mean()
    print(errors)
    assert errors[True] < 0.25
    assert errors[True] < errors[False]


@each_contrast
def test_events_share_themselves_out_over_the_nodes(contrast: Callable):
    x, y, s = events()
    inside = (x > 0) & (x < 119) & (y > 0) & (y < 89)
    columns = (x[inside], y[inside], s[inside])
    (one,) = passes(contrast(GRID, True), columns, field(0.0), count=1)
    assert one.support.sum() == pytest.approx(inside.sum(), rel=1e-5)
    assert (one.support >= 0).all()
    assert one.noise.sum() > 0


@each_contrast
def test_places_are_on_the_path_of_the_flow(contrast: Callable):
    """A flow that differs between left and right: an event takes that of where it is then."""
    nodes = NodeGrid((0.0, 0.0), 30.0, 4, 5)
    displacement = np.zeros((4, 5, 2), np.float32)
    displacement[:, 2:, 0] = 20.0
    x, y, s = (np.array([value], np.float32) for value in (64.0, 45.0, 0.5))
    one = contrast(GRID, True)
    one.load(x, y, s)
    one.settle(nodes, displacement, 1.0)
    found = [one.evaluate(nodes, displacement, 1.0) for _ in range(20)][-1]
    # x - s F(p) = p on the ramp between 30 and 60: 64 - 10 (p - 30) / 30 = p at 55.5.
    share = found.support.sum(axis=0)
    np.testing.assert_allclose(share, [0, 0.15, 0.85, 0, 0], atol=0.01)


@each_contrast
@each_gradient
@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_events(contrast: Callable, unbiased: bool, count: int):
    columns = (np.full(count, 50.0, np.float32), np.full(count, 40.0, np.float32))
    time = np.full(count, 0.4, np.float32)
    (one,) = passes(contrast(GRID, unbiased), (*columns, time), field(0.0), count=1)
    assert np.isfinite(one.value)
    assert one.support.sum() == pytest.approx(count)
    for name in FIELDS:
        assert np.isfinite(getattr(one, name)).all(), name


@each_contrast
@each_gradient
def test_events_off_the_image_or_nowhere_count_nothing(contrast: Callable, unbiased: bool):
    x = np.array([np.nan, 50.0, 1e4, -1e4, 50.0, np.nan], np.float32)
    y = np.array([50.0, np.nan, 50.0, 50.0, -3e7, np.nan], np.float32)
    s = np.linspace(-0.5, 0.5, 6, dtype=np.float32)
    for one in passes(contrast(GRID, unbiased), (x, y, s), field(0.0)):
        assert one.value == 0
        for name in FIELDS:
            assert (getattr(one, name) == 0).all(), name


@each_contrast
def test_columns_need_not_be_contiguous(contrast: Callable):
    columns = events()
    table = np.stack(columns, 1)
    (one,) = passes(contrast(GRID, True), columns, field(), count=1)
    (other,) = passes(contrast(GRID, True), tuple(table.T), field(), count=1)
    assert one.value == pytest.approx(other.value, rel=1e-6)
    for name in FIELDS:
        np.testing.assert_allclose(
            getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-4, err_msg=name
        )


def test_same_bits_every_time_and_at_any_number_of_threads(numba_threads):
    found = []
    for threads in (1, 2, 2):
        with numba_threads(threads):
            found.append(passes(CpuFlowContrast(GRID, True), events(60_000), field())[-1])
    for other in found[1:]:
        assert other.value == found[0].value
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(other, name), getattr(found[0], name))


def test_coarse_passes_take_fewer_events_evenly_spread():
    taken = part_taken(40_000, 4.0)
    assert not isinstance(taken, slice)
    assert len(taken) == 10_000
    assert set(np.diff(taken)) == {4}
    assert part_taken(40_000, 1.0) == slice(None)
    assert part_taken(5_000, 8.0) == slice(None)


def test_stray_events_do_not_bend_the_objective_much():
    """Half of the curvature of the events' own votes is taken out."""
    rng = np.random.default_rng(3)
    count = 300  # far apart
    columns = (
        rng.uniform(0, 119, count).astype(np.float32),
        rng.uniform(0, 89, count).astype(np.float32),
        np.full(count, 0.5, np.float32),
    )
    (one,) = passes(CpuFlowContrast(GRID, True), columns, field(0.0), count=1)
    per_event = one.hessian[..., 0].sum() / one.support.sum()
    # Of all of it: 2 * 0.55 * s^2 * scale^2.
    assert -0.75 < per_event / (2 * 0.55 * 0.25 * 0.97**2) < -0.25


def test_node_grid_covers_the_box():
    for spacing in (7.0, 12.0, 200.0):
        nodes = node_grid(LOW, HIGH, spacing)
        xs, ys = nodes_of(nodes)
        assert xs.min() <= 0
        assert ys.min() <= 0
        assert xs.max() >= HIGH[0]
        assert ys.max() >= HIGH[1]
        assert nodes.rows >= 2
        assert nodes.cols >= 2
