"""What the objects of MiniCandies lie on: ten table tops as colour images.

The ten objects of MiniCandies as height fields with colour, each one short function.

All take object coordinates (already moved, turned and scaled), a generator for what differs
between two good objects, and `variation`, the size of these differences (1 is usual). Four of them
are baked to nearly the same gold (biscuit, cookie, madeleine, waffle), two are brown (chocolate,
pretzel), two are pink (donut, macaron) and two are red (gummy, mint), so that categories can be
confused.
"""

from collections.abc import Callable

import numpy as np
from scipy.interpolate import CubicSpline

from iumad.data.minicandies.shapes import (
    Colour,
    Grid,
    Image,
    Surface,
    box,
    circle,
    direction,
    finish,
    mix,
    nearest,
    rounded,
    scatter,
    step,
    texture,
    vary,
    wobble,
)


def biscuit(grid: Grid, rng: np.random.Generator, variation: float) -> Surface:
    """Butter biscuit: scalloped rim, raised border, a rosette of docking holes."""
    radius, angle = np.hypot(grid.x, grid.y), np.arctan2(grid.y, grid.x)
    inside = 0.68 * (1 + 0.03 * np.cos(20 * angle)) - radius
    hole, _ = nearest(grid, np.concatenate([circle(1, 0.0), circle(6, 0.2), circle(12, 0.38)]))
    grain = texture(grid, rng, 9.0) + 0.6 * texture(grid, rng, 22.0)
    baked = 0.3 * step(radius, 0.35, 0.7) + variation * (0.07 * grain + rng.normal(0, 0.06))
    height = (
        0.13 * rounded(inside, 0.1)
        + 0.025 * np.exp(-(((radius - 0.56) / 0.035) ** 2))
        - 0.05 * step(-hole, -0.035, -0.01)
        + 0.004 * grain
    )
    albedo = mix((0.93, 0.76, 0.47), (0.62, 0.36, 0.14), baked)
    albedo = mix(albedo, (0.45, 0.26, 0.1), step(-hole, -0.04, -0.01))
    return finish(grid, inside, height, albedo, 0.08)


def chocolate(grid: Grid, rng: np.random.Generator, variation: float) -> Surface:
    """Chocolate bar of three by three pillows, each with an embossed ring."""
    inside = box(grid, 0.64, 0.06)
    cell = 1.28 / 3
    local = Grid((grid.x + 0.64) % cell - cell / 2, (grid.y + 0.64) % cell - cell / 2, grid.pixel)
    pillow = box(local, cell / 2 - 0.015, 0.04)
    ring = np.exp(-(((np.hypot(local.x, local.y) - 0.095) / 0.018) ** 2))
    haze = texture(grid, rng, 2.5)
    height = 0.10 * rounded(inside, 0.04) + 0.10 * rounded(pillow, 0.07) + 0.016 * ring
    shade = 0.5 + 0.12 * variation * haze + rng.normal(0, 0.08) * variation
    albedo = mix((0.30, 0.16, 0.09), (0.46, 0.27, 0.16), shade)
    return finish(grid, inside, height + 0.002 * haze, albedo, 0.45)


def cookie(grid: Grid, rng: np.random.Generator, variation: float) -> Surface:
    """Chocolate-chip cookie: irregular rim, lumpy top, dark chips in other places every time."""
    radius, angle = np.hypot(grid.x, grid.y), np.arctan2(grid.y, grid.x)
    inside = 0.64 * (1 + wobble(angle, rng, range(2, 7), 0.018 * variation)) - radius
    lumps, grain = texture(grid, rng, 3.0), texture(grid, rng, 14.0)
    distance, number = nearest(grid, scatter(rng, 11, 0.5))
    size = rng.uniform(0.045, 0.085, 11)[number]
    chip = np.clip(1 - distance / size, 0, 1)
    height = 0.2 * rounded(inside, 0.45) + 0.02 * lumps + 0.006 * grain + 0.05 * np.sqrt(chip)
    baked = 0.35 * step(radius, 0.4, 0.66) + 0.12 * (lumps + grain)
    baked += rng.normal(0, 0.06) * variation
    dough = mix((0.86, 0.64, 0.38), (0.56, 0.33, 0.15), baked)
    dark = step(chip, 0.0, 0.25)
    return finish(grid, inside, height, mix(dough, (0.22, 0.12, 0.07), dark), 0.08 + 0.3 * dark)


