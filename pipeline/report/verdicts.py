"""Claims and results -> verdicts: what is confirmed, what is refuted, and why nothing can be said of the rest.

A claim allows our figure a band. A claim that needs two seeds or more has an answer where the whole interval of our
figure lies inside the band or outside of it; where it lies across the border, the seeds are too few to tell. A claim
that needs fewer is about one training, or about what has no seeds: the figure itself decides, and the claim's tolerance
must be more than seeds differ by.
"""

import difflib
import math
from collections.abc import Iterable
from typing import NamedTuple

from pipeline.report.claims import Claim
from pipeline.report.results import Results
from pipeline.report.statistics import Interval, Seeds, difference_interval, mean_interval

CONFIRMED, REFUTED = "confirmed", "refuted"
NOT_RUN, FAILED, TOO_FEW = "not run", "failed", "too few seeds"
VERDICTS = (CONFIRMED, REFUTED, NOT_RUN, FAILED, TOO_FEW)


class Judgement(NamedTuple):
    """A claim's verdict, and the figures that it rests on; None where there are none."""

    claim: Claim
    verdict: str
    reason: str  # of a verdict that is no answer, in a few words; empty else
    ours: float | None = None  # in the unit of the claim: a value, a difference or a ratio
    interval: Interval | None = None  # of ours
    num_seeds: int | None = None  # complete runs, of the experiment that has fewer

    @property
    def difference(self) -> float | None:
        """Ours less the claimed figure."""
        return None if self.ours is None else self.ours - self.claim.claimed


class Unknown(NamedTuple):
    """Why there is no figure of an experiment."""

    verdict: str
    reason: str


def judge_all(claims: Iterable[Claim], results: Results | None) -> list[Judgement]:
    """The verdict on every claim, in the order of the file; `results` None: nothing was run."""
    return [judge(claim, results) for claim in claims]


def judge(claim: Claim, results: Results | None) -> Judgement:
    """The verdict on one claim."""
    names = [claim.experiment] if claim.than is None else [claim.experiment, claim.than]
    found = [_find(claim, name, results) for name in names]
    for gap in found:
        if isinstance(gap, Unknown):
            return Judgement(claim, gap.verdict, gap.reason)
    figures = [figure for figure in found if isinstance(figure, Seeds)]
    num_seeds = min(figure.num for figure in figures)
    if claim.way.startswith("ratio") and figures[1].mean == 0:
        return Judgement(claim, FAILED, f"{claim.measure} of {claim.than} is 0: no ratio", None, None, num_seeds)
    ours, interval = _measure(claim, figures)
    if num_seeds < claim.seeds:
        gaps = "; ".join(filter(None, (results.status(name) for name in names if results)))
        reason = f"{num_seeds} of {claim.seeds}" + (f" ({gaps})" if gaps else "")
        return Judgement(claim, TOO_FEW, reason, ours, interval, num_seeds)
    if claim.seeds > 1 and interval is None:
        return Judgement(claim, TOO_FEW, "the spread over seeds is not known", ours, None, num_seeds)
    judged = interval if interval is not None and claim.seeds > 1 else Interval(ours, ours)
    verdict = _place(judged, band(claim))
    reason = f"the interval of {num_seeds} lies across the border of the claim" if verdict == TOO_FEW else ""
    return Judgement(claim, verdict, reason, ours, interval, num_seeds)


def band(claim: Claim) -> Interval:
    """Where a claim wants our figure to be, in the figure's unit; both ends belong to it."""
    tolerance, claimed = claim.tolerance or 0.0, claim.claimed
    if claim.way == "level_within":
        assert claim.level_within is not None
        return Interval(-claim.level_within, claim.level_within)
    if claim.way == "value":
        return Interval(claimed - tolerance, claimed + tolerance)
    if claim.way.endswith("at_least"):
        return Interval(claimed - tolerance, math.inf)
    return Interval(-math.inf, claimed + tolerance)


def _find(claim: Claim, name: str, results: Results | None) -> Seeds | Unknown:
    """The figure of an experiment, or why there is none."""
    if results is None:
        return Unknown(NOT_RUN, claim.absent or f"no results of {name}")
    if name not in results.rows:
        return Unknown(NOT_RUN, claim.absent or _no_record(name, results))
    if not results.has(claim.measure):
        return Unknown(NOT_RUN, f"the results have no column {claim.measure}")
    figure = results.figure(name, claim.measure)
    if figure is not None:
        return figure
    if results.num_seeds(name) == 0:
        return Unknown(FAILED, f"{name}: {results.status(name) or 'no complete run'}")
    plain = f"{claim.measure}_mean" not in results.columns and "seed" not in results.columns
    return Unknown(NOT_RUN, f"{name}: not measured") if plain else Unknown(FAILED, f"{name}: not known of every run")


def _no_record(name: str, results: Results) -> str:
    near = difflib.get_close_matches(name, list(results.rows), n=1, cutoff=0.8)
    return f"no record of {name}" + (f"; did you mean {near[0]!r}?" if near else "")


def _measure(claim: Claim, figures: list[Seeds]) -> tuple[float, Interval | None]:
    """Our figure in the unit of the claim, and its interval. A ratio of costs has none."""
    if claim.kind == "value":
        return figures[0].mean, mean_interval(figures[0])
    ours, theirs = figures
    if claim.way.startswith("ratio"):
        return ours.mean / theirs.mean, None
    return ours.mean - theirs.mean, difference_interval(ours, theirs)


def _place(interval: Interval, wanted: Interval) -> str:
    """Inside, outside or across; rounding of decimal figures moves no border."""
    slack = 1e-9 * max(1.0, *(abs(end) for end in (*interval, *wanted) if math.isfinite(end)))
    if interval.low >= wanted.low - slack and interval.high <= wanted.high + slack:
        return CONFIRMED
    outside = interval.high < wanted.low - slack or interval.low > wanted.high + slack
    return REFUTED if outside else TOO_FEW
