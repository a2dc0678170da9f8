"""The map of the code, kept true: stages -> pipeline -> dart, and one home for each heavy library."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("[a-z]*.py"))

# A library -> the modules (and all below them) that may import it.
HOMES = {
    "ray.train": ("pipeline.train.launch", "pipeline.train.worker"),
    "ray.tune": ("pipeline.sweep.tune", "pipeline.sweep.halving", "pipeline.sweep.suggesting"),
    "ray": (
        "pipeline.train.launch",
        "pipeline.train.nodes",
        "pipeline.train.session",
        "pipeline.train.worker",
        "pipeline.sweep.halving",
        "pipeline.sweep.silence",
        "pipeline.sweep.suggesting",
        "pipeline.sweep.tune",
        "pipeline.spread",
    ),
    "mlflow": ("pipeline.tracking",),
    "pandas": ("pipeline.report",),
    "webdataset": ("pipeline.data.shards", "pipeline.data.loader"),
    "sklearn": ("pipeline.data", "pipeline.report.importance"),
    "optuna": ("pipeline.sweep.suggesting",),
    "matplotlib": ("pipeline.report", "dart.draw.clips", "dart.draw.figures", "dart.draw.segments"),
    "fsspec": ("pipeline.data.source_http", "pipeline.data.source_remote"),
    "aiohttp": ("pipeline.data.source_http",),
    "av": ("pipeline.data.video",),
    "jinja2": ("pipeline.report",),
    "segmentation_models_pytorch": ("dart.models.warped",),
    "dvc": (),
}
HEAVY = ("torch", "torchvision", "timm", "ray", "mlflow", "pandas", "matplotlib", "sklearn", "webdataset", "dvc", "av")


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_dart_knows_neither_pipeline_nor_stages_and_pipeline_knows_no_stage(graph: Any) -> None:
    above = {"dart": ("pipeline", "stages"), "pipeline": ("stages",), "stages": ()}
    wrong = [
        f"{module} imports {name}"
        for module in graph.files
        for name in graph.imports(module)
        if within(name, above[module.split(".")[0]])
    ]
    assert wrong == []


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_is_imported_in_its_home_alone(graph: Any, library: str) -> None:
    strangers = [
        module
        for module in graph.files
        if not within(module, HOMES[library]) and any(within(name, (library,)) for name in graph.imports(module))
    ]
    assert strangers == []


def test_the_training_loop_is_plain_torch(graph: Any) -> None:
    reached = graph.closure("pipeline.train.loop")
    assert "torch" in reached
    assert [name for name in reached if within(name, ("ray", "mlflow", "dvc"))] == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_nothing_heavy_before_it_knows_its_arguments(graph: Any, stage: str) -> None:
    reached = graph.closure(f"stages.{stage}", top_level_only=True)
    assert [name for name in reached if within(name, HEAVY)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_help_answers_without_loading_anything_heavy(stage: str, tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['stage', '--help']\n"
        f"try: runpy.run_module('stages.{stage}', run_name='__main__')\n"
        f"finally: print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
    assert done.stdout.endswith("[]\n")
