"""UniMMAD: one compression of all modalities, experts that decompress it to each (Zhao et al.).

All modalities together are compressed to general features f^gen. A cross mixture of experts C-MoE per level
decompresses them to each modality's own features p, guided by a pooled prior u of that modality; normal images
decompress well. `UniMMAD` reads the images with a trained and a frozen backbone of its own (section 3.2);
`UniMMADLite` is an adaptation that a CPU can train: frozen features of one grid take the place of both.
Written from the paper and a sheet of facts, not from the authors' code. Where paper and public code differ, the
paper is the default and the code a switch.

Symbols: M  modalities; L  levels; u, p  prior and decompressed features; A = 1 - cos(u, p); e/E  progress.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.config.methods import UniMMADConfig, UniMMADLiteConfig
from iumad.errors import ConfigError
from iumad.features.cache import Batch
from iumad.models.base import Detector, InputSpec
from iumad.models.baselines.unimmad_layers import (
    SLOTS,
    Compression,
    CrossMixture,
    GeneralEncoder,
    Pyramid,
    PyramidCompression,
)

Logits = list[Float[Tensor, "branches items j"]]  # of one batch, one entry per level


def coefficient_of_variation(share: Float[Tensor, "*any j"]) -> Float[Tensor, "*any"]:
    """CV of Eq. 1: population standard deviation over the last dimension by its mean; 0 for uniform use.

    Taken from a norm, its gradient at 0 is 0 and not NaN.
    """
    mean = share.mean(dim=-1, keepdim=True)
    deviation = torch.linalg.vector_norm(share - mean, dim=-1) / share.shape[-1] ** 0.5
    return deviation / mean[..., 0]


def balance_of_the_paper(logits: Logits, n_modalities: int, progress: float) -> Float[Tensor, ""]:
    """Eq. 1: (1 - e/E)^2 CV of the gate's output, averaged over modalities and levels.

    Here the output of a gate is the mean of its softmax over a modality's samples, and branches are averaged too;
    the paper says neither.

    Parameters
    ----------
    logits : of all gates; items are ordered by modality
    n_modalities : M
    progress : e/E in [0, 1)
    """
    values = []
    for level in logits:
        by_modality = level.float().softmax(dim=-1).unflatten(1, (n_modalities, -1))
        values.append(coefficient_of_variation(by_modality.mean(dim=2)).mean())
    return (1 - progress) ** 2 * torch.stack(values).mean()


def balance_of_the_code(logits: Logits, progress: float) -> Float[Tensor, ""]:
    """The public code's: the square on CV rather than on the annealing, and a z-loss on the logits.

    max(1 - e/E, 0.001) times the mean over levels of the sum over branches of
    CV^2 (softmax averaged over all items) + 1e-4 mean(logsumexp^2).
    """
    values = []
    for level in logits:
        share = level.float().softmax(dim=-1).mean(dim=1)
        size = level.float().logsumexp(dim=-1).square().mean(dim=1)
        values.append((coefficient_of_variation(share).square() + 1e-4 * size).sum())
    return max(1 - progress, 0.001) * torch.stack(values).mean()


Distances = Sequence[Float[Tensor, "modalities b _ _"]]  # A of Eq. 3, one entry per level


def score_of_the_paper(
    distances: Distances, size: int, sigma: float
) -> Float[Tensor, "b {size} {size}"]:
    """Eq. 4: mean over levels of the blurred, enlarged root of the sum over modalities of A^2.

    Parameters
    ----------
    distances : A in [0, 2]
    size : side of the maps, pixels
    sigma : of the Gaussian, pixels; the edge is repeated outside the map
    """
    maps = [enlarged(level.square().sum(dim=0).sqrt(), size) for level in distances]
    radius = round(4 * sigma)
    blurred = [
        blur(functional.pad(each[:, None], [radius] * 4, mode="replicate")[:, 0], sigma, radius)
        for each in maps
    ]
    return torch.stack(blurred).mean(dim=0)


def score_of_the_code(
    distances: Distances, size: int, sigma: float
) -> Float[Tensor, "b {size} {size}"]:
    """The public code's: one root over modalities and levels, then a 15 x 15 Gaussian with zeros outside."""
    squares = [enlarged(each, size).square() for level in distances for each in level]
    maps = torch.stack(squares).sum(dim=0).sqrt()
    return blur(functional.pad(maps, [7] * 4), sigma, radius=7)


