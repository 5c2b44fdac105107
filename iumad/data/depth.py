"""Removal of the background plane that objects lie on, by a robust fit to the image border.

Point clouds to depth images: valid mask, filling, scaling, encodings and their inverses.

A point cloud is an array of height x width x 3 in metres, x to the right, y down, z away from the
camera; (0, 0, 0) marks a pixel that was not measured.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy import ndimage

from iumad.errors import ConfigError, DataError

Encoding = Literal["z", "z+normals", "xyz255"]
Scaling = Literal["sample"] | tuple[float, float]

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


def scaling_range(
    z: Float32[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"]
) -> tuple[float, float]:
    """Return the robust range (low, high) of z in metres inside the valid mask.

    The 1st and 99th percentile, moved apart by a quarter of their distance on either side: a few
    stray points do not stretch the range, and a defect deeper than the object's own relief still
    falls inside.

    Raises
    ------
    DataError
        No pixel is valid.
    """
    if not valid.any():
        raise DataError("the depth has no valid pixel, so it has no range")
    low, high = (float(value) for value in np.percentile(z[valid], PERCENTILES))
    margin = MARGIN * (high - low)
    return low - margin, high + margin


def training_range(clouds: Iterable[Float32[np.ndarray, "h w 3"]]) -> tuple[float, float]:
    """Return one range (low, high) that covers the robust range of every given point cloud.

    Meant for the training samples of the base step (`iumad data range`); clouds are read one at a
    time.

    Raises
    ------
    DataError
        No cloud was given or one has no valid pixel.
    """
    ranges = [scaling_range(cloud[..., 2], valid_mask(cloud)) for cloud in clouds]
    if not ranges:
        raise DataError("a training range needs at least one point cloud, got none")
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def encode_depth(
    xyz: Float32[np.ndarray, "h w 3"],
    encoding: Encoding = "z",
    scaling: Scaling = "sample",
) -> Float32[np.ndarray, "h w 3"]:
    """Turn a point cloud into an image with values in [0, 1].

    Parameters
    ----------
    xyz
        Metres, (0, 0, 0) where invalid.
    encoding
        ``"z"``: filled and scaled z in three equal channels. ``"z+normals"``: scaled z, then the x
        and y components of the surface normal that points to the camera, moved from [-1, 1] to
        [0, 1]. ``"xyz255"``: what the authors' release feeds its network, coordinates times 255
        cast to 8 bits, divided by 255 again; `scaling` does not apply. For coordinates from 0 to
        1 m the values are the metres themselves, cut to steps of 1/255 m. Others wrap around, so
        there is no inverse: -0.1 m and 0.9 m share a byte.
    scaling
        ``"sample"`` for `scaling_range` of this cloud, or (low, high) in metres for 0 and 1, e.g.
        from `training_range`. Values outside are clipped. A perfectly flat cloud becomes 0.5.

    Raises
    ------
    DataError
        No pixel is valid.
    ConfigError
        low is not below high, or the encoding is unknown.
    """
    if encoding not in ("z", "z+normals", "xyz255"):
        raise ConfigError(f"encoding needs 'z', 'z+normals' or 'xyz255', got {encoding!r}")
    valid = valid_mask(xyz)
    if not valid.any():
        raise DataError("the point cloud has no valid pixel, so it has no depth image")
    if encoding == "xyz255":
        return _wrapped_bytes(xyz)

    z = _scaled(xyz[..., 2], valid, scaling)
    if encoding == "z":
        return np.repeat(z[..., None], 3, axis=2)
    normals = surface_normals(xyz)
    return np.stack([z, *(normals[..., axis] / 2 + np.float32(0.5) for axis in (0, 1))], axis=-1)


def decode_z(
    image: Float32[np.ndarray, "h w 3"], low: float, high: float
) -> Float32[np.ndarray, "h w"]:
    """Return z in metres from ``"z"`` or ``"z+normals"``, right where not filled or clipped."""
    return (low + image[..., 0] * np.float64(high - low)).astype(np.float32)


def decode_normals(image: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    """Return unit normals from ``"z+normals"``; pointing to the camera, they have z <= 0."""
    x, y = (2 * image[..., channel] - 1 for channel in (1, 2))
    z = -np.sqrt(np.clip(1 - x**2 - y**2, 0, None))
    return np.stack([x, y, z], axis=-1)


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


def _scaled(
    z: Float32[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"], scaling: Scaling
) -> Float32[np.ndarray, "h w"]:
    low, high = scaling_range(z, valid) if scaling == "sample" else scaling
    if scaling != "sample" and not low < high:
        raise ConfigError(f"depth scaling needs low < high in metres, got ({low}, {high})")
    if low == high:
        return np.full(z.shape, 0.5, dtype=np.float32)
    filled = fill_invalid(z, valid).astype(np.float64)
    return np.clip((filled - low) / (high - low), 0, 1).astype(np.float32)


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
