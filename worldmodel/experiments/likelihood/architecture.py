"""The architecture that the autoencoders of :mod:`worldmodel.experiments.likelihood.autoencoders` share.

Encoder and decoder are those of :mod:`worldmodel.models.vqvae`. Each position of the grid (H, W) between them has N
latents, and the decoder says how likely each value of each pixel is.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from torch import Tensor, nn

from worldmodel.checks import check
from worldmodel.experiments.likelihood.pixels import OUTPUTS, Likelihood, likeliest, log_likelihood
from worldmodel.models.quantizers.nearest import QuantizerConfig
from worldmodel.models.vqvae import Decoder, Encoder, VQVAEConfig, normalize_for


@dataclass(frozen=True)
class AutoencoderConfig:
    """The sizes of an autoencoder, and what lies between its encoder and decoder.

    Attributes:
        kind: vqvae, vae (normal latents) or vimco (categorical latents).
        channels: of the picture, 3 for RGB.
        hidden: channels of every layer within.
        residual_hidden: channels between the two convolutions of a residual block.
        residual_blocks: of them, in the encoder and in the decoder.
        halvings: strided convolutions; each halves the grid.
        latents: N, at each position of the grid.
        likelihood: of a pixel's channel given the latents, logistic (discretised) or softmax (of 256 values).
        samples: k, draws of the latents for each picture of a vimco.
        quantizer: the codebook of a vqvae, of which all latents choose; of a vimco, its K and D.
    """

    kind: Literal["vqvae", "vae", "vimco"] = "vqvae"
    channels: int = 3
    hidden: int = 256
    residual_hidden: int = 256
    residual_blocks: int = 2
    halvings: int = 2
    latents: int = 10
    likelihood: Likelihood = "logistic"
    samples: int = 50
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(codes=256, dim=8))

    def __post_init__(self) -> None:
        counts = ("channels", "hidden", "residual_hidden", "latents", "samples")
        check("model", self, counts, ("residual_blocks", "halvings"))
        if self.kind == "vimco" and self.samples < 2:
            raise ValueError(f"model.samples must be 2 or more for a vimco, got {self.samples}")


class Bound(NamedTuple):
    """A lower bound on log p(x), as nats that a picture costs at most: distortion + rate."""

    distortion: Tensor  # (B,) -log p(x | z)
    rate: Tensor  # (B,) of the latents
    joint: Tensor  # (B,) distortion + rate; with several draws what they bound together, which is less but for chance


class Autoencoder(nn.Module):
    """What the three have in common.

    Args:
        outputs: channels of the encoder's output.
        inputs: channels of the decoder's input.
    """

    def __init__(self, config: AutoencoderConfig, outputs: int, inputs: int) -> None:
        super().__init__()
        self.config = config
        sizes = VQVAEConfig(
            config.channels, config.hidden, config.residual_hidden, config.residual_blocks, config.halvings
        )
        seen = OUTPUTS[config.likelihood] * config.channels
        self.encoder = Encoder(replace(sizes, quantizer=QuantizerConfig(dim=outputs)))
        self.decoder = Decoder(replace(sizes, channels=seen, quantizer=QuantizerConfig(dim=inputs)))

    def encoded(self, pictures: Tensor) -> Tensor:
        """The encoder's output for pictures (B, H, W, C) uint8: (B, outputs, *grid)."""
        return self.encoder(normalize_for(self.encoder, pictures))

    def log_likelihood(self, pictures: Tensor, vectors: Tensor) -> Tensor:
        """log p(x | z) in nats: pictures (B, H, W, C) uint8, decoder inputs (B, k, inputs, *grid) -> (B, k)."""
        repeated = pictures.repeat_interleave(vectors.shape[1], 0)
        outputs = self.decoder(vectors.flatten(0, 1))
        return log_likelihood(outputs, repeated, self.config.likelihood).unflatten(0, (-1, vectors.shape[1]))

    def shown(self, vectors: Tensor) -> Tensor:
        """The likeliest pictures of decoder inputs (B, inputs, *grid): (B, H, W, C) uint8."""
        return likeliest(self.decoder(vectors), self.config.likelihood)

    def measured(self, pictures: Tensor, bound: Bound) -> dict[str, Tensor]:
        """The parts of a bound, in bits per dimension of the pictures."""
        dimension = pictures[0].numel() * math.log(2)
        parts = {"distortion": bound.distortion, "rate": bound.rate, "bits_per_dim": bound.joint}
        return {name: part.detach().mean() / dimension for name, part in parts.items()}
