"""The solver's state on the GPU, and its Newton step as one Triton kernel.

Twin of `solver.maximise` that the host need not watch: the steps of all levels are queued in
advance, and the state says what is still to be done. Every kernel of a pass is told the image plane
that it works on, one for every size of bins, and does nothing unless the state is at that plane;
the step kernel goes on to the next level's where `maximise` would.

The parameters are all 11 of `motion`, padded to 16. Those that are not estimated have a unit of
zero: their rows and columns of the Hessian vanish, and so do their steps.
"""

# Triton reads the kernels' source and makes its own of `tl.range`, tuples and annotations.
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import triton
import triton.language as tl

from event_binning_grad.errors import ConfigError
from event_binning_grad.estimation import solver
from event_binning_grad.estimation.contrast import TIME_PARTS, Float64, events_taken
from event_binning_grad.estimation.solver import Level, Scaling

WIDTH = 16
"""The parameters, padded to a power of two."""
MAX_LEVELS = 8
NO_PLANE = -1

STATE = np.dtype(
    [
        # What is to be done: the level at work and its plane, NO_PLANE after the last; all levels'
        # planes; the window's events and those that a pass of each level takes.
        ("level", "i4"),
        ("plane", "i4"),
        ("planes", "i4", MAX_LEVELS + 1),
        ("max_steps", "i4"),
        ("total", "i4"),
        ("taken", "i4", MAX_LEVELS),
        ("step_limits", "f4", MAX_LEVELS),
        ("tolerances", "f4", MAX_LEVELS),
        # Parameters of the motion = fixed + unit * those of the solver, which are in pixels.
        ("fixed", "f4", WIDTH),
        ("unit", "f4", WIDTH),
        ("prior_mean", "f4", WIDTH),
        ("prior_information", "f4", WIDTH),
        # Where the climb is: of the motion, of the solver, and at the last pass.
        ("nowhere", "f4", WIDTH),  # the motion of a camera at rest
        ("motion", "f4", WIDTH),
        ("parameters", "f4", WIDTH),
        ("evaluated", "f4", WIDTH),
        ("previous", "f4", WIDTH),
        ("last_gradient", "f4", WIDTH),
        ("step_limit", "f4"),
        ("steps", "i4"),  # at this level
        ("last_step", "f4"),
        ("evaluations", "i4"),
        ("events", "i4"),
        # The last pass. The value is the objective's where it is not made of the image's sums: of
        # the bins, and of their squares. The derivatives' sums are by the cotangent image without
        # its factor.
        ("value", "f4"),
        ("image_sums", "f4", 2),
        ("gradients", "f4", (TIME_PARTS, WIDTH)),
        ("hessian", "f4", (WIDTH, WIDTH)),
        ("scatter", "f4", (WIDTH, WIDTH)),
        # Of the image at rest the sums as above; of the last image those of `trust.structure`.
        ("rest_sums", "f4", 2),
        ("structure_sums", "f4", 2),
    ]
)
"""One block of memory, sent before a window and read after it."""
State = npt.NDArray[np.void]


def place(field: str) -> int:
    """Where a field of the state begins, in numbers of four bytes."""
    fields: Any = STATE.fields
    return fields[field][1] // 4


def new_state(
    start: Float64,
    scaling: Scaling,
    events: int,
    levels: Sequence[Level],
    planes: Sequence[int],
    tolerance_px: float,
    max_steps: int,
) -> State:
    """The state before a climb.

    Args:
        start: [P] pixels.
        scaling: what the parameters mean.
        events: of the window.
        levels, tolerance_px, max_steps: see `solver.maximise`.
        planes: of every level.

    Raises:
        ConfigError: no levels, or more than there is room for.
    """
    count, bins = len(levels), np.array([level.bin_size for level in levels])
    if not 0 < count <= MAX_LEVELS:
        raise ConfigError(f"{count} levels: expected 1 to {MAX_LEVELS}")
    state = np.zeros((), STATE)
    state["max_steps"], state["total"] = max_steps, events
    state["planes"] = NO_PLANE
    state["planes"][:count], state["plane"] = planes, planes[0]
    state["taken"][:count] = [events_taken(events, level.share) for level in levels]
    state["step_limits"][:count] = solver.MAX_STEP_BINS * bins
    state["step_limit"] = state["step_limits"][0]
    state["tolerances"][:count] = solver.COARSE_TOLERANCE_BINS * bins
    state["tolerances"][count - 1] = tolerance_px
    state["fixed"][: len(scaling.fixed)] = scaling.fixed
    active = scaling.active
    state["fixed"][active] = 0
    state["unit"][active] = 1 / scaling.scales
    state["prior_mean"][active] = scaling.prior_mean
    state["prior_information"][active] = scaling.prior_information
    state["parameters"][active] = start
    state["motion"] = state["fixed"] + state["unit"] * state["parameters"]
    return state


