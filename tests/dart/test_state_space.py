"""Theorems of both state-space families behind regions: twins, batch mates, budgets, and timm's whole contract."""

import pytest
import timm
import torch
from timm.models import save_for_hf

import dart.models  # noqa: F401 (registers the models with timm)
from dart.deploy import optimize_for_inference
from dart.registry import ROW_TOKENIZERS, VARIANTS

SMALL = {"img_size": 32, "patch_size": 8, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_classes": 5}
IMAGES = {**SMALL, "token_budget": 16}
CLIPS = {**SMALL, "token_budget": 48, "num_frames": 3}
KINDS = [
    pytest.param("dart_vim_nano", IMAGES, id="vim"),
    pytest.param("dart_vim_nano", {**IMAGES, "pos_embed": "geometry"}, id="vim-geometry"),
    pytest.param("dart_videomamba_nano", IMAGES, id="videomamba"),
    pytest.param("dart_videomamba_nano", CLIPS, id="videomamba-clips"),
]
each_kind = pytest.mark.parametrize(("name", "kwargs"), KINDS)


def build(name: str, **kwargs):
    """A model whose scorer, if it has one, is far from uniform, and whose frames differ by their times."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    for entry, parameter in model.named_parameters():
        if (".scorer." in entry and ".head." in entry) or entry == "temporal_pos_embedding":
            torch.nn.init.normal_(parameter)
    return model


def inputs(kwargs, batch: int = 2, side: int = 32):
    frames = [kwargs["num_frames"]] if "num_frames" in kwargs else []
    return torch.randn(batch, 1, *frames, side, side, generator=torch.Generator().manual_seed(1))


def test_every_model_is_registered_with_timm():
    names = {f"{kind}_{b}_{v}" for kind in ROW_TOKENIZERS for b in ("vim", "videomamba") for v in VARIANTS[b]}
    assert names | {"vim_tiny", "vim_small", "videomamba_tiny"} <= set(timm.list_models())
    assert timm.get_pretrained_cfg("dart_vim_small").input_size == (3, 448, 448)
    assert timm.get_pretrained_cfg("videomamba_tiny").input_size == (3, 224, 224)


@pytest.mark.parametrize("twin", ROW_TOKENIZERS)
@pytest.mark.parametrize(
    ("name", "kwargs"), [("vim_tiny", IMAGES), ("videomamba_tiny", IMAGES), ("videomamba_tiny", CLIPS)]
)
def test_with_a_token_per_patch_it_is_the_published_model(name, kwargs, twin):
    """The same weights give the same logits on the uniform partition, which is where DART starts."""
    plain = build(name, **{key: value for key, value in kwargs.items() if key != "token_budget"}).double()
    scorer = {"scorer": "conv"} if twin == "dart" else {}
    model = timm.create_model(f"{twin}_{name}", **kwargs, **scorer, table_size=4).double().eval()
    missing, unexpected = model.load_state_dict(model.fit_entries(plain.state_dict()), strict=False)
    assert not unexpected
    assert all(".scorer." in entry for entry in missing)
    images = inputs(kwargs).double()
    torch.testing.assert_close(model(images), plain(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pos_embed", ["table", "geometry"])
@pytest.mark.parametrize(
    ("name", "kwargs"), [("vim_nano", IMAGES), ("videomamba_nano", IMAGES), ("videomamba_nano", CLIPS)]
)
def test_before_training_dart_is_its_uniform_twin(name, kwargs, pos_embed):
    model = timm.create_model(f"dart_{name}", pos_embed=pos_embed, **kwargs).eval()
    uniform = timm.create_model(f"uniform_{name}", pos_embed=pos_embed, **kwargs).eval()
    assert not uniform.load_state_dict(model.state_dict(), strict=False).missing_keys
    torch.testing.assert_close(model(inputs(kwargs)), uniform(inputs(kwargs)), rtol=1e-3, atol=1e-4)


@each_kind
def test_nothing_depends_on_batch_mates(name, kwargs):
    model = build(name, **kwargs).double().train()  # in training too: no batch statistics anywhere
    images = inputs(kwargs, 3).double()
    images[1:] *= 5
    torch.testing.assert_close(model(images[:1])[0], model(images)[0], rtol=0, atol=1e-9)


@each_kind
def test_another_budget_at_call_time_or_from_now_on(name, kwargs):
    model, images = build(name, **kwargs), inputs(kwargs)
    asked = model(images, num_patches=21, num_rows=5)
    assert not torch.allclose(asked, model(images))
    assert model.forward_features(images, num_patches=21).shape == (2, 22, 16)
    model.set_token_budget(21, 5)
    assert torch.equal(asked, model(images))
    for budget in (0, 10**6):
        with pytest.raises(ValueError, match=f"token_budget = {budget}: must be from 1"):
            model.set_token_budget(budget)


@each_kind
def test_gradients_reach_the_scorer(name, kwargs):
    model = build(name, **kwargs).train()
    model(inputs(kwargs)).square().sum().backward()
    gradients = {entry: p.grad for entry, p in model.named_parameters() if ".scorer." in entry}
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())


@each_kind
def test_forward_is_features_then_head(name, kwargs):
    model, images = build(name, **kwargs), inputs(kwargs)
    features = model.forward_features(images)
    assert features.shape == (2, 1 + kwargs["token_budget"], model.embed_dim)
    assert torch.equal(model.forward_head(features), model(images))
    prefix, patches = model.split_class(features)
    assert torch.equal(model.forward_head(features, pre_logits=True), prefix[:, 0])
    assert torch.equal(model.join_class(prefix, patches), features)
    model.reset_classifier(7, "avg")
    assert model(images).shape == (2, 7)
    assert torch.equal(model.forward_head(features, pre_logits=True), patches.mean(1))
    assert model.get_classifier().out_features == 7


@each_kind
def test_intermediates_are_maps_regridded_from_the_tokens(name, kwargs):
    model, images = build(name, **kwargs), inputs(kwargs)
    final, maps = model.forward_intermediates(images, indices=[0, 1])
    assert torch.equal(final, model.forward_features(images))
    assert [m.shape for m in maps] == [(2, 16, *images.shape[2:-2], 4, 4)] * 2
    tokens = model.forward_intermediates(images, [1], norm=True, output_fmt="NLC", intermediates_only=True)[0]
    assert torch.equal(tokens, model.split_class(model.forward_features(images))[1])
    # Tokens tile what is seen, so the mean of a map is the mean of its tokens by area.
    x0, y0, x1, y1 = model.patch_embed.inspect(images).regions.unbind(-1)
    area = (x1 - x0) * (y1 - y0)
    expected = (tokens * area[..., None]).sum(1) / area.sum(1, keepdim=True)
    regridded = model.forward_intermediates(images, [1], norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(regridded.flatten(2).mean(2), expected, rtol=1e-3, atol=1e-3)
    named = model.forward_intermediates(images, 1, output_dict=True, return_prefix_tokens=True)
    assert set(named) == {"image_intermediates", "image_intermediates_prefix", "image_features"}
    features = timm.create_model(name, features_only=True, out_indices=(0, 1), **kwargs)
    assert [m.shape for m in features(images)] == [m.shape for m in maps]
    assert features.feature_info.reduction() == [8, 8]


@each_kind
def test_another_input_size_needs_no_weights(name, kwargs):
    model = build(name, **kwargs)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.set_input_size((40, 64))
    assert model.patch_embed.img_size == (40, 64)
    assert model.feature_info[0]["reduction"] == model.patch_embed.feat_ratio()
    assert model(inputs(kwargs, 1, 64)[..., :40, :]).shape == (1, 5)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="patch_size = 4: the weights are of"):
        model.set_input_size(patch_size=4)


@each_kind
def test_gradient_checkpointing_changes_no_gradient(name, kwargs):
    gradients = []
    for enable in (False, True):
        model = build(name, **kwargs).train()
        model.set_grad_checkpointing(enable)
        model(inputs(kwargs)).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for entry, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][entry], msg=entry)


@each_kind
def test_groups_and_weight_decay_cover_the_names(name, kwargs):
    model = build(name, **kwargs)
    names = {n for n, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names
    wanted = {"pos_embed", "cls_token", "temporal_pos_embedding", "layers.1.mixer.A_b_log", "layers.0.mixer.D"}
    assert names & wanted | {n for n in names if ".scorer." in n} <= model.no_weight_decay()
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert {n for n in names if not n.startswith(("layers.", "norm_f", "head"))} <= set(groups[0])
    assert sum(map(len, groups.values())) == len(names)


@each_kind
def test_autocast_keeps_the_stream_in_float32(name, kwargs):
    model, images = build(name, **kwargs), inputs(kwargs)
    expected = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        tokens, _ = model.embed(images)
        _, stream = model.layers[0](tokens, None)
        found = model(images).float()
    assert stream.dtype == torch.float32
    # Rounding moves edges by a tenth of a pixel, and noise is the picture that shows it most.
    assert (found - expected).norm() < 0.1 * expected.norm()


@each_kind
def test_saved_for_the_hub_and_created_from_there(name, kwargs, tmp_path):
    model, images = build(name, **kwargs), inputs(kwargs)
    save_for_hf(model, str(tmp_path), model_args=kwargs, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(model(images), again(images))


@pytest.mark.parametrize("name", ["dart_vim_nano", "vim_tiny"])
def test_another_size_and_budget_go_through_the_hub(name, tmp_path):
    model = build(name, **SMALL)  # a table whose side depends on the size
    model.set_input_size((64, 48))
    if name != "vim_tiny":
        model.set_token_budget(21, 5)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(2, 1, 64, 48)
    assert torch.equal(model(images), again(images))


@pytest.mark.parametrize(
    ("name", "kwargs"), [*KINDS, ("videomamba_tiny", {k: v for k, v in CLIPS.items() if k != "token_budget"})]
)
def test_made_ready_for_inference_it_answers_the_same(name, kwargs):
    model, images = build(name, **kwargs), inputs(kwargs)
    torch.testing.assert_close(optimize_for_inference(model)(images), model(images), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kwargs"), [KINDS[0], KINDS[-1]])
def test_it_exports_with_a_dynamic_batch(name, kwargs):
    model, images = build(name, **kwargs), inputs(kwargs)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    torch.testing.assert_close(program.module()(images[:1]), model(images[:1]))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("dart_vim_nano", {"mode": "exact"}, "mode = 'exact': unknown; known: invariant, paper"),
        ("dart_vim_nano", {"pos_embed": "rope"}, "pos_embed = 'rope': unknown; known: "),
        ("dart_vim_nano", {"token_budget": 0}, "token_budget = 0: must be from 1"),
        ("dart_vim_tiny", {"mode": "paper", "partition": "grid"}, "partition = 'grid': paper mode has no such choice"),
        ("dart_vim_tiny", {"mode": "paper", "img_size": 300}, "img_size = 300: paper mode knows 448 and 224 px only"),
        ("uniform_vim_nano", {"scorer": "conv"}, "scorer = 'conv': uniform_vim_nano has no scorer; leave it out"),
        ("uniform_vim_nano", {"mode": "paper"}, "mode = 'paper': only of DART models, not of uniform_vim_nano"),
        ("vim_tiny", {"token_budget": 49}, "token_budget: for dart_.* and uniform_.* models alone"),
        ("vim_tiny", {"pos_embed": "geometry"}, "pos_embed, table_size: for dart_.* and uniform_.* models alone"),
        ("vim_tiny", {"pretrained": True}, "pretrained = True: no weights of vim_tiny"),
        ("vim_tiny", {"global_pool": "max"}, "global_pool = 'max': must be"),
        ("vim_tiny", {"num_frames": 2}, "num_frames = 2: VisionMamba reads images; use a .*videomamba_.* model"),
        ("dart_vim_nano", {"num_frames": 2}, "num_frames = 2: VisionMamba reads images"),
        ("videomamba_tiny", {"num_frames": 0}, "num_frames = 0: must be a whole number, at least 1; None for images"),
        ("videomamba_tiny", {"num_frames": 2.5}, "num_frames = 2.5: must be a whole number, at least 1"),
        ("dart_videomamba_nano", {"num_frames": "8"}, "num_frames = '8': must be a whole number, at least 1"),
        (
            "dart_videomamba_tiny",
            {"mode": "paper", "num_frames": 4, "img_size": 448},
            "img_size = 448, in_chans = 3: clips of paper mode are 224 px and RGB",
        ),
        (
            "dart_videomamba_tiny",
            {"mode": "paper", "num_frames": 4, "scorer": "conv"},
            "scorer = 'conv': paper mode has no such choice",
        ),
    ],
)
def test_what_a_model_does_not_have_is_refused_in_one_sentence(name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        timm.create_model(name, depth=1, **options)


@pytest.mark.parametrize(
    ("name", "options", "shape", "sentence"),
    [
        ("vim_tiny", {}, (1, 1, 224, 224), r"images = \(1, 1, 224, 224\): must be \(B, 3, 224, 224\); resize"),
        ("vim_tiny", {}, (1, 3, 96, 224), r"must be \(B, 3, 224, 224\); resize"),
        ("videomamba_tiny", {}, (1, 3, 2, 224, 224), r"images = .*: must be \(B, 3, 224, 224\)"),
        ("videomamba_tiny", {"num_frames": 2}, (1, 3, 224, 224), r"clips = .*: must be \(B, 3, frames, 224, 224\)"),
        ("videomamba_tiny", {"num_frames": 2}, (1, 3, 0, 224, 224), r"clips = .*: must be \(B, 3, frames, 224, 224\)"),
        ("dart_vim_nano", {}, (1, 3, 2, 96, 96), r"images = .*: must be \(batch, 3, height, width\)"),
        ("uniform_videomamba_nano", {"num_frames": 2}, (1, 3, 96, 96), r"clips = .*: must be \(batch, 3, frames"),
    ],
)
def test_what_a_model_cannot_read_is_refused_in_one_sentence(name, options, shape, sentence):
    model = timm.create_model(name, depth=1, **options)
    with pytest.raises(ValueError, match=sentence):
        model(torch.zeros(shape))


def test_a_plain_model_has_no_budget():
    model = timm.create_model("vim_tiny", depth=1)
    with pytest.raises(ValueError, match="num_patches = 49: a plain model has a token per patch; use a dart_"):
        model(torch.zeros(1, 3, 224, 224), num_patches=49)
    with pytest.raises(ValueError, match="token_budget = 49: a plain model has a token per patch"):
        model.set_token_budget(49)
