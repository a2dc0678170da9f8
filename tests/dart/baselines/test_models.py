"""The theorems of a whole model with a reducer: it is the plain one until it takes something away."""

import itertools
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import dart.models
from dart.cost import count_macs
from dart.registry import REDUCERS
from tests.dart.on_meta import OnMeta

OPTIONS: dict[str, dict[str, Any]] = {
    "tome": {},
    "evit": {"fuse": True},
    "dynamicvit": {"ratio_weight": 2.0},
    "ats": {},
}
SMALL = {"num_classes": 10, "in_chans": 1, "token_budget": 36}
DEIT = {
    **SMALL, "embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 64, "patch_size": 8, "table_size": 4,
    "token_budget": 16,
}  # fmt: skip
KINDS = [("uniform_vit_micro", SMALL), ("uniform_deit_tiny", DEIT), ("dart_vit_micro", SMALL)]
REDUCED = [(*kind, reducer) for kind in KINDS for reducer in REDUCERS]


def build(name: str, kwargs: dict[str, Any], reducer: str | None, keep: float = 0.5, **more: Any) -> Any:
    torch.manual_seed(0)
    options = None if reducer is None else {"name": reducer, "keep": keep, **OPTIONS[reducer], **more}
    return dart.models.build(name, **kwargs, reducer=options).eval()


def images_for(model: Any, batch: int = 3) -> Tensor:
    return torch.rand(batch, 1, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(1))


def test_every_reducer_is_tested_here() -> None:
    assert OPTIONS.keys() == REDUCERS.keys()
    assert {name: tuple(options) for name, options in OPTIONS.items()} == REDUCERS


@pytest.mark.parametrize(("name", "kwargs", "reducer"), REDUCED)
def test_what_keeps_everything_is_the_plain_model_bit_for_bit(name: str, kwargs: dict[str, Any], reducer: str) -> None:
    plain, model = build(name, kwargs, None), build(name, kwargs, reducer, keep=1.0)
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in plain.named_parameters()]
    images = images_for(model)
    for training in (False, True):
        assert torch.equal(model.train(training)(images), plain.train(training)(images))


@pytest.mark.parametrize(("name", "kwargs", "reducer"), REDUCED)
def test_a_reducer_leaves_the_weights_of_its_plain_twin(name: str, kwargs: dict[str, Any], reducer: str) -> None:
    plain, model = build(name, kwargs, None), build(name, kwargs, reducer)
    extra = model.state_dict().keys() - plain.state_dict().keys()
    assert all(key.startswith("reducer.predictors.") for key in extra)
    assert bool(extra) == (reducer == "dynamicvit")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize(("name", "kwargs", "reducer"), REDUCED)
def test_an_image_does_not_depend_on_its_batch_mates(name: str, kwargs: dict[str, Any], reducer: str) -> None:
    model = build(name, kwargs, reducer).double()
    images = images_for(model, 4).double()
    images[1:] = 1 - 3 * images[1:]
    torch.testing.assert_close(model(images[:1])[0], model(images)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "kwargs", "reducer"), REDUCED)
def test_as_many_tokens_as_planned_whatever_the_budget(name: str, kwargs: dict[str, Any], reducer: str) -> None:
    model = build(name, kwargs, reducer)
    images = images_for(model)
    for budget in (9, 16, 25):
        features = model.reduce(model.embed(images, budget)[0]).tokens
        assert features.shape[1] == model.num_prefix_tokens + round(budget * 0.5)
    asked = model(images, num_patches=16)
    model.set_token_budget(16)
    assert torch.equal(asked, model(images))


@pytest.mark.parametrize(("name", "kwargs", "reducer"), REDUCED)
def test_timms_contract(name: str, kwargs: dict[str, Any], reducer: str) -> None:
    model = build(name, kwargs, reducer)
    images = images_for(model)
    features = model.forward_features(images)
    assert torch.equal(model.forward_head(features), model(images))
    final, maps = model.forward_intermediates(images, indices=[0, 2])
    torch.testing.assert_close(final, features)
    side = round(kwargs["token_budget"] ** 0.5)
    assert [m.shape for m in maps] == [(3, model.embed_dim, side, side)] * 2
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    grids = timm.create_model(name, features_only=True, out_indices=(1,), reducer=reducer_of(reducer), **kwargs)
    assert grids.eval()(images)[0].shape == (3, model.embed_dim, side, side)
    with pytest.raises(ValueError, match="attn_mask, is_causal: a reducer's tokens have no fixed places"):
        model(images, is_causal=True)


