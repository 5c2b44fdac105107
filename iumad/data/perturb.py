"""A data set whose images carry the paper's perturbations; see `iumad.data.perturb` for what they are.

Donors of spurious backgrounds are training images of the other categories given. Steps of one category have no
other category in them, so their donors come from the steps before: of an earlier category only the background is
seen again, never the object.

The two perturbations of the paper's empirical study (Sec. 2): spurious and redundant information.

The paper gives no recipe. Here *spurious* is the background of another object, blended into the
background of a sample, and *redundant* is gradient noise over all of it (the paper's "Berlin" noise
is read as Perlin's). Both change the image and the depth and leave labels and masks alone.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32, Int
from scipy import ndimage

from iumad.config.sections import PerturbConfig
from iumad.data.depth import remove_plane, valid_mask
from iumad.data.noise import PERIOD, perlin_noise
from iumad.data.sample import Dataset, Sample
from iumad.errors import ConfigError, DataError

MARGIN = 0.05


def with_foreground(sample: Sample, rng: np.random.Generator) -> Sample:
    """Return the sample with its object's pixels, estimated from depth where they are not known.

    Raises
    ------
    DataError
        The foreground is not known and there is no depth, or no background plane in it.
    """
    if sample.foreground is not None:
        return sample
    if sample.xyz is None:
        raise DataError(f"{sample.sample_id}: without depth the foreground cannot be estimated")
    _, foreground = remove_plane(sample.xyz, rng)
    return replace(sample, foreground=foreground)


def spurious(sample: Sample, donor: Sample, alpha: float) -> Sample:
    """Blend the donor's background into the sample's: (1 - alpha) own + alpha the donor's.

    The donor's object and the shadow beside it are first covered with the background around them,
    mirrored.
    In depth the points slide along their rays to the blended z; pixels that have no measurement in
    the sample or in the donor stay as they are. Choose donors only among data that the training
    step may see.

    Parameters
    ----------
    sample, donor
        Of one size, both with foreground, and both with depth if the sample has it.
    alpha
        Intensity in [0, 1]; 0 returns an identical sample.

    Returns
    -------
    Sample
        Identical to `sample` on its foreground.

    Raises
    ------
    ConfigError
        `alpha` is outside [0, 1].
    DataError
        A foreground or the donor's depth is missing, the sizes differ, or the donor's object fills
        its whole image.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha needs a value in [0, 1], got {alpha}")
    foreground, donor_foreground = _known_foreground(sample), _known_foreground(donor)
    if sample.rgb.shape != donor.rgb.shape:
        raise DataError(
            f"sample {sample.sample_id} and donor {donor.sample_id} need one size, "
            f"got {sample.rgb.shape[:2]} and {donor.rgb.shape[:2]}"
        )
    if sample.xyz is not None and donor.xyz is None:
        raise DataError(f"donor {donor.sample_id} needs depth, as sample {sample.sample_id} has it")
    covered = _with_margin(donor_foreground)
    if covered.all():
        raise DataError(f"donor {donor.sample_id} shows no background")

    background = ~foreground
    source = tuple(_background_source(covered))
    blended = (1 - alpha) * sample.rgb + alpha * donor.rgb[source]
    rgb = np.where(background[..., None], np.rint(blended), sample.rgb).astype(np.uint8)
    if sample.xyz is None or donor.xyz is None:
        return replace(sample, rgb=rgb)

    donor_xyz = donor.xyz[source]
    measured = background & valid_mask(sample.xyz) & valid_mask(donor_xyz)
    z = sample.xyz[..., 2].astype(np.float64)
    moved = np.where(measured, (1 - alpha) * z + alpha * donor_xyz[..., 2], z)
    return replace(sample, rgb=rgb, xyz=_slide(sample.xyz, moved))


def redundant(sample: Sample, intensity: float, scale: int, rng: np.random.Generator) -> Sample:
    """Add Perlin noise to the whole image and depth.

    Parameters
    ----------
    sample
        Any sample.
    intensity
        Standard deviation of the noise in units of the standard deviation of each colour channel
        (over the image) and of z (over the valid pixels); 0 returns an identical sample.
    scale
        Cells of the noise along the longer side of the image, 1 to 64; the lattice is turned by a
        random angle.
    rng
        Draws first the image's noise (one field for all channels), then that of depth.

    Raises
    ------
    ConfigError
        `intensity` is negative or `scale` outside its range.
    """
    if not intensity >= 0:
        raise ConfigError(f"intensity needs a value of at least 0, got {intensity}")
    if not 1 <= scale <= PERIOD:
        raise ConfigError(f"scale needs 1 to {PERIOD} cells, got {scale}")

    amplitude = intensity * sample.rgb.std(axis=(0, 1))
    noisy = sample.rgb + amplitude * _standard_noise(sample.mask.shape, scale, rng)[..., None]
    rgb = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    if sample.xyz is None:
        return replace(sample, rgb=rgb)

    valid = valid_mask(sample.xyz)
    z = sample.xyz[..., 2].astype(np.float64)
    spread = z[valid].std() if valid.any() else 0.0
    moved = z + np.where(valid, intensity * spread, 0) * _standard_noise(z.shape, scale, rng)
    return replace(sample, rgb=rgb, xyz=_slide(sample.xyz, moved))


