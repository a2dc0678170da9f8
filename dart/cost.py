"""The paper's Params and GFLOPs columns, rebuilt: `python -m dart.cost [--csv FILE]`.

Every DeiT row of arXiv 2506.10390 and every scoring network, counted on our models beside the published figures. Takes
a few seconds and no memory: models are built and run on torch's meta device, which knows shapes only.
"""

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn

TOLERANCE = 0.02
COUNTED = """\
Params: all of them, and those that are trained; score networks are frozen in the paper, and count.
GFLOPs: as the paper counts them, one multiply-accumulate is one operation (fvcore's convention). Counted here are
matrix products, convolutions and both products of attention of one forward pass of one image, score network, partition
and position embedding included: half of what torch.utils.flop_counter says. Norms, activations, resizing, prefix sums
and look-ups, of which fvcore counts some, are below 1 % and are not counted.
Scores are read off a copy of 224 x 224 px: the published figures belong to it (the published code reads 448 x 448).
MobileNetV3 and EfficientNet-B0 rows are models of mode='paper'; the others of mode='invariant', which have the same
networks and tokens, for the authors' code has none of these.
"""


class Row(NamedTuple):
    """A row of the paper: what it is called there, the model of ours that it is, and the published figures."""

    table: str
    backbone: str
    scorer: str
    tokens: int
    model_name: str
    options: dict[str, Any]
    img_size: int
    paper_params_m: int | None
    paper_gflops: float | None
    reason: str = ""  # why the GFLOPs differ, where they do


class Cost(NamedTuple):
    """What a model costs, whatever its weights: numbers, not millions."""

    params: int
    trainable: int
    macs: int


class Comparison(NamedTuple):
    """A row beside ours; differences are fractions of the paper's figure, None where it gives none."""

    row: Row
    cost: Cost
    params_diff: float | None
    gflops_diff: float | None
    reason: str


def _paper(scorer: str, tokens: int) -> dict[str, Any]:
    return {"mode": "paper", "scorer": scorer, "token_budget": tokens, "score_input": "224"}


EFFICIENTNET_REASON = (
    "published 2.41 is not EfficientNet-B0 on 224 px, whose features take 0.39: on 384 px it would be 2.4, on the whole "
    "448 px 2.8"
)
TI, S, B = "deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"
MAIN, SCORERS = "classification", "scoring networks"
ROWS = (
    Row(MAIN, "DeiT-Ti", "none", 196, TI, {}, 224, 6, 1.26),
    Row(MAIN, "DeiT-Ti", "MobileNetV3-Small", 196, "dart_deit_tiny", _paper("mobilenetv3_small_v1", 196), 448, 7, 1.32),
    Row(MAIN, "DeiT-Ti", "MobileNetV3-Small", 121, "dart_deit_tiny", _paper("mobilenetv3_small_v1", 121), 448, 7, 0.8),
    Row(MAIN, "DeiT-S", "none", 196, S, {}, 224, 22, 4.61),
    Row(MAIN, "DeiT-S", "MobileNetV3-Large", 196, "dart_deit_small", _paper("mobilenetv3_large_v1", 196), 448, 24, 4.84),
    Row(MAIN, "DeiT-S +", "none", 576, S, {"img_size": 384}, 384, 22, 15.5),
    Row(MAIN, "DeiT-S +", "MobileNetV3-Large", 392, "dart_deit_small", _paper("mobilenetv3_large_v1", 392), 448, 24, 10.1),
    Row(MAIN, "DeiT-B", "none", 196, B, {}, 224, 86, None),
    Row(SCORERS, "DeiT-Ti", "none", 196, TI, {}, 224, 6, 1.26),
    Row(SCORERS, "DeiT-Ti", "MobileNetV3-Small", 196, "dart_deit_tiny", _paper("mobilenetv3_small_v1", 196), 448, 7, 1.32),
    Row(SCORERS, "DeiT-Ti", "MobileNetV3-Large", 196, "dart_deit_tiny", _paper("mobilenetv3_large_v1", 196), 448, None, None),
    Row(SCORERS, "DeiT-Ti", "MnasNet 0.5", 196, "dart_deit_tiny", {"scorer": "mnasnet_050"}, 448, 7, 1.37),
    Row(SCORERS, "DeiT-Ti", "SqueezeNet 1.1", 196, "dart_deit_tiny", {"scorer": "squeezenet1_1"}, 448, 7, 1.54),
    Row(SCORERS, "DeiT-Ti", "EfficientNet-B0", 196, "dart_deit_tiny", _paper("efficientnet_b0_v1", 196), 448, 10, 2.41, EFFICIENTNET_REASON),
)  # fmt: skip


