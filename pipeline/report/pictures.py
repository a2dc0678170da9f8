"""Records -> the picture of what a uniform and a DART model see in the same test samples, and make of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from dart.draw import clips as draw_clips
from dart.draw import figures as draw
from dart.draw import segments as draw_segments
from dart.registry import CONTROL_SCORERS
from pipeline.report.records import Records, Run

FONT_SIZE = 10
MAX_CLIPS = 2  # in a figure: one takes as much room as three images


class Pictures(NamedTuple):
    """A run's gallery: B test samples and what its model did with them."""

    images: Any  # (B, C, H, W), or clips (B, C, T, H, W)
    labels: Any  # (B,)
    predictions: Any  # (B,)
    confidences: Any  # (B,) fractions
    density: Any  # (B, G_h, G_w); of clips (B, T * G_h, G_w)
    regions: Any  # (B, N, 4) pixels; of clips, of the tall image
    patches: Any  # (B, N, C, P, P)


class Segments(NamedTuple):
    """A segmenter's gallery: B test images and the class it gives every pixel."""

    images: Any  # (B, C, H, W)
    truths: Any  # (B, H, W) uint8; 255 does not count
    predictions: Any  # (B, H, W) uint8
    density: Any  # (B, G_h, G_w)
    regions: Any  # (B, N, 4) pixels
    patches: Any  # (B, N, C, P, P)


def gallery(records: Records) -> Figure | None:
    """A uniform and a DART model of one budget on the same test samples: how each cuts, sees and decides."""
    pair = gallery_pair(records)
    if pair is None:
        return None
    uniform, dart = (load_pictures(records.gallery_path(run)) for run in pair)
    names = records.manifest["class_names"]
    if isinstance(uniform, Segments) and isinstance(dart, Segments):
        return segment_gallery(uniform, dart, names)
    assert isinstance(uniform, Pictures)
    assert isinstance(dart, Pictures)
    return (clip_gallery if dart.images.ndim == 5 else image_gallery)(uniform, dart, names)


def image_gallery(uniform: Pictures, dart: Pictures, names: Sequence[str]) -> Figure:
    """Of labelled images, a row each: both cuts, both mosaics of what is seen, both answers."""
    titles = ["uniform grid", "what uniform sees", "learned importance", "DART's regions", "what DART sees"]
    figure, axes = draw.panel_grid(titles, len(dart.images))
    for i, row in enumerate(axes):
        image = dart.images[i]
        draw.show_regions(row[0], image, uniform.regions[i], draw.UNIFORM_COLOR)
        draw.show_mosaic(row[1], image, uniform.regions[i], uniform.patches[i], draw.UNIFORM_COLOR)
        draw.show_density(row[2], image, dart.density[i])
        draw.show_regions(row[3], image, dart.regions[i])
        draw.show_mosaic(row[4], image, dart.regions[i], dart.patches[i])
        row[0].set_ylabel(f"true: {names[dart.labels[i]]}", fontsize=FONT_SIZE)
        draw.write_caption(row[1], _verdict("uniform", uniform, i, names))
        draw.write_caption(row[4], _verdict("DART", dart, i, names))
    return figure


def clip_gallery(uniform: Pictures, dart: Pictures, names: Sequence[str]) -> Figure:
    """Of a few labelled clips: strips of their frames."""
    blocks = []
    for i, clip in enumerate(dart.images[:MAX_CLIPS]):
        for who, found, color in (("uniform", uniform, draw.UNIFORM_COLOR), ("DART", dart, draw.DART_COLOR)):
            text, right = _verdict(who, found, i, names)
            said = draw.Caption(f"{text}, true: {names[dart.labels[i]]}", right)
            strips = draw_clips.DART_STRIPS if who == "DART" else draw_clips.UNIFORM_STRIPS
            parts = (found.density[i], found.regions[i], found.patches[i])
            blocks.append(draw_clips.Block(clip, *parts, said, strips, color))
    return draw_clips.draw_blocks(blocks)


def segment_gallery(uniform: Segments, dart: Segments, names: Sequence[str]) -> Figure:
    """Of images whose every pixel has a class, a row each: the truth, and both models' regions and answers."""
    titles = ["image", "true classes", "uniform's answer", "learned importance", "DART's regions", "DART's answer"]
    palette = draw_segments.choose_palette([dart.truths, uniform.predictions, dart.predictions], names)
    figure, axes = draw.panel_grid(titles, len(dart.images))
    for i, row in enumerate(axes):
        image, truth = dart.images[i], dart.truths[i]
        draw.show_image(row[0], image)
        draw_segments.segment_overlay(row[1], image, truth, palette)
        grid = uniform.regions[i], draw.UNIFORM_COLOR
        draw_segments.segment_overlay(row[2], image, uniform.predictions[i], palette, *grid)
        draw.show_density(row[3], image, dart.density[i])
        draw.show_regions(row[4], image, dart.regions[i])
        draw_segments.segment_overlay(row[5], image, dart.predictions[i], palette)
        for ax, found in ((row[2], uniform), (row[5], dart)):
            draw.write_caption(ax, draw_segments.miou_caption(found.predictions[i], truth))
    draw_segments.show_legend(figure, palette, names)
    return figure


def gallery_pair(records: Records) -> tuple[Run, Run] | None:
    """The first uniform and DART runs with pictures of the same samples and, if possible, the same budget.

    Of several budgets the largest: the more regions, the clearer where they gather. DART with scores that nothing has
    learned is a control, and not shown as DART.
    """
    runs = [run for run in records.runs if not run.problem and records.gallery_path(run).is_file()]
    runs = [run for run in runs if run.science["tokenizer"].get("scorer") not in CONTROL_SCORERS]
    uniform, dart = ([r for r in runs if r.science["tokenizer"]["name"] == n] for n in ("uniform", "dart"))
    pairs = [(u, d) for d in dart for u in uniform if u.science["model"] == d.science["model"]]
    return min(pairs, key=lambda pair: (abs(_budget(pair[0]) - _budget(pair[1])), -_budget(pair[1])), default=None)


def load_pictures(path: Path) -> Pictures | Segments:
    """Read a run's gallery file, whose arrays tell what it shows."""
    with np.load(path, allow_pickle=False) as arrays:
        kind = Segments if "truths" in arrays else Pictures
        return kind(*(arrays[name] for name in kind._fields))


def _verdict(who: str, pictures: Pictures, i: int, names: Sequence[str]) -> draw.Caption:
    said = int(pictures.predictions[i])
    text = f"{who} says {names[said]} ({100 * pictures.confidences[i]:.0f}%)"
    return draw.Caption(text, said == int(pictures.labels[i]))


def _budget(run: Run) -> int:
    return int(run.science["tokenizer"]["token_budget"])
