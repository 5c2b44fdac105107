import os
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import trees
from PIL import Image

from iumad.config.schema import RunConfig
from iumad.data import open_dataset
from iumad.data.prepare import Preparation, Prepared, joint_range, prepare, resize, scale
from iumad.data.sample import Sample
from iumad.errors import DataError
from iumad.features import cache as store_module
from iumad.features.cache import (
    Batch,
    FeatureStore,
    cache_size,
    prune_cache,
)
from iumad.machine import cache_folder


def make_store(folder: Path | None, modality: str = "rgb+depth", **changes) -> FeatureStore:
    """A store whose preparation measures no range, so that its entries are those of the samples asked for."""
    run = tiny.run("iuf", modality, data={"depth_scaling": "sample"}, **changes)
    return FeatureStore(open_dataset(run.data), run, folder)


def ids_of(store: FeatureStore, n: int = 4) -> list[str]:
    return store.dataset.index["sample_id"].tolist()[: 5 * n : 5]


def same(first: Batch, second: Batch) -> bool:
    return (
        tiny.same_tensors(first.features, second.features)
        and tiny.same_tensors(first.images, second.images)
        and torch.equal(first.category, second.category)
    )


def entries(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.npz"))


@pytest.fixture(scope="module", autouse=True)
def one_backbone():
    """All stores of this module share their backbones, which take long to make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "Backbone", cache(store_module.Backbone))
        yield


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> tuple[FeatureStore, Batch]:
    """A store with four samples in its cache, and their batch as first computed."""
    store = make_store(tmp_path_factory.mktemp("filled"))
    return store, store.batch(ids_of(store))


def test_a_batch_holds_the_samples_in_order(filled):
    store, batch = filled
    assert batch.features.keys() == batch.images.keys() == {"rgb", "depth"}
    assert batch.features["rgb"].shape == (4, store.backbone.channels, tiny.GRID, tiny.GRID)
    assert len(batch) == 4
    categories = [store.dataset.categories.index(i.split("/")[0]) for i in ids_of(store)]
    assert batch.category.tolist() == categories
    for i, sample_id in enumerate(ids_of(store)):
        sample = store.dataset.load(sample_id)
        image = torch.from_numpy(sample.rgb).permute(2, 0, 1) / 255
        assert torch.equal(batch.images["rgb"][i], image)
        assert torch.equal(batch.features["rgb"][i], store.backbone(image[None])[0])
        depth = batch.images["depth"][i]
        assert torch.equal(depth[0], depth[1])  # z in three equal channels
        assert 0 <= depth.min() < depth.max() <= 1
        assert torch.equal(batch.features["depth"][i], store.backbone(depth[None])[0])


def test_a_hit_equals_the_computation_bit_for_bit(filled, monkeypatch):
    store, batch = filled
    again = make_store(store.cache)
    monkeypatch.setattr(again.dataset, "load", lambda _id: pytest.fail("was in the cache"))
    monkeypatch.setattr(again.backbone, "forward", lambda _x: pytest.fail("was in the cache"))
    assert same(again.batch(ids_of(store)), batch)
    assert same(again.batch(ids_of(store)[::-1]), reversed_batch(batch))


def reversed_batch(batch: Batch) -> Batch:
    return Batch(
        {key: value.flip(0) for key, value in batch.features.items()},
        {key: value.flip(0) for key, value in batch.images.items()},
        batch.category.flip(0),
    )


def test_another_cache_gets_the_same_entries_in_whatever_order(filled, tmp_path):
    store, _ = filled
    other = make_store(tmp_path)
    first, *rest = reversed(ids_of(store))
    other.batch([first])
    other.batch(rest)
    ours, theirs = entries(store.cache), entries(tmp_path)
    assert [p.relative_to(store.cache) for p in ours] == [p.relative_to(tmp_path) for p in theirs]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(ours, theirs, strict=True))


def test_one_modality_is_read_from_the_entries_of_two(filled):
    store, batch = filled
    size = cache_size(store.cache)
    depth = make_store(store.cache, "depth").batch(ids_of(store))
    assert depth.features.keys() == {"depth"}
    assert torch.equal(depth.features["depth"], batch.features["depth"])
    assert cache_size(store.cache) == size


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_entry_is_made_again(filled, tmp_path, share):
    store, batch = filled
    cache = Path(shutil.copytree(store.cache, tmp_path / "cache"))
    for path in entries(cache):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
    again = make_store(cache)
    assert same(again.batch(ids_of(store)), batch)
    for ours, theirs in zip(entries(cache), entries(store.cache), strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("content", [b"not an archive", b"PK\x03\x04" + bytes(60)])
def test_a_damaged_entry_is_made_again(filled, tmp_path, content):
    store, batch = filled
    cache = Path(shutil.copytree(store.cache, tmp_path / "cache"))
    for path in entries(cache):
        path.write_bytes(content)
    assert same(make_store(cache).batch(ids_of(store)), batch)


def test_flipped_bits_do_not_pass(filled, tmp_path):
    store, batch = filled
    cache = Path(shutil.copytree(store.cache, tmp_path / "cache"))
    for path in entries(cache):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(bytes(content))
    assert same(make_store(cache).batch(ids_of(store)), batch)


def test_filling_reports_progress_and_leaves_nothing_to_do(tmp_path, monkeypatch):
    store = make_store(tmp_path)
    done: list[int] = []
    store.fill(ids_of(store), done.append)
    assert done == [1, 1, 1, 1]
    assert cache_size(tmp_path)["prepared"][0] == 4
    monkeypatch.setattr(store.backbone, "forward", lambda _x: pytest.fail("was filled"))
    store.batch(ids_of(store))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.fixture
def three_threads():
    """What torch may use in a test; elsewhere it is one."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_filling_with_several_threads_gives_the_entries_of_one(filled, tmp_path):
    store, batch = filled
    ahead = make_store(tmp_path)
    ahead.fill(ids_of(store))
    assert torch.get_num_threads() == 3
    ours, theirs = entries(store.cache), entries(tmp_path)
    assert [p.relative_to(store.cache) for p in ours] == [p.relative_to(tmp_path) for p in theirs]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(ours, theirs, strict=True))
    assert same(ahead.batch(ids_of(store)), batch)


