"""The selective scan in blocks and in runs is the recurrence, whatever the length, the step sizes and the precision."""

import pytest
import torch

from dart.kernels import selective_scan_blocks
from dart.kernels.selective_scan import scan_in_runs, selective_scan, selective_scan_reference

every_form = pytest.mark.parametrize("scan", [selective_scan, scan_in_runs], ids=["blocks", "runs"])


def inputs(length: int, dtype=torch.float64, batch: int = 2, channels: int = 5, states: int = 3, requires_grad=False):
    """x, dt, A, B, C, D as a trained block makes them."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dt = torch.nn.functional.softplus(normal(batch, length, channels) - 1)
    rates = -(torch.arange(1, states + 1).log() + 0.1 * normal(channels, states)).exp()
    given = [normal(batch, length, channels), dt, rates, normal(batch, length, states), normal(batch, length, states)]
    return [v.to(dtype).requires_grad_(requires_grad) for v in [*given, normal(channels)]]


@every_form
@pytest.mark.parametrize("length", [1, 2, 4, 5, 7, 8, 9, 31, 32, 33, 40, 63, 121, 197])
def test_it_is_the_recurrence_and_so_is_every_gradient(length, scan):
    args = inputs(length, requires_grad=True)
    expected, found = selective_scan_reference(*args), scan(*args)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn(expected.shape, dtype=expected.dtype)
    for a, b in zip(*(torch.autograd.grad(y, args, weight) for y in (expected, found)), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


@every_form
def test_gradcheck(scan):
    args = inputs(35, batch=1, channels=2, states=2, requires_grad=True)
    assert torch.autograd.gradcheck(scan, args)


def test_the_images_are_taken_in_parts(monkeypatch):
    """However many images the cache has room for, the numbers are the same."""
    args = inputs(21, batch=5, requires_grad=True)
    expected = selective_scan(*args)
    grads = torch.autograd.grad(expected.sum(), args)
    monkeypatch.setattr(selective_scan_blocks, "BLOCK_NUMBERS", 2 * 16 * 15)
    out = selective_scan(*args)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(grads, torch.autograd.grad(out.sum(), args), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


@every_form
def test_no_images(scan):
    leaves = inputs(5, requires_grad=True)
    out = scan(*(v[:0] if v.dim() == 3 else v for v in leaves))
    assert out.shape == (0, 5, 5)
    assert all((grad == 0).all() for grad in torch.autograd.grad(out.sum(), leaves))


def test_the_operator_keeps_torchs_rules():
    """Schema, tensors without data, autograd and compiled graphs with dynamic shapes agree with what runs."""
    args = inputs(20, torch.float32, requires_grad=True)
    torch.library.opcheck(torch.ops.dart.selective_scan_blocks.default, args)
    torch.library.opcheck(torch.ops.dart.selective_scan_blocks.default, (*args[:5], None))


def test_one_graph_for_every_batch_size():
    compiled = torch.compile(lambda *args: selective_scan(*args).sin(), fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 3):
            args = inputs(20, torch.float32, batch=batch, requires_grad=True)
            for i in (0, 1, 3, 4):
                torch._dynamo.mark_dynamic(args[i], 0)  # refuses a graph that is of one size
            grads = [torch.autograd.grad(y.sum(), args) for y in (compiled(*args), selective_scan(*args).sin())]
            for a, b in zip(*grads, strict=True):
                torch.testing.assert_close(a, b)


@every_form
def test_without_a_direct_path(scan):
    *args, _ = inputs(20)
    torch.testing.assert_close(scan(*args), selective_scan_reference(*args), rtol=1e-10, atol=1e-10)


@every_form
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e3, 1e6])
def test_no_step_size_overflows(scale, scan):
    """A cumulative sum of exponents, undone by its inverse, would give infinity times zero here."""
    args = inputs(70, torch.float32)
    args[1] *= scale
    args = [v.requires_grad_() for v in args]
    out = scan(*args)
    torch.testing.assert_close(out, selective_scan_reference(*args), rtol=1e-4, atol=1e-4 * max(scale, 1))
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(out.sum(), args))


@every_form
def test_an_output_depends_on_no_later_token(scan):
    args = inputs(50)
    changed = [v.clone() for v in args]
    for i in (0, 1, 3, 4):
        changed[i][:, 30:] = 0.5
    assert torch.equal(scan(*args)[:, :30], scan(*changed)[:, :30])


@every_form
def test_half_precision_inputs_have_a_float32_state(scan):
    args = inputs(197, torch.bfloat16)
    exact = selective_scan_reference(*(v.double() for v in args))
    out = scan(*args)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-5)  # the rounding of the result, no more


def test_autocast_changes_nothing():
    args = inputs(40, torch.float32, requires_grad=True)
    plain = selective_scan(*args)
    with torch.autocast("cpu", torch.bfloat16):
        cast = selective_scan(*args)
        grads = torch.autograd.grad(cast.sum(), args)
    assert torch.equal(plain, cast)
    assert all(torch.equal(a, b) for a, b in zip(grads, torch.autograd.grad(plain.sum(), args), strict=True))


@pytest.mark.slow
def test_it_exports_with_a_dynamic_batch():
    class Scan(torch.nn.Module):
        def forward(self, *args):
            return selective_scan(*args)

    args = inputs(40, torch.float32)
    batch = torch.export.Dim("batch", max=64)
    shapes = (tuple({0: batch} if v.dim() == 3 else None for v in args),)
    program = torch.export.export(Scan(), tuple(args), dynamic_shapes=shapes)
    args = inputs(40, torch.float32, batch=3)
    torch.testing.assert_close(program.module()(*args), selective_scan_reference(*args), rtol=1e-4, atol=1e-4)
