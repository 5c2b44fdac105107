"""Contact sheets: one look at what a data set holds, and at what the perturbations do to it."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from iumad.data.depth import encode_depth, robust_range, scale_depth, scaled, valid_mask
from iumad.data.perturb import redundant, spurious, with_foreground
from iumad.data.sample import GOOD, Dataset, Sample
from iumad.errors import DataError

TILE = 112  # pixels
LABEL = 14  # pixels of text above each tile
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of spurious backgrounds, all that is possible
INTENSITIES = (0.0, 0.1, 0.2, 0.4, 0.8)  # doses of redundant noise
NOISE_CELLS = 8
_OUTLINE = (255, 0, 90)


def contact_sheet(dataset: Dataset, n_defects: int = 4) -> Image.Image:
    """Draw one row per category: a good image, then one of each of the first defects.

    Every sample is its colour image with the mask outlined, and beside it its other images, each scaled to its own
    range. A sample that cannot be read is a grey tile with its id.

    Parameters
    ----------
    dataset
        Any data set.
    n_defects
        Largest number of defect types in a row.
    """
    n_tiles = len({"rgb", *dataset.modalities})
    width = TILE * n_tiles
    rows = [_chosen(dataset, category, n_defects) for category in dataset.categories]
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + 4), len(rows) * (TILE + LABEL + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        for j, (sample_id, title) in enumerate(row):
            x, y = j * (width + 4), i * (TILE + LABEL + 4)
            draw.text((x + 1, y), title[: width // 5], fill="black")
            sheet.paste(_tiles(dataset, sample_id, n_tiles), (x, y + LABEL))
    return sheet


def perturbation_sheet(dataset: Dataset, rng: np.random.Generator) -> Image.Image:
    """Draw both perturbations of one sample, from none (left) to the strongest (right).

    The sample is the first defect of the first category; the donor of its spurious backgrounds is
    the first training image of the second category. Colour above, other images below, which all columns
    scale to the range of the undisturbed sample. The first column is the undisturbed sample.

    Parameters
    ----------
    dataset
        Its samples of one image size; without two categories whose foreground is known or stands out of a plane,
        a line of text says why there are no spurious backgrounds.
    rng
        Draws the noise, the same at every intensity, and the trials of the plane.
    """
    index = dataset.index
    defects = index[(index["category"] == dataset.categories[0]) & (index["label"] == 1)]
    sample = dataset.load(defects["sample_id"].iloc[0])
    donor = dataset.load(dataset.ids("train", (dataset.categories * 2)[1:2])[0])
    seed = int(rng.integers(2**32))
    noisy = {
        f"redundant {intensity:g}": redundant(
            sample, intensity, NOISE_CELLS, np.random.default_rng(seed)
        )
        for intensity in INTENSITIES
    }
    try:
        own, other = with_foreground(sample, rng), with_foreground(donor, rng)
        blended = {f"spurious {alpha:g}": spurious(own, other, alpha) for alpha in ALPHAS}
    except DataError as error:
        blended = {f"no spurious backgrounds: {error}": sample}

    height = TILE * len(_images(sample))
    sheet = Image.new("RGB", (len(ALPHAS) * (TILE + 4), 2 * (height + LABEL + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate((blended, noisy)):
        for j, (title, each) in enumerate(row.items()):
            x, y = j * (TILE + 4), i * (height + LABEL + 4)
            draw.text((x + 1, y), title, fill="black")
            for k, image in enumerate(_images(each, sample)):
                sheet.paste(_tile(image), (x, y + LABEL + k * TILE))
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


def _tiles(dataset: Dataset, sample_id: str, n_tiles: int) -> Image.Image:
    strip = Image.new("RGB", (TILE * n_tiles, TILE), "grey")
    try:
        images = _images(dataset.load(sample_id))
    except DataError:
        ImageDraw.Draw(strip).text((4, 4), f"unreadable\n{sample_id}", fill="white")
        return strip
    for position, image in enumerate(images):
        strip.paste(_tile(image), (position * TILE, 0))
    return strip


def _tile(image: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
    return Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BILINEAR)


def _images(sample: Sample, ranges_of: Sample | None = None) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The colour image with the mask outlined, then all others, scaled to the ranges of this or another sample."""
    size, other = sample.rgb.shape[:2], ranges_of or sample
    step = max(1, min(size) // TILE)  # thin outlines would vanish in a strong reduction
    mask = np.zeros(size, dtype=bool) if sample.mask is None else sample.mask
    images = [outlined(sample.rgb[::step, ::step], mask[::step, ::step])]
    if sample.xyz is not None and other.xyz is not None:
        limits = robust_range(other.xyz[..., 2][valid_mask(other.xyz)])
        images.append(_as_bytes(scale_depth(encode_depth(sample.xyz), *limits, clip=True)))
    for name, image in sample.others.items():
        if image.dtype == np.uint8:
            images.append(image)
        else:
            images.append(_as_bytes(scaled(image, *robust_range(other.others[name]), clip=True)))
    return images


def _as_bytes(image: Float32[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    return (image * 255).round().astype(np.uint8)
