"""UniMMAD: one compression of all modalities, experts that decompress it to each (Zhao et al., 3.2 and 3.3).

All modalities together are compressed to general features f^gen. A cross mixture of experts C-MoE per level
decompresses them to each modality's own features p, guided by a pooled prior u of that modality; normal images
decompress well. `UniMMAD` reads the images with a trained and a frozen backbone of its own (section 3.2);
`UniMMADLite` is an adaptation that a CPU can train: frozen features of one grid take the place of both.
Written from the paper and a sheet of facts, not from the authors' code. Where paper and public code differ, the
paper is the default and the code a switch.

Experts are leaders over shared base kernels, run as one grouped dynamic convolution. What is compressed cannot
carry every detail of the input, so anomalies are lost on the way: the inner bottleneck sees three scales in
parallel, the outer one what they have in common, and each halves the grid; a decoder restores the levels.

Symbols: M  modalities; L  levels; u, p  prior and decompressed features; A = 1 - cos(u, p); e/E  progress;
of networks: e  width; k  kernel size; N  base experts W; J  MoE-leaders, each a mixture S of the bases; K  leaders
active per item; g  condition of an item, from its general features and the prior of one modality.
"""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from iumad.config.methods import UniMMADConfig, UniMMADLiteConfig
from iumad.errors import ConfigError
from iumad.features.backbone import imagenet_classifier
from iumad.features.cache import Batch
from iumad.models.base import Detector, InputSpec

LEVELS = (1, 2, 3)  # of timm: strides 4, 8 and 16
SLOTS = 4  # modalities that the input has room for, three channels each


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with the largest of 32, 16, 8, 4, 2, 1 groups that divides the channels."""
    return nn.GroupNorm(
        next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0), channels
    )


def conv_norm_relu(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, group norm, ReLU; an even kernel is not padded."""
    padding = kernel // 2 if kernel % 2 else 0
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    return nn.Sequential(conv, group_norm(outputs), nn.ReLU())


