"""A class for every pixel by a network that needs a regular image: warp, any hierarchical backbone, UPerNet, inverse.

DART and the uniform grid share every line but where rows and columns lie (supplement of arXiv 2506.10390, DART-Grid).

# B batch, C channels, H W image pixels, h w warped pixels, N cells, P patch side, K classes
"""

import difflib
from typing import Any, overload

import timm
from timm.models import get_pretrained_cfg_value
from torch import Tensor, nn

from dart.features import batch_to_group_norm
from dart.models.warpers import build_warper
from dart.tokenizer import Tokenization, check_size

STRIDE_PX = 32  # of the deepest stage that UPerNet reads
# What timm's transformers exempt from weight decay.
TABLES = ("relative_position_bias_table", "absolute_pos_embed", "pos_embed")


class WarpSegmenter(nn.Module):
    """Scores -> rows and columns -> the warped image -> backbone, UPerNet -> logits, brought back to the image.

    Reads images of one size, which the backbone's windows are made for. In invariant mode the head has group norms,
    so that an image does not depend on its batch mates; batch norms of a backbone (Swin has none) stay. In paper mode
    nothing is replaced. The weights of the whole network are initialised as timm and UPerNet do.

    Args:
        tokenizer: "dart" or "uniform".
        token_budget: N, cells of the warp. With P they make the warped image's size, a multiple of 32 px.
        backbone: One of timm's networks with feature maps at strides of 4, 8, 16 and 32 px.
        mode: "invariant", or "paper" for the authors' warp to the letter, trained on warped classes.
        img_size: H, W, or one number for both.
        patch_size: P, pixels on a cell's side in the warped image.
        num_classes: K; 0 for features (B, head_dim, H, W).
        pretrained_backbone: Start from timm's weights; they expect images normalised as theirs were.
        drop_path_rate: Stochastic depth of the backbone.
        head_dim: Channels of UPerNet.
        options: See `dart.models.warpers.build_warper`.

    Raises:
        ValueError: what `build_warper` refuses; a backbone without such maps; a warped size that it cannot read.
    """

    def __init__(
        self,
        *,
        tokenizer: str,
        token_budget: int,
        backbone: str,
        mode: str = "invariant",
        img_size: int | tuple[int, int] = 512,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 150,
        pretrained_backbone: bool = False,
        drop_path_rate: float = 0.0,
        head_dim: int = 256,
        **options: Any,
    ) -> None:
        super().__init__()
        self.img_size = check_size(img_size, 1)
        self.in_chans, self.num_features = in_chans, head_dim
        self.warper = build_warper(
            tokenizer=tokenizer, token_budget=token_budget, mode=mode,
            img_size=self.img_size, patch_size=patch_size, in_chans=in_chans, **options,
        )  # fmt: skip
        size = self.warper.warped_size
        if size[0] % STRIDE_PX or size[1] % STRIDE_PX:
            said = f"token_budget = {token_budget}, patch_size = {patch_size}: make a warped image of"
            raise ValueError(f"{said} {size[0]} x {size[1]} px; its sides must be multiples of {STRIDE_PX} px")
        self.network = build_upernet(backbone, size, in_chans, head_dim, pretrained_backbone, drop_path_rate)
        if mode == "invariant":
            batch_to_group_norm(self.network.decoder)
        self.reset_classifier(num_classes)

    @overload
    def forward(self, images: Tensor) -> Tensor: ...

    @overload
    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]: ...

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        """Images (B, C, H, W) -> logits (B, K, H, W).

        With labels (B, H, W), the pair of logits and labels that a loss compares: of the image's pixels, in paper mode
        of the warped image's.

        Raises:
            ValueError: images of another size or number of channels, not a number.
        """
        warping = self.warper(self.check(images))
        logits = self.network(self.warper.draw(images, warping))  # (B, K, h / 4, w / 4)
        if labels is None:
            return self.warper.bring_back(logits, warping)
        return self.warper.compare(logits, labels, warping)

    def inspect(self, images: Tensor) -> Tokenization:
        """How images are warped: density, cells as regions, and the warped image as patches (also as the tokens)."""
        scores, density, regions, _ = warping = self.warper(self.check(images))
        side = self.warper.patch_size
        cells = self.warper.draw(images, warping).unflatten(3, (-1, side)).unflatten(2, (-1, side))
        patches = cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (B, N, C, P, P)
        return Tokenization(self.img_size, scores, density, regions, patches, patches.flatten(2))

    def check(self, images: Tensor) -> Tensor:
        """Images of the size that the model is made for."""
        size = tuple(images.shape[-2:])
        if size != self.img_size:
            has, reads = ("{} x {} px".format(*sides[-2:]) for sides in (size or (0, 0), self.img_size))
            raise ValueError(f"images = {has}: this model reads {reads}; resize them, or cut them into windows")
        return images

    def get_classifier(self) -> nn.Module:
        """timm's: the last layer."""
        return self.network.segmentation_head[0]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's: a fresh last layer, a 1 x 1 convolution; 0 classes for none."""
        if global_pool:
            raise ValueError(f"global_pool = {global_pool!r}: a segmenter pools nothing; leave it out")
        self.num_classes = num_classes
        old = next(self.network.decoder.parameters())
        layer: Any = nn.Identity()
        if num_classes:
            layer = nn.Conv2d(self.num_features, num_classes, 1, device=old.device, dtype=old.dtype)
            nn.init.xavier_uniform_(layer.weight)  # as UPerNet does
            nn.init.zeros_(layer.bias)
        self.network.segmentation_head[0] = layer

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's: keep the inputs of the backbone's stages alone and compute the rest again in the backward pass."""
        self.network.encoder.model.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """timm's: the backbone's tables and the scorer."""
        names = [name for name, _ in self.named_parameters()]
        return {name for name in names if ".scorer." in name or name.endswith(TABLES)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's: the backbone's stages, or their blocks, for layer-wise learning rates; the head comes last."""
        backbone = r"^network\.encoder\.model\."
        stage = rf"{backbone}[a-z]+_?(\d+)"
        blocks = [] if coarse else [(rf"{stage}\.blocks\.(\d+)", None)]
        return {"stem": rf"^warper|{backbone}(?:patch_embed|stem|conv1|bn1)", "blocks": [*blocks, (stage, None)]}


