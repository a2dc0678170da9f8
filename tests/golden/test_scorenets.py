"""scorenets.npz: the score networks, at both input sizes, alone and with a batch mate."""

from functools import cache

import torch

from dart.paper.scorer import PaperScorer, resize

from .goldens import both_precisions, check, fill, load, picture

KINDS = {"small": "mobilenetv3_small", "large": "mobilenetv3_large", "effb0": "efficientnet_b0"}


@both_precisions
@torch.no_grad()
def test_scores(dtype):
    golden = load("scorenets.npz")
    images = picture((max(map(len, golden.values())), 3, 448, 448), 3, dtype)
    ours = {}
    for name in golden:
        kind, version, size, batch = name.split("_")
        given = images[: int(batch.removeprefix("b"))]
        given = given if size == "448" else resize(given, (int(size), int(size)))
        ours[name] = scorer(f"{KINDS[kind]}_{version}").to(dtype)(given).flatten(1)
    check(golden, ours, (), {"": 5e-5})


@cache
def scorer(name):
    """A score network with the reference run's parameters."""
    return fill(PaperScorer(name), lambda entry: f"spn.spn.{entry}")
