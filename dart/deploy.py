"""A trained model made ready to answer: batch norms folded into convolutions, channels last, nothing left to train."""

import copy
from collections import Counter
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

AnyModule = TypeVar("AnyModule", bound=nn.Module)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def optimize_for_inference(model: AnyModule) -> AnyModule:
    """A copy of the model that gives the same outputs sooner: the model itself stays as it is.

    In eval mode, norms folded (`fold_norms`), convolution weights laid out channels-last, no parameter with a
    gradient. Its state dict is not the model's: keep the model's for saving. Group norms depend on the image and cannot
    be folded: scorers trained from scratch gain nothing here, those with batch norms about a third of their time.

    Returns:
        A module of the model's class; its outputs equal those of `model.eval()` up to rounding.
    """
    ready = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(ready)
    for parameter in ready.parameters():
        if parameter.ndim == 4:  # kernels of clips have five axes, one of them a single frame; this layout is for four
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return ready


def fold_norms(module: nn.Module) -> int:
    """Fold every batch norm that directly follows a convolution into its weights, for inference. In place.

    Which norm follows which convolution is read off a trace, not guessed from names or order. Where a module cannot be
    traced, its children are tried. A convolution whose output goes elsewhere too, or that is called twice, is left.

    Returns:
        How many norms were folded; in their places are their activations (timm's norms have them), or nothing.

    Raises:
        ValueError: A module in training mode: its norms follow the batch, and cannot be constants.
    """
    if module.training:
        raise ValueError("training = True: norms are folded for inference only; call eval() first")
    try:
        graph = _Tracer().trace(module)
    except Exception:  # a trace fails in whatever way the module's Python dislikes a stand-in for a tensor
        return sum(fold_norms(child) for child in module.children())
    pairs = _foldable(graph, module)
    for conv_name, norm_name in pairs:
        norm = module.get_submodule(norm_name)
        _fold(module.get_submodule(conv_name), norm)
        module.set_submodule(norm_name, _remainder(norm))
    return len(pairs)


class _Tracer(fx.Tracer):
    """Sees norms and convolutions of all libraries as one call each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """timm's norms with activations are not torch's own, and would be looked into."""
        return isinstance(m, (_BatchNorm, *CONVOLUTIONS)) or super().is_leaf_module(m, module_qualified_name)


def _foldable(graph: fx.Graph, root: nn.Module) -> list[tuple[str, str]]:
    """Names of the convolution and the norm, for every pair whose sum of effects is one convolution."""
    modules = dict(root.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(id(modules[str(node.target)]) for node in calls)
    pairs = []
    for node in calls:
        norm, before = modules[str(node.target)], node.args[0] if node.args else None
        if not isinstance(norm, _BatchNorm) or norm.running_var is None or not isinstance(before, fx.Node):
            continue
        conv = modules.get(str(before.target)) if before.op == "call_module" else None
        alone = len(before.users) == 1 and times[id(norm)] == 1 and times[id(conv)] == 1
        if isinstance(conv, CONVOLUTIONS) and not conv.training and not norm.training and alone:
            pairs.append((str(before.target), str(node.target)))
    return pairs


@torch.no_grad()
def _fold(conv: Any, norm: Any) -> None:
    """conv <- norm(conv(.)), computed in float64: rounding happens once."""
    dtype = conv.weight.dtype
    conv.double()
    norm.double()
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.to(dtype)


def _remainder(norm: nn.Module) -> nn.Module:
    """What a norm does besides: timm's apply an activation, and may drop (nothing, at inference)."""
    return (getattr(norm, "act", None) or nn.Identity()).eval()
