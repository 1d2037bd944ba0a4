"""Vector quantization with a learned codebook and a straight-through gradient."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel import distributed
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.quantizers.interface import Quantized, flatten, unflatten

CHUNK_ROWS = 1024  # vectors compared with the codebook at a time: the (rows, K) scores stay in the cache
KMEANS_STEPS = 10


class VectorQuantizer(nn.Module):
    """Replaces each D-vector by the nearest code (van den Oord et al. 2017, eqs 1-3; Roy et al. 2018, eqs 10-12).

    In training mode, a forward pass also updates the codebook. The returned codes are the nearest ones in either mode.
    When ``torch.distributed`` is initialized, all workers learn one codebook from all their vectors, as a single
    process would from the combined batch; only the samples of soft EM differ.

    The moving averages N and m are not normalized and start at zero, so m/N has no bias to correct, and a code that is
    not chosen keeps its vector exactly.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        codebook = torch.randn(config.codebook_size, config.code_dim) * config.init_std
        self.codebook = nn.Parameter(codebook) if config.update == "loss" else nn.Buffer(codebook)
        self.ema_count = nn.Buffer(torch.zeros(config.codebook_size))  # N, eq. 6
        self.ema_sum = nn.Buffer(torch.zeros(config.codebook_size, config.code_dim))  # m, eq. 7
        self.usage = nn.Buffer(torch.zeros(config.codebook_size))  # times chosen since the last reset
        self.steps = nn.Buffer(torch.zeros((), dtype=torch.int64))

    @torch.compiler.disable
    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Quantized:
        """Quantize ``z`` (B, D, *grid), floating.

        Args:
            generator: source of the random choices of training (initial codebook, dead code resets, soft EM).

        Raises:
            ValueError: as :func:`worldmodel.models.quantizers.interface.flatten`.
        """
        size, beta = self.config.codebook_size, self.config.commitment_weight
        with torch.autocast(z.device.type, enabled=False):
            rows = flatten(z, self.config.code_dim)  # (N, D), N = B·grid
            if self.training:
                self._initialize_or_reset_codes(rows.detach(), generator)
            codes = nearest_codes(rows.detach(), self.codebook)  # (N,)
            vectors = F.embedding(codes, self.codebook)  # (N, D)
            counts = torch.bincount(codes, minlength=size).float()
            counts = distributed.all_reduce_sum(counts) if self.training else counts
            loss, samples = beta * F.mse_loss(rows, vectors.detach()), None
            if self.training and self.config.update == "loss":
                loss = loss + self.config.codebook_weight * F.mse_loss(vectors, rows.detach())
                self.usage += counts
            elif self.training and self.config.update == "ema":
                self._update_averages(counts, distributed.all_reduce_sum(_sum_by_code(rows.detach(), codes, size)))
            elif self.training:
                m = self.config.num_samples
                samples = sample_codes(rows.detach(), self.codebook, m, generator)  # (N, m)
                vectors = F.embedding(samples, self.codebook).mean(1)  # eq. 12
                loss = beta * F.mse_loss(rows, vectors)
                soft_counts = distributed.all_reduce_sum(torch.bincount(samples.flatten(), minlength=size).float())
                sums = _sum_by_code(rows.detach().repeat_interleave(m, 0), samples.flatten(), size)
                self._update_averages(soft_counts / m, distributed.all_reduce_sum(sums) / m)
            vectors = rows + (vectors - rows).detach()
        return unflatten(vectors, codes, loss, counts, z, samples)

    def encode(self, z: Tensor) -> Tensor:
        """Return the nearest codes of ``z``: (B, D, *grid) -> (B, *grid) int64."""
        with torch.autocast(z.device.type, enabled=False):
            return nearest_codes(flatten(z, self.config.code_dim), self.codebook).view(z.shape[:1] + z.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors of ``codes``: (B, *grid) int64 -> (B, D, *grid)."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def sample_codes(self, z: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Sample codes as soft EM does, for a prior's smoothed targets: (B, D, *grid) -> (B, samples, *grid) int64."""
        with torch.autocast(z.device.type, enabled=False):
            codes = sample_codes(flatten(z, self.config.code_dim), self.codebook, num_samples, generator)
        return codes.view(*z.shape[:1], *z.shape[2:], num_samples).movedim(-1, 1)

    @torch.no_grad()
    def _initialize_or_reset_codes(self, rows: Tensor, generator: torch.Generator | None) -> None:
        """Initialize the codebook from the first batch; later, move dead codes onto vectors of the current batch."""
        size, every = self.config.codebook_size, self.config.dead_code_reset_every
        if self.steps == 0 and self.config.init == "kmeans":
            self.codebook.copy_(distributed.broadcast(_kmeans(distributed.all_gather(rows), size, generator)))
        elif every and self.steps and self.steps % every == 0:  # all workers are at the same step, so all gather
            fresh = distributed.broadcast(_choose_rows(distributed.all_gather(rows), size, generator))
            dead = (self.usage == 0)[:, None]
            self.codebook.copy_(torch.where(dead, fresh, self.codebook))
            self.ema_sum.masked_fill_(dead, 0)
            self.ema_count.masked_fill_(dead[:, 0], 0)
            self.usage.zero_()
        self.steps += 1

    @torch.no_grad()
    def _update_averages(self, counts: Tensor, sums: Tensor) -> None:
        """Apply equations 6 to 8; a code that was not chosen keeps its vector."""
        self.usage += counts
        self.ema_count.lerp_(counts, 1 - self.config.ema_decay)
        self.ema_sum.lerp_(sums, 1 - self.config.ema_decay)
        chosen = counts[:, None] > 0
        self.codebook.copy_(torch.where(chosen, self.ema_sum / self.ema_count[:, None], self.codebook))


def nearest_codes(rows: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest code of each row: (N, D), (K, D) -> (N,) int64, by the largest z·c - |c|²/2."""
    bias = -0.5 * codebook.square().sum(1)  # (K,)
    return torch.cat([torch.addmm(bias, chunk, codebook.T).argmax(1) for chunk in rows.split(CHUNK_ROWS)])


def sample_codes(rows: Tensor, codebook: Tensor, num_samples: int, generator: torch.Generator | None) -> Tensor:
    """Sample codes with P ∝ exp(-|z - c|²): (N, D), (K, D) -> (N, samples) int64 (Roy et al. 2018, section 3.2)."""
    bias = -codebook.square().sum(1)
    codes = []
    for chunk in rows.split(CHUNK_ROWS):
        probabilities = torch.addmm(bias, chunk, codebook.T, alpha=2).softmax(1)  # |z|² is the same for every code
        codes.append(torch.multinomial(probabilities, num_samples, replacement=True, generator=generator))
    return torch.cat(codes)


def _sum_by_code(rows: Tensor, codes: Tensor, size: int) -> Tensor:
    """Return the sum of the rows of each code: (N, D), (N,) -> (size, D)."""
    return rows.new_zeros(size, rows.shape[1]).index_add_(0, codes, rows)


def _kmeans(rows: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """Return ``size`` cluster centers of ``rows`` after a few steps of Lloyd's algorithm."""
    centers = _choose_rows(rows, size, generator)
    for _ in range(KMEANS_STEPS):
        codes = nearest_codes(rows, centers)
        counts = torch.bincount(codes, minlength=size)[:, None]
        centers = torch.where(counts > 0, _sum_by_code(rows, codes, size) / counts.clamp_min(1), centers)
    return centers


def _choose_rows(rows: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """Return ``size`` random rows, repeated only if there are fewer."""
    order = torch.randperm(len(rows), generator=generator, device=rows.device)
    return rows[order.repeat(size // len(rows) + 1)[:size]]
