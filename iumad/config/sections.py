"""The sections of a params file: every key, its default, its range, and what of the paper it sets.

Symbols: C channels of the aligned features, d width of the reconstruction network, g grid (tokens = g x g).

The `data` section of a params file: which images, and how they are brought to the model.

The `model` section of each of the field's other systems; what is adapted is on the book's page of baselines.

Symbols: C channels of the aligned features, g grid, d width.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

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


ScanOrder = Literal["hilbert", "sweep", "scan", "zorder", "zigzag"]


class MambaADConfig(Section):
    """MambaAD's decoder on one grid of frozen features (He et al., NeurIPS 2024)."""

    kind: Literal["mambaad"] = "mambaad"
    dim: PositiveInt = Field(64, description="d at the full grid; twice that at each coarser stage")
    depths: tuple[PositiveInt, ...] = Field(
        (2, 2), min_length=1, description="blocks of each stage, coarsest first; theirs: 3, 4, 6, 3"
    )
    scan: ScanOrder = Field("hilbert", description="the curve along which the grid is read")
    directions: Literal[2, 4, 8] = Field(
        8, description="of the curve: turned, transposed, reversed"
    )
    d_state: PositiveInt = Field(16, description="N of the state space model")
    drop_path: float = Field(0.2, ge=0, lt=1, description="of the first block, falling to 0")
    loss_weight: PositiveFloat = Field(5.0, description="factor of the squared error")
    score: Literal["distance", "cosine"] = Field(
        "cosine", description="theirs: cosine, though it is trained by distance"
    )


class SimpleNetConfig(Section):
    """SimpleNet: adaptor and discriminator of noisy features (Liu et al., CVPR 2023)."""

    kind: Literal["simplenet"] = "simplenet"
    hidden: PositiveInt = Field(256, description="width of the discriminator; theirs: 1024")
    noise: PositiveFloat = Field(
        0.5,
        description="of the negatives, relative to the adapted features; theirs: 0.015, absolute",
    )
    margin: PositiveFloat = Field(0.5, description="of both hinges")


class CdadFeatConfig(Section):
    """CDAD's ingredients on frozen features: an adaptation, not CDAD (Li et al., CVPR 2025)."""

    kind: Literal["cdad-feat"] = "cdad-feat"
    dim: PositiveInt = Field(64, multiple_of=8, description="d of denoiser and condition")
    blocks: PositiveInt = Field(3, description="residual blocks of the denoiser")
    layers: PositiveInt = Field(2, description="transformer layers of the condition; theirs: 8")
    heads: PositiveInt = Field(4, description="of these layers, a divisor of dim; theirs: 8")
    start: Annotated[int, Field(ge=1, le=999)] = Field(
        250, description="noise level t at which sampling starts, of 1000; theirs: 999"
    )
    sampling_steps: PositiveInt = Field(5, description="of DDIM; theirs: 10")

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "CdadFeatConfig":
        if self.dim % self.heads:
            raise ValueError(
                f"dim must be divisible by heads, got dim {self.dim}, heads {self.heads}"
            )
        return self


class _CrossMixture(Section):
    """What both sizes of UniMMAD share; the numbers are the full size's."""

    width: PositiveInt = Field(256, description="e of the experts")
    leaders: PositiveInt = Field(32, description="J, experts that an item can be routed to")
    bases: PositiveInt = Field(8, description="N, kernels that leaders are mixed of")
    active: PositiveInt = Field(2, description="K, leaders that an item is routed to")
    kernels: tuple[PositiveInt, ...] = Field(
        (1, 3, 5), min_length=1, description="odd sizes, of experts and of inner bottlenecks"
    )
    gamma: float = Field(2.0, ge=0, description="exponent of the focal weight in Eq. 3")
    balance: Literal["paper", "code"] = Field(
        "paper", description="Eq. 1; code: squared variation and a z-loss"
    )
    score: Literal["paper", "code"] = Field(
        "paper", description="Eq. 4; code: one root over modalities and levels"
    )
    sigma: PositiveFloat = Field(4.0, description="of the Gaussian over the maps, pixels")

    @model_validator(mode="after")
    def _experts_fit(self) -> "_CrossMixture":
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"kernels must be odd, got {self.kernels}")
        if self.active > self.leaders:
            raise ValueError(f"active {self.active} must not exceed leaders, {self.leaders}")
        return self


class UniMMADConfig(_CrossMixture):
    """UniMMAD with its own backbones, which read the images (Zhao et al.)."""

    kind: Literal["unimmad"] = "unimmad"
    backbone: str = Field(
        "wide_resnet50_2.tv2_in1k", description="timm model with strides 4, 8, 16"
    )
    weights: Literal["pretrained", "random"] = Field(
        "pretrained", description="random is for tests only"
    )
    slots: int = Field(4, ge=2, description="modalities that the input has room for")
    prior_refinement: bool = Field(
        False, description="mean prior added to the encoder's levels; in the paper, not in its code"
    )


class UniMMADLiteConfig(_CrossMixture):
    """UniMMAD's experts on one grid of frozen features: an adaptation, not UniMMAD."""

    kind: Literal["unimmad-lite"] = "unimmad-lite"
    width: int = Field(64, ge=2, description="e of the experts; theirs: 256")
    leaders: PositiveInt = Field(8, description="J; theirs: 32")
    bases: PositiveInt = Field(4, description="N; theirs: 8")
    kernels: tuple[PositiveInt, ...] = Field(
        (1, 3), min_length=1, description="odd; theirs: 1, 3, 5"
    )
    sigma: PositiveFloat = Field(
        1.0, description="of the Gaussian over the maps, pixels; theirs: 4 at 256 pixels"
    )


