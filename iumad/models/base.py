"""What all trained methods have in common: features in, loss terms or residual maps out.

Training, increments, evaluation and costs work with any `TrainedDetector`; a method is one module that fills in
`losses` and `residual_maps`, and a section of the configuration (`iumad.models.registry` joins the two).
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.errors import ConfigError
from iumad.features.cache import Batch

KNOWN = ("rgb", "depth")


class TrainedDetector(nn.Module):
    """A detector that is trained by gradient descent, step after step, on frozen features.

    Parameters
    ----------
    modalities : ("rgb",), ("depth",) or ("rgb", "depth")
    channels, grid, image_size : int
        C and g of the features, side of the images in pixels.
    targets : tuple of str, optional
        Keys of the residual maps, modalities as a rule; default: all modalities.
    standardise : bool
        Whether the base step measures `mean_*` and `std_*`; else they stay 0 and 1.

    Attributes
    ----------
    reads_features : bool
        Of the class: whether the method reads the study's features; else it encodes the images itself.

    Raises
    ------
    ConfigError
        The modalities are not one of the three combinations.
    """

    reads_features: ClassVar[bool] = True

    def __init__(
        self,
        modalities: tuple[str, ...],
        channels: int,
        grid: int,
        image_size: int,
        targets: tuple[str, ...] | None = None,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        if not modalities or modalities != tuple(m for m in KNOWN if m in modalities):
            raise ConfigError(
                f"{type(self).__name__} needs modalities rgb, depth or rgb+depth, got {'+'.join(modalities)!r}"
            )
        self.modalities, self.channels = modalities, channels
        self.grid, self.image_size, self.standardise = grid, image_size, standardise
        self.targets = modalities if targets is None else targets
        for modality in modalities:
            self.register_buffer(f"mean_{modality}", torch.zeros(channels))
            self.register_buffer(f"std_{modality}", torch.ones(channels))
            self.register_buffer(f"residual_{modality}", torch.ones(()))

    def losses(
        self, batch: Batch, generator: torch.Generator | None = None, base: bool = False
    ) -> dict[str, Float[Tensor, ""]]:
        """The weighted terms of the loss; their sum is minimised.

        Parameters
        ----------
        batch : Batch
        generator : torch.Generator, optional
            Source of noise, on the batch's device.
        base : bool
            Whether this is the base step.
        """
        raise NotImplementedError

    def residual_maps(self, batch: Batch) -> dict[str, Float[Tensor, "b g g"]]:
        """How anomalous every token is, per target; higher is more."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> object:
        """What inference computes, and what is counted as its cost: the residual maps."""
        return self.residual_maps(batch)

    def protected_layers(self) -> dict[str, nn.Module]:
        """Layers whose updates the strategy `projection` damps, by parameter name; none: it cannot be used."""
        return {}

    def compiled_parts(self) -> tuple[nn.Module, ...]:
        """The parts that take the time, for torch.compile."""
        return tuple(
            part
            for child in self.children()
            for part in (child.children() if isinstance(child, nn.ModuleDict) else (child,))
        )

    def begin_increment(self) -> None:
        """Called before a step after the base is trained; a method may freeze parts here."""

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before every epoch, the first being 0; a loss may be annealed by it."""

    def standardised(self, batch: Batch, modality: str) -> Float[Tensor, "b n c"]:
        """Features as tokens, per channel (f - mean) / std with the base step's statistics."""
        tokens = batch.features[modality].flatten(2).transpose(1, 2)
        return (tokens - getattr(self, f"mean_{modality}")) / getattr(self, f"std_{modality}")

    def token_map(self, batch: Batch) -> Float[Tensor, "b g g"]:
        """One map of all targets: the root mean square of their residual maps.

        Each target's map is first divided by its mean over the step's training data (`residual_*`).
        """
        scaled = [
            x / getattr(self, f"residual_{modality}")
            for modality, x in self.residual_maps(batch).items()
        ]
        return torch.stack(scaled).square().mean(dim=0).sqrt()

    def anomaly_maps(self, batch: Batch) -> Float[Tensor, "b size size"]:
        """The token map brought to image size, bilinear."""
        size = (self.image_size, self.image_size)
        return functional.interpolate(
            self.token_map(batch)[:, None], size, mode="bilinear", align_corners=True
        )[:, 0]


def noise_like(
    x: Float[Tensor, "*shape"], generator: torch.Generator | None
) -> Float[Tensor, "*shape"]:
    """Standard normal noise of the shape, type and device of `x`."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
