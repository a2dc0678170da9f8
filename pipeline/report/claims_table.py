"""Verdicts as tables: CSV, Markdown, and the plain rows of the page. Every claim has a row, and no cell is blank."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from pipeline.report import formats
from pipeline.report.claims import Claim
from pipeline.report.records import Records
from pipeline.report.results import SHARES, Results, collect
from pipeline.report.statistics import CONFIDENCE, Interval
from pipeline.report.tables import comparison, sweep
from pipeline.report.verdicts import VERDICTS, Judgement, judge_all

NONE = "none"
FIGURES = ("paper", "tolerance", "ours", "difference", "ci_low", "ci_high")
TITLES = {
    "id": "Claim",
    "statement": "Statement",
    "paper": "Claimed",
    "ours": "Ours",
    "difference": "Difference",
    "interval": f"{100 * CONFIDENCE:.0f} % interval",
    "verdict": "Verdict",
    "source": "Source",
}
WAYS = {
    "difference_at_least": "at least {}",
    "difference_at_most": "at most {}",
    "ratio_at_least": "at least {}",
    "ratio_at_most": "at most {}",
}
HOW_JUDGED = (
    "Difference: ours less the claimed figure, so of a comparison how much more than claimed. Interval: of ours, from "
    "the spread over seeds (Student's; Welch's of a difference); none where there is one seed, of ratios, and of what "
    "has no seeds.",
    "A claim that needs two seeds or more is confirmed where the whole interval agrees with it, refuted where none of "
    "it does, and has too few seeds where the interval lies across the border. One that needs fewer is judged by the "
    "figure itself.",
)
BY_INTERVAL = "Every verdict stands for itself: of {} such verdicts at 95 %, one in twenty is expected to err."
RECALLED = "Recalled: the figure was not looked up for this file; verify it before printing."


def judge_records(records: Records) -> list[Judgement]:
    """The verdicts on a suite's own claims, over its experiments and the points of its sweep."""
    return judge_all(records.claims, record_results(records)) if records.claims else []


def record_results(records: Records) -> Results:
    """The recorded runs as anybody's results; where a point of the sweep has an experiment's name, the experiment."""
    tables = [comparison(records), sweep(records)]
    rows = [row for table in tables for row in table.astype(object).where(table.notna(), None).to_dict("records")]
    known: dict[str, dict[str, Any]] = {}
    for row in rows:
        known.setdefault(row["experiment"], {str(key): value for key, value in row.items()})
    return collect(records.suite, tables[0].columns, known.values())


def to_csv(judgements: Sequence[Judgement]) -> str:
    """All that is known of every claim; figures in the unit of the results, unknown is empty."""
    table = pd.DataFrame([_facts(judgement) for judgement in judgements])
    return formats.to_csv(table.astype({"num_seeds": "Int64", **dict.fromkeys(FIGURES, "float64")}))


def to_markdown(suite: str, judgements: Sequence[Judgement]) -> str:
    """The verdicts for people, and how they come about."""
    rows = [{**row, "verdict": ": ".join(filter(None, (row["verdict"], row["reason"])))} for row in shown(judgements)]
    table = pd.DataFrame(rows)[list(TITLES)].rename(columns=TITLES)
    parts = [f"# {suite}: claims", tally(judgements), formats.markdown(table), formats.bullets(how_judged(judgements))]
    return "\n\n".join(parts) + "\n"


def how_judged(judgements: Sequence[Judgement]) -> list[str]:
    """What the verdicts mean, and what they do not."""
    by_interval = sum(judgement.claim.seeds > 1 for judgement in judgements)
    recalled = any(judgement.claim.recalled for judgement in judgements)
    said = [*HOW_JUDGED, *([BY_INTERVAL.format(by_interval)] if by_interval else [])]
    return [*said, *([RECALLED] if recalled else [])]


