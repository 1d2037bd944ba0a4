"""Muon: an optimizer that makes the momentum of each weight matrix orthogonal before taking it as a step.

Keller Jordan, https://kellerjordan.github.io/posts/muon (2024). ``torch.optim.Muon`` takes matrices alone and always
multiplies in bfloat16, which many CPUs only emulate, fifty times slower; this one also takes kernels of convolutions,
multiplies in the precision that is fast, and takes weights of one shape together.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic, which brings singular values near one
ITERATIONS = 5
OUTPUTS = ("readout", "logits")  # layers whose rows stand for codes, as those of an embedding do


class Muon(torch.optim.Optimizer):
    """For the weights of linear layers and convolutions; kernels are flattened to (first axis, rest).

    A step is ``lr * 0.2 * sqrt(longer side)`` long in each singular direction, so that its root mean square is near
    that of AdamW's at the same rate (Liu et al. 2025, arXiv 2502.16982, section 2.2).

    Args:
        params: tensors of two or more dimensions.
        lr: learning rate.
        momentum: share of the old mean of gradients that is kept at each step; with Nesterov's look-ahead.
        weight_decay: decoupled, as in AdamW.
        dtype: to multiply matrices in.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take a step against the present gradients."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.flatten(1).shape].append(weight)
            for shape, weights in alike.items():
                momenta = [self.state[weight].setdefault("momentum", torch.zeros_like(weight)) for weight in weights]
                gradients = [weight.grad for weight in weights]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
                directions = orthogonal(torch.stack([part.flatten(1) for part in ahead]), self.dtype)
                steps = [direction.view_as(weight) for direction, weight in zip(directions, weights, strict=True)]
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, steps, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def orthogonal(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Roughly the nearest orthogonal matrices: (N, rows, columns) to the same, with singular values of 0.7 to 1.2."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    long = dtype == torch.float32 and x.shape[2] >= 2 * x.shape[1]
    x = _iterated_over_square(x) if long else _iterated(x)
    return (x.mT if tall else x).to(matrices.dtype)


def _iterated(x: Tensor) -> Tensor:
    """Newton and Schulz's iteration of x <- (a + b·xxᵀ + c·(xxᵀ)²)·x."""
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


def _iterated_over_square(x: Tensor) -> Tensor:
    """The same with fewer products for a long x, in which only xxᵀ and the factor of x are iterated."""
    a, b, c = COEFFICIENTS
    square, factor = x @ x.mT, None
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for iteration in range(ITERATIONS):
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c) + a * identity
        factor = polynomial if factor is None else polynomial @ factor
        if iteration < ITERATIONS - 1:
            square = polynomial @ (square @ polynomial)
    return factor @ x


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """The weights that Muon is meant for: matrices and kernels, but those of embeddings and outputs."""
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, layers) and name.rpartition(".")[2] not in OUTPUTS
    ]
