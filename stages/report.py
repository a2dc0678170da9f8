"""Stage `report`: the results of all active suites -> report/: tables, figures and one page."""

import argparse
from dataclasses import replace
from pathlib import Path

from pipeline.cli import run_stage
from pipeline.errors import UserError

REPORT = Path("report")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.report", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--where", action="store_true", help="print the tables that are there and where they are")
    help_ = (
        "show the last report in a file, by default README.md, between its lines <!-- report --> and <!-- /report -->"
    )
    what.add_argument("--readme", nargs="?", const="README.md", metavar="FILE", help=help_)
    args = parser.parse_args()
    if args.where or args.readme:
        where() if args.where else show(Path(args.readme))
        return

    from pipeline.config import load_params
    from pipeline.files import building_dir
    from pipeline.report.claims import suite_claims
    from pipeline.report.records import load_records
    from pipeline.report.site import write_report
    from pipeline.tracking.links import run_links

    params = load_params()
    suites = params.suites
    claims = {suite: suite_claims(suite) for suite in suites}  # a wrong one is said before anything is drawn
    records = [
        replace(
            load_records(suite, Path("results") / suite, Path("data") / suite / "shards" / "manifest.json"),
            claims=claims[suite],
        )
        for suite in suites
    ]
    links = run_links(params.tracking.uri, suites)
    with building_dir(REPORT) as folder:
        write_report(records, folder, links)
    print(f"reported {', '.join(suites)} in {REPORT / 'index.html'}")


def where() -> None:
    """Print what the last report says; reads text, so it answers at once."""
    tables = sorted(REPORT.glob("*/table.md"))
    if not tables:
        raise UserError(f"{REPORT}: no report yet; run: make repro")
    for path in tables:
        comparison = path.read_text().split("\n## ")[0].strip()
        print(f"{comparison}\n\ntable    {path}\n")
    print(f"page     {REPORT / 'index.html'}")


def show(file: Path) -> None:
    """Put the summaries of the last report's active suites into a file, and their pictures into docs/figures/."""
    from pipeline.config import load_params
    from pipeline.files import write_bytes_atomic, write_text_atomic
    from pipeline.report.readme import PICTURES, SUMMARY, insert, picture_path

    active = load_params().suites
    suites = [suite for suite in active if (REPORT / suite / SUMMARY).is_file()]
    if not suites:
        raise UserError(f"{REPORT}: no report of {', '.join(active)} yet; run: make repro")
    summaries = {suite: (REPORT / suite / SUMMARY).read_text() for suite in suites}
    text = insert(file.read_text() if file.is_file() else "", summaries, file.as_posix())
    pictures = [(suite, path) for suite in suites for path in (REPORT / suite / "figures").glob("*.png")]
    for suite, path in pictures:
        if path.name in PICTURES:
            write_bytes_atomic(Path(picture_path(suite, path.name)), path.read_bytes())
    write_text_atomic(file, text)
    print(f"{file} shows {', '.join(suites)}")


if __name__ == "__main__":
    run_stage(main)
