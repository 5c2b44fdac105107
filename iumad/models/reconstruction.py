"""Multimodal reconstruction network: one object-aware transformer per modality (paper: MRN; UniAD, IUF).

Tokens are batch first, b x n x d with n = g x g. All layers are post-norm.

Symbols: src  projected features; pos  learned 2-D position; X^i  output i of the condition network;
f^rec_i  normalised output of decoder layer i.

Dropout whose random numbers are cheap on a CPU, and attention with it.

torch draws one number per element for a mask, one after the other, which takes longer than the matrix products
around it, and its attention kernels for the CPU know no dropout. Here a draw of 64 bits decides four elements.
The probability is rounded to a multiple of 2^-16 and the kept elements are scaled by that. On other devices
torch's own functions are used.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.errors import ConfigError

LEVELS = 1 << 16  # of a 16-bit number


class Dropout(nn.Module):
    """`torch.nn.Dropout` with the random numbers of this module.

    Parameters
    ----------
    probability : float in [0, 1)
        0 draws nothing.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Zero each element with the probability in training mode, scale the others."""
        if not self.training or not self.probability:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.probability)
        return x * kept(x.shape, self.probability) / keep_rate(self.probability)


def attention_with_dropout(
    query: Float[Tensor, "b heads n e"],
    key: Float[Tensor, "b heads m e"],
    value: Float[Tensor, "b heads m e"],
    mask: Float[Tensor, "n m"] | None,
    probability: float,
) -> Float[Tensor, "b heads n e"]:
    """Scaled dot-product attention with dropout on its weights; `mask` is added to the scores."""
    if query.device.type != "cpu":
        return functional.scaled_dot_product_attention(query, key, value, mask, probability)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    dropped = weights * kept(weights.shape, probability)
    return dropped.to(value.dtype) @ (value / keep_rate(probability))


def kept(shape: torch.Size, probability: float) -> Bool[Tensor, "..."]:
    """Which elements stay, drawn from torch's default generator."""
    count = shape.numel()
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    threshold = round(probability * LEVELS) - LEVELS // 2
    return (numbers.view(torch.int16)[:count] >= threshold).view(shape)


def keep_rate(probability: float) -> float:
    """Probability with which an element stays."""
    return 1 - round(probability * LEVELS) / LEVELS


class Attention(nn.Module):
    """Multi-head attention with a fused kernel; dropout on the attention weights."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(
        self,
        query: Float[Tensor, "#b n d"],
        key: Float[Tensor, "b m d"],
        value: Float[Tensor, "b m d"],
        mask: Float[Tensor, "n m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Scaled dot-product attention; `mask` is added to the scores (-inf hides a token).

        A query that all of a batch share may come once; it is projected once.
        """
        q, k, v = (self._split(x) for x in (self.query(query), self.key(key), self.value(value)))
        q = q.expand(len(k), -1, -1, -1)
        if self.training and self.dropout:
            mixed = attention_with_dropout(q, k, v, mask, self.dropout)
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def weights(
        self,
        query: Float[Tensor, "b n d"],
        key: Float[Tensor, "b m d"],
        mask: Float[Tensor, "n m"] | None = None,
    ) -> Float[Tensor, "b heads n m"]:
        """How much every token reads of every other; rows sum to 1."""
        q, k = self._split(self.query(query)), self._split(self.key(key))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return (scores if mask is None else scores + mask).softmax(dim=-1)

    def _split(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b heads n e"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Linear, ReLU, dropout, Linear; the second linear is what IUF's projection protects."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(dim, 4 * dim), nn.ReLU(), Dropout(dropout), nn.Linear(4 * dim, dim)
        )


class EncoderLayer(nn.Module):
    """Self-attention whose queries are gated by the condition, then FFN (IUF: object-aware self-attention)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, dropout)
        self.ffn = FeedForward(dim, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.dropout = Dropout(dropout)

    def forward(
        self,
        src: Float[Tensor, "b n d"],
        pos: Float[Tensor, "n d"],
        condition: Float[Tensor, "b n d"] | None,
        mask: Float[Tensor, "n n"] | None,
    ) -> Float[Tensor, "b n d"]:
        """Query (src + pos) * X^i, key src + pos, value src."""
        query, key = self.query_and_key(src, pos, condition)
        src = self.norms[0](src + self.dropout(self.attention(query, key, src, mask)))
        return self.norms[1](src + self.dropout(self.ffn(src)))

    @staticmethod
    def query_and_key(
        src: Float[Tensor, "b n d"],
        pos: Float[Tensor, "n d"],
        condition: Float[Tensor, "b n d"] | None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """What asks and what is asked, before their projections."""
        key = src + pos
        return key if condition is None else key * condition, key

    @torch.no_grad()
    def attention_entropy(
        self,
        src: Float[Tensor, "b n d"],
        pos: Float[Tensor, "n d"],
        condition: Float[Tensor, "b n d"] | None,
        mask: Float[Tensor, "n n"] | None,
    ) -> float:
        """Mean entropy of the attention's rows in units of ln n: 0 one token is read, 1 all alike."""
        weights = self.attention.weights(*self.query_and_key(src, pos, condition), mask)
        return float(torch.special.entr(weights).sum(dim=-1).mean() / math.log(weights.shape[-1]))


