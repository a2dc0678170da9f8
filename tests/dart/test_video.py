"""Theorems of tokens over space and time: one frame is an image, no token reads two, and what moves is seen."""

import pytest
import torch
from timm.layers import PatchEmbed

from dart.pos_embed import carry_clip_tables, carry_table, clip_coordinates, region_coordinates
from dart.scorer import build_scorer, scores_to_density
from dart.tokenizer import DartTokenizer
from dart.video import VideoTokenizer, build_video_scorer, clip_regions
from tests.dart.clips import F64, density_of, frame_of
from tests.dart.on_meta import OnMeta

OPTIONS = [{}, {"row_weight": "density"}, {"sampling": "point"}, {"pos_embed": "table", "norm_layer": None}]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=["default", "density", "point", "table"])


def build(num_frames: int = 4, **kwargs) -> VideoTokenizer:
    """A tokenizer of 32 px frames whose scorer is far from uniform, for still and for moving parts."""
    torch.manual_seed(0)
    kwargs = {"img_size": 32, "patch_size": 4, "in_chans": 1, "embed_dim": 24, "token_budget": 64, **kwargs}
    scorer = build_video_scorer("conv", kwargs["in_chans"])
    for head in (scorer.head, scorer.frames.head):
        torch.nn.init.normal_(head.weight)
    return VideoTokenizer(scorer=scorer, num_frames=num_frames, **kwargs)


@pytest.mark.parametrize("sampling", ["area", "point"])
@pytest.mark.parametrize("learned", [True, False])
def test_uniform_tokens_are_timms_patch_embed_of_every_frame(learned, sampling):
    scorer = build_video_scorer("conv", 3) if learned else None  # a new scorer is uniform
    options = {"num_frames": 5, "token_budget": 80, "sampling": sampling, "pos_embed": "table", "norm_layer": None}
    tokenizer = VideoTokenizer(32, 8, 3, 16, scorer, **options)
    reference = PatchEmbed(32, 8, 3, 16)
    reference.proj.load_state_dict(tokenizer.proj.state_dict())
    clips = torch.rand(2, 3, 5, 32, 32)
    expected = reference(clips.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 5)).flatten(1, 2)
    torch.testing.assert_close(tokenizer(clips), expected, rtol=0, atol=1e-4)


@every_option
def test_one_frame_gives_the_tokens_of_the_image(options):
    tokenizer = build(**options)
    image_tokenizer = DartTokenizer(32, 4, 1, 24, tokenizer.scorer.frames, token_budget=64, **options)
    image_tokenizer.load_state_dict({k: v for k, v in tokenizer.state_dict().items() if "proj" in k}, strict=False)
    images = torch.rand(2, 1, 32, 32)
    found, expected = tokenizer.inspect(images[:, :, None]), image_tokenizer.inspect(images)
    assert torch.equal(found.regions, expected.regions)
    assert torch.equal(found.patches, expected.patches)
    if tokenizer.pos_embed is None:
        assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("sampling", ["area", "point"])
def test_a_token_does_not_see_other_frames(sampling):
    tokenizer = build(sampling=sampling).double()
    clips = torch.rand(1, 1, 4, 32, 32, dtype=F64)
    regions = clip_regions(density_of(4, (4, 4))[:1], 4, 64, 16, (32, 32))
    patches, tokens = tokenizer.read(clips, regions, True)
    for t, frame in enumerate(frame_of(regions, 32).eq(torch.arange(4)[:, None])):
        others = torch.full_like(clips, 1e3)
        others[:, :, t] = clips[:, :, t]
        torch.testing.assert_close(tokenizer.read(others, regions, False)[1][:, frame], tokens[:, frame])
        alone = regions[:, frame] - torch.tensor([0, 32 * t, 0, 32 * t])
        expected, _ = DartTokenizer.read(tokenizer, clips[:, :, t], alone, True)
        torch.testing.assert_close(patches[:, frame], expected, rtol=0, atol=1e-9)


