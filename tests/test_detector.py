import math

import pytest
import tiny
import torch
from torch.nn import functional

from iumad.errors import ConfigError
from iumad.models.condition import bounded_gate
from iumad.models.detector import ReconstructionDetector, gate_figures
from iumad.models.reconstruction import EncoderLayer

TOKENS = tiny.GRID**2


def build(image_size: int = tiny.SIZE, grid: int = tiny.GRID, **model) -> ReconstructionDetector:
    config = tiny.run(model=model).model
    return ReconstructionDetector(config, tiny.spec(grid=grid, image_size=image_size), 3)


def test_features_are_standardised_per_channel():
    detector, batch = tiny.detector(), tiny.batch()
    detector.mean_rgb.copy_(torch.arange(tiny.CHANNELS))
    detector.std_rgb.fill_(2.0)
    tokens = detector.standardised(batch, "rgb")
    assert tokens.shape == (3, TOKENS, tiny.CHANNELS)
    # token 6 of a grid of 4 is row 1, column 2
    assert tokens[1, 6, 3] == (batch.features["rgb"][1, 3, 1, 2] - 3) / 2
    assert torch.equal(
        detector.standardised(batch, "depth"),
        batch.features["depth"].flatten(2).transpose(1, 2),
    )


@pytest.mark.parametrize("modality", ["rgb", "depth", "rgb+depth"])
@pytest.mark.parametrize("method", ["ib-iumad", "iuf", "plain"])
def test_shapes_of_every_method_and_modality(method, modality):
    detector, batch = tiny.detector(method, modality), tiny.batch(modality)
    output = detector(batch)
    target = modality.split("+")[0]
    assert {key: tuple(value.shape) for key, value in output.reconstruction.items()} == {
        target: (3, TOKENS, tiny.CHANNELS)
    }
    assert set(output.logits) == (set() if method == "plain" else set(modality.split("+")))
    assert all(logits.shape == (3, 3) for logits in output.logits.values())
    assert (output.fused_logits is None) is (method != "ib-iumad")
    maps = detector.anomaly_maps(batch)
    assert maps.shape == (3, tiny.SIZE, tiny.SIZE)
    assert torch.all(maps >= 0)
    assert not maps.requires_grad


def test_a_map_is_the_channel_norm_of_what_was_not_reconstructed():
    detector, batch = tiny.detector("plain", "rgb"), tiny.batch("rgb")
    (residual,) = detector.residual_maps(batch).values()
    error = detector(batch).reconstruction["rgb"] - detector.standardised(batch, "rgb")
    expected = error.square().sum(dim=-1).sqrt().view(3, tiny.GRID, tiny.GRID)
    torch.testing.assert_close(residual, expected)
    maps = detector.anomaly_maps(batch)
    torch.testing.assert_close(maps[:, 0, 0], residual[:, 0, 0])  # corners stay corners
    torch.testing.assert_close(maps[:, -1, -1], residual[:, -1, -1])
    assert maps.max() <= residual.max() + 1e-6


def test_two_targets_are_brought_to_one_scale_and_joined(monkeypatch):
    detector = tiny.detector(targets="all")
    detector.residual_rgb.fill_(2.0)
    detector.residual_depth.fill_(0.5)
    ones = torch.ones(3, tiny.GRID, tiny.GRID)
    monkeypatch.setattr(detector, "residual_maps", lambda _: {"rgb": 2 * ones, "depth": 3.5 * ones})
    # 2 / 2 = 1 and 3.5 / 0.5 = 7: root mean square sqrt((1 + 49) / 2) = 5
    torch.testing.assert_close(
        detector.anomaly_maps(tiny.batch()), torch.full((3, tiny.SIZE, tiny.SIZE), 5.0)
    )


def test_all_targets_are_reconstructed_too():
    detector, batch = tiny.detector(targets="all"), tiny.batch()
    output = detector(batch)
    assert set(output.reconstruction) == {"rgb", "depth"}
    errors = [
        (output.reconstruction[m] - detector.standardised(batch, m)).square().sum(dim=-1).mean()
        for m in ("rgb", "depth")
    ]
    torch.testing.assert_close(detector.losses(batch)["fusion"], (errors[0] + errors[1]) / 2)


def test_loss_terms_by_their_formulas():
    detector, batch = tiny.detector(), tiny.batch()
    output, terms = detector(batch), detector.losses(batch)
    labels = batch.category
    for modality in ("rgb", "depth"):
        log_p = output.logits[modality].log_softmax(dim=-1)
        expected = -(log_p[0, labels[0]] + log_p[1, labels[1]] + log_p[2, labels[2]]) / 3
        torch.testing.assert_close(terms[f"category_{modality}"], expected)
    error = output.reconstruction["rgb"] - detector.standardised(batch, "rgb")
    torch.testing.assert_close(terms["fusion"], error.square().sum() / error[..., 0].numel())
    p, q = output.fused_logits.softmax(-1), output.filtered_logits.softmax(-1)
    torch.testing.assert_close(terms["ib"], (p * (p / q).log()).sum() / 3)
    heads = functional.cross_entropy(output.fused_logits, labels) + functional.cross_entropy(
        output.filtered_logits, labels
    )
    torch.testing.assert_close(terms["ib_heads"], heads)


@pytest.mark.parametrize(
    ("key", "term"),
    [
        ("lambda_rgb", "category_rgb"),
        ("lambda_depth", "category_depth"),
        ("lambda_fusion", "fusion"),
        ("lambda_ib", "ib"),
    ],
)
def test_each_weight_scales_its_term_only(key, term):
    plain = tiny.detector().losses(tiny.batch())
    scaled = tiny.detector(**{key: 2.5}).losses(tiny.batch())
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], value * (2.5 if name == term else 1))


