"""How the forms of `selective_scan` that are operators of their own are differentiated: the same in each.

# B batch, L tokens, D channels, S states per channel
"""

from typing import Any

from torch import Tensor
from torch.library import CustomOpDef


def empty_grads(
    grad: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, starts: Tensor
) -> list[Tensor]:
    """Memory for the gradients of x, dt, A, B, C, and of D where there is one; the arguments of a backward operator."""
    return [t.new_empty(t.shape) for t in (x, dt, A, B, C, D) if t is not None]


def register_gradient(scan: CustomOpDef, backward: CustomOpDef) -> None:
    """Differentiate an operator by another.

    Args:
        scan: x, dt, A, B, C, D -> y (B, L, D), and states that the backward pass starts from, which have no gradient.
        backward: The gradient of y, the six, and those states -> a list as that of `empty_grads`.
    """

    def save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    def differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = backward(grad, *ctx.saved_tensors)
        return *grads, *[None] * (6 - len(grads))

    backward.register_fake(empty_grads)
    scan.register_autograd(differentiate, setup_context=save)
