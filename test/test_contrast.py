"""The contrast's passes against an independent computation, for every motion model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d, correlate2d
from scipy.spatial.transform import Rotation
from scipy.special import digamma, gammaln
from torch import Tensor

from event_binning_grad.binning import bin_events
from event_binning_grad.errors import CalibrationError, ConfigError
from event_binning_grad.estimation.contrast import (
    TIME_PARTS,
    Contrast,
    ContrastConfig,
    ContrastPass,
    TorchContrast,
    WindowEvents,
    events_taken,
)
from event_binning_grad.estimation.contrast_cpu import PARALLEL_FROM, CpuContrast, is_fused
from event_binning_grad.estimation.iwe_grid import IweGrid, iwe_grid, sensor_grid
from event_binning_grad.estimation.look_up import normalised_table
from event_binning_grad.estimation.motion import PARAMETERS, MotionModel
from event_binning_grad.estimation.objectives import OBJECTIVES
from event_binning_grad.events.types import Events
from event_binning_grad.geometry import Camera

Float64 = np.ndarray

# What is estimated: every motion model, and all parameters of them at once.
ACTIVE: dict[str, np.ndarray] = {
    "rotation": MotionModel.ROTATION.active(True),
    "constant rotation": MotionModel.ROTATION.active(False),
    "full": MotionModel.FULL.active(True),
    "planar": MotionModel.PLANAR.active(True),
    "translation": MotionModel.TRANSLATION.active(True),
    "all": np.arange(PARAMETERS),
}
# omega, alpha, v, slope: about the truth, off by several pixels, at rest, and far too fast.
MOTIONS = [
    np.array([1.0, -2.0, 3.0, 0.0, 0.0, 0.0, 0.3, -0.2, 0.4, 0.1, -0.2]),
    np.array([1.8, -1.0, 2.0, 50.0, -40.0, 30.0, -1.5, 2.0, 1.0, -0.4, 0.3]),
    np.zeros(PARAMETERS),
    np.array([25.0, -30.0, 40.0, 400.0, 300.0, -500.0, 9.0, 7.0, -8.0, 0.9, -0.7]),
]
OFF = MOTIONS[1]
BIN_SIZES = (1.0, 2.0, 4.0)
ALL = ACTIVE["all"]

each_model = pytest.mark.parametrize("model", ACTIVE)
each_objective = pytest.mark.parametrize("objective", OBJECTIVES)
each_gradient = pytest.mark.parametrize("reconstruction", ["linear", None], ids=["unbiased", "raw"])
each_back_end = pytest.mark.parametrize("back_end", ["fused", "torch"])


def make(back_end: str, grid: IweGrid, **config) -> Contrast:
    chosen = ContrastConfig(**config)
    return CpuContrast(grid, chosen) if back_end == "fused" else TorchContrast(grid, chosen, "cpu")


def window_of(events: Events, camera: Camera) -> WindowEvents:
    """A window of events at depths of 0.7 to 5 m and, every tenth, infinitely far."""
    start, end = int(events.t[0]), int(events.t[-1])
    tau = (events.t - start - int((events.t - start).mean())) * 1e-9
    x, y = normalised_table(camera)[events.y, events.x].T.copy()
    depths = np.random.default_rng(5).uniform(0.2, 1.4, len(events)).astype(np.float32)
    depths[::10] = 0
    return WindowEvents(x, y, tau.astype(np.float32), depths, (end - start) * 1e-9)


def columns_of(window: WindowEvents) -> dict[str, np.ndarray]:
    names = ("x", "y", "tau", "inverse_depth")
    return {name: getattr(window, name) for name in names}


def merged(window: WindowEvents, others: dict[str, np.ndarray]) -> WindowEvents:
    """The window with others before and after it."""
    columns = {
        name: np.concatenate([others[name], column, others[name]])
        for name, column in columns_of(window).items()
    }
    return replace(window, **columns)


@pytest.fixture(autouse=True)
def one_thread(torch_threads) -> Iterator[None]:
    """The problems are small: torch's threads would only wait for one another."""
    with torch_threads(1):
        yield


@pytest.fixture(scope="module")
def grid(small_camera: Camera) -> IweGrid:
    return iwe_grid(small_camera)


