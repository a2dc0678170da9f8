"""Stage `fetch`: the raw data of a suite's data set -> data/SUITE/raw."""

import argparse
from pathlib import Path

from pipeline.cli import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.fetch", description=__doc__)
    parser.add_argument("suite", help="name of a file of suites/, without .yaml")
    suite_name = parser.parse_args().suite

    from pipeline.config import load_params, load_suite
    from pipeline.data.fetch import fetch_dataset

    suite = load_suite(suite_name)
    raw_dir = Path("data") / suite_name / "raw"
    fetch_dataset(suite.dataset, raw_dir, load_params().placement)
    num_bytes = sum(file.stat().st_size for file in raw_dir.rglob("*") if file.is_file())
    print(f"fetched {suite.dataset.name}: {num_bytes / 1e6:.1f} MB in {raw_dir}")


if __name__ == "__main__":
    run_stage(main)
