"""The contrast's CUDA path: fused Triton kernels, and whole climbs as CUDA graphs.

Twin of `contrast_cpu.CpuContrast`. A pass is five kernels: clear the image; warp the events and add
their votes by atomic operations; sum the image; warp again and gather the derivatives; step. What
they need lies in the device's memory (`solver_cuda.STATE`), so the passes of a climb are queued
without waiting for any; they are captured once for every size of bins, and replayed. The host reads
the state at the end.

Atomic additions run in no fixed order: the last digits differ from run to run. Triton 3.4 or newer
is needed, which torch 2.8 and newer bring for CUDA.
"""

# Triton reads the kernels' source and makes its own of `tl.range`, tuples and annotations.
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from event_binning_grad.errors import ConfigError
from event_binning_grad.estimation.contrast import (
    MIN_DEPTH,
    TIME_PARTS,
    ContrastConfig,
    ContrastPass,
    Float32,
    Float64,
    WindowEvents,
    events_taken,
)
from event_binning_grad.estimation.image_cuda import add_votes, derivatives
from event_binning_grad.estimation.iwe_grid import IweGrid
from event_binning_grad.estimation.objectives import OBJECTIVES
from event_binning_grad.estimation.solver import Level, Scaling, Solution
from event_binning_grad.estimation.solver_cuda import (
    NO_PLANE,
    STATE,
    WIDTH,
    State,
    new_state,
    place,
    step_kernel,
)
from event_binning_grad.estimation.trust import STRUCTURE_CELL

# Events a program of the scatter and of the gather, one a thread; bins a program of the others.
SCATTER, GATHER, BINS = 256, 64, 4096
_FEWEST = 4096  # that there is room for

# Passes that a level's graph holds. Those behind the last that is needed find nothing to do, at the
# price of their launch; a window that needs more gets the graphs again.
PASSES = 6

# Objectives whose cotangent is the image itself but for a constant and a factor.
_NATIVE = ("variance", "mean_square")


@dataclass(frozen=True)
class _Plane:
    """An image of warped events with bins of one size, as the kernels see it.

    Attributes:
        number: by which the state names it.
        bin_size: pixels.
        projection: rows u, v in bins: m0, m1, offset.
        image: [rows, cols].
        cotangent: where the derivatives are gathered: the image itself, or one of its size.
        value: of the objective, where it is not made of the image's sums.
        at_rest: [rows, cols] image of the events unmoved.
    """

    number: int
    bin_size: float
    projection: tuple[float, ...]
    image: Tensor
    cotangent: Tensor
    value: Tensor
    at_rest: Tensor


