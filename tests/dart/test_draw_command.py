"""`python -m dart.draw` draws any photograph, shows what the model saw, and says in one sentence what is wrong."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file

import dart.weights
from dart.draw import __main__ as draw_command
from dart.draw import model as draw_model
from dart.draw.photograph import fit, read_photograph
from dart.official import write_weights
from dart.weights import Weights, build_model, read_weights
from pipeline.train.checkpoint import save_weights

ROOT = Path(__file__).resolve().parents[2]


def photograph(height: int = 60, width: int = 90) -> Image.Image:
    """Flat on the left and busy on the right."""
    values = np.full((height, width, 3), 90, dtype=np.uint8)
    values[:, width // 2 :] = np.random.default_rng(0).integers(0, 256, (height, width - width // 2, 3))
    return Image.fromarray(values)


def trained(name: str, **kwargs: Any) -> torch.nn.Module:
    """A model whose scorer does something."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name, **kwargs)
    if model.patch_embed.scorer is not None:
        torch.nn.init.normal_(model.patch_embed.scorer.head.weight)
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with photo.jpg."""
    monkeypatch.chdir(tmp_path)
    photograph().save("photo.jpg")
    return tmp_path


def run(arguments: str, capsys: pytest.CaptureFixture[str]) -> SimpleNamespace:
    """The command in this process: its exit code and what it said."""
    with pytest.raises(SystemExit) as stop:
        draw_command.main(arguments.split())
    said = capsys.readouterr()
    return SimpleNamespace(code=stop.value.code, out=said.out, err=said.err)


def test_help_answers_at_once() -> None:
    code = (
        "import runpy, sys; sys.argv = ['draw', '--help']\n"
        "try: runpy.run_module('dart.draw', run_name='__main__')\n"
        "finally: print([m for m in ('torch', 'numpy', 'matplotlib', 'PIL', 'timm') if m in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert time.perf_counter() - start < 5  # half a second, on a machine with nothing else to do
    assert done.stdout.startswith("usage: python -m dart.draw")
    assert done.stdout.endswith("[]\n"), done.stdout[-200:]


@pytest.mark.parametrize(
    "options",
    [
        "--model dart_vit_nano",
        "--model dart_vit_nano --scores gradient --aspect crop",
        "--model dart_vit_nano --scores gradient --partition grid --token-budget 24",
        "--model dart_vit_nano --token-budget 1 --scores gradient",
        "--model dart_vit_nano --scorer gradient",
        "--model dart_vit_nano --scorer random",
        "--model quadtree_vit_nano",
        "--model deformable_vit_nano",
    ],
)
def test_five_panels_of_any_photograph(options: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(f"photo.jpg {options} --out seen.png", capsys)
    assert done.code == 0, done.err
    assert "seen.png: 1 photograph" in done.out
    assert ("untrained" in done.err) == (not any(word in options for word in ("gradient", "random", "quadtree")))
    with Image.open("seen.png") as picture:
        assert picture.width > 2000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("gone.jpg --model dart_vit_nano", "gone.jpg: no such file"),
        ("notes.txt --model dart_vit_nano", "notes.txt: not an image"),
        ("half.jpg --model dart_vit_nano", "half.jpg: an image that cannot be read"),
        ("long.png --model dart_vit_nano", "long.png: 400 x 20 px: one side is more than 8 times the other"),
        ("photo.jpg", "--model: missing"),
        ("photo.jpg --model dart_deit_smal", "did you mean dart_deit_small"),
        ("photo.jpg --model zzz", "unknown; known: dart_deit_base"),
        ("photo.jpg --model uniform_vit_nano", "not a DART model; did you mean dart_vit_nano"),
        ("photo.jpg --model resnet50", "not a DART model; known: "),
        ("photo.jpg --model dart_vit_nano --token-budget 0", "--token-budget = 0: must be from 1 to 4096"),
        ("photo.jpg --model dart_vit_nano --token-budget 5000", "--token-budget = 5000: must be from 1 to 4096"),
        ("photo.jpg --model dart_vit_nano --token-budget many", "invalid int value: 'many'"),
        ("photo.jpg --model dart_vit_nano --num-rows 50", "num_rows = 50: must be from 1 to num_patches (36)"),
        ("photo.jpg --model dart_vit_nano --img-size 4", "--img-size = 4: must be from 16 to 2048 px"),
        ("photo.jpg --model dart_vit_nano --score-floor 2", "score_floor = 2.0: must be above 0 and at most 1"),
        ("photo.jpg --model dart_vit_nano --scorer net", "scorer = 'net': unknown"),
        ("photo.jpg --model quadtree_vit_nan", "unknown; did you mean quadtree_vit_nano"),
        (
            "photo.jpg --model quadtree_vit_nano --scores gradient",
            "--scores gradient: only of DART models, not of quad",
        ),
        ("photo.jpg --model quadtree_vit_nano --partition grid", "partition = 'grid': quadtree_vit_nano has no such"),
        ("photo.jpg --model dart_vit_nano --scores best", "invalid choice: 'best'"),
        ("photo.jpg --model dart_vit_nano --out seen.doc", "must end in one of .png"),
        ("photo.jpg --model dart_vit_nano --out gone/seen.png", "there is no folder gone"),
        ("photo.jpg --model dart_vit_nano --checkpoint gone.safetensors", "gone.safetensors: no such file"),
        ("photo.jpg --model dart_vit_nano --checkpoint notes.txt", "notes.txt: not a checkpoint"),
        ("photo.jpg --checkpoint bad.safetensors", "bad.safetensors: not a safetensors file"),
        ("photo.jpg --checkpoint anonymous.safetensors", "does not say which model it is of; add --model NAME"),
        ("photo.jpg --checkpoint anonymous.safetensors --model dart_vit_micro", "of another architecture"),
        ("photo.jpg --model dart_deit_tiny --mode paper --aspect keep", "reads squares only"),
        (
            "photo.jpg --model dart_deit_tiny --mode paper --sampling area",
            "sampling = 'area': paper mode has no such choice",
        ),
        ("photo.jpg --model dart_deit_tiny --mode paper --img-size 300", "paper mode knows 448 and 224 px only"),
        ("photo.jpg --model dart_vim_tiny --mode other", "invalid choice: 'other'"),
        ("photo.jpg --checkpoint dart.safetensors --class-names notes.txt", "class names = 1: the model has 3 classes"),
        ("photo.jpg --model dart_vit_nano --uniform-checkpoint dart.safetensors", "not a uniform model"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    arguments: str, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.txt").write_text("hello\n")
    Path("half.jpg").write_bytes(Path("photo.jpg").read_bytes()[:1500])
    photograph(20, 400).save("long.png")
    Path("bad.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0 not a header ....")
    nano = trained("dart_vit_nano", num_classes=3)
    save_file(nano.state_dict(), "anonymous.safetensors")
    write_weights(Path("dart.safetensors"), "dart_vit_nano", {"num_classes": 3}, nano.state_dict())
    done = run(arguments, capsys)
    assert done.code == 2
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert not Path("dart.png").exists()


@pytest.mark.parametrize(
    ("name", "kwargs", "arguments"),
    [
        ("dart_videomamba_nano", {"num_frames": 8}, "--checkpoint clips.safetensors"),
        ("dart_videomamba_nano", {"num_frames": 8}, "--checkpoint clips.safetensors --scores gradient"),
        ("dart_videomamba_tiny", {"num_frames": 8, "mode": "paper"}, "--checkpoint clips.safetensors"),
        ("uniform_videomamba_nano", {"num_frames": 8}, "--model dart_vit_nano --uniform-checkpoint clips.safetensors"),
    ],
)
def test_models_of_clips_are_refused(
    name: str, kwargs: dict[str, Any], arguments: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kwargs = {**kwargs, "depth": 1}
    write_weights(Path("clips.safetensors"), name, kwargs, timm.create_model(name, **kwargs).state_dict())
    done = run(f"photo.jpg {arguments}", capsys)
    assert done.code == 2
    assert "num_frames = 8: a model of clips, and this draws photographs; see dart.draw.clips" in done.err
    assert done.err.count("\n") == 1


def test_models_of_pixel_classes_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kwargs = {"depth": 1, "num_classes": 3}
    name = "uniform_vit_nano_segmenter"
    write_weights(Path("pixels.safetensors"), name, kwargs, timm.create_model(name, **kwargs).state_dict())
    for arguments in (
        "--model dart_vit_nano_segmenter",
        "--model dart_vit_nano --uniform-checkpoint pixels.safetensors",
    ):
        done = run(f"photo.jpg {arguments}", capsys)
        assert done.code == 2
        assert "gives every pixel a class, and this draws classifiers; see dart.draw.segments" in done.err
        assert done.err.count("\n") == 1


def test_weights_that_training_wrote_rebuild_their_model(tmp_path: Path) -> None:
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # the pipeline's pixels go from -1 to 1
    options = {"in_chans": 1, "num_classes": 5, "patch_size": 4, "sampling": "point", "token_budget": 20}
    model = trained("dart_vit_micro", **options)
    kwargs = {**options, "pretrained_cfg_overlay": statistics}
    save_weights(tmp_path / "model.safetensors", model, "dart_vit_micro", kwargs)
    loaded = build_model(None, read_weights(tmp_path / "model.safetensors", None), {})
    image = torch.rand(2, 1, 96, 96)
    assert torch.equal(loaded(image), model(image))
    mean, std = draw_model.pixel_statistics(loaded, 1)
    assert (mean.item(), std.item()) == (0.5, 0.5)


@pytest.mark.parametrize("options", [{}, {"pos_embed": "table"}, {"scorer": "squeezenet1_1", "frozen_scorer": True}])
def test_what_a_file_does_not_say_is_read_off_its_entries(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    state = timm.create_model("dart_vit_nano", num_classes=7, **options).state_dict()
    kwargs = dart.weights.infer_kwargs(state)
    build_model("dart_vit_nano", Weights(None, kwargs, state), {})  # strict


def test_converted_weights_and_both_captions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kwargs = {"num_classes": 3, "token_budget": 16}
    for name in ("dart_vit_nano", "uniform_vit_nano"):
        write_weights(folder / f"{name}.safetensors", name, kwargs, trained(name, **kwargs).state_dict())
    Path("names.txt").write_text("cat\ndog\nfox\n")
    done = run(
        "photo.jpg --checkpoint dart_vit_nano.safetensors --uniform-checkpoint uniform_vit_nano.safetensors "
        "--class-names names.txt --out seen.svg",
        capsys,
    )
    assert done.code == 0, done.err
    assert "16 regions each" in done.out
    assert Path("seen.svg").stat().st_size > 10_000


def test_what_is_drawn_is_what_the_model_saw() -> None:
    model: Any = trained("dart_vit_nano")
    pixels = torch.rand(3, 96, 96)
    panels = draw_model.look(model, pixels, "noise")
    mean, std = draw_model.pixel_statistics(model, 3)
    seen = model.patch_embed.inspect(((pixels - mean) / std)[None])
    assert torch.equal(panels.regions, seen.regions[0])
    torch.testing.assert_close((panels.patches - mean) / std, seen.patches[0], atol=1e-5, rtol=0)
    caption = draw_model.answer(model, pixels, [], "DART").text
    assert caption.startswith("DART says ")


def test_the_uniform_grid_is_shown_where_nothing_is_learned() -> None:
    model = build_model("dart_vit_nano", None, {})
    panels = draw_model.look(model, torch.rand(3, 72, 128), "noise")
    torch.testing.assert_close(panels.regions, panels.uniform_regions, atol=1e-4, rtol=0)
    assert panels.density_caption == "the same everywhere"


@pytest.mark.parametrize("mode", ["invariant", "paper"])
def test_gradient_scores_draw_regions_to_where_brightness_changes(mode: str) -> None:
    options = {"img_size": 224, "num_classes": 0} | ({"mode": mode} if mode == "paper" else {"scorer": "conv"})
    model: Any = draw_model.load_dart("dart_deit_tiny", None, options, "gradient")
    pixels = draw_model.to_pixels(fit(photograph(), (224, 224), "crop", 16), 3)
    regions = draw_model.look(model, pixels, "half").regions
    centres = (regions[:, 0] + regions[:, 2]) / 2
    assert (centres > 112).float().mean() > 0.6
    flat = draw_model.look(model, torch.full((3, 224, 224), 0.5), "flat")
    torch.testing.assert_close(flat.regions, flat.uniform_regions, atol=1e-3, rtol=0)


def test_a_turned_photograph_is_shown_upright(tmp_path: Path) -> None:
    upright = photograph()
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(read_photograph(tmp_path / "turned.png")), np.asarray(upright))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_pixel_becomes_rgb(mode: str, tmp_path: Path) -> None:
    grey = ImageOps.grayscale(photograph())
    sixteen_bits = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    image = sixteen_bits if mode == "I;16" else photograph().convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    read = read_photograph(path)
    assert (read.mode, read.size) == ("RGB", image.size)
    if mode in ("L", "LA", "I;16"):
        assert np.array_equal(np.asarray(read)[..., 0], np.asarray(grey))


def test_transparent_places_are_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (np.asarray(read_photograph(tmp_path / "a.png")) == 255).all()


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (7, 40), (1000, 130)])
def test_keeping_the_shape_keeps_the_number_of_pixels(size: tuple[int, int]) -> None:
    shown = fit(Image.new("RGB", size), (96, 96), "keep", 8)
    assert shown.width * shown.height == pytest.approx(96 * 96, rel=0.05)
    assert shown.width / shown.height == pytest.approx(size[0] / size[1], rel=0.05)
    assert fit(Image.new("RGB", size), (96, 64), "crop", 8).size == (64, 96)


def test_metadata_of_no_use_is_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a": torch.zeros(1)}, "odd.safetensors", {"dart": json.dumps({"name": "x"})})
    done = run("photo.jpg --checkpoint odd.safetensors", capsys)
    assert (done.code, done.err.count("\n")) == (2, 1)
