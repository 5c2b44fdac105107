"""The layouts of MVTec 3D-AD and MVTec AD: what is read, what is refused, and how it is said."""

import os
import shutil
import unicodedata

import numpy as np
import pytest
import trees

from iumad.config.sections import FolderConfig
from iumad.data import open_dataset
from iumad.data.files import natural_key
from iumad.data.folders.mvtec import MVTec, MVTec3D, geometric_by_name
from iumad.data.published import MVTEC_3D_AD, compare_with_published, published_counts
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
    assert dataset.categories == ("bottle", "hazelnut", "transistor")
    assert dataset.modalities == ("rgb",)
    assert (dataset.index["split"] == "train").sum() == 140
    assert dataset.index["label"].sum() == 18 + 8 + 8
    sample = dataset.load("bottle/test/broken_large/" + _first(dataset, "broken_large"))
    assert sample.xyz is None
    assert sample.mask.any()
    assert sample.rgb.shape == (256, 256, 3)


def _first(dataset, defect):
    rows = dataset.index[dataset.index["defect"] == defect]
    return rows["sample_id"].iloc[0].rsplit("/", 1)[1]


def test_small_tree_is_read_exactly(root):
    dataset = MVTec3D(root)
    INDEX_SCHEMA.validate(dataset.index)
    assert dataset.categories == ("bolt", "nut")
    assert len(dataset.index) == 12
    good = dataset.load("bolt/train/good/001")
    np.testing.assert_array_equal(good.rgb, trees.rgb_array())
    np.testing.assert_array_equal(good.xyz, trees.xyz_array())
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


def test_geometric_of_the_published_defects():
    named = {defect for *_, defects in MVTEC_3D_AD.values() for defect in defects}
    unknown = {defect for defect in named if geometric_by_name(defect) is None}
    assert unknown == {"contamination"}
    assert {defect for defect in named if geometric_by_name(defect) is False} == {"color"}
    assert geometric_by_name("wobble") is None


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


def test_fingerprint_follows_files_and_options(root):
    dataset, cut = MVTec3D(root), MVTec3D(root, remove_plane=True)
    before = dataset.fingerprint("bolt/test/hole/000")
    assert before == MVTec3D(root).fingerprint("bolt/test/hole/000")
    assert before != dataset.fingerprint("bolt/test/color/000")
    assert before != cut.fingerprint("bolt/test/hole/000")
    for kind, suffix in (("rgb", "png"), ("xyz", "tiff"), ("gt", "png")):
        path = root / "bolt" / "test" / "hole" / kind / f"000.{suffix}"
        state = path.stat()
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
        assert dataset.fingerprint("bolt/test/hole/000") != before
        before = dataset.fingerprint("bolt/test/hole/000")
    path.unlink()
    with pytest.raises(DataError, match=r"000\.png: cannot be read"):
        dataset.fingerprint("bolt/test/hole/000")


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
    with pytest.raises(DataError, match="no ground_truth/cut folder"):
        MVTec(root)


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
