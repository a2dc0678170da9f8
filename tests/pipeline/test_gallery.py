"""A gallery of clips becomes strips of frames, one of segmentations the classes of all pixels in colour."""

import numpy as np
import pytest
import timm
import torch

import dart.models  # noqa: F401  registers the models
from dart.video import VideoTokenizer, build_video_scorer
from pipeline.gallery import FIELDS, draw_gallery, save_gallery, save_segmentation_gallery
from pipeline.report.pictures import Pictures, Segments, clip_gallery, load_pictures, segment_gallery

NAMES = ("up", "down")


@pytest.fixture
def galleries(tmp_path):
    """Two files of the same three clips: a uniform model's, and that of one with a scorer."""
    torch.manual_seed(0)
    clips = torch.rand(3, 1, 4, 16, 16)
    for name, scorer in (("uniform", None), ("dart", build_video_scorer("conv", 1))):
        found = VideoTokenizer(16, 4, 1, 8, scorer, num_frames=4, token_budget=16).inspect(clips)
        save_gallery(
            tmp_path / f"{name}.npz",
            NAMES,
            images=clips.numpy(),
            labels=np.array([0, 1, 1]),
            predictions=np.array([1, 1, 0]),
            confidences=np.array([0.6, 0.9, 0.5]),
            density=found.density.detach().numpy(),
            regions=found.regions.detach().expand(3, -1, -1).numpy(),
            patches=found.patches.detach().numpy(),
        )
    return tmp_path


@pytest.mark.parametrize("name", ["uniform", "dart"])
def test_a_gallery_of_clips_is_drawn(galleries, name):
    draw_gallery(galleries / f"{name}.npz", galleries / "picture.png")
    assert (galleries / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_sets_two_models_of_the_same_clips_below_each_other(galleries):
    figure = clip_gallery(*(load_pictures(galleries / f"{name}.npz") for name in ("uniform", "dart")), NAMES)
    captions = [block.get_supxlabel() for block in figure.subfigs]
    assert captions[:2] == ["✗ uniform says down (60%), true: up", "✗ DART says down (60%), true: up"]
    assert captions[2:] == ["✓ uniform says down (90%), true: down", "✓ DART says down (90%), true: down"]
    assert [len(block.axes) for block in figure.subfigs] == [8, 12, 8, 12]


CLASSES = ("background", "left", "right", "nowhere")


@pytest.fixture
def dense_galleries(tmp_path):
    """Two files of the same two images of two halves: a uniform model's, which is right, and a DART model's."""
    images = torch.rand(2, 1, 32, 32)
    truths = np.ones((2, 32, 32), np.uint8)
    truths[:, :, 16:] = 2
    for name in ("uniform", "dart"):
        model = timm.create_model(
            f"{name}_vit_nano_segmenter", num_classes=4, in_chans=1, img_size=32, patch_size=8, token_budget=16
        )
        found = model.eval().inspect(images)
        save_segmentation_gallery(
            tmp_path / f"{name}.npz",
            CLASSES,
            images=images.numpy(),
            truths=truths,
            predictions=truths if name == "uniform" else np.where(truths == 2, 0, truths),
            density=found.density.detach().numpy(),
            regions=found.regions.detach().expand(2, -1, -1).numpy(),
            patches=found.patches.detach().numpy(),
        )
    return tmp_path


@pytest.mark.parametrize("name", ["uniform", "dart"])
def test_a_gallery_of_segmentations_is_drawn(dense_galleries, name):
    draw_gallery(dense_galleries / f"{name}.npz", dense_galleries / "picture.png")
    assert (dense_galleries / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_tells_by_its_arrays_what_it_shows(galleries, dense_galleries):
    # Both fixtures write into one folder; the later files are those of the segmenters.
    with np.load(dense_galleries / "dart.npz") as file:
        arrays = dict(file)
    assert set(arrays) == {*FIELDS["segmentation"], "class_names"}
    assert isinstance(load_pictures(dense_galleries / "dart.npz"), Segments)
    labels = np.array([0, 1])
    said = {**arrays, "labels": labels, "predictions": labels, "confidences": np.array([0.5, 0.6])}
    save_gallery(galleries / "labelled.npz", NAMES, **{name: said[name] for name in FIELDS["classification"]})
    assert isinstance(load_pictures(galleries / "labelled.npz"), Pictures)
    assert [tasks for tasks in FIELDS if set(FIELDS[tasks]) <= set(FIELDS["segmentation"])] == ["segmentation"]
    assert [tasks for tasks in FIELDS if set(FIELDS[tasks]) <= set(FIELDS["classification"])] == ["classification"]


def test_the_report_sets_two_segmenters_of_the_same_images_side_by_side(dense_galleries):
    figure = segment_gallery(*(load_pictures(dense_galleries / f"{name}.npz") for name in ("uniform", "dart")), CLASSES)
    rows = [figure.axes[:6], figure.axes[6:]]
    titles = ["image", "true classes", "uniform's answer", "learned importance", "DART's regions", "DART's answer"]
    assert [ax.get_title() for ax in rows[0]] == titles
    assert [[ax.get_xlabel() for ax in row if ax.get_xlabel()] for row in rows] == [["mIoU 100.0%", "mIoU 33.3%"]] * 2
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["left", "right"]
    grid, cut = (ax.collections[0] for ax in (rows[0][2], rows[0][4]))
    assert [len(lines.get_paths()) for lines in (grid, cut)] == [16, 16]
