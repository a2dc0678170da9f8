"""What `dart.draw` asks a model: build or load it, put photographs through its tokenizer, and read its answers.

# C channels, H W image pixels, G_h G_w score grid, N tokens, P patch side
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn

from dart.baselines.deformable import DeformableTokenizer
from dart.baselines.quadtree import QuadtreeTokenizer
from dart.baselines.scores import ConstantScores, GradientScores, RandomScores
from dart.draw.figures import Caption, Panels
from dart.kernels import sample_regions
from dart.paper import PaperTokenizer
from dart.partition import uniform_regions
from dart.registry import BASELINES, HEADS
from dart.weights import build_model, check_name, read_weights

SCORE_CELL_PX = 16  # of gradient scores as drawn, finer than what models are trained with
# What a density shows that no model has learned, by the part that makes it.
NOT_LEARNED = {
    QuadtreeTokenizer: "entropy (not learned)",
    DeformableTokenizer: "no importance",
    ConstantScores: "constant scores",
    RandomScores: "random scores (not learned)",
    GradientScores: "gradient strength (not learned)",
}


class Seen(NamedTuple):
    """What a tokenizer makes of one image: density (G_h, G_w), regions (N, 4) px, patches (N, C, P, P) from 0 to 1."""

    density: Tensor
    regions: Tensor
    patches: Tensor


def load_dart(model_name: str | None, checkpoint: Path | None, options: dict[str, Any], scores: str) -> nn.Module:
    """The model to look at, of DART or a baseline; DART's scorer is replaced where `scores` is "gradient".

    Raises:
        ValueError: as `dart.weights.build_model`, and for models that have no such tokenizer, that read clips, or give
            every pixel a class.
    """
    weights = None if checkpoint is None else read_weights(checkpoint, model_name)
    for name in (model_name, weights.model_name if weights else None):
        if name is not None:
            _check_name(name, family_of(name))
            if scores == "gradient" and family_of(name) != "dart":
                raise ValueError(f"--scores gradient: only of DART models, not of {name}; leave it out")
    model: Any = _check_reads_images(build_model(model_name, weights, options))
    if scores == "gradient":
        model.patch_embed.scorer = GradientScores(SCORE_CELL_PX, log=not is_paper(model))
    return model


def family_of(model_name: str) -> str:
    """The baseline that a name begins with, or "dart", which every other name should."""
    return next((name for name in BASELINES if model_name.startswith(f"{name}_")), "dart")


def says_of(model: nn.Module) -> str:
    """Whose regions a model's are, in a picture's titles."""
    tokenizer = model.patch_embed
    who = {QuadtreeTokenizer: "the quadtree", DeformableTokenizer: "deformable patches"}
    return next((name for kind, name in who.items() if isinstance(tokenizer, kind)), "DART")


def not_learned(model: nn.Module) -> str | None:
    """What the density of a model shows that has learned none; None for DART's learned importance."""
    tokenizer: Any = model.patch_embed
    parts = (tokenizer, tokenizer.scorer)
    return next((title for kind, title in NOT_LEARNED.items() if any(isinstance(p, kind) for p in parts)), None)


def load_uniform(checkpoint: Path | None, token_budget: int | None) -> nn.Module | None:
    """The uniform model to compare with, if there is one."""
    if checkpoint is None:
        return None
    weights = read_weights(checkpoint, None)
    _check_name(weights.model_name or "", "uniform")
    options = {} if token_budget is None else {"token_budget": token_budget}
    return _check_reads_images(build_model(None, weights, options))


def _check_name(name: str, family: str) -> None:
    check_name(name, family)
    if name.endswith(tuple(f"_{head}" for head in HEADS)):
        raise ValueError(
            f"model = {name!r}: gives every pixel a class, and this draws classifiers; see dart.draw.segments"
        )


def _check_reads_images(model: nn.Module) -> nn.Module:
    num_frames = getattr(model, "num_frames", None)
    if num_frames is not None:
        raise ValueError(
            f"num_frames = {num_frames}: a model of clips, and this draws photographs; see dart.draw.clips"
        )
    return model


