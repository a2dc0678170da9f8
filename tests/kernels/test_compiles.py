"""The Triton kernels compile for GPUs, in the tiles that are launched: what the interpreter cannot tell.

Triton's compiler brings its own assembler, so no GPU is needed. It runs in a process of its own, for the reason that
`equality.py` gives.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CODE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import torch
from dart.kernels import causal_conv1d_triton as conv, selective_scan_triton as scan
from dart.kernels import embed_regions_triton as embed, invert_cdf_triton as invert, sample_regions_triton as sample


def compile(kernel, pointers, constants, **options):
    types = dict.fromkeys(kernel.arg_names, "i32") | pointers | dict.fromkeys(constants, "constexpr")
    indices = {name: (kernel.arg_names.index(name),) for name in kernel.arg_names}
    values = {indices[name]: value for name, value in constants.items()}
    aligned = {indices[name]: [["tt.divisibility", 16]] for name in pointers}
    source = ASTSource(kernel, types, values, aligned)
    done = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    assert done.metadata.shared <= 99 * 1024, f"{done.metadata.shared} bytes of shared memory: small GPUs have 99 KB"


fp32 = "*fp32"
for block_g, block_k in ((16, 16), (512, 8)):
    tile = {"BLOCK_G": block_g, "BLOCK_K": block_k}
    ends = {"mass": fp32, "levels": fp32}
    compile(invert._invert_kernel, ends | {"out": fp32}, tile, num_warps=1)
    grads = {"grad": fp32, "grad_mass": fp32, "grad_levels": fp32}
    compile(invert._invert_backward_kernel, ends | grads, tile, num_warps=1)
for dtype, size in (("*bf16", 2), ("*fp32", 4)):
    for area in (False, True):
        constants = {"CHANNELS": 3, "PATCH": 16, "AREA": area}
        block = constants | {"BLOCK": 256}
        gather = {"images": dtype, "regions": fp32}
        compile(sample._sample_kernel, gather | {"out": dtype}, block)
        compile(sample._grad_regions_kernel, gather | {"grad": dtype, "out": fp32}, block)
        compile(sample._grad_images_kernel, {"grad": dtype, "regions": fp32, "out": fp32}, block)
        for tokens, dim in ((196, 192), (50176, 768)):
            tile = embed._tile(tokens, dim, size)
            options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
            constants |= tile | {"HAS_BIAS": True, "WIDE": False}
            pointers = gather | {"weight": dtype, "bias": dtype, "out": dtype}
            compile(embed._embed_kernel, pointers, constants, **options)
    for dim, states in ((96, 8), (768, 16)):
        _, _, tile = scan._launch(torch.empty(1, 197, dim), torch.empty(dim, states))
        options = {"num_warps": tile.pop("num_warps")}
        tile |= {"HAS_D": True}
        given = {"x": dtype, "dt": fp32, "rates": fp32, "enter": dtype, "read": dtype, "direct": fp32, "starts": fp32}
        compile(scan._scan_kernel, given | {"y": dtype}, tile, **options)
        sums = dict.fromkeys(("to_rates", "to_enter", "to_read", "to_direct"), fp32)
        grads = {"grad": dtype, "to_x": dtype, "to_dt": fp32} | sums
        compile(scan._scan_backward_kernel, given | grads, tile, **options)
    taps = {"WIDTH": 4, "TOKENS": conv.TOKENS, "CHANNELS": conv.CHANNELS}
    given = {"x": dtype, "weight": fp32}
    compile(conv._conv_kernel, given | {"bias": fp32, "out": dtype}, taps | {"HAS_BIAS": True})
    compile(conv._conv_backward_kernel, given | {"grad": dtype, "to_x": dtype, "parts": fp32}, taps)
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it exists for Linux only")
def test_kernels_compile_for_hopper(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", CODE, "90"]
    done = subprocess.run(command, env=env | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
