"""Data sets: `open_dataset` turns a configuration into one."""

from iumad.config.sections import DataConfig, EyecandiesConfig, MiniCandiesConfig
from iumad.data.folders.eyecandies import Eyecandies
from iumad.data.folders.mvtec import MVTec, MVTec3D
from iumad.data.folders.own import OwnDataset
from iumad.data.minicandies import MiniCandies
from iumad.data.published import EYECANDIES, MVTEC_3D_AD
from iumad.data.sample import Dataset, Sample

__all__ = ["Dataset", "Sample", "categories_of", "open_dataset"]

_PUBLISHED = {"mvtec3d": tuple(MVTEC_3D_AD), "eyecandies": tuple(EYECANDIES)}


def categories_of(config: DataConfig) -> tuple[str, ...]:
    """Names of the categories, in order, for what needs no images.

    Where a copy of MVTec 3D-AD or Eyecandies is not on this machine, they are those that the configuration names,
    or else the published ones.

    Raises
    ------
    DataError, ConfigError
        The data set on disk is missing, and not one of these two, or is broken.
    """
    if isinstance(config, MiniCandiesConfig):
        return open_dataset(config).categories
    if config.name in _PUBLISHED and not config.root.exists():
        return config.categories or _PUBLISHED[config.name]
    return open_dataset(config).categories


def open_dataset(config: DataConfig) -> Dataset:
    """Open the data set that a configuration names; builds its index, reads no image.

    Raises
    ------
    DataError, ConfigError
        The data set on disk is missing or broken.
    """
    if isinstance(config, MiniCandiesConfig):
        return MiniCandies(config)
    if isinstance(config, EyecandiesConfig):
        return Eyecandies(config.root, config.categories, config.light)
    if config.name == "mvtec":
        return MVTec(config.root, config.categories)
    layout = MVTec3D if config.name == "mvtec3d" else OwnDataset
    return layout(config.root, config.categories, config.remove_plane)
