"""What every quantizer takes and gives: its settings, its result, and the check of what comes in."""

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from worldmodel.checks import check


class Quantized(NamedTuple):
    """What a quantizer makes of the encoder's output."""

    vectors: Tensor  # (B, D, *grid), what the decoder is given; their gradient reaches the encoder's output
    codes: Tensor  # (B, *grid) int64, without the noise of training
    loss: Tensor  # (), the quantizer's own terms
    counts: Tensor  # (K,) float32, how often each code was chosen; in training, by all workers


KINDS = {  # the settings that only one kind of quantizer has
    "nearest": ("update", "initial", "scale", "commitment", "codebook", "decay", "samples", "revive_every"),
    "gumbel": ("temperature", "coldest", "cooling", "divergence"),
    "semhash": ("noise", "discrete"),
}


@dataclass(frozen=True)
class QuantizerConfig:
    """How the codebook is shaped and learnt.

    Attributes:
        codes: K, vectors in the codebook; with kind semhash a power of two.
        dim: D, length of each.
        kind: nearest (the nearest vector of a codebook), gumbel (relaxed categories) or semhash (noisy bits). All
            settings below belong to one kind, and another refuses them.
        update: of nearest: loss (eq. 3 of the first paper), ema (its appendix, eqs 6-8) or soft_em (the second paper,
            section 3).
        initial: of nearest: where the codebook starts, kmeans (on the first batch) or random (normally distributed).
        scale: of nearest: standard deviation of the numbers in a random first codebook.
        commitment: of nearest: beta, weight of the commitment term.
        codebook: of nearest: weight of the codebook term, with update loss only.
        decay: of nearest: gamma of the moving averages, with update ema and soft_em.
        samples: of nearest: m, codes sampled for each vector, with update soft_em.
        revive_every: of nearest: steps after which codes that nothing chose are moved onto data; 0 never does.
        temperature: of gumbel: that of the first step.
        coldest: of gumbel: the temperature at which cooling ends.
        cooling: of gumbel: steps from the one to the other, in equal ratios.
        divergence: of gumbel: weight of the Kullback-Leibler divergence from uniform codes, in nats a code.
        noise: of semhash: standard deviation of the noise on the logits of the bits.
        discrete: of semhash: share of the examples whose decoder sees bits in training; the others' sees sigmoids.
    """

    codes: int = 512
    dim: int = 64
    kind: Literal["nearest", "gumbel", "semhash"] = "nearest"
    update: Literal["loss", "ema", "soft_em"] = "ema"
    initial: Literal["kmeans", "random"] = "kmeans"
    scale: float = 1.0
    commitment: float = 0.25
    codebook: float = 1.0
    decay: float = 0.99
    samples: int = 10
    revive_every: int = 100
    temperature: float = 1.0
    coldest: float = 0.1
    cooling: int = 5000
    divergence: float = 5e-4
    noise: float = 1.0
    discrete: float = 0.5

    def __post_init__(self) -> None:
        weights = ("scale", "commitment", "codebook", "revive_every", "divergence", "noise")
        counts, positive = ("codes", "dim", "samples", "cooling"), ("temperature", "coldest")
        check("quantizer", self, counts, weights, positive, ("discrete",))
        if not 0 <= self.decay < 1:
            raise ValueError(f"quantizer.decay must be in [0, 1), got {self.decay}")
        if self.coldest > self.temperature:
            raise ValueError(
                f"quantizer.coldest must not be above quantizer.temperature, got {self.coldest} and {self.temperature}"
            )
        if self.kind == "semhash" and (self.codes == 1 or self.codes.bit_count() > 1):
            near = 1 << self.codes.bit_length()
            raise ValueError(f"quantizer.codes must be a power of two for kind semhash, got {self.codes}; use {near}")
        defaults = {field.name: field.default for field in fields(self)}
        for kind, names in KINDS.items():
            for name in names if kind != self.kind else ():
                if getattr(self, name) != defaults[name]:
                    raise ValueError(
                        f"quantizer.{name} is a setting of kind {kind}, got kind {self.kind} with {name} "
                        f"{getattr(self, name)}; leave it out"
                    )


def flattened(z: Tensor, dim: int) -> Tensor:
    """The vectors of ``z``, (B, D, *grid) -> (B·grid, D), in float32.

    Raises:
        ValueError: if ``z`` has another rank, another D, no floating type, or a value that is not finite.
    """
    if z.ndim < 3 or z.shape[1] != dim or not z.is_floating_point():
        raise ValueError(f"the quantizer expects floating (B, {dim}, *grid), got {z.dtype} {tuple(z.shape)}")
    if not torch.isfinite(z.float().sum()):
        raise ValueError("the quantizer got a NaN or infinite vector: lower the learning rate, or look at the data")
    return z.float().movedim(1, -1).reshape(-1, dim)


def unflattened(vectors: Tensor, codes: Tensor, loss: Tensor, counts: Tensor, z: Tensor) -> Quantized:
    """A result for ``z`` from vectors (B·grid, D) and codes (B·grid,)."""
    grid = z.shape[:1] + z.shape[2:]
    return Quantized(vectors.view(*grid, -1).movedim(-1, 1), codes.view(grid), loss, counts)
