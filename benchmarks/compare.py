"""How things are compared: contestants that do the same work take turns; the first one is the yardstick."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pipeline.benchmark import Speed, measure_speeds

Contestant = Callable[[Tensor], Any]

# A turn on a GPU: the first launch of many is all that is not hidden behind work.
TURN_S = 0.02


class Comparison(NamedTuple):
    """What is measured: every contestant is called with the images (B, C, H, W), or with sequences (B, L, D).

    Of what reads samples, `images` are their indices (n,).

    target: Least ratio to the yardstick's speed that a contestant should reach, by its label.
    memory: Largest ratio to the yardstick's extra memory (`peak_bytes`) that a contestant should reach, by its label;
        None: memory is not measured.
    rounds: Most timed turns of contestants that take long.
    """

    title: str
    images: Tensor
    contestants: dict[str, Contestant]
    target: Mapping[str, float] = MappingProxyType({})
    memory: dict[str, float] | None = None
    rounds: int | None = None


def show(comparison: Comparison, rounds: int) -> None:
    """Measure one comparison and print its table."""
    images, contestants = comparison.images, comparison.contestants
    runs = list(contestants.values())
    rounds = min(rounds, comparison.rounds or rounds)
    speeds = (
        measure_on_gpu(runs, images, rounds) if images.is_cuda else measure_speeds(runs, [images] * len(runs), rounds)
    )
    peaks = [] if comparison.memory is None else [peak_bytes(run, images) for run in runs]
    what = {4: "images of {} x {} px", 3: "sequences of {} tokens, {} channels", 1: "samples"}[images.dim()]
    unit = "samples/s" if images.dim() == 1 else "images/s"
    print(f"\n{comparison.title}: {len(images)} {what.format(*images.shape[-2:])}")
    extra = f"  |{'extra MB':>9} {'ratio':>7} {'target':>9}" if peaks else ""
    print(f"  {'':48} {unit:>9} {'25-75 %':>15} {'ratio':>7} {'target':>9}{extra}")
    for i, (label, speed) in enumerate(zip(contestants, speeds, strict=True)):
        target = f">= {comparison.target[label]:.2f}x" if label in comparison.target else ""
        spread = f"{speed.q25:.3g}-{speed.q75:.3g}"
        ratio = f"{speed.median / speeds[0].median:.2f}x"
        line = f"  {label:48} {speed.median:9.4g} {spread:>15} {ratio:>7} {target:>9}"
        if comparison.memory is not None:
            most = f"<= {comparison.memory[label]:.2f}x" if label in comparison.memory else ""
            line += f"  |{peaks[i] / 2**20:9.1f} {f'{peaks[i] / peaks[0]:.2f}x':>7} {most:>9}"
        print(line.rstrip())


@torch.inference_mode()
def measure_on_gpu(contestants: Sequence[Contestant], images: Tensor, rounds: int) -> list[Speed]:
    """As `measure_speeds`, by the device's own clock and many calls a turn: launches are hidden behind work."""
    for contestant in contestants:  # compiles, and records what is to be replayed
        for _ in range(3):
            contestant(images)
    calls = [ceil(TURN_S / gpu_seconds(contestant, images)) for contestant in contestants]
    rates = torch.zeros(rounds, len(contestants), dtype=torch.float64)
    for turn in range(rounds):
        for i, contestant in enumerate(contestants):
            rates[turn, i] = len(images) / gpu_seconds(contestant, images, calls[i])
    quantiles = rates.quantile(rates.new_tensor([0.5, 0.25, 0.75, 0.0]), 0)
    return [Speed(*values) for values in quantiles.mT.tolist()]


def gpu_seconds(contestant: Contestant, images: Tensor, calls: int = 1) -> float:
    """Mean duration of a call, between two events on the device."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        contestant(images)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


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
    """The most bytes alive between two operators beside what was there before; inside one of torch's nobody looks."""
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
        if func.namespace == "dart":  # operators of ours are made of others: their memory counts
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
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
