"""The vector-quantized autoencoder: images or audio to a small grid of codes and back."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.models.config import VQVAEConfig
from worldmodel.models.layers import CONVOLUTION, TRANSPOSED_CONVOLUTION, ResidualBlock, strided_convolutions
from worldmodel.models.quantizers.interface import Quantized, perplexity
from worldmodel.models.quantizers.kinds import Quantizer, VectorQuantizer, build_quantizer


class Encoder(nn.Sequential):
    """Strided 4×4 convolutions, then residual blocks: (B, channels, *grid) -> (B, D, *grid / 2^num_downsamples).

    Args:
        strides: strides of the convolutions, instead of ``config.num_downsamples`` times 2; if empty, the input must
            have ``config.hidden_channels`` channels.
    """

    def __init__(self, config: VQVAEConfig, dims: int = 2, strides: Sequence[int] | None = None) -> None:
        hidden, strides = config.hidden_channels, [2] * config.num_downsamples if strides is None else strides
        layers = strided_convolutions(dims, config.in_channels, hidden, strides)
        layers[-1:] = [ResidualBlock(dims, hidden, config.residual_channels) for _ in range(config.num_residual_blocks)]
        super().__init__(*layers, nn.ReLU(), CONVOLUTION[dims](hidden, config.quantizer.code_dim, 1))
        self.channels, self.multiple = config.in_channels, math.prod(strides)  # required of the input


class Decoder(nn.Sequential):
    """Residual blocks, then transposed 4×4 convolutions: (B, D, *grid) -> (B, channels, *grid · 2^num_downsamples)."""

    def __init__(self, config: VQVAEConfig, dims: int = 2) -> None:
        transposed, hidden = TRANSPOSED_CONVOLUTION[dims], config.hidden_channels
        layers: list[nn.Module] = [CONVOLUTION[dims](config.quantizer.code_dim, hidden, 3, padding=1)]
        layers += [ResidualBlock(dims, hidden, config.residual_channels) for _ in range(config.num_residual_blocks)]
        for number in reversed(range(config.num_downsamples)):
            layers += [nn.ReLU(), transposed(hidden, hidden if number else config.in_channels, 4, stride=2, padding=1)]
        super().__init__(*layers)


class VQVAE(nn.Module):
    """An autoencoder with discrete codes (van den Oord et al. 2017), made of a given encoder, quantizer and decoder."""

    def __init__(self, encoder: Encoder, quantizer: Quantizer, decoder: nn.Module, variance: float = 1.0) -> None:
        super().__init__()
        self.variance = variance
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

    @classmethod
    def from_config(cls, config: VQVAEConfig) -> "VQVAE":
        """Build the image model of the paper."""
        return cls(Encoder(config), build_quantizer(config.quantizer), Decoder(config), config.data_variance or 1.0)

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss (equation 3) of frames (B, H, W, C) uint8, and metrics.

        The loss is the squared error relative to the data's variance, plus the quantizer's loss.
        """
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
        """Encode and decode frames (B, H, W, C) uint8; return the reconstructed frames and the quantizer's output."""
        quantized = self.quantizer(self.encoder(normalize_for(self.encoder, frames)))
        return denormalize(self.decoder(quantized.vectors)), quantized

    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames (B, H, W, C) uint8 to codes (B, h, w) int64, h being H / 2^num_downsamples."""
        return self.quantizer.encode(self.encoder(normalize_for(self.encoder, frames)))

    def sample_codes(self, frames: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Sample codes as soft EM does, for a prior's targets: (B, H, W, C) uint8 -> (B, num_samples, h, w) int64.

        Raises:
            ValueError: if the quantizer is not of kind nearest.
        """
        if not isinstance(self.quantizer, VectorQuantizer):
            raise ValueError(f"only a quantizer of kind nearest samples codes, got kind {self.quantizer.config.kind}")
        return self.quantizer.sample_codes(self.encoder(normalize_for(self.encoder, frames)), num_samples, generator)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (B, h, w) int64 to frames (B, H, W, C) uint8."""
        return denormalize(self.decoder(self.quantizer.decode(codes)))


def normalize_for(encoder: Encoder, frames: Tensor) -> Tensor:
    """Normalize frames (B, H, W, C) uint8 for an encoder.

    Raises:
        ValueError: if their number of channels is not the encoder's, or it cannot downsample their height or width.
    """
    channels, multiple = encoder.channels, encoder.multiple
    if frames.ndim == 4 and (frames.shape[3] != channels or any(side % multiple for side in frames.shape[1:3])):
        raise ValueError(
            f"frames must have {channels} channels and sides that are multiples of {multiple}, "
            f"got {tuple(frames.shape)}"
        )
    return normalize(frames)


def normalize(frames: Tensor) -> Tensor:
    """Convert (B, H, W, C) uint8 to (B, C, H, W) float32 in [-0.5, 0.5].

    Raises:
        ValueError: if the rank or type is another.
    """
    if frames.ndim != 4 or frames.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8 (B, H, W, C), got {frames.dtype} {tuple(frames.shape)}")
    return frames.movedim(-1, 1).float() / 255 - 0.5  # channels_last in memory, as the frames are


def denormalize(x: Tensor) -> Tensor:
    """Convert (B, C, H, W) in [-0.5, 0.5] to (B, H, W, C) uint8, rounded and clipped."""
    return ((x.float() + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()