def _known_foreground(sample: Sample) -> Bool[np.ndarray, "h w"]:
    if sample.foreground is None:
        raise DataError(
            f"{sample.sample_id}: sample and donor of a spurious background need a foreground "
            "(the generator knows it; with_foreground estimates it from depth)"
        )
    return sample.foreground


def _with_margin(foreground: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The object and what is nearer to it than `MARGIN` of the image's longer side."""
    if not foreground.any():
        return foreground
    return ndimage.distance_transform_edt(~foreground) <= MARGIN * max(foreground.shape)


def _background_source(foreground: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "2 h w"]:
    """Row and column of the background pixel to show at each pixel: its own outside the object.

    Inside, the pixel mirrored at the nearest background pixel, or that pixel itself where the
    mirror image falls on the object or out of the picture.
    """
    nearest = ndimage.distance_transform_edt(
        foreground, return_distances=False, return_indices=True
    ).astype(np.int64)
    mirrored = 2 * nearest - np.indices(foreground.shape)
    limits = np.array(foreground.shape)[:, None, None]
    inside = ((mirrored >= 0) & (mirrored < limits)).all(axis=0)
    rows, columns = np.where(inside, mirrored, nearest)
    usable = inside & ~foreground[rows, columns]
    return np.where(usable, mirrored, nearest)


def _slide(
    xyz: Float32[np.ndarray, "h w 3"], z: Float[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w 3"]:
    """Move each point along its ray from the camera to a new z; points that keep z keep all bytes."""
    old = xyz[..., 2]
    changed = (z != old) & (old != 0)
    factor = np.ones_like(z)
    factor[changed] = z[changed] / old[changed]
    return np.where(changed[..., None], xyz * factor[..., None], xyz).astype(np.float32)


def _standard_noise(
    shape: tuple[int, int], scale: int, rng: np.random.Generator
) -> Float[np.ndarray, "h w"]:
    """Perlin noise with mean 0 and standard deviation 1 over the image."""
    rows, columns = (np.indices(shape) + 0.5) * scale / max(shape)
    turn = rng.uniform(0, 2 * np.pi)
    noise = perlin_noise(
        np.cos(turn) * columns - np.sin(turn) * rows,
        np.sin(turn) * columns + np.cos(turn) * rows,
        rng,
    )
    return (noise - noise.mean()) / noise.std()


class PerturbedDataset:
    """Another data set's samples, each always perturbed in the same way.

    Parameters
    ----------
    dataset : Dataset
    config : PerturbConfig
        Strengths. What is drawn (donor, noise) depends on the sample alone, so all runs see the same images and
        a stronger perturbation is the same one, only stronger.
    donors : sequence of str
        Categories whose training images may give backgrounds; a sample's own is left out.
    """

    def __init__(self, dataset: Dataset, config: PerturbConfig, donors: Sequence[str]) -> None:
        self.dataset, self.config = dataset, config
        self.name, self.categories = dataset.name, dataset.categories
        self.modalities = dataset.modalities
        self.index: pd.DataFrame = dataset.index
        train = self.index[self.index["split"] == "train"]
        self._category = dict(zip(self.index["sample_id"], self.index["category"], strict=True))
        self._donors = {
            category: train[train["category"] == category]["sample_id"].tolist()
            for category in donors
        }

    def load(self, sample_id: str) -> Sample:
        """Return the sample with another background mixed in, then with noise.

        Raises
        ------
        DataError
            No other category can give a background, or the sample's object cannot be told from its background.
        """
        sample, rng = self.dataset.load(sample_id), _generator(sample_id)
        if self.config.spurious:
            donor = self.dataset.load(self._donor(sample_id))
            own, other = with_foreground(sample, rng), with_foreground(donor, rng)
            sample = spurious(own, other, self.config.spurious)
        noise = _generator(f"{sample_id} noise")
        return redundant(sample, self.config.redundant, self.config.noise_cells, noise)

    def fingerprint(self, sample_id: str) -> str:
        """Return the sample's own fingerprint, the strengths, and the donor's."""
        donor = self.dataset.fingerprint(self._donor(sample_id)) if self.config.spurious else ""
        strengths = self.config.model_dump_json(exclude={"where"})
        return f"{self.dataset.fingerprint(sample_id)} {strengths} {donor}"

    def _donor(self, sample_id: str) -> str:
        own = self._category[sample_id]
        others = [one for category, ids in self._donors.items() if category != own for one in ids]
        if not others:
            raise DataError(
                f"{sample_id}: a spurious background needs another category, and this step and those before "
                f"it have {own!r} alone"
            )
        return others[_generator(f"{sample_id} donor").integers(len(others))]


def _generator(text: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(text.encode()))
