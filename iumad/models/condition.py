"""Condition networks: what separates the categories and gates the reconstruction (paper section 3.2).

A condition network reads the image (not the frozen features), gives one map X^1 ... X^L per encoder layer, and
classifies the category from the last one (Eq. 3). IUF's is a small ViT; IB-IUMAD's is the Mamba decoder.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.models.mamba import MambaBlock
from iumad.models.reconstruction import Attention, FeedForward


class VitBlock(nn.Module):
    """Pre-norm self-attention and FFN on the tokens of a map (the condition blocks of IUF)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.ffn = FeedForward(dim, dropout=0.0)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Attention over all positions, then FFN, both with residual."""
        tokens = x.flatten(1, 2)
        normed = self.norms[0](tokens)
        tokens = tokens + self.attention(normed, normed, normed)
        tokens = tokens + self.ffn(self.norms[1](tokens))
        return tokens.view_as(x)


def bounded_gate(x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Features normalised over channels, without parameters: mean 0 and root mean square 1 at every token.

    Neither paper has this (departure). A condition network is trained by cross-entropy alone, which grows its
    features without limit; as a gate they then drive the attention to one token, and nothing is reconstructed.
    """
    return functional.layer_norm(x, x.shape[-1:])


class ConditionNetwork(nn.Module):
    """Patch stem, L blocks, classifier.

    Parameters
    ----------
    kind : "vit" or "mamba"
    dim, layers, patch, n_categories : int
        Width d, number of blocks L, side of a patch in pixels, logits.
    heads : int
        Of the ViT blocks.
    d_state, expand
        Of the Mamba blocks.
    """

    def __init__(
        self,
        kind: str,
        dim: int,
        layers: int,
        patch: int,
        n_categories: int,
        heads: int,
        d_state: int = 16,
        expand: int = 2,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, dim, patch, stride=patch, bias=False), nn.BatchNorm2d(dim), nn.ReLU()
        )
        match kind:
            case "mamba":
                blocks = [MambaBlock(dim, d_state, expand) for _ in range(layers)]
                self.blocks = nn.ModuleList(blocks)
            case "vit":
                self.blocks = nn.ModuleList(VitBlock(dim, heads) for _ in range(layers))
            case _:
                raise ValueError(f"kind must be vit or mamba, got {kind!r}")
        self.classifier = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, n_categories)
        )

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[list[Float[Tensor, "b n d"]], Float[Tensor, "b categories"]]:
        """Maps X^1 ... X^L as tokens, and the logits Y_mab of images in [0, 1]."""
        x = self.stem(2 * images - 1).permute(0, 2, 3, 1).contiguous()
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x.flatten(1, 2))
        return maps, self.classifier(x.mean(dim=(1, 2)))
