"""Reading of colour images, masks, point clouds and depth maps, each to one exact type.

Repairs that are made, and no others: a grey image becomes three equal channels; an alpha channel is
dropped where it is opaque; a palette is resolved; NaN, infinite and absurd coordinates become the
invalid point (0, 0, 0) as long as fewer than half of the pixels are affected. All else is a
`DataError` that names the file.

Raw arrays and headers of PNG, JPEG, TIFF and NPY files, one error type for every bad file.

The decoders are lenient in ways that would corrupt an experiment in silence: a PNG with a wrong
checksum is accepted, 16-bit colour is rounded to 8 bits, missing TIFF strips become zeros. Here all
of that raises `DataError`, whose text begins with the file's path.
"""

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from jaxtyping import Bool, Float, Float32, Float64, Shaped, UInt8
from PIL import Image

from iumad.errors import DataError

# tifffile reports damaged files in its log as well; the DataError says it once
logging.getLogger("tifffile").addHandler(logging.NullHandler())

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")
MAX_PIXELS = 1 << 26
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # colour type -> channels (3: a palette)
_ORIENTATION = 0x0112  # the tag of TIFF, which EXIF took over


@dataclass(frozen=True)
class Header:
    """What a file says about its array: size in pixels, channels (1 for grey) and stored type."""

    height: int
    width: int
    channels: int
    dtype: np.dtype


def read_header(path: Path) -> Header:
    """Read size and type without decoding the pixels.

    Raises
    ------
    DataError
        The file cannot be opened, is no image of a known kind, or is larger than `MAX_PIXELS`.
    """
    kind = _kind(path)
    with naming(path, kind):
        header = _HEADERS[kind](path)
    if header.height < 1 or header.width < 1 or header.channels not in (1, 2, 3, 4):
        raise DataError(
            f"{path}: needs height x width or height x width x (1 to 4 channels), "
            f"got {header.height} x {header.width} x {header.channels}"
        )
    if header.height * header.width > MAX_PIXELS:
        raise DataError(
            f"{path}: {header.height} x {header.width} pixels are more than {MAX_PIXELS}"
        )
    return header


def read_array(path: Path) -> np.ndarray:
    """Decode the whole file to an array of height x width or height x width x channels (2 to 4).

    Raises
    ------
    DataError
        The file is damaged, truncated, or stores what its array cannot hold (16-bit colour PNG).
    """
    header = read_header(path)
    kind = _kind(path)
    with naming(path, kind):
        array = _ARRAYS[kind](path)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.shape[:2] != (header.height, header.width):
        raise DataError(
            f"{path}: the header says {header.height} x {header.width}, the pixels {array.shape}"
        )
    return array


def is_lossy(path: Path) -> bool:
    """Whether the file's format changes pixel values on saving."""
    return _kind(path) == "JPEG"


@contextmanager
def naming(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a bad file into a DataError of one line that names it."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # damaged bytes reach decoders that raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a readable {kind} file ({reason[:200]})") from error


def _kind(path: Path) -> str:
    kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise DataError(f"{path}: unknown image type, needs one of {', '.join(IMAGE_SUFFIXES)}")
    return kinds.get(suffix, "NPY")


def _png_header(path: Path) -> Header:
    with path.open("rb") as file:
        start = file.read(26)
    if len(start) < 26 or start[:8] != _PNG_SIGNATURE or start[12:16] != b"IHDR":
        raise DataError(f"{path}: not a readable PNG file (it does not begin as one)")
    width, height, bits, colour = struct.unpack(">IIBB", start[16:26])
    if colour not in _PNG_CHANNELS:
        raise DataError(f"{path}: not a readable PNG file (colour type {colour})")
    return Header(
        height, width, _PNG_CHANNELS[colour], np.dtype("u2") if bits == 16 else np.dtype("u1")
    )


def _png_array(path: Path) -> np.ndarray:
    header = _png_header(path)
    if header.channels > 1 and header.dtype == np.uint16:
        raise DataError(f"{path}: colour needs 8 bits per channel, got 16")
    with Image.open(path, formats=["PNG"]) as image:
        image.verify()  # the checksum of every chunk, which decoding does not look at
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        _require_upright(path, image.getexif().get(_ORIENTATION, 1))
        transparent = "transparency" in image.info and header.dtype == np.uint8
        if image.mode == "P" or transparent:
            return np.array(image.convert("RGBA" if transparent else "RGB"))
        array = np.array(image)
    return array.astype(np.uint16) if header.dtype == np.uint16 else array


def _jpeg_header(path: Path) -> Header:
    with Image.open(path, formats=["JPEG"]) as image:
        return Header(image.height, image.width, len(image.getbands()), np.dtype("u1"))


def _jpeg_array(path: Path) -> np.ndarray:
    with Image.open(path, formats=["JPEG"]) as image:
        image.load()
        if image.mode not in ("L", "RGB"):
            raise DataError(f"{path}: needs grey or RGB, got {image.mode}")
        _require_upright(path, image.getexif().get(_ORIENTATION, 1))
        return np.array(image)


def _require_upright(path: Path, orientation: object) -> None:
    """Refuse a picture that viewers would turn: masks and depth would match only one of the two ways."""
    if orientation not in (None, 0, 1):  # 0 is what some cameras write for "not known"
        raise DataError(
            f"{path}: is stored turned (orientation tag {orientation}), so that masks and depth "
            "would not match; save it upright"
        )


