"""The `model` section of each of the field's other systems; what is adapted is on the book's page of baselines.

Symbols: C channels of the aligned features, g grid, d width.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from iumad.config_data import Section

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
        0.1,
        description="of the negatives, relative to the adapted features; theirs: 0.015, absolute",
    )
    margin: PositiveFloat = Field(0.5, description="of both hinges")


class CdadFeatConfig(Section):
    """CDAD's ingredients on frozen features: an adaptation, not CDAD (Li et al., CVPR 2025)."""

    kind: Literal["cdad-feat"] = "cdad-feat"
    dim: PositiveInt = Field(64, multiple_of=8, description="d of denoiser and condition")
    blocks: PositiveInt = Field(3, description="residual blocks of the denoiser")
    layers: PositiveInt = Field(2, description="transformer layers of the condition; theirs: 8")
    heads: PositiveInt = Field(4, description="of these layers; theirs: 8")
    start: Annotated[int, Field(ge=1, le=999)] = Field(
        250, description="noise level t at which sampling starts, of 1000; theirs: 999"
    )
    sampling_steps: PositiveInt = Field(5, description="of DDIM; theirs: 10")
