"""Looking inside a model: shares by hand, and every quantity of a finished run in its range."""

import math

import numpy as np
import pytest
import torch

from iumad.errors import ConfigError
from iumad.study.diagnosis import (
    accuracy,
    between_share,
    bottleneck_features,
    diagnose,
    frozen_share,
)
from iumad.study.runner import RunWork, trained_detector
from iumad.study.steps import steps_of


def test_accuracy_by_hand():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])) == 0.75


def test_the_share_between_categories_by_hand():
    # means 1 and 5 around 3: between 4 * 2^2 = 16, within 4 * 1^2 = 4
    values, labels = torch.tensor([[0.0], [2.0], [4.0], [6.0]]), torch.tensor([0, 0, 1, 1])
    assert between_share(values, labels) == pytest.approx(16 / 20)
    assert between_share(values, torch.tensor([0, 1, 0, 1])) == pytest.approx(4 / 20)
    assert math.isnan(between_share(values, torch.zeros(4, dtype=torch.long)))
    assert between_share(torch.ones(4, 1), labels) == 0


def test_what_is_frozen_by_hand():
    # the leading direction has weight ln 1 / ln 2 = 0, the other ln 2 / ln 2 = 1
    assert frozen_share({"a": torch.diag(torch.tensor([3.0, 1.0]).double())}) == pytest.approx(0.75)
    both = {"a": torch.diag(torch.tensor([3.0, 1.0]).double()), "b": torch.eye(2).double()}
    assert frozen_share(both) == pytest.approx((0.75 + 0.5) / 2)


def test_a_finished_run(finished):
    (run,) = finished.study.select(methods=["ib-iumad"]).runs()
    table = diagnose(run, finished.results)
    assert set(table["step"]) == {0, 1}
    assert set(table[table["step"] == 0]["categories"]) == {"this step"}
    wide = table.pivot_table(index=["step", "categories"], columns="quantity", values="value")
    shares = [name for name in wide if name != "KL" and "size" not in name]
    assert {"accuracy rgb", "accuracy depth", "accuracy before", "accuracy after"} < set(shares)
    assert wide[shares].min().min() >= -1e-9
    assert wide[shares].max().max() <= 1 + 1e-9
    assert (wide["KL"] >= -1e-6).all()
    assert 0 < wide.loc[(1, "earlier"), "frozen"] < 1
    assert math.isnan(wide.loc[(1, "this step"), "gate rgb"])  # one category


def test_features_around_the_bottleneck_are_what_its_heads_see(finished):
    (run,) = finished.study.select(methods=["ib-iumad"]).runs()
    features, images = bottleneck_features(run, finished.results, doses=(0.0, 1.0))
    assert features["before"].shape == features["after"].shape == (len(images), run.model.dim)
    assert images.groupby(["redundant", "spurious"]).size().tolist() == [3] * 4
    clean = images.query("redundant == 0 and spurious == 0")
    assert images["sample_id"].nunique() == len(clean) == 3
    work = RunWork(run)
    detector = trained_detector(work, steps_of(run, finished.results, work.dataset)[-1])
    output = detector(work.store.batch(clean["sample_id"].tolist()))
    for name, logits in (("before", output.fused_logits), ("after", output.filtered_logits)):
        head = {
            "before": detector.bottleneck.head_fused,
            "after": detector.bottleneck.head_filtered,
        }
        seen = head[name](torch.from_numpy(features[name][clean.index]))
        torch.testing.assert_close(seen, logits, rtol=1e-4, atol=1e-5)  # batches of another size
        assert (features[name][3:] != np.tile(features[name][:3], (3, 1))).any(axis=1).all()


def test_a_method_without_bottleneck_has_none_to_look_into(finished):
    (run,) = finished.study.select(methods=["iuf"]).runs()
    with pytest.raises(ConfigError, match="iuf: this method has no bottleneck"):
        bottleneck_features(run, finished.results)


def test_what_a_method_lacks_is_left_out(finished):
    (run,) = finished.study.select(methods=["iuf"]).runs()
    quantities = set(diagnose(run, finished.results)["quantity"])
    assert "accuracy rgb" in quantities
    assert not quantities & {"KL", "accuracy before", "accuracy after"}
