"""`verify-claims` on anybody's files: the table, the exit code, one sentence where a file is wrong."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.report.verify_claims import ALL_CONFIRMED, BAD_INPUT, SOME_OPEN, SOME_REFUTED, verify

ROOT = Path(__file__).resolve().parents[3]
CLAIMS = """\
claims:
  - {id: high, statement: ours is at 71 %, source: "our table 2, row 1", kind: value, experiment: ours, measure: top1,
     value: 0.71, tolerance: 0.02, seeds: 1}
  - {id: above, statement: ours is above theirs, source: our abstract, kind: comparison, experiment: ours, than: theirs,
     measure: top1, difference_at_least: 0.05, seeds: 1}
"""
SEEDS = "experiment,seed,top1\nours,0,0.70\nours,1,0.72\ntheirs,0,0.6\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Results of one row per seed, and two claims that they confirm."""
    (tmp_path / "mine.yaml").write_text(CLAIMS)
    (tmp_path / "results.csv").write_text(SEEDS)
    return tmp_path / "results.csv", tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("", "", ALL_CONFIRMED),
        ("theirs,0,0.6", "theirs,0,0.7", SOME_REFUTED),
        ("theirs,0", "others,0", SOME_OPEN),
        ("experiment,seed,top1\nours,0,0.70\n", " experiment, seed ,top1\n ours , 0, 0.70\n", ALL_CONFIRMED),
        ("top1\nours,0,0.70\nours,1,0.72\ntheirs,0,0.6", "top1,status\nours,0,0.7,DONE\ntheirs,0,0.6, Complete", 0),
        ("experiment,seed,top1", "\ufeffexperiment,seed,top1", ALL_CONFIRMED),  # as a spreadsheet writes it
    ],
)
def test_the_exit_code_is_what_the_verdicts_come_to(files: tuple[Path, Path], old: str, new: str, code: int) -> None:
    results, claims = files
    results.write_text(SEEDS.replace(old, new) if old else SEEDS)
    assert verify(results, claims) == code


def test_without_results_every_claim_is_open(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(None, files[1]) == SOME_OPEN
    assert "2 claims: 2 not run." in capsys.readouterr().out


def test_per_cent_and_csv(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    results, claims = files
    results.write_text("experiment,top1_mean,top1_std,num_seeds\nours,71.0,1.0,2\ntheirs,60,,1\n")
    assert verify(results, claims, percent=True, as_csv=True) == ALL_CONFIRMED
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["verdict"], row["ours"]) for row in rows] == [("confirmed", "0.71"), ("confirmed", "0.11")]
    assert rows[0]["source"] == "our table 2, row 1"


@pytest.mark.parametrize(
    "text",
    [
        "experiment,seed,top1,status\nours,0,0.70,oom\ntheirs,0,0.6,\n",
        "experiment,top1,status\nours,0.70,oom\ntheirs,0.6,\n",
        "experiment,top1,status\nours,,oom\ntheirs,0.6,\n",
        "experiment,top1_mean,status\nours,0.70,oom\ntheirs,0.6,\n",
        "experiment,top1_mean,num_seeds,status\nours,0.70,0,oom\ntheirs,0.6,1,\n",
    ],
)
def test_a_run_that_failed_has_failed_in_every_form(
    files: tuple[Path, Path], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files[0].write_text(text)
    assert verify(*files, as_csv=True) == SOME_OPEN
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["verdict"] for row in rows} == {"failed"}
    assert all(row["reason"].endswith("oom") for row in rows)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name,top1\na,1\n", "columns = 'experiment': unknown; known: name, top1"),
        ("", "columns = 'experiment': unknown; known: none"),
        ("experiment,seed,top1\nours,0,0.7\nours,0,0.8\n", "experiment = 'ours': is there twice with seed 0; keep one"),
        ("experiment,top1\nours,0.7\nours,0.8\n", "experiment = 'ours': is there twice; keep one of them, or add"),
        ("experiment,top1\nours,72\n", "ours: top1 = '72': a share is at most 1; add --percent"),
        ("experiment,top1, top1\nours,0.7,0.6\n", "columns = 'top1': is there twice; keep one of them"),
        ("experiment,top1\nours\n", "record = 2: has not the 2 cells of the header"),
        ("experiment,top1\nours,0.7,1\n", "record = 2: has not the 2 cells of the header"),
        ("experiment,speed\nours,1\n", "none of the measures of"),
        ("experiment,top1\nours,high\n", "ours: top1 = 'high': not a number"),
    ],
)
def test_bad_results_are_one_sentence(files: tuple[Path, Path], text: str, sentence: str) -> None:
    files[0].write_text(text)
    with pytest.raises(UserError) as error:
        verify(*files)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_exits_with_two_on_bad_input_and_helps_without_loading(files: tuple[Path, Path]) -> None:
    results, claims = files
    claims.write_text(CLAIMS.replace('source: "our table 2, row 1", ', ""))
    done = run(str(results), str(claims))
    assert done.returncode == BAD_INPUT
    assert done.stderr == (
        f"error: {claims}: 1 problem\n  claims[0].source: missing; science has no hidden defaults, write it down\n"
    )
    results.write_bytes(b"\xff\xfe\x00")
    claims.write_text(CLAIMS)
    assert "cannot be read as CSV" in run(str(results), str(claims)).stderr
    shown = run("--help")
    assert shown.returncode == 0
    assert "exit code: 0 all claims are confirmed; 1 some are refuted" in shown.stdout


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.report.verify_claims", *args]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
