"""The operations worth a kernel of their own: one public function each, Triton on CUDA, plain PyTorch elsewhere."""

from dart.kernels.embed_regions import embed_regions
from dart.kernels.invert_cdf import invert_cdf
from dart.kernels.sample_regions import sample_regions

__all__ = ["embed_regions", "invert_cdf", "sample_regions"]
