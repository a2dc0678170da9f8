"""The bidirectional Mamba block of Vision Mamba (arXiv 2401.09417) and VideoMamba (arXiv 2403.06977): one set of
projections, a scan in each direction.

Parameter names and layouts are those of Mamba, so published weights load.

# B batch, L tokens, D embedding, E inner channels, S states per channel
"""

import math
from typing import NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from dart.kernels.causal_conv1d import causal_conv1d
from dart.kernels.selective_scan import selective_scan

# Weight decay would pull all rates of forgetting to one, and all step sizes to softplus(0).
NO_WEIGHT_DECAY = ("A_log", "A_b_log", "D", "D_b", "dt_proj.bias", "dt_proj_b.bias")


class MixerMacs(NamedTuple):
    """Multiply-accumulates of a mixer, by formula: they do not depend on how the scan is computed.

    projections: Into and out of the inner channels, shared by both directions.
    steps: The maps to step sizes, B and C.
    convolutions: In front of the scans.
    scan: Per direction, token and channel, 9 for each state (the figure that published GFLOPs are made with) and 1 for
        D x.
    """

    projections: int
    steps: int
    convolutions: int
    scan: int


class BidirectionalMixer(nn.Module):
    """Every token learns from those before it and, with parameters of its own, from those after it.

    Args:
        dim: D.
        state_size: S.
        conv_width: Tokens that the causal convolution in front of each scan sees.
        expand: E / D.
        average: Take the mean of both directions, as Vim does; else their sum, as VideoMamba does.
    """

    def __init__(
        self, dim: int, state_size: int = 16, conv_width: int = 4, expand: int = 2, average: bool = True
    ) -> None:
        super().__init__()
        self.conv_width, self.average = conv_width, average
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.sizes = [rank, state_size, state_size]
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        for name in ("", "_b"):  # the direction of reading, and the other
            conv = nn.Conv1d(inner, inner, conv_width, groups=inner, padding=conv_width - 1)
            self.add_module(f"conv1d{name}", conv)
            self.add_module(f"x_proj{name}", nn.Linear(inner, sum(self.sizes), bias=False))
            self.add_module(f"dt_proj{name}", _init_steps(nn.Linear(rank, inner)))
            decay = torch.arange(1, state_size + 1, dtype=torch.float32).log().repeat(inner, 1)
            self.register_parameter(f"A{name}_log", nn.Parameter(decay))
            self.register_parameter(f"D{name}", nn.Parameter(torch.ones(inner)))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x, gate = self.in_proj(tokens).chunk(2, -1)  # (B, L, E) each
        there = self._scan(x, "")
        back = self._scan(x.flip(1), "_b").flip(1)
        both = (there + back) / 2 if self.average else there + back
        return self.out_proj(both * F.silu(gate))

    def count_macs(self, tokens: int) -> MixerMacs:
        """What `forward` costs for so many tokens in all, both directions together."""
        rank, state_size, _ = self.sizes
        inner, dim = self.in_proj.out_features // 2, self.in_proj.in_features
        return MixerMacs(
            projections=tokens * 3 * inner * dim,
            steps=tokens * 2 * inner * (sum(self.sizes) + rank),
            convolutions=tokens * 2 * inner * self.conv_width,
            scan=tokens * 2 * inner * (9 * state_size + 1),
        )

    def _scan(self, x: Tensor, name: str) -> Tensor:
        """One direction, in the order given: convolution, input-dependent step sizes and matrices, scan."""
        weight, bias = self.get_parameter(f"conv1d{name}.weight"), self.get_parameter(f"conv1d{name}.bias")
        x = F.silu(causal_conv1d(x, weight[:, 0], bias))
        dt, b, c = self.get_submodule(f"x_proj{name}")(x).split(self.sizes, -1)
        dt = self.get_submodule(f"dt_proj{name}")(dt)
        # A step size near zero is a difference of large numbers in half precision, and the state forgets by its power.
        dt = F.softplus(dt.to(torch.promote_types(dt.dtype, torch.float32)))
        logs = self.get_parameter(f"A{name}_log")
        rates = -logs.to(torch.promote_types(logs.dtype, torch.float32)).exp()
        return selective_scan(x, dt, rates, b, c, self.get_parameter(f"D{name}"))


class CountedMixer(nn.Module):
    """In a mixer's place to count its cost: computes nothing, passes the tokens on, and keeps the cost in `macs`."""

    def __init__(self, mixer: BidirectionalMixer) -> None:
        super().__init__()
        self.mixer, self.macs = mixer, MixerMacs(0, 0, 0, 0)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, D), as they are."""
        more = self.mixer.count_macs(tokens.shape[0] * tokens.shape[1])
        self.macs = MixerMacs(*(a + b for a, b in zip(self.macs, more, strict=True)))
        return tokens


class StreamNorm(nn.RMSNorm):
    """The norm of the residual stream: computed in the stream's precision, given in the dtype of the weights."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-5)

    def forward(self, stream: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        weight = self.weight
        return F.rms_norm(stream, self.normalized_shape, weight.to(stream.dtype), self.eps).to(weight.dtype)


class MambaBlock(nn.Module):
    """Add to the residual stream, normalise, mix. The stream itself stays in float32 at least.

    The sum is at the front, as in Mamba: a block takes what the last one mixed and returns what it mixed itself, so
    that sum and norm are neighbours.
    """

    def __init__(self, dim: int, state_size: int = 16, drop_path: float = 0.0, average: bool = True) -> None:
        super().__init__()
        self.norm = StreamNorm(dim)
        self.mixer = BidirectionalMixer(dim, state_size, average=average)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, mixed: Tensor, stream: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the block before mixed (B, L, D) and the stream before it -> the same two of this block."""
        stream = add_to_stream(self.drop_path(mixed), stream)
        return self.mixer(self.norm(stream)), stream


def add_to_stream(mixed: Tensor, stream: Tensor | None) -> Tensor:
    """The residual stream with one more term; None for the first."""
    mixed = mixed.to(torch.promote_types(mixed.dtype, torch.float32))
    return mixed if stream is None else stream + mixed


def _init_steps(linear: nn.Linear, shortest: float = 1e-3, longest: float = 0.1) -> nn.Linear:
    """Step sizes log-uniform between two bounds at the start (Mamba, section 3.6)."""
    bound = linear.in_features**-0.5
    nn.init.uniform_(linear.weight, -bound, bound)
    steps = torch.exp(torch.empty_like(linear.bias).uniform_(math.log(shortest), math.log(longest)))
    with torch.no_grad():
        linear.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus
    return linear
