"""Theorems of paper mode that the golden arrays do not state: two samplers, batch mates, budgets, corners, refusals."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import mobilenet_v3_small

from dart.paper import PaperTokenizer
from dart.paper.geometry import carry_grid, cut_image, strip_shares, token_regions
from dart.paper.reshaper import (
    DenseReshaper,
    GridWarp,
    PaperReshaper,
    map_axis,
    map_boxes,
    unwarp_by_points,
    warp_by_points,
)
from dart.paper.sampling import sample_tokens, sample_two_step
from dart.paper.scorer import SCORERS, PaperScorer
from dart.paper.video import VideoTokenizer

BUDGETS = {121: 11, 144: 12, 196: 14, 288: 17, 392: 20}


def random(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def random_cut(batch, num_rows, num_patches, height, width, seed=0):
    """Row heights in px that sum to `height`, token edges in px of the strip: rows are wide and tokens straddle."""
    heights, steps = random(batch, num_rows, seed=seed) + 0.2, random(batch, num_patches, seed=seed + 1) + 0.05
    edges = F.pad(steps.cumsum(-1), (1, 0))
    return heights * (height / heights.sum(-1, keepdim=True)), edges * (num_rows * width / edges[:, -1:])


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return PaperTokenizer(224, embed_dim=8).eval()


@pytest.mark.parametrize(("num_rows", "num_patches"), [(3, 11), (4, 7), (2, 5), (7, 63)])
@pytest.mark.parametrize("patch_size", [8, 16])
def test_one_gather_is_the_two_steps(num_rows, num_patches, patch_size):
    images = random(2, 3, 40, 56, seed=5).requires_grad_()
    given = [images, *(x.requires_grad_() for x in random_cut(2, num_rows, num_patches, 40, 56))]
    gather, steps = (sample(*given, patch_size) for sample in (sample_tokens, sample_two_step))
    torch.testing.assert_close(gather, steps, rtol=0, atol=1e-11)
    weights = torch.randn(gather.shape, dtype=torch.float64)
    for ours, theirs in zip(*(torch.autograd.grad((y * weights).sum(), given) for y in (gather, steps)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_right_of_a_row_lies_the_next_row_and_right_of_the_last_row_nothing():
    images = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    images[..., 0] = 5  # the left border
    heights, edges = torch.tensor([[2.0, 2.0]]).double(), torch.tensor([[0.0, 3.5, 4.0, 7.5, 8.0]]).double()
    patches = sample_tokens(images, heights, edges, 2)[0, :, 0, 0]
    torch.testing.assert_close(patches[1], torch.tensor([3.0, 4.0]).double())  # at 3.5 and 3.75, towards 5
    torch.testing.assert_close(patches[3], torch.tensor([0.5, 0.25]).double())  # at 7.5 and 7.75, towards 0


def test_gradients_are_exact():
    images, scores = random(1, 1, 6, 6, seed=3), random(1, 3, 3, seed=4) + 0.2

    def patches(images, scores):
        cut = cut_image(scores, 2, 5)
        return sample_tokens(images, cut.heights / 8, cut.edges * 2, 4)  # 48 nominal px are 6, a cell is 2

    assert torch.autograd.gradcheck(patches, (images.requires_grad_(), scores.requires_grad_()))
    cut = cut_image(scores, 2, 5)
    table = random(1, 3, 3, 2, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(carry_grid, (table, cut.heights.detach().requires_grad_(), cut.edges.detach()))


@pytest.mark.parametrize("budget", BUDGETS)
@torch.no_grad()
def test_budgets(tokenizer, budget):
    images = random(2, 3, 224, 224, dtype=torch.float32)
    found = tokenizer.inspect(images, budget)
    rows = BUDGETS[budget]
    assert found.scores.shape == found.density.shape == (2, 14, 14)
    assert found.row_heights.shape == (2, rows)
    assert found.patches.shape == (2, budget, 3, 16, 16)
    assert found.tokens.shape == tokenizer.carry(torch.rand(1, 196, 8), found).shape == (2, budget, 8)
    torch.testing.assert_close(found.row_heights.sum(-1), torch.full((2,), 224.0))
    assert (found.row_heights > 0).all()
    assert (found.strip_edges.diff(dim=-1) > 0).all()
    assert found.strip_edges[:, 0].tolist() == [0, 0]
    assert found.strip_edges[:, -1].tolist() == [rows * 224] * 2
    x0, y0, x1, y1 = found.regions.unbind(-1)
    assert torch.stack([x0, y0, x1 - x0 - 1e-3, y1 - y0 - 1e-3, 224.001 - x1, 224.001 - y1]).min() >= 0


def test_a_map_counts_every_part_of_a_straddling_token(tokenizer):
    heights, edges = torch.tensor([[24.0, 8.0, 16.0]]), torch.tensor([[0.0, 1.0, 5.5, 6.0]])  # 3 x 2 cells, 3 tokens
    expected = [[1, 0, 0.5, 0, 0, 0], [0, 1, 0.5, 1, 1, 0.5], [0, 0, 0, 0, 0, 0.5]]
    assert strip_shares(heights, edges, (3, 2))[0].tolist() == expected
    found = tokenizer.read(random(2, 3, 224, 224).float(), (4 * random(2, 14, 14)).exp().float(), 121, 11)
    whole = tokenizer.share_cells(found, tokenizer.grid_size).sum(1)
    torch.testing.assert_close(whole, torch.ones(2, 196), rtol=0, atol=1e-4)


def test_a_straddling_token_is_drawn_in_the_row_of_its_middle():
    heights, edges = torch.tensor([[60.0, 40.0]]), torch.tensor([[0.0, 70.0, 120.0, 200.0]])
    expected = [[0, 0, 70, 60], [70, 0, 100, 60], [20, 60, 100, 100]]  # the second ends at 20 of the second row
    assert token_regions(heights, edges, 100)[0].tolist() == expected


@torch.no_grad()
def test_uniform_scores_give_the_patches_and_positions_of_every_nominal_pixel(tokenizer):
    images = random(2, 3, 448, 448, dtype=torch.float32)
    uniform, table = torch.full((2, 14, 14), 0.6), torch.randn(1, 196, 8).expand(2, -1, -1)
    for size, step in ((224, 1), (448, 2)):
        given = images[..., :size, :size]
        found = tokenizer.read(given, uniform, 196, 14)
        expected = tokenizer.proj(given[..., ::step, ::step]).flatten(2).transpose(1, 2)
        torch.testing.assert_close(found.tokens, expected, rtol=0, atol=1e-3)
        carried = tokenizer.carry(table[:1], found) if size == 224 else table
        torch.testing.assert_close(carried, table, rtol=0, atol=1e-4)


@torch.no_grad()
def test_tokens_depend_on_batch_mates(tokenizer):
    images = random(3, 3, 224, 224, dtype=torch.float32)
    images[1:] *= torch.tensor([0.1, 3]).view(2, 1, 1, 1)
    alone, among = tokenizer.inspect(images[:1]), tokenizer.inspect(images)
    assert (alone.strip_edges - among.strip_edges[:1]).abs().max() > 0.1
    assert (alone.tokens - among.tokens[:1]).abs().max() > 1e-3
    # The scores alone carry the dependence: with the same scores, the same tokens.
    again = tokenizer.read(images[:1], among.scores[:1], 196, 14)
    torch.testing.assert_close(again.tokens, among.tokens[:1])


def test_the_gradient_reaches_the_head_of_the_score_network_and_ends_there():
    for name in ("mobilenetv3_small_v1", "mobilenetv3_small_v2"):
        tokenizer = PaperTokenizer(224, embed_dim=8, scorer=name)
        tokenizer(random(2, 3, 224, 224, dtype=torch.float32)).square().sum().backward()
        assert all(p.grad is None for p in tokenizer.scorer.features.parameters())
        assert all(p.grad.isfinite().all() for p in tokenizer.scorer.mlp.parameters())
        assert tokenizer.scorer.mlp.net[2].weight.grad.abs().max() > 0


class Touches:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_published_weights_are_read_as_tensors_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    refusal = "pretrained = True: the weights of scorer 'mobilenet_v3_small' cannot be had .*pretrained=False$"
    with pytest.raises(ValueError, match=refusal):
        PaperScorer("mobilenetv3_small_v1", pretrained=True)
    cached = tmp_path / "hub/checkpoints/mobilenet_v3_small-047dcff4.pth"
    torch.save({"features.0.0.weight": Touches(tmp_path / "touched")}, cached)
    with pytest.raises(ValueError, match=refusal):
        PaperScorer("mobilenetv3_small_v1", pretrained=True)
    assert not (tmp_path / "touched").exists()
    model = mobilenet_v3_small()
    torch.save(model.state_dict(), cached)
    scorer = PaperScorer("mobilenetv3_small_v1", pretrained=True)
    assert torch.equal(scorer.features[0][0].weight, model.features[0][0].weight)


def test_training_mode_moves_the_statistics_of_the_frozen_features():
    scorer, images = PaperScorer("mobilenetv3_small_v1").train(), random(2, 3, 64, 64, dtype=torch.float32)
    before = scorer.features[0][1].running_mean.clone()
    scorer(images)
    assert not torch.equal(before, scorer.features[0][1].running_mean)


def test_constant_images_have_finite_gradients(tokenizer):
    images = torch.full((2, 3, 224, 224), 0.5)
    tokenizer.zero_grad()
    tokenizer(images).sum().backward()
    assert all(p.grad.isfinite().all() for p in tokenizer.parameters() if p.requires_grad)


@pytest.mark.parametrize("rest", [0.0, 1e-12, 1e-6])
def test_one_dominant_cell_leaves_everything_finite(rest):
    scores = torch.full((1, 14, 14), rest)
    scores[0, 3, 9] = 1
    scores.requires_grad_()
    cut = cut_image(scores, 20, 392)
    sum(part.square().sum() for part in cut).backward()
    assert all(part.isfinite().all() for part in (*cut, scores.grad))
    assert (cut.edges.diff(dim=-1) >= 0).all()


@torch.no_grad()
def test_autocast_leaves_the_geometry_alone(tokenizer):
    images, scores = random(1, 3, 224, 224, dtype=torch.float32), random(1, 14, 14, dtype=torch.float32) + 0.1
    plain = tokenizer.read(images, scores, 196, 14)
    with torch.autocast("cpu", torch.bfloat16):
        cast = tokenizer.read(images, scores, 196, 14)
        assert tokenizer.inspect(images).strip_edges.dtype == torch.float32
    assert torch.equal(plain.strip_edges, cast.strip_edges)
    assert torch.equal(plain.patches, cast.patches)


@torch.no_grad()
@pytest.mark.parametrize("name", SCORERS)
def test_scores_are_positive_on_the_grid_asked_for(name):
    scores = PaperScorer(name, "224").eval()(random(1, 3, 96, 160, dtype=torch.float32), (6, 10))
    assert scores.shape == (1, 6, 10)
    assert (scores > 0).all()


def test_points_come_back_from_the_warp():
    sizes = random(2, 9) + 0.3
    sizes = sizes * (144 / sizes.sum(-1, keepdim=True))
    places = random(2, 50, seed=1) * 143
    torch.testing.assert_close(map_axis(map_axis(places, sizes, "warped"), sizes, "source"), places, rtol=0, atol=1e-5)
    grid = GridWarp(sizes, sizes.flip(-1))
    low, side = random(2, 5, 2, seed=2) * 60, random(2, 5, 2, seed=3) * 60
    boxes = torch.cat([low, low + side], -1)
    torch.testing.assert_close(map_boxes(map_boxes(boxes, grid, "warped"), grid, "source"), boxes, rtol=0, atol=1e-5)


def test_masks_stay_masks_in_one_call_warps():
    grid = GridWarp(random(1, 4) + 0.5, random(1, 6) + 0.5)
    mask = (random(1, 1, 64, 96) > 0.5).double()
    for warped in (warp_by_points(mask, grid), unwarp_by_points(mask, grid)):
        assert set(warped.unique().tolist()) == {0, 1}
    assert 0 < float(warp_by_points(mask * 0.5, grid).max()) <= 0.5


def test_rows_of_a_clip_are_those_of_the_paper_rounding_included():
    assert VideoTokenizer(4, 784, 8).num_rows == 56
    assert VideoTokenizer(9, 961, 8).num_rows == 92  # sqrt(961 / 9) * 9 is just below 93
    assert VideoTokenizer(9, 961, 8, num_rows=93).num_rows == 93


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: PaperTokenizer(384), "img_size = 384: paper mode knows 448 and 224 px only"),
        (lambda: PaperTokenizer((448, 224)), r"img_size = \(448, 224\): paper mode knows"),
        (lambda: PaperTokenizer(448, in_chans=1), "in_chans = 1: paper mode needs 3"),
        (lambda: PaperTokenizer(448, scorer="mnasnet"), "scorer = 'mnasnet': unknown in paper mode; known: mobile"),
        (lambda: PaperTokenizer(448, score_input="256"), "score_input = '256': must be 'full' or '224'"),
        (lambda: PaperTokenizer(448, token_budget=0), "token_budget = 0: must be from 1"),
        (lambda: PaperTokenizer(448, token_budget=9, num_rows=10), "num_rows = 10: must be from 1"),
        (lambda: PaperReshaper(384), "img_size = 384: paper mode knows 448 and 224 px only"),
        (lambda: VideoTokenizer(1, 196), "num_frames = 1: must be at least 2"),
        (lambda: DenseReshaper()(torch.zeros(1, 3, 100, 160)), "images = 100 x 160 px: both sides must be multiples"),
        (lambda: DenseReshaper()(torch.zeros(1, 1, 96, 160)), r"images = \(1, 1, 96, 160\): must be \(batch, 3, heig"),
        (lambda: DenseReshaper()(torch.full((1, 3, 96, 160), torch.nan)), r"images\[0\] = NaN or infinity"),
        (lambda: VideoTokenizer(2, 64).inspect(torch.zeros(1, 3, 3, 224, 224)), r"clips = .*must be \(batch, 3, 2, 2"),
        (
            lambda: VideoTokenizer(2, 64).inspect(torch.full((1, 3, 2, 224, 224), torch.inf)),
            r"images\[0\] = NaN or inf",
        ),
        (
            lambda: map_axis(torch.zeros(1, 2), torch.ones(1, 3), "sauce"),
            "to = 'sauce': unknown; known: warped, source",
        ),
        (
            lambda: sample_tokens(torch.zeros(1, 3, 4, 4), *random_cut(1, 1, 2, 4, 4), 2, along="cubic"),
            "along = 'cubic'",
        ),
    ],
)
def test_bad_arguments_get_a_sentence(build, says):
    with pytest.raises(ValueError, match=says):
        build()


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((1, 3, 384, 384), "images = 384 x 384 px: must be 224 x 224"),
        ((1, 1, 224, 224), r"images = \(1, 1, 224, 224\): must be \(batch, 3, height, width\)"),
        ((3, 224, 224), r"images = \(3, 224, 224\)"),
    ],
)
def test_bad_images_get_a_sentence(tokenizer, shape, says):
    with pytest.raises(ValueError, match=says):
        tokenizer(torch.zeros(shape))


def test_pixels_that_are_not_numbers_get_a_sentence(tokenizer):
    images = torch.zeros(2, 3, 224, 224)
    images[1, 0, 7, 7] = torch.nan
    with pytest.raises(ValueError, match=r"images\[1\] = NaN or infinity"):
        tokenizer(images)
