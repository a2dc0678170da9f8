"""Networks that scores are read off: the convolutional part of any of timm's, and two of torchvision's.

# B batch, C channels, h w image pixels, d feature channels, s stride
"""

import difflib
import math
from typing import Any, NamedTuple

import timm
import torchvision
from timm.layers import BatchNormAct2d, GroupNormAct
from timm.models import adapt_input_conv, get_pretrained_cfg_value
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dart.registry import CONTROL_SCORERS

# The paper's score networks (arXiv 2506.10390, table of scoring networks), by the names of `dart.registry.SCORERS`.
TIMM_NAMES = {
    "mobilenetv3_small": "mobilenetv3_small_100",
    "mobilenetv3_large": "mobilenetv3_large_100",
    "efficientnet_b0": "efficientnet_b0",
}
# timm has no SqueezeNet, and no weights of the half-width MnasNet: torchvision has both. Its network, the attribute
# that holds its convolutional part, and the channels of what that puts out.
TORCHVISION_NAMES = {
    "mnasnet_050": ("mnasnet0_5", "layers", 1280),
    "squeezenet1_1": ("squeezenet1_1", "features", 512),
}
NAMES = ("conv", *TIMM_NAMES, *TORCHVISION_NAMES, *CONTROL_SCORERS)


class Features(NamedTuple):
    """The convolutional part of a network, and the channels of what it puts out."""

    network: nn.Module
    dim: int
    fixed_size: bool = False


def build_features(
    name: str, in_chans: int, *, pretrained: bool = False, stage: int | None = None, score_input: int | None = None
) -> Features:
    """A network by a name of `dart.scorer.build_scorer`, whose arguments and errors these are."""
    if name in TORCHVISION_NAMES:
        return _torchvision_features(name, in_chans, pretrained, stage)
    return _timm_features(name, in_chans, pretrained, stage, score_input)


def torchvision_model(model_name: str, pretrained: bool, scorer: str) -> Any:
    """An nn.Module of torchvision's, whole, with its weights for ImageNet if `pretrained`.

    Args:
        scorer: What the errors call it.

    Raises:
        ValueError: Weights that cannot be had.
    """
    model = torchvision.models.get_model(model_name)
    if pretrained:  # torchvision's own way would load them as a pickle of anything
        weights = torchvision.models.get_model_weights(model_name).IMAGENET1K_V1
        try:
            model.load_state_dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
        except Exception as error:  # of the network, the disk, or what is in the file
            raise _no_weights(scorer, error) from error
    return model


def batch_to_group_norm(module: nn.Module) -> nn.Module:
    """Every batch norm replaced by a group norm of 8 channels or a little more, its activation and affine kept.

    What a network needs to be trained from scratch without mixing the images of a batch. In place.
    """
    if isinstance(module, _BatchNorm):
        groups = math.gcd(module.num_features, max(1, module.num_features // 8))
        if isinstance(module, BatchNormAct2d):
            norm: nn.Module = GroupNormAct(module.num_features, groups, eps=module.eps)
            norm.drop, norm.act = module.drop, module.act
        else:
            norm = nn.GroupNorm(groups, module.num_features, eps=module.eps)
        if module.affine:
            norm.load_state_dict({"weight": module.weight, "bias": module.bias})
        return norm
    for name, child in module.named_children():
        setattr(module, name, batch_to_group_norm(child))
    return module


def has_running_statistics(module: nn.Module) -> bool:
    """Batch norm and its relatives (in torch, timm and torchvision) keep statistics of past batches."""
    return isinstance(module, _BatchNorm) or "running_var" in dict(module.named_buffers(recurse=False))


def _timm_features(name: str, in_chans: int, pretrained: bool, stage: int | None, score_input: int | None) -> Features:
    """A network of timm up to one of its stages; what lies beyond is not built."""
    plain = TIMM_NAMES.get(name) or name.removeprefix("timm/")
    if not (name in TIMM_NAMES or name.startswith("timm/")) or not timm.is_model(plain):
        near = difflib.get_close_matches(name, [*NAMES, *(f"timm/{model}" for model in timm.list_models())], n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"scorer = {name!r}: unknown; {guess}known: {', '.join(NAMES)}, timm/NAME")
    options: dict[str, Any] = {"features_only": True, "feature_cls": "getter", "in_chans": in_chans}
    options["out_indices"] = (-1 if stage is None else stage,)
    fixed_size = bool(get_pretrained_cfg_value(plain, "fixed_input_size"))
    if fixed_size:
        if score_input is None:
            raise ValueError(f"score_input = None or 'full': {name} reads one size only; try 224 (pixels)")
        options["img_size"] = score_input
    try:
        network = timm.create_model(plain, **options)
    except (AssertionError, IndexError) as error:  # timm checks stages, and what sizes a network reads, so
        raise ValueError(
            f"scorer = {name!r}, stage = {stage}, score_input = {score_input}: timm says {error}"
        ) from error
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(f"scorer = {name!r}: timm takes no features from it ({error}); choose another") from error
    if not hasattr(network.model, "forward_intermediates"):
        raise ValueError(f"scorer = {name!r}: timm takes no features from it; choose another")
    if pretrained:  # built once without, so that what fails now is to be had weights, and nothing else
        try:
            network = timm.create_model(plain, pretrained=True, **options)
        except Exception as error:
            raise _no_weights(name, error) from error
    return Features(network, network.feature_info.channels()[-1], fixed_size)


def _torchvision_features(name: str, in_chans: int, pretrained: bool, stage: int | None) -> Features:
    """The convolutional part of one of torchvision's networks, its first layer made for in_chans."""
    if stage is not None:
        raise ValueError(f"stage = {stage}: {name} is used whole; leave it out, or choose a network of timm")
    model_name, part, dim = TORCHVISION_NAMES[name]
    network = getattr(torchvision_model(model_name, pretrained, name), part)
    if in_chans != 3:
        old = network[0]
        network[0] = nn.Conv2d(
            in_chans, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None
        )
        state = {**old.state_dict(), "weight": adapt_input_conv(in_chans, old.weight.detach())}
        network[0].load_state_dict(state)
    return Features(network, dim)


def _no_weights(name: str, error: Exception) -> ValueError:
    """Downloads fail in as many ways as there are libraries under them; a user needs one sentence."""
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(
        f"pretrained = True: the weights of scorer {name!r} cannot be had ({cause}); "
        "connect to the network once, or train from scratch with pretrained=False"
    )
