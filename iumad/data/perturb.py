"""The two perturbations of the paper's empirical study (Sec. 2): spurious and redundant information.

The paper gives no recipe. Here *spurious* is another background, blended into that of a sample, and *redundant*
is gradient noise over all of it (the paper's "Berlin" noise is read as Perlin's). Both have a dose from 0 to 1,
change every modality, and leave labels and masks alone.

Backgrounds come from training images of *other categories*, as in the paper: a step of one category has no other
in it, so its donors come from the steps before, and what is spurious is at the same time seen again. Or from an
*external* bank of procedural patterns that no category has: then nothing of an earlier category comes back.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32, Int, Shaped
from scipy import ndimage

from iumad.config.sections import PerturbConfig
from iumad.data.depth import remove_plane, valid_mask
from iumad.data.noise import PERIOD, perlin_noise
from iumad.data.sample import Dataset, Sample
from iumad.errors import ConfigError, DataError

MARGIN = 0.05  # around the donor's object, share of the longer side
EXTERNAL_BACKGROUNDS = 64  # in the bank
_PATTERNS = ("stripes", "checks", "rings", "camouflage")


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
    try:
        _, foreground = remove_plane(sample.xyz, rng)
    except DataError as error:
        raise DataError(f"{sample.sample_id}: {error}") from error
    return replace(sample, foreground=foreground)


def spurious(sample: Sample, donor: Sample, alpha: float) -> Sample:
    """Blend the donor's background into the sample's: (1 - alpha) own + alpha the donor's.

    The donor's object and the shadow beside it are first covered with the background around them, mirrored; a
    donor of another size is then stretched to the sample's, by nearest pixels.
    In depth the points slide along their rays to the blended z; pixels that have no measurement in
    the sample or in the donor stay as they are. Choose donors only among data that the training
    step may see.

    Parameters
    ----------
    sample, donor
        Both with foreground, the donor with every modality of the sample.
    alpha
        Dose in [0, 1]; 0 returns an identical sample.

    Returns
    -------
    Sample
        Identical to `sample` on its foreground.

    Raises
    ------
    ConfigError
        `alpha` is outside [0, 1].
    DataError
        A foreground or a modality of the donor is missing, or the donor's object fills its whole image.
    """
    _require_dose(alpha, "alpha")
    foreground, donor_foreground = _known_foreground(sample), _known_foreground(donor)
    lacking = ["depth"] if sample.xyz is not None and donor.xyz is None else []
    lacking += [name for name in sample.others if name not in donor.others]
    if lacking:
        raise DataError(
            f"donor {donor.sample_id} needs {lacking[0]}, as sample {sample.sample_id} has it"
        )
    covered = _with_margin(donor_foreground)
    if covered.all():
        raise DataError(f"donor {donor.sample_id} shows no background")

    background = ~foreground
    source = _stretched(_background_source(covered), foreground.shape)

    def blended(own: Shaped[np.ndarray, "h w 3"], other: Shaped[np.ndarray, "a b 3"]) -> np.ndarray:
        mixed = (1 - alpha) * own + alpha * other[source]
        return np.where(background[..., None], _as_stored(mixed, own.dtype), own)

    others = {name: blended(image, donor.others[name]) for name, image in sample.others.items()}
    changed = replace(sample, rgb=blended(sample.rgb, donor.rgb), others=others)
    if sample.xyz is None or donor.xyz is None:
        return changed
    donor_xyz = donor.xyz[source]
    measured = background & valid_mask(sample.xyz) & valid_mask(donor_xyz)
    z = sample.xyz[..., 2].astype(np.float64)
    moved = np.where(measured, (1 - alpha) * z + alpha * donor_xyz[..., 2], z)
    return replace(changed, xyz=_slide(sample.xyz, moved))


def external_donor(sample: Sample, number: int) -> Sample:
    """Return a background of the bank as a donor for the sample: a pattern in strong colours on a gentle relief.

    Parameters
    ----------
    sample
        Gives the size, the distance and the level of what the pattern is to replace.
    number
        Which of the `EXTERNAL_BACKGROUNDS`; a number is the same pattern for all samples.
    """
    rng = np.random.default_rng([zlib.crc32(b"external background"), number])
    size = sample.rgb.shape[:2]
    rows, columns = (axis + 0.5 for axis in np.indices(size) / max(size))
    turn, cells, phase = rng.uniform(0, np.pi), rng.uniform(4, 12), rng.uniform(0, 1, 2)
    x = cells * (np.cos(turn) * columns - np.sin(turn) * rows) + phase[0]
    y = cells * (np.sin(turn) * columns + np.cos(turn) * rows) + phase[1]
    relief = perlin_noise(x / 2, y / 2, rng)
    level = {
        "stripes": np.floor(x),
        "checks": np.floor(x) + np.floor(y),
        "rings": np.floor(np.hypot(x - cells / 2, y - cells / 2)),
        "camouflage": np.floor(4 * relief),
    }[_PATTERNS[number % len(_PATTERNS)]]
    palette = _strong_colours(3, rng)
    pattern = level.astype(np.int64) % 3
    xyz = None
    if sample.xyz is not None:
        valid = valid_mask(sample.xyz)
        z = sample.xyz[..., 2][valid].astype(np.float64)
        moved = np.median(z) + 0.5 * z.std() * relief if valid.any() else np.zeros(size)
        xyz = np.stack([np.zeros(size), np.zeros(size), moved], axis=-1).astype(np.float32)
    others = {
        name: _as_stored(
            image.mean() + image.std() * (np.repeat(pattern[..., None], 3, axis=2) - 1), image.dtype
        )
        for name, image in sample.others.items()
    }
    return replace(
        sample,
        sample_id=f"external background {number}",
        rgb=palette[pattern],
        xyz=xyz,
        others=others,
        foreground=np.zeros(size, dtype=bool),
    )


def redundant(
    sample: Sample, dose: float, scale: int, rng: np.random.Generator, clean: Sample | None = None
) -> Sample:
    """Add Perlin noise to all images of a sample.

    Parameters
    ----------
    sample
        Any sample.
    dose
        Standard deviation of the noise, in units of the standard deviation of each channel of the clean image (of
        z: over the valid pixels); 0 returns an identical sample, 1 is as strong as what is to be seen.
    scale
        Cells of the noise along the longer side of the image, 1 to 64; the lattice is turned by a
        random angle.
    rng
        Draws one field for all colours, then that of depth, then one for each further image.
    clean
        The sample before any other perturbation, which sets the amplitude; default: the sample itself.

    Raises
    ------
    ConfigError
        `dose` or `scale` is outside its range.
    """
    _require_dose(dose, "dose")
    if not 1 <= scale <= PERIOD:
        raise ConfigError(f"scale needs 1 to {PERIOD} cells, got {scale}")
    clean = clean or sample
    shape = sample.rgb.shape[:2]

    def noisy(image: Shaped[np.ndarray, "h w 3"], quiet: Shaped[np.ndarray, "h w 3"]) -> np.ndarray:
        amplitude = dose * quiet.std(axis=(0, 1))
        field = _standard_noise(shape, scale, rng)[..., None]
        return _as_stored(image + amplitude * field, image.dtype)

    changed = replace(sample, rgb=noisy(sample.rgb, clean.rgb))
    if sample.xyz is not None and clean.xyz is not None:
        valid, measured = valid_mask(sample.xyz), valid_mask(clean.xyz)
        z = sample.xyz[..., 2].astype(np.float64)
        spread = clean.xyz[..., 2][measured].astype(np.float64).std() if measured.any() else 0.0
        moved = z + np.where(valid, dose * spread, 0) * _standard_noise(shape, scale, rng)
        changed = replace(changed, xyz=_slide(sample.xyz, moved))
    others = {name: noisy(image, clean.others[name]) for name, image in sample.others.items()}
    return replace(changed, others=others)


def _require_dose(value: float, what: str) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{what} needs a value in [0, 1], got {value}")


def _as_stored(image: Float[np.ndarray, "h w 3"], dtype: np.dtype) -> Shaped[np.ndarray, "h w 3"]:
    """Values as a sensor of this type would give them: whole numbers in its range, or float32."""
    if dtype.kind != "u":
        return image.astype(dtype)
    return np.clip(np.rint(image), 0, np.iinfo(dtype).max).astype(dtype)


def _strong_colours(count: int, rng: np.random.Generator) -> Shaped[np.ndarray, "n 3"]:
    """Saturated colours, hues apart, as uint8."""
    hues = (rng.uniform() + np.arange(count) / count) % 1
    channels = np.abs((hues[:, None] + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1
    return np.rint(40 + 200 * np.clip(channels, 0, 1)).astype(np.uint8)


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


def _stretched(
    source: Int[np.ndarray, "2 h w"], size: tuple[int, ...]
) -> tuple[Int[np.ndarray, "a b"], ...]:
    """Rows and columns of pixels for an image of another size; the same ones for the same size."""
    rows, columns = (
        ((np.arange(to) + 0.5) * have / to).astype(np.int64)
        for to, have in zip(size, source.shape[1:], strict=True)
    )
    return tuple(axis[np.ix_(rows, columns)] for axis in source)


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


class PerturbedDataset(Dataset):
    """Another data set's samples, each always perturbed in the same way, by numbers that follow from its name.

    Parameters
    ----------
    dataset : Dataset
    config : PerturbConfig
        Doses and donors. What is drawn (donor, noise) depends on the sample alone, so all runs see the same images
        and a stronger perturbation is the same one, only stronger.
    donors : sequence of str
        Categories whose training images may give backgrounds; a sample's own is left out.
    """

    def __init__(self, dataset: Dataset, config: PerturbConfig, donors: Sequence[str]) -> None:
        self.dataset, self.config = dataset, config
        self.name, self.categories = dataset.name, dataset.categories
        self.modalities, self.reader = dataset.modalities, dataset.reader
        self.index: pd.DataFrame = dataset.index
        self._category = dict(zip(self.index["sample_id"], self.index["category"], strict=True))
        self._donors = {category: dataset.ids("train", [category]) for category in donors}

    def load(self, sample_id: str) -> Sample:
        """Return the sample with another background mixed in, then with noise.

        Raises
        ------
        DataError
            No other category can give a background, or the sample's object cannot be told from its background.
        """
        clean, rng = self.dataset.load(sample_id), _generator(sample_id)
        sample = clean
        if self.config.spurious:
            own = with_foreground(clean, rng)
            sample = spurious(own, self._background(own, rng), self.config.spurious)
        noise = _generator(f"{sample_id} noise")
        return redundant(sample, self.config.redundant, self.config.noise_cells, noise, clean)

    def fingerprint(self, sample_id: str) -> str:
        """Return the sample's own fingerprint, the doses, and the donor's."""
        from_others = self.config.spurious > 0 and self.config.donors == "categories"
        donor = self.dataset.fingerprint(self._donor(sample_id)) if from_others else ""
        doses = self.config.model_dump_json(exclude={"where", "test"})
        return f"{self.dataset.fingerprint(sample_id)} {doses} {donor}"

    def _background(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if self.config.donors == "external":
            draw = _generator(f"{sample.sample_id} donor")
            return external_donor(sample, int(draw.integers(EXTERNAL_BACKGROUNDS)))
        return with_foreground(self.dataset.load(self._donor(sample.sample_id)), rng)

    def _donor(self, sample_id: str) -> str:
        own = self._category[sample_id]
        others = [one for category, ids in self._donors.items() if category != own for one in ids]
        if not others:
            raise DataError(
                f"{sample_id}: a spurious background needs another category, and this step and those before "
                f"it have {own!r} alone; perturb.donors: external needs none"
            )
        return others[_generator(f"{sample_id} donor").integers(len(others))]


def _generator(text: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(text.encode()))