def enlarged(maps: Float[Tensor, "b h w"], size: int) -> Float[Tensor, "b {size} {size}"]:
    """Maps at `size` x `size`, bilinear with aligned corners."""
    return functional.interpolate(maps[:, None], (size, size), mode="bilinear", align_corners=True)[
        :, 0
    ]


def blur(padded: Float[Tensor, "b h w"], sigma: float, radius: int) -> Float[Tensor, "b h2 w2"]:
    """Gaussian of 2 radius + 1 taps along both axes of maps that are padded by the radius."""
    place = torch.arange(-radius, radius + 1, dtype=padded.dtype, device=padded.device)
    taps = torch.exp(-0.5 * (place / sigma) ** 2)
    taps = taps / taps.sum()
    rows = functional.conv2d(padded[:, None], taps.view(1, 1, -1, 1))
    return functional.conv2d(rows, taps.view(1, 1, 1, -1))[:, 0]


Levels = list[Float[Tensor, "b _ _ _"]]  # general features, finest first
Priors = list[Float[Tensor, "modalities b _ _ _"]]


class MixtureDetector(Detector):
    """A detector by decompression; a size of it says what the general features and the priors are.

    Parameters
    ----------
    config, spec, n_categories : see `Detector`
    level_channels : C of every level
    on_features : whether priors are standardised features, which have a sign, and not levels of a backbone
    """

    def __init__(
        self,
        config: UniMMADConfig | UniMMADLiteConfig,
        spec: InputSpec,
        n_categories: int,
        level_channels: tuple[int, ...],
        on_features: bool,
    ) -> None:
        super().__init__(config, spec, n_categories, standardise=on_features)
        self.progress = 0.0
        numbers = (config.width, config.leaders, config.bases, config.active, config.kernels)
        self.mixtures = nn.ModuleList(
            CrossMixture(c, *numbers, signed=on_features) for c in level_channels
        )

    def general_and_priors(self, batch: Batch) -> tuple[Levels, Priors]:
        """General features f^gen, and the priors u of every modality; per level."""
        raise NotImplementedError

    def decompress(
        self, batch: Batch
    ) -> tuple[list[Float[Tensor, "modalities b _ _"]], list[Float[Tensor, "branches items j"]]]:
        """A = 1 - cos(u, p) of Eq. 3 at every place, and the gates' logits; per level."""
        distances, logits = [], []
        for mixture, general, prior in zip(
            self.mixtures, *self.general_and_priors(batch), strict=True
        ):
            output, gate = mixture(general, prior.flatten(0, 1))
            p = output.unflatten(0, prior.shape[:2])
            distances.append(1 - functional.cosine_similarity(prior.float(), p.float(), dim=2))
            logits.append(gate)
        return distances, logits

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set e/E, by which the balance loss is annealed."""
        self.progress = epoch / epochs

    def losses(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,
        base: bool = False,
    ) -> dict[str, Float[Tensor, ""]]:
        """`decompression`: Eq. 3, mean over levels, modalities and places; `balance`: Eq. 1."""
        config = self.config
        distances, logits = self.decompress(batch)
        focal = [(a.detach().clamp_min(0) ** config.gamma * a).mean() for a in distances]
        balance = (
            balance_of_the_paper(logits, len(self.modalities), self.progress)
            if config.balance == "paper"
            else balance_of_the_code(logits, self.progress)
        )
        return {"decompression": torch.stack(focal).mean(), "balance": balance}

    @torch.no_grad()
    def residual_maps(self, batch: Batch) -> dict[str, Float[Tensor, "b g g"]]:
        """Mean over levels of A on the grid, per modality."""
        distances, _ = self.decompress(batch)
        return {
            modality: torch.stack([enlarged(level[i], self.grid) for level in distances]).mean(0)
            for i, modality in enumerate(self.modalities)
        }

    @torch.no_grad()
    def anomaly_maps(self, batch: Batch) -> Float[Tensor, "b size size"]:
        """Eq. 4 or, by `score`, the public code's."""
        score = score_of_the_paper if self.config.score == "paper" else score_of_the_code
        return score(self.decompress(batch)[0], self.image_size, self.config.sigma)

    def begin_increment(self) -> None:
        """Freeze all but leaders, routers with their gates, and aggregation (section 4.5)."""
        self.requires_grad_(False)
        for mixture in self.mixtures:
            assert isinstance(mixture, CrossMixture)
            for part in mixture.adaptable():
                part.requires_grad_(True)

    def train(self, mode: bool = True) -> "MixtureDetector":
        """Batch norms whose weights are frozen keep their statistics, else frozen parts would drift."""
        super().train(mode)
        for module in self.modules():
            is_norm = isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)
            if is_norm and not module.weight.requires_grad:
                module.eval()
        return self

    def compiled_parts(self) -> tuple[nn.Module, ...]:
        """Every level's experts, and the other networks."""
        others = (child for child in self.children() if child is not self.mixtures)
        return (*others, *self.mixtures)


