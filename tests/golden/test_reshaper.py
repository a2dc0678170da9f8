"""reshaper.npz: the warp for classification, the warp for dense prediction, and everything mapped through it."""

import torch
from torch.nn import functional as F

from dart.paper.reshaper import (
    DenseReshaper,
    GridWarp,
    PaperReshaper,
    equal_mass_grid,
    map_boxes,
    map_points,
    strip_edges,
    unwarp,
    unwarp_by_points,
    warp_by_points,
    warp_by_strip,
    warp_images,
    warp_labels,
)

from .goldens import both_precisions, check, fill, load, picture, tensor

GIVEN = {"dair_pos_in", "seg_hw", "seg_labels", "seg_logits_in", "pts_xy", "boxes_xyxy"}


def official(name):
    """Names of the reference run: of the score network only, one level deeper than in the classifiers."""
    return f"spn.spn.spn.{name.removeprefix('scorer.')}"


@both_precisions
@torch.no_grad()
def test_reshaper(dtype):
    """In float32 the geometry is given float64 scores: it multiplies the rounding of the score network."""
    golden = load("reshaper.npz")
    ours = classification(golden, dtype) | dense_prediction(golden, dtype)
    # Half-way positions along the strip fall on either side in other arithmetic.
    given = GIVEN if dtype == torch.float64 else GIVEN | {"seg_labels_ref_float"}
    ours = {name: value for name, value in ours.items() if name not in given}
    check(golden, ours, given, {"pts": 2.5e-2, "boxes": 2.5e-2})


def classification(golden, dtype):
    """The 448 px picture on a 14 x 14 grid, and its positions."""
    images = picture((1, 3, 448, 448), 7, dtype)
    ours = {}
    for given in {name.split("_")[1] for name in golden if name.startswith("dair_")} - {"pos"}:
        reshaper = fill(PaperReshaper(448, "mobilenetv3_small_v1", score_input=given.removeprefix("r")), official)
        exact = reshaper.double().scorer(images.double())
        found = reshaper.to(dtype).inspect(images)
        values = {"score": found.scores.flatten(1)}
        if dtype == torch.float32:
            found = reshaper.read(images, exact.to(dtype))
        values |= {"heights": found.grid.heights, "widths": found.grid.widths}
        values |= {"edges_px": found.strip_edges, "image_ch0": found.images[:, 0]}
        values |= {"pos": reshaper.carry(tensor(golden["dair_pos_in"], dtype), found.grid)}
        ours |= {f"dair_{given}_{name}": value for name, value in values.items()}
    return ours


def dense_prediction(golden, dtype):
    """The size-preserving warp of a picture and of its labels, its inverse, and points and boxes."""
    height, width = golden["seg_hw"].tolist()
    images = picture((len(golden["seg_score"]), 3, height, width), 8, dtype, period=160)
    reshaper = fill(DenseReshaper("efficientnet_b0_v1"), official).to(dtype)
    cells = (height // 16, width // 16)
    grid = reshaper(images)
    if dtype == torch.float32:
        grid = equal_mass_grid(tensor(golden["seg_score"], dtype).unflatten(1, cells), *cells)
    edges = strip_edges(grid.widths, height // 16)
    labels = tensor(golden["seg_labels"], dtype)
    one, first = images[:1, :1], GridWarp(grid.heights[:1], grid.widths[:1])
    points, boxes = (tensor(golden[name], dtype)[None] for name in ("pts_xy", "boxes_xyxy"))
    return {
        "seg_score": reshaper.scorer(images, cells).flatten(1),
        "seg_heights": grid.heights,
        "seg_widths": grid.widths,
        "seg_edges_px": edges,
        "seg_image": warp_images(images, grid)[:, :2],
        # What the reference makes of class indices, before it truncates them: of our sampler this is one option.
        "seg_labels_ref_float": warp_by_strip(labels[:, None], grid.heights, edges, along="nearest")[:, 0],
        "seg_logits_back": unwarp(tensor(golden["seg_logits_in"], dtype), grid),
        "pts_to_warped": map_points(points, first, "warped")[0],
        "pts_to_source": map_points(points, first, "source")[0],
        "boxes_to_warped": map_boxes(boxes, first, "warped")[0],
        "boxes_to_source": map_boxes(boxes, first, "source")[0],
        "warp_one_image": warp_by_points(one, first)[:, 0],
        "unwarp_one_image": unwarp_by_points(one, first)[:, 0],
    }


def test_warped_labels_are_labels():
    golden = load("reshaper.npz")
    grid = GridWarp(*(tensor(golden[name], torch.float64) for name in ("seg_heights", "seg_widths")))
    labels = tensor(golden["seg_labels"], torch.int64)
    warped, mixed = warp_labels(labels, grid), tensor(golden["seg_labels_ref_float"], torch.float64)
    assert set(warped.unique().tolist()) <= set(labels.unique().tolist())
    classes = warped[:, None].double()  # the two differ where classes meet: look where 5 x 5 pixels agree
    inside = (F.max_pool2d(classes, 5, 1, 2) == -F.max_pool2d(-classes, 5, 1, 2))[:, 0]
    assert (warped == mixed)[inside].double().mean() > 0.99
    torch.testing.assert_close(warp_labels(labels * 0 + 77, grid), labels * 0 + 77)
