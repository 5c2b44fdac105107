import copy
import math
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from iumad.config.schema import RunConfig
from iumad.errors import CheckpointError
from iumad.features.cache import FeatureStore
from iumad.models import base
from iumad.training.checkpoint import load_checkpoint, save_checkpoint
from iumad.training.increments import remember
from iumad.training.loop import (
    LossLog,
    StepPlan,
    TrainingError,
    Unfinished,
    Watch,
    epoch_seed,
    fit_step,
    make_optimizer,
    make_scheduler,
)


@pytest.fixture(scope="module")
def store():
    return tiny.open_store(tiny.run())


def base_ids(store: FeatureStore) -> list[str]:
    return tiny.train_ids(store, *tiny.CATEGORIES[:2])[:5]  # an uneven last batch of two


class Stopped(Exception):
    pass


def stop_after(samples: int):
    """An `advance` that raises once so many samples have been trained on."""
    seen = 0

    def advance(count: int) -> None:
        nonlocal seen
        seen += count
        if seen >= samples:
            raise Stopped

    return advance


def fit(detector, store, run, partial=None, step=0, memory=None, advance=None):
    ids = base_ids(store) if step == 0 else tiny.train_ids(store, tiny.CATEGORIES[2])
    watch = Watch(samples=advance) if advance else Watch()
    plan = StepPlan.of(run, step)
    return fit_step(detector, store, ids, plan, memory or {}, partial, watch)


@pytest.fixture
def eager(monkeypatch):
    """Unfinished steps are saved after every epoch."""
    monkeypatch.setattr(Unfinished, "SECONDS", 0.0)


# --- resuming -----------------------------------------------------------------------------------

