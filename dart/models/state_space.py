"""What Vision Mamba and VideoMamba share: patch tokens and a class token, bidirectional Mamba blocks, timm's contract.

# B batch, C channels, H W image pixels, N patch tokens, L = N + 1 with the class token, D embedding, G_h G_w table
"""

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from timm.layers import DropPath, PatchEmbed, resample_abs_pos_embed
from torch import Tensor, nn

from dart.models.classifier import StateSpaceClassifier, check_pool
from dart.models.mamba import BidirectionalMixer, MambaBlock, StreamNorm
from dart.models.tokenizers import build_tokenizer, record_changes, set_token_budget
from dart.pos_embed import map_by_shares
from dart.tokenizer import to_pair


class StateSpaceModel(StateSpaceClassifier):
    """The base of both families, which say where the class token stands and how a mixer joins its directions.

    The scan goes through the tokens in reading order; it knows nothing else of where they are than what the position
    embedding says. Entry names are the published ones, so that those weights load.

    Args:
        tokenizer: "plain" for the published model on patches of the regular grid; "dart" or "uniform" for regions.
        img_size: H, W that the model is made for, or one number; with regions, any other size will do too.
        patch_size: Pixels on the side of a patch.
        in_chans: C.
        num_classes: 0 for no head.
        embed_dim: D.
        depth: Blocks.
        state_size: States per channel of the scan.
        global_pool: "token" for the class token, "avg" for the mean of the patch tokens, "" for all tokens.
        drop_rate: Dropout of the tokens at the start and of the feature at the end.
        drop_path_rate: Stochastic depth: what the last block mixed is left out this often, the first's never.
        pos_embed: "table", or for regions "geometry".
        table_size: Side of the table; None for that of the regular grid of `img_size`. Regions carry it.
        num_frames: T that a model of clips is made for; None for images.
        options: For regions, what else `dart.models.tokenizers.build_tokenizer` takes.
    """

    average_directions: ClassVar[bool]
    reads_clips: ClassVar[bool] = False
    patch_embed: Any  # timm's PatchEmbed, a region tokenizer, or one of dart.paper, which need torchvision's networks
    pos_embed: nn.Parameter | None

    def __init__(
        self,
        tokenizer: str = "plain",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 24,
        state_size: int = 16,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        *,
        pos_embed: str = "table",
        table_size: int | None = None,
        num_frames: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if num_frames is not None:
            self._check_frames(num_frames)
            options["num_frames"] = num_frames  # for the tokenizer
        self.num_frames = num_frames
        self.tokenizer, self.in_chans = tokenizer, in_chans
        self.num_classes, self.embed_dim = num_classes, embed_dim
        self.num_features = self.head_hidden_size = embed_dim
        self.num_prefix_tokens = 1
        self.global_pool = check_pool(global_pool)
        self.grad_checkpointing = False
        side = table_size or max(1, to_pair(img_size)[0] // patch_size)
        shape: dict[str, Any] = {"img_size": img_size, "patch_size": patch_size, "in_chans": in_chans}
        if tokenizer == "plain":
            if pos_embed != "table" or table_size is not None:
                options |= {"pos_embed": pos_embed, "table_size": table_size}
            self.patch_embed = self.build_patches(embed_dim, **shape, **options)
            self.table_size = self.patch_embed.grid_size
        else:
            options |= {"tokenizer": tokenizer, "pos_embed": pos_embed, "table_size": side}
            self.patch_embed = build_tokenizer(embed_dim, **shape, **options)
            self.table_size = (side, side)
        if pos_embed == "table":
            places = self.table_size[0] * self.table_size[1]
            self.pos_embed = nn.Parameter(torch.randn(1, places + 1, embed_dim) * 0.02)  # the class token's among them
        else:
            self.pos_embed = None
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim) * 0.02)
        self.pos_drop = nn.Dropout(drop_rate)
        # A block adds what the one before it mixed: that is what it drops.
        rates = [drop_path_rate * max(i - 1, 0) / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList(
            MambaBlock(embed_dim, state_size, rate, average=self.average_directions) for rate in rates
        )
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()
        self.norm_f: nn.Module = StreamNorm(embed_dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.feature_info = [{"module": f"layers.{i}", "num_chs": embed_dim} for i in range(depth)]
        self._renew_feature_info()
        for module in self.modules():
            if isinstance(module, BidirectionalMixer):
                # The stream is a sum over the blocks: its variance at the start shall not grow with their number.
                module.out_proj.weight.data.div_(depth**0.5)

    @staticmethod
    @abstractmethod
    def class_index(num_patches: int) -> int:
        """Where the class token stands among so many patch tokens."""

    def build_patches(
        self, embed_dim: int, img_size: int | tuple[int, int], patch_size: int, in_chans: int, **unread: Any
    ) -> nn.Module:
        """The patch embedding of the plain model.

        Raises:
            ValueError: options that only region tokenizers have.
        """
        if unread:
            said = ", ".join(unread)
            raise ValueError(f"{said}: for dart_* and uniform_* models alone; leave out, or choose one of those models")
        return PatchEmbed(img_size, patch_size, in_chans, embed_dim)

    def embed(self, images: Tensor, num_patches: int | None = None, num_rows: int | None = None) -> tuple[Tensor, Any]:
        """(B, C, H, W) -> the first block's tokens (B, L, D), and how they are tokenized; None for the grid.

        Raises:
            ValueError: images of a shape that the model cannot read; a budget for a model that has none.
        """
        prefix: Tensor = self.cls_token
        table = None
        if self.pos_embed is not None:
            place, table = self.split_class(self.pos_embed)
            prefix = prefix + place
        if self.tokenizer == "plain":
            self._check_plain(images, num_patches, num_rows)
        patches, found = self.tokenize(images, table, num_patches, num_rows)
        return self.pos_drop(self.join_class(prefix.expand(images.shape[0], -1, -1), patches)), found

    def tokenize(
        self, images: Tensor, table: Tensor | None, num_patches: int | None, num_rows: int | None
    ) -> tuple[Tensor, Any]:
        """(B, C, H, W) and the table (1, G_h * G_w, D) -> patch tokens with positions (B, N, D), and how."""
        if self.tokenizer == "plain":
            return self.patch_embed(images) + table, None
        found = self.patch_embed.inspect(images, num_patches, num_rows, with_patches=False)
        tokens = found.tokens if table is None else found.tokens + self.patch_embed.carry(table, found)
        return tokens, found

    def split_class(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N + 1, D) -> the class token (B, 1, D), and the others (B, N, D) in their order."""
        i = self.class_index(tokens.shape[1] - 1)
        return tokens[:, i : i + 1], torch.cat((tokens[:, :i], tokens[:, i + 1 :]), 1)

    def join_class(self, prefix: Tensor, patches: Tensor) -> Tensor:
        """The inverse of `split_class`."""
        i = self.class_index(patches.shape[1])
        return torch.cat((patches[:, :i], prefix, patches[:, i:]), 1)

    def to_map(self, patches: Tensor, tokenization: Any, images: Tensor) -> Tensor:
        """Patch tokens (B, N, D) as a map (B, D, rows, columns), re-gridded by shared area where they are regions."""
        if tokenization is None:
            return patches.mT.unflatten(2, self.patch_embed.grid_size)
        grid = self.patch_embed.dynamic_feat_size((images.shape[-2], images.shape[-1]))
        return map_by_shares(patches, self.patch_embed.share_cells(tokenization, grid), grid)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """timm's: another usual image size. No weight of regions changes; a plain model's table is resampled."""
        if self.tokenizer != "plain":
            self.patch_embed.set_input_size(img_size, patch_size)
        elif patch_size is not None and to_pair(patch_size) != tuple(self.patch_embed.patch_size):
            raise ValueError(f"patch_size = {patch_size}: the weights are of {self.patch_embed.patch_size}")
        elif img_size is not None and self.pos_embed is not None:
            self.patch_embed.set_input_size(img_size)
            self.pos_embed = nn.Parameter(self.fit_table(self.pos_embed.detach(), self.patch_embed.grid_size))
            self.table_size = self.patch_embed.grid_size
        # The table of regions stays, where that of a new model of this size would be another.
        stays = self.tokenizer != "plain" and self.pos_embed is not None
        record_changes(self, **({"table_size": self.table_size[0]} if stays else {}))
        self._renew_feature_info()

    def set_token_budget(self, token_budget: int, num_rows: int | None = None) -> None:
        """Spend another number of patch tokens from now on; no weight changes."""
        if self.tokenizer == "plain":
            self._refuse_budget("token_budget", token_budget)
        set_token_budget(self.patch_embed, token_budget, num_rows)
        record_changes(self, token_budget=token_budget, num_rows=num_rows)
        self._renew_feature_info()

    def fit_table(self, table: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """A position table with its class entry, resampled to `size` or to this model's; one that is no grid stays."""
        place, places = self.split_class(table)
        count = places.shape[1]
        old = self.table_size if self.table_size[0] * self.table_size[1] == count else (math.isqrt(count),) * 2
        if old[0] * old[1] != count:
            return table
        places = resample_abs_pos_embed(places, list(size or self.table_size), list(old), num_prefix_tokens=0)
        return self.join_class(place, places)

    def fit_entries(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's entries, as far as they differ from this model's in the size of their tables alone."""
        table, own = state.get("pos_embed"), self.pos_embed
        if table is not None and own is not None and table.ndim == 3 and table.shape[-1] == own.shape[-1]:
            state["pos_embed"] = self.fit_table(table)
        return state

    def _check_frames(self, num_frames: int) -> None:
        if not self.reads_clips:
            raise ValueError(
                f"num_frames = {num_frames!r}: {type(self).__name__} reads images; use a *videomamba_* model"
            )
        if not isinstance(num_frames, int) or num_frames < 1:
            raise ValueError(f"num_frames = {num_frames!r}: must be a whole number, at least 1; None for images")

    def _check_plain(self, images: Tensor, num_patches: int | None, num_rows: int | None) -> None:
        for name, value in (("num_patches", num_patches), ("num_rows", num_rows)):
            if value is not None:
                self._refuse_budget(name, value)
        expected = (self.in_chans, *self.patch_embed.img_size)
        if images.ndim != 4 or images.shape[1:] != expected:
            wanted = ", ".join(map(str, expected))
            raise ValueError(f"images = {tuple(images.shape)}: must be (B, {wanted}); resize, or build with img_size")

    def _refuse_budget(self, name: str, value: int) -> None:
        raise ValueError(f"{name} = {value}: a plain model has a token per patch; use a dart_* or uniform_* model")

    def _renew_feature_info(self) -> None:
        for info in self.feature_info:
            info["reduction"] = self.patch_embed.feat_ratio()