def grouped_dynamic_convolution(
    value: Float[Tensor, "b e h w"], kernels: Float[Tensor, "b experts o e k k"]
) -> Float[Tensor, "b experts o h w"]:
    """Every item's own kernels over its value, all in one call ("grouped dynamic filtering", section 3.3).

    The value is repeated per expert and folded with the batch into channels; each (item, expert) is one group.
    """
    b, experts, outputs, _, k, _ = kernels.shape
    folded = value[:, None].expand(-1, experts, -1, -1, -1).reshape(1, -1, *value.shape[-2:])
    filtered = functional.conv2d(folded, kernels.flatten(0, 2), padding=k // 2, groups=b * experts)
    return filtered.view(b, experts, outputs, *value.shape[-2:])


class ExpertBranch(nn.Module):
    """All experts of one kernel size: one fixed, J routed leaders that share N bases (Fig. 4, Eq. 2).

    Parameters
    ----------
    width : e, channels of value and output
    kernel : k, odd
    leaders, bases, active : J, N, K
    """

    def __init__(self, width: int, kernel: int, leaders: int, bases: int, active: int) -> None:
        super().__init__()
        self.kernel, self.active = kernel, active
        self.value = conv_norm_relu(width, width)
        self.gate = nn.Linear(width, leaders)
        self.bases = nn.Parameter(0.05 * torch.randn(bases, width, width, kernel, kernel))
        self.leaders = nn.Parameter(0.02 * torch.randn(leaders, bases, width))
        identity = torch.zeros(width, width, kernel, kernel)
        identity[range(width), range(width), kernel // 2, kernel // 2] = 1.0
        self.fixed = nn.Parameter(identity)
        self.join = conv_norm_relu(2 * width, width)

    def route(
        self, condition: Float[Tensor, "items e"]
    ) -> tuple[
        Float[Tensor, "items j"], Int[Tensor, "items active"], Float[Tensor, "items active"]
    ]:
        """Gate logits, the K leaders that each item chooses, and their scores, which sum to 1."""
        logits = self.gate(condition)
        top, chosen = logits.topk(self.active, dim=-1)
        return logits, chosen, top.softmax(dim=-1)

    def routed_kernels(
        self, chosen: Int[Tensor, "items active"], scores: Float[Tensor, "items active"]
    ) -> Float[Tensor, "items e e k k"]:
        """Per item, the kernels of its K leaders summed with their scores.

        A leader's kernel is S, softmaxed over the bases for every output channel, times W (Eq. 2). A convolution
        is linear in its kernel, and a kernel in S: adding the mixtures first gives the output of K convolutions
        and a weighted sum of them.
        """
        mixture = self.leaders[chosen].softmax(dim=2)
        mixture = (scores[:, :, None, None] * mixture).sum(dim=1)
        return torch.einsum("bno,noikl->boikl", mixture, self.bases)

    def forward(
        self, key: Float[Tensor, "b e h w"], condition: Float[Tensor, "items e"]
    ) -> tuple[Float[Tensor, "items e h w"], Float[Tensor, "items j"]]:
        """Filter the value of every item by the fixed and by its routed experts.

        Parameters
        ----------
        key : of the general features, one per sample
        condition : g, one per item: all samples with the first modality, then with the next

        Returns
        -------
        output, gate logits
        """
        logits, chosen, scores = self.route(condition)
        routed = self.routed_kernels(chosen, scores)
        kernels = torch.stack([self.fixed.expand_as(routed), routed], dim=1)
        value = self.value(key).repeat(len(condition) // len(key), 1, 1, 1)
        filtered = grouped_dynamic_convolution(value, kernels)
        return self.join(filtered.flatten(1, 2)), logits


class ConditionRouter(nn.Module):
    """The condition g of every item: pooled, so that no place of the prior reaches the output (section 3.3).

    Parameters
    ----------
    channels, width : C of general features and priors, e
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.key = conv_norm_relu(channels, width)
        self.query = conv_norm_relu(channels, width)
        self.mix = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
            group_norm(width),
            nn.ReLU(),
            conv_norm_relu(width, width),
        )

    def forward(
        self, general: Float[Tensor, "b c h w"], priors: Float[Tensor, "items c h w"]
    ) -> tuple[Float[Tensor, "b e h w"], Float[Tensor, "items e"]]:
        """Key of the general features, and g = mean over places of a mix of key and query."""
        key = self.key(general)
        keys = key.repeat(len(priors) // len(key), 1, 1, 1)
        mixed = self.mix(torch.cat([keys, self.query(priors)], dim=1))
        return key, mixed.mean(dim=(2, 3))


class CrossMixture(nn.Module):
    """C-MoE of one level: general features and a prior in, that modality's features out (Fig. 4).

    Parameters
    ----------
    channels : C of general features, priors and output
    width, leaders, bases, active : e, J, N, K
    kernels : kernel sizes, one branch each
    signed : whether the output may be negative, as linear features are; the paper's priors pass a ReLU
    """

    def __init__(
        self,
        channels: int,
        width: int,
        leaders: int,
        bases: int,
        active: int,
        kernels: tuple[int, ...],
        signed: bool,
    ) -> None:
        super().__init__()
        self.router = ConditionRouter(channels, width)
        made = [ExpertBranch(width, kernel, leaders, bases, active) for kernel in kernels]
        self.branches = nn.ModuleList(made)
        inputs = width * len(kernels)
        self.aggregation = (
            nn.Sequential(nn.Conv2d(inputs, channels, 1))
            if signed
            else conv_norm_relu(inputs, channels)
        )

    def forward(
        self, general: Float[Tensor, "b c h w"], priors: Float[Tensor, "items c h w"]
    ) -> tuple[Float[Tensor, "items c h w"], Float[Tensor, "branches items j"]]:
        """Decompressed features p of every item, and the gates' logits."""
        key, condition = self.router(general, priors)
        outputs, logits = zip(*(branch(key, condition) for branch in self.branches), strict=True)
        return self.aggregation(torch.cat(outputs, dim=1)), torch.stack(logits)

    def adaptable(self) -> list[nn.Module | nn.Parameter]:
        """What goes on learning in an increment: leaders, router with its gates, aggregation (section 4.5)."""
        parts: list[nn.Module | nn.Parameter] = [self.router, self.aggregation]
        for branch in self.branches:
            assert isinstance(branch, ExpertBranch)
            parts += [branch.leaders, branch.gate]
        return parts


class Residual(nn.Module):
    """ReLU of a main path plus a shortcut, which brings the input to the same shape."""

    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, x: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h2 w2"]:
        """Sum of both paths, rectified."""
        return (self.main(x) + self.shortcut(x)).relu()


def basic_block(inputs: int, outputs: int, stride: int) -> Residual:
    """Two 3x3 convolutions, the first with the stride; shortcut a plain 1x1."""
    main = nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(outputs),
    )
    return Residual(main, nn.Conv2d(inputs, outputs, 1, stride, bias=False))


def upsampling_block(inputs: int, outputs: int) -> Residual:
    """A transposed 2x2 convolution, then 3x3; shortcut a transposed 4x4; twice the grid."""
    main = nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(outputs),
    )
    return Residual(main, nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False))


