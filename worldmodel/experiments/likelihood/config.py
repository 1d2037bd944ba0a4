"""Configuration of the autoencoders with a likelihood."""

from dataclasses import dataclass, field
from typing import Literal

from worldmodel.checks import check_ranges
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.run_kind import RunKind

Likelihood = Literal["logistic", "softmax"]


@dataclass(frozen=True)
class AutoencoderConfig:
    """Architecture of an autoencoder and its latents.

    Attributes:
        kind: type of the latents: vqvae (quantized), vae (normal) or vimco (categorical).
        in_channels: number of image channels, 3 for RGB.
        hidden_channels: number of channels of every hidden layer.
        residual_channels: number of channels between the two convolutions of a residual block.
        num_residual_blocks: number of residual blocks in the encoder and in the decoder.
        num_downsamples: number of strided convolutions, each of which halves the grid.
        num_latents: number N of latents at each position of the grid.
        likelihood: distribution of a pixel given the latents: logistic (discretized) or softmax (over 256 values).
        num_samples: number k of latent samples per image in training, for kind vimco only; 2 or more.
        quantizer: codebook settings of a vqvae, shared by all latents; a vimco uses only the sizes K and D.
    """

    kind: Literal["vqvae", "vae", "vimco"] = "vqvae"
    in_channels: int = 3
    hidden_channels: int = 256
    residual_channels: int = 256
    num_residual_blocks: int = 2
    num_downsamples: int = 2
    num_latents: int = 10
    likelihood: Likelihood = "logistic"
    num_samples: int = 50
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(codebook_size=256, code_dim=8))

    def __post_init__(self) -> None:
        counts = ("in_channels", "hidden_channels", "residual_channels", "num_latents", "num_samples")
        check_ranges("model", self, counts, ("num_residual_blocks", "num_downsamples"))
        if self.kind == "vimco" and self.num_samples < 2:
            raise ValueError(f"model.num_samples must be 2 or more for a vimco, got {self.num_samples}")


AUTOENCODER_RUN = RunKind(
    AutoencoderConfig, "worldmodel.experiments.likelihood.autoencoders:build_autoencoder", choices=("flip",)
)
