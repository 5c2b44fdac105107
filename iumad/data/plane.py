"""Removal of the background plane that objects lie on, by a robust fit to the image border."""

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy import ndimage

from iumad.data.depth import valid_mask
from iumad.errors import DataError

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
