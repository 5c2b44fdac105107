"""CND by hand and at a small size; CLIP itself where its package is installed."""

import copy
import math
import sys

import pandas as pd
import pytest
import tiny
import torch
from pydantic import ValidationError
from tiny_clip import TinyEncoder
from torch import nn
from torch.nn import functional

from iumad.config.methods import CndConfig
from iumad.config.sections import IncrementConfig
from iumad.errors import ConfigError
from iumad.features.cache import Batch
from iumad.models.base import Detector
from iumad.models.baselines.cnd import (
    CONTEXT,
    SUFFIXES,
    ClipEncoder,
    Cnd,
    GatedExperts,
    Stream,
    clip_normalised,
    constraint,
    distillation,
    importance_loss,
    make_encoder,
    promoted,
)
from iumad.models.build import make_detector
from iumad.study.counting import model_card
from iumad.study.results import read_step_table
from iumad.study.runner import run_study
from iumad.training.increments import Guard, remember

BOTH = ("rgb", "depth")
SMALL = {"layers": (0, 1, 2)}


@pytest.fixture(autouse=True)
def _without_clip(request, monkeypatch):
    """A tiny encoder wherever a test does not ask for a real one."""
    if "real_clip" not in request.fixturenames:
        monkeypatch.setattr(
            "iumad.models.baselines.cnd.ClipEncoder",
            lambda _name, _weights, layers, size: TinyEncoder(layers, size),
        )


@pytest.fixture
def real_clip():
    """The study's own encoder, where its package is installed."""


def cnd(modalities=BOTH, **changes):
    torch.manual_seed(0)
    return Cnd(CndConfig(**(SMALL | changes)), tiny.spec("+".join(modalities)), 3)


def total(detector, batch, generator=None):
    return torch.stack(list(detector.losses(batch, generator).values())).sum()


def unit(*shape):
    return functional.normalize(torch.randn(*shape), dim=-1)


# Experts


def test_tokens_are_the_sum_of_their_best_experts_by_raw_score():
    torch.manual_seed(0)
    module, tokens = GatedExperts(6, 5, 2), torch.randn(9, 6)
    mixed, scores = module(tokens)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(9))
    for token, row, found in zip(tokens, scores, mixed, strict=True):
        best = row.topk(2)
        expected = sum(
            score * module.experts[i](token)
            for score, i in zip(best.values, best.indices, strict=True)
        )
        torch.testing.assert_close(found, expected)


def test_an_expert_that_no_token_chose_has_a_gradient_of_zero():
    module = GatedExperts(4, 3, 1)
    nn.init.zeros_(module.router.weight)
    with torch.no_grad():
        module.router.bias.copy_(torch.tensor([5.0, 0.0, 0.0]))
    module(torch.randn(6, 4))[0].sum().backward()
    assert module.experts[0][0].weight.grad.any()
    assert not module.experts[1][0].weight.grad.any()


def test_importance_is_zero_for_uniform_use_and_by_hand_otherwise():
    assert importance_loss(torch.full((4, 5), 0.2)).item() == pytest.approx(0, abs=1e-12)
    # sums 3 and 1: mean 2, variance 1; the number of tokens does not matter
    scores = torch.tensor([[0.75, 0.25]]).repeat(4, 1)
    assert importance_loss(scores).item() == pytest.approx(0.25)
    assert importance_loss(scores.repeat(3, 1)).item() == pytest.approx(0.25)


# Losses


def test_the_constraint_by_hand():
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # as normal, as abnormal as can be
    sides = (math.log(1 + math.exp(-1 / 0.5)), math.log(1 + math.exp(1 / 0.5)))
    assert constraint(first, text, 0.5).item() == pytest.approx(sum(sides) / 2)


def test_promotion_by_hand():
    features = torch.tensor([[[3.0, 4.0]]])  # norm 5
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    joint = torch.tensor([[[0.6, 0.8]]])  # alpha - beta = -0.2
    added = 0.5 * (1 + math.tanh(-0.2)) / 5
    torch.testing.assert_close(promoted(features, joint, text), features + added)