@pytest.mark.usefixtures("three_threads")
def test_images_encoded_together_have_the_same_features_but_for_the_last_bits(filled, tmp_path):
    alone, expected = filled
    store = make_store(tmp_path)
    store.together, done = 3, []
    store.fill(ids_of(alone), done.append)
    assert done == [3, 1]
    batch = store.batch(ids_of(alone))
    assert tiny.same_tensors(batch.images, expected.images)
    for modality, features in expected.features.items():
        torch.testing.assert_close(batch.features[modality], features, rtol=1e-4, atol=1e-5)


def test_a_large_image_has_the_same_features_with_any_number_of_threads(tmp_path):
    store = make_store(tmp_path / "one", features={"levels": [1, 2, 3]})
    array = tiny.image(size=128)  # at this size, torch does divide a convolution among threads
    threaded = store._features([array])
    torch.set_num_threads(1)
    again = make_store(tmp_path / "other", features={"levels": [1, 2, 3]})
    assert torch.equal(again._features([array]), threaded)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, DataError])
def test_interrupted_filling_goes_on_where_it_stopped(tmp_path, monkeypatch, interruption):
    store = make_store(tmp_path)
    ids = store.dataset.index["sample_id"].tolist()[:12]
    done: list[int] = []

    def stop(_n: int) -> None:
        done.append(1)
        if len(done) == 2:
            raise interruption("stop")

    with pytest.raises(interruption):
        store.fill(ids, stop)
    kept = cache_size(tmp_path)
    assert 2 <= kept["prepared"][0] <= 5  # the two finished ones, and what was begun with them
    assert kept["features"][0] == 2 * kept["prepared"][0]  # two modalities
    assert not list(tmp_path.rglob("*.tmp"))

    again = make_store(tmp_path)
    loaded: list[str] = []
    load, backbone = again.dataset.load, again.backbone.forward
    monkeypatch.setattr(again.dataset, "load", lambda i: loaded.append(i) or load(i))
    computed: list[int] = []
    monkeypatch.setattr(again.backbone, "forward", lambda x: computed.append(1) or backbone(x))
    again.fill(ids)
    assert len(loaded) == len(set(loaded)) == 12 - kept["prepared"][0]
    assert not set(ids[:2]) & set(loaded)
    assert len(computed) == 2 * 12 - kept["features"][0]