def donut(grid: Grid, rng: np.random.Generator, variation: float) -> Surface:
    """Ring with pink icing and sprinkles."""
    radius, angle = np.hypot(grid.x, grid.y), np.arctan2(grid.y, grid.x)
    across = np.abs(radius - 0.43)
    inside = 0.26 - across
    drip = wobble(angle, rng, range(3, 9), 0.010 * variation)
    icing = step(0.2 + drip - across, -0.012, 0.012)
    count = 26
    along = np.arange(count) * 2 * np.pi / count + rng.normal(0, 0.06, count)
    middle = rng.uniform(0.31, 0.55, (count, 1)) * direction(along)
    offset = np.linspace(-0.03, 0.03, 5)[:, None, None] * direction(rng.uniform(0, np.pi, count))
    distance, number = nearest(grid, (middle + offset).reshape(-1, 2))
    sprinkle = step(-distance, -0.022, -0.010)
    colours = np.array([(0.98, 0.86, 0.3), (0.35, 0.7, 0.9), (0.97, 0.97, 0.95), (0.5, 0.78, 0.4)])
    dough = mix((0.80, 0.55, 0.28), (0.62, 0.38, 0.16), 0.5 + 0.3 * texture(grid, rng, 8.0))
    pink = vary((0.93, 0.50, 0.62), rng, variation)
    glaze = mix(pink, colours[rng.integers(0, 4, count)][number % count], sprinkle)
    height = 0.26 * rounded(inside, 0.26) + 0.02 * icing + 0.016 * sprinkle
    return finish(grid, inside, height, mix(dough, glaze, icing), 0.06 + 0.5 * icing)


def gummy(grid: Grid, rng: np.random.Generator, variation: float) -> Surface:
    """Five-pointed fruit gum, clear enough to glow where it is thin."""
    radius, angle = np.hypot(grid.x, grid.y), np.arctan2(grid.y, grid.x)
    inside = 0.8 * (0.52 * (1 + 0.24 * np.cos(5 * angle)) - radius)
    height = 0.27 * rounded(inside, 0.3) - 0.05 * np.exp(-((radius / 0.13) ** 2))
    cloud = texture(grid, rng, 2.5)
    thin = 1 - height / 0.27 + variation * (0.1 * cloud + rng.normal(0, 0.08))
    albedo = mix((0.70, 0.06, 0.10), (0.98, 0.36, 0.30), thin)
    return finish(grid, inside, height + 0.003 * cloud, albedo, 0.9)


def macaron(grid: Grid, rng: np.random.Generator, variation: float) -> Surface:
    """Almond shell: smooth lilac dome over a ruffled foot."""
    radius, angle = np.hypot(grid.x, grid.y), np.arctan2(grid.y, grid.x)
    ruffle = texture(grid, rng, 11.0) + texture(grid, rng, 20.0)
    inside = 0.66 + 0.012 * variation * ruffle - radius
    shell = step(0.57 + 0.008 * np.cos(3 * angle + rng.uniform(0, 6.3)) - radius, -0.012, 0.012)
    height = (
        0.11 * rounded(inside, 0.05)
        + 0.018 * ruffle * (1 - shell)
        + 0.17 * shell * rounded(0.585 - radius, 0.42)
    )
    freckle = step(texture(grid, rng, 26.0), 0.45, 0.7)
    tone = 0.4 + 0.25 * ruffle * (1 - shell) + 0.5 * freckle * shell
    foot = mix((0.97, 0.82, 0.86), (0.86, 0.62, 0.74), tone + rng.normal(0, 0.1) * variation)
    albedo = mix(foot, (0.86, 0.70, 0.88), 0.75 * shell)
    albedo = mix(albedo, (0.62, 0.44, 0.62), 0.35 * freckle * shell)
    return finish(grid, inside, height, albedo, 0.12)


def madeleine(grid: Grid, rng: np.random.Generator, variation: float) -> Surface:
    """Shell cake: ribs that fan out from a hinge."""
    fan = np.arctan2(grid.x, 0.85 - grid.y)
    ribs = np.cos(36 * fan) * step(-grid.y, -0.55, -0.1)
    egg = np.hypot(grid.x / (0.52 * (1 - 0.3 * grid.y)), grid.y / 0.7)
    inside = 0.55 * (1 - egg) + 0.016 * ribs
    grain = texture(grid, rng, 12.0)
    height = 0.22 * rounded(inside, 0.3) + 0.022 * ribs + 0.004 * grain
    baked = 0.35 - 0.22 * ribs + 0.35 * step(-inside, -0.18, 0.0) + 0.12 * grain
    baked += rng.normal(0, 0.08) * variation
    albedo = mix((0.93, 0.73, 0.40), (0.66, 0.38, 0.15), baked)
    return finish(grid, inside, height, albedo, 0.12)


