"""The selective scan in plain torch: no compiler, any device and precision, any number of derivatives.

Symbols as in `iumad.models.scan`; both functions take the step size before bias and softplus.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def reference(
    u: Float[Tensor, "batch dim length"],
    delta: Float[Tensor, "batch dim length"],
    A: Float[Tensor, "dim state"],
    B: Float[Tensor, "batch group state length"],
    C: Float[Tensor, "batch group state length"],
    D: Float[Tensor, " dim"] | None,
    z: Float[Tensor, "batch dim length"] | None,
    delta_bias: Float[Tensor, " dim"] | None,
    delta_softplus: bool,
) -> Float[Tensor, "batch dim length"]:
    """Loop over time: slow, and near to the equations."""
    delta = _step_size(delta, delta_bias, delta_softplus)
    repeats = u.shape[1] // B.shape[1]
    h = u.new_zeros(u.shape[0], *A.shape)
    y = []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        B_t = B[..., t].repeat_interleave(repeats, dim=1)
        C_t = C[..., t].repeat_interleave(repeats, dim=1)
        h = torch.exp(step * A) * h + step * B_t * u[:, :, t, None]
        y.append((h * C_t).sum(dim=-1))
    return _finish(torch.stack(y, dim=-1), u, D, z)


def vectorised(
    u: Float[Tensor, "batch dim length"],
    delta: Float[Tensor, "batch dim length"],
    A: Float[Tensor, "dim state"],
    B: Float[Tensor, "batch group state length"],
    C: Float[Tensor, "batch group state length"],
    D: Float[Tensor, " dim"] | None,
    z: Float[Tensor, "batch dim length"] | None,
    delta_bias: Float[Tensor, " dim"] | None,
    delta_softplus: bool,
) -> Float[Tensor, "batch dim length"]:
    """All steps at once, in ⌈log2 length⌉ rounds: for short sequences, and for export to other programs.

    Two neighbouring steps h → a h + x are one such step, with a = a_2 a_1 and x = a_2 x_1 + x_2. Round k joins
    every step with the one 2^k before it, so that after the last round every step reaches from the start. Nothing
    is divided, so no rate of decay is too large. The memory is that of all states, batch × dim × state × length.
    """
    repeats = u.shape[1] // B.shape[1]
    B, C = (x.repeat_interleave(repeats, dim=1) for x in (B, C))
    delta = _step_size(delta, delta_bias, delta_softplus)
    decay = torch.exp(delta[:, :, None] * A[..., None])
    h = (delta * u)[:, :, None] * B
    reach = 1
    while reach < u.shape[2]:
        joined = decay[..., reach:] * h[..., :-reach] + h[..., reach:]
        h = torch.cat([h[..., :reach], joined], dim=-1)
        decay = torch.cat([decay[..., :reach], decay[..., reach:] * decay[..., :-reach]], dim=-1)
        reach *= 2
    return _finish((h * C).sum(dim=2), u, D, z)


def _step_size(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    return F.softplus(delta) if delta_softplus else delta


def _finish(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    if D is not None:
        y = y + D[:, None] * u
    return y if z is None else y * F.silu(z)