def test_filling_names_the_file_that_cannot_be_read(tmp_path):
    root = trees.small_mvtec3d(tmp_path / "data")
    run = folder_run(root)
    store = FeatureStore(open_dataset(run.data), run, tmp_path / "cache")
    damaged = root / "bolt" / "train" / "good" / "rgb" / "001.png"
    damaged.write_bytes(damaged.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"bolt.train.good.rgb.001\.png"):
        store.fill(store.dataset.index["sample_id"].tolist())


def test_masks_are_those_of_the_samples(tmp_path):
    store = make_store(tmp_path)
    index = store.dataset.index
    ids = index[index["split"] == "test"]["sample_id"].tolist()[:3]
    masks = store.masks(ids)
    assert masks.shape == (3, tiny.SIZE, tiny.SIZE)
    for mask, sample_id in zip(masks, ids, strict=True):
        assert np.array_equal(mask, store.dataset.load(sample_id).mask)


# --- files that change --------------------------------------------------------------------------


def folder_run(root: Path, modality: str = "rgb+depth", **data) -> RunConfig:
    content = tiny.run("iuf", modality).model_dump(mode="json")
    own = {"name": "mvtec3d", "root": str(root), "image_size": 32, "depth_scaling": "sample"}
    content |= {"data": own | data, "setting": "1-1"}
    return RunConfig.model_validate(content)


def test_a_changed_image_is_seen(tmp_path):
    root = trees.small_mvtec3d(tmp_path / "data")
    run = folder_run(root)
    store = FeatureStore(open_dataset(run.data), run, tmp_path / "cache")
    sample_id = store.dataset.index["sample_id"].iloc[0]
    before = store.batch([sample_id])
    path = store.dataset.files(sample_id)["rgb"]
    trees.write_png(path, 255 - np.array(Image.open(path)))
    os.utime(path, ns=(1, 1))  # even when a copy keeps an old time
    store = FeatureStore(open_dataset(run.data), run, tmp_path / "cache")
    after = store.batch([sample_id])
    assert not torch.equal(before.images["rgb"], after.images["rgb"])
    assert not torch.equal(before.features["rgb"], after.features["rgb"])
    assert torch.equal(before.features["depth"], after.features["depth"])


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 40},
        {"depth_encoding": "xyz255"},
        {"depth_scaling": (0.1, 0.9)},
        {"depth_scaling": "measured"},
    ],
)
def test_preparation_is_part_of_the_key(tmp_path, change):
    root = trees.small_mvtec3d(tmp_path / "data")
    batches = []
    for changes in ({}, change, {}):
        run = folder_run(root, **changes)
        store = FeatureStore(open_dataset(run.data), run, tmp_path / "cache")
        batches.append(store.batch([store.dataset.index["sample_id"].iloc[0]]))
    first, changed, again = (batch.images["depth"] for batch in batches)
    assert first.shape != changed.shape or not torch.equal(first, changed)
    assert torch.equal(first, again)


def test_depth_of_a_data_set_without_depth():
    sample = Sample(
        "a/0", "a", "test", "good", tiny.image(), None, np.zeros((32, 32), bool), None, None
    )
    how = Preparation(image_size=32)
    with pytest.raises(DataError, match="a/0: modality 'depth' is asked for"):
        prepare(sample, how, ["rgb", "depth"])
    assert prepare(sample, how, ["rgb"]).depth is None


