"""Theorems of deployment: compiled, exported, in half precision or on several devices, a model's answer stays."""

import re
from pathlib import Path
from shutil import which

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import dart.models  # noqa: F401  (registers the models)
from dart.partition import partition_image
from dart.registry import CONTROL_SCORERS
from dart.scorer import scores_to_density

ROOT = Path(__file__).resolve().parents[2]
VIT = {"num_classes": 10, "in_chans": 1, "depth": 1, "token_budget": 36, "table_size": 6}
DEIT = {
    "num_classes": 10, "in_chans": 1, "depth": 1, "token_budget": 16, "table_size": 4,
    "embed_dim": 32, "num_heads": 2, "img_size": 64, "patch_size": 8, "scorer": "conv",
}  # fmt: skip
# Every option of the invariant mode, in few models.
OPTIONS = {
    "flow-area-geometry": ("dart_vit_micro", VIT, {"sampling": "area", "pos_embed": "geometry"}),
    "grid-point-table": ("dart_vit_micro", VIT, {"partition": "grid", "sampling": "point", "pos_embed": "table"}),
    "density-area-table": ("dart_deit_tiny", DEIT, {"row_weight": "density", "sampling": "area", "pos_embed": "table"}),
    "flow-point-geometry": ("dart_deit_tiny", DEIT, {"sampling": "point", "pos_embed": "geometry"}),
}
CASES = [pytest.param(name, {**model, **options}, id=key) for key, (name, model, options) in OPTIONS.items()]
every_case = pytest.mark.parametrize(("name", "kwargs"), CASES)
# What deploys beside: the uniform twin, and a scorer that reads a resized copy, as a DeiT's does by default.
TWIN = pytest.param("uniform_vit_micro", VIT, id="uniform")
RESIZED = pytest.param("dart_deit_tiny", {**DEIT, "scorer": "mobilenetv3_small", "score_input": 32}, id="resized")
VIM = {
    "num_classes": 10,
    "in_chans": 1,
    "depth": 1,
    "token_budget": 9,
    "img_size": 64,
    "patch_size": 8,
    "scorer": "conv",
}
# Other ways to cut, and scores that nothing learns.
PLAIN_DEIT = {key: value for key, value in DEIT.items() if key != "scorer"}
BASELINES = [
    pytest.param("quadtree_vit_micro", VIT, id="quadtree"),
    pytest.param("deformable_vit_micro", VIT, id="deformable"),
    pytest.param("deformable_deit_tiny", PLAIN_DEIT, id="deformable-deit"),
    *(pytest.param("dart_vit_micro", {**VIT, "scorer": name}, id=name) for name in CONTROL_SCORERS),
]
SCAN = pytest.param("dart_vim_nano", VIM, id="scan")
needs_compiler = pytest.mark.skipif(not (which("c++") or which("g++") or which("clang++")), reason="needs C++")
GEOMETRIES = [("flow", "mass"), ("flow", "density"), ("grid", "mass")]


def build(name: str, **kwargs) -> nn.Module:
    """A model whose scorer, if it has one, is far from uniform."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs)
    if model.patch_embed.scorer is not None and list(model.patch_embed.scorer.parameters()):
        nn.init.normal_(last_layer(model).weight)
    return model.eval()


def last_layer(model: nn.Module) -> nn.Module:
    """The one that gives the scores."""
    head = model.patch_embed.scorer.head
    return head[-1] if isinstance(head, nn.Sequential) else head


def images_for(model: nn.Module, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(batch, 1, *model.patch_embed.img_size, generator=generator)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_learning(compiled, model: nn.Module, images: Tensor) -> None:
    """Outputs and every gradient of the model and of its compiled self are equal, to a thousandth of their peak."""
    found = []
    for forward in (model, compiled):
        model.zero_grad()
        out = forward(images)
        out.sin().mean().backward()  # no constant of a norm, as the sum of squares is
        found.append({"out": out.detach(), **gradients(model)})
    for key, value in found[0].items():
        assert (found[1][key] - value).abs().max() <= 1e-3 * value.abs().max(), key


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kwargs"), [CASES[0], RESIZED, SCAN])  # the export below has them all
def test_compiled_in_one_graph_for_all_batch_sizes(name, kwargs):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = build(name, **kwargs)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for batch in (2, 3):
        images = images_for(model, batch)
        torch._dynamo.mark_dynamic(images, 0)  # fails where a batch size becomes a constant of the graph
        assert_same_learning(compiled, model, images)
    assert counter.frame_count == 1


@needs_compiler
@pytest.mark.slow
def test_compiled_to_machine_code():
    """The tokenizer, which is all that timm's ViT has not, forward; blocks and gradients take minutes to compile."""
    torch._dynamo.reset()
    model = build("dart_vit_micro", **VIT)
    tokenizer = model.patch_embed
    images = images_for(model, 2)
    with torch.no_grad():
        tokens, expected = torch.compile(tokenizer, fullgraph=True)(images), tokenizer(images)
    assert (tokens - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kwargs"), [*CASES, TWIN, RESIZED, *BASELINES])
def test_exported_for_all_batch_sizes(name, kwargs):
    model = build(name, **kwargs)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model, (images_for(model, 2),), dynamic_shapes=({0: batch},)).module()
    for size in (1, 2, 5):
        images = images_for(model, size)
        torch.testing.assert_close(exported(images), model(images))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kwargs"), [*CASES[1:3], RESIZED, SCAN])
