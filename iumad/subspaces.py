"""CDAD's protection: updates keep away from the span of all earlier inputs (increment strategy `svd`).

A linear layer's answer to earlier inputs X does not change if its update D has D X = 0. So after every step an
orthonormal basis M of nearly all of X is kept per layer, and later updates become D - D M M^T (Saha et al., GPM,
ICLR 2021; CDAD: Li et al., CVPR 2025, with an iterative SVD because its X is huge). What is not the weight of a
linear layer or a convolution, such as biases and norms, stays as it is after the base; only the running statistics
of batch norms move, in methods that have some.

Departures from CDAD's release, which contradicts its own derivation there: the vectors that join M are left
singular vectors of what M leaves of X, not columns of that rest, so M stays orthonormal; shares are shares of
energy; and the update is projected, not the gradient, because AdamW's rescaling would leave the allowed space.
Within a step the second moments X X^T are summed exactly: an iterative SVD approximates their eigenvectors.

Symbols: d  inputs of a layer (a convolution: of one window); r  rank; S  = X X^T, summed over a step.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.models.base import TrainedDetector
from iumad.store import FeatureStore

IMAGES = 256  # of a step that are looked at, at most; evenly spaced
ROUNDING = 1e-12  # eigenvalues below this share of the trace are zero


def linear_layers(network: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Linear layers and dense convolutions that are trained, by the name of their weight."""
    return {
        f"{name}.weight": module
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
        and module.weight.requires_grad
    }


def second_moments(
    detector: TrainedDetector, store: FeatureStore, sample_ids: Sequence[str], seed: int
) -> dict[str, Float[Tensor, "d d"]]:
    """S of every layer over a step's training images (float64): inputs while training and while scoring.

    `seed` draws the noise of the loss. Layers that got no input are left out.
    """
    moments: dict[str, Tensor] = {}

    def add(name: str, layer: nn.Linear | nn.Conv2d, x: Tensor) -> None:
        rows = input_rows(layer, x.detach()).double()
        moments[name] = moments.get(name, torch.zeros(())) + (rows.T @ rows).cpu()

    handles = [
        layer.register_forward_pre_hook(lambda m, x, name=name: add(name, m, x[0]))
        for name, layer in linear_layers(detector).items()
    ]
    detector.eval()
    device = next(detector.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    chosen = sample_ids[:: -(-len(sample_ids) // IMAGES)]
    try:
        with torch.no_grad():
            for start in range(0, len(chosen), 16):
                batch = store.batch(chosen[start : start + 16]).to(device)
                detector.losses(batch, generator)
                detector.residual_maps(batch)
    finally:
        for handle in handles:
            handle.remove()
    return moments


def input_rows(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Float[Tensor, "n d"]:
    """What a layer multiplies its weight with, one row each time."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    assert not isinstance(layer.padding, str)
    windows = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return windows.transpose(1, 2).flatten(0, 1)


def grow_basis(
    moment: Float[Tensor, "d d"], earlier: Float[Tensor, "d r"] | None, threshold: float
) -> Float[Tensor, "d s"]:
    """The earlier basis M and as many new vectors as explain `threshold` of the energy trace(S).

    With P = I - M M^T, the left singular vectors of P X are the eigenvectors of P S P, and the squared singular
    values its eigenvalues. What M explains already counts.
    """
    old = moment.new_zeros(len(moment), 0) if earlier is None else earlier
    energy = moment.trace()
    if energy <= 0:
        return old
    outside = torch.eye(len(moment), dtype=moment.dtype) - old @ old.T
    values, vectors = torch.linalg.eigh(outside @ moment @ outside)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    explained = energy - values.sum() + torch.cat([values.new_zeros(1), values.cumsum(0)])
    enough = explained >= (threshold - ROUNDING) * energy
    count = min(int((~enough).sum()), int((values > ROUNDING * energy).sum()))
    basis, _ = torch.linalg.qr(torch.cat([old, vectors[:, :count]], dim=1))
    return basis


def outside_of(
    update: Float[Tensor, "out *inputs"], basis: Float[Tensor, "d r"]
) -> Float[Tensor, "out *inputs"]:
    """D - D M M^T for a layer's update D."""
    flat = update.flatten(1)
    return (flat - (flat @ basis) @ basis.T).view_as(update)
