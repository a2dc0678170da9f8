"""functions.npz: the geometry without any network."""

import re

import pytest
import torch

from dart.paper.geometry import average_rows, carry_grid, cut_image, row_heights, strip_density

from .goldens import FOLDER, both_precisions, check, load, tensor

KNOWN_FILES = r"functions|sampling.*|scorenets|models|reshaper|video|vim_.*"


def test_every_file_of_the_folder_has_a_test():
    assert [path.name for path in FOLDER.glob("*.npz") if not re.fullmatch(KNOWN_FILES, path.stem)] == []


def test_what_is_off_and_what_has_no_rule_is_named():
    golden = {"edges": [0.0, 10.0], "score": [1.0], "given": [2.0], "new": [3.0]}
    ours = {"edges": torch.tensor([0.0, 10.001]).double(), "score": torch.tensor([1.000001]).double()}
    with pytest.raises(
        AssertionError, match=r"(?s)no rule for array new.*edges: off by 0.001 \(limit 0.0001"
    ) as caught:
        check(golden, ours, {"given"})
    assert "score" not in str(caught.value).splitlines()[-1]


@both_precisions
def test_functions(dtype):
    golden = load("functions.npz")
    scores = tensor(golden["score"], dtype).unflatten(1, (14, 14)).requires_grad_()
    tokens = tensor(golden["tokens"], dtype).unflatten(1, (14, 14))
    ours = {}
    for name in golden:
        kind, number = re.fullmatch(r"(.*?)_?[RN]?(\d*)", name).groups()
        if kind in ("heights", "tokens_by_heights"):
            _, heights, _ = cut_image(scores, int(number), int(number))
            ours[name] = heights if kind == "heights" else average_rows(tokens, heights).flatten(1, 2)
        elif kind in ("rowpdf", "edges", "tokens_by_both"):
            density, heights, edges = cut(scores, int(number))
            if kind == "edges":
                ours[name] = edges
            else:
                ours[name] = strip_density(density, heights) if kind == "rowpdf" else carry_grid(tokens, heights, edges)
        elif kind == "vec_heights":
            ours[name] = row_heights(tensor(golden["vec"], dtype), int(number))
    _, heights, edges = cut(scores, int(golden["grad_N"]))
    weighted = tensor(golden["grad_w_edges"], dtype) * edges, tensor(golden["grad_w_heights"], dtype) * heights
    (ours["grad_score"],) = torch.autograd.grad(sum(w.sum() for w in weighted), scores)
    ours["grad_score"] = ours["grad_score"].flatten(1)
    inputs = {"score", "tokens", "vec", "grad_N", "grad_w_edges", "grad_w_heights"}
    check(golden, ours, inputs, {"edges": 2.5e-2 / 32, "rowpdf": 5e-5})  # 32 input px to a cell


def cut(scores, num_patches):
    """Density, row heights and token edges for a token budget, computed as the models do: in float64 inside."""
    return cut_image(scores, round(num_patches**0.5), num_patches)
