"""Scenes with depth: textured planes, the front ones with holes, seen from a moving camera.

A layer is a plane whose painting repeats itself in both directions, so it has no end. A pixel sees
a layer through a homography of its bearing, which gives the place on the painting and the inverse
of the distance in one go; where layers lie behind each other the nearest comes first. Objects are
layers that move by themselves, each along a circle in its plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import ConfigError
from event_binning_grad.numba_threads import parallel_section
from event_binning_grad.simulate.kernels import depth_rows, see_layers
from event_binning_grad.simulate.motion import Trajectory
from event_binning_grad.simulate.painting import (
    EDGE_PX,
    TEXEL_PX,
    paint_periodic,
    random_outline,
)

DEPTH_SCENES = ("plane", "layers", "objects")
PAINTS = ("texture", "shapes")

PERIOD = 3.0  # after this share of the layer's distance its painting repeats itself
HALVINGS = 8  # of the painting, for pixels that see it from far or aslant
MAX_NODES = 4096  # a side of a painting: 134 MB
LEAST_COSINE = 0.17  # a normal 80 degrees off the optical axis
# What is in front, by the scene's name: distances as shares of the plane's, and the share of the
# view that each of them covers.
FRONT_SHARES = {"plane": (0.5,), "layers": (0.5,), "objects": (0.7, 0.5)}
FRONT_COVERAGE = {"plane": 0.3, "layers": 0.3, "objects": 0.1}
TURNS_HZ = (0.1, 0.3)  # how fast an object's circle is gone round
# Nearer than this share of the distance at the start a step of half a pixel is hardly a motion.
LEAST_APPROACH = 0.1

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CircularMotion:
    """A translation at constant speed along a circle; the world's frame.

    axes: [2, 3] unit, the circle's plane; speed_m_s: m/s; turns_hz: times round a second, negative
    the other way; phase_rad: the velocity's angle from axes[0] to axes[1] at time 0.
    """

    axes: Float64
    speed_m_s: float
    turns_hz: float
    phase_rad: float

    def velocity(self, t_s: Float64) -> Float64:
        """[M, 3] m/s at times [M] in s."""
        angle = self._angle(t_s)
        return self.speed_m_s * np.stack([np.cos(angle), np.sin(angle)], axis=-1) @ self.axes

    def offset(self, t_s: Float64) -> Float64:
        """[M, 3] m: how far from its place at time 0."""
        angle, start = self._angle(t_s), self.phase_rad
        radius_m = self.speed_m_s / (2.0 * np.pi * self.turns_hz)
        gone = [np.sin(angle) - math.sin(start), math.cos(start) - np.cos(angle)]
        return radius_m * np.stack(gone, axis=-1) @ self.axes

    def _angle(self, t_s: Float64) -> Float64:
        return self.phase_rad + 2.0 * np.pi * self.turns_hz * np.asarray(t_s, np.float64)


@dataclass(frozen=True, eq=False)
class Layer:
    """A painted plane in the world (the camera's frame at time 0): normal . P = distance_m > 0.

    paintings: [N, N, 2] log intensity times coverage, and coverage (0: a hole, 1: opaque); then the
        same at half the size each, down to one node. Node (row j, column i) of the first lies at
        origin + texel_m * (i axes[0] + j axes[1]), and again every N nodes.
    motion: how it moves by itself, within its plane; None: it rests in the world.
    """

    normal: Float64  # [3], unit
    distance_m: float
    origin: Float64  # [3]
    axes: Float64  # [2, 3], unit, in the plane
    texel_m: float
    paintings: tuple[Float32, ...]
    motion: CircularMotion | None = None

    def offset(self, t_s: Float64) -> Float64:
        """[M, 3] m: how far it has moved by itself at times [M] in s."""
        return np.zeros((len(t_s), 3)) if self.motion is None else self.motion.offset(t_s)

    def velocity(self, t_s: Float64) -> Float64:
        """[M, 3] m/s, of its own, in the world, at times [M] in s."""
        return np.zeros((len(t_s), 3)) if self.motion is None else self.motion.velocity(t_s)


@dataclass(frozen=True, eq=False)
class LayeredScene:
    """Layers (the first is the hindmost one) before a plain wall of log intensity 0, infinitely
    far away, for a sensor whose pixels are pixel_rad wide.

    Times t_s place the layers that move by themselves; where none does they change nothing.
    """

    name: str
    layers: tuple[Layer, ...]
    pixel_rad: float

    def log_intensity(
        self,
        bearings: NDArray[np.floating],
        orientation: Float64,
        position: Float64,
        t_s: float = 0.0,
    ) -> Float32:
        """Log intensity [H, W] along unit bearings [H, W, 3] of a camera at one pose.

        orientation: R_world_from_camera [3, 3]; position: [3], m, in the world.
        """
        maps, detail = self.maps(orientation[None], position[None], np.array([t_s]))
        flat = np.ascontiguousarray(bearings, np.float32)
        out = np.empty(flat.shape[:2], np.float32)
        with parallel_section():
            see_layers(*self.tables, flat, maps[0], detail[0], out)
        return out

    def depth(
        self,
        bearings: NDArray[np.floating],
        orientation: Float64,
        position: Float64,
        t_s: float = 0.0,
    ) -> Float32:
        """z-depth [H, W] in m along the optical axis of what bearings [H, W, 3] meet, NaN nothing.

        The foremost layer that covers at least half of a pixel's view counts.
        """
        return self.seen(bearings, orientation, position, t_s)[0].astype(np.float32)

    def seen(
        self,
        bearings: NDArray[np.floating],
        orientation: Float64,
        position: Float64,
        t_s: float = 0.0,
    ) -> tuple[Float64, NDArray[np.int64]]:
        """z-depth [H, W], as of `depth`, and which layer [H, W] it is of (-1: nothing there)."""
        maps = self._maps(orientation[None], position[None], np.array([t_s]))[0]
        flat = np.ascontiguousarray(bearings, np.float64)
        depth, layer = np.empty(flat.shape[:2]), np.empty(flat.shape[:2], np.int64)
        with parallel_section():
            depth_rows(*self.tables, flat, maps, depth, layer)
        return depth, layer

    def plane(
        self, orientation: Float64, position: Float64, layer: int = 0
    ) -> tuple[Float64, float]:
        """normal [3] and distance d in m with normal . P = d, in the frame of a camera's pose.

        The motion of objects is in their planes, and does not change these."""
        it = self.layers[layer]
        return orientation.T @ it.normal, float(it.distance_m - it.normal @ position)

    def nearest_m(self, positions: Float64) -> Float64:
        """Distance [M] in m from positions [M, 3] to the nearest of the layers' planes."""
        normals = np.stack([layer.normal for layer in self.layers])
        distances = np.array([layer.distance_m for layer in self.layers])
        return np.abs(distances - positions @ normals.T).min(axis=1)

    @property
    def fastest_m_s(self) -> float:
        """The greatest speed of a layer of its own, m/s."""
        return max(0.0 if it.motion is None else it.motion.speed_m_s for it in self.layers)

    def check_approach(self, trajectory: Trajectory) -> None:
        """Raises ConfigError where the camera comes too near to a layer, or passes through it."""
        t_s = np.linspace(0.0, trajectory.duration_s, math.ceil(trajectory.duration_s / 0.005) + 1)
        positions = trajectory.poses(t_s)[1]
        starts = np.array([layer.distance_m for layer in self.layers])
        left = starts - positions @ np.stack([layer.normal for layer in self.layers]).T
        near = np.argwhere(left < LEAST_APPROACH * starts)
        if len(near):
            k, n = near[0]
            raise ConfigError(
                f"the camera comes within {left[k, n]:.3g} m of the plane at {starts[n]:.3g} m "
                f"after {t_s[k]:.2f} s; expected to stay {LEAST_APPROACH * starts[n]:.3g} m away: "
                "choose a lower speed, a greater distance or a shorter duration"
            )

    @cached_property
    def tables(self) -> tuple[Float32, NDArray[np.int64], NDArray[np.int64]]:
        """All paintings behind each other [T, 2]; where each begins and its side, [L, K]."""
        sides = np.array([[len(p) for p in layer.paintings] for layer in self.layers], np.int64)
        ends = np.cumsum((sides**2).ravel())
        first = np.concatenate([[0], ends[:-1]]).reshape(sides.shape)
        texels = [p.reshape(-1, 2) for layer in self.layers for p in layer.paintings]
        return np.concatenate(texels), first, sides

    def maps(
        self, orientations: Float64, positions: Float64, t_s: Float64
    ) -> tuple[Float32, Float32]:
        """How the pixels of cameras at S poses see the layers, at the times t_s [S].

        Returns:
            maps [S, L, 3, 3]: a unit bearing b goes to (u, v, w) = map b; the ray meets the layer
            at the distance 1/w (nowhere, if w is not above 0), at column u/w and row v/w of its
            painting. detail [S, L]: a pixel is as wide as detail/w² nodes of a painting made for
            this sensor (1: as sharp as it was painted).
        """
        exact = self._maps(orientations, positions, t_s)
        detail = np.empty(exact.shape[:2])
        for n, layer in enumerate(self.layers):
            left = np.abs(layer.distance_m - positions @ layer.normal)
            detail[:, n] = TEXEL_PX * self.pixel_rad / (layer.texel_m * left)
        return exact.astype(np.float32), detail.astype(np.float32)

    def _maps(self, orientations: Float64, positions: Float64, t_s: Float64) -> Float64:
        maps = np.empty((len(orientations), len(self.layers), 3, 3))
        for n, layer in enumerate(self.layers):
            left = (layer.distance_m - positions @ layer.normal)[:, None]
            inverse = np.einsum("sij,i->sj", orientations, layer.normal) / left
            maps[:, n, 2] = inverse
            origins = layer.origin + layer.offset(t_s)
            for row in (0, 1):
                offset = ((positions - origins) @ layer.axes[row])[:, None]
                along = np.einsum("sij,i->sj", orientations, layer.axes[row])
                places = (along + offset * inverse) / layer.texel_m
                # The painting repeats itself: near its first node float32 is at its finest.
                ahead = np.maximum(inverse[:, 2], 1e-6)
                turns = np.round(places[:, 2] / ahead / len(layer.paintings[0]))
                maps[:, n, row] = places - (turns * len(layer.paintings[0]))[:, None] * inverse
        return maps


def check_layers(
    name: str,
    distance_m: float,
    normal: Sequence[float],
    front_shares: Sequence[float] | None,
    coverage: float | None,
    paint: str,
    object_m_s: float = 0.0,
) -> Float64:
    """The unit normal [3], turned away from the camera, of what make_layers is asked for.

    Raises ConfigError for a bad value.
    """
    if name not in DEPTH_SCENES:
        raise ConfigError(f"scene {name!r} is unknown; expected one of {', '.join(DEPTH_SCENES)}")
    if paint not in PAINTS:
        raise ConfigError(f"paint {paint!r} is unknown; expected one of {', '.join(PAINTS)}")
    if not 1e-3 <= distance_m <= 1e4:
        raise ConfigError(f"distance_m is {distance_m}; expected 0.001 to 10000")
    shares = FRONT_SHARES[name] if front_shares is None else tuple(front_shares)
    if not 1 <= len(shares) <= 7 or not all(0.05 <= share <= 0.95 for share in shares):
        raise ConfigError(f"front_shares is {shares}; expected one to seven of 0.05 to 0.95")
    if coverage is not None and not 0.05 <= coverage <= 0.4:
        raise ConfigError(f"coverage is {coverage}; expected 0.05 to 0.4 of the view")
    if not 0.0 <= object_m_s < 100.0:
        raise ConfigError(f"object_m_s is {object_m_s}; expected a speed in 0 to 100 m/s")
    vector = np.asarray(normal, np.float64)
    length = float(np.linalg.norm(vector))
    if vector.shape != (3,) or not (math.isfinite(length) and length > 0.0):
        raise ConfigError(f"normal is {tuple(normal)}; expected three numbers, not all 0")
    unit = vector / length
    unit = unit if unit[2] >= 0.0 else -unit
    if unit[2] < LEAST_COSINE:
        raise ConfigError(
            f"normal is {tuple(normal)}; expected at most 80 degrees off the optical axis 0 0 1"
        )
    return unit


def make_layers(
    name: str,
    *,
    pixel_rad: float,
    distance_m: float = 1.0,
    normal: Sequence[float] = (0.0, 0.0, 1.0),
    front_shares: Sequence[float] | None = None,
    coverage: float | None = None,
    paint: str = "texture",
    object_m_s: float = 0.5,
    seed: int = 0,
) -> LayeredScene:
    """Paint a "plane", "layers": the same plane with others in front that cover parts of it, or
    "objects": blobs in front that move by themselves.

    pixel_rad: the width of the sensor's pixels.
    distance_m: of the plane along the optical axis at the start.
    normal: of all planes, in the camera's frame at the start; its sign and length do not matter.
    front_shares: the front layers' distances as shares of distance_m, each in 0 to 1; None: 0.5,
        of objects 0.7 and 0.5. The objects at one distance move as one.
    coverage: the share of the view that each front layer covers, 0.05 to 0.4; None: 0.3, of
        objects 0.1.
    paint: "texture" (dead leaves) or "shapes" (polygons with room between them).
    object_m_s: the objects' speed; its direction turns, each at its own rate.
    """
    unit = check_layers(name, distance_m, normal, front_shares, coverage, paint, object_m_s)
    shares = FRONT_SHARES[name] if front_shares is None else front_shares
    covered = FRONT_COVERAGE[name] if coverage is None else coverage
    layers = [_make_layer(unit, distance_m, pixel_rad, paint, None, [seed, 6])]
    for n, share in enumerate(() if name == "plane" else shares):
        fine = name == "objects"
        front = _make_layer(unit, share * distance_m, pixel_rad, paint, covered, [seed, 7, n], fine)
        if name == "objects" and object_m_s:
            front = replace(front, motion=_object_motion(front.axes, object_m_s, [seed, 9, n]))
        layers.append(front)
    return LayeredScene(name, tuple(layers), pixel_rad)


def _object_motion(axes: Float64, speed_m_s: float, seed: list[int]) -> CircularMotion:
    rng = np.random.default_rng(seed)
    turns_hz = rng.uniform(*TURNS_HZ) * rng.choice([-1.0, 1.0])
    return CircularMotion(axes, speed_m_s, turns_hz, rng.uniform(0.0, 2.0 * np.pi))


def _make_layer(
    normal: Float64,
    distance_m: float,
    pixel_rad: float,
    paint: str,
    coverage: float | None,
    seed: list[int],
    fine: bool = False,
) -> Layer:
    """A layer that meets the optical axis at distance_m; opaque if coverage is None, and of small
    and strong texture if fine."""
    rng = np.random.default_rng(seed)
    multiple = 1 << HALVINGS
    wanted = math.ceil(PERIOD / (TEXEL_PX * pixel_rad) / multiple) * multiple
    nodes = min(MAX_NODES, wanted)
    helper = np.array([1.0, 0.0, 0.0]) if abs(normal[0]) < 0.9 else np.array([0.0, 1.0, 0.0])
    right = helper - (helper @ normal) * normal
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(normal, right)])
    texel_m = PERIOD * distance_m / nodes
    origin = np.array([0.0, 0.0, distance_m])
    picture = _paint_plane(rng, nodes, paint, coverage, fine)
    return Layer(normal, float(distance_m * normal[2]), origin, axes, texel_m, _halvings(picture))


