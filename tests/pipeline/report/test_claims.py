"""Claims files are refused in one go, every claim gets a verdict, and the files here are about their suites."""

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import load_suite, load_yaml
from pipeline.errors import ConfigError, UserError
from pipeline.report import claims_table
from pipeline.report.claims import Claim, claims_path, load_claims, suite_claims
from pipeline.report.results import SHARES, Results, collect
from pipeline.report.site import write_tests
from pipeline.report.statistics import Seeds, mean_interval
from pipeline.report.tables import comparison
from pipeline.report.verdicts import CONFIRMED, FAILED, NOT_RUN, REFUTED, TOO_FEW, band, judge, judge_all

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "suites").glob("*/claims.yaml"))
COLUMNS = ("experiment", "top1_mean", "top1_std", "num_seeds", "gflops", "status")
Table = dict[str, tuple[float | None, float | None, int, float | None, str]]


def value(number: float = 0.7, tolerance: float = 0.05, **others: Any) -> Claim:
    said = {"id": "a", "statement": "a is so", "source": "a paper, table 1, row a", "kind": "value", "seeds": 3}
    said |= {"experiment": "a", "measure": "top1", "value": number, "tolerance": tolerance}
    return Claim.model_validate({**said, **others})


def versus(**way: Any) -> Claim:
    said = {"id": "a", "statement": "a against b", "source": "a paper", "kind": "comparison", "seeds": 3}
    return Claim.model_validate({**said, "experiment": "a", "than": "b", "measure": "top1", **way})


def table(**rows: tuple[float | None, float | None, int, float | None, str]) -> Results:
    """{experiment: mean, std, number of seeds, gflops, status}."""
    return collect("a table", COLUMNS, [dict(zip(COLUMNS, (name, *row), strict=True)) for name, row in rows.items()])


def at(mean: float, std: float = 0.01, num: int = 3) -> Results:
    return table(a=(mean, std, num, 1.0, "complete"))


@pytest.mark.parametrize(
    ("claim", "results", "verdict"),
    [
        (value(), at(0.72), CONFIRMED),
        (value(), at(0.80), REFUTED),
        (value(), at(0.60), REFUTED),
        (value(), at(0.72, std=0.1), TOO_FEW),  # the interval reaches beyond the tolerance
        (value(), at(0.72, num=2), TOO_FEW),
        (value(seeds=1), table(a=(0.72, None, 1, 1.0, "")), CONFIRMED),
        (value(seeds=1), at(0.72, std=0.1), CONFIRMED),  # about one training: the figure decides
        (value(), table(a=(None, None, 0, 1.0, "seed 0: failed: out of memory")), FAILED),
        (value(), table(a=(None, None, 3, 1.0, "complete")), FAILED),  # a NaN among the seeds
        (value(), table(b=(0.7, 0.01, 3, 1.0, "")), NOT_RUN),
        (value(), None, NOT_RUN),
        (value(1.0, 0.02, measure="gflops", seeds=0), at(0.5), CONFIRMED),
        (value(2.0, 0.02, measure="gflops", seeds=0), at(0.5), REFUTED),
        (value(1.0, 0.02, measure="gflops", seeds=0), table(a=(0.5, 0.1, 3, None, "")), NOT_RUN),
        (value(1.0, 0.02, measure="gflops", seeds=0), table(a=(None, None, 0, 1.0, "failed")), CONFIRMED),
        (value(1.0, 0.02, measure="images_per_s", seeds=0), at(0.5), NOT_RUN),  # no such column
    ],
)
def test_the_verdict_on_a_value(claim: Claim, results: Results | None, verdict: str) -> None:
    found = judge(claim, results)
    assert found.verdict == verdict
    assert bool(found.reason) == (verdict in (NOT_RUN, FAILED, TOO_FEW))