def decoder_stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """Bottleneck blocks of half the output's width, the first of which doubles the grid (reverse distillation)."""
    width = outputs // 2

    def main(before: int, middle: nn.Module) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(before, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            middle,
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    shortcut = nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False), nn.BatchNorm2d(outputs)
    )
    first = Residual(main(inputs, nn.ConvTranspose2d(width, width, 2, 2, bias=False)), shortcut)
    others = [
        Residual(main(outputs, nn.Conv2d(width, width, 3, 1, 1, bias=False)), nn.Identity())
        for _ in range(blocks - 1)
    ]
    return nn.Sequential(first, *others)


class ScaleBottleneck(nn.Module):
    """Bottleneck-K: depthwise K x K and pointwise per map, joined by a 2x2 convolution to half the grid.

    Parameters
    ----------
    width : channels of every map and of the output
    n_maps : maps that are compressed together
    kernel : K, odd
    """

    def __init__(self, width: int, n_maps: int, kernel: int) -> None:
        super().__init__()
        inner = width // n_maps
        self.squeeze = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, kernel, 1, kernel // 2, groups=width, bias=False),
                conv_norm_relu(width, inner),
            )
            for _ in range(n_maps)
        )
        self.join = conv_norm_relu(n_maps * inner, width, kernel=2, stride=2)

    def forward(self, maps: list[Float[Tensor, "b c h w"]]) -> Float[Tensor, "b c h2 w2"]:
        """All maps as one, on half the grid."""
        squeezed = [squeeze(x) for squeeze, x in zip(self.squeeze, maps, strict=True)]
        return self.join(torch.cat(squeezed, dim=1))


