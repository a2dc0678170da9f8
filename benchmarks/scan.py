"""The selective scan against the loop over tokens that defines it, and the models that are made of it."""

from collections.abc import Callable, Iterator

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.compare import Comparison, Contestant, forward, forward_backward, peak_bytes
from dart.deploy import optimize_for_inference
from dart.kernels import causal_conv1d, selective_scan
from dart.kernels.causal_conv1d import causal_conv1d_reference
from dart.kernels.selective_scan import scan_in_runs, selective_scan_reference
from dart.models import build

LOOP, OURS = "a loop over the tokens", "dart.kernels.selective_scan"
CONV = "dart.kernels.causal_conv1d"
# batch, tokens, channels, states: the inner sizes of Vim-Ti and Vim-S, and those of a small model in training.
SIZES = {
    "Vim-Ti": ((1, 196, 384, 16), (4, 196, 384, 16), (4, 392, 384, 16)),
    "Vim-S": ((1, 196, 768, 16), (4, 196, 768, 16), (4, 392, 768, 16)),
    "small model in training": ((24, 33, 96, 8), (24, 65, 96, 8)),
}
KINDS = (("forward", forward), ("forward + backward", forward_backward))
Scan = Callable[..., Tensor]


def comparisons() -> Iterator[Comparison]:
    for model, sizes in SIZES.items():
        for size in sizes:
            for kind, run in KINDS:
                title = f"selective scan, {model}: {size[3]} states, {kind}"
                chosen = {LOOP: selective_scan_reference, OURS: selective_scan, "as exported": scan_in_runs}
                contestants = {name: run(bound(scan, size, kind != "forward")) for name, scan in chosen.items()}
                yield Comparison(title, torch.randn(size[:3]), contestants, {OURS: 10.0} if size[1] == 196 else {})
    for size in (SIZES["Vim-Ti"][1], SIZES["small model in training"][0]):
        yield convolution(size)
    show_memory()
    yield vim()


def bound(scan: Scan, size: tuple[int, ...], learning: bool) -> Contestant:
    """A scan of x (B, L, D) with everything else given; learning: all of it wants a gradient."""
    generator = torch.Generator().manual_seed(0)
    batch, length, dim, states = size
    dt = F.softplus(torch.randn(batch, length, dim, generator=generator) - 3)
    rates = -torch.arange(1, states + 1.0).repeat(dim, 1)
    b, c = (torch.randn(batch, length, states, generator=generator) for _ in range(2))
    given = [v.requires_grad_(learning) for v in (dt, rates, b, c, torch.ones(dim))]
    return lambda x: scan(x.detach().requires_grad_(learning), *given)


def convolution(size: tuple[int, ...]) -> Comparison:
    """The causal convolution in front of a scan, between two projections that want the channels last."""
    dim = size[2]
    weight, bias = torch.randn(dim, 4).requires_grad_(), torch.randn(dim).requires_grad_()

    def torchs(x: Tensor) -> Tensor:
        return F.conv1d(x.mT, weight[:, None], bias, padding=3, groups=dim)[..., : x.shape[1]].mT

    contestants: dict[str, Contestant] = {
        "F.conv1d, channels put in front and back": torchs,
        CONV: lambda x: causal_conv1d(x, weight, bias),
        "as exported": lambda x: causal_conv1d_reference(x, weight, bias),
    }
    contestants = {name: forward_backward(learning(function)) for name, function in contestants.items()}
    return Comparison("causal convolution of width 4, forward + backward", torch.randn(size[:3]), contestants)


def learning(function: Contestant) -> Contestant:
    return lambda x: function(x.detach().requires_grad_())


def show_memory() -> None:
    """Print the extra memory of one image's scan, forward + backward: it should grow as the tokens do."""
    print("\nselective scan, Vim-Ti: extra MB of one image, forward + backward, at 196 / 392 / 784 tokens")
    for name, scan in ((LOOP, selective_scan_reference), (OURS, selective_scan)):
        sizes = [(1, length, 384, 16) for length in (196, 392, 784)]
        peaks = [peak_bytes(forward_backward(bound(scan, size, True)), torch.randn(size[:3])) for size in sizes]
        print(f"  {name:48} " + " / ".join(f"{peak / 2**20:.1f}" for peak in peaks))


def vim() -> Comparison:
    """Vim-Ti on all patches of an image, and on half as many regions of it."""
    plain = timm.create_model("vim_tiny", img_size=448).eval()
    as_trained = {"scorer": "mobilenetv3_small", "scorer_norm": "batch"}  # with batch norms, as published weights
    ours = optimize_for_inference(build("dart_vim_tiny", token_budget=392, **as_trained).eval())
    contestants = {
        "Vim-Ti, 784 tokens (448 x 448 px)": plain,
        "DART-Vim-Ti, 392 tokens, MobileNetV3-Small": ours,
        "Vim-Ti of 392 uniform regions": build("uniform_vim_tiny", token_budget=392).eval(),
    }
    title = "Vim-Ti models, forward; GFLOPs of the second are 0.55 of the first's in the paper, which is 1.82x"
    return Comparison(title, torch.rand(2, 3, 448, 448), contestants)
