"""sampling*.npz: the patch sampler alone, its two forms, and every gradient."""

import pytest
import torch

from dart.paper.sampling import sample_tokens, sample_two_step

from .goldens import both_precisions, check, files, load, tensor


@both_precisions
@pytest.mark.parametrize("sample", [sample_tokens, sample_two_step])
@pytest.mark.parametrize("file", files("sampling*.npz"))
def test_sampling(file, sample, dtype):
    golden = load(file)
    side = golden["patches"].shape[-1]
    given = [tensor(golden[name], dtype).requires_grad_() for name in ("img", "heights", "edges")]
    patches = sample(*given, side)
    grads = torch.autograd.grad((patches * tensor(golden["w"], dtype)).sum(), given)
    ours = {"patches": patches, "grad_img": grads[0], "grad_heights": grads[1], "grad_edges": grads[2]}
    inputs = {"img", "heights", "edges", "w"}
    if sample is sample_tokens and dtype == torch.float64:
        ours["patches_nearest2"] = sample_tokens(*given, side, along="nearest")
    else:  # half-way positions fall on either side in other arithmetic
        inputs.add("patches_nearest2")
    check(golden, ours, inputs)
