import copy
import math
from dataclasses import replace

import pandas as pd
import pytest
import timm
import tiny
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from iumad.config.methods import UniMMADConfig, UniMMADLiteConfig
from iumad.errors import ConfigError
from iumad.features.backbone import imagenet_classifier
from iumad.features.cache import Batch
from iumad.models.base import InputSpec
from iumad.models.baselines.unimmad import (
    ExpertBranch,
    Pyramid,
    UniMMAD,
    UniMMADLite,
    balance_of_the_code,
    balance_of_the_paper,
    coefficient_of_variation,
    grouped_dynamic_convolution,
    score_of_the_code,
    score_of_the_paper,
)
from iumad.models.build import make_detector
from iumad.study import efficiency
from iumad.study.counting import gradient_reach, model_card
from iumad.study.runner import RunWork, remembered_after, run_study, trained_detector
from iumad.study.steps import steps_of
from iumad.training import increments
from iumad.training.increments import remember
from iumad.training.loop import StepPlan, fit_step

BOTH = ("rgb", "depth")
GRID, SIZE = 8, 64  # the smallest


def spec(modality: str = "rgb+depth", **sizes: int) -> InputSpec:
    return tiny.spec(modality, **({"grid": GRID, "image_size": SIZE} | sizes))


DATA = {"data": {"image_size": SIZE}, "features": {"grid": GRID}}


def batch_of(modality="rgb+depth"):
    generator = torch.Generator().manual_seed(0)
    modalities = modality.split("+")
    return Batch(
        {m: torch.randn(3, tiny.CHANNELS, GRID, GRID, generator=generator) for m in modalities},
        {m: torch.rand(3, 3, SIZE, SIZE, generator=generator) for m in modalities},
        torch.arange(3),
    )


def full(modalities=BOTH, **changes):
    small = {"backbone": "resnet18", "weights": "random"}
    config = UniMMADConfig(width=8, leaders=4, bases=2, sigma=1.0, **(small | changes))
    torch.manual_seed(0)
    return UniMMAD(config, spec("+".join(modalities)), 3)


def lite(modalities=BOTH, **changes):
    torch.manual_seed(0)
    return UniMMADLite(
        UniMMADLiteConfig(**({"width": 16} | changes)), spec("+".join(modalities)), 3
    )


SIZES = pytest.mark.parametrize("make", [full, lite])


def total(detector, batch):
    return torch.stack(list(detector.losses(batch).values())).sum()


def trained_share(detector):
    numbers = [(p.numel(), p.requires_grad) for p in detector.parameters()]
    return sum(n for n, wanted in numbers if wanted) / sum(n for n, _ in numbers)


def branch(kernel, **changes):
    torch.manual_seed(0)
    return ExpertBranch(
        **({"width": 6, "leaders": 5, "bases": 3, "active": 2} | changes), kernel=kernel
    )


