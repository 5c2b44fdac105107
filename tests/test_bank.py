"""Banks by hand, coresets against the plain algorithm, and a memory of fixed size that grows by steps."""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iumad.config.methods import BankConfig, UnifiedBankConfig
from iumad.errors import CheckpointError
from iumad.features.cache import Batch
from iumad.models.bank import (
    Bank,
    PatchMemory,
    UnifiedBank,
    distance_between_images,
    greedy_coreset,
    nearest_patches,
)
from iumad.training.checkpoint import load_checkpoint, load_grown, save_checkpoint


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


def new(modality: str = "rgb", **config) -> Bank:
    spec = tiny.spec(modality, channels=2, grid=2, image_size=2)
    return Bank(BankConfig(**config), spec, n_categories=2)


def fit(bank: PatchMemory, samples: Batch) -> None:
    store = tiny.Given(samples)
    bank.fit(store, store.ids, torch.Generator().manual_seed(0))


def fitted(**config) -> Bank:
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
    bank, *alone = (Bank(BankConfig(), tiny.spec(m), 3) for m in modalities)
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


def test_a_coreset_covers_within_twice_the_best_radius():
    # farthest-point selection: covering radius at most twice the optimum (Gonzalez 1985); for the
    # nine points 0 ... 8 on a line and three centres the optimum is 1 (centres 1, 4, 7)
    for seed in range(10):
        points = torch.arange(9.0)[:, None]
        chosen = greedy_coreset(points, 3, torch.Generator().manual_seed(seed))
        assert torch.cdist(points, points[chosen]).min(dim=1).values.max() <= 2


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


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 700), st.integers(1, 40), st.sampled_from([3, 200]))
def test_the_pool_of_a_coreset_changes_no_choice(seed, size, keep, channels):
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(size, channels, generator=generator)
    chosen = greedy_coreset(patches, keep, torch.Generator().manual_seed(seed))
    if keep >= size:
        assert chosen.tolist() == list(range(size))
        return
    generator.manual_seed(seed)
    if channels > 128:
        patches = patches @ torch.randn(channels, 128, generator=generator) / 128**0.5
    expected = [int(torch.randint(size, (), generator=generator))]
    for _ in range(keep - 1):
        distances = torch.cdist(patches, patches[expected]).min(dim=1).values
        expected.append(int(distances.argmax()))
    assert chosen.tolist() == expected


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 9))
def test_nearest_patches_are_those_of_all_distances(seed, size, neighbours):
    generator = torch.Generator().manual_seed(seed)
    queries, bank = (
        torch.randn(7, 5, generator=generator),
        torch.randn(size, 5, generator=generator),
    )
    distances, indices = nearest_patches(queries, bank, neighbours)
    expected = (queries[:, None] - bank).norm(dim=-1).sort(dim=1)
    k = min(neighbours, size)
    torch.testing.assert_close(distances, expected.values[:, :k], rtol=1e-6, atol=1e-6)
    assert torch.equal(indices, expected.indices[:, :k])


def test_a_stored_patch_is_at_distance_zero_however_large_it_is():
    bank = 1e4 + torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert nearest_patches(bank[:5], bank, 1)[0].max() == 0


def test_standardised_features_weigh_every_channel_alike():
    samples = batch(FIRST, SECOND)
    wide = batch(FIRST, SECOND)
    wide.features["rgb"][:, 1] *= 1000
    maps = []
    for each in (samples, wide):
        bank = new(standardise=True)
        fit(bank, each)
        test = batch(TEST)
        test.features["rgb"][:, 1] *= 1000 if each is wide else 1
        maps.append(bank.anomaly_maps(test))
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-4, atol=1e-4)


# --- one memory for all categories --------------------------------------------------------------


def unified(patches: int = 4096, n_categories: int = 2, **sizes) -> UnifiedBank:
    return UnifiedBank(UnifiedBankConfig(patches=patches), tiny.spec("rgb", **sizes), n_categories)


SMALL = {"channels": 2, "grid": 2, "image_size": 2}
STEPS = [tiny.batch("rgb", size=4, seed=seed) for seed in range(3)]


def of_category(samples: Batch, category: int) -> Batch:
    return Batch(samples.features, samples.images, torch.full((len(samples),), category))


