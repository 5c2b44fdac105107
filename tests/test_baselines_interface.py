"""The field's other systems as detectors: one interface, one loop, checkpoints, increments, refusals."""

import math
from typing import get_args

import pandas as pd
import pytest
import tiny
import torch

from iumad.config.files import load_params
from iumad.config.methods import READ_IMAGES, RECONSTRUCTIONS, UNTRAINED, ModelConfig
from iumad.config.schema import StudyConfig
from iumad.config.sections import build
from iumad.errors import ConfigError
from iumad.features.cache import Batch
from iumad.models.base import Detector, InputSpec
from iumad.models.build import CLASSES, make_detector
from iumad.study import efficiency
from iumad.study.counting import gradient_reach, model_card
from iumad.study.runner import run_study
from iumad.training.increments import remember
from iumad.training.loop import StepPlan, fit_step

SMALL = {
    "mambaad-lite": {"dim": 8, "depths": [1, 1], "d_state": 4, "directions": 4},
    "simplenet": {"hidden": 16},
    "cdad-feat": {"dim": 16, "blocks": 1, "layers": 1, "heads": 2, "sampling_steps": 2},
}
# uniad stands for reconstruction; the others need other sizes or weights, and have test files of their own
ELSEWHERE = ("reconstruction", "keep", "unimmad", "unimmad-lite", "cnd")
TRAINED = [kind for kind, each in CLASSES.items() if each.trained and kind not in ELSEWHERE]
MODELS = {"uniad": {}} | {kind: SMALL.get(kind, {}) for kind in TRAINED}
MODALITIES = ["rgb", "depth", "rgb+depth"]


def run(method: str, modality: str = "rgb+depth", **changes):
    """The one run of this method, at the smallest size."""
    methods = {method: {"model": MODELS[method]}}
    (only,) = tiny.study(methods=methods, modalities=[modality], **changes).runs()
    return only


def make(method: str, modality: str = "rgb+depth", seed: int = 0) -> Detector:
    config = run(method, modality)
    torch.manual_seed(seed)
    return make_detector(config.model, tiny.spec(modality), len(tiny.CATEGORIES))


def total(detector: Detector, batch: Batch, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(list(detector.losses(batch, generator, base=True).values())).sum()


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("method", MODELS)
def test_shapes(method, modality):
    detector, batch = make(method, modality), tiny.batch(modality)
    for value in detector.losses(batch, torch.Generator().manual_seed(0), True).values():
        assert value.shape == ()
    detector.eval()
    maps = detector.residual_maps(batch)
    assert tuple(maps) == detector.targets
    assert {tuple(x.shape) for x in maps.values()} == {(3, tiny.GRID, tiny.GRID)}
    assert detector.anomaly_maps(batch).shape == (3, tiny.SIZE, tiny.SIZE)


@pytest.mark.parametrize("method", MODELS)
def test_the_gradient_reaches_every_parameter(method):
    detector = make(method).train()
    detector.begin_increment()
    total(detector, tiny.batch()).backward()
    unreached = [name for name, p in detector.named_parameters() if p.grad is None]
    assert not unreached
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters())


@pytest.mark.parametrize("method", MODELS)
def test_a_constant_image_has_finite_scores(method):
    detector = make(method).eval()
    batch = tiny.batch()
    flat = {name: torch.ones_like(x) for name, x in batch.features.items()}
    images = {name: torch.ones_like(x) for name, x in batch.images.items()}
    assert torch.isfinite(detector.anomaly_maps(Batch(flat, images, batch.category))).all()


