"""Theorems of VideoMamba: where the class token stands, how directions join, and what clips add to images.

`test_state_space.py` has what it shares with Vision Mamba.
"""

import pytest
import timm
import torch

import dart.models  # noqa: F401 (registers the models with timm)
from dart.models.mamba import BidirectionalMixer
from dart.pos_embed import resample_times

SMALL = {"img_size": 32, "patch_size": 8, "in_chans": 1, "embed_dim": 16, "depth": 2, "state_size": 8, "num_classes": 5}
FAMILY = [
    ("videomamba_tiny", {}),
    ("dart_videomamba_nano", {"token_budget": 16}),
    ("uniform_videomamba_nano", {"token_budget": 16}),
]
FEATURES = ("dart_videomamba_nano", {"token_budget": 16, "scorer": "squeezenet1_1", "score_input": 64})


def build(name: str = "videomamba_tiny", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **kwargs}).eval()


def clips_of(num_frames: int, batch: int = 2):
    return torch.randn(batch, 1, num_frames, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_entries_are_the_published_ones():
    with torch.device("meta"):
        image, clip = (timm.create_model("videomamba_tiny", **kwargs) for kwargs in ({}, {"num_frames": 8}))
    shapes = {name: tuple(value.shape) for name, value in clip.state_dict().items()}
    assert shapes["pos_embed"] == (1, 197, 192)
    assert shapes["temporal_pos_embedding"] == (1, 8, 192)
    assert shapes["patch_embed.proj.weight"] == (192, 3, 1, 16, 16)
    assert shapes["layers.23.mixer.x_proj_b.weight"] == (44, 384)
    assert shapes.keys() - {"temporal_pos_embedding"} == image.state_dict().keys()
    assert tuple(image.state_dict()["patch_embed.proj.weight"].shape) == (192, 3, 16, 16)


def test_the_class_token_is_in_front_and_has_no_time():
    model = build(num_frames=3)
    model.pos_embed.data.zero_()
    model.cls_token.data.fill_(7)
    model.temporal_pos_embedding.data.copy_(torch.arange(3.0)[None, :, None])
    tokens, _ = model.embed(clips_of(3))
    assert tokens.shape == (2, 1 + 3 * 16, 16)
    assert (tokens[:, 0] == 7).all()
    expected = model.patch_embed(clips_of(3)) + torch.arange(3.0)[:, None, None]  # frame after frame
    torch.testing.assert_close(tokens[:, 1:], expected.flatten(1, 2))


def test_directions_are_summed_not_averaged():
    assert not any(m.average for m in build().modules() if isinstance(m, BidirectionalMixer))
    tokens = torch.randn(2, 9, 16)
    torch.manual_seed(0)
    mean = BidirectionalMixer(16)
    torch.manual_seed(0)
    both = BidirectionalMixer(16, average=False)
    torch.testing.assert_close(both(tokens), 2 * mean(tokens))


@pytest.mark.parametrize(("name", "options"), [*FAMILY, FEATURES])
def test_a_clip_of_one_frame_is_an_image(name, options, tmp_path):
    """With the weights of an image model: its scorer is that of the frames, times start at zero, and motion is none."""
    image = build(name, **options, in_chans=3)
    scorer = getattr(image.patch_embed, "scorer", None)
    if scorer is not None:
        torch.nn.init.normal_((scorer.head[-1] if isinstance(scorer.head, torch.nn.Sequential) else scorer.head).weight)
    torch.save({"model": image.state_dict()}, tmp_path / "image.pth")
    overlay = {"file": str(tmp_path / "image.pth"), "num_classes": 5}
    start = {"num_frames": 1, "pretrained": True, "pretrained_cfg_overlay": overlay}
    image, clip = image.double(), build(name, **options, in_chans=3, **start).double()
    given = torch.randn(2, 3, 1, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(clip(given), image(given[:, :, 0]), rtol=1e-9, atol=1e-9)
    if scorer is not None:
        assert not clip.patch_embed.scorer.head.weight.any()  # of the motion, not the image's
        assert clip.patch_embed.inspect(given).density.std() > 0


@pytest.mark.parametrize(("name", "options"), FAMILY)
def test_any_number_of_frames_at_call_time(name, options):
    model = build(name, **options, num_frames=4)
    torch.nn.init.normal_(model.temporal_pos_embedding)
    for frames in (1, 3, 6):
        budget = {} if name == "videomamba_tiny" else {"num_patches": 16 * frames}
        assert model.forward_features(clips_of(frames), **budget).shape == (2, 1 + 16 * frames, 16)


def test_more_frames_than_the_table_has_lie_between_its_entries():
    model, twin = build(num_frames=3), build("uniform_videomamba_nano", token_budget=48, num_frames=3)
    torch.nn.init.normal_(model.temporal_pos_embedding)
    twin.load_state_dict(twin.fit_entries(model.state_dict()))
    torch.testing.assert_close(twin(clips_of(5), num_patches=80), model(clips_of(5)), rtol=1e-3, atol=1e-4)
    table = torch.arange(4.0).view(1, 4, 1)
    assert resample_times(table, 4) is table
    torch.testing.assert_close(resample_times(table, 2)[0, :, 0], torch.tensor([0.5, 2.5]))


def test_weights_of_images_start_a_model_of_clips(tmp_path):
    image = build(in_chans=3)
    torch.save({"model": image.state_dict()}, tmp_path / "image.pth")
    overlay = {"file": str(tmp_path / "image.pth"), "hf_hub_id": None}
    options = {"in_chans": 3, "num_frames": 4, "pretrained": True, "pretrained_cfg_overlay": overlay}
    for name, extra in (("videomamba_tiny", {}), ("dart_videomamba_nano", {"token_budget": 30, "table_size": 5})):
        clip = build(name, **options, **extra, num_classes=7)
        assert torch.equal(clip.layers[1].mixer.A_log, image.layers[1].mixer.A_log)
        assert torch.equal(clip.patch_embed.proj.weight.flatten(), image.patch_embed.proj.weight.flatten())
        assert not clip.temporal_pos_embedding.any()
        assert torch.equal(clip.split_class(clip.pos_embed)[0], image.split_class(image.pos_embed)[0])
    torch.save({"model": timm.create_model("vim_tiny", depth=2).state_dict()}, tmp_path / "image.pth")
    with pytest.raises(ValueError, match="it is the checkpoint of another architecture"):
        build("videomamba_tiny", **options)


def test_paper_mode_reads_clips_with_the_authors_tokenizer():
    model = build("dart_videomamba_tiny", mode="paper", num_frames=3, img_size=224, patch_size=16, in_chans=3)
    clips = torch.rand(1, 3, 3, 224, 224)
    features = model.forward_features(clips)
    assert features.shape == (1, 1 + 3 * 196, 16)
    embed = model.patch_embed
    assert embed.patch_size == (16, 16)
    torch.testing.assert_close(
        model.embed(clips)[0], embed(clips, model.pos_embed, model.temporal_pos_embedding, model.cls_token)
    )
    asked = model(clips, num_patches=300)
    model.set_token_budget(300)
    assert torch.equal(model(clips), asked)
    assert model.forward_intermediates(clips, 1)[1][0].shape == (1, 16, 3, 14, 14)
    model.train()(clips).square().sum().backward()
    assert embed.scorer.change.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="img_size = 448: clips of paper mode are 224 px"):
        model.set_input_size(448)


def test_paper_mode_reads_images_as_the_published_cost_says():
    model = timm.create_model("dart_videomamba_tiny", mode="paper", depth=1)
    assert model.patch_embed.scorer.spec.num_features == 576  # MobileNetV3-Small, second head
    assert model.patch_embed.img_size == (448, 448)
