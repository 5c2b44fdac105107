"""Mamba decoder block: ES2D, ESSM, and the structure of Eq. 2 (paper section 3.2; EfficientVMamba's atrous scan).

Symbols: X  map, b x d x h x w; ES2D  scan over four interleaved sub-grids; d_inner  expand * d; N  d_state;
Delta, A, B, C, D  of the selective scan (`iumad.models.scan`); L  length of a sub-grid, ceil(h/2) * ceil(w/2).
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.models.scan import selective_scan

GROUPS = 4  # sub-grids of an atrous step of 2
DELTA_RANGE = (1e-3, 1e-1)  # of the initial step sizes


def es2d_split(x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 4 d l"]:
    """Four sub-grids as sequences.

    (even, even) row-major, (odd, even) column-major, (even, odd) row-major, (odd, odd) column-major.
    Odd sizes are padded with zeros at the lower right, so each sub-grid has L = ceil(h/2) * ceil(w/2) tokens.
    """
    return _Split.apply(functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))


def es2d_merge(
    sequences: Float[Tensor, "b 4 d l"], height: int, width: int
) -> Float[Tensor, "b d h w"]:
    """Scatter the four sequences back to their places: the exact inverse of `es2d_split`."""
    merged = _Merge.apply(sequences, height + height % 2, width + width % 2)
    return merged[:, :, :height, :width]


def _split(x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 4 d l"]:
    height, width = x.shape[2] // 2, x.shape[3] // 2
    out = x.new_empty(len(x), 2, 2, x.shape[1], height * width)  # b, odd column, odd row, d, l
    for sub_grid, part in zip(_sub_grids(out, height, width), _pixels(x), strict=True):
        sub_grid.copy_(part)
    return out.flatten(1, 2)


def _merge(
    sequences: Float[Tensor, "b 4 d l"], height: int, width: int
) -> Float[Tensor, "b d h w"]:
    batch, _, dim, _ = sequences.shape
    out = sequences.new_empty(batch, height, width, dim).permute(0, 3, 1, 2)
    grids = _sub_grids(sequences.unflatten(1, (2, 2)), height // 2, width // 2)
    for sub_grid, part in zip(grids, _pixels(out), strict=True):
        part.copy_(sub_grid)
    return out


def _sub_grids(
    sequences: Float[Tensor, "b 2 2 d l"], height: int, width: int
) -> tuple[Float[Tensor, "b 2 d h w"], Float[Tensor, "b 2 d w h"]]:
    """Views of the sequences as maps: those of even rows, and those of odd rows, which run down the columns."""
    return sequences[:, :, 0].unflatten(3, (height, width)), sequences[:, :, 1].unflatten(
        3, (width, height)
    )


def _pixels(
    x: Float[Tensor, "b d h2 w2"],
) -> tuple[Float[Tensor, "b 2 d h w"], Float[Tensor, "b 2 d w h"]]:
    """Views of the pixels that `_sub_grids` hold."""
    height, width = x.shape[2:]
    cells = x.unflatten(3, (width // 2, 2)).unflatten(2, (height // 2, 2))  # b d h row w column
    return cells[:, :, :, 0].permute(0, 4, 1, 2, 3), cells[:, :, :, 1].permute(0, 4, 1, 3, 2)


class _Split(torch.autograd.Function):
    """`_split`, whose gradient is merged: two copies, where slices would each fill a map with zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.size = x.shape[2:]
        return _split(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _merge(gradient, *ctx.size)


class _Merge(torch.autograd.Function):
    """`_merge`, whose gradient is split."""

    @staticmethod
    def forward(ctx: Any, sequences: Tensor, height: int, width: int) -> Tensor:  # noqa: ARG004
        return _merge(sequences, height, width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ARG004
        return _split(gradient), None, None


class EfficientStateSpace(nn.Module):
    """ESSM: gated projection, depth-wise convolution, ES2D selective scan with own parameters per sub-grid.

    Parameters
    ----------
    dim, d_state, expand : int
        d, N, and d_inner / d.
    groups : int
        Number of sequences that `split` makes, each with its own parameters.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        expand: int = 2,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        inner, self.d_state, self.rank = expand * dim, d_state, math.ceil(dim / 16)
        self.groups = groups
        self.project_in = nn.Linear(dim, 2 * inner, bias=False)
        self.convolution = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.project_bc = nn.Parameter(torch.empty(groups, self.rank + 2 * d_state, inner))
        self.project_delta = nn.Parameter(torch.empty(groups, inner, self.rank))
        self.delta_bias = nn.Parameter(torch.empty(groups * inner))
        self.log_decay = nn.Parameter(
            torch.arange(1.0, d_state + 1).log().repeat(groups * inner, 1)
        )  # S4D-real
        self.skip = nn.Parameter(torch.ones(groups * inner))
        self.norm = nn.LayerNorm(inner)
        self.project_out = nn.Linear(inner, dim, bias=False)
        self._initialise(inner)

    def _initialise(self, inner: int) -> None:
        nn.init.uniform_(self.project_bc, -(inner**-0.5), inner**-0.5)
        nn.init.uniform_(self.project_delta, -(self.rank**-0.5), self.rank**-0.5)
        low, high = (math.log(bound) for bound in DELTA_RANGE)
        delta = torch.empty_like(self.delta_bias).uniform_(low, high).exp()
        with torch.no_grad():
            self.delta_bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # inverse of softplus

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Mix the positions of a channels-last map."""
        inner, gate = (functional.linear(x, w) for w in self.project_in.weight.chunk(2))
        inner = functional.silu(self.convolution(inner.permute(0, 3, 1, 2)))
        sequences = self.split(inner)
        scanned = self._scan(sequences)
        merged = self.merge(scanned, *inner.shape[-2:]).permute(0, 2, 3, 1)
        return self.project_out(self.norm(merged) * functional.silu(gate))

    def split(self, x: Float[Tensor, "b e h w"]) -> Float[Tensor, "b k e l"]:
        """The sequences that are scanned."""
        return es2d_split(x)

    def merge(
        self, sequences: Float[Tensor, "b k e l"], height: int, width: int
    ) -> Float[Tensor, "b e h w"]:
        """The scanned sequences back on the grid."""
        return es2d_merge(sequences, height, width)

    def _scan(self, sequences: Float[Tensor, "b k e l"]) -> Float[Tensor, "b k e l"]:
        low_rank = self.project_bc @ sequences
        delta, b, c = low_rank.split([self.rank, self.d_state, self.d_state], dim=2)
        scanned = selective_scan(
            sequences.flatten(1, 2),
            (self.project_delta @ delta).flatten(1, 2),
            -self.log_decay.exp(),
            b,
            c,
            self.skip,
            delta_bias=self.delta_bias,
            delta_softplus=True,
        )
        return scanned.unflatten(1, (self.groups, -1))


class ChannelAttention(nn.Module):
    """Squeeze-and-excitation gate, the attention of Eq. 2 (EfficientVMamba uses the same)."""

    def __init__(self, dim: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(dim // reduction, 1)
        self.gate = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim), nn.Sigmoid()
        )

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Scale channels by a function of their means."""
        return x * self.gate(x.mean(dim=(1, 2), keepdim=True))


class MambaBlock(nn.Module):
    """Eq. 2: X' = Attention(LN(ESSM(LN(X)))) + DWConv(X)."""

    def __init__(self, dim: int, d_state: int = 16, expand: int = 2) -> None:
        super().__init__()
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.state_space = EfficientStateSpace(dim, d_state, expand)
        self.attention = ChannelAttention(dim)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """X^i -> X^{i+1}."""
        mixed = self.state_space(self.norm_in(x))
        local = self.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.attention(self.norm_out(mixed)) + local
