"""As `equality.py`, for the operations of state-space models: the selective scan and the causal convolution."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dart.kernels.causal_conv1d import causal_conv1d
from dart.kernels.dispatch import _forced
from dart.kernels.selective_scan import selective_scan, selective_scan_reference
from tests.kernels.equality import (  # noqa: F401  (a fixture that tests have without asking)
    BRAIN,
    DEVICE,
    FLOAT,
    TOLERANCE,
    assert_equal,
    assert_twins,
    poisoned,
    pytestmark,
)

# Of the largest number in a tensor: both rooms add in float32, in different orders.
EXACT = 2e-5
TOLERANCES = {FLOAT: EXACT, BRAIN: TOLERANCE[BRAIN]}

# batch, tokens, channels, states
SMALL = [(2, 1, 5, 3), (2, 7, 5, 3), (1, 63, 7, 2), (1, 121, 3, 1), (1, 197, 2, 5)]
LARGE = [(2, 7, 96, 8), (3, 63, 100, 16), (2, 121, 384, 16), (2, 197, 768, 16), (1, 784, 384, 16)]
SCANS = [(size, dtype) for size in SMALL + (LARGE if DEVICE == "cuda" else []) for dtype in (FLOAT, BRAIN)]
# batch, tokens, channels, width
CONVS = [(2, 1, 5, 4), (2, 7, 70, 4), (1, 63, 64, 2), (1, 121, 3, 3), (1, 197, 5, 1)]


def scan_inputs(size: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, dt, A, B, C, D: activations of the dtype given, step sizes and parameters in float32, as autocast has them."""
    torch.manual_seed(0)
    batch, length, dim, states = size
    dt = F.softplus(torch.randn(batch, length, dim) - 1)
    rates = -(torch.arange(1, states + 1).log() + 0.1 * torch.randn(dim, states)).exp()
    x, b, c = (torch.randn(batch, length, n).to(dtype) for n in (dim, states, states))
    return tuple(v.to(DEVICE) for v in (x, dt, rates, b, c, torch.randn(dim)))


@pytest.mark.parametrize(("size", "dtype"), SCANS)
def test_selective_scan(size: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_twins(selective_scan, scan_inputs(size, dtype), TOLERANCES[dtype])


def test_without_a_direct_path_and_with_strides() -> None:
    x, dt, rates, b, c, _ = scan_inputs((2, 7, 5, 3), FLOAT)
    wide, thin = torch.cat([x, dt], -1), torch.cat([b, c], -1)

    def scan(wide: Tensor, rates: Tensor, thin: Tensor) -> Tensor:
        x, dt = wide.chunk(2, -1)
        return selective_scan(x.flip(1), dt, rates, *thin.chunk(2, -1))

    assert_twins(scan, (wide, rates, thin), EXACT)


@pytest.mark.parametrize("scale", [0.0, 1e3])
def test_no_step_size_overflows(scale: float) -> None:
    x, dt, *others = scan_inputs((1, 21, 3, 2), FLOAT)
    leaves = [v.requires_grad_() for v in (x, dt * scale, *others)]
    with _forced("triton"):
        out = selective_scan(*leaves)
    assert_equal(out, selective_scan_reference(*leaves), EXACT)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), leaves))


@pytest.mark.parametrize("dtype", [FLOAT, BRAIN])
@pytest.mark.parametrize("size", CONVS)
def test_causal_conv1d(size: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    batch, length, dim, width = size
    x = torch.randn(batch, length, dim, device=DEVICE).to(dtype)
    weight, bias = torch.randn(dim, width, device=DEVICE), torch.randn(dim, device=DEVICE)
    assert_twins(causal_conv1d, (x, weight, bias), TOLERANCES[dtype])
    assert_twins(lambda x, w: causal_conv1d(x[..., : dim // 2], w[: dim // 2]), (x, weight), TOLERANCES[dtype])


def test_nothing_to_do() -> None:
    x, dt, *others = scan_inputs((2, 7, 5, 3), FLOAT)
    rates, b, c, direct = (v.requires_grad_() for v in others)
    with _forced("triton"):
        out = selective_scan(x[:0], dt[:0], rates, b[:0], c[:0], direct)
        out = out + causal_conv1d(x[:0], torch.ones(5, 4, device=DEVICE))
    assert out.shape == (0, 7, 5)
    assert all((grad == 0).all() for grad in torch.autograd.grad(out.sum(), [rates, direct]))


def test_operators_keep_torchs_rules() -> None:
    """Schema, fake tensors, autograd and compiled graphs with dynamic shapes agree with what runs."""
    import dart.kernels.causal_conv1d_triton
    import dart.kernels.selective_scan_triton  # noqa: F401

    scan = [v.requires_grad_() for v in scan_inputs((2, 3, 2, 2), FLOAT)]
    torch.library.opcheck(torch.ops.dart.selective_scan.default, scan)
    conv = (scan[0], torch.randn(2, 3, device=DEVICE).requires_grad_(), scan[5])
    torch.library.opcheck(torch.ops.dart.causal_conv1d.default, conv)


def test_one_graph_for_every_batch_size() -> None:
    """Both operators, forward and backward: the batch is a constant nowhere."""

    def mix(x: Tensor, dt: Tensor, rates: Tensor, b: Tensor, c: Tensor, direct: Tensor) -> Tensor:
        return selective_scan(causal_conv1d(x, torch.stack([direct, direct.sin()], -1)).cos(), dt, rates, b, c, direct)

    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    with _forced("triton"), torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 3):
            inputs = scan_inputs((batch, 3, 2, 2), FLOAT)
            results = []
            for function in (compiled, mix):
                leaves = [v.clone().requires_grad_() for v in inputs]
                for i in (0, 1, 3, 4):
                    torch._dynamo.mark_dynamic(leaves[i], 0)  # refuses a graph that is of one size
                out = function(*leaves)
                results.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaves)))
            for found, expected in zip(*results, strict=True):
                assert_equal(found, expected, EXACT)
