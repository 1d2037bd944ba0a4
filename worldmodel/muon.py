"""Muon: an optimizer that orthogonalizes the momentum of each weight matrix before taking it as a step.

Keller Jordan, https://kellerjordan.github.io/posts/muon (2024). ``torch.optim.Muon`` takes only matrices and always
multiplies in bfloat16, which many CPUs emulate fifty times slower. This version also takes convolution kernels,
multiplies in a given precision, and batches weights of the same shape with ``torch._foreach_*``, as torch.optim does.
"""

# pyright: reportPrivateImportUsage=false
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic, which brings singular values near one
NUM_ITERATIONS = 5
OUTPUT_LAYERS = ("readout", "logits")  # a network's last layers, into the space of codes


class Muon(torch.optim.Optimizer):
    """Muon for the weights of linear layers and convolutions; kernels are flattened to (first axis, rest).

    The step in each singular direction is ``lr * 0.2 * sqrt(longer side)``, so that its root mean square is close to
    AdamW's at the same learning rate (Liu et al. 2025, arXiv 2502.16982, section 2.2).

    Args:
        params: tensors of two or more dimensions.
        lr: learning rate.
        momentum: decay of the gradient's moving average, with Nesterov look-ahead.
        weight_decay: decoupled weight decay, as in AdamW.
        dtype: type in which matrices are multiplied.
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
        """Update all weights that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.flatten(1).shape].append(weight)
            for shape, weights in by_shape.items():
                for weight in weights:
                    if "momentum" not in self.state[weight]:
                        self.state[weight]["momentum"] = torch.zeros_like(weight)
                momenta = [self.state[weight]["momentum"] for weight in weights]
                gradients = [weight.grad for weight in weights if weight.grad is not None]  # all of them
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                lookahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
                directions = orthogonalize(torch.stack([matrix.flatten(1) for matrix in lookahead]), self.dtype)
                steps = [direction.view_as(weight) for direction, weight in zip(directions, weights, strict=True)]
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, steps, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return roughly the nearest orthogonal matrices, (N, rows, columns), with singular values from 0.7 to 1.2."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    wide = dtype == torch.float32 and x.shape[2] >= 2 * x.shape[1]
    x = _newton_schulz_gram(x) if wide else _newton_schulz(x)
    return (x.mT if tall else x).to(matrices.dtype)


def _newton_schulz(x: Tensor) -> Tensor:
    """Run the Newton-Schulz iteration x <- (a + b·xxᵀ + c·(xxᵀ)²)·x."""
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _newton_schulz_gram(x: Tensor) -> Tensor:
    """Run the same iteration on xxᵀ and the factor of x alone, which takes fewer products for a wide x."""
    a, b, c = COEFFICIENTS
    gram = x @ x.mT
    factor = identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for iteration in range(NUM_ITERATIONS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * identity
        factor = polynomial @ factor if iteration else polynomial
        if iteration < NUM_ITERATIONS - 1:
            gram = polynomial @ (gram @ polynomial)
    return factor @ x


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """Return the weights that Muon trains: matrices and kernels, except those of embeddings and of OUTPUT_LAYERS."""
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, layers) and name.rpartition(".")[2] not in OUTPUT_LAYERS
    ]
