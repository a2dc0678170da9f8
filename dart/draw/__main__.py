"""`python -m dart.draw IMAGE ... --model NAME`: what DART makes of any photograph, beside the uniform grid.

Arguments and errors; what needs torch is in `dart.draw.model`, what needs matplotlib in `dart.draw.figures`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from dart.registry import MODES, PARTITIONS, POS_EMBEDS, ROW_WEIGHTS, SAMPLINGS

FORMATS = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")
DPI = 200  # 520 px to a panel: two for each pixel that a model of 196 tokens sees
MAX_TOKENS = 4096  # more cannot be told apart in a picture
MIN_SIDE_PX, MAX_SIDE_PX = 16, 2048
LEARNED = {True: "learned importance", False: "importance (untrained)"}
UNTRAINED = "no checkpoint: the scorer is untrained, {}; add --checkpoint FILE, or --scores gradient as a control"
UNMOVED = "no checkpoint: deformable patches are untrained, so the regions are the uniform grid; add --checkpoint FILE"
INVARIANT_UNTRAINED = "so the regions are the uniform grid"
PAPER_UNTRAINED = "so the importance is that of random weights"
# Options that are keyword arguments of the model, where given.
MODEL_OPTIONS = (
    "mode", "token_budget", "num_rows", "img_size", "scorer", "partition", "row_weight", "score_floor", "score_blur",
    "sampling", "pos_embed",
)  # fmt: skip
EPILOG = """\
examples:
  python -m dart.draw photo.jpg --model dart_deit_small --scores gradient
  python -m dart.draw photo.jpg --checkpoint dart_deit_small.safetensors --token-budget 288
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the list of all options."""

    def error(self, message: str) -> NoReturn:
        """Exit code 2."""
        self.exit(2, f"{self.prog}: {message} (--help explains)\n")


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        prog="python -m dart.draw",
        description="Draw five panels a photograph: the uniform grid, what a model sees through it, the importance\n"
        "that DART gives every place, its regions, and what the model sees through them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="photographs, in any format that Pillow reads")
    add("--model", metavar="NAME",
        help="a DART model, such as dart_deit_small, or of a baseline, such as quadtree_deit_small; needless if the "
        "checkpoint says it")  # fmt: skip
    add("--checkpoint", type=Path, metavar="FILE", help="trained weights: .safetensors, or the authors' .pth")
    add("--uniform-checkpoint", type=Path, metavar="FILE", help="weights of a uniform model, to caption its panel too")
    add("--scores", choices=["model", "gradient"], default="model",
        help="gradient: how strongly brightness changes, which nothing has learned; needs no weights")  # fmt: skip
    add("--out", type=Path, default=Path("dart.png"), metavar="FILE", help="the picture to write (dart.png)")
    add("--aspect", choices=["keep", "crop"],
        help="keep the photograph's shape, at the model's number of pixels, or crop its centre square "
        "(keep; crop in paper mode, which reads squares only)")  # fmt: skip
    add("--class-names", type=Path, metavar="FILE", help="names of the classes, one a line (ImageNet's for 1000)")
    group = parser.add_argument_group("options of the model, where not as its name or checkpoint says")
    group.add_argument("--mode", choices=MODES, help="paper: exactly as the authors' code computes it")
    group.add_argument("--token-budget", type=int, metavar="N", help="regions per photograph")
    group.add_argument("--num-rows", type=int, metavar="R", help="rows of regions")
    group.add_argument("--img-size", type=int, metavar="S", help="side in pixels of the square that the model reads")
    group.add_argument("--scorer", metavar="NAME", help="the network that gives the scores")
    group.add_argument("--partition", choices=PARTITIONS)
    group.add_argument("--row-weight", choices=ROW_WEIGHTS)
    group.add_argument("--sampling", choices=SAMPLINGS)
    group.add_argument("--pos-embed", choices=POS_EMBEDS)
    group.add_argument("--score-floor", type=float, metavar="F", help="share of the density that is uniform")
    group.add_argument("--score-blur", type=int, metavar="K", help="passes of a 3 x 3 mean filter over the density")
    return parser


def main(arguments: list[str] | None = None) -> NoReturn:
    """The command: exit code 0, or 2 with one sentence about what the user can mend."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        draw_photographs(options)
    except ModuleNotFoundError as error:
        parser.exit(2, f"{parser.prog}: {error}; install it: pip install {error.name}\n")
    except (ValueError, OSError) as error:
        first, *more = str(error).splitlines() or [repr(error)]
        parser.exit(2, f"{parser.prog}: {first}{': ' + more[0].strip() if more else ''}\n")
    parser.exit(0)


