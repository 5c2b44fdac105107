"""Point clouds to depth images (valid mask, filling, encodings, scaling), and removal of the background plane.

A point cloud is an array of height x width x 3 in metres, x to the right, y down, z away from the
camera; (0, 0, 0) marks a pixel that was not measured.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped
from scipy import ndimage

from iumad.errors import ConfigError, DataError

Encoding = Literal["z", "z+normals", "xyz255"]

PERCENTILES = (1.0, 99.0)
MARGIN = 0.25  # of the percentiles' distance, on both sides: keeps small deep holes off the clip


def valid_mask(xyz: Float[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """Return where the sensor has measured: any coordinate differs from 0."""
    return np.any(xyz != 0, axis=-1)


def back_project(
    depth: Float32[np.ndarray, "h w"], fx: float, fy: float, cx: float, cy: float
) -> Float32[np.ndarray, "h w 3"]:
    """Turn z in metres into points with a pinhole camera; z = 0 becomes the invalid (0, 0, 0).

    Parameters
    ----------
    depth
        z of every pixel, 0 where invalid.
    fx, fy
        Focal lengths in pixels.
    cx, cy
        Principal point in pixels, counted from 0 at the first pixel.
    """
    rows, columns = np.indices(depth.shape)
    points = np.stack([(columns - cx) * depth / fx, (rows - cy) * depth / fy, depth], axis=-1)
    return points.astype(np.float32)


def fill_invalid(
    values: Float32[np.ndarray, "h w *channels"], valid: Bool[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w *channels"]:
    """Give every invalid pixel the value of the nearest valid one; valid pixels stay as they are.

    Raises
    ------
    DataError
        No pixel is valid.
    """
    if valid.all():
        return values.copy()
    return values[_nearest(valid)]


def robust_range(values: Shaped[np.ndarray, "..."]) -> tuple[float, float]:
    """Return (low, high): the 1st and 99th percentile, moved apart by a quarter of their distance on either side.

    A few stray points do not stretch the range, and a defect deeper than the object's relief still falls inside.

    Raises
    ------
    DataError
        There is no value.
    """
    if values.size == 0:
        raise DataError("the depth has no valid pixel, so it has no range")
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    margin = MARGIN * (high - low)
    return low - margin, high + margin


def encode_depth(
    xyz: Float32[np.ndarray, "h w 3"], encoding: Encoding = "z"
) -> Float32[np.ndarray, "h w c"]:
    """Turn a point cloud into an image whose z is still in metres; `scale_depth` makes it the network's input.

    Parameters
    ----------
    xyz
        Metres, (0, 0, 0) where invalid.
    encoding
        ``"z"``: filled z, one channel. ``"z+normals"``: filled z, then the x and y components of the surface
        normal that points to the camera, moved from [-1, 1] to [0, 1]. ``"xyz255"``: what the authors' release
        feeds its network, coordinates times 255 cast to 8 bits, divided by 255 again; it has no scale. For
        coordinates from 0 to 1 m the values are the metres themselves, cut to steps of 1/255 m. Others wrap
        around, so there is no inverse: -0.1 m and 0.9 m share a byte.

    Raises
    ------
    DataError
        No pixel is valid.
    ConfigError
        The encoding is unknown.
    """
    if encoding not in ("z", "z+normals", "xyz255"):
        raise ConfigError(f"encoding needs 'z', 'z+normals' or 'xyz255', got {encoding!r}")
    valid = valid_mask(xyz)
    if not valid.any():
        raise DataError("the point cloud has no valid pixel, so it has no depth image")
    if encoding == "xyz255":
        return _wrapped_bytes(xyz)
    z = fill_invalid(xyz[..., 2], valid)[..., None]
    if encoding == "z":
        return z
    normals = surface_normals(xyz)[..., :2] / 2 + np.float32(0.5)
    return np.concatenate([z, normals], axis=-1)


def scale_depth(
    image: Float32[np.ndarray, "h w c"], low: float, high: float, clip: bool = False
) -> Float32[np.ndarray, "h w 3"]:
    """Map z from [low, high] to [0, 1], linearly outside too; one channel becomes three equal ones.

    Parameters
    ----------
    image
        As `encode_depth` makes it, but not of ``"xyz255"``.
    low, high
        Metres. Equal ones, of a perfectly flat image, give 0.5.
    clip
        Cut at 0 and 1, for a range that belongs to the image itself.

    Raises
    ------
    ConfigError
        low is above high.
    """
    if not low <= high:
        raise ConfigError(f"depth scaling needs low < high in metres, got ({low}, {high})")
    z = scaled(image[..., 0], low, high, clip)
    if image.shape[-1] == 1:
        return np.repeat(z[..., None], 3, axis=2)
    return np.concatenate([z[..., None], image[..., 1:]], axis=-1)


def scaled(
    values: Shaped[np.ndarray, "*shape"], low: float, high: float, clip: bool = False
) -> Float32[np.ndarray, "*shape"]:
    """Map [low, high] to [0, 1] in double precision; 0.5 where both are equal."""
    if low == high:
        return np.full(values.shape, 0.5, dtype=np.float32)
    image = (values.astype(np.float64) - low) / (high - low)
    return (np.clip(image, 0, 1) if clip else image).astype(np.float32)


def surface_normals(xyz: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    """Return unit normals that point to the camera, from differences of neighbouring points.

    Central differences where both neighbours are valid, one-sided next to a hole or the border; a
    pixel without a normal of its own takes that of the nearest pixel that has one. A cloud without
    any (isolated points) gets (0, 0, -1), straight to the camera.
    """
    valid = valid_mask(xyz)
    points = xyz.astype(np.float64)
    along_x, has_x = _tangent(points, valid, axis=1)
    along_y, has_y = _tangent(points, valid, axis=0)
    normals = np.cross(along_y, along_x)  # y down, x right: this order points to the camera

    length = np.linalg.norm(normals, axis=-1)
    known = has_x & has_y & (length > 0)
    if not known.any():
        return np.broadcast_to(np.array([0, 0, -1], dtype=np.float32), xyz.shape).copy()
    normals /= np.where(known, length, 1)[..., None]
    return fill_invalid(normals.astype(np.float32), known)


def _nearest(valid: Bool[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "h w"], ...]:
    if not valid.any():
        raise DataError("the depth has no valid pixel, so nothing can be filled from")
    rows, columns = ndimage.distance_transform_edt(
        ~valid, return_distances=False, return_indices=True
    )
    return rows, columns


def _wrapped_bytes(xyz: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    """Cast as C does on common machines: towards zero, then modulo 256; bytes over 255."""
    whole = np.trunc(xyz.astype(np.float64) * 255)
    return (np.mod(whole, 256) / 255).clip(0, 1).astype(np.float32)


def _tangent(
    points: Float[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"], axis: int
) -> tuple[Float[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """Differences along an axis, and where there is a valid neighbour to take them to."""
    ahead, behind = np.roll(points, -1, axis), np.roll(points, 1, axis)
    has_ahead, has_behind = np.roll(valid, -1, axis), np.roll(valid, 1, axis)
    np.moveaxis(has_ahead, axis, 0)[-1] = False
    np.moveaxis(has_behind, axis, 0)[0] = False
    forward = np.where(has_ahead[..., None], ahead, points)
    backward = np.where(has_behind[..., None], behind, points)
    return forward - backward, valid & (has_ahead | has_behind)


BORDER = 0.04  # width of the border band, share of the shorter side
N_TRIALS = 300  # 0.5 ** 3 of the trials hit three plane points: one is missed in 10 ** 17 cases
MAX_POINTS = 2000
MAX_SPREAD = 0.02  # median distance to the plane over median depth; more is no plane
MIN_SHARE = 0.001  # smaller connected pieces of the foreground are sensor noise
_TO_SIGMA = 1.4826  # median absolute deviation to standard deviation of a normal distribution


def remove_plane(
    xyz: Float32[np.ndarray, "h w 3"], rng: np.random.Generator
) -> tuple[Float32[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """Set the background plane to invalid and return the point cloud with its foreground.

    The plane is the one with the least median distance to the points in a band along the image
    border (least median of squares over random triples, then least squares on the inliers), so up
    to half of the border may belong to the object. Foreground are the valid points further in
    front of the plane than four standard deviations of the border's own noise (at least 1/1000 of
    the distance), without pieces below 1/1000 of the image.

    Parameters
    ----------
    xyz
        Metres, (0, 0, 0) where invalid.
    rng
        Draws the triples.

    Returns
    -------
    xyz
        (0, 0, 0) outside the foreground.
    foreground
        True on the object.

    Raises
    ------
    DataError
        Fewer than three border points are valid, the border does not lie in a plane, or nothing
        stands out of it.
    """
    valid = valid_mask(xyz)
    border = _border_band(valid.shape) & valid
    points = xyz[border].astype(np.float64)
    if len(points) < 3:
        raise DataError(f"no background plane: {len(points)} valid points along the border, need 3")
    if len(points) > MAX_POINTS:
        points = rng.choice(points, MAX_POINTS, replace=False)

    normal, offset, sigma = _fit(points, rng)
    distance_to_plane = float(np.median(np.linalg.norm(points, axis=1)))
    if sigma / _TO_SIGMA > MAX_SPREAD * distance_to_plane:
        raise DataError("no background plane: the points along the border do not lie in a plane")

    height = xyz.astype(np.float64) @ normal - offset
    tolerance = max(4 * sigma, 1.0e-3 * distance_to_plane)
    foreground = _without_specks(valid & (height > tolerance))
    if not foreground.any():
        raise DataError("nothing stands out of the background plane")
    return np.where(foreground[..., None], xyz, np.float32(0)), foreground


def _border_band(shape: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    width = max(2, round(BORDER * min(shape)))
    band = np.ones(shape, dtype=bool)
    band[width:-width, width:-width] = False
    return band


def _fit(
    points: Float[np.ndarray, "n 3"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "3"], float, float]:
    """Return (normal to the camera, offset, sigma): points @ normal = offset on the plane."""
    triples = points[rng.integers(len(points), size=(N_TRIALS, 3))]
    normals = np.cross(triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    usable = lengths > 0
    if not usable.any():
        raise DataError("no background plane: the points along the border lie on one line")
    normals = normals[usable] / lengths[usable, None]
    offsets = np.einsum("td,td->t", normals, triples[usable, 0])
    medians = np.median(np.abs(points @ normals.T - offsets), axis=0)
    normal, offset = normals[medians.argmin()], float(offsets[medians.argmin()])

    for _ in range(3):
        residuals = np.abs(points @ normal - offset)
        inliers = points[residuals <= max(2.5 * _TO_SIGMA * np.median(residuals), 1.0e-12)]
        if len(inliers) < 3:
            break
        centre = inliers.mean(axis=0)
        normal = np.linalg.svd(inliers - centre, full_matrices=False)[2][-1]
        offset = float(centre @ normal)
    sigma = _TO_SIGMA * float(np.median(np.abs(points @ normal - offset)))
    # the camera is the origin, whose height is -offset: make it positive
    return (-normal, -offset, sigma) if offset > 0 else (normal, offset, sigma)


def _without_specks(foreground: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    pieces, _ = ndimage.label(foreground, structure=np.ones((3, 3)))
    large = np.bincount(pieces.ravel()) >= max(1, MIN_SHARE * foreground.size)
    large[0] = False
    return large[pieces]
