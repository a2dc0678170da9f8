"""The figures of method.md, and its table of measurements: `python docs/draw_method_figures.py`.

Photographs: china.jpg and flower.jpg (CC BY 2.0, bundled with scikit-learn), grace_hopper.jpg (public domain, bundled
with matplotlib). Scorers are untrained or are the gradient control: what is shown is geometry, not what is learned.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from draw_clip_figure import draw_clip
from draw_warp_figure import draw_warp
from matplotlib.cbook import get_sample_data
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from measure_method import (
    GRID,
    SIDE,
    TOKENS,
    alone_and_together,
    density_of,
    invariant_tokenizer,
    masses_of,
    measure,
    paper_partition,
    paper_tokenizer,
    with_grey,
)
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from torch import Tensor

from dart.draw import figures as draw
from dart.kernels import sample_regions
from dart.paper.sampling import sample_tokens
from dart.partition import flow_regions, grid_regions, uniform_regions

DOCS = Path(__file__).resolve().parent
START, END = "<!-- measured -->", "<!-- /measured -->"
DPI = 110
COLORS = 256  # photographs as palettes: a third of the bytes


def main() -> None:
    """Write everything, or only print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=DOCS / "figures", help="where the figures go")
    parser.add_argument("--page", type=Path, default=DOCS / "method.md", help="whose table of measurements is renewed")
    options = parser.parse_args()
    torch.manual_seed(0)
    images = photographs()
    save(draw_steps(images[0]), options.folder / "method-steps.png")
    save(draw_inverse_cdf(images[0]), options.folder / "method-inverse-cdf.svg")
    save(draw_partitions(images[1]), options.folder / "method-partitions.png")
    save(draw_samplings(), options.folder / "method-sampling.png")
    save(draw_batch_mates(images[0]), options.folder / "method-batch-mates.png")
    save(draw_clip(*images[:2]), options.folder / "method-clip.png")
    save(draw_warp(images[1], density_of(images[1])), options.folder / "method-warp.png")
    text = options.page.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    options.page.write_text(f"{before}{START}\n\n{measure(images)}\n\n{END}{after}", encoding="utf-8")


def photographs() -> Tensor:
    """Three photographs, cropped to squares: (3, 3, SIDE, SIDE) from 0 to 1."""
    found = [Image.fromarray(array) for array in load_sample_images().images]
    with get_sample_data("grace_hopper.jpg") as file:
        found.append(Image.open(file).convert("RGB"))
    squares = [ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BICUBIC) for image in found]
    return torch.stack([torch.from_numpy(np.asarray(s, np.float32) / 255).permute(2, 0, 1) for s in squares])


