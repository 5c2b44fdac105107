"""The paper's configuration at full size: files, parameter counts, and two steps on random inputs."""

import papermill
import pytest
import torch
import yaml
from trees import EyecandiesTree, large_mvtec3d

from iumad.config.files import load_params
from iumad.data.public import EYECANDIES
from iumad.features.backbone import Backbone
from iumad.features.cache import Batch
from iumad.models.base import InputSpec
from iumad.models.detector import ReconstructionDetector
from iumad.study.efficiency import measure_speeds
from iumad.study.load import needs, plan
from iumad.study.runner import run_study
from iumad.training.loop import StepPlan, make_optimizer

FILES = ("mvtec3d", "eyecandies")


def full_size(repository, method: str = "ib-iumad", name: str = "mvtec3d"):
    """The run of a method with both modalities, with random backbone weights."""
    chosen = (
        load_params(repository / f"params/{name}.yaml")
        .select(methods=[method], modalities=["rgb+depth"], settings=["6-1"], seeds=[0])
        .runs()[0]
    )
    features = chosen.features.model_copy(update={"weights": "random"})
    return chosen.model_copy(update={"features": features})


def detector_of(run) -> ReconstructionDetector:
    torch.manual_seed(0)
    spec = InputSpec(run.modalities, 272, run.features.grid, run.data.image_size)
    return ReconstructionDetector(run.model, spec, 10)


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", FILES)
def test_files_hold_the_papers_budget(repository, name):
    study = load_params(repository / f"params/{name}.yaml")
    assert study.modalities == ("rgb", "depth", "rgb+depth")
    assert study.settings == ("10-0", "9-1", "6-4", "6-1")
    assert len(study.seeds) == 4
    run = full_size(repository, name=name)
    assert run.data.name == name
    plans = [StepPlan.of(run, step) for step in (0, 1)]
    assert [(p.epochs, p.lr, p.optimizer) for p in plans] == [
        (1000, 1.0e-4, "adamw"),
        (800, 1.0, "sgd"),
    ]
    assert (run.training.batch_size, run.training.clip, run.increment.pull) == (24, 0.1, 0.05)
    second = full_size(repository, "ib-iumad[adamw]", name)
    assert (second.increment.optimizer, second.increment.pull) == ("adamw", 0.0)
    assert StepPlan.of(second, 0).recipe == plans[0].recipe  # one base model for both
    assert (run.model.dim, run.model.layers, run.model.heads) == (256, 4, 8)


def test_features_are_272_channels_on_14_by_14(repository):
    run = full_size(repository)
    backbone = Backbone(run.features)
    assert backbone.channels == 24 + 32 + 56 + 160
    assert count(backbone) == pytest.approx(3.64e6, rel=0.002)  # EfficientNet-B4 up to block 21
    assert backbone(torch.rand(1, 3, 224, 224)).shape == (1, 272, 14, 14)


def test_parameters_of_each_part(repository):
    """Analytic counts for d = 256, C = 272, 196 tokens, four layers."""
    detector = detector_of(full_size(repository))
    position = 2 * 14 * 128
    encoder, decoder = 789_760, 1_103_616  # a layer each; the decoder's includes its learned query
    network = 4 * (encoder + decoder) + 512 + position
    assert count(detector.networks["rgb"]) == network == 7_574_016 + 3_584
    state_space = 567_296
    block = state_space + 2_560 + 2 * 512 + (256 * 32 + 32 + 32 * 256 + 256)  # DWConv, norms, gate
    stem = 3 * 256 * 16 * 16 + 512
    classifier = 256 * 256 + 256 + 256 * 10 + 10
    assert count(detector.conditions["depth"].blocks[0].state_space) == state_space
    assert count(detector.conditions["depth"]) == 4 * block + stem + classifier
    assert count(detector.project_in[0]) + count(detector.project_out["rgb"]) == 139_792
    everything = (
        2 * (network + 4 * block + stem + classifier)
        + 139_792
        + (272 * 256 + 256)  # the second projection, of depth
        + (2 * (512 * 256 + 256) + 4 * (256 * 256 + 256) + 512)  # fusion
        + (2 * (256 * 256 + 256) + 2 * (256 * 10 + 10))  # bottleneck and heads
    )
    assert count(detector) == everything


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ib-iumad", "iuf"])
def test_two_steps_on_random_inputs(repository, method):
    run = full_size(repository, method)
    detector = detector_of(run).train()
    optimizer = make_optimizer(detector, StepPlan.of(run, 0))
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(2):
        batch = Batch(
            {m: torch.randn(2, 272, 14, 14, generator=generator) for m in run.modalities},
            {m: torch.rand(2, 3, 224, 224, generator=generator) for m in run.modalities},
            torch.tensor([0, 9]),
        )
        loss = torch.stack(list(detector.losses(batch, generator, True).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), run.training.clip)
        optimizer.step()
        losses.append(loss.detach())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in detector.parameters())
    assert torch.isfinite(torch.stack(losses)).all()
    maps = detector.eval().anomaly_maps(batch)
    assert maps.shape == (2, 224, 224)


def eyecandies_tree(root):
    """Eyecandies' categories with images as large as its own, but few of them."""
    tree = EyecandiesTree(root, root.parent / "store", (512, 512))
    for category in EYECANDIES:
        for number, (split, kinds) in enumerate(
            [
                ("train", ()),
                ("train", ()),
                ("val", ()),
                ("test_public", ()),
                ("test_public", ("bumps",)),
            ]
        ):
            tree.add(category, split, f"{number:03d}", kinds)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tree"), [("mvtec3d", large_mvtec3d), ("eyecandies", eyecandies_tree)]
)
def test_the_study_goes_through_on_the_exact_layout(repository, tmp_path, name, tree):
    """One epoch of every step at full size, from files to a page, and what the plan says before and after."""
    root = tmp_path / name
    root.mkdir()
    content = {
        "base": str(repository / f"params/{name}.yaml"),
        "data": {"root": str(tree(root))},
        "features": {"weights": "random"},
        "training": {"epochs": 1, "batch_size": 4},
        "increment": {"epochs": 1},
        "methods": {"ib-iumad": {}},
        "modalities": ["rgb+depth"],
        "settings": ["6-1"],
        "seeds": [0],
    }
    params, results = tmp_path / "full.yaml", tmp_path / "results"
    params.write_text(yaml.safe_dump(content))
    study = load_params(params)
    speeds, features, size = measure_speeds(study, "cpu")
    assert [text.split(":")[0] for text in needs(study, features, size, speeds)] == [
        "features",
        "memory",
    ]
    assert plan(study, results, speeds)[1] > 0
    rows = run_study(study, results, "cpu")
    assert plan(study, results)[1] == 0
    assert set(rows["step"]) == set(range(5))
    assert rows[rows["step"] == 4].groupby("metric")["category"].nunique()["aupro"] == 10
    given = {"params_file": str(params), "results": str(results)}
    source, out = repository / "notebooks/11_incremental.ipynb", tmp_path / "out.ipynb"
    folder = str(source.parent)
    papermill.execute_notebook(
        source, out, given, cwd=folder, kernel_name="python3", progress_bar=False
    )
    assert "all 1 runs were made here" in out.read_text()
