"""Vectors to the nearest of K learnt codes and back, with a straight-through gradient."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel import distributed
from worldmodel.models.quantizers.config import Quantized, QuantizerConfig, flattened, unflattened
from worldmodel.models.quantizers.relaxed import GumbelSoftmax, SemanticHashing

ROWS = 1024  # vectors compared with the codebook at a time: the (rows, K) scores stay in the cache
KMEANS_STEPS = 10


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
        codebook = torch.randn(config.codes, config.dim) * config.scale
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
            ValueError: as :func:`worldmodel.models.quantizers.config.flattened`.
        """
        with torch.autocast(z.device.type, enabled=False):
            rows = flattened(z, self.config.dim)  # (N, D), N = B·grid
            if self.training:
                self._prepare(rows.detach(), generator)
            codes = nearest(rows.detach(), self.codebook)  # (N,)
            vectors = F.embedding(codes, self.codebook)  # (N, D)
            counts = torch.bincount(codes, minlength=self.config.codes).float()
            counts = distributed.total(counts) if self.training else counts
            loss = self.config.commitment * F.mse_loss(rows, vectors.detach())
            if self.training and self.config.update == "loss":
                loss = loss + self.config.codebook * F.mse_loss(vectors, rows.detach())
                self.usage += counts
            elif self.training and self.config.update == "ema":
                self._average(counts, distributed.total(_sums(rows.detach(), codes, self.config.codes)))
            elif self.training:
                samples = sample_codes(rows.detach(), self.codebook, self.config.samples, generator)  # (N, m)
                vectors = F.embedding(samples, self.codebook).mean(1)  # eq. 12
                loss = self.config.commitment * F.mse_loss(rows, vectors)
                repeated = rows.detach().repeat_interleave(self.config.samples, 0)
                soft_counts = distributed.total(torch.bincount(samples.flatten(), minlength=self.config.codes).float())
                sums = distributed.total(_sums(repeated, samples.flatten(), self.config.codes))
                self._average(soft_counts / self.config.samples, sums / self.config.samples)
            vectors = rows + (vectors - rows).detach()
        return unflattened(vectors, codes, loss, counts, z)

    def encode(self, z: Tensor) -> Tensor:
        """The nearest codes of ``z``: (B, D, *grid) -> (B, *grid) int64."""
        with torch.autocast(z.device.type, enabled=False):
            return nearest(flattened(z, self.config.dim), self.codebook).view(z.shape[:1] + z.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        """The vectors of ``codes``: (B, *grid) int64 -> (B, D, *grid)."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def samples(self, z: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Codes as soft EM draws them, for a prior's smoothed targets: (B, D, *grid) -> (B, samples, *grid) int64."""
        with torch.autocast(z.device.type, enabled=False):
            drawn = sample_codes(flattened(z, self.config.dim), self.codebook, samples, generator)
        return drawn.view(*z.shape[:1], *z.shape[2:], samples).movedim(-1, 1)

    @torch.no_grad()
    def _prepare(self, rows: Tensor, generator: torch.Generator | None) -> None:
        """Place the codebook on the first batch; later, move codes that fell out of use onto the present one."""
        every = self.config.revive_every
        if self.steps == 0 and self.config.initial == "kmeans":
            self.codebook.copy_(
                distributed.from_first(_kmeans(distributed.gathered(rows), self.config.codes, generator))
            )
        elif every and self.steps and self.steps % every == 0:  # the same step on all workers, so is the collective
            fresh = distributed.from_first(_choose(distributed.gathered(rows), self.config.codes, generator))
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


Quantizer = VectorQuantizer | GumbelSoftmax | SemanticHashing
CLASSES = {"nearest": VectorQuantizer, "gumbel": GumbelSoftmax, "semhash": SemanticHashing}


def build(config: QuantizerConfig) -> Quantizer:
    """The quantizer of the kind that ``config`` names."""
    return CLASSES[config.kind](config)


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
