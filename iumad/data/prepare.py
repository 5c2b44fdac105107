"""A sample as the model sees it: images of one size, depth encoded, mask resized with it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from iumad.config.sections import EyecandiesConfig, FolderConfig, MiniCandiesConfig
from iumad.data.depth import encode_depth
from iumad.data.sample import Sample
from iumad.errors import DataError


@dataclass(frozen=True)
class Prepared:
    """The inputs of one sample at the model's image size.

    Attributes
    ----------
    rgb : uint8 array, size x size x 3, or None when not asked for
    depth : float32 array in [0, 1], size x size x 3, or None when not asked for
    mask : bool array, size x size
    """

    rgb: UInt8[np.ndarray, "size size 3"] | None
    depth: Float32[np.ndarray, "size size 3"] | None
    mask: Bool[np.ndarray, "size size"]


def prepare(
    sample: Sample,
    config: MiniCandiesConfig | FolderConfig | EyecandiesConfig,
    modalities: Iterable[str] = ("rgb", "depth"),
) -> Prepared:
    """Resize to `config.image_size` (aspect ignored, bilinear; mask nearest) and encode depth.

    Raises
    ------
    DataError
        Depth is asked for and the sample has none.
    """
    modalities, size = tuple(modalities), config.image_size
    depth = None
    if "depth" in modalities:
        if sample.xyz is None:
            raise DataError(
                f"{sample.sample_id}: modality 'depth' is asked for, but this sample has RGB only"
            )
        encoded = encode_depth(sample.xyz, config.depth_encoding, config.depth_scaling)
        depth = _resize_float(encoded, size)
    rgb = _resize_rgb(sample.rgb, size) if "rgb" in modalities else None
    return Prepared(rgb, depth, _resize_mask(sample.mask, size))


def _resize_rgb(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def _resize_float(
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
    if mask.shape == (size, size):
        return mask
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))
