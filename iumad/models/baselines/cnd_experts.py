"""CND's gated mixture of experts over patches (CNC, Eq. 13-15)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class GatedExperts(nn.Module):
    """Every token is the sum of its K best experts' outputs, each times its score.

    Parameters
    ----------
    width : c of the tokens
    experts, active : T and K
    """

    def __init__(self, width: int, experts: int, active: int) -> None:
        super().__init__()
        self.active = active
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(experts)
        )

    def forward(
        self, tokens: Float[Tensor, "r c"]
    ) -> tuple[Float[Tensor, "r c"], Float[Tensor, "r experts"]]:
        """Mixed tokens (Eq. 14) and the router's scores G, which sum to 1 over all experts (Eq. 13).

        The K scores are used as they are, not made to sum to 1. An expert that no token chose runs on none, so
        that it gets a gradient of zero rather than none.
        """
        scores = self.router(tokens).softmax(dim=-1)
        top, chosen = scores.topk(self.active, dim=-1)
        mixed = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            rows, place = (chosen == i).nonzero(as_tuple=True)
            weighted = top[rows, place, None] * expert(tokens[rows])
            mixed = mixed.index_add(0, rows, weighted.to(mixed.dtype))
        return mixed, scores


def importance_loss(scores: Float[Tensor, "r experts"]) -> Float[Tensor, ""]:
    """Squared coefficient of variation of the experts' importance, 0 for uniform use (Eq. 15).

    The importance of an expert is the sum of its scores over the R tokens. As printed, Eq. 15 divides the variance
    of these sums by the squared mean of scores, which differs by the factor R^2; both taken of sums, as in the
    work that it cites, the loss does not depend on R.
    """
    importance = scores.float().sum(dim=0)
    return importance.var(correction=0) / (importance.mean().square() + 1e-10)