def test_promotion_sends_no_gradient_to_text_or_scale():
    features, joint = torch.randn(2, 3, 4, requires_grad=True), unit(2, 3, 5)
    text = unit(2, 5).requires_grad_()
    promoted(features, joint, text).sum().backward()
    assert text.grad is None
    torch.testing.assert_close(features.grad, torch.ones_like(features))


def test_distillation_is_zero_for_equal_directions_and_two_for_opposite():
    x = torch.randn(2, 3, 4)
    assert distillation(x, 2 * x).item() == pytest.approx(0, abs=1e-6)
    assert distillation(x, -x).item() == pytest.approx(2)


# Encoders


def test_an_encoder_is_frozen_and_the_same_every_time():
    config = CndConfig(**SMALL)
    first, second = make_encoder(config, tiny.SIZE), make_encoder(config, tiny.SIZE)
    assert tiny.same_tensors(first.state_dict(), second.state_dict())
    assert not any(p.requires_grad for p in first.parameters())


@pytest.mark.usefixtures("real_clip")
def test_without_open_clip_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"open_clip_torch.*iumad\[clip\]"):
        Cnd(CndConfig(), tiny.spec(), 3)


@pytest.mark.usefixtures("real_clip")
def test_any_failure_of_open_clip_is_one_line(monkeypatch):
    class Broken:
        @staticmethod
        def create_model(architecture, **_options):
            raise RuntimeError(f"no weights of {architecture}")

    monkeypatch.setitem(sys.modules, "open_clip", Broken)
    with pytest.raises(ConfigError, match="'ViT-X': no weights of ViT-X"):
        make_encoder(CndConfig(architecture="ViT-X"), 32)


def test_open_clip_gives_what_its_own_encoders_give():
    pytest.importorskip("open_clip")
    encoder = ClipEncoder("ViT-B-32-quickgelu", "random", (3, 6, 11), 64).eval()
    tokens = encoder.tokenizer(["x " * 12 + "damaged object"])
    context, images = encoder.model.token_embedding(tokens)[:, 1:13], torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.text(context, "damaged object"), encoder.model.encode_text(tokens)
        )
        levels = encoder.image_levels(images)
        classes = encoder.project(levels[-1])[:, 0]  # of the last block
        torch.testing.assert_close(classes, encoder.model.encode_image(clip_normalised(images)))
    assert [x.shape for x in levels] == [(2, 1 + encoder.side**2, encoder.width)] * 3


@pytest.fixture
def small_clip(real_clip, monkeypatch):  # noqa: ARG001
    """Lets open_clip make its own CLIP, with three small blocks, whatever the architecture."""
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": tiny.SIZE, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"width": 32, "heads": 2, "layers": 1}

    def create_model(_architecture, **_options):
        return open_clip.model.CLIP(24, vision, text)

    monkeypatch.setattr(open_clip, "create_model", create_model)


@pytest.mark.usefixtures("small_clip")
def test_a_checkpoint_with_a_real_clip_is_read_again():
    """CLIP's attention mask is a buffer that is in no state."""
    changes = {"architecture": "ViT-B-32", "weights": "random"}
    first, second, batch = cnd(**changes), cnd(**changes), tiny.batch()
    assert isinstance(first.encoder, ClipEncoder)
    for parameter in second.streams.parameters():
        nn.init.normal_(parameter)
    second.load_state_dict(first.state_dict())
    expected = first.eval().anomaly_maps(batch)
    torch.testing.assert_close(second.eval().anomaly_maps(batch), expected, rtol=0, atol=0)


@pytest.mark.usefixtures("small_clip")
def test_operations_of_a_clip_by_hand():
    """Weights are asked of the network by default, and neither fetched nor is a backbone counted."""
    methods = {"cnd": {"model": {"layers": (0, 1, 2), "architecture": "ViT-B-32"}}}
    (run,) = tiny.study(methods=methods, modalities=["rgb"]).runs()
    assert run.model.weights == "openai"
    card = model_card(run, 3).set_index("part")
    assert list(card.index) == ["encoder", "streams.rgb", "all"]

    def block(tokens, width):
        return 2 * 12 * tokens * width**2 + 2 * 2 * tokens**2 * width

    patches, joint = 16, 24
    image = 2 * patches * (3 * 8 * 8) * 64 + 3 * block(1 + patches, 64) + 2 * 64 * joint
    prompts = 2 * 3  # normal and abnormal, of three levels
    text = prompts * (block(77, 32) + 2 * 32 * joint)
    levels = 2 * 3  # encoded and decoded
    compared = levels * 2 * ((1 + patches) * 64 * joint + patches * joint * 2)
    assert card.loc["encoder", "gflops"] * 1e9 == pytest.approx(image + text + compared)