class CndConfig(Section):
    """CND: distillation of CLIP features, held to a learnt text of normality (CNC, Wang et al., AAAI 2025)."""

    kind: Literal["cnd"] = "cnd"
    encoder: Literal["open-clip", "tiny"] = Field(
        "open-clip", description="tiny: a small random network, for tests only"
    )
    architecture: str = Field(
        "ViT-L-14-336-quickgelu", description="open_clip's name; for encoder open-clip"
    )
    weights: Literal["openai", "random"] = Field(
        "openai", description="random is for tests only; for encoder open-clip"
    )
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (5, 11, 17), min_length=3, max_length=3, description="encoder blocks, the first is 0"
    )
    prompt_length: PositiveInt = Field(
        12,
        le=73,
        description="learnable tokens; with start, two words and end they fill CLIP's 77 at 73",
    )
    experts: PositiveInt = Field(5, description="T")
    active: PositiveInt = Field(2, description="K, experts per patch")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the multi-layer fusion")
    noise: float = Field(0.1, ge=0, description="of the input, in units of a token's RMS")
    temperature: PositiveFloat = Field(
        0.01, description="tau; theirs: 0.001, at which the softmax of unit vectors saturates"
    )
    gamma: float = Field(0.1, ge=0, description="weight of the constraint on decoded features")
    warm_up: int = Field(5, ge=0, description="epochs of a step before that constraint")
    lambda_moe: float = Field(1.0, ge=0, description="weight of the importance loss")

    @model_validator(mode="after")
    def _experts_fit(self) -> "CndConfig":
        if self.active > self.experts:
            raise ValueError(f"active {self.active} must not exceed experts, {self.experts}")
        if tuple(sorted(set(self.layers))) != self.layers:
            raise ValueError(f"layers must rise, got {self.layers}")
        return self


Probability = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]


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


class ReconstructionConfig(Section):
    """IB-IUMAD and the reconstruction methods that are special cases of it."""

    kind: Literal["reconstruction"] = "reconstruction"
    dim: PositiveInt = Field(96, description="d, width of tokens")
    heads: PositiveInt = 8
    layers: Annotated[int, Field(ge=2)] = Field(
        2, description="encoder layers = decoder layers = condition blocks"
    )
    dropout: Probability = Field(
        0.0, description="in attention and FFN; the paper's parents use 0.1"
    )
    standardise: bool = Field(
        True, description="features per channel to mean 0, variance 1 of the base step"
    )
    jitter_scale: NonNegative = Field(20.0, description="feature jitter s")
    jitter_probability: float = Field(1.0, ge=0, le=1)
    neighbour_mask: int | None = Field(
        None, description="odd window hidden from self-attention (UniAD)"
    )
    condition: Literal["none", "vit", "mamba"] = Field(
        "mamba", description="what gates the encoder's queries"
    )
    detach_condition: bool = Field(
        True, description="reconstruction loss does not reach the condition network"
    )
    d_state: PositiveInt = Field(16, description="N of the state space model")
    expand: PositiveInt = 2
    fusion: Literal["addition", "concatfc", "linearglu", "cross-attention"] = "cross-attention"
    bottleneck: bool = Field(
        True, description="the information bottleneck module of Eq. 5 and its KL"
    )
    bottleneck_width: PositiveFloat = Field(1.0, description="width of z in units of d")
    bottleneck_dropout: Probability = 0.1
    bottleneck_residual: bool = Field(
        False, description="F_fu^g = F_fu + bottleneck(F_fu); not in the paper"
    )
    depth_target: bool = Field(
        False, description="reconstruct depth features too and add their map; not in the paper"
    )
    heads_cross_entropy: Literal["none", "heads", "features"] = Field(
        "heads",
        description="what labels train besides Eq. 10: nothing, the two heads of the KL, or also their features",
    )
    lambda_rgb: NonNegative = Field(1.0, description="lambda 1 of Eq. 10")
    lambda_depth: NonNegative = Field(1.0, description="lambda 2 of Eq. 10")
    lambda_fusion: NonNegative = Field(1.0, description="lambda 3 of Eq. 10")
    channel_reduction: Literal["sum", "mean"] = Field(
        "sum",
        description="of the squared error in Eq. 9 over channels; IUF and UniAD take the mean",
    )
    lambda_ib: NonNegative = Field(1.0, description="lambda 4 of Eq. 10")
    lambda_compression: NonNegative = Field(
        0.0, description="weight of IUF's semantic compression, base step only; IUF: 10"
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ReconstructionConfig":
        if self.dim % self.heads or self.dim % 2:
            raise ValueError(
                f"dim must be even and divisible by heads, got dim {self.dim}, heads {self.heads}"
            )
        if self.neighbour_mask is not None and (
            self.neighbour_mask < 1 or self.neighbour_mask % 2 == 0
        ):
            raise ValueError(f"neighbour_mask must be odd and positive, got {self.neighbour_mask}")
        return self


class MemoryBankConfig(Section):
    """One nearest-neighbour bank per category on the same features: the N-objects-N-models reference."""

    kind: Literal["memory-bank"] = "memory-bank"
    coreset: float = Field(
        1.0, gt=0, le=1, description="share of patches kept by greedy selection (PatchCore)"
    )
    neighbours: PositiveInt = 1
    depth_features: Literal["backbone", "fpfh"] = Field(
        "backbone", description="fpfh: of the point cloud's surface, as BTF; needs the extra fpfh"
    )


ModelConfig = Annotated[
    ReconstructionConfig
    | MemoryBankConfig
    | MambaADConfig
    | SimpleNetConfig
    | CdadFeatConfig
    | UniMMADConfig
    | UniMMADLiteConfig
    | CndConfig,
    Field(discriminator="kind"),
]


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
