"""What every stage's command line shares: one-sentence errors, Ctrl-C, and ending with its parent."""

import ctypes
import gc
import signal
import sys
from collections.abc import Callable

from pipeline.errors import UserError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_stage(main: Callable[[], None]) -> None:
    """Run `main`; a UserError becomes its message and exit code 1, Ctrl-C exit code 130."""
    end_with_parent()
    gc.set_threshold(50_000)  # PyTorch and timm make half a million objects: looking after 700 takes a fifth of a start
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.freeze()  # all ends now: Python would look through every module for what is not needed any more


def end_with_parent() -> None:
    """Have Linux interrupt this process when its parent dies.

    A killed `dvc repro` leaves its stage running as an orphan, which would then share files with the next one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
