"""A trial -> its model."""

from torch import nn

from pipeline.config import Trial


def build_model(trial: Trial, num_classes: int) -> nn.Module:
    """The timm model of a trial, freshly initialised from torch's global random state."""
    import dart.models  # registers with timm

    options = trial.architecture()
    model, tokenizer = options["model"], options["tokenizer"]
    kwargs = {k: v for k, v in {**model, **tokenizer}.items() if k not in ("name", "backbone", "variant")}
    return dart.models.build(trial.model_name, num_classes=num_classes, **kwargs)