# ---------------------------------------------------------------------------------- the step kernel

_WIDTH, _LAST = tl.constexpr(WIDTH), tl.constexpr(MAX_LEVELS - 1)
_LEVEL, _PLANE, _PLANES, _MAX_STEPS, _TAKEN, _STEP_LIMITS, _TOLERANCES = (
    tl.constexpr(place(name))
    for name in ("level", "plane", "planes", "max_steps", "taken", "step_limits", "tolerances")
)
_FIXED, _UNIT, _PRIOR_MEAN, _PRIOR_INFORMATION = (
    tl.constexpr(place(name)) for name in ("fixed", "unit", "prior_mean", "prior_information")
)
_MOTION, _PARAMETERS, _EVALUATED, _PREVIOUS, _LAST_GRADIENT = (
    tl.constexpr(place(name))
    for name in ("motion", "parameters", "evaluated", "previous", "last_gradient")
)
_STEP_LIMIT, _STEPS, _LAST_STEP, _EVALUATIONS, _EVENTS = (
    tl.constexpr(place(name))
    for name in ("step_limit", "steps", "last_step", "evaluations", "events")
)
_GRADIENTS, _HESSIAN, _SCATTER = (
    tl.constexpr(place(name)) for name in ("gradients", "hessian", "scatter")
)
_TIME_PARTS = tl.constexpr(TIME_PARTS)
_MIN_CURVATURE, _MAX_SCORE, _NOTHING_PX = (
    tl.constexpr(number) for number in (solver.MIN_CURVATURE, solver.MAX_SCORE, solver.NOTHING_PX)
)
# Added to a scatter matrix of trace 1, of which float32 does not tell more.
_RIDGE = tl.constexpr(1e-7)

# Jacobi's rotations end when the squares off the diagonal are this share of all, which is about
# float32's last digit; they converge quadratically, in five or six sweeps.
_OFF_DIAGONAL = tl.constexpr(1e-12)
_MAX_SWEEPS = tl.constexpr(10)


@triton.jit
def _rotation(own, other, between, is_first):
    """Cosine and sine of Jacobi's rotation that makes `between` zero, as each of the pair sees it.

    own, other: the two diagonal elements.
    """
    zero = between == 0
    slant = tl.div_rn(other - own, tl.where(zero, 1.0, 2 * between))
    # Where the two are equal the signs still have to be opposite.
    positive = (slant > 0) | ((slant == 0) & is_first)
    tangent = tl.div_rn(
        tl.full(slant.shape, 1, tl.float32), tl.abs(slant) + tl.sqrt_rn(slant * slant + 1)
    )
    tangent = tl.where(zero, 0.0, tl.where(positive, tangent, -tangent))
    cosine = tl.div_rn(tl.full(slant.shape, 1, tl.float32), tl.sqrt_rn(tangent * tangent + 1))
    return cosine, cosine * tangent


