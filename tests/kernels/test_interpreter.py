"""The Triton kernels in Triton's interpreter, on any Linux machine: see `equality.py` and `equality_scan.py`."""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it exists for Linux only")
@pytest.mark.parametrize("tests", ["equality.py", "equality_scan.py"])
def test_triton_equals_its_twins(tests: str) -> None:
    if version("triton").startswith("3.6.") and not version("numpy").startswith(("1.", "2.0.", "2.1.", "2.2.", "2.3.")):
        pytest.skip("the interpreter of Triton 3.6 needs numpy < 2.4: it takes arrays for the ends of loops")
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/kernels/{tests}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
