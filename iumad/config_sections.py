"""The sections of a params file: every key, its default, its range, and what of the paper it sets.

Symbols: C channels of the aligned features, d width of the reconstruction network, g grid (tokens = g x g).
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from iumad.config_baselines import CdadFeatConfig as CdadFeatConfig
from iumad.config_baselines import CndConfig as CndConfig
from iumad.config_baselines import MambaADConfig as MambaADConfig
from iumad.config_baselines import SimpleNetConfig as SimpleNetConfig
from iumad.config_baselines import UniMMADConfig as UniMMADConfig
from iumad.config_baselines import UniMMADLiteConfig as UniMMADLiteConfig
from iumad.config_data import DataConfig as DataConfig
from iumad.config_data import DepthEncoding as DepthEncoding
from iumad.config_data import EyecandiesConfig as EyecandiesConfig
from iumad.config_data import FolderConfig as FolderConfig
from iumad.config_data import MiniCandiesConfig as MiniCandiesConfig
from iumad.config_data import Section as Section

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
    bidirectional: bool = Field(False, description="ES2D scans each sub-grid in both directions")
    shared_projection: bool = Field(
        False, description="one input projection for both modalities (release)"
    )
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
    grow_logits: bool = Field(
        False, description="logits of the categories met so far, more at every step; else of all"
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
    accumulation: PositiveInt = Field(
        1, description="batches whose gradients are averaged for one update"
    )
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
