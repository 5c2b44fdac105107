import pytest
import tiny
import torch

from iumad.config.methods import MemoryBankConfig
from iumad.errors import CheckpointError
from iumad.features.cache import Batch
from iumad.models.memory_bank import MemoryBank, greedy_coreset
from iumad.training.checkpoint import load_checkpoint, save_checkpoint


def batch(*patches: list[list[float]], category: int = 0) -> Batch:
    """Images of 2 x 2 patches with two channels, given patch by patch."""
    features = torch.tensor(patches).view(len(patches), 2, 2, 2).permute(0, 3, 1, 2)
    images = torch.zeros(len(patches), 3, 4, 4)
    return Batch(
        {"rgb": features.contiguous()},
        {"rgb": images},
        torch.full((len(patches),), category),
    )


FIRST = [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]
SECOND = [[0.0, 2.0], [1.0, 2.0], [2.0, 2.0], [3.0, 2.0]]  # each 2 from its nearest in FIRST
TEST = [[0.0, 0.0], [0.0, 5.0], [3.0, -4.0], [1.0, 1.0]]  # distances 0, 3, 4, 1 from both together


def new(modality: str = "rgb", **config) -> MemoryBank:
    spec = tiny.spec(modality, channels=2, grid=2, image_size=2)
    return MemoryBank(MemoryBankConfig(**config), spec, n_categories=2)


def fit(bank: MemoryBank, samples: Batch) -> None:
    store = tiny.Given(samples)
    bank.fit(store, store.ids, torch.Generator().manual_seed(0))


def fitted(**config) -> MemoryBank:
    bank = new(**config)
    fit(bank, batch(FIRST, SECOND))
    return bank


def test_distances_by_hand():
    (anomaly_map,) = fitted().anomaly_maps(batch(TEST))
    # in units of the mean distance between the two training images, 2
    assert torch.equal(anomaly_map, torch.tensor([[0.0, 1.5], [2.0, 0.5]]))


def test_more_neighbours_are_averaged():
    (anomaly_map,) = fitted(neighbours=2).anomaly_maps(batch(TEST))
    # (0, 0): 0 and 1; (0, 5): 3 and sqrt(10); (3, -4): 4 and sqrt(17); (1, 1): 1 and 1
    expected = torch.tensor([[0.5, (3 + 10**0.5) / 2], [(4 + 17**0.5) / 2, 1.0]]) / 2
    torch.testing.assert_close(anomaly_map, expected)
    assert torch.isfinite(fitted(neighbours=99).anomaly_maps(batch(TEST))).all()  # bank holds 8


def test_modalities_are_added():
    modalities = ("rgb+depth", "rgb", "depth")
    bank, *alone = (MemoryBank(MemoryBankConfig(), tiny.spec(m), 3) for m in modalities)
    for each in (bank, *alone):
        fit(each, tiny.batch(size=6))
    test = tiny.batch(size=1, seed=1)
    maps = [each.anomaly_maps(test) for each in (bank, *alone)]
    torch.testing.assert_close(maps[0], maps[1] + maps[2])
    assert maps[0].shape == (1, tiny.SIZE, tiny.SIZE)


def test_every_image_is_compared_with_its_own_category():
    bank = fitted()
    fit(bank, batch(TEST, SECOND, category=1))
    assert bank.anomaly_maps(batch(TEST, category=1)).max() == 0
    assert bank.anomaly_maps(batch(TEST, category=0)).max() > 0


def test_an_unknown_category_is_an_error():
    with pytest.raises(CheckpointError, match="category index 2 was never trained"):
        fitted().anomaly_maps(batch(TEST, category=2))


def test_the_state_is_the_whole_model(tmp_path):
    bank = fitted()
    save_checkpoint(tmp_path / "bank.pt", {"key": {}, "detector": bank.state_dict()})
    other = new()
    other.load_state_dict(load_checkpoint(tmp_path / "bank.pt", {})["detector"])
    assert torch.equal(other.anomaly_maps(batch(TEST)), bank.anomaly_maps(batch(TEST)))


def test_a_coreset_takes_one_patch_of_every_cluster():
    generator = torch.Generator().manual_seed(0)
    centres = 100 * torch.eye(6)
    patches = (centres[:, None] + torch.randn(6, 20, 6, generator=generator)).flatten(0, 1)
    chosen = greedy_coreset(patches, 6, generator)
    assert sorted((chosen // 20).tolist()) == [0, 1, 2, 3, 4, 5]


def test_a_coreset_covers_within_twice_the_best_radius():
    # farthest-point selection: covering radius at most twice the optimum (Gonzalez 1985); for the
    # nine points 0 ... 8 on a line and three centres the optimum is 1 (centres 1, 4, 7)
    for seed in range(10):
        points = torch.arange(9.0)[:, None]
        chosen = greedy_coreset(points, 3, torch.Generator().manual_seed(seed))
        assert torch.cdist(points, points[chosen]).min(dim=1).values.max() <= 2


def test_a_coreset_of_wide_features_is_chosen_on_a_projection():
    generator = torch.Generator().manual_seed(0)
    centres = 100 * torch.eye(4, 200)
    patches = (centres[:, None] + torch.randn(4, 5, 200, generator=generator)).flatten(0, 1)
    chosen = greedy_coreset(patches, 4, generator)
    assert sorted((chosen // 5).tolist()) == [0, 1, 2, 3]


def test_the_share_of_a_coreset():
    bank = fitted(coreset=0.5)
    assert bank.banks["0:rgb"].shape == (4, 2)
    assert fitted(coreset=1e-6).banks["0:rgb"].shape == (1, 2)
    assert fitted().banks["0:rgb"].shape == (8, 2)


def test_a_single_training_image_is_measured_against_itself():
    # there is no second image to give the unit of distance; maps must stay finite
    bank = new()
    fit(bank, batch(FIRST))
    assert torch.isfinite(bank.anomaly_maps(batch(TEST))).all()