def test_samples_are_brought_to_the_image_size():
    how = Preparation(image_size=32, scaling={"depth": (0.5, 0.6), "heat": (0.0, 1000.0)})
    mask = np.zeros((64, 48), dtype=bool)
    mask[:32, :24] = True
    xyz = np.full((64, 48, 3), 0.5, dtype=np.float32)
    xyz[..., 2] += np.linspace(0, 0.1, 64, dtype=np.float32)[:, None]
    rgb = np.full((64, 48, 3), (10, 20, 30), dtype=np.uint8)
    heat = np.full((64, 48, 3), 1500, dtype=np.uint16)
    sample = Sample("a/0", "a", "test", "hole", rgb, xyz, mask, others={"heat": heat, "dim": rgb})
    made = prepare(sample, how, ["rgb", "depth", "heat", "dim"])
    assert np.allclose(made.images["heat"], 1.5)  # linear beyond the range
    assert np.array_equal(made.images["dim"], np.full((32, 32, 3), (10, 20, 30)))
    assert np.array_equal(made.rgb, np.full((32, 32, 3), (10, 20, 30)))
    assert np.array_equal(made.mask, np.pad(np.ones((16, 16), bool), ((0, 16), (0, 16))))
    assert made.depth.shape == (32, 32, 3)
    assert np.all(np.diff(made.depth[:, 0, 0]) > 0)
    point = np.zeros((64, 48), dtype=bool)
    point[20, 10] = True  # between the pixels that are kept
    small = prepare(replace(sample, mask=point), Preparation(image_size=8), ["rgb"])
    assert np.argwhere(small.mask).tolist() == [[20 * 8 // 64, 10 * 8 // 48]]


def test_samples_from_anywhere_can_be_assembled(filled):
    store, batch = filled
    prepared = [store.prepared(sample_id) for sample_id in ids_of(store)]
    assert isinstance(prepared[0], Prepared)
    assert same(store.assemble(prepared, batch.category.tolist()), batch)
    assert same(batch.to(torch.device("cpu")), batch)


def test_the_range_is_measured_on_the_training_images_of_the_base_step(tmp_path):
    """Every setting has its base step; all later images, also the test's, are scaled by its range."""
    run = tiny.run("iuf", data={"depth_scaling": "measured"})
    store = FeatureStore(open_dataset(run.data), run, tmp_path)
    base = store.dataset.ids("train", tiny.CATEGORIES[:2])  # setting 2-1
    ranges = [
        resize(store.dataset.load(each), tiny.SIZE, "z", ["depth"]).ranges["depth"] for each in base
    ]
    assert store.preparation().scaling == {"depth": joint_range(ranges)}
    assert joint_range([(0.2, 0.5), (0.1, 0.4)]) == (0.1, 0.5)
    later = store.dataset.ids("test", tiny.CATEGORIES[2:])[0]
    resized = resize(store.dataset.load(later), tiny.SIZE, "z", ["rgb", "depth"])
    expected = scale(
        resized, Preparation(image_size=tiny.SIZE, scaling={"depth": joint_range(ranges)})
    )
    assert np.array_equal(store.prepared(later).depth, expected.depth)
    joint = tiny.run("iuf", data={"depth_scaling": "measured"}, increment={"strategy": "joint"})
    whole = FeatureStore(open_dataset(joint.data), joint, tmp_path).preparation().scaling["depth"]
    assert whole[0] <= store.preparation().scaling["depth"][0]


# --- the cache folder ---------------------------------------------------------------------------


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("IUMAD_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert make_store(None).cache == tmp_path
    monkeypatch.delenv("IUMAD_CACHE")
    assert cache_folder().name == "iumad"


def test_pruning_keeps_what_was_read_last(tmp_path):
    for age, name in enumerate("abcd"):
        path = tmp_path / ("prepared" if age % 2 else "features") / name / f"{name}.npz"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))  # d is the oldest
    (tmp_path / "fpfh").mkdir()
    (tmp_path / "fpfh" / "e.npy").write_bytes(bytes(100))
    sizes = {"prepared": (2, 200), "features": (2, 200), "fpfh": (1, 100)}
    assert cache_size(tmp_path) == sizes
    assert prune_cache(tmp_path, 1000) == 0
    assert prune_cache(tmp_path, 350) == 200
    assert {path.stem for path in entries(tmp_path)} == {"a", "b"}
    assert (tmp_path / "fpfh" / "e.npy").exists()
    killed = tmp_path / "features" / "a" / ".a.npz-1.tmp"
    killed.write_bytes(bytes(100))
    os.utime(killed, (1000, 1000))
    assert prune_cache(tmp_path, 0) == 300
    assert not killed.exists()
    assert entries(tmp_path) == []
    assert prune_cache(tmp_path / "nowhere", 0) == 0
