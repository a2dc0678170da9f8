"""What tests share: one Ray runtime, and a tiny project whose whole pipeline runs in a minute."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from ruamel.yaml import YAML

from pipeline.config import Suite, load_suite, load_yaml
from pipeline.placement import Placement
from pipeline.train.session import set_environment

ROOT = Path(__file__).resolve().parents[1]
settings.register_profile("busy machine", deadline=None)  # a slow example is no wrong one
settings.load_profile("busy machine")
set_environment()  # before any test module imports Ray


@pytest.fixture(scope="session")
def ray() -> Iterator[None]:
    """A private Ray runtime with two cores, once per pytest run."""
    from pipeline.train.session import ray_session

    with ray_session(Placement(), num_cpus=2, dashboard=True):
        yield


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params.yaml, suites/tiny.yaml and data/tiny/{raw,shards}: 400 images of 32 px. Do not write."""
    from pipeline.data.fetch import fetch_dataset
    from pipeline.data.shards import write_shards

    root = tmp_path_factory.mktemp("project")
    write_tiny_suite(root)
    suite = load_suite("tiny", root / "suites/tiny.yaml")
    data = root / "data/tiny"
    fetch_dataset(suite.dataset, data / "raw")
    write_shards(suite.dataset, data / "raw", data / "shards", suite.shards.samples_per_shard)
    return root


@pytest.fixture(scope="session")
def tiny_suite(tiny_project: Path) -> Suite:
    """The suite `tiny`."""
    return load_suite("tiny", tiny_project / "suites/tiny.yaml")


@pytest.fixture(scope="session")
def tiny_shards(tiny_project: Path) -> Path:
    """The shards of the suite `tiny`. Do not write."""
    return tiny_project / "data/tiny/shards"


def write_tiny_suite(root: Path) -> None:
    """suites/digits.yaml made small, so that a new key of science needs no change here."""
    raw = load_yaml(ROOT / "suites/digits.yaml")
    raw["dataset"] |= {"img_size": 32, "num_clutter": 1, "train_samples": 400, "val_samples": 50, "test_samples": 50}
    raw["shards"] |= {"samples_per_shard": 200}
    raw["model"] |= {"variant": "nano", "img_size": 32}
    raw["tokenizer"] |= {"token_budget": 4, "num_rows": None}
    raw["train"] |= {"epochs": 2, "global_batch_size": 20}
    raw["seeds"] = [0, 1]
    raw["experiments"] = {
        "uniform-4": {"tokenizer": {"name": "uniform"}},
        "dart-4": {},
        "dart-4-2workers": {"seeds": [0], "num_workers": 2, "agrees_with": "dart-4"},
    }
    raw["sweep"] = {"seeds": [0], "grid": {"tokenizer.name": ["uniform", "dart"], "tokenizer.token_budget": [4, 9]}}
    (root / "suites").mkdir(parents=True, exist_ok=True)
    YAML().dump(raw, root / "suites/tiny.yaml")
    YAML().dump({"suites": ["tiny"], "placement": {"max_failures": 2}}, root / "params.yaml")
