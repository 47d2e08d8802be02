"""Painting shapes into cube maps and tiles.

What numba compiles is in one file, since its cache of compiled code notices changes of the
function's own file only.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

TEXEL_PX = 0.5  # distance of a painting's nodes against that of the sensor's pixels
EDGE_PX = 0.8  # half width of a painted edge: lens blur and the pixel's own aperture
TILE = 32  # nodes: shapes are looked up once a tile

Float64 = NDArray[np.float64]

_FLAGS: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}


def random_outline(rng: np.random.Generator) -> Float64:
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


@numba.njit(parallel=True, **_FLAGS)
def paint_cube(faces, edge, frame, radius, vertices, counts, level):
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


@numba.njit(parallel=True, **_FLAGS)
def paint_periodic(picture, edge, centre, radius, vertices, counts, level):
    """Fill picture [N, N], which repeats itself on all sides, with shapes from front to back.

    centre [L, 2] (column, row), radius [L], vertices [L, K, 2] about the centre and edge (half the
    width of an outline) are in nodes; counts [L] vertices are used, 0 = disc. What is behind all
    shapes is at 0.
    """
    nodes = picture.shape[0]
    tiles = (nodes + TILE - 1) // TILE
    for job in numba.prange(tiles * tiles):
        top, left = job // tiles * TILE, job % tiles * TILE
        bottom, end = min(top + TILE, nodes), min(left + TILE, nodes)
        middle_x, middle_y = 0.5 * (left + end - 1), 0.5 * (top + bottom - 1)
        reach = math.hypot(end - left, bottom - top) / 2.0 + edge
        hits = np.empty(len(radius), np.int64)
        found = 0
        for n in range(len(radius)):
            x = _wrapped(middle_x - centre[n, 0], nodes)
            y = _wrapped(middle_y - centre[n, 1], nodes)
            if math.hypot(x, y) < radius[n] + reach:
                hits[found] = n
                found += 1
        for row in range(top, bottom):
            for column in range(left, end):
                total, light = 0.0, 1.0
                for n in hits[:found]:
                    x = _wrapped(column - centre[n, 0], nodes)
                    y = _wrapped(row - centre[n, 1], nodes)
                    distance = math.hypot(x, y)
                    if distance >= radius[n] + edge:
                        continue
                    if counts[n] == 0:
                        outside = distance - radius[n]
                    else:
                        outside = _polygon_distance(x, y, vertices[n], counts[n])
                    a = min(1.0, max(0.0, 0.5 - 0.5 * outside / edge))
                    a = light * a * a * (3.0 - 2.0 * a)
                    total += a * level[n]
                    light -= a
                    if light < 1e-4:
                        break
                picture[row, column] = total


@numba.njit(**_FLAGS)
def _wrapped(difference, period):
    """The difference of two places on a circle: from minus to plus half a period."""
    return difference - period * math.floor(difference / period + 0.5)
