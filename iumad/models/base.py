"""What all methods have in common: inputs of a few samples in, anomaly maps out.

Training, increments, evaluation and costs work with any `Detector`; a method is one module that fills in what it
has, and a section of the configuration (`iumad.models.build` joins the two).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.config.schema import RunConfig
from iumad.errors import ConfigError
from iumad.features.cache import Batch, FeatureStore

CHUNK = 16  # samples that are read at a time where nothing else is asked for


@dataclass(frozen=True)
class InputSpec:
    """Sizes of what a detector reads.

    Attributes
    ----------
    modalities : tuple of str
        Names of the streams in the data set's order, such as ("rgb", "depth"); the first is the main one.
    channels, grid : int
        C and g of the features of each modality.
    image_size : int
        Side of the images and of the anomaly maps, pixels.

    Raises
    ------
    ConfigError
        There is no modality, or one twice.
    """

    modalities: tuple[str, ...]
    channels: int
    grid: int
    image_size: int

    @classmethod
    def of(cls, run: RunConfig, channels: int) -> "InputSpec":
        """The sizes of a run's inputs; the channels are those of its backbone."""
        return cls(run.modalities, channels, run.features.grid, run.data.image_size)

    def __post_init__(self) -> None:
        """Check the modalities."""
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise ConfigError(
                f"a detector needs one or more different modalities, got {'+'.join(self.modalities)!r}"
            )


