"""What would fail later is found before anything starts, all of it at once."""

import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.errors import UserError
from stages.preflight import check_disk, check_temp_path

ROOT = Path(__file__).parents[2]


def preflight(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "stages.preflight"]
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "suites").mkdir()
    for path in (ROOT / "params.yaml", *(ROOT / "suites").glob("digits*.yaml")):
        (tmp_path / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    return tmp_path


def edit(path: Path, section: str, key: str, value: object) -> None:
    yaml = YAML()
    content = yaml.load(path)
    content[section][key] = value
    yaml.dump(content, path)


def test_a_sound_project_passes_and_nothing_is_written(project: Path) -> None:
    before = sorted(project.rglob("*"))
    result = preflight(project)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert sorted(project.rglob("*")) == before


def test_all_problems_are_told_at_once_without_a_traceback(project: Path) -> None:
    edit(project / "suites/digits.yaml", "tokenizer", "num_rows", 100)
    edit(project / "suites/digits.yaml", "model", "variant", "mikro")
    edit(project / "params.yaml", "tracking", "uri", "sqlite:///nowhere/mlflow.db")
    result = preflight(project)
    assert result.returncode == 1
    for expected in ("num_rows = 100", "did you mean 'micro'", "no such folder"):
        assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_a_data_set_that_is_not_there_is_said_at_once(project: Path) -> None:
    (project / "suites/imagenet1k.yaml").write_bytes((ROOT / "suites/imagenet1k.yaml").read_bytes())
    edit(project / "suites/imagenet1k.yaml", "dataset", "path", str(project / "nowhere"))
    (project / "params.yaml").write_text("suites: [imagenet1k]\n")
    result = preflight(project)
    assert result.returncode == 1
    assert "nowhere': no such directory; set dataset.path in suites/imagenet1k.yaml to your copy" in result.stderr
    (project / "nowhere").mkdir()
    assert preflight(project).returncode == 0


def test_it_loads_nothing_heavy() -> None:
    code = "import sys, runpy; sys.argv = ['preflight']; runpy.run_module('stages.preflight', run_name='__main__');"
    code += "print(sorted({'torch', 'mlflow', 'ray', 'pandas'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_no_space_and_long_paths_have_their_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"free disk space = .*less than the 1000000000 GB"):
        check_disk(tmp_path, need_gb=10**9)
    check_disk(tmp_path, need_gb=0)
    with pytest.raises(UserError, match="set TMPDIR to a shorter path"):
        check_temp_path(Path("/" + "t" * 60))
    check_temp_path(Path("/short"))
