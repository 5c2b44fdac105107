"""Broken folders: one error each, of one line, that names the file or folder."""

import shutil

import numpy as np
import pytest
import tifffile
import trees
from PIL import Image

from iumad.data.public import MVTec3D
from iumad.errors import DataError


@pytest.fixture
def root(tmp_path):
    return trees.small_mvtec3d(tmp_path / "data")


def refused(root, *words, dataset=MVTec3D):
    with pytest.raises(DataError) as caught:
        dataset(root)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text
    return text


def test_missing_root_and_wrong_root(root, tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "does not exist")
    refused(root / "bolt", "is one category")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no category folders")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "needs a folder")


def test_empty_category(root):
    (root / "screw").mkdir()
    refused(root, "screw", "has no train folder")


def test_category_without_good_training_images(root):
    good = root / "bolt" / "train" / "good"
    for path in [*good.rglob("*.png"), *good.rglob("*.tiff")]:
        path.unlink()
    refused(root, "'bolt' has no images in train/good")
    shutil.rmtree(good)
    refused(root, "'bolt' has no train/good")


def test_validation_may_be_missing(root):
    shutil.rmtree(root / "bolt" / "validation")
    assert len(MVTec3D(root).index) == 11


def test_defect_in_training_data(root):
    trees.write_mvtec3d_sample(root / "bolt" / "train" / "hole", "000", True)
    refused(root, "train may hold good samples only")


def test_missing_mask_of_a_defect(root):
    (root / "bolt" / "test" / "hole" / "gt" / "000.png").unlink()
    refused(root, "hole/rgb/000.png", "a defect without a mask")


def test_unpaired_files(root):
    (root / "bolt" / "train" / "good" / "xyz" / "001.tiff").unlink()
    refused(root, "good/rgb/001.png", "no xyz file of the same name")
    (root / "bolt" / "train" / "good" / "rgb" / "001.png").unlink()
    (root / "bolt" / "test" / "hole" / "rgb" / "000.png").rename(
        root / "bolt" / "test" / "hole" / "rgb" / "007.png"
    )
    text = refused(root, "hole")
    assert "more; `iumad data check" in text


def test_two_extensions_for_one_name(root):
    folder = root / "bolt" / "train" / "good" / "rgb"
    Image.fromarray(trees.rgb_array()).save(folder / "000.jpg")
    refused(root, "000.", "shares its name")


def test_folders_that_differ_in_case_only(root):
    shutil.copytree(root / "bolt" / "train" / "good", root / "bolt" / "train" / "GOOD")
    refused(root, "shares its name", "case")


def test_unknown_file_types(root):
    (root / "bolt" / "train" / "good" / "rgb" / "notes.txt").write_text("x")
    refused(root, "notes.txt", "needs one of the types")


def test_hidden_files_are_left_out(root):
    for name in (".DS_Store", "Thumbs.db", "._000.png"):
        (root / "bolt" / "train" / "good" / "rgb" / name).write_text("x")
    (root / "__MACOSX").mkdir()
    assert len(MVTec3D(root).index) == 12


def test_links_that_lead_in_a_circle(root):
    loop = root / "bolt" / "train" / "good" / "rgb" / "loop"
    loop.symlink_to(loop)
    refused(root, "loop", "in a circle")
    loop.unlink()
    (root / "again").symlink_to(root, target_is_directory=True)
    refused(root, "again", "endless loop")
    (root / "again").unlink()
    broken = root / "bolt" / "train" / "good" / "rgb" / "002.png"
    broken.symlink_to(root / "nothing.png")
    refused(root, "002.png", "leads nowhere")


def test_links_to_data_elsewhere_are_followed(root, tmp_path):
    (root / "nut").rename(tmp_path / "nut")
    (root / "nut").symlink_to(tmp_path / "nut", target_is_directory=True)
    assert MVTec3D(root).load("nut/train/good/000").category == "nut"


@pytest.mark.parametrize(("kind", "suffix"), [("xyz", "tiff"), ("gt", "png")])
def test_sizes_must_agree(root, kind, suffix):
    path = root / "bolt" / "test" / "hole" / kind / f"000.{suffix}"
    if kind == "gt":
        trees.write_png(path, trees.mask_array(size=(24, 20)))
    else:
        trees.write_xyz(path, trees.xyz_array(size=(24, 20)))
    refused(root, str(path), "needs the size of its RGB image, 12 x 10, got 24 x 20")


def test_16_bit_colour(root):
    path = root / "bolt" / "train" / "good" / "rgb" / "000.png"
    path.unlink()
    tifffile.imwrite(
        path.with_suffix(".tiff"), trees.rgb_array().astype(np.uint16) * 257, photometric="rgb"
    )
    refused(root, "000.tiff", "8 bits per channel", "got uint16")


def test_good_sample_with_a_mask_that_marks(root):
    trees.write_png(root / "bolt" / "test" / "good" / "gt" / "000.png", trees.mask_array())
    dataset = MVTec3D(root)
    with pytest.raises(DataError, match="belongs to a good sample but marks 9 pixels"):
        dataset.load("bolt/test/good/000")


def test_file_that_changes_after_indexing(root):
    dataset = MVTec3D(root)
    trees.write_xyz(
        root / "bolt" / "train" / "good" / "xyz" / "000.tiff", trees.xyz_array(size=(5, 5))
    )
    with pytest.raises(DataError, match=r"000\.tiff: needs the size"):
        dataset.load("bolt/train/good/000")
