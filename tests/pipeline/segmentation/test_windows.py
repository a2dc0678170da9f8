"""Every pixel is looked at, and how pictures are grouped or cut into windows changes nothing that it should not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.segmentation.windows import Windows, look, slide

torch.manual_seed(0)
POINTWISE = nn.Conv2d(2, 3, 1).requires_grad_(False)
WIDE = nn.Conv2d(2, 3, 5, padding=2).requires_grad_(False)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(4, 16), st.data())
@settings(max_examples=60, deadline=None)
def test_windows_of_what_looks_at_single_pixels_are_the_whole(height: int, width: int, side: int, data) -> None:
    images = torch.rand(2, 2, height, width)
    stride = data.draw(st.integers(1, side))
    found = slide(POINTWISE, images, Windows(side, stride))
    torch.testing.assert_close(found, POINTWISE(images))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (7, 30), (33, 20)])
def test_windows_have_the_models_size_and_cover_the_picture(height: int, width: int) -> None:
    seen = []

    def model(crop: Tensor) -> Tensor:
        seen.append(crop)
        return torch.ones_like(crop)

    assert torch.equal(slide(model, torch.rand(1, 1, height, width), Windows(16, 11)), torch.ones(1, 1, height, width))
    assert {tuple(crop.shape[-2:]) for crop in seen} == {(16, 16)}


def test_pictures_of_one_size_or_several_are_looked_at_as_one_by_one() -> None:
    same = [torch.rand(2, 12, 9) for _ in range(3)]
    mixed = [*same, torch.rand(2, 20, 31)]
    for images in (same, mixed):
        sizes = [(image.shape[1] * 2 - 1, image.shape[2] + 3) for image in images]
        for image, size, found in zip(images, sizes, look(WIDE, images, sizes), strict=True):
            expected = F.interpolate(WIDE(image[None]), size, mode="bilinear")
            torch.testing.assert_close(found, expected[0])


def test_logits_of_the_stored_size_are_left_alone() -> None:
    image = torch.rand(2, 10, 11)
    assert torch.equal(next(look(WIDE, [image], [(10, 11)])), WIDE(image[None])[0])