@pytest.fixture(scope="module")
def window(turning: Events, small_camera: Camera, grid: IweGrid) -> WindowEvents:
    """So few events that every pass takes them all, and none of them where a hat has its kinks, for
    MOTIONS and BIN_SIZES: the slope jumps there, and float32 may fall on the other side."""
    window = window_of(turning[::3], small_camera)
    smooth = np.ones(len(window), bool)
    for bin_size in BIN_SIZES:
        dense = DenseContrast(grid, window, bin_size)
        for motion in MOTIONS:
            points = dense.image_points(motion)
            smooth &= ~(np.abs(points - np.rint(points)) < 1e-3).any(axis=1)
    assert 0.9 < smooth.mean() < 1
    return replace(window, **{name: c[smooth] for name, c in columns_of(window).items()})


@pytest.fixture(scope="module")
def large(turning: Events, small_camera: Camera) -> WindowEvents:
    """So many events that passes with coarse bins take a part of them."""
    return window_of(turning, small_camera)


# --------------------------------------------------------------------------------- the reference


class DenseContrast:
    """The passes in float64 from the formulas, by numpy and scipy alone, for bilinear votes."""

    def __init__(self, grid: IweGrid, window: WindowEvents, bin_size: float) -> None:
        x, y, self.tau, self.rho = (c.astype(np.float64) for c in columns_of(window).values())
        self.rays = np.stack([x, y, np.ones_like(x)], 1)
        self.grid, self.bin_size = grid, bin_size
        self.shape = (math.ceil(grid.height / bin_size), math.ceil(grid.width / bin_size))

    def image_points(self, parameters: Float64) -> Float64:
        """(v, u) in bins [N, 2]; NaN for events that are not seen."""
        omega, alpha, v, slope = np.split(parameters, [3, 6, 9])
        theta = np.outer(self.tau, omega) + np.outer(self.tau**2 / 2, alpha)
        shift = self.tau * self.rho * (1 + self.rays[:, :2] @ slope)
        p = Rotation.from_rotvec(theta).apply(self.rays) + np.outer(shift, v)
        p[~(p[:, 2] > 0.1)] = np.nan
        pixels = p[:, :2] / p[:, 2:] @ self.grid.matrix.T + self.grid.offset
        return pixels[:, ::-1] / self.bin_size

    def jacobian(self, parameters: Float64) -> Float64:
        """[N, 2, 11] numerically."""
        columns = []
        for n, step in enumerate([1e-4] * 3 + [0.1] * 3 + [1e-4] * 5):
            ahead, behind = parameters.copy(), parameters.copy()
            ahead[n] += step
            behind[n] -= step
            columns.append((self.image_points(ahead) - self.image_points(behind)) / (2 * step))
        return np.nan_to_num(np.stack(columns, axis=-1))

    def gather(self, image: Float64, points: Float64, forms) -> Float64:
        """sum_j image_j f(v - j) g(u - j) for kernels (f, g) that reach two bins."""
        padded = np.pad(image, 4)
        total = np.zeros(len(points))
        usable = ((points > -3) & (points < np.array(self.shape) + 2)).all(axis=1)
        v, u = points[usable].T
        for dj in range(-1, 3):
            for di in range(-1, 3):
                j, i = np.floor(v).astype(int) + dj, np.floor(u).astype(int) + di
                total[usable] += padded[j + 4, i + 4] * forms[0](v - j) * forms[1](u - i)
        return total

    def image(self, points: Float64) -> Float64:
        padded = np.zeros((self.shape[0] + 8, self.shape[1] + 8))
        usable = ((points > -3) & (points < np.array(self.shape) + 2)).all(axis=1)
        v, u = points[usable].T
        for dj in range(2):
            for di in range(2):
                j, i = np.floor(v).astype(int) + dj, np.floor(u).astype(int) + di
                np.add.at(padded, (j + 4, i + 4), hat(v - j) * hat(u - i))
        return padded[4:-4, 4:-4]

    def derivatives(
        self, parameters: Float64, objective: str, unbiased: bool
    ) -> tuple[Float64, Float64]:
        """Of the objective by every event's (v, u) in bins: [N, 2], and by cubics [N, 2, 2]."""
        points = self.image_points(parameters)
        _, cotangent = objective_of(objective, self.image(points))
        kernel, slope = (cubic, cubic_slope) if unbiased else (hat, hat_slope)
        forms = [(slope, kernel), (kernel, slope)]
        slopes = np.stack([self.gather(cotangent, points, f) for f in forms], axis=-1)
        vv = self.gather(cotangent, points, (cubic_curve, cubic))
        uv = self.gather(cotangent, points, (cubic_slope, cubic_slope))
        uu = self.gather(cotangent, points, (cubic, cubic_curve))
        return slopes, np.stack([vv, uv, uv, uu], axis=-1).reshape(-1, 2, 2)

    def evaluate(self, parameters: Float64, objective: str, unbiased: bool) -> ContrastPass:
        """All eleven parameters' pass over all events."""
        jacobian = self.jacobian(parameters)
        value, _ = objective_of(objective, self.image(self.image_points(parameters)))
        slopes, curvature = self.derivatives(parameters, objective, unbiased)
        gradients = np.einsum("ni,nip->np", slopes, jacobian)
        bent = np.einsum("nij,njq->niq", curvature, jacobian)
        return ContrastPass(
            value,
            np.stack([gradients[part].sum(axis=0) for part in parts_of(len(slopes))]),
            np.einsum("nip,niq->pq", jacobian, bent),
            gradients.T @ gradients,
            len(slopes),
        )


