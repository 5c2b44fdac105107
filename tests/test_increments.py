import math

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from iumad.config.sections import IncrementConfig
from iumad.training.increments import Guard, projections, remember

LN2, LN3 = math.log(2), math.log(3)


@pytest.fixture(scope="module")
def store():
    return tiny.open_store(tiny.run())


@pytest.fixture
def detector(store):
    return tiny.trainable(store, tiny.run()).eval()


def config(strategy: str, **changes) -> IncrementConfig:
    return IncrementConfig(strategy=strategy, **changes)


# --- projection ---------------------------------------------------------------------------------


def project(*rows: list[float]) -> torch.Tensor:
    """The projection from features given row by row."""
    stacked = torch.tensor(rows, dtype=torch.float64)
    return projections({"layer": stacked.T @ stacked})["layer"].double()


def test_in_two_dimensions_the_leading_direction_is_frozen_and_the_other_free():
    # rows vary most along x: w = (ln 1 / ln 2, ln 2 / ln 2) = (0, 1)
    torch.testing.assert_close(
        project([3.0, 0.0], [0.0, 1.0]), torch.tensor([[0.0, 0.0], [0.0, 1.0]]).double()
    )
    # most along the diagonal (1, 1) / sqrt 2: what remains is (1, -1) (1, -1)^T / 2
    torch.testing.assert_close(
        project([2.0, 2.0], [1.0, -1.0]), torch.tensor([[0.5, -0.5], [-0.5, 0.5]]).double()
    )


def test_in_three_dimensions_the_weights_are_logarithms():
    # singular values 5 (z), 3 (x), 1 (y): weights 0, ln 2 / ln 3 and 1
    projection = project([3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0])
    expected = torch.tensor([LN2 / LN3, 1.0, 0.0]).diag().double()
    torch.testing.assert_close(projection, expected, rtol=1e-6, atol=1e-6)  # stored as float32


def test_with_fewer_rows_than_dimensions():
    projection = project([0.0, 4.0, 0.0])
    direction = torch.tensor([0.0, 1.0, 0.0]).double()
    torch.testing.assert_close(projection @ direction, torch.zeros(3).double(), rtol=0, atol=1e-6)
    values = torch.linalg.eigvalsh(projection)
    expected = torch.tensor([0.0, LN2 / LN3, 1.0]).double()
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)


def test_memories_merged_over_steps_equal_one_svd_of_all_rows():
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (4, 3, 9)]
    merged = projections({"layer": sum(rows.T @ rows for rows in steps)})["layer"]
    _, _, right = np.linalg.svd(np.concatenate([rows.numpy() for rows in steps]))
    weights = np.log(np.arange(1, 7)) / np.log(6)
    np.testing.assert_allclose(merged.numpy(), right.T @ np.diag(weights) @ right, atol=1e-6)


def test_the_protected_layers_are_the_second_linears_of_the_ffns(detector):
    layers = detector.protected_layers()
    assert sorted(layers) == sorted(
        f"networks.{modality}.{part}.{i}.ffn.3"
        for modality in ("rgb", "depth")
        for part in ("encoder", "decoder")
        for i in range(2)
    )
    modules = dict(detector.named_modules())
    for name, layer in layers.items():
        assert layer is modules[name]
        assert layer.out_features == tiny.MODEL["dim"]


def test_the_memory_is_gathered_from_each_images_mean_token_and_merged(store, detector):
    first, second = (tiny.train_ids(store, name) for name in tiny.CATEGORIES[:2])
    memory = remember(detector, store, first, config("projection"), {}, 0)
    assert memory.keys() == detector.protected_layers().keys()
    name, layer = "networks.depth.decoder.1.ffn.3", detector.networks["depth"].decoder[1].ffn[3]
    rows = []
    handle = layer.register_forward_hook(lambda _m, _i, out: rows.append(out.mean(dim=1)))
    for sample_id in first:
        with torch.no_grad():
            detector(store.batch([sample_id]))
    handle.remove()
    stacked = torch.cat(rows).double()
    # batches of other sizes round differently
    torch.testing.assert_close(memory[name], stacked.T @ stacked, rtol=1e-4, atol=1e-5)

    merged = remember(detector, store, second, config("projection"), memory, 0)
    alone = remember(detector, store, second, config("projection"), {}, 0)
    for key, value in merged.items():
        assert torch.equal(value, alone[key] + memory[key])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_updates_of_protected_layers_leave_the_leading_direction_alone(store, detector, optimizer):
    ids = tiny.train_ids(store, tiny.CATEGORIES[0])
    memory = remember(detector, store, ids, config("projection"), {}, 0)
    guard = Guard(detector, config("projection"), memory)
    before = {name: p.detach().clone() for name, p in detector.named_parameters()}
    steps = optimizer(detector.parameters(), lr=0.01)
    for _ in range(3):
        torch.stack(list(detector.losses(store.batch(ids)).values())).sum().backward()
        with guard.projected():
            steps.step()
        steps.zero_grad()
    projected = projections(memory)
    for name, p in detector.named_parameters():
        change = (p - before[name]).detach().double()
        layer = name.rpartition(".")[0]
        if layer not in memory:
            continue
        assert change.abs().max() > 1e-5
        leading = torch.linalg.eigh(memory[layer]).eigenvectors[:, -1]
        assert (leading @ change).abs().max() < 1e-5 * max(1, change.abs().max())
        # the whole change lies in the image of the projection
        inverse = torch.linalg.pinv(projected[layer].double(), rtol=1e-4)
        again = projected[layer].double() @ (inverse @ change)
        torch.testing.assert_close(again, change, rtol=0, atol=1e-5)
    moved = {name for name, p in detector.named_parameters() if not torch.equal(p, before[name])}
    assert "networks.rgb.encoder.0.ffn.0.weight" in moved


