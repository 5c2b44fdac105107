"""The variant that forgets nothing: own parts, recognition by means, small banks; and replay of features."""

import pytest
import tiny
import torch

from iumad.features.cache import Batch
from iumad.models.build import make_detector
from iumad.models.keep import KeepDetector
from iumad.study.runner import RunWork, run_one, trained_detector
from iumad.study.steps import Step, steps_of
from iumad.training.checkpoint import load_grown
from iumad.training.increments import Guard, remember
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
def after_each_step(tmp_path_factory) -> tuple[RunWork, list[Step], list[KeepDetector]]:
    """A run of 1-1 in three steps, and its models."""
    run, results = tiny.run(METHOD, settings=["1-1"]), tmp_path_factory.mktemp("results")
    work = RunWork(run)
    steps = steps_of(run, results, work.dataset)
    return work, steps, [trained_detector(work, step) for step in steps]


def test_maps_of_old_categories_stay_the_same_bits(after_each_step):
    work, _, models = after_each_step
    for number, name in enumerate(tiny.CATEGORIES):
        batch = work.store.batch(work.dataset.ids("test", [name]))
        maps = [model.maps_and_logits(batch) for model in models[number:]]
        for later, logits in maps[1:]:
            assert (logits.argmax(dim=1) == number).all()
            assert torch.equal(later, maps[0][0])
            assert torch.equal(logits[:, : number + 1], maps[0][1])


def test_a_later_step_learns_nothing_but_its_own_parts(after_each_step):
    _, _, (first, second, third) = after_each_step
    names = second.own_parameters
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
    _, _, models = after_each_step
    sizes = [model.size_bytes() for model in models]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0]
    parts = sum(p.numel() * 4 for p in models[0].own_parameters.values())
    patches = sum(bank.numel() * 2 for name, bank in models[1].banks.items() if name[0] == "1")
    assert 0 < sizes[1] - sizes[0] - parts - patches < 1000 + 4 * models[0].prototypes.shape[1]


@pytest.mark.parametrize("own", ["none", "norms", "queries", "projections"])
def test_what_a_step_may_own(own):
    names = [*keep(own=own).own_parameters]
    assert ("project_out.rgb.weight" in names) == (own == "projections")
    assert ("networks.rgb.decoder.0.learned" in names) == (own in ("queries", "projections"))
    assert ("networks.rgb.norm.weight" in names) == (own != "none")
    assert not any("condition" in name or "head" in name for name in names)


def test_the_base_step_is_that_of_ib_iumad_plus_which_is_not_trained_again(after_each_step):
    work, steps, (first, *_) = after_each_step
    plus = tiny.run("ib-iumad-plus", settings=["1-1"])
    assert plus.trunk is None
    (base, *_) = steps_of(plus, steps[0].folder.parent.parent, work.dataset)
    assert base.checkpoint.exists()
    for name, p in trained_detector(RunWork(plus), base).named_parameters():
        assert torch.equal(p, first.get_parameter(name))


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
    work, steps, models = after_each_step
    old = work.store.batch(work.dataset.ids("test", [FIRST]))
    states = []
    for epoch in (lambda model, _epoch: model.eval().residual_maps(old), Watch().epoch):
        detector = work.new_detector(steps[1])
        load_grown(detector, models[0].state_dict())
        ids, plan = work.dataset.ids("train", [SECOND]), StepPlan.of(work.run, 1)
        fit_step(detector, work.store, ids, plan, {}, watch=Watch(epoch=epoch))
        states.append(detector.state_dict())
    first, second = (state.pop("_extra_state")["own"]["1"] for state in states)
    assert tiny.same_tensors(*states)
    assert tiny.same_tensors(first, second)


@pytest.mark.parametrize("changes", [{}, {"own": "none"}, {"patches": 0}])
def test_the_same_protection_goes_with_another_network(changes, tmp_path):
    plain = {"preset": "plain", "model": {"kind": "keep"} | changes}
    (run,) = tiny.study(methods={"plain-keep": plain | {"increment": {"strategy": "none"}}}).runs()
    assert run_one(run, tmp_path)["value"].notna().all()


# --- feature replay -----------------------------------------------------------------------------


def test_what_is_remembered_are_features_of_so_many_images_of_each_category_and_no_image():
    run = tiny.run("plain+feature-replay", increment={"replay_images": 2})
    store, detector = tiny.open_store(run), tiny.detector("plain")
    memory = {}
    for count, names in ((4, (FIRST, SECOND)), (6, (THIRD,))):
        ids = tiny.train_ids(store, *names)
        memory = remember(detector, store, ids, run.increment, memory, seed=0)
        assert len(memory["replay"]) == len(set(memory["replay"])) == count
        assert memory.keys() == {"replay", "categories", "features rgb", "features depth"}
    assert memory["categories"].tolist() == [0, 0, 1, 1, 2, 2]
    assert memory["features depth"].dtype == torch.float16
    inputs = Guard(detector, run.increment, memory).inputs(store)
    new = tiny.train_ids(store, THIRD)
    inputs.load([*new, *memory["replay"]])
    batch = inputs.batch([memory["replay"][1], new[0], memory["replay"][4], new[1]])
    assert batch.category.tolist() == [0, 2, 2, 2]
    for modality, x in batch.features.items():
        assert torch.equal(x[[1, 3]], store.batch(new[:2]).features[modality])
        assert torch.equal(x[[0, 2]], memory[f"features {modality}"][[1, 4]].float())


def test_features_do_what_the_images_do_for_a_method_that_reads_only_them(tmp_path):
    """float16 keeps 11 bits: the two trainings begin alike, and nothing but rounding parts them."""
    losses = []
    for name in ("replay", "feature-replay"):
        run = tiny.run(f"plain+{name}", increment={"replay_images": 3})
        store = tiny.open_store(run)
        detector = tiny.trainable(store, run)
        old, new = tiny.train_ids(store, FIRST), tiny.train_ids(store, SECOND)
        detector.fit(store, old, torch.Generator())
        memory = remember(detector, store, old, run.increment, {}, seed=0)
        log = fit_step(detector, store, new, StepPlan.of(run, 1), memory, tmp_path / f"{name}.pt")
        losses.append(torch.tensor([row["value"] for row in log]))
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-2, atol=1e-3)


def test_a_method_that_reads_images_cannot_replay_features():
    for name in ("iuf", "ib-iumad", "unimmad", "cnd"):
        with pytest.raises(ValueError, match="this method reads images"):
            tiny.study(methods={f"{name}+feature-replay": {}})
