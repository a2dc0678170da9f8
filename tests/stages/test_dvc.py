"""dvc.yaml with a real DVC: what an edit makes stale, and that no code a result depends on is forgotten."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from pipeline import provenance
from pipeline.config import load_yaml
from pipeline.data.catalog import DATASETS

ROOT = Path(__file__).resolve().parents[2]
FILES = ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", "suites", "dart", "pipeline", "stages")
OUTS = (
    "data/digits/raw",
    "data/digits/shards",
    "report",
    *(f"results/digits/{s}" for s in ("train", "sweep", "evaluate")),
)
PER_SUITE = {"fetch", "shard", "train", "sweep", "evaluate", "benchmark"}

# Where each result is made.
MAKERS = {
    "fetch": ["pipeline.data.fetch", *(entry.module for entry in DATASETS.values())],
    "shard": ["pipeline.data.shards", *(entry.module for entry in DATASETS.values())],
    "train": ["pipeline.sweep.execute", "pipeline.train.loop"],
    "sweep": ["pipeline.sweep.execute", "pipeline.sweep.search", "pipeline.train.loop"],
    "evaluate": ["pipeline.evaluate", "pipeline.budgets"],
    "benchmark": ["pipeline.benchmark", "pipeline.sweep.plan"],
    "report": ["pipeline.report.site"],
}
# What runs pass through without changing a result: checks, files, placement, logs, records of who and when.
WITHOUT_EFFECT = frozenset(
    {
        "pipeline",
        "pipeline.budget_rules",
        "pipeline.clip_rules",
        "pipeline.config",
        "pipeline.data.addresses",
        "pipeline.data.cache",
        "pipeline.data.hashes",
        "pipeline.data.lazy",
        "pipeline.data.ledger",
        "pipeline.data.listed",
        "pipeline.data.options",
        "pipeline.data.source",
        "pipeline.data.source_http",
        "pipeline.data.source_remote",
        "pipeline.data.verify",
        "pipeline.errors",
        "pipeline.files",
        "pipeline.mask_rules",
        "pipeline.model_rules",
        "pipeline.placement",
        "pipeline.provenance",
        "pipeline.recipe",
        "pipeline.schema",
        "pipeline.search_rules",
        "pipeline.spread",
        "pipeline.sweep.capacity",
        "pipeline.sweep.checks",
        "pipeline.sweep.cost",
        "pipeline.sweep.jobs",
        "pipeline.sweep.preview",
        "pipeline.sweep.progress",
        "pipeline.sweep.silence",
        "pipeline.sweep.tune",
        "pipeline.tracking.mirror",
        "pipeline.tracking.uri",
        "pipeline.train.attempt",
        "pipeline.train.guard",
        "pipeline.train.launch",
        "pipeline.train.nodes",
        "pipeline.train.session",
        "pipeline.train.worker",
        "pipeline.train.watch",
        "pipeline.validation",
    }
)
ELSEWHERE = {
    "fetch": {"pipeline.data.catalog", "pipeline.data.index"},  # which data set there is, not what is in it
    "shard": {"pipeline.data.download"},
    # The plan's preview counts and asks the data set's options, it does not train.
    "train": {"pipeline.journal", "pipeline.benchmark", "pipeline.data.catalog", "dart.cost"},
    # Of the measures a search reads the name of the first; what it validates by is the training's.
    "sweep": {"pipeline.journal", "pipeline.benchmark", "pipeline.data.catalog", "dart.cost", "pipeline.measures"},
    # Pictures for MLflow; of the data sets a number that means no class.
    "evaluate": {"dart.draw.clips", "dart.draw.figures", "dart.draw.segments", "pipeline.data.catalog"},
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the project in a Git and DVC repository of its own, every stage recorded as done."""
    root = tmp_path_factory.mktemp("dvc") / "project"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(root.parent / "site"))
        yield record(root)


@pytest.fixture
def project(recorded: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(recorded, tmp_path / "project", symlinks=True))


def record(root: Path) -> Path:
    for name in FILES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, root / name)
    for folder in root.rglob("__pycache__"):
        shutil.rmtree(folder)
    params = root / "params.yaml"
    params.write_text(re.sub(r"^suites: .*$", "suites: [digits]", params.read_text(), flags=re.MULTILINE))
    for out in OUTS:
        (root / out).mkdir(parents=True)
        (root / out / "made").write_text(out)
    (root / "data/digits/shards/manifest.json").write_text("{}")
    (root / "results/digits/benchmark.json").write_text("{}")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    run_dvc(root, "init", "-q", "-f")
    shutil.copy(ROOT / ".dvc/config", root / ".dvc/config")
    run_dvc(root, "commit", "-q", "-f")
    return root


def run_dvc(root: Path, *args: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *args], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stale(root: Path) -> set[str]:
    """The stages that `dvc status` names, without those that only wait for another."""
    with Repo(str(root)) as repo:
        return {name.split(":")[-1].split("@")[0] for name in repo.status()}


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path.name} has no {old!r}"
    path.write_text(text.replace(old, new, 1))


