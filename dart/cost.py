"""The paper's Params and GFLOPs columns, rebuilt: `python -m dart.cost [--csv FILE]`.

Every row of arXiv 2506.10390 for DeiT, Vim and VideoMamba and every scoring network, counted on our models beside the
published figures. Takes a minute on one core.
"""

import argparse
import copy
import csv
import math
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn

TOLERANCE = 0.02
COUNTED = """\
Params: all of them, and those that are trained; score networks are frozen in the paper, and count. They are published
in whole millions, those of the DeiT-Ti rows rounded up (6.3 as 7): a difference within that rounding is no more.
GFLOPs: as the paper counts them, one multiply-accumulate is one operation (fvcore's convention). Counted here are
matrix products, convolutions and both products of attention of one forward pass of one image, score network, partition
and position embedding included: half of what torch.utils.flop_counter says. Norms, activations, resizing, prefix sums
and look-ups, of which fvcore counts some, are below 1 % and are not counted.
Scores are read off a copy of 224 x 224 px: the published figures belong to it (the published code reads 448 x 448).
MobileNetV3 and EfficientNet-B0 rows are models of mode='paper'; the others of mode='invariant', which have the same
networks and tokens, for the authors' code has none of these. Plain DeiT is timm's.
Of a Mamba block the paper counts the projections in and out; for Vim the scan too, with 9 per state and 1 per channel
for each token and direction, for VideoMamba not: the two families cannot be compared with each other by the published
figures. "All" counts every part of both: projections, maps to step sizes, convolutions, scan.
Vim's "784" are 27 x 27 patches (16 px every 8 px of 224): the figures published for 784 are those of 729 tokens.
"""
# Which parts of a Mamba block a column counts, see `dart.models.mamba.MixerMacs`.
CONVENTIONS = {
    "all": ("projections", "steps", "convolutions", "scan"),
    "vim": ("projections", "scan"),
    "videomamba": ("projections",),
}


class Row(NamedTuple):
    """A row of the paper: which model, and the published figures; None where there is none."""

    table: str
    backbone: str
    scorer: str | None  # None: no DART, the plain grid
    tokens: int
    paper_params_m: int | None
    paper_gflops: float | None
    reason: str = ""  # why the GFLOPs differ, where they do
    true_tokens: int | None = None  # where they are not as many as the paper says


class Cost(NamedTuple):
    """What a model costs, whatever its weights: numbers, not millions."""

    params: int
    trainable: int
    macs: int  # all of them
    paper_macs: int  # by the convention that the paper has for this family


class Comparison(NamedTuple):
    """A row beside ours; differences are fractions of the paper's figure, None where it gives none."""

    row: Row
    cost: Cost
    params_diff: float | None
    gflops_diff: float | None
    reason: str


# The paper's names of backbones (+ is more tokens) -> ours, and the variant.
BACKBONES = {
    "DeiT-Ti": ("deit", "tiny"),
    "DeiT-S": ("deit", "small"),
    "DeiT-B": ("deit", "base"),
    "Vim-Ti": ("vim", "tiny"),
    "Vim-S": ("vim", "small"),
    "VideoMamba-Ti": ("videomamba", "tiny"),
}
PAPER_MODE = {"mode": "paper", "score_input": "224"}
SCORERS: dict[str, dict[str, Any]] = {
    "MobileNetV3-Small": {**PAPER_MODE, "scorer": "mobilenetv3_small_v1"},
    "MobileNetV3-Large": {**PAPER_MODE, "scorer": "mobilenetv3_large_v1"},
    "MnasNet 0.5": {"scorer": "mnasnet_050", "frozen_scorer": True},
    "SqueezeNet 1.1": {"scorer": "squeezenet1_1", "frozen_scorer": True},
    "EfficientNet-B0": {**PAPER_MODE, "scorer": "efficientnet_b0_v1"},
}
EFFICIENTNET_REASON = (
    "published 2.41 does not follow from EfficientNet-B0 on 224 px, whose features take 0.39; "
    "it would be 2.4 if 384 px were scored, and 2.8 with the whole 448 px"
)
ROWS = (
    Row("classification", "DeiT-Ti", None, 196, 6, 1.26),
    Row("classification", "DeiT-Ti", "MobileNetV3-Small", 196, 7, 1.32),
    Row("classification", "DeiT-Ti", "MobileNetV3-Small", 121, 7, 0.8),
    Row("classification", "DeiT-S", None, 196, 22, 4.61),
    Row("classification", "DeiT-S", "MobileNetV3-Large", 196, 24, 4.84),
    Row("classification", "DeiT-S +", None, 576, 22, 15.5),
    Row("classification", "DeiT-S +", "MobileNetV3-Large", 392, 24, 10.1),
    Row("classification", "DeiT-B", None, 196, 86, None),
    Row("classification", "Vim-Ti", None, 196, 7, 1.60),
    Row("classification", "Vim-Ti", "MobileNetV3-Small", 196, 8, 1.68),
    Row("classification", "Vim-Ti +", None, 784, 7, 5.95, true_tokens=729),
    Row("classification", "Vim-Ti +", "MobileNetV3-Small", 392, 8, 3.29),
    Row("classification", "Vim-S", None, 196, 26, 5.30),
    Row("classification", "Vim-S", "MobileNetV3-Large", 196, 29, 5.55),
    Row("classification", "Vim-S +", None, 784, 26, 19.6, true_tokens=729),
    Row("classification", "Vim-S +", "MobileNetV3-Large", 392, 29, 10.9),
    Row("classification", "VideoMamba-Ti", None, 196, 7, 1.08),
    Row("classification", "VideoMamba-Ti", "MobileNetV3-Small", 196, 8, 1.15),
    Row("classification", "VideoMamba-Ti +", None, 784, 7, 4.30),
    Row("classification", "VideoMamba-Ti +", None, 1296, 7, 7.11),
    Row("classification", "VideoMamba-Ti +", "MobileNetV3-Small", 392, 8, 2.24),
    Row("scoring networks", "DeiT-Ti", None, 196, 6, 1.26),
    Row("scoring networks", "DeiT-Ti", "MobileNetV3-Small", 196, 7, 1.32),
    Row("scoring networks", "DeiT-Ti", "MobileNetV3-Large", 196, None, None),
    Row("scoring networks", "DeiT-Ti", "MnasNet 0.5", 196, 7, 1.37),
    Row("scoring networks", "DeiT-Ti", "SqueezeNet 1.1", 196, 7, 1.54),
    Row("scoring networks", "DeiT-Ti", "EfficientNet-B0", 196, 10, 2.41, EFFICIENTNET_REASON),
)