@every_option
def test_a_clip_does_not_depend_on_its_batch_mates(options):
    tokenizer = build(**options).double().train()
    clips = torch.rand(4, 1, 4, 32, 32, dtype=F64)
    clips[1:] *= 5
    alone, together = tokenizer.inspect(clips[:1]), tokenizer.inspect(clips)
    torch.testing.assert_close(alone.regions[0], together.regions[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(alone.tokens[0], together.tokens[0], rtol=0, atol=1e-9)


@every_option
@pytest.mark.parametrize("num_frames", [1, 2, 3, 7])
@pytest.mark.parametrize("budget", [1, 5, 37, 130])
@pytest.mark.parametrize("size", [(32, 32), (20, 45)])
def test_any_number_of_frames_and_tokens_with_the_same_weights(options, num_frames, budget, size):
    out = build(**options).inspect(torch.rand(2, 1, num_frames, *size), num_patches=budget)
    assert out.img_size == (num_frames * size[0], size[1])
    assert out.tokens.shape == (2, budget, 24)
    assert out.tokens.isfinite().all()
    x0, y0, x1, y1 = out.regions.unbind(-1)
    area = torch.tensor(float(num_frames * size[0] * size[1]))
    torch.testing.assert_close(((x1 - x0) * (y1 - y0)).sum(1), area.expand(2))
    torch.testing.assert_close(out.density.sum((1, 2)), torch.ones(2))


@every_option
def test_gradient_reaches_what_scores_places_and_what_scores_motion(options):
    tokenizer = build(**options)
    tokenizer(torch.rand(2, 1, 4, 32, 32)).square().sum().backward()
    for name, parameter in tokenizer.scorer.named_parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0, name


@every_option
@pytest.mark.parametrize("clip", ["zeros", "one blank frame", "bright", "one token", "one per pixel", "one peak"])
def test_gradients_are_finite_in_every_corner(options, clip):
    tokenizer = build(**options)
    budget = {"one token": 1, "one per pixel": 3 * 8 * 8}.get(clip, 9)
    clips = torch.zeros(1, 1, 3, 8, 8)
    if clip == "bright":
        clips += 1e4
    if clip == "one blank frame":
        clips[:, :, 1:] = torch.rand(8, 8)
    if clip == "one peak":
        clips[..., 1, 3, 3] = 100.0
        torch.nn.init.normal_(tokenizer.scorer.head.weight, std=1e3)
    clips.requires_grad_()
    tokenizer(clips, budget).sum().backward()
    assert clips.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in tokenizer.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["conv", "mobilenetv3_small", "timm/resnet18"])
def test_a_still_clip_is_scored_as_its_image_and_a_new_scorer_scores_nothing(name):
    torch.manual_seed(0)
    options = {} if name == "conv" else {"score_input": 64}
    scorer = build_video_scorer(name, 3, **options)
    images = torch.rand(2, 3, 64, 64)
    clips = torch.rand(2, 3, 3, 64, 64)
    assert not scorer(clips).any()
    for layer in (scorer.head, scorer.frames.head[-1] if name != "conv" else scorer.frames.head):
        torch.nn.init.normal_(layer.weight)
    expected = scorer.frames(images)
    assert scorer(clips).shape == (2, 3, *expected.shape[1:])
    for num_frames in (1, 3):
        still = images[:, :, None].expand(-1, -1, num_frames, -1, -1)
        torch.testing.assert_close(scorer(still), expected[:, None].expand(-1, num_frames, -1, -1), rtol=0, atol=1e-5)
    moved = scorer(clips) - scorer.frames(clips.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 3))
    assert (moved.abs().amax((2, 3)) > 0).all()  # in every frame, the first included


def test_scores_of_a_clip_played_backwards_are_the_scores_backwards():
    scorer = build().scorer.double()
    clips = torch.rand(2, 1, 5, 32, 32, dtype=F64)
    torch.testing.assert_close(scorer(clips.flip(2)), scorer(clips).flip(1))


def test_a_scorer_keeps_frozen_features_in_eval_mode_and_takes_an_images_options():
    scorer = build_video_scorer("timm/resnet18", 3, frozen=True, score_input=32).train()
    assert not any(module.training for module in scorer.frames.features.modules())
    with pytest.raises(ValueError, match="scorer = 'conf': unknown"):
        build_video_scorer("conf", 3)
    with pytest.raises(ValueError, match="score_input = 33: must be a multiple of 32 px"):
        build_scorer("timm/resnet18", 3, score_input=33)


