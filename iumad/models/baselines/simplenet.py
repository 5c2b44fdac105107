"""SimpleNet: tell adapted features from the same features with noise (Liu et al., CVPR 2023).

Reimplemented from a sheet of facts; the book's page of baselines has the departures. Normal training images are
enough: noise in feature space stands for what is anomalous.

Symbols: q  adapted feature of a patch; q- = q + noise; D  the discriminator, positive for normal features.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.config.methods import SimpleNetConfig
from iumad.features.cache import Batch
from iumad.models.base import Detector, InputSpec, noise_like


class SimpleNet(Detector):
    """Adaptor and discriminator on patches; two modalities are joined along channels, so there is one map.

    Parameters
    ----------
    config : SimpleNetConfig
    spec : InputSpec
    n_categories : int
        Not used: SimpleNet does not classify.
    """

    def __init__(
        self,
        config: SimpleNetConfig,
        spec: InputSpec,
        n_categories: int,
    ) -> None:
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
