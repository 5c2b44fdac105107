"""What each method is made of: the `model` section of every kind, and the presets of the methods' names.

Symbols: C channels of the aligned features, d width, g grid (tokens = g x g).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveFloat, model_validator

from iumad.config.sections import (
    Count,
    Modality,
    NonNegative,
    PerturbConfig,
    Probability,
    Section,
    Width,
    nearest,
)
from iumad.errors import ConfigError

Fusion = Literal["addition", "concatfc", "linearglu", "cross-attention"]


class ReconstructionConfig(Section):
    """IB-IUMAD and the reconstruction methods that are special cases of it."""

    kind: Literal["reconstruction"] = "reconstruction"
    dim: Width = Field(96, description="d, width of tokens")
    heads: Width = 8
    layers: Annotated[int, Field(ge=2, le=64)] = Field(
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
    neighbour_mask: int | Literal["half"] | None = Field(
        None,
        description="odd window around each token that attention may not read (UniAD); "
        "half: the largest up to half the grid, as UniAD's 7 of 14",
    )
    condition: Literal["none", "vit", "mamba"] = Field(
        "mamba", description="what gates the encoder's queries"
    )
    gate: Literal["normalised", "raw"] = Field(
        "normalised",
        description="normalised: bounded over channels; raw: the condition's features as they are, as in IUF",
    )
    detach_condition: bool = Field(
        True, description="reconstruction loss does not reach the condition network"
    )
    d_state: Width = Field(16, description="N of the state space model")
    expand: Annotated[int, Field(ge=1, le=16)] = 2
    fusion: Fusion = "cross-attention"
    bottleneck: bool = Field(
        True, description="the information bottleneck module of Eq. 5 and its KL"
    )
    bottleneck_width: PositiveFloat = Field(1.0, le=16, description="width of z in units of d")
    bottleneck_dropout: Probability = 0.1
    bottleneck_residual: bool = Field(
        False, description="F_fu^g = F_fu + bottleneck(F_fu); not in the paper"
    )
    targets: Literal["rgb", "all"] = Field(
        "rgb",
        description="what is reconstructed and scored: features of the first modality, as in the paper, or of all",
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
        description="of the squared error in Eq. 9 over channels; IUF and UniAD take the mean, which a clipped "
        "gradient of the classifier drowns",
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
        if isinstance(self.neighbour_mask, int) and (
            self.neighbour_mask < 1 or self.neighbour_mask % 2 == 0
        ):
            raise ValueError(f"neighbour_mask must be odd and positive, got {self.neighbour_mask}")
        return self

    def scored(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Modalities whose features the anomaly map compares."""
        return modalities if self.targets == "all" else modalities[:1]

    def idle(self, modalities: tuple[str, ...]) -> dict[str, str]:
        """Keys that change nothing beside the others' values, each with the reason."""
        found: dict[str, str] = {}

        def add(keys: str, reason: str) -> None:
            found.update(dict.fromkeys(keys.split(), reason))

        if self.condition == "none":
            add("gate detach_condition lambda_rgb lambda_depth", "there is no condition network")
        if self.condition != "mamba":
            add("d_state expand", f"condition is {self.condition}, not mamba")
        if not self.bottleneck:
            add("bottleneck_width bottleneck_dropout", "there is no bottleneck")
            add("bottleneck_residual lambda_ib heads_cross_entropy", "there is no bottleneck")
        if len(modalities) == 1:
            add("targets", "there is one modality")
        if "rgb" not in modalities:
            add("lambda_rgb", "there is no modality rgb")
        if not set(modalities) - {"rgb"}:
            add("lambda_depth", "there is no modality beside rgb")
        if self.jitter_scale == 0:
            add("jitter_probability", "jitter_scale is 0")
        if self.jitter_probability == 0:
            add("jitter_scale", "jitter_probability is 0")
        return found


class KeepConfig(ReconstructionConfig):
    """IB-IUMAD that forgets nothing: a trunk frozen after the base step, and small own parts. Not in the paper."""

    kind: Literal["keep"] = "keep"  # type: ignore[assignment]
    own: Literal["none", "norms", "queries", "projections"] = Field(
        "projections",
        description="what a later step learns for its categories alone, each with the ones before: nothing; norms "
        "and biases; learned queries and positions; the linear maps from features and back",
    )
    patches: Annotated[int, Field(ge=0, le=100_000)] = Field(
        128,
        description="stored for each category and modality, whose distances join the map; 0: none",
    )


