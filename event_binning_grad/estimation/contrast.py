"""Contrast of the image of warped events (IWE) under a moving camera, with its derivatives.

The events' image at the reference time (`motion` has the warp) is binned; the objective, by
default the image's variance, says how sharp it is. The gradient is the unbiased one of the binning
operator. The Hessian is the fixed-cotangent one: with c_j = dL/dh_j held fixed, sum_i J_i^T [sum_j
c_j kappa''] J_i. The term left out nearly cancels because the reference time is amid the events:
those before and after it pull a pixel opposite ways.

This module is the plain torch path, on any device and for any kernels, through `bin_events`.
`contrast_cpu` and `contrast_cuda` are its fused twins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from event_binning_grad.binning import bin_events
from event_binning_grad.binning.kernels import Kernel, bspline, kernel, kernel_pair
from event_binning_grad.binning.reference import sample
from event_binning_grad.estimation.iwe_grid import IweGrid
from event_binning_grad.estimation.motion import ALPHA, OMEGA, PARAMETERS, SLOPE, V
from event_binning_grad.estimation.objectives import OBJECTIVES
from event_binning_grad.geometry.rotation import rotate

if TYPE_CHECKING:
    from event_binning_grad.estimation.solver import Level, Scaling, Solution

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

# Points nearer to the image plane's horizon than this (z of a point whose z was 1) are left out.
MIN_DEPTH = 0.1

# Parts of a window in time whose gradients are told apart: where the motion model does not fit,
# they do not agree.
TIME_PARTS = 8


@dataclass(frozen=True)
class ContrastConfig:
    """What is maximised, and by which gradient.

    Attributes:
        objective: a name of OBJECTIVES.
        binning: name of the kernel that bins the events.
        reconstruction: name of the kernel that makes the gradient unbiased; None for the raw
            gradient of the binning itself.
    """

    objective: str = "variance"
    binning: str = "linear"
    reconstruction: str | None = "linear"


@dataclass(frozen=True)
class ContrastPass:
    """What one pass over the events tells of the contrast at some motion parameters.

    P parameters are estimated.

    Attributes:
        value: of the objective.
        gradients: [TIME_PARTS, P], the share of each part of the window, of equally many events
            one after the other; their sum is the gradient.
        hessian: [P, P] fixed-cotangent Hessian.
        scatter: [P, P] sum over the events of the outer products of their gradients.
        events: how many events the pass took.
    """

    value: float
    gradients: Float64
    hessian: Float64
    scatter: Float64
    events: int

    @property
    def gradient(self) -> Float64:
        """[P]."""
        return self.gradients.sum(axis=0)


@dataclass(frozen=True)
class WindowEvents:
    """A window's events as the contrast needs them, in the order of time.

    Attributes:
        x, y: [N] float32 X/Z and Y/Z of the events' bearings, NaN where the pixel has none.
        tau: [N] float32 seconds from the reference time.
        inverse_depth: [N] float32 1/m; 0 is infinitely far; 1 where depth is not known.
        span_s: the window's duration.
    """

    x: Float32
    y: Float32
    tau: Float32
    inverse_depth: Float32
    span_s: float

    def __len__(self) -> int:
        return len(self.tau)

    def part(self, first: int, last: int) -> WindowEvents:
        """The events from `first` to before `last`, as views."""
        x, y, tau, inverse_depth = (
            column[first:last] for column in (self.x, self.y, self.tau, self.inverse_depth)
        )
        return WindowEvents(x, y, tau, inverse_depth, float(tau[-1] - tau[0]))


class Contrast(Protocol):
    """The contrast of one window of events at a time, on some back end."""

    def load(self, window: WindowEvents, active: npt.NDArray[np.int64]) -> None:
        """Takes the window that the other methods are about, and the indices of the parameters
        to be estimated; the window's arrays are not copied."""
        ...

    def evaluate(self, parameters: Float64, bin_size: float, share: float = 1.0) -> ContrastPass:
        """One pass at motion parameters [11], with bins of bin_size pixels, over a share of the
        events (`events_taken`), spread evenly in time."""
        ...

    def iwe(self, parameters: Float64, bin_size: float) -> Float32:
        """[H, W] image of all warped events at motion parameters [11]; valid until the next call.

        The last image of `evaluate` is lost by it."""
        ...

    def last_iwe(self) -> Float32:
        """[H, W] image of the last pass; valid until the next call."""
        ...

    def solve(
        self,
        start: Float64,
        scaling: Scaling,
        levels: Sequence[Level],
        tolerance_px: float,
        max_steps: int,
        is_late: Callable[[], bool],
    ) -> Solution:
        """`solver.maximise` over the events and parameters that were loaded."""
        ...

    def gain_and_structure(self) -> tuple[float, float]:
        """How sharp the last image of `solve` is: its variance over that of all events unmoved, and
        `trust.structure` of it. The image is lost by it."""
        ...


