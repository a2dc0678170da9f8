"""Theorems of Vision Mamba: the order of reading, the class token in the middle, the plain model, and paper mode.

`test_state_space.py` has what it shares with VideoMamba.
"""

import pytest
import timm
import torch
from torch.nn import functional as F

from dart.models.mamba import BidirectionalMixer


def build(name: str = "vim_tiny", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 10, "depth": 2, "embed_dim": 32, **kwargs}).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def test_the_two_directions_are_each_others_mirror():
    """With the parameters of both directions exchanged, reading backwards gives the output backwards."""
    torch.manual_seed(0)
    mixer, mirrored = BidirectionalMixer(16).double(), BidirectionalMixer(16).double()
    swap = {name: name.replace("_b", "", 1) if "_b" in name.split(".")[0] else _other(name) for name in _shared(mixer)}
    state = mixer.state_dict()
    mirrored.load_state_dict({name: state[swap.get(name, name)] for name in state})
    tokens = torch.randn(2, 20, 16, dtype=torch.float64)
    torch.testing.assert_close(mirrored(tokens.flip(1)).flip(1), mixer(tokens), rtol=1e-12, atol=1e-12)


def _shared(mixer) -> list[str]:
    return [name for name in mixer.state_dict() if not name.startswith(("in_proj", "out_proj"))]


def _other(name: str) -> str:
    return {"A_log": "A_b_log", "D": "D_b"}.get(name) or name.replace(".", "_b.", 1)


def test_the_class_token_is_in_the_middle(images):
    model = build()
    model.cls_token.data.fill_(7)
    model.pos_embed.data.zero_()
    tokens, _ = model.embed(images)
    assert tokens.shape == (2, 197, 32)
    assert (tokens[:, 98] == 7).all()
    torch.testing.assert_close(model.split_class(tokens)[1], model.patch_embed(images))


def test_every_other_overlapping_patch_is_one_of_the_grid(images):
    long, plain = build(patch_stride=8), build()
    long.patch_embed.load_state_dict(plain.patch_embed.state_dict())
    patches = long.patch_embed(images).unflatten(1, (27, 27))
    torch.testing.assert_close(patches[:, ::2, ::2].flatten(1, 2), plain.patch_embed(images))
    between = plain.patch_embed(F.pad(images[..., 8:, 8:], (0, 8, 0, 8))).unflatten(1, (14, 14))
    torch.testing.assert_close(patches[:, 1::2, 1::2], between[:, :13, :13])


def test_a_model_of_overlapping_patches_keeps_timms_contract(images):
    model = build(patch_stride=8)
    assert model.feature_info[0]["reduction"] == 8
    assert model.forward_intermediates(images, indices=[1], intermediates_only=True)[0].shape == (2, 32, 27, 27)
    model.set_input_size(256)
    assert model.pos_embed.shape == (1, 31 * 31 + 1, 32)
    assert model(F.pad(images, (0, 32, 0, 32))).shape == (2, 10)
    for stride in (0, 17, 8.0):
        with pytest.raises(ValueError, match="must be from 1 to patch_size"):
            build(patch_stride=stride)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_the_class_token_is_found_again(count):
    model, patches, prefix = build(), torch.randn(2, count, 3), torch.randn(2, 1, 3)
    found = model.split_class(model.join_class(prefix, patches))
    assert torch.equal(found[0], prefix)
    assert torch.equal(found[1], patches)


def test_paper_mode_has_any_budget_with_the_same_weights_and_gradients_to_the_scorer():
    model = build("dart_vim_tiny", mode="paper")
    images = torch.randn(2, 3, 448, 448)
    for budget in (392, 121):
        model.set_token_budget(budget)
        assert model.forward_features(images).shape == (2, budget + 1, 32)
    model(images).square().sum().backward()
    assert model.patch_embed.scorer.mlp.net[0].weight.grad.abs().max() > 0


def test_the_stream_is_float32_under_autocast(images):
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        tokens, _ = model.embed(images)
        mixed, stream = model.layers[0](tokens, None)
        _, stream = model.layers[1](mixed, stream)
    assert stream.dtype == torch.float32
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(model.to(torch.bfloat16)(images.bfloat16()).float(), build()(images), rtol=0.1, atol=0.1)


def test_timms_contract(images):
    model = build()
    features = model.forward_features(images)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}
    assert {"layers.1.mixer.A_b_log", "layers.0.mixer.D", "pos_embed"} <= model.no_weight_decay()
    final, maps = model.forward_intermediates(images, norm=True)
    torch.testing.assert_close(final, features)
    assert [tuple(m.shape) for m in maps] == [(2, 32, 14, 14)] * 2
    torch.testing.assert_close(maps[-1].flatten(2).mT, model.split_class(features)[1])
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.train()(images), model.eval()(images))
    model.reset_classifier(7, "avg")
    assert model(images).shape == (2, 7)
    assert model.get_classifier().out_features == 7


def test_what_the_last_block_mixed_is_dropped_most_often_and_the_images_never():
    model = build(depth=3, drop_path_rate=0.4)
    drops = [*(layer.drop_path for layer in model.layers), model.drop_path]
    assert [getattr(drop, "drop_prob", 0) for drop in drops] == [0, 0, 0.2, 0.4]


@pytest.mark.parametrize(
    ("name", "size", "options"), [("vim_tiny", 224, {}), ("dart_vim_tiny", 448, {"mode": "paper"})]
)
def test_features_only(name, size, options):
    model = build(name, features_only=True, out_indices=(0, 1), **options)
    assert [tuple(m.shape) for m in model(torch.randn(1, 3, size, size))] == [(1, 32, 14, 14)] * 2


def test_another_input_size_resamples_the_table_around_the_class_token(images):
    model = build()
    place = model.split_class(model.pos_embed)[0]
    model.set_input_size((160, 192))
    assert model.pos_embed.shape == (1, 121, 32)
    assert torch.equal(model.split_class(model.pos_embed)[0], place)
    assert model(torch.randn(1, 3, 160, 192)).shape == (1, 10)


def test_depth_does_not_blow_up_the_stream_at_the_start(images):
    sizes = [build(depth=depth).forward_intermediates(images, 1)[1][0].std() for depth in (2, 8)]
    assert sizes[1] < 2 * sizes[0]


@pytest.mark.slow
def test_it_exports_with_a_dynamic_batch(images):
    model = build(depth=1)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    torch.testing.assert_close(program.module()(images[:1]), model(images[:1]))
