"""Theorems of the token segmenters: a class for every pixel, DART as its uniform twin at first, and timm's contract."""

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch.nn import functional as F

from dart.cost import count_macs
from dart.models import TokenSegmenter, build
from dart.paint import paint_tokens
from dart.registry import CLASSIFIERS, HEADS, SEGMENTERS, VARIANTS, model_name, tokenizers_of
from dart.scorer import ConvScorer
from dart.weights import infer_kwargs
from tests.dart.on_meta import OnMeta

SMALL = {"num_classes": 5, "in_chans": 1, "img_size": 48, "token_budget": 36}
# The structure of a DART-DeiT (class token, carried table, coarse cells, convolutions) at the size of a test.
DEIT = {
    "num_classes": 5, "in_chans": 1, "img_size": 64, "token_budget": 16,
    "embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8, "table_size": 4, "scorer": "conv", "head_dim": 8,
}  # fmt: skip
KINDS = [("dart_vit_micro_segmenter", SMALL), ("dart_deit_tiny_segmenter", DEIT)]
every_kind = pytest.mark.parametrize(("name", "kwargs"), KINDS, ids=["vit", "deit"])


def build_segmenter(name="dart_vit_micro_segmenter", **kwargs):
    """A model whose scorer, if it has one, is far from uniform."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **kwargs})
    if isinstance(model.patch_embed.scorer, ConvScorer):
        torch.nn.init.normal_(model.patch_embed.scorer.head.weight)
    return model.eval()


def images_for(model, batch=2):
    return torch.rand(batch, 1, *model.patch_embed.img_size)


def test_every_segmenter_is_registered_with_timm_and_named_by_its_head():
    names = {
        model_name(kind, backbone, variant, head)
        for head in HEADS
        for backbone in SEGMENTERS[head]
        for kind in tokenizers_of(backbone, head)
        for variant in VARIANTS[backbone]
    }
    assert names == {name for head in HEADS for name in timm.list_models(f"*_{head}")}
    assert {"dart_vit_micro_segmenter", "uniform_deit_base_segmenter", "dart_swin_tiny_upernet"} < names
    assert set(VARIANTS) == set(CLASSIFIERS) | {b for backbones in SEGMENTERS.values() for b in backbones}
    assert not timm.list_models(["dart_swin_tiny", "uniform_vim_*_segmenter"])
    assert model_name("dart", "vit", "micro") == "dart_vit_micro"


def test_a_warped_segmenter_is_created_by_its_name():
    pytest.importorskip("segmentation_models_pytorch")
    options = {"img_size": 64, "token_budget": 16, "num_classes": 3}
    for name, kwargs in (
        ("dart_swin_tiny_upernet", {"scorer": "conv"}),
        ("uniform_swin_tiny_upernet", {}),
        ("dart_swin_tiny_upernet", {"mode": "paper"}),
    ):
        with torch.no_grad():
            assert timm.create_model(name, **options, **kwargs).eval()(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"pretrained = True: no weights of \S+ are hosted; pretrained_backbone=True"):
        timm.create_model("dart_swin_tiny_upernet", pretrained=True)
    with pytest.raises(ValueError, match="scorer = 'conv': uniform_swin_tiny_upernet has no scorer"):
        timm.create_model("uniform_swin_tiny_upernet", scorer="conv")


@every_kind
@pytest.mark.parametrize("size", [None, (32, 80), (41, 30)])
def test_every_pixel_of_an_image_of_any_size_gets_logits(name, kwargs, size):
    model = build_segmenter(name, **kwargs)
    size = size or model.patch_embed.img_size
    assert model(torch.rand(2, 1, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("options", [{}, {"partition": "grid"}, {"row_weight": "density"}, {"num_rows": 4}])
def test_another_budget_at_call_time_or_from_now_on(options):
    model = build_segmenter(**options)
    images = torch.rand(2, 1, 30, 70)
    rows = 3 if "partition" in options else 5
    asked = model(images, num_patches=21, num_rows=rows)
    assert not torch.allclose(asked, model(images))
    assert model(images, num_patches=21).shape == asked.shape
    model.set_token_budget(21, rows)
    assert torch.equal(asked, model(images))


def test_the_rows_that_are_painted_are_those_of_the_partition():
    for options in ({}, {"partition": "grid"}, {"num_rows": 9}):
        model = build_segmenter(**options)
        for size, budget, rows in (
            ((48, 48), None, None),
            ((24, 90), None, None),
            ((48, 48), 50, None),
            ((30, 30), 12, 6),
        ):
            regions = model.patch_embed.inspect(torch.rand(1, 1, *size), budget, rows).regions
            assert model.count_rows(size, budget, rows) == len(regions[0, :, 1].unique())


@pytest.mark.parametrize(("depth", "stride"), [(0, 1), (0, 3), (1, 4)])
@pytest.mark.parametrize("num_classes", [3, 20])
def test_logits_are_what_the_head_reads_off_the_painted_maps(depth, stride, num_classes):
    """However it is computed: with few classes and no convolution, the classes are told before painting."""
    model = build_segmenter(head_depth=depth, num_classes=num_classes, head_stride=stride).double()
    images = torch.rand(2, 1, 48, 46, dtype=torch.float64)
    head, found = model.head, model.inspect(images)
    values = head.decode(model.forward_features(images)).unflatten(-1, (8, 8, 8)).permute(0, 1, 4, 3, 2)
    features = head.refine(paint_tokens(values, found.regions, (48, 46), stride=stride))
    logits = F.conv2d(features, head.classifier.weight[..., None, None], head.classifier.bias)
    to_pixels = {"scale_factor": stride, "mode": "bilinear"}
    torch.testing.assert_close(model(images), F.interpolate(logits, **to_pixels)[..., :46])
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), F.interpolate(features, **to_pixels)[..., :46])


def test_with_labels_the_pair_that_a_loss_compares():
    model = build_segmenter()
    images, labels = images_for(model), torch.randint(0, 5, (2, 48, 48))
    labels[:, :10] = 255
    logits, wanted = model(images, labels)
    assert torch.equal(logits, model(images))
    assert wanted is labels
    F.cross_entropy(logits, wanted, ignore_index=255).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kwargs", [{}, {"pos_embed": "table", "table_size": 6}, {"head_depth": 1, "head_stride": 2}])
def test_before_training_dart_is_its_uniform_twin(kwargs):
    model = timm.create_model("dart_vit_micro_segmenter", **SMALL, **kwargs).eval()
    uniform = build_segmenter("uniform_vit_micro_segmenter", **kwargs)
    assert not uniform.load_state_dict(model.state_dict(), strict=False).missing_keys
    images = torch.rand(2, 1, 48, 48)
    torch.testing.assert_close(model(images), uniform(images), rtol=1e-4, atol=1e-4)


@every_kind
def test_an_image_does_not_depend_on_its_batch_mates(name, kwargs):
    model = build_segmenter(name, **kwargs).double().train()  # in training too: no batch statistics anywhere
    images = images_for(model, 3).double()
    images[1:] *= 5
    torch.testing.assert_close(model(images[:1])[0], model(images)[0], rtol=0, atol=1e-9)


@every_kind
def test_a_fresh_classifier_and_a_state_dict_that_comes_back(name, kwargs):
    model, other = build_segmenter(name, **kwargs), timm.create_model(name, **kwargs).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    images = images_for(model)
    assert torch.equal(model(images), other(images))
    model.reset_classifier(7)
    assert (model.num_classes, model.get_classifier().out_features) == (7, 7)
    assert model(images).shape[:2] == (2, 7)
    model.reset_classifier(0)
    assert model(images).shape[:2] == (2, kwargs.get("head_dim", 8))
    with pytest.raises(ValueError, match="global_pool = 'avg': a segmenter pools nothing"):
        model.reset_classifier(7, "avg")


@every_kind
def test_groups_and_weight_decay_cover_the_names(name, kwargs):
    model = build_segmenter(name, **kwargs)
    names = {n for n, _ in model.named_parameters()}
    assert {n for n in names if ".scorer." in n} <= model.no_weight_decay() <= names
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert {n for n in names if n.startswith("patch_embed.")} <= set(groups[0])
    assert {n for n in names if n.startswith("head.")} <= set(groups[max(groups)])
    assert sum(map(len, groups.values())) == len(names)


@every_kind
def test_gradient_checkpointing_changes_no_gradient(name, kwargs):
    gradients = []
    for enable in (False, True):
        model = build_segmenter(name, **kwargs).train()
        model.set_grad_checkpointing(enable)
        model(torch.linspace(0, 1, 48 * 48).view(1, 1, 48, 48)).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name_, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name_], msg=name_)


def test_features_of_the_blocks_are_maps_as_a_classifiers_are():
    model = timm.create_model("dart_vit_micro_segmenter", features_only=True, out_indices=(0, 2), **SMALL).eval()
    assert [m.shape for m in model(torch.rand(2, 1, 48, 48))] == [(2, 64, 6, 6)] * 2


def test_weights_of_a_plain_deit_start_a_segmenter(tmp_path):
    plain = timm.create_model("deit_tiny_patch16_224", depth=2)
    path = tmp_path / "deit.pth"
    torch.save({"model": plain.state_dict()}, path)
    overlay = {"file": str(path), "hf_hub_id": None}
    for num_classes in (150, 7):
        model = timm.create_model(
            "dart_deit_tiny_segmenter", pretrained=True, scorer="conv", depth=2, num_classes=num_classes,
            pretrained_cfg_overlay=overlay,
        )  # fmt: skip
        ours = model.state_dict()
        same = [name for name, value in plain.state_dict().items() if name in ours and value.equal(ours[name])]
        assert len(same) == len(plain.state_dict()) - 2, "all but the head"
        assert model.get_classifier().out_features == num_classes


def test_saved_for_the_hub_and_created_from_there(tmp_path):
    model = build_segmenter()
    save_for_hf(model, str(tmp_path), model_args=SMALL, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = images_for(model)
    assert torch.equal(model(images), again(images))


@every_kind
def test_what_a_file_does_not_say_of_the_head_is_read_off_its_shapes(name, kwargs):
    found = infer_kwargs(build_segmenter(name, **{**kwargs, "head_points": 4}).state_dict())
    assert {key: found[key] for key in ("num_classes", "head_points", "head_dim")} == {
        "num_classes": 5,
        "head_points": 4,
        "head_dim": 8,
    }
    assert found["head_depth"] == (2 if "deit" in name else 0)


def test_painting_costs_no_multiply_accumulates_and_the_head_what_its_shapes_say():
    bare = build_segmenter("uniform_vit_micro_segmenter", num_classes=0, head_dim=4)
    trunk = count_macs(bare, (1, 1, 48, 48)) - 36 * 64 * (8 * 8 * 4)
    found = build_segmenter("uniform_vit_micro_segmenter", num_classes=20, head_dim=4, head_depth=1)
    head = 36 * 64 * (8 * 8 * 4) + 48 * 48 * (9 * 4 * 4 + 4 * 20)
    assert count_macs(found, (1, 1, 48, 48)) == trunk + head
    early = build_segmenter("uniform_vit_micro_segmenter", num_classes=3, head_dim=4)
    assert count_macs(early, (1, 1, 48, 48)) == trunk + 36 * (8 * 8) * 4 * (64 + 3)


@every_kind
def test_nothing_waits_for_the_device(name, kwargs):
    model = build_segmenter(name, **kwargs).to("meta").train()
    with OnMeta() as mode:
        model(torch.empty(2, 1, 48, 48, device="meta")).sum().backward()
    assert mode.num_operators > 100


@pytest.mark.slow
@every_kind
def test_compiles_to_one_graph(name, kwargs):
    torch._dynamo.reset()
    model = build_segmenter(name, **{**kwargs, "depth": 1})
    images, (plain, compiled) = images_for(model), (model, torch.compile(model, fullgraph=True, backend="aot_eager"))
    gradients = []
    for run in (plain, compiled):
        model.zero_grad()
        run(images).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_exported_for_all_batch_sizes():
    model = build_segmenter("dart_deit_tiny_segmenter", **{**DEIT, "depth": 1})
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model, (images_for(model),), dynamic_shapes=({0: batch},)).module()
    for size in (1, 3):
        images = images_for(model, size)
        torch.testing.assert_close(exported(images), model(images), rtol=1e-4, atol=1e-4)


def test_under_autocast_and_in_bfloat16():
    model = build_segmenter(head_depth=1, head_stride=2)
    images = images_for(model)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(images)
    assert low.isfinite().all()
    assert F.cosine_similarity(low.float().flatten(), model(images).flatten(), dim=0) > 0.9
    assert model.bfloat16()(images.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "paper"}, "mode = 'paper': tokens that lie in two rows cannot be painted; use an upernet"),
        ({"global_pool": "avg"}, "global_pool = 'avg': a segmenter pools nothing; leave it out"),
        ({"head_points": 0}, "head_points = 0: must be a whole number, at least 1"),
        ({"head_dim": 2.5}, "head_dim = 2.5: must be a whole number, at least 1"),
        ({"head_depth": -1}, "head_depth = -1: must be a whole number, at least 0"),
        ({"head_stride": 0}, "head_stride = 0: must be a whole number, at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        build_segmenter(**options)


def test_options_of_dart_do_not_reach_the_uniform_twin():
    model = build("uniform_vit_micro_segmenter", num_classes=3, scorer="conv", score_floor=0.1)
    assert isinstance(model, TokenSegmenter)
    assert not [name for name, _ in model.named_parameters() if "scorer" in name]
