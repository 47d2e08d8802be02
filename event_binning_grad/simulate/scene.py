"""Scenes: log intensity over all directions, painted into a cube map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import ConfigError
from event_binning_grad.numba_threads import parallel_section
from event_binning_grad.simulate.kernels import sample_all

SCENES = ("texture", "shapes")

TEXEL_PX = 0.5  # distance of the cube map's nodes against that of the sensor's pixels
EDGE_PX = 0.8  # half width of a painted edge: lens blur and the pixel's own aperture
MAX_FACE_NODES = 2049  # 100 MB for the six faces
TILE = 32  # nodes: shapes are looked up once a tile

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]

_FLAGS: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}


@dataclass(frozen=True, eq=False)
class Scene:
    """Log intensity over all directions: six cube faces of N x N nodes, bilinear in between.

    Face 2a looks along +axis a, face 2a+1 along -axis a; rows and columns run along the axes a+2
    and a+1. Nodes lie on the cube's edges too, where both faces hold the same values: no seams.
    """

    name: str
    faces: Float32  # [6, N, N]

    def log_intensity(self, directions: NDArray[np.floating]) -> Float32:
        """Log intensity [...] along directions [..., 3] of the world (any length but zero)."""
        flat = np.ascontiguousarray(directions, np.float32).reshape(-1, 3)
        return sample_all(self.faces, flat).reshape(np.shape(directions)[:-1])


@dataclass(frozen=True, eq=False)
class _Leaves:
    """Shapes on the sphere, the front one first. A shape is a disc or a polygon whose edges are
    great circles: straight lines in the plane that touches the sphere at the shape's centre."""

    frame: Float64  # [L, 3, 3] rows: right, down, centre
    radius: Float64  # [L] rad, of the circle around the shape
    vertices: Float64  # [L, K, 2] in the tangent plane, tan(angle)
    counts: NDArray[np.int64]  # [L] vertices used, 0 = disc
    level: Float64  # [L] log intensity


def make_scene(name: str, *, pixel_rad: float, seed: int = 0) -> Scene:
    """Paint the scene called name for a sensor whose pixels are pixel_rad wide."""
    rng = np.random.default_rng([seed, 2])
    if name == "texture":
        leaves = _texture_leaves(rng)
    elif name == "shapes":
        leaves = _shapes_leaves(rng)
    else:
        raise ConfigError(f"scene {name!r} is unknown; expected one of {', '.join(SCENES)}")
    nodes = min(MAX_FACE_NODES, math.ceil(2.0 / (TEXEL_PX * pixel_rad)) + 1)
    texel_rad = 2.0 / (nodes - 1)
    faces = np.empty((6, nodes, nodes), np.float32)
    edge = max(EDGE_PX * pixel_rad, 1.5 * texel_rad)
    with parallel_section():
        _paint(
            faces, edge, leaves.frame, leaves.radius, leaves.vertices, leaves.counts, leaves.level
        )
    return Scene(name, faces)


def _texture_leaves(rng: np.random.Generator) -> _Leaves:
    """Dead leaves: overlapping shapes of all sizes, most of them of weak contrast, as in a room."""
    count, smallest, largest = 2500, 0.06, 0.3
    # p(r) ~ r⁻³ makes the picture look alike at every scale.
    u = rng.uniform(size=count)
    radius = 1.0 / np.sqrt(1.0 / smallest**2 + u * (1.0 / largest**2 - 1.0 / smallest**2))
    level = rng.uniform(-0.27, 0.27, count) * np.where(rng.uniform(size=count) < 0.1, 3.0, 1.0)
    outlines = [_random_outline(rng) for _ in range(count)]
    return _assemble(rng, _random_directions(rng, count), radius, outlines, level)


def _shapes_leaves(rng: np.random.Generator) -> _Leaves:
    """Dark polygons, stars and discs with room between them on a plain bright wall."""
    centres: list[Float64] = []
    radii: list[float] = []
    for _ in range(3000):
        centre, radius = _random_directions(rng, 1)[0], rng.uniform(0.06, 0.17)
        if all(
            math.acos(np.clip(centre @ other, -1.0, 1.0)) > radius + other_radius + 0.2
            for other, other_radius in zip(centres, radii, strict=True)
        ):
            centres.append(centre)
            radii.append(radius)
    outlines = [_random_outline(rng) for _ in radii]
    level = rng.uniform(-1.1, -0.7, len(radii))
    return _assemble(rng, np.array(centres), np.array(radii), outlines, level)


