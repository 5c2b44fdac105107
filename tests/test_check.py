"""`check_dataset`, layout detection and contact sheets."""

import shutil

import numpy as np
import pytest
import tiny
import trees

from iumad.config.schema import StudyConfig
from iumad.config.sections import MiniCandiesConfig
from iumad.data.check import (
    ALPHAS,
    LABEL,
    TILE,
    check_dataset,
    contact_sheet,
    data_problems,
    detect_layout,
    open_folder,
    outlined,
    perturbation_sheet,
)
from iumad.data.minicandies import MiniCandies
from iumad.data.own import Mapping, new_dataset
from iumad.data.public import MVTec3D
from iumad.errors import DataError
from iumad.study.runner import check_study


def own_folder(root):
    for number in range(4):
        trees.write_png(root / "good" / f"{number}.png", trees.rgb_array(number))
    mapping = {"categories": {"bolt": {"good": {"rgb": "good"}}}}
    new_dataset(Mapping.model_validate(mapping), root)
    return root


def small_eyecandies(root):
    (root / "store").mkdir(parents=True)
    tree = trees.EyecandiesTree(root / "eyecandies", root / "store")
    tree.add("Lollipop", "train", "000")
    tree.add("Lollipop", "val", "000")
    tree.add("Lollipop", "test_public", "00")
    tree.add("Lollipop", "test_public", "01", ("bumps",))
    return tree.root


@pytest.fixture(params=["mvtec3d", "mvtec", "eyecandies", "folder"])
def layout_and_root(request, tmp_path):
    make = {
        "mvtec3d": trees.small_mvtec3d,
        "mvtec": trees.small_mvtec,
        "eyecandies": small_eyecandies,
        "folder": own_folder,
    }[request.param]
    (tmp_path / "data").mkdir()
    return request.param, make(tmp_path / "data")


def test_every_layout_is_recognised_and_clean(layout_and_root):
    layout, root = layout_and_root
    assert detect_layout(root) == layout
    report = check_dataset(root)
    assert report.layout == layout
    assert report.ok, report.errors
    assert report.table["unreadable"].sum() == 0
    again = check_dataset(open_folder(root))
    assert again.table.equals(report.table)


def test_table_by_hand(tmp_path):
    report = check_dataset(trees.small_mvtec3d(tmp_path / "data", ("bolt",)))
    row = report.table.iloc[0].to_dict()
    assert row == {
        "category": "bolt",
        "train": 2,
        "validation": 1,
        "test_good": 1,
        "test_defect": 2,
        "defects": "color 1, hole 1",
        "size": "12 x 10",
        "valid_depth": 1.0,
        "unreadable": 0,
    }
    assert report.differences is None
    assert report.warnings == ()


def test_every_problem_is_listed(tmp_path):
    root = trees.small_mvtec3d(tmp_path / "data")
    (root / "screw").mkdir()
    (root / "bolt" / "test" / "hole" / "gt" / "000.png").unlink()
    damaged = root / "nut" / "train" / "good" / "rgb" / "001.png"
    damaged.write_bytes(damaged.read_bytes()[:-60])
    trees.write_xyz(
        root / "nut" / "train" / "good" / "xyz" / "000.tiff",
        np.full_like(trees.xyz_array(), np.nan),
    )
    report = check_dataset(root)
    assert not report.ok
    files = ("screw", "hole/rgb/000.png", "rgb/001.png", "xyz/000.tiff")
    assert len(report.errors) == 4
    assert all(any(file in error for error in report.errors) for file in files)
    assert report.table["unreadable"].tolist() == [0, 2]


def test_unusual_is_a_warning(tmp_path):
    root = trees.small_mvtec3d(tmp_path / "data")
    trees.write_png(root / "bolt" / "test" / "hole" / "gt" / "000.png", trees.mask_array(False))
    for kind in ("rgb", "xyz", "gt"):
        for path in (root / "nut" / "test" / "good" / kind).iterdir():
            path.unlink()
        (root / "nut" / "test" / "good" / kind).rmdir()
    (root / "nut" / "test" / "good").rmdir()
    report = check_dataset(root)
    assert report.ok
    assert report.warnings == (
        "bolt/test/hole/000: is a defect, but its mask is empty",
        "nut: has no good test images, so AUROC is undefined",
    )


