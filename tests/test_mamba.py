import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from iumad.models.condition import ConditionNetwork, VitBlock
from iumad.models.mamba import (
    GROUPS,
    ChannelAttention,
    EfficientStateSpace,
    MambaBlock,
    es2d_merge,
    es2d_split,
)

SIDES = st.integers(1, 9)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- ES2D ---------------------------------------------------------------------------------------


def test_the_four_scans_of_a_four_by_four_map():
    #  0  1  2  3
    #  4  5  6  7
    #  8  9 10 11
    # 12 13 14 15
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert es2d_split(x)[0, :, 0].tolist() == [
        [0, 2, 8, 10],  # even rows, even columns, row by row
        [4, 12, 6, 14],  # odd rows, even columns, column by column
        [1, 3, 9, 11],  # even rows, odd columns, row by row
        [5, 13, 7, 15],  # odd rows, odd columns, column by column
    ]


def test_odd_sizes_are_padded_at_the_lower_right():
    # 1 2 3 0
    # 4 5 6 0
    # 7 8 9 0
    # 0 0 0 0
    x = torch.arange(1.0, 10).view(1, 1, 3, 3)
    assert es2d_split(x)[0, :, 0].tolist() == [
        [1, 3, 7, 9],
        [4, 0, 6, 0],
        [2, 0, 8, 0],
        [5, 0, 0, 0],
    ]


@given(height=SIDES, width=SIDES, batch=st.integers(1, 2), dim=st.integers(1, 3))
def test_merging_puts_every_token_back(height, width, batch, dim):
    x = random(batch, dim, height, width)
    sequences = es2d_split(x)
    assert sequences.shape == (batch, 4, dim, math.ceil(height / 2) * math.ceil(width / 2))
    assert torch.equal(es2d_merge(sequences, height, width), x)


@given(height=st.integers(1, 4), width=st.integers(1, 4))
def test_splitting_is_a_permutation_of_even_maps(height, width):
    sequences = random(2, 4, 3, height * width)
    assert torch.equal(es2d_split(es2d_merge(sequences, 2 * height, 2 * width)), sequences)


