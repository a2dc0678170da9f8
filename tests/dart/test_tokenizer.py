"""Theorems of the tokenizer: uniform scores are timm's PatchEmbed, batch mates do not matter, gradients stay finite."""

import pytest
import timm
import torch
from timm.layers import PatchEmbed

import dart.models  # noqa: F401  (registers the models)
from dart.scorer import ConvScorer, scores_to_density
from dart.tokenizer import DartTokenizer, check_images

OPTIONS = [
    {},
    {"row_weight": "density"},
    {"partition": "grid"},
    {"sampling": "point"},
    {"pos_embed": "table", "norm_layer": None},
]


def build(**kwargs):
    """A tokenizer of 96 px images with a scorer that is far from uniform."""
    torch.manual_seed(0)
    kwargs = {"img_size": 96, "patch_size": 8, "in_chans": 1, "embed_dim": 24, "token_budget": 36, **kwargs}
    scorer = ConvScorer(kwargs["in_chans"])
    torch.nn.init.normal_(scorer.head.weight)
    return DartTokenizer(scorer=scorer, **kwargs)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("sampling", ["area", "point"])
@pytest.mark.parametrize("partition", ["flow", "grid"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_uniform_tokens_are_timms_patch_embed(learned, sampling, partition, dtype, tolerance):
    scorer = ConvScorer(3) if learned else None  # a new scorer is uniform
    kwargs = {"token_budget": 144, "partition": partition, "sampling": sampling}
    tokenizer = DartTokenizer(96, 8, 3, 64, scorer, pos_embed="table", norm_layer=None, **kwargs).to(dtype)
    reference = PatchEmbed(96, 8, 3, 64).to(dtype)
    reference.proj.load_state_dict(tokenizer.proj.state_dict())
    images = torch.rand(2, 3, 96, 96, dtype=dtype)
    torch.testing.assert_close(tokenizer(images), reference(images), rtol=0, atol=tolerance)


@pytest.mark.parametrize("partition", ["flow", "grid"])
@pytest.mark.parametrize("size", [(64, 128), (128, 64), (24, 96)])
def test_uniform_tokens_are_timms_patch_embed_whatever_the_aspect_ratio(partition, size):
    budget = size[0] * size[1] // 64
    tokenizer = DartTokenizer(
        size, 8, 3, 16, ConvScorer(3), token_budget=budget, partition=partition, pos_embed="table", norm_layer=None
    )
    reference = PatchEmbed(size, 8, 3, 16)
    reference.proj.load_state_dict(tokenizer.proj.state_dict())
    images = torch.rand(2, 3, *size)
    torch.testing.assert_close(tokenizer(images), reference(images), rtol=0, atol=1e-4)
    assert tokenizer.grid_size == (size[0] // 8, size[1] // 8)


@pytest.mark.parametrize("options", OPTIONS)
def test_an_image_does_not_depend_on_its_batch_mates(options):
    tokenizer = build(**options).double().train()  # in training too: no batch statistics anywhere
    images = torch.rand(4, 1, 96, 96, dtype=torch.float64)
    images[1:] *= 5
    alone, together = tokenizer.inspect(images[:1]), tokenizer.inspect(images)
    torch.testing.assert_close(alone.regions[0], together.regions[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(alone.tokens[0], together.tokens[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_reaches_the_scorer(options):
    tokenizer = build(**options)
    tokenizer(torch.rand(2, 1, 96, 96)).square().sum().backward()
    assert tokenizer.scorer.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("budget", [1, 2, 5, 37, 200])
@pytest.mark.parametrize("size", [(96, 96), (64, 130), (8, 8)])
def test_any_budget_and_any_size_with_the_same_weights(options, budget, size):
    budget = min(budget, size[0] * size[1])
    out = build(**options).inspect(torch.rand(2, 1, *size), num_patches=budget)
    assert out.tokens.shape == (2, budget, 24)
    assert out.tokens.isfinite().all()
    x0, y0, x1, y1 = out.regions.unbind(-1)
    torch.testing.assert_close(((x1 - x0) * (y1 - y0)).sum(1), torch.full((2,), float(size[0] * size[1])))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("image", ["zeros", "bright", "one_token", "one_per_pixel", "one_peak"])
def test_gradients_are_finite_in_every_corner(options, image):
    tokenizer = build(**{**options, "img_size": 16})
    budget = {"one_token": 1, "one_per_pixel": 256}.get(image, 9)
    images = torch.zeros(1, 1, 16, 16)
    if image == "bright":
        images += 1e4
    if image == "one_peak":
        images[..., 3, 3] = 100.0
        torch.nn.init.normal_(tokenizer.scorer.head.weight, std=1e3)
    images.requires_grad_()
    tokenizer(images, budget).sum().backward()
    assert images.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in tokenizer.parameters() if p.grad is not None)


@pytest.mark.parametrize("options", OPTIONS)
def test_an_empty_batch_has_no_tokens(options):
    assert build(**options).inspect(torch.rand(0, 1, 96, 96)).tokens.shape == (0, 36, 24)


def test_a_row_count_can_be_chosen_at_call_time():
    regions = build().inspect(torch.rand(1, 1, 96, 96), 30, 3).regions[0]
    assert regions[:, 1].unique().numel() == 3
    pinned = build(num_rows=6)  # for its own budget only
    assert pinned.inspect(torch.rand(1, 1, 96, 96)).regions[0, :, 1].unique().numel() == 6
    assert pinned.inspect(torch.rand(1, 1, 96, 96), 4).regions[0, :, 1].unique().numel() == 2


def test_under_autocast_the_regions_are_those_of_float32():
    tokenizer = build(token_budget=100)
    images = torch.rand(2, 1, 96, 96)
    with torch.autocast("cpu", torch.bfloat16):
        out = tokenizer.inspect(images)
    assert out.regions.dtype == torch.float32
    x0, y0, x1, y1 = out.regions.unbind(-1)
    torch.testing.assert_close(((x1 - x0) * (y1 - y0)).sum(1), torch.full((2,), 96.0**2))
    assert ((x1 > x0) & (y1 > y0)).all()


def test_a_model_in_bfloat16_keeps_its_regions_apart():
    out = build(token_budget=100).bfloat16().inspect(torch.rand(2, 1, 96, 96).bfloat16())
    assert out.regions.dtype == torch.float32
    assert out.tokens.dtype == torch.bfloat16
    assert (out.regions[..., 2:] > out.regions[..., :2]).all()


def test_density_is_positive_smooth_and_keeps_its_floor():
    scores = torch.full((1, 6, 6), -1e4)
    scores[0, 2, 2] = 1e4
    density = scores_to_density(scores, floor=0.3, blur=2)
    torch.testing.assert_close(density.sum(), torch.tensor(1.0))
    assert density.min() >= 0.3 / 36 - 1e-7
    assert density.argmax() == 2 * 6 + 2
    torch.testing.assert_close(scores_to_density(scores + 7, 0.3, 2), density)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.rand(2, 3, 96, 96), r"images = \(2, 3, 96, 96\): must be \(batch, 1, height, width\)"),
        (torch.rand(1, 96, 96), r"images = \(1, 96, 96\): must be \(batch, 1, height, width\)"),
        (torch.rand(2, 1, 96, 7), r"images = 96 x 7 px: sides must be at least one patch \(8 px\)"),
        (torch.rand(2, 1, 96, 96).byte(), "images = torch.uint8: must be floating point; divide bytes by 255"),
        (torch.tensor([0.0, torch.nan])[:, None, None, None].expand(2, 1, 96, 96), r"images\[1\] = NaN or infinity"),
    ],
)
def test_bad_images_are_refused_in_one_sentence(images, said):
    with pytest.raises(ValueError, match=said):
        build()(images)


def test_finite_pixels_are_not_refused_because_their_sum_overflows():
    images = torch.full((1, 1, 96, 96), 3e37)
    assert images.sum().isinf()
    check_images(images, in_chans=1, patch_size=8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_rows": 0}, r"num_rows = 0: must be from 1 to num_patches \(36\)"),
        ({"num_rows": 50}, r"num_rows = 50: must be from 1 to num_patches \(36\)"),
        ({"num_rows": 5, "partition": "grid"}, "num_rows = 5: a grid of 36 tokens needs a divisor; try 4"),
        ({"num_rows": 36**0.5}, "num_rows = 6.0: must be a whole number"),
        ({"num_rows": 6.0, "partition": "grid"}, "num_rows = 6.0: must be a whole number"),
        ({"score_blur": -1}, "score_blur = -1: must be at least 0"),
        ({"score_blur": 1.5}, "score_blur = 1.5: must be a whole number"),
        ({"score_floor": 0}, "score_floor = 0: must be above 0"),
        ({"token_budget": 3.5}, "token_budget = 3.5: must be a whole number"),
        ({"patch_size": (8, 4)}, r"patch_size = \(8, 4\): must be square"),
        ({"img_size": 4}, r"img_size = 4 x 4 px: sides must be at least one patch \(8 px\)"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        build(**options)


@pytest.mark.parametrize("budget", [0, -3, 96 * 96 + 1])
def test_a_budget_out_of_range_is_refused(budget):
    said = f"token_budget = {budget}: must be from 1 to the image's 9216 pixels"
    with pytest.raises(ValueError, match=said):
        build(token_budget=budget)
    with pytest.raises(ValueError, match=said):
        build()(torch.rand(1, 1, 96, 96), budget)
    with pytest.raises(ValueError, match=said):
        timm.create_model("dart_vit_micro", token_budget=budget)