class Detector(nn.Module):
    """A method: it learns from normal images step after step, and scores images.

    What is learnt without gradients is computed by `fit`; a method with `trained` is then also trained on its
    `losses` (`iumad.training.loop.fit_step`).

    Parameters
    ----------
    config : section of the configuration
        The method's own.
    spec : InputSpec
    n_categories : int
        Categories met so far; a model of the next step is made with more.
    targets : tuple of str, optional
        Keys of the residual maps, modalities as a rule; default: all modalities.
    standardise : bool
        Whether features are standardised per channel with what `fit` measures.

    Attributes
    ----------
    trained : bool
        Of the class: whether it is trained by gradient descent.
    reads_features : bool
        Of the class: whether the method reads the study's features; else it encodes the images itself.
    needs_category : bool
        Of the class: whether the category of a test image must be told.
    takes_fewer : bool
        Of the class: whether a batch may lack modalities of the model, whose maps are then left out.
    has_map : bool
        Of the class: whether maps tell places apart; else they are the image's score at every pixel.
    signed : bool
        Of the class: whether maps may be negative; the thresholds of a model file need positive ones.
    """

    trained: ClassVar[bool] = True
    reads_features: ClassVar[bool] = True
    needs_category: ClassVar[bool] = False
    takes_fewer: ClassVar[bool] = False
    has_map: ClassVar[bool] = True
    signed: ClassVar[bool] = False

    def __init__(
        self,
        config: Any,
        spec: InputSpec,
        n_categories: int,
        targets: tuple[str, ...] | None = None,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        self.config, self.spec, self.n_categories = config, spec, n_categories
        self.modalities, self.channels = spec.modalities, spec.channels
        self.grid, self.image_size, self.standardise = spec.grid, spec.image_size, standardise
        self.targets = spec.modalities if targets is None else targets
        if standardise:
            self.fitted: Tensor
            self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
            for modality in spec.modalities:
                self.register_buffer(f"mean_{modality}", torch.zeros(spec.channels))
                self.register_buffer(f"std_{modality}", torch.ones(spec.channels))
        for target in self.targets:
            self.register_buffer(f"residual_{target}", torch.ones(()))

    @property
    def device(self) -> torch.device:
        """Where the detector's tensors are."""
        return getattr(self, f"residual_{self.targets[0]}").device

    @torch.no_grad()
    def fit(
        self,
        store: FeatureStore,
        sample_ids: Sequence[str],
        generator: torch.Generator,  # noqa: ARG002
    ) -> None:
        """What a step's data give without gradients; called once in every step, before training.

        A trained detector measures mean and standard deviation of every feature channel, the first time only, so
        that later steps share the base step's units.

        Parameters
        ----------
        store, sample_ids : the step's training data
        generator : torch.Generator
            On the CPU; source of random choices.
        """
        if not self.standardise or self.fitted:
            return
        sums = {m: torch.zeros(2, self.channels, dtype=torch.float64) for m in self.modalities}
        for batch in in_chunks(store, sample_ids):
            for modality, total in sums.items():
                features = batch.features[modality].double()
                total += torch.stack(
                    [features.mean(dim=(2, 3)), features.square().mean(dim=(2, 3))]
                ).sum(dim=1)
        for modality, total in sums.items():
            mean, square = total / len(sample_ids)
            getattr(self, f"mean_{modality}").copy_(mean)
            getattr(self, f"std_{modality}").copy_((square - mean.square()).clamp_min(1e-12).sqrt())
        self.fitted.fill_(True)

    @torch.no_grad()
    def calibrate(self, store: FeatureStore, sample_ids: Sequence[str]) -> None:
        """Mean residual per target over the step's training data: the unit in which targets' maps are added.

        Called after a step was trained.
        """
        if len(self.targets) == 1:
            return
        sums = dict.fromkeys(self.targets, 0.0)
        for batch in in_chunks(store, sample_ids):
            for target, residual in self.residual_maps(batch.to(self.device)).items():
                sums[target] += float(residual.mean()) * len(batch) / len(sample_ids)
        for target, value in sums.items():
            getattr(self, f"residual_{target}").fill_(value)

    def size_bytes(self) -> int:
        """Bytes of all that the model keeps: parameters, statistics, stored patches."""
        kept = [
            *self.parameters(),
            *self.buffers(),
            *_tensors(self.state_dict().get("_extra_state")),
        ]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def pretend_fitted(self, images: int) -> None:
        """Put random values of the right size where `fit` would put data, so that costs can be measured.

        Parameters
        ----------
        images : int
            Training images of each category.
        """

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

    def category_logits(self, batch: Batch) -> Float[Tensor, "b y"] | None:  # noqa: ARG002
        """Logits of the category of every image, one for each category met so far; None: it classifies nothing."""
        return None

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
        """Features as tokens; if it standardises, per channel (f - mean) / std with the base step's statistics."""
        tokens = batch.features[modality].flatten(2).transpose(1, 2)
        if not self.standardise:
            return tokens
        return (tokens - getattr(self, f"mean_{modality}")) / getattr(self, f"std_{modality}")

    def token_map(self, batch: Batch) -> Float[Tensor, "b g g"]:
        """One map of all targets: the root mean square of their residual maps.

        Each target's map is first divided by its mean over the step's training data (`calibrate`).
        """
        return self.combine(self.residual_maps(batch))

    def token_map_of(self, batch: Batch, category: int) -> Float[Tensor, "b g g"]:
        """The token map of images that are all said to be of one category."""
        given = torch.full_like(batch.category, category)
        return self.token_map(replace(batch, category=given))

    def combine(self, residuals: dict[str, Float[Tensor, "b g g"]]) -> Float[Tensor, "b g g"]:
        """The token map of residual maps."""
        scaled = [x / getattr(self, f"residual_{target}") for target, x in residuals.items()]
        return torch.stack(scaled).square().mean(dim=0).sqrt()

    def anomaly_maps(self, batch: Batch) -> Float[Tensor, "b size size"]:
        """The token map brought to image size, bilinear."""
        return self.enlarge(self.token_map(batch))

    def enlarge(self, token_map: Float[Tensor, "b g g"]) -> Float[Tensor, "b size size"]:
        """A token map at image size."""
        size = (self.image_size, self.image_size)
        return functional.interpolate(
            token_map[:, None], size, mode="bilinear", align_corners=True
        )[:, 0]

    def maps_and_logits(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "b size size"], Float[Tensor, "b y"] | None]:
        """`anomaly_maps` and `category_logits`; a method that has both from one pass says so here."""
        return self.anomaly_maps(batch), self.category_logits(batch)


def in_chunks(store: FeatureStore, sample_ids: Sequence[str], size: int = CHUNK) -> Iterator[Batch]:
    """Batches of a few samples, in order."""
    for start in range(0, len(sample_ids), size):
        yield store.batch(sample_ids[start : start + size])


def _tensors(content: object) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _tensors(value)


def noise_like(
    x: Float[Tensor, "*shape"], generator: torch.Generator | None
) -> Float[Tensor, "*shape"]:
    """Standard normal noise of the shape, type and device of `x`."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