def test_gradients_of_splitting_and_merging_are_each_other():
    x = random(1, 2, 5, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(es2d_split, x)
    sequences = random(1, 4, 2, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: es2d_merge(s, 5, 4), sequences)


# --- ESSM ---------------------------------------------------------------------------------------


def test_initial_step_sizes_and_decays():
    torch.manual_seed(0)
    module = EfficientStateSpace(dim=64, d_state=5, expand=2)
    inner = 128
    steps = functional.softplus(module.delta_bias.double())
    assert steps.shape == (GROUPS * inner,)
    assert steps.min() >= 1e-3 * 0.999
    assert steps.max() <= 1e-1 * 1.001
    # log-uniform on [1e-3, 1e-1]: half of the steps lie below 1e-2
    assert abs((steps < 1e-2).double().mean() - 0.5) < 0.1
    decay = -module.log_decay.exp()
    torch.testing.assert_close(decay, -torch.arange(1.0, 6).repeat(GROUPS * inner, 1))
    assert torch.equal(module.skip, torch.ones(GROUPS * inner))
    assert module.project_delta.shape == (GROUPS, inner, 4)  # rank = ceil(64 / 16)
    assert EfficientStateSpace(dim=17).rank == 2


def slow_scan(module: EfficientStateSpace, x: torch.Tensor, group: int) -> torch.Tensor:
    """The selective scan of one sub-grid's sequence (e x l), one step after the other."""
    inner, length = x.shape
    own = slice(group * inner, (group + 1) * inner)
    decay = -torch.exp(module.log_decay[own])
    hidden = torch.zeros(inner, module.d_state, dtype=x.dtype)
    out = torch.zeros_like(x)
    for t in range(length):
        mixed = module.project_bc[group] @ x[:, t]
        low, b, c = mixed.split([module.rank, module.d_state, module.d_state])
        delta = torch.log1p(torch.exp(module.project_delta[group] @ low + module.delta_bias[own]))
        for e in range(inner):
            hidden[e] = torch.exp(delta[e] * decay[e]) * hidden[e] + delta[e] * b * x[e, t]
            out[e, t] = (hidden[e] * c).sum() + module.skip[own][e] * x[e, t]
    return out


def slow_state_space(module: EfficientStateSpace, x: torch.Tensor) -> torch.Tensor:
    """ESSM of one map (h x w x d), position by position."""
    height, width, _ = x.shape
    projected = x @ module.project_in.weight.T
    inner, gate = projected.chunk(2, dim=-1)
    convolved = functional.conv2d(
        inner.permute(2, 0, 1)[None],
        module.convolution.weight,
        module.convolution.bias,
        padding=1,
        groups=inner.shape[-1],
    )[0]
    convolved = convolved / (1 + torch.exp(-convolved))
    mixed = torch.zeros_like(convolved)
    for group, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        places = [(r, c) for r in range(row, height, 2) for c in range(column, width, 2)]
        if row == 1:
            places.sort(key=lambda place: place[1])  # column by column
        sequence = torch.stack([convolved[:, r, c] for r, c in places], dim=1)
        scanned = slow_scan(module, sequence, group)
        for (r, c), token in zip(places, scanned.T, strict=True):
            mixed[:, r, c] = token
    mean = mixed.mean(dim=0)
    normed = (mixed - mean) / torch.sqrt(((mixed - mean) ** 2).mean(dim=0) + 1e-5)
    normed = normed.permute(1, 2, 0) * module.norm.weight + module.norm.bias
    return (normed * (gate / (1 + torch.exp(-gate)))) @ module.project_out.weight.T


@torch.no_grad()
def test_essm_equals_a_slow_version():
    torch.manual_seed(1)
    module = EfficientStateSpace(4, d_state=3, expand=2)
    x = random(2, 4, 6, 4)
    fast = module(x)
    module.double()
    slow = torch.stack([slow_state_space(module, each) for each in x.double()])
    # float32 against float64
    torch.testing.assert_close(fast.double(), slow, rtol=1e-4, atol=1e-5)


# --- Eq. 2 --------------------------------------------------------------------------------------


def test_channel_attention_scales_channels_by_a_function_of_their_means():
    attention = ChannelAttention(16)
    x = random(2, 3, 5, 16)
    for p in attention.parameters():
        torch.nn.init.zeros_(p)
    torch.testing.assert_close(attention(x), x / 2)  # sigmoid(0)
    torch.manual_seed(0)
    attention = ChannelAttention(16)
    scale = attention(x) / x
    torch.testing.assert_close(scale, scale[:, :1, :1].expand_as(scale))
    assert torch.all((scale > 0) & (scale < 1))
    shuffled = x.flatten(1, 2)[:, torch.randperm(15)].unflatten(1, (3, 5))
    torch.testing.assert_close((attention(shuffled) / shuffled)[:, 0, 0], scale[:, 0, 0])


@torch.no_grad()
def test_a_block_is_the_attention_part_plus_the_local_part():
    torch.manual_seed(0)
    block = MambaBlock(8, d_state=4)
    x = random(2, 5, 6, 8)
    whole = block(x)
    channels_first = x.permute(0, 3, 1, 2)
    local = functional.conv2d(
        channels_first, block.local.weight, block.local.bias, padding=1, groups=8
    )
    attended = block.attention(block.norm_out(block.state_space(block.norm_in(x))))
    torch.testing.assert_close(whole, attended + local.permute(0, 2, 3, 1))
    # each part alone, and no third way through the block
    torch.nn.init.zeros_(block.local.weight)
    torch.nn.init.zeros_(block.local.bias)
    torch.testing.assert_close(block(x), attended)
    torch.nn.init.zeros_(block.state_space.project_out.weight)
    assert torch.equal(block(x), torch.zeros_like(x))


# --- condition networks -------------------------------------------------------------------------


@torch.no_grad()
def test_a_vit_block_by_hand():
    torch.manual_seed(0)
    block, x = VitBlock(8, 2), torch.randn(2, 3, 4, 8)
    tokens = x.flatten(1, 2)
    normed = block.norms[0](tokens)
    tokens = tokens + block.attention(normed, normed, normed)
    tokens = tokens + block.ffn(block.norms[1](tokens))
    torch.testing.assert_close(block(x), tokens.view_as(x))


@pytest.mark.parametrize("kind", ["vit", "mamba"])
@torch.no_grad()
def test_a_condition_network_gives_a_map_per_layer_and_logits_of_the_last(kind):
    torch.manual_seed(0)
    network = ConditionNetwork(kind, 8, 3, 4, 5, heads=2, d_state=4).eval()
    images = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    maps, logits = network(images)
    assert [tuple(each.shape) for each in maps] == [(2, 12, 8)] * 3
    assert logits.shape == (2, 5)
    torch.testing.assert_close(logits, network.classifier(maps[-1].mean(dim=1)))
    x = network.stem(2 * images - 1).permute(0, 2, 3, 1)
    for block, tokens in zip(network.blocks, maps, strict=True):
        x = block(x)
        torch.testing.assert_close(x.flatten(1, 2), tokens)


@pytest.mark.parametrize("kind", ["vit", "mamba"])
def test_the_category_loss_reaches_all_of_a_condition_network(kind):
    torch.manual_seed(0)
    network = ConditionNetwork(kind, 8, 2, 4, 3, heads=2, d_state=4)
    _, logits = network(torch.rand(3, 3, 16, 16))
    functional.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    untouched = [name for name, p in network.named_parameters() if p.grad is None]
    assert not untouched
