"""The flow contrast's CUDA path: fused Triton kernels.

Twin of `flow_contrast_cpu.CpuFlowContrast`. A pass is a copy of the field to the device, three
launches and a copy of the nodes' sums back, which is all that the host waits for: clear; warp the
events and add their votes by atomic operations; sum the image's squares and gather the nodes'
derivatives. The events, their places and the images stay on the device, in memory that is kept from
window to window.

Atomic additions run in no fixed order: the last digits differ from run to run. Triton 3.4 or newer
is needed, which torch 2.8 and newer bring for CUDA.
"""

# Triton reads the kernels' source and makes its own of `tl.range`, tuples and annotations.
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from event_binning_grad.estimation.flow_contrast import OWN_CURVATURE, FlowPass, part_taken
from event_binning_grad.estimation.flow_grid import NodeGrid
from event_binning_grad.estimation.image_cuda import add_votes, derivatives
from event_binning_grad.estimation.iwe_grid import IweGrid

Float32 = npt.NDArray[np.float32]

# Events a program of the scatter and of the gather, one a thread; bins a program of the sums.
SCATTER, GATHER, BINS = 256, 64, 2048

# Sums of a node: gradient (2), Hessian (3), noise, support, nothing.
_SUMS = 8
# Rounds by which the events' places settle.
_ROUNDS = 2


