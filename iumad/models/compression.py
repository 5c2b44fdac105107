"""Semantic compression: keep the features of all base categories in few directions (IUF, section 3.3).

What the base step leaves unused is free for later categories. Features are the decoder's intermediate outputs,
averaged over tokens, one row an image; the loss is the share of their singular values that are small.

Symbols: M  n x d, rows of the latest images; sigma_i, v_i  its singular values and right singular vectors;
d  width; level  one decoder layer of one modality.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
