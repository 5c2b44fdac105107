"""The layouts of MVTec 3D-AD and MVTec AD: what is read, what is refused, and how it is said."""

import os
import shutil
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import trees

from iumad.config.sections import FolderConfig
from iumad.data import files, open_dataset
from iumad.data.files import find_second, natural_key
from iumad.data.prepare import Preparation, prepare
from iumad.data.public import (
    MVTEC_3D_AD,
    MVTec,
    MVTec3D,
    compare_with_published,
    geometric_by_name,
    published_counts,
)
from iumad.data.sample import INDEX_SCHEMA
from iumad.errors import DataError


@pytest.fixture
def root(tmp_path):
    return trees.small_mvtec3d(tmp_path / "data")


def test_real_rgbd_counts_and_arrays(real_data):
    dataset = open_dataset(FolderConfig(name="mvtec3d", root=real_data / "real_rgbd"))
    assert dataset.categories == ("pothole_a", "pothole_b", "pothole_c")
    counts = dataset.index.groupby(["split", "defect"]).size().to_dict()
    assert counts == {
        ("train", "good"): 48,
        ("validation", "good"): 9,
        ("test", "good"): 24,
        ("test", "pothole"): 24,
    }
    for sample_id in dataset.index["sample_id"].iloc[::15]:
        sample = dataset.load(sample_id)
        assert sample.rgb.shape == sample.xyz.shape == (224, 224, 3)
        assert sample.mask.any() == bool(sample.label)
        valid = sample.xyz[..., 2] > 0
        assert 1.1 < np.median(sample.xyz[..., 2][valid]) < 1.4  # road at 1.2 m, potholes deeper


def test_real_rgb_counts_and_arrays(real_data):
    dataset = open_dataset(FolderConfig(name="mvtec", root=real_data / "real_rgb"))
    assert {"bottle", "hazelnut", "transistor", "cookie"} <= set(dataset.categories)
    assert dataset.modalities == ("rgb",)
    bottle = dataset.ids("test", ["bottle"])
    assert len(dataset.ids("train", ["bottle"])) == 40
    assert len(bottle) == 8 + 18
    sample = dataset.load(next(each for each in bottle if "broken_large" in each))
    assert sample.xyz is None
    assert sample.mask.any()
    assert sample.rgb.shape == (256, 256, 3)
    unknown = dataset.index[~dataset.index["masked"]]
    assert set(unknown["defect"]) == {"broken_nomask"}
    assert dataset.load(unknown["sample_id"].iloc[0]).mask is None


def test_real_infrared_is_a_modality_of_its_own(real_data):
    config = FolderConfig(name="mvtec3d", root=real_data / "real_rgbir_registered")
    dataset = open_dataset(config)
    assert dataset.modalities == ("rgb", "infrared")
    assert dataset.categories == ("button_cell", "capsule", "cotton")
    assert {defect for defect in dataset.index["defect"] if defect.endswith("nomask")} == set(
        dataset.index[~dataset.index["masked"]]["defect"]
    )
    sample = dataset.load(dataset.ids("test", ["capsule"])[0])
    assert sample.xyz is None
    assert sample.others["infrared"].shape == (256, 256, 3)
    assert sample.others["infrared"].dtype == np.uint8
    prepared = prepare(sample, Preparation(image_size=64), dataset.modalities)
    assert {name: image.shape for name, image in prepared.images.items()} == {
        "rgb": (64, 64, 3),
        "infrared": (64, 64, 3),
    }


def test_small_tree_is_read_exactly(root):
    dataset = MVTec3D(root)
    INDEX_SCHEMA.validate(dataset.index)
    assert dataset.categories == ("bolt", "nut")
    assert len(dataset.index) == 12
    good = dataset.load("bolt/train/good/001")
    np.testing.assert_array_equal(good.rgb, trees.rgb_array(1))
    np.testing.assert_array_equal(good.xyz, trees.xyz_array(1))
    assert not good.mask.any()
    assert (good.label, good.geometric, good.foreground) == (0, None, None)
    hole = dataset.load("nut/test/hole/000")
    np.testing.assert_array_equal(hole.mask, trees.mask_array() > 0)
    assert (hole.label, hole.geometric) == (1, True)
    assert dataset.load("nut/test/color/000").geometric is False


def test_categories_select_and_order(root):
    assert MVTec3D(root, ("nut", "bolt")).categories == ("nut", "bolt")
    assert set(MVTec3D(root, ("nut",)).index["category"]) == {"nut"}
    with pytest.raises(DataError, match=r"no category 'screw', only bolt, nut"):
        MVTec3D(root, ("screw",))
    with pytest.raises(DataError, match="no sample 'x'"):
        MVTec3D(root).load("x")


