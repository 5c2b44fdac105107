"""A sample as the model sees it: images of one size, depth encoded and scaled, mask resized with it.

Training, evaluation and prediction go through the same two functions: `resize` (all that depends on the sample
alone, and is cached) and `scale` (what depends on the range that was measured on training images). `Preparation`
holds everything that decides the result; it belongs to a trained model.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8
from PIL import Image
from pydantic import Field

from iumad.config.sections import AnyData, DepthEncoding, Section
from iumad.data.depth import encode_depth, robust_range, scale_depth, scaled, valid_mask
from iumad.data.sample import Reader, Sample, Source
from iumad.errors import DataError

Range = tuple[float, float]


class Preparation(Section):
    """How a capture becomes the inputs of a model.

    Attributes
    ----------
    reader : Reader
        From files to arrays.
    image_size, depth_encoding
        As in the `data` section.
    scaling : modality -> (low, high) or "sample"
        What becomes 0 and 1, of depth in metres and of other images with more than 8 bits in stored units;
        "sample": the range of each image by itself.
    """

    reader: Reader = Reader()
    image_size: int
    depth_encoding: DepthEncoding = "z"
    scaling: dict[str, Literal["sample"] | Range] = Field(default_factory=dict)


@dataclass(frozen=True)
class Resized:
    """The images of one sample at the model's size, values as measured.

    Attributes
    ----------
    images : modality -> size x size x channels
        uint8 where the sensor gave 8 bits; else float32: z in metres, or stored units.
    mask : bool, size x size, or None where it is not known what is defective
    ranges : modality -> (low, high)
        Robust range of each image that needs one, before resizing (`iumad.data.depth.robust_range`).
    """

    images: dict[str, Shaped[np.ndarray, "size size c"]]
    mask: Bool[np.ndarray, "size size"] | None
    ranges: dict[str, Range]


@dataclass(frozen=True)
class Prepared:
    """The inputs of one sample.

    Attributes
    ----------
    images : modality -> size x size x 3
        uint8, or float32 with the range of the training images at 0 and 1 (values outside go on linearly).
    mask : bool, size x size, or None where it is not known what is defective
    """

    images: dict[str, Shaped[np.ndarray, "size size 3"]]
    mask: Bool[np.ndarray, "size size"] | None

    @property
    def rgb(self) -> UInt8[np.ndarray, "size size 3"] | None:
        """The colour image, None where it was not asked for."""
        return self.images.get("rgb")

    @property
    def depth(self) -> Float32[np.ndarray, "size size 3"] | None:
        """The depth image, None where it was not asked for."""
        return self.images.get("depth")

    @property
    def outline(self) -> Bool[np.ndarray, "size size"]:
        """The mask to draw: where none is known, nothing is marked."""
        size = next(iter(self.images.values())).shape[:2]
        return np.zeros(size, dtype=bool) if self.mask is None else self.mask


def prepare(sample: Sample, how: Preparation, modalities: Iterable[str]) -> Prepared:
    """The inputs of a sample; see `resize` and `scale`."""
    return scale(resize(sample, how.image_size, how.depth_encoding, modalities), how)


def prepare_capture(
    capture: Mapping[str, Source], how: Preparation, modalities: Iterable[str]
) -> Prepared:
    """The inputs of a capture that is in no data set.

    Parameters
    ----------
    capture
        Modality -> file or array (`iumad.data.sample.Reader.read`).
    how, modalities
        Those of a model.

    Raises
    ------
    DataError
        An image is missing or damaged, or the images differ in size.
    """
    modalities = tuple(modalities)
    name = ", ".join(
        str(source) if isinstance(source, Path) else f"{kind} array"
        for kind, source in capture.items()
    )
    missing = [kind for kind in modalities if kind not in capture]
    if missing:
        raise DataError(
            f"{name}: the model needs {' + '.join(modalities)}; the {missing[0]} image is missing"
        )
    images = how.reader.read(capture)
    sample = Sample(
        name,
        category="",
        split="test",
        defect="",
        rgb=images.rgb,
        xyz=images.xyz,
        mask=None,
        others=images.others,
    )
    return prepare(sample, how, modalities)


def resize(
    sample: Sample, size: int, encoding: DepthEncoding, modalities: Iterable[str]
) -> Resized:
    """Encode depth and resize everything to `size` (aspect ignored, bilinear; mask nearest).

    Raises
    ------
    DataError
        The sample lacks a modality.
    """
    images, ranges = {}, {}
    for name in modalities:
        if name == "rgb":
            images[name] = _resize_bytes(sample.rgb, size)
        elif name == "depth" and sample.xyz is not None:
            images[name] = _resize_floats(encode_depth(sample.xyz, encoding), size)
            if encoding != "xyz255":
                ranges[name] = robust_range(sample.xyz[..., 2][valid_mask(sample.xyz)])
        elif name in sample.others and sample.others[name].dtype == np.uint8:
            images[name] = _resize_bytes(sample.others[name], size)
        elif name in sample.others:
            images[name] = _resize_floats(sample.others[name].astype(np.float32), size)
            ranges[name] = robust_range(sample.others[name])
        else:
            raise DataError(
                f"{sample.sample_id}: modality {name!r} is asked for, but this sample has "
                f"{', '.join(_modalities(sample))} only"
            )
    mask = None if sample.mask is None else _resize_mask(sample.mask, size)
    return Resized(images, mask, ranges)


def scale(resized: Resized, how: Preparation) -> Prepared:
    """Bring every image that has a range to the one that the preparation says."""
    images = dict(resized.images)
    for name, own in resized.ranges.items():
        given = how.scaling[name]
        low, high = own if given == "sample" else given
        if name == "depth":
            images[name] = scale_depth(images[name], low, high, clip=given == "sample")
        else:
            images[name] = scaled(images[name], low, high, clip=given == "sample")
    return Prepared(images, resized.mask)


def joint_range(ranges: Iterable[Range]) -> Range:
    """The range that covers those of all images.

    Raises
    ------
    DataError
        There is none.
    """
    lows_and_highs = list(ranges)
    if not lows_and_highs:
        raise DataError("a range is measured on training images, and there are none")
    lows, highs = zip(*lows_and_highs, strict=True)
    return min(lows), max(highs)


def for_the_eye(sample: Sample, config: AnyData, modalities: Iterable[str]) -> Prepared:
    """A sample at the model's size, each image stretched to its own range: for pictures, not for models."""
    resized = resize(sample, config.image_size, config.depth_encoding, modalities)
    how = Preparation(image_size=config.image_size, scaling=dict.fromkeys(resized.ranges, "sample"))
    return scale(resized, how)


def _modalities(sample: Sample) -> list[str]:
    return ["rgb", *(["depth"] if sample.xyz is not None else []), *sample.others]


def _resize_bytes(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    if image.shape[:2] == (size, size):
        return image
    # a copy, because torch warns of arrays that it could not write to
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def _resize_floats(
    image: Float32[np.ndarray, "h w c"], size: int
) -> Float32[np.ndarray, "size size c"]:
    if image.shape[:2] == (size, size):
        return image
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., channel])).resize(
            (size, size), Image.Resampling.BILINEAR
        )
        for channel in range(image.shape[2])
    ]
    return np.stack([np.asarray(channel, dtype=np.float32) for channel in channels], axis=-1)


def _resize_mask(mask: Bool[np.ndarray, "h w"], size: int) -> Bool[np.ndarray, "size size"]:
    """Nearest pixels; a defect that lies between them keeps those that it touches."""
    if mask.shape == (size, size):
        return mask
    resized = np.array(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))
    if mask.any() and not resized.any():  # between the pixels that are kept
        rows, columns = np.nonzero(mask)
        resized[rows * size // mask.shape[0], columns * size // mask.shape[1]] = True
    return resized
