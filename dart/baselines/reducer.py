"""What every reducer is: a step per block, with a number of tokens to leave."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from dart.baselines.schedule import plan_counts
from dart.baselines.stream import Stream, add_attention, add_mlp, log_bias, mix, project


class Reducer(nn.Module, ABC):
    """Takes patch tokens away between or within the blocks of a timm VisionTransformer.

    How many are left after each block is arithmetic (`dart.baselines.schedule`): shapes do not depend on pixels,
    nothing waits for the device, and an image's tokens do not depend on its batch mates.

    Args:
        keep: Share of the patch tokens that the last block leaves, in (0, 1].
        depth: Number of blocks.
        num_prefix_tokens: p, class and register tokens, which are never touched.
        class_token: Whether the first of them is a class token.
    """

    name: str

    def __init__(self, keep: float, depth: int, num_prefix_tokens: int, class_token: bool) -> None:
        super().__init__()
        self.keep, self.depth = keep, depth
        self.num_prefix_tokens, self.class_token = num_prefix_tokens, class_token

    @abstractmethod
    def step(self, index: int, block: nn.Module, stream: Stream, count: int) -> Stream:
        """Block `index`, counted from 0, leaving `count` patch tokens; in training masks may stand for what goes."""

    def forward(self, blocks: Iterable[nn.Module], x: Tensor, checkpointing: bool = False) -> Stream:
        """All blocks, of a sequence (B, p + N, D).

        Args:
            checkpointing: Keep the blocks' inputs alone and compute the rest again in the backward pass.
        """
        stream = Stream(x)
        counts = self.plan(x.shape[1] - self.num_prefix_tokens)
        for index, (block, count) in enumerate(zip(blocks, counts, strict=False)):  # the last blocks may be cut off
            arguments = (index, block, stream, count)
            stream = checkpoint(self.step, *arguments) if checkpointing else self.step(*arguments)
        return stream

    def plan(self, num_tokens: int) -> tuple[int, ...]:
        """Patch tokens that leave each block, of N at the start; see `plan_counts`."""
        return plan_counts(self.name, self.keep, num_tokens, self.depth)

    def follow(self, x: Tensor) -> Stream:
        """The start of a stream (B, p + N, D) that keeps account of where each token goes."""
        num_tokens = x.shape[1] - self.num_prefix_tokens
        return Stream(x, places=torch.arange(num_tokens, device=x.device).expand(len(x), -1))

    def plain(self, block: Any, stream: Stream) -> Stream:
        """A block that takes nothing away; tokens count as much as they weigh."""
        if stream.weights is None:
            return stream._replace(tokens=block(stream.tokens))
        bias = log_bias(stream.weights, self.num_prefix_tokens)
        heads = project(block.attn, block.norm1(stream.tokens))
        return stream._replace(tokens=add_mlp(block, add_attention(block, stream.tokens, mix(block.attn, heads, bias))))
