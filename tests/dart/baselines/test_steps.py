"""The theorems of each reducer's own step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor

from dart.baselines.ats import Sampled, TokenSampling, renumber_fresh, sample
from dart.baselines.build import build_reducer
from dart.baselines.dynamicvit import LearnedPruning, masked_attention
from dart.baselines.evit import AttentivePruning, fuse_others, renumber
from dart.baselines.stream import Heads, Stream, attention_weights, log_bias, mix, project, received, restore
from dart.baselines.tome import TokenMerging, match, merge

SHAPES = {"num_tokens": st.integers(4, 33), "seed": st.integers(0, 10**6), "share": st.floats(0.0, 0.5)}


def attention(dim: int = 12, heads: int = 3) -> Attention:
    torch.manual_seed(0)
    return Attention(dim, heads, qkv_bias=True).double().eval()


def block(dim: int = 12) -> Block:
    torch.manual_seed(0)
    return Block(dim, 3, qkv_bias=True).double().eval()


def tokens_of(batch: int, count: int, dim: int = 12, seed: int = 1) -> Tensor:
    return torch.randn(batch, count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ToMe


@given(**SHAPES)
def test_tome_leaves_as_many_places_as_asked_for_and_none_is_empty(num_tokens: int, seed: int, share: float) -> None:
    gone = int(share * num_tokens)
    mapping = match(tokens_of(3, num_tokens, seed=seed), gone)
    for places in mapping:
        assert sorted(set(places.tolist())) == list(range(num_tokens - gone))


def test_tome_merges_the_most_similar_pairs() -> None:
    """Of 6 directions in the plane, 10 and 12 degrees, and 40 and 45, are the nearest of first and second."""
    angles = torch.tensor([[0.17, 3.0, 0.70, 0.21, 5.0, 0.79]])  # looked: 0, 2, 4; looked at: 1, 3, 5
    metric = torch.stack([angles.cos(), angles.sin()], -1)
    assert match(metric, 2).tolist() == [[2, 1, 3, 2, 0, 3]]


@given(**SHAPES)
def test_merged_tokens_are_means_of_the_first_ones_and_keep_their_number(
    num_tokens: int, seed: int, share: float
) -> None:
    """Twice merged is once averaged: sizes are how many, and add up to all of them."""
    first = tokens_of(2, num_tokens, seed=seed)
    tokens, sizes, places = first, None, torch.arange(num_tokens).expand(2, -1)
    for _ in range(2):
        left = tokens.shape[1] - int(share * tokens.shape[1])
        mapping = match(tokens, tokens.shape[1] - left)
        tokens, sizes = merge(tokens, sizes, mapping, left)
        places = mapping.gather(1, places)
    assert torch.equal(sizes.sum(1), torch.full((2,), float(num_tokens)))
    for image in range(2):
        for place in range(tokens.shape[1]):
            mine = first[image, places[image] == place]
            assert sizes[image, place] == len(mine)
            torch.testing.assert_close(tokens[image, place], mine.mean(0))


def test_proportional_attention_is_attention_over_duplicated_tokens() -> None:
    attn, distinct = attention(), tokens_of(2, 5)
    copies = torch.tensor([1, 3, 2, 1, 4])
    duplicated = distinct.repeat_interleave(copies, 1)
    sizes = copies.double().expand(2, -1)
    for prefix in (0, 1):  # a class token counts once
        weights = sizes[:, prefix:]
        ours = mix(attn, project(attn, distinct), log_bias(weights, prefix))
        theirs = attn(duplicated).split(copies.tolist(), 1)
        torch.testing.assert_close(ours, torch.cat([one[:, :1] for one in theirs], 1))


@pytest.mark.parametrize("count", [6, 4])
def test_a_block_on_merged_tokens_is_the_block_on_all_of_them(count: int) -> None:
    """Whether it merges more of them or not: those it leaves alone, and the class token, are as if none was merged."""
    layer, distinct, copies = block(), tokens_of(2, 1 + 6), torch.tensor([1, 2, 1, 3, 1, 1, 2])
    whole = layer(distinct.repeat_interleave(copies, 1))[:, copies.cumsum(0) - 1]
    reducer = TokenMerging(0.5, 1, 1, True)
    sizes = copies[1:].double().expand(2, -1)
    stream = reducer.step(0, layer, reducer.follow(distinct)._replace(weights=sizes), count)
    torch.testing.assert_close(stream.tokens[:, 0], whole[:, 0])
    for image in range(2):
        places = stream.places[image].tolist()
        alone = [token for token, place in enumerate(places) if places.count(place) == 1]
        assert len(alone) >= 2
        for token in alone:
            torch.testing.assert_close(stream.tokens[image, 1 + places[token]], whole[image, 1 + token])


def test_attention_taken_apart_is_timms() -> None:
    attn, x = attention(), tokens_of(2, 7)
    heads = project(attn, x)
    torch.testing.assert_close(mix(attn, heads), attn(x))
    weights = attention_weights(attn, heads)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 7, dtype=torch.float64))
    assert torch.equal(received(weights, 1, True), weights[:, :, 0, 1:])
    torch.testing.assert_close(received(weights, 0, False).sum(-1), torch.ones(2, 3, dtype=torch.float64))
    half = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]]).expand(2, -1)
    torch.testing.assert_close(received(weights, 0, False, half), weights[:, :, [0, 1, 4]].mean(2))


# EViT


def test_the_fused_token_is_the_weighted_mean_of_those_left_out() -> None:
    tokens, scores = tokens_of(2, 6), torch.rand(2, 6, dtype=torch.float64) + 0.1
    kept = torch.tensor([[1, 4], [0, 5]])
    fused = fuse_others(tokens, scores, kept)
    for image, others in enumerate(([0, 2, 3, 5], [1, 2, 3, 4])):
        weights = scores[image, others] / scores[image, others].sum()
        torch.testing.assert_close(fused[image, 0], weights @ tokens[image, others])
    same = torch.ones_like(tokens) * tokens[:, :1]  # the mean of equal tokens is that token: no shrinking
    torch.testing.assert_close(fuse_others(same, scores, kept), same[:, :1])


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("fuse", [False, True])
def test_evit_keeps_the_tokens_that_are_attended_to_most(class_token: bool, fuse: bool) -> None:
    layer, prefix = block(), int(class_token)
    reducer = AttentivePruning(0.5, 1, prefix, class_token, fuse=fuse)
    x = tokens_of(2, prefix + 8)
    weights = attention_weights(layer.attn, project(layer.attn, layer.norm1(x)))
    scores = received(weights, prefix, class_token).mean(1)
    stream = reducer.step(0, layer, reducer.follow(x), 4)
    assert stream.tokens.shape == (2, prefix + 4, 12)
    for image in range(2):
        left = stream.places[image] < 4 - fuse
        assert left.sum() == 4 - fuse
        assert scores[image, left].min() >= scores[image, ~left].max()
    # What is kept is what the plain block makes of it: all tokens are still keys there.
    plain = layer(x)[:, prefix:]
    for image in range(2):
        mine = stream.places[image] < 4 - fuse
        torch.testing.assert_close(stream.tokens[image, prefix : prefix + 4 - fuse], plain[image, mine])


def test_renumbered_places_follow_the_tokens_and_what_is_gone_is_zero() -> None:
    assert renumber(torch.tensor([[1, 3]]), 5).tolist() == [[2, 0, 2, 1, 2]]
    stream = Stream(tokens_of(1, 3), places=torch.tensor([[0, 2, 1, 0]]))  # class token, two patches, one gone
    shown = restore(stream, 1)
    assert torch.equal(shown[0, 0], stream.tokens[0, 0])
    assert torch.equal(shown[0, 1], shown[0, 4])
    assert torch.equal(shown[0, 3], stream.tokens[0, 2])
    assert not shown[0, 2].any()


# DynamicViT


def test_attention_with_everything_kept_is_attention() -> None:
    attn, x = attention(), tokens_of(2, 7)
    heads = project(attn, x)
    kept = torch.ones(2, 7, dtype=torch.float64)
    torch.testing.assert_close(
        masked_attention(attn, heads, kept), attention_weights(attn, heads), rtol=1e-5, atol=1e-6
    )


def test_a_dropped_token_is_a_key_to_itself_alone_even_if_its_logit_is_huge() -> None:
    attn, heads = attention(), project(attention(), tokens_of(1, 5))
    heads = Heads(heads.queries, heads.keys * torch.tensor([1.0, 1.0, 1e5, 1.0, 1.0])[:, None], heads.values)
    kept = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0]], requires_grad=True)
    weights = masked_attention(attn, heads, kept)
    others = [0, 1, 3]
    assert not weights[:, :, others][..., [2, 4]].any()
    subset = Heads(*(part[:, :, others] for part in heads))
    torch.testing.assert_close(
        weights[:, :, others][..., others], attention_weights(attn, subset), rtol=1e-5, atol=1e-6
    )
    (weights @ heads.values).square().sum().backward()
    assert kept.grad.isfinite().all()
    assert kept.grad[0, 4] != 0  # also where it is masked: else what was dropped could never come back


def test_masking_in_training_is_dropping_in_evaluation() -> None:
    """A block on all tokens with a mask, and a block on those kept alone, agree on those kept, and in the mean."""
    layer, x = block(), tokens_of(1, 1 + 6)
    kept = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    reducer = LearnedPruning(0.5, 3, 1, True, embed_dim=12, ratio_weight=2.0).double()
    masked = reducer.step(0, layer, Stream(x, kept), 6)
    mine = [0, 1, 3, 4]  # the class token and those kept
    torch.testing.assert_close(masked.tokens[:, mine], layer(x[:, mine]), rtol=1e-5, atol=1e-6)


def test_the_ratio_loss_is_the_squared_distance_from_the_planned_share_per_image() -> None:
    torch.manual_seed(0)
    reducer = LearnedPruning(0.25, 3, 0, False, embed_dim=12, ratio_weight=3.0).double().train()
    stream = Stream(tokens_of(4, 16))
    expected = 0.0
    for stage, planned in enumerate((0.5, 0.25)):
        stream = reducer.draw(stage, stream)
        assert set(stream.weights.unique().tolist()) <= {0.0, 1.0}
        expected += 3.0 * (stream.weights.mean(1) - planned).square().mean() / 2
    torch.testing.assert_close(stream.auxiliary, expected.to(stream.auxiliary.dtype))
    first = reducer.draw(0, Stream(tokens_of(4, 16))).weights
    again = reducer.draw(1, Stream(tokens_of(4, 16), first)).weights
    assert ((first == 0) <= (again == 0)).all()  # what is gone stays gone


# ATS


@given(num_tokens=st.integers(1, 40))
def test_as_many_samples_as_equally_significant_tokens_are_all_of_them(num_tokens: int) -> None:
    found = sample(torch.ones(2, num_tokens), num_tokens)
    assert found.fresh.all()
    assert found.indices.tolist() == [list(range(num_tokens))] * 2


@given(num_tokens=st.integers(1, 40), num_points=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_a_token_with_more_than_its_share_is_sampled_and_one_with_none_never(
    num_tokens: int, num_points: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    significance = torch.rand(2, num_tokens, generator=generator) ** 4
    significance[:, ::3] *= torch.randint(2, (1,), generator=generator)
    significance[:, -1] += 0.01
    share = significance / significance.sum(1, keepdim=True)
    indices, fresh = sample(significance, num_points)
    for image in range(2):
        found = indices[image].tolist()
        assert found == sorted(found)
        assert sorted(set(found)) == indices[image, fresh[image]].tolist()
        assert set((share[image] > 1 / num_points + 1e-5).nonzero().flatten().tolist()) <= set(found)
        assert not (share[image, found] == 0).any()


def test_an_empty_place_is_as_if_it_were_not_there() -> None:
    """Neither what is in it nor that it is there changes any token, in a plain block and in one that samples."""
    layer, real = block(), tokens_of(1, 4)
    reducer = TokenSampling(0.5, 1, 0, False)
    padded = torch.cat([real[:, :2], 9 * tokens_of(1, 2, seed=5), real[:, 2:]], 1)
    weights = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0, 1.0]])
    plain = reducer.plain(layer, Stream(padded, weights))
    torch.testing.assert_close(plain.tokens[:, [0, 1, 4, 5]], layer(real))
    ours = reducer.step(0, layer, Stream(padded, weights), 3)
    theirs = reducer.step(0, layer, Stream(real), 3)
    torch.testing.assert_close(ours.tokens, theirs.tokens)
    assert torch.equal(ours.weights, theirs.weights)


def test_what_is_sampled_is_what_the_plain_block_makes_of_it() -> None:
    layer, x = block(), tokens_of(3, 1 + 9)
    reducer = TokenSampling(0.5, 1, 1, True)
    stream = reducer.step(0, layer, reducer.follow(x), 5)
    plain = layer(x)
    torch.testing.assert_close(stream.tokens[:, 0], plain[:, 0])
    for image in range(3):
        assert len(stream.places[image].unique()) == stream.weights[image].sum() + 1  # and those that are gone
        for token, place in enumerate(stream.places[image].tolist()):
            if place < 5:
                torch.testing.assert_close(stream.tokens[image, 1 + place], plain[image, 1 + token])


def test_repeated_samples_take_the_first_place() -> None:
    sampled = Sampled(torch.tensor([[1, 1, 3]]), torch.tensor([[True, False, True]]))
    assert renumber_fresh(sampled, 4).tolist() == [[3, 0, 3, 2]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "tome"}, "must have a name and keep"),
        ({"name": "tome", "keep": 0.5, "fuse": True}, "tome has exactly these options: name, keep"),
        ({"name": "evit", "keep": 0.5}, "evit has exactly these options: name, keep, fuse"),
        ({"name": "dynamicvit", "keep": 0.5, "ratio_weight": -1.0}, "ratio_weight = -1.0: must be at least 0"),
        ({"name": "tome", "keep": 0.1}, "use at least 8 / 64"),
    ],
)
def test_options_that_do_not_belong_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_reducer(options, num_tokens=64, depth=3, embed_dim=12, num_prefix_tokens=0, class_token=False)
