"""The operations worth a kernel of their own: one public function each, Triton on CUDA, plain PyTorch elsewhere."""

from dart.kernels.causal_conv1d import causal_conv1d
from dart.kernels.embed_regions import embed_regions
from dart.kernels.invert_cdf import invert_cdf
from dart.kernels.sample_regions import sample_regions
from dart.kernels.selective_scan import selective_scan

__all__ = ["causal_conv1d", "embed_regions", "invert_cdf", "sample_regions", "selective_scan"]