def save(figure: Figure, path: Path) -> None:
    """Without dates and versions; PNG with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        with mpl.rc_context({"svg.hashsalt": "dart", "svg.fonttype": "path"}):
            figure.savefig(path, metadata={"Date": None, "Creator": None})
        return
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    with Image.open(path) as image:
        image.convert("RGB").quantize(COLORS, Image.Quantize.MEDIANCUT).save(path, optimize=True)


def draw_steps(image: Tensor) -> Figure:
    """From the image to what the model sees, step by step."""
    tokens = 100
    density = density_of(image)
    regions = flow_regions(density, tokens, 10, (SIDE, SIDE))
    patches = sample_regions(image[None], regions, 16)
    figure, (axes,) = draw.panel_grid(["image", "density", "rows", "regions", "patches"], 1)
    pixels, boxes = draw.as_array(image), draw.as_array(regions[0])
    draw.show_image(axes[0], pixels)
    draw.show_density(axes[1], pixels, draw.as_array(density[0]))
    rows = np.array([[0, top, SIDE, bottom] for top, bottom in sorted({(box[1], box[3]) for box in boxes.tolist()})])
    draw.show_regions(axes[2], pixels, rows)
    draw.show_regions(axes[3], pixels, boxes)
    draw.show_mosaic(axes[4], pixels, boxes, draw.as_array(patches[0]))
    shape = f"{SIDE} x {SIDE}"
    for ax, text in zip(
        axes, [shape, f"{GRID} x {GRID}, sum 1", "equal mass", f"{tokens}, equal mass", "16 x 16 each"], strict=True
    ):
        draw.write_caption(ax, text)
    return figure


def draw_inverse_cdf(image: Tensor) -> Figure:
    """The rows of the first figure: levels on the cumulative mass, edges where they are reached."""
    num_rows = 7
    mass = density_of(image)[0].sum(-1)
    regions = flow_regions(density_of(image), 49, num_rows, (GRID, GRID))[0]
    edges = np.unique(draw.as_array(regions[:, 1]))[1:]
    figure = Figure(figsize=(6.4, 3.4), layout="constrained", facecolor="white")
    ax = figure.add_subplot()
    cells = np.arange(GRID)
    ax.bar(cells + 0.5, draw.as_array(mass) * 4, width=1, color=draw.UNIFORM_COLOR, alpha=0.35, edgecolor="white")
    ax.plot(np.arange(GRID + 1), np.r_[0, draw.as_array(mass.cumsum(0))], color="black", linewidth=1.4)
    for level, edge in zip(np.arange(1, num_rows) / num_rows, edges, strict=True):
        ax.plot([0, edge, edge], [level, level, 0], color=draw.DART_COLOR, linewidth=1.1)
    ax.text(0.3, 1 / num_rows + 0.02, "level r / R", color="#7A5200", fontsize=9)
    ax.text(edges[-1] + 0.15, 0.02, "edge", color="#7A5200", fontsize=9)
    ax.text(0.3, 0.93, "line: cumulative mass; bars: mass of each row of cells, times four", fontsize=9)
    ax.set(xlim=(0, GRID), ylim=(0, 1), xlabel="score cells from the top", ylabel="mass")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def draw_partitions(image: Tensor) -> Figure:
    """One density, four partitions, and the spread of the masses of their tokens."""
    density, size = density_of(image), (SIDE, SIDE)
    paper_regions, paper_masses = paper_partition(density)
    kinds = {
        "flow, row mass": flow_regions(density, TOKENS, GRID, size),
        "flow, row density": flow_regions(density, TOKENS, GRID, size, "density"),
        "grid": grid_regions(density, (GRID, GRID), size),
    }
    found = {name: (regions, masses_of(regions, density)) for name, regions in kinds.items()}
    found["paper mode"] = paper_regions, paper_masses
    figure, (axes,) = draw.panel_grid(list(found), 1, 2.3)
    for ax, (regions, masses) in zip(axes, found.values(), strict=True):
        draw.show_regions(ax, draw.as_array(image), draw.as_array(regions[0]))
        low, high = (TOKENS * masses.aminmax()[i].item() for i in (0, 1))
        draw.write_caption(ax, f"mass x N: {low:.2f} to {high:.2f}")
    return figure


def draw_samplings() -> Figure:
    """Rings that become finer outwards, read by large regions in three ways."""
    y, x = torch.meshgrid(*(2 * [torch.arange(SIDE) + 0.5 - SIDE / 2]), indexing="ij")
    rings = (0.5 + 0.5 * torch.cos(torch.pi * (x**2 + y**2) / (2 * SIDE)))[None, None]
    side = 7  # regions of 64 px: each of their 16 x 16 cells covers 4 x 4 pixels
    regions = uniform_regions(side**2, side, (SIDE, SIDE), rings.device, rings.dtype)
    heights = torch.full((1, side), SIDE / side)
    edges = torch.arange(side**2 + 1.0)[None] * (SIDE / side)
    found = {
        "the image": rings[0],
        "paper mode": tiled(sample_tokens(rings, heights, edges, 16), side),
        "point": tiled(sample_regions(rings, regions, 16, "point"), side),
        "area": tiled(sample_regions(rings, regions, 16, "area"), side),
    }
    figure, (axes,) = draw.panel_grid(list(found), 1, 2.3)
    for ax, pixels in zip(axes, found.values(), strict=True):
        draw.show_image(ax, draw.as_array(pixels))
        ax.images[0].set_interpolation("antialiased")  # the picture itself shall add no rings
    for ax, text in zip(axes, ["448 px", *3 * ["49 regions of 64 px as 16 x 16"]], strict=True):
        draw.write_caption(ax, text)
    return figure


def draw_batch_mates(image: Tensor) -> Figure:
    """A photograph's regions alone and in company, in both modes."""
    figure, (axes,) = draw.panel_grid(["paper mode", "invariant mode"], 1, 3.2)
    company = with_grey(image)
    for ax, tokenizer in zip(axes, (paper_tokenizer(), invariant_tokenizer()), strict=True):
        alone, together = alone_and_together(tokenizer, company)
        draw.show_regions(ax, draw.as_array(image), draw.as_array(together.regions[0]), draw.UNIFORM_COLOR)
        for collection in ax.collections:
            collection.set_linewidth(2.2)
        ax.add_collection(
            LineCollection(list(draw.outlines(draw.as_array(alone.regions[0]))), colors=draw.DART_COLOR, linewidths=0.7)
        )
        draw.write_caption(ax, "orange: alone; blue: beside seven grey images")
    return figure


def tiled(patches: Tensor, side: int) -> Tensor:
    """The patches of a regular grid (1, side * side, C, P, P) put together: (C, side * P, side * P)."""
    return patches[0].unflatten(0, (side, side)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


if __name__ == "__main__":
    main()