def _paint_plane(
    rng: np.random.Generator, nodes: int, paint: str, coverage: float | None, fine: bool
) -> Float32:
    """[N, N, 2] log intensity times coverage, and coverage."""
    covered = np.ones((nodes, nodes), np.float32)
    if coverage is not None:
        places, radius, outlines = _blobs(rng, coverage)
        covered = _painted(rng, nodes, places, radius, outlines, np.ones(len(radius)))
        if paint == "texture" and fine:
            picture = _fine_texture(rng, nodes, places, radius)
            return np.stack([picture * covered, covered], axis=-1)
    if paint == "texture":
        # As in the cube map: dead leaves of all sizes, most of them of weak contrast.
        count, smallest, largest = round(200 * PERIOD**2), 0.06, 0.3
        u = rng.uniform(size=count)
        radius = 1.0 / np.sqrt(1.0 / smallest**2 + u * (1.0 / largest**2 - 1.0 / smallest**2))
        level = rng.uniform(-0.27, 0.27, count) * np.where(rng.uniform(size=count) < 0.1, 3.0, 1.0)
        outlines = [random_outline(rng) for _ in range(count)]
        places = rng.uniform(0.0, PERIOD, (count, 2))
        picture = _painted(rng, nodes, places, radius, outlines, level)
        if coverage is not None:
            picture -= 0.3  # what is in front is darker, so that its outline shows
    elif coverage is None:
        places, radius, outlines = _apart(rng, 0.06, 0.17, 0.2, math.inf)
        level = rng.uniform(-1.1, -0.7, len(radius))
        picture = _painted(rng, nodes, places, radius, outlines, level)
    else:
        picture = np.full((nodes, nodes), -0.9, np.float32)
    return np.stack([picture * covered, covered], axis=-1)