@pytest.mark.parametrize(
    ("way", "ours", "verdict"),
    [
        ({"difference_at_least": 0.1}, 0.65, CONFIRMED),
        ({"difference_at_least": 0.1}, 0.55, REFUTED),
        ({"difference_at_least": 0.1}, 0.61, TOO_FEW),
        ({"difference_at_least": 0.1, "tolerance": 0.08}, 0.55, CONFIRMED),
        ({"difference_at_most": 0.0}, 0.45, CONFIRMED),
        ({"difference_at_most": 0.0}, 0.55, REFUTED),
        ({"level_within": 0.03}, 0.501, CONFIRMED),
        ({"level_within": 0.03}, 0.56, REFUTED),
        ({"level_within": 0.03}, 0.53, TOO_FEW),
    ],
)
def test_the_verdict_on_a_difference(way: dict[str, float], ours: float, verdict: str) -> None:
    """Both have a deviation of 0.005 over 3 seeds: Welch's interval reaches 0.0113."""
    rows = {"a": (ours, 0.005, 3, 1.0, ""), "b": (0.5, 0.005, 3, 2.0, "")}
    assert judge(versus(**way), table(**rows)).verdict == verdict


@pytest.mark.parametrize(
    ("claim", "columns", "row"),
    [
        (value(measure="top1_mean"), ("top1_mean", "num_seeds"), (0.7, 3)),
        (value(), ("top1_mean", "num_seeds"), (0.7, 3)),
        (value(), ("top1", "num_seeds"), (0.7, 3)),
        (value(measure="top1_mean"), ("top1_mean", "top1_std", "num_seeds"), (0.7, 0.05, 3)),
    ],
)
def test_without_an_interval_that_agrees_nothing_is_confirmed_that_needs_seeds(
    claim: Claim, columns: tuple[str, ...], row: tuple[float, ...]
) -> None:
    results = collect("r", ("experiment", *columns), [dict(zip(columns, row, strict=True), experiment="a")])
    found = judge(claim, results)
    assert found.verdict == TOO_FEW
    assert (found.reason == "the spread over seeds is not known") == (len(columns) == 2)
    assert found.interval == judge(value(), results).interval


@pytest.mark.parametrize(
    ("way", "verdict"),
    [
        ({"ratio_at_most": 0.5}, CONFIRMED),
        ({"ratio_at_most": 0.49}, REFUTED),
        ({"ratio_at_most": 0.49, "tolerance": 0.01}, CONFIRMED),
        ({"ratio_at_least": 0.51}, REFUTED),
    ],
)
def test_the_verdict_on_a_ratio_of_costs(way: dict[str, float], verdict: str) -> None:
    results = table(a=(0.5, 0.1, 3, 1.0, ""), b=(0.5, 0.1, 3, 2.0, ""))
    assert judge(versus(measure="gflops", **(way | {"seeds": 0})), results).verdict == verdict
    nothing = table(a=(0.5, 0.1, 3, 1.0, ""), b=(0.5, 0.1, 3, 0.0, ""))
    assert judge(versus(measure="gflops", **(way | {"seeds": 0})), nothing).verdict == FAILED


@given(
    mean=st.floats(0, 1),
    std=st.floats(0, 0.2),
    claimed=st.floats(0, 1),
    tolerance=st.floats(0, 0.2),
    num=st.integers(2, 9),
)
def test_an_answer_holds_for_every_figure_of_the_interval(
    mean: float, std: float, claimed: float, tolerance: float, num: int
) -> None:
    claim = value(claimed, tolerance, seeds=2)
    found, wanted = judge(claim, at(mean, std, num)), band(claim)
    interval = mean_interval(Seeds(mean, std, num))
    assert interval is not None
    inside = [wanted.low - 1e-8 <= end <= wanted.high + 1e-8 for end in interval]
    if found.verdict == CONFIRMED:
        assert all(inside)
    elif found.verdict == REFUTED:
        assert interval.high < wanted.low or interval.low > wanted.high
    else:
        assert interval.low <= wanted.high + 1e-8
        assert interval.high >= wanted.low - 1e-8


def test_one_row_per_seed_and_one_per_experiment_get_the_same_verdicts() -> None:
    values = {"a": [0.71, 0.74, 0.76], "b": [0.5, 0.52, 0.55]}
    seeds = [{"experiment": n, "seed": i, "top1": v} for n, vs in values.items() for i, v in enumerate(vs)]
    summary = {n: (Seeds.of(v).mean, Seeds.of(v).std, 3, 1.0, "complete") for n, v in values.items()}
    claims = [value(), value(0.5), versus(difference_at_least=0.1), versus(level_within=0.1)]
    by_seed = judge_all(claims, collect("seeds", ("experiment", "seed", "top1"), seeds))
    assert [f.verdict for f in by_seed] == [f.verdict for f in judge_all(claims, table(**summary))]
    assert by_seed[2].ours == pytest.approx(0.7367 - 0.5233, abs=1e-4)
    broken = [{**row, "status": "failed" if row["seed"] == 2 else "done"} for row in seeds]
    found = judge(value(), collect("seeds", ("experiment", "seed", "top1", "status"), broken))
    assert (found.verdict, found.reason) == (TOO_FEW, "2 of 3 (seed 2: failed)")


