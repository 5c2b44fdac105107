"""Dropout whose random numbers are cheap on a CPU, and attention with it.

torch draws one number per element for a mask, one after the other, which takes longer than the matrix products
around it, and its attention kernels for the CPU know no dropout. Here a draw of 64 bits decides four elements.
The probability is rounded to a multiple of 2^-16 and the kept elements are scaled by that. On other devices
torch's own functions are used.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 1 << 16  # of a 16-bit number


class Dropout(nn.Module):
    """`torch.nn.Dropout` with the random numbers of this module.

    Parameters
    ----------
    probability : float in [0, 1)
        0 draws nothing.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Zero each element with the probability in training mode, scale the others."""
        if not self.training or not self.probability:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.probability)
        return x * kept(x.shape, self.probability) / keep_rate(self.probability)


def attention_with_dropout(
    query: Float[Tensor, "b heads n e"],
    key: Float[Tensor, "b heads m e"],
    value: Float[Tensor, "b heads m e"],
    mask: Float[Tensor, "n m"] | None,
    probability: float,
) -> Float[Tensor, "b heads n e"]:
    """Scaled dot-product attention with dropout on its weights; `mask` is added to the scores."""
    if query.device.type != "cpu":
        return functional.scaled_dot_product_attention(query, key, value, mask, probability)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    dropped = weights * kept(weights.shape, probability)
    return dropped.to(value.dtype) @ (value / keep_rate(probability))


def kept(shape: torch.Size, probability: float) -> Bool[Tensor, "..."]:
    """Which elements stay, drawn from torch's default generator."""
    count = shape.numel()
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    threshold = round(probability * LEVELS) - LEVELS // 2
    return (numbers.view(torch.int16)[:count] >= threshold).view(shape)


def keep_rate(probability: float) -> float:
    """Probability with which an element stays."""
    return 1 - round(probability * LEVELS) / LEVELS