def test_counts_are_compared_with_the_published_ones(tmp_path):
    report = check_dataset(trees.small_mvtec3d(tmp_path / "data", ("bagel",)))
    bagel = report.differences[report.differences["category"] == "bagel"]
    assert ["bagel", "train", "good", 244, 2] in bagel.to_numpy().tolist()
    assert set(report.differences["category"]) > {"bagel", "tire"}


def test_progress_sees_every_sample(tmp_path):
    seen = []

    def track(items):
        for item in items:
            seen.append(item)
            yield item

    check_dataset(trees.small_mvtec3d(tmp_path / "data"), track)
    assert len(seen) == 12


def test_folders_without_a_known_layout(tmp_path):
    (tmp_path / "photos" / "holiday").mkdir(parents=True)
    with pytest.raises(DataError, match="no known layout"):
        check_dataset(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        check_dataset(tmp_path / "none")


def test_nothing_usable_says_why(tmp_path):
    for kind in ("rgb", "xyz"):
        (tmp_path / "bolt" / "train" / "good" / kind).mkdir(parents=True)
    with pytest.raises(DataError, match="no images in train/good"):
        check_dataset(tmp_path)


@pytest.mark.slow
def test_real_data_is_clean(real_data):
    report = check_dataset(real_data / "real_rgbd")
    assert report.ok, report.errors
    assert len(report.warnings) == 1
    assert "depth_scaling: sample would" in report.warnings[0]  # a flat road, at many distances
    low, high = report.depth_range
    assert 1.15 < low < 1.2 < high < 1.25
    assert data_problems(open_folder(real_data / "real_rgbd")) == ([], [])
    assert report.table["valid_depth"].between(0.9, 1).all()
    assert (
        report.table[["train", "validation", "test_good", "test_defect"]].to_numpy().tolist()
        == [[16, 3, 8, 8]] * 3
    )
    report = check_dataset(real_data / "real_rgb")
    assert report.ok, report.errors
    defects = dict(zip(report.table["category"], report.table["test_defect"], strict=True))
    assert [defects[name] for name in ("bottle", "hazelnut", "transistor")] == [18, 8, 8]
    for name in ("real_rgbir", "real_rgbir_registered"):
        report = check_dataset(real_data / name)
        assert report.ok, report.errors
        assert report.modalities == ("rgb", "infrared")


def move(root, source, target):
    """Copy one sample's files to another place, as a hasty engineer does."""
    for path in (root / source.rpartition("/")[0]).rglob(f"{source.rpartition('/')[2]}.*"):
        place = root / target.rpartition("/")[0] / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place / f"{target.rpartition('/')[2]}{path.suffix}")


def in_millimetres(root):
    path = root / "nut" / "test" / "good" / "xyz" / "000.tiff"
    trees.write_xyz(path, trees.xyz_array() * np.float32(1000))


def empty_test(root):
    shutil.rmtree(root / "nut" / "test")
    (root / "nut" / "test").mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: move(root, "bolt/train/good/001", "bolt/test/good/007"),
            "one image in two splits",
        ),
        (
            lambda root: move(root, "bolt/test/hole/000", "bolt/test/good/007"),
            "one image, good in one place and defective in the other",
        ),
        (
            in_millimetres,
            "nut/test/good/xyz/000.tiff: its depth of about 505 m is far from the usual 0.50",
        ),
        (empty_test, "nut"),
    ],
    ids=["two splits", "good and defective", "millimetres", "empty test folder"],
)
def test_what_cannot_be_meant_is_refused_by_check_and_run_alike(tmp_path, spoil, message):
    root = trees.small_mvtec3d(tmp_path / "data")
    spoil(root)
    for path in root.glob("bolt/test/good/gt/007.png"):  # the copied mask would be refused first
        trees.write_png(path, trees.mask_array(False))
    report = check_dataset(root)
    assert any(message in text for text in report.errors), report.errors
    content = tiny.params(data={"name": "mvtec3d", "root": str(root)}, settings=["1-1"])
    for key in ("categories", "n_train", "n_validation", "n_test_good", "n_test_defect"):
        del content["data"][key]
    with pytest.raises(DataError) as caught:
        check_study(StudyConfig.model_validate(content), "cpu")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_good_images_alone_can_be_fitted_but_not_studied(tmp_path):
    root = trees.small_mvtec3d(tmp_path / "data")
    shutil.rmtree(root / "nut" / "test")
    report = check_dataset(root)
    assert report.errors == ()
    assert "nut: has no test images, so nothing could be measured" in report.warnings
    errors, _ = data_problems(open_folder(root))
    assert errors == ["nut: has no test images, so nothing could be measured"]


