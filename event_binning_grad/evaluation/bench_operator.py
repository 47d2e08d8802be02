"""The binning operator's benchmark: ns an event of every pass, beside what the memory allows.

Passes are timed as a user gets them, through `bin_events` and autograd:

    forward          image = bin_events(coords, weights, ...)
    backward         torch.autograd.grad(image, inputs, cotangent)
    double backward  the gradient of <tangents, that gradient> by inputs and cotangent

with inputs the coords, and the weights where there are any. The other back ends, and the same
formulas written as whole arrays (`array_baseline`), are called directly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, product
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from event_binning_grad.binning import bin_events, reference
from event_binning_grad.binning.backend import back_end
from event_binning_grad.binning.kernels import kernel, kernel_pair
from event_binning_grad.binning.reference import Grid, Pairs
from event_binning_grad.evaluation import array_baseline

PASSES = ("forward", "backward", "double_backward")
MAIN_PAIRS = ("rect", "linear")  # each with linear reconstruction
ARRAYS = "arrays"  # the array formulation's name among the back ends

_IMAGES = ((180, 240), (260, 346), (480, 640), (720, 1280))
_VOXELS = (10, 180, 240)  # time first, always with linear binning
_MIN_REPETITIONS, _MAX_REPETITIONS = 3, 200
_REPLAYS = 10  # of a CUDA graph, before its end is waited for
_COPY_BYTES = 256 << 20  # well beyond every cache
_LINES, _LINE_WIDTH_PX, _NOISE = 40, 0.5, 0.1

_Run = Callable[[], object]


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    shapes: tuple[tuple[int, ...], ...] = (*_IMAGES, _VOXELS)
    events: tuple[int, ...] = (10**4, 10**5, 10**6, 10**7)
    main_shape: tuple[int, ...] = (260, 346)
    binnings: tuple[str, ...] = ("rect", "linear", "quadratic", "cubic", "gaussian")
    reconstructions: tuple[str | None, ...] = (None, "linear", "keys", "lanczos")
    kernel_events: int = 10**6  # of the table of kernel pairs, and of kinds of events
    compared_events: tuple[int, ...] = (20_000, 200_000)  # of the comparison of back ends
    budget_s: float = 0.1  # for the repetitions of one pass, if it takes no longer than a third


QUICK = Plan(
    shapes=((260, 346), _VOXELS),
    events=(10**4, 10**5),
    binnings=("rect", "linear", "gaussian"),
    reconstructions=(None, "linear"),
    kernel_events=10**5,
    compared_events=(20_000,),
    budget_s=0.04,
)


@dataclass(frozen=True)
class Case:
    """A problem: `events` in `shape` bins of size 1, float32."""

    shape: tuple[int, ...]
    events: int
    binning: tuple[str, ...]
    reconstruction: tuple[str | None, ...]
    along: str = "uniform"  # over the bins, or "edges": most of them near lines
    weighted: bool = False


@dataclass(frozen=True)
class Way:
    """How passes are run: by so many threads, or on CUDA from Python or as a replayed graph."""

    name: str
    device: str
    threads: int | None = None
    graph: bool = False


@dataclass(frozen=True)
class PassFigures:
    """A pass: medians over the repetitions, and bytes as `bytes_an_event` counts them.

    The fastest repetition is None where a difference to another median is not positive.
    Fractions are of the bandwidth of a large copy by the same way: what the inputs and outputs take
    of it, and these together with the taps' accesses, most of which a cache serves.
    """

    ns_an_event: float
    ns_an_event_fastest: float | None
    events_per_second: float
    repetitions: int
    streamed_bytes: float
    image_bytes: float
    streamed_fraction: float
    total_fraction: float


@dataclass(frozen=True)
class OperatorFigures:
    """One back end in one way on one case; None for a pass too short to be told from noise."""

    table: str  # "size", "kernels", "events", "back ends"
    device: str
    back_end: str
    way: str
    case: Case
    passes: dict[str, PassFigures | None]


@dataclass(frozen=True)
class Ratio:
    """How many times as long passes of one back end take as those of another, in the same way.

    None where one of the two has no figure.
    """

    device: str
    case: Case
    way: str
    of: str
    to: str
    forward: float | None
    backward: float | None
    double_backward: float | None


@dataclass(frozen=True)
class DeviceFigures:
    """All that was measured on a device.

    Attributes:
        device: "cpu" or "cuda".
        copy_bandwidth: of every way, bytes read and written per second by a large copy.
        figures: by table and case; of the back ends the one that users get is first.
        ratios: of the other back ends to that one.
    """

    device: str
    copy_bandwidth: dict[str, float]
    figures: list[OperatorFigures]
    ratios: list[Ratio]


@dataclass(frozen=True)
class _Problem:
    case: Case
    coords: Tensor
    weights: Tensor | None
    cotangent: Tensor
    tangents: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Steps:
    """The passes, each taking what the one before it returned.

    The flag of `backward` says whether `double_backward` will follow.
    """

    forward: Callable[[], Any]
    backward: Callable[[Any, bool], Any]
    double_backward: Callable[[Any], Any]


def measure(
    device: str, plan: Plan, progress: Callable[[str, tuple[int, ...]], None] = lambda *_: None
) -> DeviceFigures:
    """Runs a plan on a device.

    Args:
        device: "cpu" or "cuda".
        plan: what to measure.
        progress: called with a table's name and a shape before they are measured.
    """
    own_ways = ways(device)
    bandwidth = {way.name: copy_bandwidth(way) for way in own_ways}
    rows: list[OperatorFigures] = []
    for table, case, others in _cases(plan, device):
        if not rows or (rows[-1].table, rows[-1].case.shape) != (table, case.shape):
            progress(table, case.shape)
        rows += _measured(table, case, others, own_ways, bandwidth, plan.budget_s)
    return DeviceFigures(device, bandwidth, rows, ratios(rows))


def ways(device: str) -> tuple[Way, ...]:
    """CPU: by one thread, and by as many as torch has now. CUDA: without a graph, and with one."""
    if device == "cuda":
        return Way("from Python", device), Way("CUDA graph", device, graph=True)
    one, count = Way("1 thread", device, 1), torch.get_num_threads()
    return (one, Way(f"{count} threads", device, count)) if count > 1 else (one,)


def bytes_an_event(case: Case) -> dict[str, tuple[float, float]]:
    """The memory that a pass must move, bytes an event: (inputs and outputs, taps' accesses).

    Inputs and outputs count once each: coordinates, weights, tangents, gradients, image and
    cotangent. Accesses: every tap of an event reads its bin, and writes it where it adds to it.
    Not counted is what an implementation keeps in between, such as partial images.
    """
    item = torch.float32.itemsize
    dimensions, weight = len(case.shape), int(case.weighted)
    image = math.prod(case.shape) / case.events
    pairs = _pairs(case)
    k = math.prod(pair.binning.taps for pair in pairs)
    kappa = math.prod(pair.synthesis.taps for pair in pairs)
    one = dimensions + weight  # numbers of an event: coordinates and weight
    gathered, scattered = kappa + weight * k, 2 * (kappa + weight * k)
    return {
        "forward": (item * (one + image), item * 2 * k),
        "backward": (item * (2 * one + image), item * gathered),
        # Coordinates, tangents and gradients; the cotangent, and its own gradient.
        "double_backward": (item * (3 * one + 2 * image), item * (gathered + scattered)),
    }


def copy_bandwidth(way: Way) -> float:
    """Bytes read and written per second by the fastest of some large copies."""
    source = torch.ones(_COPY_BYTES // 4, device=way.device)
    target = torch.zeros_like(source)
    with _threads(way.threads):
        target.copy_(source)
        times = _repeated(lambda: target.copy_(source), _synchronise(way.device), 0.3)
    return 2 * _COPY_BYTES / min(times)


def coordinates(shape: Sequence[int], events: int, along: str, seed: int = 0) -> np.ndarray:
    """Events' coordinates, float32 [events, D].

    "uniform": at random over all bins. "edges": in the last two dimensions, which are an image's,
    nine tenths lie about straight lines between random points, as the events of edges do, and in
    another dimension, which is time, they come in order.
    """
    rng = np.random.default_rng(seed)
    coords = (
        rng.random((events, len(shape)), np.float32) * np.array(shape, np.float32)
    ) - np.float32(0.5)
    if along == "edges":
        size = np.array(shape[-2:], np.float32)
        start, stop = rng.random((2, _LINES, 2), np.float32) * (size - 1)
        line, part = rng.integers(0, _LINES, events), rng.random((events, 1), np.float32)
        near = start[line] + part * (stop - start)[line]
        near += _LINE_WIDTH_PX * rng.standard_normal((events, 2), np.float32)
        image = coords[:, -2:]
        image[:] = np.where(rng.random((events, 1)) < _NOISE, image, near)
        coords[:, :-2] = np.sort(coords[:, :-2], 0)
    return coords


def _cases(plan: Plan, device: str) -> Iterator[tuple[str, Case, tuple[str, ...]]]:
    """Tables' names, each with a case and what to run on it beside the back end that users get."""
    for shape, events, k in product(plan.shapes, plan.events, MAIN_PAIRS):
        yield "size", _case(shape, events, k, "linear"), ()
    for k, by in product(plan.binnings, plan.reconstructions):
        yield "kernels", _case(plan.main_shape, plan.kernel_events, k, by), ()
    for k, along, weighted in product(MAIN_PAIRS, ("uniform", "edges"), (False, True)):
        case = _case(plan.main_shape, plan.kernel_events, k, "linear", along, weighted)
        yield "events", case, ()
    others = ("reference", ARRAYS) if device == "cpu" else ("reference",)
    for events, k in product(plan.compared_events, MAIN_PAIRS):
        yield "back ends", _case(plan.main_shape, events, k, "linear"), others


def _case(
    shape: tuple[int, ...],
    events: int,
    binning: str,
    reconstruction: str | None,
    along: str = "uniform",
    weighted: bool = False,
) -> Case:
    binnings = tuple("linear" if len(shape) > 2 and d == 0 else binning for d in range(len(shape)))
    return Case(shape, events, binnings, (reconstruction,) * len(shape), along, weighted)


def _measured(
    table: str,
    case: Case,
    others: Sequence[str],
    own_ways: Sequence[Way],
    bandwidth: dict[str, float],
    budget_s: float,
) -> list[OperatorFigures]:
    device = own_ways[0].device
    problem = _problem(case, device)
    own = back_end(problem.coords).__name__.rpartition(".")[2]
    moved = bytes_an_event(case)
    wait = _synchronise(device)
    rows = []
    for name in (own, *(other for other in others if other != own)):
        if name == own:
            steps = _by_autograd(problem)
        elif name == ARRAYS:
            steps = _by_arrays(problem)
        else:
            steps = _by_module(problem, reference)
        runs = _runs(steps)
        for way in own_ways:
            if name == ARRAYS and way.threads != 1:
                continue  # numpy has one
            if way.graph and name != own:
                continue
            with _threads(way.threads):
                if way.graph:
                    times = _graph_times(steps, wait, budget_s)
                else:
                    times = {p: _repeated(run, wait, budget_s) for p, run in runs.items()}
            passes = {
                p: pass_figures(times[p], case.events, *moved[p], bandwidth[way.name])
                for p in PASSES
            }
            rows.append(OperatorFigures(table, device, name, way.name, case, passes))
    return rows


def pass_figures(
    times: Sequence[float], events: int, streamed: float, accessed: float, bandwidth: float
) -> PassFigures | None:
    """From seconds of every repetition; None if their median is not positive.

    That is no clock's error: a pass within a CUDA graph is timed as a difference of two chains.
    """
    middle, fastest = median(times) / events, min(times) / events
    if middle <= 0:
        return None
    return PassFigures(
        1e9 * middle,
        1e9 * fastest if fastest > 0 else None,
        1 / middle,
        len(times),
        streamed,
        accessed,
        streamed / middle / bandwidth,
        (streamed + accessed) / middle / bandwidth,
    )


def _problem(case: Case, device: str) -> _Problem:
    generator = torch.Generator().manual_seed(0)
    coords = torch.from_numpy(coordinates(case.shape, case.events, case.along))
    weights = torch.rand(case.events, generator=generator) if case.weighted else None
    tangents = [
        torch.randn(t.shape, generator=generator) for t in (coords, weights) if t is not None
    ]
    cotangent = torch.randn(case.shape, generator=generator)
    return _Problem(
        case,
        coords.to(device),
        None if weights is None else weights.to(device),
        cotangent.to(device),
        tuple(t.to(device) for t in tangents),
    )


def _pairs(case: Case) -> Pairs:
    return tuple(
        kernel_pair(kernel(k), None if by is None else kernel(by), "exact", "float32")
        for k, by in zip(case.binning, case.reconstruction, strict=True)
    )


def _by_autograd(problem: _Problem) -> _Steps:
    """As a user gets it."""
    case = problem.case
    coords = problem.coords.clone().requires_grad_()
    weights = None if problem.weights is None else problem.weights.clone().requires_grad_()
    cotangent = problem.cotangent.clone().requires_grad_()
    inputs = (coords,) if weights is None else (coords, weights)

    def forward() -> Tensor:
        return bin_events(
            coords,
            weights,
            shape=case.shape,
            binning=case.binning,
            reconstruction=case.reconstruction,
        )

    def backward(image: Tensor, twice: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(image, inputs, cotangent, retain_graph=True, create_graph=twice)

    def double_backward(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            gradients, (*inputs, cotangent), problem.tangents, retain_graph=True
        )

    return _Steps(forward, backward, double_backward)


def _by_module(problem: _Problem, module: ModuleType) -> _Steps:
    """A back end called directly."""
    case, pairs = problem.case, _pairs(problem.case)
    zeros, ones = (0.0,) * len(case.shape), (1.0,) * len(case.shape)
    grid = Grid(case.shape, zeros, ones)
    weights = problem.weights
    if weights is None:
        weights = problem.coords.new_ones(()).expand(case.events)
    events = problem.coords[None], weights[None]
    cotangent = problem.cotangent[None]
    tangents = problem.tangents[0][None], problem.tangents[1][None] if case.weighted else None

    return _Steps(
        lambda: module.splat(*events, grid, pairs),
        lambda *_: module.pull_back(cotangent, *events, grid, pairs, True, case.weighted),
        lambda _: (
            module.pull_back_tangent(cotangent, *events, *tangents, grid, pairs),
            module.splat_tangent(*events, *tangents, grid, pairs),
        ),
    )


def _by_arrays(problem: _Problem) -> _Steps:
    case = problem.case
    coords, cotangent = problem.coords.numpy(), problem.cotangent.numpy()
    weights = np.ones(case.events, np.float32)
    if problem.weights is not None:
        weights = problem.weights.numpy()
    tangents = [t.numpy() for t in problem.tangents]
    by_weights = tangents[1] if case.weighted else None
    return _Steps(
        lambda: array_baseline.splat(coords, weights, case.shape, case.binning),
        lambda *_: array_baseline.pull_back(
            cotangent, coords, weights, case.binning, case.weighted
        ),
        lambda _: array_baseline.pull_back_twice(
            cotangent, coords, weights, tangents[0], by_weights, case.binning
        ),
    )


def _runs(steps: _Steps) -> dict[str, _Run]:
    """The passes by themselves, each run once to have it compiled."""
    image = steps.forward()
    gradients = steps.backward(image, True)
    steps.double_backward(gradients)
    runs: tuple[_Run, ...] = (
        steps.forward,
        lambda: steps.backward(image, False),
        lambda: steps.double_backward(gradients),
    )
    return dict(zip(PASSES, runs, strict=True))


def _graph_times(steps: _Steps, wait: _Run, budget_s: float) -> dict[str, list[float]]:
    """A CUDA graph holds whole chains: the first pass, the first two, all three.

    A pass's time is the difference to the chain before it, at its median.
    """
    chains: tuple[_Run, ...] = (
        steps.forward,
        lambda: steps.backward(steps.forward(), False),
        lambda: steps.double_backward(steps.backward(steps.forward(), True)),
    )
    times, before = {}, 0.0
    for name, chain in zip(PASSES, chains, strict=True):
        graph = _captured(chain)

        def replays(graph: torch.cuda.CUDAGraph = graph) -> None:
            for _ in range(_REPLAYS):
                graph.replay()

        replays()
        spent = [t / _REPLAYS for t in _repeated(replays, wait, budget_s)]
        times[name] = [t - before for t in spent]
        before = median(spent)
    return times


def _captured(run: _Run) -> torch.cuda.CUDAGraph:
    # What a first run compiles and allocates must be there before the capture, on another stream
    # than the default one.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def _repeated(run: _Run, wait: _Run, budget_s: float) -> list[float]:
    """Seconds of every repetition."""
    wait()
    times: list[float] = []
    left = budget_s
    while len(times) < _MIN_REPETITIONS or (left > 0 and len(times) < _MAX_REPETITIONS):
        began = time.perf_counter()
        result = run()
        wait()
        times.append(time.perf_counter() - began)
        left -= times[-1]
        del result  # freed outside of the time that is taken
    return times


def _synchronise(device: str) -> _Run:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """torch's number of threads, which all back ends go by; None leaves it as it is."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def ratios(rows: Sequence[OperatorFigures]) -> list[Ratio]:
    """Of the table of back ends: the others of a case to its first, in every way both have."""
    found = []
    compared = [row for row in rows if row.table == "back ends"]
    for case, group in groupby(compared, key=lambda row: row.case):
        of_case = list(group)
        # The first rows are the operator's own, whatever its back end is.
        name = of_case[0].back_end
        own = {row.way: row.passes for row in of_case if row.back_end == name}
        for row in of_case:
            if row.back_end != name:
                each = (_ratio(row.passes[p], own[row.way][p]) for p in PASSES)
                found.append(Ratio(row.device, case, row.way, row.back_end, name, *each))
    return found


def _ratio(of: PassFigures | None, to: PassFigures | None) -> float | None:
    return None if of is None or to is None else of.ns_an_event / to.ns_an_event
