"""Theorems of the warped segmenter: a new scorer changes nothing, no batch mates, timm's contract."""

import pytest
import torch
from timm.layers import DropPath
from timm.models._manipulate import group_parameters
from torch.nn import functional as F

from dart import warp
from dart.models.warped import WarpSegmenter
from dart.paper import reshaper as paper
from tests.dart.on_meta import OnMeta

SIZE, CLASSES = (64, 96), 5
BACKBONE = "test_convnext"  # of timm, for tests: two steps from an image to nothing
SMALL = {"tokenizer": "dart", "token_budget": 24, "backbone": BACKBONE, "img_size": SIZE, "in_chans": 1, "head_dim": 16}


def build(moved: bool = True, **changed) -> WarpSegmenter:
    """A small model whose scorer is far from uniform, or new."""
    torch.manual_seed(0)
    model = WarpSegmenter(**{**SMALL, "num_classes": CLASSES, **changed})
    head = getattr(getattr(model.warper, "scorer", None), "head", None)
    if moved and head is not None:
        torch.nn.init.normal_(head.weight, std=3)
    return model.eval()


def build_paper() -> WarpSegmenter:
    """In training mode: unless batch norms follow the data, a score network without weights sees nothing."""
    options = {"mode": "paper", "in_chans": 3, "scorer": "mobilenetv3_small_v1", "score_input": "full"}
    return build(**options).train()


