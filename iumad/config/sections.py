"""The sections of a params file but `model`: every key, its default, its range, and what of the paper it sets.

`build` validates a section and says of a wrong key what a user can act on.

Symbols: C channels of the aligned features, g grid (tokens = g x g).
"""

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from iumad.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
MAX_SHOWN = 80  # letters of a wrong value
MAX_CLAUSES = 5  # wrong keys that are explained at once


def build(section: type[Model], content: Mapping[str, Any], where: str) -> Model:
    """Validate `content` as a `section`.

    Raises
    ------
    ConfigError
        One clause per wrong key: the key, what is wrong, what was given, and the nearest valid name.
    """
    try:
        return section.model_validate(content)
    except ValidationError as error:
        items = error.errors(include_url=False)
        clauses = [_explain(section, item) for item in items[:MAX_CLAUSES]]
        if len(items) > MAX_CLAUSES:
            clauses.append(f"and {len(items) - MAX_CLAUSES} more")
        raise ConfigError(one_line(f"{where}: " + "; ".join(clauses))) from error


def one_line(text: str) -> str:
    """The text with letters that cannot be printed, such as the end of a line, written as Python writes them."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def quoted(value: object) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def nearest(word: str, names: Iterable[str]) -> str:
    """', did you mean X?' for the closest of `names`, or nothing."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def _explain(section: type[BaseModel], item: Any) -> str:
    key = ".".join(str(part)[:MAX_SHOWN] for part in item["loc"])
    if item["type"] == "extra_forbidden":
        names = _field_names(section, item["loc"][:-1])
        known = f"; known here: {', '.join(names)}"
        return f"unknown key {key!r}{nearest(str(item['loc'][-1]), names) or known}"
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] == "value_error" else f" (given: {quoted(item['input'])})"
    return f"{key}: {message}{given}" if key else message + given


def _field_names(section: type[BaseModel], place: Iterable[Any]) -> list[str]:
    """Valid keys at a place in a section: keys of fields and of mappings, and tags of unions, lead there."""
    models = {section}
    for part in place:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        tagged = {
            model
            for model in models
            if any(part in get_args(field.annotation) for field in model.model_fields.values())
        }
        models = set().union(*(_models(field.annotation) for field in fields)) or tagged or models
    return sorted(set().union(*(model.model_fields for model in models)))


def _models(kind: Any) -> set[type[BaseModel]]:
    """The sections in a type: itself, the values of a mapping, the members of a union."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {kind}
    return set().union(*(_models(part) for part in get_args(kind)))


DepthEncoding = Literal["z", "z+normals", "xyz255"]


class Section(BaseModel):
    """Frozen and closed: a misspelt key is an error. Numbers are finite, and `yes` is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, content: Any) -> Any:
        for key, value in content.items() if isinstance(content, dict) else ():
            values = value if isinstance(value, list | tuple) else [value]
            if key in cls.model_fields and any(isinstance(each, bool) for each in values):
                kind = cls.model_fields[key].annotation
                if bool not in (kind, *get_args(kind)):
                    raise ValueError(
                        f"{key}: true or false (YAML also reads yes, no, on and off so) has no meaning here; "
                        "if it is a name, put it in quotes"
                    )
        return content


Count = Annotated[int, Field(ge=1, le=1_000_000)]
Width = Annotated[int, Field(ge=1, le=2048)]  # of a network: more would not fit into memory

MODALITY_NAME = re.compile(r"[a-z][a-z0-9_]*")


def _modality(text: str) -> str:
    names = text.split("+")
    wrong = [name for name in names if not MODALITY_NAME.fullmatch(name) or name == "mask"]
    if wrong:
        raise ValueError(
            "needs names of the data set's images (lower-case letters, digits, _) joined by +, such as rgb, "
            f"rgb+depth or rgb+infrared, got {text!r}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"has a name twice: {text!r}")
    return text


Modality = Annotated[str, AfterValidator(_modality)]
Probability = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"needs low < high, two finite numbers, got [{low}, {high}]")
    return limits


Limits = Annotated[tuple[float, float], AfterValidator(_rising)]
Scaling = Literal["measured", "sample"] | Limits


