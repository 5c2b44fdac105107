"""Distances of UniMMAD to one anomaly map per image (its Eq. 4)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Distances = Sequence[Float[Tensor, "modalities b _ _"]]  # A of Eq. 3, one entry per level


def score_of_the_paper(
    distances: Distances, size: int, sigma: float
) -> Float[Tensor, "b {size} {size}"]:
    """Eq. 4: mean over levels of the blurred, enlarged root of the sum over modalities of A^2.

    Parameters
    ----------
    distances : A in [0, 2]
    size : side of the maps, pixels
    sigma : of the Gaussian, pixels; the edge is repeated outside the map
    """
    maps = [enlarged(level.square().sum(dim=0).sqrt(), size) for level in distances]
    radius = round(4 * sigma)
    blurred = [
        blur(functional.pad(each[:, None], [radius] * 4, mode="replicate")[:, 0], sigma, radius)
        for each in maps
    ]
    return torch.stack(blurred).mean(dim=0)


def score_of_the_code(
    distances: Distances, size: int, sigma: float
) -> Float[Tensor, "b {size} {size}"]:
    """The public code's: one root over modalities and levels, then a 15 x 15 Gaussian with zeros outside."""
    squares = [enlarged(each, size).square() for level in distances for each in level]
    maps = torch.stack(squares).sum(dim=0).sqrt()
    return blur(functional.pad(maps, [7] * 4), sigma, radius=7)


def enlarged(maps: Float[Tensor, "b h w"], size: int) -> Float[Tensor, "b {size} {size}"]:
    """Maps at `size` x `size`, bilinear with aligned corners."""
    return functional.interpolate(maps[:, None], (size, size), mode="bilinear", align_corners=True)[
        :, 0
    ]


def blur(padded: Float[Tensor, "b h w"], sigma: float, radius: int) -> Float[Tensor, "b h2 w2"]:
    """Gaussian of 2 radius + 1 taps along both axes of maps that are padded by the radius."""
    place = torch.arange(-radius, radius + 1, dtype=padded.dtype, device=padded.device)
    taps = torch.exp(-0.5 * (place / sigma) ** 2)
    taps = taps / taps.sum()
    rows = functional.conv2d(padded[:, None], taps.view(1, 1, -1, 1))
    return functional.conv2d(rows, taps.view(1, 1, 1, -1))[:, 0]
