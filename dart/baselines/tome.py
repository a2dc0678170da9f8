"""Token merging, ToMe (Bolya et al., arXiv 2210.09461): in every block, the most similar pairs become one token each.

It has no parameters. Ours is the paper's: similarity of keys, bipartite soft matching, means weighted by size, and
proportional attention (eq. 1). Where the model pools the mean of its tokens, merged ones count as many as they are.

# B batch, n patch tokens, r of them to go, d features of a key, D embedding, p class and register tokens
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dart.baselines.reducer import Reducer
from dart.baselines.stream import Stream, add_attention, add_mlp, log_bias, mix, project, split


class Merged(NamedTuple):
    """tokens (B, n - r, D), and of how many they are the mean: sizes (B, n - r) float32."""

    tokens: Tensor
    sizes: Tensor


class TokenMerging(Reducer):
    """ToMe with a constant number of merges per block, between attention and MLP."""

    name = "tome"

    def step(self, index: int, block: Any, stream: Stream, count: int) -> Stream:
        """See `Reducer.step`."""
        prefix = self.num_prefix_tokens
        num_tokens = stream.tokens.shape[1] - prefix
        if count == num_tokens:
            return self.plain(block, stream)
        heads = project(block.attn, block.norm1(stream.tokens))
        mixed = mix(block.attn, heads, log_bias(stream.weights, prefix))
        special, patches = split(add_attention(block, stream.tokens, mixed), prefix)
        mapping = match(heads.keys.mean(1)[:, prefix:], num_tokens - count)
        merged = merge(patches, stream.weights, mapping, count)
        tokens = add_mlp(block, torch.cat([special, merged.tokens], 1))
        return stream._replace(tokens=tokens, weights=merged.sizes, places=stream.moved(mapping, count))


@torch.no_grad()
def match(metric: Tensor, num_gone: int) -> Tensor:
    """Bipartite soft matching: every second token looks for its most similar partner among the others.

    The r best pairs are merged; of several that choose the same partner all join it.

    Args:
        metric: (B, n, d), compared by their cosine; n is at least 2.
        num_gone: r, at most half of n.

    Returns:
        (B, n), the place of each token among the n - r that are left: first those that looked and were not merged,
        then those that were looked at, both in their order.
    """
    metric = F.normalize(metric.float(), dim=-1)
    best, partner = (metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)).max(-1)  # (B, n / 2), rounded up
    chosen = best.argsort(dim=1, descending=True, stable=True)[:, :num_gone]
    gone = torch.zeros_like(best, dtype=torch.bool).scatter(1, chosen, True)
    num_first = best.shape[1] - num_gone
    mapping = torch.arange(metric.shape[1], device=metric.device).repeat(len(metric), 1)
    mapping[:, ::2] = torch.where(gone, num_first + partner, (~gone).long().cumsum(1) - 1)
    mapping[:, 1::2] = num_first + torch.arange(metric.shape[1] // 2, device=metric.device)
    return mapping


def merge(tokens: Tensor, sizes: Tensor | None, mapping: Tensor, num_left: int) -> Merged:
    """Tokens (B, n, D) that go to the same place become their mean, weighted by sizes (B, n); None: 1 each."""
    weights = torch.ones_like(mapping, dtype=torch.float32) if sizes is None else sizes
    total = weights.new_zeros(len(tokens), num_left).scatter_add(1, mapping, weights)
    weighted = tokens * weights[..., None]  # float32 at least: sums of many
    places = mapping[..., None].expand_as(weighted)
    summed = weighted.new_zeros(len(tokens), num_left, tokens.shape[-1]).scatter_add(1, places, weighted)
    return Merged((summed / total[..., None]).to(tokens.dtype), total)