def test_a_misspelt_experiment_is_not_run_and_the_nearest_is_named() -> None:
    found = judge(value(experiment="dart-36"), table(**{"dart-63": (0.7, 0.1, 3, 1.0, "")}))
    assert (found.verdict, found.reason) == (NOT_RUN, "no record of dart-36; did you mean 'dart-63'?")


BAD = """\
claims:
  - {id: a, statement: s, kind: value, experiment: x, measure: top1, seeds: 1, value: 22, tolerance: 1}
  - {id: b, statement: s, source: "  ", kind: value, experiment: x, measure: top1, seeds: 1, valu: 22}
  - {id: c, statement: s, source: p, kind: value, experiment: x, measure: top1, seeds: 1, value: 1, than: d}
  - {id: d, statement: s, source: p, kind: comparison, experiment: x, measure: top1, seeds: 1, ratio_at_most: 0}
  - {id: e, statement: s, source: p, kind: comparison, than: y, experiment: x, measure: top1, seeds: 1,
     level_within: 1, difference_at_most: 0, tolerance: 1}
  - {id: f, statement: s, source: p, kind: value, experiment: x, measure: top1, seeds: 1, value: .nan, tolerance: 1}
  - {id: g, statement: s, source: p, kind: comparison, than: y, experiment: x, measure: top1, seeds: 1,
     difference_at_least: 0.002, tolerance: 0.003}
  - {id: h, statement: s, source: p, kind: comparison, than: y, experiment: x, measure: top1, seeds: 3,
     ratio_at_least: 1.05}
  - {id: i, statement: s, source: p, kind: comparison, than: y, experiment: x, measure: top1, seeds: 1,
     difference_at_least: -0.002, tolerance: 0.003}
"""


def test_all_that_is_wrong_with_a_claims_file_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(BAD)
    with pytest.raises(ConfigError) as error:
        load_claims(path)
    assert [line.split(":")[0].split(" = ")[0] for line in error.value.problems] == [
        *("claims[0].source", "claims[1].source", "claims[1].valu"),
        *("claims[2].tolerance", "claims[2].than", "claims[3].ratio_at_most"),
        *("claims[4].kind", "claims[4].tolerance", "claims[5].value", "claims[6].tolerance", "claims[7].seeds"),
        "claims[8].tolerance",
    ]
    assert "claims[6].tolerance = 0.003: more than the difference itself" in str(error.value)
    assert "claims[7].seeds = 3: a ratio has no interval over seeds; use 0 or 1" in str(error.value)
    assert "claims[0].source: missing" in str(error.value)
    assert "claims[1].source = '  ': must say something" in str(error.value)


def test_an_id_is_there_once(tmp_path: Path) -> None:
    (tmp_path / "claims.yaml").write_text("\n".join([BAD.splitlines()[0], *(2 * [BAD.splitlines()[3]])]))
    text = (tmp_path / "claims.yaml").read_text().replace("than: d", "tolerance: 1")
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"claims\[1\]\.id = 'c': is there twice; rename one of them"):
        load_claims(tmp_path / "claims.yaml")
    with pytest.raises(UserError, match="no such file"):
        load_claims(tmp_path / "others.yaml")
    assert suite_claims("none", tmp_path) == ()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_a_claim_is_about_an_experiment_of_its_suite_or_says_why_not(path: Path) -> None:
    suite = load_suite(path.parent.name, path.parents[1] / f"{path.parent.name}.yaml")
    known = {*SHARES, "params", "gflops", "images_per_s"}
    for claim in load_claims(path):
        strangers = {claim.experiment, claim.than} - {None, *suite.experiments}
        assert bool(strangers) == bool(claim.absent), claim.id
        assert claim.measure in known, claim.id
        ours = [suite.experiments[name] for name in (claim.experiment, claim.than) if name in suite.experiments]
        assert all(len(each.seeds or suite.seeds) >= claim.seeds for each in ours), claim.id


