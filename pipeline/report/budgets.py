"""Records -> the table of token budgets: the same weights at each of many, and with budgets that follow the image.

A pure function of the records, in their order; only complete runs are averaged, and `num_seeds` says how many.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import pandas as pd

from pipeline.measures import Task
from pipeline.report.records import Records, Run, by_name
from pipeline.report.tables import known_mean, known_std

ONE_BUDGET = "the same for all"  # what `spent` says where budgets do not follow images
HELD = {"batch": "batch", "dataset": "data set"}  # over what the mean is held, in words
KEY = ["experiment", "spent", "token_budget"]
FACTS = {
    **dict.fromkeys(("experiment", "tokenizer", "trained_at", "began_with", "spent", "fingerprint"), "str"),
    **dict.fromkeys(("token_budget", "seed"), "int64"),
    **dict.fromkeys(("tokens", "gflops"), "float64"),
}
NOTE = (
    "Every experiment is one set of weights per seed, asked at each budget. Where budgets follow the image, tokens are "
    "the mean over the test split, and GFLOPs count the look that tells what an image needs: for `spread` the scorer "
    "once more, for `uncertainty` a pass with the lowest budget, whose answer stands where nothing is added. Held over "
    "the batch, an image's budget depends on its batch mates; held over the data set, by a rule chosen on the val "
    "split, it does not."
)


def columns(task: Task) -> list[str]:
    """One row per experiment, way of spending, and budget: the columns of budgets.csv."""
    measures = chain(*((f"{measure.name}_mean", f"{measure.name}_std") for measure in task.measures))
    return [*KEY, "tokenizer", "trained_at", "tokens", *measures, "num_seeds", "gflops", "run_ids", "began_with"]


def budget_table(records: Records) -> pd.DataFrame:
    """What the runs of the table say at every budget that they were asked at; no rows where nobody asked.

    token_budget: Patch tokens per image that were to be spent on average; tokens: that were. trained_at: budgets;
    began_with: the budget of the first steps, empty where they were like all others.
    """
    task, measures = records.task, [measure.name for measure in records.task.measures]
    types = FACTS | dict.fromkeys(measures, "float64")
    lines = [line for run in records.runs if not run.problem for line in _lines(run, task)]
    groups = pd.DataFrame(lines, columns=list(types)).astype(types).groupby(KEY, sort=False)
    table = groups.agg(
        **{name: (name, "first") for name in ("tokenizer", "trained_at", "began_with")},
        **{name: (name, "mean") for name in ("tokens", "gflops")},
        **{f"{name}_mean": (name, known_mean) for name in measures},
        **{f"{name}_std": (name, known_std) for name in measures},
        num_seeds=("seed", "size"),
        run_ids=("fingerprint", " ".join),
    ).reset_index()
    return table.assign(tokens=table["tokens"].round(2))[columns(task)]


def asked_runs(records: Records) -> dict[str, list[Run]]:
    """{EXPERIMENT/at/BUDGET, /SIGNAL/HELD behind it where budgets follow the image: the runs of a row of the table}.

    The runs are all of the experiment, in the order of the table's rows. Their `test` is what they answered at this
    budget, None where they were not asked.
    """
    groups = by_name(records.runs)
    places = dict.fromkeys(place for run in records.runs if not run.problem for place in _found(run))
    return {place: [_asked(run, place) for run in groups[place.rpartition("/at/")[0]]] for place in places}


def trained_for(row: Any) -> bool:
    """Whether a row's model was trained at the budget of the row."""
    return str(row.token_budget) in row.trained_at.split()


def budget_cells(task: Task, percent: Callable[..., str], gflops: Callable[[Any], str]) -> dict[str, Any]:
    """What people read: title -> cell of a row of `budget_table`.

    Args:
        percent, gflops: Write a mean with its deviation, and a cost, as all tables do.
    """
    shown = [measure for measure in task.measures if measure.brief]
    return {
        "Experiment": lambda row: row.experiment,
        "Trained at": lambda row: (
            (f"{row.began_with}, then " if row.began_with else "") + row.trained_at.replace(" ", ", ")
        ),
        "Budget of an image": lambda row: row.spent,
        "Tokens": _tokens,
        **{
            measure.title: (lambda row, m=measure.name: percent(getattr(row, f"{m}_mean"), getattr(row, f"{m}_std")))
            for measure in shown
        },
        "Seeds": lambda row: str(row.num_seeds),
        "GFLOPs": lambda row: gflops(row.gflops),
    }


def _tokens(row: Any) -> str:
    return str(row.token_budget) if row.spent == ONE_BUDGET else f"{row.tokens:.1f}"


def _lines(run: Run, task: Task) -> Iterator[dict[str, Any]]:
    """One for each budget and way that the run was asked at."""
    science = run.science
    own = science["tokenizer"]["token_budget"]
    common = {
        "experiment": run.name,
        "seed": run.seed,
        "fingerprint": run.fingerprint,
        "tokenizer": science["tokenizer"]["name"],
        "trained_at": " ".join(map(str, science["train"].get("token_budgets") or [own])),
        "began_with": str(science["train"].get("token_warmup", {}).get("token_budget", "")),
    }
    for found in _found(run).values():
        follows = "signal" in found
        yield {
            **common,
            "spent": f"{found['signal']}, held over the {HELD[found['held']]}" if follows else ONE_BUDGET,
            "token_budget": found["token_budget"],
            "tokens": found["mean_tokens"] if follows else found["token_budget"],
            "gflops": found["macs"] / 1e9,
            **{measure.name: found.get(measure.name) for measure in task.measures},
        }


def _found(run: Run) -> dict[str, dict[str, Any]]:
    """{place: what was found there} of a run, in the order of the record."""
    test, start = run.test or {}, f"{run.name}/at/"
    same = {f"{start}{found['token_budget']}": found for found in test.get("budgets", ())}
    follow = {f"{start}{of['token_budget']}/{of['signal']}/{of['held']}": of for of in test.get("adaptive", ())}
    return same | follow


def _asked(run: Run, place: str) -> Run:
    found, num_samples = _found(run).get(place), (run.test or {}).get("num_samples", "not recorded")
    return replace(run, test=found and {"num_samples": num_samples, **found})
