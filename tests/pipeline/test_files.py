"""Atomic writes: the old or the new, never a half."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import append_bytes, building_dir, exchange, replace_dir, write_json_atomic, write_text_atomic


def build_half(final: Path, error: BaseException, resume_as: str | None = None) -> None:
    with building_dir(final, resume_as) as directory:
        (directory / "half").touch()
        raise error


def test_text_and_json_are_written_and_leave_nothing_behind(tmp_path):
    write_text_atomic(tmp_path / "new" / "a.txt", "été\n")
    write_json_atomic(tmp_path / "new" / "a.json", {"b": [1, None]})
    write_json_atomic(tmp_path / "new" / "a.json", {"b": 2})
    assert (tmp_path / "new" / "a.txt").read_text() == "été\n"
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"b": 2}
    assert sorted(os.listdir(tmp_path / "new")) == ["a.json", "a.txt"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json_atomic(tmp_path / "a.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(tmp_path / "a.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 1.0}


def test_a_directory_takes_the_place_of_another(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_dir(tmp_path / "new", tmp_path / "old")
    assert os.listdir(tmp_path) == ["old"]
    assert os.listdir(tmp_path / "old") == ["new"]


def test_a_failed_block_leaves_the_old_directory_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(KeyboardInterrupt):
        build_half(tmp_path / "out", KeyboardInterrupt())
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["old"]


def test_resumable_work_finds_what_was_finished(tmp_path):
    with pytest.raises(UserError, match="interrupted"):
        build_half(tmp_path / "out", UserError("interrupted"), resume_as="work")
    assert not (tmp_path / "out").exists()
    with building_dir(tmp_path / "out", resume_as="work") as directory:
        assert os.listdir(directory) == ["half"]
    assert os.listdir(tmp_path / "out") == ["half"]


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no space left on the disk; free some"):
        build_half(tmp_path / "out", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert os.listdir(tmp_path) == []


def test_a_directory_is_replaced_in_one_step_where_the_system_can(tmp_path: Path) -> None:
    """Whoever looks while it happens finds the old one or the new one, always one of them."""
    for name in ("new", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange(tmp_path / "new", tmp_path / "final"):
        pytest.skip("this file system cannot exchange two names")
    assert os.listdir(tmp_path / "final") == ["new"]
    assert os.listdir(tmp_path / "new") == ["final"]
    assert not exchange(tmp_path / "new", tmp_path / "none")
    assert os.listdir(tmp_path / "new") == ["final"]


def test_what_does_not_fit_leaves_nothing_of_itself(tmp_path: Path) -> None:
    """A disk that is almost full takes a part of a write, and says nothing."""
    path = tmp_path / "lines"
    append_bytes(path, b"x" * 90)
    code = f"""
import pathlib, resource, signal
from pipeline.files import append_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
append_bytes(pathlib.Path({str(path)!r}), b"y" * 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "No space left on device" in done.stderr
    assert path.read_bytes() == b"x" * 90


def test_what_a_killed_write_left_is_not_published(tmp_path):
    with building_dir(tmp_path / "out", resume_as="work") as directory:
        (directory / "sub").mkdir()
        (directory / ".listing.json.4711.tmp").touch()
        (directory / "sub/.0.json.4711.tmp").touch()
        (directory / "whole").touch()
    assert sorted(os.listdir(tmp_path / "out")) == ["sub", "whole"]
    assert os.listdir(tmp_path / "out/sub") == []


@pytest.mark.parametrize(("file", "what"), [("mine.jpg", "opened"), ("out/listing.json", "written")])
def test_a_file_that_is_forbidden_is_named_for_what_was_wanted_of_it(tmp_path, file, what):
    (tmp_path / "out").mkdir()
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / file))
    with pytest.raises(UserError, match=rf"{file}: cannot be {what} \(permission denied\); see whose it is"):
        build_half(tmp_path / "out/final", error)
