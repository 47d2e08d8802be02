"""The contrast of the image of warped events as a function of a grid of flow.

An event at x, at the time s (in spans of the window, from the reference time), comes to
x - s F(p) at the reference time, F the displacement over the window at the event's place p there,
taken from the pass before: the flow is that of the reference time, and F's change along a step does
not enter the derivatives.

`TorchFlowContrast` here is the plain reference, on any device; `flow_contrast_cpu` is its fused
twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from event_binning_grad.binning import bin_events
from event_binning_grad.binning.kernels import bspline, kernel_pair
from event_binning_grad.binning.reference import sample
from event_binning_grad.estimation.flow_grid import NodeGrid
from event_binning_grad.estimation.iwe_grid import IweGrid

Float32 = npt.NDArray[np.float32]

# An event's own vote bends the objective where the event is, on average by the integral of
# hat kappa'' times that of hat kappa (-0.55, kappa the cubic B-spline), and tells nothing about
# motion: stray events would hold the flow where it is. Half of it is taken out; without the other
# half steps overshoot in dense texture, where the curvatures of different events cancel.
OWN_CURVATURE = -0.275
# The window's start, its end, and its middle.
REFERENCES = (-0.5, 0.5, 0.0)

# Passes with bins of more than a pixel take a part of the events, but so many at least.
_MIN_TAKEN = 6000


@dataclass(frozen=True)
class FlowPass:
    """What one pass over the events tells of the contrast at some field of flow.

    Attributes:
        value: sum of the squares of the image's bins.
        gradient: [rows, cols, 2] of it by the nodes' displacements (x, y).
        hessian: [rows, cols, 3] xx, xy, yy: fixed-cotangent Hessian, without half of what the
            events' own votes give to it. What couples two nodes is counted to both, so that steps
            from it do not overshoot.
        noise: [rows, cols] sum of the squared lengths of the events' own gradients.
        support: [rows, cols] number of events. A node has the share of an event that it has in the
            event's flow.
        events: how many events the pass took.
    """

    value: float
    gradient: Float32
    hessian: Float32
    noise: Float32
    support: Float32
    events: int


class FlowContrast(Protocol):
    """The contrast of one window of events at a time, on some back end.

    Displacements are in pixels over the window's span.
    """

    def load(self, x: Float32, y: Float32, s: Float32) -> None:
        """Takes the window's events: where they are in pixels (NaN: left out), and when, in spans
        of the window from the reference time. Contiguous arrays are not copied."""
        ...

    def settle(self, nodes: NodeGrid, displacement: Float32, bin_size: float) -> None:
        """Chooses the events for passes at bin_size; their places by a field [rows, cols, 2]."""
        ...

    def evaluate(self, nodes: NodeGrid, displacement: Float32, bin_size: float) -> FlowPass:
        """One pass at a field [rows, cols, 2]; it leaves the events' places for the next."""
        ...

    def squares(
        self, nodes: NodeGrid, displacement: Float32, references: tuple[float, ...]
    ) -> tuple[float, ...]:
        """Sums of the squares of the bins of 1 px at other reference times, in spans of the window,
        by all events."""
        ...

    def last_image(self) -> Float32:
        """[H, W] image of the last of `squares` or of `picture`; valid until the next call."""
        ...

    def picture(self, nodes: NodeGrid, displacement: Float32, grid: IweGrid) -> Float32:
        """[H, W] image of all events, warped to the reference time, on a grid of 1 px."""
        ...


def part_taken(events: int, bin_size: float) -> npt.NDArray[np.int64] | slice:
    """Which of a window's events passes at bin_size take: coarse bins need fewer."""
    taken = min(events, max(_MIN_TAKEN, round(events / max(1.0, bin_size))))
    return slice(None) if taken == events else np.arange(taken) * events // taken


