"""Orders in which a square grid is read as a sequence: five curves, each in up to eight directions (MambaAD).

A curve is a permutation of the cells in row-major numbers. A direction turns or transposes the grid before the
curve is laid over it, and may run along it backwards.
"""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

Cell = tuple[int, int]


def sweep(side: int) -> list[Cell]:
    """Row after row, each from the left."""
    return [(row, column) for row in range(side) for column in range(side)]


def boustrophedon(side: int) -> list[Cell]:
    """Row after row, every second one from the right (MambaAD's `scan`)."""
    return [(row, side - 1 - c if row % 2 else c) for row in range(side) for c in range(side)]


def zigzag(side: int) -> list[Cell]:
    """Diagonal after diagonal, up and down in turn, as JPEG does."""
    return sorted(sweep(side), key=lambda cell: (sum(cell), cell[0] if sum(cell) % 2 else cell[1]))


def z_order(side: int) -> list[Cell]:
    """By the interleaved bits of row and column (Morton)."""
    bits = range(side.bit_length())
    return sorted(
        sweep(side),
        key=lambda cell: sum(
            ((cell[0] >> i & 1) << 2 * i + 1) | ((cell[1] >> i & 1) << 2 * i) for i in bits
        ),
    )


def hilbert(side: int) -> list[Cell]:
    """Hilbert's curve from the upper left to the upper right corner; consecutive cells are neighbours.

    For other sides than powers of two it is the next larger curve without the cells outside, which then jumps.
    """
    power = 1 << (side - 1).bit_length()
    return [cell for cell in _hilbert(power) if max(cell) < side]


def _hilbert(side: int) -> list[Cell]:
    if side == 1:
        return [(0, 0)]
    half, last = side // 2, side - 1
    part = _hilbert(half)
    return [
        *((column, row) for row, column in part),
        *((half + row, column) for row, column in part),
        *((half + row, half + column) for row, column in part),
        *((half - 1 - column, last - row) for row, column in part),
    ]


CURVES: dict[str, Callable[[int], list[Cell]]] = {
    "hilbert": hilbert,
    "sweep": sweep,
    "scan": boustrophedon,
    "zorder": z_order,
    "zigzag": zigzag,
}


def scan_orders(curve: str, side: int, directions: int = 8) -> Int[Tensor, "directions n"]:
    """The cells of a side x side grid in the order of a curve, one row for each direction.

    Parameters
    ----------
    curve : a key of `CURVES`
    side : int
        n = side * side.
    directions : 2, 4 or 8
        The curve on the grid, on its transpose, turned by 90 degrees, turned and transposed; each forwards and
        backwards. 2 and 4 are the first of these.
    """
    steps = torch.tensor([row * side + column for row, column in CURVES[curve](side)])
    grid = torch.arange(side * side).view(side, side)
    turned = torch.rot90(grid)
    arranged = [each.flatten()[steps] for each in (grid, grid.T, turned, turned.T)]
    both = [order for forward in arranged for order in (forward, forward.flip(0))]
    return torch.stack(both[:directions])
