"""What every data set hands over: samples, an index table of all of them, and one base class."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import pandera.pandas as pa
from jaxtyping import Bool, Float32, Shaped, UInt8

from iumad.data.reader import Reader
from iumad.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """One object seen by registered sensors: pixel (i, j) is the same place in all images.

    Attributes
    ----------
    sample_id
        Unique in the data set, e.g. ``"bagel/test/hole/003"``.
    category
        The object class.
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    defect
        ``"good"`` or the type of the defect.
    rgb
        Colour image, 0 to 255.
    xyz
        Organised point cloud in metres (x right, y down, z away from the camera); (0, 0, 0) marks a
        pixel without a measurement. None for data sets without depth.
    mask
        Ground truth: True where the object is defective, False everywhere for a good sample. None for
        a defective sample of which it is not known where the defect is.
    geometric
        Whether the defect changes the surface; None for good samples and where it is not known.
    foreground
        Pixels of the object where they are known exactly, else None.
    others
        Further images by the name of their modality, e.g. ``"infrared"``, as stored: 8 or 16 bits or
        float32, one channel repeated to three.
    """

    sample_id: str
    category: str
    split: Split
    defect: str
    rgb: UInt8[np.ndarray, "h w 3"]
    xyz: Float32[np.ndarray, "h w 3"] | None
    mask: Bool[np.ndarray, "h w"] | None
    geometric: bool | None = None
    foreground: Bool[np.ndarray, "h w"] | None = None
    others: Mapping[str, Shaped[np.ndarray, "h w 3"]] = field(default_factory=dict)

    @property
    def label(self) -> int:
        """0 for a good sample, 1 for a defective one."""
        return int(self.defect != GOOD)


class Dataset(ABC):
    """A set of samples that are described by a table and loaded one at a time.

    Attributes
    ----------
    name
        Short name, as in the configuration.
    categories
        Object classes in the order of the data set.
    modalities
        Names of the registered images: ``("rgb", "depth")``, ``("rgb",)``, ``("rgb", "infrared")``.
    index
        One row a sample, as `build_index` returns it.
    reader
        How its files, and further ones of the same kind, become images.
    notes
        What a user should know of the data: what was left out, what is not known.
    """

    name: str
    categories: tuple[str, ...]
    modalities: tuple[str, ...]
    index: pd.DataFrame
    reader: Reader = Reader()
    notes: tuple[str, ...] = ()

    @abstractmethod
    def load(self, sample_id: str) -> Sample:
        """Return the sample; raise DataError for an unknown id or an unreadable file."""

    @abstractmethod
    def fingerprint(self, sample_id: str) -> str:
        """Return a text that changes whenever the sample may have changed.

        It follows from content and names within the data set, not from where the data set lies.
        """

    def ids(self, split: str | None = None, categories: Iterable[str] | None = None) -> list[str]:
        """Ids of the samples of one split (None: all) and some categories (None: all), in index order."""
        chosen = self.index
        if split is not None:
            chosen = chosen[chosen["split"] == split]
        if categories is not None:
            chosen = chosen[chosen["category"].isin(list(categories))]
        return chosen["sample_id"].tolist()

    def digest(self, split: str, categories: Iterable[str]) -> str:  # noqa: ARG002
        """Return a text for the content of a part of the data, "" where the configuration decides it alone."""
        return ""


INDEX_SCHEMA = pa.DataFrameSchema(
    {
        "sample_id": pa.Column(str, unique=True),
        "category": pa.Column(str),
        "split": pa.Column(str, pa.Check.isin(SPLITS)),
        "defect": pa.Column(str),
        "label": pa.Column("int64", pa.Check.isin((0, 1))),
        "geometric": pa.Column("boolean", nullable=True),
        "masked": pa.Column(bool),  # whether it is known which pixels are defective
        "height": pa.Column("int64", pa.Check.gt(0)),
        "width": pa.Column("int64", pa.Check.gt(0)),
    },
    checks=[
        pa.Check(
            lambda index: (index["label"] == 1) == (index["defect"] != GOOD),
            error="label must be 1 exactly where defect is not 'good'",
        ),
        pa.Check(
            lambda index: (index["split"] == "test") | (index["label"] == 0),
            error="train and validation hold good samples only",
        ),
        pa.Check(
            lambda index: index["geometric"].isna() | (index["label"] == 1),
            error="geometric is a property of a defect and must be missing for good samples",
        ),
        pa.Check(
            lambda index: index["masked"] | (index["label"] == 1),
            error="the mask of a good sample is known: nothing is defective",
        ),
    ],
    strict=True,
    ordered=True,
)


def build_index(rows: Iterable[Mapping[str, Any]], categories: tuple[str, ...]) -> pd.DataFrame:
    """Put the rows into one validated table, sorted and numbered from 0.

    Parameters
    ----------
    rows
        One mapping a sample with the columns of `INDEX_SCHEMA`; ``geometric`` may be None.
    categories
        The categories to keep, in this order.

    Returns
    -------
    DataFrame
        Sorted by category (as given), split (train, validation, test), defect and sample_id.

    Raises
    ------
    DataError
        When a category has no row or the table breaks the schema.
    """
    index = pd.DataFrame(list(rows), columns=list(INDEX_SCHEMA.columns))
    index = index[index["category"].isin(categories)]
    missing = [category for category in categories if category not in set(index["category"])]
    if missing:
        raise DataError(f"no samples found for the categories {', '.join(missing)}")

    ranks = {"category": categories, "split": SPLITS}
    index = index.sort_values(
        ["category", "split", "defect", "sample_id"],
        key=lambda column: (
            column.map({value: rank for rank, value in enumerate(ranks[column.name])})
            if column.name in ranks
            else column
        ),
        ignore_index=True,
    )
    index = index.astype({"geometric": "boolean"})

    try:
        return INDEX_SCHEMA.validate(index)
    except pa.errors.SchemaError as error:
        raise DataError(f"the index of the data set is not valid: {error}") from error