@pytest.mark.usefixtures("small_clip")
def test_blocks_that_a_clip_does_not_have_are_refused():
    with pytest.raises(ConfigError, match=r"less than 3, the blocks of ViT-B-32, got \(1, 2, 3\)"):
        ClipEncoder("ViT-B-32", "random", (1, 2, 3), tiny.SIZE)


def test_a_clip_without_a_vision_transformer_is_refused():
    pytest.importorskip("open_clip")
    with pytest.raises(ConfigError, match=r"'RN50': cnd needs a CLIP with a vision transformer"):
        ClipEncoder("RN50", "random", (0, 1, 2), 64)


def test_the_longest_prompt_leaves_room_for_its_words():
    open_clip = pytest.importorskip("open_clip")
    tokenizer = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    longest = CndConfig(prompt_length=73).prompt_length
    words = tokenizer([SUFFIXES[1]])[0, 1:3].tolist()
    tokens = tokenizer(["x " * longest + SUFFIXES[1]])[0].tolist()
    assert len(tokens) == CONTEXT
    assert tokens[-3:-1] == words
    with pytest.raises(ValidationError, match="less than or equal to 73"):
        CndConfig(prompt_length=longest + 1)


# Detector


@pytest.mark.parametrize("modalities", [("rgb",), ("depth",), BOTH])
def test_shapes_for_every_combination(modalities):
    detector, batch = cnd(modalities).eval(), tiny.batch("+".join(modalities))
    names = {f"{term}_{m}" for term in ("distill", "constraint", "moe") for m in modalities}
    assert detector.losses(batch).keys() == names
    maps = detector.residual_maps(batch)
    assert list(maps) == list(modalities)
    assert all(x.shape == (3, tiny.GRID, tiny.GRID) and (x >= -1e-5).all() for x in maps.values())
    assert detector.anomaly_maps(batch).shape == (3, tiny.SIZE, tiny.SIZE)


def test_maps_of_two_modalities_are_the_sum_of_each():
    detector, batch = cnd().eval(), tiny.batch()
    alone = []
    for modality in BOTH:
        one = cnd((modality,)).eval()
        one.streams[modality].load_state_dict(detector.streams[modality].state_dict())
        alone.append(one.anomaly_maps(batch))
    torch.testing.assert_close(detector.anomaly_maps(batch), sum(alone))


def test_wrong_values_are_refused():
    with pytest.raises(ValidationError, match="must not exceed experts"):
        CndConfig(experts=1)
    with pytest.raises(ValidationError, match="must rise"):
        CndConfig(layers=(5, 5, 6))


def test_decoded_features_are_constrained_after_the_warm_up():
    detector, batch = cnd(("rgb",), warm_up=2), tiny.batch("rgb")
    for epoch, constrained in ((0, False), (1, False), (2, True)):
        detector.begin_epoch(epoch, 4)
        assert ("constraint_decoded_rgb" in detector.losses(batch)) is constrained


def test_the_loss_reaches_everything_but_the_encoder():
    detector = cnd(warm_up=0).train()
    total(detector, tiny.batch(), torch.Generator().manual_seed(0)).backward()
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is None) == name.startswith("encoder."), name
    assert detector.streams["rgb"].prompts.grad.any()
    assert detector.streams["depth"].fusion[0].weight.grad.any()


def test_prompts_learn_from_the_encoded_features_only():
    detector, batch = cnd(("rgb",), warm_up=0), tiny.batch("rgb")
    terms = detector.losses(batch)
    prompts = detector.streams["rgb"].prompts
    for name in ("distill_rgb", "constraint_decoded_rgb", "moe_rgb"):
        (gradient,) = torch.autograd.grad(
            terms[name], prompts, retain_graph=True, allow_unused=True
        )
        assert gradient is None, name
    assert torch.autograd.grad(terms["constraint_rgb"], prompts)[0].any()


