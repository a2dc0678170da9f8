"""What a model is trained for, and how it is judged while it trains: classes of samples, or of their pixels."""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.masks import IGNORE
from pipeline.segmentation.tally import Tally, confusion, measure
from pipeline.segmentation.windows import Windows, look
from pipeline.train.batches import val_batches
from pipeline.train.mixing import Mixing
from pipeline.train.ranks import sum_over_ranks
from pipeline.train.setup import Setup

VAL_BATCH_SIZE = 64  # whatever the number of ranks: in paper mode a prediction depends on its batch
VAL_PICTURES = 8  # fewer, since they have logits at every pixel
MIXING = -1  # the "rank" of what all ranks draw alike
BUDGETS = -2  # the same, for another draw


class Objective(Protocol):
    """A task, for the training loop."""

    def prepare(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What step `step` makes of a rank's whole batch before the model sees any of it."""

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a rank's prepared batch, to be minimised."""

    def sum_loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the losses of a piece of a prepared batch, and how many it is of."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """val_loss (without label smoothing) and val_* over the whole val split, equal on every rank."""


class Classification:
    """One class of every sample.

    Args:
        setup: Of this process.
    """

    def __init__(self, setup: Setup) -> None:
        train = setup.trial.train
        self.setup = setup
        self.mixing = Mixing(train.mixing, train.label_smoothing, setup.num_classes) if train.mixing else None
        self.asked: dict[str, int] = {}  # of the model, beside the images, in this step
        self.has_auxiliary = setup.trial.model.learned_reducer is not None

    def prepare(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Labels (B,), or the targets (B, K) that mixing makes of them, smoothed already."""
        self.asked = asked_at(self.setup, step)
        if self.mixing is None:
            return images, labels
        return self.mixing(images, labels, step_seed(self.setup.trial.seed, step, MIXING))

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy, and what the model's reducer adds, if it learns by a loss of its own."""
        with autocast(self.setup.trial.train.precision):
            if not self.has_auxiliary:
                return self.compare(net(images, **self.asked), labels)
            answer = net(images, auxiliary=True, **self.asked)
            return self.compare(answer.logits, labels) + answer.auxiliary

    def compare(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy with labels (B,) or mixed targets (B, K)."""
        if self.mixing:
            return SoftTargetCrossEntropy()(logits, labels)
        return F.cross_entropy(logits, labels, label_smoothing=self.setup.trial.train.label_smoothing)

    def sum_loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of samples."""
        return self.loss(net, images, labels) * len(images), torch.tensor(len(images), device=images.device)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """With val_top1 and val_top5."""
        model.eval()
        setup = self.setup
        totals = torch.zeros(4, dtype=torch.float64, device=setup.device)
        for images, labels, _ in val_batches(setup, VAL_BATCH_SIZE):
            labels = labels.to(setup.device)
            with autocast(setup.trial.train.precision):
                logits = model(images.to(setup.device, setup.dtype)).float()
            hits = logits.topk(min(5, logits.shape[-1])).indices == labels[:, None]  # (B, 5), best first
            loss = F.cross_entropy(logits, labels, reduction="none").double().sum()
            totals += torch.stack([loss, hits[:, 0].sum(), hits.sum(), loss.new_tensor(len(labels))])
        loss, top1, top5, count = sum_over_ranks(totals, setup.world_size).tolist()
        return {"val_loss": loss / count, "val_top1": top1 / count, "val_top5": top5 / count}


class Segmentation:
    """One class of every pixel.

    Args:
        setup: Of this process.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        # Pictures as they are stored are looked at in one piece.
        side = setup.trial.model.img_size
        self.windows = None if setup.trial.train.masks is None else Windows(side, side)
        self.asked: dict[str, int] = {}  # of the model, beside the images, in this step

    def prepare(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The classes (B, H, W) of the pixels, as they are."""
        self.asked = asked_at(self.setup, step)
        return images, labels

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy with the classes of the pixels that count, where the model is trained.

        The mean is over the pixels of the global batch, as far as a rank can say: the mean over the ranks is that one.
        """
        total, pixels = self.sum_loss(net, images, labels)
        pixels = sum_over_ranks(pixels.to(total.dtype), self.setup.world_size)
        return total * self.setup.world_size / pixels.clamp(min=1)  # 0, not NaN, where none counts

    def sum_loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of the pixels that count."""
        setup, train = self.setup, self.setup.trial.train
        with autocast(train.precision):
            logits, labels = net(images, labels, **self.asked)
        total = F.cross_entropy(
            logits.to(setup.dtype), labels, ignore_index=IGNORE, label_smoothing=train.label_smoothing,
            reduction="sum",
        )  # fmt: skip
        return total, (labels != IGNORE).sum()

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """With val_miou and val_pixel_accuracy, in the pixels of the stored images."""
        model.eval()
        setup, num_classes = self.setup, self.setup.num_classes
        loss = torch.zeros((), dtype=torch.float64, device=setup.device)
        counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=setup.device)
        for images, truths, _ in val_batches(setup, VAL_PICTURES):
            images = [image.to(setup.device, setup.dtype) for image in images]
            sizes = [(truth.shape[0], truth.shape[1]) for truth in truths]
            with autocast(setup.trial.train.precision):
                for logits, truth in zip(look(model, images, sizes, self.windows), truths, strict=True):
                    labels = truth.to(setup.device)
                    each = F.cross_entropy(logits[None], labels[None].long(), ignore_index=IGNORE, reduction="sum")
                    loss += each.double()
                    counts += confusion(labels, logits.argmax(0), num_classes)
        totals = torch.cat([loss[None], counts.flatten().double()])  # exact: whole numbers below 2^53
        loss, *summed = sum_over_ranks(totals, setup.world_size).cpu()
        counts = torch.stack(summed).long().view(num_classes, num_classes)
        scores = measure(Tally.zero(num_classes)._replace(confusion=counts))
        known = {f"val_{name}": scores[name] for name in ("miou", "pixel_accuracy")}
        known["val_loss"] = float(loss / counts.sum()) if counts.any() else None
        return {name: value for name, value in known.items() if value is not None}


def build_objective(setup: Setup) -> Objective:
    """The task of a trial: what its model has for a head."""
    return Classification(setup) if setup.trial.model.head is None else Segmentation(setup)


def asked_at(setup: Setup, step: int) -> dict[str, int]:
    """What step `step` asks of the model beside its images: another token budget, where the recipe has several."""
    budgets, warmup = setup.trial.train.token_budgets, setup.trial.token_warmup
    if warmup is not None and step < warmup.steps(setup.num_steps):
        return {"num_patches": warmup.token_budget}
    return {} if budgets is None else {"num_patches": step_budget(budgets, setup.trial.seed, step)}


def step_budget(budgets: Sequence[int], seed: int, step: int) -> int:
    """The token budget of a step: arithmetic of (seed, step), so the same on every rank and after a resume.

    Steps 0 to K - 1, K to 2 K - 1 and so on have each of the K budgets once, in an order drawn anew for each block:
    all budgets are trained equally often, and none at a rhythm.
    """
    block, place = divmod(step, len(budgets))
    first = block * len(budgets)
    return sorted(budgets, key=lambda budget: step_seed(seed, first + budgets.index(budget), BUDGETS))[place]


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of torch's generator for one step on one rank: unrelated for related arguments, 63 bits."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def autocast(precision: str) -> AbstractContextManager:
    """bfloat16 where it is asked for, and `fit` has made sure of the GPU."""
    return torch.autocast("cuda", torch.bfloat16) if precision == "bf16" else nullcontext()