def compare(row: Row) -> Comparison:
    """Build a row's model and set its cost beside the paper's."""
    name, options, img_size = resolve(row)
    cost = count_cost(name, options, img_size, convention=_family(row)[0])
    params_diff = _difference(cost.params / 1e6, row.paper_params_m)
    gflops_diff = _difference(cost.paper_macs / 1e9, row.paper_gflops)
    reasons = []
    if params_diff is not None and abs(params_diff) > TOLERANCE:
        up = math.ceil(cost.params / 1e6) == row.paper_params_m
        near = round(cost.params / 1e6) == row.paper_params_m
        rounding = "params published in whole millions" + ("" if near else ", rounded up")
        reasons.append(rounding if up or near else "params: UNEXPLAINED")
    if gflops_diff is not None and abs(gflops_diff) > TOLERANCE:
        reasons.append(row.reason or "GFLOPs: UNEXPLAINED")
    return Comparison(row, cost, params_diff, gflops_diff, "; ".join(reasons))


def resolve(row: Row) -> tuple[str, dict[str, Any], int]:
    """A row's model: its name in timm, its options, and the side in pixels of the images that it reads."""
    backbone, variant = _family(row)
    if row.scorer is None:  # patches of 16 px: as many tokens as the image has
        img_size = 16 * math.isqrt(row.true_tokens or row.tokens)
        name = f"deit_{variant}_patch16_224" if backbone == "deit" else f"{backbone}_{variant}"
        return name, {"img_size": img_size}, img_size
    scorer = SCORERS[row.scorer]
    if backbone != "deit":  # the second head of the score networks
        scorer = {**scorer, "scorer": scorer["scorer"].replace("_v1", "_v2")}
    return f"dart_{backbone}_{variant}", {"token_budget": row.tokens, **scorer}, 448


def _family(row: Row) -> tuple[str, str]:
    return BACKBONES[row.backbone.removesuffix(" +")]


def count_cost(model_name: str, options: dict[str, Any], img_size: int, convention: str = "all") -> Cost:
    """The cost of a model that timm knows, for one RGB image of img_size x img_size pixels.

    Args:
        convention: A key of `CONVENTIONS`, for `Cost.paper_macs`; a model without Mamba blocks has one figure alone.
    """
    import timm

    import dart.models  # noqa: F401  (registers the models)

    model = timm.create_model(model_name, **options).eval()
    parameters = list(model.parameters())
    found = count_parts(model, (1, 3, img_size, img_size))
    return Cost(
        params=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        macs=sum(found.values()),
        paper_macs=found["operations"] + sum(found[part] for part in CONVENTIONS.get(convention, CONVENTIONS["all"])),
    )