def reducer_of(name: str, keep: float = 0.5) -> dict[str, Any]:
    return {"name": name, "keep": keep, **OPTIONS[name]}


@pytest.mark.parametrize(("name", "kwargs", "reducer"), REDUCED)
def test_gradients_reach_all_that_learns_and_checkpointing_changes_none(
    name: str, kwargs: dict[str, Any], reducer: str
) -> None:
    gradients = []
    for enable in (False, True):
        model = build(name, kwargs, reducer).train()
        for parameter in model.parameters():  # heads of scorers begin at zero
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        model.set_grad_checkpointing(enable)
        torch.manual_seed(2)
        answer = model(images_for(model), auxiliary=True)
        (answer.logits.square().sum() + answer.auxiliary).backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient is not None, key
        assert gradient.isfinite().all(), key
        assert gradient.any(), key
        torch.testing.assert_close(gradient, gradients[1][key], msg=key)


def test_the_task_alone_teaches_the_predictors_what_to_keep() -> None:
    model = build("uniform_vit_micro", SMALL, "dynamicvit", ratio_weight=0.0).train()
    answer = model(images_for(model), auxiliary=True)
    assert answer.auxiliary == 0
    answer.logits.square().sum().backward()
    assert all(p.grad.any() for p in model.reducer.predictors.parameters())


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("training", [False, True])
def test_no_step_waits_for_the_device(reducer: str, training: bool) -> None:
    """Shapes are known before any pixel: the forward pass runs on tensors without data."""
    model = build("uniform_vit_micro", SMALL, reducer).to("meta").train(training)
    with OnMeta():
        assert model(torch.empty(2, 1, 96, 96, device="meta")).shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize("reducer", REDUCERS)
