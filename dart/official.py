"""Published checkpoints as weights of our models, name by name, strict: the authors', and plain DeiT, Vim, VideoMamba.

    python -m dart.official CHECKPOINT.pth OUT.safetensors [--model dart_deit_small_392]

Names differ in the scorer's prefix alone; the work is to find out which model a checkpoint is of, and to refuse what it
is not. Of images, VideoMamba has the names and shapes of Vim: say --model videomamba_tiny.
"""

import argparse
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dart.registry import HEADS, WEIGHTS_METADATA

if TYPE_CHECKING:
    from torch import Tensor, nn

OFFICIAL_SCORER = "patch_embed.spn.spn.spn."
OFFICIAL_VIDEO_SCORER = "patch_embed.score_backbone."
NUM_VIDEO_STAGES = 8  # of the features that `dart.paper.video` reads
# Prefixes of our names and of the authors', the longest first; models of clips have a scorer of their own.
IMAGE_NAMES = {"patch_embed.scorer.": OFFICIAL_SCORER}
VIDEO_NAMES = {
    "patch_embed.scorer.change.": "patch_embed.score_head1.",
    "patch_embed.scorer.topic.": "patch_embed.score_head2.",
    "patch_embed.scorer.": OFFICIAL_VIDEO_SCORER,
}
VARIANTS = {
    "deit": {192: "tiny", 384: "small", 768: "base"},
    "vim": {192: "tiny", 384: "small"},
    "videomamba": {192: "tiny"},
}
# Entries that show a model's width, and the axis that does.
WIDTHS = {"cls_token": 2, "pos_embed": 2, "patch_embed.proj.weight": 0, "patch_embed.proj.bias": 0, "head.weight": 1}
OVERLAPPING_STRIDE = 8  # pixels from one patch of 16 px to the next, in the published Vim of long sequences
OVERLAPPING_SIDE = (224 - 16) // OVERLAPPING_STRIDE + 1
UNSUPPORTED = {
    r"pre_image\.": "an RMT checkpoint: what is published does not fix its forward pass; see docs/method.md, section 8",
    r"score_backbone\.": "a video embedder without its model; there is nothing to convert it to",
    r"dist_token$|head_dist\.": "a distilled DeiT: its second class token does not work with DART",
}