def parts_of(events: int) -> list[slice]:
    """The parts of a window, one after the other."""
    edges = np.arange(TIME_PARTS + 1) * events // TIME_PARTS
    return [slice(start, stop) for start, stop in pairwise(edges)]


def objective_of(name: str, image: Float64) -> tuple[float, Float64]:
    """The objective and its cotangent image by numpy and scipy."""
    n = image.size
    if name == "variance":
        return float(image.var()), 2 / n * (image - image.mean())
    if name == "mean_square":
        return float((image**2).mean()), 2 / n * image
    if name == "gradient_magnitude":
        sobel = np.outer([1, 2, 1], [-1, 0, 1]) / 8
        value, cotangent = 0.0, np.zeros_like(image)
        for stencil in (sobel, sobel.T):
            along = correlate2d(image, stencil, "valid")
            value += float((along**2).mean())
            cotangent += convolve2d(2 / along.size * along, stencil, "full")
        return value, cotangent
    assert name == "likelihood"
    r, p = 0.1, 1.59 / 2.59
    log_nb = gammaln(image + r) - gammaln(r) - gammaln(image + 1)
    log_nb += r * np.log(p) + image * np.log(1 - p)
    slope = digamma(image + r) - digamma(image + 1) + np.log(1 - p)
    return float(log_nb.mean()), slope / n


def hat(x: Float64) -> Float64:
    return np.maximum(0, 1 - np.abs(x))


def hat_slope(x: Float64) -> Float64:
    return np.where(np.abs(x) < 1, -np.sign(x), 0.0)


def cubic(x: Float64) -> Float64:
    x = np.abs(x)
    return np.where(x <= 1, 2 / 3 - x**2 + x**3 / 2, np.maximum(0, 2 - x) ** 3 / 6)


def cubic_slope(x: Float64) -> Float64:
    a = np.abs(x)
    return np.sign(x) * np.where(a <= 1, -2 * a + 1.5 * a**2, -(np.maximum(0, 2 - a) ** 2) / 2)


def cubic_curve(x: Float64) -> Float64:
    a = np.abs(x)
    return np.where(a <= 1, 3 * a - 2, np.maximum(0, 2 - a))


def reduced(dense: ContrastPass, active: np.ndarray) -> ContrastPass:
    """The pass with only some of the parameters to be estimated."""
    square = np.ix_(active, active)
    return ContrastPass(
        dense.value,
        dense.gradients[:, active],
        dense.hessian[square],
        dense.scatter[square],
        dense.events,
    )


