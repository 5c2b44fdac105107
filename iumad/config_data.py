"""The `data` section of a params file: which images, and how they are brought to the model."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

DepthEncoding = Literal["z", "z+normals", "xyz255"]


class Section(BaseModel):
    """Frozen and closed: a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _AnyData(Section):
    categories: tuple[str, ...] | None = Field(
        None, description="which, in this order; default: all"
    )
    image_size: Annotated[int, Field(ge=32, multiple_of=8)] = Field(
        128, description="side in pixels to which images are brought before the model sees them"
    )
    depth_encoding: DepthEncoding = Field(
        "z", description="what the depth stream sees; xyz255 is the release's"
    )
    depth_scaling: Literal["sample"] | tuple[float, float] = Field(
        "sample",
        description="range of z in metres mapped to [0, 1]: of each sample, or (low, high) for all; "
        "`iumad data range` prints that of the training images",
    )


class MiniCandiesConfig(_AnyData):
    """The embedded procedural data set."""

    name: Literal["minicandies"] = "minicandies"
    n_train: PositiveInt = Field(40, description="good training images per category")
    n_validation: PositiveInt = Field(8, description="good validation images per category")
    n_test_good: PositiveInt = Field(12, description="good test images per category")
    n_test_defect: PositiveInt = Field(24, description="defective test images per category")
    difficulty: float = Field(0.5, ge=0, le=1, description="0 obvious defects, 1 subtle ones")
    seed: int = Field(0, ge=0, description="seed of the data, not of the training")


class FolderConfig(_AnyData):
    """A folder on disk: MVTec 3D-AD's layout, MVTec AD's layout, or an index written by `iumad data new`."""

    name: Literal["mvtec3d", "mvtec", "folder"]
    root: Path = Field(
        description="folder that holds one folder per category, or the index of `iumad data new`"
    )
    remove_plane: bool = Field(
        False, description="take the background plane out of the point cloud"
    )

    @model_validator(mode="after")
    def _plane_needs_depth(self) -> "FolderConfig":
        if self.remove_plane and self.name == "mvtec":
            raise ValueError("remove_plane needs depth, and the MVTec AD layout has none")
        return self


class EyecandiesConfig(_AnyData):
    """Eyecandies as distributed."""

    name: Literal["eyecandies"]
    root: Path = Field(description="folder that holds CandyCane, ChocolateCookie, ...")
    light: int = Field(4, ge=0, le=5, description="which image_N.png is the RGB image")


DataConfig = Annotated[
    MiniCandiesConfig | FolderConfig | EyecandiesConfig, Field(discriminator="name")
]
