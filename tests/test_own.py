"""`iumad data new`: mappings, the index that is written, and the data set that reads it."""

import json
import os

import numpy as np
import pandas as pd
import pytest
import tifffile
import trees
import yaml

from iumad.config.sections import FolderConfig
from iumad.data import open_dataset
from iumad.data.folders.own import (
    SAMPLES_FILE,
    SETTINGS_FILE,
    Mapping,
    OwnDataset,
    new_dataset,
    read_mapping,
)
from iumad.errors import ConfigError, DataError

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
    assert dataset.index["rgb"].str.startswith("../exports/").all()
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
        ({"categories": {"a": {"good": {}}}}, "needs rgb, depth or both"),
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
        (11, "mask", "", "line 13: 'scratch' is a defect without a mask"),
        (0, "rgb", "OK parts/no.png", "no.png: is missing"),
        (0, "rgb", "", "line 2: needs rgb"),
        (0, "split", "training", "line 2: split needs one of train"),
        (0, "geometric", "perhaps", "line 2: geometric needs yes, no"),
        (0, "defect", "scratch", "line 2: train may hold good samples only"),
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


def test_fingerprint_follows_scale_and_files(tmp_path):
    root = captures(tmp_path)
    settings = new_dataset(Mapping.model_validate(mapping()), root)
    sample_id = "bracket/train/good/part 1"
    before = OwnDataset(root).fingerprint(sample_id)
    os.utime(root / "OK parts" / "depth" / "part 1.png", ns=(1, 1))
    changed = OwnDataset(root).fingerprint(sample_id)
    settings.write_text("version: 1\ndepth_scale: 0.0001\n")
    assert len({before, changed, OwnDataset(root).fingerprint(sample_id)}) == 3
