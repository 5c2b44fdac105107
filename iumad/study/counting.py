"""What a model consists of, counted part by part; and which term of the loss trains which part.

`model_card` counts parameters and operations of each part on one forward pass. A multiplication and an addition
are two operations. Matrix products, convolutions, attention and the scan count; what works element by element
(norms, activations, softmax, dropout, interpolation) does not.

Nothing here depends on what a model has learnt, so weights are random. `iumad.study.efficiency` measures time.
"""

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from iumad.config.schema import RunConfig, StudyConfig
from iumad.errors import ConfigError
from iumad.features.backbone import Backbone
from iumad.features.cache import Batch
from iumad.models.base import InputSpec
from iumad.models.build import make_detector, method_class, with_random_weights

INSIDE = ("bottleneck", "fusion")  # shown part by part where gradients are looked at


def model_card(run: RunConfig, n_categories: int) -> pd.DataFrame:
    """One row for each part of a run's model; the last is the sum.

    The model is made with random weights, so no weights and no data need to be at hand.

    Parameters
    ----------
    run : RunConfig
    n_categories : int
        Logits.

    Returns
    -------
    DataFrame
        part, parameters (the sum counts the backbone once), trained (of those), gflops (10^9 operations of a
        forward pass for one image of all modalities). A method that encodes the images itself has no backbone.

    Raises
    ------
    ConfigError
        The run's model has no network.
    """
    if not method_class(run.model).trained:
        raise ConfigError(f"method {run.method!r}: a {run.model.kind} has no parts to count")
    images = dict.fromkeys(run.modalities, torch.rand(1, 3, *(run.data.image_size,) * 2))
    parts: dict[str, nn.Module] = {}
    features: dict[str, Tensor] = {}
    operations, channels = {}, 0
    if method_class(run.model).reads_features:
        backbone = Backbone(run.features.model_copy(update={"weights": "random"}))
        with _counter() as counter:
            features = {modality: backbone(x) for modality, x in images.items()}
        parts["backbone"], channels = backbone, backbone.channels
        operations["backbone"] = _total(counter, "Global")
    model = with_random_weights(run.model)
    detector = make_detector(model, InputSpec.of(run, channels), n_categories).eval()
    with _counter() as counter, torch.no_grad():
        detector(Batch(features, images, torch.zeros(1, dtype=torch.long)))
    for name, child in detector.named_children():
        several = isinstance(child, nn.ModuleDict | nn.ModuleList)  # one for each modality
        inner = child.named_children() if several else [("", child)]
        parts |= {f"{name}.{key}".rstrip("."): module for key, module in inner}
    operations |= _shares(counter, type(detector).__name__, parts.keys() - {"backbone"})
    table = pd.DataFrame([_row(name, part, operations[name]) for name, part in parts.items()])
    table = table[table["parameters"] > 0]
    total = table.drop(columns="part").sum().to_dict()
    return pd.concat([table, pd.DataFrame([{"part": "all", **total}])], ignore_index=True).astype(
        {"parameters": int, "trained": int}
    )


def network_run(study: StudyConfig) -> RunConfig:
    """The run of a study whose model a page shows: the last method with a network, the last modality.

    Raises
    ------
    ConfigError
        No method has a network.
    """
    runs = [run for run in study.runs() if method_class(run.model).trained]
    if not runs:
        raise ConfigError(f"profile {study.profile!r}: no method has a network")
    method = runs[-1].method
    return study.select(methods=[method], modalities=study.modalities[-1:]).runs()[0]


def gradient_reach(run: RunConfig, n_categories: int) -> pd.DataFrame:
    """Which term of the loss (Eq. 10) trains which part of a run's model, found by a backward pass of each.

    Returns
    -------
    DataFrame
        One row for each part with parameters (index `part`), one column for each term: the share of the part's
        parameter tensors that the term's gradient reaches, in [0, 1].
    """
    grid, channels, model = run.features.grid, 8, with_random_weights(run.model)
    if "neighbour_mask" in type(model).model_fields:
        model = model.model_copy(update={"neighbour_mask": None})
    detector = make_detector(model, InputSpec.of(run, channels), n_categories).train()
    generator = torch.Generator().manual_seed(0)
    size = run.data.image_size
    batch = Batch(
        {m: torch.randn(4, channels, grid, grid, generator=generator) for m in run.modalities},
        {m: torch.rand(4, 3, size, size, generator=generator) for m in run.modalities},
        torch.arange(4) % n_categories,
    )
    parts = {
        f"{name}.{key}".rstrip("."): module
        for name, child in detector.named_children()
        for key, module in (
            child.named_children()
            if name in INSIDE or isinstance(child, nn.ModuleDict | nn.ModuleList)
            else [("", child)]
        )
        if list(module.parameters())
    }
    columns = {}
    for term in detector.losses(batch, generator, base=True):
        detector.zero_grad()
        detector.losses(batch, generator, base=True)[term].backward()
        columns[term] = {name: _reached(part) for name, part in parts.items()}
    return pd.DataFrame(columns).rename_axis("part")


def _reached(part: nn.Module) -> float:
    gradients = [p.grad for p in part.parameters()]
    return sum(g is not None and bool(g.abs().max() > 0) for g in gradients) / len(gradients)


def scan_operations(batch: int, dim: int, length: int, state: int) -> int:
    """Operations of a selective scan.

    Per position and channel the product Delta u and the skip D u with its sum (3); per state Delta A, its
    exponential, (Delta u) B, decay times state plus input, and the product with C with its sum (7).
    """
    return batch * dim * length * (7 * state + 3)


def attention_operations(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]
) -> int:
    """Operations of q k^T and of its product with v; shapes are batch, head, token, width."""
    batch, heads, tokens, width = query
    return 2 * batch * heads * tokens * key[2] * (width + value[3])


@contextmanager
def _counter() -> Iterator[FlopCounterMode]:
    """Torch's counter, with what it does not know: the scan, and the attention kernel of the CPU.

    Torch's own attention layer, which CLIP has, takes a way of single operations: its fast one is not counted.
    """
    mapping: dict[Any, Callable[..., int]] = {
        torch.ops.iumad.selective_scan: _count_scan,
        torch.ops.iumad.selective_scan_triton: _count_scan,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_attention,
    }
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False, depth=8, custom_mapping=mapping) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _count_scan(u: tuple[int, ...], _delta: Any, decay: tuple[int, ...], *_: Any, **__: Any) -> int:
    batch, dim, length = u
    return scan_operations(batch, dim, length, decay[1])


def _count_attention(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    return attention_operations(query, key, value)


def _shares(counter: FlopCounterMode, whole: str, parts: Set[str]) -> dict[str, int]:
    """Operations of each part; one of which only inner modules are called gets what no other part does."""
    counted = counter.get_flop_counts()
    shares = {part: _total(counter, f"{whole}.{part}") for part in parts}
    for part in parts:
        path = f"{whole}.{part}"
        if path not in counted and any(name.startswith(f"{path}.") for name in counted):
            shares[part] = _total(counter, whole) - sum(shares.values())
    return shares


def _total(counter: FlopCounterMode, name: str) -> int:
    return sum(counter.get_flop_counts().get(name, {}).values())


def _row(name: str, part: nn.Module, operations: int) -> dict[str, Any]:
    parameters = list(part.parameters())
    return {
        "part": name,
        "parameters": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
        "gflops": operations / 1e9,
    }
