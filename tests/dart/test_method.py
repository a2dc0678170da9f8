"""What docs/method.md states holds: the formulas that no other test has, its figures and its command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dart.kernels import invert_cdf, sample_regions
from dart.partition import flow_regions, uniform_regions
from dart.scorer import scores_to_density

DOCS = Path(__file__).resolve().parents[2] / "docs"
MEASURED = ("<!-- measured -->", "<!-- /measured -->")


@pytest.mark.parametrize("level", [0.05, 0.37, 0.8])
def test_the_gradient_of_the_inverse_cumulative_function(level: float) -> None:
    torch.manual_seed(0)
    mass = torch.rand(1, 9, dtype=torch.float64, requires_grad=True)
    position = invert_cdf(mass, torch.tensor([[level]], dtype=torch.float64))
    position.backward()
    covered = (position.detach()[0] - torch.arange(9)).clamp(0, 1)  # the part of each cell that lies left
    torch.testing.assert_close(mass.grad, ((level - covered) / mass[0, int(position)])[None].detach())


def test_the_gradient_of_an_edge_is_how_what_lies_along_it_differs_from_what_is_inside() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 12, 12, dtype=torch.float64)
    region = torch.tensor([[[1.3, 2.0, 7.4, 9.0]]], dtype=torch.float64, requires_grad=True)
    mean = sample_regions(image, region, 1).sum()
    mean.backward()
    left, right = image[0, 0, 2:9, 1].mean(), image[0, 0, 2:9, 7].mean()
    wanted = torch.stack([mean - left, right - mean]).detach() / 6.1
    torch.testing.assert_close(region.grad[0, 0, [0, 2]], wanted)


def largest_area(scores: Tensor, floor: float, tokens: int, rows: int, row_weight: str) -> float:
    """Of any token, as a share of the image."""
    regions = flow_regions(scores_to_density(scores, floor, 0), tokens, rows, (1, 1), row_weight)
    sides = regions[..., 2:] - regions[..., :2]
    return float(sides.prod(-1).max())


@pytest.mark.parametrize(("row_weight", "parts"), [("mass", 196), ("density", 14)])
@pytest.mark.parametrize("floor", [0.1, 0.3, 1.0])
def test_no_region_is_larger_than_the_floor_allows(row_weight: str, parts: int, floor: float) -> None:
    scores = 30 * torch.randn(64, 14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    largest = largest_area(scores, floor, 196, 14, row_weight)
    assert largest <= 1 / (floor * parts) * (1 + 1e-9)
    if row_weight == "mass" and floor < 1:
        assert largest > 0.99 / (floor * parts)  # the bound is sharp


def test_point_sampling_at_two_pixels_a_cell_is_the_area_mean() -> None:
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    regions = uniform_regions(16, 4, (64, 64), image.device, image.dtype)
    point, area = (sample_regions(image, regions, 8, sampling) for sampling in ("point", "area"))
    torch.testing.assert_close(point, area)


def test_every_figure_of_the_page_is_there_and_small() -> None:
    named = re.findall(r"\]\((figures/[^)]+)\)", (DOCS / "method.md").read_text(encoding="utf-8"))
    assert len(named) == len(set(named)) == 7
    assert all(0 < (DOCS / name).stat().st_size < 300_000 for name in named)


@pytest.mark.slow
def test_the_command_draws_the_figures_and_renews_the_measurements(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MEASURED[0]}\nold\n{MEASURED[1]}\nafter\n")
    command = [sys.executable, str(DOCS / "draw_method_figures.py"), "--folder", str(tmp_path), "--page", str(page)]
    subprocess.run(command, check=True, timeout=280)
    renewed = page.read_text()
    assert renewed.startswith("before") and renewed.endswith("after\n")  # noqa: PT018 (one statement: around it)
    assert "old" not in renewed
    assert "| 1.000 to 1.000 |" in renewed
    drawn = {path.name for path in tmp_path.iterdir()} - {"page.md"}
    assert drawn == {path.name for path in (DOCS / "figures").glob("method-*")}
