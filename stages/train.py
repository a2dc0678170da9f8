"""Stage `train`: every experiment of a suite with every seed -> results/SUITE/train."""

import argparse
from pathlib import Path

from pipeline.cli import run_stage


def main(stage: str = "train", doc: str | None = __doc__) -> None:
    """Also the body of the stage `sweep`, which differs in its plan alone."""
    parser = argparse.ArgumentParser(prog=f"python -m stages.{stage}", description=doc)
    parser.add_argument("suite", help="name of a file of suites/, without .yaml")
    parser.add_argument("--dry-run", action="store_true", help="print the plan with its costs, start nothing")
    args = parser.parse_args()

    from pipeline.config import SUITES_DIR, load_params, load_suite
    from pipeline.sweep.execute import Paths, dry_run, execute
    from pipeline.sweep.plan import plan_experiments, plan_sweep

    params, suite = load_params(), load_suite(args.suite)
    trials = plan_sweep(suite) if stage == "sweep" else plan_experiments(suite)
    paths = Paths(
        shards=Path("data") / args.suite / "shards",
        runs=Path("runs") / args.suite,
        results=Path("results") / args.suite / stage,
        params=(SUITES_DIR / f"{args.suite}.yaml",),
    )
    if stage == "sweep" and suite.sweep is not None and suite.sweep.adaptive:
        from pipeline.sweep.search import known_trials, say_plan, search

        if not args.dry_run:
            search(stage, suite, trials, params, paths)
            return
        trials = trials or known_trials(suite, paths)
        dry_run(stage, suite, trials, params, paths)
        print(say_plan(suite, trials))
        return
    (dry_run if args.dry_run else execute)(stage, suite, trials, params, paths)


if __name__ == "__main__":
    run_stage(main)
