"""How things are compared: contestants that do the same work take turns; the first one is the yardstick."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pipeline.benchmark import measure_speeds

Contestant = Callable[[Tensor], Any]


class Comparison(NamedTuple):
    """What is measured: every contestant is called with the images (B, C, H, W).

    target: Least ratio to the yardstick that a contestant should reach, by its label.
    memory: Show the peak of what each contestant allocates, too.
    """

    title: str
    images: Tensor
    contestants: dict[str, Contestant]
    target: dict[str, float] = {}  # noqa: RUF012
    memory: bool = False


def show(comparison: Comparison, rounds: int) -> None:
    """Measure one comparison and print its table."""
    images, contestants = comparison.images, comparison.contestants
    speeds = measure_speeds(list(contestants.values()), [images] * len(contestants), rounds)
    print(f"\n{comparison.title}: {len(images)} images of {images.shape[-2]} x {images.shape[-1]} px")
    extra = "extra MB" if comparison.memory else ""
    print(f"  {'':48} {'images/s':>9} {'25-75 %':>15} {'ratio':>7} {'target':>7}{extra:>10}")
    for (label, contestant), speed in zip(contestants.items(), speeds, strict=True):
        target = f"{comparison.target[label]:.2f}x" if label in comparison.target else ""
        memory = f"{peak_bytes(contestant, images) / 2**20:.1f}" if comparison.memory else ""
        spread = f"{speed.q25:.3g}-{speed.q75:.3g}"
        ratio = f"{speed.median / speeds[0].median:.2f}x"
        print(f"  {label:48} {speed.median:9.4g} {spread:>15} {ratio:>7} {target:>7}{memory:>10}")


def forward(function: Contestant) -> Contestant:
    """The forward pass alone, nothing kept for a backward pass."""
    return function


def forward_backward(function: Contestant) -> Contestant:
    """The forward pass and the gradients of everything that asks for one."""

    def both(images: Tensor) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            function(images).sum().backward()

    return both


def peak_bytes(contestant: Contestant, images: Tensor) -> int:
    """The most bytes alive between two operators beside what was there before; inside an operator nobody looks."""
    with torch.no_grad(), _LiveBytes() as live:
        contestant(images)
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages that operators make and that still live."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.given: set[int] = set()  # storages that were there before
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor) and (key := value.untyped_storage()._cdata) not in self.alive:
                self.given.add(key)
        result = func(*args, **kwargs)
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self.given:
                    self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result