# Passes over a share of the events take at least so many.
_MIN_TAKEN = 4000


def events_taken(events: int, share: float) -> int:
    """How many of a window's events a pass takes that is for a share of them: not too few."""
    return min(events, max(_MIN_TAKEN, round(events * share)))


class HostContrast(ABC):
    """What contrasts have in common whose passes the host waits for."""

    _solved_bin_size = 1.0
    _squares: float
    """What an event adds to the image's sum of squares, in the mean over positions in its bin."""

    @abstractmethod
    def evaluate(self, parameters: Float64, bin_size: float, share: float = 1.0) -> ContrastPass:
        """See `Contrast`."""

    @abstractmethod
    def iwe(self, parameters: Float64, bin_size: float) -> Float32:
        """See `Contrast`."""

    @abstractmethod
    def last_iwe(self) -> Float32:
        """See `Contrast`."""

    def solve(
        self,
        start: Float64,
        scaling: Scaling,
        levels: Sequence[Level],
        tolerance_px: float,
        max_steps: int,
        is_late: Callable[[], bool],
    ) -> Solution:
        """See `Contrast`."""
        from event_binning_grad.estimation.solver import Point, maximise

        def evaluate(scaled: Float64, level: Level) -> Point:
            self._solved_bin_size = level.bin_size
            one = self.evaluate(scaling.motion(scaled), level.bin_size, level.share)
            return scaling.point(one, scaled)

        return maximise(evaluate, start, levels, tolerance_px, max_steps, is_late)

    def gain_and_structure(self) -> tuple[float, float]:
        """See `Contrast`."""
        from event_binning_grad.estimation.trust import LINEAR_SQUARES, structure

        image = self.last_iwe()
        structured = float(structure(image)) * LINEAR_SQUARES / self._squares
        variance = float(image.var())
        at_rest = float(self.iwe(np.zeros(PARAMETERS), self._solved_bin_size).var())
        return variance / max(at_rest, 1e-12), structured


