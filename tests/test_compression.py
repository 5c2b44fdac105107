"""IUF's semantic compression: the value by hand, its gradient, its memory of rows."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from iumad.models.fusion import SemanticCompression, small_singular_values


def by_svd(matrix: torch.Tensor) -> torch.Tensor:
    """The definition, differentiated by torch's own singular values."""
    values = torch.linalg.svdvals(matrix)
    shares = values / values.sum()
    return shares[shares < 0.1 / matrix.shape[1]].sum()


def with_singular_values(values: list[float], rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(rows, len(values), generator=generator).double())
    right, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator).double())
    return left @ torch.diag(torch.tensor(values).double()) @ right.T


def test_value_by_hand():
    # d = 4: small is below 0.1 / 4 = 0.025; 8 + 1.8 + 0.12 + 0.08 = 10, so shares 0.8, 0.18, 0.012, 0.008
    matrix = with_singular_values([8, 1.8, 0.12, 0.08], rows=7)
    assert float(small_singular_values(matrix)) == pytest.approx(0.020, rel=1e-6)
    assert float(small_singular_values(matrix.float())) == pytest.approx(0.020, rel=1e-4)


@given(
    st.lists(st.floats(0.01, 10), min_size=2, max_size=6), st.integers(0, 5), st.integers(0, 10**6)
)
def test_value_and_gradient_are_those_of_the_singular_values(values, more_rows, seed):
    shares = torch.tensor(values) / sum(values)
    if (shares - 0.1 / len(values)).abs().min() < 1e-6:
        return  # on the threshold either answer is right
    matrix = with_singular_values(values, len(values) + more_rows, seed)
    first, second = (matrix.clone().requires_grad_() for _ in range(2))
    loss, reference = small_singular_values(first), by_svd(second)
    torch.testing.assert_close(loss, reference, rtol=1e-8, atol=1e-10)
    assert 0 <= float(loss.detach()) < 0.1
    if reference.requires_grad and reference > 0:
        loss.backward()
        reference.backward()
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-5, atol=1e-7)


def test_directions_that_are_zero_up_to_rounding_get_no_gradient():
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(
        3, 8, generator=generator, requires_grad=True
    )  # five of eight directions empty
    small_singular_values(few).backward()
    assert float(small_singular_values(few).detach()) == 0
    assert few.grad is not None and not few.grad.any()
    assert float(small_singular_values(torch.zeros(3, 8))) == 0


def test_following_the_gradient_compresses():
    matrix = with_singular_values([1, 0.5, 0.02, 0.02], rows=9).float().requires_grad_()
    optimizer = torch.optim.SGD([matrix], lr=0.001)
    losses = []
    for _ in range(10):
        loss = small_singular_values(matrix)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_memory_keeps_the_newest_rows_and_gives_them_no_gradient():
    compression = SemanticCompression(dim=2, levels=1)  # room for 3 * 2 = 6 rows
    numbers = torch.arange(16.0).view(1, 8, 2)
    for start in (0, 2, 4, 6):
        compression.remember(numbers[:, start : start + 2])
    assert compression.rows[0, :, 0].tolist() == [12, 14, 8, 10, 4, 6]
    assert int(compression.filled) == 6
    rows = torch.randn(1, 2, 2, requires_grad=True)
    compression(rows)
    assert not compression.rows.requires_grad
    assert compression.rows[0, :2].tolist() == rows[0].detach().tolist()


def test_evaluation_mode_does_not_remember():
    compression = SemanticCompression(dim=2, levels=1).eval()
    compression(torch.randn(1, 3, 2))
    assert int(compression.filled) == 0


def test_only_the_base_step_of_iuf_has_the_term():
    detector = tiny.detector("iuf", lambda_compression=10.0).train()
    assert "compression" in detector.losses(tiny.batch(), base=True)
    assert "compression" not in detector.losses(tiny.batch())
    assert "compression" not in tiny.detector("ib-iumad").train().losses(tiny.batch(), base=True)
    assert "compression" not in tiny.detector("iuf").train().losses(tiny.batch(), base=True)


def test_weight_scales_the_term():
    terms = []
    for weight in (1.0, 4.0):
        detector = tiny.detector("ib-iumad", lambda_compression=weight)
        for seed in range(8):  # more rows than d, so that small singular values exist
            batch = tiny.batch(seed=seed)
            detector.compression.remember(detector(batch).rows.detach())
        terms.append(detector.losses(tiny.batch(seed=9), base=True)["compression"])
    assert float(terms[0].detach()) > 0
    torch.testing.assert_close(terms[1], 4 * terms[0])
    detector.zero_grad()
    terms[1].backward()
    reached = [name for name, p in detector.named_parameters() if p.grad is not None]
    assert any(name.startswith("networks.rgb.decoder.0") for name in reached)
    assert not any(name.startswith("networks.rgb.decoder.1") for name in reached)  # the last layer


def test_rows_travel_in_the_state_dict():
    first, second = (tiny.detector("iuf", seed=i, lambda_compression=1.0) for i in range(2))
    first.train()
    first.losses(tiny.batch(), base=True)
    second.load_state_dict(first.state_dict())
    assert int(second.compression.filled) == 3
    assert torch.equal(second.compression.rows, first.compression.rows)
