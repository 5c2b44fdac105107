import math

import pytest
import torch

from iumad.errors import ConfigError
from iumad.models.reconstruction import (
    Attention,
    ReconstructionNetwork,
    half_window,
    hide_neighbours,
    jitter,
)

DIM, HEADS, GRID = 8, 2, 4
TOKENS = GRID * GRID
Weights = dict[str, torch.Tensor]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- an independently written slow version: one image, float64, loops, softmax by hand -----------


def linear(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(dim=-1, keepdim=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(w: Weights, name: str, query, key, value, hidden: list[set[int]]) -> torch.Tensor:
    q = linear(w, f"{name}.query", query)
    k = linear(w, f"{name}.key", key)
    v = linear(w, f"{name}.value", value)
    each = DIM // HEADS
    out = torch.zeros(len(q), DIM, dtype=torch.float64)
    for head in range(HEADS):
        own = slice(head * each, (head + 1) * each)
        for i in range(len(q)):
            seen = [j for j in range(len(k)) if j not in hidden[i]]
            powers = [math.exp(float(q[i, own] @ k[j, own]) / math.sqrt(each)) for j in seen]
            for power, j in zip(powers, seen, strict=True):
                out[i, own] += power / sum(powers) * v[j, own]
    return linear(w, f"{name}.out", out)


def feed_forward(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return linear(w, f"{name}.3", torch.clamp(linear(w, f"{name}.0", x), min=0))


def neighbours(window: int | None) -> list[set[int]]:
    if window is None:
        return [set()] * TOKENS
    places = [(i // GRID, i % GRID) for i in range(TOKENS)]
    reach = window // 2
    return [
        {j for j, (r, c) in enumerate(places) if abs(r - row) <= reach and abs(c - col) <= reach}
        for row, col in places
    ]


def slow_network(w: Weights, src, conditions, window: int | None, layers: int):
    hidden = neighbours(window)
    pos = torch.stack(
        [torch.cat([w["column"][i % GRID], w["row"][i // GRID]]) for i in range(TOKENS)]
    )
    for i in range(layers):
        name = f"encoder.{i}"
        key = src + pos
        query = key if conditions is None else key * conditions[i]
        mixed = attention(w, f"{name}.attention", query, key, src, hidden)
        src = layer_norm(w, f"{name}.norms.0", src + mixed)
        src = layer_norm(w, f"{name}.norms.1", src + feed_forward(w, f"{name}.ffn", src))
    memory = previous = src
    outputs = []
    for i in range(layers):
        name = f"decoder.{i}"
        query = w[f"{name}.learned"]
        mixed = attention(w, f"{name}.read_memory", query + pos, memory + pos, memory, hidden)
        query = layer_norm(w, f"{name}.norms.0", query + mixed)
        mixed = attention(w, f"{name}.read_previous", query + pos, previous + pos, previous, hidden)
        query = layer_norm(w, f"{name}.norms.1", query + mixed)
        previous = layer_norm(w, f"{name}.norms.2", query + feed_forward(w, f"{name}.ffn", query))
        outputs.append(layer_norm(w, "norm", previous))
    return outputs


@pytest.mark.strict
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("layers", [2, 3])
@torch.no_grad()
def test_the_network_equals_the_slow_version(conditioned, window, layers):
    torch.manual_seed(1)
    network = ReconstructionNetwork(DIM, HEADS, layers, GRID, neighbour_mask=window)
    for p in network.parameters():  # norms and biases that do nothing would hide mistakes
        p.add_(0.1 * torch.randn(p.shape))
    src = random(2, TOKENS, DIM)
    conditions = (
        [random(2, TOKENS, DIM, seed=i + 1) for i in range(layers)] if conditioned else None
    )
    fast = network(src, conditions)
    weights = {key: value.double() for key, value in network.state_dict().items()}
    assert len(fast) == layers
    for image in range(2):
        own = None if conditions is None else [each[image].double() for each in conditions]
        slow = slow_network(weights, src[image].double(), own, window, layers)
        for ours, theirs in zip(fast, slow, strict=True):
            # float32 against float64
            torch.testing.assert_close(ours[image].double(), theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_weights_of_one_head_by_hand():
    layer = Attention(1, 1)
    for each in (layer.query, layer.key, layer.value, layer.out):
        each.weight.fill_(1.0)
        each.bias.zero_()
    key = torch.tensor([[[0.0], [math.log(3)]]])
    value = torch.tensor([[[4.0], [8.0]]])
    # scores 1 * 0 and 1 * ln 3, weights 1/4 and 3/4: 4/4 + 3 * 8/4
    assert layer(torch.ones(1, 1, 1), key, value).item() == pytest.approx(7.0, abs=1e-6)
    mask = torch.tensor([[0.0, -math.inf]])
    assert layer(torch.ones(1, 1, 1), key, value, mask).item() == pytest.approx(4.0)


@torch.no_grad()
def test_a_condition_of_ones_is_no_condition():
    torch.manual_seed(0)
    network = ReconstructionNetwork(DIM, HEADS, 2, GRID)
    src, ones = random(1, TOKENS, DIM), [torch.ones(1, TOKENS, DIM)] * 2
    for plain, gated in zip(network(src), network(src, ones), strict=True):
        torch.testing.assert_close(plain, gated)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    network = ReconstructionNetwork(DIM, HEADS, 2, GRID, dropout=0.5)
    src = random(1, TOKENS, DIM)
    assert not torch.equal(network(src)[-1], network(src)[-1])
    network.eval()
    assert torch.equal(network(src)[-1], network(src)[-1])


# --- neighbour mask -----------------------------------------------------------------------------


def test_hidden_neighbours_by_hand():
    mask = hide_neighbours(4, 3)
    assert mask.shape == (16, 16)
    assert set(mask.unique().tolist()) == {0.0, -math.inf}

    def hidden(token: int) -> list[int]:
        return torch.nonzero(mask[token] == -math.inf).flatten().tolist()

    #  0  1  2  3
    #  4  5  6  7
    #  8  9 10 11
    # 12 13 14 15
    assert hidden(0) == [0, 1, 4, 5]
    assert hidden(7) == [2, 3, 6, 7, 10, 11]
    assert hidden(9) == [4, 5, 6, 8, 9, 10, 12, 13, 14]
    assert torch.equal(mask, mask.T)
    assert torch.equal(hide_neighbours(2, 1), torch.zeros(4, 4).fill_diagonal_(-math.inf))


@pytest.mark.parametrize(("grid", "window"), [(1, 1), (3, 3), (4, 5), (4, 99)])
def test_a_window_that_hides_all_tokens_is_refused(grid, window):
    with pytest.raises(ConfigError, match=rf"neighbour_mask {window} hides every token .* {grid};"):
        hide_neighbours(grid, window)


def test_a_masked_token_does_not_see_itself():
    torch.manual_seed(0)
    network = ReconstructionNetwork(DIM, HEADS, 2, 4, neighbour_mask=3)
    layer = network.encoder[0].attention
    src = random(1, 16, DIM)
    changed = src.clone()
    changed[0, 5] += 1
    query = random(1, 16, DIM, seed=1)
    before, after = (layer(query, x, x, network.mask) for x in (src, changed))
    same = [torch.equal(before[0, i], after[0, i]) for i in range(16)]
    assert [i for i in range(16) if same[i]] == [0, 1, 2, 4, 5, 6, 8, 9, 10]


# --- jitter -------------------------------------------------------------------------------------


def test_jitter_has_the_stated_spread():
    # tokens (3, 4, 0, 0): norm 5, C = 4, so the standard deviation is 20 * 5 / 4 = 25
    features = torch.tensor([3.0, 4.0, 0.0, 0.0]).expand(10, 1000, 4)
    noise = jitter(features, 20.0, 1.0, torch.Generator().manual_seed(0)) - features
    # 40,000 numbers: standard errors 0.125 of the mean and 0.09 of the standard deviation
    assert abs(noise.mean()) < 0.5
    assert abs(noise.std() - 25) < 0.4
    per_channel = noise.flatten(0, 1)
    assert torch.all((torch.cov(per_channel.T) / 625 - torch.eye(4)).abs() < 0.06)


def test_jitter_grows_with_each_tokens_norm():
    features = torch.cat([torch.ones(1, 500, 4), 10 * torch.ones(1, 500, 4)], dim=1)
    noise = jitter(features, 1.0, 1.0, torch.Generator().manual_seed(0)) - features
    assert 9 < noise[0, 500:].std() / noise[0, :500].std() < 11


def test_jitter_is_drawn_from_the_generator_with_the_given_probability():
    features = random(2, 3, 4)
    first, second = (
        jitter(features, 20.0, 1.0, torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first, second)
    generator = torch.Generator().manual_seed(0)
    unchanged = sum(
        torch.equal(jitter(features, 20.0, 0.3, generator), features) for _ in range(400)
    )
    assert 250 <= unchanged <= 310  # 280 expected, standard deviation 9.2
    assert torch.equal(jitter(features, 20.0, 0.0, generator), features)
    assert torch.equal(jitter(features, 0.0, 1.0, generator), features)


def test_half_a_grid_leaves_an_odd_window():
    assert [half_window(grid) for grid in (1, 2, 3, 4, 7, 8, 14, 16)] == [None, 1, 1, 1, 3, 3, 7, 7]