def is_paper(model: nn.Module) -> bool:
    """Whether a DART model is in paper mode."""
    return isinstance(model.patch_embed, PaperTokenizer)


def to_pixels(photograph: Image.Image, in_chans: int) -> Tensor:
    """An RGB image as (C, H, W) from 0 to 1, in grey for models of one channel."""
    if in_chans not in (1, 3):
        raise ValueError(f"the model reads {in_chans} channels: a photograph has 3, or 1 in grey")
    values = np.array(photograph if in_chans == 3 else photograph.convert("L"), dtype=np.float32) / 255
    return torch.from_numpy(values).reshape(photograph.height, photograph.width, in_chans).permute(2, 0, 1)


@torch.inference_mode()
def look(model: nn.Module, pixels: Tensor, name: str, uniform_model: nn.Module | None = None) -> Panels:
    """Everything that a row of the five-panel picture shows, captions left empty.

    Args:
        model: A DART model. In paper mode an image's regions depend on its batch mates: here it has none.
        pixels: (C, H, W) from 0 to 1.
        uniform_model: The one whose grid is shown beside it; None: a grid of as many regions, read the same way.
    """
    seen = tokenize(model, pixels)
    if uniform_model is not None:
        grid = tokenize(uniform_model, pixels)
    else:
        tokenizer: Any = model.patch_embed
        size = (pixels.shape[-2], pixels.shape[-1])
        kind = getattr(tokenizer, "partition", "flow")
        regions = uniform_regions(tokenizer.num_patches, tokenizer.num_rows, size, pixels.device, pixels.dtype, kind)
        # Paper mode is compared with DeiT on a copy of half the side, whose pixels are means of the image's.
        sampling = getattr(tokenizer, "sampling", "area")
        grid = Seen(
            seen.density, regions[0], sample_regions(pixels[None], regions, tokenizer.patch_size[0], sampling)[0]
        )
    peak = float(seen.density.max() / seen.density.mean())
    caption = f"at most {peak:.1f} times the mean" if peak > 1.001 else "the same everywhere"
    return Panels(name, pixels, *grid[1:], *seen, density_caption=caption)


def tokenize(model: nn.Module, pixels: Tensor) -> Seen:
    """One image through a model's tokenizer: pixels (C, H, W) from 0 to 1, and so are the patches."""
    mean, std = pixel_statistics(model, len(pixels))
    tokenizer: Any = model.patch_embed
    found = tokenizer.inspect(((pixels - mean) / std)[None])
    return Seen(found.density[0], found.regions[0], found.patches[0] * std + mean)


@torch.inference_mode()
def answer(model: nn.Module, pixels: Tensor, class_names: Sequence[str], who: str) -> Caption:
    """What a model says about pixels (C, H, W) from 0 to 1, as a caption.

    Args:
        class_names: By index; without any, ImageNet's for 1000 classes.
    """
    mean, std = pixel_statistics(model, len(pixels))
    logits = model(((pixels - mean) / std)[None])[0]
    confidence, best = logits.float().softmax(-1).max(-1)
    names = class_names or known_classes(len(logits))
    if names and len(names) != len(logits):
        raise ValueError(f"class names = {len(names)}: the model has {len(logits)} classes")
    name = names[int(best)] if names else f"class {int(best)}"
    return Caption(f"{who} says {name} ({100 * float(confidence):.0f}%)")


def known_classes(num_classes: int) -> list[str]:
    """ImageNet's names for 1000 classes, none for any other number."""
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(i).split(",")[0] for i in range(1000)] if num_classes == 1000 else []


def pixel_statistics(model: nn.Module, num_chans: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C, 1, 1) that the model's input is normalised with."""
    config: Any = model.pretrained_cfg
    pair = (torch.tensor(config[key], dtype=torch.float32) for key in ("mean", "std"))
    mean, std = (v if len(v) == num_chans else v.mean().expand(num_chans) for v in pair)
    return mean[:, None, None], std[:, None, None]