class UniMMAD(MixtureDetector):
    """The full method: it reads the images, with its own frozen and its own trained backbone.

    Parameters
    ----------
    config, spec : see `Detector`; of the study's features only the grid is used, for residual maps
    n_categories : not used, the method knows no categories

    Raises
    ------
    ConfigError
        The image size is not a multiple of 32 or less than 64, or there are more than four modalities.
    """

    reads_features = False

    def __init__(
        self,
        config: UniMMADConfig,
        spec: InputSpec,
        n_categories: int,
    ) -> None:
        if spec.image_size % 32 or spec.image_size < 64:
            raise ConfigError(
                f"unimmad needs an image_size that 32 divides, at least 64, got {spec.image_size}"
            )
        if len(spec.modalities) > SLOTS:
            raise ConfigError(
                f"unimmad has room for {SLOTS} modalities, the run has {len(spec.modalities)}"
            )
        prior = Pyramid(config.backbone, config.weights)
        super().__init__(config, spec, n_categories, prior.channels, on_features=False)
        self.encoder = GeneralEncoder(prior, spec.image_size)
        self.compression = PyramidCompression(prior.channels, config.kernels)
        self.prior = prior.requires_grad_(False)

    def general_and_priors(self, batch: Batch) -> tuple[Levels, Priors]:
        """Encoder and compression of the images together; the prior generator of each alone."""
        images = [batch.images[modality] for modality in self.modalities]
        stacked = torch.cat([self.prior.normalised(x) for x in images])
        with torch.no_grad():
            levels = [x.unflatten(0, (len(images), -1)) for x in self.prior(stacked)]
        general = self.compression(self.encoder(images))
        return general, [functional.normalize(x, dim=2) for x in levels]


class UniMMADLite(MixtureDetector):
    """Frozen features on one grid take the place of both image networks; there is one level, and no image is read.

    Parameters
    ----------
    config, spec : see `Detector`
    n_categories : not used, the method knows no categories

    Raises
    ------
    ConfigError
        4 does not divide the grid, which two bottlenecks halve, or it is less than 8.
    """

    def __init__(
        self,
        config: UniMMADLiteConfig,
        spec: InputSpec,
        n_categories: int,
    ) -> None:
        if spec.grid % 4 or spec.grid < 8:
            raise ConfigError(
                f"unimmad-lite needs a features.grid that 4 divides, at least 8, got {spec.grid}"
            )
        super().__init__(config, spec, n_categories, (spec.channels,), on_features=True)
        width = config.width
        self.embedding = nn.Conv2d(len(spec.modalities) * spec.channels, width, 1)
        outputs = (2 * width, width)
        self.compression = Compression(width, 1, config.kernels, 4 * width, outputs, blocks=(1, 1))
        self.project = nn.Conv2d(width, spec.channels, 1, bias=False)

    def general_and_priors(self, batch: Batch) -> tuple[Levels, Priors]:
        """One level: standardised features are the priors, and compressed together the general features."""
        maps = [
            self.standardised(batch, modality).mT.unflatten(2, (self.grid, self.grid))
            for modality in self.modalities
        ]
        *_, restored = self.compression([self.embedding(torch.cat(maps, dim=1))])
        general = functional.normalize(self.project(restored), dim=1)
        return [general], [functional.normalize(torch.stack(maps), dim=2)]
