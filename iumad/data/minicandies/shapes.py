"""What the objects of MiniCandies are drawn with: coordinates, profiles, distances, textures.

Lengths are in object units: the image is 2 wide for an object of unit scale, and heights use the
same unit.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from iumad.data.noise import perlin_noise


@dataclass(frozen=True)
class Grid:
    """Object coordinates of all pixels, and the width of one pixel in the same unit."""

    x: Float[np.ndarray, "h w"]
    y: Float[np.ndarray, "h w"]
    pixel: float


@dataclass(frozen=True)
class Surface:
    """A drawn object.

    Attributes
    ----------
    height
        Above the table, in object units, 0 outside.
    coverage
        Share of the pixel that the object covers, 0 to 1.
    albedo
        Colour under white light, sRGB, 0 to 1.
    gloss
        Strength of highlights, 0 (flour) to 1 (glaze).
    """

    height: Float[np.ndarray, "h w"]
    coverage: Float[np.ndarray, "h w"]
    albedo: Float[np.ndarray, "h w 3"]
    gloss: Float[np.ndarray, "h w"]


Plane = Float[np.ndarray, "h w"]
Image = Float[np.ndarray, "h w 3"]
Colour = tuple[float, float, float]


def step(x: Plane, low: float, high: float) -> Plane:
    """Rise smoothly from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def rounded(inside: Plane, width: float) -> Plane:
    """Profile of a quarter circle: 0 at the rim (inside = 0), 1 from `width` inwards."""
    t = np.clip(inside / width, 0, 1)
    return np.sqrt(t * (2 - t))


def mix(base: Image | Colour, other: Image | Colour, weight: Plane) -> Image:
    """Colour between two colours (or images): `base` up to weight 0, `other` from weight 1 on."""
    share = np.clip(weight, 0, 1)[..., None]
    return np.asarray(base) + share * (np.asarray(other) - np.asarray(base))


def vary(colour: Colour, rng: np.random.Generator, variation: float) -> Colour:
    """Return a colour near the given one."""
    red, green, blue = np.asarray(colour) + rng.normal(0, 0.02, 3) * variation
    return float(red), float(green), float(blue)


def box(grid: Grid, half: float, corner: float) -> Plane:
    """Distance to the border of a square with rounded corners, positive inside."""
    dx, dy = np.abs(grid.x) - (half - corner), np.abs(grid.y) - (half - corner)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return corner - outside - np.minimum(np.maximum(dx, dy), 0)


def nearest(grid: Grid, points: Float[np.ndarray, "n 2"]) -> tuple[Plane, np.ndarray]:
    """Distance to the nearest point of a set and that point's number, for each pixel."""
    query = np.stack([grid.x, grid.y], axis=-1).reshape(-1, 2)
    distance, number = cKDTree(points).query(query)
    return distance.reshape(grid.x.shape), number.reshape(grid.x.shape)


def scatter(rng: np.random.Generator, count: int, radius: float) -> Float[np.ndarray, "n 2"]:
    """Points spread over a disc without clumps: a sunflower with jitter, turned at random."""
    place = np.arange(count) + 0.5
    angle = place * 2.399963 + rng.uniform(0, 2 * np.pi)  # golden angle
    points = direction(angle) * np.sqrt(place / count)[:, None]
    return radius * points + rng.normal(0, 0.25 * radius / np.sqrt(count), (count, 2))


def texture(grid: Grid, rng: np.random.Generator, cells: float) -> Plane:
    """Noise in [-1, 1] fixed to the object, with `cells` cells a unit length."""
    return perlin_noise((grid.x + 8) * cells, (grid.y + 8) * cells, rng)


def direction(angle: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 2"]:
    """Unit vectors at the angles, in radians."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def circle(count: int, radius: float) -> Float[np.ndarray, "{count} 2"]:
    """Points at equal angles on a circle."""
    return radius * direction(np.arange(count) * 2 * np.pi / count)


def wobble(
    angle: Plane, rng: np.random.Generator, orders: range, amount: float | Float[np.ndarray, "n"]
) -> Plane:
    """Random closed curve around 0: a sum of waves with `orders` periods a turn and given sizes."""
    sizes = rng.normal(0, amount, len(orders))
    phases = rng.uniform(0, 2 * np.pi, len(orders))
    waves = [
        size * np.cos(k * angle + at) for k, size, at in zip(orders, sizes, phases, strict=True)
    ]
    return np.sum(waves, axis=0)


def finish(
    grid: Grid,
    inside: Plane,
    height: Plane,
    albedo: Float[np.ndarray, "h w 3"],
    gloss: Plane | float,
) -> Surface:
    """Cut everything off at the rim; `inside` is the distance to it in object units."""
    coverage = np.clip(inside / grid.pixel + 0.5, 0, 1)
    return Surface(
        height=np.where(coverage > 0.5, np.maximum(height, 0.01), 0),
        coverage=coverage,
        albedo=np.clip(albedo, 0.02, 0.98),
        gloss=np.broadcast_to(np.asarray(gloss, dtype=float), inside.shape),
    )
