"""Model files: thresholds, what is written and read, predictions equal to the study's, learning a new product."""

import copy
import json
import math
import shutil
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import trees
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from iumad import Predictor
from iumad.cli import app
from iumad.config.files import build_study
from iumad.data import open_dataset
from iumad.data.check import open_folder
from iumad.data.images import read_header, read_rgb, read_xyz
from iumad.data.minicandies import MiniCandies
from iumad.data.own import Mapping, new_dataset
from iumad.data.prepare import prepare_capture
from iumad.data.public import export_mvtec3d
from iumad.errors import CheckpointError, ConfigError, DataError
from iumad.evaluation.evaluate import anomaly_maps
from iumad.evaluation.metrics import image_scores
from iumad.features.cache import FeatureStore
from iumad.inspection.export import export_model
from iumad.inspection.fit import (
    _kept_were_held_out,
    _split,
    fit_folder,
    learn_folder,
    own_run,
    pack_run,
)
from iumad.inspection.model_file import (
    load_model,
    promise,
    read_card,
    save_model,
    threshold_from_defects,
    threshold_from_good,
)
from iumad.inspection.outputs import keys_of, overlay, report_page, table_of
from iumad.inspection.predictor import _largest_region, _lead
from iumad.study.runner import RunWork, load_detector, run_one
from iumad.study.steps import steps_of

SMALL = [
    "data.image_size=32",
    "features={weights: random, grid: 4, levels: [1, 2]}",
    "evaluation.pool=4",
]
TRAINED = [*SMALL, "model.dim=16", "model.heads=2", "training.epochs=2", "increment.epochs=2"]


@contextmanager
def silent(title, total):  # noqa: ARG001
    yield [].append


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """MiniCandies of three categories on disk, in the layout of MVTec 3D-AD."""
    root = tmp_path_factory.mktemp("own") / "candies"
    names = ["chocolate", "pretzel", "madeleine"]
    content = {"name": "minicandies", "categories": names, "image_size": 32, "n_train": 6}
    counts = {"n_validation": 2, "n_test_good": 2, "n_test_defect": 2, "seed": 0}
    config = build_study({"data": content | counts}, "test").data
    export_mvtec3d(MiniCandies(config), root)
    return root


@pytest.fixture(scope="module")
def fitted(folder):
    return fit_folder(folder, own_run(folder, assignments=SMALL), 0.05, silent)