def tally(judgements: Sequence[Judgement]) -> str:
    """`12 claims: 3 confirmed, 9 not run.`"""
    counts = Counter(judgement.verdict for judgement in judgements)
    named = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"{len(judgements)} claim{'' if len(judgements) == 1 else 's'}: {named}."


def shown(judgements: Sequence[Judgement]) -> list[dict[str, str]]:
    """The rows of the page, all text: the keys of `TITLES`, and the `reason` of a verdict that is no answer.

    To sort by: `unit`, and the exact figure of each column of figures as `KEY_number`, empty where there is none.
    """
    return [_row(judgement) | _numbers(judgement) for judgement in judgements]


def _row(judgement: Judgement) -> dict[str, str]:
    claim, interval = judgement.claim, judgement.interval
    return {
        "id": claim.id,
        "statement": " ".join(filter(None, (claim.statement, claim.note and f"({claim.note})"))),
        "source": claim.source + (" (recalled)" if claim.recalled else ""),
        "paper": _claimed(claim),
        "ours": _figure(claim, judgement.ours),
        "difference": _figure(claim, judgement.difference, signed=True),
        "interval": NONE if interval is None else _interval(claim, interval),
        "verdict": judgement.verdict,
        "reason": judgement.reason,
    }


def _numbers(judgement: Judgement) -> dict[str, str]:
    """Of figures in different units one cannot be above the other."""
    claim, way = judgement.claim, judgement.claim.way
    kind = "ratio" if way.startswith("ratio") else "value" if way == "value" else "difference"
    known = {"paper": claim.claimed, "ours": judgement.ours, "difference": judgement.difference}
    exact = {f"{key}_number": "" if number is None else f"{number:.9g}" for key, number in known.items()}
    return {"unit": kind if kind == "ratio" else f"{kind} of {claim.measure}"} | exact


def _claimed(claim: Claim) -> str:
    if claim.way == "level_within":
        return f"level, within {_figure(claim, claim.level_within)}"
    text = WAYS.get(claim.way, "{}").format(_figure(claim, claim.claimed, claim.way.startswith("difference")))
    return text + (f" (± {_figure(claim, claim.tolerance)})" if claim.tolerance else "")


def _figure(claim: Claim, value: float | None, signed: bool = False) -> str:
    """In the unit that people read the measure in."""
    if value is None:
        return NONE
    sign = "+" if signed and value >= 0 else ""
    sign = "-" if value < 0 else sign
    size = abs(value)
    if claim.way.startswith("ratio"):
        return f"{sign}{size:.3f} x"
    if claim.measure in SHARES:
        difference = signed or claim.way != "value"
        return f"{sign}{100 * size:.1f} {'points' if difference else '%'}"
    if claim.measure == "params":
        return sign + formats.count(size)
    return sign + (formats.gflops(size) if size else "0")


def _interval(claim: Claim, interval: Interval) -> str:
    low, high = (_figure(claim, end) for end in interval)
    number, unit = high.partition(" ")[::2]
    return f"{low.removesuffix(f' {unit}')} to {number} {unit}".rstrip()


def _facts(judgement: Judgement) -> dict[str, Any]:
    claim, interval = judgement.claim, judgement.interval
    return {
        **{"id": claim.id, "kind": claim.way, "experiment": claim.experiment, "than": claim.than or ""},
        **{"measure": claim.measure, "paper": _exact(claim.claimed)},
        "tolerance": _exact(claim.level_within or claim.tolerance),
        **{"ours": _exact(judgement.ours), "difference": _exact(judgement.difference)},
        "ci_low": _exact(interval and interval.low),
        "ci_high": _exact(interval and interval.high),
        "num_seeds": judgement.num_seeds,
        **{"seeds_needed": claim.seeds, "verdict": judgement.verdict, "reason": judgement.reason},
        **{"statement": claim.statement, "note": claim.note or "", "source": claim.source, "recalled": claim.recalled},
    }


def _exact(value: float | None) -> float | None:
    """With seven significant digits."""
    return None if value is None else float(f"{value:.7g}")