def test_noise_is_drawn_in_training_only_and_from_the_generator():
    detector, batch = cnd(("rgb",), dropout=0.0), tiny.batch("rgb")

    def loss(seed):
        return total(detector, batch, torch.Generator().manual_seed(seed)).item()

    detector.train()
    assert not detector.encoder.training
    assert loss(0) == loss(0) != loss(1)
    detector.eval()
    assert loss(0) == loss(1)


def test_a_few_steps_lower_the_loss():
    detector, batch = cnd(warm_up=0), tiny.batch()
    wanted = [p for p in detector.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(wanted, 1e-3)
    before = total(detector.eval(), batch).item()
    detector.train()
    for i in range(8):
        optimizer.zero_grad()
        total(detector, batch, torch.Generator().manual_seed(i)).backward()
        optimizer.step()
    assert total(detector.eval(), batch).item() < 0.9 * before


def test_checkpoints_leave_out_the_encoder_and_restore_the_rest():
    first, second, batch = cnd(), cnd(), tiny.batch()
    for parameter in second.streams.parameters():
        nn.init.normal_(parameter)
    encoder = copy.deepcopy(second.encoder.state_dict())
    state = first.state_dict()
    assert not any(name.startswith("encoder.") for name in state)
    second.load_state_dict(state)
    assert tiny.same_tensors(encoder, second.encoder.state_dict())
    torch.testing.assert_close(
        first.eval().anomaly_maps(batch), second.eval().anomaly_maps(batch), rtol=0, atol=0
    )
    with pytest.raises(RuntimeError, match="Missing key"):
        second.load_state_dict({k: v for k, v in state.items() if "prompts" not in k})


def test_scores_of_constant_images_are_finite():
    batch = tiny.batch()
    flat = {m: torch.full_like(x, 0.5) for m, x in batch.images.items()}
    maps = cnd().eval().anomaly_maps(Batch(batch.features, flat, batch.category))
    assert maps.isfinite().all()


def test_the_full_size_has_the_parameters_of_the_fact_sheet():
    with torch.device("meta"):
        stream = Stream(CndConfig(), 1024, 768)
    millions = {
        name: sum(p.numel() for p in child.parameters()) / 1e6
        for name, child in stream.named_children()
    }
    assert millions["decoder"] == pytest.approx(37.8, abs=0.05)
    assert millions["fusion"] == pytest.approx(3.1, abs=0.05)
    assert millions["experts"] == pytest.approx(10.5, abs=0.02)
    assert stream.prompts.numel() == 3 * 2 * 12 * 768


def test_base_step_and_increment_end_to_end(tmp_path):
    study = tiny.study(
        methods={"cnd": {"model": SMALL | {"warm_up": 1}}},
        modalities=["rgb+depth"],
        increment={"epochs": 1},
    )
    rows = run_study(study, tmp_path)
    assert set(rows["step"]) == {0, 1}
    assert rows["value"].notna().all()
    logs = pd.concat(read_step_table(path) for path in tmp_path.rglob("log.csv"))
    constrained = logs[logs["term"] == "constraint_decoded_rgb"]
    assert constrained["epoch"].tolist() == [1]  # of 0 and 1 in the base step, 0 in the increment


@pytest.mark.parametrize("strategy", ["ewc", "svd"])
def test_the_frozen_encoder_is_not_remembered(strategy):
    config = IncrementConfig(strategy=strategy)
    store, detector = tiny.open_store(tiny.run()), cnd()
    ids = tiny.train_ids(store, tiny.CATEGORIES[0])
    memory = remember(detector, store, ids, config, {}, 0)
    guard = Guard(detector, config, memory)
    assert memory
    for names in (memory, guard._old, guard._watched):
        assert not any(name.startswith("encoder.") for name in names)


def test_the_preset_builds_the_detector():
    study = tiny.study(methods={"cnd": {"model": SMALL}}, modalities=["rgb+depth"])
    (run,) = study.runs()
    made = make_detector(run.model, tiny.spec(), 3)
    assert isinstance(made, Cnd) and isinstance(made, Detector)
    assert run.increment.strategy == "none"
