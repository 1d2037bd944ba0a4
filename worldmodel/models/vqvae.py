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
    """Strided convolutions, then residual blocks: (B, channels, *grid) -> (B, D, *grid / 2^num_downsamples).

    With several codes per position, D is their vectors' dimension times their number.

    Args:
        strides: strides of the convolutions, instead of ``config.num_downsamples`` times 2 and ``config.num_unstrided``
            times 1; if empty, the input must have ``config.hidden_channels`` channels.
    """

    def __init__(self, config: VQVAEConfig, dims: int = 2, strides: Sequence[int] | None = None) -> None:
        hidden, kernel = config.hidden_channels, config.kernel_size if config.kernel_size % 2 else None
        if strides is None:
            strides = [2] * config.num_downsamples + [1] * config.num_unstrided
            if not strides:
                raise ValueError("model.num_downsamples and model.num_unstrided must not both be 0")
        layers = strided_convolutions(dims, config.in_channels, hidden, strides, kernel)
        layers[-1:] = [ResidualBlock(dims, hidden, config.residual_channels) for _ in range(config.num_residual_blocks)]
        super().__init__(*layers, nn.ReLU(), CONVOLUTION[dims](hidden, _num_features(config), 1))
        self.channels, self.multiple = config.in_channels, math.prod(strides)  # required of the input


class Decoder(nn.Sequential):
    """Residual blocks, then transposed convolutions: (B, D, *grid) -> (B, channels, *grid · 2^num_downsamples)."""

    def __init__(self, config: VQVAEConfig, dims: int = 2) -> None:
        transposed, hidden = TRANSPOSED_CONVOLUTION[dims], config.hidden_channels
        kernel, padding = config.kernel_size, (config.kernel_size - 1) // 2
        layers: list[nn.Module] = [CONVOLUTION[dims](_num_features(config), hidden, 3, padding=1)]
        layers += [ResidualBlock(dims, hidden, config.residual_channels) for _ in range(config.num_residual_blocks)]
        strides = [1] * config.num_unstrided + [2] * config.num_downsamples
        for remaining, stride in zip(reversed(range(len(strides))), strides, strict=True):
            sizes = hidden, hidden if remaining else config.in_channels, kernel, stride, padding
            layers += [nn.ReLU(), transposed(*sizes, output_padding=(stride - kernel) % 2)]
        super().__init__(*layers)


class VQVAE(nn.Module):
    """An autoencoder with discrete codes (van den Oord et al. 2017), made of a given encoder, quantizer and decoder.

    With n codes per position, all shapes of codes below have n before h and w.
    """

    def __init__(
        self,
        encoder: Encoder,
        quantizer: Quantizer,
        decoder: nn.Module,
        variance: float = 1.0,
        codes_per_position: int = 1,
    ) -> None:
        super().__init__()
        self.variance, self.codes_per_position = variance, codes_per_position
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

    @classmethod
    def from_config(cls, config: VQVAEConfig) -> "VQVAE":
        """Build the image model of the paper."""
        parts = Encoder(config), build_quantizer(config.quantizer), Decoder(config)
        return cls(*parts, config.data_variance or 1.0, config.codes_per_position)

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss (equation 3) of frames (B, H, W, C) uint8, and metrics.

        The loss is the squared error relative to the data's variance, plus the quantizer's loss.
        """
        x = normalize_for(self.encoder, frames)
        quantized = self.quantizer(self._encode_to_vectors(x), generator)
        reconstruction = self._decode_vectors(quantized.vectors).float()
        error = F.mse_loss(reconstruction, x) / self.variance
        return error + quantized.loss, {
            "reconstruction_error": error.detach(),
            "quantizer_loss": quantized.loss.detach(),
            "perplexity": perplexity(quantized.counts),
        }

    def reconstruct(self, frames: Tensor) -> tuple[Tensor, Quantized]:
        """Encode and decode frames (B, H, W, C) uint8; return the reconstructed frames and the quantizer's output."""
        quantized = self.quantizer(self._encode_to_vectors(normalize_for(self.encoder, frames)))
        return denormalize(self._decode_vectors(quantized.vectors)), quantized

    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames (B, H, W, C) uint8 to codes (B, h, w) int64, h being H / 2^num_downsamples."""
        return self.quantizer.encode(self._encode_to_vectors(normalize_for(self.encoder, frames)))

    def sample_codes(self, frames: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Sample codes as soft EM does, for a prior's targets: (B, H, W, C) uint8 -> (B, num_samples, h, w) int64.

        Raises:
            ValueError: if the quantizer is not of kind nearest.
        """
        if not isinstance(self.quantizer, VectorQuantizer):
            raise ValueError(f"only a quantizer of kind nearest samples codes, got kind {self.quantizer.config.kind}")
        vectors = self._encode_to_vectors(normalize_for(self.encoder, frames))
        return self.quantizer.sample_codes(vectors, num_samples, generator)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (B, h, w) int64 to frames (B, H, W, C) uint8."""
        return denormalize(self._decode_vectors(self.quantizer.decode(codes)))

    def decode_samples(self, codes: Tensor) -> Tensor:
        """Decode the mean of sampled codes, as soft EM does in training: (B, m, h, w) int64 -> (B, H, W, C) uint8."""
        return denormalize(self._decode_vectors(self.quantizer.decode(codes).mean(2)))

    def _encode_to_vectors(self, x: Tensor) -> Tensor:
        """Encode normalized frames (B, C, H, W) to vectors (B, D, h, w), with n codes per position (B, D, n, h, w)."""
        z = self.encoder(x)
        return z if self.codes_per_position == 1 else z.unflatten(1, (self.codes_per_position, -1)).movedim(1, 2)

    def _decode_vectors(self, vectors: Tensor) -> Tensor:
        """Decode vectors shaped as by :meth:`_encode_to_vectors` to normalized frames (B, C, H, W)."""
        return self.decoder(vectors if self.codes_per_position == 1 else vectors.movedim(2, 1).flatten(1, 2))


def _num_features(config: VQVAEConfig) -> int:
    """Return the number of channels between encoder and decoder."""
    return config.codes_per_position * config.quantizer.code_dim


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
