"""The Triton kernels on CUDA: `tests/kernels/equality*.py` on this device, and what only a device can show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dart.kernels import causal_conv1d, embed_regions, invert_cdf, sample_regions, selective_scan
from dart.kernels.dispatch import use_triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("tests", ["equality.py", "equality_scan.py"])
def test_triton_equals_its_twins(tests: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/kernels/{tests}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def _tokens(images: Tensor, mass: Tensor, weight: Tensor) -> Tensor:
    edges = invert_cdf(mass, torch.linspace(0.05, 0.95, 15, device=mass.device))  # (B, 14, 15)
    x0, x1 = edges[..., :-1] * 32, edges[..., 1:] * 32
    y0 = torch.arange(14, device=mass.device)[:, None] * 32.0 + torch.zeros_like(x0)
    regions = torch.stack([x0, y0, x1, y0 + 32], -1).flatten(1, 2)
    return embed_regions(images, regions, weight) + sample_regions(images, regions, 16).mean((-1, -2, -3))[..., None]


def test_no_host_synchronisation_forward_or_backward() -> None:
    images = torch.randn(2, 3, 448, 448, device="cuda", dtype=torch.bfloat16)
    mass = torch.rand(2, 14, 14, device="cuda").requires_grad_()
    weight = torch.randn(384, 3, 16, 16, device="cuda", dtype=torch.bfloat16).requires_grad_()
    assert use_triton(images, mass, weight)
    _tokens(images, mass, weight).sum().backward()  # compiles, which may synchronise
    torch.cuda.set_sync_debug_mode("error")
    try:
        _tokens(images, mass, weight).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert mass.grad is not None
    assert mass.grad.isfinite().all()


def _mixed(x: Tensor, dt: Tensor, rates: Tensor, b: Tensor, c: Tensor, weight: Tensor) -> Tensor:
    return selective_scan(causal_conv1d(x, weight), dt, rates, b, c)


def _mixer_inputs() -> list[Tensor]:
    """x, dt, A, B, C as Vim-Ti has them, and the taps of a convolution."""
    x, b, c = (torch.randn(2, 197, n, device="cuda", dtype=torch.bfloat16) for n in (384, 16, 16))
    dt, rates = torch.rand(2, 197, 384, device="cuda") * 0.1, -torch.rand(384, 16, device="cuda") - 0.5
    return [v.requires_grad_() for v in (x, dt, rates, b, c, torch.randn(384, 4, device="cuda"))]


def test_a_scan_waits_for_nothing() -> None:
    inputs = _mixer_inputs()
    assert use_triton(*inputs)
    _mixed(*inputs).sum().backward()  # compiles, which may synchronise
    torch.cuda.set_sync_debug_mode("error")
    try:
        _mixed(*inputs).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(v.grad is not None and v.grad.isfinite().all() for v in inputs)


def test_a_scan_has_the_same_bits_every_time() -> None:
    """Forward and backward: no sum depends on which program comes first."""
    inputs = _mixer_inputs()
    first, again = (torch.autograd.grad(_mixed(*inputs).sum(), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_captured_scan_replays() -> None:
    inputs = [v.detach() for v in _mixer_inputs()]
    expected = _mixed(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _mixed(*inputs)
    graph.replay()
    torch.testing.assert_close(captured, expected)


def test_a_captured_graph_replays() -> None:
    images = torch.randn(2, 3, 448, 448, device="cuda", dtype=torch.bfloat16)
    mass = torch.rand(2, 14, 14, device="cuda")
    weight = torch.randn(384, 3, 16, 16, device="cuda", dtype=torch.bfloat16)
    expected = _tokens(images, mass, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _tokens(images, mass, weight)
    graph.replay()
    torch.testing.assert_close(captured, expected)


def test_images_beyond_two_billion_numbers() -> None:
    """Offsets between images do not fit 32 bits."""
    images = torch.zeros(3600, 3, 448, 448, device="cuda", dtype=torch.bfloat16)
    images[-1] = 1
    regions = torch.tensor([[[3.0, 5.0, 101.0, 77.0]]], device="cuda")
    assert sample_regions(images, regions, 16)[:, 0].float().mean((1, 2, 3)).tolist() == [0] * 3599 + [1]
