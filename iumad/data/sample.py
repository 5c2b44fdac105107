"""What every data set hands over: samples, an index table of all of them, and one protocol."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import pandera.pandas as pa
from jaxtyping import Bool, Float32, UInt8

from iumad.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """One object seen by a camera and a depth sensor, pixel by pixel aligned.

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
        Ground truth: True where the object is defective, False everywhere for a good sample.
    geometric
        Whether the defect changes the surface; None for good samples and where it is not known.
    foreground
        Pixels of the object where they are known exactly, else None.
    """

    sample_id: str
    category: str
    split: Split
    defect: str
    rgb: UInt8[np.ndarray, "h w 3"]
    xyz: Float32[np.ndarray, "h w 3"] | None
    mask: Bool[np.ndarray, "h w"]
    geometric: bool | None
    foreground: Bool[np.ndarray, "h w"] | None

    @property
    def label(self) -> int:
        """0 for a good sample, 1 for a defective one."""
        return int(self.defect != GOOD)


@runtime_checkable
class Dataset(Protocol):
    """A set of samples that are described by a table and loaded one at a time."""

    @property
    def name(self) -> str:
        """Short name, as in the configuration."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Object classes in the order of the data set."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """``("rgb", "depth")`` or ``("rgb",)``."""

    @property
    def index(self) -> pd.DataFrame:
        """One row a sample, as `build_index` returns it."""

    def load(self, sample_id: str) -> Sample:
        """Return the sample; raise DataError for an unknown id or an unreadable file."""

    def fingerprint(self, sample_id: str) -> str:
        """Return a text that changes whenever the sample may have changed; reads no image."""


INDEX_SCHEMA = pa.DataFrameSchema(
    {
        "sample_id": pa.Column(str, unique=True),
        "category": pa.Column(str),
        "split": pa.Column(str, pa.Check.isin(SPLITS)),
        "defect": pa.Column(str),
        "label": pa.Column("int64", pa.Check.isin((0, 1))),
        "geometric": pa.Column("boolean", nullable=True),
        "height": pa.Column("int64", pa.Check.gt(0)),
        "width": pa.Column("int64", pa.Check.gt(0)),
        "rgb": pa.Column(str),
        "xyz": pa.Column(str),
        "mask": pa.Column(str),
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
    ],
    strict=True,
    ordered=True,
)


def build_index(rows: Iterable[Mapping[str, Any]], categories: tuple[str, ...]) -> pd.DataFrame:
    """Put the rows into one validated table, sorted and numbered from 0.

    Parameters
    ----------
    rows
        One mapping a sample with the columns of `INDEX_SCHEMA`; ``geometric`` may be None, the
        paths ``rgb``, ``xyz`` and ``mask`` are relative to the data set's root, "" without a file.
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