def assert_same_pass(
    found: ContrastPass,
    expected: ContrastPass,
    tolerance: float,
    rel: float = 1e-5,
    by_part: bool = True,
) -> None:
    """Entries in units of their parameters' displacement, which a scale for all would drown."""
    assert found.value == pytest.approx(expected.value, rel=rel)
    assert found.events == expected.events
    unit = np.sqrt(np.diag(expected.scatter)) + 1e-30
    for name in ("gradients" if by_part else "gradient", "hessian", "scatter"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.shape == b.shape
        scale = unit if name.startswith("gradient") else np.outer(unit, unit)
        assert np.abs((a - b) / scale).max() <= tolerance * np.abs(b / scale).max(), name


@pytest.fixture(scope="module")
def dense_pass(grid: IweGrid, window: WindowEvents) -> Callable[..., ContrastPass]:
    """dense_pass(number of MOTIONS, bin size, objective, unbiased) of `window`, worked out once."""
    known: dict[tuple, ContrastPass] = {}

    def evaluate(motion: int, bin_size: float, objective: str, unbiased: bool) -> ContrastPass:
        key = (motion, bin_size, objective, unbiased)
        if key not in known:
            dense = DenseContrast(grid, window, bin_size)
            known[key] = dense.evaluate(MOTIONS[motion], objective, unbiased)
        return known[key]

    return evaluate


# ----------------------------------------------------------------------------------- every pass


@each_back_end
@each_model
@each_objective
@each_gradient
def test_pass_is_what_the_formulas_say(
    back_end: str,
    model: str,
    objective: str,
    reconstruction: str | None,
    grid: IweGrid,
    window: WindowEvents,
    dense_pass,
):
    contrast = make(back_end, grid, objective=objective, reconstruction=reconstruction)
    contrast.load(window, ACTIVE[model])
    for bin_size in BIN_SIZES:
        for motion in (0, 1) if model != "all" else range(len(MOTIONS)):
            found = contrast.evaluate(MOTIONS[motion], bin_size)
            expected = dense_pass(motion, bin_size, objective, reconstruction is not None)
            assert_same_pass(found, reduced(expected, ACTIVE[model]), 1e-3, 1e-4)


@each_back_end
@pytest.mark.parametrize("bin_size", [1.0, 2.0, 8.0])
def test_image_is_that_of_the_formulas(
    back_end: str, bin_size: float, grid: IweGrid, window: WindowEvents
):
    contrast = make(back_end, grid)
    contrast.load(window, ALL)
    dense = DenseContrast(grid, window, bin_size)
    for motion in MOTIONS:
        expected = dense.image(dense.image_points(motion))
        contrast.evaluate(motion, bin_size)
        for image in (contrast.last_iwe().copy(), contrast.iwe(motion, bin_size)):
            assert image.shape == expected.shape
            assert image.dtype == np.float32
            assert np.abs(image - expected).max() < 5e-3
        assert np.array_equal(contrast.last_iwe(), contrast.iwe(motion, bin_size))


@each_back_end
def test_jacobian_of_every_event_is_the_numerical_one(
    back_end: str, grid: IweGrid, window: WindowEvents
):
    """Alone in its window, an event has nothing but its own place: the gradient is its slope times
    the Jacobian, the Hessian its curvature between two of them."""
    contrast = make(back_end, grid, objective="mean_square")
    for motion in MOTIONS[:3]:
        for n in range(0, len(window), len(window) // 12):
            one = replace(window, **{k: c[n : n + 1] for k, c in columns_of(window).items()})
            contrast.load(one, ALL)
            found = contrast.evaluate(motion, 1.0)
            dense = DenseContrast(grid, one, 1.0)
            slope, curvature = dense.derivatives(motion, "mean_square", True)
            jacobian = dense.jacobian(motion)[0]
            extent = np.abs(jacobian).sum(axis=0)  # an event moves along both axes
            bound = np.abs(slope).max() * extent
            assert bound[:6].all()
            assert bound[6:9].all() == (one.inverse_depth[0] > 0)
            assert (np.abs(found.gradient - slope[0] @ jacobian) <= 1e-3 * bound).all()
            bound = np.abs(curvature).max() * np.outer(extent, extent)
            error = np.abs(found.hessian - jacobian.T @ curvature[0] @ jacobian)
            assert (error <= 1e-3 * bound).all()


@each_back_end
@each_objective
@pytest.mark.parametrize("bin_size", [1.0, 4.0])
def test_gradient_is_the_slope_of_the_smooth_surrogate(
    back_end: str, objective: str, bin_size: float, grid: IweGrid, window: WindowEvents
):
    """d/dp of sum_i sum_j c_j kappa(x_i(p) - j), c held fixed, by finite differences."""
    contrast = make(back_end, grid, objective=objective)
    contrast.load(window, ALL)
    dense = DenseContrast(grid, window, bin_size)
    for motion in MOTIONS[:2]:
        _, cotangent = objective_of(objective, dense.image(dense.image_points(motion)))

        def surrogate(p: Float64, cotangent: Float64 = cotangent) -> float:
            return float(dense.gather(cotangent, dense.image_points(p), (cubic, cubic)).sum())

        found = contrast.evaluate(motion, bin_size)
        # Steps of the same displacement for all parameters, far below a bin.
        steps = 1e-4 / (np.sqrt(np.diag(found.scatter)) / np.sqrt(found.scatter[0, 0]))
        slopes = [
            (surrogate(motion + step * e) - surrogate(motion - step * e)) / (2 * step)
            for step, e in zip(steps, np.eye(PARAMETERS), strict=True)
        ]
        assert np.abs((found.gradient - slopes) * steps).max() < 2e-3 * np.abs(slopes * steps).max()


@each_objective
def test_objective_and_its_cotangents_are_those_of_numpy_and_scipy(objective: str):
    image = np.random.default_rng(0).gamma(0.5, size=(17, 23))
    leaf = torch.tensor(image, requires_grad=True)
    value = OBJECTIVES[objective](leaf)
    (cotangent,) = torch.autograd.grad(value, leaf)
    expected, expected_cotangent = objective_of(objective, image)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert cotangent.numpy() == pytest.approx(expected_cotangent, rel=1e-9, abs=1e-12)


# -------------------------------------------------------------------------------- other kernels


def image_coords(grid: IweGrid, window: WindowEvents, parameters: Tensor) -> Tensor:
    """(v, u) [N, 2] in pixels, by the matrix exponential; differentiable by the parameters."""
    x, y, tau, rho = (torch.tensor(c, dtype=torch.float64) for c in columns_of(window).values())
    omega, alpha, v, slope = parameters.split([3, 3, 3, 2])
    theta = tau[:, None] * omega + (tau**2 / 2)[:, None] * alpha
    cross = torch.linalg.cross(theta[:, :, None], torch.eye(3, dtype=torch.float64)[None], dim=1)
    rays = torch.stack([x, y, torch.ones_like(x)], 1)
    shift = tau * rho * (1 + rays[:, :2] @ slope)
    p = (torch.linalg.matrix_exp(cross) @ rays[:, :, None])[..., 0] + shift[:, None] * v
    uv = p[:, :2] / p[:, 2:] @ torch.tensor(grid.matrix).T + torch.tensor(grid.offset)
    return uv.flip(1)


@pytest.mark.parametrize(
    ("binning", "reconstruction"),
    [
        ("rect", "linear"),
        ("rect", "keys"),
        ("rect", "lanczos"),
        ("linear", "quadratic"),
        ("quadratic", "linear"),
        ("gaussian", "linear"),
        ("linear", "linear"),
        ("linear", None),
        ("quadratic", None),
        ("rect", None),
    ],
)
def test_any_kernels_by_autograd_of_the_binning_operator(
    binning: str, reconstruction: str | None, grid: IweGrid, window: WindowEvents
):
    """Everything a pass tells, by reverse mode through an independent warp and `bin_events`."""
    window = replace(window, **{name: c[::3].copy() for name, c in columns_of(window).items()})
    config = ContrastConfig("gradient_magnitude", binning, reconstruction)
    assert is_fused(config) == (binning == "linear" and reconstruction in ("linear", None))
    contrast = TorchContrast(grid, config, "cpu")
    contrast.load(window, ALL)
    found = contrast.evaluate(OFF, 2.0)

    parameters = torch.tensor(OFF)
    coords = image_coords(grid, window, parameters).requires_grad_()
    jacobian = torch.func.jacfwd(lambda p: image_coords(grid, window, p))(parameters)

    def binned(reconstruction: str | None) -> Tensor:
        shape = grid.bins(2.0).shape
        return bin_events(
            coords, shape=shape, binning=binning, reconstruction=reconstruction, bin_size=2.0
        )

    image = binned(reconstruction)
    value = OBJECTIVES["gradient_magnitude"](image)
    cotangent, slope = torch.autograd.grad(value, (image, coords))
    gradients = torch.einsum("ni,nip->np", slope, jacobian)
    # A kernel's own derivative may have none: the raw gradient has the curvature of another.
    smooth = torch.autograd.grad(
        (binned(reconstruction or "linear") * cotangent).sum(), coords, create_graph=True
    )[0]
    rows = [torch.autograd.grad(smooth[:, i].sum(), coords, retain_graph=True)[0] for i in (0, 1)]
    bent = torch.einsum("nij,njq->niq", torch.stack(rows, 1), jacobian)
    expected = ContrastPass(
        value.item(),
        torch.stack([gradients[part].sum(0) for part in parts_of(len(window))]).numpy(),
        torch.einsum("nip,niq->pq", jacobian, bent).numpy(),
        (gradients.T @ gradients).numpy(),
        len(window),
    )
    if binning == "rect" and reconstruction is None:
        assert not expected.gradient.any()  # a histogram is flat
        assert not found.gradient.any()
        expected = replace(expected, scatter=found.scatter + np.eye(PARAMETERS) * 1e-9)
        assert not found.scatter.any()
        assert np.abs(found.hessian - expected.hessian).max() < 1e-2 * np.abs(found.hessian).max()
    else:
        # In float32 a few events fall into the next bin, or beyond a kink.
        assert_same_pass(found, expected, 2e-2, 2e-3)


def test_kernels_without_a_fused_pass_are_refused_in_one_line(grid: IweGrid):
    for binning, reconstruction in (("rect", "linear"), ("linear", "keys"), ("quadratic", None)):
        with pytest.raises(ConfigError, match=f"'{binning}'.*the fused pass has") as caught:
            CpuContrast(grid, ContrastConfig("variance", binning, reconstruction))
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------- events of special kinds


def strangers() -> dict[str, dict[str, np.ndarray]]:
    """By their kind: events that are not to be seen on the image."""
    tau = np.linspace(-0.01, 0.01, 300, dtype=np.float32)
    some = np.linspace(-0.3, 0.3, 300, dtype=np.float32)
    nan, one = np.full_like(tau, np.nan), np.ones_like(tau)
    plain = {"x": some, "y": -some, "tau": tau, "inverse_depth": one}
    return {
        "without bearing": plain | {"x": nan, "y": nan},
        "unknown depth": plain | {"inverse_depth": nan},
        "no distance": plain | {"inverse_depth": np.full_like(tau, np.inf)},
        "behind": plain | {"tau": -abs(tau) - one / 100, "inverse_depth": 200 * one},
        "turned out of sight": plain | {"tau": one, "inverse_depth": 0 * one},
        "far beside": plain | {"x": 300 * one},
    }


# Half a turn in a second, mostly over the head, and toward the scene.
TUMBLING = np.array([2.5, -1.5, 0.3, 0.0, 0.0, 0.0, -1.5, 2.0, 1.2, -0.4, 0.3])


@each_back_end
@each_gradient
@pytest.mark.parametrize("objective", ["variance", "likelihood"])
@pytest.mark.parametrize("model", ["rotation", "all"])
def test_events_that_are_not_seen_count_for_nothing(
    back_end: str,
    model: str,
    objective: str,
    reconstruction: str | None,
    grid: IweGrid,
    window: WindowEvents,
):
    contrast = make(back_end, grid, objective=objective, reconstruction=reconstruction)
    contrast.load(window, ACTIVE[model])
    expected = contrast.evaluate(TUMBLING, 1.0)
    for kind, others in strangers().items():
        both = merged(window, others)
        contrast.load(both, ACTIVE[model])
        found = contrast.evaluate(TUMBLING, 1.0)
        assert found.events == len(both), kind
        assert_same_pass(replace(found, events=len(window)), expected, 1e-5, by_part=False)

        contrast.load(WindowEvents(**others, span_s=0.02), ACTIVE[model])
        alone = contrast.evaluate(TUMBLING, 1.0)
        empty = OBJECTIVES[objective](torch.zeros(grid.bins(1.0).shape)).item()
        assert alone.value == pytest.approx(empty, rel=1e-5), kind
        for derivative in (alone.gradients, alone.hessian, alone.scatter):
            assert not derivative.any(), kind  # nor NaN, which is true


@each_back_end
@each_gradient
def test_what_is_infinitely_far_tells_nothing_of_the_translation(
    back_end: str, reconstruction: str | None, grid: IweGrid, window: WindowEvents
):
    contrast = make(back_end, grid, reconstruction=reconstruction)
    far = replace(window, inverse_depth=np.zeros_like(window.inverse_depth))
    contrast.load(far, ALL)
    found = contrast.evaluate(OFF, 1.0)
    at_rest = OFF.copy()
    at_rest[6:] = 0
    still = contrast.evaluate(at_rest, 1.0)
    assert found.value == still.value
    assert np.array_equal(found.gradients, still.gradients)
    assert found.gradient[:6].all()
    assert not found.gradients[:, 6:].any()
    assert not found.hessian[6:].any()
    assert not found.scatter[6:].any()


@each_back_end
@each_objective
@each_gradient
def test_window_of_no_event_and_of_one(
    back_end: str,
    objective: str,
    reconstruction: str | None,
    grid: IweGrid,
    window: WindowEvents,
):
    contrast = make(back_end, grid, objective=objective, reconstruction=reconstruction)
    unbiased = reconstruction is not None
    for count in (0, 1):
        few = replace(window, **{name: c[5 : 5 + count] for name, c in columns_of(window).items()})
        contrast.load(few, ALL)
        for bin_size in BIN_SIZES:
            found = contrast.evaluate(OFF, bin_size)
            expected = DenseContrast(grid, few, bin_size).evaluate(OFF, objective, unbiased)
            assert found.value == pytest.approx(expected.value, rel=1e-4)
            assert found.events == count
            assert found.gradients.shape == (TIME_PARTS, PARAMETERS)
            assert not found.gradients[:-1].any()  # the last part has the one
            if count == 0:
                assert not found.gradients.any()
                assert not found.hessian.any()
                assert not found.scatter.any()
            else:
                assert_same_pass(found, expected, 1e-2, 1e-4)


# ------------------------------------------------------------------- windows, threads and subsets


@pytest.mark.parametrize("model", ["rotation", "full", "planar"])
@pytest.mark.parametrize("objective", ["variance", "gradient_magnitude"])
def test_fused_pass_gives_the_same_bits_at_any_number_of_threads(
    model: str, objective: str, grid: IweGrid, large: WindowEvents, numba_threads
):
    copies = 1 + 2 * PARALLEL_FROM // len(large)  # enough for the parallel build, at 2 px too
    many = replace(large, **{name: np.tile(c, copies) for name, c in columns_of(large).items()})
    assert events_taken(len(many), 1 / 2) >= PARALLEL_FROM > events_taken(len(many), 1 / 8)

    def run(threads: int) -> list[bytes]:
        contrast = CpuContrast(grid, ContrastConfig(objective))
        contrast.load(many, ACTIVE[model])
        with numba_threads(threads):
            passes = [contrast.evaluate(OFF, size, 1 / size) for size in (8.0, 2.0, 1.0)]
            image = contrast.iwe(OFF, 1.0).copy()
        arrays = [a for p in passes for a in (p.gradients, p.hessian, p.scatter, p.value)]
        return [np.asarray(a).tobytes() for a in (*arrays, image)]

    first = run(1)
    assert run(2) == first
    assert run(2) == first
    assert run(1) == first


@pytest.mark.parametrize("model", ["rotation", "full", "planar", "translation"])
def test_parallel_build_does_what_the_serial_one_does(
    model: str, grid: IweGrid, large: WindowEvents
):
    """So many copies of the events, in their order of time, that threads share them."""
    copies = 1 + PARALLEL_FROM // len(large)
    many = replace(large, **{name: c.repeat(copies) for name, c in columns_of(large).items()})
    assert len(many) >= PARALLEL_FROM > len(large)
    contrast = CpuContrast(grid, ContrastConfig())
    contrast.load(large, ACTIVE[model])
    one = contrast.evaluate(OFF, 1.0)
    contrast.load(many, ACTIVE[model])
    found = contrast.evaluate(OFF, 1.0)
    assert found.events == copies * one.events
    # Each of the events sees an image that is so many times as strong.
    expected = ContrastPass(
        one.value * copies**2,
        one.gradients * copies**2,
        one.hessian * copies**2,
        one.scatter * copies**3,
        found.events,
    )
    assert_same_pass(found, expected, 1e-4, 1e-5)


@each_back_end
def test_windows_do_not_leak_into_each_other(
    back_end: str, grid: IweGrid, large: WindowEvents, window: WindowEvents
):
    def run(contrast: Contrast, window: WindowEvents, model: str) -> list[bytes]:
        contrast.load(window, ACTIVE[model])
        passes = [contrast.evaluate(OFF, size, 1 / size) for size in (4.0, 1.0)]
        arrays = [a for p in passes for a in (p.gradients, p.hessian, p.scatter, p.value)]
        return [np.asarray(a).tobytes() for a in (*arrays, contrast.last_iwe())]

    double = replace(large, **{n: np.concatenate([c, c]) for n, c in columns_of(large).items()})
    shifted = replace(large, x=large.x + np.float32(0.1))
    order = [(window, "full"), (double, "rotation"), (large, "planar"), (shifted, "planar")]
    order += [(large, "translation"), *reversed(order)]
    contrast = make(back_end, grid)
    for one, model in order:
        assert run(contrast, one, model) == run(make(back_end, grid), one, model)


@each_back_end
def test_part_of_a_window_is_a_window(back_end: str, grid: IweGrid, large: WindowEvents):
    part = large.part(2000, 4500)
    assert len(part) == 2500
    assert part.span_s == pytest.approx(float(large.tau[4499] - large.tau[2000]))
    copy = replace(part, **{name: c.copy() for name, c in columns_of(part).items()})
    contrast = make(back_end, grid)
    found = []
    for window in (part, copy):
        contrast.load(window, ALL)
        found.append(contrast.evaluate(OFF, 1.0))
    assert_same_pass(found[0], found[1], 0.0, 0.0)
    assert found[0].events == 2500


def test_share_of_the_events_is_not_too_few():
    for events in (0, 1, 100, 4000, 50_000):
        taken = [events_taken(events, share) for share in (1.0, 1 / 2, 1 / 4, 1 / 8)]
        assert taken[0] == events
        assert taken == sorted(taken, reverse=True)
    assert events_taken(50_000, 1 / 2) == 25_000
    assert events_taken(100, 1 / 8) == 100


@each_back_end
@pytest.mark.parametrize("bin_size", [1.0, 4.0])
def test_subset_is_spread_evenly_over_the_window_in_both_paths(
    back_end: str, bin_size: float, grid: IweGrid, large: WindowEvents
):
    contrast = make(back_end, grid)
    contrast.load(large, ALL)
    found = contrast.evaluate(OFF, bin_size, 0.6)
    taken = events_taken(len(large), 0.6)
    assert found.events == taken < len(large)
    chosen = np.arange(taken) * len(large) // taken
    part = replace(large, **{name: c[chosen] for name, c in columns_of(large).items()})
    expected = DenseContrast(grid, part, bin_size).evaluate(OFF, "variance", True)
    assert_same_pass(found, expected, 1e-3)
    # The image is of all events all the same.
    dense = DenseContrast(grid, large, bin_size)
    image = contrast.iwe(OFF, bin_size)
    assert np.abs(image - dense.image(dense.image_points(OFF))).max() < 5e-3


# ------------------------------------------------------------------------------------- image grid


def test_every_bearing_lies_on_the_grid_with_room_around(small_camera: Camera, grid: IweGrid):
    b = small_camera.bearings.reshape(-1, 3).astype(np.float64)
    uv = b[:, :2] / b[:, 2:] @ grid.matrix.T + grid.offset
    assert (uv > 0.05 * np.array([grid.width, grid.height])).all()
    assert (uv < 0.95 * np.array([grid.width, grid.height])).all()
    centre = grid.offset
    assert grid.radius_px == pytest.approx(np.linalg.norm(uv - centre, axis=1).max(), rel=1e-6)
    assert grid.bins(8.0).shape == (math.ceil(grid.height / 8), math.ceil(grid.width / 8))
    # A tenth of a unit of X/Z or Y/Z is so many pixels.
    moved = np.linalg.norm(0.1 * grid.matrix, axis=0)
    assert moved == pytest.approx(0.1 * grid.focal_px)


def test_sensor_grid_is_the_sensor(small_camera: Camera):
    ideal = Camera(240, 180, small_camera.K)
    b = ideal.bearings.reshape(-1, 3).astype(np.float64)
    grid = sensor_grid(ideal)
    uv = b[:, :2] / b[:, 2:] @ grid.matrix.T + grid.offset
    expected = np.stack(np.meshgrid(np.arange(240), np.arange(180)), -1).reshape(-1, 2)
    assert np.abs(uv - expected).max() < 1e-3
    assert (grid.width, grid.height) == (240, 180)


def test_grid_of_a_camera_that_looks_aside_is_refused():
    k = np.array([[100.0, 0, -5000], [0, 100.0, 90], [0, 0, 1]])
    with pytest.raises(CalibrationError, match="no pixel looks within 65 degrees"):
        iwe_grid(Camera(240, 180, k))