def _random_directions(rng: np.random.Generator, count: int) -> Float64:
    vectors = rng.standard_normal((count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _random_outline(rng: np.random.Generator) -> Float64:
    """Corners [K, 2] inside the unit circle, going around; none for a disc."""
    kind = rng.choice(["disc", "polygon", "box", "star"], p=[0.2, 0.4, 0.25, 0.15])
    if kind == "disc":
        return np.empty((0, 2))
    if kind == "box":
        angle = rng.uniform(0.1, 0.25) * np.pi * np.array([1, -1, 1, -1])
        angle = angle + np.array([0, 0, 1, 1]) * np.pi
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if kind == "star":
        points = int(rng.integers(4, 7))
        radius = np.tile([1.0, rng.uniform(0.4, 0.6)], points)
        angle = np.arange(2 * points) * np.pi / points
    else:
        corners = int(rng.integers(3, 8))
        radius = rng.uniform(0.8, 1.0, corners)
        angle = (np.arange(corners) + rng.uniform(-0.25, 0.25, corners)) * 2 * np.pi / corners
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _assemble(
    rng: np.random.Generator,
    centres: Float64,  # [L, 3] unit
    radius: Float64,  # [L] rad
    outlines: list[Float64],
    level: Float64,
) -> _Leaves:
    """Give each shape a random turn about its centre and put all of them into one table."""
    helper = np.where(np.abs(centres[:, :1]) < 0.7, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    right = np.cross(helper, centres)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    down = np.cross(centres, right)
    turn = rng.uniform(0.0, 2.0 * np.pi, (len(radius), 1))
    turned: Float64 = np.cos(turn) * right + np.sin(turn) * down
    frame: Float64 = np.stack([turned, np.cross(centres, turned), centres], axis=1)
    vertices = np.zeros((len(radius), max(len(o) for o in outlines), 2))
    for n, outline in enumerate(outlines):
        vertices[n, : len(outline)] = outline * math.tan(radius[n])
    counts = np.array([len(o) for o in outlines], np.int64)
    return _Leaves(frame, radius, vertices, counts, level)


@numba.njit(parallel=True, **_FLAGS)
def _paint(faces, edge, frame, radius, vertices, counts, level):
    """Fill faces [6, N, N] tile by tile: shapes from front to back until nothing shines through."""
    nodes = faces.shape[1]
    tiles = (nodes + TILE - 1) // TILE
    for job in numba.prange(6 * tiles * tiles):
        face = job // (tiles * tiles)
        top = (job // tiles) % tiles * TILE
        left = job % tiles * TILE
        bottom, end = min(top + TILE, nodes), min(left + TILE, nodes)
        hits = _shapes_in_tile(face, top, bottom, left, end, nodes, edge, frame, radius)
        for row in range(top, bottom):
            for column in range(left, end):
                x, y, z = _node_direction(face, row, column, nodes)
                total, light = 0.0, 1.0
                for n in hits:
                    a = light * _coverage(
                        x, y, z, edge, frame[n], radius[n], vertices[n], counts[n]
                    )
                    total += a * level[n]
                    light -= a
                    if light < 1e-4:
                        break
                faces[face, row, column] = total  # the wall behind everything is at 0


@numba.njit(**_FLAGS)
def _shapes_in_tile(face, top, bottom, left, end, nodes, edge, frame, radius):
    """The shapes that may reach into a tile: circle against circle."""
    x, y, z = _node_direction(face, (top + bottom) // 2, (left + end) // 2, nodes)
    reach = 0.0
    for row in (top, bottom - 1):
        for column in (left, end - 1):
            u, v, w = _node_direction(face, row, column, nodes)
            reach = max(reach, math.acos(min(1.0, x * u + y * v + z * w)))
    hits = np.empty(len(radius), np.int64)
    count = 0
    for n in range(len(radius)):
        cosine = x * frame[n, 2, 0] + y * frame[n, 2, 1] + z * frame[n, 2, 2]
        if math.acos(max(-1.0, min(1.0, cosine))) < radius[n] + edge + reach:
            hits[count] = n
            count += 1
    return hits[:count]


@numba.njit(**_FLAGS)
def _node_direction(face, row, column, nodes):
    """The unit vector of a node of the cube map."""
    u = 2.0 * column / (nodes - 1) - 1.0
    v = 2.0 * row / (nodes - 1) - 1.0
    w = 1.0 - 2.0 * (face % 2)
    n = 1.0 / math.sqrt(u * u + v * v + 1.0)
    axis = face // 2
    if axis == 0:
        return w * n, u * n, v * n
    if axis == 1:
        return v * n, w * n, u * n
    return u * n, v * n, w * n


@numba.njit(**_FLAGS)
def _coverage(x, y, z, edge, frame, radius, vertices, count):
    """How much of the view along (x, y, z) a shape hides: 0 outside, 1 inside, smooth between."""
    forward = x * frame[2, 0] + y * frame[2, 1] + z * frame[2, 2]
    if forward < 0.5:  # 60 degrees off, further than any shape reaches
        return 0.0
    u = x * frame[0, 0] + y * frame[0, 1] + z * frame[0, 2]
    v = x * frame[1, 0] + y * frame[1, 1] + z * frame[1, 2]
    if count == 0:
        outside = math.atan2(math.sqrt(u * u + v * v), forward) - radius
    else:
        distance = _polygon_distance(u / forward, v / forward, vertices, count)
        outside = distance * forward * forward  # tangent plane back to an angle, near enough
    a = min(1.0, max(0.0, 0.5 - 0.5 * outside / edge))
    return a * a * (3.0 - 2.0 * a)


@numba.njit(**_FLAGS)
def _polygon_distance(x, y, vertices, count):
    """Distance of (x, y) to a polygon's outline, negative inside (any polygon, convex or not)."""
    nearest = np.inf
    inside = False
    for i in range(count):
        ax, ay = vertices[i, 0], vertices[i, 1]
        bx, by = vertices[(i + 1) % count, 0], vertices[(i + 1) % count, 1]
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = min(1.0, max(0.0, (px * ex + py * ey) / (ex * ex + ey * ey)))
        dx, dy = px - along * ex, py - along * ey
        nearest = min(nearest, dx * dx + dy * dy)
        if (ay > y) != (by > y) and px < ex * py / ey:
            inside = not inside
    return -math.sqrt(nearest) if inside else math.sqrt(nearest)