@triton.jit
def _eigen(matrix, row):
    """Eigenvalues [16] and eigenvectors [16, 16], its columns, of a symmetric matrix.

    Jacobi's method, eight rotations at a time: in round n of a sweep row i pairs with row i XOR n,
    which in 15 rounds brings every two together.
    """
    diagonal = row[:, None] == row[None, :]
    vectors = tl.where(diagonal, 1.0, 0.0)
    squares = matrix * matrix
    everything = tl.sum(tl.sum(squares, 1), 0)
    off = tl.sum(tl.sum(tl.where(diagonal, 0.0, squares), 1), 0)
    sweep = 0
    while (off > everything * _OFF_DIAGONAL) & (sweep < _MAX_SWEEPS):
        for n in range(1, _WIDTH):
            partner = row ^ n
            by_column = tl.broadcast_to(partner[None, :], (_WIDTH, _WIDTH))
            by_row = tl.broadcast_to(partner[:, None], (_WIDTH, _WIDTH))
            swapped = tl.gather(matrix, by_column, 1)
            own = tl.sum(tl.where(diagonal, matrix, 0.0), 0)
            between = tl.sum(tl.where(diagonal, swapped, 0.0), 0)
            # The same to both of a pair: two angles, however close, would not make a rotation.
            between = 0.5 * (between + tl.gather(between, partner, 0))
            cosine, sine = _rotation(own, tl.gather(own, partner, 0), between, row < partner)
            matrix = matrix * cosine[None, :] - swapped * sine[None, :]
            vectors = vectors * cosine[None, :] - tl.gather(vectors, by_column, 1) * sine[None, :]
            swapped = tl.gather(matrix, by_row, 0)
            matrix = matrix * cosine[:, None] - swapped * sine[:, None]
        off = tl.sum(tl.sum(tl.where(diagonal, 0.0, matrix * matrix), 1), 0)
        sweep += 1
    return tl.sum(tl.where(diagonal, matrix, 0.0), 0), vectors


@triton.jit
def _newton_step(gradient, hessian, row):
    """`solver.newton_step` without a limit."""
    greatest = tl.max(tl.max(tl.abs(hessian), 1), 0)
    unit = tl.where(greatest > 0, greatest, 1.0)
    curvatures, directions = _eigen(hessian / unit, row)
    strength = tl.abs(curvatures)
    strongest = tl.max(strength, 0)
    strength = unit * tl.maximum(strength, strongest * _MIN_CURVATURE)
    along = tl.sum(directions * gradient[:, None], 0) / tl.where(strongest > 0, strength, 1.0)
    along = tl.where(strongest > 0, along, 0.0)
    return tl.sum(directions * along[None, :], 1)


@triton.jit
def _with_secant(hessian, step, change):
    """`solver.with_secant`."""
    along = tl.sum(hessian * step[None, :], 1)
    expected, seen = tl.sum(step * along, 0), tl.sum(step * change, 0)
    taken = (expected < 0) & (0.2 * expected >= seen) & (seen >= 5.0 * expected)
    expected, seen = tl.where(taken, expected, -1.0), tl.where(taken, seen, -1.0)
    updated = hessian - along[:, None] * along[None, :] / expected
    updated += change[:, None] * change[None, :] / seen
    return tl.where(taken, updated, hessian)


@triton.jit
def _noise_score(gradient, scatter, trace, unit, row):
    """`solver.noise_score`: by elimination, which costs less than eigenvalues."""
    size = tl.where(trace > 0, trace, 1.0)
    matrix = scatter / size + tl.where(row[:, None] == row[None, :], _RIDGE, 0.0)
    rest = gradient
    total = 0.0
    for n in range(_WIDTH):
        pivot_row = tl.sum(tl.where(row[:, None] == n, matrix, 0.0), 0)
        pivot = tl.sum(tl.where(row == n, pivot_row, 0.0), 0)
        first = tl.sum(tl.where(row == n, rest, 0.0), 0)
        total += first * first / pivot
        # The matrix stays symmetric: its column is its row.
        rest = rest - pivot_row * (first / pivot)
        matrix = matrix - pivot_row[:, None] * pivot_row[None, :] / pivot
    estimated = tl.sum(tl.where(unit != 0, 1.0, 0.0), 0)
    return tl.sqrt_rn(tl.maximum(total, 0.0) / (size * estimated))


@triton.jit
def _length(vector):
    return tl.sqrt_rn(tl.sum(vector * vector, 0))


@triton.jit
def _limited(step, limit):
    length = _length(step)
    return step * tl.where(length > limit, limit / tl.where(length > 0, length, 1.0), 1.0)


