"""The six defects of MiniCandies: each changes a drawn object and says exactly where.

`size` scales the extent and `strength` the contrast or depth of a defect; 1 is usual for both.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from iumad.data.minicandies.shapes import Grid, Plane, Surface, mix, nearest, step, texture, wobble

Mask = Bool[np.ndarray, "h w"]
Defect = Callable[[Surface, Grid, np.random.Generator, float, float], tuple[Surface, Mask]]


def place(
    surface: Surface, grid: Grid, rng: np.random.Generator, margin: float, at_rim: bool = False
) -> tuple[float, float]:
    """Choose a point of the object, at least `margin` from its rim where the object is so wide."""
    depth = grid.pixel * ndimage.distance_transform_edt(surface.coverage > 0.5)
    allowed = (
        (depth > 0) & (depth < 2 * grid.pixel) if at_rim else depth > min(margin, 0.6 * depth.max())
    )
    choice = np.flatnonzero(allowed)[int(rng.random() * np.count_nonzero(allowed))]
    return float(grid.x.flat[choice]), float(grid.y.flat[choice])


def blob(grid: Grid, rng: np.random.Generator, centre: tuple[float, float], radius: float) -> Plane:
    """Distance from the centre of an irregular, oblong spot, 1 on its outline."""
    x, y = grid.x - centre[0], grid.y - centre[1]
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.5)
    along = (np.cos(turn) * x + np.sin(turn) * y) / np.sqrt(stretch)
    across = (np.cos(turn) * y - np.sin(turn) * x) * np.sqrt(stretch)
    angle = np.arctan2(across, along)
    orders = range(2, 5)
    outline = radius * (1 + wobble(angle, rng, orders, 0.24 / np.asarray(orders)))
    return np.hypot(along, across) / np.maximum(outline, 0.4 * radius)


def change(
    surface: Surface,
    height: Plane | None = None,
    albedo: Float[np.ndarray, "h w 3"] | None = None,
    gloss: Plane | None = None,
) -> Surface:
    """Copy of the surface with other height, colour or gloss."""
    return Surface(
        height=surface.height if height is None else height,
        coverage=surface.coverage,
        albedo=surface.albedo if albedo is None else albedo,
        gloss=surface.gloss if gloss is None else gloss,
    )


def bump(
    surface: Surface, grid: Grid, rng: np.random.Generator, size: float, strength: float
) -> tuple[Surface, Mask]:
    """Raise a swelling and keep its colour."""
    spot = _spot(surface, grid, rng, size * rng.uniform(0.13, 0.22))
    rise = strength * rng.uniform(0.05, 0.09) * np.clip(1 - spot**2, 0, 1) ** 1.5
    mask = (spot < 1) & (surface.height > 0)
    return change(surface, height=surface.height + np.where(mask, rise, 0)), mask


def dent(
    surface: Surface, grid: Grid, rng: np.random.Generator, size: float, strength: float
) -> tuple[Surface, Mask]:
    """Press a hollow and keep its colour."""
    spot = _spot(surface, grid, rng, size * rng.uniform(0.13, 0.22))
    fall = strength * rng.uniform(0.05, 0.09) * np.clip(1 - spot**2, 0, 1) ** 1.5
    mask = (spot < 1) & (surface.height > 0)
    lowered = np.maximum(surface.height - fall, np.minimum(surface.height, 0.02))
    return change(surface, height=np.where(mask, lowered, surface.height)), mask


def hole(
    surface: Surface, grid: Grid, rng: np.random.Generator, size: float, strength: float
) -> tuple[Surface, Mask]:
    """Drill a pit with steep walls, darker inside."""
    spot = _spot(surface, grid, rng, size * rng.uniform(0.06, 0.11))
    mask = (spot < 1) & (surface.height > 0)
    inside = np.where(mask, step(-spot, -1.0, -0.6), 0)
    depth = np.minimum(strength * rng.uniform(0.08, 0.16), 0.9 * surface.height)
    darker = mix(surface.albedo, 0.45 * surface.albedo, 0.6 * inside * min(strength, 1.5))
    return change(surface, height=surface.height - inside * depth, albedo=darker), mask


def stain(
    surface: Surface, grid: Grid, rng: np.random.Generator, size: float, strength: float
) -> tuple[Surface, Mask]:
    """Colour a spot, dry or wet; the surface keeps its height."""
    spot = _spot(surface, grid, rng, size * rng.uniform(0.09, 0.17))
    mask = (spot < 1) & (surface.coverage > 0.5)
    # A stain must be visible: one of the two colours that differ most from the object's own.
    contrast = np.linalg.norm(np.array(STAINS) - surface.albedo[mask].mean(axis=0), axis=1)
    colour = STAINS[np.argsort(contrast)[rng.integers(-2, 0)]]
    cover = np.where(mask, step(-spot, -1.0, -0.75), 0) * (1 + 0.15 * texture(grid, rng, 9.0))
    tinted = mix(surface.albedo, colour, np.clip(0.55 * strength * cover, 0, 0.95))
    wet = surface.gloss + rng.choice((0.0, 0.5)) * np.where(mask, cover, 0)
    return change(surface, albedo=tinted, gloss=np.clip(wet, 0, 1)), mask


def scratch(
    surface: Surface, grid: Grid, rng: np.random.Generator, size: float, strength: float
) -> tuple[Surface, Mask]:
    """Draw a curved groove, paler or darker than the surface."""
    x, y = place(surface, grid, rng, 0.12)
    turn, length = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.35, 0.65)
    t = np.linspace(-0.5, 0.5, 60)
    bend = rng.normal(0, 0.25) * length * 4 * t**2 + 0.006 * np.sin(25 * t + rng.uniform(0, 6.3))
    path = np.stack([
        x + np.cos(turn) * length * t - np.sin(turn) * bend,
        y + np.sin(turn) * length * t + np.cos(turn) * bend,
    ], axis=-1)  # fmt: skip
    distance, number = nearest(grid, path)
    width = rng.uniform(0.024, 0.034) * (1 - 0.5 * (2 * t[number]) ** 2)
    mask = (distance < width) & (surface.height > 0)
    groove = np.where(mask, 1 - distance / width, 0)
    fall = np.minimum(strength * rng.uniform(0.03, 0.045) * groove, 0.6 * surface.height)
    pale = rng.random() < 0.5 or surface.albedo[mask].mean() < 0.4  # dark grooves hide on chocolate
    bare = 0.55 * surface.albedo + (0.42 if pale else 0)
    exposed = mix(surface.albedo, bare, np.clip(0.8 * strength * np.sqrt(groove), 0, 1))
    return change(surface, height=surface.height - fall, albedo=exposed), mask


def chip(
    surface: Surface, grid: Grid, rng: np.random.Generator, size: float, strength: float
) -> tuple[Surface, Mask]:
    """Break a piece off the rim down to a rough stump."""
    centre = place(surface, grid, rng, 0.0, at_rim=True)
    spot = blob(grid, rng, centre, size * rng.uniform(0.13, 0.21))
    mask = (spot < 1) & (surface.height > 0)
    rough = texture(grid, rng, 9.0)
    left = 1 - np.clip(strength * rng.uniform(0.4, 0.65), 0, 0.85) * step(-spot, -1.0, -0.8)
    stump = np.maximum(surface.height * np.clip(left + 0.06 * rough * (left < 1), 0, 1), 0.01)
    height = np.where(mask, stump, surface.height)
    crumb = np.clip(1.2 * surface.albedo + 0.05, 0, 1)
    bare = np.where(mask & (left < 1), min(strength, 1.2) * (0.5 + 0.3 * rough), 0)
    dull = np.where(mask, 0.05, surface.gloss)
    return change(surface, height, mix(surface.albedo, crumb, bare), dull), mask


def _spot(surface: Surface, grid: Grid, rng: np.random.Generator, radius: float) -> Plane:
    return blob(grid, rng, place(surface, grid, rng, 0.8 * radius), radius)


STAINS = ((0.20, 0.26, 0.10), (0.10, 0.12, 0.26), (0.42, 0.20, 0.08), (0.90, 0.90, 0.82))
# Each defect with whether it changes the surface.
DRAW: dict[str, tuple[Defect, bool]] = {
    "bump": (bump, True),
    "chip": (chip, True),
    "dent": (dent, True),
    "hole": (hole, True),
    "scratch": (scratch, True),
    "stain": (stain, False),
}