def _fine_texture(
    rng: np.random.Generator, nodes: int, places: Float64, radius: Float64
) -> Float32:
    """What objects in circles at places [L, 2] of radius [L] are painted with: leaves a third as
    large as elsewhere, half of them dark and half of them bright."""
    leaves, levels = [], []
    for place, reach in zip(places, radius, strict=True):
        count = max(4, round(1000 * reach**2))
        angle = rng.uniform(0.0, 2.0 * np.pi, count)
        distance = reach * np.sqrt(rng.uniform(size=count))
        centre = place + distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        u = rng.uniform(size=count)
        size = 1.0 / np.sqrt(1.0 / 0.02**2 + u * (1.0 / 0.1**2 - 1.0 / 0.02**2))
        leaves.append(np.column_stack([centre % PERIOD, size]))
        levels.append(rng.uniform(0.2, 0.6, count) * rng.choice([-1.0, 1.0], count))
    table, level = np.concatenate(leaves), np.concatenate(levels)
    outlines = [random_outline(rng) for _ in range(len(table))]
    return _painted(rng, nodes, table[:, :2], table[:, 2], outlines, level) - np.float32(0.3)


def _blobs(rng: np.random.Generator, coverage: float) -> tuple[Float64, Float64, list[Float64]]:
    """The outlines of a front layer."""
    return _apart(rng, 0.1, 0.3, 0.02, coverage * PERIOD**2)