def test_the_density_of_a_frame_does_not_smear_into_the_next():
    scores = torch.full((1, 3, 4, 4), -1e4)
    scores[0, 1, 3] = 1e4  # the bottom row of the second frame
    density = scores_to_density(scores, floor=0.3, blur=2)
    torch.testing.assert_close(density.sum(), torch.tensor(1.0))
    torch.testing.assert_close(density[0, [0, 2]], torch.full((2, 4, 4), 0.3 / 48))
    one = torch.randn(2, 1, 5, 6)
    torch.testing.assert_close(scores_to_density(one, 0.3, 2)[:, 0], scores_to_density(one[:, 0], 0.3, 2))


def test_coordinates_are_those_in_the_frame_and_its_time():
    regions = clip_regions(density_of(4, (4, 4)), 4, 40, 12, (30, 50))
    found = clip_coordinates(regions, (120, 50), 4)
    frames = frame_of(regions, 30)
    shift = frames[..., None] * torch.tensor([0, 30, 0, 30])
    torch.testing.assert_close(found[..., :4], region_coordinates(regions - shift, (30, 50)))
    torch.testing.assert_close(found[..., 4], (frames + 0.5) / 2 - 1, check_dtype=False)


def test_a_token_in_two_frames_is_where_it_is_on_average():
    regions = torch.tensor([[[0.0, 15.0, 10.0, 25.0]]])  # the lower half of the first frame of four 20 px, and more
    coordinates = clip_coordinates(regions, (80, 10), 4)[0, 0]
    # Half of it is centred on 17.5 px of the first frame, half on 2.5 px of the second.
    torch.testing.assert_close(coordinates[[1, 4]], torch.tensor([0.0, 1.0 / 4 * 2 - 1]))
    assert coordinates[3] == torch.tensor(0.5).log2() / 3 + 1


def test_tables_are_carried_as_their_means_over_regions():
    torch.manual_seed(0)
    table, times = torch.randn(1, 9, 8, dtype=F64), torch.randn(1, 4, 8, dtype=F64)
    tall = table.unflatten(1, (3, 3)).repeat(1, 4, 1, 1) + times.repeat_interleave(3, 1)[:, :, None]  # (1, 12, 3, 8)
    for rows in (2, 9):  # spanning frames, and not
        regions = clip_regions(density_of(4, (5, 5)), 4, 26, rows, (20, 30))
        expected = carry_table(tall.flatten(1, 2), regions, (80, 30), (12, 3))
        torch.testing.assert_close(carry_clip_tables(table, times, regions, (80, 30), 4), expected)


def test_on_the_uniform_grid_the_tables_are_themselves_whatever_the_number_of_frames():
    tokenizer = VideoTokenizer(32, 8, 1, 16, None, num_frames=4, token_budget=64, pos_embed="table", norm_layer=None)
    table, times = torch.randn(1, 16, 16), torch.randn(1, 4, 16)
    found = tokenizer.inspect(torch.rand(1, 1, 4, 32, 32))
    carried = tokenizer.carry(table, found, times)
    torch.testing.assert_close(carried, (table[:, None] + times[:, :, None]).flatten(1, 2))
    torch.testing.assert_close(tokenizer.carry(table, found), table.repeat(1, 4, 1))
    twice = tokenizer.carry(table * 0, tokenizer.inspect(torch.rand(1, 1, 8, 32, 32), 128), times)
    expected = torch.nn.functional.interpolate(times.mT, 8, mode="linear").mT.repeat_interleave(16, 1)
    torch.testing.assert_close(twice, expected)


def test_a_pinned_number_of_rows_is_for_its_own_budget_and_frames_only():
    tokenizer = build(num_rows=8)
    rows = [
        tokenizer.inspect(torch.rand(1, 1, frames, 32, 32), budget).regions[0, :, 1].unique().numel()
        for frames, budget in [(4, None), (4, 100), (2, None)]
    ]
    assert rows == [8, 20, 12]
    assert tokenizer.inspect(torch.rand(1, 1, 4, 32, 32), 100, 5).regions[0, :, 1].unique().numel() == 5


