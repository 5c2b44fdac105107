"""Perturbed training images: always the same ones, from permitted donors, in the steps that ask for them."""

import numpy as np
import pytest
import tiny

from iumad.config.sections import PerturbConfig
from iumad.data import open_dataset
from iumad.data.perturb import PerturbedDataset
from iumad.errors import DataError
from iumad.study.runner import RunWork
from iumad.study.steps import steps_of

SAMPLE = "pretzel/train/good/000"


@pytest.fixture(scope="module")
def dataset():
    return open_dataset(tiny.run().data)


def perturbed(dataset, donors=tiny.CATEGORIES, **strengths) -> PerturbedDataset:
    return PerturbedDataset(dataset, PerturbConfig(**strengths), donors)


def test_a_sample_is_always_perturbed_in_the_same_way(dataset):
    first, second = (perturbed(dataset, redundant=0.5, spurious=0.5).load(SAMPLE) for _ in range(2))
    clean = dataset.load(SAMPLE)
    assert (first.rgb == second.rgb).all()
    assert (first.xyz == second.xyz).all()
    assert (first.rgb != clean.rgb).any()
    assert (first.mask == clean.mask).all()


def test_noise_grows_and_keeps_its_pattern(dataset):
    clean = dataset.load(SAMPLE).rgb.astype(float)
    weak, strong = (
        perturbed(dataset, redundant=strength).load(SAMPLE).rgb - clean for strength in (0.1, 0.2)
    )
    unclipped = (clean > 60) & (clean < 195)
    assert np.abs(strong - 2 * weak)[unclipped].max() <= 1.5  # two roundings: 2 * 0.5 + 0.5


def test_a_spurious_background_leaves_the_object_alone(dataset):
    clean, changed = dataset.load(SAMPLE), perturbed(dataset, spurious=1.0).load(SAMPLE)
    assert (changed.rgb == clean.rgb)[clean.foreground].all()
    assert (changed.rgb != clean.rgb)[~clean.foreground].any()


def test_donors_are_training_images_of_the_other_categories_given(dataset, monkeypatch):
    loaded = []
    load = dataset.load
    monkeypatch.setattr(dataset, "load", lambda each: loaded.append(each) or load(each))
    view = perturbed(dataset, donors=("chocolate", "pretzel"), spurious=0.5)
    for sample_id in (SAMPLE, "pretzel/train/good/001", "pretzel/train/good/002"):
        view.load(sample_id)
    donors = [one for one in loaded if not one.startswith("pretzel/")]
    assert len(donors) == 3
    assert all(one.startswith("chocolate/train/good/") for one in donors)


def test_a_step_that_has_met_one_category_has_no_donor(dataset):
    with pytest.raises(DataError, match="needs another category"):
        perturbed(dataset, donors=("pretzel",), spurious=0.5).load(SAMPLE)


def test_the_fingerprint_tells_strengths_and_steps_apart(dataset):
    variants = [
        perturbed(dataset, redundant=0.5),
        perturbed(dataset, redundant=0.6),
        perturbed(dataset, redundant=0.5, noise_cells=4),
        perturbed(dataset, redundant=0.5, spurious=0.5),
        perturbed(dataset, donors=("pretzel", "madeleine"), redundant=0.5, spurious=0.5),
    ]
    assert len({each.fingerprint(SAMPLE) for each in variants}) == len(variants)
    everywhere = perturbed(dataset, redundant=0.5, where="all")
    assert everywhere.fingerprint(SAMPLE) == variants[0].fingerprint(SAMPLE)


@pytest.mark.parametrize(("where", "base"), [("increments", False), ("all", True)])
def test_steps_train_on_perturbed_images_and_are_tested_on_clean_ones(tmp_path, where, base):
    methods = {"ib-iumad": {"perturb": {"redundant": 0.5, "where": where}}}
    (run,) = tiny.study(methods=methods).runs()
    work = RunWork(run, "cpu")
    stores = [work.training_store(step) for step in steps_of(run, tmp_path)]
    assert [isinstance(store.dataset, PerturbedDataset) for store in stores] == [base, True]
    assert work.store.dataset is work.dataset
    found = stores[1].prepared(SAMPLE).rgb
    assert (found != work.store.prepared(SAMPLE).rgb).any()


@pytest.mark.parametrize("dose", [0.1, 0.2])
def test_noise_is_as_large_as_its_dose_says(dataset, dose):
    clean = dataset.load(SAMPLE).rgb.astype(float)
    added = perturbed(dataset, redundant=dose).load(SAMPLE).rgb - clean
    assert added.std(axis=(0, 1)) == pytest.approx(dose * clean.std(axis=(0, 1)), rel=0.15)


def test_backgrounds_come_from_categories_that_were_met(tmp_path):
    (run,) = tiny.study(methods={"iuf": {"perturb": {"spurious": 0.5, "where": "all"}}}).runs()
    work = RunWork(run, "cpu")
    for step in steps_of(run, tmp_path):
        assert tuple(work.training_store(step).dataset._donors) == step.seen
