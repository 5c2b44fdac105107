"""UniMMAD's feature compression module: two bottlenecks, then a decoder that restores the levels (section 3.2).

What is compressed cannot carry every detail of the input, so anomalies are lost on the way. The inner bottleneck
sees three scales in parallel, the outer one what they have in common. All grids here are halved twice: once by
each bottleneck.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iumad.models.baselines.unimmad_experts import conv_norm_relu


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
