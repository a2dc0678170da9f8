"""On a CUDA device: fused projection and selective scan against their memory floors, DART-DeiT-S against DeiTs."""

from collections.abc import Iterator

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.compare import Comparison, Contestant, forward_backward, gpu_seconds
from benchmarks.models import dart, label, plain_size
from dart.kernels import embed_regions, sample_regions, selective_scan
from dart.kernels.embed_regions import embed_regions_reference
from dart.partition import flow_regions, plan_rows

SIDE, PATCH, GRID, WIDTH = 448, 16, 14, 384
BATCH = 256  # saturates: at 448 px it is 300 MB, several times the largest cache
DTYPE = torch.bfloat16
SCAN = "dart.kernels.selective_scan"


def comparisons() -> Iterator[Comparison]:
    if not torch.cuda.is_available():
        print("\ngpu: there is no CUDA device; left out")
        return
    print(f"\n{torch.cuda.get_device_name()}: {str(DTYPE).removeprefix('torch.')}, timed by CUDA events")
    images = torch.rand(BATCH, 3, SIDE, SIDE, device="cuda", dtype=DTYPE)
    for num_patches in (196, 392):
        yield projection(images, num_patches)
    for learning in (False, True):
        yield scan(learning)
    for batch in (1, BATCH):
        torch.compiler.reset()  # every graph of every model counts towards one limit
        yield from models(images[:batch])


def projection(images: Tensor, num_patches: int) -> Comparison:
    """Region gather and projection. The yardstick copies as many bytes as the floor, so a ratio is the share of it."""
    density = torch.rand(BATCH, GRID, GRID, device="cuda") + 0.2
    density = density / density.sum((1, 2), keepdim=True)
    regions = flow_regions(density, num_patches, plan_rows(num_patches), (SIDE, SIDE))
    weight = torch.randn(WIDTH, 3, PATCH, PATCH, device="cuda", dtype=DTYPE)
    bias = torch.randn(WIDTH, device="cuda", dtype=DTYPE)

    def apart(images: Tensor) -> Tensor:
        return F.linear(sample_regions(images, regions, PATCH, "point").flatten(2), weight.flatten(1), bias)

    floor = floor_bytes(images, regions, weight)
    source = torch.zeros(floor // 2, dtype=torch.uint8, device="cuda")  # half is read, half is written
    target = torch.empty_like(source)
    contestants: dict[str, Contestant] = {
        "the floor: as many bytes copied": lambda x: target.copy_(source),
        "dart.kernels.embed_regions (point)": lambda x: embed_regions(x, regions, weight, bias, "point"),
        "dart.kernels.embed_regions (area)": lambda x: embed_regions(x, regions, weight, bias, "area"),
        "dart.kernels.sample_regions (point), F.linear": apart,
        "plain PyTorch (point)": lambda x: embed_regions_reference(x, regions, weight, bias, "point"),
    }
    contestants = {name: captured(function, images) for name, function in contestants.items()}
    seconds = gpu_seconds(contestants["the floor: as many bytes copied"], images, 100)
    measured = f"{floor / 1e6:.0f} MB are {seconds * 1e6:.0f} us at the {floor / seconds / 1e12:.2f} TB/s of a copy"
    return Comparison(f"{num_patches} regions projected to {WIDTH} numbers; {measured}", images, contestants)


def scan(learning: bool) -> Comparison:
    """The scan of a Vim-Ti block. The yardstick copies as many bytes as the floor, so a ratio is the share of it."""
    x, b, c = (torch.randn(BATCH, 197, n, device="cuda", dtype=DTYPE) for n in (384, 16, 16))
    dt = torch.rand(x.shape, device="cuda") * 0.1
    rates, skip = -torch.arange(1, 17.0, device="cuda").repeat(384, 1), torch.ones(384, device="cuda")
    # Forward: x, dt, A, B, C, D are read, and y, as large as x, is written.
    floor = 2 * x.nbytes + sum(v.nbytes for v in (dt, rates, b, c, skip))
    if learning:  # backward, all are read again and the gradient of y with them, and a gradient is written of each
        floor += 3 * x.nbytes + 2 * sum(v.nbytes for v in (dt, rates, b, c, skip))
    given = [v.requires_grad_(learning) for v in (dt, rates, b, c, skip)]
    source = torch.zeros(floor // 2, dtype=torch.uint8, device="cuda")  # half is read, half is written
    target = torch.empty_like(source)
    contestants: dict[str, Contestant] = {"the floor: as many bytes copied": lambda x: target.copy_(source)}
    if learning:
        contestants[SCAN] = forward_backward(lambda x: selective_scan(x.detach().requires_grad_(), *given))
    else:
        contestants[SCAN] = captured(lambda x: selective_scan(x, *given), x)
    kind = "forward + backward" if learning else "forward"
    return Comparison(
        f"selective scan of 16 states, {kind}; the floor is {floor / 1e6:.0f} MB", x, contestants, {SCAN: 0.5}
    )


def floor_bytes(images: Tensor, regions: Tensor, weight: Tensor) -> int:
    """Images, regions, weight and tokens, each byte moved once (dart/kernels/README.md)."""
    tokens = regions.shape[0] * regions.shape[1] * weight.shape[0] * weight.itemsize
    return images.nbytes + regions.nbytes + weight.nbytes + tokens


def captured(function: Contestant, images: Tensor) -> Contestant:
    """A CUDA graph of one call: to launch a short kernel from Python takes longer than the kernel."""
    with torch.no_grad():
        function(images)  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function(images)
    return lambda images: graph.replay()


def models(images: Tensor) -> Iterator[Comparison]:
    """DART-DeiT-S, every model compiled, against DeiT-B and then against DeiT-S at the same tokens."""
    batch = len(images)
    contestants: dict[str, Contestant] = {
        "DeiT-B, 196 tokens (224 x 224 px)": plain("deit_base_patch16_224", images, (224, 224))
    }
    groups: dict[int, dict[str, Contestant]] = {}
    for budget in (196, 392):
        size = plain_size(budget)
        groups[budget] = {
            f"DeiT-S, {budget} tokens ({size[0]} x {size[1]} px)": plain("deit_small_patch16_224", images, size),
            label(budget): compiled(dart(budget)),
        }
        contestants |= groups[budget]
    yield Comparison(f"compiled DeiT models against DeiT-B, batch {batch}", images, contestants)
    for budget, group in groups.items():
        yield Comparison(f"compiled DeiT-S models of {budget} tokens, batch {batch}", images, group)


def plain(name: str, images: Tensor, size: tuple[int, int]) -> Contestant:
    """A plain model on a corner of the images, cut out beforehand."""
    model = compiled(timm.create_model(name, img_size=size).eval())
    corner = images[..., : size[0], : size[1]].contiguous()
    return lambda images: model(corner)


def compiled(model: nn.Module) -> Contestant:
    """One graph for one shape, replayed where the device can: a batch of one is all launches otherwise."""
    return torch.compile(model.to("cuda", DTYPE), mode="reduce-overhead", fullgraph=True, dynamic=False)