def _apart(
    rng: np.random.Generator, smallest: float, largest: float, gap: float, area: float
) -> tuple[Float64, Float64, list[Float64]]:
    """Shapes that do not touch: places [L, 2], radii [L] and outlines, until they fill the area."""
    places, radii, outlines = np.empty((0, 2)), np.empty(0), []
    filled = 0.0
    for _ in range(round(240 * PERIOD**2)):
        place, radius = rng.uniform(0.0, PERIOD, 2), rng.uniform(smallest, largest)
        away = np.abs(places - place)
        away = np.hypot(*np.minimum(away, PERIOD - away).T)
        if (away > radii + radius + gap).all():
            outline = random_outline(rng)
            places, radii = np.vstack([places, place]), np.append(radii, radius)
            outlines.append(outline)
            filled += radius**2 * _area(outline)
            if filled >= area:
                break
    return places, radii, outlines


def _area(outline: Float64) -> float:
    """The area of a shape in the unit circle."""
    if not len(outline):
        return math.pi
    x, y = outline.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def _painted(
    rng: np.random.Generator,
    nodes: int,
    places: Float64,
    radius: Float64,
    outlines: list[Float64],
    level: Float64,
) -> Float32:
    scale = nodes / PERIOD
    vertices = np.zeros((len(radius), max(max(len(o) for o in outlines), 1), 2))
    for n, outline in enumerate(outlines):
        angle = rng.uniform(0.0, 2.0 * np.pi)
        c, s = math.cos(angle), math.sin(angle)
        vertices[n, : len(outline)] = outline @ np.array([[c, s], [-s, c]]) * radius[n] * scale
    counts = np.array([len(o) for o in outlines], np.int64)
    picture = np.empty((nodes, nodes), np.float32)
    with parallel_section():
        edge = EDGE_PX / TEXEL_PX
        paint_periodic(picture, edge, places * scale, radius * scale, vertices, counts, level)
    return picture


def _halvings(picture: Float32) -> tuple[Float32, ...]:
    """The picture [N, N, 2], its halvings by means of 2x2 nodes, and its mean [1, 1, 2]."""
    pictures = [picture]
    for _ in range(HALVINGS):
        last = pictures[-1]
        side = len(last) // 2
        pictures.append(last.reshape(side, 2, side, 2, 2).mean(axis=(1, 3), dtype=np.float32))
    pictures.append(pictures[-1].mean(axis=(0, 1), keepdims=True, dtype=np.float32))
    return tuple(np.ascontiguousarray(p) for p in pictures)
