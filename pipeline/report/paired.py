"""Every experiment against the first one, sample by sample: the same test samples, answered by both.

A pure function of the recorded predictions. The score of a sample is 1 where it is right and 0 where it is not, or
the mIoU of its image; of an experiment, the mean over its complete runs.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.report import formats
from pipeline.report.formats import NOT_MEASURED, bullets, markdown, percent
from pipeline.report.records import Records, Run, by_name
from pipeline.report.scores import Scores, run_scores
from pipeline.report.statistics import (
    CONFIDENCE,
    Floats,
    Interval,
    Seeds,
    difference_p,
    holm,
    mcnemar,
    nested_bootstrap,
    percentiles,
    resampled_means,
    sign_flip,
)
from pipeline.report.tables import rows

COLUMNS = ["experiment", "against", "num_seeds", "num_samples", "mean", "boot_low", "boot_high", "difference"]
COLUMNS += ["difference_low", "difference_high", "p_samples", "p_samples_holm", "p_seeds", "p_seeds_holm", "mcnemar"]
TITLES = ["Experiment", "Score (%)", "Bootstrap", "Difference", "Bootstrap of it", "p, samples", "p, seeds"]
P_DIGITS = 3
SMALLEST_SHOWN = 1e-8  # of many corrected ones


class Group(NamedTuple):
    """The complete runs of an experiment and their scores, one column per run."""

    name: str
    runs: tuple[Run, ...]
    scores: Floats  # (n, S)


@lru_cache(maxsize=4)  # its files and the page ask for it
def paired(records: Records) -> pd.DataFrame:
    """One row per experiment that has complete runs, with `COLUMNS`; the first one has nothing to be compared with.

    Samples that any of these runs has no score of are left out of all. Not to be changed in place.
    """
    groups = _groups(records)
    if len(groups) < 2 or not len(groups[0].scores):
        return pd.DataFrame(columns=COLUMNS)
    means = np.split(
        resampled_means(np.concatenate([group.scores for group in groups], axis=1)),
        np.cumsum([len(group.runs) for group in groups])[:-1],
        axis=1,
    )
    draws = [nested_bootstrap(of_group, seed) for seed, of_group in enumerate(means)]
    exact = len(records.task.scored) == 2
    first = _alone(groups[0], draws[0])
    others = [
        _alone(group, drawn) | _against(group, groups[0], drawn - draws[0], exact)
        for group, drawn in zip(groups[1:], draws[1:], strict=True)
    ]
    return _corrected(pd.DataFrame([first, *others], columns=COLUMNS))


def to_csv(table: pd.DataFrame) -> str:
    """All columns: shares with four decimals, p with three digits; unknown is empty."""
    text = table.copy()
    for name in table:
        if name in COLUMNS[4:10]:
            text[name] = table[name].map("{:.4f}".format, na_action="ignore")
        elif str(name).startswith("p_"):
            text[name] = table[name].map(_p, na_action="ignore")
    return formats.to_csv(text)


def to_markdown(records: Records, table: pd.DataFrame) -> str:
    """The same for people, and what it says and does not."""
    lines = [list(row.values()) for row in shown(table)]
    compared = [] if table.empty else [markdown(pd.DataFrame(lines, columns=TITLES))]
    return "\n\n".join([f"# {records.suite}: paired tests", *compared, bullets(notes(records, table))]) + "\n"


def shown(table: pd.DataFrame) -> list[dict[str, str]]:
    """The rows as text, by `TITLES`."""
    return [dict(zip(TITLES, _cells(row), strict=True)) for row in rows(table)]


def notes(records: Records, table: pd.DataFrame) -> list[str]:
    """What the numbers are, why there are none, and what is left out."""
    if table.empty:
        return [_why_empty(records), *_left_out(records)]
    first = table["experiment"].iloc[0]
    by_samples, by_seeds = (int(table[name].notna().sum()) for name in ("p_samples", "p_seeds"))
    return [
        f"Score: {records.task.score} over {table['num_samples'].iloc[0]} test samples and all complete seeds. "
        f"Difference: from {first}, in points.",
        f"Bootstrap: {100 * CONFIDENCE:.0f} % of means over samples and seeds drawn anew. Of three seeds it is too "
        "narrow: the intervals of table.csv and the p over seeds are the ones to trust.",
        "p, samples: sign-flip test over test samples of the mean over seeds, which with one seed is McNemar's exact "
        "test. It is about these trained models; other seeds may give others.",
        "p, seeds: Welch's test over the seeds' scores. It is about the recipe, and has little power with three seeds.",
        f"Both with Holm's correction for {by_samples} comparison{'' if by_samples == 1 else 's'} over samples and "
        f"{by_seeds} over seeds; paired.csv has them without it, and McNemar's p of every pair of equal seeds.",
        *_left_out(records),
    ]


def _why_empty(records: Records) -> str:
    if len(_groups(records)) < 2:
        return "Fewer than two experiments have complete runs with recorded answers."
    return f"No test sample has a score in every run, so nothing is compared; run: dvc repro evaluate@{records.suite}."


def _left_out(records: Records) -> list[str]:
    """Which complete runs are in no test."""
    scores = run_scores(records)
    runs = [run for run in records.runs if run.fingerprint in scores and not scores[run.fingerprint].keys]
    named = ", ".join(f"{run.name} seed {run.seed}" for run in runs)
    remedy = f"run: dvc repro evaluate@{records.suite}"
    return [f"Left out, complete but without recorded answers: {named}; {remedy}."] if runs else []


def _groups(records: Records) -> list[Group]:
    """Experiments with complete runs whose predictions are there, over the samples that all of them have."""
    scores = run_scores(records)
    named = by_name(run for run in records.runs if run.fingerprint in scores and scores[run.fingerprint].keys)
    columns = dict(zip(scores, _aligned(list(scores.values())), strict=True))
    return [
        Group(name, tuple(runs), np.stack([columns[run.fingerprint] for run in runs], axis=1))
        for name, runs in named.items()
    ]


def _aligned(scores: Sequence[Scores]) -> list[Floats]:
    """The values of the samples that all have, in the order of the first; empty ones take no part."""
    known = [one for one in scores if one.keys]
    if all(one.keys == known[0].keys for one in known):
        return [one.values for one in scores]
    shared = set[str].intersection(*(set(one.keys) for one in known))
    order = [key for key in known[0].keys if key in shared]
    places = [{key: i for i, key in enumerate(one.keys)} for one in scores]
    return [
        one.values[[at[key] for key in order]] if at else one.values for one, at in zip(scores, places, strict=True)
    ]


def _alone(group: Group, draws: Floats) -> dict[str, Any]:
    low, high = percentiles(draws)
    facts = {"experiment": group.name, "num_seeds": len(group.runs), "num_samples": len(group.scores)}
    return {**facts, "mean": group.scores.mean(), "boot_low": low, "boot_high": high}


def _against(group: Group, first: Group, draws: Floats, exact: bool) -> dict[str, Any]:
    """The differences from the first experiment, and how surprising they are if there are none."""
    low, high = percentiles(draws)
    ours, theirs = group.scores.mean(axis=1), first.scores.mean(axis=1)
    denominator = math.lcm(len(group.runs), len(first.runs)) if exact else None
    return {
        "against": first.name,
        "difference": ours.mean() - theirs.mean(),
        "difference_low": low,
        "difference_high": high,
        "p_samples": sign_flip(ours - theirs, denominator),
        "p_seeds": difference_p(Seeds.of(group.scores.mean(axis=0)), Seeds.of(first.scores.mean(axis=0))),
        "mcnemar": _seed_pairs(group, first) if exact else "",
    }


def _seed_pairs(group: Group, first: Group) -> str:
    """`seed 0: 1.2e-05; seed 1: 0.4`: of the models that share a seed."""
    theirs: Mapping[int, int] = {run.seed: i for i, run in enumerate(first.runs)}
    found = []
    for i, run in enumerate(group.runs):
        if run.seed in theirs:
            change = group.scores[:, i] - first.scores[:, theirs[run.seed]]
            found.append(f"seed {run.seed}: {_p(mcnemar(int((change > 0).sum()), int((change < 0).sum())))}")
    return "; ".join(found)


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """With Holm's correction over the comparisons of this table."""
    for name in ("p_samples", "p_seeds"):
        p = table[name].astype(float)
        table[f"{name}_holm"] = pd.Series(holm(p.dropna()), index=p.dropna().index).reindex(table.index)
    return table


def _cells(row: Any) -> Sequence[str]:
    boot = _span(Interval(row.boot_low, row.boot_high))
    if pd.isna(row.difference):
        return [row.experiment, percent(row.mean), boot, "is the first", "", "", ""]
    difference = f"{100 * row.difference:+.1f}"
    span = _span(Interval(row.difference_low, row.difference_high))
    tests = [NOT_MEASURED if pd.isna(p) else _p(p) for p in (row.p_samples_holm, row.p_seeds_holm)]
    return [row.experiment, percent(row.mean), boot, difference, span, *tests]


def _span(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _p(value: float) -> str:
    return f"{value:.{P_DIGITS}g}" if value >= SMALLEST_SHOWN else f"<{SMALLEST_SHOWN:g}"
