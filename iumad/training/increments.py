"""What protects earlier categories while a new step is trained: one strategy each (`increment.strategy`).

    none, joint     nothing: plain fine-tuning; joint training has no later steps
    projection      IUF: updates of the second FFN linear of every layer are damped along the directions in which
                    earlier categories' features vary most
    svd             CDAD: updates of all layers stay away from the span of earlier inputs
    ewc             a quadratic penalty on moving weights (after Kirkpatrick et al., PNAS 2017; one anchor, the
                    weights at the start of the step, and the importances of all earlier steps summed)
    replay          a few images of earlier categories are trained on again; a control from above
    feature-replay  the same with the backbone's features alone, so that no image is kept

Mixing in the old weights (`increment.pull`) goes with any of them.

A memory is a dictionary of tensors and names. `remember` makes it from one step's model and training data and
joins it with the memory of the steps before; in a study the next step asks for it when it begins. `Guard`
applies it.

`svd`: a linear layer's answer to earlier inputs X does not change if its update D has D X = 0. So after every
step an orthonormal basis M of nearly all of X is kept per layer, and later updates become D - D M M^T (Saha et
al., GPM, ICLR 2021; CDAD: Li et al., CVPR 2025). What is not the weight of a linear layer or a convolution, such
as biases and norms, stays as it is after the base; only the running statistics of batch norms move.

Departures from CDAD's release, which contradicts its own derivation: the vectors that join M are left singular
vectors of what M leaves of X, so that M stays orthonormal; shares are shares of energy; the update is projected
and not the gradient, since AdamW's rescaling would leave the allowed space; second moments X X^T are summed
exactly, where an iterative SVD approximates their eigenvectors.

Symbols: d  inputs of a layer (a convolution: of one window); r  rank; S  = X X^T, summed over a step.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, assert_never

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.config.sections import IncrementConfig
from iumad.errors import ConfigError
from iumad.features.cache import Batch, FeatureStore
from iumad.models.base import Detector, in_chunks
from iumad.training.checkpoint import with_rows

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
    detector: Detector, store: FeatureStore, sample_ids: Sequence[str], seed: int
) -> dict[str, Float[Tensor, "d d"]]:
    """S of every layer over a step's training images (float64): inputs of the loss and of the maps.

    Both in evaluation mode, so without feature jitter and dropout; `seed` draws the noise that a loss adds itself
    (`cdad-feat`). Layers that got no input are left out.
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
    device = detector.device
    generator = torch.Generator(device).manual_seed(seed)
    chosen = sample_ids[:: -(-len(sample_ids) // IMAGES)]
    try:
        with torch.no_grad():
            for batch in in_chunks(store, chosen):
                batch = batch.to(device)
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


Memory = dict[str, Any]


def remember(
    detector: Detector,
    store: FeatureStore,
    sample_ids: Sequence[str],
    config: IncrementConfig,
    earlier: Memory,
    seed: int,
) -> Memory:
    """Memory after a step, from the step's trained detector and its training samples.

    Parameters
    ----------
    detector : trained on this step; its parameters are not changed
    store, sample_ids : the step's own training data
    config : decides what is remembered
    earlier : memory of the steps before, {} for the base step
    seed : chooses replayed images, and draws the noise of losses
    """
    match config.strategy:
        case "projection":
            now = _gram_matrices(detector, store, sample_ids)
        case "ewc":
            now = _squared_gradients(detector, store, sample_ids, seed)
        case "svd":
            moments = second_moments(detector, store, sample_ids, seed)
            return earlier | {
                name: grow_basis(moment, earlier.get(name), config.svd_threshold)
                for name, moment in moments.items()
            }
        case "replay":
            return {
                "replay": [
                    *earlier.get("replay", []),
                    *_choose(store, sample_ids, config.replay_images, seed),
                ]
            }
        case "feature-replay":
            kept = _choose(store, sample_ids, config.replay_images, seed)
            return with_features(earlier, store.batch(kept))
        case "none" | "joint":
            return {}
        case _:
            assert_never(config.strategy)
    return {
        key: value + with_rows(earlier[key], len(value)) if key in earlier else value
        for key, value in now.items()
    }


def projections(memory: Memory) -> dict[str, Float[Tensor, "d d"]]:
    """IUF's projection P = V diag(w) V^T for every protected layer, from the merged second moments.

    V are the right singular vectors of all earlier features (n x d, stacked over steps) by falling singular value;
    w_i = ln(i + 1) / ln d for i = 0 ... d - 1: the leading direction is frozen, the last one is free. With fewer
    rows than d the remaining directions are an arbitrary basis of the null space, as free as their place allows.
    """
    matrices = {}
    for name, gram in memory.items():
        dim = len(gram)
        _, vectors = torch.linalg.eigh(gram)
        weights = torch.arange(1, dim + 1, dtype=gram.dtype).log() / math.log(dim)
        falling = vectors.flip(1)
        matrices[name] = ((falling * weights) @ falling.T).float()
    return matrices


def with_features(earlier: Memory, batch: Batch) -> Memory:
    """A memory with the features (float16) and categories of more images; the images are not kept."""
    kept = {f"features {m}": x.half() for m, x in batch.features.items()}
    kept["categories"] = batch.category
    joined = {key: torch.cat([earlier[key], x]) if earlier else x for key, x in kept.items()}
    return joined | {"replay": [f"remembered {i}" for i in range(len(joined["categories"]))]}


class Rehearsal:
    """A step's store beside remembered features: a sample whose name a memory has comes from it, without image.

    Parameters
    ----------
    store : FeatureStore
    memory : Memory
        Of the strategy `feature-replay`.
    """

    def __init__(self, store: FeatureStore, memory: Memory) -> None:
        self.store, self.memory = store, memory
        self.places = {name: i for i, name in enumerate(memory["replay"])}

    def load(self, sample_ids: Sequence[str], device: torch.device | None = None) -> None:
        """Keep the inputs of the store's samples in memory."""
        self.store.load([name for name in sample_ids if name not in self.places], device)

    def batch(self, sample_ids: Sequence[str], device: torch.device | None = None) -> Batch:
        """Features and categories of these samples, in order; no images."""
        samples = [self._one(sample_id) for sample_id in sample_ids]
        features = {m: torch.cat([x.features[m] for x in samples]) for m in self.store.modalities}
        batch = Batch(features, {}, torch.cat([x.category for x in samples]))
        return batch.to(device or torch.device("cpu"))

    def _one(self, sample_id: str) -> Batch:
        if sample_id not in self.places:
            return self.store.batch([sample_id])
        row = slice(self.places[sample_id], self.places[sample_id] + 1)
        features = {m: self.memory[f"features {m}"][row].float() for m in self.store.modalities}
        return Batch(features, {}, self.memory["categories"][row])


class Guard:
    """Applies a memory to one step's training.

    Parameters
    ----------
    detector : the model at the start of the step; a copy of what is trained of its weights is kept
    config, memory : strategy and what is remembered; an empty memory protects nothing
    """

    def __init__(self, detector: nn.Module, config: IncrementConfig, memory: Memory) -> None:
        self.config, self.memory = config, memory
        self._parameters = _trained(detector)
        self._old = {name: p.detach().clone() for name, p in self._parameters.items()}
        device = next(detector.parameters()).device
        self._importance = {
            name: with_rows(memory[name], len(p)).to(device)
            for name, p in self._parameters.items()
            if config.strategy == "ewc" and name in memory
        }
        projected = projections(memory) if config.strategy == "projection" else {}
        self._projections = {
            f"{layer}.{part}": p.to(device)
            for layer, p in projected.items()
            for part in ("weight", "bias")
        }
        bases = memory if config.strategy == "svd" else {}
        self._bases = {name: basis.to(device, torch.float32) for name, basis in bases.items()}
        self._watched = self._parameters if bases else self._projections

    def inputs(self, store: FeatureStore) -> FeatureStore | Rehearsal:
        """Where a step's batches come from: the store, beside remembered features where there are some."""
        return Rehearsal(store, self.memory) if "categories" in self.memory else store

    @property
    def replayed(self) -> list[str]:
        """Samples of earlier categories that join the step's training data."""
        return self.memory.get("replay", [])

    def penalty(self) -> dict[str, Float[Tensor, ""]]:
        """Elastic penalty `ewc`: weight / 2 * sum of F_i (p_i - p_i old)^2; nothing for other strategies."""
        if not self._importance:
            return {}
        terms = [
            (importance * (self._parameters[name] - self._old[name]).square()).sum()
            for name, importance in self._importance.items()
        ]
        return {"ewc": 0.5 * self.config.ewc_weight * torch.stack(terms).sum()}

    @torch.no_grad()
    def pull(self) -> None:
        """Mix `pull` of the old weights into the present ones (IUF does so before every forward pass)."""
        if self.config.pull:
            parameters: list[Tensor] = list(self._parameters.values())
            torch._foreach_lerp_(parameters, list(self._old.values()), self.config.pull)

    @contextmanager
    def projected(self) -> Iterator[None]:
        """Around an optimizer step: its update of protected layers is projected.

        For SGD this is IUF's projection of the gradient; for AdamW it is the update that is projected, since
        projecting a gradient before it is rescaled per element would not keep the directions. With `svd` all
        parameters that have no basis keep their values.
        """
        before = {name: self._parameters[name].detach().clone() for name in self._watched}
        yield
        with torch.no_grad():
            for name, start in before.items():
                p = self._parameters[name]
                if name in self._projections:
                    p.copy_(start + self._projections[name] @ (p - start))
                elif name in self._bases:
                    p.copy_(start + outside_of(p - start, self._bases[name]))
                else:
                    p.copy_(start)


@torch.no_grad()
def _gram_matrices(
    detector: Detector, store: FeatureStore, sample_ids: Sequence[str]
) -> dict[str, Float[Tensor, "d d"]]:
    """Second moments of each protected layer's output, averaged over tokens: one row an image (float64)."""
    layers = detector.protected_layers()
    if not layers:
        raise ConfigError(
            f"increment.strategy projection: {type(detector).__name__} has no layers that it could protect"
        )
    rows: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles = [
        layer.register_forward_hook(
            lambda _m, _i, out, name=name: rows[name].append(out.mean(dim=1).double().cpu())
        )
        for name, layer in layers.items()
    ]
    detector.eval()
    for batch in in_chunks(store, sample_ids):
        detector(batch.to(detector.device))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).T @ torch.cat(parts) for name, parts in rows.items()}


