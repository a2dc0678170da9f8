"""A name and its options -> the reducer of a model."""

from collections.abc import Mapping
from typing import Any

from dart.baselines.ats import TokenSampling
from dart.baselines.dynamicvit import LearnedPruning
from dart.baselines.evit import AttentivePruning
from dart.baselines.reducer import Reducer
from dart.baselines.schedule import check_reducer
from dart.baselines.tome import TokenMerging
from dart.registry import REDUCERS

CLASSES: dict[str, Any] = {
    reducer.name: reducer for reducer in (TokenMerging, AttentivePruning, LearnedPruning, TokenSampling)
}


def build_reducer(
    options: Mapping[str, Any],
    *,
    num_tokens: int,
    depth: int,
    embed_dim: int,
    num_prefix_tokens: int,
    class_token: bool,
) -> Reducer:
    """A reducer for a transformer.

    Args:
        options: "name" and "keep", and exactly the options that `dart.registry.REDUCERS` has for that name.
        num_tokens: Patch tokens that the model usually has.
        depth, embed_dim, num_prefix_tokens, class_token: The model's.

    Raises:
        ValueError: an option that is missing, unknown or out of range; a share that cannot be reached.
    """
    given = dict(options)
    name, keep = (given.pop(key, None) for key in ("name", "keep"))
    if name is None or keep is None:
        raise ValueError(f"reducer = {dict(options)!r}: must have a name and keep, the share of tokens that is left")
    check_reducer(name, keep)
    if given.keys() != set(REDUCERS[name]):
        wanted = ", ".join(("name", "keep", *REDUCERS[name]))
        raise ValueError(f"reducer = {dict(options)!r}: {name} has exactly these options: {wanted}")
    if name == "dynamicvit":
        given["embed_dim"] = embed_dim
    reducer = CLASSES[name](keep, depth, num_prefix_tokens, class_token, **given)
    reducer.plan(num_tokens)
    return reducer