def draw_photographs(options: argparse.Namespace) -> None:
    """Check everything that needs no model, then build it, look at every photograph, and write the picture."""
    check_options(options)
    from dart.draw.photograph import fit, read_photograph

    photographs = [read_photograph(path) for path in options.images]
    class_names = read_class_names(options.class_names)
    from dart.draw import figures as draw
    from dart.draw import model as draw_model

    kwargs = {key: getattr(options, key) for key in MODEL_OPTIONS if getattr(options, key) is not None}
    model = draw_model.load_dart(options.model, options.checkpoint, kwargs, options.scores)
    uniform = draw_model.load_uniform(options.uniform_checkpoint, options.token_budget)
    tokenizer: Any = model.patch_embed
    trained, paper, who = options.checkpoint is not None, draw_model.is_paper(model), draw_model.says_of(model)
    if paper and options.aspect == "keep":
        raise ValueError("--aspect keep: a model of paper mode reads squares only; leave it out, or use another mode")
    aspect = options.aspect or ("crop" if paper else "keep")
    rows = []
    for path, photograph in zip(options.images, photographs, strict=True):
        try:
            shown = fit(photograph, tokenizer.img_size, aspect, tokenizer.patch_size[0])
            pixels = draw_model.to_pixels(shown, tokenizer.proj.in_channels)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        panels = draw_model.look(model, pixels, path.stem, uniform)
        if trained:
            panels = panels._replace(caption=draw_model.answer(model, pixels, class_names, who))
        if uniform is not None:
            panels = panels._replace(uniform_caption=draw_model.answer(uniform, pixels, class_names, "uniform"))
        rows.append(panels)
    control = draw_model.not_learned(model)
    if not trained and control is None:
        print(UNTRAINED.format(PAPER_UNTRAINED if paper else INVARIANT_UNTRAINED), file=sys.stderr)
    elif not trained and who == "deformable patches":
        print(UNMOVED, file=sys.stderr)
    draw.draw_comparison(rows, control or LEARNED[trained], who=who).savefig(options.out, dpi=DPI)
    print(f"{options.out}: {len(rows)} photograph{'s'[: len(rows) > 1]}, {len(rows[0].regions)} regions each")


def check_options(options: argparse.Namespace) -> None:
    """Refuse what is wrong whatever the model, before anything slow is loaded."""
    if options.model is None and options.checkpoint is None:
        raise ValueError("--model: missing; name one, such as dart_deit_small, or give a --checkpoint that says it")
    for path in (options.checkpoint, options.uniform_checkpoint, options.class_names):
        if path is not None and not path.is_file():
            raise ValueError(f"{path}: no such file")
    if options.out.suffix.lower() not in FORMATS:
        raise ValueError(f"--out = {options.out}: must end in one of {' '.join(FORMATS)}")
    if not options.out.parent.is_dir():
        raise ValueError(f"--out = {options.out}: there is no folder {options.out.parent}; make it first")
    if options.token_budget is not None and not 1 <= options.token_budget <= MAX_TOKENS:
        raise ValueError(f"--token-budget = {options.token_budget}: must be from 1 to {MAX_TOKENS} regions")
    if options.img_size is not None and not MIN_SIDE_PX <= options.img_size <= MAX_SIDE_PX:
        raise ValueError(f"--img-size = {options.img_size}: must be from {MIN_SIDE_PX} to {MAX_SIDE_PX} px")


def read_class_names(path: Path | None) -> list[str]:
    """The lines of a text file; none without one."""
    if path is None:
        return []
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file") from error


if __name__ == "__main__":
    main()
