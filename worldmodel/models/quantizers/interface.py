"""Input checks and output of every quantizer."""

from typing import NamedTuple

import torch
from torch import Tensor


class Quantized(NamedTuple):
    """The quantized encoder output."""

    vectors: Tensor  # (B, D, *grid), the decoder's input; its gradient reaches the encoder's output
    codes: Tensor  # (B, *grid) int64, without training noise
    loss: Tensor  # (), the quantizer's own loss terms
    counts: Tensor  # (K,) float32, how often each code was chosen; in training, over all workers
    samples: Tensor | None = None  # (B, m, *grid) int64, the codes whose mean soft EM passes on in training


def flatten(z: Tensor, dim: int) -> Tensor:
    """Return the vectors of ``z`` as float32 rows: (B, D, *grid) -> (B·grid, D).

    Raises:
        ValueError: if ``z`` has another rank or another D, is not floating, or has a value that is not finite.
    """
    if z.ndim < 3 or z.shape[1] != dim or not z.is_floating_point():
        raise ValueError(f"the quantizer expects floating (B, {dim}, *grid), got {z.dtype} {tuple(z.shape)}")
    if not torch.isfinite(z.float().sum()):
        raise ValueError("the quantizer got a NaN or infinite vector: lower the learning rate, or look at the data")
    return z.float().movedim(1, -1).reshape(-1, dim)


def unflatten(
    vectors: Tensor, codes: Tensor, loss: Tensor, counts: Tensor, z: Tensor, samples: Tensor | None = None
) -> Quantized:
    """Return vectors (N, D), codes (N,) and samples (N, m), N = B·grid, in the shape of ``z``, with loss and counts."""
    grid = z.shape[:1] + z.shape[2:]
    samples = None if samples is None else samples.view(*grid, -1).movedim(-1, 1)
    return Quantized(vectors.view(*grid, -1).movedim(-1, 1), codes.view(grid), loss, counts, samples)


def perplexity(counts: Tensor) -> Tensor:
    """Return the exponential of the entropy of the code frequencies, (K,) counts -> (), between 1 and K."""
    p = counts / counts.sum()
    return torch.exp(-torch.special.xlogy(p, p).sum())
