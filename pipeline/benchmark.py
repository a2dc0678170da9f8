"""What a model costs: parameters, multiply-accumulates, and images per second measured side by side."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dart.cost import count_macs
from pipeline import provenance
from pipeline.config import Trial
from pipeline.model import build_model

COUNTER = {
    "name": "torch.utils.flop_counter.FlopCounterMode",
    "counts": (
        "multiply-accumulates (half its operations) of matrix products, convolutions and both products of "
        "attention, in one forward pass of one image, scorer and position embedding included; of a state-space "
        "scan, by formula, 9 per state and channel and 1 per channel for each token and direction; not norms, "
        "activations, softmax, pooling, sorting, prefix sums and look-ups."
    ),
}
WARMUP_ROUNDS = 1


class Cost(NamedTuple):
    """What one model costs, whatever its weights."""

    params: int
    macs: int  # multiply-accumulates of one image


class Speed(NamedTuple):
    """Images per second over the rounds."""

    median: float
    q25: float
    q75: float
    min: float


def count_cost(trial: Trial, num_classes: int) -> Cost:
    """Parameters and multiply-accumulates of a trial's model; `COUNTER` says what is counted."""
    model = build_model(trial, num_classes).eval()
    macs = count_macs(model, (1, *_image_shape(trial)))
    return Cost(sum(parameter.numel() for parameter in model.parameters()), macs)


def architectures(trials: Iterable[Trial]) -> list[Trial]:
    """The first trial of each distinct model, in the order of the plan."""
    distinct: dict[str, Trial] = {}
    for trial in trials:
        distinct.setdefault(provenance.hash_json(trial.architecture()), trial)
    return list(distinct.values())


@torch.inference_mode()
def measure_speeds(
    models: Sequence[Callable[[Tensor], Any]],
    batches: Sequence[Tensor],
    rounds: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Speed]:
    """Time the models in turn, one batch each per round, so that a busy machine slows all of them alike.

    Args:
        models: On one device, in evaluation mode.
        batches: One (B, C, H, W), or (B, C, T, H, W) of clips, per model, on the same device.
        rounds: Timed ones; a warm-up comes first.
    """
    rates = np.zeros((rounds, len(models)))
    for turn in range(-WARMUP_ROUNDS, rounds):
        for i, (model, images) in enumerate(zip(models, batches, strict=True)):
            _finish(images)
            start = time.perf_counter()
            model(images)
            _finish(images)
            if turn >= 0:
                rates[turn, i] = len(images) / (time.perf_counter() - start)
        progress(turn + 1 + WARMUP_ROUNDS, rounds + WARMUP_ROUNDS)
    columns = [*np.percentile(rates, [50, 25, 75, 0], axis=0)]
    return [Speed(*(float(f"{value:.5g}") for value in values)) for values in zip(*columns, strict=True)]


def benchmark(
    trials: Sequence[Trial],
    num_classes: int,
    batch_size: int,
    rounds: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Cost and speed of every distinct model of the trials; weights are untrained, for cost does not depend on them."""
    chosen = architectures(trials)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = [build_model(trial, num_classes).eval().to(device) for trial in chosen]
    generator = torch.Generator().manual_seed(0)
    shapes = [_image_shape(trial) for trial in chosen]
    inputs = {shape: torch.rand(batch_size, *shape, generator=generator).to(device) for shape in set(shapes)}
    speeds = measure_speeds(models, [inputs[shape] for shape in shapes], rounds, progress)
    return {
        "counter": COUNTER,
        "batch_size": batch_size,
        "rounds": rounds,
        "hardware": {"device": device.type, "threads": torch.get_num_threads(), **provenance.hardware()},
        "versions": provenance.versions(),
        "models": [
            {
                "name": trial.name,
                "model_name": trial.model_name,
                **trial.architecture(),
                **count_cost(trial, num_classes)._asdict(),
                "images_per_s": speed._asdict(),
            }
            for trial, speed in zip(chosen, speeds, strict=True)
        ],
    }


def _image_shape(trial: Trial) -> tuple[int, ...]:
    """(C, H, W) of an image, (C, T, H, W) of a clip."""
    model = trial.model
    frames = () if model.num_frames is None else (model.num_frames,)
    return model.in_chans, *frames, model.img_size, model.img_size


def _finish(images: Tensor) -> None:
    """Wait for the device: a GPU works behind the program's back."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
