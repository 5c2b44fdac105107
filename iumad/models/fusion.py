"""Fusion of the modalities, the information bottleneck, and the compression of what the decoder keeps.

Fusion and bottleneck are the paper's IBFM (section 3.3, Table 6).
Symbols: F^1, F^2  fused outputs of decoder layers 2 and 4 (Eq. 4); F_fu  their fusion; z  bottleneck;
F_fu^g  what passes it (Eq. 5); p, q  the category distributions of the two heads.

Semantic compression (IUF, section 3.3) keeps the features of all base categories in few directions; what the base
step leaves unused is free for later ones. Features are the decoder's intermediate outputs, averaged over tokens,
one row an image; the loss is the share of their singular values that are small.
Symbols: M  n x d, rows of the latest images; sigma_i, v_i  its singular values and right singular vectors;
d  width; level  one decoder layer of one modality.
"""

import math
from typing import ClassVar, assert_never

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.config.methods import Fusion
from iumad.models.reconstruction import Attention


class CrossLevelAttention(nn.Module):
    """Eq. 4: F^1 and F^2 are linear maps of the concatenated modalities; F^1 queries F^2, residual and norm.

    With one modality F^1 and F^2 are linear maps of its own two levels.
    """

    def __init__(self, dim: int, heads: int, n_modalities: int) -> None:
        super().__init__()
        self.middle = nn.Linear(n_modalities * dim, dim)
        self.last = nn.Linear(n_modalities * dim, dim)
        self.attention = Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, middle: list[Float[Tensor, "b n d"]], last: list[Float[Tensor, "b n d"]]
    ) -> Float[Tensor, "b n d"]:
        """F_fu from the middle and last reconstructions of every modality."""
        first, second = self.middle(torch.cat(middle, dim=-1)), self.last(torch.cat(last, dim=-1))
        return self.norm(first + self.attention(first, second, second))


class Addition(nn.Module):
    """Sum of the last reconstructions."""

    def forward(
        self, _middle: list[Float[Tensor, "b n d"]], last: list[Float[Tensor, "b n d"]]
    ) -> Float[Tensor, "b n d"]:
        """F_fu; the middle level is not used."""
        return torch.stack(last).sum(dim=0)