def test_the_feature_map_has_whole_frames():
    tokenizer = build(token_budget=100)
    assert tokenizer.grid_size == (4 * 5, 5)
    assert tokenizer.feat_ratio(as_scalar=False) == (6, 6)
    assert tokenizer.dynamic_feat_size((2 * 32, 64), 2) == (2 * 5, 10)


def test_under_autocast_the_regions_are_those_of_float32():
    tokenizer = build()
    clips = torch.rand(2, 1, 4, 32, 32)
    density = density_of(4, (4, 4), dtype=torch.float32)
    expected = clip_regions(density, 4, 64, 16, (32, 32)), clip_coordinates(density[..., :4] * 32, (128, 32), 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = tokenizer.inspect(clips)
        found = clip_regions(density, 4, 64, 16, (32, 32)), clip_coordinates(density[..., :4] * 32, (128, 32), 4)
    assert out.regions.dtype == out.density.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    frame_of(out.regions, 32)
    assert build().bfloat16()(clips.bfloat16()).dtype == torch.bfloat16


@pytest.mark.slow
def test_exported_for_all_batch_sizes():
    tokenizer = build(row_weight="density", sampling="point").eval()
    batch = torch.export.Dim("batch", min=1)
    clips = torch.rand(2, 1, 4, 32, 32)
    exported = torch.export.export(tokenizer, (clips,), dynamic_shapes=({0: batch},)).module()
    for size in (1, 2, 5):
        clips = torch.rand(size, 1, 4, 32, 32)
        torch.testing.assert_close(exported(clips), tokenizer(clips))


@every_option
def test_nothing_waits_for_the_device(options):
    """On tensors without data, forward and backward: no value and no shape depends on data, nothing is copied over."""
    tokenizer = build(**options).to("meta")
    clips = torch.rand(2, 1, 4, 32, 32, device="meta")
    with OnMeta() as mode:
        tokenizer(clips).sum().backward()
    assert mode.num_operators > 100
    with OnMeta() as mode:
        clip_regions(torch.ones(2, 16, 4, device="meta"), 4, 64, 16, (32, 32), options.get("row_weight", "mass"))
    assert mode.num_operators < 150  # they are what a GPU is launched for; an image has fewer than 100


@pytest.mark.parametrize(
    ("clips", "said"),
    [
        (torch.rand(2, 3, 4, 32, 32), r"clips = \(2, 3, 4, 32, 32\): must be \(batch, 1, frames, height, width\)"),
        (torch.rand(2, 1, 32, 32), r"clips = \(2, 1, 32, 32\): must be \(batch, 1, frames, height, width\)"),
        (torch.rand(2, 1, 0, 32, 32), r"clips = \(2, 1, 0, 32, 32\): .*at least 1 frame"),
        (torch.rand(2, 1, 4, 32, 3), r"clips = 32 x 3 px: sides must be at least one patch \(4 px\)"),
        (torch.tensor([0.0, torch.nan]).view(2, 1, 1, 1, 1).expand(2, 1, 4, 32, 32), r"clips\[1\] = NaN or infinity"),
    ],
)
def test_bad_clips_are_refused_in_one_sentence(clips, said):
    with pytest.raises(ValueError, match=said):
        build()(clips)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_frames": 0}, "num_frames = 0: must be a whole number, at least 1"),
        ({"num_frames": 2.5}, "num_frames = 2.5: must be a whole number, at least 1"),
        ({"partition": "grid"}, "partition = 'grid': no frame of a clip would get more tokens than others"),
        ({"token_budget": 4097}, "token_budget = 4097: must be from 1 to the clip's 4096 pixels"),
        ({"num_rows": 65}, r"num_rows = 65: must be from 1 to num_patches \(64\)"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        build(**options)
    if "token_budget" in options:
        with pytest.raises(ValueError, match=said):
            build()(torch.rand(1, 1, 4, 32, 32), options["token_budget"])
