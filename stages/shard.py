"""Stage `shard`: data/SUITE/raw -> WebDataset tars, index and manifest in data/SUITE/shards."""

import argparse
from pathlib import Path

from pipeline.cli import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.shard", description=__doc__)
    parser.add_argument("suite", help="name of a file of suites/, without .yaml")
    suite_name = parser.parse_args().suite

    from pipeline.config import load_params, load_suite
    from pipeline.data.shards import write_shards

    suite = load_suite(suite_name)
    folder = Path("data") / suite_name
    placement = load_params().placement
    size = suite.shards.samples_per_shard
    manifest = write_shards(suite.dataset, folder / "raw", folder / "shards", size, placement)
    splits = ", ".join(f"{name} {split.num_samples}" for name, split in manifest.splits.items())
    num_shards = sum(len(split.shards) for split in manifest.splits.values())
    left_out = f", {len(manifest.dropped)} files left out (in its list `dropped`)" if manifest.dropped else ""
    print(
        f"sharded {manifest.dataset}: {splits} samples, {num_shards} shards, manifest {manifest.sha256[:12]}{left_out}"
    )


if __name__ == "__main__":
    run_stage(main)
