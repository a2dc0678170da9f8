"""Triton equals its twin: outputs and every gradient. On CUDA, or on a CPU in Triton's interpreter.

Triton chooses between compiler and interpreter when it is first imported, and whatever else runs in a pytest process
may import it. So pytest does not collect this file by its name: `tests/kernels/test_interpreter.py` and
`tests/gpu/test_kernels.py` run it in a process of its own. By hand, on a CPU:

    TRITON_INTERPRET=1 pytest tests/kernels/equality.py
"""

import os
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dart.kernels import embed_regions, invert_cdf, sample_regions
from dart.kernels.dispatch import _forced
from dart.kernels.embed_regions import embed_regions_reference

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device")
SAMPLINGS = ["area", "point"]
FLOAT, BRAIN = torch.float32, torch.bfloat16
# Of the largest number in a tensor. float32: the reference's coordinates are exact to a millionth of the image's side.
# bfloat16: two of its steps, since patches and products are rounded one after the other.
TOLERANCE = {FLOAT: 3e-4, BRAIN: 2e-2}

# batch, images that have their own regions, tokens, patch side, channels, height, width
SMALL = [(2, 2, 1, 16, 3, 23, 31), (2, 1, 7, 8, 4, 17, 12)]
MANY = [(1, 1, 63, 5, 1, 4, 3), (1, 1, 121, 5, 1, 3, 4)]
LARGE = [(3, 3, 63, 8, 4, 317, 224), (2, 1, 121, 16, 3, 448, 448), (5, 5, 392, 16, 3, 448, 672)]
CASES = [(size, dtype, sampling) for size in SMALL for dtype in (FLOAT, BRAIN) for sampling in SAMPLINGS]
if DEVICE == "cuda":
    CASES += [(size, dtype, sampling) for size in MANY + LARGE for dtype in (FLOAT, BRAIN) for sampling in SAMPLINGS]
else:  # the interpreter takes 20 ms for a program, and every token is one, or more
    CASES += [(MANY[0], FLOAT, "area"), (MANY[1], FLOAT, "point")]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that is allocated, and not written, holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).new_empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["exact", "fused"])
def product(request: pytest.FixtureRequest) -> Iterator[str]:
    """float32 matrices by torch, or, where TF32 is allowed, fused; 16-bit ones are always fused."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if request.param == "fused" else "ieee"
    yield request.param
    matmul.fp32_precision = before


def assert_equal(found: Tensor, expected: Tensor, tolerance: float, peak: float | None = None) -> None:
    """Within `tolerance` of the peak, everywhere."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    error = (found.float() - expected.float()).abs().max().item()
    peak = expected.float().abs().max().item() if peak is None else peak
    print(f"error {error:.1e}, of the peak {error / max(peak, 1e-30):.1e}")
    assert error <= tolerance * peak


def assert_twins(function: Callable[..., Tensor], inputs: Sequence[Tensor], tolerance: float) -> None:
    """Output and every gradient of `function` in both rooms; sides of regions on the border of the image excepted.

    There a region can only shrink, its derivative is one-sided, and rounding decides which side is shown.
    """
    results = []
    for room in ("triton", "reference"):
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        with _forced(room):
            out = function(*leaves)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, upstream)))
    for found, expected in zip(*results, strict=True):
        if expected.shape[-1:] == (4,) and expected.ndim == 3:  # regions
            inner = (inputs[1] > 0) & (inputs[1] < inputs[1].new_tensor(inputs[0].shape[-2:]).flip(0).repeat(2))
            assert found.isfinite().all()
            found, expected = found * inner, expected * inner
        assert_equal(found, expected, tolerance)


