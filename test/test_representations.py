"""Ready-made representations: golden images, conventions, gradients, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import event_binning_grad
from event_binning_grad import binning
from event_binning_grad.binning import (
    average_timestamp_image,
    bin_events,
    image_of_warped_events,
    polarity_image,
    voxel_grid,
)

F64 = torch.float64
SIZE = (5, 7)


def uniform(rng: torch.Generator, *size: int, low=0.0, high=1.0) -> Tensor:
    return torch.rand(*size, generator=rng, dtype=F64) * (high - low) + low


def events(rng: torch.Generator, *size: int, margin: float = 2.0) -> Tensor:
    """Coordinates [*size, 2] in and (by a negative margin only in) around an image of SIZE."""
    rows = uniform(rng, *size, low=-margin, high=SIZE[0] - 1 + margin)
    columns = uniform(rng, *size, low=-margin, high=SIZE[1] - 1 + margin)
    return torch.stack((rows, columns), -1)


def hat(x: float) -> float:
    return max(0.0, 1 - abs(x))


def all_of_them(coords: Tensor, times: Tensor, polarity: Tensor) -> dict[str, Tensor]:
    return {
        "image of warped events": image_of_warped_events(coords, size=SIZE),
        "polarity image": polarity_image(coords, polarity, size=SIZE),
        "voxel grid": voxel_grid(coords, times, bins=4, size=SIZE, span=(0.0, 1.0)),
        "average time": average_timestamp_image(coords, times, size=SIZE),
        "average time by polarity": average_timestamp_image(
            coords, times, size=SIZE, polarity=polarity
        ),
    }


# ---------------------------------------------------------------------------------- what they hold


def test_image_of_warped_events_is_the_bilinear_vote():
    coords = torch.tensor([[0.0, 1.0], [1.25, 1.5], [7.0, 0.0]], dtype=F64)
    image = image_of_warped_events(
        coords, size=(3, 3), weights=torch.tensor([2.0, 1.0, 1.0]).double()
    )
    expected = [[0, 2, 0], [0, 0.375, 0.375], [0, 0.125, 0.125]]
    assert image.tolist() == expected


@pytest.mark.parametrize(
    "polarity",
    [
        torch.tensor([True, False, True]),
        torch.tensor([1, 0, 1], dtype=torch.uint8),
        torch.tensor([1, -1, 1], dtype=torch.int8),
        torch.tensor([1.0, -1.0, 1.0]),
    ],
    ids=["bool", "0 and 1", "-1 and 1", "float"],
)
def test_polarity_image_has_off_first_by_every_convention(polarity: Tensor):
    coords = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.5]])
    off, on = polarity_image(coords, polarity, size=(2, 2))
    assert off.tolist() == [[0, 0], [1, 0]]
    assert on.tolist() == [[0, 1], [0.5, 0.5]]


def test_polarity_image_and_its_gradient_are_those_of_two_images(rng: torch.Generator):
    coords, weights = events(rng, 3, 40), uniform(rng, 3, 40, low=0.5)
    polarity = torch.rand(3, 40, generator=rng) < 0.5
    cotangent = uniform(rng, 3, 2, *SIZE, low=-1.0)

    def parts(image: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        x, w = coords.clone().requires_grad_(), weights.clone().requires_grad_()
        result = image(x, w)
        return result, *torch.autograd.grad((result * cotangent).sum(), (x, w))

    together = parts(lambda x, w: polarity_image(x, polarity, size=SIZE, weights=w))
    apart = parts(
        lambda x, w: torch.stack(
            [image_of_warped_events(x, size=SIZE, weights=w * p) for p in (~polarity, polarity)], 1
        )
    )
    for one, other in zip(together, apart, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("time_binning", ["linear", "rect"])
@pytest.mark.parametrize("spatial", ["linear", "rect"])
def test_voxel_grid_agrees_with_loops(rng: torch.Generator, time_binning: Any, spatial: str):
    bins, (start, end) = 4, (2.0, 5.0)
    coords, times = events(rng, 2, 30), uniform(rng, 2, 30, low=start, high=end)
    signs = torch.where(torch.rand(2, 30, generator=rng) < 0.5, -1.0, 1.0).double()
    expected = np.zeros((2, bins, *SIZE))
    for b, i in np.ndindex(2, 30):
        (y, x), t = coords[b, i].tolist(), times[b, i].item()
        for k, r, c in np.ndindex(bins, *SIZE):
            if time_binning == "linear":
                in_time = hat((bins - 1) * (t - start) / (end - start) - k)
            else:
                in_time = math.floor(bins * (t - start) / (end - start)) == k
            if spatial == "linear":
                in_space = hat(y - r) * hat(x - c)
            else:
                in_space = math.floor(y + 0.5) == r and math.floor(x + 0.5) == c
            expected[b, k, r, c] += signs[b, i].item() * in_time * in_space
    grid = voxel_grid(
        coords, times, bins=bins, size=SIZE, span=(start, end), weights=signs,
        time_binning=time_binning, binning=spatial,
    )  # fmt: skip
    assert np.abs(expected).sum() > 10
    np.testing.assert_allclose(grid.numpy(), expected, atol=1e-12)


def test_linear_voxel_grid_has_its_first_and_last_bin_at_the_ends_of_the_span():
    times = torch.tensor([10.0, 10.5, 12.0, 9.75, 13.0], dtype=F64)
    grid = voxel_grid(torch.zeros(5, 2, dtype=F64), times, bins=3, size=(1, 1), span=(10.0, 12.0))
    # One each at the ends, a half each of 10.5, a quarter lost of 9.75, all of 13.
    assert grid.flatten().tolist() == [1 + 0.5 + 0.75, 0.5, 1]


@pytest.mark.parametrize("span", [(0.0, 0.03), (0.1, 0.17), (3.3, 4.6), (-0.7, 0.4)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rect_voxel_grid_holds_its_start_and_not_its_end(
    span: tuple[float, float], dtype: torch.dtype
):
    times = torch.tensor([span[0], span[1] + 1e-5 * (span[1] - span[0])], dtype=dtype)
    grid = voxel_grid(
        torch.zeros(2, 2, dtype=dtype), times, bins=7, size=(1, 1), span=span, time_binning="rect"
    )
    assert grid.flatten().tolist() == [1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rect_voxel_grid_drops_an_event_at_its_very_end(rng: torch.Generator, dtype: torch.dtype):
    for end in torch.rand(100, generator=rng, dtype=dtype):
        times = torch.stack((torch.zeros_like(end), end))
        for bins in (1, 3, 7, 10, 31):
            grid = voxel_grid(
                torch.zeros(2, 2, dtype=dtype), times, bins=bins, size=(1, 1),
                span=(0.0, end.item()), time_binning="rect",
            )  # fmt: skip
            assert grid.flatten().tolist() == [1, *[0] * (bins - 1)]


@pytest.mark.parametrize("binning", ["linear", "rect"])
def test_average_timestamp_agrees_with_loops(rng: torch.Generator, binning: str):
    coords, times = events(rng, 2, 25), uniform(rng, 2, 25)
    on = torch.rand(2, 25, generator=rng) < 0.5
    for polarity in (None, on):
        image = average_timestamp_image(
            coords, times, size=SIZE, polarity=polarity, binning=binning
        )
        groups = [torch.ones_like(on)] if polarity is None else [~on, on]
        expected = np.zeros((2, len(groups), *SIZE))
        for b, g, r, c in np.ndindex(*expected.shape):
            count = total = 0.0
            for (y, x), t, inside in zip(coords[b].tolist(), times[b], groups[g][b], strict=True):
                near = (
                    hat(y - r) * hat(x - c)
                    if binning == "linear"
                    else math.floor(y + 0.5) == r and math.floor(x + 0.5) == c
                )
                count += near * float(inside)
                total += near * float(inside) * float(t)
            expected[b, g, r, c] = total / count if count else 0.0
        assert 0 < (expected == 0).sum() < expected.size  # some pixels are empty, some are not
        np.testing.assert_allclose(image.reshape(expected.shape), expected, atol=1e-12)


def test_prior_count_is_so_many_events_at_time_zero():
    coords, times = torch.zeros(3, 2).double(), torch.tensor([1.0, 2.0, 5.0]).double()
    image = average_timestamp_image(coords, times, size=(1, 2), prior_count=2.0)
    assert image.tolist() == [[8 / 5, 0]]


def test_time_surface_summed_over_the_events_by_weights():
    coords, times = torch.zeros(2, 2, dtype=F64), torch.tensor([-0.02, -0.01], dtype=F64)
    times.requires_grad_()
    surface = image_of_warped_events(coords, size=(1, 1), weights=(times / 0.01).exp())
    assert surface.item() == pytest.approx(math.exp(-2) + math.exp(-1))
    surface.sum().backward()
    assert times.grad is not None
    assert times.grad.tolist() == pytest.approx([100 * math.exp(-2), 100 * math.exp(-1)])


# ------------------------------------------------------------------------------- general properties


def test_inside_the_image_nothing_is_lost(rng: torch.Generator):
    coords, times = events(rng, 50, margin=0.0), uniform(rng, 50)
    weights, polarity = uniform(rng, 50), torch.rand(50, generator=rng) < 0.5
    total = weights.sum().item()
    image = image_of_warped_events(coords, size=SIZE, weights=weights)
    assert image.sum().item() == pytest.approx(total)
    by_polarity = polarity_image(coords, polarity, size=SIZE, weights=weights).sum((-1, -2))
    assert by_polarity.tolist() == pytest.approx(
        [weights[~polarity].sum().item(), weights[polarity].sum().item()]
    )
    grid = voxel_grid(coords, times, bins=5, size=SIZE, span=(0.0, 1.0), weights=weights)
    torch.testing.assert_close(grid.sum(0), image)


def test_any_leading_batch_dimensions_are_images_of_their_own(rng: torch.Generator):
    coords, times = events(rng, 2, 3, 20), uniform(rng, 2, 3, 20)
    polarity = torch.rand(2, 3, 20, generator=rng) < 0.5
    batch = all_of_them(coords, times, polarity)
    for b, c in np.ndindex(2, 3):
        for name, single in all_of_them(coords[b, c], times[b, c], polarity[b, c]).items():
            assert single.shape[-2:] == SIZE
            torch.testing.assert_close(batch[name][b, c], single, atol=0, rtol=0)


def test_no_events_give_zeros():
    nothing = torch.zeros(2, 0, 2, requires_grad=True)
    for image in all_of_them(nothing, torch.zeros(2, 0), torch.zeros(2, 0)).values():
        assert image.shape[0] == 2
        assert image.shape[-2:] == SIZE
        assert not image.any()
        image.sum().backward()


def test_events_at_nan_are_dropped_with_gradients_of_zero(rng: torch.Generator):
    coords, times = events(rng, 20, margin=0.0), uniform(rng, 20)
    polarity = torch.rand(20, generator=rng) < 0.5
    coords[::4] = math.nan
    left = ~coords.isnan().any(-1)
    without = all_of_them(coords[left], times[left], polarity[left])
    coords.requires_grad_()
    for name, image in all_of_them(coords, times, polarity).items():
        torch.testing.assert_close(image, without[name])
        (gradient,) = torch.autograd.grad(image.square().sum(), coords)
        assert not gradient[~left].any(), name
        assert gradient[left].isfinite().all(), name


def test_half_precision_under_autocast_is_computed_in_single(rng: torch.Generator):
    coords, times = events(rng, 20, margin=0.0).bfloat16(), uniform(rng, 20).bfloat16()
    polarity = torch.rand(20, generator=rng) < 0.5
    single = all_of_them(coords.float(), times.float(), polarity)
    with torch.autocast("cpu", torch.bfloat16):
        for name, image in all_of_them(coords, times, polarity).items():
            torch.testing.assert_close(image, single[name], atol=0, rtol=0)


def test_they_compile_without_graph_breaks(rng: torch.Generator):
    coords, times = events(rng, 2, 20).requires_grad_(), uniform(rng, 2, 20).requires_grad_()
    polarity = torch.rand(2, 20, generator=rng) < 0.5

    def loss(coords: Tensor, times: Tensor, polarity: Tensor) -> Tensor:
        images = all_of_them(coords, times, polarity).values()
        return torch.stack([image.square().sum() for image in images])

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = [f(coords, times, polarity) for f in (compiled, loss)]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(result.sum(), (coords, times)) for result in results]
    torch.testing.assert_close(*gradients)


# ---------------------------------------------------------------------------------------- gradients

SMOOTH: dict[str, Any] = {"size": SIZE, "binning": "cubic", "reconstruction": None}


@pytest.mark.parametrize(
    "image",
    [
        lambda x, t, p: image_of_warped_events(x, weights=t, **SMOOTH),
        lambda x, t, p: polarity_image(x, p, weights=t, **SMOOTH),
        lambda x, t, p: voxel_grid(
            x, t, bins=4, span=(0.0, 1.0), time_reconstruction=None, **SMOOTH
        ),
        lambda x, t, p: average_timestamp_image(x, t, **SMOOTH),
        lambda x, t, p: average_timestamp_image(x, t, polarity=p, prior_count=0.5, **SMOOTH),
    ],
    ids=["image of warped events", "polarity image", "voxel grid", "average time", "polarities"],
)
def test_raw_gradients_of_a_smooth_kernel_are_those_of_finite_differences(
    rng: torch.Generator, image: Callable[[Tensor, Tensor, Tensor], Tensor]
):
    coords, times = events(rng, 2, 6, margin=0.0), uniform(rng, 2, 6)
    polarity = torch.rand(2, 6, generator=rng) < 0.5
    inputs = (coords.requires_grad_(), times.requires_grad_())
    assert gradcheck(lambda x, t: image(x, t, polarity), inputs, fast_mode=True)


def test_times_of_a_voxel_grid_have_the_gradient_of_the_synthesis_kernel():
    # One event a quarter of a bin after the centre of bin 1, bins of 0.5 in time; in y and x it is
    # on a pixel's centre. The derivative of the cubic B-spline at the centres of bins 0 to 3:
    #   -(1-r)^2/2, (3r^2-4r)/2, (-3r^2+2r+1)/2, r^2/2  at r = 1/4
    slopes = [-0.28125, -0.40625, 0.65625, 0.03125]
    times = torch.tensor([0.625], dtype=F64, requires_grad=True)
    for k, slope in enumerate(slopes):
        grid = voxel_grid(
            torch.zeros(1, 2, dtype=F64), times, bins=4, size=(1, 1), span=(0.0, 1.5),
            binning="rect", reconstruction=None,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(grid[k].sum(), times)
        assert gradient.item() == pytest.approx(slope / 0.5)


def test_gradient_of_the_average_time_by_the_times_is_the_share_of_each(rng: torch.Generator):
    coords, times = events(rng, 12, margin=0.0), uniform(rng, 12).requires_grad_()
    image = average_timestamp_image(coords, times, size=SIZE, reconstruction="linear")
    (gradient,) = torch.autograd.grad(image.sum(), times)
    count = image_of_warped_events(coords, size=SIZE)
    shares = [
        sum(
            hat(y - r) * hat(x - c) / count[r, c].item()
            for r, c in np.ndindex(*SIZE)
            if count[r, c] > 0
        )
        for y, x in coords.tolist()
    ]
    assert gradient.tolist() == pytest.approx(shares)


def slopes_over_a_bin(
    loss: Callable[[Tensor, Tensor], Tensor], rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The loss's gradient by a velocity, and its central difference over a pixel, at 13 of them.

    The events are of 40 points that move with (3, -5) pixels in the window.
    """
    times = uniform(rng, 2000)
    points = uniform(rng, 40, 2, low=10.0, high=40.0)[torch.randint(40, (2000,), generator=rng)]
    velocity = torch.tensor([3.0, -5.0], dtype=F64)
    noise = 0.2 * torch.randn(2000, 2, generator=rng, dtype=F64)
    coords = points + noise + times[:, None] * velocity

    def at(velocity: Tensor) -> Tensor:
        return loss(coords - times[:, None] * velocity, times)

    found, expected = [], []
    step = torch.tensor([1.0, 0.0], dtype=F64)
    for off in torch.linspace(-3, 3, 13, dtype=F64):
        there = (velocity + off * step).requires_grad_()
        found.append(torch.autograd.grad(at(there), there)[0][0])
        with torch.no_grad():
            expected.append((at(there + step) - at(there - step)) / 2)
    return torch.stack(found), torch.stack(expected)


