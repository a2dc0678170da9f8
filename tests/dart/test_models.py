"""Theorems of the models: DART starts as its uniform twin and keeps timm's whole contract."""

import pytest
import timm
import torch
from timm.models import save_for_hf

import dart.models
from dart.baselines.deformable import Deformation
from dart.pos_embed import region_shares
from dart.registry import BASELINE_BACKBONES, BASELINES, BUDGETS, CLASSIFIERS, TOKENIZERS, VARIANTS, tokenizers_of
from dart.scorer import ConvScorer

SMALL = {"num_classes": 10, "in_chans": 1, "token_budget": 36}
# The structure of a DART-DeiT (class token, carried table) at the size of a test.
DEIT = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 64, "patch_size": 8, "table_size": 4, "scorer": "conv"}
SMALL_DEIT = {**DEIT, "num_classes": 10, "in_chans": 1, "token_budget": 16}
KINDS = [("dart_vit_micro", SMALL), ("dart_deit_tiny", SMALL_DEIT)]
# The baselines keep the same contract.
OTHERS = [
    (f"{kind}_{name}", {key: value for key, value in kwargs.items() if key != "scorer"})
    for kind in BASELINES
    for name, kwargs in (("vit_micro", SMALL), ("deit_tiny", SMALL_DEIT))
]
CONTRACT = [*KINDS, *OTHERS]


