"""A small random pair of transformers in the place of CLIP."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.models.baselines.cnd import AttentionBlock, ClipEncoder, clip_normalised


class TinyEncoder(ClipEncoder):
    """Random transformers with the interface of `ClipEncoder`; a word's token is its hash.

    Parameters
    ----------
    layers : three blocks of the image encoder, from 0
    image_size : pixels, a multiple of 8
    """

    VOCABULARY, PATCH = 64, 8

    def __init__(self, layers: tuple[int, ...], image_size: int) -> None:
        nn.Module.__init__(self)  # nothing of the real one is made
        self.layers, self.side = layers, image_size // self.PATCH
        self.width, self.text_width, self.joint_width = 32, 16, 24
        self.patches = nn.Conv2d(3, self.width, self.PATCH, self.PATCH)
        self.first = nn.Parameter(torch.randn(1, 1, self.width))
        self.place = nn.Parameter(0.1 * torch.randn(1 + self.side**2, self.width))
        self.blocks = nn.ModuleList(AttentionBlock(self.width) for _ in range(layers[-1] + 1))
        self.to_joint = nn.Linear(self.width, self.joint_width, bias=False)
        self.words = nn.Embedding(self.VOCABULARY, self.text_width)
        self.text_block = AttentionBlock(self.text_width)
        self.text_to_joint = nn.Linear(self.text_width, self.joint_width, bias=False)

    def image_levels(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b tokens c"]]:
        """Class token and patches after three blocks, of images in [0, 1]."""
        patches = self.patches(clip_normalised(images)).flatten(2).mT
        x = torch.cat([self.first.expand(len(images), -1, -1), patches], dim=1) + self.place
        levels = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.layers:
                levels.append(x)
        return levels

    def project(self, tokens: Float[Tensor, "*any c"]) -> Float[Tensor, "*any t"]:
        """A linear map."""
        return self.to_joint(functional.layer_norm(tokens, (self.width,)))

    def text(self, context: Float[Tensor, "p length w"], suffix: str) -> Float[Tensor, "p t"]:
        """One block; the last of its tokens stands for the prompt."""
        digests = [hashlib.sha256(word.encode()).digest() for word in suffix.split()]
        numbers = torch.tensor([digest[0] % self.VOCABULARY for digest in digests])
        words = self.words(numbers.to(context.device)).expand(len(context), -1, -1)
        return self.text_to_joint(self.text_block(torch.cat([context, words], dim=1))[:, -1])
