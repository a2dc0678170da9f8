"""How many tokens a reducer leaves after every block, from one number: `keep`. Imports nothing heavy.

`keep` is the share of the patch tokens that the last block leaves, class and register tokens not counted. On the way
there each method goes as its paper goes:

- ToMe merges in every block, as many in each as in any other ("a constant schedule"), or half of the tokens where so
  many are no longer there.
- EViT and ATS decide in the middle of the blocks at 1/4, 2/4 and 3/4 of the depth (of twelve: 3, 6 and 9, counted from
  0), by the attention in that block. Every stage leaves the same share of what it finds. (ATS has been published with
  more stages; the same three make it comparable.)
- DynamicViT decides before those blocks, and never before the first: its predictor looks at tokens, and those must
  have seen each other.

So a number of tokens is no measure of cost between methods: compare multiply-accumulates, which are counted.
"""

from dart.registry import REDUCERS


def plan_stages(name: str, depth: int) -> tuple[int, ...]:
    """The blocks, counted from 0, in which (of dynamicvit: before which) tokens go; increasing.

    Args:
        name: Of `dart.registry.REDUCERS`.
        depth: Number of blocks.
    """
    if name == "tome":
        return tuple(range(depth))
    if name == "dynamicvit":
        return tuple(sorted({min(max(1, (depth * i + 2) // 4), depth - 1) for i in (1, 2, 3)}))
    return tuple(sorted({depth * i // 4 for i in (1, 2, 3)}))


def plan_counts(name: str, keep: float, num_tokens: int, depth: int) -> tuple[int, ...]:
    """Patch tokens that leave each block: not increasing, at least 1, round(keep x num_tokens) in the end.

    Args:
        name: Of `dart.registry.REDUCERS`.
        keep: In (0, 1].
        num_tokens: Patch tokens that come to the first block.
        depth: Number of blocks.

    Raises:
        ValueError: an unknown name, a share out of range, or more merging than ToMe can do: in every block at most half
            of the tokens find a partner.
    """
    check_reducer(name, keep)
    if name == "tome":
        return _even_counts(keep, num_tokens, depth)
    stages = plan_stages(name, depth)
    done = [sum(stage <= block for stage in stages) for block in range(depth)]
    return tuple(max(1, round(num_tokens * keep ** (i / len(stages)))) for i in done)


def check_reducer(name: str, keep: float) -> None:
    """Refuse a name that is unknown, or a share that is none, with ValueError."""
    if name not in REDUCERS:
        raise ValueError(f"reducer.name = {name!r}: unknown; known: {', '.join(REDUCERS)}")
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise ValueError(f"reducer.keep = {keep!r}: must be above 0 and at most 1, the share of tokens that is left")


def _even_counts(keep: float, num_tokens: int, depth: int) -> tuple[int, ...]:
    left = max(1, round(keep * num_tokens))
    least = num_tokens
    for _ in range(depth):
        least = (least + 1) // 2
    if left < least:
        rule = f"tome merges at most half of the tokens in each of {depth} blocks"
        raise ValueError(f"reducer.keep = {keep!r}: {rule}; use at least {least} / {num_tokens}")
    few, many = num_tokens - left, depth * num_tokens  # to be gone; the more, the fewer are left: halve the interval
    while few < many:
        middle = (few + many) // 2
        few, many = (few, middle) if _leave(middle, left, num_tokens, depth)[-1] == left else (middle + 1, many)
    return _leave(few, left, num_tokens, depth)


def _leave(gone: int, left: int, num_tokens: int, depth: int) -> tuple[int, ...]:
    """`gone` tokens spread over the blocks, but never more than half of what comes, and never less than `left`."""
    counts = [num_tokens]
    for block in range(1, depth + 1):
        counts.append(max(num_tokens - gone * block // depth, (counts[-1] + 1) // 2, left))
    return tuple(counts[1:])
