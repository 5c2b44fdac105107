"""Reading of colour images, masks, point clouds and depth maps, each to one exact type.

Repairs that are made, and no others: a grey image becomes three equal channels; an alpha channel is
dropped where it is opaque; a palette is resolved; NaN, infinite and absurd coordinates become the
invalid point (0, 0, 0) as long as fewer than half of the pixels are affected. All else is a
`DataError` that names the file.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

from iumad.data.decode import Header, is_lossy, read_array
from iumad.errors import DataError

MAX_COORDINATE = 1.0e6  # metres; what is larger is no measurement but damage
_OPAQUE = 255


def read_rgb(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read a colour image with 8 bits per channel, 0 to 255.

    Raises
    ------
    DataError
        The file is unreadable, has another bit depth, or an alpha channel that is not opaque.
    """
    array = read_array(path)
    if array.dtype != np.uint8:
        raise DataError(f"{path}: RGB needs 8 bits per channel (uint8), got {array.dtype}")
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    if array.shape[2] in (2, 4):
        if (array[..., -1] != _OPAQUE).any():
            raise DataError(f"{path}: RGB needs 3 channels; the alpha channel here is not opaque")
        array = array[..., :-1]
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array)


def read_mask(path: Path) -> Bool[np.ndarray, "h w"]:
    """Read a ground truth mask: any non-zero pixel is defective.

    Raises
    ------
    DataError
        The file is unreadable, has more than one channel, holds fractions, or is a JPEG (whose
        compression puts non-zero pixels around every edge).
    """
    if is_lossy(path):
        raise DataError(f"{path}: a mask needs a lossless format (png, tiff, npy), got JPEG")
    array = read_array(path)
    if array.ndim != 2:
        raise DataError(f"{path}: a mask needs one channel, got {array.shape[2]}")
    if array.dtype.kind not in "bui":
        raise DataError(f"{path}: a mask needs whole numbers, got {array.dtype}")
    return array != 0


def read_xyz(path: Path, scale: float = 1.0) -> Float32[np.ndarray, "h w 3"]:
    """Read an organised point cloud and return metres; (0, 0, 0) marks an invalid pixel.

    Parameters
    ----------
    path
        TIFF or NPY with floating-point numbers, height x width x 3.
    scale
        Metres per stored unit.

    Raises
    ------
    DataError
        The file is unreadable, has another shape or type, has no valid pixel, or has NaN, infinite
        or absurd numbers in at least half of its pixels.
    """
    array = read_array(path)
    if array.dtype.kind != "f" or array.ndim != 3 or array.shape[2] != 3:
        raise DataError(
            f"{path}: a point cloud needs floating-point numbers, height x width x 3, "
            f"got {array.dtype} {array.shape}"
        )
    points = _to_metres(array, scale)
    wrong = ~(np.abs(points) <= MAX_COORDINATE).all(axis=2)
    return _without(points, wrong, path)


def read_depth(path: Path, scale: float = 1.0) -> Float32[np.ndarray, "h w"]:
    """Read a depth map of one channel and return metres; 0 marks an invalid pixel.

    Parameters
    ----------
    path
        PNG or TIFF with at least 16 bits, or NPY; 0 means that nothing was measured.
    scale
        Metres per stored unit, 0.001 for millimetres.

    Raises
    ------
    DataError
        The file is unreadable, has 8 bits or several channels, has no valid pixel, or has NaN,
        infinite, negative or absurd numbers in at least half of its pixels.
    """
    array = read_array(path)
    if array.ndim != 2 or array.dtype.itemsize < 2:
        raise DataError(
            f"{path}: a depth map needs one channel of at least 16 bits, "
            f"got {array.dtype} {array.shape}"
        )
    depth = _to_metres(array, scale)
    wrong = ~((depth >= 0) & (depth <= MAX_COORDINATE))
    return _without(depth, wrong, path)


def require_rgb_header(path: Path, header: Header) -> None:
    """Raise DataError where the header alone shows that `read_rgb` will refuse the file."""
    if header.dtype != np.uint8:
        raise DataError(f"{path}: RGB needs 8 bits per channel (uint8), got {header.dtype}")


def require_same_size(path: Path, size: tuple[int, int], rgb_size: tuple[int, int]) -> None:
    """Raise DataError unless the file has the size (height, width) of its colour image."""
    if size != rgb_size:
        raise DataError(
            f"{path}: needs the size of its RGB image, {rgb_size[0]} x {rgb_size[1]}, "
            f"got {size[0]} x {size[1]} (nothing is resized in silence)"
        )


def _to_metres(array: np.ndarray, scale: float) -> Float64[np.ndarray, "..."]:
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float64) * scale


def _without(
    values: Float[np.ndarray, "h w *channels"], wrong: Bool[np.ndarray, "h w"], path: Path
) -> Float32[np.ndarray, "h w *channels"]:
    if 2 * wrong.sum() >= wrong.size:
        raise DataError(
            f"{path}: {wrong.sum()} of {wrong.size} pixels are NaN, infinite or out of range; "
            "fewer than half are needed"
        )
    values = values.astype(np.float32, copy=True) if not wrong.any() else _zeroed(values, wrong)
    if not values.any():
        raise DataError(f"{path}: has no valid pixel, every depth is 0")
    return values


def _zeroed(
    values: Float[np.ndarray, "h w *channels"], wrong: Bool[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w *channels"]:
    kept = values.copy()
    kept[wrong] = 0
    return kept.astype(np.float32)
