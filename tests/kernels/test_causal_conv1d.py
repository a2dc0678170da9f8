"""The causal convolution is torch's depthwise one, without the tokens to come."""

import pytest
import torch
from torch.nn import functional as F

from dart.kernels.causal_conv1d import causal_conv1d, causal_conv1d_reference


def inputs(length, width=4, dtype=torch.float64, batch=2, channels=5, requires_grad=False):
    """x, weight and bias."""
    generator = torch.Generator().manual_seed(length)
    shapes = (batch, length, channels), (channels, width), (channels,)
    given = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [v.to(dtype).requires_grad_(requires_grad) for v in given]


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 63])
def test_it_is_torchs_convolution_and_so_is_every_gradient(length, width):
    x, weight, bias = args = inputs(length, width, requires_grad=True)
    conv = F.conv1d(x.mT, weight[:, None], bias, padding=width - 1, groups=5)[..., :length].mT
    for found in (causal_conv1d(*args), causal_conv1d_reference(*args)):
        torch.testing.assert_close(found, conv, rtol=1e-12, atol=1e-12)
        grads = [torch.autograd.grad(y.sin().sum(), args, retain_graph=True) for y in (conv, found)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    assert torch.autograd.gradcheck(causal_conv1d, inputs(6, batch=1, channels=2, requires_grad=True))


def test_without_a_bias():
    x, weight, _ = inputs(9)
    torch.testing.assert_close(causal_conv1d(x, weight), causal_conv1d(x, weight, torch.zeros(5, dtype=x.dtype)))


def test_an_output_depends_on_no_later_token():
    x, *parameters = inputs(20)
    changed = torch.cat([x[:, :11], torch.zeros_like(x[:, 11:])], 1)
    assert torch.equal(causal_conv1d(x, *parameters)[:, :11], causal_conv1d(changed, *parameters)[:, :11])


def test_half_precision_is_summed_in_float32():
    args = inputs(63, dtype=torch.bfloat16)
    exact = causal_conv1d(*(v.double() for v in args))
    out = causal_conv1d(*args)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-6)  # the rounding of the result, no more


def test_the_operator_keeps_torchs_rules():
    args = inputs(6, dtype=torch.float32, requires_grad=True)
    torch.library.opcheck(torch.ops.dart.causal_conv1d_shifted.default, args)
    torch.library.opcheck(torch.ops.dart.causal_conv1d_shifted.default, (*args[:2], None))
