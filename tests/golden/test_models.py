"""models.npz: whole classifiers, from an official checkpoint to logits, and gradients down to the score network."""

import copy
import re

import pytest
import timm
import torch

import dart.models  # noqa: F401 - registers the models
from dart.official import convert

from .goldens import FLOAT32_LIMITS, both_precisions, check, entry_names, load, parameters, picture, tensor

GOLDEN = load("models.npz")
# A run is a model and what its score network sees: tiny196v2_full.
RUNS = sorted({"_".join(name.split("_")[:2]) for name in GOLDEN})
VARIANTS = {"tiny": "tiny", "sm": "small"}
# The short names of parameters in the arrays of gradients.
PARAMETERS = {"mlp": "patch_embed.scorer.mlp.net.", "proj_": "patch_embed.proj.", "head_": "head."}


@both_precisions
@pytest.mark.parametrize("run", RUNS)
def test_model(run, dtype):
    golden = {name.removeprefix(f"{run}_"): array for name, array in GOLDEN.items() if name.startswith(f"{run}_")}
    model = load_model(run).to(dtype).eval()
    images = pictures(model, golden, dtype)
    ours = {}
    for batch in sorted({name.split("_")[0] for name in golden} - {"grad"}):
        values = everything(model, images[: int(batch.removeprefix("b"))], golden[f"{batch}_score"])
        names = [name for name in golden if name.startswith(f"{batch}_")]
        ours |= {name: part for name in names if (part := pick(values, name.removeprefix(f"{batch}_"))) is not None}
    if "grad_w" in golden:
        ours |= gradients(model, images, golden)
    # A vector's length may be off by what each of its D entries may be off, times the root of D.
    length = FLOAT32_LIMITS[""] * model.embed_dim**0.5
    check(golden, ours, {"grad_w"}, {"norm": length})


def load_model(run):
    """The model of a run, by way of its official checkpoint."""
    name, given = run.split("_")
    # Low resolution is 224 px, whether the name says so or not: the reference knows no other size.
    variant, budget, head, low = re.fullmatch(r"([a-z]+)(\d+)(v2)?(lowres(?:224)?)?", name).groups()
    side = 224 if low else 448
    state = parameters(entry_names(f"darvit_{variant}" + (f"_{head}" if head else "")))
    options = {"token_budget": int(budget), "img_size": side, "score_input": given.removeprefix("r")}
    name, kwargs, state = convert(state, f"dart_deit_{VARIANTS[variant]}", **options)
    model = timm.create_model(name, **kwargs)
    model.load_state_dict(state)
    return model


def pictures(model, golden, dtype):
    """The reference's pictures: extra models have a seed of their own, so the score array says which it is."""
    batch = max(len(array) for name, array in golden.items() if name.endswith("logits") or name == "grad_w")
    shape = (batch, 3, *model.patch_embed.img_size)
    name = next(name for name in golden if name.endswith("score"))
    for seed in (4, 5):
        images = picture(shape, seed, dtype)
        with torch.no_grad():
            scores = model.patch_embed.scorer(images[: len(golden[name])]).flatten(1)
        if float((scores.double() - tensor(golden[name], torch.float64)).abs().max()) < 1e-3:
            break
    return images


@torch.no_grad()
def everything(model, images, golden_scores):
    """All that the goldens hold of a batch, in full.

    In float32 the geometry is given the golden scores: it multiplies the rounding of the score network, which is
    another one on every CPU. Scores and logits are ours from end to end.
    """
    embed = model.patch_embed
    found = embed.inspect(images)
    scores = found.scores.flatten(1)
    if images.dtype == torch.float32:
        given = tensor(golden_scores, images.dtype).view_as(found.scores)
        found = embed.read(images, given, embed.num_patches, found.row_heights.shape[-1])
    positions = embed.carry(model.pos_embed[:, 1:], found)
    return {
        "logits": model(images),
        "score": scores,
        "heights": found.row_heights,
        "edges_px": found.strip_edges,
        "tokens": found.tokens,
        "pos": positions,
    }


def pick(values, name):
    """The value an array is named after: all of it, its first or last entries along the tokens, or their norms."""
    if name in values:
        return values[name]
    kind, part = name.rsplit("_", 1)
    if kind not in values:
        return None
    if part == "norm":
        return values[kind].norm(dim=-1)
    match = re.fullmatch(r"(first|last)(\d+)", part)
    return match and (values[kind][:, : int(match[2])] if match[1] == "first" else values[kind][:, -int(match[2]) :])


def gradients(model, images, golden):
    """The derivatives of a weighted sum of the logits that the goldens ask for, at scores exact to the dtype.

    The derivative by an edge jumps wherever a sample crosses a pixel: the score network's rounding would move some.
    """
    exact = copy.deepcopy(model.patch_embed.scorer).double()
    model.patch_embed.scorer.register_forward_hook(
        lambda _, given, scores: scores + (exact(given[0].double(), *given[1:]) - scores).detach().to(scores.dtype)
    )
    weights = tensor(golden["grad_w"], images.dtype)
    (model(images[: len(weights)]) * weights).sum().backward()
    grads = {f"grad_{short_name(name)}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: grad for name in golden if (grad := pick(grads, name)) is not None}


def short_name(name):
    """A parameter as the goldens say it: mlp2_weight, proj_bias, pos_embed."""
    short, prefix = next(((s, p) for s, p in PARAMETERS.items() if name.startswith(p)), ("", ""))
    return short + name.removeprefix(prefix).replace(".", "_")
