"""Gradient noise in two dimensions (Perlin, "Improving Noise", SIGGRAPH 2002), in NumPy.

The generator of `iumad.data.minicandies` textures its objects with it, and
`iumad.data.perturb.redundant` adds it to whole images.
"""

import numpy as np
from jaxtyping import Float

PERIOD = 64  # cells after which the noise repeats; more than any texture here is wide


def perlin_noise(
    x: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"], rng: np.random.Generator
) -> Float[np.ndarray, "h w"]:
    """Smooth noise at the points (x, y), measured in cells of a lattice.

    Each lattice point carries a random unit gradient. A point inside a cell gets the four corners'
    linear ramps, blended with the quintic fade 6t^5 - 15t^4 + 10t^3, whose first and second
    derivatives vanish at the cell's borders.

    Returns
    -------
    array
        Within [-1, 1], exactly 0 at the lattice points, mean 0 over many cells.
    """
    angle = rng.uniform(0, 2 * np.pi, PERIOD * PERIOD)
    gradient_x, gradient_y = np.cos(angle), np.sin(angle)

    left, top = np.floor(x), np.floor(y)
    right_weight, bottom_weight = x - left, y - top
    column, row = left.astype(np.int64), top.astype(np.int64)

    def ramp(row_step: int, column_step: int) -> Float[np.ndarray, "h w"]:
        corner = (row + row_step) % PERIOD * PERIOD + (column + column_step) % PERIOD
        across, down = right_weight - column_step, bottom_weight - row_step
        return np.take(gradient_x, corner) * across + np.take(gradient_y, corner) * down

    fade_x, fade_y = fade(right_weight), fade(bottom_weight)
    upper_left, upper_right, lower_left, lower_right = (
        ramp(0, 0),
        ramp(0, 1),
        ramp(1, 0),
        ramp(1, 1),
    )
    upper = upper_left + fade_x * (upper_right - upper_left)
    lower = lower_left + fade_x * (lower_right - lower_left)
    # The blend of unit gradients reaches at most sqrt(1/2), in the centre of a cell.
    return np.sqrt(2) * (upper + fade_y * (lower - upper))


def fade(t: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Blend weight in [0, 1] for t in [0, 1]: 6t^5 - 15t^4 + 10t^3."""
    return t * t * t * (t * (t * 6 - 15) + 10)