@triton.jit(do_not_specialize=["plane"])
def step_kernel(ints, floats, plane, factor):
    """One step from the sums of a pass: a turn of the loop in `solver._climb`. One program.

    ints, floats: the state, as either type. factor: what the cotangent image lacks.
    """
    if tl.load(ints + _PLANE) != plane:
        return
    level = tl.load(ints + _LEVEL)
    row = tl.arange(0, _WIDTH)
    tile = row[:, None] * _WIDTH + row[None, :]
    unit = tl.load(floats + _UNIT + row)
    units = unit[:, None] * unit[None, :]
    part = tl.arange(0, _TIME_PARTS)[:, None] * _WIDTH
    gradient = tl.sum(tl.load(floats + _GRADIENTS + part + row[None, :]), 0) * (factor * unit)
    hessian = tl.load(floats + _HESSIAN + tile) * (factor * units)
    scatter = tl.load(floats + _SCATTER + tile) * (factor * factor * units)

    # See `Scaling.point` for why the information has this unit.
    diagonal = row[:, None] == row[None, :]
    size = tl.sum(tl.abs(tl.sum(tl.where(diagonal, hessian, 0.0), 0)), 0)
    trace = tl.sum(tl.sum(tl.where(diagonal, scatter, 0.0), 0), 0)
    per_information = trace / tl.maximum(size, 1e-30)
    information = tl.load(floats + _PRIOR_INFORMATION + row) * per_information
    scatter += tl.where(diagonal, (information * per_information)[:, None], 0.0)
    trace += tl.sum(information, 0) * per_information
    parameters = tl.load(floats + _PARAMETERS + row)
    gradient = gradient - information * (parameters - tl.load(floats + _PRIOR_MEAN + row))
    hessian = hessian - tl.where(diagonal, information[:, None], 0.0)

    infinite = tl.sum(tl.sum(tl.where(hessian - hessian == 0, 0, 1), 1), 0) > 0
    hessian = tl.where(infinite, 0.0, hessian)
    gradient = tl.where(infinite, 0.0, gradient)
    steps = tl.load(ints + _STEPS) + 1
    previous = tl.load(floats + _PREVIOUS + row)
    if steps > 1:
        hessian = _with_secant(hessian, previous, gradient - tl.load(floats + _LAST_GRADIENT + row))
    full = _newton_step(gradient, hessian, row)
    limit = tl.load(floats + _STEP_LIMIT)
    step = _limited(full, limit)
    # Turned back: the top lies between. Half the region makes the steps settle.
    back = tl.sum(step * previous, 0) < 0
    limit = tl.where(back, tl.minimum(limit, _length(step)) / 2, limit)
    step = _limited(step, limit)
    length = tl.where(infinite, float("inf"), _length(step))

    arrived = length < _NOTHING_PX
    if length < tl.load(floats + _TOLERANCES + level):
        arrived |= _noise_score(gradient, scatter, trace, unit, row) < _MAX_SCORE
    over = infinite | arrived | (steps == tl.load(ints + _MAX_STEPS))
    next_limit = tl.load(floats + _STEP_LIMITS + tl.minimum(level + 1, _LAST))
    tl.store(floats + _EVALUATED + row, parameters)
    tl.store(floats + _PARAMETERS + row, parameters + step)
    tl.store(floats + _MOTION + row, tl.load(floats + _FIXED + row) + unit * (parameters + step))
    tl.store(floats + _LAST_GRADIENT + row, gradient)
    tl.store(floats + _PREVIOUS + row, tl.where(over, 0.0, step))
    tl.store(floats + _STEP_LIMIT, tl.where(over, next_limit, limit))
    tl.store(floats + _LAST_STEP, length)
    tl.store(ints + _STEPS, tl.where(over, 0, steps))
    tl.store(ints + _LEVEL, tl.where(over, level + 1, level))
    tl.store(ints + _PLANE, tl.load(ints + _PLANES + tl.where(over, level + 1, level)))
    tl.store(ints + _EVALUATIONS, tl.load(ints + _EVALUATIONS) + 1)
    tl.store(ints + _EVENTS, tl.load(ints + _EVENTS) + tl.load(ints + _TAKEN + level))
