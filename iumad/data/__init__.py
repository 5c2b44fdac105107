"""Data sets: `open_dataset` turns a configuration into one."""

from iumad.config_sections import DataConfig, EyecandiesConfig, MiniCandiesConfig
from iumad.data.eyecandies import Eyecandies
from iumad.data.folders import MVTec, MVTec3D
from iumad.data.minicandies import MiniCandies
from iumad.data.own import OwnDataset
from iumad.data.sample import Dataset, Sample

__all__ = ["Dataset", "Sample", "open_dataset"]


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
