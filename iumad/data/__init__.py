"""Data sets: `open_dataset` turns a configuration into one, `data_of` also says what is known of an absent one."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from iumad.config.sections import DataConfig, EyecandiesConfig, MiniCandiesConfig
from iumad.data.minicandies import MiniCandies
from iumad.data.own import OwnDataset
from iumad.data.public import EYECANDIES, MVTEC_3D_AD, Eyecandies, MVTec, MVTec3D
from iumad.data.sample import Dataset, Sample
from iumad.errors import DataError

__all__ = ["AbsentData", "Dataset", "Sample", "data_of", "open_dataset"]

_PUBLISHED = {"mvtec3d": tuple(MVTEC_3D_AD), "eyecandies": tuple(EYECANDIES)}


@dataclass(frozen=True)
class AbsentData:
    """What is known of a data set that is not on this machine: enough to find its published numbers."""

    categories: tuple[str, ...]

    def digest(self, split: str, categories: Iterable[str]) -> str:  # noqa: ARG002
        """Nothing is known of the content."""
        return ""


def data_of(config: DataConfig) -> Dataset | AbsentData:
    """The data set, or what the configuration (or else the publication) says of one that is not on this machine.

    Raises
    ------
    DataError, ConfigError
        The data set on disk is broken, or missing and nothing tells its categories.
    """
    if isinstance(config, MiniCandiesConfig) or config.root.exists():
        return open_dataset(config)
    categories = config.categories or _PUBLISHED.get(config.name)
    return open_dataset(config) if categories is None else AbsentData(categories)


def open_dataset(config: DataConfig) -> Dataset:
    """Open the data set that a configuration names; builds its index, reads no image.

    Raises
    ------
    DataError, ConfigError
        The data set on disk is missing or broken.
    """
    if isinstance(config, MiniCandiesConfig):
        return MiniCandies(config)
    if not config.root.exists():
        where = f"; it can be had from: {config.source}" if config.source else ""
        raise DataError(
            f"{config.root}: there is no such folder; name it with --set data.root=PATH{where}"
        )
    if isinstance(config, EyecandiesConfig):
        return Eyecandies(config.root, config.categories, config.light)
    match config.name:
        case "mvtec":
            return MVTec(config.root, config.categories)
        case "mvtec3d":
            return MVTec3D(config.root, config.categories, config.remove_plane)
        case "folder":
            return OwnDataset(config.root, config.categories, config.remove_plane)
        case _:
            assert_never(config.name)
