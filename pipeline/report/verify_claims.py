"""A claims file against a table of results: what is confirmed, what is refuted, what is open. Anybody's files."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli import run_stage
from pipeline.errors import UserError

EPILOG = """\
RESULTS has a column `experiment` and, for each measure, MEASURE_mean, MEASURE_std and num_seeds (one row per
experiment, as in report/SUITE/table.csv), or a column `seed` and plain MEASUREs (one row per seed). Without RESULTS
every claim is open. CLAIMS is a file like suites/digits/claims.yaml; docs/claims.md has its keys.

exit code: 0 all claims are confirmed; 1 some are refuted; 2 a file is not what it should be;
3 none is refuted, but some are open: not run, failed, too few seeds
"""
ALL_CONFIRMED, SOME_REFUTED, BAD_INPUT, SOME_OPEN = 0, 1, 2, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report.verify_claims",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="?", type=Path, metavar="RESULTS.csv")
    parser.add_argument("claims", type=Path, metavar="CLAIMS.yaml")
    parser.add_argument("--percent", action="store_true", help="shares in RESULTS (top1, miou ...) are in per cent")
    parser.add_argument("--csv", action="store_true", help="print CSV instead of a table")
    args = parser.parse_args()
    try:
        code = verify(args.results, args.claims, args.percent, args.csv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = BAD_INPUT
    sys.exit(code)


def verify(results: Path | None, claims: Path, percent: bool = False, as_csv: bool = False) -> int:
    """Print the verdicts and return the exit code.

    Raises:
        UserError: a file is missing or not what it should be.
    """
    from pipeline.report import claims_table
    from pipeline.report.claims import load_claims
    from pipeline.report.results import read_results
    from pipeline.report.verdicts import judge_all

    said = load_claims(claims)
    table = None if results is None else read_results(results, percent)
    if table is not None and not any(table.has(claim.measure) for claim in said):
        measures = ", ".join(dict.fromkeys(claim.measure for claim in said))
        raise UserError(f"{results}: none of the measures of {claims} is a column; they are {measures}")
    judgements = judge_all(said, table)
    name = claims.parent.name if claims.name == "claims.yaml" else claims.stem
    show = claims_table.to_csv(judgements) if as_csv else claims_table.to_markdown(name, judgements)
    print(show, end="")
    return exit_code([judgement.verdict for judgement in judgements])


def exit_code(verdicts: Sequence[str]) -> int:
    """What the verdicts come to."""
    from pipeline.report.verdicts import CONFIRMED, REFUTED

    if REFUTED in verdicts:
        return SOME_REFUTED
    return ALL_CONFIRMED if set(verdicts) <= {CONFIRMED} else SOME_OPEN


if __name__ == "__main__":
    run_stage(main)
