"""The README shows the results that its commands make: one block of it comes from the report. Text in, text out."""

from collections.abc import Mapping

from pipeline.errors import UserError

START, END = "<!-- report -->", "<!-- /report -->"
SUMMARY = "summary.md"  # in the report of a suite: what the README shows of it
PICTURES = ("accuracy-vs-gflops.png", "what-the-model-sees.png")  # in the figures of a suite's report


def insert(readme: str, summaries: Mapping[str, str]) -> str:
    """The README with the summaries, {suite: text}, between its two marker lines.

    Args:
        summaries: Their pictures are links to figures/NAME; in the README these are at `picture_path`.

    Raises:
        UserError: not each marker is there once, in order, on a line of its own.
    """
    lines = readme.splitlines()
    places = [i for i, line in enumerate(lines) if line.strip() in (START, END)]
    if [lines[i].strip() for i in places] != [START, END]:
        raise UserError(f"README.md: needs one line {START} and below it one line {END}; the results come between them")
    texts = [text.strip().replace("](figures/", f"]({picture_path(suite, '')}") for suite, text in summaries.items()]
    block = "\n\n".join(["", *texts, ""]).splitlines()[1:]
    return "\n".join([*lines[: places[0] + 1], *block, *lines[places[1] :]]) + "\n"


def picture_path(suite: str, name: str) -> str:
    """Where a copy of the suite's picture is kept with the sources, relative to the README."""
    return f"docs/figures/{suite}-{name}"