def test_ids_by_split_and_category(root):
    dataset = MVTec3D(root)
    assert dataset.ids() == dataset.index["sample_id"].tolist()
    assert dataset.ids("train", ["nut"]) == ["nut/train/good/000", "nut/train/good/001"]
    assert len(dataset.ids("test")) == 6
    assert len(dataset.ids(categories=["bolt"])) == 6
    assert dataset.ids("train", []) == []


def test_geometric_of_the_published_defects():
    named = {defect for *_, defects in MVTEC_3D_AD.values() for defect in defects}
    unknown = {defect for defect in named if geometric_by_name(defect) is None}
    assert unknown == {"contamination"}
    assert {defect for defect in named if geometric_by_name(defect) is False} == {"color"}
    assert geometric_by_name("wobble") is None


@pytest.mark.slow
def test_full_tree_has_the_published_counts(tmp_path):
    root = trees.full_mvtec3d(tmp_path / "mvtec_3d_ad")
    dataset = MVTec3D(root)
    index = dataset.index
    assert index["split"].value_counts().to_dict() == {
        "train": 2656,
        "validation": 294,
        "test": 1197,
    }
    assert index["label"].sum() == 948
    assert dataset.categories == tuple(MVTEC_3D_AD)
    assert compare_with_published(index, "mvtec3d").empty

    shutil.rmtree(root / "tire" / "test" / "cut")
    (root / "rope" / "test" / "open" / "xyz" / "016.tiff").unlink()
    (root / "rope" / "test" / "open" / "rgb" / "016.png").unlink()
    (root / "rope" / "test" / "open" / "gt" / "016.png").unlink()
    (root / "foam" / "test" / "color").rename(root / "foam" / "test" / "colour")
    changed = ("foam", "rope", "tire")
    differences = compare_with_published(MVTec3D(root, changed).index, "mvtec3d")
    differences = differences[differences["category"].isin(changed)]
    assert differences.to_numpy().tolist() == [
        ["foam", "test", "color", 20, 0],
        ["foam", "test", "colour", 0, 20],
        ["rope", "test", "open", 17, 16],
        ["tire", "test", "cut", 27, 0],
    ]


def test_published_sums():
    counts = published_counts("mvtec3d").groupby("split")["published"].sum().to_dict()
    assert counts == {"train": 2656, "validation": 294, "test": 1197}
    counts = published_counts("eyecandies").groupby("split")["published"].sum().to_dict()
    assert counts == {"train": 10000, "validation": 1000, "test": 500}


def test_another_data_set_has_no_published_counts(root):
    assert compare_with_published(MVTec3D(root).index, "mvtec3d") is None
    assert compare_with_published(MVTec3D(root).index, "mvtec") is None


def test_identity_is_content_and_names_not_the_place(root, tmp_path):
    dataset, cut = MVTec3D(root), MVTec3D(root, remove_plane=True)
    sample_id, split = "bolt/test/hole/000", ("test", ["bolt"])
    before, whole = dataset.fingerprint(sample_id), dataset.digest(*split)
    assert before != dataset.fingerprint("bolt/test/color/000")
    assert before != cut.fingerprint(sample_id)
    assert whole != cut.digest(*split)
    assert len({whole, dataset.digest("train", ["bolt"]), dataset.digest("test", ["nut"])}) == 3

    copy = MVTec3D(Path(shutil.copytree(root, tmp_path / "moved and renamed")))
    assert copy.fingerprint(sample_id) == before  # also with other times of change
    assert copy.digest(*split) == whole
    assert MVTec3D(root, ("nut", "bolt")).digest(*split) == whole

    for kind, suffix in (("rgb", "png"), ("xyz", "tiff"), ("gt", "png")):
        path = root / "bolt" / "test" / "hole" / kind / f"000.{suffix}"
        content = path.read_bytes()
        shutil.copyfile(root / "bolt" / "test" / "color" / kind / path.name, path)
        if path.read_bytes() != content:
            assert dataset.fingerprint(sample_id) != before
            assert MVTec3D(root).digest(*split) != whole
            assert dataset.digest(*split) == whole  # a data set keeps what it was when it was asked
        path.write_bytes(content)
        assert dataset.fingerprint(sample_id) == before
    path.unlink()
    with pytest.raises(DataError, match=r"000\.png: cannot be read"):
        dataset.fingerprint(sample_id)


def test_hashes_are_kept_and_a_damaged_or_forbidden_cache_costs_time_only(
    root, tmp_path, monkeypatch
):
    monkeypatch.setenv("IUMAD_CACHE", str(tmp_path / "cache"))
    old = time.time() - 60
    for path in root.rglob("*.*"):
        os.utime(path, (old, old))
    known = MVTec3D(root).digest("train", ["bolt"])
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", None)  # nothing is read again
        assert MVTec3D(root).digest("train", ["bolt"]) == known
    (tmp_path / "cache" / files.MEMO_FILE).write_bytes(b"no database")
    for _ in range(2):
        assert MVTec3D(root).digest("train", ["bolt"]) == known
    monkeypatch.setenv("IUMAD_CACHE", str(root / "bolt" / "train" / "good" / "rgb" / "000.png"))
    assert MVTec3D(root).digest("train", ["bolt"]) == known


