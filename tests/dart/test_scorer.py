"""Theorems of the scorers: uniform at first, blind to batch mates, for any image, and every bad choice one sentence."""

import os
import re
import subprocess
import sys

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, GroupNormAct
from torch.nn.modules.batchnorm import _BatchNorm

import dart.models  # noqa: F401  (registers the models)
from dart.features import NAMES
from dart.registry import PLAIN_SCORERS, SCORERS
from dart.scorer import build_scorer, scored_size

PAPERS = [name for name in NAMES if name not in PLAIN_SCORERS]


def build(name: str = "mobilenetv3_small", in_chans: int = 3, **kwargs):
    """A scorer that is far from uniform, its batch norms (if any) far from the identity."""
    torch.manual_seed(0)
    scorer = build_scorer(name, in_chans, **{"score_input": 64, **kwargs})
    torch.nn.init.normal_(scorer.head[-1].weight)
    for module in scorer.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return scorer


def test_the_registrys_names_are_those_that_can_be_built():
    assert set(SCORERS) == set(NAMES)


@pytest.mark.parametrize("name", [*PAPERS, "timm/resnet18"])
def test_before_training_scores_are_zero_one_per_16_px_of_the_copy(name):
    scorer = build_scorer(name, 3)
    with torch.no_grad():
        assert torch.equal(scorer(torch.rand(1, 3, 448, 448)), torch.zeros(1, 14, 14))


@pytest.mark.parametrize("kwargs", [{}, {"frozen": True}, {"norm": "batch"}], ids=["scratch", "frozen", "fine-tuned"])
@pytest.mark.parametrize("name", ["mobilenetv3_small", "mnasnet_050", "squeezenet1_1", "timm/resnet10t"])
def test_an_image_does_not_depend_on_its_batch_mates_in_training(name, kwargs):
    scorer = build(name, **kwargs).double().train()
    images = torch.rand(3, 3, 96, 64, dtype=torch.float64)
    images[1:] *= 5
    before = {key: value.clone() for key, value in scorer.state_dict().items()}
    alone, together = scorer(images[:1]), scorer(images)
    assert alone.std() > 0
    torch.testing.assert_close(alone[0], together[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dict(scorer.state_dict()), before, rtol=0, atol=0)
    torch.testing.assert_close(scorer.eval()(images), together, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kwargs", [{}, {"norm": "batch"}, {"stage": 2}])
@pytest.mark.parametrize("name", ["efficientnet_b0", "timm/resnet10t"])
def test_every_parameter_of_trained_features_learns(name, kwargs):
    scorer = build(name, **kwargs).train()
    scorer(torch.rand(2, 3, 64, 64)).square().sum().backward()
    assert not [key for key, parameter in scorer.named_parameters() if parameter.grad is None]
    assert all(torch.isfinite(parameter.grad).all() for parameter in scorer.parameters())


def test_frozen_features_learn_nothing_and_their_head_does():
    scorer = build(frozen=True).train()
    assert not any(module.training for module in scorer.features.modules())
    scorer(torch.rand(2, 3, 64, 64, requires_grad=True)).sum().backward()
    assert all(parameter.grad is None for parameter in scorer.features.parameters())
    assert scorer.head[-1].weight.grad.abs().max() > 0


def test_a_stage_gives_its_own_resolution():
    images = torch.rand(1, 3, 64, 64)
    assert [build("timm/resnet10t", stage=s)(images).shape[1:] for s in (1, 2, 4)] == [(16, 16), (8, 8), (4, 4)]
    assert build("timm/vit_tiny_patch16_224", score_input=96, stage=0)(images).shape[1:] == (6, 6)


@pytest.mark.parametrize("score_input", [64, None])
@pytest.mark.parametrize("size", [(8, 8), (16, 200), (448, 30), (97, 131)])
def test_any_image_down_to_one_patch_and_any_channels(size, score_input):
    for in_chans, name in [(1, "squeezenet1_1"), (4, "mnasnet_050"), (2, "mobilenetv3_small")]:
        scores = build(name, in_chans, score_input=score_input)(torch.rand(2, in_chans, *size))
        assert scores.ndim == 3
        assert torch.isfinite(scores).all()


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("kwargs", [{}, {"frozen": True}])
def test_constant_images_have_finite_scores_and_gradients(value, kwargs):
    scorer = build(**kwargs).train()
    scorer(torch.full((2, 3, 64, 64), value)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in scorer.parameters() if p.grad is not None)


@pytest.mark.parametrize("side", [30, 96, 224, 448, 1000])
def test_square_images_are_scored_at_the_size_that_was_asked_for(side):
    assert scored_size(side, side, 224) == (224, 224)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (300, 900)])
def test_the_scored_copy_keeps_the_shape_and_the_budget_of_pixels(size):
    height, width = scored_size(*size, 224)
    assert height % 32 == width % 32 == 0
    assert height / width == pytest.approx(size[0] / size[1], rel=0.25)
    assert height * width == pytest.approx(224**2, rel=0.2)


