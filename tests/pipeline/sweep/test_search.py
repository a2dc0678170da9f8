"""Searches as a stage carries them out: what a suite may say of them, and two that are trained for real."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.config import Params, Suite, load_suite, load_yaml
from pipeline.data.drops import Drop, Drops
from pipeline.data.index import load_manifest
from pipeline.errors import ConfigError
from pipeline.sweep.execute import Paths, dry_run, publish
from pipeline.sweep.plan import plan_point, plan_sweep
from pipeline.sweep.search import known_trials, log_folder, say_plan
from pipeline.sweep.search_log import SearchLog

ROOT = Path(__file__).resolve().parents[3]
SPACE: dict[str, Any] = {
    "tokenizer.name": ["uniform", "dart"],
    "tokenizer.token_budget": {"low": 4, "high": 16, "log": True},
    "train.epochs": [4],
}
DRAWN: dict[str, Any] = {"seeds": [0], "space": SPACE, "num_samples": 4, "seed": 0}
RANDOM: dict[str, Any] = {"search": "random", **DRAWN}
OPTUNA: dict[str, Any] = {"search": "optuna", **DRAWN}
ASHA: dict[str, Any] = {"search": "asha", **DRAWN, "halving": {"grace_epochs": 1, "reduction_factor": 2}}


def write_suite(project: Path, folder: Path, sweep: dict[str, Any], name: str = "tiny") -> Path:
    path = folder / "suites" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    YAML().dump({**load_yaml(project / "suites/tiny.yaml"), "sweep": sweep}, path)
    return path


def suite_of(project: Path, folder: Path, sweep: dict[str, Any]) -> Suite:
    return load_suite("tiny", write_suite(project, folder, sweep))


BAD = [
    ({"seeds": [0]}, "sweep.grid: missing; search grid needs it"),
    ({**RANDOM, "search": "hyperband"}, "sweep.search = 'hyperband': input should be 'grid', 'random'"),
    ({**RANDOM, "num_samples": None}, "sweep.num_samples: missing; search random needs it"),
    ({**RANDOM, "grid": {"train.lr": [0.1]}}, "sweep.grid = {'train.lr': [0.1]}: search random has no such choice"),
    ({**RANDOM, "halving": ASHA["halving"]}, "sweep.halving = {'grace_epochs': 1, 'reduction_factor': 2}: search rand"),
    ({**ASHA, "halving": None}, "sweep.halving: missing; search asha needs it"),
    ({**ASHA, "seeds": [0, 1]}, "sweep.seeds = [0, 1]: search asha judges a point by one training"),
    ({**OPTUNA, "seeds": [0, 1]}, "sweep.seeds = [0, 1]: search optuna judges a point by one training"),
    ({**ASHA, "space": {**SPACE, "train.epochs": [2, 4]}}, "sweep.space: train.epochs = [2, 4]: asha compares"),
    (
        {**ASHA, "halving": {"grace_epochs": 4, "reduction_factor": 2}},
        "sweep.halving.grace_epochs = 4: no training of 4 epochs could be stopped after as many; below 4",
    ),
    ({**RANDOM, "space": {"tokenizer.token_budget": {"low": 9, "high": 4}}}, "token_budget.high = 4: must be a number"),
    ({**RANDOM, "space": {"train.lr": {"low": 0, "high": 1, "log": True}}}, "train.lr.low = 0: must be above 0"),
    ({**RANDOM, "space": {"train.lr": {"low": 1, "hihg": 4}}}, "did you mean 'high'?"),
    ({**RANDOM, "space": {"tokenizer.buget": [4]}}, "sweep.space = 'tokenizer.buget': unknown; did you mean"),
    ({**RANDOM, "space": {"tokenizer.token_budget": [4, 9]}}, "sweep.num_samples = 4: the space has 2 points; ask for"),
    (
        {**OPTUNA, "space": {"tokenizer.token_budget": {"low": 4, "high": 2000}}},
        "token_budget = 2000: more tokens than",
    ),
]


@pytest.mark.parametrize(("sweep", "line"), BAD, ids=[line[:50] for _, line in BAD])
def test_a_bad_search_gives_its_sentence(tiny_project: Path, tmp_path: Path, sweep: dict, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        suite_of(tiny_project, tmp_path, sweep)
    assert any(line in problem for problem in error.value.problems), error.value.problems


def test_random_and_asha_have_the_same_plan_and_optuna_has_none(tiny_project: Path, tmp_path: Path) -> None:
    drawn, halved, chosen = (plan_sweep(suite_of(tiny_project, tmp_path, s)) for s in (RANDOM, ASHA, OPTUNA))
    assert drawn == halved
    assert len({trial.name for trial in drawn}) == 4
    assert chosen == []
    both = plan_sweep(suite_of(tiny_project, tmp_path, {**RANDOM, "seeds": [0, 1]}))
    assert [(trial.name, trial.seed) for trial in both] == [(t.name, seed) for t in drawn for seed in (0, 1)]


def test_a_dry_run_says_what_is_known(
    tiny_project: Path, tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = Paths(tiny_shards, tmp_path / "runs", tmp_path / "results", ())
    suite = suite_of(tiny_project, tmp_path, ASHA)
    assert say_plan(suite, plan_sweep(suite)).startswith("asha: after epoch 1, 2 only the best 1/2 of those before")
    suite = suite_of(tiny_project, tmp_path, OPTUNA)
    assert known_trials(suite, paths) == []
    assert not paths.runs.exists()
    folder = log_folder(suite, "data", paths)
    assert folder == log_folder(suite_of(tiny_project, tmp_path, {**OPTUNA, "num_samples": 9}), "data", paths)
    assert folder != log_folder(suite_of(tiny_project, tmp_path, {**OPTUNA, "seed": 9}), "data", paths)
    values = {"tokenizer.name": "dart", "tokenizer.token_budget": 7, "train.epochs": 4}
    SearchLog(log_folder(suite, load_manifest(tiny_shards).sha256 + Drops().sha256, paths)).asked(0, values)
    known = known_trials(suite, paths)
    assert known == [plan_point(suite, values)]
    dry_run("sweep", suite, known, Params(suites=["tiny"]), paths)
    assert "dart-7-4" in capsys.readouterr().out
    assert say_plan(suite, known) == "optuna: 1 of 4 points are known, each further one depends on results"
    drops = Drops((Drop("train", "train-000000.tar", "train-000003", 3, "is cut off"),))
    publish("sweep", suite, [], paths.results, drops)  # a search without that sample is another one
    assert known_trials(suite, paths) == []
    SearchLog(log_folder(suite, load_manifest(tiny_shards).sha256 + drops.sha256, paths)).asked(0, values)
    assert known_trials(suite, paths) == known


def test_the_sweeps_of_the_documentation_are_sweeps(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/sweeps.md").read_text(), flags=re.DOTALL)
    sweeps = [YAML(typ="safe").load(block)["sweep"] for block in blocks]
    assert [sweep.get("search") for sweep in sweeps] == [None, "asha"]
    YAML().dump({**load_yaml(ROOT / "suites/digits.yaml"), "sweep": sweeps[0]}, tmp_path / "grid.yaml")
    assert len(plan_sweep(load_suite("grid", tmp_path / "grid.yaml"))) == 6
    YAML().dump({**load_yaml(ROOT / "suites/digits.yaml"), "sweep": sweeps[1]}, tmp_path / "asha.yaml")
    assert len(plan_sweep(load_suite("asha", tmp_path / "asha.yaml"))) == sweeps[1]["num_samples"]


def sweep_in(project: Path, *args: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-u", "-m", "stages.sweep", "tiny", *args]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_of(project: Path, shards: Path, folder: Path, sweep: dict[str, Any]) -> Path:
    write_suite(project, folder, sweep)
    (folder / "data/tiny").mkdir(parents=True)
    (folder / "data/tiny/shards").symlink_to(shards)
    (folder / "params.yaml").write_text((project / "params.yaml").read_text())
    return folder


def recorded(project: Path) -> list[dict[str, Any]]:
    return json.loads((project / "results/tiny/sweep/runs.json").read_text())["runs"]


@pytest.mark.slow
def test_asha_marks_what_it_stops_and_a_second_call_trains_nothing(
    tiny_project: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    project = copy_of(tiny_project, tiny_shards, tmp_path, {**ASHA, "num_samples": 4})
    said = sweep_in(project)
    runs = recorded(project)
    stopped = [run for run in runs if run["status"] != "done"]
    assert 0 < len(stopped) < 4
    assert {run["status"] for run in stopped} <= {f"stopped early at epoch {k} of 4" for k in (1, 2)}
    for run in runs:
        epochs = 4 if run["status"] == "done" else int(run["status"].split()[4])
        assert run["num_samples"] == 400 * epochs
        assert (project / "results/tiny/sweep" / run["fingerprint"] / "model.safetensors").is_file() == (epochs == 4)
    assert f"seed 0  {stopped[0]['status']}" in said
    assert "is killed" not in said  # whoever is stopped is not missed
    assert "0 to train" in sweep_in(project)
    assert recorded(project) == runs


@pytest.mark.slow
def test_optuna_goes_on_where_a_smaller_search_ended(tiny_project: Path, tiny_shards: Path, tmp_path: Path) -> None:
    short = {**SPACE, "train.epochs": [1]}
    project = copy_of(tiny_project, tiny_shards, tmp_path, {**OPTUNA, "space": short, "num_samples": 2})
    sweep_in(project)
    few = recorded(project)
    write_suite(tiny_project, project, {**OPTUNA, "space": short, "num_samples": 4})
    assert "2 of 4 points are known" in sweep_in(project, "--dry-run")
    assert "2 of 4 points are known" in sweep_in(project)
    runs = recorded(project)
    assert [{**run, "provenance": 0} for run in runs[: len(few)]] == [{**run, "provenance": 0} for run in few]
    assert {run["status"] for run in runs} == {"done"}
    models = json.loads((project / "results/tiny/sweep/benchmark.json").read_text())["models"]
    assert {(m["tokenizer"]["name"], m["tokenizer"]["token_budget"]) for m in models} == {
        (run["science"]["tokenizer"]["name"], run["science"]["tokenizer"]["token_budget"]) for run in runs
    }
