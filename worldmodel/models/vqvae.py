"""The vector-quantised autoencoder: pictures or sound to a small grid of codes and back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.checks import check
from worldmodel.models.layers import CONVOLUTION, TRANSPOSED_CONVOLUTION, ResidualBlock, strided
from worldmodel.models.quantizers.config import Quantized, QuantizerConfig
from worldmodel.models.quantizers.nearest import Quantizer, build, perplexity


@dataclass(frozen=True)
class VQVAEConfig:
    """The sizes of a VQ-VAE.

    Attributes:
        channels: of the picture, 3 for RGB.
        hidden: channels of every layer within.
        residual_hidden: channels between the two convolutions of a residual block.
        residual_blocks: of them, in the encoder and in the decoder.
        halvings: strided convolutions; each halves the grid, so 84×84 becomes 21×21 after two.
        variance: of the data in [0, 1]; the squared error is divided by it, which sets its weight beside the
            quantizer's terms; 0 has ``worldmodel.train`` measure it.
        quantizer: the codebook between encoder and decoder.
    """

    channels: int = 3
    hidden: int = 128
    residual_hidden: int = 64
    residual_blocks: int = 2
    halvings: int = 2
    variance: float = 0.0
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        check("model", self, ("channels", "hidden", "residual_hidden"), ("residual_blocks", "halvings", "variance"))


class Encoder(nn.Sequential):
    """Strided 4×4 convolutions, then residual blocks: (B, channels, *grid) -> (B, D, *grid / 2^halvings).

    Args:
        strides: of the convolutions, in place of ``config.halvings`` times 2; without any, the input must have
            ``config.hidden`` channels.
    """

    def __init__(self, config: VQVAEConfig, dims: int = 2, strides: Sequence[int] | None = None) -> None:
        hidden, strides = config.hidden, [2] * config.halvings if strides is None else strides
        layers = strided(dims, config.channels, hidden, strides)
        layers[-1:] = [ResidualBlock(dims, hidden, config.residual_hidden) for _ in range(config.residual_blocks)]
        super().__init__(*layers, nn.ReLU(), CONVOLUTION[dims](hidden, config.quantizer.dim, 1))
        self.channels, self.multiple = config.channels, math.prod(strides)  # what a picture must have


class Decoder(nn.Sequential):
    """Residual blocks, then transposed 4×4 convolutions: (B, D, *grid) -> (B, channels, *grid · 2^halvings)."""

    def __init__(self, config: VQVAEConfig, dims: int = 2) -> None:
        transposed, hidden = TRANSPOSED_CONVOLUTION[dims], config.hidden
        layers: list[nn.Module] = [CONVOLUTION[dims](config.quantizer.dim, hidden, 3, padding=1)]
        layers += [ResidualBlock(dims, hidden, config.residual_hidden) for _ in range(config.residual_blocks)]
        for number in reversed(range(config.halvings)):
            layers += [nn.ReLU(), transposed(hidden, hidden if number else config.channels, 4, stride=2, padding=1)]
        super().__init__(*layers)


class VQVAE(nn.Module):
    """An autoencoder of given parts whose code is discrete (van den Oord et al. 2017)."""

    def __init__(self, encoder: nn.Module, quantizer: Quantizer, decoder: nn.Module, variance: float = 1.0) -> None:
        super().__init__()
        self.variance = variance
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

    @classmethod
    def from_config(cls, config: VQVAEConfig) -> "VQVAE":
        """The paper's picture model."""
        return cls(Encoder(config), build(config.quantizer), Decoder(config), config.variance or 1.0)

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss, equation 3, of frames (B, H, W, C) uint8: relative squared error and quantizer's terms."""
        x = normalize_for(self.encoder, frames)
        quantized = self.quantizer(self.encoder(x), generator)
        reconstruction = self.decoder(quantized.vectors).float()
        error = F.mse_loss(reconstruction, x) / self.variance
        return error + quantized.loss, {
            "reconstruction_error": error.detach(),
            "quantizer_loss": quantized.loss.detach(),
            "perplexity": perplexity(quantized.counts),
        }

    def reconstruct(self, frames: Tensor) -> tuple[Tensor, Quantized]:
        """Frames (B, H, W, C) uint8 through the bottleneck and back, with what the quantizer made of them."""
        quantized = self.quantizer(self.encoder(normalize_for(self.encoder, frames)))
        return denormalize(self.decoder(quantized.vectors)), quantized

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, H, W, C) uint8 -> codes (B, H/4, W/4) int64."""
        return self.quantizer.encode(self.encoder(normalize_for(self.encoder, frames)))

    def samples(self, frames: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Frames (B, H, W, C) uint8 -> codes (B, count, H/4, W/4) int64 as soft EM draws them, for a prior's targets.

        Raises:
            ValueError: if the quantizer is of a kind that draws none.
        """
        if self.quantizer.config.kind != "nearest":
            raise ValueError(f"codes are drawn from a nearest quantizer, this is {self.quantizer.config.kind}")
        return self.quantizer.samples(self.encoder(normalize_for(self.encoder, frames)), count, generator)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, H/4, W/4) int64 -> frames (B, H, W, C) uint8."""
        return denormalize(self.decoder(self.quantizer.decode(codes)))


def normalize_for(encoder: nn.Module, frames: Tensor) -> Tensor:
    """Frames (B, H, W, C) uint8 as an encoder takes them.

    Raises:
        ValueError: if they have other channels than it takes, or sides that it cannot halve.
    """
    channels, multiple = encoder.channels, encoder.multiple
    if frames.ndim == 4 and (frames.shape[3] != channels or any(side % multiple for side in frames.shape[1:3])):
        raise ValueError(
            f"frames must have {channels} channels and sides that are multiples of {multiple}, "
            f"got {tuple(frames.shape)}"
        )
    return normalize(frames)


def normalize(frames: Tensor) -> Tensor:
    """(B, H, W, C) uint8 -> (B, C, H, W) float32 in [-0.5, 0.5].

    Raises:
        ValueError: for another rank or dtype.
    """
    if frames.ndim != 4 or frames.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8 (B, H, W, C), got {frames.dtype} {tuple(frames.shape)}")
    return frames.movedim(-1, 1).float() / 255 - 0.5  # channels_last in memory, as the frames are


def denormalize(x: Tensor) -> Tensor:
    """(B, C, H, W) in [-0.5, 0.5] -> (B, H, W, C) uint8, rounded and clipped."""
    return ((x.float() + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()