def make_regions(batch: int, tokens: int, height: int, width: int) -> Tensor:
    """Random rectangles; the first fills the image, the second is smaller than a pixel, the third a point."""
    size = torch.tensor([width, height]).float()
    low, high = (torch.rand(batch, tokens, 2, 2) * size).sort(-2).values.unbind(-2)
    regions = torch.cat([low, high], -1)
    if tokens > 3:
        regions[:, 0] = torch.tensor([0, 0, width, height])
        regions[:, 1, 2:] = regions[:, 1, :2] + 0.3
        regions[:, 2, 2:] = regions[:, 2, :2]
        regions[:, 3, :2] = 0
    return regions.to(DEVICE)


@pytest.mark.parametrize(
    ("mass", "levels"),
    [((3, 14), (13,)), ((2, 7, 14), (7, 6)), ((2, 5, 9), (2, 1, 3)), ((1, 121), (63,)), ((2, 1), (1,)), ((2, 4), (0,))],
)
def test_invert_cdf(mass: tuple[int, ...], levels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs = (torch.rand(mass, device=DEVICE) + 0.1, torch.rand(levels, device=DEVICE).sort(-1).values)
    if mass == (2, 1):  # one cell: no mass moves anything
        assert_equal(*(_run(room, *inputs) for room in ("triton", "reference")), 1e-6)
    elif levels[-1]:
        assert_twins(invert_cdf, inputs, 1e-4)
    else:
        assert _run("triton", *inputs).shape == (2, 0)


def test_all_mass_in_one_cell() -> None:
    mass = torch.zeros(2, 9, device=DEVICE)
    mass[0, 4], mass[1, 0] = 3.0, 1e-6
    levels = torch.tensor([0.25, 0.5, 0.75], device=DEVICE)
    assert_twins(invert_cdf, (mass, levels), 1e-5)
    assert_equal(_run("triton", mass, levels), levels + torch.tensor([[4.0], [0.0]], device=DEVICE), 1e-6)
    ends = _run("triton", mass, torch.tensor([0.0, 1.0], device=DEVICE))
    assert ((ends >= 0) & (ends <= 9)).all()


def _run(room: str, mass: Tensor, levels: Tensor) -> Tensor:
    with _forced(room):
        return invert_cdf(mass, levels)


@pytest.mark.parametrize(("size", "dtype", "sampling"), CASES)
def test_sample_regions(size: tuple[int, ...], dtype: torch.dtype, sampling: str) -> None:
    torch.manual_seed(0)
    batch, own, tokens, patch_size, channels, height, width = size
    images = torch.randn(batch, channels, height, width, device=DEVICE).to(dtype)
    regions = make_regions(own, tokens, height, width)
    assert_twins(lambda i, r: sample_regions(i, r, patch_size, sampling), (images, regions), TOLERANCE[dtype])


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(
    ("product", "dtype"), [("exact", FLOAT), ("fused", FLOAT), ("fused", BRAIN)], indirect=["product"]
)
def test_embed_regions(product: str, dtype: torch.dtype, sampling: str) -> None:
    tolerance = _tolerance(product, dtype)
    inputs = _embedding(2, 7, 5, 2, dtype)
    assert_twins(lambda i, r, w, b: embed_regions(i, r, w, b, sampling), inputs, tolerance)
    if product == "exact":
        return
    for sizes in ((2, 63, 5, 3), (1, 121, 5, 1), (1, 1, 8, 4)):  # tokens and samples that fill no tile
        inputs = _embedding(*sizes, dtype)
        results = []
        for room in ("triton", "reference"):
            with _forced(room):
                results.append(embed_regions(*inputs, sampling))
        assert_equal(*results, tolerance)


def _embedding(batch: int, tokens: int, patch_size: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Images, shared regions, weight and bias."""
    torch.manual_seed(0)
    images = torch.randn(batch, channels, 5, 6, device=DEVICE).to(dtype)
    weight = torch.randn(19, channels, patch_size, patch_size, device=DEVICE).to(dtype)
    return images, make_regions(1, tokens, 5, 6), weight, torch.randn(19, device=DEVICE).to(dtype)


def _tolerance(product: str, dtype: torch.dtype) -> float:
    return 2e-3 if (DEVICE, product, dtype) == ("cuda", "fused", FLOAT) else TOLERANCE[dtype]  # TF32 has 10 bits


def test_autocast_sets_the_dtype_of_the_projection_only() -> None:
    images, regions, weight, bias = _embedding(2, 3, 5, 2, FLOAT)
    with _forced("triton"), torch.autocast(DEVICE, BRAIN):
        tokens = embed_regions(images, regions, weight.requires_grad_(), bias)
        assert sample_regions(images, regions, 5).dtype == FLOAT
    tokens.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == FLOAT
    with torch.autocast(DEVICE, BRAIN):
        assert_equal(tokens, embed_regions_reference(images, regions, weight, bias, "area"), TOLERANCE[BRAIN])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_constant_images_are_read_as_constants(sampling: str) -> None:
    torch.manual_seed(0)
    images = torch.full((1, 1, 8, 11), 3.0, device=DEVICE)
    regions = make_regions(1, 7, 8, 11)[:, 4:].requires_grad_()
    with _forced("triton"):
        patches = sample_regions(images, regions, 5, sampling)
    assert_equal(patches, torch.full_like(patches, 3), 1e-6)
    (grad,) = torch.autograd.grad(patches.sum(), regions)
    assert_equal(grad, torch.zeros_like(grad), 1e-4, peak=3.0)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_strides_of_the_image_do_not_matter(sampling: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 11, device=DEVICE)
    regions = make_regions(2, 4, 8, 11)
    with _forced("triton"):
        expected = sample_regions(images, regions, 5, sampling)
        for other in (images.contiguous(memory_format=torch.channels_last), images.mT.contiguous().mT):
            assert torch.equal(sample_regions(other, regions, 5, sampling), expected)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_grid_gives_a_convolution(sampling: str, product: str) -> None:
    images = torch.randn(1, 3, 16, 24, device=DEVICE)
    weight = torch.randn(17, 3, 8, 8, device=DEVICE)
    corner = torch.cartesian_prod(torch.arange(0, 16, 8), torch.arange(0, 24, 8)).flip(-1).float()
    regions = torch.cat([corner, corner + 8], -1)[None].to(DEVICE)
    with _forced("triton"):
        tokens = embed_regions(images, regions, weight, None, sampling)
    expected = F.conv2d(images, weight, stride=8).flatten(2).mT
    assert_equal(tokens, expected, 2e-3 if DEVICE == "cuda" else 1e-6)  # a convolution uses TF32 by default


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_nan_stays_with_its_token(sampling: str) -> None:
    images = torch.randn(1, 1, 8, 8, device=DEVICE)
    regions = make_regions(1, 2, 8, 8)
    regions[0, 0, 1] = torch.nan
    with _forced("triton"):
        patches = sample_regions(images, regions, 5, sampling)
    assert patches[0, 0].isnan().all()
    assert patches[0, 1].isfinite().all()


def test_unknown_sampling() -> None:
    images, regions = torch.zeros(1, 1, 8, 8, device=DEVICE), make_regions(1, 2, 8, 8)
    with _forced("triton"), pytest.raises(ValueError, match="sampling = 'nearest': unknown"):
        sample_regions(images, regions, 5, "nearest")
    with _forced("triton"), pytest.raises(ValueError, match="sampling = 'nearest': unknown"):
        embed_regions(images, regions, torch.zeros(2, 1, 5, 5, device=DEVICE), None, "nearest")


def test_operators_keep_torchs_rules() -> None:
    """Schema, fake tensors, autograd and compiled graphs with dynamic shapes agree with what runs."""
    import dart.kernels.embed_regions_triton
    import dart.kernels.invert_cdf_triton
    import dart.kernels.sample_regions_triton  # noqa: F401

    torch.manual_seed(0)
    images, regions = torch.randn(2, 1, 4, 5, device=DEVICE), make_regions(1, 2, 4, 5)
    weight, bias = torch.randn(3, 1, 2, 2, device=DEVICE), torch.randn(3, device=DEVICE)
    mass, levels = torch.rand(4, 5, device=DEVICE), torch.rand(2, 3, device=DEVICE)
    patches = torch.randn(2, 2, 1, 2, 2, device=DEVICE)
    for t in (images, regions, weight, bias, mass, levels):
        t.requires_grad_()
    ops = torch.ops.dart
    torch.library.opcheck(ops.invert_cdf.default, (mass, levels))
    torch.library.opcheck(ops.sample_regions.default, (images, regions, 2, True))
    torch.library.opcheck(ops.embed_regions.default, (images, regions, weight, bias, False))
    with torch.no_grad():
        still = ["test_schema", "test_faketensor"]
        args = (torch.randn(4, 3, device=DEVICE), mass.detach(), levels.detach())
        torch.library.opcheck(ops.invert_cdf_backward.default, args, test_utils=still)
        for op in (ops.sample_regions_grad_regions, ops.sample_regions_grad_images):
            torch.library.opcheck(op.default, (patches, images.detach(), regions.detach(), True), test_utils=still)


def test_one_graph_under_compile() -> None:
    """The three operators, forward and backward, without a graph break."""

    def tokens(images: Tensor, mass: Tensor, weight: Tensor) -> Tensor:
        edges = invert_cdf(mass, torch.tensor([0.2, 0.7], device=mass.device))
        regions = torch.stack([edges[..., 0], edges[..., 0], edges[..., 1], edges[..., 1]], -1)
        return embed_regions(images, regions, weight) + sample_regions(images, regions, 4).mean((-1, -2))

    torch.manual_seed(0)
    images, mass = torch.randn(2, 3, 6, 6, device=DEVICE), torch.rand(2, 3, 6, device=DEVICE) + 0.1
    inputs = (images, mass, torch.randn(3, 3, 4, 4, device=DEVICE))
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"
    compiled = torch.compile(tokens, fullgraph=True, backend=backend)
    results = []
    for function in (compiled, tokens):
        leaves = [t.clone().requires_grad_() for t in inputs]
        with _forced("triton"):
            out = function(*leaves)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaves)))
    for found, expected in zip(*results, strict=True):
        assert_equal(found, expected, 1e-5)


def test_one_graph_for_every_batch_size() -> None:
    """The three operators, forward and backward: the batch is a constant nowhere."""

    def tokens(images: Tensor, weight: Tensor) -> Tensor:
        edges = invert_cdf(images.square().mean((1, 2)) + 0.1, torch.tensor([0.2, 0.4, 0.7], device=images.device))
        low, high = edges[:, :-1], edges[:, 1:]  # (B, 2)
        own = torch.stack([low, low, high, high], -1)
        found = embed_regions(images, own, weight) + sample_regions(images, own, 4).mean((-1, -2))
        shared = own.new_tensor([[[0.5, 1.0, 3.0, 5.0], [2.0, 2.0, 6.0, 6.0]]]) * weight.mean().exp()
        return found + embed_regions(images, shared, weight) + sample_regions(images, shared, 4).mean((-1, -2))

    torch.manual_seed(0)
    weight = torch.randn(3, 3, 4, 4, device=DEVICE)
    compiled = torch.compile(tokens, fullgraph=True, backend="aot_eager")
    with _forced("triton"), torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 3):
            inputs = (torch.randn(batch, 3, 6, 6, device=DEVICE), weight)
            results = []
            for function in (compiled, tokens):
                leaves = [t.clone().requires_grad_() for t in inputs]
                torch._dynamo.mark_dynamic(leaves[0], 0)  # refuses a graph that is of one size
                out = function(*leaves)
                results.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaves)))
            for found, expected in zip(*results, strict=True):
                assert_equal(found, expected, 1e-5)
