"""A data set whose images carry the paper's perturbations; see `iumad.data.perturb` for what they are.

Donors of spurious backgrounds are training images of the other categories given. Steps of one category have no
other category in them, so their donors come from the steps before: of an earlier category only the background is
seen again, never the object.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from iumad.config_sections import PerturbConfig
from iumad.data.perturb import redundant, spurious, with_foreground
from iumad.data.sample import Dataset, Sample
from iumad.errors import DataError


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
