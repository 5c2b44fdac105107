"""CND: distillation of CLIP features under a cross-modal normality constraint (CNC, Wang et al., AAAI 2025).

A frozen CLIP gives three levels of an image's features. A decoder learns to give them back from their fusion,
which passes a mixture of experts; learnt prompts hold what it gives to a text of normality. Written from the
paper and a sheet of facts, not from the authors' code. Two modalities are two such streams over one encoder, whose
maps are added: the paper has RGB only.

Symbols: f, f^  encoded and decoded patches of a level; f*  the same after normality promotion; e, e^  their class
tokens; g_n, g_a  text features of the normal and the abnormal prompt, unit norm; tau  temperature; theta  warm-up;
c, w, t  widths of image tokens, text tokens and the joint space; n = side * side  patches.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.config.methods import CndConfig
from iumad.errors import ConfigError
from iumad.features.cache import Batch
from iumad.models.base import Detector, InputSpec, noise_like
from iumad.models.baselines.unimmad import enlarged
from iumad.models.reconstruction import Attention

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


SUFFIXES = ("object", "damaged object")  # of the normal and the abnormal prompt (Eq. 2, 3)
ENCODER = "encoder."  # begins the names of its weights, which are fixed by the configuration


def constraint(
    first: Float[Tensor, "b t"], text: Float[Tensor, "2 t"], temperature: float
) -> Float[Tensor, ""]:
    """-log of the share of g_n in a softmax over (g_n, g_a), mean over the batch; one term of Eq. 4 or 10.

    Parameters
    ----------
    first : class tokens in the joint space, unit norm
    text : g_n, g_a
    temperature : tau
    """
    logits = first.float() @ text.float().T / temperature
    return functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def promoted(
    features: Float[Tensor, "b n c"], joint: Float[Tensor, "b n t"], text: Float[Tensor, "2 t"]
) -> Float[Tensor, "b n c"]:
    """f* = f + lambda Psi, the same number for all channels of a patch (Eq. 5-8).

    Psi = (1 + tanh(alpha - beta)) / 2 in (0, 1), with alpha = f . g_n and beta = f . g_a taken in the joint space;
    lambda = 1 / |f| per patch. Neither lambda nor the text receives a gradient.

    Parameters
    ----------
    features : f or f^
    joint : the same patches in the joint space, unit norm
    text : g_n, g_a
    """
    alpha, beta = (joint @ text.detach().T).unbind(dim=-1)
    psi = 0.5 * (1 + torch.tanh(alpha - beta))
    scale = features.detach().norm(dim=-1).clamp_min(1e-12)
    return features + (psi / scale)[..., None]


def distillation(
    encoded: Float[Tensor, "b n c"], decoded: Float[Tensor, "b n c"]
) -> Float[Tensor, ""]:
    """1 - cosine of the flattened patches of each sample, mean over the batch; one term of Eq. 9."""
    flat = encoded.float().flatten(1), decoded.float().flatten(1)
    return (1 - functional.cosine_similarity(*flat, dim=1)).mean()


class GatedExperts(nn.Module):
    """Every token is the sum of its K best experts' outputs, each times its score.

    Parameters
    ----------
    width : c of the tokens
    experts, active : T and K
    """

    def __init__(self, width: int, experts: int, active: int) -> None:
        super().__init__()
        self.active = active
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(experts)
        )

    def forward(
        self, tokens: Float[Tensor, "r c"]
    ) -> tuple[Float[Tensor, "r c"], Float[Tensor, "r experts"]]:
        """Mixed tokens (Eq. 14) and the router's scores G, which sum to 1 over all experts (Eq. 13).

        The K scores are used as they are, not made to sum to 1. An expert that no token chose runs on none, so
        that it gets a gradient of zero rather than none.
        """
        scores = self.router(tokens).softmax(dim=-1)
        top, chosen = scores.topk(self.active, dim=-1)
        mixed = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            rows, place = (chosen == i).nonzero(as_tuple=True)
            weighted = top[rows, place, None] * expert(tokens[rows])
            mixed = mixed.index_add(0, rows, weighted.to(mixed.dtype))
        return mixed, scores


def importance_loss(scores: Float[Tensor, "r experts"]) -> Float[Tensor, ""]:
    """Squared coefficient of variation of the experts' importance, 0 for uniform use (Eq. 15).

    The importance of an expert is the sum of its scores over the R tokens. As printed, Eq. 15 divides the variance
    of these sums by the squared mean of scores, which differs by the factor R^2; both taken of sums, as in the
    work that it cites, the loss does not depend on R.
    """
    importance = scores.float().sum(dim=0)
    return importance.var(correction=0) / (importance.mean().square() + 1e-10)


class AttentionBlock(nn.Module):
    """A residual attention block as in a vision transformer: norms first, GELU, heads of 64 channels.

    Parameters
    ----------
    width : c, a multiple of 64 or less than 128
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, max(1, width // 64), dropout=0.0)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Float[Tensor, "b tokens c"]) -> Float[Tensor, "b tokens c"]:
        """Self-attention and MLP, each added to its input."""
        query = self.norms[0](x)
        x = x + self.attention(query, query, query)
        return x + self.mlp(self.norms[1](x))


class Stream(nn.Module):
    """What is trained for one modality.

    Parameters
    ----------
    config : CndConfig
    width, text_width : c, w
    """

    def __init__(self, config: CndConfig, width: int, text_width: int) -> None:
        super().__init__()
        levels = len(config.layers)
        shape = (levels, len(SUFFIXES), config.prompt_length, text_width)
        self.prompts = nn.Parameter(0.02 * torch.randn(shape))
        self.fusion = nn.Sequential(nn.Linear(levels * width, width), nn.Dropout(config.dropout))
        self.experts = GatedExperts(width, config.experts, config.active)
        self.decoder = nn.ModuleList(AttentionBlock(width) for _ in range(levels))

    def forward(
        self, levels: list[Float[Tensor, "b tokens c"]]
    ) -> tuple[list[Float[Tensor, "b tokens c"]], Float[Tensor, "r experts"]]:
        """Decoded levels in the order of the encoded ones, and the router's scores of all tokens (Eq. 12-14).

        The decoder goes from the deepest level to the first, as reverse distillation does.
        """
        x = self.fusion(torch.cat(levels, dim=-1))
        mixed, scores = self.experts(x.flatten(0, 1))
        x = mixed.unflatten(0, x.shape[:2])
        decoded = []
        for block in self.decoder:
            x = block(x)
            decoded.append(x)
        return decoded[::-1], scores


@dataclass(frozen=True)
class Distilled:
    """One modality of a batch; lists have an entry per level.

    Attributes
    ----------
    encoded, decoded : f* and f^*
    first, first_decoded : e and e^, class tokens in the joint space, unit norm
    text : g_n and g_a, unit norm
    scores : of the router
    """

    encoded: list[Float[Tensor, "b n c"]]
    decoded: list[Float[Tensor, "b n c"]]
    first: list[Float[Tensor, "b t"]]
    first_decoded: list[Float[Tensor, "b t"]]
    text: Float[Tensor, "levels 2 t"]
    scores: Float[Tensor, "r experts"]


class Cnd(Detector):
    """The detector; increments are plain fine-tuning, the method has nothing for them.

    Parameters
    ----------
    config, spec : see `Detector`; of the study's features only the grid is used, for residual maps
    n_categories : not used, the prompts are the same for all categories

    Raises
    ------
    ConfigError
        The encoder cannot be made.
    """

    reads_features = False

    def __init__(self, config: CndConfig, spec: InputSpec, n_categories: int) -> None:
        super().__init__(config, spec, n_categories, standardise=False)
        self.constrained = config.warm_up == 0
        self.encoder = make_encoder(config, spec.image_size)
        widths = (self.encoder.width, self.encoder.text_width)
        self.streams = nn.ModuleDict({m: Stream(config, *widths) for m in spec.modalities})
        self.register_state_dict_post_hook(_leave_out_encoder)
        self.register_load_state_dict_pre_hook(_keep_encoder)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Constrain decoded features from epoch theta on (Eq. 11)."""
        self.constrained = epoch >= self.config.warm_up

    def train(self, mode: bool = True) -> "Cnd":
        """The encoder always stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def text_features(self, stream: Stream) -> Float[Tensor, "levels 2 t"]:
        """g_n and g_a of every level, unit norm; gradients pass the frozen text encoder to the prompts."""
        sides = [self.encoder.text(stream.prompts[:, i], s) for i, s in enumerate(SUFFIXES)]
        return functional.normalize(torch.stack(sides, dim=1), dim=-1)

    def distil(
        self, batch: Batch, modality: str, generator: torch.Generator | None = None
    ) -> Distilled:
        """Encode, decode and promote one modality; in training mode what is decoded is noisy."""
        stream = self.streams[modality]
        assert isinstance(stream, Stream)
        with torch.no_grad():
            levels = self.encoder.image_levels(batch.images[modality])
        noisy = levels
        if self.training and self.config.noise:
            noisy = [
                x
                + self.config.noise
                * x.square().mean(dim=-1, keepdim=True).sqrt()
                * noise_like(x, generator)
                for x in levels
            ]
        decoded, scores = stream(noisy)
        text = self.text_features(stream)
        joint = [functional.normalize(self.encoder.project(x), dim=-1) for x in levels]
        joint_decoded = [functional.normalize(self.encoder.project(x), dim=-1) for x in decoded]
        return Distilled(
            [promoted(*x) for x in _patches(levels, joint, text)],
            [promoted(*x) for x in _patches(decoded, joint_decoded, text)],
            [x[:, 0] for x in joint],
            [x[:, 0] for x in joint_decoded],
            text,
            scores,
        )

    def losses(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,
        base: bool = False,
    ) -> dict[str, Float[Tensor, ""]]:
        """Terms of Eq. 16 per modality, each the sum over levels: `distill`, `constraint` and `moe`."""
        config, terms = self.config, {}
        for modality in self.modalities:
            x = self.distil(batch, modality, generator)
            pairs = zip(x.encoded, x.decoded, strict=True)
            terms[f"distill_{modality}"] = _sum(distillation(*pair) for pair in pairs)
            terms[f"constraint_{modality}"] = _sum(
                constraint(first, text, config.temperature)
                for first, text in zip(x.first, x.text, strict=True)
            )
            if self.constrained:
                terms[f"constraint_decoded_{modality}"] = config.gamma * _sum(
                    constraint(first, text, config.temperature)
                    for first, text in zip(x.first_decoded, x.text.detach(), strict=True)
                )
            terms[f"moe_{modality}"] = config.lambda_moe * importance_loss(x.scores)
        return terms

    def _patch_map(self, batch: Batch, modality: str) -> Float[Tensor, "b side side"]:
        """Sum over levels of 1 - cosine of f* and f^* at every patch (Eq. 17)."""
        x = self.distil(batch, modality)
        levels = [
            1 - functional.cosine_similarity(f.float(), d.float(), dim=-1)
            for f, d in zip(x.encoded, x.decoded, strict=True)
        ]
        return torch.stack(levels).sum(dim=0).unflatten(1, (self.encoder.side,) * 2)

    @torch.no_grad()
    def residual_maps(self, batch: Batch) -> dict[str, Float[Tensor, "b g g"]]:
        """Eq. 17 on the grid, per modality."""
        return {m: enlarged(self._patch_map(batch, m), self.grid) for m in self.modalities}

    @torch.no_grad()
    def anomaly_maps(self, batch: Batch) -> Float[Tensor, "b size size"]:
        """Eq. 17 at image size, summed over modalities."""
        maps = [self._patch_map(batch, modality) for modality in self.modalities]
        return enlarged(torch.stack(maps).sum(dim=0), self.image_size)


def _patches(levels: list[Tensor], joint: list[Tensor], text: Tensor) -> Any:
    """Per level the patches, without class token, in both spaces, and the level's text features."""
    return zip((x[:, 1:] for x in levels), (x[:, 1:] for x in joint), text, strict=True)


def _sum(terms: Any) -> Float[Tensor, ""]:
    return torch.stack(list(terms)).sum()


def _leave_out_encoder(_module: nn.Module, state: dict[str, Any], prefix: str, _meta: Any) -> None:
    """Checkpoints do not repeat the encoder's weights, gigabytes that are the same after every step."""
    for key in [key for key in state if key.startswith(prefix + ENCODER)]:
        del state[key]


def _keep_encoder(module: nn.Module, state: dict[str, Any], prefix: str, *_others: Any) -> None:
    """Loading a checkpoint leaves the encoder as it is."""
    assert isinstance(module, Cnd)
    own = module.encoder.state_dict()  # not all buffers: CLIP's attention mask is in no state
    state.update({prefix + ENCODER + k: v for k, v in own.items()})
