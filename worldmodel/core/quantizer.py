"""Vectors to the nearest of K learnt codes and back, with a straight-through gradient."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.core import workers

ROWS = 1024  # vectors compared with the codebook at a time: the (rows, K) scores stay in the cache
KMEANS_STEPS = 10


class Quantized(NamedTuple):
    """What a quantizer makes of the encoder's output."""

    vectors: Tensor  # (B, D, *grid), code vectors; their gradient goes to the encoder's output unchanged
    codes: Tensor  # (B, *grid) int64
    loss: Tensor  # (), codebook and commitment terms
    counts: Tensor  # (K,) float32, how often each code was chosen; in training, by all workers


@dataclass(frozen=True)
class QuantizerConfig:
    """How the codebook is shaped and learnt.

    Attributes:
        codes: K, vectors in the codebook.
        dim: D, length of each.
        update: loss (eq. 3 of the first paper), ema (its appendix, eqs 6-8) or soft_em (the second paper, section 3).
        commitment: beta, weight of the commitment term.
        codebook: weight of the codebook term, with update loss only.
        decay: gamma of the moving averages, with update ema and soft_em.
        samples: m, codes sampled for each vector, with update soft_em.
        revive_every: steps after which codes that nothing chose are moved onto data; 0 never does.
    """

    codes: int = 512
    dim: int = 64
    update: Literal["loss", "ema", "soft_em"] = "ema"
    commitment: float = 0.25
    codebook: float = 1.0
    decay: float = 0.99
    samples: int = 10
    revive_every: int = 100

    def __post_init__(self) -> None:
        for name in ("codes", "dim", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"quantizer.{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"quantizer.decay must be in [0, 1), got {self.decay}")


class VectorQuantizer(nn.Module):
    """Replaces each D-vector by the nearest code (van den Oord et al. 2017, eqs 1-3; Roy et al. 2018, eqs 10-12).

    In training mode a forward pass also learns the codebook. The codes are those of the nearest vectors in either
    mode. With ``torch.distributed`` started, all workers learn one codebook from all their vectors, as a single process
    would from one batch of them; only the samples of soft EM are others.

    The moving averages N and m are kept raw and start at zero, so m/N has no bias to correct, and a code that nothing
    chooses keeps its vector exactly.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        codebook = torch.randn(config.codes, config.dim)
        if config.update == "loss":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        self.register_buffer("ema_count", torch.zeros(config.codes))  # N, eq. 6
        self.register_buffer("ema_sum", torch.zeros(config.codes, config.dim))  # m, eq. 7
        self.register_buffer("usage", torch.zeros(config.codes))  # chosen since the last revival
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.compiler.disable
    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Quantized:
        """Quantize ``z`` (B, D, *grid), floating.

        Args:
            generator: for the random choices of training (the first codebook, revival, soft EM).

        Raises:
            ValueError: if ``z`` has another rank, another D, no floating type, or a value that is not finite.
        """
        self._check(z)
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            rows = z.movedim(1, -1).reshape(-1, self.config.dim)  # (N, D), N = B·grid
            if self.training:
                self._prepare(rows.detach(), generator)
            codes = nearest(rows.detach(), self.codebook)  # (N,)
            vectors = F.embedding(codes, self.codebook)  # (N, D)
            counts = torch.bincount(codes, minlength=self.config.codes).float()
            counts = workers.total(counts) if self.training else counts
            loss = self.config.commitment * F.mse_loss(rows, vectors.detach())
            if self.training and self.config.update == "loss":
                loss = loss + self.config.codebook * F.mse_loss(vectors, rows.detach())
                self.usage += counts
            elif self.training and self.config.update == "ema":
                self._average(counts, workers.total(_sums(rows.detach(), codes, self.config.codes)))
            elif self.training:
                samples = sample_codes(rows.detach(), self.codebook, self.config.samples, generator)  # (N, m)
                vectors = F.embedding(samples, self.codebook).mean(1)  # eq. 12
                loss = self.config.commitment * F.mse_loss(rows, vectors)
                repeated = rows.detach().repeat_interleave(self.config.samples, 0)
                soft_counts = workers.total(torch.bincount(samples.flatten(), minlength=self.config.codes).float())
                sums = workers.total(_sums(repeated, samples.flatten(), self.config.codes))
                self._average(soft_counts / self.config.samples, sums / self.config.samples)
            vectors = rows + (vectors - rows).detach()
        grid = z.shape[2:]
        return Quantized(
            vectors=vectors.view(z.shape[0], *grid, -1).movedim(-1, 1),
            codes=codes.view(z.shape[0], *grid),
            loss=loss,
            counts=counts,
        )

    def encode(self, z: Tensor) -> Tensor:
        """The nearest codes of ``z``: (B, D, *grid) -> (B, *grid) int64."""
        self._check(z)
        with torch.autocast(z.device.type, enabled=False):
            rows = z.float().movedim(1, -1)
            return nearest(rows.reshape(-1, self.config.dim), self.codebook).view(rows.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        """The vectors of ``codes``: (B, *grid) int64 -> (B, D, *grid)."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def _prepare(self, rows: Tensor, generator: torch.Generator | None) -> None:
        """Place the codebook on the first batch; later, move codes that fell out of use onto the present one."""
        every = self.config.revive_every
        if self.steps == 0:
            self.codebook.copy_(workers.from_first(_kmeans(workers.gathered(rows), self.config.codes, generator)))
        elif every and self.steps % every == 0:  # the same step on all workers, so is the collective
            fresh = workers.from_first(_choose(workers.gathered(rows), self.config.codes, generator))
            dead = (self.usage == 0)[:, None]
            self.codebook.copy_(torch.where(dead, fresh, self.codebook))
            self.ema_sum.masked_fill_(dead, 0)
            self.ema_count.masked_fill_(dead[:, 0], 0)
            self.usage.zero_()
        self.steps += 1

    @torch.no_grad()
    def _average(self, counts: Tensor, sums: Tensor) -> None:
        """Equations 6 to 8; a code that nothing chose keeps its vector."""
        self.usage += counts
        self.ema_count.lerp_(counts, 1 - self.config.decay)
        self.ema_sum.lerp_(sums, 1 - self.config.decay)
        chosen = counts[:, None] > 0
        self.codebook.copy_(torch.where(chosen, self.ema_sum / self.ema_count[:, None], self.codebook))

    def _check(self, z: Tensor) -> None:
        if z.ndim < 3 or z.shape[1] != self.config.dim or not z.is_floating_point():
            raise ValueError(
                f"the quantizer expects floating (B, {self.config.dim}, *grid), got {z.dtype} {tuple(z.shape)}"
            )
        if not torch.isfinite(z.float().sum()):
            raise ValueError("the quantizer got a NaN or infinite vector: lower the learning rate, or look at the data")


def nearest(rows: Tensor, codebook: Tensor) -> Tensor:
    """The index of the nearest code of each row: (N, D), (K, D) -> (N,) int64, by largest z·c - |c|²/2."""
    bias = -0.5 * codebook.square().sum(1)  # (K,)
    return torch.cat([torch.addmm(bias, part, codebook.T).argmax(1) for part in rows.split(ROWS)])


def sample_codes(rows: Tensor, codebook: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
    """Draw codes with P ∝ exp(-|z - c|²): (N, D), (K, D) -> (N, samples) int64 (Roy et al. 2018, section 3.2)."""
    bias = -codebook.square().sum(1)
    drawn = []
    for part in rows.split(ROWS):
        probabilities = torch.addmm(bias, part, codebook.T, alpha=2).softmax(1)  # |z|² is the same for every code
        drawn.append(torch.multinomial(probabilities, samples, replacement=True, generator=generator))
    return torch.cat(drawn)


def perplexity(counts: Tensor) -> Tensor:
    """2 to the entropy in bits of how often the codes were chosen, (K,) counts -> (); between 1 and K."""
    p = counts / counts.sum()
    return torch.exp(-torch.special.xlogy(p, p).sum())


def _sums(rows: Tensor, codes: Tensor, size: int) -> Tensor:
    """The sum of the rows of each code: (N, D), (N,) -> (size, D)."""
    return rows.new_zeros(size, rows.shape[1]).index_add_(0, codes, rows)


def _kmeans(rows: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """A codebook of ``size`` vectors from a few steps of Lloyd's algorithm on ``rows``."""
    centres = _choose(rows, size, generator)
    for _ in range(KMEANS_STEPS):
        codes = nearest(rows, centres)
        counts = torch.bincount(codes, minlength=size)[:, None]
        centres = torch.where(counts > 0, _sums(rows, codes, size) / counts.clamp_min(1), centres)
    return centres


def _choose(rows: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """``size`` random rows, different ones as long as there are enough."""
    order = torch.randperm(len(rows), generator=generator, device=rows.device)
    return rows[order.repeat(size // len(rows) + 1)[:size]]
