"""Stage `benchmark`: parameters, GFLOPs and images/s of all models of a suite -> results/SUITE/benchmark.json."""

import argparse
from pathlib import Path

from pipeline.cli import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.benchmark", description=__doc__)
    parser.add_argument("suite", help="name of a file of suites/, without .yaml")
    name = parser.parse_args().suite

    from tqdm import tqdm

    from pipeline.benchmark import benchmark
    from pipeline.config import load_suite
    from pipeline.data.index import load_manifest
    from pipeline.files import write_json_atomic
    from pipeline.sweep.plan import plan_experiments, plan_sweep

    suite = load_suite(name)
    num_classes = load_manifest(Path("data") / name / "shards").num_classes
    trials = plan_experiments(suite) + plan_sweep(suite)
    with tqdm(desc=f"benchmark {name}", unit="round", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = benchmark(trials, num_classes, suite.benchmark.batch_size, suite.benchmark.rounds, progress)
    write_json_atomic(Path("results") / name / "benchmark.json", result)
    print(f"measured {len(result['models'])} models of {name} in {suite.benchmark.rounds} interleaved rounds")


if __name__ == "__main__":
    run_stage(main)
