"""Uniform at a lower resolution is the uniform grid of fewer tokens: reading by area is resizing by area."""

import pytest
import timm
import torch
from timm.layers import PatchEmbed
from torch.nn import functional as F

import dart.models  # noqa: F401 (registers the models)

F64 = torch.float64


@pytest.mark.parametrize(("budget", "factor"), [(36, 2), (16, 3), (9, 4), (144, 1)])
def test_larger_regions_are_the_patches_of_a_smaller_image(budget, factor):
    model = timm.create_model("uniform_vit_micro", in_chans=1, token_budget=budget, pos_embed="table", table_size=6)
    tokenizer = model.double().patch_embed
    patches = PatchEmbed(96 // factor, 8, 1, 64).double()
    patches.proj.load_state_dict(tokenizer.proj.state_dict())
    images = torch.rand(2, 1, 96, 96, dtype=F64)
    torch.testing.assert_close(tokenizer(images), patches(F.avg_pool2d(images, factor)), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("side", "budget"), [(176, 121), (224, 196), (320, 400)])
def test_the_plain_grids_of_the_imagenet_controls_are_patch_embeds(side, budget):
    kwargs = {"img_size": side, "token_budget": budget, "depth": 1, "embed_dim": 48, "num_heads": 3, "sampling": "area"}
    tokenizer = timm.create_model("uniform_deit_small", **kwargs).double().patch_embed
    patches = PatchEmbed(side, 16, 3, 48).double()
    patches.proj.load_state_dict(tokenizer.proj.state_dict())
    images = torch.rand(1, 3, side, side, dtype=F64)
    torch.testing.assert_close(tokenizer(images), patches(images), rtol=0, atol=1e-10)