def convert(
    state: "dict[str, Tensor]", model_name: str | None = None, **options: Any
) -> "tuple[str, dict[str, Any], dict[str, Tensor]]":
    """A checkpoint's entries under our names.

    Args:
        state: Official names to tensors, as under the key "model" of a published file.
        model_name: One of ours; None to tell it from names and shapes. The number of tokens leaves no trace in the
            weights: name dart_deit_small_392, or give `token_budget`, for another than 196.
        options: Further keyword arguments of the model, kept with the weights: `token_budget`, `score_input` ...

    Returns:
        The model's name, its keyword arguments for `timm.create_model`, and its complete state dict.

    Raises:
        ValueError: it is no checkpoint of that model; every unknown, missing and misshapen entry is named.
    """
    import torch

    state = {key: value for key, value in state.items() if not _is_unread(key)}
    guess, kwargs = recognise(state)
    name, kwargs = model_name or guess, {**kwargs, **options}
    try:
        with torch.device("meta"):  # names and shapes are all that is asked for
            expected = build(name, kwargs).state_dict()
    except TypeError as error:
        raise ValueError(f"{name}: cannot be built with {kwargs} ({error}); check the model's name") from error
    video = "num_frames" in kwargs
    if problems := compare(state, {official_name(key, video): value for key, value in expected.items()}):
        lines = "\n".join(f"  {line}" for line in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ValueError(f"checkpoint: not of {name}, {count}\n{lines}")
    return name, kwargs, {key: state[official_name(key, video)] for key in expected}


def recognise(state: "dict[str, Tensor]") -> tuple[str, dict[str, Any]]:
    """Which of our models a checkpoint is of, from names and shapes alone: its name and keyword arguments."""
    for pattern, what in UNSUPPORTED.items():
        if found := next((key for key in state if re.match(pattern, key)), None):
            raise ValueError(f"checkpoint has {found}: {what}")
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    kind = _kind(shapes)
    variants = VARIANTS[kind]
    widths = [shapes[key][axis] for key, axis in WIDTHS.items() if len(shapes.get(key, ())) > axis]
    width = Counter(widths).most_common(1)[0][0] if widths else 0
    dart = any(key.startswith((OFFICIAL_SCORER, OFFICIAL_VIDEO_SCORER)) for key in state)
    kwargs: dict[str, Any] = {}
    if kind != "deit" and width not in variants:
        # A width of its own, as in a test: then the depth is its own too. No entry of a usual model may go unmissed.
        kwargs |= {"embed_dim": width, "depth": len({key.split(".")[1] for key in state if key.startswith("layers.")})}
    elif width not in variants:
        raise ValueError(f"checkpoint: width {width} is none of DeiT's ({', '.join(map(str, variants))})")
    if (head := shapes.get("head.weight", (1000,))) and head[0] != 1000:
        kwargs["num_classes"] = head[0]
    if len(times := shapes.get("temporal_pos_embedding", ())) == 3:
        kwargs["num_frames"] = times[1]
    if dart:
        kwargs |= {"mode": "paper"} | ({} if "num_frames" in kwargs else _recognise_scorer(shapes))
    elif len(table := shapes.get("pos_embed", ())) == 3:
        kwargs |= _plain_size(kind, round((table[1] - 1) ** 0.5))
    prefix = "dart_" if dart else "uniform_" if kind == "deit" else ""
    return f"{prefix}{kind}_{variants.get(width, 'tiny')}", kwargs


def compare(found: "dict[str, Tensor]", expected: "dict[str, Tensor]") -> list[str]:
    """Every difference in names and shapes, one line each; empty if there is none."""
    missing = [f"missing {name} {tuple(value.shape)}" for name, value in expected.items() if name not in found]
    unknown = [f"unknown {name} {tuple(value.shape)}" for name, value in found.items() if name not in expected]
    misshapen = [
        f"misshapen {name} {tuple(found[name].shape)}: must be {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    return missing + unknown + misshapen


def our_name(name: str) -> str:
    """An official entry name as we say it."""
    return _rename(name, {theirs: ours for names in (IMAGE_NAMES, VIDEO_NAMES) for ours, theirs in names.items()})


def official_name(name: str, video: bool = False) -> str:
    """Our entry name as the authors say it, in a model of images or of clips."""
    return _rename(name, VIDEO_NAMES if video else IMAGE_NAMES)


def read_checkpoint(path: Path) -> "dict[str, Tensor]":
    """The entry "model" of a .pth file, or all of it if that is a state dict, as VideoMamba's files of clips are.

    Only tensors and plain values are read: a file cannot run code.

    Raises:
        ValueError: no such file, a file with anything else in it, or without weights.
    """
    import torch

    if not path.is_file():
        raise ValueError("no such file")
    try:
        # Training scripts store their arguments beside the weights; a namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in whatever way its pickle or its archive breaks
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"not a checkpoint that can be read safely ({reason})") from error
    bare = isinstance(loaded, dict) and loaded and all(isinstance(value, torch.Tensor) for value in loaded.values())
    state = (loaded if bare else loaded.get("model")) if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        keys = ", ".join(map(str, list(loaded)[:5])) if isinstance(loaded, dict) else type(loaded).__name__
        raise ValueError(f'has no entry "model" with a state dict; it holds {keys}')
    if wrong := [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(f"its model has entries that are not tensors: {', '.join(wrong)}")
    return state


def write_weights(path: Path, model_name: str, kwargs: dict[str, Any], state: "dict[str, Tensor]") -> None:
    """Weights with the name and keyword arguments of their model, all or nothing."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # One entry only: safetensors writes several in random order.
    metadata = {WEIGHTS_METADATA: json.dumps({"model": model_name, "kwargs": kwargs}, sort_keys=True)}
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent}: no such folder; make it first")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Cloned, since safetensors takes neither views nor tensors that share their memory.
        save_file({key: value.detach().clone().contiguous() for key, value in state.items()}, temporary, metadata)
        os.replace(temporary, path)
    except SafetensorError as error:
        raise ValueError(f"{path}: cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def build(model_name: str, kwargs: dict[str, Any]) -> "nn.Module":
    """One of our models, without any download."""
    import timm

    import dart.models  # noqa: F401 (registers the models)

    if not timm.is_model(model_name):
        ours, segmenters = ["*dart_*", "uniform_*", "vim_*", "videomamba_*"], [f"*_{head}" for head in HEADS]
        known = ", ".join(timm.list_models(ours, exclude_filters=segmenters))
        raise ValueError(f"model = {model_name!r}: unknown; known: {known}")
    return timm.create_model(model_name, **kwargs)


def _rename(name: str, prefixes: dict[str, str]) -> str:
    """The name with the first of the prefixes that it has replaced."""
    found = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
    return name if found is None else prefixes[found] + name[len(found) :]


def _is_unread(name: str) -> bool:
    """Whether it is of a stage of the video scorer that nobody reads: the authors keep all, we what is used."""
    stage = re.match(rf"{re.escape(OFFICIAL_VIDEO_SCORER)}features\.(\d+)\.", name)
    return stage is not None and int(stage[1]) >= NUM_VIDEO_STAGES


def _kind(shapes: dict[str, tuple[int, ...]]) -> str:
    """The backbone: deit, vim or videomamba."""
    for kind, pattern in {"deit": r"blocks\.\d+\.attn\.", "vim": r"layers\.\d+\.mixer\."}.items():
        if any(re.match(pattern, key) for key in shapes):
            clips = len(shapes.get("patch_embed.proj.weight", ())) == 5 or "temporal_pos_embedding" in shapes
            return "videomamba" if clips and kind == "vim" else kind
    some = ", ".join(list(shapes)[:5]) or "nothing"
    raise ValueError(f"checkpoint: neither of DeiT (blocks.*.attn) nor of Vim (layers.*.mixer); it has {some}")


def _recognise_scorer(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The score network that most of what is there speaks for: a missing entry shall not make it another one."""
    from dart.paper.scorer import SCORERS

    stages = {match[1] for key in shapes if (match := re.match(rf"{re.escape(OFFICIAL_SCORER)}features\.(\d+)\.", key))}
    first, last = (shapes.get(f"{OFFICIAL_SCORER}mlp.net.{i}.weight", ())[:2] for i in (0, 2))

    def agreement(name: str) -> int:
        spec = SCORERS[name]
        layers = (spec.hidden, spec.num_features) == first, (spec.num_outputs, spec.hidden) == last
        return sum(layers) + (spec.num_stages == len(stages))

    return {"scorer": max(SCORERS, key=agreement)}


def _plain_size(kind: str, side: int) -> dict[str, Any]:
    """What the side of the position table says of a model without DART, whose patches are 16 px."""
    if kind == "vim" and side == OVERLAPPING_SIDE:  # Vim-Ti+ and Vim-S+, not patches of 432 px every 16 px
        return {"patch_stride": OVERLAPPING_STRIDE}
    size: dict[str, Any] = {} if side == 14 and kind != "deit" else {"img_size": 16 * side}
    if kind == "deit":
        size |= {"token_budget": side**2} | ({} if side == 14 else {"table_size": side})
    return size


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m dart.official", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="the authors' .pth file")
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    parser.add_argument("--model", help="our name of the model; told from the weights if not given")
    parser.add_argument("--token-budget", type=int, help="patch tokens per image; the weights do not say (196)")
    parser.add_argument("--score-input", choices=["full", "224"], help="what the score network sees (full)")
    options = vars(parser.parse_args(arguments))
    chosen = {key: options[key] for key in ("token_budget", "score_input") if options[key] is not None}
    try:
        name, kwargs, state = convert(read_checkpoint(options["checkpoint"]), options["model"], **chosen)
        write_weights(options["out"], name, kwargs, state)
    except (ValueError, OSError) as error:
        sys.exit(f"{options['checkpoint']}: {error}")
    shown = "".join(f", {key}={value!r}" for key, value in kwargs.items())
    print(f"{options['out']}: {len(state)} entries of timm.create_model({name!r}{shown})")


if __name__ == "__main__":
    main()
