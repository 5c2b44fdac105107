"""Eyecandies: layout, labels, decoding of depth and normals, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import trees

from iumad.config.sections import EyecandiesConfig
from iumad.data import open_dataset
from iumad.data.public import EYECANDIES, Eyecandies, compare_with_published
from iumad.data.sample import EYECANDIES_FOCAL_LENGTH, Reader, eyecandies_points
from iumad.errors import DataError


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "store").mkdir()
    return trees.EyecandiesTree(tmp_path / "eyecandies", tmp_path / "store")


@pytest.fixture
def small(tree):
    """One category with one test sample for each combination of kinds."""
    for number in ("000", "001"):
        tree.add("Lollipop", "train", number)
    tree.add("Lollipop", "val", "000")
    tree.add("Lollipop", "test_private", "000")
    kinds = [(), ("bumps",), ("dents",), ("colors",), ("normals",)]
    kinds += [("colors", "dents"), ("colors", "normals")]
    for number, present in enumerate(kinds):
        tree.add("Lollipop", "test_public", f"{number:02d}", present)
    return tree


def test_splits_labels_and_defects(small):
    dataset = open_dataset(EyecandiesConfig(name="eyecandies", root=small.root))
    assert dataset.categories == ("Lollipop",)
    index = dataset.index
    assert index["split"].value_counts().to_dict() == {"test": 7, "train": 2, "validation": 1}
    tests = index[index["split"] == "test"].set_index("sample_id")
    assert [name.rsplit("/", 2)[1:] for name in tests.index] == [
        ["bumps", "01"],
        ["colors", "03"],
        ["combined", "05"],
        ["combined", "06"],
        ["dents", "02"],
        ["good", "00"],
        ["normals", "04"],
    ]
    geometric = [None if pd.isna(value) else value for value in tests["geometric"]]
    assert geometric == [True, False, True, None, True, None, None]


def test_load_decodes_light_depth_and_mask(small):
    sample = Eyecandies(small.root, light=3).load("Lollipop/test/dents/02")
    assert (sample.rgb == 30).all()
    # the stored ramp runs from 0 to 65535, the information file from 0.4 m to 0.6 m
    z = sample.xyz[..., 2]
    assert z[0, 0] == pytest.approx(0.4)
    assert z[-1, -1] == pytest.approx(0.6)
    np.testing.assert_allclose(z.ravel(), np.linspace(0.4, 0.6, 256), atol=0.2 / 65535)
    assert (sample.mask == (trees.mask_array(size=(16, 16)) > 0)).all()
    assert not Eyecandies(small.root).load("Lollipop/test/good/00").mask.any()


def test_points_of_the_camera():
    # 512 pixels, principal point 256: pixel (256 + 71.111, 256) at 1 m lies at x = 0.1 m
    points = eyecandies_points(np.ones((512, 512), dtype=np.float32))
    assert points[256, 256].tolist() == [0, 0, 1]
    assert points[256, 256 + 71, 0] == pytest.approx(71 / EYECANDIES_FOCAL_LENGTH)
    assert points[256 - 71, 256, 1] == pytest.approx(-71 / EYECANDIES_FOCAL_LENGTH)
    # the focal length belongs to 512 pixels; half the image needs half of it
    with pytest.raises(DataError, match="needs the file, whose limits lie beside it"):
        Reader(eyecandies=True).points(np.ones((4, 4), dtype=np.uint16))
    half = eyecandies_points(np.ones((256, 256), dtype=np.float32))
    np.testing.assert_allclose(half, points[::2, ::2], atol=1e-6)


def test_the_light_is_part_of_the_fingerprint(small):
    sample_id = "Lollipop/train/good/000"
    lights = {Eyecandies(small.root, light=light).fingerprint(sample_id) for light in range(6)}
    assert len(lights) == 6
    dataset = Eyecandies(small.root)
    before = dataset.fingerprint(sample_id)
    replace(small.root / "Lollipop/train/data/000_info_depth.yaml", "normalization: {min: 1}")
    assert dataset.fingerprint(sample_id) != before


def test_full_tree_has_the_published_counts(tree):
    tree.add_full(train=12, validation=3)  # 12 and 3 of 1000 and 100, all of test_public
    dataset = Eyecandies(tree.root)
    assert dataset.categories == tuple(EYECANDIES)
    differences = compare_with_published(dataset.index, "eyecandies")
    assert set(differences["split"]) == {"train", "validation"}
    assert set(differences["found"]) == {12, 3}
    assert dataset.index["label"].sum() == sum(bad for _, bad in EYECANDIES.values())


@pytest.mark.slow
def test_full_tree_of_11500_samples(tree):
    tree.add_full()
    dataset = Eyecandies(tree.root)
    assert len(dataset.index) == 11500
    assert compare_with_published(dataset.index, "eyecandies").empty


def replace(path, text):
    path.unlink()  # the file is a link shared by all samples
    path.write_text(text)


@pytest.mark.parametrize("item", ["image_4.png", "depth.png", "info_depth.yaml", "mask.png"])
def test_missing_items(small, item):
    path = small.root / "Lollipop" / "test_public" / "data" / f"01_{item}"
    path.unlink()
    with pytest.raises(DataError, match=f"01_{item.replace('.', '[.]')}: is missing"):
        Eyecandies(small.root)


@pytest.mark.parametrize(
    ("item", "text", "message"),
    [
        ("metadata.yaml", "anomalous: maybe", "needs anomalous: 0 or 1, got 'maybe'"),
        ("metadata.yaml", "[1, 2", "not a readable YAML file"),
        ("metadata.yaml", "just text", "needs keys and values"),
        ("metadata.yaml", "", "needs keys and values"),
    ],
)
def test_wrong_metadata(small, item, text, message):
    replace(small.root / "Lollipop" / "test_public" / "data" / f"01_{item}", text)
    with pytest.raises(DataError, match="01_metadata") as caught:
        Eyecandies(small.root)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("normalization: {min: 0.4}", "needs normalization with min and max"),
        ("normalization: {min: a, max: b}", "needs normalization with min and max"),
        ("normalization: {min: 0.6, max: 0.4}", "0 < min < max"),
        ("normalization: {min: .nan, max: 0.4}", "0 < min < max"),
        ("other: 1", "needs normalization"),
    ],
)
def test_wrong_depth_information(small, text, message):
    replace(small.root / "Lollipop" / "train" / "data" / "000_info_depth.yaml", text)
    with pytest.raises(DataError, match="000_info_depth") as caught:
        Eyecandies(small.root).load("Lollipop/train/good/000")
    assert message in str(caught.value)


def test_anomalous_without_any_mask(small):
    data = small.root / "Lollipop" / "test_public" / "data"
    (data / "01_bumps_mask.png").unlink()
    trees.write_png(data / "01_bumps_mask.png", trees.mask_array(False, (16, 16)))
    with pytest.raises(DataError, match="masks of all kinds are empty"):
        Eyecandies(small.root)


def test_8_bit_depth(small):
    path = small.root / "Lollipop" / "train" / "data" / "000_depth.png"
    path.unlink()
    trees.write_png(path, trees.rgb_array(size=(16, 16))[..., 0])
    with pytest.raises(DataError, match=r"000_depth\.png: needs one channel of 16 bits"):
        Eyecandies(small.root).load("Lollipop/train/good/000")


def test_missing_split(small):
    (small.root / "Lollipop" / "val").rename(small.root / "Lollipop" / "v")
    with pytest.raises(DataError, match="'Lollipop' has no val folder"):
        Eyecandies(small.root)