def test_the_scored_copy_is_not_aliased():
    checkers = (torch.arange(448)[:, None] + torch.arange(448)) % 2 * 2.0 - 1
    copy = build(score_input=224).resize(checkers.expand(1, 3, -1, -1))
    assert copy[..., 4:-4, 4:-4].abs().max() < 1e-6


def test_group_norms_keep_activations_and_affine():
    batch, group = build_scorer("timm/resnet18", 3, norm="batch"), build_scorer("timm/resnet18", 3, norm="group")
    assert not [module for module in group.modules() if isinstance(module, _BatchNorm)]
    old = {
        key: value for key, value in batch.state_dict().items() if ".bn" in key and value.ndim and "running" not in key
    }
    new = group.state_dict()
    assert all(torch.equal(value, new[key]) for key, value in old.items())
    fused = [m for m in build_scorer("mobilenetv3_small", 3, norm="batch").modules() if isinstance(m, BatchNormAct2d)]
    kept = [m for m in build_scorer("mobilenetv3_small", 3).modules() if isinstance(m, GroupNormAct)]
    assert [type(m.act) for m in kept] == [type(m.act) for m in fused]


def test_a_fine_tuned_scorers_weights_load_without_its_download():
    tuned, fresh = build(norm="batch"), build_scorer("mobilenetv3_small", 3, norm="batch", score_input=64)
    fresh.load_state_dict(tuned.state_dict(), strict=True)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(fresh.eval()(images), tuned.eval()(images))


def test_bfloat16_weights_and_images():
    scores = build().to(torch.bfloat16).eval()(torch.rand(1, 3, 100, 100, dtype=torch.bfloat16))
    assert scores.dtype == torch.bfloat16
    assert torch.isfinite(scores).all()


def test_a_models_own_initialisation_leaves_the_scorer_alone():
    torch.manual_seed(0)
    model = timm.create_model("dart_deit_tiny", scorer="timm/resnet18", depth=1)
    # timm draws convolutions of a ResNet with variance 2 / fan-out, and layers of a ViT with 0.02 squared.
    for name, module in model.patch_embed.scorer.features.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
    assert torch.count_nonzero(model.patch_embed.scorer.head[-1].weight) == 0


@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        (
            "mobilnetv3_small",
            {},
            "scorer = 'mobilnetv3_small': unknown; did you mean 'mobilenetv3_small'. known: conv, ",
        ),
        ("timm/resnet81", {}, "scorer = 'timm/resnet81': unknown; did you mean 'timm/resnet"),
        ("resnet18", {}, "scorer = 'resnet18': unknown; did you mean 'timm/resnet18'. known"),
        ("timm/resnet18", {"stage": 9}, "stage = 9, .*out of range"),
        ("squeezenet1_1", {"stage": 1}, "stage = 1: squeezenet1_1 is used whole; leave it out"),
        ("mobilenetv3_small", {"score_input": 100}, "score_input = 100: must be a multiple of 32 px; try 224"),
        ("mobilenetv3_small", {"score_input": 0}, "score_input = 0: must be"),
        ("mobilenetv3_small", {"score_input": "half"}, "score_input = 'half': must be .*; try 224, or 'full'"),
        ("mobilenetv3_small", {"norm": "layer"}, "norm = 'layer': unknown; known: batch, group"),
        ("timm/vit_tiny_patch16_224", {"score_input": None}, "score_input = None or .* reads one size only; try 224"),
        ("conv", {"score_input": 64}, "score_input = 64: conv reads the image as it is; leave it out"),
        ("conv", {"pretrained": True}, "scorer = 'conv': has no published weights"),
        ("timm/mnasnet_050", {"pretrained": True}, "pretrained = True: .* cannot be had .*pretrained=False"),
    ],
)
def test_bad_choices_are_refused_in_one_sentence(name, kwargs, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        build_scorer(name, 3, **kwargs)
    assert "\n" not in str(caught.value)


FAILED_DOWNLOAD = (
    "pretrained = True: the weights of scorer '{}' cannot be had .*train from scratch with pretrained=False$"
)


def test_a_failing_download_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(ValueError, match=FAILED_DOWNLOAD.format("squeezenet1_1")):
        build_scorer("squeezenet1_1", 3, pretrained=True)


@pytest.mark.slow
def test_a_failing_download_from_the_hub_is_one_sentence(tmp_path):
    code = "from dart.scorer import build_scorer\ntry: build_scorer('mobilenetv3_small', 3, pretrained=True)\n"
    code += "except ValueError as error: print(error)"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}  # read when the hub's code is imported
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True)
    assert re.fullmatch(FAILED_DOWNLOAD.format("mobilenetv3_small"), done.stdout.strip()), done.stdout + done.stderr
