"""Published checkpoints load name by name, and nothing else does."""

import argparse
import json
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import timm
import torch

from dart.official import convert, main, official_name, our_name, write_weights
from dart.paper.scorer import SCORERS
from dart.weights import load

ENTRIES = json.loads((Path(__file__).parents[1] / "golden/state_dict_names.json").read_text())
# List of entries -> the model, and what of it is not as the name says.
MODELS = {
    "darvit_tiny": ("dart_deit_tiny", "mobilenetv3_small_v1"),
    "darvit_tiny_v2": ("dart_deit_tiny", "mobilenetv3_small_v2"),
    "darvit_sm": ("dart_deit_small", "mobilenetv3_large_v1"),
    "darvim_tiny": ("dart_vim_tiny", "mobilenetv3_small_v2"),
    "darvim_sm": ("dart_vim_small", "mobilenetv3_large_v2"),
}


VIDEO_EMBEDDER = "video_patch_embed(T=4,N=784,dim=16)"


def checkpoint(entries: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Every entry filled with values that its name alone decides, so that a swap shows."""
    state = {}
    for name, shape in entries.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        counts = name.endswith("num_batches_tracked")
        state[name] = torch.tensor(3) if counts else 0.05 * torch.rand(shape, generator=generator)
    return state


@pytest.mark.parametrize("entries", MODELS)
def test_published_weights_load_strictly(entries, tmp_path):
    official = checkpoint(ENTRIES[entries])
    # As training scripts save them: with much else beside the weights.
    torch.save({"model": official, "epoch": 299, "args": argparse.Namespace(lr=5e-4)}, tmp_path / "in.pth")
    main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")])
    model = load(tmp_path / "out.safetensors")
    name, scorer = MODELS[entries]
    assert model.pretrained_cfg["architecture"] == name
    assert model.patch_embed.scorer.spec == SCORERS[scorer]
    state = model.state_dict()
    assert {official_name(name) for name in state} == official.keys()
    assert all(torch.equal(state[our_name(name)], value) for name, value in official.items())


def test_plain_deit_gives_what_timm_gives():
    torch.manual_seed(0)
    plain = timm.create_model("deit_tiny_patch16_224").eval()
    name, kwargs, state = convert(plain.state_dict())
    ours = timm.create_model(name, **kwargs).eval()
    ours.load_state_dict(state, strict=True)
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), plain(images), rtol=1e-4, atol=1e-4)


def test_plain_models_of_another_size_are_told_from_the_position_table():
    with torch.device("meta"):
        state = timm.create_model("deit_base_patch16_384").state_dict()
    kwargs = {"img_size": 384, "token_budget": 576, "table_size": 24}
    assert convert(state)[:2] == ("uniform_deit_base", kwargs)


def test_plain_vim_is_told_from_its_names():
    assert convert(timm.create_model("vim_small").state_dict())[:2] == ("vim_small", {})


def test_a_vim_of_overlapping_patches_is_told_from_its_table():
    """Its 27 x 27 patches are those of 224 px every 8 px: of 432 px every 16 px it would be another model."""
    with torch.device("meta"):
        long = timm.create_model("vim_tiny", patch_stride=8)
    name, kwargs, state = convert(long.state_dict())
    assert (name, kwargs) == ("vim_tiny", {"patch_stride": 8})
    assert state["pos_embed"].shape == (1, 27 * 27 + 1, 192)


def test_plain_videomamba_of_clips_is_told_from_its_times(tmp_path):
    with torch.device("meta"):
        clips = timm.create_model("videomamba_tiny", num_frames=16, num_classes=400).state_dict()
        wide = timm.create_model("videomamba_tiny", embed_dim=576, depth=32, num_frames=8).state_dict()
    kwargs = {"num_frames": 16, "num_classes": 400}
    assert convert(clips)[:2] == ("videomamba_tiny", kwargs)
    assert convert(wide)[:2] == ("videomamba_tiny", {"embed_dim": 576, "depth": 32, "num_frames": 8})
    # Published files of clips hold the weights and nothing else.
    state = checkpoint({name: list(value.shape) for name, value in clips.items()})
    torch.save(state, tmp_path / "in.pth")
    main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")])
    model = load(tmp_path / "out.safetensors")
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())


def test_plain_videomamba_of_images_is_told_by_name():
    """Its entries are Vim's, but for the order that nobody sees: which row of the table is the class token's."""
    with torch.device("meta"):
        state = timm.create_model("videomamba_tiny").state_dict()
    assert convert(state)[0] == "vim_tiny"
    assert convert(state, "videomamba_tiny")[:2] == ("videomamba_tiny", {})


def test_a_video_checkpoint_of_the_authors_has_its_embedder_in_a_videomamba():
    entries = {name: shape for name, shape in ENTRIES["darvim_tiny"].items() if not name.startswith("patch_embed.")}
    entries |= {"temporal_pos_embedding": [1, 4, 192]}
    embedder = ENTRIES[VIDEO_EMBEDDER] | {"proj.weight": [192, 3, 1, 16, 16], "proj.bias": [192]}
    state = checkpoint(entries | {f"patch_embed.{name}": shape for name, shape in embedder.items()})
    name, kwargs, ours = convert(state, token_budget=784)
    assert (name, kwargs) == ("dart_videomamba_tiny", {"num_frames": 4, "mode": "paper", "token_budget": 784})
    model = timm.create_model(name, **kwargs)
    model.load_state_dict(ours, strict=True)
    assert torch.equal(model.patch_embed.scorer.change.weight, state["patch_embed.score_head1.weight"])
    assert {our_name(key) for key in state} >= ours.keys()
    del state["patch_embed.score_head2.bias"]
    with pytest.raises(ValueError, match=r"1 problem\n  missing patch_embed\.score_head2\.bias"):
        convert(state)


def test_what_the_weights_do_not_say_can_be_given(tmp_path):
    torch.save({"model": checkpoint(ENTRIES["darvit_sm"])}, tmp_path / "in.pth")
    options = ["--model", "dart_deit_small_392", "--score-input", "224"]
    main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"), *options])
    tokenizer = load(tmp_path / "out.safetensors").patch_embed
    assert tokenizer.num_patches == 392
    assert tokenizer.scorer.score_input == "224"


def test_every_wrong_entry_is_named_under_its_official_name():
    state = checkpoint(ENTRIES["darvit_tiny_v2"])
    del state["head.bias"], state["patch_embed.spn.spn.spn.mlp.net.0.weight"]
    state = {name: value for name, value in state.items() if not name.startswith("blocks.11.")}
    state |= {"pos_embed": torch.zeros(1, 145, 192), "ema_decay": torch.zeros(1)}
    with pytest.raises(ValueError, match="checkpoint: not of dart_deit_tiny, 16 problems") as raised:
        convert(state)
    lines = str(raised.value).splitlines()
    assert "  missing head.bias (1000,)" in lines
    assert "  missing patch_embed.spn.spn.spn.mlp.net.0.weight (96, 576)" in lines
    assert len([line for line in lines if "missing blocks.11." in line]) == 12
    assert "  unknown ema_decay (1,)" in lines
    assert "  misshapen pos_embed (1, 145, 192): must be (1, 197, 192)" in lines


@pytest.mark.parametrize("entries", ["darvit_tiny", "darvim_sm"])
def test_no_single_entry_can_be_missing_or_misshapen(entries):
    state = checkpoint(ENTRIES[entries])
    names = list(state)
    for name in [names[0], names[-1], "patch_embed.proj.weight", "patch_embed.spn.spn.spn.mlp.net.2.weight"]:
        with pytest.raises(ValueError, match=f"1 problem\n  missing {name}"):
            convert({k: v for k, v in state.items() if k != name})
        with pytest.raises(ValueError, match=f"1 problem\n  misshapen {name}"):
            convert({**state, name: torch.zeros(7, 5, 3)})


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({name: [1] for name in ENTRIES["DARMT_L6"]}, "an RMT checkpoint"),
        ({name: [1] for name in ENTRIES[VIDEO_EMBEDDER]}, "a video embedder without its model"),
        ({"patch_embed.proj.weight": [192, 3, 1, 16, 16]}, "neither of DeiT .* nor of Vim"),
        ({**ENTRIES["darvit_tiny"], "dist_token": [1, 1, 192]}, "a distilled DeiT"),
        ({"conv1.weight": [64, 3, 7, 7]}, "neither of DeiT .* nor of Vim .*; it has conv1.weight"),
        ({}, "it has nothing"),
        ({"cls_token": [1, 1, 100], "blocks.0.attn.qkv.weight": [300, 100]}, "width 100 is none of DeiT's"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(entries, sentence):
    with pytest.raises(ValueError, match=sentence):
        convert(checkpoint(entries))


def test_another_architecture_by_name_is_refused():
    with pytest.raises(ValueError, match=r"checkpoint: not of dart_deit_small, \d+ problems\n  misshapen cls_token"):
        convert(checkpoint(ENTRIES["darvit_tiny"]), "dart_deit_small")
    with pytest.raises(ValueError, match="model = 'dart_deit_tony': unknown; known: dart_deit_base"):
        convert(checkpoint(ENTRIES["darvit_tiny"]), "dart_deit_tony")


def test_a_bad_file_gives_one_sentence_and_writes_nothing(tmp_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Touch(str(tmp_path / "ran"))}, protocol=2))
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut off")
    torch.save({"state_dict": {}}, tmp_path / "keys.pth")
    torch.save({"model": {"head.weight": [1, 2]}}, tmp_path / "list.pth")
    sentences = {
        "gone": "no such file",
        "evil": "not a checkpoint that can be read safely",
        "cut": "not a checkpoint that can be read safely",
        "keys": 'has no entry "model" with a state dict; it holds state_dict',
        "list": "its model has entries that are not tensors: head.weight",
    }
    for name, sentence in sentences.items():
        with pytest.raises(SystemExit, match=sentence) as raised:
            main([str(tmp_path / f"{name}.pth"), str(tmp_path / "out.safetensors")])
        assert str(raised.value).startswith(f"{tmp_path / name}.pth: ")
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob("*out.safetensors*"))
    with pytest.raises(ValueError, match="no such folder; make it first"):
        write_weights(tmp_path / "gone/out.safetensors", "vim_tiny", {}, {})


def test_a_file_of_another_program_is_not_loaded(tmp_path):
    from safetensors.torch import save_file

    save_file({"head.bias": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not say which model it is of"):
        load(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load(tmp_path / "cut.safetensors")


def test_help_answers_without_loading_torch():
    code = (
        "import runpy, sys; sys.argv = ['official', '--help']\n"
        "try: runpy.run_module('dart.official', run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("usage:")
    assert done.stdout.endswith("False\n")


class Touch:
    """A pickle that makes a file when it is loaded carelessly."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)
