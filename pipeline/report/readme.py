"""README and docs show the results that commands make: one block of a file comes from the report. Text in, text out."""

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import UserError

README = "README.md"
START, END = "<!-- report -->", "<!-- /report -->"
SUMMARY = "summary.md"  # in the report of a suite: what the README shows of it
PICTURES = (
    "accuracy-vs-gflops.png",
    "accuracy-vs-budget.png",
    "what-the-model-sees.png",
)  # in the figures of a suite's report


def insert(text: str, summaries: Mapping[str, str], name: str = README) -> str:
    """The text of a file with the summaries, {suite: text}, between its two marker lines.

    Args:
        summaries: Their pictures are links to figures/NAME; in the file these lead to `picture_path`.
        name: The file's, relative to the repository.

    Raises:
        UserError: not each marker is there once, in order, on a line of its own.
    """
    lines = text.splitlines()
    places = [i for i, line in enumerate(lines) if line.strip() in (START, END)]
    if [lines[i].strip() for i in places] != [START, END]:
        raise UserError(f"{name}: needs one line {START} and below it one line {END}; the results come between them")
    texts = [shown.strip().replace("](figures/", f"]({_link(suite, name)}") for suite, shown in summaries.items()]
    block = "\n\n".join(["", *texts, ""]).splitlines()[1:]
    return "\n".join([*lines[: places[0] + 1], *block, *lines[places[1] :]]) + "\n"


def picture_path(suite: str, name: str) -> str:
    """Where a copy of the suite's picture is kept with the sources, relative to the repository."""
    return f"docs/figures/{suite}-{name}"


def _link(suite: str, name: str) -> str:
    """How the links to a suite's pictures begin in this file."""
    return os.path.relpath(picture_path(suite, ""), Path(name).parent)