class ConcatFC(nn.Module):
    """Concatenation, 1x1 convolution, batch norm, ReLU, dropout of the last reconstructions."""

    widening: ClassVar[int] = 1  # by the convolution, undone by the activation

    def __init__(self, dim: int, n_modalities: int, dropout: float = 0.1) -> None:
        super().__init__()
        width = self.widening * dim
        self.linear, self.norm = nn.Linear(n_modalities * dim, width), nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, _middle: list[Float[Tensor, "b n d"]], last: list[Float[Tensor, "b n d"]]
    ) -> Float[Tensor, "b n d"]:
        """F_fu; the middle level is not used."""
        mixed = self.linear(torch.cat(last, dim=-1))
        normed = self.norm(mixed.flatten(0, 1)).unflatten(0, mixed.shape[:2])
        return self.dropout(self._activated(normed))

    def _activated(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n d"]:
        return functional.relu(x)


class LinearGLU(ConcatFC):
    """The same with 2d channels and a gated linear unit in place of ReLU."""

    widening: ClassVar[int] = 2

    def _activated(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n d"]:
        return functional.glu(x, dim=-1)


def fusion_operator(name: Fusion, dim: int, heads: int, n_modalities: int) -> nn.Module:
    """One of the four operators of Table 6."""
    match name:
        case "addition":
            return Addition()
        case "concatfc":
            return ConcatFC(dim, n_modalities)
        case "linearglu":
            return LinearGLU(dim, n_modalities)
        case "cross-attention":
            return CrossLevelAttention(dim, heads, n_modalities)
        case _:
            assert_never(name)


class InformationBottleneck(nn.Module):
    """Eq. 5: F_fu -> Linear, ReLU, dropout -> z -> Linear -> F_fu^g, and the heads of Eq. 8.

    The equation also puts ReLU and dropout behind the second linear; features to reconstruct have both signs, so
    they are left out there (departure).

    Parameters
    ----------
    dim, width, n_categories : int
        d, size of z, logits of the heads.
    dropout : float
    residual : bool
        F_fu^g = F_fu + bottleneck(F_fu) instead of bottleneck(F_fu); not in the paper.
    """

    def __init__(
        self, dim: int, width: int, n_categories: int, dropout: float = 0.1, residual: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual
        self.compress = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Dropout(dropout))
        self.expand = nn.Linear(width, dim)
        self.head_fused, self.head_filtered = (
            nn.Linear(dim, n_categories),
            nn.Linear(dim, n_categories),
        )

    def forward(
        self, fused: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b y"], Float[Tensor, "b y"]]:
        """F_fu^g, and the logits of Y given F_fu and given F_fu^g, each from the mean over tokens."""
        filtered = self.expand(self.compress(fused))
        if self.residual:
            filtered = fused + filtered
        return filtered, *self.logits(fused, filtered)

    def logits(
        self, fused: Float[Tensor, "b n d"], filtered: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b y"], Float[Tensor, "b y"]]:
        """Logits of Y given F_fu and given F_fu^g by the two heads."""
        return self.head_fused(fused.mean(dim=1)), self.head_filtered(filtered.mean(dim=1))


def kl_categorical(
    p_logits: Float[Tensor, "b y"], q_logits: Float[Tensor, "b y"]
) -> Float[Tensor, " b"]:
    """KL[p || q] in nats of two categorical distributions given by logits (Eq. 8)."""
    log_p, log_q = (
        functional.log_softmax(p_logits, dim=-1),
        functional.log_softmax(q_logits, dim=-1),
    )
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


THRESHOLD = 0.1  # in units of 1 / d: IUF's limit below which a normalised singular value is small
ROWS_PER_WIDTH = 3  # rows in memory per unit of d: 768 at IUF's width of 256


class SemanticCompression(nn.Module):
    """The loss, and the rows of earlier batches, so that n may exceed the batch.

    The rows are buffers: training that is resumed from a state dict goes on with the same ones. IUF's code takes
    copies without gradient, so that its loss trains nothing; here the rows of the present batch have one
    (departure).

    Parameters
    ----------
    dim, levels : int
        d, and the number of matrices M.
    """

    def __init__(self, dim: int, levels: int) -> None:
        super().__init__()
        self.rows: Tensor
        self.filled: Tensor
        self.register_buffer("rows", torch.zeros(levels, ROWS_PER_WIDTH * dim, dim))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def forward(self, rows: Float[Tensor, "levels b d"]) -> Float[Tensor, ""]:
        """Loss of the remembered and the present rows; mean over levels, in [0, 0.1).

        In training mode the rows are then remembered.
        """
        rows = rows.to(self.rows.dtype)
        matrices = torch.cat([rows, self.rows[:, : int(self.filled)]], dim=1)
        with torch.autocast(rows.device.type, enabled=False):
            loss = torch.stack([small_singular_values(matrix) for matrix in matrices]).mean()
        if self.training:
            self.remember(rows.detach())
        return loss

    @torch.no_grad()
    def remember(self, batch: Float[Tensor, "levels b d"]) -> None:
        """Add the rows of a batch, newest first; the oldest ones leave when the memory is full."""
        kept = torch.cat([batch.to(self.rows), self.rows], dim=1)
        self.filled.add_(batch.shape[1]).clamp_(max=self.rows.shape[1])
        self.rows.copy_(kept[:, : self.rows.shape[1]])


def small_singular_values(matrix: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Sum of the normalised singular values sigma_i / sum(sigma) below 0.1 / d.

    The vectors v_i are taken as constants and sigma_i = |M v_i|: its value and its derivative u_i v_i^T are those
    of the singular value, at the cost of one symmetric d x d eigenproblem (float64, since small singular values
    lie below the resolution of M^T M in float32). Values that are zero up to rounding, and those beyond the n-th,
    count as zero and get no gradient. NaN where a number is not finite.
    """
    with torch.no_grad():
        if not torch.isfinite(matrix).all():
            return matrix.sum() * math.nan
        exact = matrix.double()
        squares, vectors = torch.linalg.eigh(exact.T @ exact)
        rounding = torch.finfo(matrix.dtype).eps * max(matrix.shape)
        kept = squares.clamp_min(0).sqrt() > rounding * squares[-1].clamp_min(0).sqrt()
    values = (matrix @ vectors[:, kept].to(matrix)).norm(dim=0)
    shares = values / values.sum().clamp_min(torch.finfo(matrix.dtype).tiny)
    return shares[shares < THRESHOLD / matrix.shape[1]].sum()
