"""What the objects of MiniCandies lie on: ten table tops as colour images."""

from collections.abc import Callable

import numpy as np

from iumad.data.minicandies_shapes import Colour, Grid, Image, mix, step, texture

Table = Callable[[Grid, np.random.Generator], Image]


def stone(dark: Colour, bright: Colour, veins: float) -> Table:
    """Clouded stone with fine grain; `veins` draws marble."""

    def draw(grid: Grid, rng: np.random.Generator) -> Image:
        cloud = texture(grid, rng, 1.5) + 0.5 * texture(grid, rng, 4.0)
        vein = np.exp(-((texture(grid, rng, 1.1) + 0.25 * cloud) ** 2) / 0.004)
        tone = 0.55 + 0.22 * cloud + 0.18 * texture(grid, rng, 26.0) - veins * vein
        return mix(dark, bright, tone)

    return draw


def wood(dark: Colour, bright: Colour) -> Table:
    """Planks with grain along x."""

    def draw(grid: Grid, rng: np.random.Generator) -> Image:
        plank = np.floor(grid.y / 0.5)
        seam = np.abs(grid.y / 0.5 - plank - 0.5) * 0.5
        fibres = texture(Grid(grid.x * 0.1 + 0.37 * plank, grid.y, grid.pixel), rng, 16.0)
        rings = np.sin(
            14 * grid.y + 3 * texture(Grid(grid.x * 0.3 + plank, grid.y, grid.pixel), rng, 2.0)
        )
        tone = 0.55 + 0.2 * fibres + 0.1 * rings + 0.1 * np.sin(2.4 * plank)
        return mix(dark, bright, tone) * (1 - 0.35 * step(seam, 0.238, 0.25))[..., None]

    return draw


def cloth(ground: Colour, thread: Colour, stripe: float) -> Table:
    """Woven cloth; `stripe` is the period of its gingham check, 0 for a plain one."""

    def draw(grid: Grid, rng: np.random.Generator) -> Image:
        weave = np.sin(2 * np.pi * grid.x / 0.06) * np.sin(2 * np.pi * grid.y / 0.06)
        tone = 0.3 + 0.12 * weave + 0.12 * texture(grid, rng, 2.0)
        if stripe:
            bands = [
                step(np.sin(2 * np.pi * axis / stripe), -0.15, 0.15) for axis in (grid.x, grid.y)
            ]
            tone = tone - 0.2 + 0.36 * (bands[0] + bands[1])
        return mix(ground, thread, tone)

    return draw


def paper(base: Colour, fleck: Colour) -> Table:
    """Baking paper: almost plain, with soft creases and flecks."""

    def draw(grid: Grid, rng: np.random.Generator) -> Image:
        crease = 0.5 + 0.35 * texture(grid, rng, 0.9) + 0.2 * texture(grid, rng, 18.0)
        flecks = step(texture(grid, rng, 14.0), 0.5, 0.7)
        return mix(base, fleck, 0.25 * crease + 0.12 * flecks)

    return draw


TABLES: dict[str, Table] = {
    "biscuit": cloth((0.93, 0.92, 0.88), (0.36, 0.52, 0.66), 0.42),
    "chocolate": paper((0.90, 0.85, 0.74), (0.72, 0.62, 0.48)),
    "cookie": stone((0.30, 0.34, 0.38), (0.48, 0.52, 0.55), 0.0),
    "donut": paper((0.72, 0.86, 0.84), (0.50, 0.70, 0.70)),
    "gummy": cloth((0.94, 0.90, 0.80), (0.78, 0.70, 0.55), 0.0),
    "macaron": stone((0.62, 0.62, 0.64), (0.95, 0.94, 0.92), 0.45),
    "madeleine": cloth((0.30, 0.40, 0.52), (0.52, 0.62, 0.72), 0.0),
    "mint": stone((0.10, 0.28, 0.27), (0.22, 0.44, 0.40), 0.0),
    "pretzel": wood((0.50, 0.34, 0.20), (0.80, 0.62, 0.42)),
    "waffle": stone((0.16, 0.17, 0.20), (0.34, 0.36, 0.40), 0.12),
}