class CudaContrast:
    """`contrast.Contrast` by the fused kernels, and whole climbs on the device.

    Args:
        grid: the image plane.
        config: what is maximised; kernels that `contrast_cpu.is_fused` knows.
        device: a torch device.

    Raises:
        ConfigError: there are no fused kernels for these.
    """

    def __init__(self, grid: IweGrid, config: ContrastConfig, device: str = "cuda") -> None:
        if config.binning != "linear" or config.reconstruction not in ("linear", None):
            raise ConfigError(
                f"binning {config.binning!r} with reconstruction {config.reconstruction!r}: the "
                "fused pass has 'linear' with 'linear' or none"
            )
        self._grid = grid
        self._config = config
        self._device = torch.device(device)
        self._is_cuda = self._device.type == "cuda"
        # Kept from window to window: the graphs go on reading from the same addresses.
        self._state = torch.zeros(STATE.itemsize // 4, device=device)
        self._sent = torch.zeros(STATE.itemsize // 4, pin_memory=self._is_cuda)
        self._planes: dict[float, _Plane] = {}
        self._graphs: dict[tuple[str, int], torch.cuda.CUDAGraph] = {}
        self._capacity = 0
        self._copied = torch.cuda.Event() if self._is_cuda else None

    def load(self, window: WindowEvents, active: npt.NDArray[np.int64]) -> None:
        self._count, self._active = len(window), active
        columns = (window.x, window.y, window.tau, window.inverse_depth)
        with self._on_device():
            if self._count > self._capacity:
                self._make_room(self._count)
            if self._copied is not None:
                self._copied.synchronize()  # the copy of the window before reads from there
            used = slice(4 * self._count)
            np.concatenate(columns, out=self._staged.numpy()[used])
            self._events[used].copy_(self._staged[used], non_blocking=True)
            if self._copied is not None:
                self._copied.record()

    def iwe(self, parameters: Float64, bin_size: float) -> Float32:
        with self._on_device():
            self._last = self._plane(bin_size)
            self._send(self._state_at(parameters, self._count))
            self._queue_image(self._last, "image_sums")
        return self.last_iwe()

    def last_iwe(self) -> Float32:
        return self._last.image.cpu().numpy()

    def evaluate(self, parameters: Float64, bin_size: float, share: float = 1.0) -> ContrastPass:
        with self._on_device():
            self._last = self._plane(bin_size)
            taken = events_taken(self._count, share)
            self._send(self._state_at(parameters, taken))
            self._queue_pass(self._last)
            return self._pass(self._received(), self._last, taken)

    def solve(
        self,
        start: Float64,
        scaling: Scaling,
        levels: Sequence[Level],
        tolerance_px: float,
        max_steps: int,
        is_late: Callable[[], bool] = lambda: False,
    ) -> Solution:
        """`solver.maximise` on the device, over the events and parameters that were loaded.

        The host reads the state when the passes of all levels' graphs are through, which nearly
        always is the end; only where it is not, it asks whether it `is_late`.

        Args:
            start: [P] pixels.
            scaling: what the solver's parameters mean.
            levels, tolerance_px, max_steps, is_late: see `solver.maximise`.
        """
        with self._on_device():
            planes = [self._plane(level.bin_size) for level in levels]
            numbers = [plane.number for plane in planes]
            state = new_state(
                start, scaling, self._count, levels, numbers, tolerance_px,
                max_steps,
            )  # fmt: skip
            late = False
            self._send(state)
            while state["plane"] != NO_PLANE and not late:
                self._run(planes)
                state = self._received()
                late = bool(state["plane"] != NO_PLANE and is_late())
        # Late, the last pass may have been at any level.
        level = min(int(state["level"]), len(planes) - 1)
        self._last = planes[level]
        self._solved, self._late = state, late
        evaluated, parameters = (
            state[name][self._active].astype(np.float64) for name in ("evaluated", "parameters")
        )
        return Solution(
            parameters,
            scaling.point(self._pass(state, self._last, int(state["taken"][level])), evaluated),
            levels[level],
            float(state["last_step"]),
            int(state["evaluations"]),
            int(state["events"]),
            late,
        )

    def gain_and_structure(self) -> tuple[float, float]:
        """How sharp the last image of `solve` is: its variance over that of all events unmoved, and
        `trust.structure`. They came with the solution; NaN where that was late."""
        if self._late:
            return math.nan, math.nan
        bins, state = self._last.image.numel(), self._solved
        at_rest, image = (_variance(state[name], bins) for name in ("rest_sums", "image_sums"))
        excess, events = (float(value) for value in state["structure_sums"])
        return image / max(at_rest, 1e-12), excess / max(events * (4 / 9), 1e-12)

    # ------------------------------------------------------------------ between host and device

    def _on_device(self) -> AbstractContextManager[Any]:
        # Triton launches on the current device, wherever the tensors are.
        return torch.cuda.device(self._device) if self._is_cuda else nullcontext()

    def _make_room(self, events: int) -> None:
        self._capacity = max(_FEWEST, 1 << (events - 1).bit_length())
        self._events = torch.zeros(4 * self._capacity, device=self._device)
        self._staged = torch.zeros(4 * self._capacity, pin_memory=self._is_cuda)
        self._graphs.clear()

    def _state_at(self, parameters: Float64, taken: int) -> State:
        """The state for a single pass."""
        state = np.zeros((), STATE)
        state["motion"][: len(parameters)] = parameters
        state["total"], state["taken"][0] = self._count, taken
        state["plane"] = self._last.number
        return state

    def _send(self, state: State) -> None:
        # What was sent before has arrived: whoever sent it has read an answer.
        self._sent.numpy()[:] = np.frombuffer(state.tobytes(), np.float32)
        self._state.copy_(self._sent, non_blocking=True)

    def _received(self) -> State:
        return np.frombuffer(self._state.cpu().numpy().tobytes(), STATE)[0]

    def _pass(self, state: State, plane: _Plane, taken: int) -> ContrastPass:
        """The last pass, of the active parameters alone."""
        value = float(state["value"])
        if self._config.objective == "variance":
            value = _variance(state["image_sums"], plane.image.numel())
        elif self._config.objective == "mean_square":
            value = float(state["image_sums"][1]) / plane.image.numel()
        gradients, hessian, scatter = (
            state[name].astype(np.float64) for name in ("gradients", "hessian", "scatter")
        )
        rows, columns = np.ix_(self._active, self._active)
        factor = self._factor(plane)
        return ContrastPass(
            value,
            factor * gradients[:, self._active],
            factor * hessian[rows, columns],
            factor**2 * scatter[rows, columns],
            taken,
        )

    # --------------------------------------------------------------------------- what is queued

    def _run(self, planes: Sequence[_Plane]) -> None:
        """Queues passes at the planes of all levels, and what tells how sharp the last image is."""
        for plane in planes:
            self._replay(self._queue_level, plane)
        self._replay(self._queue_sharpness, planes[-1])

    def _replay(self, queue: Callable[[_Plane], None], plane: _Plane) -> None:
        """Queues by `queue`; from the second time on as a graph. At the first use of a kernel there
        is something to compile, which must not be during a capture."""
        key = queue.__name__, plane.number
        if key in self._graphs:
            self._graphs[key].replay()
            return
        queue(plane)
        if self._is_cuda:
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                queue(plane)
            self._graphs[key] = graph

    def _queue_level(self, plane: _Plane) -> None:
        for _ in range(PASSES):
            self._queue_pass(plane)
            _launch(step_kernel, (1,), 1, *self._memory, plane.number, self._factor(plane))

    def _queue_sharpness(self, plane: _Plane) -> None:
        # The image of all events unmoved; NO_PLANE: whatever the state's.
        self._queue_image(replace(plane, image=plane.at_rest, number=NO_PLANE), "rest_sums")
        rows, cols = plane.image.shape
        cells = (rows // STRUCTURE_CELL, cols // STRUCTURE_CELL)
        _launch(_structure_kernel, cells, 1, plane.image, cols, self._state, CELL=STRUCTURE_CELL)

    def _queue_pass(self, plane: _Plane) -> None:
        self._queue_image(plane, "image_sums")
        if self._config.objective not in _NATIVE:
            # Also where there is nothing to do: then nobody looks at it.
            image = plane.image.detach().requires_grad_()
            value = OBJECTIVES[self._config.objective](image)
            plane.cotangent.copy_(torch.autograd.grad(value, image)[0])
            plane.value.copy_(value.detach())
        _launch(
            _gather_kernel, (-(-self._capacity // (TIME_PARTS * GATHER)), TIME_PARTS), GATHER // 32,
            plane.cotangent, *plane.image.shape, self._events, *self._memory, plane.number,
            *plane.projection, plane.value,
            # Beyond the border the image is as good as its mean: leaving it earns nothing.
            FILLED=self._config.objective == "variance",
            UNBIASED=self._config.reconstruction is not None,
            BLOCK=GATHER,
        )  # fmt: skip

    def _queue_image(self, plane: _Plane, sums: str) -> None:
        """The image of warped events, and its sums."""
        programs = (-(-plane.image.numel() // BINS),)
        bins = plane.image, plane.image.numel(), *self._memory, plane.number
        end = "rest_sums" if sums == "image_sums" else None
        cleared = (place(end) if end else STATE.itemsize // 4) - place(sums)
        _launch(_clear_kernel, programs, 4, *bins, place(sums), cleared, BLOCK=BINS)
        _launch(
            _scatter_kernel, (-(-self._capacity // SCATTER),), SCATTER // 32,
            plane.image, *plane.image.shape, self._events, *self._memory, plane.number,
            *plane.projection, MOVED=plane.number != NO_PLANE, BLOCK=SCATTER,
        )  # fmt: skip
        _launch(_reduce_kernel, programs, 4, *bins, place(sums), BLOCK=BINS)

    @property
    def _memory(self) -> tuple[Tensor, Tensor]:
        """The state as integers and as numbers."""
        return self._state.view(torch.int32), self._state

    def _factor(self, plane: _Plane) -> float:
        """Of the cotangent image, which the gather leaves out."""
        return 2 / plane.image.numel() if self._config.objective in _NATIVE else 1.0

    def _plane(self, bin_size: float) -> _Plane:
        if bin_size not in self._planes:
            shape = self._grid.bins(bin_size).shape
            image, at_rest = (torch.zeros(shape, device=self._device) for _ in range(2))
            is_native = self._config.objective in _NATIVE
            projection = np.column_stack([self._grid.matrix, self._grid.offset]) / bin_size
            self._planes[bin_size] = _Plane(
                len(self._planes),
                bin_size,
                tuple(float(number) for number in projection.ravel()),
                image,
                image if is_native else torch.zeros_like(image),
                image.new_zeros(()),
                at_rest,
            )
        return self._planes[bin_size]


def _variance(sums: Any, bins: int) -> float:
    """From the sum of the bins and that of their squares."""
    total, square = (float(value) for value in sums)
    return square / bins - (total / bins) ** 2


def _launch(
    kernel: Any, programs: tuple[int, ...], warps: int, *arguments: Any, **constants: Any
) -> None:
    if all(programs):
        kernel[programs](*arguments, **constants, num_warps=warps)


# -------------------------------------------------------------------------------------- the kernels
#
# One event a thread. Only what the language has built in is called, no library function: it works
# in the interpreter, too, whenever that is switched on.

_LEVEL, _PLANE, _TOTAL, _TAKEN = (
    tl.constexpr(place(name)) for name in ("level", "plane", "total", "taken")
)
_MOTION, _NOWHERE, _VALUE = (tl.constexpr(place(name)) for name in ("motion", "nowhere", "value"))
_IMAGE_SUMS, _GRADIENTS, _HESSIAN, _SCATTER, _STRUCTURE = (
    tl.constexpr(place(name))
    for name in ("image_sums", "gradients", "hessian", "scatter", "structure_sums")
)
_WIDTH, _TIME_PARTS = tl.constexpr(WIDTH), tl.constexpr(TIME_PARTS)
_NO_PLANE, _MIN_DEPTH = tl.constexpr(NO_PLANE), tl.constexpr(MIN_DEPTH)

# No variants for sizes that are 1 or divisible by 16, nor for addresses that are: none must be
# compiled while a graph is captured.
_JIT: dict[str, Any] = {
    "do_not_specialize": ["size", "rows", "cols", "plane", "sums_at", "cleared"],
    "do_not_specialize_on_alignment": ["image", "cotangent", "events", "ints", "floats", "value"],
}


@triton.jit
def _idle(ints, plane):
    """Whether the state is not at the plane that a kernel was queued for."""
    return (plane != _NO_PLANE) & (tl.load(ints + _PLANE) != plane)


@triton.jit(**_JIT)
def _clear_kernel(image, size, ints, floats, plane, sums_at, cleared, BLOCK: tl.constexpr):
    """Zeros in the image and in that many sums of the state."""
    if _idle(ints, plane):
        return
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    zero = tl.full((BLOCK,), 0, tl.float32)
    tl.store(image + at, zero, mask=at < size)
    tl.store(floats + sums_at + at, zero, mask=at < cleared)


@triton.jit(**_JIT)
def _reduce_kernel(image, size, ints, floats, plane, sums_at, BLOCK: tl.constexpr):
    """Adds the image's bins and their squares."""
    if _idle(ints, plane):
        return
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    h = tl.load(image + at, mask=at < size, other=0.0)
    tl.atomic_add(floats + sums_at, tl.sum(h, 0), sem="relaxed")
    tl.atomic_add(floats + sums_at + 1, tl.sum(h * h, 0), sem="relaxed")


@triton.jit
def _so3_coefficients(s):
    """sin(a)/a, (1 - cos a)/a^2, (a - sin a)/a^3 of s = a^2: series, float32-exact up to a = pi."""
    a = 1 - s * (1 / 110) * (1 - s * (1 / 156) * (1 - s * (1 / 210) * (1 - s * (1 / 272))))
    a = 1 - s * (1 / 20) * (1 - s * (1 / 42) * (1 - s * (1 / 72) * a))
    b = 1 - s * (1 / 90) * (1 - s * (1 / 132) * (1 - s * (1 / 182) * (1 - s * (1 / 240))))
    b = 0.5 * (1 - s * (1 / 12) * (1 - s * (1 / 30) * (1 - s * (1 / 56) * b)))
    c = a * (1 / 6)
    return 1 - s * c, b, c


@triton.jit
def _event(events, total, taken, i, live):
    """x, y, tau and inverse depth of the i-th of the events taken, which are spread evenly."""
    # 64 bits: the product of two numbers of events.
    column = events + i.to(tl.int64) * total // tl.maximum(taken, 1)
    x = tl.load(column, mask=live, other=float("nan"))
    y = tl.load(column + total, mask=live, other=0.0)
    tau = tl.load(column + 2 * total, mask=live, other=0.0)
    rho = tl.load(column + 3 * total, mask=live, other=0.0)
    return x, y, tau, rho


@triton.jit
def _warp(x, y, tau, rho, motion, p00, p01, p02, p10, p11, p12):
    """theta, rotated bearings, images of the points (x, y, 1 / z), tau * rho * (1 + slope . (x,
    y)), and bins (u, v): NaN for what is behind the image plane."""
    h = tau * tau * 0.5
    rx = tl.load(motion) * tau + tl.load(motion + 3) * h
    ry = tl.load(motion + 1) * tau + tl.load(motion + 4) * h
    rz = tl.load(motion + 2) * tau + tl.load(motion + 5) * h
    squared = rx * rx + ry * ry + rz * rz
    a, b, _third = _so3_coefficients(squared)
    c = 1 - b * squared
    d = b * (rx * x + ry * y + rz)
    qx = c * x + a * (ry - rz * y) + d * rx
    qy = c * y + a * (rz * x - rx) + d * ry
    qz = c + a * (rx * y - ry * x) + d * rz
    shift = tau * rho * (1 + tl.load(motion + 9) * x + tl.load(motion + 10) * y)
    pz = qz + shift * tl.load(motion + 8)
    near = pz > _MIN_DEPTH
    inverse = tl.where(near, 1 / tl.where(near, pz, 1.0), float("nan"))
    px = (qx + shift * tl.load(motion + 6)) * inverse
    py = (qy + shift * tl.load(motion + 7)) * inverse
    u = p00 * px + p01 * py + p02
    v = p10 * px + p11 * py + p12
    return (rx, ry, rz), (qx, qy, qz), (px, py, inverse), shift, u, v


@triton.jit(**_JIT)
def _scatter_kernel(
    image, rows, cols, events, ints, floats, plane, p00, p01, p02, p10, p11, p12,
    MOVED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the bilinear votes of the warped events: those that a pass takes, or all, unmoved."""
    if _idle(ints, plane):
        return
    total = tl.load(ints + _TOTAL)
    if MOVED:
        taken = tl.load(ints + _TAKEN + tl.load(ints + _LEVEL))
        motion = floats + _MOTION
    else:
        taken = total
        motion = floats + _NOWHERE
    first = tl.program_id(0) * BLOCK
    if first >= taken:
        return
    i = first + tl.arange(0, BLOCK)
    x, y, tau, rho = _event(events, total, taken, i, i < taken)
    _theta, _rotated, _point, _shift, u, v = _warp(
        x, y, tau, rho, motion, p00, p01, p02, p10, p11, p12
    )
    add_votes(image, rows, cols, u, v)


@triton.jit
def _covectors(theta, rotated, point, p0, p1):
    """d(u or v)/d point, and J_l(theta)^T (rotated x that), which is d(u or v)/d theta."""
    px, py, inverse = point
    dx, dy, dz = p0 * inverse, p1 * inverse, -(p0 * px + p1 * py) * inverse
    x, y, z = rotated
    a, b, c = y * dz - z * dy, z * dx - x * dz, x * dy - y * dx
    rx, ry, rz = theta
    _sine, versine, third = _so3_coefficients(rx * rx + ry * ry + rz * rz)
    ox, oy, oz = ry * c - rz * b, rz * a - rx * c, rx * b - ry * a
    a += third * (ry * oz - rz * oy) - versine * ox
    b += third * (rz * ox - rx * oz) - versine * oy
    c += third * (rx * oy - ry * ox) - versine * oz
    return (dx, dy, dz), (a, b, c)


@triton.jit
def _pick(k, three):
    """[BLOCK, 16]: column by column one of three."""
    return tl.where(
        k == 0, three[0][:, None], tl.where(k == 1, three[1][:, None], three[2][:, None])
    )


@triton.jit
def _jacobian(column, times, offsets, by_point, by_theta, motion):
    """[BLOCK, 16] d(u or v)/d parameters, zero behind the eleventh.

    times: what theta and the point move by for a unit of omega, alpha and v; offsets: what tau rho
    does for a unit of the slopes.
    """
    k = column % 3
    dx, dy, dz = by_point
    along = dx * tl.load(motion + 6) + dy * tl.load(motion + 7) + dz * tl.load(motion + 8)
    moved = tl.where(
        column < 3, times[0][:, None],
        tl.where(column < 6, times[1][:, None], times[2][:, None]),
    )  # fmt: skip
    moved = moved * tl.where(column < 6, _pick(k, by_theta), _pick(k, by_point))
    bent = along[:, None] * tl.where(column == 9, offsets[0][:, None], offsets[1][:, None])
    return tl.where(column < 9, moved, tl.where(column < 11, bent, 0.0))


@triton.jit
def _or_zeros(seen, three):
    return (
        tl.where(seen, three[0], 0.0),
        tl.where(seen, three[1], 0.0),
        tl.where(seen, three[2], 0.0),
    )


@triton.jit(**_JIT)
def _gather_kernel(
    cotangent, rows, cols, events, ints, floats, plane, p00, p01, p02, p10, p11, p12, value,
    FILLED: tl.constexpr, UNBIASED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the gradient, the Hessian and the scatter matrix of the events' gradients: programs (n,
    m) those of the window's m-th part."""
    if _idle(ints, plane):
        return
    total, taken = tl.load(ints + _TOTAL), tl.load(ints + _TAKEN + tl.load(ints + _LEVEL))
    part = tl.program_id(1)
    first = taken * part // _TIME_PARTS + tl.program_id(0) * BLOCK
    stop = taken * (part + 1) // _TIME_PARTS
    if first >= stop:
        return
    i = first + tl.arange(0, BLOCK)
    motion = floats + _MOTION
    x, y, tau, rho = _event(events, total, taken, i, i < stop)
    theta, rotated, point, shift, u, v = _warp(x, y, tau, rho, motion, p00, p01, p02, p10, p11, p12)
    # Beyond, all taps are the border's, and their slopes cancel.
    seen = (u >= -3) & (u < cols + 2) & (v >= -3) & (v < rows + 2)
    border = 0.0
    if FILLED:
        border = tl.load(floats + _IMAGE_SUMS) / (rows * cols)
    slope_u, slope_v, uu, uv, vv = derivatives(cotangent, rows, cols, u, v, seen, border, UNBIASED)
    # What is not seen may be NaN, and must not meet the zero that it counts for.
    slope_u, slope_v = tl.where(seen, slope_u, 0.0), tl.where(seen, slope_v, 0.0)
    uu, uv, vv = tl.where(seen, uu, 0.0), tl.where(seen, uv, 0.0), tl.where(seen, vv, 0.0)
    rotated, point = _or_zeros(seen, rotated), _or_zeros(seen, point)
    times = _or_zeros(seen, (tau, tau * tau * 0.5, shift))
    reach = tau * rho
    offsets = _or_zeros(seen, (reach * x, reach * y, reach))
    column = tl.arange(0, _WIDTH)[None, :]
    by_point, by_theta = _covectors(theta, rotated, point, p00, p01)
    by_u = _jacobian(column, times, offsets, by_point, by_theta, motion)
    by_point, by_theta = _covectors(theta, rotated, point, p10, p11)
    by_v = _jacobian(column, times, offsets, by_point, by_theta, motion)
    gradient = by_u * slope_u[:, None] + by_v * slope_v[:, None]
    bent_u = by_u * uu[:, None] + by_v * uv[:, None]
    bent_v = by_u * uv[:, None] + by_v * vv[:, None]
    # Not in TF32, which keeps ten bits.
    hessian = tl.dot(tl.trans(by_u), bent_u, input_precision="ieee")
    hessian = tl.dot(tl.trans(by_v), bent_v, hessian, input_precision="ieee")
    scatter = tl.dot(tl.trans(gradient), gradient, input_precision="ieee")
    row = tl.arange(0, _WIDTH)
    tile = row[:, None] * _WIDTH + row[None, :]
    to_gradient = floats + _GRADIENTS + part * _WIDTH
    tl.atomic_add(to_gradient + row, tl.sum(gradient, 0), sem="relaxed")
    tl.atomic_add(floats + _HESSIAN + tile, hessian, sem="relaxed")
    tl.atomic_add(floats + _SCATTER + tile, scatter, sem="relaxed")
    if (part == 0) & (tl.program_id(0) == 0):
        tl.store(floats + _VALUE, tl.load(value))


@triton.jit(**_JIT)
def _structure_kernel(image, cols, floats, CELL: tl.constexpr):
    """Adds what `trust.structure` sums, of one cell."""
    row = tl.program_id(0) * CELL + tl.arange(0, CELL)
    column = tl.program_id(1) * CELL + tl.arange(0, CELL)
    h = tl.load(image + (row[:, None] * cols + column[None, :]))
    events = tl.sum(tl.sum(h, 1), 0)
    squares = tl.sum(tl.sum(h * h, 1), 0)
    excess = squares - events * events / (CELL * CELL)
    tl.atomic_add(floats + _STRUCTURE, excess, sem="relaxed")
    tl.atomic_add(floats + _STRUCTURE + 1, events, sem="relaxed")
