"""Stage `report`: the results of all active suites -> report/: tables, figures and one page."""

import argparse
from pathlib import Path

from pipeline.cli import run_stage
from pipeline.errors import UserError

REPORT = Path("report")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.report", description=__doc__)
    parser.add_argument("--where", action="store_true", help="print the tables that are there and where they are")
    if parser.parse_args().where:
        where()
        return

    from pipeline.config import load_params
    from pipeline.files import building_dir
    from pipeline.report.records import load_records
    from pipeline.report.site import write_report

    suites = load_params().suites
    records = [
        load_records(suite, Path("results") / suite, Path("data") / suite / "shards" / "manifest.json")
        for suite in suites
    ]
    with building_dir(REPORT) as folder:
        write_report(records, folder)
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


if __name__ == "__main__":
    run_stage(main)
