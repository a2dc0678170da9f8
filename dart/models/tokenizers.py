"""A model's keyword arguments -> its tokenizer: learned, uniform or other regions, or the paper's, of images or clips.

# B batch, C channels, T frames, H W image or frame pixels, N tokens, P patch side, D embedding
"""

from typing import Any

from torch import nn

from dart.baselines.deformable import DeformableTokenizer, Deformation
from dart.baselines.quadtree import QuadtreeTokenizer
from dart.registry import BASELINES, MODES, POS_EMBEDS, TOKENIZERS
from dart.scorer import build_scorer
from dart.tokenizer import DartTokenizer, check_budget, one_of, to_pair

REGION_OPTIONS = ("partition", "row_weight", "score_floor", "score_blur", "sampling")
IMAGE_TOKENIZERS = {
    "dart": DartTokenizer,
    "uniform": DartTokenizer,
    "quadtree": QuadtreeTokenizer,
    "deformable": DeformableTokenizer,
}
TOKENIZER_OPTIONS = (  # what a model hands through
    "scorer", "pretrained_scorer", "frozen_scorer", "score_input", "scorer_stage", "scorer_norm", "num_rows",
    *REGION_OPTIONS,
)  # fmt: skip


def build_tokenizer(
    embed_dim: int,
    *,
    tokenizer: str,
    token_budget: int,
    mode: str = "invariant",
    img_size: int | tuple[int, int] = 448,
    patch_size: int = 16,
    in_chans: int = 3,
    num_frames: int | None = None,
    pos_embed: str = "table",
    table_size: int = 14,
    scorer: str | None = None,
    pretrained_scorer: bool = False,
    frozen_scorer: bool | None = None,
    score_input: int | str | None = 224,
    scorer_stage: int | None = None,
    scorer_norm: str | None = None,
    num_rows: int | None = None,
    **regions: Any,
) -> Any:
    """A `DartTokenizer`, or one of `dart.baselines`, `dart.video` or `dart.paper`, which need torchvision's networks.

    Args:
        embed_dim: D.
        tokenizer: "dart", "uniform", or of images "quadtree" and "deformable" (`dart.baselines`).
        token_budget: N, per image or clip.
        mode: "invariant", or "paper" for the authors' to the letter, whose checkpoints load.
        img_size: H, W that the model is made for, or one number; invariant models take any other size too.
        patch_size: P.
        in_chans: C.
        num_frames: T that the model is made for, of clips (B, C, T, H, W); None for images.
        pos_embed, table_size: How the model tells where tokens are; paper mode knows a table of 14 x 14 alone.
        scorer: A name of `dart.scorer.build_scorer` (None: "conv"), or of `dart.paper.scorer.SCORERS`
            (None: "mobilenetv3_small_v1"). `timm.create_model` leaves out what is None: there it is the model's own.
        pretrained_scorer, frozen_scorer, score_input, scorer_stage, scorer_norm: See `dart.scorer.build_scorer`.
        num_rows: See `dart.tokenizer.DartTokenizer`.
        regions: `REGION_OPTIONS`, see there too.

    Raises:
        ValueError: an unknown name, or a choice that the mode does not have.
    """
    one_of("mode", mode, MODES)
    one_of("tokenizer", tokenizer, TOKENIZERS)
    one_of("pos_embed", pos_embed, POS_EMBEDS)
    if odd := [key for key in regions if key not in REGION_OPTIONS]:
        raise TypeError(f"unknown keyword argument {odd[0]}")
    if mode == "paper":
        unread = {
            **regions,
            "frozen_scorer": frozen_scorer,
            "scorer_stage": scorer_stage,
            "scorer_norm": scorer_norm,
            "tokenizer": None if tokenizer == "dart" else tokenizer,
            "pos_embed": None if pos_embed == "table" else pos_embed,
            "table_size": None if table_size == 14 else table_size,
        }
        refuse_unread({key: value for key, value in unread.items() if key in regions or value is not None})
        budget = {"token_budget": token_budget, "num_rows": num_rows, "pretrained_scorer": pretrained_scorer}
        shape = (img_size, patch_size, in_chans, embed_dim)
        return _build_paper(shape, num_frames, scorer, str(score_input), budget)
    make_scorer: Any = build_scorer
    make_tokenizer: Any = IMAGE_TOKENIZERS[tokenizer]
    if num_frames is not None:
        if tokenizer in BASELINES:
            raise ValueError(f"num_frames = {num_frames}: the {tokenizer} tokenizer reads images; leave it out")
        from dart.video import VideoTokenizer, build_video_scorer

        make_scorer, make_tokenizer, regions = build_video_scorer, VideoTokenizer, {**regions, "num_frames": num_frames}
    options = {"pretrained": pretrained_scorer, "frozen": frozen_scorer, "score_input": score_input}
    options |= {"stage": scorer_stage, "norm": scorer_norm}
    network: Any = Deformation(in_chans) if tokenizer == "deformable" else None
    if tokenizer == "dart":
        network = make_scorer(scorer or "conv", in_chans, **options)
    return make_tokenizer(
        img_size, patch_size, in_chans, embed_dim, network,
        token_budget=token_budget, num_rows=num_rows, pos_embed=pos_embed,
        norm_layer=nn.LayerNorm if pos_embed == "geometry" else None, **regions,
    )  # fmt: skip


def set_token_budget(patch_embed: Any, token_budget: int, num_rows: int | None) -> None:
    """Make another number of patch tokens per image or clip the usual one; no weight changes."""
    height, width = patch_embed.img_size
    check_budget(token_budget, (height * getattr(patch_embed, "num_frames", 1), width))
    patch_embed.plan(token_budget, num_rows)
    patch_embed.num_patches, patch_embed.num_rows = token_budget, num_rows


def record_changes(model: Any, **arguments: Any) -> None:
    """Have timm's export to the hub describe a model as it is now: its usual image size, and these arguments."""
    try:
        from timm.models._input import update_model_args, update_model_input_size
    except ImportError:  # an older timm exports the arguments that its caller names, and no others
        return
    update_model_input_size(model, model.patch_embed.img_size)
    update_model_args(model, **arguments)


def _build_paper(
    shape: tuple[Any, int, int, int], num_frames: int | None, scorer: str | None, score_input: str, budget: Any
) -> nn.Module:
    if num_frames is None:
        from dart.paper import PaperTokenizer

        return PaperTokenizer(*shape, scorer=scorer or "mobilenetv3_small_v1", score_input=score_input, **budget)
    from dart.paper.video import FRAME_PX, VideoTokenizer

    if scorer is not None:  # there is one of clips
        refuse_unread({"scorer": scorer})
    img_size, patch_size, in_chans, embed_dim = shape
    if to_pair(img_size) != (FRAME_PX, FRAME_PX) or in_chans != 3:
        said = f"img_size = {img_size}, in_chans = {in_chans}"
        raise ValueError(f"{said}: clips of paper mode are {FRAME_PX} px and RGB; use mode='invariant'")
    return VideoTokenizer(num_frames, embed_dim=embed_dim, patch_size=patch_size, **budget)


def refuse_unread(unread: dict[str, Any]) -> None:
    """Raise ValueError naming the options that paper mode does not read, if there are any."""
    if unread:
        said = ", ".join(f"{key} = {value!r}" for key, value in unread.items())
        raise ValueError(f"{said}: paper mode has no such choice; leave it out, or use mode='invariant'")
