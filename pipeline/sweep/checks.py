"""What would fail in every worker, found before the first of them starts."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Suite, Trial
from pipeline.data.index import Manifest
from pipeline.errors import ConfigError, UserError, problem
from pipeline.provenance import hash_json

LOG_BYTES = 2**20  # about what a run leaves beside its weights: journal, log


def check_trials(trials: Sequence[Trial], num_classes: int) -> list[int]:
    """Build every distinct model, without memory for its weights, and every distinct augmentation.

    Returns:
        The bytes of each trial's weights.

    Raises:
        ConfigError: with all that cannot be built.
    """
    import torch

    from pipeline.data.augment import build_augmentation
    from pipeline.model import build_model

    problems: list[str] = []
    names = [hash_json(trial.architecture()) for trial in trials]
    sizes: dict[str, int] = {}
    for name, trial in dict(zip(names, trials, strict=True)).items():
        try:
            with torch.device("meta"):
                model = build_model(trial, num_classes)
            sizes[name] = sum(tensor.nbytes for tensor in model.state_dict().values())
        except UserError as error:
            problems.append(f"{trial.name}: {error}")
    recipes = {trial.train.augmentation.model_dump_json(): trial for trial in trials if trial.train.augmentation}
    for trial in recipes.values():
        assert trial.train.augmentation is not None
        try:
            build_augmentation(trial.train.augmentation, trial.model.img_size)
        except ValueError as error:
            problems.append(f"{trial.name}: {error}")
    if problems:
        raise ConfigError("the plan", problems)
    return [sizes[name] for name in names]


def check_data(suite: Suite, trials: Sequence[Trial], manifest: Manifest) -> None:
    """The shards must be those of the suite's data set, and have the models' channels and size."""
    problems: dict[str, None] = {}
    published = getattr(suite.dataset, "manifest_sha256", None)  # under the name of what they were made from
    if suite.dataset.name != manifest.dataset and published != manifest.sha256:
        rule = f"the shards were made from {manifest.dataset}"
        problems[problem("dataset.name", suite.dataset.name, rule, "run the stage `shard` again")] = None
    for trial in trials:
        if trial.model.in_chans != manifest.in_chans:
            rule = f"the images have {manifest.in_chans} channels"
            problems[problem("model.in_chans", trial.model.in_chans, rule, f"use {manifest.in_chans}")] = None
        side = trial.model.img_size
        # Clips are resized while they are read, and pictures where the recipe says how they are cropped.
        recipe = trial.train.masks or trial.train.augmentation
        resized = manifest.num_frames is not None or recipe is not None
        if not resized and manifest.image_size is None:
            key, value = ("masks", None) if manifest.task == "segmentation" else ("augment", trial.train.augment)
            rule, remedy = "the images differ in size", "write it as a mapping, which says how to crop"
            problems[problem(f"train.{key}", value, rule, remedy)] = None
        elif not resized and manifest.image_size not in (None, (side, side)):
            rule = f"the images have {' x '.join(map(str, manifest.image_size or ()))} pixels"
            problems[problem("model.img_size", side, rule, "make them equal")] = None
    if problems:
        raise ConfigError(f"suites/{suite.name}.yaml", problems)


def check_disk(folder: Path, trials: Sequence[Trial], weights: Sequence[int]) -> None:
    """Raise UserError where this disk has no room for what the trials' runs leave, and for one that is being trained.

    How many are trained at the same time is Ray's to say, later: it is the least that they need.

    Args:
        weights: As `check_trials` returns.
    """
    from pipeline.train.checkpoint import KEEP

    # Weights, the optimizer's two moments and the average; those that are kept, and one that is being written.
    states = [size * (3 + bool(t.train.model_ema_decay)) for size, t in zip(weights, trials, strict=True)]
    needed = sum(weights) + len(trials) * LOG_BYTES + (KEEP + 1) * max(states, default=0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        rule = f"{free / 1e6:.0f} MB free, {len(trials)} runs need about {needed / 1e6:.0f} MB"
        raise UserError(problem("runs", str(folder), rule, "make room on this disk"))