def _squared_gradients(
    detector: Detector, store: FeatureStore, sample_ids: Sequence[str], seed: int
) -> dict[str, Tensor]:
    """Mean squared gradient of the loss per parameter, one image at a time (empirical Fisher information)."""
    detector.eval()
    device = detector.device
    generator = torch.Generator(device).manual_seed(seed)
    parameters = _trained(detector)
    total = {name: torch.zeros_like(p, device="cpu") for name, p in parameters.items()}
    for sample_id in sample_ids:
        detector.zero_grad()
        terms = detector.losses(store.batch([sample_id]).to(device), generator)
        torch.stack(list(terms.values())).sum().backward()
        for name, p in parameters.items():
            if p.grad is not None:
                total[name] += p.grad.cpu().square() / len(sample_ids)
    detector.zero_grad()
    return total


def _choose(
    store: FeatureStore, sample_ids: Sequence[str], per_category: int, seed: int
) -> list[str]:
    index = store.dataset.index.set_index("sample_id").loc[list(sample_ids)].reset_index()
    chosen = index.groupby("category", sort=False)["sample_id"].apply(
        lambda ids: ids.sample(min(per_category, len(ids)), random_state=seed)
    )
    return list(chosen)


def _trained(detector: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name, without the frozen ones, which need no protection."""
    return {name: p for name, p in detector.named_parameters() if p.requires_grad}
