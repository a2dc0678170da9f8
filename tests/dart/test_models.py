"""Theorems of the models: DART starts as its uniform twin, learns where to look, and keeps timm's contract."""

import pytest
import timm
import torch
from timm.layers import PatchEmbed

import dart.models
from dart.registry import VARIANTS
from dart.scorer import scores_to_density


def build(name: str, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 10, "in_chans": 1, "token_budget": 36, **kwargs})


def randomise_scorer(model) -> None:
    generator = torch.Generator().manual_seed(1)
    head = model.patch_embed.scorer.head
    head.weight.data = torch.randn(head.weight.shape, generator=generator)


def test_every_model_is_registered_with_timm():
    names = [f"{kind}_vit_{variant}" for kind in ("dart", "uniform") for variant in VARIANTS]
    assert set(names) <= set(timm.list_models())


@pytest.mark.parametrize("pos_embed", ["geometry", "table"])
def test_before_training_dart_is_its_uniform_twin(pos_embed):
    dart_model = build("dart_vit_micro", pos_embed=pos_embed).eval()
    uniform = build("uniform_vit_micro", pos_embed=pos_embed).eval()
    missing = uniform.load_state_dict(dart_model.state_dict(), strict=False)
    assert not missing.missing_keys
    images = torch.rand(3, 1, 96, 96)
    torch.testing.assert_close(dart_model(images), uniform(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dart_vit_micro", "uniform_vit_micro"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_uniform_tokens_are_timms_patch_embed(name, dtype, tolerance):
    tokenizer = build(name, token_budget=144, in_chans=3).patch_embed.to(dtype)
    reference = PatchEmbed(96, 8, 3, 64).to(dtype)
    with torch.no_grad():
        reference.proj.weight.copy_(tokenizer.proj.weight.unflatten(1, (3, 8, 8)))
        reference.proj.bias.copy_(tokenizer.proj.bias)
    images = torch.rand(2, 3, 96, 96, dtype=dtype)
    patches = tokenizer.inspect(images).patches
    torch.testing.assert_close(tokenizer.proj(patches.flatten(2)), reference(images), rtol=0, atol=tolerance)


def test_an_image_does_not_depend_on_its_batch_mates():
    model = build("dart_vit_micro").train()  # in training too: no batch statistics anywhere
    randomise_scorer(model)
    model.double()
    images = torch.rand(4, 1, 96, 96, dtype=torch.float64)
    images[1:] *= 5
    alone = model.patch_embed.inspect(images[:1])
    together = model.patch_embed.inspect(images)
    torch.testing.assert_close(alone.regions[0], together.regions[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(model(images[:1])[0], model(images)[0], rtol=0, atol=1e-9)


def test_gradient_reaches_the_scorer():
    model = build("dart_vit_micro").train()
    images = torch.rand(2, 1, 96, 96)
    model(images).square().sum().backward()
    assert model.patch_embed.scorer.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("budget", [1, 2, 5, 16, 37, 64, 200])
@pytest.mark.parametrize("size", [(96, 96), (64, 130)])
def test_any_budget_and_any_size_with_the_same_weights(budget, size):
    model = build("dart_vit_micro").eval()
    randomise_scorer(model)
    out = model.patch_embed.inspect(torch.rand(2, 1, *size), num_patches=budget)
    assert out.tokens.shape == (2, budget, 64)
    assert torch.isfinite(out.tokens).all()
    area = (out.regions[..., 2] - out.regions[..., 0]) * (out.regions[..., 3] - out.regions[..., 1])
    torch.testing.assert_close(area.sum(1), torch.full((2,), float(size[0] * size[1])))


@pytest.mark.parametrize("image", [torch.zeros(1, 1, 96, 96), torch.full((1, 1, 96, 96), 1e4)])
def test_constant_images_have_finite_gradients(image):
    model = build("dart_vit_micro").train()
    randomise_scorer(model)
    model(image).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_density_is_positive_smooth_and_keeps_its_floor():
    scores = torch.full((1, 6, 6), -1e4)
    scores[0, 2, 2] = 1e4
    density = scores_to_density(scores, floor=0.3, blur=2)
    torch.testing.assert_close(density.sum(), torch.tensor(1.0))
    assert density.min() >= 0.3 / 36 - 1e-7
    assert density.argmax() == 2 * 6 + 2
    torch.testing.assert_close(scores_to_density(scores + 7, 0.3, 2), density)


def test_weight_decay_leaves_the_scorer_alone():
    model = build("dart_vit_micro")
    scorer = {name for name, _ in model.named_parameters() if ".scorer." in name}
    assert scorer <= model.no_weight_decay()
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}


def test_state_dict_round_trip_and_head_reset():
    model = build("dart_vit_micro").eval()
    other = build("dart_vit_micro").eval()
    randomise_scorer(model)
    other.load_state_dict(model.state_dict(), strict=True)
    images = torch.rand(1, 1, 96, 96)
    assert torch.equal(model(images), other(images))
    model.reset_classifier(7)
    assert model(images).shape == (1, 7)
    assert model.forward_features(images).shape == (1, 36, 64)


@pytest.mark.parametrize("budget", [0, -3, 96 * 96 + 1])
def test_a_budget_out_of_range_is_refused(budget):
    with pytest.raises(ValueError, match=f"token_budget = {budget}: must be from 1 to the image's 9216 pixels"):
        build("dart_vit_micro", token_budget=budget)


def test_options_of_dart_do_not_reach_the_uniform_twin():
    model = dart.models.build("uniform_vit_micro", num_classes=3, scorer="conv", score_floor=0.1, score_blur=0)
    assert not [name for name, _ in model.named_parameters() if "scorer" in name]
