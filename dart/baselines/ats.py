"""Adaptive token sampling, ATS (Fayyaz et al., arXiv 2111.15667): tokens are sampled in proportion to significance.

It has no parameters. Significance is the attention of the class token times the length of the value; a model without a
class token takes the mean attention that a token receives (`dart.baselines.stream.received`). The distribution is
inverted at evenly spaced points, so a token that holds more than a share of 1 / k is always there, and where several
points meet the same token it is taken once: an image with few significant tokens keeps fewer than k. Here a batch
keeps k places whatever its images are, of which those left over are empty: nobody attends to them and they are not
pooled. The count of operations is that of k places, the most that an image may take; it does not vary with data.

It is not the authors' code to the letter. Theirs sorts tokens by significance before it sums them up, takes for each
point the token whose cumulative value is nearest, and weighs the attention summed over heads by the length of the whole
value. Here the sum runs in the tokens' own order, a point takes the token into whose share of the sum it falls, and
each head's attention is weighed by the length of that head's value. Both sample in proportion to significance.

# B batch, h heads, n patch tokens, k points, D embedding, p class and register tokens
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dart.baselines.reducer import Reducer
from dart.baselines.schedule import plan_stages
from dart.baselines.stream import (
    Stream,
    add_attention,
    add_mlp,
    attention_weights,
    finish,
    log_bias,
    pick,
    project,
    received,
)


class Sampled(NamedTuple):
    """indices (B, k) of tokens, not decreasing; fresh (B, k), false where the same token is there already."""

    indices: Tensor
    fresh: Tensor


class TokenSampling(Reducer):
    """ATS: only the sampled tokens ask, all answer, in the block that samples."""

    name = "ats"

    def __init__(self, keep: float, depth: int, num_prefix_tokens: int, class_token: bool) -> None:
        super().__init__(keep, depth, num_prefix_tokens, class_token)
        self.stages = plan_stages(self.name, depth)

    def step(self, index: int, block: Any, stream: Stream, count: int) -> Stream:
        """See `Reducer.step`."""
        prefix = self.num_prefix_tokens
        num_tokens = stream.tokens.shape[1] - prefix
        if index not in self.stages or count == num_tokens:
            return self.plain(block, stream)
        heads = project(block.attn, block.norm1(stream.tokens))
        weights = attention_weights(block.attn, heads, log_bias(stream.weights, prefix))
        seen = received(weights, prefix, self.class_token, stream.weights)
        sampled = sample((seen * heads.values[:, :, prefix:].norm(dim=-1)).mean(1), count)
        special = torch.arange(prefix, device=seen.device).expand(len(seen), -1)
        rows = torch.cat([special, prefix + sampled.indices], 1)  # (B, p + k)
        asked = weights.gather(2, rows[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[3]))
        mixed = finish(block.attn, block.attn.attn_drop(asked) @ heads.values)
        tokens = add_mlp(block, add_attention(block, pick(stream.tokens, rows), mixed))
        places = stream.moved(renumber_fresh(sampled, num_tokens), count)
        return stream._replace(tokens=tokens, weights=sampled.fresh.float(), places=places)


@torch.no_grad()
def sample(significance: Tensor, num_points: int) -> Sampled:
    """Invert the distribution that is proportional to significance (B, n) >= 0 at (i - 1/2) / k, i = 1 ... k."""
    mass = significance.float().cumsum(1)  # (B, n), increasing
    points = (torch.arange(num_points, device=mass.device) + 0.5) / num_points
    found = torch.searchsorted(mass, points * mass[:, -1:]).clamp(max=mass.shape[1] - 1)
    return Sampled(found, F.pad(found[:, 1:] != found[:, :-1], (1, 0), value=True))


def renumber_fresh(sampled: Sampled, num_tokens: int) -> Tensor:
    """(B, n): the place of each sampled token, k for those that were not."""
    num_points = sampled.indices.shape[1]
    order = torch.arange(num_points, device=sampled.indices.device).expand_as(sampled.indices)
    targets = torch.where(sampled.fresh, sampled.indices, num_tokens)  # a column more, for repetitions
    mapping = order.new_full((len(order), num_tokens + 1), num_points).scatter(1, targets, order)
    return mapping[:, :-1]
