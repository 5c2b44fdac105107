"""IB-IUMAD and the reconstruction methods that are special cases of it (paper section 3, Fig. 3, Eq. 10).

| method   | condition | fusion          | bottleneck | besides                    |
|----------|-----------|-----------------|------------|----------------------------|
| ib-iumad | mamba     | cross-attention | yes        |                            |
| iuf      | vit       | addition        | no         |                            |
| uniad    | none      | addition        | no         | neighbour mask and dropout |
| plain    | none      | addition        | no         |                            |

Symbols: C  channels of the aligned features; d  width; g  grid; n = g * g  tokens; F_fu, F_fu^g  fused features
before and after the bottleneck.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.config.methods import ReconstructionConfig
from iumad.errors import ConfigError
from iumad.features.cache import Batch
from iumad.models.base import Detector, InputSpec
from iumad.models.condition import ConditionNetwork, bounded_gate
from iumad.models.fusion import (
    InformationBottleneck,
    SemanticCompression,
    fusion_operator,
    kl_categorical,
)
from iumad.models.reconstruction import (
    EncoderLayer,
    FeedForward,
    ReconstructionNetwork,
    half_window,
    jitter,
)


@dataclass(frozen=True)
class Output:
    """One forward pass.

    Attributes
    ----------
    reconstruction : target modality -> b x n x C, in units of `ReconstructionDetector.standardised`
    logits : modality -> b x categories, of the condition networks (Eq. 3); empty without condition
    fused_logits, filtered_logits : b x categories, of the bottleneck's heads (Eq. 8); None without bottleneck
    head_logits : the same two, through which no gradient reaches the features
    rows : means over tokens of all decoder outputs but the last, of all modalities; None without compression
    clean : target modality -> b x n x C, what is to be reconstructed
    """

    reconstruction: dict[str, Float[Tensor, "b n c"]]
    logits: dict[str, Float[Tensor, "b y"]]
    fused_logits: Float[Tensor, "b y"] | None
    filtered_logits: Float[Tensor, "b y"] | None
    head_logits: tuple[Float[Tensor, "b y"], Float[Tensor, "b y"]] | None
    rows: Float[Tensor, "levels b d"] | None
    clean: dict[str, Float[Tensor, "b n c"]]


class ReconstructionDetector(Detector):
    """Reconstruct normal features of one or two modalities; what is not reconstructed is anomalous.

    Parameters
    ----------
    config : ReconstructionConfig
    spec : InputSpec
    n_categories : int
        Categories met so far: the logits.

    Raises
    ------
    ConfigError
        The image size is not a multiple of the grid, which the patch stem needs.
    """

    def __init__(
        self,
        config: ReconstructionConfig,
        spec: InputSpec,
        n_categories: int,
    ) -> None:
        modalities = spec.modalities
        targets = modalities if config.targets == "all" else modalities[:1]
        super().__init__(config, spec, n_categories, targets, config.standardise)
        if config.condition != "none" and spec.image_size % spec.grid:
            raise ConfigError(
                f"image_size {spec.image_size} must be a multiple of the grid {spec.grid} for condition networks"
            )
        dim, n_streams = config.dim, len(modalities)
        project = [nn.Linear(spec.channels, dim) for _ in range(n_streams)]
        self.project_in = nn.ModuleList(project)
        self.networks = nn.ModuleDict({modality: self._network() for modality in modalities})
        conditioned = modalities if config.condition != "none" else ()
        self.conditions = nn.ModuleDict(
            {m: self._condition(spec.image_size // spec.grid, n_categories) for m in conditioned}
        )
        self.fusion = fusion_operator(config.fusion, dim, config.heads, n_streams)
        width = round(config.bottleneck_width * dim)
        dropout, residual = config.bottleneck_dropout, config.bottleneck_residual
        self.bottleneck = (
            InformationBottleneck(dim, width, n_categories, dropout, residual)
            if config.bottleneck
            else None
        )
        levels = n_streams * (config.layers - 1)
        self.compression = SemanticCompression(dim, levels) if config.lambda_compression else None
        self.project_out = nn.ModuleDict(
            {modality: nn.Linear(dim, spec.channels) for modality in self.targets}
        )

    def protected_layers(self) -> dict[str, nn.Module]:
        """The second FFN linear of every encoder and decoder layer, by parameter name."""
        return {
            f"{name}.{len(module) - 1}": module[-1]
            for name, module in self.networks.named_modules(prefix="networks")
            if isinstance(module, FeedForward)
        }

    def compiled_parts(self) -> tuple[nn.Module, ...]:
        """Networks, conditions and fusion; the jitter is not, a compiled graph would not repeat its draws."""
        return (*self.networks.values(), *self.conditions.values(), self.fusion)

    def _network(self) -> ReconstructionNetwork:
        config, mask = self.config, self.config.neighbour_mask
        return ReconstructionNetwork(
            config.dim,
            config.heads,
            config.layers,
            self.grid,
            config.dropout,
            half_window(self.grid) if mask == "half" else mask,
        )

    def _condition(self, patch: int, n_categories: int) -> ConditionNetwork:
        config = self.config
        return ConditionNetwork(
            config.condition,
            config.dim,
            config.layers,
            patch,
            n_categories,
            config.heads,
            config.d_state,
            config.expand,
        )

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> Output:
        """Reconstruct; in training mode the input features are jittered with noise from `generator`."""
        middle, last, rows, logits, clean = [], [], [], {}, {}
        for i, modality in enumerate(self.modalities):
            tokens = clean[modality] = self.standardised(batch, modality)
            if self.training:
                scale, probability = self.config.jitter_scale, self.config.jitter_probability
                tokens = jitter(tokens, scale, probability, generator)
            maps = None
            if modality in self.conditions:
                maps, logits[modality] = self.conditions[modality](batch.images[modality])
                maps = [self._gate(each) for each in maps]
            outputs = self.networks[modality](self.project_in[i](tokens), maps)
            middle.append(outputs[len(outputs) // 2 - 1])
            last.append(outputs[-1])
            if self.compression is not None:
                rows += [output.mean(dim=1) for output in outputs[:-1]]
        fused = self.fusion(middle, last)
        fused_logits = filtered_logits = head_logits = None
        if self.bottleneck is not None:
            filtered, fused_logits, filtered_logits = self.bottleneck(fused)
            head_logits = self.bottleneck.logits(fused.detach(), filtered.detach())
            fused = filtered
        reconstruction = {
            modality: project(fused) for modality, project in self.project_out.items()
        }
        return Output(
            reconstruction,
            logits,
            fused_logits,
            filtered_logits,
            head_logits,
            torch.stack(rows) if rows else None,
            {target: clean[target] for target in self.targets},
        )

    def _gate(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """What multiplies an encoder's queries: the condition's features, detached and bounded by default."""
        gate = x.detach() if self.config.detach_condition else x
        return gate if self.config.gate == "raw" else bounded_gate(gate)

    def losses(
        self, batch: Batch, generator: torch.Generator | None = None, base: bool = False
    ) -> dict[str, Float[Tensor, ""]]:
        """The weighted terms of Eq. 10; their sum is the loss.

        `fusion` is Eq. 9: squared error summed over channels, mean over tokens, batch and targets. (As the mean
        over channels it weighs C times less, and the label terms decide alone what the shared layers learn.)
        `ib` is the KL of Eq. 8, mean over the batch, first distribution detached. `ib_heads` is the
        cross-entropy of both heads: not in Eq. 10, but without it the first head, detached, stays as it was drawn;
        with "heads" it trains them alone. In the base step (`base`) `compression` is IUF's.
        """
        config, output = self.config, self(batch, generator)
        weights = {"rgb": config.lambda_rgb, "depth": config.lambda_depth}
        terms = {
            f"category_{modality}": weights.get(modality, config.lambda_depth)
            * functional.cross_entropy(_wide(logits), batch.category)
            for modality, logits in output.logits.items()
        }
        errors = [
            (reconstruction - output.clean[modality]).square().mean(dim=(0, 1))
            for modality, reconstruction in output.reconstruction.items()
        ]
        summed = config.channel_reduction == "sum"
        errors = [error.sum() if summed else error.mean() for error in errors]
        terms["fusion"] = config.lambda_fusion * torch.stack(errors).mean()
        if output.fused_logits is not None and output.filtered_logits is not None:
            p, q = _wide(output.fused_logits.detach()), _wide(output.filtered_logits)
            terms["ib"] = config.lambda_ib * kl_categorical(p, q).mean()
            if config.heads_cross_entropy != "none":
                features_too = config.heads_cross_entropy == "features"
                both = (output.fused_logits, output.filtered_logits)
                heads = both if features_too or output.head_logits is None else output.head_logits
                terms["ib_heads"] = torch.stack(
                    [functional.cross_entropy(_wide(x), batch.category) for x in heads]
                ).sum()
        if base and self.compression is not None and output.rows is not None:
            compression = self.compression(output.rows)
            terms["compression"] = config.lambda_compression * compression
        return terms

    @torch.no_grad()
    def category_logits(self, batch: Batch) -> Float[Tensor, "b y"] | None:
        """Log-probabilities: mean over the condition networks' classifiers, else those after the bottleneck."""
        return self._logits(self(batch))

    @torch.no_grad()
    def residual_maps(self, batch: Batch) -> dict[str, Float[Tensor, "b g g"]]:
        """Channel norm |reconstruction - features| at every token, per target modality."""
        return self._residuals(self(batch))

    @torch.no_grad()
    def maps_and_logits(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "b size size"], Float[Tensor, "b y"] | None]:
        """Both from one pass."""
        output = self(batch)
        maps = self.enlarge(self.combine(self._residuals(output)))
        return maps, self._logits(output)

    def _logits(self, output: Output) -> Float[Tensor, "b y"] | None:
        if output.logits:
            return torch.stack([x.log_softmax(dim=1) for x in output.logits.values()]).mean(dim=0)
        return None if output.filtered_logits is None else output.filtered_logits.log_softmax(dim=1)

    def _residuals(self, output: Output) -> dict[str, Float[Tensor, "b g g"]]:
        maps = {}
        for modality, reconstruction in output.reconstruction.items():
            error = (reconstruction - output.clean[modality]).norm(dim=-1)
            maps[modality] = error.unflatten(1, (self.grid, self.grid))
        return maps