@pytest.mark.parametrize(
    ("loss", "low", "high"),
    [
        (lambda x, t: image_of_warped_events(x, size=(50, 50)).var(), 0.6, 1.1),
        (lambda x, t: image_of_warped_events(x, size=(50, 50), binning="rect").var(), 0.5, 1.1),
        (
            lambda x, t: (
                average_timestamp_image(x, t, size=(50, 50), prior_count=1.0).square().sum()
            ),
            0.9,
            1.3,
        ),
    ],
    ids=["variance, linear", "variance, rect", "average time with a prior count"],
)
def test_gradients_point_where_the_loss_goes_over_a_pixel(
    rng: torch.Generator, loss: Callable[[Tensor, Tensor], Tensor], low: float, high: float
):
    found, expected = slopes_over_a_bin(loss, rng)
    assert torch.corrcoef(torch.stack((found, expected)))[0, 1] > 0.9
    assert low < (found @ expected) / (expected @ expected) < high


def test_kernels_for_y_and_x_may_differ(rng: torch.Generator):
    coords = events(rng, 20)
    image = polarity_image(coords, torch.ones(20), size=SIZE, binning=("rect", "cubic"))[1]
    expected = bin_events(coords, shape=SIZE, binning=("rect", "cubic"))
    torch.testing.assert_close(image, expected, atol=0, rtol=0)