# Experts


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_one_grouped_convolution_equals_a_loop_over_items_and_experts(kernel):
    value, kernels = torch.randn(2, 3, 6, 6), torch.randn(2, 4, 5, 3, kernel, kernel)
    grouped = grouped_dynamic_convolution(value, kernels)
    for i in range(2):
        for j in range(4):
            alone = functional.conv2d(value[i : i + 1], kernels[i, j], padding=kernel // 2)[0]
            torch.testing.assert_close(grouped[i, j], alone, rtol=1e-4, atol=1e-5)


def test_a_branch_equals_separate_leaders_summed_by_their_scores():
    experts, key, condition = branch(3), torch.randn(2, 6, 4, 4), torch.randn(4, 6)
    output, logits = experts(key, condition)
    value = experts.value(key)
    for item in range(4):  # items 0, 1 are the samples with one modality; 2, 3 with the other
        x = value[item % 2 : item % 2 + 1]
        top, chosen = logits[item].topk(2)
        routed = 0.0
        for score, leader in zip(top.softmax(0), chosen, strict=True):
            share = experts.leaders[leader].softmax(dim=0)  # bases x output channels
            kernels = (share[:, :, None, None, None] * experts.bases).sum(dim=0)
            routed = routed + score * functional.conv2d(x, kernels, padding=1)
        fixed = functional.conv2d(x, experts.fixed, padding=1)
        expected = experts.join(torch.cat([fixed, routed], dim=1))[0]
        torch.testing.assert_close(output[item], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_fixed_expert_begins_as_the_identity(kernel):
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(
        functional.conv2d(x, branch(kernel).fixed, padding=kernel // 2), x, rtol=0, atol=0
    )


def test_routing_takes_the_highest_logits_with_scores_that_sum_to_one():
    logits, chosen, scores = branch(1, active=3).route(torch.randn(7, 6))
    assert chosen.shape == scores.shape == (7, 3)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(7))
    unchosen = logits.scatter(1, chosen, -torch.inf)
    assert (logits.gather(1, chosen).min(dim=1).values >= unchosen.max(dim=1).values).all()


def test_an_item_s_condition_is_pooled_so_no_place_of_the_prior_reaches_the_output():
    mixture = lite().mixtures[0].eval()
    flat, prior = torch.zeros(1, tiny.CHANNELS, 6, 6), torch.zeros(1, tiny.CHANNELS, 6, 6)
    prior[..., 2, 2] = 5.0
    _, here = mixture.router(flat, prior)
    _, there = mixture.router(flat, prior.roll((1, 1), dims=(2, 3)))
    torch.testing.assert_close(here, there)  # no 3x3 window with the peak reaches the padding
    assert not torch.allclose(here, mixture.router(flat, flat)[1])


# Balance


def test_balance_is_zero_for_uniform_use_and_by_hand_otherwise():
    uniform = [torch.zeros(2, 6, 4, requires_grad=True)]
    loss = balance_of_the_paper(uniform, 2, 0.0)
    loss.backward()
    assert loss.item() == 0 and uniform[0].grad.isfinite().all()
    # shares 3/4 and 1/4: mean 1/2, standard deviation 1/4, variation 1/2
    assert coefficient_of_variation(torch.tensor([0.75, 0.25])).item() == pytest.approx(0.5)
    biased = [torch.tensor([0.75, 0.25]).log().expand(1, 4, 2)]
    assert balance_of_the_paper(biased, 2, 0.0).item() == pytest.approx(0.5)
    assert balance_of_the_paper(biased, 2, 0.5).item() == pytest.approx(0.125)  # (1 - 1/2)^2 / 2
    assert balance_of_the_code(biased, 0.5).item() == pytest.approx(
        0.125
    )  # (1/2)^2 / 2; logsumexp 0
    assert balance_of_the_code(biased, 1.0).item() == pytest.approx(0.25e-3)  # its floor


def test_the_paper_balances_every_modality_and_the_code_all_items_together():
    apart = [20 * torch.eye(2).repeat_interleave(3, dim=0)[None]]  # each modality has its leader
    assert balance_of_the_paper(apart, 2, 0.0).item() == pytest.approx(1.0, abs=1e-6)
    logsumexp = 1e-4 * 20**2
    assert balance_of_the_code(apart, 0.0).item() == pytest.approx(logsumexp, abs=1e-6)


@SIZES
def test_balance_is_annealed_over_the_epochs_of_a_step(make):
    detector, batch = make().eval(), batch_of()
    start = detector.losses(batch)["balance"].item()
    detector.begin_epoch(3, 4)
    assert detector.losses(batch)["balance"].item() == pytest.approx(start / 16)


# Scores


def test_scores_by_hand():
    flat = [torch.full((2, 1, 4, 4), 0.3), torch.full((2, 1, 2, 2), 0.4)]  # 2 modalities, 2 levels
    paper = score_of_the_paper(flat, 24, sigma=1.0)
    torch.testing.assert_close(paper, torch.full((1, 24, 24), 0.35 * 2**0.5))
    code = score_of_the_code(flat, 24, sigma=1.0)
    inside = code[:, 8:16, 8:16]  # beyond the reach of the zeros outside
    torch.testing.assert_close(inside, torch.full((1, 8, 8), (2 * (0.09 + 0.16)) ** 0.5))
    assert (code[:, 0, 0] < inside[:, 0, 0]).all()


def test_every_map_is_centred_on_its_defect():
    defect = torch.zeros(1, 1, 8, 8)
    defect[..., 2, 5] = 1.0
    for score in (score_of_the_paper, score_of_the_code):
        peak = score([defect], 15, 1.0)[0].flatten().argmax().item()
        assert divmod(peak, 15) == (4, 10)


@SIZES
@pytest.mark.parametrize("score", ["paper", "code"])
def test_scores_of_constant_images_are_finite(make, score):
    detector, batch = make(score=score).eval(), batch_of()
    flat = replace(
        batch,
        features={m: torch.zeros_like(x) for m, x in batch.features.items()},
        images={m: torch.full_like(x, 0.5) for m, x in batch.images.items()},
    )
    maps = detector.anomaly_maps(flat)
    assert maps.shape == (3, SIZE, SIZE)
    assert maps.isfinite().all()


# Detectors


@SIZES
@pytest.mark.parametrize("modalities", [("rgb",), ("depth",), BOTH])
def test_shapes_for_every_combination(make, modalities):
    detector, batch = make(modalities).eval(), batch_of("+".join(modalities))
    assert detector.losses(batch).keys() == {"decompression", "balance"}
    maps = detector.residual_maps(batch)
    assert list(maps) == list(modalities)
    assert all(x.shape == (3, GRID, GRID) and (x >= -1e-6).all() for x in maps.values())


def test_wrong_sizes_are_refused():
    with pytest.raises(ConfigError, match="32 divides, at least 64, got 32"):
        UniMMAD(UniMMADConfig(), spec(grid=4, image_size=32), 3)
    five = InputSpec(tuple("abcde"), tiny.CHANNELS, 4, 64)
    with pytest.raises(ConfigError, match="room for 4 modalities, the run has 5"):
        UniMMAD(UniMMADConfig(), five, 3)
    with pytest.raises(ConfigError, match="4 divides, at least 8, got 4"):
        UniMMADLite(UniMMADLiteConfig(), spec(grid=4, image_size=48), 3)
    with pytest.raises(ConfigError, match="no model"):
        full(backbone="resnet_of_nobody")
    with pytest.raises(ConfigError, match="strides 4, 8, 16"):
        full(backbone="convnext_atto")
    with pytest.raises(ValidationError, match="odd"):
        UniMMADLiteConfig(kernels=(2,))
    with pytest.raises(ValidationError, match="must not exceed leaders"):
        UniMMADConfig(leaders=1)
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        UniMMADLiteConfig(width=1)  # half of it is the width of inner blocks
    assert lite(width=2).eval().anomaly_maps(batch_of()).isfinite().all()


@SIZES
@pytest.mark.parametrize("balance", ["paper", "code"])
def test_the_loss_reaches_every_parameter_that_is_trained(make, balance):
    detector = make(balance=balance)
    total(detector, batch_of()).backward()
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        inside = name.startswith("encoder.backbone")  # timm begins residual paths with weight 0
        assert inside or not parameter.requires_grad or parameter.grad.any(), name


@SIZES
def test_a_few_steps_lower_the_loss(make):
    detector, batch = make(), batch_of()
    optimizer = torch.optim.Adam([p for p in detector.parameters() if p.requires_grad], 1e-3)
    before = detector.losses(batch)["decompression"].item()
    for _ in range(8):
        optimizer.zero_grad()
        total(detector, batch).backward()
        optimizer.step()
    assert detector.losses(batch)["decompression"].item() < 0.9 * before


@SIZES
def test_state_dict_round_trip(make):
    first, batch = make(), batch_of()
    total(first, batch)  # moves the batch norms' statistics
    second = make()
    nn.init.normal_(second.mixtures[0].branches[0].leaders)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(
        first.eval().anomaly_maps(batch), second.eval().anomaly_maps(batch), rtol=0, atol=0
    )


@SIZES
def test_an_increment_trains_router_leaders_and_aggregation_and_nothing_else_moves(make):
    detector, batch = make(), batch_of()
    detector.begin_increment()
    detector.train()
    before = copy.deepcopy(detector.state_dict())
    wanted = [p for p in detector.parameters() if p.requires_grad]
    total(detector, batch).backward()
    torch.optim.Adam(wanted, 1e-2).step()
    moved = {k for k, v in detector.state_dict().items() if not torch.equal(v, before[k])}
    parts = (".router.", ".aggregation.", ".leaders", ".gate.")
    assert all(name.startswith("mixtures.") for name in moved)
    assert all(any(part in name for part in parts) for name in moved)
    assert all(any(part in name for name in moved) for part in parts)


def test_the_frozen_prior_keeps_its_statistics_in_the_base_step_too():
    detector = full().train()
    before = copy.deepcopy(detector.prior.state_dict())
    total(detector, batch_of())
    assert tiny.same_tensors(before, detector.prior.state_dict())
    assert detector.encoder.backbone.levels.bn1.num_batches_tracked == 1


def test_pretrained_weights_are_the_classifiers():
    pyramid = Pyramid("tf_efficientnet_lite0", "pretrained")
    classifier, _ = imagenet_classifier("tf_efficientnet_lite0")
    theirs = classifier.state_dict()
    assert all(torch.equal(x, theirs[key]) for key, x in pyramid.levels.state_dict().items())
    levels = pyramid.eval()(pyramid.normalised(torch.rand(1, 3, SIZE, SIZE)))
    assert [tuple(x.shape[1:]) for x in levels] == [(24, 16, 16), (40, 8, 8), (112, 4, 4)]
    assert all((x >= 0).all() for x in levels)


def test_the_default_weights_are_those_of_the_authors():
    assert timm.get_pretrained_cfg(UniMMADConfig().backbone).tag == "tv2_in1k"


def test_switches_change_the_result():
    batch = batch_of()
    gentle = lite(gamma=0.0).eval().losses(batch)["decompression"]
    assert not torch.equal(gentle, lite().eval().losses(batch)["decompression"])


def test_the_full_size_has_the_parameters_that_the_public_code_has():
    """Numbers of the fact sheet; the paper's Table 6 says 233.66 and 192.38 and does not describe its counting."""
    with torch.device("meta"):
        detector = UniMMAD(UniMMADConfig(weights="random"), spec(grid=14, image_size=256), 10)
    millions = {
        name: sum(p.numel() for p in child.parameters()) / 1e6
        for name, child in detector.named_children()
    }
    assert millions["prior"] == pytest.approx(24.9, abs=0.05)
    assert millions["compression"] == pytest.approx(56.76, abs=0.005)
    assert millions["encoder"] == pytest.approx(24.86 + 0.80, abs=0.01)
    assert millions["mixtures"] == pytest.approx(23.03 + 23.36 + 24.02, abs=0.01)
    assert sum(millions.values()) == pytest.approx(177.7, abs=0.05)
    assert trained_share(detector) == pytest.approx(152.8 / 177.7, abs=1e-3)
    with torch.device("meta"):
        images = {m: torch.empty(1, 3, 256, 256) for m in BOTH}
        batch = Batch({m: torch.empty(1, 272, 14, 14) for m in BOTH}, images, torch.arange(1))
    assert detector.eval().anomaly_maps(batch).shape == (1, 256, 256)
    detector.begin_increment()
    assert trained_share(detector) == pytest.approx(0.0377, abs=1e-4)  # 6.70 M; "less than 10 %"


def test_presets_build_both_sizes():
    changes = {"training": {"epochs": 1}, "increment": {"epochs": 1}}
    for name, kind in (("unimmad-lite", UniMMADLite), ("unimmad-lite+replay", UniMMADLite)):
        run = tiny.run(name, **changes)
        assert isinstance(make_detector(run.model, spec(run.modality), 3), kind)
    run = tiny.run("unimmad", **changes)
    assert run.model == UniMMADConfig()
    assert run.increment.strategy == "none"
    assert tiny.run("unimmad+replay", **changes).increment.strategy == "replay"


# In a study


STUDIED = {
    "unimmad": {
        "backbone": "resnet18",
        "weights": "random",
        "width": 8,
        "leaders": 4,
        "bases": 2,
    },
    "unimmad-lite": {"width": 16},
    "unimmad-lite+replay": {"width": 16},
}


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """Rows of both sizes over a base step and an increment, scored by the highest pixels."""
    study = tiny.study(
        methods={name: {"model": model} for name, model in STUDIED.items()},
        modalities=["rgb+depth"],
        training={"epochs": 1},
        increment={"epochs": 1},
        evaluation={"image_score": "top"},
        **DATA,
    )
    return run_study(study, tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("method", STUDIED)
def test_base_step_and_increment_end_to_end(studied, method):
    rows = studied[studied["method"] == method]
    assert set(rows["step"]) == {0, 1}
    assert rows["value"].notna().all()


@pytest.mark.parametrize("strategy", ["none", "ewc", "replay", "svd"])
def test_every_strategy_trains_an_increment(strategy):
    config = tiny.run("unimmad-lite", increment={"epochs": 1}, **DATA)
    increment = config.increment.model_copy(update={"strategy": strategy})
    config = config.model_copy(update={"increment": increment})
    store = tiny.open_store(config)
    model = config.model.model_copy(update={"width": 16})
    detector = make_detector(model, spec(config.modality, channels=store.backbone.channels), 3)
    first, second = (tiny.train_ids(store, name) for name in tiny.CATEGORIES[:2])
    memory = remember(detector, store, first, increment, {}, 0)
    before = copy.deepcopy(detector.compression.state_dict())
    log = fit_step(detector, store, second, StepPlan.of(config, 1), memory)
    assert all(math.isfinite(row["value"]) for row in log)
    assert tiny.same_tensors(before, detector.compression.state_dict())


def test_what_is_remembered_of_a_step_is_that_of_its_last_loss(tmp_path, monkeypatch):
    """The balance loss is annealed, so a freshly loaded detector has another loss than was trained."""
    seen = []
    monkeypatch.setattr(
        increments, "remember", lambda detector, *_: seen.append(detector.progress) or {}
    )
    config = tiny.run(
        "unimmad-lite",
        "rgb",
        training={"epochs": 4},
        increment={"epochs": 2},
        **DATA,
    )
    work, step = RunWork(config, "cpu"), steps_of(config, tmp_path)[1]
    trained_detector(work, step)
    remembered_after(work, step)
    assert seen == [3 / 4, 1 / 2]


@pytest.mark.parametrize("method", ["unimmad", "unimmad-lite"])
def test_parts_are_counted(method):
    methods = {method: {"model": STUDIED[method]}}
    (run,) = tiny.study(methods=methods, modalities=["rgb+depth"], **DATA).runs()
    card = model_card(run, n_categories=3).set_index("part")
    assert card.loc["all", "gflops"] > 0
    assert ("backbone" in card.index) == (method == "unimmad-lite")


def test_costs_need_neither_pretrained_weights_nor_the_study_s_backbone(monkeypatch):
    def refuse(*_arguments):
        raise AssertionError

    monkeypatch.setattr("iumad.models.baselines.unimmad.imagenet_classifier", refuse)
    for module in ("counting", "efficiency"):
        monkeypatch.setattr(f"iumad.study.{module}.Backbone", refuse)
    methods = {"unimmad": {"model": STUDIED["unimmad"] | {"weights": "pretrained"}}}
    (run,) = tiny.study(methods=methods, modalities=["rgb"], settings=["3-0"], **DATA).runs()
    rows = pd.DataFrame(efficiency.measure_point(run, efficiency.points_of(run)[1], "cpu"))
    sizes = rows.groupby("metric")["value"].first()
    assert sizes["operations (10^9)"] > 0
    floats = sizes["parameters (M)"] * 4
    assert floats < sizes["model (MB)"] < 1.05 * floats  # the rest are buffers
    reach = gradient_reach(run, n_categories=3)
    assert reach.loc["compression", "decompression"] > 0