PARAM_EDITS = [
    ("suites/digits.yaml", "  seed: 0", "  seed: 1", {"fetch", "shard"}),
    ("suites/digits.yaml", "samples_per_shard: 1000", "samples_per_shard: 500", {"shard"}),
    ("suites/digits.yaml", "train:\n  epochs:", "train:\n  new: 1\n  epochs:", {"train", "sweep"}),
    ("suites/digits.yaml", "\nseeds: [", "\nseeds: [7, ", {"train"}),
    ("suites/digits.yaml", "tokenizer.token_budget: [", "tokenizer.token_budget: [9, ", {"sweep", "benchmark"}),
    ("suites/digits.yaml", "evaluate:\n", "evaluate:\n  new: 1\n", {"evaluate"}),
    ("suites/digits.yaml", "benchmark:\n", "benchmark:\n  new: 1\n", {"benchmark"}),
    ("suites/digits.yaml", "#", "# a comment\n#", set()),
    ("params.yaml", "  num_workers: 1", "  num_workers: 2", set()),
    ("params.yaml", "sqlite:///", "sqlite:///elsewhere/", set()),
]
CODE_EDITS = [
    ("dart/tokenizer.py", {"train", "sweep", "evaluate", "benchmark"}),
    ("dart/models/vit.py", {"train", "sweep", "evaluate", "benchmark"}),
    ("dart/draw/figures.py", {"report"}),
    ("pipeline/data/video.py", {"fetch", "shard", "train", "sweep", "evaluate"}),
    ("pipeline/data/clips.py", {"train", "sweep", "evaluate"}),
    ("pipeline/train/loop.py", {"train", "sweep"}),
    ("pipeline/tracking/ledger.py", set()),
    ("pipeline/evaluate.py", {"evaluate"}),
    ("pipeline/report/tables.py", {"report"}),
    ("stages/train.py", set()),
]


def edits() -> Iterator[Any]:
    for file, old, new, expected in PARAM_EDITS:
        yield pytest.param(file, old, new, expected, id=f"{file}: {new.strip()}")
    for file, expected in CODE_EDITS:
        yield pytest.param(file, '"""', '"""Edited. ', expected, id=file)


@pytest.mark.slow
def test_an_edit_makes_stale_what_depends_on_it_and_nothing_else(project: Path) -> None:
    assert stale(project) == set()
    wrong = {}
    for case in edits():
        file, old, new, expected = case.values
        before = (project / file).read_text()
        replace(project / file, old, new)
        found = stale(project)
        (project / file).write_text(before)
        if found != expected:
            wrong[case.id] = {"stale": sorted(found), "expected": sorted(expected)}
    assert wrong == {}


def test_byte_code_half_written_folders_and_other_suites_make_nothing_stale(project: Path) -> None:
    (project / "dart/models/__pycache__").mkdir()
    (project / "dart/models/__pycache__/vit.pyc").write_bytes(b"x")
    (project / "results/digits/.train.tmp").mkdir()
    (project / "results/digits/.train.tmp/runs.json").write_text("half")
    shutil.copy(project / "suites/digits.yaml", project / "suites/mine.yaml")
    assert stale(project) == set()


def test_a_second_suite_gets_stages_of_its_own_and_leaves_the_first_alone(project: Path) -> None:
    shutil.copy(project / "suites/digits.yaml", project / "suites/mine.yaml")
    replace(project / "params.yaml", "suites: [digits]", "suites: [digits, mine]")
    with Repo(str(project)) as repo:
        names = {stage.name for stage in repo.index.stages}
        status = repo.status()
    assert names == {f"{stage}@{suite}" for stage in PER_SUITE for suite in ("digits", "mine")} | {"report"}
    assert [name for name in status if name.endswith("@digits")] == []


def test_the_stages_follow_from_each_other(project: Path) -> None:
    with Repo(str(project)) as repo:
        edges = {(b.name.split("@")[0], a.name.split("@")[0]) for a, b in repo.index.graph.edges}
    assert edges == {
        ("fetch", "shard"),
        *(("shard", stage) for stage in ("train", "sweep", "evaluate", "benchmark")),
        *((stage, "evaluate") for stage in ("train", "sweep")),
        *((stage, "report") for stage in ("train", "sweep", "evaluate", "benchmark")),
    }
    assert "train@digits" in run_dvc(project, "dag")


@pytest.mark.parametrize("stage", MAKERS)
def test_no_code_that_a_result_depends_on_is_missing(graph: Any, stage: str) -> None:
    """A module that a stage imports is one of its deps, or is listed here as without effect."""
    ignored = WITHOUT_EFFECT | ELSEWHERE.get(stage, set())
    needed = graph.closure(*MAKERS[stage], stop=frozenset(ignored)) & graph.files.keys()
    needed -= {"dart", *ignored}  # dart/__init__.py is empty
    packages = {name for name in needed if graph.files[name].name == "__init__.py"}
    tracked = [ROOT / dep for dep in code_deps(stage)]
    missing = [n for n in needed - packages if not any(graph.files[n].is_relative_to(path) for path in tracked)]
    assert missing == [], f"add to dvc.yaml, deps of {stage}, or to this test as without effect"


def test_dvc_retrains_for_all_code_in_the_fingerprint_and_the_record() -> None:
    """Else an edit would leave stale weights behind an up-to-date status."""
    hashed = {path.relative_to(ROOT) for path in provenance.code_files()}
    tracked = code_deps("train")
    forgotten = [p for p in hashed if p.name != "__init__.py" and not any(p.is_relative_to(dep) for dep in tracked)]
    assert forgotten == []


def test_all_deps_exist() -> None:
    assert [str(dep) for stage in MAKERS for dep in code_deps(stage) if not (ROOT / dep).exists()] == []


def code_deps(stage: str) -> list[Path]:
    """The deps of dvc.yaml that are sources."""
    spec = load_yaml(ROOT / "dvc.yaml")["stages"][stage]
    return [Path(dep) for dep in spec.get("do", spec)["deps"] if dep.startswith(("dart", "pipeline"))]