@pytest.fixture(scope="module")
def file(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "candies.iumad"
    save_model(fitted.model, path)
    return path


# --- thresholds ---------------------------------------------------------------------------------


def test_the_threshold_of_two_scores_by_hand():
    # logs 0 and 2: mean 1, deviation sqrt(2); t(0.75, 1) = 1; limit 1 + sqrt(2) sqrt(3 / 2) = 1 + sqrt(3)
    found = threshold_from_good([1.0, math.e**2], 0.25)
    assert found.value == pytest.approx(math.exp(1 + math.sqrt(3)))
    assert found.interval == (0.0, pytest.approx(1 - 0.05**0.5))  # 0 of 2
    assert "0 of 2 held-out good images" in promise(found)


def test_new_good_images_exceed_the_threshold_as_often_as_was_asked():
    rng = np.random.default_rng(0)
    for n, rate in ((5, 0.05), (20, 0.05), (20, 0.2)):
        alarms = [
            np.mean(
                np.exp(rng.normal(size=50))
                > threshold_from_good(np.exp(rng.normal(size=n)).tolist(), rate).value
            )
            for _ in range(400)
        ]
        assert 0.6 * rate < np.mean(alarms) < rate + 0.01


@given(
    st.lists(st.floats(0.01, 100), min_size=2, max_size=30),
    st.floats(0.001, 0.5),
    st.floats(0.01, 100),
)
@settings(max_examples=60, deadline=None)
def test_normalised_scores_rise_through_one_half_at_the_threshold(scores, rate, score):
    found = threshold_from_good(scores, rate)
    assert found.normalised(found.value) == pytest.approx(0.5)
    assert 0 < found.normalised(score) < 1
    assert (found.normalised(score) > 0.5) == (score > found.value) or score == pytest.approx(
        found.value
    )


def test_a_threshold_moves_with_the_scores_of_good_images():
    found = threshold_from_good([1.0, 2.0, 4.0], 0.1)
    moved = found.moved([1.0, 4.0], [2.0, 8.0])  # all scores double
    assert moved.value == pytest.approx(2 * found.value)
    assert moved.normalised(6.0) == pytest.approx(found.normalised(3.0))
    assert found.moved([1.0, 4.0], [4.0, 1.0]) == found  # none on average


def test_the_threshold_from_defects_has_the_lowest_cost_or_the_highest_f1():
    good, bad = [1.0, 2.0, 3.0, 10.0], [4.0, 5.0, 20.0]
    found = threshold_from_defects(good, bad, miss_cost=1.0)  # one false alarm, no miss
    assert 3 < found.value < 4 and found.source == "defects"
    # misses of 4 and 5 are better than the alarm at 10
    cheap = threshold_from_defects(good, bad, miss_cost=0.1)
    assert 10 < cheap.value < 20
    good, bad = [1.0, 2.0, 3.0, 4.0], [2.5]
    assert threshold_from_defects(good, bad, miss_cost=1.0).value == 4  # one miss beats two alarms
    assert 2 < threshold_from_defects(good, bad).value < 2.5  # F1 is 1/2 there, 0 without a catch


@pytest.mark.parametrize(
    "call",
    [
        lambda: threshold_from_good([1.0], 0.1),
        lambda: threshold_from_good([1.0, 2.0], 0.9),
        lambda: threshold_from_defects([], [1.0]),
        lambda: threshold_from_defects([1.0], [2.0], 0.0),
    ],
)
def test_thresholds_that_cannot_be_found(call):
    with pytest.raises(ConfigError):
        call()


# --- the file -----------------------------------------------------------------------------------


def test_a_model_comes_back_with_the_same_bits_without_its_folder(folder, fitted, file, tmp_path):
    image, cloud = pair(folder, "chocolate")
    before = Predictor(fitted.model)(image, cloud, "chocolate")
    alone = tmp_path / "elsewhere" / "renamed.iumad"
    alone.parent.mkdir()
    shutil.copy(file, alone)
    after = Predictor.load(alone)(image, cloud, "chocolate")
    assert before.score == after.score
    np.testing.assert_array_equal(before.anomaly_map, after.anomaly_map)
    card = read_card(alone)
    assert card.categories == ("chocolate", "madeleine", "pretzel")
    assert str(folder) not in json.dumps(card.model_dump(mode="json"))
    save_model(load_model(alone), tmp_path / "again.iumad")
    assert (tmp_path / "again.iumad").read_bytes() == file.read_bytes()


def test_damage_is_found_and_named(file, tmp_path):
    data = file.read_bytes()
    cases = {"empty": b"", "text": b"hello", "cut": data[: len(data) // 2]}
    middle = bytearray(data)
    middle[len(data) // 2] ^= 255
    cases["flipped"] = bytes(middle)
    for name, content in cases.items():
        path = tmp_path / f"{name}.iumad"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}.iumad"):
            load_model(path)
    with pytest.raises(CheckpointError, match="no such model file"):
        load_model(tmp_path / "nowhere.iumad")


def test_a_newer_version_is_refused(file, tmp_path):
    path = tmp_path / "newer.iumad"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "card.json":
                content = json.dumps(json.loads(content) | {"version": 99}).encode()
            new.writestr(name, content)
    with pytest.raises(CheckpointError, match="version 99"):
        load_model(path)


# --- predictions --------------------------------------------------------------------------------


def pair(folder, category, defect="good"):
    image = sorted((folder / category / "test" / defect / "rgb").glob("*"))[0]
    return image, next((folder / category / "test" / defect / "xyz").glob(f"{image.stem}.*"))


def depth_maps(folder, place):
    """The same data as 16-bit depth maps in tenths of a millimetre, mapped by `iumad data new`."""
    root, categories = place / "maps", {}
    for category in ("chocolate", "pretzel"):
        for split in ("train", "test"):
            for rgb in (folder / category / split / "good" / "rgb").glob("*.png"):
                target = root / category / f"{split}_{rgb.stem}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(rgb, target)
                z = read_xyz(rgb.parents[1] / "xyz" / f"{rgb.stem}.tiff")[..., 2]
                trees.write_png(
                    root / f"{category}_z" / target.name, np.round(z * 1e4).astype(np.uint16)
                )
        categories[category] = {
            "good": {"rgb": str(root / category), "depth": str(root / f"{category}_z")}
        }
    content = {"depth_scale": 1e-4, "categories": categories}
    new_dataset(Mapping.model_validate(content), root)
    return root


def further_image(folder, place):
    """The same data with a third image of 16 bits."""
    root = Path(shutil.copytree(folder, place / "heated"))
    for rgb in root.rglob("rgb/*.png"):
        heat = read_rgb(rgb)[..., 1].astype(np.uint16) * 31
        trees.write_png(rgb.parents[1] / "ir" / rgb.name, heat)
    return root


def eyecandies(folder, place):
    """Two categories in the layout of Eyecandies, with depth between limits that differ from sample to sample."""
    root = place / "eyecandies"
    for category in ("chocolate", "pretzel"):
        for split, name in (("train", "train"), ("validation", "val"), ("test", "test_public")):
            source = folder / category / split / "good"
            for rgb in sorted((source / "rgb").glob("*.png")):
                target = root / category / name / "data" / rgb.stem
                trees.write_png(target.with_name(f"{rgb.stem}_image_4.png"), read_rgb(rgb))
                z = read_xyz(source / "xyz" / f"{rgb.stem}.tiff")[..., 2]
                low, high = float(z[z > 0].min()) - 0.01, float(z.max()) + 0.01
                stored = np.clip((z - low) / (high - low), 0, 1) * 65535
                trees.write_png(target.with_name(f"{rgb.stem}_depth.png"), stored.astype(np.uint16))
                limits = f"normalization: {{min: {low}, max: {high}}}"
                target.with_name(f"{rgb.stem}_info_depth.yaml").write_text(limits)
                if split == "test":
                    mask = np.zeros((32, 32), np.uint8)
                    trees.write_png(target.with_name(f"{rgb.stem}_mask.png"), mask)
                    target.with_name(f"{rgb.stem}_metadata.yaml").write_text("anomalous: 0")
    return root


MAKERS = {
    "folder of depth maps": depth_maps,
    "depth and infrared of 16 bits": further_image,
    "eyecandies": eyecandies,
}


@pytest.fixture(scope="module", params=["mvtec3d", "mvtec3d with remove_plane", *MAKERS])
def kind_and_root(request, folder, tmp_path_factory):
    """Every kind of data on disk."""
    kind = request.param
    root = MAKERS[kind](folder, tmp_path_factory.mktemp("kind")) if kind in MAKERS else folder
    return kind, root


def own_run_of(kind, root, *changes):
    plane = ["data.remove_plane=true"] if kind.endswith("plane") else []
    return own_run(root, assignments=[*SMALL, *plane, *changes])


def captures_of(dataset, count=2):
    """Ids of the first test images of each category, and the files of their images."""
    test = dataset.index[dataset.index["split"] == "test"].groupby("category").head(count)
    ids = test["sample_id"].tolist()
    return ids, [{k: v for k, v in dataset.files(each).items() if k != "mask"} for each in ids]


@pytest.mark.parametrize(
    ("encoding", "scaling"),
    [
        *((encoding, "measured") for encoding in ("z", "z+normals", "xyz255")),
        *((encoding, "sample") for encoding in ("z", "z+normals")),
        *((encoding, "[0.2, 0.9]") for encoding in ("z", "z+normals")),
    ],
)
def test_files_are_prepared_as_the_study_s_images_bit_for_bit(kind_and_root, encoding, scaling):
    changes = (f"data.depth_encoding={encoding}", f"data.depth_scaling={scaling}")
    run = own_run_of(*kind_and_root, *changes)
    dataset = open_dataset(run.data)
    store = FeatureStore(dataset, run)
    for sample_id, files in zip(*captures_of(dataset), strict=True):
        expected, made = (
            store.prepared(sample_id),
            prepare_capture(files, store.preparation(), run.modalities),
        )
        assert made.images.keys() == expected.images.keys() == set(run.modalities)
        for name, image in made.images.items():
            assert image.dtype == expected.images[name].dtype
            np.testing.assert_array_equal(image, expected.images[name])
        if files.keys() == {"rgb", "depth"} and read_header(files["depth"]).channels == 3:
            arrays = {"rgb": read_rgb(files["rgb"]), "depth": read_xyz(files["depth"])}
            again = prepare_capture(arrays, store.preparation(), run.modalities)
            np.testing.assert_array_equal(again.depth, expected.depth)


def test_a_prediction_is_the_study_s_map_bit_for_bit(kind_and_root):
    kind, root = kind_and_root
    run = own_run_of(kind, root, "data.depth_encoding=z+normals")
    model = fit_folder(root, run, 0.05, silent).model
    dataset = open_dataset(run.data)
    ids, files = captures_of(dataset)
    maps = anomaly_maps(model.detector, FeatureStore(dataset, run), ids)
    told = [each.split("/")[0] for each in ids]
    predictions = Predictor(model).batch([(each.pop("rgb"), each) for each in files], told)
    for predicted, expected in zip(predictions, maps, strict=True):
        np.testing.assert_array_equal(predicted.anomaly_map, expected)


def test_a_prediction_does_not_depend_on_its_neighbours_or_on_arrays(folder, file):
    predictor = Predictor.load(file)
    pairs = [pair(folder, name) for name in predictor.categories]
    together = predictor.batch(pairs)
    for (image, cloud), one in zip(pairs, together, strict=True):
        alone = predictor(read_rgb(image), read_xyz(cloud))
        np.testing.assert_array_equal(alone.anomaly_map, one.anomaly_map)
        assert (alone.category, alone.confidence) == (one.category, one.confidence)
        assert one.recognised and 0 <= one.confidence <= 1
        assert one.region is None or one.is_anomalous


def test_what_cannot_be_predicted_is_named(folder, file):
    predictor = Predictor.load(file)
    image, cloud = pair(folder, "chocolate")
    with pytest.raises(DataError, match=r"000\.png: .*the depth image is missing"):
        predictor(image)
    with pytest.raises(DataError, match=r"000\.tiff: needs the size|needs the size of its RGB"):
        predictor(trees.rgb_array(), cloud)
    with pytest.raises(ConfigError, match="unknown category 'cooky'"):
        predictor(image, cloud, "cooky")
    with pytest.raises(DataError, match="uint8"):
        predictor(np.zeros((8, 8), np.uint8), cloud)
    with pytest.raises(ConfigError, match="category for each"):
        predictor.batch([(image, cloud)], ["chocolate", "pretzel"])
    assert predictor.batch([]) == []


def test_without_the_second_image_a_bank_judges_by_colour_alone(folder, fitted, file):
    image, cloud = pair(folder, "chocolate")
    with pytest.raises(DataError, match="the depth image is missing"):
        Predictor.load(file)(image, None, "chocolate")
    predictor = Predictor.load(file, allow_missing=True)
    both, alone = (predictor(image, second, "chocolate") for second in (cloud, None))
    assert both.modalities == ("rgb", "depth") and alone.modalities == ("rgb",)
    assert both.threshold == fitted.model.card.thresholds["chocolate"].value
    assert alone.threshold == fitted.model.card.alone["chocolate"].value
    store = FeatureStore(open_dataset(fitted.model.run.data), fitted.model.run)
    batch = store.batch(["chocolate/test/good/000"])
    detector = fitted.model.detector
    expected = detector.enlarge(detector.residual_maps(batch)["rgb"])[0].numpy()
    np.testing.assert_array_equal(alone.anomaly_map, expected)


def test_a_trained_network_cannot_do_without_the_second_image(folder):
    run = own_run(folder, "ib-iumad", assignments=[*TRAINED, "training.epochs=1"])
    model = fit_folder(folder, run, 0.05, silent).model
    with pytest.raises(ConfigError, match="ib-iumad for rgb \\+ depth cannot judge"):
        Predictor(model, allow_missing=True)


def test_a_method_that_recognises_no_product_has_to_be_given_it(folder):
    run = own_run(folder, "plain", assignments=[*TRAINED, "training.epochs=1"])
    model = fit_folder(folder, run, 0.05, silent).model
    image, cloud = pair(folder, "pretzel")
    with pytest.raises(ConfigError, match=r"plain does not say which product .* --category"):
        Predictor(model)(image, cloud)
    given = Predictor(model)(image, cloud, "pretzel")
    assert (given.category, given.recognised, given.confidence) == ("pretzel", False, 1.0)


@pytest.mark.parametrize(
    ("method", "rate", "text"),
    [("simplenet", 0.05, "scores may be negative"), ("bank", 1.0, r"needs a number in \(0, 0.5\]")],
)
def test_what_has_no_threshold_is_refused_before_it_is_fitted(folder, method, rate, text):
    def never(*_):
        raise AssertionError

    with pytest.raises(ConfigError, match=text):
        fit_folder(folder, own_run(folder, method), rate, never)


def test_some_categories_of_a_folder(folder):
    run = own_run(folder, assignments=["data.categories=[pretzel, madeleine]"])
    assert (run.setting, run.data.categories) == ("2-0", ("pretzel", "madeleine"))


def test_as_many_held_out_images_as_learnt_ones(fitted):
    card = fitted.model.card
    assert set(card.held_out) == set(card.categories)  # two validation images each
    scores = card.thresholds["pretzel"].model_copy(update={"good_scores": (1.0,) * 6})
    alike = card.model_copy(update={"thresholds": card.thresholds | {"pretzel": scores}})
    assert _kept_were_held_out(replace(fitted.model, card=alike), "pretzel")
    old = alike.model_copy(update={"held_out": None})  # of an earlier version, which can but guess
    assert not _kept_were_held_out(replace(fitted.model, card=old), "pretzel")


def test_a_threshold_can_be_changed_at_prediction(folder, file):
    image, cloud = pair(folder, "chocolate")
    low = Predictor.load(file, {"chocolate": 1e-6})(image, cloud, "chocolate")
    high = Predictor.load(file, {"chocolate": 1e6})(image, cloud, "chocolate")
    assert low.is_anomalous and low.region is not None and low.region.area > 0.9
    assert not high.is_anomalous and high.region is None
    left, top, right, bottom = low.region.box
    assert 0 <= left < right <= 32 and 0 <= top < bottom <= 32


def test_a_threshold_from_defects_is_stored_and_used(folder, file, tmp_path):
    defects = sorted(p for p in (folder / "pretzel/test").iterdir() if p.name != "good")
    new, table = tmp_path / "new.iumad", tmp_path / "scores.csv"
    command = ["threshold", str(file), *map(str, defects), "--miss-cost", "1", "-o", str(new)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "of 2 defects lie below it" in done.output
    before, after = read_card(file).thresholds, read_card(new).thresholds
    assert after["pretzel"].source == "defects"
    assert before | {"pretzel": after["pretzel"]} == after
    judge = ["predict", str(new), str(folder / "pretzel/test"), "--category", "folder"]
    done = CliRunner().invoke(app, [*judge, "--out", str(table)])
    rows = pd.read_csv(table)
    assert done.exit_code == (3 if rows["anomalous"].any() else 0)
    assert (rows["anomalous"] == (rows["score"] > after["pretzel"].value)).all()
    caught = rows["anomalous"] & ~rows["file"].str.contains("good")
    good = np.array(after["pretzel"].good_scores)
    cost = 2 - caught.sum() + (good > after["pretzel"].value).sum()
    assert cost <= min(2, len(good))  # no worse than calling all of them good, or all anomalous


# --- export -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [pytest.param("bank", marks=pytest.mark.slow), "bank-unified"])
def test_an_exported_graph_says_what_the_model_says(folder, tmp_path, method):
    model = fit_folder(folder, own_run(folder, method, assignments=SMALL), 0.05, silent).model
    told = "pretzel" if method == "bank" else None
    if told:
        with pytest.raises(ConfigError, match="give --category"):
            export_model(model, tmp_path / "graph.pt2", "torch")
    exported = export_model(model, tmp_path / "graph.pt2", "torch", told)
    assert exported.images == 10
    assert exported.difference <= 1e-5 * exported.highest  # float32, operators in another order
    run = torch.export.load(tmp_path / "graph.pt2").module()
    image, cloud = pair(folder, "pretzel")
    prepared = prepare_capture(
        {"rgb": image, "depth": cloud}, model.card.preparation, model.card.modalities
    )
    arrays = [
        torch.from_numpy(x).permute(2, 0, 1)[None].float() / (255 if x.dtype == np.uint8 else 1)
        for x in prepared.images.values()
    ]
    anomaly_map, score, *category = run(*arrays)
    expected = Predictor(model)(image, cloud, told)
    np.testing.assert_allclose(anomaly_map[0], expected.anomaly_map, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(score, expected.score, rtol=1e-4)
    if category:
        assert model.card.categories[int(category[0].argmax())] == expected.category
    said = json.loads((tmp_path / "graph.json").read_text())
    assert said["thresholds"].keys() == ({told} if told else set(model.card.categories))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bank-unified", "ib-iumad-plus"])
def test_onnx_says_what_the_model_says(folder, tmp_path, method):
    changes = SMALL if method == "bank-unified" else TRAINED
    model = fit_folder(folder, own_run(folder, method, assignments=changes), 0.05, silent).model
    exported = export_model(model, tmp_path / "graph.onnx", "onnx")
    assert exported.difference <= 1e-4 * exported.highest


# --- outputs ------------------------------------------------------------------------------------


def test_equal_names_do_not_collide(tmp_path):
    paths = [tmp_path / f"{a}/{b}/1.png" for a in "xy" for b in "pq"] + [tmp_path / "x/p/1.jpg"]
    keys = keys_of(paths)
    assert len(set(keys)) == len(paths)
    assert keys[0] != keys[4]
    assert keys_of([tmp_path / "a.png"]) == ["a"]


def test_tables_and_pages_show_every_prediction_and_escape_names(folder, file):
    from iumad.inspection.outputs import Scored

    predictor = Predictor.load(file)
    prediction = predictor(*pair(folder, "chocolate"))
    scored = [Scored(folder / "<script>alert(1)</script>.png", "k", prediction)]
    table = table_of(scored)
    assert table.loc[0, "score"] == prediction.score
    page = report_page(scored, "<b>x</b>")
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "<b>x</b>" not in page
    picture = overlay(prediction)
    assert picture.shape == prediction.image.shape and picture.dtype == np.uint8


# --- learning a new product ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bank", "ib-iumad", "ib-iumad-keep"])
def test_a_new_category_is_learnt_and_what_is_lost_is_said(folder, tmp_path, method):
    old, new = tmp_path / "old", tmp_path / "new"
    for name in ("chocolate", "pretzel"):
        shutil.copytree(folder / name, old / name)
    shutil.copytree(folder / "madeleine", new / "madeleine")
    changes = SMALL if method == "bank" else TRAINED
    model = fit_folder(old, own_run(old, method, assignments=changes), 0.05, silent).model
    grown, lost = learn_folder(model, new, 0.05, silent)
    assert grown.model.card.categories == ("chocolate", "pretzel", "madeleine")
    assert lost["category"].tolist() == ["chocolate", "pretzel"] and lost["held out"].all()
    assert set(grown.table["category"]) == {"madeleine"}
    predictor = Predictor(grown.model)
    assert predictor(*pair(folder, "madeleine"), "madeleine").score > 0
    known = {name: grown.model.card.thresholds[name] for name in ("chocolate", "pretzel")}
    if method != "ib-iumad":  # what a category is scored with is its own, and never changes
        assert (lost["score before"] == lost["score after"]).all()
        assert known == model.card.thresholds
        before = Predictor(model)(*pair(folder, "pretzel"), "pretzel")
        np.testing.assert_array_equal(
            before.anomaly_map, predictor(*pair(folder, "pretzel"), "pretzel").anomaly_map
        )
    with pytest.raises(ConfigError, match="knows madeleine already"):
        learn_folder(grown.model, new, 0.05, silent)


def test_thresholds_stay_where_the_kept_images_were_learnt(folder, tmp_path):
    for name, place in (("chocolate", "old"), ("pretzel", "new")):
        shutil.copytree(folder / name, tmp_path / place / name)
        shutil.rmtree(tmp_path / place / name / "validation")
    run = own_run(tmp_path / "old", assignments=SMALL)
    model = fit_folder(tmp_path / "old", run, 0.05, silent).model
    grown, lost = learn_folder(model, tmp_path / "new", 0.05, silent)
    assert not lost["held out"].any()
    assert grown.model.card.thresholds["chocolate"] == model.card.thresholds["chocolate"]


def test_the_table_counts_false_alarms_and_misses(fitted):
    table = fitted.table.set_index("category")
    assert table["train"].tolist() == [6, 6, 6]
    assert table["held out"].tolist() == [8, 8, 8]  # training images, cross-fitted, and two more


def test_nothing_is_scored_by_itself(folder):
    run = own_run(folder, "bank", assignments=SMALL)
    model = fit_folder(folder, run, 0.05, silent).model
    for name, threshold in model.card.thresholds.items():
        assert min(threshold.good_scores) > 0  # the distance of a patch to itself
        image = folder / name / "train" / "good" / "rgb" / "000.png"
        found = Predictor(model)(image, image.parents[1] / "xyz" / "000.tiff")
        assert (found.category, found.recognised) == (name, True)


def test_a_finished_run_is_packed_with_thresholds_from_its_validation_images(tmp_path):
    run = tiny.run("bank", data={"n_validation": 3})
    run_one(run, tmp_path, "cpu")
    fitted = pack_run(run, tmp_path, 0.05)
    card = fitted.model.card
    assert set(card.thresholds) == set(card.held_out) == set(tiny.CATEGORIES)
    assert fitted.table["held out"].tolist() == [3] * len(tiny.CATEGORIES)
    work = RunWork(run, "cpu")
    image = work.dataset.ids("validation", [tiny.CATEGORIES[0]])[0]
    maps = anomaly_maps(load_detector(work, steps_of(run, tmp_path)[-1]), work.store, [image])
    score = image_scores(maps, run.evaluation.image_score, run.evaluation.pool)
    assert float(score[0]) in np.float32(card.thresholds[tiny.CATEGORIES[0]].good_scores)


def test_what_is_held_out_is_not_learnt(folder):
    dataset = copy.copy(open_folder(folder))
    dataset.index = dataset.index[dataset.index["split"] != "validation"]
    learnt, held_out = _split(dataset, dataset.categories, True)
    assert all(held_out.values())
    assert not set(learnt) & {each for ids in held_out.values() for each in ids}


def test_thresholds_of_a_trained_network_move_with_its_scores(folder, tmp_path):
    for name, place in (("chocolate", "old"), ("pretzel", "new")):
        shutil.copytree(folder / name, tmp_path / place / name)
    run = own_run(tmp_path / "old", "plain", assignments=TRAINED)
    model = fit_folder(tmp_path / "old", run, 0.05, silent).model
    _, lost = learn_folder(model, tmp_path / "new", 0.05, silent)
    assert (lost["score after"] != lost["score before"]).all()
    score, threshold = (
        lost[f"{what} after"] > lost[f"{what} before"] for what in ("score", "threshold")
    )
    assert score.equals(threshold)


def test_region_and_lead_by_hand():
    above = np.zeros((4, 4), dtype=bool)
    above[1:3, 0] = above[3, 3] = True
    region = _largest_region(above, (100, 200))
    assert (region.box, region.area) == ((0, 25, 50, 75), 2 / 16)
    assert [_lead(1.0, 2.0), _lead(3.0, 4.0), _lead(2.0, 2.0), _lead(2.0)] == [1, 0.5, 0, 1]


def test_own_images_get_a_measured_depth_range_and_sizes_that_fit(folder):
    run = own_run(folder)
    assert run.data.depth_scaling == "measured"
    assert run.data.image_size == 128
