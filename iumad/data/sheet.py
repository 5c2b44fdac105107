"""Contact sheets: one look at what a data set holds."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from iumad.data.depth import encode_depth
from iumad.data.sample import GOOD, Dataset, Sample
from iumad.errors import DataError

TILE = 112  # pixels
LABEL = 14  # pixels of text above each tile
_OUTLINE = (255, 0, 90)


def contact_sheet(dataset: Dataset, n_defects: int = 4) -> Image.Image:
    """Draw one row per category: a good image, then one of each of the first defects.

    Every sample is its colour image with the mask outlined and, where it has depth, its scaled
    depth image beside it. A sample that cannot be read is a grey tile with its id.

    Parameters
    ----------
    dataset
        Any data set.
    n_defects
        Largest number of defect types in a row.
    """
    has_depth = "depth" in dataset.modalities
    width = TILE * (1 + has_depth)
    rows = [_chosen(dataset, category, n_defects) for category in dataset.categories]
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + 4), len(rows) * (TILE + LABEL + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        for j, (sample_id, title) in enumerate(row):
            x, y = j * (width + 4), i * (TILE + LABEL + 4)
            draw.text((x + 1, y), title[: width // 5], fill="black")
            sheet.paste(_tiles(dataset, sample_id, has_depth), (x, y + LABEL))
    return sheet


def outlined(
    rgb: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image with the border of the mask's regions drawn one pixel wide."""
    image = rgb.copy()
    image[mask & ~ndimage.binary_erosion(mask)] = _OUTLINE
    return image


def _chosen(dataset: Dataset, category: str, n_defects: int) -> list[tuple[str, str]]:
    """Return the ids and titles of the samples in a category's row."""
    rows = dataset.index[dataset.index["category"] == category]
    good = rows[rows["defect"] == GOOD].head(1)
    defects = rows[rows["label"] == 1].drop_duplicates("defect").head(n_defects)
    chosen = pd.concat([good, defects])
    return [(row.sample_id, f"{category} {row.defect}") for row in chosen.itertuples()]


def _tiles(dataset: Dataset, sample_id: str, has_depth: bool) -> Image.Image:
    strip = Image.new("RGB", (TILE * (1 + has_depth), TILE), "grey")
    try:
        images = _images(dataset.load(sample_id))
    except DataError:
        ImageDraw.Draw(strip).text((4, 4), f"unreadable\n{sample_id}", fill="white")
        return strip
    for position, image in enumerate(images):
        tile = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BILINEAR)
        strip.paste(tile, (position * TILE, 0))
    return strip


def _images(sample: Sample) -> list[UInt8[np.ndarray, "h w 3"]]:
    size = sample.mask.shape
    step = max(1, min(size) // TILE)  # thin outlines would vanish in a strong reduction
    rgb, mask = sample.rgb[::step, ::step], sample.mask[::step, ::step]
    images = [outlined(rgb, mask)]
    if sample.xyz is not None:
        images.append((encode_depth(sample.xyz) * 255).round().astype(np.uint8))
    return images
