"""The sections of a params file but `model`: every key, its default, its range, and what of the paper it sets.

Symbols: C channels of the aligned features, g grid (tokens = g x g).
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

DepthEncoding = Literal["z", "z+normals", "xyz255"]


class Section(BaseModel):
    """Frozen and closed: a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Probability = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]


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
    seed: Annotated[int, Field(ge=0)] | Literal["run"] = Field(
        "run",
        description="run: every run draws the data of its own seed; a number: all runs share its data",
    )

    @property
    def drawn_seed(self) -> int:
        """The seed that images are drawn from; apart from any run, that is seed 0."""
        return 0 if self.seed == "run" else self.seed


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


def data_of_run(data: DataConfig, seed: int) -> DataConfig:
    """The data of a run with this seed; on disk they are the same for all seeds."""
    if isinstance(data, MiniCandiesConfig) and data.seed == "run":
        return data.model_copy(update={"seed": seed})
    return data


class FeaturesConfig(Section):
    """Frozen backbone and alignment (paper: MFEN)."""

    backbone: str = Field("tf_efficientnet_lite0", description="a timm model with features_only")
    weights: Literal["pretrained", "random"] = Field(
        "pretrained", description="random is for tests only"
    )
    levels: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2, 3), min_length=1, description="timm out_indices"
    )
    grid: PositiveInt = Field(16, description="g: all levels are resized to g x g")


class TrainingConfig(Section):
    """The base step; increments take what `IncrementConfig` does not set."""

    epochs: PositiveInt = Field(40, description="of the base step; the paper: 1000")
    batch_size: PositiveInt = 8
    lr: PositiveFloat = Field(1.0e-3, description="the paper: 1e-4")
    weight_decay: NonNegative = 1.0e-4
    schedule: Literal["one-cycle", "step", "constant"] = Field(
        "one-cycle", description="step: x 0.1 at 80 %"
    )
    clip: PositiveFloat = Field(1.0, description="norm to which gradients are clipped; IUF: 0.1")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast")
    compile: bool = Field(False, description="torch.compile of the networks; needs a compiler")


class IncrementConfig(Section):
    """How a step after the base is trained, and what protects the earlier categories."""

    strategy: Literal["projection", "none", "ewc", "replay", "joint", "svd"] = Field(
        "projection",
        description="projection: IUF's, on FFN outputs; svd: CDAD's, on all layers' inputs; "
        "ewc, replay: controls; joint: no increments, all at once",
    )
    epochs: PositiveInt = Field(20, description="the paper: 800")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="IUF: sgd")
    lr: PositiveFloat = Field(5.0e-4, description="IUF: 1.0 with sgd")
    pull: Probability = Field(
        0.0, description="share of the old weights mixed in before each update; IUF: 0.05"
    )
    ewc_weight: NonNegative = Field(
        1.0e3, description="weight of the elastic penalty; for strategy ewc"
    )
    replay_images: PositiveInt = Field(
        4, description="images kept per earlier category; for strategy replay"
    )
    svd_threshold: float = Field(
        0.99,
        gt=0,
        le=1,
        description="share of the inputs' energy that is protected; for strategy svd",
    )


class PerturbConfig(Section):
    """Perturbations of training images (paper Sec. 2); test images stay as they are."""

    redundant: NonNegative = Field(
        0.0, description="strength of the noise, in standard deviations of image and depth"
    )
    noise_cells: Annotated[int, Field(ge=1, le=64)] = Field(
        8, description="cells of that noise along an image's longer side"
    )
    spurious: float = Field(
        0.0, ge=0, le=1, description="share of another category's background in the background"
    )
    where: Literal["increments", "all"] = Field(
        "increments", description="which steps train on perturbed images"
    )

    @property
    def is_off(self) -> bool:
        """Whether nothing is changed at all."""
        return self.redundant == 0 and self.spurious == 0

    def reaches(self, step: int) -> bool:
        """Whether a step trains on perturbed images."""
        return not self.is_off and (self.where == "all" or step > 0)


class EvaluationConfig(Section):
    """What is measured after every step."""

    image_score: Literal["max", "mean", "std", "top"] = Field(
        "max",
        description="max: of the average-pooled map; top: mean of the highest 0.1 % of pixels (UniMMAD)",
    )
    pool: PositiveInt = Field(16, description="window of that average, pixels")
    fpr_limit: float = Field(
        0.3, gt=0, le=1, description="AUPRO is integrated up to this false positive rate"
    )
    batch_size: PositiveInt = 16
