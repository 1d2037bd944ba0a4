"""The Gumbel-softmax quantizer (Jang et al. 2017; Maddison et al. 2017)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel import distributed
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.quantizers.interface import Quantized, flatten, unflatten


class GumbelSoftmax(nn.Module):
    """Samples each code from a categorical distribution, with the straight-through Gumbel-softmax gradient.

    In training, the decoder gets the vector of the code with the largest logit + Gumbel noise, and the gradient goes
    through the mean of the codebook under softmax((logits + noise) / temperature) instead (Jang et al. 2017,
    section 2.2; also Maddison et al. 2017). A decoder that gets the mean itself, as both papers also propose, comes to
    rely on mixtures that no single code provides. The temperature is annealed. The returned codes, in training and
    evaluation, are those of the largest logits without noise. The loss is the KL divergence from the uniform
    distribution.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.logits = nn.Linear(config.code_dim, config.codebook_size)
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.code_dim))
        self.steps = nn.Buffer(torch.zeros((), dtype=torch.int64))

    @property
    def temperature(self) -> Tensor:
        """The temperature of the next training step, ()."""
        first, last = self.config.initial_temperature, self.config.min_temperature
        return first * (last / first) ** (self.steps / self.config.anneal_steps).clamp(max=1)

    @torch.compiler.disable
    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Quantized:
        """Quantize ``z`` (B, D, *grid), floating; ``generator`` provides the training noise.

        Raises:
            ValueError: as :func:`worldmodel.models.quantizers.interface.flatten`.
        """
        with torch.autocast(z.device.type, enabled=False):
            logits = self.logits(flatten(z, self.config.code_dim)).log_softmax(1)  # (N, K), N = B·grid
            codes = logits.argmax(1)
            counts = torch.bincount(codes, minlength=self.config.codebook_size).float()
            divergence = (logits.exp() * logits).sum(1).mean() + math.log(self.config.codebook_size)
            if self.training:
                counts = distributed.all_reduce_sum(counts)
                noisy = logits + gumbel_noise(logits, generator)
                smooth = (noisy / self.temperature).softmax(1) @ self.codebook.detach()
                vectors = F.embedding(noisy.argmax(1), self.codebook) + smooth - smooth.detach()
                self.steps += 1
            else:
                vectors = F.embedding(codes, self.codebook)
        return unflatten(vectors, codes, self.config.kl_weight * divergence, counts, z)

    def encode(self, z: Tensor) -> Tensor:
        """Return the most probable codes of ``z``: (B, D, *grid) -> (B, *grid) int64."""
        with torch.autocast(z.device.type, enabled=False):
            return self.logits(flatten(z, self.config.code_dim)).argmax(1).view(z.shape[:1] + z.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors of ``codes``: (B, *grid) int64 -> (B, D, *grid)."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return standard Gumbel noise; the argmax of logits + noise is a sample of softmax(logits)."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device)  # twice as fast as exponential_
    return uniform.log_().neg_().log_().neg_()