def test_onnx_for_all_batch_sizes(name, kwargs, tmp_path):
    """In onnxruntime, whose look-up knows float64: area sampling is as exact there as here."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, path = build(name, **kwargs), tmp_path / "model.onnx"
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    torch.onnx.export(model, (images_for(model, 2),), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (1, 2, 5):
        images = images_for(model, size)
        (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "kwargs"), BASELINES)
def test_half_precision_moves_no_token_of_a_baseline_that_learns_none(name, kwargs):
    model = build(name, **kwargs)
    images = images_for(model, 2)
    expected = model.patch_embed.inspect(images).regions
    with torch.autocast("cpu", torch.bfloat16):
        found = model.patch_embed.inspect(images).regions
        F.cross_entropy(model(images), torch.tensor([1, 2])).backward()
    assert found.dtype == torch.float32
    if not name.startswith("deformable"):  # whose features are computed in half precision
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    half = model.bfloat16().patch_embed.inspect(images.bfloat16())
    assert half.regions.dtype == torch.float32
    assert half.tokens.isfinite().all()


@every_case
def test_autocast_learns_and_leaves_the_regions_in_float32(name, kwargs):
    model = build(name, **kwargs)
    images = images_for(model, 2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
        found = model.patch_embed.inspect(images)
        F.cross_entropy(logits, torch.tensor([1, 2])).backward()
    assert logits.dtype == torch.bfloat16
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    assert last_layer(model).weight.grad.abs().sum() > 0
    assert found.density.dtype == found.regions.dtype == torch.float32
    assert_tiles(found.regions, model.patch_embed.img_size)


@every_case
def test_a_model_in_bfloat16_runs_and_leaves_the_regions_in_float32(name, kwargs):
    model = build(name, **kwargs).bfloat16()
    images = images_for(model, 2).bfloat16()
    assert model(images).isfinite().all()
    regions = model.patch_embed.inspect(images).regions
    assert regions.dtype == torch.float32
    assert_tiles(regions, model.patch_embed.img_size)


@pytest.mark.parametrize(("partition", "row_weight"), GEOMETRIES)
def test_autocast_moves_no_edge(partition, row_weight):
    scores = torch.randn(2, 14, 14, generator=torch.Generator().manual_seed(0))
    expected = cut(scores, partition, row_weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cut(scores, partition, row_weight), expected)


@pytest.mark.slow
def test_two_processes_learn_as_one(tmp_path, monkeypatch):
    """Loss and gradients of two batches, summed; a parameter without a gradient would fail in the second."""
    monkeypatch.syspath_prepend(str(ROOT))  # where the spawned processes find this module
    name, kwargs = CASES[0].values
    torch.multiprocessing.spawn(_learn_half, args=(str(tmp_path), name, kwargs), nprocs=2)
    model = build(name, **kwargs)
    losses = [F.cross_entropy(model(images), labels) for images, labels in _batches(model)]
    sum(losses).backward()
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close((halves[0]["losses"] + halves[1]["losses"]) / 2, torch.stack(losses).detach())
    for key, value in gradients(model).items():
        for half in halves:
            torch.testing.assert_close(half["gradients"][key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "kwargs"), [*CASES, TWIN, RESIZED, SCAN, *BASELINES])
def test_nothing_waits_for_the_device(name, kwargs):
    """On tensors without data, forward and backward: no value and no shape depends on data, nothing is copied over."""
    model = build(name, **kwargs)
    images = images_for(model, 2).to("meta")
    model.to("meta")
    with OnOneDevice("meta") as mode:
        model(images).sum().backward()
    assert mode.num_operators > 80


@pytest.mark.parametrize(("partition", "row_weight"), GEOMETRIES)
def test_geometry_has_few_operators(partition, row_weight):
    """Scores to regions: operators are what a GPU is launched for."""
    with OnOneDevice("meta") as mode:
        cut(torch.zeros(2, 14, 14, device="meta"), partition, row_weight)
    assert mode.num_operators < 100


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("partition", "row_weight"), GEOMETRIES)
def test_compiled_geometry_has_few_kernels(partition, row_weight):
    torch._dynamo.reset()
    scores = torch.randn(2, 14, 14, generator=torch.Generator().manual_seed(0))
    regions, code = run_and_get_code(torch.compile(cut, fullgraph=True), scores, partition, row_weight)
    torch.testing.assert_close(regions, cut(scores, partition, row_weight), rtol=0, atol=2e-3)
    calls = re.findall(r"^ +(?:\w+ = )?(?:cpp_fused\w*|torch\.ops\.aten\.[\w.]+|extern_kernels\.\w+)\(", code[0], re.M)
    assert 0 < len(calls) < 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_case
def test_nothing_waits_for_the_gpu(name, kwargs):
    model = build(name, **kwargs).cuda()
    images = images_for(model, 2).cuda()
    model(images).sum().backward()  # compiles the kernels, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(images).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("partition", "row_weight"), GEOMETRIES)
def test_compiled_geometry_launches_few_kernels_on_the_gpu(partition, row_weight):
    torch._dynamo.reset()
    scores = torch.randn(2, 14, 14, device="cuda")
    compiled = torch.compile(cut, fullgraph=True)
    with torch.no_grad():
        compiled(scores, partition, row_weight)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            compiled(scores, partition, row_weight)
            torch.cuda.synchronize()
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert 0 < len(kernels) < 20


def cut(scores: Tensor, partition: str, row_weight: str) -> Tensor:
    """Scores -> regions of a 448 px image, 196 tokens."""
    density = scores_to_density(scores, floor=0.3, blur=2)
    return partition_image(density, (448, 448), 196, partition=partition, row_weight=row_weight)


def assert_tiles(regions: Tensor, img_size: tuple[int, int]) -> None:
    """The regions lie in the image, in reading order, each where the last one ended, and cover it all."""
    x0, y0, x1, y1 = regions.unbind(-1)
    assert ((x1 > x0) & (y1 > y0)).all()
    begins = x0[:, 1:] == 0
    assert torch.equal(torch.where(begins, img_size[1], x0[:, 1:]), x1[:, :-1])
    assert torch.equal(y0[:, 1:], torch.where(begins, y1[:, :-1], y0[:, :-1]))
    assert (x0[:, 0] == 0).all()
    assert (y0[:, 0] == 0).all()
    assert (x1[:, -1] == img_size[1]).all()
    assert (y1[:, -1] == img_size[0]).all()


class OnOneDevice(TorchDispatchMode):
    """Counts operators (views excluded), and refuses those that bring data to the host or take some from it."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.num_operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor)]
        if any(t.device.type != self.device for t in made):
            raise AssertionError(f"{func}: not on {self.device}")
        tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        if tags.intersection(func.tags):
            raise AssertionError(f"{func}: its value or shape depends on data")
        self.num_operators += not func.is_view
        return out


def _batches(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(images_for(model, 4) + shift, torch.arange(4) + shift) for shift in (0, 1)]


def _learn_half(rank: int, folder: str, name: str, kwargs: dict) -> None:
    """One of two processes: every other image of each batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = DistributedDataParallel(build(name, **kwargs))
    losses = []
    for images, labels in _batches(model.module):
        loss = F.cross_entropy(model(images[rank::2]), labels[rank::2])
        loss.backward()
        losses.append(loss.detach())
    found = {"losses": torch.stack(losses), "gradients": gradients(model.module)}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
