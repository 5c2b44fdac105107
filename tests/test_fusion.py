import math
from typing import get_args

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from iumad.config.methods import Fusion
from iumad.models.fusion import (
    Addition,
    ConcatFC,
    CrossLevelAttention,
    InformationBottleneck,
    LinearGLU,
    fusion_operator,
    kl_categorical,
)

OPERATORS = get_args(Fusion)
LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4)


def levels(n_modalities: int, seed: int = 0, dim: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 5, dim, generator=generator) for _ in range(n_modalities)]


# --- the operators of Table 6 -------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("n_modalities", [1, 2])
def test_fused_features_have_the_width_of_one_modality(name, n_modalities):
    torch.manual_seed(0)
    operator = fusion_operator(name, 8, 2, n_modalities)
    fused = operator(levels(n_modalities), levels(n_modalities, seed=1))
    assert fused.shape == (2, 5, 8)
    assert torch.isfinite(fused).all()


def test_each_name_has_its_operator():
    kinds = [type(fusion_operator(name, 8, 2, 2)) for name in OPERATORS]
    assert kinds == [Addition, ConcatFC, LinearGLU, CrossLevelAttention]


@torch.no_grad()
def test_the_operators_by_their_formulas():
    torch.manual_seed(0)
    middle, last = levels(2), levels(2, seed=1)
    both = torch.cat(last, dim=-1)
    assert torch.equal(Addition()(middle, last), last[0] + last[1])

    concat = ConcatFC(8, 2).eval()
    concat.norm.running_mean.normal_()
    concat.norm.running_var.uniform_(0.5, 2)
    normed = functional.linear(both, concat.linear.weight, concat.linear.bias)
    normed = (normed - concat.norm.running_mean) / (concat.norm.running_var + 1e-5).sqrt()
    torch.testing.assert_close(concat(middle, last), normed.clamp_min(0))

    gated = LinearGLU(8, 2).eval()
    mixed = gated.linear(both) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(gated(middle, last), mixed[..., :8] * mixed[..., 8:].sigmoid())

    cross = CrossLevelAttention(8, 2, 2)
    first, second = cross.middle(torch.cat(middle, dim=-1)), cross.last(both)
    attended = cross.attention(first, second, second)
    torch.testing.assert_close(cross(middle, last), cross.norm(first + attended))


def test_only_cross_attention_reads_the_middle_level():
    torch.manual_seed(0)
    for name in OPERATORS:
        operator = fusion_operator(name, 8, 2, 2).eval()
        last = levels(2, seed=1)
        same = torch.equal(operator(levels(2), last), operator(levels(2, seed=2), last))
        assert same is (name != "cross-attention")


@pytest.mark.parametrize("name", ["concatfc", "linearglu"])
def test_batch_norm_takes_all_tokens_of_all_images(name):
    torch.manual_seed(0)
    operator = fusion_operator(name, 8, 2, 2)
    operator.dropout = nn.Identity()
    mixed = operator.linear(torch.cat(levels(2), dim=-1)).flatten(0, 1)
    operator([], levels(2))
    torch.testing.assert_close(operator.norm.running_mean, 0.1 * mixed.mean(dim=0))


# --- the bottleneck, Eq. 5 ----------------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True])
@torch.no_grad()
def test_the_bottleneck_by_hand(residual):
    module = InformationBottleneck(2, 1, 2, dropout=0.0, residual=residual)
    module.compress[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
    module.compress[0].bias.copy_(torch.tensor([0.5]))
    module.expand.weight.copy_(torch.tensor([[2.0], [-3.0]]))
    module.expand.bias.copy_(torch.tensor([0.0, 1.0]))
    fused = torch.tensor([[[3.0, 1.0], [0.0, 4.0]]])
    # z = relu(3 - 1 + 0.5) = 2.5 and relu(0 - 4 + 0.5) = 0; F_fu^g = (2 z, 1 - 3 z), of both signs
    expected = torch.tensor([[[5.0, -6.5], [0.0, 1.0]]]) + residual * fused
    filtered, fused_logits, filtered_logits = module(fused)
    assert torch.equal(filtered, expected)
    torch.testing.assert_close(fused_logits, module.head_fused(torch.tensor([[1.5, 2.5]])))
    torch.testing.assert_close(filtered_logits, module.head_filtered(expected.mean(dim=1)))


def test_the_width_and_dropout_of_z():
    torch.manual_seed(0)
    module = InformationBottleneck(8, 3, 2, dropout=0.5)
    assert module.compress[0].out_features == 3
    (fused,) = levels(1)
    assert not torch.equal(module(fused)[0], module(fused)[0])
    module.eval()
    assert torch.equal(module(fused)[0], module(fused)[0])


# --- KL, Eq. 8 ----------------------------------------------------------------------------------


def test_kl_by_hand_in_nats_and_its_direction():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    # KL[p || q] = 1/2 ln 2 + 1/2 ln 2/3, KL[q || p] = 1/4 ln 1/2 + 3/4 ln 3/2
    forward, backward = kl_categorical(p.log(), q.log()), kl_categorical(q.log(), p.log())
    assert forward.item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)
    assert backward.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-6)


def test_kl_is_one_value_per_image():
    p = torch.tensor([[0.0, 0.0], [5.0, -5.0]])
    assert kl_categorical(p, p.flip(0)).shape == (2,)
    assert torch.equal(kl_categorical(p, p), torch.zeros(2))


def test_kl_against_certainty_stays_finite():
    sure = torch.tensor([[100.0, -100.0]])
    assert kl_categorical(torch.zeros(1, 2), sure).item() == pytest.approx(
        100 - math.log(2), rel=1e-6
    )
    assert kl_categorical(sure, torch.zeros(1, 2)).item() == pytest.approx(math.log(2), rel=1e-6)