RESUMED = [
    (0, {}),
    (0, {"training": {"schedule": "step", "batch_size": 2}}),
    (1, {"increment": {"strategy": "projection", "pull": 0.05}}),
    (1, {"increment": {"strategy": "replay", "replay_images": 1}}),
    (1, {"preset": "ib-iumad-keep"}),
    pytest.param(
        *(1, {"increment": {"strategy": "projection", "optimizer": "sgd", "lr": 0.1}}),
        marks=pytest.mark.slow,
    ),
    pytest.param(1, {"increment": {"strategy": "ewc"}}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("step", "changes"), RESUMED, ids=str)
@pytest.mark.usefixtures("eager")
def test_an_interrupted_step_ends_with_the_same_bits(store, tmp_path, step, changes):
    sections = {"training": {"epochs": 4}, "increment": {"epochs": 4}}
    sections = {key: value | changes.get(key, {}) for key, value in sections.items()}
    run = tiny.run(changes.get("preset", "ib-iumad"), model={"dropout": 0.1}, **sections)
    start = tiny.trainable(store, run)
    memory = {}
    if step:
        start.fit(store, base_ids(store), torch.Generator())
        start.calibrate(store, base_ids(store))
        memory = remember(start, store, base_ids(store), run.increment, {}, 0)
    straight, stopped = copy.deepcopy(start), copy.deepcopy(start)
    log = fit(straight, store, run, tmp_path / "straight.pt", step, memory)

    partial = tmp_path / "partial.pt"
    per_epoch = 5 if step == 0 else 3 + len(memory.get("replay", []))
    stop = stop_after(2 * per_epoch + 2)  # in the third epoch
    with pytest.raises(Stopped):
        fit(stopped, store, run, partial, step, memory, advance=stop)
    torch.manual_seed(12345)  # another process has another state
    again, seen = copy.deepcopy(start), []
    resumed = fit(again, store, run, partial, step, memory, advance=seen.append)
    assert seen[0] == 2 * per_epoch
    assert sum(seen) == 4 * per_epoch
    assert tiny.same_tensors(again.state_dict(), straight.state_dict())
    assert resumed == log


def test_training_does_not_depend_on_the_state_of_the_generator(store, tmp_path):
    run = tiny.run()
    start = tiny.trainable(store, run)
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        detector = copy.deepcopy(start)
        fit(detector, store, run, tmp_path / "partial.pt")
        states.append(detector.state_dict())
    assert tiny.same_tensors(*states)


@pytest.mark.parametrize(
    "increment",
    [
        {"strategy": "none", "pull": 0.3},
        {"strategy": "replay", "replay_images": 2, "pull": 0.3},
        {"strategy": "ewc", "optimizer": "sgd", "lr": 0.5, "pull": 0.3},
    ],
    ids=str,
)
def test_how_increments_are_trained_does_not_reach_the_base_step(store, increment):
    """Runs that differ in `increment` alone share one base step (`RunConfig.step_key`)."""
    plain, other = tiny.run(), tiny.run(increment=increment)
    start = tiny.trainable(store, plain)
    detectors = [copy.deepcopy(start) for _ in range(2)]
    for detector, run in zip(detectors, (plain, other), strict=True):
        fit(detector, store, run)
    assert tiny.same_tensors(*(detector.state_dict() for detector in detectors))


def partial_of(store: FeatureStore, run: RunConfig, folder: Path) -> Path:
    path = folder / "partial.pt"
    detector = tiny.trainable(store, run)
    with pytest.raises(Stopped):
        fit(detector, store, run, path, advance=stop_after(6))
    return path


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("change", [{"seed": 1}, {"modality": "rgb"}])
def test_the_checkpoint_of_another_run_is_refused(store, tmp_path, change):
    run = tiny.run()
    path = partial_of(store, run, tmp_path)
    other = run.model_copy(update=change)
    with pytest.raises(CheckpointError, match=r"partial\.pt: checkpoint of another configuration"):
        fit(tiny.trainable(store, run), store, other, path)
    assert path.exists()


@pytest.mark.usefixtures("eager")
def test_runs_that_share_the_step_finish_each_others(store, tmp_path):
    run = tiny.run()
    path = partial_of(store, run, tmp_path)
    update = {"setting": "2-0", "method": "renamed", "profile": "other"}
    seen: list[int] = []
    detector, other = tiny.trainable(store, run), run.model_copy(update=update)
    fit(detector, store, other, path, advance=seen.append)
    assert seen[0] == len(base_ids(store))  # the epoch that was saved


@pytest.mark.usefixtures("eager")
def test_a_damaged_checkpoint_is_refused(store, tmp_path):
    run = tiny.run()
    path = partial_of(store, run, tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"partial\.pt: damaged"):
        fit(tiny.trainable(store, run), store, run, path)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("pwned"),))


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "evil.pt", {"key": {}, "detector": Evil()})
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "evil.pt", {})
    assert not (tmp_path / "pwned").exists()


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"key": {}, "value": 1})

    def fail(_state, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, {"key": {}, "value": 2})
    assert load_checkpoint(path, {})["value"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


# --- the loop -----------------------------------------------------------------------------------


def test_one_sgd_update_by_hand(store, tmp_path):
    model = {"jitter_probability": 0.0}
    run = tiny.run(
        "plain",
        model=model,
        training={"schedule": "constant", "batch_size": 8, "clip": 0.01},
        increment={"optimizer": "sgd", "lr": 0.5, "epochs": 1, "strategy": "none"},
    )
    detector = tiny.trainable(store, run)
    detector.fit(store, base_ids(store), torch.Generator())
    reference = copy.deepcopy(detector)
    (row,) = fit(detector, store, run, tmp_path / "partial.pt", step=1)
    loss = reference.losses(store.batch(tiny.train_ids(store, tiny.CATEGORIES[2])))["fusion"]
    assert row == {"epoch": 0, "term": "fusion", "value": pytest.approx(loss.item(), rel=1e-5)}
    loss.backward()
    gradients = [p.grad for p in reference.parameters()]
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert norm > 0.01
    moved = zip(detector.parameters(), reference.parameters(), strict=True)
    for p, old in moved:
        expected = old.detach() - 0.5 * old.grad * 0.01 / norm
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-6)


