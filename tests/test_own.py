"""`iumad data new`: mappings, the index that is written, and the data set that reads it."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
import trees
import yaml

from iumad.config.files import build_study
from iumad.config.sections import FolderConfig
from iumad.data import open_dataset
from iumad.data.check import TILE, check_dataset, contact_sheet, open_folder
from iumad.data.own import (
    SAMPLES_FILE,
    SETTINGS_FILE,
    Mapping,
    OwnDataset,
    foreign_layout,
    new_dataset,
    new_from_foreign,
    read_mapping,
)
from iumad.errors import ConfigError, DataError
from iumad.study.steps import steps_of

DEPTH = (trees.xyz_array()[..., 2] * 1000).astype(np.uint16)


def write_depth(path, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "png":
        trees.write_png(path.with_suffix(".png"), DEPTH)
    elif kind == "tiff":
        tifffile.imwrite(path.with_suffix(".tiff"), DEPTH)
    elif kind == "npy":
        np.save(path.with_suffix(".npy"), DEPTH)
    else:
        np.save(path.with_suffix(".npy"), trees.xyz_array() * np.float32(1000))


def captures(root, kind="png"):
    """Ten good captures, two with a scratch, in folders of an engineer's own taste."""
    for number in range(10):
        name = f"part {number + 1}"
        trees.write_png(root / "OK parts" / "color" / f"{name}.png", trees.rgb_array(number))
        write_depth(root / "OK parts" / "depth" / name, kind)
    for name in ("a", "b"):
        trees.write_png(root / "scratched" / f"{name}.png", trees.rgb_array())
        trees.write_png(root / "scratched masks" / f"{name}_mask.png", trees.mask_array())
        write_depth(root / "scratched depth" / name, kind)
    return root


def mapping(**changes):
    content = {
        "categories": {
            "bracket": {
                "good": {"rgb": "OK parts/color", "depth": "OK parts/depth"},
                "defects": {
                    "scratch": {
                        "rgb": "scratched",
                        "depth": "scratched depth",
                        "mask": "scratched masks",
                        "geometric": False,
                    }
                },
            }
        }
    }
    return content | changes


@pytest.mark.parametrize("kind", ["png", "tiff", "npy"])
def test_index_and_samples(tmp_path, kind):
    lens = {"fx": 500.0, "fy": 500.0, "cx": 5.0, "cy": 6.0}
    root = captures(tmp_path, kind)
    path = new_dataset(Mapping.model_validate(mapping(intrinsics=lens)), root)
    assert path == root / SETTINGS_FILE
    dataset = open_dataset(FolderConfig(name="folder", root=root))
    assert dataset.categories == ("bracket",)
    assert dataset.modalities == ("rgb", "depth")
    counts = dataset.index.groupby(["split", "defect"]).size().to_dict()
    assert counts == {
        ("train", "good"): 7,
        ("validation", "good"): 1,
        ("test", "good"): 2,
        ("test", "scratch"): 2,
    }
    # dealt out in natural order: part 10 comes last and is a test image
    assert "bracket/test/good/part 10" in set(dataset.index["sample_id"])

    sample = dataset.load("bracket/test/scratch/a")
    assert sample.geometric is False
    np.testing.assert_array_equal(sample.mask, trees.mask_array() > 0)
    np.testing.assert_allclose(sample.xyz[..., 2], DEPTH * 0.001, rtol=1e-6)
    # x = (column - 5) z / 500
    np.testing.assert_allclose(sample.xyz[:, 9, 0], 4 * DEPTH[:, 9] * 0.001 / 500, rtol=1e-6)


def test_point_clouds_with_a_scale(tmp_path):
    root = captures(tmp_path, "cloud")
    new_dataset(Mapping.model_validate(mapping(depth_scale=0.001)), root)
    sample = OwnDataset(root).load("bracket/train/good/part 1")
    np.testing.assert_allclose(sample.xyz, trees.xyz_array(), atol=1e-6)


def test_without_intrinsics_the_longer_side_is_the_focal_length(tmp_path):
    root = captures(tmp_path)
    new_dataset(Mapping.model_validate(mapping()), root)
    xyz = OwnDataset(root).load("bracket/train/good/part 1").xyz
    # 12 x 10 pixels: the last column is 4.5 pixels right of the centre
    np.testing.assert_allclose(xyz[:, 9, 0], 4.5 * DEPTH[:, 9] * 0.001 / 12, rtol=1e-6)


