"""A run's identity is its science, data and code; where it runs is no part of it."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Suite, Trial, load_yaml
from pipeline.model_rules import ReducerConfig
from pipeline.provenance import CODE, ROOT, code_files, code_sha256, collect, fingerprint, hash_file, hash_json
from pipeline.recipe import TokenWarmupConfig
from pipeline.sweep.plan import plan_experiments

DATA, SOURCE = "d" * 64, "c" * 64
OTHER = {int: 77, float: 0.777, str: "other", type(None): 3, list: [0.1, 0.2]}
SECTIONS = {  # keys whose own properties are read
    "reducer": ReducerConfig(name="ats", keep=0.5),
    "token_warmup": TokenWarmupConfig(token_budget=1, frac=0.5),
}


@pytest.fixture
def trial(tiny_suite: Suite) -> Trial:
    return next(trial for trial in plan_experiments(tiny_suite) if trial.name == "dart-4")


def changes(trial: Trial) -> list[Trial]:
    """The trial with each scientific key changed, one at a time; values need not make sense."""
    changed: list[Trial] = [trial.model_copy(update={"seed": 77})]
    for section in ("model", "tokenizer", "train"):
        config = getattr(trial, section)
        for key, value in config.model_dump().items():
            if (section, key) != ("tokenizer", "name"):  # which keys are read at all depends on it
                other: Any = config.model_copy(update={key: SECTIONS.get(key, OTHER[type(value)])})
                changed.append(trial.model_copy(update={section: other}))
    return changed


def test_every_key_of_science_changes_the_fingerprint(trial: Trial) -> None:
    variants = [trial, *changes(trial), trial.model_copy(update={"num_workers": 2})]
    prints = {fingerprint(variant, DATA, SOURCE) for variant in variants}
    assert len(prints) == len(variants)
    assert all(len(value) == 16 for value in prints)


def test_data_and_code_change_the_fingerprint(trial: Trial) -> None:
    assert len({fingerprint(trial, d, c) for d in (DATA, "e" * 64) for c in (SOURCE, "f" * 64)}) == 4


def test_the_name_of_a_trial_does_not(trial: Trial) -> None:
    assert fingerprint(trial.model_copy(update={"name": "other"}), DATA, SOURCE) == fingerprint(trial, DATA, SOURCE)


def test_equal_values_have_equal_hashes_whatever_their_order(tmp_path: Path) -> None:
    assert hash_json({"a": 1, "b": [2.0, None]}) == hash_json({"b": [2.0, None], "a": 1})
    (tmp_path / "empty").touch()
    assert hash_file(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources that weights depend on, without git."""
    for pattern in (*CODE, "pipeline/cli.py"):
        for source in ROOT.glob(pattern):
            target = tmp_path / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return tmp_path


def test_only_code_that_makes_weights_is_hashed(copy: Path) -> None:
    before = code_sha256(copy)
    assert before == code_sha256()
    (copy / "pipeline/cli.py").write_text("# another word on the screen\n")
    assert code_sha256(copy) == before
    seen = {before}
    for path in ("dart/scorer.py", "pipeline/train/loop.py", "pipeline/data/loader.py"):
        (copy / path).write_text("# another loss\n")
        seen.add(code_sha256(copy))
    assert len(seen) == 4


def test_what_makes_the_stage_stale_makes_other_runs() -> None:
    """But for what decides which runs there are and how they are kept: that is in their science, or no part of it."""
    stages = load_yaml(ROOT / "dvc.yaml")["stages"]
    deps = [ROOT / dep for dep in stages["train"]["do"]["deps"] if not dep.startswith("data/")]
    files = {file for dep in deps for file in (dep.rglob("*.py") if dep.is_dir() else [dep])}
    rest = {path.relative_to(ROOT).as_posix() for path in files - set(code_files())}
    assert {path for path in rest if not path.startswith("pipeline/sweep/")} == {
        "pipeline/data/drops.py",
        "pipeline/train/run.py",
    }


def test_the_record_is_complete_with_and_without_git(copy: Path) -> None:
    params = copy / "suite.yaml"
    params.write_text("lr: 1\n")
    without = collect([params], root=copy)
    assert without["commit"] is None
    assert without["dirty"] is False
    git = ["git", "-C", str(copy), "-c", "user.name=n", "-c", "user.email=e@e"]
    for name in ("params.yaml", "dvc.lock"):
        (copy / name).write_text("one\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    clean = collect([params], root=copy)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    for name in ("params.yaml", "dvc.lock"):  # which suites are active, and what every run writes
        (copy / name).write_text("another\n")
    assert collect([params], root=copy)["dirty"] is False
    params.write_text("lr: 2\n")
    dirty = collect([params], root=copy)
    assert dirty["dirty"] is True
    assert dirty["params_sha256"] != clean["params_sha256"]
    assert clean["versions"]["torch"]
    assert clean["hardware"]["cores"] >= 1