def _tiff_series(path: Path, tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    if len(tiff.series) != 1:
        raise DataError(f"{path}: needs exactly one image, got {len(tiff.series)}")
    series = tiff.series[0]
    page = tiff.pages.first
    if page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
        raise DataError(f"{path}: needs grey or RGB, got photometric {page.photometric!s}")
    return series


def _tiff_header(path: Path) -> Header:
    with tifffile.TiffFile(path) as tiff:
        series = _tiff_series(path, tiff)
        return _header_of(path, series.shape, series.dtype)


def _tiff_array(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as tiff:
        series = _tiff_series(path, tiff)
        _require_upright(path, tiff.pages.first.tags.valueof(_ORIENTATION, 1))
        expected = _header_of(path, series.shape, series.dtype)
        counts = [count for page in series.pages if page for count in page.databytecounts]
        missing = any(count == 0 for count in counts)
        if tiff.pages.first.compression == tifffile.COMPRESSION.NONE:
            pixels = expected.height * expected.width * expected.channels
            missing |= 8 * sum(counts) < pixels * tiff.pages.first.bitspersample
        if missing:
            raise DataError(f"{path}: not a readable TIFF file (pixel data is missing)")
        return np.array(series.asarray())


def _npy_header(path: Path) -> Header:
    array = np.lib.format.open_memmap(path, mode="r")
    return _header_of(path, array.shape, array.dtype)


def _npy_array(path: Path) -> np.ndarray:
    return np.array(np.lib.format.open_memmap(path, mode="r"))


def _header_of(path: Path, shape: tuple[int, ...], dtype: np.dtype | None) -> Header:
    if dtype is None or dtype.kind not in "buif":
        raise DataError(f"{path}: needs numbers, got {dtype}")
    if len(shape) not in (2, 3):
        raise DataError(f"{path}: needs 2 or 3 axes, got shape {shape}")
    return Header(shape[0], shape[1], shape[2] if len(shape) == 3 else 1, dtype)


_HEADERS = {"PNG": _png_header, "JPEG": _jpeg_header, "TIFF": _tiff_header, "NPY": _npy_header}
_ARRAYS = {"PNG": _png_array, "JPEG": _jpeg_array, "TIFF": _tiff_array, "NPY": _npy_array}


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
    return as_points(read_array(path), path, scale)


def as_points(
    array: np.ndarray, name: Path | str, scale: float = 1.0
) -> Float32[np.ndarray, "h w 3"]:
    """Check an array as `read_xyz` checks a file; `name` is for errors."""
    if array.dtype.kind != "f" or array.ndim != 3 or array.shape[2] != 3:
        raise DataError(
            f"{name}: a point cloud needs floating-point numbers, height x width x 3, "
            f"got {array.dtype} {array.shape}"
        )
    points = _to_metres(array, scale)
    wrong = ~(np.abs(points) <= MAX_COORDINATE).all(axis=2)
    return _without(points, wrong, name)


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
    return as_depth(read_array(path), path, scale)


def as_depth(array: np.ndarray, name: Path | str, scale: float = 1.0) -> Float32[np.ndarray, "h w"]:
    """Check an array as `read_depth` checks a file; `name` is for errors."""
    if array.ndim != 2 or array.dtype.itemsize < 2:
        raise DataError(
            f"{name}: a depth map needs one channel of at least 16 bits, "
            f"got {array.dtype} {array.shape}"
        )
    depth = _to_metres(array, scale)
    wrong = ~((depth >= 0) & (depth <= MAX_COORDINATE))
    return _without(depth, wrong, name)


def read_other(path: Path) -> Shaped[np.ndarray, "h w 3"]:
    """Read a registered image of any further sensor, values as stored, one channel repeated to three.

    Raises
    ------
    DataError
        The file is unreadable, is neither uint8, uint16 nor floating point, has another number of channels
        than 1 or 3 (opaque alpha is dropped), or holds NaN or infinite values.
    """
    return as_other(read_array(path), path)


def as_other(array: np.ndarray, name: Path | str) -> Shaped[np.ndarray, "h w 3"]:
    """Check an array as `read_other` checks a file; `name` is for errors."""
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise DataError(
                f"{name}: holds NaN or infinite values; a map with holes is depth, else fill it"
            )
    elif array.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{name}: needs 8 or 16 bits or floating point, got {array.dtype}")
    if array.ndim == 3 and array.shape[2] in (2, 4):
        if array.dtype.kind == "f" or (array[..., -1] != np.iinfo(array.dtype).max).any():
            raise DataError(f"{name}: needs 1 or 3 channels, got {array.shape[2]}")
        array = array[..., :-1]
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3:
        raise DataError(f"{name}: needs 1 or 3 channels, got shape {array.shape}")
    return np.ascontiguousarray(array)


def require_rgb_header(path: Path, header: Header) -> None:
    """Raise DataError where the header alone shows that `read_rgb` will refuse the file."""
    if header.dtype != np.uint8:
        raise DataError(f"{path}: RGB needs 8 bits per channel (uint8), got {header.dtype}")


def require_same_size(path: Path | str, size: tuple[int, int], rgb_size: tuple[int, int]) -> None:
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
    values: Float[np.ndarray, "h w *channels"], wrong: Bool[np.ndarray, "h w"], path: Path | str
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
