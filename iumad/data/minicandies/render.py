"""Light and sensors of MiniCandies: from a coloured height field to a photograph and a point cloud."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from scipy import ndimage

FIELD = 0.12  # metres of table that the image shows
CAMERA = 0.40  # metres from the camera to the table
SHADOW_STEPS = 14


@dataclass(frozen=True)
class Light:
    """One lamp, far away.

    Attributes
    ----------
    direction
        Unit vector (x right, y down, z up from the table) towards the lamp.
    power
        Of the direct light; the ambient light is the rest.
    colour
        Tint of the direct light, linear RGB.
    """

    direction: tuple[float, float, float]
    power: float
    colour: tuple[float, float, float]


def draw_light(rng: np.random.Generator, variation: float) -> Light:
    """Place the lamp at the upper left, give or take `variation` times some degrees."""
    azimuth = np.deg2rad(225 + rng.normal(0, 9) * variation)
    elevation = np.deg2rad(48 + rng.normal(0, 3) * variation)
    warmth = rng.normal(0, 0.025) * variation
    flat = np.cos(elevation)
    return Light(
        direction=(
            float(flat * np.cos(azimuth)),
            float(flat * np.sin(azimuth)),
            float(np.sin(elevation)),
        ),
        power=float(1.0 + rng.normal(0, 0.04) * variation),
        colour=(float(1.03 + warmth), 1.0, float(0.95 - warmth)),
    )


def shift(image: Float[np.ndarray, "h w"], rows: int, columns: int) -> Float[np.ndarray, "h w"]:
    """Read the image `rows` lower and `columns` further right, repeating its border."""
    height, width = image.shape
    row = np.clip(np.arange(height) + rows, 0, height - 1)
    column = np.clip(np.arange(width) + columns, 0, width - 1)
    return image[row[:, None], column]


def cast_shadow(
    height: Float[np.ndarray, "h w"], light: Light, pixel: float
) -> Float[np.ndarray, "h w"]:
    """Share of direct light that reaches each pixel, found by walking towards the lamp."""
    x, y, z = light.direction
    flat = np.hypot(x, y)
    reach = height.max() * flat / z
    lit = np.ones_like(height)
    for distance in np.linspace(0, reach, SHADOW_STEPS + 1)[1:]:
        rows, columns = round(distance * y / flat / pixel), round(distance * x / flat / pixel)
        clearance = height + distance * z / flat - shift(height, rows, columns)
        lit = np.minimum(lit, np.clip(0.5 + clearance / 0.04, 0, 1))
    return ndimage.gaussian_filter(lit, 0.018 / pixel)


def photograph(
    height: Float[np.ndarray, "h w"],
    albedo: Float[np.ndarray, "h w 3"],
    gloss: Float[np.ndarray, "h w"],
    light: Light,
    noise: Float[np.ndarray, "h w 3"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Diffuse and specular light with cast shadow and darkened hollows, seen straight from above.

    Parameters
    ----------
    height
        In units of half the image's width.
    albedo, gloss
        sRGB colour and strength of highlights, 0 to 1.
    light
        The lamp.
    noise
        Sensor noise to add, in units of the sRGB range.
    """
    pixel = 2 / height.shape[0]
    slope_y, slope_x = np.gradient(height, pixel)
    steepness = np.hypot(slope_x, slope_y)
    limit = 2.5 / np.maximum(steepness, 2.5)  # the step down to the table is no mirror
    normal = np.stack([-slope_x * limit, -slope_y * limit, np.ones_like(height)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)

    direction = np.asarray(light.direction)
    halfway = direction + np.array((0, 0, 1))  # the camera looks along z
    halfway /= np.linalg.norm(halfway)
    lit = cast_shadow(height, light, pixel)
    hollow = ndimage.gaussian_filter(height, 0.06 / pixel) - height
    ambient = 0.34 * np.clip(1 - 2.2 * np.clip(hollow, 0, None), 0.35, 1)
    direct = 0.92 * light.power * lit * np.clip(normal @ direction, 0, None)
    highlight = 0.55 * gloss * lit * np.clip(normal @ halfway, 0, None) ** 40
    glow = 0.06 * gloss * (1 - normal[..., 2])  # the room mirrored in slopes

    linear = albedo**2.2 * (ambient[..., None] + direct[..., None] * np.asarray(light.colour))
    linear += (highlight + glow)[..., None]
    exposed = linear / (1 + 0.12 * linear)  # highlights roll off softly
    return np.round(255 * np.clip(exposed ** (1 / 2.2) + noise, 0, 1)).astype(np.uint8)


def point_cloud(
    height: Float[np.ndarray, "h w"],
    foreground: Bool[np.ndarray, "h w"],
    rng: np.random.Generator,
) -> Float32[np.ndarray, "h w 3"]:
    """Organised point cloud of a pinhole camera above the table, in metres.

    The sensor is noisy (0.12 mm), the table a little tilted, and the surface is lost, (0, 0, 0), at
    parts of the silhouette and on steep walls, as with stereo and pattern projection.
    """
    rows, columns = height.shape
    tilt = rng.normal(0, 0.006, 2)
    axis_x, axis_y = (
        (np.arange(columns) + 0.5) * 2 / columns - 1,
        (np.arange(rows) + 0.5) * 2 / rows - 1,
    )
    table = CAMERA + 0.5 * FIELD * (tilt[0] * axis_x + tilt[1] * axis_y[:, None])
    z = table - 0.5 * FIELD * height + rng.normal(0, 1.2e-4, height.shape)
    z = np.round(z, 5)  # the sensor reports hundredths of a millimetre

    jump = ndimage.maximum_filter(height, 3) - ndimage.minimum_filter(height, 3)
    fate = ndimage.gaussian_filter(rng.normal(size=height.shape), 0.012 * rows)
    fate /= fate.std()
    rim = ndimage.binary_dilation(foreground) & ~ndimage.binary_erosion(foreground)
    lost = (rim & (fate > 1.0)) | ((jump > 16 / rows) & (fate > 0.6))

    xyz = np.stack(
        [axis_x * z * 0.5 * FIELD / CAMERA, axis_y[:, None] * z * 0.5 * FIELD / CAMERA, z], axis=-1
    )
    xyz[lost] = 0
    return xyz.astype(np.float32)