class _AnyData(Section):
    name: str
    categories: tuple[str, ...] | None = Field(
        None, description="which, in this order; default: all"
    )
    image_size: Annotated[int, Field(ge=32, le=4096, multiple_of=8)] = Field(
        128, description="side in pixels to which images are brought before the model sees them"
    )
    depth_encoding: DepthEncoding = Field(
        "z", description="what the depth stream sees; xyz255 is the release's"
    )
    depth_scaling: Scaling = Field(
        "measured",
        description="range of z in metres that becomes [0, 1]: measured on the training images of the base step, "
        "(low, high), or sample (of each image by itself, which hides differences between images)",
    )

    @property
    def shown_name(self) -> str:
        """What tables call the data set."""
        return getattr(self, "title", None) or self.name

    @property
    def known_modalities(self) -> tuple[str, ...] | None:
        """Names of the registered images; None where only the folder on disk can tell."""
        return ("rgb", "depth")

    @field_validator("categories", mode="before")
    @classmethod
    def _names_are_text(cls, categories: Any) -> Any:
        for name in categories if isinstance(categories, list | tuple) else ():
            if not isinstance(name, str):
                raise ValueError(
                    f"names are text, and YAML reads {name!r} as something else: put it in quotes, as on disk"
                )
        return categories

    @field_validator("categories")
    @classmethod
    def _each_category_once(cls, categories: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if categories is not None and len(set(categories)) != max(len(categories), 1):
            raise ValueError("at least one, and each once")
        return categories

    def scaling_of(self, modality: str) -> Scaling:
        """What is asked for a modality with more than 8 bits."""
        return self.depth_scaling if modality == "depth" else "measured"


class MiniCandiesConfig(_AnyData):
    """The embedded procedural data set."""

    name: Literal["minicandies"] = "minicandies"
    n_train: Count = Field(40, description="good training images per category")
    n_validation: Count = Field(8, description="good validation images per category")
    n_test_good: Count = Field(12, description="good test images per category")
    n_test_defect: Count = Field(24, description="defective test images per category")
    difficulty: float = Field(0.5, ge=0, le=1, description="0 obvious defects, 1 subtle ones")
    seed: Annotated[int, Field(ge=0)] | Literal["run"] = Field(
        "run",
        description="run: every run draws the data of its own seed; a number: all runs share its data",
    )

    @property
    def drawn_seed(self) -> int:
        """The seed that images are drawn from; apart from any run, that is seed 0."""
        return 0 if self.seed == "run" else self.seed


class _DiskData(_AnyData):
    root: Path = Field(
        description="folder that holds one folder per category, or the index of `iumad data new`; $NAME is "
        "replaced by the environment variable"
    )
    source: str | None = Field(
        None, description="where the images can be had; said where the folder is missing"
    )

    @field_validator("root", mode="before")
    @classmethod
    def _variables_are_replaced(cls, root: Any) -> Any:
        root = os.path.expandvars(root) if isinstance(root, str) else root
        if root == "":
            raise ValueError("needs a folder, got nothing ('.' is the present one)")
        return root


class FolderConfig(_DiskData):
    """A folder on disk: MVTec 3D-AD's layout, MVTec AD's layout, or an index written by `iumad data new`."""

    name: Literal["mvtec3d", "mvtec", "folder"]
    title: str | None = Field(
        None,
        description="name of the data set in tables, by which its runs are found; default: the layout",
    )
    remove_plane: bool = Field(
        False, description="take the background plane out of the point cloud"
    )
    ranges: dict[str, Limits] = Field(
        {},
        description="modality: (low, high) of stored values that become [0, 1], for further images with more than "
        "8 bits; default: measured on the training images of the base step",
    )

    @property
    def known_modalities(self) -> tuple[str, ...] | None:
        """Names of the registered images; None where only the folder on disk can tell."""
        return ("rgb",) if self.name == "mvtec" else None

    def scaling_of(self, modality: str) -> Scaling:
        """What is asked for a modality with more than 8 bits."""
        return self.ranges.get(modality) or super().scaling_of(modality)

    @model_validator(mode="after")
    def _plane_needs_depth(self) -> "FolderConfig":
        if {"rgb", "depth"} & set(self.ranges):
            raise ValueError(
                "ranges: are for further images; rgb has 8 bits, depth has depth_scaling"
            )
        if self.remove_plane and self.name == "mvtec":
            raise ValueError("remove_plane needs depth, and the MVTec AD layout has none")
        return self


class EyecandiesConfig(_DiskData):
    """Eyecandies as distributed."""

    name: Literal["eyecandies"]
    light: int = Field(4, ge=0, le=5, description="which image_N.png is the RGB image")


AnyData = MiniCandiesConfig | FolderConfig | EyecandiesConfig
DataConfig = Annotated[AnyData, Field(discriminator="name")]


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
    levels: tuple[Annotated[int, Field(ge=0, le=99)], ...] = Field(
        (0, 1, 2, 3), min_length=1, description="timm out_indices, ascending"
    )
    grid: Annotated[int, Field(ge=1, le=512)] = Field(
        16, description="g: all levels are resized to g x g"
    )

    @field_validator("levels")
    @classmethod
    def _ascending(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if list(levels) != sorted(set(levels)):
            raise ValueError(f"each level once, the finest first, got {levels}")
        return levels


class TrainingConfig(Section):
    """The base step; increments take what `IncrementConfig` does not set."""

    epochs: Count = Field(40, description="of the base step, see base_epochs; the paper: 1000")
    batch_size: Count = 8
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

    strategy: Literal["projection", "none", "ewc", "replay", "feature-replay", "joint", "svd"] = (
        Field(
            "projection",
            description="projection: IUF's, on FFN outputs; svd: CDAD's, on all layers' inputs; ewc, replay: "
            "controls; feature-replay: features of earlier images, no images; joint: no increments, all at once",
        )
    )
    epochs: Count = Field(20, description="the paper: 800")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="IUF: sgd")
    lr: PositiveFloat = Field(5.0e-4, description="IUF: 1.0 with sgd")
    pull: Probability = Field(
        0.0, description="share of the old weights mixed in before each update; IUF: 0.05"
    )
    ewc_weight: NonNegative = Field(
        1.0e3, description="weight of the elastic penalty; for strategy ewc"
    )
    replay_images: Count = Field(
        4, description="images kept per earlier category, or whose features are; for both replays"
    )
    svd_threshold: float = Field(
        0.99,
        gt=0,
        le=1,
        description="share of the inputs' energy that is protected; for strategy svd",
    )

    def idle(self) -> dict[str, str]:
        """Keys that change nothing beside the strategy, each with the reason."""
        only = {
            "ewc_weight": ("ewc",),
            "replay_images": ("replay", "feature-replay"),
            "svd_threshold": ("svd",),
        }
        return {
            key: f"it acts with increment.strategy {' and '.join(strategies)} only"
            for key, strategies in only.items()
            if self.strategy not in strategies
        }


Dose = Annotated[float, Field(ge=0, le=1)]


class PerturbConfig(Section):
    """Perturbations of images (paper Sec. 2)."""

    redundant: Dose = Field(
        0.0, description="dose of noise, in standard deviations of the clean image and depth"
    )
    noise_cells: Annotated[int, Field(ge=1, le=64)] = Field(
        8, description="cells of that noise along an image's longer side"
    )
    spurious: Dose = Field(0.0, description="dose: share of another background in the background")
    donors: Literal["categories", "external"] = Field(
        "categories",
        description="where backgrounds come from: training images of the other categories met, or a bank of "
        "patterns that no category has",
    )
    where: Literal["increments", "all", "none"] = Field(
        "increments", description="which steps train on perturbed images"
    )
    test: bool = Field(
        False,
        description="test images are perturbed too; the model is the same as with clean ones. Backgrounds then "
        "come from the categories of the base step, so that they are the same after every step",
    )

    @property
    def is_off(self) -> bool:
        """Whether nothing is changed at all."""
        return self.redundant == 0 and self.spurious == 0

    def reaches(self, step: int) -> bool:
        """Whether a step trains on perturbed images."""
        first = {"all": 0, "increments": 1, "none": math.inf}[self.where]
        return not self.is_off and step >= first


class EvaluationConfig(Section):
    """What is measured after every step."""

    image_score: Literal["max", "mean", "std", "top"] = Field(
        "max",
        description="max: of the average-pooled map; top: mean of the highest 0.1 % of pixels (UniMMAD)",
    )
    pool: Count = Field(16, description="window of that average, pixels")
    fpr_limit: float = Field(
        0.3, gt=0, le=1, description="AUPRO is integrated up to this false positive rate"
    )
    batch_size: Count = 16
