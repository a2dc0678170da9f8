"""`make bench`: every comparison, or the ones named: `python -m benchmarks sampling tokenizer`."""

import argparse
import importlib
import platform

COMPARISONS = (
    *("sampling", "tokenizer", "models", "scan", "warp", "digits", "budgets"),
    *("reading", "step", "trials", "report", "gpu"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(COMPARISONS)}; default: all")
    parser.add_argument("--rounds", type=int, default=7, help="timed turns of every contestant (default 7)")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(COMPARISONS))
    if unknown:
        parser.error(f"NAME = {unknown[0]!r}: unknown; known: {', '.join(COMPARISONS)}")
    if args.rounds < 1:
        parser.error(f"--rounds = {args.rounds}: must be at least 1")

    import torch

    from benchmarks.compare import show

    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, fp32, ratios of medians")
    for name in args.names or COMPARISONS:
        for comparison in importlib.import_module(f"benchmarks.{name}").comparisons():
            show(comparison, args.rounds)


if __name__ == "__main__":
    main()