def mint(grid: Grid, rng: np.random.Generator, variation: float) -> Surface:
    """Peppermint drop with a red pinwheel."""
    radius, angle = np.hypot(grid.x, grid.y), np.arctan2(grid.y, grid.x)
    inside = 0.62 - radius
    twist = 2.2 + rng.normal(0, 0.25) * variation
    wheel = np.cos(7 * (angle + twist * radius)) + 0.15 * variation * texture(grid, rng, 4.0)
    red = step(wheel + 0.1, -0.18, 0.18) * step(radius, 0.04, 0.12)
    relief = 0.007 * wheel * step(inside, 0.0, 0.2) * step(radius, 0.0, 0.2)
    height = 0.23 * rounded(inside, 0.34) + relief
    crimson = vary((0.82, 0.10, 0.14), rng, variation)
    return finish(grid, inside, height, mix((0.96, 0.94, 0.91), crimson, red), 0.7)


def pretzel(grid: Grid, rng: np.random.Generator, variation: float) -> Surface:
    """Twisted rope of dough with salt."""
    half = np.array([(-0.30, 0.42), (-0.12, 0.16), (0.05, -0.07), (0.20, -0.34), (0.42, -0.42),
                     (0.60, -0.16), (0.50, 0.22), (0.27, 0.44), (0.0, 0.50)])  # fmt: skip
    knots = np.concatenate([half, half[-2::-1] * (-1, 1)]) + rng.normal(0, 0.008 * variation, 2)
    knots += rng.normal(0, 0.005 * variation, knots.shape)
    t = np.linspace(0, 1, 140)
    rope = CubicSpline(np.linspace(0, 1, len(knots)), knots)(t)
    distance, number = nearest(grid, rope)
    inside = 0.1 + 0.025 * np.sin(np.pi * t)[number] - distance
    crossing = np.exp(-(grid.x**2 + grid.y**2) / 0.02)
    salt, _ = nearest(grid, rope[np.arange(5, 140, 7)] + rng.normal(0, 0.02 * variation, (20, 2)))
    grains = step(-salt, -0.028, -0.012) * step(inside, 0.02, 0.04)
    grain = texture(grid, rng, 10.0)
    height = 0.2 * rounded(inside, 0.1) + 0.06 * crossing + 0.02 * grains + 0.003 * grain
    crust = 0.45 + 0.2 * grain + rng.normal(0, 0.1) * variation
    albedo = mix((0.66, 0.36, 0.14), (0.38, 0.18, 0.07), crust)
    return finish(grid, inside, height, mix(albedo, (0.88, 0.84, 0.76), grains), 0.4)


def waffle(grid: Grid, rng: np.random.Generator, variation: float) -> Surface:
    """Square waffle with four by four wells."""
    inside = box(grid, 0.66, 0.12)
    cell = 1.2 / 4
    local = Grid((grid.x + 0.6) % cell - cell / 2, (grid.y + 0.6) % cell - cell / 2, grid.pixel)
    well = step(box(local, cell / 2 - 0.035, 0.03), -0.005, 0.07)
    well *= step(box(grid, 0.6, 0.08), 0.0, 0.02)  # none outside the four by four
    grain = texture(grid, rng, 10.0)
    height = 0.2 * rounded(inside, 0.08) - 0.11 * well + 0.005 * grain
    patch = texture(grid, rng, 1.5)
    baked = 0.45 - 0.35 * well + 0.12 * grain + variation * (0.2 * patch + rng.normal(0, 0.07))
    albedo = mix((0.94, 0.76, 0.44), (0.70, 0.42, 0.16), baked)
    return finish(grid, inside, height, albedo, 0.15)


SHAPES: dict[str, Callable[[Grid, np.random.Generator, float], Surface]] = {
    "biscuit": biscuit,
    "chocolate": chocolate,
    "cookie": cookie,
    "donut": donut,
    "gummy": gummy,
    "macaron": macaron,
    "madeleine": madeleine,
    "mint": mint,
    "pretzel": pretzel,
    "waffle": waffle,
}


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
