"""Protection of earlier inputs: bases by hand and by SVD, and updates that leave earlier outputs alone."""

import pytest
import tiny
import torch
from test_baselines_interface import make, run
from torch import nn

from iumad.config.sections import IncrementConfig
from iumad.models.build import make_detector
from iumad.training.increments import (
    Guard,
    grow_basis,
    input_rows,
    linear_layers,
    outside_of,
    remember,
    second_moments,
)


def low_rank(generator, rank: int, shared: torch.Tensor | None = None, d: int = 24) -> torch.Tensor:
    """Inputs of a task, one column each, of this rank; some directions may be another task's."""
    directions = torch.randn(d, rank, generator=generator, dtype=torch.float64)
    if shared is not None:
        directions[:, : shared.shape[1]] = shared
    return directions @ torch.randn(rank, 40, generator=generator, dtype=torch.float64)


def tasks() -> tuple[torch.Tensor, torch.Tensor]:
    """Two tasks of rank 6 that share 3 directions."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    return low_rank(generator, 6, shared), low_rank(generator, 6, shared)


def test_bases_are_orthonormal_and_span_both_tasks():
    first, second = tasks()
    basis = None
    for x, rank in ((first, 6), (second, 9)):
        basis = grow_basis(x @ x.T, basis, 1.0)
        assert basis.shape == (24, rank)
        assert (basis.T @ basis - torch.eye(rank)).abs().max() < 1e-12
    for x in (first, second):
        assert (x - basis @ (basis.T @ x)).norm() < 1e-6 * x.norm()


def test_new_vectors_are_left_singular_vectors_of_what_is_left():
    first, second = tasks()
    old = grow_basis(first @ first.T, None, 1.0)
    grown = grow_basis(second @ second.T, old, 1.0)
    rest = second - old @ (old.T @ second)
    left, values, _ = torch.linalg.svd(rest, full_matrices=False)
    left = left[:, values > 1e-9]
    assert torch.allclose(grown[:, 6:] @ grown[:, 6:].T, left @ left.T, atol=1e-8)


def test_the_threshold_by_hand():
    # energies 4, 3, 2, 1 of 10: 70 % needs two vectors, 71 % three
    moment = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64).diag()
    assert grow_basis(moment, None, 0.70).shape == (4, 2)
    assert grow_basis(moment, None, 0.71).shape == (4, 3)
    # an earlier basis that holds the first explains 40 %: one more reaches 70 %, none is needed for 40 %
    first = torch.eye(4, 1, dtype=torch.float64)
    assert grow_basis(moment, first, 0.70).shape == (4, 2)
    assert grow_basis(moment, first, 0.40).shape == (4, 1)
    assert grow_basis(torch.zeros(4, 4, dtype=torch.float64), first, 0.9).shape == (4, 1)


def test_an_update_outside_the_basis_does_not_answer_earlier_inputs():
    first, second = tasks()
    basis = grow_basis(second @ second.T, grow_basis(first @ first.T, None, 1.0), 1.0)
    update = torch.randn(5, 24, dtype=torch.float64)
    kept = outside_of(update, basis)
    assert (kept @ torch.cat([first, second], dim=1)).abs().max() < 1e-6
    assert kept.norm() > 0.5 * update.norm()  # 15 of 24 directions are free


def test_a_convolutions_rows_are_its_windows():
    layer = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False)
    x = torch.randn(2, 3, 6, 6)
    rows = input_rows(layer, x)
    expected = layer(x).flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(rows @ layer.weight.flatten(1).T, expected, rtol=1e-5, atol=1e-5)


class Toy(nn.Module):
    """Two linear layers whose inputs lie in subspaces, for Guard."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_training_the_second_task_does_not_move_the_first_ones_outputs(optimizer):
    torch.manual_seed(0)
    toy = Toy()
    old, new = (x.T.float() / x.norm(dim=0).mean().float() for x in tasks())
    hidden = toy.first(old).detach()
    memory = {
        f"{name}.weight": grow_basis((x.double().T @ x.double()), None, 1.0)
        for name, x in (("first", old), ("second", hidden))
    }
    guard = Guard(toy, IncrementConfig(strategy="svd"), memory)
    before_old, before_new = toy(old).detach(), toy(new).detach()
    biases = [p.detach().clone() for p in (toy.first.bias, toy.second.bias)]
    steps = optimizer(toy.parameters(), lr=0.01)
    for _ in range(20):
        (toy(new) - 1).square().mean().backward()
        with guard.projected():
            steps.step()
        steps.zero_grad()
    assert (toy(old) - before_old).abs().max() < 1e-6
    assert (toy(new) - before_new).abs().max() > 1e-3
    assert torch.equal(toy.first.bias, biases[0])
    assert torch.equal(toy.second.bias, biases[1])


@pytest.fixture(scope="module")
def store():
    return tiny.open_store(run("cdad-feat", "rgb"))


def trainable(store):
    torch.manual_seed(0)
    spec = tiny.spec("rgb", channels=store.backbone.channels)
    return make_detector(run("cdad-feat", "rgb").model, spec, 3)


def test_memories_are_bases_of_all_layers_and_grow(store):
    detector, config = trainable(store), IncrementConfig(strategy="svd", svd_threshold=0.9)
    first, second = (tiny.train_ids(store, name) for name in tiny.CATEGORIES[:2])
    memory = remember(detector, store, first, config, {}, 0)
    assert memory.keys() == linear_layers(detector).keys()
    merged = remember(detector, store, second, config, memory, 0)
    for name, basis in merged.items():
        rank = basis.shape[1]
        assert memory[name].shape[1] <= rank <= len(basis)
        assert (basis.T @ basis - torch.eye(rank)).abs().max() < 1e-10
        kept = basis @ (basis.T @ memory[name])
        torch.testing.assert_close(kept, memory[name], rtol=0, atol=1e-10)


def test_moments_are_repeatable_and_leave_the_detector_alone(store):
    detector = trainable(store)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    ids = tiny.train_ids(store, tiny.CATEGORIES[0])
    first, second = (second_moments(detector, store, ids, seed=3) for _ in range(2))
    assert tiny.same_tensors(first, second)
    assert tiny.same_tensors(before, detector.state_dict())


def test_depthwise_layers_have_no_basis_and_stay():
    detector = make("mambaad-lite")
    names = linear_layers(detector)
    assert any(name.endswith("project_in.weight") for name in names)
    assert not any("state_space.convolution" in name for name in names)
