"""Theorems of `dart.deploy`: the optimised model answers as the plain one does, exported too."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import dart.models  # noqa: F401  (registers the models)
from dart.deploy import fold_norms, optimize_for_inference
from dart.scorer import build_scorer

# A DART-DeiT in everything but its width and depth, at the size of a test; and one of paper mode.
DEIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10, "token_budget": 20}
INVARIANT = {**DEIT, "img_size": 64, "patch_size": 8, "table_size": 4, "score_input": 64, "frozen_scorer": True}
PAPER = {**DEIT, "mode": "paper", "score_input": "224"}
MODELS = {
    "default": ("dart_vit_nano", {"num_classes": 10, "img_size": 48}, 48),
    "invariant": ("dart_deit_tiny", INVARIANT, 64),
    "area": ("dart_deit_tiny", {**INVARIANT, "sampling": "area", "partition": "grid", "token_budget": 16}, 64),
    "paper": ("dart_deit_tiny", PAPER, 448),
}


def build(kind: str) -> tuple[nn.Module, torch.Tensor]:
    """A model in eval mode, far from uniform, and a batch for it."""
    torch.manual_seed(0)
    name, options, side = MODELS[kind]
    model = randomise(timm.create_model(name, **options)).eval()
    return model, torch.rand(2, 3, side, side)


def randomise(module: nn.Module) -> nn.Module:
    """Batch norms far from the identity; zero weights (the last ones of scorers) drawn."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
        elif isinstance(part, nn.Conv2d) and not part.weight.any():
            nn.init.normal_(part.weight)
    return module


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, _BatchNorm) for part in module.modules())


def assert_near(actual, expected, tolerance=1e-5):
    """Within `tolerance` of the largest value."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small", "mobilenetv3_large", "mnasnet_050", "efficientnet_b0", "timm/resnet10t"]
)
def test_folded_norms_change_nothing(name):
    torch.manual_seed(0)
    scorer = randomise(build_scorer(name, 3, frozen=True, score_input=96)).eval()
    before = copy.deepcopy(scorer.state_dict())
    ready = optimize_for_inference(scorer)
    assert norms(scorer) > 0
    assert norms(ready) == 0
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert_near(ready(images), scorer(images))
    torch.testing.assert_close(dict(scorer.state_dict()), dict(before), rtol=0, atol=0)


class Branches(nn.Module):
    """A norm whose convolution is read elsewhere too, one whose convolution is called twice, and a plain pair."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.conv2, self.norm2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.plain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False), nn.ReLU())

    def forward(self, x):
        y = self.conv1(x)
        return self.plain(self.conv2(self.norm2(self.conv2(self.norm1(y) + y))))


class Choice(nn.Module):
    """Cannot be traced: which way it goes depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Branches()

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else x


@pytest.mark.parametrize("module", [Branches(), Choice()])
def test_only_norms_that_can_be_folded_are(module):
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
    ready = optimize_for_inference(module)
    assert (norms(module.eval()), norms(ready)) == (3, 2)
    images = torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        assert_near(ready(images), module(images))


def test_a_module_in_training_mode_is_not_folded():
    with pytest.raises(ValueError, match=r"training = True: .* call eval\(\) first"):
        fold_norms(Branches().train())


@pytest.mark.parametrize("kind", MODELS)
def test_an_optimised_model_gives_the_same_logits(kind):
    model, images = build(kind)
    ready = optimize_for_inference(model.train())
    assert type(ready) is type(model)
    assert norms(ready) == 0
    assert not any(module.training for module in ready.modules())
    assert not any(parameter.requires_grad for parameter in ready.parameters())
    assert model.training
    four_d = [p for p in ready.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in four_d)
    with torch.no_grad():
        assert_near(ready(images), model.eval()(images), 1e-4)  # partitions amplify rounding a little


@pytest.mark.slow
def test_an_optimised_model_of_paper_mode_runs_in_onnxruntime(tmp_path):
    """The other options are in tests/dart/test_deployment.py."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, images = build("paper")
    model = optimize_for_inference(model)
    path = tmp_path / "model.onnx"
    with torch.no_grad():
        batch = torch.export.Dim("batch", max=64)
        program = torch.onnx.export(model, (images,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
        program.save(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        more = torch.cat([images, images.flip(3), images.flip(2)])
        (logits,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
        assert_near(torch.from_numpy(logits), model(more), 1e-3)