def test_one_graph(reducer: str) -> None:
    torch._dynamo.reset()
    model = build("uniform_vit_micro", {**SMALL, "token_budget": 16}, reducer)
    images = images_for(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


def test_merging_equal_tokens_changes_nothing() -> None:
    """Tokens are pairwise equal; ToMe makes each pair one, which counts twice in attention and in the mean."""
    plain, model = (build("uniform_vit_nano", {**SMALL, "depth": 1}, name).double() for name in (None, "tome"))
    tokens = torch.randn(2, 8, 32, dtype=torch.float64).repeat_interleave(2, 1)
    torch.testing.assert_close(
        model.forward_head(model.run_blocks(tokens)), plain.forward_head(plain.run_blocks(tokens))
    )
    same = torch.randn(2, 1, 32, dtype=torch.float64).expand(-1, 16, -1)  # and in several blocks, if all are equal
    plain, model = (build("uniform_vit_micro", {**SMALL, "embed_dim": 32}, name).double() for name in (None, "tome"))
    torch.testing.assert_close(model.forward_head(model.run_blocks(same)), plain.forward_head(plain.run_blocks(same)))


@pytest.mark.parametrize(("name", "kwargs"), KINDS)
def test_tome_stands_for_every_token_to_the_end(name: str, kwargs: dict[str, Any]) -> None:
    model = build(name, kwargs, "tome")
    tokens = model.embed(images_for(model))[0]
    stream = model.reducer.follow(tokens)
    counts = model.reducer.plan(kwargs["token_budget"])
    for index, block in enumerate(model.blocks):
        stream = model.reducer.step(index, block, stream, counts[index])
        for image in range(3):
            occurs = torch.bincount(stream.places[image], minlength=counts[index])
            assert torch.equal(occurs.float(), stream.weights[image])
    assert torch.equal(stream.weights.sum(1), torch.full((3,), float(kwargs["token_budget"])))


def tome_macs(counts: list[int], width: int, mlp_ratio: float, head_dim: int) -> int:
    """Blocks of a ToMe by hand: attention over what comes, matching, MLP on what leaves."""
    total = 0.0
    for before, after in itertools.pairwise(counts):
        total += before * 4 * width**2 + 2 * before**2 * width
        total += (before + 1) // 2 * (before // 2) * head_dim * (after < before)
        total += after * 2 * mlp_ratio * width**2
    return int(total)


def test_the_counter_counts_what_is_left_and_the_matching() -> None:
    plain, model = (build("uniform_vit_micro", SMALL, name) for name in (None, "tome"))
    shape = (1, 1, 96, 96)
    saved = count_macs(plain, shape) - count_macs(model, shape)
    assert model.reducer.plan(36) == (30, 24, 18)
    assert saved == tome_macs([36] * 4, 64, 2.0, 16) - tome_macs([36, 30, 24, 18], 64, 2.0, 16)


@pytest.mark.parametrize(
    ("reducer", "keep", "published"),
    [
        ("tome", 1 - 12 * 8 / 196, 3.4),  # 8, 13 and 16 merges in each of 12 blocks
        ("tome", 1 - 12 * 13 / 196, 2.7),
        ("tome", 10 / 196, 2.3),
        ("evit", 0.7**3, 3.0),  # the share that each of three stages keeps
        ("evit", 0.5**3, 2.3),
    ],
)
def test_a_reduced_deit_small_costs_what_is_published(reducer: str, keep: float, published: float) -> None:
    """The papers' GFLOPs, to one decimal."""
    with torch.device("meta"):
        model = dart.models.build("uniform_deit_small", reducer=reducer_of(reducer, keep)).eval()
        assert round(count_macs(model, (1, 3, 448, 448)) / 1e9, 1) == published


def test_dynamicvit_costs_more_than_is_published_by_no_more_than_its_predictors() -> None:
    """0.7 of the tokens at each stage, published as 2.9 GFLOPs; ours counts what predicts."""
    with torch.device("meta"):
        model = dart.models.build("uniform_deit_small", reducer=reducer_of("dynamicvit", 0.7**3)).eval()
        total = count_macs(model, (1, 3, 448, 448))
        tokens = (196, 137, 96)
        predictors = [count_macs(p, (1, n, 384)) for p, n in zip(model.reducer.predictors, tokens, strict=True)]
    assert round(total / 1e9, 1) == 3.0
    assert round((total - sum(predictors)) / 1e9, 1) == 2.9


@pytest.mark.parametrize("reducer", REDUCERS)
def test_cost_falls_with_the_share_and_is_that_of_any_image(reducer: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    costs = [count_macs(build("uniform_vit_micro", SMALL, reducer, keep), (1, 1, 96, 96)) for keep in (0.9, 0.5, 0.3)]
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == 3
    model, found = build("uniform_vit_micro", SMALL, reducer), set()
    for images in (torch.zeros(1, 1, 96, 96), torch.rand(1, 1, 96, 96), torch.eye(96)[None, None]):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(images)
        found.add(counter.get_total_flops())
    assert len(found) == 1


def test_what_cannot_be_reduced_is_refused() -> None:
    options = {"name": "tome", "keep": 0.5}
    with pytest.raises(ValueError, match=r"reducer = .*: a segmenter paints every token; leave it out"):
        timm.create_model("uniform_vit_micro_segmenter", reducer=options)
    with pytest.raises(ValueError, match="global_pool = 'max': tokens that were taken away can be pooled as"):
        timm.create_model("uniform_vit_micro", reducer=options, global_pool="max")
    model = build("uniform_vit_micro", SMALL, "ats")
    model.reset_classifier(5)
    with pytest.raises(ValueError, match="global_pool = 'max': tokens that were taken away can be pooled as"):
        model.reset_classifier(5, "max")
    with pytest.raises(ValueError, match=r"embed_dim = 63: must be a multiple of 4, .*; try 64"):
        build("uniform_deit_tiny", {**DEIT, "embed_dim": 63, "num_heads": 3}, "dynamicvit")
    with pytest.raises(ValueError, match=r"reducer.keep = '0.5': must be above 0"):
        build("uniform_vit_micro", SMALL, "tome", keep="0.5")
    with pytest.raises(ValueError, match="reducer = None: the model has none"):
        build("uniform_vit_micro", SMALL, None)(torch.rand(1, 1, 96, 96), auxiliary=True)