@pytest.mark.parametrize(("keep", "modalities"), [("rgb", ("rgb",)), ("depth", ("depth",))])
def test_one_modality_only(tmp_path, keep, modalities):
    content = mapping()
    bracket = content["categories"]["bracket"]
    drop = {"rgb": "depth", "depth": "rgb"}[keep]
    del bracket["good"][drop], bracket["defects"]["scratch"][drop]
    root = captures(tmp_path)
    new_dataset(Mapping.model_validate(content), root)
    dataset = OwnDataset(root)
    assert dataset.modalities == modalities
    sample = dataset.load("bracket/test/scratch/b")
    assert (sample.xyz is None) == (keep == "rgb")
    assert sample.rgb.any() == (keep == "rgb")
    assert sample.mask.any()


def test_captures_outside_the_root(tmp_path):
    captures(tmp_path / "exports")
    content = json.loads(
        json.dumps(mapping())
        .replace("OK parts", str(tmp_path / "exports" / "OK parts"))
        .replace('"scratched', f'"{tmp_path / "exports"}/scratched')
    )
    root = tmp_path / "data set"
    root.mkdir()
    new_dataset(Mapping.model_validate(content), root)
    dataset = OwnDataset(root)
    lines = (root / SAMPLES_FILE).read_text().splitlines()[1:]
    assert all(",../exports/" in line for line in lines)
    assert dataset.load("bracket/test/scratch/a").label == 1


def test_mapping_file(tmp_path):
    path = tmp_path / "mapping.yaml"
    path.write_text(yaml.safe_dump(mapping(depth_scale=0.0001)))
    assert read_mapping(path).depth_scale == 0.0001


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth_scal": 1}, "depth_scal"),
        ({"depth_scale": 0}, "depth_scale"),
        ({"depth_scale": ".inf"}, "depth_scale"),
        ({"intrinsics": {"fx": 1}}, "intrinsics.fy"),
        ({"test_share": 0.5, "validation_share": 0.5}, "below 1"),
        ({"categories": {}}, "categories"),
        ({"categories": {"a": {"good": {}}}}, "needs rgb, depth or others"),
    ],
)
def test_wrong_mapping(tmp_path, changes, message):
    path = tmp_path / "mapping.yaml"
    path.write_text(yaml.safe_dump(mapping(**changes)))
    with pytest.raises(ConfigError, match=r"mapping\.yaml") as caught:
        read_mapping(path)
    assert message in str(caught.value)


def test_mapping_that_is_no_yaml(tmp_path):
    for content in ("[1", "text", ""):
        (tmp_path / "m.yaml").write_text(content)
        with pytest.raises(ConfigError, match=r"m\.yaml"):
            read_mapping(tmp_path / "m.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_mapping(tmp_path / "none.yaml")


def test_new_refuses_what_does_not_pair_up(tmp_path):
    root = captures(tmp_path)
    chosen = Mapping.model_validate(mapping())
    (root / "scratched depth" / "b.png").unlink()
    with pytest.raises(DataError, match="'b' is in one of them only"):
        new_dataset(chosen, root)
    (root / "scratched" / "b.png").unlink()
    with pytest.raises(DataError, match="scratched masks"):
        new_dataset(chosen, root)
    assert not (root / SETTINGS_FILE).exists()
    missing = mapping()
    missing["categories"]["bracket"]["good"]["rgb"] = "nowhere"
    with pytest.raises(DataError, match="nowhere: does not exist"):
        new_dataset(Mapping.model_validate(missing), root)


def test_new_keeps_an_existing_index(tmp_path):
    root = captures(tmp_path)
    chosen = Mapping.model_validate(mapping())
    new_dataset(chosen, root)
    with pytest.raises(DataError, match="exists already"):
        new_dataset(chosen, root)


def test_too_few_good_captures(tmp_path):
    root = captures(tmp_path)
    content = mapping(test_share=0.49, validation_share=0.5)
    with pytest.raises(DataError, match="'bracket': 10 good captures leave none for training"):
        new_dataset(Mapping.model_validate(content), root)


def edited(root, edit):
    """Write an index, change its table, and return the message of the refusal."""
    new_dataset(Mapping.model_validate(mapping()), root)
    table = pd.read_csv(root / SAMPLES_FILE, dtype=str, keep_default_na=False)
    edit(table).to_csv(root / SAMPLES_FILE, index=False)
    with pytest.raises(DataError) as caught:
        OwnDataset(root)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (11, "mask", "", "line 13: 'scratch' is a defect without a mask, others of it have one"),
        (0, "category", " bracket", "line 2: category: a name was expected"),
        (0, "name", "a/b", "has a separator of paths"),
        (0, "rgb", "OK parts/no.png", "no.png: is missing"),
        (0, "rgb", "", "line 2: needs rgb"),
        (0, "split", "training", "line 2: split needs one of train"),
        (0, "geometric", "perhaps", "line 2: geometric needs yes, no"),
        (0, "defect", "scratch", "line 2: train may hold good samples only"),
        (11, "defect", "Good", "bracket: defects 'good' and 'Good' differ in case only"),
    ],
)
def test_wrong_lines_are_named(tmp_path, row, column, value, message):
    def edit(table):
        table.loc[row, column] = value
        return table

    assert message in edited(captures(tmp_path), edit)


