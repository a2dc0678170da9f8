"""EViT (Liang et al., arXiv 2202.07800): the tokens that the class token attends to least are left out, or fused.

It has no parameters. Two things are ours. A model without a class token has no class attention; there it is the mean
attention that a token receives (`dart.baselines.stream.received`). And the fused token is the mean of the tokens it
stands for, weighted by attention; the authors' code adds them up with weights whose sum is not 1, so that the token
shrinks with the attention that is left. The fused token is one of the `count` that a stage leaves.

# B batch, n patch tokens, k of them kept, D embedding, p class and register tokens
"""

from typing import Any

import torch
from torch import Tensor

from dart.baselines.reducer import Reducer
from dart.baselines.schedule import plan_stages
from dart.baselines.stream import (
    Stream,
    add_attention,
    add_mlp,
    attention_weights,
    finish,
    pick,
    project,
    received,
    split,
)


class AttentivePruning(Reducer):
    """EViT.

    Args:
        fuse: Whether those left out become one token together.
        others: See `Reducer`.
    """

    name = "evit"

    def __init__(self, keep: float, depth: int, num_prefix_tokens: int, class_token: bool, *, fuse: bool) -> None:
        super().__init__(keep, depth, num_prefix_tokens, class_token)
        self.fuse = fuse
        self.stages = plan_stages(self.name, depth)

    def step(self, index: int, block: Any, stream: Stream, count: int) -> Stream:
        """See `Reducer.step`."""
        prefix = self.num_prefix_tokens
        if index not in self.stages or count == stream.tokens.shape[1] - prefix:
            return self.plain(block, stream)
        heads = project(block.attn, block.norm1(stream.tokens))
        weights = attention_weights(block.attn, heads)
        mixed = finish(block.attn, block.attn.attn_drop(weights) @ heads.values)
        special, patches = split(add_attention(block, stream.tokens, mixed), prefix)
        scores = received(weights, prefix, self.class_token).mean(1)  # (B, n)
        kept = scores.topk(count - self.fuse).indices.sort().values  # in their order
        left = [pick(patches, kept), *([fuse_others(patches, scores, kept)] if self.fuse else [])]
        tokens = add_mlp(block, torch.cat([special, *left], 1))
        return stream._replace(tokens=tokens, places=stream.moved(renumber(kept, scores.shape[1]), count))


def fuse_others(tokens: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
    """The mean of the tokens (B, n, D) that are not among `kept` (B, k), weighted by scores (B, n) > 0: (B, 1, D)."""
    weights = scores.scatter(1, kept, 0.0)
    weights = weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return weights[:, None] @ tokens


def renumber(kept: Tensor, num_tokens: int) -> Tensor:
    """(B, n): the places in 0 ... k - 1 of the tokens whose indices are `kept` (B, k); k for all others."""
    num_kept = kept.shape[1]
    order = torch.arange(num_kept, device=kept.device).expand_as(kept)
    return kept.new_full((len(kept), num_tokens), num_kept).scatter(1, kept, order)
