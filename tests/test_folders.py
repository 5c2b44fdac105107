"""The layouts of MVTec 3D-AD and MVTec AD: what is read, what is refused, and how it is said."""

import os
import shutil
import struct
import unicodedata
import zlib

import numpy as np
import pytest
import tifffile
import trees
from PIL import Image

from iumad.config_sections import FolderConfig
from iumad.data import open_dataset
from iumad.data.folders import MVTec, MVTec3D, geometric_by_name
from iumad.data.images import read_depth, read_mask, read_rgb, read_xyz
from iumad.data.published import MVTEC_3D_AD, compare_with_published, published_counts
from iumad.data.sample import INDEX_SCHEMA
from iumad.data.tree import natural_key
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
    refused(root, "good/rgb/001.png", "no point cloud")
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
    refused(root, "differs only in case")


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


# --- single files -------------------------------------------------------------------------------


def test_colour_repairs(tmp_path):
    rgb = trees.rgb_array()
    alpha = np.full((*trees.SIZE, 1), 255, dtype=np.uint8)
    rgba = np.concatenate([rgb, alpha], axis=2)
    np.testing.assert_array_equal(read_rgb(trees.write_png(tmp_path / "a.png", rgba)), rgb)
    grey = read_rgb(trees.write_png(tmp_path / "g.png", rgb[..., 0]))
    np.testing.assert_array_equal(grey, np.repeat(rgb[..., :1], 3, axis=2))
    palette = Image.fromarray(rgb).quantize(16)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "p.png"), np.array(palette.convert("RGB")))
    np.save(tmp_path / "n.npy", rgb)
    np.testing.assert_array_equal(read_rgb(tmp_path / "n.npy"), rgb)
    tifffile.imwrite(tmp_path / "t.tif", rgb, photometric="rgb")
    np.testing.assert_array_equal(read_rgb(tmp_path / "t.tif"), rgb)

    rgba[0, 0, 3] = 254
    with pytest.raises(DataError, match=r"b\.png: .*not opaque"):
        read_rgb(trees.write_png(tmp_path / "b.png", rgba))


def test_colour_that_is_turned_by_exif(tmp_path):
    image = Image.fromarray(trees.rgb_array())
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    with pytest.raises(DataError, match="EXIF orientation 6"):
        read_rgb(tmp_path / "turned.jpg")
    image.save(tmp_path / "upright.jpg")
    assert read_rgb(tmp_path / "upright.jpg").shape == (*trees.SIZE, 3)


def test_16_bit_colour_png(tmp_path):
    # Pillow writes none, but reads one as if it had 8 bits
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    pixels = zlib.compress(2 * (b"\0" + bytes(12)))
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    with Image.open(path) as image:
        assert image.mode == "RGB"
    with pytest.raises(DataError, match=r"deep\.png: .* 8 bits per channel, got 16"):
        read_rgb(path)


def test_masks(tmp_path):
    mask = trees.mask_array() // 255 * 7
    np.testing.assert_array_equal(read_mask(trees.write_png(tmp_path / "m.png", mask)), mask > 0)
    Image.fromarray(mask > 0).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "one.png"), mask > 0)
    for name, array in (("rgb.png", trees.rgb_array()), ("m.jpg", mask)):
        with pytest.raises(DataError, match=name):
            read_mask(trees.write_png(tmp_path / name, array))
    np.save(tmp_path / "f.npy", mask / 7)
    with pytest.raises(DataError, match="whole numbers"):
        read_mask(tmp_path / "f.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_wrong_coordinates_become_invalid(tmp_path, value):
    cloud = trees.xyz_array()
    cloud[2, 3, 0] = value
    xyz = read_xyz(trees.write_xyz(tmp_path / "c.tiff", cloud))
    assert (xyz[2, 3] == 0).all()
    cloud[2, 3] = 0
    np.testing.assert_array_equal(xyz, cloud)

    cloud[: trees.SIZE[0] // 2, :, 2] = value
    with pytest.raises(DataError, match=r"c\.tiff: 60 of 120 pixels are NaN"):
        read_xyz(trees.write_xyz(tmp_path / "c.tiff", cloud))


def test_point_clouds_of_the_wrong_kind(tmp_path):
    with pytest.raises(DataError, match="no valid pixel"):
        read_xyz(trees.write_xyz(tmp_path / "zero.tiff", trees.xyz_array() * 0))
    tifffile.imwrite(tmp_path / "z.tiff", trees.xyz_array()[..., 2])
    with pytest.raises(DataError, match=r"z\.tiff: a point cloud needs"):
        read_xyz(tmp_path / "z.tiff")
    with pytest.raises(DataError, match=r"rgb\.tiff: a point cloud needs"):
        read_xyz(trees.write_xyz(tmp_path / "rgb.tiff", trees.rgb_array()))
    np.save(tmp_path / "mm.npy", trees.xyz_array().astype(np.float64) * 1000)
    np.testing.assert_allclose(
        read_xyz(tmp_path / "mm.npy", scale=0.001), trees.xyz_array(), rtol=1e-6
    )


def test_depth_maps(tmp_path):
    stored = (trees.xyz_array()[..., 2] * 1000).astype(np.uint16)
    stored[0, 0] = 0
    expected = (stored * 0.001).astype(np.float32)
    tifffile.imwrite(tmp_path / "d.tiff", stored)
    np.save(tmp_path / "d.npy", stored)
    trees.write_png(tmp_path / "d.png", stored)
    for name in ("d.tiff", "d.npy", "d.png"):
        np.testing.assert_array_equal(read_depth(tmp_path / name, 0.001), expected)
    with pytest.raises(DataError, match="at least 16 bits, got uint8"):
        read_depth(trees.write_png(tmp_path / "8.png", stored.astype(np.uint8)))
    metres = expected.copy()
    metres[1, 1:3] = np.nan, -0.2
    np.save(tmp_path / "m.npy", metres)
    assert (read_depth(tmp_path / "m.npy")[1, 1:3] == 0).all()


def test_files_that_are_none(tmp_path):
    cases = {"empty.png": b"", "text.png": b"hello" * 20, "text.tiff": b"II*\0", "x.npy": b"PK\3\4"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            read_rgb(tmp_path / name)
    with pytest.raises(DataError, match=r"none\.jpg"):
        read_rgb(tmp_path / "none.jpg")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"object\.npy"):
        read_rgb(tmp_path / "object.npy")