@pytest.mark.parametrize("method", MODELS)
def test_an_images_map_depends_on_nothing_else(method):
    detector, batch = make(method).eval(), tiny.batch()
    alone = Batch(
        {name: x[1:2] for name, x in batch.features.items()},
        {name: x[1:2] for name, x in batch.images.items()},
        batch.category[1:2],
    )
    together = detector.anomaly_maps(batch)[1:2]
    torch.testing.assert_close(detector.anomaly_maps(alone), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", MODELS)
def test_the_state_dict_is_the_whole_model(method):
    detector, other, batch = make(method, seed=0), make(method, seed=1), tiny.batch()
    assert not torch.equal(detector.eval().anomaly_maps(batch), other.eval().anomaly_maps(batch))
    other.load_state_dict(detector.state_dict())
    assert torch.equal(detector.anomaly_maps(batch), other.anomaly_maps(batch))


@pytest.mark.parametrize("method", MODELS)
def test_a_short_fit_lowers_the_loss(method):
    config = run(
        method,
        data={"n_train": 8},
        training={"epochs": 12, "lr": 3e-3, "batch_size": 4, "schedule": "constant"},
    )
    store = tiny.open_store(config)
    ids = tiny.train_ids(store, tiny.CATEGORIES[0])
    torch.manual_seed(0)
    spec = tiny.spec(config.modality, channels=store.backbone.channels)
    detector = make_detector(config.model, spec, 3)
    log = pd.DataFrame(fit_step(detector, store, ids, StepPlan.of(config, 0), {}))
    losses = log.groupby("epoch")["value"].sum()
    assert losses.iloc[-3:].mean() < losses.iloc[:2].mean()


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """Rows of all methods over a base step and an increment."""
    study = tiny.study(
        methods={name: {"model": model} for name, model in MODELS.items()},
        modalities=["rgb"],
        training={"epochs": 1},
        increment={"epochs": 1},
    )
    return run_study(study, tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("method", MODELS)
def test_base_step_and_increment_end_to_end(studied, method):
    rows = studied[studied["method"] == method]
    assert set(rows["step"]) == {0, 1}
    assert set(rows[rows["step"] == 1]["category"]) >= set(tiny.CATEGORIES)
    assert rows["value"].notna().all()


@pytest.mark.parametrize("strategy", ["none", "ewc", "replay", "svd"])
@pytest.mark.parametrize("method", MODELS)
def test_every_strategy_without_protected_layers_works(method, strategy):
    config = run(method, "rgb", increment={"epochs": 1})
    increment = config.increment.model_copy(update={"strategy": strategy})
    config = config.model_copy(update={"increment": increment})
    store = tiny.open_store(config)
    spec = tiny.spec(config.modality, channels=store.backbone.channels)
    detector = make_detector(config.model, spec, 3)
    first, second = (tiny.train_ids(store, name) for name in tiny.CATEGORIES[:2])
    memory = remember(detector, store, first, increment, {}, 0)
    again = remember(detector, store, first, increment, {}, 0)
    assert memory.keys() == again.keys()
    log = fit_step(detector, store, second, StepPlan.of(config, 1), memory)
    assert all(math.isfinite(row["value"]) for row in log)


def test_the_configuration_knows_of_every_kind_what_its_class_is():
    union, *_ = get_args(ModelConfig)
    assert list(CLASSES) == [section.model_fields["kind"].default for section in get_args(union)]
    kinds = set(CLASSES)
    trained = {kind for kind in kinds if CLASSES[kind].trained}
    assert kinds - trained == set(UNTRAINED)
    assert {kind for kind in trained if not CLASSES[kind].reads_features} == set(READ_IMAGES)
    without_layers = Detector.protected_layers
    protected = {kind for kind in kinds if CLASSES[kind].protected_layers is not without_layers}
    assert protected == set(RECONSTRUCTIONS)


def test_projection_needs_layers_to_protect():
    for method in ("mambaad-lite", "simplenet", "cdad-feat"):
        with pytest.raises(ConfigError, match=rf"method '{method}'.*projection.*{method} has none"):
            methods = {method: {"increment": {"strategy": "projection"}}}
            build(StudyConfig, tiny.params(methods=methods), "file.yaml")
    store = tiny.open_store(tiny.run())
    strategy = tiny.run().increment
    ids = tiny.train_ids(store, tiny.CATEGORIES[0])
    with pytest.raises(ConfigError, match="SimpleNet has no layers"):
        remember(make("simplenet"), store, ids, strategy, {}, 0)


@pytest.mark.parametrize("wrong", [(), ("rgb", "rgb")], ids=str)
def test_no_modality_and_one_twice_are_refused(wrong):
    with pytest.raises(ConfigError, match="one or more different modalities"):
        InputSpec(wrong, tiny.CHANNELS, tiny.GRID, tiny.SIZE)


@pytest.mark.parametrize("grid", [3, 5, 7, 8])
def test_mambaad_takes_odd_grids(grid):
    config = run("mambaad-lite", "rgb").model
    detector = make_detector(config, tiny.spec("rgb", grid=grid), 3).eval()
    features = {"rgb": torch.randn(2, tiny.CHANNELS, grid, grid)}
    images = {"rgb": torch.zeros(2, 3, tiny.SIZE, tiny.SIZE)}
    batch = Batch(features, images, torch.zeros(2, dtype=torch.long))
    assert detector.residual_maps(batch)["rgb"].shape == (2, grid, grid)


def test_a_grid_too_small_for_the_stages_is_refused():
    config = run("mambaad-lite", "rgb").model
    with pytest.raises(ConfigError, match=r"2 stages.*at least 3, got 2"):
        make_detector(config, tiny.spec("rgb", grid=2), 3)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match="divisible by heads, got dim 64, heads 5"):
        methods = {"cdad-feat": {"model": {"dim": 64, "heads": 5}}}
        build(StudyConfig, tiny.params(methods=methods), "file.yaml").runs()


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'mambad', did you mean 'mambaad-lite'\?"):
        methods = {"mine": {"preset": "iuf", "model": {"kind": "mambad"}}}
        build(StudyConfig, tiny.params(methods=methods), "file.yaml")


@pytest.mark.parametrize("method", MODELS)
def test_parts_are_counted(method):
    card = model_card(run(method), n_categories=3).set_index("part")
    assert card.loc["all", "gflops"] > card.loc["backbone", "gflops"] > 0
    assert (card.drop(index=["all", "backbone"])["gflops"] > 0).any()
    reach = gradient_reach(run(method), n_categories=3)
    assert (reach.max(axis=1) > 0).all()


def test_a_size_that_a_method_refuses_has_no_costs(monkeypatch):
    def build_only(config, point, _where):
        grid = config.features.grid * point.image_size // config.data.image_size
        spec = tiny.spec(config.modality, grid=grid, image_size=point.image_size)
        make_detector(config.model, spec, point.categories)
        return [1.0], 1, None

    monkeypatch.setattr(efficiency, "_time", build_only)
    monkeypatch.setattr(efficiency, "_counted", lambda _run, _categories: {})
    config = run("mambaad-lite", "rgb", settings=["3-0"])
    rows = [
        row
        for point in efficiency.points_of(config)
        for row in efficiency.measure_point(config, point, "cpu")
    ]
    assert {row["image_size"] for row in rows} == {tiny.SIZE, 2 * tiny.SIZE}  # half the grid is 2


@pytest.mark.parametrize("name", ["baselines", "mvtec3d/baselines"])
def test_params_files_build_every_method(repository, name):
    study = load_params(repository / f"params/{name}.yaml")
    names = {run.method for run in study.runs()}
    assert names >= {
        "uniad",
        "mambaad-lite",
        "simplenet",
        "unimmad-lite" if name == "baselines" else "unimmad",
    }
    for config in study.select(settings=study.settings[:1], seeds=study.seeds[:1]).runs():
        if config.method not in MODELS:
            continue
        sizes = {"grid": config.features.grid, "image_size": config.data.image_size}
        detector = make_detector(
            config.model, tiny.spec(config.modality, channels=272, **sizes), 10
        )
        assert sum(p.numel() for p in detector.parameters()) > 0