@given(p=LOGITS, q=LOGITS, shift=st.floats(-10, 10))
def test_kl_is_never_negative_and_zero_for_equal_distributions(p, q, shift):
    p, q = torch.tensor([p], dtype=torch.float64), torch.tensor([q], dtype=torch.float64)
    assert kl_categorical(p, q) >= -1e-12
    assert abs(kl_categorical(p, p + shift)) < 1e-12  # logits may differ by a constant


@given(p=LOGITS, q=LOGITS)
def test_kl_is_zero_for_equal_distributions_only(p, q):
    p, q = torch.tensor([p], dtype=torch.float64), torch.tensor([q], dtype=torch.float64)
    apart = (p.softmax(-1) - q.softmax(-1)).abs().sum()
    assert kl_categorical(p, q) >= 0.5 * apart**2 - 1e-12  # Pinsker's inequality


# --- which loss term trains what ----------------------------------------------------------------

ALL = {"fusion", "ib"}  # labels train the heads alone
REACHED = {  # part of ib-iumad on rgb+depth -> the terms whose gradient it receives
    "project_in.0": ALL,
    "project_in.1": ALL,
    "networks.rgb": ALL,
    "networks.depth": ALL,
    "conditions.rgb": {"category_rgb"},
    "conditions.depth": {"category_depth"},
    "fusion.middle": ALL,
    "fusion.last": ALL,
    "fusion.attention": ALL,
    "fusion.norm": ALL,
    "bottleneck.compress": ALL,
    "bottleneck.expand": ALL,
    "bottleneck.head_fused": {"ib_heads"},  # the first distribution of the KL is detached
    "bottleneck.head_filtered": {"ib", "ib_heads"},
    "project_out.rgb": {"fusion"},
}
METHODS = [
    (method, modality)
    for method in ("ib-iumad", "iuf", "plain")
    for modality in ("rgb", "depth", "rgb+depth")
]


def gradients(detector, term: str) -> dict[str, bool]:
    """Parameter -> whether the term's gradient is not zero."""
    detector.zero_grad()
    detector.losses(tiny.batch(), torch.Generator().manual_seed(0))[term].backward()
    return {
        name: p.grad is not None and bool(p.grad.abs().max() > 0)
        for name, p in detector.named_parameters()
    }


def shift_of_all_scores(name: str) -> bool:
    """A key's bias adds the same to all scores of a query, which softmax ignores: no gradient at all."""
    return name.endswith("key.bias")


def test_which_term_reaches_which_part():
    detector = tiny.detector().train()
    terms = list(detector.losses(tiny.batch()))
    assert terms == ["category_rgb", "category_depth", "fusion", "ib", "ib_heads"]
    reached: dict[str, set[str]] = {part: set() for part in REACHED}
    for term in terms:
        for name, touched in gradients(detector, term).items():
            (part,) = [part for part in REACHED if name.startswith(f"{part}.")]
            if touched:
                reached[part].add(term)
    assert reached == REACHED


def test_labels_reach_the_features_only_when_asked():
    detector = tiny.detector(heads_cross_entropy="features").train()
    assert gradients(detector, "ib_heads")["bottleneck.expand.weight"]


def test_without_detach_reconstruction_trains_the_condition_networks():
    detector = tiny.detector(detach_condition=False).train()
    for term in ALL:
        touched = gradients(detector, term)
        gated = {name for name in touched if name.startswith("conditions.") and ".blocks." in name}
        assert any(touched[name] for name in gated)
        assert not any(touched[name] for name in touched if ".classifier." in name)


@pytest.mark.parametrize(("method", "modality"), METHODS, ids="-".join)
def test_every_parameter_is_trained_by_some_term(method, modality):
    detector = tiny.detector(method, modality).train()
    terms = detector.losses(tiny.batch(modality), torch.Generator().manual_seed(0))
    torch.stack(list(terms.values())).sum().backward()
    untouched = {
        name
        for name, p in detector.named_parameters()
        if (p.grad is None or not p.grad.abs().max() > 0) and not shift_of_all_scores(name)
    }
    assert not untouched


@pytest.mark.parametrize("fusion", OPERATORS)
@pytest.mark.parametrize("condition", ["none", "vit", "mamba"])
def test_every_parameter_of_every_ablation_is_in_the_graph(fusion, condition):
    detector = tiny.detector(fusion=fusion, condition=condition, targets="all").train()
    terms = detector.losses(tiny.batch())
    torch.stack(list(terms.values())).sum().backward()
    assert not [name for name, p in detector.named_parameters() if p.grad is None]


def test_without_their_cross_entropy_one_head_is_not_trained():
    detector = tiny.detector(heads_cross_entropy="none").train()
    torch.stack(list(detector.losses(tiny.batch()).values())).sum().backward()
    untouched = {name for name, p in detector.named_parameters() if p.grad is None}
    assert untouched == {"bottleneck.head_fused.weight", "bottleneck.head_fused.bias"}


def test_compression_reaches_what_makes_the_features():
    detector = tiny.detector("iuf", lambda_compression=1.0).train()
    detector.zero_grad()
    terms = detector.losses(tiny.batch(), torch.Generator().manual_seed(0), base=True)
    assert "compression" not in detector.losses(tiny.batch())
    terms["compression"].backward()
    touched = {name for name, p in detector.named_parameters() if p.grad is not None}
    parts = {".".join(name.split(".")[:3]) for name in touched}
    assert "networks.rgb.decoder" in parts
    # the last decoder layer comes after the features that are compressed
    assert not any(name.startswith("networks.rgb.decoder.1.") for name in touched)
    assert not any(name.startswith(("conditions.", "project_out.")) for name in touched)
