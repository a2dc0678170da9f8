"""Tensors without data: what runs on them waits for no value."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class OnMeta(TorchDispatchMode):
    """Counts operators (views excluded), and refuses those that bring data to the host or take some from it."""

    num_operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor)]
        assert all(t.device.type == "meta" for t in made), func
        assert not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.intersection(func.tags), func
        self.num_operators += not func.is_view
        return out
