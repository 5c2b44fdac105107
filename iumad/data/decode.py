"""Raw arrays and headers of PNG, JPEG, TIFF and NPY files, one error type for every bad file.

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
from PIL import Image

from iumad.errors import DataError

# tifffile reports damaged files in its log as well; the DataError says it once
logging.getLogger("tifffile").addHandler(logging.NullHandler())

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")
MAX_PIXELS = 1 << 26
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # colour type -> channels (3: a palette)
_EXIF_ORIENTATION = 0x0112


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
        if image.mode == "P" or "transparency" in image.info:
            transparent = "transparency" in image.info
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
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        if orientation != 1:
            raise DataError(
                f"{path}: is stored turned (EXIF orientation {orientation}), "
                "so that masks and depth would not match; save it upright"
            )
        return np.array(image)


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
        expected = _header_of(path, series.shape, series.dtype)
        counts = [count for page in series.pages if page for count in page.databytecounts]
        missing = any(count == 0 for count in counts)
        if tiff.pages.first.compression == tifffile.COMPRESSION.NONE:
            pixels = expected.height * expected.width * expected.channels
            missing |= sum(counts) < pixels * expected.dtype.itemsize
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
