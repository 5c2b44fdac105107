"""The variant that forgets nothing: own parts of each step, recognition by means, small banks."""

import pytest
import tiny
import torch

from iumad.features.cache import Batch
from iumad.models.build import make_detector
from iumad.models.keep import KeepDetector
from iumad.study.runner import RunWork, run_one, trained_detector
from iumad.study.steps import steps_of
from iumad.training.checkpoint import load_grown
from iumad.training.loop import StepPlan, Watch, fit_step

FIRST, SECOND, THIRD = tiny.CATEGORIES
METHOD = "ib-iumad-keep"


def keep(n_categories: int = 3, **model) -> KeepDetector:
    torch.manual_seed(0)
    detector = make_detector(tiny.run(METHOD, model=model).model, tiny.spec(), n_categories)
    assert isinstance(detector, KeepDetector)
    return detector.eval()


def fit(detector: KeepDetector, samples: Batch) -> None:
    store = tiny.Given(samples)
    detector.fit(store, store.ids, torch.Generator())
    detector.calibrate(store, store.ids)


@pytest.fixture(scope="module")
def after_each_step(tmp_path_factory) -> tuple[RunWork, list[KeepDetector]]:
    """A run of 1-1 in three steps, and its models."""
    run, results = tiny.run(METHOD, settings=["1-1"]), tmp_path_factory.mktemp("results")
    work = RunWork(run)
    steps = steps_of(run, results, work.dataset)
    return work, [trained_detector(work, step) for step in steps]


def test_maps_of_old_categories_stay_the_same_bits(after_each_step):
    work, models = after_each_step
    for number, name in enumerate(tiny.CATEGORIES):
        batch = work.store.batch(work.ids([name], "test"))
        maps = [model.maps_and_logits(batch) for model in models[number:]]
        for later, logits in maps[1:]:
            assert (logits.argmax(dim=1) == number).all()
            assert torch.equal(later, maps[0][0])
            assert torch.equal(logits[:, : number + 1], maps[0][1])


def test_a_later_step_learns_nothing_but_its_own_parts(after_each_step):
    _, (first, second, third) = after_each_step
    names = second.own_parameters()
    assert third.step_of.tolist() == [0, 1, 2]
    for name, p in second.named_parameters():
        if name not in names:
            old = first.get_parameter(name)
            assert torch.equal(p[: len(old)], old), name  # classifiers grow by rows
    assert any(not torch.equal(p, first.get_parameter(name)) for name, p in names.items())
    assert tiny.same_tensors(second.own["0"], first.own["0"])
    assert tiny.same_tensors(third.own["1"], second.own["1"])
    for name, x in first.named_buffers():
        if "running" in name:
            assert torch.equal(x, third.get_buffer(name))


def test_each_category_adds_the_same_few_bytes(after_each_step):
    _, models = after_each_step
    sizes = [model.size_bytes() for model in models]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0]
    parts = sum(p.numel() * 4 for p in models[0].own_parameters().values())
    patches = sum(bank.numel() * 2 for name, bank in models[1].banks.items() if name[0] == "1")
    assert 0 < sizes[1] - sizes[0] - parts - patches < 1000 + 4 * models[0].prototypes.shape[1]


@pytest.mark.parametrize("own", ["none", "norms", "queries", "projections"])
def test_what_a_step_may_own(own):
    names = [*keep(own=own).own_parameters()]
    assert ("project_out.rgb.weight" in names) == (own == "projections")
    assert ("networks.rgb.decoder.0.learned" in names) == (own in ("queries", "projections"))
    assert ("networks.rgb.norm.weight" in names) == (own != "none")
    assert not any("condition" in name or "head" in name for name in names)


def test_strategies_and_choices_of_own_parts_share_the_base_step():
    runs = [tiny.run(METHOD, model={"own": own}) for own in ("none", "norms")]
    first, both = [(FIRST,)], [(FIRST,), (SECOND,)]
    assert runs[0].step_key(first) == runs[1].step_key(first)
    assert runs[0].step_key(both) != runs[1].step_key(both)


def test_the_nearest_mean_tells_the_category_and_an_image_has_the_maps_of_its_own():
    detector, batch = keep(), tiny.batch(size=6)
    fit(detector, batch)
    means = torch.stack([detector.summary(batch)[i::3].mean(dim=0) for i in range(3)])
    torch.testing.assert_close(detector.prototypes, means)
    told = detector.category_logits(batch).argmax(dim=1)
    maps = detector.token_map(batch)
    for i, category in enumerate(told.tolist()):
        alone = detector.token_map_of(batch.rows(torch.tensor([i])), category)
        torch.testing.assert_close(maps[i : i + 1], alone)


def test_a_map_is_one_on_average_on_the_good_images_it_is_measured_on():
    detector, batch = keep(patches=0), tiny.batch(size=6)
    fit(detector, batch)
    for each in detector._maps(batch, batch.category).values():
        torch.testing.assert_close(each.unflatten(0, (2, 3)).mean(dim=(0, 2, 3)), torch.ones(3))


def test_watching_a_step_does_not_disturb_its_training(after_each_step):
    work, models = after_each_step
    old = work.store.batch(work.ids([FIRST], "test"))
    states = []
    for epoch in (lambda model, _epoch: model.eval().residual_maps(old), Watch().epoch):
        detector = work.new_detector(steps_of(work.run, ".", work.dataset)[1])
        load_grown(detector, models[0].state_dict())
        ids, plan = work.ids([SECOND], "train"), StepPlan.of(work.run, 1)
        fit_step(detector, work.store, ids, plan, {}, watch=Watch(epoch=epoch))
        states.append(detector.state_dict())
    first, second = (state.pop("_extra_state")["own"]["1"] for state in states)
    assert tiny.same_tensors(*states)
    assert tiny.same_tensors(first, second)


def test_the_same_protection_goes_with_another_network(tmp_path):
    plain = {"preset": "plain", "model": {"kind": "keep"}, "increment": {"strategy": "none"}}
    (run,) = tiny.study(methods={"plain-keep": plain}).runs()
    assert run_one(run, tmp_path)["value"].notna().all()
