"""What reducers share: the tokens under way through the blocks, and attention taken apart.

# B batch, h heads, N patch tokens at the start, n of them left, p class and register tokens, L = p + n, D embedding
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Stream(NamedTuple):
    """Tokens between two blocks.

    tokens: (B, p + n, D).
    weights: (B, n), what each patch token counts in the mean that is pooled: of merged tokens, how many they are; 0 for
        a place that is empty. None where all count alike.
    places: (B, N), where in 0 ... n - 1 the token that was here at the start is now; n where it is gone. None unless
        it was asked for.
    auxiliary: A loss that the reducer adds in training, (); None where it has none.
    """

    tokens: Tensor
    weights: Tensor | None = None
    places: Tensor | None = None
    auxiliary: Tensor | None = None

    def moved(self, mapping: Tensor, num_left: int) -> Tensor | None:
        """The places after a step that sends the patch token i of n to mapping[:, i], or to `num_left` to drop it."""
        if self.places is None:
            return None
        return F.pad(mapping, (0, 1), value=num_left).gather(1, self.places)


class Heads(NamedTuple):
    """Queries, keys and values, each (B, h, L, d)."""

    queries: Tensor
    keys: Tensor
    values: Tensor


def restore(stream: Stream, num_prefix_tokens: int) -> Tensor:
    """(B, p + N, D): every patch token of the start as what has become of it, 0 where it is gone."""
    if stream.places is None:
        return stream.tokens
    prefix, patches = split(stream.tokens, num_prefix_tokens)
    return torch.cat([prefix, pick(F.pad(patches, (0, 0, 0, 1)), stream.places)], 1)


def scale_patches(tokens: Tensor, weights: Tensor, num_prefix_tokens: int) -> Tensor:
    """Tokens (B, p + n, D) whose patch tokens have as their mean what was their mean weighted by (B, n)."""
    prefix, patches = split(tokens, num_prefix_tokens)
    share = weights / weights.mean(1, keepdim=True).clamp_min(1e-6)  # nobody left: zeros
    return torch.cat([prefix, patches * share[..., None].to(tokens.dtype)], 1)


def split(tokens: Tensor, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """(B, p + n, D) -> class and register tokens (B, p, D), patch tokens (B, n, D)."""
    return tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:]


def pick(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens (B, n, D) at indices (B, k) -> (B, k, D)."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


def project(attn: Any, x: Tensor) -> Heads:
    """The first half of timm's `Attention`, of normalised tokens (B, L, D)."""
    if getattr(attn, "gate", None) is not None:
        raise ValueError("gated = True: reducers know attention without a gate; leave it out")
    qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    queries, keys, values = qkv.unbind(0)
    return Heads(attn.q_norm(queries), attn.k_norm(keys), values)


def finish(attn: Any, mixed: Tensor) -> Tensor:
    """The last half of timm's `Attention`: values mixed by each head (B, h, L, d) -> (B, L, D)."""
    x = mixed.transpose(1, 2).flatten(2)
    x = getattr(attn, "norm", nn.Identity())(x)  # older releases of timm have none
    return attn.proj_drop(attn.proj(x))


def mix(attn: Any, heads: Heads, bias: Tensor | None = None) -> Tensor:
    """Attention without sight of its weights; `bias` (B, L) is added to the logits of the keys. (B, L, D)."""
    mask = None if bias is None else bias[:, None, None].to(heads.queries.dtype)
    dropout = attn.attn_drop.p if attn.training else 0.0
    return finish(attn, F.scaled_dot_product_attention(*heads, attn_mask=mask, dropout_p=dropout))


def attention_weights(attn: Any, heads: Heads, bias: Tensor | None = None) -> Tensor:
    """(B, h, L, L), each row a distribution over the keys; `bias` as for `mix`."""
    logits = (heads.queries * attn.scale) @ heads.keys.transpose(-2, -1)
    return (logits if bias is None else logits + bias[:, None, None].to(logits.dtype)).softmax(-1)


def received(weights: Tensor, num_prefix_tokens: int, class_token: bool, counts: Tensor | None = None) -> Tensor:
    """How much attention each patch token gets from the one that answers: (B, h, n).

    That is the class token, "class attention". A model without one answers with the mean of its patch tokens, so there
    it is the mean over those of what they attend to.

    Args:
        weights: (B, h, L, L), see `attention_weights`.
        num_prefix_tokens: p.
        class_token: Whether the first token is one.
        counts: (B, n), what each patch token counts in that mean; None: all alike.
    """
    if class_token:
        return weights[:, :, 0, num_prefix_tokens:]
    own = weights[:, :, num_prefix_tokens:, num_prefix_tokens:]
    if counts is None:
        return own.mean(2)
    share = (counts / counts.sum(1, keepdim=True)).to(own.dtype)
    return (share[:, None, None] @ own).squeeze(2)


def log_bias(weights: Tensor | None, num_prefix_tokens: int) -> Tensor | None:
    """(B, L) to add to the logits of the keys so that patch token i counts weights[:, i] (B, n) times; 0 is never."""
    return None if weights is None else F.pad(weights.log(), (num_prefix_tokens, 0))


def add_attention(block: Any, x: Tensor, mixed: Tensor) -> Tensor:
    """The first residual of timm's `Block`."""
    return x + block.drop_path1(block.ls1(mixed))


def add_mlp(block: Any, x: Tensor) -> Tensor:
    """The second."""
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
