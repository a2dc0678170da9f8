"""The page: every number can be computed again from what is behind it, and no name in the records is more than text."""

import base64
import hashlib
import re
import statistics
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.report import NUM_RUNS, load, write_results
from pipeline.errors import UserError
from pipeline.report import formats, paired, site
from pipeline.report.claims import Claim
from pipeline.report.figures import write_figures
from pipeline.report.site import build_page, write_suite, write_tables
from pipeline.report.tables import comparison

HOSTILE = "<img src=x onerror=alert(1)> $\\frac{$ \"'&amp; [a](javascript:b)"


class Page(HTMLParser):
    """What is behind each cell, what is said where, and which elements there are."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.whys: list[list[str]] = []
        self.text: list[str] = []
        self._depth = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.append((tag, values))
        if "popover" in values:
            self.whys.append([])
            self._depth = 1
        elif tag == "div" and self._depth:
            self._depth += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._depth:
            self._depth -= 1

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(data.strip())
            if self._depth:
                self.whys[-1].append(data.strip())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def html_of(lab: Any, links: dict[str, str] | None = None, claims: tuple[Claim, ...] = ()) -> str:
    """The page without figures, which take longest."""
    return build_page([replace(lab.load(), claims=claims)], lab.root / "report", {}, links or {})


def page_of(lab: Any, links: dict[str, str] | None = None, claims: tuple[Claim, ...] = ()) -> Page:
    return Page(html_of(lab, links, claims))


def drawn_page_of(lab: Any) -> Page:
    """With the drawings and claims, and without the gallery."""
    for path in (lab.results / "evaluate/gallery").glob("*.npz"):
        path.unlink()
    folder, records = lab.root / "report", replace(lab.load(), claims=hostile_claims())
    return Page(build_page([records], folder, write_figures(records, folder / "digits/figures"), {}))


def hostile_claims(other: str = HOSTILE) -> tuple[Claim, ...]:
    """A claim for every verdict on the records of `lab`, once dart-16 has failed; `other` has not run."""
    said = dict.fromkeys(("statement", "source", "note"), HOSTILE) | {
        "kind": "value",
        "measure": "top1",
        "recalled": True,
    }
    asked = [("dart-36", 0.75, 1), ("dart-36", 0.1, 1), (other, 0.5, 1), ("dart-16", 0.5, 1), ("dart-36", 0.75, 3)]
    return tuple(
        Claim.model_validate(
            {**said, "id": f"{HOSTILE}{i}", "experiment": name, "value": value, "tolerance": 0.01, "seeds": seeds}
        )
        for i, (name, value, seeds) in enumerate(asked)
    )


def test_the_arithmetic_behind_a_cell_gives_it_back(lab: Any) -> None:
    num_measured = 0
    for _close, title, *told in page_of(lab).whys:
        said = re.search(r"\(%\) of .*: ([\d.]+)(?: ± ([\d.]+))?$", title)
        if said is None:
            continue
        values = [float(text) for text in told if re.fullmatch(r"\d+\.\d{3}", text)]
        assert f"{statistics.fmean(values):.1f}" == said[1]
        assert (f"{statistics.stdev(values):.1f}" if len(values) > 1 else None) == said[2]
        assert any(f" = {statistics.fmean(values):.3f};" in sentence for sentence in told)
        num_measured += 1
    assert num_measured == 2 * (4 + 12)


def test_a_run_that_is_in_no_mean_is_named_behind_the_cell(lab: Any) -> None:
    lab.edit("train/runs.json", lambda content: content["runs"][1].update(status="failed: out of memory"))
    behind = next(told for told in page_of(lab).whys if "Top-1 (%) of uniform-36: 49.8 ± 6.0" in told)
    assert "Mean: (45.500 + 54.000) / 2 = 49.750; sample standard deviation (n - 1) 6.010." in behind
    assert "Not in the mean: seed 1, failed: out of memory." in behind


def test_the_way_back_is_on_the_page(lab: Any) -> None:
    records = lab.load()
    links = {f"digits/train/{records.runs[0].fingerprint}": "http://tracker:5000/#/experiments/1/runs/abc"}
    page = page_of(lab, links)
    text = "\n".join(page.text)
    assert f"manifest sha256 {records.runs[0].manifest_sha256}" in text
    begin = ["git checkout 0123456789", "# params.yaml, where the suite is not active: suites: [digits]"]
    assert "\n".join([*begin, "dvc repro train@digits   #"]) in text
    assert "\ndvc repro evaluate@digits benchmark@digits report" in text
    assert "train: epochs 3, global_batch_size 50, lr 0.002" in text
    assert [a["href"] for a in page.all("a") if "tracker" in a["href"]] == list(links.values())
    assert {row["id"] for row in page.all("th") if "id" in row} >= {"digits/train/dart-36", "digits/sweep/dart-16-nano"}


def test_the_policy_allows_the_one_script_and_nothing_from_elsewhere(lab: Any) -> None:
    html = html_of(lab)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_a_hostile_name_is_text_wherever_it_stands(lab: Any) -> None:
    benign = page_of(lab, claims=hostile_claims("uniform-36"))
    lab.edit("train/runs.json", lambda content: [run.update(name=HOSTILE) for run in content["runs"][:3]])
    lab.edit("sweep/runs.json", lambda content: content["runs"][0].update(name=HOSTILE, model_name=HOSTILE))
    page = page_of(lab, claims=hostile_claims())
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in benign.elements]
    check_links(page)
    assert HOSTILE in page.text
    assert f"{HOSTILE}0" in page.text
    page = drawn_page_of(lab)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert any(use.get("aria-label", "").startswith(f"{HOSTILE}: ") for use in page.all("use"))
    table = formats.to_markdown(lab.load())
    assert "<img" not in table
    assert "&lt;img" in table
    assert "\\[a]" in table


def test_a_name_that_cannot_be_printed_is_one_sentence(lab: Any) -> None:
    lab.edit("train/runs.json", lambda content: content["runs"][0].update(name="dart\x1b[2J"))
    with pytest.raises(UserError, match=r"runs\.json: \w{16} = 'dart\\x1b\[2J': .* cannot be printed; give it another"):
        lab.load()


def test_every_claim_has_its_verdict_in_words_and_what_verdicts_mean_is_said(lab: Any) -> None:
    lab.edit("train/runs.json", lambda content: content["runs"][-2].update(status="failed"))
    page = page_of(lab, claims=hostile_claims())
    text = page.text
    assert "5 claims: 1 confirmed, 1 refuted, 1 not run, 1 failed, 1 too few seeds." in text
    assert any("of 1 such verdicts at 95 %, one in twenty is expected to err" in line for line in text)
    assert "Recalled: the figure was not looked up for this file; verify it before printing." in text
    figures = [cell for cell in page.all("td") if "data-unit" in cell]
    assert [cell.get("data-value") for cell in figures[:3]] == ["0.75", "0.756666667", "0.00666666667"]
    assert {cell["data-unit"] for cell in figures} == {"value of top1"}
    assert [mark + verdict for mark, verdict in pairwise(text) if mark in "✓✗○!…"] == [
        "✓confirmed",
        "✗refuted",
        "○not run",
        "!failed",
        "…too few seeds",
    ]


def check_links(page: Page) -> list[str]:
    """Raise where a link leads to no place of the page; returns the places that links lead to."""
    places = [link["href"][1:] for link in page.all("a") if link["href"].startswith("#")]
    assert set(places) <= {attributes.get("id") for _, attributes in page.elements}
    return places


def test_claims_and_paired_tests_and_budgets_lead_to_the_rows_they_are_about(lab: Any) -> None:
    def ask(content: Any) -> None:
        for run in content["runs"]:
            run["budgets"] = [{"token_budget": n, "macs": n, "top1": 0.5, "top5": 0.9} for n in (16, 36)]

    lab.edit("evaluate/metrics.json", ask)
    claims = hostile_claims("dart-36-nano")
    places = check_links(page_of(lab, claims=claims))
    claimed, asked = [claim.experiment for claim in claims].count("dart-36"), 2
    assert places.count("digits/train/dart-36") == claimed + 1 + asked
    assert places.count("digits/sweep/dart-36-nano") == 1


def test_without_claims_there_is_no_table_of_claims(lab: Any) -> None:
    assert "What is claimed, and what is found" not in page_of(lab).text


def test_intervals_and_paired_tests_are_on_the_page(lab: Any) -> None:
    page, records = page_of(lab), lab.load()
    behind = next(told for told in page.whys if "Top-1 (%) of dart-36: 75.7 ± 7.1" in told)
    row = comparison(records).set_index("experiment").loc["dart-36"]
    ends = f"{100 * row['top1_ci_low']:.3f} to {100 * row['top1_ci_high']:.3f}."
    assert f"Interval of the mean over seeds, 95 % (Student's): {ends}" in behind
    tests = paired.paired(records)
    assert all(cell in page.text for row in paired.shown(tests) for cell in row.values() if cell)
    assert all(note in page.text for note in paired.notes(records, tests))


def test_every_file_that_the_report_writes_of_a_suite_is_linked_and_there(lab: Any) -> None:
    folder, records = lab.root / "report", replace(lab.load(), claims=hostile_claims())
    write_suite(records, folder / "digits")
    page = Page(build_page([records], folder, {}, {}))
    linked = {a["href"] for a in page.all("a") if a["href"].startswith("digits/") and not a["href"].endswith(".png")}
    written = {f"digits/{path.name}" + "/" * path.is_dir() for path in (folder / "digits").iterdir()}
    assert linked == written - {"digits/summary.md"}  # which README.md has


def test_pictures_that_would_make_the_page_too_large_are_shown_from_beside_it(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "digits/figures/what-the-model-sees.png"
    (lab.root / "report" / name).parent.mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(lab.root / "report" / name)
    assert [image["src"][:15] for image in page_of(lab).all("img")] == ["data:image/png;"]
    monkeypatch.setattr(site, "PAGE_BYTES", 1000)
    assert [image["src"] for image in page_of(lab).all("img")] == [name]


def test_every_point_of_the_drawings_says_what_it_is(lab: Any) -> None:
    page = drawn_page_of(lab)
    said = [use["aria-label"] for use in page.all("use") if use.get("class") == "point"]
    assert len(said) == 12 + 4 + 4 * 3  # the sweep, the experiments, three epochs of each
    assert "dart-36: 75.7 ± 7.1 % at 0.00516 GFLOPs, 36 tokens, 3 seeds" in said
    assert "dart-36: 76.7 % after 30,000 samples (68.5 to 81.0 over 3 seeds)" in said
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_five_hundred_runs_give_the_same_bytes_twice_on_a_page_below_two_megabytes(tmp_path: Path) -> None:
    write_results(tmp_path)
    made = []
    for name in ("once", "twice"):
        records = load(tmp_path)
        assert len([*records.runs, *records.trials]) == NUM_RUNS == 500
        write_tables(records, tmp_path / name)
        files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        made.append({**files, "page": build_page([records], tmp_path / name, {}, {}).encode()})
    assert made[0] == made[1]
    assert len(made[0]["page"]) < 2_000_000
