"""Stage `evaluate`: every run of `train` and `sweep` on the test split -> results/SUITE/evaluate."""

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.cli import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description=__doc__)
    parser.add_argument("suite", help="name of a file of suites/, without .yaml")
    name = parser.parse_args().suite

    from tqdm import tqdm

    from pipeline.budgets import evaluate_budgets, record_budgets, write_answers
    from pipeline.config import SUITES_DIR, load_params, load_suite
    from pipeline.data.clips import Views, clip_sampling, short_clips
    from pipeline.data.drops import find_drops
    from pipeline.errors import UserError
    from pipeline.evaluate import evaluate_runs, settings_record, task_of, write_evaluation
    from pipeline.files import building_dir
    from pipeline.part import SPLIT
    from pipeline.tracking.uri import check_uri, resolve_uri

    params, suite = load_params(), load_suite(name)
    check_uri(resolve_uri(params.tracking.uri))
    results, shards = Path("results") / name, Path("data") / name / "shards"
    train, sweep = (load_entries(results / stage) for stage in ("train", "sweep"))
    weights = {e["fingerprint"]: path for path, e in [*sweep, *train]}
    entries = list({e["fingerprint"]: e for _, e in reversed([*train, *sweep])}.values())[::-1]
    if not entries:
        raise UserError(f"{results}: no recorded runs; run: dvc repro train@{name}")
    drops = find_drops(shards, suite.max_bad_frac, [SPLIT, "val"] if suite.evaluate.adaptive else [SPLIT])
    ways = dict.fromkeys(filter(None, (clip_sampling(entry["science"]) for entry in entries)))
    for note in (*drops.notes, *filter(None, (short_clips(shards, SPLIT, way) for way in ways))):
        print(f"warning: {note}")

    with tqdm(total=len(entries), desc=f"evaluate {name}", unit="part", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        clips = suite.evaluate.clips
        views = Views(clips.num_segments, clips.num_crops) if clips else None
        predictions = evaluate_runs(
            entries, weights, shards, suite.evaluate.batch_size, params.placement, progress, views,
            suite.evaluate.masks, drops,
        )  # fmt: skip
    asked = suite.evaluate.token_budgets or suite.evaluate.adaptive
    with tqdm(desc=f"token budgets of {name}", unit="part", disable=None if asked else True) as bar:
        answers = evaluate_budgets(entries, weights, shards, suite.evaluate, params.placement, progress, drops)
    how = settings_record(suite.evaluate.batch_size, views, [SUITES_DIR / f"{name}.yaml"])
    with building_dir(results / "evaluate") as folder:
        more = record_budgets(answers, entries, shards)
        write_evaluation(folder, name, entries, predictions, shards, suite.evaluate.masks, drops, how, more)
        write_answers(folder, answers, shards)
        first_seeds = {e["name"]: e for _, e in reversed(train)}.values()
        for entry in first_seeds if suite.evaluate.gallery_samples else ():
            key = entry["fingerprint"]
            picture = folder / "gallery" / f"{key}.npz"
            task_of(shards).write_gallery(
                picture, entry, weights[key], shards, predictions[key], suite.evaluate.gallery_samples
            )
    print(f"evaluated {len(entries)} runs of {name} on the test split")
    tell_mlflow(params.tracking.uri, name, shards / "manifest.json")


def load_entries(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(weights, record) of the runs of one stage that have weights; none where the suite has no such stage."""
    from pipeline.train.run import WEIGHTS

    path = folder / "runs.json"
    entries = json.loads(path.read_text())["runs"] if path.is_file() else []
    finished = [entry for entry in entries if entry["status"] == "done"]
    return [(folder / entry["fingerprint"] / WEIGHTS, entry) for entry in finished]


def tell_mlflow(uri: str, suite: str, manifest: Path) -> None:
    """Add test scores and pictures to the ledger, with whatever it missed while training; an outage costs nothing."""
    from pipeline.errors import UserError
    from pipeline.gallery import draw_gallery
    from pipeline.tracking.replay import replay

    try:
        replay(uri, suite, Path("runs"), Path("results"), manifest=manifest, draw=draw_gallery)
    except UserError as error:
        print(f"warning: {error}")


if __name__ == "__main__":
    run_stage(main)
