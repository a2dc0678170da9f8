"""What data sets in a folder of the user's share: files are listed with their hashes, bad ones counted and named."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.data.archives import shown
from pipeline.data.index import Dropped
from pipeline.errors import UserError, problem

NUM_NAMED = 5  # bad files that an error names; the rest it counts


def refuse_too_many(max_bad_frac: float, total: int, dropped: Sequence[Dropped], what: str) -> None:
    """Raise UserError, naming the first of them, if more of `total` files are bad than the suite allows.

    Args:
        what: They are, in the plural.
    """
    if len(dropped) <= max_bad_frac * total:
        return
    named = ", ".join(f"{shown(file)} {shown(reason)}" for file, reason in dropped[:NUM_NAMED])
    more = f", and {len(dropped) - NUM_NAMED} more" if len(dropped) > NUM_NAMED else ""
    counts = ", ".join(f"{count} x {reason}" for reason, count in count_reasons(dropped).items())
    rule = f"{len(dropped)} of {total} {what} cannot be used ({counts}): {named}{more}"
    raise UserError(problem("dataset.max_bad_frac", max_bad_frac, rule, "mend or remove them, or allow more"))


def refuse_unknown(path: str, unknown: Sequence[Dropped]) -> None:
    """Raise UserError, naming the first, for places behind which nobody can say what is lost, however much may be."""
    if not unknown:
        return
    named = ", ".join(f"{file} {reason}" for file, reason in unknown[:NUM_NAMED])
    more = f", and {len(unknown) - NUM_NAMED} more" if len(unknown) > NUM_NAMED else ""
    rule = f"what is lost cannot be counted: {named}{more}"
    raise UserError(problem("dataset.path", path, rule, "mend or remove them; dataset.max_bad_frac does not allow it"))


def count_reasons(dropped: Iterable[Dropped]) -> dict[str, int]:
    """How many for each reason, without its details; the most frequent first."""
    counts = Counter(re.split(r"[:(,]| at ", reason)[0].strip() for _, reason in dropped)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
