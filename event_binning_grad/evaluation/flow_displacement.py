"""Flow fields against true displacements over windows of time, as data sets give them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from event_binning_grad.errors import RecordingError
from event_binning_grad.evaluation.flow_metrics import (
    FlowError,
    event_pixels,
    flow_at,
    flow_error,
    known,
)
from event_binning_grad.events.flow_truth import FlowTruth, FlowTruths, on_undistorted_pixels
from event_binning_grad.events.types import NS_PER_MS, NS_PER_S
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.camera import interpolate

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# A field stands for the time around its stamp, at most so far; where fields are further apart than
# twice that, a displacement is not known.
_STANDS_FOR_NS = 60 * NS_PER_MS

Fields = list[tuple[int, Float32]]


@dataclass(frozen=True)
class DisplacementError:
    """Over the pixels with events, and over all pixels, of one true displacement; the first is
    None where there is none with events."""

    error: FlowError | None
    dense_error: FlowError


class DisplacementScorer:
    """Follows pixels along the fields over each true displacement's time, and compares.

    As in the benchmarks of MVSEC and DSEC the error is in pixels over the truth's own time. MVSEC's
    is over the pixels with events in it (error), DSEC's over all (dense_error); where the fields
    leave a pixel unknown there is nothing to compare.

    Args:
        truths: of the recording.
        camera: its calibration, if the fields are on its undistorted pixels; None: on raw ones.

    Attributes:
        errors: of the displacements so far that could be compared.
        source: the truth's.
        missed: displacements without fields around them, or without a pixel to compare.
    """

    def __init__(self, truths: FlowTruths, camera: Camera | None = None) -> None:
        self.errors: list[DisplacementError] = []
        self.source, self.missed = truths.source, 0
        self._turn = camera if camera is not None and not truths.undistorted else None
        self._truths = iter(truths)
        self._windows: deque[tuple[int, int]] = deque(map(tuple, truths.windows_ns.tolist()))
        self._masks: deque[npt.NDArray[np.bool_] | None] = deque([None] * len(truths))
        self._fields: Fields = []
        self._seen_ns: tuple[int, int] | None = None

    def see(self, t_ns: npt.NDArray[np.int64], coords: Float32, size: tuple[int, int]) -> None:
        """Takes the next events: their times on the recording's clock, their places [N, 2] on the
        fields' pixels, and the sensor's width and height."""
        if not len(t_ns):
            return
        first_ns = self._seen_ns[0] if self._seen_ns else int(t_ns[0])
        self._seen_ns = (first_ns, int(t_ns[-1]))
        for k, (start_ns, end_ns) in enumerate(self._windows):
            if start_ns > t_ns[-1]:
                break
            if end_ns <= t_ns[0] and self._masks[k] is not None:
                continue  # it has seen all of its events
            first, last = np.searchsorted(t_ns, [start_ns, end_ns])
            seen = event_pixels(coords[first:last], *size)
            before = self._masks[k]
            self._masks[k] = seen if before is None else before | seen

    def take(self, stamp_ns: int, flow: Float32 | None) -> None:
        """Takes the next field [H, W, 2] px/s, None if it is not to be trusted; all events up to
        its time have been seen."""
        if not self._windows:
            return
        due_ns = stamp_ns
        if flow is None:  # a later one may still serve
            due_ns -= 2 * _STANDS_FOR_NS
        else:
            self._fields.append((stamp_ns, flow))
        while self._windows and self._windows[0][1] <= due_ns:
            self._score_next()
        if self._windows:
            oldest_ns = self._windows[0][0] - 2 * _STANDS_FOR_NS
            # The last of those that are too old stays: the next one may be far away from it.
            while len(self._fields) > 2 and self._fields[1][0] < oldest_ns:
                self._fields.pop(0)

    def finish(self) -> None:
        """There are no more fields."""
        while self._windows and self._fields:
            if self._windows[0][0] > self._fields[-1][0] + _STANDS_FOR_NS:
                break
            self._score_next()
        self.missed += sum(self._in_stream(*window) for window in self._windows)
        self._windows.clear()

    def _score_next(self) -> None:
        start_ns, end_ns = self._windows.popleft()
        mask, truth = self._masks.popleft(), next(self._truths)
        moved = displacement(self._fields, start_ns, end_ns)
        if moved is None or mask is None:
            self.missed += self._in_stream(start_ns, end_ns)
            return
        true, span_s = self._true(truth, moved.shape), (end_ns - start_ns) / NS_PER_S
        dense = flow_error(moved / span_s, true / span_s, span_s)
        if dense is None:
            self.missed += 1
        else:
            error = flow_error(moved / span_s, true / span_s, span_s, mask)
            self.errors.append(DisplacementError(error, dense))

    def _in_stream(self, start_ns: int, end_ns: int) -> bool:
        """Whether the time meets that of the events: where it does not, nothing is missed."""
        return self._seen_ns is None or (start_ns < self._seen_ns[1] and end_ns > self._seen_ns[0])

    def _true(self, truth: FlowTruth, shape: tuple[int, ...]) -> Float32:
        if truth.flow_px.shape != shape:
            raise RecordingError(
                f"{self.source}: true flow of {list(truth.flow_px.shape)}, expected {list(shape)}: "
                "the sensor's"
            )
        if self._turn is not None:
            truth = on_undistorted_pixels(truth, self._turn)
        return np.where(truth.valid[..., None], truth.flow_px, np.float32(np.nan))


def displacement(fields: Fields, start_ns: int, end_ns: int) -> Float64 | None:
    """How far [H, W, 2] px what each pixel sees at start_ns moves until end_ns, by flow fields.

    Each field holds from halfway to the one before to halfway to the one after, at most 60 ms; a
    pixel's way is followed through them, from field to field by the midpoint rule. NaN where it
    leads through unknown flow, or off the image.

    Args:
        fields: (stamp_ns, [H, W, 2] px/s) in the order of time.

    Returns:
        None where the fields do not cover the time.
    """
    stamps = [stamp_ns for stamp_ns, _ in fields]
    if not stamps or any(
        later - earlier > 2 * _STANDS_FOR_NS
        for earlier, later in pairwise(stamps)
        if later > start_ns and earlier < end_ns
    ):
        return None
    if stamps[0] - start_ns > _STANDS_FOR_NS or end_ns - stamps[-1] > _STANDS_FOR_NS:
        return None
    if stamps[-1] + _STANDS_FOR_NS < start_ns or stamps[0] - _STANDS_FOR_NS > end_ns:
        return None
    height, width = fields[0][1].shape[:2]
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    origin = np.stack([columns, rows], axis=-1).astype(np.float64)
    place = origin.copy()
    halfway = [(earlier + later) // 2 for earlier, later in pairwise(stamps)]
    borders = [start_ns, *(min(max(t, start_ns), end_ns) for t in halfway), end_ns]
    for (_, flow), (since_ns, until_ns) in zip(fields, pairwise(borders), strict=True):
        step_s = (until_ns - since_ns) / NS_PER_S
        if step_s > 0:
            middle = place + 0.5 * step_s * interpolate(flow, place)
            place = place + step_s * interpolate(flow, middle)
    return place - origin


def truths_over(truths: FlowTruths, windows_ns: npt.NDArray[np.int64]) -> FlowTruths:
    """True displacements over other windows of time, [M, 2] start and end in the order of time.

    As MVSEC's benchmark makes those between grey frames of those between depth images (Zhu et al.,
    EV-FlowNet, RSS 2018): of a truth's displacement the share of its time, and from truth to truth
    on at the nearest pixel. Windows that the truths do not cover without a gap are left out.
    """
    known_ns = truths.windows_ns
    if not len(known_ns):
        return truths
    first = np.searchsorted(known_ns[:, 1], windows_ns[:, 0], "right")
    last = np.searchsorted(known_ns[:, 0], windows_ns[:, 1], "left") - 1
    whole = np.concatenate([[0], np.cumsum(known_ns[1:, 0] != known_ns[:-1, 1])])
    inside = (first < len(known_ns)) & (last >= first)
    first, last = np.where(inside, first, 0), np.where(inside, last, 0)
    inside &= (known_ns[first, 0] <= windows_ns[:, 0]) & (known_ns[last, 1] >= windows_ns[:, 1])
    inside &= whole[first] == whole[last]
    windows_ns, first, last = windows_ns[inside], first[inside], last[inside]

    def read() -> Iterator[tuple[Float32, npt.NDArray[np.bool_]]]:
        numbered = enumerate(truths)
        held: deque[tuple[int, FlowTruth]] = deque()
        for (start_ns, end_ns), begin, end in zip(windows_ns.tolist(), first, last, strict=True):
            while not held or held[-1][0] < end:
                held.append(next(numbered))
            while held[0][0] < begin:
                held.popleft()
            flow = _followed([truth for k, truth in held if k <= end], start_ns, end_ns)
            yield flow, known(flow)

    return FlowTruths(windows_ns, truths.undistorted, truths.source, read)


def _followed(truths: Sequence[FlowTruth], start_ns: int, end_ns: int) -> Float32:
    """The displacement [H, W, 2] px over a time that the truths cover without a gap."""
    height, width = truths[0].valid.shape
    origin = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)
    place = origin.astype(np.float64)
    for truth in truths:
        part_ns = min(end_ns, truth.end_ns) - max(start_ns, truth.start_ns)
        share = part_ns / (truth.end_ns - truth.start_ns)
        place += share * flow_at(truth.flow_px, place)
    return (place - origin).reshape(height, width, 2).astype(np.float32)
