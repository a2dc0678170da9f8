"""What the numbers of a suite count, by what, on what: the sentences under its tables."""

from collections.abc import Mapping
from typing import Any

from pipeline.report.records import Records
from pipeline.search_rules import STOPPED


def notes(records: Records) -> list[str]:
    """What the numbers of this suite count, by what, on what."""
    manifest, bench, unit, task = records.manifest, records.benchmark, records.unit, records.task
    sha256 = (records.runs or records.checks or records.trials)[0].manifest_sha256
    source = f"{manifest['source']}; {manifest['licence']}"
    return [
        f"Data: {manifest['dataset']} ({source}), manifest sha256 {sha256[:10]}.{_left_out(manifest)}",
        *_damaged(records),
        *_rewound(records),
        *_stopped(records),
        f"{filled(task.counted, manifest)}; mean ± sample standard deviation (n - 1) over the seeds. Only complete "
        "runs are averaged, the others are named.",
        *(filled(text, manifest) for text in task.details),
        *_settings(records.settings),
        "Parameters: all of the model, the scorer included.",
        f"GFLOPs: 1e9 multiply-accumulates for one {unit}, as the paper counts them. {counter(bench)}",
        f"{unit.capitalize()}s/s: {timing(bench)}",
    ]


def in_short(records: Records) -> str:
    """One sentence: whose numbers these are, what they count, and on what machine."""
    commits = " ".join(dict.fromkeys(run.commit for run in records.runs))
    changed = " (+: the working tree had changes)" if "+" in commits else ""
    manifest, bench, unit = records.manifest, records.benchmark, records.unit
    cost = f"not measured: parameters, GFLOPs and {unit}s/s"
    if bench:
        cost = (
            f"GFLOPs: 1e9 multiply-accumulates of one {unit}; {unit}s/s: median and quartiles of a forward pass of "
            f"{bench['batch_size']} {unit}s on {hardware(bench)}"
        )
    return (
        f"Runs of commit {commits}{changed}; {filled(records.task.counted_short, manifest)}, mean ± sample standard "
        f"deviation over the seeds; {cost}."
    )


def hardware(bench: dict[str, Any]) -> str:
    """The machine of the throughput in a few words."""
    machine = bench.get("hardware", {})
    threads = machine.get("threads", "?")
    cpu = f"{machine.get('cpu', 'unknown processor')} ({threads} thread{'' if threads == 1 else 's'})"
    return ", ".join(machine["gpus"]) if machine.get("device") == "cuda" else cpu


def filled(text: str, manifest: dict[str, Any]) -> str:
    """A text of `pipeline.measures`, about this data set."""
    return text.format(num_test=manifest["splits"]["test"]["num_samples"], dataset=manifest["dataset"])


def _settings(settings: Mapping[str, Any]) -> list[str]:
    """How the test split was looked at, as far as that was recorded."""
    return [
        f"Of the suite's file, evaluate.{name}: "
        + ", ".join(f"{key} {value}" for key, value in chosen.items() if value is not None)
        + "."
        for name, chosen in settings.items()
    ]


def _left_out(manifest: dict[str, Any]) -> str:
    dropped = manifest.get("dropped", [])
    return f" {len(dropped)} of its files are left out, manifest.json says why." if dropped else ""


def _damaged(records: Records) -> list[str]:
    """Which samples of the shards nobody read."""
    if not records.dropped:
        return []
    named = ", ".join(f"{count} of {shard} ({reason})" for (shard, reason), count in records.dropped.items())
    return [f"Damaged in their shards and left out everywhere, {sum(records.dropped.values())} samples: {named}."]


def _rewound(records: Records) -> list[str]:
    """Which trainings went back before a spike of the loss and left out what followed."""
    runs = [run for run in (*records.runs, *records.trials, *records.checks) if run.rewinds]
    named = ", ".join(f"{run.name} seed {run.seed} ({len(run.rewinds)} times)" for run in runs)
    return [f"Rewound where the loss was not finite or leapt, as train.divergence says: {named}."] if runs else []


def _stopped(records: Records) -> list[str]:
    """What a search has judged by, and left out."""
    stopped = [run for run in records.trials if run.status.startswith(STOPPED)]
    if not stopped:
        return []
    said = f"{len(stopped)} of {len(records.trials)} trainings of the sweep were stopped early, by their validation"
    return [f"{said}, as sweep.halving says: they are named, and in no average, front, law or importance."]


def counter(bench: dict[str, Any]) -> str:
    """What counted the multiply-accumulates, and which of them."""
    counter = bench.get("counter")
    return f"Counted by {counter['name']}: {counter['counts']}" if counter else "Not counted."


def timing(bench: dict[str, Any]) -> str:
    """How the throughput was measured."""
    if not bench:
        return "not measured."
    return (
        f"forward pass, batch {bench['batch_size']}, all models interleaved in one run of {bench['rounds']} "
        f"rounds, median and quartiles, on {hardware(bench)}."
    )
