"""What would fail in every worker, found before the first of them starts."""

from collections.abc import Sequence

from pipeline.config import Trial
from pipeline.errors import ConfigError, UserError
from pipeline.provenance import hash_json


def check_trials(trials: Sequence[Trial], num_classes: int) -> None:
    """Build every distinct model, without memory for its weights, and every distinct augmentation.

    Raises:
        ConfigError: with all that cannot be built.
    """
    import torch

    from pipeline.data.augment import build_augmentation
    from pipeline.model import build_model

    problems: list[str] = []
    models = {hash_json(trial.architecture()): trial for trial in trials}
    for trial in models.values():
        try:
            with torch.device("meta"):
                build_model(trial, num_classes)
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