class _AnyModel(Section):
    def idle(self, _modalities: tuple[str, ...]) -> dict[str, str]:
        """Keys that change nothing beside the others' values, each with the reason."""
        return {}

    def scored(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Modalities whose features the anomaly map compares, apart or joined."""
        return modalities


class _AnyBank(_AnyModel):
    neighbours: Count = Field(1, description="nearest patches whose distances are averaged")
    standardise: bool = Field(
        False, description="features per channel to mean 0, variance 1 of the base step"
    )


class BankConfig(_AnyBank):
    """One nearest-neighbour bank for each category on the same features: the N-objects-N-models reference."""

    kind: Literal["bank"] = "bank"
    coreset: float = Field(
        1.0, gt=0, le=1, description="share of patches kept by greedy selection (PatchCore)"
    )
    depth_features: Literal["backbone", "fpfh"] = Field(
        "backbone", description="fpfh: of the point cloud's surface, as BTF; needs the extra fpfh"
    )

    @model_validator(mode="after")
    def _surface_is_not_standardised(self) -> "BankConfig":
        if self.standardise and self.depth_features == "fpfh":
            raise ValueError("standardise goes with depth_features backbone only")
        return self


class UnifiedBankConfig(_AnyBank):
    """One memory of fixed size for all categories, which it is not told; it grows by steps."""

    kind: Literal["bank-unified"] = "bank-unified"
    patches: Count = Field(
        4096, description="that the memory holds of each modality, however many categories"
    )


class FloorConfig(_AnyModel):
    """A statistic of the image without any training: what a method must beat to be worth anything."""

    kind: Literal["floor"] = "floor"
    statistic: Literal["laplacian", "mean", "spread", "histogram", "image"] = Field(
        "laplacian",
        description="spread of the Laplacian; mean or spread of brightness; histogram; the image, made small",
    )
    distance: Literal["none", "mean", "nearest"] = Field(
        "none",
        description="none: the statistic itself; else how far it is from the mean or the nearest training image "
        "of its category",
    )
    modality: str | None = Field(
        None, description="whose image is looked at; default: the last of the run's"
    )
    bins: Width = Field(16, description="of a histogram, for each colour")

    @model_validator(mode="after")
    def _one_number(self) -> "FloorConfig":
        if self.distance == "none" and self.statistic in ("histogram", "image"):
            raise ValueError(f"distance none needs a statistic of one number, not {self.statistic}")
        return self


ScanOrder = Literal["hilbert", "sweep", "scan", "zorder", "zigzag"]


class MambaADLiteConfig(_AnyModel):
    """MambaAD's decoder on one grid of frozen features: an adaptation, not MambaAD (He et al., NeurIPS 2024)."""

    kind: Literal["mambaad-lite"] = "mambaad-lite"
    dim: Width = Field(64, description="d at the full grid; twice that at each coarser stage")
    depths: tuple[Width, ...] = Field(
        (2, 2), min_length=1, description="blocks of each stage, coarsest first; theirs: 3, 4, 6, 3"
    )
    scan: ScanOrder = Field("hilbert", description="the curve along which the grid is read")
    directions: Literal[2, 4, 8] = Field(
        8, description="of the curve: turned, transposed, reversed"
    )
    d_state: Width = Field(16, description="N of the state space model")
    drop_path: float = Field(0.2, ge=0, lt=1, description="of the first block, falling to 0")
    loss_weight: PositiveFloat = Field(5.0, description="factor of the squared error")
    score: Literal["distance", "cosine"] = Field(
        "cosine", description="theirs: cosine, though it is trained by distance"
    )


class SimpleNetConfig(_AnyModel):
    """SimpleNet: adaptor and discriminator of noisy features (Liu et al., CVPR 2023)."""

    kind: Literal["simplenet"] = "simplenet"
    hidden: Width = Field(256, description="width of the discriminator; theirs: 1024")
    noise: PositiveFloat = Field(
        0.5,
        description="of the negatives, relative to the adapted features; theirs: 0.015, absolute",
    )
    margin: PositiveFloat = Field(0.5, description="of both hinges")


class CdadFeatConfig(_AnyModel):
    """CDAD's ingredients on frozen features: an adaptation, not CDAD (Li et al., CVPR 2025)."""

    kind: Literal["cdad-feat"] = "cdad-feat"
    dim: Width = Field(64, multiple_of=8, description="d of denoiser and condition")
    blocks: Annotated[int, Field(ge=1, le=64)] = Field(
        3, description="residual blocks of the denoiser"
    )
    layers: Annotated[int, Field(ge=1, le=64)] = Field(
        2, description="transformer layers of the condition; theirs: 8"
    )
    heads: Width = Field(4, description="of these layers, a divisor of dim; theirs: 8")
    start: Annotated[int, Field(ge=1, le=999)] = Field(
        250, description="noise level t at which sampling starts, of 1000; theirs: 999"
    )
    sampling_steps: Count = Field(5, description="of DDIM; theirs: 10")

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "CdadFeatConfig":
        if self.dim % self.heads:
            raise ValueError(
                f"dim must be divisible by heads, got dim {self.dim}, heads {self.heads}"
            )
        return self


class _CrossMixture(_AnyModel):
    """What both sizes of UniMMAD share; the numbers are the full size's."""

    width: Width = Field(256, description="e of the experts")
    leaders: Width = Field(32, description="J, experts that an item can be routed to")
    bases: Width = Field(8, description="N, kernels that leaders are mixed of")
    active: Width = Field(2, description="K, leaders that an item is routed to")
    kernels: tuple[Width, ...] = Field(
        (1, 3, 5), min_length=1, description="odd sizes, of experts and of inner bottlenecks"
    )
    gamma: float = Field(2.0, ge=0, description="exponent of the focal weight, its paper's Eq. 3")
    balance: Literal["paper", "code"] = Field(
        "paper", description="its paper's Eq. 1; code: squared variation and a z-loss"
    )
    score: Literal["paper", "code"] = Field(
        "paper", description="its paper's Eq. 4; code: one root over modalities and levels"
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


class UniMMADLiteConfig(_CrossMixture):
    """UniMMAD's experts on one grid of frozen features: an adaptation, not UniMMAD."""

    kind: Literal["unimmad-lite"] = "unimmad-lite"
    width: int = Field(64, ge=2, le=2048, description="e of the experts; theirs: 256")
    leaders: Width = Field(8, description="J; theirs: 32")
    bases: Width = Field(4, description="N; theirs: 8")
    kernels: tuple[Width, ...] = Field((1, 3), min_length=1, description="odd; theirs: 1, 3, 5")
    sigma: PositiveFloat = Field(
        1.0, description="of the Gaussian over the maps, pixels; theirs: 4 at 256 pixels"
    )


class CndConfig(_AnyModel):
    """CND: distillation of CLIP features, held to a learnt text of normality (CNC, Wang et al., AAAI 2025)."""

    kind: Literal["cnd"] = "cnd"
    architecture: str = Field("ViT-L-14-336-quickgelu", description="open_clip's name of a CLIP")
    weights: Literal["openai", "random"] = Field("openai", description="random is for tests only")
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (5, 11, 17), min_length=3, max_length=3, description="encoder blocks, the first is 0"
    )
    prompt_length: Annotated[int, Field(ge=1, le=73)] = Field(
        12, description="learnable tokens; with start, two words and end they fill CLIP's 77 at 73"
    )
    experts: Width = Field(5, description="T")
    active: Width = Field(2, description="K, experts per patch")
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


ModelConfig = Annotated[
    ReconstructionConfig
    | KeepConfig
    | BankConfig
    | UnifiedBankConfig
    | FloorConfig
    | MambaADLiteConfig
    | SimpleNetConfig
    | CdadFeatConfig
    | UniMMADConfig
    | UniMMADLiteConfig
    | CndConfig,
    Field(discriminator="kind"),
]


# What the classes of `iumad.models`, which may not be imported here, say too; a test compares them.
RECONSTRUCTIONS = (
    "reconstruction",
    "keep",
)  # share ReconstructionConfig's keys, and protect layers
UNTRAINED = ("bank", "bank-unified", "floor")  # nothing is learnt by gradient descent
READ_IMAGES = ("unimmad", "cnd")  # trained methods that encode the images themselves


@dataclass(frozen=True)
class Preset:
    """A method's name made concrete: what it changes in the defaults, which are IB-IUMAD's.

    Attributes
    ----------
    note : what the method is, and what of its original is reduced; shown by `iumad params` and on page 17
    model, training, increment : changes of the sections
    """

    note: str
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    increment: Mapping[str, Any] = field(default_factory=dict)


_PLAIN = {"condition": "none", "fusion": "addition", "bottleneck": False}
_FINETUNED = {"strategy": "none"}  # methods that know no increments
_UNIMMAD = {"lr": 1.0e-3, "weight_decay": 0.0}
PRESETS: dict[str, Preset] = {
    "ib-iumad": Preset("the paper's method, in its words where paper and release differ"),
    "ib-iumad-plus": Preset(
        "ib-iumad that reconstructs all modalities, past a bottleneck with a way around it",
        {"targets": "all", "bottleneck_residual": True},
    ),
    "ib-iumad-keep": Preset(
        "ib-iumad-plus whose later steps learn small parts of their own; a nearest mean tells the category",
        {"kind": "keep", "targets": "all", "bottleneck_residual": True},
        increment=_FINETUNED,
    ),
    "plain": Preset("the bare reconstruction network: no gate, mask or dropout", _PLAIN),
    "uniad": Preset(
        "UniAD's network on the study's features, neighbour mask of half the grid",
        _PLAIN | {"neighbour_mask": "half", "dropout": 0.1},
    ),
    "iuf": Preset("IUF's network and projection, gate bounded", _PLAIN | {"condition": "vit"}),
    "joint": Preset(
        "ib-iumad on all categories at once: a mark, no upper bound",
        increment={"strategy": "joint"},
    ),
    "finetune": Preset("ib-iumad without any protection", increment=_FINETUNED),
    "bank": Preset(
        "PatchCore on the study's features: a bank for each category, which it is told",
        {"kind": "bank"},
    ),
    "bank-unified": Preset(
        "one bank of fixed size for all categories, which it is not told", {"kind": "bank-unified"}
    ),
    "btf": Preset(
        "BTF: a bank for each category, told, of FPFH for depth and the study's features for colour",
        {"kind": "bank", "depth_features": "fpfh", "coreset": 0.1},
    ),
    "floor-laplacian": Preset(
        "floor: standard deviation of the depth's Laplacian, of grey where there is no depth",
        {"kind": "floor"},
    ),
    "floor-depth-histogram": Preset(
        "floor: distance to the nearest 16-bin depth histogram of the category's training images",
        {"kind": "floor", "statistic": "histogram", "distance": "nearest", "modality": "depth"},
    ),
    "floor-rgb-histogram": Preset(
        "floor: distance to the nearest 16-bin colour histogram of the category's training images",
        {"kind": "floor", "statistic": "histogram", "distance": "nearest", "modality": "rgb"},
    ),
    "floor-mean": Preset(
        "floor: how far the mean brightness is from the category's mean",
        {"kind": "floor", "statistic": "mean", "distance": "mean"},
    ),
    "floor-spread": Preset(
        "floor: how far the spread of brightness is from the category's mean",
        {"kind": "floor", "statistic": "spread", "distance": "mean"},
    ),
    "floor-nearest": Preset(
        "floor: distance to the category's nearest training image at 32 x 32 pixels",
        {"kind": "floor", "statistic": "image", "distance": "nearest"},
    ),
    "floor-mean-image": Preset(
        "floor: distance to the category's mean training image at 32 x 32 pixels",
        {"kind": "floor", "statistic": "image", "distance": "mean"},
    ),
    "mambaad-lite": Preset(
        "MambaAD's decoder; reduced: one grid of frozen features, 2 stages of 2 blocks instead of 16 in 4",
        {"kind": "mambaad-lite"},
        increment=_FINETUNED,
    ),
    "simplenet": Preset(
        "SimpleNet's adaptor and discriminator on the study's features, 256 wide instead of 1024",
        {"kind": "simplenet"},
        increment=_FINETUNED,
    ),
    "cdad-feat": Preset(
        "a small denoiser of features with CDAD's SVD protection; learns too little to be ranked",
        {"kind": "cdad-feat"},
        increment={"strategy": "svd"},
    ),
    "cnd": Preset(
        "CND with its own CLIP, which reads the images",
        {"kind": "cnd"},
        {"lr": 1.0e-3, "weight_decay": 0.0, "schedule": "constant"},
        _FINETUNED | {"lr": 1.0e-3},
    ),
    "unimmad": Preset(
        "UniMMAD at full size with its own backbones, which read the images",
        {"kind": "unimmad"},
        _UNIMMAD,
        _FINETUNED,
    ),
    "unimmad-lite": Preset(
        "UniMMAD's experts; reduced: one grid of frozen features, 8 leaders 64 wide instead of 32 of 256",
        {"kind": "unimmad-lite"},
        increment=_FINETUNED,
    ),
}
"""Every method by its name."""

STRATEGIES = {
    "joint": "trained on all categories at once",
    "finetune": "nothing protects earlier categories",
    "replay": "a few images of earlier categories are trained on again",
    "feature-replay": "features of a few images of earlier categories are trained on again",
    "projection": "protected by IUF's projection",
    "svd": "protected by CDAD's projection",
    "ewc": "protected by an elastic penalty",
}
"""What may stand behind a method's name and a plus sign: how its increments are trained."""


def find_preset(name: str) -> Preset:
    """The preset of a method's name, such as `iuf`, or of one with a strategy, such as `iuf+replay`.

    Raises
    ------
    ConfigError
        No method has this name, or it is not trained and has no use for the strategy.
    """
    method, plus, word = name.partition("+")
    if method not in PRESETS or (plus and word not in STRATEGIES):
        names = (
            [*PRESETS, *(f"{method}+{each}" for each in STRATEGIES)]
            if method in PRESETS
            else PRESETS
        )
        raise ConfigError(
            f"no method is called {name!r}{nearest(name, names)}; known: {', '.join(PRESETS)}; "
            f"behind a plus sign: {', '.join(STRATEGIES)}"
        )
    preset = PRESETS[method]
    if not plus:
        return preset
    if preset.model.get("kind") in UNTRAINED and word != "joint":
        raise ConfigError(f"{name!r}: {method} is not trained, only +joint can stand behind it")
    strategy = "none" if word == "finetune" else word
    return replace(
        preset,
        note=f"{preset.note}; {STRATEGIES[word]}",
        increment={**preset.increment, "strategy": strategy},
    )


class MethodConfig(Section):
    """One row of a comparison: a preset and what is changed in it."""

    preset: str | None = Field(
        None, description="a method's name, or NAME+STRATEGY; default: the entry's own name"
    )
    model: dict[str, Any] = Field({})
    increment: dict[str, Any] = Field({})
    training: dict[str, Any] = Field({})
    perturb: PerturbConfig = PerturbConfig()
    modalities: tuple[Modality, ...] | None = Field(
        None, description="of the study's, those with this method; default: all"
    )
    settings: tuple[str, ...] | None = Field(
        None, description="of the study's, those with this method; default: all"
    )
    seeds: tuple[int, ...] | None = Field(
        None, description="of the study's, those with this method; default: all"
    )

    def is_in(self, modality: str, setting: str, seed: int) -> bool:
        """Whether the method is run there."""
        wanted = ((self.modalities, modality), (self.settings, setting), (self.seeds, seed))
        return all(limit is None or value in limit for limit, value in wanted)


def model_section(model: Mapping[str, Any]) -> type[Section]:
    """The section of a model's `kind`; without one, that of reconstruction methods.

    Raises
    ------
    ConfigError
        No section has this kind.
    """
    union, *_ = get_args(ModelConfig)
    kinds = {section.model_fields["kind"].default: section for section in get_args(union)}
    kind = str(model.get("kind", "reconstruction"))
    if kind not in kinds:
        raise ConfigError(
            f"model.kind: no kind is called {kind!r}{nearest(kind, kinds)}; known: {', '.join(kinds)}"
        )
    return kinds[kind]