def pictures(batch: int = 2, channels: int = 1) -> torch.Tensor:
    """Bright in one place, dark in others."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, channels, *SIZE, generator=generator) * torch.linspace(0, 1, SIZE[1]) ** 3


def labels(batch: int = 2) -> torch.Tensor:
    return torch.randint(CLASSES, (batch, *SIZE), generator=torch.Generator().manual_seed(2))


def test_a_new_scorer_is_the_uniform_grid():
    dart, uniform = build(moved=False), build(tokenizer="uniform")
    uniform.load_state_dict({k: v for k, v in dart.state_dict().items() if ".scorer." not in k})
    assert torch.allclose(dart(pictures()), uniform(pictures()), atol=1e-5)
    assert not torch.allclose(build()(pictures()), uniform(pictures()), atol=1e-3)


def test_a_uniform_grid_of_the_images_size_is_the_plain_network():
    model = build(tokenizer="uniform")
    expected = F.interpolate(model.network(pictures()), SIZE, mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(pictures()), expected, rtol=0, atol=1e-5)


def test_logits_are_those_of_the_warped_image_brought_back():
    model = build()
    found = model.warper(pictures())
    logits = model.network(warp.warp_images(pictures(), found.grid))
    torch.testing.assert_close(model(pictures()), warp.unwarp(logits, found.grid, SIZE))
    assert logits.shape[-2:] == (SIZE[0] // 4, SIZE[1] // 4)


@pytest.mark.parametrize(
    ("changed", "size"), [({"token_budget": 6}, (32, 48)), ({"token_budget": 6, "patch_size": 32}, SIZE)]
)
def test_cells_and_patch_side_make_the_warped_size(changed, size):
    if size[1] % 32:
        with pytest.raises(
            ValueError, match=r"make a warped image of 32 x 48 px; its sides must be multiples of 32 px"
        ):
            build(**changed)
        return
    model = build(**changed)
    assert model.warper.warped_size == size
    assert model(pictures()).shape == (2, CLASSES, *SIZE)


def test_an_image_has_no_batch_mates_in_training_either():
    model, images = build().train().double(), pictures(3).double()  # rounding of float32 comes to 2e-4
    together = model(images)
    for i in range(3):
        torch.testing.assert_close(model(images[i : i + 1]), together[i : i + 1], rtol=0, atol=1e-8)


def test_the_loss_reaches_every_parameter():
    model = build(moved=False).train()
    logits, classes = model(pictures(), labels())
    assert torch.equal(classes, labels())
    F.cross_entropy(logits, classes, ignore_index=255).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert not without
    assert model.warper.scorer.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("tokenizer", ["dart", "uniform"])
def test_inspect_shows_what_the_backbone_sees(tokenizer):
    model = build(tokenizer=tokenizer)
    found = model.inspect(pictures())
    assert found.img_size == SIZE
    assert found.density.shape[0] == 2
    area = (found.regions[..., 2:] - found.regions[..., :2]).prod(-1).sum(-1)
    torch.testing.assert_close(area, torch.full_like(area, SIZE[0] * SIZE[1]))
    drawn = F.fold(found.patches.flatten(2).mT, model.warper.warped_size, 16, stride=16)
    torch.testing.assert_close(drawn, model.warper.draw(pictures(), model.warper(pictures())))


def test_paper_mode_is_the_papers_warp_and_trains_on_warped_classes():
    model, images = build_paper(), pictures(2, 3)
    grid = paper.DenseReshaper.forward(model.warper, images)
    small = model.network(paper.warp_images(images, grid))
    logits = F.interpolate(small, SIZE, mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(images), paper.unwarp(logits, grid))
    trained = model(images, labels())
    torch.testing.assert_close(trained[0], logits)
    assert torch.equal(trained[1], paper.warp_labels(labels(), grid))
    assert not torch.equal(trained[1], labels())


def test_paper_modes_regions_are_its_grid():
    model, images = build_paper(), pictures(2, 3)
    found = model.inspect(images)
    grid = paper.DenseReshaper.forward(model.warper, images)
    heights = (found.regions[..., 3] - found.regions[..., 1]).unflatten(1, (4, 6))
    widths = (found.regions[..., 2] - found.regions[..., 0]).unflatten(1, (4, 6))
    torch.testing.assert_close(heights, grid.heights[..., None].expand(-1, -1, 6), rtol=0, atol=1e-4)
    torch.testing.assert_close(widths, grid.widths[:, None].expand(-1, 4, -1), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.density.sum((1, 2)), torch.ones(2))
    assert found.patches.shape == (2, 24, 3, 16, 16)


@pytest.mark.parametrize("make", [build, build_paper])
def test_autocast_does_not_move_the_grid(make):
    model, images = make(), pictures(2, 3 if make is build_paper else 1)
    found = model.warper(images)
    drawn = model.warper.draw(images, found)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.warper.draw(images, found), drawn)
        rounded = model.warper(images)  # the network's scores are in half precision, and nothing else
        logits = model(images)
    assert logits.shape == (2, CLASSES, *SIZE)
    assert logits.dtype == torch.bfloat16
    model.warper.scorer.forward = lambda *_: rounded.scores.float()
    torch.testing.assert_close(model.warper(images).regions, rounded.regions, rtol=0, atol=1e-4)


def test_timms_contract():
    model = build()
    names = dict(model.named_parameters())
    scorer = {name for name in names if ".scorer." in name}
    assert scorer
    assert scorer <= model.no_weight_decay() < set(names)
    again = build(moved=False)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(pictures()), model(pictures()))
    model.reset_classifier(7)
    assert model(pictures()).shape == (2, 7, *SIZE)
    assert model.get_classifier().weight.shape == (7, 16, 1, 1)
    model.reset_classifier(0)
    assert model(pictures()).shape == (2, 16, *SIZE)
    with pytest.raises(ValueError, match=r"global_pool = 'avg': a segmenter pools nothing"):
        model.reset_classifier(3, "avg")


def test_checkpointing_changes_no_gradient():
    found = []
    for enable in (False, True):
        model = build().train()
        model.set_grad_checkpointing(enable)
        model(pictures()).square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("coarse", [False, True])
def test_layers_are_grouped_in_the_order_of_the_forward_pass(coarse):
    with torch.device("meta"):
        model = WarpSegmenter(**{**SMALL, "backbone": "swin_tiny_patch4_window7_224"})
    layers = group_parameters(model, model.group_matcher(coarse))
    named = {name: i for i, names in layers.items() for name in names}
    assert set(named) == {name for name, _ in model.named_parameters()}
    first = max(i for name, i in named.items() if name.startswith("warper"))
    last = min(i for name, i in named.items() if name.startswith("network.decoder"))
    inside = [i for name, i in named.items() if ".encoder.model.layers_" in name]
    assert first < min(inside) <= max(inside) < last
    assert inside == sorted(inside)
    assert len(set(inside)) >= (4 if coarse else 12)
    assert any(name.endswith("relative_position_bias_table") for name in model.no_weight_decay())


def test_nothing_waits_for_the_device():
    """On tensors without data, forward and backward: no value and no shape depends on data."""
    model, images, classes = build().train().to("meta"), pictures().to("meta"), labels().to("meta")
    with OnMeta() as mode:
        logits, classes = model(images, classes)
        F.cross_entropy(logits, classes, ignore_index=255).backward()
    assert mode.num_operators > 100


@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "resnet10t", "test_efficientnet"])
def test_any_timm_backbone_with_four_strides(backbone):
    model = build(backbone=backbone, drop_path_rate=0.1)
    assert model(pictures()).shape == (2, CLASSES, *SIZE)


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_stochastic_depth_is_as_asked(rate):
    with torch.device("meta"):
        model = build(backbone="swin_tiny_patch4_window7_224", drop_path_rate=rate, moved=False)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert max(rates, default=0.0) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokenizer": "plain"}, r"tokenizer = 'plain': unknown; known: dart, uniform"),
        ({"mode": "exact"}, r"mode = 'exact': unknown; known: invariant, paper"),
        ({"partition": "flow"}, r"partition = 'flow': unknown; known: grid"),
        ({"token_budget": 0}, r"token_budget = 0: must be from 1 to the image's 6144 pixels"),
        ({"num_rows": 5}, r"num_rows = 5: a grid of 24 tokens needs a divisor; try 4"),
        ({"token_budget": 23}, r"make a warped image of .* must be multiples of 32 px"),
        ({"sampling": "nearest"}, r"sampling = 'nearest': unknown; known: area, point"),
        ({"score_floor": 0.0}, r"score_floor = 0.0: must be above 0 and at most 1"),
        ({"score_blur": -1}, r"score_blur = -1: must be at least 0"),
        (
            {"backbone": "swin_tinny_patch4_window7_224"},
            r"backbone = 'swin_tinny.*': unknown to timm; did you mean 'swin_tiny",
        ),
        ({"backbone": "vit_tiny_patch16_224"}, r"backbone = 'vit_tiny_patch16_224': UPerNet cannot read it"),
        (
            {"backbone": "mnasnet_050", "pretrained_backbone": True},  # has none, wherever one looks
            r"pretrained_backbone = True: the weights of 'mnasnet_050' cannot be had .*; connect .* or train",
        ),
        ({"mode": "paper"}, r"in_chans = 1: paper mode reads RGB and sides of whole cells of 16 px"),
        ({"mode": "paper", "in_chans": 3, "img_size": (64, 90)}, r"img_size = 64 x 90, .*: paper mode reads RGB"),
        (
            {"mode": "paper", "in_chans": 3, "token_budget": 12},
            r"token_budget = 12, num_rows = None: paper mode.*try 24",
        ),
        ({"mode": "paper", "in_chans": 3, "sampling": "area"}, r"sampling = 'area': paper mode has no such choice"),
        ({"mode": "paper", "in_chans": 3, "tokenizer": "uniform"}, r"tokenizer = 'uniform': paper mode has no such"),
    ],
)
def test_bad_choices_are_refused_in_one_sentence(changed, said):
    with pytest.raises(ValueError, match=said) as caught:
        build(**changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.rand(2, 1, 64, 95), r"images = 64 x 95 px: this model reads 64 x 96 px; resize them, or cut them"),
        (torch.rand(2, 3, *SIZE), r"images = \(2, 3, 64, 96\): must be \(batch, 1, height, width\)"),
        (torch.full((2, 1, *SIZE), torch.nan), r"images\[0\] = NaN or infinity"),
    ],
)
def test_bad_images_are_refused_in_one_sentence(images, said):
    with pytest.raises(ValueError, match=said):
        build()(images)
