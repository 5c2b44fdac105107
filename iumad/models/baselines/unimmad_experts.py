"""Experts of UniMMAD: leaders over shared base kernels, run as one grouped dynamic convolution (its section 3.3).

Symbols: e  width; k  kernel size; N  base experts W; J  MoE-leaders, each a mixture S of the bases; K  leaders
active per item; g  condition of an item, from its general features and the prior of one modality.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with the largest of 32, 16, 8, 4, 2, 1 groups that divides the channels."""
    return nn.GroupNorm(
        next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0), channels
    )


def conv_norm_relu(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, group norm, ReLU; an even kernel is not padded."""
    padding = kernel // 2 if kernel % 2 else 0
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    return nn.Sequential(conv, group_norm(outputs), nn.ReLU())


def grouped_dynamic_convolution(
    value: Float[Tensor, "b e h w"], kernels: Float[Tensor, "b experts o e k k"]
) -> Float[Tensor, "b experts o h w"]:
    """Every item's own kernels over its value, all in one call ("grouped dynamic filtering", section 3.3).

    The value is repeated per expert and folded with the batch into channels; each (item, expert) is one group.
    """
    b, experts, outputs, _, k, _ = kernels.shape
    folded = value[:, None].expand(-1, experts, -1, -1, -1).reshape(1, -1, *value.shape[-2:])
    filtered = functional.conv2d(folded, kernels.flatten(0, 2), padding=k // 2, groups=b * experts)
    return filtered.view(b, experts, outputs, *value.shape[-2:])


class ExpertBranch(nn.Module):
    """All experts of one kernel size: one fixed, J routed leaders that share N bases (Fig. 4, Eq. 2).

    Parameters
    ----------
    width : e, channels of value and output
    kernel : k, odd
    leaders, bases, active : J, N, K
    """

    def __init__(self, width: int, kernel: int, leaders: int, bases: int, active: int) -> None:
        super().__init__()
        self.kernel, self.active = kernel, active
        self.value = conv_norm_relu(width, width)
        self.gate = nn.Linear(width, leaders)
        self.bases = nn.Parameter(0.05 * torch.randn(bases, width, width, kernel, kernel))
        self.leaders = nn.Parameter(0.02 * torch.randn(leaders, bases, width))
        identity = torch.zeros(width, width, kernel, kernel)
        identity[range(width), range(width), kernel // 2, kernel // 2] = 1.0
        self.fixed = nn.Parameter(identity)
        self.join = conv_norm_relu(2 * width, width)

    def route(
        self, condition: Float[Tensor, "items e"]
    ) -> tuple[
        Float[Tensor, "items j"], Int[Tensor, "items active"], Float[Tensor, "items active"]
    ]:
        """Gate logits, the K leaders that each item chooses, and their scores, which sum to 1."""
        logits = self.gate(condition)
        top, chosen = logits.topk(self.active, dim=-1)
        return logits, chosen, top.softmax(dim=-1)

    def routed_kernels(
        self, chosen: Int[Tensor, "items active"], scores: Float[Tensor, "items active"]
    ) -> Float[Tensor, "items e e k k"]:
        """Per item, the kernels of its K leaders summed with their scores.

        A leader's kernel is S, softmaxed over the bases for every output channel, times W (Eq. 2). A convolution
        is linear in its kernel, and a kernel in S: adding the mixtures first gives the output of K convolutions
        and a weighted sum of them.
        """
        mixture = self.leaders[chosen].softmax(dim=2)
        mixture = (scores[:, :, None, None] * mixture).sum(dim=1)
        return torch.einsum("bno,noikl->boikl", mixture, self.bases)

    def forward(
        self, key: Float[Tensor, "b e h w"], condition: Float[Tensor, "items e"]
    ) -> tuple[Float[Tensor, "items e h w"], Float[Tensor, "items j"]]:
        """Filter the value of every item by the fixed and by its routed experts.

        Parameters
        ----------
        key : of the general features, one per sample
        condition : g, one per item: all samples with the first modality, then with the next

        Returns
        -------
        output, gate logits
        """
        logits, chosen, scores = self.route(condition)
        routed = self.routed_kernels(chosen, scores)
        kernels = torch.stack([self.fixed.expand_as(routed), routed], dim=1)
        value = self.value(key).repeat(len(condition) // len(key), 1, 1, 1)
        filtered = grouped_dynamic_convolution(value, kernels)
        return self.join(filtered.flatten(1, 2)), logits


class ConditionRouter(nn.Module):
    """The condition g of every item: pooled, so that no place of the prior reaches the output (section 3.3).

    Parameters
    ----------
    channels, width : C of general features and priors, e
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.key = conv_norm_relu(channels, width)
        self.query = conv_norm_relu(channels, width)
        self.mix = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
            group_norm(width),
            nn.ReLU(),
            conv_norm_relu(width, width),
        )

    def forward(
        self, general: Float[Tensor, "b c h w"], priors: Float[Tensor, "items c h w"]
    ) -> tuple[Float[Tensor, "b e h w"], Float[Tensor, "items e"]]:
        """Key of the general features, and g = mean over places of a mix of key and query."""
        key = self.key(general)
        keys = key.repeat(len(priors) // len(key), 1, 1, 1)
        mixed = self.mix(torch.cat([keys, self.query(priors)], dim=1))
        return key, mixed.mean(dim=(2, 3))


class CrossMixture(nn.Module):
    """C-MoE of one level: general features and a prior in, that modality's features out (Fig. 4).

    Parameters
    ----------
    channels : C of general features, priors and output
    width, leaders, bases, active : e, J, N, K
    kernels : kernel sizes, one branch each
    signed : whether the output may be negative, as linear features are; the paper's priors pass a ReLU
    """

    def __init__(
        self,
        channels: int,
        width: int,
        leaders: int,
        bases: int,
        active: int,
        kernels: tuple[int, ...],
        signed: bool,
    ) -> None:
        super().__init__()
        self.router = ConditionRouter(channels, width)
        made = [ExpertBranch(width, kernel, leaders, bases, active) for kernel in kernels]
        self.branches = nn.ModuleList(made)
        inputs = width * len(kernels)
        self.aggregation = (
            nn.Sequential(nn.Conv2d(inputs, channels, 1))
            if signed
            else conv_norm_relu(inputs, channels)
        )

    def forward(
        self, general: Float[Tensor, "b c h w"], priors: Float[Tensor, "items c h w"]
    ) -> tuple[Float[Tensor, "items c h w"], Float[Tensor, "branches items j"]]:
        """Decompressed features p of every item, and the gates' logits."""
        key, condition = self.router(general, priors)
        outputs, logits = zip(*(branch(key, condition) for branch in self.branches), strict=True)
        return self.aggregation(torch.cat(outputs, dim=1)), torch.stack(logits)

    def adaptable(self) -> list[nn.Module | nn.Parameter]:
        """What goes on learning in an increment: leaders, router with its gates, aggregation (section 4.5)."""
        parts: list[nn.Module | nn.Parameter] = [self.router, self.aggregation]
        for branch in self.branches:
            assert isinstance(branch, ExpertBranch)
            parts += [branch.leaders, branch.gate]
        return parts