def count_macs(model: "nn.Module", shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one forward pass of zeros of this shape, all of `count_parts`."""
    return sum(count_parts(model, shape).values())


def count_parts(model: "nn.Module", shape: tuple[int, ...]) -> dict[str, int]:
    """Multiply-accumulates of one forward pass of zeros of this shape, by what they are.

    Returns:
        "operations": matrix products, convolutions and attention, as torch counts them; and the parts of Mamba blocks
        (`dart.models.mamba.MixerMacs`), which are counted by formula and not computed: what torch would see of a scan
        depends on how it is implemented.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from dart.models.mamba import BidirectionalMixer, CountedMixer, MixerMacs

    whole = torch.nn.Sequential(model)  # a mixer by itself can be replaced too
    if any(isinstance(module, BidirectionalMixer) for module in whole.modules()):
        whole = copy.deepcopy(whole)
    modules = dict(whole.named_modules())
    counted = {name: CountedMixer(module) for name, module in modules.items() if isinstance(module, BidirectionalMixer)}
    for name, mixer in counted.items():
        whole.set_submodule(name, mixer)
    # Fused attention would be counted by some backends and missed by others; its plain form is two matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        whole(torch.zeros(shape))
    parts = {part: sum(getattr(mixer.macs, part) for mixer in counted.values()) for part in MixerMacs._fields}
    return {"operations": int(counter.get_total_flops()) // 2, **parts}


HEADER = (
    "table", "backbone", "scoring network", "tokens", "params (M)", "trained (M)", "paper", "diff (%)",
    "GFLOPs", "paper", "diff (%)", "all", "reason, where above 2 %",
)  # fmt: skip
CSV_HEADER = (
    "experiment", "params",
    "table", "backbone", "scorer", "tokens", "params_m", "trainable_m", "params_m_paper", "params_diff_pct",
    "gflops", "gflops_paper", "gflops_diff_pct", "gflops_all", "reason",
)  # fmt: skip


def experiment(row: Row) -> str:
    """What the suite of the paper's rows calls it, as dart-deit-ti-196-mnasnet; the same model has one name."""
    plain = f"{row.backbone.removesuffix(' +').lower()}-{row.tokens}"
    if row.scorer is None:
        return plain
    usual = "MobileNetV3-Small" if row.backbone.removesuffix(" +").endswith("-Ti") else "MobileNetV3-Large"
    network = {"MobileNetV3-Large": "mobilenetv3-large"}.get(row.scorer, re.split(r"[ -]", row.scorer.lower())[0])
    return f"dart-{plain}" + ("" if row.scorer == usual else f"-{network}")


def format_csv(found: Sequence[Comparison]) -> list[list[str]]:
    """The comparisons in the order of `CSV_HEADER`, each model once."""
    first: dict[str, Comparison] = {}
    for one in found:
        first.setdefault(experiment(one.row), one)
    return [[name, str(one.cost.params), *format_row(one)] for name, one in first.items()]


def format_row(found: Comparison) -> list[str]:
    """A comparison as text, in the order of `HEADER`; a dash where the paper is silent."""
    row, cost = found.row, found.cost
    return [
        row.table,
        row.backbone,
        row.scorer or "none (grid)",
        str(row.tokens),
        f"{cost.params / 1e6:.3f}",
        f"{cost.trainable / 1e6:.3f}",
        "-" if row.paper_params_m is None else str(row.paper_params_m),
        _percent(found.params_diff),
        f"{cost.paper_macs / 1e9:.3f}",
        "-" if row.paper_gflops is None else f"{row.paper_gflops:g}",
        _percent(found.gflops_diff),
        f"{cost.macs / 1e9:.3f}",
        found.reason,
    ]


def format_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the first of them the header, as a Markdown table with straight columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths]
    padded = [
        [c.ljust(width) for c, width in zip(cells, widths, strict=True)] for cells in (lines[0], rule, *lines[1:])
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in padded)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit with 1 if a difference has no reason."""
    parser = argparse.ArgumentParser(prog="python -m dart.cost", description="The paper's Params and GFLOPs, rebuilt.")
    parser.add_argument(
        "--csv", metavar="FILE", help="write it there too: each model once, by its name in suites/imagenet1k.yaml"
    )
    options = parser.parse_args(arguments)
    found = [compare(row) for row in ROWS]
    lines = [format_row(comparison) for comparison in found]
    print(COUNTED)
    print(format_table([HEADER, *lines]))
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([CSV_HEADER, *format_csv(found)])
    return int(any("UNEXPLAINED" in comparison.reason for comparison in found))


def _difference(ours: float, paper: float | None) -> float | None:
    return None if paper is None else ours / paper - 1


def _percent(difference: float | None) -> str:
    return "-" if difference is None else f"{100 * difference:+.1f}"


if __name__ == "__main__":
    sys.exit(main())