class DecoderLayer(nn.Module):
    """A learned query per layer reads the memory, then the previous layer's output (UniAD)."""

    def __init__(self, dim: int, heads: int, tokens: int, dropout: float) -> None:
        super().__init__()
        self.learned = nn.Parameter(torch.empty(tokens, dim).normal_())
        self.read_memory = Attention(dim, heads, dropout)
        self.read_previous = Attention(dim, heads, dropout)
        self.ffn = FeedForward(dim, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self,
        previous: Float[Tensor, "b n d"],
        memory: Float[Tensor, "b n d"],
        pos: Float[Tensor, "n d"],
        mask: Float[Tensor, "n n"] | None,
    ) -> Float[Tensor, "b n d"]:
        """Learned query -> memory -> previous output -> FFN."""
        read = self.read_memory((self.learned + pos)[None], memory + pos, memory, mask)
        target = self.norms[0](self.learned + self.dropout(read))
        read = self.read_previous(target + pos, previous + pos, previous, mask)
        target = self.norms[1](target + self.dropout(read))
        return self.norms[2](target + self.dropout(self.ffn(target)))


class ReconstructionNetwork(nn.Module):
    """Encoder and layer-wise query decoder of one modality.

    Parameters
    ----------
    dim, heads, layers : int
        Width d, attention heads, number of encoder and of decoder layers.
    grid : int
        g; tokens n = g * g.
    dropout : float
        In attention, FFN and residual branches; 0 allows fused attention kernels.
    neighbour_mask : int, optional
        Odd side of the window around each token that attention may not read (UniAD); None: all may be read.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        layers: int,
        grid: int,
        dropout: float = 0.0,
        neighbour_mask: int | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.row = nn.Parameter(torch.empty(grid, dim // 2).uniform_())
        self.column = nn.Parameter(torch.empty(grid, dim // 2).uniform_())
        self.encoder = nn.ModuleList(EncoderLayer(dim, heads, dropout) for _ in range(layers))
        self.decoder = nn.ModuleList(
            DecoderLayer(dim, heads, grid * grid, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        mask = None if neighbour_mask is None else hide_neighbours(grid, neighbour_mask)
        self.register_buffer("mask", mask, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    @property
    def position(self) -> Float[Tensor, "n d"]:
        """Learned row and column embeddings, side by side."""
        rows = self.row[:, None].expand(-1, self.grid, -1)
        columns = self.column[None].expand(self.grid, -1, -1)
        return torch.cat([columns, rows], dim=-1).flatten(0, 1)

    def forward(
        self, src: Float[Tensor, "b n d"], conditions: list[Float[Tensor, "b n d"]] | None = None
    ) -> list[Float[Tensor, "b n d"]]:
        """Reconstructions f^rec_1 ... f^rec_L, one per decoder layer.

        Parameters
        ----------
        src : projected, jittered features
        conditions : outputs X^1 ... X^L of the condition network, one per encoder layer; None: no gate
        """
        pos = self.position
        memory = src
        for i, encode in enumerate(self.encoder):
            memory = encode(memory, pos, None if conditions is None else conditions[i], self.mask)
        outputs, previous = [], memory
        for decode in self.decoder:
            previous = decode(previous, memory, pos, self.mask)
            outputs.append(self.norm(previous))
        return outputs


def hide_neighbours(grid: int, window: int) -> Float[Tensor, "n n"]:
    """Scores to add so that no token reads the `window` x `window` tokens around itself: -inf there, else 0.

    Raises
    ------
    ConfigError
        Around some token the window covers the whole grid, so that nothing is left to read.
    """
    if window // 2 >= grid // 2:  # the farthest token from the middle is half a grid away
        raise ConfigError(
            f"neighbour_mask {window} hides every token of a grid of {grid}; at most {grid - 1} fits"
        )
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    row, column = row.flatten(), column.flatten()
    near = ((row[:, None] - row).abs() <= window // 2) & (
        (column[:, None] - column).abs() <= window // 2
    )
    return torch.zeros(grid**2, grid**2).masked_fill(near, float("-inf"))


def half_window(grid: int) -> int | None:
    """Side of the largest odd window up to half a grid, such as UniAD's 7 of 14; None where that is nothing."""
    half = grid // 2
    return half - (half + 1) % 2 if half else None


def jitter(
    features: Float[Tensor, "b n c"],
    scale: float,
    probability: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b n c"]:
    """Feature jitter: t + s (|t| / C) eps with eps ~ N(0, 1), for the whole batch with the given probability.

    |t| is the channel norm of a token and C its number of channels (UniAD, section 3; here per forward call).
    """
    chosen = torch.rand((), generator=generator, device=features.device) < probability
    norm = features.norm(dim=-1, keepdim=True) / features.shape[-1]
    if features.device.type != "cpu":
        norm = norm * chosen  # to ask for the number would make the processor wait for the device
    elif probability < 1 and not chosen:
        return features
    noise = torch.randn(
        features.shape, generator=generator, dtype=features.dtype, device=features.device
    )
    return features + scale * norm * noise
