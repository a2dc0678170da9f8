"""A Vision Transformer behind a region tokenizer. `dart.models.entrypoints` registers its sizes with timm.

DART and the uniform grid share every line but the partition: same backbone, same sampling, same position embedding.

# B batch, C channels, H W image pixels, N tokens, D embedding, G table side
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint, checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dart.baselines.build import build_reducer
from dart.baselines.reducer import Reducer
from dart.baselines.stream import Stream, restore, scale_patches
from dart.models.tokenizers import TOKENIZER_OPTIONS, build_tokenizer, record_changes, set_token_budget
from dart.pos_embed import map_by_shares


class Answer(NamedTuple):
    """Logits (B, num_classes), and the loss () that a reducer adds to the task's, weighted already."""

    logits: Tensor
    auxiliary: Tensor


class RegionVisionTransformer(VisionTransformer):
    """timm's VisionTransformer with a region tokenizer in the place of the patch embedding.

    Args:
        tokenizer: "dart", "uniform", "quadtree" or "deformable".
        mode: "invariant", or "paper" for the authors' model to the letter (`dart.paper`), whose checkpoints load.
        token_budget: Patch tokens per image, class token excluded; `forward` can be told another.
        img_size: H, W that the model is made for, or one number; invariant models take any other size too.
        pos_embed: "geometry", or "table" for a table of `table_size` squared entries carried onto the regions.
        table_size: Side of that table; 14 is DeiT's.
        reducer: What takes tokens away between the blocks: "name", "keep" and more (`dart.baselines.build`); None:
            nothing does.
        others: What else `build_tokenizer` takes, and timm's.
    """

    patch_embed: Any  # a DartTokenizer, or a dart.paper.PaperTokenizer, which needs torchvision's networks
    pos_embed: nn.Parameter | None
    reducer: Reducer | None

    def __init__(
        self,
        *,
        tokenizer: str,
        token_budget: int,
        mode: str = "invariant",
        img_size: int | tuple[int, int] = 448,
        patch_size: int = 16,
        in_chans: int = 3,
        pos_embed: str = "table",
        table_size: int = 14,
        reducer: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        options = {key: kwargs.pop(key) for key in TOKENIZER_OPTIONS if key in kwargs}
        # timm's own patch embedding is a throw-away: its weight initialisation must not reset the scorer.
        super().__init__(img_size=img_size, patch_size=patch_size, in_chans=in_chans, pos_embed="none", **kwargs)
        self.table_size = (table_size, table_size)
        if pos_embed == "table":
            self.pos_embed = nn.Parameter(torch.empty(1, self.num_table_prefixes + table_size**2, self.embed_dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.patch_embed = build_tokenizer(
            self.embed_dim,
            tokenizer=tokenizer, token_budget=token_budget, mode=mode,
            img_size=img_size, patch_size=patch_size, in_chans=in_chans, pos_embed=pos_embed, table_size=table_size,
            **options,
        )  # fmt: skip
        self.reducer = None if reducer is None else self._build_reducer(reducer)  # last: other weights as without one
        self._renew_feature_info()

    @property
    def num_table_prefixes(self) -> int:
        """Entries of the position table that belong to class and register tokens."""
        return 0 if self.no_embed_class else self.num_prefix_tokens

    def embed(self, images: Tensor, num_patches: int | None = None, num_rows: int | None = None) -> tuple[Tensor, Any]:
        """Images (B, C, H, W) -> the sequence for the blocks (B, prefix + N, D), and how they are tokenized."""
        found = self.patch_embed.inspect(images, num_patches, num_rows, with_patches=False)
        tokens = found.tokens
        prefix = [t.expand(tokens.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        if self.pos_embed is not None:
            special, table = self.pos_embed.split([self.num_table_prefixes, self.table_size[0] * self.table_size[1]], 1)
            tokens = tokens + self.patch_embed.carry(table, found)
            if prefix and self.num_table_prefixes:
                prefix = [torch.cat(prefix, 1) + special]
        return self.norm_pre(self.patch_drop(self.pos_drop(torch.cat([*prefix, tokens], 1)))), found

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        num_patches: int | None = None,
        num_rows: int | None = None,
        auxiliary: bool = False,
    ) -> Any:
        """(B, C, H, W) -> logits (B, num_classes), with another token budget and row count if given.

        With `auxiliary`, the `Answer` that a training asks for whose reducer learns by a loss of its own.
        """
        if auxiliary:
            stream = self.reduce(self.embed(x, num_patches, num_rows)[0])
            logits = self.forward_head(stream.tokens)
            return Answer(logits, logits.new_zeros(()) if stream.auxiliary is None else stream.auxiliary)
        features = self.forward_features(x, attn_mask, is_causal, num_patches=num_patches, num_rows=num_rows)
        return self.forward_head(features)

    def forward_features(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        num_patches: int | None = None,
        num_rows: int | None = None,
    ) -> Tensor:
        """(B, C, H, W) -> (B, prefix + N, D), or as many tokens as a reducer leaves (`reduce`)."""
        return self.run_blocks(self.embed(x, num_patches, num_rows)[0], attn_mask, is_causal)

    def run_blocks(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """The sequence of `embed` -> the last block's, normalised, both (B, prefix + N, D); or reduced."""
        if self.reducer is not None:
            self._refuse_masks(attn_mask, is_causal)
            return self.reduce(x).tokens
        if attn_mask is not None or is_causal:
            for block in self.blocks:
                x = block(x, attn_mask=attn_mask, is_causal=is_causal)
        else:
            x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        return self.norm(x)

    def reduce(self, x: Tensor) -> Stream:
        """The sequence of `embed` (B, prefix + N, D) -> what the reducer leaves of it, normalised.

        Where the mean of the tokens is pooled they are scaled, so that the mean is the weighted one.
        """
        if self.reducer is None:
            raise ValueError("reducer = None: the model has none; give it one, or call run_blocks")
        stream = self.reducer(self.blocks, x, self.grad_checkpointing)
        return stream._replace(tokens=self._finish(stream))

    def _finish(self, stream: Stream) -> Tensor:
        if stream.weights is None or self.global_pool != "avg":
            return self.norm(stream.tokens)
        return scale_patches(self.norm(stream.tokens), stream.weights, self.num_prefix_tokens)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """timm's contract; maps are re-gridded from irregular tokens by shared area (`map_by_shares`).

        With a reducer, maps show every token of the start as what has become of it, and as zeros where it is gone.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt = {output_fmt!r}: must be NCHW or NLC")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        img_size = (x.shape[-2], x.shape[-1])
        x, tokenization = self.embed(x)
        if self.reducer is not None:
            self._refuse_masks(attn_mask, is_causal)
            stream, counts = self.reducer.follow(x), self.reducer.plan(x.shape[1] - self.num_prefix_tokens)
        found = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            if self.reducer is not None:
                stream = self.reducer.step(i, block, stream, counts[i])
                x = restore(stream, self.num_prefix_tokens)
            elif attn_mask is not None or is_causal:
                x = block(x, attn_mask=attn_mask, is_causal=is_causal)
            else:
                x = checkpoint(block, x) if self.grad_checkpointing else block(x)
            if i in wanted:
                found.append(self.norm(x) if norm else x)
        final = self.norm(x) if self.reducer is None else self._finish(stream)
        prefixes = [y[:, : self.num_prefix_tokens] for y in found] if self.num_prefix_tokens else None
        maps = [y[:, self.num_prefix_tokens :] for y in found]
        if output_fmt == "NCHW":
            grid = self.patch_embed.dynamic_feat_size(img_size)
            shares = self.patch_embed.share_cells(tokenization, grid)
            maps = [map_by_shares(y, shares, grid) for y in maps]
        with_prefixes = return_prefix_tokens and prefixes is not None
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": maps}
            if with_prefixes:
                result["image_intermediates_prefix"] = prefixes
            return result if intermediates_only else {**result, "image_features": final}
        intermediates = list(zip(maps, prefixes, strict=True)) if with_prefixes and prefixes else maps
        return intermediates if intermediates_only else (final, intermediates)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make another image size the usual one; no weight changes (timm's contract)."""
        self.patch_embed.set_input_size(img_size, patch_size)
        record_changes(self)
        self._renew_feature_info()

    def set_token_budget(self, token_budget: int, num_rows: int | None = None) -> None:
        """Spend another number of patch tokens per image from now on; no weight changes."""
        set_token_budget(self.patch_embed, token_budget, num_rows)
        record_changes(self, token_budget=token_budget, num_rows=num_rows)
        self._renew_feature_info()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's; a reducer's parameters are with the last norm."""
        groups: dict[str, Any] = super().group_matcher(coarse)
        if self.reducer is not None:
            groups["blocks"] = [*groups["blocks"], (r"^reducer", (99999,))]
        return groups

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As timm's; raises ValueError for a pooling that a reducer's tokens do not have."""
        if self.reducer is not None and global_pool is not None:
            self._check_pooling(global_pool)
        super().reset_classifier(num_classes, global_pool)

    def _check_pooling(self, global_pool: str) -> None:
        if global_pool not in ("avg", "token", "") or getattr(self, "pool_include_prefix", False):
            rule = "tokens that were taken away can be pooled as 'avg' of the patches or 'token' alone"
            raise ValueError(f"global_pool = {global_pool!r}: {rule}; change it or leave out reducer")

    def _build_reducer(self, options: Mapping[str, Any]) -> Reducer:
        self._check_pooling(self.global_pool)
        return build_reducer(
            options,
            num_tokens=self.patch_embed.num_patches, depth=len(self.blocks), embed_dim=self.embed_dim,
            num_prefix_tokens=self.num_prefix_tokens, class_token=self.cls_token is not None,
        )  # fmt: skip

    def _refuse_masks(self, attn_mask: Tensor | None, is_causal: bool) -> None:
        if attn_mask is not None or is_causal:
            raise ValueError("attn_mask, is_causal: a reducer's tokens have no fixed places; leave them out")

    def _renew_feature_info(self) -> None:
        for info in self.feature_info:
            info["reduction"] = self.patch_embed.feat_ratio()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay must leave alone: timm's and the scorer."""
        names = dict(self.named_parameters())
        return {n for n in super().no_weight_decay() if n in names} | {n for n in names if ".scorer." in n}
