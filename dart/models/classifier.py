"""What is done with the tokens of a state-space model: block after block, pooling, classes, and timm's contract.

# B batch, C channels, H W image pixels, N patch tokens, L = N + 1 with the class token, D embedding
"""

from abc import ABC, abstractmethod
from typing import Any

from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from dart.models.mamba import NO_WEIGHT_DECAY, add_to_stream


class StateSpaceClassifier(nn.Module, ABC):
    """The part of `dart.models.state_space.StateSpaceModel` that does not know how tokens are made."""

    layers: nn.ModuleList
    norm_f: nn.Module
    drop_path: nn.Module
    head_drop: nn.Module
    head: nn.Module
    cls_token: nn.Parameter
    num_classes: int
    embed_dim: int
    global_pool: str
    grad_checkpointing: bool

    @abstractmethod
    def embed(self, images: Tensor, num_patches: int | None = None, num_rows: int | None = None) -> tuple[Tensor, Any]:
        """Images or clips -> the first block's tokens (B, L, D), and how they are tokenized; None for the grid."""

    @abstractmethod
    def split_class(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N + 1, D) -> the class token (B, 1, D), and the others (B, N, D) in their order."""

    @abstractmethod
    def to_map(self, patches: Tensor, tokenization: Any, images: Tensor) -> Tensor:
        """Patch tokens (B, N, D) as a map (B, D, rows, columns)."""

    def forward(self, images: Tensor, *, num_patches: int | None = None, num_rows: int | None = None) -> Tensor:
        """(B, C, H, W) -> (B, num_classes), with another token budget and row count if given."""
        return self.forward_head(self.forward_features(images, num_patches=num_patches, num_rows=num_rows))

    def forward_features(
        self, images: Tensor, *, num_patches: int | None = None, num_rows: int | None = None
    ) -> Tensor:
        """(B, C, H, W) -> normalised tokens (B, L, D), the class token at `class_index(N)`."""
        mixed, stream = self.embed(images, num_patches, num_rows)[0], None
        for layer in self.layers:
            mixed, stream = self.run_block(layer, mixed, stream)
        return self.finish(mixed, stream)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, L, D) -> (B, num_classes), or the pooled feature (B, D)."""
        prefix, patches = self.split_class(tokens)
        pooled = {"token": prefix[:, 0], "avg": patches.mean(1), "": tokens}[self.global_pool]
        pooled = self.head_drop(pooled)
        return pooled if pre_logits else self.head(pooled)

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
    ) -> Any:
        """timm's: the stream after the blocks asked for, without the class token; as maps (`to_map`) or as tokens."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f'output_fmt = {output_fmt!r}: must be "NCHW" or "NLC"')
        taken, last = feature_take_indices(len(self.layers), indices)
        mixed, tokenization = self.embed(x)
        stream = None
        found = []
        for i, layer in enumerate(self.layers[: last + 1] if stop_early else self.layers):
            mixed, stream = self.run_block(layer, mixed, stream)
            if i in taken:
                after = add_to_stream(mixed, stream)
                found.append(self.split_class(self.norm_f(after) if norm else after.to(mixed.dtype)))
        maps = [self.to_map(patches, tokenization, x) if output_fmt == "NCHW" else patches for _, patches in found]
        prefixes = [prefix for prefix, _ in found]
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": maps}
            if return_prefix_tokens:
                result["image_intermediates_prefix"] = prefixes
            return result if intermediates_only else {**result, "image_features": self.finish(mixed, stream)}
        out = list(zip(maps, prefixes, strict=True)) if return_prefix_tokens else maps
        return out if intermediates_only else (self.finish(mixed, stream), out)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """timm's: drop what the intermediates asked for do not need."""
        taken, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_norm:
            self.norm_f = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        """timm's."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's: a fresh head; 0 classes for none."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = check_pool(global_pool)
        device, dtype = self.cls_token.device, self.cls_token.dtype
        head = nn.Linear(self.embed_dim, num_classes, device=device, dtype=dtype) if num_classes else nn.Identity()
        self.head = head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's: keep the blocks' inputs alone and compute the rest again in the backward pass."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """timm's: the tables, what shapes the memory of the scan, and the frozen or small scorer."""
        tables = {"pos_embed", "cls_token", "temporal_pos_embedding"}
        shapes = tuple(f".mixer.{name}" for name in NO_WEIGHT_DECAY)
        names = [name for name, _ in self.named_parameters()]
        return {name for name in names if name in tables or name.endswith(shapes) or ".scorer." in name}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's: layers for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|^pos_embed|^temporal_pos_embedding|^patch_embed",
            "blocks": [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))],
        }

    def run_block(self, layer: nn.Module, mixed: Tensor, stream: Tensor | None) -> tuple[Tensor, Tensor]:
        """One block; see `dart.models.mamba.MambaBlock`."""
        if self.grad_checkpointing and self.training:
            return checkpoint(layer, mixed, stream)
        return layer(mixed, stream)

    def finish(self, mixed: Tensor, stream: Tensor | None) -> Tensor:
        """What the last block mixed and the stream before it -> normalised tokens (B, L, D)."""
        return self.norm_f(add_to_stream(self.drop_path(mixed), stream))


def check_pool(global_pool: str) -> str:
    """The way of pooling, if there is such a one."""
    if global_pool not in ("token", "avg", ""):
        raise ValueError(f'global_pool = {global_pool!r}: must be "token", "avg" or ""')
    return global_pool
