"""Theorems of deformable patches: at rest they are timm's PatchEmbed; moved, they stay inside; all of it learns."""

import pytest
import timm
import torch
from timm.layers import PatchEmbed
from torch.autograd import gradcheck

import dart.models  # noqa: F401 (registers the models)
from dart.baselines.deformable import MAX_SHIFT, MAX_ZOOM, DeformableTokenizer, Deformation, deform_regions
from dart.cost import count_macs
from dart.partition import uniform_regions

CPU, F64 = torch.device("cpu"), torch.float64


def build(moved: bool = True, **kwargs) -> DeformableTokenizer:
    """A tokenizer whose tokens have left the grid."""
    torch.manual_seed(0)
    kwargs = {"img_size": 96, "patch_size": 8, "in_chans": 1, "embed_dim": 24, "token_budget": 36, **kwargs}
    tokenizer = DeformableTokenizer(scorer=Deformation(kwargs["in_chans"]), **kwargs)
    if moved:
        torch.nn.init.normal_(tokenizer.scorer.head.weight, std=0.2)
    return tokenizer


@pytest.mark.parametrize("sampling", ["area", "point"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-9), (torch.float32, 1e-4)])
def test_at_rest_tokens_are_timms_patch_embed(sampling, dtype, tolerance):
    options = {"token_budget": 144, "sampling": sampling, "pos_embed": "table", "norm_layer": None, "in_chans": 3}
    tokenizer = build(moved=False, **options).to(dtype)
    reference = PatchEmbed(96, 8, 3, 24).to(dtype)
    reference.proj.load_state_dict(tokenizer.proj.state_dict())
    images = torch.rand(2, 3, 96, 96, dtype=dtype)
    torch.testing.assert_close(tokenizer(images), reference(images), rtol=0, atol=tolerance)


@pytest.mark.parametrize("budget", [36, 20, 7])
def test_before_training_it_is_its_uniform_twin(budget):
    model = timm.create_model("deformable_vit_micro", in_chans=1, num_classes=10, token_budget=budget).double().eval()
    uniform = timm.create_model("uniform_vit_micro", in_chans=1, num_classes=10, token_budget=budget).double().eval()
    assert not uniform.load_state_dict(model.state_dict(), strict=False).missing_keys
    images = torch.rand(2, 1, 96, 96, dtype=F64)
    torch.testing.assert_close(model(images), uniform(images), rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(96, 96), (64, 130), (41, 30)])
@pytest.mark.parametrize("strength", [0.3, 3.0, 1e6])
def test_wherever_they_go_they_stay_inside_and_keep_their_bounds(size, strength):
    grid = uniform_regions(36, None, size, CPU, F64)
    raw = strength * torch.randn(5, 36, 4, dtype=F64)
    x0, y0, x1, y1 = deform_regions(grid, raw, size).unbind(-1)
    assert min(x0.min(), y0.min()) >= -1e-9
    assert x1.max() <= size[1] + 1e-9
    assert y1.max() <= size[0] + 1e-9
    for new, old, whole in (
        (x1 - x0, grid[..., 2] - grid[..., 0], size[1]),
        (y1 - y0, grid[..., 3] - grid[..., 1], size[0]),
    ):
        assert ((new >= old / MAX_ZOOM - 1e-9) & (new <= (old * MAX_ZOOM).clamp(max=whole) + 1e-9)).all()


def test_shifts_and_zooms_are_what_they_say():
    regions = torch.tensor([[[32.0, 32.0, 48.0, 48.0]]], dtype=F64)
    far = 50.0  # its hyperbolic tangent is 1
    for raw, expected in (
        ([far, 0, 0, 0], [32 + 16 * MAX_SHIFT, 32, 48 + 16 * MAX_SHIFT, 48]),
        ([0, -far, 0, 0], [32, 32 - 16 * MAX_SHIFT, 48, 48 - 16 * MAX_SHIFT]),
        ([0, 0, far, -far], [24, 36, 56, 44]),
        ([far, far, far, far], [40, 40, 72, 72]),
    ):
        found = deform_regions(regions, torch.tensor([[raw]], dtype=F64), (96, 96))
        torch.testing.assert_close(found[0, 0], torch.tensor(expected, dtype=F64))


def test_the_geometry_is_differentiable_where_it_is_used():
    torch.manual_seed(0)
    grid = uniform_regions(9, None, (20, 30), CPU, F64)
    raw = (0.5 * torch.randn(2, 9, 4, dtype=F64)).requires_grad_()
    assert gradcheck(lambda r: deform_regions(grid, r, (20, 30)), raw)


def test_every_token_may_leave_the_border_at_once():
    """At rest the tokens of the border lie against it: neither moving inwards nor shrinking may be cut off there."""
    grid = uniform_regions(9, None, (30, 30), CPU, F64)
    raw = torch.zeros(1, 9, 4, dtype=F64, requires_grad=True)
    deform_regions(grid, raw, (30, 30)).square().sum().backward()
    assert (raw.grad.abs() > 1e-6).all()


def test_gradient_reaches_every_part_from_the_first_step_on():
    model = timm.create_model("deformable_vit_micro", in_chans=1, num_classes=10)
    images, optimizer = torch.rand(4, 1, 96, 96), torch.optim.SGD(model.parameters(), 0.1)
    for step in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
        silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        # Nothing flows through a last layer of zeros, which is why it is the last.
        assert all(".scorer.features." in name for name in silent)
        assert step == 0 or not silent
        optimizer.step()


def test_an_image_does_not_depend_on_its_batch_mates():
    tokenizer = build().double().train()
    images = torch.rand(4, 1, 96, 96, dtype=F64)
    images[1:] *= 5
    alone, together = tokenizer.inspect(images[:1]), tokenizer.inspect(images)
    torch.testing.assert_close(alone.regions[0], together.regions[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(alone.tokens[0], together.tokens[0], rtol=0, atol=1e-9)
    assert together.regions.std(0).max() > 0.1, "images differ in where their tokens are"


@pytest.mark.parametrize("budget", [1, 2, 37, 200])
@pytest.mark.parametrize("size", [(96, 96), (64, 130), (8, 8)])
def test_any_budget_and_any_size_with_the_same_weights(budget, size):
    budget = min(budget, size[0] * size[1])
    found = build().inspect(torch.rand(2, 1, *size), num_patches=budget)
    assert found.regions.shape == (2, budget, 4)
    assert found.tokens.isfinite().all()


def test_its_small_network_is_counted():
    """The convolutions and the last layer, by hand: what it costs is beside DART's light scorer, not hidden."""
    deformable, uniform = (
        count_macs(timm.create_model(f"{name}_vit_micro", in_chans=1, num_classes=10).eval(), (1, 1, 96, 96))
        for name in ("deformable", "uniform")
    )
    convolutions = 24 * 24 * 8 * 9 + 12 * 12 * 16 * 8 * 9 + 12 * 12 * 24 * 16 * 9
    # Regions differ by image: their positions are embedded once an image, as the uniform grid's are once a batch.
    assert deformable - uniform == convolutions + 36 * 24 * 16 * 4
