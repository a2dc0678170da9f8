"""The README's block is what the report says: rewriting it is exact, and doing so twice changes no byte."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.report.readme import END, START, insert
from pipeline.report.site import write_report
from stages.report import show

README = Path("README.md")
ROOT = Path(__file__).resolve().parents[3]
TEXT = f"# title\n\n{START}\nold\n{END}\n\n## Run it\n"


def test_only_the_block_between_the_markers_changes() -> None:
    new = insert(TEXT, {"a": "## A\n\n![x](figures/x.png)\n", "b": "## B\n"})
    block = "\n## A\n\n![x](docs/figures/a-x.png)\n\n## B\n\n"
    assert new == f"# title\n\n{START}\n{block}{END}\n\n## Run it\n"
    assert insert(new, {"a": "## A\n\n![x](figures/x.png)\n", "b": "## B\n"}) == new


def test_a_page_below_docs_has_links_of_its_own() -> None:
    new = insert(TEXT, {"a": "## A\n\n![x](figures/x.png)\n"}, "docs/page.md")
    assert "![x](figures/a-x.png)" in new
    with pytest.raises(UserError, match=r"^docs/page\.md: needs one line"):
        insert("", {}, "docs/page.md")


@pytest.mark.parametrize("text", ["", f"{START}\n", f"{END}\n{START}\n", TEXT + START + "\n", f"{START} {END}\n"])
def test_without_its_two_markers_a_readme_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"^README.md: needs one line {START} and below it one line {END};"):
        insert(text, {"a": "A"})


@pytest.fixture
def project(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the suite's report and a README; the working directory."""
    root = tmp_path / "project"
    write_report([lab.load()], root / "report")
    shutil.copytree(ROOT / "suites", root / "suites")
    (root / "params.yaml").write_text("suites: [digits]\n")
    (root / "README.md").write_text(TEXT)
    monkeypatch.chdir(root)
    return root


def test_the_readme_shows_table_sentence_and_pictures(project: Path) -> None:
    show(README)
    text = (project / "README.md").read_text()
    assert text.startswith("# title\n")
    assert text.endswith("## Run it\n")
    assert "old" not in text
    columns = ["Experiment", "Tokenizer", "Tokens", "Top-1 (%)", "Seeds", "Parameters", "GFLOPs", "Images/s"]
    (titles,) = [line for line in text.splitlines() if line.startswith("| Experiment")]
    assert [title.strip() for title in titles.strip("|").split("|")] == columns
    assert text.count("| 75.7 ± 7.1 |") == 1
    (sentence,) = [line for line in text.splitlines() if line.startswith("Runs of commit 0123456789;")]
    assert "200 test samples of cluttered-digits" in sentence
    assert "on a CPU (1 thread)." in sentence
    for name in ("accuracy-vs-gflops.png", "what-the-model-sees.png"):
        assert f"](docs/figures/digits-{name})" in text
        copy = project / "docs/figures" / f"digits-{name}"
        assert copy.read_bytes() == (project / "report/digits/figures" / name).read_bytes()
    assert "![](" not in text
    assert len(list((project / "docs/figures").iterdir())) == 2

    show(README)
    assert (project / "README.md").read_text() == text


def test_what_is_missing_is_one_sentence(project: Path) -> None:
    (project / "README.md").unlink()
    with pytest.raises(UserError, match=r"^README\.md: needs one line"):
        show(README)
    assert not (project / "docs").exists()
    shutil.rmtree(project / "report")
    with pytest.raises(UserError, match=r"^report: no report of digits yet; run: make repro$"):
        show(README)
