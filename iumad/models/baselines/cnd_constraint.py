"""CNC's losses: what ties image features to a learnt text of normality (Eq. 4-11).

Symbols: f, f^  encoded and decoded features of a level; e, e^  their class tokens; g_n, g_a  text features of the
normal and the abnormal prompt, unit norm; tau  temperature.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def constraint(
    first: Float[Tensor, "b t"], text: Float[Tensor, "2 t"], temperature: float
) -> Float[Tensor, ""]:
    """-log of the share of g_n in a softmax over (g_n, g_a), mean over the batch; one term of Eq. 4 or 10.

    Parameters
    ----------
    first : class tokens in the joint space, unit norm
    text : g_n, g_a
    temperature : tau
    """
    logits = first.float() @ text.float().T / temperature
    return functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def promoted(
    features: Float[Tensor, "b n c"], joint: Float[Tensor, "b n t"], text: Float[Tensor, "2 t"]
) -> Float[Tensor, "b n c"]:
    """f* = f + lambda Psi, the same number for all channels of a patch (Eq. 5-8).

    Psi = (1 + tanh(alpha - beta)) / 2 in (0, 1), with alpha = f . g_n and beta = f . g_a taken in the joint space;
    lambda = 1 / |f| per patch. Neither lambda nor the text receives a gradient.

    Parameters
    ----------
    features : f or f^
    joint : the same patches in the joint space, unit norm
    text : g_n, g_a
    """
    alpha, beta = (joint @ text.detach().T).unbind(dim=-1)
    psi = 0.5 * (1 + torch.tanh(alpha - beta))
    scale = features.detach().norm(dim=-1).clamp_min(1e-12)
    return features + (psi / scale)[..., None]


def distillation(
    encoded: Float[Tensor, "b n c"], decoded: Float[Tensor, "b n c"]
) -> Float[Tensor, ""]:
    """1 - cosine of the flattened patches of each sample, mean over the batch; one term of Eq. 9."""
    flat = encoded.float().flatten(1), decoded.float().flatten(1)
    return (1 - functional.cosine_similarity(*flat, dim=1)).mean()
