"""What timm does with a checkpoint before it loads it (`pretrained_filter_fn`): one of another size is fitted."""

from typing import Any

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from dart.models.state_space import StateSpaceModel
from dart.models.vit import RegionVisionTransformer

SCORER = "patch_embed.scorer."


def filter_checkpoint(state: dict[str, Any], model: RegionVisionTransformer | StateSpaceModel) -> dict[str, Tensor]:
    """A checkpoint of ours as it is; weights of the plain model complete, with this model's own scorer.

    A segmenter takes a classifier's weights, and keeps its own head.

    Raises:
        ValueError: the checkpoint has a position table and the model none, or it is another architecture's.
    """
    own = model.state_dict()
    state = _fit_head(_fit_scorer(state.get("model", state), own), own)
    state = {**{k: v for k, v in own.items() if k.startswith(SCORER)}, **state}
    table = state.get("pos_embed")
    if table is not None and model.pos_embed is None:
        raise ValueError("checkpoint has pos_embed: the model has no table; create it with pos_embed='table'")
    if isinstance(model, StateSpaceModel):
        state = model.fit_entries(state)
    elif table is not None and table.shape[:2] != own["pos_embed"].shape[:2]:
        size = list(model.table_size)
        state["pos_embed"] = resample_abs_pos_embed(table, size, num_prefix_tokens=model.num_table_prefixes)
    # timm fits the head to the classes and the projection to the channels afterwards.
    found, wanted = _fixed_shapes(state), _fixed_shapes(own)
    if odd := sorted(name for name in found.keys() | wanted if found.get(name) != wanted.get(name)):
        name = odd[0]
        said, ours = (tuple(entries[name].shape) if name in entries else "missing" for entries in (state, own))
        raise ValueError(
            f"checkpoint {name} = {said}: the model's is {ours}, and {len(odd) - 1} more entries differ; "
            "it is the checkpoint of another architecture"
        )
    return state


def _fit_scorer(state: dict[str, Any], own: dict[str, Tensor]) -> dict[str, Any]:
    """An image's scorer as that of the frames, where the model's own has one of frames and the checkpoint's has none.

    All entries or none: of some the names are those of both, as `head.weight` is of the light scorers.
    """
    frames = SCORER + "frames."
    if any(k.startswith(frames) for k in state) or not any(k.startswith(frames) for k in own):
        return state
    return {frames + k.removeprefix(SCORER) if k.startswith(SCORER) else k: v for k, v in state.items()}


def _fit_head(state: dict[str, Any], own: dict[str, Tensor]) -> dict[str, Any]:
    """The head of a segmenter as the model has it, where the checkpoint has one of image classes, or none."""
    decode = "head.decode.weight"
    if decode not in own or decode in state:
        return state
    return {
        k: v
        for source, head in ((state, False), (own, True))
        for k, v in source.items()
        if k.startswith("head.") == head
    }


def _fixed_shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """What nobody adapts of the entries' shapes: not the head's, and of the projection all but its channels."""
    shapes = {name: tuple(value.shape) for name, value in state.items() if not name.startswith("head.")}
    projection = "patch_embed.proj.weight"
    return shapes | ({projection: shapes[projection][:1] + shapes[projection][2:]} if projection in shapes else {})