# ------------------------------------------------------------------------------------------- errors

X, T = torch.zeros(4, 2), torch.zeros(4)
GRID: dict[str, Any] = {"bins": 3, "size": SIZE, "span": (0.0, 1.0)}


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: image_of_warped_events(X[:, :1], size=SIZE), ValueError, r"\[..., N, 2\], \(y, x"),
        (lambda: image_of_warped_events(X, size=(5,)), ValueError, r"size is \(5,\); expected"),
        (lambda: polarity_image(X, T, size=5), ValueError, r"size is 5; expected \(H, W\)"),  # type: ignore[arg-type]
        (lambda: image_of_warped_events(X.half(), size=SIZE), TypeError, "float16"),
        (lambda: image_of_warped_events(X, size=SIZE, binning="box"), ValueError, "'box'"),
        (lambda: polarity_image(X, torch.ones(3), size=SIZE), ValueError, "polarity have shape"),
        (
            lambda: polarity_image(X, T, size=SIZE, binning=("rect",) * 3),
            ValueError,
            "binning is .*expected one, or 2 of them",
        ),
        (lambda: voxel_grid(X, T.long(), **GRID), TypeError, "times are torch.int64; expected"),
        (lambda: voxel_grid(X, T[1:], **GRID), ValueError, r"times have shape \(3,\); expected"),
        (lambda: voxel_grid(X, T, **{**GRID, "bins": 1}), ValueError, "bins is 1; .*at least 2"),
        (lambda: voxel_grid(X, T, **{**GRID, "span": (1, 1)}), ValueError, "span is"),
        (lambda: voxel_grid(X, T, time_binning="cubic", **GRID), ValueError, "time_binning is"),  # type: ignore[arg-type]
        (lambda: average_timestamp_image(X, T.double(), size=SIZE), TypeError, "times are"),
        (
            lambda: average_timestamp_image(X, T, size=SIZE, prior_count=-1),
            ValueError,
            "prior_count is -1",
        ),
    ],
)  # fmt: skip
def test_errors_say_what_was_found_and_expected(
    call: Callable[[], Tensor], kind: type[Exception], words: str
):
    with pytest.raises(kind, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", sorted({*event_binning_grad.__all__} - {"Pipeline", "PipelineConfig"})
)
def test_the_package_gives_the_operators_names_on_demand(name: str):
    assert getattr(event_binning_grad, name) is getattr(binning, name)
    assert name in binning.__all__
