"""Nodes that go and come, a cluster that dies: the same command goes on, to the weights of a training of its own."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from pipeline.config import load_suite
from pipeline.journal import curves, read_journal
from pipeline.sweep.plan import plan_experiments
from tests.integration.raylets import Cluster, cluster

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 30
LEFT = """
import json, ray
ray.init(address="auto", log_to_driver=False, logging_level="error")
from ray.util.state import list_actors
total, free = ray.cluster_resources(), ray.available_resources()
print(json.dumps({
    "actors": [a.class_name for a in list_actors() if a.state not in ("DEAD",)],
    "groups": [g["state"] for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"],
    "jobs": sum(not job["IsDead"] for job in ray._private.state.jobs()),
    "CPUs held": total["CPU"] - free.get("CPU", 0),
}))
"""


@pytest.fixture
def project(tiny_project: Path, tmp_path: Path) -> Path:
    """The tiny project in float64, with a short run of one worker and a long one of two, or of one where need be."""
    shutil.copytree(tiny_project, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "suites/tiny.yaml"
    suite = YAML(typ="safe").load(path.read_text())
    suite["seeds"] = [0]
    suite["train"]["precision"] = "fp64"
    suite["experiments"] = {"short": {"train": {"epochs": 1}, "num_workers": 1}, "long": {"train": {"epochs": EPOCHS}}}
    YAML().dump(suite, path)
    placement = {"num_workers": 2, "min_workers": 1, "max_failures": 2}
    YAML().dump({"suites": ["tiny"], "placement": placement}, tmp_path / "params.yaml")
    for package in ("dart", "pipeline", "stages"):  # a copy: an edit in between would rightly start new runs
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "requirements.lock", tmp_path / "requirements.lock")
    return tmp_path


def start(project: Path, nodes: Cluster) -> subprocess.Popen:
    """`python -m stages.train tiny` on the cluster."""
    environment = {**nodes.env, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": nodes.address}
    command = [sys.executable, "-m", "stages.train", "tiny"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=project, env=environment, start_new_session=True, **pipe)


def wait_for(condition: Callable[[], object], what: str, stage: subprocess.Popen, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert stage.poll() is None, f"the stage ended before {what}: {stage.communicate()[0]}"
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def folder(project: Path, name: str) -> Path | None:
    """The run folder of an experiment."""
    specs = [spec for spec in project.glob("runs/tiny/*/spec.json") if json.loads(spec.read_text())["name"] == name]
    return specs[0].parent if specs else None


def num_epochs(project: Path, name: str) -> int:
    run = folder(project, name)
    return len(curves(read_journal(run / "journal.jsonl")).get("val_top1", {})) if run else 0


def sizes(project: Path, name: str) -> list[int]:
    """The number of workers of every attempt at a run, in order."""
    run = folder(project, name)
    lines = (run / "log.txt").read_text().splitlines() if run and (run / "log.txt").is_file() else []
    return [int(line.split(" rank 0 of ")[1].split()[0]) for line in lines if " rank 0 of " in line]


def workers(nodes: Cluster) -> list[psutil.Process]:
    """The processes of the cluster that train."""
    found = [child for node in nodes.nodes for child in psutil.Process(node.pid).children(recursive=True)]
    return [process for process in found if "TrainWorker" in " ".join(process.cmdline())]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_goes_on_while_nodes_come_and_go_and_after_the_cluster_died(project: Path) -> None:
    with cluster(1, 1) as nodes:
        stage = start(project, nodes)
        wait_for(lambda: num_epochs(project, "long") >= 2, "two epochs of two workers", stage)
        assert sizes(project, "long") == [2]
        nodes.kill(nodes.nodes[1])
        done = num_epochs(project, "long")
        wait_for(lambda: num_epochs(project, "long") > done + 1, "an epoch of the worker that is left", stage)
        assert sizes(project, "long") == [2, 1]

        left = workers(nodes)
        assert left
        for process in left:
            process.suspend()  # or a fast machine has finished before the node has started
        nodes.add_node(1)
        time.sleep(25)  # Ray Train's view of the nodes is up to 20 s old
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):  # Ray Train may have given it up before
                process.kill()
        wait_for(lambda: sizes(project, "long")[-1] == 2, "a restart that takes the new node in", stage)
        done = num_epochs(project, "long")
        wait_for(lambda: num_epochs(project, "long") > done, "another epoch of two workers", stage)

        killed_at = time.monotonic()
        nodes.kill(nodes.nodes[0])
        output = stage.communicate(timeout=90)[0]
        assert time.monotonic() - killed_at < 60
        assert stage.returncode == 1, output
        assert f"error: the Ray cluster at {nodes.address} is lost" in output
        assert "Traceback" not in output
        assert num_epochs(project, "long") < EPOCHS, "the training was too short to be interrupted"

    with cluster(1, 1) as nodes:
        stage = start(project, nodes)
        output = stage.communicate(timeout=300)[0]
        assert stage.returncode == 0, output
        assert "2 trials, 1 trainings to do" in output  # the short one was finished on the cluster that died
        left = subprocess.run([sys.executable, "-c", LEFT], env={**nodes.env, "RAY_ADDRESS": nodes.address},
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert json.loads(left.stdout.splitlines()[-1]) == {"actors": [], "groups": [], "jobs": 1, "CPUs held": 0}
    same_as_alone(project)


NEEDS_MOUNTS = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0


@pytest.mark.slow
@pytest.mark.skipif(NEEDS_MOUNTS, reason="a node with storage of its own needs the right to mount")
def test_a_node_that_does_not_share_the_storage_is_named_before_anything_starts(project: Path) -> None:
    with cluster(1) as nodes:
        environment = {**nodes.env, "PYTHONPATH": str(project), "RAY_ADDRESS": nodes.address}
        command = [sys.executable, "-m", "stages.preflight"]
        sound = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert (sound.returncode, sound.stderr) == (0, "")
        nodes.add_node(1, without=project)
        lacking = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert lacking.returncode == 1
        assert "Ray cluster of 2 nodes: 1 problem\n  node " in lacking.stderr
        said = f"storage = '{project}': cannot be written there (No such file or directory); mount the same folder"
        assert said in lacking.stderr
        stage = start(project, nodes)
        output = stage.communicate(timeout=120)[0]
        assert stage.returncode == 1
        assert "mount the same folder at the same path" in output
        assert sizes(project, "short") == []  # nothing was trained
        assert not list(project.rglob(".preflight-*"))


def same_as_alone(project: Path) -> None:
    """The weights agree with those of a training of one process that nothing happened to."""
    from pipeline.train.loop import WEIGHTS, fit

    torch.set_num_threads(1)
    runs = json.loads((project / "results/tiny/train/runs.json").read_text())["runs"]
    assert [(run["name"], run["status"]) for run in runs] == [("short", "done"), ("long", "done")]
    trial = plan_experiments(load_suite("tiny", project / "suites/tiny.yaml"))[1]
    (project / "alone").mkdir()
    fit(trial, project / "data/tiny/shards", project / "alone", num_classes=10)
    ours = load_file(project / "results/tiny/train" / runs[1]["fingerprint"] / WEIGHTS)
    alone = load_file(project / "alone" / WEIGHTS)
    worst = max(float((ours[name].double() - alone[name].double()).abs().max()) for name in alone)
    assert worst < 1e-6  # of weights of about 0.1; in float32 the order of the sums alone makes 1e-3
