"""The first two stages from the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(stage: str, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"stages.{stage}", *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture
def suite(tmp_path) -> Path:
    """The default suite with a handful of samples."""
    text = (ROOT / "suites/digits.yaml").read_text()
    for old, new in (("train_samples: 10000", "train_samples: 20"), ("_samples: 1000", "_samples: 7")):
        text = text.replace(old, new)
    text = text.replace("test_samples: 2000", "test_samples: 9")
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "tiny.yaml").write_text(text)
    (tmp_path / "params.yaml").write_text("suites: [tiny]\n")
    (tmp_path / "params.yaml").write_text("suites: [tiny]\n")
    return tmp_path


def test_fetch_then_shard_print_one_line_each(suite):
    fetched = run("fetch", "tiny", cwd=suite)
    assert fetched.returncode == 0, fetched.stderr
    assert fetched.stdout == "fetched cluttered-digits: 0.1 MB in data/tiny/raw\n"
    sharded = run("shard", "tiny", cwd=suite)
    assert sharded.returncode == 0, sharded.stderr
    assert sharded.stdout.startswith("sharded cluttered-digits: train 20, val 7, test 9 samples, 3 shards, manifest ")
    assert sharded.stdout.count("\n") == 1


def test_shard_before_fetch_is_one_sentence(suite):
    done = run("shard", "tiny", cwd=suite)
    assert done.returncode == 1
    assert done.stderr == "error: data/tiny/raw: no such directory; run the stage `fetch` first\n"
    assert not (suite / "data").exists()