def test_other_wrong_tables(tmp_path):
    root = captures(tmp_path)
    assert "needs the columns" in edited(root, lambda table: table.drop(columns="mask"))
    for file in (SETTINGS_FILE, SAMPLES_FILE):
        (root / file).unlink()
    twice = edited(root, lambda table: pd.concat([table, table.head(1)]))
    assert "bracket/train/good/part 1" in twice
    lines = (root / SAMPLES_FILE).read_text().splitlines()
    (root / SAMPLES_FILE).write_text("\n".join([lines[0], *(f"{line}," for line in lines[1:])]))
    with pytest.raises(DataError, match="more cells than its head names columns"):
        OwnDataset(root)
    (root / SAMPLES_FILE).write_bytes(b'\xff\xfe"')
    with pytest.raises(DataError, match="cannot be read"):
        OwnDataset(root)


def test_wrong_settings(tmp_path):
    root = captures(tmp_path)
    with pytest.raises(ConfigError, match="iumad data new"):
        OwnDataset(root)
    settings = new_dataset(Mapping.model_validate(mapping()), root)
    settings.write_text("version: 2\n")
    with pytest.raises(ConfigError, match="version: needs 1, got 2"):
        OwnDataset(root)
    settings.write_text("version: 1\nscale: 2\n")
    with pytest.raises(ConfigError, match="scale"):
        OwnDataset(root)


def test_identity_follows_the_camera_and_the_files(tmp_path):
    root = captures(tmp_path)
    settings = new_dataset(Mapping.model_validate(mapping()), root)
    sample_id = "bracket/train/good/part 1"
    before = OwnDataset(root).fingerprint(sample_id)
    trees.write_png(root / "OK parts" / "depth" / "part 1.png", DEPTH + 1)
    changed = OwnDataset(root).fingerprint(sample_id)
    settings.write_text("version: 1\ndepth_scale: 0.0001\n")
    assert len({before, changed, OwnDataset(root).fingerprint(sample_id)}) == 3


def test_an_evaluation_follows_the_validation_images(tmp_path):
    root = captures(tmp_path)
    new_dataset(Mapping.model_validate(mapping()), root)
    content = {
        "data": {"name": "folder", "root": str(root)},
        "settings": ["1-0"],
        "methods": {"bank": {}},
    }
    run = build_study(content, "file.yaml").runs()[0]
    (validation, *_) = OwnDataset(root).ids("validation", ["bracket"])
    (before,) = steps_of(run, tmp_path, OwnDataset(root))
    depth = OwnDataset(root).files(validation)["depth"]
    trees.write_png(depth, DEPTH + 1)
    (after,) = steps_of(run, tmp_path, OwnDataset(root))
    assert before.folder == after.folder and before.rows != after.rows