class TorchFlowContrast:
    """`FlowContrast` by plain torch operations, on any device."""

    def __init__(self, grid: IweGrid, unbiased: bool, device: str = "cpu") -> None:
        self._grid, self._unbiased, self._device = grid, unbiased, device
        self._kappa = kernel_pair(bspline(1), bspline(1), precision="float32").synthesis

    def load(self, x: Float32, y: Float32, s: Float32) -> None:
        self._all = torch.from_numpy(np.stack([x, y, s], 1)).to(self._device)

    def settle(self, nodes: NodeGrid, displacement: Float32, bin_size: float) -> None:
        chosen = part_taken(len(self._all), bin_size)
        rows = chosen if isinstance(chosen, slice) else torch.from_numpy(chosen).to(self._device)
        self._events = self._all[rows]
        self._places = self._settled(self._events, nodes, self._tensor(displacement))

    def evaluate(self, nodes: NodeGrid, displacement: Float32, bin_size: float) -> FlowPass:
        flow = self._tensor(displacement)
        corners, weights = _bilinear(nodes, self._places)
        warped = _warped(self._events, _looked_up(flow, corners, weights))
        coords = self._coords(warped, self._grid).requires_grad_()
        image = self._bin(coords, self._grid, bin_size)
        value = (image**2).sum()
        cotangent, slope = torch.autograd.grad(value, (image, coords))
        seen = ~coords.isnan().any(1)
        # d(v, u)/d(displacement): the grid's matrix times -s.
        jacobian = -self._events[:, 2, None, None] * coords.new_tensor(self._grid.matrix).flip(0)
        slopes = torch.where(seen[:, None], torch.einsum("ni,nij->nj", slope, jacobian), 0)
        bend = self._curvature(cotangent, coords.detach(), bin_size)
        bend = torch.einsum("nik,nij,njl->nkl", jacobian, bend, jacobian)
        bend = torch.where(seen[:, None, None], bend, 0)
        on_image = self._on_image(coords.detach(), bin_size)
        columns = torch.stack(
            [
                slopes[:, 0], slopes[:, 1], bend[:, 0, 0], bend[:, 0, 1], bend[:, 1, 1],
                (slopes**2).sum(1), on_image.to(slopes),
            ], 1,
        )  # fmt: skip
        sums = columns.new_zeros(nodes.rows * nodes.cols, columns.shape[1])
        weights = torch.where(seen[:, None], weights, 0)
        for k in range(4):
            sums.index_add_(0, corners[:, k], weights[:, k, None] * columns)
        fields = sums.view(nodes.rows, nodes.cols, -1).cpu().numpy()
        self._places = warped.detach()
        return FlowPass(
            value.item(), fields[..., :2], fields[..., 2:5], fields[..., 5], fields[..., 6],
            len(self._events),
        )  # fmt: skip

    def squares(
        self, nodes: NodeGrid, displacement: Float32, references: tuple[float, ...]
    ) -> tuple[float, ...]:
        flow = self._tensor(displacement)
        corners, weights = _bilinear(nodes, self._settled(self._all, nodes, flow))
        at_events = _looked_up(flow, corners, weights)
        found = []
        for reference in references:
            coords = self._coords(_warped(self._all, at_events, reference), self._grid)
            self._last = self._bin(coords, self._grid, 1.0)
            found.append((self._last**2).sum().item())
        return tuple(found)

    def last_image(self) -> Float32:
        return self._last.cpu().numpy()

    def picture(self, nodes: NodeGrid, displacement: Float32, grid: IweGrid) -> Float32:
        flow = self._tensor(displacement)
        corners, weights = _bilinear(nodes, self._settled(self._all, nodes, flow))
        warped = _warped(self._all, _looked_up(flow, corners, weights))
        self._last = self._bin(self._coords(warped, grid), grid, 1.0)
        return self.last_image()

    def _tensor(self, displacement: Float32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(displacement)).to(self._device)

    def _settled(self, events: Tensor, nodes: NodeGrid, flow: Tensor) -> Tensor:
        places = events[:, :2]
        for _ in range(2):
            places = _warped(events, _looked_up(flow, *_bilinear(nodes, places)))
        return places

    def _coords(self, points: Tensor, grid: IweGrid) -> Tensor:
        """(v, u) [N, 2] of points (x, y) on the image."""
        matrix, offset = points.new_tensor(grid.matrix), points.new_tensor(grid.offset)
        return (points @ matrix.T + offset).flip(1).detach()

    def _bin(self, coords: Tensor, grid: IweGrid, bin_size: float) -> Tensor:
        return bin_events(
            coords,
            shape=grid.bins(bin_size).shape,
            binning="linear",
            reconstruction="linear" if self._unbiased else None,
            bin_size=bin_size,
        )

    def _curvature(self, cotangent: Tensor, coords: Tensor, bin_size: float) -> Tensor:
        """[N, 2, 2] second derivatives by kappa'', less half of those of the events' own votes."""
        first, second = self._kappa.derivative, self._kappa.derivative.derivative
        grid = self._grid.bins(bin_size)

        def term(*kernels):
            return sample(cotangent[None], coords[None], grid, kernels)[0] / bin_size**2

        mixed = term(first, first)
        rows = [term(second, self._kappa), mixed, mixed, term(self._kappa, second)]
        own = 2 * OWN_CURVATURE / bin_size**2 * self._on_image(coords, bin_size)
        return torch.stack(rows, -1).view(-1, 2, 2) - own[:, None, None] * torch.eye(2).to(coords)

    def _on_image(self, coords: Tensor, bin_size: float) -> Tensor:
        """[N], whether events are on the image or so near that its bins reach them."""
        shape = coords.new_tensor(self._grid.bins(bin_size).shape)
        bins = coords / bin_size
        return ((bins >= -3) & (bins < shape + 2)).all(1)


def _warped(events: Tensor, flow: Tensor, reference: float = 0.0) -> Tensor:
    """[N, 2] where events (x, y, s) with a displacement [N, 2] are at a reference time."""
    return events[:, :2] + (reference - events[:, 2:]) * flow


def _bilinear(nodes: NodeGrid, places: Tensor) -> tuple[Tensor, Tensor]:
    """The four nodes [N, 4] around each place and their weights [N, 4]; NaN as the first node."""
    size = places.new_tensor([nodes.cols - 1, nodes.rows - 1])
    at = (places - places.new_tensor(nodes.origin)) / nodes.spacing_px
    at = torch.minimum(at.nan_to_num(0.0).clamp(min=0), size)
    corner = torch.minimum(at.floor(), size - 1)
    (a, b), (i, j) = (at - corner).T, corner.long().T
    first = j * nodes.cols + i
    corners = torch.stack([first, first + 1, first + nodes.cols, first + nodes.cols + 1], 1)
    return corners, torch.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b], 1)


def _looked_up(flow: Tensor, corners: Tensor, weights: Tensor) -> Tensor:
    return (flow.reshape(-1, 2)[corners] * weights[..., None]).sum(1)
