"""`make bench`: every comparison, or the ones named: `python -m benchmarks sampling tokenizer`."""

import argparse
import platform

COMPARISONS = ("sampling", "tokenizer", "models")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(COMPARISONS)}; default: all")
    parser.add_argument("--rounds", type=int, default=15, help="timed turns of every contestant (default 15)")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(COMPARISONS))
    if unknown:
        parser.error(f"NAME = {unknown[0]!r}: unknown; known: {', '.join(COMPARISONS)}")

    import torch

    from benchmarks import compare

    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}")
    for name in args.names or COMPARISONS:
        compare.run(name, args.rounds)


if __name__ == "__main__":
    main()