def test_dvc_knows_every_claims_file() -> None:
    deps = load_yaml(ROOT / "dvc.yaml")["stages"]["report"]["deps"]
    assert {dep for dep in deps if dep.startswith("suites/")} == {str(path.relative_to(ROOT)) for path in FILES}
    assert claims_path("digits", ROOT / "suites") in FILES


PAPER = {  # top-1 in per cent, GFLOPs: the rows of the table of classification
    **{"deit-ti-196": (72.2, 1.26), "dart-deit-ti-196": (73.8, 1.32), "dart-deit-ti-121": (71.8, 0.8)},
    **{"deit-s-196": (79.8, 4.61), "dart-deit-s-196": (80.6, 4.84), "deit-s-576": (81.6, 15.5)},
    **{"dart-deit-s-392": (81.8, 10.1), "vim-ti-196": (76.1, 1.60), "dart-vim-ti-196": (77.2, 1.68)},
    **{"vim-s-196": (80.5, 5.30), "dart-vim-s-196": (81.5, 5.55), "videomamba-ti-196": (76.9, 1.08)},
    **{"dart-videomamba-ti-196": (78.2, 1.15), "vim-ti-784": (78.3, 5.95), "dart-vim-ti-392": (78.9, 3.29)},
    **{"vim-s-784": (81.6, 19.6), "dart-vim-s-392": (82.2, 10.9), "videomamba-ti-784": (79.3, 4.30)},
    **{"videomamba-ti-1296": (79.6, 7.11), "dart-videomamba-ti-392": (79.7, 2.24)},
}


def test_the_papers_own_figures_confirm_its_claims_and_a_lower_one_refutes() -> None:
    claims = load_claims(ROOT / "suites/imagenet1k/claims.yaml")
    columns = ("experiment", "seed", "top1", "gflops")
    rows = [{"experiment": n, "seed": 0, "top1": t, "gflops": g} for n, (t, g) in PAPER.items()]
    found = judge_all(claims, collect("paper", columns, rows, percent=True))
    asked = [f for f in found if {f.claim.experiment, f.claim.than} <= {*PAPER, None} and f.claim.measure != "params"]
    assert len(asked) >= 2 * len(PAPER) + 10
    assert {f.verdict for f in asked} == {CONFIRMED}
    assert {f.verdict for f in found if f not in asked} == {NOT_RUN}
    rows[1]["top1"] = 72.9
    refuted = [
        f.claim.id for f in judge_all(claims, collect("paper", columns, rows, percent=True)) if f.verdict == REFUTED
    ]
    assert refuted == ["dart-deit-ti-196-top1", "dart-deit-ti-196-over-deit-ti-196"]


def test_a_published_figure_is_confirmed_by_whatever_is_printed_as_it() -> None:
    printed = re.compile(r"([\d.]+) (GFLOPs|M parameters|% top-1)")
    units = {"GFLOPs": 1.0, "M parameters": 1e6, "% top-1": 0.01}
    judged = 0
    for claim in load_claims(ROOT / "suites/imagenet1k/claims.yaml"):
        found = printed.findall(claim.statement)
        if claim.kind == "value" and found:
            digits, unit = found[-1]
            half = 0.5 * 10 ** -len(digits.partition(".")[2]) * units[unit]
            assert claim.value == pytest.approx(float(digits) * units[unit]), claim.id
            assert claim.tolerance >= half * (1 - 1e-9), claim.id
            judged += 1
    assert judged > 100


def test_no_claim_that_one_is_above_another_is_confirmed_where_it_is_below() -> None:
    for claim in load_claims(ROOT / "suites/imagenet1k/claims.yaml"):
        if "-over-" in claim.id and claim.than is not None:
            below = [{"experiment": claim.experiment, "top1": 0.799}, {"experiment": claim.than, "top1": 0.8}]
            assert judge(claim, collect("r", ("experiment", "top1"), below)).verdict == REFUTED, claim.id


def claimed(lab: Any) -> Any:
    claims = (
        value(0.757, experiment="dart-36"),
        versus(id="b", experiment="dart-36", than="uniform-36", difference_at_least=0.0),
        value(id="c", experiment="dart-16"),
        value(id="d", experiment="=cmd|<b>", statement="=x"),
        value(0.75, 0.01, id="e", experiment="dart-36-micro", seeds=1),
    )
    return replace(lab.load(), claims=claims)


