"""Two methods that learn from noise on frozen features: SimpleNet tells it apart, cdad-feat takes it away.

SimpleNet (Liu et al., CVPR 2023): noise in feature space stands for what is anomalous, so that normal training
images are enough. Symbols: q  adapted feature of a patch; q- = q + noise; D  the discriminator, positive for
normal features.

cdad-feat is a small denoiser that learns in steps as CDAD does; it is not CDAD. CDAD (Li et al., "One-for-More",
CVPR 2025) fine-tunes Stable Diffusion 1.5 on images. Here are its three ingredients at the size of cached
features: a diffusion model of them, a condition network that sees them with parts pasted over, and gradient
projection (strategy `svd`). Only the behaviour over steps can be compared.
Symbols: z  standardised features, all modalities joined along channels; z~  the same with pasted parts; t  noise
level, 0 to 999; abar_t  the signal's share of variance at t; eps  noise; c  condition.

Both were reimplemented from a sheet of facts; the book's page of baselines has the departures.
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from iumad.config.methods import CdadFeatConfig, SimpleNetConfig
from iumad.features.cache import Batch
from iumad.models.base import Detector, InputSpec, noise_like
from iumad.models.reconstruction import EncoderLayer, half_window, hide_neighbours


class SimpleNet(Detector):
    """Adaptor and discriminator on patches; two modalities are joined along channels, so there is one map.

    SimpleNet does not classify: `n_categories` is not used.
    """

    signed = True

    def __init__(self, config: SimpleNetConfig, spec: InputSpec, n_categories: int) -> None:
        super().__init__(config, spec, n_categories, targets=spec.modalities[:1])
        width = spec.channels * len(spec.modalities)
        self.adaptor = nn.Linear(width, width)
        self.hidden = nn.Linear(width, config.hidden)
        self.norm = nn.BatchNorm1d(config.hidden)
        self.decide = nn.Linear(config.hidden, 1, bias=False)

    def adapted(self, batch: Batch) -> Float[Tensor, "b n c"]:
        """q: standardised features, averaged over 3 x 3 patches inside the map, through the adaptor."""
        tokens = torch.cat([self.standardised(batch, m) for m in self.modalities], dim=-1)
        maps = tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        patches = functional.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
        return self.adaptor(patches.flatten(2).transpose(1, 2))

    def discriminate(self, q: Float[Tensor, "b n c"]) -> Float[Tensor, "b n"]:
        """D of every patch."""
        hidden = self.norm(self.hidden(q).flatten(0, 1)).unflatten(0, q.shape[:2])
        return self.decide(functional.leaky_relu(hidden, 0.2))[..., 0]

    def losses(
        self, batch: Batch, generator: torch.Generator | None = None, base: bool = False
    ) -> dict[str, Float[Tensor, ""]]:
        """Truncated L1: max(0, margin - D(q)) and max(0, margin + D(q-)), means over patches.

        The noise has `noise` times the root mean square of q, through which no gradient flows.
        """
        q = self.adapted(batch)
        scale = self.config.noise * q.detach().square().mean().sqrt()
        negative = q + scale * noise_like(q, generator)
        normal, noisy = self.discriminate(torch.cat([q, negative])).chunk(2)
        margin = self.config.margin
        return {
            "normal": functional.relu(margin - normal).mean(),
            "noisy": functional.relu(margin + noisy).mean(),
        }

    @torch.no_grad()
    def residual_maps(self, batch: Batch) -> dict[str, Float[Tensor, "b g g"]]:
        """-D at every token, under the name of the first modality; below 0 where features look normal."""
        score = -self.discriminate(self.adapted(batch))
        return {self.targets[0]: score.unflatten(1, (self.grid, self.grid))}

    def token_map(self, batch: Batch) -> Float[Tensor, "b g g"]:
        """-D itself: it has a sign, and there is nothing to combine."""
        return self.residual_maps(batch)[self.targets[0]]


LEVELS = 1000  # noise levels
PASTES = 4  # at most so many parts of an image are pasted over
HALF_WIDTHS = (0.03, 0.4)  # of a part, in sides of the grid


class ResidualBlock(nn.Module):
    """GN, SiLU, 3 x 3; scaled and shifted by the noise level; GN, SiLU, 3 x 3; plus the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, dim) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(2))
        self.film = nn.Linear(dim, 2 * dim)

    def forward(
        self, x: Float[Tensor, "b d g g"], level: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b d g g"]:
        """`level` is the embedded t."""
        hidden = self.convolutions[0](functional.silu(self.norms[0](x)))
        scale, shift = self.film(level)[..., None, None].chunk(2, dim=1)
        hidden = self.norms[1](hidden) * (1 + scale) + shift
        return x + self.convolutions[1](functional.silu(hidden))


class Denoiser(nn.Module):
    """eps(z_t, t, c): residual blocks on the grid; the condition is added once, after the first layer."""

    def __init__(self, channels: int, dim: int, blocks: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, dim, 1)
        self.embed = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.blocks = nn.ModuleList(ResidualBlock(dim) for _ in range(blocks))
        self.project_out = nn.Sequential(
            nn.GroupNorm(8, dim), nn.SiLU(), nn.Conv2d(dim, channels, 1)
        )

    def forward(
        self,
        noisy: Float[Tensor, "b c g g"],
        t: Int[Tensor, " b"],
        condition: Float[Tensor, "b d g g"],
    ) -> Float[Tensor, "b c g g"]:
        """Estimate the noise."""
        level = self.embed(sinusoids(t, condition.shape[1]))
        hidden = self.project_in(noisy) + condition
        for block in self.blocks:
            hidden = block(hidden, level)
        return self.project_out(hidden)


class MaskedCondition(nn.Module):
    """CDAD's anomaly-masked network on tokens: c looks like normal features also where z~ does not.

    Each token may not read its neighbours; the window is the largest odd one up to half the grid.
    """

    def __init__(self, channels: int, grid: int, config: CdadFeatConfig) -> None:
        super().__init__()
        self.project = nn.Linear(channels, config.dim)
        self.layers = nn.ModuleList(
            EncoderLayer(config.dim, config.heads, dropout=0.0) for _ in range(config.layers)
        )
        window = half_window(grid)
        mask = None if window is None else hide_neighbours(grid, window)
        place = torch.arange(grid)
        half = sinusoids(place, config.dim // 2)
        rows, columns = half.repeat_interleave(grid, dim=0), half.repeat(grid, 1)
        self.position: Tensor
        self.mask: Tensor | None
        self.register_buffer("position", torch.cat([rows, columns], dim=1), persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, z: Float[Tensor, "b c g g"]) -> Float[Tensor, "b d g g"]:
        """The condition of features, pasted over or not."""
        tokens = self.project(z.flatten(2).transpose(1, 2))
        for layer in self.layers:
            tokens = layer(tokens, self.position, None, self.mask)
        return tokens.transpose(1, 2).unflatten(2, z.shape[-2:])


class CdadFeat(Detector):
    """Denoise the joint features of all modalities; what comes back different is anomalous.

    Nothing is classified: `n_categories` is not used.
    """

    def __init__(self, config: CdadFeatConfig, spec: InputSpec, n_categories: int) -> None:
        super().__init__(config, spec, n_categories)
        joint = spec.channels * len(spec.modalities)
        self.condition = MaskedCondition(joint, spec.grid, config)
        self.denoiser = Denoiser(joint, config.dim, config.blocks)
        beta = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), LEVELS).square()
        self.signal: Tensor  # abar_t
        self.register_buffer("signal", (1 - beta).cumprod(dim=0), persistent=False)

    def _joint(self, batch: Batch) -> Float[Tensor, "b c g g"]:
        tokens = torch.cat([self.standardised(batch, m) for m in self.modalities], dim=-1)
        return tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def losses(
        self, batch: Batch, generator: torch.Generator | None = None, base: bool = False
    ) -> dict[str, Float[Tensor, ""]]:
        """`noise`: squared error of eps at a random t; `condition`: of c(z~) and the first layer on clean z.

        Both are means over elements. No gradient flows into the second's target (CDAD lets it; both could shrink
        to zero together).
        """
        z = self._joint(batch)
        draws = torch.rand(len(z), 1 + PASTES * 7, generator=generator, device=z.device)
        pasted = paste(z, draws[:, 1:].unflatten(1, (PASTES, 7)))
        condition = self.condition(pasted)
        clean = self.condition.project(z.flatten(2).transpose(1, 2)).detach()
        t = (draws[:, 0] * LEVELS).long().clamp(max=LEVELS - 1)
        noise = noise_like(z, generator)
        estimate = self.denoiser(self._noisy(z, noise, t), t, condition)
        return {
            "noise": functional.mse_loss(estimate, noise),
            "condition": functional.mse_loss(condition.flatten(2).transpose(1, 2), clean),
        }

    def _noisy(
        self, z: Float[Tensor, "b c g g"], noise: Float[Tensor, "#b c g g"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c g g"]:
        signal = self.signal[t][:, None, None, None]
        return signal.sqrt() * z + (1 - signal).sqrt() * noise

    @torch.no_grad()
    def residual_maps(self, batch: Batch) -> dict[str, Float[Tensor, "b g g"]]:
        """Channel norm of denoised minus true features, in the features' own unit, per modality.

        DDIM without added noise from level `start`; all images start from the same noise, so that an image's map
        depends on nothing but the image.
        """
        z = self._joint(batch)
        seeded = torch.Generator().manual_seed(0)
        noise = torch.randn(1, *z.shape[1:], generator=seeded).to(z)
        levels = torch.linspace(self.config.start, 0, self.config.sampling_steps + 1).long()
        condition = self.condition(z)
        t = levels[:1].expand(len(z)).to(z.device)
        current = restored = self._noisy(z, noise, t)
        for level, following in pairwise(levels):
            t = level.expand(len(z)).to(z.device)
            estimate = self.denoiser(current, t, condition)
            signal = self.signal[level]
            restored = (current - (1 - signal).sqrt() * estimate) / signal.sqrt()
            current = self._noisy(restored, estimate, following.expand(len(z)).to(z.device))
        errors = (restored - z).chunk(len(self.modalities), dim=1)
        return {
            modality: (error * getattr(self, f"std_{modality}")[:, None, None]).norm(dim=1)
            for modality, error in zip(self.modalities, errors, strict=True)
        }


def sinusoids(positions: Int[Tensor, " n"], dim: int) -> Float[Tensor, "n dim"]:
    """Sines and cosines of falling frequency, 1 to 1 / 10000 (Vaswani et al., 2017)."""
    half = dim // 2
    exponent = torch.arange(half, device=positions.device) / half
    angles = positions[:, None] * torch.exp(-math.log(10_000.0) * exponent)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def paste(
    z: Float[Tensor, "b c g g"], draws: Float[Tensor, "b parts 7"]
) -> Float[Tensor, "b c g g"]:
    """Replace rectangles by shifted features of the same image, in about half of the images.

    `draws` are uniform in [0, 1): whether the part exists (each needs the one before), place and half widths in
    rows and columns, and the shift.
    """
    grid = z.shape[-1]
    exists = (draws[..., 0] < 0.5).cumprod(dim=1).bool()
    low, high = HALF_WIDTHS
    half = (low + (high - low) * draws[..., 3:5]) * grid
    inside = _rectangles(draws[..., 1:3] * grid, half, grid) & exists[..., None, None]
    pasted = z.clone()
    for i in range(len(z)):
        for part in range(draws.shape[1]):
            shift = (draws[i, part, 5:] * grid).long().tolist()
            source = z[i].roll(shift, dims=(1, 2))
            pasted[i] = torch.where(inside[i, part], source, pasted[i])
    return pasted


def _rectangles(
    centre: Float[Tensor, "b parts 2"], half: Float[Tensor, "b parts 2"], grid: int
) -> Bool[Tensor, "b parts g g"]:
    """Cells whose middle lies in the rectangle; the one that holds the centre always does."""
    middles = torch.arange(grid, device=centre.device) + 0.5
    near = (middles - centre[..., None]).abs() <= half.clamp_min(0.5)[..., None]
    return near[..., 0, :, None] & near[..., 1, None, :]
