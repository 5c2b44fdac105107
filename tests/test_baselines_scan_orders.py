"""Scan orders: permutations of all cells, curves by hand, and that the state space block puts tokens back."""

import pytest
import torch

from iumad.config.methods import MambaADLiteConfig
from iumad.models.baselines.mambaad import (
    CURVES,
    CurveStateSpace,
    hilbert,
    scan_orders,
    z_order,
    zigzag,
)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 8, 14])
@pytest.mark.parametrize("curve", CURVES)
def test_every_direction_is_a_bijection(curve, side):
    orders = scan_orders(curve, side)
    assert orders.shape == (8, side * side)
    cells = torch.arange(side * side)
    inverse = orders.argsort(dim=1)
    for order, back in zip(orders, inverse, strict=True):
        assert torch.equal(order.sort().values, cells)
        assert torch.equal(order[back], cells)


@pytest.mark.parametrize("side", [2, 4, 8, 16])
@pytest.mark.parametrize("curve", ["hilbert", "scan"])
def test_consecutive_cells_are_neighbours(curve, side):
    for order in scan_orders(curve, side):
        row, column = order // side, order % side
        assert torch.equal(
            row.diff().abs() + column.diff().abs(), torch.ones(side * side - 1).long()
        )


def test_small_curves_by_hand():
    assert hilbert(2) == [(0, 0), (1, 0), (1, 1), (0, 1)]
    assert z_order(2) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert zigzag(3)[:6] == [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2)]


def test_directions_by_hand():
    # 0 1   transposed 0 2   turned 1 3   turned, transposed 1 0
    # 2 3              1 3          0 2                      3 2
    forwards = scan_orders("sweep", 2)[::2]
    assert forwards.tolist() == [[0, 1, 2, 3], [0, 2, 1, 3], [1, 3, 0, 2], [1, 0, 3, 2]]
    assert torch.equal(scan_orders("sweep", 2)[1::2], forwards.flip(1))
    assert torch.equal(scan_orders("sweep", 2, 4), scan_orders("sweep", 2)[:4])


@pytest.mark.parametrize("curve", CURVES)
def test_splitting_and_merging_returns_every_token_once_a_direction(curve):
    layer = CurveStateSpace(4, 4, MambaADLiteConfig(scan=curve, d_state=2))
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(layer.merge(layer.split(x), 4, 4), 8 * x)


def test_reversed_directions_scan_backwards():
    layer = CurveStateSpace(4, 4, MambaADLiteConfig(d_state=2))
    sequences = layer.split(torch.randn(1, 8, 4, 4))
    assert torch.equal(sequences[:, 0], sequences[:, 1].flip(-1))