class TorchContrast(HostContrast):
    """`Contrast` by plain torch operations, on any device, with any kernels."""

    def __init__(self, grid: IweGrid, config: ContrastConfig, device: str) -> None:
        self._grid = grid
        self._config = config
        self._device = device
        self._matrix = torch.tensor(grid.matrix, dtype=torch.float32, device=device)
        self._offset = torch.tensor(grid.offset, dtype=torch.float32, device=device)
        self._kappa = _curvature_kernel(config)
        u = np.linspace(-8, 8, 8001)
        self._squares = (float((kernel(config.binning)(u) ** 2).sum()) * (u[1] - u[0])) ** 2

    def load(self, window: WindowEvents, active: npt.NDArray[np.int64]) -> None:
        columns = (window.x, window.y, window.tau, window.inverse_depth)
        self._columns = torch.from_numpy(np.stack(columns)).to(self._device)
        self._active = torch.from_numpy(active).to(self._device)

    def iwe(self, parameters: Float64, bin_size: float) -> Float32:
        coords = self._coords(self._columns.new_tensor(parameters), self._columns)
        self._image = self._bin(coords, bin_size)
        return self.last_iwe()

    def last_iwe(self) -> Float32:
        return self._image.detach().cpu().numpy()

    def evaluate(self, parameters: Float64, bin_size: float, share: float = 1.0) -> ContrastPass:
        total = self._columns.shape[1]
        taken = events_taken(total, share)
        columns = self._columns[:, torch.arange(taken, device=self._device) * total // taken]
        vector = columns.new_tensor(parameters)
        coords = self._coords(vector, columns).requires_grad_()
        self._image = self._bin(coords, bin_size)
        value = OBJECTIVES[self._config.objective](self._image)
        cotangent, slope = torch.autograd.grad(value, (self._image, coords))
        # [N, 2, P]; events that are not projected have no slope, and must not have a NaN.
        jacobian = torch.func.jacfwd(self._coords)(vector, columns)[..., self._active]
        jacobian = torch.where(coords.isnan().any(1)[:, None, None], 0, jacobian)
        slopes = torch.einsum("ni,nip->np", slope, jacobian)
        curvature = self._curvature(cotangent, coords.detach(), bin_size)
        bent = torch.einsum("nij,njq->niq", curvature, jacobian)
        edges = [taken * n // TIME_PARTS for n in range(TIME_PARTS + 1)]
        parts = [slopes[start:stop].sum(0) for start, stop in pairwise(edges)]
        return ContrastPass(
            value.item(),
            _float64(torch.stack(parts)),
            _float64(torch.einsum("nip,niq->pq", jacobian, bent)),
            _float64(slopes.T @ slopes),
            taken,
        )

    def _coords(self, parameters: Tensor, columns: Tensor) -> Tensor:
        """(v, u) [N, 2] of the events' images at the reference time; NaN for those behind."""
        x, y, tau, inverse_depth = columns[:, :, None]
        theta = parameters[OMEGA] * tau + parameters[ALPHA] * (tau**2 / 2)
        bearings = torch.cat([x, y, torch.ones_like(x)], 1)
        relative = 1 + bearings[:, :2] @ parameters[SLOPE, None]
        points = rotate(theta, bearings) + tau * inverse_depth * relative * parameters[V]
        depth = torch.where(points[:, 2:] > MIN_DEPTH, points[:, 2:], torch.nan)
        return (points[:, :2] / depth @ self._matrix.T + self._offset).flip(1)

    def _bin(self, coords: Tensor, bin_size: float) -> Tensor:
        return bin_events(
            coords,
            shape=self._grid.bins(bin_size).shape,
            binning=self._config.binning,
            reconstruction=self._config.reconstruction,
            bin_size=bin_size,
        )

    def _curvature(self, cotangent: Tensor, coords: Tensor, bin_size: float) -> Tensor:
        """[N, 2, 2] second derivatives by kappa''."""
        kappa = self._kappa
        first, second = kappa.derivative, kappa.derivative.derivative
        grid = self._grid.bins(bin_size)

        def term(*kernels):
            return sample(cotangent[None], coords[None], grid, kernels)[0] / bin_size**2

        mixed = term(first, first)
        rows = [term(second, kappa), mixed, mixed, term(kappa, second)]
        return torch.stack(rows, -1).view(-1, 2, 2)


def _curvature_kernel(config: ContrastConfig):
    """kappa of the Hessian. The raw gradient has no curvature of its own (a hat is straight), so it
    is given that of a linear reconstruction and differs in the gradient alone."""
    binning: Kernel = kernel(config.binning)
    reconstruction = bspline(1) if config.reconstruction is None else kernel(config.reconstruction)
    return kernel_pair(binning, reconstruction, precision="float32").synthesis


def _float64(tensor: Tensor) -> Float64:
    return tensor.detach().double().cpu().numpy()
