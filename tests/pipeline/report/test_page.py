"""The page: every number can be computed again from what is behind it, and no name in the records is more than text."""

import base64
import hashlib
import re
import statistics
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.report import NUM_RUNS, load, write_results
from pipeline.errors import UserError
from pipeline.report import formats, site
from pipeline.report.figures import write_figures
from pipeline.report.site import build_page, write_tables

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


def html_of(lab: Any, links: dict[str, str] | None = None) -> str:
    """The page without figures, which take longest."""
    return build_page([lab.load()], lab.root / "report", {}, links or {})


def page_of(lab: Any, links: dict[str, str] | None = None) -> Page:
    return Page(html_of(lab, links))


def drawn_page_of(lab: Any) -> Page:
    """With the drawings, and without the gallery."""
    for path in (lab.results / "evaluate/gallery").glob("*.npz"):
        path.unlink()
    folder = lab.root / "report"
    return Page(build_page([lab.load()], folder, write_figures(lab.load(), folder / "digits/figures"), {}))


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims in every section, as `pipeline.report` may give them to the page."""
    section = site._section
    keys = ("id", "statement", "source", "paper", "ours", "difference", "interval")
    claims = [
        {**dict.fromkeys(keys, HOSTILE), "verdict": verdict}
        for verdict in ("confirmed", "refuted", "not run", "failed", "too few seeds")
    ]
    monkeypatch.setattr(site, "_section", lambda *given: {**section(*given), "claims": claims})


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
    assert "git checkout 0123456789 && dvc repro train@digits" in text
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


@pytest.mark.usefixtures("claimed")
def test_a_hostile_name_is_text_wherever_it_stands(lab: Any) -> None:
    benign = page_of(lab)
    lab.edit("train/runs.json", lambda content: [run.update(name=HOSTILE) for run in content["runs"][:3]])
    lab.edit("sweep/runs.json", lambda content: content["runs"][0].update(name=HOSTILE, model_name=HOSTILE))
    page = page_of(lab)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in benign.elements]
    assert HOSTILE in page.text
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


@pytest.mark.usefixtures("claimed")
def test_every_claim_has_its_verdict_in_words(lab: Any) -> None:
    text = page_of(lab).text
    assert [mark + verdict for mark, verdict in pairwise(text) if mark in "✓✗○!…"] == [
        "✓confirmed",
        "✗refuted",
        "○not run",
        "!failed",
        "…too few seeds",
    ]


def test_without_claims_there_is_no_table_of_claims(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    section = site._section
    monkeypatch.setattr(site, "_section", lambda *given: {**section(*given), "claims": []})
    assert "What is claimed, and what is found" not in page_of(lab).text


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
