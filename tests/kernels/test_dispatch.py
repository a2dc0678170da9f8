"""One door, two rooms: which one an operation takes."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from dart.kernels import causal_conv1d, embed_regions, invert_cdf, sample_regions, selective_scan
from dart.kernels.dispatch import _forced, use_triton

REGIONS = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 8.0, 4.0]]])


class Tokens(nn.Module):
    """Every operation once."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 5, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        edge = invert_cdf(images.square().mean((1, 3)), torch.tensor([0.5], device=images.device))  # (B, 1)
        regions = nn.functional.pad(edge[..., None], (2, 1), value=4.0)
        tokens = embed_regions(images, regions, self.proj.weight, self.proj.bias)
        tokens = tokens + sample_regions(images, regions, 4, "point").mean()
        mixed = causal_conv1d(tokens, self.proj.weight.flatten(1)[:, :3])
        return selective_scan(mixed, tokens.abs(), -torch.ones(5, 2), tokens[..., :2], tokens[..., :2])


def test_a_cpu_takes_the_reference() -> None:
    assert not use_triton(torch.zeros(1))


def test_either_room_can_be_forced_and_is_left_again() -> None:
    with _forced("triton"):
        assert use_triton(torch.zeros(1))
        with _forced("reference"):
            assert not use_triton(torch.zeros(1))
        assert use_triton(torch.zeros(1))
    assert not use_triton(torch.zeros(1))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it exists for Linux only")
def test_cuda_takes_triton_but_not_in_float64() -> None:
    with FakeTensorMode():
        images, regions = torch.empty(2, 3, 8, 8, device="cuda"), torch.empty(1, 2, 4, device="cuda")
        assert use_triton(images, regions)
        assert not use_triton(images.double(), regions)
        assert not use_triton(images.cpu(), regions)
        assert sample_regions(images.bfloat16(), regions, 5).shape == (2, 2, 3, 5, 5)
        tokens = embed_regions(images, regions, torch.empty(7, 3, 4, 4, device="cuda", dtype=torch.bfloat16))
        assert tokens.shape == (2, 2, 7)
        assert tokens.dtype == torch.bfloat16
        edges = invert_cdf(torch.empty(2, 3, 8, device="cuda"), torch.empty(5, device="cuda"))
        assert edges.shape == (2, 3, 5)
        x = torch.empty(2, 7, 5, device="cuda", dtype=torch.bfloat16)
        b, rates = torch.empty(2, 7, 3, device="cuda"), torch.empty(5, 3, device="cuda")
        y = selective_scan(causal_conv1d(x, torch.empty(5, 4, device="cuda")), x.float(), rates, b, b)
        assert y.shape == x.shape
        assert y.dtype == torch.bfloat16


def test_exports_keep_to_plain_operators() -> None:
    with _forced("triton"):
        program = torch.export.export(Tokens(), (torch.ones(2, 3, 8, 8),))
    assert not [node for node in program.graph.nodes if "dart" in str(node.target)]
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(program.module()(images).shape, (2, 1, 5))


def test_nothing_needs_triton_on_a_cpu() -> None:
    """Triton does not exist for every system, and takes a second to import where it does."""
    code = """
import sys
sys.modules["triton"] = None  # whoever imports it fails
import torch
from dart.kernels import causal_conv1d, embed_regions, invert_cdf, selective_scan
regions = invert_cdf(torch.ones(1, 1, 8), torch.linspace(0.1, 0.9, 4))
tokens = embed_regions(torch.ones(1, 3, 8, 8), regions, torch.ones(2, 3, 4, 4))
selective_scan(causal_conv1d(tokens, torch.ones(2, 4)), tokens, -torch.ones(2, 2), tokens, tokens)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