def test_records_are_judged_as_their_table_is(lab: Any) -> None:
    """Of experiments and of points of the sweep; 0.005 of rounding in table.csv is no matter here."""
    records = claimed(lab)
    found = claims_table.judge_records(records)
    assert [f.verdict for f in found] == [TOO_FEW, CONFIRMED, TOO_FEW, NOT_RUN, CONFIRMED]
    lines = list(csv.DictReader(io.StringIO(claims_table.formats.to_csv(comparison(records)))))
    assert [f.verdict for f in judge_all(records.claims[:4], collect("csv", lines[0], lines))] == [
        f.verdict for f in found[:4]
    ]


def test_every_claim_has_a_row_and_no_cell_of_it_is_blank(lab: Any) -> None:
    found = claims_table.judge_records(claimed(lab))
    shown = claims_table.shown(found)
    needed = ("id", "statement", "source", "paper", "ours", "difference", "interval", "verdict")
    assert all(row[key] for row in shown for key in needed)
    assert shown[1]["ours"] == "24.3 points"
    assert (shown[2]["ours"], shown[2]["interval"], shown[2]["reason"]) == ("52.5 %", "none", "1 of 3")
    text = claims_table.to_markdown("digits", found)
    assert "5 claims: 2 confirmed, 1 not run, 2 too few seeds." in text
    assert "| too few seeds: 1 of 3 " in text
    (hostile,) = [line for line in csv.DictReader(io.StringIO(claims_table.to_csv(found))) if line["id"] == "d"]
    assert (hostile["experiment"], hostile["statement"]) == ("'=cmd|<b>", "'=x")


def test_the_report_has_the_verdicts_where_anything_is_claimed_and_twice_the_same(lab: Any, tmp_path: Path) -> None:
    for name in ("once", "twice"):
        write_tests(claimed(lab), tmp_path / name)
    written = {path.name: path.read_bytes() for path in (tmp_path / "once").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "twice").iterdir()}
    assert set(written) == {"claims.csv", "claims.md", "paired.csv", "paired.md"}
    write_tests(lab.load(), tmp_path / "unclaimed")
    assert {path.name for path in (tmp_path / "unclaimed").iterdir()} == {"paired.csv", "paired.md"}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda rows: rows.append(rows[0]), "experiment = 'a': is there twice; keep one of them, or add a column seed"),
        (lambda rows: rows[0].update(top1_mean="x"), "a: top1_mean = 'x': not a number"),
        (lambda rows: rows[0].update(top1_mean=72.1), "a: top1_mean = 72.1: a share is at most 1; add --percent"),
        (lambda rows: rows[0].update(top1_mean=-0.7), "a: top1_mean = -0.7: a share is at least 0"),
        (lambda rows: rows[0].update(top1_std=-0.1), "a: top1_std = -0.1: a deviation is at least 0"),
        (lambda rows: rows[0].update(num_seeds=-3), "a: num_seeds = -3: not a number of runs; use 0, 1, 2 ..."),
        (lambda rows: rows[0].update(num_seeds="2.5"), "a: num_seeds = '2.5': not a number of runs"),
        (lambda rows: rows[0].update(num_seeds="1e400"), "a: num_seeds = '1e400': not a number of runs"),
        (lambda rows: rows[0].update(experiment=""), "experiment = '': has no name; give it one, or delete its row"),
        (lambda rows: rows[0].update(seed=""), "a: seed = '': not a whole number; use 0, 1, 2 ..."),
        (lambda rows: rows[0].update(seed="1.0"), "a: seed = '1.0': not a whole number"),
        (
            lambda rows: rows.__setitem__(slice(None), [{**rows[0], "seed": seed} for seed in ("1", "01")]),
            "experiment = 'a': is there twice with seed 1; keep one of them",
        ),
    ],
)
def test_bad_results_are_one_sentence(change: Callable[[list[dict[str, Any]]], None], rule: str) -> None:
    rows: list[dict[str, Any]] = [{"experiment": "a", "top1_mean": 0.7, "top1_std": 0.01, "num_seeds": 3}]
    change(rows)
    with pytest.raises(UserError) as error:
        judge(value(), collect("t.csv", rows[0], rows))
    assert rule in str(error.value)
    assert "\n" not in str(error.value)