def build_upernet(
    backbone: str, size: tuple[int, int], in_chans: int, head_dim: int, pretrained: bool, drop_path_rate: float
) -> Any:
    """UPerNet (arXiv 1807.10221) on one of timm's networks: images of `size` -> a map at a quarter of it."""
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise ImportError("segmentation_models_pytorch: not installed; pip install 'dart-lab[dense]'") from error

    if not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=1)
        raise ValueError(f"backbone = {backbone!r}: unknown to timm{f'; did you mean {near[0]!r}?' if near else ''}")
    options: dict[str, Any] = {"drop_path_rate": drop_path_rate}  # Swin's own is not 0
    if get_pretrained_cfg_value(backbone, "fixed_input_size"):
        options["img_size"] = size
    options |= {"encoder_name": f"tu-{backbone}", "in_channels": in_chans, "decoder_channels": head_dim}
    # The classifier is ours. No upsampling here: theirs aligns corners, and one look-up does it on the way back.
    options |= {"classes": 1, "upsampling": 1}
    try:
        network = smp.UPerNet(encoder_weights=None, **options)
    except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"backbone = {backbone!r}: UPerNet cannot read it ({cause}); choose another") from error
    if pretrained:  # it could be built without weights: what fails from here on is fetching them
        try:
            network = smp.UPerNet(encoder_weights=True, **options)
        except Exception as error:
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"pretrained_backbone = True: the weights of {backbone!r} cannot be had ({cause}); "
                "connect to the network once, or train from scratch"
            ) from error
    return network