def test_plane_is_removed_on_request(tmp_path):
    size = (48, 48)
    cloud = trees.xyz_array(size=size)
    cloud[..., 2] = 0.5
    cloud[20:30, 20:30, 2] = 0.45
    root = trees.small_mvtec3d(tmp_path / "data", ("bolt",))
    for rgb in root.rglob("*.png"):
        is_mask = rgb.parent.name == "gt"
        marked = "good" not in rgb.parts
        array = trees.mask_array(marked, size) if is_mask else trees.rgb_array(size=size)
        trees.write_png(rgb, array)
    for xyz in root.rglob("*.tiff"):
        trees.write_xyz(xyz, cloud)
    sample = MVTec3D(root, remove_plane=True).load("bolt/train/good/000")
    assert sample.foreground.sum() == 100
    assert (sample.xyz[~sample.foreground] == 0).all()


def test_mvtec_layout(tmp_path):
    root = trees.small_mvtec(tmp_path / "data")
    dataset = MVTec(root)
    assert len(dataset.index) == 4
    np.testing.assert_array_equal(dataset.load("bolt/test/cut/000").mask, trees.mask_array() > 0)
    (root / "bolt" / "ground_truth" / "cut" / "000_mask.png").unlink()
    with pytest.raises(DataError, match=r"cut.000\.png: a defect without a mask"):
        MVTec(root)
    shutil.rmtree(root / "bolt" / "ground_truth")
    without = MVTec(root)
    assert without.load("bolt/test/cut/000").mask is None
    assert without.index.set_index("sample_id")["masked"].to_dict()["bolt/test/cut/000"] is False
    assert "1 defects without masks" in without.notes[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_further_folder_is_a_modality_where_all_have_it(root, dtype):
    for rgb in [*root.rglob("rgb/*.png")]:
        heat = (trees.rgb_array(7)[..., 0].astype(dtype)) * (1 if dtype == np.uint8 else 200)
        trees.write_png(rgb.parent.parent / "IR" / rgb.name, heat)
    assert MVTec3D(root).modalities == ("rgb", "depth", "infrared")
    sample = MVTec3D(root).load("bolt/train/good/000")
    np.testing.assert_array_equal(sample.others["infrared"][..., 2], heat)

    other = root / "nut" / "test" / "hole" / "IR" / "000.png"
    trees.write_png(other, heat.astype(np.uint16 if dtype == np.uint8 else np.uint8))
    with pytest.raises(DataError, match=r"infrared needs one type"):
        MVTec3D(root)
    other.unlink()
    with pytest.raises(DataError, match=r"hole.rgb.000\.png: no ir file"):
        MVTec3D(root)
    shutil.rmtree(root / "nut" / "train" / "good" / "IR")
    dataset = MVTec3D(root)
    assert dataset.modalities == ("rgb", "depth")
    assert any("'ir' are left out" in note for note in dataset.notes)


def test_names_in_any_case_unicode_and_spaces(tmp_path):
    root = trees.small_mvtec3d(tmp_path / "größe  mit leerzeichen", ("Ö bolt",))
    category = root / "Ö bolt"
    (category / "train" / "good").rename(category / "train" / "Good")
    (category / "train" / "Good" / "rgb").rename(category / "train" / "Good" / "RGB")
    image = category / "train" / "Good" / "RGB" / "000.png"
    image.rename(image.with_suffix(".PNG"))
    (category / "test").rename(category / "Test")
    decomposed = unicodedata.normalize("NFD", "ä")
    for kind in ("rgb", "xyz", "gt"):
        for path in (category / "Test" / "hole" / kind).iterdir():
            name = decomposed if kind == "xyz" else "ä"
            path.rename(path.with_name(name + path.suffix))
    dataset = MVTec3D(root)
    assert dataset.categories == ("Ö bolt",)
    assert dataset.load("Ö bolt/train/good/000").label == 0
    assert dataset.load("Ö bolt/test/hole/ä").label == 1


def test_natural_order():
    names = ["img10", "Img9", "img2", "b", "10", "9"]
    assert sorted(names, key=natural_key) == ["9", "10", "b", "img2", "Img9", "img10"]


def test_the_second_image_is_found_by_name(tmp_path):
    image = trees.write_png(tmp_path / "rgb" / "1.png", trees.rgb_array())
    assert find_second(image, "depth") is None
    cloud = trees.write_xyz(tmp_path / "xyz" / "1.tiff", trees.xyz_array())
    trees.write_xyz(tmp_path / "xyz" / "1.2.tiff", trees.xyz_array())
    assert find_second(image, "depth") == cloud
    trees.write_xyz(tmp_path / "rgb" / "1_depth.tiff", trees.xyz_array())
    with pytest.raises(DataError, match="has several depth images"):
        find_second(image, "depth")
