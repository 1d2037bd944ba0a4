"""Building blocks in one and two dimensions."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

M = TypeVar("M", bound=nn.Module)
CONVOLUTION = {1: nn.Conv1d, 2: nn.Conv2d}
TRANSPOSED_CONVOLUTION = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}


def module_list(layers: Iterable[M]) -> Sequence[M]:
    """Return an ``nn.ModuleList``, with the type of its items known to type checkers."""
    return cast(Sequence[M], nn.ModuleList(layers))


def strided_convolutions(
    dims: int, in_channels: int, hidden_channels: int, strides: Sequence[int], kernel_size: int | None = None
) -> list[nn.Module]:
    """Build convolutions and ReLUs, each dividing the grid by its stride: (B, channels, *grid) -> (B, hidden, …).

    Args:
        kernel_size: an odd kernel size; by default twice the stride (4 for 2), minus one for an odd stride. Either way,
            multiples of the stride are divided exactly.
    """
    layers: list[nn.Module] = []
    for number, stride in enumerate(strides):
        kernel, padding = (kernel_size, kernel_size // 2) if kernel_size else (2 * stride - stride % 2, stride // 2)
        channels = hidden_channels if number else in_channels
        layers += [CONVOLUTION[dims](channels, hidden_channels, kernel, stride=stride, padding=padding), nn.ReLU()]
    return layers


class ResidualBlock(nn.Module):
    """Adds ReLU, 3×3, ReLU, 1×1 to its input (van den Oord et al. 2017, section 4.1); keeps the shape (B, C, *grid)."""

    def __init__(self, dims: int, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.spatial = CONVOLUTION[dims](channels, hidden_channels, 3, padding=1)
        self.pointwise = CONVOLUTION[dims](hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(F.relu(self.spatial(F.relu(x))))


@torch.no_grad()
def init_he(layers: nn.Module) -> None:
    """Initialize 1-D convolutions so that ReLUs between them keep the variance (He et al. 2015, equation 10).

    With PyTorch's default, six in a row shrink the variation between codes to a four-hundredth, and the decoder learns
    to ignore them.
    """
    for layer in layers.modules():
        if isinstance(layer, nn.Conv1d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def gated_activation(x: Tensor, dim: int = -1, condition: Tensor | None = None) -> Tensor:
    """Return tanh(a)·sigmoid(b) of the halves of ``x + condition`` along ``dim`` (van den Oord et al. 2016, eq. 2)."""
    if torch.compiler.is_compiling():  # the compiler fuses these, and cannot trace the in-place gradient
        a, b = (x if condition is None else x + condition).chunk(2, dim)
        return a.tanh() * b.sigmoid()
    return _GatedActivation.apply(x, dim, condition)


class _GatedActivation(torch.autograd.Function):
    """:func:`gated_activation`, with a gradient that is written in place, without copying each half."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, condition: Tensor | None) -> Tensor:
        a, b = x.chunk(2, dim)
        if condition is None:
            a, b = torch.tanh(a), torch.sigmoid(b)
        else:
            a, b = (half + bias for half, bias in zip((a, b), condition.chunk(2, dim), strict=True))
            a, b = a.tanh_(), b.sigmoid_()
        ctx.save_for_backward(a, b)
        ctx.dim, ctx.condition_shape = dim, None if condition is None else condition.shape
        return a * b

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None]:
        a, b = ctx.saved_tensors
        shape = list(gradient.shape)
        shape[ctx.dim] *= 2
        both = gradient.new_empty(shape)
        grad_a, grad_b = both.chunk(2, ctx.dim)
        torch.mul(gradient, b, out=grad_a)
        torch.mul(grad_a, a, out=grad_b)
        grad_a.addcmul_(grad_b, a, value=-1)  # g·b·(1 - a²)
        grad_b.addcmul_(grad_b, b, value=-1)  # g·a·b·(1 - b)
        return both, None, None if ctx.condition_shape is None else both.sum_to_size(ctx.condition_shape)


def dropout(x: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Apply dropout with masks from a generator, so that a resumed run repeats those of an uninterrupted one."""
    mask = torch.rand(x.shape, generator=generator, device=x.device) >= probability
    return x * mask / (1 - probability)
