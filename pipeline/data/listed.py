"""What data sets in a folder of the user's share: files are listed with their hashes, bad ones counted and named."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

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


def count_reasons(dropped: Iterable[Dropped]) -> dict[str, int]:
    """How many for each reason, without its details; the most frequent first."""
    counts = Counter(re.split(r"[:(,]| at ", reason)[0].strip() for _, reason in dropped)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def read_listed(path: Path, sha256: str, what: str) -> bytes:
    """The file's bytes; raises UserError if they are not those that were listed.

    Args:
        what: The file is, in the singular.
    """
    if not path.is_file():
        raise UserError(f"{path}: {what} is gone since it was listed; run the stage `fetch` again")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{path}: {what} has changed since it was listed; run the stage `fetch` again")
    return data
