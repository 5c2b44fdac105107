"""The two image networks of UniMMAD: the frozen prior generator and the general encoder's input (section 3.2)."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iumad.errors import ConfigError
from iumad.features import imagenet_classifier

LEVELS = (1, 2, 3)  # of timm: strides 4, 8 and 16


class Pyramid(nn.Module):
    """Three levels of a timm backbone with strides 4, 8 and 16, rectified.

    Parameters
    ----------
    backbone : a timm model (the paper: wide_resnet50_2)
    weights : "pretrained" or, for tests, "random"

    Attributes
    ----------
    channels : of the levels, finest first

    Raises
    ------
    ConfigError
        The model is unknown, has no such levels, or its weights cannot be obtained.
    """

    def __init__(self, backbone: str, weights: str) -> None:
        super().__init__()
        import timm  # takes seconds, and results are often read without it

        if not timm.is_model(backbone):
            raise ConfigError(f"model.backbone: timm has no model {backbone!r}")
        levels: Any = timm.create_model(backbone, features_only=True, out_indices=LEVELS)
        strides = levels.feature_info.reduction()
        if strides != [4, 8, 16]:
            raise ConfigError(
                f"model.backbone needs levels of strides 4, 8, 16, {backbone!r} has {strides}"
            )
        mean, std = (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))
        if weights == "pretrained":
            classifier, _ = imagenet_classifier(backbone)
            theirs = classifier.state_dict()
            levels.load_state_dict({key: theirs[key] for key in levels.state_dict()})
            mean, std = (torch.tensor(classifier.pretrained_cfg[key]) for key in ("mean", "std"))
        self.levels: nn.Module = levels
        self.channels: tuple[int, int, int] = tuple(levels.feature_info.channels())
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.view(1, 3, 1, 1))
        self.register_buffer("std", std.view(1, 3, 1, 1))

    def normalised(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Images in [0, 1] with the mean and deviation that the backbone was trained with."""
        return (images - self.mean) / self.std

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Levels, finest first, none below 0."""
        return [level.relu() for level in self.levels(x)]


class InputEmbedding(nn.Module):
    """Any combination of modalities as three channels: absent ones are zero ("pads all inputs", section 3.2).

    Parameters
    ----------
    slots : modalities there is room for, three channels each (the paper: 4)
    image_size : side of the images, pixels; a learned tensor of this size is added to the input
    """

    def __init__(self, slots: int, image_size: int) -> None:
        super().__init__()
        channels = 3 * slots
        self.slots = slots
        self.place = nn.Parameter(0.02 * torch.randn(channels, image_size, image_size))
        widths = ((channels, 2 * channels), (2 * channels, 4 * channels))
        layers: list[nn.Module] = []
        for before, after in widths:
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(4 * channels, 3, 3, padding=1))
        self.shortcut = nn.Conv2d(channels, 3, 1)

    def forward(self, images: dict[int, Float[Tensor, "b 3 h w"]]) -> Float[Tensor, "b 3 h w"]:
        """Three channels from normalised images by slot."""
        like = next(iter(images.values()))
        rows = [images.get(slot, torch.zeros_like(like)) for slot in range(self.slots)]
        x = torch.cat(rows, dim=1) + self.place
        return self.main(x) + self.shortcut(x)


class GeneralEncoder(nn.Module):
    """Input embedding and a trainable copy of the prior generator's backbone.

    Parameters
    ----------
    prior : whose architecture and weights the encoder begins with
    slots, image_size : see `InputEmbedding`
    refined : whether the mean of the priors is added to every level; in the paper, not in its code
    """

    def __init__(self, prior: Pyramid, slots: int, image_size: int, refined: bool) -> None:
        super().__init__()
        self.refined = refined
        self.embedding = InputEmbedding(slots, image_size)
        self.backbone = copy.deepcopy(prior)

    def forward(
        self,
        images: dict[int, Float[Tensor, "b 3 h w"]],
        priors: list[Float[Tensor, "modalities b _ _ _"]],
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Multi-modal levels, finest first, of images in [0, 1] by slot."""
        normalised = {slot: self.backbone.normalised(x) for slot, x in images.items()}
        levels = self.backbone(self.embedding(normalised))
        if self.refined:
            levels = [x + prior.mean(dim=0) for x, prior in zip(levels, priors, strict=True)]
        return levels