def test_what_is_odd_is_said(tmp_path):
    root = trees.small_mvtec3d(tmp_path / "data", ("bolt",))
    move(root, "bolt/train/good/001", "bolt/train/good/007")
    wide = (12, 30)
    for kind, array in (("rgb", trees.rgb_array(9, wide)), ("xyz", trees.xyz_array(9, wide))):
        write = trees.write_png if kind == "rgb" else trees.write_xyz
        suffix = "png" if kind == "rgb" else "tiff"
        write(root / "bolt" / "train" / "good" / kind / f"008.{suffix}", array)
    for warnings in (check_dataset(root).warnings, data_problems(open_folder(root))[1]):
        assert any("001 and bolt/train/good/007: one image, twice" in text for text in warnings)
        assert any("differ in shape" in text for text in warnings)


def test_contact_sheet_has_a_row_per_category(tmp_path):
    dataset = MVTec3D(trees.small_mvtec3d(tmp_path / "data"))
    sheet = contact_sheet(dataset)
    # good, color, hole; colour and depth side by side
    assert sheet.size == (3 * (2 * TILE + 4), 2 * (TILE + LABEL + 4))
    assert contact_sheet(dataset, n_defects=1).size[0] == 2 * (2 * TILE + 4)


def test_contact_sheet_survives_a_damaged_sample(tmp_path):
    root = trees.small_mvtec3d(tmp_path / "data", ("bolt",))
    dataset = MVTec3D(root)
    path = root / "bolt" / "test" / "hole" / "rgb" / "000.png"
    path.write_bytes(path.read_bytes()[:-40])
    pixels = np.asarray(contact_sheet(dataset))
    assert (pixels[LABEL + TILE - 1, 2 * (2 * TILE + 4)] == 128).all()  # a grey tile


def test_outline_by_hand():
    mask = np.zeros((5, 5), dtype=bool)
    mask[1:4, 1:4] = True
    image = outlined(np.zeros((5, 5, 3), dtype=np.uint8), mask)
    marked = image.any(axis=2)
    assert marked.sum() == 8
    assert not marked[2, 2]


def tile_at(sheet, column, row, below=0):
    """One picture of a perturbation sheet with depth."""
    left, top = column * (TILE + 4), row * (2 * TILE + LABEL + 4) + LABEL + below * TILE
    return np.asarray(sheet.crop((left, top, left + TILE, top + TILE))).astype(float)


def test_perturbation_sheet_grows_from_left_to_right():
    config = MiniCandiesConfig(image_size=64, n_train=1, n_test_defect=1)
    sheet = perturbation_sheet(MiniCandies(config), np.random.default_rng(0))
    assert sheet.size == (len(ALPHAS) * (TILE + 4), 2 * (2 * TILE + LABEL + 4))
    for row in (0, 1):
        first = tile_at(sheet, 0, row)
        change = [np.abs(tile_at(sheet, j, row) - first).mean() for j in range(len(ALPHAS))]
        assert change == sorted(change)
        assert change[1] > 0.5
    assert np.array_equal(tile_at(sheet, 0, 0), tile_at(sheet, 0, 1))  # intensity 0 of both
    depth = [tile_at(sheet, j, 1, below=1) for j in (0, 4)]
    assert np.abs(depth[1] - depth[0]).mean() > 10


def test_perturbation_sheet_says_why_backgrounds_are_missing(tmp_path):
    sheet = perturbation_sheet(
        open_folder(trees.small_mvtec(tmp_path / "data")), np.random.default_rng(0)
    )
    assert sheet.size == (len(ALPHAS) * (TILE + 4), 2 * (TILE + LABEL + 4))
    white = np.asarray(sheet)[LABEL : LABEL + TILE, TILE + 4 :]
    assert (white == 255).all()
