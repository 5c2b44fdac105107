"""How UniMMAD spreads its items over the MoE-leaders: balance losses and a measure of use (its Eq. 1, Fig. 7a)."""

import torch
from jaxtyping import Float
from torch import Tensor

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


def leader_frequency(logits: Logits, active: int) -> Float[Tensor, "levels branches j"]:
    """Share of items that choose each leader among their `active` ones (Fig. 7a); every row sums to `active`."""
    rows = []
    for level in logits:
        chosen = level.topk(active, dim=-1).indices
        rows.append(torch.zeros_like(level).scatter(-1, chosen, 1.0).mean(dim=1))
    return torch.stack(rows)
