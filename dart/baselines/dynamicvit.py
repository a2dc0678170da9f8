"""DynamicViT (Rao et al., arXiv 2106.02034): small predictors learn which tokens may go.

In training tokens are only masked: each stage draws keep or drop by Gumbel softmax, dropped tokens are no keys but for
themselves, and a loss holds the share that is kept to the one that is planned, per image (eq. 13). In evaluation the
planned number of the best is kept, so every image costs the same. Two things are ours: there is no teacher, and so no
distillation, since the models it is compared with have none; and where the model pools the mean of its tokens, it is
the mean of those that are kept. What is drawn follows torch's generator, one draw for the images of a pass: in other
pieces, or on other ranks, a batch draws other noise.

# B batch, h heads, n patch tokens, L with p class and register tokens, D embedding
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart.baselines.evit import renumber
from dart.baselines.reducer import Reducer
from dart.baselines.schedule import plan_stages
from dart.baselines.stream import Heads, Stream, add_attention, add_mlp, finish, pick, project, split

MAX_EXCESS = 20.0  # by which a dropped token's logit may exceed the largest kept one: e^20 does not overflow


class Predictor(nn.Module):
    """How much each token is to be kept, from itself and from the mean of those still there.

    Args:
        embed_dim: D, a multiple of 4.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        if embed_dim % 4:
            rule = "must be a multiple of 4, by which dynamicvit's predictors divide it"
            raise ValueError(f"embed_dim = {embed_dim}: {rule}; try {4 * (embed_dim // 4 + 1)}")
        self.embed = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, embed_dim), nn.GELU())
        self.judge = nn.Sequential(
            nn.Linear(embed_dim, embed_dim // 2), nn.GELU(),
            nn.Linear(embed_dim // 2, embed_dim // 4), nn.GELU(),
            nn.Linear(embed_dim // 4, 2),
        )  # fmt: skip

    def forward(self, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
        """Tokens (B, n, D), and 1 for each that is still there (B, n) -> logits (B, n, 2) of keep and drop."""
        own, shared = self.embed(tokens).chunk(2, -1)
        if kept is None:
            mean = shared.mean(1, keepdim=True)
        else:
            mean = (shared * kept[..., None]).sum(1, keepdim=True) / kept.sum(1)[:, None, None].clamp_min(1)
        return self.judge(torch.cat([own, mean.to(own.dtype).expand_as(own)], -1))


class LearnedPruning(Reducer):
    """DynamicViT.

    Args:
        embed_dim: D.
        ratio_weight: Of the loss on the shares that are kept; 2 in the paper.
        others: See `Reducer`; with `keep` 1 there are no predictors.
    """

    name = "dynamicvit"

    def __init__(
        self, keep: float, depth: int, num_prefix_tokens: int, class_token: bool, *, embed_dim: int, ratio_weight: float
    ) -> None:
        super().__init__(keep, depth, num_prefix_tokens, class_token)
        if ratio_weight < 0:
            raise ValueError(f"reducer.ratio_weight = {ratio_weight!r}: must be at least 0; 2 in the paper")
        self.ratio_weight = ratio_weight
        self.stages = plan_stages(self.name, depth) if keep < 1 else ()
        self.predictors = nn.ModuleList(Predictor(embed_dim) for _ in self.stages)

    def step(self, index: int, block: Any, stream: Stream, count: int) -> Stream:
        """See `Reducer.step`."""
        if index in self.stages:
            stage = self.stages.index(index)
            stream = self.draw(stage, stream) if self.training else self.choose(stage, stream, count)
        if stream.weights is None:
            return self.plain(block, stream)
        kept = F.pad(stream.weights, (self.num_prefix_tokens, 0), value=1.0)
        heads = project(block.attn, block.norm1(stream.tokens))
        mixed = finish(block.attn, block.attn.attn_drop(masked_attention(block.attn, heads, kept)) @ heads.values)
        return stream._replace(tokens=add_mlp(block, add_attention(block, stream.tokens, mixed)))

    def draw(self, stage: int, stream: Stream) -> Stream:
        """Training: mask what a stage drops; gradients reach its predictor as if the mask were soft."""
        patches = split(stream.tokens, self.num_prefix_tokens)[1]
        logits = self.predictors[stage](patches, stream.weights)
        kept = F.gumbel_softmax(logits.float(), hard=True)[..., 0]
        if stream.weights is not None:
            kept = kept * stream.weights
        planned = self.keep ** ((stage + 1) / len(self.stages))
        loss = self.ratio_weight * (planned - kept.mean(1)).square().mean() / len(self.stages)
        return stream._replace(weights=kept, auxiliary=loss if stream.auxiliary is None else stream.auxiliary + loss)

    def choose(self, stage: int, stream: Stream, count: int) -> Stream:
        """Evaluation: the `count` tokens that are most to be kept go on, in their order."""
        special, patches = split(stream.tokens, self.num_prefix_tokens)
        if count == patches.shape[1]:
            return stream
        logits = self.predictors[stage](patches)
        kept = (logits[..., 0] - logits[..., 1]).topk(count).indices.sort().values
        places = stream.moved(renumber(kept, patches.shape[1]), count)
        return stream._replace(tokens=torch.cat([special, pick(patches, kept)], 1), places=places)


def masked_attention(attn: Any, heads: Heads, kept: Tensor) -> Tensor:
    """Attention weights (B, h, L, L) in which a dropped token is a key to itself alone (eqs. 11 and 12).

    Args:
        kept: (B, L), 1 or 0. The gradient of what it masks is there, and finite: no logarithm is taken.
    """
    logits = ((heads.queries * attn.scale) @ heads.keys.transpose(-2, -1)).float()
    itself = torch.eye(kept.shape[1], device=kept.device, dtype=kept.dtype)
    allowed = kept[:, None] * (1 - itself) + itself  # (B, L, L), keys along the last
    top = logits.detach().masked_fill(allowed[:, None] == 0, -torch.inf).amax(-1, keepdim=True)
    weights = (logits - top).clamp(max=MAX_EXCESS).exp() * allowed[:, None]
    return (weights / weights.sum(-1, keepdim=True)).to(heads.values.dtype)
