"""Floors by hand, and that they say of places nothing."""

import numpy as np
import pytest
import tiny
import torch

from iumad.config.methods import FloorConfig
from iumad.errors import CheckpointError, ConfigError
from iumad.evaluation.evaluate import evaluate
from iumad.features.cache import Batch
from iumad.models.bank import Floor, histograms, laplacian
from iumad.models.build import make_detector


def batch(*images: list[list[float]], category: int = 0) -> Batch:
    """Grey images of 4 x 4 pixels, given row by row; they are the depth, RGB is black."""
    depth = torch.tensor(images)[:, None].expand(-1, 3, -1, -1)
    features = torch.zeros(len(images), 2, 2, 2)
    return Batch(
        dict.fromkeys(("rgb", "depth"), features),
        {"rgb": torch.zeros_like(depth), "depth": depth},
        torch.full((len(images),), category),
    )


def floor(modalities: str = "rgb+depth", **config) -> Floor:
    spec = tiny.spec(modalities, channels=2, grid=2, image_size=4)
    return Floor(FloorConfig(**config), spec, n_categories=2)


def fitted(samples: Batch, **config) -> Floor:
    detector = floor(**config)
    store = tiny.Given(samples)
    detector.fit(store, store.ids, torch.Generator().manual_seed(0))
    return detector


FLAT = [[0.5] * 4] * 4
RAMP = [[0.0, 0.25, 0.5, 0.75]] * 4
DOT = [[0.0] * 4, [0.0, 1.0, 0.0, 0.0], [0.0] * 4, [0.0] * 4]
DARK = [[0.1] * 4] * 4


def test_the_laplacian_by_hand():
    # of the dot: -4 at it, 1 to its right and below, 0 diagonally; planes have none
    assert laplacian(torch.tensor([DOT])).tolist() == [[[-4.0, 1.0], [1.0, 0.0]]]
    scores = floor().image_scores(batch(FLAT, RAMP, DOT))
    # mean -1/2, squared differences 12.25, 2.25, 2.25, 0.25: standard deviation sqrt(17 / 3)
    torch.testing.assert_close(scores, torch.tensor([0.0, 0.0, (17 / 3) ** 0.5]))


def test_histograms_by_hand():
    images = torch.tensor([[-0.5, 0.0, 0.2, 0.3], [0.5, 0.9, 1.0, 7.0]]).view(1, 1, 2, 4)
    assert histograms(images, bins=4).tolist() == [[3 / 8, 1 / 8, 1 / 8, 3 / 8]]


def test_distances_to_training_images_by_hand():
    dark, flat, ramp = batch(DARK), batch(FLAT), batch(RAMP)
    both = batch(DARK, FLAT)  # mean brightness 0.1 and 0.5, together 0.3
    mean = fitted(both, statistic="mean", distance="mean")
    for test, distance in ((dark, 0.2), (flat, 0.2), (ramp, 0.075)):
        torch.testing.assert_close(mean.image_scores(test), torch.tensor([distance]))
    nearest = fitted(both, statistic="histogram", distance="nearest", bins=2)
    # half of the ramp's pixels are in another bin than all of either image
    assert nearest.image_scores(dark) == nearest.image_scores(flat) == 0
    assert nearest.image_scores(ramp) == 0.5
    spread = fitted(ramp, statistic="spread", distance="mean")
    assert spread.image_scores(ramp) == 0
    assert spread.image_scores(flat) > 0
    image = fitted(both, statistic="image", distance="nearest")
    torch.testing.assert_close(image.image_scores(batch([[0.2] * 4] * 4)), torch.tensor([0.1]))
    average = fitted(both, statistic="image", distance="mean")
    torch.testing.assert_close(average.image_scores(batch([[0.3] * 4] * 4)), torch.tensor([0.0]))


def test_every_image_is_compared_with_its_own_category_and_nothing_is_forgotten():
    detector = fitted(batch(DARK), statistic="mean", distance="mean")
    store = tiny.Given(batch(FLAT, category=1))
    detector.fit(store, store.ids, torch.Generator())
    assert detector.image_scores(batch(DARK)) == 0
    assert detector.image_scores(batch(FLAT, category=1)) == 0
    with pytest.raises(CheckpointError, match="category index 2 was never met"):
        detector.image_scores(batch(FLAT, category=2))


def test_it_looks_at_the_last_modality_or_the_one_named():
    assert floor("rgb+depth").looked_at == "depth"
    assert floor("rgb").looked_at == "rgb"
    assert floor("rgb+depth", modality="rgb").image_scores(batch(DOT)) == 0
    with pytest.raises(ConfigError, match="looks at 'depth', the run has rgb"):
        floor("rgb", modality="depth")


def test_a_vector_is_no_score():
    with pytest.raises(ValueError, match="a statistic of one number, not histogram"):
        FloorConfig(statistic="histogram")


def test_maps_are_the_score_everywhere_and_pixel_metrics_are_missing():
    run = tiny.run("floor-laplacian")
    store = tiny.open_store(run)
    detector = make_detector(run.model, tiny.spec(grid=4, image_size=tiny.SIZE), 3)
    ids = tiny.train_ids(store, tiny.CATEGORIES[0])
    samples = store.batch(ids)
    maps = detector.anomaly_maps(samples)
    assert maps.shape == (len(ids), tiny.SIZE, tiny.SIZE)
    assert torch.equal(maps.amin(dim=(1, 2)), detector.image_scores(samples))
    assert torch.equal(maps.amax(dim=(1, 2)), detector.image_scores(samples))
    rows = evaluate(detector, store, tiny.CATEGORIES[:1], run.evaluation)
    values = rows.set_index("metric")["value"]
    assert np.isfinite(values["i_auroc"])
    assert values[["p_auroc", "aupro"]].isna().all()
    assert "validation_error" not in values
