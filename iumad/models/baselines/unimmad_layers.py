"""UniMMAD's networks (Zhao et al., sections 3.2 and 3.3): experts, compression, and what reads the images.

Experts are leaders over shared base kernels, run as one grouped dynamic convolution. What is compressed cannot
carry every detail of the input, so anomalies are lost on the way: the inner bottleneck sees three scales in
parallel, the outer one what they have in common, and each halves the grid; a decoder restores the levels.

Symbols: e  width; k  kernel size; N  base experts W; J  MoE-leaders, each a mixture S of the bases; K  leaders
active per item; g  condition of an item, from its general features and the prior of one modality.
"""

import copy
import itertools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from iumad.errors import ConfigError
from iumad.features.backbone import imagenet_classifier

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
