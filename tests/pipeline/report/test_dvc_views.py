"""The report as DVC shows it: a real repository, the real stage, recorded results."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
FILES = ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", "suites", "dart", "pipeline", "stages")


def run(root: Path, *command: str) -> str:
    names = {f"GIT_{who}_{what}": "t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **names, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["DVC_SITE_CACHE_DIR"] = str(root.parent / "site")
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_lab: Any) -> Path:
    """The project with recorded results of `digits`, all stages known to DVC as done."""
    root = tmp_path_factory.mktemp("dvc") / "project"
    for name in FILES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, root / name)
    (root / "params.yaml").write_text("suites: [digits]\n")
    make_lab(root, "digits")
    (root / "data/digits/raw").mkdir()
    (root / "data/digits/raw/digits.npz").write_bytes(b"raw")
    run(root, "git", "init", "-q")
    run(root, "dvc", "init", "-q", "-f")
    shutil.copy(ROOT / ".dvc/config", root / ".dvc/config")
    shutil.copytree(ROOT / ".dvc/plots", root / ".dvc/plots")
    run(root, "python", "-m", "stages.report")
    run(root, "dvc", "commit", "-q", "-f")
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-q", "-m", "results")
    return root


@pytest.mark.slow
def test_metrics_plots_and_experiments(project: Path) -> None:
    assert run(project, "dvc", "status").strip() == "Data and pipelines are up to date."

    shown = json.loads(run(project, "dvc", "metrics", "show", "--json"))
    (revision,) = shown.values()
    metrics = revision["data"]["report/metrics.json"]["data"]["digits"]
    assert metrics["dart-36"]["top1_mean"] == 0.756667

    run(project, "dvc", "plots", "show")
    page = (project / "dvc_plots/index.html").read_text()
    assert "<DVC_" not in page
    assert page.count('"series": "digits dart"') == 2
    pictures = {path.name.split("digits-")[1] for path in (project / "dvc_plots/static").iterdir()}
    drawn = {"accuracy-vs-gflops.png", "accuracy-vs-latency.png", "learning-curves.png", "what-the-model-sees.png"}
    assert pictures == drawn

    # Of the variation, only the report is run here: the trainings take minutes.
    run(project, "dvc", "exp", "run", "-q", "-S", "suites/digits.yaml:train.lr=0.004", "--single-item", "report")
    status = json.loads(run(project, "dvc", "status", "--json"))
    assert set(status) == {"train@digits", "sweep@digits"}
    table = list(csv.DictReader(io.StringIO(run(project, "dvc", "exp", "show", "--csv"))))
    assert [row["train.lr"] for row in table] == ["0.004", "0.002", "0.004"]
    assert {row["digits.dart-36.top1_mean"] for row in table} == {"0.756667"}


def test_where_prints_the_table_and_loads_nothing_heavy(project: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['report', '--where']; runpy.run_module('stages.report', run_name='__main__');"
        "print(sorted({'pandas', 'matplotlib', 'jinja2', 'torch', 'pydantic'} & sys.modules.keys()))"
    )
    lines = run(project, "python", "-c", code).splitlines()
    assert lines[0] == "# digits: comparison"
    assert sum(line.startswith("| dart-36 ") for line in lines) == 1
    assert lines[-4:] == ["table    report/digits/table.md", "", "page     report/index.html", "[]"]


def test_where_before_the_first_report_says_what_to_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stages.report", "--where"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "error: report: no report yet; run: make repro\n")
