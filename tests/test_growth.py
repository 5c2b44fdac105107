"""Models that meet categories which were not known when they were made."""

import pytest
import tiny
import torch

from iumad.config.methods import ReconstructionConfig
from iumad.errors import CheckpointError
from iumad.models.detector import ReconstructionDetector
from iumad.study.runner import (
    RunWork,
    load_detector,
    remembered_after,
    run_one,
    trained_detector,
)
from iumad.study.steps import steps_of
from iumad.training import checkpoint as growth


def detector(n_categories: int, seed: int = 0, **model) -> ReconstructionDetector:
    torch.manual_seed(seed)
    config = ReconstructionConfig(**tiny.MODEL | model)
    return ReconstructionDetector(config, tiny.spec(), n_categories).eval()


def test_old_rows_are_copied_and_new_ones_stay_as_made():
    old, new = detector(2), detector(3, seed=1)
    made = {name: value.clone() for name, value in new.state_dict().items()}
    growth.load_grown(new, old.state_dict())
    grown = [name for name, value in old.state_dict().items() if value.shape != made[name].shape]
    layers = ("conditions.rgb.classifier.2", "conditions.depth.classifier.2")
    heads = ("bottleneck.head_fused", "bottleneck.head_filtered")
    assert sorted(grown) == sorted(
        f"{layer}.{part}" for layer in (*layers, *heads) for part in ("weight", "bias")
    )
    for name, value in new.state_dict().items():
        before = old.state_dict()[name]
        assert torch.equal(value[: len(before)] if name in grown else value, before)
        if name in grown:
            assert torch.equal(value[len(before) :], made[name][len(before) :])


def test_logits_of_old_categories_do_not_change():
    old, new = detector(2), detector(3, seed=1)
    growth.load_grown(new, old.state_dict())
    before, after = old(tiny.batch()), new(tiny.batch())
    for modality, logits in before.logits.items():
        assert torch.equal(after.logits[modality][:, :2], logits)
    assert torch.equal(after.reconstruction["rgb"], before.reconstruction["rgb"])


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (lambda: detector(4).state_dict(), "needs at most"),
        (lambda: detector(3, dim=32).state_dict(), "only the first axis smaller"),
        (lambda: detector(3, fusion="addition").state_dict(), "only one of the two has fusion"),
    ],
)
def test_other_differences_are_errors(state, text):
    with pytest.raises(CheckpointError, match=text):
        growth.load_grown(detector(3), state())


def test_what_is_remembered_grows_with_zeros():
    remembered = torch.tensor([[1.0, 2.0]])
    assert growth.with_rows(remembered, 2).tolist() == [[1, 2], [0, 0]]
    assert growth.with_rows(remembered, 1) is remembered
    assert growth.with_rows(torch.tensor(3.0), 1).item() == 3


def test_every_earlier_category_is_remembered(tmp_path):
    increment = {"strategy": "replay", "replay_images": 1, "epochs": 1}
    run = tiny.run("plain", settings=["1-1"], training={"epochs": 1}, increment=increment)
    work, steps = RunWork(run, "cpu"), steps_of(run, tmp_path)
    trained_detector(work, steps[1])
    kept = remembered_after(work, steps[1])["replay"]
    assert [name.split("/")[0] for name in kept] == list(tiny.CATEGORIES[:2])


@pytest.mark.parametrize("strategy", ["projection", "ewc"])
def test_logits_grow_with_every_step(tmp_path, strategy):
    run = tiny.run(settings=["1-1"], increment={"epochs": 1, "strategy": strategy})
    rows = run_one(run, tmp_path, "cpu")
    assert rows["step"].max() == 2
    work = RunWork(run, "cpu")
    detectors = [load_detector(work, step) for step in steps_of(run, tmp_path)]
    sizes = [len(detector.conditions["rgb"].classifier[-1].bias) for detector in detectors]
    assert sizes == [1, 2, 3]


def test_a_finished_run_goes_on_with_more_categories(tmp_path):
    two = tiny.run(data={"categories": list(tiny.CATEGORIES[:2])}, settings=["2-0"])
    three = tiny.run(settings=["2-1"])
    run_one(two, tmp_path, "cpu")
    base = steps_of(two, tmp_path)[0].checkpoint
    written = base.stat().st_mtime_ns
    rows = run_one(three, tmp_path, "cpu")
    assert steps_of(three, tmp_path)[0].folder == base.parent
    assert base.stat().st_mtime_ns == written  # the base was not trained again
    assert set(rows.loc[rows["step"] == 1, "category"]) == set(tiny.CATEGORIES)