def test_a_unified_bank_is_one_bank_of_all_categories_while_there_is_room():
    bank = unified(**SMALL)
    fit(bank, batch(FIRST, SECOND, category=0))
    fit(bank, batch(TEST, TEST, category=1))  # a distance of 0 between its two images
    (anomaly_map,) = bank.anomaly_maps(batch([[3.0, -4.0], [1.0, 1.0], [9.0, 0.0], [0.0, 9.0]]))
    # nearest of all twelve: 0, 0, (3, 0) at 6, (0, 5) at 4; the scale is the mean of 2 and 0
    torch.testing.assert_close(anomaly_map, torch.tensor([[0.0, 0.0], [6.0, 4.0]]))


def test_it_is_not_told_the_category():
    bank = unified(**SMALL)
    fit(bank, batch(FIRST, SECOND, category=0))
    for category in (0, 1):
        assert torch.equal(
            bank.anomaly_maps(batch(TEST, category=category)), bank.anomaly_maps(batch(TEST))
        )
    assert not UnifiedBank.needs_category


def test_patches_vote_for_the_category():
    bank = unified(**SMALL)
    fit(bank, batch(FIRST, category=0))
    fit(bank, batch(TEST, category=1))
    (logits,) = bank.category_logits(batch([[0.1, 0.0], [2.9, 0.0], [2.0, 0.0], [0.0, 4.0]]))
    # (0, 0) is in both, the first one counts; (3, 0) and (2, 0) are of category 0, (0, 5) of 1: votes 3 and 1
    torch.testing.assert_close(logits.exp(), torch.tensor([4 / 6, 2 / 6]))


def test_it_never_outgrows_its_size_and_remembers_every_category():
    bank = unified(patches=20, n_categories=3)
    sizes = []
    for category, samples in enumerate(STEPS):
        fit(bank, of_category(samples, category))
        sizes.append(len(bank.banks["rgb"]))
        assert set(bank.categories["rgb"].tolist()) == set(range(category + 1))
    assert sizes == [20, 20, 20]


def test_with_room_for_all_learning_more_brings_no_patch_farther_away():
    bank = unified(n_categories=3)
    fit(bank, of_category(STEPS[0], 0))
    test = tiny.batch("rgb", size=2, seed=9)
    before = bank.residual_maps(test)["rgb"] * bank.scales["rgb"]
    for category in (1, 2):
        fit(bank, of_category(STEPS[category], category))
        after = bank.residual_maps(test)["rgb"] * bank.scales["rgb"]
        assert (after <= before + 1e-5).all()  # they are multiplied by another scale
        before = after


def test_a_grown_bank_is_the_same_every_time_and_goes_on_from_a_checkpoint(tmp_path):
    whole, parts = unified(patches=20), unified(patches=20, n_categories=1)
    for category, samples in enumerate(STEPS[:2]):
        fit(whole, of_category(samples, category))
    fit(parts, of_category(STEPS[0], 0))
    save_checkpoint(tmp_path / "bank.pt", {"key": {}, "detector": parts.state_dict()})
    later = unified(patches=20)
    load_grown(later, load_checkpoint(tmp_path / "bank.pt", {})["detector"])
    fit(later, of_category(STEPS[1], 1))
    test = tiny.batch("rgb", size=2, seed=9)
    assert torch.equal(later.anomaly_maps(test), whole.anomaly_maps(test))
    assert torch.equal(later.category_logits(test), whole.category_logits(test))


def test_the_size_of_a_bank_by_hand():
    bank = fitted()
    assert bank.size_bytes() == 8 * 2 * 4 + 4  # 8 patches of 2 float32; the unit of residuals
    memory = unified(**SMALL)
    fit(memory, batch(FIRST, SECOND))
    assert memory.size_bytes() == bank.size_bytes() + 8 * 8  # and a category for each patch


def test_half_the_images_are_measured_against_the_others():
    images = torch.tensor([[[0.0], [1.0]], [[4.0], [6.0]]])
    assert distance_between_images(images) == 3.5  # 0 to 4 and 1 to 4


def test_an_image_s_map_does_not_depend_on_the_batch_to_the_last_bit():
    for bank in (
        Bank(BankConfig(), tiny.spec(), 3),
        UnifiedBank(UnifiedBankConfig(), tiny.spec(), 3),
    ):
        fit(bank, tiny.batch(size=12))
        test = tiny.batch(size=6, seed=1)
        store = tiny.Given(test)
        alone = [bank.anomaly_maps(store.batch([name])) for name in store.ids]
        assert torch.equal(bank.anomaly_maps(test), torch.cat(alone))
