"""Theorems of the control scores: constant is the uniform grid, random is of the picture alone, gradient of edges."""

import pytest
import timm
import torch

import dart.models  # noqa: F401 (registers the models)
from dart.baselines.scores import CONTROLS, GradientScores, RandomScores, hash_images, score_grid, scramble
from dart.cost import count_macs
from dart.registry import CONTROL_SCORERS
from dart.scorer import build_scorer, scores_to_density
from dart.video import build_video_scorer

every_control = pytest.mark.parametrize("name", CONTROL_SCORERS)


def pictures(batch: int = 3, side: int = 96, **kwargs) -> torch.Tensor:
    return torch.rand(batch, 1, side, side, generator=torch.Generator().manual_seed(0), **kwargs)


def build(name: str, **kwargs) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("dart_vit_micro", scorer=name, in_chans=1, num_classes=10, **kwargs).eval()


def test_the_registrys_names_are_those_that_can_be_built():
    assert set(CONTROL_SCORERS) == set(CONTROLS)


@every_control
def test_nothing_is_learned_and_nothing_is_counted(name):
    """What a control costs beyond the uniform grid is no multiply-accumulate and no parameter."""
    model, uniform = build(name), timm.create_model("uniform_vit_micro", in_chans=1, num_classes=10).eval()
    assert not list(model.patch_embed.scorer.parameters())
    assert count_macs(model, (1, 1, 96, 96)) == count_macs(uniform, (1, 1, 96, 96))
    uniform.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize("partition", ["flow", "grid"])
@pytest.mark.parametrize("budget", [36, 20, 7])
def test_constant_scores_are_the_uniform_grid(partition, budget):
    model = build("constant", partition=partition, token_budget=budget).double()
    uniform = timm.create_model(
        "uniform_vit_micro", in_chans=1, num_classes=10, partition=partition, token_budget=budget
    )
    uniform.double().eval().load_state_dict(model.state_dict())
    images = pictures(dtype=torch.float64)
    torch.testing.assert_close(model(images), uniform(images), rtol=0, atol=1e-9)


@every_control
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_images_scores_are_its_own(name, dtype):
    """Bit for bit: whatever its batch mates, its place in the batch, and whatever was computed before."""
    scorer, images = build_scorer(name, 1), pictures(5, dtype=dtype)
    together = scorer(images)
    assert together.dtype == dtype
    assert together.shape == (5, 12, 12)
    torch.manual_seed(1)
    assert torch.equal(together, scorer(images))
    assert torch.equal(together.flip(0), scorer(images.flip(0)))
    assert all(torch.equal(together[i : i + 1], scorer(images[i : i + 1])) for i in range(5))


@every_control
def test_its_tokens_are_its_own(name):
    model, images = build(name).double().train(), pictures(4, dtype=torch.float64)
    images[1:] *= 5
    torch.testing.assert_close(model(images[:1])[0], model(images)[0], rtol=0, atol=1e-9)


def test_random_scores_differ_between_pictures_and_ignore_what_is_in_them():
    images = pictures(400)
    scores = RandomScores()(images)
    assert len(hash_images(images).unique()) == 400
    shifted = RandomScores()(images.roll(1, -1))  # the same things, elsewhere
    for other in (shifted, RandomScores()(images + 0.01), scores.roll(1, 0)):
        correlation = torch.corrcoef(torch.stack([scores.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 0.05
    # No place is preferred: over many pictures all cells have the same mean, four deviations being far.
    assert (scores.mean(0).abs() < 4 * scores.std() / 400**0.5).all()
    # What cannot be told apart once rounded is the same picture: such a step is a hundredth of a grey level.
    assert torch.equal(RandomScores()(images), RandomScores()((images * 1024).round() / 1024))


def test_the_hash_is_uniform():
    values = scramble(torch.arange(100_000))
    assert values.min() >= 0
    assert values.max() < 2**31
    assert len(values.unique()) > 99_990
    counts = torch.bincount(values * 16 // 2**31, minlength=16)
    assert ((counts - 6250).abs() < 5 * 6250**0.5).all()


def test_gradient_scores_find_edges_and_do_not_know_brightness_or_contrast():
    images = torch.zeros(1, 1, 96, 96, dtype=torch.float64)
    images[..., 40:56, 40:56] = 1  # its edges lie in the cells 5 and 6 of both axes, or next to them
    scores = GradientScores()(images)
    density = scores_to_density(scores, 0.3, 0)[0]
    assert density[4:8, 4:8].sum() > 0.69
    torch.testing.assert_close(density, density.T, rtol=0.2, atol=1e-3)
    again = scores_to_density(GradientScores()(3 * images - 5), 0.3, 0)[0]
    torch.testing.assert_close(again, density, rtol=1e-4, atol=1e-6)


def test_gradient_scores_of_a_blank_image_are_uniform():
    density = scores_to_density(GradientScores()(torch.full((2, 3, 64, 64), 0.7)), 0.3, 1)
    torch.testing.assert_close(density, torch.full_like(density, 1 / density[0].numel()))


@pytest.mark.parametrize("size", [(96, 96), (448, 448), (32, 200), (8, 8), (300, 20)])
@every_control
def test_any_size_has_the_grid_of_the_learned_scorers(name, size):
    images = torch.rand(2, 3, *size)
    grid = score_grid(images)
    assert build_scorer(name, 3)(images).shape == (2, *grid)
    if size == (96, 96):
        assert grid == build_scorer("conv", 3)(images).shape[1:]
    if size == (448, 448):
        assert grid == (14, 14)


def test_what_a_control_does_not_have_is_one_sentence():
    with pytest.raises(ValueError, match=r"scorer = 'random': has no published weights, .*; leave them out"):
        build_scorer("random", 3, pretrained=True)
    with pytest.raises(ValueError, match="scorer = 'gradient': a control that scores images"):
        build_video_scorer("gradient", 3)
    with pytest.raises(ValueError, match="scorer = 'conv': uniform_vit_nano has no scorer; leave it out"):
        timm.create_model("uniform_vit_nano", scorer="conv")
