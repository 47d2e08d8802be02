"""Scenes: log intensity over all directions, painted into a cube map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from event_binning_grad.errors import ConfigError
from event_binning_grad.numba_threads import parallel_section
from event_binning_grad.simulate.kernels import sample_all
from event_binning_grad.simulate.painting import EDGE_PX, TEXEL_PX, paint_cube, random_outline

SCENES = ("texture", "shapes")

MAX_FACE_NODES = 2049  # 100 MB for the six faces

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]


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
        paint_cube(
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
    outlines = [random_outline(rng) for _ in range(count)]
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
    outlines = [random_outline(rng) for _ in radii]
    level = rng.uniform(-1.1, -0.7, len(radii))
    return _assemble(rng, np.array(centres), np.array(radii), outlines, level)


def _random_directions(rng: np.random.Generator, count: int) -> Float64:
    vectors = rng.standard_normal((count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


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
