"""`make bench`: every comparison, or the ones named: `python -m benchmarks sampling tokenizer`."""

import argparse
import ctypes
import importlib
import platform

COMPARISONS = (
    *("sampling", "tokenizer", "models", "scan", "warp", "digits", "budgets"),
    *("reading", "step", "trials", "report", "gpu"),
)

KEPT = ((-1, -1), (-4, 0))  # malloc.h of glibc: M_TRIM_THRESHOLD never, M_MMAP_MAX none


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(COMPARISONS)}; default: all")
    parser.add_argument("--rounds", type=int, default=7, help="timed turns of every contestant (default 7)")
    parser.add_argument("--release-memory", action="store_true", help="give freed memory back, as glibc does by itself")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(COMPARISONS))
    if unknown:
        parser.error(f"NAME = {unknown[0]!r}: unknown; known: {', '.join(COMPARISONS)}")
    if args.rounds < 1:
        parser.error(f"--rounds = {args.rounds}: must be at least 1")

    kept = ", memory kept" if not args.release_memory and keep_memory() else ""
    import torch

    from benchmarks.compare import show

    torch.set_num_threads(1)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, 1 thread, torch {torch.__version__}, fp32, ratios of medians{kept}")
    for name in args.names or COMPARISONS:
        for comparison in importlib.import_module(f"benchmarks.{name}").comparisons():
            show(comparison, args.rounds)


def keep_memory() -> bool:
    """Have freed memory stay with this process, for all contestants alike -> whether its C library can.

    glibc hands tensors of 32 MB and more back when they are freed, and every page of the next one is made anew: half
    the time of an interpolation to such a tensor. PyTorch's guide to speed advises other allocators for that.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) for option, value in KEPT)


if __name__ == "__main__":
    main()