class CudaFlowContrast:
    """`flow_contrast.FlowContrast` by the fused kernels.

    Args:
        grid: the image plane.
        unbiased: whether the gradient is the unbiased one.
        device: a torch device.
    """

    def __init__(self, grid: IweGrid, unbiased: bool, device: str = "cuda") -> None:
        self._grid, self._unbiased, self._device = grid, unbiased, torch.device(device)
        # Kept from window to window: nothing is allocated in the steady state.
        self._to_events, self._to_field = _Channel(self._device), _Channel(self._device)
        self._old, self._new = (torch.empty(0, device=self._device) for _ in range(2))
        self._memory = torch.empty(0, device=self._device)
        self._taken = 0

    def load(self, x: Float32, y: Float32, s: Float32) -> None:
        with self._on_device():
            self._all = (self._to_events.send(x, y, s), len(x))

    def settle(self, nodes: NodeGrid, displacement: Float32, bin_size: float) -> None:
        events, count = self._all
        chosen = part_taken(count, bin_size)
        self._taken = count if isinstance(chosen, slice) else len(chosen)
        with self._on_device():
            if len(self._old) < 2 * self._taken:
                room = 2 * _room(self._taken)
                self._old, self._new = (torch.empty(room, device=self._device) for _ in range(2))
            _launch(
                _settle_kernel, (-(-self._taken // SCATTER),), SCATTER // 32,
                events, count, self._taken, self._old, self._to_field.send(displacement),
                *_numbers(nodes), ROUNDS=_ROUNDS, BLOCK=SCATTER,
            )  # fmt: skip

    def evaluate(self, nodes: NodeGrid, displacement: Float32, bin_size: float) -> FlowPass:
        shape = self._grid.bins(bin_size).shape
        with self._on_device():
            sums, images = self._cleared(_SUMS * nodes.rows * nodes.cols + 1, 1, shape)
            projection = _projection(self._grid, bin_size)
            self._scatter(nodes, displacement, (0.0,), images, projection, self._taken, 0)
            programs = max(-(-self._taken // GATHER), -(-images.numel() // BINS))
            _launch(
                _gather_kernel, (programs,), GATHER // 32,
                images, *shape, *self._all, self._taken, self._old, self._new, sums,
                *_numbers(nodes), *projection, UNBIASED=self._unbiased, BLOCK=GATHER, BINS=BINS,
            )  # fmt: skip
            found = sums.to("cpu", copy=True).numpy()
        self._old, self._new = self._new, self._old
        fields = found[:-1].reshape(nodes.rows, nodes.cols, _SUMS)
        return FlowPass(
            float(found[-1]), fields[..., :2], fields[..., 2:5], fields[..., 5], fields[..., 6],
            self._taken,
        )  # fmt: skip

    def squares(
        self, nodes: NodeGrid, displacement: Float32, references: tuple[float, ...]
    ) -> tuple[float, ...]:
        with self._on_device():
            sums = self._render(nodes, displacement, self._grid, references)
            return tuple(sums.tolist())

    def last_image(self) -> Float32:
        return self._last.to("cpu", copy=True).numpy()

    def picture(self, nodes: NodeGrid, displacement: Float32, grid: IweGrid) -> Float32:
        with self._on_device():
            self._render(nodes, displacement, grid, (0.0,))
        return self.last_image()

    def _render(
        self,
        nodes: NodeGrid,
        displacement: Float32,
        grid: IweGrid,
        references: tuple[float, ...],
    ) -> Tensor:
        """The images of all events at reference times; returns the sums of their squares."""
        shape = grid.bins(1.0).shape
        sums, images = self._cleared(len(references), len(references), shape)
        projection, (_, count) = _projection(grid, 1.0), self._all
        self._scatter(nodes, displacement, references, images, projection, count, _ROUNDS)
        size = images[0].numel()
        programs = (-(-size // BINS), len(references))
        _launch(_square_kernel, programs, 4, images, size, sums, BINS=BINS)
        self._last = images[-1]
        return sums

    def _scatter(
        self,
        nodes: NodeGrid,
        displacement: Float32,
        references: tuple[float, ...],
        images: Tensor,
        projection: tuple[float, ...],
        taken: int,
        rounds: int,
    ) -> None:
        """Adds the events' votes to the image of every reference time; without rounds to settle in
        their places are the old ones, and the new ones are kept."""
        sent = self._to_field.send(displacement, np.array(references, np.float32))
        _launch(
            _scatter_kernel, (-(-taken // SCATTER), len(references)), SCATTER // 32,
            images, *images.shape[1:], *self._all, taken, self._old, self._new, sent,
            *_numbers(nodes), *projection, ROUNDS=rounds, BLOCK=SCATTER,
        )  # fmt: skip

    def _cleared(self, sums: int, images: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Zeros for sums, and for images [images, rows, cols]: one stretch of memory."""
        size = sums + images * shape[0] * shape[1]
        if len(self._memory) < size:
            self._memory = torch.empty(_room(size), device=self._device)
        cleared = self._memory[:size].zero_()
        return cleared[:sums], cleared[sums:].view(images, *shape)

    def _on_device(self) -> AbstractContextManager[Any]:
        # Triton launches on the current device, wherever the tensors are.
        is_cuda = self._device.type == "cuda"
        return torch.cuda.device(self._device) if is_cuda else nullcontext()


class _Channel:
    """Memory on the host and its like on the device: by it arrays go there without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._is_cuda = device, device.type == "cuda"
        self._here = self._there = torch.empty(0)
        self._copied = torch.cuda.Event() if self._is_cuda else None

    def send(self, *arrays: Float32) -> Tensor:
        """The arrays, one after the other, on the device; valid until the next are sent."""
        size = sum(array.size for array in arrays)
        if self._copied is not None:
            self._copied.synchronize()  # what was sent before is read from there
        if len(self._here) <= size:
            self._here = torch.empty(_room(size), pin_memory=self._is_cuda)
            self._there = torch.empty(_room(size), device=self._device)
        np.concatenate([array.ravel() for array in arrays], out=self._here.numpy()[:size])
        self._there[:size].copy_(self._here[:size], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return self._there


def _room(size: int) -> int:
    """How much to allocate where this much is needed."""
    return max(4096, 1 << size.bit_length())


def _projection(grid: IweGrid, bin_size: float) -> tuple[float, ...]:
    """Rows u, v in bins: m0, m1, offset."""
    rows = np.column_stack([grid.matrix, grid.offset]) / bin_size
    return tuple(float(number) for number in rows.ravel())


def _numbers(nodes: NodeGrid) -> tuple[float, ...]:
    """Rows and columns of the nodes, origin (x, y), density."""
    return (nodes.rows, nodes.cols, *nodes.origin, 1 / nodes.spacing_px)


def _launch(
    kernel: Any, programs: tuple[int, ...], warps: int, *arguments: Any, **constants: Any
) -> None:
    if all(programs):
        kernel[programs](*arguments, **constants, num_warps=warps)


# -------------------------------------------------------------------------------------- the kernels
#
# One event a thread. Only what the language has built in is called, no library function: it works
# in the interpreter, too, whenever that is switched on.

_NODE_SUMS, _OWN = tl.constexpr(_SUMS), tl.constexpr(OWN_CURVATURE)

# No variants for sizes that are 1 or divisible by 16, nor for addresses that are: every window has
# its own, and would wait for the compiler.
_JIT: dict[str, Any] = {
    "do_not_specialize": ["size", "rows", "cols", "total", "taken", "node_rows", "node_cols"],
    "do_not_specialize_on_alignment": ["image", "events", "old", "new", "flow", "sums"],
}


@triton.jit
def _event(events, total, taken, i, live):
    """x, y and time of the i-th of the events taken, which are spread evenly."""
    # 64 bits: the product of two numbers of events.
    column = events + i.to(tl.int64) * total // tl.maximum(taken, 1)
    x = tl.load(column, mask=live, other=float("nan"))
    y = tl.load(column + total, mask=live, other=0.0)
    return x, y, tl.load(column + 2 * total, mask=live, other=0.0)


@triton.jit
def _between(place, origin, density, count):
    """The node before each place along an axis, and how far on to the next it is; NaN: node 0."""
    at = (place - origin) * density
    at = tl.where(at > 0, at, 0.0)
    last = (count - 1).to(tl.float32)
    at = tl.where(at < last, at, last)
    whole = tl.minimum(at.to(tl.int32), count - 2)
    return whole, at - whole.to(tl.float32)


@triton.jit
def _find_cell(x, y, node_rows, node_cols, x0, y0, density):
    """The first of the four nodes about each place, and the weights of the four."""
    i, a = _between(x, x0, density, node_cols)
    j, b = _between(y, y0, density, node_rows)
    c, d = 1 - a, 1 - b
    return j * node_cols + i, (c * d, a * d, c * b, a * b)


@triton.jit
def _look_up(flow, x, y, node_rows, node_cols, x0, y0, density):
    """The displacements at places."""
    cell, weights = _find_cell(x, y, node_rows, node_cols, x0, y0, density)
    w00, w01, w10, w11 = weights
    upper = flow + 2 * cell
    lower = upper + 2 * node_cols
    fx = w00 * tl.load(upper) + w01 * tl.load(upper + 2)
    fx += w10 * tl.load(lower) + w11 * tl.load(lower + 2)
    fy = w00 * tl.load(upper + 1) + w01 * tl.load(upper + 3)
    fy += w10 * tl.load(lower + 1) + w11 * tl.load(lower + 3)
    return fx, fy


@triton.jit
def _settled(x, y, s, flow, node_rows, node_cols, x0, y0, density, ROUNDS: tl.constexpr):
    """The places that the events have at the reference time."""
    px, py = x, y
    for _ in tl.static_range(ROUNDS):
        fx, fy = _look_up(flow, px, py, node_rows, node_cols, x0, y0, density)
        px, py = x - s * fx, y - s * fy
    return px, py


@triton.jit(**_JIT)
def _settle_kernel(
    events, total, taken, old, flow, node_rows, node_cols, x0, y0, density,
    ROUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Places [2 * taken] (all x, then all y) of the events taken."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < taken
    x, y, s = _event(events, total, taken, i, live)
    px, py = _settled(x, y, s, flow, node_rows, node_cols, x0, y0, density, ROUNDS)
    tl.store(old + i, px, mask=live)
    tl.store(old + taken + i, py, mask=live)


@triton.jit(**_JIT)
def _scatter_kernel(
    image, rows, cols, events, total, taken, old, new, flow, node_rows, node_cols, x0, y0, density,
    p00, p01, p02, p10, p11, p12, ROUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Programs (n, m): adds the votes of the n-th block of events at the m-th reference time, which
    stands behind the flow, to the m-th image."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < taken
    x, y, s = _event(events, total, taken, i, live)
    if ROUNDS > 0:
        px, py = _settled(x, y, s, flow, node_rows, node_cols, x0, y0, density, ROUNDS)
    else:
        px = tl.load(old + i, mask=live, other=0.0)
        py = tl.load(old + taken + i, mask=live, other=0.0)
    fx, fy = _look_up(flow, px, py, node_rows, node_cols, x0, y0, density)
    later = tl.load(flow + 2 * node_rows * node_cols + tl.program_id(1)) - s
    x, y = x + later * fx, y + later * fy
    if ROUNDS == 0:
        tl.store(new + i, x, mask=live)
        tl.store(new + taken + i, y, mask=live)
    u, v = p00 * x + p01 * y + p02, p10 * x + p11 * y + p12
    add_votes(image + tl.program_id(1) * rows * cols, rows, cols, u, v)


@triton.jit
def _add_squares(image, size, to, BINS: tl.constexpr):
    """Adds the squares of a program's bins of an image."""
    first = tl.program_id(0) * BINS
    if first < size:
        at = first + tl.arange(0, BINS)
        h = tl.load(image + at, mask=at < size, other=0.0)
        tl.atomic_add(to, tl.sum(h * h, 0), sem="relaxed")


@triton.jit(**_JIT)
def _square_kernel(image, size, sums, BINS: tl.constexpr):
    """Programs (n, m): those of the m-th image's bins to the m-th sum."""
    which = tl.program_id(1)
    _add_squares(image + which * size, size, sums + which, BINS)


@triton.jit(**_JIT)
def _gather_kernel(
    image, rows, cols, events, total, taken, old, new, sums, node_rows, node_cols, x0, y0, density,
    p00, p01, p02, p10, p11, p12,
    UNBIASED: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Adds every event's terms to its four nodes' sums, and behind them the bins' squares."""
    _add_squares(image, rows * cols, sums + _NODE_SUMS * node_rows * node_cols, BINS)
    first = tl.program_id(0) * BLOCK
    if first >= taken:
        return
    i = first + tl.arange(0, BLOCK)
    live = i < taken
    _x, _y, s = _event(events, total, taken, i, live)
    x = tl.load(new + i, mask=live, other=float("nan"))
    y = tl.load(new + taken + i, mask=live, other=0.0)
    u, v = p00 * x + p01 * y + p02, p10 * x + p11 * y + p12
    # Beyond, no bin is within the kernel's reach.
    seen = (u >= -3) & (u < cols + 2) & (v >= -3) & (v < rows + 2)  # false for NaN
    su, sv, uu, uv, vv = derivatives(image, rows, cols, u, v, seen, 0.0, UNBIASED)
    time = -2 * s
    gx, gy = time * (p00 * su + p10 * sv), time * (p01 * su + p11 * sv)
    time = time * -s
    uu -= _OWN
    vv -= _OWN
    au, av = p00 * uu + p10 * uv, p00 * uv + p10 * vv
    bu, bv = p01 * uu + p11 * uv, p01 * uv + p11 * vv
    terms = (
        gx, gy, time * (p00 * au + p10 * av), time * (p01 * au + p11 * av),
        time * (p01 * bu + p11 * bv), gx * gx + gy * gy,
    )  # fmt: skip
    px = tl.load(old + i, mask=live, other=0.0)
    py = tl.load(old + taken + i, mask=live, other=0.0)
    cell, weights = _find_cell(px, py, node_rows, node_cols, x0, y0, density)
    for k in tl.static_range(4):
        to = sums + _NODE_SUMS * (cell + (k // 2) * node_cols + k % 2)
        for n in tl.static_range(6):
            tl.atomic_add(to + n, weights[k] * terms[n], mask=seen, sem="relaxed")
        tl.atomic_add(to + 6, weights[k], mask=seen, sem="relaxed")
