"""The report folder: the same records give the same bytes, and the page stands alone."""

import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.report.figures import INSIDE, draw_axes, learning_curves, save, show_legend, styles, write_figures
from pipeline.report.pictures import gallery_pair
from pipeline.report.records import Run
from pipeline.report.site import write_report

FILES = {"table.csv", "table.md", "table.tex", "metrics.json", "sweep.csv", "summary.md", "figures"}
FILES |= {"paired.csv", "paired.md"}
FILES |= {"scaling.csv", "importance.csv"}
FIGURES = {"accuracy-vs-gflops", "learning-curves", "what-the-model-sees", "accuracy-vs-latency"}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Outline(HTMLParser):
    """What a page loads, and whether its tags are balanced."""

    VOID = frozenset({"meta", "link", "img", "br", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.images_without_text = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.sources += [values[key] or "" for key in ("src", "srcset") if key in values]
        self.images_without_text += tag == "img" and not values.get("alt")
        if tag == "link":
            self.sources.append(values["href"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_same_records_give_the_same_bytes(lab: Any, tmp_path: Path) -> None:
    for name in ("once", "twice"):
        write_report([lab.load()], tmp_path / name)
    once = digests(tmp_path / "once")
    assert once == digests(tmp_path / "twice")
    assert {path.split("/")[1] for path in once if path.startswith("digits/")} == FILES
    assert {Path(path).stem for path in once if path.startswith("digits/figures/")} == FIGURES


def test_the_page_loads_nothing_and_holds_every_suite_row_and_run(make_lab: Any, tmp_path: Path) -> None:
    labs = [make_lab(tmp_path / "lab", suite) for suite in ("digits", "mine")]
    records = [lab.load() for lab in labs]
    write_report(records, tmp_path / "report")
    page = (tmp_path / "report/index.html").read_text()
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert [source for source in outline.sources if not source.startswith("data:")] == []
    assert len(outline.sources) == 2 + 1  # a gallery each, and the page's icon; the drawings are elements of it
    assert page.count("<svg ") == 2 * (len(FIGURES) - 1)
    assert outline.images_without_text == 0
    assert page.count("<script") == 1
    assert "://" not in re.sub(r'"data:[^"]*"', "", page)
    for one in records:
        assert f'id="{one.suite}"' in page
        assert all(run.fingerprint in page and run.name in page for run in (*one.runs, *one.trials))
    assert len(page) < 2_000_000


def test_a_hostile_name_is_text_on_the_page(lab: Any, tmp_path: Path) -> None:
    lab.edit("train/runs.json", lambda content: [run.update(name="<script>x</script>") for run in content["runs"][:3]])
    write_report([lab.load()], tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.count("<script>") == 1
    assert "<script>x" not in page
    assert "&lt;script&gt;x" in page


def test_the_last_digits_of_a_layout_are_in_no_file(tmp_path: Path) -> None:
    drawn = []
    for name, noise in (("one", 0.0), ("other", 3e-14)):
        figure = Figure()
        figure.add_axes((0.1 + noise, 0.1, 0.8, 0.8 - noise)).plot([0, 1], [0, 1])
        drawn.append(save(figure, tmp_path / name).with_suffix(".svg").read_bytes())
    assert drawn[0] == drawn[1]


def test_the_gallery_pairs_equal_budgets(lab: Any) -> None:
    pair = gallery_pair(lab.load())
    assert pair is not None
    assert [run.name for run in pair] == ["uniform-36", "dart-36"]


def test_of_several_budgets_the_gallery_shows_the_largest(lab: Any) -> None:
    records = lab.load()
    pair = gallery_pair(records)
    assert pair is not None

    def with_budget(run: Run, budget: int) -> Run:
        return replace(run, science={**run.science, "tokenizer": {**run.science["tokenizer"], "token_budget": budget}})

    runs = [with_budget(run, budget) for budget in (25, 49, 16) for run in pair]
    found = gallery_pair(replace(records, runs=[*records.runs, *runs]))
    assert found == (runs[2], runs[3])


def test_a_figure_without_records_is_left_out(lab: Any, tmp_path: Path) -> None:
    (lab.results / "benchmark.json").unlink()
    for path in (lab.results / "evaluate/gallery").iterdir():
        path.unlink()
    assert [path.stem for path in write_figures(lab.load(), tmp_path)] == ["learning-curves"]
    write_report([lab.load()], tmp_path / "report")


def test_the_band_spans_the_seeds(lab: Any) -> None:
    figure = learning_curves(lab.load())
    assert figure is not None
    (ax,) = figure.axes
    dart = ax.lines[2]
    np.testing.assert_allclose(np.asarray(dart.get_xdata()), [10, 20, 30])
    final = np.array([0.795, 0.8, 0.675]) + 0.01
    assert np.asarray(dart.get_ydata())[-1] == 100 * np.mean(final)
    band = ax.collections[2].get_paths()[0].vertices
    assert (band[:, 1].max(), band[:, 1].min() < 100 * final.min()) == (100 * final.max(), True)


def test_a_run_that_diverged_is_a_line_of_its_own_and_in_no_mean(lab: Any) -> None:
    lab.edit("train/runs.json", lambda content: content["runs"][7].update(status="diverged at step 250 of 600"))
    keep_curve(lab, 7, [200])
    figure = learning_curves(lab.load())
    assert figure is not None
    (ax,) = figure.axes
    alone, mean = ax.lines[2:4]
    np.testing.assert_allclose(np.asarray(alone.get_xdata()), [10])
    np.testing.assert_allclose(np.asarray(mean.get_xdata()), [10, 20, 30])
    assert np.asarray(mean.get_ydata())[-1] == pytest.approx(100 * np.mean([0.805, 0.685]))
    said = {text.get_text() for text in ax.texts}
    assert {"dart-36 (n = 2 of 3)", "dart-36 seed 1 (incomplete)", "uniform-36 (n = 3)"} <= said


def test_seeds_that_were_validated_nowhere_alike_have_no_mean(lab: Any) -> None:
    for place, steps in ((6, [200]), (7, [400]), (8, [600])):
        keep_curve(lab, place, steps)
    figure = learning_curves(lab.load())
    assert figure is not None
    assert not any(text.get_text().startswith("dart-36") for text in figure.axes[0].texts)


def keep_curve(lab: Any, place: int, steps: list[int]) -> None:
    """Of the run at this place of the plan, only the validation at these steps."""
    path = lab.load().runs[place].folder / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["step"] not in steps:
            line["values"].pop("val_top1", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("extra", [0, 1])
def test_a_legend_that_is_too_long_hides_no_point(extra: int) -> None:
    figure, ax = draw_axes("x", "y")
    before = figure.get_size_inches()[1]
    for i in range(INSIDE + extra):
        ax.plot([0, 1], [i, i], label=str(i))
    show_legend(ax, 8)
    figure.draw_without_rendering()
    below = figure.legends[0].get_window_extent().y1 <= ax.get_tightbbox().y0 if figure.legends else False
    assert (below, ax.get_legend() is None, figure.get_size_inches()[1] > before) == (bool(extra),) * 3


def test_two_names_of_a_figure_never_look_alike() -> None:
    names = [str(i) for i in range(20)]
    assert len(set(styles(names).values())) == 20
