"""Building blocks that come in one and two dimensions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

CONVOLUTION = {1: nn.Conv1d, 2: nn.Conv2d}
TRANSPOSED_CONVOLUTION = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}


def strided(dims: int, channels: int, hidden: int, strides: Sequence[int]) -> list[nn.Module]:
    """Convolutions and ReLUs, each of which divides the grid by its stride: (B, channels, *grid) -> (B, hidden, …).

    A window is two strides wide, 4 for 2, or one less for an odd stride, so that it divides a multiple of it exactly.
    """
    layers: list[nn.Module] = []
    for number, stride in enumerate(strides):
        sizes = hidden if number else channels, hidden, 2 * stride - stride % 2
        layers += [CONVOLUTION[dims](*sizes, stride=stride, padding=stride // 2), nn.ReLU()]
    return layers


class ResidualBlock(nn.Module):
    """Adds ReLU, 3×3, ReLU, 1×1 to its input (van den Oord et al. 2017, section 4.1); (B, C, *grid) to the same."""

    def __init__(self, dims: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.spatial = CONVOLUTION[dims](channels, hidden, 3, padding=1)
        self.pointwise = CONVOLUTION[dims](hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(F.relu(self.spatial(F.relu(x))))


def gated(x: Tensor, dim: int = -1, told: Tensor | None = None) -> Tensor:
    """tanh(a)·sigmoid(b) of the two halves of ``x + told`` along ``dim`` (van den Oord et al. 2016, eq. 2)."""
    return _Gate.apply(x, dim, told)


class _Gate(torch.autograd.Function):
    """:func:`gated` whose gradient is written where it belongs, without a copy of each half."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, dim: int, told: Tensor | None) -> Tensor:
        a, b = x.chunk(2, dim)
        if told is None:
            a, b = torch.tanh(a), torch.sigmoid(b)
        else:
            a, b = (half + also for half, also in zip((a, b), told.chunk(2, dim), strict=True))
            a, b = a.tanh_(), b.sigmoid_()
        ctx.save_for_backward(a, b)
        ctx.dim, ctx.told = dim, None if told is None else told.shape
        return a * b

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, Tensor | None]:
        a, b = ctx.saved_tensors
        shape = list(gradient.shape)
        shape[ctx.dim] *= 2
        both = gradient.new_empty(shape)
        of_a, of_b = both.chunk(2, ctx.dim)
        torch.mul(gradient, b, out=of_a)
        torch.mul(of_a, a, out=of_b)
        of_a.addcmul_(of_b, a, value=-1)  # g·b·(1 - a²)
        of_b.addcmul_(of_b, b, value=-1)  # g·a·b·(1 - b)
        return both, None, None if ctx.told is None else both.sum_to_size(ctx.told)


def dropped(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Dropout whose chance comes from a generator, so that a resumed run drops what it would have dropped."""
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= share
    return x * kept / (1 - share)
