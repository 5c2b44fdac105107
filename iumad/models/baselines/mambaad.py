"""MambaAD: a state space decoder restores frozen features from a bottleneck (He et al., NeurIPS 2024).

Reimplemented from a sheet of facts; the book's page of baselines has the departures. The cached features lie
on one grid, so the pyramid is made here: halved grids to the bottleneck, and a decoder that doubles them again.
A scan reads a grid along one of five curves, each in up to eight directions: a curve is a permutation of the cells
in row-major numbers; a direction turns or transposes the grid before the curve is laid over it, and may run along
it backwards.

Symbols: C channels of the features; g grid; d width at the full grid; S number of stages; K scan directions;
HSS  a gated selective scan along K orders of the grid; LSS  a few HSS beside two convolutions.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from iumad.config.methods import MambaADLiteConfig
from iumad.errors import ConfigError
from iumad.features.cache import Batch
from iumad.models.base import Detector, InputSpec
from iumad.models.mamba import EfficientStateSpace

KERNELS = (5, 7)  # of the convolutions beside the scans

Cell = tuple[int, int]


def sweep(side: int) -> list[Cell]:
    """Row after row, each from the left."""
    return [(row, column) for row in range(side) for column in range(side)]


def boustrophedon(side: int) -> list[Cell]:
    """Row after row, every second one from the right (MambaAD's `scan`)."""
    return [(row, side - 1 - c if row % 2 else c) for row in range(side) for c in range(side)]


def zigzag(side: int) -> list[Cell]:
    """Diagonal after diagonal, up and down in turn, as JPEG does."""
    return sorted(sweep(side), key=lambda cell: (sum(cell), cell[0] if sum(cell) % 2 else cell[1]))


def z_order(side: int) -> list[Cell]:
    """By the interleaved bits of row and column (Morton)."""
    bits = range(side.bit_length())
    return sorted(
        sweep(side),
        key=lambda cell: sum(
            ((cell[0] >> i & 1) << 2 * i + 1) | ((cell[1] >> i & 1) << 2 * i) for i in bits
        ),
    )


def hilbert(side: int) -> list[Cell]:
    """Hilbert's curve from the upper left to the upper right corner; consecutive cells are neighbours.

    For other sides than powers of two it is the next larger curve without the cells outside, which then jumps.
    """
    power = 1 << (side - 1).bit_length()
    return [cell for cell in _hilbert(power) if max(cell) < side]


def _hilbert(side: int) -> list[Cell]:
    if side == 1:
        return [(0, 0)]
    half, last = side // 2, side - 1
    part = _hilbert(half)
    return [
        *((column, row) for row, column in part),
        *((half + row, column) for row, column in part),
        *((half + row, half + column) for row, column in part),
        *((half - 1 - column, last - row) for row, column in part),
    ]


CURVES: dict[str, Callable[[int], list[Cell]]] = {
    "hilbert": hilbert,
    "sweep": sweep,
    "scan": boustrophedon,
    "zorder": z_order,
    "zigzag": zigzag,
}


def scan_orders(curve: str, side: int, directions: int = 8) -> Int[Tensor, "directions n"]:
    """The cells of a side x side grid in the order of a curve, one row for each direction.

    Parameters
    ----------
    curve : a key of `CURVES`
    side : int
        n = side * side.
    directions : 2, 4 or 8
        The curve on the grid, on its transpose, turned by 90 degrees, turned and transposed; each forwards and
        backwards. 2 and 4 are the first of these.
    """
    steps = torch.tensor([row * side + column for row, column in CURVES[curve](side)])
    grid = torch.arange(side * side).view(side, side)
    turned = torch.rot90(grid)
    arranged = [each.flatten()[steps] for each in (grid, grid.T, turned, turned.T)]
    both = [order for forward in arranged for order in (forward, forward.flip(0))]
    return torch.stack(both[:directions])


class CurveStateSpace(EfficientStateSpace):
    """SS2D along a curve: one selective scan for each direction, summed (MambaAD's hybrid scan).

    Parameters
    ----------
    dim, side : int
        Width and grid.
    config : MambaADLiteConfig
    """

    def __init__(self, dim: int, side: int, config: MambaADLiteConfig) -> None:
        super().__init__(dim, config.d_state, groups=config.directions)
        orders = scan_orders(config.scan, side, config.directions)
        self.orders: Int[Tensor, "k n"]
        self.places: Int[Tensor, "k n"]
        self.register_buffer("orders", orders, persistent=False)
        self.register_buffer("places", orders.argsort(dim=1), persistent=False)

    def split(self, x: Float[Tensor, "b e h w"]) -> Float[Tensor, "b k e l"]:
        """Each direction's sequence of all cells."""
        return x.flatten(2)[:, :, self.orders].transpose(1, 2)

    def merge(
        self, sequences: Float[Tensor, "b k e l"], height: int, width: int
    ) -> Float[Tensor, "b e h w"]:
        """Back to their cells; the directions are summed."""
        places = self.places[None, :, None].expand_as(sequences)
        return sequences.gather(-1, places).sum(dim=1).unflatten(-1, (height, width))


class HybridStateSpace(nn.Module):
    """HSS block: x + DropPath(SS2D(LN x)) on a channels-last map; no MLP."""

    def __init__(self, dim: int, side: int, config: MambaADLiteConfig, drop: float) -> None:
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(dim), drop
        self.state_space = CurveStateSpace(dim, side, config)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Mix the positions; in training whole images skip the block with probability `drop`."""
        mixed = self.state_space(self.norm(x))
        if self.training and self.drop:
            kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop
            mixed = mixed * kept / (1 - self.drop)
        return x + mixed


class LocalityStateSpace(nn.Module):
    """LSS module: HSS blocks in series beside a 5 x 5 and a 7 x 7 convolution of the same input."""

    def __init__(
        self, dim: int, side: int, config: MambaADLiteConfig, drops: Sequence[float]
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(HybridStateSpace(dim, side, config, drop) for drop in drops))
        self.local = nn.ModuleList(self._branch(dim, kernel) for kernel in KERNELS)
        self.join = nn.Conv2d((1 + len(KERNELS)) * dim, dim, 1)

    @staticmethod
    def _branch(dim: int, kernel: int) -> nn.Sequential:
        shapes = [(1, 1), (kernel, dim), (1, 1)]  # kernel and groups: the middle one is depth-wise
        layers: list[nn.Module] = []
        for size, groups in shapes:
            convolution = nn.Conv2d(dim, dim, size, padding=size // 2, groups=groups)
            layers += [convolution, nn.InstanceNorm2d(dim), nn.SiLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Input plus Conv1x1(concat(scans, convolutions))."""
        scanned = self.blocks(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.join(torch.cat([scanned, *(branch(x) for branch in self.local)], dim=1))


class PatchExpanding(nn.Module):
    """Twice the grid at half the width: LN, Linear 2d -> 4d, 2 x 2 pixels of d, LN; odd sides lose one row."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.norm, self.norm_out = nn.LayerNorm(2 * dim), nn.LayerNorm(dim)
        self.expand = nn.Linear(2 * dim, 4 * dim, bias=False)

    def forward(self, x: Float[Tensor, "b e h w"]) -> Float[Tensor, "b d H W"]:
        """From width e = 2d to d."""
        wide = self.expand(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        pixels = functional.pixel_shuffle(wide, 2).permute(0, 2, 3, 1)
        return self.norm_out(pixels[:, : self.side, : self.side]).permute(0, 3, 1, 2)


class PyramidDecoder(nn.Module):
    """Features of one modality through the bottleneck and back: C x g x g -> C x g x g."""

    def __init__(self, channels: int, grid: int, config: MambaADLiteConfig) -> None:
        super().__init__()
        stages, dim = len(config.depths), config.dim
        widths = [dim * 2**i for i in range(stages)]
        halve = [_convolution(*pair, 3, stride=2) for pair in pairwise(widths)]
        self.bottleneck = nn.Sequential(
            _convolution(channels, dim, 1), *halve, _convolution(widths[-1], widths[-1], 1)
        )
        total = sum(config.depths)
        drops = [config.drop_path * (1 - i / max(total - 1, 1)) for i in range(total)]
        decoder: list[nn.Module] = []
        for depth, width in zip(config.depths, reversed(widths), strict=True):
            side = -(-grid * dim // width)
            of_stage, drops = drops[:depth], drops[depth:]
            size = 3 if depth % 3 == 0 else 2  # blocks of a module, as the authors cut their stages
            decoder += [PatchExpanding(width, side)] if decoder else []
            decoder += [
                LocalityStateSpace(width, side, config, of_stage[i : i + size])
                for i in range(0, depth, size)
            ]
        self.decoder = nn.Sequential(*decoder)
        self.project_out = nn.Conv2d(dim, channels, 1)

    def forward(self, features: Float[Tensor, "b c g g"]) -> Float[Tensor, "b c g g"]:
        """Restore the features."""
        return self.project_out(self.decoder(self.bottleneck(features)))


class MambaAD(Detector):
    """One decoder for each modality; their maps are combined as those of all methods.

    MambaAD does not classify: `n_categories` is not used.

    Raises
    ------
    ConfigError
        The grid is too small: each stage but the last has half the grid of the next one, at least 2.
    """

    def __init__(self, config: MambaADLiteConfig, spec: InputSpec, n_categories: int) -> None:
        super().__init__(config, spec, n_categories)
        smallest = 2 ** (len(config.depths) - 1) + 1
        if spec.grid < smallest:
            raise ConfigError(
                f"mambaad: {len(config.depths)} stages (model.depths) need features.grid of at least "
                f"{smallest}, got {spec.grid}"
            )
        self.networks = nn.ModuleDict(
            {m: PyramidDecoder(spec.channels, spec.grid, config) for m in spec.modalities}
        )

    def _pairs(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Restored and true features of each modality, both b x n x C."""
        pairs = {}
        for modality, network in self.networks.items():
            tokens = self.standardised(batch, modality)
            maps = tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))
            pairs[modality] = (network(maps).flatten(2).transpose(1, 2), tokens)
        return pairs

    def losses(
        self, batch: Batch, generator: torch.Generator | None = None, base: bool = False
    ) -> dict[str, Float[Tensor, ""]]:
        """`loss_weight` times the squared error, mean over elements; one term for each modality."""
        return {
            f"restore_{modality}": self.config.loss_weight * functional.mse_loss(restored, true)
            for modality, (restored, true) in self._pairs(batch).items()
        }

    @torch.no_grad()
    def residual_maps(self, batch: Batch) -> dict[str, Float[Tensor, "b g g"]]:
        """1 - cosine of restored and true features at every token, or their distance."""
        maps = {}
        for modality, (restored, true) in self._pairs(batch).items():
            if self.config.score == "cosine":
                error = 1 - functional.cosine_similarity(restored, true, dim=-1)
            else:
                error = (restored - true).norm(dim=-1)
            maps[modality] = error.unflatten(1, (self.grid, self.grid))
        return maps


def _convolution(into: int, out: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(into, out, size, stride, size // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )
