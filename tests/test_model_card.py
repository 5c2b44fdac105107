"""Parameters and operations of a model's parts, against arithmetic."""

import pytest
import tiny
from typer.testing import CliRunner

from iumad.cli import app
from iumad.errors import ConfigError
from iumad.study.counting import attention_operations, gradient_reach, model_card, scan_operations


@pytest.fixture(scope="module")
def card():
    return model_card(tiny.run(), n_categories=3).set_index("part")


def test_parameters_by_hand(card):
    # bottleneck: 16 x 16 + 16 twice, two heads 16 x 3 + 3
    assert card.loc["bottleneck", "parameters"] == 2 * (16 * 16 + 16) + 2 * (16 * 3 + 3)
    # fusion: two linears 32 -> 16, four of attention 16 -> 16, a norm
    assert card.loc["fusion", "parameters"] == 2 * (32 * 16 + 16) + 4 * (16 * 16 + 16) + 2 * 16
    assert card.loc["backbone", "trained"] == 0
    assert card.loc["backbone", "parameters"] > 0


def test_operations_by_hand(card):
    tokens, dim = tiny.GRID**2, 16
    # bottleneck: two linears for each token, two heads once
    linears = 2 * (2 * tokens * dim * dim + 2 * dim * 3)
    assert card.loc["bottleneck", "gflops"] * 1e9 == pytest.approx(linears)
    attention = 4 * 2 * tokens * dim * dim + 2 * 2 * tokens * tokens * dim
    fusion = 2 * 2 * tokens * 2 * dim * dim + attention
    assert card.loc["fusion", "gflops"] * 1e9 == pytest.approx(fusion)


def test_the_last_row_is_the_sum(card):
    parts = card.drop(index="all")
    for column in ("parameters", "trained", "gflops"):
        assert card.loc["all", column] == pytest.approx(parts[column].sum())


def test_formulas():
    assert scan_operations(batch=1, dim=2, length=5, state=4) == 10 * 31
    # q k^T: 2 x 3 x 4 x 7 = 168 for each head; p v: 2 x 3 x 7 x 5 = 210
    assert attention_operations((1, 2, 3, 4), (1, 2, 7, 4), (1, 2, 7, 5)) == 2 * (168 + 210)


def test_scan_is_counted():
    small, large = (
        model_card(tiny.run(model={"d_state": n}), 3).set_index("part")["gflops"] for n in (4, 8)
    )
    # two layers; four groups of 32 channels, a quarter of 16 tokens each; B and C grow by 4 each, by a linear
    scan = 2 * 7 * 4 * 32 * 4 * 4
    linear = 2 * 4 * 2 * 32 * 4 * 8
    assert (large - small)["conditions.rgb"] * 1e9 == pytest.approx(scan + linear)


def test_a_method_without_a_network():
    with pytest.raises(ConfigError, match="bank has no parts"):
        model_card(tiny.run("bank"), 3)


def test_the_command_prints_the_table(tmp_path):
    params = tmp_path / "p.yaml"
    params.write_text("features: {weights: random}\nmethods: {uniad: {}, bank: {}}\n")
    result = CliRunner().invoke(app, ["model", str(params), "--categories", "3"])
    assert result.exit_code == 0, result.output
    assert "networks.depth" in result.output
    assert "conditions" not in result.output


def test_labels_train_the_conditions_and_the_heads_alone():
    table = gradient_reach(tiny.run(), n_categories=3)
    assert list(table) == ["category_rgb", "category_depth", "fusion", "ib", "ib_heads"]
    of = {term: set(column[column > 0].index) for term, column in table.items()}
    assert of["category_rgb"] == {"conditions.rgb"}
    assert of["category_depth"] == {"conditions.depth"}
    assert of["ib_heads"] == {"bottleneck.head_fused", "bottleneck.head_filtered"}
    assert "bottleneck.head_fused" not in of["ib"]  # the first distribution of the KL is detached
    assert of["fusion"] >= {"networks.rgb", "networks.depth", "project_out.rgb"}
    assert (table.max(axis=1) > 0).all()  # nothing is left untrained