def test_an_sgd_step_is_the_projected_gradient_step():
    detector = tiny.detector("plain")
    dim, name = tiny.MODEL["dim"], "networks.rgb.encoder.0.ffn.3"
    rows = torch.randn(30, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    memory = {name: rows.T @ rows}
    guard = Guard(detector, config("projection"), memory)
    weight = dict(detector.named_parameters())[f"{name}.weight"]
    before = weight.detach().clone()
    detector.losses(tiny.batch())["fusion"].backward()
    with guard.projected():
        torch.optim.SGD(detector.parameters(), lr=0.5).step()
    expected = before - 0.5 * projections(memory)[name] @ weight.grad
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)


# --- the other strategies -----------------------------------------------------------------------


def test_nothing_is_remembered_without_a_strategy(store, detector):
    ids = tiny.train_ids(store, tiny.CATEGORIES[0])
    assert remember(detector, store, ids, config("none"), {"layer": torch.ones(1)}, 0) == {}


@pytest.mark.parametrize("strategy", ["none", "projection", "ewc", "replay"])
def test_an_empty_memory_protects_nothing(detector, strategy):
    guard = Guard(detector, config(strategy), {})
    before = {name: p.detach().clone() for name, p in detector.named_parameters()}
    with guard.projected(), torch.no_grad():
        for p in detector.parameters():
            p += 1
    guard.pull()
    assert guard.penalty() == {}
    assert guard.replayed == []
    for name, p in detector.named_parameters():
        assert torch.equal(p, before[name] + 1)


def test_the_elastic_penalty_by_hand():
    detector = tiny.detector("plain", "rgb")
    bias = detector.project_in[0].bias
    memory = {
        name: torch.zeros_like(p) if p is not bias else torch.full_like(p, 3.0)
        for name, p in detector.named_parameters()
    }
    guard = Guard(detector, config("ewc", ewc_weight=10.0), memory)
    assert guard.penalty()["ewc"].item() == 0
    with torch.no_grad():
        for p in detector.parameters():
            p += 0.5
    # 10 / 2 * sum over 16 elements of 3 * 0.5^2
    penalty = guard.penalty()["ewc"]
    assert penalty.item() == pytest.approx(5 * 16 * 3 * 0.25)
    penalty.backward()
    torch.testing.assert_close(bias.grad, torch.full_like(bias, 10 * 3 * 0.5))


def test_fisher_information_is_the_mean_squared_gradient(store, detector):
    ids = tiny.train_ids(store, tiny.CATEGORIES[0])
    memory = remember(detector, store, ids, config("ewc"), {}, 0)
    assert all(p.grad is None for p in detector.parameters())
    weight = detector.project_out["rgb"].weight
    squares = []
    for sample_id in ids:
        terms = detector.losses(store.batch([sample_id]))
        (gradient,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), weight)
        squares.append(gradient.square())
    expected = torch.stack(squares).mean(dim=0)
    torch.testing.assert_close(memory["project_out.rgb.weight"], expected)
    doubled = remember(detector, store, ids, config("ewc"), memory, 0)
    torch.testing.assert_close(doubled["project_out.rgb.weight"], 2 * expected)


def test_replay_keeps_a_few_images_of_every_earlier_category(store, detector):
    base = tiny.train_ids(store, *tiny.CATEGORIES[:2])
    settings = config("replay", replay_images=2)
    memory = remember(detector, store, base, settings, {}, 0)
    kept = memory["replay"]
    assert [name.split("/")[0] for name in kept] == [c for c in tiny.CATEGORIES[:2] for _ in "ab"]
    assert set(kept) < set(base)
    assert remember(detector, store, base, settings, {}, 0) == memory
    assert any(remember(detector, store, base, settings, {}, s) != memory for s in range(1, 6))
    last = tiny.train_ids(store, tiny.CATEGORIES[2])
    more = remember(detector, store, last, settings, memory, 0)["replay"]
    assert more[:4] == kept
    assert len(more) == 6
    assert Guard(detector, settings, memory).replayed == kept
    everything = remember(detector, store, last, config("replay", replay_images=99), {}, 0)
    assert sorted(everything["replay"]) == sorted(last)


def test_the_pull_mixes_in_the_old_weights(detector):
    guard = Guard(detector, config("none", pull=0.25), {})
    old = {name: p.detach().clone() for name, p in detector.named_parameters()}
    with torch.no_grad():
        for p in detector.parameters():
            p += 1
    guard.pull()
    for name, p in detector.named_parameters():
        torch.testing.assert_close(p.detach(), old[name] + 0.75)
    guard.pull()
    for name, p in detector.named_parameters():
        torch.testing.assert_close(p.detach(), old[name] + 0.75**2)


def test_gathering_changes_no_weight(store, detector):
    ids = tiny.train_ids(store, tiny.CATEGORIES[0])
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    for strategy in ("projection", "ewc", "replay"):
        remember(detector, store, ids, config(strategy), {}, 0)
    assert tiny.same_tensors(detector.state_dict(), before)
    hooks = [
        module._forward_hooks for module in detector.modules() if isinstance(module, nn.Linear)
    ]
    assert not any(hooks)
    assert not detector.training