def test_jitter_is_for_training_and_comes_from_the_generator():
    detector, batch = tiny.detector("plain"), tiny.batch()
    assert torch.equal(detector.losses(batch)["fusion"], detector.losses(batch)["fusion"])
    detector.train()
    first, again, other = (
        detector.losses(batch, torch.Generator().manual_seed(seed))["fusion"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_target_is_the_clean_feature():
    detector, batch = tiny.detector("plain", jitter_scale=20.0).train(), tiny.batch()
    output = detector(batch, torch.Generator().manual_seed(0))
    assert torch.equal(output.clean["rgb"], detector.standardised(batch, "rgb"))


def test_each_condition_network_reads_its_own_modality():
    detector, batch = tiny.detector(), tiny.batch()
    before = detector(batch).logits
    batch.images["depth"].zero_()
    after = detector(batch).logits
    assert torch.equal(before["rgb"], after["rgb"])
    assert not torch.equal(before["depth"], after["depth"])


def test_the_fusion_gets_the_middle_and_the_last_level():
    detector, made, fused = tiny.detector(layers=4), [], []
    detector.networks["rgb"].register_forward_hook(lambda _m, _i, levels: made.append(levels))
    detector.fusion.register_forward_pre_hook(lambda _m, levels: fused.append(levels))
    detector(tiny.batch())
    (middle, last), levels = fused[0], made[0]
    assert torch.equal(middle[0], levels[1])
    assert torch.equal(last[0], levels[3])


def test_the_gate_is_bounded_by_default():
    detector, given = tiny.detector(), []
    encoder = detector.networks["rgb"].encoder[0]
    encoder.register_forward_pre_hook(lambda _m, inputs: given.append(inputs[2]))
    detector(tiny.batch())
    size = given[0].square().mean(dim=-1)
    torch.testing.assert_close(size, torch.ones(3, TOKENS), rtol=1e-2, atol=0)


def test_maps_and_logits_of_one_pass_are_those_of_two():
    detector, batch = tiny.detector(targets="all"), tiny.batch()
    detector.residual_depth.fill_(0.5)
    maps, logits = detector.maps_and_logits(batch)
    torch.testing.assert_close(maps, detector.anomaly_maps(batch))
    torch.testing.assert_close(logits, detector.category_logits(batch))


def test_an_image_that_patches_do_not_tile_is_refused():
    with pytest.raises(ConfigError, match="image_size 32 must be a multiple of the grid 5"):
        build(grid=5)
    assert build(grid=5, condition="none").grid == 5


def test_the_state_is_the_whole_model():
    detector, batch = tiny.detector(seed=0), tiny.batch()
    detector.mean_rgb.normal_()
    detector.std_depth.uniform_(1, 2)
    detector.residual_rgb.fill_(3.0)
    other = tiny.detector(seed=1)
    assert not torch.equal(other.anomaly_maps(batch), detector.anomaly_maps(batch))
    other.load_state_dict(detector.state_dict())
    assert torch.equal(other.anomaly_maps(batch), detector.anomaly_maps(batch))


def test_maps_do_not_depend_on_the_rest_of_the_batch():
    detector, batch = tiny.detector(), tiny.batch(size=3)
    alone = tiny.batch(size=3)
    alone = type(alone)(
        {k: v[1:2] for k, v in alone.features.items()},
        {k: v[1:2] for k, v in alone.images.items()},
        alone.category[1:2],
    )
    # other batch sizes may take other kernels
    torch.testing.assert_close(
        detector.anomaly_maps(alone)[0], detector.anomaly_maps(batch)[1], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "of"),
    [
        ({"bottleneck_width": 0.5}, "bottleneck.compress"),
        ({"bottleneck_residual": True}, None),
        ({"neighbour_mask": 3}, None),
        ({"expand": 1}, "conditions.rgb"),
        ({"layers": 3}, "networks.rgb"),
    ],
)
def test_every_switch_changes_the_model(change, of):
    def count(detector) -> int:
        return sum(p.numel() for n, p in detector.named_parameters() if n.startswith(of or ""))

    plain, changed, batch = tiny.detector(), tiny.detector(**change), tiny.batch()
    if of is None:
        changed.load_state_dict(plain.state_dict())
        assert not torch.equal(plain.anomaly_maps(batch), changed.anomaly_maps(batch))
    else:
        assert count(plain) != count(changed)
    assert torch.isfinite(changed.anomaly_maps(batch)).all()


def test_the_first_logits_are_near_chance():
    terms = tiny.detector().losses(tiny.batch())
    assert abs(terms["category_rgb"].item() - math.log(3)) < 0.5


# --- gate ---------------------------------------------------------------------------------------


def test_a_gate_is_bounded_whatever_the_condition_grows_to():
    x = 1000 * torch.randn(2, 5, 16) + 7
    gate = bounded_gate(x)
    torch.testing.assert_close(gate.mean(dim=-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(gate.square().mean(dim=-1), torch.ones(2, 5))
    torch.testing.assert_close(bounded_gate(3 * x), gate)


def test_entropy_of_attention_by_hand():
    layer = EncoderLayer(dim=2, heads=1, dropout=0.0)
    src = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    with torch.no_grad():
        for part in (layer.attention.query, layer.attention.key):
            part.weight.copy_(torch.eye(2))
            part.bias.zero_()
    none = layer.attention_entropy(src, torch.zeros(2, 2), torch.zeros(1, 2, 2), None)
    assert none == pytest.approx(1)  # a gate of 0: both tokens alike, ln 2 / ln 2
    # scores of a query on itself and on the other: 10 / sqrt(2) and 0; p = 1 / (1 + exp(-7.071)) = 0.99915
    strong = layer.attention_entropy(src, torch.zeros(2, 2), torch.full((1, 2, 2), 10.0), None)
    p = 1 / (1 + math.exp(-10 / 2**0.5))
    assert strong == pytest.approx(
        -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2), rel=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["vit", "mamba"])
def test_attention_stays_open_while_the_condition_is_trained(condition):
    """Three hundred updates of a task that the condition network learns at once; raw, its features grow."""
    figures = {}
    batch = tiny.batch(size=9)
    for gate in ("normalised", "raw"):
        detector = tiny.detector(condition=condition, gate=gate, bottleneck=False).train()
        optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(300):
            optimizer.zero_grad()
            torch.stack([*detector.losses(batch, generator).values()]).sum().backward()
            optimizer.step()
        figures[gate] = gate_figures(detector, batch)
        assert detector.category_logits(batch).argmax(dim=1).tolist() == batch.category.tolist()
    for modality in ("rgb", "depth"):
        bounded, raw = (figures[gate][f"attention {modality}"] for gate in ("normalised", "raw"))
        assert bounded > 0.7
        assert figures["normalised"][f"gate size {modality}"] < 1
        assert bounded - raw > 0.02
        assert figures["raw"][f"gate size {modality}"] > 1


def test_who_classifies():
    batch = tiny.batch()
    assert tiny.detector("plain").category_logits(batch) is None
    heads = tiny.detector(condition="none")
    expected = heads(batch).filtered_logits.log_softmax(dim=1)
    torch.testing.assert_close(heads.category_logits(batch), expected)
    both = tiny.detector()
    logits = both(batch).logits
    expected = (logits["rgb"].log_softmax(dim=1) + logits["depth"].log_softmax(dim=1)) / 2
    torch.testing.assert_close(both.category_logits(batch), expected)