def test_every_epoch_reads_all_samples_once_in_another_order(store, tmp_path, monkeypatch):
    run = tiny.run("plain", training={"epochs": 3, "batch_size": 2})
    seen: list[list[str]] = []
    batch = store.batch
    detector = tiny.trainable(store, run)
    detector.fit(store, base_ids(store), torch.Generator())
    monkeypatch.setattr(store, "batch", lambda ids, *_: seen.append(list(ids)) or batch(ids))
    fit(detector, store, run, tmp_path / "partial.pt")
    assert [len(ids) for ids in seen] == [2, 2, 1] * 3
    epochs = [[name for ids in seen[i : i + 3] for name in ids] for i in (0, 3, 6)]
    assert all(sorted(epoch) == sorted(base_ids(store)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_replayed_images_join_the_step(store, tmp_path, monkeypatch):
    run = tiny.run("plain", increment={"strategy": "replay", "epochs": 1})
    replayed = base_ids(store)[:1]
    seen: list[str] = []
    batch = store.batch
    detector = tiny.trainable(store, run)
    detector.fit(store, base_ids(store), torch.Generator())
    monkeypatch.setattr(store, "batch", lambda ids, *_: seen.extend(ids) or batch(ids))
    fit(detector, store, run, tmp_path / "p.pt", step=1, memory={"replay": replayed})
    assert sorted(seen) == sorted(tiny.train_ids(store, tiny.CATEGORIES[2]) + replayed)


def moved(store: FeatureStore, run: RunConfig, memory=None, detector=None):
    """How far an increment moves each parameter, and its log."""
    detector = detector or tiny.trainable(store, run)
    before = {name: p.detach().clone() for name, p in detector.named_parameters()}
    log = fit(detector, store, run, step=1, memory=memory)
    return {name: p.detach() - before[name] for name, p in detector.named_parameters()}, log


@pytest.mark.parametrize("strategy", ["ewc", "projection"])
def test_an_increment_is_protected_as_its_strategy_says(store, strategy):
    run = tiny.run("iuf", increment={"strategy": strategy, "epochs": 2, "lr": 0.01})
    detector = tiny.trainable(store, run)
    detector.fit(store, base_ids(store), torch.Generator())
    memory = remember(detector, store, base_ids(store), run.increment, {}, 0)
    change, log = moved(store, run, memory, detector)
    assert ("ewc" in {row["term"] for row in log}) == (strategy == "ewc")
    for name, gram in memory.items() if strategy == "projection" else ():
        leading = torch.linalg.eigh(gram).eigenvectors[:, -1].float()
        bias = change[f"{name}.bias"]
        assert (leading @ bias).abs() < 1e-5 < bias.abs().max()


def test_an_increment_is_pulled_back_before_every_update(store):
    increment = {"strategy": "none", "epochs": 10, "lr": 0.01}
    furthest = []
    for pull in (0.0, 0.99):
        changes = {"increment": increment | {"pull": pull}, "training": {"schedule": "constant"}}
        change, _ = moved(store, tiny.run("plain", **changes))
        furthest.append(max(float(each.abs().max()) for each in change.values()))
    assert furthest[1] < 0.3 * furthest[0]


def test_features_are_compressed_in_the_base_step_only(store):
    changes = {"model": {"lambda_compression": 1.0}, "training": {"epochs": 1}}
    run = tiny.run("iuf", increment={"strategy": "none", "epochs": 1}, **changes)
    detector = tiny.trainable(store, run)
    terms = [{row["term"] for row in fit(detector, store, run, step=step)} for step in (0, 1)]
    assert ["compression" in each for each in terms] == [True, False]


def test_the_log_has_the_mean_of_every_term_per_epoch(store, tmp_path):
    run = tiny.run()
    log = fit(tiny.trainable(store, run), store, run, tmp_path / "partial.pt")
    terms = ["category_rgb", "category_depth", "fusion", "ib", "ib_heads"]
    assert [(row["epoch"], row["term"]) for row in log] == [(e, t) for e in (0, 1) for t in terms]
    assert all(math.isfinite(row["value"]) for row in log)


def test_training_lowers_the_loss(store, tmp_path):
    run = tiny.run("plain", "rgb", training={"epochs": 25, "lr": 5e-3})
    log = fit(tiny.trainable(store, run), store, run, tmp_path / "partial.pt")
    assert log[-1]["value"] < 0.9 * log[0]["value"]


def test_bfloat16_trains(store, tmp_path):
    run = tiny.run(training={"precision": "bfloat16", "epochs": 1})
    detector = tiny.trainable(store, run)
    log = fit(detector, store, run, tmp_path / "partial.pt")
    assert all(math.isfinite(row["value"]) for row in log)
    assert all(p.dtype == torch.float32 for p in detector.parameters())
    full = tiny.run(training={"epochs": 1})
    exact = fit(tiny.trainable(store, full), store, full, tmp_path / "partial.pt")
    for ours, theirs in zip(log, exact, strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], rel=0.1, abs=0.02)
    assert log != exact


def test_a_loss_that_is_not_a_number_stops_with_step_epoch_and_samples(
    store, tmp_path, monkeypatch
):
    run = tiny.run("plain", training={"batch_size": 1})
    bad = base_ids(store)[3]
    batch = store.batch
    detector = tiny.trainable(store, run)
    detector.fit(store, base_ids(store), torch.Generator())
    before = copy.deepcopy(detector)

    def poisoned(ids, *_):
        made = batch(ids)
        if bad in ids:
            made.features["rgb"].fill_(math.inf)
        return made

    monkeypatch.setattr(store, "batch", poisoned)
    with pytest.raises(TrainingError) as caught:
        fit(detector, store, run, tmp_path / "partial.pt")
    for part in ("step 0", "epoch 0", "nan", "fusion", bad):
        assert part in str(caught.value)
    assert all(torch.isfinite(p).all() for p in detector.parameters())
    assert tiny.same_tensors(dict(before.named_buffers()), dict(detector.named_buffers()))


def test_a_loss_on_a_card_is_looked_at_when_the_epoch_ends():
    log = LossLog(2)
    log._sums = {"fusion": torch.tensor(1.0), "ib": torch.tensor(math.nan)}
    with pytest.raises(TrainingError, match="step 2, epoch 3: loss ib is not finite"):
        log.end(3, tiny.detector("plain"))


def test_weights_that_became_nan_at_the_last_update_are_not_returned(store, tmp_path):
    run = tiny.run("plain", training={"batch_size": 8, "epochs": 1, "schedule": "constant"})
    detector = tiny.trainable(store, run)
    for p in detector.parameters():
        p.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingError, match=r"step 0, epoch 0: .* is not finite"):
        fit(detector, store, run, tmp_path / "partial.pt")
    assert not (tmp_path / "partial.pt").exists()


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("method", ["iuf", "ib-iumad"])
def test_a_huge_learning_rate_ends_in_a_training_error(store, method, step):
    big = {"lr": 1e18, "epochs": 4}
    model = {"lambda_compression": 10.0}
    run = tiny.run(method, model=model, training=big, increment=big | {"strategy": "ewc"})
    memory = (
        {}
        if step == 0
        else remember(tiny.trainable(store, run), store, base_ids(store), run.increment, {}, 0)
    )
    with pytest.raises(TrainingError, match=f"step {step}, epoch"):
        fit(tiny.trainable(store, run), store, run, step=step, memory=memory)


