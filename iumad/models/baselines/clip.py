"""The frozen image and text encoders of CND: CLIP's.

Symbols: c  width of image tokens; w  width of text tokens; t  width of the joint space; n = side * side  patches.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iumad.config.methods import CndConfig
from iumad.errors import ConfigError

CONTEXT = 77  # tokens of CLIP's text encoder; the limit of model.prompt_length follows from it
CLIP_MEAN, CLIP_STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)


class ClipEncoder(nn.Module):
    """A CLIP of the package open_clip_torch: what CND needs of it.

    Parameters
    ----------
    architecture : its name, e.g. ViT-L-14-336-quickgelu; the openai weights need the -quickgelu form
    weights : "openai", fetched by the package, or "random"
    layers : three blocks of the image encoder, from 0
    image_size : pixels; positions are interpolated to it

    Attributes
    ----------
    width, text_width, joint_width : c, w, t
    side : patches along one side of an image

    Raises
    ------
    ConfigError
        The package is not installed, or it cannot make the model.
    """

    def __init__(
        self, architecture: str, weights: str, layers: tuple[int, ...], image_size: int
    ) -> None:
        super().__init__()
        try:
            import open_clip
        except ModuleNotFoundError as error:
            raise ConfigError(
                "cnd needs the package open_clip_torch: pip install 'iumad[clip]'"
            ) from error
        pretrained = None if weights == "random" else weights
        try:
            model: Any = open_clip.create_model(
                architecture, pretrained=pretrained, force_image_size=image_size
            )
        except Exception as error:  # the package and its hub client raise many kinds
            raise ConfigError(f"model.architecture {architecture!r}: {error}") from error
        _require_vision_transformer(open_clip, architecture, model, layers)
        self.model, self.layers = model, list(layers)
        self.tokenizer: Any = open_clip.get_tokenizer(architecture)
        self.width, self.joint_width = model.visual.proj.shape
        self.text_width = model.token_embedding.embedding_dim
        self.side = model.visual.grid_size[0]

    def image_levels(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b tokens c"]]:
        """Class token and patches after the three blocks, of images in [0, 1]."""
        found = self.model.visual.forward_intermediates(
            clip_normalised(images),
            indices=self.layers,
            output_fmt="NCHW",
            output_extra_tokens=True,
        )
        pairs = zip(found["image_intermediates_prefix"], found["image_intermediates"], strict=True)
        return [torch.cat([first, maps.flatten(2).mT], dim=1) for first, maps in pairs]

    def project(self, tokens: Float[Tensor, "*any c"]) -> Float[Tensor, "*any t"]:
        """Image tokens of any block in the joint space, not normalised: the last norm and CLIP's projection."""
        return self.model.visual.ln_post(tokens) @ self.model.visual.proj

    def text(self, context: Float[Tensor, "p length w"], suffix: str) -> Float[Tensor, "p t"]:
        """Prompts of learnt tokens and a fixed suffix in the joint space, not normalised (Eq. 2, 3)."""
        model, length = self.model, context.shape[1]
        tokens = self.tokenizer(["x " * length + suffix]).to(context.device)
        embedded = model.token_embedding(tokens).expand(len(context), -1, -1)
        x = torch.cat([embedded[:, :1], context, embedded[:, 1 + length :]], dim=1)
        x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
        end = tokens[0].argmax()  # the end-of-text token has the highest number
        return model.ln_final(x)[:, end] @ model.text_projection


def clip_normalised(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Images in [0, 1] with the mean and deviation that CLIP was trained with."""
    mean, std = images.new_tensor(CLIP_MEAN), images.new_tensor(CLIP_STD)
    return (images - mean[:, None, None]) / std[:, None, None]


def _require_vision_transformer(
    open_clip: Any, architecture: str, model: Any, layers: tuple[int, ...]
) -> None:
    """Refuse other image and text encoders than CLIP's own transformers, and blocks that they do not have.

    Raises
    ------
    ConfigError
        The text says what is needed.
    """
    transformers = (
        isinstance(model, open_clip.model.CLIP)
        and isinstance(model.visual, open_clip.transformer.VisionTransformer)
        and model.context_length == CONTEXT
    )
    if not transformers:
        raise ConfigError(
            f"model.architecture {architecture!r}: cnd needs a CLIP with a vision transformer and "
            f"{CONTEXT} text tokens, such as ViT-L-14-336-quickgelu"
        )
    blocks = len(model.visual.transformer.resblocks)
    if layers[-1] >= blocks:
        raise ConfigError(
            f"model.layers must be less than {blocks}, the blocks of {architecture}, got {layers}"
        )


def make_encoder(config: CndConfig, image_size: int) -> ClipEncoder:
    """The configuration's encoder, frozen; random weights are the same every time.

    Raises
    ------
    ConfigError
        The encoder cannot be made; the text says what is missing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = ClipEncoder(config.architecture, config.weights, config.layers, image_size)
    return encoder.requires_grad_(False).eval()
