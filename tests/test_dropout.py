"""Dropout with 16-bit random numbers: rate, scale, gradient, repeatability, attention."""

import pytest
import torch
from torch.nn import functional

from iumad.models.reconstruction import Dropout, attention_with_dropout, keep_rate, kept


@pytest.mark.parametrize("probability", [0.0001, 0.1, 0.5, 0.9])
def test_rate_of_dropped_elements(probability):
    torch.manual_seed(0)
    number = 400_001  # not a multiple of four
    rate = float(kept(torch.Size([number]), probability).float().mean())
    assert rate == pytest.approx(keep_rate(probability), abs=5 * (0.25 / number) ** 0.5)
    assert keep_rate(probability) == pytest.approx(1 - probability, abs=2**-17)


def test_elements_are_dropped_independently():
    torch.manual_seed(0)
    four = kept(torch.Size([200_000, 4]), 0.5).float()  # the four of one 64-bit number
    correlation = torch.corrcoef(four.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / 200_000**0.5


def test_kept_elements_are_scaled_and_the_gradient_follows():
    torch.manual_seed(0)
    x = torch.randn(50, 7, requires_grad=True)
    y = Dropout(0.25).train()(x)
    y.sum().backward()
    stayed = y != 0
    torch.testing.assert_close(y[stayed], x[stayed] / 0.75)
    assert torch.equal(x.grad != 0, stayed)
    torch.testing.assert_close(x.grad[stayed], torch.full_like(x.grad[stayed], 1 / 0.75))


def test_nothing_happens_in_evaluation_or_at_zero():
    x = torch.randn(3, 3)
    state = torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_decides():
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        masks.append(kept(torch.Size([100]), 0.5))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_attention_is_torchs_when_nothing_is_dropped(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3))
    mask = torch.zeros(5, 5).fill_diagonal_(float("-inf"))
    monkeypatch.setattr("iumad.models.reconstruction.kept", lambda shape, _: torch.ones(shape) > 0)
    monkeypatch.setattr("iumad.models.reconstruction.keep_rate", lambda _: 1.0)
    for scores in (None, mask):
        torch.testing.assert_close(
            attention_with_dropout(q, k, v, scores, 0.1),
            functional.scaled_dot_product_attention(q, k, v, scores),
        )


def test_attention_is_right_in_the_mean():
    """Dropout is unbiased: the mean of many draws is the attention without it."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 4, 3) for _ in range(3))
    many = [x.expand(20_000, -1, -1, -1) for x in (q, k, v)]
    mean = attention_with_dropout(*many, None, 0.3).mean(dim=0, keepdim=True)
    exact = functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(mean, exact, rtol=0, atol=0.03)