def with_infrared(root, dtype=np.uint16):
    """The captures with a further image and without masks."""
    content = mapping()
    bracket = content["categories"]["bracket"]
    for folders, source in (
        (bracket["good"], "OK parts/color"),
        (bracket["defects"]["scratch"], "scratched"),
    ):
        for number, path in enumerate(sorted((root / source).iterdir())):
            heat = trees.rgb_array(number)[..., 0].astype(dtype) * (
                100 if dtype == np.uint16 else 1
            )
            trees.write_png(root / f"{source} IR" / path.name, heat)
        folders["others"] = {"infrared": f"{source} IR"}
    del bracket["defects"]["scratch"]["mask"]
    return content


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_registered_image_and_defects_without_masks(tmp_path, dtype):
    root = captures(tmp_path)
    new_dataset(Mapping.model_validate(with_infrared(root, dtype)), root)
    dataset = open_dataset(FolderConfig(name="folder", root=root))
    assert dataset.modalities == ("rgb", "depth", "infrared")
    sample = dataset.load("bracket/test/scratch/a")
    assert sample.others["infrared"].dtype == dtype
    assert sample.mask is None
    assert any("scratch: 2 defects without masks" in note for note in dataset.notes)
    sheet = contact_sheet(dataset)
    assert sheet.size[0] == 2 * (3 * TILE + 4)  # good and scratch; colour, depth, infrared


def test_a_modality_needs_a_usable_name():
    for name in ("Infrared", "a-b", "mask", "xyz", ""):
        folders = {"rgb": "a", "others": {name: "b"}}
        with pytest.raises(ValueError, match="others: a modality needs a name"):
            Mapping.model_validate({"categories": {"c": {"good": folders}}})


def visa(root):
    """VisA as distributed, one category."""
    lines = ["object,split,label,image,mask"]
    for number, (split, label) in enumerate(
        [("train", "normal"), ("train", "normal"), ("test", "normal"), ("test", "anomaly")]
    ):
        kind = {"normal": "Normal", "anomaly": "Anomaly"}[label]
        image, mask = f"candle/Data/Images/{kind}/{number:04d}.JPG", ""
        trees.write_png(root / image.lower(), trees.rgb_array(number))
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image.lower()).rename(root / image)
        if label == "anomaly":
            mask = f"candle/Data/Masks/Anomaly/{number:04d}.png"
            trees.write_png(root / mask, trees.mask_array() // 255)
        lines.append(f"candle,{split},{label},{image},{mask}")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(lines) + "\n")


def mulsen(root):
    """MulSen-AD as distributed, one category: one anomaly is seen in RGB, one is not."""
    for sensor in ("RGB", "Infrared"):
        folder, seed = root / "capsule" / sensor, 10 * (sensor == "RGB")
        for number in range(2):
            trees.write_png(folder / "train" / f"{number}.png", trees.rgb_array(seed + number))
        trees.write_png(folder / "test" / "good" / "0.png", trees.rgb_array(seed + 2))
        for number in range(2):
            image = trees.rgb_array(seed + 3 + number)
            trees.write_png(folder / "test" / "hole" / f"{number}.png", image)
        trees.write_png(folder / "GT" / "hole" / "0.png", trees.mask_array())
    (root / "capsule" / "Pointcloud" / "train").mkdir(parents=True)
    (root / "capsule" / "Pointcloud" / "train" / "0.stl").write_text("solid")


@pytest.mark.parametrize(
    ("make", "name", "modalities", "masked"),
    [
        (visa, "VisA", ("rgb",), [True, True, True, True]),
        (mulsen, "MulSen-AD", ("rgb", "infrared"), [True, True, True, True, False]),
    ],
)
def test_known_data_sets_as_distributed(tmp_path, make, name, modalities, masked):
    source, root = tmp_path / "downloaded", tmp_path / "index"
    make(source)
    root.mkdir()
    with pytest.raises(DataError, match=f"looks like {name} as distributed; `iumad data new"):
        check_dataset(source)
    new_from_foreign(foreign_layout(source), source, root)
    report = check_dataset(root)
    assert report.ok, report.errors
    assert report.modalities == modalities
    dataset = open_folder(root)
    assert dataset.index["masked"].tolist() == masked
    assert len(dataset.ids("train")) == 2
    assert dataset.index["label"].sum() == len(masked) - 3
