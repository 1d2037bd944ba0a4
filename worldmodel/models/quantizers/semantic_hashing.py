"""The quantizer of improved semantic hashing (Kaiser & Bengio 2018)."""

import torch
from torch import Tensor, nn

from worldmodel import distributed
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.quantizers.interface import Quantized, flatten, unflatten


class SemanticHashing(nn.Module):
    """Quantizes each vector to a code of log2 K bits (improved semantic hashing: Kaiser & Bengio 2018, section 2).

    A projection gives a logit for each bit. In training, noise is added to the logits, and a coin flip for each example
    decides whether its decoder gets saturating sigmoids of the logits or their bits, which have the gradient of the
    sigmoids. The returned codes, in training and evaluation, are the bits without noise, lowest bit first. There is no
    loss.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        bits = config.codebook_size.bit_length() - 1
        self.logits = nn.Linear(config.code_dim, bits)
        self.ones, self.zeros = nn.Linear(bits, config.code_dim), nn.Linear(bits, config.code_dim)
        self.places = nn.Buffer(2 ** torch.arange(bits), persistent=False)

    @property
    def codebook(self) -> Tensor:
        """The vectors of all codes, (K, D)."""
        return self._vectors(self._bits(torch.arange(self.config.codebook_size, device=self.places.device)))

    @torch.compiler.disable
    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Quantized:
        """Quantize ``z`` (B, D, *grid), floating; ``generator`` provides the noise and coin flips of training.

        Raises:
            ValueError: as :func:`worldmodel.models.quantizers.interface.flatten`.
        """
        with torch.autocast(z.device.type, enabled=False):
            logits = self.logits(flatten(z, self.config.code_dim))  # (N, bits), N = B·grid
            codes = self._codes(logits)
            counts = torch.bincount(codes, minlength=self.config.codebook_size).float()
            if self.training:
                counts = distributed.all_reduce_sum(counts)
                noise = torch.randn(logits.shape, generator=generator, device=logits.device)
                logits = logits + self.config.noise_std * noise
                soft = saturating_sigmoid(logits)
                hard = soft + ((logits > 0).float() - soft).detach()
                is_hard = torch.rand(len(z), generator=generator, device=z.device) < self.config.discrete_fraction
                bits = torch.where(is_hard.repeat_interleave(len(logits) // len(z))[:, None], hard, soft)
            else:
                bits = (logits > 0).float()
            vectors = self._vectors(bits)
        return unflatten(vectors, codes, vectors.new_zeros(()), counts, z)

    def encode(self, z: Tensor) -> Tensor:
        """Return the bits of ``z`` as integers: (B, D, *grid) -> (B, *grid) int64."""
        with torch.autocast(z.device.type, enabled=False):
            return self._codes(self.logits(flatten(z, self.config.code_dim))).view(z.shape[:1] + z.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors of ``codes``: (B, *grid) int64 -> (B, D, *grid)."""
        with torch.autocast(codes.device.type, enabled=False):
            return self._vectors(self._bits(codes.flatten())).view(*codes.shape, -1).movedim(-1, 1)

    def _codes(self, logits: Tensor) -> Tensor:
        return (logits > 0).long().mul(self.places).sum(1)

    def _bits(self, codes: Tensor) -> Tensor:
        return (codes[:, None] & self.places).ne(0).float()  # (N, bits)

    def _vectors(self, bits: Tensor) -> Tensor:
        return self.ones(bits) + self.zeros(1 - bits)  # (N, D)


def saturating_sigmoid(x: Tensor) -> Tensor:
    """Return a sigmoid that reaches 0 and 1: clip(1.2 σ(x) - 0.1) (Kaiser & Bengio 2018, eq. 1)."""
    return (1.2 * torch.sigmoid(x) - 0.1).clamp(0, 1)