def test_seeds_of_epochs_differ():
    seeds = {epoch_seed(s, t, e) for s in range(5) for t in range(3) for e in range(-1, 5)}
    assert len(seeds) == 5 * 3 * 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    # printf '0:0:0' | sha256sum, the first 8 bytes without their last bit
    assert epoch_seed(0, 0, 0) == int("e8ca2bd51293d64a", 16) >> 1


# --- schedules ----------------------------------------------------------------------------------


def rates(schedule: str, optimizer: str = "adamw", epochs: int = 10, updates: int = 2):
    training = {"schedule": schedule, "weight_decay": 0.1}
    increment = {"epochs": epochs, "lr": 0.4, "optimizer": optimizer}
    plan = StepPlan.of(tiny.run(training=training, increment=increment), 1)
    made = make_optimizer(nn.Linear(2, 2), plan)
    scheduler = make_scheduler(made, plan, updates)
    found = []
    for _ in range(epochs * updates):
        found.append(made.param_groups[0]["lr"])
        made.step()
        scheduler.step()
    return found, made


def test_the_constant_schedule():
    assert rates("constant")[0] == [0.4] * 20


def test_the_step_schedule_falls_to_a_tenth_at_four_fifths():
    assert rates("step")[0] == pytest.approx([0.4] * 16 + [0.04] * 4)