def build(name: str = "dart_vit_micro", **kwargs):
    """A model whose scorer, if it has one, is far from uniform."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **kwargs})
    if isinstance(model.patch_embed.scorer, ConvScorer | Deformation):
        torch.nn.init.normal_(model.patch_embed.scorer.head.weight)
    return model.eval()


def images_for(model, batch: int = 2):
    return torch.rand(batch, 1, *model.patch_embed.img_size)


def test_every_model_is_registered_with_timm():
    names = {f"{kind}_{b}_{v}" for b in CLASSIFIERS for kind in tokenizers_of(b) for v in VARIANTS[b]}
    assert {tokenizers_of(b) == TOKENIZERS for b in CLASSIFIERS} == {True, False}
    assert all(tokenizers_of(b) == TOKENIZERS for b in BASELINE_BACKBONES)
    assert not timm.list_models(["quadtree_vim*", "deformable_*_segmenter", "quadtree_swin*"])
    names |= {f"dart_deit_{v}_{n}" for v in ("tiny", "small", "base") for n in BUDGETS if n != 196}
    assert names <= set(timm.list_models())
    assert timm.create_model("dart_deit_tiny_121").patch_embed.num_patches == 121
    assert timm.get_pretrained_cfg("dart_deit_small").input_size == (3, 448, 448)


@pytest.mark.parametrize("kwargs", [{}, {"pos_embed": "table", "table_size": 12}])
def test_before_training_dart_is_its_uniform_twin(kwargs):
    model = timm.create_model("dart_vit_micro", **SMALL, **kwargs).eval()
    uniform = build("uniform_vit_micro", **kwargs)
    missing = uniform.load_state_dict(model.state_dict(), strict=False)
    assert not missing.missing_keys
    images = torch.rand(3, 1, 96, 96)
    torch.testing.assert_close(model(images), uniform(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_small_patch16_224"])
def test_a_uniform_deit_is_timms_deit(name):
    """448 px images of 2 x 2 equal pixels, read as 196 tokens, are the 224 px images of a plain DeiT."""
    torch.manual_seed(0)
    plain = timm.create_model(name).eval()
    ours = timm.create_model(f"uniform_{name.split('_patch')[0]}", sampling="area").eval()
    assert not ours.load_state_dict(plain.state_dict(), strict=True).missing_keys
    images = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(
        ours(images.repeat_interleave(2, 2).repeat_interleave(2, 3)), plain(images), rtol=1e-3, atol=1e-4
    )


def test_weights_of_a_plain_deit_start_a_dart_model(tmp_path):
    plain = timm.create_model("deit_tiny_patch16_224")
    path = tmp_path / "deit.pth"
    torch.save({"model": plain.state_dict()}, path)
    overlay = {"file": str(path), "hf_hub_id": None}
    model = timm.create_model(
        "dart_deit_tiny", pretrained=True, scorer="conv", num_classes=7, pretrained_cfg_overlay=overlay
    )
    ours = model.state_dict()
    same = [name for name, value in plain.state_dict().items() if name in ours and value.equal(ours[name])]
    assert len(same) == len(plain.state_dict()) - 2, "all but the head"
    assert model.head.out_features == 7


def test_a_checkpoint_of_another_architecture_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "deit.pth"
    torch.save(timm.create_model("deit_tiny_patch16_224").state_dict(), path)
    overlay = {"file": str(path), "hf_hub_id": None}
    with pytest.raises(ValueError, match=r"checkpoint \S+ = .*: the model's is .* it is the checkpoint of another"):
        timm.create_model("dart_deit_small", pretrained=True, scorer="conv", pretrained_cfg_overlay=overlay)
    with pytest.raises(ValueError, match="checkpoint has pos_embed: the model has no table"):
        timm.create_model("dart_vit_micro", pretrained=True, in_chans=3, pretrained_cfg_overlay=overlay)
    torch.save(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(ValueError, match=r"checkpoint \S+ = .*, and \d+ more entries differ; .* another architecture"):
        timm.create_model(
            "dart_deit_tiny", pretrained=True, num_classes=7, scorer="conv", pretrained_cfg_overlay=overlay
        )


def test_pretrained_weights_adapt_to_other_channels(tmp_path):
    path = tmp_path / "deit.pth"
    plain = timm.create_model("deit_tiny_patch16_224")
    torch.save(plain.state_dict(), path)
    overlay = {"file": str(path), "hf_hub_id": None}
    model = timm.create_model(
        "dart_deit_tiny", pretrained=True, in_chans=1, scorer="conv", pretrained_cfg_overlay=overlay
    )
    expected = plain.patch_embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(model.patch_embed.proj.weight, expected)


@pytest.mark.parametrize(("name", "kwargs"), CONTRACT)
def test_an_image_does_not_depend_on_its_batch_mates(name, kwargs):
    model = build(name, **kwargs).double().train()  # in training too: no batch statistics anywhere
    images = images_for(model, 4).double()
    images[1:] *= 5
    torch.testing.assert_close(model(images[:1])[0], model(images)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "kwargs"), CONTRACT)
def test_another_budget_at_call_time_or_from_now_on(name, kwargs):
    model = build(name, **kwargs)
    images = images_for(model)
    asked = model(images, num_patches=20, num_rows=4)
    assert not torch.allclose(asked, model(images))
    model.set_token_budget(20, 4)
    assert torch.equal(asked, model(images))
    with pytest.raises(ValueError, match="token_budget = 0: must be from 1"):
        model.set_token_budget(0)


@pytest.mark.parametrize(("name", "kwargs"), CONTRACT)
def test_forward_is_features_then_head(name, kwargs):
    model = build(name, **kwargs)
    images = images_for(model)
    features = model.forward_features(images)
    assert features.shape == (2, model.num_prefix_tokens + kwargs["token_budget"], model.embed_dim)
    assert torch.equal(model.forward_head(features), model(images))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)


@pytest.mark.parametrize(("name", "kwargs"), [*KINDS, *(pair for pair in OTHERS if "quadtree" in pair[0])])
def test_intermediates_are_maps_regridded_from_the_tokens(name, kwargs):
    model = build(name, **kwargs)
    images = images_for(model)
    final, maps = model.forward_intermediates(images, indices=[0, 2])
    assert torch.equal(final, model.forward_features(images))
    side = round(kwargs["token_budget"] ** 0.5)
    assert [m.shape for m in maps] == [(2, model.embed_dim, side, side)] * 2
    tokens = model.forward_intermediates(images, indices=[2], norm=True, output_fmt="NLC", intermediates_only=True)[0]
    assert torch.equal(tokens, model.forward_features(images)[:, model.num_prefix_tokens :])
    # Tokens tile the image, so the mean of a map is the mean of its tokens by area.
    x0, y0, x1, y1 = model.patch_embed.inspect(images).regions.unbind(-1)
    area = (x1 - x0) * (y1 - y0)
    expected = (tokens * area[..., None]).sum(1) / area.sum(1, keepdim=True)
    regridded = model.forward_intermediates(images, indices=[2], norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(regridded.mean((2, 3)), expected, rtol=1e-3, atol=1e-3)
    named = model.forward_intermediates(images, indices=1, output_dict=True, return_prefix_tokens=True)
    assert {"image_intermediates", "image_features"} <= set(named)


def test_places_that_no_deformable_patch_covers_are_zero_in_maps():
    """Its tokens need not tile the image; what they do cover is their mean by area, as ever."""
    model = build("deformable_vit_micro")
    images = images_for(model)
    maps = model.forward_intermediates(images, 1, intermediates_only=True)[0]
    regions = model.patch_embed.inspect(images).regions
    covered = region_shares(regions, (96, 96), (6, 6)).sum(1).unflatten(1, (6, 6)) > 1e-6
    assert not covered.all(), "or the test shows nothing"
    assert torch.equal((maps != 0).any(1), covered)


def test_maps_of_the_uniform_grid_are_the_tokens_themselves():
    model = build("uniform_vit_micro")
    images = images_for(model)
    tokens = model.forward_intermediates(images, 1, output_fmt="NLC", intermediates_only=True)[0]
    maps = model.forward_intermediates(images, 1, intermediates_only=True)[0]
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), tokens)


@pytest.mark.parametrize(("name", "kwargs"), CONTRACT)
def test_features_only(name, kwargs):
    model = timm.create_model(name, features_only=True, out_indices=(0, 2), **kwargs).eval()
    side = round(kwargs["token_budget"] ** 0.5)
    maps = model(torch.rand(2, 1, *model.model.patch_embed.img_size))
    assert [m.shape[2:] for m in maps] == [(side, side)] * 2
    assert model.feature_info.channels() == [m.shape[1] for m in maps]


@pytest.mark.parametrize(("name", "kwargs"), CONTRACT)
def test_another_input_size_needs_no_weights(name, kwargs):
    model = build(name, **kwargs)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.set_input_size((64, 160))
    assert model.patch_embed.img_size == (64, 160)
    assert model.feature_info[0]["reduction"] == model.patch_embed.feat_ratio()
    images = torch.rand(1, 1, 64, 160)
    assert model(images).shape == (1, 10)
    rows, cols = model.patch_embed.grid_size
    assert model.forward_intermediates(images, 1, intermediates_only=True)[0].shape[2:] == (rows, cols)
    assert cols >= 2 * rows
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="patch_size = 4: the weights are of"):
        model.set_input_size(patch_size=4)


@pytest.mark.parametrize(("name", "kwargs"), CONTRACT)
def test_gradient_checkpointing_changes_no_gradient(name, kwargs):
    gradients = []
    for enable in (False, True):
        model = build(name, **kwargs).train()
        model.set_grad_checkpointing(enable)
        model(torch.linspace(0, 1, 64 * 64).view(1, 1, 64, 64)).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name_, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name_], msg=name_)


@pytest.mark.parametrize(("name", "kwargs"), CONTRACT)
def test_groups_and_weight_decay_cover_the_names(name, kwargs):
    model = build(name, **kwargs)
    names = {n for n, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names
    assert {n for n in names if ".scorer." in n} <= model.no_weight_decay()
    groups = timm.models.group_parameters(model, model.group_matcher())
    stem = set(groups[0])
    assert {n for n in names if n.startswith("patch_embed.")} <= stem
    assert sum(map(len, groups.values())) == len(names)


def test_state_dict_round_trip_and_head_reset():
    model, other = build(), timm.create_model("dart_vit_micro", **SMALL).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    images = images_for(model)
    assert torch.equal(model(images), other(images))
    model.reset_classifier(7)
    assert model(images).shape == (2, 7)
    assert model.get_classifier().out_features == 7
    model.reset_classifier(0)
    assert model(images).shape == (2, model.num_features)


def test_saved_for_the_hub_and_created_from_there(tmp_path):
    model = build(token_budget=25)
    save_for_hf(model, str(tmp_path), model_args={**SMALL, "token_budget": 25}, safe_serialization=True)
    assert not list(tmp_path.glob("*.bin")), "safetensors only"
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = images_for(model)
    assert again.patch_embed.num_patches == 25
    assert torch.equal(model(images), again(images))


def test_another_size_and_budget_go_through_the_hub(tmp_path):
    model = build(num_rows=6)
    model.set_input_size((64, 160))
    model.set_token_budget(25)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.patch_embed.img_size == (64, 160)
    images = images_for(model)
    assert torch.equal(model(images), again(images))


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling": "area"},
        {"partition": "grid"},
        {"pos_embed": "geometry"},
        {"scorer_norm": "group"},
        {"table_size": 10},
    ],
)
def test_paper_mode_refuses_what_it_would_ignore(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*: paper mode has no such choice"):
        timm.create_model("dart_deit_tiny", mode="paper", depth=1, **wrong)


def test_a_model_of_paper_mode_keeps_the_contract_too():
    torch.manual_seed(0)
    model = timm.create_model("dart_deit_tiny", mode="paper", depth=2, img_size=224, num_classes=5).eval()
    images = torch.rand(2, 3, 224, 224)
    final, maps = model.forward_intermediates(images, 1)
    assert torch.equal(final, model.forward_features(images))
    assert maps[0].shape == (2, 192, 14, 14)
    asked = model(images, num_patches=100)
    model.set_token_budget(100)
    assert torch.equal(asked, model(images))
    model.set_grad_checkpointing()
    model.train()(images).sum().backward()
    assert model.patch_embed.scorer.mlp.net[2].weight.grad.abs().max() > 0
    features = timm.create_model(
        "dart_deit_tiny", mode="paper", depth=2, img_size=224, features_only=True, out_indices=(1,)
    )
    assert features(images)[0].shape == (2, 192, 14, 14)
    model.set_input_size(448)
    assert model.eval()(torch.rand(1, 3, 448, 448)).shape == (1, 5)


def test_a_uniform_model_refuses_a_scorer():
    with pytest.raises(ValueError, match="scorer = 'conv': uniform_vit_nano has no scorer; leave it out"):
        timm.create_model("uniform_vit_nano", scorer="conv")
    with pytest.raises(ValueError, match="tokenizer = 'drat': unknown; known: dart, uniform"):
        dart.models.RegionVisionTransformer(tokenizer="drat", token_budget=4)


def test_an_image_is_scored_as_it_is_if_full_is_asked_for():
    options = {"depth": 1, "scorer": "mobilenetv3_small", "score_input": "full"}  # None would not arrive
    scorer = timm.create_model("dart_vit_micro", **options).patch_embed.scorer
    assert scorer.resize(torch.rand(1, 3, 100, 60)).shape == (1, 3, 100, 60)


def test_options_of_dart_do_not_reach_the_uniform_twin():
    model = dart.models.build("uniform_vit_micro", num_classes=3, scorer="conv", score_floor=0.1, score_blur=0)
    assert not [name for name, _ in model.named_parameters() if "scorer" in name]


@pytest.mark.parametrize(
    "wrong", [{"mode": "exact"}, {"pos_embed": "rope"}, {"partition": "quad"}, {"sampling": "box"}]
)
def test_unknown_names_are_refused_when_the_model_is_made(wrong):
    with pytest.raises(ValueError, match=r"= '\w+': unknown; known: "):
        build(**wrong)