class Compression(nn.Module):
    """Maps of one grid h in, restored maps out: inner and outer bottleneck, decoder (Fig. 3).

    Parameters
    ----------
    width : channels of every map that comes in
    n_maps : number of these maps
    kernels : K of the inner bottlenecks
    narrow : channels of the compressed features, on grid h / 4
    outputs : channels of the restored levels, coarsest first: grids h / 2, h, 2 h ...
    blocks : blocks of the decoder per level
    """

    def __init__(
        self,
        width: int,
        n_maps: int,
        kernels: tuple[int, ...],
        narrow: int,
        outputs: tuple[int, ...],
        blocks: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.inner = nn.ModuleList(ScaleBottleneck(width, n_maps, kernel) for kernel in kernels)
        self.outer = nn.Sequential(
            conv_norm_relu(width * len(kernels), width),
            conv_norm_relu(width, narrow, kernel=2, stride=2),
        )
        self.decoder = nn.ModuleList(
            decoder_stage(before, after, n)
            for (before, after), n in zip(
                itertools.pairwise((narrow, *outputs)), blocks, strict=True
            )
        )

    def forward(self, maps: list[Float[Tensor, "b c h w"]]) -> list[Float[Tensor, "b _ _ _"]]:
        """Restored levels, coarsest first."""
        x = self.outer(torch.cat([bottleneck(maps) for bottleneck in self.inner], dim=1))
        levels = []
        for stage in self.decoder:
            x = stage(x)
            levels.append(x)
        return levels


class PyramidCompression(nn.Module):
    """The module on three backbone levels at strides 4, 8 and 16: general features f^gen of unit norm.

    Parameters
    ----------
    channels : of the levels, finest first (wide ResNet-50: 256, 512, 1024)
    kernels : K of the inner bottlenecks
    """

    def __init__(self, channels: tuple[int, int, int], kernels: tuple[int, ...]) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.align = nn.ModuleList(
            [
                basic_block(fine, middle, stride=2),
                basic_block(middle, middle, stride=1),
                upsampling_block(coarse, middle),
            ]
        )
        self.compression = Compression(
            middle, 3, kernels, 2 * coarse, outputs=channels[::-1], blocks=(3, 4, 6)
        )
        self.project = nn.ModuleList(nn.Conv2d(c, c, 1, bias=False) for c in channels)

    def forward(self, levels: list[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b _ _ _"]]:
        """General features, same shapes as the levels."""
        aligned = [align(level) for align, level in zip(self.align, levels, strict=True)]
        restored = self.compression(aligned)[::-1]
        return [
            nn.functional.normalize(project(level), dim=1)
            for project, level in zip(self.project, restored, strict=True)
        ]


class Pyramid(nn.Module):
    """Three levels of a timm backbone with strides 4, 8 and 16, rectified.

    Parameters
    ----------
    backbone : a timm model (the paper: wide_resnet50_2)
    weights : "pretrained" or, for tests, "random"

    Attributes
    ----------
    channels : of the levels, finest first

    Raises
    ------
    ConfigError
        The model is unknown, has no such levels, or its weights cannot be obtained.
    """

    def __init__(self, backbone: str, weights: str) -> None:
        super().__init__()
        import timm  # takes seconds, and results are often read without it

        if not timm.is_model(backbone):
            raise ConfigError(f"model.backbone: timm has no model {backbone!r}")
        levels: Any = timm.create_model(backbone, features_only=True, out_indices=LEVELS)
        strides = levels.feature_info.reduction()
        if strides != [4, 8, 16]:
            raise ConfigError(
                f"model.backbone needs levels of strides 4, 8, 16, {backbone!r} has {strides}"
            )
        mean, std = (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))
        if weights == "pretrained":
            classifier, _ = imagenet_classifier(backbone)
            theirs = classifier.state_dict()
            levels.load_state_dict({key: theirs[key] for key in levels.state_dict()})
            mean, std = (torch.tensor(classifier.pretrained_cfg[key]) for key in ("mean", "std"))
        self.levels: nn.Module = levels
        self.channels: tuple[int, int, int] = tuple(levels.feature_info.channels())
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.view(1, 3, 1, 1))
        self.register_buffer("std", std.view(1, 3, 1, 1))

    def normalised(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Images in [0, 1] with the mean and deviation that the backbone was trained with."""
        return (images - self.mean) / self.std

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Levels, finest first, none below 0."""
        return [level.relu() for level in self.levels(x)]


class InputEmbedding(nn.Module):
    """The modalities as three channels: slots beyond them are zero ("pads all inputs", section 3.2).

    Parameters
    ----------
    image_size : side of the images, pixels; a learned tensor of this size is added to the input
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        channels = 3 * SLOTS
        self.place = nn.Parameter(0.02 * torch.randn(channels, image_size, image_size))
        layers: list[nn.Module] = []
        for before, after in ((channels, 2 * channels), (2 * channels, 4 * channels)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.main = nn.Sequential(*layers, nn.Conv2d(4 * channels, 3, 3, padding=1))
        self.shortcut = nn.Conv2d(channels, 3, 1)

    def forward(self, images: list[Float[Tensor, "b 3 h w"]]) -> Float[Tensor, "b 3 h w"]:
        """Three channels from the normalised images of the modalities in their order."""
        empty = [torch.zeros_like(images[0])] * (SLOTS - len(images))
        x = torch.cat([*images, *empty], dim=1) + self.place
        return self.main(x) + self.shortcut(x)


class GeneralEncoder(nn.Module):
    """Input embedding and a trainable copy of the prior generator's backbone.

    Parameters
    ----------
    prior : whose architecture and weights the encoder begins with
    image_size : see `InputEmbedding`
    """

    def __init__(self, prior: Pyramid, image_size: int) -> None:
        super().__init__()
        self.embedding = InputEmbedding(image_size)
        self.backbone = copy.deepcopy(prior)

    def forward(self, images: list[Float[Tensor, "b 3 h w"]]) -> list[Float[Tensor, "b _ _ _"]]:
        """Multi-modal levels, finest first, of the modalities' images in [0, 1]."""
        return self.backbone(self.embedding([self.backbone.normalised(x) for x in images]))


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

    Of the study's features only the grid is used, for residual maps. `n_categories` is not used.

    Raises
    ------
    ConfigError
        The image size is not a multiple of 32 or less than 64, or there are more than four modalities.
    """

    reads_features = False

    def __init__(self, config: UniMMADConfig, spec: InputSpec, n_categories: int) -> None:
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

    The method knows no categories: `n_categories` is not used.

    Raises
    ------
    ConfigError
        4 does not divide the grid, which two bottlenecks halve, or it is less than 8.
    """

    def __init__(self, config: UniMMADLiteConfig, spec: InputSpec, n_categories: int) -> None:
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