def test_the_one_cycle_schedule_rises_and_falls():
    found, _ = rates("one-cycle")
    assert found[0] == pytest.approx(0.4 / 25)
    assert max(found) == pytest.approx(0.4)
    assert found.index(max(found)) == 5  # 0.3 of 20 updates, counted from 0
    assert found[-1] < 0.4 / 1000
    assert sorted(found[:6]) == found[:6]
    assert sorted(found[5:], reverse=True) == found[5:]


@pytest.mark.parametrize("schedule", ["one-cycle", "step", "constant"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("updates", [1, 2])
def test_every_schedule_lasts_for_any_number_of_updates(schedule, optimizer, updates):
    found, made = rates(schedule, optimizer, epochs=1, updates=updates)
    assert len(found) == updates
    assert type(made) is {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]


def test_sgd_stays_without_momentum_and_decay():
    group = rates("one-cycle", "sgd")[1].param_groups[0]
    assert group["momentum"] == 0
    assert group["weight_decay"] == 0
    assert rates("constant")[1].param_groups[0]["weight_decay"] == 0.1


def test_the_base_step_and_later_steps_have_their_own_plans():
    run = tiny.run(
        training={"epochs": 7, "lr": 0.1}, increment={"epochs": 3, "lr": 0.2, "optimizer": "sgd"}
    )
    plans = [StepPlan.of(run, step) for step in (0, 2)]
    assert [(p.step, p.epochs, p.lr, p.optimizer) for p in plans] == [
        (0, 7, 0.1, "adamw"),
        (2, 3, 0.2, "sgd"),
    ]


# --- statistics ---------------------------------------------------------------------------------


@pytest.fixture
def small_chunks(monkeypatch):
    """Sums over several parts, as those of a real step."""
    monkeypatch.setattr(base, "in_chunks", partial(base.in_chunks, size=2))


@pytest.mark.usefixtures("small_chunks")
def test_statistics_are_those_of_all_tokens_of_the_base_step(store):
    detector = tiny.trainable(store, tiny.run())
    ids = base_ids(store)
    detector.fit(store, ids, torch.Generator())
    for modality in ("rgb", "depth"):
        features = store.batch(ids).features[modality].double()
        mean = features.mean(dim=(0, 2, 3))
        std = features.std(dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(getattr(detector, f"mean_{modality}"), mean.float())
        torch.testing.assert_close(
            getattr(detector, f"std_{modality}"), std.float(), rtol=1e-4, atol=1e-6
        )


def test_features_may_stay_as_they_are(store):
    run = tiny.run(model={"standardise": False})
    detector = tiny.trainable(store, run)
    detector.fit(store, base_ids(store), torch.Generator())
    batch = store.batch(base_ids(store))
    assert torch.equal(detector.standardised(batch, "rgb"), batch.features["rgb"].flatten(2).mT)


def test_statistics_are_fitted_in_the_base_step_only(store, tmp_path):
    run = tiny.run("plain")
    detector = tiny.trainable(store, run)
    fit(detector, store, run, tmp_path / "p.pt", step=0)
    measured = detector.std_rgb.clone()
    assert not torch.equal(measured, torch.ones_like(measured))
    fit(detector, store, run, tmp_path / "p.pt", step=1)
    assert torch.equal(detector.std_rgb, measured)


@pytest.mark.usefixtures("small_chunks")
def test_residual_scales_make_the_mean_of_every_targets_map_one(store):
    run = tiny.run(model={"targets": "all"})
    detector, ids = tiny.trainable(store, run).eval(), base_ids(store)
    detector.calibrate(store, ids)
    for modality, residual in detector.residual_maps(store.batch(ids)).items():
        scale = getattr(detector, f"residual_{modality}")
        assert scale != 1
        assert (residual / scale).mean().item() == pytest.approx(1, rel=1e-5)