@torch.no_grad()
def gate_figures(detector: ReconstructionDetector, batch: Batch) -> dict[str, float]:
    """How strong the gates of a detector are and what its encoders read, as it is now.

    Returns
    -------
    dict
        `attention M` of modality M: mean entropy of the encoder's attention, in units of ln n (0: every query
        reads one token, and little is reconstructed; 1: it reads all alike). `gate size M`: mean absolute value of
        what multiplies the queries, where there is a gate.
    """
    seen: dict[str, list[float]] = {}

    def look(modality: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, EncoderLayer)
        seen.setdefault(f"attention {modality}", []).append(layer.attention_entropy(*inputs))
        if (condition := inputs[2]) is not None:
            seen.setdefault(f"gate size {modality}", []).append(float(condition.abs().mean()))

    handles = [
        layer.register_forward_pre_hook(partial(look, modality))
        for modality, network in detector.networks.items()
        for layer in network.modules()
        if isinstance(layer, EncoderLayer)
    ]
    training = detector.training
    try:
        detector.eval()(batch)
    finally:
        detector.train(training)
        for handle in handles:
            handle.remove()
    return {name: sum(values) / len(values) for name, values in seen.items()}


def _wide(logits: Float[Tensor, "b y"]) -> Float[Tensor, "b y"]:
    """Logits of autocast in at least float32, in which softmax is exact enough."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
