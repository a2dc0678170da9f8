"""What a suite says of clips: required where the samples of its data set are clips, forbidden where they are images."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.data.catalog import DATASETS
from pipeline.errors import problem
from pipeline.schema import Strict, inconsistent

if TYPE_CHECKING:
    from pipeline.config import Suite, Trial

CLIP_BACKBONES = ("videomamba",)  # that have an axis of time


class ClipsConfig(Strict):
    """`train.clips`: which frames of a clip the model reads, in training and in tests."""

    sampling: Literal["sparse", "dense"]
    frame_stride: Annotated[int, Field(ge=1)] | None  # from frame to frame, dense sampling only

    @model_validator(mode="after")
    def _stride_is_of_dense_sampling(self) -> "ClipsConfig":
        if self.sampling == "dense" and self.frame_stride is None:
            raise inconsistent("frame_stride", None, "dense sampling needs one", "for example 4")
        if self.sampling == "sparse" and self.frame_stride is not None:
            raise inconsistent("frame_stride", self.frame_stride, "sparse sampling has none", "write null")
        return self


class ViewsConfig(Strict):
    """`evaluate.clips`: how often a test looks at a clip; the probabilities of all views are averaged."""

    num_segments: int = Field(ge=1)  # times at which it looks
    num_crops: int = Field(ge=1)  # squares at each of them, along the longer side


def clip_problems(suite: "Suite", trial: "Trial") -> list[str]:
    """Where a trial of the suite speaks of clips and has images, or the other way round."""
    if suite.dataset is None:  # unknown, which is said elsewhere
        return []
    name = suite.dataset.name
    says = {
        "model.num_frames": (trial.model.num_frames, "say how many frames the model reads"),
        "train.clips": (trial.train.clips, "say which: {sampling: sparse, frame_stride: null}"),
        "evaluate.clips": (suite.evaluate.clips, "say how: {num_segments: 1, num_crops: 1}"),
    }
    if not DATASETS[name].video:
        return [
            problem(where, _plain(value), f"the samples of {name} are images", "leave it out")
            for where, (value, _) in says.items()
            if value is not None
        ]
    problems = [
        f"{where}: missing, the samples of {name} are clips; {remedy}"
        for where, (value, remedy) in says.items()
        if value is None
    ]
    return problems + _model_problems(name, trial)


def _model_problems(dataset: str, trial: "Trial") -> list[str]:
    problems = []
    if trial.model.backbone not in CLIP_BACKBONES:
        known = ", ".join(CLIP_BACKBONES)
        problems.append(problem("model.backbone", trial.model.backbone, "reads images, not clips", f"known: {known}"))
    augment = trial.train.augmentation
    if not DATASETS[dataset].mirror_safe and (trial.train.augment == "flip_crop" or (augment and augment.hflip > 0)):
        where, value = ("train.augment.hflip", augment.hflip) if augment else ("train.augment", "flip_crop")
        remedy = "use 0.0" if augment else "use none"
        problems.append(problem(where, value, f"a mirrored clip of {dataset} has another label", remedy))
    return problems


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, Strict) else value