def compare(row: Row) -> Comparison:
    """Build a row's model and set its cost beside the paper's."""
    cost = count_cost(row.model_name, row.options, row.img_size)
    params_diff = _difference(cost.params / 1e6, row.paper_params_m)
    gflops_diff = _difference(cost.macs / 1e9, row.paper_gflops)
    reasons = []
    if params_diff is not None and abs(params_diff) > TOLERANCE:
        rounded_up = math.ceil(cost.params / 1e6) == row.paper_params_m
        reasons.append("params published in whole millions, rounded up" if rounded_up else "params: UNEXPLAINED")
    if gflops_diff is not None and abs(gflops_diff) > TOLERANCE:
        reasons.append(row.reason or "GFLOPs: UNEXPLAINED")
    return Comparison(row, cost, params_diff, gflops_diff, "; ".join(reasons))


def count_cost(model_name: str, options: dict[str, Any], img_size: int) -> Cost:
    """The cost of a model that timm knows, for one RGB image of img_size x img_size pixels."""
    import timm
    import torch

    import dart.models  # noqa: F401  (registers the models)

    with torch.device("meta"):
        model = timm.create_model(model_name, **options).eval()
        macs = count_macs(model, (1, 3, img_size, img_size))
    parameters = list(model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return Cost(sum(parameter.numel() for parameter in parameters), trainable, macs)


def count_macs(model: "nn.Module", shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one forward pass of zeros of this shape, on torch's current default device."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Fused attention would be counted by some backends and missed by others; its plain form is two matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(shape))
    return int(counter.get_total_flops()) // 2


HEADER = (
    "table", "backbone", "scorer", "tokens", "params (M)", "trained (M)", "paper", "diff", "GFLOPs", "paper", "diff",
    "reason, above 2 %",
)  # fmt: skip


def format_row(found: Comparison) -> list[str]:
    """A comparison as text, in the order of `HEADER`; a dash where the paper is silent."""
    row, cost = found.row, found.cost
    return [
        row.table,
        row.backbone,
        row.scorer,
        str(row.tokens),
        f"{cost.params / 1e6:.3f}",
        f"{cost.trainable / 1e6:.3f}",
        "-" if row.paper_params_m is None else str(row.paper_params_m),
        _percent(found.params_diff),
        f"{cost.macs / 1e9:.3f}",
        "-" if row.paper_gflops is None else f"{row.paper_gflops:g}",
        _percent(found.gflops_diff),
        found.reason,
    ]


def format_table(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text side by side, as Markdown."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit with 1 if a difference has no reason."""
    parser = argparse.ArgumentParser(prog="python -m dart.cost", description="The paper's Params and GFLOPs, rebuilt.")
    parser.add_argument("--csv", metavar="FILE", help="write the table there too")
    options = parser.parse_args(arguments)
    found = [compare(row) for row in ROWS]
    lines = [format_row(comparison) for comparison in found]
    print(COUNTED)
    print(format_table([HEADER, *lines]))
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([CSV_HEADER, *lines])
    return int(any("UNEXPLAINED" in comparison.reason for comparison in found))


CSV_HEADER = (
    "table", "backbone", "scorer", "tokens", "params_m", "trainable_m", "params_m_paper", "params_diff_pct",
    "gflops", "gflops_paper", "gflops_diff_pct", "reason",
)  # fmt: skip


def _difference(ours: float, paper: float | None) -> float | None:
    return None if paper is None else ours / paper - 1


def _percent(difference: float | None) -> str:
    return "-" if difference is None else f"{100 * difference:+.1f}"


if __name__ == "__main__":
    sys.exit(main())
