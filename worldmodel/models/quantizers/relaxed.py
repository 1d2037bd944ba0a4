"""Quantizers that learn by relaxation: Gumbel-softmax and improved semantic hashing.

They answer as :class:`worldmodel.models.quantizers.nearest.VectorQuantizer` does. Training adds noise before it
makes codes, and the gradient is that of a smooth function of the same noise; evaluation has no noise.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel import distributed
from worldmodel.models.quantizers.config import Quantized, QuantizerConfig, flattened, unflattened


class GumbelSoftmax(nn.Module):
    """Draws each code from a categorical distribution, with the straight-through Gumbel-softmax gradient.

    In training the decoder is given the vector of the code with the largest logit + Gumbel noise, and the gradient goes
    through the mean of the codebook under softmax((logits + noise) / temperature) in its place (Jang et al. 2017,
    section 2.2; also Maddison et al. 2017). Given the mean itself, as both also propose, the decoder comes to need
    mixtures that no code has. The temperature falls with the steps. The codes of a result, in either mode, are those of
    the largest logits without noise. The loss is the divergence of the distribution from the uniform one.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.logits = nn.Linear(config.dim, config.codes)
        self.codebook = nn.Parameter(torch.randn(config.codes, config.dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def temperature(self) -> Tensor:
        """What the next training step divides the logits by, ()."""
        share = (self.steps / self.config.cooling).clamp(max=1)
        return self.config.temperature * (self.config.coldest / self.config.temperature) ** share

    @torch.compiler.disable
    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Quantized:
        """Quantize ``z`` (B, D, *grid), floating; ``generator`` is for the noise of training.

        Raises:
            ValueError: as :func:`worldmodel.models.quantizers.config.flattened`.
        """
        with torch.autocast(z.device.type, enabled=False):
            logits = self.logits(flattened(z, self.config.dim)).log_softmax(1)  # (N, K), N = B·grid
            codes = logits.argmax(1)
            counts = torch.bincount(codes, minlength=self.config.codes).float()
            divergence = (logits.exp() * logits).sum(1).mean() + math.log(self.config.codes)
            if self.training:
                counts = distributed.total(counts)
                noisy = logits + gumbel_noise(logits, generator)
                smooth = (noisy / self.temperature).softmax(1) @ self.codebook.detach()
                vectors = F.embedding(noisy.argmax(1), self.codebook) + smooth - smooth.detach()
                self.steps += 1
            else:
                vectors = F.embedding(codes, self.codebook)
        return unflattened(vectors, codes, self.config.divergence * divergence, counts, z)

    def encode(self, z: Tensor) -> Tensor:
        """The most probable codes of ``z``: (B, D, *grid) -> (B, *grid) int64."""
        with torch.autocast(z.device.type, enabled=False):
            return self.logits(flattened(z, self.config.dim)).argmax(1).view(z.shape[:1] + z.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        """The vectors of ``codes``: (B, *grid) int64 -> (B, D, *grid)."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Noise of the standard Gumbel distribution: logits and noise are largest where softmax(logits) draws."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device)  # as fast again as exponential_
    return uniform.log_().neg_().log_().neg_()


class SemanticHashing(nn.Module):
    """Makes each code of log2 K bits (improved semantic hashing: Kaiser and Bengio 2018, section 2).

    A projection gives a logit for every bit. In training noise is added to it, and one coin for each example says
    whether its decoder sees saturating sigmoids of the logits or their bits, with the gradient of the sigmoids. The
    codes, in either mode, are the bits without noise, the first one the lowest. There is no loss.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        bits = config.codes.bit_length() - 1
        self.logits = nn.Linear(config.dim, bits)
        self.ones, self.zeros = nn.Linear(bits, config.dim), nn.Linear(bits, config.dim)
        self.register_buffer("places", 2 ** torch.arange(bits), persistent=False)

    @property
    def codebook(self) -> Tensor:
        """The vectors of all codes, (K, D)."""
        return self._vectors(self._bits(torch.arange(self.config.codes, device=self.places.device)))

    @torch.compiler.disable
    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Quantized:
        """Quantize ``z`` (B, D, *grid), floating; ``generator`` is for the noise and the coins of training.

        Raises:
            ValueError: as :func:`worldmodel.models.quantizers.config.flattened`.
        """
        with torch.autocast(z.device.type, enabled=False):
            logits = self.logits(flattened(z, self.config.dim))  # (N, bits), N = B·grid
            codes = self._codes(logits)
            counts = torch.bincount(codes, minlength=self.config.codes).float()
            if self.training:
                counts = distributed.total(counts)
                noise = torch.randn(logits.shape, generator=generator, device=logits.device)
                logits = logits + self.config.noise * noise
                soft = saturating_sigmoid(logits)
                hard = soft + ((logits > 0).float() - soft).detach()
                coins = torch.rand(len(z), generator=generator, device=z.device) < self.config.discrete
                bits = torch.where(coins.repeat_interleave(len(logits) // len(z))[:, None], hard, soft)
            else:
                bits = (logits > 0).float()
            vectors = self._vectors(bits)
        return unflattened(vectors, codes, vectors.new_zeros(()), counts, z)

    def encode(self, z: Tensor) -> Tensor:
        """The bits of ``z`` as numbers: (B, D, *grid) -> (B, *grid) int64."""
        with torch.autocast(z.device.type, enabled=False):
            return self._codes(self.logits(flattened(z, self.config.dim))).view(z.shape[:1] + z.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        """The vectors of ``codes``: (B, *grid) int64 -> (B, D, *grid)."""
        with torch.autocast(codes.device.type, enabled=False):
            return self._vectors(self._bits(codes.flatten())).view(*codes.shape, -1).movedim(-1, 1)

    def _codes(self, logits: Tensor) -> Tensor:
        return (logits > 0).long().mul(self.places).sum(1)

    def _bits(self, codes: Tensor) -> Tensor:
        return (codes[:, None] & self.places).ne(0).float()  # (N, bits)

    def _vectors(self, bits: Tensor) -> Tensor:
        return self.ones(bits) + self.zeros(1 - bits)  # (N, D)


def saturating_sigmoid(x: Tensor) -> Tensor:
    """A sigmoid that reaches 0 and 1: clip(1.2 σ(x) - 0.1) (Kaiser and Bengio 2018, eq. 1)."""
    return (1.2 * torch.sigmoid(x) - 0.1).clamp(0, 1)
