import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import trees
from PIL import Image

from iumad.config.schema import RunConfig
from iumad.data import open_dataset
from iumad.errors import CheckpointError, ConfigError, DataError
from iumad.evaluation.metrics import image_scores
from iumad.study import runner as study
from iumad.study.predict import Prediction, predict_files
from iumad.study.steps import steps_of


@pytest.fixture(scope="module")
def sample(finished):
    dataset = open_dataset(one(finished).data)
    ids = dataset.index["sample_id"]
    return dataset.load(ids[ids.str.startswith("pretzel/test") & ~ids.str.contains("good")].iloc[0])


@pytest.fixture
def image(tmp_path, sample) -> Path:
    return trees.write_png(tmp_path / "image.png", sample.rgb)


@pytest.fixture
def cloud(tmp_path, sample) -> Path:
    return trees.write_xyz(tmp_path / "cloud.tiff", sample.xyz)


def one(finished: tiny.Finished, method: str = "ib-iumad") -> RunConfig:
    (run,) = finished.study.select(methods=[method]).runs()
    return run


@pytest.mark.parametrize("method", ["ib-iumad", "iuf", "memory-bank"])
def test_a_file_is_scored_as_the_sample_that_it_holds(finished, sample, image, cloud, method):
    run = one(finished, method)
    prediction = predict_files(run, finished.results, image, cloud, category="pretzel")
    (expected,) = study.score_samples(run, [sample.sample_id], finished.results)
    assert np.array_equal(prediction.anomaly_map, expected)
    assert prediction.score == image_scores(expected[None], "max", 4)[0]
    assert np.array_equal(prediction.image, sample.rgb)


def test_a_depth_map_serves_as_well_as_a_point_cloud(finished, sample, image, cloud, tmp_path):
    path = tmp_path / "depth.npy"
    np.save(path, sample.xyz[..., 2] * 1000)  # millimetres
    run = one(finished)
    from_map = predict_files(run, finished.results, image, path)
    from_cloud = predict_files(run, finished.results, image, cloud)
    # millimetres and back: the last bits of z
    np.testing.assert_allclose(from_map.anomaly_map, from_cloud.anomaly_map, rtol=1e-3)
    metres = tmp_path / "metres.npy"
    np.save(metres, sample.xyz[..., 2])
    exact = predict_files(run, finished.results, image, metres, depth_scale=1.0)
    assert np.array_equal(exact.anomaly_map, from_cloud.anomaly_map)


def test_the_category_is_for_methods_that_need_it(finished, image, cloud):
    first = predict_files(one(finished), finished.results, image, cloud)
    second = predict_files(one(finished), finished.results, image, cloud, category="madeleine")
    assert np.array_equal(first.anomaly_map, second.anomaly_map)
    with pytest.raises(
        ConfigError, match="needs --category, one of: chocolate, pretzel, madeleine"
    ):
        predict_files(one(finished, "memory-bank"), finished.results, image, cloud)
    with pytest.raises(ConfigError, match=r"unknown category 'pretzl'.*chocolate, pretzel"):
        predict_files(one(finished), finished.results, image, cloud, category="pretzl")


def test_other_sizes_are_brought_to_the_models(finished, sample, tmp_path):
    rgb = np.kron(sample.rgb, np.ones((2, 2, 1), dtype=np.uint8))
    xyz = np.kron(sample.xyz, np.ones((2, 2, 1), dtype=np.float32))
    image = trees.write_png(tmp_path / "large.png", rgb)
    cloud = trees.write_xyz(tmp_path / "large.tiff", xyz)
    prediction = predict_files(one(finished), finished.results, image, cloud)
    assert prediction.image.shape == (tiny.SIZE, tiny.SIZE, 3)
    assert prediction.anomaly_map.shape == (tiny.SIZE, tiny.SIZE)


def test_files_that_cannot_be_used(finished, image, cloud, tmp_path):
    run = one(finished)
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(image.read_bytes()[:200])
    small = trees.write_xyz(tmp_path / "small.tiff", np.ones((8, 8, 3), dtype=np.float32))
    text = tmp_path / "text.png"
    text.write_text("no image")
    for arguments, parts in [
        ((tmp_path / "nowhere.png", cloud), ["nowhere.png"]),
        ((truncated, cloud), ["truncated.png"]),
        ((text, cloud), ["text.png"]),
        ((tmp_path, cloud), [str(tmp_path)]),
        ((image, None), ["image.png", "needs a depth file"]),
        ((image, tmp_path / "nowhere.tiff"), ["nowhere.tiff"]),
        ((image, small), ["small.tiff", "8", "32"]),
        ((image, image), ["image.png"]),
    ]:
        with pytest.raises(DataError) as caught:
            predict_files(run, finished.results, *arguments)
        assert all(part in str(caught.value) for part in parts), caught.value
        assert "\n" not in str(caught.value)


def test_a_run_that_is_not_trained(finished, image, cloud):
    run = one(finished).model_copy(update={"seed": 7})
    with pytest.raises(CheckpointError, match=r"ib-iumad rgb\+depth 2-1 seed 7 is not trained"):
        predict_files(run, finished.results, image, cloud)


def test_a_damaged_model(finished, image, cloud, tmp_path):
    folder = Path(shutil.copytree(finished.results, tmp_path / "results"))
    path = steps_of(one(finished), folder)[1].checkpoint
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: damaged"):
        predict_files(one(finished), folder, image, cloud)


def test_saved_files(tmp_path):
    anomaly_map = np.arange(16, dtype=np.float32).reshape(4, 4)
    prediction = Prediction(15.0, anomaly_map, tiny.image(size=4))
    picture, array = prediction.save(tmp_path / "new" / "folder", "stem")
    assert (picture.name, array.name) == ("stem_map.png", "stem_map.npy")
    assert np.array_equal(np.load(array), anomaly_map)
    shown = np.array(Image.open(picture))
    assert shown.shape == (4, 8, 3)
    assert np.array_equal(shown[:, :4], prediction.image)
    brightness = shown[:, 4:].astype(int).sum(axis=2).ravel()
    assert np.all(np.diff(brightness) > 0)  # a map that rises is a picture that brightens


def test_a_map_without_contrast_is_saved_too(tmp_path):
    flat = Prediction(0.0, np.ones((4, 4), dtype=np.float32), tiny.image(size=4))
    picture, _ = flat.save(tmp_path, "flat")
    assert np.array(Image.open(picture))[:, 4:].std() < 60
